--
-- Timers that are sent: once or again and again, with names and without.
--
\getenv dir PG_ABS_SRCDIR
\i :dir/sql/helpers.psql
CREATE ROLE regress_dgen_sent LOGIN;
CREATE ROLE regress_dgen_sent_client LOGIN;
CREATE SCHEMA sent AUTHORIZATION regress_dgen_sent;
SET ROLE regress_dgen_sent;

-- All that comes is logged, with what comes next of the server's timer "t".  A
-- message that is an array is an expression to evaluate first.
CREATE TABLE sent.log (n serial, server text, kind text, message jsonb, next text, result text);
CREATE FUNCTION sent.act(message jsonb) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
  result text;
  next text := (SELECT to_char(due_at AT TIME ZONE time_zone, 'YYYY-MM-DD HH24:MI:SS') FROM dgen.timers
    WHERE server = dgen.self() AND every IS NOT NULL);
BEGIN
  IF jsonb_typeof(message) = 'array' THEN
    EXECUTE 'SELECT (' || (message ->> 0) || ')::text' INTO result;
  END IF;
  INSERT INTO sent.log (server, kind, message, next, result) VALUES (dgen.self(), dgen.kind(), message, next, result);
END $$;
CREATE FUNCTION sent.handle_call(request jsonb, INOUT state jsonb, OUT reply jsonb)
  LANGUAGE plpgsql AS $$ BEGIN PERFORM sent.act(request); END $$;
CREATE FUNCTION sent.handle_cast(message jsonb, INOUT state jsonb)
  LANGUAGE plpgsql AS $$ BEGIN PERFORM sent.act(message); END $$;
CREATE FUNCTION sent.handle_info(message jsonb, INOUT state jsonb)
  LANGUAGE plpgsql AS $$
BEGIN
  IF message IN ('"raise"', '{"info": "timer", "name": "t", "message": "raise"}') THEN
    RAISE 'as was asked for';
  END IF;
  PERFORM sent.act(message);
  -- a few are enough
  IF message IN ('"count"', '{"info": "timer", "name": "t", "message": "count"}')
    AND (SELECT count(*) FROM sent.log WHERE server = dgen.self()) >= 5
  THEN
    PERFORM dgen.cancel_all();
  END IF;
END $$;
SELECT dgen.create_module('sent', backoff_initial => '10 ms', backoff_factor => 1, max_attempts => 2) -> 'created';
GRANT USAGE ON SCHEMA sent TO regress_dgen_sent_client;
RESET ROLE;
CREATE FUNCTION pg_temp.handled() RETURNS SETOF text LANGUAGE plpgsql AS $$
BEGIN
  PERFORM dgen.wait_idle(module => 'sent', timeout => '20 s');
  RETURN QUERY WITH gone AS (DELETE FROM sent.log RETURNING *)
    SELECT concat_ws(' ', split_part(server, '/', 2), kind, message, next, result) FROM gone ORDER BY server, n;
END $$;
-- until so many messages were handled
CREATE FUNCTION pg_temp.come(n integer) RETURNS boolean LANGUAGE sql AS $$
  SELECT pg_temp.until(format('%s <= (SELECT count(*) FROM sent.log)', n)) $$;
-- what is set
CREATE FUNCTION pg_temp.timers() RETURNS SETOF text LANGUAGE sql AS $$
  SELECT concat_ws(' ', server, coalesce(name, 'unnamed'), kind, status, every::text, time_zone, on_miss, CASE WHEN occurrence < 1000 THEN occurrence END,
    CASE WHEN incarnation IS NOT NULL THEN 'own' END, sender_role, message)
  FROM dgen.timers ORDER BY server, id $$;
-- an interval that is left, in steps of ten minutes
CREATE FUNCTION pg_temp.about(span interval) RETURNS text LANGUAGE sql AS $$
  SELECT make_interval(secs => round(extract(epoch FROM span) / 600) * 600)::text $$;

--
-- once
--
SELECT dgen.send_after('sent/a', '{"hello": 1}', '20 ms') > 0, dgen.send_at('sent/a', '"at"', clock_timestamp() + '40 ms') > 0;
SELECT pg_temp.come(2);
SELECT pg_temp.handled();
-- at once
SELECT dgen.send_after('sent/a', '1', '0') > 0, dgen.send_at('sent/a', '2', '2001-01-01') > 0, dgen.send_after('sent/a', '3', '0', 'name') > 0;
SELECT pg_temp.come(3);
SELECT pg_temp.handled();
SELECT count(*) FROM dgen.timer;
-- named ones say so; null is JSON null
SELECT dgen.send_after('sent/a', NULL, '10 ms', 'first') > 0, dgen.send_at('sent/a', '[]', clock_timestamp() + '40 ms', 'second "n"') > 0;
SELECT pg_temp.come(2);
SELECT pg_temp.handled();
-- if the transaction commits, and its savepoints do
BEGIN;
SELECT dgen.send_after('sent/a', '1', '1 hour', 'kept') > 0;
SAVEPOINT s;
SELECT dgen.send_after('sent/a', '2', '2 hours', 'kept') > 0, dgen.send_after('sent/a', '3', '1 hour', 'gone') > 0;
SELECT dgen.send_after('sent/a', '4', '1 hour') > 0;
ROLLBACK TO s;
COMMIT;
SELECT pg_temp.timers();
BEGIN;
SELECT pg_temp.about(dgen.cancel_timer(server => 'sent/a', name => 'kept'));
SELECT dgen.read_timer(server => 'sent/a', name => 'kept');
ROLLBACK;
SELECT pg_temp.about(dgen.read_timer(server => 'sent/a', name => 'kept'));

--
-- reading and cancelling
--
SELECT dgen.send_after('sent/a', '1', '2 hours') AS id \gset
SELECT pg_temp.about(dgen.read_timer(:id)), dgen.message_status(:id);
SELECT pg_temp.about(dgen.cancel_timer(:id)), dgen.cancel_timer(:id), dgen.read_timer(:id);
SELECT dgen.send_after('sent/a', '1', '30 min', 'kept') AS id \gset
SELECT pg_temp.about(dgen.read_timer(:id)), dgen.message_status(:id), pg_temp.about(dgen.read_timer(server => 'sent/a', name => 'kept'));
SELECT pg_temp.timers();
SELECT dgen.cancel(:id), dgen.cancel(:id), dgen.cancel_timer(:id);
SELECT dgen.send_after('sent/a', '1', '1 hour', 'x') AS id \gset
SELECT pg_temp.about(dgen.cancel_timer(:id)), dgen.cancel_timer(server => 'sent/a', name => 'x');
-- one whose message is in the mailbox
SELECT dgen.suspend('sent/a');
SELECT dgen.send_after('sent/a', '"unnamed"', '0') AS unnamed, dgen.send_after('sent/a', '"replaced"', '0', 'x') AS x,
  dgen.send_after('sent/a', '"cancelled"', '0', 'y') AS y, dgen.send_every('sent/a', '"every"', '1 hour', '2001-01-01') AS every \gset
SELECT dgen.message_status(:unnamed), dgen.message_status(:x), dgen.message_status(:every), dgen.read_timer(:x), dgen.read_timer(:every);
SELECT pg_temp.timers();
SELECT kind, status, message FROM dgen.messages ORDER BY id;
SELECT dgen.cancel_timer(:unnamed), dgen.cancel_timer(server => 'sent/a', name => 'y'), dgen.cancel_timer(:every);
SELECT dgen.send_after('sent/a', '"new"', '1 ms', 'x') <> :x;
SELECT dgen.resume('sent/a');
SELECT pg_temp.come(1);
SELECT pg_temp.handled();
SELECT dgen.message_status(:unnamed), dgen.message_status(:x), dgen.message_status(:every);
-- all of a server
SELECT dgen.send_after('sent/a', '1', '1 hour') > 0, dgen.send_after('sent/a', '1', '1 hour', 'x') > 0,
  dgen.send_every('sent/a', '1', '1 hour') > 0, dgen.send('sent/a', '1', delay => '1 hour') > 0,
  dgen.cast('sent/a', '1', delay => '1 hour') > 0, dgen.send_after('sent/b', '1', '1 hour') > 0;
SELECT dgen.cancel_all('sent/a'), dgen.cancel_all('sent/a'), dgen.cancel_all('sent/b');
SELECT kind, dgen.cancel(id) FROM dgen.messages;

--
-- those that a server sets on itself are its incarnation's
--
SELECT dgen.call('sent/s', '["dgen.send_after(dgen.self(), ''1'', ''1 hour'') > 0"]'),
  dgen.call('sent/s', '["dgen.send_after(dgen.self(), ''2'', ''1 hour'', ''t'') > 0"]'),
  dgen.call('sent/s', '["dgen.send_every(dgen.self(), ''3'', ''1 hour'') > 0"]'),
  dgen.call('sent/o', '["dgen.send_after(''sent/s'', ''4'', ''1 hour'') > 0"]');
SELECT dgen.send_after('sent/s', '5', '1 hour', 'client') > 0;
SELECT pg_temp.timers();
-- without a server: its own
SELECT dgen.call('sent/s', '["dgen.read_timer(name => ''t'') > ''50 min''"]'), dgen.call('sent/s', '["dgen.cancel_timer(name => ''none'') IS NULL"]');
SELECT count(*) FROM pg_temp.handled();
SELECT dgen.stop('sent/s');
SELECT pg_temp.timers();
SELECT dgen.cancel_all('sent/s');
-- also one whose message is in the mailbox when it ends
SELECT dgen.call('sent/s', '["dgen.send_after(dgen.self(), ''\"old\"'', ''500 ms'') > 0"]');
SELECT dgen.suspend('sent/s');
SELECT pg_temp.until($$EXISTS (SELECT FROM dgen.message WHERE server = 'sent/s')$$);
SELECT dgen.stop('sent/s'), dgen.resume('sent/s');
SELECT dgen.wait_idle('sent/s');
SELECT dgen.send('sent/s', '"new"') > 0;
SELECT dgen.wait_idle('sent/s');
SELECT pg_temp.handled();
-- and where its row goes, and with it the number
SELECT dgen.alter_module('sent', on_stop => 'delete') IS NOT NULL;
SELECT dgen.call('sent/d', '["dgen.send_after(dgen.self(), ''\"old\"'', ''500 ms'') > 0"]');
SELECT dgen.suspend('sent/d');
SELECT pg_temp.until($$EXISTS (SELECT FROM dgen.message WHERE server = 'sent/d')$$);
SELECT dgen.stop('sent/d'), dgen.resume('sent/d');
SELECT count(*) FROM dgen.message;
SELECT dgen.alter_module('sent', on_stop => 'keep') IS NOT NULL;
-- an ephemeral server has none, so its timers are the address'
SELECT dgen.alter_module('sent', ephemeral => true) IS NOT NULL;
SELECT dgen.call('sent/e', '["dgen.send_after(dgen.self(), ''\"later\"'', ''1 ms'') > 0"]');
SELECT pg_temp.until('2 <= (SELECT count(*) FROM sent.log WHERE server = ''sent/e'')');
SELECT dgen.alter_module('sent', ephemeral => false) IS NOT NULL;
SELECT count(*) FROM pg_temp.handled();
-- delete takes them all
SELECT dgen.send_every('sent/s', '1', '1 hour') > 0, dgen.delete('sent/s');
SELECT pg_temp.timers();

--
-- again and again: each is counted from the start, in the timer's time zone
--
-- spring and autumn in Berlin; a time of the day that one day does not have
SELECT dgen.send_every('sent/spring', '"count"', '1 day', '2025-03-28 02:30+01', 'Europe/Berlin', 'catch_up') > 0;
SELECT dgen.send_every('sent/autumn', '"count"', '1 day', '2025-10-24 02:30+02', 'Europe/Berlin', 'catch_up', 't') > 0;
SELECT dgen.send_every('sent/hours', '"count"', '12 hours', '2025-03-29 00:00+01', 'Europe/Berlin', 'catch_up') > 0;
-- the ends of months, and a leap day
SELECT dgen.send_every('sent/months', '"count"', '1 month', '2024-12-31 08:00+00', 'UTC', 'catch_up') > 0;
SELECT dgen.send_every('sent/leap', '"count"', '1 year', '2020-02-29 08:00+00', 'UTC', 'catch_up') > 0;
SELECT dgen.send_every('sent/mixed', '"count"', '1 month 1 day 1 hour', '2025-01-30 23:30+01', 'Europe/Berlin', 'catch_up') > 0;
SELECT pg_temp.come(30);
SELECT regexp_replace(l, 'info "count"|timer \{.*\}', ':') FROM pg_temp.handled() l;
SELECT pg_temp.timers();
-- the zone of the module, or else of the session
SET TimeZone = 'Asia/Tokyo';
SELECT dgen.send_every('sent/z', '1', '1 day') > 0;
SELECT dgen.alter_module('sent', timezone => 'America/New_York') IS NOT NULL;
SELECT dgen.send_every('sent/z', '1', '1 day') > 0;
SELECT dgen.alter_module('sent', timezone => '') IS NOT NULL;
RESET TimeZone;
SELECT time_zone, extract(epoch FROM due_at - start_at) BETWEEN 82800 AND 90000 AS day, occurrence FROM dgen.timers ORDER BY id;
SELECT dgen.cancel_all('sent/z');
-- soon, and until it is cancelled
SELECT dgen.send_every('sent/q', '"count"', '10 ms') > 0;
SELECT pg_temp.come(5);
SELECT pg_temp.until('NOT EXISTS (SELECT FROM dgen.timer)');
SELECT count(*) >= 5 FROM pg_temp.handled();

--
-- what was missed: by a start in the past, and by a server that is suspended
--
SELECT dgen.send_every('sent/once', '1', '1 day', now() - interval '100 days 1 hour', 'UTC') > 0,
  dgen.send_every('sent/skip', '1', '1 day', now() - interval '100 days 1 hour', 'UTC', 'skip') > 0;
SELECT pg_temp.come(1);
SELECT split_part(l, ' ', 1) FROM pg_temp.handled() l;
SELECT server, occurrence, due_at BETWEEN now() + '20 hours' AND now() + '26 hours' FROM dgen.timers ORDER BY server;
SELECT dgen.cancel_all('sent/once'), dgen.cancel_all('sent/skip');
-- suspended for twenty periods
SELECT dgen.suspend('sent/' || s), dgen.send_every('sent/' || s, to_jsonb(s), '10 ms', on_miss => s, name => 't') > 0
  FROM unnest('{fire_once,catch_up,skip}'::text[]) s;
SELECT pg_temp.until($$(SELECT count(*) = 3 FROM dgen.message)$$), pg_sleep(0.3);
SELECT count(*) FROM dgen.message;
-- hours, so that none is due again soon
UPDATE dgen.timer SET start_at = now() - interval '20 hours 30 min', every = '1 hour', occurrence = 5;
SELECT dgen.resume('sent/fire_once'), dgen.resume('sent/catch_up'), dgen.resume('sent/skip');
SELECT pg_temp.come(17);
SELECT split_part(l, ' ', 1), count(*) FROM pg_temp.handled() l GROUP BY 1 ORDER BY 1;
SELECT server, occurrence, due_at = start_at + occurrence * every FROM dgen.timers ORDER BY server;
SELECT dgen.cancel_all('sent/' || s) FROM unnest('{fire_once,catch_up,skip}'::text[]) s;

--
-- one that fails is tried again, and buried; the next comes all the same
--
SELECT dgen.send_every('sent/f', '"raise"', '1 hour', now() - interval '1 min', name => 't') > 0, dgen.send_after('sent/g', '"raise"', '0', 't') > 0;
SELECT pg_temp.until('(SELECT count(*) = 2 FROM dgen.dead_letters)');
SELECT server, kind, message, attempts FROM dgen.dead_letters ORDER BY server;
SELECT server, name, status, occurrence FROM dgen.timers;
-- requeued, it is handled whatever became of its timer
SELECT dgen.requeue(id, '"mended"') FROM dgen.dead_letters ORDER BY server;
SELECT pg_temp.come(2);
SELECT regexp_replace(l, '\d{4}.*', 'next') FROM pg_temp.handled() l;
-- discarded or cancelled in the mailbox, it was one of many
SELECT dgen.suspend('sent/f');
SELECT dgen.send_every('sent/f', '"x"', '1 hour', '2001-01-01', name => 't') > 0, dgen.send_every('sent/f', '"y"', '1 hour', '2001-01-01') > 0;
SELECT name, status FROM dgen.timers ORDER BY id;
SELECT kind, message, CASE WHEN message = '"y"' THEN dgen.cancel(id) ELSE dgen.discard(id) END FROM dgen.messages ORDER BY id;
SELECT name, status, due_at > now() FROM dgen.timers ORDER BY id;
-- while it waits it stands for the timer
SELECT kind, message, CASE WHEN message = '"y"' THEN dgen.cancel(id) ELSE dgen.discard(id) END FROM dgen.messages ORDER BY id;
SELECT count(*) FROM dgen.timer;

--
-- in a transaction that drains
--
SELECT dgen.resume('sent/f');
BEGIN;
SELECT dgen.send_after('sent/i', '1', '0', 'x') > 0, dgen.send_after('sent/i', '2', '1 ms', 'y') > 0, dgen.send_after('sent/i', '3', '1 ms') > 0,
  dgen.send_after('sent/i', '"cancelled"', '1 ms', 'z') > 0, dgen.send_every('sent/i', '4', '1 day', now() - interval '3 days 1 hour', on_miss => 'catch_up') > 0,
  dgen.send_after('sent/i', '"not yet"', '1 hour') > 0;
SELECT dgen.cancel_timer(server => 'sent/i', name => 'z') IS NOT NULL;
SELECT pg_sleep(0.002), dgen.drain();
SELECT kind, message FROM sent.log ORDER BY n;
SELECT count(*) FROM dgen.timers;
ROLLBACK;

--
-- rights
--
SET ROLE regress_dgen_sent_client;
SELECT pg_temp.timers();
SELECT dgen.send_after('sent/r', '1', '1 hour', 'mine') > 0;
SELECT dgen.send_after('sent/r', '2', '1 hour') AS id \gset
SELECT pg_temp.about(dgen.read_timer(:id)), dgen.read_timer(server => 'sent/r', name => 'mine') IS NOT NULL;
SELECT pg_temp.try($$SELECT dgen.cancel_all('sent/r')$$);
RESET ROLE;
SET ROLE regress_dgen_sent;
SELECT dgen.send_after('sent/r', '3', '1 hour', 'owner''s') AS id \gset
SELECT pg_temp.timers();
SELECT dgen.cancel_timer(server => 'sent/r', name => 'mine') IS NOT NULL;
RESET ROLE;
SET ROLE regress_dgen_sent_client;
SELECT pg_temp.error($$SELECT dgen.send_after('sent/r', '4', '1 hour', 'owner''s')$$) ~ '^42501 permission denied for timer \d+$';
SELECT pg_temp.error(format('SELECT dgen.cancel_timer(%s)', :id)), pg_temp.error(format('SELECT dgen.read_timer(%s)', :id)),
  pg_temp.error(format('SELECT dgen.cancel(%s)', :id)) ~ '^42501', dgen.message_status(:id);
RESET ROLE;
REVOKE USAGE ON SCHEMA sent FROM regress_dgen_sent_client;
SET ROLE regress_dgen_sent_client;
SELECT pg_temp.error($$SELECT dgen.send_after('sent/r', '1', '1 s')$$), pg_temp.error($$SELECT dgen.send_at('sent/r', '1', now(), 'x')$$),
  pg_temp.error($$SELECT dgen.send_every('sent/r', '1', '1 s')$$);
RESET ROLE;

--
-- errors
--
SELECT pg_temp.try(format('SELECT dgen.%s', f)) FROM unnest(array[
  $$send_after(NULL, '1', '1 s')$$, $$send_after('sent/x', '1', NULL)$$, $$send_after('sent/x', '1', '-1 s')$$, $$send_after('sent/x', '1', '296530 years')$$,
  $$send_after('sent/x', '1', '1 s', '')$$, $$send_after('sent/x', '1', '1 s', '$x')$$, $$send_after('sent/x', '1', '1 s', repeat('x', 513))$$,
  $$send_after('nowhere/x', '1', '1 s')$$,
  $$send_at('sent/x', '1', NULL)$$, $$send_at('sent/x', '1', 'infinity')$$, $$send_at('sent/x', '1', '-infinity', 'x')$$,
  $$send_every('sent/x', '1', NULL)$$, $$send_every('sent/x', '1', '0')$$, $$send_every('sent/x', '1', '-1 day')$$,
  $$send_every('sent/x', '1', '1 month -1 day')$$, $$send_every('sent/x', '1', '1 day -1 hour')$$, $$send_every('sent/x', '1', '999 us')$$,
  $$send_every('sent/x', '1', '1 day', 'infinity')$$, $$send_every('sent/x', '1', '1 day', time_zone => 'Mars/Olympus')$$,
  $$send_every('sent/x', '1', '1 day', on_miss => 'perhaps')$$,
  $$send_every('sent/x', '1', '1 min', now() - interval '10 days', on_miss => 'catch_up')$$,
  $$send_every('sent/x', '1', '170000000 years')$$,
  $$cancel_timer()$$, $$cancel_timer(1, 'sent/x')$$, $$cancel_timer(1, name => 'x')$$, $$cancel_timer(server => 'sent/x')$$, $$cancel_timer(name => 'x')$$,
  $$read_timer()$$, $$read_timer(-1)$$, $$cancel_all()$$, $$cancel_all('nowhere/x')$$]) f;
BEGIN READ ONLY;
SELECT pg_temp.error($$SELECT dgen.send_after('sent/x', '1', '1 s')$$);
SELECT pg_temp.error($$SELECT dgen.cancel_timer(1)$$);
SELECT dgen.read_timer(1);
COMMIT;

SELECT dgen.drop_module('sent', true);
SELECT (SELECT count(*) FROM dgen.delayed), (SELECT count(*) FROM dgen.timer);
SET client_min_messages = warning;
DROP SCHEMA sent CASCADE;
DROP ROLE regress_dgen_sent, regress_dgen_sent_client;
