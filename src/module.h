/*-------------------------------------------------------------------------
 *
 * module.h
 *	  What module.c, callback.c and module_api.c share, and nobody else needs.
 *
 *-------------------------------------------------------------------------
 */
#ifndef DGEN_MODULE_H
#define DGEN_MODULE_H

#include "dgen.h"

/*
 * Options of a module.  One table, dgen_module_options[], says all about
 * them: create_module and alter_module check and default by it, the cache
 * reads by it.  Its order is that of the columns of dgen.module and of the
 * arguments of both functions.
 */
typedef enum DgenOptionType
{
	DGEN_OPTION_BOOL,			/* bool field */
	DGEN_OPTION_FLAG,			/* one of two words; bool field: is it the second */
	DGEN_OPTION_LEVEL,			/* isolation level; int field: XACT_... */
	DGEN_OPTION_WORD,			/* one of some words; int field: which */
	DGEN_OPTION_INT,
	DGEN_OPTION_INT64,
	DGEN_OPTION_DOUBLE,
	DGEN_OPTION_MSEC,			/* interval; int field */
	DGEN_OPTION_SECONDS,		/* interval; double field */
	DGEN_OPTION_USEC,			/* interval; int64 field */
	DGEN_OPTION_KEYS,			/* text[]; ArrayType * field */
	DGEN_OPTION_SEARCH_PATH,	/* text from here on; char * field */
	DGEN_OPTION_TIMEZONE,
	DGEN_OPTION_ROLE,
	DGEN_OPTION_HISTORY,
	DGEN_OPTION_CHANNEL,
	DGEN_OPTION_TEXT
} DgenOptionType;

#define DGEN_MAX_WORDS 4

typedef struct DgenOption
{
	const char *name;
	DgenOptionType type;
	size_t		offset;			/* of the field in DgenModule */
	double		initial;		/* index of the word; intervals in microseconds */
	double		min;			/* of numbers; intervals in microseconds */
	double		max;
	const char *words[DGEN_MAX_WORDS];
} DgenOption;

#define DGEN_NOPTIONS 38
extern const DgenOption dgen_module_options[DGEN_NOPTIONS];

/* columns of dgen.module, as sql/tables.sql has them, from 0 */
enum
{
	MODULE_NAME,
	MODULE_ID,
	MODULE_SCHEMA,
	MODULE_CALLBACKS,
	MODULE_OWNER,
	MODULE_OPTIONS,				/* the first of them */
	MODULE_CREATED_AT = MODULE_OPTIONS + DGEN_NOPTIONS,
	MODULE_SUSPENDED_AT,
	MODULE_SUSPENDED_BY,
	MODULE_SUSPENDED_REASON,
	MODULE_NATTS
};

/* a row of dgen.module, nothing in it toasted */
typedef struct DgenModuleRow
{
	ItemPointerData tid;
	bool		uncommitted;
	Datum		values[MODULE_NATTS];
	bool		nulls[MODULE_NATTS];
} DgenModuleRow;

/* module.c */
extern bool dgen_module_row_read(const char *name, DgenModuleRow *row);
extern List *dgen_module_rows(void);
extern void dgen_module_row_insert(DgenModuleRow *row);
extern void dgen_module_row_update(DgenModuleRow *row);
extern void dgen_module_row_delete(DgenModuleRow *row);
extern void dgen_module_lock(const char *name);
extern DgenModule *dgen_module_build(const DgenModuleRow *row);
pg_noreturn extern void dgen_module_missing(const char *name);
extern void dgen_module_watch_rowtype(Oid relid);

/* one function in_<state> */
typedef struct DgenStateCallback
{
	char	   *state;
	DgenCallback cb;
} DgenStateCallback;

/* callback.c */
extern DgenCallback *dgen_callback_of_state(DgenModule *module, const char *state);
pg_noreturn extern void dgen_state_unusable(DgenModule *module, DgenCallback *cb, const char *state);
extern void dgen_callbacks_check_mapping(Jsonb *mapping);
extern void dgen_callbacks_resolve(DgenModule *module, Jsonb *mapping);
pg_noreturn extern void dgen_callback_unusable(DgenModule *module, DgenCallbackKind kind);
extern Jsonb *dgen_callbacks_to_jsonb(DgenModule *module);
extern char *dgen_callbacks_faults(DgenModule *module);

#endif							/* DGEN_MODULE_H */
