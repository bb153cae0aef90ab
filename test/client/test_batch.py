"""Batches that go wrong: activations that share a transaction with one that
fails, and what one of them has done for another."""

import contextlib
import json
import threading

import psycopg
import pytest

from cluster import wait_for
from common import assert_nothing_left, value, wait_idle

MODULES = """
CREATE SCHEMA block;
CREATE FUNCTION block.handle_cast(m jsonb, state jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT state $$;
SELECT dgen.create_module('block');

CREATE SEQUENCE tried;
CREATE SEQUENCE token_id;
CREATE SEQUENCE token_secret MINVALUE -9223372036854775808;
CREATE TABLE ran (server text, did text, txid text);
CREATE SCHEMA b;
CREATE FUNCTION b.handle_cast(m jsonb, state jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
    IF m ? 'do' THEN
        INSERT INTO public.ran VALUES (dgen.self(), m->>'do', pg_current_xact_id()::text);
    END IF;
    CASE m->>'do'
        WHEN 'fail' THEN
            PERFORM nextval('public.tried');
            RAISE EXCEPTION 'on purpose' USING ERRCODE = 'P7777';
        WHEN 'approve' THEN
            PERFORM dgen.reply(state->>'from', '"approved"');
        WHEN 'approve, and not' THEN
            BEGIN
                PERFORM dgen.reply(state->>'from', '"not"');
                RAISE EXCEPTION 'undone';
            EXCEPTION WHEN raise_exception THEN
                NULL;
            END;
        WHEN 'approve twice' THEN
            PERFORM dgen.reply(state->>'from', '"once"');
            BEGIN
                PERFORM dgen.reply(state->>'from', '"twice"');
                RAISE EXCEPTION 'that should not do' USING ERRCODE = 'P7778';
            EXCEPTION WHEN SQLSTATE 'OT014' THEN
                NULL;
            END;
        WHEN 'exit' THEN
            PERFORM dgen.exit('done');
        WHEN 'trap a cancel' THEN
            BEGIN
                PERFORM dgen.abort(dgen.self());
                PERFORM pg_sleep(10);
            EXCEPTION WHEN query_canceled THEN
                NULL;
            END;
        ELSE
            NULL;
    END CASE;
    RETURN state;
END $$;
CREATE FUNCTION b.handle_call(m jsonb, INOUT state jsonb, OUT reply jsonb, OUT noreply boolean)
LANGUAGE plpgsql AS $$
DECLARE
    token text := dgen."from"();
BEGIN
    IF m->>'do' = 'fail' THEN
        RAISE EXCEPTION 'on purpose' USING ERRCODE = 'P7777';
    END IF;
    IF m->>'do' = 'tell' THEN
        -- what a service outside would be told, now and not at the commit
        PERFORM setval('public.token_id', substr(split_part(token, '.', 1), 2)::bigint),
            setval('public.token_secret', ('x' || split_part(token, '.', 2))::bit(64)::bigint);
    END IF;
    INSERT INTO public.ran VALUES (dgen.self(), 'ask', pg_current_xact_id()::text);
    state := jsonb_build_object('from', token);
    noreply := true;
END $$;
SELECT dgen.create_module('b', max_attempts => 1, breaker => 0);
"""


@pytest.fixture(scope="module")
def db(shared_cluster):
    shared_cluster.configure({"dgen.max_workers": "1"})
    shared_cluster.reload()
    shared_cluster.psql(MODULES)
    return shared_cluster


@pytest.fixture
def conn(db):
    with db.connect() as conn:
        conn.execute("SELECT dgen.purge('b')")
        conn.execute("TRUNCATE ran")
        conn.execute("SELECT setval('tried', 1, false), setval('token_id', 1, false)")
        # so quick a module that its activations share transactions
        for i in range(30):
            value(conn, "SELECT dgen.cast('b/quick', '{}')")
            wait_idle(conn)
        yield conn


def stop_at(db, conn, point):
    conn.execute("ALTER SYSTEM SET dgen.debug_waitpoint = '%s'" % point)
    db.reload()


@contextlib.contextmanager
def worker_waits(db, conn):
    """The only worker is busy with another module, and what is sent meanwhile
    comes into one batch."""
    with db.connect() as holder:
        holder.execute("SELECT pg_advisory_lock(hashtext('dgen-before-handlers'))")
        stop_at(db, holder, "dgen-before-handlers")

        def stopped():
            value(conn, "SELECT dgen.cast('block/1', '{}')")
            return value(conn, "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted")
        try:
            wait_for(stopped, 10, interval=0.2, message="the worker did not stop")
            yield
        finally:
            stop_at(db, holder, "")
            holder.execute("SELECT pg_advisory_unlock_all()")


class Caller(threading.Thread):
    """A call; result: its reply, or its SQLSTATE."""

    def __init__(self, db, server, request):
        super().__init__(daemon=True)
        self.db, self.server, self.request, self.result = db, server, request, None
        self.start()

    def queued(self, conn):
        wait_for(lambda: value(conn, "SELECT count(*) FROM dgen.messages WHERE server = %s AND kind = 'call'",
                               self.server), 10, message="the call was not queued")
        return self

    def run(self):
        with self.db.connect() as conn:
            try:
                self.result = value(conn, "SELECT dgen.call(%s, %s, timeout => '10 s')",
                                    self.server, json.dumps(self.request))
            except psycopg.Error as e:
                self.result = e.sqlstate

    def get(self):
        self.join(20)
        return self.result


def one_transaction(conn, *did):
    """Did these run in one transaction?  Else the test shows nothing."""
    txids = conn.execute("SELECT DISTINCT txid FROM ran WHERE did = ANY (%s)", (list(did),)).fetchall()
    return len(txids) == 1


@pytest.mark.parametrize("how, reply", [("approve", "approved"), ("approve twice", "once"),
                                        ("approve, and not", "later")])
def test_reply_in_the_same_batch(db, conn, how, reply):
    """noreply and dgen.reply() in one transaction, of two activations."""
    with worker_waits(db, conn):
        caller = Caller(db, "b/1", {}).queued(conn)
        value(conn, "SELECT dgen.cast('b/1', %s)", json.dumps({"do": how}))
    wait_idle(conn)
    assert one_transaction(conn, "ask", how)
    if reply == "later":
        value(conn, "SELECT dgen.reply(dgen.state('b/1')->>'from', '\"later\"')")
    assert caller.get() == reply
    with pytest.raises(psycopg.Error) as e:
        value(conn, "SELECT dgen.reply(dgen.state('b/1')->>'from', '1')")
    assert e.value.sqlstate == "OT014"
    assert_nothing_left(conn)


@pytest.mark.parametrize("how, reply", [("approve", "approved"), ("approve, and not", "later")])
def test_reply_in_a_batch_that_fails(db, conn, how, reply):
    """The same, undone for the failure of a third, and done again."""
    with worker_waits(db, conn):
        caller = Caller(db, "b/1", {}).queued(conn)
        value(conn, "SELECT dgen.cast('b/1', %s)", json.dumps({"do": how}))
        value(conn, "SELECT dgen.cast('b/2', '{\"do\": \"fail\"}')")
    wait_idle(conn)
    assert value(conn, "SELECT last_value FROM tried") == 2, "it did not fail in company"
    if reply == "later":
        value(conn, "SELECT dgen.reply(dgen.state('b/1')->>'from', '\"later\"')")
    assert caller.get() == reply
    db.assert_no_crash()


def test_reply_before_noreply_is_committed(db, conn):
    """Who has been given the token before the commit does not answer a call
    that may yet be undone."""
    with db.connect() as holder, db.connect() as other:
        value(conn, "SELECT dgen.cast('b/warm', '{}')")
        wait_idle(conn)
        holder.execute("SELECT pg_advisory_lock(hashtext('dgen-before-commit'))")
        stop_at(db, holder, "dgen-before-commit")
        caller = Caller(db, "b/1", {"do": "tell"})
        wait_for(lambda: value(conn, "SELECT is_called FROM token_id"), 10)
        wait_for(lambda: value(conn, "SELECT count(*) FROM pg_locks "
                                     "WHERE locktype = 'advisory' AND NOT granted"), 10)
        reply = ("SELECT dgen.reply('c' || (SELECT last_value FROM token_id) || '.' || "
                 "lpad(to_hex((SELECT last_value FROM token_secret)), 16, '0'), %s)")
        with pytest.raises(psycopg.Error) as e:
            value(other, reply, '"early"')
        assert e.value.sqlstate == "OT014"
        stop_at(db, holder, "")
        holder.execute("SELECT pg_advisory_unlock_all()")

        def in_time():
            try:
                value(other, reply, '"in time"')
                return True
            except psycopg.Error:
                return False
        wait_for(in_time, 10)
    assert caller.get() == "in time"


def test_reply_is_not_prepared(db, conn):
    """COMMIT PREPARED could tell nobody."""
    caller = Caller(db, "b/1", {})
    wait_for(lambda: value(conn, "SELECT count(*) FROM ran WHERE did = 'ask'"), 10)
    conn.execute("BEGIN")
    value(conn, "SELECT dgen.reply(dgen.state('b/1')->>'from', '\"lost\"')")
    with pytest.raises(psycopg.errors.FeatureNotSupported, match="has replied to a call"):
        conn.execute("PREPARE TRANSACTION 'reply'")
    value(conn, "SELECT dgen.reply(dgen.state('b/1')->>'from', '\"told\"')")
    assert caller.get() == "told"


def test_trapped_cancel_is_of_one_activation(db, conn):
    """A handler that goes on after its cancel leaves nothing of that to the next."""
    with worker_waits(db, conn):
        value(conn, "SELECT dgen.cast('b/1', '{\"do\": \"trap a cancel\"}')")
        caller = Caller(db, "b/2", {"do": "fail"}).queued(conn)
    assert caller.get() == "P7777"
    wait_idle(conn)


@pytest.mark.parametrize("fails", [False, True])
def test_server_stops_before_a_call_of_the_batch(db, conn, fails):
    """The caller is told at once, be it in another try."""
    with worker_waits(db, conn):
        value(conn, "SELECT dgen.cast('b/1', '{\"do\": \"exit\"}')")
        caller = Caller(db, "b/1", {}).queued(conn)
        if fails:
            value(conn, "SELECT dgen.cast('b/2', '{\"do\": \"fail\"}')")
    wait_idle(conn)
    assert not fails or value(conn, "SELECT last_value FROM tried") == 2, "it did not fail in company"
    caller.join(3)
    assert caller.result == "OT008"


def test_poison_is_counted(db, conn):
    """What has failed in company runs alone next, however many others wait."""
    with worker_waits(db, conn):
        value(conn, """SELECT dgen.cast_many(jsonb_agg(jsonb_build_object('server', 'b/' || i,
                           'message', CASE i WHEN 10 THEN '{"do": "fail"}' ELSE '{}' END::jsonb) ORDER BY i))
                       FROM generate_series(1, 1500) i""")
    wait_idle(conn, 30)
    assert value(conn, "SELECT last_value FROM tried") <= 2
    assert value(conn, "SELECT count(*) FROM dgen.dead_letters") == 1


@pytest.mark.parametrize("end", ["COMMIT", "ROLLBACK", "ROLLBACK TO taken; COMMIT"])
def test_work_that_is_taken_and_finished_in_one_transaction(db, conn, end):
    """A client that takes a call from an external module and answers it in one
    transaction, which is undone or not."""
    if not value(conn, "SELECT count(*) FROM dgen.modules WHERE module = 'ext'"):
        conn.execute("CREATE SCHEMA ext")
        conn.execute("SELECT dgen.create_module('ext', external => true)")
    caller = Caller(db, "ext/1", {"n": 1}).queued(conn)

    def work(reply, end):
        conn.execute("BEGIN")
        token = conn.execute("SELECT token FROM dgen.take_work('ext', 1)").fetchone()[0]
        if "taken" in end:
            conn.execute("SAVEPOINT taken")
        value(conn, "SELECT dgen.finish_work(%s, reply => %s)", token, reply)
        conn.execute(end)
        return token
    token = work('"first"', end)
    if end.endswith("taken; COMMIT"):
        value(conn, "SELECT dgen.finish_work(%s, reply => '\"second\"')", token)
    elif end == "ROLLBACK":
        wait_for(lambda: value(conn, "SELECT count(*) FROM dgen.messages WHERE server = 'ext/1'"), 10)
        work('"second"', "COMMIT")
    assert caller.get() == ("first" if end == "COMMIT" else "second")
    db.assert_no_crash()


LARGE = """
CREATE SCHEMA large;
CREATE FUNCTION large.init(args jsonb) RETURNS jsonb LANGUAGE sql AS $$
    SELECT jsonb_build_object('done', 0, 'items', jsonb_agg(md5(i::text))) FROM generate_series(1, 150) i $$;
CREATE FUNCTION large.handle_cast(m jsonb, state jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
    IF m ? 'look at' THEN
        PERFORM dgen.state(m->>'look at');
    END IF;
    RETURN state || (m - 'look at');
END $$;
SELECT dgen.create_module('large');
"""


def test_states_written_within_an_activation(db, conn):
    """What init makes is written since the handler looks at another server;
    what comes behind is stored as patches to that."""
    conn.execute(LARGE)
    conn.execute("SELECT dgen.start('large/other')")
    for i in range(20):
        server = "large/%d" % i
        with conn.transaction():
            conn.execute("""SELECT dgen.cast(%s, '{"done": 1, "look at": "large/other"}')""", (server,))
            for j in range(8):
                conn.execute("SELECT dgen.cast(%s, %s::jsonb)", (server, json.dumps({"k%d" % j: j})))
        wait_idle(conn)
        wanted = value(conn, "SELECT dgen.state('large/other')")
        wanted.update({"k%d" % j: j for j in range(8)}, done=1)
        assert value(conn, "SELECT dgen.state(%s)", server) == wanted, server
