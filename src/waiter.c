/*-------------------------------------------------------------------------
 *
 * waiter.c
 *	  Who waits for which reply, or for which server's next state.
 *
 * A fixed table in shared memory.  A waiter enters what it waits for, and only
 * then looks at the tables; who writes a reply or a state looks here after its
 * transaction has become visible.  So either the waiter sees the row, or the
 * writer sees the waiter.  What nobody announces (a prepared transaction's
 * commit, a row that is removed, a table that is full) is found by the
 * waiter's own looking again.
 *
 * One LWLock, held for no more than a pass over the table, under which no
 * other is taken.  Waking raises nothing: it is for commit callbacks.
 *
 *-------------------------------------------------------------------------
 */
#include "dgen.h"

#include "storage/ipc.h"
#include "storage/proc.h"

#define NWAITERS 512
#define MAX_MINE 16				/* places of one process; DGEN_WAIT_ANY needs but one */
#define MAX_NOTICES 256

typedef struct Waiter
{
	Oid			database;		/* InvalidOid: free */
	DgenWaitKind kind;
	int			pgprocno;
	int64		key;			/* or DGEN_WAIT_ANY */
} Waiter;

typedef struct WaiterShared
{
	pg_atomic_uint32 nwaiters;	/* places taken; changes under the lock */
	LWLock		lock;			/* protects what follows */
	Waiter		waiters[NWAITERS];
} WaiterShared;

/* what this transaction has to announce when it commits */
typedef struct Notice
{
	DgenWaitKind kind;
	int64		key;
} Notice;

static WaiterShared *shared = NULL;

/* places of this process */
static int	mine[MAX_MINE];
static int	nmine = 0;

static Notice notices[MAX_NOTICES];
static int	nnotices = 0;
static bool notify_all = false; /* there were more than fit */

Size
dgen_waiter_size(void)
{
	return sizeof(WaiterShared);
}

void
dgen_waiter_init(void *place, bool found)
{
	shared = place;
	if (found)
		return;
	memset(shared, 0, sizeof(WaiterShared));
	pg_atomic_init_u32(&shared->nwaiters, 0);
	LWLockInitialize(&shared->lock, dgen_shared->tranche);
}

/* ---------------------------------------------------------------- waiting */

static void
leave_at_exit(int code, Datum arg)
{
	dgen_waiter_remove();
}

/*
 * Have this process' latch set when the reply or state is committed.  To be
 * called before looking whether it is there.  False if there is no place:
 * then nobody will wake us.
 */
bool
dgen_waiter_add(DgenWaitKind kind, int64 key)
{
	static bool exit_registered = false;
	int			place = 0;

	if (shared == NULL || nmine == MAX_MINE)
		return false;
	if (!exit_registered)
	{
		before_shmem_exit(leave_at_exit, (Datum) 0);
		exit_registered = true;
	}

	LWLockAcquire(&shared->lock, LW_EXCLUSIVE);
	while (place < NWAITERS && OidIsValid(shared->waiters[place].database))
		place++;
	if (place < NWAITERS)
	{
		Waiter	   *w = &shared->waiters[place];

		w->database = MyDatabaseId;
		w->kind = kind;
		w->key = key;
		w->pgprocno = MyProcIndex;
		pg_atomic_fetch_add_u32(&shared->nwaiters, 1);
		mine[nmine++] = place;
	}
	LWLockRelease(&shared->lock);

	/* what we look at from here on is read after we can be seen */
	pg_memory_barrier();
	return place < NWAITERS;
}

/* This process waits for nothing any more.  Raises nothing. */
void
dgen_waiter_remove(void)
{
	if (nmine == 0)
		return;
	LWLockAcquire(&shared->lock, LW_EXCLUSIVE);
	while (nmine > 0)
	{
		shared->waiters[mine[--nmine]].database = InvalidOid;
		pg_atomic_fetch_sub_u32(&shared->nwaiters, 1);
	}
	LWLockRelease(&shared->lock);
}

/*
 * At the abort of a transaction or subtransaction: a wait never outlives the
 * function that began it, and never has one below it that goes on.
 */
void
dgen_waiter_at_abort(void)
{
	dgen_waiter_remove();
}

/* ---------------------------------------------------------------- waking */

/* Does anybody wait?  To be asked once the news is visible. */
bool
dgen_waiters_any(void)
{
	if (shared == NULL)
		return false;
	/* pairs with the barrier in dgen_waiter_add() */
	pg_memory_barrier();
	return pg_atomic_read_u32(&shared->nwaiters) > 0;
}

static bool
is_awaited(const Waiter *w, const Notice *list, int n)
{
	for (int i = 0; i < n; i++)
	{
		if (w->kind == list[i].kind && (w->key == list[i].key || w->key == DGEN_WAIT_ANY))
			return true;
	}
	return false;
}

/* Wake those in this database who wait for one of the notices; all: everybody. */
static void
wake(const Notice *list, int n, bool all)
{
	int			left;

	if (!dgen_waiters_any())
		return;
	LWLockAcquire(&shared->lock, LW_SHARED);
	left = pg_atomic_read_u32(&shared->nwaiters);
	for (int i = 0; i < NWAITERS && left > 0; i++)
	{
		Waiter	   *w = &shared->waiters[i];

		if (!OidIsValid(w->database))
			continue;
		left--;
		if (w->database == MyDatabaseId && (all || is_awaited(w, list, n)))
			SetLatch(&ProcGlobal->allProcs[w->pgprocno].procLatch);
	}
	LWLockRelease(&shared->lock);
}

void
dgen_waiter_wake(DgenWaitKind kind, int64 key)
{
	Notice		notice = {kind, key};

	wake(&notice, 1, false);
}

/*
 * Wake who waits for this when the transaction commits.  Remembered even while
 * nobody waits: who comes before the commit is visible must be woken by it.
 * A subtransaction that aborts leaves its notices: to be woken for nothing
 * does no harm.
 */
void
dgen_notify_at_commit(DgenWaitKind kind, int64 key)
{
	if (nnotices > 0 && notices[nnotices - 1].kind == kind && notices[nnotices - 1].key == key)
		return;
	if (nnotices == MAX_NOTICES)
	{
		notify_all = true;
		return;
	}
	notices[nnotices].kind = kind;
	notices[nnotices].key = key;
	nnotices++;
}

/*
 * At the end of a transaction; raises nothing.  The commit of a prepared one
 * is not announced.
 */
void
dgen_waiter_xact_callback(XactEvent event)
{
	if (event != XACT_EVENT_COMMIT && event != XACT_EVENT_ABORT && event != XACT_EVENT_PREPARE)
		return;
	if (event != XACT_EVENT_COMMIT)
	{
		nnotices = 0;
		notify_all = false;
	}
	dgen_waiter_remove();
}

/* Behind a commit: wake who was noted.  Raises nothing. */
void
dgen_waiter_wake_noticed(void)
{
	if (nnotices > 0)
		wake(notices, nnotices, notify_all);
	nnotices = 0;
	notify_all = false;
}
