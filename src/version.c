/*-------------------------------------------------------------------------
 *
 * version.c
 *	  Does the extension in this database fit the library?
 *
 * Between the installation of a new library, which counts from the server's
 * next start, and ALTER EXTENSION dgen UPDATE in each database, library and
 * tables are of different versions.  A library works with all versions of the
 * extension whose first two numbers are its own: these differ in columns that
 * may be null and in functions, and it leaves to their nulls the columns that
 * it does not know.  With any other version it touches no table.
 *
 * Whoever opens one of dgen's tables asks for its OID first, and table.c
 * forgets OIDs whenever the extension is altered, see lifecycle.c; so this is
 * read once and costs nothing after that.  The keeper looks before it arms a
 * database; where nothing fits it says so once, and leaves, so that nobody
 * works there until the extension is altered or the server restarted.
 *
 * The arguments of a C function never change: one that needs others gets a
 * new name, and the old one stays for scripts of earlier versions.
 *
 * Runs in any process, in a transaction.  Takes no lock that it keeps.
 *
 *-------------------------------------------------------------------------
 */
#include "dgen.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "catalog/pg_extension.h"
#include "commands/extension.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/rel.h"

#ifndef DGEN_VERSION
#error "DGEN_VERSION is defined by the Makefile, from dgen.control"
#endif

/* extversion in the current memory context; NULL: no such extension here */
static char *
read_version(void)
{
	Relation	rel = table_open(ExtensionRelationId, AccessShareLock);
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	tuple;
	char	   *version = NULL;

	ScanKeyInit(&key, Anum_pg_extension_extname, BTEqualStrategyNumber, F_NAMEEQ,
				CStringGetDatum("dgen"));
	scan = systable_beginscan(rel, ExtensionNameIndexId, true, NULL, 1, &key);
	tuple = systable_getnext(scan);
	if (HeapTupleIsValid(tuple))
	{
		bool		isnull;
		Datum		value = heap_getattr(tuple, Anum_pg_extension_extversion,
										 RelationGetDescr(rel), &isnull);

		version = isnull ? pstrdup("") : TextDatumGetCString(value);
	}
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	return version;
}

/* The first two numbers of a version as one; -1 where there are none. */
static int
series_of(const char *version)
{
	int			major;
	int			minor;

	if (sscanf(version, "%4d.%4d", &major, &minor) != 2)
		return -1;
	return major * 10000 + minor;
}

/*
 * What keeps the library from working with the extension; NULL: nothing, or
 * there is no extension.  newer, if wanted: it is of a later version than ours.
 */
DgenError *
dgen_version_fault(bool *newer)
{
	int			ours = series_of(DGEN_VERSION);
	char	   *version = read_version();
	DgenError  *fault;
	int			theirs;

	if (version == NULL || (theirs = series_of(version)) == ours)
		return NULL;
	if (newer != NULL)
		*newer = theirs > ours;
	fault = palloc0(sizeof(DgenError));
	fault->sqlerrcode = ERRCODE_DGEN_NOT_ENABLED;
	fault->message = psprintf("version \"%s\" of extension \"dgen\" does not fit its library",
							  version);
	fault->detail = psprintf("The library is of version %s, and works with versions %d.%d and %d.%d.x.",
							 DGEN_VERSION, ours / 10000, ours % 10000, ours / 10000, ours % 10000);
	fault->hint = pstrdup(theirs < ours ? "Run ALTER EXTENSION dgen UPDATE." :
						  "Install the library of that version, and restart the server.");
	return fault;
}

/* Say it at this level: as an error, or in the log. */
void
dgen_version_report(int elevel, const DgenError *fault)
{
	ereport(elevel,
			(errcode(fault->sqlerrcode),
			 errmsg_internal("%s", fault->message),
			 errdetail_internal("%s", fault->detail),
			 errhint("%s", fault->hint)));
}
