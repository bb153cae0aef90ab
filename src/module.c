/*-------------------------------------------------------------------------
 *
 * module.c
 *	  Modules: from the row in dgen.module, and the functions that are there,
 *	  to a DgenModule; and who may do what with it.
 *
 * Each process caches modules by name.  What a module is depends on its row,
 * on pg_proc, pg_namespace and pg_authid; when one of these changes, every
 * module is marked stale and read again at its next use.  A module that was
 * replaced stays in memory until the end of the transaction, and longer while
 * it is held, so that nobody is left with a dangling pointer.
 *
 * The owner of a module is the owner of its callbacks, looked up live.  It
 * must also be the one that create_module or alter_module agreed to, which
 * the row keeps: where callbacks disagree or belong to somebody else, the
 * module is suspended, without a write, and none of its callbacks runs.
 *
 * Rows are read without predicate locks.  PostgreSQL takes these for every
 * MVCC snapshot, the catalog snapshot too, once a serializable transaction
 * has its own snapshot; from there on rows are read as they are now.
 *
 * Locks: AccessShareLock on dgen.module to read, RowExclusiveLock to write,
 * and before a write dgen_module_lock() on the name, which makes the writers
 * of one module queue up; all to the end of the transaction.
 *
 *-------------------------------------------------------------------------
 */
#include "module.h"

#include "access/heaptoast.h"
#include "access/htup_details.h"
#include "access/skey.h"
#include "access/stratnum.h"
#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/pg_namespace.h"
#include "catalog/pg_proc.h"
#include "common/hashfn.h"
#include "storage/lmgr.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/fmgroids.h"
#include "utils/hsearch.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/regproc.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"

typedef struct ModuleEntry
{
	char		name[NAMEDATALEN];	/* the key */
	DgenModule *module;
} ModuleEntry;

/* where to look for an id: a module keeps its id, but an id may be reused */
typedef struct IdEntry
{
	int32		id;				/* the key */
	char		name[NAMEDATALEN];
} IdEntry;

/* indexes of dgen.module, in the order the script makes them */
#define MODULE_INDEX_NAME 0
#define MODULE_INDEX_ID 1

#define OWNER_HINT "Look at the callbacks' owners and run dgen.alter_module(%s) as a role that may SET ROLE to the right one."

static MemoryContext cache_context = NULL;
static HTAB *module_cache = NULL;
static HTAB *module_ids = NULL;
static List *retired = NIL;		/* replaced modules, not yet freed */
static List *watched_rowtypes = NIL;	/* OIDs of relations, see dgen_module_watch_rowtype() */
static Oid	module_relid = InvalidOid;
static uint64 invalidations = 0;
static bool sweep_wanted = false;	/* some cached module is stale or uncommitted */

#define FIELD(field) offsetof(DgenModule, field)
#define DAY ((double) USECS_PER_DAY)
#define MAX_TIME (36500 * DAY)
#define MAX_JSONB_SIZE 268435455	/* PostgreSQL's own limit */

/* see DgenOption; in the order of the table's columns */
const DgenOption dgen_module_options[DGEN_NOPTIONS] = {
	{"external", DGEN_OPTION_BOOL, FIELD(external), false},
	{"ephemeral", DGEN_OPTION_BOOL, FIELD(ephemeral), false},
	{"auto_start", DGEN_OPTION_BOOL, FIELD(auto_start), true},
	{"on_stop", DGEN_OPTION_FLAG, FIELD(delete_on_stop), 0, 0, 0, {"keep", "delete"}},
	{"isolation", DGEN_OPTION_LEVEL, FIELD(isolation), 0, 0, 0, {"serializable", "repeatable read", "read committed"}},
	{"invoke_isolation", DGEN_OPTION_FLAG, FIELD(invoke_any_isolation), 0, 0, 0, {"match", "any"}},
	{"late_calls", DGEN_OPTION_FLAG, FIELD(finish_late_calls), 0, 0, 0, {"cancel", "finish"}},
	{"retry", DGEN_OPTION_FLAG, FIELD(skip_failing), 0, 0, 0, {"block", "skip"}},
	{"on_dead_letter", DGEN_OPTION_FLAG, FIELD(suspend_on_dead_letter), 0, 0, 0, {"continue", "suspend"}},
	{"breaker", DGEN_OPTION_INT, FIELD(breaker), 10, 0, PG_INT32_MAX},
	{"on_crash_loop", DGEN_OPTION_WORD, FIELD(on_crash_loop), 0, 0, 0, {"keep", "suspend", "init", "rollback"}},
	{"crash_limit", DGEN_OPTION_INT, FIELD(crash_limit), 5, 1, PG_INT16_MAX},
	{"handler_timeout", DGEN_OPTION_MSEC, FIELD(handler_timeout), 30e6, 1e3, PG_INT32_MAX * 1e3},
	{"work_timeout", DGEN_OPTION_MSEC, FIELD(work_timeout), 3600e6, 1e3, PG_INT32_MAX * 1e3},
	{"max_attempts", DGEN_OPTION_INT, FIELD(max_attempts), 5, 1, PG_INT16_MAX},
	{"backoff_initial", DGEN_OPTION_SECONDS, FIELD(backoff_initial), 0.1e6, 1e3, MAX_TIME},
	{"backoff_factor", DGEN_OPTION_DOUBLE, FIELD(backoff_factor), 5, 1, 1000},
	{"backoff_max", DGEN_OPTION_SECONDS, FIELD(backoff_max), 60e6, 1e3, MAX_TIME},
	{"hold_max", DGEN_OPTION_SECONDS, FIELD(hold_max), 3600e6, 1e3, MAX_TIME},
	{"batch_size", DGEN_OPTION_INT, FIELD(batch_size), 256, 1, 256},
	{"max_mailbox", DGEN_OPTION_INT64, FIELD(max_mailbox), 100000, 1, 1e15},
	{"max_message_size", DGEN_OPTION_INT64, FIELD(max_message_size), 64 * 1024 * 1024, 1, MAX_JSONB_SIZE},
	{"max_state_size", DGEN_OPTION_INT64, FIELD(max_state_size), 64 * 1024 * 1024, 1, MAX_JSONB_SIZE},
	{"reply_ttl", DGEN_OPTION_USEC, FIELD(reply_ttl), 3600e6, 1e3, MAX_TIME},
	{"dedup_ttl", DGEN_OPTION_USEC, FIELD(dedup_ttl), 3600e6, 1e3, MAX_TIME},
	{"dead_letter_ttl", DGEN_OPTION_USEC, FIELD(dead_letter_ttl), 30 * DAY, 1e3, MAX_TIME},
	{"history", DGEN_OPTION_HISTORY, FIELD(history)},
	{"expire_after", DGEN_OPTION_USEC, FIELD(expire_after), 0, 0, MAX_TIME},
	{"ephemeral_keys", DGEN_OPTION_KEYS, FIELD(ephemeral_keys)},
	{"search_path", DGEN_OPTION_SEARCH_PATH, FIELD(search_path)},
	{"timezone", DGEN_OPTION_TIMEZONE, FIELD(timezone)},
	{"operators", DGEN_OPTION_ROLE, FIELD(operators)},
	{"clients", DGEN_OPTION_ROLE, FIELD(clients)},
	{"readers", DGEN_OPTION_ROLE, FIELD(readers)},
	{"workers", DGEN_OPTION_ROLE, FIELD(workers)},
	{"vsn", DGEN_OPTION_TEXT, FIELD(vsn)},
	{"kind", DGEN_OPTION_FLAG, FIELD(machine), 0, 0, 0, {"server", "statem"}},
	{"notify", DGEN_OPTION_CHANNEL, FIELD(notify)}
};

/* what the words of option isolation mean, in their order */
static const int isolation_levels[] = {
	XACT_SERIALIZABLE, XACT_REPEATABLE_READ, XACT_READ_COMMITTED
};

/* ------------------------------------------------------------ invalidation */

/* May be called at any time, so it only marks. */
static void
mark_all_stale(void)
{
	HASH_SEQ_STATUS status;
	ModuleEntry *entry;

	invalidations++;
	if (module_cache == NULL || hash_get_num_entries(module_cache) == 0)
		return;
	hash_seq_init(&status, module_cache);
	while ((entry = hash_seq_search(&status)) != NULL)
		entry->module->stale = true;
	sweep_wanted = true;
}

static void
relation_changed(Datum arg, Oid relid)
{
	if (relid == InvalidOid || relid == module_relid ||
		list_member_oid(watched_rowtypes, relid))
		mark_all_stale();
}

static void
catalog_changed(Datum arg, int cacheid, uint32 hashvalue)
{
	mark_all_stale();
}

/* The module of an address, or NULL. */
DgenModule *
dgen_module_of(const char *address)
{
	char		name[NAMEDATALEN];
	const char *slash = strchr(address, '/');

	if (slash == NULL || slash - address >= NAMEDATALEN)
		return NULL;
	strlcpy(name, address, slash - address + 1);
	return dgen_module_get(name, true);
}

/* A number that grows with each invalidation: what was derived before is void. */
uint64
dgen_module_version(void)
{
	return invalidations;
}

/*
 * At the end of a transaction nobody has a pointer to a module that he does
 * not hold.  Must not raise an error: it runs in commit, too.
 */
static void
end_of_transaction(XactEvent event, void *arg)
{
	HASH_SEQ_STATUS status;
	ModuleEntry *entry;
	ListCell   *lc;

	if (event == XACT_EVENT_PRE_COMMIT || event == XACT_EVENT_PARALLEL_PRE_COMMIT ||
		event == XACT_EVENT_PRE_PREPARE)
		return;

	foreach(lc, retired)
	{
		DgenModule *module = lfirst(lc);

		if (module->holds > 0)
			continue;
		retired = foreach_delete_current(retired, lc);
		MemoryContextDelete(module->mcxt);
	}

	if (!sweep_wanted)
		return;
	sweep_wanted = false;
	hash_seq_init(&status, module_cache);
	while ((entry = hash_seq_search(&status)) != NULL)
	{
		DgenModule *module = entry->module;

		if (!module->stale && !module->uncommitted)
			continue;
		/* what was uncommitted is now something else */
		module->stale = true;
		if (module->holds > 0)
		{
			sweep_wanted = true;
			continue;
		}
		hash_search(module_cache, entry->name, HASH_REMOVE, NULL);
		MemoryContextDelete(module->mcxt);
	}
}

/*
 * Register with PostgreSQL's caches; further calls do nothing.  One that runs out
 * of memory leaves the rest to the next.
 */
void
dgen_module_init(void)
{
	static bool registered = false;
	HASHCTL		ctl;

	if (registered)
		return;
	if (cache_context == NULL)
		cache_context = AllocSetContextCreate(TopMemoryContext, "dgen modules", ALLOCSET_DEFAULT_SIZES);
	ctl.hcxt = cache_context;
	if (module_cache == NULL)
	{
		ctl.keysize = NAMEDATALEN;
		ctl.entrysize = sizeof(ModuleEntry);
		module_cache = hash_create("dgen modules", 32, &ctl, HASH_ELEM | HASH_STRINGS | HASH_CONTEXT);
	}
	if (module_ids == NULL)
	{
		ctl.keysize = sizeof(int32);
		ctl.entrysize = sizeof(IdEntry);
		module_ids = hash_create("dgen module ids", 32, &ctl, HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	}
	/* the others take their places from arrays */
	RegisterXactCallback(end_of_transaction, NULL);
	registered = true;
	CacheRegisterRelcacheCallback(relation_changed, (Datum) 0);
	CacheRegisterSyscacheCallback(PROCOID, catalog_changed, (Datum) 0);
	CacheRegisterSyscacheCallback(NAMESPACEOID, catalog_changed, (Datum) 0);
	CacheRegisterSyscacheCallback(AUTHOID, catalog_changed, (Datum) 0);
}

/* A callback's result is of this relation's row type: heed its changes. */
void
dgen_module_watch_rowtype(Oid relid)
{
	MemoryContext old = MemoryContextSwitchTo(cache_context);

	watched_rowtypes = list_append_unique_oid(watched_rowtypes, relid);
	MemoryContextSwitchTo(old);
}

/* -------------------------------------------------------------------- rows */

static DgenTable *
open_table(LOCKMODE lockmode)
{
	DgenTable  *table;

	dgen_module_init();
	table = dgen_table_open(DGEN_T_MODULE, lockmode);
	module_relid = RelationGetRelid(table->rel);
	return table;
}

/*
 * The snapshot to read rows with, or NULL for rows as they are now; see the
 * file's header.  The registered snapshot protects toasted values meanwhile.
 */
static Snapshot
reading_snapshot(Snapshot registered)
{
	return IsolationIsSerializable() && FirstSnapshotSet ? NULL : registered;
}

static void
copy_row(DgenTable *table, HeapTuple tuple, DgenModuleRow *row)
{
	TupleDesc	desc = RelationGetDescr(table->rel);
	HeapTuple	copy;
	Datum		values[DGEN_MAX_COLUMNS];
	bool		nulls[DGEN_MAX_COLUMNS];

	copy = HeapTupleHasExternal(tuple) ? toast_flatten_tuple(tuple, desc) : heap_copytuple(tuple);
	heap_deform_tuple(copy, desc, values, nulls);
	memcpy(row->values, values, sizeof(row->values));
	memcpy(row->nulls, nulls, sizeof(row->nulls));
	row->tid = tuple->t_self;
	row->uncommitted = TransactionIdIsCurrentTransactionId(HeapTupleHeaderGetXmin(tuple->t_data));
}

static bool
scan_for_row(DgenTable *table, int index, ScanKey key, Snapshot snapshot, DgenModuleRow *row)
{
	DgenScan   *scan = dgen_scan_begin(table, index, snapshot, 1, key);
	HeapTuple	tuple = dgen_scan_next(scan);

	if (tuple != NULL)
		copy_row(table, tuple, row);
	dgen_scan_end(scan);
	return tuple != NULL;
}

static bool
find_row(int index, ScanKey key, DgenModuleRow *row)
{
	DgenTable  *table = open_table(AccessShareLock);
	Snapshot	registered = RegisterSnapshot(GetCatalogSnapshot(module_relid));
	Snapshot	snapshot = reading_snapshot(registered);
	bool		found;

	found = scan_for_row(table, index, key, snapshot, row);

	/*
	 * Without a snapshot, a row whose update commits while we scan may be
	 * missed at its old place and at its new one.  It is not missed twice.
	 */
	if (!found && snapshot == NULL)
		found = scan_for_row(table, index, key, snapshot, row);

	UnregisterSnapshot(registered);
	dgen_table_close_unlock(table);
	return found;
}

/* The row of a module, in the current memory context; false if there is none. */
bool
dgen_module_row_read(const char *name, DgenModuleRow *row)
{
	ScanKeyData key;

	dgen_key_text(&key, 1, name);
	return find_row(MODULE_INDEX_NAME, &key, row);
}

/* All rows, by name: a List of DgenModuleRow. */
List *
dgen_module_rows(void)
{
	DgenTable  *table = open_table(AccessShareLock);
	Snapshot	registered = RegisterSnapshot(GetCatalogSnapshot(module_relid));
	DgenScan   *scan;
	HeapTuple	tuple;
	DgenModuleRow *last = NULL;
	List	   *rows = NIL;

	scan = dgen_scan_begin(table, MODULE_INDEX_NAME, reading_snapshot(registered), 0, NULL);
	while ((tuple = dgen_scan_next(scan)) != NULL)
	{
		DgenModuleRow *row = palloc(sizeof(DgenModuleRow));

		copy_row(table, tuple, row);
		/* without a snapshot, a row that moves may be met twice */
		if (last != NULL && DatumGetInt32(last->values[MODULE_ID]) == DatumGetInt32(row->values[MODULE_ID]))
			continue;
		rows = lappend(rows, row);
		last = row;
	}
	dgen_scan_end(scan);
	UnregisterSnapshot(registered);
	dgen_table_close(table);
	return rows;
}

/* Let nobody else create, alter, suspend or drop this module until we end. */
void
dgen_module_lock(const char *name)
{
	uint32		hash = hash_bytes((const unsigned char *) name, strlen(name));

	LockDatabaseObject(dgen_table_oid(DGEN_T_MODULE), hash, 0, AccessExclusiveLock);
}

/* Tell every process, at commit, and this one now, that modules changed. */
void
dgen_module_changed(void)
{
	CacheInvalidateRelcacheByRelid(dgen_table_oid(DGEN_T_MODULE));
	CommandCounterIncrement();
}

void
dgen_module_row_insert(DgenModuleRow *row)
{
	DgenTable  *table = open_table(RowExclusiveLock);

	dgen_table_insert(table, row->values, row->nulls, &row->tid);
	dgen_table_close(table);
	dgen_module_changed();
}

/* Replace the row, which was read under dgen_module_lock(). */
void
dgen_module_row_update(DgenModuleRow *row)
{
	DgenTable  *table = open_table(RowExclusiveLock);
	ItemPointerData newtid;
	TM_Result	result;

	result = dgen_table_update(table, &row->tid, InvalidSnapshot, row->values, row->nulls, &newtid);
	if (result != TM_Ok)
		elog(ERROR, "row of module \"%s\" changed under its lock (%d)",
			 TextDatumGetCString(row->values[MODULE_NAME]), (int) result);
	row->tid = newtid;
	dgen_table_close(table);
	dgen_module_changed();
}

void
dgen_module_row_delete(DgenModuleRow *row)
{
	DgenTable  *table = open_table(RowExclusiveLock);

	if (!dgen_table_delete_wait(table, &row->tid))
		elog(ERROR, "row of module \"%s\" changed under its lock",
			 TextDatumGetCString(row->values[MODULE_NAME]));
	dgen_table_close(table);
	dgen_module_changed();
}

/* ------------------------------------------------------------- row to module */

static char *
row_text(const DgenModuleRow *row, int column)
{
	return row->nulls[column] ? NULL : TextDatumGetCString(row->values[column]);
}

/* Index of an option's word; the first where the table holds an unknown one. */
static int
word_index(const DgenOption *option, const char *word)
{
	for (int i = 0; i < DGEN_MAX_WORDS && option->words[i] != NULL; i++)
	{
		if (strcmp(option->words[i], word) == 0)
			return i;
	}
	return 0;
}

static void
load_option(DgenModule *module, const DgenOption *option, const DgenModuleRow *row, int column)
{
	void	   *field = (char *) module + option->offset;
	Datum		value = row->values[column];
	int64		usecs = 0;

	switch (option->type)
	{
		case DGEN_OPTION_BOOL:
			*(bool *) field = DatumGetBool(value);
			break;
		case DGEN_OPTION_FLAG:
			*(bool *) field = word_index(option, TextDatumGetCString(value)) == 1;
			break;
		case DGEN_OPTION_WORD:
			*(int *) field = word_index(option, TextDatumGetCString(value));
			break;
		case DGEN_OPTION_LEVEL:
			*(int *) field = isolation_levels[word_index(option, TextDatumGetCString(value))];
			break;
		case DGEN_OPTION_INT:
			*(int *) field = DatumGetInt32(value);
			break;
		case DGEN_OPTION_INT64:
			*(int64 *) field = DatumGetInt64(value);
			break;
		case DGEN_OPTION_DOUBLE:
			*(double *) field = DatumGetFloat8(value);
			break;
		case DGEN_OPTION_MSEC:
			(void) dgen_interval_usecs(DatumGetIntervalP(value), &usecs);
			*(int *) field = usecs / 1000;
			break;
		case DGEN_OPTION_SECONDS:
			(void) dgen_interval_usecs(DatumGetIntervalP(value), &usecs);
			*(double *) field = usecs / 1e6;
			break;
		case DGEN_OPTION_USEC:
			(void) dgen_interval_usecs(DatumGetIntervalP(value), &usecs);
			*(int64 *) field = usecs;
			break;
		case DGEN_OPTION_HISTORY:
			*(char **) field = row_text(row, column);
			if (!row->nulls[column])
				(void) dgen_history_parse(module->history, &module->history_versions,
										  &module->history_usecs);
			break;
		case DGEN_OPTION_KEYS:
			*(ArrayType **) field = row->nulls[column] ? NULL : DatumGetArrayTypePCopy(value);
			break;
		case DGEN_OPTION_CHANNEL:
			*(char **) field = row_text(row, column);
			if (!row->nulls[column])
				dgen_announce_wanted = true;
			break;
		case DGEN_OPTION_SEARCH_PATH:
		case DGEN_OPTION_TIMEZONE:
		case DGEN_OPTION_ROLE:
		case DGEN_OPTION_TEXT:
			*(char **) field = row_text(row, column);
			break;
	}
}

static char *
describe_callback(const DgenCallback *cb)
{
	return psprintf("function %s belongs to role \"%s\"",
					format_procedure_qualified(cb->function),
					GetUserNameFromId(cb->owner, false));
}

/* The owner as it is now; sets owner_fault where callbacks disagree. */
static Oid
live_owner(DgenModule *module)
{
	const DgenCallback *first = NULL;
	Oid			owner = InvalidOid;

	if (module->external && OidIsValid(module->schema))
	{
		HeapTuple	tuple = SearchSysCache1(NAMESPACEOID, ObjectIdGetDatum(module->schema));

		if (HeapTupleIsValid(tuple))
		{
			owner = ((Form_pg_namespace) GETSTRUCT(tuple))->nspowner;
			ReleaseSysCache(tuple);
		}
	}

	for (int kind = 0; kind < DGEN_NCALLBACKS; kind++)
	{
		const DgenCallback *cb = &module->callbacks[kind];

		if (!cb->present)
			continue;
		if (!OidIsValid(owner))
		{
			owner = cb->owner;
			first = cb;
		}
		else if (cb->owner != owner && module->owner_fault == NULL)
			module->owner_fault = first == NULL ?
				psprintf("The module is external, so that its owner is that of schema \"%s\", but %s.",
						 module->schema_name, describe_callback(cb)) :
				psprintf("All callbacks must have one owner, but %s and %s.",
						 describe_callback(first), describe_callback(cb));
	}
	return owner;
}

/*
 * Decide who owns the module: who does so live, if that is who was agreed to.
 * Else it belongs to the agreed owner, and does not run.  agreed is NULL
 * while a module is being made.
 */
static void
settle_owner(DgenModule *module, const char *agreed)
{
	Oid			live = live_owner(module);
	Oid			owner = agreed ? get_role_oid(agreed, true) : live;

	if (!OidIsValid(owner) && agreed != NULL)
		module->owner_fault = psprintf("Its owner, role \"%s\", does not exist.", agreed);
	else if (OidIsValid(live) && live != owner && module->owner_fault == NULL)
		module->owner_fault = psprintf("It was made for role \"%s\", but now belongs to role \"%s\".",
									   agreed, GetUserNameFromId(live, false));
	module->owner = owner;
	module->owner_name = agreed ? pstrdup(agreed) :
		OidIsValid(owner) ? GetUserNameFromId(owner, false) : NULL;
}

static void
settle_suspension(DgenModule *module, const DgenModuleRow *row)
{
	module->suspended = !row->nulls[MODULE_SUSPENDED_AT];
	module->suspended_by = row_text(row, MODULE_SUSPENDED_BY);
	module->suspended_reason = row_text(row, MODULE_SUSPENDED_REASON);
	if (!module->suspended && module->owner_fault != NULL)
	{
		module->suspended = true;
		module->suspended_by = pstrdup("dgen");
		module->suspended_reason = module->owner_fault;
	}
}

/*
 * Make a module of a row, which need not be in the table; owner may be null
 * in it.  The module's memory context becomes a child of the current one,
 * which is littered.
 */
DgenModule *
dgen_module_build(const DgenModuleRow *row)
{
	MemoryContext mcxt = AllocSetContextCreate(CurrentMemoryContext, "dgen module", ALLOCSET_SMALL_SIZES);
	DgenModule *module = MemoryContextAllocZero(mcxt, sizeof(DgenModule));
	MemoryContext old = MemoryContextSwitchTo(mcxt);

	module->mcxt = mcxt;
	strlcpy(module->name, TextDatumGetCString(row->values[MODULE_NAME]), NAMEDATALEN);
	module->id = DatumGetInt32(row->values[MODULE_ID]);
	module->uncommitted = row->uncommitted;
	module->schema_name = row_text(row, MODULE_SCHEMA);
	module->schema = get_namespace_oid(module->schema_name, true);
	for (int i = 0; i < DGEN_NOPTIONS; i++)
		load_option(module, &dgen_module_options[i], row, MODULE_OPTIONS + i);

	MemoryContextSwitchTo(old);
	dgen_callbacks_resolve(module, row->nulls[MODULE_CALLBACKS] ? NULL :
						   DatumGetJsonbP(row->values[MODULE_CALLBACKS]));

	MemoryContextSwitchTo(mcxt);
	settle_owner(module, row_text(row, MODULE_OWNER));
	settle_suspension(module, row);
	MemoryContextSwitchTo(old);
	return module;
}

/* ------------------------------------------------------------------- cache */

/* No longer found by name; freed at the end of the transaction or later. */
static void
retire(DgenModule *module)
{
	MemoryContext old = MemoryContextSwitchTo(cache_context);

	module->stale = true;
	retired = lappend(retired, module);
	MemoryContextSwitchTo(old);
}

static void
remember(DgenModule *module)
{
	bool		found;
	ModuleEntry *entry;
	IdEntry    *id;

	id = hash_search(module_ids, &module->id, HASH_ENTER, NULL);
	strlcpy(id->name, module->name, NAMEDATALEN);

	/* an entry never lacks a module, even if we run out of memory */
	entry = hash_search(module_cache, module->name, HASH_FIND, NULL);
	if (entry != NULL)
		retire(entry->module);
	entry = hash_search(module_cache, module->name, HASH_ENTER, &found);
	entry->module = module;
	MemoryContextSetParent(module->mcxt, cache_context);
	if (module->stale || module->uncommitted)
		sweep_wanted = true;
}

static void
forget(const char *name)
{
	ModuleEntry *entry = hash_search(module_cache, name, HASH_FIND, NULL);

	if (entry == NULL)
		return;
	retire(entry->module);
	hash_search(module_cache, name, HASH_REMOVE, NULL);
}

/* Read a module and cache it; NULL if there is none. */
static DgenModule *
load(const char *name)
{
	MemoryContext work = AllocSetContextCreate(CurrentMemoryContext, "dgen module load",
											   ALLOCSET_DEFAULT_SIZES);
	MemoryContext old = MemoryContextSwitchTo(work);
	uint64		before = invalidations;
	DgenModuleRow row;
	DgenModule *module = NULL;

	if (dgen_module_row_read(name, &row))
	{
		module = dgen_module_build(&row);
		dgen_trace_load(module);
		/* something changed while we looked: good for this once */
		module->stale = invalidations != before;
		remember(module);
	}
	else
		forget(name);
	MemoryContextSwitchTo(old);
	MemoryContextDelete(work);
	return module;
}

/* OT004 */
void
dgen_module_missing(const char *name)
{
	ereport(ERROR,
			(errcode(ERRCODE_DGEN_NO_MODULE),
			 errmsg("module \"%s\" does not exist", name),
			 errdetail("An address is module/key; no module of this name was made in this database."),
			 errhint("Make it with SELECT dgen.create_module(%s); view dgen.modules lists those that exist.",
					 quote_literal_cstr(name))));
}

DgenModule *
dgen_module_get(const char *name, bool missing_ok)
{
	ModuleEntry *entry;
	DgenModule *module = NULL;

	dgen_module_init();
	if (strlen(name) < NAMEDATALEN)
	{
		entry = hash_search(module_cache, name, HASH_FIND, NULL);
		if (entry != NULL && !entry->module->stale)
			return entry->module;
		module = load(name);
	}
	if (module == NULL && !missing_ok)
		dgen_module_missing(name);
	return module;
}

DgenModule *
dgen_module_by_id(int32 id)
{
	IdEntry    *entry;
	DgenModule *module;
	DgenModuleRow row;
	ScanKeyData key;

	dgen_module_init();
	entry = hash_search(module_ids, &id, HASH_FIND, NULL);
	if (entry != NULL)
	{
		module = dgen_module_get(entry->name, true);
		if (module != NULL && module->id == id)
			return module;
	}

	ScanKeyInit(&key, 1, BTEqualStrategyNumber, F_INT4EQ, Int32GetDatum(id));
	if (!find_row(MODULE_INDEX_ID, &key, &row))
	{
		hash_search(module_ids, &id, HASH_REMOVE, NULL);
		return NULL;
	}
	return dgen_module_get(TextDatumGetCString(row.values[MODULE_NAME]), true);
}

/*
 * The module as its row is now, whatever the cache has: a commit is visible
 * before its invalidations are sent.
 */
DgenModule *
dgen_module_reread(DgenModule *module)
{
	int32		id = module->id;

	module->stale = true;
	sweep_wanted = true;
	return dgen_module_by_id(id);
}

/* Keep the module in memory, as it is, until it is released. */
void
dgen_module_hold(DgenModule *module)
{
	module->holds++;
}

/* If the module is stale, the end of this or the next transaction frees it. */
void
dgen_module_release(DgenModule *module)
{
	Assert(module->holds > 0);
	module->holds--;
}

/* --------------------------------------------------------------- callbacks */

/* 55000 where the callbacks' owner is not who was agreed to. */
static void
check_owner(DgenModule *module)
{
	if (module->owner_fault != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("module \"%s\" is suspended", module->name),
				 errdetail("%s", module->owner_fault),
				 errhint(OWNER_HINT, quote_literal_cstr(module->name))));
}

void
dgen_module_check_running(DgenModule *module)
{
	check_owner(module);
	if (module->suspended)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("module \"%s\" is suspended", module->name),
				 errdetail("It was suspended by %s: %s",
						   module->suspended_by ? module->suspended_by : "an operator",
						   module->suspended_reason ? module->suspended_reason : "no reason was given"),
				 errhint("Run SELECT dgen.resume(module => %s).", quote_literal_cstr(module->name))));
}

/*
 * A module that is held may be older than the catalog: a function that now
 * belongs to somebody else must not run as the one who owned it.
 */
static bool
callback_unchanged(DgenModule *module, DgenCallback *cb)
{
	HeapTuple	tuple = SearchSysCache1(PROCOID, ObjectIdGetDatum(cb->function));
	bool		unchanged;

	if (!HeapTupleIsValid(tuple))
		return false;
	unchanged = ((Form_pg_proc) GETSTRUCT(tuple))->proowner == cb->owner;
	ReleaseSysCache(tuple);
	return unchanged;
}

/* The callback, ready to be called; else OT005, or 55000 for a wrong owner. */
DgenCallback *
dgen_module_callback(DgenModule *module, DgenCallbackKind kind)
{
	DgenCallback *cb = &module->callbacks[kind];

	check_owner(module);
	if (!cb->present)
		dgen_callback_unusable(module, kind);
	if (module->stale && !callback_unchanged(module, cb))
		ereport(ERROR,
				(errcode(ERRCODE_DGEN_NO_CALLBACK),
				 errmsg("callback %s of module \"%s\" was just changed",
						dgen_callback_name(kind), module->name),
				 errdetail("Its function was dropped, or has a new owner."),
				 errhint("Try again; if that fails, run dgen.alter_module(%s).",
						 quote_literal_cstr(module->name))));

	/* not before: this may load a library, and fail */
	if (!OidIsValid(cb->flinfo.fn_oid))
		fmgr_info_cxt(cb->function, &cb->flinfo, module->mcxt);
	return cb;
}

DgenCallback *
dgen_module_state_callback(DgenModule *module, const char *state, bool missing_ok)
{
	DgenCallback *cb;

	check_owner(module);
	cb = dgen_callback_of_state(module, state);
	if (!cb->present && cb->fault == NULL && missing_ok)
		return NULL;
	if (!cb->present || (module->stale && !callback_unchanged(module, cb)))
		dgen_state_unusable(module, cb, state);
	if (!OidIsValid(cb->flinfo.fn_oid))
		fmgr_info_cxt(cb->function, &cb->flinfo, module->mcxt);
	return cb;
}

/* ------------------------------------------------------------------ rights */

/* Is a user a member of a role that an option names? */
static bool
is_of_named(Oid user, const char *role_name)
{
	Oid			role = role_name ? get_role_oid(role_name, true) : InvalidOid;

	return OidIsValid(role) && has_privs_of_role(user, role);
}

static bool
is_of_owner(Oid user, DgenModule *module)
{
	return superuser_arg(user) ||
		(OidIsValid(module->owner) && has_privs_of_role(user, module->owner));
}

static bool
member_of_named(const char *role_name)
{
	return is_of_named(GetUserId(), role_name);
}

static bool
member_of_owner(DgenModule *module)
{
	return is_of_owner(GetUserId(), module);
}

bool
dgen_module_may_operate_as(DgenModule *module, Oid role)
{
	return is_of_owner(role, module) || is_of_named(role, module->operators);
}

bool
dgen_module_may_operate(DgenModule *module)
{
	return dgen_module_may_operate_as(module, GetUserId());
}

/* 42501 for want of membership in the owner or in the role of an option. */
static void
refuse_member(DgenModule *module, const char *what, const char *option, const char *role_name)
{
	char	   *user = GetUserNameFromId(GetUserId(), false);

	ereport(ERROR,
			(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
			 errmsg("permission denied to %s module \"%s\"", what, module->name),
			 role_name ?
			 errdetail("Role \"%s\" is no member of the module's owner \"%s\", nor of its %s, role \"%s\".",
					   user, module->owner_name, option, role_name) :
			 errdetail("Role \"%s\" is no member of the module's owner \"%s\", and the module names no role as its %s.",
					   user, module->owner_name, option),
			 role_name ?
			 errhint("Run GRANT %s TO %s.", quote_identifier(role_name), quote_identifier(user)) :
			 errhint("Run dgen.alter_module(%s, %s => ...) to name a role, and GRANT that role TO %s.",
					 quote_literal_cstr(module->name), option, quote_identifier(user))));
}

static void
refuse_usage(DgenModule *module, Oid schema)
{
	char	   *user = GetUserNameFromId(GetUserId(), false);
	char	   *name = get_namespace_name(schema);

	ereport(ERROR,
			(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
			 errmsg("permission denied to send to module \"%s\"", module->name),
			 errdetail("Role \"%s\" has no USAGE on schema \"%s\".", user, name),
			 errhint("Run GRANT USAGE ON SCHEMA %s TO %s.",
					 quote_identifier(name), quote_identifier(user))));
}

/*
 * There is no such callback, so no EXECUTE that would give the right.  Who has
 * USAGE on the schema is told so, as its owner is; but what has no handle_info
 * takes infos, from members.
 */
static void
refuse_without_callback(DgenModule *module, DgenCallbackKind kind)
{
	if (module->external || (kind == DGEN_HANDLE_INFO && module->clients != NULL))
		refuse_member(module, "send to", "clients", module->clients);
	if (OidIsValid(module->schema) &&
		object_aclcheck(NamespaceRelationId, module->schema, GetUserId(), ACL_USAGE) != ACLCHECK_OK)
		refuse_usage(module, module->schema);
	if (kind == DGEN_HANDLE_INFO)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied to send to module \"%s\"", module->name),
				 errdetail("It has no callback %s, on which role \"%s\" could have EXECUTE.",
						   dgen_callback_name(kind), GetUserNameFromId(GetUserId(), false)),
				 errhint("Have its owner define it, or name a role by dgen.alter_module(%s, clients => ...).",
						 quote_literal_cstr(module->name))));
	dgen_callback_unusable(module, kind);
}

/*
 * Whose EXECUTE is the right to send?  All events of a state machine go to one
 * function, or to one a state: then init stands for them.
 */
static DgenCallbackKind
sent_to(DgenModule *module, DgenCallbackKind kind)
{
	if (!module->machine || kind == DGEN_HANDLE_QUERY)
		return kind;
	return module->callbacks[DGEN_HANDLE_EVENT].present || module->callbacks[DGEN_HANDLE_EVENT].fault ?
		DGEN_HANDLE_EVENT : DGEN_INIT;
}

/*
 * May the current user send what this callback handles?  If not, *schema or
 * *function says what he lacks a right on, or neither where it is membership.
 */
static bool
may_send(DgenModule *module, DgenCallbackKind kind, Oid *schema, Oid *function)
{
	DgenCallback *cb = &module->callbacks[sent_to(module, kind)];

	*schema = *function = InvalidOid;
	if (!cb->present)
		return member_of_owner(module) || member_of_named(module->clients);

	/* InvalidOid: the function is gone, which using it will tell */
	*schema = get_func_namespace(cb->function);
	if (!OidIsValid(*schema))
		return true;
	if (object_aclcheck(NamespaceRelationId, *schema, GetUserId(), ACL_USAGE) != ACLCHECK_OK)
		return false;
	*schema = InvalidOid;
	*function = cb->function;
	return object_aclcheck(ProcedureRelationId, cb->function, GetUserId(), ACL_EXECUTE) == ACLCHECK_OK;
}

void
dgen_module_check_send(DgenModule *module, DgenCallbackKind kind)
{
	Oid			schema;
	Oid			function;
	char	   *user;

	kind = sent_to(module, kind);
	if (may_send(module, kind, &schema, &function))
	{
		/* a message that nobody handles is refused; infos may be ignored */
		if (kind != DGEN_HANDLE_INFO && !module->external)
			(void) dgen_module_callback(module, kind);
		return;
	}

	if (OidIsValid(schema))
		refuse_usage(module, schema);
	if (!OidIsValid(function))
	{
		refuse_without_callback(module, kind);
		return;
	}
	user = GetUserNameFromId(GetUserId(), false);
	ereport(ERROR,
			(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
			 errmsg("permission denied to send to module \"%s\"", module->name),
			 errdetail("Role \"%s\" has no EXECUTE on its callback %s.",
					   user, dgen_callback_name(kind)),
			 errhint("Run GRANT EXECUTE ON FUNCTION %s TO %s.",
					 format_procedure_qualified(function), quote_identifier(user))));
}

void
dgen_module_check_operate(DgenModule *module)
{
	if (!dgen_module_may_operate(module))
		refuse_member(module, "operate", "operators", module->operators);
}

void
dgen_module_check_work(DgenModule *module)
{
	if (!member_of_owner(module) && !member_of_named(module->workers))
		refuse_member(module, "take work of", "workers", module->workers);
}

bool
dgen_module_may_read(DgenModule *module)
{
	return dgen_module_may_operate(module) || member_of_named(module->readers);
}

void
dgen_module_check_read(DgenModule *module)
{
	if (!dgen_module_may_read(module))
		refuse_member(module, "read", "readers", module->readers);
}

/*
 * Is the module in the views of the current user, and may he learn where its
 * servers are: may he do anything with it?
 */
bool
dgen_module_may_see(DgenModule *module)
{
	static const DgenCallbackKind sent[] = {
		DGEN_HANDLE_CALL, DGEN_HANDLE_CAST, DGEN_HANDLE_INFO, DGEN_HANDLE_QUERY
	};
	Oid			schema;
	Oid			function;

	if (dgen_module_may_read(module) || member_of_named(module->clients) ||
		member_of_named(module->workers))
		return true;
	for (int i = 0; i < lengthof(sent); i++)
	{
		if (module->callbacks[sent_to(module, sent[i])].present &&
			may_send(module, sent[i], &schema, &function))
			return true;
	}
	return false;
}

/* -------------------------------------------------------------- suspension */

/* Suspend the module; one that is suspended keeps its first reason. */
void
dgen_module_suspend(DgenModule *module, const char *by, const char *reason)
{
	DgenModuleRow row;

	dgen_module_lock(module->name);
	if (!dgen_module_row_read(module->name, &row) || !row.nulls[MODULE_SUSPENDED_AT])
		return;
	row.values[MODULE_SUSPENDED_AT] = TimestampTzGetDatum(GetCurrentTimestamp());
	row.nulls[MODULE_SUSPENDED_AT] = false;
	row.nulls[MODULE_SUSPENDED_BY] = by == NULL;
	if (by != NULL)
		row.values[MODULE_SUSPENDED_BY] = CStringGetTextDatum(by);
	row.nulls[MODULE_SUSPENDED_REASON] = reason == NULL;
	if (reason != NULL)
		row.values[MODULE_SUSPENDED_REASON] = CStringGetTextDatum(reason);
	dgen_module_row_update(&row);
}

/* Undo it; a suspension for a wrong owner is alter_module's to end. */
bool
dgen_module_resume(DgenModule *module)
{
	DgenModuleRow row;

	dgen_module_lock(module->name);
	if (!dgen_module_row_read(module->name, &row) || row.nulls[MODULE_SUSPENDED_AT])
		return false;
	row.nulls[MODULE_SUSPENDED_AT] = true;
	row.nulls[MODULE_SUSPENDED_BY] = true;
	row.nulls[MODULE_SUSPENDED_REASON] = true;
	dgen_module_row_update(&row);
	return true;
}
