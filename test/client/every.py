"""A load with an activation of every kind, which leaves its traces in tables
of its own, so that at any moment states, messages and effects can be compared.

    every.setup(conn); load = every.run(cluster, seed, rounds); every.finish(conn)

Each message has a token "t".  Whoever sends it notes that in sent, in the
sender's transaction; whoever handles it in effect, in the handler's."""

import os
import random
import threading
import time

import psycopg

from common import in_threads, value, wait_idle
from cluster import wait_for
from invariants import load as load_queries

SETUP = """
CREATE TABLE sent (token text PRIMARY KEY, server text, kind text, id bigint, gone boolean NOT NULL DEFAULT false);
CREATE TABLE effect (seq bigserial, token text, server text, amount int, kind text, live boolean NOT NULL DEFAULT true);
CREATE INDEX ON effect (server);
CREATE INDEX ON effect (token);
CREATE TABLE outbox (effect_id bigint, token text);
CREATE TABLE doc_log (server text, hash text, PRIMARY KEY (server, hash));
CREATE TABLE waiting (server text, callback text);

-- what the journal says of a server, for a state that begins anew
CREATE FUNCTION journal(server text) RETURNS jsonb LANGUAGE sql AS $$
  SELECT jsonb_build_object('n', count(*), 'sum', coalesce(sum(amount), 0)) FROM public.effect e
  WHERE e.server = journal.server AND live $$;
CREATE FUNCTION note(message jsonb, state jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
  amount int := coalesce((message->>'a')::int, 0);
BEGIN
  INSERT INTO public.effect (token, server, amount, kind) VALUES (message->>'t', dgen.self(), amount, dgen.kind());
  RETURN coalesce(state, '{}') || jsonb_build_object('n', coalesce((state->>'n')::int, 0) + 1,
    'sum', coalesce((state->>'sum')::int, 0) + amount);
END $$;
CREATE FUNCTION send(token text, server text, kind text, message jsonb) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
  id bigint;
  m jsonb := message || jsonb_build_object('t', token);
BEGIN
  IF kind = 'request' THEN
    id := dgen.send_request(server, m, notify => false);
  ELSIF kind = 'info' THEN
    id := dgen.send(server, m);
  ELSIF kind = 'after' THEN
    id := dgen.send_after(server, m, make_interval(secs => 0.05));
  ELSE
    id := dgen.cast(server, m, delay => CASE kind WHEN 'late' THEN interval '80 ms' END,
      priority => CASE kind WHEN 'high' THEN 1 WHEN 'low' THEN -1 ELSE 0 END);
  END IF;
  INSERT INTO public.sent VALUES (token, server, kind, id);
  RETURN id;
END $$;

-- j: a module that does what its messages say
CREATE SCHEMA j;
CREATE FUNCTION j.init(args jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT public.journal(dgen.self()) $$;
CREATE FUNCTION j.act(message jsonb, state jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
  token text := message->>'t';
  waits text;
BEGIN
  CASE message->>'do'
    WHEN 'fail' THEN
      IF random() < 0.5 THEN RAISE 'not yet'; END IF;
    WHEN 'die' THEN
      RAISE 'never';
    WHEN 'reject' THEN
      PERFORM dgen.reject('it does not like it');
      RETURN state;
    WHEN 'again' THEN
      IF random() < 0.5 THEN
        PERFORM dgen.retry_after('20 ms');
        RETURN state;
      END IF;
    WHEN 'postpone' THEN
      IF (state->>'n')::int % 2 = 1 THEN
        PERFORM dgen.postpone();
        RETURN state;
      END IF;
    WHEN 'continue' THEN PERFORM dgen.continue(jsonb_build_object('t', token || '-c', 'a', 1));
    WHEN 'timeout' THEN PERFORM dgen.timeout('30 ms');
    WHEN 'timer' THEN PERFORM dgen.send_after(dgen.self(), '{"a": 1}', '30 ms', name => 'x');
    WHEN 'untimer' THEN PERFORM dgen.cancel_timer(server => dgen.self(), name => 'x');
    WHEN 'every' THEN PERFORM dgen.send_every(dgen.self(), '{"a": 1}', '100 ms', name => 'often');
    WHEN 'unevery' THEN PERFORM dgen.cancel_timer(server => dgen.self(), name => 'often');
    WHEN 'effect' THEN PERFORM dgen.after_commit('j.write', jsonb_build_object('t', token));
    WHEN 'send' THEN PERFORM public.send(token || '-s', message->>'to', 'cast', '{"a": 2}');
    WHEN 'ask' THEN PERFORM dgen.send_request(message->>'to', '{"a": 3}', notify => false);
    WHEN 'call' THEN PERFORM dgen.call(message->>'to', jsonb_build_object('t', token || '-i', 'a', 4));
    WHEN 'monitor' THEN PERFORM dgen.monitor(message->>'to');
    WHEN 'name' THEN
      PERFORM dgen.register('name ' || dgen.key());
      PERFORM dgen.join_group('all of them');
      PERFORM dgen.register('place ' || dgen.key(), permanent => true);
    WHEN 'exit' THEN PERFORM dgen.exit('was told to');
    WHEN 'answer' THEN
      DELETE FROM public.waiting w WHERE w.server = dgen.self() AND callback IS NOT NULL RETURNING callback INTO waits;
      IF waits IS NOT NULL THEN PERFORM dgen.reply(waits, '"later"'); END IF;
    WHEN 'grow' THEN
      state := jsonb_set(coalesce(state, '{}'), '{pad}', coalesce(state->'pad', '[]') || jsonb_build_array(repeat(md5(token), 40)));
      IF jsonb_array_length(state->'pad') > 12 THEN state := state - 'pad'; END IF;
    ELSE NULL;
  END CASE;
  RETURN public.note(message, state);
END $$;
CREATE FUNCTION j.handle_call(request jsonb, INOUT state jsonb, OUT reply jsonb, OUT noreply boolean) LANGUAGE plpgsql AS $$
BEGIN
  IF request->>'do' = 'later' THEN
    INSERT INTO public.waiting VALUES (dgen.self(), dgen."from"());
    noreply := true;
  END IF;
  state := j.act(request, state);
  IF noreply IS NULL THEN reply := request->'t'; END IF;
END $$;
CREATE FUNCTION j.handle_cast(message jsonb, state jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT j.act(message, state) $$;
CREATE FUNCTION j.handle_info(message jsonb, state jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT j.act(message, state) $$;
CREATE FUNCTION j.handle_continue(message jsonb, state jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT j.act(message, state) $$;
CREATE FUNCTION j.handle_query(query jsonb, state jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT state $$;
CREATE FUNCTION j.attributes(state jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT jsonb_build_object('n', state->'n') $$;
CREATE FUNCTION j.write(args jsonb, effect_id bigint) RETURNS void LANGUAGE sql AS $$
  INSERT INTO public.outbox VALUES (effect_id, args->>'t') $$;
SELECT dgen.create_module('j', max_attempts => 3, backoff_initial => '20 ms', backoff_max => '50 ms', breaker => 0,
  invoke_isolation => 'any', history => '30');

-- doc: large states with a history; what each was is in doc_log
CREATE SCHEMA doc;
CREATE FUNCTION doc.init(args jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
  state jsonb := jsonb_build_object('v', 0, 'pad', (SELECT jsonb_agg(md5(i::text)) FROM generate_series(1, 400) i));
BEGIN
  INSERT INTO public.doc_log VALUES (dgen.self(), md5(state::text)) ON CONFLICT DO NOTHING;
  RETURN state;
END $$;
CREATE FUNCTION doc.handle_cast(message jsonb, state jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
  state := jsonb_set(state, ARRAY['pad', ((state->>'v')::int % 400)::text], message) ||
    jsonb_build_object('v', (state->>'v')::int + 1);
  INSERT INTO public.doc_log VALUES (dgen.self(), md5(state::text)) ON CONFLICT DO NOTHING;
  RETURN state;
END $$;
SELECT dgen.create_module('doc', history => '20');

-- bank: what is sent from one to another is nowhere else meanwhile
CREATE SCHEMA bank;
CREATE FUNCTION bank.init(args jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT '100'::jsonb $$;
CREATE FUNCTION bank.handle_call(request jsonb, INOUT state jsonb, OUT reply jsonb) LANGUAGE plpgsql AS $$
BEGIN
  IF request ? 'give' THEN
    state := to_jsonb(state::int - (request->>'give')::int);
    PERFORM dgen.cast(request->>'to', request->'give');
  ELSIF request ? 'hand' THEN
    state := to_jsonb(state::int - (request->>'hand')::int);
    PERFORM dgen.call(request->>'to', jsonb_build_object('take', request->'hand'));
  ELSE
    state := to_jsonb(state::int + (request->>'take')::int);
  END IF;
  reply := state;
END $$;
CREATE FUNCTION bank.handle_cast(message jsonb, state jsonb) RETURNS jsonb LANGUAGE sql AS $$
  SELECT to_jsonb(state::int + message::int) $$;
SELECT dgen.create_module('bank', invoke_isolation => 'any');

-- fsm: a state machine
CREATE SCHEMA fsm;
CREATE FUNCTION fsm.init(args jsonb, OUT data jsonb, OUT state_name text) LANGUAGE sql AS $$
  SELECT public.journal(dgen.self()), 'a' $$;
CREATE FUNCTION fsm.handle_event(kind text, event jsonb, state_name text, INOUT data jsonb, OUT next_state text,
  OUT reply jsonb, OUT postpone boolean) LANGUAGE plpgsql AS $$
BEGIN
  IF event ? 'in' AND event->>'in' <> state_name THEN
    postpone := true;
    RETURN;
  END IF;
  next_state := event->>'next';
  IF event ? 'timeouts' THEN
    PERFORM dgen.state_timeout('40 ms', '{"next": "a"}'), dgen.event_timeout('30 ms', '{}'),
      dgen.generic_timeout('g', '50 ms', '{}'), dgen.next_event('{}');
  END IF;
  data := public.note(event, data);
  IF kind = 'call' THEN reply := event->'t'; END IF;
END $$;
CREATE FUNCTION fsm.enter(old_state text, state_name text, INOUT data jsonb) LANGUAGE sql AS $$
  SELECT data || jsonb_build_object('entered', state_name) $$;
SELECT dgen.create_module('fsm', kind => 'statem', invoke_isolation => 'any');

-- jobs: work that clients take
CREATE SCHEMA jobs;
SELECT dgen.create_module('jobs', external => true, backoff_initial => '20 ms', backoff_max => '50 ms', max_attempts => 50);

-- held: work under a lock, in transactions of its own
CREATE SCHEMA held;
CREATE FUNCTION held.handle_cast(message jsonb, INOUT state jsonb, OUT lock boolean) LANGUAGE sql AS $$ SELECT state, true $$;
CREATE FUNCTION held.handle_call(request jsonb, INOUT state jsonb, OUT reply jsonb, OUT lock boolean) LANGUAGE sql AS $$
  SELECT state, NULL::jsonb, true $$;
CREATE PROCEDURE held.handle_locked(kind text, message jsonb, INOUT state jsonb, INOUT reply jsonb) LANGUAGE plpgsql AS $$
BEGIN
  COMMIT;
  state := state || jsonb_build_object('done', coalesce(state->'done', '[]') || jsonb_build_array(message->'t'));
  reply := message->'t';
END $$;
SELECT dgen.create_module('held', backoff_initial => '20 ms', backoff_max => '50 ms', max_attempts => 50);

-- kid: supervised, and starts from the journal
CREATE SCHEMA kid;
CREATE FUNCTION kid.init(args jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT public.journal(dgen.self()) $$;
CREATE FUNCTION kid.handle_cast(message jsonb, state jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
  IF message ? 'crash' THEN PERFORM 1 / 0; END IF;
  RETURN public.note(message, state);
END $$;
SELECT dgen.create_module('kid', backoff_initial => '10 ms', backoff_max => '10 ms', max_attempts => 2, breaker => 0);

-- mig: gets new code; its state has the number of the code
CREATE SCHEMA mig;
CREATE FUNCTION mig.code_change(old_vsn text, state jsonb) RETURNS jsonb LANGUAGE sql AS $$
  SELECT state || jsonb_build_object('changes', coalesce((state->>'changes')::int, 0) + 1) $$;
CREATE FUNCTION mig.handle_cast(message jsonb, state jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT public.note(message, state) $$;
SELECT dgen.create_module('mig', vsn => '1');

-- queue: without states
CREATE SCHEMA queue;
CREATE FUNCTION queue.handle_cast(message jsonb, state jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
  PERFORM public.note(message, '{}');
  RETURN state;
END $$;
CREATE FUNCTION queue.handle_call(request jsonb, INOUT state jsonb, OUT reply jsonb) LANGUAGE plpgsql AS $$
BEGIN
  PERFORM public.note(request, '{}');
  reply := '1';
END $$;
SELECT dgen.create_module('queue', ephemeral => true);
"""

START = """
SELECT dgen.start('bank/' || i) FROM generate_series(1, 4) i;
SELECT dgen.supervise('tree', '{"intensity": 1000, "strategy": "one_for_all", "children": [
  {"id": "one", "server": "kid/1", "state": "keep"}, {"id": "two", "server": "kid/2", "state": "init"},
  {"id": "sub", "children": [{"id": "three", "server": "kid/3", "restart": "transient"}]}]}');
"""

SERVERS = 3

# of the tables above, at any moment; every.sql as invariants.sql
INVARIANTS = load_queries(os.path.join(os.path.dirname(os.path.abspath(__file__)), "every.sql"))


def setup(cluster):
    cluster.psql("CREATE EXTENSION IF NOT EXISTS dgen; SET client_min_messages = error;" + SETUP)
    cluster.psql(START)


class Load:
    """One client: each round does each of its operations once, in an order by chance."""

    def __init__(self, cluster, number, seed):
        self.cluster = cluster
        self.number = number
        self.chance = random.Random(seed * 100 + number)
        self.counter = 0
        self.acknowledged = []      # (place in the WAL, token) of calls
        self.committed = []         # tokens of sends
        self.did = set()
        self.conn = self.side = None

    def token(self):
        self.counter += 1
        return "%d-%d" % (self.number, self.counter)

    def server(self, module="j"):
        return "%s/%d" % (module, self.chance.randrange(SERVERS))

    def send(self, server, kind, **message):
        token = self.token()
        id = value(self.conn, "SELECT public.send(%s, %s, %s, %s)", token, server, kind,
                   psycopg.types.json.Jsonb({"a": self.chance.randrange(9), **message}))
        if self.conn.info.transaction_status == psycopg.pq.TransactionStatus.IDLE:
            self.committed.append(token)
        return id

    def call(self, server, **message):
        token = self.token()
        reply = value(self.conn, "SELECT dgen.call(%s, %s, '60 s')", server,
                      psycopg.types.json.Jsonb({"t": token, "a": self.chance.randrange(9), **message}))
        self.acknowledged.append((value(self.side, "SELECT pg_current_wal_flush_lsn() - '0/0'"), token))
        return reply

    # --- operations: all that begin with do_.  Nothing but calls and invokes goes to j/quiet,
    # so none of them would overtake a message.

    def do_cast(self):
        for kind in ("cast", "info", "high", "low", "late", "after"):
            self.send(self.server(), kind)

    def do_request(self):
        id = self.send(self.server(), "request")
        if self.chance.random() < 0.5:
            value(self.conn, "SELECT dgen.wait_response(%s, '60 s')", id)

    def do_call(self):
        for _ in range(3):
            self.call(self.server())
        self.call(self.server("fsm"))

    def do_call_inside(self):
        self.call("j/0", do="call", to="j/quiet")

    def do_request_key(self):
        key = self.token()
        for _ in range(2):
            value(self.conn, "SELECT dgen.call(%s, %s, '60 s', request_key => %s)", "j/0",
                  psycopg.types.json.Jsonb({"t": key, "a": 1}), key)

    def do_dedup(self):
        token = self.token()
        with self.conn.transaction():
            id = value(self.conn, "SELECT dgen.cast('j/1', %s, dedup_key => %s)",
                       psycopg.types.json.Jsonb({"t": token}), token)
            self.conn.execute("INSERT INTO sent VALUES (%s, 'j/1', 'cast', %s)", (token, id))
        assert id == value(self.conn, "SELECT dgen.cast('j/1', %s, dedup_key => %s)",
                           psycopg.types.json.Jsonb({"t": token}), token)

    def do_invoke(self):
        with self.conn.transaction():
            value(self.conn, "SELECT dgen.invoke('j/quiet', %s)",
                  psycopg.types.json.Jsonb({"t": self.token(), "a": 5}))

    def do_rollback(self):
        with self.conn.transaction(force_rollback=True):
            self.send("j/1", "cast")
            value(self.conn, "SELECT dgen.invoke('j/quiet', %s)", psycopg.types.json.Jsonb({"t": self.token()}))

    def do_multi_call(self):
        token = self.token()
        rows = self.conn.execute("SELECT error FROM dgen.multi_call(ARRAY['queue/7', 'queue/8'], %s, '60 s')",
                                 (psycopg.types.json.Jsonb({"a": 1}),)).fetchall()
        assert rows == [(None,), (None,)], (token, rows)

    def do_prepared(self):
        """Sends and an invoke in a transaction that stays prepared for a while."""
        name = "sent by %d" % self.number
        self.conn.execute("BEGIN")
        for kind in ("cast", "late", "request"):
            self.send("j/1", kind)
        self.conn.execute("PREPARE TRANSACTION '%s'" % name)
        for _ in range(3):
            self.send("j/1", "cast")
        self.call("j/quiet")
        self.conn.execute("COMMIT PREPARED '%s'" % name)

    def do_drain(self):
        with self.conn.transaction():
            self.send("j/2", "cast")
            self.send("j/2", "cast", do="effect")
            value(self.conn, "SELECT dgen.drain('j/2')")

    def do_handlers(self):
        for what in ("fail", "again", "postpone", "continue", "timeout", "timer", "effect", "effect", "grow", "grow"):
            self.send(self.server(), "cast", do=what)
        for what in ("send", "monitor", "ask"):
            self.send(self.server(), "cast", do=what, to=self.server())
        self.send(self.server(), "cast", do="name")

    def do_dead_letter(self):
        dead = self.send(self.server(), "cast", do="die")
        self.send(self.server(), "request", do="reject")
        letters = "SELECT count(*) FROM dgen.letter WHERE id = %s"
        wait_for(lambda: value(self.conn, letters, dead), 60)
        self.conn.execute("SELECT dgen.requeue(%s, message => %s)",
                          (dead, psycopg.types.json.Jsonb({"t": "%d-%d" % (self.number, self.counter - 1)})))

    def do_timers(self):
        self.send(self.server(), "cast", do="every")
        self.send(self.server(), "cast", do=self.chance.choice(("untimer", "unevery", "timer")))

    def do_cancel(self):
        with self.conn.transaction():
            id = self.send("j/0", "late")
            later = self.send("j/0", "after")
        with self.conn.transaction():
            if value(self.conn, "SELECT dgen.cancel(%s)", id):
                self.conn.execute("UPDATE sent SET gone = true WHERE id = %s", (id,))
        with self.conn.transaction():
            if value(self.conn, "SELECT dgen.cancel_timer(%s)", later) is not None:
                self.conn.execute("UPDATE sent SET gone = true WHERE id = %s", (later,))

    def do_later_reply(self):
        """Waits for a reply that another message of the same client gives."""
        server = "j/later%d" % self.number
        token = self.token()
        id = value(self.conn, "SELECT dgen.send_request(%s, %s, notify => false)", server,
                   psycopg.types.json.Jsonb({"t": token, "do": "later"}))
        self.send(server, "cast", do="answer")
        assert value(self.conn, "SELECT dgen.wait_response(%s, '60 s')", id) == "later"

    def do_postponed_call(self):
        self.call(self.server("fsm"), next="b")
        self.send("fsm/0", "late", next="c")
        self.send("fsm/0", "cast", **{"in": "c"})
        self.send("fsm/0", "late", next="a")
        self.call("fsm/0", **{"in": "a"})

    def do_machine(self):
        self.send(self.server("fsm"), "cast", timeouts=1)
        self.send(self.server("fsm"), "cast", next=self.chance.choice("abc"))

    def do_doc(self):
        for n in range(6):
            self.conn.execute("SELECT dgen.cast(%s, %s)", (self.server("doc"), psycopg.types.json.Jsonb(self.token())))

    def do_doc_admin(self):
        server = "doc/admin%d" % self.number
        for n in range(3):
            self.conn.execute("SELECT dgen.cast(%s, %s)", (server, psycopg.types.json.Jsonb(self.token())))
        assert value(self.conn, "SELECT dgen.wait_idle(module => 'doc', timeout => '60 s')")
        self.conn.execute("SELECT dgen.rollback(%s)", (server,))
        with self.conn.transaction():
            state = value(self.conn, "SELECT dgen.state(%s)", server)
            state["extra"] = self.counter
            self.conn.execute("SELECT dgen.replace_state(%s, %s)", (server, psycopg.types.json.Jsonb(state)))
            self.conn.execute("INSERT INTO doc_log VALUES (%s, md5(dgen.state(%s)::text)) ON CONFLICT DO NOTHING",
                              (server, server))

    def do_bank(self):
        one, two = self.chance.sample(range(1, 5), 2)
        for how in ("give", "hand"):
            value(self.conn, "SELECT dgen.call(%s, %s, '60 s')", "bank/%d" % one,
                  psycopg.types.json.Jsonb({how: self.chance.randrange(20), "to": "bank/%d" % two}))
        with self.conn.transaction():
            for server, amount in sorted([("bank/%d" % one, -7), ("bank/%d" % two, 7)]):
                self.conn.execute("SELECT dgen.invoke(%s, %s)",
                                  (server, psycopg.types.json.Jsonb({"take": amount})))

    def do_jobs(self):
        for _ in range(3):
            self.send(self.server("jobs"), "cast")
        take(self.conn, self.chance)

    def do_held(self):
        self.conn.execute("SELECT dgen.cast(%s, %s)", (self.server("held"), psycopg.types.json.Jsonb({"t": self.token()})))
        value(self.conn, "SELECT dgen.call(%s, %s, '60 s')", self.server("held"),
              psycopg.types.json.Jsonb({"t": self.token()}))

    def do_tree(self):
        for n in (1, 2, 3):
            self.send("kid/%d" % n, "cast")
        self.conn.execute("SELECT dgen.cast(%s, '{\"crash\": 1}', max_attempts => 1)",
                          ("kid/%d" % self.chance.randrange(1, 4),))
        if self.number == 0:
            child = '{"id": "extra", "server": "kid/extra"}'
            self.conn.execute("SELECT dgen.start_child('tree', %s)", (child,))
            self.conn.execute("SELECT dgen.terminate_child('tree', 'extra')")
            self.conn.execute("SELECT dgen.restart_child('tree', 'extra')")
            self.conn.execute("SELECT dgen.terminate_child('tree', 'extra')")
            self.conn.execute("SELECT dgen.delete_child('tree', 'extra')")

    def do_migrate(self):
        self.send(self.server("mig"), "cast")
        if self.number == 0:
            vsn = str(int(value(self.conn, "SELECT vsn FROM dgen.modules WHERE module = 'mig'")) + 1)
            self.conn.execute("SELECT dgen.alter_module('mig', vsn => %s)", (vsn,))
            if self.chance.random() < 0.5:
                self.conn.execute("SELECT * FROM dgen.migrate('mig')")
        self.send(self.server("mig"), "cast")

    def do_queue(self):
        for _ in range(3):
            self.send(self.server("queue"), "cast")

    def do_life(self):
        """A server of its own: started, watched, suspended, stopped, killed, deleted."""
        server = "j/own%d" % self.number
        self.conn.execute("SELECT dgen.start(%s, if_exists => 'return')", (server,))
        self.send(self.server(), "cast", do="monitor", to=server)
        self.send(server, "cast", do="name")
        self.send(server, "cast", do="timeout")
        self.send(server, "cast", do="every")
        self.conn.execute("SELECT dgen.suspend(%s, reason => 'a test')", (server,))
        self.send(server, "cast")
        self.conn.execute("SELECT dgen.resume(%s)", (server,))
        self.send(server, "cast", do="exit")
        self.send(server, "cast")
        self.conn.execute("SELECT dgen.stop(%s)", (server,))
        self.send(server, "late")
        self.send(server, "after")
        self.conn.execute("SELECT dgen.kill(%s)", (server,))
        with self.conn.transaction():
            tombstone = self.chance.choice((None, "50 ms"))
            self.conn.execute("SELECT dgen.delete(%s, tombstone => %s)", (server, tombstone))
            self.conn.execute("UPDATE effect SET live = false WHERE server = %s", (server,))
            self.conn.execute("UPDATE sent SET gone = true WHERE server = %s AND "
                              "NOT EXISTS (SELECT FROM effect e WHERE e.token = sent.token)", (server,))
        wait_for(lambda: not value(self.conn, "SELECT count(*) FROM dgen.server WHERE server = %s "
                                   "AND tombstone_until > clock_timestamp()", server), 60)

    def run(self, rounds, stop=None):
        operations = sorted(name for name in dir(self) if name.startswith("do_"))
        with self.cluster.connect() as self.conn, self.cluster.connect() as self.side:
            self.conn.execute("SET client_min_messages = error")
            for _ in range(rounds):
                self.chance.shuffle(operations)
                for name in operations:
                    if stop is not None and stop.is_set():
                        return
                    for again in range(20):
                        try:
                            getattr(self, name)()
                            break
                        except (psycopg.errors.SerializationFailure, psycopg.errors.DeadlockDetected):
                            pass
                    self.did.add(name)


def take(conn, chance=None):
    """Takes work and does it, or sometimes not; how much there was."""
    work = conn.execute("SELECT server, token, message, state FROM dgen.take_work('jobs', 10, %s::interval)",
                        ("30 s" if chance is None else "200 ms",)).fetchall()
    for server, token, message, state in work:
        fate = chance.random() if chance else 1
        if fate < 0.2:
            conn.execute("SELECT dgen.fail_work(%s, 'it failed')", (token,))
        elif fate < 0.3:
            continue            # its lease ends
        else:
            try:
                with conn.transaction():
                    conn.execute("INSERT INTO effect (token, server, amount, kind) VALUES (%s, %s, %s, 'job')",
                                 (message["t"], server, message["a"]))
                    state = {"n": state.get("n", 0) + 1, "sum": state.get("sum", 0) + message["a"]}
                    conn.execute("SELECT dgen.finish_work(%s, %s)", (token, psycopg.types.json.Jsonb(state)))
            except psycopg.Error as e:
                if e.sqlstate != "OT014":
                    raise
    return len(work)


def run(cluster, seed, rounds, clients=4):
    loads = [Load(cluster, number, seed) for number in range(clients)]
    in_threads([lambda load=load: load.run(rounds) for load in loads], timeout=600)
    names = {name for name in dir(Load) if name.startswith("do_")}
    assert all(load.did == names for load in loads)
    return loads


def finish(conn, timeout=60):
    """Lets all that waits be handled to its end."""
    conn.execute("SET client_min_messages = error")
    end = time.monotonic() + timeout

    def left():
        # timers that recur go on for ever
        conn.execute("SELECT dgen.cancel_timer(server => server, name => name) FROM dgen.timer WHERE every IS NOT NULL")
        conn.execute("SELECT dgen.resume(server) FROM dgen.server WHERE suspended_at IS NOT NULL")
        take(conn)
        # what is postponed waits for another state
        conn.execute("SELECT dgen.cast(server, '{}') FROM (SELECT DISTINCT server FROM dgen.postponed WHERE server LIKE 'j/%') s")
        conn.execute("SELECT dgen.cast(server, jsonb_build_object('next', message->'in')) FROM dgen.postponed WHERE server LIKE 'fsm/%'")
        waiting = value(conn, """SELECT (SELECT count(*) FROM dgen.message) + (SELECT count(*) FROM dgen.delayed)
                                 + (SELECT count(*) FROM dgen.postponed)""")
        if waiting == 0:
            # nothing had to wait for those; and they come late
            for name, in conn.execute("SELECT gid FROM pg_prepared_xacts").fetchall():
                conn.execute("COMMIT PREPARED '%s'" % name)
                waiting += 1
        return waiting
    while left():
        if time.monotonic() > end:
            raise AssertionError("left:\n" + "\n".join(map(str, conn.execute("""
                SELECT 'message', m.server, m.kind, m.id, m.message::text, a::text FROM dgen.message m LEFT JOIN dgen.attempt a USING (id)
                UNION ALL SELECT 'delayed', server, kind, id, message::text, due_at::text FROM dgen.delayed
                UNION ALL SELECT 'postponed', server, kind, id, message::text, '' FROM dgen.postponed""").fetchall())))
        time.sleep(0.05)


# when all has been handled
FINISHED = [
    ("each message was handled once, or is a dead letter", """
        SELECT s.* FROM sent s
        WHERE NOT s.gone AND NOT EXISTS (SELECT FROM effect e WHERE e.token = s.token)
          AND NOT EXISTS (SELECT FROM dgen.letter l WHERE l.message->>'t' = s.token)"""),
    ("the sum", "SELECT sum(dgen.state(server)::int) FROM dgen.server WHERE server LIKE 'bank/%' HAVING sum(dgen.state(server)::int) <> 400"),
    ("nothing is left", """
        SELECT id FROM dgen.message UNION ALL SELECT id FROM dgen.delayed UNION ALL SELECT id FROM dgen.postponed
        UNION ALL SELECT id FROM dgen.attempt"""),
    ("nothing is locked or fails", "SELECT server FROM dgen.server WHERE failing OR lock_id IS NOT NULL OR continue_id IS NOT NULL"),
]
