/*-------------------------------------------------------------------------
 *
 * mark.c
 *	  Message ids, the lower bounds that senders publish, and low-water marks.
 *
 * A mailbox is scanned from its low-water mark, so that the dead rows of what
 * was handled (which an old snapshot may keep for hours) cost nothing.  A mark
 * may never pass an id that can still appear, and ids appear in the order of
 * commits, not of draws.  Therefore:
 *
 *	  A sender publishes, for each server it sends to, a lower bound (the last
 *	  id drawn) before it draws an id, and takes it back when its transaction
 *	  has become visible or has aborted.  After 16 servers it publishes one
 *	  bound for all.
 *
 *	  A worker reads the last id drawn, L, then the published bounds, and only
 *	  then takes the snapshot of its cut.  An id that is not in the cut is
 *	  either above L (drawn later), or above a bound that it has seen.  So a
 *	  mark may go up to the lowest of L + 1, the bounds + 1, and what the worker
 *	  left in the mailbox.
 *
 * A prepared transaction keeps one bound under its xid until it ends; after a
 * restart the keeper publishes 0 for those it finds, and until it has, no
 * mark moves.  A message that comes back under its own id (due, requeued)
 * publishes that and lowers the mark, whose generation then keeps a worker
 * from putting the mark up again that read it, and then the bounds and its
 * cut, before.
 *
 * Marks are a table of fixed size in which two servers may share a place: the
 * loser scans from the start, once.
 *
 * Ids are drawn from a block in shared memory; the sequence, which gives the
 * blocks, is WAL-logged, so no id is drawn twice after a crash.
 *
 * Locks: a spinlock for each publisher and each mark, one for ids, and an
 * LWLock for prepared transactions.  Publishing and clearing raise nothing.
 *
 *-------------------------------------------------------------------------
 */
#include "dgen.h"

#include "access/htup_details.h"
#include "access/relation.h"
#include "access/transam.h"
#include "access/twophase.h"
#include "access/xact.h"
#include "commands/sequence.h"
#include "storage/bufmgr.h"
#include "storage/proc.h"
#include "storage/procarray.h"
#include "storage/shmem.h"
#include "storage/spin.h"
#include "utils/rel.h"

#define NTARGETS 16
#define NMARKS 16384
#define ID_BLOCK 65536			/* the INCREMENT of dgen.message_id */

typedef struct Publisher
{
	slock_t		lock;
	int			n;				/* targets; > NTARGETS: all_bound holds for any */
	Oid			database;
	int64		all_bound;
	int64		hashes[NTARGETS];
	int64		bounds[NTARGETS];
} Publisher;

typedef struct Prepared
{
	TransactionId xid;			/* InvalidTransactionId: free */
	Oid			database;
	int64		bound;
} Prepared;

typedef struct Mark
{
	slock_t		lock;
	uint32		generation;		/* grows whenever a mark here is lowered */
	Oid			database;
	int64		hash;
	int64		mark;
	int64		length;			/* of the mailbox, an estimate */
	bool		length_known;	/* it was counted, not begun at 0 */
} Mark;

typedef struct MarkShared
{
	LWLock		prepared_lock;
	int			nprepared;
	uint64		prepared_ended; /* how many have */
	int			npublishers;
	Mark		marks[NMARKS];
	Prepared   *prepared;		/* both point behind the struct; the segment */
	Publisher  *publishers;		/* is mapped at one address in all processes */
} MarkShared;

struct DgenBounds
{
	int64		last_sent;		/* the last id drawn for a message */
	int64		limit;			/* for every server */
	int			n;
	int			size;
	int64	   *hashes;
	int64	   *limits;
};

static MarkShared *shared;

static int
publisher_count(void)
{
	return MaxBackends + NUM_AUXILIARY_PROCS + max_prepared_xacts;
}

Size
dgen_mark_size(void)
{
	Size		size = MAXALIGN(sizeof(MarkShared));

	size = add_size(size, mul_size(max_prepared_xacts, sizeof(Prepared)));
	return add_size(size, mul_size(publisher_count(), sizeof(Publisher)));
}

void
dgen_mark_init(void *place, bool found)
{
	shared = place;
	if (found)
		return;
	memset(place, 0, dgen_mark_size());
	LWLockInitialize(&shared->prepared_lock, dgen_shared->tranche);
	shared->nprepared = max_prepared_xacts;
	shared->npublishers = publisher_count();
	shared->prepared = (Prepared *) ((char *) place + MAXALIGN(sizeof(MarkShared)));
	shared->publishers = (Publisher *) (shared->prepared + shared->nprepared);
	for (int i = 0; i < NMARKS; i++)
		SpinLockInit(&shared->marks[i].lock);
	for (int i = 0; i < shared->npublishers; i++)
		SpinLockInit(&shared->publishers[i].lock);
}

/* ---------------------------------------------------------------- ids */

static DgenDatabase *
my_database(void)
{
	DgenDatabase *db = dgen_database(MyDatabaseId, true);

	if (db == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("too many databases use dgen"),
				 errdetail("At most %d databases of a cluster can.", DGEN_MAX_DATABASES)));
	return db;
}

/*
 * Reserve the next block.  Two processes that do so at once reserve two
 * blocks, and the lower one is left unused.
 */
static void
reserve_block(DgenDatabase *db)
{
	int64		last = nextval_internal(dgen_sequence_oid("message_id"), false);

	SpinLockAcquire(&db->id_lock);
	/* the first block since the start: all that there is has lower ids */
	if (db->next_id == 0)
		db->last_sent = last - ID_BLOCK;
	if (last > db->id_limit)
	{
		db->next_id = Max(db->next_id, last - ID_BLOCK + 1);
		db->id_limit = last;
	}
	SpinLockRelease(&db->id_lock);
}

/* Draw the next id; its bound must be published before. */
int64
dgen_draw_id(void)
{
	DgenDatabase *db = my_database();

	for (;;)
	{
		int64		id = 0;

		SpinLockAcquire(&db->id_lock);
		if (db->next_id != 0 && db->next_id <= db->id_limit)
			id = db->last_sent = db->next_id++;
		SpinLockRelease(&db->id_lock);
		if (id != 0)
			return id;
		reserve_block(db);
	}
}

/* The last id drawn by anybody. */
int64
dgen_last_message_id(void)
{
	DgenDatabase *db = my_database();
	int64		next;

	for (;;)
	{
		SpinLockAcquire(&db->id_lock);
		next = db->next_id;
		SpinLockRelease(&db->id_lock);
		if (next != 0)
			return next - 1;
		reserve_block(db);
	}
}

/*
 * The place of a call: an id of its own, under which it is kept if it becomes a
 * message.  Where none is reserved it is the last one drawn, or the end of the
 * last block: to reserve a new one would make the caller look like one who has
 * written.
 */
int64
dgen_call_place(bool *is_id)
{
	DgenDatabase *db = my_database();
	int64		next;
	Relation	seq;
	Buffer		buffer;
	HeapTupleData tuple;

	SpinLockAcquire(&db->id_lock);
	next = db->next_id;
	*is_id = next != 0 && next <= db->id_limit;
	if (*is_id)
		db->next_id++;
	SpinLockRelease(&db->id_lock);
	if (next != 0)
		return *is_id ? next : next - 1;

	seq = relation_open(dgen_sequence_oid("message_id"), NoLock);
	buffer = ReadBuffer(seq, 0);
	LockBuffer(buffer, BUFFER_LOCK_SHARE);
	tuple.t_data = (HeapTupleHeader) PageGetItem(BufferGetPage(buffer),
												 PageGetItemId(BufferGetPage(buffer),
															   FirstOffsetNumber));
	next = ((Form_pg_sequence_data) GETSTRUCT(&tuple))->last_value;
	UnlockReleaseBuffer(buffer);
	relation_close(seq, NoLock);
	return next;
}

/*
 * Keep half a block in hand, so that the keeper, and not a client, calls
 * nextval: a client's lastval() is its own business.
 */
void
dgen_reserve_ids(void)
{
	DgenDatabase *db = my_database();
	bool		low;

	SpinLockAcquire(&db->id_lock);
	low = db->id_limit - db->next_id < ID_BLOCK / 2;
	SpinLockRelease(&db->id_lock);
	if (low)
		reserve_block(db);
}

/* CREATE EXTENSION has made a new sequence: blocks of the old one are void, and marks. */
void
dgen_forget_ids(void)
{
	DgenDatabase *db = my_database();

	SpinLockAcquire(&db->id_lock);
	db->next_id = db->id_limit = db->last_sent = 0;
	SpinLockRelease(&db->id_lock);
	for (int i = 0; i < NMARKS; i++)
	{
		Mark	   *m = &shared->marks[i];

		SpinLockAcquire(&m->lock);
		m->generation++;
		if (m->database == MyDatabaseId)
			m->hash = m->mark = 0;
		SpinLockRelease(&m->lock);
	}
}

/* ---------------------------------------------------------------- bounds */

/*
 * Publish that this transaction will send ids above bound to a server.
 * A bound that stands already is lower, and enough.
 */
void
dgen_bound_publish(int64 hash, int64 bound)
{
	Publisher  *me = &shared->publishers[MyProcIndex];

	SpinLockAcquire(&me->lock);
	me->database = MyDatabaseId;
	if (me->n > NTARGETS)
		me->all_bound = Min(me->all_bound, bound);
	else
	{
		int			i = 0;

		while (i < me->n && me->hashes[i] != hash)
			i++;
		if (i < me->n)
			me->bounds[i] = Min(me->bounds[i], bound);
		else if (i < NTARGETS)
		{
			me->hashes[i] = hash;
			me->bounds[i] = bound;
			me->n++;
		}
		else
		{
			me->all_bound = bound;
			for (i = 0; i < NTARGETS; i++)
				me->all_bound = Min(me->all_bound, me->bounds[i]);
			me->n = NTARGETS + 1;
		}
	}
	SpinLockRelease(&me->lock);
	/* the id is drawn after this is seen by all */
	pg_memory_barrier();
}

void
dgen_bound_clear(void)
{
	Publisher  *me = &shared->publishers[MyProcIndex];

	if (me->n == 0)
		return;
	SpinLockAcquire(&me->lock);
	me->n = 0;
	SpinLockRelease(&me->lock);
}

/* Under the lock: those that have ended need no place. */
static void
forget_ended(TransactionId but)
{
	for (int i = 0; i < shared->nprepared; i++)
	{
		Prepared   *p = &shared->prepared[i];

		if (TransactionIdIsValid(p->xid) && p->xid != but &&
			!TransactionIdIsInProgress(p->xid))
		{
			p->xid = InvalidTransactionId;
			shared->prepared_ended++;
		}
	}
}

static void
add_prepared(Oid database, TransactionId xid, int64 bound)
{
	int			free = -1;

	LWLockAcquire(&shared->prepared_lock, LW_EXCLUSIVE);
	forget_ended(xid);
	for (int i = 0; i < shared->nprepared; i++)
	{
		Prepared   *p = &shared->prepared[i];

		if (p->xid == xid || (free < 0 && !TransactionIdIsValid(p->xid)))
			free = i;
	}
	/* there are as many places as transactions can be prepared */
	if (free >= 0)
	{
		shared->prepared[free].database = database;
		shared->prepared[free].bound = bound;
		shared->prepared[free].xid = xid;
	}
	LWLockRelease(&shared->prepared_lock);
}

/* Before PREPARE TRANSACTION: the bounds go over to the prepared xid. */
void
dgen_bound_prepare(TransactionId xid)
{
	Publisher  *me = &shared->publishers[MyProcIndex];
	int64		bound = me->n > NTARGETS ? me->all_bound : PG_INT64_MAX;

	for (int i = 0; i < Min(me->n, NTARGETS); i++)
		bound = Min(bound, me->bounds[i]);
	if (me->n > 0)
		add_prepared(MyDatabaseId, xid, bound);
}

/* The keeper, once after a restart, for each prepared transaction that it finds. */
void
dgen_bound_add_prepared(Oid database, TransactionId xid)
{
	add_prepared(database, xid, 0);
}

/*
 * How many prepared transactions have ended, of all databases: what they sent is
 * visible to a later snapshot, and nobody has rung.  Needs a transaction.
 */
uint64
dgen_bound_prepared_ended(void)
{
	uint64		ended;

	if (shared->nprepared == 0)
		return 0;
	LWLockAcquire(&shared->prepared_lock, LW_EXCLUSIVE);
	forget_ended(InvalidTransactionId);
	ended = shared->prepared_ended;
	LWLockRelease(&shared->prepared_lock);
	return ended;
}

static int64
prepared_limit(void)
{
	int64		limit = PG_INT64_MAX;

	LWLockAcquire(&shared->prepared_lock, LW_SHARED);
	for (int i = 0; i < shared->nprepared; i++)
	{
		Prepared   *p = &shared->prepared[i];

		if (TransactionIdIsValid(p->xid) && p->database == MyDatabaseId &&
			TransactionIdIsInProgress(p->xid))
			limit = Min(limit, p->bound + 1);
	}
	LWLockRelease(&shared->prepared_lock);
	return limit;
}

static void
add_limit(DgenBounds *b, int64 hash, int64 limit)
{
	if (b->n == b->size)
	{
		b->size *= 2;
		b->hashes = repalloc(b->hashes, b->size * sizeof(int64));
		b->limits = repalloc(b->limits, b->size * sizeof(int64));
	}
	b->hashes[b->n] = hash;
	b->limits[b->n] = limit;
	b->n++;
}

/*
 * Read what is published, before the snapshot of a cut is taken.  Palloc'd.
 * Needs a transaction.
 */
DgenBounds *
dgen_bounds_read(void)
{
	DgenBounds *b = palloc(sizeof(DgenBounds));
	DgenDatabase *db = my_database();

	b->n = 0;
	b->size = 64;
	b->hashes = palloc(b->size * sizeof(int64));
	b->limits = palloc(b->size * sizeof(int64));

	b->limit = dgen_last_message_id() + 1;
	SpinLockAcquire(&db->id_lock);
	b->last_sent = db->last_sent;
	SpinLockRelease(&db->id_lock);
	pg_memory_barrier();
	for (int i = 0; i < shared->npublishers; i++)
	{
		Publisher  *p = &shared->publishers[i];
		Publisher	copy;

		if (*(volatile int *) &p->n == 0)
			continue;
		SpinLockAcquire(&p->lock);
		copy = *p;
		SpinLockRelease(&p->lock);
		if (copy.database != MyDatabaseId)
			continue;
		if (copy.n > NTARGETS)
			b->limit = Min(b->limit, copy.all_bound + 1);
		else
			for (int j = 0; j < copy.n; j++)
				add_limit(b, copy.hashes[j], copy.bounds[j] + 1);
	}
	if (shared->nprepared > 0)
	{
		if (pg_atomic_read_u32(&db->prepared_known) == 0)
			b->limit = 0;
		b->limit = Min(b->limit, prepared_limit());
	}
	pg_memory_barrier();
	return b;
}

/*
 * The last id that a message had before the cut, whatever calls have drawn;
 * what is above it comes later, and rings.
 */
int64
dgen_bounds_last_sent(DgenBounds *bounds)
{
	return bounds->last_sent;
}

/*
 * No id below this may still appear in the mailbox of a server (hash 0: of
 * any server).
 */
int64
dgen_bounds_limit(DgenBounds *bounds, int64 hash)
{
	int64		limit = bounds->limit;

	for (int i = 0; i < bounds->n; i++)
	{
		if (hash == 0 || bounds->hashes[i] == hash)
			limit = Min(limit, bounds->limits[i]);
	}
	return limit;
}

/* ---------------------------------------------------------------- marks */

static Mark *
mark_of(int64 hash)
{
	return &shared->marks[((uint64) hash ^ MyDatabaseId) % NMARKS];
}

static void
occupy(Mark *m, int64 hash)
{
	if (m->hash == hash && m->database == MyDatabaseId)
		return;
	m->database = MyDatabaseId;
	m->hash = hash;
	m->mark = 0;
	m->length = 0;
	m->length_known = false;
}

/* The mark of a server, 0 if it is not known; read before its cut. */
int64
dgen_mark_get(int64 hash, uint32 *generation)
{
	Mark	   *m = mark_of(hash);
	int64		mark = 0;

	SpinLockAcquire(&m->lock);
	*generation = m->generation;
	if (m->hash == hash && m->database == MyDatabaseId)
		mark = m->mark;
	SpinLockRelease(&m->lock);
	return mark;
}

/* Put a mark up, unless one here was lowered since it was read. */
void
dgen_mark_advance(int64 hash, int64 mark, uint32 generation)
{
	Mark	   *m = mark_of(hash);

	SpinLockAcquire(&m->lock);
	if (m->generation == generation)
	{
		occupy(m, hash);
		m->mark = mark;
	}
	SpinLockRelease(&m->lock);
}

/*
 * Put a mark down, because a message comes back under the id mark.  The
 * sender must have published mark - 1 before, and until it is visible.
 */
void
dgen_mark_lower(int64 hash, int64 mark)
{
	Mark	   *m = mark_of(hash);
	DgenDatabase *db = my_database();

	/* before the mark: its id may be one that a call has drawn */
	SpinLockAcquire(&db->id_lock);
	db->last_sent = Max(db->last_sent, mark);
	SpinLockRelease(&db->id_lock);

	SpinLockAcquire(&m->lock);
	m->generation++;
	if (m->hash == hash && m->database == MyDatabaseId && m->mark > mark)
		m->mark = mark;
	SpinLockRelease(&m->lock);
}

/*
 * Add to the estimate of a mailbox's length.  It counts what is sent and
 * handled, so aborted sends make it too high: who finds it at a limit counts
 * the rows, and sets it.
 */
int64
dgen_length_add(int64 hash, int64 delta, bool *known)
{
	Mark	   *m = mark_of(hash);
	int64		length;

	SpinLockAcquire(&m->lock);
	occupy(m, hash);
	m->length = Max(m->length + delta, 0);
	length = m->length;
	*known = m->length_known;
	SpinLockRelease(&m->lock);
	return length;
}

void
dgen_length_set(int64 hash, int64 length)
{
	Mark	   *m = mark_of(hash);

	SpinLockAcquire(&m->lock);
	occupy(m, hash);
	m->length = length;
	m->length_known = true;
	SpinLockRelease(&m->lock);
}

/* The longest mailboxes of this database, in no order. */
int
dgen_lengths_longest(DgenLength *lengths, int max)
{
	int			n = 0;

	for (int i = 0; i < NMARKS; i++)
	{
		Mark	   *m = &shared->marks[i];
		int			least = 0;
		DgenLength	one;

		/* most are of mailboxes that are empty: without the lock */
		if (*(volatile int64 *) &m->length == 0)
			continue;
		SpinLockAcquire(&m->lock);
		one.hash = m->database == MyDatabaseId ? m->hash : 0;
		one.length = m->length;
		SpinLockRelease(&m->lock);
		if (one.hash == 0 || one.length == 0)
			continue;
		if (n < max)
		{
			lengths[n++] = one;
			continue;
		}
		for (int j = 1; j < n; j++)
		{
			if (lengths[j].length < lengths[least].length)
				least = j;
		}
		if (lengths[least].length < one.length)
			lengths[least] = one;
	}
	return n;
}
