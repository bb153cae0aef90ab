/*-------------------------------------------------------------------------
 *
 * suspend.c
 *	  What operators hold and let go: a server, a module, everything.
 *
 * A server's suspension is in its row, and written under its lease; a module's
 * is in its own row, under the module's lock.  Activations that run go on;
 * none begins after the commit.
 *
 * Runs in the caller's backend, in the caller's transaction.
 *
 *-------------------------------------------------------------------------
 */
#include "module.h"
#include "audit.h"
#include "document.h"

#include "catalog/pg_database.h"
#include "utils/acl.h"
#include "utils/memutils.h"

/* whom suspend and resume are about */
typedef enum Subject
{
	SUBJECT_SERVER,
	SUBJECT_MODULE,
	SUBJECT_EVERYTHING
} Subject;

PG_FUNCTION_INFO_V1(dgen_suspend);
PG_FUNCTION_INFO_V1(dgen_resume);

/* The server has been written. */
static void
write_audit(DgenAudit *audit, DgenServer *server)
{
	if (!dgen_audit_wanted(false))
		return;
	audit->incarnation = server->incarnation;
	audit->new_version = server->version;
	dgen_audit_write(audit);
}

/* ---------------------------------------------------------------- suspend */

static Subject
subject_argument(FunctionCallInfo fcinfo, const char *function)
{
	bool		server = !PG_ARGISNULL(0);
	bool		module = !PG_ARGISNULL(1);
	bool		everything = !PG_ARGISNULL(2) && PG_GETARG_BOOL(2);
	int			n = server + module + everything;

	if (n != 1)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("dgen.%s() takes exactly one of server, module and everything", function),
				 n == 0 ? errdetail("None is given.") : errdetail("%d are given.", n),
				 errhint("For example dgen.%s('counter/home'), dgen.%s(module => 'counter') or dgen.%s(everything => true).",
						 function, function, function)));
	return server ? SUBJECT_SERVER : module ? SUBJECT_MODULE : SUBJECT_EVERYTHING;
}

/* Everything is the database owner's. */
static void
check_everything(const char *function)
{
	if (object_ownercheck(DatabaseRelationId, MyDatabaseId, GetUserId()))
		return;
	ereport(ERROR,
			(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
			 errmsg("permission denied to %s everything", function),
			 errdetail("Only the database's owner may do this."),
			 errhint("Name a module of your own, or have a member of the database's owner do it.")));
}

/* All modules, by name. */
static List *
all_modules(void)
{
	List	   *modules = NIL;
	ListCell   *lc;

	foreach(lc, dgen_module_rows())
	{
		DgenModuleRow *row = lfirst(lc);
		DgenModule *module = dgen_module_get(TextDatumGetCString(row->values[MODULE_NAME]), true);

		if (module != NULL)
			modules = lappend(modules, pstrdup(module->name));
	}
	return modules;
}

/* The module that argument 1 names, to be operated. */
static DgenModule *
module_argument(FunctionCallInfo fcinfo)
{
	DgenModule *module = dgen_module_get(dgen_arg_text(fcinfo, 1), false);

	dgen_module_check_operate(module);
	dgen_check_writable();
	return module;
}

void
dgen_admin_set_suspended(DgenServer *server, TimestampTz at, const char *by)
{
	server->suspended = at != 0;
	server->suspended_at = at;
	server->suspended_by = at != 0 ? MemoryContextStrdup(GetMemoryChunkContext(server), by ? by : "an operator") : NULL;
	server->dirty = true;
	if (at != 0)
		server->erased = false;
	else
		dgen_server_erase_if_empty(server);
}

/* One that nobody has heard of is created suspended; a first suspension stays as it is. */
static void
suspend_server(FunctionCallInfo fcinfo, const char *by, const char *reason)
{
	DgenAddress address;
	DgenModule *module = dgen_admin_operated(fcinfo, &address);
	DgenAudit	audit = {.action = "suspend",.server = address.text,.reason = reason,.what = DGEN_AUDIT_SUSPENSION};
	DgenTable  *table;
	DgenServer *server;
	bool		was_suspended;

	/* activations of this batch that are yet to run must not */
	if (dgen_batch_active())
		dgen_batch_split("dgen.suspend()");
	server = dgen_admin_open(module, &address, &table);
	was_suspended = server->suspended;
	if (!was_suspended)
	{
		dgen_admin_set_suspended(server, GetCurrentTimestamp(),
								 reason ? psprintf("%s: %s", by, reason) : by);
		audit.after = dgen_doc_suspension(server->suspended_at, server->suspended_by, NULL);
	}
	dgen_admin_close(table, server);
	if (!was_suspended)
		write_audit(&audit, server);
}

/* What a module's row says of its suspension, or NULL. */
static Jsonb *
module_suspension(DgenModule *module)
{
	DgenModuleRow row;

	if (!dgen_module_row_read(module->name, &row) || row.nulls[MODULE_SUSPENDED_AT])
		return NULL;
	return dgen_doc_suspension(DatumGetTimestampTz(row.values[MODULE_SUSPENDED_AT]),
							   row.nulls[MODULE_SUSPENDED_BY] ? NULL :
							   TextDatumGetCString(row.values[MODULE_SUSPENDED_BY]),
							   row.nulls[MODULE_SUSPENDED_REASON] ? NULL :
							   TextDatumGetCString(row.values[MODULE_SUSPENDED_REASON]));
}

static void
audit_module(const char *action, DgenModule *module, const char *reason, Jsonb *before)
{
	DgenAudit	audit = {.action = action,.reason = reason,.what = DGEN_AUDIT_SUSPENSION,.before = before};

	CommandCounterIncrement();
	audit.after = module_suspension(module);
	/* it was so before */
	if ((before == NULL) == (audit.after == NULL) || !dgen_audit_wanted(false))
		return;
	audit.server = psprintf("%s/", module->name);
	dgen_audit_write(&audit);
}

void
dgen_admin_suspend_module(DgenModule *module, const char *by, const char *reason)
{
	Jsonb	   *before = module_suspension(module);

	dgen_module_suspend(module, by, reason);
	audit_module("suspend", module, reason, before);
}

/*
 * suspend(server text, module text, everything boolean, reason text).  A
 * module's activations that are running go on; none begins after the commit.
 */
Datum
dgen_suspend(PG_FUNCTION_ARGS)
{
	char	   *by = GetUserNameFromId(GetUserId(), false);
	char	   *reason = dgen_arg_text(fcinfo, 3);
	ListCell   *lc;

	switch (subject_argument(fcinfo, "suspend"))
	{
		case SUBJECT_SERVER:
			suspend_server(fcinfo, by, reason);
			break;
		case SUBJECT_MODULE:
			dgen_admin_suspend_module(module_argument(fcinfo), by, reason);
			break;
		case SUBJECT_EVERYTHING:
			check_everything("suspend");
			dgen_check_writable();
			foreach(lc, all_modules())
			{
				DgenModule *module = dgen_module_get(lfirst(lc), true);

				if (module != NULL)
					dgen_admin_suspend_module(module, by, reason);
			}
			break;
	}
	PG_RETURN_VOID();
}

/* ---------------------------------------------------------------- resume */

static void
resume_server(FunctionCallInfo fcinfo)
{
	DgenAddress address;
	DgenModule *module = dgen_admin_operated(fcinfo, &address);
	DgenAudit	audit = {.action = "resume",.server = address.text,.what = DGEN_AUDIT_SUSPENSION};
	DgenTable  *table;
	DgenServer *server = dgen_admin_open(module, &address, &table);
	bool		was_suspended = server->suspended;

	if (was_suspended)
	{
		audit.before = dgen_doc_suspension(server->suspended_at, server->suspended_by, NULL);
		dgen_admin_set_suspended(server, 0, NULL);
	}
	dgen_admin_close(table, server);
	if (was_suspended)
		write_audit(&audit, server);
}

void
dgen_admin_resume_module(DgenModule *module, const char *reason)
{
	Jsonb	   *before = module_suspension(module);

	if (!dgen_module_resume(module))
		return;
	dgen_admin_remember(module, 0);
	audit_module("resume", module, reason, before);
}

/* Resuming does not mend callbacks that belong to the wrong role. */
static void
check_owner_fault(DgenModule *module)
{
	if (module->owner_fault != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("module \"%s\" cannot be resumed", module->name),
				 errdetail("%s", module->owner_fault),
				 errhint("Have a member of the owner run SELECT dgen.alter_module(%s).",
						 quote_literal_cstr(module->name))));
}

/* resume(server text, module text, everything boolean) */
Datum
dgen_resume(PG_FUNCTION_ARGS)
{
	DgenModule *module;
	ListCell   *lc;

	switch (subject_argument(fcinfo, "resume"))
	{
		case SUBJECT_SERVER:
			resume_server(fcinfo);
			break;
		case SUBJECT_MODULE:
			module = module_argument(fcinfo);
			check_owner_fault(module);
			dgen_admin_resume_module(module, NULL);
			break;
		case SUBJECT_EVERYTHING:
			check_everything("resume");
			dgen_check_writable();
			foreach(lc, all_modules())
			{
				module = dgen_module_get(lfirst(lc), true);
				if (module != NULL)
					dgen_admin_resume_module(module, NULL);
			}
			break;
	}
	PG_RETURN_VOID();
}
