"""Effects: what a handler promises for after its commit, while workers, and
the server, are killed."""

import random
import re
import signal
import threading

import pytest

from cluster import wait_for
from common import (Client, Killer, assert_nothing_left, connect_again, in_threads, rounds_of,
                    seed_of, value, wait_idle)

# An effect logs that it runs, which no rollback undoes, and inserts a row.
MODULE = """
CREATE TABLE done (seq bigserial, server text, id bigint, n int);
CREATE SCHEMA shop;
CREATE FUNCTION shop.effect(args jsonb, effect_id bigint) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    RAISE LOG 'effect % of %', args->>'n', effect_id;
    INSERT INTO public.done (server, id, n) VALUES (dgen.self(), effect_id, (args->>'n')::int);
    IF args ? 'sleep' THEN
        PERFORM pg_sleep((args->>'sleep')::float);
    END IF;
END $$;
CREATE FUNCTION shop.handle_call(request jsonb, INOUT state jsonb, OUT reply jsonb)
LANGUAGE plpgsql AS $$
BEGIN
    state := to_jsonb(coalesce((state->>0)::int, 0) + 1);
    PERFORM dgen.after_commit('shop.effect', request || jsonb_build_object('n', state));
    reply := state;
END $$;
SELECT dgen.create_module('shop', backoff_initial => '20 ms', max_attempts => 100);
"""


@pytest.mark.parametrize("whole_server", [False, True])
def test_killed_in_the_middle(cluster, whole_server):
    """It runs again, under the same id; what it did in the database is there once."""
    cluster.signals = {signal.SIGKILL}
    cluster.psql("CREATE EXTENSION dgen")
    cluster.psql(MODULE)
    cluster.log_mark()
    with cluster.connect() as conn:
        conn.execute("""SELECT dgen.call('shop/1', '{"sleep": 0.5}')""")
    cluster.wait_for_log("effect 1 of")
    if whole_server:
        cluster.kill9()
        cluster.start()
    else:
        workers = cluster.processes("dgen worker")
        cluster.kill_backend(random.choice(sorted(workers)))
        cluster.wait_ready()
    with connect_again(cluster) as conn:
        wait_idle(conn)
        assert value(conn, "SELECT count(*) FROM done") == 1
        id = value(conn, "SELECT id FROM done")
        runs = re.findall(r"effect (\d+) of (\d+)", cluster.log_since_mark())
        assert len(runs) >= 2 and set(runs) == {("1", str(id))}
        assert_nothing_left(conn)


def test_slow_effects_leave_workers_to_others(cluster):
    """More effects than there are workers sleep; calls go on as ever."""
    cluster.configure({"dgen.max_workers": 1, "dgen.max_long_workers": 1})
    cluster.restart()
    cluster.psql("CREATE EXTENSION dgen")
    cluster.psql(MODULE)
    with cluster.connect() as conn:
        for n in range(3):
            conn.execute("""SELECT dgen.call(%s, '{"sleep": 1}', timeout => '20 s')""", ("shop/%d" % n,))
        wait_for(lambda: value(conn, "SELECT count(*) FROM pg_stat_activity "
                                     "WHERE query LIKE 'dgen: %% effect%%'") == 1)
        conn.execute("SET statement_timeout = '700 ms'")
        for n in range(20):
            conn.execute("""SELECT dgen.call(%s, '{}')""", ("shop/%d" % (n % 3),))
        conn.execute("RESET statement_timeout")
        wait_idle(conn)
        assert value(conn, "SELECT count(*) FROM done") == 23


def test_kills(cluster, request):
    """Each committed promise is kept once as far as the database goes, in order."""
    cluster.psql("CREATE EXTENSION dgen")
    cluster.psql(MODULE)
    killer = Killer(cluster, seed_of(request))
    stop = threading.Event()
    acknowledged = [set(), set(), set()]

    def load(server):
        client = Client(cluster)
        while not stop.is_set():
            done, reply = client.attempt("SELECT dgen.call(%s, '{}')", "shop/%d" % server)
            if done:
                acknowledged[server].add(reply)
        client.close()

    def kill():
        try:
            for _ in range(rounds_of(5)):
                killer.once()
        finally:
            stop.set()
    in_threads([lambda s=s: load(s) for s in range(3)] + [kill])
    with connect_again(cluster) as conn:
        wait_idle(conn, 60)
        for server in range(3):
            state = value(conn, "SELECT dgen.state(%s)", "shop/%d" % server)
            rows = [n for (n,) in conn.execute("SELECT n FROM done WHERE server = %s ORDER BY seq",
                                               ("shop/%d" % server,))]
            assert rows == list(range(1, state + 1))
            assert acknowledged[server] <= set(rows)
        assert_nothing_left(conn)
