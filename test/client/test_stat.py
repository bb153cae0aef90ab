"""The views dgen.stat_* where that takes several sessions: what runs, who waits for it,
what is seen under load and after a loss; and the log of what took long."""

import threading

import psycopg
import pytest

from cluster import wait_for
from common import value, wait_idle

MODULE = """
CREATE ROLE owner LOGIN;
CREATE SCHEMA figures AUTHORIZATION owner;
SET ROLE owner;
CREATE FUNCTION figures.handle_call(request jsonb, INOUT state jsonb, OUT reply jsonb) LANGUAGE plpgsql AS $$
BEGIN
    IF request ? 'lock' THEN
        PERFORM pg_advisory_xact_lock((request->>'lock')::int);
    ELSIF request ? 'error' THEN
        RAISE EXCEPTION 'no';
    END IF;
    reply := '1';
END $$;
CREATE FUNCTION figures.handle_cast(message jsonb, INOUT state jsonb) LANGUAGE plpgsql AS $$
BEGIN
    IF message ? 'error' THEN
        RAISE EXCEPTION 'no';
    END IF;
    PERFORM pg_sleep(coalesce((message->>'sleep')::float, 0));
END $$;
SELECT dgen.create_module('figures', invoke_isolation => 'any', handler_timeout => '50 s', max_attempts => 1,
                          breaker => 0);
"""


@pytest.fixture
def db(cluster):
    cluster.psql("CREATE EXTENSION dgen")
    cluster.psql(MODULE)
    return cluster


def counts(conn):
    return conn.execute("SELECT calls, casts, errors, dead_letters FROM dgen.stat_module").fetchone()


def in_thread(db, statement):
    """A session that runs a statement; (thread, its pid)."""
    conn = db.connect()
    thread = threading.Thread(target=lambda: conn.execute(statement).fetchall())
    thread.start()
    return thread, conn


def test_activity(db):
    """A call that waits for a lock: what runs, since when, what it waits for, and who waits for it."""
    with db.connect() as conn, db.connect() as lock:
        lock.execute("SELECT pg_advisory_lock(1)")
        thread, caller = in_thread(db, "SELECT dgen.call('figures/a', '{\"lock\": 1}', timeout => '1 min')")
        with caller:
            row = wait_for(lambda: conn.execute(
                "SELECT server, callback, kind, message_id, phase, duration > '0', caller_pid, wait_event_type, wait_event, "
                "usename, application_name FROM dgen.stat_activity WHERE wait_event = 'advisory'").fetchone())
            assert row == ("figures/a", "handle_call", "call", None, "running", True, caller.info.backend_pid,
                           "Lock", "advisory", "owner", "dgen worker")
            query, = conn.execute("SELECT query FROM pg_stat_activity WHERE pid = "
                                  "(SELECT pid FROM dgen.stat_activity)").fetchone()
            assert query == "dgen: figures/a handle_call"
            event = conn.execute("SELECT wait_event_type, wait_event FROM pg_stat_activity WHERE pid = %s",
                                 (caller.info.backend_pid,)).fetchone()
            # before the deadlock detector's turn, and after
            assert event in (("Extension", "DgenCall" if db.build.major >= 17 else "Extension"),
                             ("Lock", "virtualxid"))
            assert conn.execute("SELECT state, server, batch_size, kind, owner FROM dgen.stat_worker "
                                "WHERE state = 'busy'").fetchall() == [("busy", "figures/a", 1, "handlers", "owner")]
            lock.execute("SELECT pg_advisory_unlock(1)")
            thread.join()
        # the caller has the reply before its worker has left the commit
        wait_for(lambda: conn.execute("SELECT * FROM dgen.stat_activity").fetchall() == [])


def test_activity_of_a_client(db):
    """An invoke runs in the client's transaction; a caught error leaves nothing, nor does a lost process."""
    with db.connect() as conn, db.connect() as lock:
        lock.execute("SELECT pg_advisory_lock(1)")
        thread, caller = in_thread(db, "SELECT dgen.invoke('figures/b', '{\"lock\": 1}')")
        with caller:
            row = wait_for(lambda: conn.execute(
                "SELECT pid, server, callback, caller_pid, usename FROM dgen.stat_activity").fetchone())
            assert row == (caller.info.backend_pid, "figures/b", "handle_call", None, "postgres")
            lock.execute("SELECT pg_advisory_unlock(1)")
            thread.join()
        conn.execute("DO $$ BEGIN PERFORM dgen.invoke('figures/b', '{\"error\": 1}'); "
                     "EXCEPTION WHEN OTHERS THEN NULL; END $$")
        assert conn.execute("SELECT * FROM dgen.stat_activity").fetchall() == []
        assert counts(conn) == (1, 0, 1, 0)


def test_errors_in_company(db):
    """Each error counts once, however often its batch was run."""
    with db.connect() as conn:
        conn.execute("SELECT dgen.suspend(module => 'figures')")
        conn.execute("SELECT dgen.cast('figures/' || i % 7, CASE WHEN i % 10 = 0 THEN '{\"error\": 1}' ELSE '{}' END::jsonb) "
                     "FROM generate_series(1, 300) i")
        conn.execute("SELECT dgen.resume(module => 'figures')")
        wait_idle(conn)
        wait_for(lambda: counts(conn) == (0, 270, 30, 30))
        assert value(conn, "SELECT sum(activations) FROM dgen.stat_server") == 270
        assert value(conn, "SELECT commits <= 270 FROM dgen.stat_module")


def test_figures_begin_at_zero(db):
    """After a crash of the server they begin anew; no lock or entry is left behind by a killed worker."""
    with db.connect() as conn:
        conn.execute("SELECT dgen.call('figures/a', '{}')")
        assert counts(conn) == (1, 0, 0, 0)
    db.kill9()
    db.start()
    with db.connect() as conn:
        assert counts(conn) == (0, 0, 0, 0)
        assert value(conn, "SELECT stats_reset IS NULL FROM dgen.stat_module")
        conn.execute("SELECT dgen.call('figures/a', '{}')")
        assert counts(conn) == (1, 0, 0, 0)


def test_more_modules_than_room(cluster):
    """Those that find no place are not counted, and say so; a place that is freed is used."""
    cluster.configure({"dgen.max_stat_modules": 2})
    cluster.restart()
    cluster.psql("CREATE EXTENSION dgen")
    with cluster.connect() as conn:
        for i in (1, 2, 3):
            conn.execute("CREATE SCHEMA m%d" % i)
            conn.execute("CREATE FUNCTION m%d.handle_call(request jsonb, INOUT state jsonb, OUT reply jsonb) "
                         "LANGUAGE sql AS 'SELECT state, request'" % i)
            conn.execute("SELECT dgen.create_module('m%d')" % i)
            conn.execute("SELECT dgen.call('m%d/a', '1')" % i)
        seen = "SELECT module, calls FROM dgen.stat_module ORDER BY 1"
        assert conn.execute(seen).fetchall() == [("m1", 1), ("m2", 1), ("m3", None)]
        conn.execute("SELECT dgen.drop_module('m1', \"cascade\" => true)")
        conn.execute("SELECT dgen.call('m3/a', '1')")
        assert conn.execute(seen).fetchall() == [("m2", 1), ("m3", 1)]
        # what is of a dropped extension, or database, makes room
        conn.execute("DROP EXTENSION dgen CASCADE")
        conn.execute("CREATE EXTENSION dgen")
        for i in (1, 2):
            conn.execute("SELECT dgen.create_module('m%d')" % i)
            wait_for(lambda: conn.execute("SELECT dgen.call('m%d/a', '1')" % i))
        assert conn.execute(seen).fetchall() == [("m1", 1), ("m2", 1)]


def test_not_counted_at_all(cluster):
    cluster.configure({"dgen.max_stat_modules": 0})
    cluster.restart()
    cluster.psql("CREATE EXTENSION dgen")
    cluster.psql(MODULE)
    with cluster.connect() as conn:
        conn.execute("SELECT dgen.call('figures/a', '{}')")
        assert counts(conn) == (None, None, None, None)


def test_percentiles(db):
    """As exact as the reference says: queue times that are known from the messages themselves."""
    with db.connect() as conn:
        conn.execute("SELECT dgen.suspend(module => 'figures')")
        conn.execute("SELECT dgen.cast('figures/a', '{}') FROM generate_series(1, 1000) i")
        # sent between 1 and 1,000 seconds ago
        with db.connect() as admin:
            admin.execute("SET allow_system_table_mods = on")
            admin.execute("UPDATE dgen.message m SET sent_at = clock_timestamp() - make_interval(secs => n) "
                          "FROM (SELECT id, row_number() OVER (ORDER BY id) AS n FROM dgen.message) x WHERE x.id = m.id")
        conn.execute("SELECT dgen.resume(module => 'figures')")
        wait_idle(conn)
        row = wait_for(lambda: conn.execute(
            "SELECT p50_queue_time, p95_queue_time, p99_queue_time, min_queue_time, max_queue_time, mean_queue_time, "
            "stddev_queue_time FROM dgen.stat_module WHERE casts = 1000").fetchone())
        # they waited a little longer until they were handled
        for found, true in zip(row, (500e3, 950e3, 990e3, 1e3, 1000e3, 500.5e3, 288.67e3)):
            assert abs(found - true) <= 0.07 * true + 20e3, row


def logged(db):
    return [line.partition("duration: ")[2] for line in db.log_text().splitlines() if "duration: " in line]


def test_log(db):
    with db.connect() as conn:
        conn.execute("SELECT dgen.cast('figures/quick', '{}')")
        wait_idle(conn)
        assert not logged(db)
    db.configure({"dgen.log_min_handler_duration": "50ms"})
    db.reload()
    with db.connect() as conn:
        wait_for(lambda: value(conn, "SHOW dgen.log_min_handler_duration") == "50ms")
        conn.execute("SELECT dgen.cast('figures/quick', '{}')")
        id = value(conn, "SELECT dgen.cast('figures/slow', '{\"sleep\": 0.1}')")
        wait_idle(conn)
        line, = wait_for(lambda: logged(db))
        assert line.split("ms  ")[1] == 'server "figures/slow" handle_cast, message %d' % id
        assert 50 <= float(line.split(" ")[0])
    db.configure({"dgen.log_min_handler_duration": "0"})
    db.reload()
    with db.connect() as conn:
        wait_for(lambda: value(conn, "SHOW dgen.log_min_handler_duration") == "0")
        wait_for(lambda: conn.execute("SELECT dgen.cast('figures/failing', '{\"error\": 1}')") and
                 any('"figures/failing" handle_cast' in line and line.endswith(", failed") for line in logged(db)))
        conn.execute("SELECT dgen.invoke('figures/invoked', '{}')")
        wait_for(lambda: any(line.endswith('server "figures/invoked" handle_call') for line in logged(db)))


# the first waits at the point, whoever comes to it
SHUT = "SELECT pg_advisory_lock(hashtext('dgen-%s'))"


@pytest.mark.parametrize("command, point, statement, total", [
    ("purge", "letter", "SELECT dgen.purge('figures')", 7),
    ("requeue", "letter", "SELECT dgen.requeue_all(module => 'figures')", 7),
    ("drop module", "drop-row", "SELECT dgen.drop_module('figures', \"cascade\" => true)", 8)])
def test_progress(db, command, point, statement, total):
    """How far it has come; and nothing is left of it when it ends, by itself or by an error."""
    with db.connect() as conn, db.connect() as gate:
        conn.execute("SELECT dgen.call('figures/a', '{}')")
        conn.execute("SELECT dgen.cast('figures/a', '{\"error\": 1}') FROM generate_series(1, 7)")
        wait_for(lambda: value(conn, "SELECT count(*) FROM dgen.dead_letters") == 7)
        conn.execute("SELECT dgen.suspend(module => 'figures')")
        for ends in ("cancel", "commit"):
            gate.execute(SHUT % point)
            with db.connect() as other:
                other.execute("SET dgen.debug_waitpoint = 'dgen-%s'" % point)

                def run():
                    try:
                        other.execute(statement)
                    except psycopg.errors.QueryCanceled:
                        pass

                thread = threading.Thread(target=run)
                thread.start()
                row = wait_for(lambda: conn.execute(
                    "SELECT pid, command, module, total, done, failed, dry_run, started_at < clock_timestamp() "
                    "FROM dgen.progress WHERE done > 0").fetchone())
                assert row == (other.info.backend_pid, command, "figures", total, 1, 0, False, True)
                if ends == "cancel":
                    conn.execute("SELECT pg_cancel_backend(%s)", (row[0],))
                    thread.join()
                    assert value(conn, "SELECT count(*) FROM dgen.progress") == 0
                    assert value(conn, "SELECT count(*) FROM dgen.dead_letters") == 7
                gate.execute("SELECT pg_advisory_unlock_all()")
                thread.join()
                assert value(conn, "SELECT count(*) FROM dgen.progress") == 0
        assert value(conn, "SELECT count(*) FROM dgen.dead_letters") == 0
