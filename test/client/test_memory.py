"""What must not grow: a worker's memory, the cost of a message, what dead
workers leave in shared memory."""

import os
import threading

import psycopg
import pytest

from build import INSTRUMENT
from cluster import wait_for
from common import LEASES, assert_nothing_left, in_threads, rounds_of, value, wait_idle

MODULE = """
CREATE SCHEMA m;
CREATE FUNCTION m.init(args jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT '0'::jsonb $$;
CREATE FUNCTION m.handle_cast(message jsonb, state jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
    RETURN to_jsonb(state::int + 1);
END $$;
CREATE FUNCTION m.handle_call(request jsonb, INOUT state jsonb, OUT reply jsonb) LANGUAGE plpgsql AS $$
BEGIN
    IF request ? 'sleep' THEN
        PERFORM pg_sleep((request->>'sleep')::float8);
    ELSIF request ? 'wait' THEN
        PERFORM pg_advisory_xact_lock(1);
    ELSIF request ? 'die' THEN
        PERFORM pg_terminate_backend(pg_backend_pid());
        PERFORM pg_sleep(10);
    ELSIF request ? 'large' THEN
        reply := request;
        RETURN;
    END IF;
    state := to_jsonb(state::int + 1);
    reply := state;
END $$;
SELECT dgen.create_module('m');
"""
SERVERS = 500


def private_memory(pid):
    """Bytes of a process that are its own: what it shares with the others is
    mapped little by little, and is no growth."""
    with open("/proc/%d/status" % pid) as f:
        return sum(int(line.split()[1]) * 1024 for line in f if line.startswith("RssAnon"))


def send(conn, n, payload=""):
    """So many casts to SERVERS servers."""
    conn.execute("""SELECT count(dgen.cast('m/' || n %% %s, jsonb_build_object('n', n, 'p', %s::text)))
                    FROM generate_series(1, %s) n""", (SERVERS, payload, n))


def handled(conn):
    return value(conn, "SELECT coalesce(sum((state #>> '{}')::int), 0) FROM dgen.server")


def growth(cluster, messages, bound):
    """One worker handles them all, by casts, calls, errors; what it has after
    50,000 and in the end."""
    cluster.configure({"dgen.max_workers": 1, "dgen.worker_idle_timeout": "1 h", "fsync": False,
                       "synchronous_commit": "off"})
    cluster.restart()
    cluster.psql("CREATE EXTENSION dgen;" + MODULE)
    step = 25000
    sizes = []
    with cluster.connect() as conn:
        pid = None
        for done in range(step, messages + 1, step):
            send(conn, step, "x" * 40)
            # and some that end otherwise
            for n in range(50):
                assert value(conn, "SELECT length(dgen.call('m/large', jsonb_build_object("
                                   "'large', repeat('x', %s)))->>'large')", 1000 * n) == 1000 * n
                with pytest.raises(psycopg.Error):
                    conn.execute("SELECT dgen.call('m/bad', '{\"sleep\": \"none\"}')")
            wait_for(lambda: handled(conn) == done, 120, interval=0.2, message="%d are not handled" % done)
            now = value(conn, "SELECT pid FROM dgen.workers")
            assert pid in (None, now), "another worker"
            pid = now
            sizes.append(private_memory(pid))
            if done == step:
                # the keeper sees to all of them as well
                keeper, = cluster.processes("dgen keeper")
            if done == 2 * step:
                before = private_memory(pid), private_memory(keeper)
        after = private_memory(pid), private_memory(keeper)
        assert_nothing_left(conn)
    print("worker: %s kB, keeper: %s kB" % ([s // 1024 for s in sizes], [b // 1024 for b in (before[1], after[1])]))
    assert after[0] - before[0] < bound, "the worker grew by %d kB" % ((after[0] - before[0]) // 1024)
    assert after[1] - before[1] < bound, "the keeper grew by %d kB" % ((after[1] - before[1]) // 1024)


@pytest.mark.skipif(INSTRUMENT == "sanitizers", reason="a sanitizer keeps what is freed")
@pytest.mark.seconds(300)
def test_worker_does_not_grow(cluster):
    """A million messages; a byte a message would be almost 1 MB."""
    growth(cluster, 1_000_000, 640 * 1024)


# ------------------------------------------------------------ the cost of a message

@pytest.mark.seconds(240)
def test_cost_under_an_old_transaction(cluster):
    """A sender that is idle in its transaction, and an old snapshot that
    keeps every dead row, make the hundred-thousandth message no dearer than
    the first: what is read of the mailbox's index and table for each."""
    cluster.configure({"fsync": False, "synchronous_commit": "off", "autovacuum": False})
    cluster.restart()
    cluster.psql("CREATE EXTENSION dgen;" + MODULE)
    total, tenth = 100_000, 10_000
    counters = """
        SELECT (SELECT idx_tup_read FROM pg_stat_all_indexes WHERE indexrelname = 'message_mailbox_idx'),
               (SELECT idx_tup_fetch + seq_tup_read FROM pg_stat_all_tables WHERE relid = 'dgen.message'::regclass),
               (SELECT idx_blks_read + idx_blks_hit FROM pg_statio_all_indexes
                WHERE indexrelname = 'message_mailbox_idx')"""

    def settled(conn):
        """The counters, when those who work have told theirs."""
        seen = []

        def same():
            seen.append(conn.execute(counters).fetchone())
            return len(seen) > 25 and seen[-1] == seen[-25]
        wait_for(same, 30)
        return seen[-1]

    costs = []
    with cluster.connect() as old, cluster.connect() as idle, cluster.connect() as conn:
        old.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        old.execute("SELECT 1 FROM dgen.server")
        idle.execute("BEGIN")
        idle.execute("SELECT dgen.cast('m/idle', '{}')")
        for n in range(total // tenth):
            first_or_last = n in (0, total // tenth - 1)
            before = settled(conn) if first_or_last else None
            # as they come: a few at a time, so that mailboxes are read often
            for _ in range(20):
                send(conn, tenth // 20)
            wait_for(lambda: handled(conn) == (n + 1) * tenth, 60, message="not handled")
            if first_or_last:
                after = settled(conn)
                costs.append([(a - b) / tenth for a, b in zip(after, before)])
        idle.execute("COMMIT")
        old.execute("COMMIT")
        wait_for(lambda: handled(conn) == total + 1)
        wait_idle(conn)
        assert_nothing_left(conn)
    print("a message's index entries, rows, index blocks: first tenth %s, last tenth %s" % tuple(costs))
    for first, last in zip(*costs):
        assert last <= 3 * first + 5, costs


# ------------------------------------------------------------ shared memory

def test_call_that_finds_no_place(cluster):
    """All places of ready servers are taken while the only worker is busy: a
    call is told so, messages are found when there is room."""
    cluster.configure({"dgen.max_ready": 256, "dgen.max_workers": 1})
    cluster.restart()
    cluster.psql("CREATE EXTENSION dgen;" + MODULE)
    with cluster.connect() as conn, cluster.connect() as holder:
        holder.execute("SELECT pg_advisory_lock(1)")
        busy = value(conn, """SELECT dgen.send_request('m/busy', '{"wait": 1}')""")
        wait_for(lambda: value(conn, "SELECT count(*) FROM pg_locks WHERE NOT granted AND locktype = 'advisory'") == 1)
        conn.execute("SELECT count(dgen.cast('m/full' || n, '{}')) FROM generate_series(1, 300) n")
        with pytest.raises(psycopg.Error) as raised:
            conn.execute("SELECT dgen.call('m/1', '{}')")
        assert raised.value.sqlstate == "53400" and "max_ready" in str(raised.value), raised.value
        holder.execute("SELECT pg_advisory_unlock(1)")
        assert value(conn, "SELECT dgen.receive_response(%s, '30 s')", busy) == 1
        wait_idle(conn)
        assert value(conn, "SELECT count(*) FROM dgen.server WHERE server LIKE 'm/full%' AND state = '1'") == 300
        assert value(conn, "SELECT dgen.call('m/1', '{}')") == 1
        assert_nothing_left(conn)


def test_caller_does_not_grow(cluster):
    """Calls of a multi_call that fail leave nothing in the session."""
    cluster.psql("CREATE EXTENSION dgen; " + MODULE)
    with cluster.connect() as conn:
        def used():
            failed = value(conn, """SELECT count(error) FROM dgen.multi_call(ARRAY(
                                        SELECT 'm/' || n FROM generate_series(1, 400) n), '{"sleep": "much"}')""")
            assert failed == 400
            return value(conn, "SELECT used_bytes FROM pg_backend_memory_contexts "
                               "WHERE name = 'TopMemoryContext'")
        before = [used() for _ in range(2)][-1]
        after = [used() for _ in range(3)][-1]
    assert after - before < 100000


def segments(cluster):
    """Bytes of the dynamic segments, by which dgen's area has grown beyond its part."""
    place = os.path.join(cluster.data, "pg_dynshmem")
    return sum(os.path.getsize(os.path.join(place, name)) for name in os.listdir(place))


@pytest.mark.seconds(240)
def test_dead_workers_leave_nothing(cluster):
    """Two hundred workers die with calls in hand; then there is room for
    thousands of calls in the smallest shared memory."""
    dead_workers(cluster, 200)


@pytest.mark.long
def test_dead_workers_leave_nothing_long(cluster):
    dead_workers(cluster, rounds_of(1000))


def dead_workers(cluster, wanted):
    cluster.configure({"dgen.max_ready": 256, "dgen.shared_memory": "1MB", "fsync": False,
                       "synchronous_commit": "off", "dynamic_shared_memory_type": "mmap"})
    cluster.restart()
    cluster.psql("CREATE EXTENSION dgen;" + MODULE)
    deaths = 0
    sizes = []
    lock = threading.Lock()

    def killer(number):
        """One call that dies with its worker three times, with a large request."""
        nonlocal deaths
        with cluster.connect() as conn:
            for n in range(-(-wanted // 18)):
                try:
                    conn.execute("SELECT dgen.call('m/' || %s, jsonb_build_object('die', repeat('x', 20000)), "
                                 "timeout => '60 s')", ("die%d-%d" % (number, n),))
                    raise AssertionError("it returned")
                except psycopg.Error as e:
                    assert e.sqlstate == "OT020", e
                with lock:
                    deaths += 3
                    sizes.append(segments(cluster))

    def bystander(number):
        """Calls that are in hand, or wait, while others die."""
        with cluster.connect() as conn:
            while deaths < wanted:
                n = value(conn, "SELECT count(dgen.call('m/by' || n, jsonb_build_object('large', repeat('x', 9000)), "
                                "timeout => '60 s')) FROM generate_series(1, 3) n")
                assert n == 3
    in_threads([lambda n=n: killer(n) for n in range(6)] + [lambda n=n: bystander(n) for n in range(2)],
               timeout=200 + wanted)
    assert deaths >= wanted
    third = len(sizes) // 3
    print("%d workers died; dynamic segments at most %d, %d, %d kB in the thirds of it" % (
        deaths, *[max(sizes[i * third:(i + 1) * third]) // 1024 for i in range(3)]))
    assert max(sizes[2 * third:]) <= max(sizes[:2 * third])
    with cluster.connect() as conn:
        wait_for(lambda: value(conn, LEASES) == 0, message="a lease is left")
        wait_idle(conn)
        # a thousand calls of 20 kB are twenty times the shared memory that is
        # reserved, and four times as many servers as can be ready at once
        for n in range(1000):
            assert value(conn, "SELECT length(dgen.call('m/' || %s::text, jsonb_build_object("
                               "'large', repeat('x', 20000)))->>'large')", "after%d" % n) == 20000
        # all entries in use at once, and again
        for _ in range(3):
            servers = ["m/all%d" % n for n in range(200)]
            rows = conn.execute("SELECT error FROM dgen.multi_call(%s, '{\"large\": 1}', timeout => '30 s')",
                                (servers,)).fetchall()
            assert [error for error, in rows if error] == [] and len(rows) == 200
        # more servers than entries: found again when there is room
        conn.execute("SELECT count(dgen.cast('m/many' || n, '{}')) FROM generate_series(1, 3000) n")
        wait_idle(conn, 60)
        assert value(conn, "SELECT count(*) FROM dgen.server WHERE server LIKE 'm/many%' AND state = '1'") == 3000
        assert_nothing_left(conn)


def test_readers_that_are_terminated(cluster):
    """In a mask, while they look at calls that wait: these are freed all the same."""
    cluster.configure({"dynamic_shared_memory_type": "mmap"})       # files of the cluster's own
    cluster.restart()
    segments = os.path.join(cluster.data, "pg_dynshmem")

    def taken():
        return sum(os.path.getsize(os.path.join(segments, name)) for name in os.listdir(segments))

    with cluster.connect() as conn:
        conn.execute("CREATE EXTENSION dgen")
        conn.execute(MODULE)
        conn.execute("""CREATE FUNCTION m.format_message(message jsonb) RETURNS jsonb LANGUAGE plpgsql AS
                        $$ BEGIN PERFORM pg_sleep(60); RETURN message; END $$""")
        conn.execute("SELECT dgen.suspend('m/a')")

        def call():
            with cluster.connect() as other, pytest.raises(psycopg.Error) as e:
                other.execute("SELECT dgen.call('m/a', jsonb_build_object('large', repeat('x', 20000000)), '1 min')")
            assert e.value.sqlstate == "57014"

        def look():
            with cluster.connect() as other, pytest.raises(psycopg.Error):
                other.execute("SELECT message FROM dgen.messages")

        def end(function, query):
            wait_for(lambda: value(conn, "SELECT count(%s(pid)) FROM pg_stat_activity WHERE query LIKE %%s%s"
                                   % (function, " AND wait_event = 'PgSleep'" if "terminate" in function else ""), query) > 0, 20)

        def round():
            caller = threading.Thread(target=call)
            caller.start()
            wait_for(lambda: value(conn, "SELECT ready FROM dgen.stat_queue WHERE module = 'm'") == 1, 20)
            reader = threading.Thread(target=look)
            reader.start()
            end("pg_terminate_backend", "SELECT message FROM%")
            reader.join()
            end("pg_cancel_backend", "SELECT dgen.call(%")
            caller.join()
            wait_for(lambda: value(conn, "SELECT count(*) FROM dgen.stat_queue") == 0, 20)

        round()
        before = taken()
        for _ in range(3):
            round()
        assert taken() < before + 20000000
