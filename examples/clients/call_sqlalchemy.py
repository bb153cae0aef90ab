"""dgen.call from SQLAlchemy.  Needs examples/bank; reads PGHOST, PGDATABASE and so on."""
import uuid
from datetime import timedelta

from sqlalchemy import cast, create_engine, func, select
from sqlalchemy.dialects.postgresql import INTERVAL, JSONB
from sqlalchemy.exc import DBAPIError

engine = create_engine("postgresql+psycopg2://", isolation_level="AUTOCOMMIT", pool_pre_ping=True)
key = str(uuid.uuid4())             # so that asking again does not pay in twice
call = select(func.dgen.call("bank/alice", cast({"deposit": 10}, JSONB),
                             cast(timedelta(seconds=2), INTERVAL), key, type_=JSONB))
with engine.connect() as conn:
    for attempt in range(3):
        try:
            print(conn.execute(call).scalar())
            break
        except DBAPIError as e:
            if e.orig.diag.sqlstate not in ("OT001", "OT002", "OT015", "OT020") or attempt == 2:
                raise
