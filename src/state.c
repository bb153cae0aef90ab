/*-------------------------------------------------------------------------
 *
 * state.c
 *	  How a state is stored: a small one in the server's row, a large one as
 *	  a base and patches.
 *
 * The row's state column holds the state as of base_version.  While a state is
 * small that is the current version, and each write replaces it.  For a large
 * one, of which little changes at a time, each write appends a row to
 * dgen.patch instead, and the row keeps the pointer to the base's TOAST data,
 * which is not touched: of a state of 1 MB some hundred bytes go to WAL instead
 * of all of it.  When the patches amount to a part of the state they are
 * folded: a new base is written, and they go.
 *
 * All writes are made under the server's lease.  A reader without it uses one
 * MVCC snapshot for row and patches.
 *
 *-------------------------------------------------------------------------
 */
#include "dgen.h"

#include "access/htup_details.h"
#include "access/skey.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "executor/tuptable.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

/* a state of less is always written whole: its TOAST data would fit in few chunks */
#define PATCH_MIN_STATE 4096
/* patches are folded when they have this part of the state's size */
#define FOLD_PART 8

/* columns of dgen.patch, from 0 */
enum
{
	COL_SERVER, COL_VERSION, COL_PATCH, NCOLS
};

#define COL_STATE 12			/* of dgen.server */

/* ---------------------------------------------------------------- reading */

/*
 * Compose patches as they come, like a binary counter: each is composed with
 * others of about its own weight, so that a thousand cost little more than
 * their sum.
 */
typedef struct Stack
{
	int			n;
	Jsonb	   *patches[64];
	int			weights[64];
} Stack;

static void
push_patch(Stack *stack, Jsonb *patch)
{
	int			weight = 1;

	while (stack->n > 0 && stack->weights[stack->n - 1] <= weight)
	{
		stack->n--;
		patch = dgen_jsonb_compose(stack->patches[stack->n], patch);
		weight += stack->weights[stack->n];
	}
	stack->patches[stack->n] = patch;
	stack->weights[stack->n] = weight;
	stack->n++;
}

/*
 * The state as of a version: its base, and the patches behind it as the
 * snapshot sees them (NULL: as they are now, under the lease).
 */
Jsonb *
dgen_state_merge(const char *server, Jsonb *base, int64 base_version, int64 version,
				 Snapshot snapshot)
{
	DgenTable  *table;
	Stack		stack = {0};
	ScanKeyData keys[2];
	DgenScan   *scan;
	HeapTuple	tuple;

	if (version <= base_version)
		return base;
	table = dgen_table_open(DGEN_T_PATCH, AccessShareLock);
	dgen_key_text(&keys[0], 1, server);
	dgen_key_int8(&keys[1], 2, base_version + 1, BTGreaterEqualStrategyNumber);
	scan = dgen_scan_begin(table, DGEN_I_PKEY, snapshot, 2, keys);
	while ((tuple = dgen_scan_next(scan)) != NULL)
	{
		bool		isnull;
		Datum		patch = heap_getattr(tuple, COL_PATCH + 1, RelationGetDescr(table->rel), &isnull);

		push_patch(&stack, (Jsonb *) PG_DETOAST_DATUM_COPY(patch));
	}
	dgen_scan_end(scan);
	dgen_table_close(table);
	while (stack.n > 1)
	{
		stack.n--;
		stack.patches[stack.n - 1] = dgen_jsonb_compose(stack.patches[stack.n - 1],
														stack.patches[stack.n]);
	}
	return stack.n == 0 ? base : dgen_jsonb_merge(base, stack.patches[0]);
}

/* Remember the base, if it is in TOAST: a write may then leave it there. */
static void
keep_base(DgenServer *server, Datum column)
{
	struct varlena *raw = (struct varlena *) DatumGetPointer(column);

	server->has_base = VARATT_IS_EXTERNAL_ONDISK(raw);
	if (server->has_base)
		memcpy(server->base, raw, TOAST_POINTER_SIZE);
}

/*
 * Take the state from a row that was just read; base_version and patch_bytes
 * are set.  Everything is in the current memory context.
 */
void
dgen_state_load(DgenServer *server, Datum column, bool isnull, Snapshot snapshot)
{
	server->has_base = false;
	server->state = NULL;
	if (!isnull)
	{
		keep_base(server, column);
		server->state = dgen_state_merge(server->address, (Jsonb *) PG_DETOAST_DATUM_COPY(column),
										 server->base_version, server->version, snapshot);
	}
	server->stored = server->counted = server->state;
}

/* ---------------------------------------------------------------- writing */

static void
delete_patches(DgenServer *server)
{
	DgenTable  *table;
	ScanKeyData key;
	DgenScan   *scan;
	HeapTuple	tuple;

	if (server->patch_bytes == 0)
		return;
	table = dgen_table_open(DGEN_T_PATCH, RowExclusiveLock);
	dgen_key_text(&key, 1, server->address);
	scan = dgen_scan_begin(table, DGEN_I_PKEY, NULL, 1, &key);
	while ((tuple = dgen_scan_next(scan)) != NULL)
		(void) dgen_table_delete(table, &tuple->t_self);
	dgen_scan_end(scan);
	dgen_table_close(table);
	server->patch_bytes = 0;
}

static void
insert_patch(DgenServer *server, Jsonb *patch)
{
	DgenTable  *table = dgen_table_open(DGEN_T_PATCH, RowExclusiveLock);
	Datum		values[NCOLS];
	bool		nulls[NCOLS] = {false};

	values[COL_SERVER] = CStringGetTextDatum(server->address);
	values[COL_VERSION] = Int64GetDatum(server->version);
	values[COL_PATCH] = JsonbPGetDatum(patch);
	dgen_table_insert(table, values, nulls, NULL);
	dgen_table_close(table);
}

/* Append a patch, if that is worth it; false: write the whole. */
static bool
append_patch(DgenServer *server)
{
	Jsonb	   *patch;

	if (!server->has_base || server->stored == NULL ||
		VARSIZE(server->state) < PATCH_MIN_STATE ||
		server->patch_bytes >= VARSIZE(server->state) / FOLD_PART)
		return false;
	patch = dgen_jsonb_diff(server->stored, server->state);
	if (patch == NULL ||
		server->patch_bytes + VARSIZE(patch) >= VARSIZE(server->state) / FOLD_PART)
		return false;
	insert_patch(server, patch);
	server->patch_bytes += VARSIZE(patch);
	return true;
}

/*
 * Store the state of a server whose row is about to be written, version
 * already counted: gives the value of the state column.
 */
Datum
dgen_state_store(DgenServer *server, bool *isnull)
{
	*isnull = server->state == NULL;
	if (server->erased || server->state == NULL)
	{
		delete_patches(server);
		server->has_base = false;
		server->base_version = server->version;
		return (Datum) 0;
	}
	if (server->has_base && (server->state == server->stored || append_patch(server)))
	{
		server->stored = server->state;
		return PointerGetDatum(server->base);
	}
	if (server->state != server->stored || server->base_version < server->version)
	{
		delete_patches(server);
		server->base_version = server->version;
	}
	server->has_base = false;
	server->stored = server->state;
	return JsonbPGetDatum(server->state);
}

/*
 * After the row has been written: where has a large base gone?
 */
void
dgen_state_stored(DgenTable *table, DgenServer *server)
{
	TupleTableSlot *slot;
	ItemPointerData tid = server->tid;

	if (server->has_base || server->state == NULL ||
		VARSIZE(server->state) < PATCH_MIN_STATE)
		return;
	slot = table_slot_create(table->rel, NULL);
	if (table_tuple_fetch_row_version(table->rel, &tid, SnapshotSelf, slot))
	{
		bool		isnull;
		Datum		column = slot_getattr(slot, COL_STATE + 1, &isnull);

		if (!isnull)
			keep_base(server, column);
	}
	ExecDropSingleTupleTableSlot(slot);
}
