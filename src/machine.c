/*-------------------------------------------------------------------------
 *
 * machine.c
 *	  State machines, as gen_statem has them: one activation of a module with
 *	  kind => 'statem'.
 *
 * The server's state is the machine's data; which state it is in, is
 * state_name.  An activation handles one event from outside, and then those
 * that its handlers insert (next_event), before the mailbox is looked at again.
 * After each event, in this order: the data is set; if the state has changed,
 * the state timeout is cancelled and what was postponed goes back to the
 * mailbox; timeouts are set; the state is entered.
 *
 * Timeouts are timers of the engine (timer.c), which end with the incarnation:
 * "$state", "$event", and "$name:" and a name.  Their message says which it is,
 * and is of a kind that nobody can send.  So that an event need not look for a
 * timer that it would cancel, the row of the server says that there may be one:
 * timeout_at of the event timeout, timeout_due of the state timeout; idle
 * timeouts, to which these columns belong elsewhere, do not exist in machines.
 *
 * Runs wherever activations do.  The server's lease is held; its row is changed
 * in memory, and written by the caller.
 *
 *-------------------------------------------------------------------------
 */
#include "dgen.h"

#include "access/xact.h"
#include "commands/trigger.h"
#include "common/int.h"

#define STATE_TIMER "$state"
#define EVENT_TIMER "$event"
#define NAMED_TIMER "$name:"
/* top-level key of a timer's message; those of users have "info" */
#define TIMER_KEY "$timer"

typedef struct Event
{
	const char *kind;
	Jsonb	   *event;
} Event;

/* ---------------------------------------------------------------- timeouts */

static void
push_string(JsonbParseState **parse, JsonbIteratorToken token, const char *s)
{
	JsonbValue	v;

	v.type = jbvString;
	v.val.string.val = unconstify(char *, s);
	v.val.string.len = strlen(s);
	pushJsonbValue(parse, token, &v);
}

static void
push_document(JsonbParseState **parse, Jsonb *jb)
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
	pushJsonbValue(parse, WJB_VALUE, &v);
}

/* A timeout without an event has null for one, a named one its name. */
static Jsonb *
timer_message(const char *kind, const DgenAction *action)
{
	JsonbParseState *parse = NULL;

	pushJsonbValue(&parse, WJB_BEGIN_OBJECT, NULL);
	push_string(&parse, WJB_KEY, TIMER_KEY);
	push_string(&parse, WJB_VALUE, kind);
	push_string(&parse, WJB_KEY, "event");
	if (action->event == NULL && action->name != NULL)
		push_string(&parse, WJB_VALUE, action->name);
	else
		push_document(&parse, action->event ? action->event : dgen_json_null());
	return JsonbValueToJsonb(pushJsonbValue(&parse, WJB_END_OBJECT, NULL));
}

static TimestampTz
due_after(int64 usecs)
{
	TimestampTz due;

	if (pg_add_s64_overflow(GetCurrentTimestamp(), usecs, &due) || !IS_VALID_TIMESTAMP(due))
		ereport(ERROR,
				(errcode(ERRCODE_DATETIME_VALUE_OUT_OF_RANGE),
				 errmsg("timeout of a state machine is out of range"),
				 errhint("Give a shorter one, for example '1 day'.")));
	return due;
}

/* Set or cancel one timer; flag: where the server's row says that there may be one. */
static void
set_timeout(DgenActivation *act, const char *name, const char *kind, const DgenAction *action,
			TimestampTz *flag)
{
	TimestampTz due = 0;

	if (!action->cancel)
	{
		due = due_after(action->after);
		dgen_timer_set(act->module, act->server, name, due, timer_message(kind, action));
	}
	else if (flag == NULL || *flag != 0)
		(void) dgen_timer_cancel(act->server, name);
	if (flag != NULL && *flag != due)
	{
		*flag = due;
		act->server->dirty = true;
	}
}

/* Cancel a timer, if the server's row knows of one. */
static void
cancel_timeout(DgenActivation *act, const char *name, TimestampTz *flag)
{
	const DgenAction cancel = {.cancel = true};

	if (*flag != 0)
		set_timeout(act, name, NULL, &cancel, flag);
}

static Event *
internal_event(Jsonb *jb)
{
	Event	   *event = palloc(sizeof(Event));

	event->kind = "internal";
	event->event = jb;
	return event;
}

/*
 * Do what was asked for besides; events that were inserted go before those
 * that wait in the queue.
 */
static List *
apply_actions(DgenActivation *act, List *actions, List *queue)
{
	DgenServer *server = act->server;
	List	   *inserted = NIL;
	ListCell   *lc;

	foreach(lc, actions)
	{
		DgenAction *action = lfirst(lc);

		switch (action->kind)
		{
			case DGEN_NEXT_EVENT:
				inserted = lappend(inserted, internal_event(action->event));
				break;
			case DGEN_STATE_TIMEOUT:
				set_timeout(act, STATE_TIMER, "state_timeout", action, &server->timeout_due);
				break;
			case DGEN_EVENT_TIMEOUT:
				set_timeout(act, EVENT_TIMER, "timeout", action, &server->timeout_at);
				break;
			case DGEN_GENERIC_TIMEOUT:
				set_timeout(act, psprintf("%s%s", NAMED_TIMER, action->name), "generic_timeout",
							action, NULL);
				break;
		}
	}
	return list_concat(inserted, queue);
}

/* ---------------------------------------------------------------- states */

static bool
has_callback(DgenModule *module, DgenCallbackKind kind)
{
	return module->callbacks[kind].present || module->callbacks[kind].fault != NULL;
}

static void
stop(DgenActivation *act, char *reason)
{
	act->exited = true;
	act->reason = reason;
	/* what it has postponed is left for its next incarnation */
	if (act->postponed)
		act->again = act->server->ahead = true;
	dgen_activation_stop(act->module, act->server, reason);
	if (act->server->state == NULL)
		dgen_history_note(act, act->kind);
	if (act->identity == DGEN_AS_WORKER)
		AfterTriggerFireDeferred();
}

/* The state that the machine is to be in; one whose events nobody handles is refused. */
static void
set_state_name(DgenActivation *act, const char *name)
{
	if (!has_callback(act->module, DGEN_HANDLE_EVENT))
		(void) dgen_module_state_callback(act->module, name, false);
	act->server->state_name = pstrdup(name);
	act->server->dirty = true;
}

/* The state enter call. */
static void
enter_state(DgenActivation *act, const char *old_state)
{
	DgenServer *server = act->server;
	DgenScope	scope;
	DgenResult	result;
	NullableDatum args[3] = {0};

	if (!has_callback(act->module, DGEN_ENTER))
		return;
	CommandCounterIncrement();
	dgen_activation_scope(act, &scope);
	scope.kind = "enter";
	args[0].value = CStringGetTextDatum(old_state);
	args[1].value = CStringGetTextDatum(server->state_name);
	args[2].value = JsonbPGetDatum(dgen_ephemeral_join(server));
	dgen_handler_run(&scope, DGEN_ENTER, act->identity, 3, args, &result);
	if (act->identity == DGEN_AS_WORKER)
		AfterTriggerFireDeferred();
	if (result.has_state)
		dgen_activation_set_state(act, result.state);
	(void) apply_actions(act, result.actions, NIL);
	if (result.exit != NULL)
		stop(act, result.exit);
}

/* What was postponed is retried in the new state, this activation's own event too. */
static void
change_state(DgenActivation *act, const char *name)
{
	DgenServer *server = act->server;

	set_state_name(act, name);
	cancel_timeout(act, STATE_TIMER, &server->timeout_due);
	dgen_postponed_replay(act->module, server);
	if (act->postponed)
		act->again = server->ahead = true;
}

/* After an event: the next state, if there is one, and the actions. */
static List *
transition(DgenActivation *act, DgenResult *result, List *queue)
{
	const char *old_state = act->server->state_name;
	bool		changed = result->next_state != NULL && strcmp(result->next_state, old_state) != 0;

	if (changed)
		change_state(act, result->next_state);
	queue = apply_actions(act, result->actions, queue);
	if (changed || result->repeat_state)
		enter_state(act, old_state);
	return queue;
}

/* ---------------------------------------------------------------- events */

static void
take_reply(DgenActivation *act, Event *event, Jsonb *reply)
{
	if (strcmp(event->kind, "call") != 0)
		ereport(ERROR,
				(errcode(ERRCODE_DGEN_BAD_DIRECTIVE),
				 errmsg("server \"%s\" replied to an event that is no call", act->server->address),
				 errdetail("The event is of kind \"%s\".", event->kind),
				 errhint("A call that is answered later is answered by dgen.reply(), with the token of dgen.\"from\"().")));
	act->replied = true;
	act->reply = reply;
}

/* Show one event to the machine; returns the events that it has inserted, and the rest. */
static List *
handle_event(DgenActivation *act, Event *event, List *queue)
{
	DgenServer *server = act->server;
	bool		all = has_callback(act->module, DGEN_HANDLE_EVENT);
	DgenScope	scope;
	DgenResult	result;
	NullableDatum args[4] = {0};
	int64		version;
	int			n = 0;

	dgen_history_settle(act);
	version = server->version;
	/* any event cancels it */
	cancel_timeout(act, EVENT_TIMER, &server->timeout_at);
	CommandCounterIncrement();
	dgen_activation_scope(act, &scope);
	scope.kind = event->kind;
	args[n++].value = CStringGetTextDatum(event->kind);
	args[n++].value = JsonbPGetDatum(event->event);
	if (all)
		args[n++].value = CStringGetTextDatum(server->state_name);
	args[n++].value = JsonbPGetDatum(dgen_ephemeral_join(server));
	dgen_handler_run(&scope, all ? DGEN_HANDLE_EVENT : DGEN_STATE_EVENT, act->identity, n, args,
					 &result);

	if (result.reject != NULL || result.retry_after != NULL)
	{
		act->outcome = result.reject ? DGEN_REJECTED : DGEN_RETRY_LATER;
		act->reason = result.reject;
		act->retry_after = result.retry_after;
		return NIL;
	}
	if (act->identity == DGEN_AS_WORKER)
		AfterTriggerFireDeferred();
	act->postponed |= result.postpone;
	if (result.has_reply)
		take_reply(act, event, result.reply);
	if (result.has_state)
		dgen_activation_set_state(act, result.state);
	else
		server->read = true;
	dgen_history_succeeded(act, version);
	if (result.exit != NULL)
	{
		stop(act, result.exit);
		return NIL;
	}
	return transition(act, &result, queue);
}

/* One event after the other, until none is left that the machine has inserted. */
static void
handle_all(DgenActivation *act, List *queue)
{
	while (queue != NIL && !act->exited && act->outcome == DGEN_HANDLED)
	{
		Event	   *event = linitial(queue);

		CHECK_FOR_INTERRUPTS();
		queue = handle_event(act, event, list_delete_first(queue));
	}
}

/* The event that a message is. */
static Event *
outer_event(DgenActivation *act)
{
	Event	   *event = palloc(sizeof(Event));
	DgenServer *server = act->server;
	JsonbValue	v;

	/* a request is a call whose reply is kept */
	event->kind = act->callback == DGEN_HANDLE_CALL ? "call" : act->kind;
	event->event = act->message;
	if (strcmp(act->kind, "timer") != 0 || !JB_ROOT_IS_OBJECT(act->message) ||
		getKeyJsonValueFromContainer(&act->message->root, TIMER_KEY, strlen(TIMER_KEY), &v) == NULL)
		return event;
	event->kind = pnstrdup(v.val.string.val, v.val.string.len);
	(void) getKeyJsonValueFromContainer(&act->message->root, "event", strlen("event"), &v);
	event->event = JsonbValueToJsonb(&v);
	/* one that was postponed has gone off before, and another may have been set since */
	if (act->retried)
		return event;
	if (strcmp(event->kind, "timeout") == 0)
		server->timeout_at = 0;
	else if (strcmp(event->kind, "state_timeout") == 0)
		server->timeout_due = 0;
	server->dirty = true;
	return event;
}

/* ---------------------------------------------------------------- activations */

/* init has run, and its data is set: the first state is entered. */
void
dgen_machine_begin(DgenActivation *act, DgenResult *init)
{
	List	   *queue;

	if (init->next_state == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_DGEN_INVALID_STATE),
				 errmsg("init of server \"%s\" gave no state_name", act->server->address),
				 errhint("A state machine begins in a state: return its name as column state_name.")));
	act->server->timeout_at = act->server->timeout_due = 0;
	set_state_name(act, init->next_state);
	queue = apply_actions(act, init->actions, NIL);
	enter_state(act, act->server->state_name);
	handle_all(act, queue);
	if (act->outcome != DGEN_HANDLED)
		ereport(ERROR,
				(errcode(ERRCODE_DGEN_REFUSED),
				 errmsg("server \"%s\" refused an event of its own as it started", act->server->address)));
	act->exited = false;
}

void
dgen_machine_run(DgenActivation *act)
{
	handle_all(act, list_make1(outer_event(act)));
}
