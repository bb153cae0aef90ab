"""What goes wrong, and what becomes of messages and callers then: handlers
that crash the server or end their worker, faults of the environment, poison,
full mailboxes, sizes, and too few workers."""

import re
import threading
import time

import psycopg
import pytest

from cluster import wait_for
from common import assert_nothing_left, connect_again, in_threads, value, wait_idle

# A module of many uses.  A message is {"do": what, ...}; what is handled is
# noted in order.
MODULE = """
CREATE TABLE done (seq bigserial, server text, message jsonb);
CREATE TABLE flag (name text);
CREATE SCHEMA %(name)s;
CREATE FUNCTION %(name)s.act(message jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF message->>'do' IN ('raise', 'slow') AND NOT EXISTS (SELECT FROM public.flag WHERE name = 'heal') THEN
        RAISE 'as was asked for';
    ELSIF message->>'do' = 'slow' THEN
        PERFORM pg_sleep(8);
    ELSIF message->>'do' = 'conflict' THEN
        PERFORM pg_advisory_xact_lock_shared(7);
        IF NOT EXISTS (SELECT FROM public.flag WHERE name = 'heal') THEN
            RAISE 'as was asked for' USING ERRCODE = 'serialization_failure';
        END IF;
    ELSIF message->>'do' = 'terminate' THEN
        PERFORM pg_terminate_backend(pg_backend_pid());
        PERFORM pg_sleep(10);
    ELSIF message->>'do' = 'fault' THEN
        EXECUTE 'INSERT INTO public.missing VALUES (1)';
    ELSIF message->>'do' = 'endless' AND NOT EXISTS (SELECT FROM public.flag WHERE name = 'enough') THEN
        PERFORM dgen.cast(dgen.self(), message, priority => (message->>'priority')::int);
    END IF;
    INSERT INTO public.done (server, message) VALUES (dgen.self(), message);
END $$;
CREATE FUNCTION %(name)s.handle_call(request jsonb, INOUT state jsonb, OUT reply jsonb)
LANGUAGE plpgsql AS $$ BEGIN PERFORM %(name)s.act(request); reply := request; END $$;
CREATE FUNCTION %(name)s.handle_cast(message jsonb, state jsonb) RETURNS jsonb
LANGUAGE plpgsql AS $$ BEGIN PERFORM %(name)s.act(message); RETURN state; END $$;
SELECT dgen.create_module('%(name)s', isolation => 'read committed'%(options)s);
"""
QUICK = ", backoff_initial => '20 ms', backoff_factor => 1"


def make(cluster, name, options=QUICK):
    cluster.psql(MODULE % {"name": name, "options": options})


@pytest.fixture
def db(shared_cluster):
    """A connection; afterwards the database is as new."""
    with shared_cluster.connect() as conn:
        yield conn
    with shared_cluster.connect() as conn:
        conn.execute("SELECT dgen.drop_module(module, true) FROM dgen.modules")
        for name in "m", "other", "big", "grow":
            conn.execute("DROP SCHEMA IF EXISTS %s CASCADE" % name)
        conn.execute("DROP TABLE IF EXISTS done, flag, missing")


def sqlstate(conn, query, *parameters):
    try:
        conn.execute(query, parameters or None)
    except psycopg.Error as e:
        return e.sqlstate
    return None


def done(conn, what=None):
    return value(conn, "SELECT count(*) FROM done WHERE %s::text IS NULL OR message->>'do' = %s", what, what)


def letters(conn):
    return conn.execute("SELECT server, sqlstate, attempts FROM dgen.dead_letters ORDER BY id").fetchall()


# ------------------------------------------------------------ lost workers

@pytest.mark.seconds(180)
def test_message_that_crashes_the_server(cluster):
    """It is run alone, its attempts are counted, and it ends as a dead
    letter; the others are handled."""
    cluster.psql("CREATE EXTENSION dgen")
    try:
        cluster.psql("CREATE EXTENSION plpython3u")
    except AssertionError as e:
        pytest.skip("no plpython3u: %s" % e)
    make(cluster, "m", QUICK + ", max_attempts => 3")
    cluster.psql("""
        CREATE SCHEMA bomb;
        CREATE FUNCTION bomb.handle_call(request jsonb, INOUT state jsonb, OUT reply jsonb)
        LANGUAGE plpython3u AS $$
            import os, resource
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            os.kill(os.getpid(), 11)
        $$;
        CREATE FUNCTION bomb.handle_cast(message jsonb, state jsonb) RETURNS jsonb
        LANGUAGE plpython3u AS $$
            import os, resource
            if message != '"tick"':
                resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
                os.kill(os.getpid(), 11)
            return state
        $$;
        SELECT dgen.create_module('bomb', max_attempts => 3, backoff_initial => '20 ms', backoff_factor => 1);""")
    cluster.signals.add(11)

    def crashes():
        return len(re.findall(r"terminated by signal 11", cluster.log_text()))

    with cluster.connect(autocommit=False) as conn:
        for n in range(20):
            conn.execute("SELECT dgen.cast('m/%d', '{}')" % (n % 5))
            if n == 10:
                conn.execute("""SELECT dgen.cast('bomb/1', '"tick"')""")
                bomb = value(conn, """SELECT dgen.cast('bomb/1', '"boom"')""")
                conn.execute("""SELECT dgen.cast('bomb/1', '"tick"')""")
                conn.execute("""SELECT dgen.cast('bomb/2', '"tick"')""")

    def buried():
        try:
            with cluster.connect() as conn:
                return value(conn, "SELECT count(*) FROM dgen.dead_letters") > 0
        except psycopg.OperationalError:
            return False
    wait_for(buried, 90, interval=0.2, message="no dead letter")
    with connect_again(cluster) as conn:
        wait_idle(conn)
        assert [(l[0], l[1]) for l in letters(conn)] == [("bomb/1", "OT020")]
        assert value(conn, "SELECT id FROM dgen.dead_letters") == bomb
        assert done(conn) == 20
        assert_nothing_left(conn, letters=1)
    assert 1 <= crashes() <= 3

    # a call goes down with its caller, and comes back no more
    before = crashes()
    with cluster.connect() as conn:
        with pytest.raises(psycopg.OperationalError):
            conn.execute("SELECT dgen.call('bomb/1', '1')")
    with connect_again(cluster) as conn:
        assert value(conn, "SELECT dgen.call('m/1', '{}', timeout => '30 s')") == {}
        wait_idle(conn)
        assert_nothing_left(conn, letters=1)
    assert crashes() == before + 1


def test_victims_of_a_crash_are_not_blamed_for_the_next(cluster):
    """Two messages run at the same time, again and again, and one of them
    brings down the server: only that one is given up."""
    cluster.psql("CREATE EXTENSION dgen")
    try:
        cluster.psql("CREATE EXTENSION plpython3u")
    except AssertionError as e:
        pytest.skip("no plpython3u: %s" % e)
    cluster.psql("""
        CREATE SCHEMA bomb;
        CREATE FUNCTION bomb.handle_cast(message jsonb, state jsonb) RETURNS jsonb
        LANGUAGE plpython3u AS $$
            import os, resource, time
            time.sleep(0.7 if message == '"boom"' else 0.9)
            if message == '"boom"':
                resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
                os.kill(os.getpid(), 11)
            return '"done"'
        $$;
        SELECT dgen.create_module('bomb', max_attempts => 3, backoff_initial => '20 ms', backoff_factor => 1);""")
    cluster.signals.add(11)
    cluster.psql("""
        SELECT dgen.cast('bomb/2', '"tick"');
        SELECT dgen.cast('bomb/3', '"tick"');
        SELECT dgen.cast('bomb/1', '"boom"');""")

    def settled():
        try:
            with cluster.connect() as conn:
                return value(conn, "SELECT count(*) FROM dgen.dead_letters") > 0 and \
                    value(conn, "SELECT count(*) FROM dgen.message") == 0
        except psycopg.OperationalError:
            return False
    wait_for(settled, 90, interval=0.2, message="no dead letter, or messages left")
    with connect_again(cluster) as conn:
        assert [(l[0], l[1]) for l in letters(conn)] == [("bomb/1", "OT020")]
        assert value(conn, "SELECT dgen.state('bomb/2')") == "done"



def test_handler_that_ends_its_worker(db, shared_cluster):
    make(shared_cluster, "m", QUICK + ", max_attempts => 3")
    bad = value(db, """SELECT dgen.cast('m/1', '{"do": "terminate"}')""")
    for n in range(20):
        db.execute("SELECT dgen.cast('m/%d', '{}')" % (n % 4))
    wait_idle(db, 60)
    assert letters(db) == [("m/1", "OT020", 3)]
    assert value(db, "SELECT id FROM dgen.dead_letters") == bad
    assert done(db) == 20
    assert sqlstate(db, """SELECT dgen.call('m/2', '{"do": "terminate"}', timeout => '30 s')""") == "OT020"
    # no harm is left to the next
    assert value(db, "SELECT dgen.call('m/2', '{}')") == {}
    assert done(db) == 21
    assert_nothing_left(db, letters=1)


# ------------------------------------------------------------ the environment

def test_fault_that_holds(db, shared_cluster):
    """A missing table holds the server, without counting, until it is there."""
    make(shared_cluster, "m", QUICK + ", max_attempts => 2")
    db.execute("""SELECT dgen.cast('m/1', '{"do": "fault"}')""")
    db.execute("""SELECT dgen.cast('m/1', '{"do": "next"}')""")
    wait_for(lambda: (value(db, "SELECT holds FROM dgen.attempt") or 0) > 5)
    row = db.execute("SELECT attempts, held_since IS NOT NULL, sqlstate FROM dgen.attempt").fetchone()
    assert row == (0, True, "42P01")
    assert done(db) == 0 and not letters(db)
    # a call is answered at once, and holds nothing
    assert sqlstate(db, """SELECT dgen.call('m/2', '{"do": "fault"}')""") == "42P01"
    db.execute("CREATE TABLE missing (a int)")
    wait_idle(db)
    assert [m["do"] for m, in db.execute("SELECT message FROM done ORDER BY seq")] == ["fault", "next"]
    assert_nothing_left(db)


@pytest.mark.parametrize("what", ["cast", "crash", "supervised"])
def test_failure_with_a_large_state(db, shared_cluster, what):
    """A state that is toasted, read anew by the worker that records a failure."""
    make(shared_cluster, "m", QUICK + ", max_attempts => 2" +
         (", on_crash_loop => 'suspend', crash_limit => 1" if what == "crash" else ""))
    large = "(SELECT jsonb_object_agg(n::text, md5(n::text)) FROM generate_series(1, 3000) n)"
    if what == "supervised":
        db.execute("SELECT dgen.supervise('t', '{\"children\": [{\"id\": \"1\", \"server\": \"m/1\"}]}')")
    else:
        db.execute("SELECT dgen.start('m/1')")
    db.execute("SELECT dgen.replace_state('m/1', %s)" % large)
    if what == "cast":
        db.execute("""SELECT dgen.cast('m/1', '{"do": "raise"}')""")
        wait_for(lambda: letters(db) == [("m/1", "P0001", 2)])
    elif what == "crash":
        assert sqlstate(db, """SELECT dgen.call('m/1', '{"do": "endless", "priority": "x"}')""") == "22P02"
        wait_for(lambda: value(db, "SELECT suspended_at IS NOT NULL FROM dgen.server WHERE server = 'm/1'"))
    else:
        assert sqlstate(db, """SELECT dgen.call('m/1', '{"do": "endless", "priority": "x"}')""") == "22P02"
        wait_for(lambda: value(db, "SELECT incarnation FROM dgen.server WHERE server = 'm/1' AND status = 'a'") == 2)
        assert value(db, "SELECT dgen.state('m/1') ? '3000'") is True
        db.execute("SELECT dgen.stop_supervisor('t')")
    assert "could not" not in shared_cluster.log_text()


def test_failure_that_cannot_be_recorded(db, shared_cluster):
    """Is tried again once a second, and said as often."""
    make(shared_cluster, "m", QUICK + ", max_attempts => 1")
    shared_cluster.log_mark()
    # the library refuses an index like that, when it comes to write
    db.execute("CREATE INDEX wrong ON dgen.letter ((attempts + 1))")
    db.execute("""SELECT dgen.cast('m/1', '{"do": "raise"}')""")
    told = "could not record the failure of a message to server \"m/1\""
    wait_for(lambda: shared_cluster.log_since_mark().count(told) >= 2)
    assert shared_cluster.log_since_mark().count(told) <= 3
    db.execute("DROP INDEX dgen.wrong")
    wait_for(lambda: letters(db) == [("m/1", "P0001", 1)])
    assert_nothing_left(db, letters=1)


def test_fault_that_counts(db, shared_cluster):
    """While other messages of the module succeed, it is the message's own."""
    make(shared_cluster, "m", QUICK + ", max_attempts => 2")
    shared_cluster.psql(MODULE[MODULE.index("CREATE SCHEMA"):] % {"name": "other", "options": QUICK})
    db.execute("""SELECT dgen.cast('m/1', '{"do": "fault"}')""")
    # another module's success does not
    for n in range(20):
        db.execute("SELECT dgen.call('other/1', '{}')")
    wait_for(lambda: (value(db, "SELECT holds FROM dgen.attempt") or 0) > 5)
    assert value(db, "SELECT attempts FROM dgen.attempt") == 0

    def buried():
        db.execute("SELECT dgen.call('m/2', '{}')")
        return letters(db)
    assert wait_for(buried) == [("m/1", "42P01", 2)]
    wait_idle(db)
    assert_nothing_left(db, letters=1)


def test_dropped_is_no_success(db, shared_cluster):
    """What expired is dropped without a handler: it neither counts as an activation
    nor says that the module's other messages succeed."""
    make(shared_cluster, "m", QUICK + ", max_attempts => 2")
    db.execute("""SELECT dgen.cast('m/1', '{"do": "fault"}')""")
    wait_for(lambda: (value(db, "SELECT holds FROM dgen.attempt") or 0) > 2)
    activations = value(db, "SELECT sum(activations) FROM dgen.workers")
    db.execute("SELECT dgen.suspend('m/2')")
    db.execute("SELECT dgen.cast('m/2', '{}', expires => '1 ms') FROM generate_series(1, 20)")
    wait_for(lambda: value(db, "SELECT bool_and(expires_at < clock_timestamp()) FROM dgen.message "
                               "WHERE server = 'm/2'"))
    db.execute("SELECT dgen.resume('m/2')")
    wait_for(lambda: value(db, "SELECT count(*) FROM dgen.message WHERE server = 'm/2'") == 0)
    holds = value(db, "SELECT holds FROM dgen.attempt")
    wait_for(lambda: value(db, "SELECT holds FROM dgen.attempt") > holds + 3)
    assert value(db, "SELECT attempts FROM dgen.attempt") == 0
    assert value(db, "SELECT sum(activations) FROM dgen.workers") == activations
    db.execute("CREATE TABLE missing (a int)")
    wait_idle(db)
    assert_nothing_left(db)


def test_breaker(db, shared_cluster):
    make(shared_cluster, "m", ", breaker => 5, max_attempts => 1")
    # of one server, however many, are one
    db.execute("SELECT dgen.cast('m/1', '{\"do\": \"raise\"}') FROM generate_series(1, 10)")
    wait_idle(db)
    assert len(letters(db)) == 10
    assert value(db, "SELECT suspended_at FROM dgen.modules") is None
    # a success between starts anew
    for server in (2, 3, 4):
        db.execute("SELECT dgen.cast('m/%d', '{\"do\": \"raise\"}')" % server)
    wait_idle(db)
    db.execute("SELECT dgen.call('m/5', '{}')")
    for server in (2, 3, 4):
        db.execute("SELECT dgen.cast('m/%d', '{\"do\": \"raise\"}')" % server)
    wait_idle(db)
    assert value(db, "SELECT suspended_at FROM dgen.modules") is None
    before = len(letters(db))
    # those that a worker had begun by then follow, one a worker
    db.execute("SELECT dgen.cast('m/' || 100 + n, '{\"do\": \"raise\"}') FROM generate_series(1, 40) n")
    wait_for(lambda: value(db, "SELECT suspended_at FROM dgen.modules"))
    assert value(db, "SELECT suspended_reason FROM dgen.modules").startswith("breaker: ")
    assert sqlstate(db, "SELECT dgen.call('m/5', '{}', timeout => '200 ms')") == "OT001"
    assert 2 <= len(letters(db)) - before <= 5 + 4
    left = value(db, "SELECT count(*) FROM dgen.messages")
    assert left + len(letters(db)) - before == 40
    db.execute("INSERT INTO flag VALUES ('heal')")
    db.execute("SELECT dgen.resume(module => 'm')")
    wait_idle(db)
    assert done(db, "raise") == left
    assert value(db, "SELECT dgen.requeue_all(module => 'm')") == 16 + 40 - left
    wait_idle(db)
    assert done(db, "raise") == 16 + 40
    assert_nothing_left(db)


def test_suspended_between_tries(db, shared_cluster):
    """Between two tries of a batch its module is suspended: the first, which
    was rolled back, has handled nothing."""
    make(shared_cluster, "m")
    db.execute("SELECT pg_advisory_lock(7)")
    db.execute("""SELECT dgen.cast('m/1', '{"do": "conflict"}')""")
    wait_for(lambda: value(db, "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"))
    db.execute("SELECT dgen.suspend(module => 'm')")
    retries = value(db, "SELECT sum(serialization_retries) FROM dgen.workers")
    db.execute("SELECT pg_advisory_unlock(7)")
    wait_for(lambda: value(db, "SELECT sum(serialization_retries) FROM dgen.workers") > retries)
    wait_for(lambda: not value(db, "SELECT count(*) FROM dgen.workers WHERE state = 'busy'"))
    db.execute("INSERT INTO flag VALUES ('heal')")
    db.execute("SELECT dgen.resume(module => 'm')")
    wait_idle(db)
    assert done(db, "conflict") == 1
    assert_nothing_left(db)


def test_owner_is_dropped(db, shared_cluster):
    """What was queued for a role that is dropped wants no worker any more, and who waits is told."""
    db.execute("CREATE ROLE leaves LOGIN; CREATE SCHEMA m AUTHORIZATION leaves")
    db.execute("SET ROLE leaves")
    db.execute("CREATE FUNCTION m.handle_cast(message jsonb, state jsonb) RETURNS jsonb LANGUAGE sql AS 'SELECT state'")
    db.execute("CREATE FUNCTION m.handle_call(request jsonb, INOUT state jsonb, OUT reply jsonb) LANGUAGE sql AS 'SELECT state, state'")
    db.execute("SELECT dgen.create_module('m')")
    db.execute("RESET ROLE; REVOKE CONNECT ON DATABASE postgres FROM PUBLIC")
    db.execute("SELECT dgen.cast('m/1', '1')")
    failing = "SELECT count(*) FROM dgen.pools WHERE ready > 0"
    wait_for(lambda: value(db, failing + " AND start_failures > 0"))
    told = []

    def call():
        with shared_cluster.connect() as other, pytest.raises(psycopg.Error) as e:
            other.execute("SELECT dgen.call('m/2', '1', '60 s')")
        told.append(e.value)
    caller = threading.Thread(target=call)
    caller.start()
    wait_for(lambda: value(db, "SELECT count(*) FROM dgen.messages WHERE kind = 'call'") == 1)
    db.execute("SELECT dgen.drop_module('m', true)")
    db.execute("DROP SCHEMA m CASCADE; DROP ROLE leaves; GRANT CONNECT ON DATABASE postgres TO PUBLIC")
    wait_for(lambda: value(db, failing) == 0, 40)
    caller.join(10)
    assert told[0].sqlstate == "OT004" and "owner of server \"m/2\" was dropped" in str(told[0]), told


# ------------------------------------------------------------ places and lanes

@pytest.mark.parametrize("retry", ["block", "skip"])
def test_retry(db, shared_cluster, retry):
    """A message that waits for its next attempt keeps its place, or lets
    others pass."""
    make(shared_cluster, "m", QUICK + ", max_attempts => 30000, retry => '%s'" % retry)
    db.execute("""SELECT dgen.cast('m/1', '{"do": "raise"}')""")
    for n in range(3):
        db.execute("""SELECT dgen.cast('m/1', '{"do": "%d"}')""" % n)
    wait_for(lambda: (value(db, "SELECT attempts FROM dgen.attempt") or 0) >= 4)
    if retry == "skip":
        wait_for(lambda: done(db) == 3)
    assert done(db) == (3 if retry == "skip" else 0)
    db.execute("INSERT INTO flag VALUES ('heal')")
    wait_idle(db)
    order = [m["do"] for m, in db.execute("SELECT message FROM done ORDER BY seq")]
    assert order == (["0", "1", "2", "raise"] if retry == "skip" else ["raise", "0", "1", "2"])
    assert_nothing_left(db)


def test_slow_retry_holds_up_nobody(db, shared_cluster):
    """A message that is tried again, alone, and takes long: servers that were
    ready at the same time are served meanwhile."""
    make(shared_cluster, "m", ", backoff_initial => '200 ms', backoff_factor => 1")
    db.execute("""SELECT dgen.cast('m/slow', '{"do": "slow"}')""")
    wait_for(lambda: value(db, "SELECT attempts FROM dgen.attempt") == 1)
    db.execute("SELECT dgen.suspend(module => 'm')")
    for n in range(3):
        db.execute("SELECT dgen.cast('m/%d', '{\"do\": \"quick\"}')" % n)
    wait_for(lambda: value(db, "SELECT next_at < clock_timestamp() FROM dgen.attempt"))
    db.execute("INSERT INTO flag VALUES ('heal')")
    db.execute("SELECT dgen.resume(module => 'm')")
    wait_for(lambda: done(db, "quick") == 3, 3, message="a slow retry holds up other servers")
    wait_idle(db)
    assert done(db, "slow") == 1
    assert_nothing_left(db)


def test_slow_servers_hold_up_nobody(db, shared_cluster):
    """Of four workers three are for slow modules: so many slow calls run at
    once, and not some of them behind others, of other servers."""
    make(shared_cluster, "m")
    db.execute("INSERT INTO flag VALUES ('heal')")

    def call(n):
        with shared_cluster.connect() as conn:
            conn.execute("SELECT dgen.call('m/%d', '{\"do\": \"slow\"}', timeout => '40 s')" % n)

    def look():
        wait_for(lambda: value(db, "SELECT count(*) FROM pg_stat_activity WHERE "
                                   "backend_type = 'dgen worker' AND wait_event = 'PgSleep'") >= 3,
                 6, message="slow calls wait for each other")
    in_threads([lambda n=n: call(n) for n in range(6)] + [look], timeout=60)
    assert done(db, "slow") == 6


def lane_shares(conn, among):
    return [value(conn, "SELECT count(*) FROM (SELECT message FROM done ORDER BY seq LIMIT %s) d "
                        "WHERE message->>'lane' = %s", among, lane) or 0 for lane in ("1", "0", "-1")]


def test_lanes(db, shared_cluster):
    """Of ten activations of a server, seven are high, two normal, one low."""
    make(shared_cluster, "m")
    db.execute("SELECT dgen.suspend('m/1')")
    for lane, n in ((-1, 60), (0, 100), (1, 280)):
        db.execute("SELECT dgen.cast('m/1', '{\"lane\": %d}', priority => %d) "
                   "FROM generate_series(1, %d)" % (lane, lane, n))
    db.execute("SELECT dgen.resume('m/1')")
    wait_idle(db)
    assert done(db) == 440
    # where a batch begins is by chance: 3.2 deviations if each were one message
    high, normal, low = lane_shares(db, 300)
    assert 185 <= high <= 235 and 38 <= normal <= 82 and 13 <= low <= 47, (high, normal, low)
    # and within a lane they are in order
    assert value(db, "SELECT count(*) FROM (SELECT message, seq, lag(seq) OVER (PARTITION BY message->>'lane' "
                     "ORDER BY seq) AS before FROM done) d WHERE before > seq") == 0


def test_endless_high_lane(db, shared_cluster):
    """The others are served in their share all the same."""
    make(shared_cluster, "m")
    db.execute("SELECT dgen.suspend('m/1')")
    for lane, n in ((-1, 20), (0, 40)):
        db.execute("SELECT dgen.cast('m/1', '{\"lane\": %d}', priority => %d) "
                   "FROM generate_series(1, %d)" % (lane, lane, n))
    # each one handled sends the next
    db.execute("""SELECT dgen.cast('m/1', '{"lane": 1, "do": "endless", "priority": 1}', priority => 1)
                  FROM generate_series(1, 300)""")
    db.execute("SELECT dgen.resume('m/1')")
    wait_for(lambda: value(db, "SELECT count(*) FROM done WHERE message->>'lane' = '-1'") == 20)
    last = value(db, "SELECT count(*) FROM done WHERE seq <= "
                     "(SELECT max(seq) FROM done WHERE message->>'lane' = '-1')")
    assert last <= 400, "20 low ones took %s activations" % last
    assert value(db, "SELECT count(*) FROM done WHERE message->>'lane' = '0'") >= 20
    db.execute("INSERT INTO flag VALUES ('enough')")
    wait_idle(db)
    assert done(db) - done(db, "endless") == 60
    assert_nothing_left(db)


# ------------------------------------------------------------ limits

def test_full_mailbox(db, shared_cluster):
    make(shared_cluster, "m", ", max_mailbox => 10")
    db.execute("SELECT dgen.suspend('m/1')")
    for n in range(10):
        db.execute("SELECT dgen.cast('m/1', '{\"do\": \"%d\"}')" % n)
    for _ in range(3):
        assert sqlstate(db, "SELECT dgen.cast('m/1', '{}')") == "OT007"
        assert sqlstate(db, "SELECT dgen.cast('m/1', '{}', priority => 1)") == "OT007"
    # other servers of the module have room, and what fails leaves nothing
    db.execute("SELECT dgen.cast('m/2', '{}')")
    assert sqlstate(db, "SELECT dgen.cast('m/3', '{}') FROM generate_series(1, 11)") == "OT007"
    assert value(db, "SELECT count(*) FROM dgen.message WHERE server = 'm/1'") == 10
    db.execute("SELECT dgen.resume('m/1')")
    wait_idle(db)
    assert [m["do"] for m, in db.execute("SELECT message FROM done WHERE server = 'm/1' ORDER BY seq")] == \
        [str(n) for n in range(10)]
    for _ in range(5):
        db.execute("SELECT dgen.cast('m/1', '{}') FROM generate_series(1, 10)")
        wait_idle(db)
    assert done(db) == 10 + 50 + 1
    assert_nothing_left(db)


def test_too_large(db, shared_cluster):
    make(shared_cluster, "m", ", max_message_size => 10000")
    shared_cluster.psql("""
        CREATE SCHEMA grow;
        CREATE FUNCTION grow.handle_call(request jsonb, INOUT state jsonb, OUT reply jsonb)
        LANGUAGE sql AS $$ SELECT to_jsonb(repeat('s', request::int)), '1'::jsonb $$;
        CREATE FUNCTION grow.handle_cast(message jsonb, state jsonb) RETURNS jsonb
        LANGUAGE sql AS $$ SELECT to_jsonb(repeat('s', message::int)) $$;
        SELECT dgen.create_module('grow', isolation => 'read committed', max_state_size => 10000, max_attempts => 1);""")
    large = '{"do": "%s"}' % ("x" * 10000)
    for function in "cast", "call", "send_request", "invoke":
        if function != "invoke":        # which sends nothing
            assert sqlstate(db, "SELECT dgen.%s('m/1', %%s)" % function, large) == "54000", function
        assert sqlstate(db, "SELECT dgen.%s('m/1', %%s)" % function, '{"do": "%s"}' % ("x" * 9000)) is None
    wait_idle(db)
    assert done(db) == 4

    db.execute("SELECT dgen.call('grow/1', '9000')")
    assert sqlstate(db, "SELECT dgen.call('grow/1', '10000')") == "54000"
    assert sqlstate(db, "SELECT dgen.invoke('grow/1', '10000')") == "54000"
    db.execute("SELECT dgen.cast('grow/1', '10000')")
    wait_idle(db)
    assert letters(db) == [("grow/1", "54000", 1)]
    assert len(value(db, "SELECT dgen.state('grow/1')")) == 9000
    assert_nothing_left(db, letters=1)


def test_limits_are_for_senders(db, shared_cluster):
    """What the engine sends comes whatever the limits of its module: the keeper
    that delivers timers, a server that ends or replies, and the restart of a
    child must not fail for them."""
    make(shared_cluster, "m", QUICK + ", max_attempts => 2")
    shared_cluster.psql("""
        CREATE SCHEMA other;
        CREATE FUNCTION other.handle_cast(message jsonb, state jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
        BEGIN
            CASE message #>> '{}'
                WHEN 'watch' THEN PERFORM dgen.monitor('m/watched');
                WHEN 'ask' THEN PERFORM dgen.send_request('m/asked', '{}');
                WHEN 'crash' THEN RAISE division_by_zero;
            END CASE;
            RETURN state;
        END $$;
        CREATE FUNCTION other.handle_info(message jsonb, state jsonb) RETURNS jsonb
        LANGUAGE sql AS $$ SELECT state || jsonb_build_object(coalesce(message->>'info', 'timer'), 1) $$;
        SELECT dgen.create_module('other', max_mailbox => 1, max_message_size => 2000%s);""" % QUICK)
    db.execute("SELECT dgen.start('m/watched')")
    db.execute("SELECT dgen.cast('other/1', '\"watch\"')")
    wait_idle(db)
    db.execute("SELECT dgen.send_after('other/1', jsonb_build_object('x', repeat('x', 1000)), '1 s', 'large')")
    db.execute("SELECT dgen.alter_module('other', max_message_size => 20)")
    assert sqlstate(db, "SELECT dgen.cast('other/1', '\"more than there is room for\"')") == "54000"
    db.execute("SELECT dgen.send('m/2', '{}', delay => '1 s')")
    db.execute("SELECT dgen.stop('m/watched')")
    wait_idle(db)
    db.execute("SELECT dgen.cast('other/1', '\"ask\"')")
    wait_for(lambda: value(db, "SELECT dgen.state('other/1')") == {"DOWN": 1, "timer": 1, "reply": 1}, 15)
    # what has crashed the child stays in its mailbox, and that is full
    db.execute("SELECT dgen.alter_module('other', max_attempts => 2)")
    db.execute("SELECT dgen.supervise('tree', '{\"children\": [{\"server\": \"other/2\", "
               "\"on_restart\": {\"info\": \"restarted\"}}]}')")
    db.execute("SELECT dgen.cast('other/2', '\"crash\"')")
    wait_for(lambda: value(db, "SELECT dgen.state('other/2')") == {"restarted": 1}, 15)
    wait_idle(db)
    db.execute("SELECT dgen.stop_supervisor('tree')")
    assert_nothing_left(db, letters=1)


def test_fifty_megabytes(db, shared_cluster):
    shared_cluster.psql("""
        CREATE SCHEMA big;
        CREATE FUNCTION big.handle_call(request jsonb, INOUT state jsonb, OUT reply jsonb)
        LANGUAGE sql AS $$ SELECT state, request $$;
        CREATE FUNCTION big.handle_cast(message jsonb, state jsonb) RETURNS jsonb
        LANGUAGE sql AS $$ SELECT to_jsonb(md5(message->>'x')) $$;
        SELECT dgen.create_module('big');""")
    n = 50 * 1024 * 1024
    md5 = value(db, "SELECT md5(repeat('x', %s))", n)
    for _ in range(2):
        assert value(db, "SELECT md5(dgen.call('big/1', jsonb_build_object('x', repeat('x', %s)), "
                         "timeout => '60 s')->>'x')", n) == md5
    db.execute("SELECT dgen.cast('big/1', jsonb_build_object('x', repeat('x', %s)))", (n,))
    wait_idle(db, 60)
    assert value(db, "SELECT dgen.state('big/1')") == md5
    request = value(db, "SELECT dgen.send_request('big/1', jsonb_build_object('x', repeat('x', %s)))", n)
    wait_for(lambda: value(db, "SELECT dgen.message_status(%s)", request) == "replied", 60)
    assert value(db, "SELECT md5(dgen.wait_response(%s)->>'x')", request) == md5
    assert sqlstate(db, "SELECT dgen.call('big/1', jsonb_build_object('x', repeat('x', %s)))",
                    65 * 1024 * 1024) == "54000"
    # nothing of it stays in shared memory
    for _ in range(5):
        assert value(db, "SELECT length(dgen.call('big/1', jsonb_build_object('x', repeat('x', %s)), "
                         "timeout => '60 s')->>'x')", n) == n


def test_listener_that_does_not_listen(db, shared_cluster):
    """A session that keeps notifications back does not keep replies back."""
    make(shared_cluster, "m")
    with shared_cluster.connect() as stuck:
        stuck.execute("LISTEN dgen_reply")
        stuck.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        stuck.execute("SELECT count(*) FROM done")
        for n in range(100):
            request = value(db, "SELECT dgen.send_request('m/%d', '%d')" % (n % 3, n))
            assert value(db, "SELECT dgen.wait_response(%s)", request) == n
        requests = [row[0] for row in db.execute(
            "SELECT dgen.send_request('m/' || n %% 7, to_jsonb(n)) FROM generate_series(1, %s) n", (500,))]
        replies = db.execute("SELECT reply FROM dgen.wait_all(%s)", (requests,)).fetchall()
        assert sorted(reply for reply, in replies) == list(range(1, 501))
        # and in the end it is told of all of them
        told = set()
        stuck.add_notify_handler(lambda note: told.add(note.payload))
        assert not told
        stuck.execute("COMMIT")
        wait_for(lambda: stuck.execute("SELECT") and len(told) == 600)


# ------------------------------------------------------------ workers

@pytest.mark.seconds(180)
def test_more_owners_than_workers(cluster):
    """Twenty owners share four places, of whom five are busy without end.
    One gives up its place after a second if another waits: a round of all
    takes about five."""
    cluster.configure({"dgen.max_workers": 4, "max_worker_processes": 12})
    cluster.restart()
    cluster.psql("CREATE EXTENSION dgen; CREATE TABLE done (seq bigserial, server text, message jsonb);"
                 "CREATE TABLE flag (name text); GRANT ALL ON done, flag TO PUBLIC;"
                 "GRANT ALL ON SEQUENCE done_seq_seq TO PUBLIC")
    body = MODULE[MODULE.index("CREATE SCHEMA") + len("CREATE SCHEMA %(name)s;"):]
    owners = ["owner%d" % n for n in range(20)]
    for name in owners:
        cluster.psql("CREATE ROLE %s LOGIN; CREATE SCHEMA %s AUTHORIZATION %s; SET ROLE %s;"
                     % (name, name, name, name) + body % {"name": name, "options": QUICK})
    most = 0
    with cluster.connect() as conn:
        for name in owners[:5]:
            for n in range(3):
                conn.execute("""SELECT dgen.cast('%s/%d', '{"do": "endless", "priority": 0}')
                                FROM generate_series(1, 10)""" % (name, n))
        wait_for(lambda: value(conn, "SELECT count(DISTINCT split_part(server, '/', 1)) FROM done") == 5,
                 20, message="not all of the busy ones are served")
        for name in owners[5:]:
            for n in range(20):
                conn.execute("SELECT dgen.cast('%s/%d', '{\"do\": \"cast\"}')" % (name, n % 3))
        calls = []

        def call(name):
            with cluster.connect() as other:
                begin = time.monotonic()
                assert value(other, "SELECT dgen.call('%s/call', '{\"do\": \"call\"}', "
                                    "timeout => '60 s')" % name) == {"do": "call"}
                calls.append(time.monotonic() - begin)
        threads = [lambda name=name: call(name) for name in owners]
        in_threads(threads, timeout=100)
        wait_for(lambda: done(conn, "cast") == 15 * 20, 20)
        most = value(conn, "SELECT count(*) FROM dgen.workers")
        conn.execute("INSERT INTO flag VALUES ('enough')")
        wait_idle(conn)
        assert done(conn, "call") == 20
        assert_nothing_left(conn)
    print("slowest call %.1f s" % max(calls))
    assert most <= 4


@pytest.mark.parametrize("had_work", [False, True])
def test_more_modules_than_queues(cluster, had_work):
    """There are queues for 128 owners and external modules at a time: those
    that were looked into, or had work once, are no reason to refuse a call."""
    cluster.psql("CREATE EXTENSION dgen")
    make(cluster, "m")
    with cluster.connect() as conn:
        for i in range(132):
            conn.execute("CREATE SCHEMA e%d" % i)
            conn.execute("SELECT dgen.create_module('e%d', external => true)" % i)
            if had_work:
                conn.execute("SELECT dgen.cast('e%d/1', '1')" % i)
                conn.execute("SELECT dgen.finish_work(token) FROM dgen.take_work('e%d')" % i)
            assert conn.execute("SELECT * FROM dgen.take_work('e%d')" % i).fetchall() == []
        assert value(conn, "SELECT dgen.call('m/1', '{}', '5 s')") == {}
        conn.execute("SELECT dgen.cast('m/2', '{}')")
        wait_idle(conn, 10)
        assert_nothing_left(conn)


def test_queues_of_dropped_databases(cluster):
    """What waited in a database that was dropped takes no queue from others."""
    cluster.psql("CREATE EXTENSION dgen")
    with cluster.connect() as conn:
        for i in range(122):
            conn.execute("CREATE SCHEMA e%d" % i)
            conn.execute("SELECT dgen.create_module('e%d', external => true)" % i)
            conn.execute("SELECT dgen.cast('e%d/1', '1')" % i)
        for i in range(6):
            conn.execute("CREATE DATABASE gone")
            cluster.psql("CREATE EXTENSION dgen; " + MODULE % {"name": "m", "options": ", backoff_initial => '1 h', backoff_max => '1 h'"},
                         dbname="gone")
            with cluster.connect(dbname="gone") as there:
                there.execute("SELECT dgen.cast('m/1', '{\"do\": \"raise\"}')")
                wait_for(lambda: value(there, "SELECT count(*) FROM dgen.attempt"), 20)
                there.execute("SELECT dgen.cast('m/1', '{}')")
            conn.execute("DROP DATABASE gone")
        make(cluster, "m")
        wait_for(lambda: sqlstate(conn, "SELECT dgen.call('m/1', '{}', '5 s')") is None, 10)


def test_no_worker_to_be_had(cluster):
    cluster.psql("CREATE EXTENSION dgen")
    make(cluster, "m")
    # those are taken by the logical replication launcher, dgen's and a keeper
    cluster.configure(max_worker_processes=3)
    cluster.restart()
    cluster.log_mark()
    with cluster.connect() as conn:
        conn.execute("SELECT dgen.cast('m/1', '{\"do\": \"cast\"}')")
        for _ in range(3):
            begin = time.monotonic()
            with pytest.raises(psycopg.Error) as raised:
                conn.execute("SELECT dgen.call('m/1', '{}', timeout => '30 s')")
            assert raised.value.sqlstate == "OT015", raised.value
            assert "max_worker_processes" in raised.value.diag.message_hint
            assert 0.9 <= time.monotonic() - begin <= 5
        in_threads([lambda: expect_no_worker(cluster) for _ in range(8)])
        assert done(conn) == 0
    warnings = cluster.log_since_mark().count("out of background worker slots for dgen")
    assert warnings == 1
    # nor has the launcher a place, then
    cluster.configure(max_worker_processes=0)
    cluster.restart()
    with cluster.connect() as conn:
        with pytest.raises(psycopg.Error) as raised:
            conn.execute("SELECT dgen.call('m/1', '{}', timeout => '1 s')")
        assert raised.value.sqlstate == "OT015" and "launcher" in raised.value.diag.message_detail
        assert "dgen's launcher does not run" in value(conn, "SELECT dgen.why('m/1') LIMIT 1")
    cluster.configure(max_worker_processes=8)
    cluster.restart()
    with cluster.connect() as conn:
        wait_idle(conn)
        assert done(conn, "cast") == 1
        assert value(conn, "SELECT dgen.call('m/1', '{}')") == {}
        assert done(conn) == 2
        assert_nothing_left(conn)


def expect_no_worker(cluster):
    with cluster.connect() as conn:
        assert sqlstate(conn, "SELECT dgen.call('m/2', '{}', timeout => '30 s')") == "OT015"


def test_off_and_on(cluster):
    """dgen.enabled, by reload."""
    cluster.psql("CREATE EXTENSION dgen")
    make(cluster, "m")
    with cluster.connect() as conn:
        for round in range(3):
            assert value(conn, "SELECT dgen.call('m/1', '{}')") == {}
            cluster.configure({"dgen.enabled": False})
            cluster.reload()
            wait_for(lambda: sqlstate(conn, "SELECT dgen.call('m/1', '{}', timeout => '1 s')") == "OT017", 5)
            before = done(conn)
            wait_for(lambda: value(conn, "SELECT count(*) FROM pg_stat_activity WHERE "
                                         "backend_type = 'dgen worker' AND state = 'active'") == 0)
            ids = [value(conn, "SELECT dgen.cast('m/%d', '{\"do\": \"off\"}')" % n) for n in range(20)]
            # given the chance, nobody takes it
            assert value(conn, "SELECT dgen.wait_idle(everything => true, timeout => '500 ms')") is False
            assert done(conn) == before
            assert all(value(conn, "SELECT dgen.message_status(%s)", i) == "ready" for i in ids)
            cluster.configure({"dgen.enabled": True})
            cluster.reload()
            wait_for(lambda: value(conn, "SHOW dgen.enabled") == "on", 5)
            wait_idle(conn)
            assert done(conn, "off") == 20 * (round + 1)
        assert_nothing_left(conn)
