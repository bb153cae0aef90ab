"""Databases and extensions that come and go: dumps, copies, DROP DATABASE and
its kin, CREATE and DROP EXTENSION, shutdowns, DDL on dgen's own tables."""

import os
import threading
import time

import psycopg
import pytest

from build import give_to_server_user
from cluster import PORT, Cluster, wait_for
from common import assert_nothing_left, in_threads, value, wait_idle

PROMPT = 10     # seconds

# The state counts; what is handled is noted in order.
MODULE = """
CREATE TABLE done (seq bigserial, server text, message jsonb);
CREATE TABLE flag (name text);
CREATE SCHEMA m;
CREATE FUNCTION m.act(message jsonb, state jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
    IF message->>'do' = 'raise' AND NOT EXISTS (SELECT FROM public.flag WHERE name = 'heal') THEN
        RAISE 'as was asked for';
    ELSIF message->>'do' = 'sleep' THEN
        PERFORM pg_sleep(60);
    ELSIF message->>'do' = 'endless' AND NOT EXISTS (SELECT FROM public.flag WHERE name = 'enough') THEN
        PERFORM dgen.cast(dgen.self(), message, delay => '1 ms');
        RETURN to_jsonb(coalesce(state #>> '{}', '0')::int + 1);
    END IF;
    INSERT INTO public.done (server, message) VALUES (dgen.self(), message);
    RETURN to_jsonb(state::int + 1);
END $$;
CREATE FUNCTION m.init(args jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT '0'::jsonb $$;
CREATE FUNCTION m.handle_call(request jsonb, INOUT state jsonb, OUT reply jsonb)
LANGUAGE plpgsql AS $$ BEGIN state := m.act(request, state); reply := state; END $$;
CREATE FUNCTION m.handle_cast(message jsonb, state jsonb) RETURNS jsonb
LANGUAGE plpgsql AS $$ BEGIN RETURN m.act(message, state); END $$;
SELECT dgen.create_module('m', isolation => 'read committed', backoff_initial => '1 h', backoff_max => '1 h');
"""
TABLES = ("module", "server", "message", "delayed", "attempt", "letter", "reply", "dedup",
          "tombstone")


def contents(conn):
    return {table: value(conn, "SELECT string_agg(t::text, E'\\n' ORDER BY t::text) FROM dgen.%s t" % table)
            for table in TABLES}


def sqlstate(conn, query, *parameters):
    try:
        conn.execute(query, parameters or None)
    except psycopg.Error as e:
        return e.sqlstate
    return None


def switch(cluster, on):
    cluster.configure({"dgen.enabled": on})
    cluster.reload()
    with cluster.connect() as conn:
        wait_for(lambda: value(conn, "SHOW dgen.enabled") == ("on" if on else "off"))
        if not on:
            # those that run see it, too
            wait_for(lambda: value(conn, "SELECT count(*) FROM pg_stat_activity WHERE "
                                         "backend_type = 'dgen worker' AND state = 'active'") == 0)


def prompt(conn, statement, expect=None):
    """Runs it in short time; expect: the SQLSTATE that it fails with."""
    begin = time.monotonic()
    assert sqlstate(conn, statement) == expect, statement
    took = time.monotonic() - begin
    assert took < PROMPT, "%s took %.1f s" % (statement, took)


# ------------------------------------------------------------ copies

def fill(cluster):
    """A database orig that has something of everything, with dgen off."""
    cluster.psql("CREATE DATABASE orig")
    cluster.psql("CREATE EXTENSION dgen;" + MODULE, dbname="orig")
    with cluster.connect(dbname="orig") as conn:
        for n in range(30):
            conn.execute("SELECT dgen.cast('m/%d', '%d')" % (n % 3, n))
        assert value(conn, "SELECT dgen.call('m/0', '{}', request_key => 'k')") == 11
        conn.execute("SELECT dgen.cast('m/1', '{\"do\": \"once\"}', dedup_key => 'd')")
        conn.execute("SELECT dgen.cast('m/dead', '{\"do\": \"raise\"}', max_attempts => 1)")
        conn.execute("SELECT dgen.cast('m/bad', '{\"do\": \"raise\"}')")
        request = value(conn, "SELECT dgen.send_request('m/2', '\"ask\"')")
        assert value(conn, "SELECT dgen.wait_response(%s)", request) == 11
        wait_for(lambda: value(conn, "SELECT attempts FROM dgen.attempt") == 1)
        wait_for(lambda: value(conn, "SELECT count(*) FROM dgen.letter") == 1)
        conn.execute("SELECT dgen.suspend('m/suspended')")
        wait_for(lambda: value(conn, "SELECT count(*) FROM dgen.message") == 1)
        switch(cluster, False)
        for n in range(30):
            conn.execute("SELECT dgen.cast('m/%d', '{\"late\": %d}')" % (n % 3, n))
        conn.execute("SELECT dgen.cast('m/1', '{\"do\": \"due\"}', delay => '100 ms')")
        conn.execute("SELECT dgen.cast('m/1', '{\"do\": \"far\"}', delay => '1 day')")
        return contents(conn), request


def check_unadopted(conn, before):
    """Nothing runs, and all is there."""
    assert contents(conn) == before
    assert value(conn, "SELECT dgen.is_armed()") is False
    with pytest.raises(psycopg.Error) as raised:
        conn.execute("SELECT dgen.call('m/0', '{}')")
    assert raised.value.sqlstate == "OT017"
    assert "dgen.adopt()" in raised.value.diag.message_hint
    assert sqlstate(conn, "SELECT dgen.invoke('m/0', '{}')") == "OT017"


def check_adopted(conn, request):
    """All is handled that was to be."""
    old = value(conn, """SELECT max(id) FROM (SELECT id FROM dgen.message UNION ALL SELECT id FROM dgen.delayed
                         UNION ALL SELECT id FROM dgen.letter UNION ALL SELECT id FROM dgen.reply) i""")
    conn.execute("SELECT dgen.adopt()")
    assert value(conn, "SELECT dgen.is_armed()")
    ids = [value(conn, "SELECT dgen.cast('m/%d', '{\"new\": %d}')" % (n % 3, n)) for n in range(30)]
    assert min(ids) > old and len(set(ids)) == 30
    # but for m/bad, whose next attempt is in an hour, and what is due tomorrow
    wait_for(lambda: value(conn, "SELECT count(*) FROM done WHERE message->>'do' = 'due'") == 1)
    wait_for(lambda: value(conn, "SELECT count(*) FROM dgen.message") == 1)
    for server in range(3):
        for word, of_it in (("late", 10), ("new", 10)):
            order = [n for n, in conn.execute(
                "SELECT (message->>%s)::int FROM done WHERE server = %s AND message ? %s ORDER BY seq",
                (word, "m/%d" % server, word))]
            assert order == list(range(server, 30, 3)), (server, word)
        # what its state says
        assert value(conn, "SELECT dgen.state('m/%d')" % server) == \
            value(conn, "SELECT count(*) FROM done WHERE server = 'm/%d'" % server)
    # what was known of replies, duplicates, failures
    n = value(conn, "SELECT dgen.state('m/0')")
    assert value(conn, "SELECT dgen.call('m/0', '{}', request_key => 'k')") == 11
    assert value(conn, "SELECT dgen.state('m/0')") == n
    conn.execute("SELECT dgen.cast('m/1', '{\"do\": \"once\"}', dedup_key => 'd')")
    assert value(conn, "SELECT dgen.wait_response(%s)", request) == 11
    assert value(conn, "SELECT attempts FROM dgen.attempt") == 1
    assert value(conn, "SELECT dgen.call('m/0', '{}')") == n + 1
    assert value(conn, "SELECT count(*) FROM done WHERE message->>'do' = 'once'") == 1
    assert value(conn, "SELECT count(*) FROM dgen.delayed") == 1
    conn.execute("SELECT dgen.resume('m/suspended')")
    conn.execute("INSERT INTO flag VALUES ('heal')")
    assert value(conn, "SELECT dgen.requeue_all(module => 'm')") == 1
    wait_for(lambda: value(conn, "SELECT count(*) FROM done WHERE server = 'm/dead'") == 1)
    assert value(conn, "SELECT dgen.call('m/suspended', '{}')") == 1
    assert value(conn, "SELECT count(*) FROM dgen.message") == 1


def dump(cluster, *options):
    path = os.path.join(cluster.directory, "dump")
    cluster.run("pg_dump", "-h", cluster.socket_dir, "-p", str(PORT), "-U", "postgres", "-f", path,
                *options, "orig")
    return path


def test_copies(cluster):
    """One by dump and restore, one by TEMPLATE, and a restore over itself."""
    before, request = fill(cluster)
    path = dump(cluster)
    with cluster.connect() as conn:
        conn.execute("CREATE DATABASE restored")
        prompt(conn, "CREATE DATABASE copied TEMPLATE orig")
    cluster.psql_file(path, dbname="restored")
    switch(cluster, True)
    # the original goes on, so there was the time
    with cluster.connect(dbname="orig") as conn:
        wait_for(lambda: value(conn, "SELECT count(*) FROM dgen.message") == 1)
        wait_for(lambda: value(conn, "SELECT count(*) FROM dgen.delayed") == 1)
        assert value(conn, "SELECT count(*) FROM done WHERE message ? 'late'") == 30
    for name in "restored", "copied":
        with cluster.connect(dbname=name) as conn:
            check_unadopted(conn, before)
            check_adopted(conn, request)
    with cluster.connect(dbname="orig") as conn:
        assert value(conn, "SELECT dgen.is_armed()")
        assert value(conn, "SELECT count(*) FROM done WHERE message ? 'new'") == 0

    # and back: from the dump, over what the original has become
    with cluster.connect(dbname="orig") as conn:
        assert value(conn, "SELECT dgen.call('m/0', '{}')") > 11
    cluster.psql_file(clean(cluster), dbname="orig")
    with cluster.connect(dbname="orig") as conn:
        assert value(conn, "SELECT dgen.is_armed()") is False
        assert value(conn, "SELECT count(*) FROM done WHERE message ? 'late'") == 30
        n = value(conn, "SELECT dgen.state('m/0')")
        conn.execute("SELECT dgen.adopt()")
        assert value(conn, "SELECT dgen.call('m/0', '{}')") == n + 1
        assert value(conn, "SELECT attempts FROM dgen.attempt") == 1


def clean(cluster):
    return dump(cluster, "--clean", "--if-exists")


def test_restore_over_itself(cluster):
    """With mail in the mailbox and workers about."""
    before, request = fill(cluster)
    path = clean(cluster)
    switch(cluster, True)
    with cluster.connect(dbname="orig") as conn:
        wait_for(lambda: value(conn, "SELECT count(*) FROM done WHERE message ? 'late'") == 30)
        assert value(conn, "SELECT dgen.call('m/1', '{}')") > 20
    for _ in range(2):
        cluster.psql_file(path, dbname="orig")
        with cluster.connect(dbname="orig") as conn:
            check_unadopted(conn, before)
            check_adopted(conn, request)


# ------------------------------------------------------------ commands on databases

@pytest.mark.seconds(180)
def test_commands_on_a_busy_database(cluster):
    cluster.psql("CREATE ROLE owner LOGIN CREATEDB; CREATE ROLE other LOGIN CREATEDB;"
                 "CREATE ROLE second LOGIN; CREATE DATABASE d OWNER owner")
    cluster.psql("CREATE EXTENSION dgen", dbname="d")
    cluster.psql("GRANT CREATE ON SCHEMA public TO owner", dbname="d")
    cluster.psql(MODULE + "SELECT dgen.alter_module('m', backoff_initial => '20 ms', backoff_factor => 1,"
                 " max_attempts => 1000)", dbname="d", user="owner")
    # workers of another role, too, whom the database's owner may not terminate
    cluster.psql("CREATE SCHEMA second AUTHORIZATION second; SET ROLE second;"
                 "CREATE FUNCTION second.handle_call(request jsonb, INOUT state jsonb, OUT reply jsonb) "
                 "LANGUAGE sql AS $$ SELECT state, request $$; SELECT dgen.create_module('second')", dbname="d")
    space = os.path.join(cluster.directory, "space")
    os.mkdir(space)
    give_to_server_user(space)
    cluster.psql("CREATE TABLESPACE space LOCATION '%s'; GRANT CREATE ON TABLESPACE space TO owner" % space)

    with cluster.connect(dbname="d") as conn:
        for n in range(3):
            conn.execute("SELECT dgen.cast('m/%d', '{\"do\": \"endless\"}')" % n)
        conn.execute("SELECT dgen.cast('m/sleep', '{\"do\": \"sleep\"}')")

    def sum_of_states(conn):
        return value(conn, "SELECT coalesce(sum((state #>> '{}')::int), 0) FROM dgen.server WHERE server < 'm/3'")

    def goes_on(name):
        """It works, and then nobody is connected but dgen."""
        with cluster.connect(dbname=name) as conn:
            wait_for(lambda: value(conn, "SELECT count(*) FROM dgen.workers") >= 1)
            before = sum_of_states(conn)
            try:
                wait_for(lambda: sum_of_states(conn) > before + 5, 20, message="the work does not go on")
            except AssertionError:
                for query in ("SELECT * FROM dgen.workers", "SELECT * FROM dgen.messages",
                              "SELECT server, status, version, failing FROM dgen.server",
                              "SELECT pid, datname, backend_type, state, wait_event FROM pg_stat_activity"):
                    print(*conn.execute(query), sep="\n")
                raise
            assert value(conn, "SELECT dgen.call('second/1', '1')") == 1

    def pids():
        return {pid for pid, in super_.execute(
            "SELECT pid FROM pg_stat_activity WHERE datname IN ('d', 'e') AND "
            "backend_type IN ('dgen worker', 'dgen keeper')")}

    with cluster.connect(user="owner") as owner, cluster.connect(user="other") as other, \
            cluster.connect() as super_:
        goes_on("d")
        # who has no right to it stops nothing
        before = pids()
        assert len(before) >= 3
        for statement in ("DROP DATABASE d", "DROP DATABASE d WITH (FORCE)", "ALTER DATABASE d RENAME TO e",
                          "ALTER DATABASE d SET TABLESPACE space", "CREATE DATABASE e TEMPLATE d"):
            prompt(other, statement, expect="42501")
        assert before <= pids()
        # what fails lets them come back
        prompt(owner, "CREATE DATABASE postgres TEMPLATE d", expect="42P04")
        goes_on("d")
        prompt(owner, "ALTER DATABASE d RENAME TO postgres", expect="42P04")
        goes_on("d")
        with cluster.connect(dbname="d", user="owner"):
            prompt(owner, "DROP DATABASE d", expect="55006")
            prompt(owner, "ALTER DATABASE d RENAME TO e", expect="55006")
        goes_on("d")
        # rolled back
        owner.execute("BEGIN")
        prompt(owner, "ALTER DATABASE d RENAME TO e")
        owner.execute("ROLLBACK")
        goes_on("d")
        # done
        prompt(owner, "ALTER DATABASE d RENAME TO e")
        goes_on("e")
        prompt(owner, "ALTER DATABASE e SET TABLESPACE space")
        goes_on("e")
        prompt(owner, "CREATE DATABASE f TEMPLATE e")
        goes_on("e")
        prompt(owner, "ALTER DATABASE e RENAME TO d")
        with cluster.connect(dbname="f") as conn:
            assert value(conn, "SELECT dgen.is_armed()") is False
            conn.execute("SELECT dgen.adopt()")
        goes_on("f")
        goes_on("d")
        with cluster.connect(dbname="d", user="owner") as client:
            prompt(owner, "DROP DATABASE d WITH (FORCE)")
            with pytest.raises(psycopg.OperationalError):
                client.execute("SELECT 1")
        prompt(owner, "DROP DATABASE f")
        wait_for(lambda: not cluster.processes("dgen (worker|keeper)"), PROMPT)
        # a database of that name is not taken for the one that was
        cluster.psql("CREATE DATABASE d OWNER owner")
        cluster.psql("CREATE EXTENSION dgen;" + MODULE, dbname="d")
        with cluster.connect(dbname="d") as conn:
            assert value(conn, "SELECT dgen.call('m/0', '{}')") == 1


# ------------------------------------------------------------ the extension

def test_extension_comes_and_goes(cluster):
    """In one session, committed and rolled back, while another one calls."""
    functions = MODULE[MODULE.index("CREATE TABLE done"):MODULE.index("SELECT dgen.create_module")]
    create = "SELECT dgen.create_module('m')"
    cluster.psql(functions)
    stop = threading.Event()
    seen = {}       # by SQLSTATE the text of the first such error

    def caller():
        with cluster.connect() as other:
            while not stop.is_set():
                try:
                    other.execute("SELECT dgen.call('m/other', '{}', timeout => '2 s')")
                    seen.setdefault(None)
                except psycopg.Error as e:
                    seen.setdefault(e.sqlstate, str(e))

    def session(conn):
        for _ in range(3):
            conn.execute("BEGIN")
            conn.execute("CREATE EXTENSION dgen")
            conn.execute(create)
            conn.execute("ROLLBACK")
            assert sqlstate(conn, "SELECT dgen.call('m/1', '{}')") in ("3F000", "42883")
            prompt(conn, "CREATE EXTENSION dgen")
            conn.execute(create)
            assert value(conn, "SELECT dgen.call('m/1', '{}')") == 1
            for statements in (["DROP EXTENSION dgen"], ["DROP EXTENSION dgen", "CREATE EXTENSION dgen"],
                               ["DROP EXTENSION dgen", "CREATE EXTENSION dgen", create]):
                n = value(conn, "SELECT dgen.call('m/1', '{}')")
                conn.execute("BEGIN")
                for statement in statements:
                    prompt(conn, statement)
                conn.execute("ROLLBACK")
                assert value(conn, "SELECT dgen.call('m/1', '{}')") == n + 1
                conn.execute("BEGIN")
                conn.execute("SAVEPOINT a")
                for statement in statements:
                    prompt(conn, statement)
                conn.execute("ROLLBACK TO a")
                conn.execute("COMMIT")
                assert value(conn, "SELECT dgen.call('m/1', '{}')") == n + 2
            # another one in its place: nothing of the old one is left
            conn.execute("BEGIN")
            prompt(conn, "DROP EXTENSION dgen")
            prompt(conn, "CREATE EXTENSION dgen")
            conn.execute("COMMIT")
            assert value(conn, "SELECT count(*) FROM dgen.server") == 0
            conn.execute(create)
            assert value(conn, "SELECT dgen.call('m/1', '{}')") == 1
            conn.execute("SELECT dgen.cast('m/1', '{}')")
            wait_for(lambda: value(conn, "SELECT dgen.state('m/1')") == 2)
            prompt(conn, "DROP EXTENSION dgen")
            assert sqlstate(conn, "SELECT dgen.call('m/1', '{}')") in ("3F000", "42883")
        stop.set()

    def guarded():
        try:
            with cluster.connect() as conn:
                session(conn)
        finally:
            stop.set()
    in_threads([guarded, caller])
    # it had some success, and the errors that such times bring
    assert None in seen
    unexpected = seen.keys() - {None, "3F000", "42883", "42P01", "OT001", "OT002", "OT004", "OT010", "OT015",
                                "OT017", "OT020", "40001", "40P01"}
    assert not unexpected, [seen[s] for s in unexpected]
    wait_for(lambda: not cluster.processes("dgen (worker|keeper)"), PROMPT,
             message="processes are left without the extension")


def test_without_preload():
    """Says what it needs, with the extension and without."""
    with Cluster(preload=False) as cluster:
        def refused(sqlstate, statement):
            with cluster.connect() as conn, pytest.raises(psycopg.Error) as raised:
                conn.execute(statement)
            assert raised.value.sqlstate == sqlstate
            assert "shared_preload_libraries" in raised.value.diag.message_hint

        def preload(on):
            cluster.preload = on
            cluster.write_conf()
            cluster.restart()
        refused("55000", "CREATE EXTENSION dgen")
        preload(True)
        cluster.psql("CREATE EXTENSION dgen;" + MODULE)
        with cluster.connect() as conn:
            assert value(conn, "SELECT dgen.call('m/1', '{}')") == 1
        # taken out again
        preload(False)
        for statement in "SELECT dgen.call('m/1', '{}')", "SELECT dgen.cast('m/1', '{}')":
            refused("55000", statement)
        preload(True)
        with cluster.connect() as conn:
            assert value(conn, "SELECT dgen.call('m/1', '{}')") == 2


# ------------------------------------------------------------ shutdown

def test_fast_stop(cluster):
    """Is prompt while calls run and wait; what was promised is there after."""
    cluster.psql("CREATE EXTENSION dgen;" + MODULE)
    answers = []

    def caller(n):
        with cluster.connect() as conn:
            answers.append(sqlstate(conn, "SELECT dgen.call('m/%d', '{\"do\": \"sleep\"}', timeout => '60 s')"
                                    % (n % 6)))
    threads = [threading.Thread(target=caller, args=(n,), daemon=True) for n in range(12)]
    for t in threads:
        t.start()
    with cluster.connect() as conn:
        for n in range(20):
            conn.execute("SELECT dgen.cast('m/%d', '{\"n\": %d}')" % (n % 6, n))
        wait_for(lambda: value(conn, "SELECT count(*) FROM pg_stat_activity WHERE "
                                     "backend_type = 'dgen worker' AND wait_event = 'PgSleep'") >= 1)
    begin = time.monotonic()
    cluster.stop("fast")
    assert time.monotonic() - begin < PROMPT
    for t in threads:
        t.join(PROMPT)
        assert not t.is_alive(), "a caller still waits"
    assert set(answers) <= {"57P01", "57P03", "OT002", "08006", None} and len(answers) == 12, answers
    cluster.start()
    with cluster.connect() as conn:
        wait_idle(conn)
        assert value(conn, "SELECT count(*) FROM done WHERE message ? 'n'") == 20
        assert value(conn, "SELECT count(*) FROM done WHERE message ? 'do'") == 0
        assert_nothing_left(conn)


@pytest.mark.parametrize("how", ["stop", "rename"])
def test_orderly_end_is_no_attempt(cluster, how):
    """A message whose handler is cut off by a shutdown, or by a command that
    sends dgen's processes away, is not at fault: it has its only attempt
    still."""
    cluster.psql("CREATE DATABASE d")
    cluster.psql("CREATE EXTENSION dgen;" + MODULE.replace("pg_sleep(60)", "pg_sleep(1)")
                 + "SELECT dgen.alter_module('m', max_attempts => 1)", dbname="d")
    with cluster.connect(dbname="d") as conn:
        conn.execute("SELECT dgen.cast('m/1', '{\"do\": \"sleep\"}')")
        wait_for(lambda: value(conn, "SELECT count(*) FROM pg_stat_activity WHERE "
                                     "backend_type = 'dgen worker' AND wait_event = 'PgSleep'") == 1)
    if how == "stop":
        cluster.restart("fast")
    else:
        cluster.psql("ALTER DATABASE d RENAME TO e; ALTER DATABASE e RENAME TO d")
    with cluster.connect(dbname="d") as conn:
        wait_idle(conn)
        assert conn.execute("SELECT server, error FROM dgen.letter").fetchall() == []
        assert value(conn, "SELECT dgen.state('m/1')") == 1
        assert_nothing_left(conn)


# ------------------------------------------------------------ DDL on dgen's tables

def test_maintenance_under_load(cluster):
    cluster.psql("CREATE EXTENSION dgen;" + MODULE)
    stop = threading.Event()
    counts = [0] * 4

    def load(n):
        with cluster.connect() as conn:
            while not stop.is_set():
                before = value(conn, "SELECT dgen.call('m/%d', '{}', timeout => '30 s')" % n)
                conn.execute("SELECT dgen.cast('m/%d', '{}')" % n)
                conn.execute("SELECT dgen.cast('m/%d', '{}')" % ((n + 1) % 4))
                counts[n] += 1
                assert before > 0

    def maintain():
        try:
            with cluster.connect() as conn:
                conn.execute("SET statement_timeout = '20 s'")
                for table in ("message", "server", "delayed", "attempt", "letter", "reply"):
                    for statement in ("VACUUM FULL dgen.%s", "REINDEX TABLE CONCURRENTLY dgen.%s",
                                      "ALTER TABLE dgen.%s SET (fillfactor = 70)",
                                      "ALTER TABLE dgen.%s ADD COLUMN more int DEFAULT 7",
                                      "VACUUM dgen.%s", "REINDEX TABLE dgen.%s",
                                      "ALTER TABLE dgen.%s DROP COLUMN more", "VACUUM FULL ANALYZE dgen.%s"):
                        before = sum(counts)
                        conn.execute(statement % table)
                        wait_for(lambda: stop.is_set() or sum(counts) > before + 4,
                                 message="no more calls after " + statement % table)
        finally:
            stop.set()
    in_threads([lambda n=n: load(n) for n in range(4)] + [maintain])
    with cluster.connect() as conn:
        wait_idle(conn)
        states = [value(conn, "SELECT dgen.state('m/%d')" % n) for n in range(4)]
        assert states == [2 * counts[n] + counts[(n - 1) % 4] for n in range(4)]
        assert value(conn, "SELECT count(*) FROM done") == sum(states)
        assert_nothing_left(conn)
