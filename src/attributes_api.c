/*-------------------------------------------------------------------------
 *
 * attributes_api.c
 *	  What is around the attributes of a module's servers: their table, the
 *	  view over it, and the indexes that users ask for.
 *
 * The table is dgen's and stands in its schema, where users can make nothing;
 * the module's owner may read it, and grant that on.  The view "servers" in
 * the module's schema is the owner's.  It is a plain view over the one table,
 * without a filter: what a filter would keep from the reader, a function in
 * his query could still see, or else the index could not be used.
 *
 * Neither is a member of the extension, so that pg_dump carries them, with
 * rows and indexes.  Both depend on it all the same, and go with it.
 *
 * All of this is done as the extension's owner, who is a superuser, with a
 * search_path of pg_catalog.  What users have a say in is the expression of
 * an index.  It is never put into a statement's text: it is parsed by itself,
 * analyzed, and made an index of only if every node of it is of a known kind,
 * and every function and type built in.  So nothing of theirs runs here, nor
 * later, when a worker makes entries of the index.
 *
 * Locks: dgen_module_lock() on the module first, by our callers or here; then
 * where states are read, ShareLock on dgen.server, so that no activation is
 * under way that does not know of the table.
 *
 *-------------------------------------------------------------------------
 */
#include "module.h"

#include "access/table.h"
#include "catalog/dependency.h"
#include "catalog/index.h"
#include "catalog/namespace.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_class.h"
#include "catalog/pg_extension.h"
#include "catalog/pg_namespace_d.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_type.h"
#include "commands/extension.h"
#include "executor/spi.h"
#include "nodes/makefuncs.h"
#include "nodes/nodeFuncs.h"
#include "parser/parse_utilcmd.h"
#include "parser/parser.h"
#include "storage/lmgr.h"
#include "tcop/utility.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/regproc.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"

#define VIEW_NAME "servers"

PG_FUNCTION_INFO_V1(dgen_create_index);
PG_FUNCTION_INFO_V1(dgen_drop_index);
PG_FUNCTION_INFO_V1(dgen_refresh_attributes);

/* ---------------------------------------------------------------- identity */

typedef struct Caller
{
	Oid			user;
	int			sec_context;
	int			nest_level;
} Caller;

static void
set_option(const char *name, const char *value)
{
	(void) set_config_option(name, value, PGC_USERSET, PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
}

/* On an error, the end of the (sub)transaction restores what this sets. */
static void
become_extension_owner(Caller *caller)
{
	GetUserIdAndSecContext(&caller->user, &caller->sec_context);
	caller->nest_level = NewGUCNestLevel();
	SetUserIdAndSecContext(dgen_extension_owner(),
						   caller->sec_context | SECURITY_LOCAL_USERID_CHANGE);
	set_option("search_path", "pg_catalog, pg_temp");
	set_option("default_tablespace", "");
	set_option("default_table_access_method", "heap");
	set_option("client_min_messages", "warning");
}

static void
become_caller(const Caller *caller)
{
	AtEOXact_GUC(false, caller->nest_level);
	SetUserIdAndSecContext(caller->user, caller->sec_context);
}

/* ---------------------------------------------------------------- DDL */

static void
execute(const char *command)
{
	SPI_connect();
	if (SPI_execute(command, false, 0) < 0)
		elog(ERROR, "could not execute \"%s\"", command);
	SPI_finish();
}

/* "dgen.attributes_3" */
static char *
table_name(DgenModule *module)
{
	return psprintf(DGEN_SCHEMA "." DGEN_ATTRIBUTES_PREFIX "%d", module->id);
}

static char *
view_name(Oid view)
{
	return quote_qualified_identifier(get_namespace_name(get_rel_namespace(view)),
									  get_rel_name(view));
}

static Oid
relation_owner(Oid relid)
{
	HeapTuple	tuple = SearchSysCache1(RELOID, ObjectIdGetDatum(relid));
	Oid			owner;

	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for relation %u", relid);
	owner = ((Form_pg_class) GETSTRUCT(tuple))->relowner;
	ReleaseSysCache(tuple);
	return owner;
}

static const char *
role_name(Oid role)
{
	return quote_identifier(GetUserNameFromId(role, false));
}

/* Let DROP EXTENSION drop it, too; a dump does not carry this. */
static void
depend_on_extension(Oid relid)
{
	ObjectAddress object;
	ObjectAddress extension;

	ObjectAddressSet(object, RelationRelationId, relid);
	ObjectAddressSet(extension, ExtensionRelationId, get_extension_oid("dgen", false));
	if (!list_member_oid(getAutoExtensionsOfObject(RelationRelationId, relid), extension.objectId))
		recordDependencyOn(&object, &extension, DEPENDENCY_AUTO_EXTENSION);
}

/*
 * The module's view, wherever it is now; InvalidOid: there is none.  Of views
 * of that name over the table, one that depends on the extension, which only
 * create_view() can have made; or, for a dump loses that, one in its place and
 * of its owner.  Nobody else's: the view may be given to another owner.
 */
static Oid
find_view(DgenModule *module, Oid table)
{
	Oid			types[] = {OIDOID, OIDOID, OIDOID, OIDOID};
	Datum		values[] = {
		ObjectIdGetDatum(table), ObjectIdGetDatum(module->schema),
		ObjectIdGetDatum(module->owner), ObjectIdGetDatum(get_extension_oid("dgen", false))
	};
	Oid			view = InvalidOid;

	SPI_connect();
	if (SPI_execute_with_args("SELECT c.oid FROM pg_depend d"
							  " JOIN pg_rewrite r ON d.classid = 'pg_rewrite'::regclass AND d.objid = r.oid"
							  " JOIN pg_class c ON c.oid = r.ev_class"
							  " WHERE d.refclassid = 'pg_class'::regclass AND d.refobjid = $1"
							  " AND c.relkind = 'v' AND c.relname = '" VIEW_NAME "'"
							  " AND ((c.relnamespace = $2 AND c.relowner = $3) OR EXISTS ("
							  "SELECT FROM pg_depend e"
							  " WHERE e.classid = 'pg_class'::regclass AND e.objid = c.oid"
							  " AND e.refclassid = 'pg_extension'::regclass AND e.refobjid = $4"
							  " AND e.deptype = 'x'))"
							  " ORDER BY c.relnamespace <> $2, c.oid LIMIT 1",
							  4, types, values, NULL, false, 1) < 0)
		elog(ERROR, "could not look for a view");
	if (SPI_processed > 0)
	{
		bool		isnull;

		view = DatumGetObjectId(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull));
	}
	SPI_finish();
	return view;
}

/* 42P07 if the module's schema has no place for the view. */
static void
check_view_name(DgenModule *module)
{
	if (OidIsValid(get_relname_relid(VIEW_NAME, module->schema)))
		ereport(ERROR,
				(errcode(ERRCODE_DUPLICATE_TABLE),
				 errmsg("relation \"%s.%s\" already exists", module->schema_name, VIEW_NAME),
				 errdetail("Module \"%s\" has a callback attributes, and what it returns is shown by a view of this name.",
						   module->name),
				 errhint("Rename the relation. If the function is not meant to be a callback, pass callbacks => '{\"attributes\": null}'.")));
}

static void
create_table(DgenModule *module)
{
	char	   *name = table_name(module);

	execute(psprintf("CREATE TABLE %s ("
					 "server text COLLATE \"C\" PRIMARY KEY,"
					 " key text COLLATE \"C\" NOT NULL,"
					 " attributes jsonb NOT NULL)", name));
	dgen_guard_revoke(dgen_attributes_table(module->id));
	execute(psprintf("COMMENT ON TABLE %s IS %s", name,
					 quote_literal_cstr(psprintf("attributes of the servers of module %s", module->name))));
}

/* Or put right what its owner has made of it. */
static void
define_view(DgenModule *module, const char *name)
{
	execute(psprintf("CREATE OR REPLACE VIEW %s AS SELECT server, key, attributes FROM %s",
					 name, table_name(module)));
}

static Oid
create_view(DgenModule *module)
{
	char	   *name = quote_qualified_identifier(module->schema_name, VIEW_NAME);

	define_view(module, name);
	execute(psprintf("COMMENT ON VIEW %s IS %s", name,
					 quote_literal_cstr(psprintf("servers of module %s, by what its callback attributes makes of their states",
												 module->name))));
	execute(psprintf("COMMENT ON COLUMN %s.server IS 'address, module/key'", name));
	execute(psprintf("COMMENT ON COLUMN %s.key IS 'key of the server within its module'", name));
	execute(psprintf("COMMENT ON COLUMN %s.attributes IS 'what attributes(state) returns; a server where that is null is not shown'", name));
	return get_relname_relid(VIEW_NAME, module->schema);
}

/*
 * Take the table from those who owned the module before: those who may grant
 * it, which only settle_owner() lets anybody.  The view's owner does not tell
 * who they are: REASSIGN OWNED, or ALTER VIEW, may have given it away.
 */
static void
revoke_from_former_owners(DgenModule *module, Oid table)
{
	Oid			types[] = {OIDOID, OIDOID};
	Datum		values[] = {ObjectIdGetDatum(table), ObjectIdGetDatum(module->owner)};
	char	   *roles = NULL;

	SPI_connect();
	if (SPI_execute_with_args("SELECT string_agg(DISTINCT grantee::regrole::text, ', ')"
							  " FROM pg_class, aclexplode(relacl)"
							  " WHERE pg_class.oid = $1 AND is_grantable"
							  " AND grantee NOT IN (0, relowner, $2)",
							  2, types, values, NULL, false, 1) < 0)
		elog(ERROR, "could not look for former owners");
	if (SPI_processed > 0)
		roles = SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1);
	if (roles != NULL)
		execute(psprintf("REVOKE ALL ON %s FROM %s CASCADE", table_name(module), roles));
	SPI_finish();
}

/*
 * Table and view serve the module's owner, who may be another than before.
 * He gets no view that reads more than it should, with his rights.
 */
static void
settle_owner(DgenModule *module, Oid table, Oid view)
{
	execute(psprintf("GRANT SELECT ON %s TO %s WITH GRANT OPTION", table_name(module),
					 role_name(module->owner)));
	revoke_from_former_owners(module, table);
	if (relation_owner(view) == module->owner)
		return;
	define_view(module, view_name(view));
	execute(psprintf("ALTER VIEW %s OWNER TO %s", view_name(view), role_name(module->owner)));
}

static void
settle_view(DgenModule *module, Oid table)
{
	Oid			view = find_view(module, table);

	if (!OidIsValid(view))
	{
		check_view_name(module);
		view = create_view(module);
	}
	else if (get_rel_namespace(view) != module->schema)
	{
		check_view_name(module);
		execute(psprintf("ALTER VIEW %s SET SCHEMA %s", view_name(view),
						 quote_identifier(module->schema_name)));
	}
	settle_owner(module, table, view);
	depend_on_extension(table);
	depend_on_extension(view);
}

/*
 * Drop view and table of a module, if there are any.  cascade: also what
 * others have made of them.
 */
void
dgen_attributes_drop(DgenModule *module, bool cascade)
{
	Oid			table = dgen_attributes_table(module->id);
	const char *how = cascade ? "CASCADE" : "RESTRICT";
	Caller		caller;
	Oid			view;

	if (!OidIsValid(table))
		return;
	become_extension_owner(&caller);
	view = find_view(module, table);
	if (OidIsValid(view))
		execute(psprintf("DROP VIEW %s %s", view_name(view), how));
	execute(psprintf("DROP TABLE %s %s", table_name(module), how));
	become_caller(&caller);
}

/* ---------------------------------------------------------------- filling */

/* Nobody writes states until this transaction ends. */
static void
lock_states(void)
{
	dgen_batch_flush();
	LockRelationOid(dgen_table_oid(DGEN_T_SERVER), ShareLock);
}

/* All servers' attributes, by the callback as it is now; how many changed. */
static int64
fill(const char *name)
{
	DgenModule *module = dgen_module_get(name, false);
	int64		changed = 0;

	CommandCounterIncrement();
	PushActiveSnapshot(GetTransactionSnapshot());
	dgen_module_hold(module);
	PG_TRY();
	{
		changed = dgen_attributes_fill(module);
	}
	PG_FINALLY();
	{
		dgen_module_release(module);
	}
	PG_END_TRY();
	PopActiveSnapshot();
	return changed;
}

/*
 * A module was made or altered, and its row written: see that it has table
 * and view if it has the callback, and neither if not.  created: there can be
 * no servers, nor transactions that know the module.
 */
void
dgen_attributes_settle(DgenModule *module, bool created)
{
	Oid			table;
	bool		exists;
	Caller		caller;

	/* one that outlived an extension has nothing to do with this module */
	if (created)
		dgen_attributes_drop(module, false);
	table = dgen_attributes_table(module->id);
	exists = OidIsValid(table);
	if (!module->callbacks[DGEN_ATTRIBUTES].present || module->ephemeral)
	{
		dgen_attributes_drop(module, false);
		return;
	}
	if (!exists && !created)
		lock_states();
	become_extension_owner(&caller);
	if (!exists)
	{
		create_table(module);
		table = dgen_attributes_table(module->id);
	}
	settle_view(module, table);
	become_caller(&caller);
	if (!exists && !created)
		(void) fill(module->name);
}

/* After a restore: what a dump does not carry. */
void
dgen_attributes_adopt(void)
{
	ListCell   *lc;
	Caller		caller;

	become_extension_owner(&caller);
	foreach(lc, dgen_module_rows())
	{
		DgenModuleRow *row = lfirst(lc);
		DgenModule *module = dgen_module_get(TextDatumGetCString(row->values[MODULE_NAME]), true);
		Oid			table = module ? dgen_attributes_table(module->id) : InvalidOid;
		Oid			view;

		if (!OidIsValid(table))
			continue;
		depend_on_extension(table);
		view = find_view(module, table);
		if (OidIsValid(view))
			depend_on_extension(view);
	}
	become_caller(&caller);
}

/* ---------------------------------------------------------------- expressions */

/*
 * Positions of errors are those in the text that was parsed, which has a
 * SELECT in front of the expression.
 */
#define PARSED_PREFIX "SELECT "

static void
expression_error(void *arg)
{
	int			position = geterrposition();

	if (position <= 0)
		return;
	errposition(0);
	internalerrposition(Max(1, position - (int) strlen(PARSED_PREFIX)));
	internalerrquery((const char *) arg);
}

static void
not_an_expression(const char *expression)
{
	ereport(ERROR,
			(errcode(ERRCODE_SYNTAX_ERROR),
			 errmsg("\"%s\" is not an expression", expression),
			 errhint("Write one expression over the columns server, key and attributes, for example \"attributes->>'email'\".")));
}

/* "*", which is no expression anywhere else */
static bool
is_star(Node *node)
{
	return IsA(node, ColumnRef) && IsA(linitial(((ColumnRef *) node)->fields), A_Star);
}

/* Parse the expression, and nothing but one expression. */
static Node *
parse_expression(const char *expression, const char *parsed)
{
	List	   *statements = raw_parser(parsed, RAW_PARSE_DEFAULT);
	Node	   *statement = list_length(statements) == 1 ? linitial_node(RawStmt, statements)->stmt : NULL;
	SelectStmt *plain = makeNode(SelectStmt);
	ResTarget  *target;

	if (statement == NULL || !IsA(statement, SelectStmt) ||
		list_length(((SelectStmt *) statement)->targetList) != 1)
		not_an_expression(expression);
	plain->targetList = ((SelectStmt *) statement)->targetList;
	target = linitial_node(ResTarget, plain->targetList);
	if (!equal(plain, statement) || target->name != NULL || is_star(target->val))
		not_an_expression(expression);
	return target->val;
}

static void
refuse_expression(const char *what)
{
	ereport(ERROR,
			(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
			 errmsg("%s cannot be used in an index of attributes", what),
			 errdetail("Its entries are made by dgen, so only built-in functions, operators and types that are IMMUTABLE are allowed."),
			 errhint("Have callback attributes return what is to be indexed.")));
}

static bool
check_function(Oid function, void *context)
{
	if (function >= FirstNormalObjectId || get_func_namespace(function) != PG_CATALOG_NAMESPACE)
		refuse_expression(psprintf("function %s", format_procedure_qualified(function)));
	if (func_volatile(function) != PROVOLATILE_IMMUTABLE)
		refuse_expression(psprintf("function %s, which is not IMMUTABLE,", format_procedure_qualified(function)));
	return false;
}

static void
check_type(Oid type)
{
	if (type >= FirstNormalObjectId)
		refuse_expression(psprintf("type %s", format_type_be_qualified(type)));
}

/* Only what is known to call nothing but functions that are seen here. */
static bool
check_node(Node *node, void *context)
{
	if (node == NULL)
		return false;
	switch (nodeTag(node))
	{
		case T_List:
		case T_CaseWhen:
			break;
		case T_Var:
		case T_Const:
		case T_FuncExpr:
		case T_NamedArgExpr:
		case T_OpExpr:
		case T_DistinctExpr:
		case T_NullIfExpr:
		case T_ScalarArrayOpExpr:
		case T_BoolExpr:
		case T_SubscriptingRef:
		case T_RelabelType:
		case T_CoerceViaIO:
		case T_ArrayCoerceExpr:
		case T_CollateExpr:
		case T_CaseExpr:
		case T_CaseTestExpr:
		case T_ArrayExpr:
		case T_CoalesceExpr:
		case T_MinMaxExpr:
		case T_NullTest:
		case T_BooleanTest:
			check_type(exprType(node));
			(void) check_functions_in_node(node, check_function, NULL);
			break;
		default:
			refuse_expression("this kind of expression");
	}
	return expression_tree_walker(node, check_node, context);
}

/* ---------------------------------------------------------------- indexes */

/* CREATE INDEX, analyzed and found harmless. */
static IndexStmt *
index_statement(DgenModule *module, Oid table, const char *expression, const char *parsed,
				bool unique, char *name)
{
	IndexStmt  *statement = makeNode(IndexStmt);
	IndexElem  *element = makeNode(IndexElem);
	ErrorContextCallback callback;

	callback.callback = expression_error;
	callback.arg = unconstify(char *, expression);
	callback.previous = error_context_stack;
	error_context_stack = &callback;

	element->expr = parse_expression(expression, parsed);
	element->ordering = SORTBY_DEFAULT;
	element->nulls_ordering = SORTBY_NULLS_DEFAULT;
	statement->idxname = name;
	statement->relation = makeRangeVar(pstrdup(DGEN_SCHEMA), get_rel_name(table), -1);
	statement->accessMethod = pstrdup(DEFAULT_INDEX_TYPE);
	statement->indexParams = list_make1(element);
	statement->unique = unique;
	/* what is analyzed here is not analyzed again when it is run */
	statement = transformIndexStmt(table, statement, parsed);
	(void) check_node(linitial_node(IndexElem, statement->indexParams)->expr, NULL);

	error_context_stack = callback.previous;
	return statement;
}

/*
 * The same as the caller, whatever he is: analysis evaluates literals, and those
 * of a composite type or of an array run the checks of domains in it.
 */
static IndexStmt *
analyzed_statement(DgenModule *module, Oid table, const char *expression, const char *parsed,
				   bool unique, char *name)
{
	int			nest_level = NewGUCNestLevel();
	IndexStmt  *statement;

	set_option("search_path", "pg_catalog, pg_temp");
	statement = index_statement(module, table, expression, parsed, unique, name);
	AtEOXact_GUC(false, nest_level);
	return statement;
}

static List *
indexes_of(Oid table)
{
	Relation	rel = table_open(table, NoLock);
	List	   *indexes = RelationGetIndexList(rel);

	table_close(rel, NoLock);
	return indexes;
}

static void
run_utility(Node *statement, const char *query)
{
	PlannedStmt *planned = makeNode(PlannedStmt);

	planned->commandType = CMD_UTILITY;
	planned->utilityStmt = statement;
	planned->stmt_location = -1;
	ProcessUtility(planned, query, false, PROCESS_UTILITY_QUERY, NULL, NULL, None_Receiver, NULL);
	CommandCounterIncrement();
}

/* 42501 unless the current user is a member of the module's owner. */
static void
check_owner(DgenModule *module)
{
	if (OidIsValid(module->owner) ? has_privs_of_role(GetUserId(), module->owner) : superuser())
		return;
	ereport(ERROR,
			(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
			 errmsg("permission denied to index module \"%s\"", module->name),
			 errdetail("Role \"%s\" is no member of the module's owner \"%s\".",
					   GetUserNameFromId(GetUserId(), false), module->owner_name),
			 errhint("Have a member of that role do it.")));
}

/* 55000 */
static Oid
existing_table(DgenModule *module)
{
	Oid			table = dgen_attributes_table(module->id);

	if (!OidIsValid(table))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("module \"%s\" has no attributes", module->name),
				 module->callbacks[DGEN_ATTRIBUTES].present ?
				 errdetail("It has a callback for them only since it was made or altered last.") :
				 errdetail("It has no callback for them."),
				 errhint("Define CREATE FUNCTION %s.%s, and run dgen.alter_module(%s).",
						 quote_identifier(module->schema_name),
						 dgen_callback_signature(DGEN_ATTRIBUTES),
						 quote_literal_cstr(module->name))));
	return table;
}

/* A text argument that must be there. */
static char *
required_text(FunctionCallInfo fcinfo, int argno, const char *name)
{
	char	   *value = dgen_arg_text(fcinfo, argno);

	if (value == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("argument %s must not be null", name)));
	return value;
}

/* The module of argument 0, which nobody alters or drops until we end. */
static DgenModule *
locked_module(FunctionCallInfo fcinfo)
{
	char	   *name = required_text(fcinfo, 0, "module");
	DgenModule *module = dgen_module_get(name, false);

	dgen_module_check_operate(module);
	dgen_check_writable();
	dgen_module_lock(name);
	return dgen_module_get(name, false);
}

/*
 * A name for an index.  All tables and indexes of dgen share one schema: one
 * that another module's table may need is refused.
 */
static void
check_index_name(DgenModule *module, const char *name)
{
	char	   *own = psprintf(DGEN_ATTRIBUTES_PREFIX "%d_", module->id);

	if (name[0] == '\0' || strlen(name) >= NAMEDATALEN ||
		(strncmp(name, DGEN_ATTRIBUTES_PREFIX, strlen(DGEN_ATTRIBUTES_PREFIX)) == 0 &&
		 strncmp(name, own, strlen(own)) != 0))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_NAME),
				 errmsg("invalid name \"%s\" of an index", name),
				 errhint("A name has 1 to %d bytes, and does not begin with \"%s\".",
						 NAMEDATALEN - 1, DGEN_ATTRIBUTES_PREFIX)));
}

/*
 * create_index(module text, expression text, unique boolean, name text) ->
 * text: its name.  As CREATE INDEX does, it lets nobody write meanwhile.
 */
Datum
dgen_create_index(PG_FUNCTION_ARGS)
{
	DgenModule *module = locked_module(fcinfo);
	char	   *expression = required_text(fcinfo, 1, "expression");
	bool		unique = !PG_ARGISNULL(2) && PG_GETARG_BOOL(2);
	char	   *name = dgen_arg_text(fcinfo, 3);
	char	   *parsed = psprintf(PARSED_PREFIX "%s", expression);
	Oid			table;
	List	   *before;
	List	   *made;
	IndexStmt  *statement;
	Caller		caller;

	check_owner(module);
	table = existing_table(module);
	if (name != NULL)
		check_index_name(module, name);

	LockRelationOid(table, ShareLock);
	statement = analyzed_statement(module, table, expression, parsed, unique, name);
	become_extension_owner(&caller);
	before = indexes_of(table);
	run_utility((Node *) statement, parsed);
	made = list_difference_oid(indexes_of(table), before);
	become_caller(&caller);
	PG_RETURN_TEXT_P(cstring_to_text(get_rel_name(linitial_oid(made))));
}

/* The index of that name, if it is one that create_index made. */
static Oid
find_index(Oid table, const char *name)
{
	Oid			index = get_relname_relid(name, get_rel_namespace(table));

	if (!OidIsValid(index) || !list_member_oid(indexes_of(table), index) ||
		OidIsValid(get_index_constraint(index)))
		return InvalidOid;
	return index;
}

/* drop_index(module text, name text) */
Datum
dgen_drop_index(PG_FUNCTION_ARGS)
{
	DgenModule *module = locked_module(fcinfo);
	char	   *name = required_text(fcinfo, 1, "name");
	Oid			table;
	ObjectAddress object;

	check_owner(module);
	table = existing_table(module);
	LockRelationOid(table, AccessExclusiveLock);
	ObjectAddressSet(object, RelationRelationId, find_index(table, name));
	if (!OidIsValid(object.objectId))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("module \"%s\" has no index \"%s\"", module->name, name),
				 errhint("dgen.create_index() returns the names; \\d %s shows them.", table_name(module))));
	performDeletion(&object, DROP_RESTRICT, 0);
	CommandCounterIncrement();
	PG_RETURN_VOID();
}

/*
 * refresh_attributes(module text) -> bigint: after a change of the callback;
 * returns how many servers have others now.
 */
Datum
dgen_refresh_attributes(PG_FUNCTION_ARGS)
{
	DgenModule *module = locked_module(fcinfo);

	(void) existing_table(module);
	(void) dgen_module_callback(module, DGEN_ATTRIBUTES);
	lock_states();
	/* what processes know of attributes is no longer so */
	dgen_module_changed();
	PG_RETURN_INT64(fill(module->name));
}
