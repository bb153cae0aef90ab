--
-- Monitors, names and groups: what is tied to a server, and ends with it.
--
\getenv dir PG_ABS_SRCDIR
\i :dir/sql/helpers.psql
CREATE ROLE regress_dgen_registry LOGIN;
CREATE ROLE regress_dgen_squatter LOGIN;
CREATE ROLE regress_dgen_outsider;
CREATE SCHEMA registry AUTHORIZATION regress_dgen_registry;
CREATE SCHEMA squat AUTHORIZATION regress_dgen_squatter;
SET ROLE regress_dgen_registry;

-- a server that does what it is told, and keeps what it hears
CREATE FUNCTION registry.init(args jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
  IF dgen.key() LIKE 'named %' THEN
    PERFORM dgen.register(dgen.key());
  END IF;
  RETURN '{"heard": []}';
END $$;
CREATE FUNCTION registry.handle_call(request jsonb, INOUT state jsonb, OUT reply jsonb) LANGUAGE plpgsql AS $$
BEGIN
  IF request ? 'exit' THEN
    PERFORM dgen.exit(request ->> 'exit');
  ELSIF request ? 'try' THEN
    BEGIN
      EXECUTE 'SELECT to_jsonb(' || (request ->> 'try') || ')' INTO reply;
      RAISE EXCEPTION 'undo';
    EXCEPTION WHEN raise_exception THEN
      NULL;
    END;
  ELSIF request ? 'do' THEN
    EXECUTE 'SELECT to_jsonb(x) FROM (SELECT ' || (request ->> 'do') || ') s(x)' INTO reply;
    IF request ? 'keep' THEN
      state := state || jsonb_build_object(request ->> 'keep', reply);
    END IF;
  ELSE
    reply := state -> 'heard';
    state := state || '{"heard": []}';
  END IF;
END $$;
CREATE FUNCTION registry.handle_cast(message jsonb, INOUT state jsonb) LANGUAGE plpgsql AS $$
BEGIN
  IF message ? 'exit' THEN
    PERFORM dgen.exit(message ->> 'exit');
  ELSIF message ? 'flush' THEN
    state := jsonb_insert(state, '{heard,-1}', to_jsonb(dgen.demonitor((state ->> 'ref')::bigint, true)), true);
  ELSIF message ? 'sleep' THEN
    PERFORM pg_sleep((message ->> 'sleep')::float8);
    state := jsonb_insert(state, '{heard,-1}', message, true);
  ELSIF message ? 'join' THEN
    PERFORM dgen.join_group(message ->> 'join');
  ELSE
    state := jsonb_insert(state, '{heard,-1}', message, true);
  END IF;
END $$;
CREATE FUNCTION registry.handle_info(message jsonb, INOUT state jsonb) LANGUAGE plpgsql AS $$
BEGIN
  state := jsonb_insert(state, '{heard,-1}', message - 'ref' || jsonb_build_object('kind', dgen.kind(),
    'sender', dgen.sender(), 'mine', message -> 'ref' = state -> 'ref'), true);
END $$;
CREATE FUNCTION registry.handle_query(query jsonb, state jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
  reply jsonb;
BEGIN
  EXECUTE 'SELECT to_jsonb(' || (query ->> 0) || ')' INTO reply;
  RETURN reply;
END $$;
SELECT dgen.create_module('registry', invoke_isolation => 'any') -> 'created';
-- what a server has heard
CREATE FUNCTION pg_temp.heard(server text) RETURNS SETOF jsonb LANGUAGE plpgsql AS $$
BEGIN
  PERFORM dgen.wait_idle(server);
  RETURN QUERY SELECT jsonb_array_elements(dgen.call(server, '{}'));
END $$;
CREATE FUNCTION pg_temp.watch(watcher text, server text) RETURNS boolean LANGUAGE sql AS $$
  SELECT dgen.call(watcher, jsonb_build_object('do', format('dgen.monitor(%L)', server), 'keep', 'ref')) > '0' $$;

--
-- Monitors: one DOWN, with the reason, for each way in which a server may end
--
SELECT dgen.call('registry/' || s, '{"do": "1"}') FROM unnest('{w,exit,exit call,stop,kill,delete,invoke}'::text[]) s;
SELECT pg_temp.watch('registry/w', 'registry/' || s) FROM unnest('{exit,exit call,stop,kill,delete,invoke}'::text[]) s;
SELECT server, watcher, ref > 0, set_at <= clock_timestamp() FROM dgen.monitors ORDER BY ref;
SELECT dgen.cast('registry/exit', '{"exit": "done"}') > 0;
SELECT dgen.wait_idle('registry/exit');
SELECT * FROM pg_temp.heard('registry/w');
SELECT dgen.call('registry/exit call', '{"exit": "called"}');
SELECT dgen.stop('registry/stop'), dgen.stop('registry/stop');
SELECT dgen.kill('registry/kill', 'shot');
SELECT dgen.delete('registry/delete');
SELECT dgen.invoke('registry/invoke', '{"exit": "invoked"}');
SELECT * FROM pg_temp.heard('registry/w');
SELECT count(*) FROM dgen.monitors;
-- none for the next incarnation
SELECT dgen.call('registry/stop', '{"do": "2"}');
SELECT dgen.stop('registry/stop');
SELECT * FROM pg_temp.heard('registry/w');
-- on nothing
SELECT pg_temp.watch('registry/w', 'registry/nothing');
SELECT * FROM pg_temp.heard('registry/w');
SELECT pg_temp.watch('registry/w', 'registry/stop');
SELECT * FROM pg_temp.heard('registry/w');
-- the DOWN of the server that exits comes after what it had sent
SELECT dgen.call('registry/order', '{"do": 1}');
SELECT pg_temp.watch('registry/w', 'registry/order');
SELECT dgen.call('registry/order', '{"do": "dgen.cast(''registry/w'', ''\"before\"'') > 0"}');
SELECT dgen.call('registry/order', '{"exit": "then"}');
SELECT * FROM pg_temp.heard('registry/w');
-- each monitor has its own
SELECT dgen.call('registry/twice', '{"do": 1}');
SELECT pg_temp.watch('registry/w', 'registry/twice'), pg_temp.watch('registry/w', 'registry/twice'),
  pg_temp.watch('registry/w2', 'registry/twice');
SELECT dgen.stop('registry/twice', 'shutdown');
SELECT * FROM pg_temp.heard('registry/w');
SELECT * FROM pg_temp.heard('registry/w2');
-- rolled back, it did not end
SELECT dgen.call('registry/back', '{"do": 1}');
SELECT pg_temp.watch('registry/w', 'registry/back');
BEGIN;
SELECT dgen.stop('registry/back');
ROLLBACK;
BEGIN;
SAVEPOINT s;
SELECT dgen.stop('registry/back');
ROLLBACK TO s;
COMMIT;
SELECT * FROM pg_temp.heard('registry/w');
SELECT dgen.stop('registry/back', 'at last');
SELECT * FROM pg_temp.heard('registry/w');
-- nor was it watched, or told of nothing
SELECT dgen.call('registry/back', '{"do": 1}');
SELECT dgen.call('registry/w', '{"try": "dgen.monitor(''registry/back'')"}') > '0';
SELECT dgen.call('registry/w', '{"try": "dgen.monitor(''registry/nothing'')"}') > '0';
SELECT dgen.stop('registry/back');
SELECT * FROM pg_temp.heard('registry/w');

-- demonitor
SELECT dgen.call('registry/de', '{"do": 1}');
SELECT pg_temp.watch('registry/w', 'registry/de');
SELECT dgen.call('registry/w', format('{"do": "dgen.demonitor(%s)"}', (dgen.state('registry/w') ->> 'ref'))::jsonb);
SELECT dgen.call('registry/w', format('{"do": "dgen.demonitor(%s)"}', (dgen.state('registry/w') ->> 'ref'))::jsonb);
SELECT dgen.stop('registry/de');
SELECT * FROM pg_temp.heard('registry/w');
-- another server's is not mine to end
SELECT dgen.call('registry/de', '{"do": 1}');
SELECT pg_temp.watch('registry/w', 'registry/de');
SELECT dgen.call('registry/w2', format('{"do": "dgen.demonitor(%s, true)"}', (dgen.state('registry/w') ->> 'ref'))::jsonb);
SELECT count(*) FROM dgen.monitors;
-- too late: the DOWN is in the mailbox; flush takes it out
SELECT dgen.suspend('registry/w');
SELECT dgen.cast('registry/w', '{"flush": true}') > 0;
SELECT dgen.stop('registry/de');
SELECT server, kind, sender, message - 'ref' FROM dgen.messages WHERE server = 'registry/w' AND kind = 'DOWN';
SELECT dgen.cast('registry/w', '"later"') > 0;
SELECT dgen.resume('registry/w');
SELECT * FROM pg_temp.heard('registry/w');
SELECT dgen.call('registry/w', '{"do": "dgen.demonitor(dgen.monitor(''registry/nothing''))"}');
SELECT * FROM pg_temp.heard('registry/w');
SELECT dgen.call('registry/w', '{"do": "dgen.demonitor(dgen.monitor(''registry/nothing''), flush => true)"}');
SELECT dgen.call('registry/w', '{"do": "dgen.demonitor(dgen.monitor(''registry/nothing''), true)"}');
SELECT dgen.call('registry/w', '{"try": "dgen.demonitor(dgen.monitor(''registry/nothing''), true)"}');
SELECT * FROM pg_temp.heard('registry/w');

-- a watcher that ends watches nobody, and its next life hears nothing of it
SELECT dgen.call('registry/old', '{"do": 1}');
SELECT pg_temp.watch('registry/w3', 'registry/old');
SELECT dgen.stop('registry/w3');
SELECT count(*) FROM dgen.monitors;
SELECT dgen.call('registry/w3', '{"do": 1}');
SELECT pg_temp.watch('registry/w3', 'registry/old');
BEGIN;
SELECT dgen.suspend('registry/w3');
SELECT dgen.stop('registry/old');
SELECT dgen.stop('registry/w3');
SELECT dgen.resume('registry/w3');
COMMIT;
SELECT dgen.wait_idle('registry/w3');
SELECT * FROM pg_temp.heard('registry/w3');
-- itself
SELECT pg_temp.watch('registry/w3', 'registry/w3');
SELECT dgen.stop('registry/w3');
SELECT count(*) FROM dgen.monitors;
SELECT * FROM pg_temp.heard('registry/w3');

-- up the chain of calls: whoever waits for us may be watched
SELECT dgen.call('registry/up', '{"do": "dgen.call(''registry/down'', ''{\"do\": \"dgen.monitor(''''registry/up'''')\"}'') > ''0''"}');
SELECT dgen.stop('registry/up', 'gone up');
SELECT * FROM pg_temp.heard('registry/down');
-- in a transaction of a client
BEGIN;
SELECT dgen.invoke('registry/w4', '{"do": "dgen.monitor(''registry/down'')"}') > '0';
SELECT dgen.stop('registry/down', 'in one');
SELECT dgen.drain('registry/w4');
SELECT dgen.invoke('registry/w4', '{}');
COMMIT;
-- a full mailbox does not keep others from ending
SELECT dgen.call('registry/full', '{"do": 1}'), pg_temp.watch('registry/w4', 'registry/full');
SELECT dgen.suspend('registry/w4');
SELECT dgen.alter_module('registry', max_mailbox => 1) IS NOT NULL;
SELECT dgen.cast('registry/w4', '1') > 0;
SELECT pg_temp.error($$SELECT dgen.cast('registry/w4', '1')$$);
SELECT dgen.stop('registry/full');
SELECT dgen.alter_module('registry', max_mailbox => 100000) IS NOT NULL;
SELECT dgen.resume('registry/w4');
SELECT * FROM pg_temp.heard('registry/w4');

-- a client waits by a procedure
SELECT dgen.call('registry/z', '{"do": 1}');
CALL dgen.wait_server('registry/z', 'running');
SELECT dgen.cast('registry/z', '{"exit": "later"}', delay => '50 ms') > 0;
CALL dgen.wait_server('registry/z');
SELECT status, stop_reason FROM dgen.servers WHERE server = 'registry/z';
SELECT dgen.cast('registry/z', '{"sleep": 0.05}') > 0;
CALL dgen.wait_server('registry/z', status => 'idle', timeout => '20 s');
SELECT dgen.state('registry/z') = '{"heard": [{"sleep": 0.05}]}';
CALL dgen.wait_server('registry/never', timeout => '0');
CALL dgen.wait_server('registry/never', 'running', '10 ms');
CALL dgen.wait_server('registry/z', 'asleep');
CALL dgen.wait_server('registry/z', NULL);
CALL dgen.wait_server(NULL);
CALL dgen.wait_server('nowhere/z');
SELECT pg_temp.try($$CALL dgen.wait_server('registry/z')$$);
BEGIN;
CALL dgen.wait_server('registry/z');
ROLLBACK;
SET ROLE regress_dgen_outsider;
CALL dgen.wait_server('registry/z');
SET ROLE regress_dgen_registry;

-- where there is no server to be told
SELECT pg_temp.try($$SELECT dgen.monitor('registry/w')$$);
SELECT pg_temp.try($$SELECT dgen.demonitor(1)$$);
SELECT pg_temp.try($$SELECT dgen.query('registry/w', '["dgen.monitor(''registry/w'')"]')$$);
SELECT pg_temp.try($$SELECT dgen.try('registry', 'handle_call', '{"do": "dgen.monitor(''registry/w'')"}', '{}')$$);
SELECT q, pg_temp.error(format('SELECT dgen.call(''registry/w'', %L)', jsonb_build_object('do', q)))
FROM unnest('{dgen.monitor(NULL),dgen.monitor(''nobody''),dgen.monitor(''nowhere/1''),dgen.demonitor(NULL),"dgen.demonitor(-1, NULL)"}'::text[]) q;

--
-- Names
--
SELECT dgen.call('registry/n', '{"do": 1}');
SELECT dgen.register('boss', 'registry/n', '{"role": "boss", "floors": [1, 2]}'), dgen.whereis('boss'), dgen.whereis('nobody');
SELECT name, server, metadata, permanent, registered_by FROM dgen.names;
-- stands for the address wherever one is taken
SELECT dgen.call('boss', '{"do": "dgen.self()"}'), dgen.invoke('boss', '{"do": "dgen.self()"}'), dgen.query('boss', '["dgen.self()"]');
SELECT dgen.cast('boss', '1') > 0, dgen.send('boss', '{"info": "sent"}') > 0;
SELECT dgen.wait_idle('boss');
SELECT dgen.state('boss');
SELECT * FROM dgen.multi_call(ARRAY['boss'], '{"do": "dgen.self()"}');
SELECT dgen.cast_many('[{"server": "boss", "message": 2}]') IS NOT NULL;
SELECT dgen.send_request('boss', '{"do": "dgen.self()"}') AS id \gset
SELECT dgen.wait_response(:id);
SELECT dgen.suspend('boss'), dgen.resume('boss');
SELECT version > 0 FROM dgen.wait_state('boss');
SELECT * FROM pg_temp.heard('boss');
-- idempotent for the same server; metadata is replaced if there is new
SELECT dgen.register('boss', 'registry/n'), dgen.register('boss', 'boss', '{"role": "chief"}');
SELECT metadata FROM dgen.names;
SELECT dgen.set_metadata('boss', '{"role": "boss", "floor": 3}'), (SELECT metadata FROM dgen.names);
SELECT metadata FROM dgen.names;
-- another's
SELECT dgen.call('registry/m', '{"do": 1}');
SELECT regexp_replace(pg_temp.try($$SELECT dgen.register('boss', 'registry/m')$$), 'since [^.]*[.]?[^.]*', 'since T');
SELECT dgen.unregister('boss'), dgen.unregister('boss'), dgen.whereis('boss');
SELECT pg_temp.try($$SELECT dgen.call('boss', '1')$$);
SELECT dgen.register('boss', 'registry/m', permanent => false);
-- found by metadata
SELECT dgen.register(format('n%s', i), 'registry/m', jsonb_build_object('i', i, 'tags', jsonb_build_array(i % 2))) FROM generate_series(1, 5) i;
SELECT name FROM dgen.find_names('{"tags": [1]}') ORDER BY name;
SELECT name FROM dgen.find_names('{"i": 2, "tags": [0]}') WHERE server = 'registry/m';
SELECT name FROM dgen.names WHERE metadata OPERATOR(dgen.@>) '{"i": 3}';
SELECT count(*) FROM dgen.find_names('{}'), dgen.find_names(NULL) n(a, b, c, d, e, f);

-- a name goes with its incarnation, a permanent one with the server
SELECT dgen.register('forever', 'registry/m', permanent => true), dgen.register('forever', 'registry/m');
SELECT dgen.stop('registry/m');
SELECT name, server, permanent FROM dgen.names;
SELECT dgen.call('forever', '{"do": "dgen.self()"}');
SELECT dgen.delete('forever');
SELECT count(*) FROM dgen.names;
-- before there is a server
SELECT dgen.register('future', 'registry/f', permanent => true);
SELECT pg_temp.try($$SELECT dgen.register('future2', 'registry/f')$$);
SELECT dgen.call('future', '{"do": "dgen.key()"}');
SELECT dgen.register('gone', 'registry/never', permanent => true), dgen.delete('registry/never'), dgen.delete('registry/never');
-- in init; and again in the next life
SELECT dgen.call('registry/named a', '{"do": 1}'), dgen.whereis('named a');
SELECT dgen.call('registry/named a', '{"exit": "normal"}'), dgen.whereis('named a');
SELECT dgen.call('registry/named a', '{"do": 1}'), dgen.whereis('named a');
SELECT dgen.kill('named a');
-- in a handler, undone with it
SELECT dgen.call('registry/n', '{"do": "dgen.register(''self'', metadata => ''{\"a\": 1}'')"}'), dgen.whereis('self');
SELECT dgen.call('registry/n', '{"try": "dgen.register(''tried'')"}'), dgen.whereis('tried');
SELECT dgen.call('registry/n', '{"do": "dgen.unregister(''self'')"}'), dgen.whereis('self');
-- within one transaction
BEGIN;
SELECT dgen.register('now', 'registry/n'), dgen.whereis('now');
SELECT dgen.unregister('now'), dgen.register('now', 'registry/f'), dgen.whereis('now');
SAVEPOINT s;
SELECT dgen.stop('registry/f'), dgen.whereis('now');
ROLLBACK TO s;
SELECT dgen.cast('now', '1') > 0;
ROLLBACK;
SELECT dgen.whereis('now');
-- what cannot be one
SELECT s, pg_temp.error('SELECT dgen.' || s) FROM unnest(ARRAY[
  'register(NULL, ''registry/n'')', 'register('''', ''registry/n'')', 'register(''a/b'', ''registry/n'')',
  'register(repeat(''x'', 513), ''registry/n'')', 'register(''x'')', 'register(''x'', NULL)', 'register(''x'', ''y'')',
  'register(''x'', ''registry/n'', ''[]'')', 'register(''x'', ''registry/n'', ''1'')',
  'register(''x'', ''registry/n'', ''null'')', 'register(''x'', ''nowhere/n'')',
  'register(''x'', ''registry/n'', (repeat(''{"a":'', 65) || 1 || repeat(''}'', 65))::jsonb)',
  'unregister(NULL)', 'unregister(''a/b'')', 'whereis(NULL)', 'whereis(''a/b'')', 'set_metadata(NULL, NULL)',
  'set_metadata(''x'', NULL)', 'set_metadata(''x'', ''1'')', 'query(''registry/n'', ''["dgen.register(''''x'''')"]'')',
  'query(''registry/n'', ''["dgen.unregister(''''future'''')"]'')', 'cast(''x'', NULL)', 'start(''x'')', 'cast('''', NULL)']) s;
-- as deep as it may be, and a pattern that is deeper
SELECT dgen.register('deep', 'registry/n', (repeat('{"a":', 64) || 1 || repeat('}', 64))::jsonb);
SELECT count(*) FROM dgen.find_names((repeat('{"a":', 64) || 1 || repeat('}', 64))::jsonb);
SELECT count(*) FROM dgen.find_names((repeat('{"a":', 65) || 1 || repeat('}', 65))::jsonb);
SELECT dgen.set_metadata('deep', NULL), dgen.unregister('deep');

--
-- The index is used, by whoever may read some of the rows only
--
RESET ROLE;
CREATE ROLE regress_dgen_reading;
SELECT dgen.alter_module('registry', readers => 'regress_dgen_reading') IS NOT NULL;
SELECT dgen.register(format('many%s', i), format('registry/many%s', i), jsonb_build_object('n', i), true) IS NULL AS x
FROM generate_series(1, 20000) i GROUP BY 1;
ANALYZE dgen.name;
SET ROLE regress_dgen_reading;
EXPLAIN (COSTS OFF) SELECT * FROM dgen.find_names('{"n": 17}');
EXPLAIN (COSTS OFF) SELECT * FROM dgen.names WHERE metadata OPERATOR(dgen.@>) '{"n": 17}';
EXPLAIN (COSTS OFF) SELECT * FROM dgen.names WHERE name = 'many17';
EXPLAIN (COSTS OFF) SELECT * FROM dgen.names WHERE server = 'registry/many17';
SELECT name, server FROM dgen.find_names('{"n": 17}');
-- jsonb's own operator would be asked about rows of others first, so the index cannot be
EXPLAIN (COSTS OFF) SELECT * FROM dgen.names WHERE metadata @> '{"n": 17}';
SET ROLE regress_dgen_outsider;
SELECT count(*) FROM dgen.find_names('{"n": 17}'), dgen.names;
SELECT count(*) FROM dgen.groups, dgen.monitors;
SET ROLE regress_dgen_registry;
SELECT count(*) FROM dgen.names n, dgen.unregister(n.name) u WHERE n.name LIKE 'many%' AND u;

--
-- Groups
--
SELECT dgen.join_group('room', 'registry/n'), dgen.join_group('room', 'registry/n');
SELECT dgen.call('registry/g', '{"do": "dgen.join_group(''room'')"}');
SELECT dgen.join_group('room', 'registry/h', permanent => true), dgen.join_group('room', 'registry/h', true);
SELECT * FROM dgen.members('room');
SELECT * FROM dgen.members('empty');
SELECT name, server, permanent, joined_by FROM dgen.groups ORDER BY 1, 2;
SELECT dgen.cast(server, '"hello"') > 0 FROM dgen.members('room') server;
SELECT server, heard FROM dgen.members('room') server, pg_temp.heard(server) heard;
-- a member's end, and what stays
SELECT dgen.stop('registry/g'), dgen.stop('registry/h');
SELECT * FROM dgen.members('room');
SELECT dgen.leave_group('room', 'registry/h'), dgen.leave_group('room', 'registry/h');
SELECT dgen.call('registry/n', '{"do": "dgen.leave_group(''room'')"}');
SELECT dgen.join_group('room', 'registry/n'), dgen.join_group('room', 'registry/n', true);
SELECT dgen.stop('registry/n');
SELECT * FROM dgen.members('room');
SELECT dgen.delete('registry/n');
SELECT * FROM dgen.members('room');
SELECT s, pg_temp.error('SELECT dgen.' || s) FROM unnest(ARRAY['join_group(NULL, ''registry/n'')', 'join_group('''', ''registry/n'')',
  'join_group(''room'')', 'join_group(''room'', NULL)', 'join_group(''room'', ''registry/never'')', 'join_group(''room'', ''nowhere/n'', true)',
  'join_group(repeat(''x'', 513), ''registry/n'')', 'leave_group(NULL, ''registry/n'')', 'leave_group(''room'')', 'members(NULL)',
  'query(''registry/f'', ''["dgen.join_group(''''room'''')"]'')']) s;
-- ten thousand, who joined by themselves; one statement sends to all
SELECT count(*) FROM generate_series(1, 10000) i, dgen.cast('registry/member' || i, '{"join": "crowd"}');
SELECT dgen.wait_idle(module => 'registry', timeout => '60 s');
SELECT count(*) FROM dgen.members('crowd');
SELECT count(dgen.cast(server, '"hello"')) FROM dgen.members('crowd') server;
SELECT dgen.wait_idle(module => 'registry', timeout => '60 s');
SELECT count(*) FROM dgen.servers WHERE state = '{"heard": ["hello"]}';
-- a broadcast that is rolled back was none
BEGIN;
SELECT count(dgen.cast(server, '{"exit": "all"}')) FROM dgen.members('crowd') server;
ROLLBACK;
SELECT count(*) FROM dgen.members('crowd');
SELECT count(dgen.cast(server, '{"exit": "all"}')) FROM dgen.members('crowd') server;
SELECT dgen.wait_idle(module => 'registry', timeout => '60 s');
SELECT count(*) FROM dgen.members('crowd');

--
-- Two owners
--
SET ROLE regress_dgen_squatter;
CREATE FUNCTION squat.handle_call(request jsonb, INOUT state jsonb, OUT reply jsonb) LANGUAGE plpgsql AS $$
BEGIN
  EXECUTE 'SELECT to_jsonb(' || (request ->> 'do') || ')' INTO reply;
END $$;
CREATE FUNCTION squat.handle_info(message jsonb, state jsonb) RETURNS jsonb LANGUAGE sql AS $$
  SELECT message - 'ref' || jsonb_build_object('kind', dgen.kind(), 'sender', dgen.sender()) $$;
REVOKE EXECUTE ON FUNCTION squat.handle_call FROM PUBLIC;
SELECT dgen.create_module('squat') -> 'created';
SELECT dgen.call('squat/a', '{"do": 1}');
-- their names, servers and groups
SELECT s, pg_temp.error('SELECT dgen.' || s) FROM unnest(ARRAY['register(''future'', ''squat/a'')', 'register(''x'', ''registry/f'')',
  'unregister(''future'')', 'set_metadata(''future'', NULL)', 'join_group(''room'', ''registry/f'')', 'leave_group(''room'', ''registry/f'')',
  'call(''squat/a'', ''{"do": "dgen.monitor(''''registry/f'''')"}'')', 'cast(''future'', ''1'')']) s;
SELECT dgen.whereis('future');
SELECT dgen.register('mine', 'squat/a'), dgen.join_group('crowd', 'squat/a');
SET ROLE regress_dgen_registry;
SELECT s, pg_temp.error('SELECT dgen.' || s) FROM unnest(ARRAY['register(''mine'', ''registry/f'')', 'unregister(''mine'')', 'call(''mine'', ''1'')']) s;
-- a member of a module that one may do nothing with is not shown, and stands in no broadcast's way
SELECT dgen.join_group('crowd', 'registry/f');
SELECT server, dgen.cast(server, '1') > 0 FROM dgen.members('crowd') server;
SELECT name, server FROM dgen.names ORDER BY name;
SELECT name, server FROM dgen.groups ORDER BY name;
-- who may send may watch; and is told when the whole module goes
GRANT USAGE ON SCHEMA registry TO regress_dgen_squatter;
SET ROLE regress_dgen_squatter;
SELECT dgen.call('squat/a', '{"do": "dgen.monitor(''registry/f'')"}') > '0';
SET ROLE regress_dgen_registry;
SELECT server, watcher FROM dgen.monitors;
SELECT pg_temp.try($$SELECT dgen.drop_module('registry')$$) LIKE '2BP01 %memberships of groups%';
SELECT dgen.suspend(module => 'registry');
SELECT dgen.drop_module('registry', true);
SELECT dgen.whereis('future'), (SELECT count(*) FROM dgen.members('crowd')), (SELECT count(*) FROM dgen.members('room'));
SET ROLE regress_dgen_squatter;
SELECT pg_temp.until($$dgen.state('squat/a') ? 'kind'$$);
SELECT dgen.state('squat/a');
SELECT count(*) FROM dgen.monitors;
SELECT dgen.drop_module('squat', true);

--
-- Ephemeral servers have no life to tie anything to
--
SELECT dgen.create_module('squat', ephemeral => true) -> 'created';
SELECT s, pg_temp.error('SELECT dgen.' || s) FROM unnest(ARRAY['register(''x'', ''squat/a'')', 'join_group(''x'', ''squat/a'')',
  'call(''squat/a'', ''{"do": "dgen.monitor(''''squat/b'''')"}'')', 'call(''squat/a'', ''{"do": "dgen.register(''''x'''')"}'')']) s;
SELECT dgen.register('x', 'squat/a', permanent => true), dgen.join_group('x', 'squat/a', true);
SELECT dgen.call('x', '{"do": 7}');
SELECT dgen.drop_module('squat', true), dgen.whereis('x');
RESET ROLE;
SELECT count(*) FROM dgen.monitor;
SELECT count(*) FROM dgen.name;
SELECT count(*) FROM dgen.member;
SET client_min_messages = warning;
DROP SCHEMA registry, squat CASCADE;
DROP FUNCTION pg_temp.heard, pg_temp.watch;
DROP ROLE regress_dgen_registry, regress_dgen_squatter, regress_dgen_outsider, regress_dgen_reading;
