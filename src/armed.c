/*-------------------------------------------------------------------------
 *
 * armed.c
 *	  May dgen work in this database?
 *
 * A copy of a database (restored from a dump, or made by CREATE
 * DATABASE .. TEMPLATE) must not deliver mail and fire timers as if it were
 * the original.  CREATE EXTENSION writes a random id, the cluster's system
 * identifier and the database's OID to dgen.installation, which is not
 * dumped.  The first create_module copies the id to dgen.adoption, which is
 * dumped.  A restored copy has an id of its own and the adoption of the
 * original; a copy by TEMPLATE has both rows of the original, but another
 * OID.  Either is armed by dgen.adopt() only.
 *
 * Runs in any process, in a transaction.  Locks: AccessShareLock on the two
 * tables, kept to its end, and a lock on dgen.adoption as an object for who
 * writes them.
 *
 *-------------------------------------------------------------------------
 */
#include "stat.h"

#include "access/htup_details.h"
#include "access/table.h"
#include "access/xlog.h"
#include "catalog/pg_class_d.h"
#include "catalog/pg_database.h"
#include "commands/dbcommands.h"
#include "commands/extension.h"
#include "storage/lmgr.h"
#include "utils/rel.h"
#include "utils/uuid.h"

/* what the two tables say */
typedef struct Identity
{
	int			ninstallations;
	int			nadoptions;
	pg_uuid_t	installation;
	pg_uuid_t	adoption;
	bool		here;			/* the installation names this cluster and database */
	bool		uncommitted;	/* by this transaction */
} Identity;

#define Natts_installation 3
#define Natts_adoption 3

PG_FUNCTION_INFO_V1(dgen_installed);
PG_FUNCTION_INFO_V1(dgen_adopt);
PG_FUNCTION_INFO_V1(dgen_is_armed);

/* ------------------------------------------------------------ the two tables */

/*
 * Copy the columns of a table's only row; returns how many rows there are.
 * Catalog snapshot: the newest state, with our own changes, and it leaves
 * this transaction's snapshot untaken.  The lock stays, so that DROP
 * EXTENSION waits for whoever acts on what was read.
 */
static int
read_row(DgenTableId id, Datum *values, bool *nulls, bool *uncommitted)
{
	Relation	rel = dgen_relation_open(id, AccessShareLock);
	SysScanDesc scan = systable_beginscan(rel, InvalidOid, false, NULL, 0, NULL);
	HeapTuple	tuple;
	int			n = 0;

	while ((tuple = systable_getnext(scan)) != NULL)
	{
		if (n++ > 0)
			continue;
		tuple = heap_copytuple(tuple);
		heap_deform_tuple(tuple, RelationGetDescr(rel), values, nulls);
		if (TransactionIdIsCurrentTransactionId(HeapTupleHeaderGetXmin(tuple->t_data)))
			*uncommitted = true;
	}
	systable_endscan(scan);
	table_close(rel, NoLock);
	return n;
}

static void
read_identity(Identity *identity)
{
	Datum		values[DGEN_MAX_COLUMNS];
	bool		nulls[DGEN_MAX_COLUMNS];

	memset(identity, 0, sizeof(Identity));
	identity->ninstallations = read_row(DGEN_T_INSTALLATION, values, nulls,
										&identity->uncommitted);
	if (identity->ninstallations > 0)
	{
		identity->installation = *DatumGetUUIDP(values[0]);
		identity->here = (uint64) DatumGetInt64(values[1]) == GetSystemIdentifier() &&
			DatumGetObjectId(values[2]) == MyDatabaseId;
	}
	identity->nadoptions = read_row(DGEN_T_ADOPTION, values, nulls,
									&identity->uncommitted);
	if (identity->nadoptions > 0)
		identity->adoption = *DatumGetUUIDP(values[0]);
}

static bool
is_armed(const Identity *identity)
{
	return identity->ninstallations == 1 && identity->nadoptions == 1 &&
		identity->here &&
		memcmp(&identity->installation, &identity->adoption, sizeof(pg_uuid_t)) == 0;
}

/* May dgen work in this database?  Needs a transaction; takes no snapshot of it. */
bool
dgen_database_armed(void)
{
	Identity	identity;

	if (!dgen_extension_present() || dgen_version_fault(NULL) != NULL)
		return false;
	read_identity(&identity);
	return is_armed(&identity);
}

Datum
dgen_is_armed(PG_FUNCTION_ARGS)
{
	PG_RETURN_BOOL(dgen_database_armed());
}

/* Replace all rows of a table by one. */
static void
replace_row(DgenTableId id, Datum *values, bool *nulls)
{
	DgenTable  *table = dgen_table_open(id, RowExclusiveLock);
	SysScanDesc scan = systable_beginscan(table->rel, InvalidOid, false, NULL, 0, NULL);
	HeapTuple	tuple;

	while ((tuple = systable_getnext(scan)) != NULL)
		(void) dgen_table_delete_wait(table, &tuple->t_self);
	systable_endscan(scan);
	dgen_table_insert(table, values, nulls, NULL);
	dgen_table_close(table);
	CommandCounterIncrement();
}

static void
write_installation(pg_uuid_t *id)
{
	Datum		values[Natts_installation];
	bool		nulls[Natts_installation] = {0};

	if (!pg_strong_random(id->data, UUID_LEN))
		ereport(ERROR,
				(errcode(ERRCODE_INTERNAL_ERROR),
				 errmsg("could not generate random values")));
	/* version 4, as gen_random_uuid() makes them */
	id->data[6] = (id->data[6] & 0x0f) | 0x40;
	id->data[8] = (id->data[8] & 0x3f) | 0x80;

	values[0] = UUIDPGetDatum(id);
	values[1] = Int64GetDatum((int64) GetSystemIdentifier());
	values[2] = ObjectIdGetDatum(MyDatabaseId);
	replace_row(DGEN_T_INSTALLATION, values, nulls);
}

/*
 * Make this database dgen's own: give it an identity if the one that it has
 * is a copy, and write the adoption.
 */
static void
write_adoption(Identity *identity)
{
	Datum		values[Natts_adoption];
	bool		nulls[Natts_adoption] = {0};

	if (identity->ninstallations != 1 || !identity->here)
		write_installation(&identity->installation);

	values[0] = UUIDPGetDatum(&identity->installation);
	values[1] = TimestampTzGetDatum(GetCurrentTimestamp());
	values[2] = CStringGetTextDatum(GetUserNameFromId(GetUserId(), false));
	replace_row(DGEN_T_ADOPTION, values, nulls);
	dgen_lifecycle_wake_at_commit();
}

/*
 * One at a time.  A lock on the table as an object, not as a relation: it is
 * in nobody's way who reads.
 */
static void
lock_adoption(void)
{
	LockDatabaseObject(RelationRelationId, dgen_table_oid(DGEN_T_ADOPTION), 0,
					   ExclusiveLock);
}

/*
 * For create_module: the first module arms the database.  One that belongs to
 * another installation is left as it is; modules can be made in it all the same.
 */
void
dgen_arm(void)
{
	Identity	identity;

	read_identity(&identity);
	if (is_armed(&identity))
		return;

	lock_adoption();
	read_identity(&identity);
	if (is_armed(&identity))
		return;
	if (identity.nadoptions == 0)
		write_adoption(&identity);
	else
		ereport(WARNING,
				(errmsg("dgen does not run in this database"),
				 errdetail("The database is a copy, and the servers in it belong to the original."),
				 errhint("If this copy is to run them, call dgen.adopt().")));
}

Datum
dgen_adopt(PG_FUNCTION_ARGS)
{
	Identity	identity;

	dgen_check_writable();
	if (!object_ownercheck(DatabaseRelationId, MyDatabaseId, GetUserId()))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied to adopt the servers of database \"%s\"",
						get_database_name(MyDatabaseId)),
				 errdetail("Only the database's owner may do this."),
				 errhint("Have a member of the database's owner call dgen.adopt().")));

	lock_adoption();
	read_identity(&identity);
	if (is_armed(&identity))
		dgen_lifecycle_wake_at_commit();
	else
	{
		write_adoption(&identity);
		dgen_attributes_adopt();
		/* a restore has set the sequence: a block reserved before it is void */
		dgen_forget_ids();
	}
	PG_RETURN_VOID();
}

/*
 * At the end of the install script: say which database this is.
 */
Datum
dgen_installed(PG_FUNCTION_ARGS)
{
	pg_uuid_t	id;

	if (!creating_extension)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("only CREATE EXTENSION may call this function")));

	dgen_guard_check_schema();
	write_installation(&id);
	if (dgen_shared != NULL)
	{
		dgen_forget_ids();
		dgen_statistics_forget_all();
		dgen_stat_forget_database(MyDatabaseId);
		dgen_announce_forget(MyDatabaseId);
	}
	else
		ereport(WARNING,
				(errmsg("dgen does not run in this server"),
				 errdetail("The library \"dgen\" was not loaded when the server started."),
				 errhint("Add dgen to \"shared_preload_libraries\" and restart the server.")));
	dgen_lifecycle_wake_at_commit();
	PG_RETURN_VOID();
}

/* ---------------------------------------------------------------- checks */

static void
check_not_standby(void)
{
	if (RecoveryInProgress())
		ereport(ERROR,
				(errcode(ERRCODE_DGEN_NOT_ENABLED),
				 errmsg("dgen does not run on a standby"),
				 errdetail("The server is in recovery."),
				 errhint("Connect to the primary.")));
}

static void
check_extension(void)
{
	if (!dgen_extension_present())
		ereport(ERROR,
				(errcode(ERRCODE_DGEN_NOT_ENABLED),
				 errmsg("extension \"dgen\" is not installed in this database"),
				 errhint("Run CREATE EXTENSION dgen.")));
}

/* Say why the database is not armed. */
static void
not_armed(const Identity *identity)
{
	if (identity->nadoptions == 0)
		ereport(ERROR,
				(errcode(ERRCODE_DGEN_NOT_ENABLED),
				 errmsg("dgen does not run in this database"),
				 errdetail("No module was ever made in it."),
				 errhint("Make one by dgen.create_module().")));
	ereport(ERROR,
			(errcode(ERRCODE_DGEN_NOT_ENABLED),
			 errmsg("dgen does not run in this database"),
			 errdetail("The database is a copy, and the servers in it belong to the original."),
			 errhint("If this copy is to run them, have the database's owner call dgen.adopt().")));
}

/*
 * Raise OT017 unless somebody would do what the caller is about to ask for.
 * Cheap when all is well, since each send and call comes through here.
 */
void
dgen_check_enabled(void)
{
	DgenDatabase *db;
	Identity	identity;

	if (dgen_shared == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_DGEN_NOT_ENABLED),
				 errmsg("dgen does not run in this server"),
				 errdetail("The library \"dgen\" was not loaded when the server started."),
				 errhint("Add dgen to \"shared_preload_libraries\" and restart the server.")));
	check_not_standby();
	if (!dgen_enabled)
		ereport(ERROR,
				(errcode(ERRCODE_DGEN_NOT_ENABLED),
				 errmsg("dgen is disabled"),
				 errdetail("\"dgen.enabled\" is off."),
				 errhint("Set \"dgen.enabled\" to on and reload the configuration.")));

	db = dgen_database(MyDatabaseId, false);
	if (db == NULL || pg_atomic_read_u32(&db->armed) == 0)
	{
		check_extension();
		read_identity(&identity);
		if (!is_armed(&identity))
			not_armed(&identity);
		db = dgen_database(MyDatabaseId, true);

		/*
		 * Tell all, unless that may be rolled back; then the keeper does.  We
		 * hold locks on the tables, so no DROP EXTENSION takes it back at
		 * this moment.
		 */
		if (db != NULL && !identity.uncommitted)
			pg_atomic_write_u32(&db->armed, 1);
		/* one that waits until the database takes connections may come: it does */
		dgen_want_keeper(MyDatabaseId);
	}
	if (db != NULL &&
		(db->keeper == DGEN_KEEPER_NONE || db->keeper == DGEN_KEEPER_ABSENT))
		dgen_want_keeper(MyDatabaseId);
}

/* Raise unless this transaction, and the callback that runs, may write. */
void
dgen_check_writable(void)
{
	check_not_standby();
	if (dgen_scope != NULL && dgen_scope->readonly)
		ereport(ERROR,
				(errcode(ERRCODE_READ_ONLY_SQL_TRANSACTION),
				 errmsg("%s cannot send messages or change servers",
						dgen_callback_name(dgen_scope->callback)),
				 errdetail("It may be called at any time, and so must have no effects."),
				 errhint("Do it in a handler, or from a client.")));
	if (XactReadOnly)
		ereport(ERROR,
				(errcode(ERRCODE_READ_ONLY_SQL_TRANSACTION),
				 errmsg("cannot send messages or change servers in a read-only transaction"),
				 errhint("Use dgen.query() to read, or begin a transaction that is READ WRITE.")));
	if (IsInParallelMode())
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_TRANSACTION_STATE),
				 errmsg("cannot send messages or change servers during a parallel operation")));
}
