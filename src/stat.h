/*-------------------------------------------------------------------------
 *
 * stat.h
 *	  What is counted for the views dgen.stat_*; stat_module.c, stat_server.c
 *	  and stat_activity.c tell how.
 *
 *-------------------------------------------------------------------------
 */
#ifndef DGEN_STAT_H
#define DGEN_STAT_H

#include "batch.h"

#include "port/pg_bitutils.h"
#include "portability/instr_time.h"

/* counters of a module, in the order of the columns of dgen.stat_module */
typedef enum DgenStat
{
	DGEN_STAT_CALLS,
	DGEN_STAT_REQUESTS,
	DGEN_STAT_CASTS,
	DGEN_STAT_INFOS,
	DGEN_STAT_TIMERS,			/* named ones, and idle timeouts */
	DGEN_STAT_EFFECTS,
	DGEN_STAT_OTHERS,			/* replies, continues, DOWNs */
	DGEN_STAT_ERRORS,
	DGEN_STAT_RETRIES,
	DGEN_STAT_CONFLICTS,
	DGEN_STAT_DEAD_LETTERS,
	DGEN_STAT_TIMEOUTS,
	DGEN_NSTATS,
	DGEN_STAT_FORGET			/* no counter: a module goes, or a server */
} DgenStat;

/* ------------------------------------------------------------ stat_series.c */
#define DGEN_SUB_BITS 3				/* 8 buckets a power of two */
#define DGEN_EXACT (2 << DGEN_SUB_BITS)	/* up to here each unit has a bucket of its own */
#define DGEN_UNIT_BITS 7				/* a unit has 128 nanoseconds */
#define DGEN_NBUCKETS 320			/* the last one begins at 6 days */

/* times, in milliseconds */
typedef struct DgenSeries
{
	int64		n;
	double		total;
	double		min;
	double		max;
	double		mean;
	double		m2;				/* sum of squares of the differences from the mean */
	int64		buckets[DGEN_NBUCKETS];
} DgenSeries;

/* times of a batch, in nanoseconds */
typedef struct DgenSum
{
	int64		n;
	int64		total;
	int64		min;
	int64		max;
	double		squares;
	uint16		buckets[DGEN_MAX_BATCH];	/* of each */
} DgenSum;

extern void dgen_series_add(DgenSeries *s, double ms);
extern void dgen_series_add_sum(DgenSeries *s, const DgenSum *sum);
/* total, min, max, mean, stddev, p50, p95, p99 */
#define DGEN_SERIES_NATTS 8
extern void dgen_series_form(const DgenSeries *s, Datum *values, bool *nulls);

static inline int
dgen_bucket_of(int64 ns)
{
	uint64		units = (uint64) ns >> DGEN_UNIT_BITS;
	int			octave;

	if (units < DGEN_EXACT)
		return (int) units;
	octave = pg_leftmost_one_pos64(units);
	return Min(DGEN_EXACT + ((octave - DGEN_SUB_BITS - 1) << DGEN_SUB_BITS) +
			   (int) ((units >> (octave - DGEN_SUB_BITS)) & ((1 << DGEN_SUB_BITS) - 1)),
			   DGEN_NBUCKETS - 1);
}

/* at most DGEN_MAX_BATCH of them */
static inline void
dgen_sum_add(DgenSum *s, int64 ns)
{
	s->buckets[s->n] = dgen_bucket_of(ns);
	if (s->n++ == 0)
		s->min = s->max = ns;
	else if (ns < s->min)
		s->min = ns;
	else if (ns > s->max)
		s->max = ns;
	s->total += ns;
	s->squares += (double) ns * ns;
}

/* ------------------------------------------------------------ stat_module.c */
extern Size dgen_stat_size(void);
extern void dgen_stat_init(void *place, bool found);

/* an activation of a worker's batch, in so many nanoseconds; counts at the commit */
extern void dgen_stat_tally(int32 module_id, char kind, const DgenServer *server, int64 ns,
							TimestampTz sent_at, TimestampTz began);
/* the same for any other; times in milliseconds, or -1: not known */
extern void dgen_stat_handled(int32 module_id, char kind, const char *server, int64 hash,
							  double handler_ms, double queue_ms);
extern void dgen_stat_note(int32 module_id, DgenStat what);
/* counts at once, whatever becomes of the transaction; raises nothing */
extern void dgen_stat_now(int32 module_id, DgenStat what);
/* what has failed alone, in a worker */
extern void dgen_stat_failure(Batch *b);
/* runs an activation, or an effect, in the transaction of a client or of another handler */
extern void dgen_stat_run(DgenActivation *act, DgenMessage *msg, void (*run) (DgenActivation *, DgenMessage *));

/* a server's name that lives as long as what is noted of this transaction */
extern const char *dgen_stat_server_name(const DgenServer *server);
/* for work that a client has handed in: stat_run.c, as the next two */
extern void dgen_stat_external(const DgenModule *module, const DgenServer *server, const DgenMessage *msg);
/* writes to the server's log, if it took so long: dgen.log_min_handler_duration */
extern void dgen_log_duration(const char *server, DgenCallbackKind callback, int64 message_id,
							  double ms, bool failed);

/* from when to when a message has waited, in milliseconds; -1: nobody can tell */
extern double dgen_stat_queued(char kind, TimestampTz sent_at, TimestampTz now);

/* at the commit */
extern void dgen_stat_forget_module(DgenModule *module);
extern void dgen_stat_forget_server(const DgenAddress *address);
extern void dgen_stat_forget_database(Oid database);	/* at once */
extern void dgen_stat_xact_callback(XactEvent event);
extern void dgen_stat_subxact(SubXactEvent event, SubTransactionId my, SubTransactionId parent);

/* who may see figures, but no contents */
extern bool dgen_may_monitor(void);

/* ------------------------------------------------------------ stat_server.c */
extern Size dgen_stat_server_size(void);
extern void dgen_stat_server_init(void *place, bool found);
/* a server has handled n messages, in so many milliseconds; raises nothing */
extern void dgen_stat_server_add(const char *server, int64 hash, int64 n, double ms, TimestampTz now);
extern void dgen_stat_server_erase(int64 hash);
/* forgets those of a module, or (NULL) of all, of a database */
extern void dgen_stat_server_forget(Oid database, const char *module);

/* ---------------------------------------------------------- stat_activity.c */
extern Size dgen_stat_activity_size(void);
extern void dgen_stat_activity_init(void *place, bool found);
#define DGEN_BY_KIND (-1)		/* the callback that is for this kind of message */
/* this process is about to run activations of a server; then each of them */
extern void dgen_activity_begin(const char *server, int callback);
extern void dgen_activity_next(char kind, int64 message_id, int caller_pgprocno, TimestampTz since);
extern void dgen_activity_commit(void); /* its transaction is being committed */
extern void dgen_activity_end(void);
extern bool dgen_activity_any(void);	/* of this process */
extern const char *dgen_activity_name(DgenCallbackKind callback);

/* --------------------------------------------------------------- progress.c */
typedef enum DgenCommand
{
	DGEN_COMMAND_MIGRATE,		/* counts servers */
	DGEN_COMMAND_REQUEUE,		/* letters, as the next */
	DGEN_COMMAND_PURGE,
	DGEN_COMMAND_DELETE,		/* rows, as the next */
	DGEN_COMMAND_DROP_MODULE,
	DGEN_COMMAND_REFRESH,		/* servers */
	DGEN_NCOMMANDS
} DgenCommand;

extern Size dgen_progress_size(void);
extern void dgen_progress_init(void *place, bool found);
extern void dgen_progress_begin(DgenCommand command, const DgenModule *module, bool commits_on_its_way);
extern void dgen_progress_total(int64 total, bool dry_run); /* once it is known */
extern void dgen_progress_step(bool failed);
extern void dgen_progress_end(void);	/* an error ends it, too */
extern void dgen_progress_xact_callback(XactEvent event);
extern void dgen_progress_subxact(SubXactEvent event, SubTransactionId my);

#endif							/* DGEN_STAT_H */
