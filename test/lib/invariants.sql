--
-- What holds of dgen's tables in every snapshot, whatever happens: each query
-- gives what breaks it, and so nothing.  They only read, also on a standby, as
-- a superuser.  test/lib/invariants.py runs them; "-- name:" begins each.
--

-- name: a message is in one place
SELECT id, array_agg(place ORDER BY place)
FROM (SELECT id, 'message' AS place FROM dgen.message
      UNION ALL SELECT id, 'delayed' FROM dgen.delayed
      UNION ALL SELECT id, 'postponed' FROM dgen.postponed
      UNION ALL SELECT id, 'letter' FROM dgen.letter) m
GROUP BY id HAVING count(*) > 1;

-- name: a message is of a module
SELECT id, server, place
FROM (SELECT id, server, 'message' AS place FROM dgen.message
      UNION ALL SELECT id, server, 'delayed' FROM dgen.delayed
      UNION ALL SELECT id, server, 'postponed' FROM dgen.postponed
      UNION ALL SELECT id, server, 'letter' FROM dgen.letter) m
WHERE NOT EXISTS (SELECT FROM dgen.module o WHERE o.name = split_part(m.server, '/', 1));

-- name: a mailbox has one hash, and effects another
SELECT server, array_agg(DISTINCT hash)
FROM (SELECT server, hash, kind FROM dgen.message
      UNION ALL SELECT server, hash, kind FROM dgen.delayed
      UNION ALL SELECT server, hash, kind FROM dgen.postponed
      UNION ALL SELECT server, hash, kind FROM dgen.letter) m
GROUP BY server, kind = 'e' HAVING count(DISTINCT hash) > 1;

-- name: no id is given out twice: the sequence is past all of them
SELECT place, id, last_value
FROM (SELECT 'message' AS place, max(id) AS id FROM dgen.message
      UNION ALL SELECT 'delayed', max(id) FROM dgen.delayed
      UNION ALL SELECT 'postponed', max(id) FROM dgen.postponed
      UNION ALL SELECT 'letter', max(id) FROM dgen.letter
      UNION ALL SELECT 'reply', max(id) FROM dgen.reply
      UNION ALL SELECT 'dedup', max(id) FROM dgen.dedup
      UNION ALL SELECT 'timer', max(id) FROM dgen.timer
      UNION ALL SELECT 'monitor', max(ref) FROM dgen.monitor) m, dgen.message_id
WHERE id > last_value;

-- name: who was answered does not wait
SELECT r.id, r.server FROM dgen.reply r
WHERE EXISTS (SELECT FROM dgen.message m WHERE m.id = r.id AND m.kind = 'r')
   OR EXISTS (SELECT FROM dgen.delayed m WHERE m.id = r.id AND m.kind = 'r')
   OR EXISTS (SELECT FROM dgen.postponed m WHERE m.id = r.id AND m.kind = 'r');

-- name: a reply is a reply or an error, or is yet to come
SELECT id, server, reply, error FROM dgen.reply WHERE reply IS NOT NULL AND error IS NOT NULL;

-- name: one reply a key
SELECT server, request_key, count(*) FROM dgen.reply WHERE request_key IS NOT NULL AND (reply IS NOT NULL OR error IS NOT NULL)
GROUP BY server, request_key HAVING count(*) > 1;

-- name: one message a dedup key
SELECT server, dedup_key, count(*) FROM dgen.dedup GROUP BY server, dedup_key HAVING count(*) > 1;

-- name: an attempt is of a message that waits
SELECT * FROM dgen.attempt a
WHERE NOT EXISTS (SELECT FROM dgen.message m WHERE m.id = a.id
                  AND a.server = CASE m.kind WHEN 'e' THEN '/' || m.server ELSE m.server END);

-- name: a server knows that it fails
SELECT a.* FROM dgen.attempt a LEFT JOIN dgen.server s USING (server)
WHERE a.server NOT LIKE '/%' AND s.failing IS NOT TRUE;

-- name: a timer has a message, and one only
SELECT t.*, n.places
FROM dgen.timer t,
     LATERAL (SELECT count(*) AS places
              FROM (SELECT timer FROM dgen.message UNION ALL SELECT timer FROM dgen.delayed) m
              WHERE m.timer = t.id) n
WHERE n.places <> 1;

-- name: what is delayed of a timer has one, of an alarm a server
SELECT d.id, d.server, d.kind, d.timer FROM dgen.delayed d
WHERE d.timer IS NOT NULL
  AND NOT EXISTS (SELECT FROM dgen.timer t WHERE t.id = d.timer AND t.server = d.server)
  AND NOT EXISTS (SELECT FROM dgen.server s WHERE s.server = d.server AND s.timeout_id = d.timer AND d.kind = 't');

-- name: a timer ends with its incarnation
SELECT t.* FROM dgen.timer t LEFT JOIN dgen.server s USING (server)
WHERE t.incarnation IS NOT NULL AND (s.status = 'a' AND s.incarnation = t.incarnation) IS NOT TRUE;

-- name: a server's alarm is there
SELECT s.server, s.timeout_id, s.timeout_at, s.timeout_due FROM dgen.server s
WHERE s.timeout_id IS NOT NULL
  AND NOT EXISTS (SELECT FROM dgen.delayed d WHERE d.timer = s.timeout_id AND d.kind = 't' AND d.server = s.server)
  AND NOT EXISTS (SELECT FROM dgen.message m WHERE m.timer = s.timeout_id AND m.kind = 't' AND m.server = s.server);

-- name: a server's row makes sense
SELECT server, status, incarnation, version, base_version, state_name FROM dgen.server s
LEFT JOIN dgen.module o ON o.name = split_part(s.server, '/', 1)
WHERE o.name IS NULL OR status NOT IN ('a', 'n') OR incarnation < 0 OR version < 0 OR base_version > version
   OR status = 'a' AND (state IS NULL OR incarnation = 0 OR tombstone_until IS NOT NULL
                        OR (o.kind = 'statem') <> (state_name IS NOT NULL))
   OR status = 'n' AND (timeout_id IS NOT NULL OR lock_id IS NOT NULL);

-- name: the patches are those of the state
SELECT p.server, p.versions, s.base_version, s.version, s.patch_bytes
FROM (SELECT server, array_agg(version ORDER BY version) AS versions FROM dgen.patch GROUP BY server) p
LEFT JOIN dgen.server s USING (server)
WHERE s.state IS NULL OR versions[1] <= base_version OR versions[cardinality(versions)] <> version OR patch_bytes <= 0;

-- name: no patch is missing
SELECT server, base_version, version, patch_bytes FROM dgen.server s
WHERE state IS NOT NULL AND (base_version <> version) <> EXISTS (SELECT FROM dgen.patch p WHERE p.server = s.server);

-- name: the history ends in the state
SELECT s.server, s.version, h.last
FROM dgen.server s,
     LATERAL (SELECT max(h.version) AS last FROM dgen.history h WHERE h.server = s.server) h
WHERE s.history_version = s.version
  AND (h.last IS DISTINCT FROM s.version
       OR CASE WHEN s.state IS NOT NULL
          THEN dgen.state_at(s.server, s.version) IS DISTINCT FROM dgen.state(s.server) END);

-- name: a history is of a server, and not ahead of it
SELECT h.server, h.version, s.version FROM dgen.history h LEFT JOIN dgen.server s USING (server)
WHERE s.version IS NULL OR h.version > s.version;

-- name: a locked server has its message
SELECT s.server, s.lock_id, s.lock_token FROM dgen.server s
WHERE s.lock_id IS NOT NULL
  AND (lock_token IS NULL OR NOT EXISTS (SELECT FROM dgen.message m WHERE m.id = s.lock_id AND m.server = s.server));

-- name: what goes before all others is there
SELECT s.server, s.continue_id FROM dgen.server s
WHERE s.continue_id IS NOT NULL
  AND NOT EXISTS (SELECT FROM dgen.message m WHERE m.id = s.continue_id AND m.server = s.server AND m.kind IN ('n', 'x'));

-- name: and is what its server goes on with
SELECT m.id, m.server, m.kind FROM dgen.message m LEFT JOIN dgen.server s USING (server)
WHERE m.kind IN ('n', 'x') AND (s.continue_id = m.id) IS NOT TRUE;

-- name: a server knows that it has postponed
SELECT p.server, count(*), s.postponed FROM dgen.postponed p LEFT JOIN dgen.server s USING (server)
GROUP BY p.server, s.postponed HAVING count(*) > coalesce(s.postponed, 0);

-- name: what is tied to an incarnation ends with it
SELECT t.what, t.server, t.incarnation, s.status, s.incarnation, s.monitored
FROM (SELECT 'name ' || name AS what, server, incarnation FROM dgen.name WHERE incarnation IS NOT NULL
      UNION ALL SELECT 'member ' || name, server, incarnation FROM dgen.member WHERE incarnation IS NOT NULL
      UNION ALL SELECT 'watches ' || server, watcher, incarnation FROM dgen.monitor
      UNION ALL SELECT 'watched by ' || watcher, server, NULL FROM dgen.monitor) t
LEFT JOIN dgen.server s USING (server)
WHERE (s.status = 'a' AND s.monitored AND (t.incarnation IS NULL OR t.incarnation = s.incarnation)) IS NOT TRUE;

-- name: a child has a supervisor, and knows it
SELECT c.supervisor, c.id, c.server, s.supervised FROM dgen.child c LEFT JOIN dgen.server s USING (server)
WHERE NOT EXISTS (SELECT FROM dgen.supervisor p WHERE p.name = c.supervisor)
   OR c.server IS NOT NULL AND s.supervised IS NOT TRUE
   OR c.server IS NULL AND NOT EXISTS (SELECT FROM dgen.supervisor p WHERE p.name = c.supervisor || '/' || c.id);

-- name: a supervised server is a child of one supervisor
SELECT s.server, count(c.id) FROM dgen.server s LEFT JOIN dgen.child c USING (server)
WHERE s.supervised GROUP BY s.server HAVING count(c.id) <> 1;

-- name: a child that is down waits for its restart, or is kept down
SELECT c.supervisor, c.id, c.server, c.terminated FROM dgen.child c JOIN dgen.server s USING (server)
JOIN dgen.supervisor p ON p.name = c.supervisor
WHERE p.status = 'running' AND s.status = 'n' AND s.continue_id IS NULL AND NOT c.terminated
  AND c.restart = 'permanent';

-- name: a tombstone stands as its server says, and goes when its time is up
SELECT server, t.expires_at, s.tombstone_until FROM dgen.tombstone t FULL JOIN
     (SELECT server, tombstone_until FROM dgen.server WHERE tombstone_until IS NOT NULL) s USING (server)
WHERE t.expires_at <> s.tombstone_until OR s.server IS NULL OR t.server IS NULL AND s.tombstone_until > now();
