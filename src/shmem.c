/*-------------------------------------------------------------------------
 *
 * shmem.c
 *	  dgen's part of shared memory.
 *
 * Everything here is a hint: after a crash it is rebuilt from the tables.
 * Nothing in it is private to a process and nothing varies in length; calls,
 * which do, live in a dsa area made in place.
 *
 * Lock order: dgen_shared->lock, then a pool's lock, then free_lock (a
 * spinlock).  Nobody waits, allocates or raises under any of them, and no two
 * pools are locked at once.
 *
 * The area in place is as large as dgen.shared_memory and grows by dynamic
 * segments of the server's own when calls in flight need more.
 *
 *-------------------------------------------------------------------------
 */
#include "stat.h"

#include "storage/ipc.h"
#include "storage/proc.h"
#include "storage/shmem.h"
#include "storage/spin.h"
#include "utils/memutils.h"

DgenShared *dgen_shared = NULL;
DgenWorkerSlot *dgen_my_slot = NULL;

static void *dsa_place = NULL;
static dsa_area *my_dsa = NULL;

static shmem_request_hook_type prev_shmem_request_hook = NULL;
static shmem_startup_hook_type prev_shmem_startup_hook = NULL;

static Size
control_size(void)
{
	return add_size(offsetof(DgenShared, slots),
					mul_size(max_worker_processes, sizeof(DgenWorkerSlot)));
}

static Size
area_size(void)
{
	return mul_size(dgen_shared_memory, 1024);
}

static void
shmem_request(void)
{
	if (prev_shmem_request_hook)
		prev_shmem_request_hook();

	RequestAddinShmemSpace(control_size());
	RequestAddinShmemSpace(dgen_ready_size());
	RequestAddinShmemSpace(dgen_mark_size());
	RequestAddinShmemSpace(dgen_hand_size());
	RequestAddinShmemSpace(dgen_waiter_size());
	RequestAddinShmemSpace(dgen_progress_size());
	RequestAddinShmemSpace(dgen_trace_size());
	RequestAddinShmemSpace(dgen_statistics_size());
	RequestAddinShmemSpace(dgen_announce_size());
	RequestAddinShmemSpace(dgen_stat_size());
	RequestAddinShmemSpace(dgen_stat_server_size());
	RequestAddinShmemSpace(dgen_stat_activity_size());
	RequestAddinShmemSpace(area_size());
	RequestNamedLWLockTranche("dgen", 1);
}

static void
init_control(void)
{
	int			tranche = GetNamedLWLockTranche("dgen")->lock.tranche;

	memset(dgen_shared, 0, control_size());
	dgen_shared->tranche = tranche;
	LWLockInitialize(&dgen_shared->lock, tranche);
	SpinLockInit(&dgen_shared->free_lock);
	pg_atomic_init_u64(&dgen_shared->next_call_id, 1);
	dgen_shared->launcher_pgprocno = DGEN_NONE;
	dgen_shared->nslots = max_worker_processes;
	for (int i = 0; i < DGEN_MAX_DATABASES; i++)
	{
		DgenDatabase *db = &dgen_shared->databases[i];

		db->keeper_pgprocno = DGEN_NONE;
		pg_atomic_init_u32(&db->armed, 0);
		pg_atomic_init_u32(&db->prepared_known, 0);
		pg_atomic_init_u64(&db->next_due, (uint64) DT_NOEND);
		pg_atomic_init_u32(&db->resweep, 0);
		for (int k = 0; k < DGEN_NPOOL_KINDS; k++)
			pg_atomic_init_u32(&db->place_wanted[k], 0);
		pg_atomic_init_u64(&db->unannounced, 0);
		pg_atomic_init_u64(&db->announce_at, (uint64) DT_NOEND);
		pg_atomic_init_u64(&db->announced_at, 0);
		pg_atomic_init_u32(&db->announce_all, 0);
		pg_atomic_init_u32(&db->slow_workers, 0);
		pg_atomic_init_u32(&db->slow_starved, 0);
		SpinLockInit(&db->id_lock);
	}
	for (int i = 0; i < DGEN_MAX_POOLS; i++)
		LWLockInitialize(&dgen_shared->pools[i].lock, tranche);
	for (int i = 0; i < dgen_shared->nslots; i++)
	{
		DgenWorkerSlot *slot = &dgen_shared->slots[i];

		slot->pool = DGEN_NONE;
		slot->pgprocno = DGEN_NONE;
		pg_atomic_init_u32(&slot->idle, 0);
		pg_atomic_init_u64(&slot->current_call, 0);
		slot->caller_pgprocno = DGEN_NONE;
		pg_atomic_init_u64(&slot->cancel_call, 0);
	}
}

/*
 * Runs in the postmaster, at start and again after a crash of any process:
 * then shared memory is new, and pointers from before mean nothing.
 */
static void
shmem_startup(void)
{
	bool		found;
	void	   *place;

	if (prev_shmem_startup_hook)
		prev_shmem_startup_hook();

	dgen_shared = NULL;
	my_dsa = NULL;

	LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);
	dgen_shared = ShmemInitStruct("dgen control", control_size(), &found);
	if (!found)
		init_control();
	place = ShmemInitStruct("dgen ready", dgen_ready_size(), &found);
	dgen_ready_init(place, found);
	place = ShmemInitStruct("dgen marks", dgen_mark_size(), &found);
	dgen_mark_init(place, found);
	place = ShmemInitStruct("dgen suspects", dgen_hand_size(), &found);
	dgen_hand_init(place, found);
	place = ShmemInitStruct("dgen waiters", dgen_waiter_size(), &found);
	dgen_waiter_init(place, found);
	place = ShmemInitStruct("dgen progress", dgen_progress_size(), &found);
	dgen_progress_init(place, found);
	place = ShmemInitStruct("dgen traces", dgen_trace_size(), &found);
	dgen_trace_init(place, found);
	place = ShmemInitStruct("dgen statistics", dgen_statistics_size(), &found);
	dgen_statistics_init(place, found);
	place = ShmemInitStruct("dgen announcements", dgen_announce_size(), &found);
	dgen_announce_init(place, found);
	place = ShmemInitStruct("dgen module statistics", dgen_stat_size(), &found);
	dgen_stat_init(place, found);
	place = ShmemInitStruct("dgen server statistics", dgen_stat_server_size(), &found);
	dgen_stat_server_init(place, found);
	place = ShmemInitStruct("dgen activity", dgen_stat_activity_size(), &found);
	dgen_stat_activity_init(place, found);
	dsa_place = ShmemInitStruct("dgen calls", area_size(), &found);
	if (!found)
	{
		dsa_area   *area = dsa_create_in_place(dsa_place, area_size(),
											   dgen_shared->tranche, NULL);

		/* the area outlives every process that attaches to it */
		dsa_pin(area);
		dsa_detach(area);
	}
	LWLockRelease(AddinShmemInitLock);

	if (!IsUnderPostmaster)
		dgen_hand_startup();
}

void
dgen_shmem_install(void)
{
	prev_shmem_request_hook = shmem_request_hook;
	shmem_request_hook = shmem_request;
	prev_shmem_startup_hook = shmem_startup_hook;
	shmem_startup_hook = shmem_startup;
}

/*
 * The area of calls, attached at first use and for the life of the process.
 */
dsa_area *
dgen_dsa(void)
{
	if (my_dsa == NULL)
	{
		MemoryContext old = MemoryContextSwitchTo(TopMemoryContext);

		my_dsa = dsa_attach_in_place(dsa_place, NULL);
		dsa_pin_mapping(my_dsa);
		MemoryContextSwitchTo(old);
	}
	return my_dsa;
}

bool
dgen_is_worker(void)
{
	return dgen_my_slot != NULL;
}

#ifdef USE_ASSERT_CHECKING
/* dgen_shared->lock comes first: whoever waited for it under a pool's would wait for ever. */
static bool
holds_pool(void)
{
	for (int i = 0; i < DGEN_MAX_POOLS; i++)
	{
		if (LWLockHeldByMe(&dgen_shared->pools[i].lock))
			return true;
	}
	return false;
}
#endif

/*
 * The entry of a database; with create, made where there is none (NULL when
 * all are taken).  Entries are freed by the launcher alone.
 */
DgenDatabase *
dgen_database(Oid database, bool create)
{
	static DgenDatabase *mine = NULL;
	DgenDatabase *found = NULL;

	Assert(!holds_pool());
	if (mine != NULL && mine->database == database)
		return mine;

	LWLockAcquire(&dgen_shared->lock, create ? LW_EXCLUSIVE : LW_SHARED);
	for (int i = 0; i < DGEN_MAX_DATABASES && found == NULL; i++)
	{
		if (dgen_shared->databases[i].database == database)
			found = &dgen_shared->databases[i];
	}
	for (int i = 0; create && i < DGEN_MAX_DATABASES && found == NULL; i++)
	{
		DgenDatabase *db = &dgen_shared->databases[i];

		if (OidIsValid(db->database))
			continue;
		db->keeper = DGEN_KEEPER_NONE;
		db->keeper_pid = 0;
		db->keeper_pgprocno = DGEN_NONE;
		db->keeper_failures = 0;
		db->kept_out = db->tables_wanted = 0;
		db->next_id = db->id_limit = 0;
		pg_atomic_write_u32(&db->armed, 0);
		pg_atomic_write_u32(&db->prepared_known, 0);
		pg_atomic_write_u64(&db->next_due, (uint64) DT_NOEND);
		pg_atomic_write_u32(&db->resweep, 0);
		for (int k = 0; k < DGEN_NPOOL_KINDS; k++)
			pg_atomic_write_u32(&db->place_wanted[k], 0);
		pg_atomic_write_u64(&db->unannounced, 0);
		pg_atomic_write_u64(&db->announce_at, (uint64) DT_NOEND);
		pg_atomic_write_u64(&db->announced_at, 0);
		pg_atomic_write_u32(&db->announce_all, 0);
		db->database = database;
		found = db;
	}
	LWLockRelease(&dgen_shared->lock);

	if (found != NULL && database == MyDatabaseId)
		mine = found;
	return found;
}

/* Set a process' latch, if there is one.  Raises nothing. */
void
dgen_wake_process(int pgprocno)
{
	if (pgprocno != DGEN_NONE)
		SetLatch(&ProcGlobal->allProcs[pgprocno].procLatch);
}

/* Wake the launcher.  Raises nothing; a launcher that is not there sees all at its start. */
void
dgen_wake_launcher(void)
{
	dgen_wake_process(dgen_shared->launcher_pgprocno);
}

/*
 * Have the keeper of a database look no later than due.  Raises nothing.
 */
void
dgen_wake_keeper(Oid database, TimestampTz due)
{
	DgenDatabase *db = dgen_database(database, false);
	uint64		old;

	if (db == NULL)
		return;
	old = pg_atomic_read_u64(&db->next_due);
	while (due < (TimestampTz) old)
	{
		if (pg_atomic_compare_exchange_u64(&db->next_due, &old, (uint64) due))
		{
			dgen_wake_process(db->keeper_pgprocno);
			break;
		}
	}
}
