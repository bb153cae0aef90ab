/*-------------------------------------------------------------------------
 *
 * import.c
 *	  A server of a document that export.c has made: dgen.import(), dgen.clone().
 *
 * It is an operator's change like any other: under the server's lease, in the
 * caller's transaction, audited.  The server is a new incarnation, whose state
 * is migrated and checked as that of a rollback is; init does not run.  Its
 * messages get new ids in their old order, and stand behind what waits there
 * already.  Nobody waits for the reply to any of them: what was a call is a
 * request, and what was promised to a requester stays with the original.
 *
 * Who writes a document can put anything into it, and what operators may do
 * with a server's state and messages they may do this way, too.  But effects
 * run as the module's owner, so these are taken from members of that role only.
 *
 * Runs in any process; takes the lease of the target.
 *
 *-------------------------------------------------------------------------
 */
#include "document.h"

#include "audit.h"
#include "pgtime.h"
#include "timer.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

#define MAX_OCCURRENCE INT64CONST(1000000000)

static const char *const document_keys[] = {
	"dgen", "format", "server", "exported_at", "status", "incarnation", "version", "vsn",
	"state_name", "state", "started_at", "updated_at", "stop_reason", "timeout_at", "timeout_due",
	"suspended", "names", "groups", "messages", "timers", "dead_letters", "history", NULL
};

static const char *const timer_keys[] = {
	"name", "incarnation", "due_at", "every", "start_at", "time_zone", "on_miss", "occurrence",
	"message", NULL
};

static const char *const name_keys[] = {"name", "permanent", "metadata", NULL};

/* ---------------------------------------------------------------- checks */

static void
refuse(const char *detail)
{
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("document cannot be imported"),
			 errdetail_internal("%s", detail),
			 errhint("Documents are made by dgen.export().")));
}

static void
check_format(Jsonb *document)
{
	char	   *what;
	int64		format;

	dgen_doc_check_keys(document, "document of a server", document_keys);
	what = dgen_doc_get_text(document, "dgen");
	format = dgen_doc_get_int(document, "format", 0);
	if (what == NULL || strcmp(what, "server") != 0)
		refuse("It is not one of a server.");
	if (format != DGEN_DOCUMENT_FORMAT)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("document has format %lld", (long long) format),
				 errdetail("This version of dgen reads format %d.", DGEN_DOCUMENT_FORMAT),
				 errhint("Export it by this version of dgen.")));
}

/* Messages that tell a server of itself cannot be given to it. */
static void
check_messages(DgenModule *module, const DgenImport *import, const char *key)
{
	ListCell   *lc;

	foreach(lc, dgen_doc_get_array(import->document, key))
	{
		char	   *kind = dgen_doc_need_text(lfirst(lc), "kind");

		CHECK_FOR_INTERRUPTS();
		if (strcmp(kind, "exit") == 0 || strcmp(kind, "timeout") == 0)
			refuse(psprintf("It has a message of kind \"%s\", which is the engine's own.", kind));
		if (strcmp(kind, "effect") == 0 && !import->trusted && !import->clone)
			dgen_check_may_promise(module, "Take the effects out of the document, or have a member of that role import it.");
	}
}

/* What a timer sends is an info: any other kind would pass by what is checked of messages. */
static void
check_timers(const DgenImport *import)
{
	ListCell   *lc;

	foreach(lc, dgen_doc_get_array(import->document, "timers"))
	{
		Jsonb	   *message = dgen_doc_get(lfirst(lc), "message");
		char	   *kind;

		CHECK_FOR_INTERRUPTS();
		if (message == NULL)
			refuse("A timer has no message.");
		kind = dgen_doc_need_text(message, "kind");
		if (strcmp(kind, "timer") != 0 && strcmp(kind, "info") != 0)
			refuse(psprintf("A timer has a message of kind \"%s\".", kind));
	}
}

static void
check_state(DgenModule *module, Jsonb *document)
{
	char	   *status = dgen_doc_need_text(document, "status");
	bool		has_state = dgen_doc_get(document, "state") != NULL;

	if (strcmp(status, "running") != 0 && strcmp(status, "stopped") != 0 &&
		strcmp(status, "new") != 0)
		refuse(psprintf("Its status is \"%s\".", status));
	if (strcmp(status, "running") == 0 && !has_state)
		refuse("The server runs, and there is no state.");
	if (has_state && module->machine && dgen_doc_get_text(document, "state_name") == NULL)
		refuse("The server is a state machine, and there is no \"state_name\".");
}

/* May this document be imported into a server of the module at all?  Changes nothing. */
void
dgen_import_check(DgenModule *module, const DgenImport *import)
{
	DgenAddress from;
	char	   *server;

	check_format(import->document);
	server = dgen_doc_need_text(import->document, "server");
	dgen_address_parse(server, strlen(server), &from);
	if (strcmp(from.module, module->name) != 0)
		refuse(psprintf("It is of a server of module \"%s\", and not of \"%s\".",
						from.module, module->name));
	if (module->ephemeral)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("server of module \"%s\" cannot be imported", module->name),
				 errdetail("The module is ephemeral: its servers keep no state.")));
	check_state(module, import->document);
	if (import->with_mailbox)
	{
		check_messages(module, import, "messages");
		check_messages(module, import, "dead_letters");
		check_timers(import);
	}
}

/* ---------------------------------------------------------------- the state */

/* A string that lives as long as the server's struct, which may be a batch's. */
static char *
server_string(DgenServer *server, char *s)
{
	return s ? MemoryContextStrdup(GetMemoryChunkContext(server), s) : NULL;
}

/* How long the server is to be idle yet; NULL: it has no timeout. */
static Interval *
rest_of_timeout(Jsonb *document)
{
	TimestampTz at = dgen_doc_get_time(document, "timeout_at", 0);
	Interval   *rest = palloc0(sizeof(Interval));

	if (at == 0)
		return NULL;
	if (at != DT_NOBEGIN)
		rest->time = Max(at - GetCurrentTimestamp(), 1);
	return rest;
}

/* Under a snapshot, the module held. */
static void
set_state(DgenActivation *act, Jsonb *document, Jsonb *state)
{
	DgenServer *server = act->server;

	server->state = NULL;
	server->state_name = act->module->machine ?
		server_string(server, dgen_doc_need_text(document, "state_name")) : NULL;
	server->vsn = server_string(server, dgen_doc_get_text(document, "vsn"));
	dgen_activation_set_state(act, dgen_migrate_state(act, state, server->vsn));
	act->timeout = act->module->machine ? NULL : rest_of_timeout(document);
	if (DGEN_USES_TIMEOUT(act))
		dgen_timeout_settle(act);
}

/* A new incarnation with the document's state; ended, if that of the document had. */
static void
begin_incarnation(DgenModule *module, const DgenAddress *address, DgenServer *server,
				  const DgenImport *import)
{
	Jsonb	   *state = dgen_doc_get(import->document, "state");
	bool		runs = strcmp(dgen_doc_need_text(import->document, "status"), "running") == 0;
	char	   *stop_reason = dgen_doc_get_text(import->document, "stop_reason");
	DgenActivation act;

	if (state == NULL)
		return;
	dgen_activation_resume(module, server);
	dgen_admin_act(&act, module, address, server, import->kind);
	CommandCounterIncrement();
	PushActiveSnapshot(GetTransactionSnapshot());
	dgen_module_hold(module);
	PG_TRY();
	{
		set_state(&act, import->document, state);
	}
	PG_FINALLY();
	{
		dgen_module_release(module);
	}
	PG_END_TRY();
	PopActiveSnapshot();
	if (runs)
		return;
	dgen_timeout_stop(server);
	server->active = false;
	server->stop_reason = server_string(server, stop_reason ? stop_reason : pstrdup("imported"));
}

static void
suspend(DgenServer *server, const DgenImport *import)
{
	Jsonb	   *suspended = dgen_doc_get(import->document, "suspended");

	if (suspended == NULL || import->clone)
		return;
	server->suspended = true;
	server->suspended_at = dgen_doc_get_time(suspended, "at", GetCurrentTimestamp());
	server->suspended_by = server_string(server, dgen_doc_need_text(suspended, "by"));
	server->dirty = true;
}

/* ---------------------------------------------------------------- messages */

/* The server goes on with this one; false: there is no incarnation that would. */
static bool
put_continue(DgenServer *server, DgenMessage *msg)
{
	if (!server->active)
		return false;
	if (server->continue_id != 0)
		refuse("It has more than one message of kind \"continue\".");
	msg->incarnation = server->incarnation;
	return true;
}

static void
put_message(DgenModule *module, DgenServer *server, DgenMessage *msg)
{
	msg->incarnation = msg->incarnation != 0 && server->active ? server->incarnation : 0;
	if (msg->kind == DGEN_KIND_CONTINUE && !put_continue(server, msg))
		return;
	dgen_mailbox_check_size(module, msg);
	if (msg->due_at > GetCurrentTimestamp())
	{
		msg->id = dgen_draw_id();
		dgen_mailbox_schedule(module, msg);
	}
	else
		dgen_mailbox_append(module, msg);
	if (msg->kind == DGEN_KIND_CONTINUE)
	{
		server->continue_id = msg->id;
		server->ahead = true;
		server->dirty = true;
	}
}

/* What is done for each of many; memory is that of one. */
typedef void (*PutOne) (DgenModule *module, const DgenAddress *address, DgenServer *server, Jsonb *one);

static int64
put_all(DgenModule *module, const DgenAddress *address, DgenServer *server, Jsonb *document,
		const char *key, bool clone, PutOne put)
{
	MemoryContext row = AllocSetContextCreate(CurrentMemoryContext, "dgen message to import",
											  ALLOCSET_DEFAULT_SIZES);
	int64		n = 0;
	ListCell   *lc;

	foreach(lc, dgen_doc_get_array(document, key))
	{
		MemoryContext old;
		char	   *kind = dgen_doc_get_text(lfirst(lc), "kind");

		CHECK_FOR_INTERRUPTS();
		/* the original keeps what it has promised */
		if (clone && kind != NULL && strcmp(kind, "effect") == 0)
			continue;
		old = MemoryContextSwitchTo(row);
		put(module, address, server, lfirst(lc));
		MemoryContextSwitchTo(old);
		MemoryContextReset(row);
		n++;
	}
	MemoryContextDelete(row);
	return n;
}

/*
 * Replies to requests go to the servers that sent them; but these have not sent
 * this one, and know nothing of its id.  So it is as if a client had.
 */
static void
take_message(Jsonb *one, const DgenAddress *address, DgenMessage *msg)
{
	dgen_doc_get_message(one, address, msg);
	if (msg->kind == DGEN_KIND_REQUEST && strchr(msg->sender, '/') != NULL)
		msg->sender = dgen_session_id();
}

static void
put_waiting(DgenModule *module, const DgenAddress *address, DgenServer *server, Jsonb *one)
{
	DgenMessage msg;

	take_message(one, address, &msg);
	put_message(module, server, &msg);
}

static void
put_letter(DgenModule *module, const DgenAddress *address, DgenServer *server, Jsonb *one)
{
	DgenMessage msg;

	take_message(one, address, &msg);
	msg.id = dgen_draw_id();
	msg.incarnation = 0;
	msg.due_at = 0;
	dgen_doc_insert_letter(one, &msg);
}

/* ---------------------------------------------------------------- timers */

static void
check_recurring(DgenTimer *timer)
{
	pg_tz	   *zone = pg_tzset(timer->time_zone);
	int64		usecs;

	if (!dgen_interval_usecs(timer->every, &usecs) || usecs < 1000 ||
		timer->every->month < 0 || timer->every->day < 0 || timer->every->time < 0)
		refuse("Interval \"every\" of a timer must be finite, and at least a millisecond.");
	if (zone == NULL || !pg_tz_acceptable(zone))
		refuse(psprintf("Time zone \"%s\" of a timer is not known.", timer->time_zone));
	if (timer->on_miss == '\0' || strchr("ocs", timer->on_miss) == NULL)
		refuse("\"on_miss\" of a timer must be one of \"o\", \"c\" and \"s\".");
	if (TIMESTAMP_NOT_FINITE(timer->start_at) || timer->occurrence < 0 ||
		timer->occurrence > MAX_OCCURRENCE)
		refuse("Start or occurrence of a timer is out of range.");
	timer->due_at = dgen_recur_at(timer, timer->occurrence);
	if (TIMESTAMP_IS_NOEND(timer->due_at))
		refuse("The time of a timer is out of range.");
}

static void
put_timer(DgenModule *module, const DgenAddress *address, DgenServer *server, Jsonb *one)
{
	DgenTable  *table;
	Jsonb	   *message = dgen_doc_get(one, "message");
	char	   *name = dgen_doc_get_text(one, "name");
	DgenTimer	timer = {0};
	DgenTimer	old;
	DgenMessage msg;

	dgen_doc_check_keys(one, "timer in a document", timer_keys);
	dgen_doc_get_message(message, address, &msg);
	timer.server = pstrdup(address->text);
	timer.id = dgen_draw_id();
	timer.name = name ? name : psprintf(DGEN_TIMER_UNNAMED "%lld", (long long) timer.id);
	timer.incarnation = dgen_doc_get_bool(one, "incarnation") ? server->incarnation : 0;
	timer.due_at = dgen_doc_get_time(one, "due_at", GetCurrentTimestamp());
	timer.sender_role = unconstify(char *, msg.sender_role);
	timer.every = dgen_doc_get_interval(one, "every");
	if (timer.every != NULL)
	{
		timer.start_at = dgen_doc_get_time(one, "start_at", timer.due_at);
		timer.time_zone = dgen_doc_need_text(one, "time_zone");
		timer.on_miss = dgen_doc_need_text(one, "on_miss")[0];
		timer.occurrence = dgen_doc_get_int(one, "occurrence", 0);
		check_recurring(&timer);
	}
	/* it is of this incarnation alone, and there is none */
	if (dgen_doc_get_bool(one, "incarnation") && !server->active)
		return;
	table = dgen_timer_open(RowExclusiveLock);
	CommandCounterIncrement();
	while (dgen_timer_find(table, address->text, timer.name, &old))
		(void) dgen_timer_remove(table, &old);
	dgen_timer_insert(table, &timer);
	dgen_timer_start(module, &msg, &timer, GetCurrentTimestamp());
	dgen_table_close(table);
	CommandCounterIncrement();
}

/* A machine's row says that these may be there. */
static void
note_machine_timers(DgenModule *module, DgenServer *server, Jsonb *document)
{
	if (!module->machine || !server->active)
		return;
	server->timeout_at = dgen_doc_get_time(document, "timeout_at", 0);
	server->timeout_due = dgen_doc_get_time(document, "timeout_due", 0);
	server->dirty = true;
}

/* ---------------------------------------------------------------- names */

static void
put_name(DgenModule *module, const DgenAddress *address, DgenServer *server, Jsonb *one)
{
	bool		permanent = dgen_doc_get_bool(one, "permanent");

	dgen_doc_check_keys(one, "name in a document", name_keys);
	if (permanent || server->active)
		dgen_name_give(dgen_doc_need_text(one, "name"), address->text,
					   permanent ? 0 : server->incarnation, dgen_doc_get(one, "metadata"));
	if (!permanent && server->active)
		dgen_ties_note(server);
}

static void
put_group(DgenModule *module, const DgenAddress *address, DgenServer *server, Jsonb *one)
{
	bool		permanent = dgen_doc_get_bool(one, "permanent");

	dgen_doc_check_keys(one, "group in a document", name_keys);
	if (permanent || server->active)
		dgen_group_give(dgen_doc_need_text(one, "name"), address->text,
						permanent ? 0 : server->incarnation);
	if (!permanent && server->active)
		dgen_ties_note(server);
}

/* ---------------------------------------------------------------- import */

/* Of the server nothing is left; its row is changed in memory.  How many messages. */
static int64
make_server(DgenModule *module, const DgenAddress *address, DgenServer *server,
			const DgenImport *import)
{
	Jsonb	   *document = import->document;
	int64		n = 0;

	server->erased = false;
	server->dirty = true;
	begin_incarnation(module, address, server, import);
	suspend(server, import);
	if (import->with_names)
	{
		(void) put_all(module, address, server, document, "names", false, put_name);
		(void) put_all(module, address, server, document, "groups", false, put_group);
	}
	if (import->with_mailbox)
	{
		n = put_all(module, address, server, document, "messages", import->clone, put_waiting);
		(void) put_all(module, address, server, document, "timers", false, put_timer);
		n += put_all(module, address, server, document, "dead_letters", import->clone, put_letter);
		note_machine_timers(module, server, document);
	}
	return n;
}

static void
check_target(DgenServer *server, bool replace)
{
	if (server->supervised)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("server \"%s\" cannot be imported", server->address),
				 errdetail("It is the child of a supervisor, which decides about its life."),
				 errhint("Take it out of the tree by dgen.terminate_child() and dgen.delete_child(), or change its state by dgen.replace_state().")));
	if (server->exists && server->tombstone_until == 0 && !replace)
		ereport(ERROR,
				(errcode(ERRCODE_DGEN_ALREADY_STARTED),
				 errmsg("server \"%s\" already exists", server->address),
				 errdetail("Its incarnation is %lld, its state has version %lld.",
						   (long long) server->incarnation, (long long) server->version),
				 errhint("Give another address, or have this one replaced: dgen.import(..., if_exists => 'replace').")));
}

/* What there is of it goes; numbers go on from where they were. */
static void
clear_target(DgenModule *module, const DgenAddress *address, DgenServer *server)
{
	int64		incarnation = server->incarnation;
	int64		version = server->version;

	if (!server->exists || server->tombstone_until != 0)
		return;
	(void) dgen_admin_erase(module, address, server, "The server was replaced.");
	server->incarnation = incarnation;
	server->version = version;
}

static Jsonb *
state_document(Jsonb *state)
{
	DgenDoc		doc = NULL;

	dgen_doc_open(&doc, NULL, WJB_BEGIN_OBJECT);
	dgen_doc_jsonb(&doc, "state", state);
	return dgen_doc_finish(&doc);
}

int64
dgen_import_server(DgenModule *module, const DgenAddress *address, const DgenImport *import,
				   bool replace, const char *reason)
{
	DgenAudit	audit = {.action = import->kind,.server = address->text,.reason = reason,.what = DGEN_AUDIT_DOCUMENT};
	DgenTable  *table;
	DgenServer *server;

	dgen_import_check(module, import);
	/* others of this batch may be about to handle what goes here */
	if (dgen_batch_active())
		dgen_batch_split("dgen.import()");
	server = dgen_admin_open(module, address, &table);
	check_target(server, replace);
	audit.old_version = server->version;
	if (server->exists && server->tombstone_until == 0 && dgen_audit_wanted(false))
		audit.before = dgen_export_server(module, address, server, true, false, NULL,
										  dgen_audit_limit());
	/* what was too large to be kept was there all the same */
	if (audit.before == NULL && server->exists && server->tombstone_until == 0)
		audit.undo = dgen_json_null();
	clear_target(module, address, server);
	audit.affected = make_server(module, address, server, import);
	audit.after = state_document(server->state);
	dgen_admin_close(table, server);
	audit.incarnation = server->incarnation;
	audit.new_version = server->version;
	if (dgen_audit_wanted(false))
		dgen_audit_write(&audit);
	return server->incarnation;
}

void
dgen_import_revive(DgenModule *module, const DgenAddress *address, DgenServer *server,
				   const DgenImport *import, const char *reason)
{
	DgenAudit	audit = {.action = "undo",.server = address->text,.reason = reason,.what = DGEN_AUDIT_DOCUMENT};

	dgen_import_check(module, import);
	check_target(server, true);
	audit.old_version = server->version;
	if (server->exists && dgen_audit_wanted(false))
		audit.before = dgen_export_server(module, address, server, false, false, NULL,
										  dgen_audit_limit());
	(void) make_server(module, address, server, import);
	audit.after = state_document(server->state);
	dgen_server_count(server);
	audit.incarnation = server->incarnation;
	audit.new_version = server->version;
	if (dgen_audit_wanted(false))
		dgen_audit_write(&audit);
}

/* ---------------------------------------------------------------- SQL */

static DgenModule *
operated_module(FunctionCallInfo fcinfo, int argno, DgenAddress *address)
{
	DgenModule *module;

	dgen_address_arg(fcinfo, argno, address);
	module = dgen_module_get(address->module, false);
	dgen_module_check_operate(module);
	return module;
}

/* if_exists: is it 'replace'? */
static bool
replaces(FunctionCallInfo fcinfo, int argno)
{
	char	   *word = dgen_arg_text(fcinfo, argno);

	if (word == NULL || strcmp(word, "error") == 0)
		return false;
	if (strcmp(word, "replace") == 0)
		return true;
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("invalid value for argument if_exists"),
			 errdetail("Its value is \"%s\".", word),
			 errhint("Allowed are 'error' and 'replace'.")));
}

PG_FUNCTION_INFO_V1(dgen_import);

/*
 * import(server text, document jsonb, if_exists text, with_mailbox boolean,
 * with_names boolean, reason text) -> bigint: the incarnation
 */
Datum
dgen_import(PG_FUNCTION_ARGS)
{
	DgenAddress address;
	DgenModule *module = operated_module(fcinfo, 0, &address);
	DgenImport	import = {.kind = "import"};

	dgen_check_writable();
	if (PG_ARGISNULL(1))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("document must not be null"),
				 errhint("Documents are made by dgen.export().")));
	import.document = dgen_arg_jsonb(fcinfo, 1);
	import.with_mailbox = PG_ARGISNULL(3) || PG_GETARG_BOOL(3);
	import.with_names = PG_ARGISNULL(4) || PG_GETARG_BOOL(4);
	PG_RETURN_INT64(dgen_import_server(module, &address, &import, replaces(fcinfo, 2),
									   dgen_arg_text(fcinfo, 5)));
}

PG_FUNCTION_INFO_V1(dgen_clone);

/* clone(source text, target text, with_mailbox boolean, reason text) -> bigint: the incarnation */
Datum
dgen_clone(PG_FUNCTION_ARGS)
{
	DgenAddress source;
	DgenAddress target;
	DgenModule *module = operated_module(fcinfo, 0, &source);
	DgenImport	import = {.kind = "clone",.clone = true};

	module = operated_module(fcinfo, 1, &target);
	dgen_check_writable();
	if (strcmp(source.module, target.module) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("server \"%s\" cannot be cloned as \"%s\"", source.text, target.text),
				 errdetail("They are of different modules."),
				 errhint("Give an address in module \"%s\".", source.module)));
	import.with_mailbox = !PG_ARGISNULL(2) && PG_GETARG_BOOL(2);
	import.document = dgen_export_read(module, &source, import.with_mailbox, false);
	PG_RETURN_INT64(dgen_import_server(module, &target, &import, false, dgen_arg_text(fcinfo, 3)));
}
