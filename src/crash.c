/*-------------------------------------------------------------------------
 *
 * crash.c
 *	  What becomes of a server, as opposed to its message, when an activation
 *	  has failed alone with an error of its own.
 *
 * A supervised server has crashed, unless the SQLSTATE is one of its child's
 * not_a_crash: its incarnation ends here, terminate and all, and its exit
 * message leads to the restart.  Of other servers on_crash_loop, an option of
 * the module, counts errors in a row; the first success forgets them.  A plain
 * RAISE (P0001) is how a handler refuses a request, and counts in neither.
 *
 * Runs in a worker, in the transaction that records the failure, under the
 * server's lease; the failed transaction has been rolled back.
 *
 *-------------------------------------------------------------------------
 */
#include "supervisor.h"

#include "utils/memutils.h"
#include "utils/resowner.h"
#include "utils/snapmgr.h"

/* ---------------------------------------------------------------- crash loops */

static void
suspend_server(DgenServer *server, const char *why)
{
	if (server->suspended)
		return;
	server->suspended = true;
	server->suspended_at = GetCurrentTimestamp();
	server->suspended_by = psprintf("dgen: %s", why);
}

/* A new incarnation, by init, or an older state; false if that fails, too, or there is none. */
static bool
mend(DgenModule *module, DgenServer *server, const char *why)
{
	MemoryContext old = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	DgenServer	before = *server;
	DgenAddress address;
	volatile bool mended = true;

	dgen_address_parse(server->address, strlen(server->address), &address);
	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(old);
	PG_TRY();
	{
		if (module->on_crash_loop == DGEN_CRASH_LOOP_INIT)
			dgen_end_incarnation(module, server, why, false);
		dgen_restart_arm(module);
		if (module->on_crash_loop == DGEN_CRASH_LOOP_INIT)
			dgen_admin_init(module, &address, server, dgen_json_null());
		else
			mended = dgen_restore_good(module, server, 1);
		dgen_restart_disarm();
		ReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		ErrorData  *edata = dgen_subxact_abort(old, owner);

		*server = before;
		mended = false;
		if (dgen_restart_is_foreign(edata))
			ReThrowError(edata);
		FreeErrorData(edata);
	}
	PG_END_TRY();
	MemoryContextSwitchTo(old);
	CurrentResourceOwner = owner;
	return mended;
}

/* One more error in a row of a server that nobody supervises. */
static void
count_crash(DgenModule *module, DgenServer *server, const DgenError *error)
{
	char	   *why;
	bool		mended = false;

	if (module->on_crash_loop == DGEN_CRASH_LOOP_KEEP ||
		error->sqlerrcode == ERRCODE_RAISE_EXCEPTION)
		return;
	server->dirty = true;
	if (++server->crashes < module->crash_limit)
		return;
	why = psprintf("crash loop: %d errors in a row, the last %s: %s",
				   server->crashes, dgen_error_sqlstate(error), error->message);
	server->crashes = 0;
	if (module->on_crash_loop == DGEN_CRASH_LOOP_INIT ||
		module->on_crash_loop == DGEN_CRASH_LOOP_ROLLBACK)
		mended = mend(module, server, why);
	if (!mended)
		suspend_server(server, why);
	ereport(LOG,
			(errmsg("server \"%s\" was %s: %s", server->address,
					!mended ? "suspended" :
					module->on_crash_loop == DGEN_CRASH_LOOP_INIT ? "started anew" : "rolled back",
					why)));
}

bool
dgen_keeps_history(DgenModule *module)
{
	return module->history != NULL;
}

/* As dgen.rollback() does it, with dgen itself as who; see dgen.h. */
bool
dgen_restore_good(DgenModule *module, DgenServer *server, int nth)
{
	MemoryContext old = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	DgenServer	before = *server;
	DgenActivation act = {0};
	int64		version = dgen_history_good(module, server, nth);
	volatile bool restored = true;

	/* a version has the data of a machine, and not its state_name */
	if (version == 0 || module->machine)
		return false;
	act.module = module;
	act.server = server;
	act.identity = DGEN_AS_OWNER;
	act.kind = "rollback";
	act.sender = "dgen";
	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(old);
	PG_TRY();
	{
		PushActiveSnapshot(GetTransactionSnapshot());
		dgen_history_rollback(&act, version);
		dgen_server_count(server);
		PopActiveSnapshot();
		ReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		ErrorData  *edata = dgen_subxact_abort(old, owner);

		*server = before;
		restored = false;
		if (dgen_error_fault(edata->sqlerrcode) == DGEN_FAULT_CONFLICT ||
			edata->sqlerrcode == ERRCODE_QUERY_CANCELED)
			ReThrowError(edata);
		FreeErrorData(edata);
	}
	PG_END_TRY();
	MemoryContextSwitchTo(old);
	CurrentResourceOwner = owner;
	return restored;
}

/* ---------------------------------------------------------------- both */

/*
 * The error of an activation of this incarnation.  server is as it is now, and
 * is the caller's to write.
 */
void
dgen_crash_note(DgenModule *module, DgenServer *server, int64 incarnation, const DgenError *error)
{
	const char *sqlstate = dgen_error_sqlstate(error);

	if (!server->active || server->incarnation != incarnation ||
		dgen_error_fault(error->sqlerrcode) != DGEN_FAULT_OWN)
		return;
	dgen_module_hold(module);
	PG_TRY();
	{
		if (!server->supervised)
			count_crash(module, server, error);
		else if (dgen_supervisor_is_crash(server->address, sqlstate))
			dgen_end_incarnation(module, server, psprintf("%s: %s", sqlstate, error->message), true);
	}
	PG_FINALLY();
	{
		dgen_module_release(module);
	}
	PG_END_TRY();
}
