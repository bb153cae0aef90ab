--
-- Bad input: each has an error of its own, and nobody dies of it.
--
\getenv dir PG_ABS_SRCDIR
\i :dir/sql/helpers.psql
CREATE ROLE regress_dgen_errors LOGIN;
CREATE SCHEMA errors AUTHORIZATION regress_dgen_errors;
CREATE SCHEMA slips AUTHORIZATION regress_dgen_errors;
SET ROLE regress_dgen_errors;
CREATE FUNCTION errors.handle_call(request jsonb, INOUT state jsonb, OUT reply jsonb) LANGUAGE sql AS $$ SELECT state, request $$;
SELECT dgen.create_module('errors', invoke_isolation => 'any') -> 'created';

--
-- Addresses
--
SELECT left(a, 20), pg_temp.try(format('SELECT dgen.call(%L, NULL)', a)) FROM (VALUES
  (NULL), (''), ('errors'), ('/'), ('/key'), ('errors/'), ('//'),
  (repeat('m', 64) || '/key'), ('errors/' || repeat('k', 600)), ('regress_dgen_nowhere/key'),
  ('Errors/key'), (' errors/key')) v(a);
-- good ones, if odd
SELECT a, pg_temp.error(format('SELECT dgen.call(%L, ''"ok"'')', a)) FROM (VALUES
  ('errors//'), ('errors/ '), ('errors/a b'), ('errors/a/b'), ('errors/ä€'), ('errors/%'), ('errors/''"\'), ('errors/ü' || chr(10))) v(a);
SELECT pg_temp.error(format('SELECT dgen.call(%L, ''"ok"'')', 'errors/' || repeat('k', 505)));
-- the longest module's name, of the longest schema's
SELECT pg_temp.error(format('SELECT dgen.call(%L, ''"ok"'')', repeat('m', 63) || '/key'));
-- all functions take them alike
SELECT p.proname, pg_temp.error(format('SELECT dgen.%I(%s)', p.proname,
  (SELECT string_agg(CASE WHEN o = 1 THEN quote_literal('/key') ELSE 'NULL::' || format_type(t, NULL) END, ', ' ORDER BY o)
   FROM unnest(p.proargtypes) WITH ORDINALITY u(t, o))))
FROM pg_proc p WHERE pronamespace = 'dgen'::regnamespace AND prokind = 'f' AND proargnames[1] = 'server' AND NOT proretset
  AND proargtypes[0] = 'text'::regtype AND proname NOT IN ('may_read', 'masked_state', 'masked_message')
ORDER BY p.proname;

--
-- address(): escapes its parts
--
SELECT dgen.address('errors', 'a'), dgen.address('errors', 'a', 'b'), dgen.address('errors', 'a/b', '%', ''), dgen.address('errors', VARIADIC ARRAY['x', 'y/z']);
SELECT pg_temp.error(a) FROM unnest(ARRAY['SELECT dgen.address(NULL, ''a'')', 'SELECT dgen.address(''errors'', NULL)',
  'SELECT dgen.address(''errors'', VARIADIC NULL)', 'SELECT dgen.address(''errors'', VARIADIC ''{}'')', 'SELECT dgen.address(''errors'', '''')',
  'SELECT dgen.address('''', ''a'')', 'SELECT dgen.address(''a/b'', ''c'')', 'SELECT dgen.address(''errors'', repeat(''k'', 600))']) a;

--
-- Callbacks that are not there
--
SELECT pg_temp.try($$SELECT dgen.query('errors/ ', NULL)$$);
SELECT pg_temp.try($$SELECT dgen.cast('errors/a', NULL)$$);
SELECT pg_temp.error($$SELECT dgen.cast_many('[{"server": "errors/a", "message": 1}]')$$);
SELECT pg_temp.error($$SELECT dgen.try('errors', 'handle_cast')$$);
-- but infos need none
SELECT dgen.send('errors/a', NULL) > 0;
SELECT dgen.wait_idle('errors/a');

--
-- Nulls, and what is no JSON: every function, with nothing but nulls
--
CREATE FUNCTION errors.with_nulls() RETURNS TABLE (function text, result text) LANGUAGE plpgsql AS $$
DECLARE
  p record;
  state text;
BEGIN
  FOR p IN SELECT oid, proname, proargtypes, provariadic FROM pg_proc
    WHERE pronamespace = 'dgen'::regnamespace AND prokind = 'f'
      AND proname NOT IN ('noreply', 'postpone', 'lock')  -- which in a handler would be obeyed
    ORDER BY proname COLLATE "C" LOOP
    function := p.proname;
    BEGIN
      EXECUTE format('SELECT count(*) FROM dgen.%I(%s)', p.proname,
        (SELECT string_agg(CASE WHEN p.provariadic <> 0 AND o = cardinality(p.proargtypes::oid[]) THEN 'VARIADIC ' ELSE '' END
          || 'NULL::' || format_type(t, NULL), ', ' ORDER BY o) FROM unnest(p.proargtypes) WITH ORDINALITY u(t, o)));
      result := 'ok';
    EXCEPTION WHEN OTHERS THEN
      GET STACKED DIAGNOSTICS state = RETURNED_SQLSTATE;
      result := state;
    END;
    RETURN NEXT;
  END LOOP;
END $$;
SELECT * FROM errors.with_nulls();
-- also in a read-only transaction, and inside a handler
BEGIN READ ONLY;
SELECT function, result FROM errors.with_nulls() WHERE result LIKE 'XX%';
ROLLBACK;
CREATE FUNCTION errors.handle_query(query jsonb, state jsonb) RETURNS jsonb LANGUAGE sql AS $$
  SELECT jsonb_agg(n) FROM errors.with_nulls() n WHERE result LIKE 'XX%' $$;
SELECT dgen.call('errors/q', '1');
SELECT dgen.query('errors/q', NULL);
CREATE OR REPLACE FUNCTION errors.handle_call(request jsonb, INOUT state jsonb, OUT reply jsonb) LANGUAGE sql AS $$
  SELECT $2, (SELECT jsonb_agg(n) FROM errors.with_nulls() n WHERE result LIKE 'XX%') $$;
SELECT dgen.call('errors/q', NULL);
SELECT dgen.invoke('errors/q', NULL);
SELECT pg_temp.error(s) FROM unnest(ARRAY[
  'SELECT dgen.call(''errors/a'', ''no json'')', 'SELECT dgen.call(''errors/a'', ''{"a": "\u0000"}'')',
  'SELECT dgen.call(1, ''1'')', 'SELECT dgen.call(''errors/a'', ''1'', ''no interval'')', 'SELECT dgen.call()',
  'SELECT dgen.cast(''errors/a'', ''1'', priority => ''x'')']) s;

--
-- A state of NULL, by mistake: nothing is lost for it
--
CREATE FUNCTION slips.init(args jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT '{"n": 1}'::jsonb $$;
CREATE FUNCTION slips.handle_call(request jsonb, old jsonb, OUT new_state jsonb, OUT reply jsonb, OUT exit text, OUT reject text)
LANGUAGE plpgsql AS $$
BEGIN
  new_state := jsonb_set(old, '{n}', request -> 'n');
  exit := request ->> 'exit';
  reject := request ->> 'reject';
  IF request ? 'lock' THEN
    PERFORM dgen.lock();
    new_state := old;
  END IF;
END $$;
CREATE FUNCTION slips.handle_cast(message jsonb, state jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT $2 || ($1 -> 'add') $$;
CREATE PROCEDURE slips.handle_locked(kind text, message jsonb, INOUT state jsonb, INOUT reply jsonb) LANGUAGE plpgsql AS $$
BEGIN
  state := state -> 'none';
END $$;
SELECT dgen.create_module('slips', max_attempts => 1) -> 'created';
SELECT dgen.call('slips/a', '{"n": 2}');
SELECT pg_temp.try($$SELECT dgen.call('slips/a', '{}')$$);
SELECT pg_temp.error($$SELECT dgen.try('slips', 'handle_cast', '{}', '{}')$$);
SELECT pg_temp.error($$SELECT dgen.call('slips/a', '{"reject": "no"}')$$);
SELECT dgen.cast('slips/a', '{}') > 0, dgen.cast('slips/a', '{"add": {"more": true}}') > 0;
SELECT dgen.wait_idle('slips/a');
SELECT message, sqlstate, error ->> 'message' AS message FROM dgen.dead_letters WHERE server = 'slips/a';
SELECT pg_temp.error($$SELECT dgen.call('slips/a', '{"lock": true}')$$);
SELECT dgen.state('slips/a');
-- but for who goes, for who begins with it, and where there is none
SELECT dgen.call('slips/a', '{"exit": "normal"}');
CREATE OR REPLACE FUNCTION slips.init(args jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT NULL::jsonb $$;
SELECT dgen.start('slips/b') > 0, dgen.state('slips/b');
SELECT dgen.alter_module('slips', '{"handle_locked": null}', ephemeral => true) -> 'created';
SELECT dgen.cast('slips/c', '{}') > 0;
SELECT dgen.wait_idle('slips/c');
SELECT count(*) FROM dgen.dead_letters WHERE server = 'slips/c';
SELECT dgen.drop_module('slips', true);

--
-- Every error of dgen says what to do
--
SELECT s, pg_temp.try(s) FROM unnest(ARRAY['SELECT dgen.call(''errors/'', NULL)', 'SELECT dgen.self()', 'SELECT dgen.exit(''a'')',
  'SELECT dgen.drain(''errors'')', 'SELECT dgen.reply(''x'', NULL)', 'SELECT dgen.state(''errors/none'')']) s;

-- and the server is well
SELECT pg_postmaster_start_time() < now() - interval '0 s', pg_is_in_recovery();

SELECT dgen.drop_module('errors', true);
RESET ROLE;
SET client_min_messages = warning;
DROP SCHEMA errors, slips CASCADE;
DROP ROLE regress_dgen_errors;
