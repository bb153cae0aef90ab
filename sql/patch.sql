/* ----------------------------------------------------------------- patches
 *
 * Differences between states, as jsonb.  A patch says of a value:
 *
 *	scalar			it becomes this
 *	[v]				it becomes v
 *	{k: patch}		an object: its members are patched; [] removes one
 *	[op, op, ...]	an array: n elements as they are, go to element -n, a
 *					patched element, or a new one ([v], string, boolean, null)
 */

CREATE FUNCTION dgen.jsonb_diff(base jsonb, new jsonb)
	RETURNS jsonb LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE
	AS 'MODULE_PATHNAME', 'dgen_sql_jsonb_diff';
COMMENT ON FUNCTION dgen.jsonb_diff(base jsonb, new jsonb) IS
	'patch that makes new of base; null if they are the same to the byte';

CREATE FUNCTION dgen.jsonb_merge(base jsonb, patch jsonb)
	RETURNS jsonb LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE
	AS 'MODULE_PATHNAME', 'dgen_sql_jsonb_merge';
COMMENT ON FUNCTION dgen.jsonb_merge(base jsonb, patch jsonb) IS
	'document that a patch makes of base';

CREATE FUNCTION dgen.jsonb_compose(p1 jsonb, p2 jsonb)
	RETURNS jsonb LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE
	AS 'MODULE_PATHNAME', 'dgen_sql_jsonb_compose';
COMMENT ON FUNCTION dgen.jsonb_compose(p1 jsonb, p2 jsonb) IS
	'one patch that does what p1 and then p2 do';

