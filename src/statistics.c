/*-------------------------------------------------------------------------
 *
 * statistics.c
 *	  dgen.statistics(): what a server has handled since it was asked to count.
 *
 * A fixed table in shared memory has a slot for each server that is counted.
 * While there is none, an activation pays for a look at one word.  While there
 * are some, the others pay for a walk over hashes, without a lock.
 *
 * What an activation did is noted in memory, under the subtransaction that it
 * ran in, and added at the commit: before callers get their replies, so that
 * they find themselves counted, and while the server's lease is still held.
 * Errors are added at once, since their transactions end without a commit; but
 * not those of an external module's work, which end with one.
 * Turning it on or off is neither: like pg_stat_reset(), it is done when the
 * function returns.  That a server or module goes forgets its slots at the
 * commit.
 *
 * Locks: the table's LWLock, under which nothing else is taken.  Who turns it
 * on holds dgen_module_lock(), so that no slot appears while its module goes.
 *
 *-------------------------------------------------------------------------
 */
#include "batch.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "catalog/pg_database.h"
#include "funcapi.h"
#include "module.h"
#include "portability/instr_time.h"
#include "utils/memutils.h"
#include "utils/syscache.h"

#define NSLOTS 1024

typedef enum MessageClass
{
	CLASS_CALL,					/* requests, too */
	CLASS_CAST,
	CLASS_INFO,
	CLASS_OTHER,				/* timers, timeouts, DOWN, replies, continue */
	NCLASSES
} MessageClass;

typedef struct Counts
{
	int64		in[NCLASSES];
	int64		out;
	int64		errors;
	double		total_ms;
	double		max_ms;
	TimestampTz last;			/* 0: never */
} Counts;

typedef struct Slot
{
	uint64		generation;		/* differs with each use of a slot; 0: free */
	Oid			database;
	TimestampTz since;
	Counts		counts;
	char		server[DGEN_MAX_ADDRESS + 1];
} Slot;

typedef struct StatisticsShared
{
	LWLock		lock;			/* protects all; count and hashes are read without */
	pg_atomic_uint32 count;		/* slots in use */
	pg_atomic_uint64 hashes[NSLOTS];	/* of the slots' addresses; 0: free */
	uint64		next_generation;
	Slot		slots[NSLOTS];
} StatisticsShared;

/* what this transaction has done to one slot; forget: it goes with the commit */
typedef struct Note
{
	struct Note *next;
	SubTransactionId subid;
	int			slot;
	uint64		generation;
	bool		forget;
	Counts		counts;
} Note;

static StatisticsShared *shared = NULL;
static Note *notes = NULL;		/* in TopTransactionContext */

pg_atomic_uint32 *dgen_statistics_count = NULL;

PG_FUNCTION_INFO_V1(dgen_statistics);

/* ---------------------------------------------------------------- the table */

Size
dgen_statistics_size(void)
{
	return sizeof(StatisticsShared);
}

void
dgen_statistics_init(void *place, bool found)
{
	shared = place;
	dgen_statistics_count = &shared->count;
	if (found)
		return;
	memset(shared, 0, sizeof(StatisticsShared));
	LWLockInitialize(&shared->lock, dgen_shared->tranche);
	pg_atomic_init_u32(&shared->count, 0);
	for (int i = 0; i < NSLOTS; i++)
		pg_atomic_init_u64(&shared->hashes[i], 0);
}

/* The caller holds the lock, in any mode. */
static bool
is_slot_of(int slot, const char *server, int64 hash)
{
	return (int64) pg_atomic_read_u64(&shared->hashes[slot]) == hash &&
		shared->slots[slot].database == MyDatabaseId &&
		strcmp(shared->slots[slot].server, server) == 0;
}

/* The slot of a server, or DGEN_NONE; the caller holds the lock. */
static int
find_slot(const char *server, int64 hash)
{
	for (int i = 0; i < NSLOTS; i++)
	{
		if (is_slot_of(i, server, hash))
			return i;
	}
	return DGEN_NONE;
}

/* The same without the lock; what is found may be gone by then, or be another's. */
static int
look_up(const char *server, int64 hash, uint64 *generation)
{
	int			slot = DGEN_NONE;

	if (!dgen_statistics_any())
		return DGEN_NONE;
	for (int i = 0; i < NSLOTS && slot == DGEN_NONE; i++)
	{
		if ((int64) pg_atomic_read_u64(&shared->hashes[i]) != hash)
			continue;
		LWLockAcquire(&shared->lock, LW_SHARED);
		if (is_slot_of(i, server, hash))
		{
			slot = i;
			*generation = shared->slots[i].generation;
		}
		LWLockRelease(&shared->lock);
	}
	return slot;
}

/* The caller holds the lock, exclusively, as in the next one. */
static void
free_slot(int slot)
{
	if (shared->slots[slot].generation == 0)
		return;
	shared->slots[slot].generation = 0;
	pg_atomic_write_u64(&shared->hashes[slot], 0);
	pg_atomic_fetch_sub_u32(&shared->count, 1);
}

static int
take_slot(const DgenAddress *address)
{
	for (int i = 0; i < NSLOTS; i++)
	{
		Slot	   *slot = &shared->slots[i];

		if (slot->generation != 0)
			continue;
		memset(slot, 0, sizeof(Slot));
		slot->generation = ++shared->next_generation;
		slot->database = MyDatabaseId;
		slot->since = GetCurrentTimestamp();
		strlcpy(slot->server, address->text, sizeof(slot->server));
		pg_atomic_write_u64(&shared->hashes[i], (uint64) address->hash);
		pg_atomic_fetch_add_u32(&shared->count, 1);
		return i;
	}
	return DGEN_NONE;
}

/* The extension is new here: what is left is of one that was dropped, or of a database that was. */
void
dgen_statistics_forget_all(void)
{
	LWLockAcquire(&shared->lock, LW_EXCLUSIVE);
	for (int i = 0; i < NSLOTS; i++)
	{
		if (shared->slots[i].database == MyDatabaseId)
			free_slot(i);
	}
	LWLockRelease(&shared->lock);
}

/* Free what is of databases that are gone; the table is full. */
static void
forget_databases(void)
{
	for (int i = 0; i < NSLOTS; i++)
	{
		uint64		generation;
		Oid			database;

		LWLockAcquire(&shared->lock, LW_SHARED);
		generation = shared->slots[i].generation;
		database = shared->slots[i].database;
		LWLockRelease(&shared->lock);
		if (generation == 0 || database == MyDatabaseId ||
			SearchSysCacheExists1(DATABASEOID, ObjectIdGetDatum(database)))
			continue;
		LWLockAcquire(&shared->lock, LW_EXCLUSIVE);
		if (shared->slots[i].generation == generation)
			free_slot(i);
		LWLockRelease(&shared->lock);
	}
}

/* ---------------------------------------------------------------- notes */

static Note *
note_of(int slot, uint64 generation)
{
	SubTransactionId subid = GetCurrentSubTransactionId();
	Note	   *note;

	for (note = notes; note != NULL; note = note->next)
	{
		if (note->slot == slot && note->generation == generation && note->subid == subid)
			return note;
	}
	note = MemoryContextAllocZero(TopTransactionContext, sizeof(Note));
	note->slot = slot;
	note->generation = generation;
	note->subid = subid;
	note->next = notes;
	notes = note;
	return note;
}

static void
add_counts(Counts *to, const Counts *from)
{
	for (int i = 0; i < NCLASSES; i++)
		to->in[i] += from->in[i];
	to->out += from->out;
	to->errors += from->errors;
	to->total_ms += from->total_ms;
	to->max_ms = Max(to->max_ms, from->max_ms);
	to->last = Max(to->last, from->last);
}

/* Raises nothing, and allocates nothing. */
static void
apply_notes(void)
{
	LWLockAcquire(&shared->lock, LW_EXCLUSIVE);
	for (Note *note = notes; note != NULL; note = note->next)
	{
		Slot	   *slot = &shared->slots[note->slot];

		if (slot->generation != note->generation)
			continue;
		add_counts(&slot->counts, &note->counts);
		if (note->forget)
			free_slot(note->slot);
	}
	LWLockRelease(&shared->lock);
}

void
dgen_statistics_xact_callback(XactEvent event)
{
	if (notes == NULL)
		return;
	switch (event)
	{
		case XACT_EVENT_COMMIT:
			apply_notes();
			notes = NULL;
			break;
		case XACT_EVENT_ABORT:
		case XACT_EVENT_PREPARE:
			/* who commits what was prepared is another process, and knows nothing of it */
			notes = NULL;
			break;
		default:
			break;
	}
}

void
dgen_statistics_subxact(SubXactEvent event, SubTransactionId my, SubTransactionId parent)
{
	if (event != SUBXACT_EVENT_COMMIT_SUB && event != SUBXACT_EVENT_ABORT_SUB)
		return;
	for (Note **link = &notes; *link != NULL;)
	{
		Note	   *note = *link;

		if (note->subid == my && event == SUBXACT_EVENT_ABORT_SUB)
		{
			*link = note->next;
			continue;
		}
		if (note->subid == my)
			note->subid = parent;
		link = &note->next;
	}
}

/* ---------------------------------------------------------------- counting */

static MessageClass
class_of(const char *kind)
{
	if (strcmp(kind, "call") == 0 || strcmp(kind, "request") == 0)
		return CLASS_CALL;
	if (strcmp(kind, "cast") == 0)
		return CLASS_CAST;
	return strcmp(kind, "info") == 0 ? CLASS_INFO : CLASS_OTHER;
}

static void
count_error(int slot, uint64 generation)
{
	LWLockAcquire(&shared->lock, LW_EXCLUSIVE);
	if (shared->slots[slot].generation == generation)
	{
		shared->slots[slot].counts.errors++;
		shared->slots[slot].counts.last = GetCurrentTimestamp();
	}
	LWLockRelease(&shared->lock);
}

/*
 * Run an activation in the transaction of a client, where nobody else gets to
 * see what it raises.  A conflict is no error of the server.
 */
static void
run_for_client(DgenActivation *act, void (*run) (DgenActivation *), int slot, uint64 generation)
{
	PG_TRY();
	{
		run(act);
	}
	PG_CATCH();
	{
		if (dgen_error_fault(geterrcode()) != DGEN_FAULT_CONFLICT)
			count_error(slot, generation);
		PG_RE_THROW();
	}
	PG_END_TRY();
	if (act->outcome == DGEN_REJECTED)
		count_error(slot, generation);
}

/*
 * Run an activation, and count it if its server is counted.  In a worker the
 * batch finds out whose an error is.  A message that was postponed is counted
 * when it is done.
 */
void
dgen_statistics_activation(DgenActivation *act, void (*run) (DgenActivation *))
{
	uint64		generation = 0;
	int			slot = look_up(act->server->address, act->server->hash, &generation);
	instr_time	begin;
	instr_time	end;
	Note	   *note;

	if (slot == DGEN_NONE)
	{
		run(act);
		return;
	}
	INSTR_TIME_SET_CURRENT(begin);
	if (dgen_is_worker())
		run(act);
	else
		run_for_client(act, run, slot, generation);
	if (act->outcome != DGEN_HANDLED || act->postponed)
		return;
	INSTR_TIME_SET_CURRENT(end);
	INSTR_TIME_SUBTRACT(end, begin);
	note = note_of(slot, generation);
	note->counts.in[class_of(act->kind)]++;
	note->counts.total_ms += INSTR_TIME_GET_MILLISEC(end);
	note->counts.max_ms = Max(note->counts.max_ms, INSTR_TIME_GET_MILLISEC(end));
	note->counts.last = GetCurrentTimestamp();
}

/* Messages that a callback sent, as opposed to its replies and what the engine sends for it. */
void
dgen_statistics_sent(const DgenMessage *msgs, int n)
{
	uint64		generation = 0;
	int			sent = 0;
	int			slot;

	for (int i = 0; i < n; i++)
	{
		if (msgs[i].kind == DGEN_KIND_CAST || msgs[i].kind == DGEN_KIND_INFO ||
			msgs[i].kind == DGEN_KIND_REQUEST || msgs[i].kind == DGEN_KIND_TIMER)
			sent++;
	}
	if (sent == 0 || dgen_scope->server == NULL)
		return;
	slot = look_up(dgen_scope->server, dgen_scope->hash, &generation);
	if (slot != DGEN_NONE)
		note_of(slot, generation)->counts.out += sent;
}

/* A message or a call has failed alone, in a worker. */
void
dgen_statistics_failure(Batch *b, BatchItem *item)
{
	const char *server;
	uint64		generation = 0;
	int			slot;

	/* what is to come later has not failed; an effect is not the server's message */
	if (!dgen_statistics_any() || b->retry_after != NULL || b->overtakes || b->effects)
		return;
	server = item->msg != NULL ? item->msg->server : b->calls[item->call].call->data;
	slot = look_up(server, dgen_address_hash(server, strlen(server)), &generation);
	if (slot != DGEN_NONE)
		count_error(slot, generation);
}

/* A client handed in what it did for a message, or that it failed; how long it took is its own. */
void
dgen_statistics_external(const DgenServer *server, const DgenMessage *msg, bool failed)
{
	uint64		generation = 0;
	int			slot = look_up(server->address, server->hash, &generation);
	Note	   *note;

	if (slot == DGEN_NONE)
		return;
	note = note_of(slot, generation);
	note->counts.in[class_of(dgen_message_kind(msg->kind))] += failed ? 0 : 1;
	note->counts.errors += failed ? 1 : 0;
	note->counts.last = GetCurrentTimestamp();
}

/* ---------------------------------------------------------------- forgetting */

/* Slots of one server, or (NULL) of all of a module, go when this transaction commits. */
static void
forget_at_commit(const char *server, const char *module)
{
	Size		len = module ? strlen(module) : 0;

	if (!dgen_statistics_any())
		return;
	for (int i = 0; i < NSLOTS; i++)
	{
		Slot	   *slot = &shared->slots[i];
		uint64		generation;
		bool		its;

		LWLockAcquire(&shared->lock, LW_SHARED);
		generation = slot->generation;
		its = generation != 0 && slot->database == MyDatabaseId &&
			(server != NULL ? strcmp(slot->server, server) == 0 :
			 strncmp(slot->server, module, len) == 0 && slot->server[len] == '/');
		LWLockRelease(&shared->lock);
		if (its)
			note_of(i, generation)->forget = true;
	}
}

void
dgen_statistics_erase(const DgenAddress *address)
{
	forget_at_commit(address->text, NULL);
}

void
dgen_statistics_drop(const char *module)
{
	forget_at_commit(NULL, module);
}

/* ---------------------------------------------------------------- the function */

static bool
read_slot(const DgenAddress *address, Slot *to)
{
	int			slot;

	LWLockAcquire(&shared->lock, LW_SHARED);
	slot = find_slot(address->text, address->hash);
	if (slot != DGEN_NONE)
		*to = shared->slots[slot];
	LWLockRelease(&shared->lock);
	return slot != DGEN_NONE;
}

/* Counts from now on, unless it does so already. */
static void
turn_on(const DgenAddress *address)
{
	int			slot = DGEN_NONE;

	for (int i = 0; i < 2 && slot == DGEN_NONE; i++)
	{
		if (i > 0)
			forget_databases();
		LWLockAcquire(&shared->lock, LW_EXCLUSIVE);
		slot = find_slot(address->text, address->hash);
		if (slot == DGEN_NONE)
			slot = take_slot(address);
		LWLockRelease(&shared->lock);
	}
	if (slot == DGEN_NONE)
		ereport(ERROR,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("too many servers are counted"),
				 errdetail("%d are, in all databases.", NSLOTS),
				 errhint("End it for another server by dgen.statistics(server, false), or use dgen.trace().")));
}

/* True if it was on; *last: the counts that it ends with. */
static bool
turn_off(const DgenAddress *address, Slot *last)
{
	int			slot;

	LWLockAcquire(&shared->lock, LW_EXCLUSIVE);
	slot = find_slot(address->text, address->hash);
	if (slot != DGEN_NONE)
	{
		*last = shared->slots[slot];
		free_slot(slot);
	}
	LWLockRelease(&shared->lock);
	return slot != DGEN_NONE;
}

/* Columns of the result, as sql/statistics.sql has them. */
static Datum
form_result(FunctionCallInfo fcinfo, const Slot *slot)
{
	const Counts *counts = &slot->counts;
	Datum		values[10];
	bool		nulls[10] = {false};
	TupleDesc	desc;
	int64		in = 0;

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	for (int i = 0; i < NCLASSES; i++)
		in += counts->in[i];
	values[0] = TimestampTzGetDatum(slot->since);
	values[1] = TimestampTzGetDatum(counts->last);
	nulls[1] = counts->last == 0;
	values[2] = Int64GetDatum(in);
	values[3] = Int64GetDatum(counts->in[CLASS_CALL]);
	values[4] = Int64GetDatum(counts->in[CLASS_CAST]);
	values[5] = Int64GetDatum(counts->in[CLASS_INFO]);
	values[6] = Int64GetDatum(counts->out);
	values[7] = Int64GetDatum(counts->errors);
	values[8] = Float8GetDatum(counts->total_ms);
	values[9] = Float8GetDatum(counts->max_ms);
	return HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc), values, nulls));
}

/*
 * statistics(server text, enable boolean) -> record: as sys:statistics; null
 * where it is not on.  With false the last counts.
 */
Datum
dgen_statistics(PG_FUNCTION_ARGS)
{
	DgenAddress address;
	DgenModule *module;
	Slot		slot;
	bool		on;

	dgen_address_arg(fcinfo, 0, &address);
	module = dgen_module_get(address.module, false);
	if (PG_ARGISNULL(1))
	{
		dgen_module_check_read(module);
		on = read_slot(&address, &slot);
	}
	else
	{
		dgen_module_check_operate(module);
		dgen_check_writable();
		/* the module may go while its lock is waited for */
		dgen_module_lock(address.module);
		dgen_module_check_operate(dgen_module_get(address.module, false));
		if (PG_GETARG_BOOL(1))
			turn_on(&address);
		on = PG_GETARG_BOOL(1) ? read_slot(&address, &slot) : turn_off(&address, &slot);
	}
	if (!on)
		PG_RETURN_NULL();
	PG_RETURN_DATUM(form_result(fcinfo, &slot));
}
