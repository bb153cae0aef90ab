/*-------------------------------------------------------------------------
 *
 * group.c
 *	  Groups: servers under a common name, to be sent to by one statement.
 *
 * A membership is a row of dgen.member.  As a name does, it belongs to the
 * incarnation that joined and ends with it, or is permanent and belongs to the
 * address.  A group is there while it has members.
 *
 * Who joins for an incarnation, or leaves in a handler of its own, holds its
 * server's lease and shares the group's lock; all others take that lock alone.
 * So two about the same membership wait for each other, while servers that
 * join and leave by themselves do not, and one lock is enough for a script
 * that makes any number of permanent members.
 *
 * Members are listed as they are now.  Rows are inserted and deleted only, so
 * such a scan misses none that stays; it takes no predicate locks.
 *
 *-------------------------------------------------------------------------
 */
#include "dgen.h"

#include "access/htup_details.h"
#include "access/skey.h"
#include "funcapi.h"
#include "utils/rel.h"

/* columns of dgen.member, from 0 */
enum
{
	COL_NAME, COL_SERVER, COL_INCARNATION, COL_JOINED_AT, COL_JOINED_BY, NCOLS
};

#define GROUP_LOCK_CLASS 0xD5

PG_FUNCTION_INFO_V1(dgen_join_group);
PG_FUNCTION_INFO_V1(dgen_leave_group);
PG_FUNCTION_INFO_V1(dgen_members);

/* Lock a group to the end of the transaction; the deadlock detector watches. */
static void
lock_group(const char *group, LOCKMODE mode)
{
	int64		hash = dgen_address_hash(group, strlen(group));
	LOCKTAG		tag;

	SET_LOCKTAG_ADVISORY(tag, MyDatabaseId, (uint32) ((uint64) hash >> 32), (uint32) hash,
						 GROUP_LOCK_CLASS);
	(void) LockAcquire(&tag, mode, false, false);
	CommandCounterIncrement();
}

/* The membership of a server; false if it has none. */
static bool
find_member(DgenTable *table, const char *group, const char *server, ItemPointer tid,
			bool *permanent)
{
	ScanKeyData keys[2];
	DgenScan   *scan;
	HeapTuple	tuple;

	dgen_key_text(&keys[0], 1, group);
	dgen_key_text(&keys[1], 2, server);
	scan = dgen_scan_begin(table, DGEN_I_PKEY, NULL, 2, keys);
	tuple = dgen_scan_next(scan);
	if (tuple != NULL)
	{
		*tid = tuple->t_self;
		*permanent = heap_attisnull(tuple, COL_INCARNATION + 1, RelationGetDescr(table->rel));
	}
	dgen_scan_end(scan);
	return tuple != NULL;
}

/* Make the server a member; true if it was none.  incarnation 0: permanent. */
static bool
add_member(const char *group, const char *server, int64 incarnation)
{
	DgenTable  *table = dgen_table_open(DGEN_T_MEMBER, RowExclusiveLock);
	Datum		values[NCOLS];
	bool		nulls[NCOLS] = {false};
	ItemPointerData tid;
	bool		permanent;
	bool		found = find_member(table, group, server, &tid, &permanent);

	if (found && (permanent || incarnation != 0))
	{
		dgen_table_close(table);
		return false;
	}
	if (found)
	{
		(void) dgen_table_delete_wait(table, &tid);
		CommandCounterIncrement();
	}
	values[COL_NAME] = CStringGetTextDatum(group);
	values[COL_SERVER] = CStringGetTextDatum(server);
	values[COL_INCARNATION] = Int64GetDatum(incarnation);
	nulls[COL_INCARNATION] = incarnation == 0;
	values[COL_JOINED_AT] = TimestampTzGetDatum(GetCurrentTimestamp());
	values[COL_JOINED_BY] = CStringGetTextDatum(GetUserNameFromId(GetUserId(), false));
	dgen_table_insert(table, values, nulls, NULL);
	dgen_table_close(table);
	CommandCounterIncrement();
	return !found;
}

/* See dgen.h; as dgen.join_group() does it. */
void
dgen_group_give(const char *group, const char *server, int64 incarnation)
{
	if (group[0] == '\0' || strlen(group) > DGEN_MAX_ADDRESS)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("invalid name of a group"),
				 errdetail("It has %zu bytes; from 1 to %d are allowed.",
						   strlen(group), DGEN_MAX_ADDRESS)));
	lock_group(group, incarnation == 0 ? ExclusiveLock : ShareLock);
	(void) add_member(group, server, incarnation);
}

/* The module of the server that is argument 1, which the caller must operate. */
static DgenModule *
operated_module(FunctionCallInfo fcinfo, DgenAddress *address)
{
	DgenModule *module;

	dgen_address_arg(fcinfo, 1, address);
	module = dgen_module_get(address->module, false);
	dgen_module_check_operate(module);
	dgen_check_writable();
	return module;
}

/* join_group(name text, server text, permanent boolean) -> boolean: false if it is a member */
Datum
dgen_join_group(PG_FUNCTION_ARGS)
{
	char	   *group = dgen_arg_name(fcinfo, 0, "group");
	DgenAddress address;
	DgenModule *module = operated_module(fcinfo, &address);
	DgenTable  *servers;
	DgenServer *server;
	bool		joined;

	if (!PG_ARGISNULL(2) && PG_GETARG_BOOL(2))
	{
		lock_group(group, ExclusiveLock);
		PG_RETURN_BOOL(add_member(group, address.text, 0));
	}
	server = dgen_ties_open(module, &address, &servers);
	dgen_check_alive(module, server, "membership");
	lock_group(group, ShareLock);
	joined = add_member(group, address.text, server->incarnation);
	if (joined)
		dgen_ties_note(server);
	dgen_ties_close(servers, server);
	PG_RETURN_BOOL(joined);
}

/* leave_group(name text, server text) -> boolean: false if it was no member */
Datum
dgen_leave_group(PG_FUNCTION_ARGS)
{
	char	   *group = dgen_arg_name(fcinfo, 0, "group");
	DgenAddress address;
	DgenTable  *table;
	ItemPointerData tid;
	bool		permanent;
	bool		left;

	(void) operated_module(fcinfo, &address);
	lock_group(group, dgen_lease_held(address.hash) ? ShareLock : ExclusiveLock);
	table = dgen_table_open(DGEN_T_MEMBER, RowExclusiveLock);
	left = find_member(table, group, address.text, &tid, &permanent) &&
		dgen_table_delete_wait(table, &tid);
	dgen_table_close(table);
	CommandCounterIncrement();
	PG_RETURN_BOOL(left);
}

/* members(name text) -> setof text, in order of their addresses */
Datum
dgen_members(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	char	   *group = dgen_arg_name(fcinfo, 0, "group");
	DgenTable  *table;
	ScanKeyData key;
	DgenScan   *scan;
	HeapTuple	tuple;

	InitMaterializedSRF(fcinfo, MAT_SRF_USE_EXPECTED_DESC);
	/* what this statement has made so far */
	CommandCounterIncrement();
	table = dgen_table_open(DGEN_T_MEMBER, AccessShareLock);
	dgen_key_text(&key, 1, group);
	scan = dgen_scan_begin(table, DGEN_I_PKEY, NULL, 1, &key);
	while ((tuple = dgen_scan_next(scan)) != NULL)
	{
		bool		isnull;
		Datum		server = heap_getattr(tuple, COL_SERVER + 1, RelationGetDescr(table->rel), &isnull);

		CHECK_FOR_INTERRUPTS();
		if (dgen_is_visible(TextDatumGetCString(server)))
			tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, &server, &isnull);
	}
	dgen_scan_end(scan);
	dgen_table_close(table);
	return (Datum) 0;
}
