/*-------------------------------------------------------------------------
 *
 * wait.c
 *	  CALL dgen.wait_server(): until a server has stopped, runs, or is idle;
 *	  CALL dgen.wait_change(): until it has another version.
 *
 * A function that waits keeps its statement's snapshot, and so keeps VACUUM
 * from its work everywhere.  A procedure that is called outside of a
 * transaction block can commit: these do so before each look, takes a
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
#include "funcapi.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/wait_event.h"

#define RECHECK_MS 1000
#define POLL_MS 50

/* columns, from 1 */
#define SERVER_STATUS 2
#define MESSAGE_SERVER 9

PG_FUNCTION_INFO_V1(dgen_wait_server);
PG_FUNCTION_INFO_V1(dgen_wait_change);

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
check_can_commit(FunctionCallInfo fcinfo, const char *name, const char *hint)
{
	CallContext *call = fcinfo->context && IsA(fcinfo->context, CallContext) ?
		(CallContext *) fcinfo->context : NULL;

	if (call == NULL || call->atomic)
		ereport(ERROR,
				(errcode(ERRCODE_ACTIVE_SQL_TRANSACTION),
				 errmsg("dgen.%s() cannot run inside a transaction block", name),
				 errdetail("It would keep the transaction's snapshot for as long as it waits."),
				 errhint("%s", hint)));
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

/* Before a look: what is announced from here on ends the next nap.  True if it is announced. */
static bool
ready_to_look(const DgenAddress *address, bool announced)
{
	bool		told;

	/* which ends our entry among the waiters, too */
	SPI_commit();
	told = announced && !RecoveryInProgress() && dgen_waiter_add(DGEN_WAIT_STATE, address->hash);
	ResetLatch(MyLatch);
	CHECK_FOR_INTERRUPTS();
	return told;
}

/* Sleep until it is time to look again; false at the deadline. */
static bool
nap(bool told, TimestampTz deadline)
{
	static uint32 wait_event = 0;
	TimestampTz now = GetCurrentTimestamp();
	long		ms = TimestampDifferenceMilliseconds(now, deadline);

	if (now >= deadline)
		return false;
	if (wait_event == 0)
		wait_event = WaitEventExtensionNew("DgenWaitServer");
	InvalidateCatalogSnapshot();
	(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
					 Min(ms, told ? RECHECK_MS : POLL_MS), wait_event);
	return true;
}

/* False at the deadline.  SPI is connected. */
static bool
wait_for(const DgenAddress *address, Wanted wanted, TimestampTz deadline)
{
	for (;;)
	{
		bool		told = ready_to_look(address, wanted != WANT_IDLE);

		if (is_reached(address, wanted))
			return true;
		if (!nap(told, deadline))
			return false;
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

	check_can_commit(fcinfo, "wait_server", "CALL it by itself; in a handler, use dgen.monitor().");
	dgen_address_arg(fcinfo, 0, &address);
	wanted = wanted_argument(fcinfo, 1);
	if (dgen_arg_interval(fcinfo, 2, "timeout", true, &timeout))
		deadline = dgen_time_after(GetCurrentTimestamp(), timeout, "timeout");
	dgen_module_check_read(dgen_module_get(address.module, false));

	SPI_connect_ext(SPI_OPT_NONATOMIC);
	if (!wait_for(&address, wanted, deadline))
		ereport(ERROR,
				(errcode(ERRCODE_DGEN_TIMEOUT),
				 errmsg("server \"%s\" is not %s after %lld ms",
						address.text, wanted_names[wanted], (long long) (timeout / 1000)),
				 errhint("SELECT dgen.why(%s) tells what it waits for; or pass a longer timeout.",
						 quote_literal_cstr(address.text))));
	dgen_waiter_remove();
	SPI_finish();
	PG_RETURN_VOID();
}

/* Wait for another version than the known one; the state goes to the given context. */
static void
wait_for_change(const DgenAddress *address, int64 known, TimestampTz deadline,
				MemoryContext result, int64 *version, Jsonb **state)
{
	MemoryContext cxt = AllocSetContextCreate(CurrentMemoryContext, "dgen wait", ALLOCSET_SMALL_SIZES);
	bool		found = false;
	bool		told;

	do
	{
		MemoryContext old;

		told = ready_to_look(address, true);
		old = MemoryContextSwitchTo(cxt);
		/* the right may have been taken away meanwhile */
		dgen_module_check_read(dgen_module_get(address->module, false));
		found = dgen_state_read(address->text, known, true, version, state);
		MemoryContextSwitchTo(result);
		if (found && *state != NULL)
			*state = memcpy(palloc(VARSIZE(*state)), *state, VARSIZE(*state));
		MemoryContextSwitchTo(old);
		MemoryContextReset(cxt);
	} while (!found && nap(told, deadline));
}

/*
 * CALL wait_change(server text, INOUT version bigint, timeout interval,
 * INOUT state jsonb).  At the timeout the version is the one given.
 */
Datum
dgen_wait_change(PG_FUNCTION_ARGS)
{
	MemoryContext result = CurrentMemoryContext;
	TimestampTz deadline = DT_NOEND;
	int64		version = PG_ARGISNULL(1) ? 0 : PG_GETARG_INT64(1);
	Jsonb	   *state = NULL;
	DgenAddress address;
	TupleDesc	desc;
	Datum		values[2];
	bool		nulls[2];
	int64		timeout;

	check_can_commit(fcinfo, "wait_change", "CALL it by itself, or use dgen.wait_state().");
	dgen_address_arg(fcinfo, 0, &address);
	if (dgen_arg_interval(fcinfo, 2, "timeout", true, &timeout))
		deadline = dgen_time_after(GetCurrentTimestamp(), timeout, "timeout");
	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");

	SPI_connect_ext(SPI_OPT_NONATOMIC);
	wait_for_change(&address, version, deadline, result, &version, &state);
	dgen_waiter_remove();
	SPI_finish();

	values[0] = Int64GetDatum(version);
	nulls[0] = version == 0;
	values[1] = PointerGetDatum(state);
	nulls[1] = state == NULL;
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc), values, nulls)));
}
