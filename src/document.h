/*-------------------------------------------------------------------------
 *
 * document.h
 *	  Building and reading the jsonb documents of operators' functions.
 *
 *-------------------------------------------------------------------------
 */
#ifndef DGEN_DOCUMENT_H
#define DGEN_DOCUMENT_H

#include "dgen.h"

typedef JsonbParseState *DgenDoc;

/* key NULL: an element of an array; open and close are WJB_BEGIN_ and WJB_END_ tokens */
extern void dgen_doc_open(DgenDoc *doc, const char *key, JsonbIteratorToken token);
extern Jsonb *dgen_doc_finish(DgenDoc *doc);	/* of the object that is open last */
/* none of these writes a value that is missing: NULL, a time of 0 or infinity; a jsonb must live on */
extern void dgen_doc_text(DgenDoc *doc, const char *key, const char *value);
extern void dgen_doc_time(DgenDoc *doc, const char *key, TimestampTz value);
extern void dgen_doc_interval(DgenDoc *doc, const char *key, const Interval *value);
extern void dgen_doc_jsonb(DgenDoc *doc, const char *key, Jsonb *value);
extern void dgen_doc_int(DgenDoc *doc, const char *key, int64 value);
extern void dgen_doc_true(DgenDoc *doc, const char *key, bool value);	/* only if it is */

/* what a document has under a key; 22023 if that is of another type */
extern Jsonb *dgen_doc_get(Jsonb *doc, const char *key);	/* NULL: nothing */
extern char *dgen_doc_get_text(Jsonb *doc, const char *key);	/* NULL: nothing, or null */
extern char *dgen_doc_need_text(Jsonb *doc, const char *key);
extern TimestampTz dgen_doc_get_time(Jsonb *doc, const char *key, TimestampTz otherwise);
extern Interval *dgen_doc_get_interval(Jsonb *doc, const char *key);	/* or NULL */
extern int64 dgen_doc_get_int(Jsonb *doc, const char *key, int64 otherwise);
extern bool dgen_doc_get_bool(Jsonb *doc, const char *key);	/* false: nothing */
extern List *dgen_doc_get_array(Jsonb *doc, const char *key);	/* of objects, Jsonb * */
/* 22023 if there is a key that is not among these; the list ends with NULL */
extern void dgen_doc_check_keys(Jsonb *doc, const char *what, const char *const *keys);

/* one message, or dead letter */
extern void dgen_doc_message(DgenDoc *doc, const char *key, const DgenMessage *msg, const char *status);
extern void dgen_doc_get_message(Jsonb *doc, const DgenAddress *to, DgenMessage *msg);

/* what a dead letter has besides, from and into its row */
extern void dgen_doc_letter(DgenDoc *doc, HeapTuple tuple, TupleDesc desc);
extern void dgen_doc_insert_letter(Jsonb *doc, DgenMessage *msg);
extern Jsonb *dgen_doc_suspension(TimestampTz at, const char *by, const char *reason);

#define DGEN_DOCUMENT_FORMAT 1

/*
 * export.c: a server as a document.  limit 0: whatever its size; else NULL if
 * it has more bytes, about.
 */
extern Jsonb *dgen_export_server(DgenModule *module, const DgenAddress *address, DgenServer *server,
								 bool with_mailbox, bool with_history, Snapshot snapshot, Size limit);
extern Jsonb *dgen_export_read(DgenModule *module, const DgenAddress *address, bool with_mailbox,
							   bool with_history);

/*
 * import.c: a server of a document, in two steps.  The second is under the
 * lease of a server of which nothing is left, and changes it in memory.
 */
typedef struct DgenImport
{
	Jsonb	   *document;
	bool		with_mailbox;
	bool		with_names;
	bool		trusted;		/* the document is dgen's own */
	bool		clone;			/* without what the original alone has promised */
	const char *kind;			/* of the version that it makes */
} DgenImport;
extern void dgen_import_check(DgenModule *module, const DgenImport *import);
/* as dgen.import() does it; replace: what there is goes.  Returns the incarnation. */
extern int64 dgen_import_server(DgenModule *module, const DgenAddress *address,
								const DgenImport *import, bool replace, const char *reason);

/* of a server in hand that does not run: it runs again, with the document's state and names */
extern void dgen_import_revive(DgenModule *module, const DgenAddress *address, DgenServer *server,
							   const DgenImport *import, const char *reason);

#endif							/* DGEN_DOCUMENT_H */
