/* -------------------------------------------------------------- supervisors
 *
 * A tree belongs to the role that made it, which must be allowed to operate
 * every module in it; its members do the rest.  All of these join the caller's
 * transaction.
 */

CREATE FUNCTION dgen.supervise(name text, tree jsonb, if_exists text DEFAULT 'error')
RETURNS boolean LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'dgen_supervise';
COMMENT ON FUNCTION dgen.supervise(text, jsonb, text) IS
'make a supervision tree from one value, and start its servers left to right; if_exists is error, return (then false) or replace: servers that are in both trees go on';

CREATE FUNCTION dgen.stop_supervisor(name text, reason text DEFAULT 'shutdown')
RETURNS boolean LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'dgen_stop_supervisor';
COMMENT ON FUNCTION dgen.stop_supervisor(text, text) IS
'stop the servers of a tree right to left, and forget the tree; false if it was not running';

CREATE FUNCTION dgen.restart_supervisor(name text)
RETURNS boolean LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'dgen_restart_supervisor';
COMMENT ON FUNCTION dgen.restart_supervisor(text) IS
'start a tree again that has failed; false if it runs';

CREATE FUNCTION dgen.start_child(supervisor text, child jsonb)
RETURNS text LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'dgen_start_child';
COMMENT ON FUNCTION dgen.start_child(text, jsonb) IS
'add a child, a server or a supervisor, behind the others of a supervisor, and start it; returns its id';

CREATE FUNCTION dgen.restart_child(supervisor text, id text)
RETURNS void LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'dgen_restart_child';
COMMENT ON FUNCTION dgen.restart_child(text, text) IS
'start a child that is down';

CREATE FUNCTION dgen.terminate_child(supervisor text, id text)
RETURNS boolean LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'dgen_terminate_child';
COMMENT ON FUNCTION dgen.terminate_child(text, text) IS
'stop a child, which stays down until dgen.restart_child(); false if it was down';

CREATE FUNCTION dgen.delete_child(supervisor text, id text)
RETURNS void LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'dgen_delete_child';
COMMENT ON FUNCTION dgen.delete_child(text, text) IS
'take a child that is down out of its tree; its server is like any other then';

CREATE FUNCTION dgen.may_supervise(owner text)
RETURNS boolean LANGUAGE c STABLE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'dgen_may_supervise';
COMMENT ON FUNCTION dgen.may_supervise(text) IS
'is the current user a member of the role that a supervisor belongs to?';

CREATE FUNCTION dgen.check_supervisor(name text)
RETURNS boolean LANGUAGE c STABLE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'dgen_check_supervisor';
COMMENT ON FUNCTION dgen.check_supervisor(text) IS
'true, or an error if there is no such supervisor, or it is not the current user''s to look at';

CREATE VIEW dgen.supervisors WITH (security_barrier) AS
	SELECT
		s.name,
		s.owner,
		s.status,
		s.strategy,
		s.intensity,
		s.period,
		(SELECT count(*) FROM dgen.child c WHERE c.supervisor = s.name) AS children,
		(SELECT count(*) FROM unnest(s.restarts) r(at) WHERE r.at > clock_timestamp() - s.period) AS restarts,
		s.started_at,
		s.reason
	FROM dgen.supervisor s
	WHERE dgen.may_supervise(s.owner);
COMMENT ON VIEW dgen.supervisors IS
'supervisors of roles that the current user is a member of';
COMMENT ON COLUMN dgen.supervisors.name IS 'name; of a nested one its path, the name of the one above, / and its id there';
COMMENT ON COLUMN dgen.supervisors.owner IS 'role that made it';
COMMENT ON COLUMN dgen.supervisors.status IS 'running; failed: more restarts than its intensity allows; stopped: by the one above it, or an operator';
COMMENT ON COLUMN dgen.supervisors.strategy IS 'one_for_one, one_for_all or rest_for_one';
COMMENT ON COLUMN dgen.supervisors.intensity IS 'restarts that it allows in a period';
COMMENT ON COLUMN dgen.supervisors.period IS 'in which they are counted';
COMMENT ON COLUMN dgen.supervisors.children IS 'how many children it has, those that are down included';
COMMENT ON COLUMN dgen.supervisors.restarts IS 'restarts in the period that ends now';
COMMENT ON COLUMN dgen.supervisors.started_at IS 'when it was started';
COMMENT ON COLUMN dgen.supervisors.reason IS 'why it failed or was stopped';

CREATE VIEW dgen.children WITH (security_barrier) AS
	SELECT
		c.supervisor,
		row_number() OVER (PARTITION BY c.supervisor ORDER BY c.position)::integer AS number,
		c.id,
		CASE WHEN c.server IS NULL THEN 'supervisor' ELSE 'server' END AS type,
		c.server,
		CASE WHEN c.server IS NULL THEN
				(SELECT n.status FROM dgen.supervisor n WHERE n.name = c.supervisor || '/' || c.id)
			WHEN s.status = 'a' THEN 'running'
			WHEN s.continue_id IS NOT NULL THEN 'restarting'
			WHEN c.terminated THEN 'terminated'
			WHEN p.status <> 'running' THEN 'stopped'
			ELSE 'exited' END AS status,
		c.restart,
		CASE WHEN c.server IS NOT NULL THEN c.state END AS state,
		c.restarts,
		c.restarted_at,
		c.reason
	FROM dgen.child c
		JOIN dgen.supervisor p ON p.name = c.supervisor
		LEFT JOIN dgen.server s ON s.server = c.server
	WHERE dgen.may_supervise(p.owner);
COMMENT ON VIEW dgen.children IS
'children of the supervisors in dgen.supervisors';
COMMENT ON COLUMN dgen.children.supervisor IS 'whose child it is';
COMMENT ON COLUMN dgen.children.number IS 'its place in the order of start';
COMMENT ON COLUMN dgen.children.id IS 'id of the child, which only this supervisor''s children must not share';
COMMENT ON COLUMN dgen.children.type IS 'server or supervisor';
COMMENT ON COLUMN dgen.children.server IS 'address; null: a supervisor, named supervisor/id';
COMMENT ON COLUMN dgen.children.status IS 'running; restarting: it has ended and is about to be restarted; exited: a transient one that ended in order; terminated: by an operator; stopped: with its supervisor; of a supervisor as in dgen.supervisors';
COMMENT ON COLUMN dgen.children.restart IS 'permanent, transient or temporary';
COMMENT ON COLUMN dgen.children.state IS 'what a restart begins with: keep, init or last_good';
COMMENT ON COLUMN dgen.children.restarts IS 'how often it was restarted';
COMMENT ON COLUMN dgen.children.restarted_at IS 'when it was last';
COMMENT ON COLUMN dgen.children.reason IS 'and why: the error or exit reason; shutdown where another child''s was the reason';

CREATE FUNCTION dgen.which_children(supervisor text)
RETURNS TABLE (id text, type text, server text, status text, restart text)
LANGUAGE sql STABLE PARALLEL UNSAFE
BEGIN ATOMIC
	SELECT c.id, c.type, c.server, c.status, c.restart
	FROM dgen.children c
	WHERE dgen.check_supervisor(which_children.supervisor) AND c.supervisor = coalesce(which_children.supervisor, '')
	ORDER BY c.number;
END;
COMMENT ON FUNCTION dgen.which_children(text) IS
'the children of a supervisor in the order of start';

CREATE FUNCTION dgen.count_children(supervisor text, OUT specs bigint, OUT active bigint,
	OUT supervisors bigint, OUT workers bigint)
LANGUAGE sql STABLE PARALLEL UNSAFE
BEGIN ATOMIC
	SELECT count(*), count(*) FILTER (WHERE c.status = 'running'),
		count(*) FILTER (WHERE c.type = 'supervisor'), count(*) FILTER (WHERE c.type = 'server')
	FROM dgen.which_children(count_children.supervisor) c;
END;
COMMENT ON FUNCTION dgen.count_children(text) IS
'how many children a supervisor has, how many of them run, and how many are supervisors and servers';
