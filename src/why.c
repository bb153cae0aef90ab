/*-------------------------------------------------------------------------
 *
 * why.c
 *	  dgen.why(): in sentences, what keeps a server, or a process, from going on.
 *
 * Each sentence ends with what mends it, or with what shows more.  What stands
 * in a server's way is looked for from the outside in: the database, the
 * module, the server's row, who has it in hand, its failures, and last the
 * queue and the workers, where nothing else was found.
 *
 * Runs in any process, on a standby too, and waits for nobody.  The row is read
 * as dgen.status() reads it, what waits is counted as it is now.  Who holds a
 * lease is asked of the lock manager, as view pg_locks does.  Shared memory is
 * copied under its locks, one at a time.  What is seen of sessions is what
 * pg_stat_activity shows to the caller.
 *
 *-------------------------------------------------------------------------
 */
#include "dgen.h"

#include "access/skey.h"
#include "access/stratnum.h"
#include "access/xlog.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_database.h"
#include "commands/dbcommands.h"
#include "funcapi.h"
#include "module.h"
#include "pgstat.h"
#include "storage/proc.h"
#include "storage/procarray.h"
#include "utils/acl.h"
#include "utils/backend_status.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"

#define MAX_COUNTED 10000		/* messages; more are "more than" that */
#define MAX_SHOWN 5				/* failures and workers, each in a sentence */

typedef struct Why
{
	ReturnSetInfo *rsinfo;
	const DgenAddress *address;
	DgenModule *module;
	DgenServer	row;
	bool		blocked;		/* something stands in its way */
	bool		in_hand;		/* somebody is at it */
	int64		waiting;		/* messages and calls */
	int64		first_id;		/* the oldest of the messages, or 0 */
	TimestampTz first_sent;
} Why;

PG_FUNCTION_INFO_V1(dgen_why);

/* One sentence, a row of the result. */
static void
say(ReturnSetInfo *rsinfo, const char *format,...) pg_attribute_printf(2, 3);

static void
say(ReturnSetInfo *rsinfo, const char *format,...)
{
	StringInfoData text;
	Datum		value;
	bool		isnull = false;

	initStringInfo(&text);
	for (;;)
	{
		va_list		args;
		int			needed;

		va_start(args, format);
		needed = appendStringInfoVA(&text, format, args);
		va_end(args);
		if (needed == 0)
			break;
		enlargeStringInfo(&text, needed);
	}
	value = CStringGetTextDatum(text.data);
	tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, &value, &isnull);
}

static char *
time_text(TimestampTz at)
{
	return pstrdup(timestamptz_to_str(at));
}

/* An argument of a function that mends. */
static char *
quoted(const char *text)
{
	return quote_literal_cstr(text);
}

/* ---------------------------------------------------------------- the database */

static bool
keeper_runs(DgenDatabase *db)
{
	bool		runs;

	if (db == NULL)
		return false;
	LWLockAcquire(&dgen_shared->lock, LW_SHARED);
	runs = db->keeper == DGEN_KEEPER_RUNNING;
	LWLockRelease(&dgen_shared->lock);
	return runs;
}

static void
tell_of_database(Why *w)
{
	w->blocked = true;
	if (RecoveryInProgress())
		say(w->rsinfo, "This is a standby, where nothing runs until it is promoted: SELECT pg_promote().");
	else if (!dgen_enabled)
		say(w->rsinfo, "Nothing runs, as \"dgen.enabled\" is off: ALTER SYSTEM SET dgen.enabled = on, and SELECT pg_reload_conf().");
	else if (!dgen_database_armed())
		say(w->rsinfo, "This database is a copy, or was moved, and runs nothing until its owner says that it may: SELECT dgen.adopt().");
	else
	{
		w->blocked = false;
		if (dgen_shared->launcher_pid == 0)
			say(w->rsinfo, "dgen's launcher does not run, so no worker is started: it begins again within seconds, or found all of max_worker_processes (%d) taken when the server was started: ALTER SYSTEM SET max_worker_processes, and restart the server.",
				max_worker_processes);
		else if (!keeper_runs(dgen_database(MyDatabaseId, false)))
			say(w->rsinfo, "The keeper of this database does not run, so what is due does not come; the launcher starts it within seconds unless all of max_worker_processes are taken: see pg_stat_activity, and the server's log.");
	}
}

/* ---------------------------------------------------------------- the module */

static void
tell_of_module(Why *w)
{
	DgenModule *module = w->module;
	DgenModuleRow row;
	TimestampTz since = 0;
	char	   *faults = dgen_callbacks_faults(module);

	if (faults != NULL)
		say(w->rsinfo, "Module \"%s\" has a callback that is not usable, so what it would handle is refused or held: %s Define it rightly; SELECT dgen.alter_module(%s) tells how.",
			module->name, faults, quoted(module->name));
	else if (!module->external && !OidIsValid(module->schema))
		say(w->rsinfo, "Schema \"%s\" of module \"%s\" does not exist, so calls and casts are refused: make it again with its functions, and SELECT dgen.alter_module(%s); or SELECT dgen.drop_module(%s, true).",
			module->schema_name, module->name, quoted(module->name), quoted(module->name));
	if (module->owner_fault == NULL && !module->suspended)
		return;
	w->blocked = true;
	if (module->owner_fault != NULL)
	{
		say(w->rsinfo, "Module \"%s\" is suspended by dgen. %s Give all its callbacks to one role by ALTER FUNCTION ... OWNER TO, and SELECT dgen.alter_module(%s).",
			module->name, module->owner_fault, quoted(module->name));
		return;
	}
	if (dgen_module_row_read(module->name, &row) && !row.nulls[MODULE_SUSPENDED_AT])
		since = DatumGetTimestampTz(row.values[MODULE_SUSPENDED_AT]);
	say(w->rsinfo, "Module \"%s\" is suspended%s%s by %s%s%s: SELECT dgen.resume(module => %s).",
		module->name, since ? " since " : "", since ? time_text(since) : "",
		module->suspended_by ? module->suspended_by : "an operator",
		module->suspended_reason ? ", " : "",
		module->suspended_reason ? module->suspended_reason : "",
		quoted(module->name));
}

/* ---------------------------------------------------------------- the row */

static void
read_row(Why *w)
{
	DgenTable  *table = dgen_table_open(DGEN_T_SERVER, AccessShareLock);

	dgen_batch_flush();
	PushCopiedSnapshot(GetActiveSnapshot());
	UpdateActiveSnapshotCommandId();
	(void) dgen_server_peek(table, w->address->text, GetActiveSnapshot(), &w->row);
	PopActiveSnapshot();
	dgen_table_close(table);
}

static void
tell_of_end(Why *w)
{
	DgenServer *row = &w->row;
	const char *server = quoted(w->address->text);

	if (row->active || w->module->ephemeral)
		return;
	w->blocked = row->supervised || !w->module->auto_start;
	if (row->tombstone_until > GetCurrentTimestamp())
	{
		w->blocked = true;
		say(w->rsinfo, "It was deleted, and its tombstone refuses messages until %s: SELECT dgen.start(%s).",
			time_text(row->tombstone_until), server);
	}
	else if (row->supervised)
		say(w->rsinfo, row->continue_id != 0 ?
			"It has stopped with reason \"%s\", and its supervisor is about to restart it: see dgen.children, and dgen.restart_child()." :
			"It has stopped with reason \"%s\", and its supervisor keeps it down: see dgen.children, and dgen.restart_child().",
			row->stop_reason ? row->stop_reason : "unknown");
	else if (row->stop_reason != NULL)
		say(w->rsinfo, "It has stopped with reason \"%s\"%s: SELECT dgen.start(%s).", row->stop_reason,
			w->module->auto_start ? ", and its next message starts it" : "", server);
	else
		say(w->rsinfo, "It was never started%s: SELECT dgen.start(%s).",
			w->module->auto_start ? ", and its first message starts it" : "", server);
}

static void
tell_of_lock(Why *w)
{
	DgenServer *row = &w->row;

	if (row->lock_id == 0)
		return;
	w->blocked = true;
	if (w->module->external)
		say(w->rsinfo, "A client has message " INT64_FORMAT " of it as work until %s: dgen.finish_work(), or SELECT dgen.release(%s).",
			row->lock_id, time_text(row->locked_until), quoted(row->address));
	else
		say(w->rsinfo, "It is locked for the work for message " INT64_FORMAT ", and handles only messages of high priority meanwhile; dgen.abort(%s) cancels the work, to be tried again. To break the lock: SELECT dgen.release(%s).",
			row->lock_id, quoted(row->address), quoted(row->address));
}

static void
tell_of_row(Why *w)
{
	DgenServer *row = &w->row;

	tell_of_end(w);
	if (row->suspended)
	{
		w->blocked = true;
		say(w->rsinfo, "It is suspended since %s by %s: SELECT dgen.resume(%s).",
			time_text(row->suspended_at), row->suspended_by ? row->suspended_by : "an operator",
			quoted(row->address));
	}
	tell_of_lock(w);
	if (row->active && row->continue_id != 0)
		say(w->rsinfo, "Message " INT64_FORMAT ", what its handler goes on with, comes before all others: SELECT dgen.message_status(" INT64_FORMAT ").",
			row->continue_id, row->continue_id);
}

/* ---------------------------------------------------------------- who has it */

/* A worker's slot, as it was; false: the process is none. */
static bool
find_worker(int pid, DgenWorkerSlot *worker)
{
	bool		found = false;

	LWLockAcquire(&dgen_shared->lock, LW_SHARED);
	for (int i = 0; i < dgen_shared->nslots && !found; i++)
	{
		DgenWorkerSlot *slot = &dgen_shared->slots[i];

		found = slot->state != DGEN_WORKER_FREE && slot->pid == pid;
		if (found)
			*worker = *slot;
	}
	LWLockRelease(&dgen_shared->lock);
	worker->server[DGEN_MAX_ADDRESS] = '\0';
	return found;
}

/* ", which is idle in transaction since ...", if the caller may know; else "" */
static char *
session_text(int pid)
{
	for (int i = 1; i <= pgstat_fetch_stat_numbackends(); i++)
	{
		LocalPgBackendStatus *local = pgstat_get_local_beentry_by_index(i);
		PgBackendStatus *status = local ? &local->backendStatus : NULL;

		if (status == NULL || status->st_procpid != pid)
			continue;
		if (!has_privs_of_role(GetUserId(), ROLE_PG_READ_ALL_STATS) &&
			!has_privs_of_role(GetUserId(), status->st_userid))
			return "";
		if (status->st_state == STATE_IDLEINTRANSACTION ||
			status->st_state == STATE_IDLEINTRANSACTION_ABORTED)
			return psprintf(", which is idle in transaction since %s",
							time_text(status->st_state_start_timestamp));
		if (status->st_xact_start_timestamp != 0)
			return psprintf(", whose transaction runs since %s",
							time_text(status->st_xact_start_timestamp));
	}
	return "";
}

/* A lease's lock, of this database. */
static bool
is_lease(const LOCKTAG *tag)
{
	return tag->locktag_type == LOCKTAG_ADVISORY && tag->locktag_field1 == MyDatabaseId &&
		tag->locktag_field4 == DGEN_LEASE_CLASS;
}

static int64
lease_hash(const LOCKTAG *tag)
{
	return (int64) (((uint64) tag->locktag_field2 << 32) | tag->locktag_field3);
}

/* The process that holds a lease; 0: a prepared transaction; -1: nobody else. */
static int
lease_holder(int64 hash)
{
	LockData   *locks = GetLockStatusData();

	for (int i = 0; i < locks->nelements; i++)
	{
		LockInstanceData *lock = &locks->locks[i];

		if (is_lease(&lock->locktag) && lease_hash(&lock->locktag) == hash &&
			lock->holdMask != 0 && lock->pid != MyProcPid)
			return lock->pid;
	}
	return -1;
}

static void
tell_of_holder(Why *w)
{
	int			pid = lease_holder(w->address->hash);
	DgenWorkerSlot worker;

	if (pid < 0)
		return;
	w->in_hand = true;
	if (pid == 0)
		say(w->rsinfo, "A prepared transaction holds its row: see pg_prepared_xacts, and COMMIT PREPARED.");
	else if (find_worker(pid, &worker) && strcmp(worker.server, w->address->text) == 0 &&
			 worker.busy_since != 0)
		say(w->rsinfo, "It runs, in worker %d, whose batch began at %s; a handler that hangs is ended by handler_timeout, %d ms, or by you: SELECT dgen.abort(%s).",
			pid, time_text(worker.busy_since), w->module->handler_timeout, quoted(w->address->text));
	else if (find_worker(pid, &worker))
		say(w->rsinfo, "Worker %d has it in hand, with others that come first: SELECT * FROM dgen.workers WHERE pid = %d.",
			pid, pid);
	else
	{
		w->blocked = true;
		say(w->rsinfo, "Its row is held, by dgen.invoke() or an operator's function, until the end of a transaction of process %d%s: SELECT pg_terminate_backend(%d).",
			pid, session_text(pid), pid);
	}
}

/* ---------------------------------------------------------------- what waits */

static void
count_mailbox(Why *w)
{
	DgenTable  *table = dgen_table_open(DGEN_T_MESSAGE, AccessShareLock);
	ScanKeyData key;
	DgenScan   *scan;
	HeapTuple	tuple;

	dgen_key_int8(&key, 1, w->address->hash, BTEqualStrategyNumber);
	scan = dgen_scan_begin(table, DGEN_I_MESSAGE_MAILBOX, NULL, 1, &key);
	while (w->waiting <= MAX_COUNTED && (tuple = dgen_scan_next(scan)) != NULL)
	{
		TupleDesc	desc = RelationGetDescr(table->rel);
		bool		isnull;
		int64		id = DatumGetInt64(heap_getattr(tuple, 1, desc, &isnull));
		text	   *server = DatumGetTextPP(heap_getattr(tuple, 9, desc, &isnull));

		CHECK_FOR_INTERRUPTS();
		/* another server may have the same hash */
		if (VARSIZE_ANY_EXHDR(server) != w->address->len ||
			memcmp(VARDATA_ANY(server), w->address->text, w->address->len) != 0)
			continue;
		w->waiting++;
		if (w->first_id == 0 || id < w->first_id)
		{
			w->first_id = id;
			w->first_sent = DatumGetTimestampTz(heap_getattr(tuple, 7, desc, &isnull));
		}
	}
	dgen_scan_end(scan);
	dgen_table_close(table);
}

/* Of a message, or of an effect, which holds up no message, but the effects behind it. */
static void
tell_of_failure(Why *w, Datum *values, bool *nulls, bool effect)
{
	const char *what = effect ? "Effect" : "Message";
	int64		id = DatumGetInt64(values[0]);
	DgenError  *error = dgen_error_from_jsonb(DatumGetJsonbP(values[7]));
	const char *behind = effect ? ", and other effects of the server wait behind it" :
		!w->module->skip_failing && w->waiting > 1 ? ", and the others wait behind it" : "";

	if (!effect && !w->module->skip_failing)
		w->blocked = true;
	if (!nulls[5])
		say(w->rsinfo, "%s " INT64_FORMAT " is held since %s by a fault of its environment, which is no attempt, %s: %s; it is tried next at %s%s. Mend that, or give it up: SELECT dgen.discard(" INT64_FORMAT ").",
			what, id, time_text(DatumGetTimestampTz(values[5])), TextDatumGetCString(values[6]), error->message,
			time_text(DatumGetTimestampTz(values[4])), behind, id);
	else
		say(w->rsinfo, "%s " INT64_FORMAT " backs off until %s, when attempt %d begins; the last one ended with %s: %s%s. To give it up: SELECT dgen.discard(" INT64_FORMAT ").",
			what, id, time_text(DatumGetTimestampTz(values[4])), DatumGetInt32(values[2]) + 1,
			TextDatumGetCString(values[6]), error->message, behind, id);
}

/* name: the server's address, or its stream of effects */
static void
tell_of_failures(Why *w, const char *name)
{
	DgenTable  *table = dgen_table_open(DGEN_T_ATTEMPT, AccessShareLock);
	int			n = 0;
	ScanKeyData key;
	DgenScan   *scan;
	HeapTuple	tuple;

	dgen_key_text(&key, 1, name);
	scan = dgen_scan_begin(table, DGEN_I_ATTEMPT_SERVER, NULL, 1, &key);
	while ((tuple = dgen_scan_next(scan)) != NULL)
	{
		Datum		values[DGEN_MAX_COLUMNS];
		bool		nulls[DGEN_MAX_COLUMNS];

		CHECK_FOR_INTERRUPTS();
		if (n++ >= MAX_SHOWN)
			continue;
		heap_deform_tuple(tuple, RelationGetDescr(table->rel), values, nulls);
		tell_of_failure(w, values, nulls, dgen_is_effects(name));
	}
	dgen_scan_end(scan);
	dgen_table_close(table);
	if (n > MAX_SHOWN)
		say(w->rsinfo, "%d more of its messages have failed: SELECT * FROM dgen.messages WHERE server = %s.",
			n - MAX_SHOWN, quoted(w->address->text));
}

/* Rows by the server's address; *first: the least of a time, or 0. */
static int64
count_rows(DgenTableId id, int index, AttrNumber time, const char *server, TimestampTz *first)
{
	DgenTable  *table = dgen_table_open(id, AccessShareLock);
	int64		n = 0;
	ScanKeyData key;
	DgenScan   *scan;
	HeapTuple	tuple;

	*first = 0;
	dgen_key_text(&key, 1, server);
	scan = dgen_scan_begin(table, index, NULL, 1, &key);
	while (n <= MAX_COUNTED && (tuple = dgen_scan_next(scan)) != NULL)
	{
		bool		isnull;
		TimestampTz at;

		CHECK_FOR_INTERRUPTS();
		at = DatumGetTimestampTz(heap_getattr(tuple, time, RelationGetDescr(table->rel), &isnull));
		if (n++ == 0 || at < *first)
			*first = at;
	}
	dgen_scan_end(scan);
	dgen_table_close(table);
	return n;
}

static void
tell_of_later(Why *w)
{
	const char *server = w->address->text;
	TimestampTz first;
	int64		n = count_rows(DGEN_T_POSTPONED, DGEN_I_POSTPONED_SERVER, 7, server, &first);

	if (n > 0)
		say(w->rsinfo, "Its handler has postponed %s" INT64_FORMAT " messages, until its state changes: SELECT * FROM dgen.messages WHERE server = %s AND status = 'postponed'.",
			n > MAX_COUNTED ? "more than " : "", Min(n, MAX_COUNTED), quoted(server));
	n = count_rows(DGEN_T_DELAYED, DGEN_I_DELAYED_SERVER, 2, server, &first);
	if (n > 0)
		say(w->rsinfo, "Timers and delayed messages: %s" INT64_FORMAT ", the next at %s: SELECT * FROM dgen.timers WHERE server = %s.",
			n > MAX_COUNTED ? "more than " : "", Min(n, MAX_COUNTED), time_text(first), quoted(server));
}

static void
tell_of_mailbox(Why *w)
{
	if (w->first_id != 0)
		say(w->rsinfo, "Messages and calls that wait for it: %s" INT64_FORMAT "; the oldest message is " INT64_FORMAT ", sent at %s: SELECT * FROM dgen.messages WHERE server = %s.",
			w->waiting > MAX_COUNTED ? "more than " : "", Min(w->waiting, MAX_COUNTED),
			w->first_id, time_text(w->first_sent), quoted(w->address->text));
	else if (w->waiting > 0)
		say(w->rsinfo, "Calls that wait for it: " INT64_FORMAT ": SELECT * FROM dgen.messages WHERE server = %s.",
			w->waiting, quoted(w->address->text));
}

/* ---------------------------------------------------------------- the queue */

/* What its workers do; the caller may read the module, and so know its owner's. */
static void
tell_of_workers(Why *w, const DgenReadyLook *look)
{
	DgenWorkerSlot *busy = palloc(MAX_SHOWN * sizeof(DgenWorkerSlot));
	int			n = 0;

	LWLockAcquire(&dgen_shared->lock, LW_SHARED);
	for (int i = 0; i < dgen_shared->nslots; i++)
	{
		DgenWorkerSlot *slot = &dgen_shared->slots[i];

		if (slot->state == DGEN_WORKER_BUSY && slot->pool == look->pool && n++ < MAX_SHOWN)
			busy[n - 1] = *slot;
	}
	LWLockRelease(&dgen_shared->lock);
	say(w->rsinfo, "It waits since %s for a worker of role \"%s\": %d of %d are busy, and %d servers are ready; see dgen.workers. To have more than dgen.max_workers (%d): ALTER SYSTEM SET dgen.max_workers = %d, and SELECT pg_reload_conf().",
		time_text(look->queued_at), w->module->owner_name, n, look->nworkers, look->nready, dgen_max_workers,
		Min(2 * dgen_max_workers, 64));
	for (int i = 0; i < Min(n, MAX_SHOWN); i++)
	{
		DgenModule *module;

		busy[i].server[DGEN_MAX_ADDRESS] = '\0';
		module = dgen_module_of(busy[i].server);
		if (module != NULL && dgen_module_may_read(module))
			say(w->rsinfo, "Worker %d has server \"%s\" in hand since %s: SELECT dgen.abort(%s).",
				(int) busy[i].pid, busy[i].server, time_text(busy[i].busy_since), quoted(busy[i].server));
	}
}

static bool
may_log_in(Oid role)
{
	HeapTuple	tuple = SearchSysCache1(AUTHOID, ObjectIdGetDatum(role));
	bool		may;

	if (!HeapTupleIsValid(tuple))
		return false;
	may = ((Form_pg_authid) GETSTRUCT(tuple))->rolcanlogin;
	ReleaseSysCache(tuple);
	return may;
}

/* There is no worker of the owner, and it is known why, or not. */
static void
tell_of_no_worker(Why *w, const DgenReadyLook *look)
{
	const char *owner = quote_identifier(w->module->owner_name);
	char	   *database = get_database_name(MyDatabaseId);

	if (DGEN_OWNER_MUST_LOGIN && !may_log_in(w->module->owner))
		say(w->rsinfo, "No worker can be started, as role \"%s\" may not log in: ALTER ROLE %s LOGIN.",
			w->module->owner_name, owner);
	else if (object_aclcheck(DatabaseRelationId, MyDatabaseId, w->module->owner, ACL_CONNECT) != ACLCHECK_OK)
		say(w->rsinfo, "No worker can be started, as role \"%s\" may not connect: GRANT CONNECT ON DATABASE %s TO %s.",
			w->module->owner_name, database ? quote_identifier(database) : "...", owner);
	else if (look->start_failures > 0)
		say(w->rsinfo, "The last %d workers of role \"%s\" ended as they started, and the next is started at %s: see the server's log.",
			look->start_failures, w->module->owner_name, time_text(look->retry_at));
	else if (look->refused_at != 0)
		say(w->rsinfo, "No worker can be started, since %s: all of max_worker_processes (%d) are taken: ALTER SYSTEM SET max_worker_processes, and restart the server.",
			time_text(look->refused_at), max_worker_processes);
	else
		say(w->rsinfo, "It waits since %s for the first worker of role \"%s\": of dgen.max_workers (%d) none is free, or it is being started: see dgen.workers.",
			time_text(look->queued_at), w->module->owner_name, dgen_max_workers);
}

static void
tell_of_queue(Why *w)
{
	DgenReadyLook look;

	dgen_ready_look(MyDatabaseId, w->module->external ? (Oid) w->module->id : w->module->owner,
					w->module->external ? DGEN_POOL_EXTERNAL : DGEN_POOL_HANDLERS,
					w->module->id, w->address->hash, &look);
	if (w->module->external)
		say(w->rsinfo, "It waits for a client to take its work: SELECT * FROM dgen.take_work(%s).",
			quoted(w->module->name));
	else if (look.state == DGEN_READY_FREE)
		say(w->rsinfo, "It is not in the queue; the keeper finds its messages within a second or two: SELECT dgen.why(%s) again.",
			quoted(w->address->text));
	else if (look.state == DGEN_READY_PARKED)
		say(w->rsinfo, "It was put off%s%s, as it could not go on: SELECT dgen.why(%s) again.",
			look.park_until ? " until " : "", look.park_until ? time_text(look.park_until) : "",
			quoted(w->address->text));
	else if (look.state == DGEN_READY_RUNNING)
		say(w->rsinfo, "A worker has just taken it: SELECT dgen.why(%s) again.", quoted(w->address->text));
	else if (look.nworkers == 0)
		tell_of_no_worker(w, &look);
	else
		tell_of_workers(w, &look);
}

/* ---------------------------------------------------------------- why */

static void
tell_of_server(ReturnSetInfo *rsinfo, DgenModule *module, const DgenAddress *address)
{
	Why			w = {0};

	w.rsinfo = rsinfo;
	w.module = module;
	w.address = address;
	dgen_module_hold(module);
	PG_TRY();
	{
		count_mailbox(&w);
		w.waiting += dgen_calls_waiting(address->text);
		tell_of_database(&w);
		tell_of_module(&w);
		read_row(&w);
		tell_of_row(&w);
		tell_of_holder(&w);
		tell_of_failures(&w, address->text);
		tell_of_failures(&w, dgen_effects_of(address->text));
		tell_of_mailbox(&w);
		if (w.waiting > 0 && !w.blocked && !w.in_hand)
			tell_of_queue(&w);
		tell_of_later(&w);
		if (w.waiting == 0 && !w.blocked && !w.in_hand && (w.row.active || module->ephemeral))
			say(rsinfo, "It is idle, as nothing waits for it: SELECT dgen.status(%s).", quoted(address->text));
	}
	PG_FINALLY();
	{
		dgen_module_release(module);
	}
	PG_END_TRY();
}

/* What a process waits for: a lease.  False: it waits for none. */
static bool
tell_of_wait(ReturnSetInfo *rsinfo, int pid)
{
	LockData   *locks = GetLockStatusData();

	for (int i = 0; i < locks->nelements; i++)
	{
		LockInstanceData *lock = &locks->locks[i];
		int			holder;

		if (lock->pid != pid || lock->waitLockMode == NoLock || !is_lease(&lock->locktag))
			continue;
		holder = lease_holder(lease_hash(&lock->locktag));
		if (holder > 0)
			say(rsinfo, "Process %d waits for the row of a server, which process %d holds%s: SELECT dgen.why(pid => %d).",
				pid, holder, session_text(holder), holder);
		else
			say(rsinfo, "Process %d waits for the row of a server: SELECT pg_blocking_pids(%d).", pid, pid);
		return true;
	}
	return false;
}

/* As in dgen.workers: for members of the owner, and those who may read all statistics. */
static void
tell_of_worker(ReturnSetInfo *rsinfo, const DgenWorkerSlot *worker)
{
	char	   *owner = GetUserNameFromId(worker->owner, true);
	DgenModule *module = worker->database == MyDatabaseId ? dgen_module_of(worker->server) : NULL;
	DgenAddress address;

	say(rsinfo, "Process %d is a worker of role \"%s\"%s: SELECT * FROM dgen.workers WHERE pid = %d.",
		(int) worker->pid, owner ? owner : "?",
		worker->state == DGEN_WORKER_IDLE ? ", and idle" :
		worker->state == DGEN_WORKER_STARTING ? ", and starts" :
		worker->state == DGEN_WORKER_LEAVING ? ", and leaves" :
		worker->database != MyDatabaseId ? ", and busy in another database" : ", and busy",
		(int) worker->pid);
	if (worker->state != DGEN_WORKER_BUSY || module == NULL || !dgen_module_may_read(module))
		return;
	say(rsinfo, "It has server \"%s\" in hand since %s:", worker->server, time_text(worker->busy_since));
	dgen_address_parse(worker->server, strlen(worker->server), &address);
	tell_of_server(rsinfo, module, &address);
}

/* Is it the launcher, or a keeper? */
static bool
tell_of_keeper(ReturnSetInfo *rsinfo, int pid)
{
	Oid			database = InvalidOid;
	bool		launcher;

	LWLockAcquire(&dgen_shared->lock, LW_SHARED);
	launcher = dgen_shared->launcher_pid == pid;
	for (int i = 0; i < DGEN_MAX_DATABASES; i++)
	{
		if (OidIsValid(dgen_shared->databases[i].database) && dgen_shared->databases[i].keeper_pid == pid)
			database = dgen_shared->databases[i].database;
	}
	LWLockRelease(&dgen_shared->lock);
	if (launcher)
		say(rsinfo, "Process %d is the launcher, which starts dgen's other processes: SELECT * FROM dgen.workers.", pid);
	else if (OidIsValid(database))
		say(rsinfo, "Process %d is the keeper of database %s, which moves what is due: SELECT * FROM dgen.timers.",
			pid, get_database_name(database) ? quote_identifier(get_database_name(database)) : "...");
	return launcher || OidIsValid(database);
}

static void
tell_of_process(ReturnSetInfo *rsinfo, int pid)
{
	DgenWorkerSlot worker;
	/* in shared memory 0 stands for a process that is not there, or not yet */
	char	   *called = pid > 0 ? dgen_called_by(pid) : NULL;
	DgenModule *module = called ? dgen_module_of(called) : NULL;

	if (pid > 0 && find_worker(pid, &worker))
	{
		if (has_privs_of_role(GetUserId(), ROLE_PG_READ_ALL_STATS) ||
			has_privs_of_role(GetUserId(), worker.owner))
			tell_of_worker(rsinfo, &worker);
		else
			say(rsinfo, "Process %d is a worker of a role that you are no member of; those in pg_read_all_stats see more: SELECT * FROM dgen.workers.", pid);
	}
	else if (module != NULL && dgen_module_may_read(module))
	{
		DgenAddress address;

		say(rsinfo, "Process %d waits for a reply of server \"%s\":", pid, called);
		dgen_address_parse(called, strlen(called), &address);
		tell_of_server(rsinfo, module, &address);
	}
	else if (pid <= 0 || (!tell_of_wait(rsinfo, pid) && !tell_of_keeper(rsinfo, pid)))
		say(rsinfo, "Process %d %s: SELECT * FROM pg_stat_activity WHERE pid = %d.", pid,
			pid > 0 && BackendPidGetProc(pid) != NULL ? "waits for no server that you may read" : "does not exist", pid);
}

/* why(server text, pid integer) -> setof text */
Datum
dgen_why(PG_FUNCTION_ARGS)
{
	DgenAddress address;
	DgenModule *module;

	if (PG_ARGISNULL(0) == PG_ARGISNULL(1))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("dgen.why() takes exactly one of server and pid"),
				 PG_ARGISNULL(0) ? errdetail("None is given.") : errdetail("Both are given."),
				 errhint("For example dgen.why('counter/home') or dgen.why(pid => 4711).")));
	InitMaterializedSRF(fcinfo, MAT_SRF_USE_EXPECTED_DESC);
	if (PG_ARGISNULL(0))
	{
		tell_of_process((ReturnSetInfo *) fcinfo->resultinfo, PG_GETARG_INT32(1));
		return (Datum) 0;
	}
	dgen_address_arg(fcinfo, 0, &address);
	module = dgen_module_get(address.module, false);
	dgen_module_check_read(module);
	tell_of_server((ReturnSetInfo *) fcinfo->resultinfo, module, &address);
	return (Datum) 0;
}
