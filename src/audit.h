/*-------------------------------------------------------------------------
 *
 * audit.h
 *	  What admin.c and its kin write into dgen.audit, and undo.c reads.
 *
 *-------------------------------------------------------------------------
 */
#ifndef DGEN_AUDIT_H
#define DGEN_AUDIT_H

#include "dgen.h"

/* what before and after hold */
#define DGEN_AUDIT_STATE 's'
#define DGEN_AUDIT_MESSAGE 'm'		/* as in a document, see document.c */
#define DGEN_AUDIT_DOCUMENT 'd'		/* of dgen.export() */
#define DGEN_AUDIT_SUSPENSION 'p'	/* {"at", "by", "reason"} */

typedef struct DgenAudit
{
	int64		id;				/* drawn by dgen_audit_write() */
	const char *action;			/* the function */
	const char *server;			/* or a module's name and a slash */
	const char *reason;			/* or NULL */
	const char *vsn;			/* of the state before, or NULL */
	int64		incarnation;	/* 0: null, as the next four */
	int64		old_version;
	int64		new_version;
	int64		message_id;
	int64		affected;		/* messages */
	int64		undoes;			/* filled in by dgen_audit_write() */
	char		what;			/* 0: nothing */
	Jsonb	   *before;			/* or NULL, as the next two */
	Jsonb	   *after;
	Jsonb	   *undo;			/* patch that leads back from a state that is too large to be kept */
} DgenAudit;

/*
 * Is it to be written?  routine: a thing that programs do, too; what a handler
 * does of that is not.
 */
extern bool dgen_audit_wanted(bool routine);
extern Size dgen_audit_limit(void);
extern void dgen_audit_write(DgenAudit *audit);
/* writes what a change of state is, if there was any; the caller gives action, reason, vsn */
extern void dgen_audit_state(DgenAudit *audit, DgenServer *server, Jsonb *before, int64 version);
extern void dgen_audit_message(DgenAudit *audit, const DgenMessage *msg, const char *status);
extern bool dgen_audit_read(int64 id, DgenAudit *audit);
/* rows that are written from now on undo this one; 0: none.  Returns what was. */
extern int64 dgen_audit_undoing(int64 id);
extern int64 dgen_audit_last(void);	/* id of the last row that this session wrote, or 0 */

#endif							/* DGEN_AUDIT_H */
