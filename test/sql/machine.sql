--
-- State machines: the rules of gen_statem.
--
\getenv dir PG_ABS_SRCDIR
\i :dir/sql/helpers.psql
CREATE SCHEMA fsm;
CREATE TABLE fsm.log (n serial, server text, what text);
CREATE FUNCTION fsm.note(what text) RETURNS void LANGUAGE sql AS $$ INSERT INTO fsm.log (server, what) VALUES (dgen.key(), what) $$;
-- an event may say what is to be done: "next", "reply", "postpone", "exit", "repeat", "data", and "do", which is run;
-- "in" names the state in which it is to be handled at all: elsewhere it is postponed
CREATE FUNCTION fsm.handle_event(kind text, event jsonb, state_name text, INOUT data jsonb, OUT next_state text,
  OUT reply jsonb, OUT postpone boolean, OUT repeat_state boolean, OUT exit text) LANGUAGE plpgsql AS $$
BEGIN
  PERFORM fsm.note(concat_ws(' ', state_name, kind, event));
  IF jsonb_typeof(event) <> 'object' THEN RETURN; END IF;
  IF event ? 'in' AND event ->> 'in' <> state_name THEN
    postpone := true;
    RETURN;
  END IF;
  IF event ? 'do' THEN EXECUTE event ->> 'do'; END IF;
  IF event ? 'data' THEN data := event -> 'data'; END IF;
  next_state := event ->> 'next';
  reply := event -> 'reply';
  postpone := (event -> 'postpone')::boolean;
  repeat_state := (event -> 'repeat')::boolean;
  exit := event ->> 'exit';
END $$;
-- what it does as it enters a state, is in the data
CREATE FUNCTION fsm.enter(old_state text, state_name text, INOUT data jsonb) LANGUAGE plpgsql AS $$
BEGIN
  PERFORM fsm.note('enter ' || state_name || ' from ' || old_state);
  IF data ? state_name THEN EXECUTE data ->> state_name; END IF;
END $$;
SELECT pg_temp.try($$SELECT dgen.create_module('fsm', kind => 'statem')$$);
CREATE FUNCTION fsm.init(args jsonb, OUT data jsonb, OUT state_name text) LANGUAGE plpgsql AS $$
BEGIN
  data := coalesce(args -> 'data', '{}');
  state_name := CASE WHEN args ? 'state' THEN args ->> 'state' ELSE 'a' END;
  IF args ? 'do' THEN EXECUTE args ->> 'do'; END IF;
END $$;
SELECT pg_temp.error($$SELECT dgen.create_module('fsm', kind => 'other')$$);
SELECT pg_temp.try($$SELECT dgen.create_module('fsm', kind => 'statem', ephemeral => true)$$);
SELECT pg_temp.try($$SELECT dgen.create_module('fsm', kind => 'statem', expire_after => '1 h')$$);
SELECT pg_temp.error($$SELECT dgen.create_module('fsm')$$);
SELECT dgen.create_module('fsm', kind => 'statem', max_attempts => 1, breaker => 0) -> 'callbacks';
SELECT pg_temp.try($$SELECT dgen.alter_module('fsm', kind => 'server', callbacks => '{"init": null}')$$);
SELECT kind, fault FROM dgen.modules WHERE module = 'fsm';
-- what a machine has said, and forget it
CREATE FUNCTION pg_temp.log(key text) RETURNS SETOF text LANGUAGE sql AS $$
  WITH gone AS (DELETE FROM fsm.log WHERE server = key RETURNING n, what) SELECT what FROM gone ORDER BY n $$;

--
-- init, events of each kind, state enter calls
--
SELECT dgen.call('fsm/1', '{"reply": 1}');
SELECT dgen.cast('fsm/1', '{"next": "b"}') > 0, dgen.send('fsm/1', '{"next": "b"}') > 0;
SELECT dgen.call('fsm/1', '{"next": "a", "reply": null}');
SELECT dgen.send_request('fsm/1', '{"reply": "kept", "repeat": true, "data": {"x": 1}}') AS request \gset
SELECT dgen.wait_response(:request);
SELECT pg_temp.log('1');
SELECT status, state_name, state FROM dgen.servers WHERE server = 'fsm/1';
SELECT dgen.start('fsm/2', '{"state": "b", "data": {"b": "SELECT dgen.state_timeout(''1 h'')"}}');
SELECT pg_temp.log('2');
SELECT pg_temp.try($$SELECT dgen.start('fsm/3', '{"state": null}')$$);
SELECT pg_temp.error($$SELECT dgen.start('fsm/3', '{"do": "SELECT dgen.continue(''1'')"}')$$);
SELECT pg_temp.error($$SELECT dgen.start('fsm/3', '{"do": "SELECT dgen.timeout(''1 s'')"}')$$);
-- a server that enters its first state only to end
SELECT dgen.start('fsm/3', '{"data": {"a": "SELECT dgen.exit(''at once'')"}}');
SELECT status, stop_reason, state_name FROM dgen.servers WHERE server = 'fsm/3';

--
-- next_event: before the mailbox, in order, also inserted by inserted ones; in the same activation
--
SELECT dgen.suspend('fsm/4');
SELECT dgen.cast('fsm/4', '{"do": "SELECT dgen.next_event(''{\"do\": \"SELECT dgen.next_event(''''1.5'''')\"}''), dgen.next_event(''2'')", "next": "b"}') > 0,
  dgen.cast('fsm/4', '"behind"') > 0;
SELECT dgen.resume('fsm/4');
SELECT dgen.wait_idle('fsm/4');
SELECT pg_temp.log('4');
-- an error in one of them undoes all
SELECT pg_temp.error($$SELECT dgen.call('fsm/4', '{"do": "SELECT dgen.next_event(''{\"do\": \"SELECT 1 / 0\"}'')", "next": "c", "reply": 1}')$$);
SELECT state_name FROM dgen.servers WHERE server = 'fsm/4';
SELECT pg_temp.log('4');
-- from init; what is said in a savepoint that is rolled back does not count
SELECT dgen.start('fsm/5', '{"do": "DO $x$ BEGIN PERFORM dgen.next_event(''1''); BEGIN PERFORM dgen.next_event(''2''); RAISE ''no''; EXCEPTION WHEN OTHERS THEN END; PERFORM dgen.next_event(''3''); END $x$"}');
SELECT pg_temp.log('5');
SELECT pg_temp.error($$SELECT dgen.call('fsm/5', '{"do": "SELECT dgen.next_event(''{\"postpone\": true}'')", "reply": 1}')$$);
SELECT pg_temp.error($$SELECT dgen.call('fsm/5', '{"do": "SELECT dgen.next_event(''{\"reply\": true}'')", "reply": 1}')$$);
SELECT pg_temp.error($$SELECT dgen.call('fsm/5', '{"next": "b", "reply": 1, "data": {"b": "SELECT dgen.next_event(''1'')"}}')$$);
SELECT pg_temp.error($$SELECT dgen.call('fsm/5', '{"next": "b", "reply": 1, "data": {"b": "SELECT dgen.postpone()"}}')$$);

--
-- postpone: retried in order after a change of state, before newer ones; not after a change of data
--
SELECT count(*) > 0 FROM pg_temp.log('5');
SELECT dgen.cast('fsm/5', jsonb_build_object('in', 'b', 'i', i)) > 0 FROM generate_series(1, 3) i;
SELECT dgen.call('fsm/5', '{"data": {"y": 1}, "reply": "data"}');
SELECT dgen.call('fsm/5', '{"next": "a", "repeat": true, "reply": "the same state"}');
SELECT postponed FROM dgen.servers WHERE server = 'fsm/5';
SELECT count(*) > 0 FROM pg_temp.log('5');
SELECT dgen.suspend('fsm/5');
SELECT dgen.cast('fsm/5', '{"next": "c"}') > 0, dgen.cast('fsm/5', '{"next": "b"}') > 0, dgen.cast('fsm/5', '"last"') > 0;
SELECT dgen.resume('fsm/5');
SELECT dgen.wait_idle('fsm/5');
SELECT pg_temp.log('5');
-- postponed, and the state has changed: once more in the new one
SELECT dgen.cast('fsm/5', '{"in": "b", "postpone": true, "next": "d"}') > 0, dgen.cast('fsm/5', '"newer"') > 0;
SELECT dgen.wait_idle('fsm/5');
SELECT pg_temp.log('5');
-- a call, too: postponed before, or now
CREATE SCHEMA turn;
CREATE FUNCTION turn.init(args jsonb, OUT data jsonb, OUT state_name text) LANGUAGE sql AS $$ SELECT '{}'::jsonb, 'locked' $$;
CREATE FUNCTION turn.in_locked(kind text, event jsonb, data jsonb, OUT next_state text, OUT postpone boolean) LANGUAGE sql AS $$
  SELECT CASE WHEN kind = 'cast' THEN 'closed' END, kind = 'call' $$;
CREATE FUNCTION turn.in_closed(kind text, event jsonb, data jsonb, OUT next_state text, OUT postpone boolean) LANGUAGE sql AS $$
  SELECT 'open', true $$;
CREATE FUNCTION turn.in_open(kind text, event jsonb, data jsonb, OUT reply jsonb) LANGUAGE sql AS $$ SELECT '"open"'::jsonb $$;
SET client_min_messages = error;
SELECT dgen.create_module('turn', kind => 'statem') -> 'created';
RESET client_min_messages;
SELECT dgen.cast('turn/1', '"unlock"', delay => '100 ms') > 0;
SELECT dgen.call('turn/1', '1'), dgen.call('turn/1', '2');
SELECT dgen.start('turn/2'), dgen.cast('turn/2', '"unlock"') > 0;
SELECT dgen.call('turn/2', '1'), dgen.call('turn/2', '2');
-- a call that waits for its state
SELECT dgen.cast('fsm/5', '{"next": "e"}', delay => '100 ms') > 0;
SELECT dgen.call('fsm/5', '{"in": "e", "reply": "in e"}');
SELECT count(*) > 0 FROM pg_temp.log('5');

--
-- Calls that are answered later, by another event
--
CREATE FUNCTION fsm.remember() RETURNS void LANGUAGE sql AS $$ INSERT INTO fsm.log (server, what) VALUES ('from', dgen."from"()) $$;
CREATE FUNCTION fsm.answer(reply jsonb) RETURNS void LANGUAGE sql AS $$ SELECT dgen.reply(pg_temp_from, reply) FROM (SELECT what FROM fsm.log WHERE server = 'from') f (pg_temp_from) $$;
SELECT dgen.cast('fsm/6', '{"do": "SELECT fsm.answer(''\"later\"'')"}', delay => '100 ms') > 0;
SELECT dgen.call('fsm/6', '{"do": "SELECT fsm.remember()"}');
DELETE FROM fsm.log WHERE server = 'from';
-- in the same activation, by an event that it inserts
SELECT dgen.call('fsm/6', '{"do": "SELECT fsm.remember(), dgen.next_event(''{\"do\": \"SELECT fsm.answer(''''2'''')\"}'')"}');
SELECT pg_temp.error($$SELECT dgen.call('fsm/6', '{}', '100 ms')$$);
DELETE FROM fsm.log;

--
-- Timeouts. State: cancelled by a change of state
--
SELECT dgen.call('fsm/7', '{"do": "SELECT dgen.state_timeout(''50 ms'', ''\"slow\"'')", "next": "b", "reply": 1}');
SELECT pg_temp.until($$EXISTS (SELECT FROM fsm.log WHERE what LIKE '% state_timeout "slow"')$$);
SELECT pg_temp.log('7');
SELECT dgen.call('fsm/7', '{"do": "SELECT dgen.state_timeout(''200 ms'', ''\"never\"'')", "reply": 1}');
SELECT dgen.call('fsm/7', '{"next": "c", "reply": 1}');
SELECT dgen.call('fsm/7', '{"do": "SELECT dgen.state_timeout(''10 ms'', ''\"replaced\"''), dgen.state_timeout(''1 h'')", "reply": 1}');
SELECT dgen.call('fsm/7', '{"do": "SELECT dgen.state_timeout(NULL)", "reply": 1}');
-- event: cancelled by any event
SELECT dgen.call('fsm/8', '{"do": "SELECT dgen.event_timeout(''50 ms'')", "reply": 1}');
SELECT pg_temp.until($$EXISTS (SELECT FROM fsm.log WHERE what LIKE '% timeout %')$$);
SELECT dgen.call('fsm/8', '{"do": "SELECT dgen.event_timeout(''200 ms'', ''\"never\"'')", "reply": 1}');
SELECT dgen.call('fsm/8', '{"reply": "an event"}');
SELECT dgen.call('fsm/8', '{"do": "SELECT dgen.event_timeout(''200 ms'', ''\"never\"''), dgen.next_event(''1'')", "reply": 1}');
-- one of init, too
SELECT dgen.start('fsm/20', '{"do": "SELECT dgen.event_timeout(''1 h'')"}');
SELECT name, kind FROM dgen.timers WHERE server = 'fsm/20';
SELECT dgen.call('fsm/20', '{"reply": 1}');
SELECT name, kind FROM dgen.timers WHERE server = 'fsm/20';
-- generic: by neither; each name has one
SELECT dgen.call('fsm/9', '{"do": "SELECT dgen.generic_timeout(''x'', ''10 ms'', ''\"never\"''), dgen.generic_timeout(''x'', ''100 ms''), dgen.generic_timeout(''y'', ''1 h''), dgen.generic_timeout(''z'', ''50 ms'', ''{\"next\": \"c\"}'')", "next": "b", "reply": 1}');
SELECT dgen.call('fsm/9', '{"do": "SELECT dgen.generic_timeout(''y'', NULL)", "next": "a", "reply": 1}');
SELECT pg_temp.until($$EXISTS (SELECT FROM fsm.log WHERE what LIKE '%"x"')$$);
SELECT pg_sleep(0.2);
SELECT pg_temp.log('7');
SELECT pg_temp.log('8');
SELECT pg_temp.log('9');
SELECT count(*) FROM dgen.timer WHERE server IN ('fsm/7', 'fsm/8', 'fsm/9');
-- zero: behind what waits
SELECT dgen.suspend('fsm/10');
SELECT dgen.cast('fsm/10', '{"do": "SELECT dgen.state_timeout(''0'', ''\"zero\"'')"}') > 0, dgen.cast('fsm/10', '1') > 0;
SELECT dgen.resume('fsm/10');
SELECT pg_temp.until($$EXISTS (SELECT FROM fsm.log WHERE what LIKE '% state_timeout "zero"')$$);
SELECT pg_temp.log('10');
-- a timeout that is postponed
SELECT dgen.call('fsm/10', '{"do": "SELECT dgen.state_timeout(''0'', ''{\"in\": \"z\"}'')", "reply": 1}');
SELECT pg_temp.until($$EXISTS (SELECT FROM dgen.servers WHERE server = 'fsm/10' AND postponed = 1)$$);
SELECT dgen.call('fsm/10', '{"next": "z", "reply": 1}');
SELECT dgen.wait_idle('fsm/10');
SELECT pg_temp.log('10');
-- and one that is, and changes the state, in the transaction that has set it
SELECT count(*) FROM pg_temp.log('20');
BEGIN;
SELECT dgen.cast('fsm/20', '{"do": "SELECT dgen.state_timeout(''0'', ''{\"in\": \"a\", \"postpone\": true, \"next\": \"b\"}'')"}') > 0;
SELECT dgen.drain();
COMMIT;
SELECT pg_temp.log('20');
SELECT status, state_name, postponed FROM dgen.servers WHERE server = 'fsm/20';
-- they end with the incarnation, and nobody can send one
SELECT dgen.call('fsm/10', '{"do": "SELECT dgen.state_timeout(''50 ms''), dgen.generic_timeout(''g'', ''50 ms'')", "reply": 1}');
SELECT dgen.stop('fsm/10');
SELECT dgen.call('fsm/10', '{"reply": 1}');
SELECT dgen.send('fsm/10', '{"$timer": "state_timeout", "event": 1}') > 0;
SELECT pg_sleep(0.2);
SELECT pg_temp.log('10');
SELECT pg_temp.error($$SELECT dgen.call('fsm/10', '{"do": "SELECT dgen.state_timeout(''-1 s'')", "reply": 1}')$$);
SELECT pg_temp.error($$SELECT dgen.call('fsm/10', '{"do": "SELECT dgen.generic_timeout(NULL, ''1 s'')", "reply": 1}')$$);
SELECT pg_temp.error($$SELECT dgen.call('fsm/10', '{"do": "SELECT dgen.state_timeout(''infinity''::interval)", "reply": 1}')$$) ~ '^22';

--
-- Ends: exit, stop, kill; what was postponed is for the next life
--
CREATE FUNCTION fsm.terminate(reason text, data jsonb) RETURNS void LANGUAGE sql AS $$ SELECT fsm.note('terminate ' || reason || ' in ' || dgen.state_name()) $$;
SELECT dgen.call('fsm/11', '{"next": "b", "reply": 1}');
SELECT dgen.cast('fsm/11', '{"in": "a", "next": "c"}') > 0;
SELECT dgen.wait_idle('fsm/11');
SELECT dgen.call('fsm/11', '{"exit": "done", "reply": "bye"}');
SELECT dgen.wait_idle('fsm/11');
SELECT pg_temp.log('11');
SELECT status, incarnation, state_name, postponed FROM dgen.servers WHERE server = 'fsm/11';
SELECT dgen.call('fsm/11', '{"next": "d", "reply": 1, "data": {"d": "SELECT dgen.exit(''entered d'')"}}');
SELECT status, stop_reason, state_name FROM dgen.servers WHERE server = 'fsm/11';

--
-- In the transaction of a caller, and for tests
--
BEGIN ISOLATION LEVEL SERIALIZABLE;
SELECT dgen.invoke('fsm/12', '{"next": "b", "reply": "invoked"}');
SELECT dgen.cast('fsm/12', '{"in": "c"}') > 0, dgen.cast('fsm/12', '{"next": "c"}') > 0, dgen.cast('fsm/12', '"newer"') > 0, dgen.drain();
SELECT pg_temp.log('12');
SAVEPOINT a;
SELECT dgen.invoke('fsm/12', '{"next": "d", "reply": 1}');
ROLLBACK TO a;
SELECT state_name FROM dgen.servers WHERE server = 'fsm/12';
SELECT pg_temp.error($$SELECT dgen.invoke('fsm/12', '{}')$$);
SELECT pg_temp.error($$SELECT dgen.invoke('fsm/12', '{"in": "e"}')$$);
COMMIT;
SELECT dgen.call('fsm/12', '{"reply": 1}');
SELECT pg_temp.log('12');
CREATE FUNCTION fsm.handle_query(query jsonb, data jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT jsonb_build_array(dgen.state_name(), data) $$;
SELECT dgen.query('fsm/12', NULL);
SELECT dgen.try('fsm', 'handle_event', '{"kind": "call", "event": {"next": "b", "reply": 1, "do": "SELECT dgen.next_event(''1''), dgen.generic_timeout(''x'', ''1 s''), dgen.state_timeout(NULL)"}}', '{"state_name": "a", "data": {}}');
SELECT dgen.try('fsm', 'enter', '"a"', '{"state_name": "b", "data": {"b": "SELECT dgen.state_timeout(''1 s'', ''2'')"}}');
SELECT dgen.try('fsm', 'init', '{"state": "q"}');
SELECT pg_temp.error($$SELECT dgen.try('fsm', 'handle_call', '1', '1')$$);
SELECT pg_temp.error($$SELECT dgen.try('fsm', 'handle_event', '1', '{"data": {}}')$$);
SELECT pg_temp.error($$SELECT dgen.call('fsm/12', '{"do": "SELECT dgen.state_timeout(''296520 years'')", "reply": 1}')$$);
SELECT pg_temp.error($$SELECT dgen.start('fsm/13', '{"do": "SELECT dgen.next_event(''{\"do\": \"SELECT dgen.reject(''''no'''')\"}'')"}')$$);
SELECT pg_temp.error($$SELECT dgen.next_event('1')$$);
-- validate, and where it is refused the machine stays where it was
CREATE FUNCTION fsm.validate(data jsonb) RETURNS boolean LANGUAGE sql AS $$ SELECT NOT data ? 'bad' $$;
SELECT pg_temp.error($$SELECT dgen.call('fsm/12', '{"next": "b", "data": {"bad": 1}, "reply": 1}')$$);
SELECT dgen.replace_state('fsm/12', '{"good": 1}') > 0;
SELECT state_name, state FROM dgen.servers WHERE server = 'fsm/12';

--
-- One function a state
--
CREATE SCHEMA lamp;
CREATE FUNCTION lamp.init(args jsonb, OUT data jsonb, OUT state_name text) LANGUAGE sql AS $$ SELECT '0'::jsonb, 'off' $$;
CREATE FUNCTION lamp.in_off(kind text, event jsonb, INOUT data jsonb, OUT next_state text, OUT reply jsonb) LANGUAGE plpgsql AS $$
BEGIN
  next_state := event #>> '{}';
  reply := to_jsonb('was ' || dgen.state_name());
END $$;
CREATE FUNCTION lamp.in_on(kind text, event jsonb, INOUT data jsonb, OUT next_state text, OUT reply jsonb) LANGUAGE sql AS $$
  SELECT to_jsonb(data::int + 1), 'off', to_jsonb(kind) $$;
SELECT dgen.create_module('lamp', kind => 'statem') -> 'created';
SELECT dgen.call('lamp/1', '"on"'), dgen.call('lamp/1', '"whatever"');
SELECT dgen.call('lamp/1', 'null');
SELECT state_name, state FROM dgen.servers WHERE server = 'lamp/1';
SELECT pg_temp.try($$SELECT dgen.call('lamp/1', '"broken"')$$);
CREATE FUNCTION lamp.in_wrong(kind text, event jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT $2 $$;
SELECT pg_temp.try($$SELECT dgen.call('lamp/1', '"wrong"')$$);
CREATE FUNCTION lamp.in_broken(kind text, event jsonb, INOUT data jsonb) LANGUAGE sql AS $$ SELECT data $$;
SELECT dgen.call('lamp/1', '"broken"');
SELECT dgen.try('lamp', 'in_off', '{"kind": "call", "event": "on"}', '{"data": 1}');
-- what leaves out data keeps it, and an event that says nothing changes nothing
CREATE FUNCTION lamp.in_kept(kind text, event jsonb, data jsonb, OUT reply jsonb, OUT next_state text) LANGUAGE sql AS $$
  SELECT data, CASE WHEN event = '"off"' THEN 'off' END $$;
SELECT dgen.call('lamp/2', '"kept"'), dgen.call('lamp/2', '"again"');
SELECT state_name, state, version FROM dgen.servers WHERE server = 'lamp/2';
-- new code: code_change has the data, the state keeps its name; and masks are about the data
CREATE FUNCTION lamp.code_change(old_vsn text, data jsonb) RETURNS jsonb LANGUAGE sql AS $$
  SELECT jsonb_build_object('from', old_vsn, 'data', data, 'in', dgen.state_name()) $$;
CREATE FUNCTION lamp.format_status(data jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT '"masked"'::jsonb $$;
SELECT dgen.alter_module('lamp', vsn => '2') -> 'created';
SELECT dgen.call('lamp/2', '"off"');
SELECT state_name, state, dgen.state(server), vsn FROM dgen.servers WHERE server = 'lamp/2';
-- who may send: EXECUTE on handle_event, or on init
CREATE ROLE regress_dgen_machine;
GRANT USAGE ON SCHEMA lamp TO regress_dgen_machine;
REVOKE EXECUTE ON FUNCTION lamp.init(jsonb) FROM public;
SET ROLE regress_dgen_machine;
SELECT pg_temp.try($$SELECT dgen.cast('lamp/1', '1')$$);
RESET ROLE;
DROP OWNED BY regress_dgen_machine;
DROP ROLE regress_dgen_machine;

SET client_min_messages = error;
SELECT dgen.drop_module('fsm', cascade => true), dgen.drop_module('lamp', cascade => true), dgen.drop_module('turn', cascade => true);
DROP SCHEMA fsm, lamp, turn CASCADE;
