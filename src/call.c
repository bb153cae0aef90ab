/*-------------------------------------------------------------------------
 *
 * call.c
 *	  dgen.call() and dgen.multi_call(): the caller's side.
 *
 * A call is a chunk in the dsa area with two references, the caller's and the
 * queue's (then the worker's); who lets go last frees it.  It runs and commits
 * in a worker, whatever becomes of the caller's transaction.
 *
 *	  QUEUED --worker begins--> RUNNING --commit--> DONE
 *	    |  ^                      |  |
 *	    |  +--- batch aborted ----+  +--noreply, commit--> DEFERRED --> DONE
 *	    +--caller gives up--> ABANDONED
 *
 * A call that is postponed, or waits for work under a lock, goes from RUNNING
 * to POSTPONED at the commit, and a message stands for it; whoever handles
 * that takes it back to RUNNING, and its caller may give it up in between.
 *
 * QUEUED is left by compare-and-swap, by the worker to RUNNING or by the caller
 * to ABANDONED, so a caller that got ABANDONED knows: it did not happen.  A
 * call that runs is cancelled by name: the caller writes its id into the
 * worker's slot and sends SIGUSR2, which the worker honours only while it runs
 * that very call.
 *
 * The caller sleeps on its latch.  After deadlock_timeout it sleeps on the
 * worker's transaction (or, while nobody has the call, on the server's lease)
 * instead, so that PostgreSQL's detector sees cycles through workers.
 *
 * No locks are held while waiting.  Every exit, FATAL too, passes through the
 * abort callback, which gives up what is outstanding.
 *
 *-------------------------------------------------------------------------
 */
#include "dgen.h"

#include <signal.h>

#include "access/parallel.h"
#include "catalog/pg_type.h"
#include "funcapi.h"
#include "storage/ipc.h"
#include "storage/proc.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/resowner.h"
#include "utils/timeout.h"
#include "utils/wait_event.h"

#define CANCEL_GRACE_MS 50
#define CONNECTION_CHECK_MS 1000
#define DEADLOCK_CHECK_MS 20
#define STARVED_MS 2000			/* no place for a worker for so long is not to change soon */
#define DEFAULT_TIMEOUT_USECS INT64CONST(5000000)

/* one outstanding call of this backend */
typedef struct Outstanding
{
	DgenCall   *call;
	dsa_pointer self;
	bool		finish_late;	/* late_calls => 'finish' */
	char	   *server;
} Outstanding;

static List *outstanding = NIL; /* in TopMemoryContext, entries too */
static uint32 wait_event_info = 0;

/* ---------------------------------------------------------------- the chunk */

/*
 * The worker begins a call; false if its caller has given it up.  No other
 * process begins it.
 */
bool
dgen_call_begin(DgenCall *call)
{
	uint32		expected = DGEN_CALL_QUEUED;

	return pg_atomic_compare_exchange_u32(&call->state, &expected, DGEN_CALL_RUNNING);
}

/* Let go of one reference; the last one frees.  May be called by any holder. */
void
dgen_call_unref(DgenCall *call, dsa_pointer self)
{
	if (pg_atomic_sub_fetch_u32(&call->refs, 1) > 0)
		return;
	if (call->reply != InvalidDsaPointer)
		dsa_free(dgen_dsa(), call->reply);
	dsa_free(dgen_dsa(), self);
}

/*
 * Store what the call came to, for dgen_call_finish() to show.  May be
 * repeated when an activation is.  May raise an error when memory is short.
 */
void
dgen_call_put_reply(DgenCall *call, DgenCallResult result, const void *bytes, Size size)
{
	char	   *to;

	if (call->reply != InvalidDsaPointer)
	{
		dsa_free(dgen_dsa(), call->reply);
		call->reply = InvalidDsaPointer;
	}
	if (size <= DGEN_CALL_INLINE_REPLY)
		to = call->data + call->inline_off;
	else
	{
		call->reply = dsa_allocate_extended(dgen_dsa(), size, DSA_ALLOC_HUGE);
		to = dsa_get_address(dgen_dsa(), call->reply);
	}
	if (size > 0)
		memcpy(to, bytes, size);
	call->reply_size = size;
	call->result = result;
}

void
dgen_call_put_error(DgenCall *call, const DgenError *err)
{
	Size		size = dgen_error_size(err);
	char	   *packed = palloc(size);

	dgen_error_pack(err, packed);
	dgen_call_put_reply(call, DGEN_CALL_ERROR, packed, size);
	pfree(packed);
}

/* Show the caller what was stored.  Raises nothing: for commit callbacks. */
void
dgen_call_finish(DgenCall *call)
{
	int			procno = call->caller_pgprocno;

	pg_write_barrier();
	pg_atomic_write_u32(&call->state, DGEN_CALL_DONE);
	SetLatch(&ProcGlobal->allProcs[procno].procLatch);
}

static int
append(DgenCall *call, int *off, const void *bytes, Size size, bool align)
{
	int			at = align ? MAXALIGN(*off) : *off;

	if (call != NULL)
		memcpy(call->data + at, bytes, size);
	*off = at + size;
	return at;
}

/* Lay out the variable part; with call NULL only its size is computed. */
static Size
lay_out(DgenCall *call, const DgenAddress *to, const char *role, const char *key,
		Jsonb *context, Jsonb *request)
{
	DgenCall	dummy;
	DgenCall   *c = call ? call : &dummy;
	const char *sender = dgen_scope ? dgen_scope->server : dgen_session_id();
	int			off = 0;

	append(call, &off, to->text, to->len + 1, false);
	c->role_off = append(call, &off, role, strlen(role) + 1, false);
	c->sender_off = append(call, &off, sender, strlen(sender) + 1, false);
	c->key_off = key ? append(call, &off, key, strlen(key) + 1, false) : 0;
	c->context_off = context ? append(call, &off, context, VARSIZE(context), true) : 0;
	c->request_off = append(call, &off, request, VARSIZE(request), true);
	/* the data begins at an offset that need not be aligned: chunks are */
	c->inline_off = MAXALIGN(off);
	return c->inline_off + DGEN_CALL_INLINE_REPLY;
}

/* ---------------------------------------------------------------- giving up */

static Outstanding *
track(DgenCall *call, dsa_pointer self, DgenModule *module, const DgenAddress *to)
{
	MemoryContext old = MemoryContextSwitchTo(TopMemoryContext);
	Outstanding *o = palloc(sizeof(Outstanding));

	o->call = call;
	o->self = self;
	o->finish_late = module->finish_late_calls;
	o->server = pstrdup(to->text);
	outstanding = lappend(outstanding, o);
	MemoryContextSwitchTo(old);
	return o;
}

static void
untrack(Outstanding *o)
{
	uint32		state;

	outstanding = list_delete_ptr(outstanding, o);

	/*
	 * Its handler may be about to commit noreply, or to postpone it: either we see that it has,
	 * or that commit sees that we are gone.
	 */
	pg_atomic_write_u32(&o->call->caller_gone, 1);
	pg_memory_barrier();
	state = pg_atomic_read_u32(&o->call->state);
	if (state == DGEN_CALL_DEFERRED || state == DGEN_CALL_POSTPONED)
		dgen_deferred_forget(o->call->id);
	dgen_call_unref(o->call, o->self);
	pfree(o->server);
	pfree(o);
}

/* Take back a call that nobody has begun, or that was postponed. */
static bool
withdraw(Outstanding *o)
{
	uint32		queued = DGEN_CALL_QUEUED;
	uint32		postponed = DGEN_CALL_POSTPONED;

	if (o->finish_late)
		return false;
	if (pg_atomic_compare_exchange_u32(&o->call->state, &postponed, DGEN_CALL_ABANDONED))
	{
		/* its message is dropped by the worker that meets it */
		dgen_deferred_forget(o->call->id);
		return true;
	}
	if (!pg_atomic_compare_exchange_u32(&o->call->state, &queued, DGEN_CALL_ABANDONED))
		return false;
	/* if a worker has it already, that worker drops the reference */
	if (dgen_ready_withdraw(o->call, o->self))
		dgen_call_unref(o->call, o->self);
	return true;
}

/* Ask the worker that runs it to cancel this call, and no other. */
static void
cancel_running(Outstanding *o)
{
	uint32		slotno = pg_atomic_read_u32(&o->call->worker_slot);
	DgenWorkerSlot *slot;

	if (o->finish_late || slotno == DGEN_NO_SLOT)
		return;
	slot = &dgen_shared->slots[slotno];
	pg_atomic_write_u64(&slot->cancel_call, o->call->id);
	pg_memory_barrier();
	if (slot->pid != 0)
		kill(slot->pid, SIGUSR2);
}

/* Nobody waits for it any more, whatever becomes of it. */
static void
drop(Outstanding *o)
{
	if (!withdraw(o))
		cancel_running(o);
	untrack(o);
}

/*
 * At the abort of a transaction or subtransaction: nobody waits any more for
 * what is outstanding, since a call never outlives the statement that made it.
 */
void
dgen_call_at_abort(void)
{
	while (outstanding != NIL)
		drop(linitial(outstanding));
}

/* ---------------------------------------------------------------- issuing */

/*
 * Deadline of a call: its timeout, or just before the statement's own, or when
 * nobody waits any more for the handler that makes it.
 */
static TimestampTz
call_deadline(int64 timeout_usecs)
{
	TimestampTz now = GetCurrentTimestamp();
	TimestampTz deadline = timeout_usecs == 0 ? DT_NOEND :
		dgen_time_after(now, timeout_usecs, "timeout");

	if (dgen_scope != NULL && dgen_scope->deadline != 0)
		deadline = Min(deadline, dgen_scope->deadline);
	if (get_timeout_active(STATEMENT_TIMEOUT))
		deadline = Min(deadline, get_timeout_finish_time(STATEMENT_TIMEOUT) - 50000);
#if PG_VERSION_NUM >= 170000
	if (get_timeout_active(TRANSACTION_TIMEOUT))
		deadline = Min(deadline, get_timeout_finish_time(TRANSACTION_TIMEOUT) - 50000);
#endif
	return deadline;
}

/*
 * A call does not see what this transaction has not committed, and does not
 * roll back with it.  Say so, once a transaction.
 */
static void
check_in_transaction(void)
{
	static LocalTransactionId warned = InvalidLocalTransactionId;
	bool		wrote = TransactionIdIsValid(GetTopTransactionIdIfAny());
	bool		repeatable = IsolationUsesXactSnapshot() && IsTransactionBlock();

	if (dgen_call_in_transaction == DGEN_IN_TRANSACTION_ALLOW || (!wrote && !repeatable))
		return;
	if (dgen_call_in_transaction == DGEN_IN_TRANSACTION_WARN && warned == MyLxid)
		return;
	warned = MyLxid;
	ereport(dgen_call_in_transaction == DGEN_IN_TRANSACTION_ERROR ? ERROR : WARNING,
			(errcode(ERRCODE_ACTIVE_SQL_TRANSACTION),
			 wrote ?
			 errmsg("dgen.call() in a transaction that has written commits on its own") :
			 errmsg("dgen.call() in a transaction with a repeatable snapshot commits on its own"),
			 wrote ?
			 errdetail("The handler does not see what this transaction wrote, and its effects stay if this transaction rolls back.") :
			 errdetail("This transaction will not see what the handler did."),
			 errhint("Use dgen.invoke() to run the handler in this transaction, or pass request_key so that a retry is harmless; SET dgen.call_in_transaction = allow silences this.")));
}

/* Work that is done for a server outside of its handlers calls others only. */
static void
check_not_self(const DgenAddress *to)
{
	for (DgenScope *scope = dgen_scope; scope != NULL; scope = scope->up)
	{
		if (strcmp(scope->server, to->text) == 0)
			ereport(ERROR,
					(errcode(ERRCODE_DGEN_CALL_CYCLE),
					 errmsg("server \"%s\" cannot be called from work of its own", to->text),
					 errhint("Use dgen.cast(), which is sent when this transaction commits.")));
	}
}

static void
check_may_wait(DgenModule *module, const DgenAddress *to)
{
	if (module->uncommitted)
		ereport(ERROR,
				(errcode(ERRCODE_DGEN_WOULD_OVERTAKE),
				 errmsg("module \"%s\" was made or changed by this transaction", module->name),
				 errdetail("Workers do not see that before it commits."),
				 errhint("COMMIT first.")));
	if (dgen_lease_held(to->hash))
		ereport(ERROR,
				(errcode(ERRCODE_DGEN_WOULD_OVERTAKE),
				 errmsg("call to server \"%s\" would wait for this transaction", to->text),
				 errdetail("This transaction has changed the server, and holds it until it ends."),
				 errhint("COMMIT first, or use dgen.invoke().")));
	if (dgen_mailbox_sent_uncommitted(to->hash))
		ereport(ERROR,
				(errcode(ERRCODE_DGEN_WOULD_OVERTAKE),
				 errmsg("call would overtake messages of this transaction to server \"%s\"", to->text),
				 errdetail("They are sent when this transaction commits."),
				 errhint("COMMIT before the call, or send a cast instead.")));
}

static Outstanding *
issue(DgenModule *module, const DgenAddress *to, Jsonb *request, TimestampTz deadline,
	  const char *request_key)
{
	char	   *role = GetUserNameFromId(GetUserId(), false);
	Jsonb	   *context = NULL;
	Size		size;
	dsa_pointer self;
	DgenCall   *call;
	Outstanding *o;

	if (dgen_scope != NULL)
		context = dgen_scope->context;
	else if (dgen_context != NULL && dgen_context[0] != '\0')
		context = DatumGetJsonbP(DirectFunctionCall1(jsonb_in, CStringGetDatum(dgen_context)));
	size = offsetof(DgenCall, data) + lay_out(NULL, to, role, request_key, context, request);
	self = dsa_allocate_extended(dgen_dsa(), size, DSA_ALLOC_HUGE | DSA_ALLOC_NO_OOM);
	if (self == InvalidDsaPointer)
		ereport(ERROR,
				(errcode(ERRCODE_OUT_OF_MEMORY),
				 errmsg("out of shared memory for calls"),
				 errdetail("The request needs %zu bytes.", size),
				 errhint("Raise dgen.shared_memory, or send smaller requests.")));
	call = dsa_get_address(dgen_dsa(), self);
	memset(call, 0, offsetof(DgenCall, data));
	pg_atomic_init_u32(&call->refs, 2);
	pg_atomic_init_u32(&call->state, DGEN_CALL_QUEUED);
	pg_atomic_init_u32(&call->caller_gone, 0);
	pg_atomic_init_u32(&call->worker_slot, DGEN_NO_SLOT);
	pg_atomic_init_u64(&call->worker_vxid, 0);
	call->id = pg_atomic_fetch_add_u64(&dgen_shared->next_call_id, 1);
	call->database = MyDatabaseId;
	call->module_id = module->id;
	call->hash = to->hash;
	call->place = dgen_call_place(&call->place_is_id);
	call->caller_pgprocno = MyProcIndex;
	call->issued_at = GetCurrentTimestamp();
	call->deadline = deadline;
	call->next = call->reply = InvalidDsaPointer;
	lay_out(call, to, role, request_key, context, request);

	o = track(call, self, module, to);
	if (!dgen_ready_add_call(DGEN_POOL_OWNER(module), DGEN_POOL_OF(module), call, self))
	{
		dgen_call_unref(call, self);
		untrack(o);
		ereport(ERROR,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("too many servers have work"),
				 errdetail("dgen.max_ready = %d places are taken, or servers of %d owners and external modules have work.",
						   dgen_max_ready, DGEN_MAX_POOLS),
				 errhint("Try again later, or raise dgen.max_ready.")));
	}
	return o;
}

/* ---------------------------------------------------------------- waiting */

/*
 * Sleep where the deadlock detector looks: on the transaction of the worker
 * that has the call, or on the lease of its server.  In a subtransaction, as
 * the wait ends by an error at the deadline.
 */
static void
wait_on_lock(Outstanding *o, int64 remaining_ms)
{
	uint64		vxid = pg_atomic_read_u64(&o->call->worker_vxid);
	MemoryContext old = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	volatile int save_timeout = LockTimeout;
	volatile int save_deadlock = DeadlockTimeout;
	volatile bool save_log = log_lock_waits;

	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(old);
	PG_TRY();
	{
		LockTimeout = (int) Max(1, Min(remaining_ms, CONNECTION_CHECK_MS));

		/*
		 * We have waited for deadlock_timeout already.  The detector has to
		 * look before lock_timeout, whose error would hide what it finds; and
		 * before the worker's own, or a deadlock with us would be a conflict
		 * that the worker tries again and again.
		 */
		DeadlockTimeout = Min(save_deadlock, DEADLOCK_CHECK_MS);
		/* it would tell each such look as a wait of its own, and be wrong of the time */
		log_lock_waits = false;
		if (vxid != 0)
		{
			VirtualTransactionId id;

			VXID_PROC(id) = (int) (vxid >> 32);
			id.localTransactionId = (LocalTransactionId) vxid;
			(void) VirtualXactLock(id, true);
		}
		else
			dgen_lease_wait(o->call->hash);
		LockTimeout = save_timeout;
		DeadlockTimeout = save_deadlock;
		log_lock_waits = save_log;
		ReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		List	   *save = outstanding;
		ErrorData  *edata;

		LockTimeout = save_timeout;
		DeadlockTimeout = save_deadlock;
		log_lock_waits = save_log;
		/* this abort gives nothing up: an error that goes on has one of its own */
		outstanding = NIL;
		edata = dgen_subxact_abort(old, owner);
		outstanding = save;
		if (edata->sqlerrcode != ERRCODE_LOCK_NOT_AVAILABLE)
			ReThrowError(edata);
		FreeErrorData(edata);
	}
	PG_END_TRY();
	MemoryContextSwitchTo(old);
	CurrentResourceOwner = owner;
}

static bool
is_done(Outstanding *o)
{
	return pg_atomic_read_u32(&o->call->state) == DGEN_CALL_DONE;
}

/* Sleep on the latch until the call is done or the time has passed. */
static void
sleep_until(Outstanding *o, TimestampTz until)
{
	if (wait_event_info == 0)
		wait_event_info = WaitEventExtensionNew("DgenCall");
	for (;;)
	{
		long		ms;

		ResetLatch(MyLatch);
		if (is_done(o) || QueryCancelPending || ProcDiePending)
			return;
		ms = TimestampDifferenceMilliseconds(GetCurrentTimestamp(), until);
		if (ms <= 0)
			return;
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 ms, wait_event_info);
		if (InterruptPending && !QueryCancelPending && !ProcDiePending)
			CHECK_FOR_INTERRUPTS();
	}
}

/*
 * The caller's time is up.  Returns true when the call is known not to have
 * happened; false when it is done after all, or nobody knows (then it is not
 * done).
 */
static bool
give_up(Outstanding *o)
{
	TimestampTz until = GetCurrentTimestamp() + CANCEL_GRACE_MS * INT64CONST(1000);

	for (;;)
	{
		if (withdraw(o))
			return true;
		if (is_done(o))
			return o->call->result == DGEN_CALL_CANCELLED;
		if (o->finish_late || GetCurrentTimestamp() >= until ||
			pg_atomic_read_u32(&o->call->state) == DGEN_CALL_DEFERRED)
			return false;
		cancel_running(o);
		HOLD_INTERRUPTS();
		ResetLatch(MyLatch);
		if (!is_done(o))
			(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, 5,
							 wait_event_info);
		RESUME_INTERRUPTS();
	}
}

static void
raise_unknown(Outstanding *o)
{
	char	   *server = pstrdup(o->server);
	bool		late = o->finish_late;
	bool		deferred = pg_atomic_read_u32(&o->call->state) == DGEN_CALL_DEFERRED;

	untrack(o);
	ereport(ERROR,
			(errcode(ERRCODE_DGEN_UNKNOWN_OUTCOME),
			 errmsg("outcome of the call to server \"%s\" is unknown", server),
			 deferred ? errdetail("The handler has run, and nobody has replied yet.") :
			 late ? errdetail("The module finishes calls whose callers have given up.") :
			 errdetail("The handler, or its commit, did not answer the cancel in time."),
			 errhint("Look at the server's state, or call with a request_key, and again with the same one.")));
}

/*
 * Is there nobody to run it, and nobody to be had?  The launcher has tried some
 * times by then: a place that is being given up is no reason to refuse a call.
 */
static bool
is_starved(Outstanding *o, TimestampTz now)
{
	DgenPool   *pool = &dgen_shared->pools[o->call->pool];
	TimestampTz refused_at = pool->refused_at;

	return refused_at != 0 && pool->nworkers == 0 &&
		TimestampDifferenceExceeds(refused_at, now, STARVED_MS);
}

/*
 * Was there no worker, and could none be had?  The caller has waited for so
 * many ms.  Read without the pool's lock: at worst the other error is raised.
 */
static void
raise_if_no_worker(int poolno, const char *server, int64 waited)
{
	DgenPool   *pool = &dgen_shared->pools[poolno];
	int			failures = pool->start_failures;

	if (dgen_database(MyDatabaseId, false) == NULL || pool->kind == DGEN_POOL_EXTERNAL)
		return;
	if (pool->refused_at != 0)
		ereport(ERROR,
				(errcode(ERRCODE_DGEN_NO_WORKER),
				 errmsg("no worker can be started for server \"%s\"", server),
				 errdetail("The call did not happen: no background worker was free for %lld ms.",
						   (long long) waited),
				 errhint("Raise max_worker_processes, and see dgen.workers.")));
	if (pool->nworkers > 0)
		return;
	if (dgen_shared->launcher_pid == 0)
		ereport(ERROR,
				(errcode(ERRCODE_DGEN_NO_WORKER),
				 errmsg("no worker can be started for server \"%s\"", server),
				 errdetail("The call did not happen: dgen's launcher does not run."),
				 errhint("See the server's log; if all of max_worker_processes were taken when the server was started, raise that, and restart it.")));
	if (failures > 0)
		ereport(ERROR,
				(errcode(ERRCODE_DGEN_NO_WORKER),
				 errmsg("no worker can be started for server \"%s\"", server),
				 errdetail("The call did not happen: workers of the module's owner end as they start, the last %d in a row.",
						   failures),
				 errhint("SELECT dgen.why(%s), or the server's log, tells why.",
						 quote_literal_cstr(server))));
}

/* The deadline has come before the reply. */
static void
raise_timeout(Outstanding *o)
{
	int64		waited = (GetCurrentTimestamp() - o->call->issued_at) / 1000;
	int			pool = o->call->pool;
	char	   *server = pstrdup(o->server);

	untrack(o);
	raise_if_no_worker(pool, server, waited);
	ereport(ERROR,
			(errcode(ERRCODE_DGEN_TIMEOUT),
			 errmsg("call to server \"%s\" timed out", server),
			 errdetail("It did not happen. The caller waited %lld ms.", (long long) waited),
			 errhint("SELECT dgen.why(%s) tells what it waits for; or pass a longer timeout.",
					 quote_literal_cstr(server))));
}

/*
 * Does somebody want dgen's tables for himself, and has sent the workers away
 * for that?  He waits for us, who hold locks on them.
 */
static bool
tables_wanted(void)
{
	DgenDatabase *db = dgen_database(MyDatabaseId, false);

	return db != NULL && db->tables_wanted > 0;
}

static void
raise_sent_away(Outstanding *o)
{
	char	   *server = pstrdup(o->server);

	untrack(o);
	ereport(ERROR,
			(errcode(ERRCODE_DGEN_NO_WORKER),
			 errmsg("no worker can be started for server \"%s\"", server),
			 errdetail("The call did not happen: the extension is being dropped or updated."),
			 errhint("Try again when that has ended.")));
}

/* Take the reply, or raise the error; lets go of the call in any case. */
static Jsonb *
take_result(Outstanding *o)
{
	DgenCall   *call = o->call;
	char	   *bytes;
	char	   *copy;

	pg_read_barrier();
	if (call->result == DGEN_CALL_UNKNOWN)
		raise_unknown(o);
	if (call->result == DGEN_CALL_CANCELLED)
		raise_timeout(o);
	bytes = call->reply != InvalidDsaPointer ? dsa_get_address(dgen_dsa(), call->reply) :
		call->data + call->inline_off;
	copy = palloc(Max(call->reply_size, 1));
	memcpy(copy, bytes, call->reply_size);
	if (call->result == DGEN_CALL_ERROR)
	{
		DgenError  *err = dgen_error_unpack(copy);

		untrack(o);
		dgen_error_throw(err);
	}
	untrack(o);
	return (Jsonb *) copy;
}

/* The client has cancelled, or the backend is to die. */
static void
interrupted(Outstanding *o)
{
	char	   *server = pstrdup(o->server);
	bool		certain = give_up(o);

	if (!certain && is_done(o))
		return;					/* too late to cancel */
	untrack(o);
	if (!certain && !ProcDiePending)
	{
		QueryCancelPending = false;
		ereport(ERROR,
				(errcode(ERRCODE_DGEN_UNKNOWN_OUTCOME),
				 errmsg("outcome of the call to server \"%s\" is unknown", server),
				 errdetail("The caller was cancelled while the handler ran, and the handler did not answer in time."),
				 errhint("Look at the server's state, or call with a request_key, and again with the same one.")));
	}
	CHECK_FOR_INTERRUPTS();
	/* the cancel was for something else, and has been swallowed */
	ereport(ERROR,
			(errcode(ERRCODE_QUERY_CANCELED),
			 errmsg("call to server \"%s\" was cancelled", server),
			 errdetail("It did not happen.")));
}

/*
 * Wait for one call and return its reply; raises the handler's error, OT001,
 * OT002 or OT015.
 */
static Jsonb *
await(Outstanding *o)
{
	TimestampTz deadline = o->call->deadline;
	TimestampTz lock_after = o->call->issued_at + DeadlockTimeout * INT64CONST(1000);
	TimestampTz starve_after = o->call->issued_at + INT64CONST(1000000);

	while (!is_done(o))
	{
		TimestampTz now = GetCurrentTimestamp();

		if (QueryCancelPending || ProcDiePending)
		{
			interrupted(o);
			continue;
		}
		if (now >= deadline)
		{
			if (give_up(o))
				raise_timeout(o);
			if (!is_done(o))
				raise_unknown(o);
			break;
		}
		if (tables_wanted() && withdraw(o))
			raise_sent_away(o);
		if (now >= starve_after && is_starved(o, now) && withdraw(o))
			raise_timeout(o);
		if (now < lock_after)
			sleep_until(o, Min(deadline, lock_after));
		else
		{
			int64		ms = deadline == DT_NOEND ? CONNECTION_CHECK_MS :
				TimestampDifferenceMilliseconds(now, deadline);

			wait_on_lock(o, ms);
			sleep_until(o, Min(deadline, GetCurrentTimestamp() + 100000));
			if (MyProcPort != NULL && !pq_check_connection())
			{
				ClientConnectionLost = true;
				ProcDiePending = InterruptPending = true;
			}
		}
	}
	return take_result(o);
}

/* ---------------------------------------------------------------- SQL */

/*
 * Check a call, and issue it; NULL if it was answered in this transaction
 * (inside a handler, or with dgen.inline), with *reply set.
 */
static Outstanding *
start_call(const DgenAddress *to, Jsonb *request, int64 timeout, const char *request_key,
		   Jsonb **reply)
{
	DgenModule *module = dgen_module_get(to->module, false);

	if ((dgen_scope != NULL && !dgen_scope->autonomous) || dgen_inline)
	{
		*reply = dgen_invoke_call(to, request, dgen_inline);
		return NULL;
	}
	if (dgen_scope != NULL)
		check_not_self(to);
	dgen_module_check_send(module, DGEN_HANDLE_CALL);
	check_may_wait(module, to);
	dgen_check_message(module, to, "call", request);
	/* an effect is not undone together with anything */
	if (dgen_scope == NULL)
		check_in_transaction();
	return issue(module, to, request, call_deadline(timeout), request_key);
}

PG_FUNCTION_INFO_V1(dgen_call);

/* call(server text, request jsonb, timeout interval, request_key text) -> jsonb */
Datum
dgen_call(PG_FUNCTION_ARGS)
{
	DgenAddress to;
	Jsonb	   *request = dgen_arg_jsonb(fcinfo, 1);
	int64		timeout = DEFAULT_TIMEOUT_USECS;
	Jsonb	   *reply = NULL;
	Outstanding *o;

	dgen_address_arg(fcinfo, 0, &to);
	dgen_arg_interval(fcinfo, 2, "timeout", true, &timeout);
	dgen_check_writable();
	dgen_check_enabled();
	o = start_call(&to, request, timeout, dgen_arg_text(fcinfo, 3), &reply);
	PG_RETURN_JSONB_P(o != NULL ? await(o) : reply);
}

/* one server of a multi_call */
typedef struct OneCall
{
	DgenAddress to;
	Outstanding *call;			/* NULL: answered, or failed */
	Jsonb	   *reply;
	DgenError  *error;
} OneCall;

/* Issue it, or, once issued, wait for it. */
static void
step_call(OneCall *one, Jsonb *request, int64 timeout)
{
	if (one->call != NULL)
		one->reply = await(one->call);
	else
		one->call = start_call(&one->to, request, timeout, NULL, &one->reply);
}

/*
 * Do one step of one of many calls in a subtransaction, so that its error is a
 * value.  A cancel and a deadlock are everybody's.
 */
static void
step_in_subtransaction(OneCall *one, Jsonb *request, int64 timeout)
{
	MemoryContext old = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;

	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(old);
	PG_TRY();
	{
		step_call(one, request, timeout);
		ReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		int			code = geterrcode();
		bool		everybodys = code == ERRCODE_QUERY_CANCELED ||
			code == ERRCODE_T_R_DEADLOCK_DETECTED;
		List	   *save = outstanding;
		ErrorData  *edata;

		/* the others are still waited for */
		if (!everybodys)
			outstanding = NIL;
		edata = dgen_subxact_abort(old, owner);
		if (everybodys)
			ReThrowError(edata);
		outstanding = save;
		if (list_member_ptr(outstanding, one->call))
			drop(one->call);
		one->call = NULL;
		one->error = dgen_error_copy(edata);
	}
	PG_END_TRY();
	MemoryContextSwitchTo(old);
	CurrentResourceOwner = owner;
}

PG_FUNCTION_INFO_V1(dgen_multi_call);

/*
 * multi_call(servers text[], request jsonb, timeout interval)
 * -> setof (server text, reply jsonb, error jsonb): all at once, one deadline.
 */
Datum
dgen_multi_call(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	Jsonb	   *request = dgen_arg_jsonb(fcinfo, 1);
	int64		timeout = DEFAULT_TIMEOUT_USECS;
	Datum	   *servers;
	bool	   *nulls;
	int			n;
	OneCall    *calls;

	InitMaterializedSRF(fcinfo, 0);
	if (PG_ARGISNULL(0))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("list of servers must not be null")));
	dgen_arg_interval(fcinfo, 2, "timeout", true, &timeout);
	dgen_check_writable();
	dgen_check_enabled();
	deconstruct_array(PG_GETARG_ARRAYTYPE_P(0), TEXTOID, -1, false, TYPALIGN_INT,
					  &servers, &nulls, &n);
	calls = palloc0(Max(n, 1) * sizeof(OneCall));
	for (int i = 0; i < n; i++)
	{
		if (nulls[i])
			ereport(ERROR,
					(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
					 errmsg("address of a server must not be null")));
		dgen_address_parse(VARDATA_ANY(DatumGetPointer(servers[i])),
						   VARSIZE_ANY_EXHDR(DatumGetPointer(servers[i])), &calls[i].to);
	}
	for (int i = 0; i < n; i++)
		step_in_subtransaction(&calls[i], request, timeout);
	for (int i = 0; i < n; i++)
	{
		OneCall    *one = &calls[i];
		Datum		row[3];
		bool		row_nulls[3] = {false};

		if (one->call != NULL)
			step_in_subtransaction(one, request, timeout);
		row[0] = servers[i];
		row[1] = PointerGetDatum(one->reply);
		row_nulls[1] = one->error != NULL;
		row[2] = one->error ? PointerGetDatum(dgen_error_to_jsonb(one->error)) : (Datum) 0;
		row_nulls[2] = one->error == NULL;
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, row, row_nulls);
	}
	return (Datum) 0;
}
