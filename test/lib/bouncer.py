"""PgBouncer in transaction mode before a cluster, for tests.

    with Bouncer(cluster) as pooled:
        psycopg.connect(**pooled.conninfo())

It hands each transaction to another of its connections in turn, so that what a
client leaves in a session is not there in its next transaction.  It refuses to
run as root and runs as the servers' user.
"""

import atexit
import os
import re
import shutil
import subprocess
import tempfile

import psycopg

from build import as_server_user, clean_environment, give_to_server_user
from cluster import free_port, wait_for

CONNECTIONS = 3


def find_pgbouncer():
    return shutil.which("pgbouncer", path=os.environ["PATH"] + ":/usr/sbin:/usr/local/sbin")


class Bouncer:
    def __init__(self, cluster):
        self.cluster = cluster
        self.program = find_pgbouncer()
        self.process = None

    @property
    def version(self):
        text = subprocess.run([self.program, "--version"], text=True, stdout=subprocess.PIPE).stdout
        return tuple(int(n) for n in re.search(r"(\d+)\.(\d+)", text).groups())

    @property
    def has_named_statements(self):
        """From 1.21 on it keeps track of them, if it is told to."""
        return self.version >= (1, 21)

    def conninfo(self, **kw):
        return dict({"host": "127.0.0.1", "port": self.port, "user": "postgres",
                     "dbname": "postgres"}, **kw)

    def __enter__(self):
        self.directory = tempfile.mkdtemp(prefix="pgbouncer-", dir=self.cluster.build.rundir)
        os.chmod(self.directory, 0o755)
        give_to_server_user(self.directory)
        self.log = os.path.join(self.directory, "log")
        atexit.register(self.end)
        for _ in range(3):          # somebody may have taken the port
            self.start()
            if self.process.poll() is None:
                return self
        raise AssertionError("pgbouncer does not start:\n%s" % self.log_text())

    def start(self):
        self.port = free_port()
        users = os.path.join(self.directory, "users")
        with open(users, "w") as f:
            f.write('"postgres" ""\n')
        ini = os.path.join(self.directory, "ini")
        with open(ini, "w") as f:
            f.write("""[databases]
* = host=%s port=%d
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = %d
unix_socket_dir =
auth_type = trust
auth_file = %s
pool_mode = transaction
default_pool_size = %d
server_round_robin = 1
ignore_startup_parameters = extra_float_digits
""" % (self.cluster.socket_dir, self.cluster.port, self.port, users, CONNECTIONS))
            if self.has_named_statements:
                f.write("max_prepared_statements = 100\n")
        with open(self.log, "a") as log:
            self.process = subprocess.Popen([self.program, ini], stdin=subprocess.DEVNULL, stdout=log,
                                            stderr=log, env=clean_environment(), **as_server_user())
        wait_for(lambda: self.process.poll() is not None or self.fill(), message="no pgbouncer")

    def fill(self):
        """Makes all its connections, so that each transaction gets another."""
        clients = []
        try:
            for _ in range(CONNECTIONS):
                clients.append(psycopg.connect(**self.conninfo(), prepare_threshold=None))
                clients[-1].execute("SELECT")
            for client in clients:
                client.commit()     # else it ends that connection too
        except psycopg.OperationalError:
            return False
        finally:
            for client in clients:
                client.close()
        return True

    def log_text(self):
        with open(self.log) as f:
            return f.read()

    def end(self):
        if self.process and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def __exit__(self, *error):
        self.end()
        atexit.unregister(self.end)
