
/* -------------------------------------------------------------------- audit
 *
 * What operators have changed by hand, and undoing it.  The values in the view
 * are masked like those of the other views.
 */

CREATE FUNCTION dgen.undo(id bigint, force boolean DEFAULT false, reason text DEFAULT NULL)
RETURNS bigint LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'dgen_undo';
COMMENT ON FUNCTION dgen.undo(bigint, boolean, text) IS
'undo a change of dgen.audit_log: of a state, a discarded message, a server that was deleted, stopped, killed or imported, a suspension. Refused if the server has moved on since, unless forced. Returns the id of its own row there';

CREATE VIEW dgen.audit_log WITH (security_barrier) AS
	SELECT
		a.id,
		a.at,
		a.action,
		split_part(a.server, '/', 1) AS module,
		CASE WHEN strpos(a.server, '/') < length(a.server) THEN a.server END AS server,
		a.session_role,
		a."current_role",
		a.application_name,
		a.client,
		a.sender,
		a.reason,
		a.incarnation,
		a.old_version,
		a.new_version,
		a.message_id,
		a.affected,
		a.undoes,
		CASE a.what
			WHEN 's' THEN dgen.masked_state(a.server, a.before, 0, 0)
			WHEN 'd' THEN dgen.masked_state(a.server, a.before -> 'state', 0, 0)
			WHEN 'm' THEN dgen.masked_message(a.server, a.before -> 'message')
			ELSE a.before END AS before,
		CASE a.what
			WHEN 's' THEN dgen.masked_state(a.server, a.after, 0, 0)
			WHEN 'd' THEN dgen.masked_state(a.server, a.after -> 'state', 0, 0)
			WHEN 'm' THEN dgen.masked_message(a.server, a.after -> 'message')
			ELSE a.after END AS after
	FROM dgen.audit a
	WHERE dgen.may_read(a.server);
COMMENT ON VIEW dgen.audit_log IS
'what was changed by hand, by whom, and what there was before; of modules that the current user may read';
COMMENT ON COLUMN dgen.audit_log.id IS 'id, for dgen.undo()';
COMMENT ON COLUMN dgen.audit_log.at IS 'when';
COMMENT ON COLUMN dgen.audit_log.action IS 'the function that made the change';
COMMENT ON COLUMN dgen.audit_log.module IS 'module of the server, or the one that was changed';
COMMENT ON COLUMN dgen.audit_log.server IS 'address of the server; null: all of the module';
COMMENT ON COLUMN dgen.audit_log.session_role IS 'role of the session, as session_user';
COMMENT ON COLUMN dgen.audit_log."current_role" IS 'role that it was then, as current_user';
COMMENT ON COLUMN dgen.audit_log.application_name IS 'application_name of the session';
COMMENT ON COLUMN dgen.audit_log.client IS 'address of the client; null on a unix socket, and for a worker';
COMMENT ON COLUMN dgen.audit_log.sender IS 'the session''s id, as %c in log_line_prefix; or the server whose handler did it';
COMMENT ON COLUMN dgen.audit_log.reason IS 'the reason, where one was given';
COMMENT ON COLUMN dgen.audit_log.incarnation IS 'incarnation of the server after the change';
COMMENT ON COLUMN dgen.audit_log.old_version IS 'version of the state before';
COMMENT ON COLUMN dgen.audit_log.new_version IS 'version of the state after it';
COMMENT ON COLUMN dgen.audit_log.message_id IS 'the message that it was about';
COMMENT ON COLUMN dgen.audit_log.affected IS 'how many messages it was about';
COMMENT ON COLUMN dgen.audit_log.undoes IS 'the row that this one undoes';
COMMENT ON COLUMN dgen.audit_log.before IS 'state, message or suspension before the change, masked as in the other views; null if there was none, or it was larger than dgen.audit_max_size';
COMMENT ON COLUMN dgen.audit_log.after IS 'the same after it';
