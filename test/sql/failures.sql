--
-- What fails: attempts, dead letters, faults of the environment, the breaker.
--
\getenv dir PG_ABS_SRCDIR
\i :dir/sql/helpers.psql
CREATE ROLE regress_dgen_failures LOGIN;
CREATE SCHEMA failures AUTHORIZATION regress_dgen_failures;
SET ROLE regress_dgen_failures;

-- runs what it is told, and logs what it has done; each run is counted, also those that fail
CREATE TABLE failures.log (n serial, server text, message jsonb);
CREATE SEQUENCE failures.runs;
CREATE FUNCTION failures.handle_cast(message jsonb, INOUT state jsonb) LANGUAGE plpgsql AS $$
BEGIN
  PERFORM nextval('failures.runs');
  INSERT INTO failures.log (server, message) VALUES (dgen.key(), message);
  IF message ? 'do' THEN
    EXECUTE message ->> 'do';
  END IF;
  state := state || jsonb_build_object('last', message);
END $$;
CREATE FUNCTION failures.handle_call(request jsonb, INOUT state jsonb, OUT reply jsonb) LANGUAGE plpgsql AS $$
BEGIN
  EXECUTE request ->> 'do';
  reply := state;
END $$;
CREATE FUNCTION failures.fail(code text DEFAULT 'FA001') RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  RAISE EXCEPTION 'no luck' USING ERRCODE = code, DETAIL = 'None at all.', HINT = 'Wait for better days.';
END $$;
SELECT dgen.create_module('failures', max_attempts => 3, backoff_initial => '5 ms', backoff_factor => 1.5,
  backoff_max => '50 ms', breaker => 0) -> 'created';
CREATE TEMP VIEW letters AS
  SELECT split_part(server, '/', 2) AS server, kind, priority, message, attempts, sqlstate, error - 'context' AS error
  FROM dgen.dead_letters WHERE server LIKE 'failures/%' ORDER BY server, id;

--
-- Attempts, and then a dead letter; what it did is undone
--
SELECT dgen.cast('failures/a', '{"do": "SELECT failures.fail()"}') > 0;
SELECT dgen.cast('failures/a', '"behind it"') > 0;
SELECT dgen.wait_idle('failures/a');
SELECT * FROM letters;
SELECT server, message FROM failures.log ORDER BY n;
SELECT last_value BETWEEN 4 AND 7 FROM failures.runs;
SELECT failing, state FROM dgen.servers WHERE server = 'failures/a';
SELECT error ->> 'context' FROM dgen.dead_letters WHERE server = 'failures/a';
-- a cast's own max_attempts
SELECT dgen.cast('failures/once', '{"do": "SELECT failures.fail()"}', max_attempts => 1) > 0,
  dgen.cast('failures/five', '{"do": "SELECT failures.fail()"}', max_attempts => 5) > 0;
SELECT dgen.wait_idle(module => 'failures');
SELECT server, attempts FROM letters WHERE server IN ('once', 'five');
SELECT dgen.purge('failures');

--
-- While it waits for its next attempt: what is seen, who waits, who may pass
--
SELECT dgen.alter_module('failures', backoff_initial => '10 s', backoff_max => '1 min') -> 'created';
SELECT dgen.cast('failures/b', '{"do": "SELECT failures.fail()"}') > 0;
SELECT dgen.cast('failures/b', '"behind it"') > 0;
SELECT pg_temp.until($$EXISTS (SELECT FROM dgen.messages WHERE server = 'failures/b' AND status = 'retrying')$$);
SELECT status, attempts, next_attempt_at > now(), message, last_error - 'context' FROM dgen.messages WHERE server = 'failures/b' ORDER BY id;
SELECT failing FROM dgen.servers WHERE server = 'failures/b';
SELECT pg_temp.error($$SELECT dgen.call('failures/b', '{"do": "SELECT 1"}', '100 ms')$$);
SELECT dgen.message_status(id) FROM dgen.messages WHERE server = 'failures/b' ORDER BY id;
-- discard lets the others go on
SELECT dgen.discard(min(id)) FROM dgen.messages WHERE server = 'failures/b';
SELECT dgen.wait_idle('failures/b');
SELECT dgen.call('failures/b', '{"do": "SELECT 1"}');
SELECT failing FROM dgen.servers WHERE server = 'failures/b';
-- it expires before its next attempt, and the call of its sender meets it first
SELECT dgen.cast('failures/sender', $$ {"do": "SELECT dgen.cast('failures/late', '{\"do\": \"SELECT failures.fail()\"}', expires => '1 s')"} $$) > 0;
SELECT pg_temp.until($$EXISTS (SELECT FROM dgen.messages WHERE server = 'failures/late' AND attempts = 1 AND expires_at < clock_timestamp())$$);
SELECT dgen.cast('failures/sender', $$ {"do": "SELECT dgen.call('failures/late', '{\"do\": \"SELECT 1\"}')"} $$) > 0;
SELECT dgen.wait_idle('failures/sender'), dgen.wait_idle('failures/late');
SELECT failing FROM dgen.servers WHERE server = 'failures/late';
-- retry => skip
SELECT dgen.alter_module('failures', retry => 'skip') -> 'created';
SELECT dgen.cast('failures/c', '{"do": "SELECT failures.fail()"}') AS id \gset
SELECT pg_temp.until($$EXISTS (SELECT FROM dgen.messages WHERE server = 'failures/c' AND status = 'retrying')$$);
SELECT dgen.cast('failures/c', '"passes"') > 0;
SELECT pg_temp.until($$EXISTS (SELECT FROM dgen.servers WHERE server = 'failures/c' AND state ->> 'last' = 'passes')$$);
SELECT dgen.call('failures/c', '{"do": "SELECT 1"}');
SELECT dgen.message_status(:id), dgen.cancel(:id), dgen.message_status(:id);
SELECT dgen.wait_idle('failures/c');
-- where a batch has room for one message only
SELECT dgen.alter_module('failures', batch_size => 1, backoff_initial => '1 min') -> 'created';
SELECT dgen.cast('failures/c1', '{"do": "SELECT failures.fail()"}') > 0;
SELECT pg_temp.until($$EXISTS (SELECT FROM dgen.messages WHERE server = 'failures/c1' AND status = 'retrying')$$);
SELECT dgen.cast('failures/c1', '"passes"') > 0;
SELECT pg_temp.until($$EXISTS (SELECT FROM dgen.servers WHERE server = 'failures/c1' AND state ->> 'last' = 'passes')$$, 5);
SELECT dgen.alter_module('failures', batch_size => 256) -> 'created';
-- in company with another that fails
SELECT dgen.suspend('failures/c1');
SELECT count(dgen.cast('failures/c1', message::jsonb, max_attempts => 1))
FROM unnest(ARRAY['"first"', '{"do": "SELECT failures.fail()"}', '"last"']) message;
SELECT dgen.resume('failures/c1');
SELECT pg_temp.until($$EXISTS (SELECT FROM dgen.servers WHERE server = 'failures/c1' AND state ->> 'last' = 'last')$$, 5);
SELECT message FROM failures.log WHERE server = 'c1' ORDER BY n;
SELECT attempts, message FROM dgen.messages WHERE server = 'failures/c1';
-- more than a batch holds, in number and in bytes
SELECT dgen.suspend('failures/c2');
SELECT count(dgen.cast('failures/c2', '{"do": "SELECT failures.fail()"}')) FROM generate_series(1, 300);
SELECT dgen.cast('failures/c2', jsonb_build_object('do', 'SELECT failures.fail()', 'text', repeat('x', 1500000))) > 0;
SELECT dgen.cast('failures/c2', '"passes"') > 0;
SELECT dgen.resume('failures/c2');
SELECT pg_temp.until($$EXISTS (SELECT FROM dgen.servers WHERE server = 'failures/c2' AND state ->> 'last' = 'passes')$$, 8);
SELECT status, count(*) FROM dgen.messages WHERE server = 'failures/c2' GROUP BY status;
-- and where nothing passes, other lanes go on
SELECT dgen.alter_module('failures', retry => 'block') -> 'created';
SELECT dgen.cast('failures/c3', jsonb_build_object('do', 'SELECT failures.fail()', 'text', repeat('x', 1500000)), priority => 1) > 0;
SELECT pg_temp.until($$EXISTS (SELECT FROM dgen.messages WHERE server = 'failures/c3' AND status = 'retrying')$$);
SELECT dgen.cast('failures/c3', '"of another lane"') > 0;
SELECT pg_temp.until($$EXISTS (SELECT FROM dgen.servers WHERE server = 'failures/c3' AND state ->> 'last' = 'of another lane')$$, 5);
SELECT count(dgen.discard(id)) FROM dgen.messages WHERE server LIKE 'failures/c_';
SELECT dgen.wait_idle(module => 'failures');
SELECT dgen.purge('failures');
SELECT dgen.alter_module('failures', backoff_initial => '5 ms', backoff_max => '50 ms') -> 'created';

--
-- Directives
--
SELECT dgen.cast('failures/d', '{"do": "SELECT dgen.reject(''not mine'')"}') > 0;
SELECT dgen.wait_idle('failures/d');
SELECT * FROM letters;
SELECT count(*) FROM failures.log WHERE server = 'd';
-- retry_after: not counted
CREATE TABLE failures.ready (since timestamptz);
CREATE FUNCTION failures.wait_for_it() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  IF NOT EXISTS (SELECT FROM failures.ready) THEN
    PERFORM dgen.retry_after('10 ms');
  END IF;
END $$;
SELECT setval('failures.runs', 1);
SELECT dgen.cast('failures/e', '{"do": "SELECT failures.wait_for_it()"}') > 0;
SELECT dgen.cast('failures/e', '"behind it"') > 0;
SELECT pg_temp.until($$(SELECT last_value > 10 FROM failures.runs)$$);
SELECT status, attempts, message FROM dgen.messages WHERE server = 'failures/e' ORDER BY id LIMIT 1;
INSERT INTO failures.ready VALUES (now());
SELECT dgen.wait_idle('failures/e');
SELECT message FROM failures.log WHERE server = 'e' ORDER BY n;
SELECT failing FROM dgen.servers WHERE server = 'failures/e';
SELECT pg_temp.error($$SELECT dgen.call('failures/e', '{"do": "SELECT dgen.retry_after(NULL)"}')$$);
SELECT dgen.cast('failures/e', '{"do": "SELECT dgen.retry_after(''-1 s'')"}') > 0;
SELECT dgen.cast('failures/e', '{"do": "SELECT dgen.noreply()"}') > 0;
SELECT dgen.wait_idle('failures/e');
SELECT server, attempts, sqlstate, error ->> 'message' FROM letters WHERE server = 'e';
SELECT dgen.purge('failures');
-- as a column: what the function would refuse is an error of the handler
CREATE FUNCTION failures.later(message jsonb, state jsonb, OUT retry_after interval) LANGUAGE sql AS $$ SELECT (message #>> '{}')::interval $$;
SELECT dgen.create_module('later', '{"handle_cast": "failures.later"}', schema_name => 'failures', max_attempts => 1) -> 'created';
SELECT dgen.cast('later/' || i, to_jsonb(i)) > 0 FROM unnest(ARRAY['-1 s', '106745000 days']) i;
SELECT dgen.wait_idle(module => 'later');
SELECT server, sqlstate, error ->> 'message' FROM dgen.dead_letters WHERE server LIKE 'later/%' ORDER BY id;
SELECT dgen.drop_module('later', "cascade" => true);

--
-- Requeue: to the old place, with attempts anew; edited; all; discard; purge
--
SELECT dgen.suspend('failures/f');
CREATE TABLE failures.mood (good boolean);
CREATE FUNCTION failures.by_mood() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  IF NOT EXISTS (SELECT FROM failures.mood) THEN
    PERFORM failures.fail();
  END IF;
END $$;
SELECT count(dgen.cast('failures/f', jsonb_build_object('i', i, 'do', 'SELECT failures.by_mood()'), priority => p))
FROM (VALUES (1, 0), (2, 0), (3, -1)) v(i, p);
SELECT dgen.resume('failures/f');
SELECT dgen.wait_idle('failures/f');
SELECT server, priority, message -> 'i', attempts FROM letters;
SELECT dgen.suspend('failures/f');
SELECT dgen.cast('failures/f', '"sent later"') > 0;
INSERT INTO failures.mood VALUES (true);
SELECT min(id) AS first, max(id) FILTER (WHERE priority = 0) AS second, max(id) AS third FROM dgen.dead_letters WHERE server = 'failures/f' \gset
BEGIN;
SELECT dgen.requeue(:first);
ROLLBACK;
SELECT dgen.message_status(:first);
SELECT dgen.requeue(:third), dgen.requeue(:first), dgen.requeue(:second, '"edited"');
SELECT dgen.message_status(:first), dgen.message_status(:second);
SELECT count(*) FROM letters;
SELECT status, attempts, message - 'do' FROM dgen.messages WHERE server = 'failures/f' AND jsonb_typeof(message) = 'object' ORDER BY id;
SELECT dgen.requeue(:first), dgen.requeue(0), dgen.discard(0);
SELECT dgen.resume('failures/f');
SELECT dgen.wait_idle('failures/f');
-- the third is of another lane, and so may come between any of these
SELECT coalesce(message -> 'i', message) FROM failures.log WHERE server = 'f' AND message -> 'i' IS DISTINCT FROM '3' ORDER BY n;
SELECT message -> 'i' FROM failures.log WHERE server = 'f' AND message -> 'i' = '3';
DELETE FROM failures.mood;
SELECT count(dgen.cast('failures/' || s, jsonb_build_object('i', i, 'do', 'SELECT failures.by_mood()')))
FROM generate_series(1, 3) i, unnest(ARRAY['g', 'h']) s;
SELECT dgen.wait_idle(module => 'failures');
SELECT server, message -> 'i' FROM letters;
SELECT dgen.discard(min(id)) FROM dgen.dead_letters WHERE server = 'failures/g';
INSERT INTO failures.mood VALUES (true);
SELECT dgen.requeue_all('failures/g');
SELECT dgen.requeue_all(module => 'failures');
SELECT dgen.requeue_all(module => 'failures');
SELECT dgen.wait_idle(module => 'failures');
SELECT server, message -> 'i' FROM failures.log WHERE server IN ('g', 'h') ORDER BY server, n;
DELETE FROM failures.mood;
SELECT dgen.cast('failures/i', '{"do": "SELECT failures.by_mood()"}') > 0;
SELECT dgen.wait_idle('failures/i');
SELECT dgen.purge('failures', '1 h'), dgen.purge('failures'), dgen.purge('failures');
SELECT f, pg_temp.error('SELECT dgen.' || f) FROM unnest(ARRAY['requeue(NULL)', 'discard(NULL)', 'purge(NULL)',
  'purge(''regress_dgen_nowhere'')', 'purge(''failures'', ''-1 s'')', 'requeue_all()', 'requeue_all(''failures/a'', ''failures'')',
  'requeue_all(module => ''regress_dgen_nowhere'')', 'requeue_all(''/'')']) f;

--
-- handle_dead_letter: in the same transaction; if it fails the letter is there all the same
--
CREATE FUNCTION failures.handle_dead_letter(message jsonb, attempts integer, error jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO failures.log (server, message) VALUES (dgen.key(), jsonb_build_object('dead', message, 'attempts', attempts,
    'error', error - 'context', 'kind', dgen.kind()));
  IF message ->> 'then' = 'fail' THEN
    PERFORM 1 / 0;
  ELSIF message ->> 'then' = 'cast' THEN
    PERFORM dgen.cast('failures/mourner', '"it is dead"');
  END IF;
END $$;
SELECT dgen.cast('failures/j', '{"do": "SELECT failures.fail()", "then": "cast"}') > 0;
SELECT dgen.cast('failures/k', '{"do": "SELECT failures.fail()", "then": "fail"}') > 0;
SELECT dgen.wait_idle(module => 'failures');
SELECT pg_temp.until($$EXISTS (SELECT FROM failures.log WHERE server = 'mourner')$$);
SELECT server, message FROM failures.log WHERE server IN ('j', 'k', 'mourner') ORDER BY server, n;
SELECT server, attempts, sqlstate, message ->> 'then' FROM letters;
SELECT dgen.purge('failures');
DROP FUNCTION failures.handle_dead_letter;

--
-- on_dead_letter => suspend
--
SELECT dgen.alter_module('failures', on_dead_letter => 'suspend') -> 'created';
SELECT dgen.cast('failures/l', '{"do": "SELECT failures.fail()"}') > 0;
SELECT dgen.cast('failures/l', '"behind it"') > 0;
SELECT pg_temp.until($$EXISTS (SELECT FROM dgen.servers WHERE server = 'failures/l' AND suspended_at IS NOT NULL)$$);
SELECT suspended_by FROM dgen.servers WHERE server = 'failures/l';
SELECT server, sqlstate FROM letters;
SELECT message FROM dgen.messages WHERE server = 'failures/l';
SELECT dgen.resume('failures/l');
SELECT dgen.wait_idle('failures/l');
SELECT dgen.state('failures/l');
SELECT dgen.alter_module('failures', on_dead_letter => 'continue') -> 'created';
SELECT dgen.purge('failures');

--
-- Faults of the environment hold the server, do not count, and heal
--
SELECT dgen.cast('failures/m', '{"do": "INSERT INTO failures.missing VALUES (1)"}') > 0;
SELECT dgen.cast('failures/m', '"behind it"') > 0;
SELECT pg_temp.until($$EXISTS (SELECT FROM dgen.messages WHERE server = 'failures/m' AND status = 'retrying')$$);
SELECT setval('failures.runs', 1);
SELECT pg_temp.until($$(SELECT last_value > 4 FROM failures.runs)$$);
SELECT status, attempts, last_error - 'context' FROM dgen.messages WHERE server = 'failures/m' ORDER BY id LIMIT 1;
SELECT count(*) FROM letters;
CREATE TABLE failures.missing (i integer);
SELECT dgen.wait_idle('failures/m', timeout => '20 s');
SELECT message FROM failures.log WHERE server = 'm' ORDER BY n;
SELECT failing FROM dgen.servers WHERE server = 'failures/m';
DROP TABLE failures.missing;
-- a call is answered at once, and holds nothing
SELECT pg_temp.error($$SELECT dgen.call('failures/m', '{"do": "INSERT INTO failures.missing VALUES (1)"}')$$);
SELECT dgen.call('failures/m', '{"do": "SELECT 1"}');
-- until hold_max
SELECT dgen.alter_module('failures', hold_max => '100 ms') -> 'created';
SELECT dgen.cast('failures/n', '{"do": "INSERT INTO failures.missing VALUES (1)"}') > 0;
SELECT dgen.wait_idle('failures/n', timeout => '20 s');
SELECT server, attempts, sqlstate FROM letters;
SELECT dgen.purge('failures');
SELECT dgen.alter_module('failures', hold_max => '1 h') -> 'created';

--
-- handler_timeout counts
--
SELECT dgen.alter_module('failures', handler_timeout => '50 ms') -> 'created';
SELECT dgen.cast('failures/o', '{"do": "SELECT pg_sleep(30)"}', max_attempts => 2) > 0;
SELECT dgen.wait_idle('failures/o', timeout => '20 s');
SELECT server, attempts, sqlstate FROM letters;
SELECT dgen.alter_module('failures', handler_timeout => '30 s') -> 'created';
SELECT dgen.purge('failures');

--
-- In company: one that fails does not take the others with it
--
SELECT dgen.suspend(module => 'failures');
SELECT count(dgen.cast('failures/p' || i % 5, jsonb_build_object('i', i) ||
  CASE WHEN i % 7 = 0 THEN '{"do": "SELECT failures.fail()"}' ELSE '{}' END::jsonb, max_attempts => 1)) FROM generate_series(1, 50) i;
SELECT dgen.resume(module => 'failures');
SELECT dgen.wait_idle(module => 'failures', timeout => '20 s');
SELECT server, array_agg(message ->> 'i' ORDER BY n) FROM failures.log WHERE server ~ 'p[0-9]' GROUP BY server ORDER BY server;
SELECT server, message -> 'i' FROM letters;
SELECT dgen.purge('failures');

--
-- The breaker: letters in a row, from different servers
--
SELECT dgen.alter_module('failures', breaker => 3, max_attempts => 1) -> 'created';
SELECT count(dgen.cast('failures/q', '{"do": "SELECT failures.fail()"}')) FROM generate_series(1, 5);
SELECT dgen.wait_idle('failures/q');
SELECT suspended_at FROM dgen.modules WHERE module = 'failures';
SELECT dgen.cast('failures/q', '"good"') > 0;
SELECT dgen.wait_idle('failures/q');
SELECT count(dgen.cast('failures/q' || i, '{"do": "SELECT failures.fail()"}')) FROM generate_series(1, 3) i;
SELECT pg_temp.until($$EXISTS (SELECT FROM dgen.modules WHERE module = 'failures' AND suspended_at IS NOT NULL)$$);
SELECT suspended_by, suspended_reason FROM dgen.modules WHERE module = 'failures';
SELECT dgen.cast('failures/q', '"waits"') > 0;
SELECT dgen.wait_idle('failures/q', timeout => '50 ms');
SELECT dgen.resume(module => 'failures');
SELECT dgen.wait_idle('failures/q');

SELECT dgen.drop_module('failures', true);
RESET ROLE;
SET client_min_messages = warning;
DROP VIEW letters;
DROP SCHEMA failures CASCADE;
DROP ROLE regress_dgen_failures;
