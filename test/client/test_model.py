"""Sequences of operations that hypothesis makes up, against dgen and against
test/lib/reference_model.py: after each, when nothing more can happen, states, waiting
and postponed messages, dead letters, timers, names, monitors, and the order of all
that was handled must be the same."""

import itertools
import json
import os
import tempfile

import psycopg
import pytest
from hypothesis import HealthCheck, Phase, configuration, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from cluster import wait_for
from common import rounds_of, seed_of, value
from reference_model import LANES, Model, Refused

configuration.set_hypothesis_home_dir(os.path.join(tempfile.gettempdir(), "dgen-hypothesis"))

HANDLERS = """
CREATE SCHEMA ref;
CREATE TABLE ref.effect (id bigserial, server text, lane text, what text);
CREATE TABLE ref.failing (n int, how text);
CREATE FUNCTION ref.note(lane text, what text) RETURNS void LANGUAGE sql AS $$
    INSERT INTO ref.effect (server, lane, what) VALUES (dgen.self(), lane, what)
$$;
CREATE FUNCTION ref.init(args jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
    PERFORM ref.note('0', 'init');
    RETURN '{"log": {"1": [], "0": [], "-1": []}}';
END $$;
CREATE FUNCTION ref.terminate(reason text, state jsonb) RETURNS void LANGUAGE sql AS $$
    SELECT ref.note('0', 'terminate ' || reason)
$$;
CREATE FUNCTION ref.log(lane text, what jsonb, state jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
    PERFORM ref.note(lane, what #>> '{}');
    RETURN jsonb_set(state, ARRAY['log', lane], state->'log'->lane || jsonb_build_array(what));
END $$;
CREATE FUNCTION ref.act(message jsonb, action jsonb, INOUT state jsonb) LANGUAGE plpgsql AS $$
DECLARE
    other text := split_part(dgen.self(), '/', 1) || '/' || (action->>1);
BEGIN
    CASE coalesce(action->>0, action #>> '{}')
        WHEN 'open' THEN state := state || '{"open": true}';
        WHEN 'close' THEN state := state || '{"open": false}';
        WHEN 'exit' THEN PERFORM dgen.exit('done');
        WHEN 'continue' THEN
            PERFORM dgen.continue(jsonb_build_object('n', -(message->>'n')::int, 'l', '1', 'do', '[]'::jsonb));
        WHEN 'cast' THEN PERFORM dgen.cast(other, action->2);
        WHEN 'request' THEN PERFORM dgen.send_request(other, action->2);
        WHEN 'timer' THEN PERFORM dgen.send_after(dgen.self(), action->2, '1 hour', action->>1);
        WHEN 'monitor' THEN PERFORM dgen.monitor(other);
        WHEN 'call' THEN PERFORM dgen.call(other, action->2);
        WHEN 'postpone' THEN NULL;
    END CASE;
END $$;
CREATE FUNCTION ref.info(m jsonb, INOUT state jsonb) LANGUAGE plpgsql AS $$
BEGIN
    state := ref.log('0', to_jsonb((m->>'info') || ' ' || CASE dgen.kind()
        WHEN 'DOWN' THEN split_part(m->>'server', '/', 2) || ' ' || (m->>'reason')
        ELSE coalesce(m->'reply'->>0, m->'error'->>'sqlstate') END), state);
END $$;
CREATE FUNCTION ref.handle(m jsonb, INOUT state jsonb, OUT reply jsonb) LANGUAGE plpgsql AS $$
DECLARE
    lane text := coalesce(m->>'l', '0');
    how text;
    action jsonb;
BEGIN
    SELECT f.how INTO how FROM ref.failing f WHERE n = (m->>'n')::int;
    IF how = 'raise' THEN
        PERFORM ref.note(lane, 'undone');
        RAISE EXCEPTION 'no luck' USING ERRCODE = 'FA001';
    ELSIF how = 'reject' THEN
        PERFORM dgen.reject('not that');
        RETURN;
    ELSIF how = 'later' THEN
        PERFORM dgen.retry_after('1 hour');
        RETURN;
    ELSIF m->'do' ? 'postpone' AND NOT coalesce((state->>'open')::boolean, false) THEN
        PERFORM ref.note(lane, 'postponed ' || (m->>'n'));
        PERFORM dgen.postpone();
        RETURN;
    END IF;
    state := ref.log(lane, m->'n', state);
    FOR action IN SELECT jsonb_array_elements(m->'do') LOOP
        state := ref.act(m, action, state);
    END LOOP;
    reply := jsonb_build_array(m->'n');
END $$;
CREATE FUNCTION ref.handle_call(request jsonb, INOUT state jsonb, OUT reply jsonb)
LANGUAGE plpgsql AS $$ BEGIN SELECT h.state, h.reply INTO state, reply FROM ref.handle(request, state) h; END $$;
CREATE FUNCTION ref.handle_cast(message jsonb, INOUT state jsonb)
LANGUAGE plpgsql AS $$ BEGIN SELECT h.state INTO state FROM ref.handle(message, state) h; END $$;
CREATE FUNCTION ref.handle_continue(message jsonb, INOUT state jsonb)
LANGUAGE plpgsql AS $$ BEGIN SELECT h.state INTO state FROM ref.handle(message, state) h; END $$;
CREATE FUNCTION ref.handle_info(message jsonb, INOUT state jsonb) LANGUAGE plpgsql AS $$
BEGIN
    IF message ? 'info' AND dgen.kind() <> 'timer' THEN
        state := ref.info(message, state);
    ELSE
        SELECT h.state INTO state
        FROM ref.handle(CASE dgen.kind() WHEN 'timer' THEN message->'message' ELSE message END, state) h;
    END IF;
END $$;
CREATE FUNCTION ref.handle_query(query jsonb, state jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT state $$;
CREATE FUNCTION ref.key(server text) RETURNS text LANGUAGE sql AS $$ SELECT split_part(server, '/', 2) $$;
CREATE FUNCTION ref.label(message jsonb) RETURNS text LANGUAGE sql AS $$
    SELECT coalesce(message->'message'->>'n', message->>'n', message->>'info')
$$;
CREATE FUNCTION ref.look(module text, counts boolean) RETURNS jsonb LANGUAGE sql AS $$
    SELECT jsonb_build_object(
        'servers', (SELECT jsonb_agg(jsonb_build_array(ref.key(server), status = 'a',
            CASE WHEN counts THEN incarnation ELSE sign(incarnation) END, state, stop_reason, suspended_at IS NOT NULL)
                                     ORDER BY server)
                    FROM dgen.server WHERE server LIKE module || '/%'
                    AND (status = 'a' OR state IS NOT NULL OR suspended_at IS NOT NULL OR incarnation > 0)),
        'mail', (SELECT jsonb_agg(jsonb_build_array(ref.key(m.server), m.priority::text, ref.label(message),
                                                    coalesce(attempts, 0), next_at IS NOT NULL AND next_at > now())
                                  ORDER BY m.server, m.priority, m.id)
                 FROM dgen.message m LEFT JOIN dgen.attempt a USING (id) WHERE m.server LIKE module || '/%'),
        'postponed', (SELECT jsonb_agg(jsonb_build_array(ref.key(server), ref.label(message)) ORDER BY server, id)
                      FROM dgen.postponed WHERE server LIKE module || '/%'),
        'letters', (SELECT jsonb_agg(jsonb_build_array(ref.key(server), ref.label(message), attempts, sqlstate)
                                     ORDER BY server, id)
                    FROM dgen.letter WHERE server LIKE module || '/%'),
        'timers', (SELECT jsonb_agg(jsonb_build_array(ref.key(t.server), name, ref.label(message))
                                    ORDER BY t.server, name)
                   FROM dgen.timer t JOIN dgen.delayed d ON d.timer = t.id WHERE t.server LIKE module || '/%'),
        'names', (SELECT jsonb_agg(jsonb_build_array(substr(name, length(module) + 2), ref.key(server)) ORDER BY name)
                  FROM dgen.name WHERE server LIKE module || '/%'),
        'monitors', (SELECT jsonb_agg(jsonb_build_array(ref.key(watcher), ref.key(server)) ORDER BY watcher, server)
                     FROM dgen.monitor WHERE server LIKE module || '/%'),
        'effects', (SELECT jsonb_object_agg(key, whats)
                    FROM (SELECT ref.key(server) || ' ' || lane AS key, jsonb_agg(what ORDER BY id) AS whats
                          FROM ref.effect WHERE server LIKE module || '/%' GROUP BY server, lane) e))
$$;
CREATE SCHEMA scratch;
CREATE FUNCTION scratch.handle_cast(message jsonb, state jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT state $$;
SELECT dgen.create_module('scratch');
"""


def in_order(messages):
    return sorted(messages, key=lambda m: m.place)


def look_at(model):
    """What ref.look() sees, of the model."""
    by_name = sorted(model.servers.items())
    return {what: rows or None for what, rows in {
        "servers": [[k, s.active, s.incarnation if model.counts else min(s.incarnation, 1),
                     s.state, s.reason, s.suspended] for k, s in by_name
                    if s.active or s.state is not None or s.suspended or s.incarnation > 0],
        "mail": [[k, lane, m.label(), m.attempts, m.backs_off] for k, s in by_name
                 for lane in reversed(LANES) for m in in_order(s.mail) if m.lane == lane],
        "postponed": [[k, m.label()] for k, s in by_name for m in in_order(s.postponed)],
        "letters": [[k, m.label(), m.attempts, code] for k, m, code in
                    sorted(model.letters, key=lambda letter: (letter[0], letter[1].place))],
        "timers": [[k, name, str(body["n"])] for (k, name), (body, _) in sorted(model.timers.items())],
        "names": [[name, k] for name, (k, _) in sorted(model.names.items())],
        "monitors": [[watcher, k] for watcher, _, k in sorted(model.monitors, key=lambda m: (m[0], m[2]))],
        "effects": {"%s %s" % key: whats for key, whats in model.effects.items()},
    }.items()}


SERVERS = ("a", "b", "c")
server_names = st.sampled_from(("a", "a", "a", "b", "b", "c"))
hows = st.sampled_from((None,) * 7 + ("raise", "raise", "reject", "later"))
ACTIONS = ("open", "close", "postpone", "exit", "continue", "cast", "request", "timer", "monitor")
actions = st.one_of(st.just([]), st.just(["postpone"]), st.just(["postpone"]),
                    st.lists(st.sampled_from(ACTIONS), max_size=3, unique=True))
CONN = None
OTHER = None            # another session, whose invokes pass the first one's messages
MODULES = itertools.count()


class Both(RuleBasedStateMachine):
    """Each sequence has a module of its own.  Nothing comes by itself: what backs
    off does so for an hour, as long as the timers run."""

    sequences = operations = 0      # that were run

    @initialize(max_attempts=st.integers(1, 3), retry=st.sampled_from(("block", "skip")),
                on_stop=st.sampled_from(("keep", "delete")),
                on_dead_letter=st.sampled_from(("continue", "continue", "suspend")))
    def create(self, max_attempts, retry, on_stop, on_dead_letter):
        self.module = "m%d" % next(MODULES)
        self.numbers = itertools.count(1)
        self.requests = {}
        self.steps = 0
        CONN.execute("TRUNCATE ref.failing")
        self.model = Model(SERVERS, max_attempts, retry, on_stop, on_dead_letter)
        CONN.execute("SELECT dgen.create_module(%s, schema_name => 'ref', max_attempts => %s, retry => %s, "
                     "on_stop => %s, on_dead_letter => %s, breaker => 0, "
                     "backoff_initial => '1 hour', backoff_max => '1 hour')",
                     (self.module, max_attempts, retry, on_stop, on_dead_letter))

    def teardown(self):
        if hasattr(self, "module"):
            # some of the first do next to nothing
            Both.sequences += self.steps >= 10
            Both.operations += self.steps
            CONN.execute("SELECT dgen.drop_module(%s, cascade => true)", (self.module,))

    def at(self, name):
        return "%s/%s" % (self.module, name)

    def both(self, query, parameters, action):
        """The same of both; the result, or the SQLSTATE."""
        try:
            expected = self.model.attempt(action)
        except Refused as e:
            expected = e.code
        try:
            result = value(CONN, query, *parameters)
        except psycopg.Error as e:
            result = e.sqlstate
        assert result == expected, (query, parameters, "model: %r" % (expected,), "dgen: %r" % (result,))
        self.settle()

    def settle(self):
        """Nothing more can happen in the model; dgen must come to the same."""
        self.steps += 1
        self.model.run()
        expected = look_at(self.model)
        last = None

        def same():
            nonlocal last
            last = value(CONN, "SELECT ref.look(%s, %s)", self.module, self.model.counts)
            return last == expected
        try:
            wait_for(same, 20, interval=0.003)
        except AssertionError:
            difference = "".join(
                "\n%s\n   model: %s\n   dgen:  %s" % (what, json.dumps(expected[what]), json.dumps(last[what]))
                for what in expected if expected[what] != last[what])
            # hypothesis tries again, and tells the last
            print(difference)
            raise AssertionError(difference) from None

    def fail(self, n, how):
        CONN.execute("INSERT INTO ref.failing VALUES (%s, %s)", (n, how))
        self.model.failing[n] = how

    def plain_body(self):
        n = next(self.numbers)
        if n % 4 == 0:
            self.fail(n, "raise")
        return {"n": n, "l": "0", "do": []}

    def body(self, name, do, how, lane="0"):
        """A message of its own number that does these things."""
        n = next(self.numbers)
        done = []
        for action in do:
            if action in ("cast", "request", "monitor"):
                others = [s for s in SERVERS if s != name]
                to = others[n % 2]
                action = [action, to, self.plain_body()]
            elif action == "timer":
                action = ["timer", "own", self.plain_body()]
            elif action == "continue" and n % 4 == 0:
                self.fail(-n, "raise")
            done.append(action)
        if how is not None:
            self.fail(n, how)
        return {"n": n, "l": lane, "do": done}

    # who may do what, so that nothing depends on chance

    def lane_for(self, name, lane, do):
        """Between lanes there is no order: what waits in several of them is plain."""
        s = self.model.servers[name]
        waiting = s.mail + s.postponed
        if do or any(m.body.get("do") or m.lane == "0" for m in waiting):
            return "0"
        return lane

    def may_do(self, name, do):
        s = self.model.servers[name]
        if any(m.lane != "0" for m in s.mail):
            return []
        # no directive goes with an exit, or with what an exit would undo
        if "exit" in do:
            do = [a for a in do if a in ("exit", "cast", "request", "open")]
        return do

    # --- what clients do

    @rule(name=server_names, lane=st.sampled_from(LANES), do=actions, how=hows)
    def cast(self, name, lane, do, how):
        do = self.may_do(name, do)
        body = self.body(name, do, how, self.lane_for(name, lane, do))
        CONN.execute("SELECT dgen.cast(%s, %s::jsonb, priority => %s)",
                     (self.at(name), json.dumps(body), int(body["l"])))
        self.model.send(name, "cast", body, body["l"])
        self.settle()

    @rule(name=server_names, key=st.sampled_from(("k1", "k2")))
    def cast_once(self, name, key):
        body = self.body(name, [], None)
        CONN.execute("SELECT dgen.cast(%s, %s::jsonb, dedup_key => %s)", (self.at(name), json.dumps(body), key))
        if (name, key) not in self.model.dedup:
            self.model.dedup[name, key] = body["n"]
            self.model.send(name, "cast", body)
        self.settle()

    @rule(name=server_names, do=actions)
    def cast_and_roll_back(self, name, do):
        body = self.body(name, do, None)
        with pytest.raises(ZeroDivisionError), CONN.transaction():
            CONN.execute("SELECT dgen.cast(%s, %s::jsonb)", (self.at(name), json.dumps(body)))
            CONN.execute("SELECT dgen.send_after(%s, %s::jsonb, '1 hour', 'own')", (self.at(name), json.dumps(body)))
            raise ZeroDivisionError
        self.settle()

    @rule(name=server_names, do=actions, how=hows, key=st.sampled_from((None, None, "k1")))
    def call(self, name, do, how, key):
        do = [a for a in self.may_do(name, do) if a != "postpone"]
        if key is not None:
            do, how = [], None
            body = {"n": 1000000 + "abc".index(name), "l": "0", "do": []}
        else:
            body = self.body(name, do, how)
        self.both("SELECT dgen.call(%s, %s::jsonb, %s::interval, request_key => %s)",
                  (self.at(name), json.dumps(body), "100 ms" if self.model.is_blocked(name) else "30 s", key),
                  lambda: self.model.call(name, body, key))

    @rule(name=server_names, do=actions, how=hows)
    def request(self, name, do, how):
        do = self.may_do(name, do)
        body = self.body(name, do, how)
        self.requests[body["n"]] = value(CONN, "SELECT dgen.send_request(%s, %s::jsonb)",
                                         self.at(name), json.dumps(body))
        self.model.send(name, "request", body)
        self.settle()

    @precondition(lambda self: self.requests)
    @rule(number=st.integers(0, 100))
    def check_response(self, number):
        n = sorted(self.requests)[number % len(self.requests)]
        try:
            result = value(CONN, "SELECT dgen.check_response(%s)", self.requests[n])
            result = ("reply", result[0]) if result else None
        except psycopg.Error as e:
            result = ("error", e.sqlstate)
        assert result == self.model.replies.get(n)

    @rule(name=server_names, do=actions, how=hows, commit=st.booleans(), nested=st.booleans())
    def invoke(self, name, do, how, commit, nested):
        do = self.may_do(name, do)
        body = self.body(name, do, how)
        if nested:
            to = [s for s in SERVERS if s != name][body["n"] % 2]
            body["do"] = [["call", to, self.plain_body()]]

        def action():
            reply = self.model.invoke(name, body)
            if not commit:
                raise Refused("rolled back")
            return reply

        class Undo(Exception):
            sqlstate = "rolled back"
        try:
            expected = self.model.attempt(action)
        except Refused as e:
            expected = e.code
        try:
            with OTHER.transaction():
                OTHER.execute("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE")
                result = value(OTHER, "SELECT dgen.invoke(%s, %s::jsonb)", self.at(name), json.dumps(body))
                if not commit:
                    raise Undo()
        except (psycopg.Error, Undo) as e:
            result = e.sqlstate
        assert result == expected, ("invoke", name, body, "model: %r" % (expected,), "dgen: %r" % (result,))
        self.settle()

    @rule(name=server_names)
    def query(self, name):
        def action():
            if self.model.servers[name].state is None:
                raise Refused("OT003")
            return self.model.servers[name].state
        self.both("SELECT dgen.query(%s, 'null')", (self.at(name),), action)

    # --- timers

    @rule(name=server_names, timer=st.sampled_from(("x", "y")), how=hows)
    def send_after(self, name, timer, how):
        body = self.body(name, [], how)
        CONN.execute("SELECT dgen.send_after(%s, %s::jsonb, '1 hour', %s)", (self.at(name), json.dumps(body), timer))
        self.model.send_after(name, timer, body)
        self.settle()

    @rule(name=server_names, timer=st.sampled_from(("x", "y", "own")))
    def cancel_timer(self, name, timer):
        self.both("SELECT dgen.cancel_timer(server => %s, name => %s) IS NOT NULL", (self.at(name), timer),
                  lambda: self.model.cancel_timer(name, timer))

    @precondition(lambda self: self.model.timers)
    @rule(number=st.integers(0, 100))
    def come_due(self, number):
        name, timer = sorted(self.model.timers)[number % len(self.model.timers)]
        if any(m.lane != "0" for m in self.model.servers[name].mail):
            return
        with CONN.transaction():
            # a timer that is due earlier has the keeper look
            CONN.execute("SELECT dgen.send_after('scratch/1', '1', '0.001 s')")
            CONN.execute("UPDATE dgen.delayed SET due_at = clock_timestamp() + '2 ms' WHERE timer = "
                         "(SELECT id FROM dgen.timer WHERE server = %s AND name = %s)", (self.at(name), timer))
        self.model.come_due(name, timer)
        self.settle()

    # --- operators

    @rule(name=server_names)
    def suspend(self, name):
        CONN.execute("SELECT dgen.suspend(%s)", (self.at(name),))
        self.model.servers[name].suspended = True
        self.settle()

    @rule(name=server_names)
    def resume(self, name):
        CONN.execute("SELECT dgen.resume(%s)", (self.at(name),))
        self.model.servers[name].suspended = False
        self.settle()

    @rule(name=server_names)
    def start(self, name):
        self.both("SELECT CASE WHEN %s THEN started ELSE 1 END FROM dgen.start(%s) started",
                  (self.model.counts, self.at(name)),
                  lambda: self.model.start(name))

    @rule(name=server_names, kill=st.booleans())
    def stop(self, name, kill):
        self.both("SELECT dgen.%s(%%s)" % ("kill" if kill else "stop"), (self.at(name),),
                  lambda: self.model.stop(name, kill))

    @rule(name=server_names)
    def delete(self, name):
        self.both("SELECT dgen.delete(%s)", (self.at(name),), lambda: self.model.delete(name))

    @rule(name=server_names, number=st.integers(0, 2), stale=st.booleans())
    def replace_state(self, name, number, stale):
        state = self.model.servers[name].state
        new = dict(state or {}, value=number)

        def action():
            if stale and self.model.servers[name].active:
                raise Refused("OT018")
            self.model.replace_state(name, "value", number)
            return True
        self.both("SELECT dgen.replace_state(%s, %s::jsonb, expected_version => %s) > 0",
                  (self.at(name), json.dumps(new), 1000000 if stale else None), action)

    @precondition(lambda self: self.model.failing)
    @rule(number=st.integers(0, 100))
    def mend(self, number):
        n = sorted(self.model.failing)[number % len(self.model.failing)]
        CONN.execute("DELETE FROM ref.failing WHERE n = %s", (n,))
        del self.model.failing[n]

    @rule(name=server_names)
    def try_again(self, name):
        """The backoff of all that has failed ends."""
        s = self.model.servers[name]
        with CONN.transaction():
            CONN.execute("UPDATE dgen.attempt SET next_at = now() - interval '1 s' WHERE server = %s", (self.at(name),))
            # who changes a server wakes it
            CONN.execute("SELECT dgen.suspend(%s), dgen.resume(%s)", (self.at(name), self.at(name)))
        s.suspended = False
        for m in s.mail:
            m.backs_off = False
        self.settle()

    @precondition(lambda self: any(m.kind != "request" for _, m, _ in self.model.letters))
    @rule(number=st.integers(0, 100), discard=st.booleans())
    def requeue(self, number, discard):
        letters = [x for x in self.model.letters if x[1].kind != "request"]
        name, m, code = letters[number % len(letters)]
        id = value(CONN, "SELECT id FROM dgen.letter WHERE server = %s AND ref.label(message) = %s",
                   self.at(name), m.label())
        CONN.execute("SELECT dgen.%s(%%s)" % ("discard" if discard else "requeue"), (id,))
        self.model.requeue((name, m, code), discard)
        self.settle()

    @rule(name=server_names, tag=st.sampled_from(("n1", "n2")))
    def register(self, name, tag):
        self.both("SELECT dgen.register(%s, %s)", ("%s-%s" % (self.module, tag), self.at(name)),
                  lambda: self.model.register(name, tag))


def run(cluster, request, sequences):
    global CONN, OTHER
    cluster.psql(HANDLERS)
    Both.sequences = Both.operations = 0
    with cluster.connect() as CONN, cluster.connect() as OTHER:
        CONN.execute("SET client_min_messages = error")
        seed(seed_of(request))(Both)
        # the first dozens do next to nothing
        run_state_machine_as_test(Both, settings=settings(
            max_examples=sequences + 20, stateful_step_count=25, deadline=None, database=None,
            print_blob=False, phases=(Phase.generate,), suppress_health_check=list(HealthCheck)))
    print("%d sequences, %d operations" % (Both.sequences, Both.operations))


@pytest.mark.seconds(300)
def test_sequences(shared_cluster, request):
    run(shared_cluster, request, rounds_of(40))


@pytest.mark.long
def test_sequences_long(shared_cluster, request):
    run(shared_cluster, request, rounds_of(2000))
