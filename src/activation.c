/*-------------------------------------------------------------------------
 *
 * activation.c
 *	  One activation: a message or a call meets its server.
 *
 * Shared by workers (batch.c), invoke and drain.  The caller holds the
 * server's lease and has read its row; the server changes in memory only, and
 * the caller writes it.  An activation that raises leaves the DgenServer in
 * an undefined state: the transaction that contains it must abort.
 *
 *-------------------------------------------------------------------------
 */
#include "dgen.h"

#include "access/xact.h"
#include "commands/trigger.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

#define STATE_WARN_SIZE (1024 * 1024)

static bool
same_jsonb(const Jsonb *a, const Jsonb *b)
{
	return a != NULL && b != NULL && VARSIZE(a) == VARSIZE(b) &&
		memcmp(a, b, VARSIZE(a)) == 0;
}

static void
check_state_size(DgenModule *module, DgenServer *server, Size old_size)
{
	Size		size = VARSIZE(server->state);

	if (size > module->max_state_size)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("state of server \"%s\" is too large", server->address),
				 errdetail("It has %zu bytes; max_state_size is " INT64_FORMAT ".",
						   size, module->max_state_size),
				 errhint("Keep large data in a table, or raise the limit by dgen.alter_module('%s', max_state_size => ...).",
						 module->name)));
	if (size > STATE_WARN_SIZE && old_size <= STATE_WARN_SIZE)
		ereport(WARNING,
				(errmsg("state of server \"%s\" has grown beyond 1 MB", server->address),
				 errdetail("It has %zu bytes.", size),
				 errhint("Keep large data in a table of your own.")));
}

static void
validate_state(DgenActivation *act)
{
	DgenServer *server = act->server;
	DgenScope	scope = {0};
	DgenResult	result;
	NullableDatum arg;

	if (!act->module->callbacks[DGEN_VALIDATE].present &&
		!act->module->callbacks[DGEN_VALIDATE].fault)
		return;
	scope.module = act->module;
	scope.server = server->address;
	scope.hash = server->hash;
	scope.kind = "validate";
	arg.value = JsonbPGetDatum(server->state);
	arg.isnull = false;
	dgen_handler_run(&scope, DGEN_VALIDATE, act->identity, 1, &arg, &result);
	if (result.is_null || !DatumGetBool(result.value))
		ereport(ERROR,
				(errcode(ERRCODE_DGEN_INVALID_STATE),
				 errmsg("new state of server \"%s\" is not valid", server->address),
				 errdetail("Callback validate of module \"%s\" returned %s.",
						   act->module->name, result.is_null ? "null" : "false"),
				 errhint("The state is as it was before. Try the message by dgen.try().")));
}

/*
 * A new state: checked by size and by the module's validate.  server->state
 * changes; the row is the caller's to write.  Attributes are written here, so
 * that a value that is not unique fails this activation.
 */
void
dgen_activation_set_state(DgenActivation *act, Jsonb *state)
{
	DgenServer *server = act->server;
	Size		old_size = server->state ? VARSIZE(server->state) : 0;

	server->read = true;
	state = dgen_ephemeral_split(act->module, server, state);
	if (same_jsonb(server->state, state))
		return;
	dgen_history_note(act, act->kind);
	server->state = state;
	server->dirty = true;
	server->state_changed = true;
	check_state_size(act->module, server, old_size);
	validate_state(act);
	dgen_attributes_update(act->module, server, act->identity);
	/* who postpones waits for somebody else's change; a machine for that of its state_name */
	if (server->postponed > 0 && !act->postponed && !act->module->machine)
		dgen_postponed_replay(act->module, server);
}

void
dgen_activation_scope(DgenActivation *act, DgenScope *scope)
{
	memset(scope, 0, sizeof(DgenScope));
	scope->module = act->module;
	scope->server = act->server->address;
	scope->hash = act->server->hash;
	scope->incarnation = act->server->incarnation;
	scope->row = act->server;
	scope->state_name = act->module->machine ? act->server->state_name : NULL;
	scope->kind = act->kind;
	scope->call = act->call;
	scope->request_id = act->request_id;
	scope->sender = act->sender;
	scope->sender_role = act->sender_role;
	scope->message_vsn = act->message_vsn;
	scope->context = act->context;
	/* whoever waits for the caller waits for what it calls, too */
	if (act->call != NULL && act->call->deadline != DT_NOEND)
		scope->deadline = act->call->deadline;
	else if (dgen_scope != NULL)
		scope->deadline = dgen_scope->deadline;
}

/*
 * Begin a new incarnation: run init, or start from {}.  args NULL: JSON null,
 * as for a server that its first message brings to life.  What init goes on
 * with is in act->continue_with.
 */
static void
begin_incarnation(DgenActivation *act, Jsonb *args)
{
	DgenServer *server = act->server;
	DgenResult	result = {0};
	Jsonb	   *state;

	if (act->module->vsn != NULL)
		dgen_migration_module(act);
	server->active = true;
	server->erased = false;
	server->incarnation++;
	server->started_at = GetCurrentTimestamp();
	server->stop_reason = NULL;
	server->tombstone_until = 0;
	server->crashes = 0;
	server->vsn = act->module->vsn ?
		MemoryContextStrdup(GetMemoryChunkContext(server), act->module->vsn) : NULL;
	server->dirty = true;
	server->state_name = NULL;
	/* without init a server begins with {}; a machine has to be told its state */
	if (act->module->callbacks[DGEN_INIT].present || act->module->callbacks[DGEN_INIT].fault ||
		act->module->machine)
	{
		DgenScope	scope;
		NullableDatum arg;

		dgen_activation_scope(act, &scope);
		scope.kind = "init";
		scope.call = NULL;
		scope.request_id = 0;
		arg.value = JsonbPGetDatum(args ? args : dgen_json_null());
		arg.isnull = false;
		dgen_handler_run(&scope, DGEN_INIT, act->identity, 1, &arg, &result);
		state = result.has_state ? result.state : dgen_json_null();
		act->timeout = result.timeout;
		act->continue_with = result.continue_with;
	}
	else
	{
		JsonbParseState *parse = NULL;

		pushJsonbValue(&parse, WJB_BEGIN_OBJECT, NULL);
		state = JsonbValueToJsonb(pushJsonbValue(&parse, WJB_END_OBJECT, NULL));
	}
	/* a state that happens to equal the last incarnation's is new all the same */
	server->state = NULL;
	dgen_activation_set_state(act, state);
	if (server->cause != NULL)
		server->cause->kind = "init";
	if (act->module->machine)
		dgen_machine_begin(act, &result);
}

/* Begin a new incarnation without init, with the state that the server has. */
void
dgen_activation_resume(DgenModule *module, DgenServer *server)
{
	server->active = true;
	server->erased = false;
	server->incarnation++;
	server->started_at = GetCurrentTimestamp();
	server->stop_reason = NULL;
	server->tombstone_until = 0;
	server->crashes = 0;
	server->dirty = true;
}

/* ---------------------------------------------------------------- continue */

/*
 * The activation goes on in another one, which comes before all else that the
 * server is to handle: a message of its own, whose id is in the server's row.
 */
static void
send_continue(DgenActivation *act)
{
	DgenServer *server = act->server;
	DgenAddress to;
	DgenMessage msg;

	if (act->continue_with == NULL || !server->active)
		return;
	dgen_address_parse(server->address, strlen(server->address), &to);
	dgen_message_init(&msg, &to, DGEN_KIND_CONTINUE, act->continue_with);
	msg.sender = server->address;
	msg.sender_role = act->module->owner_name;
	msg.vsn = act->module->vsn;
	msg.context = act->context;
	msg.priority = 1;
	msg.incarnation = server->incarnation;
	dgen_mailbox_check_size(act->module, &msg);
	dgen_mailbox_append(act->module, &msg);
	server->continue_id = msg.id;
	server->ahead = true;
	server->dirty = true;
}

/* Begin an incarnation by itself, as dgen.start() does. */
void
dgen_activation_start(DgenActivation *act, Jsonb *args)
{
	begin_incarnation(act, args);
	send_continue(act);
}

static void run_callback(DgenActivation *act);

/* What is to be done under a lock would be for no message of its own. */
static void
refuse_lock_at_start(DgenServer *server)
{
	ereport(ERROR,
			(errcode(ERRCODE_DGEN_BAD_DIRECTIVE),
			 errmsg("server \"%s\" cannot be locked", server->address),
			 errdetail("Its handle_continue runs in the activation of the message that brings it to life."),
			 errhint("Start it by dgen.start(%s), whose continue is a message of its own, or lock it in the handler of a message.",
					 quote_literal_cstr(server->address))));
}

/*
 * The callback that is about to be called may be newer than the state, also
 * than one that init has made a moment ago.
 */
static void
catch_up(DgenActivation *act)
{
	if (act->module->vsn == NULL)
		return;
	dgen_migration_module(act);
	dgen_migrate_server(act);
}

/*
 * A message brings its server to life: init, what that goes on with, and the
 * message are one activation.  Where the server ends on the way the message
 * has none.
 */
static void
begin_for_message(DgenActivation *act)
{
	begin_incarnation(act, NULL);
	/* a machine may end as it enters its state */
	if (!act->server->active)
		act->outcome = DGEN_NO_SERVER;
	while (act->continue_with != NULL)
	{
		DgenActivation next = *act;

		CHECK_FOR_INTERRUPTS();
		next.callback = DGEN_HANDLE_CONTINUE;
		next.kind = "continue";
		next.message = act->continue_with;
		next.continue_with = NULL;
		next.call = NULL;
		next.request_id = 0;
		CommandCounterIncrement();
		catch_up(&next);
		run_callback(&next);
		if (next.locked)
			refuse_lock_at_start(act->server);
		act->module = next.module;
		act->continue_with = next.continue_with;
		act->outcome = next.exited ? DGEN_NO_SERVER : next.outcome;
		act->reason = next.reason;
		act->retry_after = next.retry_after;
		if (act->outcome != DGEN_HANDLED)
			return;
	}
}

/* What a caller is told where the outcome is DGEN_NO_SERVER. */
void
dgen_no_server_error(DgenModule *module, DgenServer *server, DgenError *err)
{
	bool		stopped = server->stop_reason != NULL;

	memset(err, 0, sizeof(DgenError));
	err->sqlerrcode = stopped ? ERRCODE_DGEN_STOPPED : ERRCODE_DGEN_NO_SERVER;
	err->message = stopped ? psprintf("server \"%s\" has stopped", server->address) :
		psprintf("server \"%s\" does not exist", server->address);
	err->detail = stopped ? psprintf("It stopped with reason \"%s\".", server->stop_reason) :
		server->tombstone_until > GetCurrentTimestamp() ?
		psprintf("It was deleted; its tombstone stands until %s.",
				 timestamptz_to_str(server->tombstone_until)) :
		psprintf("Module \"%s\" does not start servers by itself.", module->name);
	err->hint = server->supervised ?
		pstrdup("Its supervisor keeps it down: see dgen.children, and dgen.restart_child().") :
		psprintf("Start it by dgen.start('%s').", server->address);
}

/* ---------------------------------------------------------------- the end */

/* The one place where an incarnation ends; forget: its state and row go. */
static void
end_incarnation(DgenModule *module, DgenServer *server, const char *reason, bool forget)
{
	/* its supervisor wants it */
	forget = forget && !server->keep_state;
	dgen_lock_break(server, "The server was stopped.");
	/* the next incarnation, or nobody, is to handle them; their callers are told */
	dgen_postponed_replay(module, server);
	server->continue_id = 0;
	server->active = false;
	server->ephemeral = NULL;
	server->stop_reason = pstrdup(reason);
	server->dirty = true;
	dgen_timeout_stop(server);
	if (!module->ephemeral)
		dgen_timer_stop(server, forget);
	if (forget || (module->ephemeral && !server->keep_state))
	{
		server->state = NULL;
		dgen_attributes_update(module, server, DGEN_AS_OWNER);
	}
	if (forget && !server->suspended && !server->failing)
		server->erased = true;
	(void) dgen_ties_end(server, reason, false);
	if (server->supervised)
		dgen_supervisor_ended(module, server, reason);
}

/* The work is done by handle_locked, and needs a row to say so. */
static void
check_may_lock(DgenModule *module, DgenServer *server)
{
	(void) dgen_module_callback(module, DGEN_HANDLE_LOCKED);
	if (module->ephemeral)
		ereport(ERROR,
				(errcode(ERRCODE_DGEN_BAD_DIRECTIVE),
				 errmsg("server \"%s\" cannot be locked", server->address),
				 errdetail("Module \"%s\" is ephemeral: its servers keep no state.", module->name),
				 errhint("Use dgen.after_commit(), or a module that is not ephemeral.")));
}

static void
run_terminate(DgenModule *module, DgenServer *server, const char *reason)
{
	DgenActivation act = {.module = module,.server = server,.identity = DGEN_AS_OWNER};
	DgenScope	scope = {0};
	DgenResult	result;
	NullableDatum args[2];

	if (!module->callbacks[DGEN_TERMINATE].present && !module->callbacks[DGEN_TERMINATE].fault)
		return;
	scope.module = module;
	scope.server = server->address;
	scope.hash = server->hash;
	scope.incarnation = server->incarnation;
	scope.state_name = module->machine ? server->state_name : NULL;
	scope.kind = "terminate";

	/* it sees what the handler has done, or who held the lease before */
	CommandCounterIncrement();
	PushActiveSnapshot(GetTransactionSnapshot());
	dgen_module_hold(module);
	PG_TRY();
	{
		/* one that is stopped from outside may have a state of older code */
		dgen_migrate_server(&act);
		args[0].value = CStringGetTextDatum(reason);
		args[1].value = JsonbPGetDatum(dgen_ephemeral_join(server));
		args[0].isnull = args[1].isnull = false;
		dgen_handler_run(&scope, DGEN_TERMINATE, DGEN_AS_OWNER, 2, args, &result);
	}
	PG_FINALLY();
	{
		dgen_module_release(module);
	}
	PG_END_TRY();
	PopActiveSnapshot();
}

/*
 * End an incarnation in the ordinary way: terminate runs first.  What that
 * raises undoes what asked for the end.
 */
void
dgen_activation_stop(DgenModule *module, DgenServer *server, const char *reason)
{
	run_terminate(module, server, reason);
	end_incarnation(module, server, reason, module->delete_on_stop);
}

/* A server was idle for as long as its module allows: nothing of it stays. */
void
dgen_activation_expire(DgenModule *module, DgenServer *server)
{
	run_terminate(module, server, "expired");
	end_incarnation(module, server, "expired", true);
}

/* End an incarnation as exit(Pid, kill) does: no code of the module runs. */
void
dgen_activation_kill(DgenModule *module, DgenServer *server, const char *reason)
{
	end_incarnation(module, server, reason, module->delete_on_stop);
}

/* ---------------------------------------------------------------- running */

/* Show the server the message, and take what its callback says. */
static void
run_callback(DgenActivation *act)
{
	DgenServer *server = act->server;
	DgenModule *module = act->module;
	DgenScope	scope;
	DgenResult	result;
	NullableDatum args[2];
	int64		version;

	/* as in OTP, a server need not care for infos */
	if (act->callback == DGEN_HANDLE_INFO &&
		!module->callbacks[DGEN_HANDLE_INFO].present &&
		!module->callbacks[DGEN_HANDLE_INFO].fault)
	{
		act->timeout = NULL;
		if (DGEN_USES_TIMEOUT(act))
			dgen_timeout_settle(act);
		return;
	}

	dgen_history_settle(act);
	version = server->version;
	dgen_activation_scope(act, &scope);
	args[0].value = JsonbPGetDatum(act->message);
	args[0].isnull = false;
	args[1].value = JsonbPGetDatum(dgen_ephemeral_join(server));
	args[1].isnull = false;
	dgen_handler_run(&scope, act->callback, act->identity, 2, args, &result);

	if (result.reject != NULL || result.retry_after != NULL)
	{
		act->outcome = result.reject ? DGEN_REJECTED : DGEN_RETRY_LATER;
		act->reason = result.reject;
		act->retry_after = result.retry_after;
		return;
	}
	if (act->identity == DGEN_AS_WORKER)
		AfterTriggerFireDeferred();
	act->postponed = result.postpone;
	if (result.lock)
		check_may_lock(module, server);
	if (result.has_state)
		dgen_activation_set_state(act, result.state);
	else
		server->read = true;
	/* any message makes a timeout lapse, also one that init has set just now */
	act->timeout = result.timeout;
	act->locked = result.lock;
	act->replied = !result.noreply && !result.lock;
	act->reply = result.reply ? result.reply : dgen_json_null();
	dgen_history_succeeded(act, version);
	if (result.exit != NULL)
	{
		act->exited = true;
		act->reason = result.exit;
		dgen_activation_stop(module, server, result.exit);
		if (server->state == NULL)
			dgen_history_note(act, act->kind);
		if (act->identity == DGEN_AS_WORKER)
			AfterTriggerFireDeferred();
	}
	else if (DGEN_USES_TIMEOUT(act))
		dgen_timeout_settle(act);
	act->continue_with = result.continue_with;
}

static void
run_activation(DgenActivation *act)
{
	DgenServer *server = act->server;

	act->outcome = DGEN_HANDLED;
	if (!server->active)
	{
		if (server->tombstone_until > GetCurrentTimestamp() || !act->module->auto_start ||
			server->supervised)
		{
			act->outcome = DGEN_NO_SERVER;
			return;
		}
		begin_for_message(act);
		if (act->outcome != DGEN_HANDLED)
			return;
	}
	catch_up(act);
	if (act->module->machine)
	{
		dgen_machine_run(act);
		return;
	}
	run_callback(act);
	if (act->outcome == DGEN_HANDLED)
		send_continue(act);
}

/* Run an activation, and write what happened if that is traced. */
static void
run_traced(DgenActivation *act)
{
	/* the module may be another one then; what is traced is what was when it began */
	DgenTrace  *traces = act->module->traces;
	TimestampTz began;
	int64		version;

	if (traces == NULL)
	{
		run_activation(act);
		return;
	}
	began = GetCurrentTimestamp();
	version = dgen_trace_version(act->server);
	run_activation(act);
	dgen_trace_activation(traces, act, began, version);
}

/*
 * Run an activation; see dgen.h.
 */
void
dgen_activation_run(DgenActivation *act)
{
	if (dgen_statistics_any())
		dgen_statistics_activation(act, run_traced);
	else
		run_traced(act);
}
