"""A request, and its reply announced by NOTIFY.  Needs examples/bank, as call_psycopg.py."""
import psycopg
from psycopg.types.json import Jsonb

# one connection to listen, which does nothing else and does not go through a
# pooler in transaction mode, and one for all the rest
with psycopg.connect(autocommit=True) as listener, psycopg.connect(autocommit=True) as conn:
    listener.execute("LISTEN dgen_reply")   # first, or the reply may come before
    request, = conn.execute("SELECT dgen.send_request(%s, %s)",
                            ("bank/alice", Jsonb({"deposit": 10}))).fetchone()
    for notice in listener.notifies():
        if notice.payload == str(request):
            print(conn.execute("SELECT dgen.check_response(%s)", (request,)).fetchone()[0])
            break
