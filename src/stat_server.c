/*-------------------------------------------------------------------------
 *
 * stat_server.c
 *	  dgen.stat_server: the busiest servers, and those with the longest
 *	  mailboxes.
 *
 * There may be any number of servers, and memory is for 1,024 of the cluster.
 * The busy ones are found as the space-saving algorithm does: a server that has
 * no place takes that of the least busy one, and goes on from its count, so
 * that what is told is too high by at most the count that it began with, which
 * is told as well.  Places are 128 sets of 8, and a server has its set: one
 * that has made more than an eighth of what its set has seen is there.
 *
 * The longest mailboxes are those of mark.c, whose estimates are kept for the
 * sake of max_mailbox; there a server is a hash, and its first message tells
 * its name.
 *
 * Locks: a spinlock for each set.
 *
 *-------------------------------------------------------------------------
 */
#include "stat.h"

#include "access/htup_details.h"
#include "access/skey.h"
#include "access/stratnum.h"
#include "funcapi.h"
#include "storage/spin.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#define NSETS 128
#define NWAYS 8
#define NLONG 100				/* mailboxes that are shown */

/* columns of dgen.message, from 1 */
#define MESSAGE_SENT_AT 7
#define MESSAGE_SERVER 9

typedef struct Place
{
	Oid			database;		/* InvalidOid: free */
	int64		hash;
	int64		activations;
	int64		error;			/* activations is at most this much too high */
	double		total_ms;		/* since it has the place */
	TimestampTz since;
	TimestampTz last;
	char		server[DGEN_MAX_ADDRESS + 1];
} Place;

typedef struct Set
{
	slock_t		lock;
	Place		places[NWAYS];
} Set;

/* one that is shown, for its activations, or its mailbox, or both */
typedef struct Shown
{
	int64		hash;			/* the key */
	Place		place;			/* activations 0: it is not busy */
	int64		length;			/* of its mailbox */
	TimestampTz oldest;			/* message; 0: not looked for */
} Shown;

static Set *sets = NULL;

PG_FUNCTION_INFO_V1(dgen_stat_server_info);

/* ---------------------------------------------------------------- the table */

Size
dgen_stat_server_size(void)
{
	return NSETS * sizeof(Set);
}

void
dgen_stat_server_init(void *place, bool found)
{
	sets = place;
	if (found)
		return;
	memset(sets, 0, dgen_stat_server_size());
	for (int i = 0; i < NSETS; i++)
		SpinLockInit(&sets[i].lock);
}

void
dgen_stat_server_add(const char *server, int64 hash, int64 n, double ms, TimestampTz now)
{
	Set		   *set = &sets[((uint64) hash ^ MyDatabaseId) % NSETS];
	Place	   *least = &set->places[0];
	Place	   *p = NULL;

	SpinLockAcquire(&set->lock);
	for (int i = 0; i < NWAYS && p == NULL; i++)
	{
		Place	   *one = &set->places[i];

		if (one->hash == hash && one->database == MyDatabaseId)
			p = one;
		else if (one->activations < least->activations)
			least = one;
	}
	if (p == NULL)
	{
		p = least;
		p->database = MyDatabaseId;
		p->hash = hash;
		p->error = p->activations;
		p->total_ms = 0;
		p->since = now;
		strlcpy(p->server, server, sizeof(p->server));
	}
	p->activations += n;
	p->total_ms += ms;
	p->last = now;
	SpinLockRelease(&set->lock);
}

/* The server is deleted. */
void
dgen_stat_server_erase(int64 hash)
{
	Set		   *set = &sets[((uint64) hash ^ MyDatabaseId) % NSETS];

	SpinLockAcquire(&set->lock);
	for (int i = 0; i < NWAYS; i++)
	{
		if (set->places[i].hash == hash && set->places[i].database == MyDatabaseId)
			memset(&set->places[i], 0, sizeof(Place));
	}
	SpinLockRelease(&set->lock);
}

static bool
is_of_module(const char *server, const char *module)
{
	Size		len = strlen(module);

	return strncmp(server, module, len) == 0 && server[len] == '/';
}

void
dgen_stat_server_forget(Oid database, const char *module)
{
	for (int i = 0; i < NSETS * NWAYS; i++)
	{
		Set		   *set = &sets[i / NWAYS];
		Place	   *p = &set->places[i % NWAYS];

		SpinLockAcquire(&set->lock);
		if (p->database == database && (module == NULL || is_of_module(p->server, module)))
			memset(p, 0, sizeof(Place));
		SpinLockRelease(&set->lock);
	}
}

/* ---------------------------------------------------------------- the view */

static Shown *
shown_of(HTAB *all, int64 hash)
{
	bool		found;
	Shown	   *s = hash_search(all, &hash, HASH_ENTER, &found);

	if (!found)
	{
		memset(s, 0, sizeof(Shown));
		s->hash = hash;
	}
	return s;
}

static void
collect_busy(HTAB *all)
{
	for (int i = 0; i < NSETS * NWAYS; i++)
	{
		Set		   *set = &sets[i / NWAYS];
		Place		copy;

		SpinLockAcquire(&set->lock);
		copy = set->places[i % NWAYS];
		SpinLockRelease(&set->lock);
		if (copy.database == MyDatabaseId)
			shown_of(all, copy.hash)->place = copy;
	}
}

/* The first message of a mailbox; false: it is empty.  Fills in who it is for. */
static bool
first_message(DgenTable *messages, Snapshot snapshot, Shown *s)
{
	TupleDesc	desc = RelationGetDescr(messages->rel);
	uint32		generation;
	int64		mark = dgen_mark_get(s->hash, &generation);
	bool		isnull;

	for (int16 priority = 1; priority >= -1; priority--)
	{
		ScanKeyData keys[3];
		DgenScan   *scan;
		HeapTuple	tuple;

		dgen_key_int8(&keys[0], 1, s->hash, BTEqualStrategyNumber);
		dgen_key_int2(&keys[1], 2, priority);
		dgen_key_int8(&keys[2], 3, mark, BTGreaterEqualStrategyNumber);
		scan = dgen_scan_begin(messages, DGEN_I_MESSAGE_MAILBOX, snapshot, 3, keys);
		tuple = dgen_scan_next(scan);
		if (tuple != NULL)
		{
			TimestampTz sent_at = DatumGetTimestampTz(heap_getattr(tuple, MESSAGE_SENT_AT, desc, &isnull));

			s->oldest = s->oldest == 0 ? sent_at : Min(s->oldest, sent_at);
			strlcpy(s->place.server, TextDatumGetCString(heap_getattr(tuple, MESSAGE_SERVER, desc, &isnull)),
					sizeof(s->place.server));
		}
		dgen_scan_end(scan);
	}
	return s->oldest != 0;
}

static void
collect_long(HTAB *all)
{
	DgenTable  *messages = dgen_table_open(DGEN_T_MESSAGE, AccessShareLock);
	Snapshot	snapshot = RegisterSnapshot(GetLatestSnapshot());
	DgenLength *lengths = palloc(NLONG * sizeof(DgenLength));
	int			n = dgen_lengths_longest(lengths, NLONG);

	for (int i = 0; i < n; i++)
	{
		Shown		s = {.hash = lengths[i].hash};

		CHECK_FOR_INTERRUPTS();
		/* of effects the name is that of their server, whose mailbox it is not */
		if (!first_message(messages, snapshot, &s) ||
			dgen_address_hash(s.place.server, strlen(s.place.server)) != s.hash)
			continue;
		shown_of(all, s.hash)->oldest = s.oldest;
		shown_of(all, s.hash)->length = lengths[i].length;
		strlcpy(shown_of(all, s.hash)->place.server, s.place.server, sizeof(s.place.server));
	}
	UnregisterSnapshot(snapshot);
	dgen_table_close(messages);
}

#define INFO_NATTS 9

/* server, module, activations, activations_error, total_time, mailbox, oldest, since, last */
static void
show_server(ReturnSetInfo *rsinfo, Shown *s, bool all)
{
	DgenModule *module = dgen_module_of(s->place.server);
	bool		may_read = module != NULL && dgen_module_may_read(module);
	bool		busy = s->place.activations > 0;
	Datum		values[INFO_NATTS];
	bool		nulls[INFO_NATTS] = {false};

	if (module == NULL || (!all && !may_read))
		return;
	values[0] = CStringGetTextDatum(s->place.server);
	nulls[0] = !may_read;
	values[1] = CStringGetTextDatum(module->name);
	values[2] = Int64GetDatum(s->place.activations);
	values[3] = Int64GetDatum(s->place.error);
	values[4] = Float8GetDatum(s->place.total_ms);
	values[5] = Int64GetDatum(s->length);
	values[6] = TimestampTzGetDatum(s->oldest);
	nulls[6] = s->oldest == 0;
	values[7] = TimestampTzGetDatum(s->place.since);
	values[8] = TimestampTzGetDatum(s->place.last);
	nulls[2] = nulls[3] = nulls[4] = nulls[7] = nulls[8] = !busy;
	tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
}

/* stat_server_info(): source of view dgen.stat_server */
Datum
dgen_stat_server_info(PG_FUNCTION_ARGS)
{
	bool		all = dgen_may_monitor();
	HASHCTL		ctl = {.keysize = sizeof(int64),.entrysize = sizeof(Shown),.hcxt = CurrentMemoryContext};
	HTAB	   *servers;
	HASH_SEQ_STATUS seq;
	Shown	   *s;

	InitMaterializedSRF(fcinfo, 0);
	if (dgen_shared == NULL)
		return (Datum) 0;
	servers = hash_create("dgen busy servers", 256, &ctl, HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	collect_busy(servers);
	collect_long(servers);
	hash_seq_init(&seq, servers);
	while ((s = hash_seq_search(&seq)) != NULL)
		show_server((ReturnSetInfo *) fcinfo->resultinfo, s, all);
	return (Datum) 0;
}
