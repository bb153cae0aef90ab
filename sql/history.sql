
/* ------------------------------------------------------------------ history
 *
 * The versions of a state, for modules with option history.  What they show is
 * raw, and needs the right that dgen.state() needs; dgen.rollback() is the
 * operators', like dgen.replace_state().
 */

CREATE FUNCTION dgen.history(
	server text,
	after_version bigint DEFAULT NULL,
	max integer DEFAULT 100,
	OUT version bigint,
	OUT at timestamptz,
	OUT incarnation bigint,
	OUT vsn text,
	OUT kind text,
	OUT message_id bigint,
	OUT sender text,
	OUT sender_role text,
	OUT context jsonb,
	OUT from_version bigint,
	OUT good boolean,
	OUT size bigint,
	OUT patch jsonb)
RETURNS SETOF record LANGUAGE c VOLATILE PARALLEL UNSAFE ROWS 100
AS 'MODULE_PATHNAME', 'dgen_history';
COMMENT ON FUNCTION dgen.history(text, bigint, integer) IS
'the versions of a server''s state that are kept, with who made them and what they changed, the oldest first: those after a version, or else the newest; at most so many';

CREATE FUNCTION dgen.state_at(server text, version bigint DEFAULT NULL, at timestamptz DEFAULT NULL)
RETURNS jsonb LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'dgen_state_at';
COMMENT ON FUNCTION dgen.state_at(text, bigint, timestamptz) IS
'the state of a server, raw, as of a version or of a time that its module''s history reaches; null where it had none';

CREATE FUNCTION dgen.diff(server text, from_version bigint, to_version bigint DEFAULT NULL)
RETURNS jsonb LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'dgen_diff';
COMMENT ON FUNCTION dgen.diff(text, bigint, bigint) IS
'the patch, as of dgen.jsonb_diff(), that leads from one version of a server''s state to another, by default the present one; null if they are the same';

CREATE FUNCTION dgen.rollback(server text, version bigint DEFAULT NULL, expected_version bigint DEFAULT NULL)
RETURNS bigint LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'dgen_rollback';
COMMENT ON FUNCTION dgen.rollback(text, bigint, bigint) IS
'give a server that runs the state of an older version, by default of the last good one, as a new version, which is returned. With expected_version, only if that is the present one';
