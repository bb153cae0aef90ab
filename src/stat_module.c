/*-------------------------------------------------------------------------
 *
 * stat_module.c
 *	  dgen.stat_module: what the activations of each module were, and how long
 *	  they took.
 *
 * Shared memory has an entry for each of dgen.max_stat_modules modules of the
 * cluster, taken when there is first something to count, and freed when the
 * module, the extension or the database is dropped.  Modules beyond that are
 * not counted.  A restart of the server begins at zero.
 *
 * What an activation was is noted in memory, under the subtransaction that it
 * ran in, and added at the commit, a module at a time: after the transaction
 * has become durable, and before callers get their replies, so that they find
 * themselves counted.  What failed is added at once, since its transaction
 * ends without a commit.  A prepared transaction is not counted: who commits
 * it is another process, and knows nothing of it.
 *
 * Locks: the table's LWLock, for taking and freeing entries, then an entry's.
 * Nothing else is taken under these; the first may be taken under
 * dgen_shared->lock.
 *
 *-------------------------------------------------------------------------
 */
#include "stat.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_database.h"
#include "funcapi.h"
#include "module.h"
#include "utils/acl.h"
#include "utils/memutils.h"

#define KEEP_RECORDS 1024		/* room that is kept from one transaction to the next */

typedef enum SeriesId
{
	SERIES_HANDLER,
	SERIES_QUEUE,
	SERIES_COMMIT,
	NSERIES
} SeriesId;

typedef struct Entry
{
	LWLock		lock;			/* protects all */
	uint64		generation;		/* differs with each use of an entry; 0: free */
	Oid			database;
	int32		module_id;
	TimestampTz since;
	int64		counts[DGEN_NSTATS];
	DgenSeries		series[NSERIES];
} Entry;

typedef struct StatShared
{
	LWLock		lock;
	int			nentries;
	uint64		next_generation;
	pg_atomic_uint32 freed;		/* how often an entry was */
	Entry		entries[FLEXIBLE_ARRAY_MEMBER];
} StatShared;

/* what this transaction has done */
typedef struct Record
{
	SubTransactionId subid;
	int32		module_id;		/* 0: it has been added */
	DgenStat	what;
	const char *server;			/* or NULL; lives as long as the transaction, or the batch */
	int64		hash;			/* of it; 0: server is the name of a module */
	double		handler_ms;		/* -1: not known, as the next */
	double		queue_ms;
} Record;

/*
 * What a worker's batch has done: all of one module, and outside of
 * subtransactions.  It is added up at once, being most of what there is.
 */
typedef struct Tally
{
	int32		module_id;		/* 0: nothing */
	int64		counts[DGEN_NSTATS];
	DgenSum			handler;
	DgenSum			queue;
	int			nruns;
	struct TallyRun *last;		/* of runs, if there are any */
	struct TallyRun
	{
		const char *server;		/* lives as long as the batch; NULL: an effect's */
		int64		hash;
		int64		n;
		int64		ns;
	}			runs[DGEN_MAX_BATCH];	/* of one server each */
} Tally;

/* where the entry of a module was found */
typedef struct Known
{
	int32		module_id;
	int			entry;			/* DGEN_NONE: there was no room, */
	uint32		freed;			/* after so many were freed */
} Known;

static StatShared *shared = NULL;

static Record *records = NULL;	/* in TopMemoryContext */
static int	nrecords = 0;
static int	max_records = 0;
static instr_time commit_began;
static Known known[64];
static Tally tally;

PG_FUNCTION_INFO_V1(dgen_stat_module_info);
PG_FUNCTION_INFO_V1(dgen_stat_reset);
PG_FUNCTION_INFO_V1(dgen_may_monitor_module);

/* ---------------------------------------------------------------- the table */

Size
dgen_stat_size(void)
{
	return add_size(offsetof(StatShared, entries), mul_size(dgen_max_stat_modules, sizeof(Entry)));
}

void
dgen_stat_init(void *place, bool found)
{
	shared = place;
	if (found)
		return;
	memset(shared, 0, dgen_stat_size());
	LWLockInitialize(&shared->lock, dgen_shared->tranche);
	pg_atomic_init_u32(&shared->freed, 0);
	shared->nentries = dgen_max_stat_modules;
	for (int i = 0; i < shared->nentries; i++)
		LWLockInitialize(&shared->entries[i].lock, dgen_shared->tranche);
}

static bool
is_entry_of(const Entry *e, int32 module_id)
{
	return e->generation != 0 && e->module_id == module_id && e->database == MyDatabaseId;
}

/* Begin at zero; the entry is locked. */
static void
clear_entry(Entry *e)
{
	memset(e->counts, 0, sizeof(e->counts));
	memset(e->series, 0, sizeof(e->series));
	e->since = GetCurrentTimestamp();
}

/* The caller holds the table's lock, exclusively. */
static void
free_entry(Entry *e)
{
	LWLockAcquire(&e->lock, LW_EXCLUSIVE);
	e->generation = 0;
	LWLockRelease(&e->lock);
	pg_atomic_fetch_add_u32(&shared->freed, 1);
}

static int
take_entry(int32 module_id)
{
	int			place = DGEN_NONE;

	LWLockAcquire(&shared->lock, LW_EXCLUSIVE);
	for (int i = 0; i < shared->nentries; i++)
	{
		if (is_entry_of(&shared->entries[i], module_id))
		{
			place = i;
			break;
		}
		if (place == DGEN_NONE && shared->entries[i].generation == 0)
			place = i;
	}
	if (place != DGEN_NONE && shared->entries[place].generation == 0)
	{
		Entry	   *e = &shared->entries[place];

		LWLockAcquire(&e->lock, LW_EXCLUSIVE);
		clear_entry(e);
		e->database = MyDatabaseId;
		e->module_id = module_id;
		e->generation = ++shared->next_generation;
		LWLockRelease(&e->lock);
	}
	LWLockRelease(&shared->lock);
	return place;
}

/* The entry of a module, locked; NULL if there is no room for it.  Raises nothing. */
static Entry *
lock_entry(int32 module_id)
{
	Known	   *k = &known[(uint32) module_id % lengthof(known)];
	Entry	   *e;

	for (int i = 0; i < 2; i++)
	{
		uint32		freed = pg_atomic_read_u32(&shared->freed);

		if (i > 0 || k->module_id != module_id ||
			(k->entry == DGEN_NONE && k->freed != freed))
		{
			k->entry = take_entry(module_id);
			k->module_id = module_id;
			k->freed = freed;
		}
		if (k->entry == DGEN_NONE)
			return NULL;
		e = &shared->entries[k->entry];
		LWLockAcquire(&e->lock, LW_EXCLUSIVE);
		if (is_entry_of(e, module_id))
			return e;
		LWLockRelease(&e->lock);
	}
	/* dropped as soon as it was made */
	return NULL;
}

static void
forget_module(int32 module_id, const char *name)
{
	LWLockAcquire(&shared->lock, LW_EXCLUSIVE);
	for (int i = 0; i < shared->nentries; i++)
	{
		if (is_entry_of(&shared->entries[i], module_id))
			free_entry(&shared->entries[i]);
	}
	LWLockRelease(&shared->lock);
	dgen_stat_server_forget(MyDatabaseId, name);
}

/* The extension is new in a database, or gone from it, or the database is. */
void
dgen_stat_forget_database(Oid database)
{
	LWLockAcquire(&shared->lock, LW_EXCLUSIVE);
	for (int i = 0; i < shared->nentries; i++)
	{
		if (shared->entries[i].generation != 0 && shared->entries[i].database == database)
			free_entry(&shared->entries[i]);
	}
	LWLockRelease(&shared->lock);
	dgen_stat_server_forget(database, NULL);
}

/*
 * How long a message has waited.  An info may have been sent to come later, as
 * a timer always is, and nothing tells when it came due.
 */
static bool
has_queue_time(char kind)
{
	return kind != DGEN_KIND_INFO && kind != DGEN_KIND_TIMER && kind != DGEN_KIND_TIMEOUT;
}

double
dgen_stat_queued(char kind, TimestampTz sent_at, TimestampTz now)
{
	return has_queue_time(kind) ? Max(now - sent_at, 0) / 1000.0 : -1;
}

/* ---------------------------------------------------------------- records */

static Record *
add_record(int32 module_id, DgenStat what)
{
	Record	   *r;

	if (nrecords == max_records)
	{
		int			size = max_records == 0 ? KEEP_RECORDS : 2 * max_records;

		if (records == NULL)
			records = MemoryContextAlloc(TopMemoryContext, size * sizeof(Record));
		else
			records = repalloc_huge(records, (Size) size * sizeof(Record));
		max_records = size;
	}
	r = &records[nrecords++];
	r->subid = GetCurrentSubTransactionId();
	r->module_id = module_id;
	r->what = what;
	r->server = NULL;
	r->hash = 0;
	r->handler_ms = r->queue_ms = -1;
	return r;
}

static void
forget_records(void)
{
	nrecords = 0;
	if (max_records <= KEEP_RECORDS)
		return;
	pfree(records);
	records = NULL;
	max_records = 0;
}

static DgenStat
stat_of(char kind)
{
	switch (kind)
	{
		case DGEN_KIND_CALL:
			return DGEN_STAT_CALLS;
		case DGEN_KIND_REQUEST:
			return DGEN_STAT_REQUESTS;
		case DGEN_KIND_CAST:
			return DGEN_STAT_CASTS;
		case DGEN_KIND_INFO:
			return DGEN_STAT_INFOS;
		case DGEN_KIND_TIMER:
		case DGEN_KIND_TIMEOUT:
			return DGEN_STAT_TIMERS;
		case DGEN_KIND_EFFECT:
			return DGEN_STAT_EFFECTS;
		default:
			return DGEN_STAT_OTHERS;
	}
}

void
dgen_stat_handled(int32 module_id, char kind, const char *server, int64 hash,
				  double handler_ms, double queue_ms)
{
	Record	   *r = add_record(module_id, stat_of(kind));

	r->server = server;
	r->hash = hash;
	r->handler_ms = handler_ms;
	r->queue_ms = queue_ms;
}

void
dgen_stat_tally(int32 module_id, char kind, const DgenServer *server, int64 ns,
				TimestampTz sent_at, TimestampTz began)
{
	Tally	   *t = &tally;

	t->module_id = module_id;
	t->counts[stat_of(kind)]++;
	dgen_sum_add(&t->handler, ns);
	if (has_queue_time(kind))
		dgen_sum_add(&t->queue, Max(began - sent_at, 0) * 1000);
	if (t->nruns == 0 || t->last->hash != server->hash)
	{
		t->last = &t->runs[t->nruns++];
		t->last->server = kind == DGEN_KIND_EFFECT ? NULL : server->address;
		t->last->hash = server->hash;
		t->last->n = t->last->ns = 0;
	}
	t->last->n++;
	t->last->ns += ns;
}

static void
forget_tally(void)
{
	tally.module_id = 0;
	tally.nruns = 0;
	tally.handler.n = tally.handler.total = tally.queue.n = tally.queue.total = 0;
	tally.handler.squares = tally.queue.squares = 0;
	memset(tally.counts, 0, sizeof(tally.counts));
}

void
dgen_stat_note(int32 module_id, DgenStat what)
{
	(void) add_record(module_id, what);
}

void
dgen_stat_now(int32 module_id, DgenStat what)
{
	Entry	   *e = lock_entry(module_id);

	if (e == NULL)
		return;
	e->counts[what]++;
	LWLockRelease(&e->lock);
}

void
dgen_stat_forget_module(DgenModule *module)
{
	add_record(module->id, DGEN_STAT_FORGET)->server =
		MemoryContextStrdup(TopTransactionContext, module->name);
}

void
dgen_stat_forget_server(const DgenAddress *address)
{
	add_record(0, DGEN_STAT_FORGET)->hash = address->hash;
}

/* What is to come later has not failed. */
void
dgen_stat_failure(Batch *b)
{
	if (b->retry_after != NULL || b->overtakes)
		return;
	dgen_stat_now(b->module_id, DGEN_STAT_ERRORS);
	if (b->error->sqlerrcode == ERRCODE_DGEN_HANDLER_TIMEOUT)
		dgen_stat_now(b->module_id, DGEN_STAT_TIMEOUTS);
}

/* A name that lives as long as the records do. */
const char *
dgen_stat_server_name(const DgenServer *server)
{
	if (nrecords > 0 && records[nrecords - 1].server != NULL &&
		records[nrecords - 1].hash == server->hash)
		return records[nrecords - 1].server;
	return MemoryContextStrdup(TopTransactionContext, server->address);
}

/* ---------------------------------------------------------------- the commit */

static void
add_to_entry(Entry *e, Record *r)
{
	e->counts[r->what]++;
	if (r->handler_ms >= 0)
		dgen_series_add(&e->series[SERIES_HANDLER], r->handler_ms);
	if (r->queue_ms >= 0)
		dgen_series_add(&e->series[SERIES_QUEUE], r->queue_ms);
}

/* Add what a worker's batch has done.  Raises nothing. */
static void
apply_tally(double commit_ms)
{
	TimestampTz now = GetCurrentTransactionStopTimestamp();
	Entry	   *e = lock_entry(tally.module_id);

	if (e != NULL)
	{
		for (int i = 0; i < DGEN_STAT_ERRORS; i++)
			e->counts[i] += tally.counts[i];
		dgen_series_add_sum(&e->series[SERIES_HANDLER], &tally.handler);
		dgen_series_add_sum(&e->series[SERIES_QUEUE], &tally.queue);
		dgen_series_add(&e->series[SERIES_COMMIT], commit_ms);
		LWLockRelease(&e->lock);
	}
	for (int i = 0; i < tally.nruns; i++)
	{
		if (tally.runs[i].server != NULL)
			dgen_stat_server_add(tally.runs[i].server, tally.runs[i].hash, tally.runs[i].n,
								 tally.runs[i].ns / 1000000.0, now);
	}
}

/* Add all records of the module that record first is of.  Raises nothing. */
static void
apply_module(int first, double commit_ms)
{
	int32		module_id = records[first].module_id;
	Entry	   *e = lock_entry(module_id);
	bool		committed = false;
	const char *forget = NULL;

	for (int i = first; i < nrecords; i++)
	{
		Record	   *r = &records[i];

		if (r->module_id != module_id)
			continue;
		r->module_id = 0;
		if (r->what == DGEN_STAT_FORGET)
			forget = r->server;
		else if (e != NULL)
			add_to_entry(e, r);
		committed |= r->handler_ms >= 0;
	}
	if (e != NULL && committed && module_id != tally.module_id)
		dgen_series_add(&e->series[SERIES_COMMIT], commit_ms);
	if (e != NULL)
		LWLockRelease(&e->lock);
	if (forget != NULL)
		forget_module(module_id, forget);
}

/* What is of one server mostly comes together. */
static void
apply_servers(void)
{
	TimestampTz now = GetCurrentTransactionStopTimestamp();

	for (int i = 0; i < nrecords;)
	{
		Record	   *r = &records[i];
		double		ms = 0;
		int			n = 0;

		if (r->server == NULL || r->what == DGEN_STAT_FORGET)
		{
			if (r->hash != 0)
				dgen_stat_server_erase(r->hash);
			i++;
			continue;
		}
		for (; i < nrecords && records[i].hash == r->hash && records[i].what != DGEN_STAT_FORGET; i++, n++)
			ms += Max(records[i].handler_ms, 0);
		dgen_stat_server_add(r->server, r->hash, n, ms, now);
	}
}

static void
apply_records(void)
{
	instr_time	now;

	INSTR_TIME_SET_CURRENT(now);
	INSTR_TIME_SUBTRACT(now, commit_began);
	if (tally.module_id != 0)
		apply_tally(INSTR_TIME_GET_MILLISEC(now));
	for (int i = 0; i < nrecords; i++)
	{
		if (records[i].module_id != 0)
			apply_module(i, INSTR_TIME_GET_MILLISEC(now));
	}
	apply_servers();
	forget_tally();
	forget_records();
}

void
dgen_stat_xact_callback(XactEvent event)
{
	if (nrecords == 0 && tally.module_id == 0)
		return;
	switch (event)
	{
		case XACT_EVENT_PRE_COMMIT:
			INSTR_TIME_SET_CURRENT(commit_began);
			break;
		case XACT_EVENT_COMMIT:
			apply_records();
			break;
		case XACT_EVENT_ABORT:
		case XACT_EVENT_PREPARE:
			forget_tally();
			forget_records();
			break;
		default:
			break;
	}
}

/* What is of a subtransaction, or of those in it, stands at the end. */
void
dgen_stat_subxact(SubXactEvent event, SubTransactionId my, SubTransactionId parent)
{
	if (event == SUBXACT_EVENT_ABORT_SUB)
	{
		while (nrecords > 0 && records[nrecords - 1].subid >= my)
			nrecords--;
	}
	else if (event == SUBXACT_EVENT_COMMIT_SUB)
	{
		for (int i = nrecords - 1; i >= 0 && records[i].subid >= my; i--)
			records[i].subid = parent;
	}
}

/* ---------------------------------------------------------------- rights */

/* Figures are for those who may read all statistics as well. */
bool
dgen_may_monitor(void)
{
	return has_privs_of_role(GetUserId(), ROLE_PG_READ_ALL_STATS);
}

/* may_monitor(module text) -> boolean: may the current user see its figures; null: the database's? */
Datum
dgen_may_monitor_module(PG_FUNCTION_ARGS)
{
	DgenModule *module;

	if (dgen_may_monitor())
		PG_RETURN_BOOL(true);
	if (PG_ARGISNULL(0))
		PG_RETURN_BOOL(object_ownercheck(DatabaseRelationId, MyDatabaseId, GetUserId()));
	module = dgen_module_get(text_to_cstring(PG_GETARG_TEXT_PP(0)), true);
	PG_RETURN_BOOL(module != NULL && dgen_module_may_read(module));
}

/* ---------------------------------------------------------------- the view */

/* columns of stat_module_info, as sql/stat.sql has them */
enum
{
	INFO_MODULE,
	INFO_SUSPENDED_BY,
	INFO_COUNTS,
	INFO_COMMITS = INFO_COUNTS + DGEN_NSTATS,
	INFO_SERIES,
	INFO_RESET = INFO_SERIES + NSERIES * DGEN_SERIES_NATTS,
	INFO_NATTS
};

/* False: nothing was counted; *full: nor could it be. */
static bool
read_entry(int32 module_id, Entry *to, bool *full)
{
	bool		found = false;

	*full = true;
	LWLockAcquire(&shared->lock, LW_SHARED);
	for (int i = 0; i < shared->nentries && !found; i++)
	{
		Entry	   *e = &shared->entries[i];

		*full &= e->generation != 0;
		found = is_entry_of(e, module_id);
		if (!found)
			continue;
		LWLockAcquire(&e->lock, LW_SHARED);
		*to = *e;
		LWLockRelease(&e->lock);
	}
	LWLockRelease(&shared->lock);
	return found;
}

static void
show_module(ReturnSetInfo *rsinfo, DgenModule *module)
{
	Entry	   *e = palloc0(sizeof(Entry));
	Datum		values[INFO_NATTS];
	bool		nulls[INFO_NATTS] = {false};
	bool		full;
	bool		found = read_entry(module->id, e, &full);

	values[INFO_MODULE] = CStringGetTextDatum(module->name);
	nulls[INFO_SUSPENDED_BY] = !module->suspended;
	if (module->suspended)
		values[INFO_SUSPENDED_BY] = CStringGetTextDatum(module->suspended_by ? module->suspended_by : "");
	for (int i = 0; i < DGEN_NSTATS; i++)
		values[INFO_COUNTS + i] = Int64GetDatum(e->counts[i]);
	values[INFO_COMMITS] = Int64GetDatum(e->series[SERIES_COMMIT].n);
	for (int i = 0; i < NSERIES; i++)
		dgen_series_form(&e->series[i], &values[INFO_SERIES + i * DGEN_SERIES_NATTS],
					&nulls[INFO_SERIES + i * DGEN_SERIES_NATTS]);
	values[INFO_RESET] = TimestampTzGetDatum(e->since);
	nulls[INFO_RESET] = !found;
	/* null says that nobody knows, as opposed to none */
	for (int i = INFO_COUNTS; !found && full && i < INFO_NATTS; i++)
		nulls[i] = true;
	tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	pfree(e);
}

/* stat_module_info(): source of view dgen.stat_module */
Datum
dgen_stat_module_info(PG_FUNCTION_ARGS)
{
	ListCell   *lc;
	bool		all = dgen_may_monitor();

	InitMaterializedSRF(fcinfo, 0);
	if (dgen_shared == NULL)
		return (Datum) 0;
	foreach(lc, dgen_module_rows())
	{
		DgenModuleRow *row = lfirst(lc);
		DgenModule *module = dgen_module_get(TextDatumGetCString(row->values[MODULE_NAME]), true);

		CHECK_FOR_INTERRUPTS();
		if (module != NULL && (all || dgen_module_may_read(module)))
			show_module((ReturnSetInfo *) fcinfo->resultinfo, module);
	}
	return (Datum) 0;
}

/* ---------------------------------------------------------------- reset */

static void
reset_module(DgenModule *module)
{
	Entry	   *e = lock_entry(module->id);

	if (e != NULL)
	{
		clear_entry(e);
		LWLockRelease(&e->lock);
	}
	dgen_stat_server_forget(MyDatabaseId, module->name);
}

/*
 * stat_reset(module text) -> integer: how many modules begin at zero.  Like
 * pg_stat_reset() it is done at once.
 */
Datum
dgen_stat_reset(PG_FUNCTION_ARGS)
{
	ListCell   *lc;
	int			n = 0;

	if (dgen_shared == NULL)
		PG_RETURN_INT32(0);
	if (!PG_ARGISNULL(0))
	{
		DgenModule *module = dgen_module_get(text_to_cstring(PG_GETARG_TEXT_PP(0)), false);

		dgen_module_check_operate(module);
		reset_module(module);
		PG_RETURN_INT32(1);
	}
	foreach(lc, dgen_module_rows())
	{
		DgenModuleRow *row = lfirst(lc);
		DgenModule *module = dgen_module_get(TextDatumGetCString(row->values[MODULE_NAME]), true);

		CHECK_FOR_INTERRUPTS();
		if (module == NULL || !dgen_module_may_operate(module))
			continue;
		reset_module(module);
		n++;
	}
	PG_RETURN_INT32(n);
}
