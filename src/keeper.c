/*-------------------------------------------------------------------------
 *
 * keeper.c
 *	  Looks after one database: what commits and clients cannot do themselves.
 *
 * There is one keeper in each database that has dgen, started by the
 * launcher.  It is connected as the bootstrap superuser and runs nothing but
 * this code: no function of a module, and no query that a user could bend.
 *
 * Its duties, in an armed database:
 *
 *	  feed		Queues servers whose doorbell was lost: rung before a crash, by
 *				a prepared transaction, or when there was no room.
 *	  due		Moves delayed messages to the mailbox when they come due, rings
 *				servers whose failed message is to be tried again, and deletes
 *				what has expired.
 *	  letters	Deletes dead letters older than their module keeps them.
 *	  history	Deletes versions of states beyond what their module keeps.
 *	  audit		Deletes rows of the audit that are too old.
 *	  ids		Reserves message ids ahead of need.
 *	  announce	Notifies of servers that have changed: see announce.c; between
 *				passes, too.
 *
 * The feed.  Below "frontier" every committed message has been queued once.
 * It follows the limit that mark.c computes from the published bounds: an id
 * below the limit is committed and visible to a later snapshot, or never will
 * be.  So each message is seen here once, and the cost is in proportion to
 * traffic, whatever lies dead in the table.  While an open transaction holds
 * the limit back, ids above it are fed early, once, and then again in small
 * portions for those committed late.  Last of all, a slow rotation through
 * the whole table finds what came back under an old id without a doorbell.
 * All of this only rings; ringing twice does no harm.
 *
 * Times.  For each table with a due time we keep "low", below which nothing
 * is left to do, so that rows that are dead but not gone are passed once.
 * Whoever commits an earlier time tells us by dgen_wake_keeper(), which
 * lowers next_due.  COMMIT PREPARED runs no code of ours: when a prepared
 * transaction that sent something has ended, we scan from the start, once a
 * second at most; and once a minute whatever happens.
 *
 * A pass runs at least each second, and is short if there is nothing to do: a
 * few index probes.  No transaction is open between passes, and each handles
 * a bounded number of rows.  READ COMMITTED, so nothing here can make
 * anybody's serializable transaction fail.
 *
 * Locks: dgen_shared->lock for our entry in databases[], for a moment.
 *
 *-------------------------------------------------------------------------
 */
#include "dgen.h"

#include "access/htup_details.h"
#include "catalog/pg_database.h"
#include "executor/spi.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/proc.h"
#include "tcop/tcopprot.h"
#include "utils/guc.h"
#include "utils/inval.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"

#define PASS_MS 1000			/* a pass at least so often, when armed */
#define UNARMED_MS (10 * 1000)	/* or looks whether it is armed */
#define NO_ROOM_MS 100			/* when the queue of ready servers is full */
#define SWEEP_MS (60 * 1000)	/* due times from the start */
#define ROTATE_MS (10 * 1000)
#define LETTERS_MS (60 * 1000)
#define HISTORY_MS (10 * 1000)
#define AUDIT_MS (60 * 1000)
#define ORPHANS_MS 2000
#define HEALTHY_MS (60 * 1000)	/* a life so long forgives earlier failures */
#define MAX_BACKOFF_MS (60 * 1000)
#define MAX_ERRORS 5			/* passes in a row */

#define FEED_ROWS 2000			/* a transaction */
#define ROTATE_ROWS 500
#define HELD_IDS 5000			/* a pass, of those that a limit holds back */
#define LETTER_ROWS 1000
#define MAX_CHUNKS 20			/* of one duty, before the others have their turn */
#define NSEEN 256

/* columns and indexes, as sql/tables.sql has them; each index leads with the column meant */
#define MESSAGE_ID 1
#define MESSAGE_HASH 2
#define MESSAGE_KIND 5
#define MESSAGE_SERVER 9
#define MESSAGE_ID_INDEX 0
#define ATTEMPT_SERVER 2
#define LETTER_SERVER 9
#define LETTER_FAILED_AT 19
#define LETTER_FAILED_INDEX 2

/* what became of a row that is due */
typedef enum DueResult
{
	DUE_DONE,
	DUE_LATER,					/* somebody is at it: look again */
	DUE_NO_ROOM					/* stop here */
} DueResult;

/* a table with rows that come due */
typedef struct DueKind
{
	DgenTableId table;
	int			index;			/* over the due time alone */
	AttrNumber	attno;			/* the due time */
	int			chunk;			/* rows a transaction */
	bool		stays;			/* the row is not ours to delete */
	int			interval_ms;	/* look so often; 0: each pass */
	DueResult	(*handle) (DgenTable *table, HeapTuple tuple);
} DueKind;

static DueResult deliver_delayed(DgenTable *table, HeapTuple tuple);
static DueResult ring_attempt(DgenTable *table, HeapTuple tuple);
static DueResult delete_expired(DgenTable *table, HeapTuple tuple);
static DueResult forget_trace(DgenTable *table, HeapTuple tuple);

static const DueKind due_kinds[] = {
	{DGEN_T_DELAYED, 1, 2, 500, false, 0, deliver_delayed},
	{DGEN_T_ATTEMPT, 2, 5, 2000, true, 0, ring_attempt},
	{DGEN_T_REPLY, 2, 4, 1000, false, 5000, delete_expired},
	{DGEN_T_DEDUP, 1, 4, 1000, false, 5000, delete_expired},
	{DGEN_T_TOMBSTONE, 1, 2, 1000, false, 5000, delete_expired},
	{DGEN_T_TRACE, DGEN_I_TRACE_KEEP_UNTIL, 6, 1, false, 5000, forget_trace}
};

#define NKINDS lengthof(due_kinds)

/* how far we are with it */
typedef struct DueState
{
	TimestampTz low;			/* nothing is left to do below */
	TimestampTz look_at;
	TimestampTz sweep_at;		/* then from the start */
} DueState;

/* private to the keeper */
static DgenDatabase *db = NULL;
static bool nothing_here = false;	/* no extension: why we leave */
static bool closed = false;		/* or: the database takes no connections */
static volatile sig_atomic_t sent_away = false; /* SIGTERM came */
static bool armed = false;
static TimestampTz armed_until = 0; /* then read again whether it is */
static int	errors = 0;			/* failed passes in a row */

static int64 frontier = 0;		/* every message below was queued once */
static int64 reached = 0;		/* fed early, below this */
static int64 held = 0;			/* where the rescan of those held back is */
static int64 rotation = 0;		/* where the rotation is */
static TimestampTz rotate_at = 0;
static DueState due_states[NKINDS];
static TimestampTz letter_cursor = DT_NOBEGIN;
static TimestampTz letters_at = 0;
static DgenHistoryCursor history_cursor;
static TimestampTz history_at = 0;	/* not before, unless a module was altered */
static TimestampTz history_rest = 0;	/* not even then */
static TimestampTz audit_at = 0;
static uint64 history_modules = 0;	/* dgen_module_version() of the last round */

static TimestampTz pass_time;	/* when this pass began */
static TimestampTz next_look = 0;	/* when the next one must */
static MemoryContext row_context;

static void
look_at(TimestampTz when)
{
	if (when < next_look)
		next_look = when;
}

static TimestampTz
after(int ms)
{
	return TimestampTzPlusMilliseconds(pass_time, ms);
}

/*
 * When to do again what has taken from start to now: not within interval_ms,
 * and so that it takes no more than a hundredth of our time.
 */
static TimestampTz
pace(TimestampTz start, int interval_ms)
{
	TimestampTz end = GetCurrentTimestamp();

	return end + Max((int64) interval_ms * 1000, 100 * (end - start));
}

/* Start a short transaction with a snapshot. */
static Snapshot
begin(void)
{
	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	return GetActiveSnapshot();
}

static void
commit(void)
{
	PopActiveSnapshot();
	CommitTransactionCommand();
	pgstat_report_stat(true);
	CHECK_FOR_INTERRUPTS();
}

/* ------------------------------------------------------------------- feed */

/*
 * Queue a server, or its effects.  False if there is no room.  What has no
 * module, or nobody to run it as, waits for alter_module, which rings.
 */
static bool
ring_server(const char *address, int64 hash, DgenPoolKind pool)
{
	const char *slash = strchr(address, '/');
	char		name[NAMEDATALEN];
	DgenModule *module;

	if (slash == NULL || slash - address >= NAMEDATALEN)
		return true;
	memcpy(name, address, slash - address);
	name[slash - address] = '\0';

	module = dgen_module_get(name, true);
	if (module == NULL || !OidIsValid(module->owner))
		return true;
	if (pool == DGEN_POOL_HANDLERS)
		return dgen_ready_ring(MyDatabaseId, DGEN_POOL_OWNER(module), DGEN_POOL_OF(module),
							   module->id, hash);
	return dgen_ready_ring(MyDatabaseId, module->owner, pool, module->id, hash);
}

/*
 * A message whose module was dropped while its sender's transaction was open,
 * so that drop_module could not see it, is dropped as the others were.  The
 * module's row is read by a newer snapshot than the message, and goes by
 * drop_module only.
 */
static void
drop_orphan(DgenTable *table, HeapTuple tuple, int64 hash, const char *address)
{
	bool		known;

	if (dgen_table_delete(table, &tuple->t_self) != TM_Ok)
		return;
	if (table->id == DGEN_T_MESSAGE)
		(void) dgen_length_add(hash, -1, &known);
	ereport(LOG,
			(errmsg("message to server \"%s\" was dropped", address),
			 errdetail("Its module was dropped before the transaction that sent it had ended.")));
}

static bool
ring_message(DgenTable *table, HeapTuple tuple, int64 *seen)
{
	TupleDesc	desc = RelationGetDescr(table->rel);
	bool		isnull;
	int64		hash = DatumGetInt64(heap_getattr(tuple, MESSAGE_HASH, desc, &isnull));
	char		kind = DatumGetChar(heap_getattr(tuple, MESSAGE_KIND, desc, &isnull));
	int64	   *place = &seen[(uint64) hash % NSEEN];
	char	   *address;
	bool		rung;

	if (*place == hash)
		return true;
	address = TextDatumGetCString(heap_getattr(tuple, MESSAGE_SERVER, desc, &isnull));
	if (dgen_module_of(address) == NULL)
	{
		drop_orphan(table, tuple, hash, address);
		pfree(address);
		return true;
	}
	rung = ring_server(address, hash,
					   kind == DGEN_KIND_EFFECT ? DGEN_POOL_LONG : DGEN_POOL_HANDLERS);
	pfree(address);
	if (rung)
		*place = hash;
	return rung;
}

/*
 * Ring the servers of messages from *cursor up to, not including, end; at
 * most so many rows.  Moves *cursor; false if there was no room.
 */
static bool
feed_chunk(int64 *cursor, int64 end, int rows)
{
	int64		seen[NSEEN] = {0};	/* hashes rung in this chunk; 0 is none */
	int64		stop = end;
	bool		room = true;
	int			n = 0;
	ScanKeyData keys[2];
	Snapshot	snapshot = begin();
	DgenTable  *table = dgen_table_open(DGEN_T_MESSAGE, RowExclusiveLock);
	DgenScan   *scan;
	HeapTuple	tuple;

	/* the upper end spares us the dead rows above it */
	dgen_key_int8(&keys[0], 1, *cursor, BTGreaterEqualStrategyNumber);
	dgen_key_int8(&keys[1], 1, end, BTLessStrategyNumber);
	scan = dgen_scan_begin(table, MESSAGE_ID_INDEX, snapshot, 2, keys);
	while ((tuple = dgen_scan_next(scan)) != NULL)
	{
		bool		isnull;

		CHECK_FOR_INTERRUPTS();
		if (n++ < rows)
		{
			MemoryContext old = MemoryContextSwitchTo(row_context);

			room = ring_message(table, tuple, seen);
			MemoryContextSwitchTo(old);
			MemoryContextReset(row_context);
			if (room)
				continue;
		}
		stop = DatumGetInt64(heap_getattr(tuple, MESSAGE_ID,
										  RelationGetDescr(table->rel), &isnull));
		break;
	}
	dgen_scan_end(scan);
	dgen_table_close(table);
	commit();
	*cursor = stop;
	return room;
}

/* Feed a range in chunks; false if it was not finished: then we are to look again. */
static bool
feed_range(int64 *cursor, int64 end)
{
	for (int i = 0; *cursor < end; i++)
	{
		if (i == MAX_CHUNKS)
		{
			look_at(pass_time);
			return false;
		}
		if (!feed_chunk(cursor, end, FEED_ROWS))
		{
			look_at(after(NO_ROOM_MS));
			return false;
		}
	}
	return true;
}

/*
 * Ids from limit to last may be of transactions that are still open, which
 * hide what others sent meanwhile from the sure feed.
 */
static void
feed_held(int64 limit, int64 last)
{
	int64		fed = reached;
	int64		end;

	if (!feed_range(&reached, last + 1))
		return;
	if (held < limit || held >= fed)
		held = limit;
	end = Min(held + HELD_IDS, fed);
	if (held < end && !feed_chunk(&held, end, FEED_ROWS))
		look_at(after(NO_ROOM_MS));
}

/* What prepared transactions sent that have ended since may have been due for long. */
static void
sweep_for_prepared(uint64 ended)
{
	static uint64 seen = 0;
	static TimestampTz next = 0;

	if (ended == seen || pass_time < next)
		return;
	seen = ended;
	next = after(PASS_MS);
	for (int i = 0; i < NKINDS; i++)
		due_states[i].sweep_at = 0;
}

static void
feed(void)
{
	int64		last;
	int64		limit;
	uint64		ended;

	/* the bounds are read after the last id and before any snapshot */
	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	dgen_reserve_ids();
	last = dgen_last_message_id();
	pg_memory_barrier();
	limit = Min(dgen_bounds_limit(dgen_bounds_read(), 0), last + 1);
	ended = dgen_bound_prepared_ended();
	dgen_reply_announce_rest();
	CommitTransactionCommand();
	sweep_for_prepared(ended);

	/* somebody found no room; a sweep that is under way comes to an end first */
	if (frontier >= limit && pg_atomic_exchange_u32(&db->resweep, 0) != 0)
		frontier = 0;

	if (!feed_range(&frontier, limit))
		return;
	/* a message on its way back puts the limit below what is done already */
	reached = Max(reached, frontier);
	if (limit <= last)
		feed_held(Max(limit, frontier), last);
}

static void
rotate(void)
{
	TimestampTz start = GetCurrentTimestamp();

	if (pass_time < rotate_at)
		return;
	if (rotation >= frontier)
		rotation = 0;
	if (rotation < frontier)
		(void) feed_chunk(&rotation, frontier, ROTATE_ROWS);
	rotate_at = pace(start, ROTATE_MS);
}

/* -------------------------------------------------------------------- due */

/*
 * Give a message to the mailbox, under the id that it has had from the
 * start, or a timer's behind all that waits.  One that expired meanwhile goes there too: workers count those.
 */
static DueResult
deliver_delayed(DgenTable *table, HeapTuple tuple)
{
	DgenMessage msg;
	DgenAddress address;
	DgenModule *module;
	TM_Result	result;

	dgen_message_deform(tuple, RelationGetDescr(table->rel), 1, &msg);
	dgen_address_parse(msg.server, strlen(msg.server), &address);
	module = dgen_module_get(address.module, true);
	if (module == NULL)
	{
		drop_orphan(table, tuple, msg.hash, msg.server);
		return DUE_DONE;
	}

	result = dgen_table_delete(table, &msg.tid);
	if (result == TM_BeingModified)
		return DUE_LATER;		/* being cancelled, which may be undone */
	if (result != TM_Ok)
		return DUE_DONE;
	msg.due_at = 0;
	if (msg.timer != 0)
		dgen_mailbox_append(module, &msg);
	else
		dgen_mailbox_put_back(module, &msg);
	return DUE_DONE;
}

static DueResult
ring_attempt(DgenTable *table, HeapTuple tuple)
{
	bool		isnull;
	char	   *server = TextDatumGetCString(heap_getattr(tuple, ATTEMPT_SERVER,
														  RelationGetDescr(table->rel),
														  &isnull));

	int64		hash = dgen_address_hash(server, strlen(server));
	bool		rung = dgen_is_effects(server) ?
		ring_server(server + 1, hash, DGEN_POOL_LONG) :
		ring_server(server, hash, DGEN_POOL_HANDLERS);

	return rung ? DUE_DONE : DUE_NO_ROOM;
}

static DueResult
delete_expired(DgenTable *table, HeapTuple tuple)
{
	return dgen_table_delete(table, &tuple->t_self) == TM_BeingModified ?
		DUE_LATER : DUE_DONE;
}

/* A trace ended a day ago: it goes with its log. */
static DueResult
forget_trace(DgenTable *table, HeapTuple tuple)
{
	return dgen_trace_remove(table, tuple) ? DUE_DONE : DUE_LATER;
}

/*
 * One transaction's worth of what is due.  Returns true if there is more.
 * Looks a little ahead as well, to learn when the next one is due; not
 * farther than the next pass, since there may be many dead rows on the way.
 */
static bool
due_chunk(const DueKind *kind, DueState *state)
{
	Snapshot	snapshot = begin();
	DgenTable  *table = dgen_table_open(kind->table,
										kind->stays ? AccessShareLock : RowExclusiveLock);
	TimestampTz low = pass_time + 1;
	TimestampTz last = DT_NOBEGIN;
	ScanKeyData keys[2];
	DgenScan   *scan;
	HeapTuple	tuple;
	int			done = 0;
	bool		more = false;

	dgen_key_time(&keys[0], 1, state->low, BTGreaterEqualStrategyNumber);
	dgen_key_time(&keys[1], 1, after(PASS_MS), BTLessEqualStrategyNumber);
	scan = dgen_scan_begin(table, kind->index, snapshot, 2, keys);
	while ((tuple = dgen_scan_next(scan)) != NULL)
	{
		MemoryContext old;
		DueResult	result;
		bool		isnull;
		TimestampTz due = DatumGetTimestampTz(heap_getattr(tuple, kind->attno,
														   RelationGetDescr(table->rel),
														   &isnull));

		CHECK_FOR_INTERRUPTS();
		if (due > pass_time)
		{
			look_at(Max(due, after(kind->interval_ms)));
			break;
		}

		/*
		 * Where rows stay we would meet them again, so the next chunk must
		 * begin at a later time than this one ends.
		 */
		if (done >= kind->chunk && (!kind->stays || due != last))
		{
			low = Min(low, due);
			more = true;
			break;
		}

		old = MemoryContextSwitchTo(row_context);
		result = kind->handle(table, tuple);
		MemoryContextSwitchTo(old);
		MemoryContextReset(row_context);

		last = due;
		if (result == DUE_DONE)
			done++;
		else
			low = Min(low, due);
		if (result == DUE_NO_ROOM)
		{
			look_at(after(NO_ROOM_MS));
			break;
		}
	}
	dgen_scan_end(scan);
	dgen_table_close(table);
	dgen_waitpoint_reach("dgen-due");
	commit();
	state->low = low;
	return more;
}

/* Handle what is due in all tables; announced: the earliest that we were told. */
static void
handle_due(TimestampTz announced)
{
	for (int i = 0; i < NKINDS; i++)
	{
		const DueKind *kind = &due_kinds[i];
		DueState   *state = &due_states[i];
		TimestampTz start = GetCurrentTimestamp();
		bool		sweep = state->sweep_at <= pass_time;
		bool		more = true;

		state->low = Min(state->low, announced);
		if (pass_time < state->look_at && !sweep)
			continue;
		if (sweep)
			state->low = DT_NOBEGIN;

		for (int n = 0; more && n < MAX_CHUNKS; n++)
			more = due_chunk(kind, state);
		if (sweep)
			state->sweep_at = pace(start, SWEEP_MS);
		state->look_at = more ? pass_time : after(kind->interval_ms);
		if (more)
			look_at(pass_time);
	}
}

/* ---------------------------------------------------------------- letters */

/*
 * Has a letter lain there for longer than its module keeps them?  Those of a
 * module that is gone stay until it is back, or dropped with all that it has.
 */
static bool
letter_expired(DgenTable *table, HeapTuple tuple, TimestampTz failed_at)
{
	bool		isnull;
	char	   *server = TextDatumGetCString(heap_getattr(tuple, LETTER_SERVER,
														  RelationGetDescr(table->rel),
														  &isnull));
	DgenAddress address;
	DgenModule *module;

	dgen_address_parse(server, strlen(server), &address);
	pfree(server);
	module = dgen_module_get(address.module, true);
	return module != NULL && failed_at < pass_time - module->dead_letter_ttl;
}

/*
 * Look at some dead letters, the oldest first.  Modules keep them for
 * different times, so there is no point below which nothing is left: a
 * cursor goes round.  True if so many went that it is worth going on.
 */
static bool
letter_chunk(void)
{
	Snapshot	snapshot = begin();
	DgenTable  *table = dgen_table_open(DGEN_T_LETTER, RowExclusiveLock);
	ScanKeyData key;
	DgenScan   *scan;
	HeapTuple	tuple;
	int			n = 0;
	int			deleted = 0;
	TimestampTz cursor = DT_NOBEGIN;

	dgen_key_time(&key, 1, letter_cursor, BTGreaterStrategyNumber);
	scan = dgen_scan_begin(table, LETTER_FAILED_INDEX, snapshot, 1, &key);
	while ((tuple = dgen_scan_next(scan)) != NULL)
	{
		bool		isnull;
		TimestampTz failed_at = DatumGetTimestampTz(heap_getattr(tuple, LETTER_FAILED_AT,
																 RelationGetDescr(table->rel),
																 &isnull));

		CHECK_FOR_INTERRUPTS();
		if (letter_expired(table, tuple, failed_at) &&
			dgen_table_delete(table, &tuple->t_self) == TM_Ok)
			deleted++;
		if (++n == LETTER_ROWS)
		{
			cursor = failed_at;
			break;
		}
	}
	dgen_scan_end(scan);
	dgen_table_close(table);
	commit();
	letter_cursor = cursor;
	return n == LETTER_ROWS && deleted > LETTER_ROWS / 2;
}

static void
expire_letters(void)
{
	TimestampTz start = GetCurrentTimestamp();
	bool		more = true;

	if (pass_time < letters_at)
		return;
	for (int i = 0; more && i < MAX_CHUNKS; i++)
		more = letter_chunk();
	letters_at = more ? pass_time : pace(start, LETTERS_MS);
}

/* ---------------------------------------------------------------- history */

/*
 * A part of a round through all servers that have a history.  Those that
 * change delete their own oldest versions; this is for the others.
 */
static void
expire_history(void)
{
	TimestampTz start = GetCurrentTimestamp();
	bool		more = true;

	if (pass_time < history_rest ||
		(pass_time < history_at && history_modules == dgen_module_version()))
		return;
	history_modules = dgen_module_version();
	for (int i = 0; more && i < MAX_CHUNKS; i++)
	{
		MemoryContext old;
		Snapshot	snapshot = begin();

		old = MemoryContextSwitchTo(row_context);
		dgen_history_sweep(&history_cursor, snapshot);
		MemoryContextSwitchTo(old);
		MemoryContextReset(row_context);
		commit();
		more = history_cursor.server[0] != '\0';
	}
	/* one with very much of it: the others have their turn, then we go on */
	if (history_cursor.version > 0)
	{
		history_rest = history_at = pass_time;
		look_at(pass_time);
		return;
	}
	history_rest = pace(start, 0);
	history_at = pace(start, HISTORY_MS);
}

static void
expire_audit(void)
{
	TimestampTz start = GetCurrentTimestamp();
	bool		more = true;

	if (pass_time < audit_at)
		return;
	for (int i = 0; more && i < MAX_CHUNKS; i++)
	{
		more = dgen_audit_sweep(pass_time, begin());
		commit();
	}
	audit_at = more ? pass_time : pace(start, AUDIT_MS);
}

/* ------------------------------------------------------------------ passes */

/*
 * Transactions that were prepared before the server started may hold messages
 * with any id.  Until we have published that, no mark moves.  Those prepared
 * since publish for themselves.
 */
static void
publish_prepared(void)
{
	if (pg_atomic_read_u32(&db->prepared_known) != 0)
		return;

	(void) begin();
	SPI_connect();
	if (SPI_execute("SELECT p.transaction FROM pg_catalog.pg_prepared_xacts p"
					" WHERE p.database OPERATOR(pg_catalog.=) pg_catalog.current_database()",
					true, 0) != SPI_OK_SELECT)
		elog(ERROR, "could not read pg_prepared_xacts");
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		bool		isnull;
		Datum		xid = SPI_getbinval(SPI_tuptable->vals[i], SPI_tuptable->tupdesc,
										1, &isnull);

		if (!isnull)
			dgen_bound_add_prepared(MyDatabaseId, DatumGetTransactionId(xid));
	}
	SPI_finish();
	commit();
	pg_atomic_write_u32(&db->prepared_known, 1);
}

/* May anybody connect?  Those who are there go on, but no worker could come. */
static bool
is_closed(void)
{
	HeapTuple	tuple = SearchSysCache1(DATABASEOID, ObjectIdGetDatum(MyDatabaseId));
	bool		result;

	if (!HeapTupleIsValid(tuple))
		return true;
	result = !((Form_pg_database) GETSTRUCT(tuple))->datallowconn;
	ReleaseSysCache(tuple);
	return result;
}

/* Is the extension here, in a version that fits?  Where it does not, the log says so, once. */
static bool
extension_fits(void)
{
	DgenError  *fault;

	if (!dgen_extension_present())
		return false;
	fault = dgen_version_fault(NULL);
	if (fault != NULL)
		dgen_version_report(WARNING, fault);
	return fault == NULL;
}

/*
 * Is the extension here, and is the database armed?  Says so to all others.
 */
static void
check_database(void)
{
	bool		present;

	(void) begin();
	if (is_closed())
		closed = true;
	present = !closed && extension_fits();
	if (present && (!armed || pass_time >= armed_until))
	{
		armed = dgen_database_armed();
		armed_until = after(UNARMED_MS);
		if (pg_atomic_exchange_u32(&db->armed, armed ? 1 : 0) == 0 && armed)
			dgen_wake_launcher();
	}
	commit();

	if (!present)
	{
		nothing_here = !closed;
		proc_exit(0);
	}
}

/* From now on the launcher may start the next keeper. */
static void
report_running(void)
{
	if (db->keeper == DGEN_KEEPER_RUNNING)
		return;
	LWLockAcquire(&dgen_shared->lock, LW_EXCLUSIVE);
	db->keeper = DGEN_KEEPER_RUNNING;
	LWLockRelease(&dgen_shared->lock);
	dgen_wake_launcher();
}

static void
drop_orphans(void)
{
	static TimestampTz orphans_at = 0;

	if (pass_time < orphans_at)
		return;
	(void) begin();
	dgen_orphans_drop();
	commit();
	orphans_at = after(ORPHANS_MS);
}

static void
keeper_pass(void)
{
	TimestampTz announced;

	pass_time = GetCurrentTimestamp();
	next_look = after(PASS_MS);

	/* what is announced from here on sets our latch again */
	announced = (TimestampTz) pg_atomic_exchange_u64(&db->next_due, (uint64) DT_NOEND);

	pgstat_report_activity(STATE_RUNNING, "dgen keeper");
	check_database();
	report_running();
	if (!armed)
		next_look = after(UNARMED_MS);
	else
	{
		publish_prepared();
		feed();
		rotate();
		handle_due(announced);
		expire_letters();
		expire_history();
		if (dgen_announce_due(db) <= pass_time)
			dgen_announce(db);
		expire_audit();
		drop_orphans();
	}
	pgstat_report_activity(STATE_IDLE, NULL);
}

/* Forget how far we were: a pass that failed has lost what was announced. */
static void
start_over(void)
{
	for (int i = 0; i < NKINDS; i++)
	{
		due_states[i].low = DT_NOBEGIN;
		due_states[i].look_at = 0;
		due_states[i].sweep_at = 0;
	}
}

/*
 * A pass that fails is logged, and tried again; one that keeps failing ends
 * the process, and the launcher's backoff goes on from there.
 */
static void
guarded(void (*pass) (void))
{
	PG_TRY();
	{
		pass();
		errors = 0;
	}
	PG_CATCH();
	{
		HOLD_INTERRUPTS();
		EmitErrorReport();
		AbortOutOfAnyTransaction();
		MemoryContextSwitchTo(TopMemoryContext);
		FlushErrorState();
		MemoryContextReset(row_context);
		RESUME_INTERRUPTS();

		pgstat_report_activity(STATE_IDLE, NULL);
		if (++errors >= MAX_ERRORS)
			proc_exit(1);
		start_over();
		next_look = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), 1000);
	}
	PG_END_TRY();
}

/* Between passes. */
static void
announce_pass(void)
{
	pgstat_report_activity(STATE_RUNNING, "dgen keeper");
	dgen_announce(db);
	pgstat_report_activity(STATE_IDLE, NULL);
}

/* Whoever commits something due later than this need not wake us. */
static void
publish_next_look(void)
{
	uint64		old = pg_atomic_read_u64(&db->next_due);

	while (next_look < (TimestampTz) old)
	{
		if (pg_atomic_compare_exchange_u64(&db->next_due, &old, (uint64) next_look))
			break;
	}
}

/* Sleep until something is due; at once back if it is already. */
static void
keeper_sleep(void)
{
	static uint32 wait_event = 0;
	TimestampTz due = (TimestampTz) pg_atomic_read_u64(&db->next_due);
	long		timeout;

	due = Min(due, next_look);
	if (armed)
		due = Min(due, dgen_announce_due(db));
	timeout = TimestampDifferenceMilliseconds(GetCurrentTimestamp(), due);

	if (wait_event == 0)
		wait_event = WaitEventExtensionNew("DgenKeeperMain");
	(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
					 timeout, wait_event);
	ResetLatch(MyLatch);
}

static bool
is_due(void)
{
	TimestampTz due = (TimestampTz) pg_atomic_read_u64(&db->next_due);

	return Min(due, next_look) <= GetCurrentTimestamp();
}

/* -------------------------------------------------------------------- main */

/* Caller holds dgen_shared->lock. */
static void
set_backoff(TimestampTz at)
{
	int			ms = 1000;

	if (TimestampDifferenceExceeds(db->keeper_started_at, at, HEALTHY_MS))
		db->keeper_failures = 0;
	for (int i = 0; i < db->keeper_failures && ms < MAX_BACKOFF_MS; i++)
		ms *= 2;
	db->keeper_failures++;
	db->keeper_retry_at = TimestampTzPlusMilliseconds(at, Min(ms, MAX_BACKOFF_MS));
}

/*
 * Leave word for the launcher.  Runs after the abort of an open transaction,
 * since it was registered before the process connected.
 */
static void
keeper_exit(int code, Datum database)
{
	TimestampTz at = GetCurrentTimestamp();

	if (db == NULL)
		return;
	LWLockAcquire(&dgen_shared->lock, LW_EXCLUSIVE);
	if (db->database == DatumGetObjectId(database) && db->keeper_pid == MyProcPid)
	{
		db->keeper_pid = 0;
		db->keeper_pgprocno = DGEN_NONE;
		db->keeper = DGEN_KEEPER_WANTED;
		db->keeper_retry_at = 0;
		if (closed)
			pg_atomic_write_u32(&db->armed, 0);
		if (nothing_here)
		{
			pg_atomic_write_u32(&db->armed, 0);
			/* CREATE EXTENSION may have committed since we looked */
			if (!db->keeper_again)
				db->keeper = DGEN_KEEPER_ABSENT;
		}
		else if (sent_away)
		{
			/* by a DROP DATABASE that may fail, or by hand */
			if (db->kept_out == 0)
				db->keeper_retry_at = TimestampTzPlusMilliseconds(at, 1000);
		}
		else if (code != 0)
			set_backoff(at);
	}
	LWLockRelease(&dgen_shared->lock);
	dgen_wake_launcher();
}

/* Take the entry that the launcher made for us; false if it is not ours. */
static bool
keeper_attach(Oid database)
{
	DgenDatabase *entry = dgen_database(database, false);
	bool		mine;

	if (entry == NULL)
		return false;

	LWLockAcquire(&dgen_shared->lock, LW_EXCLUSIVE);
	mine = (entry->database == database && entry->keeper == DGEN_KEEPER_STARTING &&
			entry->keeper_pid == 0);
	if (mine && entry->kept_out > 0)
	{
		entry->keeper = DGEN_KEEPER_WANTED;
		mine = false;
	}
	if (mine)
	{
		entry->keeper_pid = MyProcPid;
		entry->keeper_pgprocno = MyProcIndex;
		entry->keeper_started_at = GetCurrentTimestamp();
		entry->keeper_again = false;
		db = entry;
	}
	LWLockRelease(&dgen_shared->lock);
	return mine;
}

static void
keeper_die(SIGNAL_ARGS)
{
	sent_away = true;
	die(postgres_signal_arg);
}

static void
error_context(void *arg)
{
	errcontext("dgen keeper of database %u", MyDatabaseId);
}

void
dgen_keeper_main(Datum main_arg)
{
	Oid			database = DatumGetObjectId(main_arg);
	ErrorContextCallback callback = {0};

	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, keeper_die);
	before_shmem_exit(keeper_exit, ObjectIdGetDatum(database));
	BackgroundWorkerUnblockSignals();

	if (!keeper_attach(database))
		proc_exit(0);
	BackgroundWorkerInitializeConnectionByOid(database, InvalidOid, 0);
	dgen_internal_settings("dgen keeper");

	row_context = AllocSetContextCreate(TopMemoryContext, "dgen keeper row",
										ALLOCSET_DEFAULT_SIZES);
	MemoryContextSwitchTo(TopMemoryContext);
	callback.callback = error_context;
	callback.previous = error_context_stack;
	error_context_stack = &callback;
	start_over();

	for (;;)
	{
		/* sent away: no FATAL in the log for that */
		if (sent_away)
			proc_exit(0);
		CHECK_FOR_INTERRUPTS();
		if (ConfigReloadPending)
		{
			ConfigReloadPending = false;
			ProcessConfigFile(PGC_SIGHUP);
		}
		/* the launcher starts one again when it is on */
		if (!dgen_enabled)
			proc_exit(0);
		AcceptInvalidationMessages();

		if (is_due())
		{
			guarded(keeper_pass);
			publish_next_look();
		}
		else if (armed && dgen_announce_due(db) <= GetCurrentTimestamp())
			guarded(announce_pass);
		else
			keeper_sleep();
	}
}
