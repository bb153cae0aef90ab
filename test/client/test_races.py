"""Pairs of operations on one server or module that meet.

Each pair (A, B): A is held, in its open transaction, in its handler, or at a
waitpoint of the process that does it; B is begun; A is let go, or rolled back.
Then: both have ended, with success or an error that the documentation names;
each message that was sent was handled once, unless an operation that takes it
away has succeeded; the server works; no lease, message or lock is left."""

import itertools
import random
import threading
import time

import psycopg
import pytest

from cluster import Cluster, wait_for
from common import LEASES, rounds_of, seed_of, value

FUNCTIONS = """
CREATE SCHEMA {m} AUTHORIZATION app; SET ROLE app;
CREATE FUNCTION {m}.act(message jsonb, state jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
    IF message ? 'n' THEN INSERT INTO public.done VALUES ('{m}', (message->>'n')::int); END IF;
    IF message->>'do' = 'gate' THEN PERFORM pg_advisory_xact_lock_shared(4711, 1); END IF;
    IF message->>'do' = 'raise' THEN RAISE 'as was asked for'; END IF;
    RETURN to_jsonb((state #>> '{{}}')::int + 1);
END $$;
CREATE FUNCTION {m}.init(args jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT '0'::jsonb $$;
CREATE FUNCTION {m}.handle_call(request jsonb, INOUT state jsonb, OUT reply jsonb) LANGUAGE plpgsql AS
$$ BEGIN state := {m}.act(request, state); reply := state; END $$;
CREATE FUNCTION {m}.handle_info(message jsonb, state jsonb) RETURNS jsonb LANGUAGE plpgsql AS
$$ BEGIN RETURN {m}.act(coalesce(message->'message', message), state); END $$;
"""
CAST = """CREATE OR REPLACE FUNCTION {m}.handle_cast(message jsonb, state jsonb) RETURNS jsonb LANGUAGE plpgsql AS
$$ BEGIN RETURN {m}.act(message, state); END $$;"""
MODULE = """SELECT dgen.create_module('{m}', isolation => 'read committed', history => '50', max_attempts => 1,
backoff_initial => '10 ms', backoff_max => '50 ms', breaker => 0, if_exists => 'alter');"""

# What a client does.  {s}: the server; {n}: a number that is noted when the
# message is handled; {letter}, {later}: a dead letter, and a cast for later.
OPERATIONS = {
    "cast": "SELECT dgen.cast('{s}', '{{\"n\": {n}}}')",
    "failing": "SELECT dgen.cast('{s}', '{{\"do\": \"raise\"}}')",
    "request": "SELECT dgen.send_request('{s}', '{{\"n\": {n}}}')",
    "call": "SELECT dgen.call('{s}', '{{\"n\": {n}}}', timeout => '15 s')",
    "give up": "SELECT dgen.call('{s}', '{{\"n\": {n}}}', timeout => '60 ms')",
    "invoke": "SELECT dgen.invoke('{s}', '{{\"n\": {n}}}', timeout => '15 s')",
    "timer": "SELECT dgen.send_after('{s}', '{{\"n\": {n}}}', '5 ms', 'soon')",
    "replace timer": "SELECT dgen.send_after('{s}', '{{\"n\": {n}}}', '1 h', 'hourly')",
    "cancel timer": "SELECT dgen.cancel_timer(server => '{s}', name => 'hourly')",
    "cancel": "SELECT dgen.cancel({later})",
    "start": "SELECT dgen.start('{s}', if_exists => 'return')",
    "stop": "SELECT dgen.stop('{s}')",
    "kill": "SELECT dgen.kill('{s}')",
    "delete": "SELECT dgen.delete('{s}')",
    "suspend": "SELECT dgen.suspend('{s}')",
    "resume": "SELECT dgen.resume('{s}')",
    "replace state": "SELECT dgen.replace_state('{s}', '1000')",
    "rollback": "SELECT dgen.rollback('{s}', 2)",
    "requeue": "SELECT dgen.requeue({letter})",
    "discard": "SELECT dgen.discard({letter})",
    "register": "SELECT dgen.register('{m}-name', '{s}', permanent => true)",
    "alter module": "SELECT dgen.alter_module('{m}', max_attempts => 1)",
    "suspend module": "SELECT dgen.suspend(module => '{m}')",
    "resume module": "SELECT dgen.resume(module => '{m}')",
    "drop module": "SELECT dgen.drop_module('{m}', true)",
    "drop function": "DROP FUNCTION {m}.handle_cast(jsonb, jsonb)",
    "replace function": CAST,
    "adopt": "SELECT dgen.adopt()",
}
SENDS = {"cast", "request", "timer", "call", "give up", "invoke"}
# these take messages away, those end the incarnation that a timer may belong to
TAKE_AWAY = {"delete", "drop module"}
# a call begins, runs and ends whatever its caller's transaction does
AUTONOMOUS = {"call", "give up"}

# what may come of it, beside success: each is in the reference
ERRORS = {"OT001", "OT002", "OT003", "OT004", "OT005", "OT008", "OT010", "OT014", "40001", "55000", "42883", "22023"}
# a worker that is held: in its handler, or at a waitpoint
HELD = ("handler", "dgen-before-leases", "dgen-before-handlers", "dgen-before-commit", "dgen-failure", "dgen-due")

@pytest.fixture(scope="module")
def database():
    with Cluster(conf={"dgen.max_workers": 3}) as c:
        c.psql("CREATE EXTENSION dgen; CREATE ROLE app LOGIN SUPERUSER; CREATE TABLE done (m text, n int);"
               "CREATE SCHEMA first; SELECT dgen.create_module('first', external => true);")
        c.psql("GRANT ALL ON DATABASE postgres TO app; ALTER DATABASE postgres OWNER TO app;"
               "GRANT ALL ON done TO app; ALTER ROLE app NOSUPERUSER;")
        yield c


class Session:
    """Runs one statement at a time, in a thread of its own."""

    def __init__(self, cluster):
        self.conn = cluster.connect(user="app")
        self.conn.execute("SET client_min_messages = error")
        self.pid = self.conn.info.backend_pid
        self.thread = None
        self.outcome = None

    def begin(self, statement):
        def run():
            try:
                cursor = self.conn.execute(statement)
                self.outcome = ("ok", cursor.fetchone()[0] if cursor.description else None)
            except psycopg.Error as e:
                self.outcome = (e.sqlstate, str(e))
        self.outcome = None
        self.thread = threading.Thread(target=run, daemon=True)
        self.thread.start()

    def end(self, what):
        self.thread.join(30)
        assert not self.thread.is_alive(), "%s does not end" % what
        return self.outcome

    def run(self, statement):
        self.begin(statement)
        return self.end(statement)


numbers = itertools.count(1)


class Races:
    def __init__(self, cluster):
        self.cluster = cluster
        self.a, self.b = Session(cluster), Session(cluster)
        self.admin = cluster.connect()
        self.gate = cluster.connect()
        self.point = ""

    def close(self):
        self.hold_at("")
        for conn in self.a.conn, self.b.conn, self.admin, self.gate:
            conn.close()

    def hold_at(self, point):
        """Processes of dgen stop there, while the gate is shut."""
        if point == self.point:
            return
        self.admin.execute("ALTER SYSTEM SET dgen.debug_waitpoint = '%s'" % point)
        self.admin.execute("SELECT pg_reload_conf()")
        wait_for(lambda: value(self.admin, "SHOW dgen.debug_waitpoint") == point)
        self.point = point
        time.sleep(0.1)         # for the others to have read it; who has not is not held

    def prepare(self, pair):
        """A module with a server that has a history, a dead letter, a timer
        for later and a message for later."""
        self.m = "r%d" % next(numbers)
        self.s = self.m + "/1"
        self.pair = pair
        self.cluster.psql(FUNCTIONS.format(m=self.m) + CAST.format(m=self.m) + MODULE.format(m=self.m), user="app")
        conn = self.a.conn
        for n in range(2):
            conn.execute("SELECT dgen.call('%s', '{}', timeout => '30 s')" % self.s)
        letter = value(conn, "SELECT dgen.cast('%s', '{\"do\": \"raise\", \"n\": 90}')" % self.s)
        conn.execute("SELECT dgen.send_after('%s', '{\"n\": 91}', '1 h', 'hourly')" % self.s)
        later = value(conn, "SELECT dgen.cast('%s', '{\"n\": 92}', delay => '1 h')" % self.s)
        wait_for(lambda: value(self.admin, "SELECT count(*) FROM dgen.letter WHERE id = %s", letter) == 1)
        self.values = {"m": self.m, "s": self.s, "letter": letter, "later": later}

    def statement(self, operation, n):
        return OPERATIONS[operation].format(n=n, **self.values)

    def settled(self):
        """B is done, or waits for somebody."""
        return not self.b.thread.is_alive() or value(
            self.admin, "SELECT wait_event_type IN ('Lock', 'Extension', 'IPC') FROM pg_stat_activity WHERE pid = %s", self.b.pid)

    def wait_settled(self):
        end = time.monotonic() + 1
        while not self.settled() and time.monotonic() < end:
            time.sleep(0.005)
        # a call that waits may be on its way to an end of its own
        self.b.thread.join(0.02)

    # --- the three ways to hold A

    def in_transaction(self, a, b, end):
        self.a.conn.execute("BEGIN")
        first = self.a.run(self.statement(a, 1))
        self.b.begin(self.statement(b, 2))
        self.wait_settled()
        if first[0] == "ok":
            self.a.conn.execute(end)
        else:
            self.a.conn.execute("ROLLBACK")
        self.check(a, first if first[0] != "ok" or end == "COMMIT" else ("rolled back", None), b, self.b.end(b))

    def in_worker(self, a, b, point):
        handler = point == "handler"
        if not handler:
            self.hold_at(point)
        self.gate.execute("SELECT pg_advisory_lock(4711, 1)" if handler else
                          "SELECT pg_advisory_lock(hashtext('%s'))" % point)
        if point == "dgen-failure":
            a = "failing"
        elif point == "dgen-due":
            a = "timer"
        statement = self.statement(a, 1)
        if handler:
            statement = statement.replace("{", '{"do": "gate", ', 1)
        self.a.begin(statement)
        end = time.monotonic() + 2
        while time.monotonic() < end and not value(
                self.admin, "SELECT count(*) FROM pg_locks l JOIN pg_stat_activity USING (pid) WHERE NOT granted AND "
                            "locktype = 'advisory' AND objsubid IN (1, 2) AND backend_type LIKE 'dgen%%'"):
            time.sleep(0.005)
        self.b.begin(self.statement(b, 2))
        self.wait_settled()
        self.gate.execute("SELECT pg_advisory_unlock_all()")
        self.check(a, self.a.end(a), b, self.b.end(b))

    # --- what must hold

    def check(self, a, first, b, second):
        told = "%s: %s %s, %s %s" % (self.pair, a, first, b, second)
        for name, outcome in (a, first), (b, second):
            assert outcome[0] in ERRORS | {"ok", "rolled back"}, told
        ended = {a: first[0], b: second[0]}
        dropped = any(ended.get(x) == "ok" for x in ("drop module",))
        if dropped and not value(self.admin, "SELECT count(*) FROM dgen.module WHERE name = %s", self.m):
            self.check_dropped(told)
        else:
            dropped = False
        self.mend(told)
        got = value(self.a.conn, "SELECT dgen.call('%s', '{}', timeout => '20 s')" % self.s)
        assert got == 1 if dropped else got is not None, "%s: the state is %s" % (told, got)
        wait_for(lambda: value(self.admin, "SELECT count(*) FROM dgen.message WHERE server LIKE %s", self.m + "/%") == 0,
                 20, message=told + ": a message is left")
        wait_for(lambda: value(self.admin, "SELECT count(*) FROM dgen.attempt WHERE server LIKE %s", self.m + "/%") == 0,
                 20, message=told + ": an attempt is left")
        self.check_handled(a, first, 1, ended, told)
        self.check_handled(b, second, 2, ended, told)
        assert value(self.admin, "SELECT NOT failing AND lock_id IS NULL AND suspended_at IS NULL FROM dgen.server "
                                 "WHERE server = %s", self.s), told
        wait_for(lambda: value(self.admin, LEASES) == 0, 10, message=told + ": a lease is left")

    def check_dropped(self, told):
        """What its senders had open when the module went is dropped as soon as
        the keeper meets it; what others had, by the next module of that name."""
        wait_for(lambda: value(self.admin, "SELECT count(*) FROM dgen.message WHERE server LIKE %s", self.m + "/%") == 0,
                 20, message=told + ": a message without a module is left")

    def mend(self, told):
        """All that was suspended or dropped is as before."""
        self.cluster.psql("SET ROLE app; SET client_min_messages = error;" + CAST.format(m=self.m) + MODULE.format(m=self.m) +
                          "SELECT dgen.resume(module => '%s'); SELECT dgen.resume('%s');" % (self.m, self.s), user="app")

    def check_handled(self, operation, outcome, n, ended, told):
        if operation not in SENDS:
            return
        handled = value(self.admin, "SELECT count(*) FROM done WHERE m = %s AND n = %s", self.m, n)
        told = "%s: message %d was handled %d times" % (told, n, handled)
        assert handled <= 1, told
        if operation == "timer" and list(ended) == ["timer"]:
            return                  # the second replaces the first
        other = next((x for x in ended if x != operation), operation)
        if operation in AUTONOMOUS:
            if outcome[0] in ("ok", "rolled back"):
                assert handled == 1, told
            elif outcome[0] != "OT002":
                assert handled == 0, told
        elif outcome[0] != "ok":
            assert handled == 0, told
        elif operation == "invoke":
            assert handled == 1, told
        elif handled == 0:
            taken = ended.get(other) == "ok" and (other in TAKE_AWAY or other == operation == "timer")
            # a timer and what it sends belong to the incarnation
            ended_it = operation == "timer" and ended.get(other) == "ok" and other in ("stop", "kill")
            if operation == "timer" and not (taken or ended_it):
                wait_for(lambda: value(self.admin, "SELECT count(*) FROM done WHERE m = %s AND n = %s", self.m, n) == 1,
                         20, message=told)
                return
            assert taken or ended_it, told

    def one(self, a, b, how):
        self.prepare("%s held in %s, then %s" % (a, how, b))
        if how in ("COMMIT", "ROLLBACK"):
            self.in_transaction(a, b, how)
        else:
            self.in_worker(a, b, how)


def all_pairs():
    pairs = [(a, b, how) for a, b in itertools.product(OPERATIONS, OPERATIONS) for how in ("COMMIT", "ROLLBACK")
             # whoever replaces one function at a time with another is told by PostgreSQL
             if not (a.endswith(" function") and b.endswith(" function"))]
    pairs += [("cast", b, how) for b in OPERATIONS for how in HELD]
    pairs += [("call", b, how) for b in OPERATIONS for how in HELD if how not in ("dgen-failure", "dgen-due")]
    return pairs


def run(database, pairs):
    """Each pair; those that go wrong are told together."""
    races = Races(database)
    wrong = []
    # by the point, since each change of it takes its time
    for a, b, how in sorted(pairs, key=lambda p: p[2]):
        races.hold_at(how if how.startswith("dgen-") else "")
        try:
            races.one(a, b, how)
        except AssertionError as e:
            wrong.append(str(e))
            races.gate.execute("SELECT pg_advisory_unlock_all()")
            races.hold_at("")
            races.close()
            races = Races(database)
            if len(wrong) >= 40:
                break
    races.close()
    assert not wrong, "%d pairs\n%s" % (len(wrong), "\n".join(wrong))


def test_some_pairs(database, request):
    """A sample by chance."""
    run(database, random.Random(seed_of(request)).sample(all_pairs(), rounds_of(40)))


DROPPED = ("timer", "replace timer", "start", "suspend", "cast", "call", "delete", "register", "invoke")


def test_pairs_with_drop_module(database):
    """What is open while a module is dropped is not the next one's."""
    run(database, [(a, "drop module", "COMMIT") for a in ("timer", "cast")]
        + [("drop module", b, "COMMIT") for b in DROPPED]
        + [("call", "drop module", "dgen-before-leases"), ("cast", "drop module", "handler")])


@pytest.mark.long
def test_all_pairs(database):
    run(database, all_pairs())
