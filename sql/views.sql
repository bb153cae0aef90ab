
/* -------------------------------------------------------------------- views
 *
 * Every view names a server by its address, in column server.  A row is shown
 * to those who may read its module: members of its owner, operators, readers.
 * The views are security barriers, so the filter comes first; only leakproof
 * conditions, as equality is, get past it, and WHERE server = '...' uses the
 * primary key.
 *
 * The functions here are what the views are made of.  Whoever reads a view
 * must be able to execute them, so they are PUBLIC's, and check for themselves.
 * STABLE, as they show one moment, and so that a column that is not asked for
 * is not computed; a mask may run any code of its module, hence UNSAFE.
 */

CREATE FUNCTION dgen.may_read(server text)
RETURNS boolean LANGUAGE c STABLE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'dgen_may_read';
COMMENT ON FUNCTION dgen.may_read(text) IS
'may the current user see state and messages of this server?';

CREATE FUNCTION dgen.masked_state(server text, base jsonb, base_version bigint, version bigint)
RETURNS jsonb LANGUAGE c STABLE PARALLEL UNSAFE COST 100
AS 'MODULE_PATHNAME', 'dgen_masked_state';
COMMENT ON FUNCTION dgen.masked_state(text, jsonb, bigint, bigint) IS
'a state as the module''s format_status shows it, or as it is where there is none; null for those who may not read it';

CREATE FUNCTION dgen.masked_message(server text, message jsonb)
RETURNS jsonb LANGUAGE c STABLE PARALLEL UNSAFE COST 100
AS 'MODULE_PATHNAME', 'dgen_masked_message';
COMMENT ON FUNCTION dgen.masked_message(text, jsonb) IS
'a message as the module''s format_message shows it, or as it is where there is none; null for those who may not read it';

CREATE FUNCTION dgen.calls_in_flight(
	OUT server text,
	OUT sent_at timestamptz,
	OUT expires_at timestamptz,
	OUT sender text,
	OUT sender_role text,
	OUT context jsonb,
	OUT message jsonb)
RETURNS SETOF record LANGUAGE c STABLE PARALLEL UNSAFE ROWS 20
AS 'MODULE_PATHNAME', 'dgen_calls_in_flight';
COMMENT ON FUNCTION dgen.calls_in_flight() IS
'calls that no worker has taken yet; part of view dgen.messages';

CREATE FUNCTION dgen.worker_info(
	OUT pid integer,
	OUT owner text,
	OUT state text,
	OUT server text,
	OUT started_at timestamptz,
	OUT busy_since timestamptz,
	OUT batches bigint,
	OUT activations bigint,
	OUT serialization_retries bigint,
	OUT batch_size integer,
	OUT kind text,
	OUT cache_hits bigint,
	OUT cache_misses bigint)
RETURNS SETOF record LANGUAGE c STABLE PARALLEL UNSAFE ROWS 10
AS 'MODULE_PATHNAME', 'dgen_worker_info';
COMMENT ON FUNCTION dgen.worker_info() IS
'source of views dgen.workers and dgen.stat_worker';

CREATE FUNCTION dgen.pool_info(
	OUT owner text,
	OUT kind text,
	OUT module text,
	OUT ready integer,
	OUT waiting_since timestamptz,
	OUT workers integer,
	OUT refused_since timestamptz,
	OUT start_failures integer,
	OUT next_start_at timestamptz)
RETURNS SETOF record LANGUAGE c STABLE PARALLEL UNSAFE ROWS 10
AS 'MODULE_PATHNAME', 'dgen_pool_info';
COMMENT ON FUNCTION dgen.pool_info() IS
'source of view dgen.pools';

CREATE FUNCTION dgen.kind_name(kind "char")
RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE kind WHEN 'c' THEN 'cast' WHEN 'i' THEN 'info' WHEN 'r' THEN 'request'
	WHEN 'n' THEN 'continue' WHEN 'p' THEN 'reply' WHEN 'k' THEN 'call'
	WHEN 'm' THEN 'timer' WHEN 't' THEN 'timeout' WHEN 'd' THEN 'DOWN'
	WHEN 'e' THEN 'effect' WHEN 'x' THEN 'exit' END;
COMMENT ON FUNCTION dgen.kind_name("char") IS
'a kind of message, in full';

CREATE VIEW dgen.servers WITH (security_barrier) AS
	SELECT
		s.server,
		split_part(s.server, '/', 1) AS module,
		substr(s.server, strpos(s.server, '/') + 1) AS key,
		CASE WHEN s.status = 'a' THEN 'running'
			WHEN s.incarnation = 0 THEN 'new'
			ELSE 'stopped' END AS status,
		s.suspended_at,
		s.suspended_by,
		s.failing,
		s.lock_id AS locked_for,
		s.locked_until,
		s.incarnation,
		s.version,
		dgen.masked_state(s.server, s.state, s.base_version, s.version) AS state,
		pg_column_size(s.state) AS state_size,
		s.vsn,
		s.started_at,
		s.updated_at,
		s.stop_reason,
		s.tombstone_until,
		coalesce(s.postponed, 0) AS postponed,
		s.state_name
	FROM dgen.server s
	WHERE dgen.may_read(s.server);
COMMENT ON VIEW dgen.servers IS
'servers that have a state, are suspended or in trouble; of modules that the current user may read';
COMMENT ON COLUMN dgen.servers.server IS 'address, module/key';
COMMENT ON COLUMN dgen.servers.module IS 'module of the server';
COMMENT ON COLUMN dgen.servers.key IS 'key of the server within its module';
COMMENT ON COLUMN dgen.servers.status IS 'running: an incarnation is alive; stopped: none is; new: there never was one, or it was deleted';
COMMENT ON COLUMN dgen.servers.suspended_at IS 'since when the server is suspended; null: it is not';
COMMENT ON COLUMN dgen.servers.suspended_by IS 'who suspended it: a role, or dgen; and why, if that was said';
COMMENT ON COLUMN dgen.servers.failing IS 'a message of it has failed and is to be tried again, see dgen.messages';
COMMENT ON COLUMN dgen.servers.locked_for IS 'message for which work is done outside of handlers, while the others wait; null: none';
COMMENT ON COLUMN dgen.servers.locked_until IS 'of an external module: when the lease of that message ends';
COMMENT ON COLUMN dgen.servers.incarnation IS 'how often it was started';
COMMENT ON COLUMN dgen.servers.version IS 'version of its state; grows by one with each activation that changes it';
COMMENT ON COLUMN dgen.servers.state IS 'its state, as the module''s format_status shows it; see dgen.state() for the raw one';
COMMENT ON COLUMN dgen.servers.state_size IS 'bytes that the state takes in its row or beside it, compressed';
COMMENT ON COLUMN dgen.servers.vsn IS 'version of the module''s code that the state was made by';
COMMENT ON COLUMN dgen.servers.started_at IS 'when the incarnation, or the last one, began';
COMMENT ON COLUMN dgen.servers.updated_at IS 'when the row was last written';
COMMENT ON COLUMN dgen.servers.stop_reason IS 'why the last incarnation ended; null while one is alive';
COMMENT ON COLUMN dgen.servers.tombstone_until IS 'sends to a deleted server are refused until then';
COMMENT ON COLUMN dgen.servers.state_name IS 'of a state machine, the state that it is in, or was in at its end';
COMMENT ON COLUMN dgen.servers.postponed IS 'messages that wait for a change of it; those that were cancelled since the last one count';

/*
 * The filter stands outside of the union: a view that is a bare UNION ALL is
 * flattened into the query, and its barrier with it.
 */
CREATE VIEW dgen.messages WITH (security_barrier) AS
	SELECT m.*
	FROM (
		SELECT
			w.id,
			w.server,
			dgen.kind_name(w.kind) AS kind,
			w.priority,
			CASE WHEN a.id IS NOT NULL THEN 'retrying'
				WHEN EXISTS (SELECT FROM dgen.server s WHERE s.server = w.server AND s.lock_id = w.id) THEN 'locked'
				ELSE 'ready' END AS status,
			w.sent_at,
			NULL::timestamptz AS due_at,
			w.expires_at,
			coalesce(a.attempts, 0) AS attempts,
			a.next_at AS next_attempt_at,
			a.error AS last_error,
			w.sender,
			w.sender_role,
			w.dedup_key,
			w.context,
			dgen.masked_message(w.server, w.message) AS message
		FROM dgen.message w LEFT JOIN dgen.attempt a ON a.id = w.id
		UNION ALL
		SELECT
			d.id,
			d.server,
			dgen.kind_name(d.kind),
			d.priority,
			'delayed',
			d.sent_at,
			d.due_at,
			d.expires_at,
			0,
			NULL,
			NULL,
			d.sender,
			d.sender_role,
			d.dedup_key,
			d.context,
			dgen.masked_message(d.server, d.message)
		FROM dgen.delayed d
		UNION ALL
		SELECT
			p.id,
			p.server,
			dgen.kind_name(p.kind),
			p.priority,
			'postponed',
			p.sent_at,
			NULL,
			p.expires_at,
			0,
			NULL,
			NULL,
			p.sender,
			p.sender_role,
			p.dedup_key,
			p.context,
			dgen.masked_message(p.server, p.message)
		FROM dgen.postponed p
		UNION ALL
		SELECT
			NULL,
			c.server,
			'call',
			0::smallint,
			'ready',
			c.sent_at,
			NULL,
			c.expires_at,
			0,
			NULL,
			NULL,
			c.sender,
			c.sender_role,
			NULL,
			c.context,
			c.message
		FROM dgen.calls_in_flight() c
	) m
	WHERE dgen.may_read(m.server);
COMMENT ON VIEW dgen.messages IS
'messages that wait, with delayed and postponed ones, and calls that no worker has taken yet (see dgen.workers for those in hand); of modules that the current user may read';
COMMENT ON COLUMN dgen.messages.id IS 'id, for dgen.discard() and dgen.cancel(); null for a call, which is no row unless it was postponed';
COMMENT ON COLUMN dgen.messages.server IS 'address of the server it was sent to';
COMMENT ON COLUMN dgen.messages.kind IS 'call, cast, info, request, reply (to a request of the server), DOWN, continue, timer (a named one), timeout (an idle one), or effect, which the server has promised by dgen.after_commit()';
COMMENT ON COLUMN dgen.messages.priority IS '1 high, 0 normal, -1 low';
COMMENT ON COLUMN dgen.messages.status IS 'ready; delayed until due_at; postponed until its server changes; retrying: it has failed and waits for its next attempt; or locked: its work is done outside of handlers';
COMMENT ON COLUMN dgen.messages.sent_at IS 'when it was sent';
COMMENT ON COLUMN dgen.messages.due_at IS 'when a delayed message comes to the mailbox';
COMMENT ON COLUMN dgen.messages.expires_at IS 'it will not be handled after this: of a call the deadline';
COMMENT ON COLUMN dgen.messages.attempts IS 'failed attempts that count';
COMMENT ON COLUMN dgen.messages.next_attempt_at IS 'when it is tried again';
COMMENT ON COLUMN dgen.messages.last_error IS 'error of the last attempt';
COMMENT ON COLUMN dgen.messages.sender IS 'server or session that sent it';
COMMENT ON COLUMN dgen.messages.sender_role IS 'role that sent it';
COMMENT ON COLUMN dgen.messages.dedup_key IS 'key by which duplicates are known';
COMMENT ON COLUMN dgen.messages.context IS 'dgen.context of the sender';
COMMENT ON COLUMN dgen.messages.message IS 'the message or request, as the module''s format_message shows it';

CREATE VIEW dgen.timers WITH (security_barrier) AS
	SELECT x.*
	FROM (
		SELECT
			t.server,
			CASE WHEN starts_with(t.name, '$every:') THEN NULL ELSE t.name END AS name,
			t.id,
			'timer' AS kind,
			CASE WHEN d.id IS NULL THEN 'due' ELSE 'waiting' END AS status,
			t.due_at,
			t.every,
			t.start_at,
			t.time_zone,
			CASE t.on_miss WHEN 'o' THEN 'fire_once' WHEN 'c' THEN 'catch_up' WHEN 's' THEN 'skip' END AS on_miss,
			t.occurrence,
			t.incarnation,
			d.sender,
			t.sender_role,
			dgen.masked_message(d.server, d.message) AS message
		FROM dgen.timer t LEFT JOIN dgen.delayed d ON d.id = t.id
		UNION ALL
		SELECT
			d.server, NULL, d.id, 'timer', 'waiting', d.due_at, NULL, NULL, NULL, NULL, NULL,
			d.incarnation, d.sender, d.sender_role, dgen.masked_message(d.server, d.message)
		FROM dgen.delayed d
		WHERE d.kind = 'i' AND d.timer IS NULL
		UNION ALL
		SELECT
			s.server, NULL, s.timeout_id, 'timeout', 'waiting', s.timeout_at, NULL, NULL, NULL, NULL, NULL,
			s.incarnation, s.server, NULL, '{"info": "timeout"}'
		FROM dgen.server s
		WHERE s.timeout_at IS NOT NULL AND s.state_name IS NULL
	) x
	WHERE dgen.may_read(x.server);
COMMENT ON VIEW dgen.timers IS
'timers that are set, and idle timeouts; of modules that the current user may read';
COMMENT ON COLUMN dgen.timers.server IS 'address of the server whose handle_info gets the message';
COMMENT ON COLUMN dgen.timers.name IS 'name of the timer; null if it has none';
COMMENT ON COLUMN dgen.timers.id IS 'id, for dgen.cancel_timer() and dgen.read_timer()';
COMMENT ON COLUMN dgen.timers.kind IS 'timer, or timeout for an idle timeout';
COMMENT ON COLUMN dgen.timers.status IS 'waiting for its time, or due: its message is in the mailbox';
COMMENT ON COLUMN dgen.timers.due_at IS 'when it goes off, or has come due; -infinity: once the mailbox is drained';
COMMENT ON COLUMN dgen.timers.every IS 'interval of a timer that recurs';
COMMENT ON COLUMN dgen.timers.start_at IS 'from when its occurrences count: each is start_at + occurrence * every';
COMMENT ON COLUMN dgen.timers.time_zone IS 'time zone in which days and months count';
COMMENT ON COLUMN dgen.timers.on_miss IS 'fire_once, catch_up or skip: what becomes of occurrences that could not be handled in time';
COMMENT ON COLUMN dgen.timers.occurrence IS 'number of the occurrence that is next, or is due';
COMMENT ON COLUMN dgen.timers.incarnation IS 'incarnation that it ends with; null if others than the server have set it';
COMMENT ON COLUMN dgen.timers.sender IS 'server or session that set it; null once it is due';
COMMENT ON COLUMN dgen.timers.sender_role IS 'role that set it';
COMMENT ON COLUMN dgen.timers.message IS 'the message as handle_info gets it, and as the module''s format_message shows it; null once it is due, see dgen.messages';

CREATE VIEW dgen.dead_letters WITH (security_barrier) AS
	SELECT
		l.id,
		l.server,
		dgen.kind_name(l.kind) AS kind,
		l.priority,
		dgen.masked_message(l.server, l.message) AS message,
		l.context,
		l.sender,
		l.sender_role,
		l.sent_at,
		l.failed_at,
		l.attempts,
		l.sqlstate,
		l.error
	FROM dgen.letter l
	WHERE dgen.may_read(l.server);
COMMENT ON VIEW dgen.dead_letters IS
'messages that were given up; of modules that the current user may read';
COMMENT ON COLUMN dgen.dead_letters.id IS 'id of the message, for dgen.requeue() and dgen.discard()';
COMMENT ON COLUMN dgen.dead_letters.server IS 'address of the server it was sent to';
COMMENT ON COLUMN dgen.dead_letters.kind IS 'cast, info, request, reply, DOWN, continue or effect';
COMMENT ON COLUMN dgen.dead_letters.priority IS '1 high, 0 normal, -1 low';
COMMENT ON COLUMN dgen.dead_letters.message IS 'the message, as the module''s format_message shows it';
COMMENT ON COLUMN dgen.dead_letters.context IS 'dgen.context of the sender';
COMMENT ON COLUMN dgen.dead_letters.sender IS 'server or session that sent it';
COMMENT ON COLUMN dgen.dead_letters.sender_role IS 'role that sent it';
COMMENT ON COLUMN dgen.dead_letters.sent_at IS 'when it was sent';
COMMENT ON COLUMN dgen.dead_letters.failed_at IS 'when it was given up';
COMMENT ON COLUMN dgen.dead_letters.attempts IS 'attempts that failed';
COMMENT ON COLUMN dgen.dead_letters.sqlstate IS 'SQLSTATE of the last error';
COMMENT ON COLUMN dgen.dead_letters.error IS 'the last error';

CREATE VIEW dgen.workers AS
	SELECT pid, owner, state, server, started_at, busy_since, batches, activations,
		serialization_retries, batch_size
	FROM dgen.worker_info();
COMMENT ON VIEW dgen.workers IS
'worker processes of this database; for members of their owners, and of pg_read_all_stats';
COMMENT ON COLUMN dgen.workers.pid IS 'process id; null until the process has started';
COMMENT ON COLUMN dgen.workers.owner IS 'role that it runs as: the owner of the modules that it serves';
COMMENT ON COLUMN dgen.workers.state IS 'starting, idle, busy or leaving';
COMMENT ON COLUMN dgen.workers.server IS 'server in hand, of several the first; null when idle, and for those who may not read its module';
COMMENT ON COLUMN dgen.workers.started_at IS 'when it was started';
COMMENT ON COLUMN dgen.workers.busy_since IS 'when its batch began; null when it has none';
COMMENT ON COLUMN dgen.workers.batches IS 'batches that it has committed';
COMMENT ON COLUMN dgen.workers.activations IS 'messages and calls that it has handled';
COMMENT ON COLUMN dgen.workers.serialization_retries IS 'serialization failures and deadlocks that it has retried';
COMMENT ON COLUMN dgen.workers.batch_size IS 'activations of the last batch';

CREATE VIEW dgen.pools AS
	SELECT * FROM dgen.pool_info();
COMMENT ON VIEW dgen.pools IS
'queues of ready servers in this database, and the workers for them; for members of their owners, and of pg_read_all_stats';
COMMENT ON COLUMN dgen.pools.owner IS 'role that owns the modules of these servers, and that the workers run as; unknown (OID=...) for a moment where it was dropped';
COMMENT ON COLUMN dgen.pools.kind IS 'handlers; long: what takes long, effects and handle_locked; or external: the work of one external module, which clients take';
COMMENT ON COLUMN dgen.pools.module IS 'the external module; null for the other kinds';
COMMENT ON COLUMN dgen.pools.ready IS 'servers that wait for a worker, or for a client';
COMMENT ON COLUMN dgen.pools.waiting_since IS 'since when the first of them waits; null: none does';
COMMENT ON COLUMN dgen.pools.workers IS 'workers that run or are being started';
COMMENT ON COLUMN dgen.pools.refused_since IS 'since when no worker could be had, as max_worker_processes are taken; null: one could';
COMMENT ON COLUMN dgen.pools.start_failures IS 'workers in a row that ended as they started: the server''s log tells why';
COMMENT ON COLUMN dgen.pools.next_start_at IS 'no other is started before that; null: at any time';

CREATE VIEW dgen.names WITH (security_barrier) AS
	SELECT n.name, n.server, n.metadata, n.incarnation IS NULL AS permanent,
		n.registered_at, n.registered_by
	FROM dgen.name n
	WHERE dgen.may_read(n.server);
COMMENT ON VIEW dgen.names IS
'registered names; of modules that the current user may read';
COMMENT ON COLUMN dgen.names.name IS 'the name';
COMMENT ON COLUMN dgen.names.server IS 'address that it stands for';
COMMENT ON COLUMN dgen.names.metadata IS 'what was said of it; see dgen.find_names()';
COMMENT ON COLUMN dgen.names.permanent IS 'it stays when the server''s incarnation ends';
COMMENT ON COLUMN dgen.names.registered_at IS 'since when';
COMMENT ON COLUMN dgen.names.registered_by IS 'role that registered it';

/* Becomes part of the query that calls it, which then uses the index. */
CREATE FUNCTION dgen.find_names(metadata jsonb)
RETURNS SETOF dgen.names LANGUAGE sql STABLE PARALLEL UNSAFE
BEGIN ATOMIC
	SELECT n.* FROM dgen.names n WHERE n.metadata OPERATOR(dgen.@>) $1;
END;
COMMENT ON FUNCTION dgen.find_names(jsonb) IS
'rows of dgen.names whose metadata contains this';

CREATE VIEW dgen.groups WITH (security_barrier) AS
	SELECT m.name, m.server, m.incarnation IS NULL AS permanent, m.joined_at, m.joined_by
	FROM dgen.member m
	WHERE dgen.may_read(m.server);
COMMENT ON VIEW dgen.groups IS
'members of groups; of modules that the current user may read';
COMMENT ON COLUMN dgen.groups.name IS 'name of the group';
COMMENT ON COLUMN dgen.groups.server IS 'address of the member';
COMMENT ON COLUMN dgen.groups.permanent IS 'it stays a member when its incarnation ends';
COMMENT ON COLUMN dgen.groups.joined_at IS 'since when';
COMMENT ON COLUMN dgen.groups.joined_by IS 'role that made it a member';

CREATE VIEW dgen.monitors WITH (security_barrier) AS
	SELECT m.ref, m.server, m.watcher, m.set_at
	FROM dgen.monitor m
	WHERE dgen.may_read(m.watcher) OR dgen.may_read(m.server);
COMMENT ON VIEW dgen.monitors IS
'who watches whom, where the current user may read the module of either';
COMMENT ON COLUMN dgen.monitors.ref IS 'what dgen.monitor() returned';
COMMENT ON COLUMN dgen.monitors.server IS 'address of the server that is watched';
COMMENT ON COLUMN dgen.monitors.watcher IS 'address of the server that gets the DOWN';
COMMENT ON COLUMN dgen.monitors.set_at IS 'since when';
