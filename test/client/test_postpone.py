"""Postponed messages and calls: what was given up did not happen, all else is
handled once and in order, whoever is killed meanwhile."""

import random
import signal
import threading
import time

import psycopg
import pytest

from cluster import wait_for
from common import (Client, Killer, assert_nothing_left, connect_again, in_threads, rounds_of,
                    seed_of, value, wait_idle)

# A gate postpones all while it is shut; the state is what has passed. "wait" stands at
# a lock that a test may hold.
MODULE = """
CREATE TABLE passed (seq bigserial, server text, message jsonb);
CREATE SCHEMA gate;
CREATE FUNCTION gate.init(args jsonb) RETURNS jsonb
    LANGUAGE sql AS $$ SELECT '{"open": false, "log": []}'::jsonb $$;
CREATE FUNCTION gate.take(message jsonb, state jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
    IF message IN ('"open"', '"shut"') THEN
        RETURN state || jsonb_build_object('open', message = '"open"');
    ELSIF message = '"log"' THEN
        RETURN state;
    ELSIF NOT (state -> 'open')::boolean THEN
        PERFORM dgen.postpone();
        RETURN state;
    ELSIF message = '"wait"' THEN
        PERFORM pg_advisory_xact_lock_shared(4711);
    END IF;
    INSERT INTO public.passed (server, message) VALUES (dgen.self(), message);
    RETURN jsonb_set(state, '{log}', state -> 'log' || message);
END $$;
CREATE FUNCTION gate.handle_call(request jsonb, INOUT state jsonb, OUT reply jsonb)
LANGUAGE plpgsql AS $$
BEGIN
    state := gate.take(request, state);
    IF (state -> 'open')::boolean OR request IN ('"log"', '"shut"') THEN
        reply := state -> 'log';
    END IF;
END $$;
CREATE FUNCTION gate.handle_cast(message jsonb, state jsonb) RETURNS jsonb
    LANGUAGE sql AS $$ SELECT gate.take(message, state) $$;
SELECT dgen.create_module('gate', max_attempts => 100, backoff_initial => '10 ms');
"""


@pytest.fixture(scope="module")
def db(shared_cluster):
    shared_cluster.psql(MODULE)
    return shared_cluster


@pytest.fixture
def conn(db):
    with db.connect() as conn:
        conn.execute("SET client_min_messages = error")
        conn.execute("SELECT dgen.alter_module('gate', late_calls => 'cancel')")
        yield conn
        wait_idle(conn)
        assert_nothing_left(conn)


class Caller(threading.Thread):
    """A call in a thread of its own: reply, or the error's SQLSTATE."""

    def __init__(self, db, server, request, timeout="30 s"):
        super().__init__(daemon=True)
        self.conn = db.connect()
        self.pid = value(self.conn, "SELECT pg_backend_pid()")
        self.query = ("SELECT dgen.call(%s, %s::jsonb, %s::interval)", (server, request, timeout))
        self.reply = self.error = None
        self.start()

    def run(self):
        try:
            self.reply = self.conn.execute(*self.query).fetchone()[0]
        except psycopg.Error as e:
            self.error = e.sqlstate or "lost"
        self.conn.close()

    def ended(self):
        self.join(30)
        assert not self.is_alive(), "the call hangs"
        return self.error or self.reply


def call(conn, server, request):
    return value(conn, "SELECT dgen.call(%s, %s::jsonb, '30 s')", server, request)


def await_postponed(conn, server, n):
    wait_for(lambda: value(conn, "SELECT count(*) FROM dgen.messages "
                                 "WHERE server = %s AND status = 'postponed'", server) == n, 10)


def await_lock(conn):
    wait_for(lambda: value(conn, "SELECT count(*) FROM pg_locks WHERE NOT granted "
                                 "AND locktype = 'advisory' AND objid = 4711") == 1, 10)


def test_answered_in_order(db, conn):
    callers = []
    for i in range(5):
        callers.append(Caller(db, "gate/order", str(i)))
        await_postponed(conn, "gate/order", 2 * i + 1)
        value(conn, "SELECT dgen.cast('gate/order', %s::jsonb)", str(100 + i))
        await_postponed(conn, "gate/order", 2 * i + 2)
    call(conn, "gate/order", '"open"')
    replies = [c.ended() for c in callers]
    expected = [i // 2 + (100 if i % 2 else 0) for i in range(10)]
    assert replies == [expected[:2 * i + 1] for i in range(5)]
    assert call(conn, "gate/order", '"log"') == expected


def test_place_of_a_call(db, conn):
    """It stands where it was issued, before messages that were sent before it was postponed."""
    value(conn, "SELECT dgen.suspend('gate/place')")
    caller = Caller(db, "gate/place", "1")
    wait_for(lambda: value(conn, "SELECT count(*) FROM dgen.messages WHERE server = 'gate/place'") == 1)
    for message in ("2", '"open"', "3"):
        value(conn, "SELECT dgen.cast('gate/place', %s::jsonb)", message)
    value(conn, "SELECT dgen.resume('gate/place')")
    assert caller.ended() == [1]
    wait_idle(conn)
    assert call(conn, "gate/place", '"log"') == [1, 2, 3]


@pytest.mark.parametrize("how", ["timeout", "cancel", "client"])
def test_given_up(db, conn, how):
    """While it is postponed; the other one is answered."""
    server = "gate/given up by " + how
    caller = Caller(db, server, '"lost"', "300 ms" if how == "timeout" else "30 s")
    other = Caller(db, server, '"kept"')
    await_postponed(conn, server, 2)
    if how == "cancel":
        value(conn, "SELECT pg_cancel_backend(%s)", caller.pid)
    elif how == "client":
        value(conn, "SELECT pg_terminate_backend(%s)", caller.pid)
    assert caller.ended() in {"timeout": ["OT001"], "cancel": ["57014"], "client": ["57P01", "lost"]}[how]
    call(conn, server, '"open"')
    assert other.ended() == ["kept"]
    wait_idle(conn)
    assert call(conn, server, '"log"') == ["kept"]


@pytest.mark.parametrize("end", ["COMMIT", "ROLLBACK"])
def test_given_up_on_its_way_back(db, conn, end):
    """While a transaction that brings it back is open."""
    server = "gate/way back " + end
    caller = Caller(db, server, '"lost"', "400 ms")
    await_postponed(conn, server, 1)
    conn.execute("BEGIN ISOLATION LEVEL SERIALIZABLE")
    value(conn, "SELECT dgen.invoke(%s, '\"open\"')", server)
    assert caller.ended() == "OT001"
    conn.execute(end)
    call(conn, server, '"open"')
    wait_idle(conn)
    assert call(conn, server, '"log"') == []


@pytest.mark.parametrize("how", ["timeout", "cancel"])
def test_given_up_while_it_runs_again(db, conn, how):
    """The handler is cancelled, and the message goes with it."""
    server = "gate/again " + how
    with db.connect() as holder:
        value(holder, "SELECT pg_advisory_lock(4711)")
        caller = Caller(db, server, '"wait"', "900 ms" if how == "timeout" else "30 s")
        await_postponed(conn, server, 1)
        call(conn, server, '"open"')
        await_lock(conn)
        if how == "cancel":
            value(conn, "SELECT pg_cancel_backend(%s)", caller.pid)
        assert caller.ended() == {"timeout": "OT001", "cancel": "57014"}[how]
        wait_idle(conn)
        value(holder, "SELECT pg_advisory_unlock(4711)")
    assert call(conn, server, '"log"') == []


def test_late_calls_are_finished(db, conn):
    """Who gives up there does not know; a call that is postponed ends with him."""
    value(conn, "SELECT dgen.alter_module('gate', late_calls => 'finish')")
    caller = Caller(db, "gate/late", '"lost"', "200 ms")
    assert caller.ended() == "OT002"
    call(conn, "gate/late", '"open"')
    wait_idle(conn)
    assert call(conn, "gate/late", '"log"') == []


@pytest.mark.parametrize("what, error", [("dgen.stop('{}')", "OT008"), ("dgen.kill('{}')", "OT008"),
                                         ("dgen.delete('{}')", "OT008"),
                                         ("dgen.discard(id) FROM dgen.messages WHERE server = '{}'", "OT001"),
                                         ("dgen.cancel(id) FROM dgen.messages WHERE server = '{}'", "OT001")])
def test_operators(db, conn, what, error):
    server = "gate/" + what.split("(")[0]
    caller = Caller(db, server, "1")
    await_postponed(conn, server, 1)
    with conn.transaction(force_rollback=True):
        assert value(conn, "SELECT " + what.format(server))
    await_postponed(conn, server, 1)
    assert value(conn, "SELECT " + what.format(server))
    assert caller.ended() == error
    call(conn, server, '"open"')
    wait_idle(conn)
    assert call(conn, server, '"log"') == []


def test_stopped_and_deleted(db, conn):
    """With on_stop => 'delete' nothing of the server is left that a call could wait for."""
    value(conn, "SELECT dgen.alter_module('gate', on_stop => 'delete')")
    try:
        callers = [Caller(db, "gate/deleted", str(i)) for i in range(3)]
        await_postponed(conn, "gate/deleted", 3)
        with conn.transaction(force_rollback=True):
            assert value(conn, "SELECT dgen.stop('gate/deleted')")
        await_postponed(conn, "gate/deleted", 3)
        assert value(conn, "SELECT dgen.stop('gate/deleted')")
        assert [c.ended() for c in callers] == ["OT008"] * 3
        assert value(conn, "SELECT count(*) FROM dgen.servers WHERE server = 'gate/deleted'") == 0
    finally:
        value(conn, "SELECT dgen.alter_module('gate', on_stop => 'keep')")


def test_killed_worker(db, conn):
    """A worker that dies with it gives it back; who lost three of them gets OT020."""
    db.signals = {signal.SIGTERM}
    with db.connect() as holder:
        value(holder, "SELECT pg_advisory_lock(4711)")
        caller = Caller(db, "gate/worker", '"wait"')
        await_postponed(conn, "gate/worker", 1)
        call(conn, "gate/worker", '"open"')
        await_lock(conn)
        pid = value(conn, "SELECT pid FROM pg_locks WHERE NOT granted AND objid = 4711")
        value(conn, "SELECT pg_terminate_backend(%s)", pid)
        assert caller.ended() == "OT020"
        value(holder, "SELECT pg_advisory_unlock(4711)")
    wait_idle(conn)
    assert call(conn, "gate/worker", '"log"') == []


@pytest.mark.seconds(240)
def test_kills(cluster, request):
    """Casts are postponed, the gates open and shut, processes die: each cast
    passes once, those of one sender in order; calls once, or not if it was said so."""
    seed = seed_of(request)
    cluster.signals = {signal.SIGKILL}
    cluster.psql("CREATE EXTENSION dgen")
    cluster.psql(MODULE)
    stop = threading.Event()
    sent, refused, done = {}, set(), set()

    def sender(number):
        client = Client(cluster)
        chance = random.Random(seed + number)
        n = 0
        while not stop.is_set():
            n += 1
            message = '"%d-%d"' % (number, n)
            server = "gate/%d" % chance.randrange(2)
            if chance.random() < 0.6:
                ok, _ = client.attempt("SELECT dgen.cast(%s, %s::jsonb)", server, message)
                if ok:
                    sent.setdefault((number, server), []).append(n)
            else:
                ok, why = client.attempt("SELECT dgen.call(%s, %s::jsonb, '100 ms')", server, message)
                if ok:
                    done.add(message)
                elif why == "OT001":
                    refused.add(message)
        client.close()

    def porter():
        client = Client(cluster)
        while not stop.is_set():
            for server in ("gate/0", "gate/1"):
                client.attempt("SELECT dgen.cast(%s, '\"open\"', priority => 1)", server)
                time.sleep(0.02)
                client.attempt("SELECT dgen.cast(%s, '\"shut\"', priority => 1)", server)
        client.close()

    def kill():
        try:
            killer = Killer(cluster, seed)
            for _ in range(rounds_of(6)):
                killer.once()
        finally:
            stop.set()

    in_threads([kill, porter] + [lambda i=i: sender(i) for i in range(4)], 200)
    with connect_again(cluster) as conn:
        conn.execute("SET client_min_messages = error")
        for server in ("gate/0", "gate/1"):
            call(conn, server, '"open"')
        wait_idle(conn)
        rows = [r[0] for r in conn.execute("SELECT message FROM passed ORDER BY seq")]
        assert len(rows) == len(set(rows)), "something passed twice"
        rows = ['"%s"' % r for r in rows]
        assert done <= set(rows), "an answered call is not there"
        assert not refused & set(rows), "a call passed that did not happen"
        for (number, server), ns in sent.items():
            passed = [int(m.split("-")[1]) for (m,) in conn.execute(
                "SELECT message #>> '{}' FROM passed WHERE server = %s AND message #>> '{}' LIKE %s ORDER BY seq",
                (server, "%d-%%" % number))]
            casts = set(ns)
            assert [n for n in passed if n in casts] == ns, "%s of %d" % (server, number)
        assert_nothing_left(conn)
        assert value(conn, "SELECT count(*) FROM dgen.postponed") == 0


GUEST = """
CREATE SCHEMA guest;
CREATE FUNCTION guest.handle_call(request jsonb, INOUT state jsonb, OUT reply jsonb)
LANGUAGE plpgsql AS $$ BEGIN PERFORM dgen.postpone(); END $$;
CREATE FUNCTION guest.handle_cast(message jsonb, state jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
    IF message ? 'cancel' THEN
        PERFORM dgen.cancel(m.id) FROM dgen.messages m WHERE m.server = handle_cast.message->>'cancel' AND m.status = 'postponed';
    ELSE
        PERFORM dgen.exit('done');
    END IF;
    RETURN state;
END $$;
SELECT dgen.create_module('guest', on_stop => 'delete');
"""


@pytest.mark.parametrize("how, error", [("exit", "OT008"), ("cancel", "OT001")])
def test_ended_in_the_same_batch(db, conn, how, error):
    """By a message behind it: that of a server of which nothing stays, or the call
    itself.  Its caller is told at once."""
    server = "guest/" + how
    if not value(conn, "SELECT count(*) FROM dgen.modules WHERE module = 'guest'"):
        conn.execute(GUEST)
    value(conn, "SELECT dgen.suspend(%s)", server)
    caller = Caller(db, server, "1")
    wait_for(lambda: value(conn, "SELECT count(*) FROM dgen.messages WHERE server = %s", server) == 1)
    value(conn, "SELECT dgen.cast(%s, jsonb_build_object(%s::text, %s::text))", server, how, server)
    value(conn, "SELECT dgen.resume(%s)", server)
    wait_idle(conn)
    began = time.monotonic()
    assert caller.ended() == error
    assert time.monotonic() - began < 5
    assert value(conn, "SELECT count(*) FROM dgen.servers WHERE server = %s AND stop_reason IS NOT NULL", server) == 0
