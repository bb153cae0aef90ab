"""Following a state: NOTIFY of a module with option notify, dgen.wait_change,
logical decoding, and examples/follow, which does it in a browser."""

import importlib.util
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import psycopg
import pytest

from bouncer import Bouncer, find_pgbouncer
from build import TOP, clean_environment
from cluster import free_port, wait_for
from common import seed_of, value, wait_idle

SETUP = """
    CREATE EXTENSION dgen;
    CREATE SCHEMA box;
    CREATE FUNCTION box.handle_call(request jsonb, INOUT state jsonb, OUT reply jsonb)
      LANGUAGE plpgsql AS $$
    BEGIN
      IF request = '"exit"' THEN
        PERFORM dgen.exit('done');
      ELSE
        state := request;
      END IF;
    END $$;
    CREATE FUNCTION box.handle_cast(message jsonb, state jsonb) RETURNS jsonb
      LANGUAGE sql AS $$ SELECT $1 $$;
    SET client_min_messages = error;
    SELECT dgen.create_module('box', notify => 'Box changed', invoke_isolation => 'any');"""


class Listener:
    """What has been announced so far, as {server: [versions]}, and the modules."""

    def __init__(self, cluster, channel='"Box changed"'):
        self.conn = cluster.connect()
        self.conn.add_notify_handler(self.hear)
        self.conn.execute("LISTEN " + channel)
        self.versions = {}
        self.modules = []

    def hear(self, notice):
        news = json.loads(notice.payload)
        if "module" in news:
            assert set(news) == {"module"}
            self.modules.append(news["module"])
        else:
            assert set(news) == {"server", "version"}
            self.versions.setdefault(news["server"], []).append(news["version"])

    def heard(self, server, version):
        """Has this been announced as the last of the server?"""
        self.conn.execute("SELECT 1")
        return self.versions.get(server, [0])[-1] == version

    def wait(self, server, version):
        wait_for(lambda: self.heard(server, version), 20,
                 message="version %s of %s is not announced: %s" % (version, server, self.versions))


@pytest.fixture(scope="module")
def boxes(shared_cluster):
    shared_cluster.psql(SETUP.replace("CREATE EXTENSION dgen;", ""))
    with shared_cluster.connect() as conn:
        conn.execute("SET client_min_messages = error")
        conn.cluster = shared_cluster
        yield conn


def test_ids_are_announced(boxes):
    listener = Listener(boxes.cluster)
    boxes.execute("""SELECT dgen.call('box/a "b"', '"secret"')""")
    listener.wait('box/a "b"', 1)
    boxes.execute("""SELECT dgen.call('box/a "b"', '"secret"')""")     # the same state
    boxes.execute("""SELECT dgen.replace_state('box/a "b"', '"secret 2"')""")
    listener.wait('box/a "b"', 2)
    boxes.execute("""SELECT dgen.call('box/a "b"', '"exit"')""")
    listener.wait('box/a "b"', 2)
    boxes.execute("""SELECT dgen.delete('box/a "b"')""")
    listener.wait('box/a "b"', None)


def test_only_what_commits(boxes):
    """And what a savepoint's rollback leaves, under the version that it has then."""
    listener = Listener(boxes.cluster)
    boxes.execute("""
        BEGIN;
        SELECT dgen.invoke('box/undone', '1');
        ROLLBACK;
        BEGIN;
        SELECT dgen.invoke('box/half', '1');
        SAVEPOINT a;
        SELECT dgen.invoke('box/half', '2');
        SELECT dgen.invoke('box/undone', '1');
        ROLLBACK TO a;
        SAVEPOINT b;
        SELECT dgen.invoke('box/kept', '1');
        RELEASE b;
        COMMIT;
        SELECT dgen.call('box/last', '1');""")
    listener.wait("box/last", 1)
    assert listener.versions == {"box/half": [1], "box/kept": [1], "box/last": [1]}
    boxes.execute("BEGIN; SELECT dgen.invoke('box/half', '3'); PREPARE TRANSACTION 'half'")
    boxes.execute("COMMIT PREPARED 'half'")
    boxes.execute("SELECT dgen.call('box/last', '2')")
    listener.wait("box/last", 2)
    assert listener.versions["box/half"] == [1]


def test_off_and_on(boxes):
    listener = Listener(boxes.cluster)
    boxes.execute("SELECT dgen.alter_module('box', notify => '')")
    boxes.execute("SELECT dgen.call('box/quiet', '1')")
    boxes.execute("SELECT dgen.alter_module('box', notify => 'Box changed')")
    boxes.execute("SELECT dgen.call('box/loud', '1')")
    listener.wait("box/loud", 1)
    assert "box/quiet" not in listener.versions


def test_many_changes_are_few_announcements(boxes):
    """At most each 50 ms a server; its last version is announced in any case."""
    listener = Listener(boxes.cluster)
    started = time.monotonic()
    for i in range(500):
        boxes.execute("SELECT dgen.cast('box/busy', to_jsonb(%s))", (i,))
    wait_idle(boxes)
    took = time.monotonic() - started
    version = value(boxes, "SELECT version FROM dgen.servers WHERE server = 'box/busy'")
    listener.wait("box/busy", version)
    assert len(listener.versions["box/busy"]) <= (took + 20) / 0.05
    assert listener.versions["box/busy"] == sorted(set(listener.versions["box/busy"]))


def test_without_keeper(boxes):
    """What changes while no keeper is there is announced by the next one; what
    finds no room in the table, by the name of the module."""
    listener = Listener(boxes.cluster)
    pid, = boxes.cluster.processes("dgen keeper")
    os.kill(pid, signal.SIGSTOP)
    try:
        boxes.execute("SELECT dgen.call('box/stopped', '1')")
        boxes.execute("""SELECT dgen.cast_many((SELECT jsonb_agg(jsonb_build_object(
                           'server', 'box/' || i, 'message', i)) FROM generate_series(1, 3000) i))""")
        wait_for(lambda: value(boxes, "SELECT count(*) FROM dgen.servers WHERE server ~ '^box/[0-9]+$'") == 3000, 60)
        assert not listener.heard("box/stopped", 1)
    finally:
        os.kill(pid, signal.SIGTERM)
        os.kill(pid, signal.SIGCONT)
    listener.wait("box/stopped", 1)
    # of 1024 places, some servers found none
    wait_for(lambda: listener.heard("box/stopped", 1) and listener.modules, 20)
    assert listener.modules == ["box"]
    # and all is as before
    boxes.execute("SELECT dgen.call('box/after', '1')")
    listener.wait("box/after", 1)
    assert listener.modules == ["box"]


def test_changed_while_it_is_announced(boxes):
    """Between the announcement and the moment that its places are freed."""
    listener = Listener(boxes.cluster)
    boxes.execute("SELECT dgen.call('box/meanwhile', '1')")
    listener.wait("box/meanwhile", 1)
    versions = iter(range(2, 1000))

    def change():
        version = next(versions)
        boxes.execute("SELECT dgen.call('box/meanwhile', to_jsonb(%s::int))", (version,))
        return version

    def is_stopped():
        """The keeper, once it has the setting: until then it announces what changes."""
        change()
        return value(boxes, "SELECT count(*) FROM pg_locks JOIN pg_stat_activity USING (pid) "
                            "WHERE NOT granted AND backend_type = 'dgen keeper'") == 1

    boxes.cluster.configure({"dgen.debug_waitpoint": "dgen-announced"})
    boxes.execute("SELECT pg_advisory_lock(hashtext('dgen-announced'))")
    try:
        boxes.cluster.reload()
        wait_for(is_stopped)
        last = change()
    finally:
        boxes.cluster.configure({"dgen.debug_waitpoint": ""})
        boxes.cluster.reload()
        boxes.execute("SELECT pg_advisory_unlock(hashtext('dgen-announced'))")
    listener.wait("box/meanwhile", last)


def test_queue_that_fills_up(cluster):
    """A listener that does not read stops nobody; announcements wait until there is room."""
    if cluster.build.major < 17:
        pytest.skip("the size of the queue can be set from PostgreSQL 17 on")
    cluster.configure({"max_notify_queue_pages": 64})
    cluster.restart()
    cluster.psql(SETUP)
    with cluster.connect() as stuck, cluster.connect() as conn:
        stuck.execute("LISTEN noise")
        stuck.execute("BEGIN")
        stuck.execute("SELECT 1")
        while value(conn, "SELECT pg_notification_queue_usage()") <= 0.55:
            conn.execute("SELECT pg_notify('noise', repeat('x', 4000) || i) FROM generate_series(1, 5) i")
        listener = Listener(cluster)
        conn.execute("SELECT dgen.call('box/a', '1')")
        usage = value(conn, "SELECT pg_notification_queue_usage()")
        time.sleep(0.2)         # several times the interval
        assert not listener.heard("box/a", 1)
        assert value(conn, "SELECT pg_notification_queue_usage()") == usage
        stuck.execute("ROLLBACK")
        listener.wait("box/a", 1)


def test_wait_change_keeps_no_snapshot(boxes):
    """While it waits, its backend holds back nobody's VACUUM; a change wakes it at once,
    and so does the end of the server."""
    boxes.execute("SELECT dgen.call('box/w', '{\"n\": 1}')")
    with boxes.cluster.connect() as waiting:
        pid = waiting.info.backend_pid
        found = []

        def wait():
            for version in 1, 2:
                found.append(waiting.execute("CALL dgen.wait_change('box/w', %s::int, timeout => '1 min')",
                                             (version,)).fetchone())
        thread = threading.Thread(target=wait, daemon=True)
        thread.start()
        asleep = "SELECT count(*) FROM pg_stat_activity WHERE pid = %s AND wait_event_type = 'Extension' AND "
        wait_for(lambda: value(boxes, asleep + "state = 'active'", pid) == 1)
        for _ in range(30):
            assert value(boxes, asleep + "(backend_xmin IS NOT NULL OR backend_xid IS NOT NULL)", pid) == 0
            time.sleep(0.05)
        assert not found
        boxes.execute("SELECT dgen.call('box/w', '{\"n\": 2}')")
        wait_for(lambda: len(found) == 1)
        wait_for(lambda: value(boxes, asleep + "state = 'active'", pid) == 1)
        boxes.execute("SELECT dgen.delete('box/w')")
        thread.join(20)
        assert found == [(2, {"n": 2}), (None, None)]


def test_wait_change_loses_its_right(boxes):
    """The right to read is asked for again with each look."""
    boxes.execute("""
        CREATE ROLE follower LOGIN;
        CREATE ROLE readers ROLE follower;
        SELECT dgen.alter_module('box', readers => 'readers')""")
    boxes.execute("SELECT dgen.call('box/r', '1')")
    failed = []
    with boxes.cluster.connect(user="follower") as waiting:
        assert waiting.execute("CALL dgen.wait_change('box/r')").fetchone() == (1, 1)

        def wait():
            try:
                waiting.execute("CALL dgen.wait_change('box/r', 1)")
            except psycopg.Error as e:
                failed.append(e.sqlstate)
        thread = threading.Thread(target=wait, daemon=True)
        thread.start()
        wait_for(lambda: value(boxes, "SELECT wait_event_type FROM pg_stat_activity WHERE pid = %s",
                               waiting.info.backend_pid) == "Extension")
        boxes.execute("REVOKE readers FROM follower")
        boxes.execute("SELECT dgen.call('box/r', '2')")
        thread.join(20)
    assert failed == ["42501"]


def test_wait_change_through_a_pooler(boxes):
    """One statement, which keeps nothing in the session."""
    if find_pgbouncer() is None:
        pytest.skip("there is no pgbouncer")

    def change():
        with psycopg.connect(**bouncer.conninfo()) as other:
            other.execute("SELECT dgen.call('box/p', '2')")
    with Bouncer(boxes.cluster) as bouncer, \
            psycopg.connect(**bouncer.conninfo(), autocommit=True, prepare_threshold=None) as conn:
        boxes.execute("SELECT dgen.call('box/p', '1')")
        assert conn.execute("CALL dgen.wait_change(%s)", ("box/p",)).fetchone() == (1, 1)
        timer = threading.Timer(0.2, change)
        timer.start()
        assert conn.execute("CALL dgen.wait_change(%s, %s::bigint, '20 s')", ("box/p", 1)).fetchone() == (2, 2)
        timer.join()


# --- logical decoding

LOGICAL = """
    CREATE EXTENSION dgen;
    CREATE SCHEMA "big box";
    CREATE FUNCTION "big box".handle_cast(message jsonb, state jsonb) RETURNS jsonb
      LANGUAGE sql AS $$ SELECT $2 || $1 $$;
    SET client_min_messages = error;
    SELECT dgen.create_module('big box', schema_name => 'big box', invoke_isolation => 'any');
    CREATE SCHEMA other;
    CREATE FUNCTION other.handle_cast(message jsonb, state jsonb) RETURNS jsonb
      LANGUAGE sql AS $$ SELECT $2 || $1 $$;
    SELECT dgen.create_module('other');"""


def example(name):
    path = os.path.join(TOP, "examples", "follow", name + ".py")
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_decode(cluster, request):
    """examples/follow/decode.py: its copy of the states is what the states are, with
    patches and folds, over deletions and restarts, and the slot keeps no WAL then."""
    chance = random.Random(seed_of(request))
    cluster.configure({"wal_level": "logical"})
    cluster.restart()
    cluster.psql(LOGICAL)
    decode = example("decode")
    seen, patched = {}, 0

    def follow(copy):
        for server, version, state in copy.changes():
            if version is None:
                seen.pop(server, None)
            else:
                assert server not in seen or seen[server][0] < version, server
                seen[server] = version, state

    def work(conn, rounds):
        for _ in range(rounds):
            server = "big box/%d" % chance.randrange(5)
            key = "k%d" % chance.randrange(20)
            text = "%0*x" % (chance.choice((10, 10, 10, 3000)), chance.getrandbits(10000))
            conn.execute("SELECT dgen.cast(%s, jsonb_build_object(%s::text, %s::text))", (server, key, text))
            if chance.random() < 0.1:
                conn.execute("SELECT dgen.cast('other/1', '{}')")
            if chance.random() < 0.05:
                wait_idle(conn)
                conn.execute("SELECT dgen.delete(%s)", (server,))
        wait_idle(conn)

    def compare(conn, copy):
        follow(copy)
        now = dict((server, (version, state)) for server, version, state in conn.execute(
            "SELECT server, version, dgen.state(server) FROM dgen.servers WHERE module = 'big box'"))
        assert seen == now
        return sum(map(len, copy.patches.values()))

    with cluster.connect() as conn:
        conn.execute("SET client_min_messages = error")
        work(conn, 40)
        for _ in range(3):
            with cluster.connect() as own:
                copy = decode.Copy(own, "big box")
                seen = copy.begin()
                assert all(server.startswith("big box/") for server in seen)
                compare(conn, copy)
                for _ in range(3):
                    work(conn, 40)
                    patched += compare(conn, copy)
            work(conn, 40)      # while nobody follows
        with cluster.connect() as own:
            copy = decode.Copy(own, "big box")
            seen = copy.begin()
            conn.execute("CREATE TABLE noise AS SELECT repeat('x', 1000) FROM generate_series(1, 1000)")
            compare(conn, copy)
            assert value(conn, "SELECT pg_current_wal_lsn() - confirmed_flush_lsn < 100000 FROM pg_replication_slots")
            copy.drop()
        assert value(conn, "SELECT count(*) FROM pg_replication_slots") == 0
    assert patched > 0


# --- the page

FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync",
         "--disable-dev-shm-usage")


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    webdriver = pytest.importorskip("selenium.webdriver", reason="there is no python3-selenium")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("there is no chromium with its driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in FLAGS:
        options.add_argument(flag)
    options.add_argument("--user-data-dir=%s" % tmp_path_factory.mktemp("chromium"))
    browser = webdriver.Chrome(service=webdriver.chrome.service.Service(driver), options=options)
    yield browser
    browser.quit()


class Page:
    """examples/follow/server.py, and its page in the browser."""

    def __init__(self, browser, conninfo, *arguments):
        self.browser = browser
        self.port = free_port()
        env = dict(clean_environment(), PGHOST=conninfo["host"], PGPORT=str(conninfo["port"]),
                   PGUSER=conninfo["user"], PGDATABASE=conninfo["dbname"])
        self.server = subprocess.Popen(
            [sys.executable, "-B", os.path.join(TOP, "examples", "follow", "server.py"), "parcel",
             "--port", str(self.port), *arguments], env=env, stdout=subprocess.DEVNULL)

    def __enter__(self):
        wait_for(self.load, 30, message="the page does not come")
        return self

    def __exit__(self, *error):
        self.browser.get("about:blank")
        self.server.terminate()
        try:
            self.server.wait(10)
        finally:
            self.server.kill()

    def load(self):
        assert self.server.poll() is None, "the server of the page has ended"
        try:
            socket.create_connection(("127.0.0.1", self.port), 1).close()
        except OSError:
            return False
        self.browser.get("http://127.0.0.1:%d/" % self.port)
        return True

    def text(self, name):
        return self.browser.execute_script("return document.getElementById(arguments[0]).textContent", name)

    def follow(self, server):
        click = """
            for (const button of document.querySelectorAll("#servers button"))
                if (button.textContent === arguments[0]) { button.click(); return true; }
            return false;"""
        wait_for(lambda: self.browser.execute_script(click, server), 20, message="%s is not listed" % server)

    def wait(self, version, state):
        wait_for(lambda: self.text("version") == version and
                 (json.loads(self.text("state")) if self.text("state") else None) == state, 20,
                 message="not shown: %s %s" % (version, state))


HOSTILE = """<img src=x onerror="document.title='owned'"><script>document.title='owned'</script>\n\ndata: {}"""


def see_changes(page, conn):
    """A list; a click; and what changes is seen without a reload."""
    page.browser.execute_script("window.loadedOnce = true")
    page.follow("parcel/1")
    page.wait("version 2", {"at": "Lyon", "moves": 2})
    conn.execute("SELECT dgen.call('parcel/1', '{\"move to\": \"Kyiv\"}')")
    page.wait("version 3", {"at": "Kyiv", "moves": 3})
    # masked
    conn.execute("SELECT dgen.replace_state('parcel/1', '{\"at\": \"Lima\", \"recipient\": \"secret\"}')")
    page.wait("version 4", {"at": "Lima"})
    # neither a state nor a key is taken for HTML, nor for events
    hostile = "parcel/" + HOSTILE.replace("\n", " ")
    conn.execute("SELECT dgen.call(%s, jsonb_build_object('move to', %s::text))", (hostile, HOSTILE))
    page.follow(hostile)
    page.wait("version 1", {"at": HOSTILE, "moves": 1})
    assert page.text("server") == hostile
    assert page.browser.title == "Servers"
    assert page.browser.find_elements("css selector", "img, #servers script, #state *, #server *") == []
    # the end of a server, and another page
    page.follow("parcel/2")
    page.wait("version 1", {"at": "Oslo", "moves": 1})
    conn.execute("SELECT dgen.delete('parcel/2')")
    page.wait("There is no such server.", None)
    conn.execute("SELECT dgen.call('parcel/2', '{\"move to\": \"Bonn\"}')")
    page.wait("version 1", {"at": "Bonn", "moves": 1})
    conn.execute("SELECT dgen.delete(%s)", (hostile,))
    assert page.browser.execute_script("return window.loadedOnce")


@pytest.fixture
def parcels(cluster, browser):
    pytest.importorskip("aiohttp", reason="there is no python3-aiohttp")
    cluster.psql_file(os.path.join(TOP, "examples", "follow", "follow.sql"))
    with cluster.connect() as conn:
        conn.cluster = cluster
        yield conn


def test_page(parcels, browser):
    with Page(browser, parcels.cluster.conninfo()) as page:
        see_changes(page, parcels)
        # its connections are lost: it makes new ones, and shows what it missed
        page.follow("parcel/1")
        page.wait("version 4", {"at": "Lima"})
        parcels.execute("SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
                        "WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'")
        parcels.execute("SELECT dgen.call('parcel/1', '{\"move to\": \"Suva\"}')")
        page.wait("version 5", {"at": "Suva", "moves": None})


def test_page_without_notify(parcels):
    parcels.execute("SELECT dgen.alter_module('parcel', notify => '')")
    done = subprocess.run([sys.executable, "-B", os.path.join(TOP, "examples", "follow", "server.py"), "parcel"],
                          env=dict(clean_environment(), PGHOST=parcels.cluster.socket_dir, PGUSER="postgres",
                                   PGPORT=str(parcels.cluster.port), PGDATABASE="postgres"),
                          text=True, stderr=subprocess.PIPE, timeout=60)
    assert done.returncode != 0 and "has no option notify" in done.stderr


def test_page_through_a_pooler(parcels, browser):
    if find_pgbouncer() is None:
        pytest.skip("there is no pgbouncer")
    parcels.execute("SELECT dgen.alter_module('parcel', notify => '')")
    with Bouncer(parcels.cluster) as bouncer, Page(browser, bouncer.conninfo(), "--pooler") as page:
        see_changes(page, parcels)
