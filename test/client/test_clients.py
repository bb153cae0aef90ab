"""dgen from the libraries that people use, each directly and through PgBouncer
in transaction mode; and what their users trip over.

The examples in examples/clients are run as they are, and what doc/clients.md
says is here.  Those in other languages want `make check-clients`.
"""

import fcntl
import glob
import json
import os
import re
import select
import shutil
import subprocess
import sys
import threading

import psycopg
import pytest

from bouncer import Bouncer, find_pgbouncer
from build import TOP, clean_environment
from cluster import Cluster, wait_for

EXAMPLES = os.path.join(TOP, "examples", "clients")
PROGRAMS = os.path.join(TOP, "test", "client", "clients")
PROJECT = os.path.join(TOP, "test", "client", "django_shop")
JDBC = "/usr/share/java/postgresql.jar"
NODE_PACKAGES = ["pg@8.23.1", "postgres@3.4.9", "drizzle-orm@0.45.4"]

LAB = """
CREATE SCHEMA lab;
CREATE TABLE lab.row (n int);
CREATE FUNCTION lab.init(args jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT '0'::jsonb $$;
CREATE FUNCTION lab.handle_call(request jsonb, INOUT state jsonb, OUT reply jsonb)
LANGUAGE plpgsql AS $$
BEGIN
  IF request ? 'echo' THEN
    reply := request -> 'echo';
  ELSIF request ? 'context' THEN
    reply := dgen.context();
  ELSIF request ? 'raise' THEN
    RAISE EXCEPTION '%, as was asked for',
      CASE WHEN request ->> 'raise' ~ '^(08|40|57)' THEN 'terminating connection' ELSE 'error' END
      USING ERRCODE = request ->> 'raise', DETAIL = 'This is the detail.', HINT = 'This is the hint.', CONSTRAINT = 'lab_key';
  ELSIF request ? 'die' THEN
    PERFORM pg_terminate_backend(pg_backend_pid());
    PERFORM pg_sleep(10);
  ELSE
    state := to_jsonb(state::int + 1);
    reply := state;
  END IF;
END $$;
SELECT dgen.create_module('lab', invoke_isolation => 'any');
SELECT dgen.suspend('lab/held');
"""

# The first deposit after a restart of the sequence is interrupted, the third refused
UNLUCKY = """
CREATE SEQUENCE bank.deposits;
CREATE FUNCTION bank.unlucky() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  CASE nextval('bank.deposits')
    WHEN 1 THEN RAISE 'terminating connection due to chance' USING ERRCODE = '57P01';
    WHEN 3 THEN RAISE 'the bank is closed';
    ELSE NULL;
  END CASE;
  RETURN NEW;
END $$;
CREATE TRIGGER unlucky BEFORE INSERT ON bank.entry FOR EACH ROW EXECUTE FUNCTION bank.unlucky();
"""


@pytest.fixture(scope="module")
def db():
    with Cluster("clients", tcp=True) as c:
        script = re.split(r"^SELECT dgen.call", open(os.path.join(TOP, "examples/bank/bank.sql")).read(),
                          flags=re.M)[0]
        c.psql(script)
        c.psql(UNLUCKY)
        c.psql(LAB)
        yield c


@pytest.fixture(scope="module")
def bouncer(db):
    if not find_pgbouncer():
        pytest.skip("pgbouncer is not installed and could not be")
    with Bouncer(db) as b:
        yield b


@pytest.fixture(params=["direct", "pgbouncer"])
def route(request, db):
    """Where to connect to: .conninfo(), as of a Cluster."""
    return Direct(db) if request.param == "direct" else request.getfixturevalue("bouncer")


class Direct:
    def __init__(self, cluster):
        self.cluster = cluster

    def conninfo(self, **kw):
        return self.cluster.conninfo(**dict({"host": "127.0.0.1"}, **kw))


def environment(route):
    info = route.conninfo()
    return dict(clean_environment(), PGHOST=info["host"], PGPORT=str(info["port"]),
                PGUSER=info["user"], PGDATABASE=info["dbname"], PYTHONDONTWRITEBYTECODE="1")


def pooled(route):
    return isinstance(route, Bouncer)


def has_named_statements(route):
    return not pooled(route) or route.has_named_statements


def run(command, route, cwd=None, **env):
    return subprocess.run(command, env=dict(environment(route), **env), cwd=cwd or PROGRAMS, text=True,
                          timeout=90, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def has_module(name):
    return subprocess.run([sys.executable, "-c", "import " + name], stderr=subprocess.DEVNULL).returncode == 0


def need(there, name):
    if not there:
        pytest.skip("%s is not installed and could not be" % name)


# --- what each library is run with: a function that takes the program and the
# place for what it makes, and gives a command; it skips where that is not there

def with_psql(path, db, place):
    return [db.build.program("psql"), "-X", "-f", path]


def with_python(path, db, place):
    for name in re.findall(r"^(?:import|from) (psycopg2?|sqlalchemy|django)\b", open(path).read(), re.M):
        need(has_module(name), name)
    if "sqlalchemy" in path:
        need(has_module("psycopg2"), "psycopg2")
    return [sys.executable, "-B", path]


def with_cc(path, db, place):
    include, lib = db.build.ask("includedir"), db.build.ask("libdir")
    need(os.path.exists(include + "/libpq-fe.h"), "libpq-dev")
    program = os.path.join(place, "program")
    subprocess.run([shutil.which("gcc") or "clang", "-Wall", "-Wextra", "-Werror", path, "-o", program, "-I" + include,
                    "-L" + lib, "-Wl,-rpath," + lib, "-lpq"], check=True)
    return [program, "key of " + place]


def node_modules():
    """A directory with the packages, whose programs node finds them from."""
    need(shutil.which("node"), "node")
    place = os.path.join(TOP, "build", "clients-node")
    os.makedirs(place, exist_ok=True)
    with open(os.path.join(place, ".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = os.path.join(place, "installed")
        if not os.path.exists(done) or open(done).read() != " ".join(NODE_PACKAGES):
            need(shutil.which("npm"), "npm")
            result = subprocess.run(["npm", "install", "--prefix", place, "--no-audit", "--no-fund",
                                     "--ignore-scripts", *NODE_PACKAGES], text=True, timeout=300,
                                    cwd=place, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
            if result.returncode:
                pytest.skip("npm install: " + result.stdout.strip().splitlines()[-1])
            with open(done, "w") as f:
                f.write(" ".join(NODE_PACKAGES))
    return place


def with_node(path, db, place):
    modules = node_modules()
    shutil.copy(path, place)
    link = os.path.join(place, "node_modules")
    if not os.path.exists(link):
        os.symlink(os.path.join(modules, "node_modules"), link)
    return ["node", os.path.join(place, os.path.basename(path))]


def with_ruby(path, db, place):
    need(shutil.which("ruby") and subprocess.run(["ruby", "-e", 'require "active_record"; require "pg"'],
                                                 stderr=subprocess.DEVNULL).returncode == 0, "activerecord")
    return ["ruby", path]


def with_java(path, db, place):
    need(shutil.which("java") and shutil.which("javac"), "default-jdk-headless")
    need(os.path.exists(JDBC), "libpostgresql-jdbc-java")
    return ["java", "-cp", JDBC, path]


RUN_BY = {".psql": with_psql, ".py": with_python, ".c": with_cc,
          ".mjs": with_node, ".rb": with_ruby, ".java": with_java}
HEAVY = (".mjs", ".rb", ".java")


def heavy(test):
    """In a language of its own; the first may have to wait for npm."""
    return pytest.mark.clients(pytest.mark.seconds(400)(test))


def command_for(path, db, place):
    return RUN_BY[os.path.splitext(path)[1]](path, db, str(place))


def marked(names):
    marks = [pytest.mark.clients, pytest.mark.seconds(400)]
    return [pytest.param(n, marks=marks if n.endswith(HEAVY) else []) for n in names]


# --- the examples

@pytest.mark.parametrize("name", marked(sorted(os.path.basename(p) for p in glob.glob(EXAMPLES + "/[cC]all*"))))
def test_example(db, route, name, tmp_path):
    """Interrupted once, it asks again and pays in once; refused, it says so."""
    command = command_for(os.path.join(EXAMPLES, name), db, tmp_path)
    db.psql("SELECT dgen.delete('bank/alice'); TRUNCATE bank.entry; ALTER SEQUENCE bank.deposits RESTART")
    told = run(command, route)
    # psql tells of the first error too
    assert told.returncode == 0 and told.stdout.splitlines()[-1] == "10", told.stdout
    assert db.psql("SELECT last_value FROM bank.deposits; SELECT count(*) FROM bank.entry") == "2\n1"
    if name.endswith(".c"):
        command[-1] += " again"
    refused = run(command, route)
    assert "the bank is closed" in refused.stdout and (refused.returncode or "psql" in name), refused.stdout
    assert db.psql("SELECT dgen.query('bank/alice', 'null')") == "10"


def test_example_listen(db, tmp_path):
    db.psql("SELECT dgen.delete('bank/alice'); ALTER SEQUENCE bank.deposits RESTART WITH 10")
    told = run(command_for(os.path.join(EXAMPLES, "listen_psycopg.py"), db, tmp_path), Direct(db))
    db.psql("ALTER SEQUENCE bank.deposits START WITH 1")
    assert told.returncode == 0 and told.stdout == "10\n", told.stdout


def test_examples_are_all_run():
    names = set(os.listdir(EXAMPLES)) - {"__pycache__"}
    assert all(os.path.splitext(n)[1] in RUN_BY for n in names)
    assert len(names) == 12
    with open(os.path.join(TOP, "doc", "clients.md")) as f:
        assert set(re.findall(r"examples/clients/([\w.]+)\)", f.read())) == names


# --- psycopg 3

def connect(route, **kw):
    kw.setdefault("prepare_threshold", None)
    kw.setdefault("autocommit", True)
    return psycopg.connect(**route.conninfo(), **kw)


CALL = "SELECT dgen.call(%s, %s::jsonb)"


def reply(conn, server, request):
    return conn.execute(CALL, (server, json.dumps(request))).fetchone()[0]


def test_psycopg_reply(route):
    with connect(route) as conn:
        assert reply(conn, "lab/psycopg", {"echo": {"a": [1, "x", None]}}) == {"a": [1, "x", None]}
        # a str needs no cast, a dict needs Jsonb, a list is an array
        assert conn.execute("SELECT dgen.call('lab/psycopg', %s)", ('{"echo": 1}',)).fetchone()[0] == 1
        with pytest.raises(psycopg.ProgrammingError):
            conn.execute("SELECT dgen.call('lab/psycopg', %s)", ({"echo": 1},))


def test_psycopg_errors(route):
    """Of which class an error is, and that the connection lives."""
    with connect(route) as conn:
        for request, wanted, sqlstate in [
                ({"raise": "23505"}, psycopg.errors.UniqueViolation, "23505"),
                ({"raise": "P0001"}, psycopg.errors.RaiseException, "P0001"),
                ({"raise": "22012"}, psycopg.errors.DivisionByZero, "22012"),
                ({"raise": "40001"}, psycopg.DatabaseError, "OT020"),
                ({"raise": "57P01"}, psycopg.DatabaseError, "OT020"),
                ({"raise": "08006"}, psycopg.DatabaseError, "OT020"),
                ({"die": True}, psycopg.DatabaseError, "OT020")]:
            with pytest.raises(psycopg.Error) as e:
                reply(conn, "lab/psycopg", request)
            assert type(e.value) is wanted and e.value.sqlstate == sqlstate
            assert not conn.closed and not conn.broken
            if sqlstate != "OT020":
                assert e.value.diag.message_detail == "This is the detail."
                assert e.value.diag.message_hint == "This is the hint."
                assert e.value.diag.constraint_name is None
        assert reply(conn, "lab/psycopg", {"echo": 1}) == 1


def test_psycopg_prepares(route):
    """From the fifth time on it prepares a statement by name."""
    server = "lab/prepared_" + ("pooled" if pooled(route) else "direct")
    with connect(route) as conn:
        assert [reply(conn, server, {}) for _ in range(12)] == list(range(1, 13))
    with connect(route, prepare_threshold=5) as conn:
        if has_named_statements(route):
            assert [reply(conn, server, {}) for _ in range(12)][-1] == 24
        else:
            with pytest.raises((psycopg.errors.InvalidSqlStatementName, psycopg.errors.DuplicatePreparedStatement)):
                for _ in range(12):
                    reply(conn, server, {})


def test_call_in_transaction(route):
    """It commits by itself, and says so if the transaction has written."""
    server = "lab/transaction_" + ("pooled" if pooled(route) else "direct")
    with connect(route, autocommit=False) as conn:
        notices = []
        conn.add_notice_handler(lambda n: notices.append((n.severity, n.sqlstate)))
        assert reply(conn, server, {}) == 1
        conn.commit()
        assert notices == []

        conn.execute("INSERT INTO lab.row VALUES (1)")
        assert reply(conn, server, {}) == 2
        assert reply(conn, server, {}) == 3
        conn.rollback()
        assert notices == [("WARNING", "25001")]
        assert reply(conn, server, {}) == 4
        conn.rollback()

        conn.execute("SET LOCAL dgen.call_in_transaction = error")
        conn.execute("INSERT INTO lab.row VALUES (1)")
        with pytest.raises(psycopg.errors.ActiveSqlTransaction):
            reply(conn, server, {})
        conn.rollback()

        conn.isolation_level = psycopg.IsolationLevel.SERIALIZABLE
        notices.clear()
        assert reply(conn, server, {}) == 5
        conn.rollback()
        assert notices == [("WARNING", "25001")]


def test_savepoint(route):
    """An error in a call spoils the transaction, as any does, but for a savepoint."""
    with connect(route, autocommit=False) as conn:
        with pytest.raises(psycopg.errors.UniqueViolation):
            with conn.transaction():
                conn.execute("INSERT INTO lab.row VALUES (77)")
                try:
                    with conn.transaction():
                        reply(conn, "lab/savepoint", {"raise": "22012"})
                except psycopg.errors.DivisionByZero:
                    pass
                assert conn.execute("SELECT count(*) FROM lab.row WHERE n = 77").fetchone()[0] == 1
                reply(conn, "lab/savepoint", {"raise": "23505"})
        assert conn.info.transaction_status == psycopg.pq.TransactionStatus.IDLE


def test_uncommitted_module(route):
    with connect(route, autocommit=False) as conn:
        conn.execute("""
            CREATE SCHEMA fresh;
            CREATE FUNCTION fresh.handle_call(request jsonb, INOUT state jsonb, OUT reply jsonb)
            LANGUAGE plpgsql AS 'BEGIN reply := request; END';
            SELECT dgen.create_module('fresh')""")
        with pytest.raises(psycopg.Error) as e:
            reply(conn, "fresh/1", 1)
        assert e.value.sqlstate == "OT010" and "COMMIT" in e.value.diag.message_hint
        conn.rollback()


def test_statement_timeout(route):
    """A call ends before it, and says that it did not happen."""
    with connect(route, autocommit=False) as conn:
        conn.execute("SET LOCAL statement_timeout = '300 ms'")
        with pytest.raises(psycopg.Error) as e:
            reply(conn, "lab/held", {})
        assert e.value.sqlstate == "OT001"
        conn.rollback()


def test_own_timeout(route):
    with connect(route) as conn:
        with pytest.raises(psycopg.Error) as e:
            conn.execute("SELECT dgen.call('lab/held', '{}', timeout => '50 ms')")
        assert e.value.sqlstate == "OT001" and type(e.value) is psycopg.DatabaseError


def test_cancel(route):
    """As a client's own query timeout does it."""
    with connect(route) as conn:
        timer = threading.Timer(0.5, conn.cancel)
        timer.start()
        with pytest.raises(psycopg.errors.QueryCanceled):
            conn.execute("SELECT dgen.call('lab/held', '{}', timeout => '30 s')")
        timer.join()
        assert reply(conn, "lab/cancel", {"echo": 1}) == 1


def test_read_only(route):
    with connect(route, autocommit=False) as conn:
        conn.read_only = True
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            reply(conn, "lab/read_only", {})


def test_serialization_failure_of_an_invoke(route):
    """What is in the caller's own transaction fails as that does: retry it."""
    with connect(route, autocommit=False) as conn:
        conn.isolation_level = psycopg.IsolationLevel.SERIALIZABLE
        with pytest.raises(psycopg.errors.SerializationFailure):
            conn.execute("SELECT dgen.invoke('lab/invoke', '{\"raise\": \"40001\"}')")


def test_pooled_sessions(bouncer):
    """What is set in a session is not there in the next transaction; SET LOCAL
    is, in its own."""
    with connect(bouncer) as conn:
        assert len({conn.execute("SELECT pg_backend_pid()").fetchone()[0] for _ in range(6)}) > 1
    with connect(bouncer, autocommit=False) as conn:
        conn.execute("""SET LOCAL dgen.context = '{"tenant": 7}'""")
        assert reply(conn, "lab/context", {"context": 1}) == {"tenant": 7}
        conn.commit()
        for _ in range(6):
            assert reply(conn, "lab/context", {"context": 1}) is None
            conn.commit()


def test_request_and_reply_in_other_sessions(route):
    """A request belongs to a role, not to a session."""
    with connect(route) as conn:
        for _ in range(6):
            request, = conn.execute("SELECT dgen.send_request('lab/request', '{\"echo\": 5}')").fetchone()
            assert conn.execute("SELECT dgen.wait_response(%s, '10 s')", (request,)).fetchone()[0] == 5


def test_no_listen_through_the_pooler(bouncer):
    need(has_module("psycopg2"), "psycopg2")
    import psycopg2

    def announced(conn):
        # no query in between, which could meet the connection that listens
        select.select([conn], [], [], 1)
        conn.poll()
        return [n.payload for n in conn.notifies]

    with connect(bouncer) as sender:
        for route, wanted in (bouncer, False), (Direct(bouncer.cluster), True):
            conn = psycopg2.connect(**route.conninfo())
            conn.autocommit = True
            conn.cursor().execute("LISTEN dgen_reply")
            request, = sender.execute("SELECT dgen.send_request('lab/listen', '{\"echo\": 5}')").fetchone()
            assert sender.execute("SELECT dgen.wait_response(%s, '10 s')", (request,)).fetchone()[0] == 5
            assert (str(request) in announced(conn)) == wanted
            conn.close()


# --- psycopg2

def test_psycopg2(route):
    need(has_module("psycopg2"), "psycopg2")
    import psycopg2
    from psycopg2.extras import Json
    conn = psycopg2.connect(**route.conninfo())
    conn.autocommit = True
    cur = conn.cursor()

    def call(request):
        cur.execute("SELECT dgen.call('lab/psycopg2', %s)", (request,))
        return cur.fetchone()[0]
    assert call(Json({"echo": {"a": [1, "x", None]}})) == {"a": [1, "x", None]}
    assert call('{"echo": 1}') == 1
    for state, wanted, found in [("23505", psycopg2.errors.UniqueViolation, "23505"),
                                 ("40001", psycopg2.DatabaseError, "OT020"),
                                 ("57P01", psycopg2.DatabaseError, "OT020")]:
        with pytest.raises(psycopg2.Error) as e:
            call(Json({"raise": state}))
        assert type(e.value) is wanted and e.value.pgcode == found
        assert not conn.closed
    conn.autocommit = False
    cur.execute("INSERT INTO lab.row VALUES (1)")
    call(Json({}))
    assert any("commits on its own" in n for n in conn.notices)
    conn.rollback()
    conn.close()


# --- SQLAlchemy

@pytest.fixture(params=["psycopg2", "psycopg"])
def engine(request, route):
    need(has_module("sqlalchemy"), "sqlalchemy")
    need(has_module(request.param), request.param)
    import sqlalchemy
    if request.param == "psycopg" and sqlalchemy.__version__ < "2":
        pytest.skip("SQLAlchemy knows psycopg 3 from 2.0 on")
    options = {"connect_args": {"prepare_threshold": None}} if request.param == "psycopg" else {}
    info = dict(route.conninfo(), driver=request.param)
    made = sqlalchemy.create_engine("postgresql+%(driver)s://postgres@%(host)s:%(port)s/%(dbname)s" % info,
                                    future=True, pool_pre_ping=True, pool_size=1, max_overflow=0, **options)
    yield made
    made.dispose()


def test_sqlalchemy(engine):
    from sqlalchemy import cast, func, select, text
    from sqlalchemy.dialects.postgresql import JSONB
    from sqlalchemy.exc import ProgrammingError
    told = {"a": [1, "x", None]}
    with engine.connect() as conn:
        typed = select(func.dgen.call("lab/alchemy", cast({"echo": told}, JSONB), type_=JSONB))
        assert conn.execute(typed).scalar() == told
        plain = text("SELECT dgen.call('lab/alchemy', CAST(:request AS jsonb)) AS reply")
        request = {"request": json.dumps({"echo": told})}
        assert conn.execute(plain, request).scalar() == told
        # `:request::jsonb` is no parameter
        with pytest.raises(ProgrammingError):
            conn.execute(text("SELECT dgen.call('lab/alchemy', :request::jsonb)"), request)


def test_sqlalchemy_after_an_error(engine):
    """No error of a call is taken for a lost connection: the pool, whose other
    connections would be thrown away too, stays as it is."""
    from sqlalchemy import exc, text

    def driver_connection():
        with engine.connect() as conn:
            return conn.connection.dbapi_connection
    before = driver_connection()
    for request, wanted, state in [({"raise": "23505"}, exc.IntegrityError, "23505"),
                                   ({"raise": "40001"}, exc.DatabaseError, "OT020"),
                                   ({"raise": "57P01"}, exc.DatabaseError, "OT020"),
                                   ({"raise": "08006"}, exc.DatabaseError, "OT020"),
                                   ({"die": True}, exc.DatabaseError, "OT020")]:
        with engine.connect() as conn:
            with pytest.raises(exc.DBAPIError) as e:
                conn.execute(text("SELECT dgen.call('lab/alchemy', CAST(:r AS jsonb))"), {"r": json.dumps(request)})
        assert type(e.value) is wanted and e.value.orig.diag.sqlstate == state
        assert not e.value.connection_invalidated, str(e.value)
    assert driver_connection() is before and not before.closed


def test_sqlalchemy_begins(engine):
    """A connection is in a transaction from its first statement on."""
    from sqlalchemy import text
    call = text("SELECT dgen.call('lab/alchemy_begins', '{}')")
    with engine.connect() as conn:
        before = int(conn.execute(call).scalar())
        conn.execute(text("INSERT INTO lab.row VALUES (9)"))
        conn.execute(call)
    with engine.connect() as conn:
        assert int(conn.execute(call).scalar()) == before + 2
        assert conn.execute(text("SELECT count(*) FROM lab.row WHERE n = 9")).scalar() == 0


# --- Django

def test_django_tests(db):
    """The project's own tests, in a database that Django makes and drops."""
    need(has_module("django") and has_module("psycopg2"), "django")
    told = run([sys.executable, "-B", "-m", "django", "test", "--noinput", "--settings=settings"],
               Direct(db), cwd=PROJECT)
    assert told.returncode == 0 and re.search(r"^OK$", told.stdout, re.M), told.stdout
    assert int(re.search(r"Ran (\d+) tests", told.stdout).group(1)) == 10
    assert db.psql("SELECT count(*) FROM pg_database WHERE datname LIKE 'test%'") == "0"


REQUESTS = """
import django
django.setup()
from django.core.management import call_command
from django.db import connection
from django.test import Client
from shop.views import call, scalar
call_command("migrate", verbosity=0)
client = Client(raise_request_exception=False)
connection.cursor().execute("TRUNCATE shop_order")
scalar("SELECT dgen.delete('stock/tea')")
print(client.get("/buy/tea/2").json(), client.get("/buy_or_fail/milk/2").status_code)
print(call("stock/milk", {"take": 0}), call("stock/tea", {"take": 0}))
scalar("SELECT dgen.delete('stock/milk')")
"""


def test_django_requests(route):
    need(has_module("django") and has_module("psycopg2"), "django")
    told = run([sys.executable, "-B", "-c", REQUESTS], route, cwd=PROJECT,
               DJANGO_SETTINGS_MODULE="settings")
    assert told.returncode == 0, told.stdout
    assert told.stdout.splitlines()[-2:] == ["{'left': 3} 500", "{'left': 3} {'left': 3}"]


# --- a standby, and those who send reads there

ROUTED = """
import django
django.setup()
from django.core.management import call_command
from django.db import DatabaseError, connections
from shop.models import Order
from shop.views import call
call_command("migrate", verbosity=0)
print(Order.objects.db, call("stock/routed", {"take": 1}))
try:
    with connections["replica"].cursor() as cursor:
        cursor.execute("SELECT dgen.call('stock/routed', '{}')")
except DatabaseError as e:
    print(e.__cause__.diag.sqlstate)
"""


def test_standby():
    with Cluster("primary", tcp=True) as primary:
        primary.psql("CREATE EXTENSION dgen")
        primary.psql(LAB)
        with primary.standby() as standby:
            with standby.connect() as conn:
                wait_for(lambda: conn.execute("SELECT count(*) FROM pg_namespace WHERE nspname = 'lab'").fetchone()[0])
                with pytest.raises(psycopg.Error) as e:
                    reply(conn, "lab/1", {})
                assert e.value.sqlstate == "OT017"
            # libpq finds the primary
            with psycopg.connect(host="%s,%s" % (standby.socket_dir, primary.socket_dir), user="postgres",
                                 port="%d,%d" % (standby.port, primary.port), dbname="postgres",
                                 autocommit=True, target_session_attrs="read-write") as conn:
                assert reply(conn, "lab/1", {}) == 1
            if has_module("django") and has_module("psycopg2"):
                told = run([sys.executable, "-B", "-c", ROUTED], Direct(primary), cwd=PROJECT,
                           DJANGO_SETTINGS_MODULE="settings", REPLICA_HOST=standby.socket_dir,
                           REPLICA_PORT=str(standby.port))
                assert told.stdout.splitlines()[-2:] == ["replica {'left': 4}", "OT017"], told.stdout


# --- those in other languages

def told_by(name, db, route, place):
    """What the program says, without what differs by the route."""
    suffix = ["lab/%s" % k for k in ("pg", "js", "drizzle", "ar", "jdbc", "named")]
    db.psql("".join("SELECT dgen.delete('%s');" % s for s in suffix) + "TRUNCATE lab.row")
    result = run(command_for(os.path.join(PROGRAMS, name), db, place), route)
    assert result.returncode == 0, result.stdout
    told = json.loads(result.stdout.splitlines()[-1])
    before, after = told.pop("pid"), told.pop("pid_after")
    if not pooled(route):
        assert before == after
    assert db.psql("SELECT count(*) FROM lab.row") == "0"
    return told


ECHO = {"a": [1, "x", None]}


@heavy
def test_node_postgres(db, route, tmp_path):
    assert told_by("node_postgres.mjs", db, route, tmp_path) == {
        "reply": ECHO, "array": "DatabaseError 22P02", "string": "DatabaseError 22P02",
        "unique": "DatabaseError 23505", "interrupted": "DatabaseError OT020", "lost": "DatabaseError OT020",
        "count": 12, "in_transaction": 13, "notices": ["25001"], "timeout": "DatabaseError OT001",
        "aborted": "DatabaseError 25P02", "connections": [1, 0],
        "query_timeout": "Error undefined",
        "named": "none" if has_named_statements(route) else "DatabaseError 26000"}


@heavy
def test_postgres_js(db, route, tmp_path):
    assert told_by("postgres_js.mjs", db, route, tmp_path) == {
        "reply": ECHO, "string": "string", "text": "object",
        "unique": "PostgresError 23505", "interrupted": "PostgresError OT020", "lost": "PostgresError OT020",
        "count": 12, "in_transaction": 13, "notices": ["25001"], "timeout": "PostgresError OT001",
        "named": "none",
        "named_in_transaction": "none" if has_named_statements(route) else "PostgresError 26000"}


@heavy
def test_drizzle(db, route, tmp_path):
    assert told_by("drizzle.mjs", db, route, tmp_path) == {
        "reply": ECHO, "unique": "DrizzleQueryError 23505", "interrupted": "DrizzleQueryError OT020",
        "lost": "DrizzleQueryError OT020", "count": 12, "in_transaction": 13, "notices": ["25001"],
        "timeout": "DrizzleQueryError OT001", "savepoint": ["DrizzleQueryError OT020", 14]}


@heavy
def test_activerecord(db, route, tmp_path):
    invalid = "ActiveRecord::StatementInvalid "
    unique = "ActiveRecord::RecordNotUnique 23505"
    told = told_by("activerecord.rb", db, route, tmp_path)
    assert json.loads(told.pop("reply")) == ECHO
    assert told == {
        "cast": ECHO, "unique": unique, "interrupted": invalid + "OT020", "serialization": invalid + "OT020",
        "lost": invalid + "OT020", "active": True, "count": "12", "in_transaction": "13",
        "timeout": invalid + "OT001", "savepoint": [unique, "14"],
        "named": "none" if has_named_statements(route) else invalid + "26000"}


@heavy
def test_jdbc(db, route, tmp_path):
    told = told_by("Jdbc.java", db, route, tmp_path)
    assert json.loads(told.pop("reply")) == ECHO
    e = "PSQLException "
    assert told == {
        "object": "PGobject", "no_cast": e + "42883", "unique": e + "23505", "interrupted": e + "OT020",
        "lost": e + "OT020", "valid": True, "count": 12, "in_transaction": 13, "notices": "25001",
        "timeout": e + "OT001", "read_only": e + "25006", "query_timeout": e + "57014",
        "named": "none" if has_named_statements(route) else e + "26000"}
