/*-------------------------------------------------------------------------
 *
 * server.c
 *	  The row of a server: its lease, reading it, writing it, and a worker's
 *	  cache of states.
 *
 * The lease is a transaction-level heavyweight lock on the hash of the
 * address, in the space of advisory locks but with a class that pg_advisory_*
 * never uses.  Whoever writes a server's row holds it: workers take it
 * without waiting, all others wait, under the eyes of PostgreSQL's deadlock
 * detector.  It is let go after the transaction has become visible, so under
 * a lease the row is always the latest.
 *
 * A worker keeps the states that it has written or read.  A kept state is
 * good if the row at its TID is visible and has its xmin and version; then
 * neither index nor TOAST is touched.  Rows are found by TID for another
 * reason too: under an old snapshot a hot row leaves thousands of dead index
 * entries behind, which a search by key would visit.
 *
 *-------------------------------------------------------------------------
 */
#include "dgen.h"

#include "access/htup_details.h"
#include "access/skey.h"
#include "access/subtrans.h"
#include "access/tableam.h"
#include "access/transam.h"
#include "executor/tuptable.h"
#include "lib/ilist.h"
#include "storage/bufmgr.h"
#include "storage/lmgr.h"
#include "storage/predicate.h"
#include "storage/proc.h"
#include "storage/procarray.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"


/* columns of dgen.server, from 0 */
enum
{
	COL_SERVER, COL_STATUS, COL_FAILING, COL_INCARNATION, COL_VERSION,
	COL_UPDATED_AT, COL_STARTED_AT, COL_SUSPENDED_AT, COL_TOMBSTONE_UNTIL,
	COL_SUSPENDED_BY, COL_STOP_REASON, COL_VSN, COL_STATE, COL_BASE_VERSION,
	COL_PATCH_BYTES, COL_MONITORED, COL_SUPERVISED, COL_POSTPONED, COL_CRASHES,
	COL_CONTINUE_ID, COL_GOOD_VERSION, COL_TIMEOUT_AT, COL_TIMEOUT_ID, COL_TIMEOUT_DUE,
	COL_LOCK_ID, COL_LOCK_TOKEN, COL_LOCKED_UNTIL, COL_STATE_NAME,
	COL_HISTORY_VERSION, COL_HISTORY_FROM, COL_HISTORY_BYTES, COL_USED_AT, NCOLS
};

typedef struct CacheKey
{
	char		address[DGEN_MAX_ADDRESS + 1];
} CacheKey;

typedef struct CacheEntry
{
	CacheKey	key;
	dlist_node	lru;
	DgenServer	server;			/* its strings and state are in mcxt */
	MemoryContext mcxt;
	Size		size;
} CacheEntry;

static HTAB *cache = NULL;
static MemoryContext cache_mcxt = NULL;
static dlist_head cache_lru = DLIST_STATIC_INIT(cache_lru);
static Size cache_used = 0;

/* ---------------------------------------------------------------- lease */

static void
lease_tag(LOCKTAG *tag, int64 hash)
{
	SET_LOCKTAG_ADVISORY(*tag, MyDatabaseId, (uint32) ((uint64) hash >> 32),
						 (uint32) hash, DGEN_LEASE_CLASS);
}

/* Take the lease for this transaction; false if it is another's and not wait. */
bool
dgen_lease_take(int64 hash, bool wait)
{
	LOCKTAG		tag;

	lease_tag(&tag, hash);
	return LockAcquire(&tag, ExclusiveLock, false, !wait) != LOCKACQUIRE_NOT_AVAIL;
}

/* Let go of a lease early, which is right only if nothing was done under it. */
void
dgen_lease_release(int64 hash)
{
	LOCKTAG		tag;

	lease_tag(&tag, hash);
	LockRelease(&tag, ExclusiveLock, false);
}

bool
dgen_lease_held(int64 hash)
{
	LOCKTAG		tag;

	lease_tag(&tag, hash);
	return LockHeldByMeExactly(&tag, ExclusiveLock);
}

/*
 * Wait until nobody holds the lease, seen by the deadlock detector, and do
 * not keep it.  For a caller whose call nobody has taken yet.
 */
void
dgen_lease_wait(int64 hash)
{
	LOCKTAG		tag;

	lease_tag(&tag, hash);
	(void) LockAcquire(&tag, ShareLock, false, false);
	LockRelease(&tag, ShareLock, false);
}

/* Process id of another that holds the lease; 0: there is none. */
int
dgen_lease_holder(int64 hash)
{
	LOCKTAG		tag;
	VirtualTransactionId *vxids;
	PGPROC	   *proc = NULL;
	int			n;

	lease_tag(&tag, hash);
	vxids = GetLockConflicts(&tag, ExclusiveLock, &n);
	if (n > 0)
		proc = ProcNumberGetProc(VXID_PROC(vxids[0]));
	return proc ? proc->pid : 0;
}

/* ---------------------------------------------------------------- reading */

static char *
text_col(Datum *values, bool *nulls, int col)
{
	return nulls[col] ? NULL : TextDatumGetCString(values[col]);
}

static TimestampTz
time_col(Datum *values, bool *nulls, int col)
{
	return nulls[col] ? 0 : DatumGetTimestampTz(values[col]);
}

static int64
int_col(Datum *values, bool *nulls, int col)
{
	return nulls[col] ? 0 : DatumGetInt64(values[col]);
}

/* All but the state. */
static void
deform_server(HeapTuple tuple, TupleDesc desc, Datum *values, bool *nulls, DgenServer *server)
{
	heap_deform_tuple(tuple, desc, values, nulls);
	server->exists = true;
	server->tid = tuple->t_self;
	server->xmin = HeapTupleHeaderGetRawXmin(tuple->t_data);
	server->active = DatumGetChar(values[COL_STATUS]) == 'a';
	server->failing = DatumGetBool(values[COL_FAILING]);
	server->incarnation = DatumGetInt64(values[COL_INCARNATION]);
	server->version = DatumGetInt64(values[COL_VERSION]);
	server->updated_at = DatumGetTimestampTz(values[COL_UPDATED_AT]);
	server->started_at = time_col(values, nulls, COL_STARTED_AT);
	server->suspended_at = time_col(values, nulls, COL_SUSPENDED_AT);
	server->suspended = server->suspended_at != 0;
	server->tombstone_until = time_col(values, nulls, COL_TOMBSTONE_UNTIL);
	server->tombstone_written = server->tombstone_until;
	server->suspended_by = text_col(values, nulls, COL_SUSPENDED_BY);
	server->stop_reason = text_col(values, nulls, COL_STOP_REASON);
	server->vsn = text_col(values, nulls, COL_VSN);
	server->base_version = DatumGetInt64(values[COL_BASE_VERSION]);
	server->patch_bytes = DatumGetInt64(values[COL_PATCH_BYTES]);
	server->monitored = DatumGetBool(values[COL_MONITORED]);
	server->supervised = DatumGetBool(values[COL_SUPERVISED]);
	server->postponed = nulls[COL_POSTPONED] ? 0 : DatumGetInt32(values[COL_POSTPONED]);
	server->crashes = nulls[COL_CRASHES] ? 0 : DatumGetInt32(values[COL_CRASHES]);
	server->continue_id = int_col(values, nulls, COL_CONTINUE_ID);
	server->good_version = int_col(values, nulls, COL_GOOD_VERSION);
	server->timeout_at = time_col(values, nulls, COL_TIMEOUT_AT);
	server->timeout_id = int_col(values, nulls, COL_TIMEOUT_ID);
	server->timeout_due = time_col(values, nulls, COL_TIMEOUT_DUE);
	server->lock_id = int_col(values, nulls, COL_LOCK_ID);
	server->lock_token = int_col(values, nulls, COL_LOCK_TOKEN);
	server->locked_until = time_col(values, nulls, COL_LOCKED_UNTIL);
	server->state_name = text_col(values, nulls, COL_STATE_NAME);
	server->history_version = int_col(values, nulls, COL_HISTORY_VERSION);
	server->history_from = int_col(values, nulls, COL_HISTORY_FROM);
	server->history_bytes = int_col(values, nulls, COL_HISTORY_BYTES);
	server->used_at = time_col(values, nulls, COL_USED_AT);
}

/* Is what the cache has the row that the snapshot sees? */
static bool
cache_is_current(DgenTable *table, DgenServer *cached, Snapshot snapshot)
{
	TupleTableSlot *slot = table_slot_create(table->rel, NULL);
	ItemPointerData tid = cached->tid;
	bool		current = false;

	/* VACUUM may have cut off the page since */
	if (table->nblocks == InvalidBlockNumber)
		table->nblocks = RelationGetNumberOfBlocks(table->rel);
	if (ItemPointerGetBlockNumber(&tid) >= table->nblocks)
	{
		/* or the table has grown behind it */
		table->nblocks = RelationGetNumberOfBlocks(table->rel);
		if (ItemPointerGetBlockNumber(&tid) >= table->nblocks)
		{
			ExecDropSingleTupleTableSlot(slot);
			return false;
		}
	}
	if (table_tuple_fetch_row_version(table->rel, &tid, snapshot, slot))
	{
		bool		should_free;
		bool		isnull;
		HeapTuple	tuple = ExecFetchSlotHeapTuple(slot, false, &should_free);

		/* the xid may have come round again: the version and address may not */
		current = HeapTupleHeaderGetRawXmin(tuple->t_data) == cached->xmin &&
			DatumGetInt64(heap_getattr(tuple, COL_VERSION + 1,
									   RelationGetDescr(table->rel), &isnull)) == cached->version &&
			strcmp(TextDatumGetCString(heap_getattr(tuple, COL_SERVER + 1,
													RelationGetDescr(table->rel), &isnull)),
				   cached->address) == 0;
	}
	ExecDropSingleTupleTableSlot(slot);
	return current;
}

/* The row by its key; false: there is none. */
static bool
read_row(DgenTable *table, Snapshot snapshot, bool with_state, DgenServer *server)
{
	Datum		values[DGEN_MAX_COLUMNS];
	bool		nulls[DGEN_MAX_COLUMNS];
	ScanKeyData key;
	DgenScan   *scan;
	HeapTuple	tuple;

	dgen_key_text(&key, 1, server->address);
	scan = dgen_scan_begin(table, DGEN_I_PKEY, snapshot, 1, &key);
	tuple = dgen_scan_next(scan);
	if (tuple != NULL)
	{
		deform_server(tuple, RelationGetDescr(table->rel), values, nulls, server);
		if (with_state)
			dgen_state_load(server, values[COL_STATE], nulls[COL_STATE], snapshot);
	}
	dgen_scan_end(scan);
	return tuple != NULL;
}

/*
 * Read the row of a server without its state, which may be large.
 */
bool
dgen_server_peek(DgenTable *table, const char *address, Snapshot snapshot, DgenServer *out)
{
	memset(out, 0, sizeof(DgenServer));
	out->address = pstrdup(address);
	return read_row(table, snapshot, false, out);
}

/* ---------------------------------------------------------------- SERIALIZABLE */

/*
 * What stands for a server's state in SSI: a place of the address's own, beyond
 * all pages that the table can have.  The version of the row that was read will
 * not do: suspending the server, or the note that a message of it has failed,
 * writes another one, mostly in a transaction that SSI does not watch, and who
 * changes the state after that would not meet the reader's lock.
 */
static void
state_place(int64 hash, ItemPointer place)
{
	BlockNumber block = (BlockNumber) hash | 0x80000000;

	ItemPointerSet(place, Min(block, MaxBlockNumber), FirstOffsetNumber);
}

/* Whoever writes the state from now on meets this.  Nothing unless SERIALIZABLE. */
static void
lock_read(Relation servers, int64 hash, Snapshot snapshot)
{
	ItemPointerData place;

	state_place(hash, &place);
	PredicateLockTID(servers, &place, snapshot, InvalidTransactionId);
}

/* A writer that the snapshot does not see is a conflict, if SSI watches it. */
static void
check_writer(Relation servers, TransactionId xid, Snapshot snapshot)
{
	if (!TransactionIdIsNormal(xid) || TransactionIdPrecedes(xid, TransactionXmin))
		return;
	xid = SubTransGetTopmostTransaction(xid);
	if (!TransactionIdPrecedes(xid, TransactionXmin))
		CheckForSerializableConflictOut(servers, xid, snapshot);
}

/*
 * Tell SSI of who has written the state since.  The read of the row does that
 * for the next version only, and that may be the work of a transaction that
 * SSI does not watch: then those after it would be missed.
 */
static void
check_writers(DgenTable *table, const char *address, Snapshot snapshot)
{
	SnapshotData all;
	ScanKeyData key;
	DgenScan   *scan;

	if (!CheckForSerializableConflictOutNeeded(table->rel, snapshot))
		return;
	InitNonVacuumableSnapshot(all, GlobalVisTestFor(table->rel));
	dgen_key_text(&key, 1, address);
	scan = dgen_scan_begin(table, DGEN_I_PKEY, &all, 1, &key);
	while (dgen_scan_next(scan) != NULL)
	{
		TransactionId xmin;
		TransactionId xmax;

		CHECK_FOR_INTERRUPTS();
		dgen_scan_writers(scan, &xmin, &xmax);
		check_writer(table->rel, xmin, snapshot);
		check_writer(table->rel, xmax, snapshot);
	}
	dgen_scan_end(scan);
}

/*
 * See dgen.h; nothing unless SERIALIZABLE.  First the lock: a writer looks for
 * it after it has written, so one of the two meets the other.
 */
void
dgen_state_note_read(DgenTable *servers, const char *address, int64 hash, Snapshot snapshot)
{
	lock_read(servers->rel, hash, snapshot);
	check_writers(servers, address, snapshot);
}

/* A row was written; may raise 40001. */
static void
check_readers(Relation servers, int64 hash)
{
	ItemPointerData place;

	state_place(hash, &place);
	CheckForSerializableConflictIn(servers, &place, ItemPointerGetBlockNumber(&place));
}

/*
 * Read the row of a server whose lease is held.  See dgen.h.
 */
DgenServer *
dgen_server_read(DgenTable *table, const char *address, int64 hash, Snapshot snapshot)
{
	DgenServer *cached = dgen_is_worker() ? dgen_cache_find(address) : NULL;
	DgenServer *server = palloc0(sizeof(DgenServer));

	if (snapshot != NULL)
		dgen_state_note_read(table, address, hash, snapshot);
	if (cached != NULL && cache_is_current(table, cached, snapshot ? snapshot : SnapshotSelf))
	{
		*server = *cached;
		dgen_my_slot->cache_hits++;
		return server;
	}
	if (dgen_is_worker())
		dgen_my_slot->cache_misses++;
	server->address = pstrdup(address);
	server->hash = hash;
	(void) read_row(table, snapshot, true, server);
	return server;
}

/*
 * A transaction whose snapshot is older than the row may not go on with it:
 * the handler would see a state from after its own reads.
 */
void
dgen_server_check_snapshot(DgenServer *server)
{
	if (!IsolationUsesXactSnapshot() || !server->exists ||
		TransactionIdIsCurrentTransactionId(server->xmin) ||
		!XidInMVCCSnapshot(server->xmin, GetTransactionSnapshot()))
		return;
	ereport(ERROR,
			(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
			 errmsg("could not serialize access due to concurrent update"),
			 errdetail("Server \"%s\" changed after this transaction's snapshot was taken.",
					   server->address),
			 errhint("The transaction might succeed if retried.")));
}

/* ---------------------------------------------------------------- writing */

static Datum
time_value(TimestampTz t, bool *isnull)
{
	*isnull = (t == 0);
	return TimestampTzGetDatum(t);
}

static Datum
text_value(const char *s, bool *isnull)
{
	*isnull = (s == NULL);
	return s ? CStringGetTextDatum(s) : (Datum) 0;
}

static Datum
int_value(int64 n, bool *isnull)
{
	*isnull = (n == 0);
	return Int64GetDatum(n);
}

static void
form_server(DgenServer *server, Datum *values, bool *nulls)
{
	memset(nulls, 0, NCOLS * sizeof(bool));
	values[COL_SERVER] = CStringGetTextDatum(server->address);
	values[COL_STATUS] = CharGetDatum(server->active ? 'a' : 'n');
	values[COL_FAILING] = BoolGetDatum(server->failing);
	values[COL_INCARNATION] = Int64GetDatum(server->incarnation);
	values[COL_VERSION] = Int64GetDatum(server->version);
	values[COL_UPDATED_AT] = TimestampTzGetDatum(server->updated_at);
	values[COL_STARTED_AT] = time_value(server->started_at, &nulls[COL_STARTED_AT]);
	values[COL_SUSPENDED_AT] = time_value(server->suspended ? server->suspended_at : 0,
										  &nulls[COL_SUSPENDED_AT]);
	values[COL_TOMBSTONE_UNTIL] = time_value(server->tombstone_until, &nulls[COL_TOMBSTONE_UNTIL]);
	values[COL_SUSPENDED_BY] = text_value(server->suspended ? server->suspended_by : NULL,
										  &nulls[COL_SUSPENDED_BY]);
	values[COL_STOP_REASON] = text_value(server->stop_reason, &nulls[COL_STOP_REASON]);
	values[COL_VSN] = text_value(server->vsn, &nulls[COL_VSN]);
	values[COL_STATE] = dgen_state_store(server, &nulls[COL_STATE]);
	values[COL_BASE_VERSION] = Int64GetDatum(server->base_version);
	values[COL_PATCH_BYTES] = Int64GetDatum(server->patch_bytes);
	values[COL_MONITORED] = BoolGetDatum(server->monitored);
	values[COL_SUPERVISED] = BoolGetDatum(server->supervised);
	values[COL_POSTPONED] = Int32GetDatum(server->postponed);
	nulls[COL_POSTPONED] = server->postponed == 0;
	values[COL_CRASHES] = Int32GetDatum(server->crashes);
	nulls[COL_CRASHES] = server->crashes == 0;
	values[COL_CONTINUE_ID] = int_value(server->continue_id, &nulls[COL_CONTINUE_ID]);
	values[COL_GOOD_VERSION] = int_value(server->good_version, &nulls[COL_GOOD_VERSION]);
	values[COL_TIMEOUT_AT] = time_value(server->timeout_at, &nulls[COL_TIMEOUT_AT]);
	values[COL_TIMEOUT_ID] = int_value(server->timeout_id, &nulls[COL_TIMEOUT_ID]);
	values[COL_TIMEOUT_DUE] = time_value(server->timeout_due, &nulls[COL_TIMEOUT_DUE]);
	values[COL_LOCK_ID] = int_value(server->lock_id, &nulls[COL_LOCK_ID]);
	values[COL_LOCK_TOKEN] = int_value(server->lock_token, &nulls[COL_LOCK_TOKEN]);
	values[COL_LOCKED_UNTIL] = time_value(server->locked_until, &nulls[COL_LOCKED_UNTIL]);
	values[COL_STATE_NAME] = text_value(server->state_name, &nulls[COL_STATE_NAME]);
	values[COL_HISTORY_VERSION] = int_value(server->history_version, &nulls[COL_HISTORY_VERSION]);
	values[COL_HISTORY_FROM] = int_value(server->history_from, &nulls[COL_HISTORY_FROM]);
	values[COL_HISTORY_BYTES] = int_value(server->history_bytes, &nulls[COL_HISTORY_BYTES]);
	values[COL_USED_AT] = time_value(server->used_at, &nulls[COL_USED_AT]);
}

static void
check_result(TM_Result result, DgenServer *server)
{
	if (result == TM_Ok)
		return;

	/*
	 * Under the lease nobody else writes the row; what remains is a row that
	 * was changed by hand, or by this transaction's own earlier command in
	 * the same activation.
	 */
	ereport(ERROR,
			(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
			 errmsg("could not serialize access due to concurrent update"),
			 errdetail("The row of server \"%s\" was changed by another transaction (result %d).",
					   server->address, (int) result)));
}

/*
 * A state that has changed is a version from now on, though the row may be
 * written later.  So is that there is none any more, where the old one is part
 * of a history.
 */
void
dgen_server_count(DgenServer *server)
{
	bool		dropped = server->state == NULL && server->counted != NULL &&
		server->history_version != 0 && server->history_version == server->version;

	if ((server->state_changed || dropped) && !server->erased)
	{
		/* a history is in order of time, whatever the clock does */
		TimestampTz at = Max(GetCurrentTimestamp(), server->updated_at);

		server->version++;
		dgen_server_changed(server, false);
		if (server->cause != NULL || server->history_version != 0)
			dgen_history_write(server, at);
		server->updated_at = at;
		server->counted = server->state;
		server->state_changed = false;
	}
	server->cause = NULL;
}

/*
 * Have the row deleted if it says nothing any more: the server never lived, or
 * ended where nothing of it is to stay, and the row was needed for a suspension
 * or failures that are over.
 */
void
dgen_server_erase_if_empty(DgenServer *server)
{
	DgenModule *module;

	if (server->active || server->suspended || server->failing || server->supervised ||
		server->state != NULL || server->tombstone_until != 0)
		return;
	if (server->incarnation != 0 || server->stop_reason != NULL)
	{
		module = dgen_module_of(server->address);
		if (module == NULL || !module->delete_on_stop)
			return;
		dgen_server_changed(server, true);
	}
	server->erased = true;
}

/* Delete the row of a server, and all that is stored beside it. */
static void
erase_row(DgenTable *table, DgenServer *server)
{
	bool		isnull;

	(void) dgen_state_store(server, &isnull);
	dgen_history_erase(server);
	if (server->exists)
		check_result(dgen_table_delete(table, &server->tid), server);
	server->exists = false;
	CommandCounterIncrement();
}

/*
 * Write a server that is dirty: one version of its row, found by TID.
 * crosscheck, if given, is the transaction's snapshot, which must see the row
 * that is replaced.
 */
void
dgen_server_write(DgenTable *table, DgenServer *server, Snapshot crosscheck)
{
	Datum		values[NCOLS];
	bool		nulls[NCOLS];

	if (!server->dirty)
		return;
	server->dirty = false;
	dgen_tombstone_write(server);
	dgen_server_count(server);
	if (server->erased)
	{
		erase_row(table, server);
		check_readers(table->rel, server->hash);
		return;
	}

	server->updated_at = Max(GetCurrentTimestamp(), server->updated_at);
	form_server(server, values, nulls);
	if (server->exists)
	{
		ItemPointerData tid;

		check_result(dgen_table_update(table, &server->tid,
									   server->recent ? InvalidSnapshot : crosscheck,
									   values, nulls, &tid), server);
		server->tid = tid;
	}
	else
		dgen_table_insert(table, values, nulls, &server->tid);
	check_readers(table->rel, server->hash);
	server->exists = true;
	server->recent = true;
	server->xmin = GetCurrentTransactionId();
	CommandCounterIncrement();
	dgen_state_stored(table, server);
}

/*
 * After activations: write what has changed, and tell SSI what was only read.
 * What this transaction has written before needs no lock: who writes it next
 * must see that, or fails.
 */
void
dgen_server_settle(DgenTable *table, DgenServer *server, Snapshot crosscheck)
{
	if (server->dirty)
		dgen_server_write(table, server, crosscheck);
	else if (server->read && server->exists && !server->recent)
		lock_read(table->rel, server->hash, GetTransactionSnapshot());
}

static Jsonb *
copy_jsonb(const Jsonb *jb)
{
	Jsonb	   *copy = palloc(VARSIZE(jb));

	memcpy(copy, jb, VARSIZE(jb));
	return copy;
}

/*
 * Let what an activation has made of a server outlive the activation's memory.
 */
void
dgen_server_keep(DgenServer *server, Jsonb *before, MemoryContext mcxt)
{
	MemoryContext old = MemoryContextSwitchTo(mcxt);

	if (server->state != NULL && server->state != before)
	{
		Jsonb	   *copy = copy_jsonb(server->state);

		if (server->stored == server->state)
			server->stored = copy;
		if (server->counted == server->state)
			server->counted = copy;
		server->state = copy;
	}
	if (server->ephemeral != NULL)
		server->ephemeral = copy_jsonb(server->ephemeral);
	if (server->stop_reason != NULL)
		server->stop_reason = pstrdup(server->stop_reason);
	if (server->state_name != NULL)
		server->state_name = pstrdup(server->state_name);
	MemoryContextSwitchTo(old);
}

/* ---------------------------------------------------------------- undo */

/*
 * A worker keeps servers in memory over the activations of a batch.  What a
 * subtransaction (an EXCEPTION block of a handler) made of them, by an invoke
 * or because a read had them written, must go when it aborts.
 */
typedef struct Saved
{
	DgenServer *server;
	DgenServer	before;
	SubTransactionId subid;
} Saved;

static List *saved = NIL;		/* in TopTransactionContext, the last one first */

void
dgen_server_save(DgenServer *server)
{
	MemoryContext old;
	Saved	   *s;

	if (GetCurrentTransactionNestLevel() <= 1)
		return;
	old = MemoryContextSwitchTo(TopTransactionContext);
	s = palloc(sizeof(Saved));
	s->server = server;
	s->before = *server;
	s->subid = GetCurrentSubTransactionId();
	saved = lcons(s, saved);
	MemoryContextSwitchTo(old);
}

void
dgen_server_subxact(SubXactEvent event, SubTransactionId my, SubTransactionId parent)
{
	ListCell   *lc;

	if (event != SUBXACT_EVENT_COMMIT_SUB && event != SUBXACT_EVENT_ABORT_SUB)
		return;
	foreach(lc, saved)
	{
		Saved	   *s = lfirst(lc);

		if (s->subid < my)
			break;
		if (event == SUBXACT_EVENT_COMMIT_SUB)
			s->subid = parent;
		else
		{
			*s->server = s->before;
			saved = foreach_delete_current(saved, lc);
		}
	}
}

/* At the end of a transaction: the list goes with its memory. */
void
dgen_server_xact_end(void)
{
	saved = NIL;
}

/* ---------------------------------------------------------------- locks */

/* The message that a server is locked for, as its row is now; 0: none. */
int64
dgen_server_lock_id(DgenTable *table, const char *address)
{
	ScanKeyData key;
	DgenScan   *scan;
	HeapTuple	tuple;
	int64		id = 0;

	dgen_key_text(&key, 1, address);
	scan = dgen_scan_begin(table, DGEN_I_PKEY, NULL, 1, &key);
	/* of a row that is being replaced we may meet both versions, the new one last */
	while ((tuple = dgen_scan_next(scan)) != NULL)
	{
		bool		isnull;
		Datum		value = heap_getattr(tuple, COL_LOCK_ID + 1, RelationGetDescr(table->rel), &isnull);

		id = isnull ? 0 : DatumGetInt64(value);
	}
	dgen_scan_end(scan);
	return id;
}

/* ---------------------------------------------------------------- cache */

static CacheEntry *
cache_entry(const char *address, HASHACTION action)
{
	CacheKey	key;

	if (cache == NULL)
	{
		HASHCTL		ctl = {0};

		if (action != HASH_ENTER)
			return NULL;
		if (cache_mcxt == NULL)
			cache_mcxt = AllocSetContextCreate(TopMemoryContext, "dgen states",
											   ALLOCSET_DEFAULT_SIZES);
		ctl.keysize = sizeof(CacheKey);
		ctl.entrysize = sizeof(CacheEntry);
		ctl.hcxt = cache_mcxt;
		cache = hash_create("dgen states", 256, &ctl, HASH_ELEM | HASH_STRINGS | HASH_CONTEXT);
	}
	strlcpy(key.address, address, sizeof(key.address));
	return hash_search(cache, key.address, action, NULL);
}

DgenServer *
dgen_cache_find(const char *address)
{
	CacheEntry *entry = cache_entry(address, HASH_FIND);

	if (entry == NULL)
		return NULL;
	dlist_move_head(&cache_lru, &entry->lru);
	return &entry->server;
}

void
dgen_cache_drop(const char *address)
{
	CacheEntry *entry = cache_entry(address, HASH_FIND);
	MemoryContext mcxt;

	if (entry == NULL)
		return;
	mcxt = entry->mcxt;
	cache_used -= entry->size;
	dlist_delete(&entry->lru);
	/* the address may be in the entry's own memory */
	cache_entry(address, HASH_REMOVE);
	MemoryContextDelete(mcxt);
}

static char *
copy_string(const char *s)
{
	return s ? pstrdup(s) : NULL;
}

/*
 * Keep a server as it has been written (and committed) or read.  A state that
 * the cache has already is not copied again.
 */
void
dgen_cache_store(DgenServer *server)
{
	CacheEntry *entry = cache_entry(server->address, HASH_FIND);
	MemoryContext mcxt;
	MemoryContext old;

	if (!server->exists)
	{
		dgen_cache_drop(server->address);
		return;
	}
	if (entry != NULL && entry->server.state == server->state &&
		entry->server.ephemeral == server->ephemeral &&
		entry->server.tid.ip_posid == server->tid.ip_posid &&
		ItemPointerEquals(&entry->server.tid, &server->tid))
		return;

	mcxt = AllocSetContextCreate(cache_mcxt ? cache_mcxt : TopMemoryContext, "dgen state",
								 ALLOCSET_SMALL_MINSIZE, ALLOCSET_SMALL_INITSIZE,
								 ALLOCSET_DEFAULT_MAXSIZE);
	old = MemoryContextSwitchTo(mcxt);
	{
		DgenServer	copy = *server;

		copy.address = pstrdup(server->address);
		copy.suspended_by = copy_string(server->suspended_by);
		copy.stop_reason = copy_string(server->stop_reason);
		copy.vsn = copy_string(server->vsn);
		copy.state_name = copy_string(server->state_name);
		if (server->state != NULL)
			copy.state = copy_jsonb(server->state);
		if (server->ephemeral != NULL)
			copy.ephemeral = copy_jsonb(server->ephemeral);
		copy.stored = copy.counted = copy.state;
		if (server->attributes != NULL)
			copy.attributes = copy_jsonb(server->attributes);
		copy.dirty = copy.state_changed = copy.read = copy.recent = copy.ahead = false;
		copy.cause = NULL;
		if (entry != NULL)
		{
			cache_used -= entry->size;
			MemoryContextDelete(entry->mcxt);
			dlist_delete(&entry->lru);
		}
		else
			entry = cache_entry(server->address, HASH_ENTER);
		entry->server = copy;
	}
	MemoryContextSwitchTo(old);
	entry->mcxt = mcxt;
	entry->size = sizeof(CacheEntry) + MemoryContextMemAllocated(mcxt, false);
	cache_used += entry->size;
	dlist_push_head(&cache_lru, &entry->lru);
}

/* Between batches: let go of the least recently used beyond dgen.cache_size. */
void
dgen_cache_trim(void)
{
	while (cache_used > (Size) dgen_cache_size * 1024 && !dlist_is_empty(&cache_lru))
	{
		CacheEntry *entry = dlist_container(CacheEntry, lru, dlist_tail_node(&cache_lru));

		dgen_cache_drop(entry->server.address);
	}
}
