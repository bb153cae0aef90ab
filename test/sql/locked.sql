--
-- Work under a lock: handle_locked.
--
\getenv dir PG_ABS_SRCDIR
\i :dir/sql/helpers.psql
CREATE ROLE regress_dgen_locked LOGIN;
CREATE SCHEMA locked AUTHORIZATION regress_dgen_locked;
CREATE SCHEMA fleeting AUTHORIZATION regress_dgen_locked;
SET ROLE regress_dgen_locked;

CREATE TABLE locked.log (n serial, xid text DEFAULT pg_current_xact_id()::text, server text, note jsonb);
CREATE SEQUENCE locked.runs;
CREATE FUNCTION locked.handle_cast(message jsonb, INOUT state jsonb, OUT lock boolean) LANGUAGE plpgsql AS $$
BEGIN
  lock := message ? 'work';
  IF message ? 'do' THEN
    EXECUTE message ->> 'do';
  END IF;
  IF NOT message ? 'keep' THEN
    state := state || jsonb_build_object('last', message - 'work');
  END IF;
END $$;
CREATE FUNCTION locked.handle_call(request jsonb, INOUT state jsonb, OUT reply jsonb) LANGUAGE plpgsql AS $$
BEGIN
  IF request ? 'work' THEN
    PERFORM dgen.lock();
    state := state || '{"working": true}';
  ELSE
    reply := state;
  END IF;
END $$;
CREATE FUNCTION locked.handle_info(message jsonb, INOUT state jsonb) LANGUAGE plpgsql AS $$
BEGIN
  state := state || message;
END $$;
CREATE FUNCTION locked.handle_query(query jsonb, state jsonb) RETURNS jsonb LANGUAGE sql AS 'SELECT state';
-- the work is a list of statements; what it gives is the state with "done", and the number of the run as reply
CREATE PROCEDURE locked.handle_locked(kind text, message jsonb, INOUT state jsonb, INOUT reply jsonb) LANGUAGE plpgsql AS $$
DECLARE
  step text;
BEGIN
  PERFORM nextval('locked.runs');
  FOR step IN SELECT jsonb_array_elements_text(message -> 'work') LOOP
    IF step = 'commit' THEN
      COMMIT;
    ELSIF step = 'rollback' THEN
      ROLLBACK;
    ELSE
      EXECUTE step;
    END IF;
  END LOOP;
  state := coalesce(message -> 'new', state || jsonb_build_object('done', message -> 'n') || coalesce(message -> 'add', '{}'));
  reply := jsonb_build_array(kind, dgen.self(), dgen.kind(), dgen.sender_role(), dgen.context());
END $$;
CREATE FUNCTION locked.note(note jsonb) RETURNS void LANGUAGE sql AS
  'INSERT INTO locked.log (server, note) VALUES (dgen.key(), note)';
CREATE FUNCTION locked.work(VARIADIC steps text[]) RETURNS jsonb LANGUAGE sql AS $$
  SELECT jsonb_build_object('n', nextval('locked.runs'), 'work', to_jsonb(steps)) $$;
CREATE FUNCTION locked.validate(state jsonb) RETURNS boolean LANGUAGE sql AS $$ SELECT NOT state ? 'bad' $$;
SELECT dgen.create_module('locked', max_attempts => 2, backoff_initial => '5 ms', backoff_factor => 1, backoff_max => '50 ms',
  breaker => 0, invoke_isolation => 'any') -> 'created';

--
-- It commits, and the state and the reply are there when it has ended
--
SELECT dgen.cast('locked/a', '{"n": 1, "work": ["SELECT locked.note(''1'')", "commit", "SELECT locked.note(''2'')", "rollback", "SELECT locked.note(''3'')"]}') > 0;
SELECT dgen.wait_idle('locked/a');
SELECT server, note, dense_rank() OVER (ORDER BY xid::xid8) AS transaction FROM locked.log ORDER BY n;
SELECT dgen.state('locked/a');
SELECT locked_for FROM dgen.servers WHERE server = 'locked/a';
TRUNCATE locked.log;
-- a request; and a call, which waits for it
SET dgen.context = '{"tenant": 7}';
SELECT dgen.send_request('locked/a', '{"n": 2, "work": ["commit"]}') AS id \gset
RESET dgen.context;
SELECT dgen.wait_response(:id);
SELECT dgen.call('locked/a', '{"n": 2, "work": ["commit"]}');
SELECT dgen.state('locked/a');
-- what a handler sends from there goes with its commits
SELECT dgen.cast('locked/a', '{"n": 3, "work": ["SELECT dgen.send(''locked/b'', ''{\"one\": 1}'')", "rollback", "SELECT dgen.send(''locked/b'', ''{\"two\": 2}'')", "commit"]}') > 0;
SELECT dgen.wait_idle('locked/a'), dgen.wait_idle('locked/b');
SELECT dgen.state('locked/b');

--
-- Meanwhile its mailbox waits, in order; high priority and queries go on; nobody can invoke it
--
SELECT pg_advisory_lock(4721);
SELECT dgen.cast('locked/c', '{"n": 4, "work": ["SELECT pg_advisory_xact_lock(4721)"]}') > 0,
  dgen.cast('locked/c', '{"n": 5}') > 0, dgen.cast('locked/c', '{"n": 6}') > 0;
SELECT pg_temp.until($$EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND objid = 4721 AND NOT granted)$$);
SELECT count(*) FROM pg_stat_activity WHERE query = 'dgen: locked/c handle_locked';
SELECT count(*) FROM dgen.workers WHERE state = 'busy' AND server = 'locked/c';
SELECT status, message -> 'n' AS n FROM dgen.messages WHERE server = 'locked/c' ORDER BY id;
SELECT dgen.query('locked/c', 'null');
SELECT dgen.send('locked/c', '{"seven": 7}', priority => 1) > 0;
SELECT pg_temp.until($$dgen.state('locked/c') ? 'seven'$$);
SELECT regexp_replace(pg_temp.try($$SELECT dgen.invoke('locked/c', '{}')$$), 'message \d+|Process \d+|since [^\n]*', 'N', 'g');
SELECT pg_temp.error($$SELECT dgen.call('locked/c', '{}', timeout => '50 ms')$$);
SELECT dgen.cancel(id) FROM dgen.messages WHERE server = 'locked/c' AND status = 'locked';
SELECT locked_for = min(m.id) FROM dgen.servers s JOIN dgen.messages m USING (server) WHERE server = 'locked/c' GROUP BY locked_for;
SELECT pg_advisory_unlock(4721);
SELECT dgen.wait_idle('locked/c');
-- what it changed is merged into what there is now
SELECT dgen.state('locked/c');
-- member by member, however little is left of what it was given; an array is one value
SELECT dgen.start('locked/c2') > 0, dgen.start('locked/c3') > 0;
SELECT dgen.replace_state('locked/c2', '{"charging": true, "mine": [1, 2, 3], "theirs": [{"id": "x"}], "old": {"a": 1}, "in": {"a": 1, "b": [0], "c": {"d": 1}}}') > 0,
  dgen.replace_state('locked/c3', '{"was": 1}') > 0;
SELECT pg_advisory_lock(4721);
SELECT dgen.cast('locked/c2', '{"work": ["SELECT pg_advisory_xact_lock(4721)"], "keep": true,
    "new": {"charged": true, "mine": [1, 2, 4], "theirs": [{"id": "x"}], "old": {"a": 1}, "in": {"a": 2, "b": [0], "c": {"e": 1}}}}') > 0,
  dgen.cast('locked/c3', '{"work": ["SELECT pg_advisory_xact_lock(4721)"], "keep": true, "new": {"is": 2, "both": {"m": 1}}}') > 0;
SELECT pg_temp.until($$(SELECT count(*) = 2 FROM pg_locks WHERE locktype = 'advisory' AND objid = 4721 AND NOT granted)$$);
SELECT dgen.send('locked/c2', '{"stop": true, "mine": [0, 1, 2, 3], "theirs": [{"id": "w"}, {"id": "x"}], "old": {"a": 2}, "in": {"a": 1, "b": [0, 1], "c": {"d": 1, "f": 1}}}', priority => 1) > 0,
  dgen.send('locked/c3', '{"stop": true, "both": {"t": 1}}', priority => 1) > 0;
SELECT pg_temp.until($$NOT EXISTS (SELECT FROM dgen.messages WHERE kind = 'info')$$);
SELECT pg_advisory_unlock(4721);
SELECT dgen.wait_idle('locked/c2'), dgen.wait_idle('locked/c3');
SELECT dgen.state('locked/c2');
SELECT dgen.state('locked/c3');

--
-- If it raises it is tried again, and then given up; what it has committed stays
--
SELECT dgen.cast('locked/d', '{"n": 8, "work": ["SELECT locked.note(''1'')", "commit", "SELECT locked.note(''2'')", "SELECT 1 / 0"]}') > 0;
SELECT dgen.cast('locked/d', '{"n": 9}') > 0;
SELECT dgen.wait_idle('locked/d');
SELECT server, note FROM locked.log ORDER BY n;
SELECT kind, message -> 'n' AS n, attempts, sqlstate, error ->> 'message' AS message, error ->> 'context' LIKE 'SQL statement%' AS context FROM dgen.dead_letters;
SELECT dgen.state('locked/d');
SELECT locked_for, failing FROM dgen.servers WHERE server = 'locked/d';
SELECT dgen.purge('locked');
TRUNCATE locked.log;
-- a state that is not valid
SELECT dgen.cast('locked/d', '{"n": 10, "work": [], "add": {"bad": 1}}') > 0;
SELECT dgen.wait_idle('locked/d');
SELECT attempts, sqlstate, error ->> 'message' AS message FROM dgen.dead_letters;
SELECT dgen.state('locked/d');
SELECT dgen.purge('locked');
-- nor one that takes validate longer than handler_timeout to look at
CREATE OR REPLACE FUNCTION locked.validate(state jsonb) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
  IF state ?| '{slow,traps}' THEN
    PERFORM pg_sleep(600);
  END IF;
  RETURN NOT state ? 'bad';
EXCEPTION WHEN query_canceled THEN
  IF state ? 'traps' THEN
    RETURN true;
  END IF;
  RAISE;
END $$;
SELECT dgen.alter_module('locked', handler_timeout => '300 ms', max_attempts => 1) -> 'created';
SELECT dgen.cast('locked/d', '{"n": 10, "work": [], "add": {"slow": 1}}') > 0, dgen.cast('locked/d', '{"n": 10, "work": [], "add": {"traps": 1}}') > 0;
SELECT dgen.wait_idle('locked/d', timeout => '20 s');
SELECT attempts, sqlstate, error ->> 'message' AS message FROM dgen.dead_letters;
SELECT dgen.alter_module('locked', handler_timeout => '30 s', max_attempts => 2) -> 'created';
SELECT dgen.purge('locked');
-- a request gets the error
SELECT dgen.send_request('locked/d', '{"n": 2, "work": ["SELECT 1 / 0"]}') AS id \gset
SELECT pg_temp.error('SELECT dgen.wait_response(' || :id || ')');
SELECT dgen.purge('locked');

-- so does a call, in the end
SELECT pg_temp.error($$SELECT dgen.call('locked/d', '{"n": 2, "work": ["SELECT nextval(''locked.runs''), 1 / 0"]}')$$);
SELECT kind, message -> 'n' AS n, attempts FROM dgen.dead_letters;
-- requeued it is a request, since nobody waits for it any more
SELECT dgen.requeue(id, '{"n": 3, "work": []}') FROM dgen.dead_letters;
SELECT dgen.wait_idle('locked/d');
SELECT dgen.state('locked/d');
-- a caller who gives up does not know; the work is done
SELECT pg_temp.try($$SELECT dgen.call('locked/d', '{"n": 4, "work": ["SELECT pg_sleep(0.2)"]}', timeout => '100 ms')$$);
SELECT dgen.wait_idle('locked/d');
SELECT dgen.state('locked/d');

--
-- What it leaves in the session is undone: settings, roles, temporary tables, locks
--
SELECT dgen.cast('locked/e', '{"n": 11, "work": ["SET search_path = nowhere", "SET work_mem = ''77MB''", "SET timezone = ''Asia/Tokyo''", "SET my.own = ''x''",
  "CREATE TEMP TABLE left_behind (a int)", "SELECT pg_advisory_lock(4722)", "PREPARE left_over AS SELECT 1", "commit"]}') > 0;
SELECT dgen.wait_idle('locked/e');
SELECT dgen.cast('locked/e', '{"n": 12, "work": ["SELECT locked.note(jsonb_build_array(current_setting(''search_path''), current_setting(''work_mem''), current_setting(''timezone''), current_setting(''my.own'', true), to_regclass(''pg_temp.left_behind''), (SELECT count(*) FROM pg_prepared_statements), current_user, session_user))"]}') > 0;
SELECT dgen.wait_idle('locked/e');
SELECT note ->> 0 AS search_path, note ->> 1 = current_setting('work_mem') AS work_mem, note ->> 2 <> 'Asia/Tokyo' AS timezone,
  coalesce(note ->> 3, '') AS own, note -> 4 AS temp, note -> 5 AS prepared, note ->> 6 AS "user", note ->> 7 AS "session" FROM locked.log;
SELECT pg_try_advisory_lock(4722), pg_advisory_unlock(4722);
TRUNCATE locked.log;

--
-- abort and release
--
SELECT dgen.alter_module('locked', max_attempts => 1) -> 'created';
SELECT dgen.abort('locked/f'), dgen.release('locked/f');
SELECT dgen.cast('locked/f', '{"n": 13, "work": ["SELECT pg_sleep(600)"]}') > 0;
-- not its handler, before that
SELECT pg_temp.until($$EXISTS (SELECT FROM pg_stat_activity WHERE query = 'dgen: locked/f handle_locked' AND wait_event = 'PgSleep')$$);
SELECT pg_temp.until($$dgen.abort('locked/f')$$);
SELECT dgen.wait_idle('locked/f');
SELECT sqlstate, error ->> 'message' AS message, error ->> 'detail' AS detail FROM dgen.dead_letters;
SELECT dgen.purge('locked');
SELECT dgen.state('locked/f');
-- released, its message is handled again, and the first result is refused
SELECT pg_advisory_lock(4723);
SELECT dgen.cast('locked/g', '{"n": 14, "work": ["SELECT locked.note(''1'')", "commit", "SELECT pg_advisory_xact_lock(4723)"]}') > 0;
SELECT pg_temp.until($$(SELECT count(*) = 1 FROM locked.log)$$);
SELECT dgen.release('locked/g');
SELECT pg_temp.until($$EXISTS (SELECT FROM dgen.servers WHERE server = 'locked/g' AND locked_for IS NOT NULL)$$);
SELECT pg_advisory_unlock(4723);
SELECT dgen.wait_idle('locked/g');
SELECT server, note FROM locked.log;
SELECT dgen.state('locked/g');
SELECT version FROM dgen.servers WHERE server = 'locked/g';
TRUNCATE locked.log;
-- stopped, deleted, discarded meanwhile
SELECT pg_advisory_lock(4723);
SELECT dgen.cast('locked/h', '{"n": 15, "work": ["SELECT locked.note(''1'')", "commit", "SELECT pg_advisory_xact_lock(4723)"]}') > 0;
SELECT pg_temp.until($$(SELECT count(*) = 1 FROM locked.log)$$);
SELECT dgen.discard(locked_for) FROM dgen.servers WHERE server = 'locked/h';
SELECT locked_for, dgen.wait_idle('locked/h') FROM dgen.servers WHERE server = 'locked/h';
SELECT dgen.cast('locked/i', '{"n": 16, "work": ["SELECT locked.note(''1'')", "commit", "SELECT pg_advisory_xact_lock(4723)"]}') > 0;
SELECT pg_temp.until($$(SELECT count(*) = 2 FROM locked.log)$$);
SELECT dgen.delete('locked/i');
SELECT pg_advisory_unlock(4723);
SELECT pg_temp.until($$NOT EXISTS (SELECT FROM dgen.workers WHERE state = 'busy')$$);
SELECT dgen.state('locked/h'), count(*) FROM dgen.servers WHERE server = 'locked/i';
-- it never ends by itself
SELECT dgen.alter_module('locked', work_timeout => '50 ms') -> 'created';
SELECT dgen.cast('locked/f', '{"n": 17, "work": ["SELECT pg_sleep(600)"]}') > 0;
SELECT dgen.wait_idle('locked/f');
SELECT sqlstate, error ->> 'message' AS message, error ->> 'detail' AS detail FROM dgen.dead_letters;
SELECT dgen.purge('locked');
SELECT dgen.alter_module('locked', work_timeout => '1 min') -> 'created';

--
-- Calls from there are calls of their own, to others
--
SELECT dgen.cast('locked/j', '{"n": 18, "work": ["SELECT locked.note(dgen.call(''locked/a'', ''{}''))"]}') > 0;
SELECT dgen.cast('locked/j', '{"n": 19, "work": ["SELECT dgen.call(''locked/j'', ''{}'')"]}') > 0;
SELECT dgen.wait_idle('locked/j');
SELECT note FROM locked.log ORDER BY n DESC LIMIT 1;
SELECT sqlstate, error ->> 'message' AS message FROM dgen.dead_letters;
SELECT dgen.purge('locked');

--
-- Where it cannot be
--
SELECT pg_temp.try($$SELECT dgen.lock()$$);
SELECT pg_temp.try($$SELECT dgen.invoke('locked/k', '{"work": []}')$$);
SELECT pg_temp.try($$SELECT dgen.cast('locked/k', '{"work": []}'), dgen.drain()$$);
SELECT pg_temp.error($$SELECT dgen.query('locked/a', 'null') FROM dgen.lock()$$);
SELECT dgen.alter_module('locked', '{"handle_locked": null}') -> 'created';
SELECT dgen.cast('locked/l', '{"n": 20, "work": []}') > 0;
SELECT pg_temp.until($$EXISTS (SELECT FROM dgen.messages WHERE server = 'locked/l' AND status = 'retrying')$$);
SELECT attempts, last_error ->> 'message' AS error FROM dgen.messages WHERE server = 'locked/l';
SELECT dgen.alter_module('locked', '{}') -> 'created';
SELECT dgen.wait_idle('locked/l');
SELECT dgen.state('locked/l');
CREATE FUNCTION fleeting.handle_cast(message jsonb, state jsonb) RETURNS jsonb LANGUAGE sql AS 'SELECT dgen.lock(); SELECT state';
CREATE PROCEDURE fleeting.handle_locked(kind text, message jsonb, INOUT state jsonb, INOUT reply jsonb) LANGUAGE plpgsql AS 'BEGIN END';
SELECT dgen.create_module('fleeting', ephemeral => true, max_attempts => 1) -> 'created';
SELECT dgen.cast('fleeting/a', 'null') > 0;
SELECT dgen.wait_idle('fleeting/a');
SELECT sqlstate, error ->> 'message' AS message FROM dgen.dead_letters WHERE server = 'fleeting/a';
-- a continue of init: not within the message that starts the server, but where it is a message of its own
CREATE FUNCTION locked.init(args jsonb, OUT state jsonb, OUT continue jsonb) LANGUAGE sql AS $$ SELECT '{}'::jsonb, locked.work('SELECT 1') $$;
CREATE FUNCTION locked.handle_continue(message jsonb, state jsonb, OUT lock boolean) LANGUAGE sql AS 'SELECT true';
SELECT dgen.alter_module('locked') -> 'created';
SELECT pg_temp.try($$SELECT dgen.call('locked/m', '{}')$$);
SELECT dgen.start('locked/m');
SELECT dgen.call('locked/m', '{}') ? 'done';
-- who may operate
RESET ROLE;
CREATE ROLE regress_dgen_stranger;
SET ROLE regress_dgen_stranger;
SELECT pg_temp.error($$SELECT dgen.abort('locked/a')$$), pg_temp.error($$SELECT dgen.release('locked/a')$$);
RESET ROLE;

SET client_min_messages = error;
SELECT dgen.drop_module('locked', "cascade" => true), dgen.drop_module('fleeting', "cascade" => true);
DROP SCHEMA locked, fleeting CASCADE;
DROP ROLE regress_dgen_locked, regress_dgen_stranger;
