-- The first screen of the README, for psql:
--
--     psql -f examples/counter/counter.sql mydb
--
-- Run by a superuser, create_module warns that the callbacks run as one: give
-- functions of your own to a role with few rights.

CREATE EXTENSION IF NOT EXISTS dgen;

CREATE SCHEMA counter;

CREATE FUNCTION counter.init(args jsonb) RETURNS jsonb
  LANGUAGE sql AS $$ SELECT '0'::jsonb $$;

CREATE FUNCTION counter.handle_call(request jsonb, INOUT state jsonb, OUT reply jsonb)
  LANGUAGE plpgsql AS $$
BEGIN
  state := to_jsonb(state::int + 1);
  reply := state;
END $$;

SELECT dgen.create_module('counter');

SELECT dgen.call('counter/home', '"increment"');   --> 1
SELECT dgen.call('counter/home', '"increment"');   --> 2
SELECT dgen.state('counter/home');                 --> 2
