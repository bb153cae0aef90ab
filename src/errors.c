/*-------------------------------------------------------------------------
 *
 * errors.c
 *	  Errors as values: what a worker sends to a caller, what an attempt or a
 *	  dead letter keeps; and what an error means for its message.
 *
 * A packed error is the SQLSTATE followed by five zero-terminated strings,
 * in which a leading '\001' tells a present string from an absent one.
 *
 *-------------------------------------------------------------------------
 */
#include "dgen.h"

#include "catalog/pg_type.h"
#include "utils/fmgrprotos.h"
#include "utils/resowner.h"

#define NFIELDS 4

static char **
error_field(const DgenError *err, int i)
{
	DgenError  *e = unconstify(DgenError *, err);

	switch (i)
	{
		case 0:
			return &e->message;
		case 1:
			return &e->detail;
		case 2:
			return &e->hint;
		default:
			return &e->context;
	}
}

static const char *const field_names[NFIELDS] = {"message", "detail", "hint", "context"};

/* Copy what matters of an ErrorData into the current memory context. */
DgenError *
dgen_error_copy(ErrorData *edata)
{
	DgenError  *err = palloc0(sizeof(DgenError));

	err->sqlerrcode = edata->sqlerrcode;
	err->message = pstrdup(edata->message ? edata->message : "missing error text");
	err->detail = edata->detail ? pstrdup(edata->detail) : NULL;
	err->hint = edata->hint ? pstrdup(edata->hint) : NULL;
	err->context = edata->context ? pstrdup(edata->context) : NULL;
	return err;
}

Size
dgen_error_size(const DgenError *err)
{
	Size		size = sizeof(int);

	for (int i = 0; i < NFIELDS; i++)
	{
		const char *s = *error_field(err, i);

		size += 1 + (s ? strlen(s) + 1 : 0);
	}
	return size;
}

/* Write dgen_error_size() bytes; dgen_error_unpack() reads them back. */
void
dgen_error_pack(const DgenError *err, char *to)
{
	memcpy(to, &err->sqlerrcode, sizeof(int));
	to += sizeof(int);
	for (int i = 0; i < NFIELDS; i++)
	{
		const char *s = *error_field(err, i);

		*to++ = (s != NULL);
		if (s != NULL)
		{
			strcpy(to, s);
			to += strlen(s) + 1;
		}
	}
}

DgenError *
dgen_error_unpack(const char *from)
{
	DgenError  *err = palloc0(sizeof(DgenError));

	memcpy(&err->sqlerrcode, from, sizeof(int));
	from += sizeof(int);
	for (int i = 0; i < NFIELDS; i++)
	{
		if (*from++)
		{
			*error_field(err, i) = pstrdup(from);
			from += strlen(from) + 1;
		}
	}
	return err;
}

const char *
dgen_error_sqlstate(const DgenError *err)
{
	return pstrdup(unpack_sql_state(err->sqlerrcode));
}

static void
push_pair(JsonbParseState **state, const char *key, const char *value)
{
	JsonbValue	v;

	v.type = jbvString;
	v.val.string.val = unconstify(char *, key);
	v.val.string.len = strlen(key);
	pushJsonbValue(state, WJB_KEY, &v);
	v.val.string.val = unconstify(char *, value);
	v.val.string.len = strlen(value);
	pushJsonbValue(state, WJB_VALUE, &v);
}

/* {"sqlstate": ..., "message": ..., "detail": ...}: absent fields are left out */
Jsonb *
dgen_error_to_jsonb(const DgenError *err)
{
	JsonbParseState *state = NULL;

	pushJsonbValue(&state, WJB_BEGIN_OBJECT, NULL);
	push_pair(&state, "sqlstate", dgen_error_sqlstate(err));
	for (int i = 0; i < NFIELDS; i++)
	{
		const char *s = *error_field(err, i);

		if (s != NULL)
			push_pair(&state, field_names[i], s);
	}
	return JsonbValueToJsonb(pushJsonbValue(&state, WJB_END_OBJECT, NULL));
}

static char *
json_field(Jsonb *jb, const char *name)
{
	JsonbValue	v;

	if (!JB_ROOT_IS_OBJECT(jb) ||
		getKeyJsonValueFromContainer(&jb->root, name, strlen(name), &v) == NULL ||
		v.type != jbvString)
		return NULL;
	return pnstrdup(v.val.string.val, v.val.string.len);
}

DgenError *
dgen_error_from_jsonb(Jsonb *jb)
{
	DgenError  *err = palloc0(sizeof(DgenError));
	char	   *sqlstate = json_field(jb, "sqlstate");

	err->sqlerrcode = ERRCODE_INTERNAL_ERROR;
	if (sqlstate != NULL && strlen(sqlstate) == 5)
		err->sqlerrcode = MAKE_SQLSTATE(sqlstate[0], sqlstate[1], sqlstate[2],
										sqlstate[3], sqlstate[4]);
	for (int i = 0; i < NFIELDS; i++)
		*error_field(err, i) = json_field(jb, field_names[i]);
	if (err->message == NULL)
		err->message = pstrdup("missing error text");
	return err;
}

/*
 * Raise an error that came from another process, as if the handler had run
 * here: with its own SQLSTATE and texts.  A connection that sees 57P01 or a
 * class 08 error is dropped by every pool, so these arrive as dgen's own.  Some
 * drivers go by the first line of the text (SQLAlchemy by "terminating
 * connection"), so what the handler said is in the detail.
 */
void
dgen_error_throw(const DgenError *err)
{
	int			sqlerrcode = err->sqlerrcode;
	int			category = ERRCODE_TO_CATEGORY(sqlerrcode);
	bool		foreign;

	foreign = category == ERRCODE_CONNECTION_EXCEPTION ||
		category == ERRCODE_OPERATOR_INTERVENTION ||
		category == ERRCODE_TRANSACTION_ROLLBACK;
	if (foreign)
		ereport(ERROR,
				(errcode(ERRCODE_DGEN_WORKER_LOST),
				 errmsg("handler was interrupted"),
				 errdetail("The handler failed with SQLSTATE %s: %s.%s%s",
						   dgen_error_sqlstate(err), err->message,
						   err->detail ? " " : "", err->detail ? err->detail : ""),
				 errhint("Its work was undone. Call again.")));

	ereport(ERROR,
			(errcode(sqlerrcode),
			 errmsg_internal("%s", err->message),
			 err->detail ? errdetail_internal("%s", err->detail) : 0,
			 err->hint ? errhint("%s", err->hint) : 0,
			 err->context ? errcontext("%s", err->context) : 0));
}

/*
 * What an error means for the message whose handler raised it.  Classes that
 * tell of the environment (a missing table, a full disk, a lost server) will
 * heal without the message being at fault.
 */
DgenFault
dgen_error_fault(int sqlerrcode)
{
	static const int environment[] = {
		MAKE_SQLSTATE('4', '2', '0', '0', '0'),
		MAKE_SQLSTATE('0', 'A', '0', '0', '0'),
		MAKE_SQLSTATE('5', '3', '0', '0', '0'),
		MAKE_SQLSTATE('5', '5', '0', '0', '0'),
		MAKE_SQLSTATE('5', '7', '0', '0', '0'),
		MAKE_SQLSTATE('5', '8', '0', '0', '0'),
		MAKE_SQLSTATE('X', 'X', '0', '0', '0')
	};
	int			category = ERRCODE_TO_CATEGORY(sqlerrcode);

	if (sqlerrcode == ERRCODE_T_R_SERIALIZATION_FAILURE ||
		sqlerrcode == ERRCODE_T_R_DEADLOCK_DETECTED)
		return DGEN_FAULT_CONFLICT;
	if (sqlerrcode == ERRCODE_READ_ONLY_SQL_TRANSACTION ||
		sqlerrcode == ERRCODE_DGEN_NO_CALLBACK ||
		sqlerrcode == ERRCODE_DGEN_NO_MODULE ||
		sqlerrcode == ERRCODE_DGEN_NOT_ENABLED)
		return DGEN_FAULT_ENVIRONMENT;
	for (int i = 0; i < lengthof(environment); i++)
	{
		if (category == ERRCODE_TO_CATEGORY(environment[i]))
			return DGEN_FAULT_ENVIRONMENT;
	}
	return DGEN_FAULT_OWN;
}

/*
 * In a PG_CATCH that ends an internal subtransaction: leave it, whatever the
 * error, and return the error.  To throw it on from inside would leave the
 * subtransaction open, and the caller's own handling would end the wrong one.
 */
ErrorData *
dgen_subxact_abort(MemoryContext mcxt, ResourceOwner owner)
{
	ErrorData  *edata;

	MemoryContextSwitchTo(mcxt);
	edata = CopyErrorData();
	FlushErrorState();
	RollbackAndReleaseCurrentSubTransaction();
	MemoryContextSwitchTo(mcxt);
	CurrentResourceOwner = owner;
	return edata;
}
