"""Traces, when several workers write them, and when the server goes down."""

import pytest

from cluster import PORT, wait_for
from common import assert_nothing_left, connect_again, in_threads, value, wait_idle


@pytest.fixture
def db(cluster):
    cluster.psql("""
        CREATE EXTENSION dgen;
        CREATE SCHEMA t;
        CREATE FUNCTION t.init(args jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT '0'::jsonb $$;
        CREATE FUNCTION t.handle_call(request jsonb, INOUT state jsonb, OUT reply jsonb) LANGUAGE plpgsql AS $$
        BEGIN
            state := to_jsonb(state::int + 1);
            reply := state;
        END $$;
        CREATE FUNCTION t.handle_cast(message jsonb, INOUT state jsonb) LANGUAGE plpgsql AS $$
        BEGIN
            PERFORM pg_sleep(message::float8);
            state := to_jsonb(state::int + 1);
        END $$;
        SELECT dgen.create_module('t', max_attempts => 1)""")
    return cluster


def test_many_workers(db):
    """The ring is full and no fuller, whoever writes it."""
    with db.connect() as conn:
        conn.execute("SET client_min_messages = error")
        conn.execute("SELECT dgen.trace(module => 't', max_rows => 50)")

        def client(n):
            with db.connect() as c:
                c.execute("SET client_min_messages = error")
                for i in range(150):
                    if i % 3:
                        c.execute("SELECT dgen.cast(%s, '0')", ("t/%d" % ((n + i) % 9),))
                    else:
                        c.execute("SELECT dgen.call(%s, '0', '60 s')", ("t/%d" % ((n + i) % 9),))

        in_threads([lambda n=n: client(n) for n in range(4)])
        wait_idle(conn)
        assert_nothing_left(conn)
        # two numbers a place's width apart may have been in hand at once
        rows, places = conn.execute("SELECT count(*), count(DISTINCT place) FROM dgen.trace_entry").fetchone()
        assert 48 <= places <= 50 and rows <= places + 2
        assert value(conn, "SELECT max(number) FROM dgen.trace_log") >= 4 * 150 - 1
        assert value(conn, "SELECT min(number) FROM dgen.trace_log") >= 4 * 150 - 60


def test_restart_goes_on(db):
    """The next number is found from the table."""
    with db.connect() as conn:
        conn.execute("SET client_min_messages = error")
        conn.execute("SELECT dgen.trace('t/a', max_rows => 10)")
        for i in range(15):
            conn.execute("SELECT dgen.call('t/a', '0', '60 s')")
    db.kill9()
    db.start()
    with connect_again(db) as conn:
        conn.execute("SET client_min_messages = error")
        for i in range(5):
            conn.execute("SELECT dgen.call('t/a', '0', '60 s')")
        assert value(conn, "SELECT array_agg(number ORDER BY number) FROM dgen.trace_log") == list(range(10, 20))
        assert value(conn, "SELECT array_agg(new_version ORDER BY number) FROM dgen.trace_log") == list(range(11, 21))


def test_lost_worker(db):
    """A message that took its worker down is a failure of it."""
    with db.connect() as conn:
        conn.execute("SELECT dgen.trace('t/a')")
        conn.execute("SELECT dgen.cast('t/a', '600')")
        pid = wait_for(lambda: value(conn, "SELECT pid FROM dgen.workers WHERE server = 't/a'"))
        wait_for(lambda: value(conn, "SELECT wait_event = 'PgSleep' FROM pg_stat_activity WHERE pid = %s", pid))
        db.kill_backend(pid)
    db.wait_ready()
    with connect_again(db) as conn:
        row = wait_for(lambda: conn.execute(
            "SELECT kind, message, error ->> 'sqlstate', duration FROM dgen.trace_log").fetchone())
        assert row == ("cast", 600, "OT020", None)


def test_not_dumped(db):
    with db.connect() as conn:
        conn.execute("SELECT dgen.trace('t/a')")
        conn.execute("SELECT dgen.call('t/a', '0', '60 s')")
    dump = db.run("pg_dump", "-h", db.socket_dir, "-p", str(PORT), "-U", "postgres", "postgres")
    assert "COPY dgen.module " in dump and "dgen.trace" not in dump
