/*-------------------------------------------------------------------------
 *
 * supervisor_tree.c
 *	  A supervision tree from one jsonb value, checked as a whole before
 *	  anything is made of it.
 *
 * Every error names the place in the value, as "children[0].children[2]".
 * Here is checked what the value itself can tell; what depends on modules and
 * on other trees is supervisor_api.c's.
 *
 *-------------------------------------------------------------------------
 */
#include "supervisor.h"

#include "utils/fmgrprotos.h"
#include "utils/resowner.h"

#define DEFAULT_INTENSITY 3
#define DEFAULT_PERIOD "5 s"
#define MAX_ID 512				/* bytes; a path of supervisors has no more either */

/* where we are in the value */
typedef struct Place
{
	DgenTree   *tree;
	const char *path;			/* "" at the top */
} Place;

static const char *const strategies[] = {"one_for_one", "one_for_all", "rest_for_one", NULL};
static const char *const restarts[] = {"permanent", "transient", "temporary", NULL};
static const char *const states[] = {"keep", "init", "last_good", NULL};

static const char *const supervisor_keys[] = {
	"id", "strategy", "intensity", "period", "restart", "children", NULL
};
static const char *const server_keys[] = {
	"id", "server", "args", "restart", "state", "not_a_crash", "on_restart", NULL
};

/* ---------------------------------------------------------------- words */

static int
word_index(const char *const *words, const char *word)
{
	for (int i = 0; words[i] != NULL; i++)
	{
		if (strcmp(words[i], word) == 0)
			return i;
	}
	return -1;
}

const char *
dgen_strategy_name(DgenStrategy strategy)
{
	return strategies[strategy];
}

const char *
dgen_restart_name(DgenRestart restart)
{
	return restarts[restart];
}

const char *
dgen_restart_state_name(DgenRestartState state)
{
	return states[state];
}

DgenStrategy
dgen_strategy_by_name(const char *name)
{
	return Max(word_index(strategies, name), 0);
}

DgenRestart
dgen_restart_by_name(const char *name)
{
	return Max(word_index(restarts, name), 0);
}

DgenRestartState
dgen_restart_state_by_name(const char *name)
{
	return Max(word_index(states, name), 0);
}

/* "'a', 'b', 'c'" */
static char *
word_list(const char *const *words)
{
	StringInfoData list;

	initStringInfo(&list);
	for (int i = 0; words[i] != NULL; i++)
		appendStringInfo(&list, "%s'%s'", i > 0 ? ", " : "", words[i]);
	return list.data;
}

/* ---------------------------------------------------------------- errors */

pg_noreturn static void bad_tree(Place *at, const char *problem, const char *hint);

static void
bad_tree(Place *at, const char *problem, const char *hint)
{
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("invalid supervision tree"),
			 errdetail("At %s: %s", at->path[0] ? at->path : "the top", problem),
			 errhint("%s", hint)));
}

/* ---------------------------------------------------------------- values */

/* The value of a key; false: there is none, or it is JSON null. */
static bool
get_value(JsonbContainer *object, const char *key, JsonbValue *v)
{
	return getKeyJsonValueFromContainer(object, key, strlen(key), v) != NULL && v->type != jbvNull;
}

static void
check_keys(Place *at, JsonbContainer *object, const char *const *known)
{
	JsonbIterator *it = JsonbIteratorInit(object);
	JsonbIteratorToken token;
	JsonbValue	v;

	while ((token = JsonbIteratorNext(&it, &v, true)) != WJB_DONE)
	{
		char	   *key;

		if (token != WJB_KEY)
			continue;
		key = pnstrdup(v.val.string.val, v.val.string.len);
		if (word_index(known, key) < 0)
			bad_tree(at, psprintf("unknown key \"%s\".", key),
					 psprintf("Allowed are %s.", word_list(known)));
	}
}

static char *
string_of(Place *at, const char *key, JsonbValue *v)
{
	if (v->type != jbvString)
		bad_tree(at, psprintf("\"%s\" must be a string.", key), "Write it in double quotes.");
	return pnstrdup(v->val.string.val, v->val.string.len);
}

static int
word_value(Place *at, JsonbContainer *object, const char *key, const char *const *words)
{
	JsonbValue	v;
	char	   *word;
	int			i;

	if (!get_value(object, key, &v))
		return 0;
	word = string_of(at, key, &v);
	i = word_index(words, word);
	if (i < 0)
		bad_tree(at, psprintf("\"%s\" is \"%s\".", key, word),
				 psprintf("Allowed are %s.", word_list(words)));
	return i;
}

static Jsonb *
jsonb_value(JsonbContainer *object, const char *key)
{
	JsonbValue	v;

	return get_value(object, key, &v) ? JsonbValueToJsonb(&v) : NULL;
}

static int
intensity_value(Place *at, JsonbContainer *object)
{
	JsonbValue	v;
	Datum		number;
	Numeric		limit;

	if (!get_value(object, "intensity", &v))
		return DEFAULT_INTENSITY;
	limit = int64_to_numeric(DGEN_MAX_INTENSITY);
	if (v.type != jbvNumeric ||
		DatumGetBool(DirectFunctionCall2(numeric_lt, NumericGetDatum(v.val.numeric),
										 NumericGetDatum(int64_to_numeric(0)))) ||
		DatumGetBool(DirectFunctionCall2(numeric_gt, NumericGetDatum(v.val.numeric),
										 NumericGetDatum(limit))))
		bad_tree(at, "\"intensity\" must be a number of restarts.",
				 psprintf("Allowed are 0 to %d.", DGEN_MAX_INTENSITY));
	number = DirectFunctionCall2(numeric_trunc, NumericGetDatum(v.val.numeric), Int32GetDatum(0));
	if (!DatumGetBool(DirectFunctionCall2(numeric_eq, number, NumericGetDatum(v.val.numeric))))
		bad_tree(at, "\"intensity\" must be a whole number.",
				 psprintf("Allowed are 0 to %d.", DGEN_MAX_INTENSITY));
	return DatumGetInt32(DirectFunctionCall1(numeric_int4, number));
}

/* An interval that cannot be read is an error of the tree, and names its place. */
static Interval *
read_interval(Place *at, const char *text)
{
	MemoryContext old = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	Interval   *volatile span = NULL;

	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(old);
	PG_TRY();
	{
		span = DatumGetIntervalP(DirectFunctionCall3(interval_in, CStringGetDatum(text),
													 ObjectIdGetDatum(InvalidOid),
													 Int32GetDatum(-1)));
		ReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		ErrorData  *edata = dgen_subxact_abort(old, owner);

		if (ERRCODE_TO_CATEGORY(edata->sqlerrcode) != ERRCODE_DATA_EXCEPTION)
			ReThrowError(edata);
		span = NULL;
	}
	PG_END_TRY();
	MemoryContextSwitchTo(old);
	CurrentResourceOwner = owner;
	return span;
}

static Interval
period_value(Place *at, JsonbContainer *object)
{
	const char *text = DEFAULT_PERIOD;
	Interval   *span;
	JsonbValue	v;
	int64		usecs;

	if (get_value(object, "period", &v))
		text = string_of(at, "period", &v);
	span = read_interval(at, text);
	if (span == NULL || !dgen_interval_usecs(span, &usecs) || usecs <= 0)
		bad_tree(at, psprintf("\"period\" is \"%s\".", text),
				 "Give an interval of more than zero, for example \"5 s\".");
	return *span;
}

/* s need not end with a zero. */
static bool
is_sqlstate(const char *s, int len)
{
	for (int i = 0; i < len; i++)
	{
		if (!(s[i] >= '0' && s[i] <= '9') && !(s[i] >= 'A' && s[i] <= 'Z'))
			return false;
	}
	return len == 5;
}

static Jsonb *
not_a_crash_value(Place *at, JsonbContainer *object)
{
	Jsonb	   *list = jsonb_value(object, "not_a_crash");
	JsonbIterator *it;
	JsonbIteratorToken token;
	JsonbValue	v;

	if (list == NULL)
		return DatumGetJsonbP(DirectFunctionCall1(jsonb_in, CStringGetDatum("[\"P0001\"]")));
	if (!JB_ROOT_IS_ARRAY(list) || JB_ROOT_IS_SCALAR(list))
		bad_tree(at, "\"not_a_crash\" must be an array of SQLSTATEs.",
				 "Write for example [\"P0001\", \"23505\"].");
	it = JsonbIteratorInit(&list->root);
	while ((token = JsonbIteratorNext(&it, &v, true)) != WJB_DONE)
	{
		if (token == WJB_ELEM &&
			(v.type != jbvString || !is_sqlstate(v.val.string.val, v.val.string.len)))
			bad_tree(at, "\"not_a_crash\" has an element that is no SQLSTATE.",
					 "An SQLSTATE has five digits or capital letters, as \"P0001\" or \"23505\".");
	}
	return list;
}

/* ---------------------------------------------------------------- nodes */

static void parse_node(Place *at, JsonbContainer *object, const char *supervisor, DgenChild **made);

static char *
id_value(Place *at, JsonbContainer *object, const char *otherwise, bool is_supervisor)
{
	JsonbValue	v;
	char	   *id;

	if (!get_value(object, "id", &v))
	{
		if (otherwise == NULL)
			bad_tree(at, "\"id\" is missing.", "Give each supervisor below the top an \"id\".");
		return pstrdup(otherwise);
	}
	id = string_of(at, "id", &v);
	if (id[0] == '\0' || strlen(id) > MAX_ID || (is_supervisor && strchr(id, '/') != NULL))
		bad_tree(at, psprintf("invalid \"id\" \"%s\".", id),
				 is_supervisor ? "A supervisor's id has 1 to 512 bytes and no \"/\"." :
				 "An id has 1 to 512 bytes.");
	return id;
}

static DgenChild *
add_child(Place *at, const char *supervisor, char *id, char *server)
{
	DgenChild  *child = palloc0(sizeof(DgenChild));
	ListCell   *lc;

	foreach(lc, at->tree->children)
	{
		DgenChild  *other = lfirst(lc);

		if (strcmp(other->supervisor, supervisor) == 0 && strcmp(other->id, id) == 0)
			bad_tree(at, psprintf("there is another child with id \"%s\".", id),
					 "Ids of one supervisor's children must differ.");
		if (server != NULL && other->server != NULL && strcmp(other->server, server) == 0)
			bad_tree(at, psprintf("server \"%s\" is in the tree twice.", server),
					 "A server can be the child of one supervisor only.");
	}
	child->supervisor = pstrdup(supervisor);
	child->id = id;
	child->server = server;
	child->not_a_crash = child->args = dgen_json_null();
	at->tree->children = lappend(at->tree->children, child);
	return child;
}

static DgenChild *
parse_server(Place *at, JsonbContainer *object, const char *supervisor)
{
	JsonbValue	v;
	DgenAddress address;
	DgenChild  *child;
	char	   *text;
	Jsonb	   *args;

	check_keys(at, object, server_keys);
	(void) get_value(object, "server", &v);
	text = string_of(at, "server", &v);
	if (strchr(text, '/') == NULL)
		bad_tree(at, psprintf("\"%s\" is not the address of a server.", text),
				 "An address is module/key.");
	dgen_address_parse(text, strlen(text), &address);
	child = add_child(at, supervisor, id_value(at, object, address.text, false),
					  pstrdup(address.text));
	child->restart = word_value(at, object, "restart", restarts);
	child->state = word_value(at, object, "state", states);
	child->not_a_crash = not_a_crash_value(at, object);
	if ((args = jsonb_value(object, "args")) != NULL)
		child->args = args;
	child->on_restart = jsonb_value(object, "on_restart");
	return child;
}

/* The elements of "children", left to right. */
static void
parse_children(Place *at, JsonbContainer *object, const char *supervisor)
{
	Jsonb	   *list = jsonb_value(object, "children");
	int			n;

	if (list == NULL)
		return;
	if (!JB_ROOT_IS_ARRAY(list) || JB_ROOT_IS_SCALAR(list))
		bad_tree(at, "\"children\" must be an array.", "Write it as [{...}, {...}].");
	n = JB_ROOT_COUNT(list);
	for (int i = 0; i < n; i++)
	{
		JsonbValue *v = getIthJsonbValueFromContainer(&list->root, i);
		Place		below = {at->tree};

		CHECK_FOR_INTERRUPTS();
		below.path = psprintf("%s%schildren[%d]", at->path, at->path[0] ? "." : "", i);
		if (v->type != jbvBinary || !JsonContainerIsObject(v->val.binary.data))
			bad_tree(&below, "a child must be an object.",
					 "Write for example {\"id\": \"a\", \"server\": \"kv/a\"}.");
		parse_node(&below, v->val.binary.data, supervisor, NULL);
	}
}

static void
parse_supervisor(Place *at, JsonbContainer *object, const char *name)
{
	DgenSupervisor *sup = palloc0(sizeof(DgenSupervisor));

	check_stack_depth();
	check_keys(at, object, supervisor_keys);
	if (strlen(name) > MAX_ID)
		bad_tree(at, "the path of the supervisor is too long.", "A path has up to 512 bytes.");
	sup->name = pstrdup(name);
	sup->strategy = word_value(at, object, "strategy", strategies);
	sup->intensity = intensity_value(at, object);
	sup->period = period_value(at, object);
	at->tree->supervisors = lappend(at->tree->supervisors, sup);
	parse_children(at, object, name);
}

/* A child: a server, or a supervisor with children of its own. */
static void
parse_node(Place *at, JsonbContainer *object, const char *supervisor, DgenChild **made)
{
	DgenChild  *child;
	JsonbValue	v;

	if (get_value(object, "server", &v))
		child = parse_server(at, object, supervisor);
	else if (get_value(object, "children", &v) || get_value(object, "strategy", &v))
	{
		child = add_child(at, supervisor, id_value(at, object, NULL, true), NULL);
		child->restart = word_value(at, object, "restart", restarts);
		parse_supervisor(at, object, dgen_child_path(child));
	}
	else
		bad_tree(at, "a child has neither \"server\" nor \"children\".",
				 "Give it a \"server\", or make it a supervisor with \"children\".");
	if (made != NULL)
		*made = child;
}

/* A whole tree. */
DgenTree *
dgen_tree_parse(const char *name, Jsonb *value)
{
	DgenTree   *tree = palloc0(sizeof(DgenTree));
	Place		top = {tree, ""};
	JsonbValue	v;

	if (!JB_ROOT_IS_OBJECT(value))
		bad_tree(&top, "a supervisor must be an object.",
				 "Write for example {\"strategy\": \"one_for_one\", \"children\": []}.");
	if (get_value(&value->root, "id", &v) || get_value(&value->root, "restart", &v))
		bad_tree(&top, "a tree has neither \"id\" nor \"restart\" at its top.",
				 "Its name is the first argument, and there is nobody above to restart it.");
	parse_supervisor(&top, &value->root, name);
	return tree;
}

/* One more child of a supervisor, which may be a tree of its own. */
DgenTree *
dgen_tree_parse_child(const char *supervisor, Jsonb *value, DgenChild **top)
{
	DgenTree   *tree = palloc0(sizeof(DgenTree));
	Place		at = {tree, ""};

	if (!JB_ROOT_IS_OBJECT(value))
		bad_tree(&at, "a child must be an object.",
				 "Write for example {\"id\": \"a\", \"server\": \"kv/a\"}.");
	parse_node(&at, &value->root, supervisor, top);
	return tree;
}
