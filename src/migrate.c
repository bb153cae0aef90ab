/*-------------------------------------------------------------------------
 *
 * migrate.c
 *	  New code, old states: callback code_change, one server at a time or all
 *	  servers of a module at once.
 *
 * Each server's row has the vsn of the code that made its state.  Where the
 * module's differs, code_change makes a state of it that the present code
 * understands: lazily, before the server's next activation and in the same
 * transaction; or by dgen.migrate(), in the transaction that brings the code,
 * and by dgen.migrate_all(), in short ones while the module runs.  Without the
 * callback a state stays as it is, and takes the new vsn when its row is next
 * written.
 *
 * An activation looks at the catalog as it is when it runs: the function it
 * calls may be newer than the module in hand.  So who runs one of a module
 * with a vsn asks for invalidations first.  A worker whose module turns out to
 * be older starts its batch over; a backend goes on with the newer one.
 *
 * dgen.migrate() holds the leases of what it has written to the end of its
 * transaction, up to as many as the lock table has room for.  More are
 * migrated while the module is suspended, each under its lease for as long as
 * it is at it: then no worker comes, and who changes such a server by hand
 * waits at its row, and must try again if it was migrated (40001).
 *
 * Locks: with more servers than that dgen_module_lock(), so that nobody resumes
 * the module; leases, one after the other in order of addresses.
 *
 *-------------------------------------------------------------------------
 */
#include "module.h"
#include "stat.h"

#include "access/htup_details.h"
#include "access/skey.h"
#include "access/stratnum.h"
#include "access/xact.h"
#include "catalog/pg_collation_d.h"
#include "executor/spi.h"
#include "funcapi.h"
#include "utils/fmgroids.h"
#include "utils/inval.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

/* the leases that one transaction may take without emptying the lock table */
#define MAX_LEASES 1000
/* addresses that are read at a time */
#define CHUNK 500

/* columns of dgen.server, from 1 */
#define SERVER_ADDRESS 1
#define SERVER_STATUS 2
#define SERVER_VSN 12

/* one dgen.migrate(), or one chunk of migrate_all */
typedef struct Migration
{
	DgenModule *module;
	bool		dry_run;
	bool		trap;			/* a server that fails is told of, and the rest goes on */
	bool		keep_leases;
	int64		limit;			/* servers that it may still look at */
	char		after[DGEN_MAX_ADDRESS + 1];	/* where it is: the last address */
	ReturnSetInfo *report;		/* where rows go, or NULL */
	int64		migrated;
	int64		failed;
} Migration;

/* what is known of a server, even if its migration fails */
typedef struct Outcome
{
	char	   *old_vsn;
	int64		version;		/* it has, or will have */
} Outcome;

PG_FUNCTION_INFO_V1(dgen_migrate);
PG_FUNCTION_INFO_V1(dgen_migrate_all);

/* ---------------------------------------------------------------- one server */

/* Is its state one of other code than the module's? */
bool
dgen_migration_due(const DgenModule *module, const DgenServer *server)
{
	return module->vsn != NULL && server->active &&
		(server->vsn == NULL || strcmp(server->vsn, module->vsn) != 0);
}

static bool
has_code_change(const DgenModule *module)
{
	const DgenCallback *cb = &module->callbacks[DGEN_CODE_CHANGE];

	/* one that cannot be used must not be passed over */
	return cb->present || cb->fault != NULL;
}

/* Would a state be changed by being migrated? */
bool
dgen_migration_pending(const DgenModule *module, const DgenServer *server)
{
	return dgen_migration_due(module, server) && has_code_change(module);
}

static bool
same_vsn(const DgenModule *a, const DgenModule *b)
{
	return a->vsn == NULL ? b->vsn == NULL : b->vsn != NULL && strcmp(a->vsn, b->vsn) == 0;
}

/*
 * The functions that an activation is about to call are those of the catalog:
 * make sure that the module is of the same time.  A commit is visible before
 * its invalidations are sent, so where a state is about to be migrated the
 * module is read again, lest it be taken back to the vsn before.
 */
void
dgen_migration_module(DgenActivation *act)
{
	DgenModule *module = act->module;
	DgenModule *now;

	AcceptInvalidationMessages();
	if (dgen_migration_pending(module, act->server))
		now = dgen_module_reread(module);
	else if (module->stale)
		now = dgen_module_by_id(module->id);
	else
		return;
	/* one that was dropped meanwhile has no new code either */
	if (now == NULL || same_vsn(now, module))
		return;
	if (act->identity == DGEN_AS_WORKER)
		ereport(ERROR,
				(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
				 errmsg("could not serialize access due to concurrent update"),
				 errdetail("The vsn of module \"%s\" was changed by another transaction.",
						   module->name)));
	act->module = now;
}

/* What code_change makes of the state. */
static Jsonb *
run_code_change(DgenModule *module, DgenServer *server, DgenIdentity identity, Jsonb *context,
				bool readonly)
{
	DgenScope	scope = {0};
	DgenResult	result;
	NullableDatum args[2];

	scope.module = module;
	scope.server = server->address;
	scope.hash = server->hash;
	scope.state_name = module->machine ? server->state_name : NULL;
	scope.kind = "code_change";
	scope.context = context;
	scope.readonly = readonly;
	args[0].isnull = server->vsn == NULL;
	args[0].value = server->vsn ? CStringGetTextDatum(server->vsn) : (Datum) 0;
	args[1].isnull = false;
	args[1].value = JsonbPGetDatum(server->state ? server->state : dgen_json_null());
	dgen_handler_run(&scope, DGEN_CODE_CHANGE, identity, 2, args, &result);
	return result.has_state ? result.state : dgen_json_null();
}

/*
 * Bring the server of an activation to the module's vsn, in memory.  Where
 * code_change ran, the row is to be written in any case: it shall not run
 * again.
 */
void
dgen_migrate_server(DgenActivation *act)
{
	DgenServer *server = act->server;
	DgenModule *module = act->module;

	if (!dgen_migration_due(module, server))
		return;
	if (has_code_change(module))
	{
		dgen_activation_set_state(act, run_code_change(module, server, act->identity,
													   act->context, false));
		if (server->cause != NULL)
			server->cause->kind = "code_change";
		server->dirty = true;
	}
	/* the server may outlive the module that we have */
	server->vsn = MemoryContextStrdup(GetMemoryChunkContext(server), module->vsn);
}

/*
 * A server is to have an older state, made by code of this vsn: what the
 * present code makes of it.
 */
Jsonb *
dgen_migrate_state(DgenActivation *act, Jsonb *state, char *vsn)
{
	DgenServer	old = *act->server;

	old.state = state;
	old.vsn = vsn;
	if (!dgen_migration_due(act->module, &old))
		return state;
	if (has_code_change(act->module))
		state = run_code_change(act->module, &old, act->identity, act->context, false);
	/* its own state may not have been migrated either */
	act->server->vsn = MemoryContextStrdup(GetMemoryChunkContext(act->server), act->module->vsn);
	act->server->dirty = true;
	return state;
}

/*
 * The state as the present code is to see it, for who only reads it: what is
 * not migrated yet is, for him alone.  code_change may write nothing then.
 */
Jsonb *
dgen_migrated_state(DgenModule *module, DgenServer *server)
{
	if (!dgen_migration_pending(module, server))
		return server->state;
	return run_code_change(module, server, DGEN_AS_RESTRICTED, NULL, true);
}

/* ---------------------------------------------------------------- which ones */

static bool
row_is_due(Migration *m, HeapTuple tuple, TupleDesc desc)
{
	DgenServer	server = {0};
	bool		isnull;
	Datum		vsn = heap_getattr(tuple, SERVER_VSN, desc, &isnull);

	server.vsn = isnull ? NULL : TextDatumGetCString(vsn);
	server.active = DatumGetChar(heap_getattr(tuple, SERVER_STATUS, desc, &isnull)) == 'a';
	return dgen_migration_due(m->module, &server);
}

/*
 * Addresses of servers of the module behind m->after that are to be migrated,
 * at most max; none if addresses is NULL.  How many there are.  An MVCC
 * snapshot finds them all, where SERIALIZABLE would not put predicate locks
 * on everything that it reads.
 */
static int64
find_due(Migration *m, int64 max, char **addresses)
{
	DgenTable  *table = dgen_table_open(DGEN_T_SERVER, AccessShareLock);
	Snapshot	registered = RegisterSnapshot(GetCatalogSnapshot(RelationGetRelid(table->rel)));
	MemoryContext row = AllocSetContextCreate(CurrentMemoryContext, "dgen row", ALLOCSET_SMALL_SIZES);
	MemoryContext old = CurrentMemoryContext;
	char	   *end = psprintf("%s0", m->module->name); /* '0' follows '/' */
	ScanKeyData keys[2];
	DgenScan   *scan;
	HeapTuple	tuple;
	int64		n = 0;

	ScanKeyEntryInitialize(&keys[0], 0, 1, BTGreaterStrategyNumber, InvalidOid,
						   C_COLLATION_OID, F_TEXT_GT, CStringGetTextDatum(m->after));
	ScanKeyEntryInitialize(&keys[1], 0, 1, BTLessStrategyNumber, InvalidOid,
						   C_COLLATION_OID, F_TEXT_LT, CStringGetTextDatum(end));
	scan = dgen_scan_begin(table, DGEN_I_PKEY, IsolationIsSerializable() ? NULL : registered, 2, keys);
	while (n < max && (tuple = dgen_scan_next(scan)) != NULL)
	{
		bool		due;
		bool		isnull;

		CHECK_FOR_INTERRUPTS();
		MemoryContextSwitchTo(row);
		due = row_is_due(m, tuple, RelationGetDescr(table->rel));
		MemoryContextSwitchTo(old);
		MemoryContextReset(row);
		if (!due)
			continue;
		if (addresses != NULL)
			addresses[n] = TextDatumGetCString(heap_getattr(tuple, SERVER_ADDRESS,
															RelationGetDescr(table->rel), &isnull));
		n++;
	}
	dgen_scan_end(scan);
	UnregisterSnapshot(registered);
	dgen_table_close(table);
	MemoryContextDelete(row);
	return n;
}

/* ---------------------------------------------------------------- all of them */

static void
report_server(Migration *m, const char *address, const Outcome *outcome, DgenError *error)
{
	Datum		values[4];
	bool		nulls[4] = {false};

	if (error != NULL)
		m->failed++;
	else
		m->migrated++;
	dgen_progress_step(error != NULL);
	if (m->report == NULL)
		return;
	values[0] = CStringGetTextDatum(address);
	nulls[1] = outcome->old_vsn == NULL;
	values[1] = outcome->old_vsn ? CStringGetTextDatum(outcome->old_vsn) : (Datum) 0;
	nulls[2] = error != NULL;
	values[2] = Int64GetDatum(outcome->version);
	nulls[3] = error == NULL;
	values[3] = error ? JsonbPGetDatum(dgen_error_to_jsonb(error)) : (Datum) 0;
	tuplestore_putvalues(m->report->setResult, m->report->setDesc, values, nulls);
}

static void
error_context(void *address)
{
	errcontext("migration of server \"%s\"", (char *) address);
}

/* Migrate a server under its lease.  False: it is no longer to be. */
static bool
migrate_leased(Migration *m, DgenAddress *address, Outcome *outcome)
{
	DgenTable  *table = dgen_table_open(DGEN_T_SERVER, RowExclusiveLock);
	DgenServer *server = dgen_server_read(table, address->text, address->hash, NULL);
	DgenActivation act;
	bool		due = dgen_migration_due(m->module, server);

	outcome->old_vsn = server->vsn;
	if (due)
	{
		dgen_server_check_snapshot(server);
		dgen_admin_act(&act, m->module, address, server, "code_change");
		/* a procedure that has committed has none; and the state's TOAST wants one */
		PushActiveSnapshot(GetTransactionSnapshot());
		dgen_migrate_server(&act);
		server->dirty = true;
		outcome->version = server->version + (server->state_changed ? 1 : 0);
		if (!m->dry_run)
			dgen_server_write(table, server, NULL);
		PopActiveSnapshot();
	}
	dgen_table_close(table);
	CommandCounterIncrement();
	return due;
}

static bool
migrate_server(Migration *m, char *address, Outcome *outcome)
{
	ErrorContextCallback callback = {0};
	DgenAddress parsed;
	bool		due;

	dgen_address_parse(address, strlen(address), &parsed);
	callback.callback = error_context;
	callback.arg = address;
	callback.previous = error_context_stack;
	error_context_stack = &callback;
	(void) dgen_lease_take(parsed.hash, true);
	due = migrate_leased(m, &parsed, outcome);
	error_context_stack = callback.previous;
	if (m->keep_leases)
		dgen_ring_at_end(m->module, parsed.hash);
	else
		dgen_lease_release(parsed.hash);
	return due;
}

/* What says nothing of a server's state must not count as its failure. */
static bool
must_rethrow(int sqlerrcode)
{
	int			category = ERRCODE_TO_CATEGORY(sqlerrcode);

	return category == ERRCODE_TRANSACTION_ROLLBACK || category == ERRCODE_INSUFFICIENT_RESOURCES ||
		category == ERRCODE_OPERATOR_INTERVENTION || category == ERRCODE_SYSTEM_ERROR;
}

/*
 * The same in a subtransaction: an error is a row of the report.  That of a
 * dry run is undone in any case, and its lease let go with it.
 */
static void
try_server(Migration *m, char *address, Outcome *outcome)
{
	MemoryContext old = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	DgenError  *volatile error = NULL;
	volatile bool due = true;

	BeginInternalSubTransaction("dgen.migrate");
	MemoryContextSwitchTo(old);
	PG_TRY();
	{
		due = migrate_server(m, address, outcome);
		if (m->dry_run)
			RollbackAndReleaseCurrentSubTransaction();
		else
			ReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		ErrorData  *edata = dgen_subxact_abort(old, owner);

		if (must_rethrow(edata->sqlerrcode))
			ReThrowError(edata);
		error = dgen_error_copy(edata);
	}
	PG_END_TRY();
	MemoryContextSwitchTo(old);
	CurrentResourceOwner = owner;
	if (due)
		report_server(m, address, outcome, error);
}

static void
migrate_one(Migration *m, char *address)
{
	Outcome    *outcome = palloc0(sizeof(Outcome));

	CHECK_FOR_INTERRUPTS();
	if (m->trap)
		try_server(m, address, outcome);
	else if (migrate_server(m, address, outcome))
		report_server(m, address, outcome, NULL);
	dgen_waitpoint_reach("dgen-migrate");
}

/* Go through the servers behind m->after; memory is that of one chunk. */
static void
migrate_servers(Migration *m)
{
	MemoryContext chunk = AllocSetContextCreate(CurrentMemoryContext, "dgen migration",
												ALLOCSET_DEFAULT_SIZES);
	MemoryContext one = AllocSetContextCreate(chunk, "dgen migration of a server",
											  ALLOCSET_DEFAULT_SIZES);
	MemoryContext old = MemoryContextSwitchTo(chunk);
	int64		n;

	do
	{
		char	  **addresses = palloc(CHUNK * sizeof(char *));

		n = find_due(m, Min(CHUNK, m->limit), addresses);
		for (int64 i = 0; i < n; i++)
		{
			MemoryContextSwitchTo(one);
			migrate_one(m, addresses[i]);
			strlcpy(m->after, addresses[i], sizeof(m->after));
			MemoryContextSwitchTo(chunk);
			MemoryContextReset(one);
		}
		m->limit -= n;
		MemoryContextResetOnly(chunk);
	} while (n > 0 && m->limit > 0);
	MemoryContextSwitchTo(old);
	MemoryContextDelete(chunk);
}

/* ---------------------------------------------------------------- dgen.migrate */

/* The module of the first argument, which the caller may operate and which can be migrated. */
static DgenModule *
module_argument(FunctionCallInfo fcinfo)
{
	char	   *name = dgen_arg_text(fcinfo, 0);
	DgenModule *module;

	if (name == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("name of a module must not be null")));
	dgen_check_writable();
	if (dgen_scope != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_DGEN_BAD_DIRECTIVE),
				 errmsg("servers cannot be migrated in a handler"),
				 errhint("Do it from a client; each server is migrated before its next activation anyway.")));
	module = dgen_module_get(name, false);
	dgen_module_check_operate(module);
	if (module->vsn == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("module \"%s\" has no vsn", module->name),
				 errdetail("A server is migrated when its module's vsn is not that of its state."),
				 errhint("Run SELECT dgen.alter_module(%s, vsn => ...).", quote_literal_cstr(module->name))));
	return module;
}

/*
 * Was the module suspended before this transaction began, so that no worker
 * can have an activation of it but those that hold leases?
 */
static bool
is_standing_still(DgenModule *module)
{
	DgenModuleRow row;

	return dgen_module_row_read(module->name, &row) && !row.nulls[MODULE_SUSPENDED_AT] &&
		DatumGetTimestampTz(row.values[MODULE_SUSPENDED_AT]) < GetCurrentTransactionStartTimestamp();
}

static void
check_leases(Migration *m, int64 total)
{
	if (m->dry_run || total <= MAX_LEASES)
		return;
	/* nobody resumes it before we end */
	dgen_module_lock(m->module->name);
	if (!is_standing_still(m->module))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_IN_USE),
				 errmsg("cannot migrate all servers of module \"%s\" in one transaction while it runs",
						m->module->name),
				 errdetail(INT64_FORMAT " servers are to be migrated; the leases of no more than %d can be held.",
						   total, MAX_LEASES),
				 errhint("Run SELECT dgen.suspend(module => %s) and commit that before; or migrate in steps, by CALL dgen.migrate_all(%s) or max_servers.",
						 quote_literal_cstr(m->module->name), quote_literal_cstr(m->module->name))));
	m->keep_leases = false;
}

/* Count, then migrate; what is in progress is shown meanwhile. */
static void
run_migration(Migration *m)
{
	int64		total;

	CommandCounterIncrement();
	dgen_module_hold(m->module);
	PG_TRY();
	{
		dgen_progress_begin(DGEN_COMMAND_MIGRATE, m->module, false);
		total = find_due(m, m->limit, NULL);
		check_leases(m, total);
		dgen_progress_total(total, m->dry_run);
		migrate_servers(m);
	}
	PG_FINALLY();
	{
		dgen_progress_end();
		dgen_module_release(m->module);
	}
	PG_END_TRY();
}

static int64
limit_argument(FunctionCallInfo fcinfo, int argno, const char *name, int64 otherwise, int64 max)
{
	int64		n;

	if (PG_ARGISNULL(argno))
		return otherwise;
	n = PG_GETARG_INT64(argno);
	if (n < 1 || n > max)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("invalid value for argument %s", name),
				 errdetail("Its value is " INT64_FORMAT ".", n),
				 errhint("Allowed are 1 to " INT64_FORMAT ".", max)));
	return n;
}

/*
 * migrate(module text, dry_run boolean, max_servers bigint) -> setof (server,
 * old_vsn, version, error): one row a server.  Without dry_run the first
 * error is raised, and nothing is migrated.
 */
Datum
dgen_migrate(PG_FUNCTION_ARGS)
{
	Migration	m = {0};

	m.module = module_argument(fcinfo);
	m.dry_run = m.trap = !PG_ARGISNULL(1) && PG_GETARG_BOOL(1);
	m.keep_leases = !m.dry_run;
	m.limit = limit_argument(fcinfo, 2, "max_servers", PG_INT64_MAX, PG_INT64_MAX);
	snprintf(m.after, sizeof(m.after), "%s/", m.module->name);
	InitMaterializedSRF(fcinfo, 0);
	m.report = (ReturnSetInfo *) fcinfo->resultinfo;
	run_migration(&m);
	return (Datum) 0;
}

/* ---------------------------------------------------------------- migrate_all */

/* One transaction's worth; false: there is no more. */
static bool
migrate_chunk(Migration *m, const char *name, int64 batch)
{
	char		before[DGEN_MAX_ADDRESS + 1];

	/* modules and their rights may have changed with each transaction */
	m->module = dgen_module_get(name, false);
	dgen_module_check_operate(m->module);
	m->limit = batch;
	strlcpy(before, m->after, sizeof(before));
	CommandCounterIncrement();
	dgen_module_hold(m->module);
	PG_TRY();
	{
		migrate_servers(m);
	}
	PG_FINALLY();
	{
		dgen_module_release(m->module);
	}
	PG_END_TRY();
	return strcmp(before, m->after) != 0;
}

static void
check_can_commit(FunctionCallInfo fcinfo)
{
	if (fcinfo->context == NULL || !IsA(fcinfo->context, CallContext) ||
		((CallContext *) fcinfo->context)->atomic)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_TRANSACTION_TERMINATION),
				 errmsg("dgen.migrate_all() cannot run inside a transaction block"),
				 errhint("Use dgen.migrate(), which migrates all servers in the caller's transaction.")));
}

static Datum
two_counts(FunctionCallInfo fcinfo, int64 migrated, int64 failed)
{
	TupleDesc	desc;
	Datum		values[2] = {Int64GetDatum(migrated), Int64GetDatum(failed)};
	bool		nulls[2] = {false};

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	return HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc), values, nulls));
}

/*
 * CALL migrate_all(module text, batch bigint, INOUT migrated, INOUT failed):
 * a transaction for each batch of servers; one that fails is left as it is.
 */
Datum
dgen_migrate_all(PG_FUNCTION_ARGS)
{
	Migration	m = {0};
	char	   *name;
	int64		batch;

	check_can_commit(fcinfo);
	m.module = module_argument(fcinfo);
	batch = limit_argument(fcinfo, 1, "batch", MAX_LEASES, MAX_LEASES);
	m.trap = m.keep_leases = true;
	m.limit = PG_INT64_MAX;
	name = pstrdup(m.module->name);
	snprintf(m.after, sizeof(m.after), "%s/", name);
	SPI_connect_ext(SPI_OPT_NONATOMIC);
	PG_TRY();
	{
		dgen_progress_begin(DGEN_COMMAND_MIGRATE, m.module, true);
		dgen_progress_total(find_due(&m, m.limit, NULL), false);
		while (migrate_chunk(&m, name, batch))
			SPI_commit();
	}
	PG_FINALLY();
	{
		dgen_progress_end();
	}
	PG_END_TRY();
	SPI_finish();
	return two_counts(fcinfo, m.migrated, m.failed);
}
