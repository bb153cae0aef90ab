--
-- Servers as documents: export, import, clone.
--
\getenv dir PG_ABS_SRCDIR
\i :dir/sql/helpers.psql
CREATE ROLE regress_dgen_transfer LOGIN;
CREATE ROLE regress_dgen_transfer_operator;
CREATE ROLE regress_dgen_transfer_reader;
CREATE SCHEMA transfer AUTHORIZATION regress_dgen_transfer;
CREATE SCHEMA transfer2 AUTHORIZATION regress_dgen_transfer;
CREATE SCHEMA transfer3 AUTHORIZATION regress_dgen_transfer;
CREATE TABLE transfer.mail (what text);
ALTER TABLE transfer.mail OWNER TO regress_dgen_transfer;
-- without ids and times, which differ
CREATE FUNCTION pg_temp.plain(document jsonb) RETURNS text LANGUAGE sql AS $$
  SELECT jsonb_pretty(regexp_replace(regexp_replace((document - 'exported_at' - 'started_at' - 'updated_at' - 'version' - 'incarnation')::text,
    '"\d{4}-\d\d-\d\dT[0-9:.]+[-+]\d\d:\d\d"', '"<time>"', 'g'), '("(id|sender)": )("\w+\.\w+"|\d+)', '\1"<n>"', 'g')::jsonb) $$;
SET ROLE regress_dgen_transfer;
CREATE FUNCTION transfer.effect(args jsonb) RETURNS void LANGUAGE sql AS $$ INSERT INTO transfer.mail VALUES (args ->> 'to') $$;
CREATE FUNCTION transfer.handle_call(request jsonb, INOUT state jsonb, OUT reply jsonb) LANGUAGE plpgsql AS $$
BEGIN
  reply := state;
END $$;
CREATE FUNCTION transfer.handle_cast(message jsonb, INOUT state jsonb) LANGUAGE plpgsql AS $$
BEGIN
  IF message ? 'error' THEN
    RAISE EXCEPTION 'of a cast';
  ELSIF message ? 'timers' THEN
    PERFORM dgen.send_after(dgen.self(), '"mine"', '1 h', 'mine'), dgen.timeout('1 h');
  ELSIF message ? 'mail' THEN
    PERFORM dgen.after_commit('transfer.effect', '{"to": "me"}');
  ELSIF message ? 'continue' THEN
    PERFORM dgen.continue('"on"');
  END IF;
  state := jsonb_set(state, '{log}', coalesce(state -> 'log', '[]') || message);
END $$;
CREATE FUNCTION transfer.handle_info(message jsonb, state jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT jsonb_set(state, '{log}', coalesce(state -> 'log', '[]') || message) $$;
CREATE FUNCTION transfer.handle_continue(message jsonb, state jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT jsonb_set(state, '{log}', coalesce(state -> 'log', '[]') || '"continued"') $$;
CREATE FUNCTION transfer.validate(state jsonb) RETURNS boolean LANGUAGE sql AS $$ SELECT NOT state ? 'invalid' $$;
CREATE FUNCTION transfer.attributes(state jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT jsonb_build_object('n', jsonb_array_length(state -> 'log')) $$;
CREATE FUNCTION transfer2.handle_call(request jsonb, INOUT state jsonb, OUT reply jsonb) LANGUAGE sql AS $$ SELECT state, state $$;
CREATE FUNCTION transfer2.handle_info(message jsonb, state jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT message $$;
CREATE FUNCTION transfer3.init(args jsonb, OUT state_name text, OUT data jsonb) LANGUAGE sql AS $$ SELECT 'shut', '{"n": 1}'::jsonb $$;
CREATE FUNCTION transfer3.handle_event(kind text, event jsonb, state_name text, INOUT data jsonb, OUT next_state text, OUT reply jsonb) LANGUAGE plpgsql AS $$
BEGIN
  IF event ? 'open' THEN
    next_state := 'open';
    PERFORM dgen.state_timeout('1 h', '"shut it"');
  END IF;
  IF kind = 'call' THEN
    reply := to_jsonb(state_name);
  END IF;
END $$;
SELECT dgen.create_module('transfer', max_attempts => 1, breaker => 0, history => '10', operators => 'regress_dgen_transfer_operator',
  readers => 'regress_dgen_transfer_reader') -> 'created';
SELECT dgen.create_module('transfer2') -> 'created', dgen.create_module('transfer3', kind => 'statem') -> 'created';

--
-- One that has everything
--
SELECT dgen.cast('transfer/a', '{"timers": 1}') > 0, dgen.cast('transfer/a', '{"error": 1}') > 0;
SELECT dgen.wait_idle('transfer/a');
SELECT dgen.register('transfer.name', 'transfer/a', '{"zone": "eu"}'), dgen.register('transfer.fixed', 'transfer/a', permanent => true),
  dgen.join_group('transfer.group', 'transfer/a');
SELECT dgen.suspend('transfer/a', reason => 'of a test');
SELECT dgen.cast('transfer/a', '{"continue": 1}') > 0, dgen.cast('transfer/a', '{"mail": 1}') > 0,
  dgen.send('transfer/a', '{"later": 1}', delay => '1 h', priority => 1) > 0, dgen.send_request('transfer/a', '{}') > 0,
  dgen.send_every('transfer/a', '"day"', '1 day', time_zone => 'Europe/Berlin') > 0;
SELECT dgen.export('transfer/a') AS document \gset
SELECT pg_temp.plain(:'document');
SELECT pg_temp.plain(dgen.export('transfer/a', with_mailbox => false, with_history => true) -> 'history' -> 0 #- '{at}' #- '{message_id}');

--
-- Into another server of the same database: names are taken
--
SELECT pg_temp.error(format('SELECT dgen.import(%L, %L)', 'transfer/b', :'document'));
SELECT dgen.import('transfer/b', :'document', with_names => false, reason => 'a copy');
SELECT dgen.export('transfer/a') ->> 'status', pg_temp.plain(dgen.export('transfer/b') - 'names' - 'groups' - 'server') = pg_temp.plain(dgen.export('transfer/a') - 'names' - 'groups' - 'server');
SELECT server, status, suspended_by, version, incarnation FROM dgen.servers WHERE module = 'transfer' ORDER BY 1;
SELECT server, attributes FROM transfer.servers ORDER BY server;
-- it goes on as the original would
SELECT dgen.resume('transfer/b');
SELECT dgen.wait_idle('transfer/b');
SELECT dgen.state('transfer/b');
SELECT pg_temp.until('(SELECT count(*) = 1 FROM transfer.mail)');
SELECT kind, patch FROM dgen.history('transfer/b');
-- again, by itself and over what there is
SELECT pg_temp.try(format('SELECT dgen.import(%L, %L, with_names => false)', 'transfer/b', :'document'));
SELECT dgen.import('transfer/b', :'document', if_exists => 'replace', with_mailbox => false, with_names => false);
SELECT server, status, version, incarnation FROM dgen.servers WHERE server = 'transfer/b';
SELECT count(*) FROM dgen.messages WHERE server = 'transfer/b';
SELECT count(*) FROM dgen.timers WHERE server = 'transfer/b' AND kind = 'timer';
-- the same address: with its names
SELECT dgen.delete('transfer/a');
SELECT dgen.import('transfer/a', :'document') > 0;
SELECT dgen.whereis('transfer.name'), dgen.whereis('transfer.fixed'), dgen.members('transfer.group');
SELECT kind, status, every, time_zone FROM dgen.timers WHERE server = 'transfer/a' ORDER BY due_at;
SELECT kind, priority, status, message FROM dgen.messages WHERE server = 'transfer/a' AND status = 'ready' ORDER BY id;
SELECT kind, sqlstate, message FROM dgen.dead_letters WHERE server = 'transfer/a';
-- what the settings are does not matter
SET DateStyle = 'German, DMY';
SET IntervalStyle = 'sql_standard';
SET timezone = 'Asia/Kolkata';
SELECT pg_temp.plain(dgen.export('transfer/a')) = pg_temp.plain(:'document') AS same;
SELECT dgen.import('transfer/c', dgen.export('transfer/a'), with_names => false) > 0;
RESET DateStyle;
RESET IntervalStyle;
RESET timezone;
SELECT (dgen.export('transfer/c') #>> '{timers,1,message,sent_at}')::timestamptz = (:'document'::jsonb #>> '{timers,1,message,sent_at}')::timestamptz,
  (dgen.export('transfer/c') #>> '{timers,1,due_at}')::timestamptz = (:'document'::jsonb #>> '{timers,1,due_at}')::timestamptz;

--
-- clone
--
SELECT dgen.clone('transfer/a', 'transfer/clone');
SELECT dgen.state('transfer/clone') = dgen.state('transfer/a'), suspended_at FROM dgen.servers WHERE server = 'transfer/clone';
SELECT count(*) FROM dgen.messages WHERE server = 'transfer/clone' AND kind <> 'timeout';
SELECT pg_temp.error($$SELECT dgen.clone('transfer/a', 'transfer/clone')$$);
SELECT dgen.cast('transfer/a', '{"mail": 2}') > 0;
SELECT dgen.clone('transfer/a', 'transfer/clone2', with_mailbox => true, reason => 'with all') > 0;
SELECT dgen.wait_idle('transfer/clone2');
SELECT dgen.state('transfer/clone2');
-- a server that is locked, failing, stopped, never started
SELECT pg_temp.error($$SELECT dgen.clone('transfer/none', 'transfer/x')$$);
SELECT dgen.stop('transfer/clone', 'enough');
SELECT dgen.clone('transfer/clone', 'transfer/stopped') > 0;
SELECT status, stop_reason, version FROM dgen.servers WHERE server = 'transfer/stopped';
SELECT dgen.state('transfer/stopped') = dgen.state('transfer/clone');

--
-- State machines
--
SELECT dgen.call('transfer3/a', '{"open": 1}');
SELECT dgen.clone('transfer3/a', 'transfer3/b', with_mailbox => true) > 0;
SELECT dgen.call('transfer3/b', '{}');
SELECT state_name FROM dgen.servers WHERE module = 'transfer3' ORDER BY server;
SELECT name, status FROM dgen.timers WHERE server = 'transfer3/b' ORDER BY name;
SELECT pg_temp.try($$SELECT dgen.import('transfer3/c', dgen.export('transfer3/a') - 'state_name')$$);

--
-- Documents that are none
--
SELECT pg_temp.try(format('SELECT dgen.import(%L, %L)', 'transfer/z', d)) FROM (VALUES
  (NULL), ('[]'), ('1'), ('{}'), ('{"dgen": "server"}'), ('{"dgen": "server", "format": 2}'), ('{"dgen": "server", "format": "x"}'),
  ('{"dgen": "server", "format": 1}'), ('{"dgen": "server", "format": 1, "server": "transfer/a"}'),
  ('{"dgen": "server", "format": 1, "server": "transfer/a", "status": "running"}'),
  ('{"dgen": "server", "format": 1, "server": "transfer/a", "status": "odd"}'),
  ('{"dgen": "server", "format": 1, "server": "transfer2/a", "status": "new"}'),
  ('{"dgen": "server", "format": 1, "server": "transfer/a", "status": "running", "state": {"invalid": 1}}'),
  ('{"dgen": "server", "format": 1, "server": "transfer/a", "status": "running", "state": {}, "more": 1}'),
  ('{"dgen": "server", "format": 1, "server": "transfer/a", "status": "running", "state": {}, "messages": {}}'),
  ('{"dgen": "server", "format": 1, "server": "transfer/a", "status": "running", "state": {}, "messages": [1]}'),
  ('{"dgen": "server", "format": 1, "server": "transfer/a", "status": "running", "state": {}, "messages": [{}]}'),
  ('{"dgen": "server", "format": 1, "server": "transfer/a", "status": "running", "state": {}, "messages": [{"kind": "odd"}]}'),
  ('{"dgen": "server", "format": 1, "server": "transfer/a", "status": "running", "state": {}, "messages": [{"kind": "exit"}]}'),
  ('{"dgen": "server", "format": 1, "server": "transfer/a", "status": "running", "state": {}, "messages": [{"kind": "cast", "priority": 7}]}'),
  ('{"dgen": "server", "format": 1, "server": "transfer/a", "status": "running", "state": {}, "messages": [{"kind": "cast", "sent_at": "never"}]}'),
  ('{"dgen": "server", "format": 1, "server": "transfer/a", "status": "running", "state": {}, "timers": [{"name": "x"}]}'),
  ('{"dgen": "server", "format": 1, "server": "transfer/a", "status": "running", "state": {}, "timers": [{"every": "-1 s", "time_zone": "UTC", "on_miss": "o", "message": {"kind": "info"}}]}'),
  ('{"dgen": "server", "format": 1, "server": "transfer/a", "status": "running", "state": {}, "timers": [{"every": "1 s", "time_zone": "Mars", "on_miss": "o", "message": {"kind": "info"}}]}'),
  ('{"dgen": "server", "format": 1, "server": "transfer/a", "status": "running", "state": {}, "timers": [{"every": "1 s", "time_zone": "UTC", "on_miss": "", "message": {"kind": "info"}}]}'),
  ('{"dgen": "server", "format": 1, "server": "transfer/a", "status": "running", "state": {}, "timers": [{"every": "100 years", "occurrence": 1000000000, "time_zone": "UTC", "on_miss": "o", "message": {"kind": "info"}}]}'),
  ('{"dgen": "server", "format": 1, "server": "transfer/a", "status": "running", "state": {}, "names": [{"name": "a/b"}]}'),
  ('{"dgen": "server", "format": 1, "server": "transfer/a", "status": "running", "state": {}, "names": [{"name": "a", "metadata": 1}]}'),
  ('{"dgen": "server", "format": 1, "server": "transfer/a", "status": "running", "state": {}, "groups": [{"name": ""}]}'),
  ('{"dgen": "server", "format": 1, "server": "transfer/a", "status": "running", "state": {}, "suspended": {}}')) v (d);
SELECT count(*) FROM dgen.servers WHERE server = 'transfer/z';
SELECT count(*) FROM dgen.messages WHERE server = 'transfer/z';
-- a timer of an incarnation that has ended is left out
SELECT dgen.import('transfer/ended', '{"dgen": "server", "format": 1, "server": "transfer/a", "status": "stopped", "state": {}, "timers":
  [{"name": "x", "incarnation": true, "message": {"kind": "timer"}}, {"name": "y", "due_at": "2100-01-01", "message": {"kind": "timer"}}]}');
SELECT name FROM dgen.timers WHERE server = 'transfer/ended';
SELECT dgen.delete('transfer/ended');
-- the least that is one
SELECT dgen.import('transfer/z', '{"dgen": "server", "format": 1, "server": "transfer/a", "status": "running", "state": null}');
SELECT dgen.state('transfer/z');
SELECT pg_temp.try($$SELECT dgen.import('transfer/z', dgen.export('transfer/z'), if_exists => 'odd')$$);

--
-- Rights: operators, but effects are their owner's
--
SET ROLE regress_dgen_transfer_operator;
SELECT dgen.import('transfer/y', dgen.export('transfer/z'));
SELECT pg_temp.try(format('SELECT dgen.import(%L, %L)', 'transfer/w', jsonb_set(dgen.export('transfer/z'), '{messages}',
  '[{"kind": "effect", "message": {"function": "transfer.effect(jsonb)", "args": {"to": "forged"}}}]')));
SELECT pg_temp.try(format('SELECT dgen.import(%L, %L)', 'transfer/w', jsonb_set(dgen.export('transfer/z'), '{dead_letters}',
  '[{"kind": "effect", "sqlstate": "P0001", "message": {"function": "transfer.effect(jsonb)", "args": {"to": "forged"}}}]')));
-- nor in a timer, in nobody's name to another module's server
SELECT pg_temp.try(format('SELECT dgen.import(%L, %L)', 'transfer/w', jsonb_set(dgen.export('transfer/z'), '{timers}', jsonb_build_array(jsonb_build_object(
  'name', 'x', 'message', jsonb_build_object('kind', kind, 'message', '{"function": "transfer.effect(jsonb)", "args": {"to": "forged"}}'::jsonb))))))
FROM unnest(ARRAY['effect', 'exit', 'request', 'cast']) kind;
SELECT dgen.import('transfer/w', jsonb_set(dgen.export('transfer/z'), '{messages}', '[{"kind": "request", "sender": "transfer2/victim", "message": 1}]')) > 0;
SET ROLE regress_dgen_transfer;
SELECT dgen.wait_idle('transfer/w'), dgen.wait_idle('transfer2/victim');
SELECT count(*) FROM dgen.servers WHERE server = 'transfer2/victim';
SELECT count(*) FROM dgen.messages WHERE server = 'transfer2/victim';
SELECT count(*) FROM dgen.dead_letters WHERE server IN ('transfer/w', 'transfer2/victim');
SET ROLE regress_dgen_transfer_reader;
SELECT pg_temp.error($$SELECT dgen.export('transfer/z')$$), pg_temp.error($$SELECT dgen.import('transfer/z', '{}')$$), pg_temp.error($$SELECT dgen.clone('transfer/z', 'transfer/v')$$);
RESET ROLE;
SELECT pg_temp.error($$SELECT dgen.clone('transfer/z', 'transfer2/v')$$);
-- nor by a letter that is edited
SET ROLE regress_dgen_transfer;
SELECT dgen.import('transfer/u', jsonb_set(dgen.export('transfer/z'), '{dead_letters}',
  '[{"kind": "effect", "sqlstate": "P0001", "message": {"function": "transfer.effect(jsonb)", "args": {"to": "old"}}}]')) > 0;
SELECT id FROM dgen.dead_letters WHERE server = 'transfer/u' \gset
SET ROLE regress_dgen_transfer_operator;
SELECT pg_temp.error(format('SELECT dgen.requeue(%s, %L)', :id, '{"function": "transfer.effect(jsonb)", "args": {"to": "forged"}}'));
SELECT dgen.requeue(:id);
RESET ROLE;
SELECT pg_temp.until($$(SELECT count(*) = 1 FROM transfer.mail WHERE what = 'old')$$);
SELECT count(*) FROM transfer.mail WHERE what = 'forged';
-- a child is its supervisor's
SELECT dgen.supervise('transfer_tree', '{"children": [{"id": "transfer/kid", "server": "transfer/kid"}]}') IS NOT NULL;
SELECT pg_temp.error($$SELECT dgen.import('transfer/kid', dgen.export('transfer/z'), if_exists => 'replace')$$);
SELECT dgen.stop_supervisor('transfer_tree') IS NOT NULL;
SELECT dgen.export('transfer/z') AS document \gset
SELECT dgen.drop_module('transfer', "cascade" => true), dgen.drop_module('transfer2', "cascade" => true), dgen.drop_module('transfer3', "cascade" => true);
-- an ephemeral module has nothing to put it in
SELECT dgen.create_module('transfer', ephemeral => true) -> 'created';
SELECT pg_temp.try(format('SELECT dgen.import(%L, %L)', 'transfer/z', :'document'));
SELECT dgen.drop_module('transfer');
SELECT count(*) FROM dgen.audit WHERE server LIKE 'transfer%';
SET client_min_messages = warning;
DROP SCHEMA transfer, transfer2, transfer3 CASCADE;
DROP ROLE regress_dgen_transfer, regress_dgen_transfer_operator, regress_dgen_transfer_reader;
