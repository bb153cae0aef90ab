"""Replies are announced by NOTIFY; a listener that does not read stops nobody."""

import pytest

from cluster import wait_for
from common import value

SETUP = """
    CREATE EXTENSION dgen;
    CREATE SCHEMA echo;
    CREATE FUNCTION echo.handle_call(request jsonb, INOUT state jsonb, OUT reply jsonb)
      LANGUAGE plpgsql AS $$ BEGIN reply := request; END $$;
    SET client_min_messages = error;
    SELECT dgen.create_module('echo');"""


def test_only_ids_are_announced(cluster):
    cluster.psql(SETUP)
    with cluster.connect() as listener, cluster.connect() as conn:
        listener.execute("LISTEN dgen_reply")
        quiet = value(conn, "SELECT dgen.send_request('echo/a', '\"secret\"', notify => false)")
        told = value(conn, "SELECT dgen.send_request('echo/a', '\"secret\"')")
        notice = next(listener.notifies())
        assert (notice.channel, notice.payload) == ("dgen_reply", str(told))
        for request in quiet, told:
            assert value(conn, "SELECT dgen.wait_response(%s)", request) == "secret"


def test_queue_that_fills_up(cluster):
    """While the queue is more than half full, announcements are left to the
    keeper, which makes them when there is room again."""
    if cluster.build.major < 17:
        pytest.skip("the size of the queue can be set from PostgreSQL 17 on")
    cluster.configure({"max_notify_queue_pages": 64})
    cluster.restart()
    cluster.psql(SETUP)
    with cluster.connect() as listener, cluster.connect() as stuck, cluster.connect() as conn:
        stuck.execute("LISTEN dgen_reply")
        stuck.execute("BEGIN")
        stuck.execute("SELECT 1")
        while value(conn, "SELECT pg_notification_queue_usage()") <= 0.55:
            conn.execute("SELECT pg_notify('noise', repeat('x', 4000) || i) FROM generate_series(1, 5) i")
        listener.execute("LISTEN dgen_reply")
        request = value(conn, "SELECT dgen.send_request('echo/a', '1')")
        assert value(conn, "SELECT dgen.wait_response(%s)", request) == 1
        stuck.execute("ROLLBACK")
        notice = next(listener.notifies())
        assert notice.payload == str(request)
        wait_for(lambda: value(conn, "SELECT pg_notification_queue_usage()") < 0.5, 10)
