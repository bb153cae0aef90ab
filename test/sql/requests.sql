--
-- Requests: replies that are kept, waited for, or sent on to a server.
--
\getenv dir PG_ABS_SRCDIR
\i :dir/sql/helpers.psql
CREATE ROLE regress_dgen_requests LOGIN;
CREATE SCHEMA requests AUTHORIZATION regress_dgen_requests;
SET ROLE regress_dgen_requests;

CREATE FUNCTION requests.handle_call(request jsonb, INOUT state jsonb, OUT reply jsonb) LANGUAGE plpgsql AS $$
BEGIN
  IF request = '"fail"' THEN
    RAISE EXCEPTION 'cannot do that' USING ERRCODE = 'RQ001', DETAIL = 'It is too hard.', HINT = 'Ask for less.';
  ELSIF request = '"later"' THEN
    PERFORM dgen.noreply();
    state := jsonb_build_object('from', dgen."from"());
    RETURN;
  ELSIF request = '"reject"' THEN
    PERFORM dgen.reject('not today');
  ELSIF request = '"slow"' THEN
    PERFORM pg_sleep(1);
  ELSIF request ? 'do' THEN
    EXECUTE 'SELECT to_jsonb(' || (request ->> 'do') || ')' INTO reply;
    state := jsonb_build_object('done', reply, 'quick', clock_timestamp() - dgen.now() < '2 s');
    RETURN;
  END IF;
  reply := jsonb_build_array(request, dgen.kind());
END $$;
-- sends a request of its own, and keeps what comes back
CREATE FUNCTION requests.handle_cast(message jsonb, INOUT state jsonb) LANGUAGE plpgsql AS $$
BEGIN
  state := state || jsonb_build_object('id', dgen.send_request(message ->> 'to', message -> 'request'));
END $$;
CREATE FUNCTION requests.handle_info(message jsonb, INOUT state jsonb) LANGUAGE plpgsql AS $$
BEGIN
  state := state || jsonb_build_object('mine', message -> 'request_id' = state -> 'id', 'kind', dgen.kind(),
    'info', message #- '{request_id}' #- '{error,context}');
END $$;
SELECT dgen.create_module('requests', max_attempts => 2, backoff_initial => '10 ms') -> 'created';

--
-- A reply can be had any number of times, in several ways
--
SELECT dgen.send_request('requests/a', '1') AS id \gset
SELECT dgen.wait_response(:id);
SELECT dgen.wait_response(:id), dgen.check_response(:id), dgen.wait_any(ARRAY[:id]) = :id;
SELECT dgen.message_status(:id);
SELECT reply, error FROM dgen.wait_all(ARRAY[:id]);
SELECT dgen.receive_response(:id);
SELECT dgen.wait_response(:id);
-- NULL is JSON null, as request and as reply
SELECT dgen.send_request('requests/a', NULL) AS id \gset
SELECT dgen.wait_response(:id);

--
-- Before there is one
--
SELECT dgen.suspend('requests/b');
SELECT dgen.send_request('requests/b', '2') AS id \gset
SELECT dgen.message_status(:id), dgen.check_response(:id) IS NULL, dgen.wait_any(ARRAY[:id], '10 ms') IS NULL;
SELECT reply, error FROM dgen.wait_all(ARRAY[:id], '10 ms');
SELECT regexp_replace(pg_temp.try(format('SELECT dgen.wait_response(%s, ''20 ms'')', :id)), :'id', 'N', 'g');
-- it remains
SELECT dgen.message_status(:id);
SELECT dgen.resume('requests/b');
SELECT dgen.wait_response(:id);
-- receive_response takes it back
SELECT dgen.suspend('requests/b');
SELECT dgen.send_request('requests/b', '3') AS id \gset
SELECT dgen.receive_response(:id, '10 ms') IS NULL;
SELECT dgen.message_status(:id);
SELECT dgen.resume('requests/b');
SELECT count(*) FROM dgen.messages WHERE server = 'requests/b';
SELECT regexp_replace(pg_temp.try(format('SELECT dgen.check_response(%s)', :id)), :'id', 'N', 'g');
-- but not one that is being handled
SELECT dgen.send_request('requests/b', '"slow"') AS id \gset
SELECT pg_temp.until($$EXISTS (SELECT FROM dgen.workers WHERE server = 'requests/b')$$);
SELECT regexp_replace(pg_temp.try(format('SELECT dgen.receive_response(%s, ''50 ms'')', :id)), :'id', 'N', 'g');
SELECT dgen.wait_response(:id);
-- and cancel
SELECT dgen.suspend('requests/b');
SELECT dgen.send_request('requests/b', '4') AS id \gset
SELECT dgen.cancel(:id);
SELECT dgen.resume('requests/b');
SELECT pg_temp.error(format('SELECT dgen.wait_response(%s)', :id)) LIKE '42704 request % does not exist';

--
-- Errors are kept, too
--
SELECT dgen.send_request('requests/c', '"fail"') AS id \gset
SELECT pg_temp.try(format('SELECT dgen.wait_response(%s)', :id));
SELECT pg_temp.error(format('SELECT dgen.check_response(%s)', :id));
SELECT pg_temp.error(format('SELECT dgen.receive_response(%s)', :id));
SELECT dgen.message_status(:id), dgen.wait_any(ARRAY[:id]) = :id;
SELECT reply, error - 'context' FROM dgen.wait_all(ARRAY[:id]);
SELECT kind, message, attempts, sqlstate FROM dgen.dead_letters WHERE server = 'requests/c';
SELECT dgen.send_request('requests/c', '"reject"') AS id \gset
SELECT pg_temp.error(format('SELECT dgen.wait_response(%s)', :id));
SELECT dgen.suspend('requests/c');
SELECT dgen.send_request('requests/c', '"expires"', expires => '1 ms') AS id \gset
SELECT pg_sleep(0.01);
SELECT dgen.resume('requests/c');
SELECT pg_temp.until(format('dgen.message_status(%s) <> ''ready''', :id));
SELECT dgen.message_status(:id), regexp_replace(pg_temp.try(format('SELECT dgen.wait_response(%s)', :id)), :'id', 'N', 'g');

--
-- Several
--
SELECT dgen.suspend('requests/d');
SELECT dgen.send_request('requests/d', '"held"') AS held, dgen.send_request('requests/e', '"now"') AS now,
  dgen.send_request('requests/e', '"fail"') AS fail \gset
SELECT dgen.wait_any(ARRAY[:held, :now]) = :now;
SELECT r.request_id = :held, r.request_id = :now, r.request_id = :fail, reply, error ->> 'sqlstate'
FROM dgen.wait_all(ARRAY[:held, :now, :fail], '2 s') WITH ORDINALITY r(request_id, reply, error, o) ORDER BY o;
SELECT dgen.resume('requests/d');
SELECT reply, error ->> 'sqlstate' FROM dgen.wait_all(ARRAY[:held, :now, :held]);
SELECT * FROM dgen.wait_all('{}');
SELECT dgen.wait_any('{}') IS NULL;

--
-- Nothing to wait for
--
BEGIN;
SELECT dgen.send_request('requests/a', '"own"') AS id \gset
SELECT regexp_replace(pg_temp.try(format('SELECT dgen.%s', f)), :'id', 'N', 'g') FROM unnest(ARRAY[
  format('wait_response(%s)', :id), format('receive_response(%s)', :id), format('check_response(%s)', :id),
  format('wait_any(ARRAY[%s::bigint])', :id), format('wait_all(ARRAY[%s::bigint])', :id)]) f;
ROLLBACK;
SELECT regexp_replace(pg_temp.try(format('SELECT dgen.wait_response(%s)', :id)), :'id', 'N', 'g');
SELECT f, pg_temp.error('SELECT dgen.' || f) FROM unnest(ARRAY['wait_response(0)', 'wait_response(-1)',
  'check_response(9223372036854775807)', 'receive_response(9223372036854775807)', 'wait_any(ARRAY[9223372036854775807])',
  'wait_all(ARRAY[9223372036854775807])', 'wait_response(NULL)', 'receive_response(NULL)', 'check_response(NULL)',
  'wait_any(NULL)', 'wait_all(NULL)', 'wait_any(ARRAY[NULL::bigint])', 'wait_all(ARRAY[NULL::bigint])']) f;
SELECT dgen.send('requests/a', '1') AS id \gset
SELECT regexp_replace(pg_temp.try(format('SELECT dgen.wait_response(%s)', :id)), :'id', 'N', 'g')
  IN (E'42809 message N is not a request\n  Nobody replies to casts and infos.\n  See dgen.message_status(N) for what became of it, or send with dgen.send_request().',
      E'42704 request N does not exist\n  It may have been cancelled, its reply may have expired, or it is neither yours nor sent to a module that you may read.');
SELECT pg_temp.error(format('SELECT dgen.wait_response(1, %L)', t)) FROM unnest(ARRAY['-1 s', '1000000 years']) t;

--
-- Later replies
--
SELECT dgen.send_request('requests/f', '"later"') AS id \gset
SELECT dgen.wait_idle('requests/f');
SELECT dgen.message_status(:id);
SELECT regexp_replace(pg_temp.try(format('SELECT dgen.wait_response(%s, ''10 ms'')', :id)), :'id', 'N', 'g');
SELECT dgen.reply(dgen.state('requests/f') ->> 'from', '"at last"');
SELECT dgen.wait_response(:id);
SELECT pg_temp.error($$SELECT dgen.reply(dgen.state('requests/f') ->> 'from', '"again"')$$);
-- a reply that is rolled back was none
SELECT dgen.send_request('requests/f', '"later"') AS id \gset
SELECT dgen.wait_idle('requests/f');
BEGIN;
SELECT dgen.reply(dgen.state('requests/f') ->> 'from', '"undone"');
ROLLBACK;
SELECT dgen.message_status(:id);
SELECT dgen.reply(dgen.state('requests/f') ->> 'from', '"done"');
SELECT dgen.wait_response(:id);

--
-- A server's own request is answered by an info
--
SELECT dgen.cast('requests/asker', '{"to": "requests/g", "request": "please"}') > 0;
SELECT pg_temp.until($$EXISTS (SELECT FROM dgen.servers WHERE server = 'requests/asker' AND state ? 'info')$$);
SELECT dgen.state('requests/asker') - 'id';
SELECT dgen.cast('requests/asker 2', '{"to": "requests/g", "request": "fail"}') > 0;
SELECT pg_temp.until($$EXISTS (SELECT FROM dgen.servers WHERE server = 'requests/asker 2' AND state ? 'info')$$);
SELECT dgen.state('requests/asker 2') - 'id';
SELECT dgen.suspend('requests/h');
SELECT dgen.cast('requests/asker 3', '{"to": "requests/h", "request": 1}') > 0;
SELECT dgen.wait_idle('requests/asker 3');
SELECT id, sender, sender_role FROM dgen.messages WHERE server = 'requests/h' \gset
SELECT :'sender', :'sender_role';
SELECT regexp_replace(pg_temp.try(format('SELECT dgen.wait_response(%s)', :id)), :'id', 'N', 'g');
SELECT dgen.cancel(:id);

--
-- wait_state
--
SELECT version > 0, state ? 'from' FROM dgen.wait_state('requests/f', timeout => '1 s');
SELECT version AS v FROM dgen.servers WHERE server = 'requests/f' \gset
SELECT count(*) FROM dgen.wait_state('requests/f', after_version => :v, timeout => '20 ms');
SELECT version = :v FROM dgen.wait_state('requests/f', after_version => :v - 1);
SELECT count(*) FROM dgen.wait_state('requests/unknown', timeout => '20 ms');
SELECT pg_temp.error($$SELECT dgen.wait_state(NULL)$$);
SELECT pg_temp.error($$SELECT dgen.wait_state('requests/f', timeout => '-1 s')$$);
SELECT pg_temp.error($$SELECT dgen.wait_state('regress_dgen_nowhere/f')$$);
BEGIN;
SELECT dgen.replace_state('requests/f', '{"held": true}') > 0;
SELECT version = :v + 1, state FROM dgen.wait_state('requests/f', after_version => :v);
SELECT pg_temp.error(format('SELECT dgen.wait_state(''requests/f'', %s)', :v + 1));
ROLLBACK;

SELECT count(*) FROM dgen.wait_state('requests/unknown', after_version => -1, timeout => '20 ms');

--
-- wait_change: the same in a procedure, and any change
--
SELECT dgen.replace_state('requests/f', '{"round": 1}') - :v;
CALL dgen.wait_change('requests/f', :v) \gset now_
SELECT :now_version - :v, :'now_state';
SELECT dgen.replace_state('requests/f', jsonb_build_object('large', repeat('x', 5000))) > 0;
CALL dgen.wait_change('requests/f', version => :v) \gset now_
SELECT :now_version - :v, length(:'now_state'::jsonb ->> 'large');
CALL dgen.wait_change('requests/f', state => '"ignored"') \gset again_
SELECT :again_version = :now_version, :'again_state' = :'now_state';
-- nothing new: the version that was given, and no state
CALL dgen.wait_change('requests/unknown', timeout => '20 ms');
CALL dgen.wait_change('requests/unknown', 17);
CALL dgen.wait_change('requests/f', :now_version, '20 ms') \gset again_
SELECT :again_version = :now_version;
\echo :again_state
SELECT dgen.delete('requests/f');
CALL dgen.wait_change('requests/f', :now_version);
CALL dgen.wait_change(NULL);
CALL dgen.wait_change('requests/f', timeout => '-1 s');
CALL dgen.wait_change('regress_dgen_nowhere/f');
SELECT pg_temp.try($$CALL dgen.wait_change('requests/f')$$);
BEGIN;
CALL dgen.wait_change('requests/f');
ROLLBACK;
RESET ROLE;
CREATE ROLE regress_dgen_reader;
SET ROLE regress_dgen_reader;
CALL dgen.wait_change('requests/g', timeout => '10 ms');
RESET ROLE;
DROP ROLE regress_dgen_reader;
SET ROLE regress_dgen_requests;

--
-- A caller's deadline, as its handler and those that this one calls see it
--
SELECT pg_temp.try($$SELECT dgen.deadline()$$);
SET statement_timeout = 0;
SELECT dgen.call('requests/t', '{"do": "dgen.deadline() - clock_timestamp() BETWEEN ''1 min'' AND ''2 min''"}', '2 min');
SELECT dgen.call('requests/t', '{"do": "dgen.deadline()"}', '0');
SELECT dgen.call('requests/t', '{"do": "dgen.call(''requests/u'', ''{\"do\": \"dgen.deadline() - dgen.now() < make_interval(mins => 2)\"}'', ''1 h'')"}', '2 min');
SELECT dgen.call('requests/t', '{"do": "dgen.call(''requests/u'', ''{\"do\": \"dgen.deadline() IS NULL\"}'', ''1 s'')"}', '0');
BEGIN ISOLATION LEVEL SERIALIZABLE;
SELECT dgen.invoke('requests/t', '{"do": "dgen.deadline() IS NULL"}');
COMMIT;
SET statement_timeout = '1 min';
SELECT dgen.call('requests/t', '{"do": "dgen.deadline() - dgen.now() < ''1 min''"}', '0');
RESET statement_timeout;
-- nobody waits for a request's handler
SELECT dgen.send_request('requests/t', '{"do": "dgen.deadline() IS NULL"}', expires => '1 h') AS id \gset
SELECT dgen.wait_response(:id);
-- the handler's own waits end with it, even where a late call is finished
SELECT dgen.suspend('requests/h');
SELECT dgen.send_request('requests/h', '1') AS id \gset
SELECT dgen.alter_module('requests', late_calls => 'finish') IS NOT NULL;
SELECT pg_temp.error(format('SELECT dgen.call(''requests/t'', %L, ''300 ms'')',
  jsonb_build_object('do', format('dgen.wait_any(ARRAY[%s], ''5 s'')', :id)))) IN
  ('OT002 outcome of the call to server "requests/t" is unknown', 'null');
SELECT pg_temp.until($$dgen.state('requests/t') ->> 'done' IS NULL$$);
SELECT dgen.state('requests/t');

--
-- multi_call tells each server's error by itself
--
SELECT dgen.suspend('requests/m1');
SELECT dgen.start('requests/m2'), dgen.delete('requests/m3', tombstone => '1 h');
SELECT dgen.alter_module('requests', late_calls => 'cancel', max_message_size => 1000) IS NOT NULL;
SELECT server, reply IS NOT NULL AS replied, error ->> 'sqlstate' AS sqlstate, error ->> 'message' AS message
FROM dgen.multi_call(ARRAY['requests/m1', 'requests/m2', 'requests/m3', 'regress_dgen_nowhere/1'], '"later"', '300 ms');
SELECT server, reply, error ->> 'sqlstate' AS sqlstate, error ->> 'message' AS message
FROM dgen.multi_call(ARRAY['requests/m2', 'requests/m4'], '"fail"');
SELECT server, reply, error ->> 'sqlstate' AS sqlstate, error ->> 'message' AS message
FROM dgen.multi_call(ARRAY['requests/m2'], '"reject"');
SELECT server, reply, error ->> 'sqlstate' AS sqlstate, error ->> 'message' AS message
FROM dgen.multi_call(ARRAY['requests/m2', 'requests/m2'], to_jsonb(repeat('x', 1000)));
SET dgen.inline = on;
SELECT server, reply, error ->> 'sqlstate' AS sqlstate FROM dgen.multi_call(ARRAY['requests/m2', 'requests/m1'], '"fail"');
RESET dgen.inline;

--
-- handled in the transaction that has sent it, a request ends as it does in a worker
--
SELECT dgen.alter_module('requests', auto_start => false) -> 'created';
BEGIN;
SELECT dgen.send_request('requests/d1', '1') AS d1, dgen.send_request('requests/d2', '1', expires => '1 us') AS d2 \gset
SELECT dgen.drain();
COMMIT;
SELECT pg_temp.try(format('SELECT dgen.check_response(%s)', :d1));
SELECT pg_temp.try(format('SELECT dgen.check_response(%s)', :d2));

-- or not at all
SELECT dgen.suspend('requests/d3');
SELECT pg_temp.try($$SELECT dgen.send_request('requests/d3', '1'), dgen.drain()$$);

SELECT dgen.drop_module('requests', true);
RESET ROLE;
SET client_min_messages = warning;
DROP SCHEMA requests CASCADE;
DROP ROLE regress_dgen_requests;
