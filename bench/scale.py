"""Size: a million servers, a million messages, and nothing at all."""

import os
import re
import time

import psycopg

from harness import CLIENT, RUNS, percentile, read, scaled

INCREMENT = "SELECT dgen.call('counter/warm', '\"increment\"');\n"


def worker_memory(b):
    """kB of the worker's own memory, and of dgen's shared memory, after some calls."""
    load = b.pgbench(INCREMENT, transactions=1000)
    b.expect("counter", load.count)
    pids = b.cluster.processes("dgen worker")
    own = sum(int(re.search(r"RssAnon:\s*(\d+)", read("/proc/%d/status" % pid)).group(1))
              for pid in pids)
    shared = b.value("SELECT coalesce(sum(allocated_size), 0)::bigint / 1024 "
                     "FROM pg_shmem_allocations WHERE name ILIKE '%dgen%'")
    return own, shared, len(pids)


def restart(b):
    b.close()
    b.cluster.restart()
    b.connect()


def million_idle(b):
    """a million idle servers: memory, and the first call to one of them"""
    number = scaled(1_000_000, 10_000)
    restart(b)
    own_before, shared_before, workers_before = worker_memory(b)
    b.super.execute("""
        INSERT INTO dgen.server (server, status, failing, incarnation, version, updated_at,
                                 started_at, state, base_version, patch_bytes, monitored, supervised)
        SELECT 'counter/' || i, 'a', false, 1, 1, now(), now(), '0', 1, 0, false, false
        FROM generate_series(1, %s::int) i""", (number,))
    b.super.execute("VACUUM ANALYZE dgen.server")
    b.super.execute("CREATE TABLE by_hand_many AS SELECT i AS id, '0'::jsonb AS state "
                    "FROM generate_series(1, %s::int) i", (number,))
    b.super.execute("ALTER TABLE by_hand_many ADD PRIMARY KEY (id)")
    b.super.execute("GRANT SELECT ON by_hand_many TO " + CLIENT)
    b.super.execute("VACUUM ANALYZE by_hand_many")
    b.super.execute("CHECKPOINT")
    restart(b)
    own_after, shared_after, workers_after = worker_memory(b)
    b.check("workers", workers_after, workers_before)
    b.figure("memory of the worker, with %d servers" % number, "kB", [own_after], [own_before],
             baseline_is="with one")
    b.figure("growth of it, beyond 1 MB of noise", "kB", [max(0, own_after - own_before - 1024)],
             goal=("max", 0), judge="ours")
    b.figure("dgen's shared memory, with %d servers" % number, "kB", [shared_after],
             [shared_before], baseline_is="with one", goal=("max", 1.0))

    first = ("\\set id random(1, %d)\n"
             "SELECT dgen.call('counter/' || :id::text, '\"increment\"');\n" % number)
    row = ("\\set id random(1, %d)\n"
           "SELECT state FROM by_hand_many WHERE id = :id;\n" % number)

    def p50(script):
        load = b.pgbench(script, transactions=scaled(2000, 200), latencies=True)
        if script != row:
            b.expect("counter", load.count)
        return percentile(load.latencies, 50)

    firsts, warms, rows = [], [], []
    for _ in range(RUNS):
        warms.append(p50(INCREMENT))
        firsts.append(p50(first))
        rows.append(p50(row))
    b.check_sums()
    b.figure("first call to a random server, less one row read, p50", "ms",
             [f - r for f, r in zip(firsts, rows)], warms, baseline_is="call to a warm one",
             goal=("max", 2))
    b.figure("read of a random row, p50", "ms", rows)


def backlog_start(b):
    """a backlog of 1,000,000 messages at start"""
    servers, number = scaled(10_000, 100), scaled(1_000_000, 1000)
    b.ask("SELECT dgen.suspend(module => 'counter')")
    b.fill(servers, number)
    b.check("messages waiting", b.value("SELECT count(*) FROM dgen.message"), number)
    # so that they wait for nothing but the server's start
    enable(b, False)
    restart(b)
    b.super.execute("UPDATE dgen.module SET suspended_at = NULL, suspended_by = NULL, "
                    "suspended_reason = NULL")

    firsts, left = [], []
    for i in range(RUNS):
        b.super.execute("CHECKPOINT")
        left.append(b.value("SELECT count(*) FROM dgen.message"))
        b.close()
        b.cluster.stop()
        enable(b, True, reload=False)
        b.cluster.start(wait=False)
        start, conn = first_connection(b)
        conn.execute("SELECT dgen.call('counter/fresh', '\"increment\"', timeout => '5 min')")
        firsts.append(time.perf_counter() - start)
        b.expect("counter", 1)
        b.connect()
        if i < RUNS - 1:
            enable(b, False)        # the rest is for the next run
        else:
            conn.execute("SELECT dgen.call('counter/1', '\"increment\"', timeout => '5 min')")
            behind = time.perf_counter() - start
            b.expect("counter", 1)
        conn.close()
    b.wait_idle(600)
    seconds = time.perf_counter() - start
    b.check_sums()
    b.figure("first reply after start, %d messages waiting" % number, "s", firsts,
             goal=("max", 1), judge="ours")
    b.figure("messages waiting at start", "", left)
    b.figure("reply of a server that has some of them, last run", "s", [behind])
    b.figure("all of them handled, last run", "s", [seconds])


def enable(b, on, reload=True):
    b.cluster.configure({"dgen.enabled": on})
    if reload:
        b.cluster.reload()
        time.sleep(0.3)


def first_connection(b, timeout=60):
    """As soon as the server accepts one: when, and the connection."""
    end = time.perf_counter() + timeout
    while True:
        start = time.perf_counter()
        try:
            return start, b.cluster.connect(user=CLIENT)
        except psycopg.OperationalError:
            if start > end:
                raise
            time.sleep(0.002)


def cpu_seconds(pid):
    """User and system time of a process; the kernel counts it in ticks."""
    fields = read("/proc/%d/stat" % pid).rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def switches(pid):
    return int(re.search(r"^voluntary_ctxt_switches:\s*(\d+)",
                         read("/proc/%d/status" % pid), re.M).group(1))


def idle_cpu(b):
    """an idle cluster with dgen loaded"""
    seconds = scaled(20, 5)
    b.cluster.configure({"dgen.worker_idle_timeout": "1h"})     # all runs have them
    b.cluster.reload()
    load = b.pgbench(INCREMENT, clients=8, seconds=1)       # so that there are workers
    b.expect("counter", load.count)
    time.sleep(2)
    own, wakes, others = [], [], []
    for _ in range(RUNS):
        mine = b.cluster.processes("dgen (launcher|keeper|worker)")
        rest = b.cluster.processes("walwriter|autovacuum launcher|background writer|checkpointer")
        if len(mine) < 3:
            raise RuntimeError("launcher, keeper and a worker are expected: %s" % mine)
        before = [sum(map(f, pids)) for f, pids in
                  ((cpu_seconds, mine), (switches, mine), (cpu_seconds, rest))]
        time.sleep(seconds)
        after = [sum(map(f, pids)) for f, pids in
                 ((cpu_seconds, mine), (switches, mine), (cpu_seconds, rest))]
        for results, x, y in zip((own, wakes, others), before, after):
            results.append(y - x)
    # what the kernel's clock can tell from nothing: two ticks
    b.figure("CPU of launcher, keeper and workers in %d s idle" % seconds, "s", own, others,
             baseline_is="PostgreSQL's own background processes", goal=("max", 0.02), judge="ours")
    b.figure("how often they woke", "1/s", [w / seconds for w in wakes])


ROWS = [million_idle, backlog_start, idle_cpu]
