/*-------------------------------------------------------------------------
 *
 * status.c
 *	  dgen.status(): all that is to be known of one server, in one document.
 *
 * Runs in any process.  The row is read as dgen.state() reads it; what is
 * counted is counted as it is now, so that nobody conflicts with the workers
 * who take messages away.  Who holds the lease is asked of the lock manager:
 * a worker with an activation, or somebody who operates the server.
 *
 *-------------------------------------------------------------------------
 */
#include "dgen.h"

#include "access/skey.h"
#include "access/stratnum.h"
#include "catalog/pg_type.h"
#include "utils/datetime.h"
#include "utils/json.h"
#include "utils/numeric.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

/* what there is of a server: tables with an index that begins with its address, or hash */
static const struct
{
	const char *name;
	DgenTableId table;
	int			index;
	AttrNumber	server;			/* 0: the index is by address */
}			parts[] = {
	{"waiting", DGEN_T_MESSAGE, DGEN_I_MESSAGE_MAILBOX, 9},
	{"retrying", DGEN_T_ATTEMPT, DGEN_I_ATTEMPT_SERVER, 0},
	{"delayed", DGEN_T_DELAYED, DGEN_I_DELAYED_SERVER, 0},
	{"postponed", DGEN_T_POSTPONED, DGEN_I_POSTPONED_SERVER, 0},
	{"dead_letters", DGEN_T_LETTER, DGEN_I_LETTER_SERVER, 0},
	{"timers", DGEN_T_TIMER, DGEN_I_PKEY, 0},
	{"monitored_by", DGEN_T_MONITOR, DGEN_I_MONITOR_SERVER, 0},
	{"monitors", DGEN_T_MONITOR, DGEN_I_MONITOR_WATCHER, 0}
};

PG_FUNCTION_INFO_V1(dgen_status);

/* ---------------------------------------------------------------- the document */

static void
push_key(JsonbParseState **state, const char *key)
{
	JsonbValue	v;

	v.type = jbvString;
	v.val.string.val = unconstify(char *, key);
	v.val.string.len = strlen(key);
	pushJsonbValue(state, WJB_KEY, &v);
}

/* NULL: JSON null, as a time of 0 is */
static void
push_text(JsonbParseState **state, const char *key, const char *value)
{
	JsonbValue	v = {.type = jbvNull};

	push_key(state, key);
	if (value != NULL)
	{
		v.type = jbvString;
		v.val.string.val = unconstify(char *, value);
		v.val.string.len = strlen(value);
	}
	pushJsonbValue(state, WJB_VALUE, &v);
}

static void
push_time(JsonbParseState **state, const char *key, TimestampTz value)
{
	push_text(state, key, value == 0 ? NULL :
			  JsonEncodeDateTime(palloc(MAXDATELEN + 1), TimestampTzGetDatum(value),
								 TIMESTAMPTZOID, NULL));
}

static void
push_number(JsonbParseState **state, const char *key, int64 value)
{
	JsonbValue	v;

	push_key(state, key);
	v.type = jbvNumeric;
	v.val.numeric = int64_to_numeric(value);
	pushJsonbValue(state, WJB_VALUE, &v);
}

static void
push_bool(JsonbParseState **state, const char *key, bool value)
{
	JsonbValue	v = {.type = jbvBool, .val.boolean = value};

	push_key(state, key);
	pushJsonbValue(state, WJB_VALUE, &v);
}

static void
push_document(JsonbParseState **state, const char *key, Jsonb *value)
{
	JsonbValue	v = {.type = jbvNull};

	push_key(state, key);
	if (value != NULL && JB_ROOT_IS_SCALAR(value))
		(void) JsonbExtractScalar(&value->root, &v);
	else if (value != NULL)
	{
		v.type = jbvBinary;
		v.val.binary.data = &value->root;
		v.val.binary.len = VARSIZE(value) - VARHDRSZ;
	}
	pushJsonbValue(state, WJB_VALUE, &v);
}

/* ---------------------------------------------------------------- counting */

static bool
is_of_server(DgenTable *table, HeapTuple tuple, AttrNumber attno, const DgenAddress *address)
{
	bool		isnull;
	text	   *server;

	if (attno == 0)
		return true;
	/* another server may have the same hash */
	server = DatumGetTextPP(heap_getattr(tuple, attno, RelationGetDescr(table->rel), &isnull));
	return VARSIZE_ANY_EXHDR(server) == address->len &&
		memcmp(VARDATA_ANY(server), address->text, address->len) == 0;
}

static int64
count_part(int part, const DgenAddress *address)
{
	DgenTable  *table = dgen_table_open(parts[part].table, AccessShareLock);
	ScanKeyData key;
	DgenScan   *scan;
	HeapTuple	tuple;
	int64		n = 0;

	if (parts[part].server != 0)
		dgen_key_int8(&key, 1, address->hash, BTEqualStrategyNumber);
	else
		dgen_key_text(&key, 1, address->text);
	scan = dgen_scan_begin(table, parts[part].index, NULL, 1, &key);
	while ((tuple = dgen_scan_next(scan)) != NULL)
	{
		CHECK_FOR_INTERRUPTS();
		if (is_of_server(table, tuple, parts[part].server, address))
			n++;
	}
	dgen_scan_end(scan);
	dgen_table_close(table);
	return n;
}

/* ---------------------------------------------------------------- who has it */

/* The worker of this process id, and since when it is busy. */
static bool
find_worker(int pid, TimestampTz *since)
{
	bool		found = false;

	LWLockAcquire(&dgen_shared->lock, LW_SHARED);
	for (int i = 0; i < dgen_shared->nslots && !found; i++)
	{
		DgenWorkerSlot *slot = &dgen_shared->slots[i];

		found = slot->state != DGEN_WORKER_FREE && slot->pid == pid;
		*since = slot->busy_since;
	}
	LWLockRelease(&dgen_shared->lock);
	return found;
}

/* {"pid", "worker", "since"} of who has the server in hand; null: nobody else */
static void
push_holder(JsonbParseState **state, const DgenAddress *address)
{
	int			pid = dgen_lease_holder(address->hash);
	TimestampTz since = 0;
	bool		worker;

	if (pid == 0)
	{
		push_text(state, "in_hand", NULL);
		return;
	}
	worker = find_worker(pid, &since);
	push_key(state, "in_hand");
	pushJsonbValue(state, WJB_BEGIN_OBJECT, NULL);
	push_number(state, "pid", pid);
	push_bool(state, "worker", worker);
	push_time(state, "since", worker ? since : 0);
	pushJsonbValue(state, WJB_END_OBJECT, NULL);
}

/* ---------------------------------------------------------------- status */

static void
push_server(JsonbParseState **state, DgenModule *module, DgenServer *server)
{
	push_text(state, "status", server->active ? "running" : server->incarnation == 0 ? "new" : "stopped");
	push_number(state, "incarnation", server->incarnation);
	push_number(state, "version", server->version);
	push_text(state, "vsn", server->vsn);
	push_document(state, "state", server->state == NULL ? NULL :
				  dgen_masked(DGEN_FORMAT_STATUS, server->address, server->state));
	push_text(state, "state_name", server->state_name);
	push_time(state, "started_at", server->started_at);
	push_time(state, "updated_at", server->exists ? server->updated_at : 0);
	push_text(state, "stop_reason", server->stop_reason);
	push_bool(state, "failing", server->failing);
	push_time(state, "suspended_at", server->suspended ? server->suspended_at : 0);
	push_text(state, "suspended_by", server->suspended ? server->suspended_by : NULL);
	push_bool(state, "module_suspended", module->suspended);
	push_text(state, "module_vsn", module->vsn);
	push_time(state, "timeout_at", server->timeout_at);
	push_bool(state, "locked", server->lock_id != 0);
	push_time(state, "locked_until", server->locked_until);
}

static DgenServer *
read_server(const DgenAddress *address)
{
	DgenTable  *table = dgen_table_open(DGEN_T_SERVER, AccessShareLock);
	DgenServer *server;

	dgen_batch_flush();
	PushCopiedSnapshot(GetActiveSnapshot());
	UpdateActiveSnapshotCommandId();
	server = dgen_server_read(table, address->text, address->hash, GetActiveSnapshot());
	PopActiveSnapshot();
	dgen_table_close(table);
	return server;
}

/* status(server text) -> jsonb: as sys:get_status; OT003 if there is nothing of it */
Datum
dgen_status(PG_FUNCTION_ARGS)
{
	JsonbParseState *state = NULL;
	DgenAddress address;
	DgenModule *module;
	DgenServer *server;
	int64		calls;
	int64		found = 0;

	dgen_address_arg(fcinfo, 0, &address);
	module = dgen_module_get(address.module, false);
	dgen_module_check_read(module);
	server = read_server(&address);
	pushJsonbValue(&state, WJB_BEGIN_OBJECT, NULL);
	push_text(&state, "server", address.text);
	push_text(&state, "module", module->name);
	push_server(&state, module, server);
	for (int part = 0; part < lengthof(parts); part++)
	{
		int64		n = count_part(part, &address);

		push_number(&state, parts[part].name, n);
		found += n;
	}
	calls = dgen_calls_waiting(address.text);
	push_number(&state, "calls", calls);
	push_holder(&state, &address);
	if (!server->exists && found + calls == 0)
		ereport(ERROR,
				(errcode(ERRCODE_DGEN_NO_SERVER),
				 errmsg("server \"%s\" does not exist", address.text),
				 errdetail("It has no state, and nothing waits for it."),
				 errhint("Send it a message, or start it by dgen.start(%s).",
						 quote_literal_cstr(address.text))));
	PG_RETURN_JSONB_P(JsonbValueToJsonb(pushJsonbValue(&state, WJB_END_OBJECT, NULL)));
}
