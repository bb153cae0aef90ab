-- Parcels, whose states a page in the browser follows.
--
--     psql -f examples/follow/follow.sql mydb
--     PGDATABASE=mydb python3 examples/follow/server.py parcel
--
-- Option notify names the channel on which changed servers are announced: their
-- addresses and versions, no contents.

CREATE EXTENSION IF NOT EXISTS dgen;
CREATE SCHEMA parcel;

CREATE FUNCTION parcel.init(args jsonb) RETURNS jsonb
  LANGUAGE sql AS $$ SELECT '{"at": "the sender", "moves": 0}'::jsonb $$;

CREATE FUNCTION parcel.handle_call(request jsonb, INOUT state jsonb, OUT reply jsonb)
  LANGUAGE plpgsql AS $$
BEGIN
  state := state || jsonb_build_object('at', request -> 'move to', 'moves', (state ->> 'moves')::int + 1);
  reply := state -> 'moves';
END $$;

-- what views, and so the page, do not show
CREATE FUNCTION parcel.format_status(state jsonb) RETURNS jsonb
  LANGUAGE sql AS $$ SELECT state - 'recipient' $$;

SELECT dgen.create_module('parcel', notify => 'parcels')->'created';    --> true

SELECT dgen.call('parcel/1', '{"move to": "Turin"}');                   --> 1
SELECT dgen.call('parcel/2', '{"move to": "Oslo"}');                    --> 1

-- by hand: the second number of what LISTEN hears is the version to ask for
LISTEN parcels;
SELECT dgen.call('parcel/1', '{"move to": "Lyon"}');                    --> 2
CALL dgen.wait_change('parcel/1', 1);                                   --> 2 | {"at": "Lyon", "moves": 2}
UNLISTEN parcels;
