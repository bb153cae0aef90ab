/*-------------------------------------------------------------------------
 *
 * args.c
 *	  Arguments of SQL-callable functions, none of which is STRICT.
 *
 * SQL NULL as a message, request or reply means JSON null: drivers bind what
 * they have.  Runs in any process; takes no locks.
 *
 *-------------------------------------------------------------------------
 */
#include "dgen.h"

#include "common/int.h"
#include "utils/memutils.h"

/* The JSON value null, made once for the process: not to be changed or freed. */
Jsonb *
dgen_json_null(void)
{
	static Jsonb *null = NULL;

	if (null == NULL)
	{
		MemoryContext old = MemoryContextSwitchTo(TopMemoryContext);
		JsonbValue	v;

		v.type = jbvNull;
		null = JsonbValueToJsonb(&v);
		MemoryContextSwitchTo(old);
	}
	return null;
}

/* A jsonb argument, detoasted, in the current memory context. */
Jsonb *
dgen_arg_jsonb(FunctionCallInfo fcinfo, int argno)
{
	if (PG_ARGISNULL(argno))
		return dgen_json_null();
	return PG_GETARG_JSONB_P_COPY(argno);
}

/* A text argument as a C string, NULL where it is null. */
char *
dgen_arg_text(FunctionCallInfo fcinfo, int argno)
{
	if (PG_ARGISNULL(argno))
		return NULL;
	return text_to_cstring(PG_GETARG_TEXT_PP(argno));
}

/*
 * An interval in microseconds, a month as 30 days; false where it is infinite
 * or does not fit.
 */
bool
dgen_interval_usecs(const Interval *span, int64 *usecs)
{
	int64		days = (int64) span->month * DAYS_PER_MONTH + span->day;
	int64		day_usecs;

	if (INTERVAL_NOT_FINITE(span))
		return false;
	return !pg_mul_s64_overflow(days, USECS_PER_DAY, &day_usecs) &&
		!pg_add_s64_overflow(day_usecs, span->time, usecs);
}

/* So long after a time that is about now; 22008 */
TimestampTz
dgen_time_after(TimestampTz from, int64 usecs, const char *name)
{
	TimestampTz at;

	if (pg_add_s64_overflow(from, usecs, &at) || !IS_VALID_TIMESTAMP(at))
		ereport(ERROR,
				(errcode(ERRCODE_DATETIME_VALUE_OUT_OF_RANGE),
				 errmsg("interval %s is out of range", name),
				 errhint("Give a shorter one, for example '1 day'.")));
	return at;
}

/*
 * An interval argument in microseconds; false where it is null.  name is the
 * argument's, for the error that a negative one raises.
 */
bool
dgen_arg_interval(FunctionCallInfo fcinfo, int argno, const char *name, bool zero_ok, int64 *usecs)
{
	Interval   *span;

	if (PG_ARGISNULL(argno))
		return false;
	span = PG_GETARG_INTERVAL_P(argno);
	if (!dgen_interval_usecs(span, usecs))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("interval %s is out of range", name),
				 errdetail("Its value is %s.",
						   DatumGetCString(DirectFunctionCall1(interval_out, IntervalPGetDatum(span)))),
				 errhint("Give a finite interval, for example '5 s'.")));
	if (*usecs < 0 || (*usecs == 0 && !zero_ok))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 zero_ok ? errmsg("interval %s must not be negative", name) :
				 errmsg("interval %s must be positive", name),
				 errdetail("Its value is %s.",
						   DatumGetCString(DirectFunctionCall1(interval_out, IntervalPGetDatum(span)))),
				 zero_ok ? errhint("Give an interval of zero or more, for example '5 s'.") :
				 errhint("Give an interval of more than zero, for example '5 s'.")));
	return true;
}
