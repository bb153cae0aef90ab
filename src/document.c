/*-------------------------------------------------------------------------
 *
 * document.c
 *	  Building and reading the jsonb documents of operators' functions: what
 *	  dgen.export(), dgen.dry_run() and the audit hold.
 *
 * Pure functions, in any process; results are in the current memory context.
 * Times are written as ISO 8601, and intervals in PostgreSQL's style, whatever
 * the session's settings are, so that a document means the same everywhere.
 *
 *-------------------------------------------------------------------------
 */
#include "document.h"

#include "access/htup_details.h"
#include "catalog/pg_type.h"
#include "utils/datetime.h"
#include "utils/fmgrprotos.h"
#include "utils/json.h"
#include "utils/numeric.h"

/* ---------------------------------------------------------------- building */

static void
push_key(DgenDoc *doc, const char *key)
{
	JsonbValue	v = {.type = jbvString};

	if (key == NULL)
		return;
	v.val.string.val = unconstify(char *, key);
	v.val.string.len = strlen(key);
	pushJsonbValue(doc, WJB_KEY, &v);
}

static void
push_value(DgenDoc *doc, const char *key, JsonbValue *value)
{
	push_key(doc, key);
	pushJsonbValue(doc, key ? WJB_VALUE : WJB_ELEM, value);
}

void
dgen_doc_open(DgenDoc *doc, const char *key, JsonbIteratorToken token)
{
	if (token == WJB_BEGIN_ARRAY || token == WJB_BEGIN_OBJECT)
		push_key(doc, key);
	pushJsonbValue(doc, token, NULL);
}

Jsonb *
dgen_doc_finish(DgenDoc *doc)
{
	return JsonbValueToJsonb(pushJsonbValue(doc, WJB_END_OBJECT, NULL));
}

void
dgen_doc_text(DgenDoc *doc, const char *key, const char *value)
{
	JsonbValue	v = {.type = jbvString};

	if (value == NULL)
		return;
	/* it is looked at when the document is finished */
	v.val.string.val = pstrdup(value);
	v.val.string.len = strlen(value);
	push_value(doc, key, &v);
}

void
dgen_doc_time(DgenDoc *doc, const char *key, TimestampTz value)
{
	char		text[MAXDATELEN + 1];

	if (value == 0 || value == DT_NOEND)
		return;
	JsonEncodeDateTime(text, TimestampTzGetDatum(value), TIMESTAMPTZOID, NULL);
	dgen_doc_text(doc, key, text);
}

void
dgen_doc_interval(DgenDoc *doc, const char *key, const Interval *value)
{
	struct pg_itm itm;
	char		text[MAXDATELEN + 1];

	if (value == NULL)
		return;
	interval2itm(*value, &itm);
	EncodeInterval(&itm, INTSTYLE_POSTGRES, text);
	dgen_doc_text(doc, key, text);
}

void
dgen_doc_jsonb(DgenDoc *doc, const char *key, Jsonb *value)
{
	JsonbValue	v;

	if (value == NULL)
		return;
	if (JB_ROOT_IS_SCALAR(value))
		JsonbExtractScalar(&value->root, &v);
	else
	{
		v.type = jbvBinary;
		v.val.binary.data = &value->root;
		v.val.binary.len = VARSIZE(value) - VARHDRSZ;
	}
	push_value(doc, key, &v);
}

void
dgen_doc_int(DgenDoc *doc, const char *key, int64 value)
{
	JsonbValue	v = {.type = jbvNumeric};

	v.val.numeric = int64_to_numeric(value);
	push_value(doc, key, &v);
}

void
dgen_doc_true(DgenDoc *doc, const char *key, bool value)
{
	JsonbValue	v = {.type = jbvBool, .val.boolean = true};

	if (value)
		push_value(doc, key, &v);
}

/* ---------------------------------------------------------------- reading */

pg_noreturn static void
wrong_type(const char *key, const char *wanted)
{
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("invalid value of \"%s\" in a document", key),
			 errdetail("It must be %s.", wanted),
			 errhint("Documents are made by dgen.export().")));
}

/* False: there is none, or it is null. */
static bool
find(Jsonb *doc, const char *key, JsonbValue *v)
{
	return JB_ROOT_IS_OBJECT(doc) &&
		getKeyJsonValueFromContainer(&doc->root, key, strlen(key), v) != NULL &&
		v->type != jbvNull;
}

Jsonb *
dgen_doc_get(Jsonb *doc, const char *key)
{
	JsonbValue	v;

	if (!JB_ROOT_IS_OBJECT(doc) ||
		getKeyJsonValueFromContainer(&doc->root, key, strlen(key), &v) == NULL)
		return NULL;
	return JsonbValueToJsonb(&v);
}

char *
dgen_doc_get_text(Jsonb *doc, const char *key)
{
	JsonbValue	v;

	if (!find(doc, key, &v))
		return NULL;
	if (v.type != jbvString)
		wrong_type(key, "a string");
	return pnstrdup(v.val.string.val, v.val.string.len);
}

char *
dgen_doc_need_text(Jsonb *doc, const char *key)
{
	char	   *value = dgen_doc_get_text(doc, key);

	if (value == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("document has no \"%s\"", key),
				 errhint("Documents are made by dgen.export().")));
	return value;
}

TimestampTz
dgen_doc_get_time(Jsonb *doc, const char *key, TimestampTz otherwise)
{
	char	   *text = dgen_doc_get_text(doc, key);

	if (text == NULL)
		return otherwise;
	return DatumGetTimestampTz(DirectFunctionCall3(timestamptz_in, CStringGetDatum(text),
												   ObjectIdGetDatum(InvalidOid), Int32GetDatum(-1)));
}

Interval *
dgen_doc_get_interval(Jsonb *doc, const char *key)
{
	char	   *text = dgen_doc_get_text(doc, key);

	if (text == NULL)
		return NULL;
	return DatumGetIntervalP(DirectFunctionCall3(interval_in, CStringGetDatum(text),
												 ObjectIdGetDatum(InvalidOid), Int32GetDatum(-1)));
}

int64
dgen_doc_get_int(Jsonb *doc, const char *key, int64 otherwise)
{
	JsonbValue	v;

	if (!find(doc, key, &v))
		return otherwise;
	if (v.type != jbvNumeric)
		wrong_type(key, "a number");
	return DatumGetInt64(DirectFunctionCall1(numeric_int8, NumericGetDatum(v.val.numeric)));
}

bool
dgen_doc_get_bool(Jsonb *doc, const char *key)
{
	JsonbValue	v;

	if (!find(doc, key, &v))
		return false;
	if (v.type != jbvBool)
		wrong_type(key, "true or false");
	return v.val.boolean;
}

List *
dgen_doc_get_array(Jsonb *doc, const char *key)
{
	Jsonb	   *array = dgen_doc_get(doc, key);
	List	   *list = NIL;
	int			n;

	if (array == NULL)
		return NIL;
	if (!JB_ROOT_IS_ARRAY(array) || JB_ROOT_IS_SCALAR(array))
		wrong_type(key, "an array of objects");
	n = JB_ROOT_COUNT(array);
	for (int i = 0; i < n; i++)
	{
		JsonbValue *v = getIthJsonbValueFromContainer(&array->root, i);
		Jsonb	   *element = JsonbValueToJsonb(v);

		CHECK_FOR_INTERRUPTS();
		if (!JB_ROOT_IS_OBJECT(element))
			wrong_type(key, "an array of objects");
		list = lappend(list, element);
	}
	return list;
}

void
dgen_doc_check_keys(Jsonb *doc, const char *what, const char *const *keys)
{
	JsonbIterator *it;
	JsonbIteratorToken token;
	JsonbValue	v;

	if (!JB_ROOT_IS_OBJECT(doc))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s must be a JSON object", what),
				 errhint("Documents are made by dgen.export().")));
	it = JsonbIteratorInit(&doc->root);
	(void) JsonbIteratorNext(&it, &v, true);
	while ((token = JsonbIteratorNext(&it, &v, true)) != WJB_DONE)
	{
		int			i = 0;

		if (token != WJB_KEY)
			continue;
		while (keys[i] != NULL && (strlen(keys[i]) != v.val.string.len ||
								   memcmp(keys[i], v.val.string.val, v.val.string.len) != 0))
			i++;
		if (keys[i] == NULL)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("%s has an unknown key \"%s\"", what,
							pnstrdup(v.val.string.val, v.val.string.len)),
					 errhint("Documents are made by dgen.export().")));
	}
}

/* ---------------------------------------------------------------- messages */

static const struct
{
	char		kind;
	const char *name;
}			kinds[] = {
	{DGEN_KIND_CAST, "cast"},
	{DGEN_KIND_INFO, "info"},
	{DGEN_KIND_REQUEST, "request"},
	{DGEN_KIND_REPLY, "reply"},
	{DGEN_KIND_CONTINUE, "continue"},
	{DGEN_KIND_CALL, "call"},
	{DGEN_KIND_TIMER, "timer"},
	{DGEN_KIND_TIMEOUT, "timeout"},
	{DGEN_KIND_DOWN, "DOWN"},
	{DGEN_KIND_EFFECT, "effect"},
	{DGEN_KIND_EXIT, "exit"}
};

/* As view dgen.messages has it. */
static const char *
kind_name(char kind)
{
	for (int i = 0; i < lengthof(kinds); i++)
	{
		if (kinds[i].kind == kind)
			return kinds[i].name;
	}
	return NULL;
}

static char
kind_of(const char *name)
{
	for (int i = 0; i < lengthof(kinds); i++)
	{
		if (strcmp(kinds[i].name, name) == 0)
			return kinds[i].kind;
	}
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("there is no kind \"%s\" of message", name),
			 errhint("Kinds are those of view dgen.messages.")));
}

/*
 * A message, in an object that is left open; but not by whose token its caller
 * is answered, which is known here and now only.
 */
void
dgen_doc_message(DgenDoc *doc, const char *key, const DgenMessage *msg, const char *status)
{
	dgen_doc_open(doc, key, WJB_BEGIN_OBJECT);
	dgen_doc_int(doc, "id", msg->id);
	dgen_doc_text(doc, "status", status);
	dgen_doc_text(doc, "kind", kind_name(msg->kind));
	dgen_doc_int(doc, "priority", msg->priority);
	if (msg->max_attempts != 0)
		dgen_doc_int(doc, "max_attempts", msg->max_attempts);
	dgen_doc_true(doc, "notify", msg->notify);
	dgen_doc_time(doc, "sent_at", msg->sent_at);
	dgen_doc_time(doc, "due_at", msg->due_at);
	dgen_doc_time(doc, "expires_at", msg->expires_at);
	dgen_doc_text(doc, "sender", msg->sender);
	dgen_doc_text(doc, "sender_role", msg->sender_role);
	dgen_doc_text(doc, "dedup_key", msg->dedup_key);
	dgen_doc_text(doc, "vsn", msg->vsn);
	dgen_doc_true(doc, "incarnation", msg->incarnation != 0);
	dgen_doc_jsonb(doc, "context", msg->context);
	dgen_doc_jsonb(doc, "message", msg->message);
}

static const char *const message_keys[] = {
	"id", "status", "kind", "priority", "max_attempts", "notify", "sent_at", "due_at", "expires_at",
	"sender", "sender_role", "dedup_key", "vsn", "incarnation", "context", "message",
	"failed_at", "attempts", "sqlstate", "error", NULL
};

/*
 * The same read back; incarnation: 1 if it is for one alone.  Nobody waits for
 * its reply any more: that is kept for whoever asks by the message's id.
 */
void
dgen_doc_get_message(Jsonb *doc, const DgenAddress *to, DgenMessage *msg)
{
	int64		priority;

	dgen_doc_check_keys(doc, "message in a document", message_keys);
	dgen_message_init(msg, to, kind_of(dgen_doc_need_text(doc, "kind")), dgen_doc_get(doc, "message"));
	if (msg->message == NULL)
		msg->message = dgen_json_null();
	if (msg->kind == DGEN_KIND_CALL)
		msg->kind = DGEN_KIND_REQUEST;
	if (msg->kind == DGEN_KIND_EFFECT)
		msg->hash = dgen_effects_hash(to->text);
	priority = dgen_doc_get_int(doc, "priority", 0);
	if (priority < -1 || priority > 1)
		wrong_type("priority", "-1, 0 or 1");
	msg->id = dgen_doc_get_int(doc, "id", 0);
	msg->priority = (int16) priority;
	msg->max_attempts = (int16) Max(0, Min(dgen_doc_get_int(doc, "max_attempts", 0), PG_INT16_MAX));
	msg->sent_at = dgen_doc_get_time(doc, "sent_at", msg->sent_at);
	msg->due_at = dgen_doc_get_time(doc, "due_at", 0);
	msg->expires_at = dgen_doc_get_time(doc, "expires_at", DT_NOEND);
	msg->dedup_key = dgen_doc_get_text(doc, "dedup_key");
	msg->vsn = dgen_doc_get_text(doc, "vsn");
	msg->incarnation = dgen_doc_get_bool(doc, "incarnation") ? 1 : 0;
	msg->context = dgen_doc_get(doc, "context");
	if (dgen_doc_get_text(doc, "sender") != NULL)
		msg->sender = dgen_doc_get_text(doc, "sender");
	if (dgen_doc_get_text(doc, "sender_role") != NULL)
		msg->sender_role = dgen_doc_get_text(doc, "sender_role");
}

/* columns that only dgen.letter has, from 0 */
enum
{
	COL_FAILED_AT = DGEN_MESSAGE_NATTS, COL_ATTEMPTS, COL_SQLSTATE, COL_ERROR, LETTER_NCOLS
};

void
dgen_doc_letter(DgenDoc *doc, HeapTuple tuple, TupleDesc desc)
{
	Datum		values[DGEN_MAX_COLUMNS];
	bool		nulls[DGEN_MAX_COLUMNS];

	heap_deform_tuple(tuple, desc, values, nulls);
	dgen_doc_time(doc, "failed_at", DatumGetTimestampTz(values[COL_FAILED_AT]));
	dgen_doc_int(doc, "attempts", DatumGetInt32(values[COL_ATTEMPTS]));
	dgen_doc_text(doc, "sqlstate", TextDatumGetCString(values[COL_SQLSTATE]));
	dgen_doc_jsonb(doc, "error", (Jsonb *) PG_DETOAST_DATUM_COPY(values[COL_ERROR]));
}

void
dgen_doc_insert_letter(Jsonb *doc, DgenMessage *msg)
{
	DgenTable  *table = dgen_table_open(DGEN_T_LETTER, RowExclusiveLock);
	Jsonb	   *error = dgen_doc_get(doc, "error");
	Datum		values[LETTER_NCOLS];
	bool		nulls[LETTER_NCOLS] = {false};

	dgen_message_form(msg, values, nulls);
	values[COL_FAILED_AT] = TimestampTzGetDatum(dgen_doc_get_time(doc, "failed_at",
																  GetCurrentTimestamp()));
	values[COL_ATTEMPTS] = Int32GetDatum((int32) dgen_doc_get_int(doc, "attempts", 0));
	values[COL_SQLSTATE] = CStringGetTextDatum(dgen_doc_need_text(doc, "sqlstate"));
	values[COL_ERROR] = JsonbPGetDatum(error ? error : dgen_json_null());
	dgen_table_insert(table, values, nulls, NULL);
	dgen_table_close(table);
}

Jsonb *
dgen_doc_suspension(TimestampTz at, const char *by, const char *reason)
{
	DgenDoc		doc = NULL;

	if (at == 0)
		return NULL;
	dgen_doc_open(&doc, NULL, WJB_BEGIN_OBJECT);
	dgen_doc_time(&doc, "at", at);
	dgen_doc_text(&doc, "by", by);
	dgen_doc_text(&doc, "reason", reason);
	return dgen_doc_finish(&doc);
}
