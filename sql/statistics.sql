
/* ---------------------------------------------------------------- statistics */

CREATE FUNCTION dgen.statistics(
	server text,
	enable boolean DEFAULT NULL,
	OUT since timestamptz,
	OUT last_activity timestamptz,
	OUT messages_in bigint,
	OUT calls bigint,
	OUT casts bigint,
	OUT infos bigint,
	OUT messages_out bigint,
	OUT errors bigint,
	OUT total_time double precision,
	OUT max_time double precision)
RETURNS record LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'dgen_statistics';
COMMENT ON FUNCTION dgen.statistics(text, boolean) IS
'what a server has handled since it was asked to count: true begins, false ends and returns the last counts, null reads them. Null where it does not count. Times in milliseconds';
