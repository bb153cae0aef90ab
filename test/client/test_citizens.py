"""Bad citizens: handlers that raise in every way, return garbage, call what is not
for them, end their transaction, eat memory or never end, and clients that vanish
while they wait.  Who does so gets an error that says what; all others are served."""

import contextlib
import json
import os
import re
import resource
import signal

import psycopg
import pytest

from build import INSTRUMENT
from cluster import wait_for
from common import assert_nothing_left, compile_c, connect_again, value, wait_idle

# A message is {"do": SQL to execute}; the state counts.
MODULE = """
CREATE TABLE IF NOT EXISTS done (seq bigserial, server text, message jsonb);
CREATE SCHEMA m;
CREATE FUNCTION m.act(message jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO public.done (server, message) VALUES (dgen.self(), message);
    IF message ? 'do' THEN
        EXECUTE message->>'do';
    END IF;
END $$;
CREATE FUNCTION m.handle_call(request jsonb, INOUT state jsonb, OUT reply jsonb)
LANGUAGE plpgsql AS $$ BEGIN PERFORM m.act(request); reply := request; END $$;
CREATE FUNCTION m.handle_cast(message jsonb, state jsonb) RETURNS jsonb
LANGUAGE plpgsql AS $$ BEGIN PERFORM m.act(message); RETURN state; END $$;
CREATE FUNCTION m.deep() RETURNS void LANGUAGE plpgsql AS $$ BEGIN PERFORM m.deep(); END $$;
CREATE FUNCTION m.deaf_to_cancels() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    LOOP
        BEGIN
            PERFORM pg_sleep(60);
        EXCEPTION WHEN query_canceled THEN
            NULL;
        END;
    END LOOP;
END $$;
SELECT dgen.create_module('m', isolation => 'read committed', max_attempts => 2, breaker => 0,
                          backoff_initial => '20 ms', backoff_factor => 1, handler_timeout => '500 ms', hold_max => '1 s');
"""


@pytest.fixture(scope="module")
def cluster_with_c(shared_cluster):
    shared_cluster.psql("""
        CREATE SCHEMA c;
        CREATE FUNCTION c.crash(jsonb) RETURNS void LANGUAGE c AS '%(lib)s', 'citizen_crash';
        CREATE FUNCTION c.raise(integer, text) RETURNS void LANGUAGE c AS '%(lib)s', 'citizen_raise';
        CREATE FUNCTION c.eat(integer) RETURNS void LANGUAGE c AS '%(lib)s', 'citizen_eat';
        CREATE FUNCTION c.stack(integer) RETURNS void LANGUAGE c AS '%(lib)s', 'citizen_stack';
        CREATE FUNCTION c.deaf(integer) RETURNS void LANGUAGE c AS '%(lib)s', 'citizen_deaf';"""
                       % {"lib": compile_c(shared_cluster.build, "citizen")})
    shared_cluster.psql(MODULE)
    return shared_cluster


@pytest.fixture
def db(cluster_with_c):
    """A connection; afterwards nothing must be left.  Not for what restarts the server."""
    with cluster_with_c.connect() as conn:
        conn.execute("SET client_min_messages = error")
        yield conn
    with cluster_with_c.connect() as conn:
        conn.execute("SELECT dgen.discard(id) FROM dgen.messages WHERE id IS NOT NULL")
        conn.execute("SELECT dgen.discard(id) FROM dgen.dead_letters")
        wait_idle(conn)
        assert_nothing_left(conn)


def sqlstate(conn, query, *parameters):
    try:
        conn.execute(query, parameters or None)
    except psycopg.Error as e:
        return e.sqlstate
    return None


CALL = "SELECT dgen.call(%s, %s::jsonb, timeout => '60 s')"


def do(sql):
    return json.dumps({"do": sql})


@contextlib.contextmanager
def limit(cluster, what, bytes):
    """The server is started anew with a limit of the system, and afterwards without."""
    before = resource.getrlimit(what)
    cluster.stop()
    resource.setrlimit(what, (bytes, before[1]))
    try:
        cluster.start()
    finally:
        resource.setrlimit(what, before)
    yield
    cluster.restart()


def raising(state):
    return "DO $x$ BEGIN RAISE 'raised' USING ERRCODE = '%s'; END $x$" % state


# what is done, and what its caller is told
RAISES = {
    "plain": ("DO $x$ BEGIN RAISE 'raised'; END $x$", "P0001"),
    "own class": (raising("AB123"), "AB123"),
    "class 40": (raising("40000"), "40000"),
    "conflict for ever": (raising("40001"), "40001"),
    "deadlock for ever": (raising("40P01"), "40P01"),
    "disk full": (raising("53100"), "53100"),
    "too many connections": (raising("53300"), "53300"),
    "query canceled": (raising("57014"), "57014"),
    "admin shutdown": (raising("57P01"), "57P01"),
    "crash shutdown": (raising("57P02"), "57P02"),
    "internal": (raising("XX000"), "XX000"),
    "corrupted": (raising("XX001"), "XX001"),
    "class OT": (raising("OT001"), "OT001"),
    "warning class": (raising("01000"), "01000"),
    "success class": (raising("00000"), "P0001"),
    "assertion": ("DO $x$ BEGIN ASSERT false; END $x$", "P0004"),
    "division": ("SELECT 1 / 0", "22012"),
    "stack": ("SELECT m.deep()", "54001"),
    "stack in C": ("SELECT c.stack(1)", "54001"),
    "error in C": ("SELECT c.raise(0, 'C1234')", "C1234"),
    "internal error in C": ("SELECT c.raise(0, 'XX000')", "XX000"),
    "fatal in C": ("SELECT c.raise(1, 'XX000')", "OT020"),
    "terminates itself": ("DO $x$ BEGIN PERFORM pg_terminate_backend(pg_backend_pid()); PERFORM pg_sleep(10); END $x$",
                          "OT020"),
    "cancels itself": ("DO $x$ BEGIN PERFORM pg_cancel_backend(pg_backend_pid()); PERFORM pg_sleep(10); END $x$",
                       "57014"),
    "never ends": ("SELECT pg_sleep(600)", "OT016"),
    "busy without end": ("DO $x$ BEGIN LOOP END LOOP; END $x$", "OT016"),
    "traps the timeout": ("SELECT m.deaf_to_cancels()", "OT020"),
    "deaf": ("SELECT c.deaf(700)", "OT016"),
    "syntax": ("THIS IS NOT SQL", "42601"),
    "too large": ("SELECT repeat('x', 2000000000)", "54000"),
    # the end of a transaction is not a handler's
    "commit": ("COMMIT", "0A000"),
    "commit in DO": ("DO $x$ BEGIN COMMIT; END $x$", "2D000"),
    "rollback in DO": ("DO $x$ BEGIN ROLLBACK; END $x$", "2D000"),
    "begin": ("BEGIN", "0A000"),
    "savepoint": ("SAVEPOINT s", "0A000"),
    "vacuum": ("VACUUM", "25001"),
    "prepare": ("PREPARE TRANSACTION 'x'", "0A000"),
    "isolation": ("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ", "25001"),
    # dgen's functions out of their place
    "calls itself": ("SELECT dgen.call(dgen.self(), '{}')", "OT009"),
    "invokes itself": ("SELECT dgen.invoke(dgen.self(), '{}')", "OT009"),
    "drains": ("SELECT dgen.drain()", "OT011"),
    "waits for work": ("CALL dgen.wait_work('m')", "42809"),
    "waits for a server": ("CALL dgen.wait_server('m/2')", "25001"),
    "waits for its own request": ("SELECT dgen.wait_response(dgen.send_request('m/2', '{}'))", "OT010"),
    "takes work": ("SELECT dgen.take_work('m')", "42809"),
    "replies to nobody": ("SELECT dgen.reply('nobody', '1')", "OT014"),
    "migrates": ("CALL dgen.migrate_all('m')", "2D000"),
    "unknown directive": ("SELECT dgen.next_event('1')", "OT011"),
    "event timeout of no machine": ("SELECT dgen.state_timeout('1 s')", "OT011"),
    "effect that is none": ("SELECT dgen.after_commit('pg_sleep', '1')", "42809"),
    "effect id": ("DO $x$ BEGIN IF dgen.effect_id() IS NULL THEN RAISE 'none' USING ERRCODE = 'AB000'; END IF; END $x$",
                  "AB000"),
}


def test_raises(db):
    """Its caller is told, and the next call of the same server, in the same
    worker, goes well.  As a cast it ends as a dead letter with the same error,
    after its attempts or the time for which a fault may hold; others are served."""
    wrong = {}
    for what, (sql, expected) in RAISES.items():
        # what speaks of a connection or a transaction would be taken for the caller's own
        if expected[:2] in ("40", "57"):
            expected = "OT020"
        told = sqlstate(db, CALL, "m/1", do(sql))
        if told != expected:
            wrong[what] = (told, expected)
        assert value(db, CALL, "m/1", "{}") == {}, what
    assert not wrong, wrong


def test_raises_in_casts(db):
    db.execute("TRUNCATE done")
    expected = {}
    for n, (what, (sql, state)) in enumerate(RAISES.items()):
        db.execute("SELECT dgen.cast(%s, %s::jsonb)", ("m/c%d" % n, do(sql)))
        db.execute("SELECT dgen.cast(%s, %s::jsonb)", ("m/c%d" % n, '{"after": 1}'))
        expected["m/c%d" % n] = (what, state)
    wait_idle(db, 100)
    got = dict(db.execute("SELECT server, sqlstate FROM dgen.dead_letters").fetchall())
    wrong = {what: (got.get(server), state) for server, (what, state) in expected.items()
             if got.get(server) != state}
    assert not wrong, wrong
    # what came after it was handled
    assert value(db, "SELECT count(*) FROM done WHERE message ? 'after'") == len(RAISES)


# what is done, and which error the activation ends with, or None
PLACES = {
    "drops its module": ("SELECT dgen.drop_module('m', true)", "OT009"),
    "alters its module": ("SELECT dgen.alter_module('m', max_attempts => 2)", None),
    "creates its module": ("SELECT dgen.create_module('m')", "42710"),
    "stops itself": ("SELECT dgen.stop(dgen.self())", "OT009"),
    "deletes itself": ("SELECT dgen.delete(dgen.self())", "OT009"),
    "replaces its state": ("SELECT dgen.replace_state(dgen.self(), '1')", "OT009"),
    "reads its state": ("SELECT dgen.state(dgen.self())", None),
    "queries itself": ("SELECT dgen.query(dgen.self(), '1')", "OT005"),
    "says so much": ("SELECT dgen.noreply(), dgen.exit('x'), dgen.reject('x'), dgen.retry_after('1 s')", "OT011"),
}


def test_out_of_place(db):
    wrong = {}
    for what, (sql, expected) in PLACES.items():
        told = sqlstate(db, CALL, "m/1", do(sql))
        if told != expected:
            wrong[what] = (told, expected)
        assert value(db, CALL, "m/1", "{}") == {}, what
    assert not wrong, wrong


def test_reply_twice(db, cluster_with_c):
    cluster_with_c.psql("""
        CREATE SCHEMA twice;
        CREATE FUNCTION twice.handle_call(request jsonb, INOUT state jsonb, OUT reply jsonb) LANGUAGE plpgsql AS $$
        BEGIN
            PERFORM dgen.noreply();
            PERFORM dgen.reply(dgen."from"(), '1');
            PERFORM dgen.reply(dgen."from"(), '2');
        END $$;
        SELECT dgen.create_module('twice');""")
    assert sqlstate(db, CALL, "twice/1", "1") == "OT014"
    db.execute("SELECT dgen.drop_module('twice', true)")
    db.execute("DROP SCHEMA twice CASCADE")


# a handler's signature and body, and what its caller is told
GARBAGE = {
    "no state": ("INOUT state jsonb, OUT reply jsonb", "state := NULL; reply := '1'", "OT012"),
    "no reply": ("INOUT state jsonb, OUT reply jsonb", "reply := NULL", None),
    "null state": ("INOUT state jsonb, OUT reply jsonb", "state := 'null'; reply := 'null'", None),
    "scalar": ("INOUT state jsonb, OUT reply jsonb", "state := '17'; reply := '\"x\"'", None),
    "directive without sense": ("INOUT state jsonb, OUT reply jsonb, OUT retry_after interval",
                                "retry_after := '-1 s'", "OT011"),
    "reason of nothing": ("INOUT state jsonb, OUT reply jsonb, OUT exit text", "exit := ''", None),
    "both": ("INOUT state jsonb, OUT reply jsonb, OUT noreply boolean, OUT reject text",
             "noreply := true; reject := 'no'", "OT011"),
    "huge reply": ("INOUT state jsonb, OUT reply jsonb", "reply := to_jsonb(repeat('x', 300000000))", "54000"),
    "huge state": ("INOUT state jsonb, OUT reply jsonb", "state := to_jsonb(repeat('x', 70000000))", "54000"),
    "wrong column": ("INOUT state jsonb, OUT answer jsonb", "NULL", "OT005"),
    "wrong type": ("INOUT state jsonb, OUT reply jsonb, OUT exit boolean", "exit := true", "OT005"),
    "text for jsonb": ("INOUT state jsonb, OUT reply text", "reply := 'x'", "OT005"),
}


@pytest.mark.parametrize("what", GARBAGE)
def test_garbage(db, cluster_with_c, what):
    """What a handler returns is taken, or refused with an error; and the next is well."""
    columns, body, expected = GARBAGE[what]
    cluster_with_c.psql("""
        CREATE SCHEMA garbage;
        CREATE FUNCTION garbage.handle_call(request jsonb, %s) LANGUAGE plpgsql AS $$
        BEGIN
            IF request <> '"well"' THEN %s; END IF;
        END $$;""" % (columns, body))
    try:
        told = sqlstate(db, "SELECT dgen.create_module('garbage', max_attempts => 1)") or \
            sqlstate(db, CALL, "garbage/1", "1")
        assert told == expected
        if told != "OT005":
            assert sqlstate(db, CALL, "garbage/1", '"well"') is None
    finally:
        db.execute("SELECT dgen.drop_module(module, true) FROM dgen.modules WHERE module = 'garbage'")
        db.execute("DROP SCHEMA garbage CASCADE")


@pytest.mark.skipif(INSTRUMENT in ("sanitizers", "valgrind"), reason="it wants more address space")
def test_eats_memory(cluster_with_c):
    """Of workers whose memory is bounded: who eats it gets an error, as an
    exhausted machine's malloc() gives it, his worker gives the memory back, and
    all others are served."""
    cluster_with_c.configure({"dgen.max_workers": 1})
    with limit(cluster_with_c, resource.RLIMIT_AS, 600 * 1024 * 1024), cluster_with_c.connect() as conn:
        conn.execute("SET client_min_messages = error")
        conn.execute("SELECT dgen.alter_module('m', handler_timeout => '60 s')")
        for sql in ("SELECT c.eat(2000)",
                    "SELECT array_agg(repeat('x', 1000) || i) FROM generate_series(1, 2000000) i"):
            value(conn, CALL, "m/1", "{}")
            before = value(conn, "SELECT pid FROM dgen.workers")
            assert sqlstate(conn, CALL, "m/1", do(sql)) == "53200"
            assert value(conn, CALL, "m/1", "{}") == {}
            assert value(conn, "SELECT pid FROM dgen.workers") != before
        conn.execute("TRUNCATE done")
        for n in range(4):
            conn.execute("SELECT dgen.cast(%s, %s::jsonb)", ("m/e%d" % n, do("SELECT c.eat(2000)")))
            conn.execute("SELECT dgen.cast(%s, '{\"after\": 1}')", ("m/e%d" % n,))
        wait_idle(conn, 60)
        assert dict(conn.execute("SELECT server, sqlstate FROM dgen.dead_letters").fetchall()) == {
            "m/e%d" % n: "53200" for n in range(4)}
        assert value(conn, "SELECT count(*) FROM done WHERE message ? 'after'") == 4
        for pid, in conn.execute("SELECT pid FROM dgen.workers").fetchall():
            with open("/proc/%d/status" % pid) as f:
                resident = sum(int(line.split()[1]) for line in f if line.startswith("RssAnon"))
            assert resident < 100 * 1024, "%d kB are not given back" % resident
        conn.execute("SELECT dgen.discard(id) FROM dgen.dead_letters")
        conn.execute("SELECT dgen.alter_module('m', handler_timeout => '500 ms')")
        cluster_with_c.configure({"dgen.max_workers": 4})


# ------------------------------------------------------------ clients

WAITS = {
    "work": "CALL dgen.wait_work('jobs')",
    "server": "CALL dgen.wait_server('m/gone', 'running')",
    "change": "CALL dgen.wait_change('m/never')",
    "idle server": "CALL dgen.wait_server('m/asleep', 'idle')",
    "idle": "SELECT dgen.wait_idle('m/asleep', timeout => '1 h')",
    "state": "SELECT dgen.wait_state('m/asleep', 1000, '1 h')",
    "response": "SELECT dgen.wait_response(%d, '1 h')",
    "call": "SELECT dgen.call('m/asleep', '{}', '1 h')",
}
# a statement keeps its snapshot, but not what is CALLed and commits
WITHOUT_SNAPSHOT = ("work", "server", "change", "idle server")
WAITING = """SELECT pid, backend_xmin::text IS NULL FROM pg_stat_activity
    WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"""


@pytest.mark.parametrize("how", ["closed", "terminated", "killed"])
def test_clients_that_vanish(cluster_with_c, how):
    """Eight clients for each way of waiting, whose sockets are closed, who are
    terminated, or whose backends are killed: in the end nobody waits, and
    nothing is left of them.  While they wait by CALL they hold nothing back."""
    db = cluster_with_c
    with db.connect() as conn:
        conn.execute("SET client_min_messages = error")
        if value(conn, "SELECT count(*) FROM dgen.modules WHERE module = 'jobs'") == 0:
            conn.execute("CREATE SCHEMA jobs")
            conn.execute("SELECT dgen.create_module('jobs', external => true)")
        conn.execute("SELECT dgen.call('m/asleep', '{}')")
        conn.execute("SELECT dgen.suspend('m/asleep')")
        conn.execute("SELECT dgen.cast('m/asleep', '{}')")
    clients = {}
    for what, query in WAITS.items():
        for _ in range(8):
            c = db.connect()
            c.execute("SET client_connection_check_interval = '100 ms'")
            clients[c.info.backend_pid] = (what, c)
            if "%d" in query:
                query = WAITS[what] % value(c, "SELECT dgen.send_request('m/asleep', '{}')")
            c.pgconn.send_query(query.encode())
    with db.connect() as conn:
        wait_for(lambda: value(conn, "SELECT count(*) FROM pg_stat_activity WHERE pid = ANY(%s) AND state = 'active' "
                                     "AND clock_timestamp() > query_start + '0.3 s'", list(clients)) == len(clients), 30)
        seen = collections_of(conn.execute(WAITING).fetchall(), clients)
        for what in WITHOUT_SNAPSHOT:
            # some may just be looking
            wait_for(lambda: sum(collections_of(conn.execute(WAITING).fetchall(), clients)[what]) >= 7, 20,
                     message="%s holds back the horizon" % what)
        assert all(len(s) == 8 for s in seen.values())
        if how == "terminated":
            conn.execute("SELECT pg_terminate_backend(pid) FROM unnest(%s) pid", (list(clients),))
    if how == "killed":
        db.signals.add(signal.SIGKILL)
        db.kill_backend(next(iter(clients)))
        db.wait_ready()
    if how == "closed":
        for _, c in clients.values():
            # without a word of the protocol
            os.dup2(os.open(os.devnull, os.O_RDWR), c.pgconn.socket)
    with connect_again(db) as conn:
        conn.execute("SET client_min_messages = error")
        wait_for(lambda: value(conn, "SELECT count(*) FROM pg_stat_activity WHERE pid = ANY(%s)",
                               list(clients)) == 0, 30, message="they still wait")
        assert value(conn, "SELECT count(*) FROM dgen.calls_in_flight()") == 0
        assert value(conn, "SELECT dgen.resume('m/asleep')") is not False
        wait_idle(conn)
        assert_nothing_left(conn)
        assert value(conn, CALL, "m/asleep", "{}") == {}
    for _, c in clients.values():
        c.close()


def collections_of(rows, clients):
    found = {}
    for pid, free in rows:
        if pid in clients:
            found.setdefault(clients[pid][0], []).append(free)
    return found


# ------------------------------------------------------------ crashes in C

CRASHES = """
CREATE SCHEMA bomb;
CREATE FUNCTION bomb.effect(args jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN PERFORM c.crash('1'); END $$;
CREATE FUNCTION bomb.handle_cast(message jsonb, INOUT state jsonb, OUT lock boolean) LANGUAGE plpgsql AS $$
BEGIN
    CASE message->>'in'
    WHEN 'handler' THEN PERFORM c.crash('1');
    WHEN 'effect' THEN PERFORM dgen.after_commit('bomb.effect', '1');
    WHEN 'locked' THEN lock := true;
    ELSE NULL;
    END CASE;
    INSERT INTO public.done (server, message) VALUES (dgen.self(), message);
END $$;
CREATE PROCEDURE bomb.handle_locked(kind text, message jsonb, INOUT state jsonb, INOUT reply jsonb)
LANGUAGE plpgsql AS $$ BEGIN COMMIT; PERFORM c.crash('1'); END $$;
SELECT dgen.create_module('bomb', max_attempts => 3, backoff_initial => '20 ms', backoff_factor => 1);
"""


@pytest.mark.seconds(240)
@pytest.mark.parametrize("where", ["handler", "effect", "locked"])
@pytest.mark.skipif(INSTRUMENT in ("sanitizers", "valgrind"), reason="it reports such a crash as its own")
def test_crash_in_c(cluster_with_c, where):
    """A null pointer in C brings the server down, no more often than max_attempts
    says; then the message is a dead letter, and all others have been handled."""
    db = cluster_with_c
    db.signals |= {signal.SIGSEGV, signal.SIGKILL}
    with limit(db, resource.RLIMIT_CORE, 0):
        crash_in_c(db, where)


def crash_in_c(db, where):
    before = len(re.findall("terminated by signal 11", db.log_text()))
    with db.connect() as conn:
        conn.execute("SET client_min_messages = error")
        if value(conn, "SELECT count(*) FROM dgen.modules WHERE module = 'bomb'") == 0:
            db.psql(CRASHES)
        conn.execute("TRUNCATE done")
        with conn.transaction():
            for n in range(20):
                conn.execute("SELECT dgen.cast(%s, '{}')", ("m/%d" % (n % 5),))
                conn.execute("SELECT dgen.cast(%s, '{}')", ("bomb/%d" % (n % 5 + 10),))
            conn.execute("SELECT dgen.cast('bomb/1', jsonb_build_object('in', %s::text))", (where,))
            conn.execute("SELECT dgen.cast('bomb/1', '{\"in\": \"after\"}')")

    def buried():
        try:
            with db.connect() as conn:
                return value(conn, "SELECT count(*) FROM dgen.dead_letters") == 1
        except psycopg.Error:
            return False
    wait_for(buried, 120, interval=0.2, message="no dead letter")
    with connect_again(db) as conn:
        conn.execute("SET client_min_messages = error")
        wait_idle(conn)
        assert conn.execute("SELECT sqlstate, attempts FROM dgen.dead_letters").fetchall() == [("OT020", 3)]
        assert value(conn, "SELECT count(*) FROM done WHERE message = '{}'") == 40
        assert value(conn, "SELECT count(*) FROM done WHERE message->>'in' = 'after'") == 1
        assert_nothing_left(conn, letters=1)
        conn.execute("SELECT dgen.discard(id) FROM dgen.dead_letters")
    # one of them is the attempt that was not counted when it was begun
    crashes = len(re.findall("terminated by signal 11", db.log_text())) - before
    assert 1 <= crashes <= 3, crashes
