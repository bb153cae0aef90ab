/* ----------------------------------------------------------------- requests
 *
 * What became of a request, or of a server's state.  None of these joins the
 * caller's transaction, but for what receive_response takes back.
 */

CREATE FUNCTION dgen.wait_response(request_id bigint, timeout interval DEFAULT '5 s')
RETURNS jsonb LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'dgen_wait_response';
COMMENT ON FUNCTION dgen.wait_response(bigint, interval) IS
'the reply to a request, which is waited for; raises the error that the request ended with, or OT001 at the timeout, of 5 s at most: the request remains, and can be waited for again';

CREATE FUNCTION dgen.receive_response(request_id bigint, timeout interval DEFAULT '5 s')
RETURNS jsonb LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'dgen_receive_response';
COMMENT ON FUNCTION dgen.receive_response(bigint, interval) IS
'like wait_response, but at the timeout the request is taken back when this transaction commits, and the result is null (a reply of null is JSON null); raises OT002 if its handler has begun';

CREATE FUNCTION dgen.check_response(request_id bigint)
RETURNS jsonb LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'dgen_check_response';
COMMENT ON FUNCTION dgen.check_response(bigint) IS
'the reply to a request, null if there is none yet (a reply of null is JSON null); raises the error that the request ended with';

CREATE FUNCTION dgen.wait_any(request_ids bigint[], timeout interval DEFAULT '5 s')
RETURNS bigint LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'dgen_wait_any';
COMMENT ON FUNCTION dgen.wait_any(bigint[], interval) IS
'waits until one of the requests has ended, with a reply or an error, and returns its id; null at the timeout, of 5 s at most';

CREATE FUNCTION dgen.wait_all(request_ids bigint[], timeout interval DEFAULT '5 s')
RETURNS TABLE(request_id bigint, reply jsonb, error jsonb)
LANGUAGE c VOLATILE PARALLEL UNSAFE ROWS 10
AS 'MODULE_PATHNAME', 'dgen_wait_all';
COMMENT ON FUNCTION dgen.wait_all(bigint[], interval) IS
'waits until all of the requests have ended, or for the timeout, of 5 s at most; reply and error are null for those that have not';

CREATE FUNCTION dgen.reply_of(server text, request_key text)
RETURNS jsonb LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'dgen_reply_of';
COMMENT ON FUNCTION dgen.reply_of(text, text) IS
'the reply that is kept for calls to the server with this request_key; null if there is none';

CREATE FUNCTION dgen.message_status(id bigint)
RETURNS text LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'dgen_message_status';
COMMENT ON FUNCTION dgen.message_status(bigint) IS
'where a message is: sending (in this transaction), delayed, ready, retrying, dead (a dead letter), or ended; a request may also be pending (handled, reply to come), replied or failed; null for what was never sent, or not by or to you';

CREATE FUNCTION dgen.wait_state(
	server text,
	after_version bigint DEFAULT NULL,
	timeout interval DEFAULT '5 s')
RETURNS TABLE(version bigint, state jsonb)
LANGUAGE c VOLATILE PARALLEL UNSAFE ROWS 1
AS 'MODULE_PATHNAME', 'dgen_wait_state';
COMMENT ON FUNCTION dgen.wait_state(text, bigint, interval) IS
'waits until the server''s version is above after_version, or without it until the server has a state, and returns both; no row at the timeout, of 5 s at most';

CREATE PROCEDURE dgen.wait_change(
	server text,
	INOUT version bigint DEFAULT NULL,
	timeout interval DEFAULT NULL,
	INOUT state jsonb DEFAULT NULL)
LANGUAGE c
AS 'MODULE_PATHNAME', 'dgen_wait_change';
COMMENT ON PROCEDURE dgen.wait_change(text, bigint, interval, jsonb) IS
'waits, without holding a snapshot, until the server has another version than the given one (null: until it has any), and returns version and state; both null: it was deleted. At the timeout the version given, and no state. What is passed as state is ignored. Not inside a transaction block';
