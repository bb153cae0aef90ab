/*-------------------------------------------------------------------------
 *
 * undo.c
 *	  dgen.undo(): takes back what a row of dgen.audit says was done.
 *
 *	  replace_state, rollback			the state before, as a new version
 *	  delete, kill, stop				the server as it was, as a new incarnation
 *	  import, clone						as it was before, or not at all
 *	  discard, cancel					the message, under its old id
 *	  suspend, resume					the opposite
 *
 * All else is gone with what it did, or kept nothing: that is refused.  So is,
 * unless forced, what the server has moved on from.  An undo is an ordinary
 * operator's change, and writes its own row, which can be undone in turn.
 *
 * Runs in any process; takes the server's lease.
 *
 *-------------------------------------------------------------------------
 */
#include "module.h"

#include "audit.h"
#include "document.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

typedef struct Undo
{
	DgenAudit	row;
	DgenModule *module;
	DgenAddress address;		/* of a server */
	bool		force;
	const char *reason;
} Undo;

/* ---------------------------------------------------------------- refusals */

pg_noreturn static void
not_kept(Undo *u)
{
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("change %lld cannot be undone", (long long) u->row.id),
			 errdetail("What there was before was not kept: it was larger than dgen.audit_max_size."),
			 errhint("See dgen.history(%s), if the module keeps one, and dgen.rollback().",
					 quote_literal_cstr(u->row.server))));
}

/* Unless that does not matter. */
static void
moved_on(Undo *u, const char *detail)
{
	if (u->force)
		return;
	ereport(ERROR,
			(errcode(ERRCODE_DGEN_VERSION_MISMATCH),
			 errmsg("server \"%s\" has moved on since change %lld", u->row.server,
					(long long) u->row.id),
			 errdetail_internal("%s", detail),
			 errhint("Look at dgen.audit_log and dgen.state(), and pass force => true to undo it all the same.")));
}

/* ---------------------------------------------------------------- states */

/* As dgen.rollback() does it with a version of the history. */
static void
set_state(Undo *u, DgenServer *server, Jsonb *state)
{
	DgenActivation act;

	dgen_admin_act(&act, u->module, &u->address, server, "undo");
	CommandCounterIncrement();
	PushActiveSnapshot(GetTransactionSnapshot());
	dgen_module_hold(u->module);
	PG_TRY();
	{
		dgen_activation_set_state(&act, dgen_migrate_state(&act, state,
														   unconstify(char *, u->row.vsn)));
	}
	PG_FINALLY();
	{
		dgen_module_release(u->module);
	}
	PG_END_TRY();
	PopActiveSnapshot();
}

static void
undo_state(Undo *u)
{
	DgenAudit	audit = {.action = "replace_state",.reason = u->reason};
	DgenTable  *table;
	DgenServer *server = dgen_admin_open(u->module, &u->address, &table);
	Jsonb	   *before;
	int64		version;

	if (!server->exists || !server->active)
		dgen_admin_no_server(u->module, server);
	if (server->version != u->row.new_version || server->incarnation != u->row.incarnation)
		moved_on(u, psprintf("Its state was at version %lld then, and is at version %lld.",
							 (long long) u->row.new_version, (long long) server->version));
	/* the patch leads back from that version only */
	if (u->row.before == NULL && u->row.undo != NULL && server->version == u->row.new_version)
		u->row.before = dgen_jsonb_merge(server->state, u->row.undo);
	if (u->row.before == NULL)
		not_kept(u);
	before = server->state;
	version = server->version;
	audit.vsn = server->vsn;
	set_state(u, server, u->row.before);
	dgen_admin_close(table, server);
	dgen_audit_state(&audit, server, before, version);
}

/* ---------------------------------------------------------------- servers */

/* Is there one, that anything would be lost of? */
static bool
is_there(Undo *u, DgenServer *server)
{
	DgenTable  *table;
	DgenServer *found = dgen_admin_open(u->module, &u->address, &table);
	bool		there = found->exists && found->tombstone_until == 0;

	*server = *found;
	dgen_admin_close(table, found);
	return there;
}

static void
import_before(Undo *u, bool with_mailbox, bool replace)
{
	DgenImport	import = {.document = u->row.before,.with_mailbox = with_mailbox,.with_names = true,.trusted = true,.kind = "import"};

	if (import.document == NULL)
		not_kept(u);
	(void) dgen_import_server(u->module, &u->address, &import, replace, u->reason);
}

static void
undo_delete(Undo *u)
{
	DgenServer	server;
	bool		there = is_there(u, &server);

	if (there)
		moved_on(u, psprintf("It was started again: its incarnation is %lld.",
							 (long long) server.incarnation));
	import_before(u, true, there);
}

/*
 * The mailbox was kept, and is as it is now: so the document, which has none,
 * is put into the row that there is.
 */
static void
undo_end(Undo *u)
{
	DgenImport	import = {.document = u->row.before,.with_names = true,.trusted = true,.kind = "import"};
	DgenTable  *table;
	DgenServer *server;

	if (import.document == NULL)
		not_kept(u);
	server = dgen_admin_open(u->module, &u->address, &table);
	if (server->active)
		ereport(ERROR,
				(errcode(ERRCODE_DGEN_VERSION_MISMATCH),
				 errmsg("server \"%s\" has moved on since change %lld", u->row.server,
						(long long) u->row.id),
				 errdetail("It was started again: its incarnation is %lld.", (long long) server->incarnation),
				 errhint("Give it a state by dgen.replace_state(), or stop it first.")));
	if (server->exists && server->incarnation != u->row.incarnation)
		moved_on(u, psprintf("Its incarnation was %lld then, and is %lld.",
							 (long long) u->row.incarnation, (long long) server->incarnation));
	dgen_import_revive(u->module, &u->address, server, &import, u->reason);
	dgen_admin_close(table, server);
}

/* What was imported goes; what it replaced comes back. */
static void
undo_import(Undo *u)
{
	DgenAudit	audit = {.action = "delete",.server = u->address.text,.reason = u->reason,.what = DGEN_AUDIT_DOCUMENT};
	DgenTable  *table;
	DgenServer *server = dgen_admin_open(u->module, &u->address, &table);

	if (!server->exists || server->incarnation != u->row.incarnation ||
		server->version != u->row.new_version)
		moved_on(u, psprintf("Its incarnation was %lld then and its state at version %lld; they are %lld and %lld.",
							 (long long) u->row.incarnation, (long long) u->row.new_version,
							 (long long) server->incarnation, (long long) server->version));
	if (u->row.before == NULL && u->row.undo != NULL)
		not_kept(u);
	if (u->row.before != NULL)
	{
		dgen_admin_close(table, server);
		import_before(u, true, true);
		return;
	}
	audit.old_version = server->version;
	if (server->exists)
		audit.before = dgen_export_server(u->module, &u->address, server, true, false, NULL,
										  dgen_audit_limit());
	(void) dgen_admin_erase(u->module, &u->address, server, "Its import was undone.");
	server->erased = true;
	server->dirty = true;
	dgen_admin_close(table, server);
	if (dgen_audit_wanted(false))
		dgen_audit_write(&audit);
}

/* ---------------------------------------------------------------- messages */

static bool
has_id(DgenTableId id, int64 message_id)
{
	DgenTable  *table = dgen_table_open(id, AccessShareLock);
	ItemPointerData tid;
	bool		found = dgen_table_find(table, message_id, &tid);

	dgen_table_close(table);
	return found;
}

/* Whoever waited for the reply has an error; the next one is kept. */
static void
forget_reply(int64 id)
{
	DgenTable  *table = dgen_table_open(DGEN_T_REPLY, RowExclusiveLock);
	ItemPointerData tid;

	if (dgen_table_find(table, id, &tid))
		(void) dgen_table_delete_wait(table, &tid);
	dgen_table_close(table);
	CommandCounterIncrement();
}

static void
put_back(Undo *u, DgenMessage *msg, const char *status)
{
	if (strcmp(status, "dead") == 0)
	{
		dgen_doc_insert_letter(u->row.before, msg);
		return;
	}
	if (msg->kind == DGEN_KIND_REQUEST)
		forget_reply(msg->id);
	if (msg->due_at > GetCurrentTimestamp())
		dgen_mailbox_schedule(u->module, msg);
	else
	{
		msg->due_at = 0;
		dgen_mailbox_put_back(u->module, msg);
	}
}

/* The server goes on with this one before all others, as it would have; unless it goes on with another. */
static void
note_continue(DgenServer *server, DgenMessage *msg)
{
	if (msg->kind != DGEN_KIND_CONTINUE || !server->active || server->continue_id != 0)
		return;
	msg->incarnation = server->incarnation;
	server->continue_id = msg->id;
	server->ahead = true;
	server->dirty = true;
}

/* Under the lease: nobody moves a message of the server meanwhile. */
static void
undo_discard(Undo *u)
{
	DgenAudit	audit = {.action = "undo",.reason = u->reason};
	DgenTable  *table;
	DgenServer *server;
	DgenMessage msg;
	char	   *status;

	if (u->row.before == NULL)
		not_kept(u);
	status = dgen_doc_need_text(u->row.before, "status");
	dgen_doc_get_message(u->row.before, &u->address, &msg);
	if (msg.kind == DGEN_KIND_TIMEOUT)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("change %lld cannot be undone", (long long) u->row.id),
				 errdetail("It discarded an idle timeout, which the next activation sets anew.")));
	server = dgen_admin_open(u->module, &u->address, &table);
	if (u->row.incarnation != 0 && server->incarnation != u->row.incarnation)
		moved_on(u, psprintf("Its incarnation was %lld then, and is %lld.",
							 (long long) u->row.incarnation, (long long) server->incarnation));
	if (has_id(DGEN_T_MESSAGE, msg.id) || has_id(DGEN_T_DELAYED, msg.id) ||
		has_id(DGEN_T_POSTPONED, msg.id) || has_id(DGEN_T_LETTER, msg.id))
		ereport(ERROR,
				(errcode(ERRCODE_DGEN_VERSION_MISMATCH),
				 errmsg("message %lld is there again", (long long) msg.id),
				 errdetail("It was put back since it was discarded."),
				 errhint("See dgen.messages and dgen.dead_letters.")));
	/* as a dead letter that is requeued: for whichever incarnation lives */
	msg.incarnation = msg.timer = 0;
	if (strcmp(status, "dead") != 0)
		note_continue(server, &msg);
	put_back(u, &msg, status);
	dgen_audit_message(&audit, &msg, status);
	audit.after = audit.before;
	audit.before = NULL;
	audit.incarnation = server->incarnation;
	dgen_admin_close(table, server);
	if (dgen_audit_wanted(false))
		dgen_audit_write(&audit);
}

/* ---------------------------------------------------------------- suspension */

/* Is the server's suspension the one that the change made, or, of a resume, is there none? */
static bool
same_suspension(Jsonb *then, TimestampTz now)
{
	return then == NULL ? now == 0 : now == dgen_doc_get_time(then, "at", 0);
}

static void
undo_suspension(Undo *u)
{
	DgenAudit	audit = {.server = u->row.server,.reason = u->reason,.what = DGEN_AUDIT_SUSPENSION};
	DgenTable  *table;
	DgenServer *server = dgen_admin_open(u->module, &u->address, &table);
	Jsonb	   *to = u->row.before;

	if (!same_suspension(u->row.after, server->suspended ? server->suspended_at : 0))
		moved_on(u, server->suspended ? "It was suspended anew." : "It was resumed.");
	audit.action = to ? "suspend" : "resume";
	if (server->suspended)
		audit.before = dgen_doc_suspension(server->suspended_at, server->suspended_by, NULL);
	dgen_admin_set_suspended(server, to ? GetCurrentTimestamp() : 0,
							 to ? dgen_doc_get_text(to, "by") : NULL);
	if (server->suspended)
		audit.after = dgen_doc_suspension(server->suspended_at, server->suspended_by, NULL);
	dgen_admin_close(table, server);
	audit.incarnation = server->incarnation;
	if (dgen_audit_wanted(false))
		dgen_audit_write(&audit);
}

static void
undo_module_suspension(Undo *u)
{
	DgenModuleRow row;
	TimestampTz now = 0;

	dgen_module_lock(u->module->name);
	if (dgen_module_row_read(u->module->name, &row) && !row.nulls[MODULE_SUSPENDED_AT])
		now = DatumGetTimestampTz(row.values[MODULE_SUSPENDED_AT]);
	if (!same_suspension(u->row.after, now))
		moved_on(u, now != 0 ? "It was suspended anew." : "It was resumed.");
	if (u->row.before == NULL)
		dgen_admin_resume_module(u->module, u->reason);
	else
		dgen_admin_suspend_module(u->module, dgen_doc_get_text(u->row.before, "by"),
								  dgen_doc_get_text(u->row.before, "reason"));
}

/* ---------------------------------------------------------------- SQL */

static const struct
{
	const char *action;
	void		(*undo) (Undo *u);
}			actions[] = {
	{"replace_state", undo_state},
	{"rollback", undo_state},
	{"delete", undo_delete},
	{"kill", undo_end},
	{"stop", undo_end},
	{"import", undo_import},
	{"clone", undo_import},
	{"discard", undo_discard},
	{"cancel", undo_discard},
	{"suspend", undo_suspension},
	{"resume", undo_suspension}
};

static void
run_undo(Undo *u)
{
	int			len = strlen(u->row.server);

	/* a module's name and a slash, and no more: a key may end with one, too */
	if (u->row.what == DGEN_AUDIT_SUSPENSION && strchr(u->row.server, '/') == u->row.server + len - 1)
	{
		undo_module_suspension(u);
		return;
	}
	for (int i = 0; i < lengthof(actions); i++)
	{
		if (strcmp(actions[i].action, u->row.action) != 0)
			continue;
		dgen_address_parse(u->row.server, len, &u->address);
		actions[i].undo(u);
		return;
	}
	ereport(ERROR,
			(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
			 errmsg("change %lld cannot be undone", (long long) u->row.id),
			 errdetail("dgen.%s() has done what cannot be taken back.", u->row.action),
			 errhint("What can be undone is a change of a state, a discarded message, the end of a server, an import, a suspension.")));
}

/* The module of a row's server, or of the row itself. */
static DgenModule *
module_of(const char *server)
{
	char		name[NAMEDATALEN];

	strlcpy(name, server, Min(sizeof(name), strchr(server, '/') - server + 1));
	return dgen_module_get(name, false);
}

pg_noreturn static void
no_such_row(int64 id)
{
	ereport(ERROR,
			(errcode(ERRCODE_UNDEFINED_OBJECT),
			 errmsg("there is no change %lld in dgen.audit_log", (long long) id),
			 errhint("Rows are kept for dgen.audit_retention.")));
}

PG_FUNCTION_INFO_V1(dgen_undo);

/* undo(id bigint, force boolean, reason text) -> bigint: the id of its own row, null if none was written */
Datum
dgen_undo(PG_FUNCTION_ARGS)
{
	Undo		u = {.force = !PG_ARGISNULL(1) && PG_GETARG_BOOL(1),.reason = dgen_arg_text(fcinfo, 2)};
	int64		last = dgen_audit_last();
	int64		outer;

	if (PG_ARGISNULL(0))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("id of a change must not be null"),
				 errhint("See dgen.audit_log for ids.")));
	CommandCounterIncrement();
	if (!dgen_audit_read(PG_GETARG_INT64(0), &u.row) || !dgen_is_visible(u.row.server))
		no_such_row(PG_GETARG_INT64(0));
	u.module = module_of(u.row.server);
	dgen_module_check_operate(u.module);
	dgen_check_writable();
	if (dgen_batch_active())
		dgen_batch_split("dgen.undo()");

	outer = dgen_audit_undoing(u.row.id);
	PG_TRY();
	{
		run_undo(&u);
	}
	PG_FINALLY();
	{
		(void) dgen_audit_undoing(outer);
	}
	PG_END_TRY();
	if (dgen_audit_last() == last)
		PG_RETURN_NULL();
	PG_RETURN_INT64(dgen_audit_last());
}
