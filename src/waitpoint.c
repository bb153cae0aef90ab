/*-------------------------------------------------------------------------
 *
 * waitpoint.c
 *	  Named points in the code where a test can stop a process.
 *
 * A test holds pg_advisory_lock(hashtext('name')) and sets
 * dgen.debug_waitpoint to that name; whoever reaches the point then waits for
 * the lock, where pg_locks shows it, and lets go of it at once.  Works on
 * release builds, unlike injection points, and costs a comparison with the
 * empty string when unset.
 *
 * Must not be reached while an LWLock or a spinlock is held.
 *
 *-------------------------------------------------------------------------
 */
#include "dgen.h"

#include "catalog/pg_collation.h"
#include "utils/fmgrprotos.h"

void
dgen_waitpoint_reach(const char *name)
{
	LOCKTAG		tag;
	int64		key;
	bool		session;

	if (dgen_waitpoint == NULL || dgen_waitpoint[0] == '\0')
		return;
	if (strcmp(dgen_waitpoint, name) != 0)
		return;

	/* the very tag of pg_advisory_lock(bigint) */
	key = DatumGetInt32(DirectFunctionCall1Coll(hashtext, C_COLLATION_OID,
												CStringGetTextDatum(name)));
	SET_LOCKTAG_ADVISORY(tag, MyDatabaseId, (uint32) (key >> 32), (uint32) key, 1);

	/* outside a transaction no resource owner could keep track of it */
	session = !IsTransactionState();
	(void) LockAcquire(&tag, ShareLock, session, false);
	LockRelease(&tag, ShareLock, session);
}
