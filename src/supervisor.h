/*-------------------------------------------------------------------------
 *
 * supervisor.h
 *	  What the parts of supervisors share: the rows of dgen.supervisor and
 *	  dgen.child in memory, and what is done with them.
 *
 *-------------------------------------------------------------------------
 */
#ifndef DGEN_SUPERVISOR_H
#define DGEN_SUPERVISOR_H

#include "dgen.h"

#define DGEN_MAX_INTENSITY 1000

typedef enum DgenStrategy
{
	DGEN_ONE_FOR_ONE,
	DGEN_ONE_FOR_ALL,
	DGEN_REST_FOR_ONE
} DgenStrategy;

typedef enum DgenRestart
{
	DGEN_PERMANENT,
	DGEN_TRANSIENT,
	DGEN_TEMPORARY
} DgenRestart;

typedef enum DgenRestartState
{
	DGEN_STATE_KEEP,
	DGEN_STATE_INIT,
	DGEN_STATE_LAST_GOOD
} DgenRestartState;

typedef enum DgenSupervisorStatus
{
	DGEN_SUPERVISOR_RUNNING,
	DGEN_SUPERVISOR_FAILED,		/* too many restarts */
	DGEN_SUPERVISOR_STOPPED		/* by the one above it, or an operator */
} DgenSupervisorStatus;

/*
 * A supervisor.  A nested one is named by its path, "shop/sub", and is a
 * child of the one above.
 */
typedef struct DgenSupervisor
{
	ItemPointerData tid;
	bool		exists;			/* there is a row */
	char	   *name;
	char	   *owner;			/* the role that made it */
	DgenStrategy strategy;
	DgenSupervisorStatus status;
	int			intensity;
	Interval	period;
	TimestampTz started_at;
	char	   *reason;			/* why it failed or was stopped, or NULL */
	int			nrestarts;		/* within the period, as of the last one */
	TimestampTz restarts[DGEN_MAX_INTENSITY + 1];
} DgenSupervisor;

typedef struct DgenChild
{
	ItemPointerData tid;
	bool		exists;
	char	   *supervisor;
	char	   *id;
	int64		position;		/* in order of start */
	char	   *server;			/* NULL: a supervisor, "supervisor/id" */
	DgenRestart restart;
	DgenRestartState state;
	bool		terminated;		/* by an operator: stays down */
	int64		restarts;
	int			streak;			/* of them one soon after the other */
	TimestampTz restarted_at;	/* 0: never */
	char	   *reason;			/* of the last restart, or NULL */
	Jsonb	   *not_a_crash;	/* array of SQLSTATEs */
	Jsonb	   *args;
	Jsonb	   *on_restart;		/* or NULL */
} DgenChild;

/* a tree as it was asked for: both in order of start */
typedef struct DgenTree
{
	List	   *supervisors;	/* of DgenSupervisor * */
	List	   *children;		/* of DgenChild * */
} DgenTree;

/* supervisor_tree.c: from jsonb, checked; 22023 names the place */
extern DgenTree *dgen_tree_parse(const char *name, Jsonb *tree);
extern DgenTree *dgen_tree_parse_child(const char *supervisor, Jsonb *child, DgenChild **top);
extern const char *dgen_strategy_name(DgenStrategy strategy);
extern const char *dgen_restart_name(DgenRestart restart);
extern const char *dgen_restart_state_name(DgenRestartState state);
extern DgenStrategy dgen_strategy_by_name(const char *name);
extern DgenRestart dgen_restart_by_name(const char *name);
extern DgenRestartState dgen_restart_state_by_name(const char *name);

/* supervisor_row.c */
extern void dgen_tree_lock(const char *supervisor);
extern DgenSupervisor *dgen_supervisor_read(const char *name);	/* NULL: none */
extern void dgen_supervisor_write(DgenSupervisor *sup);
extern void dgen_supervisor_delete(DgenSupervisor *sup);
extern DgenChild *dgen_child_read(const char *supervisor, const char *id);	/* NULL: none */
extern DgenChild *dgen_child_of_server(const char *server); /* NULL: none */
extern List *dgen_child_list(const char *supervisor);	/* in order of start */
extern void dgen_child_write(DgenChild *child);
extern void dgen_child_delete(DgenChild *child);
extern char *dgen_child_path(const DgenChild *child);	/* of one that is a supervisor */
extern char *dgen_supervisor_parent(const char *name);	/* NULL: a root */

/* supervisor.c: all under the lock of the tree */
extern bool dgen_child_is_running(DgenChild *child);
extern void dgen_child_start(DgenChild *child, int depth);
extern void dgen_child_end(DgenChild *child, const char *reason, bool keep_state);
extern void dgen_child_remove(DgenChild *child, const char *reason);
extern void dgen_children_end(List *children, const char *reason, bool keep_state);
extern void dgen_supervisor_start(DgenSupervisor *sup);
extern void dgen_supervisor_end(DgenSupervisor *sup, DgenSupervisorStatus status,
								const char *reason, bool keep_state);
extern void dgen_tree_take_leases(List *children);
extern void dgen_exit_drop(DgenServer *server);	/* its exit message, if there is one */
extern DgenModule *dgen_child_module(DgenChild *child, DgenAddress *address);	/* NULL: gone */
extern void dgen_restart_arm(DgenModule *module);
extern void dgen_restart_disarm(void);
extern bool dgen_restart_is_foreign(ErrorData *edata);	/* not about the child */

#endif							/* DGEN_SUPERVISOR_H */
