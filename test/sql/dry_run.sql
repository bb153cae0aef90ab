--
-- dry_run: what a message would do, and nothing of it.
--
\getenv dir PG_ABS_SRCDIR
\i :dir/sql/helpers.psql
CREATE ROLE regress_dgen_dry LOGIN;
CREATE ROLE regress_dgen_dry_operator;
CREATE ROLE regress_dgen_dry_reader;
CREATE SCHEMA dry AUTHORIZATION regress_dgen_dry;
CREATE SCHEMA dry2 AUTHORIZATION regress_dgen_dry;
CREATE TABLE dry.seen (id integer PRIMARY KEY, note text);
ALTER TABLE dry.seen OWNER TO regress_dgen_dry;
CREATE TABLE dry.late (id integer PRIMARY KEY, seen integer REFERENCES dry.seen DEFERRABLE INITIALLY DEFERRED);
ALTER TABLE dry.late OWNER TO regress_dgen_dry;
CREATE SEQUENCE dry.numbers;
ALTER SEQUENCE dry.numbers OWNER TO regress_dgen_dry;
-- without ids and times
CREATE FUNCTION pg_temp.dry(server text, message jsonb, kind text DEFAULT 'call') RETURNS text LANGUAGE sql AS $$
  SELECT jsonb_pretty(regexp_replace(dgen.dry_run(server, message, kind)::text,
    '\d{4}-\d\d-\d\dT[0-9:.]+[-+]\d\d:\d\d', '<time>', 'g')::jsonb) $$;
SET ROLE regress_dgen_dry;
CREATE FUNCTION dry.init(args jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT '{"n": 0}'::jsonb $$;
CREATE FUNCTION dry.effect(args jsonb) RETURNS void LANGUAGE sql AS $$ SELECT $$;
CREATE FUNCTION dry.handle_call(request jsonb, INOUT state jsonb, OUT reply jsonb) LANGUAGE plpgsql AS $$
BEGIN
  state := state || jsonb_build_object('n', (state ->> 'n')::integer + 1, 'sum', repeat('x', 3));
  reply := state -> 'n';
  IF request ? 'all' THEN
    INSERT INTO dry.seen VALUES (1, dgen.sender_role());
    PERFORM nextval('dry.numbers'), pg_notify('dry', 'x'), set_config('dry.left', 'behind', false);
    PERFORM dgen.cast('dry/b', '{"to": "b"}'), dgen.cast('dry/b', '{"to": "b"}', delay => '1 h', priority => 1),
      dgen.send('dry2/x', '{"to": "x"}'), dgen.send_request('dry/b', '{"request": 1}'),
      dgen.send_after(dgen.self(), '{"t": 1}', '2 h', 'named'), dgen.send_every(dgen.self(), '{"t": 2}', '1 day'),
      dgen.after_commit('dry.effect', '{"mail": true}');
    PERFORM dgen.timeout('10 s'), dgen.continue('{"go": "on"}');
    PERFORM dgen.register('dry.name', dgen.self());
  ELSIF request ? 'noreply' THEN
    reply := NULL;
    PERFORM dgen.noreply();
  ELSIF request ? 'exit' THEN
    PERFORM dgen.exit('done');
  ELSIF request ? 'reject' THEN
    PERFORM dgen.reject('not that');
  ELSIF request ? 'postpone' THEN
    reply := NULL;
    PERFORM dgen.postpone();
  ELSIF request ? 'error' THEN
    RAISE EXCEPTION 'no' USING DETAIL = 'of course', HINT = 'say yes', ERRCODE = 'P0042';
  ELSIF request ? 'deferred' THEN
    INSERT INTO dry.late VALUES (1, 42);
  ELSIF request ? 'invoke' THEN
    reply := dgen.call('dry/b', '{}');
  ELSIF request ? 'dry' THEN
    PERFORM dgen.dry_run('dry/b', '{}');
  ELSIF request ? 'operate' THEN
    PERFORM dgen.stop('dry/b'), dgen.delete('dry/b'), dgen.suspend('dry/c');
  ELSIF request ? 'caught' THEN
    BEGIN
      PERFORM dgen.cast('dry/b', '{}');
      PERFORM 1 / 0;
    EXCEPTION WHEN division_by_zero THEN
      reply := '"caught"';
    END;
  END IF;
END $$;
CREATE FUNCTION dry.handle_cast(message jsonb, INOUT state jsonb) LANGUAGE plpgsql AS $$
BEGIN
  IF message ? 'error' AND NOT (state ? 'mended') THEN
    RAISE EXCEPTION 'of a cast';
  END IF;
  IF message ? 'later' THEN
    PERFORM dgen.retry_after('5 s');
    RETURN;
  END IF;
  state := state || jsonb_build_object('cast', message, 'from', dgen.sender_role());
END $$;
CREATE FUNCTION dry.handle_info(message jsonb, state jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT state || jsonb_build_object('info', message) $$;
CREATE FUNCTION dry.handle_continue(message jsonb, state jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT state $$;
CREATE FUNCTION dry.validate(state jsonb) RETURNS boolean LANGUAGE sql AS $$ SELECT coalesce((state ->> 'n')::integer, 0) < 3 $$;
CREATE FUNCTION dry.accept(kind text, message jsonb) RETURNS boolean LANGUAGE sql AS $$ SELECT NOT message ? 'refused' $$;
CREATE FUNCTION dry2.handle_info(message jsonb, state jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT state $$;
SELECT dgen.create_module('dry', max_attempts => 1, breaker => 0, operators => 'regress_dgen_dry_operator',
  readers => 'regress_dgen_dry_reader', history => '10') -> 'created', dgen.create_module('dry2') -> 'created';

--
-- A server that was never started, and all that a handler can do
--
SELECT pg_temp.dry('dry/a', '{"all": true}');
SELECT pg_temp.dry('dry/a', '{"x": 1}', 'cast');
SELECT pg_temp.dry('dry/a', '{"x": 1}', 'info');
-- nothing is left of it
SELECT count(*) FROM dgen.servers WHERE module LIKE 'dry%';
SELECT count(*) FROM dgen.messages WHERE server LIKE 'dry%';
SELECT count(*) FROM dgen.timers WHERE server LIKE 'dry%';
SELECT count(*) FROM dgen.names WHERE name = 'dry.name';
SELECT count(*) FROM dry.seen;
SELECT coalesce(current_setting('dry.left', true), '') = '';
SELECT is_called FROM dry.numbers;
-- nor in the session: a call in the same transaction overtakes nobody, no lease is held
BEGIN ISOLATION LEVEL SERIALIZABLE;
SELECT dgen.dry_run('dry/a', '{"all": true}') ->> 'outcome';
SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 214 AND pid = pg_backend_pid();
SELECT dgen.invoke('dry/b', '{}');
SELECT dgen.dry_run('dry/b', '{}') - 'old' - 'new';
SELECT dgen.drain();
COMMIT;
SELECT dgen.state('dry/b');

--
-- Outcomes
--
SELECT dgen.dry_run('dry/b', m::jsonb) - 'messages' - 'timers' - 'effects' FROM unnest(ARRAY['{}', '{"noreply": 1}', '{"exit": 1}', '{"reject": 1}', '{"postpone": 1}', '{"caught": 1}']) m;
SELECT dgen.dry_run('dry/b', '{"later": 1}', 'cast') - 'messages' - 'timers' - 'effects';
SELECT dgen.dry_run('dry/b', '{"caught": 1}') -> 'messages';
SELECT (dgen.dry_run('dry/b', '{"error": 1}') #- '{error,context}');
-- as for an invoke: what could run later as the caller is not let in, unless the owner may become the caller
SELECT dgen.dry_run('dry/b', '{"deferred": 1}') #>> '{error,sqlstate}';
SELECT dgen.dry_run('dry/b', '{"refused": 1}') #>> '{error,sqlstate}';
-- a server that calls another
SELECT dgen.dry_run('dry/a', '{"invoke": 1}') -> 'reply';
SELECT dgen.dry_run('dry/b', '{"invoke": 1}') #>> '{error,sqlstate}';
-- what it operates is not
SELECT dgen.dry_run('dry/a', '{"operate": 1}') ->> 'outcome';
SELECT server, status, suspended_at FROM dgen.servers WHERE module = 'dry';
-- validate
SELECT dgen.call('dry/b', '{}');
SELECT dgen.dry_run('dry/b', '{}') #>> '{error,sqlstate}';
-- suspended: the server, the module
SELECT dgen.suspend('dry/b');
SELECT dgen.dry_run('dry/b', '{"x": 1}', 'cast') ->> 'outcome';
SELECT dgen.suspend(module => 'dry');
SELECT dgen.dry_run('dry/b', '{"x": 1}', 'cast') ->> 'outcome';
SELECT dgen.resume(module => 'dry'), dgen.resume('dry/b');
-- in an EXCEPTION block, and in a transaction that goes on after an error
SELECT pg_temp.try($$SELECT dgen.dry_run('dry/b', '{"error": 1}') #>> '{error,message}'$$);

--
-- A dead letter: would it go through now?
--
SELECT dgen.cast('dry/d', '{"error": "x"}') AS id \gset
SELECT pg_temp.until($$(SELECT count(*) = 1 FROM dgen.dead_letters WHERE server = 'dry/d')$$);
SELECT dgen.dry_run(letter => :id) #>> '{error,message}';
SELECT dgen.dry_run(letter => :id, message => '{"x": 2}') -> 'new';
SELECT dgen.start('dry/d', if_exists => 'return') > 0;
SELECT dgen.replace_state('dry/d', '{"n": 0, "mended": true}') > 0;
SELECT dgen.dry_run(letter => :id) -> 'patch';
SELECT count(*) FROM dgen.dead_letters WHERE id = :id;
-- as it says
SELECT dgen.requeue(:id);
SELECT dgen.wait_idle('dry/d');
SELECT dgen.state('dry/d');

--
-- Rights, errors
--
SET ROLE regress_dgen_dry_operator;
SELECT dgen.dry_run('dry/b', '{"x": 1}', 'cast') #>> '{new,from}';
SET ROLE regress_dgen_dry_reader;
SELECT pg_temp.error($$SELECT dgen.dry_run('dry/b', '{}')$$);
SELECT pg_temp.error($$SELECT dgen.dry_run(letter => 4711)$$);
RESET ROLE;
SELECT pg_temp.try($$SELECT dgen.dry_run()$$);
SELECT pg_temp.try($$SELECT dgen.dry_run('dry/b', '{}', letter => 1)$$);
SELECT pg_temp.try($$SELECT dgen.dry_run('dry/b', '{}', 'request')$$);
SELECT pg_temp.error($$SELECT dgen.dry_run('dry_none/b', '{}')$$);
SET default_transaction_read_only = on;
SELECT pg_temp.error($$SELECT dgen.dry_run('dry/b', '{}')$$);
RESET default_transaction_read_only;
SELECT pg_temp.try($$SELECT dgen.call('dry/b', '{"dry": 1}')$$);
-- what is not the handler's, or cannot be undone
CREATE SCHEMA dry3;
CREATE FUNCTION dry3.effect(args jsonb) RETURNS void LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'no mail'; END $$;
CREATE FUNCTION dry3.handle_call(request jsonb, INOUT state jsonb, OUT reply jsonb) LANGUAGE sql AS $$
  SELECT state, to_jsonb(dgen.after_commit('dry3.effect')) $$;
SELECT dgen.create_module('dry3', max_attempts => 1) -> 'created';
SELECT dgen.call('dry3/a', '1') IS NOT NULL;
SELECT pg_temp.until($$(SELECT count(*) = 1 FROM dgen.dead_letters WHERE server = 'dry3/a')$$);
SELECT id FROM dgen.dead_letters WHERE server = 'dry3/a' \gset
SELECT pg_temp.try(format('SELECT dgen.dry_run(letter => %s)', :id));
SELECT dgen.drop_module('dry3', "cascade" => true);
DROP FUNCTION dry3.handle_call;
SELECT dgen.create_module('dry3', external => true) -> 'created';
SELECT pg_temp.try($$SELECT dgen.dry_run('dry3/a', '1')$$);
SELECT dgen.drop_module('dry3', "cascade" => true);
SELECT dgen.drop_module('dry', "cascade" => true), dgen.drop_module('dry2', "cascade" => true);
SELECT count(*) FROM dgen.audit WHERE server LIKE 'dry%';
SET client_min_messages = warning;
DROP SCHEMA dry, dry2, dry3 CASCADE;
DROP ROLE regress_dgen_dry, regress_dgen_dry_operator, regress_dgen_dry_reader;
