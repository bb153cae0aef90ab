"""Standbys: what they answer, and what goes on when one is promoted."""

import collections
import random
import signal
import threading
import time

import psycopg
import pytest

import every
from cluster import Cluster, wait_for
from common import connect_again, in_threads, rounds_of, seed_of, value, wait_idle
from invariants import violations

# what each function gets, by the names of its parameters; a timer "x" and message %(late)s wait
ARGUMENTS = {
    "server": "'m/1'", "servers": "ARRAY['m/1']", "message": "'1'", "messages": '\'[{"server": "m/1", "message": 1}]\'',
    "request": "'1'", "query": "'1'", "module": "'m'", "timeout": "'10 ms'", "id": "%(late)s", "request_id": "%(asked)s",
    "request_ids": "ARRAY[%(asked)s]::bigint[]", "request_key": "'key'", "delay": "'1 h'", "at": "now()", "every": "'1 h'",
    "version": "1", "from_version": "1", "to_version": "2", "state": "'1'", "ref": "1", "token": "'1.1.jobs/1'",
    "tree": "'{\"children\": []}'", "supervisor": "'tree'", "child": "'{\"server\": \"m/9\"}'", "expression": "'n'",
    "function": "'m.effect'", "from": "'1.x'", "reply": "'1'", "reason": "'no'", "event": "'1'", "after": "'1 s'",
    "callback": "'handle_cast'", "metadata": "'{}'", "pattern": "'{}'", "parts": "ARRAY['a']", "base": "'1'", "new": "'2'",
    "patch": "'2'", "p1": "'1'", "p2": "'2'", "name": "'x'", "max": "1", "owner": "'postgres'", "kind": "'c'",
    "base_version": "1",
}
# and others, which are not told of here
BY_TYPE = {"text": "'m/1'", "jsonb": "'{}'", "bigint": "1", "integer": "1", "boolean": "true", "interval": "'1 s'",
           "timestamp with time zone": "now()", "text[]": "'{}'", "bigint[]": "'{}'", '"char"': "'c'"}
# where a parameter of a function means something else than elsewhere
PARTICULAR = {
    ("history", "after_version"): None, ("create_module", "name"): "'m'", ("alter_module", "name"): "'m'",
    ("drop_module", "name"): "'m'", ("supervise", "name"): "'tree'", ("restart_child", "id"): "'a'",
    ("stop_supervisor", "name"): "'tree'", ("restart_supervisor", "name"): "'tree'", ("check_supervisor", "name"): "'tree'",
    ("terminate_child", "id"): "'a'", ("delete_child", "id"): "'a'", ("read_timer", "id"): None,
    ("take_work", "module"): "'jobs'", ("wait_work", "module"): "'jobs'", ("state_at", "version"): "1",
    ("cancel_timer", "id"): None, ("why", "pid"): None, ("diff", "to_version"): "2",
}

FUNCTIONS = """
    SELECT p.proname, p.prokind = 'p', p.proretset OR p.prorettype = 'record'::regtype,
           p.proargnames, p.proargmodes::text[], p.pronargs, p.pronargdefaults,
           (SELECT array_agg(format_type(t, NULL) ORDER BY n) FROM unnest(p.proargtypes) WITH ORDINALITY u (t, n))
    FROM pg_proc p WHERE p.pronamespace = 'dgen'::regnamespace AND p.proname <> 'metadata_contains'
    ORDER BY p.proname"""

# These only read, and give on a standby what they would elsewhere
READS = {"query", "state", "state_at", "history", "diff", "status", "why", "message_status", "check_response",
         "wait_response", "wait_any", "wait_all", "reply_of", "whereis", "members", "find_names",
         "read_timer", "which_children", "count_children", "is_armed", "address", "jsonb_diff", "jsonb_merge", "statistics", "try", "wait_work"}
# These are refused
WRITES = {"call", "multi_call", "invoke", "cast", "cast_many", "send", "send_after", "send_at", "send_every",
          "send_request", "cancel", "cancel_timer", "cancel_all", "start", "stop", "kill", "delete", "suspend", "resume",
          "abort", "release", "replace_state", "rollback", "requeue", "requeue_all", "discard", "purge", "register", "unregister", "set_metadata", "join_group", "leave_group", "supervise",
          "stop_supervisor", "restart_supervisor", "start_child", "terminate_child", "restart_child", "delete_child",
          "create_module", "alter_module", "drop_module", "adopt", "create_index", "drop_index", "refresh_attributes",
          "migrate", "trace", "untrace", "take_work", "renew_work", "finish_work", "fail_work", "drain", "reply",
          "receive_response", "clone", "import"}

MODULE = """
CREATE EXTENSION dgen;
SET client_min_messages = error;
CREATE SCHEMA m;
CREATE FUNCTION m.init(args jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT '{"n": 0}'::jsonb $$;
CREATE FUNCTION m.handle_call(request jsonb, INOUT state jsonb, OUT reply jsonb) LANGUAGE sql AS $$
  SELECT jsonb_build_object('n', (state->>'n')::int + 1), state $$;
CREATE FUNCTION m.handle_cast(message jsonb, state jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT state $$;
CREATE FUNCTION m.handle_info(message jsonb, state jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT state $$;
CREATE FUNCTION m.handle_query(query jsonb, state jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT state $$;
CREATE FUNCTION m.attributes(state jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT state $$;
CREATE FUNCTION m.effect(args jsonb) RETURNS void LANGUAGE sql AS $$ SELECT $$;
SELECT dgen.create_module('m', history => '10');
CREATE SCHEMA jobs;
SELECT dgen.create_module('jobs', external => true);
SELECT dgen.call('m/1', '1', request_key => 'key');
SELECT dgen.call('m/1', '1');
SELECT dgen.send_after('m/1', '1', '1 h', name => 'x');
SELECT dgen.register('x', 'm/1');
SELECT dgen.join_group('x', 'm/1');
SELECT dgen.supervise('tree', '{"children": [{"id": "a", "server": "m/2"}]}');
"""


def statement(function, known):
    name, procedure, many, names, modes, nargs, ndefaults, types = function
    given = []
    inputs = [n for i, n in enumerate(names or []) if not modes or modes[i] in ("i", "b", "v")]
    variadic = modes and "v" in modes
    for i, parameter in enumerate(inputs):
        text = PARTICULAR[name, parameter] if (name, parameter) in PARTICULAR else ARGUMENTS.get(parameter)
        if i >= nargs - ndefaults and parameter not in (
                "server", "module", "id", "name", "message", "timeout") and (name, parameter) != ("state_at", "version"):
            continue
        if text is None and i < nargs - ndefaults:
            text = BY_TYPE[types[i]]
        if text is None:
            continue
        given.append((parameter, text % known))
    if {"server", "module", "everything"} <= set(inputs) or name in ("trace", "untrace", "requeue_all"):
        given = [g for g in given if g[0] != "module"]
    if variadic:
        arguments = "'m', 'a'"
    else:
        arguments = ", ".join('"%s" => %s' % g for g in given)
    return "%s dgen.\"%s\"(%s)" % ("CALL" if procedure else "SELECT * FROM" if many else "SELECT", name, arguments)


def outcome(conn, query):
    try:
        conn.execute(query)
        return None, "", ""
    except psycopg.Error as e:
        return e.sqlstate or "lost", str(e), e.diag.message_hint


def test_every_function(cluster):
    """Reads work, all that writes is refused with OT017, and says where to go."""
    cluster.psql(MODULE)
    with cluster.connect() as conn:
        known = {"late": value(conn, "SELECT dgen.cast('m/1', '1', delay => '1 h')"),
                 "asked": value(conn, "SELECT dgen.send_request('m/1', '1')")}
        value(conn, "SELECT dgen.wait_response(%s)", known["asked"])
        functions = conn.execute(FUNCTIONS).fetchall()
        place = value(conn, "SELECT pg_current_wal_lsn()")
        with cluster.standby() as standby:
            with standby.connect() as other:
                wait_for(lambda: value(other, "SELECT pg_last_wal_replay_lsn() >= %s", place))
                wrong = []
                for function in functions:
                    query = statement(function, known)
                    state, message, hint = outcome(other, query)
                    if function[0] in READS:
                        good = state is None
                    elif function[0] in WRITES:
                        good = state == "OT017" and "standby" in message and hint == "Connect to the primary."
                    else:
                        # of handlers only, or not told of here: whatever it says, it is dgen's own refusal
                        good = state not in ("25006", "42883", "55000") and not (state or "").startswith("XX")
                    if not good:
                        wrong.append("%s: %s %s" % (query, state, message))
                assert not wrong, "\n".join(wrong)
                names = {f[0] for f in functions}
                assert READS | WRITES <= names
                # the views, as well
                for view, in other.execute("SELECT oid::regclass FROM pg_class WHERE relkind = 'v' "
                                           "AND relnamespace = 'dgen'::regnamespace").fetchall():
                    other.execute("SELECT * FROM %s" % view)
                assert value(other, "SELECT dgen.state('m/1')") == {"n": 3}
                assert value(other, "SELECT dgen.query('m/1', '1')") == {"n": 3}
                assert value(other, "SELECT count(*) FROM dgen.servers WHERE server = 'm/1' AND status = 'idle'") in (0, 1)
                assert "standby" in value(other, "SELECT dgen.why('m/1')")
                # nothing of dgen runs here
                assert standby.processes("dgen (launcher|keeper|worker)") == {}


# ------------------------------------------------------------ promotion

def replicate(cluster, **conf):
    """A standby; from then on the cluster waits for it, if it is to."""
    standby = cluster.standby()
    cluster.configure(conf)
    cluster.reload()
    with cluster.connect() as conn:
        for name, wanted in conf.items():
            wait_for(lambda: value(conn, "SHOW %s" % name) == wanted)
    return standby


def has_all(standby, place):
    with standby.connect() as conn:
        wait_for(lambda: value(conn, "SELECT pg_last_wal_replay_lsn() >= %s", place), 60)


def check(conn, where, more=()):
    found = violations(conn, [*every.INVARIANTS, *more])
    assert not found, "%s:\n%s" % (where, "\n".join(found))



def test_promotion(cluster):
    """What was queued, leased, locked, delayed and timed goes on; what came due meanwhile, once."""
    every.setup(cluster)
    cluster.psql("""
        CREATE OR REPLACE PROCEDURE held.handle_locked(kind text, message jsonb, INOUT state jsonb, INOUT reply jsonb)
        LANGUAGE plpgsql AS $$
        BEGIN
          -- where it was when its server died
          IF current_setting('test.slow', true) = 'on' THEN PERFORM pg_sleep(600); END IF;
          state := state || jsonb_build_object('done', coalesce(state->'done', '[]') || jsonb_build_array(message->'t'));
        END $$;""")
    standby = replicate(cluster, **{"test.slow": "on"})
    load = every.Load(cluster, 9, 1)
    with cluster.connect() as load.conn:
        conn = load.conn
        conn.execute("SELECT dgen.cast('held/0', '{\"t\": \"held\"}')")
        wait_for(lambda: value(conn, "SELECT lock_id FROM dgen.server WHERE server = 'held/0'"))
        leased = load.send("jobs/1", "cast")
        assert len(conn.execute("SELECT * FROM dgen.take_work('jobs', 1, '2 s')").fetchall()) == 1
        load.send("j/0", "cast", do="timer")        # named x
        load.send("j/1", "cast", do="every")        # named often
        load.send("j/2", "cast", do="timeout")
        load.send("fsm/0", "cast", timeouts=1)
        load.send("fsm/1", "cast", **{"in": "c"})   # postponed
        dead = load.send("j/2", "cast", do="die")
        load.send("kid/1", "cast")
        wait_for(lambda: value(conn, "SELECT count(*) FROM dgen.letter WHERE id = %s", dead))
        # from here on nothing of it runs but what is locked
        cluster.configure({"dgen.enabled": "off"})
        cluster.reload()
        wait_for(lambda: value(conn, """SELECT count(*) FROM pg_stat_activity
                                        WHERE backend_type LIKE 'dgen worker%' AND state = 'active'""") == 1, 60)
        for n in range(10):
            for kind in ("cast", "high", "low", "info", "late", "after", "request"):
                load.send("j/%d" % (n % 3), kind)
            load.send("queue/1", "cast", do="effect")
        load.send("fsm/1", "late", next="c")
        fired = value(conn, "SELECT count(*) FROM effect WHERE server = 'j/1' AND kind = 'timer'")
        due = value(conn, "SELECT max(due_at)::text FROM dgen.delayed")
        place = value(conn, "SELECT pg_current_wal_insert_lsn()")
        places = conn.execute("SELECT count(*), (SELECT count(*) FROM dgen.delayed) FROM dgen.message").fetchone()
        assert min(places) > 10
        has_all(standby, place)
        cluster.kill9()
    with standby:
        with standby.connect() as conn:
            check(conn, "on the standby")
            assert value(conn, "SELECT count(*) FROM dgen.message") == places[0]
            # all timers are due, and nobody there to see to them
            wait_for(lambda: value(conn, "SELECT clock_timestamp() > %s::timestamptz", due), 60)
            assert outcome(conn, "SELECT dgen.cast('j/0', '1')")[0] == "OT017"
            standby.promote()
            # the same session goes on
            assert value(conn, "SELECT dgen.call('j/9', '{\"t\": \"after\", \"a\": 1}', '60 s')") == "after"
            wait_for(lambda: value(conn, "SELECT count(*) FROM effect WHERE server = 'j/1' AND kind = 'timer'") > fired, 60)
            every.finish(conn)
            wait_idle(conn)
            check(conn, "after the promotion", every.FINISHED)
            assert value(conn, "SELECT dgen.state('held/0')->'done'") == ["held"]
            assert value(conn, "SELECT count(*) FROM effect e JOIN sent s USING (token) WHERE s.id = %s", leased) == 1
            # one that recurs is not made up for: fire_once
            assert value(conn, "SELECT count(*) FROM effect WHERE server = 'j/0' AND kind = 'timer'") == 1


def fail_over(primary, seed, synchronous):
    """A load, kill -9 in the middle of it, and the standby takes over: the new primary."""
    chance = random.Random(seed)
    standby = replicate(primary, synchronous_standby_names="*" if synchronous else "")
    loads = [every.Load(primary, seed % 1000 * 10 + number, seed) for number in range(4)]
    down = threading.Event()

    def client(load):
        try:
            load.run(1000, down)
        except psycopg.Error as e:
            # it may be told that a worker is lost before its connection is
            if not down.is_set():
                raise AssertionError("before the end: %s" % e)

    def killer():
        wait_for(lambda: sum(len(load.acknowledged) for load in loads) > 5, 60)
        time.sleep(chance.uniform(0, 1))
        # what the primary writes from here on never gets to the standby
        receivers = list(standby.processes("walreceiver"))
        for pid in receivers:
            standby.kill_backend(pid, signal.SIGSTOP)
        time.sleep(chance.uniform(0, 0.3))
        down.set()
        primary.kill9()
        for pid in receivers:
            standby.kill_backend(pid, signal.SIGTERM)
            standby.kill_backend(pid, signal.SIGCONT)
    in_threads([lambda load=load: client(load) for load in loads] + [killer])
    calls = [token for load in loads for _, token in load.acknowledged]
    sends = [token for load in loads for token in load.committed]
    standby.promote()
    with connect_again(standby) as conn:
        wait_for(lambda: not value(conn, "SELECT pg_is_in_recovery()"))
        check(conn, "after the promotion")
        done = {row[0] for row in conn.execute("SELECT token FROM effect")}
        sent = {row[0] for row in conn.execute("SELECT token FROM sent")}
        lost = [t for t in calls if t not in done] + [t for t in sends if t not in sent]
        print("%d calls and %d sends acknowledged, %d lost" % (len(calls), len(sends), len(lost)))
        assert not synchronous or not lost, "acknowledged, and lost: %s" % lost
        every.finish(conn)
        wait_idle(conn)
        check(conn, "at the end", every.FINISHED)
    primary.destroy()
    return standby


def fail_overs(seed, rounds, synchronous):
    primary = Cluster("primary", conf={"fsync": "off"})
    with primary:
        every.setup(primary)
        primary = fail_over(primary, seed, synchronous)
    for n in range(1, rounds):
        primary = fail_over(primary, seed + n, synchronous)
    with primary:
        pass


def test_acknowledged_is_there(request):
    """With a synchronous standby, whatever a client was told before the primary was lost."""
    fail_overs(seed_of(request), 1, True)


@pytest.mark.long
def test_many_fail_overs(request):
    fail_overs(seed_of(request), rounds_of(20), True)


@pytest.mark.long
def test_many_fail_overs_asynchronous(request):
    """What was acknowledged last may be lost; nothing else is."""
    fail_overs(seed_of(request), rounds_of(20), False)


# ------------------------------------------------------------ a standby that hangs

def test_standby_that_does_not_answer(cluster):
    """Its callers hear of it, and it holds up no shutdown."""
    cluster.psql(MODULE)
    # how long PostgreSQL itself waits for it while it shuts down
    standby = replicate(cluster, synchronous_standby_names="*", wal_sender_timeout="2s")
    with standby:
        with cluster.connect() as conn:
            assert value(conn, "SELECT dgen.call('m/1', '1')") == {"n": 2}
        receivers = standby.processes("walreceiver|startup")
        for pid in receivers:
            standby.kill_backend(pid, signal.SIGSTOP)
        try:
            told = collections.Counter()

            def caller(timeout):
                with cluster.connect() as mine:
                    state, _, hint = outcome(mine, "SELECT dgen.call('m/1', '1', '%s')" % timeout)
                    told[state] += 1
                    assert hint or not state.startswith("OT")
            # one whose time is up: it may have happened
            caller("1 s")
            assert told == {"OT002": 1}, told
            # and those who wait when the server is stopped
            threads = [threading.Thread(target=caller, args=("60 s",)) for _ in range(3)]
            for thread in threads:
                thread.start()
            with cluster.connect() as conn:
                wait_for(lambda: value(conn, """SELECT count(*) FROM pg_stat_activity
                                                WHERE backend_type = 'dgen worker' AND wait_event = 'SyncRep'"""))
            cluster.stop("fast")
            for thread in threads:
                thread.join(60)
            assert set(told) <= {"OT002", "57P01", "lost"} and sum(told.values()) == 4, told
        finally:
            for pid in receivers:
                standby.kill_backend(pid, signal.SIGCONT)
        cluster.configure(synchronous_standby_names="")
        cluster.start()
        with cluster.connect() as conn:
            # each of those calls happened once, or not at all
            assert 4 <= value(conn, "SELECT dgen.call('m/1', '1')")["n"] <= 7
