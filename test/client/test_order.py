"""The order of messages, and that none is forgotten, where commits come in
another order than ids: senders that stay open, prepared transactions, lost
doorbells, messages that come back under an old id."""

import random
import threading
import time

import pytest

from cluster import wait_for
from common import assert_nothing_left, in_threads, rounds_of, seed_of, value, wait_idle

# lane's state is the list of all that it handled; last's, the newest of each
# sender; fussy takes no message whose number is in table bad
MODULES = """
CREATE SCHEMA lane;
CREATE FUNCTION lane.init(args jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT '[]'::jsonb $$;
CREATE FUNCTION lane.handle_cast(message jsonb, state jsonb) RETURNS jsonb
LANGUAGE plpgsql AS $$ BEGIN RETURN state || jsonb_build_array(message); END $$;
CREATE FUNCTION lane.handle_call(request jsonb, INOUT state jsonb, OUT reply jsonb)
LANGUAGE plpgsql AS $$
BEGIN
    reply := state;
    IF request <> 'null' THEN
        state := state || jsonb_build_array(request);
    END IF;
END $$;

CREATE SCHEMA last;
CREATE FUNCTION last.handle_cast(message jsonb, state jsonb) RETURNS jsonb
LANGUAGE plpgsql AS $$ BEGIN RETURN state || message; END $$;
CREATE FUNCTION last.handle_call(request jsonb, INOUT state jsonb, OUT reply jsonb)
LANGUAGE plpgsql AS $$ BEGIN reply := state; END $$;

CREATE TABLE bad (n int);
CREATE SCHEMA fussy;
CREATE FUNCTION fussy.init(args jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT '[]'::jsonb $$;
CREATE FUNCTION fussy.handle_cast(message jsonb, state jsonb) RETURNS jsonb
LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT 1 FROM public.bad b WHERE b.n = message::int) THEN
        RAISE 'not %', message;
    END IF;
    RETURN state || jsonb_build_array(message);
END $$;

SELECT dgen.create_module('lane');
SELECT dgen.create_module('last');
SELECT dgen.create_module('fussy', max_attempts => 1, breaker => 0);
"""

CAST = "SELECT dgen.cast(%s, %s::jsonb)"
CALL = "SELECT dgen.call(%s, %s::jsonb, '30 s')"
STATE = "SELECT coalesce((SELECT state FROM dgen.servers WHERE server = %s), '[]')"


@pytest.fixture(scope="module")
def db(shared_cluster):
    shared_cluster.psql(MODULES)
    return shared_cluster


@pytest.fixture
def conn(db):
    with db.connect() as conn:
        # what a test that failed left
        for row in conn.execute("SELECT gid FROM pg_prepared_xacts").fetchall():
            conn.execute("ROLLBACK PREPARED '%s'" % row)
        conn.execute("TRUNCATE bad")
        conn.execute("SELECT dgen.purge('fussy')")
        yield conn
    with db.connect() as conn:
        wait_idle(conn)
        assert_nothing_left(conn)


def cast(conn, server, message, extra=""):
    return value(conn, "SELECT dgen.cast(%%s, %%s::jsonb%s)" % extra, server, message)


def wait_state(conn, server, condition, timeout=20):
    """What reads a state rings nobody."""
    return wait_for(lambda: condition(value(conn, STATE, server)), timeout,
                    message="%s is %s" % (server, value(conn, STATE, server)))


# --- lost doorbells

@pytest.mark.parametrize("together", (1, 7))
def test_dropped_doorbells(db, conn, together):
    """Nobody hears of any message, and yet all are handled, in order."""
    n = 140
    servers = ["lane/bell%d-%d" % (together, i) for i in range(5)]

    def sender(number):
        with db.connect() as mine:
            mine.execute("SET dgen.drop_doorbells = on")
            for i in range(0, n, together):
                with mine.transaction():
                    for j in range(i, i + together):
                        cast(mine, servers[(j + number) % 5], "[%d, %d]" % (number, j))
    in_threads([lambda k=k: sender(k) for k in range(3)])
    for server in servers:
        wait_state(conn, server, lambda state: len(state) >= 3 * n / 5, 10)
    for server in servers:
        state = value(conn, STATE, server)
        assert len(state) == 3 * n / 5
        for number in range(3):
            of_it = [j for k, j in state if k == number]
            assert of_it == sorted(of_it)


def test_dropped_doorbell_and_call(conn):
    """A call rings for the messages that it stands behind."""
    conn.execute("SET dgen.drop_doorbells = on")
    for i in range(100):
        cast(conn, "lane/after", str(i))
        if i % 3 == 0:
            assert value(conn, CALL, "lane/after", "null") == list(range(i + 1))


# --- senders that stay open

@pytest.mark.parametrize("targets", (1, 16, 40))
def test_open_sender(db, conn, targets):
    """Others' later messages do not wait for an open sender, and its own,
    which have lower ids, are not passed over when it commits."""
    servers = ["lane/open%d-%d" % (targets, i) for i in range(targets)]
    watched = {servers[0], servers[-1]}
    with db.connect(autocommit=False) as early, db.connect(autocommit=False) as undone:
        for server in servers:
            cast(early, server, '"early"')
            cast(undone, server, '"undone"')
        # what is undone takes back no bound that the rest still needs
        early.execute("SAVEPOINT s")
        for server in servers:
            cast(early, server, '"no"')
        early.execute("ROLLBACK TO s")
        for i in range(20):
            for server in watched:
                cast(conn, server, str(i))
                wait_state(conn, server, lambda state: state[-1:] == [i])
        for server in servers:
            cast(early, server, '"more"')
        undone.rollback()
        for server in watched:
            assert value(conn, CALL, server, "null") == list(range(20))
            cast(conn, server, "20")
            wait_state(conn, server, lambda state: state[-1:] == [20])
        early.commit()
        for server in servers:
            assert value(early, CALL, server, "null")[-2:] == ["early", "more"], server
        early.commit()
    for server in servers:
        state = value(conn, STATE, server)
        assert (state.count("early"), state.count("more"), state.count("no"), state.count("undone")) \
            == (1, 1, 0, 0)


# --- prepared transactions

def prepare(db, name, servers, messages):
    with db.connect(autocommit=False) as mine:
        for message in messages:
            for server in servers:
                cast(mine, server, message)
        mine.execute("PREPARE TRANSACTION '%s'" % name)


@pytest.mark.parametrize("between", ("", "restart", "kill9"))
@pytest.mark.parametrize("targets", (2, 20))
def test_prepared(db, conn, between, targets):
    """The same with prepared transactions, also over a restart."""
    servers = ["lane/prepared%s%d-%d" % (between, targets, i) for i in range(targets)]
    prepare(db, "kept", servers, ['"first"', '"second"'])
    prepare(db, "undone", servers, ['"undone"'])
    if between == "restart":
        db.restart()
    elif between == "kill9":
        db.kill9()
        db.start()
    with db.connect() as conn:
        # so many that marks have moved
        for i in range(20):
            for server in (servers[0], servers[-1]):
                cast(conn, server, str(i))
                if i % 5 == 0:
                    wait_state(conn, server, lambda state: state[-1:] == [i])
        for server in (servers[0], servers[-1]):
            assert value(conn, CALL, server, "null") == list(range(20))
        conn.execute("ROLLBACK PREPARED 'undone'")
        for server in (servers[0], servers[-1]):
            cast(conn, server, "20")
            assert value(conn, CALL, server, "null") == list(range(21))
        conn.execute("COMMIT PREPARED 'kept'")
        # one whose only news is the committed message, and one that is called
        wait_state(conn, servers[0], lambda state: state[-2:] == ["first", "second"])
        for server in servers[1:]:
            assert value(conn, CALL, server, "null")[-2:] == ["first", "second"], server
        for server in servers:
            state = value(conn, STATE, server)
            assert "undone" not in state
            assert (state.count("first"), state.count("second")) == (1, 1)


def test_backlog_after_restart(db, conn):
    """More messages than a batch takes were there before the server's start,
    and nothing is sent since."""
    n = 600
    conn.execute("SELECT dgen.call('lane/backlog', 'null')")
    conn.execute("SELECT dgen.suspend('lane/backlog')")
    conn.execute("SELECT count(dgen.cast('lane/backlog', to_jsonb(i))) FROM generate_series(1, %s) i", (n,))
    db.restart()
    with db.connect() as again:
        again.execute("SELECT dgen.resume('lane/backlog')")
        wait_state(again, "lane/backlog", lambda state: len(state) == n)
        assert value(again, STATE, "lane/backlog") == list(range(1, n + 1))


def test_short_mailboxes(db, conn):
    """Batches that have room for most of the servers that they take, not all."""
    conn.execute("SELECT dgen.suspend(module => 'last')")
    conn.execute("""SELECT count(dgen.cast('last/short' || i, jsonb_build_object(k::text, i)))
                    FROM generate_series(1, 1000) i, LATERAL generate_series(1, 1 + i % 2) k""")
    conn.execute("SELECT dgen.resume(module => 'last')")
    wait_idle(conn)
    assert value(conn, """SELECT count(*) FROM dgen.servers s, jsonb_object_keys(state)
                          WHERE server LIKE 'last/short%'""") == 1500


def test_prepared_delayed(db, conn):
    """A delayed message that was due before its sender committed."""
    with db.connect(autocommit=False) as mine:
        cast(mine, "lane/prepared-delayed", '"late"', ", delay => '10 ms'")
        mine.execute("PREPARE TRANSACTION 'delayed'")
    db.restart()
    with db.connect() as conn:
        cast(conn, "lane/prepared-delayed", "1")
        wait_state(conn, "lane/prepared-delayed", lambda state: state == [1])
        # nobody is told of it; the keeper sees that it has ended
        conn.execute("COMMIT PREPARED 'delayed'")
        wait_state(conn, "lane/prepared-delayed", lambda state: state == [1, "late"])


# --- all of this by chance

class Clients:
    """Some sessions of one thread, each of which does one step when it is its
    turn, so that transactions of any length overlap.  Notes when a message
    was about to be sent, and when that was acknowledged."""

    SESSIONS = 4
    SERVERS = 6

    def __init__(self, db, number, seed, steps):
        self.db, self.number, self.steps = db, number, steps
        self.chance = random.Random(seed * 100 + number)
        self.messages = {}      # token: [session, sent, acknowledged, server]
        self.count = 0
        self.prepared = {}      # name: tokens

    def new(self, session, server):
        self.count += 1
        token = "%d.%d" % (self.number, self.count)
        self.messages[token] = [session, time.monotonic(), None, server]
        return token

    def acknowledge(self, tokens):
        now = time.monotonic()
        for token in tokens:
            self.messages[token][2] = now

    def run(self):
        self.sessions = [{"conn": self.db.connect(), "open": None, "id": "%d.%d" % (self.number, i)}
                         for i in range(self.SESSIONS)]
        for s in self.sessions:
            s["conn"].execute("SET dgen.drop_doorbells = %s" % self.chance.choice(("on", "off")))
        for _ in range(self.steps):
            self.step(self.chance.choice(self.sessions))
        for s in self.sessions:
            if s["open"] is not None:
                self.commit(s)
            s["conn"].close()
        with self.db.connect() as conn:
            for name in list(self.prepared):
                self.end_prepared(conn, name, True)

    def server(self):
        return "lane/chance%d" % self.chance.randrange(self.SERVERS)

    def cast(self, s):
        """One message, or one to each of many servers of no interest."""
        if self.chance.random() < 0.05:
            s["conn"].execute("SELECT count(dgen.cast('last/' || i, '{}')) FROM generate_series(1, 20) i")
        server = self.server()
        token = self.new(s["id"], server)
        s["conn"].execute(CAST, (server, '"%s"' % token))
        return token

    def commit(self, s):
        s["conn"].execute("COMMIT")
        self.acknowledge(s["open"])
        s["open"] = s["savepoint"] = None

    def end_prepared(self, conn, name, commit):
        conn.execute("%s PREPARED '%s'" % ("COMMIT" if commit else "ROLLBACK", name))
        tokens = self.prepared.pop(name)
        if commit:
            self.acknowledge(tokens)

    def step(self, s):
        conn, dice = s["conn"], self.chance.random()
        if s["open"] is None:
            if dice < 0.3:
                self.acknowledge([self.cast(s)])
            elif dice < 0.4:
                server = self.server()
                token = self.new(s["id"], server)
                conn.execute(CALL, (server, '"%s"' % token))
                self.acknowledge([token])
            elif dice < 0.55 and self.prepared:
                self.end_prepared(conn, self.chance.choice(sorted(self.prepared)), self.chance.random() < 0.7)
            else:
                conn.execute("BEGIN")
                s["open"], s["savepoint"] = [], None
        elif dice < 0.55:
            s["open"].append(self.cast(s))
        elif dice < 0.65:
            if s["savepoint"] is None:
                conn.execute("SAVEPOINT s")
                s["savepoint"] = len(s["open"])
            else:
                conn.execute("ROLLBACK TO s")
                del s["open"][s["savepoint"]:]
        elif dice < 0.72:
            conn.execute("ROLLBACK")
            s["open"] = None
        elif dice < 0.8 and len(self.prepared) < 2 and s["open"]:
            self.count += 1
            name = "chance%d.%d" % (self.number, self.count)
            conn.execute("PREPARE TRANSACTION '%s'" % name)
            # to compare with the session's others it is one of its own
            for token in s["open"]:
                self.messages[token][0] = name
            self.prepared[name], s["open"] = s["open"], None
        elif dice < 0.9:
            self.commit(s)


def check_order(server, handled, messages):
    """Acknowledged before another was sent: handled before it.  Sent before
    another by the same session: too."""
    earliest, by = float("inf"), None
    for token in reversed(handled):
        _, sent, acknowledged, _ = messages[token]
        assert earliest >= sent, "%s was acknowledged before %s was sent, and handled after it by %s" % (
            by, token, server)
        if acknowledged < earliest:
            earliest, by = acknowledged, token
    last = {}
    for token in handled:
        session, sent, _, _ = messages[token]
        assert last.get(session, 0) <= sent, "%s is out of order in %s" % (token, server)
        last[session] = sent


def chance_test(db, request, steps):
    seed = seed_of(request)
    clients = [Clients(db, n, seed, steps) for n in range(3)]
    in_threads([c.run for c in clients], timeout=60 + steps / 50)
    messages = {}
    for c in clients:
        messages.update(c.messages)
    with db.connect() as conn:
        wait_idle(conn)
        states = {server: value(conn, STATE, server) for server in
                  ("lane/chance%d" % i for i in range(Clients.SERVERS))}
        everything = [token for state in states.values() for token in state]
        committed = {token for token, m in messages.items() if m[2] is not None}
        print("%d messages, %d committed" % (len(messages), len(committed)))
        assert len(everything) == len(set(everything)), "handled twice"
        assert not committed - set(everything), "lost: %s" % sorted(committed - set(everything))[:10]
        assert not set(everything) - committed, "from nowhere: %s" % sorted(set(everything) - committed)[:10]
        for server, state in states.items():
            assert all(messages[token][3] == server for token in state)
            check_order(server, state, messages)
        assert_nothing_left(conn)


def test_chance(db, request):
    db.psql("SELECT dgen.delete('lane/chance' || i) FROM generate_series(0, 5) i")
    chance_test(db, request, rounds_of(2500))


@pytest.mark.long
def test_chance_long(db, request):
    for _ in range(rounds_of(20)):
        db.psql("SELECT dgen.delete('lane/chance' || i) FROM generate_series(0, 5) i")
        chance_test(db, request, 3000)


# --- a cast, then a call

@pytest.mark.parametrize("doorbells", ("on", "off"))
def test_call_sees_cast(db, conn, doorbells):
    """What was cast, by oneself or as one knows by another, has happened
    when a call is handled; with others sending to the same servers, some
    in transactions that stay open for a while."""
    stop = threading.Event()

    def load(number):
        with db.connect() as mine:
            i = 0
            while not stop.is_set():
                with mine.transaction():
                    for _ in range(1 + i % 4):
                        i += 1
                        cast(mine, "last/%s%d" % (doorbells, i % 2), '{"load%d": %d}' % (number, i))

    def client():
        try:
            with db.connect() as mine, db.connect() as other:
                mine.execute("SET dgen.drop_doorbells = %s" % ("off" if doorbells == "on" else "on"))
                for i in range(500):
                    server = "last/%s%d" % (doorbells, i % 2)
                    cast(mine, server, '{"client": %d}' % i)
                    reply = value(other if i % 3 == 0 else mine, CALL, server, "null")
                    assert reply["client"] == i
        finally:
            stop.set()
    in_threads([client, lambda: load(0), lambda: load(1)])


# --- messages that come back under an old id

def test_delayed(conn):
    """A delayed message does not come before its time, and in the mailbox has
    the place where it was sent."""
    conn.execute("SET dgen.drop_doorbells = on")
    conn.execute("SELECT dgen.suspend('lane/delayed')")
    cast(conn, "lane/delayed", "1")
    late = [cast(conn, "lane/delayed", str(10 + i), ", delay => '%d ms'" % delay)
            for i, delay in enumerate((300, 100, 200))]
    cast(conn, "lane/delayed", "2")
    never = cast(conn, "lane/delayed", "99", ", delay => '1 hour'")
    assert value(conn, "SELECT dgen.message_status(%s)", late[0]) == "delayed"
    for n in late:
        wait_for(lambda: value(conn, "SELECT dgen.message_status(%s)", n) == "ready")
    conn.execute("RESET dgen.drop_doorbells")
    conn.execute("SELECT dgen.resume('lane/delayed')")
    wait_state(conn, "lane/delayed", lambda state: len(state) == 5)
    assert value(conn, STATE, "lane/delayed") == [1, 10, 11, 12, 2]
    assert value(conn, "SELECT dgen.cancel(%s)", never)


def test_delayed_while_others_are_handled(db, conn, request):
    """Marks have long passed the place of a delayed message when it is due."""
    chance = random.Random(seed_of(request))
    delays = [chance.randrange(1, 1500) for _ in range(60)]
    due = {}
    for i, delay in enumerate(delays):
        due[i] = time.monotonic() + delay / 1000
        cast(conn, "lane/due", "[%d]" % i, ", delay => '%d ms'" % delay)
    seen = {}

    def more():
        cast(conn, "lane/due", "null")
        state = value(conn, CALL, "lane/due", "null")
        for message in state:
            if message:
                seen.setdefault(message[0], time.monotonic())
        return len(seen) == len(delays)
    wait_for(more, 20, 0.01, "delayed messages were lost")
    assert not [i for i in due if seen[i] < due[i]], "before their time"
    state = value(conn, STATE, "lane/due")
    assert sorted(m[0] for m in state if m) == list(range(60))


def test_requeue_all(db, conn):
    """Dead letters go back to their old places: before all that was sent later."""
    conn.execute("INSERT INTO bad VALUES (3), (5), (8), (9)")
    ids = [cast(conn, "fussy/a", str(i)) for i in range(10)]
    wait_state(conn, "fussy/a", lambda state: state == [0, 1, 2, 4, 6, 7])
    wait_for(lambda: value(conn, "SELECT count(*) FROM dgen.dead_letters") == 4)
    assert [r[0] for r in conn.execute("SELECT id FROM dgen.dead_letters ORDER BY id")] == [
        ids[i] for i in (3, 5, 8, 9)]
    # what is rolled back changes nothing
    with conn.transaction(force_rollback=True):
        assert value(conn, "SELECT dgen.requeue_all('fussy/a')") == 4
    assert value(conn, "SELECT count(*) FROM dgen.dead_letters") == 4

    conn.execute("DELETE FROM bad WHERE n <> 8")
    conn.execute("SELECT dgen.suspend('fussy/a')")
    for i in (20, 21):
        cast(conn, "fussy/a", str(i))
    assert value(conn, "SELECT dgen.requeue_all('fussy/a')") == 4
    assert value(conn, "SELECT dgen.requeue_all('fussy/a')") == 0
    cast(conn, "fussy/a", "22")
    conn.execute("SELECT dgen.resume('fussy/a')")
    wait_state(conn, "fussy/a", lambda state: state == [0, 1, 2, 4, 6, 7, 3, 5, 9, 20, 21, 22])
    # the one that failed again has its place still
    conn.execute("DELETE FROM bad")
    wait_for(lambda: value(conn, "SELECT dgen.requeue_all(module => 'fussy')") == 1)
    cast(conn, "fussy/a", "23")
    wait_state(conn, "fussy/a", lambda state: state[-2:] == [8, 23])


def test_requeue_under_traffic(db, conn):
    """Requeued again and again below a mark that others move on."""
    n = rounds_of(150)
    conn.execute("INSERT INTO bad SELECT i FROM generate_series(0, %d, 10) i" % (n - 1))
    done = threading.Event()
    requeued = []

    def sender():
        try:
            with db.connect() as mine:
                for i in range(n):
                    cast(mine, "fussy/b", str(i))
        finally:
            done.set()

    def requeuer():
        with db.connect() as mine:
            while not done.is_set():
                requeued.append(value(mine, "SELECT dgen.requeue_all('fussy/b')"))
    in_threads([sender, requeuer])
    wait_idle(conn)
    assert sum(requeued) > 0
    conn.execute("DELETE FROM bad")
    assert value(conn, "SELECT dgen.requeue_all('fussy/b')") == n / 10
    wait_idle(conn)
    state = value(conn, STATE, "fussy/b")
    assert sorted(state) == list(range(n))
    good = [i for i in state if i % 10]
    assert good == sorted(good)


# --- messages that are passed

SKIPPING = """
CREATE TABLE passed (n bigserial, server text, client int, lane int, i int);
CREATE SCHEMA skipping;
CREATE FUNCTION skipping.handle_cast(message jsonb, INOUT state jsonb)
LANGUAGE plpgsql AS $$
BEGIN
    IF message ? 'fails' THEN
        RAISE 'not this one';
    END IF;
    INSERT INTO public.passed (server, client, lane, i)
    VALUES (dgen.self(), (message->>'client')::int, (message->>'lane')::int, (message->>'i')::int);
END $$;
SELECT dgen.create_module('skipping', retry => 'skip', backoff_initial => '1 hour',
                          backoff_max => '1 hour', breaker => 0, batch_size => %d);
"""


@pytest.mark.parametrize("batch_size", (1, 3, 256))
def test_failing_hold_up_nobody(db, conn, request, batch_size):
    """With retry => skip all that can be handled is, in order, whatever backs
    off before it: in number and size more than a batch holds."""
    n = 200
    seed = seed_of(request)
    conn.execute(SKIPPING % batch_size)

    def sender(number):
        chance = random.Random(seed * 100 + number)
        with db.connect() as mine:
            for i in range(n):
                lane = chance.choice((-1, 0, 0, 1))
                what = chance.choice(["", "", ", 'fails', true"])
                if chance.random() < 0.02:
                    what += ", 'text', repeat('x', 1200000)"
                mine.execute("""
                    SELECT dgen.cast('skipping/%d', jsonb_build_object(
                        'client', %d, 'lane', %d, 'i', %d%s), priority => %d)"""
                             % (chance.randrange(3), number, lane, i, what, lane))
    try:
        in_threads([lambda k=k: sender(k) for k in range(3)])
        wait_for(lambda: value(conn, "SELECT bool_and(status = 'retrying') FROM dgen.messages"),
                 30, message="something waits behind what backs off")
        failed = value(conn, "SELECT count(*) FROM dgen.messages")
        assert failed > n / 2
        assert value(conn, "SELECT bool_and(attempts = 1) FROM dgen.messages")
        assert value(conn, "SELECT count(DISTINCT (client, i)) FROM passed") == 3 * n - failed
        assert value(conn, "SELECT count(*) FROM passed") == 3 * n - failed
        assert value(conn, """
            SELECT count(*) FROM (
                SELECT i < lag(i) OVER (PARTITION BY server, client, lane ORDER BY n) AS wrong
                FROM passed) p WHERE wrong""") == 0
    finally:
        conn.execute("SELECT dgen.drop_module('skipping', true)")
        conn.execute("DROP SCHEMA skipping CASCADE")
        conn.execute("DROP TABLE passed")
