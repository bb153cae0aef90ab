/*-------------------------------------------------------------------------
 *
 * effect.c
 *	  What a handler promises to do after its commit: dgen.after_commit().
 *
 * An effect is a message of kind 'e', inserted by the handler's transaction
 * and so there if and only if that commits.  Its hash is not that of its
 * server's address but of a stream of effects: it has a lease, a mark and an
 * order of its own, and however long it takes, it holds up neither its server
 * nor, since it is run by workers of a pool apart, any other.  In all else it
 * is a message: it is deleted in the transaction that runs it, fails, is tried
 * again and becomes a dead letter like any other (batch.c, failure.c).
 *
 * The function is kept by name, so that a dump can be restored.  It runs as
 * the module's owner; who names it must be that role, or may become it, since
 * a handler may run code of others (SECURITY DEFINER).
 *
 * Runs in backends and workers; takes no locks of its own.
 *
 *-------------------------------------------------------------------------
 */
#include "dgen.h"

#include "access/htup_details.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "utils/acl.h"
#include "utils/lsyscache.h"
#include "utils/regproc.h"
#include "utils/syscache.h"

#define EFFECT_HINT "Define it as CREATE FUNCTION name(args jsonb) or name(args jsonb, effect_id bigint)."

/* ---------------------------------------------------------------- streams */

char *
dgen_effects_of(const char *server)
{
	return psprintf("/%s", server);
}

int64
dgen_effects_hash(const char *server)
{
	char	   *name = dgen_effects_of(server);
	int64		hash = dgen_address_hash(name, strlen(name));

	pfree(name);
	return hash;
}

bool
dgen_is_effects(const char *name)
{
	return name[0] == '/';
}

const char *
dgen_server_of(const char *name)
{
	return dgen_is_effects(name) ? name + 1 : name;
}

/* ---------------------------------------------------------------- the function */

static void
refuse_function(Oid function, const char *detail)
{
	ereport(ERROR,
			(errcode(ERRCODE_WRONG_OBJECT_TYPE),
			 errmsg("function %s cannot be run after a commit", format_procedure(function)),
			 errdetail_internal("%s", detail),
			 errhint(EFFECT_HINT)));
}

/*
 * Raise an error unless the function is one that the module's owner may run
 * as an effect; how many arguments it takes.
 */
static int
check_function(DgenModule *module, Oid function)
{
	HeapTuple	tuple = SearchSysCache1(PROCOID, ObjectIdGetDatum(function));
	Form_pg_proc form;
	const char *fault = NULL;
	int			nargs;

	if (!HeapTupleIsValid(tuple))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_FUNCTION),
				 errmsg("function with OID %u does not exist", function),
				 errhint(EFFECT_HINT)));
	form = (Form_pg_proc) GETSTRUCT(tuple);
	nargs = form->pronargs;
	if (form->prokind != PROKIND_FUNCTION)
		fault = "It is not a plain function.";
	else if (form->proretset)
		fault = "It returns a set.";
	else if (nargs < 1 || nargs > 2 || form->proargtypes.values[0] != JSONBOID ||
			 (nargs == 2 && form->proargtypes.values[1] != INT8OID))
		fault = "It takes other arguments.";
	ReleaseSysCache(tuple);
	if (fault != NULL)
		refuse_function(function, fault);
	if (object_aclcheck(ProcedureRelationId, function, module->owner, ACL_EXECUTE) != ACLCHECK_OK)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied for function %s", format_procedure(function)),
				 errdetail("Effects run as the owner of module \"%s\", role \"%s\", who has no EXECUTE on it.",
						   module->name, module->owner_name),
				 errhint("Run GRANT EXECUTE ON FUNCTION %s TO %s.",
						 format_procedure_qualified(function),
						 quote_identifier(module->owner_name))));
	return nargs;
}

static JsonbValue *
string_value(JsonbValue *v, const char *s)
{
	v->type = jbvString;
	v->val.string.val = unconstify(char *, s);
	v->val.string.len = strlen(s);
	return v;
}

/* {"function": "mail.send(jsonb)", "args": ...} */
static Jsonb *
make_message(Oid function, Jsonb *args)
{
	JsonbParseState *parse = NULL;
	JsonbValue	v;

	pushJsonbValue(&parse, WJB_BEGIN_OBJECT, NULL);
	pushJsonbValue(&parse, WJB_KEY, string_value(&v, "function"));
	pushJsonbValue(&parse, WJB_VALUE, string_value(&v, format_procedure_qualified(function)));
	pushJsonbValue(&parse, WJB_KEY, string_value(&v, "args"));
	if (JB_ROOT_IS_SCALAR(args))
		JsonbExtractScalar(&args->root, &v);
	else
	{
		v.type = jbvBinary;
		v.val.binary.data = &args->root;
		v.val.binary.len = VARSIZE(args) - VARHDRSZ;
	}
	pushJsonbValue(&parse, WJB_VALUE, &v);
	return JsonbValueToJsonb(pushJsonbValue(&parse, WJB_END_OBJECT, NULL));
}

static JsonbValue *
message_field(Jsonb *message, const char *key, JsonbValue *v)
{
	if (!JB_ROOT_IS_OBJECT(message) ||
		getKeyJsonValueFromContainer(&message->root, key, strlen(key), v) == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("effect has no \"%s\"", key),
				 errhint("An effect is an object like {\"function\": \"mail.send(jsonb)\", \"args\": {}}.")));
	return v;
}

/* The function that an effect names, as it is now. */
static Oid
find_function(Jsonb *message)
{
	JsonbValue	v;

	if (message_field(message, "function", &v)->type != jbvString)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("\"function\" of an effect must be a string")));
	return DatumGetObjectId(DirectFunctionCall1(regprocedurein,
												CStringGetDatum(pnstrdup(v.val.string.val,
																		 v.val.string.len))));
}

/* ---------------------------------------------------------------- sending */

/* Effects run as the module's owner, so only he has any promised. */
void
dgen_check_may_promise(DgenModule *module, const char *hint)
{
	if (has_privs_of_role(GetUserId(), module->owner))
		return;
	ereport(ERROR,
			(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
			 errmsg("permission denied to promise an effect of module \"%s\"", module->name),
			 errdetail("Role \"%s\" is no member of the module's owner \"%s\", as whom the effect would run.",
					   GetUserNameFromId(GetUserId(), false), module->owner_name),
			 errhint("%s", hint)));
}

PG_FUNCTION_INFO_V1(dgen_after_commit);

/* after_commit(function regproc, args jsonb) -> bigint: the effect's id */
Datum
dgen_after_commit(PG_FUNCTION_ARGS)
{
	Jsonb	   *args = dgen_arg_jsonb(fcinfo, 1);
	DgenScope  *scope = dgen_scope;
	DgenModule *module;
	DgenAddress to;
	DgenMessage msg;

	if (PG_ARGISNULL(0))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("function of dgen.after_commit() must not be null")));
	if (scope == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_DGEN_BAD_DIRECTIVE),
				 errmsg("dgen.after_commit() can be used in a handler only"),
				 errdetail("No handler is running in this session."),
				 errhint("Send a message to a server, whose handler promises the effect.")));
	if (scope->readonly)
		ereport(ERROR,
				(errcode(ERRCODE_READ_ONLY_SQL_TRANSACTION),
				 errmsg("%s cannot have effects", dgen_callback_name(scope->callback)),
				 errhint("Use dgen.after_commit() in handle_call, handle_cast or handle_info.")));
	dgen_check_writable();
	module = scope->module;
	dgen_check_may_promise(module, "Call dgen.after_commit() in the handler itself, not in a SECURITY DEFINER function of another role.");
	check_function(module, PG_GETARG_OID(0));

	dgen_address_parse(scope->server, strlen(scope->server), &to);
	dgen_message_init(&msg, &to, DGEN_KIND_EFFECT, make_message(PG_GETARG_OID(0), args));
	msg.hash = dgen_effects_hash(to.text);
	dgen_mailbox_send(module, &msg, 1);
	PG_RETURN_INT64(msg.id);
}

/* ---------------------------------------------------------------- running */

/*
 * Run an effect in the present transaction.  Raises what its function raises.
 */
void
dgen_effect_run(DgenActivation *act, DgenMessage *msg)
{
	Oid			function = find_function(msg->message);
	int			nargs = check_function(act->module, function);
	FmgrInfo	flinfo;
	DgenScope	scope = {0};
	DgenResult	result;
	NullableDatum args[2];
	JsonbValue	v;

	fmgr_info(function, &flinfo);
	args[0].value = JsonbPGetDatum(JsonbValueToJsonb(message_field(msg->message, "args", &v)));
	args[1].value = Int64GetDatum(msg->id);
	args[0].isnull = args[1].isnull = false;
	scope.module = act->module;
	scope.server = msg->server;
	scope.hash = msg->hash;
	scope.kind = "effect";
	scope.autonomous = true;
	scope.effect_id = msg->id;
	scope.sender = msg->sender;
	scope.sender_role = msg->sender_role;
	scope.message_vsn = msg->vsn;
	scope.context = msg->context;
	dgen_handler_effect(&scope, act->identity, &flinfo, nargs, args, &result);
	act->outcome = result.reject ? DGEN_REJECTED :
		result.retry_after ? DGEN_RETRY_LATER : DGEN_HANDLED;
	act->reason = result.reject;
	act->retry_after = result.retry_after;
	if (act->identity == DGEN_AS_WORKER && act->outcome == DGEN_HANDLED)
		AfterTriggerFireDeferred();
}
