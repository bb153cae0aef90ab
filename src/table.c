/*-------------------------------------------------------------------------
 *
 * table.c
 *	  dgen's own tables, below the executor: no rights (a worker runs as a
 *	  module's owner, who has none on them), no triggers, no plans that could
 *	  flip to a sequential scan.
 *
 * The tables have plain indexes only, without expressions or predicates; that
 * is what keeps this short.  Only btrees are scanned here.
 * Runs in any process, inside a transaction.  Takes the relation locks that
 * its callers name, and keeps them to the end of the transaction as the
 * executor would.
 *
 * Nothing here takes predicate locks unless the caller hands in the
 * transaction's own snapshot: under SERIALIZABLE, PostgreSQL skips them for
 * snapshots that are not MVCC, and before the transaction has a snapshot.
 *
 *-------------------------------------------------------------------------
 */
#include "dgen.h"

#include "access/heapam.h"
#include "access/htup_details.h"
#include "access/relscan.h"
#include "access/skey.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/index.h"
#include "catalog/namespace.h"
#include "catalog/pg_class.h"
#include "catalog/pg_collation.h"
#include "catalog/pg_extension.h"
#include "catalog/pg_type.h"
#include "commands/extension.h"
#include "executor/tuptable.h"
#include "nodes/execnodes.h"
#include "storage/bufmgr.h"
#include "storage/lmgr.h"
#include "utils/fmgroids.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"

static const char *const table_names[DGEN_NTABLES] = {
	"installation", "adoption", "module", "server", "message", "delayed",
	"attempt", "letter", "reply", "dedup", "patch", "history", "tombstone", "timer",
	"postponed", "monitor", "name", "member",
	"trace", "trace_entry", "supervisor", "child", "audit"
};

/*
 * The indexes of each table by their key columns, in the order of the script.
 * They are found by columns and not by OID or name, since REINDEX
 * CONCURRENTLY leaves another OID, and for a while two indexes.
 */
#define MAX_SPECS 3
static const AttrNumber index_specs[DGEN_NTABLES][MAX_SPECS][3] = {
	[DGEN_T_MODULE] = {{1}, {2}},
	[DGEN_T_SERVER] = {{1}},
	[DGEN_T_MESSAGE] = {{1}, {2, 3, 1}},
	[DGEN_T_DELAYED] = {{1}, {2}, {10}},
	[DGEN_T_ATTEMPT] = {{1}, {2}, {5}},
	[DGEN_T_LETTER] = {{1}, {9, 1}, {19}},
	[DGEN_T_REPLY] = {{1}, {2, 6}, {4}},
	[DGEN_T_DEDUP] = {{1, 2}, {4}},
	[DGEN_T_PATCH] = {{1, 2}},
	[DGEN_T_HISTORY] = {{1, 2}},
	[DGEN_T_TOMBSTONE] = {{1}, {2}},
	[DGEN_T_TIMER] = {{1, 2}, {3}},
	[DGEN_T_POSTPONED] = {{1}, {9, 1}},
	[DGEN_T_MONITOR] = {{1}, {2}, {3}},
	[DGEN_T_NAME] = {{1}, {2}},
	[DGEN_T_MEMBER] = {{1, 2}, {2}},
	[DGEN_T_TRACE] = {{1}, {2}, {6}},
	[DGEN_T_TRACE_ENTRY] = {{1, 2}, {5}},
	[DGEN_T_SUPERVISOR] = {{1}},
	[DGEN_T_CHILD] = {{1, 2}, {1, 3}, {4}},
	[DGEN_T_AUDIT] = {{1}, {2}, {4, 1}}
};

/* how many columns of each table this library knows; a later version may add some */
static const int column_counts[DGEN_NTABLES] = {
	[DGEN_T_INSTALLATION] = 3,
	[DGEN_T_ADOPTION] = 3,
	[DGEN_T_MODULE] = 47,
	[DGEN_T_SERVER] = 32,
	[DGEN_T_MESSAGE] = 18,
	[DGEN_T_DELAYED] = 19,
	[DGEN_T_ATTEMPT] = 8,
	[DGEN_T_LETTER] = 22,
	[DGEN_T_REPLY] = 9,
	[DGEN_T_DEDUP] = 4,
	[DGEN_T_PATCH] = 3,
	[DGEN_T_HISTORY] = 15,
	[DGEN_T_TOMBSTONE] = 2,
	[DGEN_T_TIMER] = 11,
	[DGEN_T_POSTPONED] = 18,
	[DGEN_T_MONITOR] = 5,
	[DGEN_T_NAME] = 6,
	[DGEN_T_MEMBER] = 5,
	[DGEN_T_TRACE] = 7,
	[DGEN_T_TRACE_ENTRY] = 17,
	[DGEN_T_SUPERVISOR] = 9,
	[DGEN_T_CHILD] = 14,
	[DGEN_T_AUDIT] = 21
};

/* rows that go into the table together, some pages of them */
#define INSERT_RUN 256

/* OIDs, forgotten when pg_namespace or a relation changes */
static Oid	table_oids[DGEN_NTABLES];
static Oid	schema_oid = InvalidOid;
static bool version_fits = false;	/* as version.c has it; forgotten with them */
static bool callbacks_registered = false;

struct DgenScan
{
	IndexScanDesc desc;
	TupleTableSlot *slot;
};

/* Any relation's rebuild may be that of ours, after DROP and CREATE EXTENSION. */
static void
forget_relation(Datum arg, Oid relid)
{
	if (relid == InvalidOid)
	{
		memset(table_oids, 0, sizeof(table_oids));
		version_fits = false;
	}
	for (int i = 0; i < DGEN_NTABLES; i++)
	{
		if (table_oids[i] == relid)
			table_oids[i] = InvalidOid;
	}
}

static void
forget_schema(Datum arg, int cacheid, uint32 hashvalue)
{
	schema_oid = InvalidOid;
	memset(table_oids, 0, sizeof(table_oids));
	version_fits = false;
}

/* The schema, or InvalidOid. */
Oid
dgen_schema(void)
{
	if (!callbacks_registered)
	{
		CacheRegisterRelcacheCallback(forget_relation, (Datum) 0);
		CacheRegisterSyscacheCallback(NAMESPACEOID, forget_schema, (Datum) 0);
		callbacks_registered = true;
	}
	if (!OidIsValid(schema_oid))
		schema_oid = get_namespace_oid(DGEN_SCHEMA, true);
	return schema_oid;
}

/* Is the extension here, and not merely a schema of that name? */
bool
dgen_extension_present(void)
{
	return OidIsValid(get_extension_oid("dgen", true)) &&
		OidIsValid(dgen_schema()) &&
		OidIsValid(get_relname_relid(table_names[DGEN_T_MESSAGE], dgen_schema()));
}

static void
no_extension(void)
{
	ereport(ERROR,
			(errcode(ERRCODE_DGEN_NOT_ENABLED),
			 errmsg("extension \"dgen\" is not installed in this database"),
			 errhint("Run CREATE EXTENSION dgen.")));
}

/*
 * Raise OT017 unless the library knows the tables of this version.  What an
 * install script calls is that script's business.
 */
static void
check_version(void)
{
	DgenError  *fault;

	if (creating_extension)
		return;
	/* before we look: an invalidation that comes meanwhile counts */
	version_fits = true;
	fault = dgen_version_fault(NULL);
	if (fault == NULL)
		return;
	version_fits = false;
	dgen_version_report(ERROR, fault);
}

Oid
dgen_table_oid(DgenTableId id)
{
	Oid			schema = dgen_schema();

	if (!version_fits)
		check_version();
	if (!OidIsValid(table_oids[id]))
	{
		Oid			oid = OidIsValid(schema) ?
			get_relname_relid(table_names[id], schema) : InvalidOid;

		if (!OidIsValid(oid))
			no_extension();
		table_oids[id] = oid;
	}
	return table_oids[id];
}

/*
 * A sequence, locked until the transaction ends: while we waited for the lock
 * the extension may have been dropped, and another made, see
 * dgen_relation_open().
 */
Oid
dgen_sequence_oid(const char *name)
{
	for (;;)
	{
		Oid			schema = dgen_schema();
		Oid			oid = OidIsValid(schema) ? get_relname_relid(name, schema) : InvalidOid;
		Relation	rel;

		if (!OidIsValid(oid))
			no_extension();
		rel = try_relation_open(oid, AccessShareLock);
		if (rel == NULL)
			continue;
		relation_close(rel, NoLock);
		return oid;
	}
}

/* A superuser: the control file demands one. */
Oid
dgen_extension_owner(void)
{
	Relation	rel = table_open(ExtensionRelationId, AccessShareLock);
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	tuple;
	Oid			owner = InvalidOid;

	ScanKeyInit(&key, Anum_pg_extension_extname, BTEqualStrategyNumber, F_NAMEEQ,
				CStringGetDatum("dgen"));
	scan = systable_beginscan(rel, ExtensionNameIndexId, true, NULL, 1, &key);
	tuple = systable_getnext(scan);
	if (HeapTupleIsValid(tuple))
		owner = ((Form_pg_extension) GETSTRUCT(tuple))->extowner;
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	if (!OidIsValid(owner))
		no_extension();
	return owner;
}

static bool
matches_spec(Relation index, const AttrNumber *spec)
{
	int			nkeys = IndexRelationGetNumberOfKeyAttributes(index);

	for (int i = 0; i < 3; i++)
	{
		AttrNumber	attno = i < nkeys ? index->rd_index->indkey.values[i] : 0;

		if (attno != spec[i])
			return false;
	}
	return nkeys <= 3;
}

static void
add_index(DgenTable *table, DgenTableId id, Relation index)
{
	int			i = table->nindexes;

	if (i == DGEN_MAX_INDEXES ||
		RelationGetIndexExpressions(index) != NIL ||
		RelationGetIndexPredicate(index) != NIL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("index \"%s\" on table \"%s.%s\" is not dgen's",
						RelationGetRelationName(index), DGEN_SCHEMA, table_names[id]),
				 errhint("Drop the indexes that were added by hand.")));
	table->indexes[i] = index;
	table->infos[i] = BuildIndexInfo(index);
	table->nindexes++;
	for (int spec = 0; spec < MAX_SPECS; spec++)
	{
		if (index->rd_index->indisvalid && matches_spec(index, index_specs[id][spec]))
			table->scannable[spec] = i;
	}
}

/*
 * Columns that a later correction of the same version has added, and that we
 * do not know, are left to their nulls.  Fewer than we know there are only
 * where somebody has dropped some: versions are compared in version.c.
 */
static void
check_columns(DgenTable *table, DgenTableId id)
{
	int			natts = RelationGetDescr(table->rel)->natts;

	table->ncolumns = column_counts[id];
	if (natts < column_counts[id])
		ereport(ERROR,
				(errcode(ERRCODE_DGEN_NOT_ENABLED),
				 errmsg("table \"%s.%s\" does not fit the library of extension \"dgen\"",
						DGEN_SCHEMA, table_names[id]),
				 errdetail("It has %d columns; the library expects %d.",
						   natts, column_counts[id]),
				 errhint("Run ALTER EXTENSION dgen UPDATE.")));
	if (natts > DGEN_MAX_COLUMNS)
		ereport(ERROR,
				(errcode(ERRCODE_DGEN_NOT_ENABLED),
				 errmsg("table \"%s.%s\" has %d columns, more than dgen can read",
						DGEN_SCHEMA, table_names[id], natts),
				 errhint("Drop the columns that were added by hand.")));
}

/*
 * Open the relation alone.  While we waited for its lock the extension may have
 * been dropped, and another made: then look it up once more.
 */
Relation
dgen_relation_open(DgenTableId id, LOCKMODE lockmode)
{
	Relation	rel;

	while ((rel = try_table_open(dgen_table_oid(id), lockmode)) == NULL)
		table_oids[id] = InvalidOid;
	return rel;
}

DgenTable *
dgen_table_open(DgenTableId id, LOCKMODE lockmode)
{
	DgenTable  *table = palloc0(sizeof(DgenTable));

	table->rel = dgen_relation_open(id, lockmode);
	check_columns(table, id);
	table->id = id;
	/* as the executor locks them; a standby refuses more to who only reads */
	table->index_lockmode = lockmode == AccessShareLock ? AccessShareLock : RowExclusiveLock;
	table->indexes_wait = true;
	table->owner = CurrentResourceOwner;
	table->nblocks = InvalidBlockNumber;
	memset(table->scannable, -1, sizeof(table->scannable));
	return table;
}

/*
 * Open the indexes, which many uses of a table can do without: rows that are
 * found and updated by TID, messages that are deleted.  They live as long as
 * the table, also where a subtransaction needs them first.
 */
static void
need_indexes(DgenTable *table)
{
	ResourceOwner save_owner = CurrentResourceOwner;
	MemoryContext old;
	List	   *indexes;
	ListCell   *lc;

	if (!table->indexes_wait)
		return;
	CurrentResourceOwner = table->owner;
	old = MemoryContextSwitchTo(GetMemoryChunkContext(table));
	indexes = RelationGetIndexList(table->rel);
	foreach(lc, indexes)
	{
		Relation	index = index_open(lfirst_oid(lc), table->index_lockmode);

		if (index->rd_index->indisready)
			add_index(table, table->id, index);
		else
			index_close(index, NoLock);
	}
	list_free(indexes);
	table->indexes_wait = false;
	MemoryContextSwitchTo(old);
	CurrentResourceOwner = save_owner;
}

static void
close_table(DgenTable *table, LOCKMODE lockmode)
{
	for (int i = 0; i < table->nindexes; i++)
	{
		index_close(table->indexes[i], lockmode);
		pfree(table->infos[i]);
	}
	table_close(table->rel, lockmode);
	pfree(table);
}

/* Close; the locks stay until the transaction ends. */
void
dgen_table_close(DgenTable *table)
{
	close_table(table, NoLock);
}

/*
 * Close what was opened by AccessShareLock for a cache, as catalogs are: a caller
 * who found all in his cache had no lock, either.  One who kept it while he
 * waits would have who rewrites the table wait for him, and the workers for that.
 */
void
dgen_table_close_unlock(DgenTable *table)
{
	close_table(table, AccessShareLock);
}

static void
insert_index_entries(DgenTable *table, TupleTableSlot *slot, bool unchanged)
{
	Datum		values[INDEX_MAX_KEYS];
	bool		nulls[INDEX_MAX_KEYS];

	need_indexes(table);
	for (int i = 0; i < table->nindexes; i++)
	{
		Relation	index = table->indexes[i];

		FormIndexDatum(table->infos[i], slot, NULL, values, nulls);
		index_insert(index, values, nulls, &slot->tts_tid, table->rel,
					 index->rd_index->indisunique ? UNIQUE_CHECK_YES : UNIQUE_CHECK_NO,
					 unchanged, table->infos[i]);
	}
}

/* Form a row; columns beyond those that we know are null. */
HeapTuple
dgen_table_form(DgenTable *table, Datum *values, bool *nulls)
{
	Datum		all_values[DGEN_MAX_COLUMNS];
	bool		all_nulls[DGEN_MAX_COLUMNS];
	TupleDesc	desc = RelationGetDescr(table->rel);

	if (desc->natts == table->ncolumns)
		return heap_form_tuple(desc, values, nulls);
	memcpy(all_values, values, table->ncolumns * sizeof(Datum));
	memcpy(all_nulls, nulls, table->ncolumns * sizeof(bool));
	for (int i = table->ncolumns; i < desc->natts; i++)
		all_nulls[i] = true;
	return heap_form_tuple(desc, all_values, all_nulls);
}

/* Insert one row; tid, if wanted, is where it went. */
void
dgen_table_insert(DgenTable *table, Datum *values, bool *nulls, ItemPointer tid)
{
	TupleTableSlot *slot = MakeSingleTupleTableSlot(RelationGetDescr(table->rel),
													&TTSOpsHeapTuple);

	ExecStoreHeapTuple(dgen_table_form(table, values, nulls), slot, true);
	slot->tts_tableOid = RelationGetRelid(table->rel);
	table_tuple_insert(table->rel, slot, GetCurrentCommandId(true), 0, NULL);
	insert_index_entries(table, slot, false);
	if (tid != NULL)
		*tid = slot->tts_tid;
	ExecDropSingleTupleTableSlot(slot);
}

/* Insert a run of formed rows through slots that are there already. */
static void
insert_run(DgenTable *table, int n, HeapTuple *tuples, TupleTableSlot **slots)
{
	for (int i = 0; i < n; i++)
	{
		ExecStoreHeapTuple(tuples[i], slots[i], false);
		slots[i]->tts_tableOid = RelationGetRelid(table->rel);
	}
	table_multi_insert(table->rel, slots, n, GetCurrentCommandId(true), 0, NULL);
	for (int i = 0; i < n; i++)
		insert_index_entries(table, slots[i], false);
}

/*
 * Insert many formed rows at once, which saves WAL and buffer locks.  The
 * slots have a row type that is not counted: each would else be remembered in
 * a resource owner, which is slow with many.
 */
void
dgen_table_insert_many(DgenTable *table, int n, HeapTuple *tuples)
{
	TupleDesc	desc = CreateTupleDescCopy(RelationGetDescr(table->rel));
	TupleTableSlot *slots[INSERT_RUN];
	int			nslots = Min(n, INSERT_RUN);

	for (int i = 0; i < nslots; i++)
		slots[i] = MakeSingleTupleTableSlot(desc, &TTSOpsHeapTuple);
	for (int i = 0; i < n; i += INSERT_RUN)
		insert_run(table, Min(n - i, INSERT_RUN), tuples + i, slots);
	for (int i = 0; i < nslots; i++)
		ExecDropSingleTupleTableSlot(slots[i]);
	FreeTupleDesc(desc);
}

/*
 * Replace the row at tid.  Waits for a transaction in the way: heap_update()
 * has no other way, and asserts so.  That is dgen.drop_module()'s,
 * dgen.migrate()'s of many servers, or somebody's by hand, since all others
 * hold leases.  Anything but TM_Ok leaves the row as
 * it was, and is the caller's to handle.
 */
TM_Result
dgen_table_update(DgenTable *table, ItemPointer tid, Snapshot crosscheck,
				  Datum *values, bool *nulls, ItemPointer newtid)
{
	TupleTableSlot *slot = MakeSingleTupleTableSlot(RelationGetDescr(table->rel),
													&TTSOpsHeapTuple);
	TM_FailureData tmfd;
	LockTupleMode lockmode;
	DgenUpdateIndexes update_indexes;
	TM_Result	result;

	ExecStoreHeapTuple(dgen_table_form(table, values, nulls), slot, true);
	slot->tts_tableOid = RelationGetRelid(table->rel);
	result = table_tuple_update(table->rel, tid, slot, GetCurrentCommandId(true),
								InvalidSnapshot, crosscheck, true,
								&tmfd, &lockmode, &update_indexes);
	if (result == TM_Ok)
	{
		if (DGEN_NEEDS_INDEXES(update_indexes))
			insert_index_entries(table, slot, true);
		*newtid = slot->tts_tid;
	}
	ExecDropSingleTupleTableSlot(slot);
	return result;
}

/* Delete the row at tid without waiting; the caller handles all results. */
TM_Result
dgen_table_delete(DgenTable *table, ItemPointer tid)
{
	TM_FailureData tmfd;

	return table_tuple_delete(table->rel, tid, GetCurrentCommandId(true),
							  InvalidSnapshot, InvalidSnapshot, false, &tmfd, false);
}

/* Lock the row at tid against all others, without waiting. */
TM_Result
dgen_table_lock(DgenTable *table, ItemPointer tid)
{
	TupleTableSlot *slot = table_slot_create(table->rel, NULL);
	TM_FailureData tmfd;
	TM_Result	result;

	result = table_tuple_lock(table->rel, tid, InvalidSnapshot, slot, GetCurrentCommandId(true),
							  LockTupleExclusive, LockWaitSkip, 0, &tmfd);
	ExecDropSingleTupleTableSlot(slot);
	return result;
}

/*
 * Delete the row at tid, waiting for whoever is at it; false if it is gone.
 * dgen's rows at a TID are never updated by two but under a lease, so a row
 * that was updated counts as gone.
 */
bool
dgen_table_delete_wait(DgenTable *table, ItemPointer tid)
{
	TM_FailureData tmfd;
	TM_Result	result;

	/* the row may be of this very command: SELECT dgen.cancel(dgen.cast(...)) */
	CommandCounterIncrement();
	result = table_tuple_delete(table->rel, tid, GetCurrentCommandId(true),
								InvalidSnapshot, InvalidSnapshot, true, &tmfd, false);
	return result == TM_Ok;
}

/*
 * Scan an index of the table in its order.  Without a snapshot: rows as they
 * are now, committed or of this transaction (SnapshotSelf; fit for rows under
 * a held lease, or to learn whether one exists).
 */
DgenScan *
dgen_scan_begin(DgenTable *table, int index, Snapshot snapshot, int nkeys, ScanKey keys)
{
	DgenScan   *scan = palloc(sizeof(DgenScan));
	int			i;

	need_indexes(table);
	i = table->scannable[index];
	if (i < 0)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("an index of table \"%s.%s\" is missing",
						DGEN_SCHEMA, RelationGetRelationName(table->rel)),
				 errhint("Restore the index that the extension's script makes.")));
#if PG_VERSION_NUM >= 180000
	scan->desc = index_beginscan(table->rel, table->indexes[i],
								 snapshot ? snapshot : SnapshotSelf, NULL, nkeys, 0);
#else
	scan->desc = index_beginscan(table->rel, table->indexes[i],
								 snapshot ? snapshot : SnapshotSelf, nkeys, 0);
#endif
	index_rescan(scan->desc, keys, nkeys, NULL, 0);
	scan->slot = table_slot_create(table->rel, NULL);
	return scan;
}

/* The next row, or NULL; valid until the next call. */
HeapTuple
dgen_scan_next(DgenScan *scan)
{
	bool		should_free;

	if (!index_getnext_slot(scan->desc, ForwardScanDirection, scan->slot))
		return NULL;
	return ExecFetchSlotHeapTuple(scan->slot, false, &should_free);
}

/* Does a snapshot, another than the scan's, see the row that came last? Takes no predicate lock. */
bool
dgen_scan_visible(DgenScan *scan, Snapshot snapshot)
{
	return table_tuple_satisfies_snapshot(scan->desc->heapRelation, scan->slot, snapshot);
}

void
dgen_scan_writers(DgenScan *scan, TransactionId *xmin, TransactionId *xmax)
{
	Buffer		buffer = ((BufferHeapTupleTableSlot *) scan->slot)->buffer;
	HeapTupleHeader tuple = ((HeapTupleTableSlot *) scan->slot)->tuple->t_data;

	/* xmax and what it means change together */
	LockBuffer(buffer, BUFFER_LOCK_SHARE);
	*xmin = HeapTupleHeaderGetXmin(tuple);
	*xmax = (tuple->t_infomask & HEAP_XMAX_INVALID) || HEAP_XMAX_IS_LOCKED_ONLY(tuple->t_infomask) ?
		InvalidTransactionId : HeapTupleHeaderGetUpdateXid(tuple);
	LockBuffer(buffer, BUFFER_LOCK_UNLOCK);
}

void
dgen_scan_end(DgenScan *scan)
{
	ExecDropSingleTupleTableSlot(scan->slot);
	index_endscan(scan->desc);
	pfree(scan);
}

/* Where the row with this primary key is, as it is now; false: there is none. */
bool
dgen_table_find(DgenTable *table, int64 id, ItemPointer tid)
{
	ScanKeyData key;
	DgenScan   *scan;
	HeapTuple	tuple;

	dgen_key_int8(&key, 1, id, BTEqualStrategyNumber);
	scan = dgen_scan_begin(table, DGEN_I_PKEY, NULL, 1, &key);
	tuple = dgen_scan_next(scan);
	if (tuple != NULL)
		*tid = tuple->t_self;
	dgen_scan_end(scan);
	return tuple != NULL;
}

void
dgen_key_text(ScanKey key, int attno, const char *value)
{
	ScanKeyEntryInitialize(key, 0, attno, BTEqualStrategyNumber, InvalidOid,
						   C_COLLATION_OID, F_TEXTEQ, CStringGetTextDatum(value));
}

void
dgen_key_int8(ScanKey key, int attno, int64 value, int strategy)
{
	RegProcedure proc = strategy == BTEqualStrategyNumber ? F_INT8EQ :
		strategy == BTGreaterEqualStrategyNumber ? F_INT8GE :
		strategy == BTLessEqualStrategyNumber ? F_INT8LE : F_INT8LT;

	ScanKeyInit(key, attno, strategy, proc, Int64GetDatum(value));
}

void
dgen_key_int2(ScanKey key, int attno, int16 value)
{
	ScanKeyInit(key, attno, BTEqualStrategyNumber, F_INT2EQ, Int16GetDatum(value));
}

void
dgen_key_time(ScanKey key, int attno, TimestampTz value, int strategy)
{
	RegProcedure proc = strategy == BTGreaterEqualStrategyNumber ? F_TIMESTAMPTZ_GE :
		strategy == BTGreaterStrategyNumber ? F_TIMESTAMPTZ_GT : F_TIMESTAMPTZ_LE;

	Assert(proc != F_TIMESTAMPTZ_LE || strategy == BTLessEqualStrategyNumber);
	ScanKeyInit(key, attno, strategy, proc, TimestampTzGetDatum(value));
}
