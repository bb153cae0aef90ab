/*-------------------------------------------------------------------------
 *
 * attributes.c
 *	  The indexed part of the states: one table for each module with callback
 *	  attributes, one row for each server whose attributes are not null.
 *
 * An index over the states themselves would end HOT updates for all servers,
 * and be rewritten with every state.  So the callback picks what is worth an
 * index, and the row is written only when that has changed: where the last
 * attributes are known, an activation that leaves them alone does not even
 * open the table.
 *
 * Rows are written in the activation that changed the state, under its
 * server's lease, so that a violated unique index is the error of the message
 * that violates it.  Like the other tables, this one is written below the
 * executor; but since it has indexes that users ask for, by expressions, their
 * entries are made by the executor's own functions.  These expressions hold
 * nothing but built-in immutable functions, see attributes_api.c, so it does
 * not matter as whom they run.
 *
 * The row is read without an MVCC snapshot: under the lease it is the latest,
 * and SERIALIZABLE takes no predicate locks.  Whoever reads the table by SQL
 * takes them as usual.
 *
 * What is known of a server's attributes holds until modules change: a change
 * of the callback, a refresh or a new table all count as one.
 *
 *-------------------------------------------------------------------------
 */
#include "stat.h"

#include "access/skey.h"
#include "access/stratnum.h"
#include "access/table.h"
#include "catalog/pg_collation_d.h"
#include "executor/executor.h"
#include "storage/bufmgr.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

/* columns, from 0; attributes_api.c makes them */
enum
{
	COL_SERVER, COL_KEY, COL_ATTRIBUTES, NCOLS
};

/* the table of one module, opened to be written */
typedef struct Writer
{
	DgenTable	table;			/* to be scanned by its primary key */
	EState	   *estate;
	ResultRelInfo *info;		/* has the indexes */
	TupleTableSlot *slot;
} Writer;

/* The table of a module's attributes, or InvalidOid. */
Oid
dgen_attributes_table(int32 module_id)
{
	char		name[NAMEDATALEN];

	snprintf(name, sizeof(name), DGEN_ATTRIBUTES_PREFIX "%d", module_id);
	return get_relname_relid(name, get_rel_namespace(dgen_table_oid(DGEN_T_SERVER)));
}

/* ---------------------------------------------------------------- the table */

static void
find_primary_key(Writer *w)
{
	for (int i = 0; i < w->info->ri_NumIndices; i++)
	{
		Relation	index = w->info->ri_IndexRelationDescs[i];

		if (!index->rd_index->indisprimary || !index->rd_index->indisvalid)
			continue;
		w->table.indexes[0] = index;
		w->table.scannable[DGEN_I_PKEY] = 0;
		return;
	}
	/* the scan says that it is missing */
	w->table.scannable[DGEN_I_PKEY] = -1;
}

static void
open_writer(Writer *w, Oid relid)
{
	MemoryContext old;

	memset(w, 0, sizeof(Writer));
	w->table.rel = table_open(relid, RowExclusiveLock);
	if (RelationGetDescr(w->table.rel)->natts < NCOLS)
		ereport(ERROR,
				(errcode(ERRCODE_DGEN_NOT_ENABLED),
				 errmsg("table \"%s.%s\" lacks columns", DGEN_SCHEMA,
						RelationGetRelationName(w->table.rel)),
				 errhint("Drop the module's table and run dgen.alter_module().")));
	w->estate = CreateExecutorState();
	old = MemoryContextSwitchTo(w->estate->es_query_cxt);
	w->info = makeNode(ResultRelInfo);
	InitResultRelInfo(w->info, w->table.rel, 0, NULL, 0);
	ExecOpenIndices(w->info, false);
	w->slot = table_slot_create(w->table.rel, NULL);
	MemoryContextSwitchTo(old);
	find_primary_key(w);
}

/* Close; the table's lock stays until the transaction ends. */
static void
close_writer(Writer *w)
{
	ExecDropSingleTupleTableSlot(w->slot);
	ExecCloseIndices(w->info);
	FreeExecutorState(w->estate);
	table_close(w->table.rel, NoLock);
}

static void
fill_slot(Writer *w, DgenServer *server, Jsonb *attributes)
{
	TupleTableSlot *slot = w->slot;

	ExecClearTuple(slot);
	memset(slot->tts_isnull, true, slot->tts_tupleDescriptor->natts * sizeof(bool));
	memset(slot->tts_isnull, false, NCOLS * sizeof(bool));
	slot->tts_values[COL_SERVER] = CStringGetTextDatum(server->address);
	slot->tts_values[COL_KEY] = CStringGetTextDatum(strchr(server->address, '/') + 1);
	slot->tts_values[COL_ATTRIBUTES] = JsonbPGetDatum(attributes);
	ExecStoreVirtualTuple(slot);
}

static void
insert_row(Writer *w, DgenServer *server, Jsonb *attributes)
{
	fill_slot(w, server, attributes);
	table_tuple_insert(w->table.rel, w->slot, GetCurrentCommandId(true), 0, NULL);
	(void) ExecInsertIndexTuples(w->info, w->slot, w->estate, false, false, NULL, NIL, false);
}

/* Under the lease nobody else writes the row, but for changes by hand. */
static void
check_result(TM_Result result, DgenServer *server)
{
	if (result != TM_Ok)
		ereport(ERROR,
				(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
				 errmsg("could not serialize access due to concurrent update"),
				 errdetail("The attributes of server \"%s\" were changed by another transaction (result %d).",
						   server->address, (int) result)));
}

static void
update_row(Writer *w, DgenServer *server, ItemPointer tid, Jsonb *attributes)
{
	TM_FailureData tmfd;
	LockTupleMode lockmode;
	DgenUpdateIndexes update_indexes;

	fill_slot(w, server, attributes);
	check_result(table_tuple_update(w->table.rel, tid, w->slot, GetCurrentCommandId(true),
									InvalidSnapshot, InvalidSnapshot, false,
									&tmfd, &lockmode, &update_indexes), server);
	if (DGEN_NEEDS_SOME_INDEXES(update_indexes))
		(void) ExecInsertIndexTuples(w->info, w->slot, w->estate, true, false, NULL, NIL,
									 DGEN_NEEDS_SUMMARIES(update_indexes));
}

/* ---------------------------------------------------------------- reading */

static bool
same_jsonb(const Jsonb *a, const Jsonb *b)
{
	if (a == NULL || b == NULL)
		return a == b;
	return VARSIZE(a) == VARSIZE(b) && memcmp(a, b, VARSIZE(a)) == 0;
}

static bool
is_known(DgenServer *server)
{
	return server->attributes_known && server->attributes_version == dgen_module_version();
}

/* Keep what is in the table, for as long as the server's struct lives. */
static void
note_known(DgenServer *server, Jsonb *attributes, ItemPointer tid)
{
	Jsonb	   *copy = NULL;

	if (attributes != NULL)
	{
		copy = MemoryContextAlloc(GetMemoryChunkContext(server), VARSIZE(attributes));
		memcpy(copy, attributes, VARSIZE(attributes));
	}
	server->attributes = copy;
	server->attributes_tid = *tid;
	server->attributes_known = true;
	server->attributes_version = dgen_module_version();
}

/* Is the server's row still where it was?  A rewritten table has moved it. */
static bool
is_at(Writer *w, DgenServer *server, ItemPointer tid)
{
	bool		isnull;

	return ItemPointerGetBlockNumber(tid) < RelationGetNumberOfBlocks(w->table.rel) &&
		table_tuple_fetch_row_version(w->table.rel, tid, SnapshotSelf, w->slot) &&
		strcmp(TextDatumGetCString(slot_getattr(w->slot, COL_SERVER + 1, &isnull)),
			   server->address) == 0;
}

/*
 * Find the server's row: false if it has none.  By TID where that is known,
 * since a search by key would wade through the dead entries that an old
 * snapshot keeps.
 */
static bool
find_row(Writer *w, DgenServer *server, ItemPointer tid, Jsonb **attributes)
{
	bool		known = is_known(server);
	ScanKeyData key;
	DgenScan   *scan;
	HeapTuple	tuple;

	if (known)
	{
		*tid = server->attributes_tid;
		*attributes = server->attributes;
		if (server->attributes == NULL || is_at(w, server, tid))
			return server->attributes != NULL;
	}
	dgen_key_text(&key, 1, server->address);
	scan = dgen_scan_begin(&w->table, DGEN_I_PKEY, NULL, 1, &key);
	tuple = dgen_scan_next(scan);
	if (tuple != NULL)
	{
		bool		isnull;
		Datum		value = heap_getattr(tuple, COL_ATTRIBUTES + 1,
										 RelationGetDescr(w->table.rel), &isnull);

		*tid = tuple->t_self;
		*attributes = isnull ? NULL : DatumGetJsonbPCopy(value);
	}
	dgen_scan_end(scan);
	return tuple != NULL;
}

/* ---------------------------------------------------------------- writing */

/* Make the server's row say this; NULL: it has none.  True if that is new. */
static bool
write_row(Writer *w, DgenServer *server, Jsonb *attributes)
{
	ItemPointerData tid;
	Jsonb	   *before = NULL;
	bool		found = find_row(w, server, &tid, &before);
	bool		changed = true;

	if (found && attributes == NULL)
		check_result(dgen_table_delete(&w->table, &tid), server);
	else if (found && !same_jsonb(before, attributes))
	{
		update_row(w, server, &tid, attributes);
		tid = w->slot->tts_tid;
	}
	else if (!found && attributes != NULL)
	{
		insert_row(w, server, attributes);
		tid = w->slot->tts_tid;
	}
	else
		changed = false;
	if (!found && attributes == NULL)
		ItemPointerSetInvalid(&tid);
	note_known(server, attributes, &tid);
	ExecClearTuple(w->slot);
	ResetPerTupleExprContext(w->estate);
	if (changed)
		CommandCounterIncrement();
	return changed;
}

/* What the callback makes of the state; NULL for SQL null, or without a state. */
static Jsonb *
run_callback(DgenModule *module, DgenServer *server, DgenIdentity identity)
{
	DgenScope	scope = {0};
	DgenResult	result;
	NullableDatum arg;

	if (server->state == NULL)
		return NULL;
	scope.module = module;
	scope.server = server->address;
	scope.hash = server->hash;
	scope.kind = "attributes";
	arg.value = JsonbPGetDatum(server->state);
	arg.isnull = false;
	dgen_handler_run(&scope, DGEN_ATTRIBUTES, identity, 1, &arg, &result);
	return result.is_null ? NULL : DatumGetJsonbP(result.value);
}

/*
 * A server's state has changed, or is gone: see to its attributes.  The lease
 * is held, and dgen.server is locked as it is to be written: so whoever gave
 * the module attributes meanwhile has committed, and the module is stale.
 */
void
dgen_attributes_update(DgenModule *module, DgenServer *server, DgenIdentity identity)
{
	DgenCallback *cb;
	Jsonb	   *attributes;
	Writer		w;
	Oid			relid;

	if (module->stale)
		module = dgen_module_get(module->name, true);
	if (module == NULL || module->ephemeral)
		return;
	cb = &module->callbacks[DGEN_ATTRIBUTES];
	if (server->state != NULL && !cb->present && cb->fault == NULL)
		return;
	/* none: alter_module has not seen the callback yet */
	relid = dgen_attributes_table(module->id);
	if (!OidIsValid(relid))
		return;

	attributes = run_callback(module, server, identity);
	if (is_known(server) && same_jsonb(server->attributes, attributes))
		return;
	open_writer(&w, relid);
	(void) write_row(&w, server, attributes);
	close_writer(&w);
}

/* Scan dgen.server from "name/" up to before "name0": '0' follows '/'. */
static DgenScan *
begin_servers(DgenTable *table, const char *module)
{
	ScanKeyData keys[2];

	ScanKeyEntryInitialize(&keys[0], 0, 1, BTGreaterEqualStrategyNumber, InvalidOid,
						   C_COLLATION_OID, F_TEXT_GE, CStringGetTextDatum(psprintf("%s/", module)));
	ScanKeyEntryInitialize(&keys[1], 0, 1, BTLessStrategyNumber, InvalidOid,
						   C_COLLATION_OID, F_TEXT_LT, CStringGetTextDatum(psprintf("%s0", module)));
	return dgen_scan_begin(table, DGEN_I_PKEY, NULL, 2, keys);
}

static int64
count_servers(DgenTable *table, const char *module)
{
	DgenScan   *scan = begin_servers(table, module);
	int64		n = 0;

	while (dgen_scan_next(scan) != NULL)
	{
		CHECK_FOR_INTERRUPTS();
		n++;
	}
	dgen_scan_end(scan);
	return n;
}

/*
 * Make the attributes of all servers of a module what the callback makes of
 * their states now; returns how many have changed.  dgen.server must be locked
 * against writers.
 */
int64
dgen_attributes_fill(DgenModule *module)
{
	DgenTable  *servers = dgen_table_open(DGEN_T_SERVER, AccessShareLock);
	DgenScan   *scan = begin_servers(servers, module->name);
	MemoryContext mcxt = AllocSetContextCreate(CurrentMemoryContext, "dgen attributes",
											   ALLOCSET_DEFAULT_SIZES);
	HeapTuple	tuple;
	Writer		w;
	int64		changed = 0;

	dgen_progress_begin(DGEN_COMMAND_REFRESH, module, false);
	dgen_progress_total(count_servers(servers, module->name), false);
	open_writer(&w, dgen_attributes_table(module->id));
	while ((tuple = dgen_scan_next(scan)) != NULL)
	{
		MemoryContext old = MemoryContextSwitchTo(mcxt);
		bool		isnull;
		char	   *address = TextDatumGetCString(heap_getattr(tuple, 1, RelationGetDescr(servers->rel), &isnull));
		DgenServer *server = dgen_server_read(servers, address,
											  dgen_address_hash(address, strlen(address)), NULL);

		CHECK_FOR_INTERRUPTS();
		/* what the callback is not made for keeps the row that it has */
		if (!dgen_migration_pending(module, server))
			changed += write_row(&w, server, run_callback(module, server, DGEN_AS_OWNER));
		dgen_progress_step(false);
		/* the scan has memory of its own, in the other context */
		MemoryContextSwitchTo(old);
		MemoryContextReset(mcxt);
	}
	MemoryContextDelete(mcxt);
	close_writer(&w);
	dgen_scan_end(scan);
	dgen_table_close(servers);
	dgen_progress_end();
	return changed;
}
