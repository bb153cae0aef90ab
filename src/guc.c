/*-------------------------------------------------------------------------
 *
 * guc.c
 *	  The configuration variables, "dgen.*".
 *
 * Runs once in each process that loads the library: in the postmaster where
 * it is preloaded, else in a session.  A session that loads it late gets all
 * but the variables that size shared memory, which it has no part of.  What
 * each variable means to users is in doc/; the comments in dgen.h say what
 * the code makes of it.
 *
 *-------------------------------------------------------------------------
 */
#include "dgen.h"

#include "common/jsonapi.h"
#include "mb/pg_wchar.h"
#include "utils/guc.h"

/* dgen.context is copied into each message: deep nesting serves nobody */
#define MAX_CONTEXT_DEPTH 64

bool		dgen_enabled = true;
int			dgen_max_workers = 4;
int			dgen_max_long_workers = 2;
int			dgen_max_ready = 65536;
int			dgen_shared_memory = 16 * 1024;
int			dgen_worker_idle_timeout = 60 * 1000;
int			dgen_cache_size = 64 * 1024;
int			dgen_max_stat_modules = 256;
int			dgen_log_min_handler_duration = -1;
int			dgen_audit_retention = 90 * 24 * 60;
int			dgen_audit_max_size = 1024;
char	   *dgen_context = NULL;
int			dgen_call_in_transaction = DGEN_IN_TRANSACTION_WARN;
bool		dgen_inline = false;
bool		dgen_drop_doorbells = false;
char	   *dgen_waitpoint = NULL;

static const struct config_enum_entry in_transaction_options[] = {
	{"allow", DGEN_IN_TRANSACTION_ALLOW, false},
	{"warn", DGEN_IN_TRANSACTION_WARN, false},
	{"error", DGEN_IN_TRANSACTION_ERROR, false},
	{NULL, 0, false}
};

/*
 * What the JSON parser would not mind, or would mind by an ERROR: U+0000,
 * which jsonb cannot hold, and nesting that exhausts the stack.  A check hook
 * may run in the postmaster, where an ERROR is the end of the server.
 */
static bool
check_context_text(const char *json)
{
	bool		in_string = false;
	int			depth = 0;

	for (const char *p = json; *p; p++)
	{
		if (in_string && *p == '\\' && p[1] != '\0')
		{
			if (strncmp(p, "\\u0000", 6) == 0)
			{
				GUC_check_errdetail("\"\\u0000\" cannot be converted to text.");
				return false;
			}
			p++;
		}
		else if (*p == '"')
			in_string = !in_string;
		else if (!in_string && (*p == '{' || *p == '['))
			depth++;
		else if (!in_string && (*p == '}' || *p == ']'))
			depth--;
		if (depth > MAX_CONTEXT_DEPTH)
		{
			GUC_check_errdetail("JSON here may be nested at most %d levels deep.",
								MAX_CONTEXT_DEPTH);
			return false;
		}
	}
	return true;
}

/* Empty, or a JSON object.  Works without a transaction and without catalogs. */
static bool
check_context(char **newval, void **extra, GucSource source)
{
	char	   *json = *newval;
	JsonLexContext *lex;
	JsonParseErrorType result;

	if (json == NULL || json[0] == '\0')
		return true;

	if (json[strspn(json, " \t\r\n")] != '{')
	{
		GUC_check_errdetail("The value must be empty, or a JSON object.");
		return false;
	}
	if (!check_context_text(json))
		return false;

	lex = json_lexer(json, strlen(json));
	result = pg_parse_json(lex, &nullSemAction);
	freeJsonLexContext(lex);
	if (result != JSON_SUCCESS)
	{
		GUC_check_errdetail("The value is not valid JSON.");
		return false;
	}
	return true;
}

/* Those that size shared memory, and therefore need the postmaster. */
static void
define_memory(void)
{
	DefineCustomIntVariable("dgen.max_ready",
							"Sets how many servers of the cluster can be queued for a worker at once.",
							"Servers beyond that are found again when there is room.",
							&dgen_max_ready,
							65536, 256, 4 * 1024 * 1024,
							PGC_POSTMASTER, 0,
							NULL, NULL, NULL);
	DefineCustomIntVariable("dgen.shared_memory",
							"Sets the shared memory reserved for calls in flight.",
							NULL,
							&dgen_shared_memory,
							16 * 1024, 1024, MAX_KILOBYTES,
							PGC_POSTMASTER, GUC_UNIT_KB,
							NULL, NULL, NULL);
	DefineCustomIntVariable("dgen.max_stat_modules",
							"Sets how many modules of the cluster are counted in dgen.stat_module.",
							"Each takes 8 kB of shared memory; 0 counts none.",
							&dgen_max_stat_modules,
							256, 0, 65536,
							PGC_POSTMASTER, 0,
							NULL, NULL, NULL);
}

static void
define_workers(void)
{
	DefineCustomBoolVariable("dgen.enabled",
							 "Lets dgen run handlers, timers and calls.",
							 NULL,
							 &dgen_enabled,
							 true,
							 PGC_SIGHUP, 0,
							 NULL, NULL, NULL);
	DefineCustomIntVariable("dgen.max_workers",
							"Sets how many workers may run in each database.",
							NULL,
							&dgen_max_workers,
							4, 1, 64,
							PGC_SIGHUP, 0,
							NULL, NULL, NULL);
	DefineCustomIntVariable("dgen.max_long_workers",
							"Sets how many further workers may run in each database for effects.",
							NULL,
							&dgen_max_long_workers,
							2, 1, 64,
							PGC_SIGHUP, 0,
							NULL, NULL, NULL);
	DefineCustomIntVariable("dgen.worker_idle_timeout",
							"Sets how long a worker without work stays.",
							NULL,
							&dgen_worker_idle_timeout,
							60 * 1000, 0, INT_MAX,
							PGC_SIGHUP, GUC_UNIT_MS,
							NULL, NULL, NULL);
	DefineCustomIntVariable("dgen.cache_size",
							"Sets how much memory each worker may use to keep states of servers.",
							NULL,
							&dgen_cache_size,
							64 * 1024, 0, MAX_KILOBYTES,
							PGC_SIGHUP, GUC_UNIT_KB,
							NULL, NULL, NULL);
}

/* What operators have done. */
static void
define_audit(void)
{
	DefineCustomIntVariable("dgen.audit_retention",
							"Sets for how long rows of dgen.audit_log are kept.",
							"-1 keeps them for ever; 0 writes none.",
							&dgen_audit_retention,
							90 * 24 * 60, -1, INT_MAX,
							PGC_SIGHUP, GUC_UNIT_MIN,
							NULL, NULL, NULL);
	DefineCustomIntVariable("dgen.audit_max_size",
							"Sets up to which size dgen.audit_log keeps what there was before a change.",
							"What is larger cannot be undone by dgen.undo(); of a state the difference may be small enough.",
							&dgen_audit_max_size,
							1024, 0, 128 * 1024,	/* a document of more might be too large for jsonb */
							PGC_SIGHUP, GUC_UNIT_KB,
							NULL, NULL, NULL);
}

static void
define_logging(void)
{
	DefineCustomIntVariable("dgen.log_min_handler_duration",
							"Sets the time above which activations are logged.",
							"0 logs all, -1 none.",
							&dgen_log_min_handler_duration,
							-1, -1, INT_MAX,
							PGC_SUSET, GUC_UNIT_MS,
							NULL, NULL, NULL);
}

static void
define_session(void)
{
	DefineCustomStringVariable("dgen.context",
							   "Sets the context that goes with every message and call of this session.",
							   "A JSON object, or empty for none.",
							   &dgen_context,
							   "",
							   PGC_USERSET, 0,
							   check_context, NULL, NULL);
	DefineCustomEnumVariable("dgen.call_in_transaction",
							 "Sets what dgen.call does in a transaction that has written or keeps its snapshot.",
							 "A call commits by itself and does not see the transaction's own changes.",
							 &dgen_call_in_transaction,
							 DGEN_IN_TRANSACTION_WARN, in_transaction_options,
							 PGC_USERSET, 0,
							 NULL, NULL, NULL);
	DefineCustomBoolVariable("dgen.inline",
							 "Runs calls and requests inside the caller's transaction, for tests.",
							 NULL,
							 &dgen_inline,
							 false,
							 PGC_USERSET, 0,
							 NULL, NULL, NULL);
}

static void
define_developer(void)
{
	DefineCustomBoolVariable("dgen.drop_doorbells",
							 "Loses every wake-up that a commit would send.",
							 NULL,
							 &dgen_drop_doorbells,
							 false,
							 PGC_SUSET, GUC_NOT_IN_SAMPLE,
							 NULL, NULL, NULL);
	DefineCustomStringVariable("dgen.debug_waitpoint",
							   "Names the point in the code that waits for an advisory lock.",
							   NULL,
							   &dgen_waitpoint,
							   "",
							   PGC_SUSET, GUC_NOT_IN_SAMPLE,
							   NULL, NULL, NULL);
}

void
dgen_guc_define(void)
{
	if (process_shared_preload_libraries_in_progress)
		define_memory();
	define_workers();
	define_logging();
	define_audit();
	define_session();
	define_developer();
	MarkGUCPrefixReserved("dgen");
}
