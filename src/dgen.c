/*-------------------------------------------------------------------------
 *
 * dgen.c
 *	  Entry point of the library: settings, hooks and callbacks.
 *
 * dgen must be preloaded: it has shared memory and background workers.  The
 * callbacks here run in every process that has a database; they pass the
 * ends of transactions on to the parts that keep something until then, and in
 * an order that matters: what was sent is rung last, after replies are shown,
 * so that a caller never waits longer for the doorbells of others.
 *
 *-------------------------------------------------------------------------
 */
#include "stat.h"

#include "access/parallel.h"
#include "executor/executor.h"
#include "utils/guc.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

PG_MODULE_MAGIC;

static ExecutorStart_hook_type prev_ExecutorStart = NULL;

static void
xact_callback(XactEvent event, void *arg)
{
	if (event == XACT_EVENT_ABORT || event == XACT_EVENT_PREPARE)
	{
		dgen_call_at_abort();
		dgen_waiter_at_abort();
	}
	/* before anybody gets a reply, and so can look */
	dgen_statistics_xact_callback(event);
	dgen_stat_xact_callback(event);
	dgen_progress_xact_callback(event);
	dgen_deferred_xact_callback(event);
	dgen_external_xact_callback(event);
	dgen_waiter_xact_callback(event);
	dgen_announce_xact_callback(event);
	dgen_mailbox_xact_callback(event);
	dgen_admin_xact_callback(event);
	dgen_lifecycle_xact(event);
	if (event == XACT_EVENT_COMMIT || event == XACT_EVENT_ABORT || event == XACT_EVENT_PREPARE)
	{
		dgen_scope_reset();
		dgen_server_xact_end();
	}
}

/*
 * What others are told comes last: behind the invalidations, which a commit
 * sends after its callbacks, the leases, and the moment from which SSI counts
 * the transaction as committed.  Before that, who has seen it, and acts on it,
 * could be missed as somebody that comes after it.
 */
static void
release_callback(ResourceReleasePhase phase, bool isCommit, bool isTopLevel, void *arg)
{
	/* owners below the transaction's come first, before the leases go */
	if (phase != RESOURCE_RELEASE_LOCKS || !isTopLevel ||
		CurrentResourceOwner != TopTransactionResourceOwner)
		return;
	if (isCommit)
	{
		dgen_batch_answer_callers();
		dgen_deferred_answer_callers();
		dgen_waiter_wake_noticed();
	}
	dgen_mailbox_ring();
	dgen_admin_ring();
}

static void
subxact_callback(SubXactEvent event, SubTransactionId my, SubTransactionId parent, void *arg)
{
	if (event == SUBXACT_EVENT_ABORT_SUB)
	{
		dgen_call_at_abort();
		dgen_waiter_at_abort();
	}
	dgen_scope_subxact(event, my, parent);
	dgen_server_subxact(event, my, parent);
	dgen_deferred_subxact(event, my, parent);
	dgen_external_subxact(event, my, parent);
	dgen_mailbox_subxact(event, my, parent);
	dgen_announce_subxact(event, my, parent);
	dgen_admin_subxact(event, my, parent);
	dgen_statistics_subxact(event, my, parent);
	dgen_stat_subxact(event, my, parent);
	dgen_progress_subxact(event, my);
}

/* Does a plan read dgen.server? */
static bool
reads_servers(List *rtable)
{
	Oid			servers = dgen_table_oid(DGEN_T_SERVER);
	ListCell   *lc;

	foreach(lc, rtable)
	{
		RangeTblEntry *rte = lfirst(lc);

		if (rte->rtekind == RTE_RELATION && rte->relid == servers)
			return true;
	}
	return false;
}

/*
 * A handler's query that looks at servers must see what earlier activations
 * of its batch have made of them: have that written, and let the query's
 * snapshot see it.
 */
static void
executor_start(QueryDesc *queryDesc, int eflags)
{
	if (dgen_batch_unflushed() && reads_servers(queryDesc->plannedstmt->rtable))
	{
		dgen_batch_flush();
		if (queryDesc->snapshot != NULL && IsMVCCSnapshot(queryDesc->snapshot))
			queryDesc->snapshot->curcid = GetCurrentCommandId(false);
	}
	if (prev_ExecutorStart)
		prev_ExecutorStart(queryDesc, eflags);
	else
		standard_ExecutorStart(queryDesc, eflags);
}

void
_PG_init(void)
{
	dgen_guc_define();
	if (!process_shared_preload_libraries_in_progress)
	{
		/* pg_upgrade and parallel workers of a preloaded server pass */
		if (IsBinaryUpgrade || dgen_shared != NULL)
			return;
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("dgen must be loaded via \"shared_preload_libraries\""),
				 errhint("Add dgen to shared_preload_libraries in postgresql.conf, and restart the server.")));
	}
	if (IsBinaryUpgrade)
		return;

	dgen_shmem_install();
	dgen_lifecycle_install();
	dgen_guard_install();
	dgen_launcher_register();
	RegisterXactCallback(xact_callback, NULL);
	RegisterSubXactCallback(subxact_callback, NULL);
	RegisterResourceReleaseCallback(release_callback, NULL);
	prev_ExecutorStart = ExecutorStart_hook;
	ExecutorStart_hook = executor_start;
}
