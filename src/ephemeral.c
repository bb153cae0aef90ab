/*-------------------------------------------------------------------------
 *
 * ephemeral.c
 *	  Keys of a state that are not stored: module option ephemeral_keys.
 *
 * What a handler returns under these keys stays in the memory of the worker
 * that ran it, beside the state, and is put back for the next handler that
 * runs there.  Everything else (the row, versions, history, attributes,
 * validate, whoever reads) knows only the rest of the state.  So such a key
 * may be missing at any time, and, where several workers have served the
 * server meanwhile without changing what is stored, be older than the last
 * one set: good for what can be computed again.
 *
 *-------------------------------------------------------------------------
 */
#include "dgen.h"

#include "catalog/pg_type.h"
#include "utils/array.h"
#include "utils/fmgrprotos.h"

static Jsonb *
object_of(JsonbParseState **parse)
{
	return JsonbValueToJsonb(pushJsonbValue(parse, WJB_END_OBJECT, NULL));
}

/*
 * Part a state from what is not stored, which goes to server->ephemeral; NULL
 * if there is none.  Returns the rest, in the current memory context.
 */
Jsonb *
dgen_ephemeral_split(DgenModule *module, DgenServer *server, Jsonb *state)
{
	JsonbParseState *parse = NULL;
	Datum	   *keys;
	int			nkeys;
	int			found = 0;

	server->ephemeral = NULL;
	if (module->ephemeral_keys == NULL || !JB_ROOT_IS_OBJECT(state))
		return state;
	deconstruct_array(module->ephemeral_keys, TEXTOID, -1, false, TYPALIGN_INT, &keys, NULL, &nkeys);
	pushJsonbValue(&parse, WJB_BEGIN_OBJECT, NULL);
	for (int i = 0; i < nkeys; i++)
	{
		JsonbValue	key = {.type = jbvString};
		JsonbValue *value;

		key.val.string.val = VARDATA_ANY(DatumGetPointer(keys[i]));
		key.val.string.len = VARSIZE_ANY_EXHDR(DatumGetPointer(keys[i]));
		value = findJsonbValueFromContainer(&state->root, JB_FOBJECT, &key);
		if (value == NULL)
			continue;
		pushJsonbValue(&parse, WJB_KEY, &key);
		pushJsonbValue(&parse, WJB_VALUE, value);
		found++;
	}
	if (found == 0)
		return state;
	server->ephemeral = object_of(&parse);
	return DatumGetJsonbP(DirectFunctionCall2(jsonb_delete_array, JsonbPGetDatum(state),
											  PointerGetDatum(module->ephemeral_keys)));
}

/* The state as a handler is to see it: JSON null where there is none. */
Jsonb *
dgen_ephemeral_join(DgenServer *server)
{
	if (server->state == NULL)
		return dgen_json_null();
	if (server->ephemeral == NULL || !JB_ROOT_IS_OBJECT(server->state))
		return server->state;
	return DatumGetJsonbP(DirectFunctionCall2(jsonb_concat, JsonbPGetDatum(server->state),
											  JsonbPGetDatum(server->ephemeral)));
}
