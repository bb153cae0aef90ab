"""Attributes of servers with several clients, through a dump, and with the
extension."""

import random
import threading

import psycopg
import pytest

from cluster import PORT, wait_for
from common import assert_nothing_left, in_threads, rounds_of, seed_of, value, wait_idle

MODULE = """
CREATE ROLE app LOGIN;
CREATE ROLE reader LOGIN;
CREATE SCHEMA app AUTHORIZATION app;
GRANT USAGE ON SCHEMA app TO reader;
SET ROLE app;
CREATE FUNCTION app.handle_call(request jsonb, INOUT state jsonb, OUT reply jsonb)
LANGUAGE plpgsql AS $$ BEGIN state := state || request; reply := state; END $$;
CREATE FUNCTION app.handle_cast(message jsonb, state jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
    RETURN state || jsonb_build_object('n', coalesce((state->>'n')::int, 0) + 1) || message;
END $$;
RESET ROLE;
"""
ATTRIBUTES = """
SET ROLE app;
CREATE FUNCTION app.attributes(state jsonb) RETURNS jsonb
LANGUAGE sql AS $$ SELECT state - 'noise' $$;
RESET ROLE;
"""
CREATE = "SET ROLE app; SELECT dgen.create_module('app', max_attempts => 1, breaker => 0); RESET ROLE"

# servers whose row in the view is not what their state makes of it
WRONG = """
SELECT count(*) FROM dgen.servers s FULL JOIN app.servers v USING (server)
WHERE s.module = 'app' AND (s.state - 'noise') IS DISTINCT FROM v.attributes"""
CAST = "SELECT dgen.cast(%s, %s::jsonb)"
CALL = "SELECT dgen.call(%s, %s::jsonb, '30 s')"


@pytest.fixture
def conn(cluster):
    cluster.psql("CREATE EXTENSION dgen;" + MODULE)
    with cluster.connect() as conn:
        yield conn


def test_servers_do_not_conflict(cluster, conn):
    """In SERIALIZABLE, with several workers, each server's attributes are its own."""
    cluster.psql(ATTRIBUTES + CREATE)
    for expression in ("attributes->>'name'", "(attributes->>'n')::int", "key"):
        value(conn, "SELECT dgen.create_index('app', %s)", expression)
    servers = 40

    def client(number):
        with cluster.connect() as c:
            for i in range(300):
                c.execute(CAST, ("app/%d" % ((i * 7 + number) % servers),
                                 '{"name": "%d-%d"}' % (number, i)))

    in_threads([lambda n=n: client(n) for n in range(6)])
    wait_idle(conn)
    assert value(conn, "SELECT sum((attributes->>'n')::int) FROM app.servers") == 6 * 300
    assert value(conn, WRONG) == 0
    assert value(conn, "SELECT sum(serialization_retries) FROM dgen.workers") == 0
    assert value(conn, "SELECT count(*) > 0 FROM dgen.workers")
    assert_nothing_left(conn)


def test_unique_among_servers(cluster, conn, request):
    """Of those that want the same value at the same time one gets it."""
    cluster.psql(ATTRIBUTES + CREATE)
    value(conn, "SELECT dgen.create_index('app', $$attributes->>'email'$$, \"unique\" => true, name => 'email')")
    chance = random.Random(seed_of(request))
    rounds = rounds_of(60)
    wanted = [[chance.randrange(20) for _ in range(rounds)] for _ in range(6)]
    got, refused = [], []

    def client(number):
        with cluster.connect() as c:
            for i, email in enumerate(wanted[number]):
                try:
                    c.execute(CALL, ("app/%d-%d" % (number, i), '{"email": "%d"}' % email))
                    got.append(email)
                except psycopg.errors.UniqueViolation as e:
                    assert '"email"' in str(e)
                    refused.append(email)

    in_threads([lambda n=n: client(n) for n in range(6)])
    assert sorted(got) == sorted(set(sum(wanted, [])))
    assert len(got) + len(refused) == 6 * rounds
    # a server that was refused is not there
    assert value(conn, "SELECT count(*) FROM dgen.servers WHERE module = 'app'") == len(got)
    assert value(conn, WRONG) == 0
    assert_nothing_left(conn)


def test_added_under_traffic(cluster, conn):
    """alter_module gives attributes to servers that start and change meanwhile."""
    cluster.psql(CREATE)
    stop = threading.Event()

    def client(number):
        with cluster.connect() as c:
            i = 0
            while not stop.is_set():
                i += 1
                c.execute(CALL, ("app/%d-%d" % (number, i), '{"i": %d}' % i))
                c.execute(CAST, ("app/%d" % number, '{"i": %d}' % i))
                c.execute("BEGIN ISOLATION LEVEL SERIALIZABLE")
                try:
                    c.execute("SELECT dgen.invoke(%s, '{\"invoked\": true}')", ("app/i%d-%d" % (number, i),))
                    c.execute("COMMIT")
                except psycopg.errors.SerializationFailure:
                    c.execute("ROLLBACK")

    def alter():
        try:
            with cluster.connect() as c:
                for _ in range(10):
                    c.execute(ATTRIBUTES)
                    c.execute("SELECT dgen.alter_module('app')")
                    before = value(c, "SELECT count(*) FROM app.servers")
                    wait_for(lambda: value(c, "SELECT count(*) FROM app.servers") > before + 20)
                    with c.transaction():
                        # every writer waits, so that both sides show one moment
                        c.execute("LOCK dgen.server IN SHARE MODE")
                        assert value(c, WRONG) == 0
                    c.execute("DROP FUNCTION app.attributes")
                    c.execute("SELECT dgen.alter_module('app')")
                    assert value(c, "SELECT to_regclass('app.servers')") is None
        finally:
            stop.set()

    in_threads([lambda n=n: client(n) for n in range(3)] + [alter])
    wait_idle(conn)
    assert_nothing_left(conn)


def test_dump_and_restore(cluster, conn):
    """A dump has table, rows, rights and indexes, and what is restored goes on."""
    cluster.psql(ATTRIBUTES + CREATE)
    value(conn, "SELECT dgen.create_index('app', $$attributes->>'email'$$, \"unique\" => true, name => 'email')")
    conn.execute("GRANT SELECT ON app.servers TO reader")
    conn.execute(CALL, ("app/a", '{"email": "a"}'))
    conn.execute(CALL, ("app/b", '{"email": "b"}'))

    dump = cluster.run("pg_dump", "-h", cluster.socket_dir, "-p", str(PORT), "-U", "postgres", "postgres")
    for name in ("copy", "unused"):
        cluster.psql("CREATE DATABASE " + name)
        cluster.psql(dump, dbname=name)

    with cluster.connect(dbname="copy") as copy:
        rows = "SELECT * FROM app.servers ORDER BY server"
        assert copy.execute(rows).fetchall() == conn.execute(rows).fetchall()
        copy.execute("SELECT dgen.adopt()")
        assert value(copy, CALL, "app/a", '{"email": "c"}') == {"email": "c"}
        with pytest.raises(psycopg.errors.UniqueViolation):
            copy.execute(CALL, ("app/c", '{"email": "b"}'))
        copy.execute(CALL, ("app/c", '{"email": "a"}'))
        assert value(copy, WRONG) == 0
        with cluster.connect(dbname="copy", user="reader") as reader:
            reader.execute("SET enable_seqscan = off")
            plan = reader.execute("EXPLAIN SELECT key FROM app.servers WHERE attributes->>'email' = 'a'").fetchall()
            assert any("using email on" in line for line, in plan), plan
            assert value(reader, "SELECT key FROM app.servers WHERE attributes->>'email' = 'a'") == "c"
        copy.execute("SELECT dgen.alter_module('app')")
        copy.execute("SELECT dgen.drop_index('app', 'email')")
        value(copy, "SELECT dgen.refresh_attributes('app')")
        drop_extension(copy)
    # a dump does not say that they belong to the extension; adopt() does
    with cluster.connect(dbname="unused") as unused:
        drop_extension(unused, left=True)
    assert value(conn, CALL, "app/a", '{}') == {"email": "a"}
    drop_extension(conn)


def drop_extension(conn, left=False):
    """What attributes have made goes with the extension, and can be made again."""
    conn.execute("DROP EXTENSION dgen")
    assert value(conn, "SELECT count(*) > 0 FROM pg_class WHERE relnamespace IN "
                       "('app'::regnamespace, 'dgen'::regnamespace)") == left
    if left:
        # CREATE EXTENSION takes no schema that holds what is not its own, and says so
        with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState):
            conn.execute("CREATE EXTENSION dgen")
        conn.execute("DROP SCHEMA dgen CASCADE")
    conn.execute("CREATE EXTENSION dgen")
    conn.execute("SELECT dgen.create_module('app')")
    assert value(conn, CALL, "app/a", '{"again": true}') == {"again": True}
    assert value(conn, "SELECT attributes FROM app.servers") == {"again": True}


def test_prepared(cluster, conn):
    """The attributes of a prepared transaction are there when it commits."""
    cluster.psql(ATTRIBUTES + CREATE)
    for end, expected in (("ROLLBACK", None), ("COMMIT", {"x": 1})):
        conn.execute("BEGIN ISOLATION LEVEL SERIALIZABLE")
        conn.execute("SELECT dgen.invoke('app/p', '{\"x\": 1}')")
        conn.execute("PREPARE TRANSACTION 'p'")
        assert value(conn, "SELECT count(*) FROM app.servers") == 0
        conn.execute(end + " PREPARED 'p'")
        assert value(conn, "SELECT attributes FROM app.servers") == expected
