"""Timers through crashes, restores and many at once, and pg_cron."""

import os
import time

import pytest

from cluster import PORT, wait_for
from common import connect_again, value, wait_idle

MODULE = """
CREATE SCHEMA clock;
CREATE TABLE clock.log (n bigserial, server text, kind text, message jsonb, at timestamptz DEFAULT clock_timestamp());
CREATE FUNCTION clock.handle_info(message jsonb, INOUT state jsonb)
LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO clock.log (server, kind, message) VALUES (dgen.self(), dgen.kind(), message);
    PERFORM pg_sleep(0.002);
END $$;
CREATE FUNCTION clock.handle_cast(message jsonb, INOUT state jsonb, OUT timeout interval)
LANGUAGE plpgsql AS $$ BEGIN timeout := message #>> '{}'; END $$;
SELECT dgen.create_module('clock', isolation => 'read committed');
"""


@pytest.fixture
def clock(cluster):
    cluster.psql("CREATE EXTENSION dgen")
    cluster.psql(MODULE)
    return cluster


@pytest.mark.seconds(180)
def test_kill_between_due_and_delivery(clock):
    """kill -9 of the whole server while timers come due: each is handled
    exactly once; the ones that recur go on, and catch up."""
    with clock.connect() as conn:
        conn.execute("""
            SELECT dgen.send_after('clock/' || i % 20, to_jsonb(i), make_interval(secs => 0.3 + i * 0.002))
            FROM generate_series(1, 1000) i""")
        conn.execute("""
            SELECT dgen.send_after('clock/' || i % 20, to_jsonb(i), make_interval(secs => 0.3 + i * 0.002),
                                   'name ' || i)
            FROM generate_series(1001, 2000) i""")
        conn.execute("""
            SELECT dgen.send_every('clock/tick', '"tick"', '100 ms', on_miss => 'catch_up', name => 'tick')""")
        conn.execute("SELECT dgen.cast('clock/idle', '\"1.5 s\"')")
    for pause in 0.8, 0.7, 0.7:
        time.sleep(pause)           # some are due, some in the mailbox, some in hand
        clock.kill9()
        clock.start()
    conn = connect_again(clock)
    with conn:
        wait_for(lambda: value(conn, "SELECT count(*) FROM clock.log WHERE kind <> 'timeout' "
                                     "AND server <> 'clock/tick'") >= 2000, 60)
        wait_for(lambda: value(conn, "SELECT count(*) FROM clock.log WHERE kind = 'timeout'") == 1, 20)
        conn.execute("SELECT dgen.suspend('clock/tick')")
        n = value(conn, "SELECT count(*) FROM clock.log WHERE server = 'clock/tick'")
        occurrence, every, start = conn.execute(
            "SELECT occurrence, every, start_at FROM dgen.timers WHERE name = 'tick'").fetchone()
        # number 1 was the first, and the one that is next has not been handled
        assert n == occurrence - 1
        conn.execute("SELECT dgen.cancel_all('clock/tick'), dgen.resume('clock/tick')")
        wait_idle(conn)
        assert conn.execute("""
            SELECT count(*), count(DISTINCT coalesce(message->>'message', message #>> '{}'))
            FROM clock.log WHERE kind <> 'timeout' AND server <> 'clock/tick'""").fetchone() == (2000, 2000)
        assert value(conn, "SELECT count(*) FROM clock.log WHERE kind = 'timeout'") == 1
        assert value(conn, "SELECT count(*) FROM dgen.timer") == 0
        assert value(conn, "SELECT count(*) FROM dgen.delayed") == 0


@pytest.mark.seconds(180)
def test_restored_timers_wait_for_adoption(clock):
    """A dump has the timers; in the copy none goes off before adopt()."""
    with clock.connect() as conn:
        conn.execute("SELECT dgen.suspend('clock/a')")
        conn.execute("SELECT dgen.send_after('clock/a', '1', '0', 'mailbox')")
        conn.execute("SELECT dgen.send_after('clock/a', '2', '1 ms', 'due')")
        conn.execute("SELECT dgen.send_every('clock/b', '3', '1 hour', name => 'every')")
        conn.execute("SELECT dgen.send_after('clock/a', '4', '1 hour', 'later')")
        wait_for(lambda: value(conn, "SELECT count(*) FROM dgen.message") == 2, 20)
        conn.execute("SELECT dgen.suspend(module => 'clock')")
        conn.execute("CREATE DATABASE copied")
    path = clock.directory + "/dump"
    clock.run("pg_dump", "-h", clock.socket_dir, "-p", str(PORT), "-U", "postgres", "-f", path, "postgres")
    clock.psql_file(path, dbname="copied")
    with clock.connect(dbname="copied") as conn:
        assert value(conn, "SELECT dgen.is_armed()") is False
        assert value(conn, "SELECT count(*) FROM dgen.timers") == 4
        conn.execute("UPDATE dgen.delayed SET due_at = now() - interval '1 min' WHERE server = 'clock/b'")
        # the keeper looks at an unarmed database each ten seconds
        time.sleep(11)
        assert value(conn, "SELECT count(*) FROM dgen.delayed") == 2
        assert value(conn, "SELECT count(*) FROM clock.log") == 0
        conn.execute("SELECT dgen.adopt()")
        conn.execute("SELECT dgen.resume(module => 'clock'), dgen.resume('clock/a')")
        wait_for(lambda: value(conn, "SELECT count(*) FROM clock.log") == 3, 30)
        assert value(conn, "SELECT array_agg(name ORDER BY name) FROM dgen.timers") == ["every", "later"]
        conn.execute("SELECT dgen.send_after('clock/a', '5', '0', 'later')")
        wait_for(lambda: value(conn, "SELECT count(*) FROM clock.log WHERE message->>'message' = '5'") == 1, 20)
        wait_idle(conn)
        assert value(conn, "SELECT count(*) FROM clock.log") == 4


def test_many_timers_of_one_server(clock):
    """Set, read, replaced and erased; 2,000 of them, half of them with names."""
    with clock.connect() as conn:
        for name in "NULL", "'n' || i":
            conn.execute("SELECT count(dgen.send_after('clock/many', to_jsonb(i), '1 hour', %s)) "
                         "FROM generate_series(1, 1000) i" % name)
        conn.execute("SELECT count(dgen.send_after('clock/many', to_jsonb(i), '2 hours', 'n' || i)) "
                     "FROM generate_series(1, 1000) i")
        assert conn.execute("SELECT count(*), count(name) FROM dgen.timers").fetchone() == (2000, 1000)
        assert value(conn, "SELECT count(*) FROM dgen.timers WHERE due_at > now() + interval '90 min'") == 1000
        assert value(conn, "SELECT dgen.delete('clock/many')") is True
        assert value(conn, "SELECT count(*) FROM dgen.timers") == 0
        assert value(conn, "SELECT count(*) FROM dgen.delayed") == 0


@pytest.mark.seconds(180)
def test_pg_cron(cluster):
    """What the reference says about cron expressions."""
    control = cluster.run("pg_config", "--sharedir").strip() + "/extension/pg_cron.control"
    if not os.path.exists(control):
        pytest.skip("no pg_cron: " + control)
    cluster.configure({"shared_preload_libraries": "dgen,pg_cron", "cron.database_name": "postgres",
                       "cron.use_background_workers": "on"})
    cluster.restart()
    cluster.psql("CREATE EXTENSION dgen; CREATE EXTENSION pg_cron")
    cluster.psql(MODULE)
    with cluster.connect() as conn:
        conn.execute("SELECT cron.schedule('ring', '* * * * *', $$SELECT dgen.send('clock/cron', '1')$$)")
        wait_for(lambda: value(conn, "SELECT count(*) FROM clock.log") >= 1, 90)
