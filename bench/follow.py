"""What it costs that changes are announced by NOTIFY."""

import contextlib

PICK = "\\set id random(1, 1000)\n"
CALL = PICK + "SELECT dgen.call('counter/' || :id::text, '\"increment\"');\n"

BY_HAND = ("BEGIN;\n"
           "UPDATE by_hand SET state = (counter.handle_call('\"increment\"', state)).state "
           "WHERE id = :id;\n%s;\nEND;\n")


@contextlib.contextmanager
def listening(b, channel):
    """Another session that listens, and reads when it is done."""
    conn = b.cluster.connect()
    conn.execute("LISTEN %s" % channel)
    try:
        yield
    finally:
        conn.close()


def calls_followed(b):
    """calls by 32 clients to 1,000 servers, with option notify and a listener"""
    def calls(channel):
        b.ask("SELECT dgen.alter_module('counter', notify => %s)", channel)
        load = b.pgbench(CALL, clients=32)
        b.expect("counter", load.count)
        return load.tps

    def by_hand(last):
        load = b.pgbench(PICK + BY_HAND % last, clients=32)
        b.by_hand += load.count
        return load.tps

    load = b.pgbench(CALL, clients=8, seconds=1)
    b.expect("counter", load.count)
    with listening(b, "counted"):
        b.versus("calls, each change announced", "1/s", lambda: calls("counted"), lambda: calls(""),
                 baseline_is="the same without", goal=("min", 0.9))
        b.versus("UPDATE by hand, pg_notify in its transaction", "1/s",
                 lambda: by_hand("SELECT pg_notify('counted', :id::text)"), lambda: by_hand("SELECT 1"),
                 baseline_is="the same without")


ROWS = [calls_followed]
