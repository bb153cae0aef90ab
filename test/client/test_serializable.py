"""Histories of calls, casts, requests, invokes and queries by several clients,
with kills among them, in each of which every transaction appends unique elements
to lists and reads lists: those in servers' states and those of a plain table.
test/lib/cycles.py says whether there is an order that explains what was seen."""

import collections
import itertools
import json
import random
import time

import psycopg
import pytest

from cluster import wait_for
from common import (Client, Killer, connect_again, in_threads, rounds_of, seed_of, value,
                    wait_idle)
from cycles import Transaction, check

CLIENTS = 6

# A message is {"ops": [...], "txn": its number}; who runs one with a number, from
# within no other handler, records what it did.
LISTS = """
CREATE TABLE cell (key text PRIMARY KEY, list jsonb NOT NULL);
CREATE SEQUENCE step;
CREATE TABLE done (txn int, began bigint, ended bigint DEFAULT nextval('step'),
                   xid xid8 DEFAULT pg_current_xact_id(), snapshot pg_snapshot DEFAULT pg_current_snapshot(),
                   pid int DEFAULT pg_backend_pid(), did jsonb);
CREATE SCHEMA lists;
CREATE FUNCTION lists.init(args jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT '{"l": []}'::jsonb $$;
CREATE FUNCTION lists.did(what text, key text, value jsonb, how text = NULL) RETURNS jsonb LANGUAGE sql AS $$
    SELECT jsonb_build_array(jsonb_build_array(what, key, value, how, nextval('public.step')))
$$;
CREATE FUNCTION lists.outside(op jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
    name text := op->>1;
BEGIN
    CASE op->>0
        WHEN 'cell append' THEN
            UPDATE public.cell SET list = list || (op->2) WHERE key = name;
            RETURN lists.did('append', name, op->2);
        WHEN 'cell' THEN
            RETURN lists.did('read', name, (SELECT list FROM public.cell WHERE key = name), op->>0);
        WHEN 'state' THEN
            RETURN lists.did('read', name, dgen.state(name)->'l', op->>0);
        WHEN 'query' THEN
            RETURN lists.did('read', name, dgen.query(name, 'null'), op->>0);
        WHEN 'view' THEN
            RETURN lists.did('read', name, (SELECT attributes->'l' FROM lists.servers WHERE server = name),
                             op->>0);
        WHEN 'call' THEN
            RETURN dgen.call(name, jsonb_build_object('ops', op->2));
        WHEN 'cast' THEN
            PERFORM dgen.cast(name, op->2, priority => (op->>3)::int);
        WHEN 'undone' THEN
            BEGIN
                PERFORM lists.outside(o) FROM jsonb_array_elements(op->2) o;
                RAISE EXCEPTION 'undone';
            EXCEPTION WHEN raise_exception THEN NULL;
            END;
        WHEN 'fail' THEN
            IF random() < (op->>1)::float8 THEN
                RAISE EXCEPTION 'planned';
            END IF;
    END CASE;
    RETURN '[]';
END $$;
CREATE FUNCTION lists.run(m jsonb, INOUT state jsonb, OUT did jsonb) LANGUAGE plpgsql AS $$
DECLARE
    op jsonb;
    began bigint := nextval('public.step');
BEGIN
    did := '[]';
    FOR op IN SELECT jsonb_array_elements(m->'ops') LOOP
        IF op->>0 = 'append' THEN
            state := jsonb_set(state, '{l}', (state->'l') || (op->1));
            did := did || jsonb_build_array(jsonb_build_array('append', dgen.self(), op->1));
        ELSIF op->>0 = 'read' THEN
            did := did || jsonb_build_array(jsonb_build_array('read', dgen.self(), state->'l'));
        ELSE
            did := did || lists.outside(op);
        END IF;
    END LOOP;
    -- the server has its new state for others when its handler has ended
    SELECT coalesce(jsonb_agg(CASE jsonb_array_length(o) WHEN 3
                              THEN o || jsonb_build_array(null, nextval('public.step')) ELSE o END ORDER BY n), '[]')
    INTO did FROM jsonb_array_elements(did) WITH ORDINALITY e (o, n);
    IF m ? 'txn' THEN
        INSERT INTO public.done (txn, began, did) VALUES ((m->>'txn')::int, began, did);
    END IF;
END $$;
CREATE FUNCTION lists.handle_call(request jsonb, INOUT state jsonb, OUT reply jsonb)
LANGUAGE plpgsql AS $$ BEGIN SELECT r.state, r.did INTO state, reply FROM lists.run(request, state) r; END $$;
CREATE FUNCTION lists.handle_cast(message jsonb, INOUT state jsonb)
LANGUAGE plpgsql AS $$ BEGIN SELECT r.state INTO state FROM lists.run(message, state) r; END $$;
CREATE FUNCTION lists.handle_query(query jsonb, state jsonb) RETURNS jsonb
LANGUAGE sql AS $$ SELECT state->'l' $$;
CREATE FUNCTION lists.attributes(state jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT state $$;
SELECT dgen.create_module('lists', max_attempts => 1000, backoff_initial => '1 ms', backoff_factor => 1);
"""

READS = {"cell": "(SELECT list FROM cell WHERE key = %s)", "state": "dgen.state(%s)->'l'",
         "query": "dgen.query(%s, 'null')",
         "view": "(SELECT attributes->'l' FROM lists.servers WHERE server = %s)"}

# of calls and the like: it did not happen
REFUSED = ("OT001", "OT015", "OT017", "OT020", "OT010", "P0001", "40001", "40P01", "55000")


class Run:
    """What is known of one history while it is made."""

    def __init__(self, number, seed, operations):
        self.number = number
        self.seed = seed
        chance = random.Random(seed)
        self.servers = ["lists/%d-%d" % (number, n) for n in range(chance.randrange(1, 5))]
        self.cells = ["%d-%d" % (number, n) for n in range(chance.randrange(1, 3))]
        self.kills = chance.choice((0, 1, 1, 2))
        # with few workers a transaction has activations of several servers
        self.workers = chance.choice((1, 2, 4))
        self.operations = operations
        self.begun = 0
        self.ids = itertools.count(1)
        self.elements = itertools.count(1)
        self.transactions = {}
        self.parent = {}                # of what handlers cast: by whose activation
        self.by_handlers = []           # (sending server, its activation, to, lane, cast or activation)
        self.queues = collections.defaultdict(list)
        self.orders = []
        self.aborted = []
        self.together = []              # casts of one transaction: all or none
        self.replies = {}
        self.killed = []
        self.kinds = collections.Counter()

    def new(self, **more):
        t = Transaction(next(self.ids), **more)
        self.transactions[t.id] = t
        return t

    def begin(self):
        """May another operation begin?"""
        self.begun += 1
        return self.begun <= self.operations


class Planner:
    """Makes up what messages say."""

    def __init__(self, run, chance):
        self.run = run
        self.chance = chance
        # in one transaction no call follows a cast to the same server: OT010
        self.cast_to = set()

    def element(self, aborted=False):
        e = next(self.run.elements)
        if aborted:
            self.run.aborted.append(e)
        return e

    def ops(self, servers, depth=0, aborted=False):
        """For a handler; servers: those that it may call and read."""
        if depth == 0 and self.chance.random() < 0.25:
            return self.half_of_a_skew(servers, aborted)
        ops = []
        for _ in range(self.chance.choice((1, 1, 2, 3))):
            ops += self.one(servers, depth, aborted)
        return ops

    def half_of_a_skew(self, servers, aborted):
        """Reads what another such one appends to, and appends to what that reads."""
        cell = self.chance.choice(self.run.cells)
        kinds = [[["read"], ["cell append", cell, self.element(aborted)]],
                 [["cell", cell], ["append", self.element(aborted)]]]
        if servers:
            server = self.chance.choice(servers)
            kinds += [[["cell", cell], ["call", server, [["append", self.element(aborted)]]]],
                      [[self.chance.choice(("state", "query", "view")), server], ["append", self.element(aborted)]]]
        return self.chance.choice(kinds)

    def one(self, servers, depth, aborted):
        p = self.chance.random()
        if p < 0.35:
            return [["append", self.element(aborted)]]
        if p < 0.5:
            return [["read"]]
        return [self.outside(servers, depth, aborted)]

    def outside(self, servers, depth, aborted):
        """What handlers and clients can do alike."""
        p = self.chance.random()
        cell = self.chance.choice(self.run.cells)
        if p < 0.1:
            return ["cell append", cell, self.element(aborted)]
        if p < 0.25 or not servers:
            return ["cell", cell]
        server = self.chance.choice(servers)
        if p < 0.65:
            return [self.chance.choice(("state", "query", "view")), server]
        may_call = depth < 2 and server not in self.cast_to
        if p < 0.85 and may_call:
            rest = [s for s in servers if s != server]
            return ["call", server, self.ops(rest, depth + 1, aborted)]
        if p < 0.92 and may_call and not aborted:
            return ["undone", None, [self.outside(servers, 2, True) for _ in range(2)]
                    + [["call", server, self.ops([], 2, True)]]]
        if depth < 2 and not aborted:
            return self.cast(server)
        return ["state", server]

    def cast(self, server):
        """One that a handler sends."""
        t = self.run.new(expected="unknown")
        lane = self.chance.choice((0, 0, 0, 1, -1))
        self.cast_to.add(server)
        others = [s for s in self.run.servers if s != server]
        return ["cast", server, {"ops": self.ops(others, 2), "txn": t.id}, lane]

    def message(self, server, **more):
        """For a server, as one transaction."""
        t = self.run.new(**more)
        self.cast_to.clear()
        ops = self.ops([s for s in self.run.servers if s != server])
        if self.chance.random() < 0.06:
            ops.insert(self.chance.randrange(len(ops) + 1), ["fail", 0.4])
        self.note_casts(server, t.id, ops)
        return t, {"ops": ops, "txn": t.id}

    def note_casts(self, server, parent, ops):
        """What handlers send, in their order; calls have a place in it, too."""
        note = self.run.by_handlers.append
        for op in ops:
            if op[0] == "cast":
                id = op[2]["txn"]
                self.run.parent[id] = parent
                self.run.transactions[id].about.append("cast %s lane %d by server %s in T%d" % (
                    op[1], op[3], server, parent))
                note((server, parent, op[1], op[3], id))
                self.note_casts(op[1], id, op[2]["ops"])
            elif op[0] == "call":
                note((server, parent, op[1], 0, parent))
                self.note_casts(op[1], parent, op[2])


class Session:
    """One client; a lost connection makes it another sender."""

    def __init__(self, run, cluster, number):
        self.run = run
        self.number = number
        self.chance = random.Random("%d %d" % (run.seed, number))
        self.planner = Planner(run, self.chance)
        self.client = Client(cluster)
        self.connections = 0
        self.last = {}                  # mailbox: what this connection sent to it last

    def work(self):
        kinds = (self.call, self.call, self.call, self.call_until_known, self.cast, self.cast, self.cast,
                 self.cast_until_known, self.casts_of_transaction, self.request, self.transaction,
                 self.transaction, self.look, self.look, self.read_transaction, self.burst)
        while self.run.begin():
            kind = self.chance.choice(kinds)
            self.run.kinds[kind.__name__] += 1
            kind()
        self.client.close()

    def execute(self, query, *parameters):
        """(True, value); (False, None): it did not happen; (None, None): nobody knows."""
        try:
            if self.client.conn is None:
                self.last.clear()
                conn = self.client.cluster.connect()
                conn.execute("SET client_min_messages = error; SET dgen.call_in_transaction = allow")
                # a message whose doorbell is lost is found in a second
                if self.chance.random() < 0.1:
                    conn.execute("SET dgen.drop_doorbells = on")
                self.client.conn = conn
                self.connections += 1
            return True, value(self.client.conn, query, *parameters)
        except psycopg.Error as e:
            if e.sqlstate in REFUSED:
                return False, None
            if e.sqlstate == "OT002":
                return None, None
            if e.sqlstate is not None and not e.sqlstate.startswith("57P0"):
                raise
            new = self.client.conn is None
            self.client.close()
            time.sleep(0.02)
            return False if new else None, None

    def server(self):
        return self.chance.choice(self.run.servers)

    # --- what is sent to one server

    def about(self, t, what, *more):
        """What explains an anomaly that it may be in."""
        t.about.append(" ".join(map(str, (what, *more, "by connection", self.connections, "of client", self.number,
                                          "at %.4f to %.4f" % (t.begin, time.monotonic())))))

    def sends(self, t, server, lane, begin, end):
        """It has its place in a mailbox: behind what this client sent, or anybody."""
        mailbox = (server, lane)
        self.run.queues[mailbox].append((begin, end, t.id))
        if mailbox in self.last:
            self.run.orders.append((self.last[mailbox], t.id, "sender"))
        self.last[mailbox] = t.id

    def ended(self, t, answer):
        done, reply = answer
        t.expected = {True: "ok", False: "failed", None: "unknown"}[done]
        if done:
            t.end = time.monotonic()
            self.run.replies[t.id] = reply
        return done

    def call(self):
        server = self.server()
        t, message = self.planner.message(server, begin=time.monotonic())
        sent = self.execute("SELECT dgen.call(%s, %s::jsonb, '20 s')", server, json.dumps(message))
        self.about(t, "call", server)
        if self.ended(t, sent):
            self.sends(t, server, 0, t.begin, None)

    def call_until_known(self):
        """Again and again with the same key, until there is a reply."""
        server = self.server()
        t, message = self.planner.message(server, begin=time.monotonic())
        for _ in range(100):
            sent = self.execute("SELECT dgen.call(%s, %s::jsonb, '20 s', request_key => %s)", server,
                                json.dumps(message), "txn %d" % t.id)
            if sent[0]:
                break
            time.sleep(0.01)
        self.about(t, "call with a key", server)
        self.ended(t, sent)

    def cast(self):
        server = self.server()
        t, message = self.planner.message(server, begin=time.monotonic())
        self.send_cast(t, server, self.chance.choice((0, 0, 0, 1, -1)), message)

    def cast_until_known(self):
        """Again and again with the same dedup_key, until it is said to be there."""
        server = self.server()
        t, message = self.planner.message(server, begin=time.monotonic())
        for _ in range(100):
            done, _ = self.execute("SELECT dgen.cast(%s, %s::jsonb, dedup_key => %s)",
                                   server, json.dumps(message), "txn %d" % t.id)
            if done:
                break
            time.sleep(0.05)
        self.about(t, "cast with a key", server)
        t.expected = "ok" if done else "unknown"
        if done:
            # it may have its place by an earlier attempt
            self.run.queues[server, 0].append((t.begin, time.monotonic(), t.id))

    def burst(self):
        """Casts to one server, some of which fail at first; then perhaps an invoke of it."""
        server = self.server()
        for _ in range(self.chance.randrange(2, 5)):
            t = self.run.new(begin=time.monotonic())
            message = {"ops": [["append", self.planner.element()], ["fail", self.chance.choice((0, 0, 0.5))]],
                       "txn": t.id}
            self.send_cast(t, server, 0, message)
        if self.chance.random() < 0.7:
            self.transaction(server)

    def send_cast(self, t, server, lane, message):
        done, id = self.execute("SELECT dgen.cast(%s, %s::jsonb, priority => %s)",
                                server, json.dumps(message), lane)
        self.about(t, "cast", server, "lane", lane, "id", id)
        t.expected = {True: "ok", False: "failed", None: "unknown"}[done]
        if done:
            self.sends(t, server, lane, t.begin, time.monotonic())

    def request(self):
        server = self.server()
        t, message = self.planner.message(server, begin=time.monotonic())
        done, id = self.execute("SELECT dgen.send_request(%s, %s::jsonb)", server, json.dumps(message))
        self.about(t, "request", server, "id", id)
        t.expected = {True: "ok", False: "failed", None: "unknown"}[done]
        if not done:
            return
        self.sends(t, server, 0, t.begin, time.monotonic())
        done, reply = self.execute("SELECT dgen.wait_response(%s)", id)
        if done:
            t.end = time.monotonic()
            self.run.replies[t.id] = reply

    # --- transactions of the client

    def casts_of_transaction(self):
        """Several casts, which commit, roll back, or are prepared first."""
        sent, begin = [], time.monotonic()
        done, _ = self.execute("BEGIN")
        for _ in range(self.chance.randrange(1, 4)):
            server, lane = self.server(), self.chance.choice((0, 0, 1))
            at = time.monotonic()
            t, message = self.planner.message(server, begin=at)
            sent.append((t, server, lane, at))
            done = done and self.execute("SELECT dgen.cast(%s, %s::jsonb, priority => %s)",
                                         server, json.dumps(message), lane)[0]
        how = self.chance.choice(("commit", "commit", "prepare", "rollback"))
        if done and how == "prepare":
            name = "%d %d" % (self.run.number, sent[0][0].id)
            done = self.prepared(name)
        elif how == "rollback" or not done:
            self.execute("ROLLBACK")
            done = False
        else:
            done, _ = self.execute("COMMIT")
        end = time.monotonic()
        for t, server, lane, at in sent:
            t.expected = {True: "ok", False: "failed", None: "unknown"}[done]
            self.about(t, "cast in a transaction", server, "lane", lane, how)
            if done:
                self.sends(t, server, lane, at, end)
        self.run.together.append([t.id for t, *_ in sent])

    def prepared(self, name):
        done, _ = self.execute("PREPARE TRANSACTION '%s'" % name)
        if done is None:
            return None                 # whoever ends the history settles it
        if self.chance.random() < 0.5:
            time.sleep(self.chance.random() / 50)
        return None if self.execute("COMMIT PREPARED '%s'" % name)[0] is not True else True

    def transaction(self, first=None):
        """A serializable one: invokes and what else handlers do, in savepoints too."""
        t = self.run.new(begin=time.monotonic())
        t.expected, did = "failed", []
        self.planner.cast_to.clear()
        hopeless = self.chance.random() < 0.15
        if not self.execute("BEGIN ISOLATION LEVEL SERIALIZABLE")[0]:
            return
        done, began = self.execute("SELECT nextval('step')")
        if not done:
            self.execute("ROLLBACK")
            return
        invoked = []
        for _ in range(self.chance.randrange(1, 4)):
            op, aborted = self.step(t, hopeless, first)
            first = None
            done = self.step_done(op, did, aborted, invoked)
            if not done:
                self.execute("ROLLBACK")
                return
        if not self.execute("INSERT INTO done (txn, began, did) VALUES (%s, %s, %s::jsonb) RETURNING txn",
                            t.id, began, json.dumps(did))[0]:
            self.execute("ROLLBACK")
            return
        if hopeless:
            self.execute("ROLLBACK")
            return
        done, _ = self.execute("COMMIT")
        self.about(t, "transaction, invoked", *invoked)
        if self.ended(t, (done, did)):
            # behind this session's own casts, whoever's else it passes
            for server in invoked:
                if (server, 0) in self.last:
                    self.run.orders.append((self.last[server, 0], t.id, "sender"))

    def step(self, t, hopeless, server):
        aborted = self.chance.random() < 0.15
        p = 0 if server else self.chance.random()
        server = server or self.server()
        others = [s for s in self.run.servers if s != server]
        if p < 0.6:
            op = ["invoke", server, self.planner.ops(others, 0, aborted or hopeless)]
            self.planner.note_casts(server, t.id, op[2])
        else:
            op = self.planner.outside(self.run.servers, 3, aborted or hopeless)
        return op, aborted

    def step_done(self, op, did, aborted, invoked):
        if aborted and not self.execute("SAVEPOINT here")[0]:
            return False
        if op[0] == "invoke":
            done, it = self.execute("SELECT dgen.invoke(%s, %s::jsonb)", op[1], json.dumps({"ops": op[2]}))
            if done and not aborted:
                invoked.append(op[1])
        else:
            done, it = self.execute("SELECT lists.outside(%s::jsonb)", json.dumps(op))
        if done and aborted:
            return self.execute("ROLLBACK TO here")[0]
        if done:
            did += it
        return done

    # --- reads

    def some_reads(self):
        reads = []
        for _ in range(self.chance.choice((1, 1, 2, 3))):
            kind = self.chance.choice(sorted(READS))
            reads.append((kind, self.chance.choice(self.run.cells) if kind == "cell" else self.server()))
        return reads

    def look(self):
        """One statement at READ COMMITTED: one snapshot, of any of the lists."""
        reads = self.some_reads()
        t = self.run.new(begin=time.monotonic(), expected="unknown", snapshot=True)
        done, lists = self.execute("SELECT jsonb_build_array(%s)" % ", ".join(READS[kind] for kind, _ in reads),
                                   *[key for _, key in reads])
        self.about(t, "query")
        if done:
            t.expected, t.end = "ok", time.monotonic()
            t.records = [[("read", key, l, kind) for (kind, key), l in zip(reads, lists)]]

    def read_transaction(self):
        """Several statements, in a transaction that PostgreSQL guards."""
        t = self.run.new(begin=time.monotonic(), expected="unknown")
        done, _ = self.execute("BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY")
        did = []
        for kind, key in self.some_reads():
            if done:
                done, l = self.execute("SELECT " + READS[kind], key)
                did.append(("read", key, l, kind))
        if done:
            done, _ = self.execute("COMMIT")
        else:
            self.execute("ROLLBACK")
        self.about(t, "transaction")
        if done:
            t.expected, t.end, t.records = "ok", time.monotonic(), [did]


# --- a history from beginning to end

def prepare(conn, run):
    conn.execute("TRUNCATE done, cell")
    for cell in run.cells:
        conn.execute("INSERT INTO cell VALUES (%s, '[]')", (cell,))
    for server in run.servers:
        conn.execute("SELECT dgen.start(%s)", (server,))


def kill_now_and_then(cluster, run):
    """As often as the history says, spread over it."""
    killer = Killer(cluster, run.seed)
    for n in range(run.kills):
        at = run.operations * (n + 1) // (run.kills + 1)
        wait_for(lambda: run.begun >= at, 120, interval=0.01)
        try:
            killer.once(pause=0)
        except AssertionError:
            # all clients are done, and gone
            if run.begun < run.operations:
                raise
    run.killed = killer.told


def settle(conn):
    for (gid,) in conn.execute("SELECT gid FROM pg_prepared_xacts").fetchall():
        conn.execute("ROLLBACK PREPARED '%s'" % gid)
    wait_idle(conn, 60)


def orders_of_handlers(run, committed, final):
    """What an activation sends comes after it; and what a server sends to another keeps
    the order of its activations, which its list tells of those that appended to it."""
    for child, parent in run.parent.items():
        yield parent, child, "message"
    places = {}
    for server in run.servers:
        for n, element in enumerate(final[server]):
            places.setdefault((server, committed.get(element)), n)
    sent = collections.defaultdict(list)
    for n, (server, parent, to, lane, id) in enumerate(run.by_handlers):
        if (server, parent) in places:
            sent[server, to, lane].append((places[server, parent], n, id))
    for them in sent.values():
        them.sort()
        for (_, _, a), (_, _, b) in zip(them, them[1:]):
            yield a, b, "sender"


# Who invokes a server handles his own messages to it first, in the middle of what he does.
DONE = """
SELECT d.txn, d.did, (SELECT o.txn FROM done o WHERE o.xid = d.xid AND o.began < d.began AND o.ended > d.ended
                      ORDER BY o.began DESC LIMIT 1),
       format('steps %s to %s of transaction %s in process %s with snapshot %s', began, ended, xid, pid, snapshot)
FROM done d"""


def anomalies_of(conn, run):
    records = collections.defaultdict(list)
    for txn, did, within, about in conn.execute(DONE).fetchall():
        records[txn].append([tuple(op) for op in did])
        run.transactions[txn].within = within
        run.transactions[txn].about.append(about)
    final = {s: value(conn, "SELECT dgen.state(%s)->'l'", s) for s in run.servers}
    final.update(conn.execute("SELECT key, list FROM cell").fetchall())
    all = run.transactions
    for t in all.values():
        t.records = records.pop(t.id, None) or t.records
    assert not records, "from nowhere: %s" % records
    # what a handler sends is there if and only if its activation is
    for child, parent in run.parent.items():
        all[child].expected = "ok" if all[parent].records else "failed"
    committed = {op[2]: t.id for t in all.values() if t.records for op in t.records[0] if op[0] == "append"}
    orders = run.orders + list(orders_of_handlers(run, committed, final))
    found = check(all.values(), final, run.aborted, orders, run.queues)
    for t in all.values():
        if t.id in run.replies and t.records and run.replies[t.id] != [list(op) for op in t.records[0]]:
            found.append("wrong reply: %s was told %s" % (t, run.replies[t.id]))
    for ids in run.together:
        if len({bool(all[id].records) for id in ids}) > 1:
            found.append("half a transaction: only some of the casts %s were handled" % ids)
    return found


def one_history(cluster, number, seed, operations):
    run = Run(number, seed, operations)
    cluster.configure({"dgen.max_workers": run.workers})
    cluster.reload()
    with connect_again(cluster) as conn:
        prepare(conn, run)
    sessions = [Session(run, cluster, n) for n in range(CLIENTS)]
    in_threads([s.work for s in sessions] + [lambda: kill_now_and_then(cluster, run)], timeout=300)
    with connect_again(cluster) as conn:
        settle(conn)
        found = anomalies_of(conn, run)
        letters = conn.execute("SELECT server, kind, attempts, message, error FROM dgen.letter").fetchall()
        assert not letters, letters
    committed = sum(bool(t.records) for t in run.transactions.values())
    print("history %d, seed %d: %d servers, %d workers, %d transactions, %d committed, killed: %s" % (
        number, seed, len(run.servers), run.workers, len(run.transactions), committed, ", ".join(run.killed) or "none"))
    assert not found, "\n".join(map(str, found[:10]))
    return run


def histories(cluster, seed, number, operations):
    """Deadlocks are part of it: the detector is to look for them at once."""
    cluster.configure(deadlock_timeout="20ms")
    cluster.reload()
    cluster.psql("CREATE EXTENSION dgen")
    cluster.psql(LISTS)
    kinds = collections.Counter()
    transactions = committed = kills = 0
    for n in range(number):
        run = one_history(cluster, n, seed + n, operations)
        kinds += run.kinds
        transactions += len(run.transactions)
        committed += sum(bool(t.records) for t in run.transactions.values())
        kills += len(run.killed)
    print("%d histories, %d transactions, %d committed, %d kills; %s" % (
        number, transactions, committed, kills, dict(kinds)))


@pytest.mark.seconds(300)
def test_histories(cluster, request):
    histories(cluster, seed_of(request), rounds_of(4), 400)


@pytest.mark.long
def test_histories_long(cluster, request):
    histories(cluster, seed_of(request), rounds_of(200), 1000)
