--
-- Large states: kept as a base and patches, and whole wherever one looks.
--
\getenv dir PG_ABS_SRCDIR
\i :dir/sql/helpers.psql
CREATE ROLE regress_dgen_state LOGIN;
CREATE SCHEMA state AUTHORIZATION regress_dgen_state;

-- the versions of a server's patches, how many there are, and of what size
CREATE FUNCTION pg_temp.patches(key text) RETURNS bigint[] LANGUAGE sql SECURITY DEFINER AS $$
  SELECT coalesce(array_agg(version ORDER BY version), '{}') FROM dgen.patch WHERE server = 'state/' || key $$;
CREATE FUNCTION pg_temp.patch_part(key text) RETURNS float LANGUAGE sql SECURITY DEFINER AS $$
  SELECT coalesce(sum(pg_column_size(patch)), 0) / (SELECT pg_column_size(dgen.state('state/' || key) || '{}'))
  FROM dgen.patch WHERE server = 'state/' || key $$;
-- what each state should be
CREATE TEMP TABLE expected (key text PRIMARY KEY, state jsonb);
GRANT ALL ON expected TO regress_dgen_state;
-- as dgen.state and the view have it; the version, and that of the patches
CREATE FUNCTION pg_temp.check(k text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
  should text := (SELECT md5(e.state::text) FROM expected e WHERE e.key = k);
  view text;
  version bigint;
BEGIN
  SELECT md5(s.state::text), s.version INTO view, version FROM dgen.servers s WHERE server = 'state/' || k;
  RETURN format('%s, view %s, version %s, patches %s', CASE md5(dgen.state('state/' || k)::text) WHEN should THEN 'same' ELSE 'WRONG' END,
    CASE view WHEN should THEN 'same' ELSE 'WRONG' END, version, pg_temp.patches(k));
END $$;

SET ROLE regress_dgen_state;
-- some 100 kB: of elements with ids, and an array of numbers
CREATE FUNCTION state.init(args jsonb) RETURNS jsonb LANGUAGE sql AS $$
  SELECT jsonb_build_object('count', 0, 'items', jsonb_agg(jsonb_build_object('id', 'e' || i, 'value', i, 'text', md5(i::text)) ORDER BY i),
    'numbers', jsonb_agg(i ORDER BY i)) FROM generate_series(0, 999) i $$;
-- what a request makes of a state: {"element": i, "value": v}, {"text": s, ...}, {"set": s}
CREATE FUNCTION state.change(state jsonb, request jsonb) RETURNS jsonb LANGUAGE sql IMMUTABLE AS $$
  SELECT CASE
    WHEN request ? 'set' THEN request -> 'set'
    WHEN request ? 'append' THEN jsonb_set(state, '{items}', (state -> 'items') || (request -> 'append'))
    WHEN request ? 'remove' THEN state #- ARRAY['items', request ->> 'remove']
    WHEN request ? 'element' THEN jsonb_set(jsonb_set(state, ARRAY['items', request ->> 'element', 'value'], request -> 'value'),
      '{count}', to_jsonb((state ->> 'count')::integer + 1))
    ELSE state
  END $$;
CREATE FUNCTION state.handle_call(request jsonb, INOUT state jsonb, OUT reply jsonb) LANGUAGE plpgsql AS $$
BEGIN
  state := state.change(state, request);
  reply := state -> 'count';
  IF request ? 'fail' THEN
    RAISE EXCEPTION 'failed';
  ELSIF request ? 'exit' THEN
    PERFORM dgen.exit('exit');
  END IF;
END $$;
CREATE FUNCTION state.handle_cast(message jsonb, INOUT state jsonb) LANGUAGE sql AS $$ SELECT state.change(state, message) $$;
CREATE FUNCTION state.handle_query(query jsonb, state jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT state #> ARRAY['items', query ->> 0] $$;
SELECT dgen.create_module('state', invoke_isolation => 'any') -> 'created';
CREATE FUNCTION pg_temp.expect(k text, request jsonb) RETURNS void LANGUAGE sql AS $$
  UPDATE expected SET state = state.change(state, request) WHERE key = k $$;

--
-- Calls, casts, invokes, replace_state: each change is a patch
--
INSERT INTO expected SELECT k, state.init(NULL) FROM unnest(ARRAY['a', 'b', 'c', 'd', 'e', 'f', 'g']) k;
SELECT pg_column_size(state || '{}') BETWEEN 80000 AND 150000 FROM expected WHERE key = 'a';
SELECT dgen.start('state/a');
SELECT pg_temp.check('a');
SELECT dgen.call('state/a', '{"element": 500, "value": "by a call"}');
SELECT pg_temp.expect('a', '{"element": 500, "value": "by a call"}');
SELECT pg_temp.check('a');
SELECT dgen.call('state/a', '{"element": 501, "value": {"by": ["a", "call"]}}');
SELECT pg_temp.expect('a', '{"element": 501, "value": {"by": ["a", "call"]}}');
SELECT dgen.cast('state/a', '{"element": 0, "value": "by a cast"}') > 0, pg_temp.expect('a', '{"element": 0, "value": "by a cast"}');
SELECT dgen.wait_idle('state/a');
SELECT pg_temp.check('a');
SELECT dgen.invoke('state/a', '{"element": 999, "value": null}');
SELECT pg_temp.expect('a', '{"element": 999, "value": null}');
SELECT pg_temp.check('a');
-- the same element again; 1 is not 1.0
SELECT dgen.call('state/a', '{"element": 500, "value": 1}'), dgen.call('state/a', '{"element": 500, "value": 1.0}');
SELECT pg_temp.expect('a', '{"element": 500, "value": 1}'), pg_temp.expect('a', '{"element": 500, "value": 1.0}');
SELECT pg_temp.check('a');
-- no change, no version and no patch
SELECT dgen.call('state/a', '{}');
SELECT pg_temp.check('a');
SELECT dgen.replace_state('state/a', state.change(dgen.state('state/a'), '{"element": 7, "value": "replaced"}'), expected_version => 7);
SELECT pg_temp.expect('a', '{"element": 7, "value": "replaced"}');
SELECT pg_temp.check('a');
SELECT dgen.replace_state('state/a', dgen.state('state/a'));
SELECT pg_temp.check('a');
-- elements that come and go
SELECT dgen.call('state/a', '{"append": [{"id": "new", "value": [[]]}, 1]}'), pg_temp.expect('a', '{"append": [{"id": "new", "value": [[]]}, 1]}');
SELECT dgen.call('state/a', '{"remove": 300}'), pg_temp.expect('a', '{"remove": 300}');
SELECT pg_temp.check('a');
-- handlers see all of it
SELECT dgen.query('state/a', '[500]'), dgen.query('state/a', '[300]'), dgen.query('state/a', '[999]');
-- one that fails leaves nothing
SELECT pg_temp.error($$SELECT dgen.call('state/a', '{"element": 1, "value": 1000, "fail": true}')$$);
SELECT pg_temp.error($$SELECT dgen.invoke('state/a', '{"element": 1, "value": 1000, "fail": true}')$$);
SELECT pg_temp.check('a');
-- several in one transaction
SELECT dgen.suspend('state/a');
SELECT count(dgen.cast('state/a', jsonb_build_object('element', i, 'value', -i))), count(pg_temp.expect('a', jsonb_build_object('element', i, 'value', -i)))
FROM generate_series(1, 20) i;
SELECT dgen.resume('state/a');
SELECT dgen.wait_idle('state/a');
SELECT split_part(pg_temp.check('a'), ', v', 1);

--
-- Savepoints and transactions that roll back
--
SELECT dgen.start('state/b');
BEGIN;
SELECT dgen.invoke('state/b', '{"element": 1, "value": "one"}');
SELECT pg_temp.expect('b', '{"element": 1, "value": "one"}');
SAVEPOINT s1;
SELECT dgen.invoke('state/b', '{"element": 2, "value": "undone"}');
SELECT dgen.query('state/b', '[2]'), pg_temp.patches('b');
SAVEPOINT s2;
SELECT dgen.replace_state('state/b', state.change(dgen.state('state/b'), '{"element": 3, "value": "undone"}'));
SELECT dgen.query('state/b', '[2]'), dgen.query('state/b', '[3]'), pg_temp.patches('b');
ROLLBACK TO s2;
SELECT dgen.query('state/b', '[2]'), dgen.query('state/b', '[3]'), pg_temp.patches('b');
ROLLBACK TO s1;
SELECT pg_temp.check('b');
-- written whole, and back to base and patches
SELECT dgen.replace_state('state/b', '{"count": 0, "items": []}');
SELECT dgen.state('state/b'), pg_temp.patches('b');
ROLLBACK TO s1;
SELECT pg_temp.check('b');
SELECT dgen.invoke('state/b', '{"element": 4, "value": "four"}');
SELECT pg_temp.expect('b', '{"element": 4, "value": "four"}');
SELECT pg_temp.check('b');
-- deleted, and back
SELECT dgen.delete('state/b'), pg_temp.patches('b');
ROLLBACK TO s1;
SELECT pg_temp.patches('b'), dgen.query('state/b', '[4]');
SELECT dgen.invoke('state/b', '{"element": 5, "value": "five"}');
RELEASE s1;
SAVEPOINT s3;
SELECT pg_temp.error($$SELECT dgen.invoke('state/b', '{"element": 6, "value": "six", "fail": true}')$$);
SELECT dgen.invoke('state/b', '{"element": 6, "value": "undone"}');
ROLLBACK TO s3;
COMMIT;
UPDATE expected SET state = state.change(state.change(state.init(NULL), '{"element": 1, "value": "one"}'), '{"element": 5, "value": "five"}') WHERE key = 'b';
SELECT pg_temp.check('b');
-- what the worker goes on with
SELECT dgen.call('state/b', '{"element": 8, "value": "eight"}'), pg_temp.expect('b', '{"element": 8, "value": "eight"}');
SELECT pg_temp.check('b');
BEGIN;
SELECT dgen.invoke('state/b', '{"element": 9, "value": "undone"}');
SELECT dgen.replace_state('state/b', '"small"');
SELECT dgen.kill('state/b'), pg_temp.patches('b');
ROLLBACK;
SELECT pg_temp.check('b');
SELECT dgen.call('state/b', '{"element": 10, "value": "ten"}'), pg_temp.expect('b', '{"element": 10, "value": "ten"}');
SELECT pg_temp.check('b');

--
-- Folded when they amount to a part of the state
--
SELECT dgen.start('state/c');
DO $$
DECLARE
  request jsonb;
  n integer;
  largest integer := 0;
  folds integer := 0;
  before integer := 0;
BEGIN
  FOR i IN 1..60 LOOP
    request := jsonb_build_object('element', i * 13, 'value', repeat(md5(i::text), 32));
    IF i % 3 = 0 THEN
      PERFORM dgen.invoke('state/c', request);
    ELSE
      PERFORM dgen.call('state/c', request);
    END IF;
    PERFORM pg_temp.expect('c', request);
    COMMIT;
    n := cardinality(pg_temp.patches('c'));
    IF pg_temp.check('c') NOT LIKE format('same, view same, version %s, %%', i + 1) OR pg_temp.patch_part('c') > 0.125 THEN
      RAISE '% after %', pg_temp.check('c'), i;
    END IF;
    folds := folds + (n < before)::integer;
    largest := greatest(largest, n);
    before := n;
  END LOOP;
  RAISE NOTICE 'folded: %, most patches: %', folds > 1 AND folds < 20, largest > 5 AND largest < 50;
END $$;
SELECT split_part(pg_temp.check('c'), ', p', 1);
-- all at once is no patch
SELECT dgen.call('state/c', jsonb_build_object('set', '{"count": 0}' || jsonb_build_object('items', (SELECT jsonb_agg(md5(i::text)) FROM generate_series(2000, 5000) i))));
SELECT pg_temp.expect('c', jsonb_build_object('set', '{"count": 0}' || jsonb_build_object('items', (SELECT jsonb_agg(md5(i::text)) FROM generate_series(2000, 5000) i))));
SELECT pg_temp.check('c');

--
-- Small ones have none; what was large becomes small, and large again
--
SELECT dgen.call('state/c', '{"set": {"count": 0, "items": [{}, {}]}}'), pg_temp.expect('c', '{"set": {"count": 0, "items": [{}, {}]}}');
SELECT pg_temp.check('c');
SELECT dgen.call('state/c', '{"element": 1, "value": "small"}'), pg_temp.expect('c', '{"element": 1, "value": "small"}');
SELECT pg_temp.check('c');
SELECT dgen.call('state/c', jsonb_build_object('set', state.init(NULL))), pg_temp.expect('c', jsonb_build_object('set', state.init(NULL)));
SELECT pg_temp.check('c');
SELECT dgen.call('state/c', '{"element": 1, "value": "large"}'), pg_temp.expect('c', '{"element": 1, "value": "large"}');
SELECT pg_temp.check('c');
-- from a patch to JSON null, in an invoke
SELECT dgen.invoke('state/c', '{"set": null}'), pg_temp.expect('c', '{"set": null}');
SELECT pg_temp.check('c');
-- the module's limit is of the whole state, not of its patch
SELECT dgen.start('state/d');
SELECT dgen.call('state/d', '{"element": 1, "value": "before"}'), pg_temp.expect('d', '{"element": 1, "value": "before"}');
SELECT dgen.alter_module('state', max_state_size => 20000) -> 'created';
SELECT pg_temp.error($$SELECT dgen.call('state/d', '{"element": 1, "value": "too large"}')$$);
SELECT pg_temp.error($$SELECT dgen.invoke('state/d', '{"element": 1, "value": "too large"}')$$);
SELECT pg_temp.error($$SELECT dgen.call('state/d', '{}')$$);
SELECT pg_temp.check('d');
SELECT dgen.call('state/d', jsonb_build_object('set', '{"count": 0}' || jsonb_build_object('items', (SELECT jsonb_agg(jsonb_build_object('id', i::text, 'text', md5(i::text))) FROM generate_series(1, 150) i))));
SELECT pg_temp.expect('d', jsonb_build_object('set', '{"count": 0}' || jsonb_build_object('items', (SELECT jsonb_agg(jsonb_build_object('id', i::text, 'text', md5(i::text))) FROM generate_series(1, 150) i))));
SELECT pg_temp.check('d');
SELECT dgen.call('state/d', '{"element": 1, "value": "below the limit"}'), pg_temp.expect('d', '{"element": 1, "value": "below the limit"}');
SELECT pg_temp.check('d');
SELECT dgen.alter_module('state', max_state_size => 10000000) -> 'created';

--
-- wait_state
--
SELECT dgen.start('state/e');
SELECT dgen.call('state/e', '{"element": 1, "value": "waited for"}'), pg_temp.expect('e', '{"element": 1, "value": "waited for"}');
SELECT w.version, md5(w.state::text) = md5(e.state::text) FROM dgen.wait_state('state/e', 1, '10 s') w, expected e WHERE key = 'e';
SELECT dgen.cast('state/e', '{"element": 2, "value": "also"}') > 0, pg_temp.expect('e', '{"element": 2, "value": "also"}');
SELECT w.version, md5(w.state::text) = md5(e.state::text) FROM dgen.wait_state('state/e', 2, '10 s') w, expected e WHERE key = 'e';
SELECT pg_temp.check('e');
-- one snapshot for base and patches
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT pg_temp.check('e');
SET LOCAL dgen.call_in_transaction = allow;
SELECT dgen.call('state/e', '{"element": 3, "value": "not seen"}');
SELECT dgen.call('state/e', '{"set": {"count": "not seen"}}');
SELECT split_part(pg_temp.check('e'), ', p', 1);
COMMIT;
SELECT pg_temp.expect('e', '{"set": {"count": "not seen"}}');
SELECT pg_temp.check('e');

--
-- Servers that end leave no patches
--
-- stop keeps the state, until the next incarnation
SELECT dgen.start('state/f');
SELECT dgen.call('state/f', '{"element": 1, "value": "kept"}'), pg_temp.expect('f', '{"element": 1, "value": "kept"}');
SELECT dgen.stop('state/f');
SELECT split_part(pg_temp.check('f'), ', v', 1);
SELECT dgen.call('state/f', '{"element": 2, "value": "again"}');
UPDATE expected SET state = state.change(state.init(NULL), '{"element": 2, "value": "again"}') WHERE key = 'f';
SELECT split_part(pg_temp.check('f'), ', v', 1);
SELECT dgen.call('state/f', '{"element": 3, "value": "last", "exit": true}'), pg_temp.expect('f', '{"element": 3, "value": "last"}');
SELECT split_part(pg_temp.check('f'), ', v', 1);
-- delete, also of one that has stopped
SELECT cardinality(pg_temp.patches('f')) > 0, dgen.delete('state/f');
SELECT pg_temp.patches('f'), pg_temp.error($$SELECT dgen.state('state/f')$$);
SELECT cardinality(pg_temp.patches('a')) > 0, dgen.delete('state/a');
SELECT pg_temp.patches('a'), pg_temp.error($$SELECT dgen.state('state/a')$$);
SELECT dgen.delete('state/b', tombstone => '1 h');
SELECT pg_temp.patches('b');
-- kill
SELECT dgen.call('state/a', '{"element": 1, "value": "new life"}');
UPDATE expected SET state = state.change(state.init(NULL), '{"element": 1, "value": "new life"}') WHERE key = 'a';
SELECT split_part(pg_temp.check('a'), ', v', 1);
SELECT dgen.call('state/a', '{"element": 2, "value": "patched"}') IS NOT NULL, cardinality(pg_temp.patches('a'));
SELECT dgen.kill('state/a');
SELECT pg_temp.patches('a');
-- on_stop => delete
SELECT dgen.alter_module('state', on_stop => 'delete') -> 'created';
SELECT dgen.start('state/g');
SELECT dgen.call('state/g', '{"element": 1, "value": "one"}'), cardinality(pg_temp.patches('g'));
SELECT dgen.stop('state/g');
SELECT pg_temp.patches('g'), pg_temp.error($$SELECT dgen.state('state/g')$$);
SELECT dgen.start('state/g');
SELECT dgen.call('state/g', '{"element": 1, "value": "one"}'), dgen.call('state/g', '{"element": 2, "value": "two", "exit": true}');
SELECT pg_temp.patches('g'), pg_temp.error($$SELECT dgen.state('state/g')$$);
--
-- Ephemeral keys: beside the state in a worker's memory, and nowhere else
--
RESET ROLE;
CREATE SCHEMA ephemeral AUTHORIZATION regress_dgen_state;
SET ROLE regress_dgen_state;
CREATE FUNCTION ephemeral.handle_call(request jsonb, INOUT state jsonb, OUT reply jsonb, OUT exit text)
LANGUAGE plpgsql AS $$
BEGIN
  reply := state;
  state := CASE WHEN request ? 'whole' THEN request -> 'whole' ELSE state || (request - 'exit' - 'drop') - coalesce(request ->> 'drop', '') END;
  exit := request ->> 'exit';
END $$;
CREATE FUNCTION ephemeral.validate(state jsonb) RETURNS boolean LANGUAGE sql AS $$ SELECT jsonb_typeof(state) <> 'object' OR NOT state ? 'cache' $$;
SELECT dgen.create_module('ephemeral', ephemeral_keys => ARRAY['cache', 'tokén', 'absent']) -> 'created';
SELECT ephemeral_keys FROM dgen.modules WHERE module = 'ephemeral';
SELECT dgen.call('ephemeral/a', '{"n": 1, "cache": {"n": 1}, "tokén": "secret"}');
SELECT dgen.state('ephemeral/a'), (SELECT state FROM dgen.servers WHERE server = 'ephemeral/a');
-- a change of them alone is no version
SELECT version AS before FROM dgen.servers WHERE server = 'ephemeral/a' \gset
SELECT dgen.call('ephemeral/a', '{"cache": 2}') -> 'n', dgen.call('ephemeral/a', '{"drop": "tokén"}') -> 'n';
SELECT version - :before FROM dgen.servers WHERE server = 'ephemeral/a';
-- other processes neither see nor leave any
BEGIN ISOLATION LEVEL SERIALIZABLE;
SELECT dgen.invoke('ephemeral/a', '{"n": 2, "cache": "of a client"}');
SELECT dgen.invoke('ephemeral/a', '{}');
COMMIT;
SELECT dgen.replace_state('ephemeral/a', '{"n": 3, "cache": 5}') > 0;
SELECT dgen.call('ephemeral/a', '{"cache": 6}');
-- a state that is no object
SELECT dgen.call('ephemeral/a', '{"whole": ["cache"]}') -> 'n';
SELECT dgen.call('ephemeral/a', '{"whole": {"n": 4, "cache": 7}}');
SELECT dgen.state('ephemeral/a');
SELECT pg_temp.try($$SELECT dgen.alter_module('ephemeral', ephemeral_keys => ARRAY['a', NULL])$$);
SELECT pg_temp.error($$SELECT dgen.alter_module('ephemeral', ephemeral_keys => '{{a},{b}}')$$);
SELECT pg_temp.try($$SELECT dgen.alter_module('ephemeral', ephemeral => true)$$);
DROP FUNCTION ephemeral.validate;
SELECT dgen.alter_module('ephemeral', ephemeral_keys => '{}') -> 'created';
SELECT dgen.call('ephemeral/a', '{"cache": "stored"}') IS NOT NULL;
SELECT dgen.state('ephemeral/a');
SELECT dgen.drop_module('ephemeral', true);
-- and with the module
SELECT dgen.start('state/g');
SELECT dgen.call('state/g', '{"element": 1, "value": "one"}') IS NOT NULL, cardinality(pg_temp.patches('g'));
SELECT dgen.drop_module('state', true);
RESET ROLE;
SELECT count(*) FROM dgen.patch WHERE server LIKE 'state/%';
SET client_min_messages = warning;
DROP FUNCTION pg_temp.expect;
DROP TABLE expected;
DROP SCHEMA state, ephemeral CASCADE;
DROP ROLE regress_dgen_state;
