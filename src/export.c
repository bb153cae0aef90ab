/*-------------------------------------------------------------------------
 *
 * export.c
 *	  A server as one jsonb document: dgen.export(), and what the audit keeps
 *	  of a server that goes.
 *
 * The document has what the server is, and what waits for it: its row, its
 * messages (waiting, postponed, delayed, effects), timers, dead letters, names
 * and memberships of groups.  Not in it is what others hold: monitors, replies
 * that were given, keys of duplicates, supervisors; and what is of this moment:
 * who waits for a call's reply, attempts, the alarm of an idle timeout.
 *
 * Messages come in order of their ids.  One that has come of a timer is told
 * with the timer, which is then due.
 *
 * Runs in any process.  dgen.export() reads by the statement's snapshot, takes
 * no lease, and works on a standby; the audit reads under the lease what is
 * there now.
 *
 *-------------------------------------------------------------------------
 */
#include "document.h"

#include "access/htup_details.h"
#include "access/skey.h"
#include "executor/spi.h"
#include "catalog/pg_type.h"
#include "timer.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

/* what a row takes besides its documents, about */
#define ROW_SIZE 200

typedef struct Export
{
	const DgenAddress *address;
	DgenServer *server;
	Snapshot	snapshot;		/* NULL: as it is now */
	Size		limit;			/* 0: none */
	Size		size;
	List	   *messages;		/* of Waiting * */
	List	   *due;			/* of DgenMessage *: they have come of timers */
	DgenDoc		doc;
} Export;

/* a message and where it waits */
typedef struct Waiting
{
	DgenMessage msg;
	const char *status;
} Waiting;

/* a row of a table of messages; false: enough */
typedef bool (*RowAction) (Export *e, DgenTable *table, HeapTuple tuple, const char *status, int skip);

/* Is there room for so much? */
static bool
grow(Export *e, Size size)
{
	e->size += size + ROW_SIZE;
	return e->limit == 0 || e->size <= e->limit;
}

/* ---------------------------------------------------------------- messages */

/* Those that tell only this server, as it is now, something of itself. */
static bool
is_of_the_moment(Export *e, const DgenMessage *msg)
{
	return msg->kind == DGEN_KIND_TIMEOUT || msg->kind == DGEN_KIND_EXIT ||
		(msg->kind != DGEN_KIND_EFFECT && !dgen_message_is_for(msg, e->server));
}

static bool
collect(Export *e, DgenTable *table, HeapTuple tuple, const char *status, int skip)
{
	Waiting    *w = palloc(sizeof(Waiting));

	w->status = status;
	dgen_message_deform(tuple, RelationGetDescr(table->rel), skip, &w->msg);
	/* another server may have the same hash */
	if (strcmp(w->msg.server, e->address->text) != 0 || is_of_the_moment(e, &w->msg))
		return true;
	if (dgen_timer_is_behind(&w->msg))
		e->due = lappend(e->due, &w->msg);
	else
		e->messages = lappend(e->messages, w);
	return grow(e, VARSIZE(w->msg.message));
}

static bool
scan_rows(Export *e, DgenTableId id, int index, ScanKey key, const char *status, int skip,
		  RowAction action)
{
	DgenTable  *table = dgen_table_open(id, AccessShareLock);
	DgenScan   *scan = dgen_scan_begin(table, index, e->snapshot, 1, key);
	bool		room = true;
	HeapTuple	tuple;

	while (room && (tuple = dgen_scan_next(scan)) != NULL)
	{
		CHECK_FOR_INTERRUPTS();
		room = action(e, table, tuple, status, skip);
	}
	dgen_scan_end(scan);
	dgen_table_close(table);
	return room;
}

static bool
collect_messages(Export *e)
{
	ScanKeyData by_hash;
	ScanKeyData by_effects;
	ScanKeyData by_server;

	dgen_key_int8(&by_hash, 1, e->address->hash, BTEqualStrategyNumber);
	dgen_key_int8(&by_effects, 1, dgen_effects_hash(e->address->text), BTEqualStrategyNumber);
	dgen_key_text(&by_server, 1, e->address->text);
	return scan_rows(e, DGEN_T_MESSAGE, DGEN_I_MESSAGE_MAILBOX, &by_hash, "ready", 0, collect) &&
		scan_rows(e, DGEN_T_MESSAGE, DGEN_I_MESSAGE_MAILBOX, &by_effects, "ready", 0, collect) &&
		scan_rows(e, DGEN_T_POSTPONED, DGEN_I_POSTPONED_SERVER, &by_server, "postponed", 0, collect) &&
		scan_rows(e, DGEN_T_DELAYED, DGEN_I_DELAYED_SERVER, &by_server, "delayed", 1, collect);
}

static int
compare(const ListCell *a, const ListCell *b)
{
	int64		x = ((Waiting *) lfirst(a))->msg.id;
	int64		y = ((Waiting *) lfirst(b))->msg.id;

	return (x > y) - (x < y);
}

static void
write_messages(Export *e)
{
	ListCell   *lc;

	list_sort(e->messages, compare);
	dgen_doc_open(&e->doc, "messages", WJB_BEGIN_ARRAY);
	foreach(lc, e->messages)
	{
		Waiting    *w = lfirst(lc);

		CHECK_FOR_INTERRUPTS();
		dgen_doc_message(&e->doc, NULL, &w->msg, w->status);
		dgen_doc_open(&e->doc, NULL, WJB_END_OBJECT);
	}
	dgen_doc_open(&e->doc, NULL, WJB_END_ARRAY);
}

static bool
write_letter(Export *e, DgenTable *table, HeapTuple tuple, const char *status, int skip)
{
	TupleDesc	desc = RelationGetDescr(table->rel);
	DgenMessage msg;

	dgen_message_deform(tuple, desc, 0, &msg);
	dgen_doc_message(&e->doc, NULL, &msg, "dead");
	dgen_doc_letter(&e->doc, tuple, desc);
	dgen_doc_open(&e->doc, NULL, WJB_END_OBJECT);
	return grow(e, VARSIZE(msg.message));
}

/* ---------------------------------------------------------------- timers */

/* The message that a timer has sent, or is to send. */
static Jsonb *
message_of_timer(Export *e, const DgenTimer *timer, DgenMessage *msg)
{
	ListCell   *lc;

	foreach(lc, e->due)
	{
		*msg = *(DgenMessage *) lfirst(lc);
		if (msg->timer == timer->id)
			return msg->message;
	}
	return NULL;
}

static bool
write_timer(Export *e, DgenTable *table, HeapTuple tuple, const char *status, int skip)
{
	char		on_miss[2] = {0};
	DgenTimer	timer;
	DgenMessage msg;

	dgen_timer_deform(table, tuple, &timer);
	/* its message is a dead letter, or it is of an incarnation that has ended */
	if (message_of_timer(e, &timer, &msg) == NULL ||
		(timer.incarnation != 0 && timer.incarnation != e->server->incarnation))
		return true;
	on_miss[0] = timer.on_miss;
	dgen_doc_open(&e->doc, NULL, WJB_BEGIN_OBJECT);
	if (strncmp(timer.name, DGEN_TIMER_UNNAMED, strlen(DGEN_TIMER_UNNAMED)) != 0)
		dgen_doc_text(&e->doc, "name", timer.name);
	dgen_doc_true(&e->doc, "incarnation", timer.incarnation != 0);
	dgen_doc_time(&e->doc, "due_at", timer.due_at);
	if (timer.every != NULL)
	{
		dgen_doc_interval(&e->doc, "every", timer.every);
		dgen_doc_time(&e->doc, "start_at", timer.start_at);
		dgen_doc_text(&e->doc, "time_zone", timer.time_zone);
		dgen_doc_text(&e->doc, "on_miss", on_miss);
		dgen_doc_int(&e->doc, "occurrence", timer.occurrence);
	}
	dgen_doc_message(&e->doc, "message", &msg, NULL);
	dgen_doc_open(&e->doc, NULL, WJB_END_OBJECT);
	dgen_doc_open(&e->doc, NULL, WJB_END_OBJECT);
	return grow(e, 0);
}

/* ---------------------------------------------------------------- names */

/* Columns of dgen.name and dgen.member that are in the same place. */
static bool
write_name(Export *e, DgenTable *table, HeapTuple tuple, const char *status, int skip)
{
	Datum		values[DGEN_MAX_COLUMNS];
	bool		nulls[DGEN_MAX_COLUMNS];

	heap_deform_tuple(tuple, RelationGetDescr(table->rel), values, nulls);
	if (!nulls[2] && (!e->server->active || DatumGetInt64(values[2]) != e->server->incarnation))
		return true;
	dgen_doc_open(&e->doc, NULL, WJB_BEGIN_OBJECT);
	dgen_doc_text(&e->doc, "name", TextDatumGetCString(values[0]));
	dgen_doc_true(&e->doc, "permanent", nulls[2]);
	if (table->id == DGEN_T_NAME && !nulls[3])
		dgen_doc_jsonb(&e->doc, "metadata", (Jsonb *) PG_DETOAST_DATUM_COPY(values[3]));
	dgen_doc_open(&e->doc, NULL, WJB_END_OBJECT);
	return grow(e, 0);
}

static bool
write_array(Export *e, const char *key, DgenTableId id, int index, RowAction action)
{
	ScanKeyData by_server;
	bool		room;

	dgen_key_text(&by_server, 1, e->address->text);
	dgen_doc_open(&e->doc, key, WJB_BEGIN_ARRAY);
	room = scan_rows(e, id, index, &by_server, NULL, 0, action);
	dgen_doc_open(&e->doc, NULL, WJB_END_ARRAY);
	return room;
}

/* ---------------------------------------------------------------- the row */

static void
write_row(Export *e, DgenModule *module)
{
	DgenServer *server = e->server;

	dgen_doc_text(&e->doc, "dgen", "server");
	dgen_doc_int(&e->doc, "format", DGEN_DOCUMENT_FORMAT);
	dgen_doc_text(&e->doc, "server", e->address->text);
	dgen_doc_time(&e->doc, "exported_at", GetCurrentTimestamp());
	dgen_doc_text(&e->doc, "status", server->active ? "running" :
				  server->incarnation == 0 ? "new" : "stopped");
	dgen_doc_int(&e->doc, "incarnation", server->incarnation);
	dgen_doc_int(&e->doc, "version", server->version);
	dgen_doc_text(&e->doc, "vsn", server->vsn);
	dgen_doc_text(&e->doc, "state_name", module->machine ? server->state_name : NULL);
	dgen_doc_jsonb(&e->doc, "state", server->state);
	dgen_doc_time(&e->doc, "started_at", server->started_at);
	dgen_doc_time(&e->doc, "updated_at", server->updated_at);
	dgen_doc_text(&e->doc, "stop_reason", server->stop_reason);
	dgen_doc_time(&e->doc, "timeout_at", server->timeout_at);
	/* elsewhere it is the alarm's */
	if (module->machine)
		dgen_doc_time(&e->doc, "timeout_due", server->timeout_due);
	if (server->suspended)
		dgen_doc_jsonb(&e->doc, "suspended",
					   dgen_doc_suspension(server->suspended_at, server->suspended_by, NULL));
}

/* The rows of dgen.history(), for who reads the document; by the snapshot that the rest is read by. */
static void
write_history(Export *e)
{
	Oid			type = TEXTOID;
	Datum		address = CStringGetTextDatum(e->address->text);
	MemoryContext old = CurrentMemoryContext;
	Jsonb	   *history = NULL;

	SPI_connect();
	if (SPI_execute_with_args("SELECT pg_catalog.jsonb_agg(pg_catalog.to_jsonb(h))"
							  " FROM dgen.history($1, NULL, NULL) h",
							  1, &type, &address, NULL, true, 0) != SPI_OK_SELECT)
		elog(ERROR, "could not read the history");
	if (SPI_processed == 1)
	{
		bool		isnull;
		Datum		value = SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull);

		if (!isnull)
		{
			MemoryContext spi = MemoryContextSwitchTo(old);

			history = (Jsonb *) PG_DETOAST_DATUM_COPY(value);
			MemoryContextSwitchTo(spi);
		}
	}
	SPI_finish();
	dgen_doc_jsonb(&e->doc, "history", history);
}

/*
 * See document.h.  Without a snapshot the lease is held, and server is what
 * its holder has in hand.
 */
Jsonb *
dgen_export_server(DgenModule *module, const DgenAddress *address, DgenServer *server,
				   bool with_mailbox, bool with_history, Snapshot snapshot, Size limit)
{
	Export		e = {.address = address,.server = server,.snapshot = snapshot,.limit = limit};

	CommandCounterIncrement();
	if (!grow(&e, server->state ? VARSIZE(server->state) : 0))
		return NULL;
	dgen_doc_open(&e.doc, NULL, WJB_BEGIN_OBJECT);
	write_row(&e, module);
	if (!write_array(&e, "names", DGEN_T_NAME, DGEN_I_NAME_SERVER, write_name) ||
		!write_array(&e, "groups", DGEN_T_MEMBER, DGEN_I_MEMBER_SERVER, write_name))
		return NULL;
	if (with_mailbox)
	{
		if (!collect_messages(&e))
			return NULL;
		write_messages(&e);
		if (!write_array(&e, "timers", DGEN_T_TIMER, DGEN_I_PKEY, write_timer) ||
			!write_array(&e, "dead_letters", DGEN_T_LETTER, DGEN_I_LETTER_SERVER, write_letter))
			return NULL;
	}
	if (with_history)
		write_history(&e);
	return dgen_doc_finish(&e.doc);
}

/* ---------------------------------------------------------------- SQL */

/* A server as the statement's snapshot sees it, this transaction's changes included. */
Jsonb *
dgen_export_read(DgenModule *module, const DgenAddress *address, bool with_mailbox, bool with_history)
{
	DgenTable  *servers;
	DgenServer *server;
	Jsonb	   *document;

	dgen_batch_flush();
	PushCopiedSnapshot(GetActiveSnapshot());
	UpdateActiveSnapshotCommandId();
	servers = dgen_table_open(DGEN_T_SERVER, AccessShareLock);
	server = dgen_server_read(servers, address->text, address->hash, GetActiveSnapshot());
	dgen_table_close(servers);
	if (!server->exists)
		dgen_admin_no_server(module, server);
	document = dgen_export_server(module, address, server, with_mailbox, with_history,
								  GetActiveSnapshot(), 0);
	PopActiveSnapshot();
	return document;
}

PG_FUNCTION_INFO_V1(dgen_export);

/* export(server text, with_mailbox boolean, with_history boolean) -> jsonb */
Datum
dgen_export(PG_FUNCTION_ARGS)
{
	bool		with_mailbox = PG_ARGISNULL(1) || PG_GETARG_BOOL(1);
	bool		with_history = !PG_ARGISNULL(2) && PG_GETARG_BOOL(2);
	DgenAddress address;
	DgenModule *module;

	dgen_address_arg(fcinfo, 0, &address);
	module = dgen_module_get(address.module, false);
	dgen_module_check_operate(module);
	PG_RETURN_JSONB_P(dgen_export_read(module, &address, with_mailbox, with_history));
}
