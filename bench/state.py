"""Large states, of which each message changes little."""

import random
import time

from harness import RUNS, scaled


def large_state(b):
    """one element of a 1 MB state of 10,000 changed per message"""
    number = scaled(1000, 20)
    chance = random.Random(1)
    changed = {}
    b.super.execute("SELECT dgen.call('large/1', '{\"k\": \"k1\", \"n\": 0}')")

    def lsn():
        return b.value("SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn")

    def measure(statement):
        """One commit a message; WAL bytes and milliseconds of each."""
        b.super.execute("CHECKPOINT")
        before, begin = lsn(), time.monotonic()
        for n in range(1, number + 1):
            key = "k%d" % chance.randint(1, 10000)
            changed[key] = n
            b.super.execute(statement, {"key": key, "n": n})
        return float(lsn() - before) / number, (time.monotonic() - begin) * 1000 / number

    def ours():
        changed.clear()
        figures = measure("SELECT dgen.call('large/1', jsonb_build_object('k', %(key)s::text, 'n', %(n)s::int))")
        state = b.value("SELECT dgen.state('large/1')")
        b.check("changed elements", {k: state[k]["n"] for k in changed}, changed)
        return figures

    by_hand = """UPDATE large_by_hand SET state = jsonb_set(state, ARRAY[%(key)s, 'n'],
                 to_jsonb(%(n)s::int)) WHERE id = 1 RETURNING id"""
    wal, times = ([], []), ([], [])
    for _ in range(RUNS):
        for i, (bytes_each, ms) in enumerate((ours(), measure(by_hand))):
            wal[i].append(bytes_each)
            times[i].append(ms)
    b.figure("WAL of one changed element of a 1 MB state", "bytes", wal[0], wal[1],
             baseline_is="UPDATE ... jsonb_set; ratio: times less", invert=True,
             goal=("min", 300), floor=("min", 300))
    b.figure("time of the same", "ms", times[0], times[1],
             baseline_is="UPDATE ... jsonb_set", goal=("max", 1))


ROWS = [large_state]
