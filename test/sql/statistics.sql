--
-- What single servers have handled.
--
\getenv dir PG_ABS_SRCDIR
\i :dir/sql/helpers.psql
CREATE ROLE regress_dgen_stat LOGIN;
CREATE ROLE regress_dgen_stat_reader;
CREATE ROLE regress_dgen_stat_stranger;
CREATE SCHEMA stat AUTHORIZATION regress_dgen_stat;
CREATE SCHEMA stat2 AUTHORIZATION regress_dgen_stat;
SELECT nspname AS temp FROM pg_namespace WHERE oid = pg_my_temp_schema() \gset
GRANT USAGE ON SCHEMA :temp TO PUBLIC;
SET ROLE regress_dgen_stat;
CREATE FUNCTION stat.handle_call(request jsonb, INOUT state jsonb, OUT reply jsonb) LANGUAGE plpgsql AS $$
BEGIN
  IF request ? 'error' THEN
    RAISE EXCEPTION '%', request ->> 'error';
  ELSIF request ? 'invoke' THEN
    reply := dgen.invoke(request ->> 'invoke', '{}');
  ELSIF request ? 'try' THEN
    BEGIN
      PERFORM dgen.cast('stat/sink', '{}');
      PERFORM dgen.invoke(request ->> 'try', '{}');
      RAISE EXCEPTION 'undone';
    EXCEPTION WHEN OTHERS THEN
      NULL;
    END;
  ELSIF request ? 'cast' THEN
    PERFORM dgen.cast('stat/sink', '{}'), dgen.send_after('stat/sink', '{}', '1 h');
  ELSIF request ? 'sleep' THEN
    PERFORM pg_sleep(0.02);
  END IF;
  reply := coalesce(reply, '1');
END $$;
CREATE FUNCTION stat.handle_cast(message jsonb, INOUT state jsonb) LANGUAGE plpgsql AS $$
BEGIN
  IF message ? 'reject' THEN
    PERFORM dgen.reject('no');
  ELSIF message ? 'later' AND state <> '"ready"' THEN
    PERFORM dgen.postpone();
    RETURN;
  ELSIF message ? 'ready' THEN
    state := '"ready"';
  ELSIF message ? 'error' THEN
    RAISE EXCEPTION '%', message ->> 'error';
  END IF;
END $$;
CREATE FUNCTION stat.handle_info(message jsonb, INOUT state jsonb) LANGUAGE sql AS $$ SELECT state $$;
SELECT dgen.create_module('stat', invoke_isolation => 'any', max_attempts => 2, backoff_initial => '10 ms', breaker => 0,
  readers => 'regress_dgen_stat_reader') -> 'created';
CREATE FUNCTION stat.counts(server text, OUT messages_in bigint, OUT calls bigint, OUT casts bigint, OUT infos bigint,
  OUT messages_out bigint, OUT errors bigint, OUT sane boolean) LANGUAGE sql AS $$
  SELECT messages_in, calls, casts, infos, messages_out, errors,
    since <= clock_timestamp() AND (last_activity IS NULL) = (messages_in = 0 AND errors = 0)
      AND (total_time > 0) = (messages_in > 0) AND total_time >= max_time
  FROM dgen.statistics(server) $$;

--
-- Off, on, and what is counted
--
SELECT * FROM dgen.statistics('stat/a');
SELECT dgen.call('stat/a', '{}');
SELECT last_activity, messages_in, calls, casts, infos, messages_out, errors, total_time, max_time, since <= clock_timestamp()
FROM dgen.statistics('stat/a', true);
SELECT dgen.call('stat/a', '{}'), dgen.call('stat/b', '{}');
SELECT * FROM stat.counts('stat/a');
SELECT messages_in FROM dgen.statistics('stat/b');
SELECT dgen.cast('stat/a', '{}') > 0, dgen.send('stat/a', '{}') > 0, dgen.send_after('stat/a', '{}', '1 ms', 'timer') > 0;
SELECT pg_temp.until($$(SELECT messages_in = 4 FROM stat.counts('stat/a'))$$);
SELECT * FROM stat.counts('stat/a');
SELECT dgen.send_request('stat/a', '{}') AS request \gset
SELECT dgen.wait_response(:request);
SELECT * FROM stat.counts('stat/a');
-- messages that it sent; a savepoint's are undone
SELECT dgen.call('stat/a', '{"cast": true}');
SELECT dgen.call('stat/a', '{"try": "stat/b"}');
SELECT * FROM stat.counts('stat/a');
-- time
SELECT dgen.call('stat/a', '{"sleep": true}');
SELECT max_time BETWEEN 20 AND 10000, total_time > max_time FROM dgen.statistics('stat/a');
-- that it is on already changes nothing; the last counts
SELECT messages_in FROM dgen.statistics('stat/a', true);
SELECT messages_in FROM dgen.statistics('stat/a', false);
SELECT messages_in FROM dgen.statistics('stat/a', false);
SELECT messages_in FROM dgen.statistics('stat/a', true);

--
-- Failures, each attempt; what is put off is none
--
SELECT pg_temp.error($$SELECT dgen.call('stat/a', '{"error": "of a call"}')$$);
SELECT * FROM stat.counts('stat/a');
SELECT dgen.cast('stat/a', '{"error": "of a cast"}') > 0;
SELECT pg_temp.until($$(SELECT count(*) = 1 FROM dgen.dead_letters WHERE server = 'stat/a')$$);
SELECT * FROM stat.counts('stat/a');
SELECT dgen.cast('stat/a', '{"reject": true}') > 0;
SELECT pg_temp.until($$(SELECT count(*) = 2 FROM dgen.dead_letters WHERE server = 'stat/a')$$);
SELECT * FROM stat.counts('stat/a');
SELECT dgen.cast('stat/a', '{"later": true}') > 0;
SELECT dgen.wait_idle('stat/a');
SELECT * FROM stat.counts('stat/a');
SELECT dgen.cast('stat/a', '{"ready": true}') > 0;
SELECT pg_temp.until($$(SELECT messages_in = 2 FROM stat.counts('stat/a'))$$);
SELECT * FROM stat.counts('stat/a');
SELECT messages_in FROM dgen.statistics('stat/a', false);

--
-- In the caller's transaction: counted when it commits
--
SELECT messages_in FROM dgen.statistics('stat/i', true);
SELECT dgen.invoke('stat/i', '{}');
SELECT * FROM stat.counts('stat/i');
BEGIN;
SELECT dgen.invoke('stat/i', '{}');
SAVEPOINT s;
SELECT dgen.invoke('stat/i', '{}'), dgen.invoke('stat/i', '{}');
ROLLBACK TO s;
SELECT dgen.invoke('stat/i', '{"cast": true}');
RELEASE s;
SELECT * FROM stat.counts('stat/i');
COMMIT;
SELECT * FROM stat.counts('stat/i');
BEGIN;
SELECT dgen.invoke('stat/i', '{"cast": true}');
ROLLBACK;
SELECT * FROM stat.counts('stat/i');
SELECT pg_temp.error($$SELECT dgen.invoke('stat/i', '{"error": "of an invoke"}')$$);
SELECT * FROM stat.counts('stat/i');
BEGIN;
SELECT dgen.cast('stat/i', '{}') > 0, dgen.drain('stat/i');
COMMIT;
SELECT * FROM stat.counts('stat/i');
-- of another one
SELECT dgen.call('stat/b', '{"invoke": "stat/i"}');
SELECT * FROM stat.counts('stat/i');
-- of an external module: what clients hand in
SELECT dgen.create_module('stat2', external => true, max_attempts => 5, backoff_initial => '1 ms') -> 'created';
SELECT messages_in FROM dgen.statistics('stat2/a', true);
SELECT dgen.cast('stat2/a', '{}') > 0, dgen.send_request('stat2/a', '{}') > 0;
CREATE TEMP TABLE work (token text);
CREATE FUNCTION pg_temp.take() RETURNS boolean LANGUAGE sql AS $$
  DELETE FROM work; INSERT INTO work SELECT token FROM dgen.take_work('stat2'); SELECT count(*) = 1 FROM work $$;
SELECT pg_temp.until('pg_temp.take()');
SELECT dgen.fail_work(token, 'later', '1 ms') FROM work;
SELECT pg_temp.until('pg_temp.take()');
SELECT dgen.fail_work(token, 'no') FROM work;
SELECT pg_temp.until('pg_temp.take()');
BEGIN;
SELECT dgen.finish_work(token) FROM work;
ROLLBACK;
SELECT messages_in, errors FROM dgen.statistics('stat2/a');
SELECT dgen.finish_work(token) FROM work;
SELECT pg_temp.until('pg_temp.take()');
SELECT dgen.finish_work(token, reply => '1') FROM work;
SELECT messages_in, calls, casts, errors, total_time, max_time FROM dgen.statistics('stat2/a');
DROP FUNCTION pg_temp.take();
DROP TABLE work;
SELECT dgen.drop_module('stat2', "cascade" => true);
-- it is no part of the transaction that turns it on
BEGIN;
SELECT messages_in FROM dgen.statistics('stat/j', true);
ROLLBACK;
SELECT messages_in FROM dgen.statistics('stat/j');
-- a stop is not the end of it
SELECT dgen.start('stat/j') > 0, dgen.stop('stat/j');
SELECT messages_in FROM dgen.statistics('stat/j');

--
-- delete and drop_module forget, when they commit
--
BEGIN;
SELECT dgen.delete('stat/i');
ROLLBACK;
SELECT messages_in FROM dgen.statistics('stat/i');
SELECT dgen.delete('stat/i');
SELECT messages_in FROM dgen.statistics('stat/i');
CREATE FUNCTION stat2.handle_cast(message jsonb, INOUT state jsonb) LANGUAGE sql AS $$ SELECT state $$;
SELECT dgen.create_module('stat2') -> 'created';
SELECT messages_in FROM dgen.statistics('stat2/a', true);
SELECT messages_in FROM dgen.statistics('stat2/b', true);
BEGIN;
SELECT dgen.drop_module('stat2');
ROLLBACK;
SELECT messages_in FROM dgen.statistics('stat2/a');
SELECT dgen.drop_module('stat2');
SELECT dgen.create_module('stat2') -> 'created';
SELECT messages_in FROM dgen.statistics('stat2/a');
SELECT messages_in FROM dgen.statistics('stat2/b');
-- not those of a module whose name begins alike
SELECT messages_in FROM dgen.statistics('stat/j');

--
-- Rights
--
SET ROLE regress_dgen_stat_reader;
SELECT messages_in FROM dgen.statistics('stat/j');
SELECT pg_temp.error($$SELECT dgen.statistics('stat/j', true)$$);
SELECT pg_temp.error($$SELECT dgen.statistics('stat/j', false)$$);
SET ROLE regress_dgen_stat_stranger;
SELECT pg_temp.error($$SELECT dgen.statistics('stat/j')$$);
SET ROLE regress_dgen_stat;

--
-- Errors
--
SELECT pg_temp.try($$SELECT dgen.statistics(NULL)$$);
SELECT pg_temp.error($$SELECT dgen.statistics('stat_none/a', true)$$);
SELECT pg_temp.error($$SELECT dgen.statistics('stat_none/a')$$);
BEGIN READ ONLY;
SELECT messages_in FROM dgen.statistics('stat/j');
SELECT dgen.statistics('stat/j', false);
ROLLBACK;
SELECT messages_in FROM dgen.statistics('stat/j', false);
-- the table is full; another one makes place
SELECT count(*) FROM generate_series(1, 1024) i, dgen.statistics('stat/many-' || i, true);
SELECT pg_temp.try($$SELECT dgen.statistics('stat/one', true)$$);
SELECT messages_in FROM dgen.statistics('stat/many-1024', true);
SELECT messages_in FROM dgen.statistics('stat/many-7', false);
SELECT messages_in FROM dgen.statistics('stat/one', true);
SELECT dgen.call('stat/one', '{}'), dgen.call('stat/many-1024', '{}');
SELECT messages_in FROM dgen.statistics('stat/one');
SELECT messages_in FROM dgen.statistics('stat/many-1024');
RESET ROLE;
SELECT dgen.drop_module('stat', "cascade" => true), dgen.drop_module('stat2');
DROP SCHEMA stat, stat2 CASCADE;
DROP ROLE regress_dgen_stat, regress_dgen_stat_reader, regress_dgen_stat_stranger;
