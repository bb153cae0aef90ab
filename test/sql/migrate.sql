--
-- New code for old states: code_change, lazily and all at once.
--
\getenv dir PG_ABS_SRCDIR
\i :dir/sql/helpers.psql
CREATE ROLE regress_dgen_migrate LOGIN;
CREATE ROLE regress_dgen_migrate_reader;
CREATE ROLE regress_dgen_migrate_stranger;
CREATE SCHEMA migrate AUTHORIZATION regress_dgen_migrate;
SELECT nspname AS temp FROM pg_namespace WHERE oid = pg_my_temp_schema() \gset
GRANT USAGE ON SCHEMA :temp TO PUBLIC;
SET ROLE regress_dgen_migrate;

-- version 1: a number
CREATE FUNCTION migrate.init(args jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT '0'::jsonb $$;
CREATE FUNCTION migrate.handle_call(request jsonb, INOUT state jsonb, OUT reply jsonb) LANGUAGE plpgsql AS $$
BEGIN
  state := to_jsonb(state::int + request::int);
  reply := state;
END $$;
CREATE FUNCTION migrate.handle_cast(message jsonb, state jsonb) RETURNS jsonb LANGUAGE sql AS $$
  SELECT to_jsonb(state::int + message::int) $$;
CREATE FUNCTION migrate.handle_query(query jsonb, state jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT state $$;
SELECT dgen.create_module('migrate', invoke_isolation => 'any', max_attempts => 2, backoff_initial => '10 ms',
  readers => 'regress_dgen_migrate_reader') -> 'created';
SELECT pg_temp.try($$SELECT * FROM dgen.migrate('migrate')$$);
SELECT dgen.call('migrate/a', '1'), dgen.call('migrate/b', '2'), dgen.call('migrate/c', '3'), dgen.call('migrate/d', '4');
SELECT dgen.stop('migrate/d');
SELECT server, version, vsn FROM dgen.servers WHERE module = 'migrate' ORDER BY server;

--
-- A vsn without code_change: states stay, and take it when they are written
--
SELECT dgen.alter_module('migrate', vsn => '1') ->> 'module';
SELECT dgen.call('migrate/a', '0'), dgen.call('migrate/b', '1');
SELECT server, version, vsn FROM dgen.servers WHERE module = 'migrate' ORDER BY server;
SELECT server, old_vsn, version, error FROM dgen.migrate('migrate', dry_run => true);
SELECT server, old_vsn, version, error FROM dgen.migrate('migrate');
SELECT server, old_vsn, version, error FROM dgen.migrate('migrate');
SELECT server, version, vsn FROM dgen.servers WHERE module = 'migrate' ORDER BY server;

--
-- version 2: an object.  Lazily, before the next activation
--
CREATE FUNCTION migrate.upgrade() RETURNS void LANGUAGE plpgsql AS $body$
BEGIN
  CREATE OR REPLACE FUNCTION migrate.init(args jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT '{"n": 0}'::jsonb $$;
  CREATE OR REPLACE FUNCTION migrate.handle_call(request jsonb, INOUT state jsonb, OUT reply jsonb) LANGUAGE plpgsql AS $$
  BEGIN
    state := jsonb_set(state, '{n}', to_jsonb((state ->> 'n')::int + request::int));
    reply := state;
  END $$;
  CREATE OR REPLACE FUNCTION migrate.handle_cast(message jsonb, state jsonb) RETURNS jsonb LANGUAGE sql AS $$
    SELECT jsonb_set(state, '{n}', to_jsonb((state ->> 'n')::int + message::int)) $$;
  CREATE OR REPLACE FUNCTION migrate.code_change(old_vsn text, state jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
  BEGIN
    IF state = '13' THEN
      RAISE EXCEPTION 'no % for %', state, dgen.self() USING DETAIL = 'from ' || old_vsn;
    END IF;
    RETURN jsonb_build_object('n', state, 'was', old_vsn);
  END $$;
END $body$;
BEGIN;
SELECT migrate.upgrade();
SELECT dgen.alter_module('migrate', vsn => '2') #>> '{callbacks,code_change}';
COMMIT;
-- not migrated: raw as it is, but a query sees what the code understands
SELECT dgen.state('migrate/a'), dgen.query('migrate/a', 'null'), dgen.state('migrate/a');
-- by a call: one version for both
SELECT dgen.call('migrate/a', '0');
SELECT version, vsn, dgen.state(server) FROM dgen.servers WHERE server = 'migrate/a';
-- by a cast
SELECT dgen.cast('migrate/b', '10') > 0;
SELECT dgen.wait_idle('migrate/b');
SELECT version, vsn, dgen.state(server) FROM dgen.servers WHERE server = 'migrate/b';
-- by an invoke, and undone with it
BEGIN;
SELECT dgen.invoke('migrate/c', '0');
ROLLBACK;
SELECT version, vsn, dgen.state(server) FROM dgen.servers WHERE server = 'migrate/c';
BEGIN;
SELECT dgen.invoke('migrate/c', '1');
SAVEPOINT s;
SELECT dgen.invoke('migrate/c', '1');
ROLLBACK TO s;
COMMIT;
SELECT version, vsn, dgen.state(server) FROM dgen.servers WHERE server = 'migrate/c';
-- a stopped one begins anew
SELECT dgen.call('migrate/d', '1');
SELECT incarnation, vsn FROM dgen.servers WHERE server = 'migrate/d';
-- one that is stopped is migrated for terminate
BEGIN;
CREATE FUNCTION migrate.terminate(reason text, state jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  RAISE NOTICE '% ends: %', state, reason;
END $$;
SELECT dgen.alter_module('migrate', vsn => '3') ->> 'module';
SELECT dgen.stop('migrate/a');
SELECT vsn, dgen.state(server) FROM dgen.servers WHERE server = 'migrate/a';
ROLLBACK;
-- none to do
SELECT count(*) FROM dgen.migrate('migrate');

--
-- A code_change that fails fails the activation, and nothing is lost
--
CREATE FUNCTION migrate.set_vsn(vsn text, VARIADIC states int[]) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
  PERFORM dgen.alter_module('migrate', vsn => '0');
  PERFORM dgen.delete(s.server) FROM dgen.servers s WHERE s.module = 'migrate';
  FOR i IN 1 .. array_length(states, 1) LOOP
    PERFORM dgen.start('migrate/s' || i);
    PERFORM dgen.replace_state('migrate/s' || i, to_jsonb(states[i]));
  END LOOP;
  RETURN dgen.alter_module('migrate', vsn => vsn) ->> 'module';
END $$;
SELECT migrate.set_vsn('3', 13, 14, 15);
SELECT pg_temp.try($$SELECT dgen.call('migrate/s1', '0')$$);
SELECT pg_temp.try($$SELECT dgen.invoke('migrate/s1', '0')$$);
SELECT pg_temp.try($$SELECT dgen.query('migrate/s1', '0')$$);
SELECT dgen.cast('migrate/s1', '1') > 0;
SELECT pg_temp.until($$EXISTS (SELECT FROM dgen.dead_letters WHERE server = 'migrate/s1')$$);
SELECT attempts, error ->> 'message', error ->> 'detail' FROM dgen.dead_letters WHERE server = 'migrate/s1';
SELECT version, vsn, dgen.state(server) FROM dgen.servers WHERE server = 'migrate/s1';
-- who replaces the state gives one of the present code
SELECT dgen.replace_state('migrate/s1', '{"n": 12}');
SELECT dgen.requeue_all('migrate/s1');
SELECT dgen.wait_idle('migrate/s1');
SELECT version, vsn, dgen.state(server) FROM dgen.servers WHERE server = 'migrate/s1';

--
-- All at once: all or nothing, and before that what would be
--
SELECT migrate.set_vsn('4', 12, 13, 14);
SELECT server, old_vsn, version, error - 'context' FROM dgen.migrate('migrate', dry_run => true) ORDER BY server;
SELECT server, vsn, dgen.state(server) FROM dgen.servers WHERE module = 'migrate' ORDER BY server;
SELECT pg_temp.try($$SELECT * FROM dgen.migrate('migrate')$$);
SELECT server, vsn, dgen.state(server) FROM dgen.servers WHERE module = 'migrate' ORDER BY server;
SELECT server, version, error FROM dgen.migrate('migrate', max_servers => 1);
CALL dgen.migrate_all('migrate');
SELECT server, vsn, dgen.state(server) FROM dgen.servers WHERE module = 'migrate' ORDER BY server;
CALL dgen.migrate_all('migrate', batch => 1);
-- code, vsn and states are one
SELECT migrate.set_vsn('4', 20, 21);
BEGIN;
CREATE OR REPLACE FUNCTION migrate.code_change(old_vsn text, state jsonb) RETURNS jsonb LANGUAGE sql AS $$
  SELECT jsonb_build_object('n', state, 'five', true) $$;
SELECT dgen.alter_module('migrate', vsn => '5') ->> 'module';
SELECT count(*), count(error) FROM dgen.migrate('migrate');
SELECT dgen.invoke('migrate/s1', '1');
ROLLBACK;
SELECT server, vsn, dgen.state(server) FROM dgen.servers WHERE module = 'migrate' ORDER BY server;
-- validate has its say, and attributes follow; those of others stay
CREATE FUNCTION migrate.validate(state jsonb) RETURNS boolean LANGUAGE sql AS $$ SELECT state -> 'n' <> '21' $$;
CREATE FUNCTION migrate.attributes(state jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT jsonb_build_object('n', state -> 'n') $$;
SELECT dgen.alter_module('migrate') #> '{callbacks}' ? 'attributes';
SELECT server, attributes FROM migrate.servers ORDER BY server;
SELECT server, error ->> 'sqlstate' FROM dgen.migrate('migrate', dry_run => true) ORDER BY server;
SELECT server, attributes FROM migrate.servers ORDER BY server;
CALL dgen.migrate_all('migrate');
SELECT server, attributes FROM migrate.servers ORDER BY server;
SELECT dgen.refresh_attributes('migrate');

--
-- What code_change may do
--
CREATE TABLE migrate.changed (server text);
CREATE OR REPLACE FUNCTION migrate.code_change(old_vsn text, state jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO migrate.changed VALUES (dgen.self());
  PERFORM dgen.cast(dgen.self(), '100');
  RETURN jsonb_build_object('n', state);
END $$;
DROP FUNCTION migrate.validate(jsonb);
SELECT migrate.set_vsn('6', 1, 2);
SELECT count(*) FROM dgen.migrate('migrate', dry_run => true);
SELECT count(*) FROM migrate.changed;
SELECT pg_temp.try($$SELECT dgen.query('migrate/s1', '0')$$);
SELECT dgen.call('migrate/s1', '1');
SELECT dgen.wait_idle(module => 'migrate');
SELECT server, vsn, dgen.state(server) FROM dgen.servers WHERE module = 'migrate' ORDER BY server;
SELECT * FROM migrate.changed;
-- no directives
CREATE OR REPLACE FUNCTION migrate.code_change(old_vsn text, state jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
  PERFORM dgen.exit('no');
  RETURN state;
END $$;
SELECT pg_temp.error($$SELECT dgen.call('migrate/s2', '1')$$);
-- one that cannot be used holds up all
DROP FUNCTION migrate.code_change(text, jsonb);
CREATE FUNCTION migrate.code_change(old_vsn text, state jsonb) RETURNS text LANGUAGE sql AS $$ SELECT 'x' $$;
SELECT pg_temp.error($$SELECT dgen.call('migrate/s2', '1')$$);
SELECT pg_temp.error($$SELECT * FROM dgen.migrate('migrate')$$);
-- null is a state, too; and an old_vsn
DROP FUNCTION migrate.code_change(text, jsonb);
CREATE FUNCTION migrate.code_change(old_vsn text, state jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT NULL::jsonb $$;
SELECT count(*) FROM dgen.migrate('migrate');
CREATE OR REPLACE FUNCTION migrate.code_change(old_vsn text, state jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT 'null'::jsonb $$;
SELECT count(*) FROM dgen.migrate('migrate');
SELECT dgen.state('migrate/s2');
-- the same state: the vsn is written all the same
CREATE OR REPLACE FUNCTION migrate.code_change(old_vsn text, state jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT state $$;
SELECT dgen.alter_module('migrate', vsn => '7') ->> 'module';
SELECT version AS before FROM dgen.servers WHERE server = 'migrate/s2' \gset
SELECT server, version - :before AS more FROM dgen.migrate('migrate') WHERE server = 'migrate/s2';
SELECT vsn FROM dgen.servers WHERE server = 'migrate/s2';
-- a vsn that is taken away leaves all as it is
SELECT dgen.alter_module('migrate', vsn => '') ->> 'module';
SELECT vsn FROM dgen.servers WHERE server = 'migrate/s2';
SELECT pg_temp.try($$SELECT * FROM dgen.migrate('migrate')$$);

--
-- Who may, and what is refused
--
SELECT dgen.alter_module('migrate', vsn => '8') ->> 'module';
SET ROLE regress_dgen_migrate_reader;
SELECT pg_temp.error($$SELECT * FROM dgen.migrate('migrate')$$);
SELECT pg_temp.error($$SELECT * FROM dgen.migrate('migrate', dry_run => true)$$);
SELECT count(*) FROM dgen.progress_migrate;
SET ROLE regress_dgen_migrate_stranger;
SELECT pg_temp.error($$SELECT * FROM dgen.migrate('migrate')$$);
CALL dgen.migrate_all('migrate');
SELECT count(*) FROM dgen.progress_migrate;
SET ROLE regress_dgen_migrate;
SELECT pg_temp.try($$SELECT * FROM dgen.migrate(NULL)$$);
SELECT pg_temp.try($$SELECT * FROM dgen.migrate('nothing')$$);
SELECT pg_temp.try($$SELECT * FROM dgen.migrate('migrate', max_servers => 0)$$);
CALL dgen.migrate_all('migrate', batch => 1001);
BEGIN;
CALL dgen.migrate_all('migrate');
ROLLBACK;
BEGIN READ ONLY;
SELECT * FROM dgen.migrate('migrate');
ROLLBACK;
CREATE OR REPLACE FUNCTION migrate.handle_call(request jsonb, INOUT state jsonb, OUT reply jsonb) LANGUAGE plpgsql AS $$
BEGIN
  PERFORM dgen.migrate('migrate');
END $$;
SELECT pg_temp.try($$SELECT dgen.call('migrate/s1', '1')$$);

--
-- A message knows the vsn of its sender
--
CREATE OR REPLACE FUNCTION migrate.handle_call(request jsonb, INOUT state jsonb, OUT reply jsonb) LANGUAGE plpgsql AS $$
BEGIN
  state := coalesce(to_jsonb(dgen.message_vsn()), 'null');
  IF request ? 'cast' THEN
    PERFORM dgen.cast(request ->> 'cast', '1');
  ELSIF request ? 'invoke' THEN
    reply := dgen.invoke(request ->> 'invoke', '{}');
  END IF;
  reply := coalesce(reply, to_jsonb(dgen.message_vsn()), '"none"');
END $$;
CREATE OR REPLACE FUNCTION migrate.handle_cast(message jsonb, state jsonb) RETURNS jsonb LANGUAGE sql AS $$
  SELECT to_jsonb(dgen.message_vsn()) $$;
SELECT dgen.call('migrate/s1', '{"cast": "migrate/s2"}'), dgen.call('migrate/s1', '{"invoke": "migrate/s3"}');
SELECT dgen.wait_idle(module => 'migrate');
SELECT dgen.state('migrate/s2');

--
-- In transactions of all kinds, and as an operator
--
RESET ROLE;
CREATE ROLE regress_dgen_migrate_operator;
SET ROLE regress_dgen_migrate;
CREATE OR REPLACE FUNCTION migrate.code_change(old_vsn text, state jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
  IF state = '13' THEN
    RAISE EXCEPTION 'no %', state;
  END IF;
  INSERT INTO migrate.changed VALUES (current_user);
  RETURN jsonb_build_object('n', state);
END $$;
TRUNCATE migrate.changed;
SELECT dgen.alter_module('migrate', operators => 'regress_dgen_migrate_operator') ->> 'module';
SELECT migrate.set_vsn('20', 1, 2, 13);
SET ROLE regress_dgen_migrate_operator;
-- what it has no rights on, its owner's code may; an error leaves what was before it
BEGIN ISOLATION LEVEL SERIALIZABLE;
SELECT server, version FROM dgen.migrate('migrate', max_servers => 1);
SAVEPOINT s;
SELECT pg_temp.error($$SELECT count(*) FROM dgen.migrate('migrate')$$);
ROLLBACK TO s;
SELECT count(*) FROM dgen.progress_migrate;
COMMIT;
SELECT server, old_vsn, error ->> 'message' FROM dgen.migrate('migrate', dry_run => true);
SET ROLE regress_dgen_migrate;
SELECT server, vsn, dgen.state(server) FROM dgen.servers WHERE module = 'migrate' ORDER BY server;
SELECT * FROM migrate.changed;
-- prepared: the leases stay with it
BEGIN;
SELECT server, version FROM dgen.migrate('migrate', max_servers => 1);
PREPARE TRANSACTION 'regress_dgen_migrate';
SET lock_timeout = '100 ms';
SELECT pg_temp.error($$SELECT dgen.invoke('migrate/s2', '1')$$);
SELECT pg_temp.error($$SELECT count(*) FROM dgen.migrate('migrate')$$);
RESET lock_timeout;
COMMIT PREPARED 'regress_dgen_migrate';
SELECT server, vsn, dgen.state(server) FROM dgen.servers WHERE module = 'migrate' ORDER BY server;
CREATE OR REPLACE FUNCTION migrate.code_change(old_vsn text, state jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT state $$;

--
-- A server that is migrated while its work is done outside: the result of the
-- old code does not fit, and the new code does it again
--
RESET ROLE;
CREATE SCHEMA away AUTHORIZATION regress_dgen_migrate;
SET ROLE regress_dgen_migrate;
CREATE FUNCTION away.init(args jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT '1'::jsonb $$;
CREATE FUNCTION away.handle_cast(message jsonb, INOUT state jsonb, OUT "lock" boolean) LANGUAGE sql AS $$
  SELECT state, true $$;
CREATE PROCEDURE away.handle_locked(kind text, message jsonb, INOUT state jsonb, INOUT reply jsonb) LANGUAGE plpgsql AS $$
BEGIN
  PERFORM pg_advisory_xact_lock_shared(4712);
  state := to_jsonb(state::int + 1);
END $$;
SELECT dgen.create_module('away', vsn => '1', backoff_initial => '10 ms') -> 'created';
SELECT pg_advisory_lock(4712);
SELECT dgen.cast('away/a', '1') > 0;
SELECT pg_temp.until($$EXISTS (SELECT FROM pg_locks WHERE NOT granted AND locktype = 'advisory' AND objid = 4712)$$);
BEGIN;
CREATE FUNCTION away.code_change(old_vsn text, state jsonb) RETURNS jsonb LANGUAGE sql AS $$
  SELECT jsonb_build_object('n', state) $$;
CREATE OR REPLACE PROCEDURE away.handle_locked(kind text, message jsonb, INOUT state jsonb, INOUT reply jsonb) LANGUAGE plpgsql AS $$
BEGIN
  state := jsonb_set(state, '{n}', to_jsonb((state ->> 'n')::int + 10));
END $$;
SELECT dgen.alter_module('away', vsn => '2') ->> 'module';
SELECT server, old_vsn, error FROM dgen.migrate('away');
COMMIT;
SELECT pg_advisory_unlock(4712);
SELECT dgen.wait_idle('away/a', timeout => '20 s');
SELECT vsn, version, dgen.state(server) FROM dgen.servers WHERE server = 'away/a';

--
-- Many: in one transaction only while the module stands still
--
SELECT dgen.alter_module('migrate', vsn => '0', breaker => 0) ->> 'module';
DO $$ BEGIN FOR i IN 1 .. 1200 LOOP PERFORM dgen.start('migrate/many' || i); END LOOP; END $$;
SELECT dgen.alter_module('migrate', vsn => '9') ->> 'module';
SELECT pg_temp.try($$SELECT count(*) FROM dgen.migrate('migrate')$$);
SELECT count(*) FROM dgen.migrate('migrate', max_servers => 1000);
SELECT dgen.alter_module('migrate', vsn => '10') ->> 'module';
SELECT count(*), count(error) FROM dgen.migrate('migrate', dry_run => true);
BEGIN;
SELECT dgen.suspend(module => 'migrate');
SELECT pg_temp.error($$SELECT count(*) FROM dgen.migrate('migrate')$$);
ROLLBACK;
SELECT dgen.suspend(module => 'migrate');
BEGIN;
SELECT dgen.alter_module('migrate', vsn => '11') ->> 'module';
SELECT count(*) FROM dgen.migrate('migrate');
SELECT dgen.resume(module => 'migrate');
COMMIT;
SELECT vsn, count(*) FROM dgen.servers WHERE module = 'migrate' GROUP BY vsn;
SELECT dgen.alter_module('migrate', vsn => '12') ->> 'module';
CALL dgen.migrate_all('migrate', batch => 100);
SELECT vsn, count(*) FROM dgen.servers WHERE module = 'migrate' GROUP BY vsn;
RESET ROLE;
SELECT pg_temp.until($$NOT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 214)$$);

SET client_min_messages = warning;
SELECT dgen.suspend(module => 'migrate');
SELECT dgen.drop_module('migrate', cascade => true);
SELECT dgen.drop_module('away', cascade => true);
DROP SCHEMA migrate, away CASCADE;
DROP ROLE regress_dgen_migrate_operator, regress_dgen_migrate, regress_dgen_migrate_reader, regress_dgen_migrate_stranger;
