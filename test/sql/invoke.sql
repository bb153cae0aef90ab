--
-- Handlers in the caller's own transaction: invoke, query, inline.
--
\getenv dir PG_ABS_SRCDIR
\i :dir/sql/helpers.psql
CREATE ROLE regress_dgen_invoke LOGIN;
CREATE SCHEMA invoke AUTHORIZATION regress_dgen_invoke;
SET ROLE regress_dgen_invoke;
CREATE TABLE invoke.t (i integer);

-- counts, and does what it is told, which may set the reply
CREATE FUNCTION invoke.handle_call(request jsonb, INOUT state jsonb, OUT reply jsonb) LANGUAGE plpgsql AS $$
BEGIN
  state := state || jsonb_build_object('n', coalesce((state ->> 'n')::integer, 0) + 1);
  reply := state -> 'n';
  IF jsonb_typeof(request) = 'object' THEN
    EXECUTE 'SELECT to_jsonb(x) FROM (SELECT ' || (request ->> 'do') || ') x(y)' INTO reply;
    reply := nullif(reply -> 'y', 'null');
  END IF;
END $$;
CREATE FUNCTION invoke.handle_cast(message jsonb, INOUT state jsonb) LANGUAGE sql AS $$
  SELECT state || jsonb_build_object('cast', message) $$;
CREATE FUNCTION invoke.handle_info(message jsonb, INOUT state jsonb) LANGUAGE plpgsql AS $$
BEGIN
  IF message = '"wait"' THEN
    PERFORM pg_sleep(0.2);
  END IF;
  state := state || jsonb_build_object('info', message);
END $$;
CREATE FUNCTION invoke.handle_query(query jsonb, state jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
  result jsonb;
BEGIN
  IF query IS NULL OR query = 'null' THEN
    RETURN state;
  END IF;
  EXECUTE 'SELECT to_jsonb(x) FROM (' || (query ->> 'do') || ') x(y)' INTO result;
  RETURN result -> 'y';
END $$;
CREATE FUNCTION invoke.insert(integer) RETURNS integer LANGUAGE sql AS $$
  INSERT INTO invoke.t VALUES ($1) RETURNING i $$;
SELECT dgen.create_module('invoke') -> 'created';

--
-- It refuses a transaction that is weaker than the module's
--
SELECT pg_temp.try($$SELECT dgen.invoke('invoke/a', '1')$$);
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT pg_temp.error($$SELECT dgen.invoke('invoke/a', '1')$$);
ROLLBACK;
SELECT dgen.alter_module('invoke', isolation => 'repeatable read') -> 'created';
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT dgen.invoke('invoke/iso', '1');
COMMIT;
BEGIN ISOLATION LEVEL SERIALIZABLE;
SELECT dgen.invoke('invoke/iso', '1');
COMMIT;
SELECT pg_temp.error($$SELECT dgen.invoke('invoke/iso', '1')$$);
SELECT dgen.alter_module('invoke', isolation => 'read committed') -> 'created';
SELECT dgen.invoke('invoke/iso', '1');
SELECT dgen.alter_module('invoke', isolation => 'serializable', invoke_isolation => 'any') -> 'created';
SELECT dgen.invoke('invoke/iso', '1');

--
-- It commits and rolls back with its transaction, and with savepoints
--
SELECT dgen.invoke('invoke/a', '1');
SELECT dgen.call('invoke/a', '1');
BEGIN;
SELECT dgen.invoke('invoke/a', '1');
SELECT dgen.invoke('invoke/a', '1');
SELECT dgen.state('invoke/a');
SELECT server, version, state FROM dgen.servers WHERE server = 'invoke/a';
ROLLBACK;
SELECT dgen.state('invoke/a');
BEGIN;
SELECT dgen.invoke('invoke/a', '{"do": "invoke.insert(1)"}');
SAVEPOINT s;
SELECT dgen.invoke('invoke/a', '{"do": "invoke.insert(2)"}');
SELECT dgen.invoke('invoke/new', '1');
ROLLBACK TO s;
SELECT dgen.state('invoke/a');
SELECT dgen.invoke('invoke/a', '{"do": "invoke.insert(3)"}');
COMMIT;
SELECT dgen.state('invoke/a'), (SELECT array_agg(i ORDER BY i) FROM invoke.t);
SELECT version FROM dgen.servers WHERE server = 'invoke/a';
SELECT count(*) FROM dgen.servers WHERE server = 'invoke/new';
-- a worker goes on with what was invoked
SELECT dgen.call('invoke/a', '1');
SELECT dgen.invoke('invoke/a', NULL);

--
-- It sees what its transaction has written
--
BEGIN;
INSERT INTO invoke.t VALUES (99);
SELECT dgen.invoke('invoke/a', '{"do": "(SELECT max(i) FROM invoke.t)"}');
ROLLBACK;

--
-- An error undoes it
--
SELECT pg_temp.error($$SELECT dgen.invoke('invoke/a', '{"do": "invoke.insert(4) / 0"}')$$);
SELECT dgen.state('invoke/a'), (SELECT count(*) FROM invoke.t);

--
-- Over two servers: one transaction
--
BEGIN;
SELECT dgen.invoke('invoke/from', '{"do": "dgen.call(''invoke/to'', ''1'')"}');
SELECT dgen.invoke('invoke/from', '{"do": "dgen.invoke(''invoke/to'', ''1'')"}');
SELECT dgen.state('invoke/from'), dgen.state('invoke/to');
ROLLBACK;
SELECT count(*) FROM dgen.servers WHERE server IN ('invoke/from', 'invoke/to');
SELECT dgen.invoke('invoke/from', '{"do": "dgen.invoke(''invoke/to'', ''1'')"}');
SELECT dgen.state('invoke/from'), dgen.state('invoke/to');
SELECT pg_temp.try($$SELECT dgen.invoke('invoke/from', '{"do": "dgen.invoke(''invoke/from'', ''1'')"}')$$);

--
-- What a handler knows
--
SELECT w, dgen.invoke('invoke/know', jsonb_build_object('do', w)) FROM unnest(ARRAY['dgen.self()', 'dgen.key()', 'dgen.kind()',
  'dgen.sender()', 'dgen.sender_role()', 'current_user', 'dgen.context()', 'current_setting(''search_path'')']) w;
SET dgen.context = '{"a": 1}';
SELECT dgen.invoke('invoke/know', '{"do": "dgen.context()"}');
RESET dgen.context;
-- its settings are its own
SELECT dgen.invoke('invoke/know', '{"do": "set_config(''dgen.context'', ''{\"b\": 2}'', false)"}');
SHOW dgen.context;

--
-- Refusals
--
-- it would overtake messages of the same transaction, but waits for those that are committed
BEGIN;
SELECT dgen.cast('invoke/a', '1') > 0;
SELECT pg_temp.try($$SELECT dgen.invoke('invoke/a', '1')$$);
SELECT dgen.invoke('invoke/iso', '1');
ROLLBACK;
SELECT dgen.send('invoke/order', '"wait"') > 0;
SELECT dgen.cast('invoke/order', '"cast"') > 0;
SELECT dgen.invoke('invoke/order', '1');
SELECT dgen.state('invoke/order');
-- no reply, or none to wait for
SELECT pg_temp.try($$SELECT dgen.invoke('invoke/a', '{"do": "NULL FROM dgen.noreply()"}')$$);
SELECT pg_temp.try($$SELECT dgen.invoke('invoke/a', '{"do": "dgen.reject(''no'')::text"}')$$);
SELECT pg_temp.error($$SELECT dgen.invoke('invoke/a', '{"do": "dgen.retry_after(''1 s'')::text"}')$$);
SELECT dgen.state('invoke/a');
SELECT dgen.invoke('invoke/exit', '{"do": "dgen.exit(''done'')::text"}');
SELECT status, stop_reason FROM dgen.servers WHERE server = 'invoke/exit';
-- suspended, in parts or whole
SELECT dgen.suspend('invoke/suspended', reason => 'for now');
SELECT pg_temp.try($$SELECT dgen.invoke('invoke/suspended', '1')$$);
SELECT dgen.resume('invoke/suspended');
SELECT dgen.suspend(module => 'invoke', reason => 'for now');
SELECT pg_temp.try($$SELECT dgen.invoke('invoke/a', '1')$$);
SELECT pg_temp.error($$SELECT dgen.query('invoke/a', NULL)$$);
SELECT dgen.resume(module => 'invoke');
-- read only
BEGIN READ ONLY;
SELECT pg_temp.error($$SELECT dgen.invoke('invoke/a', '1')$$);
ROLLBACK;
SELECT dgen.alter_module('invoke', auto_start => false) -> 'created';
SELECT pg_temp.try($$SELECT dgen.invoke('invoke/unknown', '1')$$);
SELECT pg_temp.try($$SELECT dgen.invoke('invoke/exit', '1')$$);
SELECT dgen.alter_module('invoke', auto_start => true) -> 'created';

--
-- query: reads the state that the statement sees, and writes nothing
--
SELECT dgen.query('invoke/a', NULL);
BEGIN;
SELECT dgen.invoke('invoke/a', '1');
SELECT dgen.query('invoke/a', NULL);
ROLLBACK;
SELECT dgen.query('invoke/a', NULL);
BEGIN READ ONLY;
SELECT dgen.query('invoke/a', NULL);
COMMIT;
SELECT pg_temp.try($$SELECT dgen.query('invoke/unknown', NULL)$$);
SELECT q, pg_temp.error(format('SELECT dgen.query(%L, %L)', 'invoke/a', jsonb_build_object('do', q))) FROM unnest(ARRAY[
  'SELECT dgen.kind()', 'SELECT dgen.self()', 'SELECT invoke.insert(5)', 'SELECT nextval(''invoke.s'')',
  'SELECT set_config(''transaction_read_only'', ''off'', true)', 'SELECT dgen.cast(''invoke/b'', ''1'')',
  'SELECT dgen.send(''invoke/b'', ''1'')', 'SELECT dgen.invoke(''invoke/b'', ''1'')', 'SELECT dgen.start(''invoke/b'')',
  'SELECT dgen.query(''invoke/b'', NULL)', 'SELECT dgen.query(''invoke/a'', NULL)', 'SELECT dgen.state(''invoke/a'')', 'SELECT 1/0',
  'SELECT dgen.wait_idle(''invoke/a'')']) q;
-- the transaction goes on writing
BEGIN;
SELECT dgen.query('invoke/a', NULL);
INSERT INTO invoke.t VALUES (6);
ROLLBACK;

--
-- For tests: with dgen.inline a call is an invoke
--
BEGIN;
SET LOCAL dgen.inline = on;
INSERT INTO invoke.t VALUES (7);
SELECT dgen.call('invoke/inline', '{"do": "(SELECT max(i) FROM invoke.t)"}');
-- after this transaction's messages to it
SELECT dgen.cast('invoke/inline', '"before"') > 0;
SELECT dgen.call('invoke/inline', '{"do": "dgen.kind()"}');
SELECT dgen.state('invoke/inline');
SELECT server, reply, error FROM dgen.multi_call(ARRAY['invoke/inline', 'invoke/inline 2'], '1');
SELECT dgen.send_request('invoke/inline', '1') AS id \gset
SELECT dgen.check_response(:id);
SELECT dgen.wait_response(:id);
ROLLBACK;
SELECT count(*) FROM dgen.servers WHERE server LIKE 'invoke/inline%';

SELECT dgen.drop_module('invoke', true);
RESET ROLE;
SET client_min_messages = warning;
DROP SCHEMA invoke CASCADE;
DROP OWNED BY regress_dgen_invoke CASCADE;
DROP ROLE regress_dgen_invoke;
