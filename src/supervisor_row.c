/*-------------------------------------------------------------------------
 *
 * supervisor_row.c
 *	  The rows of dgen.supervisor and dgen.child, below the executor.
 *
 * Locks: the lock of a tree, a heavyweight lock on the name of its root, is
 * taken first, and before any lease; who holds it may write the rows of the
 * tree.  The row of a child may also be deleted, and nothing else, by who
 * holds the lease of its server.  So what was read under the lock is read
 * again once the leases are held.  All rows are read as they are now.
 *
 *-------------------------------------------------------------------------
 */
#include "supervisor.h"

#include "access/htup_details.h"
#include "access/skey.h"
#include "catalog/pg_type.h"
#include "storage/lmgr.h"
#include "utils/array.h"
#include "utils/rel.h"

#define TREE_LOCK_CLASS 0xD4

/* columns of dgen.supervisor, from 0 */
enum
{
	SUP_NAME, SUP_OWNER, SUP_STRATEGY, SUP_STATUS, SUP_INTENSITY, SUP_PERIOD,
	SUP_STARTED_AT, SUP_REASON, SUP_RESTARTS, SUP_NATTS
};

/* columns of dgen.child, from 0 */
enum
{
	CHILD_SUPERVISOR, CHILD_ID, CHILD_POSITION, CHILD_SERVER, CHILD_RESTART, CHILD_STATE,
	CHILD_TERMINATED, CHILD_RESTARTS, CHILD_STREAK, CHILD_RESTARTED_AT, CHILD_REASON,
	CHILD_NOT_A_CRASH, CHILD_ARGS, CHILD_ON_RESTART, CHILD_NATTS
};

static const char *const status_names[] = {"running", "failed", "stopped"};

/* Have the tree of a supervisor, named by itself or any below it, to ourselves. */
void
dgen_tree_lock(const char *supervisor)
{
	const char *slash = strchr(supervisor, '/');
	int64		hash = dgen_address_hash(supervisor, slash ? slash - supervisor : strlen(supervisor));
	LOCKTAG		tag;

	SET_LOCKTAG_ADVISORY(tag, MyDatabaseId, (uint32) ((uint64) hash >> 32), (uint32) hash,
						 TREE_LOCK_CLASS);
	(void) LockAcquire(&tag, ExclusiveLock, false, false);
}

static char *
text_col(Datum *values, bool *nulls, int col)
{
	return nulls[col] ? NULL : TextDatumGetCString(values[col]);
}

static Datum
text_value(const char *s, bool *isnull)
{
	*isnull = (s == NULL);
	return s ? CStringGetTextDatum(s) : (Datum) 0;
}

static void
write_row(DgenTableId id, ItemPointer tid, bool *exists, Datum *values, bool *nulls)
{
	DgenTable  *table = dgen_table_open(id, RowExclusiveLock);

	if (*exists)
	{
		ItemPointerData newtid;
		TM_Result	result = dgen_table_update(table, tid, InvalidSnapshot, values, nulls, &newtid);

		if (result != TM_Ok)
			elog(ERROR, "row of a supervision tree changed under its lock (%d)", (int) result);
		*tid = newtid;
	}
	else
		dgen_table_insert(table, values, nulls, tid);
	*exists = true;
	dgen_table_close(table);
	CommandCounterIncrement();
}

static void
delete_row(DgenTableId id, ItemPointer tid, bool *exists)
{
	DgenTable  *table = dgen_table_open(id, RowExclusiveLock);

	if (*exists)
		(void) dgen_table_delete_wait(table, tid);
	*exists = false;
	dgen_table_close(table);
	CommandCounterIncrement();
}

/* ---------------------------------------------------------------- supervisors */

static void
read_restarts(DgenSupervisor *sup, Datum array)
{
	Datum	   *elements;
	int			n;

	deconstruct_array(DatumGetArrayTypeP(array), TIMESTAMPTZOID, sizeof(TimestampTz),
					  FLOAT8PASSBYVAL, TYPALIGN_DOUBLE, &elements, NULL, &n);
	sup->nrestarts = Min(n, DGEN_MAX_INTENSITY + 1);
	for (int i = 0; i < sup->nrestarts; i++)
		sup->restarts[i] = DatumGetTimestampTz(elements[i]);
}

static DgenSupervisor *
deform_supervisor(HeapTuple tuple, TupleDesc desc)
{
	DgenSupervisor *sup = palloc0(sizeof(DgenSupervisor));
	Datum		values[DGEN_MAX_COLUMNS];
	bool		nulls[DGEN_MAX_COLUMNS];
	char	   *status;

	heap_deform_tuple(tuple, desc, values, nulls);
	sup->tid = tuple->t_self;
	sup->exists = true;
	sup->name = text_col(values, nulls, SUP_NAME);
	sup->owner = text_col(values, nulls, SUP_OWNER);
	sup->strategy = dgen_strategy_by_name(text_col(values, nulls, SUP_STRATEGY));
	status = text_col(values, nulls, SUP_STATUS);
	for (int i = 0; i < lengthof(status_names); i++)
	{
		if (strcmp(status, status_names[i]) == 0)
			sup->status = i;
	}
	sup->intensity = DatumGetInt32(values[SUP_INTENSITY]);
	sup->period = *DatumGetIntervalP(values[SUP_PERIOD]);
	sup->started_at = DatumGetTimestampTz(values[SUP_STARTED_AT]);
	sup->reason = text_col(values, nulls, SUP_REASON);
	read_restarts(sup, values[SUP_RESTARTS]);
	return sup;
}

DgenSupervisor *
dgen_supervisor_read(const char *name)
{
	DgenTable  *table = dgen_table_open(DGEN_T_SUPERVISOR, AccessShareLock);
	DgenSupervisor *sup = NULL;
	ScanKeyData key;
	DgenScan   *scan;
	HeapTuple	tuple;

	dgen_key_text(&key, 1, name);
	scan = dgen_scan_begin(table, DGEN_I_PKEY, NULL, 1, &key);
	tuple = dgen_scan_next(scan);
	if (tuple != NULL)
		sup = deform_supervisor(tuple, RelationGetDescr(table->rel));
	dgen_scan_end(scan);
	dgen_table_close(table);
	return sup;
}

void
dgen_supervisor_write(DgenSupervisor *sup)
{
	Datum		values[SUP_NATTS];
	bool		nulls[SUP_NATTS] = {false};
	Datum	   *restarts = palloc(Max(sup->nrestarts, 1) * sizeof(Datum));

	for (int i = 0; i < sup->nrestarts; i++)
		restarts[i] = TimestampTzGetDatum(sup->restarts[i]);
	values[SUP_NAME] = CStringGetTextDatum(sup->name);
	values[SUP_OWNER] = CStringGetTextDatum(sup->owner);
	values[SUP_STRATEGY] = CStringGetTextDatum(dgen_strategy_name(sup->strategy));
	values[SUP_STATUS] = CStringGetTextDatum(status_names[sup->status]);
	values[SUP_INTENSITY] = Int32GetDatum(sup->intensity);
	values[SUP_PERIOD] = IntervalPGetDatum(&sup->period);
	values[SUP_STARTED_AT] = TimestampTzGetDatum(sup->started_at);
	values[SUP_REASON] = text_value(sup->reason, &nulls[SUP_REASON]);
	values[SUP_RESTARTS] = PointerGetDatum(construct_array(restarts, sup->nrestarts, TIMESTAMPTZOID,
														   sizeof(TimestampTz), FLOAT8PASSBYVAL,
														   TYPALIGN_DOUBLE));
	write_row(DGEN_T_SUPERVISOR, &sup->tid, &sup->exists, values, nulls);
}

void
dgen_supervisor_delete(DgenSupervisor *sup)
{
	delete_row(DGEN_T_SUPERVISOR, &sup->tid, &sup->exists);
}

/* The name of the supervisor above this one; NULL: it is a root. */
char *
dgen_supervisor_parent(const char *name)
{
	const char *slash = strrchr(name, '/');

	return slash ? pnstrdup(name, slash - name) : NULL;
}

/* ---------------------------------------------------------------- children */

static DgenChild *
deform_child(HeapTuple tuple, TupleDesc desc)
{
	DgenChild  *child = palloc0(sizeof(DgenChild));
	Datum		values[DGEN_MAX_COLUMNS];
	bool		nulls[DGEN_MAX_COLUMNS];

	heap_deform_tuple(tuple, desc, values, nulls);
	child->tid = tuple->t_self;
	child->exists = true;
	child->supervisor = text_col(values, nulls, CHILD_SUPERVISOR);
	child->id = text_col(values, nulls, CHILD_ID);
	child->position = DatumGetInt64(values[CHILD_POSITION]);
	child->server = text_col(values, nulls, CHILD_SERVER);
	child->restart = dgen_restart_by_name(text_col(values, nulls, CHILD_RESTART));
	child->state = dgen_restart_state_by_name(text_col(values, nulls, CHILD_STATE));
	child->terminated = DatumGetBool(values[CHILD_TERMINATED]);
	child->restarts = DatumGetInt64(values[CHILD_RESTARTS]);
	child->streak = DatumGetInt32(values[CHILD_STREAK]);
	child->restarted_at = nulls[CHILD_RESTARTED_AT] ? 0 : DatumGetTimestampTz(values[CHILD_RESTARTED_AT]);
	child->reason = text_col(values, nulls, CHILD_REASON);
	child->not_a_crash = DatumGetJsonbPCopy(values[CHILD_NOT_A_CRASH]);
	child->args = DatumGetJsonbPCopy(values[CHILD_ARGS]);
	if (!nulls[CHILD_ON_RESTART])
		child->on_restart = DatumGetJsonbPCopy(values[CHILD_ON_RESTART]);
	return child;
}

/* The first row by an index and up to two texts of its key. */
static DgenChild *
find_child(int index, const char *first, const char *second)
{
	DgenTable  *table = dgen_table_open(DGEN_T_CHILD, AccessShareLock);
	DgenChild  *child = NULL;
	ScanKeyData keys[2];
	DgenScan   *scan;
	HeapTuple	tuple;

	dgen_key_text(&keys[0], 1, first);
	if (second != NULL)
		dgen_key_text(&keys[1], 2, second);
	scan = dgen_scan_begin(table, index, NULL, second ? 2 : 1, keys);
	tuple = dgen_scan_next(scan);
	if (tuple != NULL)
		child = deform_child(tuple, RelationGetDescr(table->rel));
	dgen_scan_end(scan);
	dgen_table_close(table);
	return child;
}

DgenChild *
dgen_child_read(const char *supervisor, const char *id)
{
	return find_child(DGEN_I_PKEY, supervisor, id);
}

DgenChild *
dgen_child_of_server(const char *server)
{
	return find_child(DGEN_I_CHILD_SERVER, server, NULL);
}

List *
dgen_child_list(const char *supervisor)
{
	DgenTable  *table = dgen_table_open(DGEN_T_CHILD, AccessShareLock);
	List	   *children = NIL;
	ScanKeyData key;
	DgenScan   *scan;
	HeapTuple	tuple;

	dgen_key_text(&key, 1, supervisor);
	scan = dgen_scan_begin(table, DGEN_I_CHILD_POSITION, NULL, 1, &key);
	while ((tuple = dgen_scan_next(scan)) != NULL)
	{
		children = lappend(children, deform_child(tuple, RelationGetDescr(table->rel)));
		CHECK_FOR_INTERRUPTS();
	}
	dgen_scan_end(scan);
	dgen_table_close(table);
	return children;
}

void
dgen_child_write(DgenChild *child)
{
	Datum		values[CHILD_NATTS];
	bool		nulls[CHILD_NATTS] = {false};

	values[CHILD_SUPERVISOR] = CStringGetTextDatum(child->supervisor);
	values[CHILD_ID] = CStringGetTextDatum(child->id);
	values[CHILD_POSITION] = Int64GetDatum(child->position);
	values[CHILD_SERVER] = text_value(child->server, &nulls[CHILD_SERVER]);
	values[CHILD_RESTART] = CStringGetTextDatum(dgen_restart_name(child->restart));
	values[CHILD_STATE] = CStringGetTextDatum(dgen_restart_state_name(child->state));
	values[CHILD_TERMINATED] = BoolGetDatum(child->terminated);
	values[CHILD_RESTARTS] = Int64GetDatum(child->restarts);
	values[CHILD_STREAK] = Int32GetDatum(child->streak);
	values[CHILD_RESTARTED_AT] = TimestampTzGetDatum(child->restarted_at);
	nulls[CHILD_RESTARTED_AT] = child->restarted_at == 0;
	values[CHILD_REASON] = text_value(child->reason, &nulls[CHILD_REASON]);
	values[CHILD_NOT_A_CRASH] = JsonbPGetDatum(child->not_a_crash);
	values[CHILD_ARGS] = JsonbPGetDatum(child->args);
	values[CHILD_ON_RESTART] = JsonbPGetDatum(child->on_restart);
	nulls[CHILD_ON_RESTART] = child->on_restart == NULL;
	write_row(DGEN_T_CHILD, &child->tid, &child->exists, values, nulls);
}

void
dgen_child_delete(DgenChild *child)
{
	delete_row(DGEN_T_CHILD, &child->tid, &child->exists);
}

/* The name of a supervisor that is a child. */
char *
dgen_child_path(const DgenChild *child)
{
	return psprintf("%s/%s", child->supervisor, child->id);
}
