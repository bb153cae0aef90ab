/*-------------------------------------------------------------------------
 *
 * invoke.c
 *	  Activations in the caller's own transaction: invoke, a handler's call,
 *	  inline calls of tests, and query.
 *
 * An invoke takes the server's lease (waiting, so PostgreSQL's deadlock
 * detector sees it), reads the row as it is now, runs the handler as the
 * module's owner, and writes the row; all of it commits or rolls back with
 * the caller, or with a savepoint.  The lease is let go after the commit, and
 * the server is then rung for what its worker had to put off.
 *
 * It is no message: it overtakes other senders, but never its own, whose
 * earlier messages it handles first.
 *
 *-------------------------------------------------------------------------
 */
#include "stat.h"

#include "access/skey.h"
#include "access/xact.h"
#include "storage/proc.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/resowner.h"

/* ---------------------------------------------------------------- checks */

/*
 * A handler that is written for SERIALIZABLE does not run in less: SSI would
 * not see what it reads.
 */
void
dgen_check_isolation(DgenModule *module)
{
	static const char *const names[] = {
		"READ UNCOMMITTED", "READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"
	};

	if (module->invoke_any_isolation || XactIsoLevel >= module->isolation || dgen_in_dry_run)
		return;
	ereport(ERROR,
			(errcode(ERRCODE_INAPPROPRIATE_ISOLATION_LEVEL_FOR_BRANCH_TRANSACTION),
			 errmsg("transaction isolation is too weak for module \"%s\"", module->name),
			 errdetail("The transaction is %s; the module's handlers are written for %s.",
					   names[XactIsoLevel], names[module->isolation]),
			 errhint("BEGIN ISOLATION LEVEL %s, use dgen.call(), or allow it by dgen.alter_module('%s', invoke_isolation => 'any').",
					 names[module->isolation], module->name)));
}

/*
 * What is meant for tests runs handlers at whatever level a test has, and so
 * for those only who may operate the module anyway.  By the session's user,
 * too: within another module's handler the current one is that one's owner.
 */
void
dgen_check_test_isolation(DgenModule *module)
{
	if (!dgen_module_may_operate(module) &&
		!dgen_module_may_operate_as(module, GetSessionUserId()))
		dgen_check_isolation(module);
}

/* A server that calls itself, or up the chain of calls, would wait for itself. */
static void
check_cycle(const DgenAddress *to)
{
	StringInfoData chain;
	bool		cycle = false;

	for (DgenScope *scope = dgen_scope; scope != NULL; scope = scope->up)
	{
		if (strcmp(scope->server, to->text) == 0)
			cycle = true;
	}
	if (!cycle)
		return;
	initStringInfo(&chain);
	for (DgenScope *scope = dgen_scope; scope != NULL; scope = scope->up)
		appendStringInfo(&chain, "%s, called by ", scope->server);
	chain.data[chain.len - strlen(", called by ")] = '\0';
	ereport(ERROR,
			(errcode(ERRCODE_DGEN_CALL_CYCLE),
			 errmsg("server \"%s\" cannot be called from within its own handler", to->text),
			 errdetail("Running: %s.", chain.data),
			 errhint("Use dgen.cast(), which is handled afterwards.")));
}

static void
would_overtake(const DgenAddress *to, const char *problem, const char *hint)
{
	ereport(ERROR,
			(errcode(ERRCODE_DGEN_WOULD_OVERTAKE),
			 errmsg("invoke would overtake earlier messages of the same sender to server \"%s\"",
					to->text),
			 errdetail_internal("%s", problem),
			 errhint("%s", hint)));
}

static bool
is_text(Datum value, const char *s)
{
	char	   *its = TextDatumGetCString(value);
	bool		same = strcmp(its, s) == 0;

	pfree(its);
	return same;
}

/* An own message has come to the mailbox, or left it, since the snapshot. */
static void
check_mailbox_snapshot(const DgenAddress *to, bool is_there, bool was_there)
{
	if (is_there == was_there)
		return;
	ereport(ERROR,
			(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
			 errmsg("could not serialize access due to concurrent update"),
			 errdetail("A message of the same sender to server \"%s\" was %s after this transaction's snapshot was taken.",
					   to->text, is_there ? "sent" : "handled"),
			 errhint("The transaction might succeed if retried.")));
}

/*
 * The committed messages of a sender in a mailbox, in order of id.
 *
 * Where a snapshot holds for the whole transaction it must see these, and no
 * other.  One that was handled since had to come before this invoke; one that
 * was sent since is of an activation whose effects the transaction does not
 * see.  dgen_server_check_snapshot() notices neither if the activation left
 * its server's state as it was, nor need SSI find anything wrong.  So rows are
 * read that are there now, or are still there for somebody.
 */
static List *
own_messages(const DgenAddress *to, const char *sender)
{
	DgenTable  *table = dgen_table_open(DGEN_T_MESSAGE, RowExclusiveLock);
	bool		check = IsolationUsesXactSnapshot();
	List	   *own = NIL;
	SnapshotData all;
	ScanKeyData key;
	DgenScan   *scan;
	HeapTuple	tuple;

	/* what this transaction has handled is gone for its snapshot, too */
	if (check)
		CommandCounterIncrement();
	InitNonVacuumableSnapshot(all, GlobalVisTestFor(table->rel));
	dgen_key_int8(&key, 1, to->hash, BTEqualStrategyNumber);
	scan = dgen_scan_begin(table, DGEN_I_MESSAGE_MAILBOX, check ? &all : NULL, 1, &key);
	while ((tuple = dgen_scan_next(scan)) != NULL)
	{
		TupleDesc	desc = RelationGetDescr(table->rel);
		bool		is_there = !check || dgen_scan_visible(scan, SnapshotSelf);
		bool		was_there = check ? dgen_scan_visible(scan, GetTransactionSnapshot()) : is_there;
		bool		isnull;

		CHECK_FOR_INTERRUPTS();
		if ((!is_there && !was_there) ||
			!is_text(heap_getattr(tuple, 11, desc, &isnull), sender) ||
			!is_text(heap_getattr(tuple, 9, desc, &isnull), to->text))
			continue;
		check_mailbox_snapshot(to, is_there, was_there);
		own = lappend(own, palloc(sizeof(DgenMessage)));
		dgen_message_deform(tuple, desc, 0, llast(own));
	}
	dgen_scan_end(scan);
	dgen_table_close(table);
	list_sort(own, dgen_message_compare);
	return own;
}

/*
 * Handle the sender's earlier messages first, in this transaction; the lease
 * is held.  To wait for a worker to do it would invite deadlocks that nobody
 * sees: each of two servers waiting for its own message behind the other's
 * activation.  If one fails, it is the worker's to count, and the invoke
 * cannot be.
 */
static void
handle_in_subtransaction(DgenModule *module, const DgenAddress *to, List *own)
{
	MemoryContext old = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	ListCell   *lc;

	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(old);
	PG_TRY();
	{
		foreach(lc, own)
			(void) dgen_handle_now(module, lfirst(lc));
		ReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		ErrorData  *edata = dgen_subxact_abort(old, owner);

		if (edata->sqlerrcode == ERRCODE_QUERY_CANCELED ||
			dgen_error_fault(edata->sqlerrcode) == DGEN_FAULT_CONFLICT)
			ReThrowError(edata);
		dgen_batch_overtakes();
		would_overtake(to, psprintf("One of them failed: %s", edata->message),
					   "See dgen.messages; it is tried again, and may end as a dead letter.");
	}
	PG_END_TRY();
	MemoryContextSwitchTo(old);
	CurrentResourceOwner = owner;
}

/*
 * A message that backs off does not stand in an invoke's way, as it is another
 * sender's.  If it did, two servers that call each other could hold each
 * other up for ever.
 */
void
dgen_check_available(DgenServer *server)
{
	if (server->suspended)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("server \"%s\" is suspended", server->address),
				 errdetail("Suspended by %s.", server->suspended_by ? server->suspended_by : "nobody"),
				 errhint("Run dgen.resume('%s').", server->address)));
	dgen_lock_check_free(server);
	if (dgen_server_is_down(server))
		ereport(ERROR,
				(errcode(ERRCODE_DGEN_STOPPED),
				 errmsg("server \"%s\" has stopped", server->address),
				 errdetail("It stopped with reason \"%s\".",
						   server->stop_reason ? server->stop_reason : "unknown"),
				 server->continue_id != 0 ? errhint("Its supervisor is about to restart it: try again.") :
				 errhint("Its supervisor keeps it down: see dgen.children, and dgen.restart_child().")));
}

static void
handle_own_messages(DgenModule *module, const DgenAddress *to)
{
	DgenTable  *table;
	List	   *own;

	/* a session that never sent there need not look */
	if (dgen_scope == NULL && !dgen_mailbox_may_have_sent(to->hash))
		return;
	own = own_messages(to, dgen_scope ? dgen_scope->server : dgen_session_id());
	if (own == NIL)
		return;
	table = dgen_table_open(DGEN_T_SERVER, RowExclusiveLock);
	dgen_check_available(dgen_server_read(table, to->text, to->hash, NULL));
	dgen_table_close(table);
	handle_in_subtransaction(module, to, own);
}

/* ---------------------------------------------------------------- invoke */

/* What an invoke cannot give its caller. */
static void
check_outcome(DgenActivation *act, const DgenAddress *to)
{
	if (act->outcome == DGEN_NO_SERVER)
		ereport(ERROR,
				(errcode(act->server->stop_reason ? ERRCODE_DGEN_STOPPED : ERRCODE_DGEN_NO_SERVER),
				 act->server->stop_reason ? errmsg("server \"%s\" has stopped", to->text) :
				 errmsg("server \"%s\" does not exist", to->text),
				 errhint("Start it by dgen.start('%s').", to->text)));
	if (act->outcome == DGEN_REJECTED)
		ereport(ERROR,
				(errcode(ERRCODE_DGEN_REFUSED),
				 errmsg("server \"%s\" rejected the request: %s", to->text, act->reason)));
	if (act->postponed)
		ereport(ERROR,
				(errcode(ERRCODE_DGEN_BAD_DIRECTIVE),
				 errmsg("handler of server \"%s\" postponed the request", to->text),
				 errdetail("An invoke is answered at once: there is nothing that could wait."),
				 errhint("Use dgen.call() or dgen.send_request().")));
	if (act->locked)
		ereport(ERROR,
				(errcode(ERRCODE_DGEN_BAD_DIRECTIVE),
				 errmsg("server \"%s\" cannot be locked in an invoke", to->text),
				 errdetail("handle_locked runs after a commit, and an invoke is answered at once."),
				 errhint("Use dgen.call() or dgen.send_request().")));
	if (act->outcome != DGEN_HANDLED || !act->replied)
		ereport(ERROR,
				(errcode(ERRCODE_DGEN_BAD_DIRECTIVE),
				 errmsg("handler of server \"%s\" did not reply", to->text),
				 errdetail("An invoke is answered at once: noreply has nobody to reply to."),
				 errhint("Use dgen.call() or dgen.send_request().")));
}

static void
run_activation(DgenActivation *act, DgenMessage *msg)
{
	dgen_activation_run(act);
}

/* Read, run, write; the lease is held. */
static Jsonb *
activate(DgenModule *module, const DgenAddress *to, Jsonb *request)
{
	DgenTable  *table = dgen_table_open(DGEN_T_SERVER, RowExclusiveLock);
	DgenServer *server = dgen_batch_server(to->text);
	DgenActivation act = {0};

	/* only a batch keeps a server in memory beyond this call */
	if (server == NULL)
		server = dgen_server_read(table, to->text, to->hash, NULL);
	else
		dgen_server_save(server);
	dgen_server_check_snapshot(server);
	dgen_check_available(server);
	dgen_continue_now(module, table, server);

	act.module = module;
	act.server = server;
	act.identity = DGEN_AS_OWNER;
	act.callback = DGEN_HANDLE_CALL;
	act.kind = "call";
	act.message = request;
	act.sender_role = GetUserNameFromId(GetUserId(), false);
	act.sender = dgen_scope ? dgen_scope->server : dgen_session_id();
	act.message_vsn = dgen_scope ? dgen_scope->module->vsn : NULL;
	if (dgen_scope != NULL)
		act.context = dgen_scope->context;
	else if (dgen_context != NULL && dgen_context[0] != '\0')
		act.context = DatumGetJsonbP(DirectFunctionCall1(jsonb_in, CStringGetDatum(dgen_context)));
	if (module->ephemeral)
		server->active = false;
	dgen_stat_run(&act, NULL, run_activation);
	check_outcome(&act, to);
	/* calls that wait are not for its next life */
	if (act.exited)
		dgen_admin_remember(module, server->hash);

	dgen_batch_keep(server);
	if (module->ephemeral)
		server->dirty = server->state_changed = server->erased = false;
	dgen_server_settle(table, server, NULL);
	dgen_table_close(table);
	return act.reply;
}

/*
 * Call a server within this transaction.  inlined: dgen.inline stands in for
 * a call in tests, so isolation does not matter to operators, and messages sent
 * before are handled first.
 */
Jsonb *
dgen_invoke_call(const DgenAddress *to, Jsonb *request, bool inlined)
{
	DgenModule *module = dgen_module_get(to->module, false);
	Jsonb	   *reply;

	dgen_check_writable();
	check_cycle(to);
	if (module->external)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("server \"%s\" cannot be called in this transaction", to->text),
				 errdetail("Module \"%s\" is external: its messages are handled by other clients.",
						   module->name),
				 errhint("Use dgen.send_request() or dgen.cast(), or from a client dgen.call().")));
	dgen_module_check_send(module, DGEN_HANDLE_CALL);
	dgen_module_check_running(module);
	dgen_check_message(module, to, "call", request);
	dgen_check_tombstone(to);
	if (inlined)
	{
		dgen_check_test_isolation(module);
		CommandCounterIncrement();
		dgen_drain_server(to);
	}
	else
	{
		dgen_check_isolation(module);
		if (dgen_mailbox_sent_uncommitted(to->hash))
			would_overtake(to, "They are this transaction's, which has not committed.",
						   "COMMIT before it, so that they are handled first.");
	}

	dgen_batch_flush();
	dgen_batch_touch(to->hash);
	(void) dgen_lease_take(to->hash, true);
	if (dgen_batch_server(to->text) == NULL)
		dgen_ring_at_end(module, to->hash);
	if (!inlined)
		handle_own_messages(module, to);
	PushActiveSnapshot(GetTransactionSnapshot());
	reply = activate(module, to, request);
	PopActiveSnapshot();
	CommandCounterIncrement();
	return reply;
}

PG_FUNCTION_INFO_V1(dgen_invoke);

/* invoke(server text, request jsonb) -> jsonb */
Datum
dgen_invoke(PG_FUNCTION_ARGS)
{
	DgenAddress to;
	Jsonb	   *request = dgen_arg_jsonb(fcinfo, 1);

	dgen_address_arg(fcinfo, 0, &to);
	dgen_check_writable();
	dgen_check_enabled();
	PG_RETURN_JSONB_P(dgen_invoke_call(&to, request, dgen_inline));
}

/* ---------------------------------------------------------------- query */

PG_FUNCTION_INFO_V1(dgen_query);

/*
 * query(server text, query jsonb) -> jsonb: handle_query on the state that the
 * statement's snapshot sees; read only, never queued.
 */
Datum
dgen_query(PG_FUNCTION_ARGS)
{
	DgenAddress to;
	Jsonb	   *query = dgen_arg_jsonb(fcinfo, 1);
	DgenModule *module;
	DgenServer	server = {0};
	DgenScope	scope = {0};
	DgenResult	result;
	NullableDatum args[2];

	dgen_address_arg(fcinfo, 0, &to);
	module = dgen_module_get(to.module, false);
	dgen_module_check_send(module, DGEN_HANDLE_QUERY);
	(void) dgen_read_state(&to, &server);
	args[1].value = JsonbPGetDatum(dgen_migrated_state(module, &server));
	args[0].value = JsonbPGetDatum(query);
	args[0].isnull = args[1].isnull = false;
	scope.module = module;
	scope.server = to.text;
	scope.hash = to.hash;
	scope.state_name = module->machine ? server.state_name : NULL;
	scope.kind = "query";
	scope.sender_role = GetUserNameFromId(GetUserId(), false);
	dgen_handler_run(&scope, DGEN_HANDLE_QUERY, DGEN_AS_RESTRICTED, 2, args, &result);
	if (result.is_null)
		PG_RETURN_JSONB_P(dgen_json_null());
	PG_RETURN_DATUM(result.value);
}
