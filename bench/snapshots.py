"""What others do in the database: old snapshots, serializable transactions."""

import contextlib
import time

from calls import BY_HAND, INCREMENT, calls_by_pgbench, updates_by_pgbench
from harness import CLIENT, RUNS, scaled
from mailbox import drain_of_one


@contextlib.contextmanager
def old_snapshot(b):
    """Another session that keeps a snapshot."""
    conn = b.cluster.connect(autocommit=False)
    conn.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
    conn.execute("SELECT count(*) FROM pg_class")
    try:
        yield
    finally:
        conn.rollback()
        conn.close()


def drain_old_snapshot(b):
    """drain rate under an old snapshot, after 50,000 messages"""
    before, number = scaled(50_000), scaled(20_000)
    dequeue = ("DELETE FROM plain_queue WHERE id = (SELECT id FROM plain_queue ORDER BY id "
               "FOR UPDATE SKIP LOCKED LIMIT 1) RETURNING message;\n")

    def drain():
        drain_of_one(b, before)
        return number / drain_of_one(b, number)

    def drain_plain():
        """50,000 rows of the queue handled at once, which costs the same dead
        rows in less time; then by 8 clients."""
        b.super.execute("TRUNCATE plain_queue")
        b.super.execute("INSERT INTO plain_queue (message) SELECT '\"increment\"' "
                        "FROM generate_series(1, %s::int)", (before + 200_000,))
        b.super.execute("DELETE FROM plain_queue WHERE id IN "
                        "(SELECT id FROM plain_queue ORDER BY id LIMIT %s)", (before,))
        load = b.pgbench(dequeue, clients=8)
        b.check("rows of the plain queue", b.value("SELECT count(*) FROM plain_queue"),
                max(0, 200_000 - load.count))
        return load.tps

    def under_old_snapshot(function):
        with old_snapshot(b):
            return function()

    for what, function, bounds in (
            ("drain of one server, under an old snapshot", drain, {"goal": ("max", 1.5)}),
            ("plain queue table, under an old snapshot", drain_plain, {})):
        withs, withouts = [], []
        for i in range(RUNS):
            b.vacuum()
            withouts.append(function())
            b.vacuum()
            withs.append(under_old_snapshot(function))
        b.figure(what, "1/s", withs, withouts, baseline_is="the same without; ratio: times slower",
                 invert=True, **bounds)


def calls_old_snapshot(b):
    """one server's calls, unbatched, under an old snapshot, after 100,000 of them"""
    calls_by_pgbench(b, INCREMENT, transactions=200)
    updates_by_pgbench(b, BY_HAND, transactions=200)
    for what, function, script, ageing, bounds in (
            ("calls by 1 client, under an old snapshot", calls_by_pgbench, INCREMENT,
             {"transactions": scaled(100_000)}, {"goal": ("max", 1.5)}),
            # so many would take too long here
            ("UPDATE by primary key, under an old snapshot", updates_by_pgbench, BY_HAND,
             {"seconds": scaled(12)}, {})):
        withs, withouts = [], []
        for i in range(RUNS):
            b.vacuum()
            withouts.append(function(b, script).tps)
            with old_snapshot(b):
                function(b, script, **ageing)
                withs.append(function(b, script).tps)
        b.figure(what, "1/s", withs, withouts, baseline_is="the same without; ratio: times slower",
                 invert=True, **bounds)


def serialization_failures(b):
    """SERIALIZABLE workers, half of their activations leave the state unchanged"""
    script = ("\\set id random(1, 200)\n"
              "SELECT dgen.call('half/' || :id::text, '\"%s\"');\n")
    dequeue = ("DELETE FROM plain_queue WHERE id = (SELECT id FROM plain_queue ORDER BY id "
               "FOR UPDATE SKIP LOCKED LIMIT 1) RETURNING message;\n")

    def rollbacks():
        time.sleep(1.5)             # until all have told their numbers
        return b.value("SELECT xact_rollback FROM pg_stat_database "
                       "WHERE datname = current_database()")

    def calls():
        """Serialization failures, and transactions undone for any reason."""
        retries = "SELECT coalesce(sum(serialization_retries), 0)::int FROM dgen.workers"
        retries_before, rollbacks_before = b.value(retries), rollbacks()
        load = b.pgbench(script % "keep", script % "change", clients=64)
        results = b.value(retries) - retries_before, rollbacks() - rollbacks_before
        b.expect("half", load.by_script[1])
        b.check_sums()
        return results

    failures, undone, undone_alone, workers, plain = [], [], [], [], []
    for _ in range(RUNS):
        b.check("isolation of the module",
                b.value("SELECT isolation FROM dgen.modules WHERE module = 'half'"), "serializable")
        # a batch that outlasts its budget is undone and split, which is no
        # failure; alone there is no such reason
        for batch_size, results in ((256, undone), (1, undone_alone)):
            b.ask("SELECT dgen.alter_module('half', batch_size => %s)", batch_size)
            failed, rolled_back = calls()
            failures.append(failed)
            results.append(rolled_back)
        workers.append(b.value("SELECT count(*) FROM dgen.workers WHERE activations > 0"))

        b.super.execute("TRUNCATE plain_queue")
        b.super.execute("INSERT INTO plain_queue (message) SELECT '\"increment\"' "
                        "FROM generate_series(1, 100000)")
        # its failures are many, and would drown the log
        b.super.execute("ALTER ROLE %s SET log_min_messages = panic" % CLIENT)
        load = b.pgbench(dequeue, clients=8, options=["--max-tries=1"],
                         env={"PGOPTIONS": "-c default_transaction_isolation=serializable"})
        b.super.execute("ALTER ROLE %s RESET log_min_messages" % CLIENT)
        plain.append(100 * load.failed / max(1, load.count + load.failed))
    # one in any run is one too many, so no medians
    b.figure("serialization failures, 64 clients, 200 servers", "", [sum(failures)],
             goal=("max", 0), judge="ours")
    b.figure("transactions undone, one activation each", "", [sum(undone_alone)],
             goal=("max", 0), judge="ours")
    b.figure("transactions undone, batches, for their length too", "", [sum(undone)])
    b.figure("workers that took part", "", workers, goal=("min", 2), judge="ours")
    b.figure("transactions of a SERIALIZABLE plain queue, 8 clients, that failed", "%", plain)


ROWS = [drain_old_snapshot, calls_old_snapshot, serialization_failures]
