"""monitoring/: postgres_exporter reads the queries, and has each metric that
doc/monitoring.md tells of; the alerts' rules are well formed, and what each looks
at turns when its fault is made."""

import os
import re
import shutil
import subprocess
import urllib.request

import pytest

from build import TOP
from cluster import Cluster, free_port, wait_for
from common import value, wait_idle

yaml = pytest.importorskip("yaml")

QUERIES = os.path.join(TOP, "monitoring", "queries.yml")
ALERTS = os.path.join(TOP, "monitoring", "alerts.yml")
PAGE = os.path.join(TOP, "doc", "monitoring.md")

MODULES = """
CREATE ROLE monitor LOGIN;
GRANT pg_monitor TO monitor;
CREATE SCHEMA m;
CREATE FUNCTION m.handle_cast(message jsonb, INOUT state jsonb) LANGUAGE plpgsql AS $$
BEGIN
    IF message ? 'error' THEN
        RAISE EXCEPTION 'no';
    END IF;
END $$;
CREATE FUNCTION m.handle_info(message jsonb, INOUT state jsonb) LANGUAGE sql AS 'SELECT state';
SELECT dgen.create_module('m', max_attempts => 1, breaker => 20);
"""


class Exporter:
    """Debian's exporter before a cluster, as role monitor."""

    def __init__(self, cluster):
        program = shutil.which("prometheus-postgres-exporter")
        if not program:
            pytest.skip("prometheus-postgres-exporter is not installed")
        self.port = free_port()
        self.log = os.path.join(cluster.directory, "exporter.log")
        source = "host=127.0.0.1 port=%d user=monitor dbname=postgres sslmode=disable" % cluster.conninfo()["port"]
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(
                [program, "--extend.query-path=" + QUERIES, "--disable-default-metrics", "--disable-settings-metrics",
                 "--web.listen-address=127.0.0.1:%d" % self.port],
                env=dict(os.environ, DATA_SOURCE_NAME=source), stdout=log, stderr=log)

    def __enter__(self):
        wait_for(self.is_up, 60)
        return self

    def __exit__(self, *args):
        self.process.terminate()
        self.process.wait(30)

    def is_up(self):
        assert self.process.poll() is None, open(self.log).read()
        try:
            return self.scrape() is not None
        except OSError:
            return False

    def scrape(self):
        """{metric: {labels: value}}"""
        with urllib.request.urlopen("http://127.0.0.1:%d/metrics" % self.port, timeout=60) as page:
            text = page.read().decode()
        found = {}
        for name, labels, number in re.findall(r"^(dgen_\w+)\{(.*)\} (\S+)$", text, re.M):
            labels = tuple(v for k, v in sorted(re.findall(r'(\w+)="([^"]*)"', labels)) if k not in ("datname", "server"))
            found.setdefault(name, {})[labels] = float(number)
        return found

    def highest(self, metric):
        return max(self.scrape().get(metric, {(): 0}).values())


@pytest.fixture
def db():
    with Cluster(tcp=True) as c:
        c.psql("CREATE EXTENSION dgen")
        c.psql(MODULES)
        yield c


def metrics():
    """As queries.yml has them: {name: usage}."""
    with open(QUERIES) as f:
        parts = yaml.safe_load(f)
    return {"%s_%s" % (part, column): what["usage"] for part, query in parts.items()
            for metric in query["metrics"] for column, what in metric.items() if what["usage"] != "LABEL"}


def rules():
    with open(ALERTS) as f:
        return {rule["alert"]: rule for group in yaml.safe_load(f)["groups"] for rule in group["rules"]}


def test_page():
    """The page tells of each metric and alert, and of no other."""
    with open(PAGE) as f:
        text = f.read()
    shown = dict(re.findall(r"^\| `(dgen_\w+)` \| (\w+) \|", text, re.M))
    assert shown == {name: usage.lower() for name, usage in metrics().items()}
    assert {name: when.partition("`, for ")[0].rstrip("` ") for name, when in
            re.findall(r"^\| `(Dgen\w+)` \| `(.*) \|$", text, re.M)
            if name in rules()} == {name: rule["expr"] for name, rule in rules().items()}


def test_rules():
    """They are rules, by Prometheus' own tool where it is there, and ask for metrics that exist."""
    for rule in rules().values():
        assert set(re.findall(r"dgen_\w+", rule["expr"])) <= set(metrics())
        assert {"summary", "action"} == set(rule["annotations"])
    if shutil.which("promtool"):
        subprocess.run(["promtool", "check", "rules", ALERTS], check=True)


def test_metrics(db):
    """All are there, for a role that may monitor and read nothing; and the numbers are those of the views."""
    with Exporter(db) as exporter, db.connect() as conn, db.connect(user="monitor") as monitor:
        conn.execute("SELECT dgen.cast('m/a', '{}') FROM generate_series(1, 5)")
        wait_idle(conn)
        conn.execute("SELECT dgen.suspend('m/b')")
        conn.execute("SELECT dgen.cast('m/b', '{}') FROM generate_series(1, 3)")
        conn.execute("SELECT dgen.send_after('m/b', '{}', '1 h')")
        found = exporter.scrape()
        assert set(found) >= set(metrics()), set(metrics()) - set(found)
        assert found["dgen_module_casts"] == {("m",): 5}
        assert found["dgen_queue_ready"] == {("normal", "m"): 3}
        assert found["dgen_timers_delayed"] == {("m",): 1}
        assert sum(found["dgen_worker_workers"].values()) == found["dgen_database_workers"][()]
        # what the exporter's role sees is figures
        assert monitor.execute("SELECT count(*) FROM dgen.stat_server WHERE server IS NOT NULL").fetchone() == (0,)
        for view in ("servers", "messages", "dead_letters", "timers"):
            assert value(monitor, "SELECT count(*) FROM dgen.%s" % view) == 0
        with open(exporter.log) as f:
            assert "err=" not in f.read()


def turns(exporter, alert, make, mend=None, at_least=None):
    """What the alert looks at is on the good side before, on the other once the fault was made, and
    back when it is mended.  at_least: in place of the rule's number, where that would take long."""
    metric, relation, number = re.fullmatch(r"(?:increase\()?(dgen_\w+)(?:\[\w+\]\))? ([<>]) ([\d.]+)",
                                            rules()[alert]["expr"]).groups()
    number = float(number) if at_least is None else at_least

    def fires():
        return exporter.highest(metric) < number if relation == "<" else exporter.highest(metric) > number

    assert not fires(), alert
    make()
    wait_for(fires, 60, 0.2, message="%s does not fire" % alert)
    if mend:
        mend()
        wait_for(lambda: not fires(), 60, 0.2, message="%s does not end" % alert)


@pytest.mark.seconds(300)
def test_alerts(db):
    with Exporter(db) as exporter, db.connect() as conn, db.connect() as held:
        def old_message():
            conn.execute("SELECT dgen.suspend('m/s'), dgen.cast('m/s', '{}')")
            conn.execute("UPDATE dgen.message SET sent_at = sent_at - interval '10 min'")

        turns(exporter, "DgenOldestMessage", old_message, lambda: conn.execute("SELECT dgen.resume('m/s')"))

        def letters(n):
            for i in range(n):
                conn.execute("SELECT dgen.cast('m/' || %s, '{\"error\": 1}')", (i,))
            wait_for(lambda: value(conn, "SELECT count(*) FROM dgen.dead_letters") >= n)

        turns(exporter, "DgenDeadLetters", lambda: letters(2), lambda: conn.execute("SELECT dgen.purge('m')"))
        turns(exporter, "DgenModuleFailing", lambda: letters(11), lambda: conn.execute("SELECT dgen.stat_reset('m')"))

        def break_off():
            for i in range(40):
                conn.execute("SELECT dgen.cast('m/x' || %s, '{\"error\": 1}')", (i,))

        def mend_module():
            conn.execute("SELECT dgen.discard(id) FROM dgen.messages")
            conn.execute("SELECT dgen.resume(module => 'm')")

        turns(exporter, "DgenModuleBrokenOff", break_off, mend_module)

        def hold():
            held.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
            held.execute("SELECT 1")

        turns(exporter, "DgenHeldSnapshot", hold, lambda: held.execute("COMMIT"), at_least=3)

        def switch(to):
            db.configure({"dgen.enabled": to})
            db.reload()

        conn.execute("SELECT dgen.send_after('m/t', '{}', '2 s')")
        turns(exporter, "DgenNotRunning", lambda: switch("off"))
        turns(exporter, "DgenTimersLate", lambda: None, lambda: switch("on"), at_least=1)
        wait_for(lambda: exporter.highest("dgen_database_keeper") == 1, 60)


@pytest.mark.seconds(200)
def test_alert_of_no_worker(db):
    """Other background workers have all slots."""
    db.configure({"max_worker_processes": 3})
    db.restart()
    with Exporter(db) as exporter, db.connect() as conn:
        turns(exporter, "DgenNoWorkerSlot", lambda: conn.execute("SELECT dgen.cast('m/a', '{}')"))
