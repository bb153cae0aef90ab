/*-------------------------------------------------------------------------
 *
 * cut.c
 *	  The cut of a batch: leases, then the mailboxes and rows of their servers
 *	  in one snapshot, before the transaction has its own.
 *
 * The snapshot is a catalog snapshot: MVCC, so that a sender's messages appear
 * all or none, but not the transaction's, so that no predicate lock is taken
 * on dgen's tables.  Nothing joins a batch later: the transaction's snapshot
 * is newer than the cut, and so shows every handler all that was committed
 * before its message was sent.
 *
 * Within a server, messages stand in lanes by priority, and a call stands in
 * the normal lane behind the last id that was drawn when it was issued.  Of
 * ten activations of a server, seven are of the highest waiting lane, two of
 * the next and one of the last, so no lane starves.
 *
 *-------------------------------------------------------------------------
 */
#include "batch.h"

#include "access/skey.h"
#include "common/pg_prng.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#define NORMAL_LANE 1
static const int16 lane_priority[DGEN_NLANES] = {1, 0, -1};

/* whose turn it is, of ten, among all three lanes */
static const int turns[10] = {0, 0, 1, 0, 0, 2, 0, 1, 0, 0};

/*
 * The waiting messages of one lane, read one by one: what is passed over, or
 * stays behind one that must wait, takes no room in the batch.
 */
typedef struct Lane
{
	DgenScan   *scan;			/* NULL: there are no more */
	DgenMessage *next;			/* the next one, if it has been read */
	int64		low;			/* no unread one has a lower id */
	bool		blocked;		/* the next one may not run now */
} Lane;

typedef struct FailedMessage
{
	int64		id;
	TimestampTz next_at;
	bool		lost;			/* with its worker, the last time */
} FailedMessage;

/* ---------------------------------------------------------------- leases */

static int
compare_int64(const void *a, const void *b)
{
	int64		x = *(const int64 *) a;
	int64		y = *(const int64 *) b;

	return (x > y) - (x < y);
}

/*
 * After a conflict: take all leases that the failed try took, in one order,
 * waiting, so that two such activations queue up instead of failing each
 * other for ever.
 */
static void
take_touched(Batch *b)
{
	int64		hashes[DGEN_MAX_BATCH];
	int			n = 0;

	for (int i = 0; i < b->ntouched; i++)
		hashes[n++] = b->touched[i];
	for (int i = 0; i < b->nleases && n < DGEN_MAX_BATCH; i++)
	{
		if (!b->leases[i].gone)
			hashes[n++] = b->leases[i].taken->hash;
	}
	qsort(hashes, n, sizeof(int64), compare_int64);
	for (int i = 0; i < n; i++)
		(void) dgen_lease_take(hashes[i], true);
}

/*
 * Take one lease, or put the server off: first for a millisecond, then up to
 * a tenth of a second.  Its holder rings it when it has let go, too.
 */
static bool
take_lease(BatchLease *lease)
{
	int64		delay;

	if (dgen_lease_take(lease->taken->hash, false))
	{
		lease->taken->deferrals = 0;
		return lease->held = true;
	}
	delay = INT64CONST(1000) << Min(lease->taken->deferrals++, 6);
	lease->park_until = GetCurrentTimestamp() + Min(delay, 100000);
	return false;
}

/* ---------------------------------------------------------------- reading */

static int
compare_failed(const ListCell *a, const ListCell *b)
{
	int64		x = ((FailedMessage *) lfirst(a))->id;
	int64		y = ((FailedMessage *) lfirst(b))->id;

	return (x > y) - (x < y);
}

/* Which messages of a server have failed before, in order of their ids. */
static List *
read_failed(Batch *b, DgenServer *server, Snapshot snapshot)
{
	List	   *failed = NIL;
	ScanKeyData key;
	DgenScan   *scan;
	HeapTuple	tuple;

	if (!server->failing)
		return NIL;
	dgen_key_text(&key, 1, server->address);
	scan = dgen_scan_begin(b->attempts, DGEN_I_ATTEMPT_SERVER, snapshot, 1, &key);
	while ((tuple = dgen_scan_next(scan)) != NULL)
	{
		FailedMessage *f = palloc(sizeof(FailedMessage));
		TupleDesc	desc = RelationGetDescr(b->attempts->rel);
		bool		isnull;

		f->id = DatumGetInt64(heap_getattr(tuple, 1, desc, &isnull));
		f->next_at = DatumGetTimestampTz(heap_getattr(tuple, 5, desc, &isnull));
		f->lost = strcmp(TextDatumGetCString(heap_getattr(tuple, 7, desc, &isnull)),
						 unpack_sql_state(ERRCODE_DGEN_WORKER_LOST)) == 0;
		failed = lappend(failed, f);
		CHECK_FOR_INTERRUPTS();
	}
	dgen_scan_end(scan);
	list_sort(failed, compare_failed);
	return failed;
}

static FailedMessage *
find_failed(List *failed, int64 id)
{
	int			low = 0;
	int			high = list_length(failed);

	while (low < high)
	{
		int			middle = (low + high) / 2;
		FailedMessage *f = list_nth(failed, middle);

		if (f->id == id)
			return f;
		if (f->id < id)
			low = middle + 1;
		else
			high = middle;
	}
	return NULL;
}

/*
 * A stream of effects has no row, and needs none: whether one failed is looked
 * up each time.
 */
static DgenServer *
stand_in(Batch *b, int lease, const char *name)
{
	DgenServer *server = palloc0(sizeof(DgenServer));

	server->address = pstrdup(name);
	server->hash = b->leases[lease].taken->hash;
	server->failing = true;
	return server;
}

static int
find_server(Batch *b, int lease, const char *address, Snapshot snapshot)
{
	int			i;

	for (i = b->nservers - 1; i >= 0 && b->servers[i].lease == lease; i--)
	{
		if (strcmp(b->servers[i].server->address, address) == 0)
			return i;
	}
	if (b->nservers == DGEN_MAX_BATCH)
		return -1;
	i = b->nservers++;
	b->servers[i].lease = lease;
	b->servers[i].blocked = false;
	b->servers[i].continued = 0;
	b->servers[i].server = b->effects ? stand_in(b, lease, address) :
		dgen_server_read(b->server_rows, address, b->leases[lease].taken->hash, snapshot);
	b->servers[i].failed = read_failed(b, b->servers[i].server, snapshot);
	return i;
}

static void
open_lane(Batch *b, BatchLease *lease, int lane_no, Snapshot snapshot, Lane *lane)
{
	ScanKeyData keys[3];

	memset(lane, 0, sizeof(Lane));
	lane->low = lease->mark;
	/* nothing lives below the mark, and what is drawn from now on rings again */
	if (lease->mark > dgen_bounds_last_sent(b->bounds))
		return;
	dgen_key_int8(&keys[0], 1, lease->taken->hash, BTEqualStrategyNumber);
	dgen_key_int2(&keys[1], 2, lane_priority[lane_no]);
	dgen_key_int8(&keys[2], 3, lease->mark, BTGreaterEqualStrategyNumber);
	lane->scan = dgen_scan_begin(b->messages, DGEN_I_MESSAGE_MAILBOX, snapshot, 3, keys);
}

/* The next message of a lane, which stays there; NULL: there is none. */
static DgenMessage *
peek(Batch *b, Lane *lane)
{
	HeapTuple	tuple;

	if (lane->next != NULL || lane->scan == NULL)
		return lane->next;
	CHECK_FOR_INTERRUPTS();
	tuple = dgen_scan_next(lane->scan);
	if (tuple == NULL)
	{
		dgen_scan_end(lane->scan);
		lane->scan = NULL;
		return NULL;
	}
	lane->next = palloc(sizeof(DgenMessage));
	dgen_message_deform(tuple, RelationGetDescr(b->messages->rel), 0, lane->next);
	lane->low = lane->next->id + 1;
	return lane->next;
}

/* It was passed over: there may be many such, and they may be large. */
static void
drop_next(Lane *lane)
{
	if (lane->next->context != NULL)
		pfree(lane->next->context);
	pfree(lane->next->message);
	pfree(lane->next);
	lane->next = NULL;
}

/* What is left in a lane bounds the mark. */
static void
close_lane(BatchLease *lease, Lane *lane)
{
	if (lane->scan == NULL)
		return;
	lease->low = Min(lease->low, lane->next != NULL ? lane->next->id : lane->low);
	dgen_scan_end(lane->scan);
}

/* ---------------------------------------------------------------- planning */

static bool
is_wanted(Batch *b, bool is_call, int64 id)
{
	if (b->mode == BATCH_ALL)
		return true;
	for (int i = 0; i < b->nonly; i++)
	{
		if (b->only[i].is_call == is_call && b->only[i].id == id)
			return true;
	}
	return false;
}

/* The first call of a lease that has not been planned; -1: none. */
static int
next_call(Batch *b, int lease, int after)
{
	for (int i = after + 1; i < b->ncalls; i++)
	{
		if (b->calls[i].lease == lease && !b->calls[i].answered)
			return i;
	}
	return -1;
}

static bool
is_full(Batch *b)
{
	return b->nitems >= b->max_items || b->bytes > DGEN_BATCH_BYTES;
}

/* Add an item; false if the batch can take no more. */
static bool
add_item(Batch *b, int lease, DgenMessage *msg, int call, int server, bool failed)
{
	BatchItem  *item = &b->items[b->nitems];

	if (is_full(b))
		return false;
	memset(item, 0, sizeof(BatchItem));
	item->lease = lease;
	item->server = server;
	item->msg = msg;
	item->call = call;
	item->failed = failed;
	b->nitems++;
	/* a call's request stays where it is, in shared memory */
	if (msg != NULL)
		b->bytes += VARSIZE(msg->message);
	return true;
}

/* Nothing more to do before then, unless rung; the earliest counts. */
static void
wait_until(BatchLease *lease, TimestampTz when)
{
	if (lease->park_until == 0 || when < lease->park_until)
		lease->park_until = when;
}

/*
 * A server of a supervision tree that is down runs nothing.  One that waits
 * for its restart is settled after the batch; the entry comes back by itself
 * if that fails.
 */
static void
note_down(Batch *b, BatchLease *lease, DgenServer *server)
{
	if (server->continue_id == 0)
		wait_until(lease, DT_NOEND);
	else if (b->settle[0] == '\0' || strcmp(b->settle, server->address) == 0)
	{
		strlcpy(b->settle, server->address, sizeof(b->settle));
		wait_until(lease, GetCurrentTimestamp() + INT64CONST(1000000));
	}
	else
		lease->more = true;
}

/*
 * Does the server run nothing now, or not this message (NULL: a call)?  Who
 * resumes it, restarts it, or ends its lock, rings it.
 */
static bool
must_wait(Batch *b, int leaseno, int server, DgenMessage *msg)
{
	DgenServer *s = b->servers[server].server;

	if (dgen_supervisor_holds(s, msg))
	{
		note_down(b, &b->leases[leaseno], s);
		return true;
	}
	if (!s->suspended && !dgen_lock_holds(s, msg))
		return false;
	wait_until(&b->leases[leaseno], DT_NOEND);
	if (s->lock_id != 0 && !s->suspended)
		dgen_lock_wake(b->module, s);
	return true;
}

/*
 * May this message run now?  One that has failed before runs alone, since it
 * would only fail its company again; so does a suspect, and nowhere at the same
 * time as another one that was lost with its worker.  Sets park_until for
 * what backs off, which is no obstacle to what is wanted if others may pass it.
 * A continue runs before what is wanted, and nothing passes it.
 */
typedef enum Verdict
{
	RUN_IT, PASS_OVER, STOP_LANE
} Verdict;

static Verdict
judge_message(Batch *b, BatchLease *lease, DgenMessage *msg, FailedMessage *f)
{
	bool		first = msg->kind == DGEN_KIND_CONTINUE;
	TimestampTz again;

	if (f != NULL && f->next_at > GetCurrentTimestamp())
	{
		wait_until(lease, f->next_at);
		return b->module->skip_failing && !first ? PASS_OVER : STOP_LANE;
	}
	if (!first && !is_wanted(b, false, msg->id))
	{
		lease->more = true;
		return STOP_LANE;
	}
	if ((f != NULL || dgen_hand_suspect(MyDatabaseId, msg->id)) && b->nitems > 0)
	{
		lease->more = true;
		return STOP_LANE;
	}
	if (f != NULL && f->lost && !dgen_hand_try(&again))
	{
		wait_until(lease, again);
		return b->module->skip_failing && !first ? PASS_OVER : STOP_LANE;
	}
	return RUN_IT;
}

/* Plan a message; false if the batch can take no more. */
static bool
add_message(Batch *b, int leaseno, DgenMessage *msg, int server, FailedMessage *f)
{
	if (!add_item(b, leaseno, msg, -1, server, f != NULL))
		return false;
	/* it runs alone */
	if (f != NULL || dgen_hand_suspect(MyDatabaseId, msg->id))
	{
		b->leases[leaseno].more = true;
		b->max_items = b->nitems;
	}
	return true;
}

static DgenMessage *
read_message(Batch *b, int64 id, Snapshot snapshot)
{
	DgenMessage *msg = NULL;
	ScanKeyData key;
	DgenScan   *scan;
	HeapTuple	tuple;

	dgen_key_int8(&key, 1, id, BTEqualStrategyNumber);
	scan = dgen_scan_begin(b->messages, DGEN_I_PKEY, snapshot, 1, &key);
	tuple = dgen_scan_next(scan);
	if (tuple != NULL)
	{
		msg = palloc(sizeof(DgenMessage));
		dgen_message_deform(tuple, RelationGetDescr(b->messages->rel), 0, msg);
	}
	dgen_scan_end(scan);
	return msg;
}

/*
 * What a server goes on with comes before all else of it, from whichever lane;
 * while that backs off, all else waits.  False if the batch can take no more.
 */
static bool
plan_continue(Batch *b, int leaseno, Lane *lane, int server, Snapshot snapshot)
{
	BatchServer *bs = &b->servers[server];
	int64		id = bs->server->continue_id;
	DgenMessage *msg;
	FailedMessage *f;

	if (id == 0 || bs->continued == id)
		return true;
	msg = read_message(b, id, snapshot);
	if (msg == NULL)
	{
		/* an operator has discarded it */
		bs->server->continue_id = 0;
		return true;
	}
	f = find_failed(bs->failed, id);
	if (judge_message(b, &b->leases[leaseno], msg, f) != RUN_IT)
	{
		lane->blocked = true;
		return true;
	}
	bs->continued = id;
	return add_message(b, leaseno, msg, server, f);
}

/* Take the next of the normal lane: a message, or a call that stands before it. */
static bool
plan_normal(Batch *b, int leaseno, Lane *lane, int *call, Snapshot snapshot, bool *progress)
{
	DgenMessage *msg = peek(b, lane);
	DgenCall   *c = *call >= 0 ? b->calls[*call].call : NULL;
	int			server;

	*progress = true;
	if (c != NULL && !is_wanted(b, true, c->id))
	{
		*call = next_call(b, leaseno, *call);
		return true;
	}
	if (c != NULL && (msg == NULL || c->place < msg->id))
	{
		server = find_server(b, leaseno, c->data, snapshot);
		if (server < 0)
			return false;
		if (must_wait(b, leaseno, server, NULL))
		{
			lane->blocked = true;
			return true;
		}
		if (!plan_continue(b, leaseno, lane, server, snapshot))
			return false;
		if (lane->blocked)
			return true;
		if (!add_item(b, leaseno, NULL, *call, server, false))
			return false;
		*call = next_call(b, leaseno, *call);
		return true;
	}
	*progress = false;
	return true;
}

static bool
plan_message(Batch *b, int leaseno, Lane *lane, Snapshot snapshot)
{
	BatchLease *lease = &b->leases[leaseno];
	DgenMessage *msg = peek(b, lane);
	const char *name = b->effects ? dgen_effects_of(msg->server) : msg->server;
	int			server = find_server(b, leaseno, name, snapshot);
	FailedMessage *f;

	if (server < 0)
		return false;
	if (must_wait(b, leaseno, server, msg))
	{
		lane->blocked = true;
		return true;
	}
	if (!plan_continue(b, leaseno, lane, server, snapshot))
		return false;
	if (lane->blocked)
		return true;
	if (msg->id == b->servers[server].continued)
	{
		lane->next = NULL;
		return true;
	}
	f = find_failed(b->servers[server].failed, msg->id);
	switch (judge_message(b, lease, msg, f))
	{
		case RUN_IT:
			if (!add_message(b, leaseno, msg, server, f))
				return false;
			lane->next = NULL;
			break;
		case PASS_OVER:
			lease->low = Min(lease->low, msg->id);
			drop_next(lane);
			break;
		case STOP_LANE:
			lane->blocked = true;
			break;
	}
	return true;
}

static bool
lane_waits(Batch *b, Lane *lane, int lane_no, int call)
{
	return !lane->blocked && (peek(b, lane) != NULL || (lane_no == NORMAL_LANE && call >= 0));
}

/* Whose turn is it? -1: nothing waits. */
static int
choose_lane(Batch *b, Lane *lanes, int call, int turn)
{
	int			preferred = turns[turn % 10];

	if (lane_waits(b, &lanes[preferred], preferred, call))
		return preferred;
	for (int i = 0; i < DGEN_NLANES; i++)
	{
		if (lane_waits(b, &lanes[i], i, call))
			return i;
	}
	return -1;
}

/* Read the mailbox of one lease and plan its items; false when the batch is full. */
static bool
plan_lease(Batch *b, int leaseno, Snapshot snapshot)
{
	BatchLease *lease = &b->leases[leaseno];
	Lane		lanes[DGEN_NLANES];
	int			call = next_call(b, leaseno, -1);
	int			turn = pg_prng_uint32(&pg_global_prng_state) % 10;
	bool		full = false;
	int			lane;

	lease->read = true;
	lease->low = dgen_bounds_limit(b->bounds, lease->taken->hash);
	for (int i = 0; i < DGEN_NLANES; i++)
		open_lane(b, lease, i, snapshot, &lanes[i]);

	while (!full && (lane = choose_lane(b, lanes, call, turn++)) >= 0)
	{
		bool		progress = false;

		if (lane == NORMAL_LANE &&
			!plan_normal(b, leaseno, &lanes[lane], &call, snapshot, &progress))
			full = true;
		else if (!progress && !plan_message(b, leaseno, &lanes[lane], snapshot))
			full = true;
	}
	for (int i = 0; i < DGEN_NLANES; i++)
		close_lane(lease, &lanes[i]);
	return !full;
}

/*
 * Take leases and read what they hold, until the batch is full.  Runs in a
 * transaction that has no snapshot yet.
 */
void
dgen_cut_take(Batch *b)
{
	Snapshot	snapshot;
	int			nheld = 0;

	if (b->ntouched > 0)
		take_touched(b);
	for (int i = 0; i < b->nleases; i++)
	{
		BatchLease *lease = &b->leases[i];

		if (lease->gone)
			continue;
		lease->more = false;
		lease->park_until = 0;
		/* what is wanted of an earlier try may be behind entries that are empty now */
		if (b->mode == BATCH_ALL && nheld >= b->max_items)
			lease->more = true;
		else if (take_lease(lease))
		{
			/* before the bounds: who lowers it has published before */
			lease->mark = dgen_mark_get(lease->taken->hash, &lease->generation);
			nheld++;
		}
	}

	b->bounds = dgen_bounds_read();
	snapshot = RegisterSnapshot(GetCatalogSnapshot(RelationGetRelid(b->messages->rel)));
	for (int i = 0; i < b->nleases; i++)
	{
		if (b->leases[i].gone || !b->leases[i].held)
			continue;
		if (is_full(b) || !plan_lease(b, i, snapshot))
			b->leases[i].more = true;
	}
	UnregisterSnapshot(snapshot);
}
