
/* ------------------------------------------------------------------ servers
 *
 * For members of a module's owner or of its operators; dgen.state also for
 * its readers.  All of these join the caller's transaction, and those that
 * change a server wait for the activation that is running.
 */

CREATE FUNCTION dgen.start(server text, args jsonb DEFAULT NULL, if_exists text DEFAULT 'error')
RETURNS bigint LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'dgen_start';
COMMENT ON FUNCTION dgen.start(text, jsonb, text) IS
'start a server: run init here, as the module''s owner; returns the incarnation. if_exists => ''return'' accepts one that runs already';

CREATE FUNCTION dgen.stop(server text, reason text DEFAULT 'normal')
RETURNS boolean LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'dgen_stop';
COMMENT ON FUNCTION dgen.stop(text, text) IS
'end a server''s incarnation; its state is kept or not as the module''s on_stop says, its messages are kept; false if none was alive any more. There must have been one';

CREATE FUNCTION dgen.kill(server text, reason text DEFAULT 'killed')
RETURNS boolean LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'dgen_kill';
COMMENT ON FUNCTION dgen.kill(text, text) IS
'end a server''s incarnation and drop its state; its messages are kept; false if none was alive any more. There must have been one';

CREATE FUNCTION dgen.delete(server text, tombstone interval DEFAULT NULL)
RETURNS boolean LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'dgen_delete';
COMMENT ON FUNCTION dgen.delete(text, interval) IS
'erase a server with its state, messages and dead letters; sends to it are refused while its tombstone stands. A message whose sender has not committed yet is not seen, and starts the server anew. False if there was nothing';

CREATE FUNCTION dgen.suspend(
	server text DEFAULT NULL,
	module text DEFAULT NULL,
	everything boolean DEFAULT NULL,
	reason text DEFAULT NULL)
RETURNS void LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'dgen_suspend';
COMMENT ON FUNCTION dgen.suspend(text, text, boolean, text) IS
'let a server, all servers of a module, or (for the database''s owner) all modules run nothing until dgen.resume(); messages wait. An unknown server is created suspended. Activations of a module that are running end first';

CREATE FUNCTION dgen.resume(
	server text DEFAULT NULL,
	module text DEFAULT NULL,
	everything boolean DEFAULT NULL)
RETURNS void LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'dgen_resume';
COMMENT ON FUNCTION dgen.resume(text, text, boolean) IS
'undo dgen.suspend(). What was suspended by itself stays so when something larger is resumed: a server when its module is';

CREATE FUNCTION dgen.state(server text)
RETURNS jsonb LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'dgen_state';
COMMENT ON FUNCTION dgen.state(text) IS
'the state of a server, raw, as the statement''s snapshot sees it; of a stopped one the last, if it was kept';

CREATE FUNCTION dgen.status(server text)
RETURNS jsonb LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'dgen_status';
COMMENT ON FUNCTION dgen.status(text) IS
'all that is to be known of a server: its row, the state as format_status shows it, how much waits for it, and who has it in hand';

CREATE FUNCTION dgen.replace_state(server text, state jsonb, expected_version bigint DEFAULT NULL)
RETURNS bigint LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'dgen_replace_state';
COMMENT ON FUNCTION dgen.replace_state(text, jsonb, bigint) IS
'give a server that runs another state, which validate must accept; returns its version. With expected_version, only if that is the present one';

CREATE FUNCTION dgen.abort(server text)
RETURNS boolean LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'dgen_abort';
COMMENT ON FUNCTION dgen.abort(text) IS
'cancel what a worker does for a server now, a handler, handle_locked or an effect; a message is tried again like one that failed, a caller gets OT020. False if nothing of it is running';

CREATE FUNCTION dgen.release(server text)
RETURNS boolean LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'dgen_release';
COMMENT ON FUNCTION dgen.release(text) IS
'end the lock of a server whose work is not done: its message waits again, a caller is told, and the late result is refused. False if the server is not locked';

/* ------------------------------------------------------------- dead letters */

CREATE FUNCTION dgen.requeue(id bigint, message jsonb DEFAULT NULL)
RETURNS boolean LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'dgen_requeue';
COMMENT ON FUNCTION dgen.requeue(bigint, jsonb) IS
'put a dead letter back to its old place in the mailbox, edited if a message is given; its attempts start anew. False if there is no such letter';

CREATE FUNCTION dgen.requeue_all(
	server text DEFAULT NULL,
	module text DEFAULT NULL,
	ids bigint[] DEFAULT NULL,
	sqlstate text DEFAULT NULL)
RETURNS bigint LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'dgen_requeue_all';
COMMENT ON FUNCTION dgen.requeue_all(text, text, bigint[], text) IS
'put all dead letters of a server or of a module, or those with these ids, back to their old places; with sqlstate, those that failed so; returns how many';

CREATE FUNCTION dgen.discard(id bigint)
RETURNS boolean LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'dgen_discard';
COMMENT ON FUNCTION dgen.discard(bigint) IS
'delete a dead letter, or a message that waits, as an operator; who waits for the reply to a request gets an error. False if there is none, or it was handled';

CREATE FUNCTION dgen.purge(module text, older_than interval DEFAULT NULL)
RETURNS bigint LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'dgen_purge';
COMMENT ON FUNCTION dgen.purge(text, interval) IS
'delete the dead letters of a module, or those that failed so long ago; returns how many';
