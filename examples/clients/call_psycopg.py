"""dgen.call from psycopg 3.  Needs examples/bank; reads PGHOST, PGDATABASE and so on."""
import uuid

import psycopg
from psycopg.types.json import Jsonb

# prepare_threshold: for PgBouncer, which has no named statements before 1.21
with psycopg.connect(autocommit=True, prepare_threshold=None) as conn:
    query = "SELECT dgen.call(%s, %s, timeout => '2 s', request_key => %s)"
    key = str(uuid.uuid4())         # so that asking again does not pay in twice
    for attempt in range(3):
        try:
            print(conn.execute(query, ("bank/alice", Jsonb({"deposit": 10}), key)).fetchone()[0])
            break
        except psycopg.Error as e:
            if e.sqlstate not in ("OT001", "OT002", "OT015", "OT020") or attempt == 2:
                raise
