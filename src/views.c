/*-------------------------------------------------------------------------
 *
 * views.c
 *	  What is behind the views: who may see which row, masks for states and
 *	  messages, and what only shared memory knows.
 *
 * The views read dgen's tables with the rights of their owner, so each row
 * passes dgen.may_read(), and they are security barriers.  Functions in a view
 * run as the role that queries it, and that role needs EXECUTE on them; so
 * these functions can be called by anybody, and check for themselves.
 *
 * Runs in any process, on a standby too.  Calls in flight are referenced
 * under the locks of their pools and copied after these have been let go; the
 * slots of workers are copied under dgen_shared->lock.
 *
 *-------------------------------------------------------------------------
 */
#include "stat.h"

#include "utils/snapmgr.h"

#include "catalog/pg_authid.h"
#include "funcapi.h"
#include "mb/pg_wchar.h"
#include "storage/proc.h"
#include "utils/acl.h"
#include "utils/memutils.h"
#include "utils/resowner.h"

PG_FUNCTION_INFO_V1(dgen_may_read);
PG_FUNCTION_INFO_V1(dgen_masked_state);
PG_FUNCTION_INFO_V1(dgen_masked_message);
PG_FUNCTION_INFO_V1(dgen_calls_in_flight);
PG_FUNCTION_INFO_V1(dgen_queued_calls);
PG_FUNCTION_INFO_V1(dgen_worker_info);
PG_FUNCTION_INFO_V1(dgen_pool_info);

/* ---------------------------------------------------------------- rights */

/* the last answer, kept in fn_extra: rows of one module mostly come together */
typedef struct Right
{
	char		module[NAMEDATALEN];	/* "": none yet */
	Oid			user;
	uint64		version;		/* of the modules */
	bool		may;
} Right;

/* The module's name in an address; false if it is none. */
static bool
module_name(const char *address, int len, char *name)
{
	const char *slash = memchr(address, '/', len);

	if (slash == NULL || slash == address || slash - address >= NAMEDATALEN)
		return false;
	memcpy(name, address, slash - address);
	name[slash - address] = '\0';
	return true;
}

/* May the current user see what belongs to this server? */
static bool
may_read(FmgrInfo *flinfo, const char *address, int len)
{
	Right	   *right = flinfo->fn_extra;
	char		name[NAMEDATALEN];
	DgenModule *module;

	if (!module_name(address, len, name))
		return false;
	if (right == NULL)
		right = flinfo->fn_extra = MemoryContextAllocZero(flinfo->fn_mcxt, sizeof(Right));
	if (strcmp(right->module, name) == 0 && right->user == GetUserId() &&
		right->version == dgen_module_version())
		return right->may;

	module = dgen_module_get(name, true);
	strlcpy(right->module, name, NAMEDATALEN);
	right->user = GetUserId();
	right->version = dgen_module_version();
	/* what a module that is gone has left behind is the superuser's to look at */
	right->may = module != NULL ? dgen_module_may_read(module) : superuser();
	return right->may;
}

/* may_read(server text) -> boolean */
Datum
dgen_may_read(PG_FUNCTION_ARGS)
{
	text	   *server;

	if (PG_ARGISNULL(0))
		PG_RETURN_BOOL(false);
	server = PG_GETARG_TEXT_PP(0);
	PG_RETURN_BOOL(may_read(fcinfo->flinfo, VARDATA_ANY(server), VARSIZE_ANY_EXHDR(server)));
}

/* ---------------------------------------------------------------- masks */

static Datum
jsonb_string(const char *s)
{
	JsonbValue	v;

	v.type = jbvString;
	v.val.string.val = unconstify(char *, s);
	v.val.string.len = strlen(s);
	return JsonbPGetDatum(JsonbValueToJsonb(&v));
}

/* An error that says nothing about the callback, and must go on. */
static bool
is_not_its_fault(int sqlerrcode)
{
	switch (ERRCODE_TO_CATEGORY(sqlerrcode))
	{
		case ERRCODE_TRANSACTION_ROLLBACK:
		case ERRCODE_INSUFFICIENT_RESOURCES:
		case ERRCODE_OPERATOR_INTERVENTION:
		case ERRCODE_SYSTEM_ERROR:
		case ERRCODE_INTERNAL_ERROR:
			return true;
		default:
			return false;
	}
}

static Datum
run_format(DgenModule *module, DgenCallbackKind kind, const char *server, Datum value)
{
	DgenScope	scope = {0};
	DgenResult	result;
	NullableDatum arg;

	scope.module = module;
	scope.server = server;
	scope.hash = dgen_address_hash(server, strlen(server));
	scope.kind = dgen_callback_name(kind);
	arg.value = value;
	arg.isnull = false;
	dgen_handler_run(&scope, kind, DGEN_AS_RESTRICTED, 1, &arg, &result);
	return result.is_null ? JsonbPGetDatum(dgen_json_null()) : result.value;
}

/*
 * A mask that fails shows why, instead of the value and of all other rows of
 * the view: hence the subtransaction.
 */
static Datum
run_mask(DgenModule *module, DgenCallbackKind kind, const char *server, Datum value)
{
	MemoryContext old = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	volatile Datum shown = (Datum) 0;

	dgen_module_hold(module);
	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(old);
	PG_TRY();
	{
		shown = run_format(module, kind, server, value);
		ReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		ErrorData  *edata = dgen_subxact_abort(old, owner);

		if (is_not_its_fault(edata->sqlerrcode))
		{
			dgen_module_release(module);
			ReThrowError(edata);
		}
		shown = jsonb_string(psprintf("%s failed: %s", dgen_callback_name(kind), edata->message));
		FreeErrorData(edata);
	}
	PG_END_TRY();
	MemoryContextSwitchTo(old);
	CurrentResourceOwner = owner;
	dgen_module_release(module);
	return shown;
}

/* As the module's format_status or format_message shows it, or as is. */
static Datum
mask(DgenCallbackKind kind, const char *server, int len, Datum value)
{
	char		name[NAMEDATALEN];
	DgenModule *module = module_name(server, len, name) ? dgen_module_get(name, true) : NULL;

	/* one that cannot be used is a mask all the same */
	if (module == NULL || (!module->callbacks[kind].present && !module->callbacks[kind].fault))
		return value;
	return run_mask(module, kind, pnstrdup(server, len), value);
}

/* The same for the library itself, which has checked who asks. */
Jsonb *
dgen_masked(DgenCallbackKind kind, const char *server, Jsonb *value)
{
	return DatumGetJsonbP(mask(kind, server, strlen(server), JsonbPGetDatum(value)));
}

/* Arguments: server text, value jsonb. */
static Datum
masked(FunctionCallInfo fcinfo, DgenCallbackKind kind)
{
	text	   *server;

	if (PG_ARGISNULL(0) || PG_ARGISNULL(1))
		PG_RETURN_NULL();
	server = PG_GETARG_TEXT_PP(0);
	/* else this would run the module's code for anybody */
	if (!may_read(fcinfo->flinfo, VARDATA_ANY(server), VARSIZE_ANY_EXHDR(server)))
		PG_RETURN_NULL();
	return mask(kind, VARDATA_ANY(server), VARSIZE_ANY_EXHDR(server), PG_GETARG_DATUM(1));
}

/* To SERIALIZABLE it is a state that is read, as by dgen.state(). */
static void
note_read(const text *server)
{
	DgenTable  *table;

	if (!IsolationIsSerializable())
		return;
	table = dgen_table_open(DGEN_T_SERVER, AccessShareLock);
	dgen_state_note_read(table, text_to_cstring(server),
						 dgen_address_hash(VARDATA_ANY(server), VARSIZE_ANY_EXHDR(server)), GetActiveSnapshot());
	dgen_table_close(table);
}

/*
 * masked_state(server text, base jsonb, base_version bigint, version bigint)
 * -> jsonb: what a row of dgen.server and its patches hold, for the view.
 */
Datum
dgen_masked_state(PG_FUNCTION_ARGS)
{
	text	   *server = PG_ARGISNULL(0) ? NULL : PG_GETARG_TEXT_PP(0);

	/* whether there are patches is nobody else's business, either */
	if (server == NULL || PG_ARGISNULL(1) || PG_ARGISNULL(2) || PG_ARGISNULL(3) ||
		!may_read(fcinfo->flinfo, VARDATA_ANY(server), VARSIZE_ANY_EXHDR(server)))
		PG_RETURN_NULL();
	note_read(server);
	if (PG_GETARG_INT64(2) < PG_GETARG_INT64(3))
		fcinfo->args[1].value =
			JsonbPGetDatum(dgen_state_merge(text_to_cstring(server), PG_GETARG_JSONB_P(1),
											PG_GETARG_INT64(2), PG_GETARG_INT64(3),
											GetActiveSnapshot()));
	return masked(fcinfo, DGEN_FORMAT_STATUS);
}

/* masked_message(server text, message jsonb) -> jsonb */
Datum
dgen_masked_message(PG_FUNCTION_ARGS)
{
	return masked(fcinfo, DGEN_FORMAT_MESSAGE);
}

/* ---------------------------------------------------------------- calls */

#define CALL_NATTS 7
#define MIN_CALLS 256

static void
let_go(DgenCalls *calls)
{
	while (calls->n > 0)
	{
		dsa_pointer p = calls->calls[--calls->n];

		dgen_call_unref(dsa_get_address(dgen_dsa(), p), p);
	}
}

/* Reference all calls of this database, with room for as many as there are. */
static void
take_calls(DgenCalls *calls)
{
	calls->size = MIN_CALLS;
	calls->calls = palloc(calls->size * sizeof(dsa_pointer));
	dgen_ready_calls(MyDatabaseId, calls);
	while (calls->found > calls->size)
	{
		let_go(calls);
		calls->size = calls->found + MIN_CALLS;
		calls->calls = repalloc_huge(calls->calls, (Size) calls->size * sizeof(dsa_pointer));
		dgen_ready_calls(MyDatabaseId, calls);
	}
}

/* One row; what is in a call's data never changes. */
static void
show_call(FunctionCallInfo fcinfo, DgenCall *call)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	int			len = strlen(call->data);
	Datum		values[CALL_NATTS];
	bool		nulls[CALL_NATTS] = {false};

	if (pg_atomic_read_u32(&call->state) != DGEN_CALL_QUEUED ||
		!may_read(fcinfo->flinfo, call->data, len))
		return;
	values[0] = CStringGetTextDatum(call->data);
	values[1] = TimestampTzGetDatum(call->issued_at);
	values[2] = TimestampTzGetDatum(call->deadline);
	nulls[2] = call->deadline == DT_NOEND;
	values[3] = CStringGetTextDatum(call->data + call->sender_off);
	values[4] = CStringGetTextDatum(call->data + call->role_off);
	values[5] = PointerGetDatum(call->data + call->context_off);
	nulls[5] = call->context_off == 0;
	values[6] = mask(DGEN_FORMAT_MESSAGE, call->data, len,
					 PointerGetDatum(call->data + call->request_off));
	tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
}

/* The same without what it holds, for views of figures. */
static void
show_queued(FunctionCallInfo fcinfo, DgenCall *call)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	char		module[NAMEDATALEN];
	Datum		values[2];
	bool		nulls[2] = {false};

	if (pg_atomic_read_u32(&call->state) != DGEN_CALL_QUEUED ||
		!module_name(call->data, strlen(call->data), module) ||
		!(dgen_may_monitor() || may_read(fcinfo->flinfo, call->data, strlen(call->data))))
		return;
	values[0] = CStringGetTextDatum(module);
	values[1] = TimestampTzGetDatum(call->issued_at);
	tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
}

static int64
count_calls(DgenCalls *calls, const char *server)
{
	int64		n = 0;

	for (int i = 0; i < calls->n; i++)
	{
		DgenCall   *call = dsa_get_address(dgen_dsa(), calls->calls[i]);

		if (strcmp(call->data, server) == 0 &&
			pg_atomic_read_u32(&call->state) == DGEN_CALL_QUEUED)
			n++;
	}
	return n;
}

/* How many calls wait for a worker to take them to this server. */
int64
dgen_calls_waiting(const char *server)
{
	DgenCalls	calls = {0};
	volatile int64 n = 0;

	if (dgen_shared == NULL)
		return 0;
	PG_TRY();
	{
		take_calls(&calls);
		n = count_calls(&calls, server);
	}
	PG_CATCH();
	{
		let_go(&calls);
		PG_RE_THROW();
	}
	PG_END_TRY();
	let_go(&calls);
	return n;
}

static bool
is_caller(int pgprocno, int pid)
{
	return pgprocno != DGEN_NONE && ProcGlobal->allProcs[pgprocno].pid == pid;
}

static char *
called_by(DgenCalls *calls, int pid)
{
	for (int i = 0; i < calls->n; i++)
	{
		DgenCall   *call = dsa_get_address(dgen_dsa(), calls->calls[i]);

		if (is_caller(call->caller_pgprocno, pid))
			return pstrdup(call->data);
	}
	return NULL;
}

/* Of the calls that no worker has taken. */
static char *
queued_by(int pid)
{
	DgenCalls	calls = {0};
	char	   *volatile server = NULL;

	PG_TRY();
	{
		take_calls(&calls);
		server = called_by(&calls, pid);
	}
	PG_CATCH();
	{
		let_go(&calls);
		PG_RE_THROW();
	}
	PG_END_TRY();
	let_go(&calls);
	return server;
}

/*
 * The server whose reply a process waits for: its call is in the queue, runs,
 * or was deferred or postponed.  NULL: none, or it is in a worker's hands and
 * not yet, or no more, run.
 */
char *
dgen_called_by(int pid)
{
	char	   *server = queued_by(pid);
	char		found[DGEN_MAX_ADDRESS + 1] = "";

	if (server == NULL)
		server = dgen_deferred_by(pid);
	if (server != NULL)
		return server;
	LWLockAcquire(&dgen_shared->lock, LW_SHARED);
	for (int i = 0; i < dgen_shared->nslots; i++)
	{
		DgenWorkerSlot *slot = &dgen_shared->slots[i];

		if (slot->state == DGEN_WORKER_BUSY && slot->database == MyDatabaseId &&
			is_caller(slot->caller_pgprocno, pid))
			memcpy(found, slot->server, DGEN_MAX_ADDRESS);
	}
	LWLockRelease(&dgen_shared->lock);
	return found[0] != '\0' ? pstrdup(found) : NULL;
}

/* whole: with all that its data is; else with the address alone. */
static DgenCall *
copy_call(const DgenCall *call, bool whole)
{
	Size		size = offsetof(DgenCall, data) + (whole ? call->inline_off : strlen(call->data) + 1);
	DgenCall   *copy = palloc(size);

	memcpy(copy, call, size);
	return copy;
}

static List *
copy_all(DgenCalls *calls, bool whole)
{
	List	   *copies = NIL;

	for (int i = 0; i < calls->n; i++)
		copies = lappend(copies, copy_call(dsa_get_address(dgen_dsa(), calls->calls[i]), whole));
	return copies;
}

/*
 * Copies of all calls of this database.  To show them runs modules' code, in which
 * this process may be terminated: then nobody would let go of a reference.
 */
static List *
copy_calls(bool whole)
{
	DgenCalls	calls = {0};
	List	   *volatile copies = NIL;

	PG_TRY();
	{
		take_calls(&calls);
		copies = copy_all(&calls, whole);
	}
	PG_CATCH();
	{
		let_go(&calls);
		PG_RE_THROW();
	}
	PG_END_TRY();
	let_go(&calls);
	return copies;
}

static Datum
show_calls(FunctionCallInfo fcinfo, bool whole, void (*show) (FunctionCallInfo, DgenCall *))
{
	ListCell   *lc;

	InitMaterializedSRF(fcinfo, 0);
	if (dgen_shared == NULL)
		return (Datum) 0;
	foreach(lc, copy_calls(whole))
	{
		CHECK_FOR_INTERRUPTS();
		show(fcinfo, lfirst(lc));
		pfree(lfirst(lc));
	}
	return (Datum) 0;
}

/* calls_in_flight(): calls that wait for a worker, as far as the user may see them */
Datum
dgen_calls_in_flight(PG_FUNCTION_ARGS)
{
	return show_calls(fcinfo, true, show_call);
}

/* queued_calls(): the same for view dgen.stat_queue */
Datum
dgen_queued_calls(PG_FUNCTION_ARGS)
{
	return show_calls(fcinfo, false, show_queued);
}

/* ---------------------------------------------------------------- workers */

#define WORKER_NATTS 13

/* what is shown of a slot */
typedef struct SlotView
{
	DgenWorkerState state;
	DgenPoolKind kind;
	Oid			owner;
	pid_t		pid;
	TimestampTz started_at;
	TimestampTz busy_since;
	int64		batches;
	int64		activations;
	int64		conflicts;
	int64		cache_hits;
	int64		cache_misses;
	int			batch_size;
	char		server[DGEN_MAX_ADDRESS + 1];
} SlotView;

/* The workers of this database, or of those that come; how many. */
static int
copy_slots(SlotView *views)
{
	int			n = 0;

	LWLockAcquire(&dgen_shared->lock, LW_SHARED);
	for (int i = 0; i < dgen_shared->nslots; i++)
	{
		DgenWorkerSlot *slot = &dgen_shared->slots[i];
		SlotView   *view = &views[n];

		if (slot->state == DGEN_WORKER_FREE || slot->database != MyDatabaseId)
			continue;
		view->state = slot->state;
		view->kind = dgen_shared->pools[slot->pool].kind;
		view->owner = slot->owner;
		view->pid = slot->pid;
		view->started_at = slot->started_at;
		view->busy_since = slot->busy_since;
		view->batches = slot->batches;
		view->activations = slot->activations;
		view->conflicts = slot->conflicts;
		view->cache_hits = slot->cache_hits;
		view->cache_misses = slot->cache_misses;
		view->batch_size = slot->batch_size;
		memcpy(view->server, slot->server, sizeof(view->server));
		view->server[sizeof(view->server) - 1] = '\0';
		n++;
	}
	LWLockRelease(&dgen_shared->lock);
	return n;
}

/* The address in hand is written without a lock: it may be torn. */
static bool
may_show_server(FunctionCallInfo fcinfo, SlotView *view)
{
	int			len = strlen(view->server);

	return view->state == DGEN_WORKER_BUSY && len > 0 &&
		pg_verifymbstr(view->server, len, true) && may_read(fcinfo->flinfo, view->server, len);
}

static const char *
state_name(DgenWorkerState state)
{
	switch (state)
	{
		case DGEN_WORKER_STARTING:
			return "starting";
		case DGEN_WORKER_IDLE:
			return "idle";
		case DGEN_WORKER_BUSY:
			return "busy";
		case DGEN_WORKER_LEAVING:
			return "leaving";
		case DGEN_WORKER_FREE:
			break;
	}
	return "free";
}

static void
show_worker(FunctionCallInfo fcinfo, SlotView *view)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	char	   *owner = GetUserNameFromId(view->owner, true);
	Datum		values[WORKER_NATTS];
	bool		nulls[WORKER_NATTS] = {false};

	values[0] = Int32GetDatum((int32) view->pid);
	nulls[0] = view->pid == 0;
	values[1] = owner ? CStringGetTextDatum(owner) : (Datum) 0;
	nulls[1] = owner == NULL;
	values[2] = CStringGetTextDatum(state_name(view->state));
	nulls[3] = !may_show_server(fcinfo, view);
	values[3] = nulls[3] ? (Datum) 0 : CStringGetTextDatum(view->server);
	values[4] = TimestampTzGetDatum(view->started_at);
	nulls[4] = view->started_at == 0;
	values[5] = TimestampTzGetDatum(view->busy_since);
	nulls[5] = view->state != DGEN_WORKER_BUSY || view->busy_since == 0;
	values[6] = Int64GetDatum(view->batches);
	values[7] = Int64GetDatum(view->activations);
	values[8] = Int64GetDatum(view->conflicts);
	values[9] = Int32GetDatum(view->batch_size);
	values[10] = CStringGetTextDatum(view->kind == DGEN_POOL_LONG ? "long" : "handlers");
	values[11] = Int64GetDatum(view->cache_hits);
	values[12] = Int64GetDatum(view->cache_misses);
	tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
}

/* worker_info(): for members of a worker's owner, and those who may read all statistics */
Datum
dgen_worker_info(PG_FUNCTION_ARGS)
{
	bool		all = has_privs_of_role(GetUserId(), ROLE_PG_READ_ALL_STATS);
	SlotView   *views;
	int			n;

	InitMaterializedSRF(fcinfo, 0);
	if (dgen_shared == NULL)
		return (Datum) 0;
	views = palloc(Max(dgen_shared->nslots, 1) * sizeof(SlotView));
	n = copy_slots(views);
	for (int i = 0; i < n; i++)
	{
		if (all || has_privs_of_role(GetUserId(), views[i].owner))
			show_worker(fcinfo, &views[i]);
	}
	return (Datum) 0;
}

/* ---------------------------------------------------------------- pools */

#define POOL_NATTS 9

/* what is shown of a pool */
typedef struct PoolView
{
	Oid			owner;
	DgenPoolKind kind;
	int			nready;
	int			nworkers;
	int			start_failures;
	TimestampTz head_since;
	TimestampTz refused_at;
	TimestampTz retry_at;
} PoolView;

/* The pools of this database; how many. */
static int
copy_pools(PoolView *views)
{
	int			n = 0;

	for (int i = 0; i < DGEN_MAX_POOLS; i++)
	{
		DgenPool   *pool = &dgen_shared->pools[i];
		PoolView   *view = &views[n];

		LWLockAcquire(&pool->lock, LW_SHARED);
		if (pool->used && pool->database == MyDatabaseId)
		{
			view->owner = pool->owner;
			view->kind = pool->kind;
			view->nready = pool->nready;
			view->nworkers = pool->nworkers;
			view->start_failures = pool->start_failures;
			view->head_since = pool->nready > 0 ? pool->head_since : 0;
			view->refused_at = pool->refused_at;
			view->retry_at = pool->start_failures > 0 ? pool->retry_at : 0;
			n++;
		}
		LWLockRelease(&pool->lock);
	}
	return n;
}

static void
set_time(Datum *values, bool *nulls, int column, TimestampTz value)
{
	values[column] = TimestampTzGetDatum(value);
	nulls[column] = value == 0;
}

/* module: of an external one's pool, else NULL */
static void
show_pool(ReturnSetInfo *rsinfo, const PoolView *view, const char *owner, const char *module)
{
	static const char *const kinds[] = {"handlers", "long", "external"};
	Datum		values[POOL_NATTS];
	bool		nulls[POOL_NATTS] = {false};

	StaticAssertStmt(lengthof(kinds) == DGEN_NPOOL_KINDS, "every kind of pool has a name");
	values[0] = CStringGetTextDatum(owner);
	values[1] = CStringGetTextDatum(kinds[view->kind]);
	nulls[2] = module == NULL;
	values[2] = module ? CStringGetTextDatum(module) : (Datum) 0;
	values[3] = Int32GetDatum(view->nready);
	set_time(values, nulls, 4, view->head_since);
	values[5] = Int32GetDatum(view->nworkers);
	set_time(values, nulls, 6, view->refused_at);
	values[7] = Int32GetDatum(view->start_failures);
	set_time(values, nulls, 8, view->retry_at);
	tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
}

/* pool_info(): for whom worker_info() is, too */
Datum
dgen_pool_info(PG_FUNCTION_ARGS)
{
	bool		all = has_privs_of_role(GetUserId(), ROLE_PG_READ_ALL_STATS);
	PoolView   *views;
	int			n;

	InitMaterializedSRF(fcinfo, 0);
	if (dgen_shared == NULL)
		return (Datum) 0;
	views = palloc(DGEN_MAX_POOLS * sizeof(PoolView));
	n = copy_pools(views);
	for (int i = 0; i < n; i++)
	{
		bool		external = views[i].kind == DGEN_POOL_EXTERNAL;
		DgenModule *module = external ? dgen_module_by_id((int32) views[i].owner) : NULL;
		Oid			owner = module ? module->owner : views[i].owner;
		char	   *name;

		/* its module has been dropped */
		if (external && module == NULL)
			continue;
		name = GetUserNameFromId(owner, true);
		/* its owner has; the keeper empties it soon */
		if (name == NULL)
			name = psprintf("unknown (OID=%u)", owner);
		if (all || has_privs_of_role(GetUserId(), owner))
			show_pool((ReturnSetInfo *) fcinfo->resultinfo, &views[i], name, module ? module->name : NULL);
	}
	return (Datum) 0;
}
