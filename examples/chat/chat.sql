-- A chat: members are servers, rooms are groups, what is said is a broadcast.
--
--     psql -f examples/chat/chat.sql mydb
--
-- A broadcast is one statement over the members of a group, in the transaction
-- of whoever says it: all of them hear it, or nobody does.  A member that leaves,
-- or stops, is no member any more.

CREATE EXTENSION IF NOT EXISTS dgen;
CREATE SCHEMA chat;

-- what each member has heard
CREATE FUNCTION chat.init(args jsonb) RETURNS jsonb
  LANGUAGE sql AS $$ SELECT '[]'::jsonb $$;

CREATE FUNCTION chat.handle_call(request jsonb, INOUT state jsonb, OUT reply jsonb)
  LANGUAGE plpgsql AS $$
BEGIN
  CASE request ->> 'do'
    WHEN 'join' THEN
      PERFORM dgen.join_group(request ->> 'room');
      reply := 'true';
    WHEN 'leave' THEN
      reply := to_jsonb(dgen.leave_group(request ->> 'room'));
    WHEN 'say' THEN
      SELECT to_jsonb(count(dgen.cast(server, jsonb_build_object('from', dgen.key(), 'said', request -> 'text'))))
        INTO reply FROM dgen.members(request ->> 'room') AS server;
    WHEN 'log off' THEN
      PERFORM dgen.exit('normal');
      reply := 'true';
  END CASE;
END $$;

CREATE FUNCTION chat.handle_cast(message jsonb, INOUT state jsonb)
  LANGUAGE sql AS $$
  SELECT state || to_jsonb(format('%s: %s', message ->> 'from', message ->> 'said'))
$$;

SELECT dgen.create_module('chat');

SELECT dgen.call('chat/' || who, '{"do": "join", "room": "lobby"}') FROM unnest(ARRAY['ada', 'bob', 'eve']) who;
                                                                              --> true
                                                                              --> true
                                                                              --> true
SELECT dgen.call('chat/ada', '{"do": "say", "room": "lobby", "text": "hello"}');  --> 3
SELECT dgen.call('chat/bob', '{"do": "say", "room": "lobby", "text": "hi"}');     --> 3
SELECT dgen.wait_idle(module => 'chat');                                      --> t
SELECT dgen.state('chat/eve');                                                --> ["ada: hello", "bob: hi"]

SELECT dgen.call('chat/eve', '{"do": "leave", "room": "lobby"}');             --> true
SELECT dgen.call('chat/bob', '{"do": "log off"}');                            --> true
SELECT server FROM dgen.groups WHERE name = 'lobby';                          --> chat/ada

-- who may send to the members may broadcast from anywhere: here to 1,000, or to none
SELECT count(dgen.call('chat/guest-' || i, '{"do": "join", "room": "hall"}')) FROM generate_series(1, 1000) i;  --> 1000
BEGIN;
SELECT count(dgen.cast(m, '{"from": "radio", "said": "never mind"}')) FROM dgen.members('hall') m;  --> 1000
ROLLBACK;
SELECT count(dgen.cast(m, '{"from": "radio", "said": "good morning"}')) FROM dgen.members('hall') m;  --> 1000
SELECT dgen.wait_idle(module => 'chat');                                      --> t
SELECT dgen.state(m), count(*) FROM dgen.members('hall') m GROUP BY 1;        --> ["radio: good morning"] | 1000
