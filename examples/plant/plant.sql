-- A plant: 10,000 items on their way through five stations, each a server with
-- an idle timeout of its own.
--
--     psql -f examples/plant/plant.sql mydb
--
-- Scanners report where an item is; their reports arrive out of order, and some
-- twice.  An item keeps what comes early until its turn, knows what it has seen,
-- and raises an alarm when it hears nothing for a second.

CREATE EXTENSION IF NOT EXISTS dgen;
CREATE SCHEMA plant;

CREATE TABLE plant.step (item text NOT NULL, seq integer NOT NULL, station text NOT NULL,
                         n bigint GENERATED ALWAYS AS IDENTITY, PRIMARY KEY (item, seq));
CREATE TABLE plant.alarm (item text NOT NULL, waits_for integer NOT NULL, at timestamptz NOT NULL);

-- next: the report that is due; early: those that came before their turn
CREATE FUNCTION plant.init(args jsonb) RETURNS jsonb
  LANGUAGE sql AS $$ SELECT '{"next": 1, "early": {}}'::jsonb $$;

CREATE FUNCTION plant.handle_cast(message jsonb, INOUT state jsonb)
  LANGUAGE plpgsql AS $$
DECLARE
  seq integer := message ->> 'seq';
  next integer := state ->> 'next';
  early jsonb := state -> 'early';
BEGIN
  IF seq >= next AND NOT early ? seq::text THEN
    early := early || jsonb_build_object(seq, message -> 'station');
    WHILE early ? next::text LOOP
      INSERT INTO plant.step (item, seq, station) VALUES (dgen.key(), next, early ->> next::text);
      early := early - next::text;
      next := next + 1;
    END LOOP;
    state := jsonb_build_object('next', next, 'early', early);
  END IF;
  IF next <= 5 THEN
    PERFORM dgen.timeout('1 s');
  END IF;
END $$;

CREATE FUNCTION plant.handle_info(message jsonb, INOUT state jsonb)
  LANGUAGE plpgsql AS $$
BEGIN
  IF dgen.kind() = 'timeout' THEN
    INSERT INTO plant.alarm VALUES (dgen.key(), (state ->> 'next')::integer, dgen.now());
  END IF;
END $$;

SELECT dgen.create_module('plant');

-- all reports but the third of every 500th item, a fifth of them twice, shuffled
SELECT cardinality(dgen.cast_many(jsonb_agg(
         jsonb_build_object('server', 'plant/item-' || item,
                            'message', jsonb_build_object('seq', seq, 'station', 'station ' || seq))
         ORDER BY hashint8(item * 100 + seq * 10 + copy))))
FROM generate_series(1, 10000) item, generate_series(1, 5) seq, generate_series(1, 2) copy
WHERE (copy = 1 OR (item + seq) % 5 = 0) AND NOT (seq = 3 AND item % 500 = 0);   --> 59980

SELECT dgen.wait_idle(module => 'plant', timeout => '60 s');                     --> t
SELECT count(*), count(DISTINCT item) FROM plant.step;                           --> 49940 | 10000
-- each item's steps were made in order
SELECT count(*) FROM (SELECT n > lag(n) OVER (PARTITION BY item ORDER BY seq) AS later FROM plant.step) s
WHERE NOT later;                                                                 --> 0

-- those that wait for their third report raise an alarm
DO $$
BEGIN
  WHILE (SELECT count(*) FROM plant.alarm) < 20 LOOP
    PERFORM pg_sleep(0.05);
  END LOOP;
END $$;
SELECT count(*), min(waits_for), max(waits_for) FROM plant.alarm;                --> 20 | 3 | 3

-- and go on when it comes after all
SELECT dgen.cast('plant/item-500', '{"seq": 3, "station": "found"}') > 0;        --> t
SELECT dgen.wait_idle('plant/item-500');                                         --> t
SELECT string_agg(station, ', ' ORDER BY seq) FROM plant.step WHERE item = 'item-500';
                                          --> station 1, station 2, found, station 4, station 5
