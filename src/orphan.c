/*-------------------------------------------------------------------------
 *
 * orphan.c
 *	  What is left in the ready queue of a role that was dropped.
 *
 * A module's functions go before their owner can, but one of its servers may
 * be queued still: no worker can be started for that as nobody, and the
 * launcher would try again and again.  The entries are stale: who has a module
 * with an owner is queued under that owner.
 *
 * Runs in the keeper, in a transaction.  Takes the pool's lock for each step.
 *
 *-------------------------------------------------------------------------
 */
#include "dgen.h"

#include "miscadmin.h"
#include "utils/syscache.h"

/* The pool's owner if there is no such role, else 0. */
static Oid
dropped_owner(DgenPool *pool)
{
	Oid			owner = InvalidOid;

	LWLockAcquire(&pool->lock, LW_SHARED);
	if (pool->used && pool->database == MyDatabaseId && pool->kind != DGEN_POOL_EXTERNAL &&
		pool->start_failures > 0)
		owner = pool->owner;
	LWLockRelease(&pool->lock);
	if (OidIsValid(owner) && SearchSysCacheExists1(AUTHOID, ObjectIdGetDatum(owner)))
		return InvalidOid;
	return owner;
}

/* Whoever waits is told; each call leaves the list before anything can fail. */
static void
refuse_calls(DgenTaken *taken)
{
	while (taken->calls != InvalidDsaPointer)
	{
		dsa_pointer self = taken->calls;
		DgenCall   *call = dsa_get_address(dgen_dsa(), self);
		DgenError	err = {ERRCODE_DGEN_NO_MODULE};

		taken->calls = call->next;
		if (dgen_call_begin(call))
		{
			err.message = psprintf("owner of server \"%s\" was dropped", call->data);
			err.detail = pstrdup("It did not happen: it waited for a worker of his, and the module is another's now, or gone.");
			err.hint = pstrdup("Call again.");
			dgen_call_put_error(call, &err);
			dgen_call_finish(call);
		}
		dgen_call_unref(call, self);
	}
	taken->last_call = InvalidDsaPointer;
}

/* Empty the queues of this database whose owner is no more; then nobody wants a worker for them. */
void
dgen_orphans_drop(void)
{
	for (int i = 0; i < DGEN_MAX_POOLS; i++)
	{
		DgenPool   *pool = &dgen_shared->pools[i];
		Oid			owner = dropped_owner(pool);
		DgenTaken	taken;
		int32		module_id;

		if (!OidIsValid(owner))
			continue;
		(void) dgen_ready_unpark(i, DT_NOEND);
		while (dgen_ready_take(i, true, 1, &taken, &module_id) > 0)
		{
			/* what is in hand keeps the pool whose it is: it may have become another's before */
			bool		stale = pool->owner == owner && pool->database == MyDatabaseId;

			if (stale)
				refuse_calls(&taken);
			dgen_ready_give_back(i, &taken, !stale, 0);
			if (!stale)
				break;
			CHECK_FOR_INTERRUPTS();
		}
	}
}
