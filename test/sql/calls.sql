--
-- call and multi_call: replies, errors, deadlines, and where they cannot be used.
--
\getenv dir PG_ABS_SRCDIR
\i :dir/sql/helpers.psql
CREATE ROLE regress_dgen_calls LOGIN;
CREATE SCHEMA calls AUTHORIZATION regress_dgen_calls;
SET ROLE regress_dgen_calls;
CREATE TABLE calls.t (i integer);

-- does what it is told, and counts
CREATE FUNCTION calls.init(args jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT '0'::jsonb $$;
CREATE FUNCTION calls.handle_call(request jsonb, INOUT state jsonb, OUT reply jsonb) LANGUAGE plpgsql AS $$
BEGIN
  state := to_jsonb(state::integer + 1);
  reply := jsonb_build_array(request, state);
  IF jsonb_typeof(request) = 'object' AND request ? 'do' THEN
    reply := NULL;
    EXECUTE request ->> 'do';
  END IF;
END $$;
CREATE FUNCTION calls.handle_cast(message jsonb, INOUT state jsonb) LANGUAGE plpgsql AS $$
BEGIN
  EXECUTE message ->> 'do';
END $$;
CREATE FUNCTION calls.handle_query(query jsonb, state jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
  EXECUTE query ->> 'do';
  RETURN state;
END $$;
SELECT dgen.create_module('calls') -> 'created';

--
-- All forms
--
SELECT dgen.call('calls/a', '{"x": 1}');
SELECT dgen.call('calls/a', NULL);
SELECT dgen.call('calls/a', 'null');
SELECT dgen.call(server => 'calls/a', request => '1', timeout => '10 s', request_key => NULL);
SELECT dgen.call('calls/a', '2', NULL);
-- 0: no deadline
SELECT dgen.call('calls/a', '3', '0');
SELECT * FROM dgen.call('calls/b', '1');
SELECT i, dgen.call('calls/' || i, to_jsonb(i)) FROM generate_series(1, 3) i;
PREPARE c AS SELECT dgen.call($1, $2::jsonb);
EXECUTE c('calls/b', '2');
EXECUTE c('calls/b', NULL);
DEALLOCATE c;
-- a large request, and a large reply
SELECT length((dgen.call('calls/b', to_jsonb(repeat('x', 1000000))) ->> 0));
-- in a function, in a DO block, in a procedure that commits
CREATE FUNCTION pg_temp.f() RETURNS jsonb LANGUAGE sql AS $$ SELECT dgen.call('calls/c', '"function"') $$;
SELECT pg_temp.f();
DO $$ BEGIN RAISE NOTICE '%', dgen.call('calls/c', '"do"'); COMMIT; RAISE NOTICE '%', dgen.call('calls/c', '"do"'); END $$;

--
-- multi_call: a row each, in the order given, with a reply or an error
--
SELECT * FROM dgen.multi_call(ARRAY['calls/m1', 'calls/m2', 'calls/m1'], '"m"');
SELECT server, reply, error - 'context' FROM dgen.multi_call(ARRAY['calls/m1', 'calls/m2'],
  $${"do": "DO 'BEGIN IF dgen.key() = $a$m2$a$ THEN RAISE EXCEPTION $a$not me$a$ USING ERRCODE = $a$MC001$a$, HINT = $a$ask m1$a$; END IF; END'"}$$);
SELECT * FROM dgen.multi_call('{}', '1');
SELECT count(*) FROM dgen.multi_call((SELECT array_agg('calls/many' || i) FROM generate_series(1, 100) i), '1') WHERE reply = '[1, 1]';
SELECT dgen.suspend('calls/m2');
SELECT server, reply IS NOT NULL AS replied, error ->> 'sqlstate' AS sqlstate, error ->> 'message' AS message
FROM dgen.multi_call(ARRAY['calls/m2', 'calls/m1'], '1', '200 ms');
SELECT dgen.resume('calls/m2');
SELECT pg_temp.error($$SELECT dgen.multi_call(NULL, '1')$$);
SELECT pg_temp.error($$SELECT dgen.multi_call(ARRAY['calls/m1', NULL], '1')$$);
SELECT pg_temp.error($$SELECT dgen.multi_call(ARRAY['calls/m1'], '1', '-1 s')$$);
SELECT pg_temp.error($$SELECT dgen.multi_call(ARRAY['calls/m1', '/'], '1')$$);
-- what is wrong with the module of one is that one's error
SELECT dgen.create_module('calls without', schema_name => 'calls', callbacks => '{"handle_call": null}') -> 'created';
SELECT server, reply IS NOT NULL AS replied, error - 'context' FROM dgen.multi_call(
  ARRAY['calls/m1', 'regress_dgen_nowhere/1', 'calls without/1', 'calls/m2'], '1');
SELECT dgen.drop_module('calls without', true);

--
-- Errors of handlers arrive as they are, and undo what was done
--
CREATE FUNCTION calls.fail() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO calls.t VALUES (1);
  RAISE EXCEPTION 'out of %', 'stock' USING ERRCODE = 'CA001', DETAIL = 'None is left.', HINT = 'Order some.';
END $$;
SELECT dgen.call('calls/a', '{"do": "SELECT calls.fail()"}');
SELECT pg_temp.try($$SELECT dgen.call('calls/a', '{"do": "SELECT calls.fail()"}')$$);
SELECT count(*) FROM calls.t;
SELECT dgen.state('calls/a');
SELECT e, pg_temp.error(format('SELECT dgen.call(%L, %L)', 'calls/a', jsonb_build_object('do', e))) FROM unnest(ARRAY[
  'SELECT 1/0', 'SELECT nonsense', 'SELEC', 'SELECT ''x''::integer', 'DO ''BEGIN COMMIT; END''', 'DO ''BEGIN ROLLBACK; END''',
  'DO ''BEGIN RAISE SQLSTATE $a$OT001$a$; END''']) e;
-- but not those that would make a client drop its connection, or try again without need
SELECT e, pg_temp.try(format('SELECT dgen.call(%L, %L)', 'calls/a',
  jsonb_build_object('do', format('DO ''BEGIN RAISE EXCEPTION $a$oh$a$ USING ERRCODE = $a$%s$a$; END''', e))))
FROM unnest(ARRAY['08006', '57P01', '57014', '57000', '40001', '40P01']) e;
SELECT dgen.state('calls/a');

--
-- Deadlines
--
-- one that has not begun did not happen
SELECT dgen.suspend('calls/slow');
SELECT pg_temp.error($$SELECT dgen.call('calls/slow', '1', '50 ms')$$);
SELECT dgen.resume('calls/slow');
-- one that runs is cancelled, and did not happen either
SELECT pg_temp.error($$SELECT dgen.call('calls/slow', '{"do": "SELECT pg_sleep(30)"}', '200 ms')$$);
SELECT dgen.call('calls/slow', '"first"');
-- the statement's own timeout is one
SET statement_timeout = '300 ms';
SELECT pg_temp.error($$SELECT dgen.call('calls/slow', '{"do": "SELECT pg_sleep(30)"}')$$);
RESET statement_timeout;
SELECT dgen.call('calls/slow', '"second"');
-- late_calls => finish: it goes on
SELECT dgen.alter_module('calls', late_calls => 'finish') -> 'created';
SELECT pg_temp.error($$SELECT dgen.call('calls/slow', '{"do": "SELECT pg_sleep(0.5)"}', '200 ms')$$);
SELECT dgen.call('calls/slow', '"third or fourth"');
SELECT dgen.alter_module('calls', late_calls => 'cancel') -> 'created';
SELECT t, pg_temp.try(format($$SELECT dgen.call('calls/slow', '1', %L)$$, t)) FROM unnest(ARRAY['-1 s', '-1 month', '1000000 years', '106745000 days']) t;
-- the module's own limit
SELECT dgen.alter_module('calls', handler_timeout => '100 ms') -> 'created';
SELECT pg_temp.try($$SELECT dgen.call('calls/slow', '{"do": "SELECT pg_sleep(30)"}')$$);
-- also of one that traps what cancels it; it is cancelled again and again
SELECT dgen.alter_module('calls', handler_timeout => '200 ms') -> 'created';
CREATE FUNCTION calls.trap() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO calls.t VALUES (3);
  FOR i IN 1..3 LOOP
    BEGIN
      PERFORM pg_sleep(30);
    EXCEPTION WHEN query_canceled THEN
    END;
  END LOOP;
END $$;
SELECT pg_temp.try($$SELECT dgen.call('calls/slow', '{"do": "SELECT calls.trap()"}', '20 s')$$);
SELECT count(*) FROM calls.t;
SELECT dgen.alter_module('calls', handler_timeout => '30 s') -> 'created';
SELECT dgen.call('calls/slow', '"last"');

--
-- request_key: the same reply, not another run
--
SELECT dgen.call('calls/key', '1', request_key => 'k');
SELECT dgen.call('calls/key', '1', request_key => 'k');
SELECT dgen.call('calls/key', '1', request_key => 'l');
SELECT dgen.call('calls/key', '1');
SELECT dgen.call('calls/key 2', '2', request_key => 'k');
SELECT pg_temp.try($$SELECT dgen.call('calls/key', '2', request_key => 'k')$$);
SELECT pg_temp.error($$SELECT dgen.call('calls/key', NULL, request_key => 'k')$$);
SELECT dgen.reply_of('calls/key', 'k'), dgen.reply_of('calls/key', 'l');
SELECT coalesce(dgen.reply_of('calls/key', 'unknown'), '"none"'), coalesce(dgen.reply_of('calls/unknown', 'k'), '"none"');
SELECT pg_temp.error($$SELECT dgen.reply_of('calls/key', NULL)$$);
-- an error is not kept
SELECT pg_temp.error($$SELECT dgen.call('calls/key', '{"do": "SELECT calls.fail()"}', request_key => 'e')$$);
SELECT coalesce(dgen.reply_of('calls/key', 'e'), '"none"');
SELECT dgen.call('calls/key', '"other"', request_key => 'e');
-- a key is forgotten after reply_ttl
SELECT dgen.alter_module('calls', reply_ttl => '10 ms') -> 'created';
SELECT dgen.call('calls/key', '1', request_key => 'm');
SELECT pg_sleep(0.02);
SELECT coalesce(dgen.reply_of('calls/key', 'm'), '"none"');
SELECT dgen.call('calls/key', '2', request_key => 'm');
SELECT dgen.alter_module('calls', reply_ttl => '1 h') -> 'created';

--
-- In a transaction that has written: a warning, once a transaction
--
BEGIN;
SELECT dgen.call('calls/tx', '"has not written"');
INSERT INTO calls.t VALUES (2);
SELECT dgen.call('calls/tx', '1');
SELECT dgen.call('calls/tx', '2');
ROLLBACK;
BEGIN;
INSERT INTO calls.t VALUES (2);
SELECT dgen.call('calls/tx', '3');
-- it is autonomous
ROLLBACK;
SELECT dgen.state('calls/tx');
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT 1;
SELECT dgen.call('calls/tx', '4');
SELECT dgen.call('calls/tx', '5');
-- and not seen
SELECT dgen.state('calls/tx');
COMMIT;
SELECT dgen.state('calls/tx');
SET dgen.call_in_transaction = allow;
BEGIN;
INSERT INTO calls.t VALUES (2);
SELECT dgen.call('calls/tx', '6');
ROLLBACK;
SET dgen.call_in_transaction = error;
BEGIN;
SELECT dgen.call('calls/tx', '7');
INSERT INTO calls.t VALUES (2);
SELECT pg_temp.try($$SELECT dgen.call('calls/tx', '8')$$);
ROLLBACK;
SELECT dgen.state('calls/tx');
SET dgen.call_in_transaction = sometimes;
RESET dgen.call_in_transaction;

--
-- What it would overtake
--
BEGIN;
SELECT dgen.cast('calls/tx', '{"do": "SELECT 1"}') > 0;
SELECT pg_temp.try($$SELECT dgen.call('calls/tx', '9')$$);
SET client_min_messages = error;
SELECT dgen.call('calls/another', '9');
RESET client_min_messages;
SAVEPOINT s;
SELECT dgen.cast('calls/another', '{"do": "SELECT 1"}') > 0;
SELECT pg_temp.error($$SELECT dgen.call('calls/another', '9')$$);
ROLLBACK TO s;
SET client_min_messages = error;
SELECT dgen.call('calls/another', '9');
RESET client_min_messages;
COMMIT;
SELECT dgen.call('calls/tx', '9');

--
-- Read only
--
BEGIN READ ONLY;
SELECT pg_temp.try($$SELECT dgen.call('calls/tx', '10')$$);
SELECT pg_temp.error($$SELECT dgen.multi_call(ARRAY['calls/tx'], '10')$$);
ROLLBACK;
SELECT pg_temp.error($$SELECT dgen.query('calls/tx', '{"do": "SELECT dgen.call(''calls/another'', ''1'')"}')$$);
SELECT pg_temp.error($$SELECT dgen.query('calls/tx', '{"do": "SELECT dgen.multi_call(ARRAY[''calls/another''], ''1'')"}')$$);

--
-- Handlers that call: one transaction; cycles are refused
--
SELECT dgen.call('calls/chain', '{"do": "SELECT dgen.call(''calls/link'', ''1'')"}');
SELECT dgen.state('calls/link');
SELECT pg_temp.error($$SELECT dgen.call('calls/chain', '{"do": "SELECT dgen.call(''calls/link'', ''1''), calls.fail()"}')$$);
SELECT dgen.state('calls/chain'), dgen.state('calls/link');
SELECT pg_temp.try($$SELECT dgen.call('calls/chain', '{"do": "SELECT dgen.call(''calls/chain'', ''1'')"}')$$);
SELECT pg_temp.try($$SELECT dgen.call('calls/chain', '{"do": "SELECT dgen.call(''calls/link'', ''{\"do\": \"SELECT dgen.call($a$calls/chain$a$, $a$1$a$)\"}'')"}')$$);
SELECT dgen.state('calls/chain'), dgen.state('calls/link');

--
-- Replies later
--
CREATE TABLE calls.token (token text);
SELECT pg_temp.error($$SELECT dgen.call('calls/later', '{"do": "DO ''BEGIN INSERT INTO calls.token VALUES (dgen.\"from\"()); PERFORM dgen.noreply(); END''"}', '200 ms')$$);
SELECT dgen.state('calls/later');
-- its caller has gone
SELECT pg_temp.try(format('SELECT dgen.reply(%L, %L)', token, '1')) FROM calls.token;
SELECT pg_temp.try($$SELECT dgen.reply('nonsense', '1')$$);
SELECT pg_temp.error($$SELECT dgen.reply('c1.1', '1')$$);
SELECT pg_temp.error($$SELECT dgen.reply('r1.1', '1')$$);
SELECT pg_temp.error($$SELECT dgen.reply('', '1')$$);
SELECT pg_temp.error($$SELECT dgen.reply(NULL, '1')$$);
-- one handler answers for another
CREATE FUNCTION calls.ask_helper() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  PERFORM dgen.noreply();
  PERFORM dgen.cast('calls/helper', jsonb_build_object('do', format('SELECT dgen.reply(%L, %L)', dgen."from"(), '"from the helper"')));
END $$;
SELECT dgen.call('calls/later', '{"do": "SELECT calls.ask_helper()"}');
-- or itself, at once, and then no more
SELECT dgen.call('calls/later', '{"do": "DO ''BEGIN PERFORM dgen.noreply(); PERFORM dgen.reply(dgen.\"from\"(), $a$[1]$a$); END''"}');
SELECT pg_temp.error($$SELECT dgen.call('calls/later', '{"do": "DO ''BEGIN PERFORM dgen.noreply(); PERFORM dgen.reply(dgen.\"from\"(), $a$[1]$a$); PERFORM dgen.reply(dgen.\"from\"(), $a$[2]$a$); END''"}')$$);

--
-- Directives
--
SELECT dgen.call('calls/exit', '{"do": "SELECT dgen.exit(''had enough'')"}');
SELECT status, stop_reason, state FROM dgen.servers WHERE server = 'calls/exit';
SELECT pg_temp.try($$SELECT dgen.call('calls/reject', '{"do": "SELECT dgen.reject(''not like that'')"}')$$);
SELECT pg_temp.try($$SELECT dgen.call('calls/retry', '{"do": "SELECT dgen.retry_after(''1 s'')"}')$$);
SELECT count(*) FROM dgen.servers WHERE server IN ('calls/reject', 'calls/retry');
SELECT count(*) FROM dgen.dead_letters WHERE server = 'calls/reject';
-- the last one wins, savepoints count, and contradictions are errors
SELECT dgen.call('calls/exit', '{"do": "DO ''BEGIN PERFORM dgen.exit($a$one$a$); PERFORM dgen.exit($a$two$a$); END''"}');
SELECT stop_reason FROM dgen.servers WHERE server = 'calls/exit';
SELECT dgen.call('calls/exit', '{"do": "DO ''BEGIN PERFORM dgen.exit($a$three$a$); BEGIN PERFORM dgen.exit($a$four$a$), 1 / 0; EXCEPTION WHEN OTHERS THEN NULL; END; END''"}');
SELECT stop_reason FROM dgen.servers WHERE server = 'calls/exit';
SELECT pg_temp.try($$SELECT dgen.call('calls/a', '{"do": "SELECT dgen.reject(''a''), dgen.exit(''b'')"}')$$);
SELECT pg_temp.error($$SELECT dgen.call('calls/a', '{"do": "SELECT dgen.reject(''a''), dgen.noreply()"}')$$);
SELECT pg_temp.error($$SELECT dgen.call('calls/a', '{"do": "SELECT dgen.exit(NULL)"}')$$);
SELECT pg_temp.error($$SELECT dgen.call('calls/a', '{"do": "SELECT dgen.reject(NULL)"}')$$);
SELECT d, pg_temp.error(format('SELECT dgen.query(%L, %L)', 'calls/a', jsonb_build_object('do', 'SELECT dgen.' || d)))
FROM unnest(ARRAY['noreply()', 'exit(''a'')', 'reject(''a'')', 'retry_after(''1 s'')']) d;
-- and outside of handlers there are none
SELECT d, pg_temp.error('SELECT dgen.' || d) FROM unnest(ARRAY['noreply()', 'exit(''a'')', 'reject(''a'')', 'retry_after(''1 s'')']) d;
-- as columns
CREATE OR REPLACE FUNCTION calls.column_call(request jsonb, jsonb, OUT new_state jsonb, OUT reply jsonb, OUT noreply boolean, OUT exit text, OUT reject text)
LANGUAGE plpgsql AS $$
BEGIN
  SELECT * INTO new_state, reply, noreply, exit, reject FROM jsonb_to_record(request)
    AS r(new_state jsonb, reply jsonb, noreply boolean, exit text, reject text);
END $$;
SELECT dgen.alter_module('calls', callbacks => '{"handle_call": "calls.column_call"}') -> 'created';
SELECT dgen.call('calls/columns', '{"new_state": 1, "reply": 2}');
SELECT dgen.state('calls/columns');
SELECT dgen.call('calls/columns', '{"new_state": 3, "exit": "so be it"}');
SELECT status, stop_reason, state FROM dgen.servers WHERE server = 'calls/columns';
SELECT pg_temp.error($$SELECT dgen.call('calls/columns', '{"reject": "no"}')$$);
SELECT pg_temp.error($$SELECT dgen.call('calls/columns', '{"new_state": 4, "noreply": true}', '100 ms')$$);
SELECT pg_temp.try($$SELECT dgen.call('calls/columns', '{"reply": 1, "noreply": true}')$$);
SELECT state FROM dgen.servers WHERE server = 'calls/columns';

SELECT dgen.drop_module('calls', true);
RESET ROLE;
SET client_min_messages = warning;
DROP SCHEMA calls CASCADE;
DROP OWNED BY regress_dgen_calls CASCADE;
DROP ROLE regress_dgen_calls;
