"""The versions of a state are what the state was, to the byte: whatever it was,
through restarts, kills, dumps, and while the oldest ones go.

    DGEN_SEED=n test/run client history        other states
    DGEN_ROUNDS=n                              more of them
"""

import json
import random
import threading
import time

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster import PORT, wait_for
from common import (Killer, assert_nothing_left, connect_again, in_threads, rounds_of, seed_of,
                    value, wait_idle)
from test_patch import histories

# A call or cast of {"set": state} makes that the state.
MODULE = """
CREATE EXTENSION dgen;
CREATE ROLE app LOGIN;
CREATE SCHEMA app AUTHORIZATION app;
SET ROLE app;
CREATE FUNCTION app.init(args jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT args $$;
CREATE FUNCTION app.handle_call(request jsonb, INOUT state jsonb, OUT reply jsonb)
LANGUAGE sql AS $$ SELECT CASE WHEN request ? 'set' THEN request->'set' ELSE state || request END, '1'::jsonb $$;
CREATE FUNCTION app.handle_cast(message jsonb, state jsonb) RETURNS jsonb
LANGUAGE sql AS $$ SELECT CASE WHEN message ? 'set' THEN message->'set' ELSE state || message END $$;
SELECT dgen.create_module('app', history => '%s', max_attempts => 1);
RESET ROLE;
"""
CALL = "SELECT dgen.call(%s, jsonb_build_object('set', %s::text::jsonb), '30 s')"

# all that there is to say of a version, bytes included
KEPT = """
SELECT version, dgen.state_at(server, version)::text, pg_column_size(dgen.state_at(server, version)), patch::text
FROM (SELECT %s::text AS server OFFSET 0) s, dgen.history(server, -1, NULL)"""


def big(chance, elements):
    """A state of about 100 bytes an element."""
    return {"items": [{"id": "e%d" % i, "n": chance.randrange(1000), "text": "%032x" % chance.getrandbits(128),
                       "more": "%032x" % chance.getrandbits(128)} for i in range(elements)]}


def change(state, chance):
    """The state with a few changes, or another one."""
    state = json.loads(json.dumps(state))
    what = chance.randrange(30)
    items = state.setdefault("items", [])
    if what == 0:
        return big(chance, chance.choice((0, 1, 40, 400)))
    if what < 4:
        items.insert(chance.randrange(len(items) + 1), {"id": "n%d" % chance.randrange(10 ** 9)})
    elif what < 8 and items:
        del items[chance.randrange(len(items))]
    elif what < 10:
        chance.shuffle(items)
    elif items:
        for _ in range(chance.randrange(1, 4)):
            chance.choice(items)["n"] = chance.choice((chance.random(), "x" * chance.randrange(200), None, [[]]))
    state["count"] = chance.randrange(10 ** 6)
    return state


def changed(text, chance):
    """Another state than this one: the same again would be no new version."""
    while True:
        new = json.dumps(change(json.loads(text), chance), sort_keys=True)
        if new != text:
            return new


def check(conn, server, states):
    """The versions that are kept are those: states[0] is that of version 1."""
    rows = conn.execute(KEPT, (server,)).fetchall()
    assert rows and rows[-1][0] == len(states), (rows[-1:], len(states))
    assert [row[0] for row in rows] == list(range(rows[0][0], len(states) + 1))
    for version, state, size, patch in rows:
        wanted, its_size = conn.execute(
            "SELECT d::text, pg_column_size(d) FROM (SELECT jsonb_path_query_first(%s::text::jsonb, '$') AS d OFFSET 0) x",
            (states[version - 1],)).fetchone()
        assert state == wanted, "version %d of %s" % (version, server)
        assert size == its_size
    for (_, before, _, _), (version, state, _, patch) in zip(rows, rows[1:]):
        assert value(conn, "SELECT dgen.jsonb_merge(%s::text::jsonb, %s::text::jsonb)::text", before, patch) == state
    return rows[0][0]


@pytest.fixture(scope="module")
def laws(shared_cluster):
    shared_cluster.psql((MODULE % 100).replace("CREATE EXTENSION dgen;", ""))
    with shared_cluster.connect() as conn:
        conn.servers = 0
        yield conn


@pytest.mark.seconds(300)
@settings(max_examples=40, deadline=None, database=None, print_blob=False, derandomize=True,
          suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large,
                                 HealthCheck.function_scoped_fixture])
@given(docs=histories(12), data=st.randoms(use_true_random=False))
def test_any_states(laws, docs, data):
    """What hypothesis makes up, by calls, invokes and replacements, with rollbacks among them."""
    laws.servers += 1
    server = "app/any-%d" % laws.servers
    laws.execute("SELECT dgen.start(%s, %s::text::jsonb)", (server, docs[0]))
    # as jsonb has it: the same bytes are no new version
    states = [value(laws, "SELECT dgen.state(%s)::text", server)]
    for doc in docs[1:]:
        how = data.randrange(4)
        if how == 0:
            laws.execute("SELECT dgen.replace_state(%s, %s::text::jsonb)", (server, doc))
        elif how == 1:
            doc = states[data.randrange(len(states))]
            laws.execute("SELECT dgen.rollback(%s, %s)", (server, 1 + states.index(doc)))
        elif how == 2:
            laws.execute("BEGIN ISOLATION LEVEL SERIALIZABLE")
            laws.execute(CALL.replace("dgen.call", "dgen.invoke").replace(", '30 s'", ""), (server, doc))
            laws.execute("COMMIT")
        else:
            laws.execute(CALL, (server, doc))
        text = value(laws, "SELECT %s::text::jsonb::text", doc)
        if text != states[-1]:
            states.append(text)
    assert check(laws, server, states) == 1
    a, b = sorted((1 + data.randrange(len(states)), 1 + data.randrange(len(states))))
    for x, y in ((a, b), (b, a)):
        assert value(laws, "SELECT coalesce(dgen.jsonb_merge(dgen.state_at(s, x), dgen.diff(s, x, y)), "
                           "dgen.state_at(s, x))::text FROM (SELECT %s::text AS s, %s::int AS x, %s::int AS y) p",
                     server, x, y) == states[y - 1]


@pytest.mark.seconds(300)
@pytest.mark.parametrize("keep", [7, 40, pytest.param(100000, marks=pytest.mark.long)])
def test_small_and_large(cluster, request, keep):
    """States of some bytes to some 100 kB, through folds of their patches and
    restarts, while the oldest ones go."""
    chance = random.Random(seed_of(request))
    cluster.psql(MODULE % keep)
    servers = {"app/%d" % n: [json.dumps(big(chance, n), sort_keys=True)] for n in (0, 3, 300, 900)}
    with cluster.connect() as conn:
        for server, states in servers.items():
            conn.execute("SELECT dgen.start(%s, %s::jsonb)", (server, states[0]))
    for part in range(3):
        with cluster.connect() as conn:
            for _ in range(rounds_of(60)):
                for server, states in servers.items():
                    states.append(changed(states[-1], chance))
                    conn.execute(CALL, (server, states[-1]))
            for server, states in servers.items():
                assert check(conn, server, states) == max(1, len(states) - keep + 1)
            assert_nothing_left(conn)
        cluster.kill9() if part else cluster.stop()
        cluster.start()
    with cluster.connect() as conn:
        # some were kept whole, most as patches
        whole, all_of_them = conn.execute("SELECT count(before), count(*) FROM dgen.history WHERE server = 'app/900'").fetchone()
        assert keep < 100 or whole < all_of_them / 3
        for server, states in servers.items():
            check(conn, server, states)
        wait_for(lambda: value(conn, "SELECT max(n) FROM (SELECT count(*) AS n FROM dgen.history GROUP BY server) c") <= keep)
        for server, states in servers.items():
            check(conn, server, states)


@pytest.mark.seconds(300)
def test_kills(cluster, request):
    """Every version that is kept after kills says what it says: the states
    count, and each version adds one."""
    seed = seed_of(request)
    cluster.psql(MODULE % 50 + """
        CREATE OR REPLACE FUNCTION app.handle_cast(message jsonb, state jsonb) RETURNS jsonb LANGUAGE sql AS $$
            SELECT jsonb_set(state, '{n}', to_jsonb((state->>'n')::int + 1)) #- ARRAY['text', message->>0]
                || jsonb_build_object('last', message) $$;
        SELECT dgen.alter_module('app', max_attempts => 1000);
        CREATE OR REPLACE FUNCTION app.init(args jsonb) RETURNS jsonb LANGUAGE sql AS $$
            SELECT jsonb_build_object('n', 1, 'text', (SELECT jsonb_agg(md5(i::text)) FROM generate_series(1, 400) i)) $$;
        """)
    stop = threading.Event()
    sent = [0]

    def client(number):
        chance = random.Random(seed + number)
        conn = connect_again(cluster)
        while not stop.is_set():
            try:
                conn.execute("SELECT dgen.cast(%s, '%d')" % ("'app/%d'" % chance.randrange(3), chance.randrange(400)))
                sent[0] += 1
                # they must not pile up more than can be handled in the end
                if sent[0] % 100 == 0:
                    value(conn, "SELECT dgen.wait_idle(module => 'app', timeout => '5 s')")
            except psycopg.Error:
                conn = connect_again(cluster)

    def kill():
        try:
            killer = Killer(cluster, seed)
            for _ in range(rounds_of(12)):
                killer.once()
        finally:
            stop.set()

    in_threads([lambda n=n: client(n) for n in range(2)] + [kill], timeout=200)
    with connect_again(cluster) as conn:
        wait_idle(conn, 60)
        for n in range(3):
            server = "app/%d" % n
            version = value(conn, "SELECT version FROM dgen.servers WHERE server = %s", server)
            rows = conn.execute("SELECT version, (dgen.state_at(%s, version)->>'n')::int, size, patch, "
                                "pg_column_size(dgen.state_at(%s, version)), kind, message_id "
                                "FROM dgen.history(%s, -1, NULL)", (server,) * 3).fetchall()
            assert [row[:2] for row in rows] == [(v, v) for v in range(max(1, version - 49), version + 1)]
            assert all(row[2] == row[4] and row[5] in ("cast", "init") for row in rows)
            assert len({row[6] for row in rows if row[5] == "cast"}) == len(rows) - (rows[0][0] == 1)
            assert value(conn, "SELECT dgen.rollback(%s, %s)", server, rows[0][0]) == version + 1
            assert value(conn, "SELECT (dgen.state(%s)->>'n')::int", server) == rows[0][0]
        assert_nothing_left(conn)


def test_two_at_once(cluster):
    """Rollbacks, replacements, calls and readers of one server at the same time,
    while the keeper and the writers delete what is too old."""
    cluster.psql(MODULE % 20)
    stop = threading.Event()
    with cluster.connect() as conn:
        conn.execute("SELECT dgen.start('app/1', '{\"text\": \"%s\", \"n\": 0}')" % ("x" * 9000))

    def writer(number):
        with cluster.connect() as c:
            for i in range(rounds_of(150)):
                if i % 5 == 4:
                    c.execute("SELECT dgen.rollback('app/1')")
                elif number == 0:
                    c.execute("SELECT dgen.call('app/1', %s::jsonb, '30 s')", (json.dumps({"n": i, "by": number}),))
                else:
                    c.execute("SELECT dgen.replace_state('app/1', dgen.state('app/1') || %s::jsonb)",
                              (json.dumps({"n": i, "by": number, "x": "y" * (i * 13)}),))

    def altering():
        with cluster.connect() as c:
            while not stop.is_set():
                for keep in ("20", "3", "1 hour", "20"):
                    c.execute("SELECT dgen.alter_module('app', history => %s)", (keep,))
                    time.sleep(0.05)

    def reader():
        with cluster.connect() as c:
            while not stop.is_set():
                try:
                    rows = c.execute("SELECT version, dgen.state_at('app/1', version) IS NULL, size, "
                                     "pg_column_size(dgen.state_at('app/1', version)) "
                                     "FROM dgen.history('app/1', -1, NULL)").fetchall()
                except psycopg.errors.InvalidParameterValue:
                    continue        # less is kept since it was listed
                assert [row[0] for row in rows] == list(range(rows[0][0], rows[-1][0] + 1))
                assert all(row[2] == row[3] for row in rows)

    def writers():
        try:
            in_threads([lambda n=n: writer(n) for n in range(3)])
        finally:
            stop.set()

    in_threads([writers, altering, reader, reader])
    with cluster.connect() as conn:
        assert value(conn, "SELECT count(*) > 0 FROM dgen.history('app/1') WHERE kind IN ('rollback', 'replace_state')")
        assert_nothing_left(conn)


def test_last_good_state(cluster):
    """A server that keeps failing goes back to the state under which it last worked;
    a supervised one that fails again goes further back each time, in the end to init."""
    cluster.psql(MODULE % 100 + """
        CREATE OR REPLACE FUNCTION app.init(args jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT '{"init": 1}'::jsonb $$;
        CREATE OR REPLACE FUNCTION app.handle_call(request jsonb, INOUT state jsonb, OUT reply jsonb)
        LANGUAGE plpgsql AS $$
        BEGIN
            IF state ? 'poison' THEN
                RAISE division_by_zero;
            END IF;
            state := state || request;
        END $$;
        SELECT dgen.alter_module('app', on_crash_loop => 'rollback', crash_limit => 3);
        SELECT dgen.supervise('s', '{"strategy": "one_for_one", "intensity": 10, "period": "60 s",
            "children": [{"id": "k", "server": "app/2", "state": "last_good"}]}')""")
    call = "SELECT dgen.call(%s, %s::jsonb)"
    good = [{"init": 1}, {"init": 1, "a": 1}, {"init": 1, "a": 1, "b": 2}]

    def poison(conn, server):
        conn.execute(call, (server, '{"poison": true}'))
        with pytest.raises(psycopg.errors.DivisionByZero):
            conn.execute(call, (server, "{}"))

    with cluster.connect() as conn:
        state = "SELECT dgen.state(%s)"
        for server in ("app/1", "app/2"):
            conn.execute(call, (server, '{"a": 1}'))
            conn.execute(call, (server, '{"b": 2}'))
            poison(conn, server)
        for _ in range(2):
            with pytest.raises(psycopg.errors.DivisionByZero):
                conn.execute(call, ("app/1", "{}"))
        wait_for(lambda: value(conn, state, "app/1") == good[2])
        assert conn.execute("SELECT kind, sender, from_version FROM dgen.history('app/1', 4)").fetchall() == [
            ("rollback", "dgen", 3)]
        conn.execute(call, ("app/1", '{"c": 3}'))
        for expected in (good[2], good[1], good[0]):
            wait_for(lambda: value(conn, state, "app/2") == expected)
            poison(conn, "app/2")
        wait_for(lambda: value(conn, state, "app/2") == good[0])
        assert value(conn, "SELECT array_agg(kind) FROM dgen.history('app/2', 4) WHERE kind <> 'call'") == [
            "rollback", "rollback", "init", "init"]


def test_dump_and_restore(cluster):
    """A dump has the history, and what is restored goes on with it."""
    cluster.psql(MODULE % 100)
    chance = random.Random(1)
    states = [json.dumps(big(chance, 200))]
    with cluster.connect() as conn:
        conn.execute("SELECT dgen.start('app/1', %s::jsonb)", (states[0],))
        for _ in range(30):
            states.append(changed(states[-1], chance))
            conn.execute(CALL, ("app/1", states[-1]))
        check(conn, "app/1", states)
        before = conn.execute("SELECT * FROM dgen.history('app/1')").fetchall()
    dump = cluster.run("pg_dump", "-h", cluster.socket_dir, "-p", str(PORT), "-U", "postgres", "postgres")
    cluster.psql("CREATE DATABASE copy")
    cluster.psql(dump, dbname="copy")
    with cluster.connect(dbname="copy") as copy:
        assert copy.execute("SELECT * FROM dgen.history('app/1')").fetchall() == before
        check(copy, "app/1", states)
        copy.execute("SELECT dgen.adopt()")
        states.append(changed(states[-1], chance))
        copy.execute(CALL, ("app/1", states[-1]))
        check(copy, "app/1", states)
        assert value(copy, "SELECT dgen.rollback('app/1', 5)") == len(states) + 1
        states.append(states[4])
        check(copy, "app/1", states)


def test_on_a_standby(cluster):
    """It is read there, too."""
    cluster.psql(MODULE % 100)
    with cluster.connect() as conn:
        for i in range(5):
            conn.execute("SELECT dgen.call('app/1', '{\"set\": {\"n\": %d}}')" % i)
        with cluster.standby() as standby:
            with standby.connect() as other:
                wait_for(lambda: value(other, "SELECT count(*) FROM dgen.history('app/1')") == 6)
                assert value(other, "SELECT dgen.state_at('app/1', 3)") == {"n": 1}
                with pytest.raises(psycopg.Error) as refused:
                    other.execute("SELECT dgen.rollback('app/1', 3)")
                assert refused.value.sqlstate == "OT017"


@pytest.mark.seconds(300)
def test_very_many_versions(cluster):
    """A long history makes neither an activation nor a look into it slow, and
    goes when it is not wanted any more."""
    cluster.psql(MODULE % 1000000)
    with cluster.connect() as conn:
        conn.execute("SELECT dgen.start('app/1', '{\"n\": 1, \"text\": \"%s\"}')" % ("x" * 3000))
        # as if it had been there for long: each version's n is its number
        conn.execute("""
            INSERT INTO dgen.history (server, version, at, incarnation, kind, good, size, undo, before)
            SELECT 'app/1', v, now() - make_interval(secs => 200001 - v), 1, 'call', v - 1, 3000,
                   CASE WHEN v % 200 > 0 THEN jsonb_build_object('n', v - 1) END,
                   CASE WHEN v % 200 = 0 THEN jsonb_build_object('n', v - 1, 'text', repeat('x', 3000)) END
            FROM generate_series(2, 200000) v""")
        conn.execute("""UPDATE dgen.server SET version = 200000, base_version = 200000, history_version = 200000,
                        good_version = 199999, state = jsonb_set(state, '{n}', '200000')""")
        conn.execute("VACUUM ANALYZE dgen.history")

        def timed(query, *args):
            best = 1e9
            for _ in range(5):
                start = time.monotonic()
                result = value(conn, query, *args)
                best = min(best, time.monotonic() - start)
            return result, best
        for version in (2, 33333, 199999, 200000):
            n, took = timed("SELECT dgen.state_at('app/1', %s)->'n'", version)
            assert n == version and took < 0.1
        n, took = timed("SELECT dgen.state_at('app/1', at => now() - interval '100000 s')->'n'")
        assert 99900 < n < 100100 and took < 0.1
        _, took = timed("SELECT count(*) FROM dgen.history('app/1')")
        assert took < 0.1
        _, took = timed("SELECT count(*) FROM dgen.history('app/1', 100000, 10)")
        assert took < 0.1
        _, took = timed("SELECT dgen.call('app/1', jsonb_build_object('n', random()))")
        assert took < 0.1
        _, took = timed("SELECT dgen.rollback('app/1', 100000)")
        assert took < 0.1
        # less is kept: a bit of it goes with each activation, the rest by the keeper
        conn.execute("SELECT dgen.alter_module('app', history => '1000')")
        slowest = 0
        while value(conn, "SELECT count(*) FROM dgen.history") > 1000 + 16:
            start = time.monotonic()
            for _ in range(20):
                value(conn, "SELECT dgen.call('app/1', jsonb_build_object('n', random()), '30 s')")
            slowest = max(slowest, (time.monotonic() - start) / 20)
            assert value(conn, "SELECT count(*) FROM dgen.history('app/1', -1, NULL)") == 1000
        print("slowest twenty calls while it shrinks: %.1f ms each" % (slowest * 1000))
        assert slowest < 0.1
        assert_nothing_left(conn)
