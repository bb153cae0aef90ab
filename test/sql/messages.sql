--
-- Messages: what can be sent and how, what becomes of it, and what handlers
-- know of whom they are from.
--
\getenv dir PG_ABS_SRCDIR
\i :dir/sql/helpers.psql
CREATE ROLE regress_dgen_messages LOGIN;
CREATE SCHEMA messages AUTHORIZATION regress_dgen_messages;
SET ROLE regress_dgen_messages;

-- all that comes is logged, in the order in which it is handled
CREATE TABLE messages.log (n serial, server text, kind text, message jsonb);
CREATE FUNCTION messages.handle_cast(message jsonb, INOUT state jsonb) LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO messages.log (server, kind, message) VALUES (dgen.self(), dgen.kind(), message);
  IF message ? 'do' THEN
    EXECUTE message ->> 'do';
  END IF;
END $$;
CREATE FUNCTION messages.handle_info(message jsonb, INOUT state jsonb) LANGUAGE sql AS $$
  INSERT INTO messages.log (server, kind, message) VALUES (dgen.self(), dgen.kind(), message);
  SELECT state $$;
CREATE FUNCTION messages.handle_call(request jsonb, INOUT state jsonb, OUT reply jsonb) LANGUAGE plpgsql AS $$
BEGIN
  EXECUTE 'SELECT to_jsonb(x) FROM (SELECT ' || (request ->> 0) || ') x' INTO reply;
END $$;
SELECT dgen.create_module('messages', vsn => 'v1') -> 'created';
RESET ROLE;
-- what was handled since the last look, each server's in its order
CREATE FUNCTION pg_temp.handled() RETURNS SETOF text LANGUAGE plpgsql AS $$
BEGIN
  PERFORM dgen.wait_idle(module => 'messages', timeout => '20 s');
  RETURN QUERY WITH gone AS (DELETE FROM messages.log RETURNING *)
    SELECT concat_ws(' ', split_part(server, '/', 2), kind, message) FROM gone ORDER BY server, n;
END $$;
SET ROLE regress_dgen_messages;

--
-- cast and send
--
SELECT dgen.cast('messages/a', '{"b": [1, null]}') > 0, dgen.send('messages/a', '"hello"') > 0;
SELECT pg_temp.handled();
-- SQL NULL is JSON null
SELECT dgen.cast('messages/a', NULL) > 0, dgen.send('messages/a', NULL) > 0;
SELECT pg_temp.handled();
-- ids grow
SELECT dgen.cast('messages/a', '1') < dgen.cast('messages/a', '2');
SELECT pg_temp.handled();
-- a message is there if its transaction commits, and its savepoints do
BEGIN;
SELECT dgen.cast('messages/a', '"before"') > 0;
SAVEPOINT s;
SELECT dgen.cast('messages/a', '"undone"') > 0;
ROLLBACK TO s;
SELECT dgen.cast('messages/a', '"between"') > 0;
SAVEPOINT t;
SELECT dgen.cast('messages/a', '"released"') > 0;
RELEASE t;
COMMIT;
BEGIN;
SELECT dgen.cast('messages/a', '"never"') > 0;
ROLLBACK;
SELECT pg_temp.handled();
BEGIN READ ONLY;
SELECT pg_temp.try($$SELECT dgen.cast('messages/a', '1')$$);
SELECT pg_temp.error($$SELECT dgen.cast_many('[]')$$);
SELECT pg_temp.error($$SELECT dgen.send('messages/a', '1')$$);
SELECT pg_temp.error($$SELECT dgen.send_request('messages/a', '1')$$);
SELECT pg_temp.error($$SELECT dgen.cancel(1)$$);
COMMIT;

--
-- cast_many
--
SELECT cardinality(dgen.cast_many('[{"server": "messages/a", "message": 1},
  {"server": "messages/b", "message": 2, "priority": 1, "delay": "1 ms", "expires": "1 h", "max_attempts": 3},
  {"server": "messages/a", "message": null}]'));
SELECT pg_temp.until($$3 = (SELECT count(*) FROM messages.log)$$);
SELECT message FROM messages.log WHERE server = 'messages/a' ORDER BY n;
SELECT count(*) FROM pg_temp.handled();
SELECT dgen.cast_many('[]');
SELECT m, pg_temp.try(format('SELECT dgen.cast_many(%L)', m)) FROM unnest(ARRAY[
  NULL, 'null', '1', '{}', '[1]', '[[]]', '[null]', '[{}]', '[{"server": "messages/a"}]',
  '[{"message": 1}]', '[{"server": null, "message": 1}]', '[{"server": ["messages/a"], "message": 1}]',
  '[{"server": "messages", "message": 1}]', '[{"server": "/a", "message": 1}]',
  '[{"server": "regress_dgen_nowhere/a", "message": 1}]',
  '[{"server": "messages/a", "message": 1}, {"server": "messages/a", "message": 1, "priority": 2}]',
  '[{"server": "messages/a", "message": 1, "priority": "1"}]',
  '[{"server": "messages/a", "message": 1, "delay": 1}]',
  '[{"server": "messages/a", "message": 1, "delay": "-1 s"}]',
  '[{"server": "messages/a", "message": 1, "expires": "-1 s"}]',
  '[{"server": "messages/a", "message": 1, "expires": "0 s"}]',
  '[{"server": "messages/a", "message": 1, "max_attempts": 0}]',
  '[{"server": "messages/a", "message": 1, "max_attempts": 1.5}]',
  '[{"server": "messages/a", "message": 1, "priority": 1e30}]',
  '[{"server": "messages/a", "message": 1, "dedup_key": "k"}]',
  '[{"server": "messages/a", "message": 1}, {"server": "messages/a", "message": 1, "Delay": "1 s"}]']) m;
-- all or none
SELECT count(*) FROM pg_temp.handled();

--
-- Priorities: lanes share the server's turns, and each is in its own order
--
SELECT dgen.suspend('messages/lanes');
SELECT count(dgen.cast('messages/lanes', jsonb_build_object('lane', coalesce(p, 0), 'i', i), priority => p))
FROM (VALUES (1, -1), (2, 0), (3, 1), (4, -1), (5, NULL), (6, 1)) v(i, p);
SELECT priority, message FROM dgen.messages WHERE server = 'messages/lanes' ORDER BY id;
SELECT dgen.resume('messages/lanes');
SELECT dgen.wait_idle('messages/lanes');
SELECT message -> 'lane' AS lane, array_agg(message -> 'i' ORDER BY n) FROM messages.log GROUP BY lane ORDER BY lane;
SELECT count(*) FROM pg_temp.handled();
SELECT p, pg_temp.try(format($$SELECT dgen.cast('messages/a', '1', priority => %s)$$, p)) FROM unnest(ARRAY[2, -2, 2147483647]) p;
SELECT pg_temp.error($$SELECT dgen.send('messages/a', '1', priority => 2)$$);
SELECT pg_temp.error($$SELECT dgen.send_request('messages/a', '1', priority => 2)$$);

--
-- Delays, expiry
--
SELECT dgen.cast('messages/a', '"late"', delay => '200 ms') > 0;
SELECT dgen.cast('messages/a', '"at once"', delay => '0') > 0;
SELECT pg_temp.handled();
SELECT status, kind, due_at > sent_at, message FROM dgen.messages WHERE server = 'messages/a';
SELECT pg_temp.until($$EXISTS (SELECT FROM messages.log)$$);
SELECT pg_temp.handled();
-- one that expires before it can be handled never is
SELECT dgen.suspend('messages/expiry');
SELECT dgen.cast('messages/expiry', '"stale"', expires => '10 ms') > 0;
SELECT dgen.send('messages/expiry', '"stale info"', expires => '10 ms') > 0;
SELECT dgen.cast('messages/expiry', '"too late"', delay => '20 ms', expires => '10 ms') > 0;
SELECT dgen.cast('messages/expiry', '"fresh"', expires => '1 h') > 0;
SELECT pg_sleep(0.05);
SELECT dgen.resume('messages/expiry');
SELECT pg_temp.handled();
SELECT pg_temp.until($$NOT EXISTS (SELECT FROM dgen.messages WHERE server = 'messages/expiry')$$);
SELECT a, pg_temp.try(format($$SELECT dgen.cast('messages/a', '1', %s)$$, a)) FROM unnest(ARRAY[
  'delay => ''-1 s''', 'delay => ''1000000 years''', 'delay => ''178000000 years''', 'delay => ''106745000 days''', 'expires => ''106745000 days''', 'expires => ''0''', 'expires => ''-1 s''']) a;
SELECT pg_temp.error($$SELECT dgen.send('messages/a', '1', delay => '-1 s')$$);
SELECT pg_temp.error($$SELECT dgen.send_request('messages/a', '1', expires => '-1 s')$$);

--
-- dedup_key: the same id again, and one message
--
SELECT dgen.cast('messages/dedup', '1', dedup_key => 'k') AS first \gset
SELECT dgen.cast('messages/dedup', '2', dedup_key => 'k') = :first;
SELECT dgen.cast('messages/dedup', '3', dedup_key => 'l') = :first;
SELECT dgen.cast('messages/dedup 2', '4', dedup_key => 'k') = :first;
SELECT pg_temp.handled();
-- also after it was handled
SELECT dgen.cast('messages/dedup', '5', dedup_key => 'k') = :first;
-- a key that was rolled back is free
BEGIN;
SELECT dgen.cast('messages/dedup', '6', dedup_key => 'm') > 0;
ROLLBACK;
SELECT dgen.cast('messages/dedup', '7', dedup_key => 'm') > :first;
-- an empty key is a key
SELECT dgen.cast('messages/dedup', '8', dedup_key => '') = dgen.cast('messages/dedup', '9', dedup_key => '');
SELECT pg_temp.handled();
-- until it is forgotten
SELECT dgen.alter_module('messages', dedup_ttl => '10 ms') -> 'created';
SELECT dgen.cast('messages/dedup', '10', dedup_key => 'n') > 0;
SELECT pg_sleep(0.02);
SELECT dgen.cast('messages/dedup', '11', dedup_key => 'n') > 0;
SELECT pg_temp.handled();

--
-- max_attempts
--
SELECT pg_temp.try($$SELECT dgen.cast('messages/a', '1', max_attempts => 0)$$);
SELECT pg_temp.error($$SELECT dgen.cast('messages/a', '1', max_attempts => 100000)$$);
SELECT dgen.cast('messages/once', '{"do": "DO ''BEGIN RAISE EXCEPTION $a$no$a$; END''"}', max_attempts => 1) > 0;
SELECT count(*) FROM pg_temp.handled();
SELECT server, attempts, sqlstate, error ->> 'message' FROM dgen.dead_letters WHERE server = 'messages/once';

--
-- cancel, message_status
--
SELECT dgen.suspend('messages/status');
BEGIN;
SELECT dgen.cast('messages/status', '1') AS id \gset
SELECT dgen.message_status(:id);
COMMIT;
SELECT dgen.cast('messages/status', '2', delay => '1 h') AS delayed \gset
SELECT dgen.message_status(:id), dgen.message_status(:delayed);
BEGIN;
SELECT dgen.cancel(:id);
ROLLBACK;
SELECT dgen.cancel(:id), dgen.cancel(:delayed);
SELECT dgen.message_status(:id), dgen.message_status(:delayed);
SELECT dgen.cancel(:id), dgen.cancel(0), dgen.cancel(-1), dgen.cancel(9223372036854775807);
SELECT coalesce(dgen.message_status(0), 'null'), coalesce(dgen.message_status(-1), 'null'),
  coalesce(dgen.message_status(9223372036854775807), 'null');
-- a message of the same transaction
BEGIN;
SELECT dgen.cast('messages/status', '3') AS id \gset
SELECT dgen.cancel(:id);
COMMIT;
SELECT dgen.cast('messages/status', '4') AS id \gset
SELECT dgen.resume('messages/status');
SELECT pg_temp.handled();
SELECT dgen.message_status(:id), dgen.cancel(:id);
SELECT dgen.message_status(id) FROM dgen.dead_letters WHERE server = 'messages/once';

--
-- The view, its masks
--
SELECT dgen.suspend('messages/view');
SET dgen.context = '{"user": "me"}';
SELECT dgen.cast('messages/view', '{"pin": 1234}', dedup_key => 'd', expires => '1 h') > 0;
SET dgen.context = '';
SELECT dgen.send('messages/view', '{"pin": 1234}', priority => -1) > 0;
SELECT dgen.send_request('messages/view', '["1"]') > 0;
SELECT dgen.cast('messages/view', '{"pin": 1234}', delay => '1 h', priority => 1) > 0;
SELECT id > 0, server, kind, priority, status, sent_at <= now(), due_at > now(), expires_at > now(), attempts,
  next_attempt_at, last_error, sender <> '' AS sender, sender_role, dedup_key, context, message
FROM dgen.messages WHERE server LIKE 'messages/%' ORDER BY id;
CREATE FUNCTION messages.format_message(message jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
  IF jsonb_typeof(message) = 'object' THEN
    RETURN message - 'pin';
  END IF;
  RETURN to_jsonb(1 / 0);
END $$;
SELECT kind, message FROM dgen.messages WHERE server LIKE 'messages/%' ORDER BY id;
DROP FUNCTION messages.format_message;
SELECT dgen.delete('messages/view');
SELECT count(*) FROM dgen.messages WHERE server LIKE 'messages/%';

--
-- accept
--
CREATE FUNCTION messages.accept(kind text, message jsonb) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
  IF message = '"error"' THEN
    RAISE EXCEPTION 'cannot say for %', kind USING ERRCODE = 'AC001';
  END IF;
  RETURN CASE message WHEN '"no"' THEN false WHEN '"unknown"' THEN NULL ELSE true END;
END $$;
SELECT pg_temp.try($$SELECT dgen.cast('messages/a', '"no"')$$);
SELECT pg_temp.try($$SELECT dgen.cast('messages/a', '"unknown"')$$);
SELECT f, pg_temp.error(format($$SELECT dgen.%s('messages/a', '"error"')$$, f)) FROM unnest(ARRAY['cast', 'send', 'send_request', 'call']) f;
SELECT pg_temp.error($$SELECT dgen.cast_many('[{"server": "messages/a", "message": "yes"}, {"server": "messages/a", "message": "no"}]')$$);
SELECT dgen.cast('messages/a', '"yes"') > 0;
SELECT pg_temp.handled();
DROP FUNCTION messages.accept;

--
-- Limits
--
SELECT dgen.alter_module('messages', max_mailbox => 3, max_message_size => 100) -> 'created';
SELECT dgen.suspend('messages/full');
SELECT count(dgen.cast('messages/full', to_jsonb(i))) FROM generate_series(1, 3) i;
SELECT pg_temp.try($$SELECT dgen.cast('messages/full', '4')$$);
SELECT pg_temp.error($$SELECT dgen.send('messages/full', '4')$$);
SELECT pg_temp.error($$SELECT dgen.send_request('messages/full', '4')$$);
SELECT dgen.cast('messages/not full', '5') > 0;
SELECT pg_temp.error($$SELECT dgen.cast_many((SELECT jsonb_agg('{"server": "messages/flood", "message": 1}'::jsonb) FROM generate_series(1, 4)))$$);
SELECT pg_temp.error($$SELECT dgen.cast_many('[{"server": "messages/a", "message": 1}, {"server": "messages/full", "message": 4}]')$$);
SELECT dgen.resume('messages/full');
SELECT pg_temp.handled();
SELECT dgen.cast('messages/full', '6') > 0;
SELECT pg_temp.handled();
SELECT f, pg_temp.try(format($$SELECT dgen.%s('messages/a', to_jsonb(repeat('x', 100)))$$, f)) FROM unnest(ARRAY['cast', 'send', 'send_request', 'call']) f;
SELECT pg_temp.error($$SELECT dgen.cast_many(jsonb_build_array(jsonb_build_object('server', 'messages/a', 'message', 1),
  jsonb_build_object('server', 'messages/a', 'message', repeat('x', 100))))$$);
SELECT dgen.alter_module('messages', max_mailbox => 100000, max_message_size => 1000000) -> 'created';

--
-- What a handler knows of a message
--
SELECT w, dgen.call('messages/know/me', jsonb_build_array('dgen.' || w || '()')) FROM unnest(
  ARRAY['self', 'key', 'kind', 'sender', 'sender_role', 'context', 'message_vsn']) w;
SELECT dgen.call('messages/know', '["dgen.now() BETWEEN now() AND clock_timestamp() AND dgen.now() = dgen.now() AND dgen.\"from\"() IS NOT NULL AS ok"]');
CREATE FUNCTION messages.tell() RETURNS void LANGUAGE sql AS $$
  INSERT INTO messages.log (server, kind, message) VALUES (dgen.self(), dgen.kind(),
    jsonb_build_array(dgen.context(), dgen.sender(), dgen.sender_role(), dgen.message_vsn())) $$;
-- context: a JSON object of the session, inherited by what handlers send
SET dgen.context = '{"tenant": 7, "trace": "abc"}';
SELECT dgen.call('messages/know', '["dgen.context()"]');
SELECT dgen.cast('messages/first', $${"do": "SELECT dgen.cast('messages/second', '{\"do\": \"SELECT messages.tell()\"}')"}$$) > 0;
SELECT pg_temp.handled();
RESET dgen.context;
SELECT dgen.call('messages/know', '["dgen.context()"]');
SET dgen.context = 'no json';
SET dgen.context = '[1]';
SET dgen.context = '"text"';
SET dgen.context = '{"a": "\u0000"}';
-- outside of handlers
SELECT f, pg_temp.try(format('SELECT dgen.%I()', f)) FROM unnest(
  ARRAY['self', 'key', 'kind', 'sender', 'sender_role', 'context', 'message_vsn', 'from']) f;
SELECT dgen.now() BETWEEN now() AND clock_timestamp();

--
-- drain, wait_idle
--
BEGIN ISOLATION LEVEL SERIALIZABLE;
SELECT dgen.cast('messages/drain', $${"do": "SELECT dgen.cast('messages/drain 2', '2')"}$$) > 0;
SELECT dgen.cast('messages/drain', '3') > 0;
SELECT dgen.cast('messages/drain', '4', delay => '1 h') > 0;
SELECT dgen.drain('messages/drain');
SELECT server, message FROM messages.log ORDER BY n;
SELECT dgen.drain();
SELECT server, message FROM messages.log ORDER BY n;
SELECT dgen.drain();
ROLLBACK;
SELECT count(*) FROM pg_temp.handled();
SELECT pg_temp.error($$SELECT dgen.call('messages/know', '["dgen.drain()"]')$$);
SELECT pg_temp.error($$SELECT dgen.drain('nowhere')$$);
SELECT dgen.suspend('messages/idle');
SELECT dgen.cast('messages/idle', '1') > 0;
SELECT dgen.wait_idle('messages/idle', timeout => '1 ms'), dgen.wait_idle('messages/other'),
  dgen.wait_idle(module => 'messages', timeout => '0');
SELECT dgen.resume('messages/idle');
SELECT dgen.wait_idle(module => 'messages'), dgen.wait_idle(everything => true);
-- nobody handles what this transaction has sent while it waits for that
BEGIN;
SELECT dgen.cast('messages/idle', '1') > 0;
SELECT dgen.wait_idle('messages/other');
SELECT pg_temp.try($$SELECT dgen.wait_idle('messages/idle')$$);
SELECT pg_temp.error($$SELECT dgen.wait_idle(module => 'messages')$$);
SAVEPOINT s;
SELECT dgen.cast('messages/other', '1') > 0;
ROLLBACK TO s;
SELECT dgen.wait_idle('messages/other');
ROLLBACK;
SELECT pg_temp.try($$SELECT dgen.wait_idle()$$);
SELECT pg_temp.error($$SELECT dgen.wait_idle('messages/a', module => 'messages')$$);
SELECT pg_temp.error($$SELECT dgen.wait_idle('messages/a', timeout => '-1 s')$$);
SELECT pg_temp.error($$SELECT dgen.wait_idle(module => 'regress_dgen_nowhere')$$);

--
-- A server without handle_info: infos are taken, and do nothing
--
DROP FUNCTION messages.handle_info;
SELECT dgen.send('messages/a', '1') > 0;
SELECT dgen.wait_idle('messages/a');
-- but a cast without handle_cast, or a request without handle_call, is refused when it is sent
CREATE FUNCTION messages.init(jsonb) RETURNS jsonb LANGUAGE sql AS 'SELECT $1';
DROP FUNCTION messages.handle_cast, messages.handle_call;
SELECT pg_temp.try($$SELECT dgen.cast('messages/a', '1')$$);
SELECT pg_temp.try($$SELECT dgen.send_request('messages/a', '1')$$);
SELECT pg_temp.try($$SELECT dgen.cast_many('[{"server": "messages/a", "message": 1}]')$$);

SELECT dgen.drop_module('messages', true);
RESET ROLE;
SET client_min_messages = warning;
DROP SCHEMA messages CASCADE;
DROP ROLE regress_dgen_messages;
