--
-- continue: what a handler goes on with, before all else; terminate.
--
\getenv dir PG_ABS_SRCDIR
\i :dir/sql/helpers.psql
CREATE SCHEMA cont;
CREATE TABLE cont.log (n serial, server text, kind text, message jsonb);
CREATE SEQUENCE cont.runs;
-- a message is noted; {"continue": x} goes on with x, {"exit": reason} stops, {"do": statement} is run
CREATE FUNCTION cont.note(message jsonb, state jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
  PERFORM nextval('cont.runs');
  INSERT INTO cont.log (server, kind, message) VALUES (dgen.key(), dgen.kind(), message);
  IF message ? 'do' THEN EXECUTE message ->> 'do'; END IF;
  IF message ? 'continue' THEN PERFORM dgen.continue(message -> 'continue'); END IF;
  IF message ? 'exit' THEN PERFORM dgen.exit(message ->> 'exit'); END IF;
  RETURN jsonb_build_object('n', coalesce((state ->> 'n')::int, 0) + 1);
END $$;
CREATE FUNCTION cont.handle_call(request jsonb, INOUT state jsonb, OUT reply jsonb) LANGUAGE plpgsql AS $$
BEGIN
  state := cont.note(request, state);
  reply := state -> 'n';
END $$;
CREATE FUNCTION cont.handle_cast(message jsonb, state jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT cont.note(message, state) $$;
CREATE FUNCTION cont.handle_info(message jsonb, state jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT cont.note(message, state) $$;
SELECT dgen.create_module('cont', max_attempts => 2, backoff_initial => '5 ms', backoff_max => '10 ms', breaker => 0) -> 'created';
CREATE TEMP VIEW log AS SELECT server, kind, message FROM cont.log ORDER BY n;

--
-- Without its callback, and where it is not allowed
--
SELECT pg_temp.try($$SELECT dgen.call('cont/a', '{"continue": 1}')$$);
CREATE FUNCTION cont.handle_continue(message jsonb, state jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT cont.note(message, state) $$;
SELECT pg_temp.try($$SELECT dgen.continue('1')$$);
SELECT pg_temp.try($$SELECT dgen.call('cont/a', '{"continue": 1, "exit": "both"}')$$);
SELECT pg_temp.try($$SELECT dgen.call('cont/a', '{"do": "SELECT dgen.query(''cont/q'', null)"}')$$);
SELECT dgen.alter_module('cont', ephemeral => true) -> 'created';
SELECT pg_temp.try($$SELECT dgen.call('cont/a', '{"continue": 1}')$$);
SELECT dgen.alter_module('cont', ephemeral => false) -> 'created';
TRUNCATE cont.log;

--
-- Before all that waits, of every priority; a chain of them too
--
SELECT dgen.suspend('cont/b');
SELECT dgen.cast('cont/b', '{"continue": {"id": 1, "continue": {"id": 2, "continue": [3]}}}') > 0,
  dgen.cast('cont/b', '"normal"') > 0, dgen.cast('cont/b', '"low"', priority => -1) > 0, dgen.cast('cont/b', '"behind"') > 0;
SELECT dgen.resume('cont/b');
SELECT dgen.wait_idle('cont/b');
SELECT message, lead FROM (SELECT message, lead(message) OVER (ORDER BY n) FROM cont.log WHERE server = 'b') l WHERE message ? 'continue';
SELECT count(*), dgen.state('cont/b') FROM log WHERE server = 'b';
-- a high one is no exception
SELECT dgen.suspend('cont/h');
SELECT dgen.cast('cont/h', '{"continue": 1}', priority => 1) > 0, dgen.cast('cont/h', '"high"', priority => 1) > 0;
SELECT dgen.resume('cont/h');
SELECT dgen.wait_idle('cont/h');
SELECT kind, message FROM log WHERE server = 'h';
-- calls: each has its continue before the next
SELECT dgen.call('cont/c', '{"continue": "one"}');
SELECT dgen.call('cont/c', '{"continue": "two"}');
SELECT dgen.call('cont/c', '"three"');
SELECT kind, message FROM log WHERE server = 'c';
-- it is the server's own, in the context of what asked for it, and cannot be forged
SET dgen.context = '{"tenant": 7}';
SELECT dgen.call('cont/d', '{"continue": {"do": "INSERT INTO cont.log (server, kind, message) VALUES (dgen.sender(), dgen.kind(), dgen.context())"}}');
RESET dgen.context;
SELECT dgen.call('cont/d', '"after"');
SELECT server, kind, message FROM log WHERE server = 'cont/d';
-- the last one of a handler counts; one that was said in a savepoint does if that stays
SELECT dgen.call('cont/e', '{"do": "DO $x$ BEGIN PERFORM dgen.continue(''1''); BEGIN PERFORM dgen.continue(''2''); RAISE ''no''; EXCEPTION WHEN OTHERS THEN END; END $x$"}');
SELECT dgen.call('cont/e', '"after"');
SELECT kind, message FROM log WHERE server = 'e' OFFSET 1;

--
-- In the transaction of a caller: invoke handles what is pending first
--
BEGIN ISOLATION LEVEL SERIALIZABLE;
SELECT dgen.invoke('cont/i', '{"continue": "first"}');
SELECT kind, status, message FROM dgen.messages WHERE server = 'cont/i';
SELECT dgen.invoke('cont/i', '{"continue": "second"}');
SELECT kind, message FROM log WHERE server = 'i';
SAVEPOINT a;
SELECT dgen.invoke('cont/i', '"undone"');
ROLLBACK TO a;
SELECT message FROM dgen.messages WHERE server = 'cont/i';
COMMIT;
SELECT dgen.call('cont/i', '"call"');
SELECT kind, message FROM log WHERE server = 'i';
-- for tests: drain, and inline calls
BEGIN;
SELECT dgen.cast('cont/j', '{"continue": "j"}') > 0, dgen.cast('cont/j', '"next"') > 0;
SELECT dgen.drain();
SELECT kind, message FROM log WHERE server = 'j';
SET LOCAL dgen.inline = on;
SELECT dgen.call('cont/j', '{"continue": "inline"}');
SELECT dgen.drain('cont/j'), dgen.drain();
SELECT kind, message FROM log WHERE server = 'j' OFFSET 3;
ROLLBACK;

--
-- From init: dgen.start() commits first; a first message waits for it
--
CREATE FUNCTION cont.init(args jsonb, OUT state jsonb, OUT continue jsonb) LANGUAGE plpgsql AS $$
BEGIN
  state := '{"n": 0}';
  continue := coalesce(nullif(args, 'null'), '"from init"');
END $$;
SELECT dgen.start('cont/k', '{"continue": "again"}');
SELECT dgen.call('cont/k', '"call"');
SELECT kind, message FROM log WHERE server = 'k';
SELECT dgen.call('cont/l', '"call"');
SELECT dgen.state('cont/l');
SELECT kind, message FROM log WHERE server = 'l';
BEGIN ISOLATION LEVEL SERIALIZABLE;
SELECT dgen.invoke('cont/m', '"invoke"');
COMMIT;
SELECT kind, message FROM log WHERE server = 'm';
-- it fails: so does the message
CREATE OR REPLACE FUNCTION cont.init(args jsonb, OUT state jsonb, OUT continue jsonb) LANGUAGE sql AS $$ SELECT '{}'::jsonb, '{"do": "SELECT 1 / 0"}'::jsonb $$;
SELECT pg_temp.error($$SELECT dgen.call('cont/n', '"call"')$$);
SELECT * FROM log WHERE server = 'n';
-- it stops the server: the message has none
CREATE OR REPLACE FUNCTION cont.init(args jsonb, OUT state jsonb, OUT continue jsonb) LANGUAGE sql AS $$ SELECT '{}'::jsonb, '{"exit": "at once"}'::jsonb $$;
SELECT pg_temp.try($$SELECT dgen.call('cont/n', '"call"')$$);
SELECT status, stop_reason FROM dgen.servers WHERE server = 'cont/n';
DROP FUNCTION cont.init;

--
-- It fails: attempts, while nothing passes, also where others may; then a dead letter
--
SELECT dgen.alter_module('cont', backoff_initial => '10 s', backoff_max => '1 min', retry => 'skip') -> 'created';
SELECT dgen.call('cont/f', '{"continue": {"do": "SELECT 1 / 0"}}');
SELECT pg_temp.until($$EXISTS (SELECT FROM dgen.messages WHERE server = 'cont/f' AND status = 'retrying')$$);
SELECT kind, attempts, last_error ->> 'sqlstate' AS sqlstate FROM dgen.messages WHERE server = 'cont/f';
-- an invoke runs it, and has its error
BEGIN ISOLATION LEVEL SERIALIZABLE;
SELECT pg_temp.error($$SELECT dgen.invoke('cont/f', '"invoke"')$$);
COMMIT;
SELECT dgen.cast('cont/f', '"high"', priority => 1) > 0;
SELECT pg_temp.error($$SELECT dgen.call('cont/f', '"waits"', '100 ms')$$);
SELECT message FROM log WHERE server = 'f';
-- discarded: the others go on
SELECT dgen.discard(id) FROM dgen.messages WHERE server = 'cont/f' AND kind = 'continue';
SELECT dgen.wait_idle('cont/f');
SELECT dgen.call('cont/f', '"after"');
SELECT kind, message FROM log WHERE server = 'f';
SELECT failing FROM dgen.servers WHERE server = 'cont/f';
SELECT dgen.alter_module('cont', backoff_initial => '5 ms', backoff_max => '10 ms', retry => 'block') -> 'created';
SELECT dgen.call('cont/g', '{"continue": {"do": "SELECT 1 / 0"}}');
SELECT dgen.call('cont/g', '"after"');
SELECT kind, message, attempts, sqlstate FROM dgen.dead_letters WHERE server = 'cont/g';
SELECT dgen.requeue(id, '"mended"') FROM dgen.dead_letters WHERE server = 'cont/g';
SELECT dgen.wait_idle('cont/g');
SELECT kind, message FROM log WHERE server = 'g';
-- the incarnation that asked for it ends: it is for nobody
BEGIN ISOLATION LEVEL SERIALIZABLE;
SELECT dgen.invoke('cont/o', '{"continue": "lost"}');
SELECT dgen.stop('cont/o');
COMMIT;
SELECT dgen.wait_idle('cont/o');
SELECT dgen.call('cont/o', '"next life"');
SELECT kind, message FROM log WHERE server = 'o';
-- a server that is deleted while one waits
BEGIN ISOLATION LEVEL SERIALIZABLE;
SELECT dgen.invoke('cont/p', '{"continue": "lost"}');
SELECT dgen.delete('cont/p');
COMMIT;
SELECT count(*) FROM dgen.messages WHERE server = 'cont/p';

--
-- terminate: at exit and stop, in the same transaction; not at kill and delete
--
CREATE FUNCTION cont.terminate(reason text, state jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO cont.log (server, kind, message) VALUES (dgen.key(), dgen.kind(), jsonb_build_object('reason', reason, 'state', state));
  IF reason = 'refused' THEN RAISE EXCEPTION 'not now' USING ERRCODE = 'TE001'; END IF;
  IF reason = 'directive' THEN PERFORM dgen.exit('again'); END IF;
  PERFORM dgen.cast('cont/heir', to_jsonb(reason));
END $$;
SELECT dgen.call('cont/t', '1'), dgen.call('cont/t', '{"exit": "done"}');
SELECT status, stop_reason, state FROM dgen.servers WHERE server = 'cont/t';
SELECT kind, message FROM log WHERE server = 't' OFFSET 2;
SELECT dgen.wait_idle('cont/heir');
SELECT message FROM log WHERE server = 'heir';
-- its error undoes the message, or the stop
SELECT pg_temp.error($$SELECT dgen.call('cont/t', '{"exit": "refused"}')$$), pg_temp.error($$SELECT dgen.call('cont/t', '{"exit": "directive"}')$$);
SELECT status FROM dgen.servers WHERE server = 'cont/t';
SELECT dgen.call('cont/t', '1');
SELECT pg_temp.error($$SELECT dgen.stop('cont/t', 'refused')$$);
SELECT status, stop_reason FROM dgen.servers WHERE server = 'cont/t';
SELECT dgen.kill('cont/t', 'refused');
SELECT status, stop_reason FROM dgen.servers WHERE server = 'cont/t';
SELECT dgen.call('cont/t', '1'), dgen.delete('cont/t');
SELECT dgen.call('cont/t', '1'), dgen.stop('cont/t');
SELECT kind, message FROM log WHERE server = 't' OFFSET 3;
-- what it does is the caller's to roll back
SELECT dgen.call('cont/u', '1');
BEGIN;
SELECT dgen.stop('cont/u', 'rolled back');
ROLLBACK;
SELECT status FROM dgen.servers WHERE server = 'cont/u';
SELECT count(*) FROM log WHERE kind = 'terminate' AND server = 'u';
-- a cast and an invoke that stop their server; the state that they leave is kept, or not
SELECT dgen.cast('cont/u', '{"exit": "cast"}') > 0;
SELECT dgen.wait_idle('cont/u');
SELECT dgen.alter_module('cont', on_stop => 'delete') -> 'created';
BEGIN ISOLATION LEVEL SERIALIZABLE;
SELECT dgen.invoke('cont/v', '{"exit": "invoke"}');
COMMIT;
SELECT server, message FROM log WHERE kind = 'terminate' AND server IN ('u', 'v');
SELECT count(*) FROM dgen.servers WHERE server = 'cont/v';
-- a continue that has failed goes with a server that is not kept, and so do its failures
SELECT dgen.alter_module('cont', backoff_initial => '1 hour', backoff_max => '1 hour') -> 'created';
SELECT dgen.cast('cont/w', '{"continue": {"do": "SELECT 1/0"}}') > 0;
SELECT pg_temp.until($$EXISTS (SELECT FROM dgen.attempt WHERE server = 'cont/w')$$);
SELECT dgen.stop('cont/w');
SELECT (SELECT count(*) FROM dgen.attempt WHERE server = 'cont/w') AS attempts, (SELECT count(*) FROM dgen.server WHERE server = 'cont/w') AS servers;
-- one that was discarded comes before all others again when that is undone
SELECT dgen.call('cont/x', '{"continue": {"do": "SELECT 1/0"}}');
SELECT pg_temp.until($$EXISTS (SELECT FROM dgen.attempt WHERE server = 'cont/x')$$);
SELECT dgen.suspend('cont/x'), dgen.cast('cont/x', '"later"') > 0;
SELECT dgen.discard(id) FROM dgen.messages WHERE server = 'cont/x' AND kind = 'continue';
SELECT dgen.undo(max(id)) > 0 FROM dgen.audit_log WHERE server = 'cont/x' AND action = 'discard';
SELECT s.continue_id = m.id FROM dgen.server s JOIN dgen.messages m USING (server) WHERE server = 'cont/x' AND kind = 'continue';
SELECT dgen.resume('cont/x');
SELECT pg_temp.until($$EXISTS (SELECT FROM dgen.attempt WHERE server = 'cont/x')$$);
SELECT kind, status, attempts FROM dgen.messages WHERE server = 'cont/x' ORDER BY id;
SELECT dgen.discard(id) FROM dgen.messages WHERE server = 'cont/x' AND kind = 'continue';
SELECT dgen.wait_idle('cont/x');
SELECT kind, message FROM log WHERE server = 'x';

SET client_min_messages = error;
SELECT dgen.drop_module('cont', cascade => true);
DROP SCHEMA cont CASCADE;
