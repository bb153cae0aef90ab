/*-------------------------------------------------------------------------
 *
 * try.c
 *	  For the tests of users: dgen.try() runs one callback, undoes what it did,
 *	  and shows what it said.
 *
 * Runs in the caller's backend, as the module's owner, in a subtransaction that
 * is rolled back in any case.  No server is touched, and no lock is taken.
 *
 *-------------------------------------------------------------------------
 */
#include "dgen.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "utils/fmgrprotos.h"
#include "utils/resowner.h"

/* state: of the function in_<state> of a machine */
static DgenCallbackKind
callback_by_name(const char *name, const char **state)
{
	for (int i = 0; i < DGEN_NCALLBACKS; i++)
	{
		if (name != NULL && i != DGEN_STATE_EVENT && strcmp(dgen_callback_name(i), name) == 0)
			return i;
	}
	if (name != NULL && strncmp(name, "in_", strlen("in_")) == 0)
	{
		*state = name + strlen("in_");
		return DGEN_STATE_EVENT;
	}
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("there is no callback \"%s\"", name ? name : "null"),
			 errhint("Callbacks are init, handle_call, handle_cast, handle_info, handle_query and so on.")));
}

static void
push_field(JsonbParseState **parse, const char *key, JsonbValue *value)
{
	JsonbValue	k;

	k.type = jbvString;
	k.val.string.val = unconstify(char *, key);
	k.val.string.len = strlen(key);
	pushJsonbValue(parse, WJB_KEY, &k);
	pushJsonbValue(parse, WJB_VALUE, value);
}

static void
push_document(JsonbParseState **parse, const char *key, Jsonb *jb)
{
	JsonbValue	v;

	if (JB_ROOT_IS_SCALAR(jb))
		JsonbExtractScalar(&jb->root, &v);
	else
	{
		v.type = jbvBinary;
		v.val.binary.data = &jb->root;
		v.val.binary.len = VARSIZE(jb) - VARHDRSZ;
	}
	push_field(parse, key, &v);
}

static void
push_text(JsonbParseState **parse, const char *key, const char *text)
{
	JsonbValue	v;

	v.type = jbvString;
	v.val.string.val = unconstify(char *, text);
	v.val.string.len = strlen(text);
	push_field(parse, key, &v);
}

static char *
usecs_text(int64 usecs)
{
	Interval	span = {.time = usecs};

	return DatumGetCString(DirectFunctionCall1(interval_out, IntervalPGetDatum(&span)));
}

/* [{"state_timeout": "00:00:05", "event": ...}, {"next_event": ...}]; null: cancelled */
static void
push_actions(JsonbParseState **parse, List *actions)
{
	static const char *const names[] = {"next_event", "state_timeout", "event_timeout", "generic_timeout"};
	JsonbValue	key = {.type = jbvString};
	JsonbValue	null = {.type = jbvNull};
	ListCell   *lc;

	key.val.string.val = "actions";
	key.val.string.len = strlen("actions");
	pushJsonbValue(parse, WJB_KEY, &key);
	pushJsonbValue(parse, WJB_BEGIN_ARRAY, NULL);
	foreach(lc, actions)
	{
		DgenAction *action = lfirst(lc);

		pushJsonbValue(parse, WJB_BEGIN_OBJECT, NULL);
		if (action->kind == DGEN_NEXT_EVENT)
			push_document(parse, names[action->kind], action->event);
		else if (action->cancel)
			push_field(parse, names[action->kind], &null);
		else
			push_text(parse, names[action->kind], usecs_text(action->after));
		if (action->name != NULL)
			push_text(parse, "name", action->name);
		if (action->kind != DGEN_NEXT_EVENT && action->event != NULL)
			push_document(parse, "event", action->event);
		pushJsonbValue(parse, WJB_END_OBJECT, NULL);
	}
	pushJsonbValue(parse, WJB_END_ARRAY, NULL);
}

static Jsonb *
describe(DgenResult *result, DgenCallbackKind kind, DgenCallback *cb, bool machine)
{
	JsonbParseState *parse = NULL;
	JsonbValue	yes = {.type = jbvBool, .val.boolean = true};

	pushJsonbValue(&parse, WJB_BEGIN_OBJECT, NULL);
	if (result->has_state)
		push_document(&parse, machine ? "data" : "state", result->state);
	if (result->next_state)
		push_text(&parse, kind == DGEN_INIT ? "state_name" : "next_state", result->next_state);
	if (result->repeat_state)
		push_field(&parse, "repeat_state", &yes);
	if (result->has_reply)
		push_document(&parse, "reply", result->reply);
	if (result->noreply)
		push_field(&parse, "noreply", &yes);
	if (result->exit)
		push_text(&parse, "exit", result->exit);
	if (result->reject)
		push_text(&parse, "reject", result->reject);
	if (result->retry_after)
		push_text(&parse, "retry_after",
				  DatumGetCString(DirectFunctionCall1(interval_out,
													  IntervalPGetDatum(result->retry_after))));
	if (result->continue_with)
		push_document(&parse, "continue", result->continue_with);
	if (result->timeout)
		push_text(&parse, "timeout",
				  DatumGetCString(DirectFunctionCall1(interval_out,
													  IntervalPGetDatum(result->timeout))));
	if (result->postpone)
		push_field(&parse, "postpone", &yes);
	if (result->lock)
		push_field(&parse, "lock", &yes);
	if (result->actions != NIL)
		push_actions(&parse, result->actions);
	if (!cb->composite && cb->nresults == 1 && cb->results[0] == DGEN_RESULT_VALUE &&
		!result->is_null)
	{
		if (cb->result_types[0] == BOOLOID)
		{
			yes.val.boolean = DatumGetBool(result->value);
			push_field(&parse, "value", &yes);
		}
		else
			push_document(&parse, "value", DatumGetJsonbP(result->value));
	}
	return JsonbValueToJsonb(pushJsonbValue(&parse, WJB_END_OBJECT, NULL));
}

/* Arguments of a callback, as far as message and state can stand for them. */
static int
trial_args(DgenCallbackKind kind, Jsonb *message, Jsonb *state, NullableDatum *args)
{
	bool		only_state = kind == DGEN_VALIDATE || kind == DGEN_FORMAT_STATUS ||
		kind == DGEN_ATTRIBUTES;

	args[0].isnull = args[1].isnull = args[2].isnull = false;
	args[0].value = JsonbPGetDatum(only_state ? state : message);
	args[1].value = JsonbPGetDatum(state);
	if (kind == DGEN_ACCEPT)
	{
		args[0].value = CStringGetTextDatum("cast");
		args[1].value = JsonbPGetDatum(message);
	}
	else if (kind == DGEN_HANDLE_DEAD_LETTER)
	{
		args[1].value = Int32GetDatum(1);
		args[2].value = JsonbPGetDatum(dgen_json_null());
	}
	else if (kind == DGEN_TERMINATE || kind == DGEN_CODE_CHANGE)
		args[0].value = CStringGetTextDatum("try");
	return 3;
}

static const char *
trial_kind(DgenCallbackKind kind)
{
	const char *name = dgen_callback_name(kind);

	return strncmp(name, "handle_", strlen("handle_")) == 0 ? name + strlen("handle_") : name;
}

/* A field of an object, or NULL. */
static Jsonb *
field(Jsonb *jb, const char *key)
{
	JsonbValue	v;

	if (!JB_ROOT_IS_OBJECT(jb) ||
		getKeyJsonValueFromContainer(&jb->root, key, strlen(key), &v) == NULL)
		return NULL;
	return JsonbValueToJsonb(&v);
}

/* The text of a JSON string, or NULL. */
static char *
string_of(Jsonb *jb)
{
	JsonbValue	v;

	if (jb == NULL || !JB_ROOT_IS_SCALAR(jb) || !JsonbExtractScalar(&jb->root, &v) ||
		v.type != jbvString)
		return NULL;
	return pnstrdup(v.val.string.val, v.val.string.len);
}

/*
 * Those of a state machine's own callbacks.  message: {"kind": ..., "event":
 * ...}, or of enter the old state; state: {"state_name": ..., "data": ...}.
 */
static int
machine_trial_args(DgenScope *scope, DgenCallbackKind kind, Jsonb *message, Jsonb *state,
				   NullableDatum *args)
{
	Jsonb	   *data = field(state, "data");
	char	   *old_state = string_of(message);
	int			n = 0;

	memset(args, 0, 4 * sizeof(NullableDatum));
	if (scope->state_name == NULL)
		scope->state_name = string_of(field(state, "state_name"));
	if (data == NULL || scope->state_name == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("state of a state machine must be given with its name and its data"),
				 errhint("Write it like {\"state_name\": \"open\", \"data\": {}}.")));
	if (kind == DGEN_ENTER)
		args[n++].value = CStringGetTextDatum(old_state ? old_state : scope->state_name);
	else
	{
		char	   *event_kind = string_of(field(message, "kind"));
		Jsonb	   *event = field(message, "event");

		scope->kind = event_kind ? event_kind : "cast";
		args[n++].value = CStringGetTextDatum(scope->kind);
		args[n++].value = JsonbPGetDatum(event ? event : dgen_json_null());
	}
	if (kind != DGEN_STATE_EVENT)
		args[n++].value = CStringGetTextDatum(scope->state_name);
	args[n++].value = JsonbPGetDatum(data);
	return n;
}

/*
 * Run a callback in a subtransaction, and roll that back in any case.
 * state_name: of DGEN_STATE_EVENT, whose function that is.
 */
static Jsonb *
try_and_undo(DgenModule *module, DgenCallbackKind kind, const char *state_name, Jsonb *message,
			 Jsonb *state)
{
	bool		own = kind == DGEN_HANDLE_EVENT || kind == DGEN_STATE_EVENT || kind == DGEN_ENTER;
	MemoryContext old = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	Jsonb	   *volatile said = NULL;

	BeginInternalSubTransaction("dgen.try");
	MemoryContextSwitchTo(old);
	PG_TRY();
	{
		DgenScope	scope = {0};
		DgenResult	result;
		NullableDatum args[4];
		DgenCallback *cb;
		int			nargs;

		scope.module = module;
		scope.state_name = state_name;
		scope.server = psprintf("%s/try", module->name);
		scope.hash = dgen_address_hash(scope.server, strlen(scope.server));
		scope.kind = trial_kind(kind);
		cb = kind == DGEN_STATE_EVENT ? dgen_module_state_callback(module, state_name, false) :
			dgen_module_callback(module, kind);
		nargs = own ? machine_trial_args(&scope, kind, message, state, args) :
			trial_args(kind, message, state, args);
		dgen_handler_run(&scope, kind, DGEN_AS_OWNER, nargs, args, &result);
		said = describe(&result, kind, cb, module->machine);
		RollbackAndReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		ReThrowError(dgen_subxact_abort(old, owner));
	}
	PG_END_TRY();
	MemoryContextSwitchTo(old);
	CurrentResourceOwner = owner;
	return said;
}

PG_FUNCTION_INFO_V1(dgen_try);

/*
 * try(module text, callback text, message jsonb, state jsonb) -> jsonb: what
 * the callback says; what it does is undone.
 */
Datum
dgen_try(PG_FUNCTION_ARGS)
{
	char	   *name = dgen_arg_text(fcinfo, 0);
	const char *state_name = NULL;
	DgenCallbackKind kind = callback_by_name(dgen_arg_text(fcinfo, 1), &state_name);
	Jsonb	   *message = dgen_arg_jsonb(fcinfo, 2);
	Jsonb	   *state = dgen_arg_jsonb(fcinfo, 3);
	DgenModule *module;

	if (name == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("name of a module must not be null")));
	if (kind == DGEN_HANDLE_LOCKED)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("a procedure cannot be tried"),
				 errdetail("handle_locked may commit, which cannot be undone.")));
	module = dgen_module_get(name, false);
	dgen_module_check_operate(module);
	dgen_module_check_running(module);
	PG_RETURN_JSONB_P(try_and_undo(module, kind, state_name, message, state));
}
