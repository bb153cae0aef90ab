-- Presence: who is in a room, and word of each who comes and goes, also of those
-- who end without a farewell.
--
--     psql -f examples/presence/presence.sql mydb
--
-- A room monitors those who enter.  When one of them ends, for whatever reason,
-- the room hears of it in the transaction that ends it, once, and tells the
-- others; a kill -9 in between delays that, and loses nothing.

CREATE EXTENSION IF NOT EXISTS dgen;
CREATE SCHEMA room;
CREATE SCHEMA person;

-- present: {address: ref of its monitor}
CREATE FUNCTION room.handle_call(request jsonb, INOUT state jsonb, OUT reply jsonb)
  LANGUAGE plpgsql AS $$
BEGIN
  IF request = '"enter"' AND NOT state ? dgen.sender() THEN
    PERFORM room.tell(state, 'came', dgen.sender());
    state := state || jsonb_build_object(dgen.sender(), dgen.monitor(dgen.sender()));
  ELSIF request = '"leave"' AND state ? dgen.sender() THEN
    PERFORM dgen.demonitor((state ->> dgen.sender())::bigint, flush => true);
    state := state - dgen.sender();
    PERFORM room.tell(state, 'left', dgen.sender());
  END IF;
  SELECT coalesce(jsonb_agg(who ORDER BY who), '[]') INTO reply FROM jsonb_object_keys(state) who;
END $$;

CREATE FUNCTION room.handle_info(message jsonb, INOUT state jsonb)
  LANGUAGE plpgsql AS $$
BEGIN
  IF dgen.kind() = 'DOWN' THEN
    state := state - (message ->> 'server');
    PERFORM room.tell(state, message ->> 'reason', message ->> 'server');
  END IF;
END $$;

CREATE FUNCTION room.tell(present jsonb, what text, who text) RETURNS bigint
  LANGUAGE sql AS $$
  SELECT count(dgen.cast(server, jsonb_build_object(what, who))) FROM jsonb_object_keys(present) server
$$;

SELECT dgen.create_module('room') -> 'created';                     --> true

-- a person does what it is told to, and remembers what it hears
CREATE FUNCTION person.init(args jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT '[]'::jsonb $$;

CREATE FUNCTION person.handle_call(request jsonb, INOUT state jsonb, OUT reply jsonb)
  LANGUAGE plpgsql AS $$
BEGIN
  IF request ? 'exit' THEN
    PERFORM dgen.exit(request ->> 'exit');
    reply := '"bye"';
  ELSE
    reply := dgen.call('room/lobby', request -> 'say');
  END IF;
END $$;

CREATE FUNCTION person.handle_cast(message jsonb, INOUT state jsonb)
  LANGUAGE sql AS $$ SELECT state || message $$;

SELECT dgen.create_module('person', on_stop => 'delete') -> 'created';  --> true

SELECT dgen.call('person/ada', '{"say": "enter"}');                 --> ["person/ada"]
SELECT dgen.call('person/bob', '{"say": "enter"}');                 --> ["person/ada", "person/bob"]
SELECT dgen.call('person/eve', '{"say": "enter"}');                 --> ["person/ada", "person/bob", "person/eve"]
SELECT dgen.call('person/bob', '{"say": "leave"}');                 --> ["person/ada", "person/eve"]
SELECT dgen.call('person/eve', '{"exit": "tired"}');                --> "bye"
SELECT dgen.wait_idle('room/lobby'), dgen.wait_idle('person/ada');  --> t | t
SELECT dgen.state('person/ada');
                  --> [{"came": "person/bob"}, {"came": "person/eve"}, {"left": "person/bob"}, {"tired": "person/eve"}]
SELECT dgen.kill('person/ada');                                     --> t
SELECT dgen.wait_idle('room/lobby');                                --> t
SELECT dgen.state('room/lobby');                                    --> {}
