/*-------------------------------------------------------------------------
 *
 * external.c
 *	  External modules: their messages are handled by clients, which take them,
 *	  do the work wherever they like, and hand in the result.
 *
 * A message that is handed out stays in its row, and its server is locked for it
 * until a time (lock.c): lock_token says who may hand in, renew or fail it.
 * If nobody has by then, the next client that looks counts an attempt, and the
 * message waits again.  A call becomes a message when it is handed out.
 *
 * Servers with work are in the queue of ready servers, each module's in a pool
 * of its own without workers, so that a client finds work without looking at
 * servers that have none.  An entry is given back at once, parked until the
 * lease of its server ends; finish, failure and the abort of the transaction
 * ring it.  What is due in the pool is moved by whoever looks into it.
 *
 * take_work joins the client's transaction.  Its cut is as a worker's: bounds,
 * then a snapshot, both newer than the lease; hence READ COMMITTED only.
 *
 * Runs in backends.  Locks: leases of servers, without waiting in take_work.
 *
 *-------------------------------------------------------------------------
 */
#include "stat.h"

#include "access/skey.h"
#include "access/xact.h"
#include "common/pg_prng.h"
#include "executor/spi.h"
#include "funcapi.h"
#include "utils/acl.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/wait_event.h"

#define NORMAL_LANE 1
#define MAX_TAKE 1000
#define TAKE_NATTS 10
#define DEFAULT_LEASE_USECS INT64CONST(60000000)
#define RECHECK_MS 1000
/* when to look again at a message that somebody is about to end */
#define BUSY_USECS 10000

static const int16 lane_priority[DGEN_NLANES] = {1, 0, -1};

/* as cut.c has them: whose turn it is, of ten */
static const int turns[10] = {0, 0, 1, 0, 0, 2, 0, 1, 0, 0};

/* what this transaction has taken from the queue, in TopTransactionContext */
typedef struct InHand
{
	int32		module_id;
	int64		hash;
	int64		mark;			/* to be moved there at the commit */
	uint32		generation;
	DgenCall   *call;			/* which has become a message, or NULL */
	dsa_pointer self;
	SubTransactionId subid;
	bool		undone;			/* its subtransaction was */
} InHand;

static List *in_hand = NIL;

/*
 * The entry that is being looked at.  An error, or the end of the process,
 * gives it back from the transaction callbacks: nobody else can have it while
 * it is out of the queue.
 */
static struct
{
	int			pool;			/* or DGEN_NONE */
	DgenTaken	taken;
	SubTransactionId subid;
}			entry = {.pool = DGEN_NONE};

/* one look at a server */
typedef struct Look
{
	DgenModule *module;
	DgenTaken  *taken;
	DgenTable  *messages;
	DgenTable  *servers;
	DgenServer *server;
	DgenMessage *first[DGEN_NLANES];	/* of each lane, or NULL */
	int64		low;			/* no message of it has a lower id */
	int64		mark;
	uint32		generation;
	TimestampTz park_until;
	bool		was_read;		/* its lanes were: low is known */
} Look;

PG_FUNCTION_INFO_V1(dgen_take_work);
PG_FUNCTION_INFO_V1(dgen_renew_work);
PG_FUNCTION_INFO_V1(dgen_finish_work);
PG_FUNCTION_INFO_V1(dgen_fail_work);
PG_FUNCTION_INFO_V1(dgen_wait_work);

/* ---------------------------------------------------------------- arguments */

static DgenModule *
external_module(const char *name)
{
	DgenModule *module;

	if (name == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("name of a module must not be null")));
	module = dgen_module_get(name, false);
	if (!module->external)
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("module \"%s\" is not external", module->name),
				 errdetail("Its messages are handled by its callbacks."),
				 errhint("Only a module that was made with external => true has work to be taken.")));
	dgen_module_check_work(module);
	return module;
}

static int64
lease_argument(FunctionCallInfo fcinfo, int argno)
{
	int64		lease = DEFAULT_LEASE_USECS;

	dgen_arg_interval(fcinfo, argno, "lease", false, &lease);
	(void) dgen_time_after(GetCurrentTimestamp(), lease, "lease");
	return lease;
}

/* token.message.address */
static char *
make_token(const DgenServer *server)
{
	return psprintf(INT64_FORMAT "." INT64_FORMAT ".%s", server->lock_token, server->lock_id,
					server->address);
}

static void
stale_token(const char *detail)
{
	ereport(ERROR,
			(errcode(ERRCODE_DGEN_STALE_TOKEN),
			 errmsg("this work is not yours any more"),
			 errdetail_internal("%s", detail),
			 errhint("Drop what was done: the message is handed out again, or has ended.")));
}

/* The server that a token is for, in hand; its lock must be the token's. */
static DgenServer *
open_work(FunctionCallInfo fcinfo, DgenModule **module, DgenTable **table)
{
	char	   *text = dgen_arg_text(fcinfo, 0);
	long long	token;
	long long	id;
	int			len = 0;
	DgenAddress address;
	DgenServer *server;

	if (text == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("token must not be null"),
				 errhint("Give what dgen.take_work() returned.")));
	if (sscanf(text, "%lld.%lld.%n", &token, &id, &len) != 2 || len == 0)
		stale_token("It is no token of dgen.take_work().");
	dgen_address_parse(text + len, strlen(text + len), &address);
	*module = external_module(address.module);
	dgen_check_writable();
	server = dgen_admin_open(*module, &address, table);
	if (server->lock_id != id || server->lock_token != token || id == 0)
		stale_token("Its lease has ended, or it was finished, failed or released.");
	return server;
}

/* ---------------------------------------------------------------- ends */

static void
remember(Look *look, DgenCall *call, dsa_pointer self)
{
	MemoryContext old = MemoryContextSwitchTo(TopTransactionContext);
	InHand	   *h = palloc(sizeof(InHand));

	h->module_id = look->module->id;
	h->hash = look->taken->hash;
	h->mark = look->was_read ? look->low : 0;
	h->generation = look->generation;
	h->call = call;
	h->self = self;
	h->subid = GetCurrentSubTransactionId();
	h->undone = false;
	in_hand = lappend(in_hand, h);
	MemoryContextSwitchTo(old);
}

/* Must not raise. */
static void
give_entry_back(bool more, TimestampTz park_until)
{
	int			pool = entry.pool;

	if (pool == DGEN_NONE)
		return;
	entry.pool = DGEN_NONE;
	dgen_ready_give_back(pool, &entry.taken, more, park_until);
}

/* What was taken is there again: its call waits as before.  Must not raise. */
static void
undo(InHand *h)
{
	uint32		running = DGEN_CALL_RUNNING;

	if (h->call != NULL)
	{
		/* after the places of deferred calls have been undone */
		if (!pg_atomic_compare_exchange_u32(&h->call->state, &running, DGEN_CALL_QUEUED) ||
			!dgen_ready_return_call((Oid) h->module_id, DGEN_POOL_EXTERNAL, h->call, h->self))
			dgen_call_unref(h->call, h->self);
	}
	(void) dgen_ready_ring(MyDatabaseId, (Oid) h->module_id, DGEN_POOL_EXTERNAL, h->module_id, h->hash);
}

static void
keep(InHand *h)
{
	if (h->mark > 0)
		dgen_mark_advance(h->hash, h->mark, h->generation);
	if (h->call != NULL)
		dgen_call_unref(h->call, h->self);
}

/* At the end of a transaction; raises nothing but before PREPARE. */
void
dgen_external_xact_callback(XactEvent event)
{
	if (event == XACT_EVENT_PRE_PREPARE && in_hand != NIL)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("cannot PREPARE a transaction that has taken work")));
	if (event != XACT_EVENT_COMMIT && event != XACT_EVENT_ABORT && event != XACT_EVENT_PREPARE)
		return;
	give_entry_back(true, 0);
	/* the last one first: each call goes before those behind it */
	for (int i = list_length(in_hand) - 1; i >= 0; i--)
	{
		InHand	   *h = list_nth(in_hand, i);

		if (event != XACT_EVENT_COMMIT || h->undone)
			undo(h);
		else
			keep(h);
	}
	in_hand = NIL;
}

void
dgen_external_subxact(SubXactEvent event, SubTransactionId my, SubTransactionId parent)
{
	ListCell   *lc;

	if (event != SUBXACT_EVENT_COMMIT_SUB && event != SUBXACT_EVENT_ABORT_SUB)
		return;
	if (event == SUBXACT_EVENT_ABORT_SUB && entry.subid >= my)
		give_entry_back(true, 0);
	foreach(lc, in_hand)
	{
		InHand	   *h = lfirst(lc);

		if (h->subid < my)
			continue;
		h->subid = parent;
		h->undone |= event == SUBXACT_EVENT_ABORT_SUB;
	}
}

/* ---------------------------------------------------------------- looking */

/*
 * The first message of a lane that may be handed out: one that waits for its
 * next attempt holds those behind it, or is passed, as option retry says.
 */
static DgenMessage *
read_first(Look *look, int lane, Snapshot snapshot)
{
	DgenMessage *found = NULL;
	ScanKeyData keys[3];
	DgenScan   *scan;
	HeapTuple	tuple;
	bool		first = true;

	dgen_key_int8(&keys[0], 1, look->taken->hash, BTEqualStrategyNumber);
	dgen_key_int2(&keys[1], 2, lane_priority[lane]);
	dgen_key_int8(&keys[2], 3, look->mark, BTGreaterEqualStrategyNumber);
	scan = dgen_scan_begin(look->messages, DGEN_I_MESSAGE_MAILBOX, snapshot, 3, keys);
	while (found == NULL && (tuple = dgen_scan_next(scan)) != NULL)
	{
		DgenMessage *msg = palloc(sizeof(DgenMessage));
		TimestampTz next_at;

		CHECK_FOR_INTERRUPTS();
		dgen_message_deform(tuple, RelationGetDescr(look->messages->rel), 0, msg);
		if (first)
			look->low = Min(look->low, msg->id);
		first = false;
		next_at = look->server != NULL && !look->server->failing ? 0 : dgen_attempt_next(msg->id);
		if (next_at <= GetCurrentTimestamp())
			found = msg;
		else
		{
			look->park_until = look->park_until == 0 ? next_at : Min(look->park_until, next_at);
			if (!look->module->skip_failing)
				break;
			/* there may be many such, and they may be large */
			pfree(msg->message);
			pfree(msg);
		}
	}
	dgen_scan_end(scan);
	return found;
}

/* Bounds, then a snapshot, under the lease: see mark.c. */
static void
read_lanes(Look *look)
{
	DgenBounds *bounds;
	Snapshot	snapshot;

	look->mark = dgen_mark_get(look->taken->hash, &look->generation);
	bounds = dgen_bounds_read();
	look->low = dgen_bounds_limit(bounds, look->taken->hash);
	look->park_until = 0;
	look->was_read = true;
	snapshot = RegisterSnapshot(GetLatestSnapshot());
	for (int i = 0; i < DGEN_NLANES; i++)
		look->first[i] = read_first(look, i, snapshot);
	UnregisterSnapshot(snapshot);
}

static DgenCall *
first_call(Look *look)
{
	return look->taken->calls == InvalidDsaPointer ? NULL :
		dsa_get_address(dgen_dsa(), look->taken->calls);
}

/* Whose turn is it?  DGEN_NONE: nothing waits.  A call is in the normal lane. */
static int
choose_lane(Look *look)
{
	int			preferred = turns[pg_prng_uint32(&pg_global_prng_state) % 10];
	DgenCall   *call = first_call(look);

	for (int i = -1; i < DGEN_NLANES; i++)
	{
		int			lane = i < 0 ? preferred : i;

		if (look->first[lane] != NULL || (lane == NORMAL_LANE && call != NULL))
			return lane;
	}
	return DGEN_NONE;
}

/* A call is no longer the queue's: it has become a message, or has its answer. */
static void
detach_call(Look *look, DgenCall *call)
{
	look->taken->calls = call->next;
	call->next = InvalidDsaPointer;
}

static void
answer_call(Look *look, DgenCall *call, dsa_pointer self, Jsonb *reply, const DgenError *error)
{
	dgen_deferred_wait(call, self, DGEN_CALL_DONE);
	if (reply != NULL)
		dgen_call_put_reply(call, DGEN_CALL_REPLY, reply, VARSIZE(reply));
	else
		dgen_call_put_error(call, error);
}

/* Does a tombstone stand for the server?  What was sent before may come after it. */
static bool
is_deleted(Look *look)
{
	return !look->server->active && look->server->tombstone_until > GetCurrentTimestamp();
}

/* Was the call's server stopped while it waited, or its request answered before? */
static bool
is_answered(Look *look, DgenCall *call, dsa_pointer self)
{
	DgenError	err = {0};
	bool		same;
	Jsonb	   *kept;

	if (call->id < dgen_ready_stopped(look->taken))
	{
		err.sqlerrcode = ERRCODE_DGEN_STOPPED;
		err.message = psprintf("server \"%s\" has stopped", call->data);
		err.detail = pstrdup("It was stopped or deleted while the call waited for it. The call did not happen.");
		answer_call(look, call, self, NULL, &err);
		return true;
	}
	if (is_deleted(look))
	{
		dgen_no_server_error(look->module, look->server, &err);
		answer_call(look, call, self, NULL, &err);
		return true;
	}
	if (call->key_off == 0)
		return false;
	kept = dgen_reply_by_key(call->data, call->data + call->key_off, call->data + call->role_off,
							 (Jsonb *) (call->data + call->request_off), &same);
	if (kept == NULL)
		return false;
	if (same)
		answer_call(look, call, self, kept, NULL);
	else
	{
		err.sqlerrcode = ERRCODE_DGEN_KEY_REUSED;
		err.message = psprintf("request_key \"%s\" was used for another request to server \"%s\"",
							   call->data + call->key_off, call->data);
		answer_call(look, call, self, NULL, &err);
	}
	return true;
}

/* The call becomes a message; NULL: its caller has gone, or has an answer. */
static DgenMessage *
take_call(Look *look)
{
	dsa_pointer self = look->taken->calls;
	DgenCall   *call = first_call(look);
	DgenMessage *msg = palloc0(sizeof(DgenMessage));

	/* from here on the call is ours: whatever fails puts it back */
	remember(look, call, self);
	detach_call(look, call);
	if (!dgen_call_begin(call) || is_answered(look, call, self))
		return NULL;
	/* makes the secret that its place has, too */
	dgen_call_message(look->module, look->server, call, msg);
	dgen_deferred_wait(call, self, DGEN_CALL_DEFERRED);
	dgen_mailbox_put_back(look->module, msg);
	return msg;
}

/*
 * Delete a message that is not to be handled, and answer whoever waits for it.
 * False: somebody is about to end it, and may not.
 */
static bool
drop_message(Look *look, DgenMessage *msg)
{
	DgenError	err = {ERRCODE_DGEN_TIMEOUT, "request expired before it was handled",
		"It did not happen.", "Send it again, with a longer expires."};
	TM_Result	result = dgen_table_delete(look->messages, &msg->tid);

	if (result != TM_Ok)
		return result != TM_BeingModified;
	CommandCounterIncrement();
	if (is_deleted(look))
		dgen_no_server_error(look->module, look->server, &err);
	if (msg->kind == DGEN_KIND_REQUEST)
		dgen_request_reply(look->module, msg, NULL, dgen_error_to_jsonb(&err));
	else if (msg->kind == DGEN_KIND_CALL)
		dgen_deferred_answer(msg->token, NULL, &err);
	dgen_attempt_delete(msg->id);
	return true;
}

/*
 * One that a timer sent is handed out for the timer's sake once, and then for
 * its own.  GONE: it is out of the mailbox.  Its row is locked first, as a
 * worker does: were it deleted, it would have to come back when somebody is at
 * the timer.
 */
static DgenClaim
claim_timer(Look *look, DgenMessage *msg)
{
	struct DgenTimer *timer;
	DgenClaim	claim;

	if (!dgen_timer_is_behind(msg))
		return DGEN_CLAIM_TAKEN;
	switch (dgen_table_lock(look->messages, &msg->tid))
	{
		case TM_Ok:
			claim = dgen_timer_claim(msg, false, &timer);
			break;
		case TM_WouldBlock:
		case TM_BeingModified:
			return DGEN_CLAIM_BUSY;
		default:
			return DGEN_CLAIM_GONE;
	}
	if (claim == DGEN_CLAIM_BUSY)
		return claim;
	(void) dgen_table_delete_wait(look->messages, &msg->tid);
	if (claim == DGEN_CLAIM_GONE || !dgen_timer_go_on(look->module, msg, timer))
		return DGEN_CLAIM_GONE;
	msg->timer = msg->incarnation = 0;
	dgen_mailbox_put_back(look->module, msg);
	return DGEN_CLAIM_TAKEN;
}

/* What the engine sends to itself is for no client. */
static bool
is_engines(const DgenMessage *msg)
{
	return msg->kind == DGEN_KIND_TIMEOUT || msg->kind == DGEN_KIND_EXIT ||
		msg->kind == DGEN_KIND_CONTINUE;
}

/* The next message of the server; NULL: it has none now. */
static DgenMessage *
next_message(Look *look)
{
	for (;;)
	{
		int			lane;
		DgenMessage *msg;
		DgenCall   *call = first_call(look);
		bool		busy = false;

		CHECK_FOR_INTERRUPTS();
		read_lanes(look);
		lane = choose_lane(look);
		if (lane == DGEN_NONE)
			return NULL;
		msg = look->first[lane];
		if (lane == NORMAL_LANE && call != NULL && (msg == NULL || call->place < msg->id))
		{
			msg = take_call(look);
			if (msg != NULL)
				return msg;
		}
		else if ((is_deleted(look) && !dgen_timer_is_behind(msg)) ||
				 msg->expires_at <= GetCurrentTimestamp() || is_engines(msg) ||
				 !dgen_message_is_for(msg, look->server))
			busy = !drop_message(look, msg);
		else
		{
			DgenClaim	claim = claim_timer(look, msg);

			/* one for a deleted server is met again, without its timer */
			if (claim == DGEN_CLAIM_TAKEN && !is_deleted(look))
				return msg;
			busy = claim == DGEN_CLAIM_BUSY;
		}
		if (busy)
		{
			look->park_until = GetCurrentTimestamp() + BUSY_USECS;
			return NULL;
		}
		CommandCounterIncrement();
	}
}

/* ---------------------------------------------------------------- taking */

/* Whose server is it?  By a call, or any message. */
static char *
find_address(Look *look)
{
	DgenCall   *call = first_call(look);

	if (call != NULL)
		return pstrdup(call->data);
	read_lanes(look);
	for (int i = 0; i < DGEN_NLANES; i++)
	{
		if (look->first[i] != NULL)
			return pstrdup(look->first[i]->server);
	}
	return NULL;
}

/* A batch as failure.c wants it; the server's lease is held. */
static void
record_failure(DgenModule *module, DgenServer *server, DgenMessage *msg, DgenError *error,
			   Interval *retry_after)
{
	static Batch b;
	BatchItem	item = {0};

	memset(&b, 0, offsetof(Batch, mcxt));
	b.module_id = module->id;
	b.lock_token = server->lock_token;
	b.rejected = b.overtakes = false;
	b.error = error;
	b.retry_after = retry_after;
	item.msg = msg;
	if (retry_after == NULL)
	{
		dgen_statistics_external(server, msg, true);
		dgen_stat_note(module->id, DGEN_STAT_ERRORS);
	}
	dgen_failure_note(&b, &item);
}

/* The lease of its message has ended, and nobody has handed anything in. */
static void
expire_lease(Look *look)
{
	DgenError	err = {ERRCODE_DGEN_WORKER_LOST};
	DgenMessage msg;

	err.message = pstrdup("lease ended before the work was finished");
	err.detail = psprintf("It ended at %s.", timestamptz_to_str(look->server->locked_until));
	err.hint = pstrdup("Take work with a longer lease, or dgen.renew_work() in time.");
	if (dgen_lock_message(look->messages, look->server, &msg))
		record_failure(look->module, look->server, &msg, &err, NULL);
	else
	{
		dgen_lock_end(look->server);
		dgen_server_write(look->servers, look->server, NULL);
	}
	/* its rows are read as they are then */
	look->park_until = GetCurrentTimestamp() + 1000;
}

/* May the server's next message be handed out? */
static bool
is_free(Look *look)
{
	DgenServer *server = look->server;

	if (server->suspended)
	{
		look->park_until = DT_NOEND;
		return false;
	}
	if (server->lock_id == 0)
		return true;
	if (server->locked_until > GetCurrentTimestamp())
		look->park_until = server->locked_until;
	else
		expire_lease(look);
	return false;
}

static void
start_server(Look *look)
{
	DgenActivation act = {0};

	if (look->server->active || is_deleted(look))
		return;
	act.module = look->module;
	act.server = look->server;
	act.identity = DGEN_AS_OWNER;
	act.kind = "init";
	dgen_activation_start(&act, NULL);
}

static Datum
text_or_null(const char *s, bool *isnull)
{
	*isnull = s == NULL;
	return s ? CStringGetTextDatum(s) : (Datum) 0;
}

static const char *
kind_word(char kind)
{
	return kind == DGEN_KIND_CAST ? "cast" :
		kind == DGEN_KIND_CALL || kind == DGEN_KIND_REQUEST ? "call" : "info";
}

static void
return_work(ReturnSetInfo *rsinfo, DgenServer *server, DgenMessage *msg)
{
	Datum		values[TAKE_NATTS];
	bool		nulls[TAKE_NATTS] = {false};

	values[0] = CStringGetTextDatum(server->address);
	values[1] = CStringGetTextDatum(make_token(server));
	values[2] = CStringGetTextDatum(kind_word(msg->kind));
	values[3] = JsonbPGetDatum(msg->message);
	values[4] = JsonbPGetDatum(server->state ? server->state : dgen_json_null());
	values[5] = text_or_null(strchr(msg->sender, '/') ? msg->sender : NULL, &nulls[5]);
	values[6] = CStringGetTextDatum(msg->sender_role);
	values[7] = PointerGetDatum(msg->context);
	nulls[7] = msg->context == NULL;
	values[8] = Int32GetDatum(dgen_attempt_count(msg->id));
	values[9] = Int64GetDatum(msg->id);
	tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
}

/* Hand out the next message of one server; false: it has none now. */
static bool
take_from(Look *look, int64 lease, ReturnSetInfo *rsinfo)
{
	DgenMessage *msg;
	char	   *address;

	if (!dgen_lease_take(look->taken->hash, false))
	{
		look->park_until = GetCurrentTimestamp() + (INT64CONST(1000) << Min(look->taken->deferrals++, 6));
		return false;
	}
	look->taken->deferrals = 0;
	address = find_address(look);
	if (address == NULL)
		return false;
	look->server = dgen_server_read(look->servers, address, look->taken->hash, NULL);
	if (!is_free(look))
		return false;
	start_server(look);
	msg = next_message(look);
	if (msg != NULL)
	{
		look->low = Min(look->low, msg->id);
		look->server->lock_id = msg->id;
		look->server->lock_token++;
		look->server->locked_until = dgen_time_after(GetCurrentTimestamp(), lease, "lease");
		look->server->dirty = true;
		look->park_until = look->server->locked_until;
		return_work(rsinfo, look->server, msg);
	}
	/* also where it was merely looked at: rung, should this be undone */
	remember(look, NULL, InvalidDsaPointer);
	dgen_server_write(look->servers, look->server, NULL);
	CommandCounterIncrement();
	return msg != NULL;
}

/* Take one entry of the queue; false: there is none.  *taken: was something handed out? */
static bool
take_one(DgenModule *module, int64 lease, ReturnSetInfo *rsinfo, bool *taken)
{
	Look		look = {0};

	entry.subid = GetCurrentSubTransactionId();
	entry.pool = dgen_ready_take_external(module->id, &entry.taken);
	if (entry.pool == DGEN_NONE)
		return false;
	/* to give its calls back, an abort may look at the last, and must not have to map it */
	if (entry.taken.last_call != InvalidDsaPointer)
		(void) dsa_get_address(dgen_dsa(), entry.taken.last_call);
	look.module = module;
	look.taken = &entry.taken;
	look.messages = dgen_table_open(DGEN_T_MESSAGE, RowExclusiveLock);
	look.servers = dgen_table_open(DGEN_T_SERVER, RowExclusiveLock);
	*taken = take_from(&look, lease, rsinfo);
	dgen_table_close(look.messages);
	dgen_table_close(look.servers);
	give_entry_back(false, look.park_until);
	return true;
}

/* Take entries until max are handed out, or there are no more. */
static void
take_some(DgenModule *module, int max, int64 lease, ReturnSetInfo *rsinfo)
{
	int			looks = 4 * max + 64;
	int			n = 0;
	bool		taken;

	while (n < max && looks-- > 0 && take_one(module, lease, rsinfo, &taken))
		n += taken;
}

static int
max_argument(FunctionCallInfo fcinfo, int argno)
{
	int			max = PG_ARGISNULL(argno) ? 1 : PG_GETARG_INT32(argno);

	if (max < 1 || max > MAX_TAKE)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("invalid max: %d", max),
				 errhint("It must be between 1 and %d.", MAX_TAKE)));
	return max;
}

/* take_work(module text, max integer, lease interval) */
Datum
dgen_take_work(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	DgenModule *module = external_module(dgen_arg_text(fcinfo, 0));

	InitMaterializedSRF(fcinfo, 0);
	dgen_check_writable();
	dgen_check_enabled();
	dgen_module_check_running(module);
	if (IsolationUsesXactSnapshot() || dgen_scope != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_ACTIVE_SQL_TRANSACTION),
				 errmsg("dgen.take_work() needs a READ COMMITTED transaction of a client"),
				 errhint("Take work in a statement of its own.")));
	dgen_module_hold(module);
	PG_TRY();
	{
		take_some(module, max_argument(fcinfo, 1), lease_argument(fcinfo, 2), rsinfo);
	}
	PG_FINALLY();
	{
		dgen_module_release(module);
	}
	PG_END_TRY();
	return (Datum) 0;
}

/* ---------------------------------------------------------------- handing in */

/* renew_work(token text, lease interval) -> timestamptz: until when */
Datum
dgen_renew_work(PG_FUNCTION_ARGS)
{
	int64		lease = lease_argument(fcinfo, 1);
	DgenModule *module;
	DgenTable  *table;
	DgenServer *server = open_work(fcinfo, &module, &table);

	server->locked_until = dgen_time_after(GetCurrentTimestamp(), lease, "lease");
	server->dirty = true;
	dgen_admin_close(table, server);
	PG_RETURN_TIMESTAMPTZ(server->locked_until);
}

/* The message of the work, deleted. */
static void
end_message(DgenModule *module, DgenServer *server, DgenMessage *msg)
{
	DgenTable  *table = dgen_table_open(DGEN_T_MESSAGE, RowExclusiveLock);
	bool		known;

	if (!dgen_lock_message(table, server, msg) || !dgen_table_delete_wait(table, &msg->tid))
		stale_token("Its message was deleted.");
	dgen_table_close(table);
	CommandCounterIncrement();
	dgen_length_add(server->hash, -1, &known);
	if (dgen_attempt_next(msg->id) != 0)
	{
		dgen_attempt_delete(msg->id);
		CommandCounterIncrement();
	}
}

/* finish_work(token text, state jsonb, reply jsonb); state NULL: unchanged */
Datum
dgen_finish_work(PG_FUNCTION_ARGS)
{
	DgenModule *module;
	DgenTable  *table;
	DgenServer *server = open_work(fcinfo, &module, &table);
	DgenActivation act = {0};
	DgenMessage msg;

	end_message(module, server, &msg);
	act.module = module;
	act.server = server;
	act.identity = DGEN_AS_OWNER;
	act.kind = kind_word(msg.kind);
	PushActiveSnapshot(GetTransactionSnapshot());
	if (!PG_ARGISNULL(1))
		dgen_activation_set_state(&act, dgen_arg_jsonb(fcinfo, 1));
	dgen_reply_to(module, &msg, dgen_arg_jsonb(fcinfo, 2));
	PopActiveSnapshot();
	dgen_failure_settle(server);
	dgen_lock_end(server);
	dgen_statistics_external(server, &msg, false);
	dgen_stat_external(module, server, &msg);
	dgen_admin_close(table, server);
	PG_RETURN_VOID();
}

/* fail_work(token text, error text, retry_after interval) */
Datum
dgen_fail_work(PG_FUNCTION_ARGS)
{
	DgenError	err = {ERRCODE_RAISE_EXCEPTION};
	Interval   *retry_after = NULL;
	DgenModule *module;
	DgenTable  *table;
	DgenServer *server;
	DgenTable  *messages;
	DgenMessage msg;
	int64		usecs;

	if (dgen_arg_interval(fcinfo, 2, "retry_after", true, &usecs))
	{
		(void) dgen_time_after(GetCurrentTimestamp(), usecs, "retry_after");
		retry_after = PG_GETARG_INTERVAL_P(2);
	}
	server = open_work(fcinfo, &module, &table);
	err.message = dgen_arg_text(fcinfo, 1);
	if (err.message == NULL)
		err.message = pstrdup("work has failed");
	messages = dgen_table_open(DGEN_T_MESSAGE, RowExclusiveLock);
	if (!dgen_lock_message(messages, server, &msg))
		stale_token("Its message was deleted.");
	dgen_table_close(messages);
	/* reads and writes the row itself */
	record_failure(module, server, &msg, &err, retry_after);
	dgen_table_close(table);
	PG_RETURN_VOID();
}

/* ---------------------------------------------------------------- waiting */

/*
 * CALL wait_work(module text, timeout interval): until there may be work, or
 * the time is up.  As wait_server (wait.c), it sleeps without a snapshot.
 */
Datum
dgen_wait_work(PG_FUNCTION_ARGS)
{
	static uint32 wait_event = 0;
	CallContext *call = fcinfo->context && IsA(fcinfo->context, CallContext) ?
		(CallContext *) fcinfo->context : NULL;
	TimestampTz deadline = DT_NOEND;
	DgenModule *module = external_module(dgen_arg_text(fcinfo, 0));
	int32		module_id = module->id;
	int64		timeout;

	if (call == NULL || call->atomic)
		ereport(ERROR,
				(errcode(ERRCODE_ACTIVE_SQL_TRANSACTION),
				 errmsg("dgen.wait_work() cannot run inside a transaction block"),
				 errdetail("It would keep the transaction's snapshot for as long as it waits."),
				 errhint("CALL it by itself.")));
	if (dgen_arg_interval(fcinfo, 1, "timeout", true, &timeout))
		deadline = dgen_time_after(GetCurrentTimestamp(), timeout, "timeout");
	if (wait_event == 0)
		wait_event = WaitEventExtensionNew("DgenWaitWork");
	SPI_connect_ext(SPI_OPT_NONATOMIC);
	for (;;)
	{
		TimestampTz now;
		TimestampTz due;

		/* which ends our entry among the waiters, too */
		SPI_commit();
		(void) dgen_waiter_add(DGEN_WAIT_WORK, module_id);
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
		now = GetCurrentTimestamp();
		if (dgen_ready_external(module_id, now, &due) || now >= deadline)
			break;
		due = Min(due, deadline);
		InvalidateCatalogSnapshot();
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 Max(1, Min(RECHECK_MS, TimestampDifferenceMilliseconds(now, due))),
						 wait_event);
	}
	dgen_waiter_remove();
	SPI_finish();
	PG_RETURN_VOID();
}
