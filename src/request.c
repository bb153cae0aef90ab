/*-------------------------------------------------------------------------
 *
 * request.c
 *	  What became of a request: waiting for its reply, or for a server's next
 *	  state, and asking about a message.
 *
 * None of these joins the caller's transaction.  They read dgen's tables as
 * they are now (SnapshotSelf), since the statement that waits has a snapshot
 * older than what it waits for.  Such a scan takes no predicate locks, and is
 * no cut: a row that moves from table to table, or is replaced by a row at
 * another place, may be missed.  So a request is looked for twice before it
 * counts as gone; it moves that way at most once in its life.
 *
 * A wait enters itself in the table of waiter.c, looks, and sleeps on its
 * latch until somebody commits what it waits for; it looks again each second
 * in any case, and each 50 ms where nobody would wake it (on a standby, or
 * with the table full).  It keeps no lock but AccessShareLock on dgen's
 * tables; the statement's snapshot it does keep, which is why no wait takes
 * longer than 5 s.
 *
 * Who neither sent a request nor may read its module is told that it does not
 * exist.
 *
 *-------------------------------------------------------------------------
 */
#include "dgen.h"

#include "access/htup_details.h"
#include "access/skey.h"
#include "access/xlog.h"
#include "catalog/pg_type.h"
#include "funcapi.h"
#include "storage/spin.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/wait_event.h"

#define MAX_WAIT_USECS INT64CONST(5000000)	/* the default, too */
#define RECHECK_MS 1000
#define POLL_MS 50
#define MAX_KEYS 16				/* beyond, a wait is woken by any reply */

/* columns of dgen.message and dgen.letter, from 1; dgen.delayed has one more before hash */
#define MESSAGE_HASH 2
#define MESSAGE_KIND 5
#define MESSAGE_SERVER 9
#define MESSAGE_ROLE 10
#define MESSAGE_SENDER 11
#define LETTER_ERROR 22

/* of dgen.reply */
#define REPLY_SERVER 2
#define REPLY_EXPIRES_AT 4
#define REPLY_ROLE 7
#define REPLY_REPLY 8
#define REPLY_ERROR 9

/* of dgen.server */
#define SERVER_VERSION 5
#define SERVER_STATE 13
#define SERVER_BASE_VERSION 14

typedef enum Place
{
	PLACE_UNKNOWN,				/* not looked for yet */
	PLACE_DELAYED,
	PLACE_MAILBOX,
	PLACE_POSTPONED,
	PLACE_PENDING,				/* handled; somebody will reply */
	PLACE_REPLIED,				/* with a reply or an error */
	PLACE_LETTER,				/* dead, and its reply is gone */
	PLACE_NOWHERE
} Place;

typedef struct Request
{
	int64		id;
	Place		place;
	Place		last_place;		/* of one that is nowhere */
	ItemPointerData tid;		/* of its row there */
	int64		hash;			/* in delayed, mailbox and letters */
	char		kind;			/* 'r', or that of a message which is no request */
	bool		by_server;		/* sent by a handler */
	char	   *server;
	char	   *sender_role;
	Jsonb	   *reply;
	Jsonb	   *error;
} Request;

typedef struct Wait
{
	DgenWaitKind kind;
	int64		hash;			/* of the server; or: */
	int			nrequests;
	Request    *requests;
	bool		to_receive;		/* only the requester may */
	bool		looked;			/* rights are checked */
	bool		entered;		/* in the table of waiters, if it has room */
	int			recheck_ms;
	int64		timeout;		/* microseconds */
	TimestampTz deadline;
	MemoryContext mcxt;			/* for one look */
} Wait;

/* ---------------------------------------------------------------- rows */

static Datum
column(HeapTuple tuple, TupleDesc desc, int attno)
{
	bool		isnull;

	return heap_getattr(tuple, attno, desc, &isnull);
}

/* A jsonb column, detoasted, or NULL. */
static Jsonb *
jsonb_column(HeapTuple tuple, TupleDesc desc, int attno)
{
	bool		isnull;
	Datum		value = heap_getattr(tuple, attno, desc, &isnull);

	return isnull ? NULL : (Jsonb *) PG_DETOAST_DATUM_COPY(value);
}

static void
take_reply(HeapTuple tuple, TupleDesc desc, Request *r)
{
	r->kind = 'r';
	r->by_server = false;
	r->server = TextDatumGetCString(column(tuple, desc, REPLY_SERVER));
	r->sender_role = TextDatumGetCString(column(tuple, desc, REPLY_ROLE));
	r->reply = jsonb_column(tuple, desc, REPLY_REPLY);
	r->error = jsonb_column(tuple, desc, REPLY_ERROR);
	r->place = r->reply != NULL || r->error != NULL ? PLACE_REPLIED : PLACE_PENDING;
}

static void
take_message(HeapTuple tuple, TupleDesc desc, int skip, Request *r)
{
	char	   *sender = TextDatumGetCString(column(tuple, desc, MESSAGE_SENDER + skip));

	r->hash = DatumGetInt64(column(tuple, desc, MESSAGE_HASH + skip));
	r->kind = DatumGetChar(column(tuple, desc, MESSAGE_KIND + skip));
	r->server = TextDatumGetCString(column(tuple, desc, MESSAGE_SERVER + skip));
	r->sender_role = TextDatumGetCString(column(tuple, desc, MESSAGE_ROLE + skip));
	r->by_server = strchr(sender, '/') != NULL;
}

/* Look for the request in one table; false if it is not there. */
static bool
find_in(DgenTableId id, Request *r)
{
	DgenTable  *table = dgen_table_open(id, AccessShareLock);
	TupleDesc	desc = RelationGetDescr(table->rel);
	bool		found = false;
	ScanKeyData key;
	DgenScan   *scan;
	HeapTuple	tuple;

	dgen_key_int8(&key, 1, r->id, BTEqualStrategyNumber);
	scan = dgen_scan_begin(table, DGEN_I_PKEY, NULL, 1, &key);
	/* of a row that is being replaced we may meet both versions, the new one last */
	while ((tuple = dgen_scan_next(scan)) != NULL)
	{
		found = true;
		r->tid = tuple->t_self;
		switch (id)
		{
			case DGEN_T_REPLY:
				take_reply(tuple, desc, r);
				break;
			case DGEN_T_DELAYED:
				take_message(tuple, desc, 1, r);
				r->place = PLACE_DELAYED;
				break;
			case DGEN_T_MESSAGE:
				take_message(tuple, desc, 0, r);
				r->place = PLACE_MAILBOX;
				break;
			case DGEN_T_POSTPONED:
				take_message(tuple, desc, 0, r);
				r->place = PLACE_POSTPONED;
				break;
			case DGEN_T_LETTER:
				take_message(tuple, desc, 0, r);
				r->error = jsonb_column(tuple, desc, LETTER_ERROR);
				r->place = PLACE_LETTER;
				break;
			default:			/* merely whether it is there */
				break;
		}
	}
	dgen_scan_end(scan);
	dgen_table_close(table);
	return found;
}

/*
 * Find out where the request is.  Tables are read in the order in which it
 * moves through them, so that it cannot slip past; only what comes back from
 * the dead letters, or was postponed, moves the other way.
 */
static void
locate(Request *r)
{
	for (int round = 0; round < 2; round++)
	{
		if (find_in(DGEN_T_REPLY, r) && r->place == PLACE_REPLIED)
			return;
		if (find_in(DGEN_T_DELAYED, r) || find_in(DGEN_T_MESSAGE, r) ||
			find_in(DGEN_T_POSTPONED, r) || find_in(DGEN_T_MESSAGE, r) ||
			find_in(DGEN_T_REPLY, r) || find_in(DGEN_T_LETTER, r))
			return;
	}
	r->place = PLACE_NOWHERE;
}

/* Has it ended, in whatever way? */
static bool
has_ended(const Request *r)
{
	return r->place >= PLACE_REPLIED;
}

/* Was it sent by this transaction, which has not committed? */
static bool
is_uncommitted(int64 id)
{
	DgenSent   *sent;
	int			n = dgen_mailbox_uncommitted(&sent);

	for (int i = 0; i < n; i++)
	{
		if (sent[i].id == id)
			return true;
	}
	return false;
}

/* ---------------------------------------------------------------- rights */

/* Is the current user, or a role that he is a member of, the requester? */
static bool
is_requester(const char *sender_role)
{
	Oid			role = get_role_oid(sender_role, true);

	return OidIsValid(role) && has_privs_of_role(GetUserId(), role);
}

static bool
may_see(const char *server, const char *sender_role)
{
	DgenModule *module;

	if (is_requester(sender_role))
		return true;
	module = dgen_module_of(server);
	return module != NULL && dgen_module_may_read(module);
}

static void
check_not_uncommitted(int64 id)
{
	if (is_uncommitted(id))
		ereport(ERROR,
				(errcode(ERRCODE_DGEN_WOULD_OVERTAKE),
				 errmsg("request %lld is not yet committed", (long long) id),
				 errdetail("It is sent when this transaction commits, and answered after that."),
				 errhint("COMMIT first.")));
}

/* Raises unless the current user may have the reply to the request, and there will be one. */
static void
check_request(Wait *w, Request *r)
{
	if (r->place == PLACE_NOWHERE || !may_see(r->server, r->sender_role))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("request %lld does not exist", (long long) r->id),
				 errhint("It may have been cancelled, its reply may have expired, or it is neither yours nor sent to a module that you may read.")));
	if (w->to_receive && !is_requester(r->sender_role))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied to receive the response to request %lld",
						(long long) r->id),
				 errdetail("It was sent by role \"%s\".", r->sender_role),
				 errhint("Use dgen.wait_response(), which leaves the request as it is.")));
	if (r->kind != 'r')
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("message %lld is not a request", (long long) r->id),
				 errdetail("Nobody replies to casts and infos."),
				 errhint("See dgen.message_status(%lld) for what became of it, or send with dgen.send_request().",
						 (long long) r->id)));
	if (r->by_server)
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("the reply to request %lld goes to the server that sent it",
						(long long) r->id),
				 errhint("Its handle_info is given a message like {\"info\": \"reply\", \"request_id\": %lld, ...}.",
						 (long long) r->id)));
}

/* ---------------------------------------------------------------- waiting */

static void
take_timeout(FunctionCallInfo fcinfo, int argno, Wait *w)
{
	w->timeout = MAX_WAIT_USECS;
	dgen_arg_interval(fcinfo, argno, "timeout", true, &w->timeout);
	w->timeout = Min(w->timeout, MAX_WAIT_USECS);
	w->deadline = GetCurrentTimestamp() + w->timeout;
	/* nobody waits any longer for the handler that waits here */
	if (dgen_scope != NULL && dgen_scope->deadline != 0)
		w->deadline = Min(w->deadline, dgen_scope->deadline);
}

static int64
take_id(FunctionCallInfo fcinfo, int argno)
{
	if (PG_ARGISNULL(argno))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("id of a request must not be null"),
				 errhint("Give what dgen.send_request() returned.")));
	return PG_GETARG_INT64(argno);
}

/* Begin a wait for some requests; its deadline is the caller's to set. */
static void
begin_wait(Wait *w, int n)
{
	memset(w, 0, sizeof(Wait));
	w->kind = DGEN_WAIT_REPLY;
	w->nrequests = n;
	w->requests = palloc0(Max(n, 1) * sizeof(Request));
	w->deadline = DT_NOBEGIN;
	w->mcxt = AllocSetContextCreate(CurrentMemoryContext, "dgen wait", ALLOCSET_SMALL_SIZES);
}

/* Have ourselves woken by those who commit what we wait for. */
static void
enter(Wait *w)
{
	bool		entered = true;

	/* what an error left that somebody caught without a subtransaction */
	dgen_waiter_remove();
	if (w->kind == DGEN_WAIT_STATE)
		entered = dgen_waiter_add(w->kind, w->hash);
	else if (w->nrequests > MAX_KEYS)
		entered = dgen_waiter_add(w->kind, DGEN_WAIT_ANY);
	else
	{
		for (int i = 0; i < w->nrequests && entered; i++)
			entered = has_ended(&w->requests[i]) ||
				dgen_waiter_add(w->kind, w->requests[i].id);
	}

	/* on a standby nothing commits here */
	w->recheck_ms = entered && !RecoveryInProgress() ? RECHECK_MS : POLL_MS;
	w->entered = true;
}

/*
 * Sleep until it is time to look again; false when the deadline has come.
 * The first time, only enter ourselves as waiters, so that the next look is
 * one after that.
 */
static bool
nap(Wait *w)
{
	static uint32 wait_events[2] = {0, 0};
	TimestampTz now = GetCurrentTimestamp();
	long		ms;

	if (now >= w->deadline)
		return false;
	if (!w->entered)
	{
		enter(w);
		return true;
	}
	if (wait_events[w->kind] == 0)
		wait_events[w->kind] = WaitEventExtensionNew(w->kind == DGEN_WAIT_REPLY ?
													 "DgenReply" : "DgenState");
	ms = TimestampDifferenceMilliseconds(now, w->deadline);
	(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
					 Min(ms, w->recheck_ms), wait_events[w->kind]);
	return true;
}

/* Before each look: what is announced from here on ends the next nap. */
static void
ready_to_look(void)
{
	ResetLatch(MyLatch);
	CHECK_FOR_INTERRUPTS();
}

static Jsonb *
copy_jsonb(Jsonb *jb)
{
	return jb ? memcpy(palloc(VARSIZE(jb)), jb, VARSIZE(jb)) : NULL;
}

/* See where a request is now. */
static void
look_for(Wait *w, Request *r)
{
	MemoryContext old = MemoryContextSwitchTo(w->mcxt);
	Request		now = {.id = r->id};

	locate(&now);
	if (!w->looked)
		check_request(w, &now);
	MemoryContextSwitchTo(old);

	if (now.place == PLACE_NOWHERE)
		r->last_place = r->place;
	else
	{
		r->tid = now.tid;
		r->hash = now.hash;
		r->reply = copy_jsonb(now.reply);
		r->error = copy_jsonb(now.error);
	}
	r->place = now.place;
	if (r->server == NULL)
		r->server = pstrdup(now.server);
	MemoryContextReset(w->mcxt);
}

/* Wait until one, or all, of the requests have ended, or the deadline has come. */
static void
await(Wait *w, bool all)
{
	for (int i = 0; i < w->nrequests; i++)
		check_not_uncommitted(w->requests[i].id);
	for (;;)
	{
		int			nended = 0;

		ready_to_look();
		for (int i = 0; i < w->nrequests; i++)
		{
			if (!has_ended(&w->requests[i]))
				look_for(w, &w->requests[i]);
			if (has_ended(&w->requests[i]))
				nended++;
		}
		w->looked = true;
		if (nended == w->nrequests || (nended > 0 && !all) || !nap(w))
			break;
	}
	dgen_waiter_remove();
}

/* The error of a request that ended by one, or without any reply. */
static DgenError *
request_error(const Request *r)
{
	DgenError  *err;

	if (r->error != NULL)
		return dgen_error_from_jsonb(r->error);
	err = palloc0(sizeof(DgenError));
	if (r->last_place == PLACE_PENDING)
	{
		err->sqlerrcode = ERRCODE_DGEN_UNKNOWN_OUTCOME;
		err->message = psprintf("outcome of request %lld is unknown", (long long) r->id);
		err->detail = psprintf("Server \"%s\" handled it without a reply, and did not reply before its reply_ttl.",
							   r->server);
		err->hint = pstrdup("Look at the server's state.");
	}
	else
	{
		err->sqlerrcode = ERRCODE_DGEN_TIMEOUT;
		err->message = psprintf("request %lld did not happen", (long long) r->id);
		err->detail = pstrdup("It was cancelled, or has expired, before it was handled.");
	}
	return err;
}

/* The reply of a request that has ended; raises its error. */
static Datum
request_result(const Request *r)
{
	if (r->reply == NULL)
		dgen_error_throw(request_error(r));
	return JsonbPGetDatum(r->reply);
}

/* ---------------------------------------------------------------- one request */

PG_FUNCTION_INFO_V1(dgen_wait_response);

/* wait_response(request_id bigint, timeout interval) -> reply */
Datum
dgen_wait_response(PG_FUNCTION_ARGS)
{
	int64		id = take_id(fcinfo, 0);
	Wait		w;
	Request    *r;

	begin_wait(&w, 1);
	take_timeout(fcinfo, 1, &w);
	r = &w.requests[0];
	r->id = id;
	await(&w, true);
	if (!has_ended(r))
		ereport(ERROR,
				(errcode(ERRCODE_DGEN_TIMEOUT),
				 errmsg("no response to request %lld within %lld ms",
						(long long) id, (long long) (w.timeout / 1000)),
				 r->place == PLACE_PENDING ?
				 errdetail("Server \"%s\" has handled it, and will reply later. The request remains.",
						   r->server) :
				 errdetail("It has not been handled by server \"%s\" yet. The request remains.",
						   r->server),
				 errhint("Wait again by dgen.wait_response(%lld), or withdraw it by dgen.cancel(%lld).",
						 (long long) id, (long long) id)));
	PG_RETURN_DATUM(request_result(r));
}

PG_FUNCTION_INFO_V1(dgen_check_response);

/* check_response(request_id bigint) -> reply, or null where there is none yet */
Datum
dgen_check_response(PG_FUNCTION_ARGS)
{
	Wait		w;

	begin_wait(&w, 1);
	w.requests[0].id = take_id(fcinfo, 0);
	await(&w, true);
	if (!has_ended(&w.requests[0]))
		PG_RETURN_NULL();
	PG_RETURN_DATUM(request_result(&w.requests[0]));
}

/* Forget the failures of a message that is taken back. */
static void
delete_attempt(int64 id)
{
	DgenTable  *table = dgen_table_open(DGEN_T_ATTEMPT, RowExclusiveLock);
	Request		attempt = {.id = id};

	if (find_in(DGEN_T_ATTEMPT, &attempt))
		(void) dgen_table_delete(table, &attempt.tid);
	dgen_table_close(table);
}

/*
 * Take back a request that was postponed, unless somebody is changing its
 * server at this moment.
 */
static bool
abandon_postponed(Request *r)
{
	DgenModule *module = dgen_module_of(r->server);

	if (!dgen_lease_take(r->hash, false))
		return false;
	if (module != NULL)
		dgen_ring_at_end(module, r->hash);
	if (!dgen_postponed_delete(r->id))
		return false;
	dgen_notify_at_commit(DGEN_WAIT_REPLY, r->id);
	return true;
}

/*
 * Take back a request that waits in its mailbox.  False if it is not there any
 * more, or a worker has it in hand: then that worker decides.
 */
static bool
abandon(Request *r)
{
	DgenTable  *table;
	DgenModule *module;
	bool		done;
	bool		known;

	if (r->place == PLACE_POSTPONED)
		return abandon_postponed(r);
	if (r->place != PLACE_MAILBOX && r->place != PLACE_DELAYED)
		return false;
	if (dgen_lock_is_for(r->server, r->id))
		return false;
	table = dgen_table_open(r->place == PLACE_MAILBOX ? DGEN_T_MESSAGE : DGEN_T_DELAYED,
							RowExclusiveLock);
	done = dgen_table_delete(table, &r->tid) == TM_Ok;
	dgen_table_close(table);
	if (!done)
		return false;

	if (r->place == PLACE_MAILBOX)
	{
		delete_attempt(r->id);
		dgen_length_add(r->hash, -1, &known);
		/* what stood behind it may go on */
		module = dgen_module_of(r->server);
		if (module != NULL)
			dgen_ring_at_end(module, r->hash);
	}
	dgen_notify_at_commit(DGEN_WAIT_REPLY, r->id);
	CommandCounterIncrement();
	return true;
}

PG_FUNCTION_INFO_V1(dgen_receive_response);

/*
 * receive_response(request_id bigint, timeout interval) -> reply
 *
 * At the timeout the request is taken back, in this transaction, and the
 * result is null: an error would undo that.
 */
Datum
dgen_receive_response(PG_FUNCTION_ARGS)
{
	int64		id = take_id(fcinfo, 0);
	Wait		w;
	Request    *r;

	dgen_check_writable();
	begin_wait(&w, 1);
	take_timeout(fcinfo, 1, &w);
	w.to_receive = true;
	r = &w.requests[0];
	r->id = id;
	await(&w, true);
	if (!has_ended(r))
	{
		if (abandon(r))
			PG_RETURN_NULL();
		/* it may have been handled just now */
		look_for(&w, r);
	}
	if (!has_ended(r))
		ereport(ERROR,
				(errcode(ERRCODE_DGEN_UNKNOWN_OUTCOME),
				 errmsg("outcome of request %lld is unknown", (long long) id),
				 r->place == PLACE_PENDING ?
				 errdetail("Server \"%s\" has handled it, and will reply later.", r->server) :
				 errdetail("Server \"%s\" is handling it, so it was not taken back.", r->server),
				 errhint("Wait for its response by dgen.wait_response(%lld).", (long long) id)));
	PG_RETURN_DATUM(request_result(r));
}

/* ---------------------------------------------------------------- several */

static void
take_ids(FunctionCallInfo fcinfo, int argno, Wait *w)
{
	Datum	   *ids;
	bool	   *nulls;
	int			n;

	if (PG_ARGISNULL(argno))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("list of requests must not be null")));
	deconstruct_array(PG_GETARG_ARRAYTYPE_P(argno), INT8OID, sizeof(int64), FLOAT8PASSBYVAL,
					  TYPALIGN_DOUBLE, &ids, &nulls, &n);
	begin_wait(w, n);
	for (int i = 0; i < n; i++)
	{
		if (nulls[i])
			ereport(ERROR,
					(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
					 errmsg("id of a request must not be null")));
		w->requests[i].id = DatumGetInt64(ids[i]);
	}
}

PG_FUNCTION_INFO_V1(dgen_wait_any);

/*
 * wait_any(request_ids bigint[], timeout interval) -> id of the first that has
 * ended, or null
 */
Datum
dgen_wait_any(PG_FUNCTION_ARGS)
{
	Wait		w;

	take_ids(fcinfo, 0, &w);
	take_timeout(fcinfo, 1, &w);
	await(&w, false);
	for (int i = 0; i < w.nrequests; i++)
	{
		if (has_ended(&w.requests[i]))
			PG_RETURN_INT64(w.requests[i].id);
	}
	PG_RETURN_NULL();
}

PG_FUNCTION_INFO_V1(dgen_wait_all);

/*
 * wait_all(request_ids bigint[], timeout interval)
 * -> setof (request_id bigint, reply jsonb, error jsonb), in the order given
 */
Datum
dgen_wait_all(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	Wait		w;

	InitMaterializedSRF(fcinfo, 0);
	take_ids(fcinfo, 0, &w);
	take_timeout(fcinfo, 1, &w);
	await(&w, true);
	for (int i = 0; i < w.nrequests; i++)
	{
		Request    *r = &w.requests[i];
		Datum		row[3] = {Int64GetDatum(r->id), (Datum) 0, (Datum) 0};
		bool		nulls[3] = {false, true, true};

		if (has_ended(r) && r->reply != NULL)
		{
			row[1] = JsonbPGetDatum(r->reply);
			nulls[1] = false;
		}
		else if (has_ended(r))
		{
			row[2] = JsonbPGetDatum(r->error ? r->error :
									dgen_error_to_jsonb(request_error(r)));
			nulls[2] = false;
		}
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, row, nulls);
	}
	return (Datum) 0;
}

/* ---------------------------------------------------------------- by key */

PG_FUNCTION_INFO_V1(dgen_reply_of);

/*
 * reply_of(server text, request_key text) -> the reply that is kept under the
 * key; null where there is none, or none that the current user may see
 */
Datum
dgen_reply_of(PG_FUNCTION_ARGS)
{
	DgenAddress server;
	Request		r = {0};
	DgenTable  *table;
	ScanKeyData keys[2];
	DgenScan   *scan;
	HeapTuple	tuple;

	dgen_address_arg(fcinfo, 0, &server);
	if (PG_ARGISNULL(1))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("request_key must not be null")));

	table = dgen_table_open(DGEN_T_REPLY, AccessShareLock);
	dgen_key_text(&keys[0], 1, server.text);
	dgen_key_text(&keys[1], 2, dgen_arg_text(fcinfo, 1));
	scan = dgen_scan_begin(table, DGEN_I_REPLY_KEY, NULL, 2, keys);
	while (r.place != PLACE_REPLIED && (tuple = dgen_scan_next(scan)) != NULL)
	{
		TupleDesc	desc = RelationGetDescr(table->rel);

		if (DatumGetTimestampTz(column(tuple, desc, REPLY_EXPIRES_AT)) > GetCurrentTimestamp())
			take_reply(tuple, desc, &r);
	}
	dgen_scan_end(scan);
	dgen_table_close(table);
	if (r.place != PLACE_REPLIED || !may_see(r.server, r.sender_role))
		PG_RETURN_NULL();
	PG_RETURN_DATUM(request_result(&r));
}

/* ---------------------------------------------------------------- status */

/*
 * Has the id been drawn?  On a standby nobody knows, and in a read-only
 * transaction no block of ids can be reserved.
 */
static bool
was_drawn(int64 id)
{
	DgenDatabase *db;
	int64		next = 0;

	if (id <= 0 || dgen_shared == NULL || RecoveryInProgress())
		return false;
	db = dgen_database(MyDatabaseId, false);
	if (db != NULL)
	{
		SpinLockAcquire(&db->id_lock);
		next = db->next_id;
		SpinLockRelease(&db->id_lock);
	}
	if (next == 0 && !XactReadOnly)
		next = dgen_last_message_id() + 1;
	return id < next;
}

static const char *
status_name(Request *r)
{
	Request		other = {.id = r->id};

	switch (r->place)
	{
		case PLACE_DELAYED:
			return "delayed";
		case PLACE_MAILBOX:
			return find_in(DGEN_T_ATTEMPT, &other) ? "retrying" : "ready";
		case PLACE_POSTPONED:
			return "postponed";
		case PLACE_PENDING:
			return "pending";
		case PLACE_REPLIED:
			if (r->error == NULL)
				return "replied";
			return find_in(DGEN_T_LETTER, &other) ? "dead" : "failed";
		default:
			return "dead";
	}
}

PG_FUNCTION_INFO_V1(dgen_message_status);

/* message_status(id bigint) -> text */
Datum
dgen_message_status(PG_FUNCTION_ARGS)
{
	Request		r = {0};

	if (PG_ARGISNULL(0))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("id of a message must not be null")));
	r.id = PG_GETARG_INT64(0);
	if (is_uncommitted(r.id))
		PG_RETURN_TEXT_P(cstring_to_text("sending"));
	locate(&r);
	if (r.place == PLACE_NOWHERE)
	{
		/* a timer whose message is in the mailbox, under an id of its own */
		if (dgen_timer_of(r.id, &r.server, &r.sender_role))
			r.place = PLACE_MAILBOX;
		else if (!was_drawn(r.id))
			PG_RETURN_NULL();
		else
			PG_RETURN_TEXT_P(cstring_to_text("ended"));
	}
	if (!may_see(r.server, r.sender_role))
		PG_RETURN_NULL();
	PG_RETURN_TEXT_P(cstring_to_text(status_name(&r)));
}

/* ---------------------------------------------------------------- states */

/*
 * The server's version and state as they are now, if the version is above one
 * that is known; or, with changed, another one.  A server without a row has
 * version 0.
 */
bool
dgen_state_read(const char *address, int64 known, bool changed, int64 *version, Jsonb **state)
{
	DgenTable  *table = dgen_table_open(DGEN_T_SERVER, AccessShareLock);
	TupleDesc	desc = RelationGetDescr(table->rel);
	bool		found = false;
	ScanKeyData key;
	DgenScan   *scan;
	HeapTuple	tuple;
	Snapshot	snapshot = RegisterSnapshot(GetLatestSnapshot());

	*version = 0;
	*state = NULL;
	/* row and patches in one snapshot, the newest there is */
	dgen_key_text(&key, 1, address);
	scan = dgen_scan_begin(table, DGEN_I_PKEY, snapshot, 1, &key);
	tuple = dgen_scan_next(scan);
	if (tuple != NULL)
		*version = DatumGetInt64(column(tuple, desc, SERVER_VERSION));
	found = changed ? *version != known : tuple != NULL && *version > known;
	if (tuple != NULL && found)
	{
		*state = jsonb_column(tuple, desc, SERVER_STATE);
		if (*state != NULL)
			*state = dgen_state_merge(address, *state,
									  DatumGetInt64(column(tuple, desc, SERVER_BASE_VERSION)),
									  *version, snapshot);
	}
	dgen_scan_end(scan);
	dgen_table_close(table);
	UnregisterSnapshot(snapshot);
	return found;
}

PG_FUNCTION_INFO_V1(dgen_wait_state);

/*
 * wait_state(server text, after_version bigint, timeout interval)
 * -> setof (version bigint, state jsonb): one row, or none at the timeout.
 * Versions count from 1, so without after_version any state will do.
 */
Datum
dgen_wait_state(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	int64		after = PG_ARGISNULL(1) ? 0 : PG_GETARG_INT64(1);
	DgenAddress server;
	int64		version = 0;
	Jsonb	   *state = NULL;
	bool		found;
	Wait		w;

	InitMaterializedSRF(fcinfo, 0);
	dgen_address_arg(fcinfo, 0, &server);
	begin_wait(&w, 0);
	take_timeout(fcinfo, 2, &w);
	w.kind = DGEN_WAIT_STATE;
	w.hash = server.hash;
	dgen_module_check_read(dgen_module_get(server.module, false));
	/* what this batch has made of it, if it is a handler who asks */
	dgen_batch_flush();
	for (;;)
	{
		ready_to_look();
		found = dgen_state_read(server.text, after, false, &version, &state);
		if (found)
			break;
		/* in company the lease may be another activation's: that ends by its time limit */
		if (dgen_lease_held(server.hash) && !dgen_batch_in_company())
			ereport(ERROR,
					(errcode(ERRCODE_DGEN_WOULD_OVERTAKE),
					 errmsg("cannot wait for server \"%s\", which this transaction holds",
							server.text),
					 errdetail("No other transaction can change it before this one ends."),
					 errhint("COMMIT first.")));
		if (!nap(&w))
			break;
	}
	dgen_waiter_remove();
	if (found)
	{
		Datum		row[2] = {Int64GetDatum(version), PointerGetDatum(state)};
		bool		nulls[2] = {false, state == NULL};

		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, row, nulls);
	}
	return (Datum) 0;
}
