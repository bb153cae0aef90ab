"""Finds PostgreSQL, builds dgen and installs it where a private cluster can
load it, writing nothing below /usr.

A Build is described by a small dict that travels in the environment variable
DGEN_BUILD, so that the processes of one test run share one.
"""

import atexit
import fcntl
import functools
import glob
import json
import os
import pwd
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

# What INSTRUMENT= adds to the compiler's and the linker's flags
INSTRUMENTS = {
    "coverage": "--coverage -O0",
    "sanitizers": "-fsanitize=address,undefined -fno-sanitize-recover=undefined "
                  "-fno-omit-frame-pointer -O1 -g",
    "valgrind": "-O1 -g",
}
INSTRUMENT = os.environ.get("INSTRUMENT", "")


class BuildError(Exception):
    pass


def server_user():
    """Who runs the servers: PostgreSQL refuses root.  None: whoever we are."""
    if os.geteuid() != 0:
        return None
    for name in (os.environ.get("DGEN_TEST_USER"), "postgres", "nobody"):
        try:
            if name:
                return pwd.getpwnam(name)
        except KeyError:
            pass
    raise BuildError("root, and neither a user postgres nor a user nobody to run servers as")


def as_server_user():
    """Arguments for subprocess that make a command run as the server's user."""
    user = server_user()
    if user is None:
        return {"cwd": "/"}
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": [], "cwd": "/"}


def give_to_server_user(path):
    user = server_user()
    if user is not None:
        os.chown(path, user.pw_uid, user.pw_gid)


def clean_environment():
    """The environment without what would lead PostgreSQL or make astray."""
    env = {k: v for k, v in os.environ.items()
           if not (k.startswith("PG") and k != "PG_TEST_TIMEOUT_DEFAULT")
           and not k.startswith("MAKE") and k not in ("MFLAGS", "GNUMAKEFLAGS", "LANGUAGE")}
    env["LC_ALL"] = "C.UTF-8"
    return env


def server_environment():
    """What a server wants in its environment to run an instrumented dgen."""
    if INSTRUMENT != "sanitizers":
        return {}
    libraries = [subprocess.run(["gcc", "-print-file-name=" + name], check=True, text=True,
                                stdout=subprocess.PIPE).stdout.strip()
                 for name in ("libasan.so", "libubsan.so")]
    return {"LD_PRELOAD": " ".join(libraries),
            # PostgreSQL leaves memory to exit(); a core of it all would fill the disk
            "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=1:disable_coredump=1:"
                            "detect_stack_use_after_return=0",
            "UBSAN_OPTIONS": "print_stacktrace=1:abort_on_error=1"}


def server_options(build):
    """What pg_ctl start wants to be told to run a server below valgrind."""
    if INSTRUMENT != "valgrind":
        return []
    wrapper = os.path.join(build.rundir, "postgres-below-valgrind")
    if not os.path.exists(wrapper):
        with open(wrapper, "w") as f:
            # what it finds goes to the server's log, where the tests look for it
            f.write("#!/bin/sh\nexec valgrind --quiet --trace-children=yes --leak-check=no "
                    "--track-origins=yes --error-markers=VALGRINDERROR-BEGIN,VALGRINDERROR-END "
                    "--suppressions=%s --suppressions=%s %s \"$@\"\n"
                    % (os.path.join(build.ask("sharedir"), "valgrind.supp"),
                       os.path.join(TOP, "test", "valgrind.supp"), build.program("postgres")))
        os.chmod(wrapper, 0o755)
    return ["-p", wrapper]


def find_pg_config():
    named = os.environ.get("PG_CONFIG")
    if named:
        found = shutil.which(named)
        if not found:
            raise BuildError("PG_CONFIG=%s: no such program" % named)
        return found
    found = []
    for path in glob.glob("/usr/lib/postgresql/*/bin/pg_config"):
        version = path.split("/")[4]
        if (version.isdigit() and int(version) >= 15
                and os.path.exists(os.path.dirname(path) + "/postgres")
                and os.path.exists("/usr/lib/postgresql/%s/lib/pgxs/src/makefiles/pgxs.mk" % version)):
            found.append((int(version), path))
    if found:
        return max(found)[1]
    path = shutil.which("pg_config")
    if not path:
        raise BuildError("no PostgreSQL server with its development files found")
    return path


def reachable(directory):
    """Whether the server's user can work below this directory."""
    return subprocess.run(["test", "-r", directory, "-a", "-x", directory],
                          **as_server_user()).returncode == 0


def build_root():
    """TOP/build, or if the server's user cannot go there a directory in /tmp
    that the link TOP/build/outside remembers."""
    root = os.path.join(TOP, "build")
    os.makedirs(root, exist_ok=True)
    if reachable(root):
        return root
    link = os.path.join(root, "outside")
    if os.path.isdir(link) and os.stat(link).st_uid == os.geteuid():
        return os.path.realpath(link)
    outside = tempfile.mkdtemp(prefix="dgen-", dir="/tmp")
    os.chmod(outside, 0o755)
    if os.path.islink(link):
        os.unlink(link)
    os.symlink(outside, link)
    return outside


class Build:
    """An installed dgen and a directory for the clusters that use it."""

    def __init__(self, pg_config, rundir):
        self.pg_config = pg_config
        self.rundir = rundir
        self.inst = os.path.join(rundir, "inst")
        self.inside = False         # dgen is to be in PostgreSQL's own prefix

    # --- sharing one between processes

    def export(self):
        os.environ["DGEN_BUILD"] = json.dumps({"pg_config": self.pg_config, "rundir": self.rundir})

    @classmethod
    def current(cls):
        """The one that the environment names; else builds now, and removes
        everything at exit."""
        text = os.environ.get("DGEN_BUILD")
        if text:
            return cls(**json.loads(text))
        build = cls.make()
        build.export()
        atexit.register(build.cleanup)
        return build

    # --- what pg_config says

    @functools.lru_cache(maxsize=None)
    def ask(self, what):
        return subprocess.run([self.pg_config, "--" + what], check=True, text=True,
                              stdout=subprocess.PIPE, env=clean_environment()).stdout.strip()

    @property
    def bindir(self):
        return self.ask("bindir")

    @property
    def major(self):
        return int(re.match(r"PostgreSQL (\d+)", self.ask("version")).group(1))

    def program(self, name):
        return os.path.join(self.bindir, name)

    def test_program(self, name):
        folder = "isolation" if "isolation" in name else "regress"
        return os.path.join(os.path.dirname(self.ask("pgxs")), "..", "test", folder, name)

    @functools.lru_cache(maxsize=None)
    def method(self):
        """How a server is told of an extension that is not in its prefix:
        'destdir' (Debian's setting), 'path' (a setting of 18), or 'prefix'
        when it cannot be told."""
        if self.inside:
            return "prefix"
        with open(self.program("postgres"), "rb") as f:
            binary = f.read()
        if b"extension_destdir" in binary:
            return "destdir"
        if b"extension_control_path" in binary:
            return "path"
        return "prefix"

    def server_conf(self):
        """Settings by which a server finds this build."""
        lib = self.inst + self.ask("pkglibdir")
        if self.method() == "destdir":
            return ("extension_destdir = '%s'\n" % self.inst
                    + "dynamic_library_path = '%s:$libdir'\n" % lib)
        if self.method() == "path":
            return ("extension_control_path = '%s:$system'\n" % (self.inst + self.ask("sharedir"))
                    + "dynamic_library_path = '%s:$libdir'\n" % lib)
        return ""

    # --- making and removing

    @classmethod
    def make(cls, rundir=None, werror=True, quiet=True):
        """Builds and installs.  rundir: where to, default a new directory."""
        os.umask(0o022)
        pg_config = find_pg_config()
        root = build_root()
        if rundir is None:
            rundir = tempfile.mkdtemp(prefix="run-", dir=root)
        else:
            os.makedirs(rundir, exist_ok=True)
        os.chmod(rundir, 0o755)
        build = cls(pg_config, rundir)
        try:
            build._build_and_install(werror, quiet)
        except BaseException:
            build.cleanup()
            raise
        return build

    @classmethod
    def make_other(cls, pg_config):
        """One more, for another PostgreSQL than that of PG_CONFIG, for
        pg_upgrade: which looks for libraries in $libdir only.  So one that has
        no directory of Debian's for them is copied, and gets dgen inside."""
        rundir = tempfile.mkdtemp(prefix="other-", dir=build_root())
        os.chmod(rundir, 0o755)
        build = cls(pg_config, rundir)
        try:
            if build.method() != "destdir":
                prefix = os.path.join(rundir, "pg")
                subprocess.run(["cp", "-a", os.path.dirname(build.bindir), prefix], check=True)
                build = cls(os.path.join(prefix, "bin", "pg_config"), rundir)
                build.inside = True
            build._build_and_install(True, True)
        except BaseException:
            build.cleanup()
            raise
        return build

    def _build_and_install(self, werror, quiet):
        pg_config = self.pg_config
        if self.major < 15:
            raise BuildError("%s: PostgreSQL 15 or later is needed" % self.ask("version"))

        # one tree of links and objects for each PostgreSQL
        prefix = self.bindir
        key = "pg%d" % self.major
        if not prefix.startswith("/usr/lib/postgresql/"):
            key += re.sub(r"[^A-Za-z0-9]+", "-", os.path.dirname(prefix))
        if INSTRUMENT:
            key += "-" + INSTRUMENT
        tree = os.path.join(self.rundir if self.inside else os.path.join(TOP, "build"), key)
        os.makedirs(tree, exist_ok=True)
        with open(os.path.join(tree, ".lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self._link_sources(tree)
            command = ["make", "-C", tree, "PG_CONFIG=" + pg_config]
            if werror:
                command.append("WERROR=1")
            if INSTRUMENT:
                command.append("COPT=" + INSTRUMENTS[INSTRUMENT])
            self._run_make(command + ["-j%d" % (os.cpu_count() or 1), "all"], quiet)
            if self.method() == "prefix":
                if prefix.startswith("/usr/"):
                    raise BuildError("%s has no setting for extensions outside its prefix, and "
                                     "the tests do not write below /usr" % self.ask("version"))
                self._run_make(command + ["install"], quiet)
            else:
                self._run_make(command + ["install", "DESTDIR=" + self.inst], quiet)
            if INSTRUMENT == "coverage":
                # servers leave their counts beside the objects
                give_to_server_user(os.path.join(tree, "src"))

    @staticmethod
    def _link_sources(tree):
        wanted = {"Makefile", "dgen.control"}
        for pattern in ("src/*.c", "src/*.h", "sql/*.sql", "sql/released/*.sql"):
            wanted.update(os.path.relpath(p, TOP) for p in glob.glob(os.path.join(TOP, pattern)))
        # the install script is made in the tree
        wanted = {p for p in wanted if not re.match(r"sql/dgen--[^-]+\.sql$", p)}
        for folder in ("", "src", "sql", "sql/released"):
            os.makedirs(os.path.join(tree, folder), exist_ok=True)
            for name in os.listdir(os.path.join(tree, folder)):
                path = os.path.join(folder, name)
                full = os.path.join(tree, path)
                if os.path.islink(full) and (path not in wanted
                                             or os.readlink(full) != os.path.join(TOP, path)):
                    os.unlink(full)
        # objects of sources that are gone
        for path in glob.glob(os.path.join(tree, "src", "*.o")):
            if "src/" + os.path.basename(path)[:-2] + ".c" not in wanted:
                os.unlink(path)
                for library in glob.glob(os.path.join(tree, "*.so")):
                    os.unlink(library)
        for path in wanted:
            full = os.path.join(tree, path)
            if not os.path.islink(full):
                os.symlink(os.path.join(TOP, path), full)

    @staticmethod
    def _run_make(command, quiet):
        result = subprocess.run(command, text=True, stdout=subprocess.PIPE,
                                stderr=subprocess.STDOUT, env=clean_environment())
        if result.returncode != 0 or not quiet:
            sys.stdout.write(result.stdout)
            sys.stdout.flush()
        elif "warning:" in result.stdout:
            sys.stdout.write("".join(line for line in result.stdout.splitlines(True)
                                     if "warning:" in line))
        if result.returncode != 0:
            raise BuildError("the build failed: " + " ".join(command))

    def remember_socket_dir(self, path):
        with open(os.path.join(self.rundir, "socket-dirs"), "a") as f:
            f.write(path + "\n")

    def cleanup(self):
        """Ends every server below rundir and removes it."""
        kill_processes_in(self.rundir)
        try:
            with open(os.path.join(self.rundir, "socket-dirs")) as f:
                for line in f:
                    shutil.rmtree(line.rstrip("\n"), ignore_errors=True)
        except FileNotFoundError:
            pass
        shutil.rmtree(self.rundir, ignore_errors=True)


def processes_in(directory):
    """Processes whose working directory is in this one: PostgreSQL's are in
    their data directory, whether their postmaster lives or not."""
    directory = os.path.realpath(directory)
    found = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            cwd = os.readlink("/proc/%s/cwd" % entry)
            with open("/proc/%s/stat" % entry) as f:
                state = f.read().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if cwd.endswith(" (deleted)"):
            cwd = cwd[:-len(" (deleted)")]
        if state != "Z" and (cwd == directory or cwd.startswith(directory + "/")):
            found.append(int(entry))
    return [pid for pid in found if pid != os.getpid() and _is_postgres(pid)]


def _is_postgres(pid):
    try:
        name = os.path.basename(os.readlink("/proc/%d/exe" % pid)).split(" ")[0]
        return name == "postgres" or INSTRUMENT == "valgrind" and name.startswith("memcheck-")
    except OSError:
        return False


def kill_processes_in(directory, timeout=30):
    """kill -9 of every PostgreSQL process in the directory, until none is left."""
    end = time.monotonic() + timeout
    killed = set()
    while True:
        pids = processes_in(directory)
        if not pids:
            break
        if time.monotonic() > end:
            raise BuildError("processes %s in %s do not die" % (pids, directory))
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
                killed.add(pid)
            except ProcessLookupError:
                pass
        time.sleep(0.02)
    return len(killed)
