--
-- Why a server, or a process, goes on or does not.
--
\getenv dir PG_ABS_SRCDIR
\i :dir/sql/helpers.psql
CREATE ROLE regress_dgen_why LOGIN;
CREATE ROLE regress_dgen_why_reader;
CREATE ROLE regress_dgen_why_stranger;
CREATE SCHEMA why AUTHORIZATION regress_dgen_why;
CREATE SCHEMA why2 AUTHORIZATION regress_dgen_why;
CREATE SCHEMA why3 AUTHORIZATION regress_dgen_why;
SELECT nspname AS temp FROM pg_namespace WHERE oid = pg_my_temp_schema() \gset
GRANT USAGE ON SCHEMA :temp TO PUBLIC;
-- without times, ids, process ids
CREATE FUNCTION pg_temp.plain(sentence text) RETURNS text LANGUAGE sql AS $$
  SELECT regexp_replace(regexp_replace(sentence, '\d{4}-\d\d-\d\d [0-9:.]+[-+]\d\d', '<time>', 'g'),
    '(message |message is |discard\(|message_status\(|essage |rocess |orker |pid = |backend\(|pid => )\d+', '\1<n>', 'g') $$;
-- a worker may look at a server that has nothing to do, or have it for a moment longer than a caller waits
CREATE FUNCTION pg_temp.why(server text) RETURNS SETOF text LANGUAGE plpgsql AS $$
DECLARE
  sentences text[];
BEGIN
  LOOP
    sentences := array(SELECT pg_temp.plain(w) FROM dgen.why(server) w);
    EXIT WHEN array_to_string(sentences, ' ') !~ 'It runs, in|has it in hand|has just taken';
    PERFORM pg_sleep(0.01);
  END LOOP;
  RETURN QUERY SELECT unnest(sentences);
END $$;
CREATE FUNCTION pg_temp.why(pid integer) RETURNS SETOF text LANGUAGE sql AS $$ SELECT pg_temp.plain(w) FROM dgen.why(pid => pid) w $$;
SET ROLE regress_dgen_why;
CREATE FUNCTION why.handle_call(request jsonb, INOUT state jsonb, OUT reply jsonb) LANGUAGE plpgsql AS $$
BEGIN
  IF request ? 'exit' THEN
    PERFORM dgen.exit(request ->> 'exit');
  END IF;
  reply := '1';
END $$;
CREATE FUNCTION why.handle_cast(message jsonb, INOUT state jsonb) LANGUAGE plpgsql AS $$
BEGIN
  IF message ? 'error' THEN
    RAISE EXCEPTION USING MESSAGE = message ->> 'error', ERRCODE = coalesce(message ->> 'code', 'P0001');
  ELSIF message ? 'postpone' THEN
    PERFORM dgen.postpone();
  ELSIF message ? 'lock' THEN
    PERFORM dgen.lock();
  END IF;
END $$;
CREATE PROCEDURE why.handle_locked(kind text, message jsonb, INOUT state jsonb, INOUT reply jsonb) LANGUAGE plpgsql AS $$
BEGIN
  PERFORM pg_sleep(100);
END $$;
SELECT dgen.create_module('why', max_attempts => 9, backoff_initial => '1 h', backoff_max => '1 h', breaker => 0,
  readers => 'regress_dgen_why_reader') -> 'created';
SELECT dgen.create_module('why2', external => true, auto_start => true) -> 'created';

--
-- A module without its schema, or with a callback that cannot be one
--
CREATE FUNCTION why3.handle_call(request jsonb, INOUT state jsonb, OUT reply jsonb) LANGUAGE sql AS $$ SELECT $2, $1 $$;
SELECT dgen.create_module('why3') -> 'created';
CREATE FUNCTION why3.handle_cast(message jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT $1 $$;
SELECT pg_temp.why('why3/a');
DROP SCHEMA why3 CASCADE;
SELECT pg_temp.why('why3/a');
SELECT pg_temp.error($$SELECT dgen.call('why3/a', '1')$$);
SELECT dgen.drop_module('why3', true);

--
-- Not started, idle, stopped, deleted
--
SELECT pg_temp.why('why/a');
SELECT dgen.call('why/a', '{}');
SELECT pg_temp.why('why/a');
SELECT dgen.call('why/a', '{"exit": "done"}');
SELECT pg_temp.why('why/a');
SELECT dgen.delete('why/a', '1 h');
SELECT pg_temp.why('why/a');
SELECT dgen.start('why/a') > 0;
SELECT pg_temp.why('why/a');

--
-- Suspended: the server, the module
--
SELECT dgen.suspend('why/a', reason => 'of a test');
SELECT dgen.cast('why/a', '{}') > 0, dgen.cast('why/a', '{}') > 0;
SELECT pg_temp.why('why/a');
SELECT dgen.suspend(module => 'why', reason => 'also');
SELECT pg_temp.why('why/a');
SELECT dgen.resume(module => 'why'), dgen.resume('why/a');
SELECT dgen.wait_idle('why/a');
SELECT pg_temp.why('why/a');
RESET ROLE;
ALTER FUNCTION why.handle_cast(jsonb, jsonb) OWNER TO regress_dgen_why_stranger;
SELECT pg_temp.why('why/a');
ALTER FUNCTION why.handle_cast(jsonb, jsonb) OWNER TO regress_dgen_why;
SET ROLE regress_dgen_why;

--
-- Failures, and what waits behind them
--
SELECT dgen.cast('why/b', '{"error": "of a cast"}') AS id \gset
SELECT pg_temp.until($$(SELECT failing FROM dgen.servers WHERE server = 'why/b')$$);
SELECT dgen.cast('why/b', '{}') > 0, dgen.cast('why/b', '{}') > 0;
SELECT pg_temp.why('why/b');
-- as it says
SELECT dgen.discard(:id);
SELECT dgen.wait_idle('why/b');
SELECT pg_temp.why('why/b');
SELECT dgen.cast('why/c', '{"error": "disk", "code": "53100"}') AS id \gset
SELECT pg_temp.until($$(SELECT failing FROM dgen.servers WHERE server = 'why/c')$$);
SELECT pg_temp.why('why/c');
SELECT dgen.discard(:id);

--
-- Later: postponed, delayed
--
SELECT dgen.cast('why/d', '{"postpone": 1}') > 0, dgen.cast('why/d', '{"postpone": 2}') > 0;
SELECT dgen.wait_idle('why/d');
SELECT dgen.send_after('why/d', '{}', '1 h') > 0, dgen.send_after('why/d', '{}', '2 h', 'named') > 0;
SELECT pg_temp.why('why/d');

--
-- Locked, and the end of that
--
SELECT dgen.cast('why/e', '{"lock": true}') > 0;
SELECT pg_temp.until($$(SELECT locked_for IS NOT NULL FROM dgen.servers WHERE server = 'why/e')$$);
SELECT pg_temp.why('why/e') LIMIT 1;
SELECT dgen.release('why/e');
SELECT dgen.delete('why/e');
SELECT pg_temp.until($$(SELECT NOT EXISTS (SELECT FROM dgen.workers WHERE server = 'why/e') OR dgen.abort('why/e'))$$);

--
-- An external module waits for clients
--
SELECT dgen.cast('why2/a', '{}') > 0;
SELECT pg_temp.why('why2/a');
BEGIN;
SELECT count(*) FROM dgen.take_work('why2');
COMMIT;
SELECT pg_temp.why('why2/a');

--
-- Processes
--
SELECT pg_temp.why(pg_backend_pid());
SELECT pg_temp.why(0);
RESET ROLE;
SELECT pg_temp.why(pid) FROM pg_stat_activity WHERE backend_type = 'dgen launcher';
SELECT pg_temp.why(pid) FROM pg_stat_activity WHERE backend_type = 'dgen keeper' AND datname = current_database();
SELECT count(*) > 0 FROM (SELECT pid FROM dgen.workers WHERE pid IS NOT NULL OFFSET 0) w, dgen.why(pid => w.pid) why
WHERE why ~ '^Process \d+ is a worker of role "\w+"';

--
-- Rights
--
SET ROLE regress_dgen_why_reader;
SELECT pg_temp.why('why/b');
SELECT pg_temp.error($$SELECT dgen.why('why2/a')$$);
SET ROLE regress_dgen_why_stranger;
SELECT pg_temp.error($$SELECT dgen.why('why/a')$$);
RESET ROLE;
CREATE TABLE public.why_worker AS SELECT pid FROM dgen.workers WHERE owner = 'regress_dgen_why' AND pid IS NOT NULL LIMIT 1;
GRANT SELECT ON public.why_worker TO PUBLIC;
SET ROLE regress_dgen_why_stranger;
SELECT pg_temp.why(pid) FROM public.why_worker;
RESET ROLE;

--
-- Errors
--
SELECT pg_temp.try($$SELECT dgen.why()$$);
SELECT pg_temp.try($$SELECT dgen.why('why/a', 1)$$);
SELECT pg_temp.error($$SELECT dgen.why('why_none/a')$$);
SELECT dgen.drop_module('why', "cascade" => true), dgen.drop_module('why2', "cascade" => true);
DROP TABLE public.why_worker;
DROP SCHEMA why, why2 CASCADE;
DROP ROLE regress_dgen_why, regress_dgen_why_reader, regress_dgen_why_stranger;
