/*
 * What a callback in C may do to its process, for tests: functions (jsonb) that
 * end it, in a signal or an error of any level.
 */
#include "postgres.h"

#include "fmgr.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

PG_MODULE_MAGIC;

PG_FUNCTION_INFO_V1(citizen_crash);
PG_FUNCTION_INFO_V1(citizen_raise);
PG_FUNCTION_INFO_V1(citizen_eat);
PG_FUNCTION_INFO_V1(citizen_stack);
PG_FUNCTION_INFO_V1(citizen_deaf);

Datum
citizen_crash(PG_FUNCTION_ARGS)
{
	static int *volatile nowhere = NULL;

	*nowhere = 1;
	PG_RETURN_VOID();
}

/* raise(level integer, sqlstate text) */
Datum
citizen_raise(PG_FUNCTION_ARGS)
{
	char	   *state = text_to_cstring(PG_GETARG_TEXT_PP(1));

	ereport(PG_GETARG_INT32(0) == 0 ? ERROR : FATAL,
			(errcode(MAKE_SQLSTATE(state[0], state[1], state[2], state[3], state[4])),
			 errmsg("raised in C")));
	PG_RETURN_VOID();
}

/* eat(megabytes integer): to the end of the transaction */
Datum
citizen_eat(PG_FUNCTION_ARGS)
{
	for (int i = 0; i < PG_GETARG_INT32(0); i++)
		memset(MemoryContextAlloc(CurTransactionContext, 1024 * 1024), 1, 1024 * 1024);
	PG_RETURN_VOID();
}

Datum
citizen_stack(PG_FUNCTION_ARGS)
{
	check_stack_depth();
	return DirectFunctionCall1(citizen_stack, PG_GETARG_DATUM(0));
}

/* deaf(ms integer): busy, without a look at interrupts */
Datum
citizen_deaf(PG_FUNCTION_ARGS)
{
	int			until = PG_GETARG_INT32(0);
	TimestampTz begin = GetCurrentTimestamp();

	while (GetCurrentTimestamp() - begin < until * INT64CONST(1000))
		pg_usleep(1000);
	PG_RETURN_VOID();
}
