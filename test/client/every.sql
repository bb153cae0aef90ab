--
-- What holds at any moment of the tables of every.py; see test/lib/invariants.sql.
--

-- name: journal and states agree
SELECT s.server, e.n, e.sum, s.state
FROM (SELECT server, CASE WHEN state IS NOT NULL THEN dgen.state(server) END AS state FROM dgen.server
      WHERE split_part(server, '/', 1) IN ('j', 'fsm', 'jobs', 'kid', 'mig')) s,
     LATERAL (SELECT count(*) AS n, coalesce(sum(amount), 0) AS sum FROM effect e WHERE e.server = s.server AND live) e
WHERE s.state IS NOT NULL
  AND (e.n <> coalesce((s.state->>'n')::int, 0) OR e.sum <> coalesce((s.state->>'sum')::int, 0));

-- name: no effect without a state
SELECT e.server, count(*) FROM effect e LEFT JOIN dgen.server s USING (server)
WHERE live AND s.state IS NULL AND e.server NOT LIKE 'queue/%'
  -- what is killed forgets its state, and its next incarnation asks the journal
  AND e.server NOT LIKE 'j/own%' GROUP BY e.server;

-- name: no effect twice
SELECT token, count(*) FROM effect WHERE token IS NOT NULL GROUP BY token HAVING count(*) > 1;

-- name: a message or its effect
SELECT s.token, s.server, s.kind, s.id, s.gone, p.places
FROM sent s,
     LATERAL (SELECT array_agg(place) AS places
              FROM (SELECT 'message' AS place, server, message FROM dgen.message WHERE kind <> 'e'
                    UNION ALL SELECT 'delayed', server, message FROM dgen.delayed
                    UNION ALL SELECT 'postponed', server, message FROM dgen.postponed
                    UNION ALL SELECT 'letter', server, message FROM dgen.letter
                    UNION ALL SELECT 'effect', server, jsonb_build_object('t', token) FROM effect e) m
              WHERE m.server = s.server AND m.message->>'t' = s.token) p
WHERE coalesce(cardinality(places), 0) <> CASE WHEN gone THEN 0 ELSE 1 END;

-- name: no message that nobody sent
SELECT m.* FROM (SELECT id, server, message->>'t' AS token, kind FROM dgen.message
                 UNION ALL SELECT id, server, message->>'t', kind FROM dgen.delayed) m
WHERE token IS NOT NULL AND kind IN ('c', 'i') AND server ~ '^(j|fsm|jobs|kid|mig|queue)/'
  AND NOT EXISTS (SELECT FROM sent s WHERE s.token = m.token);

-- name: no reply without its effect
SELECT r.id, r.server, r.request_key, r.reply FROM dgen.reply r
WHERE r.server LIKE 'j/%' AND r.reply IS NOT NULL AND jsonb_typeof(r.reply) = 'string' AND r.reply <> '"later"'
  AND NOT EXISTS (SELECT FROM effect e WHERE e.token = r.reply #>> '{}');

-- name: a request has its reply when it has its effect
SELECT s.* FROM sent s JOIN effect e USING (token)
WHERE s.kind = 'request' AND NOT EXISTS (SELECT FROM dgen.reply r WHERE r.id = s.id AND r.error IS NULL) AND NOT s.gone;

-- name: no effect after the commit without what it is of
SELECT o.* FROM outbox o
WHERE NOT EXISTS (SELECT FROM effect e WHERE e.token = o.token)
   OR EXISTS (SELECT FROM dgen.message m WHERE m.id = o.effect_id);

-- name: no effect after the commit twice
SELECT effect_id, count(*) FROM outbox GROUP BY effect_id HAVING count(*) > 1;

-- name: the sum is conserved
SELECT s.sum, m.sum
FROM (SELECT sum(dgen.state(server)::int) FROM dgen.server WHERE server LIKE 'bank/%') s,
     (SELECT coalesce(sum(message::int), 0) AS sum FROM dgen.message WHERE server LIKE 'bank/%') m
WHERE s.sum + m.sum <> 400;

-- name: each state of a history was one
SELECT v.server, v.version
FROM (SELECT h.server, h.version, dgen.state_at(h.server, h.version) AS state
      FROM dgen.history h JOIN dgen.server s USING (server)
      WHERE h.server LIKE 'doc/%' AND h.version > s.version - 6) v
WHERE NOT EXISTS (SELECT FROM doc_log d WHERE d.server = v.server AND d.hash = md5(v.state::text));

-- name: locked work is done or waits
SELECT m.server, m.id, m.message FROM dgen.message m JOIN dgen.server s USING (server)
WHERE m.server LIKE 'held/%' AND CASE WHEN s.state IS NOT NULL
      THEN dgen.state(m.server)->'done' @> jsonb_build_array(m.message->'t') END;

-- name: attributes are those of the state
SELECT s.server, a.attributes FROM dgen.server s LEFT JOIN j.servers a USING (server)
WHERE s.server LIKE 'j/%' AND CASE WHEN s.state IS NOT NULL
      THEN a.attributes->'n' IS DISTINCT FROM dgen.state(s.server)->'n' END;
