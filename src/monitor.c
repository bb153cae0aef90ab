/*-------------------------------------------------------------------------
 *
 * monitor.c
 *	  Monitors: a server is told by a DOWN when another one ends.
 *
 * A monitor is a row of dgen.monitor.  It belongs to the watcher's incarnation,
 * and names the server that it watches; whoever ends an incarnation deletes
 * the monitors on it, and sends a DOWN for each that it deleted, all in the
 * transaction that ends it.  So there is one DOWN a monitor, or none if the
 * watcher took it back or ended first.
 *
 * Setting one takes the lease of the watched server, as an invoke does: under
 * it the server either lives, and then nobody can end it before the monitor is
 * committed, or it does not, and the DOWN is sent at once.  The wait is seen
 * by the deadlock detector.  The server's row is written, too: that it is
 * monitored tells those who end it to look here, at no cost to all others;
 * and dgen.drop_module(), which deletes rows of a suspended module without
 * their leases, either meets that write or is met by it.
 *
 * What else ends with an incarnation (names, memberships of groups) is told by
 * the same flag, and ends in the same place: dgen_ties_end().
 *
 * Rows are read as they are now, never by a snapshot, so none of this takes
 * predicate locks.
 *
 *-------------------------------------------------------------------------
 */
#include "module.h"

#include "access/htup_details.h"
#include "access/skey.h"
#include "utils/fmgrprotos.h"
#include "utils/fmgroids.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "catalog/pg_collation_d.h"

/* columns of dgen.monitor, from 0 */
enum
{
	COL_REF, COL_SERVER, COL_WATCHER, COL_INCARNATION, COL_SET_AT, NCOLS
};

/* columns of dgen.message, from 1 */
#define MESSAGE_ID 1
#define MESSAGE_KIND 5
#define MESSAGE_MESSAGE 18

PG_FUNCTION_INFO_V1(dgen_monitor);
PG_FUNCTION_INFO_V1(dgen_demonitor);

/* ---------------------------------------------------------------- in hand */

/* The row of a server whose handler is running, or waits for one that does. */
static DgenServer *
running_server(const char *address)
{
	for (DgenScope *scope = dgen_scope; scope != NULL; scope = scope->up)
	{
		if (scope->row != NULL && strcmp(scope->server, address) == 0)
			return scope->row;
	}
	return NULL;
}

/*
 * Take a server in hand to which something is to be tied.  *table is NULL
 * where a handler of it is running: its activation has the lease, and writes
 * the row.
 */
DgenServer *
dgen_ties_open(DgenModule *module, const DgenAddress *address, DgenTable **table)
{
	DgenServer *server = running_server(address->text);

	*table = NULL;
	if (server != NULL)
		return server;
	return dgen_admin_open(module, address, table);
}

/*
 * Something is tied to the server.  Nothing undoes the mark when a savepoint
 * is rolled back: it says where to look, not that there is something.
 */
void
dgen_ties_note(DgenServer *server)
{
	server->monitored = true;
	server->dirty = true;
}

void
dgen_ties_close(DgenTable *table, DgenServer *server)
{
	if (table != NULL)
		dgen_admin_close(table, server);
}

/* ---------------------------------------------------------------- DOWN */

static void
push_text(JsonbParseState **parse, const char *key, const char *text)
{
	JsonbValue	v;

	v.type = jbvString;
	v.val.string.val = unconstify(char *, key);
	v.val.string.len = strlen(key);
	pushJsonbValue(parse, WJB_KEY, &v);
	v.val.string.val = unconstify(char *, text);
	v.val.string.len = strlen(text);
	pushJsonbValue(parse, WJB_VALUE, &v);
}

static Jsonb *
down_message(int64 ref, const char *server, const char *reason)
{
	JsonbParseState *parse = NULL;
	JsonbValue	v;

	pushJsonbValue(&parse, WJB_BEGIN_OBJECT, NULL);
	push_text(&parse, "info", "DOWN");
	v.type = jbvString;
	v.val.string.val = "ref";
	v.val.string.len = 3;
	pushJsonbValue(&parse, WJB_KEY, &v);
	v.type = jbvNumeric;
	v.val.numeric = DatumGetNumeric(DirectFunctionCall1(int8_numeric, Int64GetDatum(ref)));
	pushJsonbValue(&parse, WJB_VALUE, &v);
	push_text(&parse, "server", server);
	push_text(&parse, "reason", reason);
	return JsonbValueToJsonb(pushJsonbValue(&parse, WJB_END_OBJECT, NULL));
}

/* Tell a watcher; if its module is gone, so is the watcher. */
static void
send_down(int64 ref, const char *server, const char *watcher, int64 incarnation, const char *reason)
{
	DgenAddress to;
	DgenModule *module;
	DgenMessage msg;

	dgen_address_parse(watcher, strlen(watcher), &to);
	module = dgen_module_get(to.module, true);
	if (module == NULL)
		return;
	dgen_message_init(&msg, &to, DGEN_KIND_DOWN, down_message(ref, server, reason));
	msg.sender = server;
	msg.vsn = NULL;
	msg.incarnation = incarnation;
	/* no limit is checked: a server's end is not refused for its watcher's sake */
	dgen_mailbox_append(module, &msg);
}

/* ---------------------------------------------------------------- the end */

/* What to do with a monitor that has been found. */
typedef struct Ending
{
	const char *reason;			/* NULL: the watcher ends, who needs no DOWN */
	const char *module_prefix;	/* its servers need none, either; or NULL */
} Ending;

/* Delete one monitor.  Only whose delete it is sends the DOWN. */
static bool
end_monitor(DgenTable *table, HeapTuple tuple, const Ending *ending)
{
	Datum		values[DGEN_MAX_COLUMNS];
	bool		nulls[DGEN_MAX_COLUMNS];
	ItemPointerData tid = tuple->t_self;
	char	   *server;
	char	   *watcher;

	heap_deform_tuple(tuple, RelationGetDescr(table->rel), values, nulls);
	server = TextDatumGetCString(values[COL_SERVER]);
	watcher = TextDatumGetCString(values[COL_WATCHER]);
	if (!dgen_table_delete_wait(table, &tid))
		return false;
	if (ending->reason != NULL && strcmp(server, watcher) != 0 &&
		(ending->module_prefix == NULL ||
		 strncmp(watcher, ending->module_prefix, strlen(ending->module_prefix)) != 0))
		send_down(DatumGetInt64(values[COL_REF]), server, watcher,
				  DatumGetInt64(values[COL_INCARNATION]), ending->reason);
	return true;
}

/* End all monitors that an index scan finds; how many. */
static int64
end_monitors(int index, int nkeys, ScanKey keys, const Ending *ending)
{
	DgenTable  *table = dgen_table_open(DGEN_T_MONITOR, RowExclusiveLock);
	DgenScan   *scan = dgen_scan_begin(table, index, NULL, nkeys, keys);
	MemoryContext row = AllocSetContextCreate(CurrentMemoryContext, "dgen monitor",
											  ALLOCSET_DEFAULT_SIZES);
	MemoryContext old;
	HeapTuple	tuple;
	int64		n = 0;

	while ((tuple = dgen_scan_next(scan)) != NULL)
	{
		CHECK_FOR_INTERRUPTS();
		old = MemoryContextSwitchTo(row);
		if (end_monitor(table, tuple, ending))
			n++;
		MemoryContextSwitchTo(old);
		MemoryContextReset(row);
	}
	dgen_scan_end(scan);
	dgen_table_close(table);
	MemoryContextDelete(row);
	CommandCounterIncrement();
	return n;
}

/*
 * An incarnation ends, in whatever way; its lease is held.  Its watchers get
 * their DOWN, and what belongs to it goes: its own monitors, its names and
 * memberships.  forever: the server is deleted, and what is tied to its
 * address goes, too.  Returns how much of that there was.
 */
int64
dgen_ties_end(DgenServer *server, const char *reason, bool forever)
{
	Ending		ending = {reason, NULL};
	ScanKeyData key;

	dgen_server_changed(server, forever || server->erased);
	if (server->monitored)
	{
		CommandCounterIncrement();
		dgen_key_text(&key, 1, server->address);
		end_monitors(DGEN_I_MONITOR_SERVER, 1, &key, &ending);
		ending.reason = NULL;
		end_monitors(DGEN_I_MONITOR_WATCHER, 1, &key, &ending);
	}
	else if (!forever)
		return 0;
	server->monitored = false;
	server->dirty = true;
	return dgen_registry_end(server->address, forever);
}

/*
 * All servers of a module are about to be deleted: those of other modules that
 * watch them are told.  How many monitors there were.
 */
int64
dgen_monitor_drop(const char *module)
{
	char	   *prefix = psprintf("%s/", module);
	Ending		ending = {"deleted", prefix};
	ScanKeyData keys[2];

	CommandCounterIncrement();
	/* '0' follows '/' */
	ScanKeyEntryInitialize(&keys[0], 0, 1, BTGreaterEqualStrategyNumber, InvalidOid,
						   C_COLLATION_OID, F_TEXT_GE, CStringGetTextDatum(prefix));
	ScanKeyEntryInitialize(&keys[1], 0, 1, BTLessStrategyNumber, InvalidOid,
						   C_COLLATION_OID, F_TEXT_LT,
						   CStringGetTextDatum(psprintf("%s0", module)));
	return end_monitors(DGEN_I_MONITOR_SERVER, 2, keys, &ending);
}

/* ---------------------------------------------------------------- SQL */

/* The scope of the server that watches, whose row is in hand. */
static DgenScope *
watcher_scope(const char *function)
{
	if (dgen_scope == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_DGEN_BAD_DIRECTIVE),
				 errmsg("dgen.%s() can be used in a handler only", function),
				 errdetail("A DOWN goes to a server, and no handler of one is running in this session."),
				 errhint("A client waits by CALL dgen.wait_server(server).")));
	dgen_check_writable();
	if (dgen_scope->row == NULL || !dgen_scope->row->active || dgen_scope->module->ephemeral)
		ereport(ERROR,
				(errcode(ERRCODE_DGEN_BAD_DIRECTIVE),
				 errmsg("dgen.%s() cannot be used here", function),
				 dgen_scope->module->ephemeral ?
				 errdetail("Module \"%s\" is ephemeral: its servers live for one message each, and would not get the DOWN.",
						   dgen_scope->module->name) :
				 errdetail("Callback %s runs for no living server.",
						   dgen_callback_name(dgen_scope->callback)),
				 errhint("Monitors are set in init, handle_call, handle_cast and handle_info.")));
	return dgen_scope;
}

/* Whoever may do anything with a module may learn that a server of it ended. */
static void
check_may_watch(DgenModule *module)
{
	if (dgen_module_may_see(module))
		return;
	ereport(ERROR,
			(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
			 errmsg("permission denied to monitor servers of module \"%s\"", module->name),
			 errdetail("Role \"%s\" may neither send to the module nor read it.",
					   GetUserNameFromId(GetUserId(), false)),
			 errhint("Grant USAGE on its schema and EXECUTE on one of its handlers, or membership in its readers.")));
}

static void
insert_monitor(int64 ref, const DgenAddress *server, DgenServer *watcher)
{
	DgenTable  *table = dgen_table_open(DGEN_T_MONITOR, RowExclusiveLock);
	Datum		values[NCOLS];
	bool		nulls[NCOLS] = {false};

	values[COL_REF] = Int64GetDatum(ref);
	values[COL_SERVER] = CStringGetTextDatum(server->text);
	values[COL_WATCHER] = CStringGetTextDatum(watcher->address);
	values[COL_INCARNATION] = Int64GetDatum(watcher->incarnation);
	values[COL_SET_AT] = TimestampTzGetDatum(GetCurrentTimestamp());
	dgen_table_insert(table, values, nulls, NULL);
	dgen_table_close(table);
	CommandCounterIncrement();
}

/*
 * monitor(server text) -> bigint: the ref.  It is an id of the messages'
 * sequence, so a DOWN has a higher one than its monitor.
 */
Datum
dgen_monitor(PG_FUNCTION_ARGS)
{
	DgenScope  *scope = watcher_scope("monitor");
	DgenServer *watcher = scope->row;
	DgenAddress address;
	DgenModule *module;
	DgenTable  *table;
	DgenServer *server;
	int64		ref;

	dgen_address_arg(fcinfo, 0, &address);
	module = dgen_module_get(address.module, false);
	check_may_watch(module);
	ref = dgen_draw_id();
	server = dgen_ties_open(module, &address, &table);
	if (server->active && !module->ephemeral)
	{
		insert_monitor(ref, &address, watcher);
		dgen_ties_note(server);
		dgen_ties_note(watcher);
	}
	else
		send_down(ref, address.text, watcher->address, watcher->incarnation, "noproc");
	dgen_ties_close(table, server);
	PG_RETURN_INT64(ref);
}

/* Delete the watcher's monitor; false if there is none, or its server has ended. */
static bool
delete_monitor(int64 ref, const DgenServer *watcher)
{
	DgenTable  *table = dgen_table_open(DGEN_T_MONITOR, RowExclusiveLock);
	TupleDesc	desc = RelationGetDescr(table->rel);
	bool		found = false;
	ItemPointerData tid;
	ScanKeyData key;
	DgenScan   *scan;
	HeapTuple	tuple;

	dgen_key_int8(&key, 1, ref, BTEqualStrategyNumber);
	scan = dgen_scan_begin(table, DGEN_I_PKEY, NULL, 1, &key);
	tuple = dgen_scan_next(scan);
	if (tuple != NULL)
	{
		bool		isnull;

		tid = tuple->t_self;
		found = strcmp(TextDatumGetCString(heap_getattr(tuple, COL_WATCHER + 1, desc, &isnull)),
					   watcher->address) == 0;
	}
	dgen_scan_end(scan);
	/* whoever is ending the server commits first, or we do */
	found = found && dgen_table_delete_wait(table, &tid);
	dgen_table_close(table);
	CommandCounterIncrement();
	return found;
}

/* Is a message the DOWN of this monitor? */
static bool
is_down(HeapTuple tuple, TupleDesc desc, int64 ref)
{
	bool		isnull;
	Jsonb	   *message;
	JsonbValue	v;

	if (DatumGetChar(heap_getattr(tuple, MESSAGE_KIND, desc, &isnull)) != DGEN_KIND_DOWN)
		return false;
	message = DatumGetJsonbP(heap_getattr(tuple, MESSAGE_MESSAGE, desc, &isnull));
	return getKeyJsonValueFromContainer(&message->root, "ref", 3, &v) != NULL &&
		v.type == jbvNumeric &&
		DatumGetInt64(DirectFunctionCall1(numeric_int8, NumericGetDatum(v.val.numeric))) == ref;
}

/* Take the DOWN of a monitor out of the watcher's own mailbox. */
static void
flush_down(int64 ref, DgenScope *scope)
{
	DgenTable  *table = dgen_table_open(DGEN_T_MESSAGE, RowExclusiveLock);
	int64		id = 0;
	ItemPointerData tid;
	ScanKeyData keys[3];
	DgenScan   *scan;
	HeapTuple	tuple;
	bool		known;

	CommandCounterIncrement();
	dgen_key_int8(&keys[0], 1, scope->hash, BTEqualStrategyNumber);
	dgen_key_int2(&keys[1], 2, 0);
	dgen_key_int8(&keys[2], 3, ref, BTGreaterEqualStrategyNumber);
	scan = dgen_scan_begin(table, DGEN_I_MESSAGE_MAILBOX, NULL, 3, keys);
	while (id == 0 && (tuple = dgen_scan_next(scan)) != NULL)
	{
		bool		isnull;
		TupleDesc	desc = RelationGetDescr(table->rel);

		CHECK_FOR_INTERRUPTS();
		if (!is_down(tuple, desc, ref))
			continue;
		id = DatumGetInt64(heap_getattr(tuple, MESSAGE_ID, desc, &isnull));
		tid = tuple->t_self;
	}
	dgen_scan_end(scan);
	if (id != 0 && dgen_table_delete_wait(table, &tid))
	{
		dgen_attempt_delete(id);
		dgen_length_add(scope->hash, -1, &known);
		CommandCounterIncrement();
	}
	dgen_table_close(table);
}

/*
 * demonitor(ref bigint, flush boolean) -> boolean: true if no DOWN has been
 * sent for it, and none will be.  flush: one that was is taken back, unless
 * it has been handled.
 */
Datum
dgen_demonitor(PG_FUNCTION_ARGS)
{
	DgenScope  *scope = watcher_scope("demonitor");
	bool		flush = !PG_ARGISNULL(1) && PG_GETARG_BOOL(1);
	bool		found;

	if (PG_ARGISNULL(0))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("ref of a monitor must not be null"),
				 errhint("Give what dgen.monitor() returned.")));
	CommandCounterIncrement();
	found = delete_monitor(PG_GETARG_INT64(0), scope->row);
	if (!found && flush)
		flush_down(PG_GETARG_INT64(0), scope);
	PG_RETURN_BOOL(found);
}
