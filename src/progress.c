/*-------------------------------------------------------------------------
 *
 * progress.c
 *	  dgen.progress: how far what takes long has come.
 *
 * Each process that can run SQL functions has an entry in shared memory, which
 * it alone writes and a spinlock protects.  What begins while something else is
 * in progress is part of that, and not shown.  An entry ends with the
 * (sub)transaction that it began in; that of a procedure, which commits on its
 * way, when it says so.  What a process that died has left is known by its pid.
 *
 *-------------------------------------------------------------------------
 */
#include "stat.h"

#include "funcapi.h"
#include "storage/proc.h"
#include "storage/procarray.h"
#include "storage/spin.h"

typedef struct Progress
{
	slock_t		lock;			/* protects what follows */
	int			pid;			/* 0: nothing; it may have died, too */
	Oid			database;
	DgenCommand command;
	int32		module_id;
	bool		dry_run;
	TimestampTz started_at;
	int64		total;			/* 0: not known, or not yet */
	int64		done;
	int64		failed;
} Progress;

static Progress *progress = NULL;	/* by process */

/* of this process */
static int	depth = 0;			/* commands within each other; the first one is shown */
static bool commits = false;	/* it does on its way */
static SubTransactionId began_in;

PG_FUNCTION_INFO_V1(dgen_progress_info);

Size
dgen_progress_size(void)
{
	return mul_size(MaxBackends, sizeof(Progress));
}

void
dgen_progress_init(void *place, bool found)
{
	progress = place;
	if (found)
		return;
	memset(progress, 0, dgen_progress_size());
	for (int i = 0; i < MaxBackends; i++)
		SpinLockInit(&progress[i].lock);
}

void
dgen_progress_begin(DgenCommand command, const DgenModule *module, bool commits_on_its_way)
{
	Progress   *mine = &progress[MyProcIndex];
	TimestampTz now = GetCurrentTimestamp();

	if (depth++ > 0)
		return;
	commits = commits_on_its_way;
	began_in = GetCurrentSubTransactionId();
	SpinLockAcquire(&mine->lock);
	mine->database = MyDatabaseId;
	mine->command = command;
	mine->module_id = module->id;
	mine->dry_run = false;
	mine->started_at = now;
	mine->total = mine->done = mine->failed = 0;
	mine->pid = MyProcPid;
	SpinLockRelease(&mine->lock);
}

void
dgen_progress_total(int64 total, bool dry_run)
{
	Progress   *mine = &progress[MyProcIndex];

	if (depth != 1)
		return;
	SpinLockAcquire(&mine->lock);
	mine->total = total;
	mine->dry_run = dry_run;
	SpinLockRelease(&mine->lock);
}

void
dgen_progress_step(bool failed)
{
	Progress   *mine = &progress[MyProcIndex];

	if (depth != 1)
		return;
	SpinLockAcquire(&mine->lock);
	mine->done++;
	if (failed)
		mine->failed++;
	/* what came while we were at it */
	if (mine->total > 0)
		mine->total = Max(mine->total, mine->done);
	SpinLockRelease(&mine->lock);
}

static void
forget(void)
{
	Progress   *mine = &progress[MyProcIndex];

	depth = 0;
	SpinLockAcquire(&mine->lock);
	mine->pid = 0;
	SpinLockRelease(&mine->lock);
}

void
dgen_progress_end(void)
{
	if (depth == 1)
		forget();
	else if (depth > 0)
		depth--;
}

/* An error ends it. */
void
dgen_progress_xact_callback(XactEvent event)
{
	if (depth > 0 && (event == XACT_EVENT_ABORT || (event == XACT_EVENT_COMMIT && !commits)))
		forget();
}

void
dgen_progress_subxact(SubXactEvent event, SubTransactionId my)
{
	if (depth > 0 && event == SUBXACT_EVENT_ABORT_SUB && began_in >= my)
		forget();
}

/* ---------------------------------------------------------------- the view */

#define INFO_NATTS 8

/* One row, if its module is the user's to see. */
static void
show_progress(ReturnSetInfo *rsinfo, Progress *p)
{
	static const char *const names[] = {"migrate", "requeue", "purge", "delete", "drop module", "refresh attributes"};
	DgenModule *module = dgen_module_by_id(p->module_id);
	Datum		values[INFO_NATTS];
	bool		nulls[INFO_NATTS] = {false};

	StaticAssertStmt(lengthof(names) == DGEN_NCOMMANDS, "every command has a name");
	if (module == NULL || (!dgen_may_monitor() && !dgen_module_may_read(module)))
		return;
	values[0] = Int32GetDatum(p->pid);
	values[1] = CStringGetTextDatum(names[p->command]);
	values[2] = CStringGetTextDatum(module->name);
	values[3] = Int64GetDatum(p->done);
	values[4] = Int64GetDatum(p->total);
	values[5] = Int64GetDatum(p->failed);
	values[6] = BoolGetDatum(p->dry_run);
	values[7] = TimestampTzGetDatum(p->started_at);
	tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
}

/* progress_info(): source of view dgen.progress */
Datum
dgen_progress_info(PG_FUNCTION_ARGS)
{
	InitMaterializedSRF(fcinfo, 0);
	if (progress == NULL)
		return (Datum) 0;
	for (int i = 0; i < MaxBackends; i++)
	{
		Progress	copy;

		SpinLockAcquire(&progress[i].lock);
		copy = progress[i];
		SpinLockRelease(&progress[i].lock);
		/* who was ended in the middle of it could not say so */
		if (copy.pid != 0 && copy.database == MyDatabaseId && BackendPidGetProc(copy.pid) != NULL)
			show_progress((ReturnSetInfo *) fcinfo->resultinfo, &copy);
	}
	return (Datum) 0;
}
