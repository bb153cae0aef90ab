/*-------------------------------------------------------------------------
 *
 * registry.c
 *	  Registered names: what stands for a server's address, and is found by
 *	  its metadata.
 *
 * A name is a row of dgen.name.  It belongs to the incarnation that it was
 * given to, and goes with it (see dgen_ties_end), or is permanent: then it
 * belongs to the address, which may have no server yet, until it is taken
 * back or the server is deleted.
 *
 * Who gives or takes a name waits for all who are about to, by their
 * transactions, and then finds the row that is left, or none.  Such a wait
 * needs no lock of its own, so that a transaction may register any number of
 * names.  Who needs the server's lease as well takes that first.
 *
 * A name is looked up as it is now: whoever sends to it reaches the server
 * that has it, not the one that had it at the sender's snapshot, and no
 * predicate lock is taken.  Such a scan may miss a row that is replaced
 * meanwhile, as set_metadata does; so it looks twice before there is none.
 *
 * The metadata has a GIN index.  Its entries are inserted below the executor
 * like all others; it is read by the view dgen.names only.
 *
 *-------------------------------------------------------------------------
 */
#include "dgen.h"

#include "access/htup_details.h"
#include "access/skey.h"
#include "storage/lmgr.h"
#include "utils/fmgrprotos.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

/* columns of dgen.name, from 0 */
enum
{
	COL_NAME, COL_SERVER, COL_INCARNATION, COL_METADATA, COL_REGISTERED_AT,
	COL_REGISTERED_BY, NCOLS
};

#define MAX_METADATA_DEPTH 64

/* a row of dgen.name */
typedef struct Registered
{
	ItemPointerData tid;
	char	   *name;
	char	   *server;
	int64		incarnation;	/* 0: permanent */
	Jsonb	   *metadata;		/* or NULL */
	TimestampTz registered_at;
	char	   *registered_by;
} Registered;

PG_FUNCTION_INFO_V1(dgen_register);
PG_FUNCTION_INFO_V1(dgen_unregister);
PG_FUNCTION_INFO_V1(dgen_whereis);
PG_FUNCTION_INFO_V1(dgen_set_metadata);
PG_FUNCTION_INFO_V1(dgen_metadata_contains);

/* ---------------------------------------------------------------- rows */

/* The row of a name as it is now; false if there is none. */
static bool
find_name(DgenTable *table, const char *name, Registered *out)
{
	Datum		values[DGEN_MAX_COLUMNS];
	bool		nulls[DGEN_MAX_COLUMNS];
	ScanKeyData key;
	DgenScan   *scan;
	HeapTuple	tuple;

	dgen_key_text(&key, 1, name);
	scan = dgen_scan_begin(table, DGEN_I_PKEY, NULL, 1, &key);
	tuple = dgen_scan_next(scan);
	if (tuple != NULL)
	{
		heap_deform_tuple(tuple, RelationGetDescr(table->rel), values, nulls);
		out->tid = tuple->t_self;
		out->name = TextDatumGetCString(values[COL_NAME]);
		out->server = TextDatumGetCString(values[COL_SERVER]);
		out->incarnation = nulls[COL_INCARNATION] ? 0 : DatumGetInt64(values[COL_INCARNATION]);
		out->metadata = nulls[COL_METADATA] ? NULL :
			(Jsonb *) PG_DETOAST_DATUM_COPY(values[COL_METADATA]);
		out->registered_at = DatumGetTimestampTz(values[COL_REGISTERED_AT]);
		out->registered_by = TextDatumGetCString(values[COL_REGISTERED_BY]);
	}
	dgen_scan_end(scan);
	return tuple != NULL;
}

/*
 * Wait for whoever is giving or taking the name and has not ended; the
 * deadlock detector watches.
 */
static void
settle_name(DgenTable *table, const char *name)
{
	TransactionId busy;

	do
	{
		SnapshotData dirty;
		ScanKeyData key;
		DgenScan   *scan;

		busy = InvalidTransactionId;
		InitDirtySnapshot(dirty);
		dgen_key_text(&key, 1, name);
		scan = dgen_scan_begin(table, DGEN_I_PKEY, &dirty, 1, &key);
		while (!TransactionIdIsValid(busy) && dgen_scan_next(scan) != NULL)
			busy = TransactionIdIsValid(dirty.xmin) ? dirty.xmin : dirty.xmax;
		dgen_scan_end(scan);
		if (TransactionIdIsValid(busy))
			XactLockTableWait(busy, NULL, NULL, XLTW_None);
	} while (TransactionIdIsValid(busy));
}

static void
insert_name(DgenTable *table, const Registered *name)
{
	Datum		values[NCOLS];
	bool		nulls[NCOLS] = {false};

	values[COL_NAME] = CStringGetTextDatum(name->name);
	values[COL_SERVER] = CStringGetTextDatum(name->server);
	values[COL_INCARNATION] = Int64GetDatum(name->incarnation);
	nulls[COL_INCARNATION] = name->incarnation == 0;
	values[COL_METADATA] = PointerGetDatum(name->metadata);
	nulls[COL_METADATA] = name->metadata == NULL;
	values[COL_REGISTERED_AT] = TimestampTzGetDatum(name->registered_at);
	values[COL_REGISTERED_BY] = CStringGetTextDatum(name->registered_by);
	dgen_table_insert(table, values, nulls, NULL);
	CommandCounterIncrement();
}

/*
 * The same for a name that nobody had when we looked.  Whoever has got in
 * between shows by the unique index; after a conflict we find his row.
 */
static void
insert_new_name(DgenTable *table, const Registered *name)
{
	MemoryContext old = CurrentMemoryContext;

	PG_TRY();
	{
		insert_name(table, name);
	}
	PG_CATCH();
	{
		if (geterrcode() != ERRCODE_UNIQUE_VIOLATION)
			PG_RE_THROW();
		MemoryContextSwitchTo(old);
		FlushErrorState();
		ereport(ERROR,
				(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
				 errmsg("could not serialize access due to concurrent update"),
				 errdetail("Name \"%s\" was registered by another transaction at this moment.",
						   name->name),
				 errhint("The transaction might succeed if retried.")));
	}
	PG_END_TRY();
}

/* The address that a name stands for, or NULL. */
char *
dgen_name_lookup(const char *name)
{
	DgenTable  *table = dgen_table_open(DGEN_T_NAME, AccessShareLock);
	Registered	found = {0};

	if (!find_name(table, name, &found))
		(void) find_name(table, name, &found);
	dgen_table_close(table);
	return found.server;
}

/* ---------------------------------------------------------------- the end */

/* One look at what is tied to a server; how many rows there were, and how many are deleted. */
static int64
end_once(DgenTable *table, int index, const char *address, bool forever, int64 *deleted)
{
	TupleDesc	desc = RelationGetDescr(table->rel);
	int64		found = 0;
	ScanKeyData key;
	DgenScan   *scan;
	HeapTuple	tuple;

	dgen_key_text(&key, 1, address);
	scan = dgen_scan_begin(table, index, NULL, 1, &key);
	while ((tuple = dgen_scan_next(scan)) != NULL)
	{
		ItemPointerData tid = tuple->t_self;

		CHECK_FOR_INTERRUPTS();
		/* both tables have it in the same place */
		if (!forever && heap_attisnull(tuple, COL_INCARNATION + 1, desc))
			continue;
		found++;
		if (dgen_table_delete_wait(table, &tid))
			(*deleted)++;
	}
	dgen_scan_end(scan);
	return found;
}

/*
 * Delete what is tied to a server in one table; forever: the permanent, too.
 * Who sets the metadata of a name has no lease, and puts another row in the
 * place of the one that we wait for, or that we see no more: so look until
 * there was nothing twice.
 */
static int64
end_in(DgenTableId id, int index, const char *address, bool forever)
{
	DgenTable  *table = dgen_table_open(id, RowExclusiveLock);
	int64		deleted = 0;
	int			in_vain = 0;

	while (in_vain < 2)
		in_vain = end_once(table, index, address, forever, &deleted) > 0 ? 0 : in_vain + 1;
	dgen_table_close(table);
	return deleted;
}

/*
 * An incarnation has ended, or (forever) its server is deleted: its names and
 * memberships go.  How many there were.
 */
int64
dgen_registry_end(const char *address, bool forever)
{
	int64		n;

	CommandCounterIncrement();
	n = end_in(DGEN_T_NAME, DGEN_I_NAME_SERVER, address, forever) +
		end_in(DGEN_T_MEMBER, DGEN_I_MEMBER_SERVER, address, forever);
	CommandCounterIncrement();
	return n;
}

/* ---------------------------------------------------------------- metadata */

/* How deep a document is nested. */
static int
jsonb_depth(Jsonb *jb)
{
	JsonbIterator *it = JsonbIteratorInit(&jb->root);
	JsonbIteratorToken token;
	JsonbValue	v;
	int			depth = 0;
	int			deepest = 0;

	while ((token = JsonbIteratorNext(&it, &v, false)) != WJB_DONE)
	{
		if (token == WJB_BEGIN_OBJECT || token == WJB_BEGIN_ARRAY)
		{
			depth++;
			deepest = Max(deepest, depth);
		}
		else if (token == WJB_END_OBJECT || token == WJB_END_ARRAY)
			depth--;
	}
	return deepest;
}

/*
 * metadata_contains(metadata jsonb, pattern jsonb) -> boolean: operator @> of
 * schema dgen, by which the view dgen.names is searched.  The view is a
 * security barrier, so its index is used for a leakproof operator only, and
 * this one is: jsonb's own fails where both sides are nested so deep that the
 * stack is exhausted, and nothing as deep as this function lets through does.
 */
Datum
dgen_metadata_contains(PG_FUNCTION_ARGS)
{
	if (jsonb_depth(PG_GETARG_JSONB_P(1)) > MAX_METADATA_DEPTH)
		PG_RETURN_BOOL(false);
	return DirectFunctionCall2(jsonb_contains, PG_GETARG_DATUM(0), PG_GETARG_DATUM(1));
}

/* An object, and not too deep. */
static void
check_metadata(Jsonb *metadata)
{
	if (!JB_ROOT_IS_OBJECT(metadata))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("metadata of a name must be a JSON object"),
				 errhint("For example '{\"region\": \"eu\"}'; null for none.")));
	if (jsonb_depth(metadata) > MAX_METADATA_DEPTH)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("metadata of a name is nested too deep"),
				 errdetail("It may be nested at most %d levels deep.", MAX_METADATA_DEPTH),
				 errhint("Keep in it what names are searched by.")));
}

/* Argument metadata, or NULL. */
static Jsonb *
metadata_arg(FunctionCallInfo fcinfo, int argno)
{
	Jsonb	   *metadata;

	if (PG_ARGISNULL(argno))
		return NULL;
	metadata = PG_GETARG_JSONB_P_COPY(argno);
	check_metadata(metadata);
	return metadata;
}

/* ---------------------------------------------------------------- arguments */

/* The name of a server or a group; what: which of them, for errors. */
static void
check_name(const char *name, const char *what)
{
	if (name[0] == '\0' || strlen(name) > DGEN_MAX_ADDRESS)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 name[0] == '\0' ? errmsg("name of a %s is empty", what) :
				 errmsg("name of a %s is too long", what),
				 errdetail("It has %zu bytes; from 1 to %d are allowed.",
						   strlen(name), DGEN_MAX_ADDRESS)));
}

char *
dgen_arg_name(FunctionCallInfo fcinfo, int argno, const char *what)
{
	char	   *name = dgen_arg_text(fcinfo, argno);

	if (name == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("name of a %s must not be null", what)));
	check_name(name, what);
	return name;
}

/* One that an address cannot be mistaken for. */
static void
check_no_address(const char *name)
{
	if (strchr(name, '/') != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("name \"%s\" contains \"/\"", name),
				 errdetail("What has a \"/\" in it is the address of a server, module/key."),
				 errhint("Use another character, for example \".\" or \":\".")));
}

static char *
name_argument(FunctionCallInfo fcinfo)
{
	char	   *name = dgen_arg_name(fcinfo, 0, "server");

	check_no_address(name);
	return name;
}

/*
 * To have something tied to its incarnation, a server must live; OT003.  what:
 * of what this is, for the error.
 */
void
dgen_check_alive(DgenModule *module, const DgenServer *server, const char *what)
{
	if (server->active && !module->ephemeral)
		return;
	ereport(ERROR,
			(errcode(ERRCODE_DGEN_NO_SERVER),
			 errmsg("server \"%s\" does not run", server->address),
			 module->ephemeral ?
			 errdetail("Module \"%s\" is ephemeral: its servers live for one message each.", module->name) :
			 errdetail("A %s belongs to a server's incarnation, and ends with it.", what),
			 module->ephemeral ? errhint("Pass permanent => true.") :
			 errhint("Start it by dgen.start(%s), or pass permanent => true.",
					 quote_literal_cstr(server->address))));
}

/* May the current user learn of a server that it has a name, or is in a group? */
bool
dgen_is_visible(const char *address)
{
	DgenModule *module = dgen_module_of(address);

	return module != NULL ? dgen_module_may_see(module) : superuser();
}

/* ---------------------------------------------------------------- register */

static void
taken(const Registered *name)
{
	ereport(ERROR,
			(errcode(ERRCODE_DGEN_ALREADY_STARTED),
			 errmsg("name \"%s\" is registered for another server", name->name),
			 dgen_is_visible(name->server) ?
			 errdetail("Server \"%s\" has it, since %s.", name->server,
					   timestamptz_to_str(name->registered_at)) :
			 errdetail("It is a server's that you may neither send to nor read."),
			 errhint("Use another name, or take this one back by dgen.unregister(%s).",
					 quote_literal_cstr(name->name))));
}

/*
 * Give the name to a server.  True if it is new; one
 * that the server has already gets the new metadata, if any is given, and if
 * it is permanent it stays so.
 */
static bool
give_name(Registered *name)
{
	DgenTable  *table = dgen_table_open(DGEN_T_NAME, RowExclusiveLock);
	Registered	old;
	bool		found;

	settle_name(table, name->name);
	found = find_name(table, name->name, &old);
	/* whoever dropped a module did not see what others had not committed */
	if (found && strcmp(old.server, name->server) != 0)
	{
		if (dgen_module_of(old.server) != NULL)
			taken(&old);
		(void) dgen_table_delete_wait(table, &old.tid);
		CommandCounterIncrement();
		found = false;
	}
	if (found)
	{
		if (name->metadata == NULL)
			name->metadata = old.metadata;
		if (old.incarnation == 0)
			name->incarnation = 0;
		name->registered_at = old.registered_at;
		name->registered_by = old.registered_by;
		if (!dgen_table_delete_wait(table, &old.tid))
			found = false;
		CommandCounterIncrement();
	}
	insert_new_name(table, name);
	dgen_table_close(table);
	return !found;
}

/* See dgen.h. */
void
dgen_name_give(char *name, const char *server, int64 incarnation, Jsonb *metadata)
{
	Registered	given = {.name = name,.server = unconstify(char *, server),.incarnation = incarnation};

	check_name(name, "server");
	check_no_address(name);
	if (metadata != NULL)
		check_metadata(metadata);
	given.metadata = metadata;
	given.registered_at = GetCurrentTimestamp();
	given.registered_by = GetUserNameFromId(GetUserId(), false);
	CommandCounterIncrement();
	(void) give_name(&given);
}

/* register(name text, server text, metadata jsonb, permanent boolean) -> boolean */
Datum
dgen_register(PG_FUNCTION_ARGS)
{
	Registered	name = {0};
	bool		permanent = !PG_ARGISNULL(3) && PG_GETARG_BOOL(3);
	DgenTable  *servers = NULL;
	DgenServer *server = NULL;
	DgenAddress address;
	DgenModule *module;
	bool		given;

	name.name = name_argument(fcinfo);
	name.metadata = metadata_arg(fcinfo, 2);
	dgen_address_arg(fcinfo, 1, &address);
	module = dgen_module_get(address.module, false);
	dgen_module_check_operate(module);
	dgen_check_writable();

	if (!permanent)
	{
		server = dgen_ties_open(module, &address, &servers);
		dgen_check_alive(module, server, "name");
		name.incarnation = server->incarnation;
	}
	name.server = address.text;
	name.registered_at = GetCurrentTimestamp();
	name.registered_by = GetUserNameFromId(GetUserId(), false);
	CommandCounterIncrement();
	given = give_name(&name);
	if (!permanent)
	{
		dgen_ties_note(server);
		dgen_ties_close(servers, server);
	}
	PG_RETURN_BOOL(given);
}

/* ---------------------------------------------------------------- others */

/*
 * Find a name that the caller wants to change; false if there is none.
 */
static bool
find_own_name(DgenTable *table, const char *text, Registered *name)
{
	DgenAddress address;
	DgenModule *module;

	dgen_check_writable();
	CommandCounterIncrement();
	settle_name(table, text);
	if (!find_name(table, text, name))
		return false;
	dgen_address_parse(name->server, strlen(name->server), &address);
	/* what a module that is gone has left behind is the superuser's */
	module = dgen_module_get(address.module, superuser());
	if (module != NULL)
		dgen_module_check_operate(module);
	return true;
}

/* unregister(name text) -> boolean: false if nobody has it */
Datum
dgen_unregister(PG_FUNCTION_ARGS)
{
	char	   *text = name_argument(fcinfo);
	DgenTable  *table = dgen_table_open(DGEN_T_NAME, RowExclusiveLock);
	Registered	name;
	bool		done;

	done = find_own_name(table, text, &name) && dgen_table_delete_wait(table, &name.tid);
	dgen_table_close(table);
	CommandCounterIncrement();
	PG_RETURN_BOOL(done);
}

/* set_metadata(name text, metadata jsonb): replaces what there was */
Datum
dgen_set_metadata(PG_FUNCTION_ARGS)
{
	char	   *text = name_argument(fcinfo);
	Jsonb	   *metadata = metadata_arg(fcinfo, 1);
	DgenTable  *table = dgen_table_open(DGEN_T_NAME, RowExclusiveLock);
	Registered	name;

	if (!find_own_name(table, text, &name) || !dgen_table_delete_wait(table, &name.tid))
		ereport(ERROR,
				(errcode(ERRCODE_DGEN_NO_SERVER),
				 errmsg("no server is registered under the name \"%s\"", text),
				 errhint("Names are given by dgen.register().")));
	CommandCounterIncrement();
	name.metadata = metadata;
	insert_name(table, &name);
	dgen_table_close(table);
	PG_RETURN_VOID();
}

/* whereis(name text) -> text: the address, or null */
Datum
dgen_whereis(PG_FUNCTION_ARGS)
{
	char	   *address = dgen_name_lookup(name_argument(fcinfo));

	if (address == NULL || !dgen_is_visible(address))
		PG_RETURN_NULL();
	PG_RETURN_TEXT_P(cstring_to_text(address));
}
