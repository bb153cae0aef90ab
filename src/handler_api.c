/*-------------------------------------------------------------------------
 *
 * handler_api.c
 *	  What a handler can ask and say: dgen.self() and its kin, and the
 *	  directives.
 *
 *-------------------------------------------------------------------------
 */
#include "dgen.h"

static DgenScope *
scope_or_error(const char *function)
{
	if (dgen_scope == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_DGEN_BAD_DIRECTIVE),
				 errmsg("dgen.%s() can be used in a handler only", function),
				 errdetail("No handler is running in this session."),
				 errhint("Call it in a callback such as handle_call.")));
	return dgen_scope;
}

static Datum
text_or_null(FunctionCallInfo fcinfo, const char *s)
{
	if (s == NULL)
		PG_RETURN_NULL();
	PG_RETURN_TEXT_P(cstring_to_text(s));
}

PG_FUNCTION_INFO_V1(dgen_self);
Datum
dgen_self(PG_FUNCTION_ARGS)
{
	return text_or_null(fcinfo, scope_or_error("self")->server);
}

PG_FUNCTION_INFO_V1(dgen_key);
Datum
dgen_key(PG_FUNCTION_ARGS)
{
	return text_or_null(fcinfo, strchr(scope_or_error("key")->server, '/') + 1);
}

PG_FUNCTION_INFO_V1(dgen_kind);
Datum
dgen_kind(PG_FUNCTION_ARGS)
{
	const char *kind = scope_or_error("kind")->kind;

	/* a request is a call whose reply is kept */
	return text_or_null(fcinfo, strcmp(kind, "request") == 0 ? "call" : kind);
}

PG_FUNCTION_INFO_V1(dgen_effect_id);
Datum
dgen_effect_id(PG_FUNCTION_ARGS)
{
	int64		id = scope_or_error("effect_id")->effect_id;

	if (id == 0)
		PG_RETURN_NULL();
	PG_RETURN_INT64(id);
}

PG_FUNCTION_INFO_V1(dgen_sender);
Datum
dgen_sender(PG_FUNCTION_ARGS)
{
	const char *sender = scope_or_error("sender")->sender;

	/* a client's session has no address */
	return text_or_null(fcinfo, sender && strchr(sender, '/') ? sender : NULL);
}

PG_FUNCTION_INFO_V1(dgen_sender_role);
Datum
dgen_sender_role(PG_FUNCTION_ARGS)
{
	return text_or_null(fcinfo, scope_or_error("sender_role")->sender_role);
}

PG_FUNCTION_INFO_V1(dgen_message_vsn);
Datum
dgen_message_vsn(PG_FUNCTION_ARGS)
{
	return text_or_null(fcinfo, scope_or_error("message_vsn")->message_vsn);
}

PG_FUNCTION_INFO_V1(dgen_context_get);
Datum
dgen_context_get(PG_FUNCTION_ARGS)
{
	DgenScope  *scope = scope_or_error("context");

	if (scope->context == NULL)
		PG_RETURN_NULL();
	PG_RETURN_JSONB_P(scope->context);
}

PG_FUNCTION_INFO_V1(dgen_now);
Datum
dgen_now(PG_FUNCTION_ARGS)
{
	PG_RETURN_TIMESTAMPTZ(dgen_scope ? dgen_scope->now : GetCurrentTimestamp());
}

PG_FUNCTION_INFO_V1(dgen_deadline);

/* deadline() -> timestamptz: when the caller gives up; NULL: nobody does */
Datum
dgen_deadline(PG_FUNCTION_ARGS)
{
	DgenScope  *scope = scope_or_error("deadline");

	if (scope->deadline == 0)
		PG_RETURN_NULL();
	PG_RETURN_TIMESTAMPTZ(scope->deadline);
}

PG_FUNCTION_INFO_V1(dgen_noreply);
Datum
dgen_noreply(PG_FUNCTION_ARGS)
{
	dgen_scope_say(DGEN_SAID_NOREPLY, NULL, NULL, NULL);
	PG_RETURN_VOID();
}

static char *
reason_arg(FunctionCallInfo fcinfo, const char *function)
{
	char	   *reason = dgen_arg_text(fcinfo, 0);

	if (reason == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("reason of dgen.%s() must not be null", function)));
	return reason;
}

PG_FUNCTION_INFO_V1(dgen_exit);
Datum
dgen_exit(PG_FUNCTION_ARGS)
{
	dgen_scope_say(DGEN_SAID_EXIT, reason_arg(fcinfo, "exit"), NULL, NULL);
	PG_RETURN_VOID();
}

PG_FUNCTION_INFO_V1(dgen_reject);
Datum
dgen_reject(PG_FUNCTION_ARGS)
{
	dgen_scope_say(DGEN_SAID_REJECT, reason_arg(fcinfo, "reject"), NULL, NULL);
	PG_RETURN_VOID();
}

PG_FUNCTION_INFO_V1(dgen_timeout);
Datum
dgen_timeout(PG_FUNCTION_ARGS)
{
	int64		usecs;

	if (!dgen_arg_interval(fcinfo, 0, "after", true, &usecs))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("interval of dgen.timeout() must not be null"),
				 errhint("Without a timeout a server waits for ever.")));
	dgen_scope_say(DGEN_SAID_TIMEOUT, NULL, PG_GETARG_INTERVAL_P(0), NULL);
	PG_RETURN_VOID();
}

PG_FUNCTION_INFO_V1(dgen_retry_after);
Datum
dgen_retry_after(PG_FUNCTION_ARGS)
{
	int64		usecs;

	if (!dgen_arg_interval(fcinfo, 0, "delay", true, &usecs))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("delay of dgen.retry_after() must not be null")));
	dgen_scope_say(DGEN_SAID_RETRY_AFTER, NULL, PG_GETARG_INTERVAL_P(0), NULL);
	PG_RETURN_VOID();
}

PG_FUNCTION_INFO_V1(dgen_continue);
Datum
dgen_continue(PG_FUNCTION_ARGS)
{
	dgen_scope_say(DGEN_SAID_CONTINUE, NULL, NULL, dgen_arg_jsonb(fcinfo, 0));
	PG_RETURN_VOID();
}

PG_FUNCTION_INFO_V1(dgen_postpone_directive);
Datum
dgen_postpone_directive(PG_FUNCTION_ARGS)
{
	dgen_scope_say(DGEN_SAID_POSTPONE, NULL, NULL, NULL);
	PG_RETURN_VOID();
}

PG_FUNCTION_INFO_V1(dgen_state_name);
Datum
dgen_state_name(PG_FUNCTION_ARGS)
{
	return text_or_null(fcinfo, scope_or_error("state_name")->state_name);
}

PG_FUNCTION_INFO_V1(dgen_next_event);
Datum
dgen_next_event(PG_FUNCTION_ARGS)
{
	DgenAction	action = {.kind = DGEN_NEXT_EVENT};

	action.event = dgen_arg_jsonb(fcinfo, 0);
	dgen_scope_act(&action, "next_event");
	PG_RETURN_VOID();
}

/* A timeout: after which time, null to cancel it, and with which event, from this argument on. */
static void
say_timeout(FunctionCallInfo fcinfo, int argno, DgenActionKind kind, char *name, const char *function)
{
	DgenAction	action = {.kind = kind};

	action.name = name;
	action.cancel = !dgen_arg_interval(fcinfo, argno, "after", true, &action.after);
	if (!PG_ARGISNULL(argno + 1))
		action.event = dgen_arg_jsonb(fcinfo, argno + 1);
	dgen_scope_act(&action, function);
}

PG_FUNCTION_INFO_V1(dgen_state_timeout);
Datum
dgen_state_timeout(PG_FUNCTION_ARGS)
{
	say_timeout(fcinfo, 0, DGEN_STATE_TIMEOUT, NULL, "state_timeout");
	PG_RETURN_VOID();
}

PG_FUNCTION_INFO_V1(dgen_event_timeout);
Datum
dgen_event_timeout(PG_FUNCTION_ARGS)
{
	say_timeout(fcinfo, 0, DGEN_EVENT_TIMEOUT, NULL, "event_timeout");
	PG_RETURN_VOID();
}

PG_FUNCTION_INFO_V1(dgen_generic_timeout);
Datum
dgen_generic_timeout(PG_FUNCTION_ARGS)
{
	char	   *name = dgen_arg_text(fcinfo, 0);

	if (name == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("name of a timeout must not be null"),
				 errhint("dgen.state_timeout() and dgen.event_timeout() need no name.")));
	say_timeout(fcinfo, 1, DGEN_GENERIC_TIMEOUT, name, "generic_timeout");
	PG_RETURN_VOID();
}
