--
-- Servers: how they start, stop and are operated; their states and views.
--
\getenv dir PG_ABS_SRCDIR
\i :dir/sql/helpers.psql
CREATE ROLE regress_dgen_servers LOGIN;
CREATE SCHEMA servers AUTHORIZATION regress_dgen_servers;
SET ROLE regress_dgen_servers;

-- a server whose state says how it began and what came; "bad" is not a state
CREATE FUNCTION servers.init(args jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
  IF args = '"fail"' THEN
    RAISE EXCEPTION 'no such beginning' USING ERRCODE = 'SV001', HINT = 'Begin otherwise.';
  END IF;
  RETURN jsonb_build_object('args', args, 'kind', dgen.kind());
END $$;
CREATE FUNCTION servers.handle_call(request jsonb, INOUT state jsonb, OUT reply jsonb) LANGUAGE plpgsql AS $$
BEGIN
  IF request ->> 'exit' IS NOT NULL THEN
    PERFORM dgen.exit(request ->> 'exit');
  ELSIF request ? 'do' THEN
    EXECUTE 'SELECT dgen.' || (request ->> 'do');
  ELSIF request ? 'set' THEN
    state := request -> 'set';
  END IF;
  reply := state;
END $$;
CREATE FUNCTION servers.handle_cast(message jsonb, INOUT state jsonb) LANGUAGE sql AS $$
  SELECT jsonb_set(state, '{cast}', message) $$;
CREATE FUNCTION servers.validate(state jsonb) RETURNS boolean LANGUAGE sql AS $$
  SELECT CASE state WHEN '"bad"' THEN false WHEN '"unknown"' THEN NULL ELSE true END $$;
SELECT dgen.create_module('servers', invoke_isolation => 'any') -> 'created';
CREATE TEMP VIEW s AS
  SELECT key, status, suspended_at IS NOT NULL AS suspended, suspended_by, incarnation, version,
    state, vsn, started_at < updated_at AS started, stop_reason, tombstone_until IS NOT NULL AS tombstone
  FROM dgen.servers WHERE module = 'servers' ORDER BY server;

--
-- Start: by the first message, or by hand with arguments
--
SELECT dgen.call('servers/virtual', '{}');
SELECT dgen.call('servers/with/a/long/key', '{}');
SELECT dgen.start('servers/args', '{"a": 1}');
SELECT dgen.call('servers/args', '{}');
SELECT dgen.start('servers/none');
SELECT dgen.state('servers/none');
SELECT pg_temp.try($$SELECT dgen.start('servers/args')$$);
SELECT pg_temp.try($$SELECT dgen.start('servers/args', if_exists => 'error')$$);
SELECT dgen.start('servers/args', '"not used"', if_exists => 'return');
SELECT pg_temp.try($$SELECT dgen.start('servers/args', if_exists => 'skip')$$);
SELECT pg_temp.try($$SELECT dgen.start('servers/fails', '"fail"')$$);
SELECT * FROM s;
-- an init that fails leaves nothing; a call gets the same error
SELECT pg_temp.try($$SELECT dgen.replace_state('servers/fails', '1')$$);
-- in a transaction that is weaker than the module's: as an invoke may not be, but a start may
SELECT dgen.alter_module('servers', invoke_isolation => 'match') -> 'created';
SELECT dgen.start('servers/weak');
SELECT pg_temp.error($$SELECT dgen.invoke('servers/weak', '{}')$$);
BEGIN ISOLATION LEVEL SERIALIZABLE;
SELECT dgen.start('servers/serializable');
SELECT dgen.invoke('servers/serializable', '{}');
COMMIT;
SELECT dgen.alter_module('servers', invoke_isolation => 'any') -> 'created';
-- start joins the transaction, and init runs inside it
BEGIN;
SELECT dgen.start('servers/rolled back');
SELECT dgen.state('servers/rolled back');
ROLLBACK;
SELECT pg_temp.try($$SELECT dgen.state('servers/rolled back')$$);

--
-- Versions grow with each activation that changes the state, and only then
--
SELECT dgen.call('servers/args', '{}');
SELECT version FROM s WHERE key = 'args';
SELECT dgen.call('servers/args', '{"set": 1}');
SELECT version FROM s WHERE key = 'args';
SELECT dgen.call('servers/args', '{"set": 1}');
SELECT version FROM s WHERE key = 'args';
-- JSON: 1 is not 1.0
SELECT dgen.call('servers/args', '{"set": 1.0}');
SELECT version, state FROM s WHERE key = 'args';
-- a state may be JSON null
SELECT dgen.call('servers/args', '{"set": null}');
SELECT version, state FROM s WHERE key = 'args';

--
-- validate, of a handler's state
--
SELECT pg_temp.try($$SELECT dgen.call('servers/args', '{"set": "bad"}')$$);
SELECT pg_temp.try($$SELECT dgen.call('servers/args', '{"set": "unknown"}')$$);
SELECT version, state FROM s WHERE key = 'args';

--
-- replace_state
--
SELECT dgen.replace_state('servers/args', '{"new": true}');
SELECT dgen.replace_state('servers/args', '{"new": true}');
SELECT dgen.replace_state('servers/args', '{"new": false}', expected_version => 5);
SELECT pg_temp.try($$SELECT dgen.replace_state('servers/args', '"x"', expected_version => 5)$$);
SELECT pg_temp.try($$SELECT dgen.replace_state('servers/args', '"bad"')$$);
SELECT pg_temp.try($$SELECT dgen.replace_state('servers/args', NULL)$$);
SELECT pg_temp.try($$SELECT dgen.replace_state('servers/unknown', '1')$$);
-- what a worker had in memory is not what it goes on with
SELECT dgen.call('servers/args', '{}');
BEGIN;
SELECT dgen.replace_state('servers/args', '"in a transaction"');
SELECT dgen.state('servers/args');
ROLLBACK;
SELECT dgen.call('servers/args', '{}'), dgen.state('servers/args');
SELECT dgen.alter_module('servers', max_state_size => 100) -> 'created';
SELECT pg_temp.try($$SELECT dgen.replace_state('servers/args', to_jsonb(repeat('x', 100)))$$);
SELECT pg_temp.error($$SELECT dgen.call('servers/args', jsonb_build_object('set', repeat('x', 100)))$$);
SELECT dgen.alter_module('servers', max_state_size => 1000000) -> 'created';

--
-- stop: the state is kept, and the next message opens a new incarnation
--
SELECT dgen.stop('servers/virtual');
SELECT * FROM s WHERE key = 'virtual';
SELECT dgen.state('servers/virtual');
SELECT dgen.stop('servers/virtual');
SELECT pg_temp.try($$SELECT dgen.stop('servers/unknown')$$);
SELECT pg_temp.try($$SELECT dgen.replace_state('servers/virtual', '1')$$);
SELECT dgen.call('servers/virtual', '{}');
SELECT * FROM s WHERE key = 'virtual';
SELECT dgen.stop('servers/virtual', 'for lunch');
SELECT stop_reason FROM s WHERE key = 'virtual';
SELECT dgen.start('servers/virtual');
-- exit does the same from inside
SELECT dgen.call('servers/virtual', '{"exit": "enough"}');
SELECT status, incarnation, stop_reason FROM s WHERE key = 'virtual';
-- a message that waited belongs to the next incarnation
SELECT dgen.suspend('servers/virtual');
SELECT dgen.cast('servers/virtual', '"waited"') > 0;
SELECT dgen.stop('servers/virtual');
SELECT dgen.resume('servers/virtual');
SELECT dgen.wait_idle('servers/virtual');
SELECT dgen.call('servers/virtual', '{}');
SELECT incarnation FROM s WHERE key = 'virtual';

--
-- kill: as stop, but the state goes
--
SELECT dgen.kill('servers/virtual');
SELECT * FROM s WHERE key = 'virtual';
SELECT pg_temp.try($$SELECT dgen.state('servers/virtual')$$);
SELECT dgen.kill('servers/virtual');
SELECT pg_temp.try($$SELECT dgen.kill('servers/unknown')$$);
SELECT dgen.start('servers/virtual', '"again"');
SELECT dgen.kill('servers/virtual', 'a reason');
SELECT status, incarnation, version, stop_reason FROM s WHERE key = 'virtual';
SELECT dgen.call('servers/virtual', '{}');

--
-- on_stop => delete
--
SELECT dgen.alter_module('servers', on_stop => 'delete') -> 'created';
SELECT dgen.stop('servers/none');
SELECT count(*) FROM s WHERE key = 'none';
SELECT pg_temp.try($$SELECT dgen.state('servers/none')$$);
SELECT dgen.call('servers/none', '{"exit": "now"}');
SELECT count(*) FROM s WHERE key = 'none';
SELECT dgen.alter_module('servers', on_stop => 'keep') -> 'created';
-- a row that is kept for failures, or for a suspension, goes with these
RESET ROLE;
CREATE SCHEMA mortal AUTHORIZATION regress_dgen_servers;
SET ROLE regress_dgen_servers;
CREATE SEQUENCE mortal.tries;
CREATE FUNCTION mortal.handle_cast(message jsonb, state jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
  IF nextval('mortal.tries') < 3 THEN
    RAISE 'not yet';
  END IF;
  PERFORM dgen.exit('done');
  RETURN state;
END $$;
SELECT dgen.create_module('mortal', on_stop => 'delete', backoff_initial => '5 ms', breaker => 0) -> 'created';
SELECT dgen.cast('mortal/fails', '1') > 0;
SELECT dgen.wait_idle('mortal/fails');
SELECT status, stop_reason FROM dgen.servers WHERE module = 'mortal';
SELECT dgen.start('mortal/waits') > 0, dgen.suspend('mortal/waits'), dgen.stop('mortal/waits');
SELECT status, stop_reason, suspended_at IS NOT NULL AS suspended FROM dgen.servers WHERE module = 'mortal';
SELECT dgen.resume('mortal/waits');
SELECT status, stop_reason FROM dgen.servers WHERE module = 'mortal';
SELECT dgen.alter_module('mortal', backoff_initial => '1 h', backoff_max => '1 h') ->> 'module', setval('mortal.tries', 1);
SELECT dgen.start('mortal/discarded') > 0, dgen.cast('mortal/discarded', '1') > 0;
SELECT pg_temp.until($$EXISTS (SELECT FROM dgen.messages WHERE server = 'mortal/discarded' AND attempts = 1)$$);
SELECT dgen.kill('mortal/discarded', 'enough');
SELECT status, stop_reason FROM dgen.servers WHERE module = 'mortal';
SELECT dgen.discard(id) FROM dgen.messages WHERE server = 'mortal/discarded';
SELECT status, stop_reason FROM dgen.servers WHERE module = 'mortal';
SELECT dgen.drop_module('mortal', cascade => true);

--
-- suspend and resume: a server
--
SELECT dgen.suspend('servers/args');
SELECT suspended, suspended_by FROM s WHERE key = 'args';
SELECT pg_temp.error($$SELECT dgen.call('servers/args', '{}', '100 ms')$$);
SELECT dgen.cast('servers/args', '1') > 0;
SELECT dgen.wait_idle('servers/args', timeout => '100 ms');
SELECT status, kind, message FROM dgen.messages WHERE server = 'servers/args';
-- it can be operated all the same; a second suspend changes nothing
SELECT dgen.suspend('servers/args', reason => 'not said before');
SELECT suspended_by FROM s WHERE key = 'args';
SELECT dgen.replace_state('servers/args', '{"mended": true}') > 0;
SELECT dgen.resume('servers/args');
SELECT dgen.wait_idle('servers/args');
SELECT pg_temp.until($$dgen.state('servers/args') = '{"cast": 1, "mended": true}'$$);
SELECT dgen.resume('servers/args');
SELECT dgen.suspend('servers/args', reason => 'a reason');
SELECT suspended_by FROM s WHERE key = 'args';
SELECT dgen.resume(server => 'servers/args');
-- an unknown one is created suspended, and gone when resumed
SELECT dgen.suspend('servers/unknown');
SELECT * FROM s WHERE key = 'unknown';
SELECT pg_temp.try($$SELECT dgen.start('servers/unknown')$$);
SELECT dgen.cast('servers/unknown', '2') > 0;
SELECT dgen.wait_idle('servers/unknown', timeout => '50 ms');
BEGIN;
SELECT dgen.resume('servers/unknown');
ROLLBACK;
SELECT dgen.wait_idle('servers/unknown', timeout => '50 ms');
SELECT dgen.resume('servers/unknown');
SELECT dgen.wait_idle('servers/unknown');
SELECT pg_temp.until($$EXISTS (SELECT FROM s WHERE key = 'unknown' AND state ->> 'cast' = '2')$$);
SELECT dgen.suspend('servers/nothing');
SELECT dgen.resume('servers/nothing');
SELECT count(*) FROM s WHERE key = 'nothing';

--
-- A module, and everything
--
SELECT dgen.suspend(module => 'servers', reason => 'at night');
SELECT suspended_at <= now(), suspended_by, suspended_reason FROM dgen.modules WHERE module = 'servers';
SELECT pg_temp.error($$SELECT dgen.call('servers/args', '{}', '100 ms')$$);
SELECT pg_temp.try($$SELECT dgen.start('servers/of a suspended module')$$);
SELECT dgen.cast('servers/args', '3') > 0;
SELECT dgen.wait_idle(module => 'servers', timeout => '50 ms');
SELECT dgen.resume(module => 'servers');
SELECT dgen.wait_idle(module => 'servers');
SELECT suspended_at, suspended_by, suspended_reason FROM dgen.modules WHERE module = 'servers';
SELECT pg_temp.try($$SELECT dgen.suspend(everything => true)$$);
SELECT pg_temp.try($$SELECT dgen.resume(everything => true)$$);
RESET ROLE;
BEGIN;
SELECT dgen.suspend(everything => true);
SELECT bool_and(suspended_at IS NOT NULL) FROM dgen.modules;
SELECT dgen.resume(everything => true);
SELECT bool_or(suspended_at IS NOT NULL) FROM dgen.modules;
COMMIT;
SET ROLE regress_dgen_servers;
-- exactly one of the three
SELECT pg_temp.try($$SELECT dgen.suspend()$$);
SELECT pg_temp.try($$SELECT dgen.suspend('servers/args', module => 'servers')$$);
SELECT pg_temp.try($$SELECT dgen.suspend(everything => false)$$);
SELECT pg_temp.try($$SELECT dgen.resume()$$);
SELECT pg_temp.try($$SELECT dgen.resume('servers/args', 'servers', true)$$);
SELECT pg_temp.error($$SELECT dgen.suspend(module => 'regress_dgen_nowhere')$$);

--
-- delete, and its tombstone
--
SELECT dgen.suspend('servers/args');
SELECT count(*) FROM generate_series(1, 3) i, dgen.cast('servers/args', to_jsonb(i));
SELECT count(*) FROM dgen.cast('servers/args', '4', delay => '1 h');
SELECT dgen.delete('servers/args');
SELECT count(*) FROM s WHERE key = 'args';
SELECT count(*) FROM dgen.messages WHERE server = 'servers/args';
SELECT dgen.delete('servers/args');
-- it can come to life again, from the beginning
SELECT dgen.call('servers/args', '{}');
SELECT * FROM s WHERE key = 'args';
SELECT dgen.delete('servers/args', tombstone => '1 h');
SELECT * FROM s WHERE key = 'args';
SELECT pg_temp.error($$SELECT dgen.cast('servers/args', '1')$$);
SELECT pg_temp.error($$SELECT dgen.send('servers/args', '1')$$);
SELECT pg_temp.error($$SELECT dgen.send_request('servers/args', '1')$$);
SELECT pg_temp.error($$SELECT dgen.call('servers/args', '{}')$$);
SELECT pg_temp.error($$SELECT dgen.state('servers/args')$$);
SELECT pg_temp.error($$SELECT dgen.cast_many('[{"server": "servers/args", "message": 1}]')$$);
BEGIN ISOLATION LEVEL SERIALIZABLE;
SELECT pg_temp.error($$SELECT dgen.invoke('servers/args', '{}')$$);
ROLLBACK;
SELECT pg_temp.try($$SELECT dgen.delete('servers/args', '0 s')$$);
SELECT pg_temp.error($$SELECT dgen.delete('servers/args', '-1 s')$$);
-- start is stronger, and delete without one
SELECT dgen.start('servers/args');
SELECT dgen.cancel(dgen.cast('servers/args', '1'));
SELECT dgen.delete('servers/args', tombstone => '1 h');
SELECT dgen.delete('servers/args', tombstone => '2 h');
SELECT pg_temp.error($$SELECT dgen.cast('servers/args', '1')$$);
SELECT dgen.delete('servers/args');
SELECT dgen.cancel(dgen.cast('servers/args', '1'));
BEGIN;
SAVEPOINT a;
SELECT dgen.delete('servers/args', tombstone => '1 h');
SELECT pg_temp.error($$SELECT dgen.cast('servers/args', '1')$$);
ROLLBACK TO a;
SELECT dgen.cancel(dgen.cast('servers/args', '1'));
ROLLBACK;
SELECT dgen.start('servers/args');
SELECT dgen.call('servers/args', '{}');
SELECT dgen.delete('servers/args', tombstone => '10 ms');
SELECT pg_temp.until($$pg_temp.error('SELECT dgen.cast(''servers/args'', ''5'')') NOT LIKE 'OT003%'$$);
SELECT dgen.wait_idle('servers/args');
SELECT pg_temp.until($$dgen.state('servers/args') ->> 'cast' = '5'$$);

--
-- auto_start => false
--
SELECT dgen.alter_module('servers', auto_start => false) -> 'created';
SELECT pg_temp.try($$SELECT dgen.call('servers/manual', '{}')$$);
SELECT dgen.cast('servers/manual', '1') > 0;
SELECT dgen.wait_idle('servers/manual');
SELECT count(*) FROM s WHERE key = 'manual';
SELECT dgen.start('servers/manual');
SELECT dgen.call('servers/manual', '{}');
SELECT dgen.stop('servers/manual');
SELECT pg_temp.try($$SELECT dgen.call('servers/manual', '{}')$$);
SELECT dgen.alter_module('servers', auto_start => true) -> 'created';

--
-- ephemeral: each message finds a new state, and leaves none
--
SELECT dgen.alter_module('servers', ephemeral => true) -> 'created';
SELECT dgen.call('servers/job', '{"set": {"done": true}}');
SELECT dgen.call('servers/job', '{}');
SELECT count(*) FROM s WHERE key = 'job';
SELECT pg_temp.try($$SELECT dgen.state('servers/job')$$);
SELECT pg_temp.try($$SELECT dgen.start('servers/job')$$);
SELECT dgen.alter_module('servers', ephemeral => false) -> 'created';

--
-- What a server cannot do to itself, and who reads only may not do at all
--
CREATE FUNCTION servers.handle_query(query jsonb, state jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
  result jsonb;
BEGIN
  EXECUTE 'SELECT to_jsonb(x) FROM ' || (query ->> 0) || ' x' INTO result;
  RETURN result;
END $$;
SELECT f, pg_temp.error(format('SELECT dgen.call(%L, %L)', 'servers/virtual', jsonb_build_object('do', f))) FROM unnest(
  ARRAY['stop(dgen.self())', 'kill(dgen.self())', 'delete(dgen.self())', 'suspend(dgen.self())',
  'resume(dgen.self())', 'replace_state(dgen.self(), ''1'')', 'start(dgen.self())']) f;
-- but to another
SELECT dgen.call('servers/virtual', '{"do": "start(''servers/by another'', ''1'')"}') = dgen.state('servers/virtual');
SELECT dgen.call('servers/virtual', '{"do": "replace_state(''servers/by another'', ''2'')"}') IS NOT NULL;
SELECT dgen.call('servers/by another', '{}');
SELECT dgen.call('servers/virtual', '{"do": "delete(''servers/by another'')"}') IS NOT NULL;
SELECT count(*) FROM s WHERE key = 'by another';
SELECT f, pg_temp.error(format($$SELECT dgen.query('servers/virtual', to_jsonb(ARRAY[%L]))$$, 'dgen.' || f)) FROM unnest(
  ARRAY['stop(dgen.self())', 'kill(dgen.self())', 'delete(dgen.self())', 'suspend(dgen.self())',
  'resume(dgen.self())', 'replace_state(dgen.self(), ''1'')', 'start(dgen.self())', 'state(dgen.self())']) f;

--
-- Masks: in the view, not in dgen.state
--
CREATE FUNCTION servers.format_status(state jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
  IF state ? 'secret' THEN
    RETURN state || '{"secret": "***"}';
  END IF;
  RETURN 1 / 0;
END $$;
SELECT dgen.start('servers/mask') > 0, dgen.replace_state('servers/mask', '{"secret": 42}') > 0;
SELECT state FROM dgen.servers WHERE server = 'servers/mask';
SELECT dgen.state('servers/mask');
-- one that fails shows why; nobody can see behind it
SELECT dgen.replace_state('servers/mask', '{"public": 42}') > 0;
SELECT state FROM dgen.servers WHERE server = 'servers/mask';
-- what is not its fault is raised, and may be caught
SELECT dgen.replace_state('servers/mask', '{"secret": 42}') > 0;
CREATE OR REPLACE FUNCTION servers.format_status(state jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$ BEGIN RAISE 'a conflict' USING ERRCODE = '40001'; END $$;
CREATE TEMP TABLE caught (what text);
DO $$
BEGIN
  BEGIN
    INSERT INTO caught VALUES ('before');
    PERFORM state FROM dgen.servers WHERE server = 'servers/mask';
  EXCEPTION WHEN serialization_failure THEN
    INSERT INTO caught VALUES (sqlerrm);
  END;
  INSERT INTO caught VALUES ('after');
END $$;
BEGIN;
SAVEPOINT a;
SELECT state FROM dgen.servers WHERE server = 'servers/mask';
ROLLBACK TO a;
INSERT INTO caught VALUES ('savepoint');
COMMIT;
SELECT * FROM caught;
DROP TABLE caught;
-- one that cannot be used does not uncover the state
DROP FUNCTION servers.format_status;
CREATE FUNCTION servers.format_status(state jsonb) RETURNS text LANGUAGE sql AS $$ SELECT '' $$;
SELECT state FROM dgen.servers WHERE server = 'servers/mask';
DROP FUNCTION servers.format_status;
SELECT state FROM dgen.servers WHERE server = 'servers/mask';

--
-- The workers that did it
--
SELECT bool_and(pid IS NOT NULL), bool_and(state IN ('idle', 'busy', 'starting', 'leaving')),
  bool_and(started_at <= now()), sum(batches) > 0, sum(activations) > 0,
  bool_and(serialization_retries >= 0), bool_and(batch_size >= 0)
FROM dgen.workers WHERE owner = 'regress_dgen_servers';
-- and what the views have to say
SELECT c.relname, a.attname, format_type(a.atttypid, a.atttypmod)
FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
WHERE c.relnamespace = 'dgen'::regnamespace AND c.relname IN ('servers', 'workers') AND a.attnum > 0
ORDER BY c.relname, a.attnum;
-- everything has a comment
SELECT c.oid::regclass, a.attname FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
WHERE c.relnamespace = 'dgen'::regnamespace AND c.relkind = 'v' AND a.attnum > 0
  AND col_description(c.oid, a.attnum) IS NULL;
SELECT oid::regprocedure FROM pg_proc WHERE pronamespace = 'dgen'::regnamespace
  AND obj_description(oid, 'pg_proc') IS NULL;

SELECT dgen.drop_module('servers', true);
RESET ROLE;
SET client_min_messages = warning;
DROP VIEW s;
DROP SCHEMA servers, mortal CASCADE;
DROP ROLE regress_dgen_servers;
