/*-------------------------------------------------------------------------
 *
 * lock.c
 *	  Servers that are locked: work for one of their messages is done outside
 *	  of their handlers.
 *
 * A handler that says lock commits, and its message stays in its place.  The
 * server's row names that message, lock_id, and a token, lock_token, which
 * grows with each lock.  Until the lock ends, workers run messages of high
 * priority only (cut.c), and nobody may invoke the server.  Whoever does the
 * work (locked.c) hands in its result under the server's lease, and if the
 * row does not name the message and the token any more, it is refused.  So an
 * operator can break a lock at any time, and needs to never: what is left of a
 * lock after a crash is a row like any other, whose work is found again.
 *
 * All of this is done under the server's lease, and the row is the caller's to
 * write.
 *
 *-------------------------------------------------------------------------
 */
#include "audit.h"
#include "batch.h"

#include <signal.h>

#include "access/skey.h"
#include "utils/rel.h"

/* A handler has locked its server for one of its messages. */
void
dgen_lock_begin(DgenModule *module, DgenServer *server, int64 message_id)
{
	server->lock_id = message_id;
	server->lock_token++;
	server->locked_until = 0;
	server->dirty = true;
	dgen_ring_locked_at_end(module, server->hash);
}

void
dgen_lock_end(DgenServer *server)
{
	server->lock_id = 0;
	server->locked_until = 0;
	server->dirty = true;
}

/* Must a message of a locked server wait?  Those of high priority need not. */
bool
dgen_lock_holds(const DgenServer *server, const DgenMessage *msg)
{
	return server->lock_id != 0 &&
		(msg == NULL || msg->priority <= 0 || msg->id == server->lock_id);
}

/*
 * Have the work done, if nobody has been told, or he has forgotten: after a
 * crash there is nothing but the row.  Raises nothing.
 */
void
dgen_lock_wake(DgenModule *module, const DgenServer *server)
{
	if (!dgen_ready_known(MyDatabaseId, module->owner, DGEN_POOL_LONG, -module->id, server->hash))
		(void) dgen_ready_ring(MyDatabaseId, module->owner, DGEN_POOL_LONG, -module->id,
							   server->hash);
}

/* ---------------------------------------------------------------- who */

/* The long worker that has the server in hand; NULL: none. */
static DgenWorkerSlot *
find_worker(const char *address)
{
	for (int i = 0; i < dgen_shared->nslots; i++)
	{
		DgenWorkerSlot *slot = &dgen_shared->slots[i];
		int			pool = slot->pool;
		uint64		in_hand = pg_atomic_read_u64(&slot->current_call);

		if (slot->state == DGEN_WORKER_BUSY && slot->database == MyDatabaseId &&
			pool != DGEN_NONE && dgen_shared->pools[pool].kind == DGEN_POOL_LONG &&
			in_hand != 0 && (in_hand & DGEN_MESSAGE_IN_HAND) == 0 &&
			strcmp(slot->server, address) == 0)
			return slot;
	}
	return NULL;
}

/*
 * Cancel what a worker does for the server, if it does: a call by a cancel that
 * its caller has not asked for, all else as what failed.
 */
static bool
abort_in(DgenWorkerSlot *slot, const char *address)
{
	uint64		in_hand = pg_atomic_read_u64(&slot->current_call);
	bool		is_call = slot->pool != DGEN_NONE &&
		dgen_shared->pools[slot->pool].kind == DGEN_POOL_HANDLERS &&
		(in_hand & DGEN_MESSAGE_IN_HAND) == 0;

	if (slot->state != DGEN_WORKER_BUSY || slot->database != MyDatabaseId || slot->pid == 0 ||
		in_hand == 0 || strcmp(slot->server, address) != 0)
		return false;
	pg_atomic_write_u64(&slot->cancel_call, is_call ? in_hand | DGEN_ABORTED : in_hand);
	pg_memory_barrier();
	return kill(slot->pid, SIGUSR2) == 0;
}

/* 55000 for who cannot wait for the lock to end. */
void
dgen_lock_check_free(const DgenServer *server)
{
	DgenWorkerSlot *slot;
	pid_t		pid;

	if (server->lock_id == 0)
		return;
	slot = find_worker(server->address);
	pid = slot != NULL ? slot->pid : 0;
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("server \"%s\" is locked", server->address),
			 pid != 0 ?
			 errdetail("Process %d does the work for message %lld, since %s.", (int) pid,
					   (long long) server->lock_id, timestamptz_to_str(slot->busy_since)) :
			 errdetail("The work for message %lld waits for a worker, or for its next attempt.",
					   (long long) server->lock_id),
			 errhint("Use dgen.call() or dgen.cast(), which wait for the end of the lock; dgen.abort('%s') ends the work.",
					 server->address)));
}

/* ---------------------------------------------------------------- breaking */

/* Find the row of the message that a server is locked for. */
bool
dgen_lock_message(DgenTable *table, const DgenServer *server, DgenMessage *msg)
{
	ScanKeyData key;
	DgenScan   *scan;
	HeapTuple	tuple;

	dgen_key_int8(&key, 1, server->lock_id, BTEqualStrategyNumber);
	scan = dgen_scan_begin(table, DGEN_I_PKEY, NULL, 1, &key);
	tuple = dgen_scan_next(scan);
	if (tuple != NULL)
		dgen_message_deform(tuple, RelationGetDescr(table->rel), 0, msg);
	dgen_scan_end(scan);
	return tuple != NULL;
}

/* Is the server locked for this message?  As its row is now, without the lease. */
bool
dgen_lock_is_for(const char *server, int64 message_id)
{
	DgenTable  *table = dgen_table_open(DGEN_T_SERVER, AccessShareLock);
	bool		is_for = dgen_server_lock_id(table, server) == message_id;

	dgen_table_close(table);
	return is_for;
}

/*
 * End a lock before its work is done: the message is one that waits again.  A
 * call is not handled twice, so its caller is told, and its message goes.
 */
void
dgen_lock_break(DgenServer *server, const char *why)
{
	DgenTable  *table;
	DgenMessage msg;
	bool		known;

	if (server->lock_id == 0)
		return;
	table = dgen_table_open(DGEN_T_MESSAGE, RowExclusiveLock);
	if (dgen_lock_message(table, server, &msg) && msg.kind == DGEN_KIND_CALL &&
		dgen_table_delete_wait(table, &msg.tid))
	{
		DgenError	err = {ERRCODE_DGEN_STOPPED};

		err.message = psprintf("work for the call to server \"%s\" was given up", server->address);
		err.detail = psprintf("%s The handler has run; the work under its lock was not finished.", why);
		err.hint = psprintf("Look at the state of the server.");
		dgen_deferred_answer(msg.token, NULL, &err);
		dgen_attempt_delete(msg.id);
		dgen_length_add(msg.hash, -1, &known);
		CommandCounterIncrement();
	}
	dgen_table_close(table);
	dgen_lock_end(server);
}

/* ---------------------------------------------------------------- SQL */

static DgenModule *
operated_module(FunctionCallInfo fcinfo, DgenAddress *address)
{
	DgenModule *module;

	dgen_address_arg(fcinfo, 0, address);
	module = dgen_module_get(address->module, false);
	dgen_module_check_operate(module);
	return module;
}

PG_FUNCTION_INFO_V1(dgen_lock);

/* lock(): a directive */
Datum
dgen_lock(PG_FUNCTION_ARGS)
{
	dgen_scope_say(DGEN_SAID_LOCK, NULL, NULL, NULL);
	PG_RETURN_VOID();
}

PG_FUNCTION_INFO_V1(dgen_release);

/* release(server text) -> boolean: false if it is not locked */
Datum
dgen_release(PG_FUNCTION_ARGS)
{
	DgenAddress address;
	DgenModule *module = operated_module(fcinfo, &address);
	DgenAudit	audit = {.action = "release",.server = address.text};
	DgenTable  *table;
	DgenServer *server;
	bool		was_locked;

	dgen_check_writable();
	server = dgen_admin_open(module, &address, &table);
	was_locked = server->lock_id != 0;
	audit.message_id = server->lock_id;
	audit.incarnation = server->incarnation;
	dgen_lock_break(server, "An operator has released the server.");
	dgen_admin_close(table, server);
	if (was_locked && dgen_audit_wanted(false))
		dgen_audit_write(&audit);
	PG_RETURN_BOOL(was_locked);
}

PG_FUNCTION_INFO_V1(dgen_abort);

/*
 * abort(server text) -> boolean: cancels the activation, effect or locked work
 * of a server that is running now, by name: it may end, and the next one begin,
 * before the signal arrives.
 */
Datum
dgen_abort(PG_FUNCTION_ARGS)
{
	DgenAddress address;
	DgenAudit	audit = {.action = "abort",.server = address.text};
	bool		found = false;

	(void) operated_module(fcinfo, &address);
	dgen_check_writable();
	LWLockAcquire(&dgen_shared->lock, LW_SHARED);
	for (int i = 0; i < dgen_shared->nslots; i++)
		found |= abort_in(&dgen_shared->slots[i], address.text);
	LWLockRelease(&dgen_shared->lock);
	if (found && dgen_audit_wanted(false))
		dgen_audit_write(&audit);
	PG_RETURN_BOOL(found);
}
