"""Runs the suites; see test/run."""

import fnmatch
import glob
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import xml.etree.ElementTree as ElementTree

from build import (INSTRUMENT, TOP, Build, BuildError, build_root, clean_environment,
                   server_user)
from cluster import PORT, Cluster

TEST = os.path.join(TOP, "test")

# seconds; each suite's own and, without the long one, of all together
LIMITS = {"regress": 480, "isolation": 480, "client": 1260, "clients": 1080, "long": 4 * 3600}
LIMIT = 23 * 60
# instrumented code is slow
if INSTRUMENT:
    LIMIT, LIMITS = 6 * LIMIT, {suite: 6 * seconds for suite, seconds in LIMITS.items()}
DEFAULT_SUITES = ("regress", "isolation", "client")
# pytest's marks of the suites that pytest runs
MARKS = {"client": "not long and not clients", "clients": "clients", "long": "long"}


class Driver:
    def __init__(self, accept):
        self.accept = accept
        self.passed = 0
        self.failed = []
        self.skipped = []
        self.build = None
        self.results = None
        self.end = time.monotonic() + LIMIT

    def say(self, text=""):
        print(text, flush=True)

    def ok(self, suite, name, seconds):
        self.passed += 1
        self.say("ok      %-10s %-40s %6.1f s" % (suite, name, seconds))

    def fail(self, suite, name, seconds=0.0, detail=""):
        self.failed.append("%s %s" % (suite, name))
        self.say("FAILED  %-10s %-40s %6.1f s" % (suite, name, seconds))
        if detail:
            self.say(detail.rstrip("\n"))

    def time_left(self, suite):
        if suite == "long":
            return LIMITS[suite]
        return max(1, min(LIMITS[suite], self.end - time.monotonic()))

    # --- regress and isolation

    def tests_of(self, suite):
        """Names, in the order to run."""
        if suite == "regress":
            names = {os.path.basename(p)[:-4] for p in glob.glob(TEST + "/sql/*.sql")}
        else:
            names = {os.path.basename(p)[:-5] for p in glob.glob(TEST + "/specs/*.spec")}
        first = ["install"] if suite == "regress" and "install" in names else []
        return first + sorted(names - set(first))

    def run_pg_regress(self, suite, patterns):
        """One file after the other, each one a test, in one cluster."""
        names = self.tests_of(suite)
        if patterns:
            chosen = [n for n in names if any(fnmatch.fnmatch(n, clean_name(p)) for p in patterns)]
            if not chosen:
                return self.fail(suite, " ".join(patterns), detail="no such test")
            if suite == "regress" and "install" in names and "install" not in chosen:
                chosen.insert(0, "install")
            names = chosen
        if not names:
            return

        # pg_regress wants inputs and expected results in one place
        work = os.path.join(self.build.rundir, suite)
        expected = os.path.join(TOP, "expected")
        os.makedirs(work)
        if suite == "regress":
            os.symlink(TEST + "/sql", work + "/sql")
            program, database = "pg_regress", "regression"
        else:
            os.symlink(TEST + "/specs", work + "/specs")
            expected = os.path.join(expected, "isolation")
            program, database = "pg_isolation_regress", "isolation_regression"
        os.mkdir(work + "/expected")
        for path in glob.glob(expected + "/*.out"):
            os.symlink(path, "%s/expected/%s" % (work, os.path.basename(path)))
        # pg_regress gives up where there is nothing to compare with
        for name in names:
            if not os.path.exists("%s/expected/%s.out" % (work, name)):
                open("%s/expected/%s.out" % (work, name), "w").close()
        program = self.build.test_program(program)

        command = [program, "--inputdir=" + work, "--outputdir=" + work,
                   "--bindir=" + self.build.bindir, "--port=%d" % PORT, "--user=postgres",
                   "--dbname=" + database]
        if "--expecteddir" in subprocess.run([program, "--help"], text=True,
                                             stdout=subprocess.PIPE).stdout:
            command.append("--expecteddir=" + work)
        if suite == "isolation":
            command.append("--load-extension=dgen")
        env = clean_environment()
        # isolationtester cancels a step that waits for twice as many seconds
        env["PG_TEST_TIMEOUT_DEFAULT"] = "30"
        # one statement that is stuck does not take the rest with it
        env["PGOPTIONS"] = "-c statement_timeout=100s"

        cluster = Cluster(suite, conf={"fsync": "off", "log_statement": "none"}, build=self.build)
        started = time.monotonic()
        seen = set()
        try:
            cluster.init()
            cluster.start()
            command.append("--host=" + cluster.socket_dir)
            process = subprocess.Popen(command + names, cwd=work, env=env, text=True,
                                       stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                       start_new_session=True)
            timer = Timer(process, self.time_left(suite), cluster)
            output = []
            for line in process.stdout:
                output.append(line)
                match = re.match(r"(?:test )?\s*(\S+)\s+\.\.\.\s+(ok|FAILED)\b[^0-9]*(\d+)? ?m?s?", line)
                tap = re.match(r"(ok|not ok)\s+\d+\s+[-+]\s+(\S+)\s+(\d+) ms", line)
                if match:
                    name, good, ms = match.group(1), match.group(2) == "ok", match.group(3)
                elif tap:
                    name, good, ms = tap.group(2), tap.group(1) == "ok", tap.group(3)
                else:
                    continue
                seen.add(name)
                seconds = int(ms or 0) / 1000
                # below valgrind deadlines pass and results differ: what counts
                # is that nothing dies, and that the log tells of no error
                if good or INSTRUMENT == "valgrind" and "exited" not in line:
                    self.ok(suite, name, seconds)
                elif self.accept:
                    shutil.copy("%s/results/%s.out" % (work, name), "%s/%s.out" % (expected, name))
                    self.say("        accepted: %s" % os.path.relpath(
                        "%s/%s.out" % (expected, name), TOP))
                    self.ok(suite, name, seconds)
                else:
                    self.fail(suite, name, seconds, self.diff(work, expected, name))
            process.wait()
            timer.stop()
            for name in names:
                if name not in seen:
                    self.fail(suite, name, time.monotonic() - started,
                              timer.report or (output and "".join(output[-20:]) or "did not run"))
                    output = []
            if cluster.is_running():
                cluster.stop()
            cluster.assert_no_crash()
        except (AssertionError, OSError) as e:
            self.fail(suite, "server", time.monotonic() - started, str(e))
        finally:
            if any(f.startswith(suite + " ") for f in self.failed):
                self.keep(suite, cluster.log, work + "/regression.diffs", work + "/results")
                self.say("--- end of the server's log:\n" + cluster.log_tail(40))
            cluster.destroy()

    def diff(self, work, expected, name):
        result = "%s/results/%s.out" % (work, name)
        wanted = "%s/%s.out" % (expected, name)
        if not os.path.exists(wanted):
            return "there is no %s; --accept would make it" % os.path.relpath(wanted, TOP)
        text = subprocess.run(["diff", "-U3", wanted, result], text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT).stdout
        lines = text.splitlines()
        if len(lines) > 200:
            lines = lines[:200] + ["... %d lines more" % (len(lines) - 200)]
        return "\n".join(lines)

    def keep(self, suite, *paths):
        """Copies what a failure left to build/results."""
        target = os.path.join(self.results, suite)
        os.makedirs(target, exist_ok=True)
        for path in paths:
            if os.path.isdir(path):
                shutil.copytree(path, os.path.join(target, os.path.basename(path)),
                                dirs_exist_ok=True)
            elif os.path.exists(path):
                shutil.copy(path, target)

    # --- client

    def run_client(self, suite, arguments):
        files = sorted(glob.glob(TEST + "/client/test_*.py"))
        chosen, rest = [], []
        previous = ""
        for word in arguments:
            name = clean_name(word)
            found = [] if previous in ("-k", "-m") else [
                p for p in files if fnmatch.fnmatch(os.path.basename(p)[:-3], name)
                or fnmatch.fnmatch(os.path.basename(p)[len("test_"):-3], name)]
            if found:
                chosen += [p + word[word.index("::"):] if "::" in word else p for p in found]
            elif word.startswith("-") or previous in ("-k", "-m"):
                rest.append(word)
            else:
                return self.fail(suite, word, detail="no such test")
            previous = word
        if not files:
            return
        report = os.path.join(self.build.rundir, suite + ".xml")
        command = [sys.executable, "-B", "-m", "pytest", "-p", "no:cacheprovider", "-q",
                   "--tb=short", "--show-capture=all", "-m", MARKS[suite],
                   "--rootdir=" + TEST, "--junitxml=" + report, "-o", "junit_family=xunit1",
                   "-rs", *rest, *(chosen or files)]
        env = clean_environment()
        started = time.monotonic()
        process = subprocess.Popen(command, cwd=TOP, env=env, start_new_session=True)
        timer = Timer(process, self.time_left(suite), None)
        process.wait()
        timer.stop()
        try:
            root = ElementTree.parse(report).getroot()
        except (OSError, ElementTree.ParseError):
            return self.fail(suite, "pytest", time.monotonic() - started,
                             timer.report or "pytest ended with %s and no report" % process.returncode)
        # a test that fails and whose teardown fails too is in there twice
        bad, good, skipped, seconds = {}, {}, {}, {}
        for case in root.iter("testcase"):
            name = "%s::%s" % (case.get("classname", "").split(".")[-1], case.get("name"))
            seconds[name] = seconds.get(name, 0) + float(case.get("time") or 0)
            if case.find("failure") is not None or case.find("error") is not None:
                bad[name] = True
            elif case.find("skipped") is not None:
                skipped[name] = case.find("skipped").get("message")
            else:
                good[name] = True
        for name in seconds:
            if name in bad:
                self.fail(suite, name, seconds[name])       # pytest has printed why
            elif name in good:
                self.ok(suite, name, seconds[name])
            else:
                self.skipped.append("%s %s: %s" % (suite, name, skipped[name]))
        if process.returncode not in (0, 1, 5):
            self.fail(suite, "pytest ended with %s" % process.returncode,
                      time.monotonic() - started, timer.report or "")

    # --- all

    def main(self, plan):
        self.results = os.path.join(TOP, "build", "results")
        shutil.rmtree(self.results, ignore_errors=True)
        try:
            build_root()
            self.build = Build.make()
            self.build.export()
            self.say("%s, built and installed%s" % (
                self.build.ask("version"),
                ", servers run as %s" % server_user().pw_name if server_user() else ""))
            for suite, arguments in plan:
                if suite in MARKS:
                    self.run_client(suite, arguments)
                else:
                    self.run_pg_regress(suite, arguments)
        except BuildError as e:
            self.fail("build", "", detail=str(e))
        finally:
            if self.build:
                if os.environ.get("KEEP"):
                    self.say("kept: " + self.build.rundir)
                else:
                    self.build.cleanup()
        self.say()
        for line in self.skipped:
            self.say("skipped: " + line)
        for line in self.failed:
            self.say("failed: " + line)
        if os.path.isdir(self.results):
            self.say("what they left is in %s" % os.path.relpath(self.results, TOP))
        self.say("%d passed, %d failed" % (self.passed, len(self.failed)))
        return 1 if self.failed or not self.passed else 0


class Timer:
    """Ends a suite that takes too long, after asking the server what it does."""

    def __init__(self, process, seconds, cluster):
        self.process, self.seconds, self.cluster = process, seconds, cluster
        self.report = ""
        self.timer = threading.Timer(seconds, self.too_late)
        self.timer.daemon = True
        self.timer.start()

    def too_late(self):
        report = "not done after %d s; ended\n" % self.seconds
        if self.cluster:
            try:
                report += self.cluster.psql(
                    "SELECT pid, backend_type, datname, state, wait_event, left(query, 200) "
                    "FROM pg_stat_activity ORDER BY backend_start", timeout=10) + "\n"
            except Exception as e:
                report += "the server does not say what it does: %s\n" % e
        self.report = report
        try:
            os.killpg(self.process.pid, signal.SIGINT if not self.cluster else signal.SIGTERM)
            time.sleep(20 if not self.cluster else 2)
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass

    def stop(self):
        self.timer.cancel()


def clean_name(word):
    name = os.path.basename(word.split("::")[0])
    return re.sub(r"\.(sql|out|spec|py)$", "", name)


def plan_of(words):
    """[(suite, its arguments)] from the command line."""
    plan, loose = [], []
    for word in words:
        if word in LIMITS:
            plan.append((word, []))
        elif plan:
            plan[-1][1].append(word)
        else:
            loose.append(word)
    if plan and loose:
        raise SystemExit("name the suite before its tests: %s" % " ".join(words))
    if loose:
        found = {suite: [] for suite in DEFAULT_SUITES}
        for word in loose:
            name = clean_name(word)
            hits = [(suite, pattern) for suite, pattern in
                    (("regress", "sql/%s.sql"), ("isolation", "specs/%s.spec"),
                     ("client", "client/%s.py"), ("client", "client/test_%s.py"))
                    if glob.glob(os.path.join(TEST, pattern % name))]
            if not hits:
                raise SystemExit("no suite and no test: %s" % word)
            for suite, _ in hits:
                found[suite].append(word)
        plan = [(suite, found[suite]) for suite in DEFAULT_SUITES if found[suite]]
    return plan or [(suite, []) for suite in DEFAULT_SUITES]


def main():
    words = sys.argv[1:]
    accept = "--accept" in words
    words = [w for w in words if w != "--accept"]

    def stop(signum, frame):
        raise SystemExit(128 + signum)
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGHUP, stop)
    sys.exit(Driver(accept).main(plan_of(words)))


if __name__ == "__main__":
    main()
