--
-- All that is to be known of one server.
--
\getenv dir PG_ABS_SRCDIR
\i :dir/sql/helpers.psql
CREATE ROLE regress_dgen_status LOGIN;
CREATE ROLE regress_dgen_status_reader;
CREATE ROLE regress_dgen_status_stranger;
CREATE SCHEMA status AUTHORIZATION regress_dgen_status;
SELECT nspname AS temp FROM pg_namespace WHERE oid = pg_my_temp_schema() \gset
GRANT USAGE ON SCHEMA :temp TO PUBLIC;
SET ROLE regress_dgen_status;
CREATE FUNCTION status.init(args jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT '{"pin": 1, "n": 0}'::jsonb $$;
CREATE FUNCTION status.handle_call(request jsonb, INOUT state jsonb, OUT reply jsonb) LANGUAGE plpgsql AS $$
BEGIN
  IF request ? 'other' THEN
    reply := dgen.status(request ->> 'other') -> 'n';
  ELSIF request ? 'self' THEN
    reply := dgen.status(dgen.self());
  ELSE
    state := state || request;
    reply := state;
  END IF;
END $$;
CREATE FUNCTION status.handle_cast(message jsonb, INOUT state jsonb) LANGUAGE plpgsql AS $$
BEGIN
  IF message ? 'error' THEN
    RAISE EXCEPTION 'no';
  END IF;
  PERFORM pg_advisory_xact_lock(4711);
END $$;
CREATE FUNCTION status.format_status(state jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT state - 'pin' $$;
SELECT dgen.create_module('status', vsn => '1', max_attempts => 1, breaker => 0, invoke_isolation => 'any',
  readers => 'regress_dgen_status_reader') -> 'created';
CREATE FUNCTION status.fixed(s jsonb) RETURNS text LANGUAGE sql AS $$
  SELECT string_agg(key || '=' || CASE WHEN key ~ '_at$' AND value <> 'null' THEN
    CASE WHEN (value #>> '{}')::timestamptz BETWEEN now() - interval '1 min' AND now() + interval '1 min' THEN 'now' ELSE 'odd' END
    ELSE value::text END, E'\n' ORDER BY key) FROM jsonb_each(s) $$;
SELECT pg_temp.try($$SELECT dgen.status('status/a')$$);
SELECT dgen.call('status/a', '{"n": 1}');
-- its worker lets go of it after the reply
SELECT pg_temp.until($$dgen.status('status/a') -> 'in_hand' = 'null'$$);
SELECT status.fixed(dgen.status('status/a'));

-- what waits, and what was given up
SELECT dgen.cast('status/a', '{"error": true}') > 0;
SELECT pg_temp.until($$dgen.status('status/a') -> 'dead_letters' = '1'$$);
SELECT dgen.suspend('status/a', reason => 'lunch');
SELECT dgen.cast('status/a', '{}') > 0, dgen.cast('status/a', '{}', delay => '1 hour') > 0;
SELECT s - '{started_at,updated_at,suspended_at,in_hand}'::text[] FROM dgen.status('status/a') s;
-- one that only has mail
SELECT dgen.cast('status/later', '{}', delay => '1 hour') > 0;
SELECT s -> 'status', s -> 'state', s -> 'delayed' FROM dgen.status('status/later') s;
SELECT dgen.stop('status/a', 'done');
SELECT s -> 'status', s -> 'stop_reason', s -> 'state' FROM dgen.status('status/a') s;

-- who has it in hand: a worker; or a transaction, but not one's own
RESET ROLE;
SELECT pg_advisory_lock(4711);
SET ROLE regress_dgen_status;
SELECT dgen.cast('status/b', '{}') > 0;
SELECT pg_temp.until($$dgen.status('status/b') #> '{in_hand,worker}' = 'true'$$);
SELECT (s #>> '{in_hand,pid}')::int = w.pid, (s #>> '{in_hand,since}')::timestamptz = w.busy_since
FROM dgen.status('status/b') s, dgen.workers w WHERE w.server = 'status/b';
RESET ROLE;
SELECT pg_advisory_unlock(4711);
SET ROLE regress_dgen_status;
SELECT dgen.wait_idle('status/b');
SELECT pg_temp.until($$dgen.status('status/b') -> 'in_hand' = 'null'$$);
BEGIN;
SELECT dgen.invoke('status/b', '{"n": 5}') -> 'n';
SELECT s -> 'in_hand', s #> '{state,n}', s -> 'version' FROM dgen.status('status/b') s;
ROLLBACK;
-- in a handler
SELECT dgen.call('status/c', '{"self": true}') ->> 'status';

-- who may
SET ROLE regress_dgen_status_reader;
SELECT dgen.status('status/b') -> 'status';
SET ROLE regress_dgen_status_stranger;
SELECT pg_temp.error($$SELECT dgen.status('status/b')$$);
SELECT pg_temp.error($$SELECT dgen.status(NULL)$$);
SELECT pg_temp.error($$SELECT dgen.status('nothing/a')$$);
RESET ROLE;
SET client_min_messages = warning;
SELECT dgen.drop_module('status', cascade => true);
DROP SCHEMA status CASCADE;
DROP ROLE regress_dgen_status, regress_dgen_status_reader, regress_dgen_status_stranger;
