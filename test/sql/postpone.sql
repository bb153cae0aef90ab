--
-- postpone: a message waits for a change of its server; calls that become messages.
--
\getenv dir PG_ABS_SRCDIR
\i :dir/sql/helpers.psql
CREATE SCHEMA door;
CREATE TABLE door.log (n serial, server text, kind text, message jsonb);
-- a door: closed, everybody waits; "open" and "close" change that; the reply is how many have passed
CREATE FUNCTION door.pass(message jsonb, state jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
  IF message IN ('"open"', '"close"') THEN
    RETURN state || jsonb_build_object('open', message = '"open"');
  END IF;
  IF message = '"look"' THEN RETURN state; END IF;
  IF message = '"exit"' THEN PERFORM dgen.exit('told so'); RETURN state; END IF;
  IF NOT (state -> 'open')::boolean THEN
    IF message ? 'note' THEN PERFORM dgen.cast('door/notes', message -> 'note'); END IF;
    PERFORM dgen.postpone();
    RETURN CASE WHEN message ? 'count' THEN state || jsonb_build_object('tries', coalesce((state ->> 'tries')::int, 0) + 1) ELSE state END;
  END IF;
  INSERT INTO door.log (server, kind, message) VALUES (dgen.key(), dgen.kind(), message);
  IF message = '"fail"' THEN RAISE EXCEPTION 'no way' USING ERRCODE = 'PO001'; END IF;
  RETURN state || jsonb_build_object('passed', (state ->> 'passed')::int + 1);
END $$;
CREATE FUNCTION door.init(args jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT '{"open": false, "passed": 0}'::jsonb $$;
CREATE FUNCTION door.handle_cast(message jsonb, state jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT door.pass(message, state) $$;
CREATE FUNCTION door.handle_info(message jsonb, state jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT door.pass(message, state) $$;
CREATE FUNCTION door.handle_call(request jsonb, INOUT state jsonb, OUT reply jsonb) LANGUAGE plpgsql AS $$
BEGIN
  state := door.pass(request, state);
  IF request IN ('"look"', '"open"', '"close"', '"exit"') OR (state -> 'open')::boolean THEN
    reply := state -> 'passed';
  END IF;
END $$;
SELECT dgen.create_module('door', max_attempts => 2, backoff_initial => '5 ms', backoff_max => '10 ms', breaker => 0) -> 'created';
CREATE TEMP VIEW log AS SELECT server, kind, message FROM door.log ORDER BY n;

--
-- Casts, infos and requests wait, and come back in order, before newer ones
--
SELECT dgen.cast('door/a', '1') AS one \gset
SELECT dgen.send('door/a', '2') > 0, dgen.cast('door/a', '3', priority => 1) > 0;
SELECT dgen.send_request('door/a', '4') AS request \gset
SELECT dgen.wait_idle('door/a');
SELECT kind, status, priority, attempts, message FROM dgen.messages WHERE server = 'door/a' ORDER BY id;
SELECT postponed FROM dgen.servers WHERE server = 'door/a';
SELECT dgen.message_status(:one), dgen.message_status(:request), dgen.check_response(:request);
-- an activation that changes nothing brings none back
SELECT dgen.call('door/a', '"look"');
SELECT postponed FROM dgen.servers WHERE server = 'door/a';
-- the change: what came after it waits behind them, but for its lane
SELECT dgen.suspend('door/a');
SELECT dgen.cast('door/a', '"open"') > 0, dgen.cast('door/a', '5') > 0;
SELECT dgen.resume('door/a');
SELECT dgen.wait_response(:request);
SELECT dgen.wait_idle('door/a');
SELECT message FROM log WHERE server = 'a' AND message <> '3';
SELECT count(*), dgen.state('door/a') FROM dgen.messages WHERE server = 'door/a';
SELECT postponed FROM dgen.servers WHERE server = 'door/a';
SELECT dgen.message_status(:one), dgen.message_status(:request);
-- what it sends when it postpones is sent; its own change of the state brings none back, not itself either
SELECT dgen.cast('door/b', '{"note": 1, "count": true}') > 0;
SELECT dgen.wait_idle('door/b'), dgen.wait_idle('door/notes');
SELECT dgen.cast('door/b', '{"count": true}') > 0;
SELECT dgen.wait_idle('door/b');
SELECT server, message FROM dgen.messages WHERE server IN ('door/b', 'door/notes') ORDER BY id;
SELECT dgen.state('door/b');
-- again and again
SELECT dgen.replace_state('door/b', '{"open": false, "passed": 10}') > 0;
SELECT dgen.wait_idle('door/b');
SELECT postponed, state FROM dgen.servers WHERE server = 'door/b';
SELECT dgen.call('door/b', '"open"');
SELECT dgen.wait_idle('door/b');
SELECT dgen.state('door/b');

--
-- Calls: the caller waits until it is answered, or gives up, and then it did not happen
--
SELECT regexp_replace(pg_temp.try($$SELECT dgen.call('door/c', '1', '100 ms')$$), 'waited [0-9]+', 'waited N');
SELECT kind, status, message, expires_at > sent_at FROM dgen.messages WHERE server = 'door/c';
SELECT dgen.call('door/c', '"open"'), dgen.wait_idle('door/c');
SELECT * FROM log WHERE server = 'c';
SELECT postponed, state FROM dgen.servers WHERE server = 'door/c';
-- somebody opens it meanwhile: a cast that comes later
SELECT dgen.cast('door/d', '"open"', delay => '200 ms') > 0;
SELECT dgen.call('door/d', '1');
SELECT dgen.call('door/d', '"close"');
SELECT dgen.cast('door/d', '"open"', delay => '200 ms') > 0;
SELECT dgen.call('door/d', '2', request_key => 'two'), dgen.call('door/d', '2', request_key => 'two');
SELECT kind, message FROM log WHERE server = 'd';
-- an error is the caller's at once
SELECT dgen.call('door/d', '"close"');
SELECT dgen.cast('door/d', '"open"', delay => '200 ms') > 0;
SELECT pg_temp.error($$SELECT dgen.call('door/d', '"fail"')$$);
SELECT count(*) FROM dgen.messages WHERE server = 'door/d';
-- the server stops: the caller is told, the messages are for its next life
SELECT dgen.call('door/e', '"close"');
SELECT dgen.cast('door/e', '1') > 0, dgen.cast('door/e', '"exit"', delay => '200 ms') > 0;
SELECT pg_temp.try($$SELECT dgen.call('door/e', '2')$$);
SELECT dgen.wait_idle('door/e');
SELECT kind, status, message, (SELECT incarnation FROM dgen.servers WHERE server = 'door/e') FROM dgen.messages WHERE server = 'door/e';

--
-- Cancelled, taken back, discarded, expired, deleted
--
SELECT dgen.cast('door/f', '1') AS one \gset
SELECT dgen.cast('door/f', '2') AS two \gset
SELECT dgen.send_request('door/f', '3') AS three \gset
SELECT dgen.send_request('door/f', '4', expires => '300 ms') AS four \gset
SELECT dgen.cast('door/f', '5') > 0;
SELECT dgen.wait_idle('door/f');
SELECT dgen.cancel(:one), dgen.cancel(:one), dgen.discard(:two), dgen.discard(:two);
SELECT dgen.receive_response(:three, '10 ms');
SELECT dgen.message_status(:one), dgen.message_status(:two), dgen.message_status(:three);
SELECT dgen.send_request('door/f', '6') AS six \gset
SELECT dgen.wait_idle('door/f'), dgen.discard(:six);
SELECT pg_temp.error($$SELECT dgen.wait_response($$ || :six || ')');
SELECT pg_sleep(0.3);
SELECT dgen.call('door/f', '"open"'), dgen.wait_idle('door/f');
SELECT pg_temp.error($$SELECT dgen.wait_response($$ || :four || ')');
SELECT kind, message FROM log WHERE server = 'f';
-- a cancel that is rolled back
SELECT dgen.cast('door/g', '1') AS one \gset
SELECT dgen.wait_idle('door/g');
BEGIN;
SELECT dgen.cancel(:one);
ROLLBACK;
SELECT dgen.call('door/g', '"open"');
SELECT dgen.wait_idle('door/g');
SELECT message FROM log WHERE server = 'g';
SELECT dgen.call('door/g', '"close"');
SELECT dgen.send_request('door/g', '2') AS two \gset
SELECT dgen.wait_idle('door/g'), dgen.delete('door/g');
SELECT pg_temp.error($$SELECT dgen.wait_response($$ || :two || ')');
SELECT count(*) FROM dgen.messages WHERE server = 'door/g';

--
-- In the transaction of a caller, and for tests
--
SELECT dgen.call('door/h', '"close"');
BEGIN ISOLATION LEVEL SERIALIZABLE;
SELECT pg_temp.try($$SELECT dgen.invoke('door/h', '1')$$);
SELECT dgen.cast('door/h', '"one"') > 0, dgen.cast('door/h', '"two"') > 0, dgen.drain();
SELECT status, message FROM dgen.messages WHERE server = 'door/h' ORDER BY id;
SELECT dgen.cast('door/h', '"open"') > 0, dgen.cast('door/h', '"three"') > 0, dgen.drain();
SELECT message FROM log WHERE server = 'h';
COMMIT;
SELECT dgen.state('door/h');
-- an invoke that changes the state brings them back, and a savepoint undoes that
SELECT dgen.call('door/h', '"close"');
SELECT dgen.cast('door/h', '"four"') > 0;
SELECT dgen.wait_idle('door/h');
BEGIN ISOLATION LEVEL SERIALIZABLE;
SAVEPOINT a;
SELECT dgen.invoke('door/h', '"open"');
SELECT status FROM dgen.messages WHERE server = 'door/h';
ROLLBACK TO a;
SELECT status FROM dgen.messages WHERE server = 'door/h';
SELECT dgen.invoke('door/h', '"open"');
COMMIT;
SELECT dgen.wait_idle('door/h');
SELECT message FROM log WHERE server = 'h' OFFSET 3;

--
-- Limits, and where it is not allowed
--
SELECT dgen.alter_module('door', max_mailbox => 2) -> 'created';
SELECT dgen.cast('door/i', '1') > 0, dgen.cast('door/i', '2') > 0;
SELECT dgen.wait_idle('door/i');
SELECT dgen.cast('door/i', '3') > 0;
SELECT pg_temp.until($$EXISTS (SELECT FROM dgen.dead_letters WHERE server = 'door/i')$$);
SELECT message, sqlstate FROM dgen.dead_letters WHERE server = 'door/i';
SELECT dgen.alter_module('door', max_mailbox => 100, ephemeral => true) -> 'created';
SELECT pg_temp.try($$SELECT dgen.call('door/j', '1')$$);
SELECT dgen.alter_module('door', ephemeral => false) -> 'created';
CREATE FUNCTION door.handle_continue(message jsonb, state jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT dgen.postpone(); SELECT state $$;
SELECT pg_temp.try($$SELECT dgen.try('door', 'handle_continue', '1', '{}')$$);
SELECT pg_temp.try($$SELECT dgen.try('door', 'init', '1', '{}')$$);
SELECT dgen.try('door', 'handle_call', '1', '{"open": false}');

SET client_min_messages = error;
SELECT dgen.drop_module('door', cascade => true);
SELECT count(*) FROM dgen.postponed;
DROP SCHEMA door CASCADE;
