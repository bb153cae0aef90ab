"""Out of memory, at each allocation of a worker from its start to the end of what it
does (of another kind of end, test_citizens.py::test_eats_memory).  Whatever could not be done is done later, or its caller is told; nothing is
lost, and no entry of the ready queue stays taken."""

import mmap
import os
import random
import struct
import time

import psycopg
import pytest

from build import INSTRUMENT, give_to_server_user
from cluster import wait_for
from common import assert_nothing_left, compile_c, rounds_of, seed_of, value, wait_idle

pytestmark = pytest.mark.skipif(INSTRUMENT in ("sanitizers", "valgrind"), reason="it has a malloc() of its own")

# Each message is {"t": token}; each kind of activation notes its own.
MODULE = """
CREATE TABLE effect (seq bigserial, token text, server text, what text);
CREATE SCHEMA m;
CREATE FUNCTION m.note(message jsonb, state jsonb, what text) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO public.effect (token, server, what) VALUES (message->>'t', dgen.self(), what);
    RETURN jsonb_build_object('n', coalesce((state->>'n')::int, 0) + 1);
END $$;
CREATE FUNCTION m.handle_call(request jsonb, INOUT state jsonb, OUT reply jsonb)
LANGUAGE plpgsql AS $$ BEGIN state := m.note(request, state, 'call'); reply := request->'t'; END $$;
CREATE FUNCTION m.later(args jsonb) RETURNS void
LANGUAGE plpgsql AS $$ BEGIN INSERT INTO public.effect (token, server, what) VALUES (args->>'t', '', 'later'); END $$;
CREATE FUNCTION m.handle_cast(message jsonb, INOUT state jsonb, OUT lock boolean)
LANGUAGE plpgsql AS $$
BEGIN
    state := m.note(message, state, 'cast');
    lock := message ? 'lock';
    IF message ? 'later' THEN
        PERFORM dgen.after_commit('m.later', message);
    END IF;
END $$;
CREATE PROCEDURE m.handle_locked(kind text, message jsonb, INOUT state jsonb, INOUT reply jsonb)
LANGUAGE plpgsql AS $$
BEGIN
    COMMIT;
    state := m.note(message, state, 'locked');
END $$;
SELECT dgen.create_module('m', backoff_initial => '20 ms', backoff_max => '50 ms', max_attempts => 1000, breaker => 0);
"""


class Control:
    """Which allocations fail, see c/no_memory.c."""

    FORMAT = "32siiii"
    NEVER = 1 << 30

    def __init__(self, path):
        with open(path, "wb") as f:
            f.write(b"\0" * 4096)
        give_to_server_user(path)
        os.chmod(path, 0o666)
        with open(path, "r+b") as f:
            self.map = mmap.mmap(f.fileno(), 4096)
        self.disarm()

    def arm(self, left, times=1, process_type="", pid=0):
        self.disarm()
        struct.pack_into(self.FORMAT, self.map, 0, process_type.encode(), pid, left, times, 0)

    def disarm(self):
        """How many allocations there were, and how many failed."""
        _, _, left, _, failed = struct.unpack_from(self.FORMAT, self.map, 0)
        struct.pack_into(self.FORMAT, self.map, 0, b"", 0, 0, 0, 0)
        return self.NEVER - left, failed


@pytest.fixture
def db(cluster):
    """A cluster whose processes have the library preloaded."""
    cluster.stop()
    path = os.path.join(cluster.directory, "no_memory")
    cluster.control = Control(path)
    cluster.env = {"LD_PRELOAD": compile_c(cluster.build, "no_memory"), "DGEN_NO_MEMORY": path}
    # a library whose _PG_init() runs out of memory is of no use to its process any more
    cluster.configure({"shared_preload_libraries": "dgen, plpgsql", "dgen.worker_idle_timeout": "1 h", "fsync": False, "dgen.max_workers": 2})
    cluster.start()
    cluster.psql("CREATE EXTENSION dgen;" + MODULE)
    return cluster


class Round:
    """A call, a request, a cast with an effect and one with handle_locked, each
    for a server of its own kind, by a client that takes note of what it was told."""

    TOLD = ("53200", "OT001", "OT002", "OT020", "OT015")

    def __init__(self, db, number):
        self.db = db
        self.number = number
        self.tokens = {}        # token: sure that it happens

    def token(self, what):
        return "%s%d" % (what, self.number)

    def send(self, conn, what, query):
        token = self.token(what)
        try:
            value(conn, query % ('{"t": "%s", "%s": 1}' % (token, what)))
            self.tokens[token] = True
        except psycopg.Error as e:
            assert e.sqlstate in self.TOLD, e
            self.tokens[token] = False

    def run(self, conn):
        self.send(conn, "cast", "SELECT dgen.cast('m/a', '%s')")
        self.send(conn, "later", "SELECT dgen.cast('m/b', '%s')")
        self.send(conn, "lock", "SELECT dgen.cast('m/c', '%s')")
        self.send(conn, "call", "SELECT dgen.call('m/d', '%s', timeout => '20 s')")

    def check(self, conn):
        done = dict(conn.execute("SELECT token, array_agg(what ORDER BY seq) FROM effect "
                                 "WHERE token = ANY(%s) GROUP BY 1", (list(self.tokens),)).fetchall())
        whole = {"cast": ["cast"], "later": ["cast", "later"], "lock": ["cast", "locked"], "call": ["call"]}
        for token, sure in self.tokens.items():
            expected = whole[token.rstrip("0123456789")]
            # handle_locked and effects are done at least once
            got = done.get(token)
            assert got is None and not sure or got[:2] == expected and set(got[2:]) <= {got[-1]} \
                and len(got) <= len(expected) + 2 * (len(expected) - 1), (token, sure, got)


def fresh_worker(db, conn):
    """No worker is there: the next one begins at the beginning."""
    def none():
        conn.execute("SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
                     "WHERE backend_type = 'dgen worker'")
        return value(conn, "SELECT count(*) FROM dgen.workers") == 0
    wait_for(none, interval=0.005)


def sweep(db, request, process_type, points):
    """The n-th allocation of the processes of this type fails, for points of the n."""
    seed = seed_of(request)
    chance = random.Random(seed)
    failed = 0
    with db.connect() as conn:
        conn.execute("SET client_min_messages = error")
        # how many there are
        total = 0
        for number in range(2):
            fresh_worker(db, conn)
            db.control.arm(Control.NEVER, process_type=process_type)
            Round(db, number).run(conn)
            wait_idle(conn)
            total = max(total, db.control.disarm()[0])
        chosen = range(1, total + 1) if points >= total else sorted(chance.sample(range(1, total + 1), points))
        for number, n in enumerate(chosen, 2):
            times = chance.choice((1, 1, 3, 5))
            fresh_worker(db, conn)
            db.control.arm(n, times, process_type=process_type)
            r = Round(db, number)
            r.run(conn)
            began = time.monotonic()
            try:
                wait_idle(conn, 20)
            except AssertionError:
                raise AssertionError("stuck after allocation %d of %d of a %s failed %d times"
                                     % (n, total, process_type, times))
            took = time.monotonic() - began
            if took > 3:
                print("allocation %d x %d: idle after %.1f s" % (n, times, took))
            failed += db.control.disarm()[1]
            r.check(conn)
        wait_idle(conn)
        assert_nothing_left(conn)
        print("%d of %d allocations of a %s, %d failed" % (len(chosen), total, process_type, failed))
    assert failed >= len(chosen) // 2


def test_worker(db, request):
    sweep(db, request, "dgen worker", rounds_of(15))


@pytest.mark.long
def test_worker_long(db, request):
    sweep(db, request, "dgen worker", rounds_of(100000))
