/*-------------------------------------------------------------------------
 *
 * ready.c
 *	  Servers with work: a queue for each pool (database and module owner),
 *	  and the calls that wait in it.
 *
 * An entry is known by the module and the hash of the address, and is in one
 * of these states:
 *
 *	  queued	in the pool's ring; a worker will take it
 *	  running	a worker has it, and no other will; a ring sets "again"
 *	  parked	waits for a time or a ring: suspended, backing off, or its
 *				lease is another's
 *
 * so a server is with one worker at a time, which the lease then guarantees.
 * An entry exists only while there is something to do or somebody waits: a
 * million idle servers have none.  Losing entries loses no work: the keeper's
 * feed finds every message in the table.
 *
 * Locks: the pool's lock protects its lists, its buckets and the entries in
 * them; the free list has its own spinlock.  Used in all processes, commit
 * callbacks among them, so nothing here raises an error.
 *
 *-------------------------------------------------------------------------
 */
#include "dgen.h"

#include "storage/proc.h"
#include "storage/shmem.h"
#include "storage/spin.h"

#define NBUCKETS 1024
#define NPACES 4096

/* the pace of one module: how long its activations take, and how it fares */
typedef struct Pace
{
	pg_atomic_uint64 who;		/* database << 32 | module id */
	pg_atomic_uint32 usecs;
	pg_atomic_uint32 letters;	/* dead letters in a row */
	pg_atomic_uint64 last_letter;	/* hash of the server of the last one */
	pg_atomic_uint64 last_success;	/* TimestampTz */
} Pace;

typedef struct ReadyShared
{
	Pace		paces[NPACES];
	DgenReady	entries[FLEXIBLE_ARRAY_MEMBER];
} ReadyShared;

static ReadyShared *ready;

Size
dgen_ready_size(void)
{
	return add_size(offsetof(ReadyShared, entries),
					mul_size(dgen_max_ready, sizeof(DgenReady)));
}

void
dgen_ready_init(void *place, bool found)
{
	ready = place;
	if (found)
		return;
	memset(place, 0, dgen_ready_size());
	for (int i = 0; i < NPACES; i++)
	{
		pg_atomic_init_u64(&ready->paces[i].who, 0);
		pg_atomic_init_u32(&ready->paces[i].usecs, 0);
		pg_atomic_init_u32(&ready->paces[i].letters, 0);
		pg_atomic_init_u64(&ready->paces[i].last_letter, 0);
		pg_atomic_init_u64(&ready->paces[i].last_success, 0);
	}
	for (int i = 0; i < dgen_max_ready; i++)
		ready->entries[i].next = i + 1 < dgen_max_ready ? i + 1 : DGEN_NONE;
	dgen_shared->free_head = 0;
}

/* ---------------------------------------------------------------- pace */

static Pace *
pace_slot(Oid database, int32 module_id, uint64 *who)
{
	*who = ((uint64) database << 32) | (uint32) module_id;
	return &ready->paces[(database * 31 + module_id) % NPACES];
}

uint32
dgen_pace_get(Oid database, int32 module_id)
{
	uint64		who;
	Pace	   *pace = pace_slot(database, module_id, &who);

	return pg_atomic_read_u64(&pace->who) == who ? pg_atomic_read_u32(&pace->usecs) : 0;
}

/* Does, or for all that is known may, an activation outlast a batch's budget? */
bool
dgen_pace_is_slow(Oid database, int32 module_id)
{
	uint32		pace = dgen_pace_get(database, module_id);

	return pace == 0 || pace > DGEN_BATCH_USECS;
}

/* The module's place, taken over from another module if that had it. */
static Pace *
own_pace(Oid database, int32 module_id)
{
	uint64		who;
	Pace	   *pace = pace_slot(database, module_id, &who);

	if (pg_atomic_read_u64(&pace->who) != who)
	{
		pg_atomic_write_u32(&pace->usecs, 0);
		pg_atomic_write_u32(&pace->letters, 0);
		pg_atomic_write_u64(&pace->last_success, 0);
		pg_atomic_write_u64(&pace->who, who);
	}
	return pace;
}

/* A moving average over about eight; two modules in one place merely disturb it. */
void
dgen_pace_note(Oid database, int32 module_id, uint32 usecs)
{
	Pace	   *pace = own_pace(database, module_id);
	uint32		old = pg_atomic_read_u32(&pace->usecs);

	if (old == 0)
		old = usecs;
	pg_atomic_write_u32(&pace->usecs, Max(1, (uint32) (((uint64) old * 7 + usecs) / 8)));
}

int
dgen_breaker_letter(Oid database, int32 module_id, int64 hash)
{
	Pace	   *pace = own_pace(database, module_id);

	if (pg_atomic_read_u32(&pace->letters) > 0 &&
		pg_atomic_read_u64(&pace->last_letter) == (uint64) hash)
		return pg_atomic_read_u32(&pace->letters);
	pg_atomic_write_u64(&pace->last_letter, (uint64) hash);
	return pg_atomic_add_fetch_u32(&pace->letters, 1);
}

void
dgen_breaker_success(Oid database, int32 module_id, TimestampTz now)
{
	Pace	   *pace = own_pace(database, module_id);

	pg_atomic_write_u32(&pace->letters, 0);
	pg_atomic_write_u64(&pace->last_success, (uint64) now);
}

TimestampTz
dgen_breaker_last_success(Oid database, int32 module_id)
{
	return (TimestampTz) pg_atomic_read_u64(&own_pace(database, module_id)->last_success);
}

/* ---------------------------------------------------------- lists of a pool */

static int *
bucket_of(DgenPool *pool, int32 module_id, int64 hash)
{
	return &pool->buckets[((uint64) hash ^ (uint64) module_id) % NBUCKETS];
}

static int
find_entry(DgenPool *pool, int32 module_id, int64 hash)
{
	for (int i = *bucket_of(pool, module_id, hash); i != DGEN_NONE;
		 i = ready->entries[i].bucket_next)
	{
		if (ready->entries[i].hash == hash && ready->entries[i].module_id == module_id)
			return i;
	}
	return DGEN_NONE;
}

static int
new_entry(DgenPool *pool, int32 module_id, int64 hash)
{
	DgenReady  *entry;
	int		   *bucket = bucket_of(pool, module_id, hash);
	int			i;

	SpinLockAcquire(&dgen_shared->free_lock);
	i = dgen_shared->free_head;
	if (i != DGEN_NONE)
		dgen_shared->free_head = ready->entries[i].next;
	SpinLockRelease(&dgen_shared->free_lock);
	if (i == DGEN_NONE)
		return DGEN_NONE;

	entry = &ready->entries[i];
	memset(entry, 0, sizeof(DgenReady));
	entry->hash = hash;
	entry->module_id = module_id;
	entry->pool = pool - dgen_shared->pools;
	entry->calls = entry->last_call = InvalidDsaPointer;
	pg_atomic_init_u64(&entry->stopped_id, 0);
	entry->next = entry->prev = DGEN_NONE;
	entry->bucket_next = *bucket;
	*bucket = i;
	pool->nentries++;
	return i;
}

static void
free_entry(DgenPool *pool, int i)
{
	DgenReady  *entry = &ready->entries[i];
	int		   *link = bucket_of(pool, entry->module_id, entry->hash);

	Assert(entry->calls == InvalidDsaPointer);
	while (*link != i)
		link = &ready->entries[*link].bucket_next;
	*link = entry->bucket_next;
	pool->nentries--;
	entry->state = DGEN_READY_FREE;

	SpinLockAcquire(&dgen_shared->free_lock);
	entry->next = dgen_shared->free_head;
	dgen_shared->free_head = i;
	SpinLockRelease(&dgen_shared->free_lock);
}

static void
enqueue(DgenPool *pool, int i)
{
	DgenReady  *entry = &ready->entries[i];

	entry->state = DGEN_READY_QUEUED;
	entry->again = false;
	entry->next = DGEN_NONE;
	entry->queued_at = GetCurrentTimestamp();
	if (pool->nready++ == 0)
	{
		pool->head = i;
		pool->head_since = entry->queued_at;
	}
	else
		ready->entries[pool->tail].next = i;
	pool->tail = i;
}

/* Take the entry after prev (DGEN_NONE: the head) out of the ring. */
static void
unlink_queued(DgenPool *pool, int prev, int i)
{
	DgenReady  *entry = &ready->entries[i];

	if (prev == DGEN_NONE)
		pool->head = entry->next;
	else
		ready->entries[prev].next = entry->next;
	if (pool->tail == i)
		pool->tail = prev;
	if (--pool->nready > 0)
		pool->head_since = ready->entries[pool->head].queued_at;
	entry->next = DGEN_NONE;
}

static void
park(DgenPool *pool, int i, TimestampTz until)
{
	DgenReady  *entry = &ready->entries[i];

	entry->state = DGEN_READY_PARKED;
	entry->park_until = until;
	pool->park_due = Min(pool->park_due, until);
	entry->prev = DGEN_NONE;
	entry->next = pool->parked;
	if (pool->parked != DGEN_NONE)
		ready->entries[pool->parked].prev = i;
	pool->parked = i;
}

static void
unpark(DgenPool *pool, int i)
{
	DgenReady  *entry = &ready->entries[i];

	if (entry->prev == DGEN_NONE)
		pool->parked = entry->next;
	else
		ready->entries[entry->prev].next = entry->next;
	if (entry->next != DGEN_NONE)
		ready->entries[entry->next].prev = entry->prev;
	entry->next = entry->prev = DGEN_NONE;
}

/* ---------------------------------------------------------------- pools */

static bool
is_pool(DgenPool *pool, Oid database, Oid owner, DgenPoolKind kind)
{
	return pool->used && pool->database == database && pool->owner == owner && pool->kind == kind;
}

/* The pool of an owner, or DGEN_NONE.  Caller holds dgen_shared->lock. */
static int
find_pool(Oid database, Oid owner, DgenPoolKind kind)
{
	for (int i = 0; i < DGEN_MAX_POOLS; i++)
	{
		if (is_pool(&dgen_shared->pools[i], database, owner, kind))
			return i;
	}
	return DGEN_NONE;
}

/*
 * A pool that nobody uses; else one that has nothing to do is taken away from
 * its owner.  DGEN_NONE: all are busy.  Caller holds dgen_shared->lock
 * exclusively, without which nobody comes to a pool that is not used.
 */
static int
vacate_pool(void)
{
	for (int i = 0; i < DGEN_MAX_POOLS; i++)
	{
		if (!dgen_shared->pools[i].used)
			return i;
	}
	for (int i = 0; i < DGEN_MAX_POOLS; i++)
	{
		DgenPool   *pool = &dgen_shared->pools[i];

		LWLockAcquire(&pool->lock, LW_EXCLUSIVE);
		if (pool->nworkers == 0 && pool->nentries == 0)
			pool->used = false;
		LWLockRelease(&pool->lock);
		if (!pool->used)
			return i;
	}
	return DGEN_NONE;
}

/* Caller holds both locks. */
static void
init_pool(DgenPool *pool, Oid database, Oid owner, DgenPoolKind kind)
{
	pool->database = database;
	pool->owner = owner;
	pool->kind = kind;
	pool->head = pool->tail = pool->parked = DGEN_NONE;
	pool->nready = pool->nworkers = pool->nentries = 0;
	pool->overflow = false;
	pool->park_due = DT_NOEND;
	pool->growth_asked = false;
	pool->refused_at = 0;
	pool->start_failures = 0;
	pool->retry_at = 0;
	for (int i = 0; i < NBUCKETS; i++)
		pool->buckets[i] = DGEN_NONE;
	pool->used = true;
}

/*
 * Lock the pool of an owner.  NULL: there is none, and with create, which is for
 * those who have something to put there, no room either.
 */
static DgenPool *
lock_pool(Oid database, Oid owner, DgenPoolKind kind, bool create)
{
	static int	last = 0;
	DgenPool   *pool = &dgen_shared->pools[last];
	int			found;

	LWLockAcquire(&pool->lock, LW_EXCLUSIVE);
	if (is_pool(pool, database, owner, kind))
		return pool;
	LWLockRelease(&pool->lock);

	LWLockAcquire(&dgen_shared->lock, LW_EXCLUSIVE);
	found = find_pool(database, owner, kind);
	if (found == DGEN_NONE && create)
		found = vacate_pool();
	if (found == DGEN_NONE)
	{
		LWLockRelease(&dgen_shared->lock);
		return NULL;
	}
	pool = &dgen_shared->pools[found];
	LWLockAcquire(&pool->lock, LW_EXCLUSIVE);
	if (!pool->used)
		init_pool(pool, database, owner, kind);
	LWLockRelease(&dgen_shared->lock);
	last = found;
	return pool;
}

/*
 * Whom to wake once the pool's lock is free: a worker that was woken before
 * would only go to sleep again on that lock.
 */
static int	sleepers[16];
static int	nsleepers = 0;

static void
wake_later(int procno)
{
	if (nsleepers < lengthof(sleepers))
		sleepers[nsleepers++] = procno;
	else
		SetLatch(&ProcGlobal->allProcs[procno].procLatch);
}

static void
unlock_pool(DgenPool *pool)
{
	LWLockRelease(&pool->lock);
	while (nsleepers > 0)
		SetLatch(&ProcGlobal->allProcs[sleepers[--nsleepers]].procLatch);
}

/* Wake a worker that sleeps, if there is one.  Caller holds the pool's lock. */
static bool
wake_sleeper(DgenPool *pool)
{
	int			self = pool - dgen_shared->pools;

	/* what was queued, then who sleeps; who goes to sleep looks in the other order */
	pg_memory_barrier();
	for (int i = 0; i < dgen_shared->nslots; i++)
	{
		DgenWorkerSlot *slot = &dgen_shared->slots[i];
		uint32		idle = 1;

		if (slot->pool == self && pg_atomic_read_u32(&slot->idle) == 1 &&
			pg_atomic_compare_exchange_u32(&slot->idle, &idle, 0))
		{
			wake_later(slot->pgprocno);
			return true;
		}
	}
	return false;
}

/*
 * Have somebody serve the pool: a worker that sleeps, or else the launcher,
 * which is asked once a backlog.  Caller holds the pool's lock.
 */
static void
wake_worker(DgenPool *pool)
{
	if (pool->kind == DGEN_POOL_EXTERNAL)
	{
		dgen_waiter_wake(DGEN_WAIT_WORK, (int64) pool->owner);
		return;
	}
	if (!wake_sleeper(pool) && (pool->nworkers == 0 || !pool->growth_asked))
	{
		pool->growth_asked = true;
		dgen_wake_launcher();
	}
}

/*
 * Have somebody see to it that what was parked is queued when it is due: a
 * sleeper, who has to know how long it may sleep, or else the launcher, since
 * those who work may do so for long.  Caller holds the pool's lock.
 */
static void
watch_parked(DgenPool *pool)
{
	if (!wake_sleeper(pool) && pool->kind != DGEN_POOL_EXTERNAL && !pool->growth_asked)
	{
		pool->growth_asked = true;
		dgen_wake_launcher();
	}
}

/* Queue an entry unless it is queued or being served. */
static void
ring_entry(DgenPool *pool, int i)
{
	DgenReady  *entry = &ready->entries[i];

	switch (entry->state)
	{
		case DGEN_READY_RUNNING:
			entry->again = true;
			return;
		case DGEN_READY_QUEUED:
			return;
		case DGEN_READY_PARKED:
			unpark(pool, i);
			break;
		case DGEN_READY_FREE:
			break;
	}
	enqueue(pool, i);
	wake_worker(pool);
}

/*
 * An external module that nobody takes work of must not fill the queue: what is
 * beyond its part is found by the keeper when there is room again.
 */
static bool
has_part(DgenPool *pool)
{
	if (pool->kind != DGEN_POOL_EXTERNAL || pool->nentries < dgen_max_ready / 8)
		return true;
	pool->overflow = true;
	return false;
}

/*
 * Queue a server.  False when there is no room: then the keeper, which was
 * told, finds its messages later.
 */
bool
dgen_ready_ring(Oid database, Oid owner, DgenPoolKind kind, int32 module_id, int64 hash)
{
	DgenPool   *pool = lock_pool(database, owner, kind, true);
	int			i = DGEN_NONE;

	if (pool != NULL)
	{
		i = find_entry(pool, module_id, hash);
		if (i == DGEN_NONE && !has_part(pool))
		{
			unlock_pool(pool);
			return true;
		}
		if (i == DGEN_NONE)
			i = new_entry(pool, module_id, hash);
		if (i != DGEN_NONE)
			ring_entry(pool, i);
		unlock_pool(pool);
	}
	if (i == DGEN_NONE)
	{
		DgenDatabase *db = dgen_database(database, false);

		if (db != NULL)
			pg_atomic_write_u32(&db->resweep, 1);
		return false;
	}
	return true;
}

bool
dgen_ready_known(Oid database, Oid owner, DgenPoolKind kind, int32 module_id, int64 hash)
{
	DgenPool   *pool = lock_pool(database, owner, kind, false);
	bool		known;

	if (pool == NULL)
		return false;
	known = find_entry(pool, module_id, hash) != DGEN_NONE;
	unlock_pool(pool);
	return known;
}

/* The same and more, for views. */
void
dgen_ready_look(Oid database, Oid owner, DgenPoolKind kind, int32 module_id, int64 hash,
				DgenReadyLook *look)
{
	DgenPool   *pool = lock_pool(database, owner, kind, false);
	int			i;

	memset(look, 0, sizeof(DgenReadyLook));
	look->pool = DGEN_NONE;
	if (pool == NULL)
		return;
	look->pool = pool - dgen_shared->pools;
	look->nready = pool->nready;
	look->nworkers = pool->nworkers;
	look->refused_at = pool->refused_at;
	look->start_failures = pool->start_failures;
	look->retry_at = pool->retry_at;
	i = find_entry(pool, module_id, hash);
	if (i != DGEN_NONE)
	{
		look->state = ready->entries[i].state;
		look->queued_at = ready->entries[i].queued_at;
		look->park_until = ready->entries[i].park_until;
	}
	unlock_pool(pool);
}

/* ---------------------------------------------------------------- calls */

static DgenCall *
call_at(dsa_pointer p)
{
	return dsa_get_address(dgen_dsa(), p);
}

static void
append_call(DgenReady *entry, DgenCall *call, dsa_pointer self)
{
	call->next = InvalidDsaPointer;
	if (entry->calls == InvalidDsaPointer)
		entry->calls = self;
	else
		call_at(entry->last_call)->next = self;
	entry->last_call = self;
}

/*
 * Put one back that had been taken: before all others, which are younger, and
 * whose memory this process may not have mapped.
 */
static void
prepend_call(DgenReady *entry, DgenCall *call, dsa_pointer self)
{
	call->next = entry->calls;
	if (entry->calls == InvalidDsaPointer)
		entry->last_call = self;
	entry->calls = self;
}

static bool
put_call(Oid owner, DgenPoolKind kind, DgenCall *call, dsa_pointer self,
		 void (*put) (DgenReady *entry, DgenCall *call, dsa_pointer self))
{
	DgenPool   *pool = lock_pool(call->database, owner, kind, true);
	int			i;

	if (pool == NULL)
		return false;
	i = find_entry(pool, call->module_id, call->hash);
	if (i == DGEN_NONE)
		i = new_entry(pool, call->module_id, call->hash);
	if (i != DGEN_NONE)
	{
		call->pool = pool - dgen_shared->pools;
		put(&ready->entries[i], call, self);
		ring_entry(pool, i);
	}
	unlock_pool(pool);
	return i != DGEN_NONE;
}

/* Put a call to its server's entry, in order of issue; false when no room. */
bool
dgen_ready_add_call(Oid owner, DgenPoolKind kind, DgenCall *call, dsa_pointer self)
{
	return put_call(owner, kind, call, self, append_call);
}

/* Put back a call that was taken off its entry; false when no room.  Must not raise. */
bool
dgen_ready_return_call(Oid owner, DgenPoolKind kind, DgenCall *call, dsa_pointer self)
{
	return put_call(owner, kind, call, self, prepend_call);
}

/*
 * Take a call off its entry, if it is still there: false says that a worker
 * has it.  The queue's reference is the caller's then.
 */
bool
dgen_ready_withdraw(DgenCall *call, dsa_pointer self)
{
	DgenPool   *pool = &dgen_shared->pools[call->pool];
	bool		found = false;
	int			i;

	LWLockAcquire(&pool->lock, LW_EXCLUSIVE);
	i = find_entry(pool, call->module_id, call->hash);
	if (i != DGEN_NONE)
	{
		DgenReady  *entry = &ready->entries[i];
		dsa_pointer prev = InvalidDsaPointer;

		for (dsa_pointer p = entry->calls; p != InvalidDsaPointer; p = call_at(p)->next)
		{
			if (p == self)
			{
				if (prev == InvalidDsaPointer)
					entry->calls = call->next;
				else
					call_at(prev)->next = call->next;
				if (entry->last_call == self)
					entry->last_call = prev;
				found = true;
				break;
			}
			prev = p;
		}
	}
	unlock_pool(pool);
	return found;
}

/*
 * A server was stopped: calls that wait for it are not for its next life.
 * Called when that is visible, and before the lease is let go.
 */
void
dgen_ready_stop_calls(Oid database, Oid owner, DgenPoolKind kind, int32 module_id, int64 hash)
{
	DgenPool   *pool = lock_pool(database, owner, kind, false);
	int			i;

	if (pool == NULL)
		return;
	i = find_entry(pool, module_id, hash);
	/* by their ids: to look at the calls might map memory, which can fail */
	if (i != DGEN_NONE)
		pg_atomic_write_u64(&ready->entries[i].stopped_id,
							pg_atomic_read_u64(&dgen_shared->next_call_id));
	unlock_pool(pool);
}

/*
 * Which calls of an entry that the caller has in hand were issued before its
 * server was stopped?  To be asked under the lease, which whoever stops a server
 * lets go of after he has said so; when the entry was taken he may not have.
 */
uint64
dgen_ready_stopped(const DgenTaken *taken)
{
	return pg_atomic_read_u64(&ready->entries[taken->entry].stopped_id);
}

/* ---------------------------------------------------------------- workers */

/*
 * Take up to max ready servers of one module: the one that has waited
 * longest, and others of its module close behind it.  Without allow_slow,
 * modules whose activations outlast a batch's budget are passed over, so that
 * one worker of a database stays free for quick ones.  Long work is taken one
 * by one.
 */
int
dgen_ready_take(int poolno, bool allow_slow, int max, DgenTaken *taken, int32 *module_id)
{
	DgenPool   *pool = &dgen_shared->pools[poolno];
	int			n = 0;
	int			prev = DGEN_NONE;
	int			seen = 0;

	LWLockAcquire(&pool->lock, LW_EXCLUSIVE);
	if (pool->kind == DGEN_POOL_LONG)
		max = 1;
	for (int i = pool->nready > 0 ? pool->head : DGEN_NONE, next;
		 i != DGEN_NONE && n < max && seen < 4 * max; i = next, seen++)
	{
		DgenReady  *entry = &ready->entries[i];

		next = entry->next;
		if (n > 0 ? entry->module_id != *module_id :
			!allow_slow && dgen_pace_is_slow(pool->database, entry->module_id))
		{
			prev = i;
			continue;
		}
		if (n == 0)
		{
			/* no more than its pace lets into a batch */
			uint32		pace = dgen_pace_get(pool->database, entry->module_id);

			*module_id = entry->module_id;
			if (pace > 0)
				max = Min(max, Max(1, DGEN_BATCH_USECS / pace));
		}
		unlink_queued(pool, prev, i);
		entry->state = DGEN_READY_RUNNING;
		taken[n].entry = i;
		taken[n].hash = entry->hash;
		taken[n].calls = entry->calls;
		taken[n].last_call = entry->last_call;
		taken[n].deferrals = entry->deferrals;
		entry->calls = entry->last_call = InvalidDsaPointer;
		n++;
	}
	/* what is left wants another worker */
	if (pool->nready > 0 && n > 0)
		wake_worker(pool);
	unlock_pool(pool);
	return n;
}

/*
 * Give one back.  taken->calls are those not yet answered; they go before
 * calls that came meanwhile.  more: there is work to do now.  park_until: if
 * not 0, there will be then (DT_NOEND: when it is rung), unless it was rung
 * meanwhile.
 */
void
dgen_ready_give_back(int poolno, DgenTaken *taken, bool more, TimestampTz park_until)
{
	DgenPool   *pool = &dgen_shared->pools[poolno];
	DgenReady  *entry = &ready->entries[taken->entry];

	LWLockAcquire(&pool->lock, LW_EXCLUSIVE);
	if (taken->calls != InvalidDsaPointer)
	{
		if (entry->calls == InvalidDsaPointer)
			entry->last_call = taken->last_call;
		else
			call_at(taken->last_call)->next = entry->calls;
		entry->calls = taken->calls;
	}
	entry->deferrals = taken->deferrals;
	if (more || entry->again)
	{
		enqueue(pool, taken->entry);
		wake_worker(pool);
	}
	else if (park_until != 0 &&
			 (entry->calls != InvalidDsaPointer || park_until != DT_NOEND))
	{
		park(pool, taken->entry, park_until);
		/* this worker may leave, or take what keeps it */
		if (park_until != DT_NOEND)
			watch_parked(pool);
	}
	else if (entry->calls != InvalidDsaPointer)
	{
		enqueue(pool, taken->entry);
		wake_worker(pool);
	}
	else
		free_entry(pool, taken->entry);
	unlock_pool(pool);
}

/* Is there one that somebody has in hand, or waits for? */
static bool
is_awaited(DgenPool *pool)
{
	for (int b = 0; b < NBUCKETS; b++)
	{
		for (int i = pool->buckets[b]; i != DGEN_NONE; i = ready->entries[i].bucket_next)
		{
			if (ready->entries[i].state == DGEN_READY_RUNNING ||
				ready->entries[i].calls != InvalidDsaPointer)
				return true;
		}
	}
	return false;
}

/*
 * The pool's database is gone, and what waited there with it.  Caller holds
 * dgen_shared->lock exclusively, and the pool's.
 */
void
dgen_ready_forget(int poolno)
{
	DgenPool   *pool = &dgen_shared->pools[poolno];

	if (pool->nworkers > 0 || is_awaited(pool))
		return;
	for (int b = 0; b < NBUCKETS; b++)
	{
		while (pool->buckets[b] != DGEN_NONE)
			free_entry(pool, pool->buckets[b]);
	}
	pool->head = pool->tail = pool->parked = DGEN_NONE;
	pool->nready = 0;
	pool->used = false;
}

/* Queue what was parked until now.  Caller holds the pool's lock. */
void
dgen_ready_queue_due(DgenPool *pool, TimestampTz now)
{
	if (pool->park_due > now)
		return;
	pool->park_due = DT_NOEND;
	for (int i = pool->parked, next; i != DGEN_NONE; i = next)
	{
		next = ready->entries[i].next;
		if (ready->entries[i].park_until <= now)
		{
			unpark(pool, i);
			enqueue(pool, i);
		}
		else
			pool->park_due = Min(pool->park_due, ready->entries[i].park_until);
	}
}

/* The same; returns when the next one is due. */
TimestampTz
dgen_ready_unpark(int poolno, TimestampTz now)
{
	DgenPool   *pool = &dgen_shared->pools[poolno];
	TimestampTz due;

	if (pool->park_due > now)
		return pool->park_due;
	LWLockAcquire(&pool->lock, LW_EXCLUSIVE);
	dgen_ready_queue_due(pool, now);
	due = pool->park_due;
	unlock_pool(pool);
	return due;
}

/*
 * The module's part of the queue is used up: there may be what found no room.
 * The pool's lock is not held, as the database's entry may want dgen_shared->lock.
 */
static void
ask_for_rest(DgenPool *pool)
{
	DgenDatabase *db = dgen_database(MyDatabaseId, false);
	bool		wanted;

	if (db == NULL)
		return;
	LWLockAcquire(&pool->lock, LW_EXCLUSIVE);
	wanted = pool->overflow && pool->nready == 0;
	if (wanted)
		pool->overflow = false;
	unlock_pool(pool);
	if (!wanted)
		return;
	pg_atomic_write_u32(&db->resweep, 1);
	dgen_wake_keeper(MyDatabaseId, GetCurrentTimestamp());
}

int
dgen_ready_take_external(int32 module_id, DgenTaken *taken)
{
	DgenPool   *pool = lock_pool(MyDatabaseId, (Oid) module_id, DGEN_POOL_EXTERNAL, false);
	int			poolno;
	int32		its_module;

	if (pool == NULL)
		return DGEN_NONE;
	unlock_pool(pool);
	ask_for_rest(pool);
	poolno = pool - dgen_shared->pools;
	(void) dgen_ready_unpark(poolno, GetCurrentTimestamp());
	if (dgen_ready_take(poolno, true, 1, taken, &its_module) == 0)
		return DGEN_NONE;
	/* what is in hand keeps the pool whose it is */
	if (is_pool(pool, MyDatabaseId, (Oid) module_id, DGEN_POOL_EXTERNAL))
		return poolno;
	/* the pool has become another's */
	dgen_ready_give_back(poolno, taken, true, 0);
	return DGEN_NONE;
}

bool
dgen_ready_external(int32 module_id, TimestampTz now, TimestampTz *due)
{
	DgenPool   *pool = lock_pool(MyDatabaseId, (Oid) module_id, DGEN_POOL_EXTERNAL, false);

	*due = DT_NOEND;
	if (pool == NULL)
		return false;
	unlock_pool(pool);
	ask_for_rest(pool);
	*due = dgen_ready_unpark(pool - dgen_shared->pools, now);
	return pool->nready > 0;
}

/*
 * Queue all parked servers of a module, which may be served again.
 */
void
dgen_ready_ring_module(Oid database, Oid owner, int32 module_id)
{
	for (int p = 0; p < DGEN_MAX_POOLS; p++)
	{
		DgenPool   *pool = &dgen_shared->pools[p];

		LWLockAcquire(&pool->lock, LW_EXCLUSIVE);
		for (int i = pool->used && pool->database == database &&
			 pool->owner == (pool->kind == DGEN_POOL_EXTERNAL ? (Oid) module_id : owner) ?
			 pool->parked : DGEN_NONE, next; i != DGEN_NONE; i = next)
		{
			next = ready->entries[i].next;
			if (abs(ready->entries[i].module_id) == module_id)
				ring_entry(pool, i);
		}
		unlock_pool(pool);
	}
}

/* ---------------------------------------------------------------- views */

/* Collect the calls of one pool, whose lock the caller holds. */
static void
collect_calls(DgenPool *pool, DgenCalls *calls)
{
	for (int b = 0; b < NBUCKETS; b++)
	{
		for (int i = pool->buckets[b]; i != DGEN_NONE; i = ready->entries[i].bucket_next)
		{
			for (dsa_pointer p = ready->entries[i].calls; p != InvalidDsaPointer;
				 p = call_at(p)->next)
			{
				calls->found++;
				if (calls->n == calls->size)
					continue;
				pg_atomic_fetch_add_u32(&call_at(p)->refs, 1);
				calls->calls[calls->n++] = p;
			}
		}
	}
}

/*
 * The calls of a database that no worker has taken yet, each with a reference
 * that the caller lets go of, also when this raises an error.  What does not
 * fit into calls->size is counted only.
 */
void
dgen_ready_calls(Oid database, DgenCalls *calls)
{
	calls->n = calls->found = 0;
	(void) dgen_dsa();			/* attaches: not under a lock */
	for (int p = 0; p < DGEN_MAX_POOLS; p++)
	{
		DgenPool   *pool = &dgen_shared->pools[p];

		LWLockAcquire(&pool->lock, LW_SHARED);
		if (pool->used && pool->database == database)
			collect_calls(pool, calls);
		unlock_pool(pool);
	}
}
