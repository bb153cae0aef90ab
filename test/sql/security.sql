--
-- Attacks by single statements: on who calls a hostile module, on a module by
-- who calls it, and on dgen's tables.  See also rights.sql.
--
\getenv dir PG_ABS_SRCDIR
\i :dir/sql/helpers.psql
CREATE ROLE regress_dgen_evil LOGIN;
CREATE ROLE regress_dgen_good LOGIN;
CREATE ROLE regress_dgen_user LOGIN;
CREATE SCHEMA evil AUTHORIZATION regress_dgen_evil;
CREATE SCHEMA good AUTHORIZATION regress_dgen_good;
-- runs what it is told; the default of an argument is never looked at
SET ROLE regress_dgen_evil;
CREATE FUNCTION evil.trap() RETURNS jsonb LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'trapped %', current_user; END $$;
CREATE FUNCTION evil.handle_call(request jsonb DEFAULT evil.trap(), INOUT state jsonb DEFAULT evil.trap(), OUT reply jsonb) LANGUAGE plpgsql AS $$
BEGIN
  IF request ->> 0 IS NOT NULL THEN
    EXECUTE request ->> 0;
  END IF;
  reply := to_jsonb(current_user::text);
END $$;
CREATE FUNCTION evil.handle_query(query jsonb, state jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
  EXECUTE query ->> 0;
  RETURN to_jsonb(current_user::text);
END $$;
SELECT dgen.create_module('evil', invoke_isolation => 'any') -> 'owner';
RESET ROLE;

--
-- What a hostile handler leaves for a superuser who invokes it
--
SELECT dgen.invoke('evil/a', NULL);
-- in his temporary schema by its other name, where a type comes before pg_catalog's
CREATE TEMP TABLE mine (i integer);
SELECT pg_my_temp_schema()::regnamespace AS mine \gset
SELECT what, split_part(pg_temp.error(format('SELECT dgen.invoke(%L, %L)', 'evil/a', jsonb_build_array(format(s, :'mine')))), ' ', 1)
FROM (VALUES
  ('domain', 'CREATE DOMAIN %I.date AS pg_catalog.date CHECK (evil.trap() IS NULL)'),
  ('enum', 'CREATE TYPE %I.date AS ENUM ()'),
  ('range', 'CREATE TYPE %I.date AS RANGE (subtype = pg_catalog.int4)'),
  ('composite', 'CREATE TYPE %I.date AS (i int)'),
  ('function', 'CREATE FUNCTION %I.error(statement varchar) RETURNS text LANGUAGE sql AS ''SELECT current_user::text'''),
  ('operator', 'CREATE OPERATOR %I.+ (FUNCTION = pg_catalog.int4pl, LEFTARG = int4, RIGHTARG = int4)'),
  ('collation', 'CREATE COLLATION %I.mine FROM "C"'),
  ('table', 'CREATE TABLE %I.mine2 (i integer)'),
  ('view', 'CREATE VIEW %I.mine3 AS SELECT 1'),
  ('sequence', 'CREATE SEQUENCE %I.mine4'),
  ('caught', 'DO $do$ BEGIN CREATE DOMAIN %I.date AS pg_catalog.date; EXCEPTION WHEN OTHERS THEN END $do$')) v(what, s);
SELECT count(*) FROM pg_depend WHERE refclassid = 'pg_namespace'::regclass AND refobjid = pg_my_temp_schema() AND classid <> 'pg_class'::regclass
  AND objid NOT IN (SELECT oid FROM pg_proc WHERE proowner = current_user::regrole);
SELECT '2026-01-01'::date;
-- a superuser who has become the owner does not become himself again by that
SET ROLE regress_dgen_evil;
SELECT what, pg_temp.error(format('SELECT dgen.invoke(%L, %L)', 'evil/a', jsonb_build_array(what)))
FROM unnest(ARRAY['RESET ROLE', 'SET ROLE NONE', 'SET LOCAL ROLE postgres', 'RESET SESSION AUTHORIZATION', 'SET SESSION AUTHORIZATION DEFAULT',
  'SET SESSION AUTHORIZATION postgres', 'RESET ALL', 'DISCARD ALL', 'SELECT set_config(''role'', ''none'', false)',
  'SELECT set_config(''session_authorization'', ''postgres'', true)']) what;
CREATE TABLE evil.late (i integer);
CREATE FUNCTION evil.fire() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  RESET ROLE;
  RAISE NOTICE 'a trigger that has become %', current_user;
  RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER fire AFTER INSERT ON evil.late DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION evil.fire();
SELECT pg_temp.error(format('SELECT dgen.invoke(%L, %L)', 'evil/a', '["INSERT INTO evil.late VALUES (1)"]'));
RESET ROLE;
SET SESSION AUTHORIZATION regress_dgen_evil;
SELECT pg_temp.error(format('SELECT dgen.invoke(%L, %L)', 'evil/a', '["INSERT INTO evil.late VALUES (1)"]'));
SELECT pg_temp.error(format('SELECT dgen.invoke(%L, %L)', 'evil/a', '["RESET SESSION AUTHORIZATION"]'));
RESET SESSION AUTHORIZATION;
SELECT pg_temp.error(format('SELECT dgen.invoke(%L, %L)', 'evil/a', '["INSERT INTO evil.late VALUES (1)"]'));
-- nor does a worker become anybody
SELECT what, pg_temp.error(format('SELECT dgen.call(%L, %L)', 'evil/a', jsonb_build_array(what)))
FROM unnest(ARRAY['RESET ROLE', 'SET ROLE NONE', 'SET LOCAL ROLE postgres', 'RESET SESSION AUTHORIZATION',
  'SET SESSION AUTHORIZATION postgres', 'RESET ALL']) what;
SELECT dgen.call('evil/a', '["SELECT 1"]');
-- his transaction stays as it was: it may still write
BEGIN;
SELECT dgen.query('evil/a', '["SET transaction_read_only = on"]');
SHOW transaction_read_only;
SELECT dgen.query('evil/a', '["SET LOCAL transaction_read_only = on"]');
INSERT INTO mine VALUES (1);
SAVEPOINT a;
SELECT pg_temp.error($$SELECT dgen.query('evil/a', '["SET transaction_read_only = off"]')$$);
SELECT pg_temp.error($$SELECT dgen.query('evil/a', '["INSERT INTO evil.late VALUES (1)"]')$$);
INSERT INTO mine VALUES (1);
ROLLBACK;
-- a function that is told to be another, or to run as another
SET ROLE regress_dgen_evil;
ALTER FUNCTION evil.handle_call SET role = postgres;
RESET ROLE;
SELECT pg_temp.error($$SELECT dgen.invoke('evil/a', '["SELECT 1"]')$$);
SELECT pg_temp.error($$SELECT dgen.call('evil/a', '["SELECT 1"]')$$);
ALTER FUNCTION evil.handle_call SET role = none;
SELECT pg_temp.error($$SELECT dgen.invoke('evil/a', '["SELECT 1"]')$$);
SELECT pg_temp.error($$SELECT dgen.call('evil/a', '["SELECT 1"]')$$);
ALTER FUNCTION evil.handle_call RESET ALL;
-- of the schema only: its new owner has no module by that
GRANT USAGE ON SCHEMA good TO regress_dgen_user;
SET ROLE regress_dgen_good;
CREATE TABLE good.account (owner text, balance integer);
INSERT INTO good.account VALUES ('a', 100);
CREATE FUNCTION good.handle_call(request jsonb, INOUT state jsonb, OUT reply jsonb) LANGUAGE plpgsql AS $$
DECLARE
  today date := '2026-01-01';
BEGIN
  IF request = '"level"' THEN
    reply := to_jsonb(current_setting('transaction_isolation'));
  ELSE
    SELECT to_jsonb(sum(balance)) INTO reply FROM account;
    reply := jsonb_build_array(reply, dgen.sender_role(), (SELECT 1 + 1));
  END IF;
END $$;
CREATE FUNCTION good.handle_cast(message jsonb, INOUT state jsonb) LANGUAGE plpgsql AS $$
BEGIN
  state := to_jsonb(current_setting('transaction_isolation'));
END $$;
SELECT dgen.create_module('good') -> 'owner';
SELECT dgen.call('good/a', '1', request_key => 'order 1');
RESET ROLE;
BEGIN;
ALTER SCHEMA good OWNER TO regress_dgen_evil;
SET LOCAL ROLE regress_dgen_evil;
DROP FUNCTION good.handle_call, good.handle_cast;
CREATE FUNCTION good.handle_call(request jsonb, INOUT state jsonb, OUT reply jsonb) LANGUAGE sql AS $$ SELECT '1'::jsonb, to_jsonb(current_user::text) $$;
SELECT pg_temp.error($$SELECT dgen.invoke('good/a', NULL)$$);
SELECT pg_temp.error($$SELECT dgen.alter_module('good')$$);
SELECT pg_temp.error($$SELECT dgen.drop_module('good', true)$$);
SELECT pg_temp.error($$SELECT dgen.state('good/a')$$);
ROLLBACK;
-- and with a new name the owner is another, who has to be agreed to
BEGIN;
ALTER ROLE regress_dgen_good RENAME TO regress_dgen_good2;
SELECT pg_temp.error($$SELECT dgen.invoke('good/a', NULL)$$);
ALTER ROLE regress_dgen_evil RENAME TO regress_dgen_good;
SELECT pg_temp.error($$SELECT dgen.invoke('good/a', NULL)$$);
ROLLBACK;
BEGIN;
ALTER SCHEMA good RENAME TO better;
SELECT pg_temp.error($$SELECT dgen.invoke('good/a', NULL)$$);
ROLLBACK;

--
-- What a hostile caller prepares for a module's handlers
--
-- objects in his temporary schema, and a search_path of his own
SET SESSION AUTHORIZATION regress_dgen_user;
CREATE TEMP TABLE account (owner text, balance integer);
INSERT INTO account VALUES ('a', 1);
CREATE FUNCTION pg_temp.add(integer, integer) RETURNS integer LANGUAGE sql AS 'SELECT 0';
SELECT pg_my_temp_schema()::regnamespace AS own \gset
CREATE OPERATOR :own.+ (FUNCTION = pg_temp.add, LEFTARG = integer, RIGHTARG = integer);
CREATE DOMAIN pg_temp.date AS pg_catalog.date CHECK (VALUE > '2100-01-01');
SET search_path = pg_temp, pg_catalog;
BEGIN ISOLATION LEVEL SERIALIZABLE;
SELECT dgen.invoke('good/a', '1');
COMMIT;
RESET search_path;
-- a level of isolation that the handlers are not written for, by what is meant for tests
SELECT pg_temp.error($$SELECT dgen.invoke('good/a', '"level"')$$);
SET dgen.inline = on;
SELECT pg_temp.error($$SELECT dgen.call('good/a', '"level"')$$);
BEGIN ISOLATION LEVEL SERIALIZABLE;
SELECT dgen.call('good/a', '"level"');
COMMIT;
RESET dgen.inline;
BEGIN;
SELECT dgen.cast('good/drained', '1') > 0;
SELECT pg_temp.error('SELECT dgen.drain()');
ROLLBACK;
RESET SESSION AUTHORIZATION;
BEGIN;
SET LOCAL dgen.inline = on;
SELECT dgen.call('good/a', '"level"');
SELECT dgen.cast('good/drained', '1') > 0;
SELECT dgen.drain();
ROLLBACK;
-- a reply that was kept for another
SET SESSION AUTHORIZATION regress_dgen_user;
SELECT pg_temp.try($$SELECT dgen.call('good/a', '1', request_key => 'order 1')$$);
SELECT dgen.call('good/a', '1', request_key => 'order 2') -> 1;
SELECT dgen.call('good/a', '1', request_key => 'order 2') -> 1;
RESET SESSION AUTHORIZATION;
SELECT dgen.call('good/a', '1', request_key => 'order 2') -> 1;

--
-- Nobody writes the tables, whatever role he is a member of
--
GRANT pg_read_all_data, pg_write_all_data TO regress_dgen_evil;
SET SESSION AUTHORIZATION regress_dgen_evil;
UPDATE dgen.module SET operators = 'regress_dgen_evil';
INSERT INTO dgen.message SELECT * FROM dgen.message;
DELETE FROM dgen.names;
MERGE INTO dgen.letter l USING (SELECT 1) x ON false WHEN MATCHED THEN DELETE;
WITH gone AS (DELETE FROM dgen.server RETURNING *) SELECT count(*) FROM gone;
SELECT FROM dgen.server FOR UPDATE;
TRUNCATE dgen.message;
\copy dgen.message FROM '/dev/null'
-- each of them, views too
CREATE FUNCTION pg_temp.write(c oid) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
  s text;
BEGIN
  FOREACH s IN ARRAY ARRAY['INSERT INTO %s SELECT * FROM %1$s', 'DELETE FROM %s'] LOOP
    BEGIN
      EXECUTE format(s, c::regclass);
      RETURN 'written';
    EXCEPTION WHEN insufficient_privilege OR object_not_in_prerequisite_state OR wrong_object_type OR feature_not_supported THEN
    END;
  END LOOP;
  RETURN 'refused';
END $$;
SELECT c.oid::regclass FROM pg_class c WHERE c.relnamespace = 'dgen'::regnamespace AND c.relkind IN ('r', 'v')
  AND pg_temp.write(c.oid) <> 'refused' ORDER BY 1;
-- what they hold may be read by who may read all
SELECT count(*) > 0 FROM dgen.module;
RESET SESSION AUTHORIZATION;
REVOKE pg_read_all_data, pg_write_all_data FROM regress_dgen_evil;

--
-- The end of a failed transaction in which roles have changed
--
BEGIN;
ALTER ROLE regress_dgen_user CONNECTION LIMIT 10;
SET ROLE regress_dgen_user;
SELECT 1 / 0;
ROLLBACK;

--
-- Names and timers of others
--
SET ROLE regress_dgen_good;
SELECT dgen.register('good.name', 'good/a', '{"secret": 1}');
SELECT dgen.join_group('good.group', 'good/a');
SELECT dgen.send_every('good/a', '1', '1 hour', name => 'secret') AS timer \gset
REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA good FROM PUBLIC;
RESET ROLE;
SET ROLE regress_dgen_evil;
SELECT dgen.whereis('good.name'), ARRAY(SELECT dgen.members('good.group'));
SELECT dgen.start('evil/b');
SELECT pg_temp.try($$SELECT dgen.register('good.name', 'evil/b')$$);
SELECT pg_temp.error(format('SELECT dgen.cancel_timer(%s)', :timer)), pg_temp.error(format('SELECT dgen.read_timer(%s)', :timer)),
  left(pg_temp.error(format('SELECT dgen.cancel(%s)', :timer)), 42);
SELECT pg_temp.error($$SELECT dgen.cancel_timer(server => 'good/a', name => 'secret')$$),
  pg_temp.error($$SELECT dgen.cancel_timer(server => 'good/a', name => 'none')$$);
RESET ROLE;
-- readers are told more
SELECT dgen.alter_module('good', readers => 'regress_dgen_user') -> 'owner';
SET ROLE regress_dgen_user;
SELECT pg_temp.try(format('SELECT dgen.cancel_timer(%s)', :timer)) ~ '^42501 permission denied for timer', dgen.read_timer(:timer) > '0';
RESET ROLE;
SELECT dgen.alter_module('good', readers => '') -> 'owner';
-- who may send to it sees where it is
GRANT EXECUTE ON FUNCTION good.handle_call TO regress_dgen_user;
SET ROLE regress_dgen_user;
SELECT dgen.whereis('good.name'), ARRAY(SELECT dgen.members('good.group'));
RESET ROLE;

--
-- Who has prepared the schema of the extension does not get it
--
\c -
\i :dir/sql/helpers.psql
SET client_min_messages = warning;
CREATE DATABASE regress_dgen_security;
SELECT current_database() AS here \gset
\c regress_dgen_security
\set ECHO all
\set SHOW_CONTEXT never
CREATE SCHEMA dgen AUTHORIZATION regress_dgen_evil;
CREATE EXTENSION dgen;
ALTER SCHEMA dgen OWNER TO CURRENT_USER;
GRANT ALL ON SCHEMA dgen TO regress_dgen_evil;
CREATE EXTENSION dgen;
REVOKE ALL ON SCHEMA dgen FROM regress_dgen_evil;
CREATE FUNCTION dgen.call(server text, request text) RETURNS text LANGUAGE sql AS 'SELECT $1';
CREATE EXTENSION dgen;
DROP FUNCTION dgen.call;
CREATE EXTENSION dgen;
DROP EXTENSION dgen;
CREATE EXTENSION dgen;
\c :here
DROP DATABASE regress_dgen_security;

SELECT dgen.drop_module('evil', true), dgen.drop_module('good', true);
SET client_min_messages = warning;
DROP SCHEMA evil, good CASCADE;
DROP OWNED BY regress_dgen_evil, regress_dgen_user;
DROP ROLE regress_dgen_evil, regress_dgen_good, regress_dgen_user;
