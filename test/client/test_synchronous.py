"""Promise 5 with synchronous replication: a reply leaves only when the standby
has its transaction; if that wait is cut short, nobody is told that it has."""

import psycopg
import pytest

from cluster import wait_for
from common import connect_again, in_threads, value

SETUP = """
    CREATE EXTENSION dgen;
    CREATE SCHEMA counter;
    CREATE FUNCTION counter.handle_call(request jsonb, INOUT state jsonb, OUT reply jsonb)
      LANGUAGE plpgsql AS $$
    BEGIN
      state := to_jsonb(coalesce((state->>'n')::int, 0) + 1);
      state := jsonb_build_object('n', state);
      reply := state;
    END $$;
    SET client_min_messages = error;
    SELECT dgen.create_module('counter');
    SELECT dgen.call('counter/a', NULL);"""

# the worker that waits for a standby
WAITING = """SELECT pid FROM pg_stat_activity
             WHERE backend_type = 'dgen worker' AND wait_event = 'SyncRep'"""


@pytest.mark.parametrize("how", ["pg_cancel_backend", "pg_terminate_backend"])
def test_wait_for_the_standby_is_cut_short(cluster, how):
    cluster.psql(SETUP)
    cluster.configure({"synchronous_standby_names": "nobody"})
    cluster.reload()
    errors = []

    def caller():
        with cluster.connect() as mine:
            with pytest.raises(psycopg.Error) as e:
                value(mine, "SELECT dgen.call('counter/a', NULL, '60 s')")
            errors.append(e.value.sqlstate)

    def operator():
        with cluster.connect() as conn:
            wait_for(lambda: value(conn, "SHOW synchronous_standby_names") == "nobody", 20)
            pid = wait_for(lambda: value(conn, WAITING), 20)
            # the caller was told nothing so far: the standby has nothing yet
            assert errors == []
            # others do not see it either
            assert value(conn, "SELECT dgen.state('counter/a')->>'n'") == "1"
            assert value(conn, "SELECT %s(%s)" % (how, pid))
    in_threads([caller, operator])
    assert errors == ["OT002"]

    # it was committed here, which is why the outcome had to be unknown
    cluster.configure({"synchronous_standby_names": ""})
    cluster.reload()
    with connect_again(cluster) as conn:
        wait_for(lambda: value(conn, "SHOW synchronous_standby_names") == "", 20)
        assert value(conn, "SELECT dgen.state('counter/a')->>'n'") == "2"
        assert value(conn, "SELECT dgen.call('counter/a', NULL)->>'n'") == "3"


@pytest.mark.parametrize("how", ["pg_cancel_backend", "pg_terminate_backend"])
def test_wait_of_one_who_replies_later(cluster, how):
    """The same of a session that replies to a call: the wait that is cut short is its own."""
    cluster.psql(SETUP + """
        CREATE TABLE answered (n int);
        CREATE SCHEMA later;
        CREATE FUNCTION later.handle_call(request jsonb, INOUT state jsonb, OUT noreply boolean)
        LANGUAGE plpgsql AS $$ BEGIN state := to_jsonb(dgen."from"()); noreply := true; END $$;
        SELECT dgen.create_module('later');""")
    results = []

    def caller():
        with cluster.connect() as mine:
            try:
                results.append(value(mine, "SELECT dgen.call('later/1', NULL, '60 s')"))
            except psycopg.Error as e:
                results.append(e.sqlstate)

    def replier():
        with cluster.connect() as mine:
            wait_for(lambda: value(mine, "SELECT count(*) FROM dgen.servers WHERE server = 'later/1'"), 20)
            cluster.configure({"synchronous_standby_names": "nobody"})
            cluster.reload()
            wait_for(lambda: value(mine, "SHOW synchronous_standby_names") == "nobody", 20)
            pid = value(mine, "SELECT pg_backend_pid()")
            try:
                mine.execute("BEGIN")
                mine.execute("INSERT INTO answered VALUES (1)")
                mine.execute("SELECT dgen.reply(dgen.state('later/1') #>> '{}', '1')")
                in_threads([lambda: mine.execute("COMMIT"), lambda: operator(pid)])
            except psycopg.OperationalError:
                assert how == "pg_terminate_backend"

    def operator(pid):
        with cluster.connect() as conn:
            wait_for(lambda: value(conn, "SELECT wait_event FROM pg_stat_activity WHERE pid = %s",
                                   pid) == "SyncRep", 20)
            assert results == []
            assert value(conn, "SELECT %s(%s)" % (how, pid))
    in_threads([caller, replier])
    assert results == ["OT002"]
    cluster.configure({"synchronous_standby_names": ""})
    cluster.reload()


def test_fast_stop_does_not_wait_for_the_standby(cluster):
    """A worker that waits for a standby that is not there does not hold up a
    fast stop."""
    cluster.psql(SETUP)
    cluster.configure({"synchronous_standby_names": "nobody"})
    cluster.reload()
    with cluster.connect() as conn:
        wait_for(lambda: value(conn, "SHOW synchronous_standby_names") == "nobody", 20)
        conn.execute("SET synchronous_commit = local")
        conn.execute("SELECT dgen.send_request('counter/a', '1')")
        wait_for(lambda: value(conn, WAITING), 20)
    cluster.stop("fast")
    cluster.configure({"synchronous_standby_names": ""})
    cluster.start()
