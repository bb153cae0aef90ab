/* ------------------------------------------------------------------ tables
 *
 * Nobody but the library writes these tables: no role is granted anything on
 * them, and the library writes them below the executor.  They have no
 * triggers, foreign keys, checks, partial or expression indexes, which is
 * what lets it do so (and it scans no index but btrees).  All text keys use the C collation, so that an order in
 * C and an order in an index are the same order.
 */

/*
 * Which database this is.  Not dumped: a restored copy gets a new id from
 * CREATE EXTENSION, and disagrees with the dumped dgen.adoption until
 * dgen.adopt() is called.
 */
CREATE TABLE dgen.installation (
	id uuid NOT NULL,
	system_identifier bigint NOT NULL,
	database_oid oid NOT NULL
);
CREATE TABLE dgen.adoption (
	id uuid NOT NULL,
	adopted_at timestamptz NOT NULL,
	adopted_by text COLLATE "C" NOT NULL
);

CREATE SEQUENCE dgen.module_id AS integer;
CREATE TABLE dgen.module (
	name text COLLATE "C" NOT NULL,
	id integer NOT NULL,
	schema_name text COLLATE "C" NOT NULL,
	callbacks jsonb,					-- {"handle_call": "other_schema.fn"}; null: all by name
	owner text COLLATE "C" NOT NULL,	-- whom create_module or alter_module agreed to
	external boolean NOT NULL,
	ephemeral boolean NOT NULL,
	auto_start boolean NOT NULL,
	on_stop text COLLATE "C" NOT NULL,			-- keep | delete
	isolation text COLLATE "C" NOT NULL,		-- serializable | repeatable read | read committed
	invoke_isolation text COLLATE "C" NOT NULL, -- match | any
	late_calls text COLLATE "C" NOT NULL,		-- cancel | finish
	retry text COLLATE "C" NOT NULL,			-- block | skip
	on_dead_letter text COLLATE "C" NOT NULL,	-- continue | suspend
	breaker integer NOT NULL,					-- dead letters in a row; 0: never
	on_crash_loop text COLLATE "C" NOT NULL,	-- keep | suspend | init | rollback
	crash_limit integer NOT NULL,				-- errors in a row
	handler_timeout interval NOT NULL,
	work_timeout interval NOT NULL,				-- of an effect, of handle_locked
	max_attempts integer NOT NULL,
	backoff_initial interval NOT NULL,
	backoff_factor double precision NOT NULL,
	backoff_max interval NOT NULL,
	hold_max interval NOT NULL,
	batch_size integer NOT NULL,
	max_mailbox bigint NOT NULL,
	max_message_size bigint NOT NULL,			-- bytes
	max_state_size bigint NOT NULL,				-- bytes
	reply_ttl interval NOT NULL,
	dedup_ttl interval NOT NULL,
	dead_letter_ttl interval NOT NULL,
	history text COLLATE "C",					-- a count, or an interval; null: none
	expire_after interval NOT NULL,				-- 0: never
	ephemeral_keys text[] COLLATE "C",			-- of a state, not stored; null: none
	search_path text COLLATE "C" NOT NULL,
	timezone text COLLATE "C",					-- null: as the database
	operators text COLLATE "C",					-- roles, by name; null: members of the owner only
	clients text COLLATE "C",
	readers text COLLATE "C",
	workers text COLLATE "C",
	vsn text COLLATE "C",
	kind text COLLATE "C" NOT NULL,				-- server | statem
	notify text COLLATE "C",					-- a channel; null: none
	created_at timestamptz NOT NULL,
	suspended_at timestamptz,
	suspended_by text COLLATE "C",
	suspended_reason text COLLATE "C",
	PRIMARY KEY (name)
);
CREATE UNIQUE INDEX module_id_idx ON dgen.module (id);

/*
 * A row exists for each server that has a state, is suspended, or is in
 * trouble.  status: 'a' active, an incarnation is alive; 'n' none: never
 * started, or stopped; then state is that of the last incarnation, if kept.
 */
CREATE TABLE dgen.server (
	server text COLLATE "C" NOT NULL,
	status "char" NOT NULL,
	failing boolean NOT NULL,			-- rows in dgen.attempt may name this server
	incarnation bigint NOT NULL,
	version bigint NOT NULL,
	updated_at timestamptz NOT NULL,
	started_at timestamptz,
	suspended_at timestamptz,
	tombstone_until timestamptz,
	suspended_by text COLLATE "C",
	stop_reason text COLLATE "C",
	vsn text COLLATE "C",
	state jsonb,						-- as of base_version
	base_version bigint NOT NULL,
	patch_bytes bigint NOT NULL,		-- of dgen.patch's rows behind it
	monitored boolean NOT NULL,			-- rows in dgen.monitor, name or member may name its incarnation
	supervised boolean NOT NULL,		-- it is a child of a supervisor
	postponed integer,					-- rows of dgen.postponed may be its: so many at most
	crashes integer,					-- errors in a row, of a module with on_crash_loop
	continue_id bigint,					-- message to be handled before all others
	good_version bigint,				-- newest version under which a handler succeeded
	timeout_at timestamptz,				-- idle until then: a timeout; of a machine: its event timeout
	timeout_id bigint,					-- the row of dgen.delayed that stands for it
	timeout_due timestamptz,			-- and when that is due, which may be earlier; of a machine: its state timeout
	lock_id bigint,						-- message whose work is done outside
	lock_token bigint,					-- by whoever has this
	locked_until timestamptz,			-- null: while its worker lives
	state_name text COLLATE "C",		-- of a state machine
	history_version bigint,				-- the last one that dgen.history has; null: it has none
	history_from bigint,				-- rows of earlier ones do not count
	history_bytes bigint,				-- since a state was last kept whole
	used_at timestamptz,				-- of a module with expire_after: last used then, or a little later
	PRIMARY KEY (server)
) WITH (fillfactor = 60, autovacuum_vacuum_scale_factor = 0.05,
	autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_cost_delay = 0,
	toast.autovacuum_vacuum_scale_factor = 0.05);

/*
 * What changed in a large state since base_version, a row a version; folded
 * into the row's state when it amounts to a part of that.
 */
CREATE TABLE dgen.patch (
	server text COLLATE "C" NOT NULL,
	version bigint NOT NULL,
	patch jsonb NOT NULL,
	PRIMARY KEY (server, version)
) WITH (autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_threshold = 2000,
	autovacuum_vacuum_cost_delay = 0);

/*
 * Supervisors, and their children in order of start.  A nested supervisor is
 * named by its path, and is a row of both.  Whether a child runs is in the row
 * of its server.
 */
CREATE TABLE dgen.supervisor (
	name text COLLATE "C" NOT NULL,
	owner text COLLATE "C" NOT NULL,	-- the role that made it
	strategy text COLLATE "C" NOT NULL,	-- one_for_one | one_for_all | rest_for_one
	status text COLLATE "C" NOT NULL,	-- running | failed | stopped
	intensity integer NOT NULL,
	period interval NOT NULL,
	started_at timestamptz NOT NULL,
	reason text COLLATE "C",
	restarts timestamptz[] NOT NULL,	-- those of the last period
	PRIMARY KEY (name)
) WITH (fillfactor = 70);
CREATE TABLE dgen.child (
	supervisor text COLLATE "C" NOT NULL,
	id text COLLATE "C" NOT NULL,
	position bigint NOT NULL,
	server text COLLATE "C",			-- null: it is supervisor/id
	restart text COLLATE "C" NOT NULL,	-- permanent | transient | temporary
	state text COLLATE "C" NOT NULL,	-- keep | init | last_good
	terminated boolean NOT NULL,		-- by an operator: stays down
	restarts bigint NOT NULL,
	streak integer NOT NULL,			-- restarts, each within a period of the last
	restarted_at timestamptz,
	reason text COLLATE "C",			-- of the last restart
	not_a_crash jsonb NOT NULL,
	args jsonb NOT NULL,
	on_restart jsonb,
	PRIMARY KEY (supervisor, id)
) WITH (fillfactor = 70);
CREATE INDEX child_position_idx ON dgen.child (supervisor, position);
CREATE INDEX child_server_idx ON dgen.child (server);

/*
 * How each version of a state came to be, and how to get from it back to the
 * one before: by a patch, or because that is kept whole.  Both null: the one
 * before had no state, or is not kept.
 */
CREATE TABLE dgen.history (
	server text COLLATE "C" NOT NULL,
	version bigint NOT NULL,
	at timestamptz NOT NULL,
	incarnation bigint NOT NULL,
	vsn text COLLATE "C",				-- of the code that the state is for
	kind text COLLATE "C",				-- of what made it; null: it was there before
	message_id bigint,
	sender text COLLATE "C",			-- a server's address, or a session's id
	sender_role text COLLATE "C",
	context jsonb,
	from_version bigint,				-- a rollback: whose state this is
	good bigint,						-- newest version that was good by then, see good_version
	size bigint,						-- of the state in bytes; null: there is none
	undo jsonb,							-- patch that gives the state before
	before jsonb,						-- that state whole
	PRIMARY KEY (server, version)
) WITH (autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_threshold = 2000,
	autovacuum_vacuum_insert_threshold = -1, autovacuum_vacuum_cost_delay = 0);

/*
 * The mailbox.  Rows are only ever inserted and deleted.  hash is that of the
 * address: the key of the server's lease and of its low-water mark.  kind:
 * 'c' cast, 'i' info, 'r' request (a call whose reply is kept), 'n' continue, 'k' a
 * call that was postponed and whose caller waits: token says where.
 */
CREATE SEQUENCE dgen.message_id INCREMENT 65536 MINVALUE 0 START 65536;	-- one value: a block of ids, drawn in shared memory
CREATE TABLE dgen.message (
	id bigint NOT NULL,
	hash bigint NOT NULL,
	priority smallint NOT NULL,
	max_attempts smallint,
	kind "char" NOT NULL,
	notify boolean NOT NULL,
	sent_at timestamptz NOT NULL,
	expires_at timestamptz,
	server text COLLATE "C" NOT NULL,
	sender_role text COLLATE "C" NOT NULL,
	sender text COLLATE "C" NOT NULL,	-- a server's address, or a session's id
	dedup_key text COLLATE "C",
	vsn text COLLATE "C",
	incarnation bigint,					-- it is for this one only; null: for whichever lives
	timer bigint,						-- the timer that it comes of
	token text COLLATE "C",				-- by which the caller who waits is answered
	context jsonb,
	message jsonb NOT NULL,
	PRIMARY KEY (id)
) WITH (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 2000,
	autovacuum_vacuum_insert_threshold = -1, autovacuum_vacuum_cost_delay = 0);
CREATE INDEX message_mailbox_idx ON dgen.message (hash, priority, id);

/* Messages that are not yet due: the same row behind its due time. */
CREATE TABLE dgen.delayed (
	id bigint NOT NULL,
	due_at timestamptz NOT NULL,
	hash bigint NOT NULL,
	priority smallint NOT NULL,
	max_attempts smallint,
	kind "char" NOT NULL,
	notify boolean NOT NULL,
	sent_at timestamptz NOT NULL,
	expires_at timestamptz,
	server text COLLATE "C" NOT NULL,
	sender_role text COLLATE "C" NOT NULL,
	sender text COLLATE "C" NOT NULL,
	dedup_key text COLLATE "C",
	vsn text COLLATE "C",
	incarnation bigint,					-- it is for this one only; null: for whichever lives
	timer bigint,						-- the timer that it comes of
	token text COLLATE "C",				-- by which the caller who waits is answered
	context jsonb,
	message jsonb NOT NULL,
	PRIMARY KEY (id)
) WITH (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 2000,
	autovacuum_vacuum_cost_delay = 0);
CREATE INDEX delayed_due_idx ON dgen.delayed (due_at);
CREATE INDEX delayed_server_idx ON dgen.delayed (server);

/*
 * Timers that have a name or recur, by server and name: which message may come
 * of each is decided here.  A name that begins with '$' is the engine's, of one
 * that recurs without a name '$every:' and its id.  due_at: of the occurrence
 * that is next or under way, which is number "occurrence" from start_at, number
 * 0, on.  on_miss: 'o' fire_once, 'c' catch_up, 's' skip.  every and what
 * follows are null for one that goes off once.
 */
CREATE TABLE dgen.timer (
	server text COLLATE "C" NOT NULL,
	name text COLLATE "C" NOT NULL,
	id bigint NOT NULL,					-- as dgen.message.timer has it
	incarnation bigint,					-- it ends with this one; null: with none
	due_at timestamptz NOT NULL,
	sender_role text COLLATE "C" NOT NULL,
	every interval,
	start_at timestamptz,
	time_zone text COLLATE "C",
	on_miss "char",
	occurrence bigint,
	PRIMARY KEY (server, name)
) WITH (autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_threshold = 2000,
	autovacuum_vacuum_cost_delay = 0);
CREATE UNIQUE INDEX timer_id_idx ON dgen.timer (id);

/*
 * Messages that a handler has put off until its server changes: then they go
 * back to the mailbox, under the ids that they have always had.
 */
CREATE TABLE dgen.postponed (
	id bigint NOT NULL,
	hash bigint NOT NULL,
	priority smallint NOT NULL,
	max_attempts smallint,
	kind "char" NOT NULL,
	notify boolean NOT NULL,
	sent_at timestamptz NOT NULL,
	expires_at timestamptz,
	server text COLLATE "C" NOT NULL,
	sender_role text COLLATE "C" NOT NULL,
	sender text COLLATE "C" NOT NULL,	-- a server's address, or a session's id
	dedup_key text COLLATE "C",
	vsn text COLLATE "C",
	incarnation bigint,					-- it is for this one only; null: for whichever lives
	timer bigint,						-- the timer that it comes of
	token text COLLATE "C",				-- by which the caller who waits is answered
	context jsonb,
	message jsonb NOT NULL,
	PRIMARY KEY (id)
) WITH (autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_threshold = 2000,
	autovacuum_vacuum_cost_delay = 0);
CREATE INDEX postponed_server_idx ON dgen.postponed (server, id);

/*
 * Messages that failed and will be tried again.  held: by a fault of the
 * environment, since when, and how often it was held; attempts counts the
 * others.
 */
CREATE TABLE dgen.attempt (
	id bigint NOT NULL,
	server text COLLATE "C" NOT NULL,
	attempts integer NOT NULL,
	holds integer NOT NULL,
	next_at timestamptz NOT NULL,
	held_since timestamptz,
	sqlstate text COLLATE "C" NOT NULL,
	error jsonb NOT NULL,
	PRIMARY KEY (id)
);
CREATE INDEX attempt_server_idx ON dgen.attempt (server);
CREATE INDEX attempt_next_idx ON dgen.attempt (next_at);

CREATE TABLE dgen.letter (
	id bigint NOT NULL,
	hash bigint NOT NULL,
	priority smallint NOT NULL,
	max_attempts smallint,
	kind "char" NOT NULL,
	notify boolean NOT NULL,
	sent_at timestamptz NOT NULL,
	expires_at timestamptz,
	server text COLLATE "C" NOT NULL,
	sender_role text COLLATE "C" NOT NULL,
	sender text COLLATE "C" NOT NULL,
	dedup_key text COLLATE "C",
	vsn text COLLATE "C",
	incarnation bigint,					-- it is for this one only; null: for whichever lives
	timer bigint,						-- the timer that it comes of
	token text COLLATE "C",				-- by which the caller who waits is answered
	context jsonb,
	message jsonb NOT NULL,
	failed_at timestamptz NOT NULL,
	attempts integer NOT NULL,
	sqlstate text COLLATE "C" NOT NULL,
	error jsonb NOT NULL,
	PRIMARY KEY (id)
);
CREATE INDEX letter_server_idx ON dgen.letter (server, id);
CREATE INDEX letter_failed_idx ON dgen.letter (failed_at);

/*
 * Replies that outlive their activation: to send_request, and to calls with
 * a request_key.  id: the request's message id, or for a call a value of the
 * same sequence.  Of reply and error one is set, or neither while the handler's reply
 * is yet to come.
 */
CREATE TABLE dgen.reply (
	id bigint NOT NULL,
	server text COLLATE "C" NOT NULL,
	replied_at timestamptz NOT NULL,
	expires_at timestamptz NOT NULL,
	request_hash bigint,				-- of the request's bytes, for OT013
	request_key text COLLATE "C",
	sender_role text COLLATE "C" NOT NULL,
	reply jsonb,
	error jsonb,
	PRIMARY KEY (id)
);
CREATE INDEX reply_key_idx ON dgen.reply (server, request_key);
CREATE INDEX reply_expires_idx ON dgen.reply (expires_at);

CREATE TABLE dgen.dedup (
	server text COLLATE "C" NOT NULL,
	dedup_key text COLLATE "C" NOT NULL,
	id bigint NOT NULL,
	expires_at timestamptz NOT NULL
);
CREATE INDEX dedup_key_idx ON dgen.dedup (server, dedup_key);
CREATE INDEX dedup_expires_idx ON dgen.dedup (expires_at);

/*
 * The tombstones that stand, as their servers' rows say.  Every send looks
 * here, and as long as the table has no page needs to look no farther: so
 * rows that have expired go, and vacuum comes early.
 */
CREATE TABLE dgen.tombstone (
	server text COLLATE "C" NOT NULL,
	expires_at timestamptz NOT NULL
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1);
CREATE INDEX tombstone_server_idx ON dgen.tombstone (server);
CREATE INDEX tombstone_expires_idx ON dgen.tombstone (expires_at);

/*
 * Who watches whom.  ref is of the messages' sequence, and lower than the id
 * of the DOWN.  A row goes when either incarnation ends.
 */
CREATE TABLE dgen.monitor (
	ref bigint NOT NULL,
	server text COLLATE "C" NOT NULL,
	watcher text COLLATE "C" NOT NULL,
	incarnation bigint NOT NULL,		-- of the watcher
	set_at timestamptz NOT NULL,
	PRIMARY KEY (ref)
);
CREATE INDEX monitor_server_idx ON dgen.monitor (server);
CREATE INDEX monitor_watcher_idx ON dgen.monitor (watcher);

/* Names of servers.  incarnation: the name goes with it; null: it is permanent. */
CREATE TABLE dgen.name (
	name text COLLATE "C" NOT NULL,
	server text COLLATE "C" NOT NULL,
	incarnation bigint,
	metadata jsonb,
	registered_at timestamptz NOT NULL,
	registered_by text COLLATE "C" NOT NULL,
	PRIMARY KEY (name)
);
CREATE INDEX name_server_idx ON dgen.name (server);

/*
 * View dgen.names is a security barrier, which only leakproof operators get
 * past; jsonb's own @> is not marked as one.  This one is, and searches like
 * class jsonb_path_ops.
 */
CREATE FUNCTION dgen.metadata_contains(metadata jsonb, pattern jsonb)
RETURNS boolean LANGUAGE c IMMUTABLE STRICT LEAKPROOF PARALLEL SAFE
AS 'MODULE_PATHNAME', 'dgen_metadata_contains';
COMMENT ON FUNCTION dgen.metadata_contains(jsonb, jsonb) IS
'does the metadata contain the pattern? Operator @> of this schema';
CREATE OPERATOR dgen.@> (
	LEFTARG = jsonb, RIGHTARG = jsonb, FUNCTION = dgen.metadata_contains,
	RESTRICT = matchingsel, JOIN = matchingjoinsel
);
COMMENT ON OPERATOR dgen.@> (jsonb, jsonb) IS
'contains, as jsonb''s own; leakproof, so that view dgen.names can use its index';
CREATE OPERATOR CLASS dgen.metadata_ops FOR TYPE jsonb USING gin AS
	OPERATOR 7 dgen.@>(jsonb, jsonb),
	FUNCTION 1 btint4cmp(integer, integer),
	FUNCTION 2 gin_extract_jsonb_path(jsonb, internal, internal),
	FUNCTION 3 gin_extract_jsonb_query_path(jsonb, internal, smallint, internal, internal, internal, internal),
	FUNCTION 4 gin_consistent_jsonb_path(internal, smallint, jsonb, integer, internal, internal, internal, internal),
	FUNCTION 6 gin_triconsistent_jsonb_path(internal, smallint, jsonb, integer, internal, internal, internal),
	STORAGE integer;
CREATE INDEX name_metadata_idx ON dgen.name USING gin (metadata dgen.metadata_ops)
	WITH (fastupdate = off);

/* Members of groups; incarnation as in dgen.name, and in the same place. */
CREATE TABLE dgen.member (
	name text COLLATE "C" NOT NULL,		-- of the group
	server text COLLATE "C" NOT NULL,
	incarnation bigint,
	joined_at timestamptz NOT NULL,
	joined_by text COLLATE "C" NOT NULL,
	PRIMARY KEY (name, server)
);
CREATE INDEX member_server_idx ON dgen.member (server);

/*
 * What is traced, and what was seen: an entry's place is its number modulo the
 * trace's max_rows.  target: an address, or a module's name and a slash.
 * Neither is dumped: a copy is not being traced.
 */
CREATE SEQUENCE dgen.trace_id;
CREATE TABLE dgen.trace (
	id bigint NOT NULL,
	target text COLLATE "C" NOT NULL,
	started_at timestamptz NOT NULL,
	started_by text COLLATE "C" NOT NULL,
	ends_at timestamptz NOT NULL,
	keep_until timestamptz NOT NULL,
	max_rows integer NOT NULL,
	PRIMARY KEY (id)
);
CREATE INDEX trace_target_idx ON dgen.trace (target);
CREATE INDEX trace_keep_until_idx ON dgen.trace (keep_until);
CREATE TABLE dgen.trace_entry (
	trace bigint NOT NULL,
	place bigint NOT NULL,
	number bigint NOT NULL,
	at timestamptz NOT NULL,
	server text COLLATE "C" NOT NULL,
	kind text COLLATE "C" NOT NULL,
	sender text COLLATE "C",
	sender_role text COLLATE "C",
	old_version bigint,
	new_version bigint,
	replied boolean NOT NULL,
	exit_reason text COLLATE "C",
	duration bigint,					-- microseconds
	pid integer NOT NULL,
	message_size bigint NOT NULL,
	message jsonb,
	error jsonb
) WITH (autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_threshold = 2000,
	autovacuum_vacuum_cost_delay = 0);
CREATE INDEX trace_entry_place_idx ON dgen.trace_entry (trace, place);
CREATE INDEX trace_entry_server_idx ON dgen.trace_entry (server);

/*
 * What operators have changed by hand.  server: an address, or a module's name
 * and a slash.  what: before and after are 's' states, 'm' messages, 'd'
 * documents as dgen.export() makes them, 'p' a suspension.  undo: a patch, of a
 * state that is too large to be kept.
 */
CREATE TABLE dgen.audit (
	id bigint NOT NULL,
	at timestamptz NOT NULL,
	action text COLLATE "C" NOT NULL,
	server text COLLATE "C" NOT NULL,
	session_role text COLLATE "C" NOT NULL,
	"current_role" text COLLATE "C" NOT NULL,
	application_name text COLLATE "C",
	client text COLLATE "C",
	sender text COLLATE "C" NOT NULL,	-- a session's id, or the server whose handler did it
	reason text COLLATE "C",
	vsn text COLLATE "C",				-- of the state before
	incarnation bigint,					-- after it
	old_version bigint,
	new_version bigint,
	message_id bigint,
	affected bigint,					-- messages
	undoes bigint,						-- the row that it undoes
	what "char",
	before jsonb,
	after jsonb,
	undo jsonb,
	PRIMARY KEY (id)
) WITH (autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_threshold = 2000,
	autovacuum_vacuum_cost_delay = 0);
CREATE INDEX audit_at_idx ON dgen.audit (at);
CREATE INDEX audit_server_idx ON dgen.audit (server, id);
