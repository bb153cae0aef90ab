/*-------------------------------------------------------------------------
 *
 * send.c
 *	  What clients and handlers send: cast, cast_many, send, send_request,
 *	  and cancel.
 *
 * All of it joins the caller's transaction.  Runs in any backend, takes no
 * lease.
 *
 *-------------------------------------------------------------------------
 */
#include "audit.h"
#include "batch.h"

#include "access/skey.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "funcapi.h"
#include "storage/lmgr.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/fmgrprotos.h"
#include "utils/rel.h"

#define DEDUP_LOCK_CLASS 0xD7

/* ---------------------------------------------------------------- checks */

/*
 * Size limit and the module's accept, in the sender's statement.
 */
void
dgen_check_message(DgenModule *module, const DgenAddress *to, const char *kind, Jsonb *message)
{
	DgenScope	scope = {0};
	DgenResult	result;
	NullableDatum args[2];

	if (VARSIZE(message) > module->max_message_size)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("message to server \"%s\" is too large", to->text),
				 errdetail("It has %zu bytes; max_message_size is " INT64_FORMAT ".",
						   (Size) VARSIZE(message), module->max_message_size),
				 errhint("Keep large data in a table and send its key, or raise the limit by dgen.alter_module('%s', max_message_size => ...).",
						 module->name)));
	if (!module->callbacks[DGEN_ACCEPT].present && !module->callbacks[DGEN_ACCEPT].fault)
		return;
	scope.module = module;
	scope.server = to->text;
	scope.hash = to->hash;
	scope.kind = kind;
	args[0].value = CStringGetTextDatum(kind);
	args[1].value = JsonbPGetDatum(message);
	args[0].isnull = args[1].isnull = false;
	dgen_handler_run(&scope, DGEN_ACCEPT, DGEN_AS_OWNER, 2, args, &result);
	if (result.is_null || !DatumGetBool(result.value))
		ereport(ERROR,
				(errcode(ERRCODE_DGEN_REFUSED),
				 errmsg("server \"%s\" does not accept this message", to->text),
				 errdetail("Callback accept of module \"%s\" returned %s.",
						   module->name, result.is_null ? "null" : "false"),
				 errhint("Nothing was sent. See what the module accepts.")));
}

static int16
check_priority(int64 priority)
{
	if (priority < -1 || priority > 1)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("invalid priority: %lld", (long long) priority),
				 errhint("Priorities are 1 (high), 0 (normal) and -1 (low).")));
	return (int16) priority;
}

static int16
check_max_attempts(int64 max_attempts)
{
	if (max_attempts < 1 || max_attempts > PG_INT16_MAX)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("invalid max_attempts: %lld", (long long) max_attempts),
				 errhint("It must be between 1 and %d.", PG_INT16_MAX)));
	return (int16) max_attempts;
}

static DgenCallbackKind
callback_for(char kind)
{
	return kind == 'c' ? DGEN_HANDLE_CAST : kind == 'r' ? DGEN_HANDLE_CALL : DGEN_HANDLE_INFO;
}

static const char *
kind_name(char kind)
{
	return kind == 'c' ? "cast" : kind == 'r' ? "call" : "info";
}

/* ---------------------------------------------------------------- dedup */

/*
 * One sender at a time for a key: who comes second waits for the first to
 * commit or abort, and then finds its row, or none.
 */
static void
lock_dedup_key(const DgenAddress *to, const char *key)
{
	int64		hash = dgen_address_hash(key, strlen(key)) ^ to->hash;
	LOCKTAG		tag;

	SET_LOCKTAG_ADVISORY(tag, MyDatabaseId, (uint32) ((uint64) hash >> 32), (uint32) hash,
						 DEDUP_LOCK_CLASS);
	(void) LockAcquire(&tag, ExclusiveLock, false, false);
}

/*
 * The id under which this key was sent before, or 0.  Read as the table is
 * now: by ON CONFLICT a repeatable-read sender would fail with 40001.
 */
static int64
find_dedup(DgenTable *table, const DgenAddress *to, const char *key)
{
	ScanKeyData keys[2];
	DgenScan   *scan;
	HeapTuple	tuple;
	int64		id = 0;
	ItemPointerData expired;
	bool		has_expired = false;
	bool		isnull;

	dgen_key_text(&keys[0], 1, to->text);
	dgen_key_text(&keys[1], 2, key);
	scan = dgen_scan_begin(table, DGEN_I_DEDUP_KEY, NULL, 2, keys);
	while (id == 0 && (tuple = dgen_scan_next(scan)) != NULL)
	{
		TupleDesc	desc = RelationGetDescr(table->rel);

		if (DatumGetTimestampTz(heap_getattr(tuple, 4, desc, &isnull)) > GetCurrentTimestamp())
			id = DatumGetInt64(heap_getattr(tuple, 3, desc, &isnull));
		else
		{
			expired = tuple->t_self;
			has_expired = true;
		}
	}
	dgen_scan_end(scan);
	if (has_expired)
		(void) dgen_table_delete(table, &expired);
	return id;
}

static void
insert_dedup(DgenTable *table, DgenModule *module, DgenMessage *msg)
{
	Datum		values[4];
	bool		nulls[4] = {false};
	TimestampTz expires_at = GetCurrentTimestamp() + module->dedup_ttl;

	values[0] = CStringGetTextDatum(msg->server);
	values[1] = CStringGetTextDatum(msg->dedup_key);
	values[2] = Int64GetDatum(msg->id);
	values[3] = TimestampTzGetDatum(expires_at);
	dgen_table_insert(table, values, nulls, NULL);
	dgen_due_at_commit(expires_at);
}

/* ---------------------------------------------------------------- one message */

/* checked: the module of an earlier message of the same call, whose rights were checked. */
static DgenModule *
check_rights(const DgenAddress *to, DgenMessage *msg, DgenModule *checked)
{
	DgenModule *module = checked;

	if (module == NULL || strcmp(module->name, to->module) != 0)
	{
		module = dgen_module_get(to->module, false);
		dgen_module_check_send(module, callback_for(msg->kind));
	}
	dgen_check_message(module, to, kind_name(msg->kind), msg->message);
	return module;
}

static DgenModule *
check_send(const DgenAddress *to, DgenMessage *msg)
{
	DgenModule *module = check_rights(to, msg, NULL);

	dgen_check_tombstone(to);
	return module;
}

/* Send one message, unless its dedup_key was used; returns its id, or the first one's. */
static int64
send_one(DgenModule *module, const DgenAddress *to, DgenMessage *msg)
{
	DgenTable  *dedup;
	int64		id;

	if (msg->dedup_key == NULL)
	{
		dgen_mailbox_send(module, msg, 1);
		return msg->id;
	}
	lock_dedup_key(to, msg->dedup_key);
	dedup = dgen_table_open(DGEN_T_DEDUP, RowExclusiveLock);
	id = find_dedup(dedup, to, msg->dedup_key);
	if (id == 0)
	{
		dgen_mailbox_send(module, msg, 1);
		insert_dedup(dedup, module, msg);
		CommandCounterIncrement();
		id = msg->id;
	}
	dgen_table_close(dedup);
	return id;
}

/* Arguments delay and expires. */
static void
take_times(FunctionCallInfo fcinfo, int delay_arg, int expires_arg, DgenMessage *msg)
{
	int64		usecs;

	if (delay_arg >= 0 && dgen_arg_interval(fcinfo, delay_arg, "delay", true, &usecs) && usecs > 0)
		msg->due_at = dgen_time_after(msg->sent_at, usecs, "delay");
	if (dgen_arg_interval(fcinfo, expires_arg, "expires", false, &usecs))
		msg->expires_at = dgen_time_after(msg->sent_at, usecs, "expires");
}

PG_FUNCTION_INFO_V1(dgen_cast);

/* cast(server, message, delay, expires, priority, dedup_key, max_attempts) -> id */
Datum
dgen_cast(PG_FUNCTION_ARGS)
{
	DgenAddress to;
	DgenMessage msg;
	DgenModule *module;

	dgen_address_arg(fcinfo, 0, &to);
	dgen_check_writable();
	dgen_message_init(&msg, &to, 'c', dgen_arg_jsonb(fcinfo, 1));
	take_times(fcinfo, 2, 3, &msg);
	if (!PG_ARGISNULL(4))
		msg.priority = check_priority(PG_GETARG_INT32(4));
	msg.dedup_key = dgen_arg_text(fcinfo, 5);
	if (!PG_ARGISNULL(6))
		msg.max_attempts = check_max_attempts(PG_GETARG_INT32(6));
	module = check_send(&to, &msg);
	PG_RETURN_INT64(send_one(module, &to, &msg));
}

PG_FUNCTION_INFO_V1(dgen_send);

/* send(server, message, delay, expires, priority) -> id: an info */
Datum
dgen_send(PG_FUNCTION_ARGS)
{
	DgenAddress to;
	DgenMessage msg;
	DgenModule *module;

	dgen_address_arg(fcinfo, 0, &to);
	dgen_check_writable();
	dgen_message_init(&msg, &to, 'i', dgen_arg_jsonb(fcinfo, 1));
	take_times(fcinfo, 2, 3, &msg);
	if (!PG_ARGISNULL(4))
		msg.priority = check_priority(PG_GETARG_INT32(4));
	module = check_send(&to, &msg);
	PG_RETURN_INT64(send_one(module, &to, &msg));
}

/* Arguments server and message of an info that a timer sends. */
DgenModule *
dgen_send_begin(FunctionCallInfo fcinfo, DgenAddress *to, DgenMessage *msg)
{
	dgen_address_arg(fcinfo, 0, to);
	dgen_check_writable();
	dgen_message_init(msg, to, DGEN_KIND_INFO, dgen_arg_jsonb(fcinfo, 1));
	return check_send(to, msg);
}

PG_FUNCTION_INFO_V1(dgen_send_request);

/* send_request(server, request, notify, expires, priority) -> id */
Datum
dgen_send_request(PG_FUNCTION_ARGS)
{
	DgenAddress to;
	DgenMessage msg;
	DgenModule *module;

	dgen_address_arg(fcinfo, 0, &to);
	dgen_check_writable();
	dgen_message_init(&msg, &to, 'r', dgen_arg_jsonb(fcinfo, 1));
	msg.notify = PG_ARGISNULL(2) || PG_GETARG_BOOL(2);
	take_times(fcinfo, -1, 3, &msg);
	if (!PG_ARGISNULL(4))
		msg.priority = check_priority(PG_GETARG_INT32(4));
	module = check_send(&to, &msg);
	dgen_mailbox_send(module, &msg, 1);
	if (dgen_inline)
	{
		CommandCounterIncrement();
		dgen_drain_server(&to);
	}
	PG_RETURN_INT64(msg.id);
}

/* ---------------------------------------------------------------- cast_many */

/* what an element of cast_many may have */
typedef enum ElementKey
{
	KEY_SERVER,
	KEY_MESSAGE,
	KEY_DELAY,
	KEY_EXPIRES,
	KEY_PRIORITY,
	KEY_MAX_ATTEMPTS,
	NKEYS
} ElementKey;

static const char *const element_keys[NKEYS] = {
	"server", "message", "delay", "expires", "priority", "max_attempts"
};

static void
bad_element(int i, const char *problem)
{
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("element %d of messages is not valid", i),
			 errdetail_internal("%s", problem),
			 errhint("Each element is an object like {\"server\": \"counter/home\", \"message\": {...}}, with \"delay\", \"expires\", \"priority\" and \"max_attempts\" if wanted.")));
}

/* The value of a key that is there and not null. */
static bool
has_value(JsonbValue *values, bool *given, ElementKey key)
{
	return given[key] && values[key].type != jbvNull;
}

static int64
interval_value(JsonbValue *v, const char *name, int i)
{
	int64		usecs;

	if (v->type != jbvString)
		bad_element(i, psprintf("\"%s\" must be an interval as a string.", name));
	if (!dgen_interval_usecs(DatumGetIntervalP(DirectFunctionCall3(interval_in,
																   CStringGetDatum(pnstrdup(v->val.string.val, v->val.string.len)),
																   ObjectIdGetDatum(InvalidOid),
																   Int32GetDatum(-1))),
							 &usecs) || usecs < 0)
		bad_element(i, psprintf("\"%s\" must be a finite, positive interval.", name));
	return usecs;
}

static int64
integer_value(JsonbValue *v, const char *name, int i)
{
	char	   *text;
	char	   *end;
	int64		number;

	if (v->type != jbvNumeric)
		bad_element(i, psprintf("\"%s\" must be an integer.", name));
	text = DatumGetCString(DirectFunctionCall1(numeric_out, NumericGetDatum(v->val.numeric)));
	errno = 0;
	number = strtol(text, &end, 10);
	if (*end != '\0' || errno != 0)
		bad_element(i, psprintf("\"%s\" must be an integer, and is %s.", name, text));
	return number;
}

/* A misspelt key would else be a setting that nobody heeds. */
static ElementKey
element_key(JsonbValue *key, int i)
{
	for (ElementKey k = 0; k < NKEYS; k++)
	{
		if (key->val.string.len == (int) strlen(element_keys[k]) &&
			memcmp(key->val.string.val, element_keys[k], key->val.string.len) == 0)
			return k;
	}
	bad_element(i, psprintf("It has an unknown key \"%.*s\".",
							key->val.string.len, key->val.string.val));
	return NKEYS;				/* not reached */
}

/* Take one element apart. */
static void
read_element(JsonbContainer *object, int i, JsonbValue *values, bool *given)
{
	JsonbIterator *it = JsonbIteratorInit(object);
	JsonbValue	v;
	JsonbIteratorToken token;

	memset(given, 0, NKEYS * sizeof(bool));
	while ((token = JsonbIteratorNext(&it, &v, true)) != WJB_DONE)
	{
		ElementKey	key;

		if (token != WJB_KEY)
			continue;
		key = element_key(&v, i);
		(void) JsonbIteratorNext(&it, &values[key], true);
		given[key] = true;
	}
	if (!given[KEY_SERVER] || values[KEY_SERVER].type != jbvString)
		bad_element(i, "It has no string \"server\".");
	if (!given[KEY_MESSAGE])
		bad_element(i, "It has no \"message\".");
}

/*
 * One element of cast_many: its address and its message, which has what all
 * messages of this statement have in common already.
 */
static void
parse_element(JsonbValue *element, int i, DgenAddress *to, DgenMessage *msg)
{
	JsonbValue	values[NKEYS];
	bool		given[NKEYS];
	int64		number;

	if (element->type != jbvBinary || !JsonContainerIsObject(element->val.binary.data))
		bad_element(i, "It is not an object.");
	read_element(element->val.binary.data, i, values, given);
	dgen_address_parse(values[KEY_SERVER].val.string.val, values[KEY_SERVER].val.string.len, to);
	msg->server = to->text;
	msg->hash = to->hash;
	msg->message = JsonbValueToJsonb(&values[KEY_MESSAGE]);
	if (has_value(values, given, KEY_DELAY))
	{
		number = interval_value(&values[KEY_DELAY], "delay", i);
		msg->due_at = number > 0 ? dgen_time_after(msg->sent_at, number, "delay") : 0;
	}
	if (has_value(values, given, KEY_EXPIRES))
	{
		number = interval_value(&values[KEY_EXPIRES], "expires", i);
		if (number == 0)
			bad_element(i, "\"expires\" must be greater than zero.");
		msg->expires_at = dgen_time_after(msg->sent_at, number, "expires");
	}
	if (has_value(values, given, KEY_PRIORITY))
		msg->priority = check_priority(integer_value(&values[KEY_PRIORITY], "priority", i));
	if (has_value(values, given, KEY_MAX_ATTEMPTS))
		msg->max_attempts = check_max_attempts(integer_value(&values[KEY_MAX_ATTEMPTS],
															 "max_attempts", i));
}

PG_FUNCTION_INFO_V1(dgen_cast_many);

/*
 * cast_many(messages jsonb) -> bigint[]: many casts at once, in the order of
 * the array; all or none.
 */
Datum
dgen_cast_many(PG_FUNCTION_ARGS)
{
	Jsonb	   *list = PG_ARGISNULL(0) ? NULL : PG_GETARG_JSONB_P(0);
	int			n;
	DgenAddress *addresses;
	DgenMessage *msgs;
	DgenModule **modules;
	DgenMessage common;
	bool		tombstones = dgen_tombstones_exist();
	Datum	   *ids;

	dgen_check_writable();
	if (list == NULL || !JB_ROOT_IS_ARRAY(list) || JB_ROOT_IS_SCALAR(list))
		ereport(ERROR,
				(errcode(list ? ERRCODE_INVALID_PARAMETER_VALUE : ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("messages must be a jsonb array"),
				 errhint("For example '[{\"server\": \"counter/home\", \"message\": 1}]'.")));
	n = JB_ROOT_COUNT(list);
	addresses = palloc0(Max(n, 1) * sizeof(DgenAddress));
	msgs = palloc(Max(n, 1) * sizeof(DgenMessage));
	modules = palloc(Max(n, 1) * sizeof(DgenModule *));
	ids = palloc(Max(n, 1) * sizeof(Datum));
	dgen_message_init(&common, &addresses[0], 'c', NULL);
	for (int i = 0; i < n; i++)
	{
		msgs[i] = common;
		parse_element(getIthJsonbValueFromContainer(&list->root, i), i, &addresses[i], &msgs[i]);
		modules[i] = check_rights(&addresses[i], &msgs[i], i > 0 ? modules[i - 1] : NULL);
		if (tombstones)
			dgen_check_tombstone(&addresses[i]);
	}
	/* runs of one module go in together */
	for (int i = 0, run; i < n; i += run)
	{
		for (run = 1; i + run < n && modules[i + run] == modules[i]; run++)
			;
		dgen_mailbox_send(modules[i], &msgs[i], run);
	}
	for (int i = 0; i < n; i++)
		ids[i] = Int64GetDatum(msgs[i].id);
	PG_RETURN_ARRAYTYPE_P(construct_array(ids, n, INT8OID, sizeof(int64), true, TYPALIGN_DOUBLE));
}

/* ---------------------------------------------------------------- cancel */

/* May the current user cancel it: its sender, or an operator of the module. */
static bool
may_cancel(DgenMessage *msg)
{
	char		name[NAMEDATALEN];
	const char *slash = strchr(msg->server, '/');
	DgenModule *module;
	Oid			role = get_role_oid(msg->sender_role, true);

	if (OidIsValid(role) && has_privs_of_role(GetUserId(), role))
		return true;
	strlcpy(name, msg->server, Min(sizeof(name), slash - msg->server + 1));
	module = dgen_module_get(name, true);
	return module != NULL && dgen_module_may_operate(module);
}

/* An operator has taken it from its sender. */
static void
audit_cancel(DgenMessage *msg, const char *status)
{
	DgenAudit	audit = {.action = "cancel"};

	if (!dgen_audit_wanted(true) ||
		is_member_of_role_nosuper(GetUserId(), get_role_oid(msg->sender_role, true)))
		return;
	dgen_audit_message(&audit, msg, status);
	dgen_audit_write(&audit);
}

/* False: the caller has nothing to do with its module, and it is as if it was not there. */
static bool
check_may_cancel(DgenMessage *msg)
{
	if (may_cancel(msg))
		return true;
	if (dgen_is_visible(msg->server))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied to cancel message %lld", (long long) msg->id),
				 errdetail("It was sent by another role."),
				 errhint("Its sender, or an operator of its module, can cancel it.")));
	return false;
}

/* Tell a caller whose call is a message by now. */
static void
answer_cancelled(DgenMessage *msg)
{
	DgenError	err = {ERRCODE_DGEN_TIMEOUT};

	if (msg->kind != DGEN_KIND_CALL)
		return;
	err.message = psprintf("call to server \"%s\" was cancelled", msg->server);
	err.detail = pstrdup("It was not handled.");
	dgen_kept_fail(msg->token, &err);
}

/* Postponed messages are written under their server's lease only. */
static bool
cancel_postponed(int64 message_id)
{
	DgenMessage msg;
	DgenModule *module;

	if (!dgen_postponed_find(message_id, &msg) || !check_may_cancel(&msg))
		return false;
	dgen_batch_touch(msg.hash);
	(void) dgen_lease_take(msg.hash, true);
	module = dgen_module_of(msg.server);
	if (module != NULL)
		dgen_ring_at_end(module, msg.hash);
	/* it may have gone back to the mailbox while we waited */
	if (!dgen_postponed_delete(message_id))
		return false;
	answer_cancelled(&msg);
	dgen_notify_at_commit(DGEN_WAIT_REPLY, message_id);
	audit_cancel(&msg, "postponed");
	return true;
}

static bool
cancel_in(DgenTableId id, int skip, int64 message_id)
{
	DgenTable  *table = dgen_table_open(id, RowExclusiveLock);
	ScanKeyData key;
	DgenScan   *scan;
	HeapTuple	tuple;
	DgenMessage msg;
	bool		found;
	bool		known;

	dgen_key_int8(&key, 1, message_id, BTEqualStrategyNumber);
	scan = dgen_scan_begin(table, DGEN_I_PKEY, NULL, 1, &key);
	tuple = dgen_scan_next(scan);
	found = tuple != NULL;
	if (found)
		dgen_message_deform(tuple, RelationGetDescr(table->rel), skip, &msg);
	dgen_scan_end(scan);
	found = found && check_may_cancel(&msg);
	if (found && msg.kind == DGEN_KIND_TIMEOUT)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("message %lld is the idle timeout of server \"%s\"",
						(long long) message_id, msg.server),
				 errdetail("It lapses with the next message that the server handles."),
				 errhint("An operator can take it away by dgen.discard(%lld).", (long long) message_id)));
	/* what a server is locked for has been handled, in part */
	if (found && skip == 0 && dgen_lock_is_for(msg.server, message_id))
		found = false;
	if (found)
		dgen_check_not_exit(&msg);
	/* a worker that has it in hand commits first, or gives it back first */
	found = found && dgen_table_delete_wait(table, &msg.tid);
	if (found)
	{
		CommandCounterIncrement();
		dgen_timer_ended(dgen_module_of(msg.server), &msg);
		dgen_attempt_delete(message_id);
		answer_cancelled(&msg);
		dgen_notify_at_commit(DGEN_WAIT_REPLY, message_id);
		audit_cancel(&msg, skip == 0 ? "ready" : "delayed");
		if (skip == 0)
			dgen_length_add(msg.hash, -1, &known);
		/* what stood behind it may go on */
		if (dgen_module_of(msg.server) == NULL)
			/* nobody is there to go on */ ;
		else if (msg.kind == DGEN_KIND_EFFECT)
			dgen_ring_long_at_end(dgen_module_of(msg.server), msg.hash);
		else
			dgen_ring_at_end(dgen_module_of(msg.server), msg.hash);
	}
	dgen_table_close(table);
	return found;
}

/*
 * Looked for first where it may be first: a delayed message moves to the
 * mailbox, and from there to the postponed ones and back.
 */
bool
dgen_send_cancel(int64 id)
{
	return cancel_in(DGEN_T_DELAYED, 1, id) || cancel_in(DGEN_T_MESSAGE, 0, id) ||
		cancel_postponed(id) || cancel_in(DGEN_T_MESSAGE, 0, id);
}

PG_FUNCTION_INFO_V1(dgen_cancel);

/* cancel(id) -> boolean: true if the message will not be handled */
Datum
dgen_cancel(PG_FUNCTION_ARGS)
{
	int64		id;

	if (PG_ARGISNULL(0))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("id of a message must not be null")));
	dgen_check_writable();
	id = PG_GETARG_INT64(0);
	PG_RETURN_BOOL(dgen_send_cancel(id) || dgen_timer_cancel_id(id));
}
