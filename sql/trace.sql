
/* -------------------------------------------------------------------- traces
 *
 * What servers do, activation by activation, for as long as somebody wants to
 * see it.
 */

CREATE FUNCTION dgen.trace(
	server text DEFAULT NULL,
	module text DEFAULT NULL,
	max_rows integer DEFAULT 10000,
	duration interval DEFAULT '10 min')
RETURNS timestamptz LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'dgen_trace';
COMMENT ON FUNCTION dgen.trace(text, text, integer, interval) IS
'write each activation of a server, or of all servers of a module, into dgen.trace_log from the commit on, the last max_rows of them, until duration has passed; returns when that is. A trace of the same begins anew';

CREATE FUNCTION dgen.untrace(server text DEFAULT NULL, module text DEFAULT NULL)
RETURNS boolean LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'dgen_untrace';
COMMENT ON FUNCTION dgen.untrace(text, text) IS
'end a trace before its time; its log is kept for a day. False if there was none of this very server or module';

CREATE VIEW dgen.traces WITH (security_barrier) AS
	SELECT
		t.id,
		split_part(t.target, '/', 1) AS module,
		CASE WHEN strpos(t.target, '/') < length(t.target) THEN t.target END AS server,
		t.ends_at > clock_timestamp() AS running,
		t.started_at,
		t.started_by,
		t.ends_at,
		t.keep_until,
		t.max_rows
	FROM dgen.trace t
	WHERE dgen.may_read(t.target);
COMMENT ON VIEW dgen.traces IS
'traces that are running, or whose log is still kept; of modules that the current user may read';
COMMENT ON COLUMN dgen.traces.id IS 'id, in dgen.trace_log as trace';
COMMENT ON COLUMN dgen.traces.module IS 'module that is traced';
COMMENT ON COLUMN dgen.traces.server IS 'server that is traced; null: all of the module';
COMMENT ON COLUMN dgen.traces.running IS 'is it not yet ended?';
COMMENT ON COLUMN dgen.traces.started_at IS 'when it was started';
COMMENT ON COLUMN dgen.traces.started_by IS 'role that started it';
COMMENT ON COLUMN dgen.traces.ends_at IS 'when it ends by itself, or was ended';
COMMENT ON COLUMN dgen.traces.keep_until IS 'when its log is deleted';
COMMENT ON COLUMN dgen.traces.max_rows IS 'rows that its log may have; then the oldest go';

CREATE VIEW dgen.trace_log WITH (security_barrier) AS
	SELECT
		e.trace,
		e.number,
		e.at,
		e.server,
		e.kind,
		dgen.masked_message(e.server, e.message) AS message,
		e.message_size,
		e.sender,
		e.sender_role,
		e.old_version,
		e.new_version,
		e.replied,
		e.exit_reason,
		e.error,
		make_interval(secs => e.duration / 1e6) AS duration,
		e.pid
	FROM dgen.trace_entry e
	WHERE dgen.may_read(e.server);
COMMENT ON VIEW dgen.trace_log IS
'activations that were traced; of modules that the current user may read';
COMMENT ON COLUMN dgen.trace_log.trace IS 'trace that it was written for, see dgen.traces';
COMMENT ON COLUMN dgen.trace_log.number IS 'grows with each activation of the trace; those that were undone leave gaps';
COMMENT ON COLUMN dgen.trace_log.at IS 'when the activation began';
COMMENT ON COLUMN dgen.trace_log.server IS 'address of the server';
COMMENT ON COLUMN dgen.trace_log.kind IS 'kind of the message, as in dgen.messages';
COMMENT ON COLUMN dgen.trace_log.message IS 'the message or request, as the module''s format_message shows it; null if it has more than 8 kB';
COMMENT ON COLUMN dgen.trace_log.message_size IS 'size of the message in bytes';
COMMENT ON COLUMN dgen.trace_log.sender IS 'server or session that sent it';
COMMENT ON COLUMN dgen.trace_log.sender_role IS 'role that sent it';
COMMENT ON COLUMN dgen.trace_log.old_version IS 'version of the state before; null of what failed, and for ephemeral servers';
COMMENT ON COLUMN dgen.trace_log.new_version IS 'version of the state behind it; activations of one transaction share one';
COMMENT ON COLUMN dgen.trace_log.replied IS 'a call or request that was answered at once';
COMMENT ON COLUMN dgen.trace_log.exit_reason IS 'reason with which the activation ended its server';
COMMENT ON COLUMN dgen.trace_log.error IS 'why it failed; null: it did not, and was committed';
COMMENT ON COLUMN dgen.trace_log.duration IS 'how long it took, its commit not included; null if that is not known';
COMMENT ON COLUMN dgen.trace_log.pid IS 'process that it ran in';
