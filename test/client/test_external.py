"""External modules: clients that take work, wait for it, die with it, and the
callers who wait for them."""

import os
import signal
import subprocess
import sys
import threading
import time

import psycopg
import pytest

from build import TOP
from cluster import wait_for
from common import assert_nothing_left, connect_again, in_threads, value, wait_idle

MODULE = """
CREATE SCHEMA jobs;
SELECT dgen.create_module('jobs', external => true, backoff_initial => '10 ms', backoff_max => '20 ms', max_attempts => 100);
"""
TAKE = "SELECT server, token, message, state FROM dgen.take_work('jobs', %s, %s::interval)"


@pytest.fixture
def db(cluster):
    cluster.psql("CREATE EXTENSION dgen")
    cluster.psql(MODULE)
    return cluster


def work(cluster, stop, max=1, lease="30 s", done=None):
    """Waits for work, and does it: the state counts, the reply is the message."""
    with cluster.connect() as conn:
        conn.execute("SET client_min_messages = error")
        while not stop.is_set():
            conn.execute("CALL dgen.wait_work('jobs', '200 ms')")
            for server, token, message, state in conn.execute(TAKE, (max, lease)).fetchall():
                conn.execute("SELECT dgen.finish_work(%s, %s::jsonb, %s::jsonb)",
                             (token, '{"n": %d}' % (state.get("n", 0) + 1), '"done"'))
                if done is not None:
                    done.append((server, message))


def test_callers_and_workers(db):
    """Calls and casts by four clients, done by four others: each once, in order."""
    stop = threading.Event()
    done = [[] for _ in range(4)]
    workers = [threading.Thread(target=work, args=(db, stop, 1 + n, "30 s", done[n])) for n in range(4)]
    for w in workers:
        w.start()

    def client(number):
        with db.connect() as conn:
            for n in range(40):
                if n % 2:
                    assert value(conn, "SELECT dgen.call(%s, to_jsonb(%s::int), timeout => '60 s')",
                                 "jobs/%d" % (n % 3), number * 1000 + n) == "done"
                else:
                    conn.execute("SELECT dgen.cast(%s, to_jsonb(%s::int))", ("jobs/%d" % (n % 3), number * 1000 + n))
    try:
        in_threads([lambda n=n: client(n) for n in range(4)])
        with db.connect() as conn:
            wait_idle(conn)
            states = [value(conn, "SELECT dgen.state(%s)", "jobs/%d" % n)["n"] for n in range(3)]
            assert sum(states) == 160
            assert_nothing_left(conn)
    finally:
        stop.set()
        for w in workers:
            w.join()
    all_done = sum(done, [])
    assert len(all_done) == len(set(all_done)) == 160


def test_calls(db):
    """A call waits for its worker; it is its caller's if nobody has taken it."""
    with db.connect() as conn, db.connect() as hand:
        with pytest.raises(psycopg.Error) as e:
            conn.execute("SELECT dgen.call('jobs/1', '1', timeout => '100 ms')")
        assert e.value.sqlstate == "OT001"
        assert hand.execute(TAKE, (1, "1 min")).fetchall() == []

        answers = []

        def call(request, key=None):
            with db.connect() as c:
                try:
                    answers.append(value(c, "SELECT dgen.call('jobs/1', %s::jsonb, '20 s', %s)", request, key))
                except psycopg.Error as e:
                    answers.append(e.sqlstate)

        def taken():
            hand.execute("CALL dgen.wait_work('jobs', '1 s')")
            return hand.execute(TAKE, (1, "1 min")).fetchall()
        # undone: it waits again
        t = threading.Thread(target=call, args=("1", "k"))
        t.start()
        with pytest.raises(ZeroDivisionError):
            with hand.transaction():
                wait_for(lambda: hand.execute(TAKE, (1, "1 min")).fetchall())
                1 / 0
        (server, token, message, state), = wait_for(taken)
        assert message == 1 and answers == []
        hand.execute("SELECT dgen.finish_work(%s, NULL, '\"one\"')", (token,))
        t.join(10)
        assert answers == ["one"]
        # the same key again: its reply is kept
        answers.clear()
        t = threading.Thread(target=call, args=("1", "k"))
        t.start()
        wait_for(lambda: taken() == [] and answers)
        t.join(10)
        assert answers == ["one"]
        # failed for good, and released: the caller is told
        for end, told in (("SELECT dgen.fail_work(%s, 'broken')", "P0001"),
                          ("SELECT dgen.release('jobs/1') WHERE %s <> ''", "OT008")):
            conn.execute("SELECT dgen.alter_module('jobs', max_attempts => 1)")
            answers.clear()
            t = threading.Thread(target=call, args=("2",))
            t.start()
            (server, token, message, state), = wait_for(taken)
            hand.execute(end, (token,))
            t.join(10)
            assert answers == [told]


def test_example(db):
    """The worker in examples/ answers a call."""
    path = os.path.join(TOP, "examples", "worker", "worker.py")
    info = db.conninfo()
    env = dict(os.environ, PGHOST=info["host"], PGPORT=str(info["port"]), PGUSER=info["user"],
               PGDATABASE=info["dbname"])
    worker = subprocess.Popen([sys.executable, "-B", path, "jobs", "1"], env=env)
    with db.connect() as conn:
        assert value(conn, "SELECT dgen.call('jobs/1', '7', timeout => '30 s')") == {"number": 1, "of": 7}
    assert worker.wait(30) == 0


def test_worker_dies(db):
    """Its lease ends, and another gets the message; what it hands in later is refused."""
    db.signals = {signal.SIGKILL}
    with db.connect() as conn:
        conn.execute("SELECT dgen.cast('jobs/1', '1')")
        (server, token, message, state), = conn.execute(TAKE, (1, "1 s")).fetchall()
    db.kill9()
    db.start()
    with connect_again(db) as conn:
        assert value(conn, "SELECT locked_for IS NOT NULL FROM dgen.servers")
        start = time.monotonic()

        def again():
            conn.execute("CALL dgen.wait_work('jobs', '1 s')")
            return conn.execute(TAKE, (1, "1 min")).fetchall()
        (server, second, message, state), = wait_for(again)
        assert second != token
        with pytest.raises(psycopg.Error) as e:
            conn.execute("SELECT dgen.finish_work(%s)", (token,))
        assert e.value.sqlstate == "OT014"
        conn.execute("SELECT dgen.finish_work(%s, '\"done\"')", (second,))
        assert value(conn, "SELECT dgen.state('jobs/1')") == "done"
        assert_nothing_left(conn)


def test_two_takers(db):
    """Neither waits for the other, and none gets what the other has."""
    with db.connect() as a, db.connect() as b:
        a.execute("SELECT dgen.cast('jobs/' || n, to_jsonb(n)) FROM generate_series(1, 4) n")
        b.execute("SET statement_timeout = '5 s'")
        with a.transaction():
            first = {r[0] for r in a.execute(TAKE, (2, "1 min"))}
            second = {r[0] for r in b.execute(TAKE, (10, "1 min"))}
            assert len(first) == 2 and len(second) == 2 and not first & second
            # who finishes work of the other's transaction waits for its end
        assert b.execute(TAKE, (10, "1 min")).fetchall() == []


def test_waiting_holds_nothing_back(db):
    """Eight clients wait without a snapshot, and are woken by a send."""
    stop = threading.Event()
    done = []
    workers = [threading.Thread(target=work, args=(db, stop, 1, "30 s", done)) for _ in range(8)]
    for w in workers:
        w.start()
    try:
        with db.connect() as conn:
            wait_for(lambda: value(conn, "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'CALL dgen.wait_work%%'") == 8)
            before = value(conn, "SELECT txid_current()")
            for _ in range(20):
                assert value(conn, "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'CALL dgen.wait_work%%' "
                                   "AND state = 'active' AND wait_event IS NOT NULL AND backend_xmin IS NOT NULL "
                                   "AND age(backend_xmin) > 5") == 0
                value(conn, "SELECT txid_current()")
            assert value(conn, "SELECT txid_current()") > before
            start = time.monotonic()
            conn.execute("SELECT dgen.cast('jobs/1', '1')")
            wait_for(lambda: done, interval=0.002)
            assert time.monotonic() - start < 1
    finally:
        stop.set()
        for w in workers:
            w.join()


def test_many_servers_without_a_taker(db):
    """A module that nobody takes work of leaves room for others, and its messages come in the end."""
    db.configure({"dgen.max_ready": 256})
    db.restart()
    db.psql("CREATE SCHEMA other; CREATE FUNCTION other.handle_call(request jsonb, INOUT state jsonb, "
            "OUT reply jsonb) LANGUAGE sql AS $$ SELECT state, request $$; SELECT dgen.create_module('other');")
    with db.connect() as conn:
        conn.execute("SELECT dgen.cast('jobs/' || n, 'null') FROM generate_series(1, 500) n")
        assert value(conn, "SELECT dgen.call('other/1', '7')") == 7
        left = 500
        end = time.monotonic() + 60
        while left > 0 and time.monotonic() < end:
            for _, token, _, _ in conn.execute(TAKE, (100, "1 min")).fetchall():
                conn.execute("SELECT dgen.finish_work(%s)", (token,))
                left -= 1
            conn.execute("CALL dgen.wait_work('jobs', '100 ms')")
        assert left == 0
        assert_nothing_left(conn)


@pytest.mark.parametrize("how", ["pg_cancel_backend", "pg_terminate_backend"])
def test_taker_sent_off(db, how):
    """A client that is interrupted while it takes work leaves it to the others."""
    with db.connect() as locker, db.connect() as conn:
        taker, caller = db.connect(), db.connect()
        replies = []
        call = threading.Thread(target=lambda: replies.append(
            value(caller, "SELECT dgen.call('jobs/a', '1', timeout => '60 s')")))
        call.start()
        wait_for(lambda: value(conn, "SELECT count(*) FROM dgen.messages WHERE kind = 'call'") == 1)
        pid = value(taker, "SELECT pg_backend_pid()")
        locker.execute("BEGIN")
        locker.execute("LOCK TABLE dgen.server IN ACCESS EXCLUSIVE MODE")

        def take():
            with pytest.raises(psycopg.Error):
                taker.execute(TAKE, (1, "1 min"))
        taking = threading.Thread(target=take)
        taking.start()
        wait_for(lambda: value(conn, "SELECT wait_event_type = 'Lock' FROM pg_stat_activity WHERE pid = %s", pid))
        conn.execute("SELECT %s(%%s)" % how, (pid,))
        taking.join()
        locker.execute("ROLLBACK")
        (server, token, message, _), = wait_for(lambda: conn.execute(TAKE, (1, "1 min")).fetchall())
        conn.execute("SELECT dgen.finish_work(%s, '{}', '\"done\"')", (token,))
        call.join()
        assert replies == ["done"]
        taker.close()
        caller.close()
