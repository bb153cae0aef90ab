--
-- Errors that take a moment's work to come by; the others are with what they
-- are errors of.
--
\getenv dir PG_ABS_SRCDIR
\i :dir/sql/helpers.psql
CREATE SCHEMA refusals;
CREATE FUNCTION refusals.run(statement text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE result text;
BEGIN
  EXECUTE statement INTO result;
  RETURN result;
END $$;
CREATE FUNCTION refusals.handle_call(request jsonb, INOUT state jsonb, OUT reply jsonb) LANGUAGE plpgsql AS $$
BEGIN
  reply := to_jsonb(refusals.run(request->>'do'));
END $$;
CREATE FUNCTION refusals.handle_cast(message jsonb, state jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT message $$;
CREATE FUNCTION refusals.handle_query(request jsonb, state jsonb) RETURNS jsonb LANGUAGE sql AS $$
  SELECT to_jsonb(refusals.run(request->>'do')) $$;
SET client_min_messages = error;
SELECT dgen.create_module('refusals', invoke_isolation => 'any', max_message_size => 1024) -> 'created';
SELECT dgen.start('refusals/a', '{}'), dgen.start('refusals/b', '{}');

--
-- A query has no effects: each way to have some says whose fault it is
--
SELECT pg_temp.try(format('SELECT dgen.query(''refusals/a'', %L)', jsonb_build_object('do', e))) FROM unnest(ARRAY[
  'SELECT dgen.cast(''refusals/b'', ''1'')',
  'SELECT dgen.invoke(''refusals/b'', ''{"do": "SELECT 1"}'')',
  'SELECT dgen.stop(''refusals/b'')',
  'SELECT dgen.receive_response(1)']) e;

--
-- Sizes and times
--
SELECT pg_temp.try($$SELECT dgen.cast('refusals/a', to_jsonb(repeat('x', 2000)))$$);
SELECT pg_temp.try($$SELECT dgen.call('refusals/a', to_jsonb(repeat('x', 2000)))$$);
CREATE FUNCTION refusals.handle_continue(message jsonb, state jsonb) RETURNS jsonb LANGUAGE sql AS 'SELECT state';
SELECT dgen.alter_module('refusals') -> 'altered';
SELECT pg_temp.try($$SELECT dgen.call('refusals/a', '{"do": "SELECT dgen.continue(to_jsonb(repeat(''x'', 2000)))"}')$$);
DROP FUNCTION refusals.handle_continue;
SELECT dgen.alter_module('refusals') -> 'altered';
SELECT pg_temp.try($$SELECT dgen.delete('refusals/a', tombstone => '296520 years')$$);
SELECT pg_temp.try($$SELECT dgen.send_every('refusals/b', '1', every => '200000 years', name => 'late', start => '294276-01-01')$$);

--
-- What is no module, or no longer the one it was
--
CREATE FUNCTION pg_temp.handle_cast(message jsonb, state jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT state $$;
SELECT pg_temp.error(format('SELECT dgen.create_module(''temporary'', schema_name => %L)', nspname))
  LIKE '3F000 schema of module "temporary" must not be temporary' FROM pg_namespace WHERE oid = pg_my_temp_schema();
CREATE FUNCTION refusals.init(args jsonb, OUT data jsonb, OUT state_name text) LANGUAGE sql AS $$ SELECT args, 'a' $$;
CREATE FUNCTION refusals.handle_event(kind text, event jsonb, state_name text, data jsonb, OUT next_state text, OUT new_data jsonb)
LANGUAGE sql AS $$ SELECT state_name, data $$;
SELECT pg_temp.try($$SELECT dgen.alter_module('refusals', kind => 'statem')$$);
DROP FUNCTION refusals.init;
SELECT pg_temp.try($$SELECT dgen.take_work('refusals', lease => '1 s')$$);

--
-- In a parallel operation
--
CREATE FUNCTION refusals.cast_parallel(i integer) RETURNS bigint LANGUAGE sql PARALLEL SAFE AS $$ SELECT dgen.cast('refusals/a', '1') $$;
CREATE FUNCTION refusals.call_parallel(i integer) RETURNS jsonb LANGUAGE sql PARALLEL SAFE AS $$ SELECT dgen.call('refusals/a', '{"do": "SELECT 1"}') $$;
CREATE TABLE refusals.many AS SELECT i FROM generate_series(1, 1000) i;
SET parallel_setup_cost = 0;
SET parallel_tuple_cost = 0;
SET min_parallel_table_scan_size = 0;
SET parallel_leader_participation = off;
SELECT pg_temp.error('SELECT count(refusals.cast_parallel(i)) FROM refusals.many');
SELECT pg_temp.error('SELECT count(refusals.call_parallel(i)) FROM refusals.many');
RESET parallel_setup_cost;
RESET parallel_tuple_cost;
RESET min_parallel_table_scan_size;
RESET parallel_leader_participation;

--
-- Of the extension's own
--
CREATE FUNCTION pg_temp.installed() RETURNS void LANGUAGE c AS 'dgen', 'dgen_installed';
SELECT pg_temp.try('SELECT pg_temp.installed()');

--
-- drain is for tests: a message that is not handled is an error there
--
CREATE FUNCTION refusals.handle_info(message jsonb, state jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
  PERFORM dgen.reject('no infos today');
  RETURN state;
END $$;
SELECT dgen.alter_module('refusals') -> 'altered';
BEGIN;
SET LOCAL dgen.inline = on;
SELECT dgen.send('refusals/c', '"hello"') > 0;
SELECT pg_temp.error('SELECT dgen.drain()');
ROLLBACK;


--
-- What the work of a transaction does not allow
--
CREATE SCHEMA outside;
SELECT dgen.create_module('outside', external => true) -> 'created';
SELECT dgen.send('outside/a', '1') > 0;
BEGIN;
SELECT server FROM dgen.take_work('outside');
PREPARE TRANSACTION 'refusals';
SELECT server FROM dgen.take_work('outside') t, dgen.finish_work(t.token);

--
-- Who drops what runs
--
SELECT count(dgen.start('refusals/' || i, '{}')) FROM generate_series(1, 1001) i;
SELECT pg_temp.try($$SELECT dgen.drop_module('refusals', cascade => true)$$);
SELECT dgen.suspend(module => 'refusals');
SELECT dgen.drop_module('refusals', cascade => true);
SELECT dgen.drop_module('outside', cascade => true);

--
-- The function of an effect
--
CREATE SCHEMA orphan;
CREATE FUNCTION orphan.handle_call(request jsonb, INOUT state jsonb, OUT reply jsonb) LANGUAGE sql AS $$
  SELECT state, to_jsonb(dgen.after_commit(4294967295::oid::regprocedure)) $$;
SELECT dgen.create_module('orphan', invoke_isolation => 'any') -> 'created';
SELECT pg_temp.try($$SELECT dgen.invoke('orphan/1', '1')$$);
SELECT dgen.drop_module('orphan', cascade => true);

--
-- Tables that somebody has changed by hand
--
BEGIN;
DO $$ BEGIN FOR i IN 1..70 LOOP EXECUTE format('ALTER TABLE dgen.member ADD COLUMN more%s int', i); END LOOP; END $$;
SELECT pg_temp.try($$SELECT count(*) FROM dgen.members('nobody')$$);
ROLLBACK;
BEGIN;
CREATE INDEX by_hand ON dgen.name (lower(server));
SELECT pg_temp.try($$SELECT dgen.unregister('nobody')$$);
ROLLBACK;


--
-- A reply and a lock
--
CREATE SCHEMA hands;
CREATE FUNCTION hands.handle_call(request jsonb, INOUT state jsonb, OUT reply jsonb, OUT lock boolean) LANGUAGE plpgsql AS $$
BEGIN
  PERFORM dgen.reply(dgen.from(), '1');
  lock := true;
END $$;
CREATE PROCEDURE hands.handle_locked(kind text, message jsonb, INOUT state jsonb, INOUT reply jsonb) LANGUAGE plpgsql AS 'BEGIN END';
SELECT dgen.create_module('hands') -> 'created';
SELECT pg_temp.try($$SELECT dgen.call('hands/1', '1')$$);
BEGIN;
DROP INDEX dgen.member_server_idx;
SELECT pg_temp.try($$SELECT dgen.drop_module('hands', cascade => true)$$);
ROLLBACK;
SELECT dgen.drop_module('hands', cascade => true);
DROP SCHEMA hands CASCADE;

--
-- Where there is no extension
--
\c postgres
CREATE FUNCTION pg_temp.state(server text) RETURNS jsonb LANGUAGE c AS 'dgen', 'dgen_state';
SELECT pg_temp.state('refusals/a');
CREATE FUNCTION pg_temp.suspend(server text, module text, everything boolean, reason text) RETURNS void LANGUAGE c AS 'dgen', 'dgen_suspend';
SELECT pg_temp.suspend('refusals/a', NULL, NULL, NULL);
\c regression
DROP SCHEMA refusals, outside, orphan CASCADE;
