--
-- Supervisors: trees, order, strategies, restart modes, escalation.
--
\getenv dir PG_ABS_SRCDIR
\i :dir/sql/helpers.psql
SET client_min_messages = warning;
CREATE ROLE regress_dgen_super LOGIN;
CREATE SCHEMA super AUTHORIZATION regress_dgen_super;
SET ROLE regress_dgen_super;

-- a server says in a table when it starts and ends, and does what it is told
CREATE TABLE super.log (n serial, key text, what text);
CREATE FUNCTION super.init(args jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
  IF EXISTS (SELECT FROM super.broken WHERE key = dgen.key()) THEN
    RAISE EXCEPTION 'init of % is broken', dgen.key() USING ERRCODE = 'SU002';
  END IF;
  INSERT INTO super.log (key, what) VALUES (dgen.key(), 'init ' || args::text);
  RETURN '{"n": 0}';
END $$;
CREATE TABLE super.broken (key text);
CREATE FUNCTION super.terminate(reason text, state jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  IF EXISTS (SELECT FROM super.broken WHERE key = 'end of ' || dgen.key()) THEN
    RAISE EXCEPTION '% does not want to end', dgen.key() USING ERRCODE = 'SU003';
  END IF;
  INSERT INTO super.log (key, what) VALUES (dgen.key(), 'terminate ' || reason);
END $$;
CREATE FUNCTION super.fail(code text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  RAISE EXCEPTION 'no luck' USING ERRCODE = code;
END $$;
CREATE FUNCTION super.act(message jsonb, INOUT state jsonb) LANGUAGE plpgsql AS $$
BEGIN
  state := jsonb_set(state, '{n}', to_jsonb((state ->> 'n')::int + 1));
  IF message ? 'do' THEN
    EXECUTE 'SELECT ' || (message ->> 'do');
  END IF;
END $$;
CREATE FUNCTION super.handle_call(request jsonb, INOUT state jsonb, OUT reply jsonb) LANGUAGE plpgsql AS $$
BEGIN
  state := super.act(request, state);
  reply := state;
END $$;
CREATE FUNCTION super.handle_cast(message jsonb, INOUT state jsonb) LANGUAGE plpgsql AS $$
BEGIN
  state := super.act(message, state);
END $$;
CREATE FUNCTION super.handle_info(message jsonb, INOUT state jsonb) LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO super.log (key, what) VALUES (dgen.key(), 'info ' || message::text);
END $$;
SELECT dgen.create_module('super', backoff_initial => '5 ms', backoff_factor => 1, breaker => 0) -> 'created';
-- what was logged since the last look
CREATE FUNCTION super.logged() RETURNS text LANGUAGE sql AS $$
  WITH gone AS (DELETE FROM super.log RETURNING *)
  SELECT string_agg(key || ' ' || what, ', ' ORDER BY n) FROM gone $$;
CREATE FUNCTION super.tree(OUT child text, OUT status text, OUT n text, OUT incarnation bigint) RETURNS SETOF record LANGUAGE sql AS $$
  SELECT c.supervisor || ' ' || c.id, c.status, s.state ->> 'n', s.incarnation
  FROM dgen.children c LEFT JOIN dgen.servers s ON s.server = c.server
  ORDER BY c.supervisor, c.number $$;
CREATE FUNCTION super.crash(key text) RETURNS text LANGUAGE sql AS $$
  SELECT pg_temp.error(format('SELECT dgen.call(%L, ''{"do": "super.fail(''''SU001'''')"}'')', 'super/' || key)) $$;

--
-- A tree: started left to right, depth first
--
SELECT dgen.supervise('shop', '{"strategy": "rest_for_one", "intensity": 3, "period": "1 min", "children": [
  {"id": "a", "server": "super/a", "args": 1},
  {"id": "sub", "strategy": "one_for_all", "children": [{"id": "b", "server": "super/b"}, {"id": "c", "server": "super/c", "args": {"x": 1}}]},
  {"server": "super/d"}]}');
SELECT super.logged();
SELECT * FROM super.tree();
SELECT dgen.call('super/' || k, 'null') FROM unnest('{a,b,c,d}'::text[]) k;
-- waits until nothing is about to be restarted
CREATE FUNCTION super.settled() RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
  PERFORM dgen.wait_idle(module => 'super');
  RETURN NOT EXISTS (SELECT FROM dgen.children WHERE status = 'restarting');
END $$;
SELECT * FROM dgen.which_children('shop');
SELECT * FROM dgen.count_children('shop');
SELECT * FROM dgen.count_children('shop/sub');

--
-- Strategies: one_for_all within sub, rest_for_one at the top; states are kept
--
SELECT super.crash('b');
SELECT super.settled();
SELECT super.logged();
SELECT * FROM super.tree();
SELECT super.crash('a');
SELECT super.settled();
SELECT super.logged();
SELECT super.crash('d');
SELECT super.settled();
SELECT super.logged();
SELECT * FROM super.tree();
SELECT name, status, restarts, reason FROM dgen.supervisors ORDER BY name;
SELECT supervisor, id, restarts, reason FROM dgen.children ORDER BY supervisor, number;

--
-- What is no crash: a plain RAISE, a fault of the environment, reject
--
SELECT pg_temp.error($$SELECT dgen.call('super/a', '{"do": "super.fail(''P0001'')"}')$$);
SELECT pg_temp.error($$SELECT dgen.call('super/a', '{"do": "super.no_such()"}')$$);
SELECT dgen.cast('super/a', '{"do": "dgen.reject(''no'')"}') > 0;
SELECT super.settled();
SELECT super.logged();

--
-- Too many restarts: the tree fails; calls are refused, messages wait
--
SELECT super.crash('a');
SELECT super.settled();
SELECT super.logged();
SELECT super.crash('a');
SELECT super.settled();
SELECT super.logged();
SELECT * FROM super.tree();
SELECT name, status, reason FROM dgen.supervisors ORDER BY name;
SELECT pg_temp.try($$SELECT dgen.call('super/b', 'null')$$);
SELECT pg_temp.try($$SELECT dgen.start('super/b')$$);
BEGIN ISOLATION LEVEL SERIALIZABLE;
SELECT dgen.invoke('super/b', 'null');
ROLLBACK;
SELECT dgen.cast('super/b', 'null') > 0;
SELECT pg_temp.try($$SELECT dgen.start_child('shop', '{"server": "super/x"}')$$);
SELECT dgen.restart_supervisor('shop');
SELECT dgen.restart_supervisor('shop');
SELECT dgen.wait_idle('super/b');
SELECT super.logged();
SELECT * FROM super.tree();
SELECT name, status, restarts, reason FROM dgen.supervisors ORDER BY name;

--
-- Escalation: sub fails, and is restarted by the supervisor above
--
SELECT dgen.stop_supervisor('shop', 'closing');
SELECT super.logged();
SELECT * FROM super.tree();
SELECT server, status, stop_reason FROM dgen.servers WHERE server LIKE 'super/%' ORDER BY 1;
SELECT dgen.supervise('shop', '{"intensity": 5, "period": "1 min", "children": [
  {"id": "a", "server": "super/a"},
  {"id": "sub", "intensity": 1, "period": "1 min", "children": [{"id": "b", "server": "super/b"}, {"id": "c", "server": "super/c"}]}]}');
SELECT super.logged();
SELECT super.crash('b');
SELECT super.settled();
SELECT super.logged();
SELECT super.crash('b');
SELECT super.settled();
SELECT super.logged();
SELECT name, status, restarts, reason FROM dgen.supervisors ORDER BY name;
SELECT * FROM super.tree();

--
-- A child whose init fails: each try counts, up to the top
--
UPDATE super.broken SET key = key;
SELECT dgen.start_child('shop/sub', '{"id": "e", "server": "super/e", "state": "init", "args": "again"}');
INSERT INTO super.broken VALUES ('e');
SELECT super.logged();
SELECT super.crash('e');
SELECT super.settled();
SELECT super.logged();
SELECT name, status, reason FROM dgen.supervisors ORDER BY name;
SELECT pg_temp.try($$SELECT dgen.restart_supervisor('shop')$$);
SELECT count(*) FROM dgen.servers WHERE server LIKE 'super/%' AND status = 'running';
DELETE FROM super.broken;
SELECT dgen.restart_supervisor('shop');
SELECT super.logged();
SELECT dgen.stop_supervisor('shop');

--
-- restart: permanent, transient, temporary; by exit, stop and crash
--
SELECT dgen.supervise('modes', '{"intensity": 100, "children": [
  {"id": "p", "server": "super/p"},
  {"id": "t", "server": "super/t", "restart": "transient"},
  {"id": "x", "server": "super/x", "restart": "temporary"}]}');
SELECT super.logged();
SELECT dgen.call('super/p', '{"do": "dgen.exit(''normal'')"}');
SELECT dgen.call('super/t', '{"do": "dgen.exit(''shutdown: enough'')"}');
SELECT super.settled();
SELECT super.logged();
SELECT * FROM super.tree();
SELECT pg_temp.error($$SELECT dgen.call('super/t', 'null')$$);
SELECT dgen.restart_child('modes', 't');
SELECT dgen.call('super/t', '{"do": "dgen.exit(''tired'')"}');
SELECT dgen.stop('super/p');
SELECT super.settled();
SELECT super.crash('t');
SELECT super.settled();
SELECT dgen.kill('super/t');
SELECT super.settled();
SELECT super.logged();
SELECT * FROM super.tree();
SELECT super.crash('x');
SELECT super.settled();
SELECT super.logged();
SELECT * FROM super.tree();
-- it is a server like any other now
SELECT dgen.call('super/x', 'null');

--
-- A message that crashes its server: tried again by the next incarnation, then a dead letter
--
SELECT dgen.cast('super/p', '{"do": "super.fail(''SU001'')"}', max_attempts => 3) > 0, dgen.cast('super/p', '"behind"') > 0;
SELECT super.settled();
SELECT super.logged();
SELECT message, attempts, sqlstate FROM dgen.dead_letters WHERE server = 'super/p';
SELECT dgen.purge('super');
SELECT id, restarts, reason FROM dgen.children WHERE supervisor = 'modes' ORDER BY number;

--
-- not_a_crash, on_restart, state init
--
SELECT dgen.start_child('modes', '{"id": "q", "server": "super/q", "not_a_crash": ["SU001"], "on_restart": {"wake": 1}}');
SELECT dgen.start_child('modes', '{"id": "i", "server": "super/i", "state": "init", "args": [1]}');
SELECT super.crash('q');
SELECT pg_temp.error($$SELECT dgen.call('super/q', '{"do": "super.fail(''P0001'')"}')$$);
SELECT super.settled();
SELECT dgen.call('super/i', 'null');
SELECT super.crash('i');
SELECT super.settled();
SELECT super.logged();
SELECT * FROM super.tree();

-- a terminate that fails does not keep a server alive
INSERT INTO super.broken VALUES ('end of q'), ('end of i');
SELECT pg_temp.error($$SELECT dgen.call('super/q', '{"do": "super.fail(''P0001'')"}')$$);
SELECT super.settled();
SELECT dgen.terminate_child('modes', 'i'), dgen.restart_child('modes', 'i');
DELETE FROM super.broken;
SELECT super.logged();
SELECT * FROM super.tree();

--
-- Children: start, terminate, restart, delete
--
SELECT pg_temp.try($$SELECT dgen.start_child('modes', '{"id": "q", "server": "super/other"}')$$);
SELECT pg_temp.try($$SELECT dgen.start_child('modes', '{"id": "other", "server": "super/q"}')$$);
SELECT pg_temp.try($$SELECT dgen.restart_child('modes', 'q')$$);
SELECT pg_temp.try($$SELECT dgen.delete_child('modes', 'q')$$);
SELECT pg_temp.try($$SELECT dgen.delete_child('modes', 'none')$$);
SELECT pg_temp.try($$SELECT dgen.delete_child('none', 'q')$$);
SELECT pg_temp.try($$SELECT dgen.which_children('none')$$);
SELECT pg_temp.try($$SELECT dgen.count_children('none')$$);
SELECT dgen.terminate_child('modes', 'q');
SELECT dgen.terminate_child('modes', 'q');
SELECT id, status FROM dgen.which_children('modes');
SELECT pg_temp.error($$SELECT dgen.call('super/q', 'null')$$);
SELECT dgen.restart_child('modes', 'q');
SELECT dgen.call('super/q', 'null');
SELECT dgen.terminate_child('modes', 'q');
SELECT dgen.delete_child('modes', 'q');
SELECT dgen.call('super/q', 'null') - 'x' IS NOT NULL;
-- in a savepoint
BEGIN;
SAVEPOINT s;
SELECT dgen.terminate_child('modes', 'i');
ROLLBACK TO s;
COMMIT;
SELECT id, status FROM dgen.which_children('modes');
-- who tests: what has ended in this transaction is restarted in it; its message is nobody's to take away
BEGIN;
SELECT dgen.stop('super/i');
SELECT id, status FROM dgen.which_children('modes');
SELECT kind, message FROM dgen.messages WHERE server = 'super/i';
SELECT pg_temp.try(format('SELECT dgen.%s(%s)', f, id)) ~ '55000 message \d+ cannot be taken away' FROM dgen.messages, unnest('{cancel,discard}'::text[]) f
WHERE server = 'super/i';
SELECT dgen.drain();
SELECT id, status FROM dgen.which_children('modes');
ROLLBACK;
-- a supervisor as a child
SELECT dgen.start_child('modes', '{"id": "dyn", "children": []}');
SELECT dgen.start_child('modes/dyn', jsonb_build_object('server', 'super/dyn' || n)) FROM generate_series(1, 3) n;
SELECT * FROM dgen.count_children('modes/dyn');
SELECT dgen.terminate_child('modes', 'dyn');
SELECT * FROM dgen.which_children('modes/dyn');
SELECT dgen.restart_child('modes', 'dyn');
SELECT * FROM dgen.which_children('modes/dyn');
SELECT pg_temp.try($$SELECT dgen.restart_supervisor('modes/dyn')$$);
SELECT dgen.terminate_child('modes', 'dyn'), dgen.delete_child('modes', 'dyn');
SELECT count(*) FROM dgen.supervisors;
SELECT dgen.delete('super/i');
SELECT id, status FROM dgen.which_children('modes');
SELECT super.logged() IS NOT NULL;

--
-- replace: what is in both trees goes on
--
SELECT pg_temp.try($$SELECT dgen.supervise('modes', '{}')$$);
SELECT dgen.supervise('modes', '{}', if_exists => 'return');
SELECT pg_temp.try($$SELECT dgen.supervise('modes', '{}', if_exists => 'maybe')$$);
SELECT incarnation FROM dgen.servers WHERE server = 'super/p';
SELECT dgen.supervise('modes', '{"strategy": "one_for_all", "children": [{"id": "new", "server": "super/new"}, {"id": "old", "server": "super/p"}]}',
  if_exists => 'replace');
SELECT super.logged();
SELECT * FROM super.tree();
-- a server that lives already is taken over
SELECT dgen.start_child('modes', '{"server": "super/q"}');
SELECT super.logged();
-- an operator's word holds: what was terminated stays down
SELECT dgen.terminate_child('modes', 'new');
SELECT super.crash('p');
SELECT super.settled();
SELECT super.logged();
SELECT id, status FROM dgen.which_children('modes');
SELECT dgen.stop_supervisor('modes');
SELECT super.logged();

--
-- What a tree must not be
--
CREATE FUNCTION super.refused(tree jsonb) RETURNS text LANGUAGE sql AS $$
  SELECT pg_temp.try(format('SELECT dgen.supervise(''bad'', %L)', tree)) $$;
SELECT super.refused(t) FROM unnest(ARRAY['[]', '{"id": "x"}', '{"stratgy": 1}', '{"strategy": "one_for_none"}', '{"strategy": 1}',
  '{"intensity": -1}', '{"intensity": 1.5}', '{"intensity": 1e9}', '{"intensity": "3"}', '{"period": "0"}', '{"period": "soon"}', '{"period": 5}',
  '{"children": {}}', '{"children": [1]}', '{"children": [{"id": "x"}]}', '{"children": [{"server": "nowhere"}]}',
  '{"children": [{"server": "super/a", "children": []}]}',
  '{"children": [{"server": 1}]}', '{"children": [{"strategy": "one_for_all"}]}', '{"children": [{"id": "x/y", "children": []}]}',
  '{"children": [{"id": "", "server": "super/a"}]}',
  '{"children": [{"server": "super/a", "restart": "sometimes"}]}', '{"children": [{"server": "super/a", "state": "lost"}]}',
  '{"children": [{"server": "super/a", "not_a_crash": "P0001"}]}', '{"children": [{"server": "super/a", "not_a_crash": ["P1"]}]}',
  '{"children": [{"id": "s", "children": [{"id": "a", "server": "super/a"}, {"id": "a", "server": "super/b"}]}]}',
  '{"children": [{"id": "s", "children": [{"id": "a", "server": "super/a"}]}, {"id": "b", "server": "super/a"}]}',
  '{"children": [{"server": "no_such/a"}]}', '{"children": [{"server": "super/a", "state": "last_good"}]}']::jsonb[]) t;
SELECT pg_temp.try($$SELECT dgen.supervise('a/b', '{}')$$);
SELECT pg_temp.try($$SELECT dgen.supervise(NULL, '{}')$$);
SELECT pg_temp.error($$SELECT dgen.supervise('x', NULL)$$);
SELECT pg_temp.try($$SELECT dgen.stop_supervisor('none')$$);
RESET ROLE;
CREATE SCHEMA super3;
SELECT dgen.create_module('super3', external => true) -> 'created';
SELECT super.refused('{"children": [{"server": "super3/a"}]}');
SELECT dgen.drop_module('super3');
CREATE FUNCTION super3.handle_cast(message jsonb, state jsonb) RETURNS jsonb LANGUAGE sql AS 'SELECT state';
SELECT dgen.create_module('super3', ephemeral => true) -> 'created';
SELECT super.refused('{"children": [{"server": "super3/a"}]}');
SELECT dgen.drop_module('super3');
DROP SCHEMA super3 CASCADE;
SET ROLE regress_dgen_super;
-- init fails: the error is the child's, and nothing is made
INSERT INTO super.broken VALUES ('z');
CREATE FUNCTION super.context(statement text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
  context text;
BEGIN
  EXECUTE statement;
EXCEPTION WHEN OTHERS THEN
  GET STACKED DIAGNOSTICS context = PG_EXCEPTION_CONTEXT;
  RETURN context;
END $$;
SELECT super.context($$SELECT dgen.supervise('bad', '{"children": [{"id": "s", "children": [{"server": "super/z"}]}]}')$$);
SELECT super.refused('{"children": [{"server": "super/y"}, {"server": "super/z"}]}');
DELETE FROM super.broken;
SELECT count(*) FROM dgen.children;
SELECT count(*) FROM dgen.servers WHERE server IN ('super/y', 'super/z');
-- a server of another tree
SELECT dgen.supervise('first', '{"children": [{"id": "one", "server": "super/one"}]}');
SELECT super.refused('{"children": [{"server": "super/one"}]}');

--
-- Rights
--
RESET ROLE;
CREATE ROLE regress_dgen_super2 LOGIN;
CREATE SCHEMA super2 AUTHORIZATION regress_dgen_super2;
SET ROLE regress_dgen_super2;
-- who has no module makes no supervisor, and takes no lock of somebody else's
SELECT pg_temp.try($$SELECT dgen.supervise('mine', '{}')$$);
SELECT pg_temp.error($$SELECT dgen.supervise('first', '{}', if_exists => 'return')$$);
CREATE FUNCTION super2.handle_cast(message jsonb, state jsonb) RETURNS jsonb LANGUAGE sql AS 'SELECT state';
SELECT dgen.create_module('super2') -> 'created';
SELECT pg_temp.try($$SELECT dgen.supervise('second', '{"children": [{"server": "super2/a"}, {"server": "super/two"}]}')$$);
SELECT count(*) FROM dgen.supervisors;
SELECT count(*) FROM dgen.children;
SELECT pg_temp.try($$SELECT dgen.supervise('first', '{}', if_exists => 'replace')$$);
SELECT pg_temp.error(format('SELECT dgen.%s', f)) FROM unnest(ARRAY[
  $$stop_supervisor('first')$$, $$restart_supervisor('first')$$, $$start_child('first', '{"server": "super2/a"}')$$,
  $$terminate_child('first', 'one')$$, $$restart_child('first', 'one')$$, $$delete_child('first', 'one')$$,
  $$terminate_child('first', 'none')$$, $$which_children('first')$$, $$count_children('first')$$]) f;
RESET ROLE;
-- who may operate a child's module may take it out of somebody else's tree
SELECT dgen.supervise('mixed', '{"children": [{"id": "a", "server": "super2/a"}, {"id": "b", "server": "super/b"}]}');
SET ROLE regress_dgen_super2;
SELECT dgen.terminate_child('mixed', 'a');
SELECT dgen.restart_child('mixed', 'a');
SELECT pg_temp.error($$SELECT dgen.terminate_child('mixed', 'b')$$);
SELECT dgen.terminate_child('mixed', 'a'), dgen.delete_child('mixed', 'a');
RESET ROLE;
SELECT id, status FROM dgen.which_children('mixed');
SELECT dgen.drop_module('super2', cascade => true);
SELECT dgen.stop_supervisor('mixed');
DROP SCHEMA super2 CASCADE;
DROP ROLE regress_dgen_super2;
SET ROLE regress_dgen_super;

--
-- on_stop => delete, and a module that is dropped
--
SELECT dgen.alter_module('super', on_stop => 'delete') -> 'created';
SELECT dgen.call('super/one', 'null');
SELECT super.crash('one');
SELECT super.settled();
SELECT * FROM super.tree();
SELECT dgen.stop('super/one');
SELECT super.settled();
SELECT * FROM super.tree();
SELECT dgen.terminate_child('first', 'one');
SELECT status, state FROM dgen.servers WHERE server = 'super/one';
SELECT dgen.delete_child('first', 'one');
SELECT count(*) FROM dgen.servers WHERE server = 'super/one';
SELECT dgen.start_child('first', '{"server": "super/two"}');
SELECT dgen.alter_module('super', on_stop => 'keep') -> 'created';

-- a child does not expire
SELECT dgen.alter_module('super', expire_after => '100 ms') -> 'created';
SELECT dgen.call('super/two', 'null'), dgen.call('super/idle', 'null');
SELECT pg_temp.until($$NOT EXISTS (SELECT FROM dgen.servers WHERE server = 'super/idle')$$);
SELECT status FROM dgen.servers WHERE server = 'super/two';
SELECT dgen.alter_module('super', expire_after => '0') -> 'created';
SELECT super.logged() IS NOT NULL;

--
-- on_crash_loop
--
CREATE FUNCTION super.loop(key text, n integer) RETURNS text LANGUAGE sql AS $$
  SELECT string_agg(super.crash(key), ', ') FROM generate_series(1, n) $$;
SELECT pg_temp.try($$SELECT dgen.alter_module('super', on_crash_loop => 'panic')$$);
SELECT pg_temp.try($$SELECT dgen.alter_module('super', crash_limit => 0)$$);
SELECT dgen.alter_module('super', on_crash_loop => 'suspend', crash_limit => 3) -> 'created';
SELECT dgen.call('super/loop', 'null');
SELECT super.loop('loop', 2);
SELECT dgen.call('super/loop', 'null');
SELECT super.loop('loop', 2);
SELECT pg_temp.error($$SELECT dgen.call('super/loop', '{"do": "super.fail(''P0001'')"}')$$);
SELECT suspended_by FROM dgen.servers WHERE server = 'super/loop';
SELECT super.loop('loop', 1);
SELECT suspended_by FROM dgen.servers WHERE server = 'super/loop';
SELECT dgen.resume('super/loop');
SELECT dgen.cast('super/loop', '{"do": "super.fail(''SU001'')"}', max_attempts => 3) > 0;
SELECT pg_temp.until($$(SELECT suspended_by IS NOT NULL FROM dgen.servers WHERE server = 'super/loop')$$);
SELECT super.logged() IS NOT NULL;
SELECT dgen.resume('super/loop');
SELECT dgen.alter_module('super', on_crash_loop => 'init') -> 'created';
SELECT dgen.call('super/loop', 'null') ->> 'n' > '1';
SELECT super.loop('loop', 3);
SELECT super.logged();
SELECT dgen.call('super/loop', 'null');
SELECT super.loop('new one', 3);
SELECT super.logged();

--
-- An init that takes longer than handler_timeout, and traps the cancel
--
RESET ROLE;
CREATE SCHEMA super4 AUTHORIZATION regress_dgen_super;
SET ROLE regress_dgen_super;
CREATE TABLE super4.slow (key text);
CREATE FUNCTION super4.init(args jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
  IF EXISTS (SELECT FROM super4.slow WHERE key = dgen.key()) THEN
    PERFORM pg_sleep(600);
  END IF;
  RETURN '0';
EXCEPTION WHEN query_canceled THEN
  RETURN '1';
END $$;
CREATE FUNCTION super4.handle_call(request jsonb, INOUT state jsonb, OUT reply jsonb) LANGUAGE plpgsql AS $$
BEGIN
  PERFORM super.fail('SU001');
END $$;
SELECT dgen.create_module('super4', handler_timeout => '50 ms', breaker => 0) -> 'created';
SELECT dgen.supervise('slow', '{"intensity": 1, "children": [{"id": "a", "server": "super4/a", "state": "init"}]}') IS NOT NULL;
INSERT INTO super4.slow VALUES ('a');
SELECT pg_temp.error($$SELECT dgen.call('super4/a', '1')$$);
SELECT pg_temp.until($$(SELECT status <> 'running' FROM dgen.supervisors WHERE name = 'slow')$$);
SELECT status, reason FROM dgen.supervisors WHERE name = 'slow';
SELECT id, status, reason FROM dgen.children WHERE supervisor = 'slow';
SELECT dgen.stop_supervisor('slow');
-- nor does a crash loop wait for it
SELECT dgen.alter_module('super4', on_crash_loop => 'init', crash_limit => 1) -> 'created';
SELECT dgen.start('super4/b');
INSERT INTO super4.slow VALUES ('b');
SELECT pg_temp.error($$SELECT dgen.call('super4/b', 'null')$$);
SELECT suspended_by, dgen.state(server) FROM dgen.servers WHERE server = 'super4/b';
-- and a handler that ran too long is not taken for a callback of the mending that did
CREATE FUNCTION super4.terminate(reason text, state jsonb) RETURNS void LANGUAGE sql AS $$
  INSERT INTO super4.slow VALUES ('end of ' || dgen.self()) $$;
CREATE OR REPLACE FUNCTION super4.handle_call(request jsonb, INOUT state jsonb, OUT reply jsonb) LANGUAGE plpgsql AS $$
BEGIN
  IF request = 'null' THEN
    PERFORM pg_sleep(600);
  END IF;
  state := request;
END $$;
SELECT dgen.start('super4/c');
SELECT pg_temp.error($$SELECT dgen.call('super4/c', 'null')$$);
SELECT suspended_by, incarnation, dgen.state(server) FROM dgen.servers WHERE server = 'super4/c';
SELECT key FROM super4.slow WHERE key ~ 'end of';
SELECT dgen.alter_module('super4', on_crash_loop => 'rollback', history => '10') -> 'created';
SELECT dgen.call('super4/d', '1'), dgen.call('super4/d', '2');
SELECT pg_temp.error($$SELECT dgen.call('super4/d', 'null')$$);
SELECT suspended_by, incarnation, dgen.state(server) FROM dgen.servers WHERE server = 'super4/d';

RESET ROLE;
SELECT dgen.drop_module('super', cascade => true), dgen.drop_module('super4', cascade => true);
SELECT count(*) FROM dgen.children;
SELECT dgen.stop_supervisor('first');
DROP SCHEMA super, super4 CASCADE;
DROP ROLE regress_dgen_super;
