/*-------------------------------------------------------------------------
 *
 * trace.c
 *	  Traces: each activation of a server, or of a module's servers, as a row.
 *
 * dgen.trace holds what is traced, dgen.trace_entry what was seen.  A module
 * in memory knows its traces, so that one that has none pays for a look at a
 * pointer; starting or ending a trace counts as a change of the module.
 *
 * A row is written in the transaction of its activation, so what is in the log
 * has happened.  What failed in a worker is written in the transaction that
 * records the failure, or for a call in one of its own, before its caller is
 * told.  What fails in a caller's transaction goes with it.
 *
 * Entries of a trace are a ring: the one at a place replaces the one before.
 * The next number is in shared memory, and is only a hint: after a crash it is
 * found from the table, and two of the same number merely share a place.  An
 * activation that was undone leaves its place as it was.
 *
 * Locks: dgen_module_lock() to start and stop a trace; to write an entry none
 * but an LWLock to find the ring, under which nothing else is taken.  Rows are
 * deleted without waiting: what another transaction is deleting goes with it.
 *
 *-------------------------------------------------------------------------
 */
#include "batch.h"

#include "access/skey.h"
#include "access/stratnum.h"
#include "access/xact.h"
#include "catalog/pg_collation_d.h"
#include "commands/sequence.h"
#include "module.h"
#include "utils/fmgroids.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#define MAX_TRACES 64			/* in one database, ended ones included */
#define MAX_ROWS 100000
#define MAX_DURATION (INT64CONST(7) * USECS_PER_DAY)
#define KEEP_FOR USECS_PER_DAY	/* an ended trace's log */
#define MAX_MESSAGE 8192		/* larger ones are not kept */
#define NRINGS 256

/* columns of dgen.trace, from 0; target: an address, or module and '/' */
enum
{
	TRACE_ID, TRACE_TARGET, TRACE_STARTED_AT, TRACE_STARTED_BY, TRACE_ENDS_AT,
	TRACE_KEEP_UNTIL, TRACE_MAX_ROWS, TRACE_NCOLS
};

/* and of dgen.trace_entry */
enum
{
	ENTRY_TRACE, ENTRY_PLACE, ENTRY_NUMBER, ENTRY_AT, ENTRY_SERVER, ENTRY_KIND,
	ENTRY_SENDER, ENTRY_SENDER_ROLE, ENTRY_OLD_VERSION, ENTRY_NEW_VERSION,
	ENTRY_REPLIED, ENTRY_EXIT_REASON, ENTRY_DURATION, ENTRY_PID, ENTRY_MESSAGE_SIZE,
	ENTRY_MESSAGE, ENTRY_ERROR, ENTRY_NCOLS
};

/* the next number of a trace's entries */
typedef struct Ring
{
	Oid			database;		/* InvalidOid: free */
	int64		trace;
	pg_atomic_uint64 next;
} Ring;

typedef struct TraceShared
{
	LWLock		lock;			/* protects what follows, but for the numbers */
	int			victim;			/* the ring to be given up next */
	Ring		rings[NRINGS];
} TraceShared;

static TraceShared *shared = NULL;

PG_FUNCTION_INFO_V1(dgen_trace);
PG_FUNCTION_INFO_V1(dgen_untrace);

/* ---------------------------------------------------------------- rings */

Size
dgen_trace_size(void)
{
	return sizeof(TraceShared);
}

void
dgen_trace_init(void *place, bool found)
{
	shared = place;
	if (found)
		return;
	memset(shared, 0, sizeof(TraceShared));
	LWLockInitialize(&shared->lock, dgen_shared->tranche);
	for (int i = 0; i < NRINGS; i++)
		pg_atomic_init_u64(&shared->rings[i].next, 0);
}

/* The caller holds the lock, in any mode. */
static Ring *
find_ring(int64 trace)
{
	for (int i = 0; i < NRINGS; i++)
	{
		if (shared->rings[i].database == MyDatabaseId && shared->rings[i].trace == trace)
			return &shared->rings[i];
	}
	return NULL;
}

/* The number behind all that are in the table. */
static int64
first_number(DgenTable *entries, int64 trace)
{
	int64		next = 0;
	ScanKeyData key;
	DgenScan   *scan;
	HeapTuple	tuple;

	dgen_key_int8(&key, 1, trace, BTEqualStrategyNumber);
	scan = dgen_scan_begin(entries, DGEN_I_TRACE_ENTRY_PLACE, NULL, 1, &key);
	while ((tuple = dgen_scan_next(scan)) != NULL)
	{
		bool		isnull;

		next = Max(next, DatumGetInt64(heap_getattr(tuple, ENTRY_NUMBER + 1,
													RelationGetDescr(entries->rel), &isnull)) + 1);
	}
	dgen_scan_end(scan);
	return next;
}

static int64
next_number(DgenTable *entries, int64 trace)
{
	Ring	   *ring;
	int64		number = -1;
	int64		first;

	LWLockAcquire(&shared->lock, LW_SHARED);
	ring = find_ring(trace);
	if (ring != NULL)
		number = (int64) pg_atomic_fetch_add_u64(&ring->next, 1);
	LWLockRelease(&shared->lock);
	if (number >= 0)
		return number;

	first = first_number(entries, trace);
	LWLockAcquire(&shared->lock, LW_EXCLUSIVE);
	ring = find_ring(trace);
	if (ring == NULL)
	{
		ring = &shared->rings[shared->victim++ % NRINGS];
		ring->database = MyDatabaseId;
		ring->trace = trace;
		pg_atomic_write_u64(&ring->next, (uint64) first);
	}
	number = (int64) pg_atomic_fetch_add_u64(&ring->next, 1);
	LWLockRelease(&shared->lock);
	return number;
}

/* ---------------------------------------------------------------- a module's traces */

/* Targets from "name/" up to before "name0": '0' follows '/'. */
static DgenScan *
begin_targets(DgenTable *table, const char *module, Snapshot snapshot)
{
	ScanKeyData keys[2];

	ScanKeyEntryInitialize(&keys[0], 0, 1, BTGreaterEqualStrategyNumber, InvalidOid,
						   C_COLLATION_OID, F_TEXT_GE, CStringGetTextDatum(psprintf("%s/", module)));
	ScanKeyEntryInitialize(&keys[1], 0, 1, BTLessStrategyNumber, InvalidOid,
						   C_COLLATION_OID, F_TEXT_LT, CStringGetTextDatum(psprintf("%s0", module)));
	return dgen_scan_begin(table, DGEN_I_TRACE_TARGET, snapshot, 2, keys);
}

static DgenTrace *
make_trace(DgenModule *module, Datum *values)
{
	DgenTrace  *trace = MemoryContextAllocZero(module->mcxt, sizeof(DgenTrace));
	char	   *target = TextDatumGetCString(values[TRACE_TARGET]);

	trace->id = DatumGetInt64(values[TRACE_ID]);
	trace->ends_at = DatumGetTimestampTz(values[TRACE_ENDS_AT]);
	trace->max_rows = DatumGetInt32(values[TRACE_MAX_ROWS]);
	if (target[strlen(target) - 1] != '/' || strchr(target, '/') != target + strlen(target) - 1)
		trace->server = MemoryContextStrdup(module->mcxt, target);
	return trace;
}

/*
 * Read the traces of a module that is being loaded: like its row, without
 * predicate locks.
 */
void
dgen_trace_load(DgenModule *module)
{
	DgenTable  *table = dgen_table_open(DGEN_T_TRACE, AccessShareLock);
	Snapshot	registered = RegisterSnapshot(GetCatalogSnapshot(RelationGetRelid(table->rel)));
	TimestampTz now = GetCurrentTimestamp();
	DgenScan   *scan;
	HeapTuple	tuple;

	scan = begin_targets(table, module->name,
						 IsolationIsSerializable() && FirstSnapshotSet ? NULL : registered);
	while ((tuple = dgen_scan_next(scan)) != NULL)
	{
		Datum		values[DGEN_MAX_COLUMNS];
		bool		nulls[DGEN_MAX_COLUMNS];
		DgenTrace  *trace;

		heap_deform_tuple(tuple, RelationGetDescr(table->rel), values, nulls);
		if (DatumGetTimestampTz(values[TRACE_ENDS_AT]) <= now)
			continue;
		trace = make_trace(module, values);
		trace->next = module->traces;
		module->traces = trace;
	}
	dgen_scan_end(scan);
	UnregisterSnapshot(registered);
	dgen_table_close_unlock(table);
}

static bool
is_traced(const DgenTrace *trace, const char *server, TimestampTz now)
{
	return trace->ends_at > now &&
		(trace->server == NULL || strcmp(trace->server, server) == 0);
}

/* ---------------------------------------------------------------- entries */

/* one activation, as it is told */
typedef struct Entry
{
	TimestampTz at;				/* when it began */
	int64		duration;		/* microseconds; -1: not known, as the next two */
	int64		old_version;
	int64		new_version;
	const char *server;
	const char *kind;
	const char *sender;
	const char *sender_role;
	bool		replied;
	const char *exit_reason;	/* or NULL, as the next two */
	Jsonb	   *message;
	Jsonb	   *error;
} Entry;

static void
set_text(Datum *values, bool *nulls, int column, const char *value)
{
	nulls[column] = value == NULL;
	values[column] = value ? CStringGetTextDatum(value) : (Datum) 0;
}

static void
set_int8(Datum *values, bool *nulls, int column, int64 value)
{
	nulls[column] = value < 0;
	values[column] = Int64GetDatum(value);
}

static void
set_jsonb(Datum *values, bool *nulls, int column, Jsonb *value)
{
	nulls[column] = value == NULL;
	values[column] = value ? JsonbPGetDatum(value) : (Datum) 0;
}

/* Make room at a place of the ring. */
static void
clear_place(DgenTable *entries, int64 trace, int64 place)
{
	ScanKeyData keys[2];
	DgenScan   *scan;
	HeapTuple	tuple;

	dgen_key_int8(&keys[0], 1, trace, BTEqualStrategyNumber);
	dgen_key_int8(&keys[1], 2, place, BTEqualStrategyNumber);
	scan = dgen_scan_begin(entries, DGEN_I_TRACE_ENTRY_PLACE, NULL, 2, keys);
	while ((tuple = dgen_scan_next(scan)) != NULL)
		(void) dgen_table_delete(entries, &tuple->t_self);
	dgen_scan_end(scan);
}

static void
write_entry(DgenTrace *trace, const Entry *entry)
{
	DgenTable  *entries = dgen_table_open(DGEN_T_TRACE_ENTRY, RowExclusiveLock);
	int64		number = next_number(entries, trace->id);
	Datum		values[ENTRY_NCOLS];
	bool		nulls[ENTRY_NCOLS] = {false};

	/* the row to be replaced may be of this very batch */
	CommandCounterIncrement();
	clear_place(entries, trace->id, number % trace->max_rows);
	values[ENTRY_TRACE] = Int64GetDatum(trace->id);
	values[ENTRY_PLACE] = Int64GetDatum(number % trace->max_rows);
	values[ENTRY_NUMBER] = Int64GetDatum(number);
	values[ENTRY_AT] = TimestampTzGetDatum(entry->at);
	set_text(values, nulls, ENTRY_SERVER, entry->server);
	set_text(values, nulls, ENTRY_KIND, entry->kind);
	set_text(values, nulls, ENTRY_SENDER, entry->sender);
	set_text(values, nulls, ENTRY_SENDER_ROLE, entry->sender_role);
	set_int8(values, nulls, ENTRY_OLD_VERSION, entry->old_version);
	set_int8(values, nulls, ENTRY_NEW_VERSION, entry->new_version);
	values[ENTRY_REPLIED] = BoolGetDatum(entry->replied);
	set_text(values, nulls, ENTRY_EXIT_REASON, entry->exit_reason);
	set_int8(values, nulls, ENTRY_DURATION, entry->duration);
	values[ENTRY_PID] = Int32GetDatum(MyProcPid);
	values[ENTRY_MESSAGE_SIZE] = Int64GetDatum((int64) VARSIZE(entry->message));
	set_jsonb(values, nulls, ENTRY_MESSAGE,
			  VARSIZE(entry->message) > MAX_MESSAGE ? NULL : entry->message);
	set_jsonb(values, nulls, ENTRY_ERROR, entry->error);
	dgen_table_insert(entries, values, nulls, NULL);
	dgen_table_close(entries);
	CommandCounterIncrement();
}

static void
write_entries(DgenTrace *traces, const Entry *entry)
{
	TimestampTz now = GetCurrentTimestamp();

	for (DgenTrace *trace = traces; trace != NULL; trace = trace->next)
	{
		if (is_traced(trace, entry->server, now))
			write_entry(trace, entry);
	}
}

/* The version that a server has, or will have once it is written. */
int64
dgen_trace_version(const DgenServer *server)
{
	return server->version + (server->state_changed ? 1 : 0);
}

/* An activation has ended; began and version are from before it. */
void
dgen_trace_activation(DgenTrace *traces, DgenActivation *act, TimestampTz began, int64 version)
{
	Entry		entry = {0};

	/* what will be undone is told as a failure */
	if (act->outcome != DGEN_HANDLED)
		return;
	entry.at = began;
	entry.duration = GetCurrentTimestamp() - began;
	entry.old_version = version;
	entry.new_version = dgen_trace_version(act->server);
	if (act->module->ephemeral)
		entry.old_version = entry.new_version = -1;
	entry.server = act->server->address;
	entry.kind = act->kind;
	entry.sender = act->sender;
	entry.sender_role = act->sender_role;
	entry.replied = act->replied && act->callback == DGEN_HANDLE_CALL && !act->postponed && !act->locked;
	entry.exit_reason = act->exited ? act->reason : NULL;
	entry.message = act->message;
	write_entries(traces, &entry);
}

/* ---------------------------------------------------------------- failures */

static void
fill_failure(Batch *b, BatchItem *item, Entry *entry)
{
	memset(entry, 0, sizeof(Entry));
	/* a worker that was lost has left no word of when it began */
	entry->at = b->activation_began ? b->activation_began : GetCurrentTimestamp();
	entry->duration = b->activation_began ? GetCurrentTimestamp() - b->activation_began : -1;
	entry->old_version = entry->new_version = -1;
	if (item->msg != NULL)
	{
		entry->server = item->msg->server;
		entry->kind = dgen_message_kind(item->msg->kind);
		entry->sender = item->msg->sender;
		entry->sender_role = item->msg->sender_role;
		entry->message = item->msg->message;
	}
	else
	{
		DgenCall   *call = b->calls[item->call].call;

		entry->server = call->data;
		entry->kind = "call";
		entry->sender = call->data + call->sender_off;
		entry->sender_role = call->data + call->role_off;
		entry->message = (Jsonb *) (call->data + call->request_off);
	}
	entry->error = dgen_error_to_jsonb(b->error);
}

/* A message has failed alone; in the transaction that records it. */
void
dgen_trace_failure(Batch *b, DgenModule *module, BatchItem *item)
{
	Entry		entry;

	if (module->traces == NULL)
		return;
	fill_failure(b, item, &entry);
	write_entries(module->traces, &entry);
}

static void
record_call(Batch *b, BatchItem *item)
{
	DgenModule *module = dgen_module_by_id(b->module_id);

	if (module == NULL)
		return;
	PushActiveSnapshot(GetTransactionSnapshot());
	dgen_trace_failure(b, module, item);
	PopActiveSnapshot();
}

/*
 * A call has failed alone, and its transaction has been rolled back: in one of
 * its own, which must not keep the error from its caller.
 */
void
dgen_trace_failed_call(Batch *b, BatchItem *item)
{
	MemoryContext mcxt = CurrentMemoryContext;

	if (!b->traced)
		return;
	PG_TRY();
	{
		SetCurrentStatementStartTimestamp();
		StartTransactionCommand();
		XactReadOnly = false;
		XactIsoLevel = XACT_READ_COMMITTED;
		MemoryContextSwitchTo(mcxt);
		record_call(b, item);
		CommitTransactionCommand();
	}
	PG_CATCH();
	{
		HOLD_INTERRUPTS();
		MemoryContextSwitchTo(mcxt);
		EmitErrorReport();
		FlushErrorState();
		AbortOutOfAnyTransaction();
		RESUME_INTERRUPTS();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(mcxt);
}

/* ---------------------------------------------------------------- removing */

static void
delete_entries(int index, ScanKey key)
{
	DgenTable  *entries = dgen_table_open(DGEN_T_TRACE_ENTRY, RowExclusiveLock);
	DgenScan   *scan;
	HeapTuple	tuple;

	CommandCounterIncrement();
	scan = dgen_scan_begin(entries, index, NULL, 1, key);
	while ((tuple = dgen_scan_next(scan)) != NULL)
	{
		CHECK_FOR_INTERRUPTS();
		(void) dgen_table_delete(entries, &tuple->t_self);
	}
	dgen_scan_end(scan);
	dgen_table_close(entries);
	CommandCounterIncrement();
}

/* A server is deleted: what was seen of it goes as well. */
void
dgen_trace_erase(const DgenAddress *address)
{
	ScanKeyData key;

	dgen_key_text(&key, 1, address->text);
	delete_entries(DGEN_I_TRACE_ENTRY_SERVER, &key);
}

/* Delete a trace and its log; false if somebody else is at it. */
bool
dgen_trace_remove(DgenTable *table, HeapTuple tuple)
{
	bool		isnull;
	int64		id = DatumGetInt64(heap_getattr(tuple, TRACE_ID + 1, RelationGetDescr(table->rel), &isnull));
	ScanKeyData key;
	TM_Result	result = dgen_table_delete(table, &tuple->t_self);

	if (result != TM_Ok)
		return result != TM_BeingModified;
	dgen_key_int8(&key, 1, id, BTEqualStrategyNumber);
	delete_entries(DGEN_I_TRACE_ENTRY_PLACE, &key);
	return true;
}

/* ---------------------------------------------------------------- arguments */

/* The module of the one of server and module that is given; *target is the row's. */
static DgenModule *
target_argument(FunctionCallInfo fcinfo, const char *function, char **target)
{
	char	   *name = dgen_arg_text(fcinfo, 1);
	DgenModule *module;
	DgenAddress address;

	if (PG_ARGISNULL(0) == (name == NULL))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("dgen.%s() takes exactly one of server and module", function),
				 PG_ARGISNULL(0) ? errdetail("None is given.") : errdetail("Both are given."),
				 errhint("For example dgen.%s('counter/home') or dgen.%s(module => 'counter').",
						 function, function)));
	dgen_check_writable();
	if (name == NULL)
	{
		dgen_address_arg(fcinfo, 0, &address);
		*target = pstrdup(address.text);
		name = address.module;
	}
	else
		*target = psprintf("%s/", name);
	module = dgen_module_get(name, false);
	dgen_module_check_operate(module);
	return module;
}

static int32
rows_argument(FunctionCallInfo fcinfo)
{
	int32		n = PG_ARGISNULL(2) ? 10000 : PG_GETARG_INT32(2);

	if (n < 1 || n > MAX_ROWS)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("invalid value for argument max_rows"),
				 errdetail("Its value is %d.", n),
				 errhint("Allowed are 1 to %d.", MAX_ROWS)));
	return n;
}

static int64
duration_argument(FunctionCallInfo fcinfo)
{
	int64		usecs = 10 * USECS_PER_MINUTE;

	(void) dgen_arg_interval(fcinfo, 3, "duration", false, &usecs);
	if (usecs > MAX_DURATION)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("invalid value for argument duration"),
				 errhint("A trace can last for 7 days; start it anew then.")));
	return usecs;
}

/* ---------------------------------------------------------------- start */

/*
 * Remove what there is of the same target, and of all others the oldest ended
 * one if there are too many.
 */
static void
make_place(DgenTable *table, const char *target)
{
	TimestampTz now = GetCurrentTimestamp();
	TimestampTz oldest = now;
	HeapTuple	victim = NULL;
	int			n = 0;
	ScanKeyData key;
	DgenScan   *scan;
	HeapTuple	tuple;

	scan = dgen_scan_begin(table, DGEN_I_PKEY, NULL, 0, &key);
	while ((tuple = dgen_scan_next(scan)) != NULL)
	{
		Datum		values[DGEN_MAX_COLUMNS];
		bool		nulls[DGEN_MAX_COLUMNS];

		heap_deform_tuple(tuple, RelationGetDescr(table->rel), values, nulls);
		if (strcmp(TextDatumGetCString(values[TRACE_TARGET]), target) == 0)
		{
			(void) dgen_trace_remove(table, tuple);
			continue;
		}
		n++;
		if (DatumGetTimestampTz(values[TRACE_ENDS_AT]) < oldest)
		{
			oldest = DatumGetTimestampTz(values[TRACE_ENDS_AT]);
			victim = heap_copytuple(tuple);
		}
	}
	dgen_scan_end(scan);
	if (n < MAX_TRACES)
		return;
	if (victim == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("too many traces"),
				 errdetail("%d are running in this database.", n),
				 errhint("End one of those in dgen.traces by dgen.untrace().")));
	(void) dgen_trace_remove(table, victim);
}

/*
 * trace(server text, module text, max_rows integer, duration interval) ->
 * timestamptz: when it ends.  One of the same target is begun anew, and its
 * log goes.
 */
Datum
dgen_trace(PG_FUNCTION_ARGS)
{
	char	   *target;
	int32		max_rows = rows_argument(fcinfo);
	int64		duration = duration_argument(fcinfo);
	char	   *module = pstrdup(target_argument(fcinfo, "trace", &target)->name);
	TimestampTz now = GetCurrentTimestamp();
	DgenTable  *table;
	Datum		values[TRACE_NCOLS];
	bool		nulls[TRACE_NCOLS] = {false};

	dgen_module_lock(module);
	/* it may have been dropped while we waited, and its traces with it */
	(void) dgen_module_get(module, false);
	CommandCounterIncrement();
	table = dgen_table_open(DGEN_T_TRACE, RowExclusiveLock);
	make_place(table, target);
	values[TRACE_ID] = Int64GetDatum(nextval_internal(dgen_sequence_oid("trace_id"), false));
	values[TRACE_TARGET] = CStringGetTextDatum(target);
	values[TRACE_STARTED_AT] = TimestampTzGetDatum(now);
	values[TRACE_STARTED_BY] = CStringGetTextDatum(GetUserNameFromId(GetUserId(), false));
	values[TRACE_ENDS_AT] = TimestampTzGetDatum(now + duration);
	values[TRACE_KEEP_UNTIL] = TimestampTzGetDatum(now + duration + KEEP_FOR);
	values[TRACE_MAX_ROWS] = Int32GetDatum(max_rows);
	dgen_table_insert(table, values, nulls, NULL);
	dgen_table_close(table);
	dgen_due_at_commit(now + duration + KEEP_FOR);
	dgen_module_changed();
	PG_RETURN_TIMESTAMPTZ(now + duration);
}

/* ---------------------------------------------------------------- stop */

/* End it now, if it runs. */
static bool
end_trace(DgenTable *table, HeapTuple tuple)
{
	TimestampTz now = GetCurrentTimestamp();
	Datum		values[DGEN_MAX_COLUMNS];
	bool		nulls[DGEN_MAX_COLUMNS];
	ItemPointerData tid = tuple->t_self;

	heap_deform_tuple(tuple, RelationGetDescr(table->rel), values, nulls);
	if (DatumGetTimestampTz(values[TRACE_ENDS_AT]) <= now)
		return false;
	values[TRACE_ENDS_AT] = TimestampTzGetDatum(now);
	values[TRACE_KEEP_UNTIL] = TimestampTzGetDatum(now + KEEP_FOR);
	dgen_due_at_commit(now + KEEP_FOR);
	return dgen_table_update(table, &tid, InvalidSnapshot, values, nulls, &tid) == TM_Ok;
}

/* untrace(server text, module text) -> boolean: was there a trace of that very one? */
Datum
dgen_untrace(PG_FUNCTION_ARGS)
{
	char	   *target;
	DgenModule *module = target_argument(fcinfo, "untrace", &target);
	DgenTable  *table;
	ScanKeyData key;
	DgenScan   *scan;
	HeapTuple	tuple;
	bool		ended = false;

	dgen_module_lock(module->name);
	CommandCounterIncrement();
	table = dgen_table_open(DGEN_T_TRACE, RowExclusiveLock);
	dgen_key_text(&key, 1, target);
	scan = dgen_scan_begin(table, DGEN_I_TRACE_TARGET, NULL, 1, &key);
	tuple = dgen_scan_next(scan);
	if (tuple != NULL)
		ended = end_trace(table, tuple);
	dgen_scan_end(scan);
	dgen_table_close(table);
	if (ended)
		dgen_module_changed();
	PG_RETURN_BOOL(ended);
}
