/* --------------------------------------------- monitors, names and groups */

CREATE FUNCTION dgen.monitor(server text)
RETURNS bigint LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'dgen_monitor';
COMMENT ON FUNCTION dgen.monitor(text) IS
'in a handler: watch a server; when its incarnation ends, this one gets an info {"info": "DOWN", "ref", "server", "reason"}, at once with reason noproc if none is alive. Returns the ref';

CREATE FUNCTION dgen.demonitor(ref bigint, flush boolean DEFAULT false)
RETURNS boolean LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'dgen_demonitor';
COMMENT ON FUNCTION dgen.demonitor(bigint, boolean) IS
'in a handler: end a monitor of this server; false if there is none, or its DOWN was sent, which flush takes out of the mailbox';

CREATE FUNCTION dgen.register(
	name text,
	server text DEFAULT dgen.self(),
	metadata jsonb DEFAULT NULL,
	permanent boolean DEFAULT false)
RETURNS boolean LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'dgen_register';
COMMENT ON FUNCTION dgen.register(text, text, jsonb, boolean) IS
'give a server a name, which then stands for its address wherever one is taken; it goes with the server''s incarnation, or, permanent, when the server is deleted. False if the server has it already';

CREATE FUNCTION dgen.unregister(name text)
RETURNS boolean LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'dgen_unregister';
COMMENT ON FUNCTION dgen.unregister(text) IS
'take a name back; false if nobody has it';

CREATE FUNCTION dgen.whereis(name text)
RETURNS text LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'dgen_whereis';
COMMENT ON FUNCTION dgen.whereis(text) IS
'address that a name stands for now; null if nobody has it';

CREATE FUNCTION dgen.set_metadata(name text, metadata jsonb)
RETURNS void LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'dgen_set_metadata';
COMMENT ON FUNCTION dgen.set_metadata(text, jsonb) IS
'replace the metadata of a name: a JSON object, or null';

CREATE FUNCTION dgen.join_group(
	name text,
	server text DEFAULT dgen.self(),
	permanent boolean DEFAULT false)
RETURNS boolean LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'dgen_join_group';
COMMENT ON FUNCTION dgen.join_group(text, text, boolean) IS
'make a server a member of a group; it is one until its incarnation ends, or, permanent, until the server is deleted. False if it is one already';

CREATE FUNCTION dgen.leave_group(name text, server text DEFAULT dgen.self())
RETURNS boolean LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'dgen_leave_group';
COMMENT ON FUNCTION dgen.leave_group(text, text) IS
'end a server''s membership of a group; false if it has none';

CREATE FUNCTION dgen.members(name text)
RETURNS SETOF text LANGUAGE c VOLATILE PARALLEL UNSAFE ROWS 100
AS 'MODULE_PATHNAME', 'dgen_members';
COMMENT ON FUNCTION dgen.members(text) IS
'addresses of the members of a group, in order';

CREATE PROCEDURE dgen.wait_server(
	server text,
	status text DEFAULT 'stopped',
	timeout interval DEFAULT NULL)
LANGUAGE c
AS 'MODULE_PATHNAME', 'dgen_wait_server';
COMMENT ON PROCEDURE dgen.wait_server(text, text, interval) IS
'waits, without holding a snapshot, until a server is stopped (no incarnation is alive), running, or idle (no message waits for it); raises OT001 at the timeout. Not inside a transaction block';
