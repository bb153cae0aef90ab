/*-------------------------------------------------------------------------
 *
 * timeout.c
 *	  Idle timeouts: directive timeout, as gen_server has it; and servers that
 *	  expire when nobody has used them for long.
 *
 * A server's row says until when it is to be idle (timeout_at; -infinity:
 * until its mailbox is drained).  Any activation makes that lapse unless it
 * sets it again, so it changes far more often than it runs out, and what
 * wakes the server is lazy: one row of dgen.delayed, the alarm, of kind 't'
 * with id timeout_id, due at timeout_due.  A later deadline leaves the alarm
 * as it is; an earlier one replaces it.  When it is due the keeper turns it
 * into a message behind all that waits, and whoever meets that message asks
 * the row: is this still the server's alarm, and has it been idle for so long?
 * If not, the alarm is set again for the time that now holds, or forgotten.
 *
 * Expiry is asked by the same alarm, from used_at, which is written at most
 * four times in the span unless the row is written anyway.
 *
 * Runs in workers, and wherever else activations run.  The server's lease is
 * held; the row is changed in memory, and written by the caller.
 *
 *-------------------------------------------------------------------------
 */
#include "dgen.h"

#include "access/skey.h"
#include "common/int.h"

/* once the mailbox is drained */
#define WHEN_DRAINED DT_NOBEGIN

/* ---------------------------------------------------------------- the alarm */

static Jsonb *
timeout_message(void)
{
	return DatumGetJsonbP(DirectFunctionCall1(jsonb_in, CStringGetDatum("{\"info\": \"timeout\"}")));
}

/*
 * Set the alarm, for the server as it is; due now: a message at once, behind
 * what waits.
 */
static void
set_alarm(DgenModule *module, DgenServer *server, TimestampTz due, TimestampTz now)
{
	DgenAddress to;
	DgenMessage msg;

	dgen_address_parse(server->address, strlen(server->address), &to);
	dgen_message_init(&msg, &to, DGEN_KIND_TIMEOUT, timeout_message());
	msg.sender = server->address;
	msg.sender_role = module->owner_name;
	msg.vsn = module->vsn;
	msg.context = NULL;
	msg.incarnation = server->incarnation;
	msg.id = msg.timer = dgen_draw_id();
	msg.due_at = Max(due, now);
	server->timeout_id = msg.id;
	server->timeout_due = msg.due_at;
	server->dirty = true;
	if (due <= now)
		dgen_mailbox_append(module, &msg);
	else
		dgen_mailbox_schedule(module, &msg);
}

/* Have the server woken at this time, or earlier. */
static void
wake_at(DgenModule *module, DgenServer *server, TimestampTz due, TimestampTz now)
{
	if (server->timeout_id != 0 && server->timeout_due <= Max(due, now))
		return;
	if (server->timeout_id != 0)
		dgen_delayed_delete(server->timeout_id);
	set_alarm(module, server, due, now);
}

/* ---------------------------------------------------------------- expiry */

/* When the server goes if it is not used; a use may be noted so much too early. */
static TimestampTz
expires_at(DgenModule *module, DgenServer *server)
{
	return server->used_at + module->expire_after + module->expire_after / 4;
}

/*
 * The server has handled something.  Its row says so if it is written anyway,
 * or has not for a quarter of the time.
 */
static void
note_use(DgenModule *module, DgenServer *server, TimestampTz now)
{
	if (!server->dirty && now - server->used_at < module->expire_after / 4)
		return;
	server->used_at = now;
	server->dirty = true;
	wake_at(module, server, expires_at(module, server), now);
}

/* Has the server something to do yet, or a supervisor, that keeps it from going? */
static bool
is_engaged(DgenServer *server)
{
	return server->failing || server->suspended || server->supervised ||
		server->postponed > 0 || server->lock_id != 0;
}

/* ---------------------------------------------------------------- setting */

static char *
interval_text(const Interval *span)
{
	return DatumGetCString(DirectFunctionCall1(interval_out, IntervalPGetDatum(span)));
}

/* What a directive says: when the idle server is to be woken. */
static TimestampTz
deadline(const Interval *after, TimestampTz now)
{
	TimestampTz at;
	int64		usecs;

	if (!dgen_interval_usecs(after, &usecs) || pg_add_s64_overflow(now, usecs, &at) ||
		!IS_VALID_TIMESTAMP(at))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("interval timeout is out of range"),
				 errdetail("Its value is %s.", interval_text(after)),
				 errhint("Give a finite interval, for example '5 s'; without a timeout a server waits for ever.")));
	if (usecs < 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("interval timeout must not be negative"),
				 errdetail("Its value is %s.", interval_text(after)),
				 errhint("'0' means once the mailbox is drained.")));
	return usecs == 0 ? WHEN_DRAINED : at;
}

/*
 * An activation has ended: what was set before lapses, and what it has set
 * holds.  Only for who uses it: see DGEN_USES_TIMEOUT().
 */
void
dgen_timeout_settle(DgenActivation *act)
{
	DgenServer *server = act->server;
	TimestampTz now = GetCurrentTimestamp();

	if (act->timeout != NULL && act->module->ephemeral)
		ereport(ERROR,
				(errcode(ERRCODE_DGEN_BAD_DIRECTIVE),
				 errmsg("directive \"timeout\" is not allowed in module \"%s\"", act->module->name),
				 errdetail("The module is ephemeral: its servers live for one message each, and are never idle."),
				 errhint("Send a message with a delay instead: dgen.send(dgen.self(), ..., delay => ...).")));
	if (act->module->ephemeral)
		return;
	if (server->timeout_at != 0)
	{
		server->timeout_at = 0;
		server->dirty = true;
	}
	if (act->module->expire_after > 0)
		note_use(act->module, server, now);
	if (act->timeout == NULL)
		return;
	server->timeout_at = deadline(act->timeout, now);
	server->dirty = true;
	wake_at(act->module, server, server->timeout_at, now);
}

/* ---------------------------------------------------------------- waking */

/* Does a message of the server wait in any lane, from this id on? */
static bool
others_wait(DgenServer *server, int64 from)
{
	DgenTable  *table = dgen_table_open(DGEN_T_MESSAGE, RowExclusiveLock);
	bool		found = false;

	for (int16 priority = -1; priority <= 1 && !found; priority++)
	{
		ScanKeyData keys[3];
		DgenScan   *scan;

		dgen_key_int8(&keys[0], 1, server->hash, BTEqualStrategyNumber);
		dgen_key_int2(&keys[1], 2, priority);
		dgen_key_int8(&keys[2], 3, from, BTGreaterEqualStrategyNumber);
		scan = dgen_scan_begin(table, DGEN_I_MESSAGE_MAILBOX, NULL, 3, keys);
		found = dgen_scan_next(scan) != NULL;
		dgen_scan_end(scan);
	}
	dgen_table_close(table);
	return found;
}

/*
 * The server's alarm went off and there was no timeout to tell of: let the
 * server expire, or set the alarm for what comes first.
 */
static void
set_again(DgenModule *module, DgenServer *server, TimestampTz now, bool waits)
{
	TimestampTz expires = 0;

	if (module->expire_after > 0 && server->used_at != 0)
	{
		expires = expires_at(module, server);
		/* one of low priority may wait before the alarm */
		if (expires <= now && server->timeout_at == 0 && !waits && !is_engaged(server) &&
			!others_wait(server, 0))
		{
			dgen_activation_expire(module, server);
			dgen_batch_keep(server);
			return;
		}
		/* look again later at one that is busy */
		if (expires <= now)
			expires = now + Max(module->expire_after / 4, USECS_PER_SEC);
	}
	if (server->timeout_at != 0 && (expires == 0 || server->timeout_at < expires))
		expires = server->timeout_at;
	if (expires != 0)
		wake_at(module, server, expires, now);
}

/*
 * The server's alarm has come to its turn, and is out of the mailbox.  True:
 * the server has been idle, and handle_info is to be told.  call_waits: a
 * caller's request stands behind it.
 */
bool
dgen_timeout_wake(DgenModule *module, DgenServer *server, DgenMessage *msg, bool call_waits)
{
	TimestampTz now = GetCurrentTimestamp();
	bool		waits;

	/* a dead letter that was requeued: its operator wants it handled */
	if (msg->timer == 0)
		return server->active;
	if (server->timeout_id != msg->timer)
		return false;
	dgen_timeout_forget(server, false);
	waits = call_waits || others_wait(server, msg->id + 1);
	if (server->timeout_at != 0 && server->timeout_at <= now &&
		!(server->timeout_at == WHEN_DRAINED && waits))
	{
		server->timeout_at = 0;
		return true;
	}
	set_again(module, server, now, waits);
	return false;
}

/* The alarm is gone by other means; also: what it was set for. */
void
dgen_timeout_forget(DgenServer *server, bool also)
{
	server->timeout_id = 0;
	server->timeout_due = 0;
	if (also)
		server->timeout_at = 0;
	server->dirty = true;
}

/* An incarnation ends, and its timeout with it. */
void
dgen_timeout_stop(DgenServer *server)
{
	if (server->timeout_id != 0)
		dgen_delayed_delete(server->timeout_id);
	if (server->timeout_id != 0 || server->timeout_at != 0)
		dgen_timeout_forget(server, true);
}
