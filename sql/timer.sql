/* ------------------------------------------------------------------- timers */

CREATE FUNCTION dgen.timeout(after interval)
	RETURNS void LANGUAGE C
	AS 'MODULE_PATHNAME', 'dgen_timeout';
COMMENT ON FUNCTION dgen.timeout(after interval) IS
	'directive: if no message is handled for so long, handle_info gets {"info": "timeout"}; 0: once the mailbox is drained';

CREATE FUNCTION dgen.send_after(
	server text,
	message jsonb,
	delay interval,
	name text DEFAULT NULL
)
	RETURNS bigint LANGUAGE C
	AS 'MODULE_PATHNAME', 'dgen_send_after';
COMMENT ON FUNCTION dgen.send_after(server text, message jsonb, delay interval, name text) IS
	'have an info sent to a server after a delay, if this transaction commits; returns the timer''s id';

CREATE FUNCTION dgen.send_at(
	server text,
	message jsonb,
	at timestamptz,
	name text DEFAULT NULL
)
	RETURNS bigint LANGUAGE C
	AS 'MODULE_PATHNAME', 'dgen_send_at';
COMMENT ON FUNCTION dgen.send_at(server text, message jsonb, at timestamptz, name text) IS
	'have an info sent to a server at a time, if this transaction commits; returns the timer''s id';

CREATE FUNCTION dgen.send_every(
	server text,
	message jsonb,
	every interval,
	start timestamptz DEFAULT NULL,
	time_zone text DEFAULT NULL,
	on_miss text DEFAULT 'fire_once',
	name text DEFAULT NULL
)
	RETURNS bigint LANGUAGE C
	AS 'MODULE_PATHNAME', 'dgen_send_every';
COMMENT ON FUNCTION dgen.send_every(server text, message jsonb, every interval, start timestamptz, time_zone text, on_miss text, name text) IS
	'have an info sent to a server again and again, if this transaction commits; returns the timer''s id';

CREATE FUNCTION dgen.cancel_timer(
	id bigint DEFAULT NULL,
	server text DEFAULT NULL,
	name text DEFAULT NULL
)
	RETURNS interval LANGUAGE C
	AS 'MODULE_PATHNAME', 'dgen_cancel_timer';
COMMENT ON FUNCTION dgen.cancel_timer(id bigint, server text, name text) IS
	'cancel a timer, by its id or by its server and name; returns what was left of its time, null if there is none';

CREATE FUNCTION dgen.read_timer(
	id bigint DEFAULT NULL,
	server text DEFAULT NULL,
	name text DEFAULT NULL
)
	RETURNS interval LANGUAGE C
	AS 'MODULE_PATHNAME', 'dgen_read_timer';
COMMENT ON FUNCTION dgen.read_timer(id bigint, server text, name text) IS
	'what is left of a timer''s time; null if there is none';

CREATE FUNCTION dgen.cancel_all(server text DEFAULT NULL)
	RETURNS bigint LANGUAGE C
	AS 'MODULE_PATHNAME', 'dgen_cancel_all';
COMMENT ON FUNCTION dgen.cancel_all(server text) IS
	'cancel all timers of a server that were set by dgen.send_after(), send_at(), send_every(), or dgen.send() with a delay; returns how many';

