--
-- The versions of a state: history, state_at, diff, rollback.
--
\getenv dir PG_ABS_SRCDIR
\i :dir/sql/helpers.psql
CREATE ROLE regress_dgen_history LOGIN;
CREATE ROLE regress_dgen_historian;
CREATE ROLE regress_dgen_history_stranger;
CREATE SCHEMA history AUTHORIZATION regress_dgen_history;

-- how the rows of a server lead back
CREATE FUNCTION pg_temp.stored(key text) RETURNS TABLE (version bigint, kind text, undo jsonb, before jsonb, good bigint)
  LANGUAGE sql SECURITY DEFINER AS $$
  SELECT version, kind, undo, before, good FROM dgen.history WHERE server = 'history/' || key ORDER BY version $$;

-- without ids and times, which differ
CREATE FUNCTION pg_temp.versions(key text, after_version bigint DEFAULT NULL, max integer DEFAULT 100)
  RETURNS SETOF text LANGUAGE sql AS $$
  SELECT concat_ws(' ', version, incarnation, coalesce(kind, '-'), CASE WHEN message_id > 0 THEN 'message' END,
    CASE WHEN sender LIKE 'history/%' THEN sender WHEN sender IS NOT NULL THEN 'session' END, sender_role, context,
    'from ' || from_version, CASE WHEN good THEN 'good' END, 'size ' || size, patch)
  FROM dgen.history('history/' || key, after_version, max) $$;

SET ROLE regress_dgen_history;
CREATE FUNCTION history.init(args jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT coalesce(nullif(args, 'null'), '{"n": 0}') $$;
-- what is in the request is put into the state; "fail", "exit"
CREATE FUNCTION history.handle_call(request jsonb, INOUT state jsonb, OUT reply jsonb) LANGUAGE plpgsql AS $$
BEGIN
  state := state || (request - 'fail' - 'exit');
  reply := state;
  IF request ? 'fail' THEN
    RAISE EXCEPTION 'failed';
  ELSIF request ? 'exit' THEN
    PERFORM dgen.exit('exit');
  END IF;
END $$;
CREATE FUNCTION history.handle_cast(message jsonb, state jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT state || message $$;
CREATE FUNCTION history.handle_info(message jsonb, state jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT state || message $$;
CREATE FUNCTION history.validate(state jsonb) RETURNS boolean LANGUAGE sql AS $$ SELECT NOT state ? 'invalid' OR state ? 'anyhow' $$;
SELECT dgen.create_module('history', history => '100', invoke_isolation => 'any', max_attempts => 1, breaker => 0,
  readers => 'regress_dgen_historian') -> 'created';
SELECT history FROM dgen.modules WHERE module = 'history';

--
-- Each activation that changes the state makes a version
--
SELECT dgen.call('history/a', '{"n": 1}');
SELECT dgen.call('history/a', '{"m": "x"}');
SET dgen.context = '{"tenant": 7}';
SELECT dgen.cast('history/a', '{"n": 2}') > 0, dgen.send('history/a', '{"n": 3}') > 0;
RESET dgen.context;
SELECT dgen.wait_idle('history/a');
SELECT dgen.send_request('history/a', '{"n": 4}') AS dgen_request \gset
SELECT dgen.wait_response(:dgen_request, '10 s');
SELECT dgen.invoke('history/a', '{"n": 5}');
SELECT dgen.replace_state('history/a', '{"n": 6, "by": "hand"}');
SELECT pg_temp.versions('a');
-- what changes nothing makes none, but says that the last one is good
SELECT dgen.call('history/a', '{}');
SELECT pg_temp.versions('a', 8);
-- behind the last there is none
SELECT count(*) FROM dgen.history('history/a', 9223372036854775807);
-- in a document it is read by the snapshot that the state is read by
SELECT dgen.call('history/doc', '{"n": 1}'), dgen.call('history/doc', '{"n": 2}');
SELECT n, d -> 'version' AS version, d -> 'history' -> -1 -> 'version' AS last
FROM (SELECT dgen.call('history/doc', '{"n": 3}') AS n, dgen.export('history/doc', false, true) AS d OFFSET 0) x;
-- one that fails makes none
SELECT pg_temp.error($$SELECT dgen.call('history/a', '{"n": 7, "fail": true}')$$);
SELECT dgen.start('history/b', '{"b": [1, 2, 3]}');
SELECT version, kind, patch FROM dgen.history('history/b');
-- messages that one batch handles
SELECT dgen.suspend('history/b');
SELECT count(dgen.cast('history/b', jsonb_build_object('n', i))) FROM generate_series(1, 20) i;
SELECT dgen.resume('history/b');
SELECT dgen.wait_idle('history/b');
SELECT count(*), min(version), max(version), count(DISTINCT message_id), bool_and(dgen.state_at('history/b', version) ->> 'n' = (version - 1)::text)
FROM dgen.history('history/b') WHERE kind = 'cast';
-- times grow with versions
SELECT bool_and(at >= before) FROM (SELECT at, lag(at, 1, at) OVER (ORDER BY version) AS before FROM dgen.history('history/b')) h;

--
-- Reading: state_at, diff, pages
--
SELECT v, dgen.state_at('history/a', v) FROM generate_series(1, 8) v;
SELECT dgen.diff('history/a', 1), dgen.diff('history/a', 2, 6), dgen.diff('history/a', 6, 2), dgen.diff('history/a', 8);
SELECT bool_and(dgen.state_at('history/a', at => at) = dgen.state_at('history/a', version)) FROM dgen.history('history/a');
SELECT dgen.state_at('history/a', at => 'infinity') = dgen.state('history/a'), dgen.state_at('history/a', at => now()) = dgen.state('history/a');
SELECT h.version, dgen.state_at('history/a', at => h.at - '1 us'::interval) = dgen.state_at('history/a', h.version - 1)
FROM dgen.history('history/a') h WHERE version IN (2, 5);
SELECT array_agg(version) FROM dgen.history('history/a', max => 3);
SELECT array_agg(version) FROM dgen.history('history/a', 0, 3);
SELECT array_agg(version) FROM dgen.history('history/a', 5);
SELECT array_agg(version) FROM dgen.history('history/a', -5, NULL);
SELECT array_agg(version) FROM dgen.history('history/a', 8);
SELECT pg_temp.try(s) FROM unnest(ARRAY[
  $$SELECT dgen.state_at('history/a', 9)$$,
  $$SELECT dgen.state_at('history/a', 0)$$,
  $$SELECT dgen.state_at('history/a', -1)$$,
  $$SELECT dgen.state_at('history/a')$$,
  $$SELECT dgen.state_at('history/a', 1, now())$$,
  $$SELECT regexp_replace(pg_temp.try('SELECT dgen.state_at(''history/a'', at => ''2001-01-01'')'), 'from [^\n]*2001[^\n]*', 'from 2001')$$,
  $$SELECT dgen.state_at('history/nobody', 1)$$,
  $$SELECT dgen.diff('history/nobody', 1)$$,
  $$SELECT dgen.history('history/nobody')$$,
  $$SELECT dgen.history('regress_dgen_nowhere/nobody')$$,
  $$SELECT dgen.diff('history/a', NULL)$$,
  $$SELECT dgen.diff('history/a', 1, 9)$$,
  $$SELECT dgen.history('history/a', 1, 0)$$]) s;

--
-- Rollback
--
SELECT dgen.rollback('history/a', 2);
SELECT dgen.state('history/a');
SELECT pg_temp.versions('a', 8);
-- nothing to do: it is that already
SELECT dgen.rollback('history/a', 2), dgen.rollback('history/a', 9);
-- by default to the last good version: nothing has run since the rollback
SELECT dgen.rollback('history/a');
SELECT pg_temp.versions('a', 9);
-- one after which something ran is good, the present one is not a step back
SELECT dgen.call('history/a', '{"bad": 1}'), dgen.call('history/a', '{}');
SELECT dgen.rollback('history/a');
SELECT pg_temp.versions('a', 10);
SELECT version, good FROM pg_temp.stored('a') WHERE version > 8;
SELECT pg_temp.try(s) FROM unnest(ARRAY[
  $$SELECT dgen.rollback('history/a', 1, 5)$$,
  $$SELECT dgen.rollback('history/a', 99)$$,
  $$SELECT dgen.rollback('history/a', 0)$$,
  $$SELECT dgen.rollback('history/nobody')$$]) s;
SELECT dgen.rollback('history/a', 1, 12);
-- what validate refuses now
SELECT dgen.call('history/v', '{"invalid": true, "anyhow": true}'), dgen.call('history/v', '{"n": 2}');
CREATE OR REPLACE FUNCTION history.validate(state jsonb) RETURNS boolean LANGUAGE sql AS $$ SELECT NOT state ? 'invalid' $$;
SELECT dgen.replace_state('history/v', '{"n": 3}');
SELECT pg_temp.error($$SELECT dgen.rollback('history/v', 2)$$);
SELECT dgen.rollback('history/v', 1), dgen.state('history/v');
-- a suspended server is mended like that
SELECT dgen.suspend('history/v');
SELECT dgen.rollback('history/v', 4), dgen.state('history/v');
SELECT dgen.resume('history/v');
-- savepoints and transactions that roll back
BEGIN;
SELECT dgen.rollback('history/v', 1);
SAVEPOINT a;
SELECT dgen.rollback('history/v', 4);
SELECT dgen.invoke('history/v', '{"undone": true}');
SELECT array_agg(version || ' ' || kind) FROM dgen.history('history/v', 4);
ROLLBACK TO a;
SELECT array_agg(version || ' ' || kind) FROM dgen.history('history/v', 4);
SELECT dgen.invoke('history/v', '{"after": true}');
SELECT dgen.state_at('history/v', 6), dgen.state_at('history/v', 7), dgen.state_at('history/v', 8);
ROLLBACK;
SELECT array_agg(version || ' ' || kind) FROM dgen.history('history/v', 4);
-- in a handler: of another server, and of one that its own batch has in memory
CREATE FUNCTION history.handle_continue(message jsonb, state jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT state $$;
CREATE OR REPLACE FUNCTION history.handle_cast(message jsonb, INOUT state jsonb) LANGUAGE plpgsql AS $$
BEGIN
  IF message ? 'back' THEN
    -- servers are handled in any order: not before the other one has come so far
    IF message ? 'once' AND NOT EXISTS (SELECT FROM dgen.servers s
                                        WHERE s.server = message ->> 'back' AND s.state ? (message ->> 'once')) THEN
      PERFORM dgen.retry_after('10 ms');
      RETURN;
    END IF;
    BEGIN
      PERFORM dgen.rollback(message ->> 'back', 1);
      RAISE EXCEPTION 'undo';
    EXCEPTION WHEN raise_exception THEN
      NULL;
    END;
    state := state || jsonb_build_object('was', dgen.state(message ->> 'back'), 'now', dgen.rollback(message ->> 'back', (message ->> 'to')::bigint));
  ELSE
    state := state || message;
  END IF;
END $$;
SELECT dgen.suspend(module => 'history');
SELECT dgen.cast('history/x', '{"n": 1}') > 0, dgen.cast('history/x', '{"n": 2}') > 0, dgen.cast('history/y', '{"n": 1}') > 0,
  dgen.cast('history/y', '{"back": "history/x", "to": 2, "once": "m"}') > 0, dgen.cast('history/x', '{"m": 3}') > 0;
SELECT dgen.resume(module => 'history');
SELECT dgen.wait_idle(module => 'history');
SELECT dgen.state('history/y');
SELECT version, kind, sender, dgen.state_at('history/x', version) FROM dgen.history('history/x') WHERE kind = 'rollback';
SELECT pg_temp.error($$SELECT dgen.try('history', 'handle_cast', '{"back": "history/try", "to": 1}', '{}')$$);

--
-- Who may see it
--
RESET ROLE;
SET ROLE regress_dgen_historian;
SELECT count(*) > 0 FROM dgen.history('history/a');
SELECT dgen.state_at('history/a', (SELECT max(version) FROM dgen.history('history/a'))) IS NOT NULL, dgen.diff('history/a', 13) IS NULL;
SELECT pg_temp.error($$SELECT dgen.rollback('history/a', 1)$$);
RESET ROLE;
SET ROLE regress_dgen_history_stranger;
SELECT pg_temp.error(s) FROM unnest(ARRAY[
  $$SELECT dgen.history('history/a')$$,
  $$SELECT dgen.history('history/nobody')$$,
  $$SELECT dgen.state_at('history/a', 1)$$,
  $$SELECT dgen.diff('history/a', 1)$$,
  $$SELECT dgen.rollback('history/a', 1)$$,
  $$SELECT FROM dgen.history$$]) s;
RESET ROLE;
SET ROLE regress_dgen_history;

--
-- What an activation goes on with is one of its own; so is a migration, and what
-- is gone back to is migrated as well
--
CREATE OR REPLACE FUNCTION history.handle_continue(message jsonb, state jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT state || message $$;
CREATE OR REPLACE FUNCTION history.handle_info(message jsonb, state jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
  PERFORM dgen.continue(message -> 'then');
  RETURN state || message;
END $$;
SELECT dgen.send('history/c', '{"n": 1, "then": {"m": 2}}') > 0;
SELECT dgen.wait_idle('history/c');
SELECT pg_temp.versions('c');
CREATE FUNCTION history.code_change(old_vsn text, state jsonb) RETURNS jsonb LANGUAGE sql AS $$
  SELECT state || jsonb_build_object('migrated from', coalesce(old_vsn, 'none')) $$;
SELECT dgen.alter_module('history', vsn => '2') -> 'module';
SELECT dgen.call('history/c', '{"n": 2}');
SELECT version, vsn, kind, patch FROM dgen.history('history/c', 3);
SELECT dgen.rollback('history/c', 1), dgen.state('history/c');
SELECT dgen.call('history/c', '{"n": 3}');
SELECT dgen.rollback('history/c', 5), dgen.state('history/c');
SELECT version, vsn, kind, from_version FROM dgen.history('history/c', 5);
SELECT dgen.alter_module('history', vsn => '3') -> 'module';
SELECT server, old_vsn FROM dgen.migrate('history') WHERE server = 'history/c';
SELECT version, vsn, kind, sender_role, patch FROM dgen.history('history/c', 8);
DROP FUNCTION history.code_change;
SELECT dgen.rollback('history/c', 1), dgen.state('history/c');
SELECT version, vsn, kind FROM dgen.history('history/c', 9);
SELECT dgen.alter_module('history', vsn => '') -> 'module';

--
-- Incarnations: all of them have one history, and init is no patch
--
SELECT dgen.call('history/i', '{"n": 1, "exit": true}');
SELECT dgen.call('history/i', '{"n": 5}');
SELECT dgen.stop('history/i');
SELECT pg_temp.error($$SELECT dgen.rollback('history/i', 1)$$), dgen.state_at('history/i', 2);
SELECT dgen.start('history/i', '{"third": true}');
SELECT pg_temp.versions('i');
-- a killed one has no state, which is a version too
SELECT dgen.kill('history/i');
SELECT pg_temp.versions('i', 4), dgen.state_at('history/i', 6) IS NULL, dgen.state_at('history/i', 5);
SELECT pg_temp.error($$SELECT dgen.state('history/i')$$), pg_temp.try($$SELECT dgen.diff('history/i', 5)$$);
SELECT dgen.suspend('history/i'), dgen.resume('history/i');
SELECT dgen.call('history/i', '{"again": true}');
SELECT pg_temp.versions('i', 5), dgen.state_at('history/i', 6) IS NULL;
SELECT v, dgen.state_at('history/i', v) FROM generate_series(1, 8) v;
SELECT pg_temp.try($$SELECT dgen.rollback('history/i', 6)$$);
SELECT dgen.rollback('history/i', 2), dgen.state('history/i');
SELECT version, undo IS NOT NULL AS undo, before, good FROM pg_temp.stored('i');
-- deleted, it leaves nothing
SELECT dgen.delete('history/i');
SELECT count(*) FROM pg_temp.stored('i');
SELECT pg_temp.error($$SELECT dgen.history('history/i')$$);
SELECT dgen.call('history/i', '{"n": 1}');
SELECT pg_temp.versions('i');
SELECT dgen.delete('history/i', tombstone => '1 h');
SELECT count(*) FROM pg_temp.stored('i');
SELECT pg_temp.error($$SELECT dgen.state_at('history/i', 1)$$);
SELECT dgen.start('history/i');
SELECT pg_temp.versions('i');
SELECT dgen.alter_module('history', on_stop => 'delete') -> 'module';
SELECT dgen.call('history/i', '{"exit": true}');
SELECT count(*) FROM pg_temp.stored('i');
SELECT dgen.call('history/i', '{"n": 7}');
SELECT pg_temp.versions('i');
SELECT dgen.alter_module('history', on_stop => 'keep') -> 'module';

--
-- How much is kept
--
SELECT dgen.alter_module('history', history => '3') -> 'module';
SELECT count(dgen.call('history/n', jsonb_build_object('n', i, 'text', repeat('x', 200)))) FROM generate_series(1, 30) i;
SELECT array_agg(version) FROM dgen.history('history/n');
SELECT dgen.state_at('history/n', 29) -> 'n', dgen.state_at('history/n', 30) -> 'n', dgen.state_at('history/n', 31) -> 'n';
SELECT pg_temp.try($$SELECT dgen.state_at('history/n', 28)$$);
SELECT pg_temp.error($$SELECT dgen.rollback('history/n', 28)$$);
SELECT count(*) <= 3 + 16 FROM pg_temp.stored('n');
-- the keeper takes the rest, also of those that do not change any more
SELECT pg_temp.until($$(SELECT count(*) = 3 FROM pg_temp.stored('n'))$$);
SELECT pg_temp.until($$(SELECT count(*) = 3 FROM pg_temp.stored('b'))$$);
SELECT v, dgen.state_at('history/n', v) -> 'n' FROM generate_series(29, 31) v;
-- more does not bring back what is gone
SELECT dgen.alter_module('history', history => '1000') -> 'module';
SELECT count(dgen.call('history/n', jsonb_build_object('n', i))) FROM generate_series(31, 40) i;
SELECT min(version), max(version), count(*) FROM dgen.history('history/n');
-- for a time
SELECT dgen.alter_module('history', history => '1 hour') -> 'module';
SELECT min(version), max(version), count(*) FROM dgen.history('history/n');
SELECT dgen.alter_module('history', history => 'PT1S') -> 'module';
SELECT pg_sleep(1.1);
SELECT min(version), max(version), count(*) FROM dgen.history('history/n');
SELECT pg_temp.error($$SELECT dgen.state_at('history/n', 40)$$), dgen.state_at('history/n', 41) -> 'n';
-- what was present in that time is there, though it was made before
BEGIN ISOLATION LEVEL READ COMMITTED;
SELECT dgen.invoke('history/n', '{"n": 41}') -> 'n';
SELECT array_agg(version), dgen.state_at('history/n', 41) -> 'n' FROM dgen.history('history/n');
COMMIT;
SELECT pg_sleep(1.1);
SELECT dgen.alter_module('history', history => '1 s') -> 'module';
SELECT pg_temp.until($$(SELECT count(*) = 1 FROM pg_temp.stored('n'))$$);

--
-- On and off
--
SELECT dgen.alter_module('history', history => 'off') -> 'module';
SELECT history FROM dgen.modules WHERE module = 'history';
SELECT pg_temp.try(s) FROM unnest(ARRAY[
  $$SELECT dgen.history('history/n')$$,
  $$SELECT dgen.state_at('history/n', 41)$$,
  $$SELECT dgen.diff('history/n', 41)$$,
  $$SELECT dgen.rollback('history/n', 41)$$]) s;
SELECT dgen.call('history/o', '{"n": 1}'), dgen.call('history/o', '{"n": 2}'), dgen.call('history/o', '{}');
SELECT count(*) FROM pg_temp.stored('o');
SELECT dgen.alter_module('history', history => '10') -> 'module';
-- nothing was written yet
SELECT pg_temp.versions('o'), dgen.state_at('history/o', 2);
SELECT dgen.state_at('history/o', 2), dgen.state_at('history/o', at => now());
SELECT pg_temp.error($$SELECT dgen.state_at('history/o', 1)$$), pg_temp.error($$SELECT dgen.rollback('history/o')$$);
-- who replaces the state is told, and what it was before
SELECT dgen.replace_state('history/o', '{"n": 3}');
SELECT pg_temp.versions('o'), dgen.diff('history/o', 2);
SELECT version, undo, before FROM pg_temp.stored('o');
SELECT dgen.call('history/o', '{"n": 4}');
-- off for a while: what was before that does not count
SELECT dgen.alter_module('history', history => '') -> 'module';
SELECT dgen.call('history/o', '{"n": 5}'), dgen.call('history/o', '{"n": 6}');
SELECT dgen.alter_module('history', history => '10') -> 'module';
SELECT dgen.call('history/o', '{"n": 7}');
SELECT pg_temp.versions('o');
SELECT pg_temp.error($$SELECT dgen.state_at('history/o', 4)$$), dgen.state_at('history/o', 6);
SELECT pg_temp.until($$(SELECT count(*) = 2 FROM pg_temp.stored('o'))$$);
-- off and on with nothing in between changes nothing, unless the keeper came
SELECT dgen.alter_module('history', history => 'off') -> 'module', dgen.alter_module('history', history => '10') -> 'module';
SELECT dgen.call('history/o', '{"n": 8}');
SELECT array_agg(version) FROM dgen.history('history/o');
SELECT dgen.alter_module('history', history => 'off') -> 'module';
SELECT pg_temp.until($$(SELECT count(*) = 0 FROM pg_temp.stored('o'))$$);
SELECT dgen.alter_module('history', history => '10') -> 'module';
SELECT array_agg(version), dgen.state_at('history/o', 8) FROM dgen.history('history/o');
SELECT dgen.call('history/o', '{"n": 9}');
SELECT array_agg(version), dgen.state_at('history/o', 9) FROM dgen.history('history/o');
-- a module whose servers keep no state
SELECT pg_temp.try($$SELECT dgen.alter_module('history', ephemeral => true)$$);

--
-- drop_module takes it along
--
RESET ROLE;
SELECT dgen.drop_module('history', cascade => true);
SELECT count(*) FROM dgen.history;
DROP SCHEMA history CASCADE;
DROP ROLE regress_dgen_history, regress_dgen_historian, regress_dgen_history_stranger;
