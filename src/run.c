/*-------------------------------------------------------------------------
 *
 * run.c
 *	  The activations of one try of a batch, one after the other, in the
 *	  worker's transaction.
 *
 * A message's row is deleted before its handler runs, so what the handler
 * does and the message's end are one.  Between activations: settings are
 * undone by the GUC nest level, deferred triggers have fired, the command
 * counter has moved and the active snapshot is fresh.  What else a handler may
 * leave in the session (temporary tables, prepared statements, session locks)
 * sends it off to run alone.
 *
 * In company a timer cancels the batch after its budget, so that a slow
 * handler holds up no others; alone, handler_timeout does.
 *
 *-------------------------------------------------------------------------
 */
#include "stat.h"

#include "access/xact.h"
#include "commands/sequence.h"
#include "storage/predicate.h"
#include "storage/proc.h"
#include "utils/memutils.h"
#include "utils/portal.h"
#include "utils/snapmgr.h"
#include "utils/timeout.h"
#include "worker.h"

/* ---------------------------------------------------------------- answers */

/* The call that an item is, or that its message stands for; or NULL. */
static DgenCall *
call_of(Batch *b, BatchItem *item)
{
	return item->msg == NULL ? b->calls[item->call].call : item->kept;
}

static void
answer_reply(Batch *b, BatchItem *item, Jsonb *reply)
{
	if (item->kept != NULL)
	{
		(void) dgen_kept_settle(item->kept, DGEN_CALL_DONE, reply);
		return;
	}
	dgen_call_put_reply(b->calls[item->call].call, DGEN_CALL_REPLY, reply, VARSIZE(reply));
	dgen_batch_answer(b, item->call);
}

static void
answer_failure(Batch *b, BatchItem *item, const DgenError *err)
{
	if (item->kept != NULL)
	{
		dgen_kept_settle_error(item->kept, err);
		return;
	}
	dgen_call_put_error(b->calls[item->call].call, err);
	dgen_batch_answer(b, item->call);
}

static void
answer_error(Batch *b, int call, int sqlerrcode, char *message, char *detail, char *hint)
{
	DgenError	err = {sqlerrcode, message, detail, hint, NULL};

	dgen_call_put_error(b->calls[call].call, &err);
	dgen_batch_answer(b, call);
}

/* The server is not there, or no more: an answer for a call, the end of a message. */
static void
answer_no_server(Batch *b, BatchItem *item, DgenServer *server)
{
	DgenError	err;

	dgen_no_server_error(b->module, server, &err);
	if (call_of(b, item) != NULL)
		answer_failure(b, item, &err);
	else if (item->msg->kind == 'r')
		dgen_request_reply(b->module, item->msg, NULL, dgen_error_to_jsonb(&err));
}

/* Calls that waited when their server stopped are not for its next life. */
static void
answer_stopped(Batch *b, BatchItem *stopping, const char *reason)
{
	DgenServer *server = b->servers[stopping->server].server;

	for (int i = 0; i < b->ncalls; i++)
	{
		if (b->calls[i].answered || b->calls[i].lease != stopping->lease ||
			strcmp(b->calls[i].call->data, server->address) != 0 ||
			!dgen_call_begin(b->calls[i].call))
			continue;
		answer_error(b, i, ERRCODE_DGEN_STOPPED,
					 psprintf("server \"%s\" has stopped", server->address),
					 psprintf("It stopped with reason \"%s\".", reason),
					 psprintf("Call again, or start it by dgen.start('%s').", server->address));
	}
}

/* ---------------------------------------------------------------- request_key */

/* Was this request answered before?  Then that is the answer. */
static bool
answer_from_key(Batch *b, BatchItem *item, DgenServer *server)
{
	DgenCall   *c = call_of(b, item);
	const char *key = c->data + c->key_off;
	Jsonb	   *request = (Jsonb *) (c->data + c->request_off);
	bool		same;
	Jsonb	   *kept = dgen_reply_by_key(server->address, key, c->data + c->role_off, request, &same);

	if (kept == NULL)
		return false;
	if (same)
		answer_reply(b, item, kept);
	else
	{
		DgenError	err = {ERRCODE_DGEN_KEY_REUSED};

		err.message = psprintf("request_key \"%s\" was used for another request to server \"%s\"",
							   key, server->address);
		err.detail = pstrdup("Its reply is kept for reply_ttl, for the role that called.");
		err.hint = pstrdup("Use another key for another request.");
		answer_failure(b, item, &err);
	}
	return true;
}

/* ---------------------------------------------------------------- one item */

static void
fill_activation(Batch *b, BatchItem *item, DgenActivation *act)
{
	memset(act, 0, sizeof(DgenActivation));
	act->module = b->module;
	act->server = b->servers[item->server].server;
	act->identity = DGEN_AS_WORKER;
	if (item->msg != NULL)
	{
		act->callback = dgen_message_callback(item->msg->kind);
		act->kind = dgen_message_kind(item->msg->kind);
		act->message = item->msg->message;
		act->context = item->msg->context;
		act->sender = item->msg->sender;
		act->sender_role = item->msg->sender_role;
		act->message_vsn = item->msg->vsn;
		act->request_id = item->msg->kind == 'r' ? item->msg->id : 0;
		act->message_id = item->msg->id;
		act->retried = item->msg->timer == 0;
		act->call = item->kept;
	}
	else
	{
		DgenCall   *c = b->calls[item->call].call;

		act->callback = DGEN_HANDLE_CALL;
		act->kind = "call";
		act->call = c;
		act->message = (Jsonb *) (c->data + c->request_off);
		act->context = c->context_off ? (Jsonb *) (c->data + c->context_off) : NULL;
		act->sender = c->data + c->sender_off;
		act->sender_role = c->data + c->role_off;
	}
}

/* Somebody is about to end the message, and may not: the server waits for that. */
static void
put_off(Batch *b, BatchItem *item)
{
	BatchLease *lease = &b->leases[item->lease];

	lease->low = Min(lease->low, item->msg->id);
	lease->park_until = GetCurrentTimestamp() + 10000;
	b->servers[item->server].blocked = true;
}

/*
 * Take the message out of the mailbox.  False: somebody else has, or is about
 * to (dgen.cancel()); in the second case the server waits for that to end.
 */
static bool
consume_message(Batch *b, BatchItem *item)
{
	BatchLease *lease = &b->leases[item->lease];

	switch (dgen_table_delete(b->messages, &item->msg->tid))
	{
		case TM_Ok:
			item->consumed = true;
			lease->consumed++;
			return true;
		case TM_BeingModified:
			put_off(b, item);
			return false;
		default:
			return false;
	}
}

/* The handler has locked its server: the message stays in its place. */
static void
lock_server(Batch *b, BatchItem *item)
{
	DgenServer *server = b->servers[item->server].server;
	int64		id = dgen_keep_item(b, item, DGEN_KEEP_LOCKED);

	if (id == 0)
		ereport(ERROR,
				(errcode(ERRCODE_DGEN_BAD_DIRECTIVE),
				 errmsg("contradictory directives from handle_call"),
				 errdetail("It said lock, and has replied."),
				 errhint("Leave the reply to handle_locked.")));
	dgen_lock_begin(b->module, server, id);
	/* what else of the server is in this batch waits for the next one */
	server->ahead = true;
}

/*
 * The same for a message of a timer, whose row is taken, too.  The message is
 * locked first: were it deleted, it would have to come back when somebody is
 * at the timer.
 */
static DgenClaim
consume_of_timer(Batch *b, BatchItem *item, struct DgenTimer **timer)
{
	DgenClaim	claim;

	switch (dgen_table_lock(b->messages, &item->msg->tid))
	{
		case TM_Ok:
			claim = dgen_timer_claim(item->msg, false, timer);
			break;
		case TM_WouldBlock:
		case TM_BeingModified:
			claim = DGEN_CLAIM_BUSY;
			break;
		default:
			return DGEN_CLAIM_GONE;
	}
	if (claim == DGEN_CLAIM_BUSY)
		put_off(b, item);
	/* the lock is ours: there is nobody to wait for */
	else if (dgen_table_delete_wait(b->messages, &item->msg->tid))
	{
		item->consumed = true;
		b->leases[item->lease].consumed++;
	}
	return claim;
}

/* Give the result of an activation to whoever waits for it. */
static void
deliver(Batch *b, BatchItem *item, DgenActivation *act)
{
	DgenCall   *c = call_of(b, item);

	if (act->postponed)
		(void) dgen_keep_item(b, item, act->again ? DGEN_KEEP_AGAIN : DGEN_KEEP_POSTPONED);
	else if (act->locked)
		lock_server(b, item);
	else if (c == NULL)
	{
		if (item->msg->kind == 'r' && act->replied)
			dgen_request_reply(b->module, item->msg, act->reply, NULL);
		else if (item->msg->kind == 'r')
			dgen_deferred_request(b->module, item->msg);
	}
	else if (act->replied)
	{
		if (c->key_off != 0)
			dgen_reply_store(b->module, dgen_draw_id(), act->server->address,
							 c->data + c->key_off, dgen_request_hash(act->message),
							 act->sender_role, act->reply, NULL);
		answer_reply(b, item, act->reply);
	}
	else if (item->kept != NULL)
		(void) dgen_kept_settle(c, DGEN_CALL_DEFERRED, NULL);
	else
		(void) dgen_deferred_call(b, item->call, DGEN_CALL_DEFERRED);
	if (act->exited)
		answer_stopped(b, item, act->reason);
}

/* reject and retry_after undo the activation, as an error does. */
static void
raise_directive(Batch *b, DgenActivation *act)
{
	MemoryContext old = MemoryContextSwitchTo(b->mcxt);

	if (act->outcome == DGEN_REJECTED)
	{
		b->rejected = true;
		ereport(ERROR,
				(errcode(ERRCODE_DGEN_REFUSED),
				 errmsg("message was rejected: %s", act->reason),
				 b->effects ?
				 errdetail("An effect of server \"%s\" said so; what it did in the database was undone.",
						   dgen_server_of(act->server->address)) :
				 errdetail("The handler of server \"%s\" said so; what it did was undone.",
						   act->server->address),
				 errhint("See dgen.dead_letters for messages, which can be requeued.")));
	}
	b->retry_after = palloc(sizeof(Interval));
	*b->retry_after = *act->retry_after;
	MemoryContextSwitchTo(old);
	ereport(ERROR,
			(errcode(ERRCODE_DGEN_REFUSED),
			 errmsg("message asked to be tried later")));
}

static void
activate(Batch *b, BatchItem *item)
{
	DgenActivation act;
	DgenServer *server = b->servers[item->server].server;
	Jsonb	   *before = server->state;

	/* an exit message that did its work otherwise: its server lives */
	if (item->msg != NULL && item->msg->kind == DGEN_KIND_EXIT)
		return;
	if (b->module->ephemeral)
		server->active = false;
	fill_activation(b, item, &act);
	b->traced = b->module->traces != NULL;
	b->activation_began = b->traced ? GetCurrentTimestamp() : 0;
	dgen_activation_run(&act);
	switch (act.outcome)
	{
		case DGEN_HANDLED:
			deliver(b, item, &act);
			item->handled = !act.postponed && !act.locked;
			b->nhandled++;
			break;
		case DGEN_NO_SERVER:
			answer_no_server(b, item, server);
			break;
		case DGEN_REJECTED:
		case DGEN_RETRY_LATER:
			raise_directive(b, &act);
	}
	if (b->module->ephemeral)
		server->dirty = server->state_changed = server->erased = false;
	if (item->failed)
		dgen_failure_forget(b, server, item->msg->id);
	if (server->crashes > 0)
	{
		server->crashes = 0;
		server->dirty = true;
	}
	/* it lives on from one activation to the next: out of the item's memory */
	dgen_server_keep(server, before, b->mcxt);
	/* each activation makes a version of its own where that is to be told */
	if (b->module->history != NULL)
		dgen_server_count(server);
}

/* The stand-in for the stream's server is never written. */
static void
run_effect(Batch *b, BatchItem *item)
{
	DgenActivation act;
	DgenServer *server = b->servers[item->server].server;

	fill_activation(b, item, &act);
	dgen_effect_run(&act, item->msg);
	if (act.outcome != DGEN_HANDLED)
		raise_directive(b, &act);
	item->handled = true;
	b->nhandled++;
	if (item->failed)
		dgen_failure_forget(b, server, item->msg->id);
	server->dirty = server->erased = false;
}

/* Does a caller's request wait for the server as well? */
static bool
call_waits(Batch *b, int lease)
{
	for (int i = 0; i < b->ncalls; i++)
	{
		if (b->calls[i].lease == lease && !b->calls[i].answered)
			return true;
	}
	return false;
}

/* A call that was kept, for its caller and in the incarnation that kept it. */
static bool
begin_kept(Batch *b, BatchItem *item)
{
	DgenServer *server = b->servers[item->server].server;

	switch (dgen_kept_begin(item->msg->token, &item->kept))
	{
		case DGEN_KEPT_BEGUN:
			break;
		case DGEN_KEPT_GONE:
			return false;
		case DGEN_KEPT_BUSY:
			/* somebody's dgen.reply() may yet be rolled back */
			dgen_mailbox_put_back(b->module, item->msg);
			put_off(b, item);
			return false;
	}
	if (!server->active || item->msg->incarnation != server->incarnation)
	{
		DgenError	err;

		dgen_kept_stopped_error(server->address, &err);
		answer_failure(b, item, &err);
		return false;
	}
	dgen_worker_set_call(item->kept->id, item->kept->caller_pgprocno);
	return item->kept->key_off == 0 || !answer_from_key(b, item, server);
}

/*
 * Is a message that was taken out of the mailbox still to be handled?  Not if
 * it was for an incarnation that has ended, or of a timer that no longer
 * stands.
 */
static bool
is_current(Batch *b, BatchItem *item, struct DgenTimer *timer)
{
	DgenServer *server = b->servers[item->server].server;

	if (item->msg->kind == DGEN_KIND_CALL)
		return begin_kept(b, item);
	if (!dgen_message_is_for(item->msg, server))
		return false;
	if (item->msg->id == server->continue_id)
	{
		server->continue_id = 0;
		server->dirty = true;
	}
	if (item->msg->kind == DGEN_KIND_TIMEOUT)
		return dgen_timeout_wake(b->module, server, item->msg, call_waits(b, item->lease));
	return dgen_timer_go_on(b->module, item->msg, timer);
}

/*
 * Take the message out of the mailbox, and its timer, if it comes of one;
 * false: there is nothing to handle.
 */
static bool
take_message(Batch *b, BatchItem *item)
{
	struct DgenTimer *timer = NULL;

	if (dgen_timer_is_behind(item->msg))
	{
		if (consume_of_timer(b, item, &timer) != DGEN_CLAIM_TAKEN)
			return false;
	}
	else if (!consume_message(b, item))
		return false;
	if (dgen_message_expired(b->module, item->msg))
		return false;
	return is_current(b, item, timer);
}

/* Has what comes before the rest of its mailbox been sent in this batch, or is it held up? */
static bool
must_wait(Batch *b, BatchItem *item)
{
	BatchServer *bs = &b->servers[item->server];
	BatchLease *lease = &b->leases[item->lease];

	if (!bs->blocked && !bs->server->ahead && !dgen_supervisor_holds(bs->server, item->msg))
		return false;
	if (item->msg != NULL)
		lease->low = Min(lease->low, item->msg->id);
	/* what was cancelled sets a time to look again */
	if (!bs->blocked)
		lease->more = true;
	return true;
}

/* Is there anything to run?  Ends what has expired, been cancelled or answered. */
static bool
begin_item(Batch *b, BatchItem *item)
{
	DgenServer *server = b->servers[item->server].server;

	if (must_wait(b, item))
		return false;
	if (item->msg != NULL)
		return take_message(b, item);
	if (!dgen_call_begin(b->calls[item->call].call))
	{
		/* given up; or it has its answer in this try, which may yet be undone */
		if (pg_atomic_read_u32(&b->calls[item->call].call->state) != DGEN_CALL_RUNNING)
			b->calls[item->call].answered = true;
		return false;
	}
	if (b->calls[item->call].call->id < dgen_ready_stopped(b->leases[item->lease].taken))
	{
		answer_error(b, item->call, ERRCODE_DGEN_STOPPED,
					 psprintf("server \"%s\" has stopped", server->address),
					 pstrdup("It was stopped or deleted while the call waited for it. The call did not happen."),
					 psprintf("Call again, or start it by dgen.start('%s').", server->address));
		return false;
	}
	if (b->calls[item->call].call->key_off != 0 &&
		answer_from_key(b, item, server))
		return false;
	return true;
}

/* ---------------------------------------------------------------- counting */

static int64
read_clock(void)
{
	instr_time	now;

	INSTR_TIME_SET_CURRENT(now);
	return INSTR_TIME_GET_NANOSEC(now);
}

static DgenCallbackKind
callback_of(Batch *b, BatchItem *item)
{
	if (b->effects)
		return DGEN_EFFECT;
	return item->msg == NULL ? DGEN_HANDLE_CALL : dgen_message_callback(item->msg->kind);
}

/* What this process is about to do. */
static void
show_item(Batch *b, BatchItem *item)
{
	DgenCall   *call = item->msg == NULL ? b->calls[item->call].call : NULL;

	if (b->shown != item->server)
	{
		dgen_activity_begin(b->servers[item->server].server->address,
							b->effects ? DGEN_EFFECT : DGEN_BY_KIND);
		b->shown = item->server;
	}
	dgen_activity_next(call ? DGEN_KIND_CALL : item->msg->kind, call ? 0 : item->msg->id,
					   call ? call->caller_pgprocno : DGEN_NONE, b->clock_at);
}

/* An activation has ended, or there was none: what it took goes from where the last one ended. */
static void
count_item(Batch *b, BatchItem *item)
{
	DgenServer *server = b->servers[item->server].server;
	char		kind = item->msg ? item->msg->kind : DGEN_KIND_CALL;
	TimestampTz began = b->clock_at;
	int64		now = read_clock();
	int64		ns = now - b->clock;

	b->clock = now;
	b->clock_at += ns / 1000;
	if (!item->handled)
		return;
	dgen_stat_tally(b->module_id, kind, server, ns,
					item->msg ? item->msg->sent_at : b->calls[item->call].call->issued_at, began);
	if (dgen_log_min_handler_duration >= 0)
		dgen_log_duration(server->address, callback_of(b, item), item->msg ? item->msg->id : 0,
						  ns / 1000000.0, false);
}

/* One has failed; after the abort. */
void
dgen_run_log_failed(Batch *b)
{
	BatchItem  *item = &b->items[b->current];
	int64		ns = read_clock() - b->clock;

	dgen_log_duration(b->servers[item->server].server->address, callback_of(b, item),
					  item->msg ? item->msg->id : 0, ns / 1000000.0, true);
}

/* ---------------------------------------------------------------- running */

static void
run_item(Batch *b, int i)
{
	BatchItem  *item = &b->items[i];
	MemoryContext old = MemoryContextSwitchTo(b->item_mcxt);

	/* the snapshot's command id moves on: each handler sees what came before */
	CommandCounterIncrement();
	PopActiveSnapshot();
	PushActiveSnapshot(GetTransactionSnapshot());

	b->current = i;
	show_item(b, item);
	if (item->msg == NULL)
		dgen_worker_set_call(b->calls[item->call].call->id,
							 b->calls[item->call].call->caller_pgprocno);
	else
		dgen_worker_set_call(DGEN_MESSAGE_IN_HAND | (uint64) item->msg->id, DGEN_NONE);
	if (begin_item(b, item))
	{
		if (item->msg != NULL)
			dgen_hand_take(item->msg->id);
		if (b->effects)
			run_effect(b, item);
		else
			activate(b, item);
		if (item->msg != NULL)
			dgen_hand_clear();
	}
	else if (item->consumed && item->failed)
		dgen_failure_forget(b, b->servers[item->server].server, item->msg->id);
	dgen_worker_set_call(0, DGEN_NONE);
	/* cursors that were left open; nothing of ours runs in a portal */
	PortalHashTableDeleteAll();
	dgen_worker_check_split();
	b->current = -1;
	b->nrun = i + 1;
	count_item(b, item);
	MemoryContextSwitchTo(old);
	MemoryContextReset(b->item_mcxt);
}

/* ---------------------------------------------------------------- the try */

static bool
out_of_time(Batch *b)
{
	return b->clock_at - b->started_at >= DGEN_BATCH_USECS;
}

/* Items that the budget left over stay in their mailboxes. */
static void
leave_rest(Batch *b)
{
	for (int i = b->nrun; i < b->nitems; i++)
	{
		BatchItem  *item = &b->items[i];
		BatchLease *lease = &b->leases[item->lease];

		lease->more = true;
		if (item->msg != NULL)
			lease->low = Min(lease->low, item->msg->id);
	}
	b->nitems = b->nrun;
}

/*
 * A state that was read and not changed gets a predicate lock, and more than
 * 31 of them, by default, would become one on the table, with conflicts for
 * servers that have nothing to do with it.  May the item's server be read as
 * well?
 */
static bool
room_for_read(Batch *b, DgenServer *next)
{
	int			per_relation = max_predicate_locks_per_relation < 0 ?
		max_predicate_locks_per_xact / -max_predicate_locks_per_relation - 1 :
		max_predicate_locks_per_relation;
	int			reads = 0;

	if (!IsolationIsSerializable() || !next->exists)
		return true;
	for (int i = 0; i < b->nservers; i++)
	{
		DgenServer *server = b->servers[i].server;

		if (server->read && !server->dirty && !server->recent && server->exists)
			reads++;
	}
	return reads < per_relation;
}

/* Go on to the next item's server: write the last one's, if there is room for another. */
static bool
next_server(Batch *b, int i)
{
	DgenServer *last = b->servers[b->items[i - 1].server].server;
	DgenServer *next = b->servers[b->items[i].server].server;

	if (last == next)
		return true;
	/* so that the next server's handlers see it, if they look */
	dgen_server_write(b->server_rows, last, GetActiveSnapshot());
	return room_for_read(b, next);
}

/*
 * Run the items of the cut.  Raises what a handler raises, with b->current
 * telling whose it is.
 */
void
dgen_run_items(Batch *b)
{
	bool		company = b->nitems > 1;

	/* currval() of a lone activation sees its own values only; in company it is sent here */
	if (!company)
		ResetSequenceCaches();
	PushActiveSnapshot(GetTransactionSnapshot());
	dgen_waitpoint_reach("dgen-before-handlers");
	b->running = true;
	b->clock_at = GetCurrentTimestamp();
	b->clock = read_clock();
	dgen_worker_arm(b->timeout_ms, company);
	for (int i = 0; i < b->nitems; i++)
	{
		if (i > 0 && (!next_server(b, i) || out_of_time(b)))
			break;
		run_item(b, i);
	}
	dgen_worker_disarm();
	b->running = false;
	dgen_activity_commit();
	leave_rest(b);
}

void
dgen_run_finish(Batch *b)
{
	for (int i = 0; i < b->nservers; i++)
		dgen_server_settle(b->server_rows, b->servers[i].server, GetActiveSnapshot());
	PopActiveSnapshot();
}
