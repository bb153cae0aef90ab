"""A cluster as it was at any record of its WAL.

    recording = Recording(cluster)          # a base backup
    ...                                     # a load; then the cluster stops
    recording.end()
    recording.records                       # places where a record begins, in order
    with Walk(recording, place) as walk:    # a hot standby that has replayed all before that place
        walk.to(later)                      # and now all before this one
    with recording.crash_at(place) as c:    # a cluster that crashed there, and came up again
    with recording.recover_to(place, inclusive=True) as c:      # recovery_target_lsn, promoted

A walk's standby finds in pg_wal only what it is to replay, and looks again each
few milliseconds: so each step is an exact replay to one record's end, and
costs no restart.  A crash's cluster finds the WAL up to the place, and behind it
a part of the next record, as a crash leaves it."""

import os
import re
import subprocess

from build import give_to_server_user
from cluster import Cluster, wait_for

SEGMENT = 16 * 1024 * 1024
# of all clusters here: nothing of them is to outlive the machine
QUICK = {"fsync": "off", "shared_buffers": "16MB", "checkpoint_timeout": "1h"}


def place_of(text):
    high, low = text.split("/")
    return int(high, 16) << 32 | int(low, 16)


def text_of(place):
    return "%X/%X" % (place >> 32, place & 0xFFFFFFFF)


def segment_name(number):
    return "00000001%08X%08X" % (number // 256, number % 256)


class Recording:
    #: what the recorded cluster must be set to
    CONF = {**QUICK, "wal_keep_size": "4GB", "max_wal_size": "4GB", "wal_level": "replica"}

    def __init__(self, cluster):
        self.cluster = cluster
        self.directory = os.path.join(cluster.directory, "recording")
        self.base = os.path.join(self.directory, "base")
        os.makedirs(self.directory)
        give_to_server_user(self.directory)
        cluster.run("pg_basebackup", "-h", cluster.socket_dir, "-p", str(cluster.port), "-U", "postgres",
                    "-D", self.base, "-c", "fast", "-X", "none", "--no-sync")
        # from here on all is consistent
        self.begin = place_of(cluster.psql("SELECT pg_current_wal_insert_lsn()"))

    def end(self):
        """The cluster has stopped: all that it wrote."""
        self.wal = os.path.join(self.cluster.data, "pg_wal")
        dump = self.cluster.run("pg_waldump", "-p", self.wal, "-s", text_of(self.begin),
                                "-e", self._last_place())
        self.records, self.commits, kinds = [], [], set()
        for line in dump.splitlines():
            match = re.match(r"rmgr: (\w+)\s.*, lsn: ([0-9A-F]+/[0-9A-F]+), .*desc: (\w+)", line)
            if match:
                self.records.append(place_of(match.group(2)))
                kinds.add((match.group(1), match.group(3)))
                if match.group(1) == "Transaction" and match.group(3).startswith("COMMIT"):
                    self.commits.append(len(self.records) - 1)
        self.kinds = kinds

    def _last_place(self):
        return self.cluster.run("pg_controldata", "-D", self.cluster.data) \
            .split("Latest checkpoint location:")[1].split()[0]

    def write_wal(self, target, begin, end):
        """Gives a cluster the WAL from one place to another, and nothing behind it."""
        first = begin // SEGMENT
        for number in range(first, (max(end, 1) - 1) // SEGMENT + 1):
            name = segment_name(number)
            start = max(begin - number * SEGMENT, 0)
            stop = min(end - number * SEGMENT, SEGMENT)
            with open(os.path.join(self.wal, name), "rb") as f:
                f.seek(start)
                data = f.read(stop - start)
            path = os.path.join(target, name)
            new = not os.path.exists(path)
            # whole before it has its name
            with open(path + ".part" if new else path, "w+b" if new else "r+b") as f:
                if new:
                    f.truncate(SEGMENT)
                f.seek(start)
                f.write(data)
            if new:
                give_to_server_user(path + ".part")
                os.rename(path + ".part", path)

    def copy(self, name, conf):
        """A copy of the base, not started, without WAL."""
        settings = {**self.cluster.settings, **QUICK, **conf}
        other = Cluster(name, conf=settings, build=self.cluster.build)
        subprocess.run(["cp", "-a", "--reflink=auto", self.base, other.data], check=True)
        other.write_conf()
        return other

    def first_segment(self):
        """The first one that recovery of the base reads."""
        with open(os.path.join(self.base, "backup_label")) as f:
            return place_of(re.search(r"START WAL LOCATION: (\S+)", f.read()).group(1)) // SEGMENT * SEGMENT

    def crash_at(self, place, torn=0, conf=None):
        """A cluster that crashed when all before the place was on disk, and of what
        comes behind it so many bytes.  Its archive is a base backup, its recovery
        that of a crash: to the end of the WAL, on the same timeline."""
        other = self.copy("crashed", conf or {})
        self.write_wal(os.path.join(other.data, "pg_wal"), self.first_segment(), place + torn)
        return other

    def recover_to(self, place, inclusive, conf=None):
        """Recovered by recovery_target_lsn: the record that begins at the place is
        the last one, or the first one that did not happen."""
        return self.recover({"recovery_target_lsn": text_of(place), "recovery_target_inclusive": inclusive,
                             **(conf or {})})

    def recover(self, conf):
        """Recovered from the base and all WAL, to the target that conf has, and promoted."""
        # until it is promoted nobody is to connect
        other = self.copy("recovered", {"hot_standby": "off", "restore_command": "cp %s/%%f %%p" % self.wal,
                                        "recovery_target_action": "promote", **conf})
        signal = os.path.join(other.data, "recovery.signal")
        open(signal, "w").close()
        give_to_server_user(signal)
        return other


class Walk:
    def __init__(self, recording, place):
        self.recording = recording
        self.cluster = recording.copy("walk", {
            "hot_standby": "on", "wal_retrieve_retry_interval": "2ms", "recovery_prefetch": "off",
            "max_standby_archive_delay": "-1", "log_min_messages": "fatal"})
        self.pg_wal = os.path.join(self.cluster.data, "pg_wal")
        recording.write_wal(self.pg_wal, recording.first_segment(), place)
        self.place = place
        signal = os.path.join(self.cluster.data, "standby.signal")
        open(signal, "w").close()
        give_to_server_user(signal)

    def __enter__(self):
        self.cluster.start()
        self.conn = self.cluster.connect()
        return self

    def __exit__(self, *args):
        self.conn.close()
        self.cluster.__exit__(*args)

    def to(self, index):
        """Replays all records before that one."""
        records = self.recording.records
        place = records[index]
        if place > self.place:
            self.recording.write_wal(self.pg_wal, self.place, place)
            self.place = place
        last = records[index - 1]
        wait_for(lambda: self.conn.execute("SELECT pg_last_wal_replay_lsn() > %s::pg_lsn", (text_of(last),))
                 .fetchone()[0], 60, 0.001, "the standby does not replay the record at %s" % text_of(last))
        return self.conn
