"""State machines against a model of gen_statem: the same events must lead to the
same callbacks, in the same order."""

import json
import random

from common import rounds_of, seed_of, value, wait_idle

STATES = "abc"

# An event says what is to be done: "next", "repeat", "postpone", "insert"; "in" is
# the state in which it is to be handled at all, and elsewhere it is postponed.
MODULE = """
CREATE TABLE said (n bigserial, server text, what text);
CREATE SCHEMA fsm;
CREATE FUNCTION fsm.init(args jsonb, OUT data jsonb, OUT state_name text)
    LANGUAGE sql AS $$ SELECT '{}'::jsonb, 'a' $$;
CREATE FUNCTION fsm.enter(old_state text, state_name text, INOUT data jsonb) LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO public.said (server, what)
        VALUES (dgen.self(), 'enter ' || state_name || ' from ' || old_state);
END $$;
CREATE FUNCTION fsm.handle_event(kind text, event jsonb, state_name text, INOUT data jsonb,
    OUT next_state text, OUT repeat_state boolean, OUT postpone boolean) LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO public.said (server, what)
        VALUES (dgen.self(), concat_ws(' ', state_name, kind, event -> 'i'));
    IF event ->> 'in' <> state_name THEN
        postpone := true;
        RETURN;
    END IF;
    next_state := event ->> 'next';
    repeat_state := (event -> 'repeat')::boolean;
    postpone := (event -> 'postpone')::boolean;
    PERFORM dgen.next_event(e) FROM jsonb_array_elements(event -> 'insert') e;
END $$;
SELECT dgen.create_module('fsm', kind => 'statem');
"""


class Model:
    """gen_statem, as its manual has it."""

    def __init__(self):
        self.state = "a"
        self.queue, self.postponed, self.inserted = [], [], []
        self.said = ["enter a from a"]

    def run(self, events):
        self.queue = list(events)
        while self.queue or self.inserted:
            if self.inserted:
                self.handle("internal", self.inserted.pop(0))
            else:
                self.handle("cast", self.queue.pop(0))
        return self.said

    def handle(self, kind, event):
        old = self.state
        self.said.append("%s %s %d" % (old, kind, event["i"]))
        if event.get("in", old) != old:
            self.postponed.append(event)
            return
        if event.get("postpone"):
            self.postponed.append(event)
        self.state = event.get("next", old)
        if self.state != old:
            self.queue[:0] = self.postponed
            self.postponed = []
        if self.state != old or event.get("repeat"):
            self.said.append("enter %s from %s" % (self.state, old))
        self.inserted[:0] = event.get("insert", [])


def some_event(chance, number, inserted):
    event = {"i": number}
    what = chance.random()
    if what < 0.35 and not inserted:
        event["in"] = chance.choice(STATES)
    elif what < 0.6:
        event["next"] = chance.choice(STATES)
    elif what < 0.7:
        event["repeat"] = True
    # once only: who postpones and changes the state each time never ends
    elif what < 0.8 and not inserted:
        event["postpone"] = True
    if chance.random() < 0.25:
        event["insert"] = [some_event(chance, number * 10 + i, True)
                           for i in range(chance.randrange(1, 3))]
    if event.get("postpone"):
        event.pop("insert", None)
    return event


def test_against_the_model(shared_cluster, request):
    seed = seed_of(request)
    shared_cluster.psql(MODULE)
    with shared_cluster.connect() as conn:
        conn.execute("SET client_min_messages = error")
        for number in range(rounds_of(30)):
            chance = random.Random(seed + number)
            server = "fsm/%d" % number
            events = [some_event(chance, i, False) for i in range(1, chance.randrange(5, 40))]
            value(conn, "SELECT dgen.suspend(%s)", server)
            for event in events:
                value(conn, "SELECT dgen.cast(%s, %s::jsonb)", server, json.dumps(event))
            value(conn, "SELECT dgen.resume(%s)", server)
            wait_idle(conn)
            said = [r[0] for r in conn.execute(
                "SELECT what FROM said WHERE server = %s ORDER BY n", (server,))]
            model = Model()
            assert said == model.run(events), "server %s, events %s" % (server, events)
            row = conn.execute("SELECT state_name, postponed FROM dgen.servers WHERE server = %s",
                               (server,)).fetchone()
            assert row == (model.state, len(model.postponed))
