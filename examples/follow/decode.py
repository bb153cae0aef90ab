"""Keeps a copy of all states of a module, by logical decoding.  psycopg 3.

    wal_level = logical                             # postgresql.conf, then restart

    python3 decode.py parcel                        # a line of JSON for each change

What a follower has to know of dgen's tables: a row of dgen.server is a server.  Its
column state is the state as of base_version; each row of dgen.patch is the way from one
version to the next, as dgen.jsonb_merge() understands it.  So the state is the base and
all patches behind base_version.  A state of less than 4 kB has no patches: then
base_version is version.  An UPDATE that leaves a large base alone comes without it.

It begins with the states as a snapshot has them, and goes on with the transactions that
are not in that snapshot: what each leaves of a server, once and in order.  A slot keeps
WAL for as long as nobody reads it: drop it when you are done (python3 decode.py parcel
--drop), and set max_slot_wal_keep_size.  It takes a superuser, and states are not masked.
"""
import json
import re
import struct
import sys
import time

import psycopg
from psycopg import sql

PUBLICATION = sql.SQL("""
    CREATE PUBLICATION {name} FOR TABLE
      dgen.server (server, version, base_version, state) WHERE (starts_with(server, {prefix})),
      dgen.patch (server, version, patch) WHERE (starts_with(server, {prefix}))""")

UNCHANGED = object()        # a value that is stored beside its row, and was not touched


class Message:
    """One message of plugin pgoutput, protocol version 1; see "Logical Replication Message
    Formats" in PostgreSQL's documentation."""

    def __init__(self, data):
        self.data, self.at = data, 0

    def take(self, form):
        values = struct.unpack_from(">" + form, self.data, self.at)
        self.at += struct.calcsize(">" + form)
        return values if len(values) > 1 else values[0]

    def text(self):
        end = self.data.index(b"\0", self.at)
        text = self.data[self.at:end].decode()
        self.at = end + 1
        return text

    def row(self):
        return [self.value() for _ in range(self.take("h"))]

    def value(self):
        kind = self.take("c")
        if kind != b"t":
            return UNCHANGED if kind == b"u" else None
        length = self.take("i")
        self.at += length
        return self.data[self.at - length:self.at].decode()


class Copy:
    def __init__(self, conn, module):
        self.conn, self.prefix = conn, module + "/"
        self.name = "dgen_follow_" + re.sub("[^a-z0-9]", "_", module)
        self.columns = {}           # of the tables, by their ids in the stream
        self.bases = {}             # server -> (version, state) of its base
        self.patches = {}           # server -> {version: patch}
        self.current = {}           # server -> version
        self.changed = []           # servers of the transaction that is decoded,
        self.known = False          # which was in the snapshot

    def begin(self):
        """Make publication and slot, unless they are there, and read what there is."""
        execute = self.conn.execute
        if not execute("SELECT 1 FROM pg_publication WHERE pubname = %s", (self.name,)).fetchone():
            execute(PUBLICATION.format(name=sql.Identifier(self.name), prefix=sql.Literal(self.prefix)))
        if not execute("SELECT 1 FROM pg_replication_slots WHERE slot_name = %s", (self.name,)).fetchone():
            execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", (self.name,))
        with self.conn.transaction():
            execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            snapshot, = execute("SELECT pg_current_snapshot()::text").fetchone()
            servers = execute("SELECT server, version, base_version, state::text FROM dgen.server"
                              " WHERE starts_with(server, %s)", (self.prefix,)).fetchall()
            patches = execute("SELECT server, version, patch::text FROM dgen.patch"
                              " WHERE starts_with(server, %s)", (self.prefix,)).fetchall()
        xmin, xmax, running = snapshot.split(":")
        self.snapshot = int(xmin), int(xmax), {int(xid) for xid in running.split(",") if xid}
        for server, version, base, state in servers:
            self.bases[server], self.current[server] = (base, state), version
        for server, version, patch in patches:
            self.patches.setdefault(server, {})[version] = patch
        return {server: self.state(server) for server in self.current}

    def in_snapshot(self, xid):
        xmin, xmax, running = self.snapshot
        # the stream has 32 bits of it; it is not far from xmax
        xid += (xmax - xid + (1 << 31)) >> 32 << 32
        return xid < xmin or (xid < xmax and xid not in running)

    def state(self, server):
        """The base and its patches, merged by the database."""
        base, state = self.bases[server]
        for version, patch in sorted(self.patches.get(server, {}).items()):
            if base < version <= self.current[server]:
                state, = self.conn.execute("SELECT dgen.jsonb_merge(%s, %s)::text", (state, patch)).fetchone()
        return self.current[server], state and json.loads(state)

    def drop(self):
        self.conn.execute("SELECT pg_drop_replication_slot(%s)", (self.name,))
        self.conn.execute(sql.SQL("DROP PUBLICATION {}").format(sql.Identifier(self.name)))

    # --- decoding

    def handle(self, data):
        """One message; the servers that changed, when a transaction is complete."""
        message = Message(data)
        kind = message.take("c")
        if kind == b"B":
            _, _, xid = message.take("qqI")
            self.known = self.in_snapshot(xid)
        elif kind == b"R":
            self.learn(message)
        elif kind in b"IUD" and not self.known:
            self.change(kind, message)
        elif kind == b"C":
            changed, self.changed = self.changed, []
            return changed
        return []

    def change(self, kind, message):
        names = self.columns[message.take("I")]
        old = new = None
        while message.at < len(message.data):
            if message.take("c") == b"N":
                new = dict(zip(names, message.row()))
            else:
                old = dict(zip(names, message.row()))
        self.apply(old or new, new)

    def learn(self, message):
        relation, _, _ = message.take("I"), message.text(), message.text()
        _, count = message.take("c"), message.take("h")
        names = []
        for _ in range(count):
            message.take("b")
            names.append(message.text())
            message.take("Ii")
        self.columns[relation] = names

    def apply(self, old, new):
        server = old["server"]
        if "base_version" not in old:       # dgen.patch; folded ones go
            patches = self.patches.setdefault(server, {})
            if new is None:
                patches.pop(int(old["version"]), None)
            else:
                patches[int(new["version"])] = new["patch"]
            return
        if new is None:
            for where in self.bases, self.current, self.patches:
                where.pop(server, None)
        else:
            if new["state"] is not UNCHANGED:
                self.bases[server] = int(new["base_version"]), new["state"]
            self.current[server] = int(new["version"])
        if server not in self.changed:
            self.changed.append(server)

    def changes(self):
        """(server, version, state) of all that has committed since; version None: deleted."""
        while True:
            now, = self.conn.execute("SELECT pg_current_wal_flush_lsn()").fetchone()
            rows = self.conn.execute(
                "SELECT lsn, data FROM pg_logical_slot_peek_binary_changes(%s, NULL, 1000,"
                " 'proto_version', '1', 'publication_names', %s)", (self.name, self.name)).fetchall()
            for _, data in rows:
                for server in self.handle(data):
                    yield (server, *(self.state(server) if server in self.current else (None, None)))
            # only now: a follower that dies before would have missed them.  Without rows
            # too, or the WAL of others would be kept
            self.conn.execute("SELECT pg_replication_slot_advance(%s, %s)", (self.name, rows[-1][0] if rows else now))
            if not rows:
                return


def main():
    with psycopg.connect(autocommit=True) as conn:
        copy = Copy(conn, sys.argv[1])
        if "--drop" in sys.argv:
            copy.drop()
            return
        for server, (version, state) in copy.begin().items():
            print(json.dumps([server, version, state]), flush=True)
        while True:
            for change in copy.changes():
                print(json.dumps(change), flush=True)
            time.sleep(1)


if __name__ == "__main__":
    main()
