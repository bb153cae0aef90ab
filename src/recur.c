/*-------------------------------------------------------------------------
 *
 * recur.c
 *	  When a timer that recurs is due: PostgreSQL's own arithmetic of dates.
 *
 * Occurrence n is start + n * every, in the timer's time zone, and so never
 * drifts: each is counted from the start and not from the one before.  Days
 * and months are the calendar's there: "1 day" keeps the time of the day over
 * a change to summer time, "1 month" from January 31 is the last day of
 * February and then March 31.  Hours and less are as long as they are.
 *
 * Occurrences grow with n, since no part of the interval is negative, so the
 * first one after a time is found by search: a timer that was forgotten for a
 * year costs no more than one that is a second late.
 *
 *-------------------------------------------------------------------------
 */
#include "dgen.h"

#include "common/int.h"
#include "pgtime.h"
#include "timer.h"
#include "utils/datetime.h"

/* beyond this no date of ours may come: an interval could take it out of range */
#define LAST_TIMESTAMP (END_TIMESTAMP - 1000 * INT64CONST(366) * USECS_PER_DAY)

/* n times the interval; false where that is too long to be an interval */
static bool
multiply(const Interval *every, int64 n, Interval *span)
{
	if (n > PG_INT32_MAX && (every->month > 0 || every->day > 0))
		return false;
	span->month = span->day = 0;
	if (every->month > 0 && pg_mul_s32_overflow(every->month, (int32) n, &span->month))
		return false;
	if (every->day > 0 && pg_mul_s32_overflow(every->day, (int32) n, &span->day))
		return false;
	return !pg_mul_s64_overflow(every->time, n, &span->time);
}

/* Would start + span be a date that PostgreSQL has? */
static bool
in_range(TimestampTz start, const Interval *span)
{
	double		usecs = (double) span->time + (double) span->day * USECS_PER_DAY +
		(double) span->month * 31 * USECS_PER_DAY;

	return (double) start + usecs < (double) LAST_TIMESTAMP;
}

/* When occurrence n is due; DT_NOEND: never. */
TimestampTz
dgen_recur_at(const DgenTimer *timer, int64 n)
{
	pg_tz	   *save = session_timezone;
	pg_tz	   *zone = pg_tzset(timer->time_zone);
	TimestampTz at = 0;
	Interval	span;

	if (!multiply(timer->every, n, &span) || !in_range(timer->start_at, &span))
		return DT_NOEND;
	PG_TRY();
	{
		/* a zone that is gone since is no reason to stop */
		if (zone != NULL)
			session_timezone = zone;
		at = DatumGetTimestampTz(DirectFunctionCall2(timestamptz_pl_interval,
													 TimestampTzGetDatum(timer->start_at),
													 IntervalPGetDatum(&span)));
	}
	PG_FINALLY();
	{
		session_timezone = save;
	}
	PG_END_TRY();
	return at;
}

/* The first occurrence from n on that is later than a time. */
int64
dgen_recur_after(const DgenTimer *timer, int64 n, TimestampTz when)
{
	int64		low = n - 1;	/* not later, or not to be looked at */
	int64		high = n;
	int64		step = 1;

	while (dgen_recur_at(timer, high) <= when)
	{
		low = high;
		high += step;
		step *= 2;
	}
	while (high - low > 1)
	{
		int64		middle = low + (high - low) / 2;

		if (dgen_recur_at(timer, middle) <= when)
			low = middle;
		else
			high = middle;
	}
	return high;
}
