"""A request, and its reply announced by NOTIFY.  Needs examples/counter, as call_psycopg.py."""
import psycopg

with psycopg.connect(autocommit=True) as conn:
    conn.execute("LISTEN dgen_reply")       # first, or the reply may come before
    request, = conn.execute("SELECT dgen.send_request(%s, %s::jsonb)",
                            ("counter/python", '"increment"')).fetchone()
    for notice in conn.notifies():
        if notice.payload == str(request):
            print(conn.execute("SELECT dgen.check_response(%s)", (request,)).fetchone()[0])
            break
