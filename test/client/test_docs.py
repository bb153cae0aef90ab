"""The documentation says what is: every SQL example of it is run, and all that
the extension has is in it.

In ```sql blocks a comment `--> value` is the row that the statement before it
returns (columns apart by ` | `, NULL as null; one such comment for each row),
and `--! SQLSTATE` the error that it raises.  A statement without either may
return anything, but must not fail.  `\\gset` instead of the semicolon keeps its
columns as variables, as in psql.  The blocks of one file are one session.  A
```python block between them is a program of its own, which connects as the
environment says; `# --> line` is what it prints.
"""

import glob
import os
import re
import subprocess
import sys

import psycopg
import pytest

from build import TOP, clean_environment

README = os.path.join(TOP, "README.md")
REFERENCE = os.path.join(TOP, "doc", "reference.md")


def text_of(path):
    with open(path) as f:
        return f.read()


def blocks_of(path):
    """[(number of the first line, language, text)]"""
    text = text_of(path)
    return [(text.count("\n", 0, m.start(2)) + 1, m.group(1), m.group(2))
            for m in re.finditer(r"^```(sql|python)\n(.*?)^```", text, re.S | re.M)]


TOKEN = re.compile(r"""
    (?P<quoted> \$(\w*)\$.*?\$\2\$ | '(?:[^']|'')*' | "[^"]*" )
  | (?P<expect> --[>!][^\n]* )
  | (?P<comment> --[^\n]* )
  | (?P<end> ; | \\gset\b )
  | (?P<other> . )""", re.S | re.X)


class Statement:
    def __init__(self, text, line, gset):
        self.text, self.line, self.gset = text, line, gset
        self.rows = []
        self.error = None


def statements(block, line):
    found = []
    text, start = "", None
    for m in TOKEN.finditer(block):
        if m.lastgroup == "expect":
            assert not text.strip(), "line %d: expectation inside a statement" % line
            value = m.group()[3:].strip()
            if m.group().startswith("--!"):
                found[-1].error = value
            else:
                found[-1].rows.append(value)
        elif m.lastgroup == "end":
            found.append(Statement(text.strip(), start, m.group() != ";"))
            text, start = "", None
        elif m.lastgroup != "comment":
            if start is None and m.group().strip():
                start = line
            text += m.group()
        line += m.group().count("\n")
    assert not text.strip(), "line %d: unfinished statement: %s" % (line, text)
    return found


def with_variables(text, variables):
    return re.sub(r"(?<![:\w]):(\w+)", lambda m: variables.get(m.group(1), m.group()), text)


def run(conn, statement, variables):
    """The rows as texts, or the SQLSTATE."""
    try:
        cur = conn.execute(with_variables(statement.text, variables))
    except psycopg.Error as e:
        return e.sqlstate, str(e)
    result = cur.pgresult
    rows = []
    for i in range(result.ntuples):
        values = [result.get_value(i, j) for j in range(result.nfields)]
        rows.append(["null" if v is None else v.decode() for v in values])
    if statement.gset:
        for j in range(result.nfields):
            variables[result.fname(j).decode()] = rows[0][j]
    return None, [" | ".join(row) for row in rows]


def run_file(cluster, path):
    return run_blocks(cluster, blocks_of(path))


def run_script(cluster, path):
    """The same of a file of SQL."""
    return run_blocks(cluster, [(1, "sql", text_of(path))])


def run_program(cluster, text):
    """What a program printed, and what it says that it prints."""
    info = cluster.conninfo()
    env = dict(clean_environment(), PGHOST=info["host"], PGPORT=str(info["port"]),
               PGUSER=info["user"], PGDATABASE=info["dbname"])
    done = subprocess.run([sys.executable, "-B", "-c", text], env=env, text=True, timeout=60,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    return done.stdout.splitlines(), re.findall(r"# --> (.*)$", text, re.M)


def run_blocks(cluster, blocks):
    wrong = []
    variables = {}
    checked = 0
    with cluster.connect() as conn:
        conn.execute("SET client_min_messages = error")
        for line, language, block in blocks:
            if language == "python":
                printed, expected = run_program(cluster, block)
                checked += 1
                if printed != expected:
                    wrong.append("line %d: printed\n%s\n  should be %r" % (line, "\n".join(printed), expected))
                continue
            for statement in statements(block, line):
                error, result = run(conn, statement, variables)
                checked += 1
                if error != statement.error:
                    wrong.append("line %d: %s\n  raised %s, should be %s\n  %s"
                                 % (statement.line, statement.text, error, statement.error, result))
                elif error is None and statement.rows and result != statement.rows:
                    wrong.append("line %d: %s\n  returned %r\n  should be %r"
                                 % (statement.line, statement.text, result, statement.rows))
    assert not wrong, "\n".join(wrong)
    return checked


def test_readme_examples(cluster):
    assert run_file(cluster, README) > 5


def test_reference_examples(cluster):
    assert run_file(cluster, REFERENCE) > 100


# other documents; what is told elsewhere has a test of its own
ELSEWHERE = {"reference.md", "operations.md"}
DOCUMENTS = sorted(glob.glob(os.path.join(TOP, "doc", "*.md")))


@pytest.mark.parametrize("path", [p for p in DOCUMENTS if os.path.basename(p) not in ELSEWHERE
                                  and blocks_of(p)], ids=os.path.basename)
def test_document(cluster, path):
    assert run_file(cluster, path) > 5


# --- all that there is, is in the reference

def section(heading):
    """What stands under a heading, up to the next one of its level or above."""
    level = heading.split(" ")[0]
    text = text_of(REFERENCE)
    m = re.search(r"^%s\n(.*?)(?=^#{1,%d} |\Z)" % (re.escape(heading), len(level)), text, re.S | re.M)
    assert m, "no heading %r" % heading
    return m.group(1)


def plain_signature(arguments):
    """As the reference writes them: defaults by `=`, no casts, no OUT arguments."""
    arguments = re.sub(r"::[a-z ]+(\[\])?", "", arguments).replace("'00:00:05'", "'5 s'")
    arguments = arguments.replace(" DEFAULT ", " = ").replace("NULL", "null")
    arguments = [re.sub("^IN ", "", a) for a in arguments.split(", ")]
    return ", ".join(a for a in arguments if a and not a.startswith("OUT "))


@pytest.fixture(scope="module")
def catalog(shared_cluster):
    with shared_cluster.connect() as conn:
        yield conn


# made for the views, not for users
PLUMBING = {"may_read", "masked_state", "masked_message", "kind_name", "module_info",
            "calls_in_flight", "worker_info", "pool_info", "progress_info", "may_supervise", "check_supervisor",
            "metadata_contains", "queued_calls", "stat_module_info", "stat_server_info", "activity_info",
            "may_monitor"}
# their arguments are the options
WITH_OPTIONS = {"create_module", "alter_module"}


def functions(catalog):
    return catalog.execute("""
        SELECT proname, pg_get_function_arguments(oid), pg_get_function_result(oid)
        FROM pg_proc WHERE pronamespace = 'dgen'::regnamespace ORDER BY 1""").fetchall()


def test_one_function_of_a_name(catalog):
    names = [f[0] for f in functions(catalog)]
    assert len(names) == len(set(names))


def test_functions(catalog):
    shown = {m.group(1): (m.group(2), m.group(3)) for m in re.finditer(
        r'^`dgen\."?(\w+)"?\((.*)\) → (.*)`$', text_of(REFERENCE), re.M)}
    shown.update((m.group(1), (m.group(2), None)) for m in re.finditer(
        r'^`CALL dgen\.(\w+)\((.*)\)`$', text_of(REFERENCE), re.M))
    wrong = []
    for name, arguments, result in functions(catalog):
        if name in PLUMBING:
            assert "`dgen.%s(" % name in text_of(REFERENCE)
            continue
        section("### dgen.%s" % name)
        if name not in shown:
            wrong.append("%s is not shown" % name)
            continue
        args, returns = shown.pop(name)
        if name in WITH_OPTIONS:
            continue
        if args.replace('"', "") != plain_signature(arguments).replace('"', ""):
            wrong.append("%s(%s) is shown as (%s)" % (name, plain_signature(arguments), args))
        if result == "SETOF record":
            out = re.findall(r"OUT (\w+ [\w ]+)", arguments)
            result = "TABLE(%s)" % ", ".join(out)
        if returns != result:
            wrong.append("%s returns %s, not %s" % (name, result, returns))
    assert not wrong, "\n".join(wrong)
    assert not shown, "shown, but not there"


def test_module_options(catalog):
    catalog.execute("""
        CREATE SCHEMA plain;
        CREATE FUNCTION plain.handle_cast(message jsonb, state jsonb) RETURNS jsonb
          LANGUAGE sql AS 'SELECT state'""")
    catalog.execute("SELECT dgen.create_module('plain')")
    table = section("## Module options")
    rows = {m.group(1): (m.group(2), m.group(3))
            for m in re.finditer(r"^\| `(\w+)` \| ([a-z \[\]]+) \| ([^|]*) \|", table, re.M)}
    for name in WITH_OPTIONS:
        arguments, = catalog.execute(
            "SELECT pg_get_function_identity_arguments(p.oid) FROM pg_proc p "
            "WHERE pronamespace = 'dgen'::regnamespace AND proname = %s", (name,)).fetchone()
        options = [tuple(a.replace('"', "").split(" ", 1)) for a in arguments.split(", ")]
        options = [o for o in options if o[0] not in ("name", "callbacks", "schema_name", "if_exists")]
        assert options == [(o, t) for o, (t, _) in rows.items()]
    for option, (kind, default) in rows.items():
        default = default.strip()
        if option == "search_path":
            default = default.replace("schema", "plain")
        value = "NULL" if default == "null" else "'%s'::%s" % (default, kind)
        same, found = catalog.execute(
            "SELECT \"%s\" IS NOT DISTINCT FROM %s, \"%s\" FROM dgen.modules WHERE module = 'plain'"
            % (option, value, option)).fetchone()
        assert same, "default of %s is %s, not %s" % (option, found, default)


def test_views(catalog):
    views = {}
    for view, column, kind in catalog.execute("""
            SELECT relname, attname, format_type(atttypid, atttypmod)
            FROM pg_class c JOIN pg_attribute a ON attrelid = c.oid
            WHERE relnamespace = 'dgen'::regnamespace AND relkind = 'v' AND attnum > 0
            ORDER BY relname, attnum""").fetchall():
        kind = kind.replace("timestamp with time zone", "timestamptz").replace("double precision", "float8")
        views.setdefault(view, []).append((column, kind))
    for view, columns in views.items():
        shown = re.findall(r"^\| `(\w+)` \| ([\w \[\]]+) \|", section("### dgen.%s" % view), re.M)
        assert shown == columns, "columns of dgen.%s" % view


def test_settings(catalog):
    shown = re.findall(r"^\| `(dgen\.\w+)` \| ([^|]*)\|([^|]*)\|([^|]*)\|", section("## Settings"), re.M)
    shown = {name: (default.strip(), unit.strip(), by.strip()) for name, default, unit, by in shown}
    contexts = {"postmaster": "restart", "sighup": "reload", "user": "anyone", "superuser": "superuser"}
    found = {name: (default or "", unit or "", contexts[context])
             for name, default, unit, context in catalog.execute(
                 "SELECT name, boot_val, unit, context FROM pg_settings WHERE name LIKE 'dgen.%'")}
    assert shown == found


def test_sqlstates():
    macros = {"".join(re.findall(r"'(.)'", codes)): name for name, codes in re.findall(
        r"#define (ERRCODE_DGEN_\w+)\s+MAKE_SQLSTATE\((.*?)\)", text_of(os.path.join(TOP, "src", "dgen.h")))}
    assert len(macros) > 20
    shown = dict(re.findall(r"^\| (\w{5}) \| `(\w+)` \|", section("## SQLSTATEs"), re.M))
    assert shown == macros
    in_readme = set(re.findall(r"OT\d\d\d", text_of(README)))
    assert in_readme == set(macros)


def test_callbacks():
    """Names and signatures, as callback.c has them."""
    rules = re.findall(r'"(([\w<>]+)\([^"]*)",\s+"[^"]+",\s+PROKIND',
                       text_of(os.path.join(TOP, "src", "callback.c")))
    assert len(rules) == 19     # init has two
    callbacks = section("## Callbacks") + section("## State machines")
    for signature, name in rules:
        assert ("| `%s` |" % signature) in callbacks or ("`%s`" % name) in callbacks, signature


def test_readme_names_what_exists(catalog):
    """Every dgen.something of README.md is there."""
    names = {f[0] for f in functions(catalog)}
    names |= {r[0] for r in catalog.execute(
        "SELECT relname FROM pg_class WHERE relnamespace = 'dgen'::regnamespace AND relkind = 'v'")}
    names |= {r[0].split(".")[1] for r in catalog.execute(
        "SELECT name FROM pg_settings WHERE name LIKE 'dgen.%'")}
    text = text_of(README)
    assert set(re.findall(r'\bdgen\."?(\w+)', text)) - names == set()
    names -= {"drop_doorbells", "debug_waitpoint"}
    left_out = names - PLUMBING - set(re.findall(r"\w+", text))
    assert not left_out, "not in README.md: %s" % sorted(left_out)


def test_comments(catalog):
    """What users may use, says what it is, in \\df+ and \\d+ too."""
    without = catalog.execute("""
        SELECT 'function ' || oid::regprocedure FROM pg_proc
        WHERE pronamespace = 'dgen'::regnamespace
          AND has_function_privilege('public', oid, 'EXECUTE') AND obj_description(oid, 'pg_proc') IS NULL
        UNION ALL
        SELECT 'relation ' || c.oid::regclass FROM pg_class c
        WHERE relnamespace = 'dgen'::regnamespace AND relkind IN ('r', 'v', 'm', 'S')
          AND has_table_privilege('public', c.oid, 'SELECT') AND obj_description(c.oid, 'pg_class') IS NULL
        UNION ALL
        SELECT 'column ' || c.oid::regclass || '.' || attname
        FROM pg_class c JOIN pg_attribute a ON attrelid = c.oid
        WHERE relnamespace = 'dgen'::regnamespace AND relkind IN ('r', 'v', 'm') AND attnum > 0
          AND NOT attisdropped AND has_table_privilege('public', c.oid, 'SELECT')
          AND col_description(c.oid, attnum) IS NULL
        UNION ALL
        SELECT 'extension' FROM pg_extension WHERE extname = 'dgen' AND obj_description(oid, 'pg_extension') IS NULL
        """).fetchall()
    assert without == []


def anchor(heading):
    """As GitHub makes them."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("path", sorted({README, os.path.join(TOP, "CHANGELOG.md"), *DOCUMENTS,
                                         *glob.glob(os.path.join(TOP, "*", "README.md"))}),
                         ids=lambda path: os.path.relpath(path, TOP))
def test_links(path):
    for target in re.findall(r"\]\(([^)]+)\)", text_of(path)):
        if "://" in target:
            continue
        name, _, place = target.partition("#")
        other = os.path.normpath(os.path.join(os.path.dirname(path), name)) if name else path
        assert os.path.exists(other), target
        if place:
            text = re.sub(r"^```.*?^```", "", text_of(other), flags=re.S | re.M)
            assert place in {anchor(h) for h in re.findall(r"^#+ (.*)$", text, re.M)}, target


# --- examples

def numbers(text):
    return [int(n) for n in re.findall(r"^\d+$", text, re.M)]


def test_counter(cluster):
    told = cluster.psql_file(os.path.join(TOP, "examples", "counter", "counter.sql"))
    assert numbers(told) == [1, 2, 2]
