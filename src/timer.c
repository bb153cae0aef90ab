/*-------------------------------------------------------------------------
 *
 * timer.c
 *	  Timers that have a name or recur: rows of dgen.timer, and what becomes
 *	  of the messages that come of them.
 *
 * A timer without a name that goes off once is a delayed info, and nothing
 * more.  All others have a row in dgen.timer, whose id its messages carry in
 * column "timer": a message of a timer whose row has gone is dropped.  So to
 * take the row away is to cancel the timer, wherever its message is.
 *
 * While it waits, the message is in dgen.delayed under the timer's own id;
 * when it is due the keeper moves it to the mailbox under a new one, behind
 * all that waits.  Whoever handles it there takes the timer's row, by
 * deleting it: from then on a client who wants to cancel or replace the timer
 * waits for the end of that transaction, and one who came first keeps the
 * handler waiting.  The next occurrence of a timer that recurs is set in the
 * transaction that handles (or buries, or discards) the one before, so there
 * is never more than one message of a timer, and none is lost in a crash.
 *
 * Locks: rows only, and timer_api.c's lock on a name, before leases.  Who ends
 * a message takes its row in the mailbox first, and then its timer's; who ends
 * a timer takes its row alone, and leaves what is in the mailbox to be dropped.
 *
 *-------------------------------------------------------------------------
 */
#include "timer.h"

#include "access/htup_details.h"
#include "access/skey.h"
#include "utils/rel.h"

/* columns of dgen.timer, from 0 */
enum
{
	COL_SERVER, COL_NAME, COL_ID, COL_INCARNATION, COL_DUE_AT, COL_SENDER_ROLE,
	COL_EVERY, COL_START_AT, COL_TIME_ZONE, COL_ON_MISS, COL_OCCURRENCE, NCOLS
};

/* of dgen.delayed and dgen.message, from 1 */
#define DELAYED_INCARNATION 15
#define MESSAGE_INCARNATION 14

/* ---------------------------------------------------------------- rows */

DgenTable *
dgen_timer_open(LOCKMODE lockmode)
{
	return dgen_table_open(DGEN_T_TIMER, lockmode);
}

void
dgen_timer_deform(DgenTable *table, HeapTuple tuple, DgenTimer *timer)
{
	Datum		values[DGEN_MAX_COLUMNS];
	bool		nulls[DGEN_MAX_COLUMNS];

	heap_deform_tuple(tuple, RelationGetDescr(table->rel), values, nulls);
	memset(timer, 0, sizeof(DgenTimer));
	timer->tid = tuple->t_self;
	timer->server = TextDatumGetCString(values[COL_SERVER]);
	timer->name = TextDatumGetCString(values[COL_NAME]);
	timer->id = DatumGetInt64(values[COL_ID]);
	timer->incarnation = nulls[COL_INCARNATION] ? 0 : DatumGetInt64(values[COL_INCARNATION]);
	timer->due_at = DatumGetTimestampTz(values[COL_DUE_AT]);
	timer->sender_role = TextDatumGetCString(values[COL_SENDER_ROLE]);
	if (nulls[COL_EVERY])
		return;
	timer->every = palloc(sizeof(Interval));
	*timer->every = *DatumGetIntervalP(values[COL_EVERY]);
	timer->start_at = DatumGetTimestampTz(values[COL_START_AT]);
	timer->time_zone = TextDatumGetCString(values[COL_TIME_ZONE]);
	timer->on_miss = DatumGetChar(values[COL_ON_MISS]);
	timer->occurrence = DatumGetInt64(values[COL_OCCURRENCE]);
}

void
dgen_timer_insert(DgenTable *table, const DgenTimer *timer)
{
	Datum		values[NCOLS];
	bool		nulls[NCOLS] = {false};

	values[COL_SERVER] = CStringGetTextDatum(timer->server);
	values[COL_NAME] = CStringGetTextDatum(timer->name);
	values[COL_ID] = Int64GetDatum(timer->id);
	values[COL_INCARNATION] = Int64GetDatum(timer->incarnation);
	nulls[COL_INCARNATION] = timer->incarnation == 0;
	values[COL_DUE_AT] = TimestampTzGetDatum(timer->due_at);
	values[COL_SENDER_ROLE] = CStringGetTextDatum(timer->sender_role);
	if (timer->every != NULL)
	{
		values[COL_EVERY] = IntervalPGetDatum(timer->every);
		values[COL_START_AT] = TimestampTzGetDatum(timer->start_at);
		values[COL_TIME_ZONE] = CStringGetTextDatum(timer->time_zone);
		values[COL_ON_MISS] = CharGetDatum(timer->on_miss);
		values[COL_OCCURRENCE] = Int64GetDatum(timer->occurrence);
	}
	else
		memset(&nulls[COL_EVERY], true, NCOLS - COL_EVERY);
	dgen_table_insert(table, values, nulls, NULL);
}

static bool
find(DgenTable *table, int index, int nkeys, ScanKey keys, DgenTimer *timer)
{
	DgenScan   *scan = dgen_scan_begin(table, index, NULL, nkeys, keys);
	HeapTuple	tuple = dgen_scan_next(scan);

	if (tuple != NULL)
		dgen_timer_deform(table, tuple, timer);
	dgen_scan_end(scan);
	return tuple != NULL;
}

bool
dgen_timer_find(DgenTable *table, const char *server, const char *name, DgenTimer *timer)
{
	ScanKeyData keys[2];

	dgen_key_text(&keys[0], 1, server);
	dgen_key_text(&keys[1], 2, name);
	return find(table, DGEN_I_PKEY, 2, keys, timer);
}

bool
dgen_timer_find_id(DgenTable *table, int64 id, DgenTimer *timer)
{
	ScanKeyData key;

	dgen_key_int8(&key, 1, id, BTEqualStrategyNumber);
	return find(table, DGEN_I_TIMER_ID, 1, &key, timer);
}

bool
dgen_timer_remove(DgenTable *table, DgenTimer *timer)
{
	if (!dgen_table_delete_wait(table, &timer->tid))
		return false;
	dgen_delayed_delete(timer->id);
	CommandCounterIncrement();
	return true;
}

/* ---------------------------------------------------------------- setting */

/* Put the message of a timer on its way, for when it is due; draws the timer's id. */
void
dgen_timer_start(DgenModule *module, DgenMessage *msg, DgenTimer *timer, TimestampTz now)
{
	msg->id = msg->timer = timer->id;
	msg->incarnation = timer->incarnation;
	msg->due_at = timer->due_at;
	if (timer->due_at <= now)
		dgen_mailbox_append(module, msg);
	else
		dgen_mailbox_schedule(module, msg);
}

/* See dgen.h. */
void
dgen_timer_set(DgenModule *module, DgenServer *server, const char *name, TimestampTz due,
			   Jsonb *message)
{
	DgenTable  *table = dgen_timer_open(RowExclusiveLock);
	DgenTimer	timer = {0};
	DgenTimer	old;
	DgenAddress to;
	DgenMessage msg;

	Assert(name[0] == DGEN_TIMER_RESERVED);
	CommandCounterIncrement();
	while (dgen_timer_find(table, server->address, name, &old))
		(void) dgen_timer_remove(table, &old);
	dgen_address_parse(server->address, strlen(server->address), &to);
	dgen_message_init(&msg, &to, DGEN_KIND_TIMER, message);
	msg.sender = server->address;
	msg.sender_role = module->owner_name;
	msg.vsn = module->vsn;
	timer.server = server->address;
	timer.name = unconstify(char *, name);
	timer.id = dgen_draw_id();
	timer.incarnation = server->incarnation;
	timer.due_at = due;
	timer.sender_role = module->owner_name;
	dgen_mailbox_check_size(module, &msg);
	dgen_timer_insert(table, &timer);
	dgen_timer_start(module, &msg, &timer, GetCurrentTimestamp());
	CommandCounterIncrement();
	dgen_table_close(table);
}

bool
dgen_timer_cancel(DgenServer *server, const char *name)
{
	DgenTable  *table = dgen_timer_open(RowExclusiveLock);
	DgenTimer	timer;
	bool		found = false;

	CommandCounterIncrement();
	while (!found && dgen_timer_find(table, server->address, name, &timer))
		found = dgen_timer_remove(table, &timer);
	dgen_table_close(table);
	return found;
}

/* ---------------------------------------------------------------- delivery */

/* Is there a row of dgen.timer behind this message? */
bool
dgen_timer_is_behind(const DgenMessage *msg)
{
	return msg->timer != 0 && msg->kind != DGEN_KIND_TIMEOUT;
}

/*
 * A message is about to be handled, and its own row locked or deleted: take the
 * row of its timer.
 */
DgenClaim
dgen_timer_claim(const DgenMessage *msg, bool wait, DgenTimer **timer)
{
	DgenTimer  *found = palloc(sizeof(DgenTimer));
	DgenClaim	claim = DGEN_CLAIM_BUSY;
	DgenTable  *table;

	*timer = NULL;
	if (!dgen_timer_is_behind(msg))
		return DGEN_CLAIM_TAKEN;
	table = dgen_timer_open(RowExclusiveLock);
	do
	{
		if (!dgen_timer_find_id(table, msg->timer, found))
			claim = DGEN_CLAIM_GONE;
		else if (wait ? dgen_table_delete_wait(table, &found->tid) :
				 dgen_table_delete(table, &found->tid) == TM_Ok)
			claim = DGEN_CLAIM_TAKEN;
	} while (wait && claim == DGEN_CLAIM_BUSY);
	if (claim == DGEN_CLAIM_TAKEN)
	{
		CommandCounterIncrement();
		*timer = found;
	}
	dgen_table_close(table);
	return claim;
}

/*
 * The message is out of the mailbox, and its timer's row taken: set the next
 * occurrence.  False: this one is too late to be handled.
 */
bool
dgen_timer_go_on(DgenModule *module, const DgenMessage *msg, DgenTimer *timer)
{
	TimestampTz now = GetCurrentTimestamp();
	DgenMessage next = *msg;
	DgenTable  *table;
	int64		was;

	if (timer == NULL || timer->every == NULL)
		return true;
	was = timer->occurrence;
	timer->occurrence = timer->on_miss == DGEN_ON_MISS_CATCH_UP ? was + 1 :
		dgen_recur_after(timer, was + 1, now);
	timer->due_at = dgen_recur_at(timer, timer->occurrence);
	if (!TIMESTAMP_IS_NOEND(timer->due_at))
	{
		table = dgen_timer_open(RowExclusiveLock);
		dgen_timer_insert(table, timer);
		dgen_table_close(table);
		dgen_timer_start(module, &next, timer, now);
		CommandCounterIncrement();
	}
	return timer->on_miss != DGEN_ON_MISS_SKIP || timer->occurrence == was + 1;
}

/*
 * A message that comes of a timer has ended unhandled: dead, discarded or
 * cancelled.  In the mailbox it was one occurrence, and the timer goes on; not
 * yet due, it stands for the timer itself.  Waits for who is at the timer.
 */
void
dgen_timer_ended(DgenModule *module, const DgenMessage *msg)
{
	DgenTimer  *timer;

	CommandCounterIncrement();
	if (dgen_timer_claim(msg, true, &timer) == DGEN_CLAIM_TAKEN && msg->id != msg->timer &&
		module != NULL)
		(void) dgen_timer_go_on(module, msg, timer);
}

/* ---------------------------------------------------------------- ends */

/*
 * Delete a server's rows in one table that are for this incarnation only.
 * The keeper may have one in hand, and is waited for.
 */
static void
erase_part(DgenTableId id, int index, AttrNumber attno, DgenServer *server)
{
	DgenTable  *table = dgen_table_open(id, RowExclusiveLock);
	ScanKeyData key;
	DgenScan   *scan;
	HeapTuple	tuple;

	dgen_key_text(&key, 1, server->address);
	scan = dgen_scan_begin(table, index, NULL, 1, &key);
	while ((tuple = dgen_scan_next(scan)) != NULL)
	{
		ItemPointerData tid = tuple->t_self;
		bool		isnull;
		Datum		its = heap_getattr(tuple, attno, RelationGetDescr(table->rel), &isnull);

		CHECK_FOR_INTERRUPTS();
		if (!isnull && DatumGetInt64(its) == server->incarnation)
			(void) dgen_table_delete_wait(table, &tid);
	}
	dgen_scan_end(scan);
	dgen_table_close(table);
}

/* The same in the mailbox; who waits for a call that was postponed is told. */
static void
erase_mail(DgenServer *server)
{
	DgenTable  *table = dgen_table_open(DGEN_T_MESSAGE, RowExclusiveLock);
	ScanKeyData key;
	DgenScan   *scan;
	HeapTuple	tuple;
	DgenError	stopped;
	bool		known;

	dgen_kept_stopped_error(server->address, &stopped);
	dgen_key_int8(&key, 1, server->hash, BTEqualStrategyNumber);
	scan = dgen_scan_begin(table, DGEN_I_MESSAGE_MAILBOX, NULL, 1, &key);
	while ((tuple = dgen_scan_next(scan)) != NULL)
	{
		DgenMessage msg;

		CHECK_FOR_INTERRUPTS();
		if (heap_attisnull(tuple, MESSAGE_INCARNATION, RelationGetDescr(table->rel)))
			continue;
		dgen_message_deform(tuple, RelationGetDescr(table->rel), 0, &msg);
		/* another server may have the same hash */
		if (msg.incarnation != server->incarnation || strcmp(msg.server, server->address) != 0 ||
			!dgen_table_delete_wait(table, &msg.tid))
			continue;
		if (server->failing)
			dgen_attempt_delete(msg.id);
		if (msg.kind == DGEN_KIND_CALL)
			dgen_kept_fail(msg.token, &stopped);
		dgen_length_add(server->hash, -1, &known);
	}
	dgen_scan_end(scan);
	dgen_table_close(table);
}

/*
 * An incarnation ends: the timers that it has set on itself go.  forgotten:
 * the server's row goes, too, and with it the number of its incarnation; then
 * what has come due, and what it had postponed, must go as well, which else is
 * dropped when its turn comes.
 */
void
dgen_timer_stop(DgenServer *server, bool forgotten)
{
	CommandCounterIncrement();
	erase_part(DGEN_T_TIMER, DGEN_I_PKEY, COL_INCARNATION + 1, server);
	erase_part(DGEN_T_DELAYED, DGEN_I_DELAYED_SERVER, DELAYED_INCARNATION, server);
	if (forgotten)
	{
		erase_mail(server);
		CommandCounterIncrement();
		dgen_failure_settle(server);
	}
	CommandCounterIncrement();
}
