/*-------------------------------------------------------------------------
 *
 * deferred.c
 *	  Replies that come later: noreply, from() and reply().
 *
 * A handler that says noreply keeps its caller waiting; whoever has its token
 * (dgen.from()) answers, in a transaction of its own.  A token holds a secret
 * of 64 random bits, so that it cannot be guessed, and is spent when the
 * transaction that replies commits.
 *
 * A call that waits for its reply has a place in shared memory, with a
 * reference of its own to the call.  A request that does has a row in
 * dgen.reply with neither reply nor error.
 *
 * Locks: dgen_shared->lock protects the places.  Commit callbacks raise
 * nothing.
 *
 *-------------------------------------------------------------------------
 */
#include "batch.h"

#include "access/skey.h"
#include "access/xact.h"
#include "utils/memutils.h"
#include "utils/rel.h"

/* what this transaction does to a place, or to the call it handles */
typedef struct Change
{
	int			place;			/* DGEN_NONE: the reply came before noreply */
	bool		claimed;		/* replied to, else newly deferred */
	uint64		call_id;
	Jsonb	   *reply;			/* of one that has no place yet */
	SubTransactionId subid;
} Change;

static List *changes = NIL;		/* in TopTransactionContext */
static int64 request_id = 0;	/* for which this secret was made */
static uint64 request_secret = 0;

static uint64
new_secret(void)
{
	uint64		secret;

	if (!pg_strong_random(&secret, sizeof(secret)))
		ereport(ERROR,
				(errcode(ERRCODE_INTERNAL_ERROR),
				 errmsg("could not generate random bits")));
	return secret == 0 ? 1 : secret;
}

static void
add_change(int place, bool claimed, uint64 call_id, Jsonb *reply)
{
	MemoryContext old = MemoryContextSwitchTo(TopTransactionContext);
	Change	   *c = palloc(sizeof(Change));

	c->place = place;
	c->claimed = claimed;
	c->call_id = call_id;
	c->reply = NULL;
	if (reply != NULL)
	{
		c->reply = palloc(VARSIZE(reply));
		memcpy(c->reply, reply, VARSIZE(reply));
	}
	c->subid = GetCurrentSubTransactionId();
	changes = lappend(changes, c);
	MemoryContextSwitchTo(old);
}

/* ---------------------------------------------------------------- tokens */

PG_FUNCTION_INFO_V1(dgen_from);

/* from() -> text: the token of the call or request being handled; NULL: none */
Datum
dgen_from(PG_FUNCTION_ARGS)
{
	DgenScope  *scope = dgen_scope;

	if (scope == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_DGEN_BAD_DIRECTIVE),
				 errmsg("dgen.from() can be used in a handler only"),
				 errdetail("No handler is running in this session."),
				 errhint("Call it in handle_call.")));
	if (scope->call == NULL && scope->request_id == 0)
		PG_RETURN_NULL();
	if (scope->call != NULL)
	{
		if (scope->call->secret == 0)
			scope->call->secret = new_secret();
		PG_RETURN_TEXT_P(cstring_to_text(psprintf("c" UINT64_FORMAT ".%016llx", scope->call->id,
												  (unsigned long long) scope->call->secret)));
	}
	if (request_id != scope->request_id)
	{
		request_id = scope->request_id;
		request_secret = new_secret();
	}
	PG_RETURN_TEXT_P(cstring_to_text(psprintf("r" INT64_FORMAT ".%016llx", request_id,
											  (unsigned long long) request_secret)));
}

static void
stale_token(void)
{
	ereport(ERROR,
			(errcode(ERRCODE_DGEN_STALE_TOKEN),
			 errmsg("nobody waits for this reply"),
			 errdetail("It was given already, or its caller has gone."),
			 errhint("Each token from dgen.from() is good for one reply.")));
}

/* ---------------------------------------------------------------- calls */

/*
 * The handler of a call said noreply: give the call a place, unless its reply
 * came already.
 */
void
dgen_deferred_call(Batch *b, int callno)
{
	DgenCall   *call = b->calls[callno].call;
	int			place = DGEN_NONE;
	ListCell   *lc;

	foreach(lc, changes)
	{
		Change	   *c = lfirst(lc);

		if (c->place == DGEN_NONE && c->call_id == call->id)
		{
			dgen_call_put_reply(call, DGEN_CALL_REPLY, c->reply, VARSIZE(c->reply));
			dgen_batch_answer(b, callno);
			return;
		}
	}

	LWLockAcquire(&dgen_shared->lock, LW_EXCLUSIVE);
	for (int i = 0; i < DGEN_MAX_DEFERRED && place == DGEN_NONE; i++)
	{
		DgenDeferred *d = &dgen_shared->deferred[i];

		if (d->call != InvalidDsaPointer)
			continue;
		d->call = b->calls[callno].self;
		d->call_id = call->id;
		d->secret = call->secret;
		d->claimed = false;
		place = i;
	}
	LWLockRelease(&dgen_shared->lock);
	if (place == DGEN_NONE)
		ereport(ERROR,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("too many calls wait for a later reply"),
				 errdetail("At most %d can.", DGEN_MAX_DEFERRED)));
	pg_atomic_fetch_add_u32(&call->refs, 1);
	add_change(place, false, call->id, NULL);
}

/* Empty a place; returns its call. */
static dsa_pointer
clear_place(int place)
{
	dsa_pointer call;

	LWLockAcquire(&dgen_shared->lock, LW_EXCLUSIVE);
	call = dgen_shared->deferred[place].call;
	dgen_shared->deferred[place].call = InvalidDsaPointer;
	dgen_shared->deferred[place].call_id = 0;
	LWLockRelease(&dgen_shared->lock);
	return call;
}

/* The caller has gone: a reply would be for nobody. */
void
dgen_deferred_forget(uint64 call_id)
{
	dsa_pointer call = InvalidDsaPointer;

	LWLockAcquire(&dgen_shared->lock, LW_EXCLUSIVE);
	for (int i = 0; i < DGEN_MAX_DEFERRED; i++)
	{
		DgenDeferred *d = &dgen_shared->deferred[i];

		if (d->call_id != call_id || d->claimed)
			continue;
		call = d->call;
		d->call = InvalidDsaPointer;
		d->call_id = 0;
	}
	LWLockRelease(&dgen_shared->lock);
	if (call != InvalidDsaPointer)
		dgen_call_unref(dsa_get_address(dgen_dsa(), call), call);
}

static void
reply_to_call(uint64 call_id, uint64 secret, Jsonb *reply)
{
	dsa_pointer call = InvalidDsaPointer;
	int			place = DGEN_NONE;

	if (dgen_scope != NULL && dgen_scope->call != NULL && dgen_scope->call->id == call_id &&
		dgen_scope->call->secret == secret)
	{
		ListCell   *lc;

		foreach(lc, changes)
		{
			if (((Change *) lfirst(lc))->call_id == call_id)
				stale_token();
		}
		add_change(DGEN_NONE, true, call_id, reply);
		return;
	}

	LWLockAcquire(&dgen_shared->lock, LW_EXCLUSIVE);
	for (int i = 0; i < DGEN_MAX_DEFERRED && place == DGEN_NONE; i++)
	{
		DgenDeferred *d = &dgen_shared->deferred[i];

		if (d->call_id == call_id && d->secret == secret && secret != 0 && !d->claimed)
		{
			d->claimed = true;
			call = d->call;
			place = i;
		}
	}
	LWLockRelease(&dgen_shared->lock);
	if (place == DGEN_NONE)
		stale_token();
	add_change(place, true, call_id, NULL);
	dgen_call_put_reply(dsa_get_address(dgen_dsa(), call), DGEN_CALL_REPLY,
						reply, VARSIZE(reply));
}

/* ---------------------------------------------------------------- requests */

/* The handler of a request said noreply: leave a row to be filled in. */
void
dgen_deferred_request(DgenModule *module, DgenMessage *msg)
{
	uint64		secret = request_id == msg->id ? request_secret : new_secret();

	dgen_reply_store(module, msg->id, msg->server,
					 strchr(msg->sender, '/') ? msg->sender : NULL, (int64) secret,
					 msg->sender_role, NULL, NULL);
}

static void
reply_to_request(int64 id, uint64 secret, Jsonb *reply)
{
	DgenTable  *table = dgen_table_open(DGEN_T_REPLY, RowExclusiveLock);
	ScanKeyData key;
	DgenScan   *scan;
	HeapTuple	tuple;
	Datum		values[DGEN_MAX_COLUMNS];
	bool		nulls[DGEN_MAX_COLUMNS];
	bool		good = false;
	DgenMessage msg = {0};
	ItemPointerData tid;

	dgen_key_int8(&key, 1, id, BTEqualStrategyNumber);
	scan = dgen_scan_begin(table, DGEN_I_PKEY, NULL, 1, &key);
	tuple = dgen_scan_next(scan);
	if (tuple != NULL)
	{
		heap_deform_tuple(tuple, RelationGetDescr(table->rel), values, nulls);
		tid = tuple->t_self;
		good = nulls[7] && nulls[8] && !nulls[4] && DatumGetInt64(values[4]) == (int64) secret;
		if (good)
		{
			msg.id = id;
			msg.notify = true;
			msg.server = TextDatumGetCString(values[1]);
			msg.sender = nulls[5] ? "" : TextDatumGetCString(values[5]);
			msg.sender_role = TextDatumGetCString(values[6]);
		}
	}
	dgen_scan_end(scan);
	if (!good || !dgen_table_delete_wait(table, &tid))
		stale_token();
	dgen_table_close(table);
	CommandCounterIncrement();
	if (dgen_module_of(msg.server) != NULL)
		dgen_request_reply(dgen_module_of(msg.server), &msg, reply, NULL);
}

PG_FUNCTION_INFO_V1(dgen_reply);

/* reply(from text, reply jsonb): answers a call or request that was left open */
Datum
dgen_reply(PG_FUNCTION_ARGS)
{
	char	   *token = dgen_arg_text(fcinfo, 0);
	Jsonb	   *reply = dgen_arg_jsonb(fcinfo, 1);
	unsigned long long id;
	unsigned long long secret;
	char		kind;

	if (token == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("token of a reply must not be null"),
				 errhint("Take it from dgen.from() in the handler that says noreply.")));
	dgen_check_writable();
	if (sscanf(token, "%c%llu.%llx", &kind, &id, &secret) != 3 || (kind != 'c' && kind != 'r'))
		stale_token();
	if (kind == 'c')
		reply_to_call(id, secret, reply);
	else
		reply_to_request((int64) id, secret, reply);
	PG_RETURN_VOID();
}

/* ---------------------------------------------------------------- ends */

/* Undo one change: the place is empty again, or waits for another reply. */
static void
undo_change(Change *c)
{
	dsa_pointer call;

	if (c->place == DGEN_NONE)
		return;
	if (c->claimed)
	{
		LWLockAcquire(&dgen_shared->lock, LW_EXCLUSIVE);
		dgen_shared->deferred[c->place].claimed = false;
		LWLockRelease(&dgen_shared->lock);
		return;
	}
	call = clear_place(c->place);
	if (call != InvalidDsaPointer)
		dgen_call_unref(dsa_get_address(dgen_dsa(), call), call);
}

static void
commit_change(Change *c)
{
	DgenCall   *call;
	dsa_pointer self;

	if (c->place == DGEN_NONE)
		return;
	self = dgen_shared->deferred[c->place].call;
	if (self == InvalidDsaPointer)
		return;
	call = dsa_get_address(dgen_dsa(), self);
	if (c->claimed)
	{
		clear_place(c->place);
		dgen_call_finish(call);
		dgen_call_unref(call, self);
	}
	else
	{
		pg_atomic_write_u32(&call->state, DGEN_CALL_DEFERRED);
		pg_memory_barrier();
		/* the worker's own reference keeps the call: this frees nothing yet */
		if (pg_atomic_read_u32(&call->caller_gone))
			dgen_deferred_forget(call->id);
	}
}

void
dgen_deferred_xact_callback(XactEvent event)
{
	ListCell   *lc;

	if (event != XACT_EVENT_COMMIT && event != XACT_EVENT_ABORT && event != XACT_EVENT_PREPARE)
		return;
	foreach(lc, changes)
	{
		if (event == XACT_EVENT_COMMIT)
			commit_change(lfirst(lc));
		else
			undo_change(lfirst(lc));
	}
	changes = NIL;
}

void
dgen_deferred_subxact(SubXactEvent event, SubTransactionId my, SubTransactionId parent)
{
	ListCell   *lc;

	if (event != SUBXACT_EVENT_COMMIT_SUB && event != SUBXACT_EVENT_ABORT_SUB)
		return;
	foreach(lc, changes)
	{
		Change	   *c = lfirst(lc);

		if (c->subid < my)
			continue;
		if (event == SUBXACT_EVENT_COMMIT_SUB)
			c->subid = parent;
		else
		{
			undo_change(c);
			changes = foreach_delete_current(changes, lc);
		}
	}
}
