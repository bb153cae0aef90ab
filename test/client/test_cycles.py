"""Is what looks for anomalies able to find them?  Histories that could have
been, and the same with one thing in them that could not."""

import collections
import random

import pytest

from cycles import Transaction, check
from common import seed_of

KEYS = ("a", "b", "c")


class Serial:
    """A history made of transactions that ran one after the other, though their
    clients waited longer; some were casts, which one sender sent in order."""

    def __init__(self, seed, n=300):
        self.chance = random.Random(seed)
        self.lists = {key: [] for key in KEYS}
        self.transactions = []
        self.queues = collections.defaultdict(list)
        self.orders = []
        self.aborted = []
        self.elements = 0
        self.last_cast = {}
        for at in range(n):
            self.one(float(at))

    def append(self, ops, key):
        self.elements += 1
        self.lists[key].append(self.elements)
        ops.append(("append", key, self.elements))

    def add(self, at, ops, **more):
        t = Transaction(len(self.transactions), records=[ops], begin=at - 5 * self.chance.random(),
                        end=at + 5 * self.chance.random(), **more)
        self.transactions.append(t)
        return t

    def one(self, at):
        ops = []
        kind = self.chance.choice(("call", "call", "cast", "query"))
        for _ in range(self.chance.randrange(1, 4)):
            key = self.chance.choice(KEYS)
            if kind == "query" or self.chance.random() < 0.5:
                ops.append(("read", key, list(self.lists[key])))
            else:
                self.append(ops, key)
        t = self.add(at, ops, snapshot=kind == "query")
        if kind == "cast":
            t.begin, t.end = at - 5, None
            mailbox, sender = self.chance.choice(KEYS), self.chance.randrange(2)
            self.queues[mailbox].append((at - 5, at - 4.5, t.id))
            if (sender, mailbox) in self.last_cast:
                self.orders.append((self.last_cast[sender, mailbox], t.id, "sender"))
            self.last_cast[sender, mailbox] = t.id

    def check(self):
        found = check(self.transactions, self.lists, self.aborted, self.orders, self.queues)
        for anomaly in found:
            print(anomaly)
        return {a.name.split(" (")[0] if " (" in a.name else a.name for a in found}


def test_nothing_in_what_could_have_been(request):
    seed = seed_of(request)
    for n in range(10):
        assert Serial(seed + n).check() == set()


# --- what cannot have been; each adds it to a history, after which things go on

def two(h, ops_a, ops_b, overlap=True):
    """Two transactions at the end, at once or one after the other."""
    at = h.transactions[-1].begin + 100
    a, b = h.add(at, ops_a), h.add(at, ops_b)
    a.begin, a.end = at, at + 1
    b.begin, b.end = (at, at + 1) if overlap else (at + 2, at + 3)
    return a, b


def lost_update(h):
    before = list(h.lists["a"])
    ops = [("read", "a", before)], [("read", "a", before)]
    h.append(ops[0], "a")
    h.append(ops[1], "a")
    two(h, *ops)
    return {"lost update"}


def lost_update_overwritten(h):
    lost_update(h)
    h.lists["a"].pop(-2)
    return {"lost update"}


def lost_append(h):
    ops = []
    h.append(ops, "b")
    h.add(1000, ops)
    h.lists["b"].pop()
    return {"lost append"}


def lost_cast(h):
    t = h.add(1000, [])
    t.records = []
    return {"lost transaction"}


def stale_read(h):
    before = list(h.lists["a"])
    ops = []
    h.append(ops, "a")
    two(h, ops, [("read", "a", before)], overlap=False)
    return {"stale read"}


def stale_query(h):
    stale_read(h)
    h.transactions[-1].snapshot = True
    return {"stale read"}


def write_skew(h):
    a, b = list(h.lists["a"]), list(h.lists["b"])
    ops = [("read", "b", b)], [("read", "a", a)]
    h.append(ops[0], "a")
    h.append(ops[1], "b")
    two(h, *ops)
    return {"write skew"}


def skew_of_three(h):
    before = {key: list(h.lists[key]) for key in KEYS}
    ops = [[("read", other, before[other])] for other in ("b", "c", "a")]
    for key, its in zip(KEYS, ops):
        h.append(its, key)
    two(h, ops[0], ops[1])
    t = h.add(0, ops[2])
    t.begin, t.end = h.transactions[-2].begin, h.transactions[-2].end
    return {"G2"}


def read_skew(h):
    before = list(h.lists["b"])
    ops = []
    h.append(ops, "a")
    h.append(ops, "b")
    two(h, ops, [("read", "a", list(h.lists["a"])), ("read", "b", before)])
    return {"G-single"}


def torn_query(h):
    read_skew(h)
    h.transactions[-1].snapshot = True
    return {"G-single"}


def long_fork(h):
    """Two queries see two appends in two orders."""
    before = {key: list(h.lists[key]) for key in KEYS}
    ops = [], []
    h.append(ops[0], "a")
    h.append(ops[1], "b")
    two(h, *ops)
    at = h.transactions[-1].begin
    for new, old in (("a", "b"), ("b", "a")):
        t = h.add(at, [("read", new, list(h.lists[new])), ("read", old, before[old])], snapshot=True)
        t.begin, t.end = at, at + 1
    return {"G2"}


def dirty_write(h):
    ops = [], []
    for n in (0, 1, 1, 0):
        h.append(ops[n], "a" if n == len(ops[n]) else "b")
    two(h, *ops)
    return {"G0"}


def information_in_a_circle(h):
    ops = [], []
    h.append(ops[0], "a")
    h.append(ops[1], "b")
    ops[0].append(("read", "b", list(h.lists["b"])))
    ops[1].append(("read", "a", list(h.lists["a"])))
    two(h, *ops)
    return {"G1c"}


def aborted_read(h):
    h.aborted.append(-1)
    h.add(1000, [("read", "a", h.lists["a"] + [-1])])
    return {"G1a"}


def aborted_append(h):
    h.aborted.append(-1)
    h.lists["c"].append(-1)
    return {"G1a"}


def from_nowhere(h):
    h.lists["c"].append(-1)
    return {"element from nowhere"}


def intermediate_read(h):
    ops = []
    h.append(ops, "a")
    between = list(h.lists["a"])
    h.append(ops, "a")
    two(h, ops, [("read", "a", between)])
    return {"G1b", "G-single"}


def own_append_not_seen(h):
    before = list(h.lists["a"])
    ops = []
    h.append(ops, "a")
    ops.append(("read", "a", before))
    h.add(1000, ops)
    return {"internal"}


def duplicate_append(h):
    h.lists["a"].append(h.lists["a"][5])
    return {"duplicate element"}


def duplicate_activation(h):
    t = h.transactions[7]
    t.records = t.records * 2
    return {"done twice"}


def other_order(h):
    h.add(1000, [("read", "a", h.lists["a"][:-2] + h.lists["a"][:-3:-1])])
    return {"incompatible order"}


def timed_out_and_done(h):
    h.transactions[3].expected = "failed"
    return {"failed, and yet done"}


def reordered_casts(h):
    """One sender's to one server: the second was handled first."""
    ops = [], []
    h.append(ops[0], "a")
    h.append(ops[1], "a")
    first, second = two(h, *ops)
    h.orders.append((second.id, first.id, "sender"))
    return {"reordered messages"}


def overtaken(h):
    """A cast that was acknowledged before another was sent was handled after it."""
    ops = [], []
    h.append(ops[0], "a")
    h.append(ops[1], "a")
    first, second = two(h, *ops)
    h.queues["a"] += [(1000, 1001, second.id), (1002, 1003, first.id)]
    return {"reordered messages"}


def too_early(h):
    """It was handled before it was sent: its sender sees what it did."""
    ops = [], []
    h.append(ops[0], "a")
    ops[1].append(("read", "a", list(h.lists["a"])))
    first, second = two(h, *ops)
    h.orders.append((second.id, first.id, "message"))
    return {"reordered messages"}


PLANTED = (lost_update, lost_update_overwritten, lost_append, lost_cast, stale_read, stale_query,
           write_skew, skew_of_three, read_skew, torn_query, long_fork, dirty_write,
           information_in_a_circle, aborted_read, aborted_append, from_nowhere, intermediate_read,
           own_append_not_seen, duplicate_append, duplicate_activation, other_order,
           timed_out_and_done, reordered_casts, overtaken, too_early)


@pytest.mark.parametrize("plant", PLANTED, ids=lambda p: p.__name__)
def test_finds(plant, request):
    seed = seed_of(request)
    for n in range(3):
        h = Serial(seed + n, 100)
        expected = plant(h)
        for _ in range(30):
            h.one(2000.0 + len(h.transactions))
        assert h.check() == expected


def test_allows_what_postgresql_allows():
    """A query by itself is no part of what SERIALIZABLE guards: it may show that one
    of two transactions has ended that in any serial order came after the other,
    which has not."""
    def history(snapshot):
        reads_b_appends_a = Transaction(1, records=[[("read", "b", []), ("append", "a", 1)]], begin=0, end=10)
        appends_b = Transaction(2, records=[[("append", "b", 2)]], begin=1, end=2)
        reads_a = Transaction(3, records=[[("read", "a", [])]], begin=3, end=4, snapshot=snapshot)
        return check([reads_b_appends_a, appends_b, reads_a], {"a": [1], "b": [2]})
    assert history(True) == []
    assert [a.name for a in history(False)] == ["G2-realtime"]
