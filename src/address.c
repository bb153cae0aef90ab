/*-------------------------------------------------------------------------
 *
 * address.c
 *	  Addresses of servers: module '/' key.
 *
 * The module's name is a schema's by default and holds no '/'; the key may
 * hold any character but NUL, '/' too.  The 64-bit hash of an address names
 * the server's lease and its low-water mark: two servers with one hash are
 * merely served one after the other.  An address without '/' is a registered
 * name.
 *
 *-------------------------------------------------------------------------
 */
#include "dgen.h"

#include "common/hashfn.h"
#include "catalog/pg_type.h"
#include "utils/array.h"

#define ADDRESS_HINT "An address is written module/key, for example 'counter/home'."

int64
dgen_address_hash(const char *s, int len)
{
	uint64		hash = hash_bytes_extended((const unsigned char *) s, len, 0);

	return hash == 0 ? 1 : (int64) hash;
}

/* Put the address in place of a registered name; OT003 if nobody has it. */
static void
resolve_name(const char *s, int len, DgenAddress *out)
{
	char	   *name = pnstrdup(s, len);
	char	   *address = dgen_name_lookup(name);

	if (address == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_DGEN_NO_SERVER),
				 errmsg("no server is registered under the name \"%s\"", name),
				 errhint("An address is written module/key; a name without \"/\" is given to one by dgen.register().")));
	dgen_address_parse(address, strlen(address), out);
	pfree(address);
	pfree(name);
}

/*
 * Parse an address of len bytes, or look up a name; raises OT006 on a
 * malformed one and OT003 on a name that nobody has registered.
 */
void
dgen_address_parse(const char *s, int len, DgenAddress *out)
{
	const char *slash = memchr(s, '/', len);
	int			module_len;

	if (len == 0)
		ereport(ERROR,
				(errcode(ERRCODE_DGEN_BAD_ADDRESS),
				 errmsg("address of a server is empty"),
				 errhint(ADDRESS_HINT)));
	if (len > DGEN_MAX_ADDRESS)
		ereport(ERROR,
				(errcode(ERRCODE_DGEN_BAD_ADDRESS),
				 errmsg("address of a server is too long"),
				 errdetail("It has %d bytes; at most %d are allowed.",
						   len, DGEN_MAX_ADDRESS),
				 errhint("Use a shorter key, for example a hash of the long one.")));
	if (slash == NULL)
	{
		resolve_name(s, len, out);
		return;
	}

	module_len = slash - s;
	if (module_len == 0 || module_len == len - 1)
		ereport(ERROR,
				(errcode(ERRCODE_DGEN_BAD_ADDRESS),
				 errmsg("malformed address \"%.*s\"", len, s),
				 module_len == 0 ? errdetail("The module's name before \"/\" is empty.") :
				 errdetail("The key after \"/\" is empty."),
				 errhint(ADDRESS_HINT)));
	if (module_len >= NAMEDATALEN)
		ereport(ERROR,
				(errcode(ERRCODE_DGEN_BAD_ADDRESS),
				 errmsg("malformed address \"%.*s\"", len, s),
				 errdetail("The module's name has %d bytes; names have at most %d.",
						   module_len, NAMEDATALEN - 1),
				 errhint(ADDRESS_HINT)));

	memcpy(out->text, s, len);
	out->text[len] = '\0';
	out->len = len;
	memcpy(out->module, s, module_len);
	out->module[module_len] = '\0';
	out->hash = dgen_address_hash(s, len);
}

/* Parse argument argno, a text; NULL is an error. */
void
dgen_address_arg(FunctionCallInfo fcinfo, int argno, DgenAddress *out)
{
	text	   *arg;

	if (PG_ARGISNULL(argno))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("address of a server must not be null"),
				 errhint(ADDRESS_HINT)));
	arg = PG_GETARG_TEXT_PP(argno);
	dgen_address_parse(VARDATA_ANY(arg), VARSIZE_ANY_EXHDR(arg), out);
}

PG_FUNCTION_INFO_V1(dgen_address);

/*
 * address(module text, VARIADIC parts text[]): module/part/part..., with '%'
 * and '/' inside a part escaped as %25 and %2F, so that different parts never
 * make one address.
 */
Datum
dgen_address(PG_FUNCTION_ARGS)
{
	StringInfoData buf;
	Datum	   *parts;
	bool	   *nulls;
	int			nparts;
	DgenAddress checked;

	if (PG_ARGISNULL(0) || PG_ARGISNULL(1))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("parts of an address must not be null")));
	initStringInfo(&buf);
	appendStringInfoString(&buf, text_to_cstring(PG_GETARG_TEXT_PP(0)));
	if (strchr(buf.data, '/') != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_DGEN_BAD_ADDRESS),
				 errmsg("module name \"%s\" contains \"/\"", buf.data),
				 errhint("Pass the parts of the key as further arguments.")));
	deconstruct_array(PG_GETARG_ARRAYTYPE_P(1), TEXTOID, -1, false, TYPALIGN_INT,
					  &parts, &nulls, &nparts);
	/* it would be taken for a name, and looked up */
	if (nparts == 0)
		ereport(ERROR,
				(errcode(ERRCODE_DGEN_BAD_ADDRESS),
				 errmsg("address in module \"%s\" has no key", buf.data),
				 errhint(ADDRESS_HINT)));
	for (int i = 0; i < nparts; i++)
	{
		if (nulls[i])
			ereport(ERROR,
					(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
					 errmsg("parts of an address must not be null")));
		appendStringInfoChar(&buf, '/');
		for (const char *c = TextDatumGetCString(parts[i]); *c; c++)
		{
			if (*c == '/')
				appendStringInfoString(&buf, "%2F");
			else if (*c == '%')
				appendStringInfoString(&buf, "%25");
			else
				appendStringInfoChar(&buf, *c);
		}
	}
	dgen_address_parse(buf.data, buf.len, &checked);
	PG_RETURN_TEXT_P(cstring_to_text_with_len(buf.data, buf.len));
}
