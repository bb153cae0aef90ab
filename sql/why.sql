
/* ---------------------------------------------------------------------- why */

CREATE FUNCTION dgen.why(server text DEFAULT NULL, pid integer DEFAULT NULL)
RETURNS SETOF text LANGUAGE c VOLATILE PARALLEL UNSAFE ROWS 5
AS 'MODULE_PATHNAME', 'dgen_why';
COMMENT ON FUNCTION dgen.why(text, integer) IS
'why a server, or a process, goes on or does not, in sentences, each with what mends that';
