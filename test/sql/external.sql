--
-- Modules whose messages are handled by clients.
--
\getenv dir PG_ABS_SRCDIR
\i :dir/sql/helpers.psql
CREATE ROLE regress_dgen_external LOGIN;
CREATE ROLE regress_dgen_hands LOGIN;
CREATE ROLE regress_dgen_orders LOGIN;
CREATE SCHEMA external AUTHORIZATION regress_dgen_external;
SET ROLE regress_dgen_external;
CREATE FUNCTION external.validate(state jsonb) RETURNS boolean LANGUAGE sql AS $$ SELECT NOT state ? 'bad' $$;
SELECT dgen.create_module('external', external => true, max_attempts => 2, backoff_initial => '5 ms', backoff_factor => 1,
  backoff_max => '50 ms', workers => 'regress_dgen_hands', clients => 'regress_dgen_orders');
CREATE FUNCTION pg_temp.took(n integer DEFAULT 1) RETURNS text LANGUAGE sql AS $$
  SELECT string_agg(concat_ws(' ', server, kind, message, state, attempts), ', ' ORDER BY message_id) FROM dgen.take_work('external', n) $$;

--
-- One message of a server at a time, in order, of all servers at once
--
SELECT * FROM dgen.take_work('external');
SELECT dgen.cast('external/a', '1') > 0, dgen.cast('external/a', '2') > 0, dgen.cast('external/b', '3') > 0;
CREATE TEMP TABLE work AS SELECT * FROM dgen.take_work('external', 10);
SELECT server, kind, message, state, sender, sender_role, context, attempts, message_id > 0 AS id FROM work ORDER BY server;
SELECT pg_temp.took();
SELECT server, status, message FROM dgen.messages WHERE server LIKE 'external/%' ORDER BY id;
SELECT server, locked_for IS NOT NULL AS locked, locked_until > now() AS until FROM dgen.servers WHERE server LIKE 'external/%' ORDER BY server;
SELECT dgen.finish_work(token, jsonb_build_object('last', message)) FROM work WHERE server = 'external/a';
SELECT dgen.state('external/a'), dgen.state('external/b');
SELECT pg_temp.took(5);
-- a token is good once; the state stays if none is given
SELECT pg_temp.try(format('SELECT dgen.finish_work(%L)', token)) FROM work WHERE server = 'external/a';
SELECT dgen.renew_work(token, '1 h') > now() + '50 min' FROM work WHERE server = 'external/b';
SELECT dgen.finish_work(token) FROM work WHERE server = 'external/b';
SELECT dgen.state('external/b'), version FROM dgen.servers WHERE server = 'external/b';
-- priority
SELECT dgen.release('external/a');
SELECT dgen.cast('external/a', '4', priority => 1) > 0;
SELECT message IN ('2', '4') AS either, dgen.finish_work(token, '{}') FROM dgen.take_work('external');
SELECT message IN ('2', '4') AS either, dgen.finish_work(token, '{}') FROM dgen.take_work('external');
SELECT dgen.wait_idle(module => 'external');

--
-- What is undone was not taken
--
SELECT dgen.cast('external/c', '1') > 0;
BEGIN;
SELECT pg_temp.took();
ROLLBACK;
BEGIN;
SAVEPOINT s;
SELECT pg_temp.took();
ROLLBACK TO s;
COMMIT;
TRUNCATE work;
INSERT INTO work SELECT * FROM dgen.take_work('external');
BEGIN;
SELECT dgen.finish_work(token, '{"n": 1}') FROM work;
ROLLBACK;
SELECT dgen.finish_work(token, '{"n": 2}') FROM work;
SELECT dgen.state('external/c');

--
-- Failures: tried again, with a delay, given up
--
SELECT dgen.cast('external/d', '1') > 0, dgen.cast('external/d', '2') > 0;
SELECT dgen.fail_work(token, 'printer is on fire') FROM dgen.take_work('external');
SELECT kind, status, attempts, last_error - 'context' AS error FROM dgen.messages WHERE server = 'external/d' ORDER BY id LIMIT 1;
SELECT locked_for, failing FROM dgen.servers WHERE server = 'external/d';
CALL dgen.wait_work('external', '5 s');
SELECT pg_temp.until($$(SELECT dgen.fail_work(token, retry_after => '1 ms') IS NOT NULL FROM dgen.take_work('external'))$$);
CALL dgen.wait_work('external', '5 s');
TRUNCATE work;
DO $$ BEGIN FOR i IN 1 .. 500 LOOP
  INSERT INTO work SELECT * FROM dgen.take_work('external'); EXIT WHEN FOUND; COMMIT; PERFORM pg_sleep(0.01);
END LOOP; END $$;
SELECT server, message, attempts FROM work;
-- a state that is not valid: the work is still in hand
SELECT pg_temp.error(format('SELECT dgen.finish_work(%L, %L)', token, '{"bad": 1}')) FROM work;
SELECT dgen.fail_work(token, 'still on fire') FROM work;
SELECT server, kind, message, attempts, sqlstate, error ->> 'message' AS error FROM dgen.dead_letters WHERE server = 'external/d';
SELECT failing FROM dgen.servers WHERE server = 'external/d';
SELECT dgen.requeue(id) FROM dgen.dead_letters WHERE server = 'external/d';
TRUNCATE work;
INSERT INTO work SELECT * FROM dgen.take_work('external');
SELECT server, message, attempts FROM work;
SELECT dgen.finish_work(token) FROM work;
SELECT dgen.finish_work(token) FROM dgen.take_work('external');
SELECT count(*) FROM dgen.messages WHERE server = 'external/d';
-- a lease that ends counts as an attempt
SELECT dgen.cast('external/e', '1') > 0;
TRUNCATE work;
INSERT INTO work SELECT * FROM dgen.take_work('external', lease => '10 ms');
SELECT pg_sleep(0.02);
DO $$ BEGIN FOR i IN 1 .. 500 LOOP
  INSERT INTO work SELECT * FROM dgen.take_work('external'); EXIT WHEN FOUND; COMMIT; PERFORM pg_sleep(0.01);
END LOOP; END $$;
SELECT message, attempts FROM work ORDER BY attempts;
SELECT pg_temp.error(format('SELECT dgen.finish_work(%L)', token)) FROM work WHERE attempts = 0;
SELECT pg_temp.error(format('SELECT dgen.renew_work(%L)', token)) FROM work WHERE attempts = 0;
SELECT pg_temp.error(format('SELECT dgen.fail_work(%L)', token)) FROM work WHERE attempts = 0;
SELECT dgen.finish_work(token, '"done"') FROM work WHERE attempts = 1;
SELECT dgen.state('external/e'), failing FROM dgen.servers WHERE server = 'external/e';

--
-- Requests
--
SELECT dgen.send_request('external/f', '"what"') AS id \gset
SELECT kind, message FROM dgen.take_work('external', lease => '10 ms');
SELECT pg_sleep(0.02);
TRUNCATE work;
DO $$ BEGIN FOR i IN 1 .. 500 LOOP
  INSERT INTO work SELECT * FROM dgen.take_work('external'); EXIT WHEN FOUND; COMMIT; PERFORM pg_sleep(0.01);
END LOOP; END $$;
SELECT dgen.finish_work(token, reply => '"that"') FROM work;
SELECT dgen.wait_response(:id);
-- a caller whom nobody answers
SELECT pg_temp.error($$SELECT dgen.call('external/f', '1', timeout => '50 ms')$$);
SELECT pg_temp.took();

--
-- Stopped, suspended, deleted
--
SELECT dgen.cast('external/g', '1') > 0;
SELECT dgen.suspend('external/g');
SELECT pg_temp.took();
SELECT dgen.resume('external/g');
TRUNCATE work;
INSERT INTO work SELECT * FROM dgen.take_work('external');
SELECT dgen.stop('external/g');
SELECT pg_temp.error(format('SELECT dgen.finish_work(%L)', token)) FROM work;
TRUNCATE work;
INSERT INTO work SELECT * FROM dgen.take_work('external');
SELECT message FROM work;
SELECT dgen.delete('external/g');
SELECT pg_temp.error(format('SELECT dgen.finish_work(%L)', token)) FROM work;
SELECT dgen.suspend(module => 'external');
SELECT pg_temp.error($$SELECT pg_temp.took()$$);
SELECT dgen.resume(module => 'external');
-- delayed ones
SELECT dgen.cast('external/h', '1', delay => '10 ms') > 0;
TRUNCATE work;
DO $$ BEGIN FOR i IN 1 .. 500 LOOP
  CALL dgen.wait_work('external', '1 s');
  INSERT INTO work SELECT * FROM dgen.take_work('external'); EXIT WHEN FOUND; COMMIT;
END LOOP; END $$;
SELECT server, message, dgen.finish_work(token) FROM work;

--
-- Who may do what
--
SET ROLE regress_dgen_orders;
SELECT dgen.cast('external/i', '1') > 0;
SELECT pg_temp.try($$SELECT * FROM dgen.take_work('external')$$);
SET ROLE regress_dgen_hands;
SELECT pg_temp.error($$SELECT dgen.cast('external/i', '1')$$);
SELECT server, message, dgen.finish_work(token) FROM dgen.take_work('external');
RESET ROLE;
SELECT pg_temp.error(s) FROM unnest(ARRAY[
  'SELECT * FROM dgen.take_work(NULL)', 'SELECT * FROM dgen.take_work(''nobody'')', 'SELECT * FROM dgen.take_work(''external'', 0)',
  'SELECT * FROM dgen.take_work(''external'', lease => ''-1 s'')',
  'SELECT * FROM dgen.take_work(''external'', lease => ''106745000 days'')', 'SELECT dgen.finish_work(NULL)', 'SELECT dgen.finish_work(''x'')',
  'SELECT dgen.finish_work(''1.2.external/none'')', 'SELECT dgen.invoke(''external/i'', ''1'')',
  'SELECT dgen.alter_module(''external'', external => false)']) s;
BEGIN;
CALL dgen.wait_work('external');
ROLLBACK;
BEGIN ISOLATION LEVEL SERIALIZABLE;
SELECT * FROM dgen.take_work('external');
ROLLBACK;
CREATE FUNCTION external.handle_cast(message jsonb, state jsonb) RETURNS jsonb LANGUAGE sql AS 'SELECT state';
SELECT pg_temp.error($$SELECT dgen.create_module('more', schema_name => 'external', external => true)$$);
DROP FUNCTION external.handle_cast;
SELECT pg_temp.error($$SELECT dgen.create_module('more', schema_name => 'external', external => true, ephemeral => true)$$);

--
-- what a timer sends, and has missed
--
SELECT dgen.send_every('external/s', '"tick"', '300 ms', on_miss => 'skip', name => 'skip') > 0;
SELECT pg_temp.until($$EXISTS (SELECT FROM dgen.messages WHERE server = 'external/s' AND status = 'ready')$$);
SELECT pg_sleep(0.35);
SELECT count(*) FROM dgen.take_work('external', 100) WHERE server = 'external/s';
SELECT occurrence > 1, status FROM dgen.timers WHERE server = 'external/s';

SET client_min_messages = error;
SELECT dgen.drop_module('external', "cascade" => true);
DROP SCHEMA external CASCADE;
DROP TABLE work;
DROP FUNCTION pg_temp.took;
DROP ROLE regress_dgen_external, regress_dgen_hands, regress_dgen_orders;
