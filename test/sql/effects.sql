--
-- What a handler promises for after its commit.
--
\getenv dir PG_ABS_SRCDIR
\i :dir/sql/helpers.psql
CREATE ROLE regress_dgen_effects LOGIN;
CREATE ROLE regress_dgen_other LOGIN;
CREATE SCHEMA effects AUTHORIZATION regress_dgen_effects;
SET ROLE regress_dgen_effects;

CREATE TABLE effects.log (n serial, server text, id bigint, args jsonb);
CREATE SEQUENCE effects.runs;
CREATE FUNCTION effects.note(args jsonb, effect_id bigint) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  PERFORM nextval('effects.runs');
  INSERT INTO effects.log (server, id, args) VALUES (dgen.key(), effect_id, args);
  IF args ? 'do' THEN
    EXECUTE args ->> 'do';
  END IF;
END $$;
CREATE FUNCTION effects.tell(args jsonb) RETURNS text LANGUAGE sql AS $$
  INSERT INTO effects.log (server, id, args)
  VALUES (dgen.key(), dgen.effect_id(), jsonb_build_object('kind', dgen.kind(), 'context', dgen.context(), 'role', session_user,
    'isolation', current_setting('transaction_isolation'), 'args', args));
  SELECT 'what it returns does not matter' $$;
CREATE FUNCTION effects.handle_call(request jsonb, INOUT state jsonb, OUT reply jsonb) LANGUAGE plpgsql AS $$
BEGIN
  IF request ? 'do' THEN
    EXECUTE request ->> 'do';
  END IF;
  FOR i IN 1 .. coalesce((request ->> 'n')::int, 0) LOOP
    reply := to_jsonb(dgen.after_commit('effects.note', request - 'n' || jsonb_build_object('i', i)));
  END LOOP;
  state := state || jsonb_build_object('calls', coalesce((state ->> 'calls')::int, 0) + 1);
END $$;
CREATE FUNCTION effects.handle_cast(message jsonb, INOUT state jsonb) LANGUAGE plpgsql AS $$
BEGIN
  EXECUTE message ->> 'do';
END $$;
CREATE FUNCTION effects.handle_query(query jsonb, state jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
  RETURN to_jsonb(dgen.after_commit('effects.note'));
END $$;
SELECT dgen.create_module('effects', max_attempts => 3, backoff_initial => '5 ms', backoff_factor => 1.5,
  backoff_max => '50 ms', breaker => 1, invoke_isolation => 'any') -> 'created';

--
-- Run after the commit, in order, in transactions of their own
--
SELECT dgen.call('effects/a', '{"n": 3}') IS NOT NULL;
SELECT dgen.wait_idle('effects/a');
SELECT server, args, id = max(id) OVER (ORDER BY n) AS in_order FROM effects.log ORDER BY n;
SELECT count(DISTINCT xmin::text) FROM effects.log;
TRUNCATE effects.log;
-- what it can ask
SET dgen.context = '{"tenant": 7}';
SELECT dgen.call('effects/a', '{"do": "SELECT dgen.after_commit(''effects.tell'', ''[1]'')"}');
RESET dgen.context;
SELECT dgen.wait_idle('effects/a');
SELECT server, id > 0 AS id, args FROM effects.log;
TRUNCATE effects.log;
SELECT dgen.call('effects/a', '{"do": "SELECT dgen.effect_id() / 0"}');
SELECT pg_temp.error('SELECT dgen.effect_id()');

--
-- If and only if the handler's transaction commits
--
SELECT pg_temp.error($$SELECT dgen.call('effects/b', '{"do": "SELECT dgen.after_commit(''effects.note''), 1 / 0"}')$$);
SELECT dgen.call('effects/b', '{"do": "DO ''BEGIN PERFORM dgen.after_commit($f$effects.note$f$); RAISE division_by_zero; EXCEPTION WHEN division_by_zero THEN END''"}');
BEGIN;
SELECT dgen.invoke('effects/b', '{"n": 1}') IS NOT NULL;
SELECT kind, status, priority, message FROM dgen.messages WHERE server = 'effects/b';
ROLLBACK;
SELECT dgen.wait_idle(module => 'effects');
SELECT count(*) FROM effects.log;
BEGIN;
SELECT dgen.invoke('effects/b', '{"n": 1}') IS NOT NULL;
COMMIT;
SELECT dgen.wait_idle('effects/b');
SELECT server, args FROM effects.log;
TRUNCATE effects.log;
-- in the transaction of a test
BEGIN;
SELECT dgen.invoke('effects/b', '{"n": 2}') IS NOT NULL;
SELECT dgen.drain('effects/b');
SELECT server, args FROM effects.log ORDER BY n;
ROLLBACK;

--
-- A slow one holds up neither its server nor others
--
SELECT pg_advisory_lock(4711);
SELECT dgen.call('effects/slow', '{"n": 2, "do": "SELECT 1"}') IS NOT NULL;
SELECT dgen.cast('effects/wait', '{"do": "SELECT dgen.after_commit(''effects.note'', ''{\"do\": \"SELECT pg_advisory_xact_lock(4711)\"}'')"}') > 0,
  dgen.cast('effects/wait', '{"do": "SELECT dgen.after_commit(''effects.note'', ''{\"behind\": true}'')"}') > 0;
SELECT pg_temp.until($$EXISTS (SELECT FROM dgen.workers WHERE state = 'busy' AND server = 'effects/wait')$$);
SELECT dgen.call('effects/wait', '{}'), dgen.call('effects/other', '{"n": 1}') IS NOT NULL;
SELECT dgen.wait_idle('effects/other'), dgen.wait_idle('effects/slow');
SELECT dgen.state('effects/wait');
SELECT pg_temp.until($$(SELECT count(*) FROM pg_stat_activity WHERE query = 'dgen: effects/wait effect' AND wait_event = 'advisory') = 1$$);
SELECT kind, status, message -> 'args' AS args FROM dgen.messages WHERE server = 'effects/wait' ORDER BY id;
SELECT pg_advisory_unlock(4711);
SELECT dgen.wait_idle('effects/wait');
SELECT server, args FROM effects.log WHERE server = 'wait' ORDER BY n;
TRUNCATE effects.log;

--
-- One that fails is tried again under the same id, holds up those behind it, and ends as a dead letter
--
SELECT setval('effects.runs', 1);
SELECT dgen.call('effects/f', '{"do": "SELECT dgen.after_commit(''effects.note'', ''{\"do\": \"SELECT 1 / 0\"}'')"}'),
  dgen.call('effects/f', '{"n": 1}') IS NOT NULL;
SELECT dgen.wait_idle('effects/f');
SELECT server, kind, message -> 'args' AS args, attempts, sqlstate, error ->> 'message' AS message FROM dgen.dead_letters;
SELECT server, args FROM effects.log;
SELECT last_value FROM effects.runs;
-- neither server nor module is the worse for it
SELECT failing, suspended_at FROM dgen.servers WHERE server = 'effects/f';
SELECT suspended_by FROM dgen.modules WHERE module = 'effects';
SELECT count(*) FROM dgen.messages WHERE server = 'effects/f';
TRUNCATE effects.log;
SELECT dgen.requeue(id, message || '{"args": {"mended": true}}') FROM dgen.dead_letters;
SELECT dgen.wait_idle('effects/f');
SELECT server, args FROM effects.log;
TRUNCATE effects.log;
-- directives: retry_after counts no attempt, reject gives up
SELECT setval('effects.runs', 1);
CREATE FUNCTION effects.patient(args jsonb, effect_id bigint) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  IF nextval('effects.runs') < 8 THEN
    PERFORM dgen.retry_after('5 ms');
  ELSE
    PERFORM dgen.reject('no more');
  END IF;
END $$;
SELECT dgen.call('effects/f', '{"do": "SELECT dgen.after_commit(''effects.patient'')"}');
SELECT dgen.wait_idle('effects/f');
SELECT last_value FROM effects.runs;
SELECT server, attempts, sqlstate, error ->> 'message' AS message FROM dgen.dead_letters;
SELECT dgen.purge('effects');
SELECT dgen.call('effects/f', '{"do": "SELECT dgen.after_commit(''effects.note'', ''{\"do\": \"SELECT dgen.exit(''''x'''')\"}'')"}');
SELECT dgen.wait_idle('effects/f');
SELECT sqlstate, error ->> 'message' AS message FROM dgen.dead_letters;
SELECT dgen.purge('effects');
-- a time limit of its own
SELECT dgen.alter_module('effects', work_timeout => '50 ms', max_attempts => 1) -> 'created';
SELECT dgen.call('effects/f', '{"do": "SELECT dgen.after_commit(''effects.note'', ''{\"do\": \"SELECT pg_sleep(60)\"}'')"}');
SELECT dgen.wait_idle('effects/f');
SELECT sqlstate, error ->> 'message' AS message, error ->> 'detail' AS detail, error ->> 'hint' AS hint FROM dgen.dead_letters;
SELECT dgen.purge('effects');
SELECT dgen.alter_module('effects', work_timeout => '1 min', max_attempts => 3) -> 'created';

--
-- A function that is missing holds its stream, and no attempts are counted
--
CREATE FUNCTION effects.late(args jsonb) RETURNS void LANGUAGE sql AS 'SELECT';
BEGIN;
SELECT dgen.invoke('effects/g', '{"do": "SELECT dgen.after_commit(''effects.late'')"}');
DROP FUNCTION effects.late;
COMMIT;
SELECT pg_temp.until($$EXISTS (SELECT FROM dgen.messages WHERE server = 'effects/g' AND status = 'retrying')$$);
SELECT kind, attempts, last_error ->> 'message' AS error FROM dgen.messages WHERE server = 'effects/g';
CREATE FUNCTION effects.late(args jsonb) RETURNS void LANGUAGE sql AS 'SELECT effects.note(''"at last"'', 0)';
SELECT dgen.wait_idle('effects/g');
SELECT args FROM effects.log WHERE server = 'g';

--
-- A module that is suspended has no effects meanwhile
--
TRUNCATE effects.log;
SELECT dgen.suspend(module => 'effects');
BEGIN;
SELECT dgen.resume(module => 'effects');
SELECT dgen.invoke('effects/h', '{"n": 1}') IS NOT NULL;
SELECT dgen.suspend(module => 'effects');
COMMIT;
SELECT dgen.wait_idle('effects/h', timeout => '100 ms');
SELECT dgen.resume(module => 'effects');
SELECT dgen.wait_idle('effects/h');
SELECT server, args FROM effects.log;

--
-- Calls from an effect are calls of their own; what it sends goes with its commit
--
TRUNCATE effects.log;
SELECT dgen.call('effects/i', '{"do": "SELECT dgen.after_commit(''effects.note'', ''{\"do\": \"SELECT dgen.call(''''effects/j'''', ''''{}''''); SELECT 1 / 0\"}'')"}');
SELECT dgen.wait_idle('effects/i');
SELECT dgen.state('effects/j');
SELECT dgen.purge('effects');
SELECT dgen.call('effects/i', '{"do": "SELECT dgen.after_commit(''effects.note'', ''{\"do\": \"SELECT dgen.call(''''effects/i'''', ''''{}'''')\"}'')"}');
SELECT dgen.wait_idle('effects/i');
SELECT sqlstate, error ->> 'message' AS message, error ->> 'hint' AS hint FROM dgen.dead_letters;
SELECT dgen.purge('effects');
SELECT dgen.call('effects/i', '{"do": "SELECT dgen.after_commit(''effects.note'', ''{\"do\": \"SELECT dgen.cast(''''effects/i'''', ''''{\\\"do\\\": \\\"SELECT effects.note(''''''''{}'''''''', 0)\\\"}'''')\"}'')"}');
SELECT dgen.wait_idle('effects/i');
SELECT server, id = 0 AS by_cast FROM effects.log ORDER BY n;

--
-- cancel, discard, delete, drop_module
--
SELECT pg_advisory_lock(4711);
SELECT dgen.call('effects/k', '{"do": "SELECT dgen.after_commit(''effects.note'', ''{\"do\": \"SELECT pg_advisory_xact_lock(4711)\"}'')"}');
CREATE TEMP TABLE ids AS SELECT dgen.invoke('effects/k', '{"n": 1}')::bigint AS id UNION ALL SELECT dgen.invoke('effects/k', '{"n": 1}')::bigint;
SELECT dgen.message_status(id), dgen.cancel(id), dgen.message_status(id) FROM ids WHERE id = (SELECT min(id) FROM ids);
SELECT dgen.discard(max(id)) FROM ids;
SELECT count(*) FROM dgen.messages WHERE server = 'effects/k';
SELECT pg_advisory_unlock(4711);
SELECT dgen.wait_idle('effects/k');
SELECT dgen.alter_module('effects', backoff_initial => '10 s', backoff_max => '10 s') -> 'created';
SELECT dgen.call('effects/k', '{"do": "SELECT dgen.after_commit(''effects.note'', ''{\"do\": \"SELECT 1 / 0\"}'')"}');
SELECT pg_temp.until($$EXISTS (SELECT FROM dgen.messages WHERE server = 'effects/k' AND status = 'retrying')$$);
SELECT dgen.delete('effects/k');
SELECT count(*) FROM dgen.messages WHERE server = 'effects/k';
RESET ROLE;
SELECT count(*) FROM dgen.attempt WHERE server LIKE '%effects/%';
SET ROLE regress_dgen_effects;
SELECT dgen.call('effects/k', '{"do": "SELECT dgen.after_commit(''effects.note'', ''{\"do\": \"SELECT 1 / 0\"}'')"}');
SELECT pg_temp.until($$EXISTS (SELECT FROM dgen.messages WHERE server = 'effects/k' AND status = 'retrying')$$);
-- with retry => skip others pass it
SELECT dgen.alter_module('effects', retry => 'skip') -> 'created';
TRUNCATE effects.log;
SELECT dgen.invoke('effects/k', '{"n": 2}') IS NOT NULL;
SELECT pg_temp.until($$(SELECT count(*) = 2 FROM effects.log)$$, 5);
SELECT status, count(*) FROM dgen.messages WHERE server = 'effects/k' GROUP BY status;
SELECT dgen.alter_module('effects', retry => 'block') -> 'created';

--
-- Who may promise what
--
SELECT pg_temp.try($$SELECT dgen.after_commit('effects.note', '{}')$$);
SELECT pg_temp.error($$SELECT dgen.query('effects/a', '{}')$$);
SELECT pg_temp.try($$SELECT dgen.call('effects/a', '{"do": "SELECT dgen.after_commit(NULL)"}')$$);
SELECT pg_temp.try($$SELECT dgen.call('effects/a', '{"do": "SELECT dgen.after_commit(''effects.handle_call'')"}')$$);
SELECT pg_temp.try($$SELECT dgen.call('effects/a', '{"do": "SELECT dgen.after_commit(''pg_catalog.jsonb_object_keys'')"}')$$);
SELECT pg_temp.error($$SELECT dgen.call('effects/a', '{"do": "SELECT dgen.after_commit(''effects.nothing'')"}')$$);
RESET ROLE;
CREATE SCHEMA others;
GRANT USAGE ON SCHEMA others TO PUBLIC;
CREATE FUNCTION others.hidden(args jsonb) RETURNS void LANGUAGE sql AS 'SELECT';
REVOKE ALL ON FUNCTION others.hidden FROM PUBLIC;
ALTER FUNCTION others.hidden OWNER TO regress_dgen_other;
SELECT pg_temp.try($$SELECT dgen.call('effects/a', '{"do": "SELECT dgen.after_commit(''others.hidden'')"}')$$);
-- the code of another role cannot have things run as the module's owner
CREATE FUNCTION others.forge() RETURNS bigint LANGUAGE sql SECURITY DEFINER AS $$
  SELECT dgen.after_commit('effects.note', '{}') $$;
ALTER FUNCTION others.forge OWNER TO regress_dgen_other;
GRANT USAGE ON SCHEMA effects TO regress_dgen_other;
SELECT pg_temp.try($$SELECT dgen.call('effects/a', '{"do": "SELECT others.forge()"}')$$);
-- rights are looked at again when it runs
GRANT EXECUTE ON FUNCTION others.hidden TO regress_dgen_effects;
BEGIN;
SELECT dgen.invoke('effects/l', '{"do": "SELECT dgen.after_commit(''others.hidden'')"}');
REVOKE EXECUTE ON FUNCTION others.hidden FROM regress_dgen_effects;
COMMIT;
SELECT pg_temp.until($$EXISTS (SELECT FROM dgen.messages WHERE server = 'effects/l' AND status = 'retrying')$$);
SELECT last_error ->> 'message' FROM dgen.messages WHERE server = 'effects/l';

SET client_min_messages = error;
SELECT pg_temp.error($$SELECT dgen.drop_module('effects')$$);
SELECT dgen.drop_module('effects', "cascade" => true);
SELECT count(*) FROM dgen.attempt WHERE server LIKE '%effects/%';
SELECT count(*) FROM dgen.message WHERE server LIKE '%effects/%';
DROP SCHEMA effects, others CASCADE;
DROP TABLE ids;
DROP ROLE regress_dgen_effects, regress_dgen_other;
