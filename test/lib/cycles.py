"""Looks for what cannot have happened in a history of transactions that
append unique elements to lists, and read lists: Elle's method.

A list tells in which order its elements were appended, and a read of it which
of them it saw.  From that follow edges between transactions:

    ww        appended right after the other's element
    wr        read a list whose last element is the other's
    rw        read a list before the other appended to it
    message   was sent by the other
    sender    sent after the other, by one sender to one server
    mailbox   sent to the same server after the other's send was acknowledged
    time      began after the other was acknowledged

If there is an order of all transactions that explains everything, the graph
has no cycle.  Transactions are serializable, unless they say that they read
one snapshot and nothing else (a query by itself, which PostgreSQL does not
guard): of these is asked that all commits can be put in an order in which each
snapshot is a moment not before the reader began.

An anomaly has Adya's name where there is one.
"""

import collections

import networkx

DATA = ("ww", "wr", "rw")
ORDER = ("message", "sender", "mailbox")


class Anomaly(collections.namedtuple("Anomaly", "name text transactions")):
    def __str__(self):
        return "%s: %s" % (self.name, self.text)


class Transaction:
    """expected: what is known to whoever asked for it: 'ok', 'failed' or 'unknown'.
    records: what it did, for each time that it committed: a list of
    ('append', key, element) and ('read', key, list), in order; what follows says
    how, and as the last, where it is part of another, its place among what that did.
    begin, end: when it was asked for, and acknowledged, or None.
    within: the transaction in the middle of which, and as part of which, it ran.
    about: what else may explain an anomaly, for who reads of it."""

    def __init__(self, id, expected="ok", records=(), begin=None, end=None, snapshot=False, within=None):
        self.id = id
        self.within = within
        self.about = []
        self.expected = expected
        self.records = list(records)
        self.begin = begin
        self.end = end
        self.snapshot = snapshot

    def __str__(self):
        def shown(op):
            if op[0] == "append":
                return "append %s %s" % op[1:3]
            last = op[2][-3:]
            return "read %s [%s%s]%s" % (op[1], "..." if len(op[2]) > 3 else "", " ".join(map(str, last)),
                                         " by %s" % op[3] if len(op) > 3 and op[3] else "")
        return "%sT%s(%s)" % ("snapshot " if self.snapshot else "", self.id,
                              ", ".join(map(shown, self.records[0] if self.records else ())))


class History:
    """final: {key: list} as all of it ended.  aborted: elements whose append was
    undone.  orders: (id, id, kind) known otherwise, kind one of ORDER.  queues:
    {mailbox: [(sent, acknowledged or None, id)]}."""

    def __init__(self, transactions, final, aborted=(), orders=(), queues=None):
        self.all = {t.id: t for t in transactions}
        self.final = final
        self.aborted = set(aborted)
        self.orders = orders
        self.queues = queues or {}
        self.anomalies = []
        self.committed = {}             # id: its operations
        self.writer = {}                # element: id
        self.place = {}                 # (key, element): index
        self.reads = []                 # (id, key, how many elements of others it saw)

    def tell(self, name, text, *ids):
        self.anomalies.append(Anomaly(name, text, ids))

    def check(self):
        self.check_ends()
        self.check_elements()
        self.check_reads()
        if not any(a.name in ("duplicate element", "incompatible order") for a in self.anomalies):
            self.check_cycles()
        return self.anomalies

    # --- single transactions

    def check_ends(self):
        for t in self.all.values():
            if len(t.records) > 1:
                self.tell("done twice", "%s committed %d times" % (t, len(t.records)), t.id)
            if t.expected == "ok" and not t.records:
                self.tell("lost transaction", "T%s was acknowledged, and did not happen" % t.id, t.id)
            if t.expected == "failed" and t.records:
                self.tell("failed, and yet done", "%s was said not to have happened" % t, t.id)
            if t.records:
                self.committed[t.id] = t.records[0]
        # what ran within another is part of it
        parts = collections.defaultdict(list)
        for id in list(self.committed):
            if self.root(id) != id:
                parts[self.root(id)] += self.committed.pop(id)
        for id, ops in parts.items():
            self.committed[id] = sorted(self.committed[id] + ops, key=lambda op: op[-1])

    def root(self, id):
        while not isinstance(id, tuple) and self.all[id].within is not None:
            id = self.all[id].within
        return id

    def check_elements(self):
        for id, ops in self.committed.items():
            for op in ops:
                if op[0] == "append":
                    self.writer[op[2]] = id
        for key, elements in self.final.items():
            for n, element in enumerate(elements):
                if (key, element) in self.place:
                    self.tell("duplicate element", "%s has %s twice" % (key, element),
                              self.writer.get(element))
                self.place[key, element] = n
                if element not in self.writer:
                    self.nobodys(key, element, "the final %s" % key)
        for id, ops in self.committed.items():
            for op in ops:
                if op[0] == "append" and (op[1], op[2]) not in self.place:
                    self.lost(id, op[1], op[2])

    def nobodys(self, key, element, where, *ids):
        if element in self.aborted:
            self.tell("G1a", "aborted read: %s has %s, whose append was undone" % (where, element), *ids)
        else:
            self.tell("element from nowhere", "%s has %s, which nobody appended" % (where, element), *ids)

    def lost(self, id, key, element):
        """A lost append; a lost update, if what it read was then appended to by another."""
        for op in self.committed[id]:
            if op[:2] == ("read", key) and element not in op[2]:
                n = len(op[2])
                if self.final.get(key, [])[:n] == op[2] and n < len(self.final[key]):
                    other = self.writer.get(self.final[key][n])
                    self.tell("lost update", "%s and %s read the same %s, and the first's append is lost"
                              % (self.all[id], self.all.get(other), key), id, other)
                    return
        self.tell("lost append", "%s committed, and %s has no %s" % (self.all[id], key, element), id)

    def check_reads(self):
        for id, ops in self.committed.items():
            mine = collections.defaultdict(list)
            before = {}
            for op in ops:
                key = op[1]
                if op[0] == "append":
                    mine[key].append(op[2])
                    continue
                seen = list(op[2])
                own = mine[key]
                if own and seen[-len(own):] != own:
                    self.tell("internal", "%s does not see its own appends to %s" % (self.all[id], key), id)
                    continue
                outer = seen[:len(seen) - len(own)]
                if before.setdefault(key, outer) != outer:
                    self.tell("internal", "%s reads %s twice, and not the same" % (self.all[id], key), id)
                if self.is_possible(id, key, outer, seen):
                    self.reads.append((id, key, len(outer)))

    def is_possible(self, id, key, outer, seen):
        """May a read be taken for one of a state that there was?"""
        strange = [e for e in outer if e not in self.writer]
        for element in strange:
            self.nobodys(key, element, "what T%s reads of %s" % (id, key), id)
        if strange or any((key, e) not in self.place for e in seen):
            return False
        order = self.final.get(key, [])
        if order[:len(seen)] != seen:
            self.tell("incompatible order", "%s, but %s ends as %s" % (self.all[id], key, order), id)
            return False
        # the last must be the last that its writer appended there in a row
        if 0 < len(outer) < len(order):
            writer = self.writer[outer[-1]]
            if writer != id and self.writer.get(order[len(outer)]) == writer:
                self.tell("G1b", "intermediate read: %s sees some of what %s appended"
                          % (self.all[id], self.all[writer]), id, writer)
        return True

    # --- the graph

    def data_edges(self):
        for key, order in self.final.items():
            writers = [self.writer.get(e) for e in order]
            for a, b in zip(writers, writers[1:]):
                if None not in (a, b):
                    yield a, b, "ww"
        for id, key, n in self.reads:
            order = self.final.get(key, [])
            if n > 0:
                yield self.writer[order[n - 1]], id, "wr"
            # the next that is another's
            while n < len(order) and self.writer.get(order[n]) == id:
                n += 1
            if n < len(order) and order[n] in self.writer:
                yield id, self.writer[order[n]], "rw"

    def order_edges(self):
        yield from self.orders
        for queue, sent in self.queues.items():
            # what ran within another has left the mailbox with that
            yield from barriers(queue, [s for s in sent if self.root(s[2]) == s[2]], "mailbox")
        yield from barriers("time", [(t.begin, t.end, t.id) for t in self.all.values()
                                     if t.begin is not None], "time")

    def graph(self, snapshots):
        """Of the serializable transactions; or of all, and commits and snapshots."""
        graph = networkx.DiGraph()

        def is_in(node):
            return isinstance(node, tuple) or (
                node in self.committed and (snapshots or not self.all[node].snapshot))
        for edges in (self.data_edges(), self.order_edges()):
            # of several edges between two, the one that says least
            for a, b, kind in sorted(edges, key=lambda e: DATA.index(e[2]) if e[2] in DATA else 3):
                of = a, b
                a, b = self.root(a), self.root(b)
                if a == b or not is_in(a) or not is_in(b):
                    continue
                if snapshots and kind == "rw" and not self.all[a].snapshot:
                    continue
                if not graph.has_edge(a, b):
                    graph.add_edge(a, b, kind=kind, of=of)
        return graph

    def check_cycles(self):
        for snapshots in (False, True):
            graph = self.graph(snapshots)
            for part in list(networkx.strongly_connected_components(graph)):
                if len(part) < 2:
                    continue
                if snapshots and not any(self.is_snapshot(node) for node in part):
                    continue        # told already
                self.name_cycle(graph.subgraph(part))

    def is_snapshot(self, node):
        return not isinstance(node, tuple) and self.all[node].snapshot

    def name_cycle(self, part):
        """The cycle that needs least to be one."""
        for suffix, more in (("", ()), ("-sender", ORDER), ("-realtime", ORDER + ("time",))):
            for name, kinds, through, via in (
                    ("G0", ("ww",), None, ("ww",)),
                    ("G1c", ("ww", "wr"), None, ("ww", "wr")),
                    ("G-single", ("ww", "wr"), ("rw",), ("ww", "wr")),
                    ("G2", DATA, ("rw",), DATA)):
                cycle = shortest_cycle(part, kinds + more, through, via + more)
                if cycle:
                    return self.tell_cycle(name + suffix, part, cycle)
        raise AssertionError("a cycle that none of the names is for")

    def tell_cycle(self, name, part, cycle):
        edges = [part.edges[a, b] for a, b in zip(cycle, cycle[1:] + cycle[:1])]
        kinds = [edge["kind"] for edge in edges]
        shown = []
        for node, kind in zip(cycle, kinds):
            if not isinstance(node, tuple):
                shown.append("%s -%s->" % (self.all[node], kind))
        ids = [node for node in cycle if not isinstance(node, tuple)]
        text = " ".join(shown) + " the first"
        # the edges may be of what ran within these
        ends = [end for edge in edges for end in edge["of"] if not isinstance(end, tuple)]
        for id in dict.fromkeys(ids + ends):
            text += self.explained(self.all[id])
        self.tell(self.common_name(name, ids, kinds), text, *ids)

    def explained(self, t):
        if t.within is None and not t.about:
            return ""
        within = " within T%s" % t.within if t.within is not None else ""
        return "\n    %s%s: %s" % (t, within, ", ".join(t.about))

    def common_name(self, name, ids, kinds):
        if name == "G2" and len(ids) == 2:
            return "write skew (G2)"
        if name == "G-single" and sorted(kinds) == ["rw", "ww"]:
            return "lost update (G-single)"
        if name == "G-single-realtime":
            return "stale read (G-single-realtime)"
        if name in ("G0-sender", "G1c-sender", "G-single-sender"):
            return "reordered messages (%s)" % name
        return name


def barriers(name, spans, kind):
    """Edges from each (begin, end, id) to those that begin after its end, by way of
    points in time, so that they are few."""
    events = []
    for begin, end, id in spans:
        events.append((begin, 0, id))
        if end is not None:
            events.append((end, 1, id))
    last = None
    for n, (_, is_end, id) in enumerate(sorted(events, key=lambda e: e[:2])):
        if is_end:
            point = (name, n)
            yield id, point, kind
            if last:
                yield last, point, kind
            last = point
        elif last:
            yield last, id, kind


def shortest_cycle(graph, kinds, through, via):
    """A cycle of edges of these kinds, one of which is of `through` if given, the
    rest of `via`."""
    allowed = set(kinds) | set(through or ())
    path_of = networkx.DiGraph(
        (a, b) for a, b, kind in graph.edges(data="kind") if kind in via)
    best = None
    tries = 0
    for a, b, kind in graph.edges(data="kind"):
        if kind not in (through or allowed) or a not in path_of or b not in path_of:
            continue
        # enough to find a short one where there are many
        tries += 1
        if best and tries > 200:
            break
        try:
            path = networkx.shortest_path(path_of, b, a)
        except networkx.NetworkXNoPath:
            continue
        if best is None or len(path) < len(best):
            best = path
    return best


def check(transactions, final, aborted=(), orders=(), queues=None):
    """The anomalies of a history, none if it is as it should be."""
    return History(transactions, final, aborted, orders, queues).check()
