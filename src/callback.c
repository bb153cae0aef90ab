/*-------------------------------------------------------------------------
 *
 * callback.c
 *	  From the name of a callback to a function that may be called: which
 *	  function it is, whether its signature is right, what its result means.
 *
 * One table says what each callback takes and may return.  Input types must
 * match exactly, and PostgreSQL allows one function of a name, a schema and
 * input types, so resolution is never ambiguous; other functions of the same
 * name are overlooked where one fits, and reported where none does.
 *
 * What is wrong with one callback is kept as a text with that callback and
 * raised when it is used: a half-finished format_status must not stop a
 * module that takes orders.
 *
 * Runs in any process, inside a transaction; reads the system caches only and
 * takes no locks.
 *
 *-------------------------------------------------------------------------
 */
#include "module.h"

#include "access/htup_details.h"
#include "catalog/namespace.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_type.h"
#include "funcapi.h"
#include "nodes/pg_list.h"
#include "utils/catcache.h"
#include "utils/lsyscache.h"
#include "utils/regproc.h"
#include "utils/syscache.h"
#include "utils/varlena.h"

#define MAX_CALLBACK_ARGS 4

/* sets of result columns */
#define COLUMN(field) (1 << (field))
#define COLUMN_STATE COLUMN(DGEN_RESULT_STATE)
#define COLUMN_REPLY COLUMN(DGEN_RESULT_REPLY)
#define COLUMN_NOREPLY COLUMN(DGEN_RESULT_NOREPLY)
#define COLUMN_NEXT (COLUMN(DGEN_RESULT_CONTINUE) | COLUMN(DGEN_RESULT_TIMEOUT))
#define COLUMN_DIRECTIVES (COLUMN(DGEN_RESULT_EXIT) | COLUMN(DGEN_RESULT_REJECT) | \
						   COLUMN(DGEN_RESULT_RETRY_AFTER) | COLUMN_NEXT | \
						   COLUMN(DGEN_RESULT_POSTPONE) | COLUMN(DGEN_RESULT_LOCK))

/* of a state machine's event handlers */
#define COLUMN_EVENT (COLUMN(DGEN_RESULT_DATA) | COLUMN(DGEN_RESULT_NEXT_STATE) | \
					  COLUMN(DGEN_RESULT_REPEAT) | COLUMN_REPLY | COLUMN_NOREPLY | \
					  COLUMN(DGEN_RESULT_EXIT) | COLUMN(DGEN_RESULT_REJECT) | \
					  COLUMN(DGEN_RESULT_RETRY_AFTER) | COLUMN(DGEN_RESULT_POSTPONE))

typedef struct CallbackRule
{
	const char *signature;		/* as CREATE FUNCTION wants it; begins with the name */
	const char *name;
	char		prokind;
	int			nargs;
	Oid			argtypes[MAX_CALLBACK_ARGS];
	Oid			plain_type;		/* of a result without a name; InvalidOid: not allowed */
	DgenResultField plain_field;	/* what that result is */
	int			columns;		/* those allowed by name */
	int			required;		/* one of these must be there; 0: none need */
} CallbackRule;

static const CallbackRule rules[DGEN_NCALLBACKS] = {
	[DGEN_INIT] = {
		"init(args jsonb) RETURNS jsonb", "init", PROKIND_FUNCTION,
		1, {JSONBOID},
		JSONBOID, DGEN_RESULT_STATE, COLUMN_STATE | COLUMN_NEXT, 0
	},
	[DGEN_HANDLE_CALL] = {
		"handle_call(request jsonb, INOUT state jsonb, OUT reply jsonb)", "handle_call", PROKIND_FUNCTION,
		2, {JSONBOID, JSONBOID},
		InvalidOid, DGEN_RESULT_VALUE,
		COLUMN_STATE | COLUMN_REPLY | COLUMN_NOREPLY | COLUMN_DIRECTIVES,
		COLUMN_REPLY | COLUMN_NOREPLY
	},
	[DGEN_HANDLE_CAST] = {
		"handle_cast(message jsonb, INOUT state jsonb)", "handle_cast", PROKIND_FUNCTION,
		2, {JSONBOID, JSONBOID},
		JSONBOID, DGEN_RESULT_STATE, COLUMN_STATE | COLUMN_DIRECTIVES, 0
	},
	[DGEN_HANDLE_INFO] = {
		"handle_info(message jsonb, INOUT state jsonb)", "handle_info", PROKIND_FUNCTION,
		2, {JSONBOID, JSONBOID},
		JSONBOID, DGEN_RESULT_STATE, COLUMN_STATE | COLUMN_DIRECTIVES, 0
	},
	[DGEN_HANDLE_CONTINUE] = {
		"handle_continue(message jsonb, INOUT state jsonb)", "handle_continue", PROKIND_FUNCTION,
		2, {JSONBOID, JSONBOID},
		JSONBOID, DGEN_RESULT_STATE, COLUMN_STATE | COLUMN_DIRECTIVES, 0
	},
	[DGEN_HANDLE_QUERY] = {
		"handle_query(query jsonb, state jsonb) RETURNS jsonb", "handle_query", PROKIND_FUNCTION,
		2, {JSONBOID, JSONBOID},
		JSONBOID, DGEN_RESULT_VALUE, 0, 0
	},
	[DGEN_HANDLE_LOCKED] = {
		"handle_locked(kind text, message jsonb, INOUT state jsonb, INOUT reply jsonb)", "handle_locked",
		PROKIND_PROCEDURE,
		4, {TEXTOID, JSONBOID, JSONBOID, JSONBOID},
		InvalidOid, DGEN_RESULT_VALUE, COLUMN_STATE | COLUMN_REPLY, COLUMN_STATE
	},
	[DGEN_HANDLE_DEAD_LETTER] = {
		"handle_dead_letter(message jsonb, attempts integer, error jsonb) RETURNS void", "handle_dead_letter",
		PROKIND_FUNCTION,
		3, {JSONBOID, INT4OID, JSONBOID},
		VOIDOID, DGEN_RESULT_VALUE, 0, 0
	},
	[DGEN_TERMINATE] = {
		"terminate(reason text, state jsonb) RETURNS void", "terminate", PROKIND_FUNCTION,
		2, {TEXTOID, JSONBOID},
		VOIDOID, DGEN_RESULT_VALUE, 0, 0
	},
	[DGEN_CODE_CHANGE] = {
		"code_change(old_vsn text, state jsonb) RETURNS jsonb", "code_change", PROKIND_FUNCTION,
		2, {TEXTOID, JSONBOID},
		JSONBOID, DGEN_RESULT_STATE, COLUMN_STATE, 0
	},
	[DGEN_VALIDATE] = {
		"validate(state jsonb) RETURNS boolean", "validate", PROKIND_FUNCTION,
		1, {JSONBOID},
		BOOLOID, DGEN_RESULT_VALUE, 0, 0
	},
	[DGEN_ACCEPT] = {
		"accept(kind text, message jsonb) RETURNS boolean", "accept", PROKIND_FUNCTION,
		2, {TEXTOID, JSONBOID},
		BOOLOID, DGEN_RESULT_VALUE, 0, 0
	},
	[DGEN_ATTRIBUTES] = {
		"attributes(state jsonb) RETURNS jsonb", "attributes", PROKIND_FUNCTION,
		1, {JSONBOID},
		JSONBOID, DGEN_RESULT_VALUE, 0, 0
	},
	[DGEN_FORMAT_STATUS] = {
		"format_status(state jsonb) RETURNS jsonb", "format_status", PROKIND_FUNCTION,
		1, {JSONBOID},
		JSONBOID, DGEN_RESULT_VALUE, 0, 0
	},
	[DGEN_FORMAT_MESSAGE] = {
		"format_message(message jsonb) RETURNS jsonb", "format_message", PROKIND_FUNCTION,
		1, {JSONBOID},
		JSONBOID, DGEN_RESULT_VALUE, 0, 0
	},
	[DGEN_HANDLE_EVENT] = {
		"handle_event(kind text, event jsonb, state_name text, INOUT data jsonb, OUT next_state text, OUT reply jsonb)",
		"handle_event", PROKIND_FUNCTION,
		4, {TEXTOID, JSONBOID, TEXTOID, JSONBOID},
		InvalidOid, DGEN_RESULT_VALUE, COLUMN_EVENT, 0
	},
	[DGEN_ENTER] = {
		"enter(old_state text, state_name text, INOUT data jsonb)", "enter", PROKIND_FUNCTION,
		3, {TEXTOID, TEXTOID, JSONBOID},
		JSONBOID, DGEN_RESULT_DATA, COLUMN(DGEN_RESULT_DATA) | COLUMN(DGEN_RESULT_EXIT), 0
	},
	[DGEN_STATE_EVENT] = {
		"in_<state>(kind text, event jsonb, INOUT data jsonb, OUT next_state text, OUT reply jsonb)",
		"in_<state>", PROKIND_FUNCTION,
		3, {TEXTOID, JSONBOID, JSONBOID},
		InvalidOid, DGEN_RESULT_VALUE, COLUMN_EVENT, 0
	}
};

/* init of a state machine */
static const CallbackRule machine_init = {
	"init(args jsonb, OUT data jsonb, OUT state_name text)", "init", PROKIND_FUNCTION,
	1, {JSONBOID},
	InvalidOid, DGEN_RESULT_VALUE,
	COLUMN(DGEN_RESULT_DATA) | COLUMN(DGEN_RESULT_STATE_NAME), COLUMN(DGEN_RESULT_STATE_NAME)
};

static const CallbackRule *
rule_of(DgenModule *module, DgenCallbackKind kind)
{
	return module->machine && kind == DGEN_INIT ? &machine_init : &rules[kind];
}

/* Is a function of this name a callback in such a module?  in_<state> is looked up by its state. */
static bool
has_callback(DgenModule *module, DgenCallbackKind kind)
{
	switch (kind)
	{
		case DGEN_HANDLE_CALL:
		case DGEN_HANDLE_CAST:
		case DGEN_HANDLE_INFO:
		case DGEN_HANDLE_CONTINUE:
		case DGEN_HANDLE_LOCKED:
			return !module->machine;
		case DGEN_HANDLE_EVENT:
		case DGEN_ENTER:
			return module->machine;
		case DGEN_STATE_EVENT:
			return false;
		default:
			return true;
	}
}

/*
 * Names of result columns.  new_state is there because a parameter named
 * state clashes with table columns in PL/pgSQL.
 */
static const struct
{
	const char *name;
	DgenResultField field;
	Oid			type;
}			columns[] = {
	{"state", DGEN_RESULT_STATE, JSONBOID},
	{"new_state", DGEN_RESULT_STATE, JSONBOID},
	{"reply", DGEN_RESULT_REPLY, JSONBOID},
	{"noreply", DGEN_RESULT_NOREPLY, BOOLOID},
	{"exit", DGEN_RESULT_EXIT, TEXTOID},
	{"reject", DGEN_RESULT_REJECT, TEXTOID},
	{"retry_after", DGEN_RESULT_RETRY_AFTER, INTERVALOID},
	{"continue", DGEN_RESULT_CONTINUE, JSONBOID},
	{"timeout", DGEN_RESULT_TIMEOUT, INTERVALOID},
	{"postpone", DGEN_RESULT_POSTPONE, BOOLOID},
	{"lock", DGEN_RESULT_LOCK, BOOLOID},
	{"data", DGEN_RESULT_DATA, JSONBOID},
	{"new_data", DGEN_RESULT_DATA, JSONBOID},
	{"next_state", DGEN_RESULT_NEXT_STATE, TEXTOID},
	{"state_name", DGEN_RESULT_STATE_NAME, TEXTOID},
	{"repeat_state", DGEN_RESULT_REPEAT, BOOLOID}
};

const char *
dgen_callback_name(DgenCallbackKind kind)
{
	if (kind == DGEN_EFFECT)
		return "an effect";
	return rules[kind].name;
}

const char *
dgen_callback_signature(DgenCallbackKind kind)
{
	return rules[kind].signature;
}

/* ------------------------------------------------------------- the mapping
 *
 * {"handle_call": "schema.fn", "handle_cast": "fn", "terminate": null}: fn
 * without a schema is in the module's; null says that a function that happens
 * to bear a callback's name is none.
 */

/* Split "schema.fn" or "fn"; *schema is NULL where it is not given. */
static bool
split_function_name(const char *text, char **schema, char **function)
{
	List	   *names;

	if (!SplitIdentifierString(pstrdup(text), '.', &names))
		return false;
	if (list_length(names) == 1)
	{
		*schema = NULL;
		*function = linitial(names);
	}
	else if (list_length(names) == 2)
	{
		*schema = linitial(names);
		*function = lsecond(names);
	}
	else
		return false;
	return true;
}

static char *
all_callback_names(void)
{
	StringInfoData buf;

	initStringInfo(&buf);
	for (int i = 0; i < DGEN_NCALLBACKS; i++)
	{
		if (i != DGEN_STATE_EVENT)
			appendStringInfo(&buf, "%s%s", i > 0 ? ", " : "", rules[i].name);
	}
	return buf.data;
}

static void
check_mapped_name(const char *callback, JsonbValue *value)
{
	char	   *schema;
	char	   *function;
	bool		known = false;

	for (int i = 0; i < DGEN_NCALLBACKS; i++)
		known |= i != DGEN_STATE_EVENT && strcmp(rules[i].name, callback) == 0;
	if (!known)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("there is no callback named \"%s\"", callback),
				 errdetail("Argument callbacks has a key of that name."),
				 errhint("Callbacks are %s.", all_callback_names())));

	if (value->type == jbvNull)
		return;
	if (value->type != jbvString ||
		!split_function_name(pnstrdup(value->val.string.val, value->val.string.len),
							 &schema, &function))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("invalid function name for callback %s", callback),
				 value->type == jbvString ?
				 errdetail("Argument callbacks says \"%.*s\".",
						   value->val.string.len, value->val.string.val) :
				 errdetail("Argument callbacks has a value that is not a string."),
				 errhint("Write it like {\"%s\": \"some_schema.some_function\"}, without argument types.",
						 callback)));
}

/* Raise 22023 on anything but a usable mapping. */
void
dgen_callbacks_check_mapping(Jsonb *mapping)
{
	JsonbIterator *it;
	JsonbValue	key;
	JsonbValue	value;
	JsonbIteratorToken token;

	if (!JB_ROOT_IS_OBJECT(mapping))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("argument callbacks must be a JSON object"),
				 errdetail("Its value is %s.",
						   JsonbToCString(NULL, &mapping->root, VARSIZE(mapping))),
				 errhint("Write it like {\"handle_call\": \"some_schema.some_function\"}.")));

	it = JsonbIteratorInit(&mapping->root);
	while ((token = JsonbIteratorNext(&it, &key, true)) != WJB_DONE)
	{
		if (token != WJB_KEY)
			continue;
		/* skipNested: a nested object comes as one value, and is refused */
		(void) JsonbIteratorNext(&it, &value, true);
		check_mapped_name(pnstrdup(key.val.string.val, key.val.string.len), &value);
	}
}

typedef struct CallbackTarget
{
	bool		none;			/* the mapping says that there is none */
	bool		mapped;
	const char *schema_name;
	Oid			schema;
	const char *function;
} CallbackTarget;

/* Which function is to be the callback, by the mapping or by its name? */
static void
find_target(DgenModule *module, DgenCallbackKind kind, Jsonb *mapping, CallbackTarget *target)
{
	const char *name = rules[kind].name;
	JsonbValue	value;
	char	   *schema = NULL;
	char	   *function;

	memset(target, 0, sizeof(CallbackTarget));
	target->schema_name = module->schema_name;
	target->schema = module->schema;
	target->function = name;

	if (mapping == NULL || !JB_ROOT_IS_OBJECT(mapping) ||
		getKeyJsonValueFromContainer(&mapping->root, name, strlen(name), &value) == NULL)
		return;

	target->mapped = true;
	if (value.type != jbvString ||
		!split_function_name(pnstrdup(value.val.string.val, value.val.string.len),
							 &schema, &function))
	{
		target->none = true;
		return;
	}
	target->function = function;
	if (schema != NULL)
	{
		target->schema_name = schema;
		target->schema = get_namespace_oid(schema, true);
	}
}

/* ------------------------------------------------------------ the signature */

/* Keep what is wrong; the first fault stays. */
static void
set_fault(DgenModule *module, DgenCallback *cb, char *fault, char *detail)
{
	if (cb->fault != NULL)
		return;
	cb->present = false;
	cb->fault = MemoryContextStrdup(module->mcxt, fault);
	cb->fault_detail = MemoryContextStrdup(module->mcxt, detail);
}

static void
set_function_fault(DgenModule *module, DgenCallbackKind kind, Oid function, char *detail)
{
	set_fault(module, &module->callbacks[kind],
			  psprintf("function %s cannot be callback %s of module \"%s\"",
					   format_procedure_qualified(function), rules[kind].name, module->name),
			  detail);
}

/* "state or new_state, reply, ...": what the callback may return by name */
static char *
allowed_columns(const CallbackRule *rule)
{
	StringInfoData buf;

	initStringInfo(&buf);
	for (int i = 0; i < lengthof(columns); i++)
	{
		if (rule->columns & COLUMN(columns[i].field))
			appendStringInfo(&buf, "%s%s %s", buf.len > 0 ? ", " : "",
							 columns[i].name, format_type_be(columns[i].type));
	}
	return buf.data;
}

/* Take one named result into account; false, with a fault, if it is none. */
static bool
add_column(DgenModule *module, DgenCallbackKind kind, Oid function, const char *name, Oid type)
{
	const CallbackRule *rule = rule_of(module, kind);
	DgenCallback *cb = &module->callbacks[kind];
	int			i;

	for (i = 0; i < lengthof(columns); i++)
	{
		if (strcmp(columns[i].name, name) == 0)
			break;
	}
	if (i == lengthof(columns) || !(rule->columns & COLUMN(columns[i].field)))
	{
		set_function_fault(module, kind, function,
						   rule->columns == 0 ?
						   psprintf("Its result has a column \"%s\", but it must return one plain value.", name) :
						   psprintf("Its result has a column \"%s\"; allowed are %s.",
									name, allowed_columns(rule)));
		return false;
	}
	if (type != columns[i].type)
	{
		set_function_fault(module, kind, function,
						   psprintf("Its result column \"%s\" is of type %s, not %s.", name,
									format_type_be(type), format_type_be(columns[i].type)));
		return false;
	}
	for (int j = 0; j < cb->nresults; j++)
	{
		if (cb->results[j] != columns[i].field)
			continue;
		set_function_fault(module, kind, function,
						   psprintf("Its result has a second column \"%s\" for the same thing.", name));
		return false;
	}
	Assert(cb->nresults < DGEN_MAX_RESULTS);
	cb->results[cb->nresults] = columns[i].field;
	cb->result_types[cb->nresults] = type;
	cb->nresults++;
	return true;
}

/* A result that is not a row: plain, or of the only OUT parameter. */
static void
resolve_plain_result(DgenModule *module, DgenCallbackKind kind, Oid function, Oid type)
{
	const CallbackRule *rule = rule_of(module, kind);
	DgenCallback *cb = &module->callbacks[kind];
	char	   *name = get_func_result_name(function);

	if (name != NULL && rule->columns != 0)
	{
		(void) add_column(module, kind, function, name, type);
		return;
	}
	if (!OidIsValid(rule->plain_type))
		set_function_fault(module, kind, function,
						   psprintf("It returns a plain %s, but results go by name.",
									format_type_be(type)));
	else if (type != rule->plain_type)
		set_function_fault(module, kind, function,
						   psprintf("It returns %s, not %s.", format_type_be(type),
									format_type_be(rule->plain_type)));
	else if (type != VOIDOID)
	{
		cb->nresults = 1;
		cb->results[0] = rule->plain_field;
		cb->result_types[0] = type;
	}
}

static void
resolve_row_result(DgenModule *module, DgenCallbackKind kind, Oid function, Oid type, TupleDesc desc)
{
	DgenCallback *cb = &module->callbacks[kind];

	cb->composite = true;
	for (int i = 0; i < desc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(desc, i);

		if (att->attisdropped)
		{
			set_function_fault(module, kind, function,
							   psprintf("Its result type %s has dropped columns.", format_type_be(type)));
			return;
		}
		if (!add_column(module, kind, function, NameStr(att->attname), att->atttypid))
			return;
	}
	/* a change of the row type does not touch pg_proc */
	if (type != RECORDOID)
		dgen_module_watch_rowtype(get_typ_typrelid(type));
}

static void
resolve_result(DgenModule *module, DgenCallbackKind kind, Oid function)
{
	const CallbackRule *rule = rule_of(module, kind);
	DgenCallback *cb = &module->callbacks[kind];
	Oid			type;
	TupleDesc	desc;
	int			found = 0;

	switch (get_func_result_type(function, &type, &desc))
	{
		case TYPEFUNC_SCALAR:
			resolve_plain_result(module, kind, function, type);
			break;
		case TYPEFUNC_COMPOSITE:
			resolve_row_result(module, kind, function, type, desc);
			break;
		default:
			set_function_fault(module, kind, function,
							   psprintf("Its result type %s has no known columns.", format_type_be(type)));
			break;
	}
	if (cb->fault != NULL || rule->required == 0)
		return;

	for (int i = 0; i < cb->nresults; i++)
		found |= COLUMN(cb->results[i]);
	if ((found & rule->required) == 0)
		set_function_fault(module, kind, function,
						   psprintf("Its result has no column \"%s\".",
									rule->required & COLUMN_REPLY ? "reply" :
									rule->required & COLUMN_STATE ? "state" : "state_name"));
}

/* The function has the right name and input types; what of the rest? */
static void
resolve_function(DgenModule *module, DgenCallbackKind kind, HeapTuple tuple)
{
	const CallbackRule *rule = rule_of(module, kind);
	DgenCallback *cb = &module->callbacks[kind];
	Form_pg_proc proc = (Form_pg_proc) GETSTRUCT(tuple);

	if (proc->prokind != rule->prokind)
		set_function_fault(module, kind, proc->oid,
						   psprintf("It is %s, not a %s.",
									proc->prokind == PROKIND_AGGREGATE ? "an aggregate" :
									proc->prokind == PROKIND_WINDOW ? "a window function" :
									proc->prokind == PROKIND_PROCEDURE ? "a procedure" : "a function",
									rule->prokind == PROKIND_PROCEDURE ? "procedure" : "function"));
	else if (proc->proretset)
		set_function_fault(module, kind, proc->oid,
						   pstrdup("It returns a set (SETOF or TABLE), but must return one row or value."));
	else if (OidIsValid(proc->provariadic))
		set_function_fault(module, kind, proc->oid, pstrdup("It is variadic."));
	else
		resolve_result(module, kind, proc->oid);
	if (cb->fault != NULL)
		return;

	cb->present = true;
	cb->function = proc->oid;
	cb->owner = proc->proowner;
	cb->nargs = rule->nargs;
}

static char *
argument_types(const CallbackRule *rule)
{
	StringInfoData buf;

	initStringInfo(&buf);
	for (int i = 0; i < rule->nargs; i++)
		appendStringInfo(&buf, "%s%s", i > 0 ? ", " : "", format_type_be(rule->argtypes[i]));
	return buf.data;
}

/* No function fits; is there one of the name, which was meant to? */
static void
report_misfit(DgenModule *module, DgenCallbackKind kind, CallbackTarget *target)
{
	const CallbackRule *rule = rule_of(module, kind);
	CatCList   *list = SearchSysCacheList1(PROCNAMEARGSNSP, CStringGetDatum(target->function));
	Oid			misfit = InvalidOid;

	for (int i = 0; i < list->n_members; i++)
	{
		Form_pg_proc proc = (Form_pg_proc) GETSTRUCT(&list->members[i]->tuple);

		/* the oldest, so that the text does not change from look to look */
		if (proc->pronamespace == target->schema &&
			(!OidIsValid(misfit) || proc->oid < misfit))
			misfit = proc->oid;
	}
	ReleaseSysCacheList(list);

	if (OidIsValid(misfit))
		set_function_fault(module, kind, misfit,
						   psprintf("Its input arguments must be (%s).", argument_types(rule)));
	else if (target->mapped)
		set_fault(module, &module->callbacks[kind],
				  psprintf("callback %s of module \"%s\" does not exist", rule->name, module->name),
				  psprintf("There is no function %s(%s).",
						   quote_qualified_identifier(target->schema_name, target->function),
						   argument_types(rule)));
}

static void
resolve_callback(DgenModule *module, DgenCallbackKind kind, Jsonb *mapping)
{
	const CallbackRule *rule = rule_of(module, kind);
	CallbackTarget target;
	HeapTuple	tuple;

	find_target(module, kind, mapping, &target);
	if (target.none)
		return;
	if (!OidIsValid(target.schema))
	{
		if (target.mapped)
			set_fault(module, &module->callbacks[kind],
					  psprintf("callback %s of module \"%s\" does not exist", rule->name, module->name),
					  psprintf("There is no schema \"%s\".", target.schema_name));
		return;
	}

	tuple = SearchSysCache3(PROCNAMEARGSNSP,
							CStringGetDatum(target.function),
							PointerGetDatum(buildoidvector(rule->argtypes, rule->nargs)),
							ObjectIdGetDatum(target.schema));
	if (HeapTupleIsValid(tuple))
	{
		resolve_function(module, kind, tuple);
		ReleaseSysCache(tuple);
	}
	else
		report_misfit(module, kind, &target);
}

/*
 * Fill module->callbacks.  mapping may be NULL.  Raises nothing that a user
 * can cause; litters the current memory context.
 */
void
dgen_callbacks_resolve(DgenModule *module, Jsonb *mapping)
{
	for (int kind = 0; kind < DGEN_NCALLBACKS; kind++)
	{
		if (has_callback(module, kind))
			resolve_callback(module, kind, mapping);
	}
}

/* ------------------------------------------------------- one function a state */

/* Look a state's function up into the slot that all of them share for that. */
static void
resolve_state(DgenModule *module, const char *state)
{
	const CallbackRule *rule = &rules[DGEN_STATE_EVENT];
	DgenCallback *cb = &module->callbacks[DGEN_STATE_EVENT];
	CallbackTarget target = {0};
	HeapTuple	tuple;

	memset(cb, 0, sizeof(DgenCallback));
	target.function = psprintf("in_%s", state);
	target.schema = module->schema;
	target.schema_name = module->schema_name;
	if (strlen(target.function) >= NAMEDATALEN || !OidIsValid(module->schema))
		return;
	tuple = SearchSysCache3(PROCNAMEARGSNSP, CStringGetDatum(target.function),
							PointerGetDatum(buildoidvector(rule->argtypes, rule->nargs)),
							ObjectIdGetDatum(target.schema));
	if (!HeapTupleIsValid(tuple))
	{
		report_misfit(module, DGEN_STATE_EVENT, &target);
		return;
	}
	resolve_function(module, DGEN_STATE_EVENT, tuple);
	ReleaseSysCache(tuple);
	if (cb->present && cb->owner != module->owner)
		set_function_fault(module, DGEN_STATE_EVENT, cb->function,
						   psprintf("It belongs to another role than the module, \"%s\".",
									module->owner_name));
}

/* The function of a state, which may be missing or at fault; kept with the module. */
DgenCallback *
dgen_callback_of_state(DgenModule *module, const char *state)
{
	DgenStateCallback *found;
	MemoryContext old;
	ListCell   *lc;

	foreach(lc, module->states)
	{
		found = lfirst(lc);
		if (strcmp(found->state, state) == 0)
			return &found->cb;
	}
	resolve_state(module, state);
	old = MemoryContextSwitchTo(module->mcxt);
	found = palloc(sizeof(DgenStateCallback));
	found->state = pstrdup(state);
	found->cb = module->callbacks[DGEN_STATE_EVENT];
	module->states = lappend(module->states, found);
	MemoryContextSwitchTo(old);
	memset(&module->callbacks[DGEN_STATE_EVENT], 0, sizeof(DgenCallback));
	return &found->cb;
}

/* OT005 for the function of a state. */
void
dgen_state_unusable(DgenModule *module, DgenCallback *cb, const char *state)
{
	const char *schema = quote_identifier(module->schema_name);
	char	   *name = psprintf("in_%s", state);

	ereport(ERROR,
			(errcode(ERRCODE_DGEN_NO_CALLBACK),
			 cb->fault ? errmsg("%s", cb->fault) :
			 errmsg("module \"%s\" has no function for state \"%s\"", module->name, state),
			 cb->fault ? errdetail("%s", cb->fault_detail) :
			 errdetail("It has neither handle_event nor %s.", quote_identifier(name)),
			 errhint("Define it like this: CREATE FUNCTION %s.%s(kind text, event jsonb, INOUT data jsonb, OUT next_state text, OUT reply jsonb).",
					 schema, quote_identifier(name))));
}

/* --------------------------------------------------------------- the errors */

/* OT005 for a callback that is not there or not right, with the right one. */
void
dgen_callback_unusable(DgenModule *module, DgenCallbackKind kind)
{
	const CallbackRule *rule = rule_of(module, kind);
	DgenCallback *cb = &module->callbacks[kind];
	const char *schema = quote_identifier(module->schema_name);
	const char *object = rule->prokind == PROKIND_PROCEDURE ? "PROCEDURE" : "FUNCTION";

	if (cb->fault != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_DGEN_NO_CALLBACK),
				 errmsg("%s", cb->fault),
				 errdetail("%s", cb->fault_detail),
				 errhint("Define it like this: CREATE %s %s.%s. "
						 "If it is not meant to be a callback, pass callbacks => '{\"%s\": null}'.",
						 object, schema, rule->signature, rule->name)));
	ereport(ERROR,
			(errcode(ERRCODE_DGEN_NO_CALLBACK),
			 errmsg("module \"%s\" has no callback %s", module->name, rule->name),
			 OidIsValid(module->schema) ?
			 errdetail("Schema \"%s\" has no function of that name.", module->schema_name) :
			 errdetail("Schema \"%s\" does not exist.", module->schema_name),
			 errhint("Define it like this: CREATE %s %s.%s.", object, schema, rule->signature)));
}

/* {"init": "counter.init(jsonb)", ...}: what was found */
Jsonb *
dgen_callbacks_to_jsonb(DgenModule *module)
{
	JsonbParseState *state = NULL;
	JsonbValue	v;

	pushJsonbValue(&state, WJB_BEGIN_OBJECT, NULL);
	v.type = jbvString;
	for (int kind = 0; kind < DGEN_NCALLBACKS; kind++)
	{
		if (!module->callbacks[kind].present)
			continue;
		v.val.string.val = unconstify(char *, rules[kind].name);
		v.val.string.len = strlen(v.val.string.val);
		pushJsonbValue(&state, WJB_KEY, &v);
		/* names the OID should the function have gone meanwhile */
		v.val.string.val = format_procedure_qualified(module->callbacks[kind].function);
		v.val.string.len = strlen(v.val.string.val);
		pushJsonbValue(&state, WJB_VALUE, &v);
	}
	return JsonbValueToJsonb(pushJsonbValue(&state, WJB_END_OBJECT, NULL));
}

/* All faults, a line each; NULL if there is none. */
char *
dgen_callbacks_faults(DgenModule *module)
{
	StringInfoData buf;

	initStringInfo(&buf);
	for (int kind = 0; kind < DGEN_NCALLBACKS; kind++)
	{
		DgenCallback *cb = &module->callbacks[kind];

		if (cb->fault != NULL)
			appendStringInfo(&buf, "%s%s: %s", buf.len > 0 ? "\n" : "",
							 cb->fault, cb->fault_detail);
	}
	return buf.len > 0 ? buf.data : NULL;
}
