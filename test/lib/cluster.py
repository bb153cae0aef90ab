"""Throwaway clusters with dgen preloaded, for tests and the demo.

    from cluster import Cluster, wait_for

    with Cluster() as c:
        c.psql("CREATE EXTENSION dgen")
        with c.connect() as conn:
            conn.execute("SELECT dgen.call('counter/home', '\"increment\"')").fetchone()
        c.kill9()
        c.start()

Each listens on a unix socket in a directory of its own, and nowhere else, or
with tcp on a free port of 127.0.0.1 too.
The superuser is postgres, without a password.
"""

import atexit
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time

from build import (INSTRUMENT, TOP, Build, as_server_user, clean_environment, give_to_server_user,
                   kill_processes_in, processes_in, server_environment, server_options)

PORT = 5432         # only part of the socket's name, unless tcp is asked for


def free_port():
    """A port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class ClusterError(AssertionError):
    pass


def wait_for(condition, timeout=30, interval=0.05, message=None):
    """Polls until condition() is true and returns its value."""
    end = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError("%s within %s s; last value: %r"
                                 % (message or "condition did not become true", timeout, value))
        time.sleep(interval)


class Cluster:
    #: those that exist in this process, for reports about failed tests
    instances = []

    def __init__(self, name=None, conf=None, preload=True, fresh=False, build=None,
                 directory=None, tcp=False):
        """conf: dict of settings, over those of test/dgen.conf.
        preload=False: without shared_preload_libraries.
        fresh: with a system identifier of its own; others are copies of one
        template, which is faster.
        directory: where to, default a new one that goes with destroy().
        tcp: for clients that know no unix sockets."""
        self.build = build or Build.current()
        if directory:
            self.directory = directory
            os.makedirs(directory, exist_ok=True)
        else:
            self.directory = tempfile.mkdtemp(prefix=(name or "cluster") + "-",
                                              dir=self.build.rundir)
        os.chmod(self.directory, 0o755)
        give_to_server_user(self.directory)
        self.name = name or os.path.basename(self.directory)
        self.data = os.path.join(self.directory, "data")
        self.log = os.path.join(self.directory, "log")
        # a socket's path has at most 107 bytes: not below the checkout
        self.socket_dir = tempfile.mkdtemp(prefix="dgen-", dir="/tmp")
        os.chmod(self.socket_dir, 0o755)
        give_to_server_user(self.socket_dir)
        self.build.remember_socket_dir(self.socket_dir)
        self.tcp = tcp
        self.port = free_port() if tcp else PORT
        self.settings = dict(conf or {})
        self.preload = preload
        self.fresh = fresh
        self.env = {}               # more environment for the server
        self.initdb_options = []    # with fresh
        self.signals = set()        # those that this test itself kills processes with
        self._marked = 0
        Cluster.instances.append(self)
        atexit.register(self._at_exit)

    # --- life

    def __enter__(self):
        if not os.path.exists(self.data):
            self.init()
        if not self.is_running():
            self.start()
        return self

    def __exit__(self, kind, value, traceback):
        try:
            if kind is None:
                self.stop()
                self.assert_no_crash()
        finally:
            self.destroy()

    def init(self):
        """initdb and configuration."""
        if self.fresh:
            self._initdb(self.data)
        else:
            template = os.path.join(self.build.rundir, "template")
            if not os.path.exists(template):
                # not in our own directory, which may be a file system of its own
                place = tempfile.mkdtemp(prefix="template-", dir=self.build.rundir)
                give_to_server_user(place)
                self._initdb(os.path.join(place, "template"))
                os.rename(os.path.join(place, "template"), template)
                os.rmdir(place)
            subprocess.run(["cp", "-a", template, self.data], check=True)
        self.write_conf()
        return self

    def _initdb(self, data):
        self.run("initdb", "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8",
                 "--no-locale", "-N", *self.initdb_options)

    def write_conf(self):
        """Writes the settings; they count from the next start or reload()."""
        path = os.path.join(self.data, "postgresql.conf")
        text = "# written by test/lib/cluster.py\n"
        with open(os.path.join(TOP, "test", "dgen.conf")) as f:
            text += f.read()
        if not self.preload:
            text += "shared_preload_libraries = ''\n"
        text += self.build.server_conf()
        text += "unix_socket_directories = '%s'\nport = %d\n" % (self.socket_dir, self.port)
        if self.tcp:
            text += "listen_addresses = '127.0.0.1'\n"
        for key, value in self.settings.items():
            if isinstance(value, bool):
                value = "on" if value else "off"
            text += "%s = '%s'\n" % (key, str(value).replace("'", "''"))
        with open(path, "w") as f:
            f.write(text)
        give_to_server_user(path)

    def configure(self, settings=None, **more):
        """Changes settings ({'dgen.x': 1} or by name) and writes them."""
        self.settings.update(settings or {})
        self.settings.update(more)
        self.write_conf()

    def reload(self):
        self.run("pg_ctl", "reload", "-D", self.data)

    def start(self, timeout=10 * 60 if INSTRUMENT else 60, wait=True):
        try:
            self.run("pg_ctl", "start", "-D", self.data, "-l", self.log,
                     "-t", str(timeout), "-w" if wait else "-W", *server_options(self.build),
                     env=server_environment())
        except ClusterError as e:
            raise ClusterError("%s\n--- end of the server's log:\n%s" % (e, self.log_tail())) from None
        return self

    def stop(self, mode="fast", timeout=10 * 60 if INSTRUMENT else 60):
        """mode: smart, fast or immediate.  An error if it does not stop in time."""
        if not self.is_running():
            return
        try:
            self.run("pg_ctl", "stop", "-D", self.data, "-m", mode, "-t", str(timeout), "-w")
        except ClusterError as e:
            raise ClusterError("%s\n--- still there:\n%s\n--- end of the server's log:\n%s"
                               % (e, "\n".join(map(str, self.processes().items())),
                                  self.log_tail())) from None

    def restart(self, mode="fast", timeout=60):
        self.stop(mode, timeout)
        return self.start(timeout)

    def kill9(self):
        """kill -9 of the postmaster and all its children at once.  It stays
        down: start() brings it up again."""
        self.signals.add(signal.SIGKILL)
        pid = self.postmaster_pid()
        if pid:
            # so that it starts nothing more and tells nobody
            os.kill(pid, signal.SIGSTOP)
        killed = kill_processes_in(self.data)
        self._bury(pid)
        return killed

    def _bury(self, pid):
        # Until init has buried the postmaster, PostgreSQL takes it for alive;
        # not every container's init is quick.
        end = time.monotonic() + 0.3
        while pid and os.path.exists("/proc/%d" % pid):
            if time.monotonic() > end:
                for path in (os.path.join(self.data, "postmaster.pid"),
                             os.path.join(self.socket_dir, ".s.PGSQL.%d.lock" % self.port)):
                    if os.path.exists(path):
                        os.unlink(path)
                break
            time.sleep(0.01)

    def kill_postmaster(self, timeout=60):
        """kill -9 of the postmaster alone; waits until its children have seen it."""
        pid = self.postmaster_pid()
        self.signals.add(signal.SIGKILL)
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: not [p for p in processes_in(self.data) if p != pid], timeout,
                 message="processes outlive their postmaster")
        self._bury(pid)

    def destroy(self):
        """Ends it at once and removes it, unless KEEP is set."""
        kill_processes_in(self.data)
        if self in Cluster.instances:
            Cluster.instances.remove(self)
        atexit.unregister(self._at_exit)
        if os.environ.get("KEEP"):
            print("kept: %s" % self.directory)
            return
        shutil.rmtree(self.directory, ignore_errors=True)
        shutil.rmtree(self.socket_dir, ignore_errors=True)

    def leave(self):
        """Not to be ended when this process ends."""
        atexit.unregister(self._at_exit)

    def _at_exit(self):
        if self in Cluster.instances:
            self.destroy()

    def standby(self, name="standby"):
        """A streaming standby of this cluster, started.  promote() ends that."""
        other = Cluster(name, conf=self.settings, preload=self.preload, build=self.build)
        self.run("pg_basebackup", "-h", self.socket_dir, "-p", str(self.port), "-U", "postgres",
                 "-D", other.data, "-R", "-c", "fast", "-X", "stream")
        other.write_conf()
        return other.start()

    def promote(self, timeout=60):
        self.run("pg_ctl", "promote", "-D", self.data, "-w", "-t", str(timeout))

    # --- processes

    def postmaster_pid(self):
        try:
            with open(os.path.join(self.data, "postmaster.pid")) as f:
                pid = int(f.readline())
        except (FileNotFoundError, ValueError):
            return None
        return pid if pid in processes_in(self.data) else None

    def is_running(self):
        return self.postmaster_pid() is not None

    def processes(self, pattern=""):
        """{pid: title} of its processes whose title matches the pattern."""
        found = {}
        for pid in processes_in(self.data):
            try:
                with open("/proc/%d/cmdline" % pid, "rb") as f:
                    title = f.read().replace(b"\0", b" ").decode(errors="replace").strip()
            except OSError:
                continue
            if re.search(pattern, title):
                found[pid] = title
        return found

    def kill_backend(self, pid, sig=signal.SIGKILL):
        """A signal to one process.  After SIGKILL and the like PostgreSQL
        restarts all the others: wait_ready() waits for that."""
        if sig == signal.SIGKILL:
            self.signals.add(sig)
        os.kill(pid, sig)

    def wait_ready(self, timeout=60):
        """Waits until it accepts connections."""
        wait_for(lambda: subprocess.run(
            [self.build.program("pg_isready"), "-q", "-h", self.socket_dir, "-p", str(self.port),
             "-U", "postgres"], env=clean_environment()).returncode == 0,
            timeout, message="%s does not accept connections" % self.name)

    # --- talking to it

    def run(self, program, *arguments, input=None, check=True, timeout=None, env=None, cwd="/"):
        """A program of this PostgreSQL, as the server's user.  Its output."""
        env = dict(clean_environment(), **self.env, **(env or {}))
        # through a file: a server that pg_ctl leaves behind would keep a pipe open
        with tempfile.TemporaryFile("w+") as out:
            result = subprocess.run([self.build.program(program), *arguments], env=env,
                                    input=input, text=True, timeout=timeout, stdout=out,
                                    stderr=subprocess.STDOUT,
                                    **({} if input is not None else {"stdin": subprocess.DEVNULL}),
                                    **dict(as_server_user(), cwd=cwd))
            out.seek(0)
            text = out.read()
        if check and result.returncode != 0:
            raise ClusterError("%s failed:\n%s" % (" ".join([program, *arguments]), text))
        return text

    def psql_command(self, dbname="postgres", user="postgres"):
        """What to type to look around."""
        return "%s -h %s -p %d -U %s %s" % (self.build.program("psql"), self.socket_dir, self.port,
                                            user, dbname)

    def psql(self, sql, dbname="postgres", user="postgres", check=True, timeout=120):
        """Runs statements as psql does, one by one, and returns their rows
        unaligned; an error raises with psql's message, or with check=False is
        part of the text."""
        command = [self.build.program("psql"), "-XAtq", "-v", "ON_ERROR_STOP=%d" % check,
                   "-h", self.socket_dir, "-p", str(self.port), "-U", user, "-d", dbname, "-f", "-"]
        result = subprocess.run(command, input=sql, text=True, stdout=subprocess.PIPE,
                                stderr=subprocess.PIPE if check else subprocess.STDOUT,
                                env=clean_environment(), timeout=timeout)
        if check and result.returncode != 0:
            raise ClusterError("psql: %s\nin: %s" % (result.stderr.strip(), sql))
        return result.stdout.rstrip("\n")

    def psql_file(self, path, dbname="postgres", user="postgres"):
        with open(path) as f:
            return self.psql(f.read(), dbname, user)

    def conninfo(self, **kw):
        info = {"host": self.socket_dir, "port": self.port, "user": "postgres", "dbname": "postgres"}
        info.update(kw)
        return info

    def connect(self, autocommit=True, **kw):
        """A psycopg connection."""
        import psycopg
        return psycopg.connect(autocommit=autocommit, **self.conninfo(**kw))

    # --- its log

    def log_text(self):
        """The whole log of this cluster, all its starts."""
        try:
            with open(self.log, errors="replace") as f:
                return f.read()
        except FileNotFoundError:
            return ""

    def log_mark(self):
        """From here on log_since_mark() counts."""
        self._marked = len(self.log_text())

    def log_since_mark(self):
        return self.log_text()[self._marked:]

    def log_tail(self, lines=60):
        return "\n".join(self.log_text().splitlines()[-lines:])

    def wait_for_log(self, pattern, timeout=30):
        """Waits until the pattern is in the log after the mark."""
        return wait_for(lambda: re.search(pattern, self.log_since_mark()), timeout,
                        message="nothing like %r in the log" % pattern)

    def crashes(self):
        """Lines of the log that tell of a crash.  Where the test itself kills,
        with -9 or with what it has put into signals, what follows from that
        is none."""
        allowed = "|".join("%d:" % s for s in sorted(self.signals))
        pattern = (r"PANIC: |TRAP: |write past chunk end|reference leak|refcount leak|resource was not closed|Sanitizer|runtime error: |VALGRINDERROR"
                   r"|terminated by signal " + (r"(?!%s)" % allowed if allowed else ""))
        if not allowed:
            pattern += r"|reinitializing"
        return [line for line in self.log_text().splitlines() if re.search(pattern, line)]

    def assert_no_crash(self):
        lines = self.crashes()
        if lines:
            raise ClusterError("the server's log tells of a crash:\n%s\n--- end of that log:\n%s"
                               % ("\n".join(lines[:20]), self.log_tail()))
