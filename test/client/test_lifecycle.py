"""Versions of the extension and of the library, databases that take no
connections, owners that go, dumps of every kind, transactions that are
prepared, and the end of the extension under load.  What test_restore.py has
is not repeated here."""

import contextlib
import glob
import os
import threading
import time

import psycopg
import pytest

from build import TOP, Build
from cluster import PORT, Cluster, wait_for
from common import assert_nothing_left, in_threads, value, wait_idle

PROMPT = 20     # seconds; far below an idle worker's minute

# The state counts; each message with an "n" is noted.
MODULE = """
CREATE TABLE done (seq bigserial, server text, n int);
CREATE SCHEMA m;
CREATE FUNCTION m.init(args jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT '0'::jsonb $$;
CREATE FUNCTION m.act(message jsonb, state jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
    IF message->>'do' = 'sleep' THEN
        PERFORM pg_sleep(60);
    ELSIF message->>'do' = 'endless' THEN
        PERFORM dgen.cast(dgen.self(), message, delay => '1 ms');
    END IF;
    IF message ? 'n' THEN
        INSERT INTO public.done (server, n) VALUES (dgen.self(), (message->>'n')::int);
    END IF;
    RETURN to_jsonb(state::int + 1);
END $$;
CREATE FUNCTION m.handle_call(request jsonb, INOUT state jsonb, OUT reply jsonb)
LANGUAGE plpgsql AS $$ BEGIN state := m.act(request, state); reply := state; END $$;
CREATE FUNCTION m.handle_cast(message jsonb, state jsonb) RETURNS jsonb
LANGUAGE plpgsql AS $$ BEGIN RETURN m.act(message, state); END $$;
CREATE FUNCTION m.handle_info(message jsonb, state jsonb) RETURNS jsonb
LANGUAGE plpgsql AS $$ BEGIN RETURN m.act(message, state); END $$;
"""
CREATE = "SELECT dgen.create_module('m', isolation => 'read committed');"


def sqlstate(conn, query, *parameters):
    try:
        conn.execute(query, parameters or None)
    except psycopg.Error as e:
        return e.sqlstate
    return None


def error(conn, query):
    with pytest.raises(psycopg.Error) as raised:
        conn.execute(query)
    return raised.value


def prompt(conn, statement, expect=None):
    begin = time.monotonic()
    assert sqlstate(conn, statement) == expect, statement
    took = time.monotonic() - begin
    assert took < PROMPT, "%s took %.1f s" % (statement, took)


def workers(conn, name, state=None):
    return value(conn, "SELECT count(*) FROM pg_stat_activity WHERE datname = %s AND backend_type = 'dgen worker'"
                       " AND (%s::text IS NULL OR state = %s)", name, state, state)


# ------------------------------------------------------------ versions

@contextlib.contextmanager
def scripts(texts):
    """More scripts in the private install, as {'0.1.0--0.1.1': script}."""
    build = Build.current()
    if build.method() == "prefix":
        pytest.skip("%s is installed into its prefix" % build.ask("version"))
    paths = []
    try:
        for name, text in texts.items():
            path = os.path.join(build.inst + build.ask("sharedir"), "extension",
                                "dgen--%s.sql" % name)
            with open(path, "w") as f:
                f.write(text)
            os.chmod(path, 0o644)
            paths.append(path)
        yield
    finally:
        for path in paths:
            os.unlink(path)


# what an update to a correction of the same version may do
NEXT = """
ALTER TABLE dgen.message ADD COLUMN more text COLLATE "C";
ALTER TABLE dgen.delayed ADD COLUMN more text COLLATE "C";
ALTER TABLE dgen.server ADD COLUMN more bigint;
ALTER TABLE dgen.module ADD COLUMN more boolean;
CREATE INDEX server_more_idx ON dgen.server (more);
CREATE TABLE dgen.more (server text COLLATE "C" NOT NULL);
SELECT pg_extension_config_dump('dgen.more', '');
CREATE FUNCTION dgen.more() RETURNS text LANGUAGE sql RETURN 'more';
"""
BACK = """
DROP FUNCTION dgen.more();
ALTER EXTENSION dgen DROP TABLE dgen.more;
DROP TABLE dgen.more;
ALTER TABLE dgen.message DROP COLUMN more;
ALTER TABLE dgen.delayed DROP COLUMN more;
ALTER TABLE dgen.server DROP COLUMN more;
ALTER TABLE dgen.module DROP COLUMN more;
"""

# all that an extension is, as text
CATALOG = """
SELECT pg_describe_object(d.classid, d.objid, 0),
       CASE d.classid WHEN 'pg_proc'::regclass THEN
            (SELECT pg_get_functiondef(p.oid) || coalesce(p.proacl::text, '') FROM pg_proc p WHERE p.oid = d.objid AND prokind <> 'a')
       WHEN 'pg_class'::regclass THEN
            (SELECT relkind::text || coalesce(relacl::text, '') || coalesce(reloptions::text, '') ||
                    CASE relkind WHEN 'v' THEN pg_get_viewdef(c.oid) ELSE '' END ||
                    coalesce((SELECT string_agg(format('%s %s %s %s %s', attname, atttypid::regtype, attnotnull,
                                                attcollation, col_description(c.oid, attnum)), ',' ORDER BY attnum)
                              FROM pg_attribute WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped), '') ||
                    coalesce((SELECT string_agg(pg_get_indexdef(indexrelid), ',' ORDER BY indexrelid::regclass::text)
                              FROM pg_index WHERE indrelid = c.oid), '') ||
                    (c.oid = ANY (e.extconfig))::text
             FROM pg_class c WHERE c.oid = d.objid)
       END,
       obj_description(d.objid, (SELECT relname FROM pg_class k WHERE k.oid = d.classid))
FROM pg_extension e JOIN pg_depend d ON d.refclassid = 'pg_extension'::regclass AND d.refobjid = e.oid AND d.deptype = 'e'
WHERE extname = 'dgen' ORDER BY 1
"""


def catalog(conn):
    return conn.execute(CATALOG).fetchall()


def test_update(cluster):
    """To a next version and back, with mail in the mailboxes, timers and
    running workers; first rolled back."""
    with scripts({"0.1.0--0.1.1": NEXT, "0.1.1--0.1.0": BACK}):
        cluster.psql("CREATE EXTENSION dgen VERSION '0.1.0';" + MODULE + CREATE)
        with cluster.connect() as conn, cluster.connect() as sender:
            before = catalog(conn)
            for n in range(3):
                conn.execute("SELECT dgen.cast('m/e%d', '{\"do\": \"endless\"}')" % n)
            conn.execute("SELECT dgen.suspend('m/0')")
            wait_for(lambda: workers(conn, "postgres") >= 1)
            sent = 0
            for version in "0.1.1", "0.1.0", "0.1.1":
                for end in "ROLLBACK", "COMMIT":
                    for _ in range(20):
                        sender.execute("SELECT dgen.cast('m/%d', jsonb_build_object('n', %s::int))" % (sent % 4, sent))
                        sent += 1
                    sender.execute("SELECT dgen.cast('m/1', jsonb_build_object('n', %s::int), delay => '200 ms')" % sent)
                    sent += 1
                    conn.execute("BEGIN")
                    prompt(conn, "ALTER EXTENSION dgen UPDATE TO '%s'" % version)
                    conn.execute(end)
                    # this session and an older one, and a worker of each
                    assert value(conn, "SELECT dgen.call('m/1', '{}', timeout => '30 s')") > 0
                    assert value(sender, "SELECT dgen.invoke('m/2', '{}')") > 0
                if version == "0.1.0":
                    assert catalog(conn) == before
            assert value(conn, "SELECT dgen.more()") == "more"
            assert value(conn, "SELECT count(*) FROM dgen.server WHERE more IS NOT NULL") == 0
            conn.execute("SELECT dgen.alter_module('m', max_attempts => 7)")
            moved = value(conn, "SELECT sum((state #>> '{}')::int) FROM dgen.server WHERE server LIKE 'm/e%'")
            wait_for(lambda: value(conn, "SELECT sum((state #>> '{}')::int) FROM dgen.server WHERE server LIKE 'm/e%'")
                     > moved + 5, message="timers do not go on")
            conn.execute("SELECT dgen.resume('m/0')")
            conn.execute("SELECT dgen.delete('m/e' || n) FROM generate_series(0, 2) n")
            wait_for(lambda: value(conn, "SELECT count(*) FROM done") == sent)
            # after a restart, too
            cluster.restart()
        with cluster.connect() as conn:
            assert value(conn, "SELECT dgen.call('m/0', '{}')") > 0
            assert value(conn, "SELECT count(DISTINCT n) FROM done") == sent
            for server in range(4):
                order = [n for n, in conn.execute("SELECT n FROM done WHERE server = %s ORDER BY seq", ("m/%d" % server,))
                         if n % 21 != 20]
                assert order == sorted(order)


def test_released_scripts(shared_cluster):
    """Each released version leads to the present one, and to nothing else
    than a new install; the script of a release does not change."""
    released = glob.glob(os.path.join(TOP, "sql", "released", "dgen--*.sql"))
    if not released:
        pytest.skip("no version was released yet")
    folder = os.path.join(Build.current().inst + Build.current().ask("sharedir"), "extension")
    with shared_cluster.connect() as conn:
        present = value(conn, "SELECT extversion FROM pg_extension WHERE extname = 'dgen'")
        wanted = catalog(conn)
        for path in released:
            version = os.path.basename(path)[len("dgen--"):-len(".sql")]
            if version == present:
                with open(path) as then, open(os.path.join(folder, os.path.basename(path))) as now:
                    assert then.read() == now.read()
                continue
            conn.execute("CREATE DATABASE older")
            shared_cluster.psql("CREATE EXTENSION dgen VERSION '%s'; ALTER EXTENSION dgen UPDATE" % version, dbname="older")
            with shared_cluster.connect(dbname="older") as other:
                assert catalog(other) == wanted
            conn.execute("DROP DATABASE older")


def no_processes(cluster):
    wait_for(lambda: not cluster.processes("dgen (worker|keeper)"), PROMPT, message="processes are left")


def test_versions_that_do_not_fit(cluster):
    """Refused by all with the way out; one line in the log, and no process."""
    told = "of extension \"dgen\" does not fit its library"
    with scripts({"0.1.0--0.0.9": "ALTER TABLE dgen.module DROP COLUMN suspended_reason;",
                  "0.0.9--0.1.0": "ALTER TABLE dgen.module ADD COLUMN suspended_reason text;",
                  "0.1.0--0.2.0": "ALTER TABLE dgen.server ADD COLUMN more bigint;"}):
        cluster.psql("CREATE EXTENSION dgen;" + MODULE + CREATE)
        with cluster.connect() as conn, cluster.connect() as other:
            assert value(other, "SELECT dgen.call('m/1', '{}')") == 1
            conn.execute("SELECT dgen.cast('m/1', '{\"n\": 1}', delay => '1 s')")
            # a later one than that of the library that runs is not made
            e = error(conn, "ALTER EXTENSION dgen UPDATE TO '0.2.0'")
            assert e.sqlstate == "OT017" and "restart the server" in e.diag.message_hint
            assert value(other, "SELECT dgen.call('m/1', '{}')") == 2
            # an earlier one is, and then nothing runs
            cluster.log_mark()
            prompt(conn, "ALTER EXTENSION dgen UPDATE TO '0.0.9'")
            no_processes(cluster)

            def refused(conn, hint):
                for statement in ("SELECT dgen.call('m/1', '{}')", "SELECT dgen.cast('m/1', '{}')",
                                  "SELECT dgen.invoke('m/1', '{}')", "SELECT dgen.state('m/1')",
                                  "SELECT dgen.query('m/1', '{}')", "SELECT * FROM dgen.modules",
                                  "SELECT dgen.stop('m/1')", "SELECT dgen.adopt()", CREATE,
                                  "SELECT dgen.drop_module('m', true)", "SELECT dgen.wait_idle(everything => true)"):
                    e = error(conn, statement)
                    assert e.sqlstate == "OT017" and hint in e.diag.message_hint, (statement, e)
                assert value(conn, "SELECT dgen.is_armed()") is False
            for c in conn, other:
                refused(c, "ALTER EXTENSION dgen UPDATE")
            time.sleep(1.5)         # what is due now is not delivered by anybody
            assert cluster.log_since_mark().count("WARNING:  version \"0.0.9\" " + told) == 1
            assert not cluster.processes("dgen (worker|keeper)")
        cluster.restart()
        with cluster.connect() as conn:
            refused(conn, "ALTER EXTENSION dgen UPDATE")
            no_processes(cluster)
            prompt(conn, "ALTER EXTENSION dgen UPDATE")
            wait_for(lambda: value(conn, "SELECT count(*) FROM done") == 1, PROMPT)
            assert value(conn, "SELECT dgen.state('m/1')") == 3
        # a later one that came with another library, as after a step back
        cluster.log_mark()
        with cluster.connect() as conn:
            conn.execute("SET allow_system_table_mods = on")
            conn.execute("UPDATE pg_extension SET extversion = '0.2.0' WHERE extname = 'dgen'")
        cluster.restart()
        with cluster.connect() as conn:
            refused(conn, "Install the library of that version")
            no_processes(cluster)
            assert cluster.log_since_mark().count("WARNING:  version \"0.2.0\" " + told) == 1
            conn.execute("SET allow_system_table_mods = on")
            conn.execute("UPDATE pg_extension SET extversion = '0.1.0' WHERE extname = 'dgen'")
        cluster.restart()
        with cluster.connect() as conn:
            assert value(conn, "SELECT dgen.call('m/1', '{}')") == 4
