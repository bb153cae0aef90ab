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

#include "commands/trigger.h"
#include "utils/memutils.h"

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
	if (same_jsonb(server->state, state))
		return;
	server->state = state;
	server->dirty = true;
	server->state_changed = true;
	check_state_size(act->module, server, old_size);
	validate_state(act);
	dgen_attributes_update(act->module, server, act->identity);
}

static void
fill_scope(DgenActivation *act, DgenScope *scope)
{
	memset(scope, 0, sizeof(DgenScope));
	scope->module = act->module;
	scope->server = act->server->address;
	scope->hash = act->server->hash;
	scope->incarnation = act->server->incarnation;
	scope->kind = act->kind;
	scope->call = act->call;
	scope->request_id = act->request_id;
	scope->sender = act->sender;
	scope->sender_role = act->sender_role;
	scope->message_vsn = act->message_vsn;
	scope->context = act->context;
}

/*
 * Begin a new incarnation: run init, or start from {}.  args NULL: JSON null,
 * as for a server that its first message brings to life.
 */
void
dgen_activation_start(DgenActivation *act, Jsonb *args)
{
	DgenServer *server = act->server;
	Jsonb	   *state;

	if (act->module->vsn != NULL)
		dgen_migration_module(act);
	server->active = true;
	server->erased = false;
	server->incarnation++;
	server->started_at = GetCurrentTimestamp();
	server->stop_reason = NULL;
	server->tombstone_until = 0;
	server->vsn = act->module->vsn ?
		MemoryContextStrdup(GetMemoryChunkContext(server), act->module->vsn) : NULL;
	server->dirty = true;
	if (act->module->callbacks[DGEN_INIT].present || act->module->callbacks[DGEN_INIT].fault)
	{
		DgenScope	scope;
		DgenResult	result;
		NullableDatum arg;

		fill_scope(act, &scope);
		scope.kind = "init";
		scope.call = NULL;
		scope.request_id = 0;
		arg.value = JsonbPGetDatum(args ? args : dgen_json_null());
		arg.isnull = false;
		dgen_handler_run(&scope, DGEN_INIT, act->identity, 1, &arg, &result);
		state = result.has_state ? result.state : dgen_json_null();
		act->timeout = result.timeout;
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
}

/* End an incarnation, keeping its state or not as the module has it. */
void
dgen_activation_stop(DgenModule *module, DgenServer *server, const char *reason)
{
	server->active = false;
	server->stop_reason = pstrdup(reason);
	server->dirty = true;
	dgen_timeout_stop(server);
	if (!module->ephemeral)
		dgen_timer_stop(server, module->delete_on_stop);
	if (module->delete_on_stop || module->ephemeral)
	{
		server->state = NULL;
		dgen_attributes_update(module, server, DGEN_AS_OWNER);
	}
	if (module->delete_on_stop && !server->suspended && !server->failing)
		server->erased = true;
}

/*
 * Run an activation; see dgen.h.
 */
void
dgen_activation_run(DgenActivation *act)
{
	DgenServer *server = act->server;
	DgenModule *module = act->module;
	DgenScope	scope;
	DgenResult	result;
	NullableDatum args[2];

	act->outcome = DGEN_HANDLED;
	if (!server->active)
	{
		if (server->tombstone_until > GetCurrentTimestamp() || !module->auto_start)
		{
			act->outcome = DGEN_NO_SERVER;
			return;
		}
		dgen_activation_start(act, NULL);
	}
	else if (module->vsn != NULL)
	{
		dgen_migration_module(act);
		dgen_migrate_server(act);
	}
	module = act->module;

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

	fill_scope(act, &scope);
	args[0].value = JsonbPGetDatum(act->message);
	args[0].isnull = false;
	args[1].value = JsonbPGetDatum(server->state ? server->state : dgen_json_null());
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
	if (result.has_state)
		dgen_activation_set_state(act, result.state);
	else
		server->read = true;
	/* any message makes a timeout lapse, also one that init has set just now */
	act->timeout = result.timeout;
	act->replied = !result.noreply;
	act->reply = result.reply ? result.reply : dgen_json_null();
	if (result.exit != NULL)
	{
		act->exited = true;
		act->reason = result.exit;
		dgen_activation_stop(module, server, result.exit);
	}
	else if (DGEN_USES_TIMEOUT(act))
		dgen_timeout_settle(act);
}
