/*-------------------------------------------------------------------------
 *
 * supervisor.c
 *	  Starting and ending the children of supervisors.
 *
 * A child that ends, by an error (crash.c), by exit, or by an operator's stop
 * or kill, is no longer active, and its row says whether it is to be restarted:
 * continue_id then is the id of its exit message, of kind 'x', which was
 * inserted in the transaction that ended it.  So an end is as durable as the
 * end itself, and whoever finds the server down (cut.c) has it restarted, in
 * the first place the worker that saw it end (supervisor_restart.c).  Until
 * then nothing of the server runs: its messages and calls wait.  A supervised
 * server without an incarnation and without an exit message is kept down: calls
 * are refused, messages wait.
 *
 * All of this is done under the lock of the tree and the leases of the servers,
 * but for the end of a child by itself, which has its lease only.
 *
 *-------------------------------------------------------------------------
 */
#include "supervisor.h"

#include "access/xact.h"
#include "utils/fmgrprotos.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/resowner.h"
#include "utils/snapmgr.h"
#include "worker.h"

/* ---------------------------------------------------------------- exit messages */

/* An exit message is neither cancelled nor discarded: its server would never live again. */
void
dgen_check_not_exit(const DgenMessage *msg)
{
	if (msg->kind != DGEN_KIND_EXIT)
		return;
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("message " INT64_FORMAT " cannot be taken away", msg->id),
			 errdetail("It tells the supervisor of server \"%s\" that it has ended.", msg->server),
			 errhint("Use dgen.terminate_child() to keep the server down.")));
}

/* Is it a child that waits for its restart, or is kept down? */
bool
dgen_server_is_down(const DgenServer *server)
{
	return server->supervised && !server->active;
}

/*
 * Must this message (NULL: a call) wait for the server's supervisor?  All must
 * while it is to be restarted; while it is kept down calls are told so.
 */
bool
dgen_supervisor_holds(const DgenServer *server, const DgenMessage *msg)
{
	return dgen_server_is_down(server) &&
		(server->continue_id != 0 || (msg != NULL && msg->kind != DGEN_KIND_CALL));
}

static void
push_string(JsonbParseState **parse, JsonbIteratorToken token, const char *s)
{
	JsonbValue	v;

	v.type = jbvString;
	v.val.string.val = unconstify(char *, s);
	v.val.string.len = strlen(s);
	pushJsonbValue(parse, token, &v);
}

/* {"info": "EXIT", "reason": ...}, for who looks into the mailbox */
static Jsonb *
exit_message(const char *reason)
{
	JsonbParseState *parse = NULL;

	pushJsonbValue(&parse, WJB_BEGIN_OBJECT, NULL);
	push_string(&parse, WJB_KEY, "info");
	push_string(&parse, WJB_VALUE, "EXIT");
	push_string(&parse, WJB_KEY, "reason");
	push_string(&parse, WJB_VALUE, reason);
	return JsonbValueToJsonb(pushJsonbValue(&parse, WJB_END_OBJECT, NULL));
}

/*
 * Insert the exit message of a server that has ended.  Not as a send: neither
 * a full mailbox nor accept may lose it.
 */
static void
send_exit(DgenModule *module, DgenServer *server, const char *reason)
{
	DgenAddress to;
	DgenMessage msg;

	dgen_address_parse(server->address, strlen(server->address), &to);
	dgen_message_init(&msg, &to, DGEN_KIND_EXIT, exit_message(reason));
	msg.priority = 1;
	dgen_mailbox_append(module, &msg);
	server->continue_id = msg.id;
	server->ahead = true;
}

/* Forget the exit message of a server that is about to live again, or to stay down. */
void
dgen_exit_drop(DgenServer *server)
{
	DgenTable  *table;
	ScanKeyData key;
	DgenScan   *scan;
	HeapTuple	tuple;
	ItemPointerData tid;
	bool		known;

	if (!dgen_server_is_down(server) || server->continue_id == 0)
		return;
	table = dgen_table_open(DGEN_T_MESSAGE, RowExclusiveLock);
	dgen_key_int8(&key, 1, server->continue_id, BTEqualStrategyNumber);
	scan = dgen_scan_begin(table, DGEN_I_PKEY, NULL, 1, &key);
	tuple = dgen_scan_next(scan);
	if (tuple != NULL)
		tid = tuple->t_self;
	dgen_scan_end(scan);
	if (tuple != NULL && dgen_table_delete_wait(table, &tid))
		dgen_length_add(server->hash, -1, &known);
	dgen_table_close(table);
	dgen_mailbox_forget_sent(server->continue_id);
	server->continue_id = 0;
	server->dirty = true;
	CommandCounterIncrement();
}

/* ---------------------------------------------------------------- ends */

/* Reasons that are no fault of a transient child. */
static bool
is_orderly(const char *reason)
{
	return strcmp(reason, "normal") == 0 || strcmp(reason, "shutdown") == 0 ||
		strncmp(reason, "shutdown:", strlen("shutdown:")) == 0;
}

/*
 * An incarnation of a child has ended, not by its supervisor: by an error, by
 * exit, or by an operator.  Its lease is held; its row is the caller's to
 * write.  The restart itself comes later, in a transaction of its own.
 */
void
dgen_supervisor_ended(DgenModule *module, DgenServer *server, const char *reason)
{
	DgenChild  *child = dgen_child_of_server(server->address);

	if (child == NULL || child->restart == DGEN_TEMPORARY)
	{
		if (child != NULL)
			dgen_child_delete(child);
		server->supervised = false;
		return;
	}
	server->erased = false;
	server->continue_id = 0;
	if (child->restart == DGEN_PERMANENT || !is_orderly(reason))
		send_exit(module, server, reason);
}

/* What an error means for the tree: is its SQLSTATE one that crashes the server? */
bool
dgen_supervisor_is_crash(const char *server, const char *sqlstate)
{
	DgenChild  *child = dgen_child_of_server(server);
	JsonbValue	v;

	if (child == NULL)
		return false;
	v.type = jbvString;
	v.val.string.val = unconstify(char *, sqlstate);
	v.val.string.len = strlen(sqlstate);
	return findJsonbValueFromContainer(&child->not_a_crash->root, JB_FARRAY, &v) == NULL;
}

/* ---------------------------------------------------------------- limits */

/* In a worker callbacks of the module have handler_timeout from here on, */
void
dgen_restart_arm(DgenModule *module)
{
	if (!dgen_is_worker() || dgen_batch_active())
		return;
	/* it may have been a timeout that led here */
	dgen_worker_forget_interrupt();
	dgen_worker_arm(module->handler_timeout, false);
}

/* to here. */
void
dgen_restart_disarm(void)
{
	if (!dgen_is_worker() || dgen_batch_active())
		return;
	dgen_worker_disarm();
	if (dgen_worker_interrupted() == DGEN_INTERRUPT_TIMEOUT)
	{
		dgen_worker_forget_interrupt();
		ereport(ERROR,
				(errcode(ERRCODE_DGEN_HANDLER_TIMEOUT),
				 errmsg("handler ran longer than handler_timeout")));
	}
}

/*
 * In a PG_CATCH, after the subtransaction: is it an error that is not about
 * the child, and must undo all that the tree has done so far?
 */
bool
dgen_restart_is_foreign(ErrorData *edata)
{
	bool		timeout = false;

	if (dgen_is_worker() && !dgen_batch_active())
	{
		dgen_worker_disarm();
		timeout = dgen_worker_interrupted() == DGEN_INTERRUPT_TIMEOUT;
		dgen_worker_forget_interrupt();
	}
	if (edata->sqlerrcode == ERRCODE_QUERY_CANCELED && timeout)
	{
		edata->sqlerrcode = ERRCODE_DGEN_HANDLER_TIMEOUT;
		edata->message = pstrdup("handler ran longer than handler_timeout");
		return false;
	}
	return edata->sqlerrcode == ERRCODE_QUERY_CANCELED ||
		dgen_error_fault(edata->sqlerrcode) == DGEN_FAULT_CONFLICT;
}

/* ---------------------------------------------------------------- children */

/* The module of a child; NULL: it is gone. */
DgenModule *
dgen_child_module(DgenChild *child, DgenAddress *address)
{
	dgen_address_parse(child->server, strlen(child->server), address);
	return dgen_module_get(address->module, true);
}

/* Does it have an incarnation, or run as a supervisor? */
bool
dgen_child_is_running(DgenChild *child)
{
	DgenSupervisor *sup;
	DgenTable  *table;
	DgenServer *server;

	if (child->server == NULL)
	{
		sup = dgen_supervisor_read(dgen_child_path(child));
		return sup != NULL && sup->status == DGEN_SUPERVISOR_RUNNING;
	}
	dgen_batch_flush();
	table = dgen_table_open(DGEN_T_SERVER, AccessShareLock);
	server = dgen_server_read(table, child->server,
							  dgen_address_hash(child->server, strlen(child->server)), NULL);
	dgen_table_close(table);
	return server->active;
}

/*
 * End the incarnation; where its terminate fails, without it.  server is what
 * it was before, if this raises.
 */
void
dgen_end_incarnation(DgenModule *module, DgenServer *server, const char *reason, bool keep_state)
{
	MemoryContext old = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	DgenServer	before = *server;

	dgen_module_hold(module);
	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(old);
	PG_TRY();
	{
		dgen_restart_arm(module);
		server->keep_state = keep_state;
		dgen_activation_stop(module, server, reason);
		dgen_restart_disarm();
		ReleaseCurrentSubTransaction();
		MemoryContextSwitchTo(old);
		CurrentResourceOwner = owner;
	}
	PG_CATCH();
	{
		ErrorData  *edata = dgen_subxact_abort(old, owner);

		*server = before;
		if (dgen_restart_is_foreign(edata))
		{
			dgen_module_release(module);
			ReThrowError(edata);
		}
		ereport(LOG,
				(errcode(edata->sqlerrcode),
				 errmsg("terminate of server \"%s\" failed: %s", server->address, edata->message)));
		server->keep_state = keep_state;
		dgen_activation_kill(module, server, reason);
	}
	PG_END_TRY();
	dgen_module_release(module);
	server->keep_state = false;
}

static void
end_server(DgenChild *child, const char *reason, bool keep_state)
{
	DgenAddress address;
	DgenModule *module = dgen_child_module(child, &address);
	DgenTable  *table;
	DgenServer *server;

	if (module == NULL)
		return;
	server = dgen_admin_open(module, &address, &table);
	dgen_exit_drop(server);
	if (server->active)
	{
		/* not an end that its supervisor is to be told of */
		server->supervised = false;
		PushActiveSnapshot(GetTransactionSnapshot());
		dgen_end_incarnation(module, server, reason, keep_state);
		PopActiveSnapshot();
		server->supervised = true;
		server->erased = false;
		server->dirty = true;
	}
	dgen_admin_close(table, server);
}

/* End a child, if it lives; and all below it, right to left. */
void
dgen_child_end(DgenChild *child, const char *reason, bool keep_state)
{
	DgenSupervisor *sup;

	if (child->server != NULL)
	{
		end_server(child, reason, keep_state);
		return;
	}
	sup = dgen_supervisor_read(dgen_child_path(child));
	if (sup != NULL)
		dgen_supervisor_end(sup, DGEN_SUPERVISOR_STOPPED, reason, keep_state);
}

/* Forget an ended child and all below it; its servers are like any others. */
static void
forget_child(DgenChild *child)
{
	DgenAddress address;
	DgenModule *module;
	DgenTable  *table;
	DgenServer *server;

	if (child->server == NULL)
	{
		DgenSupervisor *sup = dgen_supervisor_read(dgen_child_path(child));
		ListCell   *lc;

		foreach(lc, dgen_child_list(dgen_child_path(child)))
			forget_child(lfirst(lc));
		if (sup != NULL)
			dgen_supervisor_delete(sup);
	}
	else if ((module = dgen_child_module(child, &address)) != NULL)
	{
		server = dgen_admin_open(module, &address, &table);
		dgen_exit_drop(server);
		server->supervised = false;
		server->dirty = server->exists;
		dgen_server_erase_if_empty(server);
		dgen_admin_close(table, server);
	}
	dgen_child_delete(child);
}

/* End a child and take it out of the tree. */
void
dgen_child_remove(DgenChild *child, const char *reason)
{
	dgen_child_end(child, reason, false);
	forget_child(child);
}

/* Tell a child that it was restarted without init, if that was asked for, be its mailbox full. */
static void
send_on_restart(DgenModule *module, const DgenAddress *address, DgenChild *child)
{
	DgenMessage msg;

	if (child->on_restart == NULL)
		return;
	dgen_message_init(&msg, address, DGEN_KIND_INFO, child->on_restart);
	dgen_mailbox_append(module, &msg);
}

/*
 * Begin an incarnation: with the state that it has, an older one, or by init.
 * depth: of restarts one soon after the other, this is which; 0: no restart.
 */
static void
begin_incarnation(DgenModule *module, const DgenAddress *address, DgenServer *server,
				  DgenChild *child, int depth)
{
	bool		again = server->supervised;

	server->supervised = true;
	dgen_module_check_running(module);
	if (again && child->state == DGEN_STATE_LAST_GOOD && !dgen_restore_good(module, server, depth))
		server->state = NULL;
	if (!again || child->state == DGEN_STATE_INIT || server->state == NULL)
		dgen_admin_init(module, address, server, child->args);
	else
	{
		dgen_activation_resume(module, server);
		send_on_restart(module, address, child);
	}
}

/* Says whose start it was that failed. */
static void
start_error_context(void *arg)
{
	DgenChild  *child = arg;

	errcontext("start of child \"%s\" of supervisor \"%s\"", child->id, child->supervisor);
}

static void
start_server(DgenChild *child, int depth)
{
	DgenAddress address;
	DgenModule *module = dgen_child_module(child, &address);
	DgenTable  *table;
	DgenServer *server;
	ErrorContextCallback callback;

	callback.callback = start_error_context;
	callback.arg = child;
	callback.previous = error_context_stack;
	error_context_stack = &callback;

	if (module == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_DGEN_NO_MODULE),
				 errmsg("module \"%s\" does not exist", address.module),
				 errdetail("Server \"%s\" is child \"%s\" of supervisor \"%s\".",
						   child->server, child->id, child->supervisor),
				 errhint("Remove the child by dgen.delete_child().")));
	server = dgen_admin_open(module, &address, &table);
	dgen_exit_drop(server);
	if (server->active)
	{
		/* one that lives already is taken over as it is */
		server->dirty |= !server->supervised;
		server->supervised = true;
	}
	else
	{
		dgen_restart_arm(module);
		PushActiveSnapshot(GetTransactionSnapshot());
		begin_incarnation(module, &address, server, child, depth);
		PopActiveSnapshot();
		dgen_restart_disarm();
		server->dirty = true;
	}
	server->erased = false;
	dgen_admin_close(table, server);
	CommandCounterIncrement();
	error_context_stack = callback.previous;
}

/* Start a child that is down, and all below it, left to right. */
void
dgen_child_start(DgenChild *child, int depth)
{
	DgenSupervisor *sup;

	if (child->server != NULL)
		start_server(child, depth);
	else if ((sup = dgen_supervisor_read(dgen_child_path(child))) != NULL)
		dgen_supervisor_start(sup);
}

/* ---------------------------------------------------------------- supervisors */

/* Start a supervisor, and its children but those that an operator terminated. */
void
dgen_supervisor_start(DgenSupervisor *sup)
{
	ListCell   *lc;

	sup->status = DGEN_SUPERVISOR_RUNNING;
	sup->reason = NULL;
	sup->nrestarts = 0;
	sup->started_at = GetCurrentTimestamp();
	dgen_supervisor_write(sup);
	foreach(lc, dgen_child_list(sup->name))
	{
		DgenChild  *child = lfirst(lc);

		CHECK_FOR_INTERRUPTS();
		if (!child->terminated)
			dgen_child_start(child, 0);
	}
}

/* End those children, right to left; temporary ones go for good. */
void
dgen_children_end(List *children, const char *reason, bool keep_state)
{
	for (int i = list_length(children) - 1; i >= 0; i--)
	{
		DgenChild  *child = list_nth(children, i);

		CHECK_FOR_INTERRUPTS();
		if (child->restart == DGEN_TEMPORARY)
			dgen_child_remove(child, reason);
		else
			dgen_child_end(child, reason, keep_state);
	}
}

void
dgen_supervisor_end(DgenSupervisor *sup, DgenSupervisorStatus status, const char *reason,
					bool keep_state)
{
	dgen_children_end(dgen_child_list(sup->name), "shutdown", keep_state);
	/* one that has failed keeps saying why */
	if (status == DGEN_SUPERVISOR_STOPPED && sup->status == DGEN_SUPERVISOR_FAILED)
		return;
	sup->status = status;
	sup->reason = pstrdup(reason);
	sup->nrestarts = 0;
	dgen_supervisor_write(sup);
}

/* ---------------------------------------------------------------- leases */

/*
 * A worker does not wait for ever for a lease that an open transaction keeps:
 * it fails with 55P03, and tries again later.  Undone by AtEOXact_GUC().
 */
int
dgen_limit_waits(void)
{
	int			level = NewGUCNestLevel();

	(void) set_config_option("lock_timeout", "2s", PGC_USERSET, PGC_S_SESSION,
							 GUC_ACTION_SAVE, true, 0, false);
	return level;
}

static int
compare_hashes(const void *a, const void *b)
{
	int64		x = *(const int64 *) a;
	int64		y = *(const int64 *) b;

	return (x > y) - (x < y);
}

static void
collect_hashes(List *children, int64 **hashes, int *n, int *size)
{
	ListCell   *lc;

	check_stack_depth();
	foreach(lc, children)
	{
		DgenChild  *child = lfirst(lc);

		if (child->server == NULL)
		{
			collect_hashes(dgen_child_list(dgen_child_path(child)), hashes, n, size);
			continue;
		}
		if (*n == *size)
		{
			*size *= 2;
			*hashes = repalloc_huge(*hashes, (Size) *size * sizeof(int64));
		}
		(*hashes)[(*n)++] = dgen_address_hash(child->server, strlen(child->server));
	}
}

/* Take the leases of all servers of these children and below, in order, waiting. */
void
dgen_tree_take_leases(List *children)
{
	int			size = 64;
	int			n = 0;
	int64	   *hashes = palloc(size * sizeof(int64));

	collect_hashes(children, &hashes, &n, &size);
	qsort(hashes, n, sizeof(int64), compare_hashes);
	for (int i = 0; i < n; i++)
	{
		dgen_batch_touch(hashes[i]);
		(void) dgen_lease_take(hashes[i], true);
	}
	pfree(hashes);
}
