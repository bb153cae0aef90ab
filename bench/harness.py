"""What the benchmarks share: a cluster for each row, pgbench, figures, sums."""

import glob
import os
import platform
import re
import select
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(os.path.dirname(HERE), "test", "lib"))

from build import TOP, clean_environment  # noqa: E402
from cluster import PORT, Cluster  # noqa: E402

RUNS = int(os.environ.get("BENCH_RUNS") or 3)
SECONDS = int(os.environ.get("BENCH_SECONDS") or 5)
SCALE = float(os.environ.get("BENCH_SCALE") or 1)

# PostgreSQL's defaults but for these; nothing that weakens durability
SETTINGS = {
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    "shared_buffers": "256MB",
    "max_wal_size": "4GB",
    "max_connections": 120,
    "max_worker_processes": 16,
    "max_prepared_transactions": 0,
    "jit": "on",
}

CLIENT = "bench"            # owns the modules, and sends the load


# what each module takes for "one more"
MESSAGES = {"counter": '"increment"', "account": '{"deposit": 1}'}


class WrongSum(AssertionError):
    """What was counted is not what was done."""


def scaled(number, least=1):
    return max(least, int(number * SCALE))


def percentile(values, p):
    values = sorted(values)
    return values[min(len(values) - 1, int(len(values) * p / 100))]


class Figure:
    """One line of the table: what was measured in each run.

    ratios are ours / baseline of the same run, or baseline / ours if invert.
    goal and floor bound the ratio, or if judge is 'ours' the figure itself:
    ('min', 12) or ('max', 1.5)."""

    def __init__(self, what, unit, ours, baseline=None, baseline_is="", invert=False,
                 goal=None, floor=None, judge="ratio", ratios=None):
        self.what, self.unit = what, unit
        self.ours, self.baseline = list(ours), list(baseline or [])
        self.baseline_is = baseline_is
        self.goal, self.floor, self.judge = goal, floor, judge
        if ratios is None:
            pairs = zip(self.ours, self.baseline)
            ratios = [(b / a if invert else a / b) if a and b else float("nan") for a, b in pairs]
        self.ratios = list(ratios)

    def judged(self):
        values = self.ratios if self.judge == "ratio" else self.ours
        return statistics.median(values)

    def reaches(self, bound):
        kind, limit = bound
        return self.judged() >= limit if kind == "min" else self.judged() <= limit

    def verdict(self):
        if self.goal is None:
            return ""
        if self.reaches(self.goal):
            return "yes"
        if self.floor is not None and not self.reaches(self.floor):
            return "below the floor"
        return "no"


class Load:
    """What pgbench said."""

    def __init__(self, output, latencies):
        self.output = output
        self.count = int(self._find(r"number of transactions actually processed: (\d+)"))
        failed = re.search(r"number of failed transactions: (\d+)", output)
        self.failed = int(failed.group(1)) if failed else 0
        self.tps = float(self._find(r"^tps = ([\d.]+)"))
        self.latency = float(self._find(r"latency average = ([\d.]+)"))     # ms
        self.by_script = [int(n) for n in re.findall(r"^ - (\d+) transactions \(", output, re.M)]
        self.latencies = latencies                                          # ms, if asked for

    def _find(self, pattern):
        found = re.search(pattern, self.output, re.M)
        if not found:
            raise RuntimeError("pgbench did not say %r:\n%s" % (pattern, self.output))
        return found.group(1)


class RunningLoad:
    def __init__(self, command, env, directory, timeout):
        self.command, self.directory, self.timeout = command, directory, timeout
        self.out = open(os.path.join(directory, "out"), "w+")
        self.process = subprocess.Popen(command, cwd=directory, env=env, text=True,
                                        stdout=self.out, stderr=subprocess.STDOUT)

    def finish(self):
        try:
            try:
                status = self.process.wait(self.timeout)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
                status = "not done after %d s" % self.timeout
            self.out.seek(0)
            text = self.out.read()
            self.out.close()
            if status != 0:
                raise RuntimeError("pgbench failed (%s):\n%s" % (status, text[-3000:]))
            latencies = []
            for path in glob.glob(os.path.join(self.directory, "log.*")):
                with open(path) as f:
                    latencies += [int(line.split()[2]) / 1000 for line in f]
            return Load(text, latencies)
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()
            shutil.rmtree(self.directory, ignore_errors=True)


class Bench:
    """One row: a cluster of its own with bench/schema.sql in it."""

    def __init__(self, build, name, conf=None):
        self.name = name
        self.figures = []
        self.expected = {}          # module -> sum of its states
        self.by_hand = 0            # sum of by_hand's states
        self.cluster = Cluster("bench-" + name, conf=dict(SETTINGS, **(conf or {})), build=build)

    def __enter__(self):
        self.cluster.__enter__()
        try:
            self.cluster.psql("CREATE ROLE %s LOGIN; CREATE EXTENSION dgen;"
                              "GRANT CREATE ON DATABASE postgres TO %s;"
                              "GRANT CREATE ON SCHEMA public TO %s;" % ((CLIENT,) * 3))
            self.cluster.psql_file(os.path.join(HERE, "schema.sql"), user=CLIENT)
            self.connect()
            for name in ("fsync", "synchronous_commit", "full_page_writes"):
                if self.value("SELECT current_setting(%s)", name) != "on":
                    raise RuntimeError("%s is not on" % name)
        except BaseException:
            self.cluster.destroy()
            raise
        return self

    def __exit__(self, kind, value, traceback):
        if kind is None:
            try:
                self.check_all()
            except BaseException:
                self.cluster.__exit__(*sys.exc_info())
                raise
        self.close()
        self.cluster.__exit__(kind, value, traceback)

    # --- connections

    def connect(self):
        """The connections that most rows use; again after a restart."""
        self.super = self.cluster.connect()
        self.client = self.cluster.connect(user=CLIENT)

    def close(self):
        for conn in (getattr(self, "super", None), getattr(self, "client", None)):
            if conn is not None:
                conn.close()

    def value(self, query, *parameters):
        """As superuser."""
        row = self.super.execute(query, parameters or None).fetchone()
        return row[0] if row else None

    def ask(self, query, *parameters):
        """As the client."""
        row = self.client.execute(query, parameters or None).fetchone()
        return row[0] if row else None

    def vacuum(self):
        """Dead rows of what was before are not part of what comes."""
        self.super.execute("VACUUM dgen.message")
        self.super.execute("VACUUM dgen.server")
        self.super.execute("VACUUM by_hand")
        self.super.execute("VACUUM plain_queue")

    # --- load

    def start_pgbench(self, *scripts, clients=1, seconds=None, transactions=None, latencies=False,
                      options=(), env=None):
        directory = tempfile.mkdtemp(prefix="dgen-pgbench-")
        command = [self.cluster.build.program("pgbench"), "-n", "-M", "prepared",
                   "-h", self.cluster.socket_dir, "-p", str(PORT), "-U", CLIENT,
                   # its counts by script are exact with one thread only
                   "-c", str(clients),
                   "-j", str(1 if len(scripts) > 1 else min(clients, os.cpu_count() or 1))]
        if transactions:
            command += ["-t", str(max(1, transactions // clients))]
        else:
            seconds = seconds or SECONDS
            command += ["-T", str(seconds)]
        if latencies:
            command += ["-l", "--log-prefix", os.path.join(directory, "log")]
        for i, script in enumerate(scripts):
            path = os.path.join(directory, "script%d" % i)
            with open(path, "w") as f:
                f.write(script)
            command += ["-f", path]
        command += [*options, "postgres"]
        return RunningLoad(command, dict(clean_environment(), **(env or {})), directory,
                           (seconds or 600) + 120)

    def pgbench(self, *scripts, **how):
        return self.start_pgbench(*scripts, **how).finish()

    def fill(self, servers, number, module="counter"):
        """Casts to <module>/1 .. <module>/<servers>, in turns."""
        for start in range(0, number, 10000):
            self.ask("""
                SELECT count(dgen.cast_many(a)) FROM (
                    SELECT jsonb_agg(jsonb_build_object('server', %s || '/' || (1 + i %% %s::int),
                                                        'message', %s::jsonb)) AS a
                    FROM generate_series(%s::int, %s::int) i) x""",
                     module, servers, MESSAGES[module], start, min(start + 10000, number) - 1)
        self.expect(module, number)

    def wait_idle(self, timeout=300):
        """Until no message waits.  Asks seldom, as asking takes a processor."""
        end = time.monotonic() + timeout
        while not self.value("SELECT dgen.wait_idle(everything => true, timeout => '0 s')"):
            if time.monotonic() > end:
                raise WrongSum("%d messages still wait after %d s"
                               % (self.value("SELECT count(*) FROM dgen.message"), timeout))
            time.sleep(0.01)

    def wait_notify(self, conn, payload, timeout=300):
        """Until this connection, which listens, is told; by polling nothing."""
        pgconn, end = conn.pgconn, time.monotonic() + timeout
        while True:
            pgconn.consume_input()
            notify = pgconn.notifies()
            while notify:
                if notify.extra.decode() == payload:
                    return
                notify = pgconn.notifies()
            if not select.select([pgconn.socket], [], [], max(0, end - time.monotonic()))[0]:
                raise WrongSum("no word of request %s after %d s" % (payload, timeout))

    # --- figures

    def figure(self, *args, **kw):
        self.figures.append(Figure(*args, **kw))

    def versus(self, what, unit, ours, baseline, **kw):
        """ours() and baseline() by turns, each run beginning with the other."""
        a, b = [], []
        for i in range(RUNS):
            for function, results in ((ours, a), (baseline, b))[::-1 if i % 2 else 1]:
                results.append(function())
        self.figure(what, unit, a, b, **kw)

    # --- sums

    def expect(self, module, number):
        self.expected[module] = self.expected.get(module, 0) + number

    def check(self, what, got, expected):
        if got != expected:
            raise WrongSum("%s: %s, expected %s" % (what, got, expected))

    def check_sums(self):
        for module, expected in self.expected.items():
            got = self.value("SELECT coalesce(sum(coalesce(state ->> 'balance', state::text)"
                             "::bigint), 0)::bigint FROM dgen.server WHERE server LIKE %s",
                             module + "/%")
            self.check("sum of states of module %s" % module, got, expected)
        self.check("sum of states by hand",
                   self.value("SELECT sum(state::bigint)::bigint FROM by_hand"), self.by_hand)

    def check_all(self):
        """At the end of a row."""
        self.check_sums()
        for table in ("message", "delayed", "attempt", "letter"):
            self.check("rows of dgen." + table,
                       self.value("SELECT count(*) FROM dgen.%s" % table), 0)
        errors = [line for line in self.cluster.log_text().splitlines()
                  if re.search(r"(ERROR|PANIC|FATAL): ", line)
                  and not re.search("administrator command|is starting up|is shutting down", line)]
        self.check("errors in the server's log", errors[:10], [])


# --- the machine

def read(path, default=""):
    try:
        with open(path) as f:
            return f.read()
    except OSError:
        return default


def load_average():
    return " ".join("%.2f" % x for x in os.getloadavg())


def machine(build):
    """[(what, value)]"""
    cpu = re.search(r"model name\s*: (.*)", read("/proc/cpuinfo"))
    memory = re.search(r"MemTotal:\s*(\d+)", read("/proc/meminfo"))
    try:
        commit = subprocess.run(["git", "-C", TOP, "describe", "--always", "--dirty"], text=True,
                                stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout.strip()
    except OSError:
        commit = ""
    return [
        ("date", time.strftime("%Y-%m-%d %H:%M:%S %Z")),
        ("dgen", commit or "unknown"),
        ("PostgreSQL", build.ask("version")),
        ("CPU", cpu.group(1) if cpu else platform.processor() or platform.machine()),
        ("cores", str(len(os.sched_getaffinity(0)))),
        ("memory", "%.1f GB" % (int(memory.group(1)) / 1048576) if memory else "unknown"),
        ("kernel", platform.release()),
        ("settings", ", ".join("%s=%s" % item for item in SETTINGS.items())),
        ("runs", "%d of %d s, scale %g" % (RUNS, SECONDS, SCALE)),
        ("load before", load_average()),
    ]
