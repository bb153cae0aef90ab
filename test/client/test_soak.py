"""For minutes, mixed load with an old snapshot held and autovacuum on: neither
processes nor shared memory nor tables grow from the middle of the run to its end.
DGEN_MINUTES says for how long."""

import os
import threading
import time

import pytest

from common import (Client, assert_nothing_left, connect_again, in_threads, seed_of, value, wait_idle)
from test_crash_all import MODULE, TOLD, Load, work
from test_memory import private_memory, segments

SIZES = """
SELECT sum(pg_relation_size(c.oid)) FILTER (WHERE c.relkind IN ('r', 't')),
       sum(pg_relation_size(c.oid)) FILTER (WHERE c.relkind = 'i')
FROM pg_class c LEFT JOIN pg_class t ON t.reltoastrelid = c.oid
    LEFT JOIN pg_index i ON i.indexrelid = c.oid LEFT JOIN pg_class ti ON ti.oid = i.indrelid
WHERE 'dgen'::regnamespace IN (c.relnamespace, t.relnamespace, ti.relnamespace)"""
CLIENTS = 4
PERIOD = 5                  # seconds between samples


class SoakLoad(Load):
    """The load under kills, at a pace that the machine bears, without its notes."""

    def run(self, stop):
        while not stop.is_set():
            getattr(self, self.chance.choice(("call", "call", "cast", "cast", "request", "invoke", "slow",
                                              "child", "job")))()
            self.acknowledged.clear()
            self.expected.clear()
            self.requests.clear()
            time.sleep(0.01)
        self.client.close()


def hold_old_snapshots(cluster, stop):
    """A snapshot that is a minute old at most, again and again."""
    while not stop.is_set():
        with cluster.connect() as conn:
            conn.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
            conn.execute("SELECT 1 FROM dgen.server")
            stop.wait(60)
            conn.execute("COMMIT")


def clean(cluster, stop):
    """What the load itself leaves."""
    client = Client(cluster, lost=TOLD)
    while not stop.is_set():
        client.attempt("DELETE FROM effect WHERE ctid IN (SELECT ctid FROM effect LIMIT 100000)")
        client.attempt("SELECT count(dgen.discard(id)) FROM dgen.dead_letters")
        stop.wait(2)
    client.close()


def sample(cluster, conn):
    tables, indexes = conn.execute(SIZES).fetchone()
    workers = [pid for pid, in conn.execute("SELECT pid FROM dgen.workers")]
    memory = []
    for pid in workers + list(cluster.processes("dgen keeper|dgen launcher")):
        try:
            memory.append(private_memory(pid))
        except OSError:
            pass                # it has left
    return {"tables": int(tables), "indexes": int(indexes), "largest process": max(memory),
            "segments": segments(cluster)}


@pytest.mark.long
def test_soak(cluster, request):
    seed = seed_of(request)
    minutes = float(os.environ.get("DGEN_MINUTES") or 10)
    cluster.configure({"dynamic_shared_memory_type": "mmap", "dgen.shared_memory": "1MB", "fsync": False,
                       "autovacuum_naptime": "5 s", "dgen.worker_idle_timeout": "1 h"})
    cluster.restart()
    # a reply is kept no longer than a fraction of the run
    cluster.psql(MODULE.replace("reply_ttl => '1 h'", "reply_ttl => '5 s'"))
    loads = [SoakLoad(cluster, n, seed) for n in range(CLIENTS)]
    stop = threading.Event()
    samples = []

    def measure():
        try:
            end = time.monotonic() + 60 * minutes
            with cluster.connect() as conn:
                while time.monotonic() < end:
                    time.sleep(PERIOD)
                    samples.append(sample(cluster, conn))
        finally:
            stop.set()
    in_threads([lambda load=load: load.run(stop) for load in loads]
               + [lambda: work(cluster, stop), lambda: work(cluster, stop), lambda: hold_old_snapshots(cluster, stop),
                  lambda: clean(cluster, stop), measure], timeout=60 * minutes + 300)
    sent = sum(load.sent for load in loads)
    third = len(samples) // 3
    print("%d messages and calls in %.0f minutes; the most in the middle and in the last third, kB:" % (sent, minutes))
    grown = []
    for what in samples[0]:
        middle = max(s[what] for s in samples[third:2 * third])
        last = max(s[what] for s in samples[2 * third:])
        print("  %s: %d, %d" % (what, middle // 1024, last // 1024))
        # a page of each table more or less, and a block of a process, is no growth
        if last > middle * 1.15 + 512 * 1024:
            grown.append(what)
    assert not grown, "they grow: %s" % grown
    with connect_again(cluster) as conn:
        conn.execute("SET client_min_messages = error")
        stop_working = threading.Event()
        worker = threading.Thread(target=work, args=(cluster, stop_working), daemon=True)
        worker.start()
        try:
            wait_idle(conn, timeout=120)
        finally:
            stop_working.set()
            worker.join(30)
        assert_nothing_left(conn, letters=value(conn, "SELECT count(*) FROM dgen.dead_letters"))
