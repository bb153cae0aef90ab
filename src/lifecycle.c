/*-------------------------------------------------------------------------
 *
 * lifecycle.c
 *	  Databases and extensions that come and go, and whether one is armed.
 *
 * Armed.  A copy of a database (restored from a dump, or made by CREATE
 * DATABASE .. TEMPLATE) must not deliver mail and fire timers as if it were
 * the original.  CREATE EXTENSION writes a random id, the cluster's system
 * identifier and the database's OID to dgen.installation, which is not
 * dumped.  The first create_module copies the id to dgen.adoption, which is
 * dumped.  A restored copy has an id of its own and the adoption of the
 * original; a copy by TEMPLATE has both rows of the original, but another
 * OID.  Either is armed by dgen.adopt() only.
 *
 * Databases.  DROP DATABASE and its kin fail while anybody else is connected,
 * which keeper and workers always are.  So before such a command, given that
 * the caller has the right to it, a ProcessUtility hook sends them away,
 * waits until they are gone, and has the launcher keep out new ones until the
 * command's transaction ends.  This runs in whatever database the command is
 * given in, with or without dgen.
 *
 * Extensions.  DROP EXTENSION gets its locks as from any session, since
 * keeper and workers hold theirs for short transactions only.  At its commit
 * they are sent away: a new keeper then looks whether the extension is there
 * (a savepoint may have been rolled back, or another made in its place).
 *
 * Activations that share a transaction must not leave anything in the
 * session; the hooks here tell batch.c of statements and functions that would.
 *
 * Locks: dgen_shared->lock, for moments, also while signals are sent: a
 * process clears its pid under it before it exits, so we never signal a
 * stranger.
 *
 *-------------------------------------------------------------------------
 */
#include "dgen.h"

#include <signal.h>

#include "access/htup_details.h"
#include "access/table.h"
#include "access/xlog.h"
#include "catalog/objectaccess.h"
#include "catalog/pg_class_d.h"
#include "catalog/pg_database.h"
#include "catalog/pg_extension_d.h"
#include "catalog/pg_proc_d.h"
#include "commands/dbcommands.h"
#include "commands/defrem.h"
#include "commands/extension.h"
#include "storage/ipc.h"
#include "storage/lmgr.h"
#include "tcop/utility.h"
#include "utils/fmgroids.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/syscache.h"
#include "utils/uuid.h"
#include "utils/wait_event.h"

#define EVICT_MS (10 * 1000)	/* wait so long for processes to leave */

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

/* a database that this transaction keeps dgen's processes out of */
typedef struct Evicted
{
	Oid			database;
	bool		dropped;		/* if the transaction commits */
} Evicted;

static ProcessUtility_hook_type prev_ProcessUtility = NULL;
static object_access_hook_type prev_object_access = NULL;

/* what this transaction has to do at its end; lists in TopTransactionContext */
static List *evicted = NIL;
static bool wake_at_commit = false;
static bool leave_at_commit = false;

PG_FUNCTION_INFO_V1(dgen_installed);
PG_FUNCTION_INFO_V1(dgen_adopt);
PG_FUNCTION_INFO_V1(dgen_is_armed);

/* ------------------------------------------------------------------ armed */

/*
 * Copy the columns of a table's only row; returns how many rows there are.
 * Catalog snapshot: the newest state, with our own changes, and it leaves
 * this transaction's snapshot untaken.  The lock stays, so that DROP
 * EXTENSION waits for whoever acts on what was read.
 */
static int
read_row(DgenTableId id, Datum *values, bool *nulls, bool *uncommitted)
{
	Relation	rel = table_open(dgen_table_oid(id), AccessShareLock);
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

	if (!dgen_extension_present())
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
	wake_at_commit = true;
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
		wake_at_commit = true;
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

	write_installation(&id);
	if (dgen_shared != NULL)
	{
		dgen_forget_ids();
		dgen_statistics_forget_all();
	}
	else
		ereport(WARNING,
				(errmsg("dgen does not run in this server"),
				 errdetail("The library \"dgen\" was not loaded when the server started."),
				 errhint("Add dgen to \"shared_preload_libraries\" and restart the server.")));
	wake_at_commit = true;
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
	}
	if (db != NULL &&
		(db->keeper == DGEN_KEEPER_NONE || db->keeper == DGEN_KEEPER_ABSENT))
		dgen_want_keeper(MyDatabaseId);
}

/* Raise unless this transaction may write. */
void
dgen_check_writable(void)
{
	check_not_standby();
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

/* --------------------------------------------------------------- databases */

/*
 * Send SIGTERM to all of dgen's processes of a database; returns how many
 * there are, with those that were asked for and have not come yet.
 */
static int
terminate_processes(Oid database)
{
	int			n = 0;

	LWLockAcquire(&dgen_shared->lock, LW_SHARED);
	for (int i = 0; i < DGEN_MAX_DATABASES; i++)
	{
		DgenDatabase *db = &dgen_shared->databases[i];

		if (db->database != database ||
			(db->keeper != DGEN_KEEPER_STARTING && db->keeper != DGEN_KEEPER_RUNNING))
			continue;
		n++;
		if (db->keeper_pid != 0)
			kill(db->keeper_pid, SIGTERM);
	}
	for (int i = 0; i < dgen_shared->nslots; i++)
	{
		DgenWorkerSlot *slot = &dgen_shared->slots[i];

		if (slot->state == DGEN_WORKER_FREE || slot->database != database ||
			slot->pid == MyProcPid)
			continue;
		n++;
		if (slot->pid != 0)
			kill(slot->pid, SIGTERM);
	}
	LWLockRelease(&dgen_shared->lock);
	return n;
}

/*
 * Have the launcher start nothing in a database until this transaction ends,
 * and wait until what is there has left.  If it does not, the command that
 * this is for says that the database is in use.
 */
static void
evict(Oid database, bool dropped)
{
	static uint32 wait_event = 0;
	MemoryContext old = MemoryContextSwitchTo(TopTransactionContext);
	Evicted    *entry = palloc(sizeof(Evicted));
	DgenDatabase *db = dgen_database(database, true);
	TimestampTz until;

	entry->database = database;
	entry->dropped = dropped;
	evicted = lappend(evicted, entry);
	MemoryContextSwitchTo(old);

	/* all entries in use by others: then nothing of ours can be in there */
	LWLockAcquire(&dgen_shared->lock, LW_EXCLUSIVE);
	if (db != NULL && db->database == database)
		db->kept_out++;
	else
		entry->database = InvalidOid;
	LWLockRelease(&dgen_shared->lock);

	if (wait_event == 0)
		wait_event = WaitEventExtensionNew("DgenEvict");
	until = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), EVICT_MS);
	while (terminate_processes(database) > 0 && GetCurrentTimestamp() < until)
	{
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 10, wait_event);
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}
}

/* Let dgen's processes in again.  Raises nothing: runs at a transaction's end. */
static void
let_back(const Evicted *entry, bool committed)
{
	if (!OidIsValid(entry->database))
		return;

	LWLockAcquire(&dgen_shared->lock, LW_EXCLUSIVE);
	for (int i = 0; i < DGEN_MAX_DATABASES; i++)
	{
		DgenDatabase *db = &dgen_shared->databases[i];

		if (db->database != entry->database)
			continue;
		db->kept_out--;

		/* gone; or nobody had looked yet, and then there is no need to now */
		if (entry->dropped && committed)
			db->keeper = DGEN_KEEPER_ABSENT;
		else if (db->keeper == DGEN_KEEPER_NONE && !db->keeper_again)
			db->keeper = DGEN_KEEPER_ABSENT;
		else if (db->keeper == DGEN_KEEPER_WANTED)
			db->keeper_retry_at = 0;
	}
	LWLockRelease(&dgen_shared->lock);
	dgen_wake_launcher();
}

/* After a command that failed, which its transaction may survive. */
static void
let_one_back(Oid database)
{
	ListCell   *lc;

	foreach(lc, evicted)
	{
		Evicted    *entry = lfirst(lc);

		if (entry->database != database)
			continue;
		let_back(entry, false);
		entry->database = InvalidOid;
	}
}

static void
let_all_back(bool committed)
{
	ListCell   *lc;

	foreach(lc, evicted)
		let_back(lfirst(lc), committed);
	evicted = NIL;
}

static bool
owns_database(Oid database)
{
	return object_ownercheck(DatabaseRelationId, database, GetUserId());
}

/* The template of a CREATE DATABASE, if the caller may copy it. */
static Oid
template_of(CreatedbStmt *stmt)
{
	const char *name = "template1";
	ListCell   *lc;
	Oid			database;
	HeapTuple	tuple;
	bool		allowed;

	foreach(lc, stmt->options)
	{
		DefElem    *option = lfirst(lc);

		if (strcmp(option->defname, "template") == 0 && option->arg != NULL)
			name = defGetString(option);
	}

	database = get_database_oid(name, true);
	tuple = OidIsValid(database) ?
		SearchSysCache1(DATABASEOID, ObjectIdGetDatum(database)) : NULL;
	if (!HeapTupleIsValid(tuple))
		return InvalidOid;
	allowed = have_createdb_privilege() &&
		(((Form_pg_database) GETSTRUCT(tuple))->datistemplate || owns_database(database));
	ReleaseSysCache(tuple);
	return allowed ? database : InvalidOid;
}

static bool
sets_tablespace(AlterDatabaseStmt *stmt)
{
	ListCell   *lc;

	foreach(lc, stmt->options)
	{
		if (strcmp(((DefElem *) lfirst(lc))->defname, "tablespace") == 0)
			return true;
	}
	return false;
}

/*
 * The database that a command wants for itself alone, if any, and if the
 * caller may have it: nobody else is to stop its processes.
 */
static Oid
wanted_database(Node *stmt, bool top_level)
{
	const char *name = NULL;
	Oid			database;

	/* may run inside a function, too */
	if (IsA(stmt, RenameStmt) && ((RenameStmt *) stmt)->renameType == OBJECT_DATABASE)
	{
		if (have_createdb_privilege())
			name = ((RenameStmt *) stmt)->subname;
	}
	else if (!top_level)
		return InvalidOid;
	else if (IsA(stmt, CreatedbStmt))
		return template_of((CreatedbStmt *) stmt);
	else if (IsA(stmt, DropdbStmt))
		name = ((DropdbStmt *) stmt)->dbname;
	else if (IsA(stmt, AlterDatabaseStmt) && sets_tablespace((AlterDatabaseStmt *) stmt))
		name = ((AlterDatabaseStmt *) stmt)->dbname;

	if (name == NULL)
		return InvalidOid;
	database = get_database_oid(name, true);
	if (!OidIsValid(database) || !owns_database(database))
		return InvalidOid;
	return database;
}

/*
 * DROP EXTENSION dgen: workers hold locks on its tables in their own order, so
 * they had better not be there.
 */
static bool
drops_extension(Node *stmt)
{
	DropStmt   *drop = (DropStmt *) stmt;
	ListCell   *lc;

	if (!IsA(stmt, DropStmt) || drop->removeType != OBJECT_EXTENSION || !superuser() ||
		dgen_is_worker())
		return false;
	foreach(lc, drop->objects)
	{
		if (strcmp(strVal(lfirst(lc)), "dgen") == 0)
			return true;
	}
	return false;
}

/* ------------------------------------------------------------------- hooks */

/* What a statement would leave in the session, or NULL. */
static const char *
leaves_in_session(Node *stmt)
{
	switch (nodeTag(stmt))
	{
		case T_PrepareStmt:
			return "PREPARE";
		case T_ListenStmt:
			return "LISTEN";
		case T_UnlistenStmt:
			return "UNLISTEN";
		case T_DeclareCursorStmt:
			return (((DeclareCursorStmt *) stmt)->options & CURSOR_OPT_HOLD) ?
				"DECLARE CURSOR WITH HOLD" : NULL;
		case T_ConstraintsSetStmt:
			return "SET CONSTRAINTS";
		case T_LoadStmt:
			return "LOAD";
		case T_DiscardStmt:
			return "DISCARD";
		default:
			return NULL;
	}
}

static void
run_utility(PlannedStmt *pstmt, const char *query, bool read_only_tree,
			ProcessUtilityContext context, ParamListInfo params,
			QueryEnvironment *env, DestReceiver *dest, QueryCompletion *qc)
{
	ProcessUtility_hook_type run = prev_ProcessUtility ?
		prev_ProcessUtility : standard_ProcessUtility;

	run(pstmt, query, read_only_tree, context, params, env, dest, qc);
}

static void
dgen_ProcessUtility(PlannedStmt *pstmt, const char *query, bool read_only_tree,
					ProcessUtilityContext context, ParamListInfo params,
					QueryEnvironment *env, DestReceiver *dest, QueryCompletion *qc)
{
	Node	   *stmt = pstmt->utilityStmt;
	volatile Oid database = InvalidOid;

	if (dgen_batch_active() && leaves_in_session(stmt) != NULL)
		dgen_batch_split(leaves_in_session(stmt));

	if (dgen_shared != NULL)
		database = wanted_database(stmt, context == PROCESS_UTILITY_TOPLEVEL);
	/* one's own database can be copied, and nothing else be done to it */
	if (database == MyDatabaseId && !IsA(stmt, CreatedbStmt))
		database = InvalidOid;
	if (dgen_shared != NULL && drops_extension(stmt))
		database = MyDatabaseId;
	if (!OidIsValid(database))
	{
		run_utility(pstmt, query, read_only_tree, context, params, env, dest, qc);
		return;
	}

	PG_TRY();
	{
		evict(database, IsA(stmt, DropdbStmt));
		run_utility(pstmt, query, read_only_tree, context, params, env, dest, qc);
	}
	PG_CATCH();
	{
		/*
		 * On success they stay out until the transaction ends: only then is
		 * the database gone.  A FATAL error comes through there too.
		 */
		let_one_back(database);
		PG_RE_THROW();
	}
	PG_END_TRY();
}

/* Functions that leave something in the session, or read what another left. */
static const char *
function_leaves_in_session(Oid function)
{
	switch (function)
	{
		case F_PG_ADVISORY_LOCK_INT8:
		case F_PG_ADVISORY_LOCK_SHARED_INT8:
		case F_PG_TRY_ADVISORY_LOCK_INT8:
		case F_PG_TRY_ADVISORY_LOCK_SHARED_INT8:
		case F_PG_ADVISORY_LOCK_INT4_INT4:
		case F_PG_ADVISORY_LOCK_SHARED_INT4_INT4:
		case F_PG_TRY_ADVISORY_LOCK_INT4_INT4:
		case F_PG_TRY_ADVISORY_LOCK_SHARED_INT4_INT4:
			return "a session-level advisory lock";
		case F_CURRVAL:
			return "currval";
		case F_LASTVAL:
			return "lastval";
		default:
			return NULL;
	}
}

static void
dgen_object_access(ObjectAccessType access, Oid classid, Oid object, int subid, void *arg)
{
	if (prev_object_access)
		prev_object_access(access, classid, object, subid, arg);

	if (access == OAT_FUNCTION_EXECUTE)
	{
		if (dgen_batch_active() && function_leaves_in_session(object) != NULL)
			dgen_batch_split(function_leaves_in_session(object));
	}
	else if (access == OAT_DROP && classid == ExtensionRelationId)
	{
		if (object == get_extension_oid("dgen", true))
			leave_at_commit = true;
	}
}

void
dgen_lifecycle_install(void)
{
	prev_ProcessUtility = ProcessUtility_hook;
	ProcessUtility_hook = dgen_ProcessUtility;
	prev_object_access = object_access_hook;
	object_access_hook = dgen_object_access;
}

/* The extension may be gone: let everybody here find out. */
static void
leave(void)
{
	DgenDatabase *db = dgen_database(MyDatabaseId, false);

	if (db != NULL)
		pg_atomic_write_u32(&db->armed, 0);
	dgen_want_keeper(MyDatabaseId);
	(void) terminate_processes(MyDatabaseId);
}

/*
 * At the end of a transaction.  A commit is visible to others by then.  After
 * PREPARE, it is the lock on the database, which goes over to the prepared
 * transaction, that keeps processes out.
 */
void
dgen_lifecycle_xact(XactEvent event)
{
	if (event != XACT_EVENT_COMMIT && event != XACT_EVENT_ABORT &&
		event != XACT_EVENT_PREPARE)
		return;

	if (dgen_shared != NULL)
	{
		let_all_back(event == XACT_EVENT_COMMIT);
		if (event == XACT_EVENT_COMMIT && leave_at_commit)
			leave();
		if (event == XACT_EVENT_COMMIT && wake_at_commit)
		{
			dgen_want_keeper(MyDatabaseId);
			dgen_wake_keeper(MyDatabaseId, GetCurrentTimestamp());
		}
	}
	evicted = NIL;
	leave_at_commit = false;
	wake_at_commit = false;
}
