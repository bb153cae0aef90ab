/*-------------------------------------------------------------------------
 *
 * supervisor_api.c
 *	  SQL functions of supervisors.
 *
 * All of them join the caller's transaction.  Each takes the lock of the tree
 * first, then the leases of the servers that it starts or ends, in the order
 * of their hashes; so whatever runs in these servers ends first.
 *
 * A supervisor belongs to the role that made it, which had to be allowed to
 * operate every module of the tree.  Its members may do anything with it; who
 * may operate a child's module may terminate, restart and delete that child.
 *
 *-------------------------------------------------------------------------
 */
#include "module.h"
#include "supervisor.h"

#include "utils/acl.h"
#include "utils/fmgrprotos.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

PG_FUNCTION_INFO_V1(dgen_supervise);
PG_FUNCTION_INFO_V1(dgen_stop_supervisor);
PG_FUNCTION_INFO_V1(dgen_restart_supervisor);
PG_FUNCTION_INFO_V1(dgen_start_child);
PG_FUNCTION_INFO_V1(dgen_restart_child);
PG_FUNCTION_INFO_V1(dgen_terminate_child);
PG_FUNCTION_INFO_V1(dgen_delete_child);
PG_FUNCTION_INFO_V1(dgen_check_supervisor);
PG_FUNCTION_INFO_V1(dgen_may_supervise);

typedef enum IfExists
{
	IF_EXISTS_ERROR,
	IF_EXISTS_RETURN,
	IF_EXISTS_REPLACE
} IfExists;

/* ---------------------------------------------------------------- arguments */

static char *
text_argument(FunctionCallInfo fcinfo, int argno, const char *what)
{
	char	   *text = dgen_arg_text(fcinfo, argno);

	if (text == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("%s must not be null", what),
				 errhint("View dgen.supervisors lists supervisors, dgen.children their children.")));
	return text;
}

static char *
root_argument(FunctionCallInfo fcinfo)
{
	char	   *name = text_argument(fcinfo, 0, "name of a supervisor");

	if (name[0] == '\0' || strchr(name, '/') != NULL || strlen(name) > 512)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_NAME),
				 errmsg("invalid name \"%s\" of a supervisor", name),
				 strchr(name, '/') ? errdetail("It contains \"/\", as the path of a nested one does.") :
				 errdetail("It has %d bytes.", (int) strlen(name)),
				 errhint("The name of a whole tree has 1 to 512 bytes and no \"/\".")));
	return name;
}

static IfExists
if_exists_argument(FunctionCallInfo fcinfo, int argno)
{
	char	   *word = dgen_arg_text(fcinfo, argno);

	if (word == NULL || strcmp(word, "error") == 0)
		return IF_EXISTS_ERROR;
	if (strcmp(word, "return") == 0)
		return IF_EXISTS_RETURN;
	if (strcmp(word, "replace") == 0)
		return IF_EXISTS_REPLACE;
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("invalid value for argument if_exists"),
			 errdetail("Its value is \"%s\".", word),
			 errhint("Allowed are 'error', 'return' and 'replace'.")));
}

/* What changes a tree must have its transaction to itself in a batch. */
static void
begin_change(void)
{
	dgen_check_writable();
	dgen_check_enabled();
	if (dgen_batch_active())
		dgen_batch_split("a supervision tree");
}

/* ---------------------------------------------------------------- rights */

static bool
is_member(const char *owner)
{
	Oid			role = get_role_oid(owner, true);

	return OidIsValid(role) ? has_privs_of_role(GetUserId(), role) : superuser();
}

static void
check_member(DgenSupervisor *sup)
{
	if (is_member(sup->owner))
		return;
	ereport(ERROR,
			(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
			 errmsg("permission denied for supervisor \"%s\"", sup->name),
			 errdetail("It belongs to role \"%s\".", sup->owner),
			 errhint("Have a member of that role do it.")));
}

/* A tree without servers is for those who could have some. */
static void
check_may_supervise(DgenTree *tree)
{
	ListCell   *lc;

	foreach(lc, tree->children)
	{
		if (((DgenChild *) lfirst(lc))->server != NULL)
			return;
	}
	foreach(lc, dgen_module_rows())
	{
		DgenModuleRow *row = lfirst(lc);
		DgenModule *module = dgen_module_get(TextDatumGetCString(row->values[MODULE_NAME]), true);

		if (module != NULL && dgen_module_may_operate(module))
			return;
	}
	ereport(ERROR,
			(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
			 errmsg("permission denied to make a supervisor"),
			 errdetail("There is no module whose servers you may operate."),
			 errhint("Create a module first, by dgen.create_module().")));
}

/* May the current user operate all servers of a child? */
static bool
may_operate(DgenChild *child)
{
	DgenAddress address;
	DgenModule *module;
	List	   *below;
	ListCell   *lc;

	if (child->server != NULL)
	{
		dgen_address_parse(child->server, strlen(child->server), &address);
		module = dgen_module_get(address.module, true);
		return module != NULL && dgen_module_may_operate(module);
	}
	below = dgen_child_list(dgen_child_path(child));
	foreach(lc, below)
	{
		if (!may_operate(lfirst(lc)))
			return false;
	}
	return below != NIL;
}

pg_noreturn static void
no_supervisor(const char *name)
{
	ereport(ERROR,
			(errcode(ERRCODE_UNDEFINED_OBJECT),
			 errmsg("supervisor \"%s\" does not exist", name),
			 errhint("View dgen.supervisors lists them; a nested one is named by its path, as 'shop/sub'.")));
}

/*
 * Have a tree to ourselves, and the supervisor of this name in it; NULL: there
 * is none.  Before the lock its owner is asked for, since nobody else may hold
 * it; after it again, as the supervisor may be another one.
 */
static DgenSupervisor *
lock_tree(const char *name)
{
	DgenSupervisor *sup = dgen_supervisor_read(name);

	if (sup != NULL)
		check_member(sup);
	dgen_tree_lock(name);
	sup = dgen_supervisor_read(name);
	if (sup != NULL)
		check_member(sup);
	return sup;
}

static void
check_running(DgenSupervisor *sup)
{
	if (sup->status == DGEN_SUPERVISOR_RUNNING)
		return;
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("supervisor \"%s\" is not running", sup->name),
			 errdetail("Its reason is: %s.", sup->reason ? sup->reason : "unknown"),
			 errhint("Run dgen.restart_supervisor() for the whole tree, or dgen.restart_child() on the supervisor above.")));
}

/* ---------------------------------------------------------------- checks of a new tree */

/* A server that is to be a child: its module, and that nobody else has it. */
static void
check_new_server(DgenChild *child, const char *root)
{
	DgenAddress address;
	DgenModule *module;
	DgenChild  *other;
	char	   *what = psprintf("Server \"%s\" is child \"%s\" of supervisor \"%s\".",
								child->server, child->id, child->supervisor);

	dgen_address_parse(child->server, strlen(child->server), &address);
	module = dgen_module_get(address.module, true);
	if (module == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_DGEN_NO_MODULE),
				 errmsg("module \"%s\" does not exist", address.module),
				 errdetail("%s", what),
				 errhint("Run SELECT dgen.create_module(%s).", quote_literal_cstr(address.module))));
	if (!dgen_module_may_operate(module))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied for module \"%s\"", module->name),
				 errdetail("%s", what),
				 errhint("Who supervises a server must be a member of its module's owner, or of its operators.")));
	if (module->external)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("server \"%s\" cannot be supervised", address.text),
				 errdetail("Module \"%s\" is external: its messages are handled by clients.", module->name),
				 errhint("A message whose client dies waits again by itself.")));
	if (module->ephemeral)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("server \"%s\" cannot be supervised", address.text),
				 errdetail("Module \"%s\" is ephemeral: its servers live for one message each.", module->name),
				 errhint("Leave it out, or run dgen.alter_module(%s, ephemeral => false).",
						 quote_literal_cstr(module->name))));
	if (child->state == DGEN_STATE_LAST_GOOD && module->machine)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("server \"%s\" cannot be restarted with an older state", address.text),
				 errdetail("%s Module \"%s\" has state machines, whose older versions tell their data, but not their state_name.",
						   what, module->name),
				 errhint("Choose \"keep\" or \"init\".")));
	if (child->state == DGEN_STATE_LAST_GOOD && !dgen_keeps_history(module))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("module \"%s\" keeps no history of states", module->name),
				 errdetail("%s Its \"state\" is \"last_good\".", what),
				 errhint("Run dgen.alter_module(%s, history => '100'), or choose \"keep\" or \"init\".",
						 quote_literal_cstr(module->name))));
	other = dgen_child_of_server(address.text);
	if (other != NULL && (root == NULL ||
						  strncmp(other->supervisor, root, strlen(root)) != 0 ||
						  strchr("/", other->supervisor[strlen(root)]) == NULL))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_IN_USE),
				 errmsg("server \"%s\" has a supervisor already", address.text),
				 errdetail("It is child \"%s\" of supervisor \"%s\".", other->id, other->supervisor),
				 errhint("Take it out by dgen.terminate_child() and dgen.delete_child() first.")));
}

/* root: the tree that this one replaces, or NULL */
static void
check_new_children(DgenTree *tree, const char *root)
{
	ListCell   *lc;

	foreach(lc, tree->children)
	{
		DgenChild  *child = lfirst(lc);

		CHECK_FOR_INTERRUPTS();
		if (child->server != NULL)
			check_new_server(child, root);
	}
}

/* ---------------------------------------------------------------- making */

/* Write the rows of a new tree, all of it down. */
static void
insert_tree(DgenTree *tree)
{
	ListCell   *lc;

	foreach(lc, tree->supervisors)
	{
		DgenSupervisor *sup = lfirst(lc);

		sup->owner = GetUserNameFromId(GetUserId(), false);
		sup->status = DGEN_SUPERVISOR_STOPPED;
		sup->started_at = GetCurrentTimestamp();
		dgen_supervisor_write(sup);
	}
	foreach(lc, tree->children)
	{
		DgenChild  *child = lfirst(lc);

		child->position = dgen_draw_id();
		dgen_child_write(child);
	}
}

/* All children of a tree, those of supervisors before what is below. */
static List *
all_children(const char *supervisor)
{
	List	   *all = NIL;
	ListCell   *lc;

	check_stack_depth();
	foreach(lc, dgen_child_list(supervisor))
	{
		DgenChild  *child = lfirst(lc);

		all = lappend(all, child);
		if (child->server == NULL)
			all = list_concat(all, all_children(dgen_child_path(child)));
	}
	return all;
}

static bool
has_server(DgenTree *tree, const char *server)
{
	ListCell   *lc;

	foreach(lc, tree->children)
	{
		DgenChild  *child = lfirst(lc);

		if (child->server != NULL && strcmp(child->server, server) == 0)
			return true;
	}
	return false;
}

/*
 * Make room for a tree of the same name.  Servers that are in both go on as
 * they are; the others end, right to left.
 */
static void
remove_old_tree(DgenSupervisor *old, DgenTree *tree)
{
	List	   *children = all_children(old->name);

	for (int i = list_length(children) - 1; i >= 0; i--)
	{
		DgenChild  *child = list_nth(children, i);

		if (child->server == NULL)
			dgen_supervisor_delete(dgen_supervisor_read(dgen_child_path(child)));
		if (child->server != NULL && !has_server(tree, child->server))
			dgen_child_remove(child, "shutdown");
		else
			dgen_child_delete(child);
	}
	dgen_supervisor_delete(old);
}

/*
 * supervise(name text, tree jsonb, if_exists text) -> boolean: false if there
 * is one of that name, and if_exists is return.
 */
Datum
dgen_supervise(PG_FUNCTION_ARGS)
{
	char	   *name = root_argument(fcinfo);
	IfExists	if_exists = if_exists_argument(fcinfo, 2);
	DgenTree   *tree = dgen_tree_parse(name, dgen_arg_jsonb(fcinfo, 1));
	DgenSupervisor *old;

	begin_change();
	old = lock_tree(name);
	if (old != NULL && if_exists == IF_EXISTS_RETURN)
		PG_RETURN_BOOL(false);
	if (old != NULL && if_exists == IF_EXISTS_ERROR)
		ereport(ERROR,
				(errcode(ERRCODE_DUPLICATE_OBJECT),
				 errmsg("supervisor \"%s\" already exists", name),
				 errdetail("It belongs to role \"%s\".", old->owner),
				 errhint("Pass if_exists => 'return' to accept that, or 'replace' to put this tree in its place.")));
	check_may_supervise(tree);
	check_new_children(tree, old ? name : NULL);
	dgen_tree_take_leases(list_concat(old ? all_children(name) : NIL, tree->children));
	if (old != NULL)
		remove_old_tree(old, tree);
	insert_tree(tree);
	dgen_supervisor_start(linitial(tree->supervisors));
	PG_RETURN_BOOL(true);
}

/* stop_supervisor(name text, reason text) -> boolean: ends a whole tree and forgets it */
Datum
dgen_stop_supervisor(PG_FUNCTION_ARGS)
{
	char	   *name = root_argument(fcinfo);
	char	   *reason = dgen_arg_text(fcinfo, 1);
	DgenSupervisor *sup;
	List	   *children;

	begin_change();
	sup = lock_tree(name);
	if (sup == NULL)
		no_supervisor(name);
	children = dgen_child_list(name);
	dgen_tree_take_leases(children);
	for (int i = list_length(children) - 1; i >= 0; i--)
		dgen_child_remove(list_nth(children, i), reason ? reason : "shutdown");
	dgen_supervisor_delete(sup);
	PG_RETURN_BOOL(sup->status == DGEN_SUPERVISOR_RUNNING);
}

/* restart_supervisor(name text) -> boolean: a tree that has failed; false: it runs */
Datum
dgen_restart_supervisor(PG_FUNCTION_ARGS)
{
	char	   *name = root_argument(fcinfo);
	DgenSupervisor *sup;

	begin_change();
	sup = lock_tree(name);
	if (sup == NULL)
		no_supervisor(name);
	if (sup->status == DGEN_SUPERVISOR_RUNNING)
		PG_RETURN_BOOL(false);
	dgen_tree_take_leases(dgen_child_list(name));
	dgen_supervisor_start(sup);
	PG_RETURN_BOOL(true);
}

/* ---------------------------------------------------------------- children */

/* start_child(supervisor text, child jsonb) -> text: its id */
Datum
dgen_start_child(PG_FUNCTION_ARGS)
{
	char	   *name = text_argument(fcinfo, 0, "name of a supervisor");
	DgenChild  *child = NULL;
	DgenTree   *tree = dgen_tree_parse_child(name, dgen_arg_jsonb(fcinfo, 1), &child);
	DgenSupervisor *sup;
	DgenChild  *other;

	begin_change();
	sup = lock_tree(name);
	if (sup == NULL)
		no_supervisor(name);
	check_running(sup);
	other = dgen_child_read(name, child->id);
	if (other != NULL)
		ereport(ERROR,
				(errcode(dgen_child_is_running(other) ? ERRCODE_DGEN_ALREADY_STARTED : ERRCODE_DUPLICATE_OBJECT),
				 errmsg("supervisor \"%s\" has a child \"%s\" already", name, child->id),
				 errhint("Use dgen.restart_child() if it is down, or dgen.delete_child() first.")));
	check_new_children(tree, NULL);
	dgen_tree_take_leases(tree->children);
	insert_tree(tree);
	dgen_child_start(child, 0);
	PG_RETURN_TEXT_P(cstring_to_text(child->id));
}

/* The child that the first two arguments name, under the lock of its tree. */
static DgenChild *
child_argument(FunctionCallInfo fcinfo, DgenSupervisor **sup)
{
	char	   *name = text_argument(fcinfo, 0, "name of a supervisor");
	char	   *id = text_argument(fcinfo, 1, "id of a child");
	DgenChild  *child = dgen_child_read(name, id);

	begin_change();
	if (child != NULL && may_operate(child))
	{
		dgen_tree_lock(name);
		*sup = dgen_supervisor_read(name);
	}
	else
		*sup = lock_tree(name);
	if (*sup == NULL)
		no_supervisor(name);
	child = dgen_child_read(name, id);
	if (child != NULL && !may_operate(child))
		check_member(*sup);
	if (child == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("supervisor \"%s\" has no child \"%s\"", name, id),
				 errhint("View dgen.children lists them.")));
	dgen_tree_take_leases(list_make1(child));
	/* who had its lease may have ended it for good */
	child = dgen_child_read(name, id);
	if (child == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
				 errmsg("child \"%s\" of supervisor \"%s\" has ended meanwhile", id, name)));
	return child;
}

static void
refuse_running(DgenChild *child, int sqlerrcode, const char *hint)
{
	if (!dgen_child_is_running(child))
		return;
	ereport(ERROR,
			(errcode(sqlerrcode),
			 errmsg("child \"%s\" of supervisor \"%s\" is running", child->id, child->supervisor),
			 errhint("%s", hint)));
}

/* restart_child(supervisor text, id text): one that is down */
Datum
dgen_restart_child(PG_FUNCTION_ARGS)
{
	DgenSupervisor *sup;
	DgenChild  *child = child_argument(fcinfo, &sup);

	check_running(sup);
	refuse_running(child, ERRCODE_DGEN_ALREADY_STARTED,
				   "Terminate it by dgen.terminate_child() first.");
	child->terminated = false;
	dgen_child_write(child);
	dgen_child_start(child, 0);
	PG_RETURN_VOID();
}

/* terminate_child(supervisor text, id text) -> boolean: false if it was down */
Datum
dgen_terminate_child(PG_FUNCTION_ARGS)
{
	DgenSupervisor *sup;
	DgenChild  *child = child_argument(fcinfo, &sup);
	bool		running = dgen_child_is_running(child);

	if (child->restart == DGEN_TEMPORARY)
		dgen_child_remove(child, "shutdown");
	else
	{
		dgen_child_end(child, "shutdown", false);
		child->terminated = true;
		dgen_child_write(child);
	}
	PG_RETURN_BOOL(running);
}

/* delete_child(supervisor text, id text): one that is down */
Datum
dgen_delete_child(PG_FUNCTION_ARGS)
{
	DgenSupervisor *sup;
	DgenChild  *child = child_argument(fcinfo, &sup);

	refuse_running(child, ERRCODE_OBJECT_IN_USE,
				   "Terminate it by dgen.terminate_child() first.");
	dgen_child_remove(child, "shutdown");
	PG_RETURN_VOID();
}

/* ---------------------------------------------------------------- views */

/* may_supervise(owner text) -> boolean: a member of the role, for views */
Datum
dgen_may_supervise(PG_FUNCTION_ARGS)
{
	char	   *owner = dgen_arg_text(fcinfo, 0);

	PG_RETURN_BOOL(owner != NULL && is_member(owner));
}

/* check_supervisor(name text) -> boolean: true, or an error that says why not */
Datum
dgen_check_supervisor(PG_FUNCTION_ARGS)
{
	char	   *name = text_argument(fcinfo, 0, "name of a supervisor");
	DgenSupervisor *sup = dgen_supervisor_read(name);

	if (sup == NULL)
		no_supervisor(name);
	check_member(sup);
	PG_RETURN_BOOL(true);
}
