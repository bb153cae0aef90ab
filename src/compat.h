/*-------------------------------------------------------------------------
 *
 * compat.h
 *	  PostgreSQL 15 to 18 in one code base: every version difference, as a
 *	  shim named like the newest API where that is possible.
 *
 *-------------------------------------------------------------------------
 */
#ifndef DGEN_COMPAT_H
#define DGEN_COMPAT_H

#include "postgres.h"
#include "fmgr.h"

#if PG_VERSION_NUM < 150000
#error "dgen needs PostgreSQL 15 or later"
#endif

#include "access/tableam.h"

#if PG_VERSION_NUM >= 160000
#include "varatt.h"
#endif

/* table_tuple_update() tells which indexes need entries: a bool before 16 */
#if PG_VERSION_NUM >= 160000
typedef TU_UpdateIndexes DgenUpdateIndexes;
#define DGEN_NEEDS_INDEXES(u) ((u) == TU_All)
#define DGEN_NEEDS_SOME_INDEXES(u) ((u) != TU_None)
#define DGEN_NEEDS_SUMMARIES(u) ((u) == TU_Summarizing)
#else
#include "executor/executor.h"
typedef bool DgenUpdateIndexes;
#define DGEN_NEEDS_INDEXES(u) (u)
#define DGEN_NEEDS_SOME_INDEXES(u) (u)
#define DGEN_NEEDS_SUMMARIES(u) false
#define ExecInsertIndexTuples(info, slot, estate, update, no_error, conflict, arbiters, summarizing) \
	ExecInsertIndexTuples(info, slot, estate, update, no_error, conflict, arbiters)
#endif

/* 17 replaced backend ids and pgprocno by ProcNumber */
#if PG_VERSION_NUM >= 170000
#include "storage/procnumber.h"
#define MyProcIndex MyProcNumber
#define VXID_PROC(vxid) ((vxid).procNumber)
#define MyLxid (MyProc->vxid.lxid)
#define MyVxidProc (MyProc->vxid.procNumber)
#else
#define MyProcIndex (MyProc->pgprocno)
#include "storage/sinvaladt.h"
#define VXID_PROC(vxid) ((vxid).backendId)
#define ProcNumberGetProc(number) BackendIdGetProc(number)
#define MyLxid (MyProc->lxid)
#define MyVxidProc (MyProc->backendId)
#endif

/* 16 named it */
#if PG_VERSION_NUM < 160000
#define pgstat_get_local_beentry_by_index(i) pgstat_fetch_stat_local_beentry(i)
#endif

/* 16: one function for the rights on any object; SET ROLE apart from membership */
#include "utils/acl.h"
#if PG_VERSION_NUM < 160000
#include "catalog/pg_namespace_d.h"
#include "catalog/pg_proc_d.h"
#define object_aclcheck(classid, oid, role, mode) \
	((classid) == NamespaceRelationId ? pg_namespace_aclcheck(oid, role, mode) : \
	 (classid) == ProcedureRelationId ? pg_proc_aclcheck(oid, role, mode) : \
	 pg_database_aclcheck(oid, role, mode))
#define member_can_set_role(member, role) is_member_of_role(member, role)
/* for databases only */
#define object_ownercheck(classid, oid, role) pg_database_ownercheck(oid, role)
#endif

/*
 * 17: wait events of extensions have names; a JSON lexer may be the caller's.
 * Escapes are decoded where that takes no conversion, which could fail.
 */
#if PG_VERSION_NUM >= 170000
#define json_lexer(json, len) \
	makeJsonLexContextCstringLen(NULL, json, len, GetDatabaseEncoding(), \
								 GetDatabaseEncoding() == PG_UTF8)
#else
#define WaitEventExtensionNew(name) PG_WAIT_EXTENSION
#define json_lexer(json, len) \
	makeJsonLexContextCstringLen(json, len, GetDatabaseEncoding(), \
								 GetDatabaseEncoding() == PG_UTF8)
#define freeJsonLexContext(lex) pfree(lex)
#endif

/* 17: infinite intervals; background workers for roles that may not log in */
#if PG_VERSION_NUM >= 170000
#define DGEN_OWNER_MUST_LOGIN false
#else
#define INTERVAL_NOT_FINITE(span) false
#define DGEN_OWNER_MUST_LOGIN true
#endif

#if PG_VERSION_NUM >= 170000
#define LockHeldByMeExactly(tag, mode) LockHeldByMe((tag), (mode), false)
#else
#define LockHeldByMeExactly(tag, mode) LockHeldByMe((tag), (mode))
#endif

/* 16: what rights a statement needs is apart from its range table */
#if PG_VERSION_NUM >= 160000
#include "nodes/parsenodes.h"
typedef RTEPermissionInfo DgenPermissions;
#define DGEN_CHECK_PERMS_ARGS List *rtable, List *permissions, bool ereport_on_violation
#define DGEN_CHECK_PERMS_PASS rtable, permissions, ereport_on_violation
#define DGEN_CHECK_PERMS_LIST permissions
#else
#include "nodes/parsenodes.h"
typedef RangeTblEntry DgenPermissions;
#define DGEN_CHECK_PERMS_ARGS List *rtable, bool ereport_on_violation
#define DGEN_CHECK_PERMS_PASS rtable, ereport_on_violation
#define DGEN_CHECK_PERMS_LIST rtable
#endif

/* 16: instr_time is a number of nanoseconds */
#if PG_VERSION_NUM < 160000
#define INSTR_TIME_GET_NANOSEC(t) \
	((int64) (t).tv_sec * INT64CONST(1000000000) + (int64) (t).tv_nsec)
#endif

/* libpq/libpq.h wants headers of GSSAPI where the server was built with it */
extern bool pq_check_connection(void);

/* 18: a portal is always run once */
#if PG_VERSION_NUM >= 180000
#define DgenPortalRun(portal, dest) PortalRun(portal, FETCH_ALL, true, dest, dest, NULL)
#else
#define DgenPortalRun(portal, dest) PortalRun(portal, FETCH_ALL, true, true, dest, dest, NULL)
#endif

/* 18 writes noreturn in front */
#if PG_VERSION_NUM < 180000
#define pg_noreturn pg_attribute_noreturn()
#endif

#endif							/* DGEN_COMPAT_H */
