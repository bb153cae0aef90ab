/*-------------------------------------------------------------------------
 *
 * worker.h
 *	  What the parts of a batch ask of the worker process: timers, cancels.
 *
 *-------------------------------------------------------------------------
 */
#ifndef DGEN_WORKER_H
#define DGEN_WORKER_H

/* why a handler was interrupted */
typedef enum DgenInterrupt
{
	DGEN_INTERRUPT_NONE,
	DGEN_INTERRUPT_BUDGET,		/* in company, and too slow for it */
	DGEN_INTERRUPT_TIMEOUT,		/* handler_timeout */
	DGEN_INTERRUPT_CALLER,		/* its caller gave up */
	DGEN_INTERRUPT_SPLIT		/* it does what only a lone activation may */
} DgenInterrupt;

extern void dgen_worker_arm(int timeout_ms, bool company);
extern void dgen_worker_disarm(void);
extern DgenInterrupt dgen_worker_interrupted(void);
extern void dgen_worker_forget_interrupt(void);
extern void dgen_worker_set_call(uint64 call_id, int caller_pgprocno);
extern void dgen_worker_check_split(void);
extern void dgen_worker_clean_session(void);
extern int	dgen_worker_cancels(void);
extern void dgen_worker_note_error(int sqlerrcode);
extern void dgen_worker_prepare_session(int32 module_id);

#endif							/* DGEN_WORKER_H */
