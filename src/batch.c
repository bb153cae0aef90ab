/*-------------------------------------------------------------------------
 *
 * batch.c
 *	  One batch of a worker: ready servers in, one commit out.
 *
 *	  take leases and read the cut (cut.c), run the activations (run.c),
 *	  write the states, commit; behind it the replies are shown.
 *
 * There are no subtransactions.  When an item fails, the transaction aborts;
 * the items before it are run again and committed, then the one that failed
 * runs alone.  Only what fails alone counts: a call's error goes to its
 * caller, a message's to failure.c.  Conflicts (40001, 40P01) are tried again
 * up to 20 times, first with all leases taken that the failed try took.
 *
 * Memory: a batch lives in one context, reset between tries; what an item
 * needs only while it runs is in a child of it.
 *
 *-------------------------------------------------------------------------
 */
#include "stat.h"

#include "access/xact.h"
#include "access/xlog.h"
#include "commands/async.h"
#include "common/pg_prng.h"
#include "pgstat.h"
#include "replication/syncrep.h"
#include "replication/walsender.h"
#include "replication/walsender_private.h"
#include "storage/proc.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timeout.h"
#include "worker.h"

static Batch *active = NULL;	/* while a try runs, or its commit */

/* ---------------------------------------------------------------- hooks */

/* Does a handler run in this process now, as part of a batch? */
bool
dgen_batch_active(void)
{
	return active != NULL && active->running;
}

/*
 * A handler is about to read servers through the API or by SQL: it must see
 * what activations before it in this batch have made of them.
 */
void
dgen_batch_flush(void)
{
	if (!dgen_batch_active())
		return;
	for (int i = 0; i < active->nservers; i++)
	{
		DgenServer *server = active->servers[i].server;

		if (!server->dirty)
			continue;
		dgen_server_save(server);
		/* later writes are compared with this one, after the activation's memory has gone */
		dgen_server_keep(server, server->stored, active->mcxt);
		dgen_server_write(active->server_rows, server, GetActiveSnapshot());
	}
}

/* Are there states that a read would miss? */
bool
dgen_batch_unflushed(void)
{
	if (!dgen_batch_active())
		return false;
	for (int i = 0; i < active->nservers; i++)
	{
		if (active->servers[i].server->dirty)
			return true;
	}
	return false;
}

/* The server as this batch has it in memory, or NULL. */
DgenServer *
dgen_batch_server(const char *address)
{
	if (!dgen_batch_active())
		return NULL;
	for (int i = 0; i < active->nservers; i++)
	{
		if (strcmp(active->servers[i].server->address, address) == 0)
			return active->servers[i].server;
	}
	return NULL;
}

/*
 * Move what an invoke has made of one of the batch's servers into the batch's
 * memory.
 */
void
dgen_batch_keep(DgenServer *server)
{
	if (dgen_batch_server(server->address) == server)
		dgen_server_keep(server, NULL, active->mcxt);
}

/* An activation has taken the lease of another server, or waited for it. */
void
dgen_batch_touch(int64 hash)
{
	if (!dgen_batch_active() || active->ntouched == lengthof(active->touched))
		return;
	for (int i = 0; i < active->ntouched; i++)
	{
		if (active->touched[i] == hash)
			return;
	}
	active->touched[active->ntouched++] = hash;
}

/*
 * The running activation would overtake its server's own earlier messages: it
 * is tried again like a conflict, and in the end held, not counted.
 */
void
dgen_batch_overtakes(void)
{
	if (dgen_batch_active())
		active->overtakes = true;
}

/* Is the running activation one of several of this transaction? */
bool
dgen_batch_in_company(void)
{
	return dgen_batch_active() && active->nitems > 1;
}

/* A call has its reply; it is shown when the transaction has committed. */
void
dgen_batch_answer(Batch *b, int call)
{
	b->finish[b->nfinish++] = b->calls[call].call;
}

/*
 * Was the wait for synchronous replication cut short?  Then nobody may be told
 * that the commit is safe: a cancel clears its flag there, so it is counted.
 */
static bool
commit_in_doubt(int cancels_before)
{
	return SyncRepRequested() && SyncRepStandbyNames != NULL && SyncRepStandbyNames[0] != '\0' &&
		(ProcDiePending || dgen_worker_cancels() != cancels_before);
}

/*
 * The same of a transaction that is no batch's, in a session, where nobody counts
 * cancels: have the standbys said that they have it?  They may be about to,
 * where a change of settings has ended the wait; then it is not known, either.
 */
static bool
commit_unconfirmed(void)
{
	int			mode = synchronous_commit == SYNCHRONOUS_COMMIT_REMOTE_WRITE ? SYNC_REP_WAIT_WRITE :
		synchronous_commit == SYNCHRONOUS_COMMIT_REMOTE_APPLY ? SYNC_REP_WAIT_APPLY :
		SYNC_REP_WAIT_FLUSH;
	XLogRecPtr	confirmed;

	if (!TransactionIdIsValid(GetTopTransactionIdIfAny()) || !SyncRepRequested() ||
		SyncRepStandbyNames == NULL || SyncRepStandbyNames[0] == '\0')
		return false;
	LWLockAcquire(SyncRepLock, LW_SHARED);
	confirmed = WalSndCtl->lsn[mode];
	LWLockRelease(SyncRepLock);
	return confirmed < XactLastCommitEnd;
}

static int	cancels_before_commit;

bool
dgen_batch_in_doubt(void)
{
	return active != NULL ? commit_in_doubt(cancels_before_commit) : commit_unconfirmed();
}

/*
 * Runs in the worker when its transaction has committed.  Must not raise: it
 * flips shared states and sets latches.
 */
void
dgen_batch_answer_callers(void)
{
	bool		in_doubt;

	if (active == NULL)
		return;
	in_doubt = commit_in_doubt(cancels_before_commit);
	for (int i = 0; i < active->nfinish; i++)
	{
		if (in_doubt)
			active->finish[i]->result = DGEN_CALL_UNKNOWN;
		dgen_call_finish(active->finish[i]);
	}
}

/* ---------------------------------------------------------------- giving back */

/* The entry gets back those of its calls that nobody has answered. */
static void
return_calls(Batch *b, int lease)
{
	DgenTaken  *taken = b->leases[lease].taken;
	dsa_pointer *link = &taken->calls;

	*link = InvalidDsaPointer;
	for (int c = 0; c < b->ncalls; c++)
	{
		BatchCall  *call = &b->calls[c];

		if (call->lease != lease)
			continue;
		call->lease = DGEN_NONE;
		if (call->answered)
		{
			dgen_call_unref(call->call, call->self);
			continue;
		}
		pg_atomic_write_u32(&call->call->worker_slot, DGEN_NO_SLOT);
		pg_atomic_write_u64(&call->call->worker_vxid, 0);
		call->call->next = InvalidDsaPointer;
		*link = taken->last_call = call->self;
		link = &call->call->next;
	}
}

/* Give one entry back to the ready queue. */
static void
give_back_lease(Batch *b, int lease)
{
	DgenTaken  *taken = b->leases[lease].taken;

	if (b->leases[lease].gone)
		return;
	/* until they were collected they are with the entry still */
	if (b->calls != NULL)
		return_calls(b, lease);
	dgen_ready_give_back(b->pool, taken, b->leases[lease].more, b->leases[lease].park_until);
	b->leases[lease].gone = true;
	/* what is in it now is another's to read, and to mark */
	b->leases[lease].held = b->leases[lease].read = false;
}

/* Give everything back; also when the worker dies. */
static void
give_back(Batch *b)
{
	for (int i = 0; i < b->nleases; i++)
		give_back_lease(b, i);
	b->nleases = b->ncalls = 0;
	b->calls = NULL;
}

static int	wanted = DGEN_MAX_BATCH;

/* How many entries the next batch should take. */
int
dgen_batch_wanted(void)
{
	Assert(wanted > 0 && wanted <= DGEN_MAX_BATCH);
	return wanted;
}

/*
 * Where mailboxes are long a few fill a batch, and to take and give back many
 * more is wasted: take twice as many as had room in the last one that was
 * full, and twice that while all find room.
 */
static void
note_wanted(Batch *b, int nused)
{
	int			twice = Min(2 * nused, DGEN_MAX_BATCH);

	if (nused == b->nleases)
		wanted = Max(wanted, twice);
	else if (b->nitems >= b->max_items && b->mode == BATCH_ALL)
		wanted = twice;
}

/*
 * After the cut: entries that have no part in this batch need not wait for
 * its handlers, which may take long.  But that of an item which failed, and
 * is to run alone next: at the end of a long queue it would only come into
 * company again, and fail that, without ever being counted.
 */
static void
give_back_idle(Batch *b)
{
	bool		used[DGEN_MAX_BATCH] = {false};
	int			nused = 0;

	for (int i = 0; i < b->nitems; i++)
	{
		nused += !used[b->items[i].lease];
		used[b->items[i].lease] = true;
	}
	note_wanted(b, nused);
	for (int i = 0; i < b->nleases; i++)
	{
		if (used[i] || b->leases[i].gone ||
			(b->mode == BATCH_PREFIX && b->leases[i].taken->hash == b->failed_hash))
			continue;
		if (b->leases[i].held)
			dgen_lease_release(b->leases[i].taken->hash);
		give_back_lease(b, i);
	}
}

/* ---------------------------------------------------------------- one try */

static void
reset_try(Batch *b)
{
	/* first: were the worker to end here, the items would be gone already */
	b->current = -1;
	MemoryContextReset(b->mcxt);
	b->item_mcxt = AllocSetContextCreate(b->mcxt, "dgen activation", ALLOCSET_DEFAULT_SIZES);
	b->finish = MemoryContextAlloc(b->mcxt, Max(b->ncalls, 1) * sizeof(DgenCall *));
	b->nservers = b->nitems = b->nrun = b->nhandled = b->nfinish = 0;
	b->shown = -1;
	b->bytes = 0;
	b->running = false;
	b->error = NULL;
	b->rejected = b->overtakes = false;
	b->retry_after = NULL;
	b->traced = false;
	b->activation_began = 0;
	/* this try may end before its cut: what one that was rolled back has read must not move the marks */
	for (int i = 0; i < b->nleases; i++)
	{
		b->leases[i].held = b->leases[i].read = false;
		b->leases[i].consumed = 0;
	}
}

static void
begin_transaction(Batch *b)
{
	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	b->started_at = GetCurrentTimestamp();
	XactReadOnly = false;
	MemoryContextSwitchTo(b->mcxt);
}

/*
 * Tell the callers that wait on a lock whose transaction to wait for.  Before
 * the first table is opened: who rewrites that, of dgen's too, waits for the
 * callers, and we wait behind him.
 */
static void
publish_vxid(Batch *b)
{
	uint64		vxid = ((uint64) MyVxidProc << 32) | MyLxid;

	for (int i = 0; i < b->ncalls; i++)
	{
		if (b->calls[i].lease == DGEN_NONE || b->calls[i].answered)
			continue;
		pg_atomic_write_u32(&b->calls[i].call->worker_slot, dgen_my_slot - dgen_shared->slots);
		pg_atomic_write_u64(&b->calls[i].call->worker_vxid, vxid);
	}
}

/* The module is gone: so are its servers. */
static void
answer_module_dropped(Batch *b)
{
	for (int i = 0; i < b->ncalls; i++)
	{
		DgenError	err = {ERRCODE_DGEN_NO_MODULE};

		if (b->calls[i].lease == DGEN_NONE || b->calls[i].answered ||
			!dgen_call_begin(b->calls[i].call))
			continue;
		err.message = psprintf("module of server \"%s\" was dropped", b->calls[i].call->data);
		dgen_call_put_error(b->calls[i].call, &err);
		dgen_batch_answer(b, i);
	}
}

/* Can the module's servers be served now?  If not they wait, or are refused. */
static bool
module_is_ready(Batch *b)
{
	TimestampTz wait = 0;
	DgenDatabase *db = dgen_database(MyDatabaseId, false);
	bool		armed = (db != NULL && pg_atomic_read_u32(&db->armed)) || dgen_database_armed();

	if (b->module == NULL)
	{
		answer_module_dropped(b);
		return false;
	}
	if (b->module->suspended)
		wait = DT_NOEND;
	else if (!dgen_enabled || !armed)
		wait = GetCurrentTimestamp() + INT64CONST(1000000);
	for (int i = 0; wait != 0 && i < b->nleases; i++)
	{
		b->leases[i].more = false;
		b->leases[i].park_until = wait;
	}
	/* what made it ready again may ring nobody: callers look again by themselves */
	for (int i = 0; wait == DT_NOEND && i < b->ncalls; i++)
		if (b->calls[i].lease != DGEN_NONE)
			b->leases[b->calls[i].lease].park_until = GetCurrentTimestamp() + INT64CONST(1000000);
	return wait == 0;
}

static void
open_tables(Batch *b)
{
	b->messages = dgen_table_open(DGEN_T_MESSAGE, RowExclusiveLock);
	b->server_rows = dgen_table_open(DGEN_T_SERVER, RowExclusiveLock);
	b->attempts = dgen_table_open(DGEN_T_ATTEMPT, RowExclusiveLock);
}

static void
close_tables(Batch *b)
{
	dgen_table_close(b->messages);
	dgen_table_close(b->server_rows);
	dgen_table_close(b->attempts);
}

/* How many items this try may have: by the module's batch_size and its pace. */
static int
item_limit(Batch *b)
{
	uint32		pace = dgen_pace_get(MyDatabaseId, b->module_id);
	int			limit = Min(b->module->batch_size, DGEN_MAX_BATCH);

	if (b->mode == BATCH_ALONE || b->effects)
		return 1;
	if (b->mode == BATCH_PREFIX)
		return Min(limit, b->nonly);
	if (b->conflicts > 0)
		return 1;
	if (pace > 0)
		limit = Min(limit, Max(1, DGEN_BATCH_USECS / pace));
	return limit;
}

static void
report_activity(Batch *b)
{
	char		text[DGEN_MAX_ADDRESS + 64];
	BatchItem  *first = &b->items[0];
	const char *address = dgen_server_of(b->servers[first->server].server->address);
	DgenCallbackKind callback = b->effects ? DGEN_EFFECT :
		first->msg == NULL ? DGEN_HANDLE_CALL : dgen_message_callback(first->msg->kind);

	if (b->nitems > 1)
		snprintf(text, sizeof(text), "dgen: %s %s, first of %d", address,
				 dgen_activity_name(callback), b->nitems);
	else
		snprintf(text, sizeof(text), "dgen: %s %s", address, dgen_activity_name(callback));
	pgstat_report_activity(STATE_RUNNING, text);
	strlcpy(dgen_my_slot->server, address, sizeof(dgen_my_slot->server));
	dgen_my_slot->batch_size = b->nitems;
}

/* A suspect's attempt is committed before it runs, in a transaction of its own. */
static bool
accuse_suspect(Batch *b)
{
	BatchItem  *item = &b->items[0];

	if (b->nitems != 1 || item->msg == NULL ||
		!dgen_hand_suspect(MyDatabaseId, item->msg->id))
		return false;
	dgen_failure_accuse(b, item);
	return true;
}

static void
try_body(Batch *b)
{
	dgen_worker_prepare_session(b->module_id);
	begin_transaction(b);
	publish_vxid(b);
	b->module = dgen_module_by_id(b->module_id);
	if (b->module != NULL && b->module->suspended)
		b->module = dgen_module_reread(b->module);
	if (b->module != NULL)
		dgen_module_hold(b->module);
	if (module_is_ready(b))
	{
		/* an effect may take long, and its outside work cannot be undone */
		XactIsoLevel = b->effects ? XACT_READ_COMMITTED : b->module->isolation;
		b->timeout_ms = b->effects ? b->module->work_timeout : b->module->handler_timeout;
		b->watches_crashes = b->module->on_crash_loop != DGEN_CRASH_LOOP_KEEP;
		b->max_items = item_limit(b);
		open_tables(b);
		dgen_waitpoint_reach("dgen-before-leases");
		dgen_cut_take(b);
		if (accuse_suspect(b))
			b->nitems = 0;
		else if (b->nitems > 0)
		{
			give_back_idle(b);
			report_activity(b);
			dgen_run_items(b);
			dgen_run_finish(b);
			dgen_hand_clear();
		}
		close_tables(b);
	}
	dgen_worker_disarm();
	dgen_waitpoint_reach("dgen-before-commit");
	cancels_before_commit = dgen_worker_cancels();
	CommitTransactionCommand();
}

static void
drop_module(Batch *b)
{
	if (b->module != NULL)
		dgen_module_release(b->module);
	b->module = NULL;
}

/* After the abort of a try: its calls wait again, but for one that was cancelled. */
static void
calls_after_abort(Batch *b)
{
	for (int i = 0; i < b->ncalls; i++)
	{
		uint32		running = DGEN_CALL_RUNNING;

		/* what an earlier try has answered, or left to others, is theirs */
		if (b->calls[i].lease == DGEN_NONE || b->calls[i].answered)
			continue;
		pg_atomic_write_u64(&b->calls[i].call->worker_vxid, 0);
		pg_atomic_compare_exchange_u32(&b->calls[i].call->state, &running, DGEN_CALL_QUEUED);
	}
}

static void
abort_try(Batch *b, MemoryContext mcxt)
{
	ErrorData  *edata;

	HOLD_INTERRUPTS();
	dgen_worker_disarm();
	MemoryContextSwitchTo(mcxt);
	edata = CopyErrorData();
	FlushErrorState();
	b->error = dgen_error_copy(edata);
	dgen_worker_note_error(b->error->sqlerrcode);
	AbortOutOfAnyTransaction();
	if (b->current >= 0 && b->nitems == 1)
		dgen_run_log_failed(b);
	dgen_activity_end();
	MemoryContextSwitchTo(mcxt);
	b->running = false;
	active = NULL;
	dgen_hand_clear();
	dgen_worker_set_call(0, DGEN_NONE);
	QueryCancelPending = false;
	calls_after_abort(b);
	drop_module(b);
	RESUME_INTERRUPTS();
}

/* One transaction.  True if it committed; else b->error says why not. */
static bool
try_batch(Batch *b)
{
	MemoryContext mcxt = b->mcxt;
	volatile bool committed = true;

	reset_try(b);
	dgen_worker_forget_interrupt();
	active = b;
	PG_TRY();
	{
		try_body(b);
		MemoryContextSwitchTo(mcxt);
		dgen_activity_end();
		active = NULL;
	}
	PG_CATCH();
	{
		abort_try(b, mcxt);
		committed = false;
	}
	PG_END_TRY();
	return committed;
}

/* ---------------------------------------------------------------- after a commit */

/*
 * What was not begun is queued still.  All else has its answer, or waits for it
 * elsewhere: one that was postponed another process may even have begun again.
 */
static void
mark_answered(Batch *b)
{
	for (int i = 0; i < b->ncalls; i++)
	{
		if (b->calls[i].lease != DGEN_NONE &&
			pg_atomic_read_u32(&b->calls[i].call->state) != DGEN_CALL_QUEUED)
			b->calls[i].answered = true;
	}
}

/*
 * The transaction is visible: move the marks, keep the states, count.
 */
static void
after_commit(Batch *b)
{
	TimestampTz now = GetCurrentTimestamp();

	mark_answered(b);
	for (int i = 0; i < b->nleases; i++)
	{
		BatchLease *lease = &b->leases[i];
		bool		known;

		if (!lease->read)
			continue;
		dgen_mark_advance(lease->taken->hash, lease->low, lease->generation);
		if (lease->consumed > 0)
			dgen_length_add(lease->taken->hash, -lease->consumed, &known);
	}
	if (b->nrun == 0)
		return;
	if (b->module != NULL && !b->module->ephemeral && !b->effects)
	{
		for (int i = 0; i < b->nservers; i++)
			dgen_cache_store(b->servers[i].server);
	}
	dgen_my_slot->batches++;
	/* what was dropped (expired, of an ended incarnation) tells nothing of the handlers */
	if (b->nhandled == 0)
		return;
	if (!b->effects)
		dgen_pace_note(MyDatabaseId, b->module_id,
					   Min((now - b->started_at) / b->nhandled, PG_INT32_MAX));
	dgen_breaker_success(MyDatabaseId, dgen_pace_id(b->module_id, b->effects), now);
	dgen_my_slot->activations += b->nhandled;
}

/* ---------------------------------------------------------------- after an abort */

static bool
is_conflict(Batch *b)
{
	return b->overtakes || dgen_error_fault(b->error->sqlerrcode) == DGEN_FAULT_CONFLICT;
}

static BatchItemId
id_of(Batch *b, BatchItem *item)
{
	BatchItemId id;

	id.is_call = item->msg == NULL;
	id.id = id.is_call ? (int64) b->calls[item->call].call->id : item->msg->id;
	return id;
}

/* A short, growing, random pause before a conflict is tried again. */
static void
pause_after_conflict(Batch *b)
{
	static uint32 conflict_wait_event = 0;
	int			max_ms = Min(1 << Min(b->conflicts, 6), 50);

	if (conflict_wait_event == 0)
		conflict_wait_event = WaitEventExtensionNew("DgenConflict");

	(void) WaitLatch(MyLatch, WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
					 (long) (pg_prng_uint32(&pg_global_prng_state) % max_ms),
					 conflict_wait_event);
	CHECK_FOR_INTERRUPTS();
}

/* Say what really happened, where an interrupt of ours raised 57014. */
static void
explain_interrupt(Batch *b, DgenInterrupt why)
{
	const char *what = b->effects ? "effect" : "handler";
	const char *option = b->effects ? "work_timeout" : "handler_timeout";

	if (why == DGEN_INTERRUPT_CALLER)
	{
		b->error->sqlerrcode = ERRCODE_DGEN_WORKER_LOST;
		b->error->message = psprintf("%s was aborted", what);
		b->error->detail = pstrdup("An operator did so by dgen.abort(). Its work in the database was undone.");
		b->error->hint = pstrdup("It is tried again, until its attempts are used up; dgen.discard() gives it up.");
		return;
	}
	if (why != DGEN_INTERRUPT_TIMEOUT || b->error->sqlerrcode != ERRCODE_QUERY_CANCELED)
		return;
	b->error->sqlerrcode = ERRCODE_DGEN_HANDLER_TIMEOUT;
	b->error->message = psprintf("%s ran longer than %s", what, option);
	b->error->detail = psprintf("%s of the module is %d ms. Its work was undone.",
								option, b->timeout_ms);
	b->error->hint = psprintf("Make the %s faster, or raise %s by dgen.alter_module().",
							  what, option);
}

/* A call that failed alone: its caller gets the error at once. */
static void
fail_call(Batch *b, BatchItem *item, DgenInterrupt why)
{
	DgenCall   *call = b->calls[item->call].call;

	dgen_trace_failed_call(b, item);
	if (!dgen_call_begin(call))
	{
		b->calls[item->call].answered = true;
		return;
	}
	if (why == DGEN_INTERRUPT_CALLER)
		dgen_call_put_reply(call, DGEN_CALL_CANCELLED, NULL, 0);
	else
		dgen_call_put_error(call, b->error);
	dgen_call_finish(call);
	b->calls[item->call].answered = true;
}

/* Does a caller wait for the item? */
static bool
has_caller(BatchItem *item)
{
	return item->msg == NULL || item->msg->kind == DGEN_KIND_CALL;
}

/* Its caller had it cancelled; the message of a kept call is dropped when it is met. */
static void
fail_cancelled(Batch *b, BatchItem *item, DgenInterrupt why)
{
	if (item->msg == NULL)
		fail_call(b, item, why);
	else
		dgen_kept_cancelled(item->msg->token);
	for (int i = 0; i < b->nleases; i++)
		b->leases[i].more = true;
}

/* What failed, failed alone: that counts. */
static void
fail_item(Batch *b, BatchItem *item, DgenInterrupt why)
{
	/* at once, unless what follows finds that it must wait */
	for (int i = 0; i < b->nleases; i++)
		b->leases[i].more = true;
	if (item->msg != NULL)
		dgen_failure_record(b, item);
	else
	{
		/* before its caller hears of it, so that what he calls next comes after */
		if (b->servers[item->server].server->supervised || b->watches_crashes)
			dgen_failure_crash(b, item);
		dgen_statistics_failure(b, item);
		dgen_stat_failure(b);
		fail_call(b, item, why);
	}
}

/* One item runs alone next: let all others go to whoever is free. */
static void
keep_only(Batch *b, int lease)
{
	for (int i = 0; i < b->nleases; i++)
	{
		b->leases[i].more = true;
		b->leases[i].park_until = 0;
		if (i != lease)
			give_back_lease(b, i);
	}
}

/* The item that failed in company is next, alone. */
static void
plan_alone(Batch *b)
{
	b->mode = BATCH_ALONE;
	b->only[0] = b->failed;
	b->nonly = 1;
	for (int i = 0; i < b->nleases; i++)
	{
		if (b->leases[i].taken->hash == b->failed_hash)
		{
			keep_only(b, i);
			return;
		}
	}
}

/*
 * Decide what to try next after an abort; false: nothing, give everything
 * back.
 */
static bool
plan_retry(Batch *b)
{
	DgenInterrupt why = dgen_worker_interrupted();
	int			failed = b->current >= 0 ? b->current : (b->nrun == 1 && b->nitems == 1 ? 0 : -1);
	BatchItem	item;
	BatchItemId id;

	if (is_conflict(b))
	{
		dgen_my_slot->conflicts++;
		dgen_stat_now(b->module_id, DGEN_STAT_CONFLICTS);
	}
	if (failed < 0)
	{
		/*
		 * At the commit of a company (then one at a time, to learn whose
		 * fault it is), or before any handler ran.
		 */
		if ((is_conflict(b) || b->nrun > 0) && b->conflicts++ < DGEN_MAX_CONFLICTS)
		{
			pause_after_conflict(b);
			b->mode = BATCH_ALL;
			return true;
		}
		ereport(LOG,
				(errcode(b->error->sqlerrcode),
				 errmsg("dgen worker could not serve a batch: %s", b->error->message)));
		for (int i = 0; i < b->nleases; i++)
		{
			b->leases[i].more = false;
			b->leases[i].park_until = GetCurrentTimestamp() + INT64CONST(1000000);
		}
		return false;
	}

	item = b->items[failed];
	id = id_of(b, &item);
	if (why == DGEN_INTERRUPT_CALLER && has_caller(&item))
	{
		fail_cancelled(b, &item, why);
		return false;
	}
	if (why == DGEN_INTERRUPT_BUDGET)
		dgen_pace_note(MyDatabaseId, b->module_id, 8 * DGEN_BATCH_USECS);
	if (b->nitems > 1)
	{
		/* first those before it, then it alone */
		b->nonly = 0;
		for (int i = 0; i < failed; i++)
			b->only[b->nonly++] = id_of(b, &b->items[i]);
		b->mode = BATCH_PREFIX;
		b->failed = id;
		b->failed_hash = b->leases[item.lease].taken->hash;
		if (failed == 0)
			plan_alone(b);
		return true;
	}
	if (is_conflict(b) && b->conflicts++ < DGEN_MAX_CONFLICTS)
	{
		pause_after_conflict(b);
		b->mode = BATCH_ALONE;
		b->only[0] = id;
		b->nonly = 1;
		return true;
	}
	if (b->overtakes && has_caller(&item))
	{
		/* the call stays queued, until its caller gives up */
		for (int i = 0; i < b->nleases; i++)
		{
			b->leases[i].more = false;
			b->leases[i].park_until = GetCurrentTimestamp() + INT64CONST(50000);
		}
		return false;
	}
	explain_interrupt(b, why);
	fail_item(b, &item, why);
	return false;
}

/* ---------------------------------------------------------------- the whole */

/* Take over the calls of the entries: all of them or, if that fails, none. */
static void
collect_calls(Batch *b)
{
	BatchCall  *calls;
	int			n = 0;

	for (int i = 0; i < b->nleases; i++)
	{
		for (dsa_pointer p = b->leases[i].taken->calls; p != InvalidDsaPointer;
			 p = ((DgenCall *) dsa_get_address(dgen_dsa(), p))->next)
			n++;
	}
	calls = palloc(Max(n, 1) * sizeof(BatchCall));
	n = 0;
	for (int i = 0; i < b->nleases; i++)
	{
		for (dsa_pointer p = b->leases[i].taken->calls; p != InvalidDsaPointer;)
		{
			BatchCall  *c = &calls[n++];

			c->self = p;
			c->call = dsa_get_address(dgen_dsa(), p);
			c->lease = i;
			c->answered = false;
			p = c->call->next;
		}
	}
	b->calls = calls;
	b->ncalls = n;
}

static Batch batch;

/* The worker is in a transaction that comes before its batch's, and may wait in it, too. */
void
dgen_batch_publish(void)
{
	publish_vxid(&batch);
}

/*
 * Whatever is raised from here on, and ends the worker, its exit gives back
 * what it has taken: so nothing is allocated yet.
 */
static void
register_taken(Batch *b, int pool, DgenTaken *taken, int n, int32 module_id)
{
	static BatchLease leases[DGEN_MAX_BATCH];

	b->pool = pool;
	b->effects = dgen_shared->pools[pool].kind == DGEN_POOL_LONG;
	b->module_id = module_id;
	b->current = -1;
	b->calls = NULL;
	b->ncalls = 0;
	memset(leases, 0, n * sizeof(BatchLease));
	for (int i = 0; i < n; i++)
		leases[i].taken = &taken[i];
	b->leases = leases;
	b->nleases = n;
}

/*
 * Serve what was taken from the ready queue: runs transactions until one batch
 * has committed, or nothing can be done, and gives the rest back.
 */
void
dgen_batch_serve(int pool, DgenTaken *taken, int n, int32 module_id)
{
	Batch	   *b = &batch;
	MemoryContext mcxt;
	MemoryContext old;

	register_taken(b, pool, taken, n, module_id);
	mcxt = AllocSetContextCreate(CurrentMemoryContext, "dgen batch of calls", ALLOCSET_DEFAULT_SIZES);
	old = MemoryContextSwitchTo(mcxt);
	if (b->mcxt == NULL)
		b->mcxt = AllocSetContextCreate(TopMemoryContext, "dgen batch", ALLOCSET_DEFAULT_SIZES);
	collect_calls(b);
	b->mode = BATCH_ALL;
	b->conflicts = b->ntouched = 0;
	b->settle[0] = '\0';

	for (;;)
	{
		if (try_batch(b))
		{
			after_commit(b);
			drop_module(b);
			if (b->mode != BATCH_PREFIX)
				break;
			plan_alone(b);
		}
		else if (!plan_retry(b))
			break;
		QueryCancelPending = false;
		CHECK_FOR_INTERRUPTS();
	}
	give_back(b);
	MemoryContextReset(b->mcxt);
	if (b->settle[0] != '\0')
		dgen_supervisor_settle(b->settle);
	MemoryContextSwitchTo(old);
	MemoryContextDelete(mcxt);
}

/*
 * The worker leaves in the middle of a batch (FATAL): its transaction has
 * been rolled back.  Its calls go back to the queue; one that has lost three
 * workers is given up.  The message in hand becomes suspect, unless the worker
 * was sent away.
 */
void
dgen_batch_at_exit(bool sent_away)
{
	Batch	   *b = &batch;

	if (!sent_away)
		dgen_supervisor_at_exit();
	if (b->nleases == 0)
		return;
	if (b->current >= 0 && b->items[b->current].msg != NULL && !sent_away)
		dgen_hand_suspect_add(MyDatabaseId, b->items[b->current].msg->id);
	for (int i = 0; i < b->ncalls; i++)
	{
		DgenCall   *call = b->calls[i].call;
		uint32		running = DGEN_CALL_RUNNING;

		if (b->calls[i].lease == DGEN_NONE)
			continue;
		if (b->calls[i].answered || pg_atomic_read_u32(&call->state) == DGEN_CALL_DONE)
		{
			b->calls[i].answered = true;
			continue;
		}
		pg_atomic_compare_exchange_u32(&call->state, &running, DGEN_CALL_QUEUED);
		if (b->current >= 0 && b->items[b->current].msg == NULL &&
			b->items[b->current].call == i && ++call->losses >= 3 && dgen_call_begin(call))
		{
			static const DgenError lost = {ERRCODE_DGEN_WORKER_LOST,
			"worker was lost three times while it ran this call"};

			dgen_call_put_error(call, &lost);
			dgen_call_finish(call);
			b->calls[i].answered = true;
		}
	}
	for (int i = 0; i < b->nleases; i++)
		b->leases[i].more = true;
	give_back(b);
}
