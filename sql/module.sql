/* ------------------------------------------------------------------ modules */

CREATE FUNCTION dgen.create_module(
	name text,
	callbacks jsonb DEFAULT NULL,
	schema_name text DEFAULT NULL,
	"external" boolean DEFAULT NULL,
	ephemeral boolean DEFAULT NULL,
	auto_start boolean DEFAULT NULL,
	on_stop text DEFAULT NULL,
	isolation text DEFAULT NULL,
	invoke_isolation text DEFAULT NULL,
	late_calls text DEFAULT NULL,
	retry text DEFAULT NULL,
	on_dead_letter text DEFAULT NULL,
	breaker integer DEFAULT NULL,
	on_crash_loop text DEFAULT NULL,
	crash_limit integer DEFAULT NULL,
	handler_timeout interval DEFAULT NULL,
	work_timeout interval DEFAULT NULL,
	max_attempts integer DEFAULT NULL,
	backoff_initial interval DEFAULT NULL,
	backoff_factor double precision DEFAULT NULL,
	backoff_max interval DEFAULT NULL,
	hold_max interval DEFAULT NULL,
	batch_size integer DEFAULT NULL,
	max_mailbox bigint DEFAULT NULL,
	max_message_size bigint DEFAULT NULL,
	max_state_size bigint DEFAULT NULL,
	reply_ttl interval DEFAULT NULL,
	dedup_ttl interval DEFAULT NULL,
	dead_letter_ttl interval DEFAULT NULL,
	history text DEFAULT NULL,
	expire_after interval DEFAULT NULL,
	ephemeral_keys text[] DEFAULT NULL,
	search_path text DEFAULT NULL,
	timezone text DEFAULT NULL,
	operators text DEFAULT NULL,
	clients text DEFAULT NULL,
	readers text DEFAULT NULL,
	workers text DEFAULT NULL,
	vsn text DEFAULT NULL,
	kind text DEFAULT NULL,
	notify text DEFAULT NULL,
	if_exists text DEFAULT 'error')
RETURNS jsonb LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'dgen_create_module';
COMMENT ON FUNCTION dgen.create_module(text, jsonb, text, boolean, boolean, boolean, text, text, text, text, text, text,
	integer, text, integer, interval, interval, integer, interval, double precision, interval, interval, integer, bigint, bigint, bigint,
	interval, interval, interval, text, interval, text[], text, text, text, text, text, text, text, text, text, text) IS
'make a module of the functions in a schema that bear callbacks'' names; returns what was found. callbacks maps names to other functions, or to null for "not a callback"; options left null take their defaults; if_exists is error, alter or skip';

CREATE FUNCTION dgen.alter_module(
	name text,
	callbacks jsonb DEFAULT NULL,
	schema_name text DEFAULT NULL,
	"external" boolean DEFAULT NULL,
	ephemeral boolean DEFAULT NULL,
	auto_start boolean DEFAULT NULL,
	on_stop text DEFAULT NULL,
	isolation text DEFAULT NULL,
	invoke_isolation text DEFAULT NULL,
	late_calls text DEFAULT NULL,
	retry text DEFAULT NULL,
	on_dead_letter text DEFAULT NULL,
	breaker integer DEFAULT NULL,
	on_crash_loop text DEFAULT NULL,
	crash_limit integer DEFAULT NULL,
	handler_timeout interval DEFAULT NULL,
	work_timeout interval DEFAULT NULL,
	max_attempts integer DEFAULT NULL,
	backoff_initial interval DEFAULT NULL,
	backoff_factor double precision DEFAULT NULL,
	backoff_max interval DEFAULT NULL,
	hold_max interval DEFAULT NULL,
	batch_size integer DEFAULT NULL,
	max_mailbox bigint DEFAULT NULL,
	max_message_size bigint DEFAULT NULL,
	max_state_size bigint DEFAULT NULL,
	reply_ttl interval DEFAULT NULL,
	dedup_ttl interval DEFAULT NULL,
	dead_letter_ttl interval DEFAULT NULL,
	history text DEFAULT NULL,
	expire_after interval DEFAULT NULL,
	ephemeral_keys text[] DEFAULT NULL,
	search_path text DEFAULT NULL,
	timezone text DEFAULT NULL,
	operators text DEFAULT NULL,
	clients text DEFAULT NULL,
	readers text DEFAULT NULL,
	workers text DEFAULT NULL,
	vsn text DEFAULT NULL,
	kind text DEFAULT NULL,
	notify text DEFAULT NULL)
RETURNS jsonb LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'dgen_alter_module';
COMMENT ON FUNCTION dgen.alter_module(text, jsonb, text, boolean, boolean, boolean, text, text, text, text, text, text,
	integer, text, integer, interval, interval, integer, interval, double precision, interval, interval, integer, bigint, bigint, bigint,
	interval, interval, interval, text, interval, text[], text, text, text, text, text, text, text, text, text) IS
'change a module and accept the present owner of its callbacks; options left null stay as they are, callbacks are replaced as a whole (''{}'': all by name), an empty text resets a role, the time zone, history, vsn or notify to none';

CREATE FUNCTION dgen.drop_module(name text, "cascade" boolean DEFAULT false)
RETURNS void LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'dgen_drop_module';
COMMENT ON FUNCTION dgen.drop_module(text, boolean) IS
'drop a module that has no servers, messages or dead letters; with cascade, drop it with all of these';

CREATE FUNCTION dgen.module_info(
	OUT module text,
	OUT owner text,
	OUT schema_name text,
	OUT callbacks jsonb,
	OUT "external" boolean,
	OUT ephemeral boolean,
	OUT auto_start boolean,
	OUT on_stop text,
	OUT isolation text,
	OUT invoke_isolation text,
	OUT late_calls text,
	OUT retry text,
	OUT on_dead_letter text,
	OUT breaker integer,
	OUT on_crash_loop text,
	OUT crash_limit integer,
	OUT handler_timeout interval,
	OUT work_timeout interval,
	OUT max_attempts integer,
	OUT backoff_initial interval,
	OUT backoff_factor double precision,
	OUT backoff_max interval,
	OUT hold_max interval,
	OUT batch_size integer,
	OUT max_mailbox bigint,
	OUT max_message_size bigint,
	OUT max_state_size bigint,
	OUT reply_ttl interval,
	OUT dedup_ttl interval,
	OUT dead_letter_ttl interval,
	OUT history text,
	OUT expire_after interval,
	OUT ephemeral_keys text[],
	OUT search_path text,
	OUT timezone text,
	OUT operators text,
	OUT clients text,
	OUT readers text,
	OUT workers text,
	OUT vsn text,
	OUT kind text,
	OUT notify text,
	OUT created_at timestamptz,
	OUT suspended_at timestamptz,
	OUT suspended_by text,
	OUT suspended_reason text,
	OUT fault text)
RETURNS SETOF record LANGUAGE c VOLATILE PARALLEL RESTRICTED ROWS 20
AS 'MODULE_PATHNAME', 'dgen_module_info';
COMMENT ON FUNCTION dgen.module_info() IS
'source of view dgen.modules';

CREATE VIEW dgen.modules AS
	SELECT * FROM dgen.module_info();
GRANT SELECT ON dgen.modules TO PUBLIC;
COMMENT ON VIEW dgen.modules IS
'modules that the current user may operate, read or send to, with all options as they are in force';
COMMENT ON COLUMN dgen.modules.module IS 'name: what stands before the first / of its servers'' addresses';
COMMENT ON COLUMN dgen.modules.owner IS 'role that callbacks run as';
COMMENT ON COLUMN dgen.modules.schema_name IS 'schema that is searched for callbacks';
COMMENT ON COLUMN dgen.modules.callbacks IS 'callbacks found, and the functions that they are';
COMMENT ON COLUMN dgen.modules."external" IS 'clients handle its messages, see dgen.take_work()';
COMMENT ON COLUMN dgen.modules.ephemeral IS 'servers keep no state';
COMMENT ON COLUMN dgen.modules.auto_start IS 'a server that does not run is started by its first message';
COMMENT ON COLUMN dgen.modules.on_stop IS 'keep or delete: what becomes of a stopped server''s state';
COMMENT ON COLUMN dgen.modules.isolation IS 'isolation level of activations';
COMMENT ON COLUMN dgen.modules.invoke_isolation IS 'match or any: which transactions may invoke';
COMMENT ON COLUMN dgen.modules.late_calls IS 'cancel or finish: what becomes of a call that runs at its deadline';
COMMENT ON COLUMN dgen.modules.retry IS 'block or skip: may others pass a message that waits for its next attempt';
COMMENT ON COLUMN dgen.modules.on_dead_letter IS 'continue or suspend: what a dead letter does to its server';
COMMENT ON COLUMN dgen.modules.breaker IS 'dead letters in a row, from different servers, that suspend the module; 0: never';
COMMENT ON COLUMN dgen.modules.on_crash_loop IS 'keep, suspend, init or rollback: what becomes of a server that is not supervised after crash_limit errors in a row';
COMMENT ON COLUMN dgen.modules.crash_limit IS 'errors in a row, a plain RAISE not counted, that on_crash_loop waits for';
COMMENT ON COLUMN dgen.modules.handler_timeout IS 'longest time that one activation may take';
COMMENT ON COLUMN dgen.modules.work_timeout IS 'longest time that one effect, or handle_locked, may take';
COMMENT ON COLUMN dgen.modules.max_attempts IS 'attempts before a message is a dead letter';
COMMENT ON COLUMN dgen.modules.backoff_initial IS 'wait before the second attempt';
COMMENT ON COLUMN dgen.modules.backoff_factor IS 'growth of the wait from attempt to attempt';
COMMENT ON COLUMN dgen.modules.backoff_max IS 'longest wait between attempts';
COMMENT ON COLUMN dgen.modules.hold_max IS 'how long faults of the environment hold a message without counting as attempts';
COMMENT ON COLUMN dgen.modules.batch_size IS 'most messages that are handled in one transaction';
COMMENT ON COLUMN dgen.modules.max_mailbox IS 'most messages that may wait for one server';
COMMENT ON COLUMN dgen.modules.max_message_size IS 'largest message, in bytes';
COMMENT ON COLUMN dgen.modules.max_state_size IS 'largest state, in bytes';
COMMENT ON COLUMN dgen.modules.reply_ttl IS 'how long replies are kept for their request_key';
COMMENT ON COLUMN dgen.modules.dedup_ttl IS 'how long a dedup_key is remembered';
COMMENT ON COLUMN dgen.modules.dead_letter_ttl IS 'how long dead letters are kept';
COMMENT ON COLUMN dgen.modules.history IS 'how many versions of a state, or for how long, are kept; null: none but the present one';
COMMENT ON COLUMN dgen.modules.expire_after IS 'a server that handles nothing for so long is stopped and deleted; 0: never';
COMMENT ON COLUMN dgen.modules.ephemeral_keys IS 'keys of a state that stay in a worker''s memory and are not stored; null: none';
COMMENT ON COLUMN dgen.modules.search_path IS 'search_path that callbacks run with';
COMMENT ON COLUMN dgen.modules.timezone IS 'time zone that callbacks run with; null: that of the database';
COMMENT ON COLUMN dgen.modules.operators IS 'role whose members may operate servers; null: members of the owner only, as in the next two';
COMMENT ON COLUMN dgen.modules.clients IS 'role whose members may send infos to a module without handle_info';
COMMENT ON COLUMN dgen.modules.readers IS 'role whose members may see states and messages';
COMMENT ON COLUMN dgen.modules.workers IS 'role whose members may take work of an external module';
COMMENT ON COLUMN dgen.modules.vsn IS 'version of the module''s code';
COMMENT ON COLUMN dgen.modules.kind IS 'server, or statem: its servers are state machines';
COMMENT ON COLUMN dgen.modules.notify IS 'channel that changed servers are announced on; null: none';
COMMENT ON COLUMN dgen.modules.created_at IS 'when the module was made';
COMMENT ON COLUMN dgen.modules.suspended_at IS 'since when the module is suspended; null where callbacks have a wrong owner, which is no event';
COMMENT ON COLUMN dgen.modules.suspended_by IS 'role that suspended it, or dgen; null: it is not suspended';
COMMENT ON COLUMN dgen.modules.suspended_reason IS 'why it is suspended';
COMMENT ON COLUMN dgen.modules.fault IS 'what is wrong with its callbacks, line by line; null: nothing';
