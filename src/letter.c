/*-------------------------------------------------------------------------
 *
 * letter.c
 *	  Dead letters, and operators' hands in a mailbox: requeue, discard, purge,
 *	  and erasing all that a deleted server has.
 *
 * A dead letter keeps the columns, and the id, of the message that it was.
 * Requeued it goes back under that id, and so to its old place.  Nobody holds
 * a lease for letters: who deletes the row has it, and who comes second waits
 * for the first and finds nothing.
 *
 * Rows are read as they are now (SnapshotSelf), so nothing here takes
 * predicate locks or depends on the isolation level.  That a transaction's
 * two messages may then be seen one without the other is why erasing goes on
 * until it finds nothing.
 *
 * Memory: each row is handled in a context that is reset after it, so a
 * million letters cost no more than one.
 *
 *-------------------------------------------------------------------------
 */
#include "audit.h"
#include "batch.h"
#include "document.h"
#include "stat.h"

#include "access/htup_details.h"
#include "access/skey.h"
#include "catalog/pg_collation_d.h"
#include "catalog/pg_type.h"
#include "utils/array.h"
#include "utils/fmgroids.h"
#include "utils/memutils.h"
#include "utils/rel.h"

/* columns, from 1 */
#define MESSAGE_KIND 5
#define LETTER_FAILED_AT 19
#define LETTER_SQLSTATE 21

/* of which letters something is done */
typedef struct LetterFilter
{
	TimestampTz before;			/* they failed at this time, or earlier */
	const char *sqlstate;		/* with this error; NULL: whichever */
} LetterFilter;

/* what is done with each of many letters; true if it was */
typedef bool (*LetterAction) (DgenModule *module, DgenTable *letters, HeapTuple tuple);

PG_FUNCTION_INFO_V1(dgen_requeue);
PG_FUNCTION_INFO_V1(dgen_requeue_all);
PG_FUNCTION_INFO_V1(dgen_discard);
PG_FUNCTION_INFO_V1(dgen_purge);

/* ---------------------------------------------------------------- arguments */

static int64
id_argument(FunctionCallInfo fcinfo)
{
	if (PG_ARGISNULL(0))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("id of a message must not be null"),
				 errhint("See dgen.dead_letters and dgen.messages for ids.")));
	return PG_GETARG_INT64(0);
}

/*
 * A message by its id; one of a module that the caller has nothing to do with is
 * as if it was not there.
 */
static bool
find_message(DgenTable *table, int64 id, int skip, DgenMessage *msg)
{
	return dgen_message_find(table, id, skip, msg) && dgen_is_visible(msg->server);
}

/* The module of a server that the caller wants to operate. */
static DgenModule *
operated_module(const char *server, DgenAddress *address)
{
	DgenModule *module;

	dgen_address_parse(server, strlen(server), address);
	module = dgen_module_get(address->module, false);
	dgen_module_check_operate(module);
	return module;
}

/* ---------------------------------------------------------------- audit */

/* A dead letter as a document; NULL if nobody is to keep it, or it is gone. */
static Jsonb *
letter_document(DgenTable *letters, int64 id)
{
	DgenDoc		doc = NULL;
	ScanKeyData key;
	DgenScan   *scan;
	HeapTuple	tuple;
	DgenMessage msg;
	Jsonb	   *document = NULL;

	if (!dgen_audit_wanted(false))
		return NULL;
	dgen_key_int8(&key, 1, id, BTEqualStrategyNumber);
	scan = dgen_scan_begin(letters, DGEN_I_PKEY, NULL, 1, &key);
	tuple = dgen_scan_next(scan);
	if (tuple != NULL)
	{
		dgen_message_deform(tuple, RelationGetDescr(letters->rel), 0, &msg);
		dgen_doc_message(&doc, NULL, &msg, "dead");
		dgen_doc_letter(&doc, tuple, RelationGetDescr(letters->rel));
		document = dgen_doc_finish(&doc);
	}
	dgen_scan_end(scan);
	return document;
}

static void
audit_letter(const char *action, const DgenMessage *msg, Jsonb *before)
{
	DgenAudit	audit = {.action = action,.server = msg->server,.message_id = msg->id,.what = DGEN_AUDIT_MESSAGE,.before = before};
	DgenDoc		doc = NULL;

	if (!dgen_audit_wanted(false))
		return;
	if (strcmp(action, "requeue") == 0)
	{
		dgen_doc_message(&doc, NULL, msg, "ready");
		audit.after = dgen_doc_finish(&doc);
	}
	dgen_audit_write(&audit);
}

/* incarnation: the server's, or 0 if it is not in hand */
static void
audit_discard(const DgenMessage *msg, const char *status, int64 incarnation)
{
	DgenAudit	audit = {.action = "discard",.incarnation = incarnation};

	if (!dgen_audit_wanted(false))
		return;
	dgen_audit_message(&audit, msg, status);
	dgen_audit_write(&audit);
}

/* Something was done with many letters of a server, or of a module. */
static void
audit_many(const char *action, const char *server, int64 n)
{
	DgenAudit	audit = {.action = action,.server = server,.affected = n};

	if (n > 0 && dgen_audit_wanted(false))
		dgen_audit_write(&audit);
}

/* ---------------------------------------------------------------- requeue */

/*
 * A request whose letter is requeued was answered with its error.  That
 * answer makes room for the one that is to come.
 */
static void
forget_reply(int64 id)
{
	DgenTable  *table = dgen_table_open(DGEN_T_REPLY, RowExclusiveLock);
	ItemPointerData tid;

	if (dgen_table_find(table, id, &tid))
		(void) dgen_table_delete_wait(table, &tid);
	dgen_table_close(table);
}

/* Back to the mailbox; false if somebody else has the letter by now. */
static bool
put_back(DgenModule *module, DgenTable *letters, DgenMessage *msg)
{
	if (!dgen_table_delete_wait(letters, &msg->tid))
		return false;
	if (msg->kind == 'r')
		forget_reply(msg->id);
	/* whoever requeues what has expired wants it handled */
	if (msg->expires_at <= GetCurrentTimestamp())
		msg->expires_at = DT_NOEND;
	/* the caller of a call has its error, so the reply is kept for whoever asks */
	if (msg->kind == DGEN_KIND_CALL)
	{
		msg->kind = DGEN_KIND_REQUEST;
		msg->token = NULL;
		msg->notify = false;
	}
	/* and for whichever incarnation lives, whatever became of its timer */
	msg->incarnation = msg->timer = 0;
	dgen_mailbox_put_back(module, msg);
	return true;
}

/*
 * As accept and the limits have it for the kind of message that it was.  An
 * effect names a function that runs as the module's owner.
 */
static void
check_edited(DgenModule *module, const DgenAddress *to, char kind, Jsonb *message)
{
	if (kind == DGEN_KIND_EFFECT)
		dgen_check_may_promise(module, "Requeue it as it is, or have a member of that role edit it.");
	dgen_check_message(module, to, kind == 'c' ? "cast" : kind == 'r' ? "call" : "info", message);
}

/* requeue(id bigint, message jsonb) -> boolean: false if there is no such letter */
Datum
dgen_requeue(PG_FUNCTION_ARGS)
{
	int64		id = id_argument(fcinfo);
	bool		done = false;
	DgenTable  *letters;
	DgenMessage msg;

	dgen_check_writable();
	CommandCounterIncrement();
	letters = dgen_table_open(DGEN_T_LETTER, RowExclusiveLock);
	if (find_message(letters, id, 0, &msg))
	{
		DgenAddress address;
		DgenModule *module = operated_module(msg.server, &address);
		Jsonb	   *before = letter_document(letters, id);

		if (!PG_ARGISNULL(1))
		{
			msg.message = dgen_arg_jsonb(fcinfo, 1);
			check_edited(module, &address, msg.kind, msg.message);
		}
		done = put_back(module, letters, &msg);
		if (done)
			audit_letter("requeue", &msg, before);
	}
	dgen_table_close(letters);
	CommandCounterIncrement();
	PG_RETURN_BOOL(done);
}

static bool
requeue_letter(DgenModule *module, DgenTable *letters, HeapTuple tuple)
{
	DgenMessage msg;

	dgen_message_deform(tuple, RelationGetDescr(letters->rel), 0, &msg);
	return put_back(module, letters, &msg);
}

/* ---------------------------------------------------------------- many */

/*
 * Letters of one server, or (server NULL) of all servers of the module: those
 * from "name/" up to before "name0", since '0' follows '/'.
 */
static DgenScan *
begin_letters(DgenTable *letters, DgenModule *module, const char *server)
{
	ScanKeyData keys[2];

	if (server != NULL)
	{
		dgen_key_text(&keys[0], 1, server);
		return dgen_scan_begin(letters, DGEN_I_LETTER_SERVER, NULL, 1, keys);
	}
	ScanKeyEntryInitialize(&keys[0], 0, 1, BTGreaterEqualStrategyNumber, InvalidOid,
						   C_COLLATION_OID, F_TEXT_GE,
						   CStringGetTextDatum(psprintf("%s/", module->name)));
	ScanKeyEntryInitialize(&keys[1], 0, 1, BTLessStrategyNumber, InvalidOid,
						   C_COLLATION_OID, F_TEXT_LT,
						   CStringGetTextDatum(psprintf("%s0", module->name)));
	return dgen_scan_begin(letters, DGEN_I_LETTER_SERVER, NULL, 2, keys);
}

static int64
count_letters(DgenTable *letters, DgenModule *module, const char *server)
{
	DgenScan   *scan = begin_letters(letters, module, server);
	int64		n = 0;

	while (dgen_scan_next(scan) != NULL)
	{
		CHECK_FOR_INTERRUPTS();
		n++;
	}
	dgen_scan_end(scan);
	return n;
}

static bool
is_meant(HeapTuple tuple, TupleDesc desc, const LetterFilter *filter)
{
	bool		isnull;

	if (DatumGetTimestampTz(heap_getattr(tuple, LETTER_FAILED_AT, desc, &isnull)) > filter->before)
		return false;
	return filter->sqlstate == NULL ||
		strcmp(TextDatumGetCString(heap_getattr(tuple, LETTER_SQLSTATE, desc, &isnull)),
			   filter->sqlstate) == 0;
}

/* Do something with each letter, in order of server and id; how many it was done with. */
static int64
for_letters(DgenModule *module, const char *server, DgenCommand command, LetterAction action,
			const LetterFilter *filter)
{
	DgenTable  *letters = dgen_table_open(DGEN_T_LETTER, RowExclusiveLock);
	DgenScan   *scan;
	MemoryContext row = AllocSetContextCreate(CurrentMemoryContext, "dgen letter",
											  ALLOCSET_DEFAULT_SIZES);
	MemoryContext old;
	HeapTuple	tuple;
	int64		n = 0;

	dgen_progress_begin(command, module, false);
	dgen_progress_total(count_letters(letters, module, server), false);
	scan = begin_letters(letters, module, server);
	while ((tuple = dgen_scan_next(scan)) != NULL)
	{
		CHECK_FOR_INTERRUPTS();
		old = MemoryContextSwitchTo(row);
		if (is_meant(tuple, RelationGetDescr(letters->rel), filter) &&
			action(module, letters, tuple))
			n++;
		dgen_progress_step(false);
		MemoryContextSwitchTo(old);
		MemoryContextReset(row);
		dgen_waitpoint_reach("dgen-letter");
	}
	dgen_progress_end();
	dgen_scan_end(scan);
	dgen_table_close(letters);
	MemoryContextDelete(row);
	CommandCounterIncrement();
	return n;
}

static int
compare_ids(const void *a, const void *b)
{
	int64		x = DatumGetInt64(*(const Datum *) a);
	int64		y = DatumGetInt64(*(const Datum *) b);

	return (x > y) - (x < y);
}

/* One of the letters that are named by their ids. */
static bool
requeue_named(DgenTable *letters, int64 id, const LetterFilter *filter)
{
	DgenAddress address;
	DgenModule *module;
	DgenMessage msg;
	Jsonb	   *before;
	ScanKeyData key;
	DgenScan   *scan;
	HeapTuple	tuple;
	bool		meant;

	dgen_key_int8(&key, 1, id, BTEqualStrategyNumber);
	scan = dgen_scan_begin(letters, DGEN_I_PKEY, NULL, 1, &key);
	tuple = dgen_scan_next(scan);
	meant = tuple != NULL && is_meant(tuple, RelationGetDescr(letters->rel), filter);
	if (meant)
		dgen_message_deform(tuple, RelationGetDescr(letters->rel), 0, &msg);
	dgen_scan_end(scan);
	if (!meant || !dgen_is_visible(msg.server))
		return false;
	module = operated_module(msg.server, &address);
	before = letter_document(letters, id);
	if (!put_back(module, letters, &msg))
		return false;
	audit_letter("requeue", &msg, before);
	CommandCounterIncrement();
	return true;
}

static int64
requeue_ids(ArrayType *array, const LetterFilter *filter)
{
	DgenTable  *letters = dgen_table_open(DGEN_T_LETTER, RowExclusiveLock);
	Datum	   *ids;
	bool	   *nulls;
	int			n;
	int64		done = 0;

	deconstruct_array(array, INT8OID, sizeof(int64), FLOAT8PASSBYVAL, TYPALIGN_DOUBLE,
					  &ids, &nulls, &n);
	for (int i = 0; i < n; i++)
	{
		if (nulls[i])
			ereport(ERROR,
					(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
					 errmsg("id of a message must not be null"),
					 errhint("See dgen.dead_letters for ids.")));
	}
	qsort(ids, n, sizeof(Datum), compare_ids);
	for (int i = 0; i < n; i++)
	{
		CHECK_FOR_INTERRUPTS();
		if (requeue_named(letters, DatumGetInt64(ids[i]), filter))
			done++;
	}
	dgen_table_close(letters);
	return done;
}

/*
 * requeue_all(server text, module text, ids bigint[], sqlstate text) -> bigint:
 * exactly one of the first three.  Each goes back under its own id, and all of
 * them become visible at once: so their order is the old one.
 */
Datum
dgen_requeue_all(PG_FUNCTION_ARGS)
{
	LetterFilter filter = {.before = DT_NOEND,.sqlstate = dgen_arg_text(fcinfo, 3)};
	int			given = !PG_ARGISNULL(0) + !PG_ARGISNULL(1) + !PG_ARGISNULL(2);
	DgenAddress address;
	DgenModule *module;
	int64		n;

	if (given != 1)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("dgen.requeue_all() takes exactly one of server, module and ids"),
				 given == 0 ? errdetail("None is given.") : errdetail("%d are given.", given),
				 errhint("For example dgen.requeue_all('counter/home'), dgen.requeue_all(module => 'counter') or dgen.requeue_all(ids => '{4711, 4712}').")));
	dgen_check_writable();
	CommandCounterIncrement();
	if (!PG_ARGISNULL(2))
		PG_RETURN_INT64(requeue_ids(PG_GETARG_ARRAYTYPE_P(2), &filter));
	if (!PG_ARGISNULL(0))
	{
		dgen_address_arg(fcinfo, 0, &address);
		module = dgen_module_get(address.module, false);
	}
	else
		module = dgen_module_get(dgen_arg_text(fcinfo, 1), false);
	dgen_module_check_operate(module);
	n = for_letters(module, PG_ARGISNULL(0) ? NULL : address.text, DGEN_COMMAND_REQUEUE,
					requeue_letter, &filter);
	audit_many("requeue_all", PG_ARGISNULL(0) ? psprintf("%s/", module->name) : address.text, n);
	PG_RETURN_INT64(n);
}

static bool
purge_letter(DgenModule *module, DgenTable *letters, HeapTuple tuple)
{
	ItemPointerData tid = tuple->t_self;

	return dgen_table_delete_wait(letters, &tid);
}

/* purge(module text, older_than interval) -> bigint: letters deleted */
Datum
dgen_purge(PG_FUNCTION_ARGS)
{
	LetterFilter filter = {.before = GetCurrentTimestamp()};
	DgenModule *module;
	int64		span;
	int64		n;

	if (PG_ARGISNULL(0))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("name of a module must not be null"),
				 errhint("View dgen.dead_letters lists letters and their servers.")));
	module = dgen_module_get(dgen_arg_text(fcinfo, 0), false);
	dgen_module_check_operate(module);
	dgen_check_writable();
	if (dgen_arg_interval(fcinfo, 1, "older_than", true, &span))
		filter.before -= span;
	CommandCounterIncrement();
	n = for_letters(module, NULL, DGEN_COMMAND_PURGE, purge_letter, &filter);
	audit_many("purge", psprintf("%s/", module->name), n);
	PG_RETURN_INT64(n);
}

/* ---------------------------------------------------------------- discard */

/* Tell whom a message kept waiting that it will not be handled. */
static void
answer_error(DgenModule *module, DgenMessage *msg, int sqlerrcode, const char *what)
{
	DgenError	err = {0};

	err.sqlerrcode = sqlerrcode;
	err.message = psprintf(what, msg->server);
	err.detail = pstrdup("The request was not handled.");
	if (msg->kind == DGEN_KIND_REQUEST)
		dgen_request_reply(module, msg, NULL, dgen_error_to_jsonb(&err));
	else if (msg->kind == DGEN_KIND_CALL)
		dgen_kept_fail(msg->token, &err);
}

/* Forget the failures of a message; are there others of its server? */
static bool
forget_attempts(int64 id, const char *server)
{
	DgenTable  *table = dgen_table_open(DGEN_T_ATTEMPT, RowExclusiveLock);
	bool		others = false;
	ScanKeyData key;
	DgenScan   *scan;
	HeapTuple	tuple;

	dgen_key_text(&key, 1, server);
	scan = dgen_scan_begin(table, DGEN_I_ATTEMPT_SERVER, NULL, 1, &key);
	while ((tuple = dgen_scan_next(scan)) != NULL)
	{
		ItemPointerData tid = tuple->t_self;
		bool		isnull;

		if (DatumGetInt64(heap_getattr(tuple, 1, RelationGetDescr(table->rel), &isnull)) == id)
			(void) dgen_table_delete_wait(table, &tid);
		else
			others = true;
	}
	dgen_scan_end(scan);
	dgen_table_close(table);
	CommandCounterIncrement();
	return others;
}

/* Delete a message's row, and answer whom it kept waiting. */
static bool
end_message(DgenModule *module, DgenTable *table, DgenMessage *msg)
{
	if (!dgen_table_delete_wait(table, &msg->tid))
		return false;
	dgen_timer_ended(module, msg);
	CommandCounterIncrement();
	answer_error(module, msg, ERRCODE_DGEN_TIMEOUT, "request to server \"%s\" was discarded");
	CommandCounterIncrement();
	return true;
}

/* A server whose alarm is gone must know. */
static void
forget_timeout(DgenServer *server, DgenMessage *msg)
{
	if (msg->kind == DGEN_KIND_TIMEOUT && server->timeout_id == msg->timer)
		dgen_timeout_forget(server, true);
}

static bool
discard_timeout(DgenModule *module, const DgenAddress *address, DgenTable *table, int64 id)
{
	DgenTable  *servers;
	DgenServer *server = dgen_admin_open(module, address, &servers);
	DgenMessage msg;
	bool		done;

	/* under the lease it is replaced by nobody */
	done = dgen_message_find(table, id, 1, &msg) && end_message(module, table, &msg);
	if (done)
	{
		forget_timeout(server, &msg);
		audit_discard(&msg, "delayed", server->incarnation);
	}
	dgen_admin_close(servers, server);
	return done;
}

static bool
discard_delayed(int64 id)
{
	DgenTable  *table = dgen_table_open(DGEN_T_DELAYED, RowExclusiveLock);
	DgenModule *module;
	DgenAddress address;
	DgenMessage msg;
	bool		done = false;

	if (find_message(table, id, 1, &msg))
	{
		module = operated_module(msg.server, &address);
		if (msg.kind == DGEN_KIND_TIMEOUT)
			done = discard_timeout(module, &address, table, id);
		else if ((done = end_message(module, table, &msg)))
			audit_discard(&msg, "delayed", 0);
	}
	dgen_table_close(table);
	return done;
}

/* An effect holds up those behind it, and no message of its server. */
static bool
discard_effect(DgenTable *table, DgenMessage *msg)
{
	DgenAddress address;
	DgenModule *module = operated_module(msg->server, &address);

	if (!end_message(module, table, msg))
		return false;
	dgen_attempt_delete(msg->id);
	dgen_ring_long_at_end(module, msg->hash);
	audit_discard(msg, "ready", 0);
	return true;
}

/*
 * A message of the mailbox may have failed before, and hold up others: so
 * under the server's lease, and what is behind it goes on.  A postponed one is
 * the lease holder's in any case.
 */
static bool
discard_waiting(DgenTableId where, int64 id)
{
	DgenTable  *table = dgen_table_open(where, RowExclusiveLock);
	DgenTable  *servers;
	DgenServer *server;
	DgenModule *module;
	DgenAddress address;
	DgenMessage msg;
	bool		done = false;

	if (find_message(table, id, 0, &msg) && msg.kind == DGEN_KIND_EFFECT)
		done = discard_effect(table, &msg);
	else if (find_message(table, id, 0, &msg))
	{
		module = operated_module(msg.server, &address);
		dgen_check_not_exit(&msg);
		server = dgen_admin_open(module, &address, &servers);
		if (server->lock_id == id)
		{
			dgen_lock_break(server, "An operator has discarded it.");
			done = true;
		}
		/* it may have been handled while we waited for the lease */
		if (dgen_message_find(table, id, 0, &msg) && end_message(module, table, &msg))
		{
			done = true;
			forget_timeout(server, &msg);
			if (!forget_attempts(id, msg.server))
				dgen_admin_not_failing(server);
		}
		if (done)
			audit_discard(&msg, where == DGEN_T_POSTPONED ? "postponed" : "ready", server->incarnation);
		dgen_admin_close(servers, server);
	}
	dgen_table_close(table);
	return done;
}

static bool
discard_letter(int64 id)
{
	DgenTable  *table = dgen_table_open(DGEN_T_LETTER, RowExclusiveLock);
	DgenAddress address;
	DgenMessage msg;
	bool		done = false;

	if (find_message(table, id, 0, &msg))
	{
		Jsonb	   *before = letter_document(table, id);

		(void) operated_module(msg.server, &address);
		done = dgen_table_delete_wait(table, &msg.tid);
		if (done)
			audit_letter("discard", &msg, before);
	}
	dgen_table_close(table);
	CommandCounterIncrement();
	return done;
}

/*
 * discard(id bigint) -> boolean: false if there is no such message or letter,
 * or it has been handled.  Looked for where it may be first: a message goes
 * from delayed to waiting, perhaps to postponed and back, to dead.
 */
Datum
dgen_discard(PG_FUNCTION_ARGS)
{
	int64		id = id_argument(fcinfo);

	dgen_check_writable();
	/* the message may be one that this batch is about to handle */
	if (dgen_batch_active())
		dgen_batch_split("dgen.discard()");
	CommandCounterIncrement();
	PG_RETURN_BOOL(discard_delayed(id) || discard_waiting(DGEN_T_MESSAGE, id) ||
				   discard_waiting(DGEN_T_POSTPONED, id) || discard_waiting(DGEN_T_MESSAGE, id) ||
				   discard_letter(id));
}

/* ---------------------------------------------------------------- erase */

/*
 * The tables that hold what belongs to a server, in the order in which a
 * message moves from one to the next.  mail: rows are messages that wait.
 */
static const struct
{
	DgenTableId table;
	int			index;
	AttrNumber	server;
	bool		mail;
	int			skip;			/* of dgen_message_deform() */
	bool		effects;		/* what the stream of effects has */
}			parts[] = {
	{DGEN_T_TIMER, DGEN_I_PKEY, 1, false, 0},
	{DGEN_T_DELAYED, DGEN_I_DELAYED_SERVER, 10, true, 1},
	{DGEN_T_MESSAGE, DGEN_I_MESSAGE_MAILBOX, 9, true, 0},
	{DGEN_T_MESSAGE, DGEN_I_MESSAGE_MAILBOX, 9, true, 0, true},
	{DGEN_T_POSTPONED, DGEN_I_POSTPONED_SERVER, 9, true, 0},
	{DGEN_T_ATTEMPT, DGEN_I_ATTEMPT_SERVER, 2, false, 0},
	{DGEN_T_ATTEMPT, DGEN_I_ATTEMPT_SERVER, 2, false, 0, true},
	{DGEN_T_LETTER, DGEN_I_LETTER_SERVER, 9, false, 0},
	{DGEN_T_CHILD, DGEN_I_CHILD_SERVER, 4, false, 0}
};

static bool
is_of_server(DgenTable *table, HeapTuple tuple, AttrNumber attno, const char *address)
{
	int			len = strlen(address);
	bool		isnull;
	text	   *server = DatumGetTextPP(heap_getattr(tuple, attno, RelationGetDescr(table->rel),
													 &isnull));

	return VARSIZE_ANY_EXHDR(server) == len && memcmp(VARDATA_ANY(server), address, len) == 0;
}

/* Delete one row; who waits for an answer is told that its server is gone. */
static bool
erase_row(DgenModule *module, DgenTable *table, int part, HeapTuple tuple)
{
	ItemPointerData tid = tuple->t_self;
	bool		waited_for = false;
	DgenMessage msg;

	if (parts[part].mail)
	{
		bool		isnull;
		Datum		kind = heap_getattr(tuple, MESSAGE_KIND + parts[part].skip,
										RelationGetDescr(table->rel), &isnull);

		waited_for = DatumGetChar(kind) == DGEN_KIND_REQUEST || DatumGetChar(kind) == DGEN_KIND_CALL;
	}
	if (waited_for)
		dgen_message_deform(tuple, RelationGetDescr(table->rel), parts[part].skip, &msg);
	if (!dgen_table_delete_wait(table, &tid))
		return false;
	if (waited_for)
	{
		answer_error(module, &msg, ERRCODE_DGEN_STOPPED, "server \"%s\" was deleted");
		/* the reply may be a message that this very scan is to meet */
		CommandCounterIncrement();
	}
	return true;
}

static int64
erase_part(DgenModule *module, const DgenAddress *address, int part)
{
	DgenTable  *table = dgen_table_open(parts[part].table, RowExclusiveLock);
	MemoryContext row = AllocSetContextCreate(CurrentMemoryContext, "dgen message to erase",
											  ALLOCSET_DEFAULT_SIZES);
	MemoryContext old;
	ScanKeyData key;
	DgenScan   *scan;
	HeapTuple	tuple;
	int64		n = 0;

	const char *name = parts[part].effects ? dgen_effects_of(address->text) : address->text;

	/* messages, effects too, bear their server's address */
	if (parts[part].table == DGEN_T_MESSAGE)
	{
		dgen_key_int8(&key, 1, dgen_address_hash(name, strlen(name)), BTEqualStrategyNumber);
		name = address->text;
	}
	else
		dgen_key_text(&key, 1, name);
	scan = dgen_scan_begin(table, parts[part].index, NULL, 1, &key);
	while ((tuple = dgen_scan_next(scan)) != NULL)
	{
		CHECK_FOR_INTERRUPTS();
		/* another server may have the same hash */
		if (!is_of_server(table, tuple, parts[part].server, name))
			continue;
		old = MemoryContextSwitchTo(row);
		if (erase_row(module, table, part, tuple))
			n++;
		dgen_progress_step(false);
		MemoryContextSwitchTo(old);
		MemoryContextReset(row);
	}
	dgen_scan_end(scan);
	dgen_table_close(table);
	MemoryContextDelete(row);
	return n;
}

/*
 * Delete all mail of a server whose lease is held: delayed, waiting, failing
 * and dead.  What others have sent and not yet committed cannot be seen, and
 * opens a new incarnation when it comes.
 */
int64
dgen_letter_erase(DgenModule *module, const DgenAddress *address)
{
	int64		erased = 0;
	int64		n;

	CommandCounterIncrement();
	do
	{
		n = 0;
		for (int part = 0; part < lengthof(parts); part++)
			n += erase_part(module, address, part);
		CommandCounterIncrement();
		erased += n;
	} while (n > 0);
	return erased;
}
