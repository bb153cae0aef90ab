/*-------------------------------------------------------------------------
 *
 * handler.c
 *	  Calls one callback of a module, as the right role, and decodes what it
 *	  said.
 *
 * In a worker the process is the module's owner already.  Everywhere else the
 * callback runs under SECURITY_LOCAL_USERID_CHANGE as the owner, so that it
 * cannot change its role, and under SECURITY_RESTRICTED_OPERATION as well
 * unless the owner may become the caller anyway: what an owner's code could
 * leave behind to run later as the caller (deferred triggers before PostgreSQL
 * 18, temporary objects, cursors) it then either cannot leave, or gains
 * nothing by.  A superuser who has become the owner by SET ROLE or SET SESSION
 * AUTHORIZATION counts as the caller, too: whatever runs later may RESET that.
 *
 * A GUC nest level around each callback undoes what it sets.  In a worker the
 * module's search_path and TimeZone are the session's, set between
 * transactions; elsewhere they are set inside the nest level.
 *
 * While a callback runs, dgen_scope says which.  Scopes form a stack, since a
 * handler's call is an invoke; they live in TopTransactionContext because an
 * error unwinds past the frames that made them, and the end of the
 * (sub)transaction pops them.
 *
 *-------------------------------------------------------------------------
 */
#include "dgen.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/objectaddress.h"
#include "catalog/pg_type.h"
#include "pgstat.h"
#include "storage/proc.h"
#include "utils/acl.h"
#include "utils/fmgroids.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/typcache.h"

typedef struct DgenSaid
{
	DgenDirective what;
	char	   *text;
	Interval	interval;
	Jsonb	   *message;
	DgenAction *action;
	SubTransactionId subid;
} DgenSaid;

DgenScope  *dgen_scope = NULL;

static DgenScope *base_scope = NULL;	/* outlives transactions */

/* ---------------------------------------------------------------- directives */

static const char *
directive_name(DgenDirective what)
{
	switch (what)
	{
		case DGEN_SAID_NOREPLY:
			return "noreply";
		case DGEN_SAID_EXIT:
			return "exit";
		case DGEN_SAID_REJECT:
			return "reject";
		case DGEN_SAID_RETRY_AFTER:
			return "retry_after";
		case DGEN_SAID_CONTINUE:
			return "continue";
		case DGEN_SAID_TIMEOUT:
			return "timeout";
		case DGEN_SAID_POSTPONE:
			return "postpone";
		case DGEN_SAID_LOCK:
			return "lock";
		case DGEN_SAID_ACTION:
			break;
	}
	return "directive";
}

/* Which directives a callback may give. */
static int
allowed_directives(DgenCallbackKind callback, const char *kind)
{
	const int	always = DGEN_SAID_EXIT | DGEN_SAID_REJECT | DGEN_SAID_CONTINUE |
		DGEN_SAID_TIMEOUT | DGEN_SAID_LOCK;

	switch (callback)
	{
		case DGEN_INIT:
			return DGEN_SAID_CONTINUE | DGEN_SAID_TIMEOUT;
		case DGEN_HANDLE_CALL:
			return always | DGEN_SAID_NOREPLY | DGEN_SAID_POSTPONE |
				(strcmp(kind, "request") == 0 ? DGEN_SAID_RETRY_AFTER : 0);
		case DGEN_HANDLE_CAST:
		case DGEN_HANDLE_INFO:
			return always | DGEN_SAID_RETRY_AFTER | DGEN_SAID_POSTPONE;
		case DGEN_HANDLE_CONTINUE:
			return always | DGEN_SAID_RETRY_AFTER;
		case DGEN_EFFECT:
			return DGEN_SAID_REJECT | DGEN_SAID_RETRY_AFTER;
		case DGEN_HANDLE_EVENT:
		case DGEN_STATE_EVENT:
			return DGEN_SAID_EXIT | DGEN_SAID_REJECT | DGEN_SAID_NOREPLY |
				(strcmp(kind, "internal") == 0 ? 0 : DGEN_SAID_POSTPONE) |
				(strcmp(kind, "call") == 0 ? 0 : DGEN_SAID_RETRY_AFTER);
		case DGEN_ENTER:
			return DGEN_SAID_EXIT;
		default:
			return 0;
	}
}

/* An ephemeral server has no later to speak of, and continue needs its callback. */
static void
check_possible(DgenScope *scope, DgenDirective what)
{
	if (scope->module->ephemeral && (what & (DGEN_SAID_CONTINUE | DGEN_SAID_POSTPONE)))
		ereport(ERROR,
				(errcode(ERRCODE_DGEN_BAD_DIRECTIVE),
				 errmsg("directive \"%s\" is not allowed in an ephemeral module",
						directive_name(what)),
				 errdetail("Servers of module \"%s\" live for one message each.", scope->module->name),
				 errhint("Send a message instead, or run dgen.alter_module('%s', ephemeral => false).",
						 scope->module->name)));
	if (what == DGEN_SAID_CONTINUE)
		(void) dgen_module_callback(scope->module, DGEN_HANDLE_CONTINUE);
}

static void
check_allowed(DgenScope *scope, DgenDirective what)
{
	if ((allowed_directives(scope->callback, scope->kind) & what) == 0 ||
		(scope->module->machine && scope->callback == DGEN_INIT))
		ereport(ERROR,
				(errcode(ERRCODE_DGEN_BAD_DIRECTIVE),
				 errmsg("directive \"%s\" is not allowed in %s",
						directive_name(what), dgen_callback_name(scope->callback)),
				 what == DGEN_SAID_NOREPLY ? errhint("Only handle_call can answer later.") :
				 what == DGEN_SAID_RETRY_AFTER ? errhint("A caller waits: raise an error, and let it call again.") :
				 errhint("See the table of directives in the documentation.")));
	check_possible(scope, what);
}

/*
 * A handler said a directive by function: dgen.exit() and the like.  It
 * counts if the subtransaction that said it commits; the last one wins.
 */
void
dgen_scope_say(DgenDirective what, const char *text, const Interval *interval, Jsonb *message)
{
	MemoryContext old;
	DgenSaid   *said;

	if (dgen_scope == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_DGEN_BAD_DIRECTIVE),
				 errmsg("dgen.%s() can be used in a handler only", directive_name(what)),
				 errdetail("No handler is running in this session."),
				 errhint("Call it in a callback such as handle_call.")));
	check_allowed(dgen_scope, what);
	old = MemoryContextSwitchTo(TopTransactionContext);
	said = palloc0(sizeof(DgenSaid));
	said->what = what;
	said->text = text ? pstrdup(text) : NULL;
	if (interval != NULL)
		said->interval = *interval;
	if (message != NULL)
	{
		said->message = palloc(VARSIZE(message));
		memcpy(said->message, message, VARSIZE(message));
	}
	said->subid = GetCurrentSubTransactionId();
	dgen_scope->said = lcons(said, dgen_scope->said);
	MemoryContextSwitchTo(old);
}

/*
 * An action of a state machine, by function; as dgen_scope_say(), but all that
 * are said count.
 */
void
dgen_scope_act(const DgenAction *action, const char *function)
{
	MemoryContext old;
	DgenSaid   *said;
	bool		in_event;

	if (dgen_scope == NULL || !dgen_scope->module->machine)
		ereport(ERROR,
				(errcode(ERRCODE_DGEN_BAD_DIRECTIVE),
				 errmsg("dgen.%s() can be used in a state machine only", function),
				 dgen_scope == NULL ? errdetail("No handler is running in this session.") :
				 errdetail("Module \"%s\" is none.", dgen_scope->module->name),
				 errhint("Call it in handle_event of a module that was made with kind => 'statem'.")));
	in_event = dgen_scope->callback == DGEN_HANDLE_EVENT || dgen_scope->callback == DGEN_STATE_EVENT ||
		dgen_scope->callback == DGEN_INIT;
	if (!in_event && (dgen_scope->callback != DGEN_ENTER || action->kind == DGEN_NEXT_EVENT))
		ereport(ERROR,
				(errcode(ERRCODE_DGEN_BAD_DIRECTIVE),
				 errmsg("dgen.%s() is not allowed in %s", function,
						dgen_callback_name(dgen_scope->callback)),
				 errhint("See the table of directives in the documentation.")));
	old = MemoryContextSwitchTo(TopTransactionContext);
	said = palloc0(sizeof(DgenSaid));
	said->what = DGEN_SAID_ACTION;
	said->action = palloc(sizeof(DgenAction));
	*said->action = *action;
	if (action->name != NULL)
		said->action->name = pstrdup(action->name);
	if (action->event != NULL)
	{
		said->action->event = palloc(VARSIZE(action->event));
		memcpy(said->action->event, action->event, VARSIZE(action->event));
	}
	said->subid = GetCurrentSubTransactionId();
	dgen_scope->said = lcons(said, dgen_scope->said);
	MemoryContextSwitchTo(old);
}

/* ---------------------------------------------------------------- scopes */

/* Leave what an aborted subtransaction entered, and forget what it said. */
void
dgen_scope_subxact(SubXactEvent event, SubTransactionId my, SubTransactionId parent)
{
	if (event == SUBXACT_EVENT_ABORT_SUB)
	{
		while (dgen_scope != NULL && dgen_scope->subid >= my)
		{
			MyXactFlags |= dgen_scope->xact_flags;
			dgen_scope = dgen_scope->up;
		}
	}
	else if (event != SUBXACT_EVENT_COMMIT_SUB)
		return;

	for (DgenScope *scope = dgen_scope; scope != NULL; scope = scope->up)
	{
		ListCell   *lc;

		foreach(lc, scope->said)
		{
			DgenSaid   *said = lfirst(lc);

			if (said->subid < my)
				continue;
			if (event == SUBXACT_EVENT_COMMIT_SUB)
				said->subid = parent;
			else
				scope->said = foreach_delete_current(scope->said, lc);
		}
	}
}

void
dgen_scope_reset(void)
{
	dgen_scope = base_scope;
}

void
dgen_scope_base(DgenScope *scope)
{
	dgen_scope = base_scope = scope;
}

/* ---------------------------------------------------------------- identity */

static bool
is_readonly(DgenCallbackKind kind)
{
	return kind == DGEN_HANDLE_QUERY || kind == DGEN_VALIDATE || kind == DGEN_ACCEPT ||
		kind == DGEN_ATTRIBUTES || kind == DGEN_FORMAT_STATUS || kind == DGEN_FORMAT_MESSAGE;
}

/* Would the owner's code gain by what it leaves behind for this session? */
static bool
must_restrict(Oid owner, Oid caller)
{
	/* who logged in; SET SESSION AUTHORIZATION does not change that */
	Oid			login = MyProc->roleId;

	if (caller != owner && !member_can_set_role(owner, caller))
		return true;
	return OidIsValid(login) && login != caller && superuser_arg(login) &&
		!member_can_set_role(owner, login);
}

static void
become_owner(DgenModule *module, DgenIdentity identity)
{
	Oid			caller;
	int			sec_context;

	GetUserIdAndSecContext(&caller, &sec_context);
	sec_context |= SECURITY_LOCAL_USERID_CHANGE;
	if (identity == DGEN_AS_RESTRICTED || must_restrict(module->owner, caller))
		sec_context |= SECURITY_RESTRICTED_OPERATION;
	SetUserIdAndSecContext(module->owner, sec_context);

	(void) set_config_option("search_path", module->search_path, PGC_USERSET, PGC_S_SESSION,
							 GUC_ACTION_SAVE, true, 0, false);
	if (module->timezone != NULL)
		(void) set_config_option("timezone", module->timezone, PGC_USERSET, PGC_S_SESSION,
								 GUC_ACTION_SAVE, true, 0, false);
}

static void
refuse_temporary(DgenModule *module)
{
	ereport(ERROR,
			(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
			 errmsg("callback of module \"%s\" used the temporary schema of its caller", module->name),
			 errdetail("It runs for role \"%s\", which is not its owner's to become.",
					   GetUserNameFromId(GetSessionUserId(), true)),
			 errhint("Use permanent tables, or dgen.call(), whose worker has a temporary schema of its own.")));
}

/*
 * A restricted operation may not make temporary tables, but PostgreSQL lets
 * other objects through once the session has a temporary schema: and a domain
 * or function left there would run as the caller, who finds it before
 * pg_catalog's, or takes it for his own.
 */
static void
check_temporary_schema(DgenModule *module)
{
	if (InSecurityRestrictedOperation() && (MyXactFlags & XACT_FLAGS_ACCESSEDTEMPNAMESPACE) != 0)
		refuse_temporary(module);
}

/* The schema of an object that was just made, and that catalog snapshots do not show yet. */
static Oid
schema_of_new(Oid classid, Oid object)
{
	AttrNumber	attno;
	Relation	rel;
	SysScanDesc scan;
	ScanKeyData key;
	HeapTuple	tuple;
	Oid			schema = InvalidOid;

	if (!is_objectclass_supported(classid) ||
		(attno = get_object_attnum_namespace(classid)) == InvalidAttrNumber)
		return InvalidOid;
	rel = table_open(classid, AccessShareLock);
	ScanKeyInit(&key, get_object_attnum_oid(classid), BTEqualStrategyNumber, F_OIDEQ,
				ObjectIdGetDatum(object));
	scan = systable_beginscan(rel, get_object_oid_index(classid), true, SnapshotSelf, 1, &key);
	tuple = systable_getnext(scan);
	if (HeapTupleIsValid(tuple))
	{
		bool		isnull;

		schema = DatumGetObjectId(heap_getattr(tuple, attno, RelationGetDescr(rel), &isnull));
	}
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	return schema;
}

/*
 * An object was made.  By its other name, pg_temp_3, the temporary schema is
 * used without PostgreSQL's taking note, so look where it is.
 */
void
dgen_scope_created(Oid classid, Oid object)
{
	if (dgen_scope != NULL && InSecurityRestrictedOperation() &&
		isTempOrTempToastNamespace(schema_of_new(classid, object)))
		refuse_temporary(dgen_scope->module);
}

/* ---------------------------------------------------------------- results */

static Jsonb *
jsonb_or_null(Datum value, bool isnull)
{
	return isnull ? dgen_json_null() : DatumGetJsonbP(value);
}

static void
take_field(DgenResultField field, Datum value, bool isnull, DgenResult *result)
{
	switch (field)
	{
		case DGEN_RESULT_STATE:
			result->has_state = true;
			result->state_is_null = isnull;
			result->state = jsonb_or_null(value, isnull);
			break;
		case DGEN_RESULT_REPLY:
			result->has_reply = !isnull;
			result->reply = jsonb_or_null(value, isnull);
			break;
		case DGEN_RESULT_NOREPLY:
			result->noreply = !isnull && DatumGetBool(value);
			break;
		case DGEN_RESULT_EXIT:
			result->exit = isnull ? NULL : TextDatumGetCString(value);
			break;
		case DGEN_RESULT_REJECT:
			result->reject = isnull ? NULL : TextDatumGetCString(value);
			break;
		case DGEN_RESULT_RETRY_AFTER:
			result->retry_after = isnull ? NULL : DatumGetIntervalP(value);
			break;
		case DGEN_RESULT_CONTINUE:
			result->continue_with = isnull ? NULL : DatumGetJsonbP(value);
			break;
		case DGEN_RESULT_TIMEOUT:
			result->timeout = isnull ? NULL : DatumGetIntervalP(value);
			break;
		case DGEN_RESULT_POSTPONE:
			result->postpone = !isnull && DatumGetBool(value);
			break;
		case DGEN_RESULT_LOCK:
			result->lock = !isnull && DatumGetBool(value);
			break;
		case DGEN_RESULT_DATA:
			result->has_state = true;
			result->state_is_null = isnull;
			result->state = jsonb_or_null(value, isnull);
			break;
		case DGEN_RESULT_NEXT_STATE:
		case DGEN_RESULT_STATE_NAME:
			result->next_state = isnull ? NULL : TextDatumGetCString(value);
			break;
		case DGEN_RESULT_REPEAT:
			result->repeat_state = !isnull && DatumGetBool(value);
			break;
		case DGEN_RESULT_VALUE:
			result->is_null = isnull;
			result->value = value;
			break;
	}
}

static void
decode_result(DgenCallback *cb, Datum value, bool isnull, DgenResult *result)
{
	Datum		values[DGEN_MAX_RESULTS];
	bool		nulls[DGEN_MAX_RESULTS];

	if (!cb->composite)
	{
		if (cb->nresults == 1)
			take_field(cb->results[0], value, isnull, result);
		return;
	}
	if (isnull)
		memset(nulls, true, sizeof(nulls));
	else
	{
		HeapTupleHeader td = DatumGetHeapTupleHeader(value);
		TupleDesc	desc = lookup_rowtype_tupdesc(HeapTupleHeaderGetTypeId(td),
												  HeapTupleHeaderGetTypMod(td));
		HeapTupleData tuple;

		tuple.t_len = HeapTupleHeaderGetDatumLength(td);
		ItemPointerSetInvalid(&tuple.t_self);
		tuple.t_tableOid = InvalidOid;
		tuple.t_data = td;
		/* a composite type may have changed since the module was read */
		if (desc->natts != cb->nresults)
			ereport(ERROR,
					(errcode(ERRCODE_DATATYPE_MISMATCH),
					 errmsg("callback returned %d columns where %d are declared",
							desc->natts, cb->nresults)));
		heap_deform_tuple(&tuple, desc, values, nulls);
		ReleaseTupleDesc(desc);
	}
	for (int i = 0; i < cb->nresults; i++)
		take_field(cb->results[i], nulls[i] ? (Datum) 0 : values[i], nulls[i], result);
}

/* Which directives a result holds. */
static int
given_directives(const DgenResult *result)
{
	return (result->noreply ? DGEN_SAID_NOREPLY : 0) |
		(result->exit ? DGEN_SAID_EXIT : 0) |
		(result->reject ? DGEN_SAID_REJECT : 0) |
		(result->retry_after ? DGEN_SAID_RETRY_AFTER : 0) |
		(result->continue_with ? DGEN_SAID_CONTINUE : 0) |
		(result->timeout ? DGEN_SAID_TIMEOUT : 0) |
		(result->postpone ? DGEN_SAID_POSTPONE : 0) |
		(result->lock ? DGEN_SAID_LOCK : 0);
}

/* Add one that was said by function, out of the scope's memory. */
static void
add_directive(DgenResult *result, const DgenSaid *said)
{
	switch (said->what)
	{
		case DGEN_SAID_NOREPLY:
			result->noreply = true;
			break;
		case DGEN_SAID_EXIT:
			result->exit = pstrdup(said->text);
			break;
		case DGEN_SAID_REJECT:
			result->reject = pstrdup(said->text);
			break;
		case DGEN_SAID_RETRY_AFTER:
			result->retry_after = palloc(sizeof(Interval));
			*result->retry_after = said->interval;
			break;
		case DGEN_SAID_CONTINUE:
			result->continue_with = palloc(VARSIZE(said->message));
			memcpy(result->continue_with, said->message, VARSIZE(said->message));
			break;
		case DGEN_SAID_TIMEOUT:
			result->timeout = palloc(sizeof(Interval));
			*result->timeout = said->interval;
			break;
		case DGEN_SAID_POSTPONE:
			result->postpone = true;
			break;
		case DGEN_SAID_LOCK:
			result->lock = true;
			break;
		case DGEN_SAID_ACTION:
			break;
	}
}

/*
 * reject and retry_after undo the activation; postpone and lock keep its
 * message, whose answer is then for later.
 */
static void
check_contradictions(DgenScope *scope, DgenResult *result)
{
	const int	undo = DGEN_SAID_REJECT | DGEN_SAID_RETRY_AFTER;
	const int	keep = DGEN_SAID_POSTPONE | DGEN_SAID_LOCK;
	int			given = given_directives(result);
	bool		reply = result->has_reply && (scope->callback == DGEN_HANDLE_CALL || scope->module->machine);
	StringInfoData list;

	if (!(((given & undo) && (given & (given - 1))) ||
		  ((given & keep) && ((given & ~(keep | DGEN_SAID_TIMEOUT)) || reply)) ||
		  (given & keep) == keep ||
		  ((given & DGEN_SAID_EXIT) && (given & DGEN_SAID_CONTINUE)) ||
		  (result->noreply && reply)))
		return;
	initStringInfo(&list);
	if (reply)
		appendStringInfoString(&list, " reply");
	for (int what = 1; what <= DGEN_SAID_LAST; what <<= 1)
	{
		if (given & what)
			appendStringInfo(&list, " %s", directive_name(what));
	}
	ereport(ERROR,
			(errcode(ERRCODE_DGEN_BAD_DIRECTIVE),
			 errmsg("contradictory directives from %s", dgen_callback_name(scope->callback)),
			 errdetail("It said%s.", list.data),
			 errhint("reject and retry_after undo the activation, and go with nothing else; postpone and lock answer later; noreply goes without a reply, and exit without continue.")));
}

/* A column says anything, where the function has checked its argument. */
static void
check_retry_after(const Interval *after)
{
	int64		usecs;

	if (!dgen_interval_usecs(after, &usecs) || usecs < 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("interval retry_after must be finite and not negative"),
				 errdetail("Its value is %s.",
						   DatumGetCString(DirectFunctionCall1(interval_out, IntervalPGetDatum(after)))),
				 errhint("Give an interval of zero or more, for example '5 s'.")));
	(void) dgen_time_after(GetCurrentTimestamp(), usecs, "retry_after");
}

/* Directives said by function hold unless a column says more. */
static void
merge_directives(DgenScope *scope, DgenResult *result)
{
	int			seen = given_directives(result);
	ListCell   *lc;

	if (seen == 0 && scope->said == NIL)
		return;
	for (int what = 1; what <= DGEN_SAID_LAST; what <<= 1)
	{
		if (seen & what)
			check_allowed(scope, what);
	}
	foreach(lc, scope->said)
	{
		DgenSaid   *said = lfirst(lc);

		if (said->what == DGEN_SAID_ACTION)
			result->actions = lcons(said->action, result->actions);
		if ((seen & said->what) || said->what == DGEN_SAID_ACTION)
			continue;
		seen |= said->what;
		add_directive(result, said);
	}
	check_contradictions(scope, result);
	if (result->retry_after != NULL)
		check_retry_after(result->retry_after);
}

/* what a callback may change in the session, as it was before */
typedef struct Surroundings
{
	Oid			user;
	int			sec_context;
	int			nest_level;
	bool		readonly;
} Surroundings;

/* Begin a callback: its scope (a copy of what), role and settings. */
static DgenScope *
enter(DgenScope *what, DgenCallbackKind kind, DgenIdentity identity, Surroundings *before)
{
	DgenScope  *scope = MemoryContextAlloc(TopTransactionContext, sizeof(DgenScope));

	*scope = *what;
	scope->up = dgen_scope;
	scope->subid = GetCurrentSubTransactionId();
	scope->callback = kind;
	scope->readonly = what->readonly || is_readonly(kind) || (dgen_scope && dgen_scope->readonly);
	scope->said = NIL;
	if (scope->now == 0)
		scope->now = GetCurrentTimestamp();

	before->nest_level = NewGUCNestLevel();
	before->readonly = XactReadOnly;
	GetUserIdAndSecContext(&before->user, &before->sec_context);
	if (identity != DGEN_AS_WORKER)
		become_owner(scope->module, identity);
	if (scope->readonly)
		XactReadOnly = true;
	dgen_scope = scope;
	return scope;
}

static void
leave(DgenScope *scope, Surroundings *before)
{
	dgen_scope = scope->up;
	AtEOXact_GUC(false, before->nest_level);
	/* after the settings, of which it is one, as it was within the callback */
	XactReadOnly = before->readonly;
	SetUserIdAndSecContext(before->user, before->sec_context);
	list_free_deep(scope->said);
	pfree(scope);
}

/* Call a function with what there is of its arguments. */
static Datum
call_function(DgenScope *scope, FmgrInfo *function, int nargs, int given, NullableDatum *args,
			  bool *isnull)
{
	LOCAL_FCINFO(fcinfo, 4);
	PgStat_FunctionCallUsage usage;
	Datum		value;

	InitFunctionCallInfoData(*fcinfo, function, nargs, InvalidOid, NULL, NULL);
	for (int i = 0; i < nargs; i++)
	{
		fcinfo->args[i].value = i < given ? args[i].value : (Datum) 0;
		fcinfo->args[i].isnull = i < given ? args[i].isnull : true;
	}
	scope->xact_flags = MyXactFlags & XACT_FLAGS_ACCESSEDTEMPNAMESPACE;
	MyXactFlags &= ~XACT_FLAGS_ACCESSEDTEMPNAMESPACE;
	pgstat_init_function_usage(fcinfo, &usage);
	value = FunctionCallInvoke(fcinfo);
	pgstat_end_function_usage(&usage, true);
	check_temporary_schema(scope->module);
	MyXactFlags |= scope->xact_flags;
	*isnull = fcinfo->isnull;
	return value;
}

/*
 * A callback returned SQL NULL as the state, which is what jsonb_set(), || and
 * a result that was forgotten give: shall all that the server knows be lost for
 * that?  Who means it returns JSON null.
 */
void
dgen_handler_refuse_null(DgenModule *module, DgenCallbackKind kind)
{
	if (kind == DGEN_INIT || module->ephemeral)
		return;
	ereport(ERROR,
			(errcode(ERRCODE_DGEN_INVALID_STATE),
			 errmsg("callback %s of module \"%s\" returned NULL as the state",
					dgen_callback_name(kind), module->name),
			 errdetail("The state stays as it was."),
			 errhint("jsonb_set(), jsonb_insert() and || give NULL where an argument is NULL. If the state is to be emptied, return 'null'::jsonb.")));
}

/*
 * Run one callback.  what describes the scope (copied).  Results are in the
 * current memory context.  Raises what the callback raises; then the caller's
 * (sub)transaction must abort, which restores user, settings and scope.
 */
void
dgen_handler_run(DgenScope *what, DgenCallbackKind kind, DgenIdentity identity,
				 int nargs, NullableDatum *args, DgenResult *result)
{
	DgenCallback *cb = kind == DGEN_STATE_EVENT ?
		dgen_module_state_callback(what->module, what->state_name, false) :
		dgen_module_callback(what->module, kind);
	Surroundings before;
	DgenScope  *scope = enter(what, kind, identity, &before);
	bool		isnull;
	Datum		value;

	memset(result, 0, sizeof(DgenResult));
	value = call_function(scope, &cb->flinfo, cb->nargs, nargs, args, &isnull);
	decode_result(cb, value, isnull, result);
	merge_directives(scope, result);
	/* unless the state goes anyway, or the activation is undone */
	if (result->state_is_null && !result->exit && !result->reject && !result->retry_after)
		dgen_handler_refuse_null(what->module, kind);
	leave(scope, &before);
}

/*
 * Run a function that a handler named for after its commit.  What it returns
 * is nobody's business; directives are said by function only.
 */
void
dgen_handler_effect(DgenScope *what, DgenIdentity identity, FmgrInfo *function,
					int nargs, NullableDatum *args, DgenResult *result)
{
	Surroundings before;
	DgenScope  *scope = enter(what, DGEN_EFFECT, identity, &before);
	bool		isnull;

	memset(result, 0, sizeof(DgenResult));
	(void) call_function(scope, function, nargs, nargs, args, &isnull);
	merge_directives(scope, result);
	leave(scope, &before);
}
