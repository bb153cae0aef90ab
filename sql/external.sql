/* ---------------------------------------------------------------- external
 *
 * The work of external modules, for members of their owner or of workers.
 */

CREATE FUNCTION dgen.take_work(
	module text,
	max integer DEFAULT 1,
	lease interval DEFAULT '1 min',
	OUT server text,
	OUT token text,
	OUT kind text,
	OUT message jsonb,
	OUT state jsonb,
	OUT sender text,
	OUT sender_role text,
	OUT context jsonb,
	OUT attempts integer,
	OUT message_id bigint)
RETURNS SETOF record LANGUAGE c VOLATILE PARALLEL UNSAFE ROWS 1
AS 'MODULE_PATHNAME', 'dgen_take_work';
COMMENT ON FUNCTION dgen.take_work(text, integer, interval) IS
'take messages of an external module, at most one of a server, each for the time of a lease';

CREATE FUNCTION dgen.renew_work(token text, lease interval DEFAULT '1 min')
RETURNS timestamptz LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'dgen_renew_work';
COMMENT ON FUNCTION dgen.renew_work(text, interval) IS
'have the lease of a message end later; returns when';

CREATE FUNCTION dgen.finish_work(token text, state jsonb DEFAULT NULL, reply jsonb DEFAULT NULL)
RETURNS void LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'dgen_finish_work';
COMMENT ON FUNCTION dgen.finish_work(text, jsonb, jsonb) IS
'end a message that was taken: with the server''s new state, if not null, and the reply to a call or request';

CREATE FUNCTION dgen.fail_work(token text, error text DEFAULT NULL, retry_after interval DEFAULT NULL)
RETURNS void LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'dgen_fail_work';
COMMENT ON FUNCTION dgen.fail_work(text, text, interval) IS
'give back a message that was taken: it has failed, and is tried again as one of a handler is; with retry_after, then, and without counting an attempt';

CREATE PROCEDURE dgen.wait_work(module text, timeout interval DEFAULT NULL)
LANGUAGE c
AS 'MODULE_PATHNAME', 'dgen_wait_work';
COMMENT ON PROCEDURE dgen.wait_work(text, interval) IS
'wait, without a snapshot, until there may be work to take, or the timeout';
