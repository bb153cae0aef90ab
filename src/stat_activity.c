/*-------------------------------------------------------------------------
 *
 * stat_activity.c
 *	  dgen.stat_activity: the activations that run at this moment, in workers
 *	  and in the transactions of clients.
 *
 * Each process has an entry of its own, which it alone writes.  A counter is
 * odd while it does, as in the server's own view of its sessions: who reads
 * does so again if the counter was odd, or has moved.  An activation within
 * another one is not shown.  What a process that died has left is known by its
 * pid.
 *
 * No locks.
 *
 *-------------------------------------------------------------------------
 */
#include "stat.h"

#include "funcapi.h"
#include "mb/pg_wchar.h"
#include "storage/proc.h"

typedef struct Doing
{
	uint32		changes;		/* odd: it is being written */
	int			pid;			/* 0: nothing */
	Oid			database;
	int			callback;		/* DgenCallbackKind, or DGEN_BY_KIND */
	char		kind;			/* 0: none has begun */
	bool		committing;
	int			caller_pgprocno;	/* or DGEN_NONE */
	int64		message_id;		/* 0: it is none */
	TimestampTz since;
	char		server[DGEN_MAX_ADDRESS + 1];
} Doing;

static Doing *doings = NULL;	/* by process */

PG_FUNCTION_INFO_V1(dgen_activity_info);

/* for each process that can run SQL functions */
Size
dgen_stat_activity_size(void)
{
	return mul_size(MaxBackends, sizeof(Doing));
}

void
dgen_stat_activity_init(void *place, bool found)
{
	doings = place;
	if (!found)
		memset(doings, 0, dgen_stat_activity_size());
}

static Doing *
begin_write(void)
{
	Doing	   *d = &doings[MyProcIndex];

	d->changes++;
	pg_write_barrier();
	return d;
}

static void
end_write(Doing *d)
{
	pg_write_barrier();
	d->changes++;
}

void
dgen_activity_begin(const char *server, int callback)
{
	Doing	   *d = begin_write();

	d->pid = MyProcPid;
	d->database = MyDatabaseId;
	d->callback = callback;
	d->committing = false;
	d->kind = 0;
	strlcpy(d->server, server, sizeof(d->server));
	end_write(d);
}

void
dgen_activity_next(char kind, int64 message_id, int caller_pgprocno, TimestampTz since)
{
	Doing	   *d = begin_write();

	d->kind = kind;
	d->message_id = message_id;
	d->caller_pgprocno = caller_pgprocno;
	d->since = since;
	end_write(d);
}

void
dgen_activity_commit(void)
{
	Doing	   *d;

	if (!dgen_activity_any())
		return;
	d = begin_write();
	d->committing = true;
	end_write(d);
}

void
dgen_activity_end(void)
{
	Doing	   *d;

	if (!dgen_activity_any())
		return;
	d = begin_write();
	d->pid = 0;
	end_write(d);
}

bool
dgen_activity_any(void)
{
	return doings[MyProcIndex].pid == MyProcPid;
}

/* What runs: a callback, or an effect. */
const char *
dgen_activity_name(DgenCallbackKind callback)
{
	return callback == DGEN_EFFECT ? "effect" : dgen_callback_name(callback);
}

/* ---------------------------------------------------------------- the view */

#define INFO_NATTS 8

static bool
read_doing(int i, Doing *to)
{
	volatile Doing *d = &doings[i];
	uint32		before;
	uint32		after;

	do
	{
		CHECK_FOR_INTERRUPTS();
		before = d->changes;
		pg_read_barrier();
		if (d->pid != 0)
			memcpy(to, unvolatize(Doing *, d), sizeof(Doing));
		else
			to->pid = 0;
		pg_read_barrier();
		after = d->changes;
	} while (before != after || (before & 1) != 0);
	return to->pid != 0 && to->kind != 0 && to->database == MyDatabaseId && ProcGlobal->allProcs[i].pid == to->pid;
}

static int
pid_of(int pgprocno)
{
	return pgprocno == DGEN_NONE ? 0 : ProcGlobal->allProcs[pgprocno].pid;
}

/* pid, server, callback, kind, message_id, phase, since, caller_pid */
static void
show_doing(ReturnSetInfo *rsinfo, Doing *d, bool all)
{
	DgenModule *module = dgen_module_of(dgen_server_of(d->server));
	bool		may_read = module != NULL && dgen_module_may_read(module);
	int			caller = pid_of(d->caller_pgprocno);
	Datum		values[INFO_NATTS];
	bool		nulls[INFO_NATTS] = {false};

	if (!all && !may_read)
		return;
	values[0] = Int32GetDatum(d->pid);
	values[1] = CStringGetTextDatum(dgen_server_of(d->server));
	nulls[1] = !may_read;
	values[2] = CStringGetTextDatum(dgen_activity_name(d->callback != DGEN_BY_KIND ? d->callback :
													   dgen_message_callback(d->kind)));
	values[3] = CStringGetTextDatum(dgen_message_kind(d->kind));
	values[4] = Int64GetDatum(d->message_id);
	nulls[4] = d->message_id == 0;
	values[5] = CStringGetTextDatum(d->committing ? "committing" : "running");
	values[6] = TimestampTzGetDatum(d->since);
	values[7] = Int32GetDatum(caller);
	nulls[7] = caller == 0;
	tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
}

/* activity_info(): what view dgen.stat_activity knows of dgen */
Datum
dgen_activity_info(PG_FUNCTION_ARGS)
{
	bool		all = dgen_may_monitor();

	InitMaterializedSRF(fcinfo, 0);
	if (dgen_shared == NULL)
		return (Datum) 0;
	for (int i = 0; i < MaxBackends; i++)
	{
		Doing		copy;

		if (read_doing(i, &copy))
			show_doing((ReturnSetInfo *) fcinfo->resultinfo, &copy, all);
	}
	return (Datum) 0;
}
