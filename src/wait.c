/*-------------------------------------------------------------------------
 *
 * wait.c
 *	  CALL dgen.wait_server(): until a server has stopped, runs, or is idle.
 *
 * A function that waits keeps its statement's snapshot, and so keeps VACUUM
 * from its work everywhere.  A procedure that is called outside of a
 * transaction block can commit: this one does so before each look, takes a
 * snapshot for the look alone, and sleeps without any, holding no lock but
 * AccessShareLock on dgen's tables.  So it may wait for as long as one likes.
 *
 * It is woken as those are who wait for a state (waiter.c), by the commit that
 * begins or ends an incarnation, and looks again each second in any case.
 * Nobody tells when the last message of a mailbox has been handled; for that
 * it looks each 50 ms.
 *
 *-------------------------------------------------------------------------
 */
#include "dgen.h"

#include "access/htup_details.h"
#include "access/skey.h"
#include "access/xlog.h"
#include "executor/spi.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/wait_event.h"

#define RECHECK_MS 1000
#define POLL_MS 50

/* columns, from 1 */
#define SERVER_STATUS 2
#define MESSAGE_SERVER 9

PG_FUNCTION_INFO_V1(dgen_wait_server);

typedef enum Wanted
{
	WANT_STOPPED,
	WANT_RUNNING,
	WANT_IDLE
} Wanted;

static const char *const wanted_names[] = {"stopped", "running", "idle"};

static Wanted
wanted_argument(FunctionCallInfo fcinfo, int argno)
{
	char	   *word = dgen_arg_text(fcinfo, argno);

	for (int i = 0; word != NULL && i < lengthof(wanted_names); i++)
	{
		if (strcmp(word, wanted_names[i]) == 0)
			return (Wanted) i;
	}
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("invalid value for argument status"),
			 errdetail("Its value is \"%s\".", word ? word : "null"),
			 errhint("Allowed are 'stopped', 'running' and 'idle'.")));
}

static void
check_can_commit(FunctionCallInfo fcinfo)
{
	CallContext *call = fcinfo->context && IsA(fcinfo->context, CallContext) ?
		(CallContext *) fcinfo->context : NULL;

	if (call == NULL || call->atomic)
		ereport(ERROR,
				(errcode(ERRCODE_ACTIVE_SQL_TRANSACTION),
				 errmsg("dgen.wait_server() cannot run inside a transaction block"),
				 errdetail("It would keep the transaction's snapshot for as long as it waits."),
				 errhint("CALL it by itself; in a handler, use dgen.monitor().")));
}

/* Does an incarnation live? */
static bool
is_running(const DgenAddress *address)
{
	DgenTable  *table = dgen_table_open(DGEN_T_SERVER, AccessShareLock);
	Snapshot	snapshot = RegisterSnapshot(GetLatestSnapshot());
	bool		running = false;
	bool		isnull;
	ScanKeyData key;
	DgenScan   *scan;
	HeapTuple	tuple;

	dgen_key_text(&key, 1, address->text);
	scan = dgen_scan_begin(table, DGEN_I_PKEY, snapshot, 1, &key);
	tuple = dgen_scan_next(scan);
	if (tuple != NULL)
		running = DatumGetChar(heap_getattr(tuple, SERVER_STATUS, RelationGetDescr(table->rel),
											&isnull)) == 'a';
	dgen_scan_end(scan);
	UnregisterSnapshot(snapshot);
	dgen_table_close(table);
	return running;
}

/* Does a message wait for it? */
static bool
has_mail(const DgenAddress *address)
{
	DgenTable  *table = dgen_table_open(DGEN_T_MESSAGE, AccessShareLock);
	Snapshot	snapshot = RegisterSnapshot(GetLatestSnapshot());
	bool		found = false;
	ScanKeyData key;
	DgenScan   *scan;
	HeapTuple	tuple;

	dgen_key_int8(&key, 1, address->hash, BTEqualStrategyNumber);
	scan = dgen_scan_begin(table, DGEN_I_MESSAGE_MAILBOX, snapshot, 1, &key);
	while (!found && (tuple = dgen_scan_next(scan)) != NULL)
	{
		bool		isnull;

		CHECK_FOR_INTERRUPTS();
		/* another server may have the same hash */
		found = strcmp(TextDatumGetCString(heap_getattr(tuple, MESSAGE_SERVER,
														RelationGetDescr(table->rel), &isnull)),
					   address->text) == 0;
	}
	dgen_scan_end(scan);
	UnregisterSnapshot(snapshot);
	dgen_table_close(table);
	return found;
}

static bool
is_reached(const DgenAddress *address, Wanted wanted)
{
	if (wanted == WANT_IDLE)
		return !has_mail(address);
	return is_running(address) == (wanted == WANT_RUNNING);
}

/* Look, and sleep between looks; false at the deadline.  SPI is connected. */
static bool
wait_for(const DgenAddress *address, Wanted wanted, TimestampTz deadline)
{
	for (;;)
	{
		bool		told;
		long		ms;

		/* which ends our entry among the waiters, too */
		SPI_commit();
		told = wanted != WANT_IDLE && !RecoveryInProgress() &&
			dgen_waiter_add(DGEN_WAIT_STATE, address->hash);
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
		if (is_reached(address, wanted))
			return true;
		if (GetCurrentTimestamp() >= deadline)
			return false;
		ms = TimestampDifferenceMilliseconds(GetCurrentTimestamp(), deadline);
		InvalidateCatalogSnapshot();
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 Min(ms, told ? RECHECK_MS : POLL_MS), PG_WAIT_EXTENSION);
	}
}

/* CALL wait_server(server text, status text, timeout interval) */
Datum
dgen_wait_server(PG_FUNCTION_ARGS)
{
	TimestampTz deadline = DT_NOEND;
	DgenAddress address;
	Wanted		wanted;
	int64		timeout;

	check_can_commit(fcinfo);
	dgen_address_arg(fcinfo, 0, &address);
	wanted = wanted_argument(fcinfo, 1);
	if (dgen_arg_interval(fcinfo, 2, "timeout", true, &timeout))
		deadline = GetCurrentTimestamp() + timeout;
	dgen_module_check_read(dgen_module_get(address.module, false));

	SPI_connect_ext(SPI_OPT_NONATOMIC);
	if (!wait_for(&address, wanted, deadline))
		ereport(ERROR,
				(errcode(ERRCODE_DGEN_TIMEOUT),
				 errmsg("server \"%s\" is not %s after %lld ms",
						address.text, wanted_names[wanted], (long long) (timeout / 1000)),
				 errhint("See dgen.servers and dgen.messages for what it is doing, or pass a longer timeout.")));
	dgen_waiter_remove();
	SPI_finish();
	PG_RETURN_VOID();
}
