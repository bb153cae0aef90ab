/*-------------------------------------------------------------------------
 *
 * guard.c
 *	  Keeps dgen's schema dgen's: nobody but the library writes the tables, and
 *	  the extension is made in no schema that is another's.
 *
 * Who could write dgen.module or dgen.message could have code run as anybody,
 * so no role is granted anything on them, and what default privileges grant is
 * taken back.  But members of pg_write_all_data may write all tables there are,
 * and are meant to change data, not to become superuser: a check of ours refuses
 * it to all but superusers.  pg_read_all_data may read the tables, as it may
 * read those of the modules.
 *
 * CREATE EXTENSION takes a schema that exists.  One that was prepared by
 * somebody else holds what he has put there, and he may put more there at any
 * time, under names that users take for dgen's.
 *
 * Runs in backends and workers; takes no locks of its own.
 *
 *-------------------------------------------------------------------------
 */
#include "dgen.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "catalog/dependency.h"
#include "catalog/indexing.h"
#include "catalog/pg_class.h"
#include "catalog/pg_depend.h"
#include "catalog/pg_extension.h"
#include "catalog/pg_namespace.h"
#include "commands/extension.h"
#include "executor/executor.h"
#include "nodes/makefuncs.h"
#include "utils/acl.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"
#include "utils/syscache.h"

static ExecutorCheckPerms_hook_type prev_check_perms = NULL;

/* ---------------------------------------------------------------- tables */

/* Would this write what is dgen's, for one who may not? */
static bool
is_forbidden(Oid relid, AclMode wanted, Oid user)
{
	if ((wanted & (ACL_INSERT | ACL_UPDATE | ACL_DELETE)) == 0)
		return false;
	if (!OidIsValid(user))
		user = GetUserId();
	return OidIsValid(dgen_schema()) && get_rel_namespace(relid) == dgen_schema() &&
		!superuser_arg(user);
}

static void
refuse_write(Oid relid)
{
	ereport(ERROR,
			(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
			 get_rel_relkind(relid) == RELKIND_VIEW ?
			 errmsg("permission denied for view %s", get_rel_name(relid)) :
			 errmsg("permission denied for table %s", get_rel_name(relid)),
			 errdetail("The tables of dgen are written by its functions only, whatever role one is a member of."),
			 errhint("Use these functions; a superuser may repair the tables.")));
}

/* Called when PostgreSQL's own checks of a statement have passed. */
static bool
check_perms(DGEN_CHECK_PERMS_ARGS)
{
	ListCell   *lc;

	foreach(lc, DGEN_CHECK_PERMS_LIST)
	{
		DgenPermissions *info = lfirst(lc);

		if (!is_forbidden(info->relid, info->requiredPerms, info->checkAsUser))
			continue;
		if (ereport_on_violation)
			refuse_write(info->relid);
		return false;
	}
	return prev_check_perms == NULL || prev_check_perms(DGEN_CHECK_PERMS_PASS);
}

void
dgen_guard_install(void)
{
	prev_check_perms = ExecutorCheckPerms_hook;
	ExecutorCheckPerms_hook = check_perms;
}

/* ---------------------------------------------------------------- grants */

static RoleSpec *
role_spec(Oid role)
{
	RoleSpec   *spec = makeNode(RoleSpec);

	spec->roletype = role == ACL_ID_PUBLIC ? ROLESPEC_PUBLIC : ROLESPEC_CSTRING;
	spec->rolename = role == ACL_ID_PUBLIC ? NULL : GetUserNameFromId(role, false);
	spec->location = -1;
	return spec;
}

/*
 * A List of RoleSpec: who has rights on a relation besides its owner.  Of a
 * view everybody has what the script gives, which is to read it.
 */
static List *
grantees_of(Oid relid)
{
	HeapTuple	tuple = SearchSysCache1(RELOID, ObjectIdGetDatum(relid));
	List	   *grantees = NIL;
	Form_pg_class form;
	Datum		value;
	bool		isnull;

	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for relation %u", relid);
	form = (Form_pg_class) GETSTRUCT(tuple);
	value = SysCacheGetAttr(RELOID, tuple, Anum_pg_class_relacl, &isnull);
	if (!isnull)
	{
		Acl		   *acl = DatumGetAclPCopy(value);

		for (int i = 0; i < ACL_NUM(acl); i++)
		{
			Oid			grantee = ACL_DAT(acl)[i].ai_grantee;

			if (grantee != form->relowner &&
				(form->relkind != RELKIND_VIEW || grantee != ACL_ID_PUBLIC))
				grantees = lappend(grantees, role_spec(grantee));
		}
	}
	ReleaseSysCache(tuple);
	return grantees;
}

/*
 * A table or a sequence of ours has been made.  It is nobody's, also where ALTER
 * DEFAULT PRIVILEGES has granted something on all that its owner makes.  A view
 * may be read by all, and nobody may have a trigger on it, which would run as
 * whoever writes there.
 */
void
dgen_guard_revoke(Oid relid)
{
	GrantStmt  *revoke = makeNode(GrantStmt);

	revoke->grantees = grantees_of(relid);
	if (revoke->grantees == NIL)
		return;
	revoke->targtype = ACL_TARGET_OBJECT;
	revoke->objtype = get_rel_relkind(relid) == RELKIND_SEQUENCE ? OBJECT_SEQUENCE : OBJECT_TABLE;
	revoke->objects = list_make1(makeRangeVar(get_namespace_name(get_rel_namespace(relid)),
											  get_rel_name(relid), -1));
	revoke->behavior = DROP_CASCADE;
	ExecuteGrantStmt(revoke);
	CommandCounterIncrement();
}

/* All tables, views and sequences in the schema. */
static void
revoke_all(Oid schema)
{
	Relation	rel = table_open(RelationRelationId, AccessShareLock);
	List	   *found = NIL;
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	tuple;
	ListCell   *lc;

	ScanKeyInit(&key, Anum_pg_class_relnamespace, BTEqualStrategyNumber, F_OIDEQ,
				ObjectIdGetDatum(schema));
	scan = systable_beginscan(rel, InvalidOid, false, NULL, 1, &key);
	while ((tuple = systable_getnext(scan)) != NULL)
	{
		Form_pg_class form = (Form_pg_class) GETSTRUCT(tuple);

		if (form->relkind == RELKIND_RELATION || form->relkind == RELKIND_SEQUENCE ||
			form->relkind == RELKIND_VIEW)
			found = lappend_oid(found, form->oid);
	}
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	foreach(lc, found)
		dgen_guard_revoke(lfirst_oid(lc));
}

/* ---------------------------------------------------------------- the schema */

static void
refuse_schema(const char *detail)
{
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("extension \"dgen\" cannot be created in the schema \"%s\" that exists", DGEN_SCHEMA),
			 errdetail_internal("%s", detail),
			 errhint("Drop or rename the schema: CREATE EXTENSION makes its own.")));
}

/* Who may make something in it must be a superuser, as the extension's owner is. */
static void
check_schema_rights(Oid schema)
{
	HeapTuple	tuple = SearchSysCache1(NAMESPACEOID, ObjectIdGetDatum(schema));
	Datum		value;
	bool		isnull;
	Oid			owner;

	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for schema %u", schema);
	owner = ((Form_pg_namespace) GETSTRUCT(tuple))->nspowner;
	if (!superuser_arg(owner))
		refuse_schema(psprintf("It belongs to role \"%s\", who is no superuser.",
							   GetUserNameFromId(owner, false)));
	value = SysCacheGetAttr(NAMESPACEOID, tuple, Anum_pg_namespace_nspacl, &isnull);
	if (!isnull)
	{
		Acl		   *acl = DatumGetAclPCopy(value);

		for (int i = 0; i < ACL_NUM(acl); i++)
		{
			AclItem    *item = &ACL_DAT(acl)[i];

			if ((ACLITEM_GET_PRIVS(*item) & ACL_CREATE) != 0 &&
				(item->ai_grantee == ACL_ID_PUBLIC || !superuser_arg(item->ai_grantee)))
				refuse_schema("Others than superusers have CREATE on it.");
		}
	}
	ReleaseSysCache(tuple);
}

/*
 * CREATE EXTENSION is about to end: all that is in the schema must be the
 * extension's, and its tables nobody's.
 */
void
dgen_guard_check_schema(void)
{
	Oid			schema = dgen_schema();
	Relation	depend = table_open(DependRelationId, AccessShareLock);
	ScanKeyData keys[2];
	SysScanDesc scan;
	HeapTuple	tuple;

	check_schema_rights(schema);
	ScanKeyInit(&keys[0], Anum_pg_depend_refclassid, BTEqualStrategyNumber, F_OIDEQ,
				ObjectIdGetDatum(NamespaceRelationId));
	ScanKeyInit(&keys[1], Anum_pg_depend_refobjid, BTEqualStrategyNumber, F_OIDEQ,
				ObjectIdGetDatum(schema));
	scan = systable_beginscan(depend, DependReferenceIndexId, true, NULL, 2, keys);
	while ((tuple = systable_getnext(scan)) != NULL)
	{
		Form_pg_depend form = (Form_pg_depend) GETSTRUCT(tuple);
		ObjectAddress object;

		ObjectAddressSubSet(object, form->classid, form->objid, form->objsubid);
		if (form->classid != ExtensionRelationId &&
			getExtensionOfObject(form->classid, form->objid) != CurrentExtensionObject)
			refuse_schema(psprintf("It holds %s.", getObjectDescription(&object, false)));
	}
	systable_endscan(scan);
	table_close(depend, AccessShareLock);
	revoke_all(schema);
}
