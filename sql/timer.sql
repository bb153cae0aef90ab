/* ------------------------------------------------------------------- timers */

CREATE FUNCTION dgen.timeout(after interval)
	RETURNS void LANGUAGE C
	AS 'MODULE_PATHNAME', 'dgen_timeout';
COMMENT ON FUNCTION dgen.timeout(after interval) IS
	'directive: if no message is handled for so long, handle_info gets {"info": "timeout"}; 0: once the mailbox is drained';

