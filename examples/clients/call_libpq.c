/*
 * dgen.call from C:  cc call_libpq.c -I$(pg_config --includedir) -lpq
 * Needs examples/bank.  libpq reads PGHOST, PGDATABASE and so on; the key that
 * makes it harmless to ask again is the first argument.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <libpq-fe.h>

int
main(int argc, char **argv)
{
	const char *args[] = {"bank/alice", "{\"deposit\": 10}", "2 s", argc > 1 ? argv[1] : NULL};
	PGconn	   *conn = PQconnectdb("");

	for (int attempt = 0; attempt < 3; attempt++)
	{
		PGresult   *res = PQexecParams(conn, "SELECT dgen.call($1, $2, $3, $4)", 4, NULL, args,
									   NULL, NULL, 0);
		const char *state = PQresultErrorField(res, PG_DIAG_SQLSTATE);

		if (PQresultStatus(res) == PGRES_TUPLES_OK)
		{
			printf("%ld\n", strtol(PQgetvalue(res, 0, 0), NULL, 10));
			return 0;
		}
		if (args[3] == NULL || state == NULL || !strstr("OT001 OT002 OT015 OT020", state))
			break;
		PQclear(res);
	}
	fputs(PQerrorMessage(conn), stderr);
	return 1;
}
