/*-------------------------------------------------------------------------
 *
 * module_api.c
 *	  SQL functions that make, change, drop and show modules.
 *
 * dgen.module is written with the rights of the library, so the checks here
 * are the gate: a module's callbacks run as their owner in dgen's workers,
 * and who makes the module decides what these are asked to do.
 *
 * Runs in a client's backend.  Locks: dgen_module_lock() on the name first,
 * then what module.c and table.c take; drop_module with "cascade" also takes
 * the lease of each server.
 *
 *-------------------------------------------------------------------------
 */
#include "module.h"
#include "stat.h"

#include "access/htup_details.h"
#include "access/skey.h"
#include "access/stratnum.h"
#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_collation_d.h"
#include "catalog/pg_database.h"
#include "catalog/pg_namespace.h"
#include "commands/dbcommands.h"
#include "commands/sequence.h"
#include "funcapi.h"
#include "pgtime.h"
#include "storage/lmgr.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/syscache.h"
#include "utils/varlena.h"

/* arguments of create_module and alter_module, as sql/module.sql has them */
enum
{
	ARG_NAME,
	ARG_CALLBACKS,
	ARG_SCHEMA,
	ARG_OPTIONS,				/* the first of them */
	ARG_IF_EXISTS = ARG_OPTIONS + DGEN_NOPTIONS
};

typedef enum IfExists
{
	IF_EXISTS_ERROR,
	IF_EXISTS_ALTER,
	IF_EXISTS_SKIP
} IfExists;

PG_FUNCTION_INFO_V1(dgen_create_module);
PG_FUNCTION_INFO_V1(dgen_alter_module);
PG_FUNCTION_INFO_V1(dgen_drop_module);
PG_FUNCTION_INFO_V1(dgen_module_info);

static void delete_leftovers(const char *name);

/* --------------------------------------------------------------- arguments */

/* The name of a module: what an address can hold before its first '/'. */
static char *
name_argument(FunctionCallInfo fcinfo)
{
	char	   *name = dgen_arg_text(fcinfo, ARG_NAME);

	if (name == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("name of a module must not be null"),
				 errhint("Give the name of the schema that holds its callbacks.")));
	if (name[0] == '\0' || strchr(name, '/') != NULL || strlen(name) >= NAMEDATALEN)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_NAME),
				 errmsg("invalid name \"%s\" of a module", name),
				 name[0] == '\0' ? errdetail("It is empty.") :
				 strchr(name, '/') ? errdetail("It contains \"/\", which ends the module's name in an address.") :
				 errdetail("It has %d bytes.", (int) strlen(name)),
				 errhint("A name has 1 to %d bytes and no \"/\"; functions of another schema are given by schema_name or callbacks.",
						 NAMEDATALEN - 1)));
	return name;
}

static IfExists
if_exists_argument(FunctionCallInfo fcinfo)
{
	char	   *word = dgen_arg_text(fcinfo, ARG_IF_EXISTS);

	if (word == NULL || strcmp(word, "error") == 0)
		return IF_EXISTS_ERROR;
	if (strcmp(word, "alter") == 0)
		return IF_EXISTS_ALTER;
	if (strcmp(word, "skip") == 0)
		return IF_EXISTS_SKIP;
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("invalid value for argument if_exists"),
			 errdetail("Its value is \"%s\".", word),
			 errhint("Allowed are 'error', 'alter' and 'skip'.")));
}

/* 22023 for an option's value, with the values that are allowed */
static void
bad_option(const DgenOption *option, const char *value, const char *hint)
{
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("invalid value for option %s of a module", option->name),
			 errdetail("Its value is \"%s\".", value),
			 errhint("%s", hint)));
}

static Interval *
usecs_interval(double usecs)
{
	Interval   *span = palloc0(sizeof(Interval));

	span->day = (int32) (usecs / USECS_PER_DAY);
	span->time = (TimeOffset) (usecs - (double) span->day * USECS_PER_DAY);
	return span;
}

static char *
interval_text(double usecs)
{
	return DatumGetCString(DirectFunctionCall1(interval_out,
											   IntervalPGetDatum(usecs_interval(usecs))));
}

static void
check_number(const DgenOption *option, double value)
{
	/* so written for NaN, too */
	if (!(value >= option->min && value <= option->max))
		bad_option(option, psprintf("%.16g", value),
				   psprintf("Allowed are %.16g to %.16g.", option->min, option->max));
}

static Datum
interval_option(const DgenOption *option, FunctionCallInfo fcinfo, int argno)
{
	int64		usecs;

	(void) dgen_arg_interval(fcinfo, argno, option->name, option->min == 0, &usecs);
	if ((double) usecs < option->min || (double) usecs > option->max)
		bad_option(option, interval_text((double) usecs),
				   psprintf("Allowed are %s to %s.", interval_text(option->min),
							interval_text(option->max)));
	return PG_GETARG_DATUM(argno);
}

static void
check_word(const DgenOption *option, const char *value)
{
	StringInfoData hint;

	initStringInfo(&hint);
	for (int i = 0; i < DGEN_MAX_WORDS && option->words[i] != NULL; i++)
	{
		if (strcmp(option->words[i], value) == 0)
			return;
		appendStringInfo(&hint, "%s'%s'", i == 0 ? "Allowed are " : ", ", option->words[i]);
	}
	appendStringInfoChar(&hint, '.');
	bad_option(option, value, hint.data);
}

/*
 * A search_path that names pg_temp, last unless it says where: PostgreSQL
 * otherwise looks there first, so that a caller's temporary table would be
 * taken for one of the module's.
 */
static char *
checked_search_path(const DgenOption *option, const char *value)
{
	List	   *names;
	ListCell   *lc;

	if (!SplitIdentifierString(pstrdup(value), ',', &names) || names == NIL)
		bad_option(option, value, "Write it like the parameter search_path, for example 'app, public, pg_temp'.");
	foreach(lc, names)
	{
		if (strcmp(lfirst(lc), "pg_temp") == 0)
			return pstrdup(value);
	}
	return psprintf("%s, pg_temp", value);
}

static char *
initial_search_path(const char *schema_name)
{
	if (strcmp(schema_name, "public") == 0)
		return pstrdup("public, pg_temp");
	return psprintf("%s, public, pg_temp", quote_identifier(schema_name));
}

/* How much history to keep; false: none. */
static bool
checked_history(const DgenOption *option, const char *value)
{
	int64		versions;
	int64		usecs;

	if (value[0] == '\0' || strcmp(value, "off") == 0)
		return false;
	if (!dgen_history_parse(value, &versions, &usecs))
		bad_option(option, value,
				   "Allowed are a number of versions, for example '100', an interval, for example '7 days', and 'off'.");
	return true;
}

/* A text option; an empty one means none. */
static Datum
text_option(const DgenOption *option, char *value, bool *isnull)
{
	pg_tz	   *tz;

	*isnull = false;
	if (option->type == DGEN_OPTION_FLAG || option->type == DGEN_OPTION_LEVEL ||
		option->type == DGEN_OPTION_WORD)
		check_word(option, value);
	else if (option->type == DGEN_OPTION_SEARCH_PATH)
		value = checked_search_path(option, value);
	else if (option->type == DGEN_OPTION_HISTORY)
		*isnull = !checked_history(option, value);
	else if (value[0] == '\0')
		*isnull = true;
	else if (option->type == DGEN_OPTION_CHANNEL && strlen(value) >= NAMEDATALEN)
		bad_option(option, value, "A channel's name has at most 63 bytes.");
	else if (option->type == DGEN_OPTION_ROLE && !OidIsValid(get_role_oid(value, true)))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("role \"%s\" does not exist", value),
				 errdetail("Option %s of a module names a role, to whose members it gives rights.", option->name),
				 errhint("Create the role first: CREATE ROLE %s.", quote_identifier(value))));
	else if (option->type == DGEN_OPTION_TIMEZONE &&
			 ((tz = pg_tzset(value)) == NULL || !pg_tz_acceptable(tz)))
		bad_option(option, value, "View pg_timezone_names lists the names of time zones.");
	return CStringGetTextDatum(value);
}

/* Keys that are not stored; none: {}. */
static Datum
keys_option(const DgenOption *option, ArrayType *keys, bool *isnull)
{
	if (ARR_NDIM(keys) > 1 || array_contains_nulls(keys))
		bad_option(option, DatumGetCString(OidFunctionCall1(F_ARRAY_OUT, PointerGetDatum(keys))),
				   "Write it like ARRAY['cache', 'token'].");
	*isnull = ARR_NDIM(keys) == 0;
	return PointerGetDatum(keys);
}

static Datum
option_argument(const DgenOption *option, FunctionCallInfo fcinfo, int argno, bool *isnull)
{
	*isnull = false;
	switch (option->type)
	{
		case DGEN_OPTION_BOOL:
			return PG_GETARG_DATUM(argno);
		case DGEN_OPTION_INT:
			check_number(option, PG_GETARG_INT32(argno));
			return PG_GETARG_DATUM(argno);
		case DGEN_OPTION_INT64:
			check_number(option, (double) PG_GETARG_INT64(argno));
			return PG_GETARG_DATUM(argno);
		case DGEN_OPTION_DOUBLE:
			check_number(option, PG_GETARG_FLOAT8(argno));
			return PG_GETARG_DATUM(argno);
		case DGEN_OPTION_MSEC:
		case DGEN_OPTION_SECONDS:
		case DGEN_OPTION_USEC:
			return interval_option(option, fcinfo, argno);
		case DGEN_OPTION_KEYS:
			return keys_option(option, PG_GETARG_ARRAYTYPE_P(argno), isnull);
		default:
			return text_option(option, dgen_arg_text(fcinfo, argno), isnull);
	}
}

static Datum
initial_option(const DgenOption *option, const char *schema_name, bool *isnull)
{
	*isnull = false;
	switch (option->type)
	{
		case DGEN_OPTION_BOOL:
			return BoolGetDatum(option->initial != 0);
		case DGEN_OPTION_FLAG:
		case DGEN_OPTION_LEVEL:
		case DGEN_OPTION_WORD:
			return CStringGetTextDatum(option->words[(int) option->initial]);
		case DGEN_OPTION_INT:
			return Int32GetDatum((int32) option->initial);
		case DGEN_OPTION_INT64:
			return Int64GetDatum((int64) option->initial);
		case DGEN_OPTION_DOUBLE:
			return Float8GetDatum(option->initial);
		case DGEN_OPTION_MSEC:
		case DGEN_OPTION_SECONDS:
		case DGEN_OPTION_USEC:
			return IntervalPGetDatum(usecs_interval(option->initial));
		case DGEN_OPTION_SEARCH_PATH:
			return CStringGetTextDatum(initial_search_path(schema_name));
		default:
			*isnull = true;
			return (Datum) 0;
	}
}

/*
 * Write arguments that are not null into the row.  A search_path that was the
 * default goes with the schema.
 */
static void
apply_arguments(FunctionCallInfo fcinfo, DgenModuleRow *row)
{
	char	   *old_schema = TextDatumGetCString(row->values[MODULE_SCHEMA]);

	if (!PG_ARGISNULL(ARG_SCHEMA))
		row->values[MODULE_SCHEMA] = PG_GETARG_DATUM(ARG_SCHEMA);
	if (!PG_ARGISNULL(ARG_CALLBACKS))
	{
		Jsonb	   *mapping = PG_GETARG_JSONB_P(ARG_CALLBACKS);

		dgen_callbacks_check_mapping(mapping);
		row->values[MODULE_CALLBACKS] = JsonbPGetDatum(mapping);
		row->nulls[MODULE_CALLBACKS] = JB_ROOT_COUNT(mapping) == 0;
	}

	for (int i = 0; i < DGEN_NOPTIONS; i++)
	{
		const DgenOption *option = &dgen_module_options[i];
		Datum	   *value = &row->values[MODULE_OPTIONS + i];
		bool	   *isnull = &row->nulls[MODULE_OPTIONS + i];

		if (!PG_ARGISNULL(ARG_OPTIONS + i))
			*value = option_argument(option, fcinfo, ARG_OPTIONS + i, isnull);
		else if (option->type == DGEN_OPTION_SEARCH_PATH &&
				 strcmp(TextDatumGetCString(*value), initial_search_path(old_schema)) == 0)
			*value = initial_option(option, TextDatumGetCString(row->values[MODULE_SCHEMA]), isnull);
	}
}

/* A row with all defaults, not yet written. */
static void
init_row(const char *name, DgenModuleRow *row)
{
	memset(row, 0, sizeof(DgenModuleRow));
	row->values[MODULE_NAME] = CStringGetTextDatum(name);
	row->values[MODULE_SCHEMA] = CStringGetTextDatum(name);
	row->nulls[MODULE_CALLBACKS] = true;
	row->nulls[MODULE_OWNER] = true;
	for (int i = 0; i < DGEN_NOPTIONS; i++)
		row->values[MODULE_OPTIONS + i] = initial_option(&dgen_module_options[i], name,
														 &row->nulls[MODULE_OPTIONS + i]);
	row->values[MODULE_CREATED_AT] = TimestampTzGetDatum(GetCurrentTransactionStartTimestamp());
	row->nulls[MODULE_SUSPENDED_AT] = true;
	row->nulls[MODULE_SUSPENDED_BY] = true;
	row->nulls[MODULE_SUSPENDED_REASON] = true;
}

/* -------------------------------------------------- is the module a module? */

/* Clients handle its messages: what would need a worker must not be there. */
static void
check_external(DgenModule *module)
{
	static const DgenCallbackKind passive[] = {
		DGEN_VALIDATE, DGEN_ACCEPT, DGEN_ATTRIBUTES, DGEN_FORMAT_STATUS, DGEN_FORMAT_MESSAGE
	};

	for (int kind = 0; kind < DGEN_NCALLBACKS; kind++)
	{
		bool		allowed = !module->callbacks[kind].present;

		for (int i = 0; i < lengthof(passive); i++)
			allowed |= passive[i] == kind;
		if (!allowed)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("external module \"%s\" cannot have callback %s", module->name,
							dgen_callback_name(kind)),
					 errdetail("Its messages are handled by clients, which take them by dgen.take_work()."),
					 errhint("Use a schema without such functions, or map the callback to null.")));
	}
	if (module->ephemeral || !module->auto_start || module->machine)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("external module \"%s\" cannot be %s", module->name,
						module->ephemeral ? "ephemeral" : module->machine ? "a state machine" :
						"without auto_start")));
}

static void
check_found(DgenModule *module)
{
	int			found = 0;

	if (!OidIsValid(module->schema))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_SCHEMA),
				 errmsg("schema \"%s\" of module \"%s\" does not exist", module->schema_name, module->name),
				 errdetail("A module's callbacks are functions in a schema, by default that of its name."),
				 errhint("Create the schema and its functions first, or name another one by schema_name.")));
	if (isAnyTempNamespace(module->schema))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_SCHEMA_NAME),
				 errmsg("schema of module \"%s\" must not be temporary", module->name),
				 errdetail("Handlers run in other processes, which cannot see schema \"%s\".", module->schema_name),
				 errhint("Use a permanent schema.")));

	for (int kind = 0; kind < DGEN_NCALLBACKS; kind++)
	{
		if (module->callbacks[kind].fault != NULL)
			dgen_callback_unusable(module, kind);
		found += module->callbacks[kind].present;
	}
	if (module->external)
		check_external(module);
	else if (found == 0)
		ereport(ERROR,
				(errcode(ERRCODE_DGEN_NO_CALLBACK),
				 errmsg("module \"%s\" has no callbacks", module->name),
				 errdetail("Schema \"%s\" has no function that bears a callback's name.", module->schema_name),
				 errhint("Define at least one, for example CREATE FUNCTION %s.%s.",
						 quote_identifier(module->schema_name),
						 dgen_callback_signature(DGEN_HANDLE_CALL))));

	if (module->backoff_max < module->backoff_initial)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("backoff_max of module \"%s\" is less than backoff_initial", module->name),
				 errdetail("They are %g s and %g s.", module->backoff_max, module->backoff_initial),
				 errhint("Set both.")));
	if (module->ephemeral && module->ephemeral_keys != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("module \"%s\" is ephemeral and cannot have ephemeral_keys", module->name),
				 errdetail("Servers of an ephemeral module keep no state."),
				 errhint("Pass ephemeral_keys => '{}', or ephemeral => false.")));
	if (module->ephemeral && module->history != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("module \"%s\" is ephemeral and cannot keep a history", module->name),
				 errdetail("Servers of an ephemeral module keep no state."),
				 errhint("Pass history => 'off', or ephemeral => false.")));
	if (module->ephemeral && module->notify != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("module \"%s\" is ephemeral and cannot notify", module->name),
				 errdetail("Servers of an ephemeral module keep no state that could change."),
				 errhint("Pass notify => '', or ephemeral => false.")));
	if (module->owner_fault != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("callbacks of module \"%s\" have different owners", module->name),
				 errdetail("%s", module->owner_fault),
				 errhint("Give them one owner: ALTER FUNCTION ... OWNER TO ....")));
}

/* A state machine has what an ephemeral server has not, and is no server of another kind. */
static void
check_kind(DgenModule *module, bool create, bool was_machine)
{
	if (module->machine && module->ephemeral)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("module \"%s\" cannot be ephemeral", module->name),
				 errdetail("Its servers are state machines, which live from event to event."),
				 errhint("Leave out ephemeral, or kind.")));
	if (module->machine && module->expire_after > 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("module \"%s\" cannot have expire_after", module->name),
				 errdetail("Its servers are state machines, which end by a timeout of their own."),
				 errhint("Let them exit at a timeout, with on_stop => 'delete', and leave out expire_after.")));
	if (module->machine && !module->callbacks[DGEN_INIT].present)
		dgen_callback_unusable(module, DGEN_INIT);
	if (!create && module->machine != was_machine)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("kind of module \"%s\" cannot be changed", module->name),
				 errdetail("Its servers would not know what they are."),
				 errhint("Drop the module, and create it again.")));
}

/* -------------------------------------------------------------------- rights */

/* 42501 */
static void
refuse(DgenModule *module, const char *detail, const char *hint)
{
	ereport(ERROR,
			(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
			 errmsg("permission denied to make or change module \"%s\"", module->name),
			 errdetail("%s", detail),
			 errhint("%s", hint)));
}

static Oid
schema_owner(Oid schema)
{
	HeapTuple	tuple = SearchSysCache1(NAMESPACEOID, ObjectIdGetDatum(schema));
	Oid			owner;

	if (!HeapTupleIsValid(tuple))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_SCHEMA),
				 errmsg("schema with OID %u does not exist", schema)));
	owner = ((Form_pg_namespace) GETSTRUCT(tuple))->nspowner;
	ReleaseSysCache(tuple);
	return owner;
}

static Oid
database_owner(void)
{
	HeapTuple	tuple = SearchSysCache1(DATABASEOID, ObjectIdGetDatum(MyDatabaseId));
	Oid			owner;

	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for database %u", MyDatabaseId);
	owner = ((Form_pg_database) GETSTRUCT(tuple))->datdba;
	ReleaseSysCache(tuple);
	return owner;
}

/*
 * A module that exists, with its servers' states and mail, belongs to the
 * role that was agreed to, not to whoever now has a schema of its name.
 */
static void
check_agreed_owner(DgenModule *module, const char *agreed)
{
	Oid			owner = get_role_oid(agreed, true);
	char	   *user = GetUserNameFromId(GetUserId(), false);

	if (OidIsValid(owner) && !has_privs_of_role(GetUserId(), owner))
		refuse(module,
			   psprintf("It belongs to role \"%s\", of which role \"%s\" is no member.", agreed, user),
			   psprintf("Have a member of that role do it, or run GRANT %s TO %s.",
						quote_identifier(agreed), quote_identifier(user)));
	if (!OidIsValid(owner) && !has_privs_of_role(GetUserId(), database_owner()))
		refuse(module,
			   psprintf("It was made for role \"%s\", which no longer exists; only the owner of the database may give it to another.",
						agreed),
			   "Have the owner of the database, or a superuser, do it.");
}

/* May the caller make a module that runs as this owner, out of this schema? */
static void
check_maker(DgenModule *module)
{
	Oid			user = GetUserId();
	char	   *user_name = GetUserNameFromId(user, false);
	Oid			nspowner = schema_owner(module->schema);

	if (!has_privs_of_role(user, nspowner))
		refuse(module,
			   psprintf("Schema \"%s\" is owned by role \"%s\", of which role \"%s\" is no member.",
						module->schema_name, GetUserNameFromId(nspowner, false), user_name),
			   "Have the owner of the schema do it.");
	if (superuser_arg(module->owner) && !superuser_arg(user))
		refuse(module,
			   psprintf("Its callbacks would run as superuser \"%s\".", module->owner_name),
			   "Give the functions to another owner: ALTER FUNCTION ... OWNER TO ....");
	if (!member_can_set_role(user, module->owner))
		refuse(module,
			   psprintf("Its callbacks would run as role \"%s\", and role \"%s\" may not SET ROLE to it.",
						module->owner_name, user_name),
			   psprintf("Run GRANT %s TO %s, or have the owner do it.",
						quote_identifier(module->owner_name), quote_identifier(user_name)));
}

static bool
may_log_in(Oid role)
{
	HeapTuple	tuple = SearchSysCache1(AUTHOID, ObjectIdGetDatum(role));
	bool		result;

	if (!HeapTupleIsValid(tuple))
		return false;
	result = ((Form_pg_authid) GETSTRUCT(tuple))->rolcanlogin;
	ReleaseSysCache(tuple);
	return result;
}

/* Workers connect to this database as the owner: can they? */
static void
check_owner_can_connect(DgenModule *module)
{
	const char *owner = quote_identifier(module->owner_name);
	const char *database = get_database_name(MyDatabaseId);

	if (DGEN_OWNER_MUST_LOGIN && !may_log_in(module->owner))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("owner \"%s\" of module \"%s\" is not permitted to log in",
						module->owner_name, module->name),
				 errdetail("Workers connect as the owner, which PostgreSQL before version 17 allows only with LOGIN."),
				 errhint("Run ALTER ROLE %s LOGIN; without a password and an entry in pg_hba.conf nobody else can use it.",
						 owner)));
	if (object_aclcheck(DatabaseRelationId, MyDatabaseId, module->owner, ACL_CONNECT) != ACLCHECK_OK)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("owner \"%s\" of module \"%s\" has no CONNECT on database \"%s\"",
						module->owner_name, module->name, database),
				 errdetail("Workers connect to the database as the owner."),
				 errhint("Run GRANT CONNECT ON DATABASE %s TO %s.", quote_identifier(database), owner)));
}

static void
warn_of_superuser(DgenModule *module)
{
	ereport(WARNING,
			(errmsg("callbacks of module \"%s\" run as superuser \"%s\"", module->name, module->owner_name),
			 errdetail("Everybody who may send to the module has them run with all rights."),
			 errhint("Give the functions to a role with few rights: ALTER FUNCTION ... OWNER TO ....")));
}

/* ---------------------------------------------------------- create and alter */

static void
push_string(JsonbParseState **state, const char *key, const char *value)
{
	JsonbValue	v;

	v.type = jbvString;
	v.val.string.val = unconstify(char *, key);
	v.val.string.len = strlen(key);
	pushJsonbValue(state, WJB_KEY, &v);
	v.val.string.val = unconstify(char *, value);
	v.val.string.len = strlen(value);
	pushJsonbValue(state, WJB_VALUE, &v);
}

static void
push_value(JsonbParseState **state, const char *key, JsonbValue *value)
{
	JsonbValue	k;

	k.type = jbvString;
	k.val.string.val = unconstify(char *, key);
	k.val.string.len = strlen(key);
	pushJsonbValue(state, WJB_KEY, &k);
	pushJsonbValue(state, WJB_VALUE, value);
}

/* {"module": ..., "schema": ..., "owner": ..., "callbacks": {...}, "created": ...} */
static Jsonb *
report_module(DgenModule *module, bool created)
{
	JsonbParseState *state = NULL;
	Jsonb	   *callbacks = dgen_callbacks_to_jsonb(module);
	JsonbValue	v;

	pushJsonbValue(&state, WJB_BEGIN_OBJECT, NULL);
	push_string(&state, "module", module->name);
	push_string(&state, "schema", module->schema_name);
	push_string(&state, "owner", module->owner_name);
	v.type = jbvBinary;
	v.val.binary.data = &callbacks->root;
	v.val.binary.len = VARSIZE(callbacks) - VARHDRSZ;
	push_value(&state, "callbacks", &v);
	v.type = jbvBool;
	v.val.boolean = created;
	push_value(&state, "created", &v);
	return JsonbValueToJsonb(pushJsonbValue(&state, WJB_END_OBJECT, NULL));
}

/*
 * Apply the arguments to a row, new or read under the lock, check all, and
 * write it.
 */
static Jsonb *
save_module(FunctionCallInfo fcinfo, DgenModuleRow *row, bool create)
{
	char	   *agreed = create ? NULL : TextDatumGetCString(row->values[MODULE_OWNER]);
	DgenModule *before = create ? NULL : dgen_module_get(TextDatumGetCString(row->values[MODULE_NAME]), true);
	bool		was_machine = before != NULL && before->machine;
	bool		was_external = !create && DatumGetBool(row->values[MODULE_OPTIONS]);
	DgenModule *module;
	Jsonb	   *report;

	apply_arguments(fcinfo, row);

	/* who owns it now, whoever was agreed to before */
	row->nulls[MODULE_OWNER] = true;
	module = dgen_module_build(row);
	if (agreed != NULL)
		check_agreed_owner(module, agreed);
	if (!create && was_external != module->external)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("module \"%s\" cannot become %s", module->name,
						module->external ? "external" : "one with handlers"),
				 errdetail("Its messages are in the hands of workers, or of clients."),
				 errhint("Drop the module, and make it anew.")));
	check_found(module);
	check_kind(module, create, was_machine);
	check_maker(module);
	if (!module->external)
		check_owner_can_connect(module);
	if (superuser_arg(module->owner) && !module->external &&
		(agreed == NULL || strcmp(agreed, module->owner_name) != 0))
		warn_of_superuser(module);

	row->values[MODULE_OWNER] = CStringGetTextDatum(module->owner_name);
	row->nulls[MODULE_OWNER] = false;
	if (create)
	{
		dgen_arm();
		delete_leftovers(TextDatumGetCString(row->values[MODULE_NAME]));
		row->values[MODULE_ID] = Int32GetDatum((int32) nextval_internal(dgen_sequence_oid("module_id"), false));
		dgen_module_row_insert(row);
	}
	else
		dgen_module_row_update(row);

	module->id = DatumGetInt32(row->values[MODULE_ID]);
	dgen_attributes_settle(module, create);
	report = report_module(module, create);
	MemoryContextDelete(module->mcxt);
	return report;
}

Datum
dgen_create_module(PG_FUNCTION_ARGS)
{
	char	   *name = name_argument(fcinfo);
	IfExists	if_exists = if_exists_argument(fcinfo);
	DgenModuleRow row;

	dgen_check_writable();
	dgen_module_lock(name);
	if (!dgen_module_row_read(name, &row))
	{
		init_row(name, &row);
		PG_RETURN_JSONB_P(save_module(fcinfo, &row, true));
	}

	if (if_exists == IF_EXISTS_ERROR)
		ereport(ERROR,
				(errcode(ERRCODE_DUPLICATE_OBJECT),
				 errmsg("module \"%s\" already exists", name),
				 errdetail("It belongs to role \"%s\".", TextDatumGetCString(row.values[MODULE_OWNER])),
				 errhint("Change it with dgen.alter_module, or pass if_exists => 'alter' or 'skip'.")));
	if (if_exists == IF_EXISTS_SKIP)
	{
		DgenModule *module = dgen_module_get(name, false);

		dgen_module_check_read(module);
		PG_RETURN_JSONB_P(report_module(module, false));
	}
	PG_RETURN_JSONB_P(save_module(fcinfo, &row, false));
}

Datum
dgen_alter_module(PG_FUNCTION_ARGS)
{
	char	   *name = name_argument(fcinfo);
	DgenModuleRow row;

	dgen_check_writable();
	dgen_module_lock(name);
	if (!dgen_module_row_read(name, &row))
		dgen_module_missing(name);
	PG_RETURN_JSONB_P(save_module(fcinfo, &row, false));
}

/* ---------------------------------------------------------------------- drop */

/*
 * The tables that hold what belongs to a module's servers.  index: one whose
 * first column is the address, or -1 for a scan of all; attno: the address in
 * the table.  counted: loss of these is what "cascade" is asked for.
 */
static const struct
{
	DgenTableId table;
	int			index;
	int			attno;
	const char *counted;
	bool		effects;		/* rows of the streams of effects, see effect.c */
}			parts[] = {
	{DGEN_T_SERVER, 0, 1, "servers"},
	{DGEN_T_MESSAGE, -1, 9, "messages"},
	{DGEN_T_DELAYED, 2, 10, "delayed messages"},
	{DGEN_T_POSTPONED, 1, 9, "postponed messages"},
	{DGEN_T_LETTER, 1, 9, "dead letters"},
	{DGEN_T_ATTEMPT, 1, 2, NULL},
	{DGEN_T_ATTEMPT, 1, 2, NULL, true},
	{DGEN_T_REPLY, 1, 2, NULL},
	{DGEN_T_DEDUP, 0, 1, NULL},
	{DGEN_T_PATCH, 0, 1, NULL},
	{DGEN_T_HISTORY, 0, 1, NULL},
	{DGEN_T_TOMBSTONE, 0, 1, NULL},
	{DGEN_T_MONITOR, DGEN_I_MONITOR_WATCHER, 3, NULL},
	{DGEN_T_NAME, DGEN_I_NAME_SERVER, 2, "names"},
	{DGEN_T_MEMBER, DGEN_I_MEMBER_SERVER, 2, "memberships of groups"},
	{DGEN_T_TRACE_ENTRY, DGEN_I_TRACE_ENTRY_SERVER, 5, NULL},
	{DGEN_T_TRACE, DGEN_I_TRACE_TARGET, 2, NULL},
	{DGEN_T_TIMER, 0, 1, NULL},
	{DGEN_T_CHILD, DGEN_I_CHILD_SERVER, 4, NULL},
	{DGEN_T_AUDIT, DGEN_I_AUDIT_SERVER, 4, NULL}
};

/* the leases that one transaction may take without emptying the lock table */
#define MAX_LEASES 1000

/* Addresses from "name/" up to before "name0": '0' follows '/'. */
static DgenScan *
begin_part(DgenTable *table, int index, const char *name)
{
	ScanKeyData keys[2];

	if (index < 0)
		return dgen_scan_begin(table, 0, NULL, 0, NULL);
	ScanKeyEntryInitialize(&keys[0], 0, 1, BTGreaterEqualStrategyNumber, InvalidOid,
						   C_COLLATION_OID, F_TEXT_GE, CStringGetTextDatum(psprintf("%s/", name)));
	ScanKeyEntryInitialize(&keys[1], 0, 1, BTLessStrategyNumber, InvalidOid,
						   C_COLLATION_OID, F_TEXT_LT, CStringGetTextDatum(psprintf("%s0", name)));
	return dgen_scan_begin(table, index, NULL, 2, keys);
}

/* The next row of the module's servers; *address as it is stored. */
static HeapTuple
next_in_part(DgenTable *table, DgenScan *scan, int attno, const char *prefix, text **address)
{
	int			len = strlen(prefix);
	HeapTuple	tuple;

	while ((tuple = dgen_scan_next(scan)) != NULL)
	{
		bool		isnull;

		CHECK_FOR_INTERRUPTS();
		*address = DatumGetTextPP(heap_getattr(tuple, attno, RelationGetDescr(table->rel), &isnull));
		if (VARSIZE_ANY_EXHDR(*address) >= len && memcmp(VARDATA_ANY(*address), prefix, len) == 0)
			break;
	}
	return tuple;
}

/* What the addresses of a part begin with, before the slash. */
static const char *
part_name(int part, const char *name)
{
	return parts[part].effects ? dgen_effects_of(name) : name;
}

/* How many rows one table has of the module. */
static int64
count_part(int part, const char *name)
{
	DgenTable  *table = dgen_table_open(parts[part].table, AccessShareLock);
	DgenScan   *scan = begin_part(table, parts[part].index, part_name(part, name));
	char	   *prefix = psprintf("%s/", part_name(part, name));
	text	   *address;
	int64		count = 0;

	while (next_in_part(table, scan, parts[part].attno, prefix, &address) != NULL)
		count++;
	dgen_scan_end(scan);
	dgen_table_close(table);
	return count;
}

/* Delete them; returns how many.  lease: wait for each server's activation. */
static int64
delete_part(int part, const char *name, bool lease)
{
	DgenTable  *table = dgen_table_open(parts[part].table, RowExclusiveLock);
	DgenScan   *scan = begin_part(table, parts[part].index, part_name(part, name));
	char	   *prefix = psprintf("%s/", part_name(part, name));
	HeapTuple	tuple;
	text	   *address;
	int64		count = 0;

	while ((tuple = next_in_part(table, scan, parts[part].attno, prefix, &address)) != NULL)
	{
		ItemPointerData tid = tuple->t_self;

		if (lease)
			dgen_lease_take(dgen_address_hash(VARDATA_ANY(address), VARSIZE_ANY_EXHDR(address)), true);
		/* a row that was changed while we waited is met again, see delete_all */
		(void) dgen_table_delete_wait(table, &tid);
		dgen_progress_step(false);
		dgen_waitpoint_reach("dgen-drop-row");
		count++;
	}
	dgen_scan_end(scan);
	dgen_table_close(table);
	return count;
}

static void
refuse_drop(const char *name, const int64 *counts)
{
	StringInfoData detail;

	initStringInfo(&detail);
	for (int part = 0; part < lengthof(parts); part++)
	{
		if (parts[part].counted != NULL && counts[part] > 0)
			appendStringInfo(&detail, "%s%s: " INT64_FORMAT, detail.len > 0 ? ", " : "",
							 parts[part].counted, counts[part]);
	}
	ereport(ERROR,
			(errcode(ERRCODE_DEPENDENT_OBJECTS_STILL_EXIST),
			 errmsg("cannot drop module \"%s\" because it is in use", name),
			 errdetail("Number of its %s.", detail.data),
			 errhint("Pass \"cascade\" => true to lose them, too.")));
}

/*
 * Delete all that belongs to the module's servers, again until nothing is
 * left: workers go on until the module's end is committed.  What an activation
 * moves from a table that is yet to be read to one that has been (its message
 * is gone, and its server's row is new) may slip past once; it was a message in
 * the pass before, so that two passes that find nothing are the end.
 */
static void
delete_all(DgenModule *module, int64 nservers)
{
	bool		lease = !module->suspended || module->uncommitted;
	int			empty = 0;		/* passes in a row */
	int64		deleted;

	if (lease && nservers > MAX_LEASES)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_IN_USE),
				 errmsg("cannot drop module \"%s\" while it runs", module->name),
				 errdetail("It has " INT64_FORMAT " servers; more than %d cannot be waited for one by one.",
						   nservers, MAX_LEASES),
				 errhint("Run SELECT dgen.suspend(module => %s), commit, and drop it then.",
						 quote_literal_cstr(module->name))));
	do
	{
		deleted = dgen_monitor_drop(module->name);
		for (int part = 0; part < lengthof(parts); part++)
			deleted += delete_part(part, module->name, lease && parts[part].table == DGEN_T_SERVER);
		CommandCounterIncrement();
		empty = deleted > 0 ? 0 : empty + 1;
	} while (empty < 2);
}

/* Who runs now has servers in hand, which would be written after they were deleted. */
static void
check_not_within(const char *name)
{
	for (DgenScope *scope = dgen_scope; scope != NULL; scope = scope->up)
	{
		if (scope->module == NULL || strcmp(scope->module->name, name) != 0)
			continue;
		ereport(ERROR,
				(errcode(ERRCODE_DGEN_CALL_CYCLE),
				 errmsg("module \"%s\" cannot be dropped from within its own callback", name),
				 errdetail("Its %s is running.", dgen_callback_name(scope->callback)),
				 errhint("Drop it from outside.")));
	}
}

/*
 * What came of activations, senders and operators whose transactions were open
 * when a module of that name was dropped, and that drop_module could not see, is
 * not the new one's.  Messages the keeper drops, too, as it meets them.
 */
static void
delete_leftovers(const char *name)
{
	(void) dgen_monitor_drop(name);
	for (int part = 0; part < lengthof(parts); part++)
		(void) delete_part(part, name, false);
	CommandCounterIncrement();
}

Datum
dgen_drop_module(PG_FUNCTION_ARGS)
{
	char	   *name = name_argument(fcinfo);
	bool		cascade = !PG_ARGISNULL(1) && PG_GETARG_BOOL(1);
	int64		counts[lengthof(parts)] = {0};
	bool		in_use = false;
	int64		total = 0;
	DgenModule *module;
	DgenModuleRow row;

	dgen_check_writable();
	check_not_within(name);
	dgen_module_lock(name);
	if (!dgen_module_row_read(name, &row))
		dgen_module_missing(name);
	module = dgen_module_get(name, false);
	check_agreed_owner(module, TextDatumGetCString(row.values[MODULE_OWNER]));

	for (int part = 0; part < lengthof(parts); part++)
	{
		if (parts[part].counted != NULL)
			counts[part] = count_part(part, name);
		in_use |= counts[part] > 0;
		total += counts[part];
	}
	if (in_use && !cascade)
		refuse_drop(name, counts);
	dgen_progress_begin(DGEN_COMMAND_DROP_MODULE, module, false);
	dgen_progress_total(total, false);
	dgen_module_hold(module);
	dgen_waitpoint_reach("dgen-drop-module");
	delete_all(module, counts[0]);
	dgen_attributes_drop(module, cascade);
	dgen_module_release(module);
	dgen_statistics_drop(name);
	dgen_stat_forget_module(module);
	dgen_progress_end();
	dgen_module_row_delete(&row);
	PG_RETURN_VOID();
}

/* ---------------------------------------------------------------------- show */

/* columns of module_info, as sql/module.sql has them */
enum
{
	INFO_NAME,
	INFO_OWNER,
	INFO_SCHEMA,
	INFO_CALLBACKS,
	INFO_OPTIONS,				/* the first of them */
	INFO_CREATED_AT = INFO_OPTIONS + DGEN_NOPTIONS,
	INFO_SUSPENDED_AT,
	INFO_SUSPENDED_BY,
	INFO_SUSPENDED_REASON,
	INFO_FAULT,
	INFO_NATTS
};

static void
set_text(Datum *values, bool *nulls, int column, const char *value)
{
	nulls[column] = value == NULL;
	values[column] = value ? CStringGetTextDatum(value) : (Datum) 0;
}

/* What is wrong with the module, line by line; NULL if nothing. */
static char *
all_faults(DgenModule *module)
{
	char	   *faults = dgen_callbacks_faults(module);

	if (module->owner_fault == NULL)
		return faults;
	return faults ? psprintf("%s\n%s", module->owner_fault, faults) : module->owner_fault;
}

/*
 * module_info(): the modules that the current user may do anything with, as
 * the library sees them: the row, and what was looked up live.
 */
Datum
dgen_module_info(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	ListCell   *lc;

	InitMaterializedSRF(fcinfo, 0);
	foreach(lc, dgen_module_rows())
	{
		DgenModuleRow *row = lfirst(lc);
		DgenModule *module = dgen_module_get(TextDatumGetCString(row->values[MODULE_NAME]), true);
		Datum		values[INFO_NATTS];
		bool		nulls[INFO_NATTS];

		CHECK_FOR_INTERRUPTS();
		if (module == NULL || !dgen_module_may_see(module))
			continue;
		set_text(values, nulls, INFO_NAME, module->name);
		set_text(values, nulls, INFO_OWNER, module->owner_name);
		set_text(values, nulls, INFO_SCHEMA, module->schema_name);
		values[INFO_CALLBACKS] = JsonbPGetDatum(dgen_callbacks_to_jsonb(module));
		nulls[INFO_CALLBACKS] = false;
		/* options and created_at are the same columns in the same order */
		memcpy(&values[INFO_OPTIONS], &row->values[MODULE_OPTIONS], (DGEN_NOPTIONS + 2) * sizeof(Datum));
		memcpy(&nulls[INFO_OPTIONS], &row->nulls[MODULE_OPTIONS], (DGEN_NOPTIONS + 2) * sizeof(bool));
		set_text(values, nulls, INFO_SUSPENDED_BY, module->suspended_by);
		set_text(values, nulls, INFO_SUSPENDED_REASON, module->suspended_reason);
		set_text(values, nulls, INFO_FAULT, all_faults(module));
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	}
	return (Datum) 0;
}
