/*-------------------------------------------------------------------------
 *
 * batch.h
 *	  What batch.c, cut.c, run.c and failure.c share: one batch of a worker.
 *
 *-------------------------------------------------------------------------
 */
#ifndef DGEN_BATCH_H
#define DGEN_BATCH_H

#include "dgen.h"

#define DGEN_MAX_BATCH 256		/* servers, and messages, of one batch */
#define DGEN_BATCH_BYTES (1024 * 1024)
#define DGEN_MAX_CONFLICTS 20
#define DGEN_NLANES 3

/* a message of the mailbox or a call */
typedef struct BatchItem
{
	int			lease;			/* index into leases */
	int			server;			/* index into servers */
	DgenMessage *msg;			/* or NULL: */
	int			call;			/* index into calls */
	bool		failed;			/* it has a row in dgen.attempt, be it that it was to be tried later */
	bool		consumed;		/* its row is deleted, or the call answered */
	bool		handled;		/* its activation is done, and not postponed or locked */
	DgenCall   *kept;			/* for which msg stands, while it runs */
} BatchItem;

/* who an item is, over several tries */
typedef struct BatchItemId
{
	bool		is_call;
	int64		id;				/* of the message or of the call */
} BatchItemId;

/* a call that the worker has */
typedef struct BatchCall
{
	DgenCall   *call;
	dsa_pointer self;
	int			lease;			/* DGEN_NONE: given back, and no longer ours */
	bool		answered;		/* no longer the queue's; unref'd at the end */
} BatchCall;

/* one entry taken from the ready queue */
typedef struct BatchLease
{
	DgenTaken  *taken;
	bool		gone;			/* given back */
	bool		held;			/* in this try */
	bool		read;			/* its mailbox was read in this try */
	bool		more;			/* there may be work left */
	TimestampTz park_until;		/* 0, or when there may be */
	int64		mark;			/* where its mailbox is read from */
	uint32		generation;		/* of the mark */
	int64		low;			/* no live message of it has a lower id */
	int			consumed;
} BatchLease;

typedef struct BatchServer
{
	DgenServer *server;
	int			lease;
	List	   *failed;			/* its messages that failed before, if it is failing */
	int64		continued;		/* its continue, which is planned before all else */
	bool		blocked;		/* a message of it is being cancelled: nothing may overtake */
} BatchServer;

/* which items a try runs */
typedef enum BatchMode
{
	BATCH_ALL,					/* whatever the cut holds, up to the limits */
	BATCH_PREFIX,				/* those that ran before one failed */
	BATCH_ALONE					/* the one that failed */
} BatchMode;

typedef struct Batch
{
	int			pool;
	bool		effects;		/* the pool's entries are streams of effects */
	int64		lock_token;		/* of a stand-in for locked work, or 0 */
	int32		module_id;
	DgenModule *module;			/* in a try */
	int			nleases;
	BatchLease *leases;
	int			ncalls;
	BatchCall  *calls;

	/* what to try */
	BatchMode	mode;
	int			max_items;
	int			nonly;			/* of PREFIX; for ALONE 1 */
	BatchItemId only[DGEN_MAX_BATCH];
	BatchItemId failed;			/* to be run alone after PREFIX */
	int64		failed_hash;	/* its server's */
	int			conflicts;		/* serialization failures in a row */
	char		settle[DGEN_MAX_ADDRESS + 1];	/* a server that waits for its restart, or "" */
	int			ntouched;		/* leases that a failed try took on its way */
	int64		touched[64];

	/* one try; in mcxt */
	MemoryContext mcxt;
	MemoryContext item_mcxt;
	DgenTable  *messages;
	DgenTable  *server_rows;
	DgenTable  *attempts;
	DgenBounds *bounds;
	int			nservers;
	BatchServer servers[DGEN_MAX_BATCH];
	int			nitems;
	BatchItem	items[DGEN_MAX_BATCH];
	Size		bytes;
	int			current;		/* item whose handler runs, or -1 */
	int			nrun;			/* items that are done with */
	int			nhandled;		/* of these, the ones that a handler ran for: not what was dropped */
	int			timeout_ms;		/* the module's handler_timeout, or work_timeout */
	bool		traced;			/* something of the module is */
	TimestampTz activation_began;	/* the last one, if traced; else 0 */
	bool		watches_crashes;	/* the module has an on_crash_loop */
	bool		running;		/* handlers may run: promise that flush etc. apply */
	TimestampTz started_at;
	int64		clock;			/* ns, when the last handler ended, as the next begins, */
	TimestampTz clock_at;		/* by the wall clock, too */
	int			shown;			/* server that dgen.stat_activity shows, or -1 */

	/* how a try ended */
	DgenError  *error;
	bool		overtakes;		/* would overtake the server's own messages */
	bool		rejected;		/* by directive */
	Interval   *retry_after;	/* by directive */

	/* for the commit callback: nothing is allocated there */
	int			nfinish;
	DgenCall  **finish;			/* room for all calls */
} Batch;

/* cut.c: leases, and what they hold, in one snapshot */
extern void dgen_cut_take(Batch *b);

/* run.c: the activations of a try */
extern void dgen_run_items(Batch *b);
/* ends of calls and requests that nobody answered yet: deferred.c */
/* false: its reply came already */
extern bool dgen_deferred_call(Batch *b, int call, DgenCallState then);
extern char *dgen_deferred_token(DgenCall *call);
extern void dgen_deferred_request(DgenModule *module, DgenMessage *msg);
extern void dgen_run_finish(Batch *b);	/* writes the servers; before commit */
extern void dgen_run_log_failed(Batch *b);

/*
 * postpone.c: an item's message stays, postponed or in its place; its caller
 * goes on waiting.  The message's id; 0: its caller has been answered already.
 */
typedef enum DgenKeep
{
	DGEN_KEEP_POSTPONED,
	DGEN_KEEP_AGAIN,			/* postponed, and back in the mailbox at once */
	DGEN_KEEP_LOCKED			/* there is work for it under a lock */
} DgenKeep;

extern int64 dgen_keep_item(Batch *b, BatchItem *item, DgenKeep how);

/* failure.c: what becomes of a message that failed alone */
extern void dgen_failure_record(Batch *b, BatchItem *item);
extern void dgen_failure_crash(Batch *b, BatchItem *item);
extern void dgen_failure_note(Batch *b, BatchItem *item);
extern void dgen_failure_accuse(Batch *b, BatchItem *item); /* before a suspect runs */
extern void dgen_failure_forget(Batch *b, DgenServer *server, int64 message_id);

/* the module as the pace and the breaker know it: effects are apart */
#define dgen_pace_id(module_id, effects) ((effects) ? -(module_id) : (module_id))

/* trace.c: what failed alone */
extern void dgen_trace_failure(Batch *b, DgenModule *module, BatchItem *item);
extern void dgen_trace_failed_call(Batch *b, BatchItem *item);	/* in a transaction of its own */

/* statistics.c: a message or a call failed alone */
extern void dgen_statistics_failure(Batch *b, BatchItem *item);

/* batch.c */
extern void dgen_batch_answer(Batch *b, int call);	/* its reply is put; shown at commit */
extern void dgen_request_reply(DgenModule *module, DgenMessage *msg, Jsonb *reply, Jsonb *error);
extern bool dgen_message_expired(DgenModule *module, DgenMessage *msg);

#endif							/* DGEN_BATCH_H */
