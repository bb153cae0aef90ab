"""What several client tests need."""

import os
import random
import shutil
import signal
import subprocess
import threading
import time

import psycopg
import pytest

from cluster import wait_for

# dgen's errors that say nothing about the call but that something was lost
# on its way, and what PostgreSQL says while it goes down and comes up
LOST = ("OT001", "OT002", "OT015", "OT017", "OT020", "57P01", "57P02", "57P03")


def seed_of(request):
    """The seed of a random test, told with the command that replays it."""
    seed = int(os.environ.get("DGEN_SEED") or random.randrange(1 << 30))
    print("to replay: DGEN_SEED=%d test/run client %s -k %s"
          % (seed, request.node.path.stem[len("test_"):], request.node.name))
    return seed


def rounds_of(default):
    return int(os.environ.get("DGEN_ROUNDS") or default)


def compile_c(build, name):
    """Builds test/client/c/<name>.c, which may be of the server, as a shared library; its path."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if not compiler:
        pytest.skip("no C compiler")
    path = os.path.join(build.rundir, name + ".so")
    source = os.path.join(os.path.dirname(os.path.abspath(__file__)), "c", name + ".c")
    subprocess.run([compiler, "-shared", "-fPIC", "-O2", "-Wall", "-I" + build.ask("includedir-server"),
                    "-o", path, source], check=True)
    os.chmod(path, 0o755)
    return path


def value(conn, query, *parameters):
    cursor = conn.execute(query, parameters or None)
    row = cursor.fetchone() if cursor.description else None
    return row[0] if row else None


def in_threads(functions, timeout=100):
    """Runs them all at once; the first failure is raised here."""
    failures = []

    def guard(function):
        try:
            function()
        except BaseException as e:
            failures.append(e)
    threads = [threading.Thread(target=guard, args=(f,), daemon=True) for f in functions]
    for t in threads:
        t.start()
    end = time.monotonic() + timeout
    for t in threads:
        t.join(max(0, end - time.monotonic()))
    if failures:
        raise failures[0]
    assert not any(t.is_alive() for t in threads), "a client is stuck"


def connect_again(cluster, timeout=60, **kw):
    """A connection as soon as there can be one."""
    def attempt():
        try:
            return cluster.connect(**kw)
        except psycopg.OperationalError:
            return None
    return wait_for(attempt, timeout, message="%s accepts no connection" % cluster.name)


def wait_idle(conn, timeout=30):
    end = time.monotonic() + timeout
    while not value(conn, "SELECT dgen.wait_idle(everything => true, timeout => '5 s')"):
        if time.monotonic() > end:
            left = conn.execute("""
                SELECT m.server, m.kind, m.id, a.attempts, a.holds, a.next_at - clock_timestamp(),
                       a.error->>'message'
                FROM dgen.message m LEFT JOIN dgen.attempt a USING (id)
                ORDER BY a.id, m.id LIMIT 10""").fetchall()
            raise AssertionError("not idle after %s s: %s" % (timeout, "\n".join(map(str, left))))


# dgen's leases are advisory locks with a field that pg_advisory_* never uses
LEASES = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 214"


def assert_nothing_left(conn, letters=0):
    """No lease, no message, no record of a failure, and so many dead letters."""
    wait_for(lambda: value(conn, LEASES) == 0, 10, message="a lease is left")
    left = conn.execute("""
        SELECT (SELECT count(*) FROM dgen.message), (SELECT count(*) FROM dgen.delayed),
               (SELECT count(*) FROM dgen.attempt), (SELECT count(*) FROM dgen.letter),
               (SELECT count(*) FROM dgen.server WHERE failing)""").fetchone()
    assert left == (0, 0, 0, letters, 0), "left: messages, delayed, attempts, letters, failing"
    wait_for(lambda: value(conn, "SELECT count(*) FROM pg_stat_activity "
                                 "WHERE backend_type = 'dgen worker' AND state = 'active'") == 0,
             10, message="a worker is still busy")


class Killer:
    """Kills processes of a cluster, one or all, as chance will have it.  With
    everything also in the ways of MORE: those who do long work, sessions and
    activations by SQL, the postmaster alone, the server by an immediate stop."""

    MORE = ("long -9", "long -15", "long -15", "terminate client", "cancel client", "cancel worker",
            "postmaster alone", "immediate stop")
    BY_SQL = {
        "terminate client": "SELECT pg_terminate_backend(pid) FROM (SELECT pid FROM pg_stat_activity WHERE "
                            "backend_type = 'client backend' AND pid <> pg_backend_pid() ORDER BY random() LIMIT 1) a",
        "cancel client": "SELECT pg_cancel_backend(pid) FROM (SELECT pid FROM pg_stat_activity WHERE "
                         "backend_type = 'client backend' AND pid <> pg_backend_pid() ORDER BY random() LIMIT 1) a",
        "cancel worker": "SELECT pg_cancel_backend(pid) FROM (SELECT pid FROM pg_stat_activity WHERE "
                         "backend_type = 'dgen worker' ORDER BY state <> 'active', random() LIMIT 1) a",
    }
    LONG_WORK = ("SELECT pid FROM pg_stat_activity WHERE backend_type = 'dgen worker' "
                 "AND query ~ '^dgen: .* (effect|handle_locked)$'")
    WHAT = ("worker -9", "worker -15", "worker -15", "keeper -9", "keeper -15",
            "launcher -9", "launcher -15", "client -9", "client -15", "postmaster")
    TITLES = {"worker": "dgen worker", "keeper": "dgen keeper", "launcher": "dgen launcher",
              "client": r"\[local\]"}

    def __init__(self, cluster, seed, everything=False):
        self.cluster = cluster
        self.what = self.WHAT + (self.MORE if everything else ())
        self.chance = random.Random(seed)
        # each at least once if there are rounds enough, in an order by chance
        self.bag = []
        self.told = []

    def once(self, pause=None):
        if not self.bag:
            self.bag = list(self.what)
            self.chance.shuffle(self.bag)
        what = self.bag.pop()
        by_chance = self.chance.uniform(0.2, 0.9)
        time.sleep(by_chance if pause is None else pause)   # the clients' turn
        if what == "postmaster":
            self.cluster.kill9()
            self.cluster.start()
        elif what == "postmaster alone":
            self.cluster.kill_postmaster()
            self.cluster.start()
        elif what == "immediate stop":
            self.cluster.stop("immediate")
            self.cluster.start()
        elif what in self.BY_SQL:
            self.ask(self.BY_SQL[what])
        else:
            kind, number = what.split(" -")
            hit = False
            end = time.monotonic() + 60
            while not hit and time.monotonic() < end:
                pids = self.pids_of(kind)
                try:
                    if pids:
                        self.cluster.kill_backend(self.chance.choice(pids), signal.Signals(int(number)))
                        hit = True
                except ProcessLookupError:
                    pass            # it went by itself
                if not hit:
                    time.sleep(0.05)
            assert hit, "there was no %s" % kind
        self.told.append(what)
        self.cluster.wait_ready()

    def ask(self, query):
        """A column by SQL, as soon as the server has come back from the last kill."""
        def attempt():
            try:
                with self.cluster.connect() as conn:
                    return [[row[0] for row in conn.execute(query)]]
            except psycopg.OperationalError:
                return None
        return wait_for(attempt, 60, message="%s does not answer" % self.cluster.name)[0]

    def pids_of(self, kind):
        if kind == "long":
            return self.ask(self.LONG_WORK)
        return sorted(self.cluster.processes(self.TITLES[kind]))


class Client:
    """A connection that is made anew whenever it is lost."""

    def __init__(self, cluster, lost=LOST):
        """lost: errors after which nobody knows what became of the statement."""
        self.cluster = cluster
        self.lost = lost
        self.conn = None
        self.session = 0            # how many there were

    def close(self):
        if self.conn is not None:
            try:
                self.conn.close()
            except psycopg.Error:
                pass
        self.conn = None

    def attempt(self, query, *parameters):
        """(True, value), or (False, why) where something was lost: then
        nobody knows, unless dgen says that it did not happen."""
        try:
            if self.conn is None:
                self.conn = self.cluster.connect()
                self.session += 1
                self.conn.execute("SET client_min_messages = error")
            return True, value(self.conn, query, *parameters)
        except psycopg.Error as e:
            lost = isinstance(e, psycopg.OperationalError) and e.sqlstate is None
            if not lost and e.sqlstate not in self.lost:
                raise
            if e.sqlstate is None or not e.sqlstate.startswith("OT"):
                self.close()
                time.sleep(0.02)
            return False, e.sqlstate or "lost"
