--
-- Where dgen runs: not while it is switched off, and not in a copy of a
-- database that nobody has adopted.
--
CREATE ROLE regress_dgen_enabled LOGIN;
CREATE DATABASE regress_dgen_enabled TEMPLATE template0 OWNER regress_dgen_enabled;
\c regress_dgen_enabled
\getenv dir PG_ABS_SRCDIR
\i :dir/sql/helpers.psql
-- without the extension there is nothing
SELECT pg_temp.error('SELECT dgen.is_armed()');
CREATE EXTENSION dgen;
SELECT dgen.is_armed();
SELECT pg_temp.error($$SELECT dgen.call('enabled/a', '1')$$);
SELECT count(*) FROM dgen.modules;
-- the first module arms it
CREATE SCHEMA enabled AUTHORIZATION regress_dgen_enabled;
SET ROLE regress_dgen_enabled;
CREATE FUNCTION enabled.handle_call(request jsonb, INOUT state jsonb, OUT reply jsonb) LANGUAGE sql AS $$ SELECT request, state $$;
CREATE FUNCTION enabled.handle_cast(message jsonb, INOUT state jsonb) LANGUAGE sql AS $$ SELECT message $$;
BEGIN;
SELECT dgen.create_module('enabled') -> 'owner';
SELECT dgen.is_armed();
ROLLBACK;
SELECT dgen.is_armed();
SELECT dgen.create_module('enabled', invoke_isolation => 'any') -> 'owner';
SELECT dgen.is_armed();
SELECT dgen.call('enabled/a', '1');

-- switched off: what waits for a worker is refused, what can wait does
RESET ROLE;
ALTER SYSTEM SET dgen.enabled = off;
SELECT pg_reload_conf();
-- a session takes notice between two statements
SELECT pg_sleep(1);
SHOW dgen.enabled;
SELECT pg_temp.try($$SELECT dgen.call('enabled/a', '2')$$);
SELECT pg_temp.error($$SELECT dgen.multi_call(ARRAY['enabled/a'], '2')$$);
SELECT pg_temp.error($$SELECT dgen.invoke('enabled/a', '2')$$);
SELECT dgen.cast('enabled/a', '"sent while off"') > 0;
SELECT dgen.state('enabled/a');
SELECT dgen.wait_idle('enabled/a', timeout => '50 ms');
ALTER SYSTEM RESET dgen.enabled;
SELECT pg_reload_conf();
SELECT pg_sleep(1);
SHOW dgen.enabled;
SELECT dgen.wait_idle('enabled/a', timeout => '20 s');
SELECT dgen.call('enabled/a', '3');

-- a copy has all, and runs nothing
SELECT dgen.suspend('enabled/b');
SELECT dgen.cast('enabled/b', '"sent before the copy"') > 0;
SELECT dgen.resume('enabled/b'), dgen.suspend(module => 'enabled');
\c postgres
CREATE DATABASE regress_dgen_copy TEMPLATE regress_dgen_enabled;
\c regress_dgen_copy
\i :dir/sql/helpers.psql
SELECT dgen.is_armed();
SELECT dgen.resume(module => 'enabled');
SELECT pg_temp.try($$SELECT dgen.call('enabled/a', '4')$$);
SELECT dgen.wait_idle('enabled/b', timeout => '50 ms');
SELECT dgen.state('enabled/a');
SET ROLE regress_dgen_enabled;
SELECT pg_temp.error('SELECT dgen.adopt()');
RESET ROLE;
SELECT dgen.adopt();
SELECT dgen.is_armed();
SELECT dgen.wait_idle('enabled/b', timeout => '20 s');
SELECT dgen.state('enabled/b');
SELECT dgen.call('enabled/a', '4');
-- adopting what runs already changes nothing
SELECT dgen.adopt();
SELECT dgen.call('enabled/a', '5');
\c postgres
DROP DATABASE regress_dgen_copy;
DROP DATABASE regress_dgen_enabled;
DROP ROLE regress_dgen_enabled;
