"""A DOWN for each monitor, once, whatever is killed between the two."""

import threading
import time

import pytest

from cluster import wait_for
from common import (Client, Killer, assert_nothing_left, connect_again, in_threads, rounds_of,
                    seed_of, value, wait_idle)

CLIENTS = 4
WATCHERS = 3

# A watcher writes down each monitor that it sets, and each DOWN that it gets.
MODULES = """
CREATE TABLE watched (ref bigint PRIMARY KEY, server text);
CREATE TABLE down (ref bigint, server text, reason text);
CREATE SCHEMA watcher;
CREATE FUNCTION watcher.handle_cast(message jsonb, state jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO public.watched SELECT dgen.monitor(message->>'watch'), message->>'watch';
    PERFORM dgen.cast(message->>'watch', '"watched"');
    RETURN state;
END $$;
CREATE FUNCTION watcher.handle_info(message jsonb, state jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO public.down VALUES ((message->>'ref')::bigint, message->>'server', message->>'reason');
    RETURN state;
END $$;
-- mortal: ends by itself when all have said that they watch it
CREATE SCHEMA mortal;
CREATE FUNCTION mortal.init(args jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT '0'::jsonb $$;
CREATE FUNCTION mortal.handle_cast(message jsonb, state jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
    IF state::int + 1 = %d THEN
        PERFORM dgen.exit('old age');
    END IF;
    RETURN to_jsonb(state::int + 1);
END $$;
CREATE FUNCTION live(mortal text) RETURNS void LANGUAGE sql AS $$
    SELECT dgen.start(mortal);
    SELECT dgen.cast('watcher/' || w, jsonb_build_object('watch', mortal)) FROM generate_series(1, %d) w;
$$;
SELECT dgen.create_module('watcher', breaker => 0, max_attempts => 1000, backoff_max => '1 s');
SELECT dgen.create_module('mortal', breaker => 0, max_attempts => 1000, backoff_max => '1 s');
""" % (WATCHERS, WATCHERS)


def live_and_die(cluster, number, stop):
    """Servers come to life and are watched by all; each ends when it is."""
    client = Client(cluster)
    n = 0
    while not stop.is_set():
        n += 1
        client.attempt("SELECT live(%s)", "mortal/%d-%d" % (number, n))
    client.close()


@pytest.mark.seconds(300)
def test_down_once(cluster, request):
    cluster.psql("CREATE EXTENSION dgen")
    cluster.psql(MODULES)
    seed = seed_of(request)
    stop = threading.Event()
    killer = Killer(cluster, seed)

    def kill():
        try:
            for _ in range(rounds_of(10)):
                killer.once()
        finally:
            stop.set()
    in_threads([lambda i=i: live_and_die(cluster, i, stop) for i in range(CLIENTS)] + [kill], 280)

    with connect_again(cluster) as conn:
        wait_idle(conn, 120)
        watched = value(conn, "SELECT count(*) FROM watched")
        print("killed: %s; %d monitors" % (", ".join(killer.told), watched))
        assert watched > 100
        assert conn.execute("""
            SELECT w.ref, w.server, count(d) FROM watched w LEFT JOIN down d USING (ref)
            GROUP BY 1, 2 HAVING count(d) <> 1""").fetchall() == []
        assert value(conn, "SELECT count(*) FROM down") == watched
        assert value(conn, "SELECT count(*) FROM down WHERE reason <> 'old age'") == 0
        assert value(conn, "SELECT count(*) FROM dgen.monitors") == 0
        assert_nothing_left(conn)


def test_down_of_the_prepared(cluster):
    """A stop that is prepared, over a restart: one DOWN when it commits."""
    cluster.psql("CREATE EXTENSION dgen")
    cluster.psql(MODULES)
    cluster.configure(max_prepared_transactions=2)
    cluster.restart()
    with cluster.connect() as conn:
        conn.execute("SELECT dgen.start('mortal/a')")
        conn.execute("""SELECT dgen.cast('watcher/1', '{"watch": "mortal/a"}')""")
        wait_idle(conn)
        conn.execute("BEGIN")
        conn.execute("SELECT dgen.stop('mortal/a', 'prepared')")
        conn.execute("PREPARE TRANSACTION 'stop'")
    cluster.kill9()
    cluster.start()
    with connect_again(cluster) as conn:
        assert value(conn, "SELECT count(*) FROM dgen.monitors") == 1
        conn.execute("COMMIT PREPARED 'stop'")
        wait_idle(conn)
        assert value(conn, "SELECT reason FROM down") == "prepared"
        assert value(conn, "SELECT count(*) FROM dgen.monitors") == 0


def test_wait_server_keeps_no_snapshot(cluster):
    """While it waits, its backend holds back nobody's VACUUM."""
    cluster.psql("CREATE EXTENSION dgen")
    cluster.psql(MODULES)
    with cluster.connect() as conn, cluster.connect() as waiting:
        conn.execute("SELECT dgen.start('mortal/a')")
        pid = waiting.info.backend_pid
        done = []

        def wait():
            waiting.execute("CALL dgen.wait_server('mortal/a', timeout => '1 min')")
            done.append(True)
        thread = threading.Thread(target=wait, daemon=True)
        thread.start()
        wait_for(lambda: value(conn, "SELECT wait_event_type FROM pg_stat_activity WHERE pid = %s "
                                     "AND state = 'active'", pid) == "Extension")
        for _ in range(30):
            assert value(conn, "SELECT count(*) FROM pg_stat_activity WHERE pid = %s AND "
                               "wait_event_type = 'Extension' AND (backend_xmin IS NOT NULL "
                               "OR backend_xid IS NOT NULL)", pid) == 0
            time.sleep(0.05)
        assert not done
        started = time.monotonic()
        conn.execute("SELECT dgen.stop('mortal/a')")
        thread.join(10)
        assert done and time.monotonic() - started < 0.9
