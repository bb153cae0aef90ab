"""A worker for an external module, with psycopg 3.  Reads PGHOST, PGDATABASE and so on.

    CREATE SCHEMA thumbnail;
    SELECT dgen.create_module('thumbnail', external => true);

    python3 worker.py thumbnail

    SELECT dgen.call('thumbnail/cat.png', '{"width": 64}', timeout => '30 s');

A second argument says how often to look for work before leaving.
"""
import sys

import psycopg
from psycopg.types.json import Jsonb


def handle(kind, message, state):
    """What this worker is for: returns the new state and the reply."""
    done = state.get("done", 0) + 1
    return {"done": done}, {"number": done, "of": message}


def serve(module, rounds=None):
    with psycopg.connect(autocommit=True) as conn:
        while rounds is None or rounds > 0:
            rounds = rounds and rounds - 1
            # sleeps without a snapshot, and is woken by a send
            conn.execute("CALL dgen.wait_work(%s, '10 s')", (module,))
            work = conn.execute("SELECT token, kind, message, state FROM dgen.take_work(%s, lease => '1 min')",
                                (module,)).fetchone()
            if work is None:
                continue            # another worker was quicker
            token, kind, message, state = work
            try:
                state, reply = handle(kind, message, state)
            except Exception as e:
                conn.execute("SELECT dgen.fail_work(%s, %s)", (token, str(e)))
                continue
            try:
                conn.execute("SELECT dgen.finish_work(%s, %s, %s)", (token, Jsonb(state), Jsonb(reply)))
            except psycopg.Error as e:
                if e.sqlstate != "OT014":   # we were too slow: another worker has it by now
                    raise


if __name__ == "__main__":
    serve(sys.argv[1], *map(int, sys.argv[2:]))
