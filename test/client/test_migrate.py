"""New code for old states, with everything that may happen meanwhile: the
process or the server dies, clients go on calling, and there are many servers."""

import signal
import threading

import psycopg
import pytest

from cluster import wait_for
from common import assert_nothing_left, connect_again, in_threads, value, wait_idle

SHUT = "SELECT pg_advisory_lock(hashtext('dgen-migrate'))"
STANDS = """SELECT count(*) FROM pg_locks WHERE NOT granted AND locktype = 'advisory' AND objsubid = 1
    AND (classid::bigint << 32 | objid::bigint) = hashtext('dgen-migrate')::bigint"""

# version v of the code knows only states of version v, and says who it is
CODE = """
    CREATE OR REPLACE FUNCTION m.init(args jsonb) RETURNS jsonb LANGUAGE sql AS $$
        SELECT '{{"v": {v}, "n": 0}}'::jsonb $$;
    CREATE OR REPLACE FUNCTION m.handle_call(request jsonb, INOUT state jsonb, OUT reply jsonb)
    LANGUAGE plpgsql AS $$
    BEGIN
        IF state ->> 'v' IS DISTINCT FROM '{v}' THEN
            RAISE EXCEPTION 'code {v} met state %', state;
        END IF;
        INSERT INTO m.log VALUES (dgen.self(), {v});
        state := jsonb_set(state, '{{n}}', to_jsonb((state ->> 'n')::int + 1));
        reply := state;
    END $$;
    CREATE OR REPLACE FUNCTION m.handle_cast(message jsonb, INOUT state jsonb) LANGUAGE plpgsql AS $$
    BEGIN
        IF state ->> 'v' IS DISTINCT FROM '{v}' THEN
            RAISE EXCEPTION 'code {v} met state %', state;
        END IF;
        INSERT INTO m.log VALUES (dgen.self(), {v});
        state := jsonb_set(state, '{{n}}', to_jsonb((state ->> 'n')::int + 1));
    END $$;
    CREATE OR REPLACE FUNCTION m.code_change(old_vsn text, state jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
    BEGIN
        IF state ->> 'v' IS DISTINCT FROM old_vsn OR old_vsn = '{v}' THEN
            RAISE EXCEPTION 'code_change {v} from % met state %', old_vsn, state;
        END IF;
        RETURN jsonb_set(state, '{{v}}', '{v}');
    END $$;
"""


def set_up(conn, servers=0):
    conn.execute("SET client_min_messages = error")
    conn.execute("CREATE SCHEMA m; CREATE TABLE m.log (server text, code int)")
    conn.execute(CODE.format(v=1))
    conn.execute("SELECT dgen.create_module('m', vsn => '1', max_attempts => 1, breaker => 0)")
    for i in range(servers):
        conn.execute("SELECT dgen.start(%s)", ("m/%03d" % i,))


def deploy(conn, v):
    conn.execute(CODE.format(v=v))
    conn.execute("SELECT dgen.alter_module('m', vsn => %s)", (str(v),))


def vsns(conn):
    """How many servers are of which vsn, which must be that of their state."""
    rows = conn.execute("SELECT vsn, dgen.state(server) ->> 'v', count(*) FROM dgen.servers "
                        "GROUP BY 1, 2 ORDER BY 1").fetchall()
    assert all(row[0] == row[1] for row in rows), rows
    return {row[0]: row[2] for row in rows}


@pytest.mark.parametrize("victim", ["backend", "server"])
def test_killed_in_the_middle(cluster, victim):
    """All or nothing, code, vsn and states; what was shown as running is not."""
    cluster.psql("CREATE EXTENSION dgen")
    with cluster.connect() as conn, cluster.connect() as watch:
        set_up(conn, 40)
        watch.execute(SHUT)

        def migrate():
            with cluster.connect() as c, pytest.raises(psycopg.OperationalError):
                c.execute("SET dgen.debug_waitpoint = 'dgen-migrate'")
                with c.transaction():
                    deploy(c, 2)
                    c.execute("SELECT count(*) FROM dgen.migrate('m')")

        thread = threading.Thread(target=migrate)
        thread.start()
        wait_for(lambda: value(watch, STANDS) == 1)
        row = watch.execute("SELECT pid, module, dry_run, servers_total, servers_done, servers_failed "
                            "FROM dgen.progress_migrate").fetchone()
        assert row[1:] == ("m", False, 40, 1, 0)
        if victim == "backend":
            cluster.kill_backend(row[0])
            cluster.wait_ready()
        else:
            cluster.kill9()
            cluster.start()
        thread.join()
    with connect_again(cluster) as conn:
        assert value(conn, "SELECT count(*) FROM dgen.progress_migrate") == 0
        assert value(conn, "SELECT vsn FROM dgen.modules") == "1"
        assert vsns(conn) == {"1": 40}
        assert value(conn, "SELECT dgen.call('m/001', '0', '60 s') ->> 'v'") == "1"
        # and once more, to the end
        with conn.transaction():
            deploy(conn, 2)
            assert value(conn, "SELECT count(*) FROM dgen.migrate('m')") == 40
        assert vsns(conn) == {"2": 40}


def test_terminated_is_not_shown(cluster):
    """FATAL passes all handlers by."""
    cluster.psql("CREATE EXTENSION dgen")
    with cluster.connect() as conn, cluster.connect() as watch:
        set_up(conn, 3)
        deploy(conn, 2)
        watch.execute(SHUT)

        def migrate():
            with cluster.connect() as c, pytest.raises(psycopg.OperationalError):
                c.execute("SET dgen.debug_waitpoint = 'dgen-migrate'")
                c.execute("CALL dgen.migrate_all('m', batch => 1)")

        thread = threading.Thread(target=migrate)
        thread.start()
        pid = wait_for(lambda: value(watch, "SELECT pid FROM dgen.progress_migrate"))
        wait_for(lambda: value(watch, STANDS) == 1)
        cluster.kill_backend(pid, signal.SIGTERM)
        thread.join()
        wait_for(lambda: value(watch, "SELECT count(*) FROM dgen.progress_migrate") == 0)
        assert vsns(conn) == {"1": 3}


def test_migrate_all_commits_on_its_way(cluster):
    """What was committed before the end stays, and another CALL goes on."""
    cluster.psql("CREATE EXTENSION dgen")
    with cluster.connect() as conn, cluster.connect() as watch:
        set_up(conn, 25)
        deploy(conn, 2)
        conn.execute("SELECT dgen.replace_state('m/003', '{\"v\": 1}')")
        conn.execute("UPDATE dgen.server SET vsn = 'odd' WHERE server = 'm/003'")
        # one that takes long
        conn.execute(CODE.format(v=2).replace("RETURN jsonb_set", """
            IF dgen.self() = 'm/014' THEN
                PERFORM pg_advisory_xact_lock_shared(14);
            END IF;
            RETURN jsonb_set"""))
        watch.execute("SELECT pg_advisory_lock(14)")
        done = []

        def migrate():
            with cluster.connect() as c:
                try:
                    done.append(c.execute("CALL dgen.migrate_all('m', batch => 10)").fetchone())
                except psycopg.errors.QueryCanceled as e:
                    done.append(e.sqlstate)

        thread = threading.Thread(target=migrate)
        thread.start()
        wait_for(lambda: value(watch, "SELECT servers_done FROM dgen.progress_migrate") == 14)
        assert value(watch, "SELECT servers_failed FROM dgen.progress_migrate") == 1
        pid = value(watch, "SELECT pid FROM dgen.progress_migrate")
        watch.execute("SELECT pg_cancel_backend(%s)", (pid,))
        thread.join()
        assert done == ["57014"]
        assert value(conn, "SELECT count(*) FROM dgen.servers WHERE vsn = '2'") == 9
        watch.execute("SELECT pg_advisory_unlock(14)")
        assert conn.execute("CALL dgen.migrate_all('m')").fetchone() == (15, 1)
        failing = conn.execute("SELECT server, old_vsn, error ->> 'sqlstate' "
                               "FROM dgen.migrate('m', dry_run => true)").fetchall()
        assert failing == [("m/003", "odd", "P0001")]


def test_new_code_behind_init(cluster):
    """While a server's first message runs init, new code comes: the state that
    init has made is not given to it."""
    cluster.psql("CREATE EXTENSION dgen")
    with cluster.connect() as conn, cluster.connect() as other:
        set_up(conn)
        conn.execute(CODE.format(v=1).replace("SELECT '", "SELECT pg_advisory_xact_lock_shared(14); SELECT '"))
        other.execute("SELECT pg_advisory_lock(14)")
        conn.execute("SELECT dgen.cast('m/1', '0')")
        wait_for(lambda: value(conn, "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"))
        with conn.transaction():
            deploy(conn, 2)
        other.execute("SELECT pg_advisory_unlock(14)")
        wait_idle(conn)
        assert_nothing_left(conn)
        assert value(conn, "SELECT dgen.state('m/1')") == {"v": 2, "n": 1}


@pytest.mark.parametrize("how", ["lazily", "at once", "in chunks"])
def test_clients_go_on(cluster, how):
    """Calls and casts while one version follows the other: no code meets a
    state of another, none is lost, and none handled twice."""
    cluster.psql("CREATE EXTENSION dgen")
    servers, calls, versions = 12, 60, 5
    with cluster.connect() as conn:
        set_up(conn)

        def client(number):
            with cluster.connect() as c:
                c.execute("SET client_min_messages = error")
                for i in range(calls):
                    server = "m/%d" % ((number * 7 + i) % servers)
                    if i % 3:
                        c.execute("SELECT dgen.cast(%s, '0')", (server,))
                    else:
                        c.execute("SELECT dgen.call(%s, '0', '60 s')", (server,))

        def operator():
            with cluster.connect() as c:
                c.execute("SET client_min_messages = error")
                for v in range(2, versions + 1):
                    # tuples of pg_proc and the module are one at a time; leases may deadlock
                    while True:
                        try:
                            with c.transaction():
                                deploy(c, v)
                                if how == "at once":
                                    c.execute("SELECT count(*) FROM dgen.migrate('m')")
                            break
                        except (psycopg.errors.SerializationFailure, psycopg.errors.DeadlockDetected):
                            pass
                    if how == "in chunks":
                        c.execute("CALL dgen.migrate_all('m', batch => 3)")

        in_threads([lambda n=n: client(n) for n in range(4)] + [operator])
        wait_idle(conn)
        assert_nothing_left(conn)
        assert value(conn, "SELECT count(*) FROM m.log") == 4 * calls
        assert value(conn, "SELECT sum((dgen.state(server) ->> 'n')::int) FROM dgen.servers") == 4 * calls
        assert vsns(conn).keys() <= set("12345")


def test_many(cluster):
    """Memory does not grow with the number of servers, nor the lock table."""
    cluster.psql("CREATE EXTENSION dgen")
    n = 60000
    with cluster.connect() as conn, cluster.connect() as watch:
        set_up(conn, 1)
        names = [c.name for c in conn.execute("SELECT * FROM dgen.server LIMIT 0").description]
        columns = ", ".join("'m/x' || i" if name == "server" else "s." + name for name in names)
        conn.execute("INSERT INTO dgen.server SELECT %s FROM dgen.server s, generate_series(1, %d) i"
                     % (columns, n))
        conn.execute("SELECT dgen.suspend(module => 'm')")

        def memory():
            return value(conn, "SELECT sum(total_bytes) FROM pg_backend_memory_contexts")

        with conn.transaction():
            deploy(conn, 2)
            conn.execute("SELECT count(*) FROM dgen.migrate('m', max_servers => 10)")
            before = memory()
            peak = []
            stop = threading.Event()

            def look():
                while not stop.wait(0.02):
                    peak.append(watch.execute("SELECT servers_done, servers_total FROM dgen.progress_migrate "
                                              "UNION ALL SELECT count(*), -1 FROM pg_locks").fetchall())

            thread = threading.Thread(target=look)
            thread.start()
            assert value(conn, "SELECT count(*) FROM dgen.migrate('m')") == n + 1 - 10
            stop.set()
            thread.join()
            assert memory() - before < 4 * 1024 * 1024
        seen = [row for rows in peak for row in rows]
        assert max(row[0] for row in seen if row[1] == -1) < 100
        assert any(0 < row[0] < row[1] for row in seen if row[1] != -1)
        assert vsns(conn) == {"2": n + 1}
