/*-------------------------------------------------------------------------
 *
 * dgen.h
 *	  Shared types and prototypes, grouped by the file that owns them.
 *
 * src/README.md draws how these parts meet: the life of a message, of a call
 * and of a worker, the lock order, and who may touch what in shared memory.
 *
 *-------------------------------------------------------------------------
 */
#ifndef DGEN_H
#define DGEN_H

#include "compat.h"

#include "access/detoast.h"
#include "access/genam.h"
#include "access/xact.h"
#include "datatype/timestamp.h"
#include "executor/tuptable.h"
#include "lib/dshash.h"
#include "miscadmin.h"
#include "nodes/parsenodes.h"
#include "port/atomics.h"
#include "storage/latch.h"
#include "storage/lock.h"
#include "storage/lwlock.h"
#include "utils/builtins.h"
#include "utils/dsa.h"
#include "utils/jsonb.h"
#include "utils/relcache.h"
#include "utils/resowner.h"
#include "utils/snapshot.h"
#include "utils/timestamp.h"

#define DGEN_SCHEMA "dgen"
#define DGEN_MAX_ADDRESS 512	/* bytes of module '/' key */

/* SQLSTATEs, class OT */
#define ERRCODE_DGEN_TIMEOUT			MAKE_SQLSTATE('O','T','0','0','1')
#define ERRCODE_DGEN_UNKNOWN_OUTCOME	MAKE_SQLSTATE('O','T','0','0','2')
#define ERRCODE_DGEN_NO_SERVER			MAKE_SQLSTATE('O','T','0','0','3')
#define ERRCODE_DGEN_NO_MODULE			MAKE_SQLSTATE('O','T','0','0','4')
#define ERRCODE_DGEN_NO_CALLBACK		MAKE_SQLSTATE('O','T','0','0','5')
#define ERRCODE_DGEN_BAD_ADDRESS		MAKE_SQLSTATE('O','T','0','0','6')
#define ERRCODE_DGEN_MAILBOX_FULL		MAKE_SQLSTATE('O','T','0','0','7')
#define ERRCODE_DGEN_STOPPED			MAKE_SQLSTATE('O','T','0','0','8')
#define ERRCODE_DGEN_CALL_CYCLE			MAKE_SQLSTATE('O','T','0','0','9')
#define ERRCODE_DGEN_WOULD_OVERTAKE		MAKE_SQLSTATE('O','T','0','1','0')
#define ERRCODE_DGEN_BAD_DIRECTIVE		MAKE_SQLSTATE('O','T','0','1','1')
#define ERRCODE_DGEN_INVALID_STATE		MAKE_SQLSTATE('O','T','0','1','2')
#define ERRCODE_DGEN_KEY_REUSED			MAKE_SQLSTATE('O','T','0','1','3')
#define ERRCODE_DGEN_STALE_TOKEN		MAKE_SQLSTATE('O','T','0','1','4')
#define ERRCODE_DGEN_NO_WORKER			MAKE_SQLSTATE('O','T','0','1','5')
#define ERRCODE_DGEN_HANDLER_TIMEOUT	MAKE_SQLSTATE('O','T','0','1','6')
#define ERRCODE_DGEN_NOT_ENABLED		MAKE_SQLSTATE('O','T','0','1','7')
#define ERRCODE_DGEN_VERSION_MISMATCH	MAKE_SQLSTATE('O','T','0','1','8')
#define ERRCODE_DGEN_ALREADY_STARTED	MAKE_SQLSTATE('O','T','0','1','9')
#define ERRCODE_DGEN_WORKER_LOST		MAKE_SQLSTATE('O','T','0','2','0')
#define ERRCODE_DGEN_REFUSED			MAKE_SQLSTATE('O','T','0','2','1')

/* dsa pointers are dsa_pointer; small array indexes into shared memory: */
#define DGEN_NONE (-1)

/* ------------------------------------------------------------------ dgen.c */

extern PGDLLEXPORT void _PG_init(void);

/* ------------------------------------------------------------------- guc.c
 *
 * All GUC variables.  dgen_guc_define() is called once, from _PG_init.
 */
typedef enum DgenInTransaction
{
	DGEN_IN_TRANSACTION_ALLOW,
	DGEN_IN_TRANSACTION_WARN,
	DGEN_IN_TRANSACTION_ERROR
} DgenInTransaction;

extern bool dgen_enabled;			/* dgen.enabled: run anything at all */
extern int	dgen_max_workers;		/* dgen.max_workers, a database */
extern int	dgen_max_long_workers;	/* dgen.max_long_workers, a database */
extern int	dgen_max_ready;			/* dgen.max_ready: servers with work, cluster */
extern int	dgen_shared_memory;		/* dgen.shared_memory, kB: calls in flight */
extern int	dgen_worker_idle_timeout;	/* ms */
extern int	dgen_cache_size;		/* kB a worker may keep of states */
extern int	dgen_max_stat_modules;	/* dgen.max_stat_modules: modules of the cluster that are counted */
extern int	dgen_log_min_handler_duration;	/* ms; -1: off */
extern int	dgen_audit_retention;	/* minutes; -1: for ever, 0: nothing is audited */
extern int	dgen_audit_max_size;	/* kB of a value that is kept */
extern char *dgen_context;			/* dgen.context: jsonb text or "" */
extern int	dgen_call_in_transaction;	/* DgenInTransaction */
extern bool dgen_inline;			/* dgen.inline */
extern bool dgen_drop_doorbells;	/* developer: lose every doorbell */
extern char *dgen_waitpoint;		/* developer: where to stop, see waitpoint.c */

extern void dgen_guc_define(void);

/* ---------------------------------------------------------------- errors.c
 *
 * Errors as values: what a worker sends to a caller, what an attempt or a
 * dead letter keeps.
 */
typedef struct DgenError
{
	int			sqlerrcode;
	char	   *message;
	char	   *detail;			/* or NULL, as the next two */
	char	   *hint;
	char	   *context;
} DgenError;

extern ErrorData *dgen_subxact_abort(MemoryContext mcxt, ResourceOwner owner);
extern DgenError *dgen_error_copy(ErrorData *edata);
extern Size dgen_error_size(const DgenError *err);
extern void dgen_error_pack(const DgenError *err, char *to);
extern DgenError *dgen_error_unpack(const char *from);
extern Jsonb *dgen_error_to_jsonb(const DgenError *err);
extern DgenError *dgen_error_from_jsonb(Jsonb *jb);
extern const char *dgen_error_sqlstate(const DgenError *err);
pg_noreturn extern void dgen_error_throw(const DgenError *err);

/* what an error means for the message that raised it */
typedef enum DgenFault
{
	DGEN_FAULT_OWN,				/* counts as an attempt */
	DGEN_FAULT_CONFLICT,		/* 40001, 40P01: try again at once */
	DGEN_FAULT_ENVIRONMENT		/* holds the server, does not count */
} DgenFault;
extern DgenFault dgen_error_fault(int sqlerrcode);

/* --------------------------------------------------------------- address.c */
typedef struct DgenAddress
{
	char		text[DGEN_MAX_ADDRESS + 1]; /* module '/' key */
	char		module[NAMEDATALEN];
	int			len;
	int64		hash;			/* never 0 */
} DgenAddress;

/* a registered name is looked up; OT006 or OT003 with a hint; NULL text is an error too */
extern void dgen_address_parse(const char *s, int len, DgenAddress *out);
extern void dgen_address_arg(FunctionCallInfo fcinfo, int argno, DgenAddress *out);
extern int64 dgen_address_hash(const char *s, int len);

/* ---------------------------------------------------------------- module.c
 *
 * A module as the catalog says it is, cached in each process until pg_proc,
 * pg_namespace, pg_authid or dgen.module change.  A DgenModule is valid until
 * the next dgen_module_* call that may read the catalog: within a batch the
 * worker pins it by dgen_module_hold().
 */
typedef enum DgenCallbackKind
{
	DGEN_INIT,
	DGEN_HANDLE_CALL,
	DGEN_HANDLE_CAST,
	DGEN_HANDLE_INFO,
	DGEN_HANDLE_CONTINUE,
	DGEN_HANDLE_QUERY,
	DGEN_HANDLE_LOCKED,
	DGEN_HANDLE_DEAD_LETTER,
	DGEN_TERMINATE,
	DGEN_CODE_CHANGE,
	DGEN_VALIDATE,
	DGEN_ACCEPT,
	DGEN_ATTRIBUTES,
	DGEN_FORMAT_STATUS,
	DGEN_FORMAT_MESSAGE,
	DGEN_HANDLE_EVENT,			/* of state machines, as the next two */
	DGEN_ENTER,
	DGEN_STATE_EVENT,			/* in_<state>: one function a state, looked up by it */
	DGEN_NCALLBACKS,
	DGEN_EFFECT = DGEN_NCALLBACKS	/* no callback: a function that after_commit named */
} DgenCallbackKind;

/* what a column of a callback's result means */
typedef enum DgenResultField
{
	DGEN_RESULT_STATE,			/* state or new_state, jsonb */
	DGEN_RESULT_REPLY,			/* reply, jsonb */
	DGEN_RESULT_NOREPLY,		/* boolean */
	DGEN_RESULT_EXIT,			/* text: the reason */
	DGEN_RESULT_REJECT,			/* text: the reason */
	DGEN_RESULT_RETRY_AFTER,	/* interval */
	DGEN_RESULT_CONTINUE,		/* jsonb: the message */
	DGEN_RESULT_TIMEOUT,		/* interval */
	DGEN_RESULT_POSTPONE,		/* boolean */
	DGEN_RESULT_LOCK,			/* boolean */
	DGEN_RESULT_DATA,			/* data or new_data, jsonb: the state of a machine */
	DGEN_RESULT_NEXT_STATE,		/* text, as the next */
	DGEN_RESULT_STATE_NAME,
	DGEN_RESULT_REPEAT,			/* boolean */
	DGEN_RESULT_VALUE			/* the plain result: validate, accept, query, format_* */
} DgenResultField;

#define DGEN_MAX_RESULTS 16

typedef struct DgenCallback
{
	bool		present;
	Oid			function;		/* in pg_proc, as the next; InvalidOid: none */
	Oid			owner;
	char	   *fault;			/* why what was found cannot be used, or NULL */
	char	   *fault_detail;
	FmgrInfo	flinfo;			/* set by dgen_module_callback(); fn_mcxt is the module's */
	int			nargs;			/* input arguments that it takes */
	bool		composite;		/* result is a row of nresults columns */
	int			nresults;		/* 1 where not composite; 0: returns void */
	DgenResultField results[DGEN_MAX_RESULTS];
	Oid			result_types[DGEN_MAX_RESULTS];
} DgenCallback;

/* a trace that is, or was, running */
typedef struct DgenTrace
{
	struct DgenTrace *next;
	int64		id;
	TimestampTz ends_at;
	int32		max_rows;
	char	   *server;			/* NULL: all of the module */
} DgenTrace;

/* what becomes of a server whose activations fail in a row */
enum
{
	DGEN_CRASH_LOOP_KEEP,
	DGEN_CRASH_LOOP_SUSPEND,
	DGEN_CRASH_LOOP_INIT,
	DGEN_CRASH_LOOP_ROLLBACK
};

typedef struct DgenModule
{
	char		name[NAMEDATALEN];
	int32		id;
	Oid			schema;			/* InvalidOid: no such schema */
	char	   *schema_name;
	Oid			owner;			/* of the callbacks, looked up live; external: of the schema */
	char	   *owner_name;
	bool		external;
	bool		ephemeral;
	bool		auto_start;
	bool		delete_on_stop;
	int			isolation;		/* XACT_SERIALIZABLE ... */
	bool		invoke_any_isolation;
	bool		finish_late_calls;
	bool		skip_failing;	/* retry => 'skip' */
	bool		suspend_on_dead_letter;
	int			breaker;
	int			on_crash_loop;	/* DGEN_CRASH_LOOP_... */
	int			crash_limit;
	int			handler_timeout;	/* ms */
	int			work_timeout;	/* ms, of an effect */
	int			max_attempts;
	double		backoff_initial;	/* seconds */
	double		backoff_factor;
	double		backoff_max;	/* seconds */
	double		hold_max;		/* seconds */
	int			batch_size;
	int64		max_mailbox;
	int64		max_message_size;
	int64		max_state_size;
	int64		reply_ttl;		/* microseconds, as the next two */
	int64		dedup_ttl;
	int64		dead_letter_ttl;
	char	   *history;		/* as it was given, or NULL: none is kept; else one of: */
	int64		history_versions;	/* how many, or 0 */
	int64		history_usecs;	/* for how long, or 0 */
	int64		expire_after;	/* 0: never */
	struct ArrayType *ephemeral_keys;	/* of text; NULL: none */
	char	   *search_path;
	char	   *timezone;		/* NULL: the database's */
	char	   *operators;		/* role names or NULL */
	char	   *clients;
	char	   *readers;
	char	   *workers;
	char	   *vsn;
	bool		machine;		/* kind: its servers are state machines */
	char	   *notify;			/* channel, or NULL */
	bool		suspended;
	char	   *suspended_by;	/* "dgen": computed from owner_fault */
	char	   *suspended_reason;
	char	   *owner_fault;	/* callbacks changed owner or disagree; else NULL */
	bool		uncommitted;	/* the row was written by this transaction */
	DgenTrace  *traces;			/* NULL: nothing of it is traced */
	DgenCallback callbacks[DGEN_NCALLBACKS];
	List	   *states;			/* of DgenStateCallback *, those looked up so far */
	MemoryContext mcxt;			/* holds all of this */
	int			holds;			/* pins; freed at zero once stale */
	bool		stale;
} DgenModule;

extern void dgen_module_init(void); /* registers the cache callbacks; once a process */
extern const char *dgen_callback_name(DgenCallbackKind kind);
extern const char *dgen_callback_signature(DgenCallbackKind kind);

/* NULL if missing_ok and there is none; else OT004.  Needs a transaction. */
extern DgenModule *dgen_module_get(const char *name, bool missing_ok);
extern DgenModule *dgen_module_by_id(int32 id); /* NULL if none */
extern DgenModule *dgen_module_reread(DgenModule *module);	/* NULL if it is gone */
extern DgenModule *dgen_module_of(const char *address);	/* NULL if none */
extern void dgen_module_hold(DgenModule *module);
extern void dgen_module_release(DgenModule *module);

/* OT005 with the signature as hint unless the callback is there and right */
extern DgenCallback *dgen_module_callback(DgenModule *module, DgenCallbackKind kind);

/* the same for the function in_<state> of a state machine; NULL if missing_ok and there is none */
extern DgenCallback *dgen_module_state_callback(DgenModule *module, const char *state, bool missing_ok);

/*
 * Rights, as design of the surface has them, for the current user; each
 * raises 42501 with detail and hint.  send: USAGE on the schema and EXECUTE
 * on the callback; where the module has no such callback, membership in the
 * owner or in clients.  operate: member of the owner or of operators.  read:
 * operate, or member of readers.
 */
extern void dgen_module_check_send(DgenModule *module, DgenCallbackKind kind);
extern void dgen_module_check_operate(DgenModule *module);
extern void dgen_module_check_work(DgenModule *module);	/* member of the owner or of workers */
extern bool dgen_module_may_operate(DgenModule *module);
extern bool dgen_module_may_operate_as(DgenModule *module, Oid role);
extern bool dgen_module_may_see(DgenModule *module);	/* do anything with it */
extern bool dgen_module_may_read(DgenModule *module);
extern void dgen_module_check_read(DgenModule *module);

/* suspends a module in the current transaction: the breaker, a changed owner */
extern void dgen_module_suspend(DgenModule *module, const char *by, const char *reason);
/* undoes it in the current transaction; false if it was not suspended */
extern bool dgen_module_resume(DgenModule *module);
/* 55000 with the reason and the mending function if the module is suspended */
extern void dgen_module_check_running(DgenModule *module);
extern uint64 dgen_module_version(void);	/* grows with each invalidation of modules */
/* after a committed or uncommitted change of dgen.module's row */
extern void dgen_module_changed(void);

/* ----------------------------------------------------------------- table.c
 *
 * dgen's own tables below the executor: no rights, no triggers, no plans.
 */
typedef enum DgenTableId
{
	DGEN_T_INSTALLATION,
	DGEN_T_ADOPTION,
	DGEN_T_MODULE,
	DGEN_T_SERVER,
	DGEN_T_MESSAGE,
	DGEN_T_DELAYED,
	DGEN_T_ATTEMPT,
	DGEN_T_LETTER,
	DGEN_T_REPLY,
	DGEN_T_DEDUP,
	DGEN_T_PATCH,
	DGEN_T_HISTORY,
	DGEN_T_TOMBSTONE,
	DGEN_T_TIMER,
	DGEN_T_POSTPONED,
	DGEN_T_MONITOR,
	DGEN_T_NAME,
	DGEN_T_MEMBER,
	DGEN_T_TRACE,
	DGEN_T_TRACE_ENTRY,
	DGEN_T_SUPERVISOR,
	DGEN_T_CHILD,
	DGEN_T_AUDIT,
	DGEN_NTABLES
} DgenTableId;

#define DGEN_MAX_COLUMNS 64		/* room for deformed rows */
#define DGEN_MAX_INDEXES 8
typedef struct DgenTable
{
	Relation	rel;
	int			ncolumns;		/* those that this library knows */
	BlockNumber nblocks;		/* when it was opened: the lock keeps it from shrinking */
	DgenTableId id;
	LOCKMODE	index_lockmode;
	bool		indexes_wait;	/* to be opened at their first use, */
	ResourceOwner owner;		/* for this one */
	int			nindexes;		/* all that take entries, in any order */
	Relation	indexes[DGEN_MAX_INDEXES];
	struct IndexInfo *infos[DGEN_MAX_INDEXES];
	int			scannable[DGEN_MAX_INDEXES];	/* by DgenIndexId of the table */
} DgenTable;

/* indexes of a table, in the order of the script; the primary key is 0 */
enum
{
	DGEN_I_PKEY = 0,
	DGEN_I_MODULE_ID = 1,
	DGEN_I_MESSAGE_MAILBOX = 1,
	DGEN_I_DELAYED_DUE = 1,
	DGEN_I_DELAYED_SERVER = 2,
	DGEN_I_ATTEMPT_SERVER = 1,
	DGEN_I_ATTEMPT_NEXT = 2,
	DGEN_I_LETTER_SERVER = 1,
	DGEN_I_LETTER_FAILED = 2,
	DGEN_I_REPLY_KEY = 1,
	DGEN_I_REPLY_EXPIRES = 2,
	DGEN_I_DEDUP_KEY = 0,
	DGEN_I_DEDUP_EXPIRES = 1,
	DGEN_I_TOMBSTONE_SERVER = 0,
	DGEN_I_TOMBSTONE_EXPIRES = 1,
	DGEN_I_TIMER_ID = 1,
	DGEN_I_POSTPONED_SERVER = 1,
	DGEN_I_MONITOR_SERVER = 1,
	DGEN_I_MONITOR_WATCHER = 2,
	DGEN_I_NAME_SERVER = 1,
	DGEN_I_MEMBER_SERVER = 1,
	DGEN_I_TRACE_TARGET = 1,
	DGEN_I_TRACE_KEEP_UNTIL = 2,
	DGEN_I_TRACE_ENTRY_PLACE = 0,
	DGEN_I_TRACE_ENTRY_SERVER = 1,
	DGEN_I_CHILD_POSITION = 1,
	DGEN_I_CHILD_SERVER = 2,
	DGEN_I_AUDIT_AT = 1,
	DGEN_I_AUDIT_SERVER = 2
};

/* true if CREATE EXTENSION dgen holds here, with a schema this library knows */
extern bool dgen_extension_present(void);
extern Oid	dgen_schema(void);	/* or InvalidOid */
extern Oid	dgen_table_oid(DgenTableId id); /* raises OT017 without the extension */
extern Relation dgen_relation_open(DgenTableId id, LOCKMODE lockmode);
extern Oid	dgen_sequence_oid(const char *name); /* the same; locks it */
extern Oid	dgen_extension_owner(void);

/* version.c */
extern DgenError *dgen_version_fault(bool *newer);
extern void dgen_version_report(int elevel, const DgenError *fault);

/*
 * Opens a table, its indexes when they are first used; locks are kept to the
 * end of the transaction.  The DgenTable is palloc'd in the current context.
 */
extern DgenTable *dgen_table_open(DgenTableId id, LOCKMODE lockmode);
extern void dgen_table_close(DgenTable *table);
extern void dgen_table_close_unlock(DgenTable *table);
extern HeapTuple dgen_table_form(DgenTable *table, Datum *values, bool *nulls);
extern void dgen_table_insert(DgenTable *table, Datum *values, bool *nulls, ItemPointer tid);
extern void dgen_table_insert_many(DgenTable *table, int n, HeapTuple *tuples);

/* both return the TM_Result, all of which the caller handles; delete does not wait */
extern TM_Result dgen_table_update(DgenTable *table, ItemPointer tid, Snapshot crosscheck,
								   Datum *values, bool *nulls, ItemPointer newtid);
extern TM_Result dgen_table_delete(DgenTable *table, ItemPointer tid);
/* locks the row for who is about to delete it, without waiting */
extern TM_Result dgen_table_lock(DgenTable *table, ItemPointer tid);
/* waits for a transaction in the way, then deletes; false if it is gone */
extern bool dgen_table_delete_wait(DgenTable *table, ItemPointer tid);
extern bool dgen_table_find(DgenTable *table, int64 id, ItemPointer tid);	/* by primary key */

/* index scans by equality on a prefix, lower bound on the last key if wanted */
typedef struct DgenScan DgenScan;
extern DgenScan *dgen_scan_begin(DgenTable *table, int index, Snapshot snapshot,
								 int nkeys, ScanKey keys);
extern HeapTuple dgen_scan_next(DgenScan *scan);	/* valid until the next call */
extern bool dgen_scan_visible(DgenScan *scan, Snapshot snapshot);	/* the row that came last */
/* who made that version of the row, and who replaced or deleted it, or 0 */
extern void dgen_scan_writers(DgenScan *scan, TransactionId *xmin, TransactionId *xmax);
extern void dgen_scan_end(DgenScan *scan);
/* attno counts the columns of the index */
extern void dgen_key_text(ScanKey key, int attno, const char *value);
extern void dgen_key_int8(ScanKey key, int attno, int64 value, int strategy);
extern void dgen_key_int2(ScanKey key, int attno, int16 value);
extern void dgen_key_time(ScanKey key, int attno, TimestampTz value, int strategy);

/* ----------------------------------------------------------------- shmem.c
 *
 * Everything in shared memory is a hint: all of it can be rebuilt from the
 * tables, and is, after a crash.
 */
typedef enum DgenWorkerState
{
	DGEN_WORKER_FREE,
	DGEN_WORKER_STARTING,		/* registered with the postmaster */
	DGEN_WORKER_IDLE,
	DGEN_WORKER_BUSY,
	DGEN_WORKER_LEAVING
} DgenWorkerState;

/* one worker process; protected by dgen_shared->lock but for what says else */
typedef struct DgenWorkerSlot
{
	DgenWorkerState state;		/* set by its own process once attached */
	uint32		generation;		/* grows with each use of the slot */
	int			pool;			/* index into dgen_shared->pools */
	Oid			database;
	Oid			owner;
	pid_t		pid;
	int			pgprocno;
	TimestampTz started_at;
	TimestampTz busy_since;
	bool		slow;			/* runs activations that may outlast a budget */
	pg_atomic_uint32 idle;		/* sleeps on its latch; who clears it, sets the latch */
	pg_atomic_uint64 current_call;	/* id of the call whose handler runs, or a message's; or 0 */
	int			caller_pgprocno;	/* whose it is, or DGEN_NONE; for views */
	pg_atomic_uint64 cancel_call;	/* id of the call to cancel, or 0 */
	int64		batches;
	int64		activations;
	int64		conflicts;		/* serialization failures and deadlocks */
	int64		cache_hits;		/* servers whose state it had in memory, */
	int64		cache_misses;	/* and those that it had to read */
	int			batch_size;		/* of the last batch */
	char		server[DGEN_MAX_ADDRESS + 1];	/* in hand; written without lock, for views */
} DgenWorkerSlot;

/* in current_call: it is a message's id; in cancel_call: nobody who waits for it has asked */
#define DGEN_MESSAGE_IN_HAND (UINT64CONST(1) << 63)
#define DGEN_ABORTED (UINT64CONST(1) << 62)

/* what a pool's workers do; each kind has a budget of its own */
typedef enum DgenPoolKind
{
	DGEN_POOL_HANDLERS,			/* messages and calls */
	DGEN_POOL_LONG,				/* what may take long: effects; handle_locked, under -module id */
	DGEN_POOL_EXTERNAL,			/* of one module, whose id stands for the owner; no workers */
	DGEN_NPOOL_KINDS
} DgenPoolKind;

/* the pool in which a module's servers are queued */
#define DGEN_POOL_OF(module) ((module)->external ? DGEN_POOL_EXTERNAL : DGEN_POOL_HANDLERS)
#define DGEN_POOL_OWNER(module) ((module)->external ? (Oid) (module)->id : (module)->owner)

/* a queue of ready servers: those of one module owner in one database */
typedef struct DgenPool
{
	bool		used;
	Oid			database;
	Oid			owner;
	DgenPoolKind kind;
	LWLock		lock;			/* protects what follows, and its entries */
	int			head;			/* ring of ready entries */
	int			tail;
	int			nready;
	int			nentries;		/* queued, running and parked */
	bool		overflow;		/* some found no room: see dgen_ready_ring() */
	int			parked;			/* list of parked entries */
	TimestampTz park_due;		/* when the first of them is, at the earliest */
	int			nworkers;		/* registered or running */
	bool		growth_asked;	/* the launcher has been woken for this backlog */
	TimestampTz head_since;		/* when the oldest ready one was queued */
	TimestampTz refused_at;		/* no slot since then, or 0 */
	int			start_failures; /* workers that ended at their start, in a row */
	TimestampTz retry_at;		/* no new worker before, or 0 */
	int			buckets[1024];
} DgenPool;

#define DGEN_MAX_POOLS 128
#define DGEN_MAX_DATABASES 1024

typedef enum DgenKeeperState
{
	DGEN_KEEPER_NONE,			/* not known to have the extension */
	DGEN_KEEPER_ABSENT,			/* a keeper found none: the launcher frees the entry */
	DGEN_KEEPER_WANTED,			/* the launcher should start it */
	DGEN_KEEPER_STARTING,
	DGEN_KEEPER_RUNNING
} DgenKeeperState;

/* one database that has, or may have, dgen; protected by dgen_shared->lock */
typedef struct DgenDatabase
{
	Oid			database;		/* InvalidOid: free */
	DgenKeeperState keeper;
	pid_t		keeper_pid;
	int			keeper_pgprocno;	/* or DGEN_NONE */
	TimestampTz keeper_started_at;
	int			keeper_failures;	/* in a row: the backoff */
	TimestampTz keeper_retry_at;	/* not to be started before, or 0 */
	bool		keeper_again;	/* wanted anew while one was there */
	int			kept_out;		/* how many DROP DATABASEs or the like are under way */
	int			tables_wanted;	/* of these, by DROP or ALTER EXTENSION */
	pg_atomic_uint32 armed;		/* installation and adoption agree */
	pg_atomic_uint32 prepared_known;	/* old prepared transactions are published */
	pg_atomic_uint64 next_due;	/* TimestampTz when the keeper must look again */
	pg_atomic_uint32 resweep;	/* work was not queued for want of room */
	pg_atomic_uint32 place_wanted[DGEN_NPOOL_KINDS];	/* a pool waits while others hold all places */
	pg_atomic_uint32 slow_workers;	/* that run, or are about to, what may be slow */
	pg_atomic_uint32 slow_starved;	/* pool that waits for such a place, and has none, plus 1; or 0 */
	pg_atomic_uint64 unannounced;	/* lowest request whose reply's NOTIFY was put off, or 0 */
	pg_atomic_uint64 announce_at;	/* when the keeper is to announce changes; DT_NOEND: there are none */
	pg_atomic_uint64 announced_at;	/* when it did so last */
	pg_atomic_uint32 announce_all;	/* how often there was no room to say which servers changed */
	slock_t		id_lock;		/* protects the next three */
	int64		next_id;		/* the next message id to draw; 0: none reserved */
	int64		id_limit;		/* the last one of the reserved block */
	int64		last_sent;		/* no message, of a mailbox or to come, has a higher one */
} DgenDatabase;

/* a call whose handler said noreply; protected by dgen_shared->lock */
typedef struct DgenDeferred
{
	dsa_pointer call;			/* InvalidDsaPointer: free */
	uint64		call_id;
	uint64		secret;
	bool		claimed;		/* a transaction is replying, or has yet to leave it open */
} DgenDeferred;

#define DGEN_MAX_DEFERRED 1024

typedef struct DgenShared
{
	LWLock		lock;			/* slots, pools' use, databases */
	int			tranche;		/* of all our LWLocks */
	pid_t		launcher_pid;
	int			launcher_pgprocno;	/* or DGEN_NONE */
	pg_atomic_uint64 next_call_id;
	slock_t		free_lock;		/* protects free_head */
	int			free_head;		/* free ready entries */
	int			nslots;
	DgenDeferred deferred[DGEN_MAX_DEFERRED];
	DgenDatabase databases[DGEN_MAX_DATABASES];
	DgenPool	pools[DGEN_MAX_POOLS];
	DgenWorkerSlot slots[FLEXIBLE_ARRAY_MEMBER];	/* max_worker_processes */
} DgenShared;

extern DgenShared *dgen_shared; /* NULL: not preloaded */
extern DgenWorkerSlot *dgen_my_slot;	/* in a worker */

extern void dgen_shmem_install(void);	/* hooks; from _PG_init */
extern dsa_area *dgen_dsa(void);	/* attaches at first use, for the process' life */
extern bool dgen_is_worker(void);

/* the entry of a database; create: make one, NULL if the array is full */
extern DgenDatabase *dgen_database(Oid database, bool create);
/* no ERROR in these: they are called from commit callbacks */
extern void dgen_wake_launcher(void);
extern void dgen_wake_keeper(Oid database, TimestampTz due);
extern void dgen_wake_process(int pgprocno);

/* ------------------------------------------------------------------ hand.c
 *
 * Which messages are in hand, in a mapped file that outlives a crash of the
 * server; what was in hand at a crash is suspect, and runs alone.
 */
extern Size dgen_hand_size(void);
extern void dgen_hand_init(void *place, bool found);
extern void dgen_hand_startup(void);	/* in the shmem startup hook */
extern void dgen_hand_take(int64 message_id);	/* in a worker */
extern void dgen_hand_clear(void);
extern bool dgen_hand_suspect(Oid database, int64 message_id);
extern bool dgen_hand_try(TimestampTz *again);	/* one after the other */
extern void dgen_hand_forget(Oid database, int64 message_id);
extern void dgen_hand_suspect_add(Oid database, int64 message_id);	/* a worker died with it */

/* ----------------------------------------------------------------- ready.c
 *
 * The ready servers of each pool.  An entry is known by (module, hash of the
 * address).  queued: in the ring.  running: some worker has it; a ring then
 * sets again.  parked: has calls, but waits (suspended, failing, leased).
 */
typedef enum DgenReadyState
{
	DGEN_READY_FREE,
	DGEN_READY_QUEUED,
	DGEN_READY_RUNNING,
	DGEN_READY_PARKED
} DgenReadyState;

typedef struct DgenReady
{
	int64		hash;
	int32		module_id;
	DgenReadyState state;
	bool		again;			/* rung while running */
	int			next;			/* in the ring, the parked or the free list */
	int			prev;			/* in the parked list */
	int			bucket_next;
	int			pool;
	dsa_pointer calls;			/* first waiting call; linked by DgenCall.next */
	dsa_pointer last_call;
	TimestampTz queued_at;
	pg_atomic_uint64 stopped_id;	/* calls with lower ids waited when the server was stopped */
	TimestampTz park_until;		/* 0: until rung */
	int			deferrals;		/* leases missed in a row */
} DgenReady;

extern Size dgen_ready_size(void);
extern void dgen_ready_init(void *place, bool found);

/* queues a server if it is not; false when there is no room (nothing raised) */
extern bool dgen_ready_ring(Oid database, Oid owner, DgenPoolKind kind, int32 module_id, int64 hash);
/* the calls that wait for a server are told that it was stopped (nothing raised) */
extern void dgen_ready_stop_calls(Oid database, Oid owner, DgenPoolKind kind, int32 module_id, int64 hash);
struct DgenCall;
extern bool dgen_ready_add_call(Oid owner, DgenPoolKind kind, struct DgenCall *call, dsa_pointer self);
extern bool dgen_ready_return_call(Oid owner, DgenPoolKind kind, struct DgenCall *call, dsa_pointer self);
/* is there an entry for it, in whatever state? (nothing raised) */
extern bool dgen_ready_known(Oid database, Oid owner, DgenPoolKind kind, int32 module_id, int64 hash);
/* what the queue knows of a server, for views; FREE: nothing */
typedef struct DgenReadyLook
{
	DgenReadyState state;
	TimestampTz queued_at;
	TimestampTz park_until;		/* 0: until rung */
	int			pool;			/* or DGEN_NONE; the rest is of it */
	int			nready;
	int			nworkers;
	TimestampTz refused_at;
	int			start_failures;
	TimestampTz retry_at;
} DgenReadyLook;
extern void dgen_ready_look(Oid database, Oid owner, DgenPoolKind kind, int32 module_id, int64 hash,
							DgenReadyLook *look);
/* takes a still queued call off its entry; false if a worker has it */
extern bool dgen_ready_withdraw(struct DgenCall *call, dsa_pointer self);

/* what a worker has taken */
typedef struct DgenTaken
{
	int			entry;
	int64		hash;
	dsa_pointer calls;			/* its calls, now the worker's, in order */
	dsa_pointer last_call;		/* if there are any */
	int			deferrals;		/* leases missed in a row */
} DgenTaken;
/* calls with lower ids waited when the server was stopped; once its lease is held */
extern uint64 dgen_ready_stopped(const DgenTaken *taken);
extern int	dgen_ready_take(int pool, bool allow_slow, int max, DgenTaken *taken, int32 *module_id);
/* takes one of an external module; its pool, or DGEN_NONE */
extern int	dgen_ready_take_external(int32 module_id, DgenTaken *taken);
/* is there one?  if not, *due is when there will be, or DT_NOEND */
extern bool dgen_ready_external(int32 module_id, TimestampTz now, TimestampTz *due);
/* gives one back: with the calls that are left, queued again if more or rung */
extern void dgen_ready_give_back(int pool, DgenTaken *taken, bool more, TimestampTz park_until);
extern void dgen_ready_forget(int pool);	/* its database is gone */
extern void dgen_ready_queue_due(DgenPool *pool, TimestampTz now);	/* under the pool's lock */
extern TimestampTz dgen_ready_unpark(int pool, TimestampTz now);	/* next park_until, or DT_NOEND */
/* queues all parked servers of a module that was resumed */
extern void dgen_ready_ring_module(Oid database, Oid owner, int32 module_id);
/* calls that wait in the queues, for views; each is referenced, and to be unref'd */
typedef struct DgenCalls
{
	int			size;			/* room in calls */
	int			n;				/* of them referenced */
	int			found;			/* how many there are */
	dsa_pointer *calls;
} DgenCalls;
extern void dgen_ready_calls(Oid database, DgenCalls *calls);
/* how long a module's activations take, in microseconds; 0: not known yet */
extern uint32 dgen_pace_get(Oid database, int32 module_id);
extern bool dgen_pace_is_slow(Oid database, int32 module_id);
extern void dgen_pace_note(Oid database, int32 module_id, uint32 usecs);
#define DGEN_BATCH_USECS 10000
/* dead letters of a module in a row, each from another server than the last */
extern int	dgen_breaker_letter(Oid database, int32 module_id, int64 hash);
extern void dgen_breaker_success(Oid database, int32 module_id, TimestampTz now);
extern TimestampTz dgen_breaker_last_success(Oid database, int32 module_id);

/* ---------------------------------------------------------------- orphan.c */
/* for the keeper, in a transaction */
extern void dgen_orphans_drop(void);

/* ------------------------------------------------------------------ mark.c
 *
 * Lower bounds that senders publish, and low-water marks: see its header.
 */
extern Size dgen_mark_size(void);
extern void dgen_mark_init(void *place, bool found);
extern void dgen_bound_publish(int64 hash, int64 bound);	/* before an id is drawn */
extern void dgen_bound_clear(void); /* at the end of the transaction */
extern void dgen_bound_prepare(TransactionId xid);	/* at PREPARE */
extern void dgen_bound_add_prepared(Oid database, TransactionId xid);	/* keeper, after a restart */
extern uint64 dgen_bound_prepared_ended(void);
extern int64 dgen_last_message_id(void);	/* the last one drawn; needs a transaction */
extern int64 dgen_call_place(bool *is_id);
extern int64 dgen_draw_id(void);
extern void dgen_reserve_ids(void); /* keeper: ahead of need */
extern void dgen_forget_ids(void);	/* CREATE EXTENSION made a new sequence */
typedef struct DgenBounds DgenBounds;
extern DgenBounds *dgen_bounds_read(void);	/* before a cut; palloc'd */
extern int64 dgen_bounds_limit(DgenBounds *bounds, int64 hash); /* no lower id may still appear below it */
extern int64 dgen_bounds_last_sent(DgenBounds *bounds);
extern int64 dgen_mark_get(int64 hash, uint32 *generation);
extern void dgen_mark_advance(int64 hash, int64 mark, uint32 generation);
extern void dgen_mark_lower(int64 hash, int64 mark);
/* an estimate of a mailbox's length; exact: it is known, not a guess from a part */
extern int64 dgen_length_add(int64 hash, int64 delta, bool *known);
extern void dgen_length_set(int64 hash, int64 length);
typedef struct DgenLength
{
	int64		hash;
	int64		length;
} DgenLength;
extern int	dgen_lengths_longest(DgenLength *lengths, int max);	/* of this database; how many */

/* --------------------------------------------------------------- mailbox.c */
#define DGEN_KIND_CAST 'c'
#define DGEN_KIND_INFO 'i'
#define DGEN_KIND_REQUEST 'r'	/* a call whose reply is kept */
#define DGEN_KIND_REPLY 'p'		/* to a request of the server */
#define DGEN_KIND_CONTINUE 'n'
#define DGEN_KIND_CALL 'k'		/* a call that was postponed or locked; its caller still waits */
#define DGEN_KIND_TIMER 'm'		/* a named timer */
#define DGEN_KIND_TIMEOUT 't'	/* idle timeout */
#define DGEN_KIND_DOWN 'd'		/* a monitored server ended */
#define DGEN_KIND_EFFECT 'e'	/* of after_commit; see effect.c for its hash */
#define DGEN_KIND_EXIT 'x'		/* a supervised server ended: see supervisor.c */

struct DgenServer;

typedef struct DgenMessage
{
	ItemPointerData tid;
	int64		id;
	int64		hash;
	int16		priority;		/* -1 low, 0 normal, 1 high */
	int16		max_attempts;	/* 0: the module's */
	char		kind;			/* DGEN_KIND_... */
	bool		notify;
	TimestampTz sent_at;
	TimestampTz expires_at;		/* DT_NOEND: never */
	TimestampTz due_at;			/* 0: at once */
	const char *server;
	const char *sender_role;
	const char *sender;
	const char *dedup_key;		/* or NULL, as the next */
	const char *vsn;
	int64		incarnation;	/* the only one it is for; 0: any */
	int64		timer;			/* the timer that it comes of, or 0 */
	const char *token;			/* of the call that it was, or NULL */
	Jsonb	   *context;		/* or NULL */
	Jsonb	   *message;
} DgenMessage;

#define DGEN_MESSAGE_NATTS 18

/* a kind of message as dgen.kind() has it, but for a request; and its callback */
extern const char *dgen_message_kind(char kind);
extern DgenCallbackKind dgen_message_callback(char kind);
/* fills sender, role, context, vsn, time from where we are */
extern void dgen_message_init(DgenMessage *msg, const DgenAddress *to, char kind, Jsonb *message);
/* inserts n messages for one module, ids drawn in order; rings at commit */
extern void dgen_mailbox_send(DgenModule *module, DgenMessage *msgs, int n);
/* the engine's own: behind all that waits, under a new id, whatever the limits */
extern void dgen_mailbox_append(DgenModule *module, DgenMessage *msg);
extern void dgen_mailbox_send_reply(DgenModule *module, DgenMessage *msg);
/* refuses what is larger than max_message_size; for append's callers that can tell somebody */
extern void dgen_mailbox_check_size(DgenModule *module, const DgenMessage *msg);
/* into dgen.delayed, under the id and with the due time that it has */
extern void dgen_mailbox_schedule(DgenModule *module, DgenMessage *msg);
/* inserts under its own id again (requeue, due): lowers the mark */
extern void dgen_mailbox_put_back(DgenModule *module, DgenMessage *msg);
extern void dgen_delayed_delete(int64 id);
extern void dgen_message_form(const DgenMessage *msg, Datum *values, bool *nulls);
/* skip: columns between id and hash: 0, or 1 in dgen.delayed; copies all */
extern void dgen_message_deform(HeapTuple tuple, TupleDesc desc, int skip, DgenMessage *msg);
extern bool dgen_message_find(DgenTable *table, int64 id, int skip, DgenMessage *msg);
/* is it for the incarnation that lives, or for any? */
extern bool dgen_message_is_for(const DgenMessage *msg, const struct DgenServer *server);
extern int	dgen_message_compare(const ListCell *a, const ListCell *b);	/* by id */
extern int64 dgen_mailbox_count(DgenTable *table, int64 hash, int64 max);
/* did this transaction send to it and not yet commit? (subtransactions heeded) */
extern bool dgen_mailbox_sent_uncommitted(int64 hash);
extern bool dgen_mailbox_may_have_sent(int64 hash);	/* this session, ever */
extern void dgen_mailbox_forget_sent(int64 id);
extern const char *dgen_session_id(void);

/* one message that this transaction sent; id 0: merely a ring */
typedef struct DgenSent
{
	int64		id;
	int64		hash;
	int32		module_id;
	Oid			owner;
	DgenPoolKind pool;			/* whom to ring */
	SubTransactionId subid;
	TimestampTz due_at;			/* 0: at once */
	bool		engine;			/* nothing that the session would overtake */
} DgenSent;
extern int	dgen_mailbox_uncommitted(DgenSent **sent);	/* in order of sending */
extern void dgen_mailbox_xact_callback(XactEvent event);
extern void dgen_mailbox_ring(void);	/* no ERROR */
extern void dgen_mailbox_subxact(SubXactEvent event, SubTransactionId my, SubTransactionId parent);

/* rings a server when this transaction ends, committed or not (resume, a lease let go...) */
extern void dgen_ring_at_end(DgenModule *module, int64 hash);
extern void dgen_ring_long_at_end(DgenModule *module, int64 hash);
extern void dgen_ring_locked_at_end(DgenModule *module, int64 hash);
/* has the keeper look no later than this, when this transaction commits */
extern void dgen_due_at_commit(TimestampTz due);

/* ---------------------------------------------------------------- server.c */

/* what makes a new version of a state, for the history of its module */
typedef struct DgenCause
{
	const char *kind;
	int64		message_id;		/* or 0 */
	const char *sender;			/* or NULL, as the next two */
	const char *sender_role;
	Jsonb	   *context;
	int64		from_version;	/* of a rollback, or 0 */
	const char *vsn;			/* of the state before, or NULL */
	bool		fresh;			/* of a new incarnation: no patch leads back */
	int64		keep_versions;	/* what the module keeps; 0, or */
	int64		keep_usecs;		/* 0 */
} DgenCause;

typedef struct DgenServer
{
	char	   *address;
	int64		hash;
	bool		exists;			/* there is a row */
	ItemPointerData tid;
	TransactionId xmin;
	bool		active;			/* an incarnation lives */
	bool		failing;
	bool		suspended;
	int64		incarnation;
	int64		version;
	TimestampTz updated_at;
	TimestampTz started_at;		/* 0: null, as the next two */
	TimestampTz suspended_at;
	TimestampTz tombstone_until;
	TimestampTz tombstone_written;	/* as dgen.tombstone has it */
	char	   *suspended_by;
	char	   *stop_reason;
	char	   *vsn;
	Jsonb	   *state;			/* NULL: SQL null */
	Jsonb	   *ephemeral;		/* what is not stored of it, if this process knows; or NULL */
	Jsonb	   *stored;			/* the state as the row and its patches have it */
	Jsonb	   *counted;		/* the state as of version */
	bool		has_base;		/* the row's state column is a TOAST pointer, */
	char		base[TOAST_POINTER_SIZE];	/* this one */
	int64		base_version;	/* of which version the column is */
	int64		patch_bytes;	/* in dgen.patch, behind it */
	bool		monitored;		/* as the next, and all to state_name: see sql/tables.sql */
	bool		supervised;
	int			postponed;
	int			crashes;
	int64		continue_id;	/* 0: null, as the next ones */
	int64		good_version;
	TimestampTz timeout_at;
	int64		timeout_id;
	TimestampTz timeout_due;
	int64		lock_id;
	int64		lock_token;
	TimestampTz locked_until;
	char	   *state_name;		/* or NULL */
	int64		history_version;	/* the last one in dgen.history; 0: there are none */
	int64		history_from;	/* earlier rows there do not count */
	int64		history_bytes;	/* of patches since a state was last kept whole */
	DgenCause  *cause;			/* of the change that is to be written; NULL: no history */
	TimestampTz used_at;
	Jsonb	   *attributes;		/* in their table, if they are known; NULL: no row */
	ItemPointerData attributes_tid;
	bool		attributes_known;
	uint64		attributes_version; /* of the modules, when they were */
	bool		dirty;			/* must be written */
	bool		state_changed;
	bool		read;			/* state was shown to a handler */
	bool		erased;			/* row must be deleted */
	bool		recent;			/* not visible to the transaction's snapshot */
	bool		ahead;			/* this transaction sent what comes before its mailbox */
	bool		keep_state;		/* on_stop does not apply to the end that comes */
} DgenServer;

#define DGEN_LEASE_CLASS 0xD6	/* of advisory locks */
/* the lease: a transaction-level lock on the hash; false if not wait and taken */
extern bool dgen_lease_take(int64 hash, bool wait);
extern void dgen_lease_release(int64 hash);
extern bool dgen_lease_held(int64 hash);
extern int	dgen_lease_holder(int64 hash);	/* another's process id, or 0 */
extern void dgen_lease_wait(int64 hash);	/* until free, then lets go at once */

/*
 * The row of a server under its lease: with the given snapshot in a cut, else
 * (snapshot NULL) as it is now, own changes included.  The result lives in
 * the current memory context.
 */
extern DgenServer *dgen_server_read(DgenTable *table, const char *address, int64 hash, Snapshot snapshot);
extern int64 dgen_server_lock_id(DgenTable *table, const char *address);	/* without the lease */
/* writes what is dirty; own lease held; updates tid, xmin, version */
extern void dgen_server_write(DgenTable *table, DgenServer *server, Snapshot crosscheck);
/* the same after activations, and tells SSI what they have only read */
extern void dgen_server_settle(DgenTable *table, DgenServer *server, Snapshot crosscheck);
/* the state of a server was read, or is about to be, as an MVCC snapshot sees it */
extern void dgen_state_note_read(DgenTable *servers, const char *address, int64 hash, Snapshot snapshot);
/* makes a version of what has changed; dgen_server_write() does it, too */
extern void dgen_server_count(DgenServer *server);
extern void dgen_server_erase_if_empty(DgenServer *server);	/* a row that says nothing any more goes */
/* all of a row but the state; false if there is none */
extern bool dgen_server_peek(DgenTable *table, const char *address, Snapshot snapshot, DgenServer *out);
/* moves into a context what an activation has made of a server, whose state was before */
extern void dgen_server_keep(DgenServer *server, Jsonb *before, MemoryContext mcxt);
/* raises 40001 where a repeatable snapshot is older than what was just read */
extern void dgen_server_check_snapshot(DgenServer *server);
/* before a change that the end of a subtransaction must be able to undo */
extern void dgen_server_save(DgenServer *server);
extern void dgen_server_subxact(SubXactEvent event, SubTransactionId my, SubTransactionId parent);
extern void dgen_server_xact_end(void);

/* the worker's own cache of states */
extern DgenServer *dgen_cache_find(const char *address);
extern void dgen_cache_store(DgenServer *server);
extern void dgen_cache_drop(const char *address);
extern void dgen_cache_trim(void);

/* ------------------------------------------------------------- tombstone.c */
extern bool dgen_tombstones_exist(void);
/* OT003 if the server was deleted with a tombstone that still stands */
extern void dgen_check_tombstone(const DgenAddress *to);
extern void dgen_tombstone_write(DgenServer *server);	/* own lease held */

/* ----------------------------------------------------------------- state.c */
extern Jsonb *dgen_state_merge(const char *server, Jsonb *base, int64 base_version,
							   int64 version, Snapshot snapshot);
extern void dgen_state_load(DgenServer *server, Datum column, bool isnull, Snapshot snapshot);
extern Datum dgen_state_store(DgenServer *server, bool *isnull);
extern void dgen_state_stored(DgenTable *table, DgenServer *server);

/* ------------------------------------------------------------- ephemeral.c */
extern Jsonb *dgen_ephemeral_split(DgenModule *module, DgenServer *server, Jsonb *state);
extern Jsonb *dgen_ephemeral_join(DgenServer *server);

/* --------------------------------------------------------------- handler.c
 *
 * Calls one callback of a module, as the right role, and decodes what it said.
 */
typedef struct DgenResult
{
	bool		has_state;
	Jsonb	   *state;			/* SQL null gives JSON null, where it is not refused */
	bool		state_is_null;	/* SQL null */
	bool		has_reply;
	Jsonb	   *reply;
	bool		noreply;
	char	   *exit;			/* reason or NULL, as the next */
	char	   *reject;
	Interval   *retry_after;	/* or NULL, as the next two */
	Jsonb	   *continue_with;
	Interval   *timeout;
	bool		postpone;
	bool		lock;
	char	   *next_state;		/* or NULL; of init the first one */
	bool		repeat_state;
	List	   *actions;		/* of DgenAction *, in the order in which they were said */
	bool		is_null;		/* of a plain value */
	Datum		value;			/* boolean or jsonb of validate, accept, query, format_* */
} DgenResult;

/* directives that a handler gives, by function or by column */
typedef enum DgenDirective
{
	DGEN_SAID_NOREPLY = 1,
	DGEN_SAID_EXIT = 2,
	DGEN_SAID_REJECT = 4,
	DGEN_SAID_RETRY_AFTER = 8,
	DGEN_SAID_CONTINUE = 16,
	DGEN_SAID_TIMEOUT = 32,
	DGEN_SAID_POSTPONE = 64,
	DGEN_SAID_LOCK = 128,
	DGEN_SAID_ACTION = 256		/* a DgenAction; all that are said count */
} DgenDirective;

#define DGEN_SAID_LAST DGEN_SAID_LOCK

/* what a state machine wants besides, by dgen.next_event() and its kin */
typedef enum DgenActionKind
{
	DGEN_NEXT_EVENT,
	DGEN_STATE_TIMEOUT,
	DGEN_EVENT_TIMEOUT,
	DGEN_GENERIC_TIMEOUT
} DgenActionKind;

typedef struct DgenAction
{
	DgenActionKind kind;
	char	   *name;			/* of a generic timeout */
	bool		cancel;			/* the timeout */
	int64		after;			/* microseconds */
	Jsonb	   *event;			/* or NULL */
} DgenAction;

/* what dgen.self(), sender(), kind() ... answer; a stack, innermost last */
typedef struct DgenScope
{
	struct DgenScope *up;
	SubTransactionId subid;		/* that entered it */
	int			xact_flags;		/* of MyXactFlags, to be put back */
	DgenModule *module;
	DgenCallbackKind callback;
	const char *server;			/* address */
	int64		hash;
	int64		incarnation;	/* 0: none */
	DgenServer *row;			/* in hand, as its activation has it; NULL: no activation */
	const char *kind;			/* "call", "cast", "info", "continue", "query", "init" ... */
	const char *state_name;		/* of a state machine, or NULL */
	struct DgenCall *call;		/* being answered, or NULL */
	int64		request_id;		/* of the request being answered, or 0 */
	int64		effect_id;		/* of the effect that runs, or 0 */
	const char *sender;			/* sending server or session, or NULL */
	const char *sender_role;
	const char *message_vsn;
	Jsonb	   *context;
	TimestampTz now;
	TimestampTz deadline;		/* of the call that waits for it, or for who called it; 0: none */
	bool		readonly;		/* query, validate, accept, format_*: no directives, no sends */
	bool		autonomous;		/* its dgen.call() is a client's, not an invoke */
	List	   *said;			/* of DgenSaid *, the last one first */
} DgenScope;

extern DgenScope *dgen_scope;

typedef enum DgenIdentity
{
	DGEN_AS_WORKER,				/* the process is the owner already */
	DGEN_AS_OWNER,				/* switch; restricted unless the owner may become the caller */
	DGEN_AS_RESTRICTED			/* switch, always restricted */
} DgenIdentity;

extern void dgen_handler_run(DgenScope *scope, DgenCallbackKind kind, DgenIdentity identity,
							 int nargs, NullableDatum *args, DgenResult *result);
/* OT012, but of init, and where there is no state */
extern void dgen_handler_refuse_null(DgenModule *module, DgenCallbackKind kind);
/* the same as dgen_handler_run() for a function that is no callback */
extern void dgen_handler_effect(DgenScope *scope, DgenIdentity identity, FmgrInfo *function,
								int nargs, NullableDatum *args, DgenResult *result);
extern void dgen_scope_say(DgenDirective what, const char *text, const Interval *interval,
						   Jsonb *message);
extern void dgen_scope_act(const DgenAction *action, const char *function);
extern void dgen_scope_subxact(SubXactEvent event, SubTransactionId my, SubTransactionId parent);
extern void dgen_scope_reset(void); /* at the end of a transaction */
extern void dgen_scope_created(Oid classid, Oid object); /* may that be left behind? */
/* the scope of work that is not one transaction, NULL: none any more */
extern void dgen_scope_base(DgenScope *scope);

/* ------------------------------------------------------------ activation.c
 *
 * One activation: a message or a call meets its server.  Shared by workers,
 * invoke, drain and inline.
 */
typedef enum DgenOutcome
{
	DGEN_HANDLED,
	DGEN_REJECTED,				/* dead letter now; work undone by the caller */
	DGEN_RETRY_LATER,			/* retry_after; work undone by the caller */
	DGEN_NO_SERVER				/* stopped and not auto_start, or tombstone */
} DgenOutcome;

typedef struct DgenActivation
{
	DgenModule *module;
	DgenServer *server;
	DgenIdentity identity;
	DgenCallbackKind callback;
	const char *kind;
	Jsonb	   *message;
	Jsonb	   *context;
	const char *sender;
	const char *sender_role;
	const char *message_vsn;
	struct DgenCall *call;
	int64		request_id;
	int64		message_id;		/* or 0 */
	/* results */
	DgenOutcome outcome;
	bool		replied;
	Jsonb	   *reply;
	bool		exited;
	char	   *reason;			/* of exit or reject */
	Interval   *retry_after;
	Jsonb	   *continue_with;	/* also said by an init on the way; NULL: not */
	Interval   *timeout;		/* as continue_with */
	bool		postponed;
	bool		retried;		/* its timer's message was postponed, or requeued */
	bool		again;			/* postponed, and back at once: the state has changed */
	bool		locked;
} DgenActivation;

/*
 * Runs it: init first if no incarnation lives, then the callback, deferred
 * triggers where the process is a worker, validate, size check.  server is
 * changed in memory (dirty), not written.  Raises what the handler raised.
 */
extern void dgen_activation_run(DgenActivation *act);
extern void dgen_activation_start(DgenActivation *act, Jsonb *args);
extern void dgen_activation_resume(DgenModule *module, DgenServer *server);
extern void dgen_activation_stop(DgenModule *module, DgenServer *server, const char *reason);
/* the same, and nothing of it stays */
extern void dgen_activation_expire(DgenModule *module, DgenServer *server);
/* the same as stop, but without terminate */
extern void dgen_activation_kill(DgenModule *module, DgenServer *server, const char *reason);
extern void dgen_activation_set_state(DgenActivation *act, Jsonb *state);
extern void dgen_activation_scope(DgenActivation *act, DgenScope *scope);
extern void dgen_no_server_error(DgenModule *module, DgenServer *server, DgenError *err);

/* --------------------------------------------------------------- machine.c
 *
 * State machines: what an activation does with an event, in place of a callback.
 */
extern void dgen_machine_begin(DgenActivation *act, DgenResult *init);	/* data is set */
extern void dgen_machine_run(DgenActivation *act);

/* --------------------------------------------------------------- timeout.c
 *
 * Idle timeouts, which state machines do not have; the file tells how.  The
 * lease is held.
 */
#define DGEN_USES_TIMEOUT(act) \
	(!(act)->module->machine && \
	 ((act)->timeout != NULL || (act)->server->timeout_at != 0 || \
	  (act)->module->expire_after > 0))
extern void dgen_timeout_settle(DgenActivation *act);	/* at the end of an activation */
extern bool dgen_timeout_wake(DgenModule *module, DgenServer *server, DgenMessage *msg,
							  bool call_waits);
extern void dgen_timeout_forget(DgenServer *server, bool also);
extern void dgen_timeout_stop(DgenServer *server);	/* an incarnation ends */

/* ----------------------------------------------------------------- timer.c
 *
 * Timers that have a name or recur.  The first two are the engine's own, on
 * names that begin with '$', which users cannot have: under the server's
 * lease, for its present incarnation, with which they end.  The message comes
 * as it is to handle_info, of kind DGEN_KIND_TIMER, which nobody can forge;
 * due in the past: at once, behind all that waits.  A set replaces what there
 * was of that name: once it commits, the old one never comes.
 */
extern void dgen_timer_set(DgenModule *module, DgenServer *server, const char *name,
						   TimestampTz due, Jsonb *message);
extern bool dgen_timer_cancel(DgenServer *server, const char *name);	/* false: there is none */

typedef enum DgenClaim
{
	DGEN_CLAIM_TAKEN,			/* go on; also: the message is not of a timer */
	DGEN_CLAIM_GONE,			/* cancelled or replaced: drop the message */
	DGEN_CLAIM_BUSY				/* is being so: look again later */
} DgenClaim;

struct DgenTimer;
extern bool dgen_timer_is_behind(const DgenMessage *msg);
extern DgenClaim dgen_timer_claim(const DgenMessage *msg, bool wait, struct DgenTimer **timer);
extern bool dgen_timer_go_on(DgenModule *module, const DgenMessage *msg, struct DgenTimer *timer);
extern void dgen_timer_ended(DgenModule *module, const DgenMessage *msg);
extern void dgen_timer_stop(DgenServer *server, bool forgotten);	/* an incarnation ends */

/* --------------------------------------------------------------- migrate.c
 *
 * Code and states of different vsns.
 */
extern bool dgen_migration_due(const DgenModule *module, const DgenServer *server);
extern bool dgen_migration_pending(const DgenModule *module, const DgenServer *server);
extern void dgen_migration_module(DgenActivation *act); /* may replace act->module */
extern void dgen_migrate_server(DgenActivation *act);
/* the same with another state for the server, one of this vsn; gives what to set */
extern Jsonb *dgen_migrate_state(DgenActivation *act, Jsonb *state, char *vsn);
extern Jsonb *dgen_migrated_state(DgenModule *module, DgenServer *server);

/* ----------------------------------------------------------------- views.c */
extern Jsonb *dgen_masked(DgenCallbackKind kind, const char *server, Jsonb *value);
extern int64 dgen_calls_waiting(const char *server);
extern char *dgen_called_by(int pid);	/* the server whose reply a process waits for, or NULL */

/* ----------------------------------------------------------------- trace.c */
extern Size dgen_trace_size(void);
extern void dgen_trace_init(void *place, bool found);
extern void dgen_trace_load(DgenModule *module);
extern int64 dgen_trace_version(const DgenServer *server);
extern void dgen_trace_activation(DgenTrace *traces, DgenActivation *act,
								  TimestampTz began, int64 version);
extern void dgen_trace_erase(const DgenAddress *address);
extern bool dgen_trace_remove(DgenTable *table, HeapTuple tuple);

/* ------------------------------------------------------------ statistics.c
 *
 * What single servers have handled; the file tells how it is counted.
 */
extern pg_atomic_uint32 *dgen_statistics_count; /* servers that are counted */

/* is any server counted? */
static inline bool
dgen_statistics_any(void)
{
	return pg_atomic_read_u32(dgen_statistics_count) > 0;
}

extern Size dgen_statistics_size(void);
extern void dgen_statistics_init(void *place, bool found);
extern void dgen_statistics_activation(DgenActivation *act, void (*run) (DgenActivation *));
extern void dgen_statistics_sent(const DgenMessage *msgs, int n);	/* by dgen_scope's server */
extern void dgen_statistics_external(const DgenServer *server, const DgenMessage *msg, bool failed);
extern void dgen_statistics_erase(const DgenAddress *address);
extern void dgen_statistics_drop(const char *module);
extern void dgen_statistics_forget_all(void);	/* all of this database */
extern void dgen_statistics_xact_callback(XactEvent event);
extern void dgen_statistics_subxact(SubXactEvent event, SubTransactionId my, SubTransactionId parent);

/* --------------------------------------------------------------- history.c
 *
 * The versions of a state, for modules with option history.  Servers are
 * under their leases in all that changes them.
 */
extern bool dgen_history_parse(const char *text, int64 *versions, int64 *usecs);
/* who is about to change the server's state; heeded by dgen_server_count() */
extern void dgen_history_note(DgenActivation *act, const char *kind);
/* counts a version that is pending, so that what comes next makes its own */
extern void dgen_history_settle(DgenActivation *act);
/* an activation that began under this version has succeeded */
extern void dgen_history_succeeded(DgenActivation *act, int64 version);
/* writes a version that has just been counted */
extern void dgen_history_write(DgenServer *server, TimestampTz at);
extern void dgen_history_erase(DgenServer *server);

/*
 * The nth newest good version that is kept, from 1; 0: there is none.  One
 * that a rollback has made stands for the one that it went back to: the next
 * is older than that.
 */
extern int64 dgen_history_good(DgenModule *module, DgenServer *server, int nth);

/*
 * Give a server the state of an older version: act has module, server,
 * identity, kind, and who does it.  Checked like any new state;
 * dgen_server_write() is the caller's.  22023 if that version is not kept, or
 * has no state.
 */
extern void dgen_history_rollback(DgenActivation *act, int64 version);

/* how far a round through all servers with a history is */
typedef struct DgenHistoryCursor
{
	char		server[DGEN_MAX_ADDRESS + 1];	/* the last one; "": a new round */
	int64		version;		/* it has more, from this one on; 0: it is done */
} DgenHistoryCursor;

/* the keeper's, in a transaction: deletes a part of what is too old */
extern void dgen_history_sweep(DgenHistoryCursor *cursor, Snapshot snapshot);

/* ------------------------------------------------------------ attributes.c
 *
 * The indexed part of the states, in one table a module: see its header.
 */
#define DGEN_ATTRIBUTES_PREFIX "attributes_"	/* and the module's id */

extern Oid	dgen_attributes_table(int32 module_id);	/* InvalidOid: there is none */
/* the state has changed or is gone; own lease held, dgen.server locked to write */
extern void dgen_attributes_update(DgenModule *module, DgenServer *server, DgenIdentity identity);
extern int64 dgen_attributes_fill(DgenModule *module);

/* -------------------------------------------------------- attributes_api.c */
extern void dgen_attributes_settle(DgenModule *module, bool created);	/* its row is written */
extern void dgen_attributes_drop(DgenModule *module, bool cascade);
extern void dgen_attributes_adopt(void);

/* ------------------------------------------------------------------ call.c */
typedef enum DgenCallState
{
	DGEN_CALL_QUEUED,			/* in its ready entry, or taken but not begun */
	DGEN_CALL_RUNNING,			/* its handler has begun; not yet committed */
	DGEN_CALL_DEFERRED,			/* handled with noreply: dgen.reply() will answer */
	DGEN_CALL_POSTPONED,		/* a message stands for it, of kind DGEN_KIND_CALL */
	DGEN_CALL_DONE,				/* result is set */
	DGEN_CALL_ABANDONED			/* the caller has gone; not to be begun */
} DgenCallState;

typedef enum DgenCallResult
{
	DGEN_CALL_REPLY,
	DGEN_CALL_ERROR,			/* a packed DgenError */
	DGEN_CALL_CANCELLED,		/* did not happen: its caller had it cancelled */
	DGEN_CALL_UNKNOWN			/* OT002 */
} DgenCallResult;

#define DGEN_CALL_INLINE_REPLY 256

typedef struct DgenCall
{
	pg_atomic_uint32 refs;		/* the caller and the queue or worker */
	pg_atomic_uint32 state;		/* DgenCallState */
	pg_atomic_uint32 caller_gone;	/* nobody waits any more */
	uint64		id;
	uint64		secret;			/* of its from token; 0: none was made */
	Oid			database;
	int			pool;
	int32		module_id;
	int64		hash;
	int64		place;			/* its place in the mailbox, among the ids of messages */
	bool		place_is_id;	/* an id that is its own; else the last one drawn before it */
	int			caller_pgprocno;
	pg_atomic_uint32 worker_slot;	/* who has it, or PG_UINT32_MAX */
	pg_atomic_uint64 worker_vxid;	/* process number << 32 | local xid, of the running transaction */
	int			losses;			/* workers that died with it */
	TimestampTz issued_at;
	TimestampTz deadline;		/* DT_NOEND: none */
	dsa_pointer next;			/* in its ready entry */
	/* written by the worker before it sets DONE */
	DgenCallResult result;
	Size		reply_size;
	dsa_pointer reply;			/* InvalidDsaPointer: in the inline space */
	/* where things are in data[]; the address is at 0 */
	int			role_off;		/* name of the caller's role */
	int			sender_off;		/* its session id */
	int			key_off;		/* request_key, or 0 */
	int			context_off;	/* jsonb, or 0; MAXALIGNed, as the next two */
	int			request_off;	/* jsonb */
	int			inline_off;		/* space for a small reply */
	char		data[FLEXIBLE_ARRAY_MEMBER];
} DgenCall;

#define DGEN_NO_SLOT PG_UINT32_MAX

extern bool dgen_call_begin(DgenCall *call);	/* false: abandoned */
extern void dgen_call_unref(DgenCall *call, dsa_pointer self);
extern void dgen_call_put_reply(DgenCall *call, DgenCallResult result, const void *bytes, Size size);
extern void dgen_call_put_error(DgenCall *call, const DgenError *err);
extern void dgen_call_finish(DgenCall *call);	/* DONE and wake; no ERROR */
extern void dgen_call_at_abort(void);	/* at the abort of any (sub)transaction */

/* ------------------------------------------------------------- deferred.c
 *
 * A kept call: one for which a message of kind DGEN_KIND_CALL stands.  Whoever
 * begins it has the caller wait for the end of this transaction, which then
 * is what dgen_kept_settle() said; without that, and at an abort, the call is
 * postponed as before.
 */
typedef enum DgenKept
{
	DGEN_KEPT_BEGUN,
	DGEN_KEPT_GONE,				/* its caller has given it up, or has the reply */
	DGEN_KEPT_BUSY				/* another transaction is about to answer it */
} DgenKept;

extern DgenKept dgen_kept_begin(const char *token, DgenCall **call);
/* a reply makes it DONE, as does one that its handler has given; returns what it will be */
extern DgenCallState dgen_kept_settle(DgenCall *call, DgenCallState then, Jsonb *reply);
extern void dgen_kept_settle_error(DgenCall *call, const DgenError *error);
/* begins and settles, also what this transaction has kept; nothing if nobody waits */
extern void dgen_kept_fail(const char *token, const DgenError *error);
/* what its caller is told where its incarnation has ended */
extern void dgen_kept_stopped_error(const char *server, DgenError *err);
/* at once: its caller asked for it, and its handler's transaction has been rolled back */
extern void dgen_kept_cancelled(const char *token);
/* gives a call that runs a place; what it is when this transaction commits */
extern void dgen_deferred_wait(DgenCall *call, dsa_pointer self, DgenCallState then);
extern void dgen_deferred_forget(uint64 call_id);
extern char *dgen_deferred_by(int pid); /* server that a process waits for like that, or NULL */
/* answers, at the commit, a call whose handler said noreply or lock; nothing if nobody waits */
extern void dgen_deferred_answer(const char *token, Jsonb *reply, const DgenError *error);
extern void dgen_deferred_xact_callback(XactEvent event);
extern void dgen_deferred_answer_callers(void);
extern void dgen_deferred_subxact(SubXactEvent event, SubTransactionId my, SubTransactionId parent);

/* --------------------------------------------------------- batch.c, worker.c */
extern void dgen_batch_serve(int pool, DgenTaken *taken, int n, int32 module_id);
extern int	dgen_batch_wanted(void);
extern void dgen_batch_flush(void); /* pending states, before a read through the API */
extern bool dgen_batch_unflushed(void);
extern DgenServer *dgen_batch_server(const char *address);
extern void dgen_batch_touch(int64 hash);
extern void dgen_batch_keep(DgenServer *server);	/* its state outlives the handler's memory */
extern bool dgen_batch_in_company(void);
extern void dgen_batch_overtakes(void);
extern void dgen_batch_at_exit(bool sent_away);
extern void dgen_batch_publish(void);
extern void dgen_batch_answer_callers(void);
extern bool dgen_batch_active(void);
extern bool dgen_batch_in_doubt(void);	/* at the commit: perhaps not replicated */
extern void dgen_batch_split(const char *why);	/* this activation must run alone */
extern PGDLLEXPORT void dgen_worker_main(Datum main_arg);

/* --------------------------------------------------------------- invoke.c */
/* a call in the caller's transaction; inlined: for tests */
extern Jsonb *dgen_invoke_call(const DgenAddress *to, Jsonb *request, bool inlined);
extern void dgen_check_available(DgenServer *server);	/* 55000, OT008: it handles nothing now */
extern void dgen_check_isolation(DgenModule *module);
extern void dgen_check_test_isolation(DgenModule *module);	/* waived for operators */

/* --------------------------------------------------------------- dry_run.c */
extern bool dgen_in_dry_run;	/* nothing that runs now is kept */

/* ------------------------------------------------------------------ lock.c
 *
 * A locked server; all under its lease, and its row is the caller's to write.
 */
extern void dgen_lock_begin(DgenModule *module, DgenServer *server, int64 message_id);
extern void dgen_lock_end(DgenServer *server);
extern void dgen_lock_break(DgenServer *server, const char *why);
/* must it wait?  msg NULL: a call */
extern bool dgen_lock_holds(const DgenServer *server, const DgenMessage *msg);
extern void dgen_lock_wake(DgenModule *module, const DgenServer *server);
extern void dgen_lock_check_free(const DgenServer *server);	/* 55000 */
extern bool dgen_lock_message(DgenTable *table, const DgenServer *server, DgenMessage *msg);
extern bool dgen_lock_is_for(const char *server, int64 message_id);	/* without the lease */

/* ---------------------------------------------------------------- locked.c */
extern void dgen_locked_serve(int pool, DgenTaken *taken, int32 module_id);
extern void dgen_locked_at_exit(bool sent_away);

/* -------------------------------------------------------------- external.c */
extern void dgen_external_xact_callback(XactEvent event);
extern void dgen_external_subxact(SubXactEvent event, SubTransactionId my, SubTransactionId parent);

/* --------------------------------------------------------------- effect.c
 *
 * Effects of a server: messages of kind 'e', whose hash is that of a stream of
 * their own, so that they have a lease, a mark and an order apart from those of
 * the server's mailbox.  A stream is named like its server behind a slash,
 * which no address begins with.
 */
extern void dgen_check_may_promise(DgenModule *module, const char *hint);	/* 42501 */
extern char *dgen_effects_of(const char *server);	/* name of the stream */
extern int64 dgen_effects_hash(const char *server);
extern bool dgen_is_effects(const char *name);
extern const char *dgen_server_of(const char *name);	/* of a stream, or a server's own */
/* runs one; act->outcome says HANDLED, REJECTED or RETRY_LATER */
extern void dgen_effect_run(DgenActivation *act, DgenMessage *msg);

/* ---------------------------------------------------------------- drain.c */
extern bool dgen_handle_now(DgenModule *module, DgenMessage *msg);
/* what the server said it goes on with, if it has not been handled yet */
extern void dgen_continue_now(DgenModule *module, DgenTable *table, DgenServer *server);
/* handles what this transaction sent to a server, in it; how many messages */
extern int	dgen_drain_server(const DgenAddress *to);
/* a message that this transaction has sent; false: it is not there any more */
extern bool dgen_sent_find(const DgenSent *sent, DgenMessage *msg);

/* -------------------------------------------------------------- postpone.c */
/* keeps a message, which is in no table, until its server changes; own lease held */
extern void dgen_postpone(DgenModule *module, DgenServer *server, DgenMessage *msg);
/* the server has changed: what was postponed goes back to the mailbox */
extern void dgen_postponed_replay(DgenModule *module, DgenServer *server);
/* the message that a call becomes, with its token */
extern void dgen_call_message(DgenModule *module, DgenServer *server, DgenCall *call, DgenMessage *msg);
extern bool dgen_postponed_find(int64 id, DgenMessage *msg);
extern bool dgen_postponed_delete(int64 id);

/* ---------------------------------------------------------------- admin.c */
/* a server under its lease, to be changed; the batch's own copy inside a batch */
extern DgenServer *dgen_admin_open(DgenModule *module, const DgenAddress *address, DgenTable **table);
extern void dgen_admin_close(DgenTable *table, DgenServer *server);	/* writes it */
/* all that there is of a server goes, but its row; false: there was nothing */
extern bool dgen_admin_erase(DgenModule *module, const DgenAddress *address, DgenServer *server, const char *why);
extern void dgen_admin_not_failing(DgenServer *server);
extern DgenModule *dgen_admin_operated(FunctionCallInfo fcinfo, DgenAddress *address);
extern void dgen_admin_remember(DgenModule *module, int64 hash);
/* at 0: it is resumed; the caller writes the row, and the audit */
extern void dgen_admin_set_suspended(DgenServer *server, TimestampTz at, const char *by);
extern void dgen_admin_suspend_module(DgenModule *module, const char *by, const char *reason);
extern void dgen_admin_resume_module(DgenModule *module, const char *reason);
/* an activation that is the caller's own doing: fills in who that is */
extern void dgen_admin_act(DgenActivation *act, DgenModule *module, const DgenAddress *address,
						   DgenServer *server, const char *kind);
pg_noreturn extern void dgen_admin_no_server(DgenModule *module, const DgenServer *server);	/* OT003 */
extern void dgen_admin_check_version(DgenServer *server, int64 expected);	/* OT018 */
/* the state that the statement's snapshot sees; OT003.  Rights are the caller's to check. */
extern Jsonb *dgen_read_state(const DgenAddress *address, DgenServer *out);
extern void dgen_admin_xact_callback(XactEvent event);
extern void dgen_admin_ring(void);	/* no ERROR */
extern void dgen_admin_subxact(SubXactEvent event, SubTransactionId my, SubTransactionId parent);
/* a new incarnation by init, as the owner, for the current user */
extern void dgen_admin_init(DgenModule *module, const DgenAddress *address, DgenServer *server, Jsonb *args);

/* ----------------------------------------------------------- supervisor.c */
/* a child that waits for its restart (continue_id is that of its exit message) or is kept down */
extern bool dgen_server_is_down(const DgenServer *server);
extern bool dgen_supervisor_holds(const DgenServer *server, const DgenMessage *msg);
extern void dgen_supervisor_ended(DgenModule *module, DgenServer *server, const char *reason);
extern bool dgen_supervisor_is_crash(const char *server, const char *sqlstate);
/* ends an incarnation, without terminate if that fails; in a subtransaction */
extern void dgen_end_incarnation(DgenModule *module, DgenServer *server, const char *reason,
								 bool keep_state);
extern int	dgen_limit_waits(void);	/* for leases; returns the nest level of settings */
extern void dgen_check_not_exit(const DgenMessage *msg);

/* ----------------------------------------------------- supervisor_restart.c */
extern void dgen_supervisor_settle(const char *address);	/* worker, between transactions */
extern void dgen_supervisor_settle_now(const char *address);	/* in this transaction */
extern void dgen_supervisor_at_exit(void);

/* ---------------------------------------------------------------- crash.c */
/* the nth newest good state; false: there is none, nothing was changed */
extern bool dgen_restore_good(DgenModule *module, DgenServer *server, int nth);
extern bool dgen_keeps_history(DgenModule *module);
extern void dgen_crash_note(DgenModule *module, DgenServer *server, int64 incarnation,
							const DgenError *error);

/* -------------------------------------------------------------- monitor.c
 *
 * What is tied to a server's incarnation, and ends with it.
 */
/* a server in hand to have something tied to it; *table NULL: its handler runs */
extern DgenServer *dgen_ties_open(DgenModule *module, const DgenAddress *address, DgenTable **table);
extern void dgen_ties_note(DgenServer *server);
extern void dgen_ties_close(DgenTable *table, DgenServer *server);
/* an incarnation ends (forever: its server is deleted), under its lease */
extern int64 dgen_ties_end(DgenServer *server, const char *reason, bool forever);
extern int64 dgen_monitor_drop(const char *module);

/* ------------------------------------------------------------- registry.c */
extern char *dgen_arg_name(FunctionCallInfo fcinfo, int argno, const char *what);
extern bool dgen_is_visible(const char *address);	/* may the current user learn of it? */
extern char *dgen_name_lookup(const char *name);	/* its address, or NULL */
/* as dgen.register() does it, of a server in hand; incarnation 0: permanent */
extern void dgen_name_give(char *name, const char *server, int64 incarnation, Jsonb *metadata);
extern int64 dgen_registry_end(const char *address, bool forever);
extern void dgen_check_alive(DgenModule *module, const DgenServer *server, const char *what);

/* ---------------------------------------------------------------- audit.c */
extern bool dgen_audit_sweep(TimestampTz now, Snapshot snapshot);	/* keeper */

/* ---------------------------------------------------------------- group.c */
extern void dgen_group_give(const char *group, const char *server, int64 incarnation);

/* --------------------------------------------------------------- letter.c */
/* deletes the messages and letters of a server, under its lease; how many */
extern int64 dgen_letter_erase(DgenModule *module, const DgenAddress *address);

/* ------------------------------------------------------------------ send.c */
/* size limit and accept, as kind "call", "cast", "info" or "request" */
extern void dgen_check_message(DgenModule *module, const DgenAddress *to, const char *kind, Jsonb *message);
extern DgenModule *dgen_send_begin(FunctionCallInfo fcinfo, DgenAddress *to, DgenMessage *msg);
extern bool dgen_send_cancel(int64 id); /* true: the message will not be handled */

/* ------------------------------------------------------------- timer_api.c */
extern bool dgen_timer_cancel_id(int64 id);
extern bool dgen_timer_of(int64 id, char **server, char **sender_role);

/* ----------------------------------------------------------------- reply.c */
extern void dgen_reply_announce_rest(void); /* keeper, in a transaction */
extern Jsonb *dgen_reply_by_key(const char *server, const char *key, const char *role,
								Jsonb *request, bool *same);
/* gives whoever waits for a message's reply what it is */
extern void dgen_reply_to(DgenModule *module, DgenMessage *msg, Jsonb *reply);
extern int64 dgen_request_hash(Jsonb *request);
extern void dgen_reply_store(DgenModule *module, int64 id, const char *server, const char *request_key,
							 int64 request_hash, const char *sender_role, Jsonb *reply, Jsonb *error);

/* --------------------------------------------------------------- request.c */
extern bool dgen_state_read(const char *address, int64 known, bool changed, int64 *version, Jsonb **state);

/* ---------------------------------------------------------------- waiter.c
 *
 * Who waits for which reply (by the request's id), or for the next state of
 * which server (by its hash).  A hint: waiters look again at least each second.
 */
typedef enum DgenWaitKind
{
	DGEN_WAIT_REPLY,
	DGEN_WAIT_STATE,
	DGEN_WAIT_WORK				/* of an external module, by its id */
} DgenWaitKind;

#define DGEN_WAIT_ANY 0			/* a waiter's key: any of its kind */

extern Size dgen_waiter_size(void);
extern void dgen_waiter_init(void *place, bool found);
extern bool dgen_waiter_add(DgenWaitKind kind, int64 key);	/* then look; false: no place */
extern void dgen_waiter_remove(void);	/* all of this process */
extern void dgen_waiter_at_abort(void); /* at the abort of any (sub)transaction */
/* no ERROR in these: they may be called from commit callbacks */
extern bool dgen_waiters_any(void);
extern void dgen_waiter_wake(DgenWaitKind kind, int64 key);	/* at once */
extern void dgen_waiter_xact_callback(XactEvent event);
extern void dgen_waiter_wake_noticed(void);
/* wakes who waits for this when this transaction commits */
extern void dgen_notify_at_commit(DgenWaitKind kind, int64 key);

/* --------------------------------------------------------------- announce.c
 *
 * NOTIFY for modules with option notify.
 */
extern bool dgen_announce_wanted;	/* some module that this process has read has the option */
extern Size dgen_announce_size(void);
extern void dgen_announce_init(void *place, bool found);
/* another state, or the end of an incarnation: for waiters and listeners, at the commit */
extern void dgen_server_changed(DgenServer *server, bool deleted);
extern void dgen_announce_subxact(SubXactEvent event, SubTransactionId my, SubTransactionId parent);
extern void dgen_announce_xact_callback(XactEvent event);
extern void dgen_announce_forget(Oid database);
/* the keeper's */
extern TimestampTz dgen_announce_due(DgenDatabase *db);
extern void dgen_announce(DgenDatabase *db);

/* --------------------------------------------------------------- failure.c */
extern void dgen_attempt_delete(int64 message_id);
extern TimestampTz dgen_attempt_next(int64 message_id); /* 0: it has not failed */
extern int	dgen_attempt_count(int64 message_id);
extern void dgen_failure_settle(DgenServer *server);	/* is it still failing? own lease held */

/* -------------------------------------------------------------- launcher.c */
extern void dgen_launcher_register(void);	/* from _PG_init */
extern PGDLLEXPORT void dgen_launcher_main(Datum main_arg);
/* want a worker, or a keeper, for this database: wakes the launcher; no ERROR */
extern void dgen_want_keeper(Oid database);

/*
 * A worker's slot: its number is in bgw_main_arg, its generation in bgw_extra.
 * attach: in the worker, before it connects; false: not meant, exit 0.  It
 * leaves the slot STARTING; IDLE, once connected, says that the start worked.
 * release: at the worker's exit, after its transaction's end; no ERROR.
 */
extern bool dgen_slot_attach(Datum main_arg);
extern void dgen_slot_release(int slotno, uint32 generation);

/* settings of a process that runs dgen's own code only */
extern void dgen_internal_settings(const char *application_name);

/* ---------------------------------------------------------------- keeper.c */
extern PGDLLEXPORT void dgen_keeper_main(Datum main_arg);

/* ----------------------------------------------------------------- guard.c */
extern void dgen_guard_install(void);	/* a check of rights on dgen's tables */
extern void dgen_guard_check_schema(void);	/* at CREATE EXTENSION: it must be ours alone */
extern void dgen_guard_revoke(Oid relid);	/* what default privileges grant on what was made */

/* ------------------------------------------------------------- lifecycle.c
 *
 * DROP DATABASE and its kin, DROP EXTENSION and its update.
 */
extern void dgen_lifecycle_install(void);	/* ProcessUtility and object access hooks */
extern void dgen_lifecycle_wake_at_commit(void);	/* the keeper is to look again then */
extern void dgen_lifecycle_xact(XactEvent event);	/* from the transaction callback; no ERROR */

/* ----------------------------------------------------------------- armed.c */
extern bool dgen_database_armed(void);	/* reads the two tables; needs a transaction */
extern void dgen_check_enabled(void);	/* OT017: standby, disabled, not armed */
extern void dgen_check_writable(void);	/* OT017 on a standby; 25006 in a read-only transaction */
extern void dgen_arm(void);		/* the first create_module */

/* ---------------------------------------------------------------- args.c */
extern Jsonb *dgen_arg_jsonb(FunctionCallInfo fcinfo, int argno);	/* SQL null: JSON null */
extern bool dgen_arg_interval(FunctionCallInfo fcinfo, int argno, const char *name, bool zero_ok, int64 *usecs);
extern TimestampTz dgen_time_after(TimestampTz from, int64 usecs, const char *name);
/* a month as 30 days; false if infinite or too long */
extern bool dgen_interval_usecs(const Interval *span, int64 *usecs);
extern char *dgen_arg_text(FunctionCallInfo fcinfo, int argno); /* NULL if null */
extern Jsonb *dgen_json_null(void);

/* ----------------------------------------------------------- jsonb_patch.c
 *
 * Differences between jsonb documents; the file tells what a patch is.  Pure
 * functions; results are in the current memory context.  22023: a patch is
 * malformed, or not one for this document.
 */
extern Jsonb *dgen_jsonb_diff(Jsonb *base, Jsonb *new);	/* NULL: the same bytes */
extern Jsonb *dgen_jsonb_merge(Jsonb *base, Jsonb *patch);
extern Jsonb *dgen_jsonb_compose(Jsonb *first, Jsonb *second);
extern Jsonb *dgen_jsonb_rebase(Jsonb *base, Jsonb *changed, Jsonb *now);

/* ------------------------------------------------------------- waitpoint.c */
extern void dgen_waitpoint_reach(const char *name);

#endif							/* DGEN_H */
