/*-------------------------------------------------------------------------
 *
 * launcher.c
 *	  The one process that starts dgen's other processes.
 *
 * The launcher is a static background worker without a database.  It starts
 * a keeper for each database that has the extension, and workers for pools
 * (a module owner in a database) that have servers ready.  Both are dynamic
 * background workers that the postmaster never restarts: whether one is to
 * come back, and when, is decided here, from what it left in shared memory.
 *
 *	  keepers	At its start the launcher scouts: a keeper is sent to each
 *				database in turn, a few at a time, and leaves at once where
 *				there is no extension.  Later ones are asked for by
 *				dgen_want_keeper().  One that failed comes back after 1 s, 2 s
 *				and so on up to a minute.
 *	  workers	A pool without a worker gets one at once.  It gets another
 *				when its head has waited for HEAD_WAIT_MS, one at a time, up
 *				to dgen.max_workers in a database.  If other pools hold all
 *				the places, place_wanted has their workers make room.  Pools
 *				of long work have places of their own, dgen.max_long_workers.
 *
 * Whoever has work for it sets its latch; it sleeps without a timeout when
 * nothing waits for a time.
 *
 * A database with kept_out > 0 gets no process.  This is tested under the
 * lock under which STARTING is set, so whoever has set kept_out sees every
 * process that may still come, and each one tests again when it attaches.
 *
 * Locks: dgen_shared->lock, and a pool's lock inside it.  Processes are
 * registered, and catalogs read, under neither.
 *
 *-------------------------------------------------------------------------
 */
#include "stat.h"

#include "access/heapam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "catalog/pg_database.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/proc.h"
#include "tcop/tcopprot.h"
#include "utils/guc.h"
#include "utils/inval.h"
#include "utils/memutils.h"

#define MAX_STARTING 2			/* keepers that start at once */
#define HEAD_WAIT_MS 5			/* a pool whose head waits longer grows */
#define STARTING_MS 20			/* how often to look whether one has started */
#define REFUSED_MS 500			/* after the postmaster had no slot */
#define CLOSED_MS (60 * 1000)	/* a database that allows no connections */
#define FAILURE_MIN_MS 100		/* backoff of a pool whose workers fail */
#define FAILURE_MAX_MS (30 * 1000)
#define SHORT_LIFE_MS 1000		/* a worker that did nothing for so long failed */

/* a row of pg_database */
typedef struct Candidate
{
	Oid			oid;
	bool		connectable;
} Candidate;

/* a pool, as it was when we looked */
typedef struct PoolView
{
	bool		runnable;		/* servers are ready, and may be served */
	DgenPoolKind kind;
	int			database;		/* index into dgen_shared->databases */
	int			nworkers;
	int			nstarting;
	int			failures;
	TimestampTz head_since;
	TimestampTz retry_at;
} PoolView;

/* private to the launcher */
static MemoryContext loop_context;
static List *scouts = NIL;		/* OIDs of databases not looked at yet */
static BackgroundWorkerHandle *keeper_handles[DGEN_MAX_DATABASES];
static BackgroundWorkerHandle **worker_handles;
static uint32 *worker_generations;
static PoolView views[DGEN_MAX_POOLS];
static int	database_workers[DGEN_MAX_DATABASES][DGEN_NPOOL_KINDS];
static bool place_wanted[DGEN_MAX_DATABASES][DGEN_NPOOL_KINDS];
static bool failure_reported[DGEN_MAX_POOLS];
static int	first_pool = 0;		/* where to begin, so that all get their turn */
static bool refused = false;	/* the postmaster had no slot for us */
static TimestampTz refused_until = 0;
static TimestampTz pass_time;	/* when this pass began */
static TimestampTz next_look;	/* when to look again at the latest */

static void
look_at(TimestampTz when)
{
	if (when < next_look)
		next_look = when;
}

void
dgen_launcher_register(void)
{
	BackgroundWorker worker;

	/* pg_upgrade must find nobody in its databases */
	if (IsBinaryUpgrade)
		return;

	memset(&worker, 0, sizeof(worker));
	worker.bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
	worker.bgw_start_time = BgWorkerStart_RecoveryFinished;
	worker.bgw_restart_time = 5;
	snprintf(worker.bgw_name, sizeof(worker.bgw_name), "dgen launcher");
	snprintf(worker.bgw_type, sizeof(worker.bgw_type), "dgen launcher");
	snprintf(worker.bgw_library_name, sizeof(worker.bgw_library_name), "dgen");
	snprintf(worker.bgw_function_name, sizeof(worker.bgw_function_name), "dgen_launcher_main");
	RegisterBackgroundWorker(&worker);
}

/*
 * For launcher and keepers, which run dgen's own code only: nothing that the
 * configuration says for ordinary sessions may stop them, or change what
 * their code means.
 */
void
dgen_internal_settings(const char *application_name)
{
	static const char *const settings[][2] = {
		{"search_path", ""},
		{"statement_timeout", "0"},
		{"lock_timeout", "0"},
		{"idle_in_transaction_session_timeout", "0"},
		{"idle_session_timeout", "0"},
		{"transaction_timeout", "0"},	/* from 17 on */
		{"default_transaction_isolation", "read committed"},
		{"default_transaction_read_only", "off"},
		{"default_transaction_deferrable", "off"},
		{"row_security", "off"},
		{"dgen.drop_doorbells", "off"}
	};

	for (int i = 0; i < lengthof(settings); i++)
	{
		if (GetConfigOption(settings[i][0], true, false) != NULL)
			SetConfigOption(settings[i][0], settings[i][1], PGC_SUSET, PGC_S_OVERRIDE);
	}
	SetConfigOption("application_name", application_name, PGC_USERSET, PGC_S_SESSION);
}

/* Caller holds dgen_shared->lock. */
static int
find_database(Oid database)
{
	for (int i = 0; i < DGEN_MAX_DATABASES; i++)
	{
		if (dgen_shared->databases[i].database == database)
			return i;
	}
	return DGEN_NONE;
}

/*
 * Have the database looked after.  Called from commit callbacks among
 * others: raises nothing.
 */
void
dgen_want_keeper(Oid database)
{
	DgenDatabase *db;

	if (dgen_shared == NULL)
		return;
	db = dgen_database(database, true);
	if (db == NULL)
		return;

	LWLockAcquire(&dgen_shared->lock, LW_EXCLUSIVE);
	if (db->database == database)
	{
		/*
		 * One that is there may have looked for the extension already, in
		 * vain, and be about to leave.
		 */
		if (db->keeper == DGEN_KEEPER_STARTING || db->keeper == DGEN_KEEPER_RUNNING)
			db->keeper_again = true;
		else
		{
			if (db->keeper != DGEN_KEEPER_WANTED)
				db->keeper_failures = 0;
			db->keeper = DGEN_KEEPER_WANTED;
			/* unless it is backing off, at once */
			if (db->keeper_failures == 0)
				db->keeper_retry_at = 0;
		}
	}
	LWLockRelease(&dgen_shared->lock);
	dgen_wake_launcher();
}

/* ---------------------------------------------------------- worker slots */

/*
 * In a worker, first of all: take the slot that the launcher made for this
 * process.  False if it is not ours any more, or the database is closed to us.
 */
bool
dgen_slot_attach(Datum main_arg)
{
	int			slotno = DatumGetInt32(main_arg);
	DgenWorkerSlot *slot = &dgen_shared->slots[slotno];
	uint32		generation;
	int			db;
	bool		closed = false;

	memcpy(&generation, MyBgworkerEntry->bgw_extra, sizeof(generation));

	LWLockAcquire(&dgen_shared->lock, LW_EXCLUSIVE);
	if (slot->generation == generation && slot->state == DGEN_WORKER_STARTING &&
		slot->pid == 0)
	{
		db = find_database(slot->database);
		closed = (db == DGEN_NONE || dgen_shared->databases[db].kept_out > 0);
		if (!closed)
		{
			slot->pid = MyProcPid;
			slot->pgprocno = MyProcIndex;
			slot->started_at = GetCurrentTimestamp();
			dgen_my_slot = slot;
		}
	}
	LWLockRelease(&dgen_shared->lock);

	if (closed)
		dgen_slot_release(slotno, generation);
	return dgen_my_slot != NULL;
}

/*
 * Did a worker never come, or leave at once although there was work?  To
 * start the next one at once would be a loop.
 */
static bool
ended_at_start(DgenWorkerSlot *slot, DgenPool *pool, TimestampTz at)
{
	return slot->state == DGEN_WORKER_STARTING ||
		(slot->batches == 0 && pool->nready > 0 &&
		 !TimestampDifferenceExceeds(slot->started_at, at, SHORT_LIFE_MS));
}

/* Caller holds the pool's lock. */
static void
account_failure(DgenPool *pool, TimestampTz at)
{
	int			ms = FAILURE_MIN_MS;

	for (int i = 0; i < pool->start_failures && ms < FAILURE_MAX_MS; i++)
		ms *= 2;
	pool->start_failures++;
	pool->retry_at = TimestampTzPlusMilliseconds(at, Min(ms, FAILURE_MAX_MS));
}

/*
 * Free a slot, unless it has become another's.  was_refused: the postmaster
 * had no room, which is no failure of the pool.  A worker sent away by DROP
 * DATABASE says nothing about the next one either.
 */
static void
release_slot(int slotno, uint32 generation, bool was_refused)
{
	DgenWorkerSlot *slot = &dgen_shared->slots[slotno];
	TimestampTz at = GetCurrentTimestamp();
	DgenPool   *pool;
	int			db;
	bool		keep_out;

	LWLockAcquire(&dgen_shared->lock, LW_EXCLUSIVE);
	if (slot->generation != generation || slot->state == DGEN_WORKER_FREE)
	{
		LWLockRelease(&dgen_shared->lock);
		return;
	}
	db = find_database(slot->database);
	keep_out = (db == DGEN_NONE || dgen_shared->databases[db].kept_out > 0);

	pool = &dgen_shared->pools[slot->pool];
	LWLockAcquire(&pool->lock, LW_EXCLUSIVE);
	pool->nworkers--;
	if (was_refused)
	{
		if (pool->nworkers == 0 && pool->refused_at == 0)
			pool->refused_at = at;
	}
	else if (!ended_at_start(slot, pool, at))
	{
		pool->start_failures = 0;
		pool->retry_at = 0;
	}
	else if (!keep_out)
		account_failure(pool, at);
	/* under the pool's lock, too: who rings looks for idle workers under that */
	pg_atomic_write_u32(&slot->idle, 0);
	slot->pool = DGEN_NONE;
	slot->pgprocno = DGEN_NONE;
	LWLockRelease(&pool->lock);

	slot->pid = 0;
	slot->state = DGEN_WORKER_FREE;
	LWLockRelease(&dgen_shared->lock);
}

/* At a worker's exit: give the slot back, and have the launcher think again. */
void
dgen_slot_release(int slotno, uint32 generation)
{
	release_slot(slotno, generation, false);
	dgen_wake_launcher();
}

/* Find a slot for a worker of the pool; DGEN_NONE: none, or not now. */
static int
allocate_slot(int poolno, uint32 *generation)
{
	DgenPool   *pool = &dgen_shared->pools[poolno];
	int			found = DGEN_NONE;
	int			db;

	LWLockAcquire(&dgen_shared->lock, LW_EXCLUSIVE);
	/* it may have become another's since we looked */
	db = pool->used && pool->kind != DGEN_POOL_EXTERNAL ? find_database(pool->database) : DGEN_NONE;
	for (int i = 0; db != DGEN_NONE && i < dgen_shared->nslots; i++)
	{
		if (dgen_shared->slots[i].state == DGEN_WORKER_FREE)
		{
			found = i;
			break;
		}
	}
	if (found != DGEN_NONE && dgen_shared->databases[db].kept_out == 0)
	{
		DgenWorkerSlot *slot = &dgen_shared->slots[found];

		slot->state = DGEN_WORKER_STARTING;
		*generation = ++slot->generation;
		slot->pool = poolno;
		slot->database = pool->database;
		slot->owner = pool->owner;
		slot->pid = 0;
		slot->pgprocno = DGEN_NONE;
		slot->started_at = pass_time;
		slot->busy_since = 0;
		slot->slow = false;
		slot->batches = slot->activations = slot->conflicts = 0;
		slot->cache_hits = slot->cache_misses = 0;
		slot->batch_size = 0;
		slot->server[0] = '\0';
		pg_atomic_write_u64(&slot->current_call, 0);
		pg_atomic_write_u64(&slot->cancel_call, 0);

		LWLockAcquire(&pool->lock, LW_EXCLUSIVE);
		pool->nworkers++;
		LWLockRelease(&pool->lock);
	}
	else
		found = DGEN_NONE;
	LWLockRelease(&dgen_shared->lock);
	return found;
}

/* ------------------------------------------------------------- registering */

/* Ask the postmaster for a process; NULL if it has no slot for one. */
static BackgroundWorkerHandle *
register_process(const char *kind, const char *function, Oid database,
				 Datum main_arg, uint32 generation)
{
	BackgroundWorker worker;
	BackgroundWorkerHandle *handle = NULL;
	MemoryContext old;

	memset(&worker, 0, sizeof(worker));
	worker.bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
	worker.bgw_start_time = BgWorkerStart_RecoveryFinished;
	worker.bgw_restart_time = BGW_NEVER_RESTART;
	snprintf(worker.bgw_name, sizeof(worker.bgw_name), "dgen %s of database %u", kind, database);
	snprintf(worker.bgw_type, sizeof(worker.bgw_type), "dgen %s", kind);
	snprintf(worker.bgw_library_name, sizeof(worker.bgw_library_name), "dgen");
	snprintf(worker.bgw_function_name, sizeof(worker.bgw_function_name), "%s", function);
	worker.bgw_main_arg = main_arg;
	memcpy(worker.bgw_extra, &generation, sizeof(generation));
	worker.bgw_notify_pid = MyProcPid;

	/* the handle must outlast this pass */
	old = MemoryContextSwitchTo(TopMemoryContext);
	if (!RegisterDynamicBackgroundWorker(&worker, &handle))
		handle = NULL;
	MemoryContextSwitchTo(old);

	if (handle != NULL)
		refused = false;
	else
	{
		/* once an episode; after a minute without trying it is another one */
		if (!refused || TimestampDifferenceExceeds(refused_until, pass_time, 60 * 1000))
			ereport(WARNING,
					(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
					 errmsg("out of background worker slots for dgen"),
					 errhint("You might need to increase \"max_worker_processes\".")));
		refused = true;
		refused_until = TimestampTzPlusMilliseconds(pass_time, REFUSED_MS);
		look_at(refused_until);
	}
	return handle;
}

static void
keep_handle(BackgroundWorkerHandle **place, BackgroundWorkerHandle *handle)
{
	if (*place != NULL)
		pfree(*place);
	*place = handle;
}

static bool
start_worker(int poolno)
{
	uint32		generation;
	int			slotno = allocate_slot(poolno, &generation);
	BackgroundWorkerHandle *handle;

	if (slotno == DGEN_NONE)
		return false;
	handle = register_process("worker", "dgen_worker_main",
							  dgen_shared->slots[slotno].database,
							  Int32GetDatum(slotno), generation);
	keep_handle(&worker_handles[slotno], handle);
	worker_generations[slotno] = generation;
	if (handle == NULL)
		release_slot(slotno, generation, true);
	return handle != NULL;
}

/* A keeper was asked for, and did not come.  Caller holds dgen_shared->lock. */
static void
keeper_never_came(DgenDatabase *db)
{
	db->keeper = DGEN_KEEPER_WANTED;
	db->keeper_failures++;
	db->keeper_retry_at = TimestampTzPlusMilliseconds(pass_time, 1000);
}

/*
 * There is no slot for a database's keeper, and so for no worker: callers are
 * to know.  Caller holds dgen_shared->lock.
 */
static void
refuse_pools(Oid database)
{
	for (int i = 0; i < DGEN_MAX_POOLS; i++)
	{
		DgenPool   *pool = &dgen_shared->pools[i];

		LWLockAcquire(&pool->lock, LW_EXCLUSIVE);
		if (pool->used && pool->database == database && pool->kind != DGEN_POOL_EXTERNAL &&
			pool->nworkers == 0 && pool->refused_at == 0)
			pool->refused_at = pass_time;
		LWLockRelease(&pool->lock);
	}
}

static void
start_keeper(int i)
{
	DgenDatabase *db = &dgen_shared->databases[i];
	BackgroundWorkerHandle *handle;
	Oid			database;
	bool		start;

	LWLockAcquire(&dgen_shared->lock, LW_EXCLUSIVE);
	database = db->database;
	start = (OidIsValid(database) && db->keeper == DGEN_KEEPER_WANTED && db->kept_out == 0);
	if (start)
	{
		db->keeper = DGEN_KEEPER_STARTING;
		db->keeper_pid = 0;
		db->keeper_started_at = pass_time;
		db->keeper_again = false;
	}
	LWLockRelease(&dgen_shared->lock);
	if (!start)
		return;

	handle = register_process("keeper", "dgen_keeper_main", database,
							  ObjectIdGetDatum(database), 0);
	keep_handle(&keeper_handles[i], handle);
	if (handle == NULL)
	{
		LWLockAcquire(&dgen_shared->lock, LW_EXCLUSIVE);
		db->keeper = DGEN_KEEPER_WANTED;
		refuse_pools(database);
		LWLockRelease(&dgen_shared->lock);
	}
}

/*
 * Find processes that ended.  Those that attached have cleaned up themselves;
 * this is about those that never did, since the postmaster could not fork.
 */
static void
reap(void)
{
	pid_t		pid;

	for (int i = 0; i < dgen_shared->nslots; i++)
	{
		if (worker_handles[i] == NULL ||
			GetBackgroundWorkerPid(worker_handles[i], &pid) != BGWH_STOPPED)
			continue;
		release_slot(i, worker_generations[i], false);
		keep_handle(&worker_handles[i], NULL);
	}
	for (int i = 0; i < DGEN_MAX_DATABASES; i++)
	{
		DgenDatabase *db = &dgen_shared->databases[i];

		if (keeper_handles[i] == NULL ||
			GetBackgroundWorkerPid(keeper_handles[i], &pid) != BGWH_STOPPED)
			continue;
		LWLockAcquire(&dgen_shared->lock, LW_EXCLUSIVE);
		if (db->keeper == DGEN_KEEPER_STARTING && db->keeper_pid == 0)
			keeper_never_came(db);
		LWLockRelease(&dgen_shared->lock);
		keep_handle(&keeper_handles[i], NULL);
	}
}

/* ---------------------------------------------------------------- keepers */

/* All databases of the cluster; as autovacuum's get_database_list() has it. */
static List *
read_databases(void)
{
	MemoryContext result_context = CurrentMemoryContext;
	List	   *result = NIL;
	Relation	rel;
	TableScanDesc scan;
	HeapTuple	tuple;

	StartTransactionCommand();
	rel = table_open(DatabaseRelationId, AccessShareLock);
	scan = table_beginscan_catalog(rel, 0, NULL);
	while ((tuple = heap_getnext(scan, ForwardScanDirection)) != NULL)
	{
		Form_pg_database form = (Form_pg_database) GETSTRUCT(tuple);
		MemoryContext old = MemoryContextSwitchTo(result_context);
		Candidate  *candidate = palloc(sizeof(Candidate));

		candidate->oid = form->oid;
		candidate->connectable = form->datallowconn && !database_is_invalid_form(form);
		result = lappend(result, candidate);
		MemoryContextSwitchTo(old);
	}
	table_endscan(scan);
	table_close(rel, AccessShareLock);
	CommitTransactionCommand();
	pgstat_report_stat(true);
	MemoryContextSwitchTo(result_context);
	return result;
}

static Candidate *
find_candidate(List *databases, Oid oid)
{
	ListCell   *lc;

	foreach(lc, databases)
	{
		Candidate  *candidate = lfirst(lc);

		if (candidate->oid == oid)
			return candidate;
	}
	return NULL;
}

/*
 * Want a keeper for the next database that nobody has looked at yet.  False
 * if all entries are in use: one that is freed wakes us.
 */
static bool
scout(void)
{
	Oid			database = linitial_oid(scouts);
	DgenDatabase *db = dgen_database(database, true);

	if (db == NULL)
		return false;

	scouts = list_delete_first(scouts);
	LWLockAcquire(&dgen_shared->lock, LW_EXCLUSIVE);
	if (db->database == database && db->keeper == DGEN_KEEPER_NONE)
		db->keeper = DGEN_KEEPER_WANTED;
	LWLockRelease(&dgen_shared->lock);
	return true;
}

/* Caller holds dgen_shared->lock exclusively. */
static void
free_database(DgenDatabase *db)
{
	Assert(db->kept_out == 0);
	pg_atomic_write_u32(&db->armed, 0);
	db->keeper = DGEN_KEEPER_NONE;
	db->keeper_again = false;
	db->keeper_retry_at = 0;
	dgen_stat_forget_database(db->database);
	db->database = InvalidOid;
}

/*
 * Collect the entries whose keeper is due into wanted[], at most max, and
 * count the keepers that are starting.
 */
static int
find_wanted(int *wanted, int max, int *starting)
{
	int			n = 0;

	*starting = 0;
	LWLockAcquire(&dgen_shared->lock, LW_EXCLUSIVE);
	for (int i = 0; i < DGEN_MAX_DATABASES; i++)
	{
		DgenDatabase *db = &dgen_shared->databases[i];

		if (!OidIsValid(db->database) || db->kept_out > 0)
			continue;
		if (db->keeper == DGEN_KEEPER_ABSENT)
			free_database(db);
		else if (db->keeper == DGEN_KEEPER_STARTING)
			(*starting)++;
		else if (db->keeper == DGEN_KEEPER_WANTED && db->keeper_retry_at > pass_time)
			look_at(db->keeper_retry_at);
		else if (db->keeper == DGEN_KEEPER_WANTED && n < max)
			wanted[n++] = i;
	}
	LWLockRelease(&dgen_shared->lock);
	return n;
}

static void
start_keepers(void)
{
	int			wanted[MAX_STARTING];
	int			starting;
	int			n = find_wanted(wanted, MAX_STARTING, &starting);
	List	   *databases;

	while (scouts != NIL && starting + n < MAX_STARTING && scout())
		n = find_wanted(wanted, MAX_STARTING, &starting);
	if (n == 0 || starting >= MAX_STARTING)
		return;
	if (pass_time < refused_until)
	{
		look_at(refused_until);
		return;
	}

	databases = read_databases();
	for (int i = 0; i < Min(n, MAX_STARTING - starting); i++)
	{
		DgenDatabase *db = &dgen_shared->databases[wanted[i]];
		Candidate  *candidate = find_candidate(databases, db->database);

		if (candidate != NULL && candidate->connectable)
		{
			start_keeper(wanted[i]);
			continue;
		}
		LWLockAcquire(&dgen_shared->lock, LW_EXCLUSIVE);
		if (candidate != NULL)
		{
			/* no worker could come, either */
			pg_atomic_write_u32(&db->armed, 0);
			db->keeper_retry_at = TimestampTzPlusMilliseconds(pass_time, CLOSED_MS);
			look_at(db->keeper_retry_at);
		}
		else if (db->kept_out == 0 && db->keeper == DGEN_KEEPER_WANTED)
			free_database(db);
		LWLockRelease(&dgen_shared->lock);
	}
}

/* ------------------------------------------------------------------ pools */

/*
 * Look at one pool, whose lock the caller holds.  Ends its episodes of want,
 * if it has nothing to do; frees it, if it has nothing at all, or its database is gone.
 */
static void
view_pool(int poolno, bool free_if_quiet)
{
	DgenPool   *pool = &dgen_shared->pools[poolno];
	PoolView   *view = &views[poolno];
	int			db = find_database(pool->database);

	/* its workers do that between two batches, and may be long at one */
	if (pool->kind != DGEN_POOL_EXTERNAL)
	{
		dgen_ready_queue_due(pool, pass_time);
		if (pool->park_due != DT_NOEND)
			look_at(TimestampTzPlusMilliseconds(pool->park_due, HEAD_WAIT_MS));
	}
	view->database = db;
	view->kind = pool->kind;
	view->nworkers = pool->nworkers;
	view->failures = pool->start_failures;
	view->head_since = pool->head_since;
	view->retry_at = pool->retry_at;
	view->runnable = pool->nready > 0 && pool->kind != DGEN_POOL_EXTERNAL && db != DGEN_NONE &&
		dgen_shared->databases[db].kept_out == 0 &&
		pg_atomic_read_u32(&dgen_shared->databases[db].armed) != 0;
	if (db != DGEN_NONE)
		database_workers[db][pool->kind] += pool->nworkers;

	if (pool->nready == 0)
	{
		pool->growth_asked = false;
		pool->refused_at = 0;
		if (free_if_quiet && pool->nworkers == 0 && pool->nentries == 0)
			pool->used = false;
	}
	if (db == DGEN_NONE)
		dgen_ready_forget(poolno);
}

/* Look at all pools, and at who has workers. */
static void
survey(void)
{
	int			nused = 0;

	memset(views, 0, sizeof(views));
	memset(database_workers, 0, sizeof(database_workers));
	memset(place_wanted, 0, sizeof(place_wanted));

	for (int i = 0; i < DGEN_MAX_POOLS; i++)
	{
		DgenPool   *pool = &dgen_shared->pools[i];

		/* nobody else serves those parked, where there is no worker */
		if (pool->used && pool->nworkers == 0)
			look_at(dgen_ready_unpark(i, pass_time));
		nused += pool->used ? 1 : 0;
	}

	LWLockAcquire(&dgen_shared->lock, LW_EXCLUSIVE);
	for (int i = 0; i < DGEN_MAX_POOLS; i++)
	{
		DgenPool   *pool = &dgen_shared->pools[i];

		if (!pool->used)
			continue;
		LWLockAcquire(&pool->lock, LW_EXCLUSIVE);
		view_pool(i, nused > DGEN_MAX_POOLS / 2);
		LWLockRelease(&pool->lock);
	}
	for (int i = 0; i < dgen_shared->nslots; i++)
	{
		DgenWorkerSlot *slot = &dgen_shared->slots[i];

		if (slot->state == DGEN_WORKER_STARTING)
			views[slot->pool].nstarting++;
	}
	LWLockRelease(&dgen_shared->lock);
}

/* Log once when a pool's workers begin to fail, and forget when they stop. */
static void
report_failures(int poolno)
{
	PoolView   *view = &views[poolno];

	if (view->failures == 0)
		failure_reported[poolno] = false;
	else if (!failure_reported[poolno])
	{
		failure_reported[poolno] = true;
		ereport(WARNING,
				(errmsg("dgen worker of role %u in database %u ended at its start",
						dgen_shared->pools[poolno].owner,
						dgen_shared->pools[poolno].database),
				 errhint("See what it has logged before. The role must exist, have CONNECT on the database, and before PostgreSQL 17 LOGIN.")));
	}
}

/* Are all places taken that the database has for workers of this kind? */
static bool
is_full(PoolView *view)
{
	int			max = view->kind == DGEN_POOL_LONG ? dgen_max_long_workers : dgen_max_workers;

	return database_workers[view->database][view->kind] >= max;
}

static bool
may_start(PoolView *view)
{
	if (view->retry_at > pass_time)
	{
		look_at(view->retry_at);
		return false;
	}
	if (refused_until > pass_time)
	{
		look_at(refused_until);
		return false;
	}
	return true;
}

static void
grow_pool(int poolno)
{
	PoolView   *view = &views[poolno];

	if (!start_worker(poolno))
		return;
	view->nworkers++;
	view->nstarting++;
	database_workers[view->database][view->kind]++;

	LWLockAcquire(&dgen_shared->pools[poolno].lock, LW_EXCLUSIVE);
	dgen_shared->pools[poolno].refused_at = 0;
	LWLockRelease(&dgen_shared->pools[poolno].lock);
}

/*
 * First pools that have no worker, then those that have too few.
 */
static void
start_workers(void)
{
	int			first = first_pool;

	for (int i = 0; i < DGEN_MAX_POOLS; i++)
	{
		int			poolno = (first + i) % DGEN_MAX_POOLS;
		PoolView   *view = &views[poolno];

		report_failures(poolno);
		if (!view->runnable || view->nworkers > 0 || !may_start(view))
			continue;
		if (is_full(view))
			place_wanted[view->database][view->kind] = true;
		else
		{
			grow_pool(poolno);
			/* who had a place goes behind all who wait for one */
			first_pool = (poolno + 1) % DGEN_MAX_POOLS;
		}
	}
	for (int i = 0; i < DGEN_MAX_POOLS; i++)
	{
		int			poolno = (first + i) % DGEN_MAX_POOLS;
		PoolView   *view = &views[poolno];
		TimestampTz grow_at;

		if (!view->runnable || view->nworkers == 0 || place_wanted[view->database][view->kind])
			continue;
		if (view->nstarting > 0)
		{
			/* one at a time; that it has started, nobody tells us */
			look_at(TimestampTzPlusMilliseconds(pass_time, STARTING_MS));
			continue;
		}
		grow_at = TimestampTzPlusMilliseconds(view->head_since, HEAD_WAIT_MS);
		if (is_full(view))
		{
			/* there are few places for long work: who sits idle in one goes */
			if (view->kind != DGEN_POOL_LONG)
				continue;
			if (grow_at > pass_time)
				look_at(grow_at);
			else if (database_workers[view->database][view->kind] > view->nworkers)
				place_wanted[view->database][view->kind] = true;
			continue;
		}
		if (!may_start(view))
			continue;
		if (grow_at <= pass_time)
			grow_pool(poolno);
		else
			/* at a steady load the head is always young: not too often */
			look_at(TimestampTzPlusMilliseconds(pass_time, HEAD_WAIT_MS));
	}
}

/* Publish whether a place is wanted, and wake those who might make room. */
static void
publish_place(DgenDatabase *db, DgenPoolKind kind, uint32 want)
{
	if (pg_atomic_read_u32(&db->place_wanted[kind]) == want)
		return;
	pg_atomic_write_u32(&db->place_wanted[kind], want);
	for (int i = 0; want && i < dgen_shared->nslots; i++)
	{
		DgenWorkerSlot *slot = &dgen_shared->slots[i];

		if (slot->database == db->database && slot->pgprocno != DGEN_NONE)
			SetLatch(&ProcGlobal->allProcs[slot->pgprocno].procLatch);
	}
}

static void
publish_places(void)
{
	LWLockAcquire(&dgen_shared->lock, LW_SHARED);
	for (int i = 0; i < DGEN_MAX_DATABASES; i++)
	{
		for (int kind = 0; kind < DGEN_NPOOL_KINDS; kind++)
			publish_place(&dgen_shared->databases[i], kind, place_wanted[i][kind] ? 1 : 0);
	}
	LWLockRelease(&dgen_shared->lock);
}

/* ------------------------------------------------------------------- main */

static void
launcher_exit(int code, Datum arg)
{
	LWLockAcquire(&dgen_shared->lock, LW_EXCLUSIVE);
	if (dgen_shared->launcher_pid == MyProcPid)
	{
		dgen_shared->launcher_pid = 0;
		dgen_shared->launcher_pgprocno = DGEN_NONE;
	}
	LWLockRelease(&dgen_shared->lock);
}

/*
 * Take over from a launcher that failed.  Of the processes that it asked for
 * and that are not there yet we have no handle, so they are given up: should
 * one come, it finds that its slot is not its own any more.
 */
static void
take_over(void)
{
	LWLockAcquire(&dgen_shared->lock, LW_EXCLUSIVE);
	dgen_shared->launcher_pid = MyProcPid;
	dgen_shared->launcher_pgprocno = MyProcIndex;
	for (int i = 0; i < DGEN_MAX_DATABASES; i++)
	{
		DgenDatabase *db = &dgen_shared->databases[i];

		if (db->keeper == DGEN_KEEPER_STARTING && db->keeper_pid == 0)
			keeper_never_came(db);
	}
	LWLockRelease(&dgen_shared->lock);

	for (int i = 0; i < dgen_shared->nslots; i++)
	{
		DgenWorkerSlot *slot = &dgen_shared->slots[i];

		if (slot->state == DGEN_WORKER_STARTING && slot->pid == 0)
			release_slot(i, slot->generation, false);
	}
}

static void
prepare_scouts(void)
{
	List	   *databases = read_databases();
	MemoryContext old = MemoryContextSwitchTo(TopMemoryContext);
	ListCell   *lc;

	foreach(lc, databases)
	{
		Candidate  *candidate = lfirst(lc);

		/* template1 is for CREATE DATABASE; others are databases like any, see armed.c */
		if (candidate->connectable && candidate->oid != Template1DbOid)
			scouts = lappend_oid(scouts, candidate->oid);
	}
	MemoryContextSwitchTo(old);
}

static void
launcher_pass(void)
{
	pass_time = GetCurrentTimestamp();
	next_look = DT_NOEND;

	reap();
	if (!dgen_enabled)
		return;
	start_keepers();
	survey();
	start_workers();
	publish_places();
}

static void
launcher_sleep(void)
{
	static uint32 wait_event = 0;
	int			events = WL_LATCH_SET | WL_EXIT_ON_PM_DEATH;
	long		timeout = -1;

	if (wait_event == 0)
		wait_event = WaitEventExtensionNew("DgenLauncherMain");
	if (next_look != DT_NOEND)
	{
		events |= WL_TIMEOUT;
		timeout = TimestampDifferenceMilliseconds(GetCurrentTimestamp(), next_look);
	}
	(void) WaitLatch(MyLatch, events, timeout, wait_event);
	ResetLatch(MyLatch);
}

void
dgen_launcher_main(Datum main_arg)
{
	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, die);
	before_shmem_exit(launcher_exit, (Datum) 0);
	BackgroundWorkerUnblockSignals();

	BackgroundWorkerInitializeConnection(NULL, NULL, 0);
	dgen_internal_settings("dgen launcher");

	worker_handles = MemoryContextAllocZero(TopMemoryContext,
											dgen_shared->nslots * sizeof(*worker_handles));
	worker_generations = MemoryContextAllocZero(TopMemoryContext,
												dgen_shared->nslots * sizeof(uint32));
	loop_context = AllocSetContextCreate(TopMemoryContext, "dgen launcher",
										 ALLOCSET_DEFAULT_SIZES);
	MemoryContextSwitchTo(loop_context);

	pass_time = GetCurrentTimestamp();
	take_over();
	prepare_scouts();

	for (;;)
	{
		/* without the FATAL of CHECK_FOR_INTERRUPTS in the log at each shutdown */
		if (ProcDiePending)
			proc_exit(1);
		CHECK_FOR_INTERRUPTS();
		if (ConfigReloadPending)
		{
			ConfigReloadPending = false;
			ProcessConfigFile(PGC_SIGHUP);
		}
		AcceptInvalidationMessages();

		MemoryContextReset(loop_context);
		launcher_pass();
		launcher_sleep();
	}
}
