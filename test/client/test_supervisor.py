"""Supervision trees: against a model of what OTP does, and while processes die."""

import json
import os
import random
import signal

import psycopg
import pytest

from cluster import PORT, wait_for
from common import (Client, Killer, assert_nothing_left, connect_again, in_threads, rounds_of,
                    seed_of, value, wait_idle)

MODULE = """
CREATE EXTENSION dgen;
CREATE TABLE public.log (n bigserial, server text, what text);
CREATE TABLE public.flag (name text);
CREATE SCHEMA sv;
CREATE FUNCTION sv.init(args jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT FROM public.flag WHERE name = 'die') THEN
        PERFORM pg_terminate_backend(pg_backend_pid());
        PERFORM pg_sleep(60);
    END IF;
    INSERT INTO public.log (server, what) VALUES (dgen.self(), 'init');
    RETURN '{"n": 0}';
END $$;
CREATE FUNCTION sv.terminate(reason text, state jsonb) RETURNS void LANGUAGE sql AS $$
    INSERT INTO public.log (server, what) VALUES (dgen.self(), 'terminate') $$;
CREATE FUNCTION sv.handle_call(request jsonb, INOUT state jsonb, OUT reply jsonb) LANGUAGE plpgsql AS $$
BEGIN
    IF request = '"crash"' THEN
        RAISE 'crash' USING ERRCODE = 'SV001';
    END IF;
    state := jsonb_set(state, '{n}', to_jsonb((state->>'n')::int + 1));
    reply := state;
END $$;
CREATE SCHEMA other;
CREATE FUNCTION other.handle_cast(message jsonb, state jsonb) RETURNS jsonb LANGUAGE sql AS 'SELECT state';
SELECT dgen.create_module('sv');
SELECT dgen.create_module('other');
"""

SETTLED = """
SELECT NOT EXISTS (SELECT FROM dgen.message WHERE kind = 'x')
    AND NOT EXISTS (SELECT FROM dgen.children WHERE status = 'restarting')"""
STATUS = """
SELECT supervisor || '/' || id, status FROM dgen.children
UNION ALL SELECT name, status FROM dgen.supervisors WHERE name NOT LIKE '%/%'"""
# servers that were not started as often as init has run
WRONG = """
SELECT s.server, s.incarnation, count(l.n) FROM dgen.servers s
    LEFT JOIN public.log l ON l.server = s.server AND l.what = 'init'
WHERE s.module = 'sv' GROUP BY s.server, s.incarnation HAVING s.incarnation <> count(l.n)"""


@pytest.fixture
def conn(cluster):
    cluster.psql(MODULE)
    with cluster.connect() as conn:
        conn.execute("SET client_min_messages = error")
        yield conn


def supervise(conn, name, tree):
    assert value(conn, "SELECT dgen.supervise(%s, %s::jsonb)", name, json.dumps(tree))


def crash(conn, server):
    with pytest.raises(psycopg.Error) as e:
        value(conn, "SELECT dgen.call(%s, '\"crash\"', '60 s')", server)
    assert e.value.sqlstate == "SV001", e.value


def settle(conn, timeout=60):
    wait_for(lambda: value(conn, SETTLED), timeout, message="a restart is still to come")


def kv(*names, **options):
    """A supervisor of such servers, each made anew when it is restarted."""
    return dict(options, children=[{"id": n, "server": "sv/" + n, "state": "init"} for n in names])


# --- against a model

class Server:
    def __init__(self, name):
        self.name = name
        self.alive = False
        self.terminated = False

    def spec(self):
        return {"id": self.name, "server": "sv/" + self.name, "state": "init"}

    def start(self, log):
        if not self.alive:
            self.alive = True
            log.append(("sv/" + self.name, "init"))

    def end(self, log):
        if self.alive:
            self.alive = False
            log.append(("sv/" + self.name, "terminate"))

    def status(self, above):
        return ("running" if self.alive else "terminated" if self.terminated else
                "stopped" if above != "running" else "exited")


class Supervisor:
    def __init__(self, name, strategy, intensity, children):
        self.name, self.strategy, self.intensity = name, strategy, intensity
        self.children = children
        self.parent = None
        self.terminated = False
        self.state = "stopped"
        for c in children:
            c.parent = self

    def spec(self, top=False):
        spec = {"strategy": self.strategy, "intensity": self.intensity, "period": "1 h",
                "children": [c.spec() for c in self.children]}
        if not top:
            spec["id"] = self.name
        return spec

    @property
    def alive(self):
        return self.state == "running"

    def start(self, log):
        if self.alive:
            return
        self.state, self.count = "running", 0
        for c in self.children:
            if not c.terminated:
                c.start(log)

    def end(self, log, state="stopped"):
        for c in reversed(self.children):
            c.end(log)
        if not (state == "stopped" and self.state == "failed"):
            self.state = state

    def status(self, above):
        return self.state

    def exit(self, child, log):
        """A child has ended."""
        if self.count >= self.intensity:
            self.end(log, "failed")
            if self.parent:
                self.parent.exit(self, log)
            return
        self.count += 1
        i = self.children.index(child)
        affected = {"one_for_one": [child], "one_for_all": self.children,
                    "rest_for_one": self.children[i:]}[self.strategy]
        for c in reversed(affected):
            c.end(log)
        for c in affected:
            if not c.terminated:
                c.start(log)

    def below(self):
        for c in self.children:
            yield c
            if isinstance(c, Supervisor):
                yield from c.below()

    def statuses(self, path):
        found = {path: self.state}
        for c in self.children:
            if isinstance(c, Supervisor):
                found.update(c.statuses(path + "/" + c.name))
            else:
                found[path + "/" + c.name] = c.status(self.state)
        return found

    def path(self, root):
        return root if self.parent is None else self.parent.path(root) + "/" + self.name


def random_tree(chance, prefix, depth=0):
    children = []
    for i in range(chance.randrange(1, 4)):
        name = prefix + "abc"[i]
        if depth < 2 and chance.random() < 0.35:
            children.append(random_tree(chance, name, depth + 1))
        else:
            children.append(Server(name))
    return Supervisor(prefix, chance.choice(("one_for_one", "one_for_all", "rest_for_one")),
                      chance.randrange(0, 4), children)


@pytest.mark.seconds(240)
def test_strategies_against_a_model(cluster, conn, request):
    """Random trees, crashes and operators: who ends and starts, in which order."""
    chance = random.Random(seed_of(request))
    for number in range(rounds_of(12)):
        root = "t%d" % number
        tree = random_tree(chance, "%dx" % number)
        told = [json.dumps(tree.spec(top=True))]
        log = []
        seen = 0
        supervise(conn, root, tree.spec(top=True))
        tree.start(log)
        for step in range(12):
            what = chance.choice(["crash"] * 6 + ["terminate", "restart", "again"])
            child = chance.choice(list(tree.below()))
            above = child.parent.path(root)
            if what == "crash" and isinstance(child, Server) and child.alive:
                crash(conn, "sv/" + child.name)
                child.end(log)
                child.parent.exit(child, log)
            elif what == "terminate" and child.parent.alive:
                value(conn, "SELECT dgen.terminate_child(%s, %s)", above, child.name)
                child.end(log)
                child.terminated = True
            elif what == "restart" and child.parent.alive and not child.alive:
                value(conn, "SELECT dgen.restart_child(%s, %s)", above, child.name)
                child.terminated = False
                child.start(log)
            elif what == "again" and not tree.alive:
                assert value(conn, "SELECT dgen.restart_supervisor(%s)", root)
                tree.start(log)
            else:
                continue
            told.append("%s %s/%s" % (what, above, child.name))
            settle(conn)
            now = conn.execute("SELECT server, what FROM public.log ORDER BY n").fetchall()
            assert now == log, "\n".join(told)
            there = dict(conn.execute(STATUS).fetchall())
            assert there == tree.statuses(root), "\n".join(told)
        value(conn, "SELECT dgen.stop_supervisor(%s)", root)
        conn.execute("TRUNCATE public.log")
        assert value(conn, "SELECT count(*) FROM dgen.children") == 0
        assert value(conn, "SELECT count(*) FROM dgen.server WHERE supervised") == 0


# --- while processes die

WAITING = """
SELECT count(*) FROM pg_locks l JOIN pg_stat_activity a USING (pid)
WHERE NOT l.granted AND l.locktype = 'advisory' AND a.backend_type = 'dgen worker'"""


@pytest.mark.parametrize("where", ["dgen-restart", "dgen-before-restart-commit"])
@pytest.mark.parametrize("how", ["worker -15", "worker -9", "postmaster"])
def test_killed_in_the_middle_of_a_restart(cluster, conn, where, how):
    """A process goes down while a tree restarts: all of it is restarted, once."""
    cluster.signals = {signal.SIGKILL}
    supervise(conn, "tree", kv("a", "b", "c", strategy="one_for_all", intensity=10))
    conn.close()
    cluster.configure({"dgen.debug_waitpoint": where})
    cluster.restart()       # a worker that runs may hear of a reload too late
    with cluster.connect() as holder, cluster.connect() as conn:
        holder.execute("SELECT pg_advisory_lock(hashtext(%s))", (where,))
        crash(conn, "sv/b")
        wait_for(lambda: value(conn, WAITING) == 1)
        if how == "postmaster":
            cluster.kill9()
        else:
            pid = value(conn, "SELECT l.pid FROM pg_locks l JOIN pg_stat_activity a USING (pid) "
                              "WHERE NOT l.granted AND a.backend_type = 'dgen worker'")
            cluster.kill_backend(pid, signal.Signals(int(how.split(" -")[1])))
    cluster.configure({"dgen.debug_waitpoint": ""})
    if how == "postmaster":
        cluster.start()
    else:
        cluster.reload()
    cluster.wait_ready()
    with connect_again(cluster) as conn:
        settle(conn)
        assert [r[1] for r in conn.execute("SELECT * FROM dgen.which_children('tree')")] == ["server"] * 3
        assert value(conn, "SELECT count(*) FROM dgen.children WHERE status = 'running'") == 3
        assert value(conn, "SELECT array_agg(incarnation) FROM dgen.servers WHERE module = 'sv'") == [2] * 3
        assert value(conn, "SELECT dgen.call('sv/b', 'null', '30 s')") == {"n": 1}
        assert conn.execute(WRONG).fetchall() == []
        wait_idle(conn)
        assert_nothing_left(conn)


def test_restart_that_kills_its_worker(cluster, conn):
    """An init that takes its worker along is counted as a restart: the tree gives up."""
    supervise(conn, "tree", kv("a", "b", intensity=2, period="1 h"))
    conn.execute("INSERT INTO public.flag VALUES ('die')")
    crash(conn, "sv/a")
    wait_for(lambda: value(conn, "SELECT status FROM dgen.supervisors") == "failed", 60)
    settle(conn)
    assert value(conn, "SELECT reason FROM dgen.supervisors").startswith("more than 2 restarts")
    conn.execute("DELETE FROM public.flag")
    assert value(conn, "SELECT dgen.restart_supervisor('tree')")
    assert value(conn, "SELECT dgen.call('sv/a', 'null', '30 s')") == {"n": 1}


@pytest.mark.seconds(240)
def test_kills(cluster, conn, request):
    """Crashes and calls by several clients while processes are killed: in the
    end every child runs, was started as often as it says, and answers."""
    seed = seed_of(request)
    cluster.signals = {signal.SIGKILL, signal.SIGABRT}
    fast = {"intensity": 1000, "period": "1 s"}
    tree = dict(strategy="one_for_one", children=[
        dict(kv("a", "b", "c", strategy="rest_for_one", **fast), id="rest"),
        dict(kv("d", "e", strategy="one_for_all", **fast), id="all")], **fast)
    supervise(conn, "tree", tree)
    conn.close()
    servers = ["sv/" + s for s in "abcde"]
    stop = []

    def client(number):
        chance = random.Random(seed * 100 + number)
        c = Client(cluster)
        while not stop:
            try:
                what = '"crash"' if chance.random() < 0.2 else '"call"'
                c.attempt("SELECT dgen.call(%s, %s::jsonb, '10 s')", chance.choice(servers), what)
            except psycopg.Error as e:
                assert e.sqlstate == "SV001", e
        c.close()

    def killer():
        try:
            k = Killer(cluster, seed)
            for _ in range(rounds_of(8)):
                k.once()
        finally:
            stop.append(True)

    in_threads([lambda n=n: client(n) for n in range(4)] + [killer], timeout=200)
    with connect_again(cluster) as conn:
        conn.execute("SET client_min_messages = error")
        settle(conn)
        assert value(conn, "SELECT count(*) FROM dgen.children WHERE status = 'running'") == 7
        assert value(conn, "SELECT sum(restarts) > 5 FROM dgen.children")
        for s in servers:
            assert value(conn, "SELECT dgen.call(%s, 'null', '30 s')", s)["n"] > 0
        assert conn.execute(WRONG).fetchall() == []
        wait_idle(conn)
        assert_nothing_left(conn)


# --- and otherwise

def test_restart_waits_for_a_suspended_module(cluster, conn):
    tree = kv("a", strategy="one_for_all", intensity=1)
    tree["children"].append({"id": "o", "server": "other/1"})
    supervise(conn, "tree", tree)
    value(conn, "SELECT dgen.suspend(module => 'other')")
    crash(conn, "sv/a")
    assert value(conn, "SELECT status FROM dgen.children WHERE id = 'a'") == "restarting"
    with pytest.raises(psycopg.Error) as e:
        value(conn, "SELECT dgen.call('sv/a', 'null', '1500 ms')")
    assert e.value.sqlstate == "OT001"
    value(conn, "SELECT dgen.resume(module => 'other')")
    assert value(conn, "SELECT dgen.call('sv/a', 'null', '30 s')") == {"n": 1}
    assert value(conn, "SELECT restarts FROM dgen.supervisors") == 1


def test_worker_does_not_wait_for_an_open_transaction(cluster, conn):
    """Somebody keeps a server of the tree: others are served meanwhile."""
    cluster.configure({"dgen.max_workers": 1})
    cluster.reload()
    supervise(conn, "tree", kv("a", "b", strategy="one_for_all"))
    with cluster.connect(autocommit=False) as holder:
        value(holder, "SELECT dgen.replace_state('sv/b', '{\"n\": 7}')")
        crash(conn, "sv/a")
        for i in range(3):
            assert value(conn, "SELECT dgen.call('sv/other', 'null', '20 s')")["n"] == i + 1
        assert value(conn, "SELECT status FROM dgen.children WHERE id = 'a'") == "restarting"
        holder.rollback()
    settle(conn)
    assert value(conn, "SELECT dgen.call('sv/a', 'null', '30 s')") == {"n": 1}


def test_dump_and_restore(cluster, conn):
    """A tree, one that has failed, and a server that waits for its restart."""
    supervise(conn, "good", kv("a", "b"))
    supervise(conn, "bad", kv("c", intensity=0))
    crash(conn, "sv/c")
    settle(conn)
    value(conn, "SELECT dgen.suspend(module => 'sv')")
    value(conn, "SELECT dgen.stop('sv/a')")
    path = os.path.join(cluster.directory, "dump")
    cluster.run("pg_dump", "-h", cluster.socket_dir, "-p", str(PORT), "-U", "postgres", "-f", path, "postgres")
    cluster.psql("CREATE DATABASE copy")
    cluster.run("psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", "-h", cluster.socket_dir, "-p", str(PORT),
                "-U", "postgres", "-d", "copy", "-f", path)
    with cluster.connect(dbname="copy") as copy:
        copy.execute("SET client_min_messages = error")
        for query in ("SELECT * FROM dgen.children ORDER BY 1, 2", "SELECT * FROM dgen.supervisors ORDER BY 1"):
            assert copy.execute(query).fetchall() == conn.execute(query).fetchall()
        assert value(copy, "SELECT status FROM dgen.children WHERE id = 'a'") == "restarting"
        value(copy, "SELECT dgen.adopt()")
        value(copy, "SELECT dgen.resume(module => 'sv')")
        settle(copy)
        assert value(copy, "SELECT dgen.call('sv/a', 'null', '30 s')") == {"n": 1}
        crash(copy, "sv/b")
        settle(copy)
        assert value(copy, "SELECT dgen.restart_supervisor('bad')")
        assert value(copy, "SELECT count(*) FROM dgen.children WHERE status = 'running'") == 3


def test_locked_work_that_fails(cluster, conn):
    """handle_locked of a child has used up its attempts: that is a crash, and ends the lock."""
    cluster.psql("""
        CREATE FUNCTION other.handle_call(request jsonb, INOUT state jsonb, OUT reply jsonb) LANGUAGE plpgsql AS
            $$ BEGIN IF request = '"work"' THEN PERFORM dgen.lock(); RETURN; END IF; reply := '"here"'; END $$;
        CREATE PROCEDURE other.handle_locked(kind text, message jsonb, INOUT state jsonb, INOUT reply jsonb)
        LANGUAGE plpgsql AS $$ BEGIN RAISE 'work' USING ERRCODE = 'SV002'; END $$;
        SELECT dgen.alter_module('other', max_attempts => 2, backoff_initial => '10 ms');""")
    supervise(conn, "tree", {"children": [{"id": "o", "server": "other/1"}]})
    with pytest.raises(psycopg.Error) as e:
        value(conn, "SELECT dgen.call('other/1', '\"work\"', '30 s')")
    assert e.value.sqlstate == "SV002", e.value
    settle(conn)
    assert value(conn, "SELECT reason FROM dgen.children") == "SV002: work"
    assert value(conn, "SELECT restarts FROM dgen.children") == 1
    assert value(conn, "SELECT dgen.call('other/1', 'null', '30 s')") == "here"


def test_machine_keeps_its_state_name(cluster, conn):
    cluster.psql("""
        CREATE SCHEMA door;
        CREATE FUNCTION door.init(args jsonb, OUT data jsonb, OUT state_name text) LANGUAGE sql AS
            $$ SELECT '{}'::jsonb, 'shut' $$;
        CREATE FUNCTION door.handle_event(kind text, event jsonb, state_name text, INOUT data jsonb,
                                          OUT next_state text, OUT reply jsonb) LANGUAGE plpgsql AS $$
        BEGIN
            IF event = '"crash"' THEN
                RAISE 'crash' USING ERRCODE = 'SV001';
            ELSIF event = '"open"' THEN
                next_state := 'open';
            END IF;
            reply := to_jsonb(state_name);
        END $$;
        SELECT dgen.create_module('door', kind => 'statem', history => '10');""")
    with pytest.raises(psycopg.errors.FeatureNotSupported):
        supervise(conn, "doors", {"children": [{"server": "door/1", "state": "last_good"}]})
    supervise(conn, "doors", {"children": [{"id": "1", "server": "door/1"}]})
    value(conn, "SELECT dgen.call('door/1', '\"open\"')")
    crash(conn, "door/1")
    assert value(conn, "SELECT dgen.call('door/1', 'null')") == "open"
    assert value(conn, "SELECT restarts FROM dgen.children") == 1


def test_many_dynamic_children(cluster, conn):
    """A thousand children of one supervisor: to add or restart one is not to look at all."""
    supervise(conn, "many", {"intensity": 100, "children": []})
    for i in range(10):
        conn.execute("""SELECT dgen.start_child('many', jsonb_build_object('server', 'sv/m' || n, 'state', 'init'))
                        FROM generate_series(%s::int, %s::int) n""", (i * 100 + 1, i * 100 + 100))
    assert conn.execute("SELECT * FROM dgen.count_children('many')").fetchone() == (1000, 1000, 0, 1000)
    crash(conn, "sv/m500")
    assert value(conn, "SELECT dgen.call('sv/m500', 'null', '30 s')") == {"n": 1}
    assert value(conn, "SELECT sum(restarts) FROM dgen.children") == 1
    assert value(conn, "SELECT dgen.stop_supervisor('many')")
