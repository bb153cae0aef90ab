"""Databases, roles and servers as others set them up: settings, libraries,
encodings, and tables that are moved while servers run."""

import os
import tempfile
import threading

import psycopg
import pytest

from build import give_to_server_user
from cluster import wait_for
from common import assert_nothing_left, in_threads, value, wait_idle

MODULE = """
CREATE SCHEMA m AUTHORIZATION owner;
GRANT USAGE ON SCHEMA m TO app;
SET ROLE owner;
CREATE TABLE m.done (what text);
CREATE FUNCTION m.init(args jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT '0'::jsonb $$;
CREATE FUNCTION m.handle_call(request jsonb, INOUT state jsonb, OUT reply jsonb) LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO m.done VALUES ('call');
  state := to_jsonb(state::int + 1);
  reply := to_jsonb(current_setting(coalesce(request ->> 'setting', 'lc_messages')));
END $$;
CREATE FUNCTION m.handle_cast(message jsonb, INOUT state jsonb) LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO m.done VALUES ('cast');
  state := to_jsonb(state::int + 1);
  PERFORM dgen.after_commit('m.effect', message);
END $$;
CREATE FUNCTION m.handle_info(message jsonb, INOUT state jsonb) LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO m.done VALUES ('info');
  state := to_jsonb(state::int + 1);
END $$;
CREATE FUNCTION m.effect(args jsonb, effect_id bigint) RETURNS void LANGUAGE sql AS $$
  INSERT INTO m.done VALUES ('effect') $$;
CREATE FUNCTION m.attributes(state jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT jsonb_build_object('n', state) $$;
SELECT dgen.create_module('m', history => '5');
RESET ROLE;
"""


@pytest.fixture
def shop(cluster):
    """A database with a module of a role that is no superuser."""
    cluster.psql("CREATE ROLE owner LOGIN; CREATE ROLE app LOGIN; CREATE DATABASE shop")
    cluster.psql("CREATE EXTENSION dgen;" + MODULE, dbname="shop")
    return cluster


def fresh_processes(cluster):
    """Workers and keepers whose sessions begin with the settings of now."""
    with cluster.connect() as conn:
        conn.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                     " WHERE backend_type IN ('dgen worker', 'dgen keeper')")
        wait_for(lambda: value(conn, "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'dgen worker'") == 0)


def works(cluster, user="app"):
    """Something of each kind, as a client whose own settings are good."""
    with cluster.connect(dbname="shop", options="-c role=none -c statement_timeout=0") as root:
        before = dict(root.execute("SELECT what, count(*) FROM m.done GROUP BY 1").fetchall())
        with cluster.connect(dbname="shop", user=user, options="-c default_transaction_read_only=off"
                             " -c statement_timeout=0 -c lock_timeout=0") as conn:
            conn.execute("SELECT dgen.call('m/1', '{}')")
            conn.execute("SELECT dgen.cast('m/1', '{}'), dgen.send_after('m/1', '1', '1 ms')")
            request = value(conn, "SELECT dgen.send_request('m/2', '{}')")
            assert value(conn, "SELECT dgen.wait_response(%s)", request) is not None
            with conn.transaction():
                conn.execute("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE")
                conn.execute("SELECT dgen.invoke('m/3', '{}')")
        wait_idle(root)
        wait_for(lambda: dict(root.execute("SELECT what, count(*) FROM m.done GROUP BY 1").fetchall()) ==
                 {"call": before.get("call", 0) + 3, "cast": before.get("cast", 0) + 1,
                  "info": before.get("info", 0) + 1, "effect": before.get("effect", 0) + 1})


# ------------------------------------------------------------ settings

SETTINGS = (
    ("default_transaction_read_only = on",),
    ("default_transaction_isolation = 'repeatable read'", "default_transaction_deferrable = on", "search_path = ''",
     "row_security = off", "client_encoding = 'LATIN1'", "IntervalStyle = 'iso_8601'", "DateStyle = 'German'",
     "standard_conforming_strings = off", "statement_timeout = '1ms'", "enable_indexscan = off", "jit = on"),
    ("default_transaction_isolation = 'serializable'", "search_path = 'nowhere, \"$user\"'", "role = 'app'"))


@pytest.mark.parametrize("whose", ("DATABASE shop", "ROLE owner"))
def test_settings_of_databases_and_roles(shop, whose):
    with shop.connect() as admin:
        for settings in SETTINGS:
            for setting in settings:
                admin.execute("ALTER %s SET %s" % (whose, setting))
            fresh_processes(shop)
            try:
                works(shop)
            except AssertionError as e:
                raise AssertionError("%s %s: %s" % (whose, settings, e)) from e
            admin.execute("ALTER %s RESET ALL" % whose)


def test_timeouts_of_all(shop):
    """Those of sessions are not the workers'; lock_timeout is, and ends nothing for good."""
    shop.configure(statement_timeout="100ms", idle_in_transaction_session_timeout="100ms",
                   idle_session_timeout="100ms", lock_timeout="100ms", log_statement="all",
                   log_min_duration_statement=0)
    shop.restart()
    with shop.connect(dbname="shop", options="-c statement_timeout=0 -c idle_session_timeout=0"
                      " -c idle_in_transaction_session_timeout=0 -c lock_timeout=0") as conn:
        for name, there in (("statement_timeout", "0"), ("idle_in_transaction_session_timeout", "0"),
                            ("lock_timeout", "100ms")):
            assert value(conn, "SELECT dgen.call('m/1', jsonb_build_object('setting', %s::text))", name) == there
        shop.log_mark()
        with conn.transaction():
            conn.execute("LOCK TABLE dgen.server")
            with shop.connect(dbname="shop", user="app", options="-c idle_session_timeout=0") as app:
                app.execute("SELECT dgen.cast('m/1', '{}')")
            shop.wait_for_log("could not serve a batch: canceling statement due to lock timeout")
        wait_idle(conn)
        assert value(conn, "SELECT dgen.state('m/1')") == 4
        assert_nothing_left(conn)


def test_log_lock_waits(shop):
    """It tells once of a handler that waits, and not each second of its caller."""
    shop.configure(log_lock_waits="on", deadlock_timeout="100ms")
    shop.restart()
    with shop.connect(dbname="shop") as conn:
        shop.log_mark()
        with conn.transaction():
            conn.execute("LOCK TABLE m.done")
            with shop.connect(dbname="shop", user="app") as app:
                with pytest.raises(psycopg.Error, match="timed out"):
                    app.execute("SELECT dgen.call('m/1', '{}', timeout => '1 s')")
        waits = [line for line in shop.log_since_mark().splitlines() if "still waiting" in line]
        assert len(waits) == 1 and "RowExclusiveLock on relation" in waits[0], waits
        works(shop)


# ------------------------------------------------------------ other libraries

@pytest.mark.parametrize("libraries", ("dgen,auto_explain,pg_stat_statements", "pg_stat_statements,auto_explain,dgen"))
def test_other_libraries(shop, libraries):
    """What hooks into the executor sees what handlers do."""
    if not os.path.exists(os.path.join(shop.build.ask("pkglibdir"), "pg_stat_statements.so")):
        pytest.skip("no contrib modules")
    shop.configure({"shared_preload_libraries": libraries, "auto_explain.log_min_duration": 0,
                    "auto_explain.log_analyze": True, "auto_explain.log_nested_statements": True,
                    "pg_stat_statements.track": "all", "track_functions": "all", "jit": True, "jit_above_cost": 0})
    shop.restart()
    shop.psql("CREATE EXTENSION pg_stat_statements", dbname="shop")
    works(shop)
    with shop.connect(dbname="shop") as conn:
        assert value(conn, "SELECT sum(calls) FROM pg_stat_statements WHERE query LIKE 'INSERT INTO m.done%%'") == 6
        wait_for(lambda: value(conn, "SELECT sum(calls) FROM pg_stat_user_functions WHERE funcname = 'handle_call'") == 3)
    assert "Query Text: INSERT INTO m.done" in shop.log_text()


# ------------------------------------------------------------ encodings

@pytest.mark.parametrize("options", ("ENCODING 'LATIN1'", "ENCODING 'SQL_ASCII'", "ENCODING 'EUC_JP'",
                                     "ENCODING 'UTF8' LOCALE_PROVIDER icu ICU_LOCALE 'de-AT'"))
def test_encodings(cluster, options):
    with cluster.connect() as conn:
        try:
            conn.execute("CREATE DATABASE d TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C' " + options)
        except psycopg.errors.FeatureNotSupported as e:
            pytest.skip(str(e))
    cluster.psql("""CREATE EXTENSION dgen; CREATE SCHEMA m; SET client_encoding = 'UTF8';
        CREATE FUNCTION m.handle_call(request jsonb, INOUT state jsonb, OUT reply jsonb) LANGUAGE plpgsql AS $$
        BEGIN
          IF request ? 'raise' THEN RAISE EXCEPTION '%', request ->> 'raise'; END IF;
          state := state || request;
          reply := jsonb_build_array(dgen.self(), dgen.context(), state);
        END $$;
        CREATE FUNCTION m.handle_cast(message jsonb, INOUT state jsonb) LANGUAGE plpgsql AS $$
        BEGIN
          RAISE EXCEPTION '%', message ->> 'raise';
        END $$;
        SELECT dgen.create_module('m', max_attempts => 1)""", dbname="d")
    with cluster.connect(dbname="d", client_encoding="UTF8") as conn:
        conn.execute("SET client_encoding = 'UTF8'")
        conn.execute("SET dgen.context = '{\"à\": \"ç\"}'")
        assert value(conn, "SELECT dgen.call('m/é', '{\"ö\": \"ü\"}')::text") == '["m/é", {"à": "ç"}, {"ö": "ü"}]'
        with pytest.raises(psycopg.errors.RaiseException) as raised:
            conn.execute("SELECT dgen.call('m/é', '{\"raise\": \"ñ\"}')")
        assert raised.value.diag.message_primary == "ñ"
        conn.execute("SELECT dgen.cast('m/é', '{\"raise\": \"ñ\"}')")
        wait_idle(conn)
        assert conn.execute("SELECT server, error ->> 'message' FROM dgen.dead_letters").fetchall() == [("m/é", "ñ")]
        conn.execute("SELECT dgen.register('ø', 'm/é')")
        assert value(conn, "SELECT dgen.whereis('ø')") == "m/é"
        assert value(conn, "SELECT dgen.call('ø', '{}')::text") == '["m/é", {"à": "ç"}, {"ö": "ü"}]'


# ------------------------------------------------------------ tables that are moved

def test_tables_that_are_rewritten(shop):
    """VACUUM FULL, REINDEX, CLUSTER and SET TABLESPACE of all of dgen's tables, and nothing is lost."""
    place = tempfile.mkdtemp(dir=shop.directory)
    give_to_server_user(place)
    shop.psql("CREATE TABLESPACE place LOCATION '%s'" % place)
    stop = threading.Event()
    sent = []

    def send(number):
        with shop.connect(dbname="shop", user="app") as conn:
            n = 0
            while not stop.is_set():
                conn.execute("SELECT dgen.call('m/%d', '{}'), dgen.cast('m/%d', '{}'), dgen.send_after('m/%d', '1', '5 ms')"
                             % ((number,) * 3))
                n += 1
            sent.append(n)

    def rewrite():
        try:
            rewrite_all()
        finally:
            stop.set()

    def rewrite_all():
        with shop.connect(dbname="shop") as conn:
            tables = conn.execute("SELECT c.oid::regclass::text, (SELECT indexrelid::regclass::text FROM pg_index"
                                  " WHERE indrelid = c.oid AND indisprimary) FROM pg_class c"
                                  " WHERE relnamespace = 'dgen'::regnamespace AND relkind = 'r' ORDER BY 1").fetchall()
            assert len(tables) > 10
            for table, key in tables:
                name = key and key.split(".")[-1]
                for command in ("VACUUM FULL %s" % table, "REINDEX TABLE CONCURRENTLY %s" % table,
                                "REINDEX TABLE %s" % table, key and "CLUSTER %s USING %s" % (table, name),
                                "ALTER TABLE %s SET TABLESPACE place" % table,
                                "ALTER TABLE %s SET TABLESPACE pg_default" % table):
                    if command:
                        conn.execute(command)

    in_threads([rewrite] + [lambda i=i: send(i) for i in range(3)])
    with shop.connect(dbname="shop") as conn:
        # what is delayed waits for nobody
        wait_for(lambda: value(conn, "SELECT count(*) FROM dgen.delayed") == 0)
        wait_idle(conn)
        assert dict(conn.execute("SELECT what, count(*) FROM m.done GROUP BY 1").fetchall()) == \
            dict.fromkeys(("call", "cast", "info", "effect"), sum(sent))
        assert value(conn, "SELECT sum(dgen.state(server)::int) FROM dgen.servers") == 3 * sum(sent)
        assert_nothing_left(conn)
