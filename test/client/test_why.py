"""dgen.why() and dgen.pools: what keeps a server from going on, where that takes several
sessions, and that what it says mends it."""

import threading

import psycopg
import pytest

from cluster import wait_for
from common import value, wait_idle

MODULE = """
CREATE ROLE owner LOGIN;
GRANT pg_read_all_stats TO owner;
CREATE SCHEMA why AUTHORIZATION owner;
SET ROLE owner;
CREATE FUNCTION why.handle_call(request jsonb, INOUT state jsonb, OUT reply jsonb) LANGUAGE plpgsql AS $$
BEGIN
    IF request ? 'later' THEN
        PERFORM dgen.noreply();
        RETURN;
    END IF;
    PERFORM pg_sleep(coalesce((request->>'sleep')::float, 0));
    reply := '1';
END $$;
CREATE FUNCTION why.handle_cast(message jsonb, INOUT state jsonb) LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_sleep(coalesce((message->>'sleep')::float, 0));
END $$;
SELECT dgen.create_module('why', invoke_isolation => 'any', handler_timeout => '50 s', max_attempts => 1, breaker => 0);
"""


@pytest.fixture
def db(cluster):
    cluster.psql("CREATE EXTENSION dgen")
    cluster.psql(MODULE)
    return cluster


def why(conn, server=None, pid=None):
    return [s for s, in conn.execute("SELECT * FROM dgen.why(%s, %s::int)", (server, pid))]


def says(conn, *parts, **subject):
    """Waits for a sentence that has all the parts."""
    wait_for(lambda: any(all(p in s for p in parts) for s in why(conn, **subject)), 10,
             message=lambda: "%s not in %s" % (parts, why(conn, **subject)))


def mend(conn, part, **subject):
    """Runs what a sentence that has this part ends with, to the letter."""
    sentence = next(s for s in why(conn, **subject) if part in s)
    assert sentence.endswith(".")
    for statement in sentence[:-1].rsplit(": ", 1)[1].split(", and "):
        conn.execute(statement)


class Caller:
    """A session that waits in a statement of its own."""

    def __init__(self, db, statement):
        self.conn = db.connect(user="owner")
        self.pid = self.conn.info.backend_pid
        self.error = None
        self.thread = threading.Thread(target=self.run, args=(statement,))
        self.thread.start()

    def run(self, statement):
        try:
            self.conn.execute(statement)
        except psycopg.Error as e:
            self.error = e.sqlstate

    def end(self):
        self.thread.join(30)
        assert not self.thread.is_alive()
        self.conn.close()
        return self.error


def test_row_held_by_an_invoke(db):
    other = db.connect(user="owner", autocommit=False)
    with db.connect() as conn:
        other.execute("SELECT dgen.invoke('why/a', '{}')")
        pid = other.info.backend_pid
        conn.execute("SELECT dgen.cast('why/a', '{}')")
        says(conn, "Its row is held", "process %d" % pid, "idle in transaction since",
             "pg_terminate_backend(%d)" % pid, server="why/a")
        says(conn, "Messages and calls that wait for it: 1", server="why/a")
        # another one that waits for the row
        waiter = Caller(db, "SELECT dgen.invoke('why/a', '{}')")
        says(conn, "Process %d waits for the row" % waiter.pid, "process %d holds" % pid,
             pid=waiter.pid)
        # who may not see sessions does not
        conn.execute("CREATE ROLE peer; SELECT dgen.alter_module('why', readers => 'peer')")
        conn.execute("SET ROLE peer")
        held = [s for s in why(conn, "why/a") if "Its row is held" in s]
        assert len(held) == 1 and "idle" not in held[0]
        conn.execute("RESET ROLE")
        mend(conn, "Its row is held", server="why/a")
        assert waiter.end() is None
        wait_idle(conn)
        says(conn, "It is idle", server="why/a")
    other.close()


def test_running_and_behind_it(db):
    """The worker that runs it, the caller that waits, and who waits behind it."""
    with db.connect() as conn:
        caller = Caller(db, """SELECT dgen.call('why/a', '{"sleep": 40}', timeout => '1 min')""")
        says(conn, "It runs, in worker", "50000 ms", server="why/a")
        says(conn, "waits for a reply of server \"why/a\"", pid=caller.pid)
        says(conn, "It runs, in worker", pid=caller.pid)
        worker = value(conn, "SELECT pid FROM dgen.workers WHERE server = 'why/a'")
        says(conn, "Process %d is a worker of role \"owner\", and busy" % worker, pid=worker)
        says(conn, "It has server \"why/a\" in hand", pid=worker)
        second = Caller(db, "SELECT dgen.call('why/a', '{}', timeout => '1 min')")
        says(conn, "waits for a reply of server \"why/a\"", pid=second.pid)
        # a stranger is told of none of it
        conn.execute("CREATE ROLE stranger; SET ROLE stranger")
        assert len(why(conn, pid=caller.pid)) == 1 and "why/a" not in why(conn, pid=caller.pid)[0]
        assert len(why(conn, pid=worker)) == 1 and "why/a" not in why(conn, pid=worker)[0]
        conn.execute("RESET ROLE")
        # as it says
        mend(conn, "It runs, in worker", server="why/a")
        assert caller.end() == "OT020"
        assert second.end() is None


def test_deferred_reply(db):
    with db.connect() as conn:
        caller = Caller(db, """SELECT dgen.call('why/a', '{"later": true}', timeout => '2 s')""")
        says(conn, "waits for a reply of server \"why/a\"", pid=caller.pid)
        assert caller.end() is not None


def test_no_worker_free(db):
    db.configure({"dgen.max_workers": 1})
    db.reload()
    with db.connect() as conn:
        wait_for(lambda: value(conn, "SHOW dgen.max_workers") == "1", 5)
        first = Caller(db, """SELECT dgen.call('why/a', '{"sleep": 40}', timeout => '1 min')""")
        says(conn, "It runs, in worker", server="why/a")
        second = Caller(db, "SELECT dgen.call('why/b', '{}', timeout => '1 min')")
        says(conn, "for a worker of role \"owner\": 1 of 1 are busy", "dgen.max_workers (1)", server="why/b")
        says(conn, "Worker", "has server \"why/a\" in hand since", "dgen.abort('why/a')", server="why/b")
        says(conn, "Calls that wait for it: 1", server="why/b")
        assert conn.execute("""SELECT owner, kind, module, ready, waiting_since < clock_timestamp(), workers, refused_since,
            start_failures, next_start_at FROM dgen.pools WHERE owner = 'owner' AND kind = 'handlers'""").fetchall() == \
            [("owner", "handlers", None, 1, True, 1, None, 0, None)]
        conn.execute("CREATE ROLE stranger; SET ROLE stranger")
        assert value(conn, "SELECT count(*) FROM dgen.pools") == 0
        conn.execute("SET ROLE owner")
        assert value(conn, "SELECT count(*) FROM dgen.pools WHERE kind = 'handlers'") == 1
        conn.execute("RESET ROLE")
        # more workers, as it says: the second call goes on at once
        mend(conn, "for a worker of role", server="why/b")
        assert second.end() is None
        mend(conn, "It runs, in worker", server="why/a")
        assert first.end() == "OT020"


def test_no_worker_can_start(db):
    with db.connect() as conn:
        # no worker is left from the start of the module
        conn.execute("REVOKE CONNECT ON DATABASE postgres FROM PUBLIC")
        conn.execute("SELECT dgen.cast('why/a', '{}')")
        says(conn, "may not connect", "GRANT CONNECT ON DATABASE postgres TO owner", server="why/a")
        wait_for(lambda: value(conn, """SELECT start_failures > 0 AND next_start_at IS NOT NULL AND ready = 1
            AND waiting_since IS NOT NULL FROM dgen.pools WHERE owner = 'owner' AND kind = 'handlers'"""), 10)
        mend(conn, "may not connect", server="why/a")
        wait_idle(conn)
        assert value(conn, "SELECT start_failures FROM dgen.pools WHERE owner = 'owner' AND kind = 'handlers'") == 0


def test_pool_of_an_external_module(db):
    with db.connect(user="owner") as conn:
        db.psql("CREATE SCHEMA work AUTHORIZATION owner")
        conn.execute("SELECT dgen.create_module('work', external => true)")
        conn.execute("SELECT dgen.cast('work/a', '{}'), dgen.cast('work/b', '{}')")
        assert conn.execute("""SELECT owner, kind, ready, waiting_since IS NOT NULL, workers FROM dgen.pools
            WHERE module = 'work'""").fetchall() == [("owner", "external", 2, True, 0)]


def test_switched_off(db):
    with db.connect() as conn:
        db.configure({"dgen.enabled": False})
        db.reload()
        says(conn, "\"dgen.enabled\" is off", "pg_reload_conf()", server="why/a")
        db.configure({"dgen.enabled": True})
        db.reload()
        wait_for(lambda: value(conn, "SHOW dgen.enabled") == "on", 5)
        conn.execute("DELETE FROM dgen.adoption")
        says(conn, "This database is a copy", "dgen.adopt()", server="why/a")
        mend(conn, "This database is a copy", server="why/a")
        says(conn, "It was never started", server="why/a")


def test_each_sentence_mends(db):
    """Suspended, broken off, failing, held, locked, with a failing effect: run what the sentence ends with."""
    db.psql("""
        SET ROLE owner;
        CREATE FUNCTION why.effect(args jsonb) RETURNS void LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'of an effect'; END $$;
        CREATE OR REPLACE FUNCTION why.handle_cast(message jsonb, INOUT state jsonb) LANGUAGE plpgsql AS $$
        BEGIN
            IF message ? 'error' THEN
                RAISE EXCEPTION USING MESSAGE = 'of a cast', ERRCODE = message->>'error';
            ELSIF message ? 'lock' THEN
                PERFORM dgen.lock();
            ELSIF message ? 'effect' THEN
                PERFORM dgen.after_commit('why.effect', '{}');
            END IF;
        END $$;
        CREATE PROCEDURE why.handle_locked(kind text, message jsonb, INOUT state jsonb, INOUT reply jsonb) LANGUAGE plpgsql AS $$
        BEGIN
            PERFORM pg_sleep(100);
        END $$;
        SELECT dgen.alter_module('why', max_attempts => 9, backoff_initial => '1 h', backoff_max => '1 h');
        """)
    cases = [
        ("SELECT dgen.suspend('why/a', reason => 'of a test')", "It is suspended since"),
        ("SELECT dgen.suspend(module => 'why', reason => 'of a test')", "Module \"why\" is suspended since"),
        ("""SELECT dgen.cast('why/a', '{"error": "P0001"}')""", "when attempt 2 begins; the last one ended with P0001: of a cast"),
        ("""SELECT dgen.cast('why/a', '{"error": "53100"}')""", "by a fault of its environment"),
        ("""SELECT dgen.cast('why/a', '{"lock": 1}')""", "It is locked for the work for message"),
        ("""SELECT dgen.cast('why/a', '{"effect": 1}')""", "Effect"),
    ]
    with db.connect() as conn:
        for make, part in cases:
            conn.execute(make)
            says(conn, part, server="why/a")
            mend(conn, part, server="why/a")

            def is_gone(by_hand):
                # the message whose lock was broken locks again, and may have by now
                if by_hand:
                    conn.execute("SELECT dgen.abort('why/a')")
                    conn.execute("SELECT dgen.discard(id) FROM dgen.messages WHERE server = 'why/a' AND id IS NOT NULL")
                return not any(part in s for s in why(conn, "why/a"))
            wait_for(lambda: is_gone("lock" in make), 20, message="%s stays" % part)
            assert is_gone(True)
            wait_for(lambda: value(conn, "SELECT dgen.call('why/a', '{}')") == 1, 20)
        # the breaker
        conn.execute("SELECT dgen.alter_module('why', max_attempts => 1, breaker => 2)")
        conn.execute("""SELECT dgen.cast('why/x', '{"error": "P0001"}'), dgen.cast('why/y', '{"error": "P0001"}')""")
        says(conn, "is suspended since", "breaker: dead letters from 2 servers in a row", server="why/a")
        mend(conn, "breaker", server="why/a")
        assert value(conn, "SELECT dgen.call('why/a', '{}')") == 1
