/*-------------------------------------------------------------------------
 *
 * stat_run.c
 *	  Activations in the transactions of clients, and what a client has done as
 *	  work: counted for dgen.stat_module, shown in dgen.stat_activity, and
 *	  logged where they took long.
 *
 * Workers do the same for whole batches, see run.c.  No locks.
 *
 *-------------------------------------------------------------------------
 */
#include "stat.h"

static void
count_run(DgenActivation *act, DgenMessage *msg, double ms)
{
	char		kind = msg ? msg->kind : DGEN_KIND_CALL;
	const char *server = msg ? msg->server : act->server->address;
	DgenCallbackKind callback = kind == DGEN_KIND_EFFECT ? DGEN_EFFECT : act->callback;

	if (act->outcome == DGEN_REJECTED)
		dgen_stat_now(act->module->id, DGEN_STAT_ERRORS);
	if (act->outcome != DGEN_HANDLED || act->postponed || act->locked)
		return;
	if (act->server != NULL)
		dgen_stat_handled(act->module->id, kind, dgen_stat_server_name(act->server), act->server->hash, ms,
						  msg ? dgen_stat_queued(kind, msg->sent_at, GetCurrentTimestamp()) : -1);
	else
		dgen_stat_handled(act->module->id, kind, NULL, 0, ms, -1);
	dgen_log_duration(server, callback, act->message_id, ms, false);
}

/* A client has handed in what it did for a message; how long that took is its own. */
void
dgen_stat_external(const DgenModule *module, const DgenServer *server, const DgenMessage *msg)
{
	dgen_stat_handled(module->id, msg->kind, dgen_stat_server_name(server), server->hash, -1, -1);
}

/*
 * An invoke, or a message that is handled in the transaction that sent it.
 * A conflict is no error of the server.  Inside of a worker's activation it is
 * counted as well, and its time is part of that one's.
 */
void
dgen_stat_run(DgenActivation *act, DgenMessage *msg, void (*run) (DgenActivation *, DgenMessage *))
{
	int32		module_id = act->module->id;
	bool		shown = !dgen_activity_any();
	instr_time	begin;
	instr_time	end;

	if (shown)
	{
		dgen_activity_begin(msg ? msg->server : act->server->address,
							msg && msg->kind == DGEN_KIND_EFFECT ? DGEN_EFFECT : act->callback);
		dgen_activity_next(msg ? msg->kind : DGEN_KIND_CALL, act->message_id, DGEN_NONE,
						   GetCurrentTimestamp());
	}
	INSTR_TIME_SET_CURRENT(begin);
	PG_TRY();
	{
		run(act, msg);
	}
	PG_CATCH();
	{
		if (shown)
			dgen_activity_end();
		/* in company it will be run again, alone */
		if (dgen_error_fault(geterrcode()) != DGEN_FAULT_CONFLICT && !dgen_batch_in_company())
			dgen_stat_now(module_id, DGEN_STAT_ERRORS);
		PG_RE_THROW();
	}
	PG_END_TRY();
	INSTR_TIME_SET_CURRENT(end);
	if (shown)
		dgen_activity_end();
	INSTR_TIME_SUBTRACT(end, begin);
	count_run(act, msg, INSTR_TIME_GET_MILLISEC(end));
}

/* An activation that took long, if those are to be logged. */
void
dgen_log_duration(const char *server, DgenCallbackKind callback, int64 message_id, double ms,
				  bool failed)
{
	if (dgen_log_min_handler_duration < 0 || ms < dgen_log_min_handler_duration)
		return;
	if (message_id != 0)
		ereport(LOG,
				(errmsg("duration: %.3f ms  server \"%s\" %s, message " INT64_FORMAT "%s",
						ms, dgen_server_of(server), dgen_activity_name(callback), message_id,
						failed ? ", failed" : ""),
				 errhidestmt(true), errhidecontext(true)));
	else
		ereport(LOG,
				(errmsg("duration: %.3f ms  server \"%s\" %s%s", ms, dgen_server_of(server),
						dgen_activity_name(callback), failed ? ", failed" : ""),
				 errhidestmt(true), errhidecontext(true)));
}
