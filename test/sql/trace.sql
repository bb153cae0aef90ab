--
-- Traces: what servers do, activation by activation.
--
\getenv dir PG_ABS_SRCDIR
\i :dir/sql/helpers.psql
CREATE ROLE regress_dgen_trace LOGIN;
CREATE ROLE regress_dgen_trace_reader;
CREATE ROLE regress_dgen_trace_stranger;
CREATE SCHEMA trace AUTHORIZATION regress_dgen_trace;
SELECT nspname AS temp FROM pg_namespace WHERE oid = pg_my_temp_schema() \gset
GRANT USAGE ON SCHEMA :temp TO PUBLIC;
SET ROLE regress_dgen_trace;
CREATE FUNCTION trace.init(args jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT '0'::jsonb $$;
CREATE FUNCTION trace.handle_call(request jsonb, INOUT state jsonb, OUT reply jsonb) LANGUAGE plpgsql AS $$
BEGIN
  IF request ? 'error' THEN
    RAISE EXCEPTION '%', request ->> 'error';
  ELSIF request ? 'invoke' THEN
    reply := dgen.invoke(request ->> 'invoke', '{"add": 1}');
  ELSIF request ? 'later' THEN
    PERFORM dgen.noreply();
    RETURN;
  ELSIF request ? 'exit' THEN
    PERFORM dgen.exit('done');
  END IF;
  state := to_jsonb(state::int + coalesce((request ->> 'add')::int, 0));
  reply := coalesce(reply, state);
END $$;
CREATE FUNCTION trace.handle_cast(message jsonb, INOUT state jsonb) LANGUAGE plpgsql AS $$
BEGIN
  IF message ? 'error' THEN
    RAISE EXCEPTION '%', message ->> 'error';
  ELSIF message ? 'reject' THEN
    PERFORM dgen.reject('no');
  END IF;
  state := to_jsonb(state::int + 1);
END $$;
CREATE FUNCTION trace.format_message(message jsonb) RETURNS jsonb LANGUAGE sql AS $$
  SELECT CASE WHEN message ? 'secret' THEN message || '{"secret": "***"}' ELSE message END $$;
SELECT dgen.create_module('trace', invoke_isolation => 'any', max_attempts => 2, backoff_initial => '10 ms', breaker => 0,
  readers => 'regress_dgen_trace_reader') -> 'created';
CREATE VIEW trace.log AS
  SELECT server, kind, message, old_version AS old, new_version AS new, replied, exit_reason, error ->> 'message' AS error,
    duration >= '0'::interval AND at > now() - interval '1 min' AND pid > 0 AS sane
  FROM dgen.trace_log ORDER BY trace, number;
SELECT dgen.call('trace/a', '{"add": 1}');
SELECT count(*) FROM dgen.trace_log;

--
-- One server: calls, casts, and what fails
--
SELECT dgen.trace('trace/a') - now() BETWEEN '9 min' AND '11 min';
SELECT module, server, running, started_by, max_rows, ends_at - started_at AS lasts, keep_until - ends_at AS kept FROM dgen.traces;
SELECT dgen.call('trace/a', '{"add": 1}'), dgen.call('trace/b', '{"add": 1}');
SELECT dgen.cast('trace/a', '{"secret": "x"}') > 0;
SELECT dgen.wait_idle('trace/a');
SELECT pg_temp.error($$SELECT dgen.call('trace/a', '{"error": "of a call"}')$$);
SELECT dgen.cast('trace/a', '{"error": "of a cast"}') > 0;
SELECT pg_temp.until($$(SELECT count(*) = 1 FROM dgen.dead_letters WHERE server = 'trace/a')$$);
SELECT dgen.cast('trace/a', '{"reject": true}') > 0;
SELECT pg_temp.until($$(SELECT count(*) = 2 FROM dgen.dead_letters WHERE server = 'trace/a')$$);
-- not by a worker: undone with its transaction, or not
SELECT dgen.invoke('trace/a', '{"add": 10}');
SELECT pg_temp.error($$SELECT dgen.invoke('trace/a', '{"error": "of an invoke"}')$$);
BEGIN;
SELECT dgen.invoke('trace/a', '{"add": 10}');
ROLLBACK;
-- called by another one, which is not traced
SELECT dgen.call('trace/b', '{"invoke": "trace/a"}');
SELECT dgen.send_request('trace/a', '{"add": 5}') AS request \gset
SELECT dgen.wait_response(:request);
SELECT dgen.call('trace/a', '{"exit": true}');
SELECT * FROM trace.log;
SELECT DISTINCT sender_role, sender = 'trace/b' FROM dgen.trace_log ORDER BY 2;
-- ends, and its log stays
SELECT dgen.untrace('trace/a'), dgen.untrace('trace/a'), dgen.untrace('trace/b'), dgen.untrace(module => 'trace');
SELECT dgen.call('trace/a', '{"add": 1}');
SELECT running, ends_at <= now() AS ended FROM dgen.traces;
SELECT count(*) FROM dgen.trace_log;

--
-- A module; a ring; the same target anew
--
SELECT dgen.trace(module => 'trace', max_rows => 3) IS NOT NULL;
SELECT dgen.trace('trace/a', max_rows => 2, duration => '1 hour') IS NOT NULL;
SELECT count(*) FROM dgen.trace_log;
SELECT dgen.call('trace/' || k, jsonb_build_object('add', i)) FROM generate_series(1, 5) i, unnest('{a,c}'::text[]) k;
SELECT t.module, t.server AS target, l.number, l.server, l.message FROM dgen.trace_log l JOIN dgen.traces t ON t.id = l.trace
ORDER BY l.trace, l.number;
-- more in one transaction than the ring has places
SELECT count(dgen.cast('trace/c', jsonb_build_object('n', i))) FROM generate_series(1, 20) i;
SELECT dgen.wait_idle('trace/c');
SELECT l.number, l.message FROM dgen.trace_log l WHERE server = 'trace/c' ORDER BY l.number;
-- a large message is not kept
SELECT dgen.call('trace/c', jsonb_build_object('add', 1, 'more', repeat('x', 9000)));
SELECT message, message_size FROM dgen.trace_log WHERE server = 'trace/c' ORDER BY number DESC LIMIT 1;
-- by time
SELECT dgen.trace('trace/t', duration => '1 ms') IS NOT NULL;
SELECT pg_sleep(0.01), dgen.call('trace/t', '{}');
SELECT running, (SELECT count(*) FROM dgen.trace_log l WHERE l.trace = t.id) FROM dgen.traces t WHERE server = 'trace/t';
-- undone
BEGIN;
SELECT dgen.trace('trace/u') IS NOT NULL;
SAVEPOINT s;
SELECT dgen.untrace('trace/u');
ROLLBACK TO s;
SELECT dgen.invoke('trace/u', '{}');
SELECT count(*) FROM dgen.trace_log WHERE server = 'trace/u';
ROLLBACK;
SELECT dgen.call('trace/u', '{}');
SELECT count(*) FROM dgen.traces WHERE server = 'trace/u';

--
-- Who may, and what is refused
--
SET ROLE regress_dgen_trace_reader;
SELECT count(*) > 0 FROM dgen.traces;
SELECT count(*) > 0 FROM dgen.trace_log;
SELECT pg_temp.error($$SELECT dgen.trace('trace/a')$$);
SELECT pg_temp.error($$SELECT dgen.untrace('trace/a')$$);
SET ROLE regress_dgen_trace_stranger;
SELECT count(*) FROM dgen.traces;
SELECT count(*) FROM dgen.trace_log;
SELECT pg_temp.error($$SELECT dgen.trace(module => 'trace')$$);
SET ROLE regress_dgen_trace;
SELECT pg_temp.try($$SELECT dgen.trace()$$);
SELECT pg_temp.try($$SELECT dgen.untrace('trace/a', 'trace')$$);
SELECT pg_temp.try($$SELECT dgen.trace('trace')$$);
SELECT pg_temp.try($$SELECT dgen.trace(module => 'nothing')$$);
SELECT pg_temp.try($$SELECT dgen.trace('trace/a', max_rows => 0)$$);
SELECT pg_temp.try($$SELECT dgen.trace('trace/a', max_rows => 100001)$$);
SELECT pg_temp.try($$SELECT dgen.trace('trace/a', duration => '8 days')$$);
SELECT pg_temp.try($$SELECT dgen.trace('trace/a', duration => '-1 s')$$);
SELECT count(dgen.trace('trace/many' || i)) FROM generate_series(1, 62) i;
SELECT pg_temp.try($$SELECT dgen.trace('trace/one more')$$);
-- the oldest that has ended makes place
SELECT count(*) FROM dgen.traces WHERE NOT running;
SELECT dgen.untrace('trace/many7');
SELECT dgen.trace('trace/one more') IS NOT NULL;
SELECT count(*) FROM dgen.traces WHERE server = 'trace/many7';

--
-- What goes with its server, with its module, and with time
--
SELECT count(*) > 0 FROM dgen.trace_log WHERE server = 'trace/c';
SELECT dgen.delete('trace/c');
SELECT count(*) FROM dgen.trace_log WHERE server = 'trace/c';
RESET ROLE;
SELECT dgen.untrace(module => 'trace');
UPDATE dgen.trace SET keep_until = now() WHERE target = 'trace/';
SELECT pg_temp.until($$NOT EXISTS (SELECT FROM dgen.trace WHERE target = 'trace/')$$, 90);
SELECT count(*) FROM dgen.trace_entry e WHERE NOT EXISTS (SELECT FROM dgen.trace t WHERE t.id = e.trace);
SET client_min_messages = warning;
SELECT dgen.drop_module('trace', cascade => true);
SELECT count(*) FROM dgen.trace;
SELECT count(*) FROM dgen.trace_entry;
DROP SCHEMA trace CASCADE;
DROP ROLE regress_dgen_trace, regress_dgen_trace_reader, regress_dgen_trace_stranger;
