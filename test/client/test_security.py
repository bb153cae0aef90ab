"""Attacks: roles without rights, hostile arguments, and rules for what the extension's script
makes.  What is tried is taken from the catalog, so what is new is tried too.

regress security.sql and rights.sql have the attacks that are single statements."""

import itertools
import json
import random
import re
import threading

import psycopg
import pytest

from build import TOP
from common import in_threads, rounds_of, seed_of, value, wait_idle
from cluster import wait_for

# in each message, state, reply, error, name and note of the module that is looked at, and in
# nothing else; and what only the key of a server has, which callers may know
SECRET = "xyzzy"
KEY = "plugh"

VAULT = """
CREATE ROLE keeper_of_secrets LOGIN;
CREATE ROLE stranger LOGIN;
CREATE ROLE rival LOGIN;
CREATE SCHEMA vault AUTHORIZATION keeper_of_secrets;
CREATE SCHEMA rival AUTHORIZATION rival;
SET ROLE rival;
CREATE FUNCTION rival.handle_call(request jsonb, INOUT state jsonb, OUT reply jsonb)
LANGUAGE sql AS 'SELECT state, request';
CREATE FUNCTION rival.attributes(state jsonb) RETURNS jsonb LANGUAGE sql AS 'SELECT state';
SELECT dgen.create_module('rival', invoke_isolation => 'any');
SELECT dgen.start('rival/a');
RESET ROLE;
SET ROLE keeper_of_secrets;
CREATE FUNCTION vault.handle_call(request jsonb, INOUT state jsonb, OUT reply jsonb, OUT noreply boolean)
LANGUAGE plpgsql AS $$
BEGIN
    IF request ? 'fail' THEN
        RAISE EXCEPTION 'error xyzzy' USING DETAIL = 'detail xyzzy', HINT = 'hint xyzzy';
    ELSIF request ? 'sleep' THEN
        PERFORM pg_sleep((request->>'sleep')::float);
    ELSIF request ? 'later' THEN
        PERFORM dgen.noreply();
        state := jsonb_build_object('secret', 'xyzzy', 'from', dgen.from());
        RETURN;
    ELSIF request ? 'timeout' THEN
        PERFORM dgen.timeout('1 hour');
    ELSIF request ? 'monitor' THEN
        PERFORM dgen.monitor(request->>'monitor');
    ELSIF request ? 'effect' THEN
        PERFORM dgen.after_commit('vault.effect', '"xyzzy"');
    END IF;
    state := jsonb_build_object('secret', 'xyzzy', 'n', coalesce((state->>'n')::int, 0) + 1);
    reply := '"reply xyzzy"';
END $$;
CREATE FUNCTION vault.handle_cast(message jsonb, INOUT state jsonb) LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'error xyzzy' USING DETAIL = 'detail xyzzy', HINT = 'hint xyzzy';
END $$;
CREATE FUNCTION vault.handle_info(message jsonb, INOUT state jsonb) LANGUAGE sql AS $$ SELECT state $$;
CREATE FUNCTION vault.handle_query(query jsonb, state jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT state $$;
CREATE FUNCTION vault.attributes(state jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT state $$;
CREATE FUNCTION vault.effect(args jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'effect xyzzy';
END $$;
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA vault FROM PUBLIC;
SELECT dgen.create_module('vault', invoke_isolation => 'any', max_attempts => 1, breaker => 0, history => '100');
"""

# makes something of everything that there is, as the owner
FILL = [
    "SET dgen.context = '{\"tenant\": \"xyzzy\"}'",
    "SELECT dgen.call('vault/plugh', '\"xyzzy\"', request_key => 'key xyzzy')",
    "SELECT dgen.call('vault/plugh', '{\"timeout\": \"xyzzy\"}')",
    "SELECT dgen.call('vault/plugh', '{\"monitor\": \"vault/plugh2\"}')",
    "SELECT dgen.start('vault/plugh2', '\"xyzzy\"')",
    "SELECT dgen.statistics('vault/plugh', true)",
    "SELECT dgen.trace('vault/plugh')",
    "SELECT dgen.call('vault/plugh', '\"xyzzy\"')",
    "SELECT dgen.register('name xyzzy', 'vault/plugh', '{\"meta\": \"xyzzy\"}')",
    "SELECT dgen.join_group('group xyzzy', 'vault/plugh')",
    "SELECT dgen.cast('vault/plugh', '\"dead xyzzy\"')",
    "SELECT dgen.call('vault/plugh', '{\"effect\": \"xyzzy\"}')",
    "SELECT dgen.send_after('vault/plugh', '\"xyzzy\"', '1 hour')",
    "SELECT dgen.send_every('vault/plugh', '\"xyzzy\"', '1 hour', name => 'timer xyzzy')",
    "SELECT dgen.send_request('vault/plugh', '\"xyzzy\"')",
    "SELECT dgen.delete('vault/plugh3', tombstone => '1 hour')",
    "SELECT dgen.supervise('sup-xyzzy', '{\"children\": [{\"id\": \"child xyzzy\", \"server\": \"vault/plugh4\"}]}')",
    "SELECT dgen.wait_idle(everything => true)",
    "SELECT dgen.suspend('vault/plugh5', reason => 'reason xyzzy')",
    "SELECT dgen.cast('vault/plugh5', '\"xyzzy\"', dedup_key => 'dedup xyzzy')",
    "SELECT dgen.send_request('vault/plugh5', '\"xyzzy\"')",
]


@pytest.fixture(scope="module")
def vault(shared_cluster):
    c = shared_cluster
    c.psql(VAULT)
    with c.connect(user="keeper_of_secrets") as conn:
        for statement in FILL:
            conn.execute(statement)
        waiting = conn.info.backend_pid
        # two calls that wait for their replies, in a worker's hands and in a queue
        callers = [c.connect(user="keeper_of_secrets") for _ in range(2)]
        for caller, call in zip(callers, (
                "SELECT dgen.call('vault/plugh6', '{\"later\": \"xyzzy\"}', '10 min')",
                "SELECT dgen.call('vault/plugh5', '\"xyzzy\"', '10 min')")):
            threading.Thread(target=lambda caller=caller, call=call: suppress(caller, call),
                             daemon=True).start()
        wait_for(lambda: value(conn, "SELECT count(*) FROM dgen.messages WHERE kind = 'call'") == 1
                 and value(conn, "SELECT state ? 'from' FROM dgen.servers WHERE server = 'vault/plugh6'"))
        c.pids = [waiting] + [caller.info.backend_pid for caller in callers]
        yield c
        for caller in callers:
            caller.cancel()


def suppress(conn, statement):
    try:
        conn.execute(statement)
    except psycopg.Error:
        pass


def all_of(error):
    """All that an error tells."""
    d = error.diag
    return "\n".join(str(getattr(d, f)) for f in dir(d) if not f.startswith("_"))


class Session:
    """Runs statements; keeps what comes out: rows, errors, notices."""

    def __init__(self, cluster, user, **kw):
        self.conn = cluster.connect(user=user, **kw)
        self.conn.execute("SET client_min_messages = debug1")
        # what waits has shown by then what there is to see
        self.conn.execute("SET statement_timeout = '250 ms'")
        self.notices = []
        self.conn.add_notice_handler(lambda d: self.notices.append(
            "\n".join(str(getattr(d, f)) for f in dir(d) if not f.startswith("_"))))

    def run(self, statement):
        """(what came out as text, SQLSTATE or None)"""
        del self.notices[:]
        state = None
        try:
            cursor = self.conn.execute(statement)
            out = repr(cursor.fetchall()) if cursor.description else ""
        except psycopg.Error as e:
            out, state = all_of(e), e.sqlstate
        return out + "\n".join(self.notices), state


FUNCTIONS = """
SELECT p.oid::regprocedure::text AS name, p.proname, p.prokind = 'p' AS procedure,
       (SELECT array_agg(coalesce(p.proargnames[i], '') ORDER BY i) FROM generate_series(1, p.pronargs) i),
       (SELECT array_agg(format_type(t, NULL) ORDER BY i) FROM unnest(p.proargtypes) WITH ORDINALITY x(t, i)),
       p.pronargdefaults, p.provariadic <> 0
FROM pg_proc p WHERE p.pronamespace = 'dgen'::regnamespace ORDER BY 1
"""


class Function:
    def __init__(self, row):
        (self.signature, self.name, self.procedure, names, types, self.defaults,
         self.variadic) = row
        self.names, self.types = names or [], types or []
        self.required = len(self.types) - self.defaults

    def call(self, values):
        """values: SQL for each argument; None: left out."""
        arguments = []
        for i, v in enumerate(values):
            if v is None:
                continue
            cast = "%s::%s" % (v, "text[]" if self.variadic and i == len(values) - 1 else self.types[i])
            arguments.append(("VARIADIC " if self.variadic and i == len(values) - 1 else "") +
                             ('"%s" => ' % self.names[i] if self.names[i] else "") + cast)
        if self.variadic:
            # not all forms of a call know both
            arguments = [re.sub(r'^(VARIADIC )?"[^"]*" => ', r"\1", a) for a in arguments]
        return "%s dgen.%s(%s)" % ("CALL" if self.procedure else "SELECT * FROM",
                                   '"%s"' % self.name, ", ".join(arguments))


def functions_of(conn):
    return [Function(row) for row in conn.execute(FUNCTIONS).fetchall()]


def relations_of(conn, kinds):
    return [r for r, in conn.execute("""
        SELECT c.oid::regclass::text FROM pg_class c
        WHERE c.relnamespace = 'dgen'::regnamespace AND c.relkind = ANY (%s) ORDER BY 1""",
                                     (list(kinds),))]


def contents(conn):
    """All rows of dgen, but for what changes by itself."""
    return {t: conn.execute("SELECT t::text FROM %s t ORDER BY 1" % t).fetchall()
            for t in relations_of(conn, "r")}


# ------------------------------------------------------------------ who runs what


BECOMING = """
CREATE ROLE first LOGIN;
CREATE ROLE second LOGIN;
GRANT second TO first;
CREATE SCHEMA becoming AUTHORIZATION first;
SET ROLE first;
CREATE FUNCTION becoming.handle_call(request jsonb, INOUT state jsonb, OUT reply jsonb) LANGUAGE plpgsql AS $$
BEGIN
    IF request ? 'lock' THEN
        PERFORM dgen.lock();
        RETURN;
    ELSIF request ? 'effect' THEN
        PERFORM dgen.after_commit('becoming.effect', request->'effect');
    ELSIF request ? 'do' THEN
        EXECUTE request->>'do';
    END IF;
    reply := jsonb_build_array(current_user, session_user, current_setting('work_mem'), current_setting('search_path'));
END $$;
CREATE PROCEDURE becoming.handle_locked(kind text, message jsonb, INOUT state jsonb, INOUT reply jsonb) LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE message->>'lock';
    COMMIT;
    reply := to_jsonb(current_user);
END $$;
CREATE FUNCTION becoming.effect(args jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE args->>0;
END $$;
SELECT dgen.create_module('becoming');
"""


def test_a_worker_stays_its_owner(shared_cluster):
    """Whatever a handler has become, the next one begins as the owner."""
    shared_cluster.psql(BECOMING)
    with shared_cluster.connect() as conn:
        clean = value(conn, "SELECT dgen.call('becoming/a', '{}')")
        assert clean[:2] == ["first", "first"]
        for command in ("SET ROLE second", "SET work_mem = '1 MB'", "SET search_path = second",
                        "SELECT set_config('role', 'second', false)", "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY"):
            for server in "ab":
                for way in ("lock", "effect", "do"):
                    conn.execute("SELECT dgen.call(%s, jsonb_build_object(%s::text, %s::text), '30 s')",
                                 ("becoming/" + server, way, command))
                    wait_idle(conn)
                    assert value(conn, "SELECT dgen.call('becoming/a', '{}')") == clean, (command, way)
                    assert value(conn, "SELECT dgen.call('becoming/c', '{\"effect\": \"SELECT 1\"}')") == clean, (command, way)
        # and what is tried in vain
        for command in ("SET ROLE postgres", "SET SESSION AUTHORIZATION postgres"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                conn.execute("SELECT dgen.call('becoming/a', jsonb_build_object('do', %s::text))", (command,))


# ------------------------------------------------------------------ who holds up whom


HOG = """
CREATE ROLE hog LOGIN;
CREATE ROLE patient LOGIN;
CREATE SCHEMA hog AUTHORIZATION hog;
CREATE SCHEMA patient AUTHORIZATION patient;
SET ROLE hog;
CREATE FUNCTION hog.handle_cast(message jsonb, INOUT state jsonb) LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_sleep(0.03);
    PERFORM dgen.cast(dgen.self(), message);
END $$;
SELECT dgen.create_module('hog');
SET ROLE patient;
CREATE FUNCTION patient.handle_call(request jsonb, INOUT state jsonb, OUT reply jsonb) LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_sleep(0.03);
    reply := request;
END $$;
SELECT dgen.create_module('patient');
"""


def test_slow_modules_of_one_owner_leave_a_place_to_those_of_others(cluster):
    """Servers that never rest, and take all places that slow ones may take."""
    cluster.psql("CREATE EXTENSION dgen")
    cluster.psql(HOG)
    with cluster.connect() as conn:
        for i in range(12):
            conn.execute("SELECT dgen.cast(%s, '1')", ("hog/%d" % i,))
        wait_for(lambda: value(conn, "SELECT count(*) FROM dgen.workers WHERE owner = 'hog' AND state = 'busy'") >= 3)
        for i in range(20):
            assert value(conn, "SELECT dgen.call('patient/a', '1', '20 s')") == 1
        conn.execute("SELECT dgen.suspend(module => 'hog')")


# ------------------------------------------------------------------ who sees what


def test_views_show_nothing_to_strangers(vault):
    """Nor to a function in a condition, that is asked before the view's own."""
    with vault.connect() as admin:
        views = relations_of(admin, "v")
        owners = {v: value(admin, "SELECT string_agg(t::text, '') FROM %s t" % v) for v in views}
    # the test would be worth nothing if there was nothing to be seen
    shown = [v for v in views if SECRET in (owners[v] or "")]
    assert len(shown) >= 8, shown
    s = Session(vault, "stranger")
    s.conn.execute("""
        CREATE FUNCTION pg_temp.leak(text) RETURNS boolean LANGUAGE plpgsql COST 0.0000001 AS $$
        BEGIN
            RAISE NOTICE 'leak: %', $1;
            RETURN true;
        END $$""")
    for view in views + ["vault.servers"]:
        for statement in ("SELECT * FROM %s" % view,
                          "SELECT count(*) FROM %s v WHERE pg_temp.leak(v::text)" % view,
                          "SELECT v::text FROM %s v ORDER BY 1" % view,
                          "SELECT count(*) FROM %s v HAVING pg_temp.leak(string_agg(v::text, ','))" % view):
            out, state = s.run(statement)
            assert SECRET not in out and KEY not in out, (statement, out)
            assert state in (None, "42501"), (statement, out)
    for table in relations_of(s.conn, "rS"):
        for statement in ("SELECT * FROM %s", "TABLE ONLY %s", "COPY %s TO STDOUT"):
            assert s.run(statement % table)[1] == "42501", table


# what an argument may be, by its name and else by its type
BY_NAME = {
    "server": ["'vault/plugh'", "'vault/plugh5'", "'vault/plugh6'", "'vault/none'", "'name xyzzy'"],
    "servers": ["ARRAY['vault/plugh', 'vault/plugh5']"],
    "module": ["'vault'"],
    "name": ["'vault'", "'name xyzzy'", "'group xyzzy'", "'timer xyzzy'", "'sup-xyzzy'"],
    "supervisor": ["'sup-xyzzy'"],
    "child": ["'child xyzzy'"],
    "callback": ["'handle_query'", "'handle_call'"],
    "request_key": ["'key xyzzy'"], "key": ["'key xyzzy'"],
    "timeout": ["'1 ms'"], "reason": ["'because'"],
    "messages": ["'[{\"server\": \"vault/plugh\", \"message\": 1}]'"],
    "tree": ["'{\"children\": [{\"id\": \"a\", \"server\": \"vault/plugh\"}]}'"],
    "expression": ["'attributes->>''secret'''"],
    "owner": ["'keeper_of_secrets'"],
}
BY_TYPE = {
    "text": ["'vault/plugh'", "'vault'", "'xyz'"], "jsonb": ["'{\"monitor\": \"vault/plugh\"}'", "'1'"],
    "boolean": ["true", "false"], "integer": ["1", "0"], "smallint": ["1"], "bigint": ["1"],
    "interval": ["'1 ms'"], "timestamp with time zone": ["now()", "'infinity'"],
    "text[]": ["ARRAY['vault/plugh']"], "bigint[]": ["ARRAY[1]"], "double precision": ["1"],
    "regproc": ["'vault.effect'"], "regprocedure": ["'vault.effect(jsonb)'"], '"char"': ["'c'"],
}


def candidates(function, i, extra, of_rival=False):
    """of_rival: also what belongs to one who has a module of his own."""
    name, type = function.names[i], function.types[i]
    found = [] if not of_rival else ["'rival/a'"] if name == "server" else \
        ["'rival'"] if name in ("module", "name") and function.name != "register" else []
    found = found + BY_NAME.get(name, []) + (extra if type == "bigint" else []) + BY_TYPE.get(type, [])
    return found + ["NULL"]


@pytest.mark.parametrize("user", ["stranger", "rival"])
def test_functions_tell_nothing_to_strangers(vault, request, user):
    """Every function, by one who knows addresses, names and ids, but has no rights, or those of
    a module of his own."""
    rng = random.Random(seed_of(request))
    with vault.connect() as admin:
        functions = functions_of(admin)
        ids = [str(i) for i, in admin.execute("""
            SELECT id FROM dgen.message UNION SELECT id FROM dgen.letter UNION SELECT id FROM dgen.delayed
            UNION SELECT id FROM dgen.reply UNION SELECT id FROM dgen.timer
            UNION SELECT ref FROM dgen.monitor""")]
        assert len(ids) > 6
        before = contents(admin)
        leaks, passed = {}, set()
        s = Session(vault, user)
        for f in functions:
            pools = [candidates(f, i, ids, user == "rival") +
                     ([str(p) for p in vault.pids] if n == "pid" else []) for i, n in enumerate(f.names)]
            combinations = list(itertools.islice(itertools.product(*pools[:f.required]), 40))
            for _ in range(rounds_of(20)):
                combinations.append([rng.choice(p) if i < f.required or rng.random() < 0.3 else None
                                     for i, p in enumerate(pools)])
            for values in combinations:
                values = list(values) + [None] * (len(f.types) - len(values))
                statement = f.call(values)
                if f.procedure:
                    out, state = s.run(statement)
                else:
                    s.conn.execute("BEGIN")
                    out, state = s.run(statement)
                    s.conn.execute("ROLLBACK")
                words = set(re.findall(r"%s\w*|%s\w*" % (SECRET, KEY), out))
                # what he passed himself may come back, or be told of; from his own server also later
                if any(word not in statement and not ("rival/a" in statement and word in passed) for word in words):
                    leaks.setdefault(f.signature, (statement, state, out))
                passed.update(re.findall(r"%s\w*|%s\w*" % (SECRET, KEY), statement))
                assert not (state or "").startswith("XX"), (statement, out)
        assert not leaks
        after = contents(admin)
        for table in before:
            kept = set(after[table])
            assert not [row for row in before[table] if "vault" in row[0] and row not in kept], table
            assert not [row for row in after[table] if "vault/" in row[0] and "rival" not in row[0]
                        and row not in before[table]], table


def test_no_difference_between_what_is_and_what_is_not(vault):
    """One without rights learns from no answer whether a server exists."""
    s = Session(vault, "stranger")
    s.conn.execute("SET client_min_messages = notice")
    functions = [f for f in functions_of(s.conn) if "server" in f.names]
    assert len(functions) > 20
    for f in functions:
        for there, nowhere in (("vault/plugh", "vault/where"), ("vault/plugh5", "vault/where5"),
                               ("vault/plugh3", "vault/where3")):
            answers = []
            for server in (there, nowhere):
                values = []
                for i, n in enumerate(f.names):
                    pool = candidates(f, i, [])
                    values.append("'%s'" % server if n == "server" else
                                  pool[0] if i < f.required else None)
                s.conn.execute("BEGIN") if not f.procedure else None
                out, state = s.run(f.call(values))
                s.conn.execute("ROLLBACK") if not f.procedure else None
                answers.append((re.sub(r"plugh|where", "KEY", out), state))
            assert answers[0] == answers[1], f.signature


def test_no_difference_between_ids(vault):
    """Nor whether there is a message, a dead letter, a timer, a request or a change with an id."""
    with vault.connect() as admin:
        tables = {t: value(admin, "SELECT min(id) FROM dgen.%s WHERE server LIKE 'vault/%%%%'" % t)
                  for t in ("message", "delayed", "letter", "reply", "timer", "audit", "attempt")}
        tables = {t: i for t, i in tables.items() if i is not None}
        assert len(tables) >= 6, tables
    s = Session(vault, "stranger")
    s.conn.execute("SET client_min_messages = notice")
    functions = [f for f in functions_of(s.conn) if {"id", "letter", "ids", "request_id", "request_ids", "ref"} & set(f.names)]
    assert len(functions) > 12
    nothing = 1 << 50
    for f in functions:
        for table, there in tables.items():
            # an id that was drawn, and is no message's, has ended, whoever asks
            if f.name == "message_status" and table in ("audit", "reply"):
                continue
            answers = []
            for id in (there, nothing):
                values = [str(id) if n in ("id", "letter", "request_id", "ref") else
                          "'{%d}'" % id if n in ("ids", "request_ids") else
                          candidates(f, i, [])[0] if i < f.required else None for i, n in enumerate(f.names)]
                s.conn.execute("BEGIN")
                out, state = s.run(f.call(values))
                s.conn.execute("ROLLBACK")
                answers.append((re.sub(r"\b%d\b" % id, "ID", out), state))
            assert answers[0] == answers[1], (f.signature, table)


def test_processes_and_notifications_tell_nothing(vault):
    s = Session(vault, "stranger")
    notes = []
    s.conn.add_notify_handler(notes.append)
    for channel in ("dgen_reply", "dgen_state", "dgen"):
        s.conn.execute("LISTEN %s" % channel)
    with vault.connect(user="keeper_of_secrets") as conn:
        request = value(conn, "SELECT dgen.send_request('vault/plugh', '\"xyzzy\"')")
        conn.execute("SELECT dgen.wait_response(%s)", (request,))
    wait_for(lambda: s.conn.execute("SELECT 1") and notes)
    assert {n.payload for n in notes} == {str(request)}
    for relation in ("pg_stat_activity", "pg_locks", "pg_prepared_xacts", "pg_stat_user_functions",
                     "pg_stat_all_tables", "pg_stat_all_indexes", "pg_stats", "pg_description",
                     "pg_settings", "pg_cursors"):
        out, _ = s.run("SELECT t::text FROM pg_catalog.%s t" % relation)
        assert SECRET not in out and KEY not in out, relation


# ------------------------------------------------------------------ the extension's own SQL


def rows(conn, query):
    return [r[0] for r in conn.execute(query)]


MEMBER = """EXISTS (SELECT FROM pg_depend d JOIN pg_extension e ON e.oid = d.refobjid AND e.extname = 'dgen'
    WHERE d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e'
      AND d.classid = '%s'::regclass AND d.objid = %s.oid)"""


def test_review_of_the_catalog(shared_cluster):
    """Each rule with its reason is in doc/security.md.  A query returns what breaks it."""
    with shared_cluster.connect() as conn:
        for rule, query in {
            # all that is dgen's stands where nobody else can make anything
            "functions stand in dgen": "SELECT oid::regprocedure::text FROM pg_proc p WHERE %s AND pronamespace <> 'dgen'::regnamespace"
                                       % (MEMBER % ("pg_proc", "p")),
            "relations stand in dgen": "SELECT oid::regclass::text FROM pg_class c WHERE %s AND relnamespace <> 'dgen'::regnamespace"
                                       % (MEMBER % ("pg_class", "c")),
            "only superusers make anything in dgen": """
                SELECT nspacl::text FROM pg_namespace n, aclexplode(nspacl) a
                WHERE nspname = 'dgen' AND a.privilege_type = 'CREATE' AND a.grantee <> nspowner""",
            "no casts, no event triggers, no languages": """
                SELECT classid::regclass::text FROM pg_depend d JOIN pg_extension e ON e.oid = d.refobjid AND e.extname = 'dgen'
                WHERE d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e'
                  AND classid NOT IN ('pg_proc'::regclass, 'pg_class'::regclass, 'pg_operator'::regclass, 'pg_type'::regclass,
                                      'pg_opclass'::regclass, 'pg_opfamily'::regclass)""",
            "operator classes are asked for": "SELECT opcname FROM pg_opclass c WHERE %s AND opcdefault" % (MEMBER % ("pg_opclass", "c")),
            # functions
            "nothing is SECURITY DEFINER": "SELECT oid::regprocedure::text FROM pg_proc p WHERE %s AND prosecdef" % (MEMBER % ("pg_proc", "p")),
            "C, or SQL that was parsed when it was made": """
                SELECT oid::regprocedure::text FROM pg_proc p WHERE %s AND NOT (
                    prolang = (SELECT oid FROM pg_language WHERE lanname = 'c') AND probin = '$libdir/dgen'
                    OR prolang = (SELECT oid FROM pg_language WHERE lanname = 'sql') AND prosqlbody IS NOT NULL)"""
                % (MEMBER % ("pg_proc", "p")),
            "no arguments of pseudotypes": """
                SELECT p.oid::regprocedure::text FROM pg_proc p, unnest(proargtypes) a JOIN pg_type t ON t.oid = a
                WHERE %s AND t.typtype = 'p'""" % (MEMBER % ("pg_proc", "p")),
            "leakproof is what cannot fail": """
                SELECT proname FROM pg_proc p WHERE %s AND proleakproof AND proname <> 'metadata_contains'""" % (MEMBER % ("pg_proc", "p")),
            "operators are of functions in dgen": """
                SELECT o.oid::regoperator::text FROM pg_operator o JOIN pg_proc p ON p.oid = oprcode
                WHERE %s AND p.pronamespace <> 'dgen'::regnamespace""" % (MEMBER % ("pg_operator", "o")),
            "types are those of relations": """
                SELECT oid::regtype::text FROM pg_type t WHERE %s AND typtype <> 'c' AND typcategory <> 'A'""" % (MEMBER % ("pg_type", "t")),
            # rights
            "tables and sequences are nobody's": """
                SELECT oid::regclass::text FROM pg_class c, aclexplode(relacl) a
                WHERE %s AND relkind IN ('r', 'S') AND a.grantee <> relowner""" % (MEMBER % ("pg_class", "c")),
            "views can be read, and no more": """
                SELECT oid::regclass || ' ' || a.privilege_type FROM pg_class c, aclexplode(relacl) a
                WHERE %s AND relkind = 'v' AND a.grantee <> relowner AND (a.privilege_type <> 'SELECT' OR a.is_grantable)"""
                % (MEMBER % ("pg_class", "c")),
            "views of tables are security barriers": """
                SELECT DISTINCT c.oid::regclass::text FROM pg_class c JOIN pg_rewrite r ON ev_class = c.oid
                    JOIN pg_depend d ON d.classid = 'pg_rewrite'::regclass AND d.objid = r.oid AND d.refclassid = 'pg_class'::regclass
                    JOIN pg_class t ON t.oid = d.refobjid AND t.relkind = 'r'
                WHERE %s AND c.relkind = 'v' AND NOT coalesce(c.reloptions @> '{security_barrier=true}', false)"""
                % (MEMBER % ("pg_class", "c")),
            "views of tables ask for rights": """
                SELECT DISTINCT c.oid::regclass::text FROM pg_class c JOIN pg_rewrite r ON ev_class = c.oid
                    JOIN pg_depend d ON d.classid = 'pg_rewrite'::regclass AND d.objid = r.oid AND d.refclassid = 'pg_class'::regclass
                    JOIN pg_class t ON t.oid = d.refobjid AND t.relkind = 'r'
                WHERE %s AND c.relkind = 'v' AND NOT EXISTS (
                    SELECT FROM pg_depend f JOIN pg_proc p ON p.oid = f.refobjid
                    WHERE f.classid = 'pg_rewrite'::regclass AND f.objid = r.oid AND f.refclassid = 'pg_proc'::regclass
                      AND p.pronamespace = 'dgen'::regnamespace AND p.proname ~ '^may_')"""
                % (MEMBER % ("pg_class", "c")),
            # what writes below the executor would overlook, and what would run as whoever writes
            "tables have no triggers": "SELECT tgname FROM pg_trigger JOIN pg_class c ON c.oid = tgrelid WHERE relnamespace = 'dgen'::regnamespace",
            "nor rules": """SELECT rulename FROM pg_rewrite JOIN pg_class c ON c.oid = ev_class
                            WHERE relnamespace = 'dgen'::regnamespace AND relkind <> 'v'""",
            "nor constraints but their keys": """SELECT conname FROM pg_constraint
                            WHERE connamespace = 'dgen'::regnamespace AND contype NOT IN ('p', 'u', 'n')""",
            "nor policies": "SELECT polname FROM pg_policy JOIN pg_class c ON c.oid = polrelid WHERE relnamespace = 'dgen'::regnamespace",
            "nor indexes of expressions": """SELECT indexrelid::regclass::text FROM pg_index JOIN pg_class c ON c.oid = indrelid
                            WHERE relnamespace = 'dgen'::regnamespace AND (indexprs IS NOT NULL OR indpred IS NOT NULL)""",
        }.items():
            assert rows(conn, query) == [], rule
        with open(TOP + "/doc/security.md") as f:
            text = f.read()
        settings = rows(conn, "SELECT name FROM pg_settings WHERE name LIKE 'dgen.%' AND context = 'user'")
        assert settings
        assert [s for s in settings if "`%s`" % s not in text] == [], "what anybody may set is explained"


def test_default_privileges(cluster):
    """What they grant on all that a superuser makes is not granted on dgen's tables, now or in a dump."""
    cluster.psql("""
        CREATE ROLE reader;
        CREATE ROLE "odd ""role";
        CREATE ROLE owner LOGIN;
        ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO reader, "odd ""role" WITH GRANT OPTION;
        ALTER DEFAULT PRIVILEGES GRANT INSERT ON TABLES TO PUBLIC;
        ALTER DEFAULT PRIVILEGES GRANT ALL ON SEQUENCES TO reader, PUBLIC;
        CREATE EXTENSION dgen;
        CREATE SCHEMA shown AUTHORIZATION owner;
        SET ROLE owner;
        CREATE FUNCTION shown.handle_call(request jsonb, INOUT state jsonb, OUT reply jsonb) LANGUAGE sql AS $$ SELECT state, state $$;
        CREATE FUNCTION shown.attributes(state jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT state $$;
        SELECT dgen.create_module('shown');
        RESET ROLE;
        CREATE TABLE public.other (i integer);""")
    granted = """SELECT c.oid::regclass::text, coalesce(a.grantee::regrole::text, 'PUBLIC'), a.privilege_type
        FROM pg_class c, aclexplode(relacl) a WHERE relnamespace = '%s'::regnamespace AND relkind IN ('r', 'S') AND a.grantee <> relowner"""
    with cluster.connect() as conn:
        # the test would be worth nothing if they granted nothing
        assert len(conn.execute(granted % "public").fetchall()) > 10
        assert conn.execute(granted % "dgen").fetchall() == [("dgen.attributes_1", "owner", "SELECT")]
        # a trigger on a view would run as the superuser who repairs something there
        assert conn.execute("""SELECT DISTINCT a.grantee, a.privilege_type, a.is_grantable FROM pg_class c, aclexplode(relacl) a
            WHERE relnamespace = 'dgen'::regnamespace AND relkind = 'v' AND a.grantee <> relowner""").fetchall() == [(0, "SELECT", False)]
        assert value(conn, "SELECT has_table_privilege('reader', 'dgen.servers', 'SELECT')") is True
    dump = cluster.run("pg_dump", "-s", "-h", cluster.socket_dir, "-p", str(cluster.port), "-U", "postgres", "postgres")
    assert re.findall(r"^(?:GRANT|REVOKE) .*(?:TABLE|SEQUENCE) dgen\..*", dump, re.M) == \
        ["GRANT SELECT ON TABLE dgen.attributes_1 TO owner WITH GRANT OPTION;"]


def test_review_of_the_scripts():
    """What the catalog does not show."""
    names = re.search(r"^SQL_PARTS = (.*)$", open(TOP + "/Makefile").read(), re.M).group(1).split()
    script = "\n".join(open("%s/sql/%s.sql" % (TOP, n)).read() for n in names)
    script = re.sub(r"/\*.*?\*/", "", script, flags=re.S)
    script = re.sub(r"'(?:[^']|'')*'", "''", re.sub(r"--.*", "", script))
    first = [line for line in script.splitlines() if line.strip() and not line.startswith("\\")][0]
    assert first == "SET LOCAL search_path TO pg_catalog, pg_temp;", first
    assert len(re.findall(r"search_path TO|SET search_path", script)) == 1
    # what is there already is somebody else's
    for forbidden in (r"\bOR\s+REPLACE\b", r"\bIF\s+NOT\s+EXISTS\b", r"\bSECURITY\s+DEFINER\b", r"\bDO\s+\$", r"\bEXECUTE\s+format\b",
                      r"\bplpgsql\b"):
        assert not re.search(forbidden, script, re.I), forbidden
    made = re.findall(r"^\s*CREATE\s+(?:UNIQUE\s+)?(TABLE|VIEW|FUNCTION|PROCEDURE|SEQUENCE|OPERATOR CLASS|OPERATOR|TYPE|INDEX)\s+(\S+)", script, re.M)
    assert len(made) > 100
    for kind, name in made:
        assert kind == "INDEX" or name.startswith("dgen."), (kind, name)
    for table in re.findall(r"^\s*CREATE\s+(?:UNIQUE\s+)?INDEX.*?\bON\s+(\S+)", script, re.M):
        assert table.startswith("dgen."), table
    with open(TOP + "/dgen.control") as f:
        control = f.read()
    assert "relocatable = false" in control and "schema = dgen" in control and "trusted" not in control


# ------------------------------------------------------------------ what arguments may be

DEEP = "(repeat('[', 5000) || repeat(']', 5000))"
NASTY_TEXT = [
    "NULL", "''", "' '", "'/'", "'//'", "'fuzz'", "'fuzz/'", "'/fuzz'", "'fuzz/a'", "'fuzz/a/b//'", "'none/a'",
    "'fuzz/é😀'", "E'fuzz/\\u200b'", "E'fuzz/\\n\\t'", "'fuzz/%s%n%d\\'", "repeat('x', 1000000)",
    "'fuzz/' || repeat('x', 513)", "'fuzz/' || repeat('é', 256)", "repeat('/', 600)", "'$every:1'", "'*'",
    "'\"'", "''''", "'a.b'", "'a.b.c'", "'\"unclosed'", "'pg_catalog.now'", "'in_'", "'handle_call'", "'alter'",
    "'block'", "'on'", "'Europe/Berlin'", "'c123.abc'", "'r1.0'", "'0.0.fuzz/a'", "'1.1.fuzz/b'", "'9223372036854775807.1.fuzz/a'",
    "'attributes->>''a'''", "'1) FROM pg_authid --'", "'*, 1'", "'(SELECT 1)'", "'random()'", "'postgres'", "'public'",
    "'7 days'", "'100'", "'-1'", "'infinity'", "'gone/a'", "'fuzz_statem/a'", "'fuzz_external/a'", "'fuzz_statem'", "'fuzz_external'",
    "'name'", "'group'", "'sup'", "'statem'", "'keep'", "'stop'", "'error'", "'return'", "'running'", "'idle'",
]
NASTY = {
    "text": NASTY_TEXT,
    "jsonb": ["NULL", "'null'", "'1'", "'\"a\"'", "'{}'", "'[]'", "'{\"a\": {\"b\": [1, null]}}'", "'[{\"server\": \"fuzz/a\"}]'",
              "'[{\"server\": \"fuzz/a\", \"message\": 1}, {\"server\": \"none\"}, 1]'", "'[{\"server\": 1, \"message\": null}]'",
              "'{\"children\": [{\"id\": \"a\", \"server\": \"fuzz/s\"}]}'",
              "'{\"children\": [{\"id\": \"a\", \"children\": [{\"id\": 1}]}], \"strategy\": 1, \"period\": \"x\"}'",
              "'{\"children\": {}}'", "'{\"intensity\": -1, \"children\": []}'", "to_jsonb(repeat('x', 1000000))",
              DEEP, "'1e1000'", "'-0'", "'{\"\": \"\"}'", "E'\"\\\\ud83d\\\\ude00\"'", "'\"\\u0000\"'", "'{\"handle_call\": 1}'",
              "'{\"handle_call\": \"fuzz.handle_call\"}'", "'{\"handle_call\": \"a.b.c\"}'", "'{\"init\": null}'",
              "'{\"state_name\": \"a\", \"data\": 1}'", "'{\"kind\": \"cast\", \"event\": 1}'", "'{\"function\": 1}'",
              "(SELECT jsonb_object_agg('k' || i, i) FROM generate_series(1, 5000) i)", "'[1, [2], \"a\", {\"k\": []}]'", "'[-3, 1, [9]]'",
              "'[-9223372036854775808]'", "'[1e400]'"],
    "boolean": ["NULL", "true", "false"],
    "smallint": ["NULL", "0", "1", "-1", "2", "32767", "(-32768)"],
    "integer": ["NULL", "0", "1", "-1", "2147483647", "(-2147483648)", "100", "pg_backend_pid()"],
    "bigint": ["NULL", "0", "1", "-1", "9223372036854775807", "(-9223372036854775808)", "(SELECT min(id) FROM dgen.messages)",
               "(SELECT max(id) FROM dgen.messages)", "(SELECT max(id) FROM dgen.dead_letters)", "100", "(1::bigint << 40)"],
    "double precision": ["NULL", "0", "1", "'NaN'", "'infinity'", "'-infinity'", "1e308", "1e-320", "-1"],
    "interval": ["NULL", "'0'", "'1 ms'", "'-1 s'", "'178000000 years'", "'-178000000 years'", "'1 month -30 days'",
                 "'9223372036854 s'", "'2147483647 days'", "'20 ms'", "'1 day'", "INFINITE"],
    "timestamp with time zone": ["NULL", "'infinity'", "'-infinity'", "'294276-12-31'", "'4713-01-01 BC'", "now()", "'epoch'",
                                 "now() + interval '1 hour'"],
    "text[]": ["NULL", "'{}'", "'{NULL}'", "'{{a,b},{c,d}}'", "'{fuzz/a,NULL,x}'", "'[5:6]={fuzz/a,fuzz/b}'",
               "array_fill('fuzz/a'::text, '{1000}')", "'{fuzz/a}'", "ARRAY[repeat('x', 100000)]"],
    "bigint[]": ["NULL", "'{}'", "'{NULL}'", "'{{1,2},{3,4}}'", "'{1,1}'", "'[-3:-2]={1,2}'", "array_fill(1::bigint, '{10000}')",
                 "ARRAY(SELECT id FROM dgen.messages)"],
    "regproc": ["NULL", "'fuzz.effect'", "'now'", "0", "4294967295", "'pg_catalog.pg_reload_conf'"],
    "regprocedure": ["NULL", "'fuzz.effect(jsonb)'", "0", "4294967295"],
    '"char"': ["NULL", "''", "'c'", "'x'", "'z'"],
    "oid": ["NULL", "0", "1", "4294967295"],
    "uuid": ["NULL", "gen_random_uuid()"],
}
# as a callback has it, most of these are said in
FUZZ = """
CREATE ROLE fuzz LOGIN;
CREATE SCHEMA fuzz AUTHORIZATION fuzz;
CREATE SCHEMA fuzz_statem AUTHORIZATION fuzz;
CREATE SCHEMA fuzz_external AUTHORIZATION fuzz;
GRANT CREATE ON SCHEMA public TO fuzz;
SET ROLE fuzz;
CREATE FUNCTION fuzz.handle_call(request jsonb, INOUT state jsonb, OUT reply jsonb) LANGUAGE plpgsql AS $$
BEGIN
    IF jsonb_typeof(request) = 'string' AND request ->> 0 ~ '^(SELECT|CALL)' THEN
        EXECUTE request ->> 0;
    END IF;
    reply := request;
END $$;
CREATE FUNCTION fuzz.handle_cast(message jsonb, INOUT state jsonb) LANGUAGE sql AS $$ SELECT message $$;
CREATE FUNCTION fuzz.handle_info(message jsonb, INOUT state jsonb) LANGUAGE sql AS $$ SELECT message $$;
CREATE FUNCTION fuzz.handle_continue(message jsonb, INOUT state jsonb) LANGUAGE sql AS $$ SELECT message $$;
CREATE FUNCTION fuzz.handle_query(query jsonb, state jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT state $$;
CREATE FUNCTION fuzz.attributes(state jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT jsonb_build_object('a', jsonb_typeof(state)) $$;
CREATE FUNCTION fuzz.effect(args jsonb) RETURNS void LANGUAGE sql AS $$ SELECT $$;
CREATE FUNCTION fuzz_statem.init(args jsonb, OUT data jsonb, OUT state_name text) LANGUAGE sql AS $$ SELECT args, 'a' $$;
CREATE FUNCTION fuzz_statem.handle_event(kind text, event jsonb, state_name text, INOUT data jsonb, OUT next_state text, OUT reply jsonb)
LANGUAGE plpgsql AS $$
BEGIN
    IF jsonb_typeof(event) = 'string' AND event ->> 0 ~ '^SELECT' THEN
        EXECUTE event ->> 0;
    END IF;
    IF kind = 'call' THEN
        reply := event;
    END IF;
END $$;
SELECT dgen.create_module('fuzz', invoke_isolation => 'any', history => '10', max_attempts => 1, breaker => 0, vsn => '1');
SELECT dgen.create_module('fuzz_statem', kind => 'statem', invoke_isolation => 'any', max_attempts => 1, breaker => 0);
SELECT dgen.create_module('fuzz_external', "external" => true);
SELECT dgen.call('fuzz/a', '1');
SELECT dgen.call('fuzz/b', '2', request_key => 'k');
SELECT dgen.start('fuzz_statem/a');
SELECT dgen.register('name', 'fuzz/a', '{"a": 1}', true), dgen.join_group('group', 'fuzz/a', true);
SELECT dgen.supervise('sup', '{"children": [{"id": "a", "server": "fuzz/sup"}]}');
SELECT dgen.send_request('fuzz_external/a', '1'), dgen.cast('fuzz_external/a', '2');
SELECT dgen.send_after('fuzz/a', '1', '1 hour'), dgen.send_every('fuzz/a', '1', '1 hour', name => 'name');
"""
# of classes that input may have, 40 and 57 for what waits; and of dgen's own what the reference lists
CLASSES = {"0A", "22", "23", "25", "40", "42", "53", "54", "55", "P0", "2B", "3F", "2F", "34", "3D", "02", "21", "28"}


class Fuzzer:
    """Calls of all functions with arguments by chance, some of them within handlers."""

    def __init__(self, cluster, rng, user="fuzz"):
        self.cluster, self.rng, self.user = cluster, rng, user
        with open(TOP + "/doc/reference.md") as f:
            self.documented = set(re.findall(r"\bOT\d\d\d\b", f.read()))
        self.conn = cluster.connect(user=user)
        self.conn.execute("SET statement_timeout = '500 ms'")
        self.conn.execute("SET client_min_messages = error")
        self.functions = [f for f in functions_of(self.conn)]
        self.infinite = "'infinity'" if self.conn.info.server_version >= 170000 else "'1 year'"
        self.states = {}

    def argument(self, name, type):
        if self.rng.random() < 0.3 and name in ("server", "supervisor", "module", "child"):
            return self.rng.choice({"server": ["'fuzz/a'", "'fuzz/b'", "'fuzz_statem/a'", "'fuzz_external/a'"],
                                    "supervisor": ["'sup'"], "module": ["'fuzz'"], "child": ["'a'"]}[name])
        pool = NASTY.get(type)
        assert pool, "no arguments of type %s are known" % type
        return self.rng.choice(pool).replace("INFINITE", self.infinite)

    def statement(self):
        f = self.rng.choice(self.functions)
        values = [self.argument(n, t) if i < f.required or self.rng.random() < 0.5 else None
                  for i, (n, t) in enumerate(zip(f.names, f.types))]
        # ends what all others need
        if f.name in ("drop_module",) or (f.name == "suspend" and "true" in values):
            return None
        if f.name in ("wait_server", "wait_work", "wait_response", "receive_response", "wait_any", "wait_state", "wait_idle") or \
                f.name.startswith("wait"):
            values = ["'20 ms'" if n == "timeout" else v for n, v in zip(f.names, values)]
        return f.procedure, f.call(values)

    def within(self, statement):
        """The same, by a handler."""
        way = self.rng.choice(["dgen.call('fuzz/a', %s, '3 s')", "dgen.invoke('fuzz/b', %s)",
                               "dgen.invoke('fuzz_statem/a', %s)", "dgen.try('fuzz', 'handle_call', %s, '1')"])
        return "SELECT " + way % ("to_jsonb(%s::text)" % quoted(statement))

    def check(self, statement, error):
        state = error.sqlstate
        assert state, "the connection is lost: %s\n%s" % (statement[:500], error)
        self.states[state] = self.states.get(state, 0) + 1
        assert state in self.documented or state[:2] in CLASSES or state == "57014", \
            "%s: %s\n%s" % (statement[:1000], state, all_of(error))

    def one(self):
        picked = self.statement()
        if picked is None:
            return
        procedure, statement = picked
        kind = self.rng.random()
        if not procedure and kind < 0.3:
            statement = self.within(statement)
        block = not procedure and kind > 0.8
        try:
            if block:
                self.conn.execute("BEGIN")
            self.conn.execute(statement)
        except psycopg.Error as e:
            self.check(statement, e)
        if block:
            try:
                self.conn.execute(self.rng.choice(["ROLLBACK", "COMMIT"]))
            except psycopg.Error as e:
                self.check("COMMIT of " + statement, e)
                self.conn.execute("ROLLBACK")


def quoted(text):
    return "'" + text.replace("'", "''") + "'"


def fuzz(cluster, request, rounds, users=("fuzz", "postgres")):
    """Both at once, so that what one does meets what the other has half done."""
    seed = seed_of(request)
    with cluster.connect() as admin:
        pid = cluster.postmaster_pid()
        states = {}

        def run(user):
            f = Fuzzer(cluster, random.Random("%s %s" % (seed, user)), user)
            for _ in range(rounds):
                f.one()
            f.conn.close()
            states.update(f.states)
        in_threads([lambda user=user: run(user) for user in users], timeout=7000)
        assert len(states) > 15, states
        cluster.assert_no_crash()
        assert "XX000" not in cluster.log_text()
        assert "TRAP: " not in cluster.log_text()
        assert cluster.postmaster_pid() == pid
        # and all goes on
        for module in ("fuzz", "fuzz_statem", "fuzz_external"):
            try:
                admin.execute("SELECT dgen.resume(module => %s)", (module,))
            except psycopg.Error:
                pass
        invariants(admin)
    print(rounds * len(users), "calls, errors", states)


def invariants(conn):
    """What holds of dgen's tables, whatever was done."""
    for wrong in (
            "SELECT server FROM dgen.server WHERE status = 'a' AND incarnation = 0",
            "SELECT m.id FROM dgen.message m JOIN dgen.delayed d USING (id)",
            "SELECT m.id FROM dgen.message m JOIN dgen.postponed d USING (id)",
            "SELECT m.id FROM dgen.message m JOIN dgen.letter d USING (id)",
            "SELECT server FROM dgen.server s WHERE lock_id IS NOT NULL AND NOT EXISTS (SELECT FROM dgen.message m WHERE m.id = s.lock_id)",
            "SELECT server FROM dgen.server WHERE version < base_version"):
        assert not conn.execute(wrong).fetchall(), wrong
    for view in relations_of(conn, "v"):
        conn.execute("SELECT count(v::text) FROM %s v" % view)
    conn.execute("CREATE SCHEMA after_all")
    conn.execute("""
        CREATE FUNCTION after_all.handle_call(request jsonb, INOUT state jsonb, OUT reply jsonb)
        LANGUAGE sql AS 'SELECT state, request'""")
    conn.execute("SELECT dgen.create_module('after_all')")
    try:
        assert value(conn, "SELECT dgen.call('after_all/a', '1', '30 s')") == 1
    except psycopg.Error:
        for table in ("dgen.why('after_all/a')", "dgen.workers", "dgen.pools",
                      "(SELECT pid, usename, state, wait_event, left(query, 200) FROM pg_stat_activity) a"):
            print(table, *conn.execute("SELECT * FROM %s" % table).fetchall(), sep="\n  ")
        raise
    conn.execute("SELECT dgen.drop_module('after_all', true)")
    conn.execute("DROP SCHEMA after_all CASCADE")


def test_arguments_by_chance(cluster, request):
    cluster.psql("CREATE EXTENSION dgen")
    cluster.psql(FUZZ)
    fuzz(cluster, request, rounds_of(300))


LIAR = """
CREATE SCHEMA liar AUTHORIZATION fuzz;
SET ROLE fuzz;
CREATE FUNCTION liar.handle_call(request jsonb, INOUT state jsonb, OUT reply jsonb, OUT noreply boolean,
    OUT exit text, OUT reject text, OUT retry_after interval, OUT "continue" jsonb, OUT timeout interval,
    OUT postpone boolean, OUT lock boolean) LANGUAGE plpgsql AS $$
BEGIN
    %(say)s
END $$;
CREATE FUNCTION liar.handle_cast(message jsonb, INOUT state jsonb,
    OUT exit text, OUT reject text, OUT retry_after interval, OUT "continue" jsonb, OUT timeout interval,
    OUT postpone boolean, OUT lock boolean) LANGUAGE plpgsql AS $$
BEGIN
    %(say)s
END $$;
CREATE FUNCTION liar.handle_continue(message jsonb, INOUT state jsonb, OUT exit text, OUT timeout interval) LANGUAGE plpgsql AS $$
BEGIN
    %(say)s
END $$;
CREATE FUNCTION liar.init(args jsonb, OUT state jsonb, OUT "continue" jsonb, OUT timeout interval) LANGUAGE plpgsql AS $$
BEGIN
    %(say)s
END $$;
CREATE FUNCTION liar.handle_info(message jsonb, INOUT state jsonb) LANGUAGE sql AS $$ SELECT message $$;
CREATE FUNCTION liar.validate(state jsonb) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    IF state ? 'invalid' THEN
        RETURN nullif(state->>'invalid', '')::boolean;
    END IF;
    RETURN true;
END $$;
CREATE FUNCTION liar.attributes(state jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT state->'attributes' $$;
CREATE FUNCTION liar.format_status(state jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
    RETURN state->(state->>'key')::integer;
END $$;
CREATE PROCEDURE liar.handle_locked(kind text, message jsonb, INOUT state jsonb, INOUT reply jsonb) LANGUAGE plpgsql AS $$
BEGIN
    state := message;
    ROLLBACK;
    reply := NULL;
END $$;
SELECT dgen.create_module('liar', max_attempts => 2, breaker => 0, backoff_initial => '1 ms', invoke_isolation => 'any',
    max_state_size => 10000000);
SELECT dgen.create_index('liar', 'attributes->>''a''', true);
"""
# what the message has in its object say: SQL for a column, or a function of dgen
SAY = """
    IF {0} ? 'say' THEN
        DECLARE
            said jsonb := {0}->'say';
            k text;
        BEGIN
            FOR k IN SELECT jsonb_object_keys(said) LOOP
                {1}
                IF k ~ '^f' THEN EXECUTE 'SELECT dgen.' || (said->>k); END IF;
            END LOOP;
        END;
    END IF;"""
COLUMN = """
                IF k = '{0}' THEN EXECUTE 'SELECT ' || (said->>k) INTO "{0}"; END IF;"""
SPANS = ["NULL", "'0'::interval", "'-1 day'::interval", "'178000000 years'::interval", "'1 ms'::interval"]
SAID = {
    "state": ["NULL", "'1'::jsonb", "'{\"invalid\": \"no\"}'::jsonb", "'{\"invalid\": \"\"}'::jsonb", "'{\"invalid\": \"x\"}'::jsonb",
              "'{\"attributes\": {\"a\": 1}}'::jsonb", "'{\"attributes\": {\"a\": 1, \"b\": 2}}'::jsonb", "'{\"key\": \"x\"}'::jsonb",
              "to_jsonb(repeat('x', 11000000))", "to_jsonb(repeat(md5('x'), 20000))", "(repeat('[', 5000) || repeat(']', 5000))::jsonb"],
    "reply": ["NULL", "'null'::jsonb", "to_jsonb(repeat('x', 3000000))"],
    "noreply": ["NULL", "true", "false"], "postpone": ["NULL", "true", "false"], "lock": ["NULL", "true", "false"],
    "exit": ["NULL", "''", "'normal'", "repeat('x', 100000)", "E'\\n'"], "reject": ["NULL", "''", "repeat('x', 100000)"],
    "retry_after": SPANS, "timeout": SPANS, "continue": ["NULL", "'1'::jsonb", "'{\"say\": {\"exit\": \"''x''\"}}'::jsonb"],
}
BY_FUNCTION = ["noreply()", "exit('x')", "reject('x')", "retry_after('1 ms')", "\"continue\"('1')", "timeout('1 s')", "postpone()",
               "\"lock\"()", "cast('liar/0', '1')", "send_after('liar/1', '1', '1 ms')", "monitor('liar/2')", "kill('liar/3')",
               "stop('liar/4')", "delete('liar/5')", "call('liar/6', '1')", "suspend('liar/7')", "resume('liar/7')",
               "replace_state(dgen.self(), '1')"]


def liar():
    everything = list(SAID)
    call, cast, go_on, init, rest = LIAR.split("%(say)s")

    def say(argument, columns):
        return SAY.format(argument, "".join(COLUMN.format(c) for c in columns))
    return (call + say("request", everything) +
            cast + say("message", [c for c in everything if c not in ("reply", "noreply")]) +
            go_on + say("message", ["state", "exit", "timeout"]) +
            init + say("args", ["state", "continue", "timeout"]) + rest)


def lie(rng):
    said = {k: rng.choice(v) for k, v in SAID.items() if rng.random() < 0.2}
    for i in range(rng.choice([0, 0, 1, 2])):
        said["f%d" % i] = rng.choice(BY_FUNCTION)
    return json.dumps({"say": said})


def refused(conn, statement, states):
    """Runs a statement, which may fail, but by no fault of dgen's."""
    try:
        conn.execute(statement)
    except psycopg.Error as e:
        assert e.sqlstate and not e.sqlstate.startswith(("XX", "57P", "08")), all_of(e)
        states[e.sqlstate] = states.get(e.sqlstate, 0) + 1


def answers(cluster, request, rounds):
    """What handlers say is by chance, contradictory, invalid, too large."""
    rng = random.Random(seed_of(request))
    states = {}
    with cluster.connect(user="fuzz") as conn:
        conn.execute("SET client_min_messages = error")
        for i in range(rounds):
            way = rng.choice(["call(%s, %s, '300 ms')", "call(%s, %s, '300 ms')", "cast(%s, %s)", "send_request(%s, %s)",
                              "invoke(%s, %s)", "start(%s, %s, if_exists => 'return')", "replace_state(%s, %s)"])
            refused(conn, "SELECT dgen." + way % (quoted("liar/%d" % rng.randrange(8)), quoted(lie(rng))), states)
            if i % 50 == 49:
                for server, repair in itertools.product(range(8), ("resume", "abort", "start")):
                    refused(conn, "SELECT dgen.%s('liar/%d')" % (repair, server), {})
                conn.execute("SELECT count(state), count(server) FROM dgen.servers")
    assert len(states) > 3, states
    cluster.assert_no_crash()
    assert "XX000" not in cluster.log_text() and "TRAP: " not in cluster.log_text()
    with cluster.connect() as admin:
        invariants(admin)
    print(rounds, "answers, errors", states)


def test_answers_by_chance(cluster, request):
    cluster.psql("CREATE EXTENSION dgen")
    cluster.psql(FUZZ)
    cluster.psql(liar())
    answers(cluster, request, rounds_of(300))


@pytest.mark.long
def test_answers_by_chance_for_long(cluster, request):
    cluster.psql("CREATE EXTENSION dgen")
    cluster.psql(FUZZ)
    cluster.psql(liar())
    answers(cluster, request, rounds_of(20000))


@pytest.mark.long
def test_arguments_by_chance_for_long(cluster, request):
    cluster.psql("CREATE EXTENSION dgen")
    cluster.psql(FUZZ)
    fuzz(cluster, request, rounds_of(50000))
