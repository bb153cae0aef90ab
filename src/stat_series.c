/*-------------------------------------------------------------------------
 *
 * stat_series.c
 *	  Many times as few numbers: sum, extremes, mean, deviation, percentiles.
 *
 * Means and deviations are kept by Welford's method, as pg_stat_statements
 * does, or over many at once as Chan has extended it.  Percentiles come of a
 * histogram: a time is counted in units of 128 nanoseconds, in one of 8 buckets
 * of equal width for each power of two, so that what is told, the middle of a
 * bucket, is at most a sixteenth from the true one; below 2 microseconds at most
 * 64 nanoseconds.
 *
 * Pure functions.  No locks: those who keep a series have them.
 *
 *-------------------------------------------------------------------------
 */
#include "stat.h"

#include <math.h>

#define NSECS_PER_MSEC 1000000.0

/* The middle of a bucket. */
static double
time_of(int bucket)
{
	int			shift;
	uint64		from;

	if (bucket < DGEN_EXACT)
		return ldexp(bucket + 0.5, DGEN_UNIT_BITS) / NSECS_PER_MSEC;
	shift = ((bucket - DGEN_EXACT) >> DGEN_SUB_BITS) + 1;
	from = (uint64) ((1 << DGEN_SUB_BITS) + ((bucket - DGEN_EXACT) & ((1 << DGEN_SUB_BITS) - 1))) << shift;
	return ldexp(from + ldexp(0.5, shift), DGEN_UNIT_BITS) / NSECS_PER_MSEC;
}

void
dgen_series_add(DgenSeries *s, double ms)
{
	double		old_mean = s->mean;

	s->n++;
	s->total += ms;
	if (s->n == 1 || ms < s->min)
		s->min = ms;
	if (ms > s->max)
		s->max = ms;
	s->mean += (ms - old_mean) / s->n;
	s->m2 += (ms - old_mean) * (ms - s->mean);
	s->buckets[dgen_bucket_of((int64) (Max(ms, 0) * NSECS_PER_MSEC))]++;
}

/* The time that this part of all did not exceed. */
static double
percentile(const DgenSeries *s, double part)
{
	double		rank = ceil(part * s->n);
	int64		seen = 0;

	for (int i = 0; i < DGEN_NBUCKETS; i++)
	{
		seen += s->buckets[i];
		if (seen >= rank)
			return Max(s->min, Min(s->max, time_of(i)));
	}
	return s->max;
}

/* All of a batch at once. */
void
dgen_series_add_sum(DgenSeries *s, const DgenSum *sum)
{
	double		mean;
	double		delta;
	int64		n = s->n + sum->n;

	if (sum->n == 0)
		return;
	mean = sum->total / NSECS_PER_MSEC / sum->n;
	delta = mean - s->mean;
	s->m2 += Max(sum->squares / (NSECS_PER_MSEC * NSECS_PER_MSEC) - mean * mean * sum->n, 0) +
		delta * delta * s->n * sum->n / n;
	s->mean += delta * sum->n / n;
	s->total += sum->total / NSECS_PER_MSEC;
	s->min = s->n == 0 ? sum->min / NSECS_PER_MSEC : Min(s->min, sum->min / NSECS_PER_MSEC);
	s->max = Max(s->max, sum->max / NSECS_PER_MSEC);
	s->n = n;
	for (int i = 0; i < sum->n; i++)
		s->buckets[sum->buckets[i]]++;
}

/* total, min, max, mean, stddev, p50, p95, p99 */
void
dgen_series_form(const DgenSeries *s, Datum *values, bool *nulls)
{
	static const double parts[] = {0.5, 0.95, 0.99};

	values[0] = Float8GetDatum(s->total);
	for (int i = 1; i < DGEN_SERIES_NATTS; i++)
		nulls[i] = s->n == 0;
	if (s->n == 0)
		return;
	values[1] = Float8GetDatum(s->min);
	values[2] = Float8GetDatum(s->max);
	values[3] = Float8GetDatum(s->mean);
	values[4] = Float8GetDatum(sqrt(Max(s->m2, 0) / s->n));
	for (int i = 0; i < lengthof(parts); i++)
		values[5 + i] = Float8GetDatum(percentile(s, parts[i]));
}
