/*-------------------------------------------------------------------------
 *
 * supervisor_restart.c
 *	  What becomes of a supervision tree when one of its servers has ended.
 *
 * A restart is a transaction of its own in a worker: the lock of the tree
 * first, then the leases of all servers concerned in the order of their
 * hashes, waiting, then the transaction's snapshot.  It ends and starts the
 * children that the strategy names in a subtransaction; if one cannot be
 * started all of that is undone, and it counts as another restart.  Beyond the
 * intensity the supervisor ends its children and itself, and the one above
 * decides in the same way.
 *
 * The exit message goes in the transaction that restarts its server, or keeps
 * it down.  So what fails, or goes down with its process, is tried again; a
 * process that went down with it counts as a restart, too, so that an init that
 * kills its worker does not do so for ever.
 *
 *-------------------------------------------------------------------------
 */
#include "supervisor.h"

#include "access/xact.h"
#include "common/pg_prng.h"
#include "storage/proc.h"
#include "utils/fmgrprotos.h"
#include "utils/memutils.h"
#include "utils/resowner.h"
#include "utils/snapmgr.h"
#include "utils/wait_event.h"
#include "worker.h"

#define MAX_CONFLICTS 20

static int64 in_hand = 0;		/* exit message whose restart runs in this worker */

/* ---------------------------------------------------------------- restarts */

static bool handle_exit(DgenChild *child, const char *reason, bool lost);

/* Whom the end of a child concerns, left to right; read anew. */
static List *
affected(DgenSupervisor *sup, DgenChild *child)
{
	List	   *found = NIL;
	ListCell   *lc;

	if (sup->strategy == DGEN_ONE_FOR_ONE)
	{
		child = dgen_child_read(child->supervisor, child->id);
		return child ? list_make1(child) : NIL;
	}
	foreach(lc, dgen_child_list(sup->name))
	{
		DgenChild  *other = lfirst(lc);

		if (sup->strategy == DGEN_ONE_FOR_ALL || other->position >= child->position)
			found = lappend(found, other);
	}
	return found;
}

/* Count one more restart; false: that is more than the intensity allows. */
static bool
count_restart(DgenSupervisor *sup)
{
	TimestampTz now = GetCurrentTimestamp();
	int64		period = 0;
	int			kept = 0;

	(void) dgen_interval_usecs(&sup->period, &period);
	for (int i = 0; i < sup->nrestarts; i++)
	{
		if (sup->restarts[i] > now - period && sup->restarts[i] <= now)
			sup->restarts[kept++] = sup->restarts[i];
	}
	sup->nrestarts = kept;
	if (kept >= sup->intensity)
		return false;
	sup->restarts[sup->nrestarts++] = now;
	dgen_supervisor_write(sup);
	return true;
}

/* Of restarts one within a period of the other, which is the next? */
static int
next_in_streak(DgenSupervisor *sup, DgenChild *child)
{
	int64		period = 0;

	(void) dgen_interval_usecs(&sup->period, &period);
	if (child->restarted_at == 0 || GetCurrentTimestamp() - child->restarted_at > period)
		return 1;
	return child->streak + 1;
}

/* End those whom the strategy names right to left, and start them left to right. */
static void
restart_children(DgenSupervisor *sup, DgenChild *child, const char *reason, int attempt)
{
	List	   *children = affected(sup, child);
	ListCell   *lc;

	dgen_children_end(children, "shutdown", true);
	foreach(lc, children)
	{
		DgenChild  *one = lfirst(lc);
		int			depth = next_in_streak(sup, one) + attempt;

		if (!one->exists || one->terminated)
			continue;
		dgen_child_start(one, depth);
		one->restarts++;
		one->streak = depth;
		one->restarted_at = GetCurrentTimestamp();
		one->reason = strcmp(one->id, child->id) == 0 ? pstrdup(reason) : pstrdup("shutdown");
		dgen_child_write(one);
	}
}

/* NULL, or the error that kept a child from being started; all is undone then. */
static char *
try_restart(DgenSupervisor *sup, DgenChild *child, const char *reason, int attempt)
{
	MemoryContext old = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	char	   *volatile failure = NULL;

	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(old);
	PG_TRY();
	{
		restart_children(sup, child, reason, attempt);
		ReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		ErrorData  *edata = dgen_subxact_abort(old, owner);

		if (dgen_restart_is_foreign(edata))
			ReThrowError(edata);
		failure = psprintf("%s: %s", unpack_sql_state(edata->sqlerrcode), edata->message);
		FreeErrorData(edata);
	}
	PG_END_TRY();
	MemoryContextSwitchTo(old);
	CurrentResourceOwner = owner;
	return failure;
}

/*
 * Too many restarts: the supervisor ends its children and itself, which is to
 * the one above as if a child of it had ended with reason "shutdown".
 */
static void
give_up(DgenSupervisor *sup, DgenChild *child, const char *reason)
{
	char	   *parent = dgen_supervisor_parent(sup->name);
	char	   *why = psprintf("more than %d restart%s in %s; the last one for child \"%s\": %s",
							   sup->intensity, sup->intensity == 1 ? "" : "s",
							   DatumGetCString(DirectFunctionCall1(interval_out,
																   IntervalPGetDatum(&sup->period))),
							   child->id, reason);
	DgenChild  *self;

	dgen_tree_take_leases(dgen_child_list(sup->name));
	dgen_supervisor_end(sup, DGEN_SUPERVISOR_FAILED, why, true);
	ereport(LOG,
			(errmsg("supervisor \"%s\" has failed: %s", sup->name, why)));
	self = parent ? dgen_child_read(parent, sup->name + strlen(parent) + 1) : NULL;
	if (self == NULL || self->restart == DGEN_TRANSIENT)
		return;
	if (self->restart == DGEN_TEMPORARY)
		dgen_child_remove(self, "shutdown");
	else
		handle_exit(self, "shutdown", false);
}

/*
 * A child has ended and is to be restarted.  lost: a process went down with
 * an earlier try, so that is only counted now, and tried again afterwards.
 * False: the supervisor is not running; the child stays down.
 */
static bool
handle_exit(DgenChild *child, const char *reason, bool lost)
{
	DgenSupervisor *sup = dgen_supervisor_read(child->supervisor);

	if (sup == NULL || sup->status != DGEN_SUPERVISOR_RUNNING)
		return false;
	for (int attempt = 0;; attempt++)
	{
		char	   *failure;

		if (!count_restart(sup))
		{
			give_up(sup, child, reason);
			return true;
		}
		if (lost)
			return true;
		dgen_tree_take_leases(affected(sup, child));
		ereport(LOG,
				(errmsg("supervisor \"%s\" restarts child \"%s\": %s", sup->name, child->id, reason)));
		failure = try_restart(sup, child, reason, attempt);
		if (failure == NULL)
			return true;
		reason = failure;
	}
}

/* ---------------------------------------------------------------- in a worker */

/* Take away the exit message of a server that is to stay down. */
static void
stay_down(DgenChild *child, const char *address, bool supervised)
{
	DgenAddress to;
	DgenModule *module;
	DgenTable  *table;
	DgenServer *server;

	dgen_address_parse(address, strlen(address), &to);
	module = dgen_module_get(to.module, true);
	if (module == NULL)
		return;
	server = dgen_admin_open(module, &to, &table);
	dgen_exit_drop(server);
	if (server->supervised != supervised)
		server->dirty = server->exists;
	server->supervised = supervised;
	dgen_admin_close(table, server);
}

/* Why the server is down, if it still waits for its restart; NULL: it does not. */
static char *
exit_reason(const char *address, int64 *exit_id)
{
	DgenTable  *table = dgen_table_open(DGEN_T_SERVER, RowExclusiveLock);
	DgenServer	server;

	/* without its state: that takes a snapshot, which is for after the leases */
	(void) dgen_server_peek(table, address, NULL, &server);
	dgen_table_close(table);
	if (!dgen_server_is_down(&server) || server.continue_id == 0)
		return NULL;
	*exit_id = server.continue_id;
	return server.stop_reason ? server.stop_reason : "unknown";
}

/* Is a module of theirs suspended?  Then the restart waits for its resume. */
static bool
is_suspended(List *children)
{
	ListCell   *lc;

	check_stack_depth();
	foreach(lc, children)
	{
		DgenChild  *child = lfirst(lc);
		DgenAddress address;
		DgenModule *module;

		if (child->server == NULL)
		{
			if (is_suspended(dgen_child_list(dgen_child_path(child))))
				return true;
		}
		else if ((module = dgen_child_module(child, &address)) != NULL && module->suspended)
			return true;
	}
	return false;
}

/* The root of the tree of a supervisor. */
static char *
root_of(const char *supervisor)
{
	return pnstrdup(supervisor, strcspn(supervisor, "/"));
}

/*
 * Take the tree in hand, or all that this end concerns of it, and decide.
 * worker: that a process goes down with it is remembered.
 */
static void
settle(const char *address, bool whole_tree, bool worker)
{
	DgenChild  *child = dgen_child_of_server(address);
	DgenSupervisor *sup;
	List	   *concerned = NIL;
	char	   *reason;
	int64		exit_id = 0;
	bool		lost = false;

	if (child != NULL)
	{
		dgen_tree_lock(child->supervisor);
		child = dgen_child_of_server(address);
	}
	sup = child ? dgen_supervisor_read(child->supervisor) : NULL;
	if (sup != NULL)
		concerned = affected(sup, child);
	if (is_suspended(concerned))
		return;
	if (sup != NULL)
		dgen_tree_take_leases(whole_tree ? dgen_child_list(root_of(sup->name)) : concerned);
	else
		(void) dgen_lease_take(dgen_address_hash(address, strlen(address)), true);
	dgen_waitpoint_reach("dgen-restart");
	reason = exit_reason(address, &exit_id);
	if (reason == NULL)
		return;
	if (worker)
	{
		lost = dgen_hand_suspect(MyDatabaseId, exit_id);
		dgen_hand_take(exit_id);
		in_hand = exit_id;
	}
	PushActiveSnapshot(GetTransactionSnapshot());
	if (sup == NULL ||
		!handle_exit(child, lost ? "worker was lost while it restarted the child" : reason, lost))
		stay_down(child, address, sup != NULL);
	PopActiveSnapshot();
	if (lost)
		dgen_hand_forget(MyDatabaseId, exit_id);
}

/* Restart a child that has ended in this transaction, in it: for dgen.drain(). */
void
dgen_supervisor_settle_now(const char *address)
{
	settle(address, false, false);
}

/* One try; false: it has to be tried again. */
static bool
settle_once(const char *address, bool whole_tree, bool last)
{
	MemoryContext mcxt = CurrentMemoryContext;
	volatile bool done = true;

	PG_TRY();
	{
		SetCurrentStatementStartTimestamp();
		StartTransactionCommand();
		XactReadOnly = false;
		XactIsoLevel = XACT_SERIALIZABLE;
		(void) dgen_limit_waits();
		settle(address, whole_tree, true);
		dgen_waitpoint_reach("dgen-before-restart-commit");
		CommitTransactionCommand();
	}
	PG_CATCH();
	{
		ErrorData  *edata;

		HOLD_INTERRUPTS();
		MemoryContextSwitchTo(mcxt);
		edata = CopyErrorData();
		FlushErrorState();
		AbortOutOfAnyTransaction();
		MemoryContextSwitchTo(mcxt);
		dgen_worker_disarm();
		dgen_worker_forget_interrupt();
		done = last || dgen_error_fault(edata->sqlerrcode) != DGEN_FAULT_CONFLICT;
		if (done)
			ereport(edata->sqlerrcode == ERRCODE_LOCK_NOT_AVAILABLE ? DEBUG1 : LOG,
					(errcode(edata->sqlerrcode),
					 errmsg("could not restart server \"%s\": %s", address, edata->message)));
		RESUME_INTERRUPTS();
	}
	PG_END_TRY();
	dgen_hand_clear();
	in_hand = 0;
	MemoryContextSwitchTo(mcxt);
	return done;
}

/* The worker leaves in the middle of a restart (FATAL): the next try only counts. */
void
dgen_supervisor_at_exit(void)
{
	if (in_hand != 0)
		dgen_hand_suspect_add(MyDatabaseId, in_hand);
}

/*
 * In a worker, between batches: a server of the last one was found down and is
 * to be restarted.  If that fails it is tried again when its entry, which was
 * parked, comes back.  After a conflict the whole tree is taken in hand before
 * the snapshot is.
 */
void
dgen_supervisor_settle(const char *address)
{
	static uint32 wait_event = 0;

	if (wait_event == 0)
		wait_event = WaitEventExtensionNew("DgenConflict");
	for (int i = 0; !settle_once(address, i > 0, i >= MAX_CONFLICTS); i++)
	{
		(void) WaitLatch(MyLatch, WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 (long) (pg_prng_uint32(&pg_global_prng_state) % Min(2 << Min(i, 6), 50)),
						 wait_event);
		CHECK_FOR_INTERRUPTS();
	}
}
