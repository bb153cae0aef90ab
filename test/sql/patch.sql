--
-- Patches of states: what they look like, and what they refuse.
-- That they are right is for test/client/test_patch.py to show.
--
-- diff() is null for the same bytes, and merge() makes new of base
CREATE FUNCTION patch(base jsonb, new jsonb) RETURNS jsonb
  LANGUAGE plpgsql AS $$
DECLARE
  p jsonb := dgen.jsonb_diff(base, new);
BEGIN
  IF p IS NOT NULL AND dgen.jsonb_diff(dgen.jsonb_merge(base, p), new) IS NOT NULL THEN
    RAISE 'merge gives %', dgen.jsonb_merge(base, p);
  END IF;
  RETURN p;
END $$;
\pset null null
-- scalars, empty and equal documents
SELECT base, new, patch(base, new)
FROM (VALUES
  (1, '1'::jsonb, '1'::jsonb), (2, '1', '1.0'), (3, '1', '[1]'), (4, '[1]', '1'),
  (5, '{}', '[]'), (6, '[]', '{}'), (7, '[]', '[]'), (8, '"a"', 'null'),
  (9, 'null', '[[]]'), (10, '[[]]', '[]')) v(n, base, new)
ORDER BY n;
-- objects: members changed, added, removed
SELECT patch('{"a": 1, "b": {"c": 2, "d": [1, 2]}, "e": null, "text": "some text that is longer than the patch of the rest"}',
             '{"a": 1.0, "b": {"c": 2, "d": []}, "f": {"g": 3}, "text": "some text that is longer than the patch of the rest"}');
-- documents that look like patches
SELECT patch('{"a": [], "b": [1], "text": "some more text"}', '{"a": [[]], "b": [], "text": "some more text"}');
-- arrays
SELECT a AS what, patch(base, new)
FROM (SELECT jsonb_agg('some text ' || i ORDER BY i) AS base FROM generate_series(1, 50) i) b,
  LATERAL (VALUES
    ('changed', jsonb_set(base, '{7}', '"new"')),
    ('a number', jsonb_set(base, '{7}', '8')),
    ('appended', base || '[1, "new", null, {"a": 1}]'),
    ('truncated', jsonb_path_query_array(base, '$[0 to 39]')),
    ('queue', (base - 0 - 0) || '["new"]'),
    ('inserted', jsonb_insert(base, '{30}', '"new"')),
    ('moved', (base -> 20) || (base - 20)),
    ('turned', jsonb_path_query_array(base, '$[30 to 49]') || jsonb_path_query_array(base, '$[0 to 29]'))) v(a, new);
-- elements with ids are found by them; others in the same place
SELECT a AS what, patch(base, new)
FROM (SELECT jsonb_agg(jsonb_build_object('id', 'e' || i, 'value', i, 'text', 'some text') ORDER BY i) AS base
      FROM generate_series(1, 50) i) b,
  LATERAL (VALUES
    ('changed', jsonb_set(base, '{7,value}', '80')),
    ('changed and moved', jsonb_set(base -> 20, '{value}', '210') || (base - 20)),
    ('removed and changed', jsonb_set(base - 3, '{7,value}', '90')),
    ('inserted', jsonb_insert(base, '{3}', '{"id": "new", "value": 3}')),
    ('same id twice', jsonb_set(base, '{7}', '{"id": "e7", "value": 7, "text": "other text"}')),
    ('id changed', jsonb_set(base, '{7,id}', '"new"')),
    ('no string', jsonb_set(base, '{7,id}', '8'))) v(a, new);
-- what is not smaller is set whole
SELECT patch('{"a": 1, "b": 2}', '{"b": 3}');
SELECT patch('[{"id": "x", "n": 1}, 2, 3]', '[2, {"id": "y", "n": 2}]');
-- duplicates, of elements and of ids
SELECT patch(base, new)
FROM (SELECT jsonb_agg(i % 3 ORDER BY i) AS base FROM generate_series(1, 40) i) b,
  LATERAL (SELECT jsonb_insert(base - 0 - 0, '{15}', '1') AS new) n;
SELECT patch(base, new)
FROM (SELECT jsonb_agg(jsonb_build_object('id', 'same', 'n', i) ORDER BY i) AS base FROM generate_series(1, 40) i) b,
  LATERAL (SELECT jsonb_set(base, '{7,n}', '80') AS new) n;
-- patches of one after the other
SELECT dgen.jsonb_compose('{"a": 1, "b": [], "c": {"d": [5, -6, 10]}}',
                          '{"a": [], "b": [{}], "c": {"d": [-1, 2, 5, 1, ["new"]], "e": true}}');
SELECT dgen.jsonb_compose('{"a": [{"b": 1, "c": 2}]}', '{"a": {"b": [], "d": 3}}');
SELECT dgen.jsonb_compose('[3, {"a": 1}, [{"b": 1}], 4]', '[-1, 2, {"c": 2}, {"b": []}, 1]');
SELECT dgen.jsonb_compose('[5, "x"]', '[0, 0]');
-- an element that both patch and that ends as a value of its own
SELECT dgen.jsonb_merge(base, p1) AS one, dgen.jsonb_merge(dgen.jsonb_merge(base, p1), p2) AS two,
  dgen.jsonb_compose(p1, p2), dgen.jsonb_merge(base, dgen.jsonb_compose(p1, p2)) AS composed
FROM (VALUES ('[1, [2], 3]'::jsonb, '[1, [1, "x"], 1]'::jsonb, '[1, [0, 0], 1]'::jsonb)) v(base, p1, p2);
SELECT dgen.jsonb_compose('{"a": {"b": 1}}', '{"a": []}');
-- removing what is not there is nothing
SELECT dgen.jsonb_merge('{"a": 1}', '{"b": []}');
-- null
SELECT dgen.jsonb_diff(NULL, '1'), dgen.jsonb_merge('1', NULL), dgen.jsonb_compose(NULL, '1');
-- patches that do not fit
CREATE FUNCTION refused(statement text) RETURNS text
  LANGUAGE plpgsql AS $$
DECLARE
  detail text;
BEGIN
  EXECUTE statement;
  RETURN 'no error';
EXCEPTION WHEN OTHERS THEN
  GET STACKED DIAGNOSTICS detail = PG_EXCEPTION_DETAIL;
  RETURN sqlstate || ': ' || sqlerrm || ': ' || detail;
END $$;
SELECT base, patch, refused(format('SELECT dgen.jsonb_merge(%L, %L)', base, patch))
FROM (VALUES
  (1, '1', '{}'), (2, '[]', '{"a": 1}'), (3, '{}', '{"a": {"b": 1}}'), (4, '{}', '[0, 1]'),
  (5, '[1, 2]', '[3, "x"]'), (6, '[1, 2]', '[-2, {}]'), (7, '[1, 2]', '[0, {}]'),
  (8, '1', '[]'), (9, '[1, 2]', '[1, []]'), (10, '[1, 2]', '[0, 1.0]'), (11, '[1, 2]', '[0, 1.5]'),
  (12, '[1, 2]', '[0, 4294967297]'), (13, '[1, 2]', '[-2147483648, 2147483647]')) v(n, base, patch)
ORDER BY n;
SELECT p1, p2, refused(format('SELECT dgen.jsonb_compose(%L, %L)', p1, p2))
FROM (VALUES
  (1, '{"a": []}', '{"a": {"b": 1}}'), (2, '{}', '[0, 1]'), (3, '[0, 1]', '{}'), (4, '1', '{}'),
  (5, '[0, 1]', '[1, 1, {}]'), (6, '[0, 1]', '[-1, {}]'), (7, '[]', '1'), (8, '1', '[]'),
  (9, '[1, 1.5]', '[0, 1]')) v(n, p1, p2)
ORDER BY n;
-- large: one element of 10,000
SELECT pg_column_size(patch(d, jsonb_set(d, '{e5000,n}', '0'))) AS object
FROM (SELECT jsonb_object_agg('e' || i, jsonb_build_object('n', i, 'text', repeat('x', 80))) AS d
      FROM generate_series(1, 10000) i) d;
SELECT pg_column_size(patch(d, jsonb_set(d, '{5000,n}', '0'))) AS "array"
FROM (SELECT jsonb_agg(jsonb_build_object('id', 'e' || i, 'n', i, 'text', repeat('x', 80))) AS d
      FROM generate_series(1, 10000) i) d;
DROP FUNCTION patch, refused;
