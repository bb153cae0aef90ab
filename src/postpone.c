/*-------------------------------------------------------------------------
 *
 * postpone.c
 *	  Messages that a handler keeps: postponed until its server changes, or in
 *	  their place in the mailbox while work for them is done elsewhere.
 *
 * A postponed message is a row of dgen.postponed.  When the server changes (its
 * state; of a state machine, its state_name), all of them go back to the mailbox
 * in that transaction, under the ids that they have always had, and so stand
 * before what came later; what else of the server is in the batch waits for
 * the next one.  server.postponed says that there may be such, so that who
 * postpones nothing pays nothing.
 *
 * A call has no row.  To be kept it becomes a message under the id that was
 * drawn when it was issued, and a place among those whose reply comes later
 * (deferred.c); its caller goes on waiting.
 *
 * Locks: rows of dgen.postponed are written under the server's lease only.
 *
 *-------------------------------------------------------------------------
 */
#include "batch.h"

#include "access/skey.h"
#include "access/xact.h"
#include "utils/memutils.h"
#include "utils/rel.h"

void
dgen_postpone(DgenModule *module, DgenServer *server, DgenMessage *msg)
{
	DgenMessage kept = *msg;
	DgenTable  *table;
	Datum		values[DGEN_MESSAGE_NATTS];
	bool		nulls[DGEN_MESSAGE_NATTS];

	if (server->postponed >= module->max_mailbox)
		ereport(ERROR,
				(errcode(ERRCODE_DGEN_MAILBOX_FULL),
				 errmsg("server \"%s\" has postponed too many messages", server->address),
				 errdetail("It has postponed max_mailbox = " INT64_FORMAT " messages.",
						   module->max_mailbox),
				 errhint("They come back when its state changes. See dgen.messages, or raise the limit by dgen.alter_module('%s', max_mailbox => ...).",
						 module->name)));
	/* a timer has fired, and does not call it back */
	kept.timer = 0;
	table = dgen_table_open(DGEN_T_POSTPONED, RowExclusiveLock);
	dgen_message_form(&kept, values, nulls);
	dgen_table_insert(table, values, nulls, NULL);
	dgen_table_close(table);
	server->postponed++;
	server->dirty = true;
}

/* Give each row of the server back to the mailbox, in order. */
static void
put_all_back(DgenModule *module, DgenServer *server, DgenTable *table)
{
	MemoryContext row = AllocSetContextCreate(CurrentMemoryContext, "dgen postponed message",
											  ALLOCSET_DEFAULT_SIZES);
	MemoryContext old;
	ScanKeyData key;
	DgenScan   *scan;
	HeapTuple	tuple;

	dgen_key_text(&key, 1, server->address);
	scan = dgen_scan_begin(table, DGEN_I_POSTPONED_SERVER, NULL, 1, &key);
	while ((tuple = dgen_scan_next(scan)) != NULL)
	{
		DgenMessage msg;

		CHECK_FOR_INTERRUPTS();
		old = MemoryContextSwitchTo(row);
		dgen_message_deform(tuple, RelationGetDescr(table->rel), 0, &msg);
		if (dgen_table_delete(table, &msg.tid) == TM_Ok)
			dgen_mailbox_put_back(module, &msg);
		MemoryContextSwitchTo(old);
		MemoryContextReset(row);
	}
	dgen_scan_end(scan);
	MemoryContextDelete(row);
}

void
dgen_postponed_replay(DgenModule *module, DgenServer *server)
{
	DgenTable  *table;

	if (server->postponed == 0)
		return;
	/* the last one may have been postponed by this very command */
	CommandCounterIncrement();
	table = dgen_table_open(DGEN_T_POSTPONED, RowExclusiveLock);
	put_all_back(module, server, table);
	dgen_table_close(table);
	CommandCounterIncrement();
	server->postponed = 0;
	server->ahead = true;
	server->dirty = true;
}

bool
dgen_postponed_find(int64 id, DgenMessage *msg)
{
	DgenTable  *table = dgen_table_open(DGEN_T_POSTPONED, AccessShareLock);
	bool		found = dgen_message_find(table, id, 0, msg);

	dgen_table_close(table);
	return found;
}

/*
 * Take one out, for good: cancelled, or taken back.  The caller holds the lease
 * of its server, whose count stays what it is: it says how many there may be.
 */
bool
dgen_postponed_delete(int64 id)
{
	DgenTable  *table;
	DgenMessage msg;
	bool		done;

	if (!dgen_postponed_find(id, &msg))
		return false;
	table = dgen_table_open(DGEN_T_POSTPONED, RowExclusiveLock);
	done = dgen_table_delete_wait(table, &msg.tid);
	dgen_table_close(table);
	CommandCounterIncrement();
	return done;
}

void
dgen_call_message(DgenModule *module, DgenServer *server, DgenCall *call, DgenMessage *msg)
{
	memset(msg, 0, sizeof(DgenMessage));
	msg->token = dgen_deferred_token(call);
	msg->id = call->place_is_id ? call->place : dgen_draw_id();
	msg->hash = call->hash;
	msg->kind = DGEN_KIND_CALL;
	msg->sent_at = call->issued_at;
	msg->expires_at = module->finish_late_calls ? DT_NOEND : call->deadline;
	msg->server = server->address;
	msg->sender_role = call->data + call->role_off;
	msg->sender = call->data + call->sender_off;
	/* the reply may be given when the call is gone */
	msg->dedup_key = call->key_off ? call->data + call->key_off : NULL;
	/* who stops a server has all that wait for it told so */
	msg->incarnation = server->incarnation;
	msg->context = call->context_off ? (Jsonb *) (call->data + call->context_off) : NULL;
	msg->message = (Jsonb *) (call->data + call->request_off);
}

/*
 * A call that was postponed did not happen, should its caller give it up, also
 * where it is back in the mailbox at once; one for which there is work under a
 * lock has begun to.
 */
int64
dgen_keep_item(Batch *b, BatchItem *item, DgenKeep how)
{
	DgenCallState then = how == DGEN_KEEP_LOCKED ? DGEN_CALL_DEFERRED : DGEN_CALL_POSTPONED;
	DgenMessage call;
	DgenMessage *msg = item->msg;

	if (msg == NULL)
	{
		DgenCall   *c = b->calls[item->call].call;

		msg = &call;
		/* makes the secret that its place has, too */
		dgen_call_message(b->module, b->servers[item->server].server, c, msg);
		if (!dgen_deferred_call(b, item->call, then))
			return 0;
	}
	else if (item->kept != NULL && dgen_kept_settle(item->kept, then, NULL) == DGEN_CALL_DONE)
		return 0;
	if (how == DGEN_KEEP_POSTPONED)
		dgen_postpone(b->module, b->servers[item->server].server, msg);
	else
	{
		DgenMessage kept = *msg;

		/* as of a postponed one: its timer has fired */
		kept.timer = 0;
		dgen_mailbox_put_back(b->module, &kept);
	}
	return msg->id;
}
