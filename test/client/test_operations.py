"""By hand, from several sessions: abort, the audit over crashes and dumps, dry runs that
leave nothing behind, documents of large servers."""

import os
import threading

import psycopg
import pytest

from cluster import PORT, wait_for
from common import value, wait_idle

MODULE = """
CREATE ROLE owner LOGIN;
CREATE SCHEMA ops AUTHORIZATION owner;
CREATE TABLE ops.done (what text);
ALTER TABLE ops.done OWNER TO owner;
CREATE TABLE ops.late (n integer PRIMARY KEY, of integer REFERENCES ops.late DEFERRABLE INITIALLY DEFERRED);
ALTER TABLE ops.late OWNER TO owner;
SET ROLE owner;
CREATE FUNCTION ops.effect(args jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_sleep((args->>'sleep')::float);
    INSERT INTO ops.done VALUES ('effect');
END $$;
CREATE FUNCTION ops.handle_call(request jsonb, INOUT state jsonb, OUT reply jsonb) LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_sleep(coalesce((request->>'sleep')::float, 0));
    IF request ? 'send' THEN
        PERFORM dgen.cast(request->>'send', '{}');
    END IF;
    IF request ? 'late' THEN
        INSERT INTO ops.late VALUES (1, 42);
    END IF;
    state := state || (request - 'sleep' - 'send');
    reply := state;
END $$;
CREATE FUNCTION ops.handle_cast(message jsonb, INOUT state jsonb) LANGUAGE plpgsql AS $$
BEGIN
    IF message ? 'effect' THEN
        PERFORM dgen.after_commit('ops.effect', message);
    ELSE
        PERFORM pg_sleep(coalesce((message->>'sleep')::float, 0));
    END IF;
    INSERT INTO ops.done VALUES (message->>'i');
    state := jsonb_set(state, '{n}', to_jsonb(coalesce((state->>'n')::int, 0) + 1));
END $$;
SELECT dgen.create_module('ops', invoke_isolation => 'any', handler_timeout => '100 s', work_timeout => '100 s',
    max_attempts => 2, backoff_initial => '1 h', backoff_max => '1 h', breaker => 0);
"""


@pytest.fixture
def db(cluster):
    cluster.psql("CREATE EXTENSION dgen")
    cluster.psql(MODULE)
    return cluster


def aborted(conn, server):
    """Waits until there is something to abort."""
    wait_for(lambda: value(conn, "SELECT dgen.abort(%s)", server), 20)


def test_abort(db):
    with db.connect() as conn:
        assert value(conn, "SELECT dgen.abort('ops/a')") is False
        # a message: an attempt has failed
        conn.execute("""SELECT dgen.cast('ops/a', '{"sleep": 90}')""")
        aborted(conn, "ops/a")
        wait_for(lambda: value(conn, "SELECT failing FROM dgen.servers WHERE server = 'ops/a'"), 20)
        assert conn.execute("""SELECT status, attempts, last_error->>'sqlstate', last_error->>'message'
            FROM dgen.messages WHERE server = 'ops/a'""").fetchall() == [("retrying", 1, "OT020", "handler was aborted")]
        conn.execute("SELECT dgen.discard(id) FROM dgen.messages WHERE server = 'ops/a'")
        # an effect, which is not the server's next handler
        conn.execute("""SELECT dgen.cast('ops/a', '{"effect": true, "sleep": 90}')""")
        wait_for(lambda: value(conn, "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'dgen worker' AND wait_event = 'PgSleep'") == 1, 20)
        aborted(conn, "ops/a")
        wait_for(lambda: conn.execute("""SELECT attempts, last_error->>'message' FROM dgen.messages
            WHERE kind = 'effect'""").fetchall() == [(1, "effect was aborted")], 20)
        # a call: its caller is told, and the server goes on
        told = []

        def call():
            with db.connect() as other:
                try:
                    other.execute("""SELECT dgen.call('ops/a', '{"sleep": 90}', timeout => '2 min')""")
                except psycopg.Error as e:
                    told.append(e.sqlstate)

        thread = threading.Thread(target=call)
        thread.start()
        aborted(conn, "ops/a")
        thread.join(30)
        assert told == ["OT020"]
        assert value(conn, """SELECT dgen.call('ops/a', '{"x": 1}')->'x'""") == 1
        assert conn.execute("SELECT action, server, count(*) >= 3 FROM dgen.audit_log WHERE action = 'abort' GROUP BY 1, 2"
                            ).fetchall() == [("abort", "ops/a", True)]


def test_abort_names_its_activation(db):
    """A storm of aborts fails what it names, and loses or doubles nothing."""
    with db.connect() as conn:
        conn.execute("SELECT dgen.alter_module('ops', max_attempts => 1000, backoff_initial => '1 ms', backoff_max => '1 ms')")
        conn.execute("SELECT count(dgen.cast('ops/s' || i % 3, jsonb_build_object('sleep', 0.02, 'i', i))) FROM generate_series(1, 60) i")
        n = 0
        # handlers that are always aborted would never end
        while n < 100 and value(conn, "SELECT count(*) FROM dgen.messages") > 0:
            n += value(conn, "SELECT count(*) FROM generate_series(0, 2) i WHERE random() < 0.3 AND dgen.abort('ops/s' || i)")
        wait_idle(conn)
        assert conn.execute("SELECT count(*), count(DISTINCT what) FROM ops.done").fetchone() == (60, 60)
        assert value(conn, "SELECT sum((state->>'n')::int) FROM dgen.servers WHERE server LIKE 'ops/s%'") == 60
        assert value(conn, "SELECT count(*) FROM dgen.dead_letters") == 0
        assert n > 0


def test_dry_run_beside_others(db):
    """Of a server that is in use, and called: it waits, and makes nobody fail."""
    with db.connect() as conn, db.connect() as other:
        stop = threading.Event()
        failed = []

        def call():
            with db.connect() as caller:
                while not stop.is_set():
                    try:
                        caller.execute("""SELECT dgen.call('ops/a', '{"x": 1}')""")
                    except psycopg.Error as e:
                        failed.append(e.sqlstate)

        thread = threading.Thread(target=call)
        thread.start()
        for i in range(100):
            told = value(conn, """SELECT dgen.dry_run('ops/a', '{"dry": true, "send": "ops/b"}')""")
            assert told["new"]["dry"] is True and len(told["messages"]) == 1
        stop.set()
        thread.join(30)
        assert failed == []
        assert value(conn, "SELECT dgen.state('ops/a')") == {"x": 1}
        assert value(conn, "SELECT count(*) FROM dgen.servers WHERE server = 'ops/b'") == 0
        # held by a transaction: a dry run waits as long as its session allows
        other.autocommit = False
        other.execute("SELECT dgen.invoke('ops/a', '{}')")
        conn.execute("SET lock_timeout = '100 ms'")
        with pytest.raises(psycopg.errors.LockNotAvailable):
            conn.execute("SELECT dgen.dry_run('ops/a', '{}')")
        other.rollback()
        assert value(conn, "SELECT dgen.dry_run('ops/a', '{}')->>'outcome'") == "handled"
        # a cancel is one, and no outcome
        conn.execute("SET statement_timeout = '200 ms'")
        with pytest.raises(psycopg.errors.QueryCanceled):
            conn.execute("""SELECT dgen.dry_run('ops/a', '{"sleep": 60}')""")
        conn.execute("RESET statement_timeout")
        assert value(conn, "SELECT dgen.dry_run('ops/a', '{}')->>'outcome'") == "handled"
    # what a worker's commit would refuse
    with db.connect(user="owner") as conn:
        assert value(conn, """SELECT dgen.dry_run('ops/a', '{"late": 1}')#>>'{error,sqlstate}'""") == "23503"
    # killed in the middle: the server is free
    victim = db.connect()
    thread = threading.Thread(target=lambda: pytest.raises(psycopg.Error, victim.execute,
                                                           """SELECT dgen.dry_run('ops/a', '{"sleep": 60}')"""))
    thread.start()
    with db.connect() as conn:
        wait_for(lambda: value(conn, "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%dry_run%' AND wait_event = 'PgSleep'") == 1, 20)
        conn.execute("SELECT pg_terminate_backend(%s)", (victim.info.backend_pid,))
        assert value(conn, """SELECT dgen.call('ops/a', '{"x": 2}')->'x'""") == 2
    thread.join(30)
    victim.close()


def test_undo_one_of_two(db):
    """Two undo the same change at once: one does, the other finds that the server has moved on."""
    with db.connect() as a, db.connect() as b:
        a.execute("SELECT dgen.call('ops/a', '{\"x\": 1}')")
        a.execute("SELECT dgen.replace_state('ops/a', '{\"x\": 2}')")
        id = value(a, "SELECT max(id) FROM dgen.audit_log")
        a.autocommit = False
        a.execute("SELECT dgen.undo(%s)", (id,))
        told = []

        def undo():
            try:
                b.execute("SELECT dgen.undo(%s)", (id,))
            except psycopg.Error as e:
                told.append(e.sqlstate)

        thread = threading.Thread(target=undo)
        thread.start()
        with db.connect() as conn:
            wait_for(lambda: value(conn, "SELECT count(*) FROM pg_locks WHERE NOT granted AND objsubid = 214") == 1, 20)
        a.commit()
        thread.join(30)
        assert told == ["OT018"]
        assert value(b, "SELECT dgen.state('ops/a')") == {"x": 1}


def test_audit_survives(db):
    """A crash, and a dump; the copy's changes can be undone there, once it is adopted."""
    with db.connect() as conn:
        conn.execute("SELECT dgen.call('ops/a', '{\"x\": 1}')")
        conn.execute("SELECT dgen.suspend('ops/b')")
        conn.execute("SELECT dgen.cast('ops/b', '{}'), dgen.send_after('ops/b', '{}', '1 h', 'named')")
        conn.execute("SELECT dgen.delete('ops/b'), dgen.replace_state('ops/a', '{\"x\": 2}')")
        ids = [i for i, in conn.execute("SELECT id FROM dgen.audit_log ORDER BY id")]
        assert len(ids) == 3
    db.kill9()
    db.start()
    with db.connect() as conn:
        assert [i for i, in conn.execute("SELECT id FROM dgen.audit_log ORDER BY id")] == ids
    path = os.path.join(db.directory, "dump")
    db.run("pg_dump", "-h", db.socket_dir, "-p", str(PORT), "-U", "postgres", "-f", path, "postgres")
    db.psql("CREATE DATABASE copy")
    db.psql_file(path, dbname="copy")
    with db.connect(dbname="copy") as conn:
        assert [i for i, in conn.execute("SELECT id FROM dgen.audit_log ORDER BY id")] == ids
        conn.execute("SELECT dgen.adopt()")
        new = value(conn, "SELECT dgen.undo(%s)", ids[2])
        assert new > max(ids)
        assert value(conn, "SELECT dgen.state('ops/a')") == {"x": 1}
        assert value(conn, "SELECT dgen.undo(%s) > 0", ids[1])
        assert conn.execute("SELECT kind, status FROM dgen.messages WHERE server = 'ops/b' ORDER BY id").fetchall() == \
            [("cast", "ready"), ("timer", "delayed")]


def test_retention(db):
    with db.connect() as conn:
        conn.execute("SELECT dgen.call('ops/a', '{\"x\": 1}')")
        conn.execute("SELECT count(dgen.replace_state('ops/a', jsonb_build_object('x', i))) FROM generate_series(2, 2500) i")
        assert value(conn, "SELECT count(*) FROM dgen.audit_log") == 2499
        conn.execute("UPDATE dgen.audit SET at = at - interval '91 days' WHERE old_version < 2000")
        # the keeper looks once a minute, and when it starts
        conn.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'dgen keeper'")
        wait_for(lambda: value(conn, "SELECT count(*) FROM dgen.audit_log") == 500, 60)
        db.configure({"dgen.audit_retention": 0})
        db.reload()
        wait_for(lambda: value(conn, "SHOW dgen.audit_retention") == "0", 10)
        conn.execute("SELECT dgen.replace_state('ops/a', '{}')")
        wait_for(lambda: value(conn, "SELECT count(*) FROM dgen.audit WHERE at > now() - interval '1 s'") == 0, 10)


def test_nothing_is_kept(db):
    """With dgen.audit_max_size 0 no change can be undone: not by deleting what was imported over another."""
    db.configure({"dgen.audit_max_size": 0})
    db.reload()
    with db.connect() as conn:
        wait_for(lambda: value(conn, "SHOW dgen.audit_max_size") == "0", 10)
        conn.execute("SELECT dgen.call('ops/a', '{\"x\": 1}'), dgen.call('ops/b', '{\"x\": 2}')")
        conn.execute("SELECT dgen.import('ops/a', dgen.export('ops/b'), if_exists => 'replace')")
        conn.execute("SELECT dgen.import('ops/new', dgen.export('ops/b'))")
        conn.execute("SELECT dgen.delete('ops/b')")
        for action, undone in ("delete", "55000"), ("import", "55000"):
            with pytest.raises(psycopg.Error) as e:
                conn.execute("SELECT dgen.undo(min(id)) FROM dgen.audit_log WHERE action = %s", (action,))
            assert e.value.sqlstate == undone
        assert value(conn, "SELECT dgen.state('ops/a')") == {"x": 2}
        # before it there was nothing
        assert value(conn, "SELECT dgen.undo(id) > 0 FROM dgen.audit_log WHERE server = 'ops/new'")
        assert value(conn, "SELECT count(*) FROM dgen.servers WHERE server = 'ops/new'") == 0
        assert value(conn, "SELECT count(*) FROM dgen.audit_log WHERE before IS NOT NULL OR after IS NOT NULL") == 0


def test_document_of_a_large_server(db):
    """A hundred thousand messages there and back, in order; of those that are too many the audit keeps none."""
    n = 100000
    with db.connect() as conn:
        conn.execute("SELECT dgen.alter_module('ops', max_mailbox => 1000000)")
        conn.execute("SELECT dgen.suspend('ops/a')")
        conn.execute("SELECT count(dgen.cast('ops/a', jsonb_build_object('i', i))) FROM generate_series(1, %s) i", (n,))
        conn.execute("CREATE TABLE document AS SELECT dgen.export('ops/a') AS document")
        assert value(conn, "SELECT jsonb_array_length(document->'messages') FROM document") == n
        assert value(conn, "SELECT dgen.delete('ops/a')") is True
        with pytest.raises(psycopg.Error) as e:
            conn.execute("SELECT dgen.undo(max(id)) FROM dgen.audit_log")
        assert e.value.sqlstate == "55000"
        assert value(conn, "SELECT pg_total_relation_size('dgen.audit') < 1000000")
        conn.execute("SELECT dgen.import('ops/b', document) FROM document")
        assert conn.execute("""SELECT count(*), bool_and(i = n) FROM (SELECT (message->>'i')::int AS i,
            row_number() OVER (ORDER BY id) AS n FROM dgen.messages WHERE server = 'ops/b') m""").fetchone() == (n, True)
        conn.execute("SELECT dgen.delete('ops/b')")
