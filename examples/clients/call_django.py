"""dgen.call from Django.  Needs examples/bank; reads PGHOST, PGDATABASE and so on."""
import json
import os
import uuid

from django.conf import settings
from django.db import Error, connection, transaction

settings.configure(DATABASES={"default": {
    "ENGINE": "django.db.backends.postgresql", "NAME": os.environ["PGDATABASE"],
    "ATOMIC_REQUESTS": True, "DISABLE_SERVER_SIDE_CURSORS": True}})     # the latter for PgBouncer


def deposit(server, amount, key):
    for attempt in range(3):
        try:
            # atomic: under ATOMIC_REQUESTS an error would else spoil the request's transaction
            with transaction.atomic(), connection.cursor() as cursor:
                cursor.execute("SELECT dgen.call(%s, %s::jsonb, timeout => '2 s', request_key => %s)",
                               (server, json.dumps({"deposit": amount}), key))
                return json.loads(cursor.fetchone()[0])     # Django leaves jsonb as text
        except Error as e:
            if e.__cause__.diag.sqlstate not in ("OT001", "OT002", "OT015", "OT020") or attempt == 2:
                raise


print(deposit("bank/alice", 10, str(uuid.uuid4())))
