/*-------------------------------------------------------------------------
 *
 * history.h
 *	  What history.c and history_api.c share.
 *
 *-------------------------------------------------------------------------
 */
#ifndef DGEN_HISTORY_H
#define DGEN_HISTORY_H

#include "dgen.h"

/* a row of dgen.history; see sql/tables.sql */
typedef struct HistoryRow
{
	int64		version;
	TimestampTz at;
	int64		incarnation;
	char	   *vsn;			/* or NULL, as the next */
	char	   *kind;
	int64		message_id;		/* or 0 */
	char	   *sender;			/* or NULL, as the next */
	char	   *sender_role;
	Jsonb	   *context;		/* or NULL */
	int64		from_version;	/* or 0, as the next two */
	int64		good;
	int64		size;
	Jsonb	   *undo;			/* or NULL, as the next */
	Jsonb	   *before;
} HistoryRow;

extern void dgen_history_row(HeapTuple tuple, TupleDesc desc, HistoryRow *row);
/* the oldest version that counts as kept, of those that the snapshot sees */
extern int64 dgen_history_oldest(DgenTable *table, DgenServer *server, DgenModule *module,
								 Snapshot snapshot);
/* the newest version from low up that was written no later; 0: none */
extern int64 dgen_history_version_at(DgenTable *table, DgenServer *server, int64 low,
									 TimestampTz at, Snapshot snapshot);
/* the state of a version, or NULL if it had none; server->counted is the present one */
extern Jsonb *dgen_history_state(DgenTable *table, DgenServer *server, int64 version,
								 Snapshot snapshot);
/* 55000, 22023 */
extern void dgen_history_check_kept(DgenModule *module);
pg_noreturn extern void dgen_history_not_kept(DgenServer *server, int64 version, int64 oldest);
pg_noreturn extern void dgen_history_no_state(DgenServer *server, int64 version);

#endif							/* DGEN_HISTORY_H */
