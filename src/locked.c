/*-------------------------------------------------------------------------
 *
 * locked.c
 *	  A worker does the work for which a server was locked: handle_locked.
 *
 *	  begin		a transaction that reads, under the server's lease, which message
 *				and which state the work is for
 *	  run		CALL handle_locked, outside of any transaction of ours, so that it
 *				may COMMIT and take as long as work_timeout allows
 *	  finish	a transaction that, under the lease again, writes the state,
 *				deletes the message, gives the reply and ends the lock
 *
 * handle_locked runs under a portal as a client's CALL does, since that is
 * what makes COMMIT work inside.  What it leaves in the session is undone
 * after it.  Its scope outlives its transactions.
 *
 * One at a time for a server: by its entry in the queue, and by a
 * session-level lock in the advisory space, class 0xD8, that goes with the
 * process.  (It is a hint like the queue: pg_advisory_unlock_all() lets it go.)
 * What counts is that finish compares lock_id and lock_token.
 *
 * While it runs, messages of high priority may change the state.  Then what
 * handle_locked has changed is merged into what there is now: its result is
 * a patch of what it was given (jsonb_patch.c).
 *
 * If it fails, that is recorded as a message's failure is (failure.c).  The
 * server stays locked until the next attempt has succeeded, or the message is
 * a dead letter.
 *
 * Runs in workers of a pool for long work.  Locks: the session-level lock,
 * then the lease.
 *
 *-------------------------------------------------------------------------
 */
#include "stat.h"

#include "access/skey.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "common/pg_prng.h"
#include "parser/parser.h"
#include "pgstat.h"
#include "storage/lmgr.h"
#include "storage/proc.h"
#include "tcop/pquery.h"
#include "tcop/tcopprot.h"
#include "utils/datum.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/portal.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "worker.h"

#define WORK_LOCK_CLASS 0xD8
#define NARGS 4
#define NRESULTS 2

/* one piece of work; what is not of a transaction is in mcxt */
typedef struct Work
{
	int			pool;
	DgenTaken  *taken;
	int32		module_id;
	DgenModule *module;			/* held while the work runs */
	bool		more;			/* look again at once */
	TimestampTz park_until;
	MemoryContext mcxt;
	DgenMessage *msg;
	int64		token;
	int64		version;		/* of the state that it is given */
	char	   *vsn;			/* of the code that this state is for, or NULL */
	Jsonb	   *state;
	int			timeout_ms;
	char	   *statement;		/* CALL ... */
	char	   *kind;
	DgenResultField columns[NRESULTS];	/* of what CALL returns */
	int			ncolumns;
	DgenScope	scope;
	Jsonb	   *results[NRESULTS];
	TimestampTz began_at;
	double		run_ms;			/* how long the procedure ran */
} Work;

/* receives the one row that CALL returns */
typedef struct RowReceiver
{
	DestReceiver pub;
	Work	   *work;
} RowReceiver;

static Work *current = NULL;	/* for the exit of the process */

static void
work_tag(LOCKTAG *tag, int64 hash)
{
	SET_LOCKTAG_ADVISORY(*tag, MyDatabaseId, (uint32) ((uint64) hash >> 32), (uint32) hash,
						 WORK_LOCK_CLASS);
}

static bool
take_work_lock(int64 hash)
{
	LOCKTAG		tag;

	work_tag(&tag, hash);
	return LockAcquire(&tag, ExclusiveLock, true, true) != LOCKACQUIRE_NOT_AVAIL;
}

static void
release_work_lock(int64 hash)
{
	LOCKTAG		tag;

	work_tag(&tag, hash);
	if (LockHeldByMeExactly(&tag, ExclusiveLock))
		LockRelease(&tag, ExclusiveLock, true);
}

/* ---------------------------------------------------------------- limits */

/* What else of the module runs here, in our own transactions, has handler_timeout. */
static void
arm_callbacks(DgenModule *module)
{
	dgen_worker_forget_interrupt();
	dgen_worker_arm(module->handler_timeout, false);
}

static void
disarm_callbacks(void)
{
	dgen_worker_disarm();
	/* it may have trapped the cancel */
	if (dgen_worker_interrupted() == DGEN_INTERRUPT_TIMEOUT)
		ereport(ERROR,
				(errcode(ERRCODE_QUERY_CANCELED),
				 errmsg("canceling statement due to timeout")));
}

/* A cancel of theirs is told as what it was. */
static void
tell_timeout(DgenError *error)
{
	if (error->sqlerrcode == ERRCODE_QUERY_CANCELED &&
		dgen_worker_interrupted() == DGEN_INTERRUPT_TIMEOUT)
	{
		error->sqlerrcode = ERRCODE_DGEN_HANDLER_TIMEOUT;
		error->message = pstrdup("callback ran longer than handler_timeout");
		error->detail = pstrdup("It ran before handle_locked, or on the state that this returned.");
	}
	dgen_worker_forget_interrupt();
}

/* ---------------------------------------------------------------- begin */

/*
 * The locked server that the entry stands for, read under its lease; NULL if
 * there is none any more.  Its messages tell its address.
 */
static DgenServer *
find_locked(Work *w, DgenTable *messages, DgenTable *servers)
{
	DgenServer *server = NULL;
	ScanKeyData key;
	DgenScan   *scan;
	HeapTuple	tuple;

	dgen_key_int8(&key, 1, w->taken->hash, BTEqualStrategyNumber);
	scan = dgen_scan_begin(messages, DGEN_I_MESSAGE_MAILBOX, NULL, 1, &key);
	while ((tuple = dgen_scan_next(scan)) != NULL)
	{
		bool		isnull;
		char	   *address = TextDatumGetCString(heap_getattr(tuple, 9,
															   RelationGetDescr(messages->rel),
															   &isnull));

		CHECK_FOR_INTERRUPTS();
		if (server != NULL && strcmp(server->address, address) == 0)
			continue;
		server = dgen_server_read(servers, address, w->taken->hash, NULL);
		if (server->lock_id != 0)
			break;
	}
	dgen_scan_end(scan);
	return server != NULL && server->lock_id != 0 ? server : NULL;
}

/* What CALL returns, in its order. */
static void
learn_results(Work *w, DgenCallback *cb)
{
	w->ncolumns = Min(cb->nresults, NRESULTS);
	for (int i = 0; i < w->ncolumns; i++)
		w->columns[i] = cb->results[i];
}

static const char *
kind_word(char kind)
{
	switch (kind)
	{
		case DGEN_KIND_CAST:
			return "cast";
		case DGEN_KIND_REQUEST:
		case DGEN_KIND_CALL:
			return "call";
		case DGEN_KIND_CONTINUE:
			return "continue";
		default:
			return "info";
	}
}

/* Copy all that the work needs beyond this transaction. */
static void
plan_work(Work *w, DgenModule *module, DgenServer *server)
{
	DgenCallback *cb;
	MemoryContext old;

	cb = dgen_module_callback(module, DGEN_HANDLE_LOCKED);
	dgen_module_hold(module);
	w->module = module;
	old = MemoryContextSwitchTo(w->mcxt);
	w->version = server->version;
	w->vsn = server->vsn ? pstrdup(server->vsn) : NULL;
	w->state = dgen_json_null();
	if (server->state != NULL)
	{
		w->state = palloc(VARSIZE(server->state));
		memcpy(w->state, server->state, VARSIZE(server->state));
	}
	w->timeout_ms = module->work_timeout;
	w->kind = pstrdup(kind_word(w->msg->kind));
	w->statement = psprintf("CALL %s($1, $2, $3, $4)",
							quote_qualified_identifier(get_namespace_name(get_func_namespace(cb->function)),
													   get_func_name(cb->function)));
	learn_results(w, cb);
	w->scope.module = module;
	w->scope.server = w->msg->server;
	w->scope.hash = w->msg->hash;
	w->scope.incarnation = server->incarnation;
	w->scope.kind = w->kind;
	w->scope.callback = DGEN_HANDLE_LOCKED;
	w->scope.autonomous = true;
	w->scope.sender = w->msg->sender;
	w->scope.sender_role = w->msg->sender_role;
	w->scope.message_vsn = w->msg->vsn;
	w->scope.context = w->msg->context;
	MemoryContextSwitchTo(old);
}

/* Read the message into w->mcxt; false if it is gone. */
static bool
read_message(Work *w, DgenTable *messages, DgenServer *server)
{
	MemoryContext old = MemoryContextSwitchTo(w->mcxt);
	bool		found;

	w->msg = palloc0(sizeof(DgenMessage));
	found = dgen_lock_message(messages, server, w->msg);
	MemoryContextSwitchTo(old);
	return found;
}

/* A batch as failure.c wants it. */
static Batch *
stand_in(Work *w, BatchItem *item)
{
	static Batch b;
	static BatchLease lease;

	memset(&lease, 0, sizeof(lease));
	memset(item, 0, sizeof(BatchItem));
	item->msg = w->msg;
	b.module_id = w->module_id;
	b.mcxt = w->mcxt;
	b.lock_token = w->token;
	b.leases = &lease;
	b.nleases = 0;
	b.error = NULL;
	return &b;
}

/* May the work be done now?  If not, says when to look again. */
static bool
is_due(Work *w, DgenModule *module, DgenServer *server)
{
	DgenDatabase *db = dgen_database(MyDatabaseId, false);
	TimestampTz next_at;

	/* who resumes rings the server's own pool, which rings this one */
	if (module->suspended || server->suspended)
		return false;
	if (!dgen_enabled || db == NULL || !pg_atomic_read_u32(&db->armed))
	{
		w->park_until = GetCurrentTimestamp() + INT64CONST(1000000);
		return false;
	}
	next_at = dgen_attempt_next(w->msg->id);
	if (next_at > GetCurrentTimestamp())
	{
		w->park_until = next_at;
		return false;
	}
	/* its worker was lost: that is an attempt, counted before the next one */
	if (dgen_hand_suspect(MyDatabaseId, w->msg->id))
	{
		BatchItem	item;
		Batch	   *b = stand_in(w, &item);

		b->lock_token = server->lock_token;
		dgen_failure_accuse(b, &item);
		w->more = true;
		return false;
	}
	return true;
}

/* The work is done by the code of now: so is the state that it is given. */
static void
migrate(DgenModule *module, DgenTable *servers, DgenServer *server)
{
	DgenActivation act = {0};

	if (!dgen_migration_due(module, server))
		return;
	act.module = module;
	act.server = server;
	act.identity = DGEN_AS_WORKER;
	act.kind = "code_change";
	arm_callbacks(module);
	dgen_migrate_server(&act);
	disarm_callbacks();
	dgen_server_write(servers, server, NULL);
}

/* Is there work?  Then w says which. */
static bool
begin_in_transaction(Work *w)
{
	DgenModule *module = dgen_module_by_id(w->module_id);
	DgenTable  *messages;
	DgenTable  *servers;
	DgenServer *server;
	bool		begun = false;

	if (module != NULL && module->suspended)
		module = dgen_module_reread(module);
	if (module == NULL)
		return false;
	if (!dgen_lease_take(w->taken->hash, false))
	{
		w->park_until = GetCurrentTimestamp() + (INT64CONST(1000) << Min(w->taken->deferrals++, 6));
		return false;
	}
	w->taken->deferrals = 0;
	PushActiveSnapshot(GetTransactionSnapshot());
	messages = dgen_table_open(DGEN_T_MESSAGE, RowExclusiveLock);
	servers = dgen_table_open(DGEN_T_SERVER, RowExclusiveLock);
	server = find_locked(w, messages, servers);
	if (server != NULL && !read_message(w, messages, server))
	{
		/* somebody deleted the row by hand */
		dgen_lock_end(server);
		dgen_server_write(servers, server, NULL);
		dgen_ring_at_end(module, server->hash);
	}
	else if (server != NULL && is_due(w, module, server))
	{
		strlcpy(dgen_my_slot->server, server->address, sizeof(dgen_my_slot->server));
		/* with it a failure can be counted */
		w->token = server->lock_token;
		migrate(module, servers, server);
		plan_work(w, module, server);
		begun = true;
	}
	dgen_table_close(messages);
	dgen_table_close(servers);
	PopActiveSnapshot();
	return begun;
}

/* ---------------------------------------------------------------- run */

static void
receiver_startup(DestReceiver *self, int operation, TupleDesc typeinfo)
{
}

static bool
receive_row(TupleTableSlot *slot, DestReceiver *self)
{
	Work	   *w = ((RowReceiver *) self)->work;
	MemoryContext old = MemoryContextSwitchTo(w->mcxt);

	slot_getallattrs(slot);
	for (int i = 0; i < Min(w->ncolumns, slot->tts_tupleDescriptor->natts); i++)
	{
		if (slot->tts_isnull[i] && w->columns[i] == DGEN_RESULT_STATE)
			dgen_handler_refuse_null(w->module, DGEN_HANDLE_LOCKED);
		w->results[i] = slot->tts_isnull[i] ? dgen_json_null() :
			(Jsonb *) PG_DETOAST_DATUM_COPY(slot->tts_values[i]);
	}
	MemoryContextSwitchTo(old);
	return true;
}

static void
receiver_shutdown(DestReceiver *self)
{
}

/* kind, message, state, reply */
static ParamListInfo
make_params(Work *w)
{
	ParamListInfo params = makeParamList(NARGS);
	static const Oid types[NARGS] = {TEXTOID, JSONBOID, JSONBOID, JSONBOID};

	for (int i = 0; i < NARGS; i++)
	{
		params->params[i].isnull = i == 3;
		params->params[i].pflags = PARAM_FLAG_CONST;
		params->params[i].ptype = types[i];
	}
	params->params[0].value = CStringGetTextDatum(w->kind);
	params->params[1].value = JsonbPGetDatum(w->msg->message);
	params->params[2].value = JsonbPGetDatum(w->state);
	params->params[3].value = (Datum) 0;
	return params;
}

/*
 * CALL as a client would send it.  Parsed and planned anew each time: the
 * work takes longer.
 */
static void
call_procedure(Work *w)
{
	static const Oid types[NARGS] = {TEXTOID, JSONBOID, JSONBOID, JSONBOID};
	RowReceiver receiver = {{receive_row, receiver_startup, receiver_shutdown, receiver_shutdown, DestNone}, w};
	Portal		portal;
	List	   *plans;

	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	MemoryContextSwitchTo(w->mcxt);
	debug_query_string = w->statement;
	PushActiveSnapshot(GetTransactionSnapshot());
	plans = pg_plan_queries(pg_analyze_and_rewrite_fixedparams(linitial_node(RawStmt, pg_parse_query(w->statement)),
															   w->statement, types, NARGS, NULL),
							w->statement, 0, NULL);
	PopActiveSnapshot();

	portal = CreatePortal("", true, true);
	portal->visible = false;
	PortalDefineQuery(portal, NULL, w->statement, CMDTAG_CALL, plans, NULL);
	PortalStart(portal, make_params(w), 0, InvalidSnapshot);
	(void) DgenPortalRun(portal, (DestReceiver *) &receiver);
	PortalDrop(portal, false);
	CommitTransactionCommand();
	debug_query_string = NULL;
}

/* What the timer or an operator has to do with it, whatever it made of the error. */
static void
check_interrupted(Work *w)
{
	DgenInterrupt why = dgen_worker_interrupted();

	if (why == DGEN_INTERRUPT_TIMEOUT)
		ereport(ERROR,
				(errcode(ERRCODE_DGEN_HANDLER_TIMEOUT),
				 errmsg("handle_locked ran longer than work_timeout"),
				 errdetail("work_timeout of the module is %d ms. What it had committed stays.",
						   w->timeout_ms),
				 errhint("Make it faster, or raise work_timeout by dgen.alter_module().")));
	if (why == DGEN_INTERRUPT_CALLER)
		ereport(ERROR,
				(errcode(ERRCODE_DGEN_WORKER_LOST),
				 errmsg("handle_locked was aborted"),
				 errdetail("An operator did so by dgen.abort(). What it had committed stays."),
				 errhint("It is tried again, until its attempts are used up; dgen.discard(%lld) gives the message up.",
						 (long long) w->msg->id)));
}

static void
run_guarded(Work *w)
{
	dgen_hand_take(w->msg->id);
	dgen_worker_set_call(w->msg->id, DGEN_NONE);
	dgen_worker_forget_interrupt();
	dgen_worker_arm(w->timeout_ms, false);
	call_procedure(w);
	dgen_worker_disarm();
	if (w->ncolumns > 0 && w->results[0] == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_DATATYPE_MISMATCH),
				 errmsg("handle_locked of server \"%s\" returned no row", w->msg->server)));
}

/* ---------------------------------------------------------------- finish */

static Jsonb *
result_of(Work *w, DgenResultField field)
{
	for (int i = 0; i < w->ncolumns; i++)
	{
		if (w->columns[i] == field)
			return w->results[i];
	}
	return NULL;
}

/*
 * The result is a state as the code was when the work began.  If code_change
 * has made another one of it meanwhile, changes of the old do not fit.
 */
static void
check_vsn(Work *w, DgenModule *module, DgenServer *server)
{
	if (!module->callbacks[DGEN_CODE_CHANGE].present ||
		(server->vsn == NULL ? w->vsn == NULL :
		 w->vsn != NULL && strcmp(server->vsn, w->vsn) == 0))
		return;
	ereport(ERROR,
			(errcode(ERRCODE_DGEN_VERSION_MISMATCH),
			 errmsg("server \"%s\" was migrated while handle_locked ran", server->address),
			 errdetail("Its state is of vsn \"%s\" now; the work began with one of vsn \"%s\".",
					   server->vsn ? server->vsn : "", w->vsn ? w->vsn : ""),
			 errhint("The work is done again, as after any error.")));
}

/*
 * The state that the work makes of the present one.  If nobody has changed
 * that meanwhile it is simply the result, else the result's changes go on top.
 */
static Jsonb *
merge_state(Work *w, DgenServer *server)
{
	Jsonb	   *result = result_of(w, DGEN_RESULT_STATE);

	if (result == NULL)
		return server->state;
	if (server->version == w->version || server->state == NULL)
		return result;
	return dgen_jsonb_rebase(w->state, result, server->state);
}

static void
give_reply(Work *w, DgenModule *module)
{
	Jsonb	   *reply = result_of(w, DGEN_RESULT_REPLY);

	if (reply == NULL)
		reply = dgen_json_null();
	dgen_reply_to(module, w->msg, reply);
}

static void
write_result(Work *w, DgenModule *module, DgenTable *servers, DgenServer *server)
{
	DgenActivation act = {0};
	BatchItem	item;
	Batch	   *b = stand_in(w, &item);
	Jsonb	   *state;
	bool		known;

	act.module = module;
	act.server = server;
	act.identity = DGEN_AS_WORKER;
	act.kind = w->kind;
	check_vsn(w, module, server);
	state = merge_state(w, server);
	if (state != server->state)
	{
		arm_callbacks(module);
		dgen_activation_set_state(&act, state);
		disarm_callbacks();
	}
	give_reply(w, module);
	b->attempts = dgen_table_open(DGEN_T_ATTEMPT, RowExclusiveLock);
	dgen_failure_forget(b, server, w->msg->id);
	dgen_table_close(b->attempts);
	dgen_lock_end(server);
	dgen_server_write(servers, server, NULL);
	dgen_length_add(w->msg->hash, -1, &known);
	dgen_ring_at_end(module, w->msg->hash);
	dgen_stat_handled(module->id, w->msg->kind, w->msg->server, w->taken->hash, w->run_ms,
					  dgen_stat_queued(w->msg->kind, w->msg->sent_at, w->began_at));
}

/*
 * Hand in the result, in a transaction of the module's isolation level whose
 * snapshot is taken under the lease.
 */
static void
finish_in_transaction(Work *w)
{
	DgenModule *module = dgen_module_by_id(w->module_id);
	DgenTable  *messages;
	DgenTable  *servers;
	DgenServer *server;

	if (module == NULL)
		return;
	XactIsoLevel = module->isolation;
	(void) dgen_lease_take(w->taken->hash, true);
	dgen_module_hold(module);
	PushActiveSnapshot(GetTransactionSnapshot());
	messages = dgen_table_open(DGEN_T_MESSAGE, RowExclusiveLock);
	servers = dgen_table_open(DGEN_T_SERVER, RowExclusiveLock);
	server = dgen_server_read(servers, w->msg->server, w->taken->hash, NULL);
	if (server->lock_id == w->msg->id && server->lock_token == w->token)
	{
		if (dgen_table_delete(messages, &w->msg->tid) != TM_Ok)
			ereport(ERROR,
					(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
					 errmsg("could not serialize access due to concurrent update"),
					 errdetail("Message %lld is being deleted.", (long long) w->msg->id)));
		write_result(w, module, servers, server);
	}
	else
		ereport(LOG,
				(errcode(ERRCODE_DGEN_STALE_TOKEN),
				 errmsg("result of handle_locked of server \"%s\" is refused", w->msg->server),
				 errdetail("Its lock was broken while it ran.")));
	dgen_table_close(messages);
	dgen_table_close(servers);
	PopActiveSnapshot();
	dgen_module_release(module);
	dgen_waitpoint_reach("dgen-before-finish");
}

/* ---------------------------------------------------------------- the whole */

/* Runs one step in a transaction of its own; NULL, or the error that undid it. */
typedef bool (*Step) (Work *w);

static bool
step_begin(Work *w)
{
	bool		begun;

	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	XactReadOnly = false;
	XactIsoLevel = XACT_READ_COMMITTED;
	begun = begin_in_transaction(w);
	CommitTransactionCommand();
	return begun;
}

static bool
step_run(Work *w)
{
	dgen_worker_prepare_session(w->module_id);
	run_guarded(w);
	return true;
}

static bool
step_finish(Work *w)
{
	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	XactReadOnly = false;
	finish_in_transaction(w);
	CommitTransactionCommand();
	return true;
}

/* The error is copied to w->mcxt; no transaction is left. */
static bool
guard(Work *w, Step step, DgenError **error)
{
	volatile bool result = false;

	*error = NULL;
	PG_TRY();
	{
		result = step(w);
	}
	PG_CATCH();
	{
		ErrorData  *edata;

		HOLD_INTERRUPTS();
		dgen_worker_disarm();
		MemoryContextSwitchTo(w->mcxt);
		edata = CopyErrorData();
		FlushErrorState();
		AbortOutOfAnyTransaction();
		MemoryContextSwitchTo(w->mcxt);
		debug_query_string = NULL;
		/* cursors that a COMMIT inside has kept */
		PortalErrorCleanup();
		*error = dgen_error_copy(edata);
		dgen_worker_note_error((*error)->sqlerrcode);
		if (step != step_run)
			tell_timeout(*error);
		QueryCancelPending = false;
		RESUME_INTERRUPTS();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(w->mcxt);
	return result;
}

/* An interrupt of ours is told as what it was, whatever error it has become. */
static bool
step_interrupted(Work *w)
{
	check_interrupted(w);
	return true;
}

static void
run_work(Work *w, DgenError **error)
{
	DgenError  *told;

	pgstat_report_activity(STATE_RUNNING, psprintf("dgen: %s handle_locked", w->msg->server));
	dgen_activity_begin(w->msg->server, DGEN_HANDLE_LOCKED);
	dgen_activity_next(w->msg->kind, w->msg->id, DGEN_NONE, GetCurrentTimestamp());
	dgen_scope_base(&w->scope);
	w->began_at = GetCurrentTimestamp();
	(void) guard(w, step_run, error);
	w->run_ms = (GetCurrentTimestamp() - w->began_at) / 1000.0;
	dgen_log_duration(w->msg->server, DGEN_HANDLE_LOCKED, w->msg->id, w->run_ms, *error != NULL);
	dgen_scope_base(NULL);
	dgen_worker_set_call(0, DGEN_NONE);
	dgen_hand_clear();
	/* that lets go of session-level locks, ours too */
	dgen_worker_clean_session();
	(void) take_work_lock(w->taken->hash);
	if (*error != NULL)
	{
		(void) guard(w, step_interrupted, &told);
		if (told != NULL)
			*error = told;
	}
	dgen_worker_forget_interrupt();
}

/* Hand in the result; conflicts are tried again, the work is not. */
static void
finish_work(Work *w, DgenError **error)
{
	static uint32 wait_event = 0;

	if (wait_event == 0)
		wait_event = WaitEventExtensionNew("DgenConflict");
	dgen_activity_commit();
	for (int conflicts = 0;; conflicts++)
	{
		(void) guard(w, step_finish, error);
		if (*error == NULL || conflicts == DGEN_MAX_CONFLICTS ||
			dgen_error_fault((*error)->sqlerrcode) != DGEN_FAULT_CONFLICT)
			return;
		dgen_my_slot->conflicts++;
		dgen_stat_now(w->module_id, DGEN_STAT_CONFLICTS);
		(void) WaitLatch(MyLatch, WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 (long) (pg_prng_uint32(&pg_global_prng_state) % Min(2 << conflicts, 50)),
						 wait_event);
		CHECK_FOR_INTERRUPTS();
	}
}

static void
fail_work(Work *w, DgenError *error)
{
	BatchItem	item;
	Batch	   *b = stand_in(w, &item);

	b->error = error;
	b->nleases = 1;
	b->leases[0].more = true;
	dgen_failure_record(b, &item);
	w->more = b->leases[0].more;
	w->park_until = b->leases[0].park_until;
}

static void
do_work(Work *w)
{
	DgenError  *error;

	if (!guard(w, step_begin, &error))
	{
		if (error == NULL)
			return;
		ereport(LOG,
				(errcode(error->sqlerrcode),
				 errmsg("dgen worker could not begin the work of a locked server: %s", error->message)));
		/* without its message nothing can be counted */
		if (w->msg == NULL || w->token == 0)
			w->park_until = GetCurrentTimestamp() + INT64CONST(1000000);
		else
			fail_work(w, error);
		return;
	}
	run_work(w, &error);
	if (error == NULL)
		finish_work(w, &error);
	dgen_activity_end();
	if (error != NULL)
		fail_work(w, error);
	else
	{
		dgen_my_slot->activations++;
		dgen_breaker_success(MyDatabaseId, w->module_id, GetCurrentTimestamp());
	}
	dgen_my_slot->batches++;
}

/* Serve what was taken from the queue of long work under a negative module id. */
void
dgen_locked_serve(int pool, DgenTaken *taken, int32 module_id)
{
	static Work work;
	Work	   *w = &work;
	MemoryContext old = CurrentMemoryContext;

	memset(w, 0, sizeof(Work));
	w->pool = pool;
	w->taken = taken;
	w->module_id = module_id;
	/* from here on the exit of the worker gives back what it has taken */
	current = w;
	w->mcxt = AllocSetContextCreate(TopMemoryContext, "dgen locked work", ALLOCSET_DEFAULT_SIZES);
	MemoryContextSwitchTo(w->mcxt);
	if (take_work_lock(taken->hash))
	{
		do_work(w);
		release_work_lock(taken->hash);
	}
	else
		w->park_until = GetCurrentTimestamp() + INT64CONST(100000);
	current = NULL;
	if (w->module != NULL)
		dgen_module_release(w->module);
	dgen_ready_give_back(pool, taken, w->more, w->park_until);
	MemoryContextSwitchTo(old);
	MemoryContextDelete(w->mcxt);
}

/* The worker leaves in the middle: the next one counts that as an attempt. */
void
dgen_locked_at_exit(bool sent_away)
{
	if (current == NULL)
		return;
	if (pg_atomic_read_u64(&dgen_my_slot->current_call) != 0 && !sent_away)
		dgen_hand_suspect_add(MyDatabaseId, current->msg->id);
	dgen_ready_give_back(current->pool, current->taken, true, 0);
	current = NULL;
}
