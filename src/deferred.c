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
 * reference of its own to the call.  It is for others from the commit on; before
 * that, another activation of the same batch may answer.  A request that waits has a row in
 * dgen.reply with neither reply nor error.
 *
 * A call that was postponed, or waits for work under a lock, has such a place,
 * too, and a message of kind DGEN_KIND_CALL with its token stands for it.  The
 * message may outlive the caller; the place does not.  So whoever handles the
 * message takes the call from POSTPONED to RUNNING by compare-and-swap, as its
 * caller takes it to ABANDONED: if the caller has won, or is gone, or all of
 * this was lost in a crash, the message is dropped, and the call did not happen.
 *
 * Locks: dgen_shared->lock protects the places.  Commit callbacks raise
 * nothing.
 *
 *-------------------------------------------------------------------------
 */
#include "audit.h"
#include "batch.h"

#include "access/skey.h"
#include "access/xact.h"
#include "storage/proc.h"
#include "utils/memutils.h"
#include "utils/rel.h"

/* what this transaction does to a place, or to the call it handles */
typedef struct Change
{
	int			place;			/* DGEN_NONE: the reply came before noreply */
	bool		claimed;		/* had its place before: replied to, or run again */
	bool		kept;			/* run again */
	struct Change *under;		/* or by this transaction, whose change before this one it is */
	DgenCallState then;			/* what the commit makes of it */
	uint64		call_id;
	Jsonb	   *reply;			/* of one that has no place yet */
	dsa_pointer answered;		/* the call that the commit has answered */
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

static Change *
add_change(int place, bool claimed, uint64 call_id, DgenCallState then, Jsonb *reply)
{
	MemoryContext old = MemoryContextSwitchTo(TopTransactionContext);
	Change	   *c = palloc(sizeof(Change));

	c->place = place;
	c->claimed = claimed;
	c->kept = false;
	c->under = NULL;
	c->then = then;
	c->call_id = call_id;
	c->reply = NULL;
	c->answered = InvalidDsaPointer;
	if (reply != NULL)
	{
		c->reply = palloc(VARSIZE(reply));
		memcpy(c->reply, reply, VARSIZE(reply));
	}
	c->subid = GetCurrentSubTransactionId();
	changes = lappend(changes, c);
	MemoryContextSwitchTo(old);
	return c;
}

/* What this transaction does to a call that it handles; NULL: nothing yet. */
static Change *
find_change(uint64 call_id, bool kept)
{
	ListCell   *lc;

	foreach(lc, changes)
	{
		Change	   *c = lfirst(lc);

		if (c->call_id == call_id && (kept ? c->kept : c->place == DGEN_NONE))
			return c;
	}
	return NULL;
}

/* ---------------------------------------------------------------- tokens */

char *
dgen_deferred_token(DgenCall *call)
{
	if (call->secret == 0)
		call->secret = new_secret();
	return psprintf("c" UINT64_FORMAT ".%016llx", call->id, (unsigned long long) call->secret);
}

/* Split a token; false if it is none. */
static bool
parse_token(const char *token, char *kind, unsigned long long *id, unsigned long long *secret)
{
	return token != NULL && sscanf(token, "%c%llu.%llx", kind, id, secret) == 3 &&
		(*kind == 'c' || *kind == 'r');
}

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
		PG_RETURN_TEXT_P(cstring_to_text(dgen_deferred_token(scope->call)));
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
			 errdetail("It was given already, its caller has gone, or the handler has not committed yet."),
			 errhint("Each token from dgen.from() is good for one reply.")));
}

/* ---------------------------------------------------------------- calls */

/* A place for a call, which it keeps if the transaction commits. */
static int
take_place(DgenCall *call, dsa_pointer self)
{
	int			place = DGEN_NONE;

	LWLockAcquire(&dgen_shared->lock, LW_EXCLUSIVE);
	for (int i = 0; i < DGEN_MAX_DEFERRED && place == DGEN_NONE; i++)
	{
		DgenDeferred *d = &dgen_shared->deferred[i];

		if (d->call != InvalidDsaPointer)
			continue;
		d->call = self;
		d->call_id = call->id;
		d->secret = call->secret;
		/* nobody else's before the commit: the call is still being handled */
		d->claimed = true;
		place = i;
	}
	LWLockRelease(&dgen_shared->lock);
	if (place == DGEN_NONE)
		ereport(ERROR,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("too many calls wait for a later reply"),
				 errdetail("At most %d can.", DGEN_MAX_DEFERRED)));
	return place;
}

void
dgen_deferred_wait(DgenCall *call, dsa_pointer self, DgenCallState then)
{
	/* before the place: nothing may fail between it and what undoes it */
	Change	   *change = add_change(DGEN_NONE, false, 0, then, NULL);

	change->place = take_place(call, self);
	change->call_id = call->id;
	pg_atomic_fetch_add_u32(&call->refs, 1);
}

/*
 * The handler of a call said noreply, or keeps it: give the call a place,
 * unless its reply came already.
 */
bool
dgen_deferred_call(Batch *b, int callno, DgenCallState then)
{
	DgenCall   *call = b->calls[callno].call;
	Change	   *early = find_change(call->id, false);

	if (early != NULL)
	{
		dgen_call_put_reply(call, DGEN_CALL_REPLY, early->reply, VARSIZE(early->reply));
		dgen_batch_answer(b, callno);
		return false;
	}
	dgen_deferred_wait(call, b->calls[callno].self, then);
	return true;
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

char *
dgen_deferred_by(int pid)
{
	dsa_area   *dsa = dgen_dsa();
	char		server[DGEN_MAX_ADDRESS + 1] = "";

	LWLockAcquire(&dgen_shared->lock, LW_SHARED);
	for (int i = 0; i < DGEN_MAX_DEFERRED; i++)
	{
		DgenCall   *call;

		if (dgen_shared->deferred[i].call == InvalidDsaPointer)
			continue;
		call = dsa_get_address(dsa, dgen_shared->deferred[i].call);
		if (call->database == MyDatabaseId &&
			ProcGlobal->allProcs[call->caller_pgprocno].pid == pid)
			strlcpy(server, call->data, sizeof(server));
	}
	LWLockRelease(&dgen_shared->lock);
	return server[0] != '\0' ? pstrdup(server) : NULL;
}

/* The place of a call by its token; DGEN_NONE: nobody waits.  dgen_shared->lock is held. */
static int
find_place(uint64 call_id, uint64 secret)
{
	for (int i = 0; i < DGEN_MAX_DEFERRED; i++)
	{
		DgenDeferred *d = &dgen_shared->deferred[i];

		if (d->call != InvalidDsaPointer && d->call_id == call_id && d->secret == secret)
			return i;
	}
	return DGEN_NONE;
}

/*
 * What this transaction has done to a place so far: another activation of the
 * batch has left the call open, or has answered it.  NULL: nothing, it is
 * another's.
 */
static Change *
last_change(int place)
{
	Change	   *last = NULL;
	ListCell   *lc;

	foreach(lc, changes)
	{
		Change	   *c = lfirst(lc);

		if (c->place == place)
			last = c;
	}
	return last;
}

/*
 * The call of a token, which this transaction answers when it commits; NULL:
 * nobody waits, or somebody else is about to answer.
 */
static DgenCall *
claim_for_reply(uint64 call_id, uint64 secret)
{
	dsa_area   *dsa = dgen_dsa();
	/* before the claim: nothing may fail between it and what undoes it */
	Change	   *change = add_change(DGEN_NONE, true, 0, DGEN_CALL_DONE, NULL);
	DgenCall   *call = NULL;
	int			place;

	LWLockAcquire(&dgen_shared->lock, LW_EXCLUSIVE);
	place = secret != 0 ? find_place(call_id, secret) : DGEN_NONE;
	if (place != DGEN_NONE)
	{
		DgenDeferred *d = &dgen_shared->deferred[place];
		Change	   *last = d->claimed ? last_change(place) : NULL;

		if (!d->claimed || (last != NULL && last->then != DGEN_CALL_DONE))
		{
			call = dsa_get_address(dsa, d->call);
			d->claimed = true;
			change->place = place;
			change->call_id = call_id;
			change->under = last;
		}
	}
	LWLockRelease(&dgen_shared->lock);
	return call;
}

static const char *
reply_to_call(uint64 call_id, uint64 secret, Jsonb *reply)
{
	DgenCall   *call;

	if (dgen_scope != NULL && dgen_scope->call != NULL && dgen_scope->call->id == call_id &&
		dgen_scope->call->secret == secret)
	{
		if (find_change(call_id, false) != NULL)
			stale_token();
		add_change(DGEN_NONE, true, call_id, DGEN_CALL_DONE, reply);
		return dgen_scope->server;
	}

	call = claim_for_reply(call_id, secret);
	if (call == NULL)
		stale_token();
	dgen_call_put_reply(call, DGEN_CALL_REPLY, reply, VARSIZE(reply));
	return pstrdup(call->data);
}

/* ---------------------------------------------------------------- kept calls */

/* From POSTPONED to RUNNING, and the place is ours until the end of the transaction. */
static DgenKept
claim_kept(const char *token, int *place, DgenCall **call)
{
	dsa_area   *dsa = dgen_dsa();
	unsigned long long id;
	unsigned long long secret;
	char		kind;
	uint32		expected = DGEN_CALL_POSTPONED;
	DgenKept	result = DGEN_KEPT_GONE;

	if (!parse_token(token, &kind, &id, &secret))
		return DGEN_KEPT_GONE;
	LWLockAcquire(&dgen_shared->lock, LW_EXCLUSIVE);
	*place = find_place(id, secret);
	if (*place != DGEN_NONE)
	{
		DgenDeferred *d = &dgen_shared->deferred[*place];

		*call = dsa_get_address(dsa, d->call);
		if (d->claimed)
			result = DGEN_KEPT_BUSY;
		else if (pg_atomic_compare_exchange_u32(&(*call)->state, &expected, DGEN_CALL_RUNNING))
		{
			d->claimed = true;
			result = DGEN_KEPT_BEGUN;
		}
	}
	LWLockRelease(&dgen_shared->lock);
	return result;
}

DgenKept
dgen_kept_begin(const char *token, DgenCall **call)
{
	/* before the claim: nothing may fail between it and what undoes it */
	Change	   *change = add_change(DGEN_NONE, true, 0, DGEN_CALL_POSTPONED, NULL);
	int			place;
	DgenCall   *c;
	DgenKept	result = claim_kept(token, &place, &c);

	if (result != DGEN_KEPT_BEGUN)
		return result;
	change->place = place;
	change->call_id = c->id;
	change->kept = true;
	if (dgen_my_slot != NULL)
		pg_atomic_write_u32(&c->worker_slot, dgen_my_slot - dgen_shared->slots);
	pg_atomic_write_u64(&c->worker_vxid, ((uint64) MyVxidProc << 32) | MyLxid);
	*call = c;
	return result;
}

DgenCallState
dgen_kept_settle(DgenCall *call, DgenCallState then, Jsonb *reply)
{
	Change	   *c = find_change(call->id, true);
	Change	   *early = find_change(call->id, false);

	if (reply == NULL && early != NULL)
		reply = early->reply;
	if (reply != NULL)
	{
		dgen_call_put_reply(call, DGEN_CALL_REPLY, reply, VARSIZE(reply));
		then = DGEN_CALL_DONE;
	}
	return c->then = then;
}

void
dgen_kept_settle_error(DgenCall *call, const DgenError *error)
{
	dgen_call_put_error(call, error);
	find_change(call->id, true)->then = DGEN_CALL_DONE;
}

void
dgen_kept_fail(const char *token, const DgenError *error)
{
	DgenCall   *call;

	switch (dgen_kept_begin(token, &call))
	{
		case DGEN_KEPT_BEGUN:
			dgen_kept_settle_error(call, error);
			break;
		case DGEN_KEPT_BUSY:
			/* this transaction itself may have kept it a moment ago */
			dgen_deferred_answer(token, NULL, error);
			break;
		case DGEN_KEPT_GONE:
			break;
	}
}

void
dgen_kept_stopped_error(const char *server, DgenError *err)
{
	memset(err, 0, sizeof(DgenError));
	err->sqlerrcode = ERRCODE_DGEN_STOPPED;
	err->message = psprintf("server \"%s\" has stopped", server);
	err->detail = pstrdup("It stopped while the call waited for it.");
	err->hint = psprintf("Call again, or start it by dgen.start(%s).", quote_literal_cstr(server));
}

void
dgen_kept_cancelled(const char *token)
{
	DgenCall   *call;
	dsa_pointer self;
	int			place;

	if (claim_kept(token, &place, &call) != DGEN_KEPT_BEGUN)
		return;
	self = clear_place(place);
	dgen_call_put_reply(call, DGEN_CALL_CANCELLED, NULL, 0);
	dgen_call_finish(call);
	dgen_call_unref(call, self);
}

/*
 * Answer a call by its token when this transaction commits: one that waits for
 * a later reply, or for work under a lock.
 */
void
dgen_deferred_answer(const char *token, Jsonb *reply, const DgenError *error)
{
	unsigned long long id;
	unsigned long long secret;
	char		kind;
	DgenCall   *call;

	if (!parse_token(token, &kind, &id, &secret))
		return;
	call = claim_for_reply(id, secret);
	if (call == NULL)
		return;
	if (reply != NULL)
		dgen_call_put_reply(call, DGEN_CALL_REPLY, reply, VARSIZE(reply));
	else
		dgen_call_put_error(call, error);
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

static const char *
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
	return msg.server;
}

/* By hand, and not by a handler; the reply is its receiver's business. */
static void
audit_reply(const char *server, int64 message_id)
{
	DgenAudit	audit = {.action = "reply",.server = server,.message_id = message_id};

	if (dgen_audit_wanted(true))
		dgen_audit_write(&audit);
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
	if (!parse_token(token, &kind, &id, &secret))
		stale_token();
	if (kind == 'c')
		audit_reply(reply_to_call(id, secret, reply), 0);
	else
		audit_reply(reply_to_request((int64) id, secret, reply), (int64) id);
	PG_RETURN_VOID();
}

/* ---------------------------------------------------------------- ends */

/*
 * The call waits, and whoever has its token may answer; if its caller has gone,
 * that frees it, so hold it for the moment.
 */
static void
let_wait(Change *c, DgenCall *call, DgenCallState state)
{
	DgenDeferred *d = &dgen_shared->deferred[c->place];
	dsa_pointer self = d->call;

	pg_atomic_fetch_add_u32(&call->refs, 1);
	if (c->kept)
	{
		pg_atomic_write_u64(&call->worker_vxid, 0);
		pg_atomic_write_u32(&call->worker_slot, DGEN_NO_SLOT);
	}
	LWLockAcquire(&dgen_shared->lock, LW_EXCLUSIVE);
	d->claimed = false;
	/* to be replied to it has waited before */
	if (c->kept || !c->claimed)
		pg_atomic_write_u32(&call->state, state);
	LWLockRelease(&dgen_shared->lock);
	pg_memory_barrier();
	if (pg_atomic_read_u32(&call->caller_gone))
		dgen_deferred_forget(call->id);
	dgen_call_unref(call, self);
}

/*
 * Undo one change: the place is empty again, or waits for another reply.  Where
 * it was ours before, that is for the change which made it so.
 */
static void
undo_change(Change *c)
{
	dsa_pointer self;

	if (c->place == DGEN_NONE || c->under != NULL)
		return;
	if (c->claimed)
	{
		let_wait(c, dsa_get_address(dgen_dsa(), dgen_shared->deferred[c->place].call),
				 DGEN_CALL_POSTPONED);
		return;
	}
	self = clear_place(c->place);
	if (self != InvalidDsaPointer)
		dgen_call_unref(dsa_get_address(dgen_dsa(), self), self);
}

static void
commit_change(Change *c)
{
	if (c->place == DGEN_NONE)
		return;
	if (c->then == DGEN_CALL_DONE)
		c->answered = clear_place(c->place);
	else
		let_wait(c, dsa_get_address(dgen_dsa(), dgen_shared->deferred[c->place].call), c->then);
}

/* COMMIT PREPARED runs no code of ours: the caller would never hear of it. */
static void
check_may_prepare(void)
{
	ListCell   *lc;

	foreach(lc, changes)
	{
		Change	   *c = lfirst(lc);
		DgenCall   *call;

		if (c->place == DGEN_NONE || c->then != DGEN_CALL_DONE)
			continue;
		call = dsa_get_address(dgen_dsa(), dgen_shared->deferred[c->place].call);
		if (call->result == DGEN_CALL_REPLY)
			ereport(ERROR,
					(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
					 errmsg("cannot PREPARE a transaction that has replied to a call"),
					 errdetail("A caller of server \"%s\" waits for the reply.", call->data),
					 errhint("Reply in a transaction of its own, behind COMMIT PREPARED.")));
	}
}

/* Raises nothing but before PREPARE. */
void
dgen_deferred_xact_callback(XactEvent event)
{
	ListCell   *lc;

	if (event == XACT_EVENT_PRE_PREPARE)
		check_may_prepare();
	if (event != XACT_EVENT_COMMIT && event != XACT_EVENT_ABORT && event != XACT_EVENT_PREPARE)
		return;
	/* the last one counts */
	foreach(lc, changes)
	{
		Change	   *under = ((Change *) lfirst(lc))->under;

		if (under != NULL && event == XACT_EVENT_COMMIT)
			under->place = DGEN_NONE;
	}
	foreach(lc, changes)
	{
		if (event == XACT_EVENT_COMMIT)
			commit_change(lfirst(lc));
		else
			undo_change(lfirst(lc));
	}
	if (event != XACT_EVENT_COMMIT)
		changes = NIL;
}

/* Behind a commit: show the replies.  Raises nothing. */
void
dgen_deferred_answer_callers(void)
{
	ListCell   *lc;

	foreach(lc, changes)
	{
		dsa_pointer self = ((Change *) lfirst(lc))->answered;
		DgenCall   *call;

		if (self == InvalidDsaPointer)
			continue;
		call = dsa_get_address(dgen_dsa(), self);
		if (dgen_batch_in_doubt())
			call->result = DGEN_CALL_UNKNOWN;
		dgen_call_finish(call);
		dgen_call_unref(call, self);
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
