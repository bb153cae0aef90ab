/*-------------------------------------------------------------------------
 *
 * audit.c
 *	  Rows of dgen.audit: what operators have changed by hand, who did, and
 *	  what was there before.
 *
 * A row is written by the function that makes the change, in its transaction:
 * a change that was undone has none.  Values are kept up to
 * dgen.audit_max_size; of a larger state the patch that leads back.  Nobody
 * reads the table below view dgen.audit_log but undo.c.
 *
 * What a handler does is the program's doing, and not audited, where programs
 * do it as a matter of course: stop, kill, delete, reply.  All else is, since
 * a handler would otherwise be the way around.
 *
 * Ids are drawn as those of messages are: a client's lastval() stays its own.
 * The keeper deletes what is older than dgen.audit_retention.
 *
 * Runs in any process, inside a transaction; takes no locks of its own.
 *
 *-------------------------------------------------------------------------
 */
#include "audit.h"

#include "access/htup_details.h"
#include "access/skey.h"
#include "document.h"
#include "utils/acl.h"
#include "utils/fmgrprotos.h"
#include "utils/guc.h"
#include "utils/rel.h"

/* columns of dgen.audit, from 0 */
enum
{
	COL_ID, COL_AT, COL_ACTION, COL_SERVER, COL_SESSION_ROLE, COL_CURRENT_ROLE,
	COL_APPLICATION, COL_CLIENT, COL_SENDER, COL_REASON, COL_VSN, COL_INCARNATION,
	COL_OLD_VERSION, COL_NEW_VERSION, COL_MESSAGE_ID, COL_AFFECTED, COL_UNDOES,
	COL_WHAT, COL_BEFORE, COL_AFTER, COL_UNDO, NCOLS
};

#define SWEEP_ROWS 1000

static int64 undoing = 0;		/* dgen.undo() runs, of this row */
static int64 last_id = 0;

bool
dgen_audit_wanted(bool routine)
{
	return dgen_audit_retention != 0 && !(routine && dgen_scope != NULL);
}

/* The largest value that is kept, in bytes; not 0, which is no limit to dgen_export_server(). */
Size
dgen_audit_limit(void)
{
	return Max((Size) dgen_audit_max_size * 1024, 1);
}

int64
dgen_audit_undoing(int64 id)
{
	int64		old = undoing;

	undoing = id;
	return old;
}

int64
dgen_audit_last(void)
{
	return last_id;
}

/* ---------------------------------------------------------------- writing */

static Datum
int_value(int64 n, bool *isnull)
{
	*isnull = n == 0;
	return Int64GetDatum(n);
}

static Datum
text_value(const char *s, bool *isnull)
{
	*isnull = s == NULL;
	return s ? CStringGetTextDatum(s) : (Datum) 0;
}

/* A value that is small enough; JSON null as a mark, as dgen_import_server() leaves one, always is. */
static Datum
jsonb_value(Jsonb *jb, bool *isnull)
{
	*isnull = jb == NULL || (jb != dgen_json_null() && VARSIZE(jb) > dgen_audit_limit());
	return PointerGetDatum(*isnull ? NULL : jb);
}

/* The address of the session's client; NULL: a unix socket, or no client. */
static char *
client_address(void)
{
	LOCAL_FCINFO(fcinfo, 0);
	Datum		address;

	InitFunctionCallInfoData(*fcinfo, NULL, 0, InvalidOid, NULL, NULL);
	address = inet_client_addr(fcinfo);
	return fcinfo->isnull ? NULL : DatumGetCString(DirectFunctionCall1(inet_out, address));
}

/* Who does it, and from where. */
static void
fill_in_who(Datum *values, bool *nulls)
{
	values[COL_SESSION_ROLE] = CStringGetTextDatum(GetUserNameFromId(GetSessionUserId(), false));
	values[COL_CURRENT_ROLE] = CStringGetTextDatum(GetUserNameFromId(GetUserId(), false));
	values[COL_APPLICATION] = text_value(application_name && application_name[0] ? application_name : NULL,
										 &nulls[COL_APPLICATION]);
	values[COL_CLIENT] = text_value(client_address(), &nulls[COL_CLIENT]);
	values[COL_SENDER] = CStringGetTextDatum(dgen_scope ? dgen_scope->server : dgen_session_id());
}

void
dgen_audit_write(DgenAudit *audit)
{
	DgenTable  *table = dgen_table_open(DGEN_T_AUDIT, RowExclusiveLock);
	Datum		values[NCOLS];
	bool		nulls[NCOLS] = {false};

	audit->id = last_id = dgen_draw_id();
	audit->undoes = undoing;
	values[COL_ID] = Int64GetDatum(audit->id);
	values[COL_AT] = TimestampTzGetDatum(GetCurrentTimestamp());
	values[COL_ACTION] = CStringGetTextDatum(audit->action);
	values[COL_SERVER] = CStringGetTextDatum(audit->server);
	fill_in_who(values, nulls);
	values[COL_REASON] = text_value(audit->reason, &nulls[COL_REASON]);
	values[COL_VSN] = text_value(audit->vsn, &nulls[COL_VSN]);
	values[COL_INCARNATION] = int_value(audit->incarnation, &nulls[COL_INCARNATION]);
	values[COL_OLD_VERSION] = int_value(audit->old_version, &nulls[COL_OLD_VERSION]);
	values[COL_NEW_VERSION] = int_value(audit->new_version, &nulls[COL_NEW_VERSION]);
	values[COL_MESSAGE_ID] = int_value(audit->message_id, &nulls[COL_MESSAGE_ID]);
	values[COL_AFFECTED] = int_value(audit->affected, &nulls[COL_AFFECTED]);
	values[COL_UNDOES] = int_value(audit->undoes, &nulls[COL_UNDOES]);
	values[COL_WHAT] = CharGetDatum(audit->what);
	nulls[COL_WHAT] = audit->what == 0;
	values[COL_BEFORE] = jsonb_value(audit->before, &nulls[COL_BEFORE]);
	values[COL_AFTER] = jsonb_value(audit->after, &nulls[COL_AFTER]);
	values[COL_UNDO] = jsonb_value(audit->undo, &nulls[COL_UNDO]);
	dgen_table_insert(table, values, nulls, NULL);
	dgen_table_close(table);
	CommandCounterIncrement();
}

/* A server was written: its state was this one, at this version.  Nothing if that is the same. */
void
dgen_audit_state(DgenAudit *audit, DgenServer *server, Jsonb *before, int64 version)
{
	if (server->version == version || !dgen_audit_wanted(false))
		return;
	audit->what = DGEN_AUDIT_STATE;
	audit->server = server->address;
	audit->incarnation = server->incarnation;
	audit->old_version = version;
	audit->new_version = server->version;
	audit->before = before;
	audit->after = server->state;
	if (before != NULL && server->state != NULL && VARSIZE(before) > dgen_audit_limit())
		audit->undo = dgen_jsonb_diff(server->state, before);
	dgen_audit_write(audit);
}

void
dgen_audit_message(DgenAudit *audit, const DgenMessage *msg, const char *status)
{
	DgenDoc		doc = NULL;

	audit->what = DGEN_AUDIT_MESSAGE;
	audit->server = msg->server;
	audit->message_id = msg->id;
	dgen_doc_message(&doc, NULL, msg, status);
	audit->before = dgen_doc_finish(&doc);
}

/* ---------------------------------------------------------------- reading */

static void
deform(HeapTuple tuple, TupleDesc desc, DgenAudit *audit)
{
	Datum		values[DGEN_MAX_COLUMNS];
	bool		nulls[DGEN_MAX_COLUMNS];
	int64	   *const numbers[] = {&audit->incarnation, &audit->old_version, &audit->new_version,
	&audit->message_id, &audit->affected, &audit->undoes};
	Jsonb	  **const documents[] = {&audit->before, &audit->after, &audit->undo};

	heap_deform_tuple(tuple, desc, values, nulls);
	memset(audit, 0, sizeof(DgenAudit));
	audit->id = DatumGetInt64(values[COL_ID]);
	audit->action = TextDatumGetCString(values[COL_ACTION]);
	audit->server = TextDatumGetCString(values[COL_SERVER]);
	audit->vsn = nulls[COL_VSN] ? NULL : TextDatumGetCString(values[COL_VSN]);
	for (int i = 0; i < lengthof(numbers); i++)
		*numbers[i] = nulls[COL_INCARNATION + i] ? 0 : DatumGetInt64(values[COL_INCARNATION + i]);
	audit->what = nulls[COL_WHAT] ? 0 : DatumGetChar(values[COL_WHAT]);
	for (int i = 0; i < lengthof(documents); i++)
		*documents[i] = nulls[COL_BEFORE + i] ? NULL :
			(Jsonb *) PG_DETOAST_DATUM_COPY(values[COL_BEFORE + i]);
}

/* The row with this id, as it is now; false: there is none. */
bool
dgen_audit_read(int64 id, DgenAudit *audit)
{
	DgenTable  *table = dgen_table_open(DGEN_T_AUDIT, AccessShareLock);
	ScanKeyData key;
	DgenScan   *scan;
	HeapTuple	tuple;

	dgen_key_int8(&key, 1, id, BTEqualStrategyNumber);
	scan = dgen_scan_begin(table, DGEN_I_PKEY, NULL, 1, &key);
	tuple = dgen_scan_next(scan);
	if (tuple != NULL)
		deform(tuple, RelationGetDescr(table->rel), audit);
	dgen_scan_end(scan);
	dgen_table_close(table);
	return tuple != NULL;
}

/* ---------------------------------------------------------------- keeper */

/*
 * Delete some of the rows that are too old, in the keeper's transaction; true
 * if there are more.
 */
bool
dgen_audit_sweep(TimestampTz now, Snapshot snapshot)
{
	TimestampTz cutoff = now - (int64) dgen_audit_retention * USECS_PER_MINUTE;
	DgenTable  *table;
	ScanKeyData key;
	DgenScan   *scan;
	HeapTuple	tuple;
	int			n = 0;

	if (dgen_audit_retention < 0)
		return false;
	table = dgen_table_open(DGEN_T_AUDIT, RowExclusiveLock);
	dgen_key_time(&key, 1, cutoff, BTLessEqualStrategyNumber);
	scan = dgen_scan_begin(table, DGEN_I_AUDIT_AT, snapshot, 1, &key);
	while (n < SWEEP_ROWS && (tuple = dgen_scan_next(scan)) != NULL)
	{
		CHECK_FOR_INTERRUPTS();
		(void) dgen_table_delete(table, &tuple->t_self);
		n++;
	}
	dgen_scan_end(scan);
	dgen_table_close(table);
	return n == SWEEP_ROWS;
}
