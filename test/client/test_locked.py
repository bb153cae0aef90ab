"""Locked servers: what a handler leaves to handle_locked, while workers and the
server are killed, and while several clients are at it."""

import signal
import threading
import time

import psycopg
import pytest

from cluster import wait_for
from common import (Client, Killer, assert_nothing_left, connect_again, in_threads, rounds_of,
                    seed_of, value, wait_idle)

# A cast counts in two steps: "begun" by the handler, "done" by the work, which
# commits a row in between.
MODULE = """
CREATE TABLE step (seq bigserial, server text, n int, what text);
CREATE SCHEMA shop;
CREATE FUNCTION shop.handle_cast(message jsonb, INOUT state jsonb, OUT lock boolean) LANGUAGE plpgsql AS $$
BEGIN
    state := state || jsonb_build_object('begun', coalesce((state->>'begun')::int, 0) + 1);
    lock := true;
END $$;
CREATE FUNCTION shop.handle_info(message jsonb, INOUT state jsonb) LANGUAGE plpgsql AS $$
BEGIN
    state := state || jsonb_build_object('infos', coalesce((state->>'infos')::int, 0) + 1);
END $$;
CREATE PROCEDURE shop.handle_locked(kind text, message jsonb, INOUT state jsonb, INOUT reply jsonb)
LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO public.step (server, n, what) VALUES (dgen.self(), (state->>'begun')::int, 'before');
    COMMIT;
    IF message ? 'sleep' THEN
        PERFORM pg_sleep((message->>'sleep')::float);
    END IF;
    INSERT INTO public.step (server, n, what) VALUES (dgen.self(), (state->>'begun')::int, 'after');
    state := state || jsonb_build_object('done', coalesce((state->>'done')::int, 0) + 1);
END $$;
SELECT dgen.create_module('shop', backoff_initial => '20 ms', backoff_max => '100 ms', max_attempts => 1000, breaker => 0);
"""


@pytest.fixture
def db(cluster):
    cluster.psql("CREATE EXTENSION dgen")
    cluster.psql(MODULE)
    return cluster


def steps(conn, server="shop/1"):
    return [(n, what) for n, what in conn.execute(
        "SELECT n, what FROM step WHERE server = %s ORDER BY seq", (server,))]


@pytest.mark.parametrize("how", ["kill -9 worker", "terminate worker", "kill server", "stop server"])
def test_killed_in_the_middle(db, how):
    """The work begins anew; the server is locked until it is done."""
    db.signals = {signal.SIGKILL}
    with db.connect() as conn:
        conn.execute("""SELECT dgen.cast('shop/1', '{"sleep": 1}')""")
        wait_for(lambda: steps(conn) == [(1, "before")])
        pid = value(conn, "SELECT pid FROM dgen.workers WHERE server = 'shop/1' AND state = 'busy'")
    if how == "kill -9 worker":
        db.kill_backend(pid)
        db.wait_ready()
    elif how == "terminate worker":
        db.kill_backend(pid, signal.SIGTERM)
    elif how == "kill server":
        db.kill9()
        db.start()
    else:
        db.restart()
    with connect_again(db) as conn:
        assert value(conn, "SELECT locked_for IS NOT NULL FROM dgen.servers")
        wait_idle(conn)
        assert steps(conn) == [(1, "before"), (1, "before"), (1, "after")]
        assert value(conn, "SELECT dgen.state('shop/1')") == {"begun": 1, "done": 1}
        assert value(conn, "SELECT locked_for FROM dgen.servers") is None
        assert_nothing_left(conn)


def test_lost_too_often(db):
    """A loss counts as an attempt; in the end it is a dead letter, and the lock is gone."""
    db.psql("SELECT dgen.alter_module('shop', max_attempts => 2)")
    with db.connect() as conn:
        conn.execute("""SELECT dgen.cast('shop/1', '{"sleep": 60}')""")
        for n in range(2):
            wait_for(lambda: len(steps(conn)) == n + 1)
            db.kill_backend(value(conn, "SELECT pid FROM dgen.workers WHERE server = 'shop/1'"),
                            signal.SIGTERM)
        wait_for(lambda: value(conn, "SELECT count(*) FROM dgen.dead_letters") == 1)
        assert value(conn, "SELECT error->>'sqlstate' FROM dgen.dead_letters") == "OT020"
        assert value(conn, "SELECT locked_for FROM dgen.servers") is None
        assert value(conn, "SELECT dgen.state('shop/1')") == {"begun": 1}


def test_release_waits_for_the_result(db):
    """Who releases while the result is being handed in comes too late."""
    db.configure({"dgen.debug_waitpoint": "dgen-before-finish"})
    db.reload()
    with db.connect() as conn, db.connect() as holder:
        holder.execute("SELECT pg_advisory_lock(hashtext('dgen-before-finish'))")
        conn.execute("""SELECT dgen.cast('shop/1', '{}')""")
        wait_for(lambda: value(conn, "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' "
                                     "AND NOT granted") == 1)
        # the lease is held there, so whoever wants to release waits
        releaser = threading.Thread(target=lambda: db.psql("SELECT dgen.release('shop/1')"))
        releaser.start()
        wait_for(lambda: value(conn, "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' "
                                     "AND NOT granted") == 2)
        db.configure({"dgen.debug_waitpoint": ""})
        db.reload()
        holder.execute("SELECT pg_advisory_unlock(hashtext('dgen-before-finish'))")
        releaser.join()
        wait_idle(conn)
        assert value(conn, "SELECT dgen.state('shop/1')") == {"begun": 1, "done": 1}


def test_high_priority_goes_on(db):
    """While the work sleeps nobody holds the server's lease, and high priority goes on."""
    with db.connect() as conn:
        conn.execute("""SELECT dgen.cast('shop/1', '{"sleep": 2}')""")
        wait_for(lambda: steps(conn) == [(1, "before")])
        assert value(conn, "SELECT count(*) FROM pg_locks WHERE objsubid = 214") == 0
        assert value(conn, "SELECT count(*) FROM pg_locks WHERE objsubid = 216") == 1
        start = time.monotonic()
        conn.execute("SELECT dgen.send('shop/1', '{}', priority => 1)")
        wait_for(lambda: value(conn, "SELECT dgen.state('shop/1')->'infos'") == 1, 1)
        assert time.monotonic() - start < 1
        wait_idle(conn)
        assert value(conn, "SELECT dgen.state('shop/1')") == {"begun": 1, "done": 1, "infos": 1}


def test_kills(db, request):
    """Nothing is lost or done twice as far as states go, in order, whatever is killed."""
    killer = Killer(db, seed_of(request))
    stop = threading.Event()
    sent = [0, 0, 0]
    unknown = [0, 0, 0]
    infos = [0, 0, 0]

    def load(server):
        client = Client(db)
        while not stop.is_set():
            done, _ = client.attempt("SELECT dgen.cast(%s, '{}')", "shop/%d" % server)
            sent[server] += done
            unknown[server] += not done
            done, _ = client.attempt("SELECT dgen.send(%s, '{}', priority => 1)", "shop/%d" % server)
            infos[server] += done
            time.sleep(0.02)
        client.close()

    def kill():
        try:
            for _ in range(rounds_of(6)):
                killer.once()
        finally:
            stop.set()
    in_threads([lambda s=s: load(s) for s in range(3)] + [kill])
    with connect_again(db) as conn:
        wait_idle(conn, 100)
        for server in range(3):
            state = value(conn, "SELECT dgen.state(%s)", "shop/%d" % server)
            assert state["begun"] == state["done"]
            assert sent[server] <= state["done"] <= sent[server] + unknown[server]
            assert infos[server] <= state["infos"]
            done = [n for n, what in steps(conn, "shop/%d" % server) if what == "after"]
            assert done == sorted(done) and set(done) == set(range(1, state["done"] + 1))
        assert_nothing_left(conn)


CALLED = """
CREATE SCHEMA asked;
CREATE FUNCTION asked.handle_call(request jsonb, INOUT state jsonb, OUT reply jsonb, OUT lock boolean) LANGUAGE plpgsql AS $$
BEGIN
    lock := request = '"work"';
    IF lock THEN
        state := state || '{"begun": true}';
    ELSE
        reply := state;
    END IF;
END $$;
CREATE PROCEDURE asked.handle_locked(kind text, message jsonb, INOUT state jsonb, INOUT reply jsonb)
LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(1);
    state := state || '{"done": true}';
    reply := '"done"';
END $$;
SELECT dgen.create_module('asked', max_attempts => 1, breaker => 0);
"""


def ask(cluster, request, answers):
    with cluster.connect() as conn:
        try:
            answers[request] = value(conn, "SELECT dgen.call('asked/1', to_jsonb(%s::text), timeout => '60 s')", request)
        except psycopg.Error as e:
            answers[request] = e.sqlstate


@pytest.mark.parametrize("how, told, state", [
    (None, "done", {"begun": True, "done": True}),
    ("release", "OT008", {"begun": True}),
    ("abort", "OT020", {"begun": True}),
    ("stop", "OT008", {}),
    ("delete", "OT008", {}),
    ("discard", "OT008", {"begun": True})])
def test_callers_are_told(shared_cluster, how, told, state):
    """A caller waits for the work; whoever ends its lock has him told at once, and
    the next one goes on."""
    answers = {}
    with shared_cluster.connect() as conn, shared_cluster.connect() as gate:
        conn.execute(CALLED)
        gate.execute("SELECT pg_advisory_lock(1)")
        threads = [threading.Thread(target=ask, args=(shared_cluster, request, answers))
                   for request in ("work", "get")]
        threads[0].start()
        wait_for(lambda: value(conn, "SELECT count(*) FROM dgen.workers WHERE server = 'asked/1' "
                                     "AND state = 'busy'"))
        wait_for(lambda: value(conn, "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' "
                                     "AND NOT granted"))
        threads[1].start()
        wait_for(lambda: value(conn, "SELECT count(*) FROM dgen.messages WHERE status = 'ready'") == 1)
        assert answers == {}
        if how == "discard":
            assert value(conn, "SELECT dgen.discard(locked_for) FROM dgen.servers WHERE server = 'asked/1'")
        elif how:
            assert value(conn, "SELECT dgen.%s('asked/1')" % how)
        if how:
            threads[0].join(10)
            assert answers["work"] == told
        if how in ("release", "discard"):
            threads[1].join(10)
            assert "get" in answers
        gate.execute("SELECT pg_advisory_unlock(1)")
        for t in threads:
            t.join(10)
        assert answers["work"] == told
        # of a server that was stopped or deleted a waiting call is told, too
        assert answers["get"] == ("OT008" if how in ("stop", "delete") else state)
        wait_for(lambda: value(conn, "SELECT count(*) FROM dgen.workers WHERE state = 'busy'") == 0)
        assert value(conn, "SELECT dgen.call('asked/1', '\"get\"')") == state or how == "stop"
        conn.execute("SELECT dgen.drop_module('asked', true)")
        conn.execute("DROP SCHEMA asked CASCADE")


def test_long_work_keeps_no_other(cluster):
    """What is put off for a millisecond while the pool's only worker begins long work
    gets a worker of its own, though another owner's sits idle in its place."""
    cluster.psql("""
        CREATE EXTENSION dgen;
        CREATE ROLE one LOGIN; CREATE ROLE two LOGIN;
        CREATE SCHEMA one AUTHORIZATION one; CREATE SCHEMA two AUTHORIZATION two;
        SET ROLE one;
        CREATE FUNCTION one.effect(args jsonb) RETURNS void LANGUAGE sql AS 'SELECT';
        CREATE FUNCTION one.handle_cast(message jsonb, state jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
        BEGIN PERFORM dgen.after_commit('one.effect'); RETURN state; END $$;
        SELECT dgen.create_module('one');
        RESET ROLE; SET ROLE two;
        CREATE FUNCTION two.handle_cast(message jsonb, INOUT state jsonb, OUT lock boolean) LANGUAGE sql AS 'SELECT state, true';
        CREATE PROCEDURE two.handle_locked(kind text, message jsonb, INOUT state jsonb, INOUT reply jsonb)
        LANGUAGE plpgsql AS 'BEGIN PERFORM pg_advisory_xact_lock_shared(77); END';
        SELECT dgen.create_module('two');""")
    with cluster.connect() as conn:
        for i in range(300):
            for n in range(i % 4):
                conn.execute("SELECT dgen.cast('one/%d', '1')" % n)
            conn.execute("SELECT pg_advisory_lock(77)")
            conn.execute("SELECT dgen.cast('two/1', '1'), dgen.cast('two/2', '1')")
            wait_for(lambda: value(conn, "SELECT count(*) = 2 FROM pg_locks WHERE locktype = 'advisory' "
                                         "AND objid = 77 AND NOT granted"), 20, interval=0.002)
            conn.execute("SELECT pg_advisory_unlock(77)")
            wait_idle(conn)
