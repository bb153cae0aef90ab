
/* ----------------------------------------------------------------- transfer
 *
 * Servers as documents, for operators: out of a database and into one, and
 * what a message would do.
 */

CREATE FUNCTION dgen.export(server text, with_mailbox boolean DEFAULT true, with_history boolean DEFAULT false)
RETURNS jsonb LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'dgen_export';
COMMENT ON FUNCTION dgen.export(text, boolean, boolean) IS
'a server as one document: its state, names, and messages with timers and dead letters; for dgen.import()';

CREATE FUNCTION dgen.import(
	server text,
	document jsonb,
	if_exists text DEFAULT 'error',
	with_mailbox boolean DEFAULT true,
	with_names boolean DEFAULT true,
	reason text DEFAULT NULL)
RETURNS bigint LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'dgen_import';
COMMENT ON FUNCTION dgen.import(text, jsonb, text, boolean, boolean, text) IS
'make a server of a document of dgen.export(), as a new incarnation, which is returned. if_exists => ''replace'' deletes what there is of it';

CREATE FUNCTION dgen.clone(source text, target text, with_mailbox boolean DEFAULT false, reason text DEFAULT NULL)
RETURNS bigint LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'dgen_clone';
COMMENT ON FUNCTION dgen.clone(text, text, boolean, text) IS
'make a new server of the same module with the state of another one, and on request its messages; returns its incarnation';

CREATE FUNCTION dgen.dry_run(
	server text DEFAULT NULL,
	message jsonb DEFAULT NULL,
	kind text DEFAULT 'call',
	letter bigint DEFAULT NULL)
RETURNS jsonb LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'dgen_dry_run';
COMMENT ON FUNCTION dgen.dry_run(text, jsonb, text, bigint) IS
'what a server would do with a message, or with a dead letter that is requeued: reply, state, messages and timers that it sets, or the error; all of it is undone';
