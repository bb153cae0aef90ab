"""The disk is full for a while, under load: callers are told so, what was
acknowledged is there, what was refused is not, and when there is room again all
goes on."""

import collections
import os
import shutil
import subprocess
import tempfile
import threading
import time

import psycopg
import pytest

from build import Build, give_to_server_user
from cluster import Cluster, wait_for
from common import LOST, Client, assert_nothing_left, connect_again, in_threads, seed_of, value, wait_idle
from test_crash import JOURNAL, SERVERS, Load, check

DISK_FULL = "53100"


@pytest.fixture
def small_disk():
    """A directory on a file system of its own."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a file system")
    place = tempfile.mkdtemp(prefix="small-", dir=Build.current().rundir)
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128m,mode=755", "tmpfs", place],
                             stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if mounted.returncode != 0:
        os.rmdir(place)
        pytest.skip("no file system can be mounted here: %s" % mounted.stdout.strip())
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", place], check=True)
        os.rmdir(place)


class FullLoad(Load):
    """As under kills; that the disk is full says that nothing happened."""

    def __init__(self, cluster, number, seed):
        super().__init__(cluster, number, seed)
        self.client = Client(cluster, lost=LOST + (DISK_FULL,))

    def one(self):
        before = self.failures[DISK_FULL]
        super().one()
        if self.failures[DISK_FULL] > before:
            token = "%d-%d" % (self.number, self.sent)
            self.unknown.discard(token)
            self.refused.add(token)
            time.sleep(0.05)


def fill(path):
    """All the room that there is, and what becomes free."""
    with open(path, "ab", buffering=0) as f:
        for size in (1 << 20, 1 << 12, 1 << 9):
            try:
                while True:
                    f.write(b"\0" * size)
            except OSError:
                pass


def run(place, request, whole):
    seed = seed_of(request)
    c = Cluster(directory=place, conf={
        "min_wal_size": "32MB", "max_wal_size": "48MB", "shared_buffers": "16MB", "wal_recycle": False})
    # the log, and without whole the WAL, have room
    aside = tempfile.mkdtemp(prefix="aside-", dir=c.build.rundir)
    os.chmod(aside, 0o755)
    give_to_server_user(aside)
    c.log = os.path.join(aside, "log")
    filler = os.path.join(place, "filler")
    try:
        c.init()
        if not whole:
            subprocess.run(["cp", "-a", os.path.join(c.data, "pg_wal"), aside], check=True)
            shutil.rmtree(os.path.join(c.data, "pg_wal"))
            os.symlink(os.path.join(aside, "pg_wal"), os.path.join(c.data, "pg_wal"))
        c.start()
        c.psql("CREATE EXTENSION dgen")
        c.psql(JOURNAL)
        c.psql("SELECT dgen.alter_module('journal', max_attempts => 30000)")
        loads = [FullLoad(c, n, seed) for n in range(4)]
        stop = threading.Event()
        full = []               # seconds

        def sum_of(counter):
            return sum(counter(load) for load in loads)

        def done():
            return sum_of(lambda load: len(load.calls) + len(load.casts))

        def disk():
            try:
                wait_for(lambda: done() > 200)
                began = time.monotonic()
                fill(filler)
                while c.is_running() and time.monotonic() < began + 30 and not (
                        sum_of(lambda load: load.failures[DISK_FULL]) > 20 and time.monotonic() > began + 4):
                    fill(filler)
                    time.sleep(0.05)
                os.unlink(filler)
                full.append(time.monotonic() - began)
                if whole:
                    wait_for(lambda: not c.is_running() or _accepts(c), 60)
                    if not c.is_running():
                        c.start()
                before = done()
                wait_for(lambda: done() > before + 200, 60, message="it does not go on")
            finally:
                stop.set()
        in_threads([lambda load=load: load.run(stop) for load in loads] + [disk], timeout=150)
        failures = sum((load.failures for load in loads), collections.Counter())
        print("acknowledged %d, failed %s" % (done(), dict(failures)))
        with connect_again(c) as conn:
            conn.execute("SET client_min_messages = error")
            wait_idle(conn, 60)
            check(conn, loads)
            assert_nothing_left(conn)
        c.stop()
        # what cannot even be recorded is tried again after a second, or when a call comes, and not at once
        unrecorded = c.log_text().count("could not record the failure")
        print("%d failures were not recorded in %.1f s" % (unrecorded, full[0]))
        assert unrecorded <= 3 * SERVERS * (full[0] + 3)
        panics = [line for line in c.crashes() if "PANIC" in line]
        if whole:
            assert all("No space left" in line for line in panics), panics
        else:
            # clients are told so, or that the call behind what cannot be handled has not happened
            assert "No space left on device" in c.log_text() and failures[DISK_FULL] + failures["OT001"] > 0
            assert not c.crashes(), c.crashes()
    finally:
        c.destroy()
        if os.path.exists(filler):
            os.unlink(filler)
        shutil.rmtree(aside, ignore_errors=True)


def _accepts(cluster):
    try:
        cluster.connect().close()
        return True
    except psycopg.OperationalError:
        return False


@pytest.mark.seconds(240)
def test_tables(small_disk, request):
    """No room for tables: 53100."""
    run(small_disk, request, whole=False)


@pytest.mark.long
def test_all(small_disk, request):
    """No room for the WAL either: PostgreSQL goes down, and comes back when there is room."""
    run(small_disk, request, whole=True)
