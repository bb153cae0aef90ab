
/* ---------------------------------------------------------------- statistics of all
 *
 * Figures are for those who may read a module, and for members of
 * pg_read_all_stats (as pg_monitor is), who see no addresses of servers whose
 * module they may not read.  None of these tells what a state or message holds.
 */

CREATE FUNCTION dgen.may_monitor(module text)
RETURNS boolean LANGUAGE c STABLE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'dgen_may_monitor_module';
COMMENT ON FUNCTION dgen.may_monitor(text) IS
'may the current user see the figures of this module, or (null) of the database?';

CREATE FUNCTION dgen.queued_calls(OUT module text, OUT sent_at timestamptz)
RETURNS SETOF record LANGUAGE c STABLE PARALLEL UNSAFE ROWS 20
AS 'MODULE_PATHNAME', 'dgen_queued_calls';
COMMENT ON FUNCTION dgen.queued_calls() IS
'calls that no worker has taken yet; part of view dgen.stat_queue';

CREATE FUNCTION dgen.stat_reset(module text DEFAULT NULL)
RETURNS integer LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'dgen_stat_reset';
COMMENT ON FUNCTION dgen.stat_reset(text) IS
'begin to count at zero in dgen.stat_module and dgen.stat_server: a module, or (null) all that the current user may operate; how many. Done at once, whatever becomes of the transaction';

CREATE FUNCTION dgen.stat_module_info(
	OUT module text,
	OUT suspended_by text,
	OUT calls bigint,
	OUT requests bigint,
	OUT casts bigint,
	OUT infos bigint,
	OUT timers bigint,
	OUT effects bigint,
	OUT others bigint,
	OUT errors bigint,
	OUT retries bigint,
	OUT conflicts bigint,
	OUT dead_letters bigint,
	OUT timeouts bigint,
	OUT commits bigint,
	OUT total_handler_time double precision,
	OUT min_handler_time double precision,
	OUT max_handler_time double precision,
	OUT mean_handler_time double precision,
	OUT stddev_handler_time double precision,
	OUT p50_handler_time double precision,
	OUT p95_handler_time double precision,
	OUT p99_handler_time double precision,
	OUT total_queue_time double precision,
	OUT min_queue_time double precision,
	OUT max_queue_time double precision,
	OUT mean_queue_time double precision,
	OUT stddev_queue_time double precision,
	OUT p50_queue_time double precision,
	OUT p95_queue_time double precision,
	OUT p99_queue_time double precision,
	OUT total_commit_time double precision,
	OUT min_commit_time double precision,
	OUT max_commit_time double precision,
	OUT mean_commit_time double precision,
	OUT stddev_commit_time double precision,
	OUT p50_commit_time double precision,
	OUT p95_commit_time double precision,
	OUT p99_commit_time double precision,
	OUT stats_reset timestamptz)
RETURNS SETOF record LANGUAGE c STABLE PARALLEL UNSAFE ROWS 10
AS 'MODULE_PATHNAME', 'dgen_stat_module_info';
COMMENT ON FUNCTION dgen.stat_module_info() IS
'source of view dgen.stat_module';

CREATE VIEW dgen.stat_module AS
	SELECT * FROM dgen.stat_module_info();
COMMENT ON VIEW dgen.stat_module IS
'what the activations of each module were, and how long they took, since the server''s start or dgen.stat_reset()';
COMMENT ON COLUMN dgen.stat_module.module IS 'module';
COMMENT ON COLUMN dgen.stat_module.suspended_by IS 'who suspended the module: a role, or dgen; null: it is not';
COMMENT ON COLUMN dgen.stat_module.calls IS 'calls and invokes that were handled and committed';
COMMENT ON COLUMN dgen.stat_module.requests IS 'the same of requests';
COMMENT ON COLUMN dgen.stat_module.casts IS 'the same of casts';
COMMENT ON COLUMN dgen.stat_module.infos IS 'the same of infos, those of timers without a name too';
COMMENT ON COLUMN dgen.stat_module.timers IS 'the same of timers that have a name, and of idle timeouts';
COMMENT ON COLUMN dgen.stat_module.effects IS 'the same of effects';
COMMENT ON COLUMN dgen.stat_module.others IS 'the same of replies, continues, DOWNs and what else the engine sends';
COMMENT ON COLUMN dgen.stat_module.errors IS 'activations that failed, by an error or a reject; not conflicts';
COMMENT ON COLUMN dgen.stat_module.retries IS 'messages that were put off to be tried again, after an error or by retry_after';
COMMENT ON COLUMN dgen.stat_module.conflicts IS 'serialization failures and deadlocks of workers, whose activations were run again at once';
COMMENT ON COLUMN dgen.stat_module.dead_letters IS 'messages that were given up';
COMMENT ON COLUMN dgen.stat_module.timeouts IS 'activations that ran longer than handler_timeout or work_timeout; among the errors';
COMMENT ON COLUMN dgen.stat_module.commits IS 'transactions that activations were part of';
COMMENT ON COLUMN dgen.stat_module.total_handler_time IS 'sum of the time of an activation, in milliseconds';
COMMENT ON COLUMN dgen.stat_module.min_handler_time IS 'shortest time of an activation, in milliseconds';
COMMENT ON COLUMN dgen.stat_module.max_handler_time IS 'longest time of an activation, in milliseconds';
COMMENT ON COLUMN dgen.stat_module.mean_handler_time IS 'mean time of an activation, in milliseconds';
COMMENT ON COLUMN dgen.stat_module.stddev_handler_time IS 'standard deviation of the time of an activation, in milliseconds';
COMMENT ON COLUMN dgen.stat_module.p50_handler_time IS 'median of the time of an activation, in milliseconds; at most 6.25 percent off';
COMMENT ON COLUMN dgen.stat_module.p95_handler_time IS '95th percentile of the time of an activation, in milliseconds; at most 6.25 percent off';
COMMENT ON COLUMN dgen.stat_module.p99_handler_time IS '99th percentile of the time of an activation, in milliseconds; at most 6.25 percent off';
COMMENT ON COLUMN dgen.stat_module.total_queue_time IS 'sum of the time from send or call to the activation, in milliseconds';
COMMENT ON COLUMN dgen.stat_module.min_queue_time IS 'shortest time from send or call to the activation, in milliseconds';
COMMENT ON COLUMN dgen.stat_module.max_queue_time IS 'longest time from send or call to the activation, in milliseconds';
COMMENT ON COLUMN dgen.stat_module.mean_queue_time IS 'mean time from send or call to the activation, in milliseconds';
COMMENT ON COLUMN dgen.stat_module.stddev_queue_time IS 'standard deviation of the time from send or call to the activation, in milliseconds';
COMMENT ON COLUMN dgen.stat_module.p50_queue_time IS 'median of the time from send or call to the activation, in milliseconds; at most 6.25 percent off';
COMMENT ON COLUMN dgen.stat_module.p95_queue_time IS '95th percentile of the time from send or call to the activation, in milliseconds; at most 6.25 percent off';
COMMENT ON COLUMN dgen.stat_module.p99_queue_time IS '99th percentile of the time from send or call to the activation, in milliseconds; at most 6.25 percent off';
COMMENT ON COLUMN dgen.stat_module.total_commit_time IS 'sum of the time of a commit, in milliseconds';
COMMENT ON COLUMN dgen.stat_module.min_commit_time IS 'shortest time of a commit, in milliseconds';
COMMENT ON COLUMN dgen.stat_module.max_commit_time IS 'longest time of a commit, in milliseconds';
COMMENT ON COLUMN dgen.stat_module.mean_commit_time IS 'mean time of a commit, in milliseconds';
COMMENT ON COLUMN dgen.stat_module.stddev_commit_time IS 'standard deviation of the time of a commit, in milliseconds';
COMMENT ON COLUMN dgen.stat_module.p50_commit_time IS 'median of the time of a commit, in milliseconds; at most 6.25 percent off';
COMMENT ON COLUMN dgen.stat_module.p95_commit_time IS '95th percentile of the time of a commit, in milliseconds; at most 6.25 percent off';
COMMENT ON COLUMN dgen.stat_module.p99_commit_time IS '99th percentile of the time of a commit, in milliseconds; at most 6.25 percent off';
COMMENT ON COLUMN dgen.stat_module.stats_reset IS 'since when all this is counted; null: nothing was yet';

CREATE FUNCTION dgen.stat_server_info(
	OUT server text,
	OUT module text,
	OUT activations bigint,
	OUT activations_error bigint,
	OUT total_handler_time double precision,
	OUT mailbox bigint,
	OUT oldest_at timestamptz,
	OUT since timestamptz,
	OUT last_activity timestamptz)
RETURNS SETOF record LANGUAGE c STABLE PARALLEL UNSAFE ROWS 1000
AS 'MODULE_PATHNAME', 'dgen_stat_server_info';
COMMENT ON FUNCTION dgen.stat_server_info() IS
'source of view dgen.stat_server';

CREATE VIEW dgen.stat_server AS
	SELECT * FROM dgen.stat_server_info() ORDER BY activations DESC NULLS LAST, mailbox DESC;
COMMENT ON VIEW dgen.stat_server IS
'the busiest servers, of which memory holds 1,024 in all databases, and the hundred with the longest mailboxes; the busiest first';
COMMENT ON COLUMN dgen.stat_server.server IS 'address; null for those who may see figures only';
COMMENT ON COLUMN dgen.stat_server.module IS 'module of the server';
COMMENT ON COLUMN dgen.stat_server.activations IS 'what it has handled, at most; null: it is here for its mailbox';
COMMENT ON COLUMN dgen.stat_server.activations_error IS 'by how much activations may be too high, as the server took the place of another';
COMMENT ON COLUMN dgen.stat_server.total_handler_time IS 'milliseconds that its activations have taken since it is here';
COMMENT ON COLUMN dgen.stat_server.mailbox IS 'messages that wait for it, an estimate; 0 if it is not one of the longest';
COMMENT ON COLUMN dgen.stat_server.oldest_at IS 'when the oldest of them was sent';
COMMENT ON COLUMN dgen.stat_server.since IS 'since when it is here for its activations';
COMMENT ON COLUMN dgen.stat_server.last_activity IS 'when it has last handled something';

CREATE VIEW dgen.stat_worker AS
	SELECT pid, state, server, batch_size, busy_since, activations, batches, serialization_retries,
		cache_hits, cache_misses, kind, owner, current_database() AS database, started_at
	FROM dgen.worker_info();
COMMENT ON VIEW dgen.stat_worker IS
'worker processes of this database, and what each has done since its start; for members of their owners, and of pg_read_all_stats';
COMMENT ON COLUMN dgen.stat_worker.pid IS 'process id; null until the process has started';
COMMENT ON COLUMN dgen.stat_worker.state IS 'starting, idle, busy or leaving';
COMMENT ON COLUMN dgen.stat_worker.server IS 'server in hand, of several the first; null when idle, and for those who may not read its module';
COMMENT ON COLUMN dgen.stat_worker.batch_size IS 'activations of the batch in hand, or of the last one';
COMMENT ON COLUMN dgen.stat_worker.busy_since IS 'when its batch began; null when it has none';
COMMENT ON COLUMN dgen.stat_worker.activations IS 'messages and calls that it has handled';
COMMENT ON COLUMN dgen.stat_worker.batches IS 'batches that it has committed';
COMMENT ON COLUMN dgen.stat_worker.serialization_retries IS 'serialization failures and deadlocks that it has retried';
COMMENT ON COLUMN dgen.stat_worker.cache_hits IS 'servers whose state it had in memory when their messages came';
COMMENT ON COLUMN dgen.stat_worker.cache_misses IS 'servers that it had to read, or which had no state';
COMMENT ON COLUMN dgen.stat_worker.kind IS 'handlers; or long: effects and handle_locked';
COMMENT ON COLUMN dgen.stat_worker.owner IS 'role that it runs as: the owner of the modules that it serves';
COMMENT ON COLUMN dgen.stat_worker.database IS 'database that it works in';
COMMENT ON COLUMN dgen.stat_worker.started_at IS 'when it was started';

CREATE FUNCTION dgen.activity_info(
	OUT pid integer,
	OUT server text,
	OUT callback text,
	OUT kind text,
	OUT message_id bigint,
	OUT phase text,
	OUT since timestamptz,
	OUT caller_pid integer)
RETURNS SETOF record LANGUAGE c STABLE PARALLEL UNSAFE ROWS 10
AS 'MODULE_PATHNAME', 'dgen_activity_info';
COMMENT ON FUNCTION dgen.activity_info() IS
'what view dgen.stat_activity knows of dgen';

CREATE VIEW dgen.stat_activity AS
	SELECT a.pid, a.server, a.callback, a.kind, a.message_id, a.phase, a.since,
		clock_timestamp() - a.since AS duration, a.caller_pid, s.wait_event_type, s.wait_event,
		s.usename::text AS usename, s.application_name, s.xact_start
	FROM dgen.activity_info() a LEFT JOIN pg_catalog.pg_stat_activity s ON s.pid = a.pid
	ORDER BY a.since;
COMMENT ON VIEW dgen.stat_activity IS
'activations that run at this moment, in workers and in the transactions of clients, the longest first';
COMMENT ON COLUMN dgen.stat_activity.pid IS 'process that it runs in';
COMMENT ON COLUMN dgen.stat_activity.server IS 'its server; null for those who may see figures only';
COMMENT ON COLUMN dgen.stat_activity.callback IS 'callback that the message or call is for; or effect';
COMMENT ON COLUMN dgen.stat_activity.kind IS 'call, cast, info, request, reply, DOWN, continue, timer, timeout or effect';
COMMENT ON COLUMN dgen.stat_activity.message_id IS 'id of the message; null: a call';
COMMENT ON COLUMN dgen.stat_activity.phase IS 'running; or committing: it, or the batch that it is the last one of';
COMMENT ON COLUMN dgen.stat_activity.since IS 'when it began';
COMMENT ON COLUMN dgen.stat_activity.duration IS 'for how long it has gone on';
COMMENT ON COLUMN dgen.stat_activity.caller_pid IS 'process that waits for its reply; null: none';
COMMENT ON COLUMN dgen.stat_activity.wait_event_type IS 'what the process waits for, as in pg_stat_activity, and as the next ones';
COMMENT ON COLUMN dgen.stat_activity.wait_event IS 'name of that wait';
COMMENT ON COLUMN dgen.stat_activity.usename IS 'role of the session: of a worker the owner of the module';
COMMENT ON COLUMN dgen.stat_activity.application_name IS 'dgen worker, or the client''s name';
COMMENT ON COLUMN dgen.stat_activity.xact_start IS 'when the transaction began that it is part of';

/*
 * Counted when it is read: all rows of the three tables, each once.  OFFSET
 * keeps the filter where there is one row a module left to ask for.
 */
CREATE VIEW dgen.stat_queue WITH (security_barrier) AS
	SELECT q.module,
		CASE q.priority WHEN 1 THEN 'high' WHEN 0 THEN 'normal' ELSE 'low' END AS lane,
		q.messages - q.retrying + q.calls AS ready,
		q.retrying + q.postponed AS waiting,
		q.delayed,
		q.oldest_at,
		clock_timestamp() - q.oldest_at AS oldest_age
	FROM (
		SELECT m.module, m.priority,
			sum(m.messages)::bigint AS messages,
			sum(m.retrying)::bigint AS retrying,
			sum(m.postponed)::bigint AS postponed,
			sum(m.delayed)::bigint AS delayed,
			sum(m.calls)::bigint AS calls,
			min(m.oldest_at) AS oldest_at
		FROM (
			SELECT split_part(server, '/', 1) AS module, priority, count(*) AS messages,
				0 AS retrying, 0 AS postponed, 0 AS delayed, 0 AS calls, min(sent_at) AS oldest_at
			FROM dgen.message GROUP BY 1, 2
			UNION ALL
			SELECT split_part(w.server, '/', 1), w.priority, 0, count(*), 0, 0, 0, NULL
			FROM dgen.attempt a JOIN dgen.message w ON w.id = a.id GROUP BY 1, 2
			UNION ALL
			SELECT split_part(server, '/', 1), priority, 0, 0, count(*), 0, 0, min(sent_at)
			FROM dgen.postponed GROUP BY 1, 2
			UNION ALL
			SELECT split_part(server, '/', 1), priority, 0, 0, 0, count(*), 0, NULL
			FROM dgen.delayed GROUP BY 1, 2
			UNION ALL
			SELECT c.module, 0, 0, 0, 0, 0, count(*), min(c.sent_at)
			FROM dgen.queued_calls() c GROUP BY 1
		) m
		GROUP BY m.module, m.priority
		OFFSET 0
	) q
	WHERE dgen.may_monitor(q.module)
	ORDER BY q.module, q.priority DESC;
COMMENT ON VIEW dgen.stat_queue IS
'messages and calls that wait, by module and lane; reads every waiting row once';
COMMENT ON COLUMN dgen.stat_queue.module IS 'module of the servers that they are for';
COMMENT ON COLUMN dgen.stat_queue.lane IS 'high, normal or low';
COMMENT ON COLUMN dgen.stat_queue.ready IS 'messages and calls that only wait for their turn';
COMMENT ON COLUMN dgen.stat_queue.waiting IS 'messages that wait for their next attempt, or for their server to change';
COMMENT ON COLUMN dgen.stat_queue.delayed IS 'messages and timers that are to come later';
COMMENT ON COLUMN dgen.stat_queue.oldest_at IS 'when the oldest was sent that is ready or waits; of a timer, when it was set';
COMMENT ON COLUMN dgen.stat_queue.oldest_age IS 'for how long that has been';

CREATE VIEW dgen.stat_timers WITH (security_barrier) AS
	SELECT t.module, t.timers, t.recurring, t.timeouts, t.delayed, t.next_due_at, t.overdue,
		CASE WHEN t.overdue > 0 THEN clock_timestamp() - t.next_due_at END AS late
	FROM (
		SELECT m.module, sum(m.timers)::bigint AS timers, sum(m.recurring)::bigint AS recurring,
			sum(m.timeouts)::bigint AS timeouts, sum(m.delayed)::bigint AS delayed,
			min(m.next_due_at) AS next_due_at, sum(m.overdue)::bigint AS overdue
		FROM (
			SELECT split_part(server, '/', 1) AS module,
				count(*) FILTER (WHERE kind <> 't' AND timer IS NOT NULL) AS timers,
				0 AS recurring,
				count(*) FILTER (WHERE kind = 't') AS timeouts,
				count(*) FILTER (WHERE kind <> 't' AND timer IS NULL) AS delayed,
				min(due_at) AS next_due_at,
				count(*) FILTER (WHERE due_at < clock_timestamp()) AS overdue
			FROM dgen.delayed GROUP BY 1
			UNION ALL
			SELECT split_part(server, '/', 1), 0, count(*), 0, 0, NULL, 0
			FROM dgen.timer WHERE every IS NOT NULL GROUP BY 1
		) m
		GROUP BY m.module
		OFFSET 0
	) t
	WHERE dgen.may_monitor(t.module)
	ORDER BY t.module;
COMMENT ON VIEW dgen.stat_timers IS
'timers of each module; reads every timer once';
COMMENT ON COLUMN dgen.stat_timers.module IS 'module of the servers that they are for';
COMMENT ON COLUMN dgen.stat_timers.timers IS 'timers that have a name or recur, and wait for their time';
COMMENT ON COLUMN dgen.stat_timers.recurring IS 'timers that recur, those that are due and in a mailbox too';
COMMENT ON COLUMN dgen.stat_timers.timeouts IS 'idle timeouts that are set';
COMMENT ON COLUMN dgen.stat_timers.delayed IS 'infos that were sent to come later, once and under no name';
COMMENT ON COLUMN dgen.stat_timers.next_due_at IS 'when the first of these is due';
COMMENT ON COLUMN dgen.stat_timers.overdue IS 'how many are due, and have not been brought to their mailboxes yet';
COMMENT ON COLUMN dgen.stat_timers.late IS 'by how much the first of those is late; null: none is';

/* What keeps rows that are dead from being removed: sessions, slots, prepared transactions. */
CREATE VIEW dgen.stat_database WITH (security_barrier) AS
	SELECT
		current_database() AS database,
		current_setting('dgen.enabled')::boolean AS enabled,
		dgen.is_armed() AS adopted,
		k.pid AS keeper_pid,
		p.workers,
		p.ready,
		p.waiting_since,
		p.refused_since,
		(SELECT min(m.sent_at) FROM dgen.message m
			WHERE m.id = (SELECT min(o.id) FROM dgen.message o)) AS oldest_message_at,
		(SELECT count(*) FROM dgen.letter) AS dead_letters,
		(SELECT count(*) FROM dgen.module WHERE suspended_at IS NOT NULL) AS suspended_modules,
		t.live_rows,
		t.dead_rows,
		d.relname::text AS most_dead_table,
		d.last_autovacuum,
		h.age AS snapshot_age,
		h.since AS snapshot_since,
		h.pid AS snapshot_pid,
		h.holder AS snapshot_holder
	FROM (SELECT sum(n_live_tup)::bigint AS live_rows, sum(n_dead_tup)::bigint AS dead_rows
			FROM pg_catalog.pg_stat_all_tables WHERE schemaname = 'dgen') t
		CROSS JOIN (SELECT coalesce(sum(workers), 0)::integer AS workers, coalesce(sum(ready), 0)::integer AS ready,
				min(waiting_since) AS waiting_since, min(refused_since) AS refused_since
			FROM dgen.pool_info()) p
		LEFT JOIN LATERAL (SELECT relname, last_autovacuum FROM pg_catalog.pg_stat_all_tables
			WHERE schemaname = 'dgen' AND n_dead_tup > 0 ORDER BY n_dead_tup DESC LIMIT 1) d ON true
		LEFT JOIN LATERAL (SELECT pid FROM pg_catalog.pg_stat_activity
			WHERE backend_type = 'dgen keeper' AND datname = current_database() LIMIT 1) k ON true
		LEFT JOIN LATERAL (
			SELECT x.age, x.since, x.pid, x.holder
			FROM (
				SELECT greatest(age(backend_xid), age(backend_xmin)) AS age, xact_start AS since, pid,
					CASE WHEN application_name = '' THEN backend_type
						ELSE backend_type || ' (' || application_name || ')' END AS holder
				FROM pg_catalog.pg_stat_activity
				WHERE pid <> pg_backend_pid() AND (datname = current_database() OR backend_type = 'walsender')
				UNION ALL
				SELECT age(xmin), NULL, active_pid, 'replication slot ' || slot_name
				FROM pg_catalog.pg_replication_slots
				UNION ALL
				SELECT age(transaction), prepared, NULL, 'prepared transaction ' || gid
				FROM pg_catalog.pg_prepared_xacts WHERE database = current_database()
			) x
			WHERE x.age IS NOT NULL
			-- of those as old, who is no session comes first: sessions see what it holds, and go
			ORDER BY x.age DESC, x.pid IS NOT NULL, x.since LIMIT 1) h ON true
	WHERE dgen.may_monitor(NULL);
COMMENT ON VIEW dgen.stat_database IS
'this database as a whole, in one row; for its owner and members of pg_read_all_stats';
COMMENT ON COLUMN dgen.stat_database.database IS 'its name';
COMMENT ON COLUMN dgen.stat_database.enabled IS 'setting dgen.enabled';
COMMENT ON COLUMN dgen.stat_database.adopted IS 'dgen runs here: it is no copy that nobody has adopted';
COMMENT ON COLUMN dgen.stat_database.keeper_pid IS 'process that brings what is due; null: it does not run';
COMMENT ON COLUMN dgen.stat_database.workers IS 'workers that run or are being started';
COMMENT ON COLUMN dgen.stat_database.ready IS 'servers that wait for a worker, or for a client';
COMMENT ON COLUMN dgen.stat_database.waiting_since IS 'since when the first of them waits; null: none does';
COMMENT ON COLUMN dgen.stat_database.refused_since IS 'since when no worker could be had, as max_worker_processes are taken; null: one could';
COMMENT ON COLUMN dgen.stat_database.oldest_message_at IS 'when the first of the messages that wait was sent; null: none waits';
COMMENT ON COLUMN dgen.stat_database.dead_letters IS 'messages that were given up and are kept';
COMMENT ON COLUMN dgen.stat_database.suspended_modules IS 'modules that are suspended, by somebody or by their breaker';
COMMENT ON COLUMN dgen.stat_database.live_rows IS 'rows of the tables in schema dgen, an estimate';
COMMENT ON COLUMN dgen.stat_database.dead_rows IS 'their dead rows, an estimate';
COMMENT ON COLUMN dgen.stat_database.most_dead_table IS 'the table that has most of these; null: none has any';
COMMENT ON COLUMN dgen.stat_database.last_autovacuum IS 'when that was last vacuumed by autovacuum';
COMMENT ON COLUMN dgen.stat_database.snapshot_age IS 'transactions since the oldest one that keeps dead rows from being removed';
COMMENT ON COLUMN dgen.stat_database.snapshot_since IS 'when that began; null: of a replication slot nobody knows';
COMMENT ON COLUMN dgen.stat_database.snapshot_pid IS 'process that holds it; null: none';
COMMENT ON COLUMN dgen.stat_database.snapshot_holder IS 'who holds it: a session, a replication slot or a prepared transaction';
