"""What handlers may take for granted: that they are alone, that their
servers are, that what fails is undone; and what callers may, whose calls take
too long or who go away."""

import collections
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import threading
import time

import psycopg
import pytest

from build import INSTRUMENT
from cluster import wait_for
from common import assert_nothing_left, in_threads, rounds_of, seed_of, value, wait_idle

CAST = "SELECT dgen.cast(%s, %s::jsonb)"
CALL = "SELECT dgen.call(%s, %s::jsonb, '60 s')"


@pytest.fixture(scope="module")
def db(shared_cluster):
    shared_cluster.psql("""
        CREATE FUNCTION burst(server text, n int, messages jsonb) RETURNS void LANGUAGE sql AS $$
            SELECT dgen.cast_many(jsonb_agg(jsonb_build_object(
                'server', server || '/' || (i - 1) % n, 'message', m) ORDER BY i))
            FROM jsonb_array_elements(messages) WITH ORDINALITY e (m, i)
        $$""")
    return shared_cluster


@pytest.fixture
def conn(db):
    with db.connect() as conn:
        conn.execute("SET client_min_messages = error")
        # what a test that failed left
        conn.execute("SELECT dgen.discard(id) FROM dgen.messages WHERE id IS NOT NULL")
        conn.execute("SELECT dgen.discard(id) FROM dgen.dead_letters")
        yield conn


def clean(conn):
    wait_idle(conn)
    assert_nothing_left(conn)


def burst(conn, module, n, messages):
    """Messages for n servers, one after the other, in one transaction: they
    come to one worker, which runs them in one if it can."""
    value(conn, "SELECT burst(%s, %s, %s::jsonb)", module, n, json.dumps(messages))


def handler(body, kind="cast", declare=""):
    """A handler in PL/pgSQL that gets message m and returns state."""
    if kind == "cast":
        return """(m jsonb, state jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
            %s BEGIN %s RETURN state; END $$;""" % (declare, body)
    return """(m jsonb, INOUT state jsonb, OUT reply jsonb) LANGUAGE plpgsql AS $$
        %s BEGIN %s END $$;""" % (declare, body)


# --- what handlers leave behind

LOOK = """
CREATE ROLE somebody;
CREATE SEQUENCE some_seq START 1000;
CREATE TABLE some_serial (id serial);
CREATE TABLE look (n int, txid text, sees jsonb);
CREATE SCHEMA look;
CREATE FUNCTION look.last_value(which text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
    RETURN CASE which WHEN '' THEN lastval() ELSE currval(which) END;
EXCEPTION WHEN object_not_in_prerequisite_state THEN
    RETURN 'none';
END $$;
CREATE FUNCTION look.around(sequences boolean) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
    sees jsonb;
BEGIN
    SELECT jsonb_object_agg(name, setting) INTO sees FROM pg_settings
    WHERE name IN ('work_mem', 'search_path', 'TimeZone', 'role', 'DateStyle', 'lock_timeout',
                   'statement_timeout', 'transaction_read_only', 'default_transaction_read_only',
                   'transaction_isolation', 'enable_seqscan', 'session_replication_role',
                   'application_name', 'dgen.context', 'check_function_bodies');
    IF sequences THEN
        sees := sees || jsonb_build_object(
            'lastval', look.last_value(''), 'currval', look.last_value('public.some_seq'));
    END IF;
    RETURN sees || jsonb_build_object(
        'user', current_user, 'session user', session_user,
        'own setting', coalesce(current_setting('own.setting', true), ''),
        'temporary', (SELECT coalesce(jsonb_agg(relname), '[]') FROM pg_catalog.pg_class
                      WHERE relnamespace = pg_my_temp_schema()),
        'temporary functions', (SELECT coalesce(jsonb_agg(proname), '[]') FROM pg_catalog.pg_proc
                                WHERE pronamespace = pg_my_temp_schema()),
        'prepared', (SELECT coalesce(jsonb_agg(name), '[]') FROM pg_prepared_statements),
        'cursors', (SELECT coalesce(jsonb_agg(name), '[]') FROM pg_cursors WHERE name <> ''),
        'listens', (SELECT coalesce(jsonb_agg(c), '[]') FROM pg_listening_channels() c),
        'locks', (SELECT coalesce(jsonb_agg(objid), '[]') FROM pg_locks
                  WHERE pid = pg_backend_pid() AND locktype = 'advisory' AND objsubid IN (1, 2)));
END $$;
CREATE FUNCTION look.handle_cast""" + handler("""
    INSERT INTO public.look
        VALUES ((m->>'n')::int, pg_current_xact_id()::text, look.around(m ? 'sequences'));
    IF m ? 'sql' THEN
        EXECUTE m->>'sql';
    END IF;""") + """
CREATE FUNCTION look.handle_call""" + handler("""
    reply := look.around(false);
    IF m ? 'sql' THEN
        EXECUTE m->>'sql';
    END IF;""", "call") + """
SELECT dgen.create_module('look', max_attempts => 1, breaker => 0);
"""

# all at once where they can be, or else alone: nobody after them sees any of it
LEAVES = {
    "set": ("SET work_mem = '77MB'", "SET search_path = pg_temp, public", "SET TIME ZONE 'Asia/Tokyo'",
            "SET DateStyle = 'German'", "SET own.setting = 'left'", "SET lock_timeout = '1234ms'",
            "SET enable_seqscan = off", "SET application_name = 'left'"),
    "set_config": ("SELECT set_config('work_mem', '78MB', false)",
                   "SELECT set_config('search_path', 'pg_catalog', false)",
                   "SELECT set_config('own.setting', 'left', false)",
                   "SELECT set_config('dgen.context', '{\"left\": 1}', false)",
                   "SELECT set_config('statement_timeout', '77', true)"),
    "role": ("SET ROLE somebody", "SELECT set_config('role', 'somebody', false)",
             "SET SESSION AUTHORIZATION somebody"),
    "mode": ("SET session_replication_role = replica", "SET default_transaction_read_only = on",
             "SET statement_timeout = '10ms'", "SET check_function_bodies = off"),
    "reset": ("RESET ALL", "RESET search_path", "RESET ROLE", "SET search_path TO DEFAULT"),
    "temporary": ("CREATE TEMP TABLE left_table AS SELECT 1 AS x",
                  "CREATE TEMP TABLE left_table2 (x int) ON COMMIT DELETE ROWS",
                  "CREATE TEMP TABLE left_table3 (x int) ON COMMIT DROP",
                  "CREATE TEMP SEQUENCE left_seq", "CREATE TEMP VIEW left_view AS SELECT 1 AS x",
                  "CREATE FUNCTION pg_temp.left_function() RETURNS int LANGUAGE sql AS 'SELECT 1'"),
    "prepared": ("PREPARE left_statement AS SELECT 1", "PREPARE left_statement2 (int) AS SELECT $1"),
    "cursor": ("DECLARE left_cursor CURSOR WITH HOLD FOR SELECT 1",
               "DECLARE left_cursor2 SCROLL CURSOR WITH HOLD FOR SELECT i FROM generate_series(1, 3) i",
               "DECLARE left_cursor3 CURSOR FOR SELECT 1"),
    "lock": ("SELECT pg_advisory_lock(4242)", "SELECT pg_try_advisory_lock(4243)",
             "SELECT pg_advisory_lock_shared(42, 44)", "SELECT pg_advisory_lock(4242)"),
    "sequence": ("SELECT nextval('public.some_seq')", "INSERT INTO public.some_serial DEFAULT VALUES",
                 "SELECT setval('public.some_seq', 5000)"),
    "discard": ("DISCARD TEMP", "DISCARD PLANS", "DISCARD SEQUENCES", "DEALLOCATE ALL", "CLOSE ALL",
                "UNLISTEN *", "SELECT pg_advisory_unlock_all()"),
}


@pytest.fixture(scope="module")
def look(db):
    db.psql(LOOK)
    with db.connect() as conn:
        # how it looks to the first handler of all
        value(conn, CAST, "look/0", '{"n": -1, "sequences": 1}')
        wait_idle(conn)
        yield value(conn, "SELECT sees FROM look WHERE n = -1")


@pytest.mark.parametrize("what", LEAVES)
def test_nothing_left_for_the_next(conn, look, what, request):
    """In one burst some handlers leave something behind, and none sees it;
    nor do those that come later, alone."""
    chance = random.Random(seed_of(request))
    conn.execute("TRUNCATE look")
    n = 0
    for size in (40, 1, 1, 12, 1):
        messages = []
        for _ in range(size):
            n += 1
            messages.append({"n": n})
            # what reads a sequence's last value is run alone
            if what == "sequence" and chance.random() < 0.5:
                messages[-1]["sequences"] = 1
            if chance.random() < 0.4:
                messages[-1]["sql"] = chance.choice(LEAVES[what])
        if size == 1:
            messages[0]["sql"] = chance.choice(LEAVES[what])
        burst(conn, "look", 4, messages)
        wait_idle(conn, 10)
    letters = conn.execute("SELECT message->>'sql', error->>'message' FROM dgen.dead_letters").fetchall()
    conn.execute("SELECT dgen.purge('look')")
    assert not letters
    rows = conn.execute("SELECT n, sees FROM look ORDER BY n").fetchall()
    assert [row[0] for row in rows] == list(range(1, n + 1))
    for row in rows:
        seen = {k: v for k, v in row[1].items() if look[k] != v}
        assert not seen, "message %d sees %s" % (row[0], seen)
    clean(conn)


def test_nobody_listens(conn, look):
    """LISTEN is nothing that a background process of PostgreSQL could do."""
    with pytest.raises(psycopg.errors.FeatureNotSupported, match="LISTEN"):
        value(conn, CALL, "look/0", '{"sql": "LISTEN left_channel"}')
    assert value(conn, CALL, "look/0", '{}')["listens"] == []


@pytest.mark.skipif(INSTRUMENT != "", reason="instrumented handlers are slow, and run alone")
def test_they_do_share_transactions(conn, look):
    """The tests around this one would be worth nothing if they did not."""
    def shared():
        conn.execute("TRUNCATE look")
        burst(conn, "look", 4, [{"n": i} for i in range(40)])
        clean(conn)
        return value(conn, "SELECT count(DISTINCT txid) FROM look") < 40
    # while the module counts as slow, after the tests before this one, each runs alone
    wait_for(shared, 30, message="each of 40 messages had a transaction of its own")


# --- deferred constraints

FAMILY = """
CREATE TABLE parent (id int PRIMARY KEY);
CREATE TABLE child (n int, id int CONSTRAINT has_parent REFERENCES parent DEFERRABLE INITIALLY DEFERRED,
                    strict int CONSTRAINT has_strict REFERENCES parent DEFERRABLE INITIALLY IMMEDIATE);
CREATE SCHEMA family;
CREATE FUNCTION family.note(m jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF m ? 'defer' THEN
        SET CONSTRAINTS ALL DEFERRED;
    END IF;
    INSERT INTO public.child VALUES ((m->>'n')::int, (m->>'parent')::int, (m->>'strict')::int);
    IF m ? 'later' THEN
        INSERT INTO public.parent VALUES ((m->>'later')::int);
    END IF;
END $$;
CREATE FUNCTION family.handle_cast""" + handler("""
    PERFORM family.note(m);
    state := state || jsonb_build_object('last', m->'n');""") + """
CREATE FUNCTION family.handle_call""" + handler("""
    PERFORM family.note(m);
    reply := '"done"';""", "call") + """
SELECT dgen.create_module('family', max_attempts => 1, breaker => 0);
"""


def test_deferred_constraints(db, conn):
    """Who violates a deferred constraint fails, at the end of the handler,
    and nobody else; SET CONSTRAINTS is not for the next."""
    db.psql(FAMILY)
    conn.execute("INSERT INTO parent VALUES (1)")
    messages = [{"n": i, "parent": 1} for i in range(30)]
    for i in (7, 13, 29):
        messages[i]["parent"] = 666             # never there
    messages[11].update(parent=100, later=100)  # in time
    messages[17].update(strict=101, later=101, defer=1)
    messages[18].update(strict=102, later=102)  # in time only where another's SET counted
    burst(conn, "family", 3, messages)
    wait_idle(conn)
    letters = conn.execute("SELECT message->>'n', sqlstate, error->>'message', attempts "
                           "FROM dgen.dead_letters ORDER BY id").fetchall()
    assert [(row[0], row[1], row[3]) for row in letters] == [
        (n, "23503", 1) for n in ("7", "13", "18", "29")]
    for row in letters:
        assert ("has_strict" if row[0] == "18" else "has_parent") in row[2]
    assert [row[0] for row in conn.execute("SELECT n FROM child ORDER BY n")] == [
        i for i in range(30) if i not in (7, 13, 18, 29)]
    assert [row[0] for row in conn.execute("SELECT id FROM parent ORDER BY id")] == [1, 100, 101]
    with pytest.raises(psycopg.errors.ForeignKeyViolation, match="has_parent"):
        value(conn, CALL, "family/1", '{"n": 99, "parent": 666}')
    assert value(conn, CALL, "family/1", '{"n": 100, "parent": 1}') == "done"
    conn.execute("SELECT dgen.purge('family')")
    clean(conn)


# --- what was committed before is seen

def test_sees_what_was_committed_with_the_message(db, conn):
    """Rows of the transaction that cast, and of those before it."""
    db.psql("""
        CREATE TABLE item (token text PRIMARY KEY);
        CREATE TABLE missed (token text);
        CREATE SCHEMA seer;
        CREATE FUNCTION seer.handle_cast""" + handler("""
            INSERT INTO public.missed SELECT t FROM jsonb_array_elements_text(m) t
                WHERE NOT EXISTS (SELECT 1 FROM public.item i WHERE i.token = t);
            state := to_jsonb(coalesce((state->>'n')::int, 0) + 1);
            state := jsonb_build_object('n', state);""") + """
        SELECT dgen.create_module('seer');""")
    n = rounds_of(250)

    def sender(number):
        with db.connect() as mine:
            for i in range(n):
                token = "%d.%d" % (number, i)
                before = token + "b"
                if i % 3 == 0:
                    mine.execute("INSERT INTO item VALUES (%s)", (before,))
                with mine.transaction():
                    if i % 3 == 1:      # sent before it is there, and yet together
                        value(mine, CAST, "seer/%d" % (i % 4), json.dumps([token]))
                    mine.execute("INSERT INTO item VALUES (%s)", (token,))
                    if i % 3 == 2:
                        value(mine, CAST, "seer/%d" % (i % 4), json.dumps([token]))
                    if i % 3 == 0:
                        value(mine, CAST, "seer/%d" % (i % 4), json.dumps([before, token]))
    in_threads([lambda k=k: sender(k) for k in range(4)])
    wait_idle(conn)
    assert value(conn, "SELECT count(*) FROM missed") == 0
    assert sum(value(conn, "SELECT dgen.state(%s)", "seer/%d" % i)["n"] for i in range(4)) == 4 * n
    clean(conn)


# --- errors among others

def test_error_among_others(db, conn, request):
    """Only what raises fails, once for each attempt; the others are handled
    once and in order."""
    db.psql("""
        CREATE TABLE done (server text, n int);
        CREATE SCHEMA mixed;
        CREATE FUNCTION mixed.init(args jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT '[]'::jsonb $$;
        CREATE FUNCTION mixed.handle_cast""" + handler("""
            INSERT INTO public.done VALUES (dgen.self(), (m->>'n')::int);
            state := state || (m->'n');
            IF m ? 'bad' THEN
                RAISE EXCEPTION 'bad %', m->'n' USING ERRCODE = 'P7777';
            END IF;""") + """
        CREATE FUNCTION mixed.handle_call""" + handler("""
            INSERT INTO public.done VALUES (dgen.self(), (m->>'n')::int);
            reply := state;
            state := state || (m->'n');
            IF dgen.key() IN ('1', '4') THEN
                RAISE EXCEPTION 'bad %', m->'n' USING ERRCODE = 'P7778';
            END IF;""", "call") + """
        SELECT dgen.create_module('mixed', max_attempts => 3, breaker => 0,
                                  backoff_initial => '10 ms', backoff_factor => 1);""")
    chance = random.Random(seed_of(request))
    n = 60
    bad = set(chance.sample(range(n), 6))
    burst(conn, "mixed", 6, [dict({"n": i}, **({"bad": 1} if i in bad else {})) for i in range(n)])
    wait_idle(conn)
    letters = conn.execute("SELECT message->>'n', attempts, sqlstate, error->>'message' "
                           "FROM dgen.dead_letters ORDER BY id").fetchall()
    assert letters == [(str(i), 3, "P7777", "bad %d" % i) for i in sorted(bad)]
    for k in range(6):
        good = [i for i in range(k, n, 6) if i not in bad]
        assert value(conn, "SELECT dgen.state(%s)", "mixed/%d" % k) == good
        assert sorted(r[0] for r in conn.execute(
            "SELECT n FROM done WHERE server = %s", ("mixed/%d" % k,))) == good
    # calls that run together: each has its own answer
    for i in range(100, 120):
        answers = conn.execute("SELECT server, reply, error FROM dgen.multi_call(ARRAY["
                               "'mixed/0', 'mixed/1', 'mixed/2', 'mixed/3', 'mixed/4', 'mixed/5'], "
                               "%s::jsonb, '60 s')", ('{"n": %d}' % i,)).fetchall()
        for server, reply, error in answers:
            if server in ("mixed/1", "mixed/4"):
                assert reply is None and error["sqlstate"] == "P7778"
            else:
                assert error is None and reply == value(conn, "SELECT dgen.state(%s)", server)[:-1]
    assert value(conn, "SELECT count(*) FROM done WHERE n >= 100") == 20 * 4
    conn.execute("SELECT dgen.purge('mixed')")
    clean(conn)


def test_failure_in_company_does_not_count(db, conn):
    """What fails among others is tried alone before it counts."""
    db.psql("""
        CREATE SCHEMA moody;
        CREATE FUNCTION moody.handle_cast""" + handler("""
            -- a file is what a rollback leaves
            IF m ? 'file' AND (pg_stat_file(m->>'file', true)).size IS NULL THEN
                EXECUTE format('COPY (SELECT 1) TO %L', m->>'file');
                RAISE EXCEPTION 'the first time';
            END IF;
            state := state || jsonb_build_object(m->>'n', 1);""") + """
        SELECT dgen.create_module('moody', max_attempts => 1, breaker => 0);""")
    rounds = 10
    for r in range(rounds):
        server = "moody/%d" % r
        value(conn, CAST, server, '{"n": "first"}')
        wait_idle(conn)
        conn.execute("SELECT dgen.suspend(%s)", (server,))
        conn.execute("SELECT dgen.cast_many(%s::jsonb)", (json.dumps([
            {"server": server, "message": dict({"n": str(i)}, **(
                {"file": "%s/moody-%d" % (db.data, r)} if i == 3 else {}))} for i in range(8)]),))
        conn.execute("SELECT dgen.resume(%s)", (server,))
        wait_idle(conn)
    # where the machine was so slow that it was alone the first time
    letters = value(conn, "SELECT count(*) FROM dgen.dead_letters")
    assert letters <= rounds / 3
    done = sum("3" in value(conn, "SELECT dgen.state(%s)", "moody/%d" % r) for r in range(rounds))
    assert done == rounds - letters
    conn.execute("SELECT dgen.purge('moody')")
    clean(conn)


# --- handlers that take long, or will not stop

STUBBORN = """
CREATE TABLE stubborn (server text, what text);
CREATE SCHEMA stubborn;
CREATE FUNCTION stubborn.work(m jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    FOR i IN 1..coalesce((m->>'times')::int, 0) LOOP
        BEGIN
            PERFORM pg_sleep((m->>'sleep')::float8);
            INSERT INTO public.stubborn VALUES (dgen.self(), 'slept');
        EXCEPTION WHEN query_canceled THEN
            INSERT INTO public.stubborn VALUES (dgen.self(), 'trapped');
        END;
    END LOOP;
    INSERT INTO public.stubborn VALUES (dgen.self(), 'end');
END $$;
CREATE FUNCTION stubborn.handle_cast""" + handler("PERFORM stubborn.work(m);") + """
CREATE FUNCTION stubborn.handle_call""" + handler("PERFORM stubborn.work(m); reply := '\"end\"';", "call") + """
SELECT dgen.create_module('stubborn', max_attempts => 1, breaker => 0, handler_timeout => '3 s');
"""


@pytest.fixture(scope="module")
def stubborn(db):
    db.psql(STUBBORN)


@pytest.fixture
def tale(conn, stubborn):
    conn.execute("TRUNCATE stubborn")
    return lambda server: [r[0] for r in conn.execute(
        "SELECT what FROM stubborn WHERE server = %s ORDER BY ctid", (server,))]


def test_trapping_the_cancel_of_a_batch(conn, tale):
    """A handler that traps the cancel by which its company is dissolved runs
    alone nevertheless, undisturbed, and the others do not wait for it."""
    for r in range(3):
        conn.execute("TRUNCATE stubborn")
        # all to one worker
        messages = [{} for _ in range(12)]
        messages[4] = {"times": 1, "sleep": 0.7}
        started = time.monotonic()
        burst(conn, "stubborn", 12, messages)
        wait_for(lambda: value(conn, "SELECT count(*) FROM stubborn WHERE what = 'end'") >= 11, interval=0.005)
        assert time.monotonic() - started < 0.6, "others waited"
        wait_idle(conn)
        assert tale("stubborn/4") == ["slept", "end"]
        assert all(tale("stubborn/%d" % i) == ["end"] for i in range(12) if i != 4)
    clean(conn)


def test_trapping_it_again_and_again(conn, tale):
    """Nor does one that goes on and on."""
    messages = [{} for _ in range(12)]
    messages[4] = {"times": 4, "sleep": 0.5}
    started = time.monotonic()
    burst(conn, "stubborn", 12, messages)
    wait_for(lambda: value(conn, "SELECT count(*) FROM stubborn WHERE what = 'end'") >= 11, interval=0.005)
    assert time.monotonic() - started < 1, "others waited"
    wait_idle(conn)
    assert tale("stubborn/4") == ["slept"] * 4 + ["end"]
    clean(conn)


def test_trapping_the_timeout(conn, tale):
    """handler_timeout holds, whatever a handler makes of the error."""
    with pytest.raises(psycopg.Error) as e:
        value(conn, CALL, "stubborn/trap", '{"times": 1, "sleep": 10}')
    assert e.value.sqlstate == "OT016"
    assert tale("stubborn/trap") == []
    clean(conn)


def test_trapping_the_callers_cancel(conn, tale):
    """A caller is told that it did not happen only if it did not."""
    for i in range(5):
        server = "stubborn/caller%d" % i
        try:
            value(conn, "SELECT dgen.call(%s, %s::jsonb, '100 ms')", server, '{"times": 1, "sleep": 1}')
            told = True
        except psycopg.Error as e:
            assert e.sqlstate in ("OT001", "OT002")
            told = e.sqlstate
        clean(conn)
        if told == "OT001":
            assert tale(server) == []
        elif told is True:
            assert tale(server)[-1] == "end"


def test_handler_timeout(db, conn):
    """OT016 for a caller; a message is tried max_attempts times."""
    db.psql("""
        CREATE TABLE slow (n int);
        CREATE SCHEMA timed;
        CREATE FUNCTION timed.work(m jsonb) RETURNS void LANGUAGE plpgsql AS $$
            BEGIN INSERT INTO public.slow VALUES (m::int); PERFORM pg_sleep(m::int); END $$;
        CREATE FUNCTION timed.handle_cast""" + handler("PERFORM timed.work(m);") + """
        CREATE FUNCTION timed.handle_call""" + handler("PERFORM timed.work(m); reply := m;", "call") + """
        SELECT dgen.create_module('timed', handler_timeout => '200 ms', max_attempts => 2,
                                  backoff_initial => '10 ms', breaker => 0);""")
    started = time.monotonic()
    with pytest.raises(psycopg.Error) as e:
        value(conn, CALL, "timed/1", "20")
    assert e.value.sqlstate == "OT016"
    assert time.monotonic() - started < 5
    burst(conn, "timed", 1, [0, 30, 0])
    wait_idle(conn)
    assert conn.execute("SELECT message::int, sqlstate, attempts FROM dgen.dead_letters").fetchall() == [
        (30, "OT016", 2)]
    assert conn.execute("SELECT n FROM slow").fetchall() == [(0,), (0,)]
    assert value(conn, CALL, "timed/1", "0") == 0
    conn.execute("SELECT dgen.purge('timed')")
    clean(conn)


# --- callers that do not wait

LATE = """
CREATE TABLE effect (n int);
CREATE SCHEMA late;
CREATE FUNCTION late.handle_call""" + handler("""
    INSERT INTO public.effect VALUES ((m->>'n')::int);
    PERFORM pg_sleep((m->>'sleep')::float8);
    state := m;
    reply := m->'n';""", "call") + """
CREATE SCHEMA finish;
CREATE FUNCTION finish.handle_call""" + handler("""
    INSERT INTO public.effect VALUES ((m->>'n')::int);
    PERFORM pg_sleep((m->>'sleep')::float8);
    reply := m->'n';""", "call") + """
SELECT dgen.create_module('late', handler_timeout => '60 s');
SELECT dgen.create_module('finish', late_calls => 'finish');
"""
LONG = '{"n": %d, "sleep": 30}'


@pytest.fixture(scope="module")
def late(db):
    db.psql(LATE)


@pytest.fixture
def effects(conn, late):
    conn.execute("TRUNCATE effect")
    return lambda: sorted(r[0] for r in conn.execute("SELECT n FROM effect"))


SLEEPING = ("SELECT count(*) FROM pg_stat_activity "
            "WHERE backend_type = 'dgen worker' AND wait_event = 'PgSleep'")


def check_cancelled(conn, effects, server, seconds=3):
    """Its handler is gone, with all that it did, and the server goes on."""
    wait_for(lambda: value(conn, SLEEPING) == 0, seconds, message="the handler still runs")
    started = time.monotonic()
    assert value(conn, CALL, server, '{"n": 1000, "sleep": 0}') == 1000
    assert time.monotonic() - started < 3
    assert effects() == [1000]
    clean(conn)


def test_late_call(conn, effects):
    for timeout in ("100 ms", "1500 ms"):       # before and after deadlock_timeout
        conn.execute("TRUNCATE effect")
        started = time.monotonic()
        with pytest.raises(psycopg.Error) as e:
            value(conn, "SELECT dgen.call('late/deadline', %s::jsonb, %s)", LONG % 1, timeout)
        assert e.value.sqlstate == "OT001"
        assert time.monotonic() - started < 3
        check_cancelled(conn, effects, "late/deadline")


def test_statement_timeout_of_the_caller(conn, effects):
    conn.execute("SET statement_timeout = '300 ms'")
    with pytest.raises(psycopg.Error) as e:
        value(conn, CALL, "late/statement", LONG % 1)
    assert e.value.sqlstate == "OT001"
    conn.execute("RESET statement_timeout")
    check_cancelled(conn, effects, "late/statement")


def test_deadlock_with_the_settings_that_all_have(db, conn):
    """Whose handler waits for a row of the caller's own transaction is told by
    PostgreSQL's detector, long before the call's timeout."""
    conn.execute("CREATE SCHEMA own; CREATE TABLE own.row (n int); INSERT INTO own.row VALUES (0);"
                 "CREATE FUNCTION own.handle_call(request jsonb, INOUT state jsonb, OUT reply jsonb)"
                 " LANGUAGE plpgsql AS $$ BEGIN UPDATE own.row SET n = n + 1; reply := '1'; END $$;"
                 "SET client_min_messages = error; SELECT dgen.create_module('own', isolation => 'read committed')")
    for timeout in ("1s", "1500ms"):
        conn.execute("ALTER SYSTEM SET deadlock_timeout = '%s'" % timeout)
        conn.execute("SELECT pg_reload_conf()")
        wait_for(lambda: value(conn, "SELECT current_setting('deadlock_timeout')::interval = %s::interval", timeout))
        conn.execute("BEGIN")
        conn.execute("UPDATE own.row SET n = n + 1")
        begin = time.monotonic()
        with pytest.raises(psycopg.errors.DeadlockDetected):
            conn.execute("SELECT dgen.call('own/1', '{}', timeout => '30 s')")
        assert time.monotonic() - begin < 10
        conn.execute("ROLLBACK")
        assert value(conn, "SELECT dgen.call('own/1', '{}')") == 1
    conn.execute("ALTER SYSTEM RESET deadlock_timeout")
    conn.execute("SELECT pg_reload_conf()")


@pytest.mark.parametrize("after_deadlock_timeout", (False, True))
def test_cancelled_caller(db, conn, effects, after_deadlock_timeout):
    with db.connect() as caller:
        pid = caller.info.backend_pid
        told = []

        def call():
            with pytest.raises(psycopg.Error) as e:
                if after_deadlock_timeout:
                    caller.execute("SET deadlock_timeout = '10 ms'")
                value(caller, CALL, "late/cancel", LONG % 1)
            told.append(e.value.sqlstate)

        def cancel():
            wait_for(lambda: value(conn, SLEEPING) == 1)
            if after_deadlock_timeout:
                wait_for(lambda: value(conn, "SELECT count(*) FROM pg_locks WHERE pid = %s "
                                             "AND NOT granted", pid) == 1)
            value(conn, "SELECT pg_cancel_backend(%s)", pid)
        in_threads([call, cancel], timeout=30)
        assert told == ["57014"]
        assert value(caller, "SELECT 1") == 1
    check_cancelled(conn, effects, "late/cancel")


CLIENT = """
import sys
import psycopg
conn = psycopg.connect(sys.argv[1], autocommit=True)
print(conn.info.backend_pid, flush=True)
conn.execute(sys.argv[2])
"""


class Vanishing:
    """A client in a process of its own that calls, and is killed."""

    def __init__(self, db, server, n):
        self.process = subprocess.Popen(
            [sys.executable, "-c", CLIENT, psycopg.conninfo.make_conninfo(**db.conninfo()),
             "SELECT dgen.call('%s', '%s', '60 s')" % (server, LONG % n)],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=dict(os.environ))
        self.pid = int(self.process.stdout.readline())

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.process.stdout.close()


@pytest.mark.parametrize("how", ("killed", "closed", "terminated"))
def test_vanished_caller(db, conn, effects, how):
    """Its handler is cancelled, and a call of the same kind that has not
    begun never happens."""
    if how == "closed":
        clients = [db.connect(), db.connect()]
        pids = [c.info.backend_pid for c in clients]
        send = [lambda c=c, n=n: c.pgconn.send_query(b"SELECT dgen.call('late/vanish', '%s', '60 s')" % (
            (LONG % n).encode())) for n, c in enumerate(clients)]
        send[0]()
        wait_for(lambda: value(conn, SLEEPING) == 1)
        send[1]()
    else:
        clients = [Vanishing(db, "late/vanish", 0)]
        wait_for(lambda: value(conn, SLEEPING) == 1)
        clients.append(Vanishing(db, "late/vanish", 1))
        pids = [c.pid for c in clients]
    wait_for(lambda: value(conn, "SELECT count(*) FROM dgen.messages WHERE server = 'late/vanish'") == 1)
    for c, pid in reversed(list(zip(clients, pids))):
        if how == "closed":
            # without a word of the protocol
            os.dup2(os.open(os.devnull, os.O_RDWR), c.pgconn.socket)
        elif how == "killed":
            c.kill()
        else:
            value(conn, "SELECT pg_terminate_backend(%s)", pid)
    wait_for(lambda: value(conn, SLEEPING) == 0, 4, message="the handler still runs")
    check_cancelled(conn, effects, "late/vanish")
    assert value(conn, "SELECT count(*) FROM pg_stat_activity WHERE pid = ANY(%s)", pids) == 0
    if how == "terminated":
        for c in clients:
            c.kill()


def test_late_call_that_is_finished(db, conn, effects):
    """With late_calls => 'finish' the handler goes on, as in OTP."""
    with pytest.raises(psycopg.Error) as e:
        value(conn, "SELECT dgen.call('finish/1', '{\"n\": 1, \"sleep\": 0.7}', '100 ms')")
    assert e.value.sqlstate == "OT002"
    wait_for(lambda: effects() == [1], 10)
    # one that has not begun will be
    with db.connect() as other:
        def call():
            value(other, CALL, "finish/1", '{"n": 2, "sleep": 1}')

        def late():
            wait_for(lambda: value(conn, SLEEPING) == 1)
            with pytest.raises(psycopg.Error) as e:
                value(conn, "SELECT dgen.call('finish/1', '{\"n\": 3, \"sleep\": 0}', '100 ms')")
            assert e.value.sqlstate == "OT002"
        in_threads([call, late])
    wait_for(lambda: effects() == [1, 2, 3], 10)
    clean(conn)


# --- stopped servers

def test_stop_between_queue_and_lease(db, conn):
    """A worker has the call already, but not the lease yet, when the server is
    stopped: the call waited for that life, and is not for the next one."""
    conn.execute("CREATE SCHEMA life")
    conn.execute("CREATE FUNCTION life.handle_call" + handler("reply := to_jsonb(dgen.self());", "call"))
    conn.execute("SELECT dgen.create_module('life')")
    conn.execute("SELECT dgen.start('life/1')")
    db.configure({"dgen.debug_waitpoint": "dgen-before-leases"})
    db.reload()
    told = []

    def caller():
        with db.connect() as mine, pytest.raises(psycopg.Error) as e:
            # the worker may not have read its settings yet
            while True:
                value(mine, CALL, "life/1", "{}")
        told.append(e.value.sqlstate)
    try:
        with db.connect() as holder:
            holder.execute("SELECT pg_advisory_lock(hashtext('dgen-before-leases'))")
            thread = threading.Thread(target=caller, daemon=True)
            thread.start()
            wait_for(lambda: value(conn, "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' "
                                         "AND NOT granted AND objsubid = 1") == 1)
            value(conn, "SELECT dgen.stop('life/1')")
            holder.execute("SELECT pg_advisory_unlock(hashtext('dgen-before-leases'))")
            thread.join(30)
    finally:
        db.configure({"dgen.debug_waitpoint": ""})
        db.reload()
    assert told == ["OT008"]
    conn.execute("SELECT dgen.drop_module('life', true)")
    conn.execute("DROP SCHEMA life CASCADE")
    clean(conn)


# --- neighbours

def timed_calls(conn, server, n):
    times = []
    for _ in range(n):
        started = time.monotonic()
        value(conn, CALL, server, "{}")
        times.append(time.monotonic() - started)
    return statistics.median(times), max(times)


def test_slow_module_does_not_delay_a_quick_one(db, conn):
    """Not though there is more slow work than there are workers."""
    db.psql("""
        CREATE SCHEMA sluggish;
        CREATE FUNCTION sluggish.handle_cast""" + handler("PERFORM pg_sleep(0.4);") + """
        CREATE FUNCTION sluggish.handle_call""" + handler("PERFORM pg_sleep(0.4); reply := m;", "call") + """
        CREATE SCHEMA quick;
        CREATE FUNCTION quick.handle_call""" + handler("reply := m;", "call") + """
        SELECT dgen.create_module('sluggish');
        SELECT dgen.create_module('quick');""")
    n = 100
    timed_calls(conn, "quick/1", 20)
    alone, _ = timed_calls(conn, "quick/1", n)
    burst(conn, "sluggish", 8, [{}] * 40)
    stop = threading.Event()

    def slow(k):
        with db.connect() as mine:
            while not stop.is_set():
                value(mine, CALL, "sluggish/%d" % k, "{}")
    result = []

    def quick():
        try:
            wait_for(lambda: value(conn, SLEEPING) >= 2)
            result.append(timed_calls(conn, "quick/1", n))
            # there was slow work all the time
            assert value(conn, SLEEPING) >= 2
        finally:
            stop.set()
    in_threads([quick] + [lambda k=k: slow(k) for k in range(4)])
    median, worst = result[0]
    print("median alone %.2f ms, with slow ones %.2f ms, the worst %.1f ms" % (
        alone * 1000, median * 1000, worst * 1000))
    assert median < max(10 * alone, 0.03)
    assert worst < 0.4
    clean(conn)


def test_servers_that_touch_their_own_state(cluster, request):
    """They never abort each other, in any mix of calls and casts, reading and
    writing, starting and deleting."""
    seed = seed_of(request)
    cluster.psql("""
        CREATE EXTENSION dgen;
        CREATE SCHEMA own;
        CREATE FUNCTION own.handle_cast""" + handler("""
            state := jsonb_build_object('n', coalesce((state->>'n')::int, 0) + 1, 'pad', m->'pad');
            -- now and then so long that other workers come
            PERFORM pg_sleep(0.02) WHERE random() < 0.05;""") + """
        CREATE FUNCTION own.handle_call""" + handler("""
            IF NOT m ? 'read' THEN
                state := jsonb_build_object('n', coalesce((state->>'n')::int, 0) + 1, 'pad', m->'pad');
            END IF;
            reply := state->'n';""", "call") + """
        SELECT dgen.create_module('own');""")
    n = rounds_of(400)
    sent = collections.Counter()

    def client(number):
        chance = random.Random(seed * 10 + number)
        with cluster.connect() as conn:
            for i in range(n):
                dice = chance.random()
                server = "own/%d" % chance.randrange(30)
                message = json.dumps({"pad": "x" * chance.choice((1, 1, 500, 9000))})
                if dice < 0.3:
                    value(conn, CALL, server, message)
                    sent[server] += 1
                elif dice < 0.5:
                    value(conn, CALL, server, '{"read": 1}')
                elif dice < 0.8:
                    value(conn, CAST, server, message)
                    sent[server] += 1
                elif dice < 0.9:
                    servers = chance.sample(range(30), 12)
                    value(conn, "SELECT dgen.cast_many(%s::jsonb)", json.dumps(
                        [{"server": "own/%d" % k, "message": {}} for k in servers]))
                    sent.update("own/%d" % k for k in servers)
                elif dice < 0.95:
                    value(conn, CALL, "own/new%d.%d" % (number, i), "{}")
                else:
                    value(conn, "SELECT dgen.delete(%s)", "own/new%d.%d" % (number, chance.randrange(i + 1)))
    in_threads([lambda k=k: client(k) for k in range(5)])
    with cluster.connect() as conn:
        wait_idle(conn)
        workers, retries = conn.execute("SELECT count(*), sum(serialization_retries) FROM dgen.workers "
                                        "WHERE activations > 50").fetchone()
        assert workers >= 2, "too few workers to mean anything"
        assert retries == 0
        for server, count in sent.items():
            assert value(conn, "SELECT dgen.state(%s)", server)["n"] == count
        assert_nothing_left(conn)


def test_write_skew(db, conn):
    """Of two servers that each look at the other before they change, never
    both go by what is no longer so."""
    db.psql("""
        CREATE SCHEMA duty;
        CREATE FUNCTION duty.init(args jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT '"on"'::jsonb $$;
        CREATE FUNCTION duty.handle_query(query jsonb, state jsonb) RETURNS jsonb
            LANGUAGE sql AS $$ SELECT state $$;
        CREATE FUNCTION duty.leave(m jsonb, state jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
        DECLARE
            other jsonb;
        BEGIN
            IF m <> 'null' THEN
                other := dgen.query(m #>> '{}', 'null');
                PERFORM pg_sleep(0.02);     -- so that they overlap
                IF other = '"on"' THEN
                    RETURN '"off"';
                END IF;
            END IF;
            RETURN state;
        END $$;
        CREATE FUNCTION duty.handle_cast""" + handler("state := duty.leave(m, state);") + """
        CREATE FUNCTION duty.handle_call""" + handler("state := duty.leave(m, state); reply := state;", "call") + """
        SELECT dgen.create_module('duty');""")
    rounds = rounds_of(50)
    servers = [("duty/a%d" % r, "duty/b%d" % r) for r in range(rounds)]
    for pair in servers:
        for server in pair:
            value(conn, CALL, server, "null")
    retries = "SELECT sum(serialization_retries) FROM dgen.workers"
    before = value(conn, retries)
    meet = threading.Barrier(2, timeout=60)

    def leave(number):
        with db.connect() as mine:
            for r, pair in enumerate(servers):
                meet.wait()
                value(mine, CALL if r % 2 else CAST, pair[number], json.dumps(pair[1 - number]))
    in_threads([lambda: leave(0), lambda: leave(1)])
    clean(conn)
    for pair in servers:
        states = sorted(value(conn, "SELECT dgen.state(%s)", server) for server in pair)
        assert states == ["off", "on"], pair
    assert value(conn, retries) > before, "they never overlapped"


# --- whom handlers run as

def test_handlers_run_as_their_owner(db, conn):
    """Whoever sends, and however; who may send is a matter of EXECUTE."""
    db.psql("""
        CREATE ROLE landlord LOGIN;
        CREATE ROLE tenant LOGIN;
        CREATE ROLE stranger LOGIN;
        GRANT CREATE ON DATABASE postgres TO landlord;
        SET SESSION AUTHORIZATION landlord;
        CREATE SCHEMA house;
        GRANT USAGE ON SCHEMA house TO tenant, stranger;
        CREATE TABLE house.visits (who text, session text, sender text);
        CREATE FUNCTION house.note() RETURNS jsonb LANGUAGE sql AS $$
            INSERT INTO house.visits VALUES (current_user, session_user, dgen.sender_role())
            RETURNING to_jsonb(who) $$;
        CREATE FUNCTION house.handle_cast""" + handler("PERFORM house.note();") + """
        CREATE FUNCTION house.handle_call""" + handler("reply := house.note();", "call") + """
        REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA house FROM public;
        GRANT EXECUTE ON FUNCTION house.handle_cast, house.handle_call TO tenant;
        SELECT dgen.create_module('house');""")
    with db.connect(user="tenant") as tenant, db.connect(user="stranger") as stranger:
        assert value(tenant, CALL, "house/1", "{}") == "landlord"
        value(tenant, CAST, "house/1", "{}")
        assert value(tenant, CALL, "house/1", "{}") == "landlord"
        # it is the one who sends that counts, not who runs the server
        for function in ("call", "cast", "invoke"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                value(stranger, "SELECT dgen.%s('house/1', '{}')" % function)
        assert value(conn, CALL, "house/1", "{}") == "landlord"
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            tenant.execute("SELECT * FROM house.visits")
    assert conn.execute("SELECT * FROM house.visits").fetchall() == [
        ("landlord", "landlord", sender) for sender in ("tenant", "tenant", "tenant", "postgres")]
    clean(conn)
