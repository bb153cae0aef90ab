--
-- The extension is installed, and the first screen of the README works.
-- Runs before all others, which find the extension in their database.
--
CREATE EXTENSION dgen;
CREATE SCHEMA counter;
CREATE FUNCTION counter.init(args jsonb) RETURNS jsonb
  LANGUAGE sql AS $$ SELECT '0'::jsonb $$;
CREATE FUNCTION counter.handle_call(request jsonb, INOUT state jsonb, OUT reply jsonb)
  LANGUAGE plpgsql AS $$
BEGIN
  state := to_jsonb(state::int + 1);
  reply := state;
END $$;
-- a superuser's module: with a warning, which another test looks at
SET client_min_messages = error;
SELECT dgen.create_module('counter') \g /dev/null
RESET client_min_messages;
SELECT dgen.call('counter/home', '"increment"');
SELECT dgen.call('counter/home', '"increment"');
SELECT dgen.state('counter/home');
SELECT server, version FROM dgen.servers;
SELECT count(*) FROM dgen.messages;
