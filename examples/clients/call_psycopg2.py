"""dgen.call from psycopg2.  Needs examples/counter; reads PGHOST, PGDATABASE and so on."""
import psycopg2
from psycopg2.extras import Json

conn = psycopg2.connect("")
conn.autocommit = True
with conn.cursor() as cur:
    try:
        cur.execute("SELECT dgen.call(%s, %s)", ("counter/python", Json("increment")))
        print(cur.fetchone()[0])
    except psycopg2.Error as e:
        print("SQLSTATE %s: %s" % (e.pgcode, e.pgerror))
