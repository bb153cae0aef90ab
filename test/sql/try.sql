--
-- dgen.try: runs a callback, shows what it says, and undoes what it does.
--
\getenv dir PG_ABS_SRCDIR
\i :dir/sql/helpers.psql
CREATE ROLE regress_dgen_try LOGIN;
CREATE SCHEMA try AUTHORIZATION regress_dgen_try;
SET ROLE regress_dgen_try;
CREATE TABLE try.t (i integer);

CREATE FUNCTION try.handle_call(request jsonb, INOUT state jsonb, OUT reply jsonb) LANGUAGE plpgsql AS $$
BEGIN
  state := state || jsonb_build_object('n', coalesce((state ->> 'n')::integer, 0) + 1);
  reply := state -> 'n';
  IF jsonb_typeof(request) = 'object' THEN
    EXECUTE 'SELECT to_jsonb(x) FROM (SELECT ' || (request ->> 'do') || ') x(y)' INTO reply;
    reply := nullif(reply -> 'y', 'null');
  END IF;
END $$;
CREATE FUNCTION try.handle_cast(message jsonb, INOUT state jsonb) LANGUAGE sql AS $$
  SELECT state || jsonb_build_object('cast', message) $$;
CREATE FUNCTION try.handle_info(message jsonb, INOUT state jsonb) LANGUAGE sql AS $$
  SELECT state || jsonb_build_object('info', message) $$;
CREATE FUNCTION try.handle_query(query jsonb, state jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
  result jsonb;
BEGIN
  IF query IS NULL OR query = 'null' THEN
    RETURN state;
  END IF;
  EXECUTE 'SELECT to_jsonb(x) FROM (' || (query ->> 'do') || ') x(y)' INTO result;
  RETURN result -> 'y';
END $$;
CREATE FUNCTION try.insert(integer) RETURNS integer LANGUAGE sql AS $$
  INSERT INTO try.t VALUES ($1) RETURNING i $$;
SELECT dgen.create_module('try') -> 'created';

--
-- The callbacks that there are
--
SELECT dgen.try('try', 'handle_call', '1', '{"n": 41}');
SELECT dgen.try('try', 'handle_call', '{"do": "try.insert(8)"}', '{}');
SELECT dgen.try('try', 'handle_call', '{"do": "dgen.exit(''why'')::text"}', '{}');
SELECT dgen.try('try', 'handle_call', '{"do": "dgen.cast(''try/never'', ''1'') > 0"}', '{}');
SELECT dgen.try('try', 'handle_cast', '"m"', '{}');
SELECT dgen.try('try', 'handle_info', '"m"', '{}');
SELECT dgen.try('try', 'handle_query', NULL, '{"a": 1}');
SELECT count(*) FROM try.t WHERE i = 8;
SELECT count(*) FROM dgen.messages WHERE server = 'try/never';
-- an error is the callback's; the session goes on
SELECT dgen.try('try', 'handle_call', '{"do": "1 / 0"}', '{}');
SELECT 1;
SELECT pg_temp.error($$SELECT dgen.try('try', 'handle_call', '{"do": "1 / 0"}', '{}')$$);
SELECT pg_temp.try($$SELECT dgen.try('try', 'init', '1', '{}')$$);
SELECT pg_temp.try($$SELECT dgen.try('try', 'handle_coll', '1', '{}')$$);
SELECT pg_temp.error($$SELECT dgen.try('try', NULL, '1', '{}')$$);
SELECT pg_temp.error($$SELECT dgen.try(NULL, 'init', '1', '{}')$$);
SELECT pg_temp.error($$SELECT dgen.try('regress_dgen_nowhere', 'init', '1', '{}')$$);
-- all callbacks that are functions can be tried
CREATE FUNCTION try.init(jsonb) RETURNS jsonb LANGUAGE sql AS 'SELECT $1';
CREATE FUNCTION try.validate(jsonb) RETURNS boolean LANGUAGE sql AS 'SELECT $1 <> ''1''';
CREATE FUNCTION try.accept(text, jsonb) RETURNS boolean LANGUAGE sql AS 'SELECT $2 <> ''1''';
CREATE FUNCTION try.attributes(jsonb) RETURNS jsonb LANGUAGE sql AS 'SELECT $1';
CREATE FUNCTION try.format_status(jsonb) RETURNS jsonb LANGUAGE sql AS 'SELECT $1';
CREATE FUNCTION try.format_message(jsonb) RETURNS jsonb LANGUAGE sql AS 'SELECT $1';
CREATE FUNCTION try.terminate(text, jsonb) RETURNS void LANGUAGE sql AS '';
CREATE FUNCTION try.code_change(text, jsonb) RETURNS jsonb LANGUAGE sql AS 'SELECT $2';
CREATE FUNCTION try.handle_continue(jsonb, INOUT state jsonb) LANGUAGE sql AS 'SELECT $1';
CREATE FUNCTION try.handle_dead_letter(jsonb, integer, jsonb) RETURNS void LANGUAGE sql AS '';
CREATE PROCEDURE try.handle_locked(text, jsonb, INOUT state jsonb, INOUT reply jsonb) LANGUAGE plpgsql AS 'BEGIN END';
SELECT c, pg_temp.error(format('SELECT dgen.try(%L, %L, %L, %L)', 'try', c, '1', '2')) FROM unnest(ARRAY[
  'init', 'validate', 'accept', 'attributes', 'format_status', 'format_message', 'terminate', 'code_change',
  'handle_continue', 'handle_dead_letter']) c;
SELECT pg_temp.try($$SELECT dgen.try('try', 'handle_locked', '1', '2')$$);

SELECT dgen.drop_module('try', true);
RESET ROLE;
SET client_min_messages = warning;
DROP SCHEMA try CASCADE;
DROP ROLE regress_dgen_try;
