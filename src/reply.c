/*-------------------------------------------------------------------------
 *
 * reply.c
 *	  Replies that outlive their activation: to requests, and to calls with a
 *	  request_key.
 *
 * Written in the activation's own transaction.  A request that a server sent
 * is answered by an info to that server, any other by a row of dgen.reply,
 * announced by NOTIFY dgen_reply with the request's id and nothing else, since
 * every role may listen on every channel.
 *
 *-------------------------------------------------------------------------
 */
#include "batch.h"

#include "access/htup_details.h"
#include "access/skey.h"
#include "commands/async.h"
#include "common/hashfn.h"
#include "utils/acl.h"
#include "utils/fmgrprotos.h"
#include "utils/rel.h"

#define REPLY_CHANNEL "dgen_reply"

/* columns of dgen.reply, from 0 */
enum
{
	COL_ID, COL_SERVER, COL_REPLIED_AT, COL_EXPIRES_AT, COL_HASH, COL_KEY,
	COL_ROLE, COL_REPLY, COL_ERROR, NCOLS
};

/*
 * Keep a reply (or an error; or neither, for one that is still to come) for
 * the module's reply_ttl.
 */
void
dgen_reply_store(DgenModule *module, int64 id, const char *server, const char *request_key,
				 int64 request_hash, const char *sender_role, Jsonb *reply, Jsonb *error)
{
	DgenTable  *table = dgen_table_open(DGEN_T_REPLY, RowExclusiveLock);
	TimestampTz now = GetCurrentTimestamp();
	Datum		values[NCOLS];
	bool		nulls[NCOLS] = {false};

	values[COL_ID] = Int64GetDatum(id);
	values[COL_SERVER] = CStringGetTextDatum(server);
	values[COL_REPLIED_AT] = TimestampTzGetDatum(now);
	values[COL_EXPIRES_AT] = TimestampTzGetDatum(now + module->reply_ttl);
	values[COL_HASH] = Int64GetDatum(request_hash);
	nulls[COL_HASH] = request_hash == 0;
	values[COL_KEY] = request_key ? CStringGetTextDatum(request_key) : (Datum) 0;
	nulls[COL_KEY] = request_key == NULL;
	values[COL_ROLE] = CStringGetTextDatum(sender_role);
	values[COL_REPLY] = PointerGetDatum(reply);
	nulls[COL_REPLY] = reply == NULL;
	values[COL_ERROR] = PointerGetDatum(error);
	nulls[COL_ERROR] = error == NULL;
	dgen_table_insert(table, values, nulls, NULL);
	dgen_table_close(table);
	dgen_due_at_commit(now + module->reply_ttl);
}

/* May a role have the reply that was kept for another? */
static bool
may_have(const char *role, const char *requester)
{
	Oid			user = get_role_oid(role, true);
	Oid			owner = get_role_oid(requester, true);

	return strcmp(role, requester) == 0 ||
		(OidIsValid(user) && OidIsValid(owner) && has_privs_of_role(user, owner));
}

/*
 * The kept reply of a call with this request_key, or NULL.  same: it is to this
 * request, of a role whose business it is.  The server's lease is held, so
 * there is nobody else who might be writing one.
 */
Jsonb *
dgen_reply_by_key(const char *server, const char *key, const char *role, Jsonb *request,
				  bool *same)
{
	DgenTable  *table = dgen_table_open(DGEN_T_REPLY, RowExclusiveLock);
	ScanKeyData keys[2];
	DgenScan   *scan;
	HeapTuple	tuple;
	Jsonb	   *reply = NULL;

	dgen_key_text(&keys[0], 1, server);
	dgen_key_text(&keys[1], 2, key);
	scan = dgen_scan_begin(table, DGEN_I_REPLY_KEY, NULL, 2, keys);
	while (reply == NULL && (tuple = dgen_scan_next(scan)) != NULL)
	{
		Datum		values[DGEN_MAX_COLUMNS];
		bool		nulls[DGEN_MAX_COLUMNS];

		heap_deform_tuple(tuple, RelationGetDescr(table->rel), values, nulls);
		if (nulls[COL_REPLY] ||
			DatumGetTimestampTz(values[COL_EXPIRES_AT]) <= GetCurrentTimestamp())
			continue;
		reply = (Jsonb *) PG_DETOAST_DATUM_COPY(values[COL_REPLY]);
		*same = !nulls[COL_HASH] && DatumGetInt64(values[COL_HASH]) == dgen_request_hash(request) &&
			may_have(role, TextDatumGetCString(values[COL_ROLE]));
	}
	dgen_scan_end(scan);
	dgen_table_close(table);
	return reply;
}

static void
push_key(JsonbParseState **state, const char *key)
{
	JsonbValue	v;

	v.type = jbvString;
	v.val.string.val = unconstify(char *, key);
	v.val.string.len = strlen(key);
	pushJsonbValue(state, WJB_KEY, &v);
}

/* Push a whole document as a value. */
static void
push_jsonb(JsonbParseState **state, Jsonb *jb)
{
	JsonbIterator *it = JsonbIteratorInit(&jb->root);
	JsonbValue	v;
	JsonbIteratorToken token;

	if (JB_ROOT_IS_SCALAR(jb))
	{
		JsonbExtractScalar(&jb->root, &v);
		pushJsonbValue(state, WJB_VALUE, &v);
		return;
	}
	while ((token = JsonbIteratorNext(&it, &v, false)) != WJB_DONE)
		pushJsonbValue(state, token, token < WJB_BEGIN_ARRAY ||
					   (token == WJB_BEGIN_ARRAY && v.val.array.rawScalar) ? &v : NULL);
}

/* {"info": "reply", "request_id": ..., "reply" or "error": ...} to the server that asked */
static void
reply_by_info(DgenMessage *msg, Jsonb *reply, Jsonb *error)
{
	JsonbParseState *state = NULL;
	JsonbValue	v;
	DgenAddress to;
	DgenModule *module;
	DgenMessage info;

	dgen_address_parse(msg->sender, strlen(msg->sender), &to);
	module = dgen_module_get(to.module, true);
	if (module == NULL)
		return;					/* it was dropped since it asked */
	pushJsonbValue(&state, WJB_BEGIN_OBJECT, NULL);
	push_key(&state, "info");
	v.type = jbvString;
	v.val.string.val = "reply";
	v.val.string.len = 5;
	pushJsonbValue(&state, WJB_VALUE, &v);
	push_key(&state, "request_id");
	v.type = jbvNumeric;
	v.val.numeric = DatumGetNumeric(DirectFunctionCall1(int8_numeric, Int64GetDatum(msg->id)));
	pushJsonbValue(&state, WJB_VALUE, &v);
	push_key(&state, error ? "error" : "reply");
	push_jsonb(&state, error ? error : reply);
	dgen_message_init(&info, &to, 'p',
					  JsonbValueToJsonb(pushJsonbValue(&state, WJB_END_OBJECT, NULL)));
	info.sender = msg->server;
	info.context = msg->context;
	dgen_mailbox_send_reply(module, &info);
}

static bool
queue_is_filling(void)
{
	return DatumGetFloat8(DirectFunctionCall1(pg_notification_queue_usage, (Datum) 0)) > 0.5;
}

static void
notify_reply(int64 id)
{
	char		payload[32];

	snprintf(payload, sizeof(payload), INT64_FORMAT, id);
	Async_Notify(REPLY_CHANNEL, payload);
}

/*
 * Announce a reply.  While a listener that does not read lets the queue fill
 * up, that is left to the keeper: a full queue fails every commit that
 * notifies.
 */
static void
announce(int64 id)
{
	DgenDatabase *db = dgen_database(MyDatabaseId, false);
	uint64		lowest;

	if (!queue_is_filling() || db == NULL)
	{
		notify_reply(id);
		return;
	}
	lowest = pg_atomic_read_u64(&db->unannounced);
	while ((lowest == 0 || lowest > (uint64) id) &&
		   !pg_atomic_compare_exchange_u64(&db->unannounced, &lowest, (uint64) id))
		;
}

/*
 * The keeper announces what was left to it, once the queue has room.  Some
 * may be announced twice, which listeners must stand anyway.
 */
void
dgen_reply_announce_rest(void)
{
	DgenDatabase *db = dgen_database(MyDatabaseId, false);
	uint64		lowest = db ? pg_atomic_read_u64(&db->unannounced) : 0;
	DgenTable  *table;
	ScanKeyData key;
	DgenScan   *scan;
	HeapTuple	tuple;
	bool		isnull;

	if (lowest == 0 || queue_is_filling())
		return;
	pg_atomic_compare_exchange_u64(&db->unannounced, &lowest, 0);
	table = dgen_table_open(DGEN_T_REPLY, AccessShareLock);
	dgen_key_int8(&key, 1, (int64) lowest, BTGreaterEqualStrategyNumber);
	scan = dgen_scan_begin(table, DGEN_I_PKEY, NULL, 1, &key);
	while ((tuple = dgen_scan_next(scan)) != NULL)
	{
		int64		id = DatumGetInt64(heap_getattr(tuple, COL_ID + 1,
													RelationGetDescr(table->rel), &isnull));

		if (queue_is_filling())
		{
			announce(id);		/* goes on from here later */
			break;
		}
		/* not the kept replies of calls */
		if (heap_attisnull(tuple, COL_KEY + 1, RelationGetDescr(table->rel)))
			notify_reply(id);
		CHECK_FOR_INTERRUPTS();
	}
	dgen_scan_end(scan);
	dgen_table_close(table);
}

/* Exactly one of reply and error answers a request, whoever sent it. */
void
dgen_request_reply(DgenModule *module, DgenMessage *msg, Jsonb *reply, Jsonb *error)
{
	if (strchr(msg->sender, '/') != NULL)
	{
		reply_by_info(msg, reply, error);
		return;
	}
	dgen_reply_store(module, msg->id, msg->server, NULL, 0, msg->sender_role, reply, error);
	dgen_notify_at_commit(DGEN_WAIT_REPLY, msg->id);
	if (msg->notify)
		announce(msg->id);
}

/* Has a message that was taken out expired?  Whoever has asked is told so. */
bool
dgen_message_expired(DgenModule *module, DgenMessage *msg)
{
	DgenError	err = {ERRCODE_DGEN_TIMEOUT, "request expired before it was handled",
		"It did not happen.", "Send it again, with a longer expires."};

	if (msg->expires_at == DT_NOEND || msg->expires_at > GetCurrentTimestamp())
		return false;
	if (msg->kind == DGEN_KIND_REQUEST)
		dgen_request_reply(module, msg, NULL, dgen_error_to_jsonb(&err));
	return true;
}

/* A request as its request_key knows it. */
int64
dgen_request_hash(Jsonb *request)
{
	return (int64) hash_bytes_extended((const unsigned char *) request, VARSIZE(request), 0);
}

/*
 * Answer a message that was handled outside of its activation: a request, or a
 * call, whose reply may have to be kept under its key.
 */
void
dgen_reply_to(DgenModule *module, DgenMessage *msg, Jsonb *reply)
{
	if (msg->kind == DGEN_KIND_REQUEST)
		dgen_request_reply(module, msg, reply, NULL);
	if (msg->kind != DGEN_KIND_CALL)
		return;
	if (msg->dedup_key != NULL)
		dgen_reply_store(module, dgen_draw_id(), msg->server, msg->dedup_key,
						 dgen_request_hash(msg->message), msg->sender_role, reply, NULL);
	dgen_deferred_answer(msg->token, reply, NULL);
}
