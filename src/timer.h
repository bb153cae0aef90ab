/*-------------------------------------------------------------------------
 *
 * timer.h
 *	  What timer.c, timer_api.c and recur.c share: a row of dgen.timer.
 *
 *-------------------------------------------------------------------------
 */
#ifndef DGEN_TIMER_H
#define DGEN_TIMER_H

#include "dgen.h"

/* what becomes of occurrences that could not be handled in time */
#define DGEN_ON_MISS_ONCE 'o'	/* all of them are one */
#define DGEN_ON_MISS_CATCH_UP 'c'	/* each is handled */
#define DGEN_ON_MISS_SKIP 's'	/* none is handled */

/* names that begin so are the engine's; one that recurs without a name has this one and its id */
#define DGEN_TIMER_RESERVED '$'
#define DGEN_TIMER_UNNAMED "$every:"

typedef struct DgenTimer
{
	ItemPointerData tid;
	char	   *server;
	char	   *name;
	int64		id;				/* what dgen.message.timer refers to */
	int64		incarnation;	/* 0: set by others */
	TimestampTz due_at;			/* of the occurrence that is next, or under way */
	char	   *sender_role;
	Interval   *every;			/* NULL: once; then the rest is unset */
	TimestampTz start_at;		/* occurrence 0 */
	char	   *time_zone;
	char		on_miss;
	int64		occurrence;
} DgenTimer;

/* timer.c */
extern DgenTable *dgen_timer_open(LOCKMODE lockmode);
extern void dgen_timer_deform(DgenTable *table, HeapTuple tuple, DgenTimer *timer);
extern bool dgen_timer_find(DgenTable *table, const char *server, const char *name, DgenTimer *timer);
extern bool dgen_timer_find_id(DgenTable *table, int64 id, DgenTimer *timer);
extern void dgen_timer_insert(DgenTable *table, const DgenTimer *timer);
/* with its message if that is not in the mailbox yet; false: somebody else has by now */
extern bool dgen_timer_remove(DgenTable *table, DgenTimer *timer);
extern void dgen_timer_start(DgenModule *module, DgenMessage *msg, DgenTimer *timer, TimestampTz now);

/* recur.c */
extern TimestampTz dgen_recur_at(const DgenTimer *timer, int64 n);
extern int64 dgen_recur_after(const DgenTimer *timer, int64 n, TimestampTz when);

#endif							/* DGEN_TIMER_H */
