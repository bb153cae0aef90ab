/*-------------------------------------------------------------------------
 *
 * admin.c
 *	  What operators do with servers: start, stop, delete, kill, and reading or
 *	  replacing a state; what this has in common with suspend.c and its kin.
 *
 * All of it runs in the caller's backend (or in a handler, which then is the
 * caller) and joins the caller's transaction.  Whoever writes a server's row
 * holds its lease, so each of these waits for the activation that is running,
 * and when it returns none is; the lease goes with the transaction, and the
 * server is then rung for what its worker had to put off.
 *
 * Inside a worker's batch the row may be newer in memory than in the table:
 * then the batch's own copy is changed, and what is put into it must outlive
 * the handler's memory.
 *
 * A server whose handler is running, or waits for another one's, cannot be
 * operated from there: the activation has it in hand and would write over it.
 *
 *-------------------------------------------------------------------------
 */
#include "module.h"
#include "audit.h"
#include "document.h"
#include "stat.h"

#include "access/xact.h"
#include "catalog/pg_database.h"
#include "utils/acl.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

/* a module that this transaction has resumed, or a server that it has stopped */
typedef struct Change
{
	Oid			owner;			/* of its pool, as the next */
	DgenPoolKind pool;
	int32		module_id;
	int64		hash;			/* 0: the module was resumed */
	SubTransactionId subid;
} Change;

static List *changes = NIL;		/* in TopTransactionContext, entries too */
static bool committed = false;	/* they are to be told */

PG_FUNCTION_INFO_V1(dgen_start);
PG_FUNCTION_INFO_V1(dgen_stop);
PG_FUNCTION_INFO_V1(dgen_kill);
PG_FUNCTION_INFO_V1(dgen_delete);
PG_FUNCTION_INFO_V1(dgen_state);
PG_FUNCTION_INFO_V1(dgen_replace_state);

/* ---------------------------------------------------------------- access */

static void
check_not_running(const DgenAddress *address)
{
	for (DgenScope *scope = dgen_scope; scope != NULL; scope = scope->up)
	{
		if (scope->server == NULL || strcmp(scope->server, address->text) != 0)
			continue;
		ereport(ERROR,
				(errcode(ERRCODE_DGEN_CALL_CYCLE),
				 errmsg("server \"%s\" cannot be operated from within its own handler", address->text),
				 errdetail("Its %s is running.", dgen_callback_name(scope->callback)),
				 errhint("To stop, end the handler with dgen.exit(reason); all else is done from outside.")));
	}
}

/*
 * Take a server in hand: its lease, and its row as it is now.  The caller has
 * checked his rights, and gives it back by dgen_admin_close().
 */
DgenServer *
dgen_admin_open(DgenModule *module, const DgenAddress *address, DgenTable **table)
{
	DgenServer *server;

	check_not_running(address);
	dgen_batch_flush();
	dgen_batch_touch(address->hash);
	(void) dgen_lease_take(address->hash, true);
	dgen_ring_at_end(module, address->hash);

	*table = dgen_table_open(DGEN_T_SERVER, RowExclusiveLock);
	server = dgen_batch_server(address->text);
	if (server != NULL)
		dgen_server_save(server);
	else
		server = dgen_server_read(*table, address->text, address->hash, NULL);
	dgen_server_check_snapshot(server);
	return server;
}

/* Write what was changed. */
void
dgen_admin_close(DgenTable *table, DgenServer *server)
{
	dgen_batch_keep(server);
	dgen_server_write(table, server, NULL);
	dgen_table_close(table);
}

/* Something to be told to others when this transaction commits; hash 0: the module was resumed. */
void
dgen_admin_remember(DgenModule *module, int64 hash)
{
	MemoryContext old = MemoryContextSwitchTo(TopTransactionContext);
	Change	   *entry = palloc(sizeof(Change));

	entry->owner = DGEN_POOL_OWNER(module);
	entry->pool = DGEN_POOL_OF(module);
	entry->module_id = module->id;
	entry->hash = hash;
	entry->subid = GetCurrentSubTransactionId();
	changes = lappend(changes, entry);
	MemoryContextSwitchTo(old);
}

/* A string that lives as long as the server's struct, which may be a batch's. */
static char *
server_string(DgenServer *server, const char *s)
{
	return MemoryContextStrdup(GetMemoryChunkContext(server), s);
}

/* No message of the server is waiting for another attempt. */
void
dgen_admin_not_failing(DgenServer *server)
{
	if (!server->failing)
		return;
	server->failing = false;
	server->dirty = true;
	dgen_server_erase_if_empty(server);
}

/* OT003 */
void
dgen_admin_no_server(DgenModule *module, const DgenServer *server)
{
	ereport(ERROR,
			(errcode(ERRCODE_DGEN_NO_SERVER),
			 errmsg("server \"%s\" does not exist", server->address),
			 module->ephemeral ? errdetail("Module \"%s\" is ephemeral: its servers keep no state.", module->name) :
			 server->tombstone_until != 0 ? errdetail("It was deleted.") :
			 server->stop_reason ? errdetail("It stopped with reason \"%s\".", server->stop_reason) :
			 errdetail("It was never started, or was deleted."),
			 module->ephemeral ? errhint("Send it a message: it comes to life for each.") :
			 errhint("Start it by dgen.start(%s).", quote_literal_cstr(server->address))));
}

/* An activation that is the caller's own doing, with the module's owner's code. */
void
dgen_admin_act(DgenActivation *act, DgenModule *module, const DgenAddress *address,
			   DgenServer *server, const char *kind)
{
	DgenMessage from;

	dgen_message_init(&from, address, DGEN_KIND_INFO, NULL);
	memset(act, 0, sizeof(DgenActivation));
	act->module = module;
	act->server = server;
	act->identity = DGEN_AS_OWNER;
	act->kind = kind;
	act->context = from.context;
	act->sender = from.sender;
	act->sender_role = from.sender_role;
	act->message_vsn = from.vsn;
}

/* The module of the address in argument 0, which the caller wants to operate. */
DgenModule *
dgen_admin_operated(FunctionCallInfo fcinfo, DgenAddress *address)
{
	DgenModule *module;

	dgen_address_arg(fcinfo, 0, address);
	module = dgen_module_get(address->module, false);
	dgen_module_check_operate(module);
	dgen_check_writable();
	return module;
}

static const char *
reason_argument(FunctionCallInfo fcinfo, int argno, const char *otherwise)
{
	char	   *reason = dgen_arg_text(fcinfo, argno);

	return reason ? reason : otherwise;
}

/* ---------------------------------------------------------------- start */

/* if_exists: is it 'return'? */
static bool
returns_existing(FunctionCallInfo fcinfo, int argno)
{
	char	   *word = dgen_arg_text(fcinfo, argno);

	if (word == NULL || strcmp(word, "error") == 0)
		return false;
	if (strcmp(word, "return") == 0)
		return true;
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("invalid value for argument if_exists"),
			 errdetail("Its value is \"%s\".", word),
			 errhint("Allowed are 'error' and 'return'.")));
}

static void
check_startable(DgenModule *module, DgenServer *server)
{
	if (server->active)
		ereport(ERROR,
				(errcode(ERRCODE_DGEN_ALREADY_STARTED),
				 errmsg("server \"%s\" is already started", server->address),
				 errdetail("Its incarnation is %lld.", (long long) server->incarnation),
				 errhint("Pass if_exists => 'return' to accept that, or stop it first by dgen.stop(%s).",
						 quote_literal_cstr(server->address))));
	if (server->supervised)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("server \"%s\" is started by its supervisor", server->address),
				 errdetail("It is down, with reason \"%s\".",
						   server->stop_reason ? server->stop_reason : "never started"),
				 errhint("See dgen.children, and use dgen.restart_child().")));
	if (server->suspended)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("server \"%s\" is suspended", server->address),
				 errdetail("It was suspended by %s.",
						   server->suspended_by ? server->suspended_by : "an operator"),
				 errhint("Run SELECT dgen.resume(%s).", quote_literal_cstr(server->address))));
	dgen_module_check_running(module);
}

/* Run init here and now, as the module's owner, with the caller as its sender. */
void
dgen_admin_init(DgenModule *module, const DgenAddress *address, DgenServer *server, Jsonb *args)
{
	DgenActivation act;

	dgen_admin_act(&act, module, address, server, "init");
	/* who waited for the lease sees what its holder has committed */
	CommandCounterIncrement();
	PushActiveSnapshot(GetTransactionSnapshot());
	dgen_module_hold(module);
	PG_TRY();
	{
		dgen_activation_start(&act, args);
		if (DGEN_USES_TIMEOUT(&act))
			dgen_timeout_settle(&act);
	}
	PG_FINALLY();
	{
		dgen_module_release(module);
	}
	PG_END_TRY();
	PopActiveSnapshot();
}

/*
 * start(server text, args jsonb, if_exists text) -> bigint: the incarnation.
 * A tombstone does not hinder it: that is meant for senders.
 */
Datum
dgen_start(PG_FUNCTION_ARGS)
{
	DgenAddress address;
	DgenModule *module = dgen_admin_operated(fcinfo, &address);
	Jsonb	   *args = dgen_arg_jsonb(fcinfo, 1);
	bool		or_return = returns_existing(fcinfo, 2);
	DgenTable  *table;
	DgenServer *server;

	dgen_check_enabled();
	if (module->ephemeral)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("server \"%s\" cannot be started", address.text),
				 errdetail("Module \"%s\" is ephemeral: its servers keep no state, and live for one message each.",
						   module->name),
				 errhint("Send it a message, or run dgen.alter_module(%s, ephemeral => false).",
						 quote_literal_cstr(module->name))));

	server = dgen_admin_open(module, &address, &table);
	if (!server->active || !or_return)
	{
		check_startable(module, server);
		dgen_admin_init(module, &address, server, args);
	}
	dgen_admin_close(table, server);
	PG_RETURN_INT64(server->incarnation);
}

/* ---------------------------------------------------------------- audit */

/* What is about to go of a server, if it is not too much. */
static void
note_document(DgenAudit *audit, DgenModule *module, const DgenAddress *address, DgenServer *server,
			  bool with_mailbox)
{
	audit->what = DGEN_AUDIT_DOCUMENT;
	audit->old_version = server->version;
	if (dgen_audit_wanted(true) && server->exists)
		audit->before = dgen_export_server(module, address, server, with_mailbox, false, NULL,
										   dgen_audit_limit());
}

/* The server has been written; handlers do such things as a matter of course. */
static void
write_audit(DgenAudit *audit, DgenServer *server)
{
	if (!dgen_audit_wanted(true))
		return;
	audit->incarnation = server->incarnation;
	audit->new_version = server->version;
	dgen_audit_write(audit);
}

/* ---------------------------------------------------------------- stop */

/* End an incarnation; false if none lives. */
static bool
stop_server(FunctionCallInfo fcinfo, const char *reason, bool forget)
{
	DgenAddress address;
	DgenModule *module = dgen_admin_operated(fcinfo, &address);
	DgenTable  *table;
	DgenServer *server = dgen_admin_open(module, &address, &table);
	bool		was_active = server->active;
	DgenAudit	audit = {.action = forget ? "kill" : "stop",.server = address.text,.reason = reason};

	if (!server->exists)
		dgen_admin_no_server(module, server);
	if (was_active)
	{
		note_document(&audit, module, &address, server, false);
		if (forget)
			dgen_activation_kill(module, server, reason);
		else
			dgen_activation_stop(module, server, reason);
		dgen_admin_remember(module, server->hash);
		if (forget)
			server->state = NULL;
		if (server->state == NULL)
		{
			DgenActivation act;

			dgen_admin_act(&act, module, &address, server, forget ? "kill" : "stop");
			dgen_history_note(&act, act.kind);
			dgen_attributes_update(module, server, DGEN_AS_OWNER);
		}
	}
	dgen_admin_close(table, server);
	if (was_active)
		write_audit(&audit, server);
	return was_active;
}

/* stop(server text, reason text) -> boolean */
Datum
dgen_stop(PG_FUNCTION_ARGS)
{
	PG_RETURN_BOOL(stop_server(fcinfo, reason_argument(fcinfo, 1, "normal"), false));
}

/*
 * kill(server text, reason text) -> boolean: as an exit signal "kill", no
 * callback runs and nothing of the state is kept; the mailbox is.
 */
Datum
dgen_kill(PG_FUNCTION_ARGS)
{
	PG_RETURN_BOOL(stop_server(fcinfo, reason_argument(fcinfo, 1, "killed"), true));
}

/* ---------------------------------------------------------------- delete */

/* The server as if it had never been. */
static void
erase_server(DgenServer *server)
{
	server->active = server->failing = server->suspended = server->supervised = false;
	server->crashes = 0;
	server->continue_id = 0;
	dgen_history_erase(server);
	server->incarnation = server->version = server->good_version = 0;
	server->started_at = server->suspended_at = server->tombstone_until = 0;
	server->timeout_at = server->timeout_id = server->timeout_due = server->used_at = 0;
	server->suspended_by = server->stop_reason = server->vsn = NULL;
	server->state = NULL;
	server->state_changed = false;
	server->postponed = 0;
	server->continue_id = 0;
}

bool
dgen_admin_erase(DgenModule *module, const DgenAddress *address, DgenServer *server, const char *why)
{
	bool		found = server->exists && server->tombstone_until == 0;

	dgen_lock_break(server, why);
	dgen_progress_begin(DGEN_COMMAND_DELETE, module, false);
	found |= dgen_letter_erase(module, address) > 0;
	dgen_progress_end();
	found |= dgen_ties_end(server, "deleted", true) > 0;
	dgen_admin_remember(module, server->hash);
	erase_server(server);
	dgen_attributes_update(module, server, DGEN_AS_OWNER);
	return found;
}

/*
 * delete(server text, tombstone interval) -> boolean: state, mailbox, delayed
 * and postponed messages, their failures and dead letters.  It is how what is
 * broken beyond repair goes, so no code of the module runs.  Replies that were given are
 * their requesters', and stay for reply_ttl.
 */
Datum
dgen_delete(PG_FUNCTION_ARGS)
{
	DgenAddress address;
	DgenModule *module = dgen_admin_operated(fcinfo, &address);
	TimestampTz tombstone_until = 0;
	DgenAudit	audit = {.action = "delete",.server = address.text};
	int64		span;
	DgenTable  *table;
	DgenServer *server;
	bool		found;

	if (dgen_arg_interval(fcinfo, 1, "tombstone", false, &span))
		tombstone_until = dgen_time_after(GetCurrentTimestamp(), span, "tombstone");
	/* others of its batch may be about to handle what goes here */
	if (dgen_batch_active())
		dgen_batch_split("dgen.delete()");

	server = dgen_admin_open(module, &address, &table);
	note_document(&audit, module, &address, server, true);
	found = dgen_admin_erase(module, &address, server, "The server was deleted.");
	dgen_trace_erase(&address);
	dgen_statistics_erase(&address);
	dgen_stat_forget_server(&address);
	server->tombstone_until = tombstone_until;
	server->erased = tombstone_until == 0;
	server->dirty = true;
	dgen_admin_close(table, server);
	if (found)
		write_audit(&audit, server);
	PG_RETURN_BOOL(found);
}

/* ---------------------------------------------------------------- ends */

static void
tell_resumed(void)
{
	DgenDatabase *db = dgen_database(MyDatabaseId, false);
	bool		resumed = false;
	ListCell   *lc;

	foreach(lc, changes)
	{
		Change	   *entry = lfirst(lc);

		if (entry->hash != 0)
			continue;
		dgen_ready_ring_module(MyDatabaseId, entry->owner, entry->module_id);
		resumed = true;
	}
	if (!resumed)
		return;
	if (db != NULL)
		pg_atomic_write_u32(&db->resweep, 1);
	dgen_wake_keeper(MyDatabaseId, GetCurrentTimestamp());
}

/* While the leases are held: who has one next asks for it. */
static void
tell_stopped(void)
{
	ListCell   *lc;

	foreach(lc, changes)
	{
		Change	   *entry = lfirst(lc);

		if (entry->hash != 0)
			dgen_ready_stop_calls(MyDatabaseId, entry->owner, entry->pool, entry->module_id,
								  entry->hash);
	}
}

/*
 * At the end of a transaction: calls that wait for a server that it stopped are
 * told so.  Must not raise.
 */
void
dgen_admin_xact_callback(XactEvent event)
{
	if (event == XACT_EVENT_COMMIT)
	{
		committed = true;
		tell_stopped();
	}
	else if (event == XACT_EVENT_ABORT || event == XACT_EVENT_PREPARE)
		changes = NIL;
}

/* What a savepoint's rollback has undone need not be told. */
void
dgen_admin_subxact(SubXactEvent event, SubTransactionId my, SubTransactionId parent)
{
	ListCell   *lc;

	if (event != SUBXACT_EVENT_COMMIT_SUB && event != SUBXACT_EVENT_ABORT_SUB)
		return;
	foreach(lc, changes)
	{
		Change	   *entry = lfirst(lc);

		if (entry->subid < my)
			continue;
		if (event == SUBXACT_EVENT_COMMIT_SUB)
			entry->subid = parent;
		else
			changes = foreach_delete_current(changes, lc);
	}
}

/*
 * After the commit, when its invalidations have been sent: servers of the
 * modules that it resumed go on.  Those that calls wait for are parked and rung here;
 * those with messages are found by the keeper.  Must not raise.  A prepared
 * transaction rings nobody when it commits: then a ring by the next call or
 * message does.
 */
void
dgen_admin_ring(void)
{
	if (committed && changes != NIL)
		tell_resumed();
	if (committed)
		changes = NIL;
	committed = false;
}

/* ---------------------------------------------------------------- state */

/*
 * The state of a server as the statement's snapshot sees it, this
 * transaction's own changes included; OT003 where there is none.  A plain
 * read: SERIALIZABLE takes its predicate locks.  Works on a standby.
 */
Jsonb *
dgen_read_state(const DgenAddress *address, DgenServer *out)
{
	DgenTable  *table;

	dgen_batch_flush();
	PushCopiedSnapshot(GetActiveSnapshot());
	UpdateActiveSnapshotCommandId();
	table = dgen_table_open(DGEN_T_SERVER, AccessShareLock);
	*out = *dgen_server_read(table, address->text, address->hash, GetActiveSnapshot());
	dgen_table_close(table);
	PopActiveSnapshot();

	if (!out->exists || out->state == NULL)
		dgen_admin_no_server(dgen_module_get(address->module, false), out);
	return out->state;
}

/* state(server text) -> jsonb */
Datum
dgen_state(PG_FUNCTION_ARGS)
{
	DgenAddress address;
	DgenServer	server;

	dgen_address_arg(fcinfo, 0, &address);
	dgen_module_check_read(dgen_module_get(address.module, false));
	PG_RETURN_JSONB_P(dgen_read_state(&address, &server));
}

void
dgen_admin_check_version(DgenServer *server, int64 expected)
{
	if (server->version == expected)
		return;
	ereport(ERROR,
			(errcode(ERRCODE_DGEN_VERSION_MISMATCH),
			 errmsg("state of server \"%s\" has changed", server->address),
			 errdetail("It is at version %lld; version %lld was expected.",
					   (long long) server->version, (long long) expected),
			 errhint("Read state and version again from dgen.servers, and decide anew.")));
}

/*
 * Set the state after what a handler's state is put to: size, validate.  It is
 * one of the present code, whatever the one before was of.
 */
static void
set_state(DgenModule *module, const DgenAddress *address, DgenServer *server, Jsonb *state)
{
	DgenActivation act;

	dgen_admin_act(&act, module, address, server, "replace_state");
	CommandCounterIncrement();
	PushActiveSnapshot(GetTransactionSnapshot());
	dgen_module_hold(module);
	PG_TRY();
	{
		dgen_activation_set_state(&act, state);
		if (dgen_migration_due(module, server))
		{
			server->vsn = server_string(server, module->vsn);
			server->dirty = true;
		}
	}
	PG_FINALLY();
	{
		dgen_module_release(module);
	}
	PG_END_TRY();
	PopActiveSnapshot();
}

/*
 * replace_state(server text, state jsonb, expected_version bigint) -> bigint:
 * the new version, or the present one if the state is that already.  A
 * suspended server's, too: that is how one is mended.
 */
Datum
dgen_replace_state(PG_FUNCTION_ARGS)
{
	DgenAddress address;
	DgenModule *module = dgen_admin_operated(fcinfo, &address);
	DgenAudit	audit = {.action = "replace_state"};
	DgenTable  *table;
	DgenServer *server;
	Jsonb	   *before;
	int64		version;

	if (PG_ARGISNULL(1))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("state of a server must not be null"),
				 errhint("Write 'null'::jsonb if JSON null is meant.")));
	server = dgen_admin_open(module, &address, &table);
	if (!server->exists || !server->active)
		dgen_admin_no_server(module, server);
	if (!PG_ARGISNULL(2))
		dgen_admin_check_version(server, PG_GETARG_INT64(2));
	before = server->state;
	version = server->version;
	audit.vsn = server->vsn;
	set_state(module, &address, server, dgen_arg_jsonb(fcinfo, 1));
	dgen_admin_close(table, server);
	dgen_audit_state(&audit, server, before, version);
	PG_RETURN_INT64(server->version);
}
