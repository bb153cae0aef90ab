"""Calls and casts by eight clients while processes are killed again and
again; then everything that was acknowledged must be there, once."""

import collections
import random
import threading

import psycopg
import pytest

from cluster import wait_for
from common import (Client, Killer, assert_nothing_left, connect_again, in_threads, rounds_of,
                    seed_of, value, wait_idle)
from invariants import violations

CLIENTS = 8
SERVERS = 4

# Each message is {"t": token, "a": amount}; the state keeps how many, and their sum.
JOURNAL = """
CREATE TABLE effect (seq bigserial, token text, server text, amount int);
CREATE SCHEMA journal;
CREATE FUNCTION journal.note(message jsonb, state jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO public.effect (token, server, amount)
        VALUES (message->>'t', dgen.self(), (message->>'a')::int);
    RETURN jsonb_build_object(
        'n', coalesce((state->>'n')::int, 0) + 1,
        'sum', coalesce((state->>'sum')::bigint, 0) + (message->>'a')::int);
END $$;
CREATE FUNCTION journal.handle_call(request jsonb, INOUT state jsonb, OUT reply jsonb)
LANGUAGE plpgsql AS $$ BEGIN state := journal.note(request, state); reply := request->'t'; END $$;
CREATE FUNCTION journal.handle_cast(message jsonb, state jsonb) RETURNS jsonb
LANGUAGE plpgsql AS $$ BEGIN RETURN journal.note(message, state); END $$;
SELECT dgen.create_module('journal');
"""


class Load:
    """What one client sent, and what became of it."""

    def __init__(self, cluster, number, seed):
        self.client = Client(cluster)
        self.number = number
        self.chance = random.Random(seed * 1000 + number)
        self.calls = []         # acknowledged, as the next: (server, token, amount)
        self.casts = []
        self.unknown = set()    # tokens: perhaps once
        self.refused = set()    # tokens: dgen said that it did not happen
        self.failures = collections.Counter()
        self.sent = 0

    def run(self, stop):
        while not stop.is_set():
            self.one()
        self.client.close()

    def one(self):
        self.sent += 1
        server = "journal/%d" % self.chance.randrange(SERVERS)
        token = "%d-%d" % (self.number, self.sent)
        amount = self.chance.randrange(1, 1000)
        message = '{"t": "%s", "a": %d}' % (token, amount)
        if self.chance.random() < 0.5:
            done, reply = self.client.attempt("SELECT dgen.call(%s, %s::jsonb)", server, message)
            acknowledged = self.calls
            if done:
                assert reply == token
        else:
            done, reply = self.client.attempt("SELECT dgen.cast(%s, %s::jsonb)", server, message)
            acknowledged = self.casts
        if done:
            acknowledged.append((server, token, amount))
            return
        self.failures[reply] += 1
        (self.refused if reply == "OT001" else self.unknown).add(token)


def run_under_kills(cluster, loads, killer, rounds):
    stop = threading.Event()

    def kill():
        try:
            for _ in range(rounds):
                killer.once()
        finally:
            stop.set()
    try:
        in_threads([lambda load=load: load.run(stop) for load in loads] + [kill], timeout=30 + 15 * rounds)
    finally:
        stop.set()
        print("killed: " + ", ".join(killer.told))


def check(conn, loads):
    rows = conn.execute("SELECT token, server, amount FROM effect ORDER BY seq").fetchall()
    place = {token: i for i, (token, _, _) in enumerate(rows)}
    times = collections.Counter(token for token, _, _ in rows)
    twice = [token for token, n in times.items() if n > 1]
    assert not twice, "done twice: %s" % twice[:10]

    possible = set()
    for load in loads:
        for what, acknowledged in (("calls", load.calls), ("casts", load.casts)):
            lost = [token for _, token, _ in acknowledged if token not in place]
            assert not lost, "acknowledged %s were lost: %s" % (what, lost[:10])
        happened = [token for token in load.refused if token in place]
        assert not happened, "OT001, and yet done: %s" % happened[:10]
        possible.update(token for _, token, _ in load.calls + load.casts)
        possible.update(load.unknown)
        # what one client had acknowledged before it sent the next
        done = sorted(load.calls + load.casts, key=lambda a: int(a[1].split("-")[1]))
        last = {}
        for server, token, amount in done:
            assert rows[place[token]][1:] == (server, amount)
            assert place[token] > last.get(server, -1), "out of order: %s" % token
            last[server] = place[token]
    assert set(place) <= possible, "from nowhere: %s" % list(set(place) - possible)[:10]

    for number in range(SERVERS):
        server = "journal/%d" % number
        of_it = [amount for _, s, amount in rows if s == server]
        state = value(conn, "SELECT dgen.state(%s)", server)
        assert (state["n"], state["sum"]) == (len(of_it), sum(of_it)), server


def crash_test(cluster, request, rounds):
    seed = seed_of(request)
    cluster.psql("CREATE EXTENSION dgen")
    cluster.psql(JOURNAL)
    loads = [Load(cluster, n, seed) for n in range(CLIENTS)]
    run_under_kills(cluster, loads, Killer(cluster, seed), rounds)
    with connect_again(cluster) as conn:
        wait_idle(conn)
        print("calls %d, casts %d, %s" % (
            sum(len(load.calls) for load in loads), sum(len(load.casts) for load in loads),
            dict(sum((load.failures for load in loads), collections.Counter()))))
        check(conn, loads)
        # a message that was in hand when its worker died five times would be one
        assert_nothing_left(conn)
        assert violations(conn) == []
        assert all(load.calls and load.casts for load in loads)
        assert value(conn, "SELECT dgen.call('journal/0', '{\"t\": \"end\", \"a\": 0}')") == "end"


@pytest.mark.seconds(300)
def test_kills(cluster, request):
    crash_test(cluster, request, rounds_of(12))


@pytest.mark.long
def test_kills_long(cluster, request):
    crash_test(cluster, request, rounds_of(400))


# Transfers from account to account: by a call of the handler to the other
# account, in one transaction, or by a cast, which arrives later.
BANK = """
CREATE TABLE transfer (token text, amount int);
CREATE SCHEMA bank;
CREATE FUNCTION bank.init(args jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT '1000'::jsonb $$;
CREATE FUNCTION bank.move(message jsonb, balance int) RETURNS int LANGUAGE plpgsql AS $$
BEGIN
    IF message ? 'deposit' THEN
        RETURN balance + (message->>'deposit')::int;
    END IF;
    INSERT INTO public.transfer VALUES (message->>'t', (message->>'a')::int);
    IF message ? 'later' THEN
        PERFORM dgen.cast(message->>'to', jsonb_build_object('deposit', message->'a'));
    ELSE
        PERFORM dgen.call(message->>'to', jsonb_build_object('deposit', message->'a'));
    END IF;
    RETURN balance - (message->>'a')::int;
END $$;
CREATE FUNCTION bank.handle_call(request jsonb, INOUT state jsonb, OUT reply jsonb)
LANGUAGE plpgsql AS $$ BEGIN state := bank.move(request, state::int); reply := state; END $$;
CREATE FUNCTION bank.handle_cast(message jsonb, state jsonb) RETURNS jsonb
LANGUAGE plpgsql AS $$ BEGIN RETURN bank.move(message, state::int); END $$;
SELECT dgen.create_module('bank');
"""
ACCOUNTS = 6


class Transfers(Load):
    def one(self):
        self.sent += 1
        debit, credit = self.chance.sample(range(ACCOUNTS), 2)
        token = "%d-%d" % (self.number, self.sent)
        amount = self.chance.randrange(1, 100)
        later = ', "later": true' if self.chance.random() < 0.3 else ""
        message = '{"t": "%s", "to": "bank/%d", "a": %d%s}' % (token, credit, amount, later)
        function = self.chance.choice(("call", "cast"))
        try:
            done, reply = self.client.attempt("SELECT dgen.%s(%%s, %%s::jsonb)" % function,
                                              "bank/%d" % debit, message)
        except psycopg.errors.ObjectNotInPrerequisiteState as e:
            # the creditor has a message that was in hand at a crash
            assert "blocked" in str(e)
            done, reply = False, "OT001"
        if done:
            (self.calls if function == "call" else self.casts).append(token)
        else:
            self.failures[reply] += 1
            (self.refused if reply == "OT001" else self.unknown).add(token)


@pytest.mark.seconds(300)
def test_transfers_conserve_the_sum(cluster, request):
    seed = seed_of(request)
    cluster.psql("CREATE EXTENSION dgen")
    cluster.psql(BANK)
    loads = [Transfers(cluster, n, seed) for n in range(6)]
    run_under_kills(cluster, loads, Killer(cluster, seed), rounds_of(8))
    with connect_again(cluster) as conn:
        wait_idle(conn, timeout=60)
        done = [row[0] for row in conn.execute("SELECT token FROM transfer")]
        print("transfers %d, %s" % (len(done), dict(sum((l.failures for l in loads), collections.Counter()))))
        assert len(done) == len(set(done)), "a transfer was done twice"
        for load in loads:
            assert set(load.calls + load.casts) <= set(done), "an acknowledged transfer was lost"
            assert not load.refused & set(done), "OT001, and yet done"
        balances = [value(conn, "SELECT dgen.state(%s)", "bank/%d" % n) for n in range(ACCOUNTS)]
        assert sum(balances) == 1000 * ACCOUNTS, balances
        assert_nothing_left(conn)


def test_wait_for_a_reply_ends_with_the_worker(cluster):
    """A caller whose worker is terminated gets an answer, not silence."""
    cluster.psql("CREATE EXTENSION dgen")
    cluster.psql("""
        CREATE SCHEMA slow;
        CREATE FUNCTION slow.handle_call(request jsonb, INOUT state jsonb, OUT reply jsonb)
        LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(request::float8); reply := request; END $$;
        SELECT dgen.create_module('slow');""")
    answers = []

    def caller():
        answers.append(Client(cluster).attempt("SELECT dgen.call('slow/1', '2', timeout => '60 s')"))
    thread = threading.Thread(target=caller, daemon=True)
    with cluster.connect() as conn:
        for kill in range(2):
            if kill == 0:
                thread.start()
            pid = wait_for(lambda: value(conn, "SELECT pid FROM pg_stat_activity WHERE "
                                               "backend_type = 'dgen worker' AND wait_event = 'PgSleep'"))
            assert value(conn, "SELECT pg_terminate_backend(%s, 5000)", pid)
        thread.join(30)
        assert not thread.is_alive(), "the caller still waits"
        # put back and run to its end, or given up: never left alone
        assert answers[0] in ((True, 2), (False, "OT020")), answers
        wait_idle(conn)
        assert_nothing_left(conn)
