"""dgen.call from psycopg2.  Needs examples/bank; reads PGHOST, PGDATABASE and so on."""
import uuid

import psycopg2
from psycopg2.extras import Json

conn = psycopg2.connect("")
conn.autocommit = True
key = str(uuid.uuid4())             # so that asking again does not pay in twice
with conn.cursor() as cur:
    for attempt in range(3):
        try:
            cur.execute("SELECT dgen.call(%s, %s, timeout => '2 s', request_key => %s)",
                        ("bank/alice", Json({"deposit": 10}), key))
            print(cur.fetchone()[0])
            break
        except psycopg2.Error as e:
            if e.pgcode not in ("OT001", "OT002", "OT015", "OT020") or attempt == 2:
                raise
