/*-------------------------------------------------------------------------
 *
 * failure.c
 *	  What becomes of a message that failed alone.
 *
 * An error of its own counts as an attempt; the message keeps its place and
 * is tried again after a backoff, and after max_attempts is a dead letter.  A
 * fault of the environment (a missing table, a full disk) holds the server
 * without counting, unless other messages of the module succeed meanwhile or
 * it lasts for hold_max.  reject makes a dead letter at once, retry_after
 * waits without counting.
 *
 * Runs in a worker, in a transaction of its own after the failed one has been
 * rolled back, under the server's lease.  The message's row is not touched
 * until it ends: what is known of its failures is in dgen.attempt, and the
 * server's row says that there are such.
 *
 *-------------------------------------------------------------------------
 */
#include "stat.h"

#include <math.h>

#include "access/skey.h"
#include "access/xact.h"
#include "common/pg_prng.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/resowner.h"
#include "utils/snapmgr.h"
#include "worker.h"

#define OVERTAKE_HOLD_USECS INT64CONST(10000000)

/* a row of dgen.attempt */
typedef struct Attempt
{
	ItemPointerData tid;
	bool		exists;
	int			attempts;
	int			holds;
	TimestampTz next_at;
	TimestampTz held_since;		/* 0: not held */
} Attempt;

static bool
is_effect(const DgenMessage *msg)
{
	return msg->kind == DGEN_KIND_EFFECT;
}

/* ---------------------------------------------------------------- rows */

static void
read_attempt(DgenTable *table, int64 id, Attempt *a)
{
	ScanKeyData key;
	DgenScan   *scan;
	HeapTuple	tuple;
	TupleDesc	desc = RelationGetDescr(table->rel);
	bool		isnull;

	memset(a, 0, sizeof(Attempt));
	dgen_key_int8(&key, 1, id, BTEqualStrategyNumber);
	scan = dgen_scan_begin(table, DGEN_I_PKEY, NULL, 1, &key);
	tuple = dgen_scan_next(scan);
	if (tuple != NULL)
	{
		a->exists = true;
		a->tid = tuple->t_self;
		a->attempts = DatumGetInt32(heap_getattr(tuple, 3, desc, &isnull));
		a->holds = DatumGetInt32(heap_getattr(tuple, 4, desc, &isnull));
		a->next_at = DatumGetTimestampTz(heap_getattr(tuple, 5, desc, &isnull));
		a->held_since = DatumGetTimestampTz(heap_getattr(tuple, 6, desc, &isnull));
		if (isnull)
			a->held_since = 0;
	}
	dgen_scan_end(scan);
}

static void
delete_attempt(DgenTable *table, Attempt *a)
{
	if (a->exists)
		(void) dgen_table_delete_wait(table, &a->tid);
	a->exists = false;
}

/* Forget the failures of a message that ends by other means than a worker's. */
void
dgen_attempt_delete(int64 message_id)
{
	DgenTable  *table = dgen_table_open(DGEN_T_ATTEMPT, RowExclusiveLock);
	Attempt		a;

	read_attempt(table, message_id, &a);
	delete_attempt(table, &a);
	dgen_table_close(table);
}

/* When is it to be tried again? */
TimestampTz
dgen_attempt_next(int64 message_id)
{
	DgenTable  *table = dgen_table_open(DGEN_T_ATTEMPT, RowExclusiveLock);
	Attempt		a;

	read_attempt(table, message_id, &a);
	dgen_table_close(table);
	return a.next_at;
}

int
dgen_attempt_count(int64 message_id)
{
	DgenTable  *table = dgen_table_open(DGEN_T_ATTEMPT, RowExclusiveLock);
	Attempt		a;

	read_attempt(table, message_id, &a);
	dgen_table_close(table);
	return a.attempts;
}

static void
write_attempt(DgenTable *table, Attempt *a, DgenMessage *msg, const DgenError *error)
{
	Datum		values[8];
	bool		nulls[8] = {false};

	delete_attempt(table, a);
	values[0] = Int64GetDatum(msg->id);
	values[1] = CStringGetTextDatum(is_effect(msg) ? dgen_effects_of(msg->server) : msg->server);
	values[2] = Int32GetDatum(a->attempts);
	values[3] = Int32GetDatum(a->holds);
	values[4] = TimestampTzGetDatum(a->next_at);
	values[5] = TimestampTzGetDatum(a->held_since);
	nulls[5] = a->held_since == 0;
	values[6] = CStringGetTextDatum(dgen_error_sqlstate(error));
	values[7] = JsonbPGetDatum(dgen_error_to_jsonb(error));
	dgen_table_insert(table, values, nulls, NULL);
	CommandCounterIncrement();
}

/* Are there rows of dgen.attempt for the server? */
static bool
has_attempts(DgenTable *table, const char *server)
{
	ScanKeyData key;
	DgenScan   *scan;
	bool		found;

	dgen_key_text(&key, 1, server);
	scan = dgen_scan_begin(table, DGEN_I_ATTEMPT_SERVER, NULL, 1, &key);
	found = dgen_scan_next(scan) != NULL;
	dgen_scan_end(scan);
	return found;
}

static void
note_failing(DgenServer *server, bool failing)
{
	if (server->failing == failing)
		return;
	server->failing = failing;
	server->dirty = true;
	/* a row that was made, or kept, for this alone goes with it */
	if (!failing)
		dgen_server_erase_if_empty(server);
}

/*
 * A message that had failed before has been handled: forget its failures.
 */
void
dgen_failure_forget(Batch *b, DgenServer *server, int64 message_id)
{
	Attempt		a;

	read_attempt(b->attempts, message_id, &a);
	delete_attempt(b->attempts, &a);
	CommandCounterIncrement();
	note_failing(server, has_attempts(b->attempts, server->address));
	dgen_hand_forget(MyDatabaseId, message_id);
}

/* ---------------------------------------------------------------- dead letters */

static void
insert_letter(DgenMessage *msg, int attempts, const DgenError *error)
{
	DgenTable  *table = dgen_table_open(DGEN_T_LETTER, RowExclusiveLock);
	Datum		values[DGEN_MESSAGE_NATTS + 4];
	bool		nulls[DGEN_MESSAGE_NATTS + 4] = {false};

	dgen_message_form(msg, values, nulls);
	for (int i = DGEN_MESSAGE_NATTS; i < DGEN_MESSAGE_NATTS + 4; i++)
		nulls[i] = false;
	values[DGEN_MESSAGE_NATTS] = TimestampTzGetDatum(GetCurrentTimestamp());
	values[DGEN_MESSAGE_NATTS + 1] = Int32GetDatum(attempts);
	values[DGEN_MESSAGE_NATTS + 2] = CStringGetTextDatum(dgen_error_sqlstate(error));
	values[DGEN_MESSAGE_NATTS + 3] = JsonbPGetDatum(dgen_error_to_jsonb(error));
	dgen_table_insert(table, values, nulls, NULL);
	dgen_table_close(table);
}

/*
 * Tell the module, in the same transaction.  In a subtransaction: an error of
 * the callback must not bring the message back.
 */
static void
run_handle_dead_letter(DgenModule *module, DgenMessage *msg, int attempts, const DgenError *error)
{
	MemoryContext old = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;

	/* one that is external has no handlers, and this may be no worker */
	if (!module->callbacks[DGEN_HANDLE_DEAD_LETTER].present || module->external)
		return;
	BeginInternalSubTransaction("handle_dead_letter");
	MemoryContextSwitchTo(old);
	PG_TRY();
	{
		DgenScope	scope = {0};
		DgenResult	result;
		NullableDatum args[3];

		scope.module = module;
		scope.server = msg->server;
		scope.hash = msg->hash;
		scope.kind = "dead_letter";
		scope.sender = msg->sender;
		scope.sender_role = msg->sender_role;
		scope.context = msg->context;
		args[0].value = JsonbPGetDatum(msg->message);
		args[1].value = Int32GetDatum(attempts);
		args[2].value = JsonbPGetDatum(dgen_error_to_jsonb(error));
		args[0].isnull = args[1].isnull = args[2].isnull = false;
		dgen_worker_arm(module->handler_timeout, false);
		dgen_handler_run(&scope, DGEN_HANDLE_DEAD_LETTER, DGEN_AS_WORKER, 3, args, &result);
		dgen_worker_disarm();
		ReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		ErrorData  *edata;

		dgen_worker_disarm();
		edata = dgen_subxact_abort(old, owner);
		ereport(LOG,
				(errcode(edata->sqlerrcode),
				 errmsg("handle_dead_letter of module \"%s\" failed: %s",
						module->name, edata->message)));
		FreeErrorData(edata);
	}
	PG_END_TRY();
	MemoryContextSwitchTo(old);
	CurrentResourceOwner = owner;
}

static void
bury(DgenModule *module, DgenServer *server, DgenTable *messages, DgenTable *attempts,
	 DgenMessage *msg, Attempt *a, const DgenError *error)
{
	int			in_a_row;

	if (dgen_table_delete(messages, &msg->tid) != TM_Ok)
		return;					/* cancelled meanwhile */
	delete_attempt(attempts, a);
	if (msg->kind == DGEN_KIND_TIMEOUT && server->timeout_id == msg->timer)
		dgen_timeout_forget(server, true);
	dgen_timer_ended(module, msg);
	insert_letter(msg, a->attempts, error);
	dgen_stat_note(module->id, DGEN_STAT_DEAD_LETTERS);
	if (msg->kind == DGEN_KIND_CONTINUE && server->continue_id == msg->id)
	{
		server->continue_id = 0;
		server->dirty = true;
	}
	if (msg->kind == 'r')
		dgen_request_reply(module, msg, NULL, dgen_error_to_jsonb(error));
	else if (msg->kind == DGEN_KIND_CALL)
		dgen_deferred_answer(msg->token, NULL, error);
	run_handle_dead_letter(module, msg, a->attempts, error);
	dgen_hand_forget(MyDatabaseId, msg->id);
	/* an effect says nothing about its server, which has done its part */
	if (is_effect(msg))
		return;

	if (module->suspend_on_dead_letter && !server->suspended)
	{
		server->suspended = true;
		server->suspended_at = GetCurrentTimestamp();
		server->suspended_by = "dgen: dead letter";
		server->dirty = true;
	}
	in_a_row = dgen_breaker_letter(MyDatabaseId, module->id, msg->hash);
	if (module->breaker > 0 && in_a_row >= module->breaker && !module->suspended)
		dgen_module_suspend(module, "dgen",
							psprintf("breaker: dead letters from %d servers in a row, the last with %s: %s",
									 in_a_row, dgen_error_sqlstate(error), error->message));
}

/* ---------------------------------------------------------------- decisions */

static TimestampTz
backoff(DgenModule *module, int n)
{
	double		seconds = module->backoff_initial * pow(module->backoff_factor, Max(n - 1, 0));

	seconds = Min(seconds, module->backoff_max);
	/* a tenth more or less, so that what failed together does not come back together */
	seconds *= 0.9 + 0.2 * pg_prng_double(&pg_global_prng_state);
	return GetCurrentTimestamp() + (int64) (seconds * USECS_PER_SEC);
}

/*
 * Does a fault of the environment count after all?  Yes if the module's other
 * messages succeed, or when it has lasted too long.
 */
static bool
fault_counts(Batch *b, DgenModule *module, Attempt *a, DgenFault fault, bool overtakes)
{
	/*
	 * What would overtake waits for its own earlier messages; but two servers
	 * may wait for each other like that, so not for long.
	 */
	if (overtakes)
		return a->held_since != 0 &&
			GetCurrentTimestamp() - a->held_since > OVERTAKE_HOLD_USECS;
	if (fault != DGEN_FAULT_ENVIRONMENT)
		return true;
	if (a->held_since == 0)
		return false;
	return dgen_breaker_last_success(MyDatabaseId, dgen_pace_id(module->id, b->effects)) > a->held_since ||
		GetCurrentTimestamp() - a->held_since > (int64) (module->hold_max * USECS_PER_SEC);
}

/*
 * Decide, and update the attempt; true if the message is a dead letter.
 */
static bool
decide(Batch *b, DgenModule *module, DgenMessage *msg, Attempt *a)
{
	int			max_attempts = msg->max_attempts > 0 ? msg->max_attempts : module->max_attempts;
	int64		usecs = 0;

	if (b->rejected)
	{
		a->attempts++;
		return true;
	}
	if (b->retry_after != NULL)
	{
		a->held_since = 0;
		(void) dgen_interval_usecs(b->retry_after, &usecs);
		a->next_at = GetCurrentTimestamp() + usecs;
		return false;
	}
	if (!fault_counts(b, module, a, dgen_error_fault(b->error->sqlerrcode), b->overtakes))
	{
		a->holds++;
		if (a->held_since == 0)
			a->held_since = GetCurrentTimestamp();
		a->next_at = backoff(module, a->holds);
		return false;
	}
	a->attempts++;
	a->held_since = 0;
	a->next_at = backoff(module, a->attempts);
	return a->attempts >= max_attempts;
}

/* The call that a message stands for fails at once: its caller gets the error. */
static void
fail_kept(Batch *b, DgenTable *messages, DgenMessage *msg)
{
	if (dgen_table_delete(messages, &msg->tid) != TM_Ok)
		return;
	dgen_kept_fail(msg->token, b->error);
	dgen_hand_forget(MyDatabaseId, msg->id);
}

/*
 * Has it crashed the incarnation that it ran in?  Locked work has no server in
 * the batch, and is tried again under its lock, so what counts is its end.
 */
static void
note_crash(Batch *b, BatchItem *item, DgenModule *module, DgenServer *server)
{
	if (b->lock_token == 0)
		dgen_crash_note(module, server, b->servers[item->server].server->incarnation, b->error);
	else if (server->lock_id == 0)
		dgen_crash_note(module, server, server->incarnation, b->error);
}

/* The tables that a failure is recorded in. */
typedef struct FailureTables
{
	DgenTable  *messages;
	DgenTable  *attempts;
	DgenTable  *servers;
} FailureTables;

/* The fate of the message: its next attempt, or its end. */
static void
record_message(Batch *b, DgenModule *module, DgenServer *server, DgenMessage *msg, FailureTables *t)
{
	Attempt		a;
	bool		dead;

	read_attempt(t->attempts, msg->id, &a);
	if (msg->kind == DGEN_KIND_CALL && b->lock_token == 0)
	{
		fail_kept(b, t->messages, msg);
		return;
	}
	dead = decide(b, module, msg, &a);
	if (dead)
		bury(module, server, t->messages, t->attempts, msg, &a, b->error);
	else
	{
		write_attempt(t->attempts, &a, msg, b->error);
		dgen_stat_note(module->id, DGEN_STAT_RETRIES);
		dgen_due_at_commit(a.next_at);
	}
	/* handle_locked keeps its lock until the next attempt; a client's lease ends */
	if (b->lock_token != 0 && (dead || module->external))
	{
		dgen_lock_end(server);
		dgen_ring_at_end(module, server->hash);
	}
}

static void
record_for(Batch *b, BatchItem *item, DgenModule *module, bool crashed, FailureTables *t)
{
	DgenMessage *msg = item->msg;
	DgenServer *server;

	/* of an effect the server's lease is not held, and its row not written */
	server = is_effect(msg) ? NULL : dgen_server_read(t->servers, msg->server, msg->hash, NULL);
	/* work whose lock was broken is nobody's failure */
	if (b->lock_token != 0 && (server->lock_id != msg->id || server->lock_token != b->lock_token))
		return;
	record_message(b, module, server, msg, t);
	if (server != NULL)
	{
		dgen_trace_failure(b, module, item);
		note_failing(server, has_attempts(t->attempts, server->address));
		if (crashed && b->retry_after == NULL && !b->rejected && !b->overtakes)
			note_crash(b, item, module, server);
		dgen_server_write(t->servers, server, NULL);
	}
}

/*
 * crashed: by an error of the handler, as opposed to the loss of its worker.
 * The snapshot comes before the server's row is read: a large state is toasted.
 */
static void
record(Batch *b, BatchItem *item, bool crashed)
{
	DgenModule *module = dgen_module_by_id(b->module_id);
	FailureTables t;

	if (module == NULL)
		return;
	PushActiveSnapshot(GetTransactionSnapshot());
	t.messages = dgen_table_open(DGEN_T_MESSAGE, RowExclusiveLock);
	t.attempts = dgen_table_open(DGEN_T_ATTEMPT, RowExclusiveLock);
	t.servers = dgen_table_open(DGEN_T_SERVER, RowExclusiveLock);
	record_for(b, item, module, crashed, &t);
	dgen_table_close(t.messages);
	dgen_table_close(t.attempts);
	dgen_table_close(t.servers);
	PopActiveSnapshot();
}

/* The same in the present transaction, for work that a client has failed. */
void
dgen_failure_note(Batch *b, BatchItem *item)
{
	record(b, item, false);
}

/* A message of the server has ended well. */
void
dgen_failure_settle(DgenServer *server)
{
	DgenTable  *table;

	if (!server->failing)
		return;
	table = dgen_table_open(DGEN_T_ATTEMPT, RowExclusiveLock);
	note_failing(server, has_attempts(table, server->address));
	dgen_table_close(table);
}

/* The error of a call, which has no row: only its server's fate is recorded. */
static void
record_crash(Batch *b, BatchItem *item)
{
	DgenModule *module = dgen_module_by_id(b->module_id);
	DgenServer *failed = b->servers[item->server].server;
	DgenTable  *servers;
	DgenServer *server;
	int			level;

	if (module == NULL || b->rejected)
		return;
	level = dgen_limit_waits();
	(void) dgen_lease_take(failed->hash, true);
	AtEOXact_GUC(false, level);
	servers = dgen_table_open(DGEN_T_SERVER, RowExclusiveLock);
	PushActiveSnapshot(GetTransactionSnapshot());
	server = dgen_server_read(servers, failed->address, failed->hash, NULL);
	dgen_crash_note(module, server, failed->incarnation, b->error);
	dgen_server_write(servers, server, NULL);
	PopActiveSnapshot();
	dgen_table_close(servers);
}

static void
record_failure(Batch *b, BatchItem *item)
{
	dgen_waitpoint_reach("dgen-failure");
	/* who got the lease in between may have ended the message, too; but not locked work */
	if (dgen_lease_take(item->msg->hash, b->lock_token != 0))
		record(b, item, true);
}

/* Record in a transaction of its own; if that fails, serve its servers a second later. */
static void
in_transaction(Batch *b, BatchItem *item, void (*what) (Batch *, BatchItem *))
{
	MemoryContext mcxt = b->mcxt;

	PG_TRY();
	{
		SetCurrentStatementStartTimestamp();
		StartTransactionCommand();
		XactReadOnly = false;
		XactIsoLevel = XACT_READ_COMMITTED;
		MemoryContextSwitchTo(mcxt);
		what(b, item);
		CommitTransactionCommand();
	}
	PG_CATCH();
	{
		ErrorData  *edata;

		HOLD_INTERRUPTS();
		MemoryContextSwitchTo(mcxt);
		edata = CopyErrorData();
		FlushErrorState();
		AbortOutOfAnyTransaction();
		ereport(LOG,
				(errcode(edata->sqlerrcode),
				 errmsg("could not record the failure of a message to server \"%s\": %s",
						item->msg ? item->msg->server : b->servers[item->server].server->address,
						edata->message)));
		for (int i = 0; i < b->nleases; i++)
		{
			b->leases[i].more = false;
			b->leases[i].park_until = GetCurrentTimestamp() + INT64CONST(1000000);
		}
		RESUME_INTERRUPTS();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(mcxt);
}

/*
 * Record the failure in b->error of a message whose transaction has been
 * rolled back.  If even that fails, the message is as before, and is tried
 * again a second later.
 */
void
dgen_failure_record(Batch *b, BatchItem *item)
{
	dgen_statistics_failure(b, item);
	dgen_stat_failure(b);
	in_transaction(b, item, record_failure);
}

/*
 * Record that a call crashed its server.  If that fails, the call has failed
 * all the same, and the server goes on.
 */
void
dgen_failure_crash(Batch *b, BatchItem *item)
{
	in_transaction(b, item, record_crash);
}

/*
 * A message that was in hand when the server or its worker went down: count
 * that as an attempt, committed before it runs again, alone.
 */
void
dgen_failure_accuse(Batch *b, BatchItem *item)
{
	static DgenError lost = {ERRCODE_DGEN_WORKER_LOST,
		"worker was lost while it handled this message", NULL,
	"See the server's log for why the process ended."};

	b->error = &lost;
	dgen_stat_note(b->module_id, DGEN_STAT_ERRORS);
	record(b, item, false);
	b->error = NULL;
	dgen_hand_forget(MyDatabaseId, item->msg->id);
	b->leases[item->lease].more = true;
	b->leases[item->lease].low = Min(b->leases[item->lease].low, item->msg->id);
}
