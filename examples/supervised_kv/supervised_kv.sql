-- Key-value stores under supervisors.  A tree is one value: it is checked as a
-- whole, started left to right, and what crashes is restarted by its strategy.
--
--     store (one_for_one)
--       |-- kv1
--       `-- pair (rest_for_one)
--             |-- kv2
--             `-- kv3

CREATE EXTENSION dgen;

CREATE SCHEMA kv;

-- one store: {"key": value, ...}; args are what it begins with
CREATE FUNCTION kv.init(args jsonb) RETURNS jsonb
  LANGUAGE sql AS $$ SELECT coalesce(nullif(args, 'null'), '{}') $$;

-- {"get": key}, {"put": key, "value": value}, {"divide": key, "by": key}
CREATE FUNCTION kv.handle_call(request jsonb, INOUT state jsonb, OUT reply jsonb)
  LANGUAGE plpgsql AS $$
BEGIN
  IF request ? 'put' THEN
    state := state || jsonb_build_object(request ->> 'put', request -> 'value');
    reply := '"ok"';
  ELSIF request ? 'divide' THEN
    reply := to_jsonb((state ->> (request ->> 'divide'))::int / (state ->> (request ->> 'by'))::int);
  ELSIF NOT state ? (request ->> 'get') THEN
    -- a plain RAISE refuses a request; it is no crash
    RAISE EXCEPTION 'there is no %', request ->> 'get';
  ELSE
    reply := state -> (request ->> 'get');
  END IF;
END $$;

SELECT dgen.create_module('kv') -> 'created';  --> true

-- kv2 keeps what it has over a restart; kv3, which is made from it, begins anew
SELECT dgen.supervise('store', '{
  "strategy": "one_for_one", "intensity": 3, "period": "1 min",
  "children": [
    {"id": "kv1", "server": "kv/1"},
    {"id": "pair", "strategy": "rest_for_one", "intensity": 2, "period": "1 min", "children": [
      {"id": "kv2", "server": "kv/2"},
      {"id": "kv3", "server": "kv/3", "state": "init", "args": {"seats": 10}}]}]}');  --> t

SELECT supervisor, id, status FROM dgen.children ORDER BY supervisor, number;
--> store | kv1 | running
--> store | pair | running
--> store/pair | kv2 | running
--> store/pair | kv3 | running

SELECT dgen.call('kv/1', '{"put": "a", "value": 1}');   --> "ok"
SELECT dgen.call('kv/2', '{"put": "n", "value": 7}');   --> "ok"
SELECT dgen.call('kv/2', '{"put": "zero", "value": 0}');   --> "ok"
SELECT dgen.call('kv/3', '{"put": "seats", "value": 3}');   --> "ok"

-- refused: nobody crashed
SELECT dgen.call('kv/2', '{"get": "nothing"}');   --! P0001
SELECT sum(restarts) FROM dgen.children;   --> 0

-- kv2 crashes: its caller has the error at once; kv2 and kv3, which was started
-- after it, are restarted, and what is called meanwhile waits for that
SELECT dgen.call('kv/2', '{"divide": "n", "by": "zero"}');   --! 22012
SELECT dgen.call('kv/2', '{"get": "n"}');       --> 7
SELECT dgen.call('kv/3', '{"get": "seats"}');   --> 10
SELECT dgen.call('kv/1', '{"get": "a"}');       --> 1
SELECT supervisor, id, restarts, reason FROM dgen.children ORDER BY supervisor, number;
--> store | kv1 | 0 | null
--> store | pair | 0 | null
--> store/pair | kv2 | 1 | 22012: division by zero
--> store/pair | kv3 | 1 | shutdown

-- twice more within the minute: that is more than pair allows.  It ends its
-- children and itself, and store restarts it, with all that is below it
SELECT dgen.call('kv/2', '{"divide": "n", "by": "zero"}');   --! 22012
SELECT dgen.call('kv/2', '{"get": "n"}');       --> 7
SELECT dgen.call('kv/2', '{"divide": "n", "by": "zero"}');   --! 22012
SELECT dgen.call('kv/2', '{"get": "n"}');       --> 7
SELECT supervisor, id, restarts, reason FROM dgen.children WHERE id = 'pair';
--> store | pair | 1 | shutdown

-- more stores as they are wanted
SELECT dgen.start_child('store', '{"id": "kv4", "server": "kv/4", "restart": "transient"}');   --> kv4
SELECT specs, active FROM dgen.count_children('store');   --> 3 | 3
SELECT dgen.terminate_child('store', 'kv4');   --> t
SELECT dgen.call('kv/4', '{"get": "a"}');      --! OT008
SELECT dgen.restart_child('store', 'kv4');

-- the end: right to left
SELECT dgen.stop_supervisor('store');   --> t
SELECT count(*) FROM dgen.children;     --> 0
SELECT server, status, stop_reason FROM dgen.servers ORDER BY server;
--> kv/1 | stopped | shutdown
--> kv/2 | stopped | shutdown
--> kv/3 | stopped | shutdown
--> kv/4 | stopped | shutdown
