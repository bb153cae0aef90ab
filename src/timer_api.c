/*-------------------------------------------------------------------------
 *
 * timer_api.c
 *	  What clients and handlers do with timers: send_after, send_at,
 *	  send_every; cancel_timer, read_timer, cancel_all.
 *
 * All of it joins the caller's transaction, and takes no lease.  A named timer
 * is replaced by taking its row away, which waits for a worker that is
 * handling its message, and writing another.  That two do so at once is kept
 * apart by a lock on the name, to the end of the transaction.
 *
 * A timer that a server sets on itself is for its present incarnation.
 *
 *-------------------------------------------------------------------------
 */
#include "timer.h"

#include "access/skey.h"
#include "pgtime.h"
#include "storage/lock.h"
#include "utils/acl.h"
#include "utils/datetime.h"
#include "utils/fmgrprotos.h"
#include "utils/rel.h"

#define NAME_LOCK_CLASS 0xD9
#define MAX_NAME 512			/* bytes */
#define MIN_EVERY 1000			/* microseconds */
#define MAX_CATCH_UP 10000		/* occurrences that may have been missed at the start */

PG_FUNCTION_INFO_V1(dgen_send_after);
PG_FUNCTION_INFO_V1(dgen_send_at);
PG_FUNCTION_INFO_V1(dgen_send_every);
PG_FUNCTION_INFO_V1(dgen_cancel_timer);
PG_FUNCTION_INFO_V1(dgen_read_timer);
PG_FUNCTION_INFO_V1(dgen_cancel_all);

/* ---------------------------------------------------------------- arguments */

static void
null_argument(const char *name)
{
	ereport(ERROR,
			(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
			 errmsg("%s of a timer must not be null", name)));
}

/* The name of a timer, or NULL. */
static char *
name_argument(FunctionCallInfo fcinfo, int argno)
{
	char	   *name = dgen_arg_text(fcinfo, argno);

	if (name == NULL)
		return NULL;
	if (name[0] == '\0' || strlen(name) > MAX_NAME)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_NAME),
				 errmsg("invalid name of a timer"),
				 errdetail("It has %zu bytes.", strlen(name)),
				 errhint("A name has 1 to %d bytes.", MAX_NAME)));
	if (name[0] == DGEN_TIMER_RESERVED)
		ereport(ERROR,
				(errcode(ERRCODE_RESERVED_NAME),
				 errmsg("invalid name \"%s\" of a timer", name),
				 errdetail("Names that begin with \"%c\" are dgen's own.", DGEN_TIMER_RESERVED),
				 errhint("Choose another name.")));
	return name;
}

static TimestampTz
time_argument(FunctionCallInfo fcinfo, int argno, const char *name)
{
	TimestampTz at = PG_GETARG_TIMESTAMPTZ(argno);

	if (TIMESTAMP_NOT_FINITE(at))
		ereport(ERROR,
				(errcode(ERRCODE_DATETIME_VALUE_OUT_OF_RANGE),
				 errmsg("%s of a timer must be a finite time", name),
				 errhint("Give a date and time, for example '2030-01-01 08:00'.")));
	return at;
}

/* ---------------------------------------------------------------- setting */

/* One at a time for a name: who comes second waits for the first to commit or abort. */
static void
lock_name(const DgenAddress *to, const char *name)
{
	int64		hash = dgen_address_hash(name, strlen(name)) ^ to->hash;
	LOCKTAG		tag;

	SET_LOCKTAG_ADVISORY(tag, MyDatabaseId, (uint32) ((uint64) hash >> 32), (uint32) hash,
						 NAME_LOCK_CLASS);
	(void) LockAcquire(&tag, ExclusiveLock, false, false);
}

static bool
is_role_or_operator(const char *server, const char *sender_role)
{
	Oid			role = get_role_oid(sender_role, true);
	DgenModule *module;

	if (OidIsValid(role) && has_privs_of_role(GetUserId(), role))
		return true;
	module = dgen_module_of(server);
	return module != NULL && dgen_module_may_operate(module);
}

static void
check_owner(const DgenTimer *timer)
{
	if (is_role_or_operator(timer->server, timer->sender_role))
		return;
	ereport(ERROR,
			(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
			 errmsg("permission denied for timer %lld", (long long) timer->id),
			 errdetail("It was set by another role."),
			 errhint("Who set it, or an operator of the module, can replace or cancel it.")));
}

/* To those who may neither cancel a timer nor read its module it does not exist. */
static bool
may_know(const DgenTimer *timer)
{
	DgenModule *module;

	if (is_role_or_operator(timer->server, timer->sender_role))
		return true;
	module = dgen_module_of(timer->server);
	return module != NULL && dgen_module_may_read(module);
}

/* Is the handler that runs now the server's own?  Then the timer is its incarnation's. */
static int64
own_incarnation(DgenModule *module, const DgenAddress *to)
{
	if (dgen_scope == NULL || module->ephemeral || strcmp(dgen_scope->server, to->text) != 0)
		return 0;
	return dgen_scope->incarnation;
}

static Jsonb *
named_message(const char *name, Jsonb *message)
{
	JsonbParseState *parse = NULL;
	JsonbValue	key = {.type = jbvString};
	JsonbValue	value = {.type = jbvString};

	pushJsonbValue(&parse, WJB_BEGIN_OBJECT, NULL);
	key.val.string.val = "info";
	key.val.string.len = strlen("info");
	value.val.string.val = "timer";
	value.val.string.len = strlen("timer");
	pushJsonbValue(&parse, WJB_KEY, &key);
	pushJsonbValue(&parse, WJB_VALUE, &value);
	key.val.string.val = "name";
	value.val.string.val = unconstify(char *, name);
	key.val.string.len = strlen("name");
	value.val.string.len = strlen(name);
	pushJsonbValue(&parse, WJB_KEY, &key);
	pushJsonbValue(&parse, WJB_VALUE, &value);
	key.val.string.val = "message";
	key.val.string.len = strlen("message");
	pushJsonbValue(&parse, WJB_KEY, &key);
	if (JB_ROOT_IS_SCALAR(message))
		JsonbExtractScalar(&message->root, &value);
	else
	{
		value.type = jbvBinary;
		value.val.binary.data = &message->root;
		value.val.binary.len = VARSIZE(message) - VARHDRSZ;
	}
	pushJsonbValue(&parse, WJB_VALUE, &value);
	return JsonbValueToJsonb(pushJsonbValue(&parse, WJB_END_OBJECT, NULL));
}

/*
 * Set a timer that has a row; name NULL: one that recurs without.  What had
 * the name before is gone when this commits, wherever its message was.
 */
static int64
set_timer(DgenModule *module, const DgenAddress *to, DgenMessage *msg, DgenTimer *timer, char *name)
{
	DgenTable  *table = dgen_timer_open(RowExclusiveLock);
	DgenTimer	old;

	timer->server = pstrdup(to->text);
	timer->sender_role = unconstify(char *, msg->sender_role);
	timer->incarnation = own_incarnation(module, to);
	timer->id = dgen_draw_id();
	timer->name = name ? name : psprintf(DGEN_TIMER_UNNAMED "%lld", (long long) timer->id);
	if (name != NULL)
	{
		lock_name(to, name);
		CommandCounterIncrement();
		while (dgen_timer_find(table, to->text, name, &old))
		{
			check_owner(&old);
			(void) dgen_timer_remove(table, &old);
		}
		msg->message = named_message(name, msg->message);
		msg->kind = DGEN_KIND_TIMER;
	}
	dgen_timer_insert(table, timer);
	dgen_table_close(table);
	dgen_timer_start(module, msg, timer, msg->sent_at);
	CommandCounterIncrement();
	return timer->id;
}

/* One that goes off once, at this time. */
static int64
send_once(FunctionCallInfo fcinfo, const DgenAddress *to, DgenModule *module, DgenMessage *msg,
		  TimestampTz at)
{
	char	   *name = name_argument(fcinfo, 3);
	DgenTimer	timer = {0};

	if (name != NULL)
	{
		timer.due_at = at;
		return set_timer(module, to, msg, &timer, name);
	}
	msg->incarnation = own_incarnation(module, to);
	msg->due_at = at > msg->sent_at ? at : 0;
	dgen_mailbox_send(module, msg, 1);
	return msg->id;
}

/* send_after(server, message, delay, name) -> id */
Datum
dgen_send_after(PG_FUNCTION_ARGS)
{
	DgenAddress to;
	DgenMessage msg;
	DgenModule *module = dgen_send_begin(fcinfo, &to, &msg);
	int64		usecs;

	if (!dgen_arg_interval(fcinfo, 2, "delay", true, &usecs))
		null_argument("delay");
	PG_RETURN_INT64(send_once(fcinfo, &to, module, &msg,
							  dgen_time_after(msg.sent_at, usecs, "delay")));
}

/* send_at(server, message, at, name) -> id */
Datum
dgen_send_at(PG_FUNCTION_ARGS)
{
	DgenAddress to;
	DgenMessage msg;
	DgenModule *module = dgen_send_begin(fcinfo, &to, &msg);

	if (PG_ARGISNULL(2))
		null_argument("time");
	PG_RETURN_INT64(send_once(fcinfo, &to, module, &msg, time_argument(fcinfo, 2, "time")));
}

/* ---------------------------------------------------------------- send_every */

static Interval *
every_argument(FunctionCallInfo fcinfo, int argno)
{
	Interval   *every;
	int64		usecs;

	if (PG_ARGISNULL(argno))
		null_argument("interval every");
	every = PG_GETARG_INTERVAL_P(argno);
	if (dgen_interval_usecs(every, &usecs) && usecs >= MIN_EVERY &&
		every->month >= 0 && every->day >= 0 && every->time >= 0)
		return every;
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("invalid interval every of a timer"),
			 errdetail("Its value is %s.",
					   DatumGetCString(DirectFunctionCall1(interval_out, IntervalPGetDatum(every)))),
			 errhint("It must be finite, at least a millisecond, and no part of it negative: for example '10 s', '1 day' or '1 month'.")));
}

/* The name of the zone that counts: the argument's, the module's, the session's. */
static char *
zone_argument(FunctionCallInfo fcinfo, int argno, DgenModule *module)
{
	char	   *name = dgen_arg_text(fcinfo, argno);
	pg_tz	   *zone;

	if (name == NULL)
		return pstrdup(module->timezone ? module->timezone : pg_get_timezone_name(session_timezone));
	zone = pg_tzset(name);
	if (zone == NULL || !pg_tz_acceptable(zone))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("time zone \"%s\" is not known", name),
				 errhint("View pg_timezone_names lists the names of time zones.")));
	return name;
}

static char
on_miss_argument(FunctionCallInfo fcinfo, int argno)
{
	char	   *word = dgen_arg_text(fcinfo, argno);

	if (word == NULL || strcmp(word, "fire_once") == 0)
		return DGEN_ON_MISS_ONCE;
	if (strcmp(word, "catch_up") == 0)
		return DGEN_ON_MISS_CATCH_UP;
	if (strcmp(word, "skip") == 0)
		return DGEN_ON_MISS_SKIP;
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("invalid value for argument on_miss"),
			 errdetail("Its value is \"%s\".", word),
			 errhint("Allowed are 'fire_once', 'catch_up' and 'skip'.")));
}

/* Which occurrence is the first, if some have been missed already? */
static void
choose_first(DgenTimer *timer, TimestampTz now)
{
	int64		next = dgen_recur_after(timer, timer->occurrence, now);
	int64		missed = next - timer->occurrence;

	if (timer->on_miss == DGEN_ON_MISS_SKIP)
		timer->occurrence = next;
	else if (timer->on_miss == DGEN_ON_MISS_ONCE && missed > 0)
		timer->occurrence = next - 1;
	else if (missed > MAX_CATCH_UP)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("start of a timer is too far in the past"),
				 errdetail("%lld occurrences have been missed since; on_miss => 'catch_up' would handle each.",
						   (long long) missed),
				 errhint("Start it later, so that no more than %d are missed, or use on_miss => 'fire_once'.",
						 MAX_CATCH_UP)));
	timer->due_at = dgen_recur_at(timer, timer->occurrence);
	if (TIMESTAMP_IS_NOEND(timer->due_at))
		ereport(ERROR,
				(errcode(ERRCODE_DATETIME_VALUE_OUT_OF_RANGE),
				 errmsg("first occurrence of a timer is out of range"),
				 errhint("Give an earlier start or a shorter interval.")));
}

/* send_every(server, message, every, start, time_zone, on_miss, name) -> id */
Datum
dgen_send_every(PG_FUNCTION_ARGS)
{
	DgenAddress to;
	DgenMessage msg;
	DgenModule *module = dgen_send_begin(fcinfo, &to, &msg);
	DgenTimer	timer = {0};

	timer.every = every_argument(fcinfo, 2);
	timer.start_at = PG_ARGISNULL(3) ? msg.sent_at : time_argument(fcinfo, 3, "start");
	timer.occurrence = PG_ARGISNULL(3) ? 1 : 0;
	timer.time_zone = zone_argument(fcinfo, 4, module);
	timer.on_miss = on_miss_argument(fcinfo, 5);
	choose_first(&timer, msg.sent_at);
	PG_RETURN_INT64(set_timer(module, &to, &msg, &timer, name_argument(fcinfo, 6)));
}

/* ---------------------------------------------------------------- which one */

/* what cancel_timer and read_timer are about */
typedef struct Which
{
	bool		by_id;
	int64		id;
	DgenAddress server;
	char	   *name;
} Which;

static void
which_arguments(FunctionCallInfo fcinfo, const char *function, Which *which)
{
	which->by_id = !PG_ARGISNULL(0);
	which->name = dgen_arg_text(fcinfo, 2);
	if (which->by_id == (which->name != NULL) || (which->by_id && !PG_ARGISNULL(1)))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("dgen.%s() takes the id of a timer, or a server and the name of its timer", function),
				 errhint("For example dgen.%s(1234), or dgen.%s(server => 'counter/home', name => 'tick').",
						 function, function)));
	if (which->by_id)
		which->id = PG_GETARG_INT64(0);
	else if (PG_ARGISNULL(1) && dgen_scope != NULL)
		dgen_address_parse(dgen_scope->server, strlen(dgen_scope->server), &which->server);
	else
		dgen_address_arg(fcinfo, 1, &which->server);
	CommandCounterIncrement();
}

static bool
find_timer(DgenTable *table, const Which *which, DgenTimer *timer)
{
	return which->by_id ? dgen_timer_find_id(table, which->id, timer) :
		dgen_timer_find(table, which->server.text, which->name, timer);
}

/* An info that waits for its time, or for its server, under this id. */
static bool
find_info(DgenTableId id, int64 message_id, DgenMessage *msg)
{
	DgenTable  *table = dgen_table_open(id, AccessShareLock);
	ScanKeyData key;
	DgenScan   *scan;
	HeapTuple	tuple;

	dgen_key_int8(&key, 1, message_id, BTEqualStrategyNumber);
	scan = dgen_scan_begin(table, DGEN_I_PKEY, NULL, 1, &key);
	tuple = dgen_scan_next(scan);
	if (tuple != NULL)
		dgen_message_deform(tuple, RelationGetDescr(table->rel), id == DGEN_T_DELAYED ? 1 : 0, msg);
	dgen_scan_end(scan);
	dgen_table_close(table);
	return tuple != NULL && msg->kind == DGEN_KIND_INFO && msg->timer == 0;
}

/* What is left until then, nothing if it is past; as PostgreSQL subtracts times. */
static Datum
time_left(TimestampTz due)
{
	TimestampTz now = GetCurrentTimestamp();

	return DirectFunctionCall2(timestamp_mi, TimestampTzGetDatum(Max(due, now)),
							   TimestampTzGetDatum(now));
}

/* ---------------------------------------------------------------- cancelling */

/* cancel_timer(id, server, name) -> what was left; null: there is none */
Datum
dgen_cancel_timer(PG_FUNCTION_ARGS)
{
	DgenTable  *table;
	DgenTimer	timer;
	DgenMessage msg;
	Which		which;
	bool		done = false;

	dgen_check_writable();
	which_arguments(fcinfo, "cancel_timer", &which);
	table = dgen_timer_open(RowExclusiveLock);
	while (!done && find_timer(table, &which, &timer) && may_know(&timer))
	{
		check_owner(&timer);
		done = dgen_timer_remove(table, &timer);
	}
	dgen_table_close(table);
	if (done)
		return time_left(timer.due_at);
	if (which.by_id &&
		(find_info(DGEN_T_DELAYED, which.id, &msg) || find_info(DGEN_T_MESSAGE, which.id, &msg)) &&
		dgen_send_cancel(which.id))
		return time_left(msg.due_at);
	PG_RETURN_NULL();
}

/* dgen.cancel() of a timer whose message is in the mailbox under another id. */
bool
dgen_timer_cancel_id(int64 id)
{
	DgenTable  *table = dgen_timer_open(RowExclusiveLock);
	DgenTimer	timer;
	bool		done = false;

	CommandCounterIncrement();
	while (!done && dgen_timer_find_id(table, id, &timer) && may_know(&timer))
	{
		check_owner(&timer);
		done = dgen_timer_remove(table, &timer);
	}
	dgen_table_close(table);
	return done;
}

/* Whose timer is it, whose message is in the mailbox under another id? */
bool
dgen_timer_of(int64 id, char **server, char **sender_role)
{
	DgenTable  *table = dgen_timer_open(AccessShareLock);
	DgenTimer	timer;
	bool		found = dgen_timer_find_id(table, id, &timer);

	dgen_table_close(table);
	if (found)
	{
		*server = timer.server;
		*sender_role = timer.sender_role;
	}
	return found;
}

/* read_timer(id, server, name) -> what is left; null: there is none */
Datum
dgen_read_timer(PG_FUNCTION_ARGS)
{
	DgenTable  *table;
	DgenTimer	timer;
	DgenMessage msg;
	Which		which;
	bool		found;

	which_arguments(fcinfo, "read_timer", &which);
	table = dgen_timer_open(AccessShareLock);
	found = find_timer(table, &which, &timer);
	dgen_table_close(table);
	if (!found && which.by_id &&
		(find_info(DGEN_T_DELAYED, which.id, &msg) || find_info(DGEN_T_MESSAGE, which.id, &msg)))
	{
		timer.server = unconstify(char *, msg.server);
		timer.sender_role = unconstify(char *, msg.sender_role);
		timer.due_at = msg.due_at;
		found = true;
	}
	if (!found || !may_know(&timer))
		PG_RETURN_NULL();
	return time_left(timer.due_at);
}

/* ---------------------------------------------------------------- all of them */

static bool
is_users(const DgenTimer *timer)
{
	return timer->name[0] != DGEN_TIMER_RESERVED ||
		strncmp(timer->name, DGEN_TIMER_UNNAMED, strlen(DGEN_TIMER_UNNAMED)) == 0;
}

/* The timers of a server that have a row. */
static int64
cancel_rows(const DgenAddress *server)
{
	DgenTable  *table = dgen_timer_open(RowExclusiveLock);
	DgenScan   *scan;
	ScanKeyData key;
	HeapTuple	tuple;
	int64		n = 0;

	dgen_key_text(&key, 1, server->text);
	scan = dgen_scan_begin(table, DGEN_I_PKEY, NULL, 1, &key);
	while ((tuple = dgen_scan_next(scan)) != NULL)
	{
		DgenTimer	timer;

		CHECK_FOR_INTERRUPTS();
		dgen_timer_deform(table, tuple, &timer);
		if (is_users(&timer) && dgen_timer_remove(table, &timer))
			n++;
	}
	dgen_scan_end(scan);
	dgen_table_close(table);
	return n;
}

/* And those that are infos with a delay. */
static int64
cancel_infos(const DgenAddress *server)
{
	DgenTable  *table = dgen_table_open(DGEN_T_DELAYED, RowExclusiveLock);
	DgenScan   *scan;
	ScanKeyData key;
	HeapTuple	tuple;
	int64		n = 0;

	dgen_key_text(&key, 1, server->text);
	scan = dgen_scan_begin(table, DGEN_I_DELAYED_SERVER, NULL, 1, &key);
	while ((tuple = dgen_scan_next(scan)) != NULL)
	{
		DgenMessage msg;

		CHECK_FOR_INTERRUPTS();
		dgen_message_deform(tuple, RelationGetDescr(table->rel), 1, &msg);
		if (msg.kind == DGEN_KIND_INFO && msg.timer == 0 && dgen_table_delete_wait(table, &msg.tid))
			n++;
	}
	dgen_scan_end(scan);
	dgen_table_close(table);
	return n;
}

/* cancel_all(server) -> how many timers there were */
Datum
dgen_cancel_all(PG_FUNCTION_ARGS)
{
	DgenAddress server;
	int64		n;

	if (PG_ARGISNULL(0) && dgen_scope != NULL)
		dgen_address_parse(dgen_scope->server, strlen(dgen_scope->server), &server);
	else
		dgen_address_arg(fcinfo, 0, &server);
	dgen_check_writable();
	dgen_module_check_operate(dgen_module_get(server.module, false));
	CommandCounterIncrement();
	n = cancel_rows(&server) + cancel_infos(&server);
	CommandCounterIncrement();
	PG_RETURN_INT64(n);
}
