-- What every benchmark has, owned by the role that also sends the load: the
-- modules, and what one would write by hand instead of dgen.

CREATE SCHEMA counter;
CREATE FUNCTION counter.init(args jsonb) RETURNS jsonb
  LANGUAGE sql AS $$ SELECT '0'::jsonb $$;
CREATE FUNCTION counter.handle_call(request jsonb, INOUT state jsonb, OUT reply jsonb)
  LANGUAGE plpgsql AS $$
BEGIN
  state := to_jsonb(state::int + 1);
  reply := state;
END $$;
CREATE FUNCTION counter.handle_cast(message jsonb, INOUT state jsonb)
  LANGUAGE plpgsql AS $$
BEGIN
  state := to_jsonb(state::int + 1);
END $$;
SELECT dgen.create_module('counter', max_mailbox => 10000000);

-- an account: a state with a field, a message with an amount
CREATE SCHEMA account;
CREATE FUNCTION account.init(args jsonb) RETURNS jsonb
  LANGUAGE sql AS $$ SELECT '{"balance": 0}'::jsonb $$;
CREATE FUNCTION account.handle_cast(message jsonb, INOUT state jsonb)
  LANGUAGE plpgsql AS $$
DECLARE
  balance bigint := state ->> 'balance';
BEGIN
  balance := balance + (message ->> 'deposit')::bigint;
  IF balance < 0 THEN
    RAISE EXCEPTION 'insufficient funds';
  END IF;
  state := jsonb_build_object('balance', balance);
END $$;
CREATE FUNCTION account.handle_call(request jsonb, INOUT state jsonb, OUT reply jsonb)
  LANGUAGE plpgsql AS $$
BEGIN
  state := account.handle_cast(request, state);
  reply := state;
END $$;
SELECT dgen.create_module('account', max_mailbox => 10000000);

-- takes a second for each call
CREATE SCHEMA slow;
CREATE FUNCTION slow.init(args jsonb) RETURNS jsonb
  LANGUAGE sql AS $$ SELECT '0'::jsonb $$;
CREATE FUNCTION slow.handle_call(request jsonb, INOUT state jsonb, OUT reply jsonb)
  LANGUAGE plpgsql AS $$
BEGIN
  PERFORM pg_sleep(1);
  state := to_jsonb(state::int + 1);
  reply := state;
END $$;
SELECT dgen.create_module('slow');

-- leaves its state as it is, unless the request is "change"; works for a
-- while, so that one worker is not enough
CREATE SCHEMA half;
CREATE FUNCTION half.init(args jsonb) RETURNS jsonb
  LANGUAGE sql AS $$ SELECT '0'::jsonb $$;
CREATE FUNCTION half.handle_call(request jsonb, INOUT state jsonb, OUT reply jsonb)
  LANGUAGE plpgsql AS $$
BEGIN
  FOR i IN 1 .. 20000 LOOP
    NULL;
  END LOOP;
  IF request = '"change"' THEN
    state := to_jsonb(state::int + 1);
  END IF;
  reply := state;
END $$;
SELECT dgen.create_module('half');

-- by hand: states in a table, through the same handlers
CREATE TABLE by_hand (id integer PRIMARY KEY, state jsonb NOT NULL);
INSERT INTO by_hand SELECT i, '0' FROM generate_series(1, 10000) i;

-- by hand: a queue
CREATE TABLE plain_queue (id bigserial PRIMARY KEY, message jsonb NOT NULL);

-- a thousand messages, as rows and as the array that dgen.cast_many() takes
CREATE TABLE thousand AS
  SELECT 'counter/' || i % 100 AS server, '"increment"'::jsonb AS message
  FROM generate_series(1, 1000) i;
CREATE TABLE thousand_array AS
  SELECT jsonb_agg(jsonb_build_object('server', server, 'message', message)) AS messages
  FROM thousand;

-- a state of about 1 MB, of which a message changes one of 10,000 elements
CREATE SCHEMA large;
CREATE FUNCTION large.init(args jsonb) RETURNS jsonb
  LANGUAGE sql AS $$
  SELECT jsonb_object_agg('k' || i, jsonb_build_object('n', 0, 'name', md5(i::text), 'note', md5((7 * i)::text)))
  FROM generate_series(1, 10000) i $$;
CREATE FUNCTION large.handle_call(request jsonb, INOUT state jsonb, OUT reply jsonb)
  LANGUAGE plpgsql AS $$
BEGIN
  state := jsonb_set(state, ARRAY[request ->> 'k', 'n'], request -> 'n');
  reply := request;
END $$;
SELECT dgen.create_module('large');
CREATE TABLE large_by_hand (id integer PRIMARY KEY, state jsonb NOT NULL);
INSERT INTO large_by_hand SELECT 1, large.init(NULL);
