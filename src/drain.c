/*-------------------------------------------------------------------------
 *
 * drain.c
 *	  For the tests of users: handling messages inside the transaction that
 *	  sent them, and waiting until all is quiet.
 *
 *-------------------------------------------------------------------------
 */
#include "stat.h"

#include "access/skey.h"
#include "access/xact.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/wait_event.h"

/* ---------------------------------------------------------------- drain */

/* Find a message of this transaction; false: it is not there any more. */
bool
dgen_sent_find(const DgenSent *sent, DgenMessage *msg)
{
	DgenTable  *table = dgen_table_open(sent->due_at ? DGEN_T_DELAYED : DGEN_T_MESSAGE,
										RowExclusiveLock);
	bool		found = dgen_message_find(table, sent->id, sent->due_at ? 1 : 0, msg);

	dgen_table_close(table);
	return found;
}

/* Take a message out of its table; false: somebody else has. */
static bool
take_message(DgenMessage *msg)
{
	DgenTable  *table = dgen_table_open(msg->due_at ? DGEN_T_DELAYED : DGEN_T_MESSAGE,
										RowExclusiveLock);
	bool		taken = dgen_table_delete(table, &msg->tid) == TM_Ok;

	dgen_table_close(table);
	CommandCounterIncrement();
	return taken;
}

static void
fill_activation(DgenActivation *act, DgenModule *module, DgenMessage *msg)
{
	memset(act, 0, sizeof(DgenActivation));
	act->module = module;
	act->identity = DGEN_AS_OWNER;
	act->callback = dgen_message_callback(msg->kind);
	act->kind = dgen_message_kind(msg->kind);
	act->message = msg->message;
	act->context = msg->context;
	act->sender = msg->sender;
	act->sender_role = msg->sender_role;
	act->message_vsn = msg->vsn;
	act->request_id = msg->kind == 'r' ? msg->id : 0;
	act->message_id = msg->id;
	act->retried = msg->timer == 0;
}

/* Give a request its reply, its error, or its place; complain of a message that will not be handled. */
static void
finish_message(DgenActivation *act, DgenMessage *msg)
{
	if (act->outcome == DGEN_REJECTED || act->outcome == DGEN_RETRY_LATER)
		ereport(ERROR,
				(errcode(ERRCODE_DGEN_REFUSED),
				 act->outcome == DGEN_REJECTED ?
				 errmsg("server \"%s\" rejected the message: %s", msg->server, act->reason) :
				 errmsg("server \"%s\" asked for the message to be tried later", msg->server)));
	if (act->locked)
		ereport(ERROR,
				(errcode(ERRCODE_DGEN_BAD_DIRECTIVE),
				 errmsg("server \"%s\" cannot be locked in this transaction", msg->server),
				 errdetail("handle_locked runs after a commit.")));
	if (act->outcome == DGEN_HANDLED && act->postponed && act->again)
	{
		DgenMessage kept = *msg;

		/* as of a postponed one: its timer has fired */
		kept.timer = 0;
		dgen_mailbox_put_back(act->module, &kept);
	}
	else if (act->outcome == DGEN_HANDLED && act->postponed)
		dgen_postpone(act->module, act->server, msg);
	else if (act->outcome == DGEN_HANDLED && msg->kind == 'r' && act->replied)
		dgen_request_reply(act->module, msg, act->reply, NULL);
	else if (act->outcome == DGEN_HANDLED && msg->kind == 'r')
		dgen_deferred_request(act->module, msg);
	else if (act->outcome == DGEN_NO_SERVER && msg->kind == 'r')
	{
		DgenError	err;

		dgen_no_server_error(act->module, act->server, &err);
		dgen_request_reply(act->module, msg, NULL, dgen_error_to_jsonb(&err));
	}
}

/* It is out of the mailbox; one that waited for its next attempt may be handled before. */
static void
forget_failures(DgenServer *server, DgenMessage *msg)
{
	if (!server->failing)
		return;
	dgen_attempt_delete(msg->id);
	CommandCounterIncrement();
	dgen_failure_settle(server);
}

/* As a worker does with one that is out of its table; false: it is not to be handled. */
static bool
is_current(DgenModule *module, DgenServer *server, DgenMessage *msg)
{
	struct DgenTimer *timer;

	if (dgen_timer_claim(msg, true, &timer) != DGEN_CLAIM_TAKEN ||
		dgen_message_expired(module, msg) || !dgen_message_is_for(msg, server))
		return false;
	if (msg->kind == DGEN_KIND_TIMEOUT)
		return dgen_timeout_wake(module, server, msg, false);
	return dgen_timer_go_on(module, msg, timer);
}

static void
run_activation(DgenActivation *act, DgenMessage *msg)
{
	dgen_activation_run(act);
}

/* Handle one message, and write the server. */
static bool
handle(DgenModule *module, DgenTable *table, DgenServer *server, DgenMessage *msg)
{
	DgenActivation act;
	bool		taken = take_message(msg);
	bool		handled = taken && is_current(module, server, msg);

	if (handled)
	{
		if (msg->id == server->continue_id)
		{
			server->continue_id = 0;
			server->dirty = true;
		}
		fill_activation(&act, module, msg);
		act.server = server;
		if (module->ephemeral)
			server->active = false;
		PushActiveSnapshot(GetTransactionSnapshot());
		dgen_stat_run(&act, msg, run_activation);
		PopActiveSnapshot();
		finish_message(&act, msg);
		/* calls that wait are not for its next life */
		if (act.exited)
			dgen_admin_remember(module, server->hash);
		dgen_batch_keep(server);
		if (module->ephemeral)
			server->dirty = server->state_changed = server->erased = false;
	}
	if (taken)
		forget_failures(server, msg);
	dgen_server_settle(table, server, NULL);
	return handled;
}

void
dgen_continue_now(DgenModule *module, DgenTable *table, DgenServer *server)
{
	while (server->continue_id != 0)
	{
		DgenSent	pending = {.id = server->continue_id};
		DgenMessage msg;

		CHECK_FOR_INTERRUPTS();
		dgen_mailbox_forget_sent(pending.id);
		if (dgen_sent_find(&pending, &msg))
			(void) handle(module, table, server, &msg);
		/* an operator has discarded it */
		if (server->continue_id == pending.id)
			server->continue_id = 0;
	}
}

/*
 * Handle one message in this transaction; the server's lease is held.  Raises
 * what its handler raises.  False if it was not to be handled any more, or is a
 * call of somebody else, which was postponed, and is left to the workers.
 */
bool
dgen_handle_now(DgenModule *module, DgenMessage *msg)
{
	DgenTable  *table;
	DgenServer *server;
	bool		handled;

	if (msg->kind == DGEN_KIND_CALL)
		return false;
	table = dgen_table_open(DGEN_T_SERVER, RowExclusiveLock);
	server = dgen_batch_server(msg->server);
	if (server == NULL)
		server = dgen_server_read(table, msg->server, msg->hash, NULL);
	else
		dgen_server_save(server);
	dgen_server_check_snapshot(server);
	/* one that its supervisor keeps down, or has yet to restart, handles nothing */
	if (dgen_server_is_down(server))
	{
		handled = msg->kind == DGEN_KIND_EXIT;
		if (handled)
			dgen_supervisor_settle_now(msg->server);
		dgen_table_close(table);
		return handled;
	}
	dgen_check_available(server);
	if (msg->id != server->continue_id)
		dgen_continue_now(module, table, server);
	handled = handle(module, table, server, msg);
	dgen_table_close(table);
	return handled;
}

/* Run one effect in this transaction; the lease of its stream is held. */
static void
run_effect_now(DgenModule *module, DgenMessage *msg)
{
	DgenActivation act;

	if (!take_message(msg))
		return;
	fill_activation(&act, module, msg);
	PushActiveSnapshot(GetTransactionSnapshot());
	dgen_stat_run(&act, msg, dgen_effect_run);
	PopActiveSnapshot();
	finish_message(&act, msg);
	dgen_attempt_delete(msg->id);
}

/* how far drain() has come in the list of what was sent */
typedef struct Progress
{
	const DgenAddress *to;		/* of one server, or NULL */
	int64		effects;		/* the hash of its effects */
	int			from;			/* nothing is left before it */
	int			seen;			/* looked at so far, */
	int64		last_id;		/* with this as the highest id, */
	bool		disorder;		/* and some came back under an old one */
} Progress;

/*
 * The next one to be handled.  Ids grow but for what came back under an old
 * one, and then stands before the others.
 */
static bool
next_sent(Progress *p, DgenSent *next)
{
	DgenSent   *sent;
	int			n = dgen_mailbox_uncommitted(&sent);

	for (; p->seen < n; p->seen++)
	{
		p->disorder |= sent[p->seen].id != 0 && sent[p->seen].id < p->last_id;
		p->last_id = Max(p->last_id, sent[p->seen].id);
	}
	next->id = 0;
	for (int i = p->from; i < n; i++)
	{
		if (sent[i].id == 0 || (p->to != NULL && sent[i].hash != p->to->hash && sent[i].hash != p->effects) ||
			sent[i].due_at > GetCurrentTimestamp())
			continue;
		if (next->id == 0)
			p->from = i;
		if (next->id == 0 || sent[i].id < next->id)
			*next = sent[i];
		if (!p->disorder)
			break;
	}
	return next->id != 0;
}

/* Handle what this transaction sent, to one server or (NULL) to all. */
static int
drain(const DgenAddress *to)
{
	Progress	p = {.to = to, .effects = to ? dgen_effects_hash(to->text) : 0};
	DgenSent	one;
	int			handled = 0;

	while (next_sent(&p, &one))
	{
		DgenModule *module;
		DgenMessage msg;

		CHECK_FOR_INTERRUPTS();
		module = dgen_module_by_id(one.module_id);
		dgen_mailbox_forget_sent(one.id);
		if (module == NULL || module->external || !dgen_sent_find(&one, &msg))
			continue;
		dgen_module_check_running(module);
		dgen_check_test_isolation(module);
		(void) dgen_lease_take(msg.hash, true);
		if (msg.kind == DGEN_KIND_EFFECT)
		{
			dgen_ring_long_at_end(module, msg.hash);
			run_effect_now(module, &msg);
			handled++;
		}
		else
		{
			dgen_ring_at_end(module, msg.hash);
			if (dgen_handle_now(module, &msg))
				handled++;
		}
	}
	return handled;
}

int
dgen_drain_server(const DgenAddress *to)
{
	return drain(to);
}

PG_FUNCTION_INFO_V1(dgen_drain);

/* drain(server text) -> integer: handle this transaction's messages inside it */
Datum
dgen_drain(PG_FUNCTION_ARGS)
{
	DgenAddress to;

	dgen_check_writable();
	if (dgen_scope != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_DGEN_BAD_DIRECTIVE),
				 errmsg("dgen.drain() cannot be used in a handler")));
	if (!PG_ARGISNULL(0))
		dgen_address_arg(fcinfo, 0, &to);
	CommandCounterIncrement();
	PG_RETURN_INT32(drain(PG_ARGISNULL(0) ? NULL : &to));
}

/* ---------------------------------------------------------------- wait_idle */

/* A message of this transaction is handled once that commits, not while it waits. */
static void
check_not_own(HeapTuple message, const char *to)
{
	if (TransactionIdIsCurrentTransactionId(HeapTupleHeaderGetXmin(message->t_data)))
		ereport(ERROR,
				(errcode(ERRCODE_DGEN_WOULD_OVERTAKE),
				 errmsg("server \"%s\" cannot become idle before this transaction commits", to),
				 errdetail("This transaction has sent it a message, which is handled after that."),
				 errhint("COMMIT first; or, in a test that is rolled back, use dgen.drain().")));
}

/* Is there a message for the server (or, by hash, an effect of it), the module, or anybody? */
static bool
is_busy(const char *server, int64 hash, const char *module)
{
	DgenTable  *table = dgen_table_open(DGEN_T_MESSAGE, AccessShareLock);
	ScanKeyData key;
	DgenScan   *scan;
	HeapTuple	tuple;
	bool		busy = false;
	Size		len = module ? strlen(module) : 0;

	if (server != NULL)
		dgen_key_int8(&key, 1, hash, BTEqualStrategyNumber);
	scan = dgen_scan_begin(table, server ? DGEN_I_MESSAGE_MAILBOX : DGEN_I_PKEY, NULL,
						   server ? 1 : 0, &key);
	while (!busy && (tuple = dgen_scan_next(scan)) != NULL)
	{
		bool		isnull;
		char	   *to = TextDatumGetCString(heap_getattr(tuple, 9,
														  RelationGetDescr(table->rel), &isnull));

		busy = server ? strcmp(to, server) == 0 :
			module ? strncmp(to, module, len) == 0 && to[len] == '/' : true;
		if (busy)
			check_not_own(tuple, to);
		CHECK_FOR_INTERRUPTS();
	}
	dgen_scan_end(scan);
	dgen_table_close(table);
	return busy;
}

PG_FUNCTION_INFO_V1(dgen_wait_idle);

/*
 * wait_idle(server, module, everything, timeout) -> boolean: true once no
 * message waits; false at the timeout.
 */
Datum
dgen_wait_idle(PG_FUNCTION_ARGS)
{
	static uint32 wait_event = 0;
	char	   *module = dgen_arg_text(fcinfo, 1);
	bool		everything = !PG_ARGISNULL(2) && PG_GETARG_BOOL(2);
	int64		timeout = INT64CONST(5000000);
	TimestampTz deadline;
	DgenAddress to;
	MemoryContext mcxt;
	bool		busy;

	if (!PG_ARGISNULL(0))
		dgen_address_arg(fcinfo, 0, &to);
	if ((!PG_ARGISNULL(0)) + (module != NULL) + everything != 1)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("exactly one of server, module and everything must be given"),
				 errhint("For example dgen.wait_idle('counter/home') or dgen.wait_idle(everything => true).")));
	dgen_arg_interval(fcinfo, 3, "timeout", true, &timeout);
	if (module != NULL || !PG_ARGISNULL(0))
		dgen_module_check_read(dgen_module_get(module ? module : to.module, false));
	deadline = dgen_time_after(GetCurrentTimestamp(), timeout, "timeout");
	mcxt = AllocSetContextCreate(CurrentMemoryContext, "dgen.wait_idle", ALLOCSET_SMALL_SIZES);
	for (;;)
	{
		MemoryContext old = MemoryContextSwitchTo(mcxt);

		busy = is_busy(PG_ARGISNULL(0) ? NULL : to.text, PG_ARGISNULL(0) ? 0 : to.hash, module) ||
			(!PG_ARGISNULL(0) && is_busy(to.text, dgen_effects_hash(to.text), NULL));
		MemoryContextSwitchTo(old);
		MemoryContextReset(mcxt);
		if (!busy || GetCurrentTimestamp() >= deadline)
			break;
		if (wait_event == 0)
			wait_event = WaitEventExtensionNew("DgenWaitIdle");
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, 5, wait_event);
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}
	PG_RETURN_BOOL(!busy);
}
