--
-- Who may do what, and whose rights code runs with.
--
\getenv dir PG_ABS_SRCDIR
\i :dir/sql/helpers.psql
CREATE ROLE regress_dgen_owner LOGIN;
CREATE ROLE regress_dgen_client;
CREATE ROLE regress_dgen_operator;
CREATE ROLE regress_dgen_reader;
CREATE ROLE regress_dgen_stranger;
CREATE ROLE regress_dgen_other LOGIN;
CREATE SCHEMA rights AUTHORIZATION regress_dgen_owner;
CREATE SCHEMA other AUTHORIZATION regress_dgen_other;

SET ROLE regress_dgen_owner;
CREATE FUNCTION rights.handle_call(request jsonb, INOUT state jsonb, OUT reply jsonb) LANGUAGE plpgsql AS $$
BEGIN
  EXECUTE 'SELECT to_jsonb(x) FROM (SELECT ' || (request ->> 0) || ') x(y)' INTO reply;
  reply := reply -> 'y';
END $$;
CREATE FUNCTION rights.handle_cast(message jsonb, INOUT state jsonb) LANGUAGE sql AS $$ SELECT message $$;
CREATE FUNCTION rights.handle_query(query jsonb, state jsonb) RETURNS jsonb LANGUAGE sql AS $$
  SELECT jsonb_build_array(current_user, state) $$;
REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA rights FROM PUBLIC;
SELECT dgen.create_module('rights', invoke_isolation => 'any', operators => 'regress_dgen_operator',
  clients => 'regress_dgen_client', readers => 'regress_dgen_reader') -> 'owner';
SELECT dgen.call('rights/a', '["1"]');
-- where the callback is missing there is no EXECUTE that could be granted
RESET ROLE;
CREATE SCHEMA lacks AUTHORIZATION regress_dgen_owner;
SET ROLE regress_dgen_owner;
CREATE FUNCTION lacks.handle_call(request jsonb, INOUT state jsonb, OUT reply jsonb) LANGUAGE sql AS $$ SELECT $2, $1 $$;
SELECT dgen.create_module('lacks') -> 'created';
GRANT USAGE ON SCHEMA lacks TO regress_dgen_stranger;
SET ROLE regress_dgen_stranger;
SELECT dgen.call('lacks/a', '1');
SELECT dgen.cast('lacks/a', '1');
SELECT dgen.query('lacks/a', '1');
SELECT dgen.send('lacks/a', '1');
SET ROLE regress_dgen_owner;
SELECT dgen.cast('lacks/a', '1');
SELECT dgen.drop_module('lacks', "cascade" => true);
DROP SCHEMA lacks CASCADE;

-- every function that takes the address of a server, or one of a message or a module, by a role
RESET ROLE;
CREATE FUNCTION pg_temp.attempts(role text, filter text DEFAULT '.') RETURNS SETOF text LANGUAGE plpgsql AS $$
DECLARE
  f text;
  id text := (SELECT min(m.id)::text FROM dgen.message m WHERE server = 'rights/mail');
BEGIN
  EXECUTE format('SET LOCAL ROLE %I', role);
  FOREACH f IN ARRAY ARRAY[
    'call(''rights/b'', ''["1"]'')',
    'multi_call(ARRAY[''rights/b''], ''["1"]'')',
    'cast(''rights/b'', ''1'') > 0',
    'cast_many(''[{"server": "rights/b", "message": 1}]'') IS NOT NULL',
    'send(''rights/b'', ''1'') > 0',
    'send_request(''rights/b'', ''["1"]'') > 0',
    'invoke(''rights/c'', ''["1"]'')',
    'query(''rights/a'', NULL) IS NOT NULL',
    'cancel(' || id || ')',
    'message_status(' || id || ')',
    'wait_response(' || id || ', ''1 ms'')',
    'check_response(' || id || ')',
    'reply_of(''rights/a'', ''k'')',
    'wait_state(''rights/a'', timeout => ''1 ms'') IS NOT NULL',
    'wait_idle(''rights/a'')',
    'wait_idle(module => ''rights'', timeout => ''0'') IS NOT NULL',
    'state(''rights/a'')',
    'start(''rights/d'')',
    'replace_state(''rights/a'', ''{}'') > 0',
    'stop(''rights/d'')',
    'kill(''rights/d'')',
    'delete(''rights/d'')',
    'suspend(''rights/d'')',
    'resume(''rights/d'')',
    'suspend(module => ''rights'')',
    'resume(module => ''rights'')',
    'suspend(everything => true)',
    'requeue_all(''rights/a'')',
    'requeue_all(module => ''rights'')',
    'purge(''rights'')',
    'try(''rights'', ''handle_query'')',
    'alter_module(''rights'') -> ''owner''',
    'drop_module(''rights'', true)',
    'adopt()']
  LOOP
    IF f ~ filter THEN
      -- that one has errors as values
      RETURN NEXT f || ': ' || pg_temp.error(CASE WHEN f LIKE 'multi_call%'
        THEN 'SELECT coalesce((error ->> ''sqlstate'') || '' '' || (error ->> ''message''), reply::text) FROM dgen.' || f
        ELSE 'SELECT dgen.' || replace(f, id, '(' || id || ')') END);
    END IF;
  END LOOP;
  RESET ROLE;
END $$;
CREATE FUNCTION pg_temp.rights(role text) RETURNS SETOF text LANGUAGE sql AS $$
  SELECT regexp_replace(replace(a, (SELECT min(m.id)::text FROM dgen.message m WHERE server = 'rights/mail'), 'ID'), '^(.*: 42501 ).*', '\1')
  FROM pg_temp.attempts(role) a $$;
SET ROLE regress_dgen_owner;
SELECT dgen.suspend('rights/mail');
-- ids of some digits, which are not in any text below by chance
SELECT count(dgen.cancel(dgen.send('rights/mail', '0'))) FROM generate_series(1, 12345);
SELECT dgen.send_request('rights/mail', '["1"]') > 0;
SELECT dgen.call('rights/a', '["1"]', request_key => 'k');
RESET ROLE;
SET client_min_messages = error;

--
-- A stranger may nothing
--
BEGIN;
SELECT pg_temp.rights('regress_dgen_stranger');
ROLLBACK;
SET ROLE regress_dgen_stranger;
SELECT count(*) FROM dgen.modules WHERE module = 'rights';
SELECT count(*) FROM dgen.servers WHERE server LIKE 'rights/%';
SELECT count(*) FROM dgen.messages WHERE server LIKE 'rights/%';
SELECT count(*) FROM dgen.dead_letters WHERE server LIKE 'rights/%';
SELECT count(*) FROM dgen.workers WHERE server LIKE 'rights/%' OR owner = 'regress_dgen_owner';
SELECT dgen.may_read('rights/a'), dgen.masked_state('rights/a', '1', 1, 1), dgen.masked_state('rights/a', '1', 0, 100), dgen.masked_message('rights/a', '1');
SELECT count(*) FROM dgen.calls_in_flight();
-- no condition of his own is asked about rows that he may not see
CREATE FUNCTION pg_temp.leak(anyelement) RETURNS boolean LANGUAGE plpgsql COST 0.0000001 AS $$
BEGIN
  RAISE EXCEPTION 'leak: %', $1;
END $$;
SELECT count(*) FROM dgen.servers WHERE pg_temp.leak(server);
SELECT count(*) FROM dgen.messages WHERE pg_temp.leak(message);
SELECT count(*) FROM dgen.dead_letters WHERE pg_temp.leak(error);
RESET ROLE;
DROP FUNCTION pg_temp.leak;
-- what he lacks, in full
GRANT USAGE ON SCHEMA rights TO regress_dgen_stranger;
SET ROLE regress_dgen_stranger;
SELECT pg_temp.try($$SELECT dgen.cast('rights/a', '1')$$);
SELECT pg_temp.try($$SELECT dgen.send('rights/a', '1')$$);
SELECT pg_temp.try($$SELECT dgen.state('rights/a')$$);
SELECT pg_temp.try($$SELECT dgen.stop('rights/a')$$);
SELECT pg_temp.try($$SELECT dgen.adopt()$$);
RESET ROLE;
REVOKE USAGE ON SCHEMA rights FROM regress_dgen_stranger;
SET ROLE regress_dgen_stranger;
SELECT pg_temp.try($$SELECT dgen.cast('rights/a', '1')$$);
RESET ROLE;

--
-- Sending is USAGE on the schema and EXECUTE on the callback, one by one
--
GRANT USAGE ON SCHEMA rights TO regress_dgen_stranger;
GRANT EXECUTE ON FUNCTION rights.handle_cast TO regress_dgen_stranger;
BEGIN;
SELECT a FROM pg_temp.rights('regress_dgen_stranger') a WHERE a NOT LIKE '%: 42501 ';
ROLLBACK;
REVOKE EXECUTE ON FUNCTION rights.handle_cast FROM regress_dgen_stranger;
GRANT EXECUTE ON FUNCTION rights.handle_call TO regress_dgen_stranger;
BEGIN;
SELECT a FROM pg_temp.rights('regress_dgen_stranger') a WHERE a NOT LIKE '%: 42501 ';
ROLLBACK;
REVOKE EXECUTE ON FUNCTION rights.handle_call FROM regress_dgen_stranger;
GRANT EXECUTE ON FUNCTION rights.handle_query TO regress_dgen_stranger;
BEGIN;
SELECT a FROM pg_temp.rights('regress_dgen_stranger') a WHERE a NOT LIKE '%: 42501 ';
ROLLBACK;
-- EXECUTE without USAGE is not enough
REVOKE USAGE ON SCHEMA rights FROM regress_dgen_stranger;
SET ROLE regress_dgen_stranger;
SELECT pg_temp.error($$SELECT dgen.query('rights/a', NULL)$$);
RESET ROLE;
REVOKE EXECUTE ON FUNCTION rights.handle_query FROM regress_dgen_stranger;

--
-- Clients, readers, operators, a member of the owner, a superuser
--
BEGIN;
SELECT a FROM pg_temp.rights('regress_dgen_client') a WHERE a NOT LIKE '%: 42501 ';
ROLLBACK;
BEGIN;
SELECT a FROM pg_temp.rights('regress_dgen_reader') a WHERE a NOT LIKE '%: 42501 ';
ROLLBACK;
SET ROLE regress_dgen_reader;
SELECT server, state FROM dgen.servers WHERE server LIKE 'rights/%' ORDER BY server;
SELECT server, kind FROM dgen.messages WHERE server LIKE 'rights/%';
SELECT pg_temp.error(format('SELECT dgen.receive_response(%s, ''1 ms'')', id)) LIKE '42501 permission denied to receive %' FROM dgen.messages WHERE server = 'rights/mail';
RESET ROLE;
BEGIN;
SELECT a FROM pg_temp.rights('regress_dgen_operator') a WHERE a NOT LIKE '%: 42501 ';
ROLLBACK;
CREATE ROLE regress_dgen_member IN ROLE regress_dgen_owner;
BEGIN;
SELECT a FROM pg_temp.rights('regress_dgen_member') a WHERE a LIKE '%: 42501 ';
ROLLBACK;
DROP ROLE regress_dgen_member;
-- with all of it given, what is sent is sent by this role
GRANT USAGE ON SCHEMA rights TO regress_dgen_stranger;
GRANT EXECUTE ON FUNCTION rights.handle_call, rights.handle_cast TO regress_dgen_stranger;
SET ROLE regress_dgen_stranger;
SELECT dgen.call('rights/a', '["dgen.sender_role()"]');
SELECT dgen.invoke('rights/a', '["dgen.sender_role()"]');
SELECT dgen.cast('rights/mail', '1') AS mine \gset
SELECT dgen.message_status(:mine);
RESET ROLE;
-- others cannot cancel it, nor do they learn of it; operators can
SET ROLE regress_dgen_other;
SELECT replace(pg_temp.try(format('SELECT dgen.cancel(%s)', :mine)), :'mine', 'N');
SELECT dgen.message_status(:mine) IS NULL;
SET ROLE regress_dgen_reader;
SELECT replace(pg_temp.error(format('SELECT dgen.cancel(%s)', :mine)), :'mine', 'N');
SELECT dgen.message_status(:mine);
SET ROLE regress_dgen_stranger;
SELECT dgen.cancel(:mine);
SELECT dgen.cast('rights/mail', '2') AS mine \gset
SET ROLE regress_dgen_operator;
SELECT dgen.cancel(:mine);
RESET ROLE;

--
-- Tables and sequences are nobody's
--
SET ROLE regress_dgen_owner;
SELECT c.relname, pg_temp.error(format('SELECT count(*) FROM %s', c.oid::regclass)), pg_temp.error(format('DELETE FROM %s', c.oid::regclass)),
  pg_temp.error(format('TRUNCATE %s', c.oid::regclass))
FROM pg_class c WHERE c.relnamespace = 'dgen'::regnamespace AND c.relkind = 'r' ORDER BY c.relname;
SELECT c.relname, pg_temp.error(format('SELECT nextval(%L)', c.oid::regclass)), pg_temp.error(format('SELECT setval(%L, 1)', c.oid::regclass))
FROM pg_class c WHERE c.relnamespace = 'dgen'::regnamespace AND c.relkind = 'S' ORDER BY c.relname;
SELECT pg_temp.error('CREATE FUNCTION dgen.mine() RETURNS integer LANGUAGE sql AS ''SELECT 1''');
RESET ROLE;

--
-- Handlers run as the owner: in a worker wholly, in an invoke as current_user
--
SET ROLE regress_dgen_stranger;
SELECT dgen.call('rights/a', '["ARRAY[current_user, session_user]"]');
SELECT dgen.invoke('rights/a', '["current_user"]');
RESET ROLE;
SELECT dgen.call('rights/a', '["ARRAY[current_user, session_user]"]');
SELECT dgen.invoke('rights/a', '["current_user"]');
SELECT dgen.query('rights/a', NULL);
SELECT dgen.call('rights/a', '["(SELECT rolsuper FROM pg_roles WHERE rolname = current_user)"]');
SELECT pg_temp.error($$SELECT dgen.call('rights/a', '["count(*) FROM pg_authid"]')$$);
SELECT pg_temp.error($$SELECT dgen.invoke('rights/a', '["count(*) FROM pg_authid"]')$$);
-- a handler that calls another owner's: with what its owner may
SET ROLE regress_dgen_other;
CREATE FUNCTION other.handle_call(request jsonb, INOUT state jsonb, OUT reply jsonb) LANGUAGE sql AS $$
  SELECT state, to_jsonb(ARRAY[current_user, dgen.sender_role(), dgen.sender()]) $$;
REVOKE EXECUTE ON FUNCTION other.handle_call FROM PUBLIC;
SELECT dgen.create_module('other') -> 'owner';
RESET ROLE;
SELECT pg_temp.error($$SELECT dgen.call('rights/a', '["dgen.call(''other/a'', NULL)"]')$$);
GRANT USAGE ON SCHEMA other TO regress_dgen_owner;
GRANT EXECUTE ON FUNCTION other.handle_call TO regress_dgen_owner;
SELECT dgen.call('rights/a', '["dgen.call(''other/a'', NULL)"]');
SELECT dgen.call('rights/a', '["current_user"]');
SELECT dgen.drop_module('other', true);

--
-- A callback that somebody else has planted does not run, and stops the module
--
GRANT CREATE, USAGE ON SCHEMA rights TO regress_dgen_other;
SET ROLE regress_dgen_other;
CREATE FUNCTION rights.init(args jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT to_jsonb('planted, running as ' || current_user) $$;
RESET ROLE;
SET ROLE regress_dgen_owner;
SELECT pg_temp.try($$SELECT dgen.start('rights/planted')$$);
SELECT pg_temp.error($$SELECT dgen.invoke('rights/planted', '["1"]')$$);
SELECT pg_temp.error($$SELECT dgen.query('rights/a', NULL)$$);
SELECT f, pg_temp.error(format($$SELECT dgen.%s('rights/planted', '["1"]')$$, f)) FROM unnest(ARRAY['call', 'cast', 'send_request']) f;
SELECT suspended_by, suspended_reason, fault FROM dgen.modules WHERE module = 'rights';
SELECT pg_temp.try($$SELECT dgen.resume(module => 'rights')$$);
SELECT pg_temp.try($$SELECT dgen.alter_module('rights')$$);
SET ROLE regress_dgen_other;
SELECT pg_temp.error($$SELECT dgen.alter_module('rights')$$);
SELECT pg_temp.error($$SELECT dgen.alter_module('rights', callbacks => '{"handle_call": null, "handle_cast": null, "handle_query": null}')$$);
DROP FUNCTION rights.init;
-- all callbacks given to another: the module waits for one who agrees
RESET ROLE;
ALTER FUNCTION rights.handle_call OWNER TO regress_dgen_other;
ALTER FUNCTION rights.handle_cast OWNER TO regress_dgen_other;
ALTER FUNCTION rights.handle_query OWNER TO regress_dgen_other;
SET ROLE regress_dgen_owner;
SELECT pg_temp.error($$SELECT dgen.invoke('rights/a', '["current_user"]')$$);
SELECT pg_temp.error($$SELECT dgen.call('rights/a', '["current_user"]', '100 ms')$$);
SELECT pg_temp.try($$SELECT dgen.alter_module('rights')$$);
SET ROLE regress_dgen_other;
SELECT pg_temp.try($$SELECT dgen.alter_module('rights')$$);
RESET ROLE;
SELECT dgen.alter_module('rights') -> 'owner';
SELECT dgen.call('rights/a', '["current_user"]');
ALTER FUNCTION rights.handle_call OWNER TO regress_dgen_owner;
ALTER FUNCTION rights.handle_cast OWNER TO regress_dgen_owner;
ALTER FUNCTION rights.handle_query OWNER TO regress_dgen_owner;
SELECT dgen.alter_module('rights') -> 'owner';
REVOKE CREATE, USAGE ON SCHEMA rights FROM regress_dgen_other;

--
-- Who makes a module
--
RESET client_min_messages;
SET ROLE regress_dgen_other;
-- out of another's schema
SELECT pg_temp.try($$SELECT dgen.create_module('stolen', schema_name => 'rights')$$);
-- of functions of another
SELECT pg_temp.try($$SELECT dgen.create_module('stolen', schema_name => 'other', callbacks => '{"handle_call": "rights.handle_call"}')$$);
SELECT pg_temp.try($$SELECT dgen.create_module('rights', if_exists => 'alter')$$);
SELECT pg_temp.error($$SELECT dgen.create_module('rights', if_exists => 'skip')$$);
RESET ROLE;
CREATE FUNCTION other.handle_cast(message jsonb, INOUT state jsonb) LANGUAGE sql AS $$ SELECT message $$;
SET ROLE regress_dgen_other;
-- of a superuser
SELECT pg_temp.try($$SELECT dgen.create_module('other', callbacks => '{"handle_call": null}')$$);
-- of different owners
SELECT pg_temp.try($$SELECT dgen.create_module('other')$$);
RESET ROLE;
SELECT dgen.create_module('other', callbacks => '{"handle_call": null}') -> 'owner';
SELECT dgen.drop_module('other');
-- owners that cannot connect
BEGIN;
REVOKE CONNECT ON DATABASE regression FROM PUBLIC;
SET LOCAL ROLE regress_dgen_other;
SELECT pg_temp.try($$SELECT dgen.create_module('other', callbacks => '{"handle_cast": null}')$$);
ROLLBACK;
BEGIN;
ALTER ROLE regress_dgen_other NOLOGIN;
SET LOCAL ROLE regress_dgen_other;
SELECT CASE WHEN current_setting('server_version_num')::integer >= 170000 THEN 'created'
  ELSE regexp_replace(pg_temp.error($$SELECT dgen.create_module('other', callbacks => '{"handle_cast": null}')$$),
    '^55000 owner "regress_dgen_other" of module "other" is not permitted to log in$', 'created') END;
ROLLBACK;
-- infos need no callback, but who is not the owner or a client needs one; what does need one is refused to all
SET ROLE regress_dgen_other;
CREATE FUNCTION other.init(args jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT '{}'::jsonb $$;
SELECT dgen.create_module('other', callbacks => '{"handle_call": null, "handle_cast": null}') -> 'owner';
SELECT pg_temp.error($$SELECT dgen.cast('other/a', '1')$$);
SET ROLE regress_dgen_owner;
SELECT pg_temp.error($$SELECT dgen.cast('other/a', '1')$$);
SELECT pg_temp.error($$SELECT dgen.send('other/a', '1')$$);
SELECT pg_temp.error($$SELECT dgen.drop_module('other')$$);
SET ROLE regress_dgen_other;
SELECT dgen.alter_module('other', clients => 'regress_dgen_owner') -> 'owner';
SET ROLE regress_dgen_owner;
SELECT pg_temp.error($$SELECT dgen.cast('other/a', '1')$$);
SELECT dgen.send('other/a', '1') > 0;
SELECT pg_temp.error($$SELECT dgen.drop_module('other')$$);
SET ROLE regress_dgen_other;
SELECT dgen.drop_module('other', true);
DROP FUNCTION other.init;
RESET ROLE;

--
-- A hostile module, used by a superuser: nothing runs as him, and nothing stays
--
SET ROLE regress_dgen_other;
DROP FUNCTION other.handle_call;
CREATE TABLE other.loot (who text);
CREATE TABLE other.trap (i integer);
CREATE FUNCTION other.spring() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO other.loot VALUES (current_user);
  RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER spring AFTER INSERT ON other.trap DEFERRABLE INITIALLY DEFERRED
  FOR EACH ROW EXECUTE FUNCTION other.spring();
-- tries everything, or what it is told; what it got, and who it is afterwards
CREATE FUNCTION other.attack(place text, wish jsonb) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
  attacks text[] := ARRAY['SET ROLE postgres', 'SET ROLE NONE', 'RESET ROLE', 'SET LOCAL ROLE postgres',
    'SET SESSION AUTHORIZATION postgres', 'RESET SESSION AUTHORIZATION', 'RESET ALL', 'DISCARD ALL',
    'DO ''BEGIN PERFORM set_config($a$role$a$, $a$postgres$a$, false); END''',
    'DO ''BEGIN PERFORM set_config($a$role$a$, $a$none$a$, true); END''',
    'DO ''BEGIN PERFORM set_config($a$session_authorization$a$, $a$postgres$a$, false); END''',
    'ALTER ROLE regress_dgen_other SUPERUSER', 'GRANT postgres TO regress_dgen_other',
    'INSERT INTO other.trap VALUES (1)', 'DECLARE c CURSOR WITH HOLD FOR SELECT other.spring()',
    'PREPARE loot AS SELECT 1', 'LISTEN loot', 'COPY other.loot TO PROGRAM ''true''', 'LOAD ''plpgsql''',
    'SET session_replication_role = replica', 'SET SESSION search_path = other', 'SECURITY LABEL ON ROLE postgres IS NULL',
    'TABLE pg_authid'];
  result text := place || ':';
  a text;
BEGIN
  IF jsonb_typeof(wish) = 'object' AND wish ? place THEN
    attacks := ARRAY[wish ->> place];
  END IF;
  FOREACH a IN ARRAY attacks LOOP
    BEGIN
      EXECUTE a;
      result := result || E'\n  ' || a;
    EXCEPTION WHEN OTHERS THEN
      -- what is refused is not told
    END;
    IF current_user <> 'regress_dgen_other' THEN
      result := result || ' AS ' || current_user;
    END IF;
  END LOOP;
  RAISE NOTICE '%', result;
END $$;
CREATE FUNCTION other.init(args jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT other.attack('init', $1); SELECT '{}'::jsonb $$;
CREATE FUNCTION other.handle_call(request jsonb, INOUT state jsonb, OUT reply jsonb) LANGUAGE plpgsql AS $$
BEGIN
  PERFORM other.attack('handle_call', request);
END $$;
CREATE FUNCTION other.handle_query(query jsonb, state jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT other.attack('handle_query', $1); SELECT $1 $$;
CREATE FUNCTION other.accept(kind text, message jsonb) RETURNS boolean LANGUAGE sql AS $$ SELECT other.attack('accept', $2); SELECT true $$;
CREATE FUNCTION other.validate(state jsonb) RETURNS boolean LANGUAGE sql AS $$ SELECT other.attack('validate', $1); SELECT true $$;
CREATE FUNCTION other.format_status(state jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT other.attack('format_status', $1); SELECT $1 $$;
CREATE FUNCTION other.format_message(message jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT other.attack('format_message', $1); SELECT $1 $$;
RESET ROLE;
DROP FUNCTION other.handle_cast;
SET ROLE regress_dgen_other;
SELECT dgen.create_module('other', invoke_isolation => 'any') -> 'owner';
RESET ROLE;
SET work_mem = '5MB';
SELECT dgen.start('other/a');
SELECT dgen.invoke('other/a', NULL);
SELECT dgen.replace_state('other/a', '{"a": 1}');
SELECT dgen.query('other/a', '1');
SELECT dgen.suspend('other/a');
SELECT dgen.send_request('other/a', '1') > 0;
SELECT state FROM dgen.servers WHERE server = 'other/a';
SELECT message FROM dgen.messages WHERE server = 'other/a';
SELECT dgen.try('other', 'handle_query', '1', '1');
BEGIN;
SET LOCAL dgen.inline = on;
SELECT dgen.call('other/inline', NULL);
COMMIT;
-- the temporary schema of his session: fails as a whole, or is refused before
SELECT dgen.start('other/b');
SET client_min_messages = warning;
SELECT a, place, pg_temp.error(format(s, jsonb_build_object(place, a))) FROM (VALUES
  (1, 'init', $$SELECT dgen.start('other/temp', %L)$$),
  (2, 'accept', $$SELECT dgen.invoke('other/b', %L)$$),
  (3, 'handle_call', $$SELECT dgen.invoke('other/b', %L)$$),
  (4, 'validate', $$SELECT dgen.replace_state('other/b', %L) > 0$$),
  (5, 'handle_query', $$SELECT dgen.query('other/b', %L)$$),
  (6, 'format_message', $$SELECT dgen.masked_message('other/b', %L)$$),
  (7, 'format_status', $$SELECT dgen.masked_state('other/b', %L, 1, 1)$$)) v(o, place, s),
  (VALUES (1, 'CREATE FUNCTION pg_temp.leave() RETURNS integer LANGUAGE sql AS ''SELECT 1'''),
   (2, 'CREATE DOMAIN pg_temp.date AS pg_catalog.date'), (3, 'CREATE TEMP TABLE loot (i integer)'),
   (4, 'CREATE TEMP VIEW loot AS SELECT 1')) w(p, a)
ORDER BY p, o;
SELECT pg_temp.try($$SELECT dgen.start('other/temp', '{"init": "CREATE TYPE pg_temp.date AS (i integer)"}')$$);
-- an error in another callback meanwhile does not hide it
SELECT pg_temp.error($$SELECT dgen.invoke('other/b', jsonb_build_object('handle_call', 'DO ''BEGIN
  CREATE FUNCTION pg_temp.leave() RETURNS integer LANGUAGE sql AS $c$SELECT 1$c$;
  BEGIN
    PERFORM dgen.query($a$other/b$a$, $a${"handle_query": "DO $b$BEGIN ASSERT false; END$b$"}$a$);
  EXCEPTION WHEN assert_failure THEN NULL;
  END;
END'''))$$);
SELECT count(*) FROM dgen.servers WHERE server = 'other/temp';
RESET client_min_messages;
-- what he himself did there, in the same transaction, is no reason
BEGIN;
CREATE TEMP TABLE mine (i integer);
SELECT dgen.query('other/b', '{"handle_query": "SELECT 1"}');
ROLLBACK;
-- and after all of this
SELECT current_user, session_user, current_setting('role'), current_setting('session_replication_role');
SELECT rolsuper FROM pg_roles WHERE rolname = 'regress_dgen_other';
SELECT count(*) FROM pg_auth_members WHERE member = 'regress_dgen_other'::regrole;
SELECT DISTINCT who FROM other.loot;
SELECT count(*) FROM pg_cursors WHERE is_holdable;
SELECT count(*) FROM pg_prepared_statements;
SELECT pg_listening_channels();
SELECT count(*) FROM pg_class WHERE relname = 'loot' AND relpersistence = 't';
SELECT count(*) FROM pg_type WHERE typname = 'date' AND typnamespace <> 'pg_catalog'::regnamespace;
SELECT count(*) FROM pg_proc WHERE proname = 'leave';
SHOW work_mem;
SHOW search_path;
-- where the owner could become the caller anyway, deferred triggers work
GRANT regress_dgen_stranger TO regress_dgen_other;
SET ROLE regress_dgen_other;
GRANT USAGE ON SCHEMA other TO regress_dgen_stranger;
CREATE OR REPLACE FUNCTION other.handle_call(request jsonb, INOUT state jsonb, OUT reply jsonb) LANGUAGE sql AS $$
  INSERT INTO other.trap VALUES (1);
  SELECT state, NULL::jsonb $$;
DROP FUNCTION other.accept, other.init, other.validate;
ALTER FUNCTION other.spring SECURITY DEFINER;
RESET ROLE;
ALTER ROLE regress_dgen_stranger LOGIN;
SELECT current_user AS superuser \gset
\c - regress_dgen_stranger
SELECT dgen.invoke('other/c', NULL);
\c - :superuser
SELECT * FROM other.loot;

SELECT dgen.drop_module('other', true), dgen.drop_module('rights', true);
SET client_min_messages = warning;
DROP SCHEMA rights, other CASCADE;
DROP OWNED BY regress_dgen_other, regress_dgen_stranger;
DROP ROLE regress_dgen_owner, regress_dgen_client, regress_dgen_operator, regress_dgen_reader, regress_dgen_stranger, regress_dgen_other;
