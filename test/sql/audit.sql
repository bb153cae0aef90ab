--
-- What is changed by hand is written down, and can be undone.
--
\getenv dir PG_ABS_SRCDIR
\i :dir/sql/helpers.psql
CREATE ROLE regress_dgen_audit LOGIN;
CREATE ROLE regress_dgen_audit_operator;
CREATE ROLE regress_dgen_audit_reader;
CREATE ROLE regress_dgen_audit_stranger;
CREATE SCHEMA audit AUTHORIZATION regress_dgen_audit;
-- the last row about a server or module, without ids and times
CREATE FUNCTION pg_temp.last(what text DEFAULT NULL, n integer DEFAULT 1) RETURNS SETOF text LANGUAGE sql AS $$
  SELECT * FROM (SELECT regexp_replace(concat_ws(' ', action, server, session_role = session_user, CASE WHEN "current_role" = session_user THEN 'superuser' ELSE "current_role" END, 'because ' || reason,
      'incarnation ' || incarnation, old_version || '->' || new_version, CASE WHEN message_id > 0 THEN 'message' END, 'n=' || affected,
      CASE WHEN undoes > 0 THEN 'undo' END, 'before ' || before::text, 'after ' || after::text), '"\d{4}-\d\d-\d\dT[^"]*"', '"<time>"', 'g')
    FROM dgen.audit_log WHERE module = 'audit' AND (server = what OR what IS NULL) ORDER BY id DESC LIMIT n) r $$;
CREATE FUNCTION pg_temp.id(what text) RETURNS bigint LANGUAGE sql AS $$
  SELECT max(id) FROM dgen.audit_log WHERE server = what OR module || '/' = what AND server IS NULL $$;
SELECT nspname AS temp FROM pg_namespace WHERE oid = pg_my_temp_schema() \gset
GRANT USAGE ON SCHEMA :temp TO PUBLIC;
SET ROLE regress_dgen_audit;
CREATE FUNCTION audit.handle_call(request jsonb, INOUT state jsonb, OUT reply jsonb) LANGUAGE plpgsql AS $$
BEGIN
  state := state || (request - 'do');
  reply := state;
  CASE request ->> 'do'
    WHEN 'stop' THEN PERFORM dgen.stop('audit/other');
    WHEN 'delete' THEN PERFORM dgen.delete('audit/other');
    WHEN 'replace' THEN PERFORM dgen.replace_state('audit/other', '{"by": "a handler"}');
    WHEN 'later' THEN PERFORM dgen.noreply(); reply := NULL; state := state || jsonb_build_object('from', dgen.from());
    ELSE NULL;
  END CASE;
END $$;
CREATE FUNCTION audit.handle_cast(message jsonb, INOUT state jsonb) LANGUAGE plpgsql AS $$
BEGIN
  IF message ? 'error' THEN
    RAISE EXCEPTION USING MESSAGE = 'of a cast', ERRCODE = coalesce(message ->> 'code', 'P0001');
  ELSIF message ? 'postpone' THEN
    PERFORM dgen.postpone();
    RETURN;
  ELSIF message ? 'timeout' THEN
    PERFORM dgen.timeout('1 h');
    RETURN;
  END IF;
  state := state || message;
END $$;
CREATE FUNCTION audit.format_status(state jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT state - 'secret' $$;
CREATE FUNCTION audit.format_message(message jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT message - 'secret' $$;
CREATE FUNCTION audit.validate(state jsonb) RETURNS boolean LANGUAGE sql AS $$ SELECT NOT state ? 'invalid' $$;
SELECT dgen.create_module('audit', history => '10', max_attempts => 1, breaker => 0, operators => 'regress_dgen_audit_operator',
  readers => 'regress_dgen_audit_reader', invoke_isolation => 'any') -> 'created';
SELECT dgen.call('audit/a', '{"n": 1}');
SELECT count(*) FROM dgen.audit_log WHERE module = 'audit';

--
-- States
--
SELECT dgen.replace_state('audit/a', '{"n": 2, "secret": "s"}');
SELECT pg_temp.last('audit/a');
SELECT dgen.undo(pg_temp.id('audit/a')) = pg_temp.id('audit/a');
SELECT pg_temp.last('audit/a'), dgen.state('audit/a');
-- and that
SELECT dgen.undo(pg_temp.id('audit/a'), reason => 'after all') > 0;
SELECT pg_temp.last('audit/a'), dgen.state('audit/a');
-- the same state is no change
SELECT dgen.replace_state('audit/a', '{"n": 2, "secret": "s"}');
SELECT count(*) FROM dgen.audit_log WHERE server = 'audit/a';
SELECT dgen.rollback('audit/a', 1);
SELECT pg_temp.last('audit/a'), pg_temp.id('audit/a') AS id \gset
-- the server has moved on
SELECT dgen.call('audit/a', '{"n": 3}');
SELECT regexp_replace(pg_temp.try(format('SELECT dgen.undo(%s)', :id)), 'change \d+', 'change <n>');
SELECT dgen.undo(:id, force => true) > 0;
SELECT dgen.state('audit/a');
-- what validate would not have
SELECT pg_temp.error($$SELECT dgen.replace_state('audit/a', '{"invalid": 1}')$$);
-- what is rolled back was not done
BEGIN;
SELECT dgen.replace_state('audit/a', '{"n": 99}') > 0;
ROLLBACK;
SELECT count(*) FROM dgen.audit_log WHERE server = 'audit/a';

--
-- The end of a server, and its return
--
SELECT dgen.register('audit.name', 'audit/a');
SELECT dgen.suspend('audit/a');
SELECT dgen.cast('audit/a', '{"waits": 1, "secret": "m"}') > 0, dgen.send('audit/a', '{"later": 1}', delay => '1 h') > 0;
SELECT dgen.delete('audit/a');
SELECT pg_temp.last('audit/a'), pg_temp.id('audit/a') AS id \gset
SELECT dgen.undo(:id) > 0;
SELECT pg_temp.last('audit/a');
SELECT status, suspended_by, dgen.whereis('audit.name') FROM dgen.servers WHERE server = 'audit/a';
SELECT kind, status, message FROM dgen.messages WHERE server = 'audit/a' ORDER BY id;
SELECT regexp_replace(pg_temp.error(format('SELECT dgen.undo(%s)', :id)), 'change \d+', 'change <n>');
SELECT dgen.resume('audit/a');
SELECT dgen.wait_idle('audit/a');
SELECT dgen.state('audit/a');
SELECT dgen.kill('audit/a', 'for a test');
SELECT pg_temp.last('audit/a');
SELECT dgen.undo(pg_temp.id('audit/a')) > 0;
SELECT dgen.state('audit/a'), status, incarnation FROM dgen.servers WHERE server = 'audit/a';
SELECT regexp_replace(pg_temp.try(format('SELECT dgen.undo(%s)', pg_temp.id('audit/a'))), 'change \d+', 'change <n>');
SELECT dgen.stop('audit/a');
SELECT pg_temp.id('audit/a') AS id \gset
SELECT dgen.start('audit/a') > 0;
SELECT regexp_replace(pg_temp.error(format('SELECT dgen.undo(%s, force => true)', :id)), 'change \d+', 'change <n>');
SELECT dgen.stop('audit/a');
SELECT dgen.undo(pg_temp.id('audit/a')) > 0;
SELECT status FROM dgen.servers WHERE server = 'audit/a';
-- import and clone
SELECT dgen.clone('audit/a', 'audit/copy', reason => 'to look at it') > 0;
SELECT pg_temp.last('audit/copy');
SELECT dgen.undo(pg_temp.id('audit/copy')) > 0;
SELECT count(*) FROM dgen.servers WHERE server = 'audit/copy';
SELECT dgen.replace_state('audit/a', '{"n": 5}') > 0;
SELECT dgen.import('audit/a', jsonb_set(dgen.export('audit/a'), '{state}', '{"n": 6}'), if_exists => 'replace') > 0;
SELECT pg_temp.last('audit/a');
SELECT dgen.undo(pg_temp.id('audit/a')) > 0;
SELECT dgen.state('audit/a');
SELECT dgen.clone('audit/a', 'audit/copy') > 0;
SELECT pg_temp.id('audit/copy') AS id \gset
SELECT dgen.call('audit/copy', '{"n": 7}');
SELECT regexp_replace(pg_temp.error(format('SELECT dgen.undo(%s)', :id)), 'change \d+', 'change <n>');

--
-- Suspension
--
SELECT dgen.suspend('audit/a', reason => 'night');
SELECT pg_temp.last('audit/a');
SELECT dgen.suspend('audit/a', reason => 'again is no change');
SELECT dgen.undo(pg_temp.id('audit/a')) > 0;
SELECT pg_temp.last('audit/a');
SELECT dgen.undo(pg_temp.id('audit/a')) > 0;
SELECT suspended_by FROM dgen.servers WHERE server = 'audit/a';
SELECT pg_temp.id('audit/a') AS id \gset
SELECT dgen.resume('audit/a');
SELECT regexp_replace(pg_temp.error(format('SELECT dgen.undo(%s)', :id)), 'change \d+', 'change <n>');
SELECT dgen.suspend(module => 'audit', reason => 'all of it');
SELECT pg_temp.last(), pg_temp.id('audit/') AS id \gset
SELECT dgen.undo(:id) > 0;
SELECT pg_temp.last();
SELECT suspended_at FROM dgen.modules WHERE module = 'audit';
SELECT regexp_replace(pg_temp.error(format('SELECT dgen.undo(%s)', :id)), 'change \d+', 'change <n>');
SELECT dgen.undo(pg_temp.id('audit/')) > 0;
SELECT suspended_by, suspended_reason FROM dgen.modules WHERE module = 'audit';
SELECT dgen.resume(module => 'audit');
-- a server whose key ends with a slash is no module
SELECT dgen.suspend('audit/a/'), dgen.resume('audit/a/');
SELECT dgen.undo(pg_temp.id('audit/a/')) > 0;
SELECT suspended_at IS NULL AS goes_on, (SELECT count(*) FROM dgen.servers WHERE server = 'audit/a/' AND suspended_at IS NOT NULL) AS servers
FROM dgen.modules WHERE module = 'audit';
SELECT dgen.delete('audit/a/');

--
-- Messages
--
SELECT dgen.suspend('audit/m');
SELECT dgen.cast('audit/m', '{"first": 1, "secret": "x"}') AS first, dgen.cast('audit/m', '{"second": 1}') AS second,
  dgen.send_request('audit/m', '{"third": 1}') AS third, dgen.cast('audit/m', '{"fourth": 1}', delay => '1 h') AS fourth \gset
SELECT dgen.discard(:first), dgen.discard(:third), dgen.discard(:fourth);
SELECT pg_temp.last('audit/m', 3);
SELECT dgen.undo(id) > 0 FROM (SELECT id FROM dgen.audit_log WHERE server = 'audit/m' AND action = 'discard' ORDER BY id OFFSET 0) a;
SELECT pg_temp.last('audit/m');
SELECT kind, status, id IN (:first, :second, :third, :fourth) AS old_id, message FROM dgen.messages WHERE server = 'audit/m' ORDER BY id;
SELECT regexp_replace(pg_temp.error(format('SELECT dgen.undo(%s)', min(id))), '\d+$|e \d+', '<n>') FROM dgen.audit_log WHERE server = 'audit/m' AND action = 'discard';
SELECT dgen.resume('audit/m');
SELECT dgen.wait_idle('audit/m');
SELECT dgen.state('audit/m'), dgen.wait_response(:third, '10 s');
-- postponed, dead, of a server that was stopped meanwhile
SELECT dgen.cast('audit/m', '{"postpone": 1}') AS id \gset
SELECT dgen.wait_idle('audit/m');
SELECT dgen.discard(:id);
SELECT dgen.undo(pg_temp.id('audit/m')) > 0;
SELECT dgen.cast('audit/m', '{"error": 1}') AS dead \gset
SELECT pg_temp.until($$(SELECT count(*) = 1 FROM dgen.dead_letters WHERE server = 'audit/m')$$);
SELECT status FROM dgen.messages WHERE id = :id;
SELECT dgen.discard(:dead);
SELECT pg_temp.last('audit/m');
SELECT dgen.undo(pg_temp.id('audit/m')) > 0;
SELECT kind, sqlstate, attempts, error ->> 'message' FROM dgen.dead_letters WHERE id = :dead;
SELECT dgen.discard(:id);
SELECT pg_temp.id('audit/m') AS id \gset
SELECT dgen.stop('audit/m'), dgen.start('audit/m') > 0;
SELECT regexp_replace(pg_temp.error(format('SELECT dgen.undo(%s)', :id)), 'change \d+', 'change <n>');
-- an idle timeout, which is no message to bring back
SELECT dgen.cast('audit/m', '{"timeout": 1}') > 0;
SELECT dgen.wait_idle('audit/m');
SELECT dgen.discard(id) FROM dgen.messages WHERE server = 'audit/m' AND kind = 'timeout';
SELECT regexp_replace(pg_temp.try(format('SELECT dgen.undo(%s)', pg_temp.id('audit/m'))), 'change \d+', 'change <n>');
-- letters: one, several, all
SELECT dgen.requeue(:dead, '{"error": 2}');
SELECT pg_temp.last('audit/m');
SELECT regexp_replace(pg_temp.try(format('SELECT dgen.undo(%s)', pg_temp.id('audit/m'))), 'change \d+', 'change <n>');
SELECT dgen.cast('audit/m', jsonb_build_object('error', i, 'code', CASE WHEN i % 2 = 0 THEN 'P0002' ELSE 'P0001' END)) > 0 FROM generate_series(3, 8) i;
SELECT pg_temp.until($$(SELECT count(*) = 7 FROM dgen.dead_letters WHERE server = 'audit/m')$$);
SELECT dgen.suspend('audit/m');
SELECT array_agg(id ORDER BY message ->> 'error' DESC) AS ids FROM dgen.dead_letters WHERE server = 'audit/m' AND (message ->> 'error')::integer > 5 \gset
SELECT dgen.requeue_all(ids => :'ids'), dgen.requeue_all(ids => :'ids'), dgen.requeue_all(ids => '{}');
SELECT array_agg(message ->> 'error' ORDER BY id) FROM dgen.messages WHERE server = 'audit/m';
SELECT dgen.requeue_all('audit/m', sqlstate => 'P0002');
SELECT array_agg(message ->> 'error' ORDER BY id) FROM dgen.messages WHERE server = 'audit/m';
SELECT pg_temp.last('audit/m');
SELECT pg_temp.try($$SELECT dgen.requeue_all('audit/m', ids => '{1}')$$);
SELECT pg_temp.error($$SELECT dgen.requeue_all(ids => '{1, null}')$$);
SELECT dgen.purge('audit');
SELECT pg_temp.last();
SELECT dgen.delete('audit/m');
-- an operator cancels what others have sent, and answers for them
SELECT dgen.suspend('audit/m');
SELECT dgen.cast('audit/m', '{"mine": 1}') AS id \gset
SELECT dgen.cancel(:id);
SELECT dgen.cast('audit/m', '{"others": 1}') AS id \gset
RESET ROLE;
SELECT dgen.cancel(:id);
SELECT pg_temp.last('audit/m');
SELECT dgen.undo(pg_temp.id('audit/m')) > 0;
SELECT sender_role, message FROM dgen.messages WHERE id = :id;
SET ROLE regress_dgen_audit;
SELECT dgen.resume('audit/m');
SELECT dgen.send_request('audit/m', '{"do": "later"}') AS request \gset
SELECT dgen.wait_idle('audit/m');
SELECT dgen.reply(dgen.state('audit/m') ->> 'from', '"by hand"');
SELECT pg_temp.last('audit/m');
SELECT dgen.wait_response(:request, '10 s');

--
-- What handlers do: as a matter of course, or not
--
SELECT dgen.start('audit/other') > 0;
SELECT dgen.call('audit/a', '{"do": "replace"}') IS NOT NULL;
SELECT pg_temp.last('audit/other');
SELECT sender FROM dgen.audit_log WHERE id = pg_temp.id('audit/other');
SELECT dgen.call('audit/a', '{"do": "stop"}') IS NOT NULL;
SELECT dgen.call('audit/a', '{"do": "delete"}') IS NOT NULL;
SELECT pg_temp.last('audit/other');

--
-- Who sees it, and who may undo
--
SELECT dgen.replace_state('audit/a', '{"n": 8, "secret": "t"}') > 0;
SELECT pg_temp.id('audit/a') AS id \gset
SET ROLE regress_dgen_audit_reader;
SELECT action, before, after FROM dgen.audit_log WHERE id = :id;
SELECT pg_temp.error(format('SELECT dgen.undo(%s)', :id));
SELECT pg_temp.error('SELECT * FROM dgen.audit');
SET ROLE regress_dgen_audit_stranger;
SELECT count(*) FROM dgen.audit_log;
SELECT regexp_replace(pg_temp.error(format('SELECT dgen.undo(%s)', :id)), 'change \d+', 'change <n>');
SET ROLE regress_dgen_audit_operator;
SET application_name = 'at night';
SELECT dgen.undo(:id) > 0;
SELECT session_role = session_user, "current_role", application_name, client, sender ~ '^[0-9a-f]+\.[0-9a-f]+$' FROM dgen.audit_log WHERE undoes = :id;
RESET application_name;
RESET ROLE;
SELECT pg_temp.try('SELECT dgen.undo(NULL)');
SELECT pg_temp.try('SELECT dgen.undo(-1)');
-- lastval() is the session's own
CREATE SEQUENCE audit.own;
SELECT nextval('audit.own');
SELECT dgen.replace_state('audit/a', '{"n": 9}') > 0;
SELECT lastval();

--
-- What is too large
--
SELECT dgen.replace_state('audit/a', jsonb_build_object('big', repeat('x', 2000000))) > 0;
SELECT dgen.replace_state('audit/a', jsonb_build_object('big', repeat('x', 2000000), 'n', 1)) > 0;
SELECT before, after FROM dgen.audit_log WHERE id = pg_temp.id('audit/a');
SELECT pg_temp.id('audit/a') AS id \gset
SELECT dgen.undo(:id) > 0;
SELECT dgen.state('audit/a') ? 'n';
SELECT dgen.delete('audit/a');
SELECT regexp_replace(pg_temp.try(format('SELECT dgen.undo(%s)', pg_temp.id('audit/a'))), 'change \d+', 'change <n>');
SELECT dgen.drop_module('audit', "cascade" => true);
SELECT count(*) FROM dgen.audit WHERE server LIKE 'audit%';
SET client_min_messages = warning;
DROP SCHEMA audit CASCADE;
DROP ROLE regress_dgen_audit, regress_dgen_audit_operator, regress_dgen_audit_reader, regress_dgen_audit_stranger;
