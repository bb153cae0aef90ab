--
-- Attributes: the indexed part of the states, its table, view and indexes.
--
\getenv dir PG_ABS_SRCDIR
\i :dir/sql/helpers.psql
CREATE ROLE regress_dgen_attributes LOGIN;
CREATE ROLE regress_dgen_attributes_reader;
CREATE ROLE regress_dgen_attributes_operator;
CREATE SCHEMA attributes AUTHORIZATION regress_dgen_attributes;
GRANT USAGE ON SCHEMA attributes TO regress_dgen_attributes_reader;
SET ROLE regress_dgen_attributes;

-- a user: {"email": ..., "visits": n}; who has no email is not to be found
CREATE FUNCTION attributes.init(args jsonb) RETURNS jsonb LANGUAGE sql AS $$
  SELECT jsonb_build_object('visits', 0) || coalesce(nullif(args, 'null'), '{}') $$;
CREATE FUNCTION attributes.handle_call(request jsonb, INOUT state jsonb, OUT reply jsonb) LANGUAGE plpgsql AS $$
BEGIN
  IF request ? 'exit' THEN
    PERFORM dgen.exit(request ->> 'exit');
  ELSIF request ? 'invoke' THEN
    BEGIN
      reply := dgen.invoke(request ->> 'invoke', request - 'invoke');
    EXCEPTION WHEN unique_violation THEN
      reply := to_jsonb(SQLERRM);
    END;
  ELSE
    state := state || request;
  END IF;
  reply := coalesce(reply, state);
END $$;
CREATE FUNCTION attributes.handle_cast(message jsonb, INOUT state jsonb) LANGUAGE sql AS $$
  SELECT jsonb_set(state, '{visits}', to_jsonb((state ->> 'visits')::int + 1)) || message $$;
SELECT dgen.create_module('attributes', invoke_isolation => 'any', max_attempts => 1) -> 'created';
SELECT dgen.call('attributes/a', '{"email": "a@x.org"}'), dgen.call('attributes/deep/key', '{"email": "d@x.org"}'),
  dgen.call('attributes/none', '{}');

--
-- A callback that comes later: the table is filled from the states
--
SELECT to_regclass('attributes.servers');
SELECT pg_temp.try($$SELECT dgen.create_index('attributes', 'key')$$);
CREATE FUNCTION attributes.attributes(state jsonb) RETURNS jsonb LANGUAGE sql STABLE AS $$
  SELECT CASE WHEN state ->> 'email' = 'bad' THEN (state ->> 'email')::int::text::jsonb
    WHEN state ? 'email' THEN jsonb_build_object('email', state -> 'email', 'age', state -> 'age') END $$;
-- not before the module is altered
SELECT dgen.call('attributes/a', '{"age": 30}');
SELECT pg_temp.try($$SELECT dgen.create_index('attributes', 'key')$$);
SELECT dgen.alter_module('attributes') -> 'callbacks' ? 'attributes';
SELECT * FROM attributes.servers ORDER BY server;
-- what it is, and whose
RESET ROLE;
SELECT 'dgen.attributes_' || id AS "table", id AS module FROM dgen.module WHERE name = 'attributes' \gset
-- runs a query, and says "N" for a module's id
CREATE FUNCTION pg_temp.masked(query text) RETURNS SETOF text LANGUAGE plpgsql AS $$
DECLARE
  line text;
BEGIN
  FOR line IN EXECUTE query LOOP
    RETURN NEXT regexp_replace(line, 'attributes_\d+', 'attributes_N', 'g');
  END LOOP;
END $$;
-- the same of an error
CREATE FUNCTION pg_temp.violation(statement text) RETURNS text LANGUAGE sql AS $$
  SELECT regexp_replace(pg_temp.try(statement), 'attributes_\d+', 'attributes_N', 'g') $$;
SELECT nspname AS temp FROM pg_namespace WHERE oid = pg_my_temp_schema() \gset
GRANT USAGE ON SCHEMA :temp TO PUBLIC;
SELECT a.attname, format_type(a.atttypid, a.atttypmod), col_description(a.attrelid, a.attnum)
FROM pg_attribute a WHERE a.attrelid = 'attributes.servers'::regclass AND a.attnum > 0;
SELECT pg_get_userbyid(v.relowner) AS view, t.relowner = e.extowner AS "table", v.reloptions, obj_description(v.oid, 'pg_class')
FROM pg_class v, pg_class t, pg_extension e
WHERE v.oid = 'attributes.servers'::regclass AND t.oid = :'table'::regclass AND e.extname = 'dgen';
SELECT grantee::regrole, privilege_type, is_grantable FROM pg_class, aclexplode(relacl)
WHERE oid = :'table'::regclass AND grantee <> relowner;
-- no members of the extension, but gone with it
SELECT pg_temp.masked($$SELECT concat_ws(' ', d.objid::regclass, d.deptype) FROM pg_depend d
  WHERE d.refclassid = 'pg_extension'::regclass AND d.classid = 'pg_class'::regclass AND d.deptype <> 'e' ORDER BY 1$$);
SET ROLE regress_dgen_attributes;

--
-- Rows are written with the states, and only when they change
--
SELECT dgen.call('attributes/b', '{"email": "b@x.org"}');
SELECT dgen.call('attributes/none', '{"email": "n@x.org"}');
SELECT dgen.call('attributes/a', '{"age": 31}');
SELECT * FROM attributes.servers ORDER BY server;
RESET ROLE;
SELECT format('SELECT ctid AS ctid_a, xmin AS xmin_a FROM %s WHERE key = %L', :'table', 'a') AS place \gset
:place \gset before_
SELECT dgen.cast('attributes/a', '{"town": "Hilo"}') FROM generate_series(1, 3) \g /dev/null
SELECT dgen.wait_idle('attributes/a');
:place \gset after_
SET ROLE regress_dgen_attributes;
SELECT :'before_ctid_a' = :'after_ctid_a' AND :before_xmin_a = :after_xmin_a AS not_written, dgen.state('attributes/a');
-- null again: no row
SELECT dgen.replace_state('attributes/none', '{"visits": 1}');
SELECT dgen.start('attributes/started', '{"email": "s@x.org"}');
SELECT dgen.invoke('attributes/invoked', '{"email": "i@x.org"}');
SELECT server FROM attributes.servers ORDER BY server;
-- with its transaction, and with its savepoint
BEGIN;
SELECT dgen.replace_state('attributes/b', '{"email": "lost@x.org"}');
SAVEPOINT s;
SELECT dgen.delete('attributes/b');
SELECT server FROM attributes.servers WHERE key = 'b';
ROLLBACK TO s;
SELECT attributes FROM attributes.servers WHERE key = 'b';
ROLLBACK;
SELECT attributes FROM attributes.servers WHERE key = 'b';
-- an error of the callback is the activation's
SELECT pg_temp.error($$SELECT dgen.call('attributes/b', '{"email": "bad"}')$$);
SELECT pg_temp.error($$SELECT dgen.replace_state('attributes/b', '{"email": "bad"}')$$);
SELECT dgen.state('attributes/b');
-- a state that is kept keeps its attributes; one that is gone does not
SELECT dgen.stop('attributes/started');
SELECT dgen.call('attributes/invoked', '{"exit": "enough"}');
SELECT server FROM attributes.servers ORDER BY server;
SELECT dgen.call('attributes/invoked', '{"email": "again@x.org"}');
SELECT dgen.kill('attributes/invoked');
SELECT dgen.delete('attributes/started');
SELECT dgen.call('attributes/exits', '{"email": "e@x.org"}');
SELECT dgen.alter_module('attributes', on_stop => 'delete') -> 'created';
SELECT dgen.call('attributes/exits', '{"exit": "enough"}');
SELECT dgen.alter_module('attributes', on_stop => 'keep') -> 'created';
SELECT * FROM attributes.servers ORDER BY server;

--
-- Indexes
--
SELECT pg_temp.masked($$SELECT dgen.create_index('attributes', $_$attributes->>'email'$_$, "unique" => true)$$);
SELECT dgen.create_index('attributes', $$(attributes ->> 'age')::int$$, name => 'regress age');
SELECT pg_temp.masked($$SELECT dgen.create_index('attributes', 'key')$$);
SELECT dgen.create_index('attributes', $$lower(attributes['email'] #>> '{}') || key COLLATE "C"$$, name => 'regress_lower');
SELECT dgen.create_index('attributes',
  $$CASE WHEN attributes ? 'age' AND key IN ('a', 'b') THEN coalesce(attributes ->> 'age', 'x') END$$, name => 'regress_case');
SELECT pg_temp.masked(format($$SELECT pg_get_indexdef(indexrelid) FROM pg_index WHERE indrelid = %L::regclass ORDER BY 1$$, :'table'));
-- who may only read the view uses them
GRANT SELECT ON attributes.servers TO regress_dgen_attributes_reader;
SET ROLE regress_dgen_attributes_reader;
SET enable_seqscan = off;
SET enable_bitmapscan = off;
SELECT pg_temp.masked($$EXPLAIN (COSTS OFF) SELECT * FROM attributes.servers WHERE attributes ->> 'email' = 'a@x.org'$$);
SELECT pg_temp.masked($$EXPLAIN (COSTS OFF) SELECT key FROM attributes.servers WHERE (attributes ->> 'age')::int > 18$$);
SELECT pg_temp.masked($$EXPLAIN (COSTS OFF) SELECT * FROM attributes.servers WHERE server = 'attributes/a'$$);
RESET enable_seqscan;
RESET enable_bitmapscan;
SELECT key FROM attributes.servers WHERE (attributes ->> 'age')::int > 18;
SELECT pg_temp.error(format('SELECT * FROM dgen.attributes_%s', :module)) ~ '^42501' AS table_refused;
SELECT pg_temp.error('SELECT dgen.state(''attributes/a'')');
-- the owner may read the table, and nobody may write it
SET ROLE regress_dgen_attributes;
SELECT pg_temp.error(format('SELECT count(*) FROM dgen.attributes_%s', :module));
SELECT pg_temp.error(format('DELETE FROM dgen.attributes_%s', :module)) ~ '^42501' AS write_refused;

--
-- A value that is not unique is an error of the activation
--
SELECT pg_temp.violation($$SELECT dgen.call('attributes/b', '{"email": "a@x.org"}')$$);
SELECT pg_temp.violation($$SELECT dgen.invoke('attributes/b', '{"email": "a@x.org"}')$$);
SELECT pg_temp.violation($$SELECT dgen.replace_state('attributes/b', '{"email": "a@x.org"}')$$);
SELECT pg_temp.violation($$SELECT dgen.start('attributes/new', '{"email": "a@x.org"}')$$);
SELECT dgen.state('attributes/b'), attributes FROM attributes.servers WHERE key = 'b';
SELECT pg_temp.error($$SELECT dgen.state('attributes/new')$$);
-- of the message that violates it, and not of its company
SELECT dgen.suspend('attributes/b');
SELECT dgen.cast('attributes/b', m)
FROM (VALUES ('{"n": 1}'::jsonb), ('{"email": "a@x.org", "n": 2}'), ('{"n2": 3}')) v(m) \g /dev/null
SELECT dgen.resume('attributes/b');
SELECT dgen.wait_idle('attributes/b');
SELECT dgen.state('attributes/b');
SELECT message, sqlstate FROM dgen.dead_letters WHERE server = 'attributes/b';
SELECT dgen.purge('attributes');
-- a handler may catch it
SELECT pg_temp.violation($$SELECT dgen.call('attributes/caller', '{"invoke": "attributes/b", "email": "a@x.org"}')$$);
SELECT dgen.call('attributes/caller', '{"invoke": "attributes/b", "email": "b2@x.org"}') -> 'email';
-- what one gives up another may take, in one transaction too
SELECT dgen.call('attributes/a', '{"email": "a2@x.org"}') -> 'email';
SELECT dgen.call('attributes/b', '{"email": "a@x.org"}') -> 'email';
BEGIN;
SELECT dgen.replace_state('attributes/a', '{"email": null}') > 0, dgen.replace_state('attributes/b', '{"email": "a2@x.org"}') > 0;
SELECT dgen.replace_state('attributes/a', '{"email": "a@x.org"}') > 0;
COMMIT;
SELECT * FROM attributes.servers ORDER BY server;
-- an index that the rows violate already
SELECT pg_temp.violation($$SELECT dgen.create_index('attributes', '1', "unique" => true)$$);

--
-- Expressions: one, of what is built in and immutable
--
CREATE FUNCTION attributes.evil(jsonb) RETURNS text LANGUAGE sql IMMUTABLE AS $$ SELECT 'x' $$;
CREATE OPERATOR attributes.@#@ (FUNCTION = attributes.evil, RIGHTARG = jsonb);
CREATE DOMAIN attributes.d AS text CHECK (attributes.evil(to_jsonb(VALUE)) = 'x');
CREATE TYPE attributes.e AS ENUM ('a', 'b');
CREATE TYPE attributes.c AS (a text);
SELECT e, pg_temp.violation(format('SELECT dgen.create_index(%L, %L)', 'attributes', e)) FROM (VALUES
  ('attributes.evil(attributes)'),
  ('OPERATOR(attributes.@#@) attributes'),
  ('(attributes ->> ''x'')::attributes.d'),
  ('(attributes ->> ''x'')::attributes.e'),
  ('''a''::attributes.e'),
  ('ROW(key)::attributes.c'),
  ('ARRAY[key::attributes.e]'),
  ('evil(attributes)'),
  ('now()'),
  ('(attributes ->> ''at'')::timestamptz'),
  ('random() + 1'),
  ('current_user'),
  ('ROW(key, server)'),
  ('(SELECT key)'),
  ('servers'),
  ('count(key)'),
  ('row_number() OVER ()'),
  ('generate_series(1, 2)'),
  ('$1'),
  ('tableoid'),
  ('no_such_column'),
  ('attributes ->> '),
  (''),
  ('*'),
  ('key, server'),
  ('key AS k'),
  ('DISTINCT key'),
  ('key FROM dgen.server'),
  ('key WHERE true'),
  ('key; DROP TABLE dgen.module'),
  ('key)) ; DROP TABLE dgen.module --'),
  ('key) text_pattern_ops --'),
  ('key UNION SELECT server')) v(e);
-- literals are evaluated before they can be refused: as who wrote them
CREATE FUNCTION attributes.who(text) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN RAISE WARNING 'checked by %', current_user; RETURN true; END $$;
CREATE DOMAIN attributes.w AS text CHECK (attributes.who(VALUE));
CREATE TYPE attributes.cw AS (a attributes.w);
SELECT e, pg_temp.violation(format('SELECT dgen.create_index(%L, %L)', 'attributes', e)) FROM (VALUES
  ('''{a}''::attributes.w[]::text'),
  ('''(a)''::attributes.cw IS NULL')) v(e);
-- where it is wrong
SELECT dgen.create_index('attributes', 'key || no_such_column');
SELECT dgen.create_index('attributes', 'key || || server');
SELECT pg_temp.try($$SELECT dgen.create_index('attributes', NULL)$$);
SELECT pg_temp.try($$SELECT dgen.create_index(NULL, 'key')$$);
SELECT pg_temp.try($$SELECT dgen.create_index('attributes', 'key', name => '')$$);
SELECT pg_temp.error($$SELECT dgen.create_index('attributes', 'key', name => 'attributes_0')$$);
SELECT pg_temp.error($$SELECT dgen.create_index('attributes', 'key', name => 'regress age')$$);
SELECT pg_temp.error($$SELECT dgen.create_index('no such module', 'key')$$);
-- the caller's functions do not come before those of the system
CREATE FUNCTION attributes.lower(text) RETURNS text LANGUAGE sql IMMUTABLE AS $$ SELECT 'x' $$;
SET search_path = attributes, pg_catalog;
SELECT dgen.create_index('attributes', $$lower(key)$$, name => 'regress_builtin');
RESET search_path;
SELECT pg_get_expr(indexprs, indrelid) FROM pg_index WHERE indexrelid = 'dgen.regress_builtin'::regclass;
-- for members of the owner only
SELECT dgen.alter_module('attributes', operators => 'regress_dgen_attributes_operator') -> 'created';
SET ROLE regress_dgen_attributes_operator;
SELECT pg_temp.try($$SELECT dgen.create_index('attributes', 'key')$$);
SELECT pg_temp.error($$SELECT dgen.drop_index('attributes', 'regress_builtin')$$);
SET ROLE regress_dgen_attributes_reader;
SELECT pg_temp.error($$SELECT dgen.create_index('attributes', 'key')$$);
SELECT pg_temp.error($$SELECT dgen.refresh_attributes('attributes')$$);
SET ROLE regress_dgen_attributes;

--
-- drop_index: of this module's, and of those that were asked for
--
SELECT dgen.drop_index('attributes', 'regress_builtin');
SELECT pg_temp.violation($$SELECT dgen.drop_index('attributes', 'regress_builtin')$$);
SELECT pg_temp.error($$SELECT dgen.drop_index('attributes', 'server_pkey')$$);
SELECT pg_temp.error(format($$SELECT dgen.drop_index('attributes', 'attributes_%s_pkey')$$, :module)) ~ '^42704' AS pkey_refused;

--
-- After a change of the callback
--
CREATE OR REPLACE FUNCTION attributes.attributes(state jsonb) RETURNS jsonb LANGUAGE sql STABLE AS $$
  SELECT jsonb_build_object('mail', state -> 'email') $$;
SELECT dgen.refresh_attributes('attributes');
SELECT dgen.refresh_attributes('attributes');
SELECT * FROM attributes.servers ORDER BY server;
SELECT dgen.call('attributes/b', '{"email": "b3@x.org"}') -> 'email';
SELECT attributes FROM attributes.servers WHERE key = 'b';

--
-- Another module has another table
--
RESET ROLE;
CREATE SCHEMA attributes_too AUTHORIZATION regress_dgen_attributes;
SET ROLE regress_dgen_attributes;
CREATE FUNCTION attributes_too.handle_call(request jsonb, INOUT state jsonb, OUT reply jsonb) LANGUAGE sql AS $$
  SELECT request, request $$;
CREATE FUNCTION attributes_too.attributes(state jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT state $$;
CREATE TABLE attributes_too.servers (mine int);
SELECT pg_temp.try($$SELECT dgen.create_module('attributes_too')$$);
DROP TABLE attributes_too.servers;
SELECT dgen.create_module('attributes_too') -> 'created';
SELECT dgen.call('attributes_too/secret', '{"secret": true}');
-- a function that is told of every row that is there
RESET ROLE;
CREATE FUNCTION pg_temp.sees(jsonb) RETURNS boolean LANGUAGE plpgsql COST 0.0001 AS $$
BEGIN
  RAISE NOTICE '%', $1;
  RETURN true;
END $$;
SET ROLE regress_dgen_attributes_reader;
SELECT count(*) FROM attributes.servers WHERE pg_temp.sees(attributes) AND attributes ->> 'mail' = 'b3@x.org';
SET ROLE regress_dgen_attributes;
-- the view is the owner's: gone, it is made again
DROP VIEW attributes_too.servers;
SELECT dgen.alter_module('attributes_too') -> 'created';
SELECT * FROM attributes_too.servers;
-- it goes with the schema
RESET ROLE;
ALTER SCHEMA attributes_too RENAME TO attributes_moved;
SET ROLE regress_dgen_attributes;
SELECT dgen.alter_module('attributes_too', schema_name => 'attributes_moved') -> 'created';
SELECT * FROM attributes_moved.servers;
-- with another owner, who gets the view as it ought to be
RESET ROLE;
SELECT format('CREATE OR REPLACE VIEW attributes_moved.servers AS SELECT server, key, %L::jsonb AS attributes FROM dgen.attributes_%s',
  '"forged"', id) AS forge FROM dgen.module WHERE name = 'attributes_too' \gset
SET ROLE regress_dgen_attributes;
:forge;
SELECT * FROM attributes_moved.servers;
RESET ROLE;
ALTER ROLE regress_dgen_attributes_operator LOGIN;
ALTER FUNCTION attributes_moved.handle_call(jsonb, jsonb) OWNER TO regress_dgen_attributes_operator;
ALTER FUNCTION attributes_moved.attributes(jsonb) OWNER TO regress_dgen_attributes_operator;
SELECT dgen.alter_module('attributes_too') -> 'owner';
SELECT viewowner FROM pg_views WHERE schemaname = 'attributes_moved';
SELECT grantee::regrole, is_grantable FROM pg_class, aclexplode(relacl)
WHERE relname = 'attributes_' || (SELECT id FROM dgen.module WHERE name = 'attributes_too') AND grantee <> relowner;
SELECT * FROM attributes_moved.servers;
-- nor does the former owner keep a right on the table where the view went with the functions
CREATE ROLE regress_dgen_attributes_heir LOGIN;
REASSIGN OWNED BY regress_dgen_attributes_operator TO regress_dgen_attributes_heir;
SELECT viewowner FROM pg_views WHERE schemaname = 'attributes_moved';
SELECT dgen.alter_module('attributes_too') -> 'owner';
SELECT grantee::regrole, is_grantable FROM pg_class, aclexplode(relacl)
WHERE relname = 'attributes_' || (SELECT id FROM dgen.module WHERE name = 'attributes_too') AND grantee <> relowner;
SELECT * FROM attributes_moved.servers;
-- without the callback there is neither table nor view; nor for an ephemeral one
SELECT dgen.alter_module('attributes_too', callbacks => '{"attributes": null}') -> 'callbacks' ? 'attributes';
SELECT to_regclass('attributes_moved.servers'), count(*) FROM pg_class WHERE relname ~ '^attributes_\d+$';
SELECT dgen.alter_module('attributes_too', callbacks => '{}', ephemeral => true) -> 'callbacks' ? 'attributes';
SELECT to_regclass('attributes_moved.servers'), count(*) FROM pg_class WHERE relname ~ '^attributes_\d+$';
SELECT dgen.alter_module('attributes_too', ephemeral => false) -> 'created';
SELECT * FROM attributes_moved.servers;

--
-- A table whose rows have moved, and one that was emptied by hand
--
SELECT dgen.call('attributes/b', '{"email": "b4@x.org"}') -> 'email';
VACUUM FULL :table;
SELECT dgen.call('attributes/b', '{"email": "b5@x.org"}') -> 'email';
SELECT attributes FROM attributes.servers WHERE key = 'b';
TRUNCATE :table;
SELECT dgen.call('attributes/b', '{"email": "b6@x.org"}') -> 'email';
SELECT * FROM attributes.servers;
SELECT dgen.refresh_attributes('attributes');

--
-- drop_module leaves nothing
--
CREATE VIEW attributes_moved.more AS SELECT * FROM attributes_moved.servers;
SELECT dgen.delete('attributes_too/secret');
SELECT pg_temp.error($$SELECT dgen.drop_module('attributes_too')$$);
SELECT dgen.drop_module('attributes_too', true);
SELECT dgen.drop_module('attributes', true);
SELECT to_regclass('attributes_moved.more'), to_regclass('attributes.servers'), count(*)
FROM pg_class WHERE relname ~ '^attributes_\d+' OR relname ~ '^regress';
SELECT count(*) FROM pg_depend WHERE refclassid = 'pg_extension'::regclass AND deptype = 'x';
SET client_min_messages = warning;
DROP SCHEMA attributes, attributes_moved CASCADE;
DROP ROLE regress_dgen_attributes, regress_dgen_attributes_reader, regress_dgen_attributes_operator, regress_dgen_attributes_heir;
