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
LANGUAGE plpgsql AS $$ BEGIN RETURN m.act(coalesce(message->'message', message), state); END $$;
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


# ------------------------------------------------------------ dumps, pg_upgrade

RICH = """
CREATE ROLE app LOGIN;
CREATE DATABASE orig OWNER app;
\\c orig
CREATE EXTENSION dgen;
GRANT CREATE ON SCHEMA public TO app;
SET ROLE app;
""" + MODULE + """
CREATE FUNCTION m.attributes(state jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT jsonb_build_object('n', state) $$;
SELECT dgen.create_module('m', isolation => 'read committed', history => '100');
SELECT dgen.create_index('m', $$(attributes->>'n')$$, name => 'by_n');
CREATE SCHEMA p;
CREATE FUNCTION p.init(args jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
    PERFORM dgen.register('name-' || dgen.key(), metadata => '{"a": 1}');
    PERFORM dgen.join_group('group');
    RETURN '{"n": 0}';
END $$;
CREATE FUNCTION p.handle_cast(message jsonb, INOUT state jsonb) LANGUAGE plpgsql AS $$
BEGIN
    IF message->>'do' = 'watch' THEN
        PERFORM dgen.monitor(message->>'whom');
    ELSIF message->>'do' = 'raise' THEN
        RAISE 'as was asked for';
    ELSIF message->>'do' = 'effect' THEN
        PERFORM dgen.after_commit('p.effect'::regproc, message);
    ELSIF NOT state ? 'open' AND message->>'do' = 'postpone' THEN
        PERFORM dgen.postpone();
        RETURN;
    END IF;
    state := state || message || jsonb_build_object('n', (state->>'n')::int + 1);
END $$;
CREATE TABLE effects (what jsonb);
CREATE FUNCTION p.effect(args jsonb) RETURNS void LANGUAGE sql AS $$ INSERT INTO public.effects VALUES (args) $$;
CREATE FUNCTION p.handle_info(message jsonb, state jsonb) RETURNS jsonb LANGUAGE sql AS
$$ SELECT state || jsonb_build_object('n', (state->>'n')::int + 1, coalesce(message->>'info', 'info'), message) $$;
SELECT dgen.create_module('p', isolation => 'read committed', max_attempts => 1);
CREATE SCHEMA x;
SELECT dgen.create_module('x', external => true);
SELECT dgen.supervise('tree', '{"children": [{"id": "a", "server": "p/a"}, {"id": "b", "server": "p/b"}]}');
"""

# what dgen knows, table by table; of sequences what is drawn next
KNOWN = """
SELECT c.oid::regclass::text FROM pg_extension e, pg_class c
WHERE extname = 'dgen' AND c.oid = ANY (extconfig) AND relkind = 'r'
UNION ALL SELECT oid::regclass::text FROM pg_class WHERE relkind = 'r' AND relname LIKE 'attributes\\_%' ORDER BY 1
"""


def known(conn):
    return {table: value(conn, "SELECT string_agg(t::text, E'\\n' ORDER BY t::text) FROM %s t" % table)
            for table, in conn.execute(KNOWN).fetchall()}


def enable(cluster, on):
    cluster.configure({"dgen.enabled": on})
    cluster.reload()
    wait_for(lambda: cluster.psql("SHOW dgen.enabled") == ("on" if on else "off"))
    if not on:
        wait_for(lambda: cluster.psql("SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'dgen worker'"
                                      " AND state = 'active'") == "0")


def make_rich(cluster):
    """A database orig with something in each table, and nobody who works on it."""
    cluster.psql(RICH)
    with cluster.connect(dbname="orig", user="app") as conn:
        for n in range(20):
            assert value(conn, "SELECT dgen.call('m/%d', '{}', request_key => 'k%d')" % (n % 2, n)) == n // 2 + 1
        conn.execute("SELECT dgen.rollback('m/0', 5)")
        large = "SELECT jsonb_object_agg(n::text, repeat(md5(n::text), 10)) FROM generate_series(1, 300) n"
        conn.execute("SELECT dgen.cast('p/c', (%s))" % large)
        conn.execute("SELECT dgen.cast('p/c', '{\"patch\": 1}')")
        conn.execute("SELECT dgen.cast('p/a', '{\"do\": \"watch\", \"whom\": \"p/c\"}')")
        conn.execute("SELECT dgen.cast('p/b', '{\"do\": \"postpone\"}')")
        conn.execute("SELECT dgen.cast('p/c', '{\"do\": \"raise\"}')")
        conn.execute("SELECT dgen.cast('m/1', '{\"n\": 1000}', dedup_key => 'd')")
        conn.execute("SELECT dgen.delete('m/gone', tombstone => '1 h')")
        conn.execute("SELECT dgen.send_every('p/a', '\"tick\"', '1 h', name => 'hourly')")
        conn.execute("SELECT dgen.send_after('p/a', '\"late\"', '1 h', name => 'later')")
        conn.execute("SELECT dgen.join_group('group', 'm/0', permanent => true)")
        request = value(conn, "SELECT dgen.send_request('m/1', '{}')")
        assert value(conn, "SELECT dgen.wait_response(%s)", request) == 12
        wait_for(lambda: value(conn, "SELECT count(*) FROM dgen.dead_letters") == 1)
        conn.execute("SELECT dgen.suspend('m/s', reason => 'dump')")
        conn.execute("SELECT dgen.cast('x/1', '{\"work\": 1}')")
        assert len(conn.execute("SELECT * FROM dgen.take_work('x', lease => '1 h')").fetchall()) == 1
    # what was taken is in hand
    wait_for(lambda: cluster.psql("SELECT count(*) FROM dgen.message", dbname="orig") == "1")
    enable(cluster, False)
    with cluster.connect(dbname="orig", user="app") as conn:
        for n in range(10):
            conn.execute("SELECT dgen.cast('m/%d', '{\"n\": %d}')" % (n % 2, n))
        conn.execute("SELECT dgen.cast('p/d', '{\"do\": \"effect\"}')")
        conn.execute("SELECT dgen.cast('m/1', '{\"n\": 2000}', delay => '10 ms')")
    with cluster.connect(dbname="orig") as conn:
        before = known(conn)
        for table in before:
            # a failure that waits, and versions of states of old, are in test_restore.py
            assert before[table] or table in ("dgen.attempt",), "nothing in " + table
        return before, request


def check_rich(cluster, name, before, request):
    """A copy has all of it and does nothing; after adopt() all goes on."""
    with cluster.connect(dbname=name) as conn:
        assert known(conn) == before
        assert value(conn, "SELECT dgen.is_armed()") is False
        assert error(conn, "SELECT dgen.call('m/1', '{}')").sqlstate == "OT017"
        top = value(conn, "SELECT max(id) FROM (SELECT id FROM dgen.message UNION ALL SELECT id FROM dgen.reply"
                          " UNION ALL SELECT id FROM dgen.delayed UNION ALL SELECT id FROM dgen.timer) i")
    with cluster.connect(dbname=name, user="app") as conn:
        conn.execute("SELECT dgen.adopt()")
        assert value(conn, "SELECT dgen.cast('m/0', '{\"n\": 100}')") > top
        wait_for(lambda: cluster.psql("SELECT count(*) FROM dgen.message", dbname=name) == "1", 60)
        # the order of each, and each once
        for server, wanted in ("m/0", [0, 2, 4, 6, 8, 100]), ("m/1", [1000, 1, 3, 5, 7, 9]):
            assert [n for n, in conn.execute("SELECT n FROM done WHERE server = %s AND n <> 2000 ORDER BY seq", (server,))] == wanted
        wait_for(lambda: value(conn, "SELECT count(*) FROM done WHERE n = 2000") == 1)
        wait_for(lambda: value(conn, "SELECT count(*) FROM effects") == 1)
        assert value(conn, "SELECT dgen.call('m/0', '{}', request_key => 'k0')") == 1
        assert value(conn, "SELECT dgen.wait_response(%s)", request) == 12
        conn.execute("SELECT dgen.cast('m/1', '{\"n\": 1000}', dedup_key => 'd')")
        assert sqlstate(conn, "SELECT dgen.cast('m/gone', '{}')") == "OT003"
        # history, and going on with it
        assert value(conn, "SELECT dgen.state_at('m/0', 3)") is not None
        assert value(conn, "SELECT dgen.call('m/0', '{}')") == 11
        assert value(conn, "SELECT kind FROM dgen.history('m/0') ORDER BY version DESC LIMIT 1") == "call"
        # attributes, by the index, and kept up
        assert value(conn, "SELECT server FROM m.servers WHERE attributes->>'n' = '11' AND key = '0'") == "m/0"
        assert value(conn, "SELECT indexdef LIKE '%%attributes%%' FROM pg_indexes WHERE indexname LIKE '%%by_n'") is True
        # a large state of base and patches
        assert value(conn, "SELECT dgen.state('p/c')->>'patch'") == "1"
        assert value(conn, "SELECT dgen.state('p/c') ? '299'") is True
        # names, groups, monitors, trees
        assert value(conn, "SELECT dgen.whereis('name-a')") == "p/a"
        assert value(conn, "SELECT count(*) FROM dgen.members('group')") == 5
        conn.execute("SELECT dgen.stop('p/c')")
        wait_for(lambda: value(conn, "SELECT dgen.state('p/a') ? 'DOWN'"))
        assert value(conn, "SELECT count(*) FROM dgen.which_children('tree') WHERE status = 'running'") == 2
        conn.execute("SELECT dgen.kill('p/b')")
        wait_for(lambda: value(conn, "SELECT incarnation FROM dgen.servers WHERE server = 'p/b' AND status = 'running'") == 2)
        # what was postponed, timers, the letter, what was suspended, what was taken
        assert value(conn, "SELECT count(*) FROM dgen.timers WHERE name IN ('hourly', 'later')") == 2
        assert value(conn, "SELECT dgen.cancel_timer(server => 'p/a', name => 'hourly') IS NOT NULL") is True
        assert value(conn, "SELECT dgen.requeue_all(module => 'p')") == 1
        assert value(conn, "SELECT suspended_by LIKE '%dump%' FROM dgen.servers WHERE server = 'm/s'") is True
        conn.execute("SELECT dgen.resume('m/s')")
        assert value(conn, "SELECT dgen.call('m/s', '{}')") == 1
        assert value(conn, "SELECT dgen.release('x/1')") is True
        token = value(conn, "SELECT token FROM dgen.take_work('x')")
        conn.execute("SELECT dgen.finish_work(%s, '1')", (token,))
        assert value(conn, "SELECT dgen.state('x/1')") == 1
        conn.execute("SELECT dgen.cast('p/b', '{\"open\": 1}')")
        conn.execute("SELECT dgen.drop_module('x', true)")
        assert value(conn, "SELECT dgen.create_module('x', external => true) IS NOT NULL")


@pytest.mark.seconds(240)
def test_dumps(cluster):
    """Plain, by jobs, of the schema alone, of the whole cluster."""
    before, request = make_rich(cluster)
    where = ("-h", cluster.socket_dir, "-p", str(PORT), "-U", "postgres")

    def path(name):
        return os.path.join(cluster.directory, name)
    cluster.run("pg_dump", *where, "-Fc", "-f", path("custom"), "orig")
    cluster.run("pg_dump", *where, "--schema-only", "-f", path("schema"), "orig")
    cluster.run("pg_dumpall", *where, "-f", path("all"))
    enable(cluster, True)
    for name in "custom", "schema":
        cluster.psql("CREATE DATABASE %s OWNER app" % name)
    cluster.run("pg_restore", *where, "-d", "custom", "-j", "4", "--exit-on-error", path("custom"))
    check_rich(cluster, "custom", before, request)
    # a restored copy can be dumped, and that be restored again
    cluster.run("pg_dump", *where, "-Fc", "-f", path("again"), "custom")
    cluster.psql("CREATE DATABASE again OWNER app")
    cluster.run("pg_restore", *where, "-d", "again", "--exit-on-error", path("again"))
    with cluster.connect(dbname="again") as conn, cluster.connect(dbname="custom") as other:
        assert value(conn, "SELECT dgen.is_armed()") is False
        assert known(conn) == known(other)
        conn.execute("SELECT dgen.adopt()")
        assert value(conn, "SELECT dgen.call('m/0', '{}')") == 12

    # without data there are no modules, and room for new ones
    cluster.psql_file(path("schema"), dbname="schema")
    with cluster.connect(dbname="schema", user="app") as conn:
        assert error(conn, "SELECT dgen.call('m/0', '{}')").sqlstate in ("OT004", "OT017")
        conn.execute("SELECT dgen.create_module('m', isolation => 'read committed')")
        assert value(conn, "SELECT dgen.call('m/0', '{}')") == 1
        assert value(conn, "SELECT count(*) FROM m.servers") == 1

    with Cluster(fresh=True) as other:
        # made by another superuser, so its own role is there already
        text = open(path("all")).read().replace("CREATE ROLE postgres;\n", "")
        other.psql(text)
        check_rich(other, "orig", before, request)


def run_pg_upgrade(cluster, *arguments, **kw):
    try:
        cluster.run(*arguments, **kw)
    except AssertionError as e:
        logs = ""
        for folder, _, names in os.walk(os.path.join(cluster.data, "pg_upgrade_output.d")):
            for name in names:
                with open(os.path.join(folder, name), errors="replace") as f:
                    logs += "--- end of %s:\n%s\n" % (name, "\n".join(f.read().splitlines()[-30:]))
        raise AssertionError("%s\n%s" % (e, logs)) from None


@pytest.mark.seconds(400)
def test_pg_upgrade():
    """To a later PostgreSQL, which DGEN_UPGRADE_TO names: all is there, nothing
    has run, and after adopt() all goes on."""
    new_config = os.environ.get("DGEN_UPGRADE_TO")
    if not new_config:
        pytest.skip("DGEN_UPGRADE_TO names no later PostgreSQL to upgrade to")
    new = Build.make_other(new_config)
    try:
        if new.major <= Build.current().major:
            pytest.skip("DGEN_UPGRADE_TO is no later PostgreSQL than that of PG_CONFIG")
        old = Cluster(fresh=True)
        # PostgreSQL 18 has them by default, and both must agree
        old.initdb_options = ["-k"]
        with old:
            before, request = make_rich(old)
            enable(old, True)
            with old.connect(dbname="orig", user="app") as conn:
                # workers at work until the end
                conn.execute("SELECT dgen.cast('m/endless', '{\"do\": \"endless\"}')")
                wait_for(lambda: workers(conn, "orig") >= 1)
                wait_for(lambda: value(conn, "SELECT count(*) FROM done") >= 11)
            # what a vendor's server wants to be done before
            old.psql(os.environ.get("DGEN_UPGRADE_SQL", ""), dbname="orig")
            old.stop()
            upgraded = Cluster(fresh=True, build=new)
            upgraded.initdb_options = ["-k"]
            upgraded.init()
            run_pg_upgrade(upgraded, "pg_upgrade", "-b", old.build.bindir, "-B", new.bindir, "-d", old.data, "-D", upgraded.data,
                         "-U", "postgres", "-s", upgraded.socket_dir, "-j", "2",
                         timeout=300, cwd=upgraded.directory)
            with upgraded:
                with upgraded.connect(dbname="orig") as conn:
                    assert value(conn, "SELECT dgen.is_armed()") is False
                    n = value(conn, "SELECT dgen.state('m/endless')")
                    assert n > 0 and value(conn, "SELECT count(*) FROM done") == 12
                    conn.execute("SELECT dgen.adopt()")
                    wait_for(lambda: value(conn, "SELECT dgen.state('m/endless')") > n)
                    assert value(conn, "SELECT dgen.call('m/0', '{}', request_key => 'k0')") == 1
                    assert value(conn, "SELECT dgen.call('m/0', '{}')") == 10
                    assert value(conn, "SELECT server FROM m.servers WHERE attributes->>'n' = '10' AND key = '0'") == "m/0"
                    assert value(conn, "SELECT count(*) FROM dgen.history('m/0')") > 10
                    conn.execute("DROP EXTENSION dgen CASCADE")
    finally:
        new.cleanup()


# ------------------------------------------------------------ databases that are closed

def test_closed_and_template_databases(cluster):
    """Who may not be connected to is not worked in, and the log is quiet;
    a template is a database like any other, until it is copied."""
    cluster.configure({"dgen.worker_idle_timeout": "1s"})
    cluster.restart()
    cluster.psql("CREATE DATABASE d")
    cluster.psql("CREATE EXTENSION dgen;" + MODULE + CREATE, dbname="d")
    with cluster.connect() as admin:
        with cluster.connect(dbname="d") as conn:
            conn.execute("SELECT dgen.cast('m/1', '{\"do\": \"endless\"}')")
            wait_for(lambda: workers(admin, "d") >= 1)
            conn.execute("SELECT dgen.send_after('m/2', '{\"n\": 1}', '3 s')")
        admin.execute("ALTER DATABASE d ALLOW_CONNECTIONS false")
        cluster.log_mark()
        # those that are there leave, and no other comes
        wait_for(lambda: value(admin, "SELECT count(*) FROM pg_stat_activity WHERE datname = 'd'") == 0, PROMPT)
        time.sleep(2)
        assert cluster.log_since_mark().count("not currently accepting connections") <= 1
        assert value(admin, "SELECT count(*) FROM pg_stat_activity WHERE datname = 'd'") == 0
        prompt(admin, "ALTER DATABASE d RENAME TO e")
        prompt(admin, "CREATE DATABASE f TEMPLATE e")
        admin.execute("ALTER DATABASE e ALLOW_CONNECTIONS true IS_TEMPLATE true")
        # it needs nobody who calls, nor does it after a restart
        for restart in False, True:
            if restart:
                cluster.restart()
            with cluster.connect(dbname="e") as conn:
                before = value(conn, "SELECT dgen.state('m/1')")
                if not restart:
                    assert value(conn, "SELECT dgen.call('m/3', '{}', timeout => '30 s')") == 1
                wait_for(lambda: value(conn, "SELECT dgen.state('m/1')") > before, 90)
        with cluster.connect(dbname="e") as conn:
            wait_for(lambda: value(conn, "SELECT count(*) FROM done") == 1)
    with cluster.connect() as admin:
        prompt(admin, "CREATE DATABASE g TEMPLATE e")
        with cluster.connect(dbname="g") as conn:
            assert value(conn, "SELECT dgen.is_armed()") is False
        admin.execute("ALTER DATABASE e IS_TEMPLATE false")
        for name in "e", "f", "g":
            prompt(admin, "DROP DATABASE " + name)


# ------------------------------------------------------------ the extension

def test_schema_that_is_there(cluster):
    """CREATE EXTENSION where the schema has what is the extension's, or
    somebody else's: all or nothing."""
    cluster.psql("CREATE SCHEMA dgen; CREATE TABLE dgen.message (a int)")
    with cluster.connect() as conn:
        assert sqlstate(conn, "CREATE EXTENSION dgen") is not None
        assert value(conn, "SELECT count(*) FROM pg_class WHERE relnamespace = 'dgen'::regnamespace AND relkind = 'r'") == 1
        # a table of that name, and no extension, is nothing to any process
        cluster.log_mark()
        cluster.restart()
    time.sleep(1)
    assert not cluster.processes("dgen (worker|keeper)")
    assert "ERROR" not in cluster.log_since_mark()
    cluster.psql("DROP SCHEMA dgen CASCADE; CREATE EXTENSION dgen;" + MODULE + CREATE)
    with cluster.connect() as conn:
        assert value(conn, "SELECT dgen.call('m/1', '{}')") == 1


def test_drop_extension_under_load(cluster):
    """While calls wait, handlers run and there are many servers: prompt, and
    every caller is told."""
    # calls that are begun anew may sleep again, each in a worker of its own
    cluster.configure({"dgen.max_workers": 12, "max_worker_processes": 20})
    cluster.restart()
    cluster.psql("CREATE EXTENSION dgen;" + MODULE + CREATE)
    answers = []

    def caller(n):
        with cluster.connect() as conn:
            answers.append(sqlstate(conn, "SELECT dgen.call('m/%d', '{\"do\": \"sleep\"}', timeout => '50 s')" % (n % 6)))
    with cluster.connect() as conn:
        conn.execute("SELECT dgen.cast('m/s' || n, '{\"n\": 1}') FROM generate_series(1, 5000) n")
        wait_for(lambda: value(conn, "SELECT count(*) FROM done") == 5000)
        for how in "ROLLBACK", "ROLLBACK TO a", "COMMIT":
            threads = [threading.Thread(target=caller, args=(n,), daemon=True) for n in range(12)]
            del answers[:]
            for t in threads:
                t.start()
            wait_for(lambda: value(conn, "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'") >= 2)
            conn.execute("BEGIN")
            conn.execute("SAVEPOINT a")
            prompt(conn, "DROP EXTENSION dgen")
            conn.execute(how)
            if how == "ROLLBACK TO a":
                conn.execute("COMMIT")
            if how != "COMMIT":
                # nothing is lost; the calls run again, and are given up
                assert value(conn, "SELECT dgen.call('m/s1', '{}', timeout => '30 s')") > 1
                conn.execute("SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE query LIKE 'SELECT dgen.call(%sleep%'"
                             " AND backend_type = 'client backend'")
            for t in threads:
                t.join(60)
                assert not t.is_alive(), "a caller still waits"
            assert len(answers) == 12 and None not in answers, answers
            assert set(answers) <= {"57014", "OT001", "OT002", "OT015", "OT017", "OT004", "OT008", "OT020", "42P01", "3F000", "42883"}, answers
    no_processes(cluster)


# ------------------------------------------------------------ owners

def test_owners_that_go(cluster):
    """REASSIGN OWNED, DROP OWNED, DROP ROLE and NOLOGIN while messages come."""
    cluster.psql("CREATE EXTENSION dgen; CREATE ROLE old LOGIN; CREATE ROLE new LOGIN; GRANT old, new TO postgres;"
                 "GRANT CREATE ON SCHEMA public TO old, new; CREATE SCHEMA m AUTHORIZATION old;"
                 "CREATE TABLE done (seq bigserial, server text, n int); GRANT ALL ON done, done_seq_seq TO old, new")
    functions = MODULE[MODULE.index("CREATE FUNCTION m.init"):]
    cluster.psql("SET ROLE old;" + functions + CREATE)
    with cluster.connect() as conn:
        assert value(conn, "SELECT dgen.call('m/1', '{}')") == 1
        conn.execute("SELECT dgen.cast('m/1', '{\"do\": \"endless\"}')")
        wait_for(lambda: value(conn, "SELECT dgen.state('m/1')") > 3)
        # a new owner has not agreed to it
        conn.execute("REASSIGN OWNED BY old TO new")
        assert error(conn, "SELECT dgen.call('m/1', '{}', timeout => '5 s')").sqlstate in ("55000", "OT001")
        assert value(conn, "SELECT fault IS NOT NULL FROM dgen.modules") is True
        n = value(conn, "SELECT dgen.state('m/1')")
        conn.execute("SELECT dgen.alter_module('m')")
        wait_for(lambda: value(conn, "SELECT dgen.state('m/1')") > n + 3)
        wait_for(lambda: value(conn, "SELECT count(*) FROM pg_stat_activity WHERE usename = 'new'") >= 1)
        # the old one goes, whether its worker is idle still or not
        conn.execute("DROP OWNED BY old")
        prompt(conn, "DROP ROLE old")
        assert value(conn, "SELECT dgen.call('m/1', '{}')") > n
        # no login: before 17 no worker, once those that are there have gone
        conn.execute("ALTER ROLE new NOLOGIN")
        conn.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'dgen worker'")
        n = value(conn, "SELECT dgen.state('m/1')")
        if value(conn, "SELECT current_setting('server_version_num')::int") >= 170000:
            wait_for(lambda: value(conn, "SELECT dgen.state('m/1')") > n + 3)
        else:
            cluster.wait_for_log("not permitted to log in")
            e = error(conn, "SELECT dgen.call('m/2', '{}', timeout => '3 s')")
            assert e.sqlstate == "OT015" and "end as they start" in e.diag.message_detail, e
            assert e.diag.message_hint.startswith("SELECT dgen.why('m/2')"), e.diag.message_hint
            time.sleep(2)
            assert cluster.log_text().count("not permitted to log in") < 10
            conn.execute("ALTER ROLE new LOGIN")
            wait_for(lambda: value(conn, "SELECT dgen.state('m/1')") > n + 3, 60)
        # the functions go with their owner; the states wait for others
        conn.execute("DROP OWNED BY new")
        assert error(conn, "SELECT dgen.call('m/1', '{}', timeout => '5 s')").sqlstate in ("55000", "OT005", "OT001", "42501")
        assert value(conn, "SELECT dgen.state('m/1')") > n
        conn.execute("DROP SCHEMA IF EXISTS m CASCADE")
        prompt(conn, "DROP ROLE new")
        cluster.psql("CREATE ROLE third LOGIN; CREATE SCHEMA m AUTHORIZATION third; GRANT ALL ON done, done_seq_seq TO third;"
                     "GRANT third TO postgres; SET ROLE third;" + functions)
        n = value(conn, "SELECT dgen.state('m/1')")
        conn.execute("SELECT dgen.alter_module('m')")
        wait_for(lambda: value(conn, "SELECT dgen.state('m/1')") > n + 3)
        conn.execute("SELECT dgen.delete('m/1')")


# ------------------------------------------------------------ PREPARE TRANSACTION

def test_prepared(cluster):
    """What was sent is sent when it is committed, also after a restart or a
    crash; what waits for an answer of its own transaction is told."""
    cluster.psql("CREATE EXTENSION dgen;" + MODULE + CREATE)
    with cluster.connect() as conn:
        def prepared(name, *statements):
            conn.execute("BEGIN")
            for statement in statements:
                conn.execute(statement)
            state = sqlstate(conn, "PREPARE TRANSACTION '%s'" % name)
            if state is not None:
                conn.execute("ROLLBACK")
            return state
        assert value(conn, "SELECT dgen.call('m/0', '{}')") == 1
        assert prepared("cast", "SELECT dgen.cast('m/1', '{\"n\": 1}')",
                        "SELECT dgen.cast('m/1', '{\"n\": 2}', delay => '10 ms')",
                        "SELECT dgen.send_after('m/1', '{\"n\": 3}', '10 ms', 'name')") is None
        assert prepared("request", "SELECT dgen.send_request('m/2', '{\"n\": 4}')") is None
        # a call has happened, whatever becomes of its caller
        assert prepared("call", "SELECT dgen.call('m/3', '{\"n\": 5}')", "SELECT dgen.cast('m/3', '{\"n\": 6}')") is None
        assert prepared("undone", "SELECT dgen.cast('m/4', '{\"n\": 7}')") is None
        # a lease goes over to the prepared transaction
        assert prepared("invoke", "SELECT dgen.invoke('m/5', '{\"n\": 8}')") is None
        assert error(conn, "SELECT dgen.call('m/5', '{}', timeout => '300 ms')").sqlstate == "OT001"
        later = value(conn, "SELECT dgen.cast('m/1', '{\"n\": 9}')")
        assert later > 0
        cluster.restart()
    with cluster.connect() as conn:
        assert error(conn, "SELECT dgen.call('m/5', '{}', timeout => '1 s')").sqlstate == "OT001"
        assert value(conn, "SELECT dgen.call('m/0', '{}', timeout => '30 s')") == 2
        conn.execute("COMMIT PREPARED 'cast'")
    cluster.kill9()
    cluster.start()
    with cluster.connect() as conn:
        conn.execute("COMMIT PREPARED 'request'")
        conn.execute("COMMIT PREPARED 'call'")
        conn.execute("ROLLBACK PREPARED 'undone'")
        conn.execute("COMMIT PREPARED 'invoke'")
        assert value(conn, "SELECT dgen.call('m/5', '{}', timeout => '30 s')") == 2
        # the keeper finds within a minute what nobody could tell it
        wait_for(lambda: value(conn, "SELECT count(DISTINCT n) FROM done") == 8, 100)
        wait_idle(conn, 60)
        assert value(conn, "SELECT array_agg(n ORDER BY n) FROM done") == [1, 2, 3, 4, 5, 6, 8, 9]
        assert_nothing_left(conn)


# ------------------------------------------------------------ no room for processes

def test_room_for_processes_comes_back(cluster):
    """One line in the log while there is no slot, and work as soon as there is."""
    cluster.configure(max_worker_processes=5, **{"dgen.max_workers": 1})
    cluster.restart()
    # logical replication's launcher, ours, two keepers; one slot is for all
    cluster.psql("CREATE DATABASE d; CREATE DATABASE e")
    for name in "d", "e":
        cluster.psql("CREATE EXTENSION dgen;" + MODULE + CREATE, dbname=name)
    with cluster.connect() as admin, cluster.connect(dbname="d") as d, cluster.connect(dbname="e") as e:
        cluster.log_mark()
        d.execute("SELECT dgen.cast('m/1', '{\"do\": \"sleep\"}')")
        wait_for(lambda: workers(admin, "d") == 1)
        e.execute("SELECT dgen.cast('m/1', '{\"n\": 1}')")
        assert error(e, "SELECT dgen.call('m/2', '{}', timeout => '30 s')").sqlstate == "OT015"
        cluster.wait_for_log("out of background worker slots")
        d.execute("SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE backend_type = 'dgen worker'")
        d.execute("SELECT dgen.suspend('m/1')")
        d.close()
        prompt(admin, "DROP DATABASE d WITH (FORCE)")
        wait_for(lambda: value(e, "SELECT count(*) FROM done") == 1, 30)
        assert value(e, "SELECT dgen.call('m/2', '{}', timeout => '30 s')") == 1
        assert cluster.log_since_mark().count("out of background worker slots") == 1
