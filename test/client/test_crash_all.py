"""Every kind of activation at once, while whatever there is is killed in every
way there is; then each that was acknowledged must have done all it promised, once."""

import collections
import random
import threading
import time

import psycopg
import pytest

from common import (LOST, Client, Killer, assert_nothing_left, connect_again, in_threads, rounds_of,
                    seed_of, value, wait_idle)

SERVERS = 3
CLIENTS = 6

# A message is {"t": token, "op": what, "a": amount}; what its handling does is noted
# under the token, step by step, each in the transaction that does it.
MODULE = """
CREATE EXTENSION dgen;
CREATE TABLE effect (seq bigserial, token text, step text, server text, amount int,
                     xact text DEFAULT pg_current_xact_id()::text);
CREATE FUNCTION note(token jsonb, step text, amount jsonb DEFAULT '0') RETURNS void LANGUAGE sql AS $$
    INSERT INTO public.effect (token, step, server, amount)
        VALUES (token #>> '{}', step, dgen.self(), (amount #>> '{}')::int) $$;

CREATE SCHEMA all_of;
CREATE FUNCTION all_of.init(args jsonb) RETURNS jsonb LANGUAGE sql AS $$
    SELECT '{"n": 0, "sum": 0, "seen": {}}'::jsonb $$;
CREATE FUNCTION all_of.effect(args jsonb) RETURNS void LANGUAGE sql AS $$
    SELECT public.note(args, 'effect') $$;
CREATE FUNCTION all_of.take(m jsonb, INOUT state jsonb, OUT done boolean) LANGUAGE plpgsql AS $$
DECLARE
    mortal text := 'mortal/' || (m->>'t');
BEGIN
    done := true;
    CASE m->>'op'
    WHEN 'plain' THEN
        NULL;
    WHEN 'effect' THEN
        PERFORM dgen.after_commit('all_of.effect', m->'t');
    WHEN 'timer' THEN
        PERFORM dgen.send_after(dgen.self(), jsonb_build_object('step', 'timer', 't', m->'t'), '30 ms');
    WHEN 'named' THEN
        PERFORM dgen.send_after(dgen.self(), 'null', '30 ms', m->>'t');
    WHEN 'relay' THEN
        PERFORM dgen.cast(m->>'to', jsonb_build_object('step', 'relay', 't', m->'t'));
    WHEN 'down' THEN
        PERFORM dgen.start(mortal);
        PERFORM dgen.monitor(mortal);
        PERFORM dgen.cast(mortal, m->'t');
    WHEN 'later' THEN
        IF dgen.kind() = 'call' THEN
            PERFORM dgen.cast(dgen.self(), jsonb_build_object('step', 'later', 't', m->'t', 'from', dgen."from"()));
            PERFORM dgen.noreply();
        END IF;
    WHEN 'postpone' THEN
        -- until it has been seen
        IF state->'seen' ? (m->>'t') THEN
            state := state #- ARRAY['seen', m->>'t'];
        ELSE
            PERFORM dgen.cast(dgen.self(), jsonb_build_object('step', 'seen', 't', m->'t'), priority => 1);
            PERFORM dgen.postpone();
            done := false;
            RETURN;
        END IF;
    END CASE;
    PERFORM public.note(m->'t', 'base', m->'a');
    state := state || jsonb_build_object('n', (state->>'n')::int + 1,
                                         'sum', (state->>'sum')::bigint + (m->>'a')::int);
END $$;
CREATE FUNCTION all_of.handle_call(request jsonb, INOUT state jsonb, OUT reply jsonb)
LANGUAGE plpgsql AS $$
DECLARE
    taken record;
BEGIN
    SELECT * INTO taken FROM all_of.take(request, state);
    state := taken.state;
    IF taken.done AND NOT (request->>'op' = 'later' AND dgen.kind() = 'call') THEN
        reply := request->'t';
    END IF;
END $$;
CREATE FUNCTION all_of.handle_cast(message jsonb, state jsonb) RETURNS jsonb
LANGUAGE plpgsql AS $$
BEGIN
    IF NOT message ? 'step' THEN
        RETURN (all_of.take(message, state)).state;
    END IF;
    IF message->>'step' = 'seen' THEN
        RETURN jsonb_set(state, ARRAY['seen', message->>'t'], 'true');
    END IF;
    IF message ? 'from' THEN
        BEGIN
            PERFORM dgen.reply(message->>'from', message->'t');
        EXCEPTION WHEN SQLSTATE 'OT014' THEN
            NULL;                   -- the caller has gone
        END;
    END IF;
    PERFORM public.note(message->'t', message->>'step');
    RETURN state;
END $$;
CREATE FUNCTION all_of.handle_info(message jsonb, state jsonb) RETURNS jsonb
LANGUAGE plpgsql AS $$
BEGIN
    IF message ? 'name' THEN
        PERFORM public.note(message->'name', 'named');
    ELSIF message ? 'step' THEN
        PERFORM public.note(message->'t', message->>'step');
    ELSE
        PERFORM public.note(to_jsonb(split_part(message->>'server', '/', 2)), 'down');
    END IF;
    RETURN state;
END $$;

CREATE SCHEMA mortal;
CREATE FUNCTION mortal.handle_cast(message jsonb, state jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN PERFORM dgen.exit('done'); RETURN state; END $$;

CREATE SCHEMA slow;
CREATE FUNCTION slow.handle_cast(message jsonb, INOUT state jsonb, OUT lock boolean) LANGUAGE plpgsql AS $$
BEGIN
    PERFORM public.note(message->'t', 'base', message->'a');
    lock := true;
END $$;
CREATE PROCEDURE slow.handle_locked(kind text, message jsonb, INOUT state jsonb, INOUT reply jsonb)
LANGUAGE plpgsql AS $$
BEGIN
    COMMIT;
    PERFORM pg_sleep(0.1);
    state := state || jsonb_build_object(
        'n', coalesce((state->>'n')::int, 0) + 1,
        'sum', coalesce((state->>'sum')::bigint, 0) + (message->>'a')::int);
END $$;

CREATE SCHEMA child;
CREATE FUNCTION child.init(args jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT '{}'::jsonb $$;
CREATE FUNCTION child.handle_cast(message jsonb, state jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
    IF message ? 'crash' THEN
        RAISE 'crash' USING ERRCODE = 'SV001';
    END IF;
    PERFORM public.note(message->'t', 'base', message->'a');
    RETURN state;
END $$;
CREATE FUNCTION child.handle_call(request jsonb, INOUT state jsonb, OUT reply jsonb) LANGUAGE plpgsql AS $$
BEGIN reply := request; END $$;

CREATE SCHEMA jobs;
SELECT dgen.create_module(name, external => name = 'jobs', on_stop => CASE WHEN name = 'mortal' THEN 'delete' ELSE 'keep' END,
                          max_attempts => 10000, breaker => 0, backoff_initial => '10 ms', backoff_max => '50 ms', reply_ttl => '1 h')
FROM unnest('{all_of,mortal,slow,child,jobs}'::text[]) name;
SELECT dgen.alter_module('child', max_attempts => 1);
SELECT dgen.alter_module('all_of', invoke_isolation => 'any');
SELECT dgen.supervise('tree', '{"strategy": "rest_for_one", "intensity": 1000, "period": "1 s",
    "children": [{"id": "0", "server": "child/0"}, {"id": "1", "server": "child/1"}]}');
"""
# what one activation of each kind promises
STEPS = {"plain": [], "effect": ["effect"], "timer": ["timer"], "named": ["named"], "relay": ["relay"],
         "down": ["down"], "later": [], "postpone": []}
# what may be told to a client where somebody has his statement cancelled, too
TOLD = LOST + ("57014", "40001")


class Load:
    """What one client did, and what became of it."""

    def __init__(self, cluster, number, seed):
        self.client = Client(cluster, lost=TOLD)
        self.number = number
        self.chance = random.Random(seed * 1000 + number)
        self.sent = 0
        self.acknowledged = []      # (server, token, amount, ordered, how, session)
        self.unknown = set()
        self.refused = set()
        self.expected = {}          # token: steps after the base one
        self.requests = []          # (id, token)
        self.counts = collections.Counter()
        self.failures = collections.Counter()

    def run(self, stop):
        while not stop.is_set():
            getattr(self, self.chance.choice(("call", "call", "cast", "cast", "request", "invoke", "slow",
                                              "child", "job")))()
            if self.sent % 20 == 0:
                self.hold_back(stop)
        self.client.close()

    def hold_back(self, stop):
        """Two workers do the long work: there is to be no more than they can do in the end."""
        while not stop.is_set():
            done, waiting = self.client.attempt("SELECT count(*) FROM dgen.message")
            if not done or waiting < 500:
                break
            time.sleep(0.1)

    def message(self, op):
        self.sent += 1
        token = "%d-%d" % (self.number, self.sent)
        amount = self.chance.randrange(1, 1000)
        self.expected[token] = list(STEPS.get(op, []))
        return token, amount, '{"t": "%s", "a": %d, "op": "%s", "to": "all_of/%d"}' % (
            token, amount, op, self.chance.randrange(SERVERS))

    def note(self, how, server, token, amount, done, why, ordered=True):
        if done:
            self.counts[how] += 1
            self.acknowledged.append((server, token, amount, ordered, how, self.client.session))
            return
        self.failures[why] += 1
        (self.refused if why == "OT001" else self.unknown).add(token)

    def call(self):
        op = self.chance.choice(list(STEPS))
        token, amount, message = self.message(op)
        if op == "later":
            self.expected[token].append("later")
        server = "all_of/%d" % self.chance.randrange(SERVERS)
        done, reply = self.client.attempt("SELECT dgen.call(%s, %s::jsonb)", server, message)
        assert not done or reply == token
        # a reply that comes later may be lost with the one who was to give it: nobody knows
        if op == "later" and reply == "OT001":
            reply = "late"
        self.note("call " + op, server, token, amount, done, reply, op != "postpone")

    def cast(self):
        op = self.chance.choice([op for op in STEPS])
        token, amount, message = self.message(op)
        server = "all_of/%d" % self.chance.randrange(SERVERS)
        done, why = self.client.attempt("SELECT dgen.cast(%s, %s::jsonb)", server, message)
        self.note("cast " + op, server, token, amount, done, why, op != "postpone")

    def request(self):
        token, amount, message = self.message("plain")
        server = "all_of/%d" % self.chance.randrange(SERVERS)
        done, request = self.client.attempt("SELECT dgen.send_request(%s, %s::jsonb)", server, message)
        self.note("request", server, token, amount, done, request)
        if done:
            self.requests.append((request, token))

    def invoke(self):
        """In one transaction with a row of the client's own."""
        token, amount, message = self.message("effect")
        self.expected[token].append("client")
        server = "all_of/%d" % self.chance.randrange(SERVERS)
        try:
            done, why = self.client.attempt(
                "WITH i AS MATERIALIZED (SELECT dgen.invoke(%s, %s::jsonb) AS reply), "
                "e AS (INSERT INTO effect (token, step) SELECT %s, 'client' FROM i RETURNING 1) "
                "SELECT reply FROM i", server, message, token)
        except psycopg.errors.ObjectNotInPrerequisiteState:
            done, why = False, "OT001"      # behind a message that was in hand at a crash
        self.note("invoke", server, token, amount, done, why, False)

    def slow(self):
        if self.chance.random() < 0.7:
            return
        token, amount, message = self.message("slow")
        server = "slow/%d" % self.chance.randrange(SERVERS)
        done, why = self.client.attempt("SELECT dgen.cast(%s, %s::jsonb)", server, message)
        self.note("slow", server, token, amount, done, why)

    def child(self):
        server = "child/%d" % self.chance.randrange(2)
        if self.chance.random() < 0.2:
            self.client.attempt("SELECT dgen.cast(%s, '{\"crash\": 1}')", server)
            return
        token, amount, message = self.message("child")
        done, why = self.client.attempt("SELECT dgen.cast(%s, %s::jsonb)", server, message)
        # a loss is an attempt, and there is only one: what was in hand may be a dead letter
        self.note("child", server, token, amount, done, why)

    def job(self):
        token, amount, message = self.message("job")
        server = "jobs/%d" % self.chance.randrange(SERVERS)
        done, why = self.client.attempt("SELECT dgen.cast(%s, %s::jsonb)", server, message)
        self.note("job", server, token, amount, done, why)


def work(cluster, stop):
    """Takes jobs and does them: the row and the message's end in one transaction."""
    client = Client(cluster, lost=TOLD + ("OT014",))
    while not stop.is_set():
        client.attempt("CALL dgen.wait_work('jobs', '100 ms')")
        done, job = client.attempt("SELECT row_to_json(j) FROM dgen.take_work('jobs', 1, '1 s') j")
        if done and job:
            client.attempt(
                "WITH e AS (INSERT INTO effect (token, step, server, amount) "
                "VALUES (%s, 'base', %s, %s) RETURNING 1) "
                "SELECT dgen.finish_work(%s) FROM e",
                job["message"]["t"], job["server"], job["message"]["a"], job["token"])
    client.close()


def check(conn, loads):
    rows = conn.execute("SELECT token, step, server, amount, xact FROM effect ORDER BY seq").fetchall()
    invokes = {xact for _, step, _, _, xact in rows if step == "client"}
    steps = collections.defaultdict(list)
    place = {}
    for i, (token, step, _, _, _) in enumerate(rows):
        steps[token].append(step)
        if step == "base":
            place.setdefault(token, i)
    letters = {t for t, in conn.execute("SELECT message->>'t' FROM dgen.dead_letters WHERE server LIKE 'child/%'")}
    assert value(conn, "SELECT count(*) FROM dgen.dead_letters WHERE server NOT LIKE 'child/%'") == 0
    known = set()
    for load in loads:
        for _, token, *_ in load.acknowledged:
            assert token in place or token in letters, "acknowledged and lost: %s" % token
        for token in load.refused:
            assert token not in steps, "OT001, and yet done: %s" % token
        known |= load.expected.keys()
        for token, expected in load.expected.items():
            if token in steps:
                assert sorted(steps[token]) == sorted(["base"] + expected), (token, steps[token], expected)
        last = {}
        for server, token, amount, ordered, how, session in load.acknowledged:
            if token not in place:
                continue
            assert rows[place[token]][2:4] == (server, amount)
            if ordered:
                # a session is a sender: what an invoke handles first is its own session's,
                # and passes what the client sent when it was connected before
                of_whom = (server, session) if rows[place[token]][4] in invokes else server
                before = last.get(of_whom, (-1, None))
                assert place[token] > before[0], "out of order: %s %s, %s: %s" % (
                    how, token, before[1], rows[place[token]:before[0] + 1])
                here = (place[token], "after %s %s" % (how, token))
                last[server] = max(last.get(server, here), here)
                last[server, session] = here
    assert steps.keys() <= known, "from nowhere: %s" % list(steps.keys() - known)[:10]
    for module in ("all_of", "slow"):
        for number in range(SERVERS):
            server = "%s/%d" % (module, number)
            of_it = [amount for _, step, s, amount, _ in rows if s == server and step == "base"]
            state = value(conn, "SELECT dgen.state(%s)", server)
            assert (state["n"], state["sum"]) == (len(of_it), sum(of_it)), server
    for load in loads:
        for request, token in load.requests:
            assert value(conn, "SELECT dgen.wait_response(%s)", request) == token


def check_nothing_left(conn, loads):
    assert_nothing_left(conn, letters=value(conn, "SELECT count(*) FROM dgen.dead_letters"))
    requests = sum(len(load.requests) for load in loads)
    # a request whose sender was lost is answered, too, and nobody asks for it
    left = conn.execute("""
        SELECT (SELECT count(*) FROM dgen.timer), (SELECT count(*) FROM dgen.postponed),
               (SELECT count(*) FROM dgen.monitor), (SELECT count(*) FROM dgen.calls_in_flight()),
               (SELECT count(*) FROM dgen.server WHERE lock_id IS NOT NULL),
               (SELECT count(*) FROM dgen.server WHERE server LIKE 'mortal/%')""").fetchone()
    assert left == (0, 0, 0, 0, 0, 0), "left: timers, postponed, monitors, calls, locked, mortals"
    assert value(conn, "SELECT count(*) FROM dgen.reply") >= requests
    for n in range(2):
        assert value(conn, "SELECT dgen.call('child/%d', '%d')" % (n, n)) == n
    assert value(conn, "SELECT count(*) FROM dgen.children WHERE status <> 'running'") == 0


def run(cluster, request, rounds):
    seed = seed_of(request)
    cluster.psql(MODULE)
    loads = [Load(cluster, n, seed) for n in range(CLIENTS)]
    killer = Killer(cluster, seed, everything=True)
    stop = threading.Event()

    def kill():
        try:
            for _ in range(rounds):
                killer.once()
        finally:
            stop.set()
    try:
        in_threads([lambda load=load: load.run(stop) for load in loads] + [lambda: work(cluster, stop)] * 2 + [kill],
                   timeout=60 + 15 * rounds)
    finally:
        stop.set()
        print("killed %d times: %s" % (len(killer.told), dict(collections.Counter(killer.told))))
    with connect_again(cluster) as conn:
        conn.execute("SET client_min_messages = error")
        stop_working = threading.Event()
        worker = threading.Thread(target=work, args=(cluster, stop_working), daemon=True)
        worker.start()
        try:
            wait_idle(conn, timeout=120)
        finally:
            stop_working.set()
            worker.join(30)
        print("acknowledged: %s; not: %s" % (
            dict(sum((load.counts for load in loads), collections.Counter())),
            dict(sum((load.failures for load in loads), collections.Counter()))))
        check(conn, loads)
        check_nothing_left(conn, loads)


@pytest.mark.seconds(300)
def test_everything(cluster, request):
    run(cluster, request, rounds_of(8))


@pytest.mark.long
def test_everything_long(cluster, request):
    run(cluster, request, rounds_of(500))
