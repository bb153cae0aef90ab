--
-- Timers: idle timeouts.
--
\getenv dir PG_ABS_SRCDIR
\i :dir/sql/helpers.psql
CREATE ROLE regress_dgen_timers LOGIN;
CREATE SCHEMA timers AUTHORIZATION regress_dgen_timers;
SET ROLE regress_dgen_timers;

-- All that comes is logged.  A message is an SQL expression to evaluate, or an
-- object with the timeout to set, by column or by function.
CREATE TABLE timers.log (n serial, server text, kind text, message jsonb);
CREATE FUNCTION timers.act(message jsonb, OUT timeout interval, OUT reply jsonb) LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO timers.log (server, kind, message) VALUES (dgen.self(), dgen.kind(), message);
  IF jsonb_typeof(message) = 'array' THEN
    EXECUTE 'SELECT to_jsonb((' || (message ->> 0) || ')::text)' INTO reply;
  ELSIF message ? 'say' THEN
    PERFORM dgen.timeout((message ->> 'say')::interval);
  ELSIF message ? 'timeout' THEN
    timeout := message ->> 'timeout';
  END IF;
END $$;
CREATE FUNCTION timers.init(args jsonb, OUT state jsonb, OUT timeout interval) LANGUAGE plpgsql AS $$
BEGIN
  state := '{}';
  timeout := args ->> 'timeout';
END $$;
CREATE FUNCTION timers.handle_call(request jsonb, INOUT state jsonb, OUT reply jsonb, OUT timeout interval)
  LANGUAGE plpgsql AS $$ DECLARE r record; BEGIN r := timers.act(request); reply := r.reply; timeout := r.timeout; END $$;
CREATE FUNCTION timers.handle_cast(message jsonb, INOUT state jsonb, OUT timeout interval)
  LANGUAGE plpgsql AS $$ BEGIN timeout := (timers.act(message)).timeout; END $$;
CREATE FUNCTION timers.handle_info(message jsonb, INOUT state jsonb, OUT timeout interval)
  LANGUAGE plpgsql AS $$
BEGIN
  IF message = '"raise"' OR (dgen.kind() = 'timeout' AND dgen.key() = 'raises') THEN
    RAISE 'as was asked for';
  END IF;
  timeout := (timers.act(message)).timeout;
END $$;
SELECT dgen.create_module('timers', backoff_initial => '20 ms', backoff_factor => 1, max_attempts => 2) -> 'created';
RESET ROLE;
-- what was handled since the last look, each server's in its order
CREATE FUNCTION pg_temp.handled() RETURNS SETOF text LANGUAGE plpgsql AS $$
BEGIN
  PERFORM dgen.wait_idle(module => 'timers', timeout => '20 s');
  RETURN QUERY WITH gone AS (DELETE FROM timers.log RETURNING *)
    SELECT concat_ws(' ', split_part(server, '/', 2), kind, message) FROM gone ORDER BY server, n;
END $$;
-- until the server's timeout has come
CREATE FUNCTION pg_temp.timed_out(key text) RETURNS boolean LANGUAGE sql AS $$
  SELECT pg_temp.until(format('EXISTS (SELECT FROM timers.log WHERE kind = %L AND server = %L)', 'timeout', 'timers/' || key)) $$;
-- until nothing is left that would wake a server
CREATE FUNCTION pg_temp.nothing_due() RETURNS boolean LANGUAGE sql AS $$
  SELECT pg_temp.until('NOT EXISTS (SELECT FROM dgen.delayed)') $$;
-- how a server's timeout stands
CREATE FUNCTION pg_temp.timeout(key text) RETURNS text LANGUAGE sql AS $$
  SELECT concat_ws(' ', CASE WHEN timeout_at IS NULL THEN 'none' WHEN isfinite(timeout_at) THEN 'set' ELSE 'when drained' END,
    CASE WHEN timeout_id IS NULL THEN 'no alarm' WHEN timeout_due < timeout_at THEN 'early alarm' ELSE 'alarm' END)
  FROM dgen.server WHERE server = 'timers/' || key $$;

--
-- by column and by function, of casts, calls and infos; and of the timeout itself
--
SELECT dgen.cast('timers/a', '{"timeout": "20 ms"}') > 0;
SELECT pg_temp.timed_out('a');
SELECT pg_temp.handled();
SELECT dgen.cast('timers/a', '{"say": "20 ms"}') > 0;
SELECT pg_temp.timed_out('a');
SELECT pg_temp.handled();
SELECT dgen.call('timers/a', '{"timeout": "20 ms"}');
SELECT pg_temp.timed_out('a');
SELECT pg_temp.handled();
SELECT dgen.send('timers/a', '{"timeout": "20 ms"}') > 0;
SELECT pg_temp.timed_out('a');
SELECT pg_temp.handled();
SELECT pg_temp.timeout('a');
BEGIN ISOLATION LEVEL SERIALIZABLE;
SELECT dgen.invoke('timers/a', '{"timeout": "20 ms"}');
COMMIT;
SELECT pg_temp.timed_out('a');
SELECT pg_temp.handled();

--
-- any message makes it lapse, unless it sets it again
--
BEGIN;
SELECT dgen.cast('timers/a', '{"timeout": "400 ms"}') > 0, dgen.cast('timers/a', '"lapse"') > 0;
COMMIT;
SELECT dgen.wait_idle('timers/a');
SELECT pg_temp.nothing_due(), dgen.wait_idle('timers/a');
SELECT pg_temp.timeout('a');
SELECT pg_temp.handled();
-- a call that changes nothing, too
SELECT dgen.cast('timers/a', '{"timeout": "400 ms"}') > 0;
SELECT dgen.call('timers/a', '"lapse"');
SELECT pg_temp.nothing_due(), dgen.wait_idle('timers/a');
SELECT pg_temp.timeout('a');
SELECT pg_temp.handled();
-- a later one leaves the alarm as it is, an earlier one replaces it
SELECT dgen.cast('timers/a', '{"timeout": "1 hour"}') > 0;
SELECT dgen.wait_idle('timers/a');
SELECT pg_temp.timeout('a');
CREATE TEMP TABLE was AS SELECT timeout_id FROM dgen.server WHERE server = 'timers/a';
SELECT dgen.cast('timers/a', '{"timeout": "2 hours"}') > 0;
SELECT dgen.wait_idle('timers/a');
SELECT pg_temp.timeout('a');
SELECT timeout_id = (TABLE was) AS same FROM dgen.server WHERE server = 'timers/a';
SELECT dgen.cast('timers/a', '{"timeout": "1 ms"}') > 0;
SELECT pg_temp.timed_out('a'), pg_temp.nothing_due();
SELECT pg_temp.timeout('a');
SELECT pg_temp.handled();
-- the alarm goes off early, and is set again
SELECT dgen.cast('timers/a', '{"timeout": "20 ms"}') > 0, dgen.cast('timers/a', '{"timeout": "300 ms"}') > 0;
SELECT pg_temp.timed_out('a');
SELECT pg_temp.timeout('a');
SELECT pg_temp.handled();

--
-- 0: once the mailbox is drained
--
SELECT dgen.suspend('timers/z');
SELECT dgen.cast('timers/z', '{"timeout": "0"}') > 0, dgen.cast('timers/z', '{"timeout": "0"}') > 0,
  dgen.cast('timers/z', '3') > 0, dgen.cast('timers/z', '{"timeout": "0"}') > 0;
SELECT dgen.resume('timers/z');
SELECT pg_temp.timed_out('z');
SELECT pg_temp.handled();
SELECT pg_temp.timeout('z');

--
-- init: of dgen.start; a first message makes it lapse
--
SELECT dgen.start('timers/i', '{"timeout": "10 ms"}');
SELECT pg_temp.timed_out('i');
SELECT pg_temp.handled();
BEGIN;
SELECT dgen.start('timers/j', '{"timeout": "400 ms"}'), dgen.cast('timers/j', '1') > 0;
COMMIT;
SELECT pg_temp.nothing_due();
SELECT pg_temp.handled();

--
-- it ends with the incarnation
--
SELECT dgen.cast('timers/a', '{"timeout": "1 hour"}') > 0;
SELECT dgen.wait_idle('timers/a'), dgen.stop('timers/a');
SELECT pg_temp.timeout('a');
SELECT count(*) FROM dgen.delayed;
SELECT dgen.cast('timers/a', '{"timeout": "1 hour"}') > 0;
SELECT dgen.wait_idle('timers/a'), dgen.delete('timers/a');
SELECT count(*) FROM dgen.delayed;
SELECT count(*) FROM pg_temp.handled();
-- a savepoint that is rolled back takes it back
BEGIN ISOLATION LEVEL SERIALIZABLE;
SELECT dgen.invoke('timers/a', '{"timeout": "1 hour"}');
SAVEPOINT s;
SELECT dgen.invoke('timers/a', '{"timeout": "1 ms"}');
ROLLBACK TO s;
COMMIT;
SELECT pg_temp.timeout('a'), due_at > now() + '50 min' FROM dgen.delayed;

--
-- one that fails is tried again, and ends as a dead letter; the next is set as ever
--
SELECT dgen.cast('timers/raises', '{"timeout": "1 ms"}') > 0;
SELECT pg_temp.until('EXISTS (SELECT FROM dgen.dead_letters)');
SELECT server, kind, attempts, message, pg_temp.timeout('raises') FROM dgen.dead_letters;
SELECT dgen.cast('timers/raises', '{"timeout": "1 hour"}') > 0;
SELECT dgen.wait_idle('timers/raises');
SELECT pg_temp.timeout('raises');
-- it is not cancelled, but can be discarded, and a letter be requeued
SELECT pg_temp.try(format('SELECT dgen.cancel(%s)', id)) ~ '^55000 message \d+ is the idle timeout of server "timers/raises"'
  FROM dgen.messages WHERE server = 'timers/raises';
SELECT status, kind, dgen.discard(id) FROM dgen.messages WHERE server = 'timers/raises';
SELECT pg_temp.timeout('raises');
SELECT dgen.requeue_all('timers/raises');
SELECT pg_temp.until('EXISTS (SELECT FROM dgen.dead_letters)'), dgen.purge('timers');
SELECT count(*) FROM pg_temp.handled();

--
-- inside a transaction that drains
--
BEGIN;
SELECT dgen.cast('timers/d', '{"timeout": "0"}') > 0;
SELECT dgen.drain();
SELECT concat_ws(' ', kind, message) FROM timers.log ORDER BY n;
-- an invoke does not count it as a message that it would overtake
SELECT dgen.cast('timers/e', '{"timeout": "1 hour"}') > 0, dgen.drain('timers/e'), dgen.drain('timers/e');
SELECT dgen.cast('timers/e', '{"timeout": "1 ms"}') > 0;
SELECT dgen.drain('timers/e') AS handled \gset
SELECT pg_sleep(0.002), dgen.drain() + :handled;
SELECT concat_ws(' ', kind, message) FROM timers.log WHERE server = 'timers/e' ORDER BY n;
SET LOCAL dgen.inline = on;
SELECT dgen.call('timers/f', '{"timeout": "0"}'), dgen.call('timers/f', '{}');
ROLLBACK;
BEGIN ISOLATION LEVEL SERIALIZABLE;
SELECT dgen.invoke('timers/f', '{"timeout": "0"}');
SELECT dgen.invoke('timers/f', '{"timeout": "1 hour"}');
ROLLBACK;
SELECT dgen.try('timers', 'handle_cast', '{"timeout": "5 s"}', '{}');

--
-- servers that nobody uses expire, with terminate, and begin anew
--
SET ROLE regress_dgen_timers;
CREATE FUNCTION timers.terminate(reason text, state jsonb) RETURNS void LANGUAGE sql AS $$
  INSERT INTO timers.log (server, kind, message) VALUES (dgen.self(), 'terminate', to_jsonb(reason)) $$;
RESET ROLE;
SELECT dgen.alter_module('timers', expire_after => '200 ms') IS NOT NULL;
SELECT dgen.cast('timers/old', '1') > 0, dgen.start('timers/started');
SELECT pg_temp.until($$NOT EXISTS (SELECT FROM dgen.server WHERE server IN ('timers/old', 'timers/started'))$$);
SELECT pg_temp.handled() h ORDER BY h;
-- not before a message of low priority, which the alarm may pass
SELECT dgen.alter_module('timers', expire_after => '800 ms') IS NOT NULL;
SELECT dgen.cast('timers/low', '1') > 0;
SELECT dgen.wait_idle('timers/low');
SELECT dgen.suspend(module => 'timers');
SELECT dgen.cast('timers/low', '2', priority => -1) > 0;
SELECT pg_temp.until($$EXISTS (SELECT FROM dgen.message WHERE server = 'timers/low' AND kind = 't')$$);
SELECT dgen.resume(module => 'timers');
SELECT pg_temp.until($$NOT EXISTS (SELECT FROM dgen.server WHERE server = 'timers/low')$$);
SELECT pg_temp.handled();
SELECT dgen.alter_module('timers', expire_after => '1 hour') IS NOT NULL;
SELECT dgen.cast('timers/old', '2') > 0;
SELECT dgen.wait_idle('timers/old');
SELECT incarnation, used_at IS NOT NULL FROM dgen.server WHERE server = 'timers/old';
-- a use puts it off, also one that changes nothing; a timeout is a use
SELECT dgen.cast('timers/used', '{"timeout": "1 ms"}') > 0;
SELECT pg_temp.timed_out('used');
SELECT pg_temp.timeout('used');
UPDATE dgen.server SET used_at = used_at - interval '10 min' WHERE server = 'timers/used';
SELECT dgen.call('timers/used', '1');
SELECT used_at < clock_timestamp() - interval '9 min' AS kept FROM dgen.server WHERE server = 'timers/used';
UPDATE dgen.server SET used_at = used_at - interval '10 min' WHERE server = 'timers/used';
SELECT dgen.call('timers/used', '2');
SELECT used_at < clock_timestamp() - interval '9 min' AS kept FROM dgen.server WHERE server = 'timers/used';
SELECT dgen.alter_module('timers', expire_after => '0') IS NOT NULL;
SELECT pg_temp.error($$SELECT dgen.alter_module('timers', expire_after => '-1 s')$$);
SELECT pg_temp.handled() h ORDER BY h;
DROP FUNCTION timers.terminate(text, jsonb);

--
-- errors
--
SELECT pg_temp.try($$SELECT dgen.timeout('1 s')$$);
SELECT pg_temp.try($$SELECT dgen.call('timers/x', '["dgen.timeout(null)"]')$$);
SELECT pg_temp.try($$SELECT dgen.call('timers/x', '["dgen.timeout(''-1 s'')"]')$$);
SELECT pg_temp.try($$SELECT dgen.call('timers/x', '{"timeout": "-1 s"}')$$);
SELECT pg_temp.try($$SELECT dgen.call('timers/x', '{"timeout": "300000 years"}')$$);
SELECT dgen.alter_module('timers', ephemeral => true) IS NOT NULL;
SELECT pg_temp.try($$SELECT dgen.call('timers/x', '{"timeout": "1 s"}')$$);
SELECT dgen.alter_module('timers', ephemeral => false) IS NOT NULL;

-- what was within the limit when it was set comes, whatever the limit is then
BEGIN;
SELECT dgen.start('timers/small', '{"timeout": "50 ms"}') > 0;
SELECT dgen.send_after('timers/smaller', to_jsonb(repeat('x', 50)), '50 ms') > 0;
SELECT dgen.alter_module('timers', max_message_size => 20) IS NOT NULL;
COMMIT;
SELECT pg_temp.timed_out('small'), pg_temp.until($$EXISTS (SELECT FROM timers.log WHERE server = 'timers/smaller')$$);
SELECT pg_temp.handled();

SELECT dgen.drop_module('timers', true);
SET client_min_messages = warning;
SELECT count(*) FROM dgen.delayed;
DROP SCHEMA timers CASCADE;
DROP ROLE regress_dgen_timers;
