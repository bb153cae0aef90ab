/*-------------------------------------------------------------------------
 *
 * lifecycle.c
 *	  Databases and extensions that come and go.
 *
 * Databases.  DROP DATABASE and its kin fail while anybody else is connected,
 * which keeper and workers always are.  So before such a command, given that
 * the caller has the right to it, a ProcessUtility hook sends them away,
 * waits until they are gone, and has the launcher keep out new ones until the
 * command's transaction ends.  This runs in whatever database the command is
 * given in, with or without dgen.
 *
 * Extensions.  Before DROP EXTENSION and ALTER EXTENSION UPDATE, too, keeper
 * and workers are sent away: they hold locks on the tables in an order of
 * their own.  At the commit they are sent away once more, and a new keeper
 * looks whether the extension is there and fits (a savepoint may have been
 * rolled back, or another made in its place).  Calls that wait hold locks on the
 * tables and would wait for workers that are kept out: they are told so.  An update to a version that the
 * loaded library does not know is refused.
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
#include "catalog/objectaccess.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_class_d.h"
#include "catalog/pg_database.h"
#include "catalog/pg_extension_d.h"
#include "catalog/pg_proc_d.h"
#include "commands/dbcommands.h"
#include "commands/defrem.h"
#include "commands/extension.h"
#include "storage/ipc.h"
#include "tcop/utility.h"
#include "utils/fmgroids.h"
#include "utils/inval.h"
#include "utils/memutils.h"
#include "utils/syscache.h"
#include "utils/wait_event.h"

#define EVICT_MS (10 * 1000)	/* wait so long for processes to leave */

/* a database that this transaction keeps dgen's processes out of */
typedef struct Evicted
{
	Oid			database;
	bool		dropped;		/* if the transaction commits */
	bool		tables;			/* the command is for the extension's tables */
} Evicted;

static ProcessUtility_hook_type prev_ProcessUtility = NULL;
static object_access_hook_type prev_object_access = NULL;

/* what this transaction has to do at its end; lists in TopTransactionContext */
static List *evicted = NIL;
static bool wake_at_commit = false;
static bool leave_at_commit = false;

/* Have the keeper look again after the commit. */
void
dgen_lifecycle_wake_at_commit(void)
{
	wake_at_commit = true;
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
evict(Oid database, bool dropped, bool tables)
{
	static uint32 wait_event = 0;
	MemoryContext old = MemoryContextSwitchTo(TopTransactionContext);
	Evicted    *entry = palloc(sizeof(Evicted));
	DgenDatabase *db = dgen_database(database, true);
	TimestampTz until;

	entry->database = database;
	entry->dropped = dropped;
	entry->tables = tables;
	evicted = lappend(evicted, entry);
	MemoryContextSwitchTo(old);

	/* all entries in use by others: then nothing of ours can be in there */
	LWLockAcquire(&dgen_shared->lock, LW_EXCLUSIVE);
	if (db != NULL && db->database == database)
	{
		db->kept_out++;
		if (tables)
			db->tables_wanted++;
	}
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
		if (entry->tables)
			db->tables_wanted--;

		/* gone; or nobody had looked yet, and then there is no need to now */
		if (entry->dropped && committed)
			db->keeper = DGEN_KEEPER_ABSENT;
		else if (db->keeper == DGEN_KEEPER_NONE && !db->keeper_again)
			db->keeper = DGEN_KEEPER_ABSENT;
		else if (db->keeper == DGEN_KEEPER_WANTED)
			db->keeper_retry_at = 0;
	}
	LWLockRelease(&dgen_shared->lock);
	if (entry->dropped && committed)
		dgen_announce_forget(entry->database);
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

/* PostgreSQL's own have_createdb_privilege() is not exported by all minor versions. */
static bool
may_create_databases(void)
{
	HeapTuple	tuple;
	bool		result;

	if (superuser())
		return true;
	tuple = SearchSysCache1(AUTHOID, ObjectIdGetDatum(GetUserId()));
	if (!HeapTupleIsValid(tuple))
		return false;
	result = ((Form_pg_authid) GETSTRUCT(tuple))->rolcreatedb;
	ReleaseSysCache(tuple);
	return result;
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
	allowed = may_create_databases() &&
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
		if (may_create_databases())
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

static bool
updates_extension(Node *stmt)
{
	return IsA(stmt, AlterExtensionStmt) &&
		strcmp(((AlterExtensionStmt *) stmt)->extname, "dgen") == 0;
}

static bool
drops_extension(Node *stmt)
{
	DropStmt   *drop = (DropStmt *) stmt;
	ListCell   *lc;

	if (!IsA(stmt, DropStmt) || drop->removeType != OBJECT_EXTENSION)
		return false;
	foreach(lc, drop->objects)
	{
		if (strcmp(strVal(lfirst(lc)), "dgen") == 0)
			return true;
	}
	return false;
}

/*
 * DROP EXTENSION dgen, and its update: workers hold locks on its tables in
 * their own order, so they had better not be there.  Who the user is comes
 * last: in a transaction that has failed nobody may read a catalog, and
 * ROLLBACK comes through here.
 */
static bool
wants_tables(Node *stmt)
{
	return (updates_extension(stmt) || drops_extension(stmt)) && superuser() && !dgen_is_worker();
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

/*
 * The library that is loaded must know what ALTER EXTENSION has made.  An older
 * version it need not know: that is how one goes back.
 */
static void
check_update(void)
{
	DgenError  *fault;
	bool		newer;

	CommandCounterIncrement();
	fault = dgen_version_fault(&newer);
	if (fault != NULL && newer)
		dgen_version_report(ERROR, fault);
}

static void
run_utility(PlannedStmt *pstmt, const char *query, bool read_only_tree,
			ProcessUtilityContext context, ParamListInfo params,
			QueryEnvironment *env, DestReceiver *dest, QueryCompletion *qc)
{
	ProcessUtility_hook_type run = prev_ProcessUtility ?
		prev_ProcessUtility : standard_ProcessUtility;

	run(pstmt, query, read_only_tree, context, params, env, dest, qc);
	if (updates_extension(pstmt->utilityStmt))
		check_update();
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
	if (dgen_shared != NULL && wants_tables(stmt))
		database = MyDatabaseId;
	if (!OidIsValid(database))
	{
		run_utility(pstmt, query, read_only_tree, context, params, env, dest, qc);
		return;
	}

	PG_TRY();
	{
		evict(database, IsA(stmt, DropdbStmt), wants_tables(stmt));
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
	else if (access == OAT_POST_CREATE)
		dgen_scope_created(classid, object);
	else if ((access == OAT_DROP || access == OAT_POST_ALTER) && classid == ExtensionRelationId)
	{
		if (object != get_extension_oid("dgen", true))
			return;
		leave_at_commit = true;
		/* all are to look again whether it fits, see table.c */
		if (access == OAT_POST_ALTER)
			CacheInvalidateRelcacheAll();
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
		/* first, or a keeper that is let in would be asked for once more */
		if (event == XACT_EVENT_COMMIT && leave_at_commit)
			leave();
		let_all_back(event == XACT_EVENT_COMMIT);
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
