/*-------------------------------------------------------------------------
 *
 * history_api.c
 *	  SQL functions over the versions of a state: history, state_at, diff,
 *	  rollback.
 *
 * Reading shows what the statement's snapshot sees, this transaction's own
 * changes included, raw and so with the right that dgen.state() needs; it
 * works on a standby.  A rollback is an operator's change of a state, like
 * dgen.replace_state().
 *
 * Runs in any backend; rollback takes the server's lease.
 *
 *-------------------------------------------------------------------------
 */
#include "history.h"
#include "audit.h"

#include "access/skey.h"
#include "access/xact.h"
#include "funcapi.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

/* versions that history() reads at a time */
#define PAGE 64

PG_FUNCTION_INFO_V1(dgen_history);
PG_FUNCTION_INFO_V1(dgen_state_at);
PG_FUNCTION_INFO_V1(dgen_diff);
PG_FUNCTION_INFO_V1(dgen_rollback);

/* a server and its history, as one snapshot sees them */
typedef struct Reader
{
	DgenModule *module;
	DgenServer	server;
	DgenTable  *table;
	int64		oldest;			/* version that is kept */
} Reader;

/* ---------------------------------------------------------------- reading */

/* Open the history of the server in argument 0, for a reader of its module. */
static void
open_reader(FunctionCallInfo fcinfo, Reader *r)
{
	DgenAddress address;
	DgenTable  *servers;

	dgen_address_arg(fcinfo, 0, &address);
	r->module = dgen_module_get(address.module, false);
	dgen_module_check_read(r->module);
	dgen_history_check_kept(r->module);
	dgen_batch_flush();
	PushCopiedSnapshot(GetActiveSnapshot());
	UpdateActiveSnapshotCommandId();
	servers = dgen_table_open(DGEN_T_SERVER, AccessShareLock);
	r->server = *dgen_server_read(servers, address.text, address.hash, GetActiveSnapshot());
	dgen_table_close(servers);
	if (!r->server.exists || r->server.version == 0)
		dgen_admin_no_server(r->module, &r->server);
	r->table = dgen_table_open(DGEN_T_HISTORY, AccessShareLock);
	r->oldest = dgen_history_oldest(r->table, &r->server, r->module, GetActiveSnapshot());
}

static void
close_reader(Reader *r)
{
	dgen_table_close(r->table);
	PopActiveSnapshot();
}

/* The state of a version that must be kept; NULL: it had none. */
static Jsonb *
state_of(Reader *r, int64 version)
{
	if (version < r->oldest || version > r->server.version)
		dgen_history_not_kept(&r->server, version, r->oldest);
	return dgen_history_state(r->table, &r->server, version, GetActiveSnapshot());
}

/* The version that was the present one at a time. */
static int64
version_at(Reader *r, TimestampTz at)
{
	int64		version = 0;

	if (r->server.history_version != r->server.version)
		version = r->server.updated_at <= at ? r->server.version : 0;
	else
		version = dgen_history_version_at(r->table, &r->server, r->oldest, at,
										  GetActiveSnapshot());
	if (version == 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("no version of the state of server \"%s\" is kept from %s",
						r->server.address, timestamptz_to_str(at)),
				 errdetail("The oldest that is kept is %lld.", (long long) r->oldest),
				 errhint("See dgen.history(%s); the module's option history says how much is kept.",
						 quote_literal_cstr(r->server.address))));
	return version;
}

/* state_at(server text, version bigint, at timestamptz) -> jsonb */
Datum
dgen_state_at(PG_FUNCTION_ARGS)
{
	Reader		r;
	Jsonb	   *state;

	if (PG_ARGISNULL(1) == PG_ARGISNULL(2))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("dgen.state_at() takes exactly one of version and at"),
				 PG_ARGISNULL(1) ? errdetail("None is given.") : errdetail("Both are given."),
				 errhint("For example dgen.state_at('counter/home', version => 5) or dgen.state_at('counter/home', at => now() - interval '1 hour').")));
	open_reader(fcinfo, &r);
	state = state_of(&r, PG_ARGISNULL(1) ? version_at(&r, PG_GETARG_TIMESTAMPTZ(2)) :
					 PG_GETARG_INT64(1));
	close_reader(&r);
	if (state == NULL)
		PG_RETURN_NULL();
	PG_RETURN_JSONB_P(state);
}

/* diff(server text, from_version bigint, to_version bigint) -> jsonb: a patch, or null */
Datum
dgen_diff(PG_FUNCTION_ARGS)
{
	Reader		r;
	int64		versions[2];
	Jsonb	   *states[2];
	Jsonb	   *patch;

	if (PG_ARGISNULL(1))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("from_version must not be null"),
				 errhint("Versions are those of dgen.history().")));
	open_reader(fcinfo, &r);
	versions[0] = PG_GETARG_INT64(1);
	versions[1] = PG_ARGISNULL(2) ? r.server.version : PG_GETARG_INT64(2);
	for (int i = 0; i < 2; i++)
	{
		states[i] = state_of(&r, versions[i]);
		if (states[i] == NULL)
			dgen_history_no_state(&r.server, versions[i]);
	}
	patch = dgen_jsonb_diff(states[0], states[1]);
	close_reader(&r);
	if (patch == NULL)
		PG_RETURN_NULL();
	PG_RETURN_JSONB_P(patch);
}

/* ---------------------------------------------------------------- listing */

/* columns of history(), as sql/history.sql has them */
enum
{
	OUT_VERSION, OUT_AT, OUT_INCARNATION, OUT_VSN, OUT_KIND, OUT_MESSAGE_ID, OUT_SENDER,
	OUT_SENDER_ROLE, OUT_CONTEXT, OUT_FROM_VERSION, OUT_GOOD, OUT_SIZE, OUT_PATCH, OUT_NATTS
};

/* The rows behind a version, at most so many; returns how many. */
static int
read_page(Reader *r, int64 after, int n, HistoryRow *rows)
{
	ScanKeyData keys[2];
	DgenScan   *scan;
	HeapTuple	tuple;
	int			found = 0;

	dgen_key_text(&keys[0], 1, r->server.address);
	dgen_key_int8(&keys[1], 2, after + 1, BTGreaterEqualStrategyNumber);
	scan = dgen_scan_begin(r->table, DGEN_I_PKEY, GetActiveSnapshot(), 2, keys);
	while (found < n && (tuple = dgen_scan_next(scan)) != NULL)
		dgen_history_row(tuple, RelationGetDescr(r->table->rel), &rows[found++]);
	dgen_scan_end(scan);
	return found;
}

/*
 * The patches that made these versions, going back from the last one's state;
 * NULL where there was no state to change.
 */
static void
find_patches(Reader *r, int n, HistoryRow *rows, Jsonb **patches)
{
	Jsonb	   *state = dgen_history_state(r->table, &r->server, rows[n - 1].version,
										   GetActiveSnapshot());

	for (int i = n - 1; i >= 0; i--)
	{
		Jsonb	   *before = rows[i].undo ? dgen_jsonb_merge(state, rows[i].undo) : rows[i].before;

		CHECK_FOR_INTERRUPTS();
		patches[i] = before && state ? dgen_jsonb_diff(before, state) : NULL;
		state = before;
	}
}

static void
set_text(Datum *values, bool *nulls, int column, const char *value)
{
	nulls[column] = value == NULL;
	values[column] = value ? CStringGetTextDatum(value) : (Datum) 0;
}

static void
set_int(Datum *values, bool *nulls, int column, int64 value)
{
	nulls[column] = value == 0;
	values[column] = Int64GetDatum(value);
}

static void
set_jsonb(Datum *values, bool *nulls, int column, Jsonb *value)
{
	nulls[column] = value == NULL;
	values[column] = JsonbPGetDatum(value);
}

static void
put_row(ReturnSetInfo *rsinfo, const HistoryRow *row, bool good, Jsonb *patch)
{
	Datum		values[OUT_NATTS];
	bool		nulls[OUT_NATTS] = {false};

	values[OUT_VERSION] = Int64GetDatum(row->version);
	values[OUT_AT] = TimestampTzGetDatum(row->at);
	values[OUT_INCARNATION] = Int64GetDatum(row->incarnation);
	set_text(values, nulls, OUT_VSN, row->vsn);
	set_text(values, nulls, OUT_KIND, row->kind);
	set_int(values, nulls, OUT_MESSAGE_ID, row->message_id);
	set_text(values, nulls, OUT_SENDER, row->sender);
	set_text(values, nulls, OUT_SENDER_ROLE, row->sender_role);
	set_jsonb(values, nulls, OUT_CONTEXT, row->context);
	set_int(values, nulls, OUT_FROM_VERSION, row->from_version);
	values[OUT_GOOD] = BoolGetDatum(good);
	set_int(values, nulls, OUT_SIZE, row->size);
	set_jsonb(values, nulls, OUT_PATCH, patch);
	tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
}

/*
 * One page of history(), of versions behind this one; returns its last one, or
 * 0 if there are none.  A version is good if that was known when the next one
 * was written: one row more is read.
 */
static int64
put_page(ReturnSetInfo *rsinfo, Reader *r, int64 after, int n)
{
	HistoryRow	rows[PAGE + 1];
	Jsonb	   *patches[PAGE];
	int			found = read_page(r, after, n + 1, rows);
	int			shown = Min(found, n);

	if (shown == 0)
		return 0;
	find_patches(r, shown, rows, patches);
	for (int i = 0; i < shown; i++)
		put_row(rsinfo, &rows[i],
				rows[i].version == (i + 1 < found ? rows[i + 1].good : r->server.good_version),
				patches[i]);
	return rows[shown - 1].version;
}

static int64
max_argument(FunctionCallInfo fcinfo)
{
	int64		max = PG_ARGISNULL(2) ? PG_INT64_MAX : PG_GETARG_INT32(2);

	if (max < 1)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("max must be positive"),
				 errdetail("Its value is %lld.", (long long) max),
				 errhint("Give a number of versions, or null for all.")));
	return max;
}

/*
 * history(server text, after_version bigint, max integer): the oldest first;
 * without after_version the newest of all.
 */
Datum
dgen_history(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	int64		left = max_argument(fcinfo);
	MemoryContext page;
	Reader		r;
	int64		after;

	open_reader(fcinfo, &r);
	InitMaterializedSRF(fcinfo, 0);
	after = PG_ARGISNULL(1) ? r.server.version - Min(left, r.server.version) : PG_GETARG_INT64(1);
	after = Max(after, r.oldest - 1);
	if (r.server.history_version != r.server.version || after >= r.server.version)
		left = 0;
	page = AllocSetContextCreate(CurrentMemoryContext, "dgen page of history",
								 ALLOCSET_DEFAULT_SIZES);
	while (left > 0)
	{
		MemoryContext old = MemoryContextSwitchTo(page);
		int			n = Min(left, PAGE);

		CHECK_FOR_INTERRUPTS();
		after = put_page(rsinfo, &r, after, n);
		MemoryContextSwitchTo(old);
		MemoryContextReset(page);
		left = after == 0 ? 0 : left - n;
	}
	MemoryContextDelete(page);
	close_reader(&r);
	return (Datum) 0;
}

/* ---------------------------------------------------------------- rollback */

/* The last good version that is older than the present one, or the one before that. */
static int64
default_version(DgenModule *module, DgenServer *server)
{
	for (int nth = 1;; nth++)
	{
		int64		good = dgen_history_good(module, server, nth);

		if (good == 0)
			return server->version - 1;
		if (good < server->version)
			return good;
	}
}

static void
run_rollback(DgenModule *module, const DgenAddress *address, DgenServer *server, int64 version)
{
	DgenActivation act;

	dgen_admin_act(&act, module, address, server, "rollback");
	CommandCounterIncrement();
	PushActiveSnapshot(GetTransactionSnapshot());
	dgen_module_hold(module);
	PG_TRY();
	{
		dgen_history_rollback(&act, version);
	}
	PG_FINALLY();
	{
		dgen_module_release(module);
	}
	PG_END_TRY();
	PopActiveSnapshot();
}

/*
 * rollback(server text, version bigint, expected_version bigint) -> bigint:
 * the new version, or the present one if the state is that already.
 */
Datum
dgen_rollback(PG_FUNCTION_ARGS)
{
	DgenAddress address;
	DgenModule *module;
	DgenAudit	audit = {.action = "rollback"};
	DgenTable  *table;
	DgenServer *server;
	Jsonb	   *before;
	int64		old_version;

	dgen_address_arg(fcinfo, 0, &address);
	module = dgen_module_get(address.module, false);
	dgen_module_check_operate(module);
	dgen_check_writable();
	dgen_history_check_kept(module);

	server = dgen_admin_open(module, &address, &table);
	if (!server->exists || !server->active)
		dgen_admin_no_server(module, server);
	if (!PG_ARGISNULL(2))
		dgen_admin_check_version(server, PG_GETARG_INT64(2));
	before = server->state;
	old_version = server->version;
	audit.vsn = server->vsn;
	run_rollback(module, &address, server,
				 PG_ARGISNULL(1) ? default_version(module, server) : PG_GETARG_INT64(1));
	dgen_admin_close(table, server);
	dgen_audit_state(&audit, server, before, old_version);
	PG_RETURN_INT64(server->version);
}
