/* --------------------------------------------------------------- lifecycle
 *
 * Which database this is, and whether dgen may run in it.
 */

CREATE FUNCTION dgen.adopt() RETURNS void
	LANGUAGE c VOLATILE PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'dgen_adopt';
COMMENT ON FUNCTION dgen.adopt() IS
	'makes this database, a copy of another, run the servers that are in it';

CREATE FUNCTION dgen.is_armed() RETURNS boolean
	LANGUAGE c STABLE PARALLEL SAFE
	AS 'MODULE_PATHNAME', 'dgen_is_armed';
COMMENT ON FUNCTION dgen.is_armed() IS
	'tells whether servers may run in this database: it is no copy of another, and a module was made in it';
