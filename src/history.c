/*-------------------------------------------------------------------------
 *
 * history.c
 *	  The versions of a state, for modules with option history: writing them,
 *	  finding them again, going back to one, and deleting what is too old.
 *
 * A row of dgen.history says how one version came to be, and holds the way
 * back from it to the one before: a patch, or that state whole.  The present
 * state is in the server's row, so an older one is found by going back from
 * there, or from the next state above it that is kept whole.  Backwards, since
 * then the oldest rows can go at any time: nothing newer rests on them.  A
 * state is kept whole where a patch would be no smaller, where a new
 * incarnation begins, and when the patches since the last one have reached its
 * size, so that going back costs about two states' worth of reading.
 *
 * Each activation makes a version of its own: where a history is kept versions
 * are counted after each, though the row of a server is written once a batch.
 * (Written each time it would have an index entry for each version, all of one
 * key, and every new one is checked against all of these.)
 *
 * Rows count if they lead to the present version without a gap, and only from
 * history_from on: what was kept before the option was off for a while does
 * not.  Who reads heeds the module's bound to the version.  Who writes deletes
 * a few of the oldest rows now and then, the keeper the rest.  Neither waits
 * for the other: a row that is being deleted is passed over.
 *
 * A good version is one under which an activation after the one that wrote it
 * has succeeded.  The newest is in the server's row; each row of the history
 * has the one that was the newest when it was written, so that from a good
 * version's row one is led to the good version before it.
 *
 * Written in any process, under the server's lease, in the transaction that
 * writes the server's row; read in any process.
 *
 *-------------------------------------------------------------------------
 */
#include "history.h"

#include "access/htup_details.h"
#include "access/skey.h"
#include "access/stratnum.h"
#include "access/xact.h"
#include "catalog/pg_collation_d.h"
#include "utils/datetime.h"
#include "utils/fmgroids.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

/* columns of dgen.history, from 0 */
enum
{
	COL_SERVER, COL_VERSION, COL_AT, COL_INCARNATION, COL_VSN, COL_KIND, COL_MESSAGE_ID,
	COL_SENDER, COL_SENDER_ROLE, COL_CONTEXT, COL_FROM_VERSION, COL_GOOD, COL_SIZE,
	COL_UNDO, COL_BEFORE, NCOLS
};

/* what a row costs to read, in bytes of patches */
#define ROW_WEIGHT 64
/* patches of so many bytes are never too many */
#define MIN_PATCHES (16 * 1024)
/* who writes looks for old rows at each version that this divides, and takes so many */
#define PRUNE_EVERY 16
#define PRUNE_ROWS (2 * PRUNE_EVERY)
/* a chunk of the keeper's */
#define SWEEP_SERVERS 500
#define SWEEP_ROWS 1000

#define MAX_VERSIONS INT64CONST(1000000000)
#define MAX_USECS (INT64CONST(36500) * USECS_PER_DAY)

/* ---------------------------------------------------------------- option */

/* An interval as text; interval_in() would raise an error of another class. */
static bool
parse_interval(const char *text, int64 *usecs)
{
	char		buffer[256];
	char	   *field[MAXDATEFIELDS];
	int			ftype[MAXDATEFIELDS];
	int			nf;
	int			dtype;
	struct pg_itm_in itm = {0};
	Interval	span;

	if (ParseDateTime(text, buffer, sizeof(buffer), field, ftype, MAXDATEFIELDS, &nf) != 0 ||
		DecodeInterval(field, ftype, nf, INTERVAL_FULL_RANGE, &dtype, &itm) != 0)
	{
		memset(&itm, 0, sizeof(itm));
		if (DecodeISO8601Interval(unconstify(char *, text), &dtype, &itm) != 0)
			return false;
	}
	return dtype == DTK_DELTA && itmin2interval(&itm, &span) == 0 &&
		dgen_interval_usecs(&span, usecs);
}

/*
 * The module option history: a count of versions, or an interval; sets the
 * one and zeroes the other.  False: it is neither.
 */
bool
dgen_history_parse(const char *text, int64 *versions, int64 *usecs)
{
	*versions = *usecs = 0;
	/* a mere number is not meant in seconds, as interval_in() would have it */
	if (text[strspn(text, "+-.0123456789eE ")] == '\0')
	{
		if (text[strspn(text, "0123456789")] != '\0' || strlen(text) > 10)
			return false;
		*versions = strtoi64(text, NULL, 10);
		return *versions > 0 && *versions <= MAX_VERSIONS;
	}
	return parse_interval(text, usecs) && *usecs > 0 && *usecs <= MAX_USECS;
}

/* ---------------------------------------------------------------- rows */

static int64
int_col(HeapTuple tuple, TupleDesc desc, int col)
{
	bool		isnull;
	Datum		value = heap_getattr(tuple, col + 1, desc, &isnull);

	return isnull ? 0 : DatumGetInt64(value);
}

static char *
text_col(HeapTuple tuple, TupleDesc desc, int col)
{
	bool		isnull;
	Datum		value = heap_getattr(tuple, col + 1, desc, &isnull);

	return isnull ? NULL : TextDatumGetCString(value);
}

static Jsonb *
jsonb_col(HeapTuple tuple, TupleDesc desc, int col)
{
	bool		isnull;
	Datum		value = heap_getattr(tuple, col + 1, desc, &isnull);

	return isnull ? NULL : (Jsonb *) PG_DETOAST_DATUM_COPY(value);
}

static int64
version_of(HeapTuple tuple, TupleDesc desc)
{
	return int_col(tuple, desc, COL_VERSION);
}

static TimestampTz
time_of(HeapTuple tuple, TupleDesc desc)
{
	return (TimestampTz) int_col(tuple, desc, COL_AT);
}

/* Copy a row out of a scan. */
void
dgen_history_row(HeapTuple tuple, TupleDesc desc, HistoryRow *row)
{
	row->version = version_of(tuple, desc);
	row->at = time_of(tuple, desc);
	row->incarnation = int_col(tuple, desc, COL_INCARNATION);
	row->vsn = text_col(tuple, desc, COL_VSN);
	row->kind = text_col(tuple, desc, COL_KIND);
	row->message_id = int_col(tuple, desc, COL_MESSAGE_ID);
	row->sender = text_col(tuple, desc, COL_SENDER);
	row->sender_role = text_col(tuple, desc, COL_SENDER_ROLE);
	row->context = jsonb_col(tuple, desc, COL_CONTEXT);
	row->from_version = int_col(tuple, desc, COL_FROM_VERSION);
	row->good = int_col(tuple, desc, COL_GOOD);
	row->size = int_col(tuple, desc, COL_SIZE);
	row->undo = jsonb_col(tuple, desc, COL_UNDO);
	row->before = jsonb_col(tuple, desc, COL_BEFORE);
}

/* The rows of a server from a version on. */
static DgenScan *
begin_rows(DgenTable *table, const char *server, int64 from, Snapshot snapshot)
{
	ScanKeyData keys[2];

	dgen_key_text(&keys[0], 1, server);
	dgen_key_int8(&keys[1], 2, from, BTGreaterEqualStrategyNumber);
	return dgen_scan_begin(table, DGEN_I_PKEY, snapshot, 2, keys);
}

/* What the first row from a version on says of these; false: there is none. */
static bool
first_row(DgenTable *table, const char *server, int64 from, Snapshot snapshot,
		  int64 *version, TimestampTz *at)
{
	DgenScan   *scan = begin_rows(table, server, from, snapshot);
	HeapTuple	tuple = dgen_scan_next(scan);

	if (tuple != NULL)
	{
		*version = version_of(tuple, RelationGetDescr(table->rel));
		*at = time_of(tuple, RelationGetDescr(table->rel));
	}
	dgen_scan_end(scan);
	return tuple != NULL;
}

static Datum
int_value(int64 n, bool *isnull)
{
	*isnull = n == 0;
	return Int64GetDatum(n);
}

static Datum
text_value(const char *s, bool *isnull)
{
	*isnull = s == NULL;
	return s ? CStringGetTextDatum(s) : (Datum) 0;
}

static Datum
jsonb_value(Jsonb *jb, bool *isnull)
{
	*isnull = jb == NULL;
	return JsonbPGetDatum(jb);
}

static void
insert_row(DgenTable *table, const char *server, const HistoryRow *row)
{
	Datum		values[NCOLS];
	bool		nulls[NCOLS] = {false};

	values[COL_SERVER] = CStringGetTextDatum(server);
	values[COL_VERSION] = Int64GetDatum(row->version);
	values[COL_AT] = TimestampTzGetDatum(row->at);
	values[COL_INCARNATION] = Int64GetDatum(row->incarnation);
	values[COL_VSN] = text_value(row->vsn, &nulls[COL_VSN]);
	values[COL_KIND] = text_value(row->kind, &nulls[COL_KIND]);
	values[COL_MESSAGE_ID] = int_value(row->message_id, &nulls[COL_MESSAGE_ID]);
	values[COL_SENDER] = text_value(row->sender, &nulls[COL_SENDER]);
	values[COL_SENDER_ROLE] = text_value(row->sender_role, &nulls[COL_SENDER_ROLE]);
	values[COL_CONTEXT] = jsonb_value(row->context, &nulls[COL_CONTEXT]);
	values[COL_FROM_VERSION] = int_value(row->from_version, &nulls[COL_FROM_VERSION]);
	values[COL_GOOD] = int_value(row->good, &nulls[COL_GOOD]);
	values[COL_SIZE] = int_value(row->size, &nulls[COL_SIZE]);
	values[COL_UNDO] = jsonb_value(row->undo, &nulls[COL_UNDO]);
	values[COL_BEFORE] = jsonb_value(row->before, &nulls[COL_BEFORE]);
	dgen_table_insert(table, values, nulls, NULL);
}

/* ---------------------------------------------------------------- deleting */

/*
 * Delete rows of a server, the oldest first, from a version on: each whose
 * follower is old enough, so that the newest of these stays.  Returns how many
 * went; *from is then the first that did not.
 */
static int
prune(DgenTable *table, const char *server, int64 *from, int64 low, TimestampTz cutoff,
	  int max, Snapshot snapshot)
{
	TupleDesc	desc = RelationGetDescr(table->rel);
	DgenScan   *scan = begin_rows(table, server, *from, snapshot);
	ItemPointerData last;
	HeapTuple	tuple;
	int			deleted = 0;

	ItemPointerSetInvalid(&last);
	while (deleted < max && (tuple = dgen_scan_next(scan)) != NULL)
	{
		int64		version = version_of(tuple, desc);

		CHECK_FOR_INTERRUPTS();
		if (version > low && time_of(tuple, desc) > cutoff)
			break;
		/* one that another process deletes is gone, or is met again by the keeper */
		if (ItemPointerIsValid(&last))
		{
			(void) dgen_table_delete(table, &last);
			deleted++;
		}
		last = tuple->t_self;
		*from = version;
	}
	dgen_scan_end(scan);
	return deleted;
}

/* The first version that a bound by count keeps, or 0. */
static int64
first_by_count(int64 keep_versions, int64 version)
{
	return keep_versions > 0 ? version - keep_versions + 1 : 0;
}

/* When the first version that a bound by time keeps was written, at the latest. */
static TimestampTz
cutoff_by_time(int64 keep_usecs, TimestampTz now)
{
	return keep_usecs > 0 ? now - keep_usecs : DT_NOBEGIN;
}

/* Delete all rows of a server. */
void
dgen_history_erase(DgenServer *server)
{
	DgenTable  *table;
	DgenScan   *scan;
	HeapTuple	tuple;

	if (server->history_version == 0)
		return;
	table = dgen_table_open(DGEN_T_HISTORY, RowExclusiveLock);
	scan = begin_rows(table, server->address, 0, NULL);
	while ((tuple = dgen_scan_next(scan)) != NULL)
	{
		CHECK_FOR_INTERRUPTS();
		(void) dgen_table_delete_wait(table, &tuple->t_self);
	}
	dgen_scan_end(scan);
	dgen_table_close(table);
	server->history_version = server->history_from = server->history_bytes = 0;
}

/* All rows of a server whose module keeps no history any more, or that has no row. */
static int
prune_all(DgenTable *table, const char *server, int64 *from, int max, Snapshot snapshot)
{
	DgenScan   *scan = begin_rows(table, server, *from, snapshot);
	HeapTuple	tuple;
	int			deleted = 0;

	while (deleted < max && (tuple = dgen_scan_next(scan)) != NULL)
	{
		CHECK_FOR_INTERRUPTS();
		*from = version_of(tuple, RelationGetDescr(table->rel));
		(void) dgen_table_delete(table, &tuple->t_self);
		deleted++;
	}
	dgen_scan_end(scan);
	return deleted;
}

/* What is too old of one server, from a version on, which moves; how many rows. */
static int
sweep_server(DgenTable *table, DgenTable *servers, const char *address, int64 *from,
			 int max, Snapshot snapshot)
{
	DgenModule *module = dgen_module_of(address);
	DgenServer	server;
	int64		low;

	if (module == NULL || module->history == NULL ||
		!dgen_server_peek(servers, address, snapshot, &server))
		return prune_all(table, address, from, max, snapshot);
	low = Max(server.history_from, first_by_count(module->history_versions, server.version));
	return prune(table, address, from, low,
				 cutoff_by_time(module->history_usecs, GetCurrentTimestamp()), max, snapshot);
}

/* The first server with a history behind an address; false: there is none. */
static bool
next_server(DgenTable *table, const char *behind, Snapshot snapshot, char *address)
{
	ScanKeyData key;
	DgenScan   *scan;
	HeapTuple	tuple;

	ScanKeyEntryInitialize(&key, 0, 1, BTGreaterStrategyNumber, InvalidOid,
						   C_COLLATION_OID, F_TEXT_GT, CStringGetTextDatum(behind));
	scan = dgen_scan_begin(table, DGEN_I_PKEY, snapshot, 1, &key);
	tuple = dgen_scan_next(scan);
	if (tuple != NULL)
		strlcpy(address, text_col(tuple, RelationGetDescr(table->rel), COL_SERVER),
				DGEN_MAX_ADDRESS + 1);
	dgen_scan_end(scan);
	return tuple != NULL;
}

/*
 * A chunk of the keeper's round.  One server may have very many rows to be
 * deleted: the next chunk goes on where this one ends, and not through the dead
 * rows before that.
 */
void
dgen_history_sweep(DgenHistoryCursor *cursor, Snapshot snapshot)
{
	DgenTable  *table = dgen_table_open(DGEN_T_HISTORY, RowExclusiveLock);
	DgenTable  *servers = dgen_table_open(DGEN_T_SERVER, AccessShareLock);
	int			room = SWEEP_ROWS;

	for (int i = 0; i < SWEEP_SERVERS && room > 0; i++)
	{
		CHECK_FOR_INTERRUPTS();
		if (cursor->version == 0 &&
			!next_server(table, cursor->server, snapshot, cursor->server))
		{
			cursor->server[0] = '\0';
			break;
		}
		room -= sweep_server(table, servers, cursor->server, &cursor->version, room, snapshot);
		if (room > 0)
			cursor->version = 0;
	}
	dgen_table_close(servers);
	dgen_table_close(table);
}

/* ---------------------------------------------------------------- writing */

/*
 * Remember who is about to change the server's state.  What it points to need
 * only live until the server is written, which comes next.
 */
void
dgen_history_note(DgenActivation *act, const char *kind)
{
	DgenCause  *cause;

	act->server->cause = NULL;
	if (act->module->history == NULL)
		return;
	cause = palloc0(sizeof(DgenCause));
	cause->kind = kind;
	cause->message_id = act->message_id;
	cause->sender = act->sender;
	cause->sender_role = act->sender_role;
	cause->context = act->context;
	cause->vsn = act->server->vsn;
	cause->fresh = act->server->state == NULL;
	cause->keep_versions = act->module->history_versions;
	cause->keep_usecs = act->module->history_usecs;
	act->server->cause = cause;
}

void
dgen_history_settle(DgenActivation *act)
{
	if (act->module->history != NULL)
		dgen_server_count(act->server);
}

/*
 * The row is written even if this is all that there is to say; that happens
 * once for each version that is read after it was written.
 */
void
dgen_history_succeeded(DgenActivation *act, int64 version)
{
	DgenServer *server = act->server;

	if (act->module->history == NULL || version <= server->good_version)
		return;
	server->good_version = version;
	server->dirty = true;
}

/*
 * Begin: with the version before this one, if there is a state of it, though
 * nobody knows how it came to be.
 */
static void
begin_history(DgenTable *table, DgenServer *server)
{
	HistoryRow	row = {0};

	server->history_from = server->version;
	server->history_bytes = 0;
	if (server->counted == NULL)
		return;
	row.version = server->history_from = server->version - 1;
	row.at = server->updated_at;
	row.incarnation = server->incarnation - (server->cause->fresh ? 1 : 0);
	row.vsn = server->cause->fresh ? NULL : unconstify(char *, server->cause->vsn);
	row.good = Min(server->good_version, row.version - 1);
	row.size = VARSIZE(server->counted);
	insert_row(table, server->address, &row);
}

/* How to get back to the version before: by a patch if that is worth it. */
static void
choose_undo(DgenServer *server, HistoryRow *row)
{
	Size		size;
	Jsonb	   *patch = NULL;

	if (server->counted == NULL)
		return;
	size = VARSIZE(server->counted);
	if (!server->cause->fresh && server->state != NULL &&
		server->history_bytes < Max(size, MIN_PATCHES))
		patch = dgen_jsonb_diff(server->state, server->counted);
	if (patch != NULL && VARSIZE(patch) < size)
	{
		row->undo = patch;
		server->history_bytes += VARSIZE(patch) + ROW_WEIGHT;
	}
	else
	{
		row->before = server->counted;
		server->history_bytes = 0;
	}
}

static void
write_version(DgenServer *server, TimestampTz at)
{
	DgenTable  *table = dgen_table_open(DGEN_T_HISTORY, RowExclusiveLock);
	const DgenCause *cause = server->cause;
	HistoryRow	row = {0};

	if (server->history_version == 0 || server->history_version != server->version - 1)
		begin_history(table, server);
	row.version = server->history_version = server->version;
	row.at = at;
	row.incarnation = server->incarnation;
	row.vsn = server->vsn;
	row.kind = unconstify(char *, cause->kind);
	row.message_id = cause->message_id;
	row.sender = unconstify(char *, cause->sender);
	row.sender_role = unconstify(char *, cause->sender_role);
	row.context = cause->context;
	row.from_version = cause->from_version;
	row.good = server->good_version;
	row.size = server->state ? VARSIZE(server->state) : 0;
	choose_undo(server, &row);
	insert_row(table, server->address, &row);
	if (server->version % PRUNE_EVERY == 0)
		(void) prune(table, server->address, &server->history_from,
					 Max(server->history_from, first_by_count(cause->keep_versions, server->version)),
					 cutoff_by_time(cause->keep_usecs, at), PRUNE_ROWS, NULL);
	dgen_table_close(table);
	CommandCounterIncrement();
}

/*
 * A server has a new version; its row is written later.  A change that
 * nobody has noted is of a module whose option was turned off, and then there
 * is nothing to do: the keeper deletes what there is.  Or else it is told as
 * one of unknown cause.
 */
void
dgen_history_write(DgenServer *server, TimestampTz at)
{
	DgenCause	unknown = {0};

	if (server->cause == NULL)
	{
		DgenModule *module = NULL;

		if (server->history_version == server->version - 1)
			module = dgen_module_of(server->address);
		if (module == NULL || module->history == NULL)
			return;
		unknown.keep_versions = module->history_versions;
		unknown.keep_usecs = module->history_usecs;
		server->cause = &unknown;
	}
	write_version(server, at);
	server->cause = NULL;
}

/* ---------------------------------------------------------------- reading */

/*
 * The oldest version that counts as kept.  The rows are there from some
 * version on, since the oldest go first, and lead up to the present one.
 */
int64
dgen_history_oldest(DgenTable *table, DgenServer *server, DgenModule *module, Snapshot snapshot)
{
	int64		first;
	TimestampTz at;

	if (server->history_version == 0 || server->history_version != server->version ||
		!first_row(table, server->address, server->history_from, snapshot, &first, &at))
		return server->version;
	if (module->history_versions > 0)
		return Max(first, first_by_count(module->history_versions, server->version));
	return Max(first, dgen_history_version_at(table, server, first,
											  cutoff_by_time(module->history_usecs,
															 GetCurrentTimestamp()),
											  snapshot));
}

/*
 * The newest version from low up to the present one that was written no later
 * than this; 0: none.  Times grow with versions.
 */
int64
dgen_history_version_at(DgenTable *table, DgenServer *server, int64 low, TimestampTz at,
						Snapshot snapshot)
{
	int64		high = server->version;
	int64		found = 0;

	while (low <= high)
	{
		int64		version = low + (high - low) / 2;
		TimestampTz its;

		CHECK_FOR_INTERRUPTS();
		if (first_row(table, server->address, version, snapshot, &version, &its) && its <= at)
		{
			found = version;
			low = version + 1;
		}
		else
			high = low + (high - low) / 2 - 1;
	}
	return found;
}

/*
 * Patches that lead back, met from the oldest to the newest, which is the
 * first to be applied.  Each is composed with others of about its own weight,
 * so that a thousand cost little more than their sum.
 */
typedef struct Stack
{
	int			n;
	Jsonb	   *patches[64];
	int			weights[64];
} Stack;

static void
push_undo(Stack *stack, Jsonb *undo)
{
	int			weight = 1;

	while (stack->n > 0 && stack->weights[stack->n - 1] <= weight)
	{
		stack->n--;
		undo = dgen_jsonb_compose(undo, stack->patches[stack->n]);
		weight += stack->weights[stack->n];
	}
	stack->patches[stack->n] = undo;
	stack->weights[stack->n] = weight;
	stack->n++;
}

/* Go back from a state by all of them. */
static Jsonb *
apply_stack(Stack *stack, Jsonb *state)
{
	while (stack->n > 1)
	{
		stack->n--;
		stack->patches[stack->n - 1] = dgen_jsonb_compose(stack->patches[stack->n],
														  stack->patches[stack->n - 1]);
	}
	return stack->n == 0 ? state : dgen_jsonb_merge(state, stack->patches[0]);
}

/* 22023 */
void
dgen_history_not_kept(DgenServer *server, int64 version, int64 oldest)
{
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("version %lld of the state of server \"%s\" is not kept",
					(long long) version, server->address),
			 errdetail("Versions %lld to %lld are.", (long long) oldest, (long long) server->version),
			 errhint("See dgen.history(%s); the module's option history says how much is kept.",
					 quote_literal_cstr(server->address))));
}

/*
 * The state of a version that is kept, or NULL if it had none.  Without a
 * snapshot the keeper may delete, while we look, what has just become too old.
 */
Jsonb *
dgen_history_state(DgenTable *table, DgenServer *server, int64 version, Snapshot snapshot)
{
	TupleDesc	desc = RelationGetDescr(table->rel);
	Stack		stack = {0};
	Jsonb	   *state = server->counted;
	int64		expected = version + 1;
	DgenScan   *scan;
	HeapTuple	tuple;

	if (version == server->version)
		return state;
	scan = begin_rows(table, server->address, expected, snapshot);
	for (; expected <= server->version; expected++)
	{
		Jsonb	   *undo;

		CHECK_FOR_INTERRUPTS();
		tuple = dgen_scan_next(scan);
		if (tuple == NULL || version_of(tuple, desc) != expected)
			dgen_history_not_kept(server, version, tuple ? version_of(tuple, desc) : server->version);
		undo = jsonb_col(tuple, desc, COL_UNDO);
		if (undo == NULL)
		{
			/* whole, or there was none */
			state = jsonb_col(tuple, desc, COL_BEFORE);
			break;
		}
		push_undo(&stack, undo);
	}
	dgen_scan_end(scan);
	return apply_stack(&stack, state);
}

/* ---------------------------------------------------------------- good versions */

/* The row of one version; false: it is not there. */
static bool
read_version(DgenTable *table, DgenServer *server, int64 version, HistoryRow *row)
{
	DgenScan   *scan = begin_rows(table, server->address, version, NULL);
	HeapTuple	tuple = dgen_scan_next(scan);
	TupleDesc	desc = RelationGetDescr(table->rel);
	bool		found = tuple != NULL && version_of(tuple, desc) == version;

	if (found)
	{
		row->from_version = int_col(tuple, desc, COL_FROM_VERSION);
		row->good = int_col(tuple, desc, COL_GOOD);
		row->vsn = text_col(tuple, desc, COL_VSN);
	}
	dgen_scan_end(scan);
	return found;
}

/* The good version before a good one; 0: none is known. */
static int64
good_before(DgenTable *table, DgenServer *server, int64 version)
{
	HistoryRow	row;

	while (read_version(table, server, version, &row))
	{
		if (row.from_version == 0)
			return row.good;
		version = row.from_version;
	}
	return 0;
}

int64
dgen_history_good(DgenModule *module, DgenServer *server, int nth)
{
	DgenTable  *table;
	int64		good = server->good_version;
	int64		oldest;

	if (module->history == NULL)
		return 0;
	table = dgen_table_open(DGEN_T_HISTORY, AccessShareLock);
	oldest = dgen_history_oldest(table, server, module, NULL);
	for (int i = 1; i < nth && good >= oldest; i++)
		good = good_before(table, server, good);
	dgen_table_close(table);
	return good >= oldest ? good : 0;
}

/* ---------------------------------------------------------------- rollback */

/* 55000 */
void
dgen_history_check_kept(DgenModule *module)
{
	if (module->history == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("module \"%s\" keeps no history", module->name),
				 errdetail("Its option history is off."),
				 errhint("Run SELECT dgen.alter_module(%s, history => '100'); versions are kept from the next change of a state on.",
						 quote_literal_cstr(module->name))));
}

/* 22023 */
void
dgen_history_no_state(DgenServer *server, int64 version)
{
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("version %lld of server \"%s\" has no state", (long long) version, server->address),
			 errdetail("The server was killed, or stopped without keeping its state."),
			 errhint("Choose another version: see dgen.history(%s).",
					 quote_literal_cstr(server->address))));
}

void
dgen_history_rollback(DgenActivation *act, int64 version)
{
	DgenServer *server = act->server;
	DgenTable  *table;
	Jsonb	   *state;
	HistoryRow	row;
	int64		oldest;

	dgen_history_check_kept(act->module);
	table = dgen_table_open(DGEN_T_HISTORY, RowExclusiveLock);
	oldest = dgen_history_oldest(table, server, act->module, NULL);
	if (version < oldest || version > server->version)
		dgen_history_not_kept(server, version, oldest);
	state = dgen_history_state(table, server, version, NULL);
	if (!read_version(table, server, version, &row))
		row.vsn = server->vsn;
	dgen_table_close(table);
	if (state == NULL)
		dgen_history_no_state(server, version);
	dgen_activation_set_state(act, dgen_migrate_state(act, state, row.vsn));
	if (server->cause != NULL)
		server->cause->from_version = version;
}
