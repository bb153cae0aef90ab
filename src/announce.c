/*-------------------------------------------------------------------------
 *
 * announce.c
 *	  NOTIFY for modules with option notify: which servers have changed.
 *
 * PostgreSQL lets only one transaction at a time commit that has notified,
 * and that one keeps the lock while it waits for its WAL, and for standbys.
 * So whoever changes a server does not notify.  Its commit puts address and
 * version into a table in shared memory, where a later version replaces an
 * earlier one, and the keeper notifies, at most every 50 ms, in a transaction
 * of its own, which waits for nothing.
 *
 * What finds no room, and more servers of one transaction than are noted,
 * are a flag: then the keeper tells each channel that any server of its module
 * may have changed.  An entry is freed when what it says was committed, so an
 * announcement is rather made twice than lost.  A crash of the server loses
 * the table, and all who listen with it.  COMMIT PREPARED runs no code of
 * ours, so what it changes is not announced.
 *
 * What this transaction has changed is noted in memory, under the
 * subtransaction that did it.  While no module that this process has read has
 * the option, that costs a look at one word.
 *
 * Locks: the table's LWLock, under which nothing else is taken, and nothing is
 * allocated or raised.
 *
 *-------------------------------------------------------------------------
 */
#include "module.h"

#include "access/xact.h"
#include "commands/async.h"
#include "utils/fmgrprotos.h"
#include "utils/json.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

#define INTERVAL_MS 50			/* between two announcements */
#define RETRY_MS 1000			/* after a failure, or while a listener that does not read fills the queue */

#define NSLOTS 1024
#define PROBES 32				/* slots that one server may be in */
#define MAX_NOTES 4096			/* of one transaction */
#define LOOK_BACK 16			/* notes, for an earlier one of the same server */

typedef struct Slot
{
	Oid			database;		/* InvalidOid: free */
	int64		hash;
	int64		version;		/* 0: the server was deleted */
	uint64		stamp;			/* differs with each write */
	char		server[DGEN_MAX_ADDRESS + 1];
} Slot;

typedef struct AnnounceShared
{
	LWLock		lock;			/* protects what follows */
	uint64		last_stamp;
	Slot		slots[NSLOTS];
} AnnounceShared;

typedef struct Note
{
	SubTransactionId subid;
	int64		hash;
	int64		version;
	char	   *server;
} Note;

static AnnounceShared *shared = NULL;

/* what this transaction has changed, in TopTransactionContext */
static Note *notes = NULL;
static int	nnotes = 0;
static int	notes_size = 0;
static bool too_many = false;

bool		dgen_announce_wanted = false;

Size
dgen_announce_size(void)
{
	return sizeof(AnnounceShared);
}

void
dgen_announce_init(void *place, bool found)
{
	shared = place;
	if (found)
		return;
	memset(shared, 0, sizeof(AnnounceShared));
	LWLockInitialize(&shared->lock, dgen_shared->tranche);
}

/* ---------------------------------------------------------------- noting */

static Note *
find_note(int64 hash, SubTransactionId subid)
{
	for (int i = nnotes - 1; i >= 0 && i >= nnotes - LOOK_BACK; i--)
	{
		if (notes[i].hash == hash && notes[i].subid == subid)
			return &notes[i];
	}
	return NULL;
}

static Note *
add_note(const DgenServer *server, SubTransactionId subid)
{
	MemoryContext old = MemoryContextSwitchTo(TopTransactionContext);
	Note	   *note;

	if (nnotes == notes_size)
	{
		int			size = notes_size == 0 ? 16 : notes_size * 2;

		/* the size last: were there no memory, an error might be caught */
		notes = notes == NULL ? palloc(size * sizeof(Note)) : repalloc(notes, size * sizeof(Note));
		notes_size = size;
	}
	note = &notes[nnotes];
	note->subid = subid;
	note->hash = server->hash;
	note->server = pstrdup(server->address);
	nnotes++;
	MemoryContextSwitchTo(old);
	return note;
}

/*
 * A server has another state, or its incarnation has ended: who waits for it
 * is woken at the commit, and who listens is told soon after.
 */
void
dgen_server_changed(DgenServer *server, bool deleted)
{
	SubTransactionId subid = GetCurrentSubTransactionId();
	DgenModule *module;
	Note	   *note;

	dgen_notify_at_commit(DGEN_WAIT_STATE, server->hash);
	if (!dgen_announce_wanted)
		return;
	module = dgen_module_of(server->address);
	if (module == NULL || module->notify == NULL)
		return;
	note = find_note(server->hash, subid);
	if (note == NULL && nnotes == MAX_NOTES)
	{
		too_many = true;
		return;
	}
	if (note == NULL)
		note = add_note(server, subid);
	note->version = deleted ? 0 : server->version;
}

/* What an aborted subtransaction changed has not changed. */
void
dgen_announce_subxact(SubXactEvent event, SubTransactionId my, SubTransactionId parent)
{
	if (event != SUBXACT_EVENT_COMMIT_SUB && event != SUBXACT_EVENT_ABORT_SUB)
		return;
	if (event == SUBXACT_EVENT_ABORT_SUB)
	{
		while (nnotes > 0 && notes[nnotes - 1].subid >= my)
			nnotes--;
		return;
	}
	for (int i = nnotes - 1; i >= 0 && notes[i].subid >= my; i--)
		notes[i].subid = parent;
}

/* Put a note into the table; false if there is no room.  The lock is held. */
static bool
enter(const Note *note)
{
	Slot	   *slot = NULL;

	for (int i = 0; i < PROBES; i++)
	{
		Slot	   *s = &shared->slots[((uint64) note->hash + i) % NSLOTS];

		if (!OidIsValid(s->database))
			slot = slot ? slot : s;
		else if (s->database == MyDatabaseId && s->hash == note->hash &&
				 strcmp(s->server, note->server) == 0)
		{
			slot = s;
			break;
		}
	}
	if (slot == NULL)
		return false;
	slot->database = MyDatabaseId;
	slot->hash = note->hash;
	slot->version = note->version;
	slot->stamp = ++shared->last_stamp;
	strlcpy(slot->server, note->server, sizeof(slot->server));
	return true;
}

/* Have the keeper announce it, soon, but not sooner than it may. */
static void
wake_keeper(DgenDatabase *db)
{
	TimestampTz due = TimestampTzPlusMilliseconds(pg_atomic_read_u64(&db->announced_at), INTERVAL_MS);
	uint64		none = (uint64) DT_NOEND;

	due = Max(due, GetCurrentTimestamp());
	if (pg_atomic_compare_exchange_u64(&db->announce_at, &none, (uint64) due))
		dgen_wake_process(db->keeper_pgprocno);
}

/*
 * At the end of a transaction; raises nothing.  At its commit the leases of
 * what it changed are still held, so that later versions come later.
 */
void
dgen_announce_xact_callback(XactEvent event)
{
	DgenDatabase *db;

	if (event != XACT_EVENT_COMMIT && event != XACT_EVENT_ABORT && event != XACT_EVENT_PREPARE)
		return;
	if (event == XACT_EVENT_COMMIT && (nnotes > 0 || too_many) &&
		(db = dgen_database(MyDatabaseId, false)) != NULL)
	{
		bool		room = !too_many;

		LWLockAcquire(&shared->lock, LW_EXCLUSIVE);
		for (int i = 0; i < nnotes; i++)
			room = enter(&notes[i]) && room;
		LWLockRelease(&shared->lock);
		if (!room)
			pg_atomic_fetch_add_u32(&db->announce_all, 1);
		wake_keeper(db);
	}
	notes = NULL;
	nnotes = notes_size = 0;
	too_many = false;
}

/* ---------------------------------------------------------------- announcing */

/* What has changed in this database.  The slots stay. */
static List *
changed_servers(void)
{
	Slot	   *copies = palloc(sizeof(shared->slots));
	List	   *list = NIL;

	LWLockAcquire(&shared->lock, LW_SHARED);
	memcpy(copies, shared->slots, sizeof(shared->slots));
	LWLockRelease(&shared->lock);
	for (int i = 0; i < NSLOTS; i++)
	{
		if (copies[i].database == MyDatabaseId)
			list = lappend(list, &copies[i]);
	}
	return list;
}

/* These have been announced; true if something has changed meanwhile, which stays. */
static bool
free_slots(List *announced)
{
	bool		left = false;
	ListCell   *lc;

	LWLockAcquire(&shared->lock, LW_EXCLUSIVE);
	foreach(lc, announced)
	{
		Slot	   *slot = lfirst(lc);

		for (int i = 0; i < PROBES; i++)
		{
			Slot	   *s = &shared->slots[((uint64) slot->hash + i) % NSLOTS];

			if (OidIsValid(s->database) && s->stamp == slot->stamp)
				s->database = InvalidOid;
		}
	}
	for (int i = 0; i < NSLOTS && !left; i++)
		left = shared->slots[i].database == MyDatabaseId;
	LWLockRelease(&shared->lock);
	return left;
}

/* {"server": "counter/home", "version": 3}; a version of null: it was deleted */
static void
announce_server(Slot *slot)
{
	DgenModule *module = dgen_module_of(slot->server);
	StringInfoData payload;

	if (module == NULL || module->notify == NULL)
		return;
	initStringInfo(&payload);
	appendStringInfoString(&payload, "{\"server\": ");
	escape_json(&payload, slot->server);
	if (slot->version > 0)
		appendStringInfo(&payload, ", \"version\": " INT64_FORMAT "}", slot->version);
	else
		appendStringInfoString(&payload, ", \"version\": null}");
	Async_Notify(module->notify, payload.data);
}

/* {"module": "counter"}: any of its servers may have changed */
static void
announce_modules(void)
{
	ListCell   *lc;

	foreach(lc, dgen_module_rows())
	{
		DgenModule *module = dgen_module_build(lfirst(lc));
		StringInfoData payload;

		if (module->notify == NULL)
			continue;
		initStringInfo(&payload);
		appendStringInfoString(&payload, "{\"module\": ");
		escape_json(&payload, module->name);
		appendStringInfoChar(&payload, '}');
		Async_Notify(module->notify, payload.data);
	}
}

static bool
queue_is_filling(void)
{
	return DatumGetFloat8(DirectFunctionCall1(pg_notification_queue_usage, (Datum) 0)) > 0.5;
}

/* When the keeper must announce what has changed; DT_NOEND: nothing has. */
TimestampTz
dgen_announce_due(DgenDatabase *db)
{
	return (TimestampTz) pg_atomic_read_u64(&db->announce_at);
}

/* What the keeper has found changed, in a transaction that waits for nothing. */
static void
notify_all(List *changed, bool modules)
{
	MemoryContext old = CurrentMemoryContext;
	ListCell   *lc;

	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	foreach(lc, changed)
		announce_server(lfirst(lc));
	if (modules)
		announce_modules();
	PopActiveSnapshot();
	CommitTransactionCommand();
	MemoryContextSwitchTo(old);
}

/*
 * The keeper's part.  If it fails, it is done again a second later, and
 * nothing is lost.
 */
void
dgen_announce(DgenDatabase *db)
{
	static MemoryContext cxt = NULL;
	TimestampTz now = GetCurrentTimestamp();
	TimestampTz again = TimestampTzPlusMilliseconds(now, RETRY_MS);
	uint32		all = pg_atomic_read_u32(&db->announce_all);
	MemoryContext old;
	List	   *changed;

	pg_atomic_write_u64(&db->announce_at, (uint64) again);
	if (queue_is_filling())
		return;
	if (cxt == NULL)
		cxt = AllocSetContextCreate(TopMemoryContext, "dgen announce", ALLOCSET_DEFAULT_SIZES);
	MemoryContextReset(cxt);
	old = MemoryContextSwitchTo(cxt);
	changed = changed_servers();
	notify_all(changed, all > 0);
	pg_atomic_write_u64(&db->announced_at, (uint64) now);
	dgen_waitpoint_reach("dgen-announced");

	/* who enters something from here on wakes us; then see to who did before */
	pg_atomic_exchange_u64(&db->announce_at, (uint64) DT_NOEND);
	pg_atomic_fetch_sub_u32(&db->announce_all, all);
	if (free_slots(changed) || pg_atomic_read_u32(&db->announce_all) > 0)
		wake_keeper(db);
	MemoryContextSwitchTo(old);
	MemoryContextReset(cxt);
}

/* A database, or dgen in it, is gone. */
void
dgen_announce_forget(Oid database)
{
	LWLockAcquire(&shared->lock, LW_EXCLUSIVE);
	for (int i = 0; i < NSLOTS; i++)
	{
		if (shared->slots[i].database == database)
			shared->slots[i].database = InvalidOid;
	}
	LWLockRelease(&shared->lock);
}
