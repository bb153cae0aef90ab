"""dgen.call from psycopg 3.  Needs examples/counter; reads PGHOST, PGDATABASE and so on."""
import uuid

import psycopg

with psycopg.connect(autocommit=True) as conn:
    query = "SELECT dgen.call(%s, %s::jsonb, timeout => %s::interval, request_key => %s)"
    key = str(uuid.uuid4())         # so that asking again does not count twice
    for attempt in range(3):
        try:
            print(conn.execute(query, ("counter/python", '"increment"', "2 s", key)).fetchone()[0])
            break
        except psycopg.Error as e:
            if e.sqlstate not in ("OT001", "OT002", "OT015", "OT020"):
                raise
