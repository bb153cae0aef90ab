/* ------------------------------------------------------------------ messages
 *
 * Calls, sends, and what handlers ask and say.
 */

CREATE FUNCTION dgen.address(module text, VARIADIC parts text[])
	RETURNS text LANGUAGE C IMMUTABLE PARALLEL SAFE
	AS 'MODULE_PATHNAME', 'dgen_address';
COMMENT ON FUNCTION dgen.address(module text, VARIADIC parts text[]) IS
	'address of a server from a module and parts of its key, with / and % inside the parts escaped';

CREATE FUNCTION dgen.call(
	server text,
	request jsonb,
	timeout interval DEFAULT '5 s',
	request_key text DEFAULT NULL
)
	RETURNS jsonb LANGUAGE C
	AS 'MODULE_PATHNAME', 'dgen_call';
COMMENT ON FUNCTION dgen.call(server text, request jsonb, timeout interval, request_key text) IS
	'call a server and wait for its reply; runs and commits on its own, in a worker';

CREATE FUNCTION dgen.multi_call(
	servers text[],
	request jsonb,
	timeout interval DEFAULT '5 s',
	OUT server text,
	OUT reply jsonb,
	OUT error jsonb
)
	RETURNS SETOF record LANGUAGE C
	AS 'MODULE_PATHNAME', 'dgen_multi_call';
COMMENT ON FUNCTION dgen.multi_call(servers text[], request jsonb, timeout interval) IS
	'call many servers at once with one deadline; a row for each, with its reply or its error';

CREATE FUNCTION dgen.invoke(server text, request jsonb)
	RETURNS jsonb LANGUAGE C
	AS 'MODULE_PATHNAME', 'dgen_invoke';
COMMENT ON FUNCTION dgen.invoke(server text, request jsonb) IS
	'call a server within this transaction: its handler commits or rolls back with it';

CREATE FUNCTION dgen.query(server text, query jsonb)
	RETURNS jsonb LANGUAGE C STABLE
	AS 'MODULE_PATHNAME', 'dgen_query';
COMMENT ON FUNCTION dgen.query(server text, query jsonb) IS
	'run handle_query of a server on the state that this statement sees; read only, never queued';

CREATE FUNCTION dgen.cast(
	server text,
	message jsonb,
	delay interval DEFAULT NULL,
	expires interval DEFAULT NULL,
	priority integer DEFAULT 0,
	dedup_key text DEFAULT NULL,
	max_attempts integer DEFAULT NULL
)
	RETURNS bigint LANGUAGE C
	AS 'MODULE_PATHNAME', 'dgen_cast';
COMMENT ON FUNCTION dgen.cast(server text, message jsonb, delay interval, expires interval, priority integer, dedup_key text, max_attempts integer) IS
	'send a message to a server, if this transaction commits; returns its id';

CREATE FUNCTION dgen.cast_many(messages jsonb)
	RETURNS bigint[] LANGUAGE C
	AS 'MODULE_PATHNAME', 'dgen_cast_many';
COMMENT ON FUNCTION dgen.cast_many(messages jsonb) IS
	'send many casts: an array of {"server", "message"} objects; returns their ids';

CREATE FUNCTION dgen.send(
	server text,
	message jsonb,
	delay interval DEFAULT NULL,
	expires interval DEFAULT NULL,
	priority integer DEFAULT 0
)
	RETURNS bigint LANGUAGE C
	AS 'MODULE_PATHNAME', 'dgen_send';
COMMENT ON FUNCTION dgen.send(server text, message jsonb, delay interval, expires interval, priority integer) IS
	'send an info to a server, if this transaction commits; returns its id';

CREATE FUNCTION dgen.send_request(
	server text,
	request jsonb,
	notify boolean DEFAULT true,
	expires interval DEFAULT NULL,
	priority integer DEFAULT 0
)
	RETURNS bigint LANGUAGE C
	AS 'MODULE_PATHNAME', 'dgen_send_request';
COMMENT ON FUNCTION dgen.send_request(server text, request jsonb, notify boolean, expires interval, priority integer) IS
	'send a request whose reply is kept, if this transaction commits; returns its id';

CREATE FUNCTION dgen.lock()
	RETURNS void LANGUAGE C
	AS 'MODULE_PATHNAME', 'dgen_lock';
COMMENT ON FUNCTION dgen.lock() IS
	'directive: have handle_locked do the work for this message after the commit, while the server waits';

CREATE FUNCTION dgen.after_commit(function regproc, args jsonb DEFAULT NULL)
	RETURNS bigint LANGUAGE C
	AS 'MODULE_PATHNAME', 'dgen_after_commit';
COMMENT ON FUNCTION dgen.after_commit(function regproc, args jsonb) IS
	'in a handler: run a function after the commit, at least once, in a transaction of its own; returns the effect''s id';

CREATE FUNCTION dgen.effect_id()
	RETURNS bigint LANGUAGE C STABLE
	AS 'MODULE_PATHNAME', 'dgen_effect_id';
COMMENT ON FUNCTION dgen.effect_id() IS
	'in a function that dgen.after_commit() runs: the effect''s id, the same at each attempt; null in other handlers';

CREATE FUNCTION dgen.cancel(id bigint)
	RETURNS boolean LANGUAGE C
	AS 'MODULE_PATHNAME', 'dgen_cancel';
COMMENT ON FUNCTION dgen.cancel(id bigint) IS
	'cancel a message that has not been handled; true if it will not be';

CREATE FUNCTION dgen.drain(server text DEFAULT NULL)
	RETURNS integer LANGUAGE C
	AS 'MODULE_PATHNAME', 'dgen_drain';
COMMENT ON FUNCTION dgen.drain(server text) IS
	'for tests: handle the messages of this transaction inside it; returns how many';

CREATE FUNCTION dgen."try"(
	module text,
	callback text,
	message jsonb DEFAULT NULL,
	state jsonb DEFAULT NULL
)
	RETURNS jsonb LANGUAGE C
	AS 'MODULE_PATHNAME', 'dgen_try';
COMMENT ON FUNCTION dgen."try"(module text, callback text, message jsonb, state jsonb) IS
	'for tests: run a callback and undo it; returns state, reply and directives';

CREATE FUNCTION dgen.wait_idle(
	server text DEFAULT NULL,
	module text DEFAULT NULL,
	everything boolean DEFAULT NULL,
	timeout interval DEFAULT '5 s'
)
	RETURNS boolean LANGUAGE C
	AS 'MODULE_PATHNAME', 'dgen_wait_idle';
COMMENT ON FUNCTION dgen.wait_idle(server text, module text, everything boolean, timeout interval) IS
	'for tests: wait until no message waits for a server, a module or anybody; false at the timeout';

CREATE FUNCTION dgen.self()
	RETURNS text LANGUAGE C STABLE
	AS 'MODULE_PATHNAME', 'dgen_self';
COMMENT ON FUNCTION dgen.self() IS
	'in a handler: the address of its server';

CREATE FUNCTION dgen.key()
	RETURNS text LANGUAGE C STABLE
	AS 'MODULE_PATHNAME', 'dgen_key';
COMMENT ON FUNCTION dgen.key() IS
	'in a handler: the key of its server, which is the address behind the module';

CREATE FUNCTION dgen.kind()
	RETURNS text LANGUAGE C STABLE
	AS 'MODULE_PATHNAME', 'dgen_kind';
COMMENT ON FUNCTION dgen.kind() IS
	'in a handler: what it handles: call, cast, info, reply, DOWN, query, init and so on; cannot be forged by a sender';

CREATE FUNCTION dgen.sender()
	RETURNS text LANGUAGE C STABLE
	AS 'MODULE_PATHNAME', 'dgen_sender';
COMMENT ON FUNCTION dgen.sender() IS
	'in a handler: the address of the server that sent the message; null for a client';

CREATE FUNCTION dgen.sender_role()
	RETURNS text LANGUAGE C STABLE
	AS 'MODULE_PATHNAME', 'dgen_sender_role';
COMMENT ON FUNCTION dgen.sender_role() IS
	'in a handler: the role that sent the message';

CREATE FUNCTION dgen."from"()
	RETURNS text LANGUAGE C
	AS 'MODULE_PATHNAME', 'dgen_from';
COMMENT ON FUNCTION dgen."from"() IS
	'in handle_call: the token by which dgen.reply() answers later';

CREATE FUNCTION dgen.context()
	RETURNS jsonb LANGUAGE C STABLE
	AS 'MODULE_PATHNAME', 'dgen_context_get';
COMMENT ON FUNCTION dgen.context() IS
	'in a handler: the sender''s dgen.context; inherited by what the handler sends';

CREATE FUNCTION dgen.message_vsn()
	RETURNS text LANGUAGE C STABLE
	AS 'MODULE_PATHNAME', 'dgen_message_vsn';
COMMENT ON FUNCTION dgen.message_vsn() IS
	'in a handler: the vsn of the module that sent the message';

CREATE FUNCTION dgen.now()
	RETURNS timestamptz LANGUAGE C
	AS 'MODULE_PATHNAME', 'dgen_now';
COMMENT ON FUNCTION dgen.now() IS
	'the time when the running activation began; outside of handlers the clock''s';

CREATE FUNCTION dgen.deadline()
	RETURNS timestamptz LANGUAGE C STABLE
	AS 'MODULE_PATHNAME', 'dgen_deadline';
COMMENT ON FUNCTION dgen.deadline() IS
	'in a handler: when the caller gives up, also of the handler that called this one; null if nobody does';

CREATE FUNCTION dgen.reply("from" text, reply jsonb)
	RETURNS void LANGUAGE C
	AS 'MODULE_PATHNAME', 'dgen_reply';
COMMENT ON FUNCTION dgen.reply("from" text, reply jsonb) IS
	'answer a call or request whose handler said noreply';

CREATE FUNCTION dgen.noreply()
	RETURNS void LANGUAGE C
	AS 'MODULE_PATHNAME', 'dgen_noreply';
COMMENT ON FUNCTION dgen.noreply() IS
	'directive of handle_call: do not reply now; dgen.reply() will';

CREATE FUNCTION dgen.exit(reason text)
	RETURNS void LANGUAGE C
	AS 'MODULE_PATHNAME', 'dgen_exit';
COMMENT ON FUNCTION dgen.exit(reason text) IS
	'directive: the server stops after this message';

CREATE FUNCTION dgen.reject(reason text)
	RETURNS void LANGUAGE C
	AS 'MODULE_PATHNAME', 'dgen_reject';
COMMENT ON FUNCTION dgen.reject(reason text) IS
	'directive: undo this activation and make the message a dead letter';

CREATE FUNCTION dgen.retry_after(delay interval)
	RETURNS void LANGUAGE C
	AS 'MODULE_PATHNAME', 'dgen_retry_after';
COMMENT ON FUNCTION dgen.retry_after(delay interval) IS
	'directive: undo this activation and try the message again after the delay, without counting an attempt';

CREATE FUNCTION dgen.continue(message jsonb)
	RETURNS void LANGUAGE C
	AS 'MODULE_PATHNAME', 'dgen_continue';
COMMENT ON FUNCTION dgen.continue(message jsonb) IS
	'directive: go on with handle_continue(message), after the commit and before all else that the server is to handle';

CREATE FUNCTION dgen.postpone()
	RETURNS void LANGUAGE C
	AS 'MODULE_PATHNAME', 'dgen_postpone_directive';
COMMENT ON FUNCTION dgen.postpone() IS
	'directive: keep the message, and handle it again after the next change of the server''s state, before newer ones';

CREATE FUNCTION dgen.state_name()
	RETURNS text LANGUAGE C STABLE
	AS 'MODULE_PATHNAME', 'dgen_state_name';
COMMENT ON FUNCTION dgen.state_name() IS
	'in a callback of a state machine: the state that it is in';

CREATE FUNCTION dgen.next_event(event jsonb)
	RETURNS void LANGUAGE C
	AS 'MODULE_PATHNAME', 'dgen_next_event';
COMMENT ON FUNCTION dgen.next_event(event jsonb) IS
	'directive of state machines: handle this event, of kind internal, next, in the same activation';

CREATE FUNCTION dgen.state_timeout(after interval, event jsonb DEFAULT NULL)
	RETURNS void LANGUAGE C
	AS 'MODULE_PATHNAME', 'dgen_state_timeout';
COMMENT ON FUNCTION dgen.state_timeout(after interval, event jsonb) IS
	'directive of state machines: have this event, of kind state_timeout, unless the state changes before; null cancels it';

CREATE FUNCTION dgen.event_timeout(after interval, event jsonb DEFAULT NULL)
	RETURNS void LANGUAGE C
	AS 'MODULE_PATHNAME', 'dgen_event_timeout';
COMMENT ON FUNCTION dgen.event_timeout(after interval, event jsonb) IS
	'directive of state machines: have this event, of kind timeout, unless another one comes before; null cancels it';

CREATE FUNCTION dgen.generic_timeout(name text, after interval, event jsonb DEFAULT NULL)
	RETURNS void LANGUAGE C
	AS 'MODULE_PATHNAME', 'dgen_generic_timeout';
COMMENT ON FUNCTION dgen.generic_timeout(name text, after interval, event jsonb) IS
	'directive of state machines: have this event, of kind generic_timeout, whatever comes before; a timeout replaces that of the same name, null cancels it';
