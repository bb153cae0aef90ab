/*-------------------------------------------------------------------------
 *
 * worker.c
 *	  A worker: a background process of one pool, connected as the owner of
 *	  the pool's modules.
 *
 * Started by the launcher, it takes ready servers, serves them batch by
 * batch, sleeps on its latch, and leaves when it has been idle for
 * dgen.worker_idle_timeout or when another owner waits for a place.
 *
 * Being the owner, and not a superuser that pretends, makes session_user, row
 * security, temporary objects and deferred triggers right without further
 * ado: there is nothing to escalate to.
 *
 * Signals: SIGTERM as in a backend (die); SIGINT, from pg_cancel_backend(), is a
 * cancel of the activation in hand, SIGUSR2 one of a call or message by its id.
 *
 * On exit the shmem callback, registered before the connection and so run
 * after the transaction has been rolled back, gives back what was in hand.
 *
 *-------------------------------------------------------------------------
 */
#include "dgen.h"

#include <signal.h>

#include "access/xact.h"
#include "catalog/namespace.h"
#include "commands/async.h"
#include "commands/discard.h"
#include "commands/prepare.h"
#include "commands/sequence.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/lmgr.h"
#include "storage/proc.h"
#include "storage/procsignal.h"
#include "tcop/tcopprot.h"
#include "utils/guc.h"
#include "utils/inval.h"
#include "utils/memutils.h"
#include "utils/portal.h"
#include "utils/snapmgr.h"
#include "utils/timeout.h"
#include "batch.h"
#include "worker.h"

#define QUANTUM_USECS INT64CONST(1000000)
#define PARKED_LONG_USECS INT64CONST(500000)
#define PATIENCE_MS 2000

/* how often who waits for a slow place looks for one */
#define SLOW_POLL_USECS INT64CONST(50000)

static int	my_pool;
static DgenPoolKind my_kind;
static uint32 my_generation;
static TimeoutId my_timeout;
static bool in_company;
static TimestampTz patience_ends;
static volatile sig_atomic_t gave_up = false;
static volatile sig_atomic_t interrupt = DGEN_INTERRUPT_NONE;
static volatile sig_atomic_t cancels = 0;
static bool session_is_dirty = false;
static bool memory_ran_out = false;
static int32 settings_of = 0;	/* module whose settings the session has, as the next */
static int32 prepared_for = 0;
static uint32 idle_wait_event = 0;

/* ---------------------------------------------------------------- interrupts */

static void
request_cancel(DgenInterrupt why)
{
	interrupt = why;
	InterruptPending = true;
	QueryCancelPending = true;
	SetLatch(MyLatch);
}

/*
 * A handler that traps its cancel (which has been raised, or it would be
 * pending) and goes on is cancelled again and again.  In the end only the end of
 * the process is left, which nothing traps: as if an operator had terminated it.
 */
static void
on_timeout(void)
{
	if (interrupt != DGEN_INTERRUPT_NONE && !QueryCancelPending &&
		GetCurrentTimestamp() >= patience_ends)
	{
		gave_up = true;
		ProcDiePending = true;
		InterruptPending = true;
		SetLatch(MyLatch);
		return;
	}
	request_cancel(in_company ? DGEN_INTERRUPT_BUDGET : DGEN_INTERRUPT_TIMEOUT);
}

/* A cancel by pg_cancel_backend(), of whatever is in hand. */
static void
on_sigint(SIGNAL_ARGS)
{
	int			save_errno = errno;

	cancels++;
	request_cancel(DGEN_INTERRUPT_NONE);
	errno = save_errno;
}

/*
 * A cancel that names a call, or a message, and is for that alone: it may come
 * when the next one runs already.  It has a signal of its own, as one without
 * a name must not be taken for it, nor it for one.
 */
static void
on_sigusr2(SIGNAL_ARGS)
{
	int			save_errno = errno;
	uint64		wanted = pg_atomic_read_u64(&dgen_my_slot->cancel_call);
	uint64		current = pg_atomic_read_u64(&dgen_my_slot->current_call);

	if (current != 0 && (wanted & ~DGEN_ABORTED) == current)
	{
		cancels++;
		request_cancel((wanted & DGEN_ABORTED) != 0 ? DGEN_INTERRUPT_NONE : DGEN_INTERRUPT_CALLER);
	}
	errno = save_errno;
}

/* Arm the budget of a company, or the timeout of one handler. */
void
dgen_worker_arm(int timeout_ms, bool company)
{
	int			ms = company ? DGEN_BATCH_USECS / 1000 : timeout_ms;
	TimestampTz now = GetCurrentTimestamp();

	in_company = company;
	patience_ends = TimestampTzPlusMilliseconds(now, timeout_ms + (int64) Max(timeout_ms, PATIENCE_MS));
	/* again and again: a handler may trap the first one */
	enable_timeout_every(my_timeout, TimestampTzPlusMilliseconds(now, ms), Max(ms / 4, 10));
}

/* Before the commit: nothing of ours may cancel it. */
void
dgen_worker_disarm(void)
{
	disable_timeout(my_timeout, false);
	if (interrupt != DGEN_INTERRUPT_NONE)
		QueryCancelPending = false;
}

DgenInterrupt
dgen_worker_interrupted(void)
{
	return (DgenInterrupt) interrupt;
}

void
dgen_worker_forget_interrupt(void)
{
	interrupt = DGEN_INTERRUPT_NONE;
	QueryCancelPending = false;
}

int
dgen_worker_cancels(void)
{
	return cancels;
}

/*
 * A transaction was undone.  If memory ran out, what was being loaded by then may
 * be of no use to this process any more (a library half initialized), and what
 * malloc() keeps of the rest goes back to the system with it: so the worker leaves
 * after this batch.
 */
void
dgen_worker_note_error(int sqlerrcode)
{
	if (sqlerrcode == ERRCODE_OUT_OF_MEMORY)
		memory_ran_out = true;
}

/*
 * The call, or message, whose handler runs now, and its caller; 0: none; a stale
 * cancel is forgotten.
 */
void
dgen_worker_set_call(uint64 call_id, int caller_pgprocno)
{
	dgen_my_slot->caller_pgprocno = caller_pgprocno;
	pg_atomic_write_u64(&dgen_my_slot->current_call, call_id);
	if (call_id != 0)
		pg_atomic_write_u64(&dgen_my_slot->cancel_call, 0);
}

/*
 * The running handler does something that outlives its activation (a session
 * lock, LISTEN, a temporary table).  In company it must go and run alone; alone
 * the session is cleaned up after its commit.  May be called from any hook.
 */
void
dgen_batch_split(const char *why)
{
	session_is_dirty = true;
	if (!dgen_batch_in_company())
		return;
	interrupt = DGEN_INTERRUPT_SPLIT;
	ereport(ERROR,
			(errcode(ERRCODE_QUERY_CANCELED),
			 errmsg("activation must run alone"),
			 errdetail_internal("It uses %s.", why)));
}

/*
 * After each activation: an interrupt, or a need to be alone, holds whatever
 * the handler made of the error.
 */
void
dgen_worker_check_split(void)
{
	if (MyXactFlags & XACT_FLAGS_ACCESSEDTEMPNAMESPACE)
	{
		session_is_dirty = true;
		if (dgen_batch_in_company())
			interrupt = DGEN_INTERRUPT_SPLIT;
	}
	if (interrupt == DGEN_INTERRUPT_BUDGET || interrupt == DGEN_INTERRUPT_SPLIT)
		ereport(ERROR,
				(errcode(ERRCODE_QUERY_CANCELED),
				 errmsg("activation must run alone")));
	if (interrupt == DGEN_INTERRUPT_TIMEOUT)
		ereport(ERROR,
				(errcode(ERRCODE_QUERY_CANCELED),
				 errmsg("handler ran longer than handler_timeout")));
	CHECK_FOR_INTERRUPTS();
	/* one that was trapped says nothing of what comes next, and may fail by itself */
	if (interrupt == DGEN_INTERRUPT_CALLER)
		interrupt = DGEN_INTERRUPT_NONE;
}

/* ---------------------------------------------------------------- session */

static void
force_setting(const char *name, const char *value)
{
	SetConfigOption(name, value, PGC_SUSET, PGC_S_OVERRIDE);
}

/*
 * After a batch that left something in the session: what DISCARD ALL does,
 * but for settings, which the nest level has undone.
 */
static void
clean_session(void)
{
	/* session-level advisory locks; leases were let go with the transaction */
	LockReleaseAll(USER_LOCKMETHOD, true);
	if (!session_is_dirty)
		return;
	session_is_dirty = false;
	StartTransactionCommand();
	PortalHashTableDeleteAll();
	DropAllPreparedStatements();
	Async_UnlistenAll();
	/* catalogs have TOAST tables */
	PushActiveSnapshot(GetTransactionSnapshot());
	ResetTempTableNamespace();
	PopActiveSnapshot();
	ResetSequenceCaches();
	CommitTransactionCommand();
}

/*
 * After work that was no activation: as clean_session() does, and what it has
 * SET as well.  Its settings had no nest level, since it may COMMIT.
 */
void
dgen_worker_clean_session(void)
{
	session_is_dirty = true;
	clean_session();
	StartTransactionCommand();
	SetPGVariable("session_authorization", NIL, false);
	ResetAllOptions();
	CommitTransactionCommand();
	force_setting("role", "none");
	settings_of = prepared_for = 0;
}

/*
 * Settings of the module whose servers come next: the session's own, set
 * outside of transactions so that each activation's nest level stays cheap.
 */
static void
use_settings(int32 module_id)
{
	static char *search_path = NULL;
	static char *timezone = NULL;
	DgenModule *module;
	char	   *new_path;
	char	   *new_timezone;

	StartTransactionCommand();
	dgen_batch_publish();
	module = dgen_module_by_id(module_id);
	if (module != NULL &&
		(module_id != settings_of || search_path == NULL || strcmp(search_path, module->search_path) != 0 ||
		 strcmp(timezone, module->timezone ? module->timezone : "") != 0))
	{
		new_path = MemoryContextStrdup(TopMemoryContext, module->search_path);
		new_timezone = MemoryContextStrdup(TopMemoryContext,
										   module->timezone ? module->timezone : "");
		CommitTransactionCommand();
		SetConfigOption("search_path", new_path, PGC_USERSET, PGC_S_SESSION);
		SetConfigOption("timezone", new_timezone[0] ? new_timezone :
						GetConfigOptionResetString("timezone"), PGC_USERSET, PGC_S_SESSION);
		if (search_path != NULL)
		{
			pfree(search_path);
			pfree(timezone);
		}
		search_path = new_path;
		timezone = new_timezone;
		settings_of = module_id;
	}
	else
		CommitTransactionCommand();
}

/*
 * Does the worker know the module's settings already?  Then it saves a
 * transaction.  Any invalidation of modules makes it look again.
 */
void
dgen_worker_prepare_session(int32 module_id)
{
	static uint64 last_version = 0;
	uint64		version;

	AcceptInvalidationMessages();
	version = dgen_module_version();
	if (module_id == prepared_for && version == last_version)
		return;
	use_settings(module_id);
	prepared_for = module_id;
	last_version = dgen_module_version();
}

/* ALTER ROLE and ALTER DATABASE settings apply, except for what would break a worker. */
static void
force_settings(void)
{
	force_setting("role", "none");
	force_setting("default_transaction_read_only", "off");
	force_setting("statement_timeout", "0");
	force_setting("idle_in_transaction_session_timeout", "0");
#if PG_VERSION_NUM >= 170000
	force_setting("transaction_timeout", "0");
#endif
	force_setting("dgen.inline", "off");
	force_setting("dgen.context", "");
	force_setting("application_name", "dgen worker");
}

/* of places for what is slow: this worker has just had one; it leaves them to others until then */
static bool had_slow = false;
static TimestampTz yield_until = 0;

/* where its place is counted: the extension may go, and the entry with it, before the worker does */
static DgenDatabase *slow_at = NULL;

static bool
yields(void)
{
	if (yield_until != 0 && GetCurrentTimestamp() >= yield_until)
		yield_until = 0;
	return yield_until != 0;
}

/*
 * A worker that takes its place anew after each batch is always quicker than
 * one that looks for a place now and then.  So a pool that has none says so,
 * and the next worker whose batch ends stands back for two looks.
 */
static bool
gives_way(DgenDatabase *db)
{
	uint32		starved = pg_atomic_read_u32(&db->slow_starved);

	if (yields())
		return true;
	if (!had_slow || starved == 0 || starved == (uint32) my_pool + 1 ||
		!pg_atomic_compare_exchange_u32(&db->slow_starved, &starved, 0))
		return false;
	had_slow = false;
	yield_until = GetCurrentTimestamp() + 2 * SLOW_POLL_USECS;
	return true;
}

/* Nobody of this worker's pool has a place: have the next one that gets free. */
static void
ask_for_place(DgenDatabase *db)
{
	uint32		nobody = 0;

	if (db == NULL || yields())
		return;
	for (int i = 0; i < dgen_shared->nslots; i++)
	{
		DgenWorkerSlot *slot = &dgen_shared->slots[i];

		/* a look without the lock: at worst one stands back in vain */
		if (slot->slow && slot->database == MyDatabaseId && slot->pool == my_pool)
			return;
	}
	(void) pg_atomic_compare_exchange_u32(&db->slow_starved, &nobody, (uint32) my_pool + 1);
}

/*
 * May this worker take modules whose activations are slow?  Not if it is the
 * last one of the database that does not: a quick module's calls must find a
 * worker within a batch's budget.  The place is reserved before anything is
 * taken, as workers often become free together.
 */
static bool
reserve_slow(void)
{
	DgenDatabase *db = dgen_database(MyDatabaseId, false);

	if (my_kind == DGEN_POOL_LONG || dgen_max_workers <= 1 || db == NULL)
		return true;
	if (gives_way(db))
		return false;
	if (pg_atomic_fetch_add_u32(&db->slow_workers, 1) >= (uint32) dgen_max_workers - 1)
	{
		pg_atomic_fetch_sub_u32(&db->slow_workers, 1);
		return false;
	}
	slow_at = db;
	dgen_my_slot->slow = true;
	return true;
}

static void
release_slow(void)
{
	if (!dgen_my_slot->slow)
		return;
	dgen_my_slot->slow = false;
	pg_atomic_fetch_sub_u32(&slow_at->slow_workers, 1);
}

/* Is there a place for one more slow one? */
static bool
may_be_slow(void)
{
	DgenDatabase *db = dgen_database(MyDatabaseId, false);

	return my_kind == DGEN_POOL_LONG || dgen_max_workers <= 1 || db == NULL ||
		(!yields() && pg_atomic_read_u32(&db->slow_workers) < (uint32) dgen_max_workers - 1);
}

/* Has the worker to make way for a command on its database? */
static bool
sent_away(void)
{
	DgenDatabase *db = dgen_database(MyDatabaseId, false);

	return db != NULL && db->kept_out > 0;
}

/*
 * The last thing that the process does in shared memory: its transaction has
 * been rolled back, its leases are free.
 */
static void
leave(int code, Datum arg)
{
	if (dgen_my_slot == NULL)
		return;
	if (gave_up)
		ereport(LOG,
				(errmsg("dgen worker was ended because a handler of server \"%s\" trapped its cancellation again and again",
						dgen_my_slot->server),
				 errhint("Do not catch query_canceled, nor run a loop in a block that does.")));
	dgen_batch_at_exit(sent_away());
	dgen_locked_at_exit(sent_away());
	release_slow();
	dgen_slot_release(DatumGetInt32(arg), my_generation);
}

/* ---------------------------------------------------------------- the loop */

/* Serve one batch; false if there was nothing to do. */
static bool
serve(void)
{
	static DgenTaken taken[DGEN_MAX_BATCH];
	int32		module_id;
	int			n;

	n = dgen_ready_take(my_pool, reserve_slow(), dgen_batch_wanted(), taken, &module_id);
	if (n == 0 || !dgen_pace_is_slow(MyDatabaseId, module_id))
		release_slow();
	if (n == 0)
		return false;
	dgen_my_slot->busy_since = GetCurrentTimestamp();
	dgen_my_slot->state = DGEN_WORKER_BUSY;
	if (module_id > 0)
		dgen_batch_serve(my_pool, taken, n, module_id);
	else
		dgen_locked_serve(my_pool, &taken[0], -module_id);
	clean_session();
	dgen_cache_trim();
	had_slow = dgen_my_slot->slow;
	/* at most once a second, or autovacuum would never hear of a busy worker */
	pgstat_report_stat(false);
	release_slow();
	return true;
}

static void
become_idle(void)
{
	dgen_my_slot->state = DGEN_WORKER_IDLE;
	dgen_my_slot->busy_since = 0;
	dgen_my_slot->server[0] = '\0';
	pgstat_report_stat(true);
	pgstat_report_activity(STATE_IDLE, NULL);
}

/* Not if somebody has just woken this worker, and relies on it. */
static bool
may_leave(void)
{
	uint32		idle = 1;

	return pg_atomic_compare_exchange_u32(&dgen_my_slot->idle, &idle, 0);
}

/*
 * Sleep until rung, or a parked server is due; returns false when it is time
 * to leave.
 */
static bool
wait_for_work(TimestampTz idle_since)
{
	TimestampTz now = GetCurrentTimestamp();
	TimestampTz due;
	TimestampTz leave_at = idle_since + dgen_worker_idle_timeout * INT64CONST(1000);
	DgenPool   *pool = &dgen_shared->pools[my_pool];
	DgenDatabase *db = dgen_database(MyDatabaseId, false);

	/* look once more after saying that we sleep: a ring between is not lost */
	ResetLatch(MyLatch);
	pg_atomic_write_u32(&dgen_my_slot->idle, 1);
	pg_memory_barrier();
	due = dgen_ready_unpark(my_pool, now);
	if (pool->nready > 0 && may_be_slow())
	{
		pg_atomic_write_u32(&dgen_my_slot->idle, 0);
		return true;
	}
	if (pool->nready > 0)
		ask_for_place(db);
	/* what is parked for long is the launcher's to look after, if another wants the place */
	if (pool->nready == 0 && pool->parked == DGEN_NONE && now >= leave_at)
		return !may_leave();
	if (pool->nready == 0 && (pool->parked == DGEN_NONE || due > now + PARKED_LONG_USECS) &&
		db != NULL && pg_atomic_read_u32(&db->place_wanted[my_kind]))
		return !may_leave();
	(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
					 Max(1, TimestampDifferenceMilliseconds(now,
															pool->nready > 0 ? now + SLOW_POLL_USECS :
															Min(due, Max(leave_at, now + 1000)))),
					 idle_wait_event);
	pg_atomic_write_u32(&dgen_my_slot->idle, 0);
	return true;
}

/* Has another owner waited while this one had its turn? */
static bool
quantum_over(TimestampTz since)
{
	DgenDatabase *db = dgen_database(MyDatabaseId, false);

	return db != NULL && pg_atomic_read_u32(&db->place_wanted[my_kind]) &&
		GetCurrentTimestamp() - since > QUANTUM_USECS;
}

static void
worker_loop(void)
{
	TimestampTz started = GetCurrentTimestamp();
	TimestampTz idle_since = started;

	for (;;)
	{
		/* a cancel that came between activations has nothing to cancel */
		QueryCancelPending = false;
		CHECK_FOR_INTERRUPTS();
		if (ConfigReloadPending)
		{
			ConfigReloadPending = false;
			ProcessConfigFile(PGC_SIGHUP);
		}
		/* what was put off has its turn although there is other work */
		(void) dgen_ready_unpark(my_pool, GetCurrentTimestamp());
		if (serve())
		{
			if (memory_ran_out || quantum_over(started))
				return;
			idle_since = 0;
			continue;
		}
		if (idle_since == 0)
			idle_since = GetCurrentTimestamp();
		if (dgen_my_slot->state != DGEN_WORKER_IDLE)
			become_idle();
		AcceptInvalidationMessages();
		if (!wait_for_work(idle_since))
			return;
	}
}

void
dgen_worker_main(Datum main_arg)
{
	DgenWorkerSlot *slot = &dgen_shared->slots[DatumGetInt32(main_arg)];
	uint32		flags = 0;

	pqsignal(SIGTERM, die);
	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	memcpy(&my_generation, MyBgworkerEntry->bgw_extra, sizeof(my_generation));
	before_shmem_exit(leave, main_arg);
	if (!dgen_slot_attach(main_arg))
		proc_exit(0);
	my_pool = dgen_my_slot->pool;
	my_kind = dgen_shared->pools[my_pool].kind;
	pqsignal(SIGINT, on_sigint);
	pqsignal(SIGUSR2, on_sigusr2);
	BackgroundWorkerUnblockSignals();

#if PG_VERSION_NUM >= 170000
	/* owners of modules need not be able to log in */
	flags |= BGWORKER_BYPASS_ROLELOGINCHECK;
#endif
	BackgroundWorkerInitializeConnectionByOid(slot->database, slot->owner, flags);
	force_settings();
	my_timeout = RegisterTimeout(USER_TIMEOUT, on_timeout);
	idle_wait_event = WaitEventExtensionNew("DgenWorkerMain");

	StartTransactionCommand();
	if (!dgen_extension_present() || dgen_version_fault(NULL) != NULL)
		proc_exit(0);
	CommitTransactionCommand();

	dgen_my_slot->state = DGEN_WORKER_IDLE;
	dgen_shared->pools[my_pool].start_failures = 0;
	MemoryContextSwitchTo(AllocSetContextCreate(TopMemoryContext, "dgen worker",
												ALLOCSET_DEFAULT_SIZES));
	worker_loop();
	proc_exit(0);
}
