/*-------------------------------------------------------------------------
 *
 * mailbox.c
 *	  Messages on their way into the mailbox, in the sender's transaction.
 *
 * A message is a row, and exists if and only if its sender's transaction
 * commits.  A send never touches the server's row and takes no lease.  The
 * order of one server's messages is that of their ids, which one sender draws
 * one after the other; before it draws one it publishes a lower bound (see
 * mark.c).  At commit the servers are rung; a ring that is lost costs a
 * second, since the keeper finds the message.
 *
 * What this transaction has sent is kept in a list, to ring at commit, to
 * refuse a call that would overtake, and for dgen.drain().
 *
 *-------------------------------------------------------------------------
 */
#include "dgen.h"

#include "access/htup_details.h"
#include "access/skey.h"
#include "storage/proc.h"
#include "utils/acl.h"
#include "utils/hsearch.h"
#include "utils/jsonb.h"
#include "utils/memutils.h"

/* what this transaction has sent, in TopTransactionContext */
static DgenSent *sent = NULL;
static int	nsent = 0;
static int	sent_size = 0;
static TimestampTz earliest_due = DT_NOEND;

/* the transaction has ended, and is to ring */
static enum
{
	RING_NONE, RING_COMMITTED, RING_ABORTED
}			ringing = RING_NONE;

/* whom this session has sent to at all: an invoke of these looks for its own messages */
static HTAB *sent_to = NULL;
static bool sent_to_forgotten = false;
#define MAX_SENT_TO 4096

/* ---------------------------------------------------------------- rows */

static Datum
text_or_null(const char *s, bool *isnull)
{
	*isnull = (s == NULL);
	return s ? CStringGetTextDatum(s) : (Datum) 0;
}

/* The columns of dgen.message, in its order. */
void
dgen_message_form(const DgenMessage *msg, Datum *values, bool *nulls)
{
	memset(nulls, 0, DGEN_MESSAGE_NATTS * sizeof(bool));
	values[0] = Int64GetDatum(msg->id);
	values[1] = Int64GetDatum(msg->hash);
	values[2] = Int16GetDatum(msg->priority);
	values[3] = Int16GetDatum(msg->max_attempts);
	nulls[3] = (msg->max_attempts == 0);
	values[4] = CharGetDatum(msg->kind);
	values[5] = BoolGetDatum(msg->notify);
	values[6] = TimestampTzGetDatum(msg->sent_at);
	values[7] = TimestampTzGetDatum(msg->expires_at);
	nulls[7] = (msg->expires_at == DT_NOEND);
	values[8] = CStringGetTextDatum(msg->server);
	values[9] = CStringGetTextDatum(msg->sender_role);
	values[10] = CStringGetTextDatum(msg->sender);
	values[11] = text_or_null(msg->dedup_key, &nulls[11]);
	values[12] = text_or_null(msg->vsn, &nulls[12]);
	values[13] = Int64GetDatum(msg->incarnation);
	nulls[13] = (msg->incarnation == 0);
	values[14] = Int64GetDatum(msg->timer);
	nulls[14] = (msg->timer == 0);
	values[15] = text_or_null(msg->token, &nulls[15]);
	values[16] = PointerGetDatum(msg->context);
	nulls[16] = (msg->context == NULL);
	values[17] = JsonbPGetDatum(msg->message);
}

/*
 * Read a row of dgen.message (or of a table that has its columns), skip
 * columns between id and hash.  Everything is copied, and detoasted, into the
 * current memory context.
 */
void
dgen_message_deform(HeapTuple tuple, TupleDesc desc, int skip, DgenMessage *msg)
{
	Datum		values[DGEN_MAX_COLUMNS];
	bool		nulls[DGEN_MAX_COLUMNS];
	Datum	   *v = values + skip;
	bool	   *n = nulls + skip;

	heap_deform_tuple(tuple, desc, values, nulls);
	msg->tid = tuple->t_self;
	msg->id = DatumGetInt64(values[0]);
	msg->due_at = skip > 0 ? DatumGetTimestampTz(values[1]) : 0;
	msg->hash = DatumGetInt64(v[1]);
	msg->priority = DatumGetInt16(v[2]);
	msg->max_attempts = n[3] ? 0 : DatumGetInt16(v[3]);
	msg->kind = DatumGetChar(v[4]);
	msg->notify = DatumGetBool(v[5]);
	msg->sent_at = DatumGetTimestampTz(v[6]);
	msg->expires_at = n[7] ? DT_NOEND : DatumGetTimestampTz(v[7]);
	msg->server = TextDatumGetCString(v[8]);
	msg->sender_role = TextDatumGetCString(v[9]);
	msg->sender = TextDatumGetCString(v[10]);
	msg->dedup_key = n[11] ? NULL : TextDatumGetCString(v[11]);
	msg->vsn = n[12] ? NULL : TextDatumGetCString(v[12]);
	msg->incarnation = n[13] ? 0 : DatumGetInt64(v[13]);
	msg->timer = n[14] ? 0 : DatumGetInt64(v[14]);
	msg->token = n[15] ? NULL : TextDatumGetCString(v[15]);
	msg->context = n[16] ? NULL : (Jsonb *) PG_DETOAST_DATUM_COPY(v[16]);
	msg->message = (Jsonb *) PG_DETOAST_DATUM_COPY(v[17]);
}

/* The row of a table of messages that has this id, copied; false: there is none. */
bool
dgen_message_find(DgenTable *table, int64 id, int skip, DgenMessage *msg)
{
	ScanKeyData key;
	DgenScan   *scan;
	HeapTuple	tuple;

	dgen_key_int8(&key, 1, id, BTEqualStrategyNumber);
	scan = dgen_scan_begin(table, DGEN_I_PKEY, NULL, 1, &key);
	tuple = dgen_scan_next(scan);
	if (tuple != NULL)
		dgen_message_deform(tuple, RelationGetDescr(table->rel), skip, msg);
	dgen_scan_end(scan);
	return tuple != NULL;
}

/* A message to one incarnation is for no other. */
bool
dgen_message_is_for(const DgenMessage *msg, const DgenServer *server)
{
	return msg->incarnation == 0 ||
		(server->active && server->incarnation == msg->incarnation);
}

/* For list_sort() of DgenMessages: in the order in which they were sent. */
int
dgen_message_compare(const ListCell *a, const ListCell *b)
{
	int64		x = ((DgenMessage *) lfirst(a))->id;
	int64		y = ((DgenMessage *) lfirst(b))->id;

	return (x > y) - (x < y);
}

/* ---------------------------------------------------------------- kinds */

const char *
dgen_message_kind(char kind)
{
	switch (kind)
	{
		case DGEN_KIND_CAST:
			return "cast";
		case DGEN_KIND_REQUEST:
			return "request";
		case DGEN_KIND_REPLY:
			return "reply";
		case DGEN_KIND_CONTINUE:
			return "continue";
		case DGEN_KIND_CALL:
			return "call";
		case DGEN_KIND_TIMER:
			return "timer";
		case DGEN_KIND_DOWN:
			return "DOWN";
		case DGEN_KIND_EFFECT:
			return "effect";
		case DGEN_KIND_TIMEOUT:
			return "timeout";
		default:
			return "info";
	}
}

DgenCallbackKind
dgen_message_callback(char kind)
{
	switch (kind)
	{
		case DGEN_KIND_CAST:
			return DGEN_HANDLE_CAST;
		case DGEN_KIND_REQUEST:
		case DGEN_KIND_CALL:
			return DGEN_HANDLE_CALL;
		case DGEN_KIND_CONTINUE:
			return DGEN_HANDLE_CONTINUE;
		default:
			return DGEN_HANDLE_INFO;
	}
}

/* ---------------------------------------------------------------- senders */

/* This session, as senders are named: like log_line_prefix's %c. */
const char *
dgen_session_id(void)
{
	static char id[32];

	if (id[0] == '\0')
		snprintf(id, sizeof(id), "%lx.%x", (long) MyStartTime, MyProcPid);
	return id;
}

static Jsonb *
session_context(void)
{
	if (dgen_context == NULL || dgen_context[0] == '\0')
		return NULL;
	return DatumGetJsonbP(DirectFunctionCall1(jsonb_in, CStringGetDatum(dgen_context)));
}

/*
 * Start a message: who sends it, and in which context, follows from whether a
 * handler is running.
 */
void
dgen_message_init(DgenMessage *msg, const DgenAddress *to, char kind, Jsonb *message)
{
	memset(msg, 0, sizeof(DgenMessage));
	msg->hash = to->hash;
	msg->server = to->text;
	msg->kind = kind;
	msg->message = message;
	msg->expires_at = DT_NOEND;
	msg->sent_at = GetCurrentTimestamp();
	msg->sender_role = GetUserNameFromId(GetUserId(), false);
	if (dgen_scope != NULL)
	{
		msg->sender = dgen_scope->server;
		msg->vsn = dgen_scope->module->vsn;
		msg->context = dgen_scope->context;
	}
	else
	{
		msg->sender = dgen_session_id();
		msg->context = session_context();
	}
}

/* ---------------------------------------------------------------- what was sent */

static DgenSent *
remember(int64 id, int64 hash, DgenModule *module, DgenPoolKind pool)
{
	DgenSent   *s;

	if (nsent == sent_size)
	{
		MemoryContext old = MemoryContextSwitchTo(TopTransactionContext);

		sent_size = sent_size == 0 ? 16 : sent_size * 2;
		sent = sent == NULL ? palloc(sent_size * sizeof(DgenSent)) :
			repalloc_huge(sent, (Size) sent_size * sizeof(DgenSent));
		MemoryContextSwitchTo(old);
	}
	s = &sent[nsent++];
	s->id = id;
	s->hash = hash;
	s->module_id = module->id;
	s->owner = pool == DGEN_POOL_HANDLERS ? DGEN_POOL_OWNER(module) : module->owner;
	s->pool = pool == DGEN_POOL_HANDLERS ? DGEN_POOL_OF(module) : pool;
	s->subid = GetCurrentSubTransactionId();
	s->due_at = 0;
	s->engine = false;
	return s;
}

static void
remember_target(int64 hash)
{
	if (sent_to == NULL)
	{
		HASHCTL		ctl = {.keysize = sizeof(int64), .entrysize = sizeof(int64)};

		sent_to = hash_create("dgen servers sent to", 64, &ctl, HASH_ELEM | HASH_BLOBS);
	}
	if (hash_get_num_entries(sent_to) >= MAX_SENT_TO)
		sent_to_forgotten = true;
	if (!sent_to_forgotten)
		hash_search(sent_to, &hash, HASH_ENTER, NULL);
}

/* May this session have sent to the server, in this or an earlier transaction? */
bool
dgen_mailbox_may_have_sent(int64 hash)
{
	return sent_to_forgotten ||
		(sent_to != NULL && hash_search(sent_to, &hash, HASH_FIND, NULL) != NULL);
}

/* Did this transaction send to the server? Delayed messages, and those of others, do not count. */
bool
dgen_mailbox_sent_uncommitted(int64 hash)
{
	for (int i = 0; i < nsent; i++)
	{
		if (sent[i].hash == hash && sent[i].id != 0 && sent[i].due_at == 0 && !sent[i].engine)
			return true;
	}
	return false;
}

int
dgen_mailbox_uncommitted(DgenSent **list)
{
	*list = sent;
	return nsent;
}

/* A message of this transaction was handled in it: dgen.drain(). */
void
dgen_mailbox_forget_sent(int64 id)
{
	for (int i = 0; i < nsent; i++)
	{
		if (sent[i].id == id)
			sent[i].id = 0;
	}
}

void
dgen_ring_at_end(DgenModule *module, int64 hash)
{
	remember(0, hash, module, DGEN_POOL_HANDLERS);
}

/* The same for the workers that do what may take long: effects, */
void
dgen_ring_long_at_end(DgenModule *module, int64 hash)
{
	remember(0, hash, module, DGEN_POOL_LONG);
}

/* and the work of a server that is locked. */
void
dgen_ring_locked_at_end(DgenModule *module, int64 hash)
{
	remember(0, hash, module, DGEN_POOL_LONG)->module_id = -module->id;
}

void
dgen_due_at_commit(TimestampTz due)
{
	earliest_due = Min(earliest_due, due);
}

/* ---------------------------------------------------------------- sending */

/* Whose workers handle it? */
static DgenPoolKind
pool_of(const DgenMessage *msg)
{
	return msg->kind == DGEN_KIND_EFFECT ? DGEN_POOL_LONG : DGEN_POOL_HANDLERS;
}

/*
 * How many messages a mailbox holds, of any transaction but those that have
 * not committed; stops counting at max.
 */
int64
dgen_mailbox_count(DgenTable *table, int64 hash, int64 max)
{
	ScanKeyData key;
	DgenScan   *scan;
	int64		n = 0;

	dgen_key_int8(&key, 1, hash, BTEqualStrategyNumber);
	scan = dgen_scan_begin(table, DGEN_I_MESSAGE_MAILBOX, NULL, 1, &key);
	while (n < max && dgen_scan_next(scan) != NULL)
	{
		CHECK_FOR_INTERRUPTS();
		n++;
	}
	dgen_scan_end(scan);
	return n;
}

/* Does the estimate say that a mailbox may be full? Counts one more message. */
static bool
may_be_full(DgenModule *module, int64 hash)
{
	bool		known;
	int64		length = dgen_length_add(hash, 1, &known);

	return known ? length > module->max_mailbox : length > module->max_mailbox / 16;
}

/* Count the rows, and refuse to fill a mailbox beyond its limit. */
static void
check_mailbox(DgenTable *table, DgenModule *module, const char *server, int64 hash)
{
	int64		length = dgen_mailbox_count(table, hash, module->max_mailbox);

	dgen_length_set(hash, length + 1);
	if (length >= module->max_mailbox)
		ereport(ERROR,
				(errcode(ERRCODE_DGEN_MAILBOX_FULL),
				 errmsg("mailbox of server \"%s\" is full", server),
				 errdetail("It holds max_mailbox = " INT64_FORMAT " messages.",
						   module->max_mailbox),
				 errhint("Send later, look into dgen.messages for what holds it up, or raise the limit by dgen.alter_module('%s', max_mailbox => ...).",
						 module->name)));
}

/* See dgen.h. */
void
dgen_mailbox_check_size(DgenModule *module, const DgenMessage *msg)
{
	if (VARSIZE(msg->message) > module->max_message_size)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("message to server \"%s\" is too large", msg->server),
				 errdetail("It has %zu bytes; max_message_size is " INT64_FORMAT ".",
						   (Size) VARSIZE(msg->message), module->max_message_size),
				 errhint("Keep large data in a table and send its key, or raise the limit by dgen.alter_module('%s', max_message_size => ...).",
						 module->name)));
}

static void
send_delayed(DgenMessage *msg)
{
	DgenTable  *table = dgen_table_open(DGEN_T_DELAYED, RowExclusiveLock);
	Datum		row[DGEN_MESSAGE_NATTS];
	bool		row_nulls[DGEN_MESSAGE_NATTS];
	Datum		values[DGEN_MESSAGE_NATTS + 1];
	bool		nulls[DGEN_MESSAGE_NATTS + 1];

	dgen_message_form(msg, row, row_nulls);
	values[0] = row[0];
	nulls[0] = false;
	values[1] = TimestampTzGetDatum(msg->due_at);
	nulls[1] = false;
	memcpy(values + 2, row + 1, (DGEN_MESSAGE_NATTS - 1) * sizeof(Datum));
	memcpy(nulls + 2, row_nulls + 1, (DGEN_MESSAGE_NATTS - 1) * sizeof(bool));
	dgen_table_insert(table, values, nulls, NULL);
	dgen_table_close(table);
	dgen_due_at_commit(msg->due_at);
}

/*
 * Take back a message that is not due yet.  One that the keeper has in hand
 * comes to the mailbox: whoever handles it must know that it is stale.
 */
void
dgen_delayed_delete(int64 id)
{
	DgenTable  *table = dgen_table_open(DGEN_T_DELAYED, RowExclusiveLock);
	ItemPointerData tid;

	if (dgen_table_find(table, id, &tid))
	{
		CommandCounterIncrement();
		(void) dgen_table_delete(table, &tid);
	}
	dgen_table_close(table);
}

/* Rows of one send that wait to be inserted together. */
typedef struct Pending
{
	DgenTable  *table;
	HeapTuple  *tuples;
	int			n;
} Pending;

static void
flush_pending(Pending *pending)
{
	if (pending->n > 0)
		dgen_table_insert_many(pending->table, pending->n, pending->tuples);
	pending->n = 0;
}

static void
send_now(DgenModule *module, DgenMessage *msg, Pending *pending, bool alone)
{
	Datum		values[DGEN_MESSAGE_NATTS];
	bool		nulls[DGEN_MESSAGE_NATTS];

	if (may_be_full(module, msg->hash))
	{
		flush_pending(pending);
		check_mailbox(pending->table, module, msg->server, msg->hash);
	}
	dgen_bound_publish(msg->hash, dgen_last_message_id());
	msg->id = dgen_draw_id();
	dgen_message_form(msg, values, nulls);
	if (alone)
		dgen_table_insert(pending->table, values, nulls, NULL);
	else
		pending->tuples[pending->n++] = dgen_table_form(pending->table, values, nulls);
}

/*
 * Send n messages to servers of one module: draws ids in order and inserts
 * the rows.  The caller has checked rights and run accept.
 */
void
dgen_mailbox_send(DgenModule *module, DgenMessage *msgs, int n)
{
	Pending		pending;

	if (dgen_scope != NULL && dgen_statistics_any())
		dgen_statistics_sent(msgs, n);
	pending.table = dgen_table_open(DGEN_T_MESSAGE, RowExclusiveLock);
	pending.tuples = palloc(n * sizeof(HeapTuple));
	pending.n = 0;
	for (int i = 0; i < n; i++)
	{
		DgenMessage *msg = &msgs[i];

		dgen_mailbox_check_size(module, msg);
		if (msg->due_at == 0)
			send_now(module, msg, &pending, n == 1);
		else
		{
			msg->id = dgen_draw_id();
			send_delayed(msg);
		}
		if (dgen_scope == NULL)
			remember_target(msg->hash);
		remember(msg->id, msg->hash, module, pool_of(msg))->due_at = msg->due_at;
	}
	flush_pending(&pending);
	dgen_table_close(pending.table);
}

/* Behind all that waits, under a new id, whatever the limits. */
static DgenSent *
append(DgenModule *module, DgenMessage *msg)
{
	DgenTable  *table = dgen_table_open(DGEN_T_MESSAGE, RowExclusiveLock);
	Datum		values[DGEN_MESSAGE_NATTS];
	bool		nulls[DGEN_MESSAGE_NATTS];
	bool		known;

	(void) dgen_length_add(msg->hash, 1, &known);
	dgen_bound_publish(msg->hash, dgen_last_message_id());
	msg->id = dgen_draw_id();
	msg->due_at = 0;
	dgen_message_form(msg, values, nulls);
	dgen_table_insert(table, values, nulls, NULL);
	dgen_table_close(table);
	return remember(msg->id, msg->hash, module, pool_of(msg));
}

/*
 * A message of the engine's own: what has come due of a server's timers, or the
 * end of one that it watches.  Nobody is there to be told that the mailbox is
 * full, or that the message is larger than the module would take by now: an
 * error would hold up the keeper, which serves all.
 */
void
dgen_mailbox_append(DgenModule *module, DgenMessage *msg)
{
	append(module, msg)->engine = true;
}

/*
 * The reply to a server that has asked.  Its limits are not those of who
 * replies, and must not keep him from ending the request, by an error even.
 */
void
dgen_mailbox_send_reply(DgenModule *module, DgenMessage *msg)
{
	(void) append(module, msg);
}

/* One that is to wait for its time. */
void
dgen_mailbox_schedule(DgenModule *module, DgenMessage *msg)
{
	DgenSent   *s;

	send_delayed(msg);
	s = remember(msg->id, msg->hash, module, pool_of(msg));
	s->due_at = msg->due_at;
	s->engine = true;
}

/*
 * Insert a message again under the id that it had: one that has come due, or
 * was a dead letter.  It takes its old place.
 */
void
dgen_mailbox_put_back(DgenModule *module, DgenMessage *msg)
{
	DgenTable  *table = dgen_table_open(DGEN_T_MESSAGE, RowExclusiveLock);
	Datum		values[DGEN_MESSAGE_NATTS];
	bool		nulls[DGEN_MESSAGE_NATTS];
	bool		known;

	dgen_bound_publish(msg->hash, msg->id - 1);
	dgen_mark_lower(msg->hash, msg->id);
	dgen_length_add(msg->hash, 1, &known);
	dgen_message_form(msg, values, nulls);
	dgen_table_insert(table, values, nulls, NULL);
	dgen_table_close(table);
	remember(msg->id, msg->hash, module, pool_of(msg))->engine = true;
}

/* ---------------------------------------------------------------- ends */

static void
forget_all(void)
{
	sent = NULL;
	nsent = sent_size = 0;
	earliest_due = DT_NOEND;
	ringing = RING_NONE;
}

static void
ring_all(void)
{
	int64		last_hash = 0;
	int32		last_module = 0;
	DgenPoolKind last_pool = DGEN_POOL_HANDLERS;

	for (int i = 0; i < nsent; i++)
	{
		if (sent[i].due_at != 0 ||
			(sent[i].hash == last_hash && sent[i].module_id == last_module &&
			 sent[i].pool == last_pool))
			continue;
		last_hash = sent[i].hash;
		last_module = sent[i].module_id;
		last_pool = sent[i].pool;
		if (!dgen_drop_doorbells)
			dgen_ready_ring(MyDatabaseId, sent[i].owner, last_pool, last_module, last_hash);
	}
	if (earliest_due != DT_NOEND)
		dgen_wake_keeper(MyDatabaseId, earliest_due);
}

/*
 * At the end of a transaction, when it has become visible or has aborted; must
 * not raise.  Only PRE_PREPARE may still fail.  What was sent is rung later,
 * by dgen_mailbox_ring().
 */
void
dgen_mailbox_xact_callback(XactEvent event)
{
	switch (event)
	{
		case XACT_EVENT_PRE_PREPARE:
			if (nsent > 0)
				dgen_bound_prepare(GetTopTransactionId());
			return;
		case XACT_EVENT_COMMIT:
		case XACT_EVENT_ABORT:
			dgen_bound_clear();
			ringing = event == XACT_EVENT_COMMIT ? RING_COMMITTED : RING_ABORTED;
			return;
		case XACT_EVENT_PREPARE:
			dgen_bound_clear();
			forget_all();
			return;
		default:
			return;
	}
}

/*
 * Ring the servers that the transaction which ends has sent to; must not
 * raise: it flips shared state and sets latches.  Comes after the transaction's
 * invalidations have been sent and its leases let go, so that who is woken
 * finds modules as it left them, and its servers free.
 */
void
dgen_mailbox_ring(void)
{
	if (ringing == RING_COMMITTED)
		ring_all();
	else if (ringing == RING_ABORTED)
	{
		/* only leases that were let go matter */
		for (int i = 0; i < nsent; i++)
		{
			if (sent[i].id == 0)
				dgen_ready_ring(MyDatabaseId, sent[i].owner, sent[i].pool,
								sent[i].module_id, sent[i].hash);
		}
	}
	if (ringing != RING_NONE)
		forget_all();
}

/* What an aborted subtransaction sent was not sent. */
void
dgen_mailbox_subxact(SubXactEvent event, SubTransactionId my, SubTransactionId parent)
{
	if (event != SUBXACT_EVENT_COMMIT_SUB && event != SUBXACT_EVENT_ABORT_SUB)
		return;
	for (int i = nsent - 1; i >= 0 && sent[i].subid >= my; i--)
	{
		if (event == SUBXACT_EVENT_COMMIT_SUB)
			sent[i].subid = parent;
		else
		{
			/* the ring stays: its lease may have been let go just now */
			sent[i].subid = parent;
			sent[i].id = 0;
			sent[i].due_at = 0;
		}
	}
}
