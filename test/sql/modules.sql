--
-- create_module, alter_module, drop_module: options, callbacks, what is wrong
-- with them; view dgen.modules.
--
\getenv dir PG_ABS_SRCDIR
\i :dir/sql/helpers.psql
CREATE ROLE regress_dgen_modules LOGIN;
CREATE SCHEMA modules AUTHORIZATION regress_dgen_modules;

-- create_module of a schema that has one function, of this definition
CREATE FUNCTION pg_temp.make_with(definition text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE result text;
BEGIN
  EXECUTE 'CREATE ' || definition;
  result := pg_temp.try($q$SELECT dgen.create_module('modules') -> 'callbacks'$q$);
  EXECUTE 'DROP ROUTINE ' || (SELECT string_agg(oid::regprocedure::text, ', ')
    FROM pg_proc WHERE pronamespace = 'modules'::regnamespace);
  PERFORM dgen.drop_module(module) FROM dgen.modules WHERE module = 'modules';
  RETURN result;
END $$;

SET ROLE regress_dgen_modules;

--
-- The smallest module, its defaults, and what create_module returns
--
SELECT pg_temp.try($$SELECT dgen.create_module('modules')$$);
CREATE FUNCTION modules.handle_call(request jsonb, INOUT state jsonb, OUT reply jsonb)
  LANGUAGE sql AS $$ SELECT state, request $$;
SELECT dgen.create_module('modules');
SELECT o.* FROM dgen.modules m, jsonb_each_text(to_jsonb(m) - 'created_at') o WHERE module = 'modules';
SELECT dgen.call('modules/1', '"echo"');
-- again
SELECT pg_temp.try($$SELECT dgen.create_module('modules')$$);
SELECT pg_temp.try($$SELECT dgen.create_module('modules', if_exists => 'error')$$);
SELECT dgen.create_module('modules', if_exists => 'skip', breaker => 3);
SELECT breaker FROM dgen.modules WHERE module = 'modules';
SELECT dgen.create_module('modules', if_exists => 'alter', breaker => 3);
SELECT breaker FROM dgen.modules WHERE module = 'modules';
SELECT pg_temp.try($$SELECT dgen.create_module('modules', if_exists => 'perhaps')$$);

--
-- Options: all that there are, and each wrong value
--
SELECT dgen.alter_module('modules', ephemeral => true, auto_start => false,
  on_stop => 'delete', isolation => 'read committed', invoke_isolation => 'any',
  late_calls => 'finish', retry => 'skip', on_dead_letter => 'suspend', breaker => 0,
  handler_timeout => '1 s', max_attempts => 2, backoff_initial => '2 ms',
  backoff_factor => 1.5, backoff_max => '3 ms', hold_max => '4 s', batch_size => 1,
  max_mailbox => 10, max_message_size => 1000, max_state_size => 2000,
  reply_ttl => '1 min', dedup_ttl => '2 min', dead_letter_ttl => '3 days',
  search_path => 'pg_catalog', timezone => 'Europe/Paris',
  operators => 'regress_dgen_modules', clients => 'regress_dgen_modules',
  readers => 'regress_dgen_modules', workers => 'regress_dgen_modules', vsn => '2');
SELECT o.* FROM dgen.modules m, jsonb_each_text(to_jsonb(m) - 'created_at') o WHERE module = 'modules';
-- empty texts reset; null arguments leave as it is
SELECT dgen.alter_module('modules', operators => '', clients => '', readers => '',
  workers => '', timezone => '', vsn => '', batch_size => NULL);
SELECT operators, clients, readers, workers, timezone, vsn, batch_size
  FROM dgen.modules WHERE module = 'modules';
SELECT option, pg_temp.try(format('SELECT dgen.alter_module(%L, %I => %s)', 'modules', option, value))
FROM (VALUES
  ('on_stop', '''drop'''),
  ('isolation', '''read uncommitted'''),
  ('isolation', '''SERIALIZABLE'''),
  ('invoke_isolation', ''''''),
  ('late_calls', '''kill'''),
  ('retry', '''never'''),
  ('on_dead_letter', '''stop'''),
  ('breaker', '-1'),
  ('handler_timeout', '''0 s'''),
  ('handler_timeout', '''-1 s'''),
  ('handler_timeout', '''100 years'''),
  ('max_attempts', '0'),
  ('max_attempts', '100000'),
  ('backoff_initial', '''0 s'''),
  ('backoff_initial', '''1 h'''),
  ('backoff_factor', '0.5'),
  ('backoff_factor', '''NaN'''),
  ('backoff_max', '''1 ms'''),
  ('hold_max', '''0 s'''),
  ('batch_size', '0'),
  ('batch_size', '257'),
  ('max_mailbox', '0'),
  ('max_message_size', '0'),
  ('max_message_size', '1000000000000'),
  ('max_state_size', '-1'),
  ('reply_ttl', '''0 s'''),
  ('dedup_ttl', '''-1 s'''),
  ('dead_letter_ttl', '''100000 years'''),
  ('history', '''0'''),
  ('history', '''-1'''),
  ('history', '''1.5'''),
  ('history', '''1e3'''),
  ('history', '''10000000000'''),
  ('history', '''99999999999999999999'''),
  ('history', '''0 s'''),
  ('history', '''-1 day'''),
  ('history', '''infinity'''),
  ('history', '''200 years'''),
  ('history', '''on'''),
  ('history', '''all'''),
  ('history', '''100 versions'''),
  ('history', '''10'''),	-- it is ephemeral
  ('notify', '''modules'''),
  ('search_path', ''''''),
  ('search_path', '''a,,b'''),
  ('timezone', '''Nowhere/Land'''),
  ('operators', '''regress_dgen_nobody'''),
  ('clients', '''regress_dgen_nobody'''),
  ('readers', '''regress_dgen_nobody'''),
  ('workers', '''regress_dgen_nobody'''),
  ('schema_name', '''regress_dgen_nowhere'''),
  ('schema_name', '''pg_temp'''),
  ('callbacks', '''[]'''),
  ('callbacks', '''"modules.handle_call"'''),
  ('callbacks', '''{"handle_coll": "modules.handle_call"}'''),
  ('callbacks', '''{"handle_call": 1}'''),
  ('callbacks', '''{"handle_call": {"a": "b"}}'''),
  ('callbacks', '''{"handle_call": "a.b.c"}'''),
  ('callbacks', '''{"handle_call": "modules.missing"}'''),
  ('callbacks', '''{"handle_call": "regress_dgen_nowhere.missing"}''')) v(option, value);
-- none of which changed anything
SELECT on_stop, isolation, handler_timeout, schema_name, search_path
  FROM dgen.modules WHERE module = 'modules';

-- a channel
SELECT dgen.alter_module('modules', ephemeral => false, notify => 'Changed "modules"') -> 'module';
SELECT notify FROM dgen.modules WHERE module = 'modules';
SELECT pg_temp.try(format('SELECT dgen.alter_module(%L, notify => %L)', 'modules', repeat('n', 64)));
SELECT pg_temp.try($$SELECT dgen.alter_module('modules', ephemeral => true)$$);
SELECT dgen.alter_module('modules', ephemeral => true, notify => '') -> 'module';
SELECT notify FROM dgen.modules WHERE module = 'modules';

--
-- Names
--
SELECT pg_temp.try(format('SELECT dgen.create_module(%L)', name))
FROM (VALUES (NULL), (''), ('a/b'), (repeat('m', 64)), ('regress_dgen_nowhere')) v(name);
SELECT pg_temp.try($$SELECT dgen.alter_module(NULL)$$);
SELECT pg_temp.try($$SELECT dgen.alter_module('regress_dgen_nowhere')$$);
SELECT pg_temp.try($$SELECT dgen.drop_module(NULL)$$);
SELECT pg_temp.try($$SELECT dgen.drop_module('regress_dgen_nowhere')$$);

--
-- drop_module, with and without servers, messages, dead letters
--
SELECT dgen.alter_module('modules', ephemeral => false, auto_start => true, isolation => 'serializable');
SELECT dgen.call('modules/1', '1');
SELECT pg_temp.try($$SELECT dgen.drop_module('modules')$$);
SELECT dgen.suspend(module => 'modules');
SELECT count(*) FROM generate_series(1, 3) i, dgen.send('modules/2', to_jsonb(i));
SELECT count(*) FROM dgen.send('modules/2', '4', delay => '1 h');
SELECT pg_temp.try($$SELECT dgen.drop_module('modules')$$);
SELECT dgen.drop_module('modules', "cascade" => true);
SELECT count(*) FROM dgen.modules WHERE module = 'modules';
SELECT pg_temp.try($$SELECT dgen.call('modules/1', '1')$$);
-- a new one of the name finds nothing of the old
SELECT dgen.create_module('modules');
SELECT count(*) FROM dgen.servers WHERE module = 'modules';
SELECT count(*) FROM dgen.messages WHERE server LIKE 'modules/%';
SELECT dgen.call('modules/1', '2');
-- all of this is transactional
BEGIN;
SELECT dgen.drop_module('modules', true);
ROLLBACK;
SELECT dgen.call('modules/1', '3'), dgen.state('modules/1');
BEGIN;
SELECT dgen.alter_module('modules', breaker => 77);
ROLLBACK;
SELECT breaker FROM dgen.modules WHERE module = 'modules';
SELECT dgen.drop_module('modules', true);
DROP FUNCTION modules.handle_call;
-- a module of this transaction is not there for workers yet
BEGIN;
CREATE FUNCTION modules.handle_call(request jsonb, INOUT state jsonb, OUT reply jsonb)
  LANGUAGE sql AS $$ SELECT state, request $$;
SELECT dgen.create_module('modules');
SELECT pg_temp.try($$SELECT dgen.call('modules/1', '"echo"')$$);
ROLLBACK;
SELECT count(*) FROM dgen.modules WHERE module = 'modules';

--
-- Signatures.  The right ones, in all their forms:
--
SELECT pg_temp.make_with($$FUNCTION modules.init(a jsonb) RETURNS jsonb LANGUAGE sql AS 'SELECT a'$$);
SELECT pg_temp.make_with($$FUNCTION modules.init(a jsonb, OUT state jsonb) LANGUAGE sql AS 'SELECT a'$$);
SELECT pg_temp.make_with($$FUNCTION modules.handle_call(jsonb, jsonb, OUT new_state jsonb, OUT reply jsonb) LANGUAGE sql AS 'SELECT $2, $1'$$);
SELECT pg_temp.make_with($$FUNCTION modules.handle_call(jsonb, jsonb, OUT reply jsonb) LANGUAGE sql AS 'SELECT $1'$$);
SELECT pg_temp.make_with($$FUNCTION modules.handle_call(jsonb, INOUT state jsonb, OUT reply jsonb, OUT noreply boolean, OUT exit text, OUT reject text, OUT retry_after interval) LANGUAGE sql AS 'SELECT $2, $1, NULL::boolean, NULL::text, NULL::text, NULL::interval'$$);
SELECT pg_temp.make_with($$FUNCTION modules.handle_cast(jsonb, INOUT state jsonb) LANGUAGE sql AS 'SELECT $2'$$);
SELECT pg_temp.make_with($$FUNCTION modules.handle_cast(jsonb, jsonb) RETURNS jsonb LANGUAGE sql AS 'SELECT $2'$$);
SELECT pg_temp.make_with($$FUNCTION modules.handle_info(jsonb, INOUT new_state jsonb, OUT exit text) LANGUAGE sql AS 'SELECT $2, NULL::text'$$);
SELECT pg_temp.make_with($$FUNCTION modules.handle_continue(jsonb, INOUT state jsonb) LANGUAGE sql AS 'SELECT $2'$$);
SELECT pg_temp.make_with($$FUNCTION modules.handle_query(jsonb, jsonb) RETURNS jsonb LANGUAGE sql AS 'SELECT $2'$$);
SELECT pg_temp.make_with($$PROCEDURE modules.handle_locked(text, jsonb, INOUT state jsonb, INOUT reply jsonb) LANGUAGE plpgsql AS 'BEGIN END'$$);
SELECT pg_temp.make_with($$FUNCTION modules.handle_dead_letter(jsonb, integer, jsonb) RETURNS void LANGUAGE sql AS ''$$);
SELECT pg_temp.make_with($$FUNCTION modules.terminate(text, jsonb) RETURNS void LANGUAGE sql AS ''$$);
SELECT pg_temp.make_with($$FUNCTION modules.code_change(text, jsonb) RETURNS jsonb LANGUAGE sql AS 'SELECT $2'$$);
SELECT pg_temp.make_with($$FUNCTION modules.validate(jsonb) RETURNS boolean LANGUAGE sql AS 'SELECT true'$$);
SELECT pg_temp.make_with($$FUNCTION modules.accept(text, jsonb) RETURNS boolean LANGUAGE sql AS 'SELECT true'$$);
SELECT pg_temp.make_with($$FUNCTION modules.attributes(jsonb) RETURNS jsonb LANGUAGE sql AS 'SELECT $1'$$);
SELECT pg_temp.make_with($$FUNCTION modules.format_status(jsonb) RETURNS jsonb LANGUAGE sql AS 'SELECT $1'$$);
SELECT pg_temp.make_with($$FUNCTION modules.format_message(jsonb) RETURNS jsonb LANGUAGE sql AS 'SELECT $1'$$);
-- and wrong ones: first those that are easily written
SELECT pg_temp.make_with($$FUNCTION modules.handle_call(jsonb, jsonb) RETURNS jsonb LANGUAGE sql AS 'SELECT $2'$$);
SELECT pg_temp.make_with($$FUNCTION modules.handle_call(jsonb, INOUT state jsonb) LANGUAGE sql AS 'SELECT $2'$$);
SELECT pg_temp.make_with($$FUNCTION modules.handle_call(jsonb, INOUT state jsonb, OUT answer jsonb) LANGUAGE sql AS 'SELECT $2, $1'$$);
SELECT pg_temp.make_with($$FUNCTION modules.handle_call(jsonb, INOUT state jsonb, OUT reply text) LANGUAGE sql AS 'SELECT $2, $1::text'$$);
SELECT pg_temp.make_with($$FUNCTION modules.handle_call(jsonb, INOUT state jsonb, OUT new_state jsonb, OUT reply jsonb) LANGUAGE sql AS 'SELECT $2, $2, $1'$$);
SELECT pg_temp.make_with($$FUNCTION modules.handle_call(request text, INOUT state jsonb, OUT reply jsonb) LANGUAGE sql AS 'SELECT $2, $2'$$);
SELECT pg_temp.make_with($$FUNCTION modules.handle_call(INOUT state jsonb, OUT reply jsonb) LANGUAGE sql AS 'SELECT $1, $1'$$);
SELECT pg_temp.make_with($$FUNCTION modules.handle_call(jsonb, jsonb) RETURNS TABLE(state jsonb, reply jsonb) LANGUAGE sql AS 'SELECT $2, $1'$$);
SELECT pg_temp.make_with($$FUNCTION modules.handle_call(jsonb, jsonb) RETURNS record LANGUAGE sql AS 'SELECT $2, $1'$$);
SELECT pg_temp.make_with($$FUNCTION modules.handle_call(jsonb, VARIADIC jsonb[]) RETURNS record LANGUAGE sql AS 'SELECT $1, $1'$$);
SELECT pg_temp.make_with($$PROCEDURE modules.handle_call(jsonb, INOUT state jsonb) LANGUAGE sql AS 'SELECT $2'$$);
SELECT pg_temp.make_with($$FUNCTION modules.handle_cast(jsonb, INOUT state jsonb, OUT noreply boolean) LANGUAGE sql AS 'SELECT $2, true'$$);
SELECT pg_temp.make_with($$FUNCTION modules.handle_cast(jsonb, jsonb) RETURNS void LANGUAGE sql AS ''$$);
-- then each callback with no arguments
SELECT pg_temp.make_with(format($$FUNCTION modules.%I() RETURNS integer LANGUAGE sql AS 'SELECT 1'$$, callback))
FROM (VALUES ('init'), ('handle_call'), ('handle_cast'), ('handle_info'), ('handle_continue'),
  ('handle_query'), ('handle_locked'), ('handle_dead_letter'), ('terminate'), ('code_change'),
  ('validate'), ('accept'), ('attributes'), ('format_status'), ('format_message')) v(callback);
-- and with the right ones but a wrong result
SELECT pg_temp.make_with(format($$FUNCTION modules.%s RETURNS integer LANGUAGE sql AS 'SELECT 1'$$, signature))
FROM (VALUES ('init(jsonb)'), ('handle_call(jsonb, jsonb)'), ('handle_cast(jsonb, jsonb)'),
  ('handle_info(jsonb, jsonb)'), ('handle_continue(jsonb, jsonb)'), ('handle_query(jsonb, jsonb)'),
  ('handle_locked(text, jsonb, jsonb, jsonb)'), ('handle_dead_letter(jsonb, integer, jsonb)'),
  ('terminate(text, jsonb)'), ('code_change(text, jsonb)'), ('validate(jsonb)'),
  ('accept(text, jsonb)'), ('attributes(jsonb)'), ('format_status(jsonb)'),
  ('format_message(jsonb)')) v(signature);

--
-- A composite type as result; a change of it is noticed
--
CREATE TYPE modules.answer AS (reply jsonb, state jsonb);
CREATE FUNCTION modules.handle_call(jsonb, jsonb) RETURNS modules.answer
  LANGUAGE plpgsql AS $$ BEGIN RETURN ROW($1, $1)::modules.answer; END $$;
SELECT dgen.create_module('modules') -> 'callbacks';
SELECT dgen.call('modules/type', '1');
ALTER TYPE modules.answer ADD ATTRIBUTE extra integer;
SELECT pg_temp.try($$SELECT dgen.call('modules/type', '1')$$);
SELECT fault FROM dgen.modules WHERE module = 'modules';
SELECT dgen.drop_module('modules', true);
DROP FUNCTION modules.handle_call;
DROP TYPE modules.answer;

--
-- Overloads are overlooked where one fits
--
CREATE FUNCTION modules.handle_call(integer) RETURNS integer LANGUAGE sql AS 'SELECT 1';
CREATE FUNCTION modules.handle_call(request jsonb, INOUT state jsonb, OUT reply jsonb)
  LANGUAGE sql AS $$ SELECT state, '"first"'::jsonb $$;
SELECT dgen.create_module('modules') -> 'callbacks';
SELECT dgen.call('modules/1', '1');

--
-- Functions come and go
--
CREATE OR REPLACE FUNCTION modules.handle_call(request jsonb, INOUT state jsonb, OUT reply jsonb)
  LANGUAGE sql AS $$ SELECT state, '"second"'::jsonb $$;
SELECT dgen.call('modules/1', '1');
DROP FUNCTION modules.handle_call(jsonb, jsonb);
SELECT pg_temp.try($$SELECT dgen.call('modules/1', '1')$$);
SELECT callbacks, fault FROM dgen.modules WHERE module = 'modules';
DROP FUNCTION modules.handle_call(integer);
SELECT pg_temp.try($$SELECT dgen.call('modules/1', '1')$$);
SELECT callbacks, fault FROM dgen.modules WHERE module = 'modules';
CREATE FUNCTION modules.handle_call(request jsonb, INOUT state jsonb, OUT reply jsonb)
  LANGUAGE sql AS $$ SELECT state, '"third"'::jsonb $$;
SELECT dgen.call('modules/1', '1');
ALTER FUNCTION modules.handle_call RENAME TO something;
SELECT pg_temp.try($$SELECT dgen.call('modules/1', '1')$$);

--
-- Callbacks of other names and schemas, and functions that are none
--
SELECT dgen.alter_module('modules', callbacks => '{"handle_call": "something"}') -> 'callbacks';
SELECT dgen.call('modules/1', '1');
RESET ROLE;
CREATE SCHEMA "Modules 2" AUTHORIZATION regress_dgen_modules;
SET ROLE regress_dgen_modules;
CREATE FUNCTION "Modules 2"."A cast"(message jsonb, INOUT state jsonb) LANGUAGE sql AS $$ SELECT message $$;
CREATE FUNCTION modules.validate(jsonb) RETURNS boolean LANGUAGE sql AS 'SELECT false';
SELECT dgen.alter_module('modules', callbacks =>
  '{"handle_call": "modules.something", "handle_cast": "\"Modules 2\".\"A cast\"", "validate": null}') -> 'callbacks';
SELECT dgen.cast('modules/1', '"by another"') > 0;
SELECT dgen.call('modules/1', '1');
SELECT dgen.state('modules/1');
-- {}: all by name again
DROP FUNCTION modules.validate;
ALTER FUNCTION modules.something RENAME TO handle_call;
SELECT dgen.alter_module('modules', callbacks => '{}') -> 'callbacks';
-- another schema; the default search_path goes with it
SELECT pg_temp.try($$SELECT dgen.alter_module('modules', schema_name => 'Modules 2')$$);
ALTER FUNCTION "Modules 2"."A cast" RENAME TO handle_cast;
SELECT dgen.alter_module('modules', schema_name => 'Modules 2');
SELECT schema_name, search_path FROM dgen.modules WHERE module = 'modules';
SELECT dgen.alter_module('modules', search_path => 'Pg_Catalog, "Modules 2"');
SELECT search_path FROM dgen.modules WHERE module = 'modules';
SELECT dgen.alter_module('modules', schema_name => 'modules') -> 'schema';
SELECT search_path FROM dgen.modules WHERE module = 'modules';
SELECT dgen.drop_module('modules', true);

--
-- One that is not a schema's, and what is not there yet
--
SELECT dgen.create_module('regress.dgen "odd" name', schema_name => 'modules');
SELECT dgen.call('regress.dgen "odd" name/1', '1');
SELECT dgen.drop_module('regress.dgen "odd" name', true);
SELECT pg_temp.try($$SELECT dgen.create_module('modules', "external" => true)$$);
SELECT dgen.create_module('modules', "external" => false) -> 'created';
SELECT pg_temp.error($$SELECT dgen.alter_module('modules', "external" => true)$$);
SELECT "external" FROM dgen.modules WHERE module = 'modules';
SELECT dgen.drop_module('modules', true);

RESET ROLE;
SET client_min_messages = warning;
DROP SCHEMA modules, "Modules 2" CASCADE;
DROP ROLE regress_dgen_modules;
