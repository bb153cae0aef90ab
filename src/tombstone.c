/*-------------------------------------------------------------------------
 *
 * tombstone.c
 *	  Tombstones of deleted servers, as senders see them.
 *
 * A server's row says until when its tombstone stands; dgen.tombstone says it
 * again, in a table that has no page while nothing was deleted with a
 * tombstone.  Its length is what a send asks for, which is exact: a row that
 * was committed is on a page, and a table with rows is not cut off.  Where
 * there are pages the table is searched.
 *
 * Written under the server's lease, with its row; the keeper deletes what has
 * expired.  Runs in any process, inside a transaction.
 *
 *-------------------------------------------------------------------------
 */
#include "dgen.h"

#include "access/htup_details.h"
#include "access/skey.h"
#include "access/table.h"
#include "storage/bufmgr.h"
#include "utils/rel.h"

/* columns of dgen.tombstone, from 0 */
enum
{
	COL_SERVER, COL_EXPIRES_AT, NCOLS
};

/* May there be any? */
bool
dgen_tombstones_exist(void)
{
	Relation	rel = dgen_relation_open(DGEN_T_TOMBSTONE, AccessShareLock);
	bool		exist = RelationGetNumberOfBlocks(rel) > 0;

	table_close(rel, NoLock);
	return exist;
}

static void
refuse(const DgenAddress *to, TimestampTz until)
{
	ereport(ERROR,
			(errcode(ERRCODE_DGEN_NO_SERVER),
			 errmsg("server \"%s\" was deleted", to->text),
			 errdetail("Its tombstone stands until %s.", timestamptz_to_str(until)),
			 errhint("Start it anew by dgen.start('%s').", to->text)));
}

void
dgen_check_tombstone(const DgenAddress *to)
{
	DgenTable  *table;
	ScanKeyData key;
	DgenScan   *scan;
	HeapTuple	tuple;
	TimestampTz until = 0;

	if (!dgen_tombstones_exist())
		return;
	table = dgen_table_open(DGEN_T_TOMBSTONE, AccessShareLock);
	dgen_key_text(&key, 1, to->text);
	scan = dgen_scan_begin(table, DGEN_I_TOMBSTONE_SERVER, NULL, 1, &key);
	while ((tuple = dgen_scan_next(scan)) != NULL)
	{
		bool		isnull;

		until = Max(until, DatumGetTimestampTz(heap_getattr(tuple, COL_EXPIRES_AT + 1,
															RelationGetDescr(table->rel), &isnull)));
	}
	dgen_scan_end(scan);
	dgen_table_close(table);
	if (until > GetCurrentTimestamp())
		refuse(to, until);
}

/* What the keeper is about to delete is as good as gone. */
static void
delete_rows(DgenTable *table, const char *server)
{
	ScanKeyData key;
	DgenScan   *scan;
	HeapTuple	tuple;

	dgen_key_text(&key, 1, server);
	scan = dgen_scan_begin(table, DGEN_I_TOMBSTONE_SERVER, NULL, 1, &key);
	while ((tuple = dgen_scan_next(scan)) != NULL)
		(void) dgen_table_delete(table, &tuple->t_self);
	dgen_scan_end(scan);
}

/* The server's row is about to be written: does its tombstone change? */
void
dgen_tombstone_write(DgenServer *server)
{
	TimestampTz until = server->erased ? 0 : server->tombstone_until;
	DgenTable  *table;

	if (until == server->tombstone_written)
		return;
	table = dgen_table_open(DGEN_T_TOMBSTONE, RowExclusiveLock);
	if (server->tombstone_written != 0)
		delete_rows(table, server->address);
	if (until != 0)
	{
		Datum		values[NCOLS];
		bool		nulls[NCOLS] = {false};

		values[COL_SERVER] = CStringGetTextDatum(server->address);
		values[COL_EXPIRES_AT] = TimestampTzGetDatum(until);
		dgen_table_insert(table, values, nulls, NULL);
		dgen_due_at_commit(until);
	}
	dgen_table_close(table);
	server->tombstone_written = until;
}
