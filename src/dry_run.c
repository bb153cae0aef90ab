/*-------------------------------------------------------------------------
 *
 * dry_run.c
 *	  dgen.dry_run(): what a server would do with a message, and nothing of it.
 *
 * An activation as dgen.invoke() runs one: in the caller's backend, under the
 * server's lease, as the module's owner, on the row as it is now.  It runs in a
 * subtransaction that is rolled back in any case, and with it go the lease, all
 * SQL effects (NOTIFY too, which PostgreSQL keeps for the commit), and what the
 * backend remembers: messages sent, servers changed, marks and doorbells are
 * all undone as by any savepoint.  Ids that were drawn stay drawn, as those of
 * sequences do.  What a handler does outside of the database cannot be undone;
 * effects, which are made for that, are not run.
 *
 * A server or module that is suspended is no hindrance: it is then that one
 * wants to know.  Isolation is, for once, the caller's: nothing is kept that
 * could be wrong.
 *
 *-------------------------------------------------------------------------
 */
#include "document.h"

#include "access/skey.h"
#include "access/xact.h"
#include "commands/trigger.h"
#include "timer.h"
#include "utils/rel.h"
#include "utils/resowner.h"
#include "utils/snapmgr.h"

bool		dgen_in_dry_run = false;

typedef struct DryRun
{
	DgenModule *module;
	DgenAddress to;
	DgenMessage msg;			/* to be handled */
	bool		edited;			/* accept and the limits apply */
	SubTransactionId subid;
	bool		running;		/* what fails now is what is asked for */
	Jsonb	   *before;			/* the state */
	int64		version;
	bool		was_active;
	bool		handled;		/* what it did otherwise would be undone */
	DgenDoc		doc;
} DryRun;

/* ---------------------------------------------------------------- what was sent */

static void
tell_message(DryRun *d, const DgenMessage *msg)
{
	Interval	delay = {.time = msg->due_at - msg->sent_at};

	dgen_doc_open(&d->doc, NULL, WJB_BEGIN_OBJECT);
	dgen_doc_text(&d->doc, "server", msg->server);
	dgen_doc_text(&d->doc, "kind", dgen_message_kind(msg->kind));
	if (msg->priority != 0)
		dgen_doc_int(&d->doc, "priority", msg->priority);
	dgen_doc_interval(&d->doc, "delay", msg->due_at ? &delay : NULL);
	dgen_doc_jsonb(&d->doc, "message", msg->message);
	dgen_doc_open(&d->doc, NULL, WJB_END_OBJECT);
}

static void
tell_timer(DryRun *d, const DgenMessage *msg)
{
	DgenTable  *table = dgen_timer_open(AccessShareLock);
	DgenTimer	timer;

	if (dgen_timer_find_id(table, msg->timer, &timer))
	{
		dgen_doc_open(&d->doc, NULL, WJB_BEGIN_OBJECT);
		dgen_doc_text(&d->doc, "server", msg->server);
		if (strncmp(timer.name, DGEN_TIMER_UNNAMED, strlen(DGEN_TIMER_UNNAMED)) != 0)
			dgen_doc_text(&d->doc, "name", timer.name);
		dgen_doc_time(&d->doc, "due_at", timer.due_at);
		dgen_doc_interval(&d->doc, "every", timer.every);
		dgen_doc_jsonb(&d->doc, "message", msg->message);
		dgen_doc_open(&d->doc, NULL, WJB_END_OBJECT);
	}
	dgen_table_close(table);
}

/* Where a message that was sent is told of. */
static const char *
place_of(const DgenMessage *msg)
{
	if (msg->kind == DGEN_KIND_EFFECT)
		return "effects";
	return dgen_timer_is_behind(msg) ? "timers" : "messages";
}

/* One of the arrays; what is told elsewhere, or is the engine's own, is left out. */
static void
tell_sent(DryRun *d, const char *key)
{
	DgenSent   *sent;
	int			n = dgen_mailbox_uncommitted(&sent);

	dgen_doc_open(&d->doc, key, WJB_BEGIN_ARRAY);
	for (int i = 0; d->handled && i < n; i++)
	{
		DgenMessage msg;

		CHECK_FOR_INTERRUPTS();
		if (sent[i].id == 0 || sent[i].subid < d->subid || !dgen_sent_find(&sent[i], &msg) ||
			msg.kind == DGEN_KIND_TIMEOUT || msg.kind == DGEN_KIND_CONTINUE ||
			strcmp(place_of(&msg), key) != 0)
			continue;
		if (strcmp(key, "effects") == 0)
			dgen_doc_jsonb(&d->doc, NULL, msg.message);
		else if (strcmp(key, "timers") == 0)
			tell_timer(d, &msg);
		else
			tell_message(d, &msg);
	}
	dgen_doc_open(&d->doc, NULL, WJB_END_ARRAY);
}

/* ---------------------------------------------------------------- what it said */

static const char *
outcome_of(DgenActivation *act)
{
	switch (act->outcome)
	{
		case DGEN_REJECTED:
			return "rejected";
		case DGEN_RETRY_LATER:
			return "retry_later";
		case DGEN_NO_SERVER:
			return "no_server";
		default:
			return act->postponed ? "postponed" : act->locked ? "locked" : "handled";
	}
}

/* A state, or JSON null where there is none. */
static Jsonb *
shown(Jsonb *state)
{
	return state ? state : dgen_json_null();
}

static void
tell_state(DryRun *d, DgenServer *server)
{
	Jsonb	   *patch = NULL;

	if (d->before != NULL && server->state != NULL)
		patch = dgen_jsonb_diff(d->before, server->state);
	dgen_doc_int(&d->doc, "old_version", d->version);
	dgen_doc_int(&d->doc, "new_version", server->version);
	dgen_doc_jsonb(&d->doc, "old", shown(d->before));
	dgen_doc_jsonb(&d->doc, "new", shown(server->state));
	dgen_doc_jsonb(&d->doc, "patch", shown(patch));
	if (d->module->machine)
		dgen_doc_text(&d->doc, "state_name", server->state_name);
}

/* The message has been handled, and the row written. */
static void
tell_activation(DryRun *d, DgenActivation *act)
{
	bool		answers;

	d->handled = act->outcome == DGEN_HANDLED;
	answers = d->handled && act->callback == DGEN_HANDLE_CALL && !act->postponed && !act->locked;
	dgen_doc_text(&d->doc, "outcome", outcome_of(act));
	dgen_doc_true(&d->doc, "starts", !d->was_active && d->handled);
	if (answers && act->replied)
		dgen_doc_jsonb(&d->doc, "reply", act->reply);
	dgen_doc_true(&d->doc, "noreply", answers && !act->replied);
	dgen_doc_text(&d->doc, act->exited ? "exit" : "reason", act->reason);
	dgen_doc_interval(&d->doc, "retry_after", act->retry_after);
	dgen_doc_jsonb(&d->doc, "continue", act->continue_with);
	dgen_doc_interval(&d->doc, "timeout", act->timeout);
	if (d->handled)
		tell_state(d, act->server);
}

/* ---------------------------------------------------------------- running */

/* Constraints that are deferred would be checked at the worker's commit. */
static void
check_deferred(void)
{
	ConstraintsSetStmt all = {.type = T_ConstraintsSetStmt};

	AfterTriggerSetState(&all);
}

static void
fill_activation(DryRun *d, DgenActivation *act)
{
	memset(act, 0, sizeof(DgenActivation));
	act->module = d->module;
	act->identity = DGEN_AS_OWNER;
	act->callback = dgen_message_callback(d->msg.kind);
	act->kind = d->msg.kind == DGEN_KIND_CALL ? "call" : dgen_message_kind(d->msg.kind);
	act->message = d->msg.message;
	act->context = d->msg.context;
	act->sender = d->msg.sender;
	act->sender_role = d->msg.sender_role;
	act->message_vsn = d->msg.vsn;
	act->request_id = d->msg.kind == DGEN_KIND_REQUEST ? d->msg.id : 0;
	act->message_id = d->msg.id;
	act->retried = true;
}

/* What accept is asked. */
static const char *
accepted_as(char kind)
{
	return kind == DGEN_KIND_CAST ? "cast" :
		kind == DGEN_KIND_CALL || kind == DGEN_KIND_REQUEST ? "call" : "info";
}

/* Under the lease. */
static void
run(DryRun *d)
{
	DgenTable  *table = dgen_table_open(DGEN_T_SERVER, RowExclusiveLock);
	DgenServer *server = dgen_server_read(table, d->to.text, d->to.hash, NULL);
	DgenActivation act;

	dgen_server_check_snapshot(server);
	d->before = server->state;
	d->version = server->version;
	d->was_active = server->active;
	d->running = true;
	if (d->edited)
	{
		dgen_check_message(d->module, &d->to, accepted_as(d->msg.kind), d->msg.message);
		dgen_check_tombstone(&d->to);
	}
	fill_activation(d, &act);
	act.server = server;
	if (d->module->ephemeral)
		server->active = false;
	dgen_activation_run(&act);
	if (d->module->ephemeral)
		server->dirty = server->state_changed = server->erased = false;
	dgen_server_write(table, server, NULL);
	check_deferred();
	tell_activation(d, &act);
	dgen_table_close(table);
}

/* Raised by the handler and its like, or by what would hinder a worker as well? */
static bool
is_an_answer(DryRun *d, const ErrorData *edata)
{
	return d->running && edata->elevel == ERROR && edata->sqlerrcode != ERRCODE_QUERY_CANCELED &&
		ERRCODE_TO_CATEGORY(edata->sqlerrcode) != ERRCODE_INSUFFICIENT_RESOURCES &&
		dgen_error_fault(edata->sqlerrcode) != DGEN_FAULT_CONFLICT;
}

static Jsonb *
tell_error(DryRun *d, ErrorData *edata)
{
	DgenDoc		doc = NULL;

	dgen_doc_open(&doc, NULL, WJB_BEGIN_OBJECT);
	dgen_doc_text(&doc, "outcome", "error");
	dgen_doc_jsonb(&doc, "error", dgen_error_to_jsonb(dgen_error_copy(edata)));
	dgen_doc_jsonb(&doc, "old", shown(d->before));
	dgen_doc_int(&doc, "old_version", d->version);
	return dgen_doc_finish(&doc);
}

static void
run_and_tell(DryRun *d)
{
	(void) dgen_lease_take(d->to.hash, true);
	dgen_ring_at_end(d->module, d->to.hash);
	/* what the lease's last holder has committed is seen */
	CommandCounterIncrement();
	PushActiveSnapshot(GetTransactionSnapshot());
	dgen_doc_open(&d->doc, NULL, WJB_BEGIN_OBJECT);
	run(d);
	tell_sent(d, "messages");
	tell_sent(d, "timers");
	tell_sent(d, "effects");
	PopActiveSnapshot();
}

/* Run it in a subtransaction, and roll that back in any case. */
static Jsonb *
run_and_undo(DryRun *d)
{
	MemoryContext old = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	Jsonb	   *volatile told = NULL;

	dgen_module_hold(d->module);
	dgen_in_dry_run = true;
	BeginInternalSubTransaction("dgen.dry_run");
	MemoryContextSwitchTo(old);
	d->subid = GetCurrentSubTransactionId();
	PG_TRY();
	{
		run_and_tell(d);
		told = dgen_doc_finish(&d->doc);
		RollbackAndReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		ErrorData  *edata = dgen_subxact_abort(old, owner);

		dgen_in_dry_run = false;
		dgen_module_release(d->module);
		if (!is_an_answer(d, edata))
			ReThrowError(edata);
		return tell_error(d, edata);
	}
	PG_END_TRY();
	MemoryContextSwitchTo(old);
	CurrentResourceOwner = owner;
	dgen_in_dry_run = false;
	dgen_module_release(d->module);
	return told;
}

/* ---------------------------------------------------------------- arguments */

static char
kind_argument(FunctionCallInfo fcinfo)
{
	char	   *kind = dgen_arg_text(fcinfo, 2);

	if (kind == NULL || strcmp(kind, "call") == 0)
		return DGEN_KIND_CALL;
	if (strcmp(kind, "cast") == 0)
		return DGEN_KIND_CAST;
	if (strcmp(kind, "info") == 0)
		return DGEN_KIND_INFO;
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("invalid value for argument kind"),
			 errdetail("Its value is \"%s\".", kind),
			 errhint("Allowed are 'call', 'cast' and 'info'.")));
}

/* The dead letter, for whom dgen.requeue() would put it back; false: there is none. */
static bool
find_letter(int64 id, DgenMessage *msg)
{
	DgenTable  *table = dgen_table_open(DGEN_T_LETTER, AccessShareLock);
	bool		found = dgen_message_find(table, id, 0, msg);

	dgen_table_close(table);
	return found && dgen_is_visible(msg->server);
}

static void
use_letter(FunctionCallInfo fcinfo, DryRun *d)
{
	int64		id = PG_GETARG_INT64(3);

	CommandCounterIncrement();
	if (!find_letter(id, &d->msg))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("there is no dead letter %lld", (long long) id),
				 errhint("See dgen.dead_letters.")));
	dgen_address_parse(d->msg.server, strlen(d->msg.server), &d->to);
	d->edited = !PG_ARGISNULL(1);
	if (d->edited)
		d->msg.message = dgen_arg_jsonb(fcinfo, 1);
	d->msg.incarnation = d->msg.timer = 0;
}

static void
check_can_run(DryRun *d)
{
	if (d->module->owner_fault != NULL)
		dgen_module_check_running(d->module);
	if (d->module->external || d->msg.kind == DGEN_KIND_EFFECT || d->msg.kind == DGEN_KIND_EXIT)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("dgen.dry_run() cannot run this"),
				 d->module->external ?
				 errdetail("Module \"%s\" is external: its messages are handled by clients.", d->module->name) :
				 d->msg.kind == DGEN_KIND_EFFECT ?
				 errdetail("It is an effect, which may do what cannot be undone.") :
				 errdetail("It is for the supervisor of its server.")));
	if (dgen_scope != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_DGEN_BAD_DIRECTIVE),
				 errmsg("dgen.dry_run() cannot be used in a handler"),
				 errhint("Use it from a client.")));
}

PG_FUNCTION_INFO_V1(dgen_dry_run);

/* dry_run(server text, message jsonb, kind text, letter bigint) -> jsonb */
Datum
dgen_dry_run(PG_FUNCTION_ARGS)
{
	DryRun		d = {0};

	if (PG_ARGISNULL(0) == PG_ARGISNULL(3))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("dgen.dry_run() takes exactly one of server and letter"),
				 PG_ARGISNULL(0) ? errdetail("None is given.") : errdetail("Both are given."),
				 errhint("For example dgen.dry_run('counter/home', '{\"add\": 1}') or dgen.dry_run(letter => 4711).")));
	if (PG_ARGISNULL(3))
	{
		dgen_address_arg(fcinfo, 0, &d.to);
		dgen_message_init(&d.msg, &d.to, kind_argument(fcinfo), dgen_arg_jsonb(fcinfo, 1));
		d.edited = true;
	}
	else
		use_letter(fcinfo, &d);
	d.module = dgen_module_get(d.to.module, false);
	dgen_module_check_operate(d.module);
	dgen_check_writable();
	dgen_check_enabled();
	check_can_run(&d);
	PG_RETURN_JSONB_P(run_and_undo(&d));
}
