--
-- The views stat_*: what is counted, by whom it can be seen, and that it can begin anew.
--
\getenv dir PG_ABS_SRCDIR
\i :dir/sql/helpers.psql
CREATE ROLE regress_dgen_figures LOGIN;
CREATE ROLE regress_dgen_figures_reader;
CREATE ROLE regress_dgen_figures_monitor;
CREATE ROLE regress_dgen_figures_stranger;
GRANT pg_monitor TO regress_dgen_figures_monitor;
CREATE SCHEMA figures AUTHORIZATION regress_dgen_figures;
CREATE SCHEMA figures2 AUTHORIZATION regress_dgen_figures;
SELECT nspname AS temp FROM pg_namespace WHERE oid = pg_my_temp_schema() \gset
GRANT USAGE ON SCHEMA :temp TO PUBLIC;
SET ROLE regress_dgen_figures;
CREATE FUNCTION figures.handle_call(request jsonb, INOUT state jsonb, OUT reply jsonb) LANGUAGE plpgsql AS $$
BEGIN
  IF request ? 'error' THEN
    RAISE EXCEPTION 'no';
  ELSIF request ? 'invoke' THEN
    reply := dgen.invoke(request ->> 'invoke', '{}');
  ELSIF request ? 'sleep' THEN
    PERFORM pg_sleep((request ->> 'sleep')::float);
  ELSIF request ? 'advisory' THEN
    PERFORM pg_advisory_xact_lock((request ->> 'advisory')::integer);
  ELSIF request ? 'effect' THEN
    PERFORM dgen.after_commit('figures.effect', '{}');
  END IF;
  state := jsonb_build_object('n', coalesce((state -> 'n')::integer, 0) + 1);
  reply := coalesce(reply, '1');
END $$;
CREATE FUNCTION figures.effect(args jsonb) RETURNS void LANGUAGE sql AS '';
CREATE FUNCTION figures.handle_cast(message jsonb, INOUT state jsonb) LANGUAGE plpgsql AS $$
BEGIN
  IF message ? 'error' THEN
    RAISE EXCEPTION 'no';
  ELSIF message ? 'reject' THEN
    PERFORM dgen.reject('no');
  ELSIF message ? 'once' AND state IS DISTINCT FROM '"ready"' THEN
    PERFORM dgen.postpone();
    RETURN;
  ELSIF message ? 'ready' THEN
    state := '"ready"';
  END IF;
END $$;
CREATE FUNCTION figures.handle_info(message jsonb, INOUT state jsonb) LANGUAGE sql AS 'SELECT state';
CREATE FUNCTION figures2.handle_call(request jsonb, INOUT state jsonb, OUT reply jsonb) LANGUAGE sql AS
  $$ SELECT '1'::jsonb, '1'::jsonb $$;
SELECT dgen.create_module('figures', invoke_isolation => 'any', max_attempts => 2, backoff_initial => '10 ms',
  breaker => 0, handler_timeout => '2 s', readers => 'regress_dgen_figures_reader') -> 'created';
SELECT dgen.create_module('figures2', invoke_isolation => 'any') -> 'created';
CREATE FUNCTION figures.counts(module text DEFAULT 'figures') RETURNS text LANGUAGE sql AS $$
  SELECT (SELECT string_agg(key || ' ' || value, ', ' ORDER BY ordinality)
          FROM json_each_text(to_json(s)) WITH ORDINALITY
          WHERE key IN ('calls', 'requests', 'casts', 'infos', 'timers', 'effects', 'others', 'errors', 'retries',
                        'dead_letters', 'timeouts') AND value <> '0')
  FROM dgen.stat_module s WHERE s.module = $1 $$;

-- nothing yet
SELECT figures.counts() IS NULL, stats_reset, calls, commits, total_handler_time, mean_handler_time, p99_queue_time
FROM dgen.stat_module WHERE module = 'figures';

--
-- What is counted
--
SELECT dgen.call('figures/a', '{}');
-- before the caller has its reply
SELECT figures.counts();
SELECT dgen.cast('figures/a', '{}') > 0, dgen.send('figures/a', '{}') > 0, dgen.send_after('figures/a', '{}', '1 ms') > 0,
  dgen.send_request('figures/a', '{}') > 0;
SELECT pg_temp.until($$figures.counts() = 'calls 1, requests 1, casts 1, infos 2'$$);
SELECT dgen.send_after('figures/a', '{}', '1 ms', name => 'tick') > 0;
SELECT dgen.call('figures/a', '{"effect": true}');
SELECT pg_temp.until($$figures.counts() = 'calls 2, requests 1, casts 1, infos 2, timers 1, effects 1'$$);
SELECT calls + requests + casts + infos + timers + effects >= commits AND commits > 3 AS commits,
  total_handler_time > 0 AND min_handler_time <= p50_handler_time AND p50_handler_time <= p95_handler_time
    AND p95_handler_time <= p99_handler_time AND p99_handler_time <= max_handler_time
    AND mean_handler_time BETWEEN min_handler_time AND max_handler_time AND stddev_handler_time >= 0
    AND max_handler_time < total_handler_time AS handler,
  total_queue_time > 0 AND p99_queue_time <= max_queue_time AS queue,
  total_commit_time > 0 AND p50_commit_time BETWEEN min_commit_time AND max_commit_time AS commit,
  stats_reset < clock_timestamp() AS reset
FROM dgen.stat_module WHERE module = 'figures';

-- what fails: an error of a call and of a cast, a reject, a timeout
SELECT dgen.stat_reset('figures');
SELECT figures.counts() IS NULL, stats_reset < clock_timestamp(), total_handler_time
FROM dgen.stat_module WHERE module = 'figures';
SELECT pg_temp.error($$SELECT dgen.call('figures/a', '{"error": 1}')$$);
SELECT figures.counts();
SELECT dgen.cast('figures/b', '{"error": 1}') > 0;
SELECT pg_temp.until($$figures.counts() = 'errors 3, retries 1, dead_letters 1'$$);
SELECT dgen.cast('figures/b', '{"reject": 1}') > 0;
SELECT pg_temp.until($$figures.counts() = 'errors 4, retries 1, dead_letters 2'$$);
SELECT dgen.alter_module('figures', handler_timeout => '100 ms') IS NOT NULL;
SELECT pg_temp.error($$SELECT dgen.call('figures/a', '{"sleep": 10}')$$);
SELECT figures.counts();
SELECT dgen.alter_module('figures', handler_timeout => '50 s') IS NOT NULL;

-- in the transaction of a client: what was undone is not counted, but errors are
SELECT dgen.stat_reset('figures');
SELECT dgen.invoke('figures/c', '{}');
SELECT figures.counts();
BEGIN;
SELECT dgen.invoke('figures/c', '{}');
SAVEPOINT s;
SELECT dgen.invoke('figures/c', '{}');
SAVEPOINT t;
SELECT dgen.invoke('figures/c', '{}');
RELEASE t;
ROLLBACK TO s;
SAVEPOINT u;
SELECT dgen.invoke('figures/c', '{}');
RELEASE u;
SELECT pg_temp.error($$SELECT dgen.invoke('figures/c', '{"error": 1}')$$);
COMMIT;
SELECT figures.counts();
BEGIN;
SELECT dgen.invoke('figures/c', '{}');
ROLLBACK;
SELECT figures.counts();
-- a handler that invokes: both
SELECT dgen.call('figures2/a', '{}');
SELECT dgen.call('figures/c', '{"invoke": "figures2/a"}');
SELECT figures.counts(), figures.counts('figures2');
-- drain
BEGIN;
SELECT dgen.cast('figures/c', '{}') > 0;
SELECT dgen.drain();
COMMIT;
SELECT figures.counts();
-- a prepared transaction is nobody's
BEGIN;
SELECT dgen.invoke('figures/d', '{}');
PREPARE TRANSACTION 'figures';
COMMIT PREPARED 'figures';
SELECT figures.counts();
-- a postponed message, once it is done
SELECT dgen.stat_reset('figures');
SELECT dgen.cast('figures/p', '{"once": true}') > 0;
SELECT dgen.wait_idle('figures/p');
SELECT figures.counts() IS NULL;
SELECT dgen.cast('figures/p', '{"ready": true}') > 0;
SELECT pg_temp.until($$figures.counts() = 'casts 2'$$);

--
-- Servers
--
SELECT dgen.stat_reset('figures');
SELECT count(*) FROM (SELECT dgen.cast('figures/busy', '{}') FROM generate_series(1, 20)) x;
SELECT dgen.cast('figures/quiet', '{}') > 0;
SELECT dgen.wait_idle(module => 'figures');
SELECT pg_temp.until($$(SELECT count(*) FROM dgen.stat_server WHERE module = 'figures') = 2$$);
SELECT server, activations - activations_error AS at_least, total_handler_time > 0 AS handler, mailbox, oldest_at,
  since <= last_activity AS since
FROM dgen.stat_server WHERE module = 'figures' ORDER BY server;
SELECT dgen.suspend('figures/long');
SELECT count(*) FROM (SELECT dgen.cast('figures/long', '{}') FROM generate_series(1, 30)) x;
SELECT server, activations, mailbox, oldest_at < clock_timestamp() AS oldest FROM dgen.stat_server WHERE server = 'figures/long';
SELECT dgen.delete('figures/busy');
SELECT server FROM dgen.stat_server WHERE module = 'figures' ORDER BY server;

--
-- Queues and timers
--
SELECT dgen.cast('figures/long', '{}', priority => -1) > 0, dgen.cast('figures/long', '{}', priority => 1) > 0,
  dgen.send_after('figures/long', '{}', '1 h') > 0, dgen.send_after('figures/long', '{}', '2 h', name => 'x') > 0,
  dgen.send_every('figures/long', '{}', '3 h') > 0;
SELECT module, lane, ready, waiting, delayed, oldest_age > '0' AS oldest FROM dgen.stat_queue WHERE module = 'figures';
SELECT module, timers, recurring, timeouts, delayed, next_due_at > now() AS next, overdue, late
FROM dgen.stat_timers WHERE module = 'figures';
SELECT dgen.cast('figures/p', '{"once": true}') > 0;
SELECT dgen.alter_module('figures', backoff_initial => '1 h', backoff_max => '1 h', max_attempts => 3) IS NOT NULL;
SELECT dgen.cast('figures/fails', '{"error": 1}') > 0;
SELECT pg_temp.until($$(SELECT (ready, waiting) = (30, 1) FROM dgen.stat_queue WHERE module = 'figures' AND lane = 'normal')$$);

--
-- Who may see what
--
CREATE FUNCTION figures.seen() RETURNS text LANGUAGE sql AS $$
  SELECT concat_ws(' ',
    (SELECT count(*) > 0 FROM dgen.stat_module WHERE module LIKE 'figures%'),
    (SELECT count(*) > 0 FROM dgen.stat_queue WHERE module LIKE 'figures%'),
    (SELECT count(*) > 0 FROM dgen.stat_timers WHERE module LIKE 'figures%'),
    (SELECT count(*) > 0 FROM dgen.stat_server WHERE module LIKE 'figures%'),
    (SELECT count(server) > 0 FROM dgen.stat_server WHERE module LIKE 'figures%'),
    (SELECT count(*) > 0 FROM dgen.stat_worker WHERE owner = 'regress_dgen_figures'),
    (SELECT count(*) > 0 FROM dgen.stat_database)) $$;
GRANT USAGE ON SCHEMA figures TO PUBLIC;
SELECT figures.seen();
SET ROLE regress_dgen_figures_reader;
SELECT figures.seen();
SELECT string_agg(DISTINCT module, ' ') FROM dgen.stat_module;
SELECT pg_temp.try($$SELECT dgen.stat_reset('figures')$$);
SELECT dgen.stat_reset();
SET ROLE regress_dgen_figures_monitor;
SELECT figures.seen();
SELECT pg_temp.error($$SELECT dgen.stat_reset('figures')$$);
SET ROLE regress_dgen_figures_stranger;
SELECT figures.seen();
SELECT count(*) FROM dgen.stat_module;
SELECT count(*) FROM dgen.queued_calls();
SELECT dgen.stat_reset();
SELECT pg_temp.error($$SELECT dgen.stat_reset('nowhere')$$);
RESET ROLE;

--
-- The database
--
SELECT database = current_database() AS database, enabled, adopted, keeper_pid > 0 AS keeper, workers > 0 AS workers,
  refused_since, oldest_message_at < now() AS oldest, dead_letters >= 2 AS letters, live_rows >= 0 AS live
FROM dgen.stat_database;
BEGIN;
SELECT dgen.invoke('figures/held', '{}');
PREPARE TRANSACTION 'figures_held';
SELECT count(*) FROM (SELECT dgen.cast('figures/p', '{"once": true}') FROM generate_series(1, 3)) x;
-- others may have begun before it
SELECT pg_temp.until($$(SELECT snapshot_holder LIKE 'prepared%' FROM dgen.stat_database)$$);
SELECT snapshot_holder, snapshot_pid, snapshot_since < clock_timestamp() AS since
FROM dgen.stat_database WHERE snapshot_holder LIKE 'prepared%';
ROLLBACK PREPARED 'figures_held';

--
-- What goes
--
SET ROLE regress_dgen_figures;
BEGIN;
SELECT dgen.drop_module('figures', cascade => true);
ROLLBACK;
SELECT figures.counts() IS NOT NULL;
SELECT dgen.drop_module('figures', cascade => true), dgen.drop_module('figures2', cascade => true);
RESET ROLE;
SELECT count(*) FROM dgen.stat_module WHERE module LIKE 'figures%';
SELECT count(*) FROM dgen.stat_server WHERE module LIKE 'figures%';
DROP SCHEMA figures, figures2 CASCADE;
DROP ROLE regress_dgen_figures_reader, regress_dgen_figures_monitor, regress_dgen_figures_stranger;
SELECT pg_temp.until($$NOT EXISTS (SELECT FROM dgen.workers WHERE owner = 'regress_dgen_figures')$$, 1) IS NOT NULL;
