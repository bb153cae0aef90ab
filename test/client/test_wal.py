"""A crash at every record of the WAL: whatever the server had written when it went
down, all that is promised holds, and what was under way goes on to its end."""

import random

import psycopg
import pytest

import every
from cluster import Cluster, wait_for
from common import connect_again, rounds_of, seed_of, value, wait_idle
from invariants import violations
from replay import Recording, Walk, text_of


def record(cluster, seed, rounds):
    """A recorded load; the cluster has stopped."""
    if cluster.psql("SELECT name FROM pg_available_extensions WHERE name = 'amcheck'"):
        cluster.psql("CREATE EXTENSION amcheck")
    every.setup(cluster)
    recording = Recording(cluster)
    loads = every.run(cluster, seed, rounds)
    with cluster.connect() as conn:
        every.finish(conn)
        check(conn, "at the end", every.INVARIANTS + every.FINISHED)
    cluster.stop()
    recording.end()
    recording.acknowledged = sorted(sum((load.acknowledged for load in loads), []))
    print("%d records, %d commits" % (len(recording.records), len(recording.commits)))
    return recording


def check(conn, where, more, acknowledged=()):
    found = violations(conn, more)
    done = {row[0] for row in conn.execute("SELECT token FROM effect")}
    found += ["acknowledged, and lost: %s" % token for token in acknowledged if token not in done]
    assert not found, "%s:\n%s" % (where, "\n".join(found))


def acknowledged_by(recording, place):
    return [token for at, token in recording.acknowledged if at <= place]


# all but those that are deleted, which begin anew
VERSIONS = "SELECT server, incarnation, version FROM dgen.server WHERE server NOT LIKE 'j/own%'"


def walk(recording, indexes):
    """Each of these records is the first one that was not written."""
    before = {}
    with Walk(recording, recording.records[indexes[0]]) as w:
        for index in indexes:
            conn = w.to(index)
            place = recording.records[index]
            check(conn, "before %s, record %d" % (text_of(place), index), every.INVARIANTS,
                  acknowledged_by(recording, place))
            now = {server: (i, v) for server, i, v in conn.execute(VERSIONS)}
            back = [(s, before[s], v) for s, v in now.items() if s in before and v < before[s]]
            assert not back, "at %s versions went back: %s" % (text_of(place), back)
            before = now


def goes_on(recording, cluster, place):
    """It was down, and is up again: nothing is lost, and all ends."""
    with cluster:
        with connect_again(cluster) as conn:
            check(conn, "recovered at %s" % text_of(place), every.INVARIANTS, acknowledged_by(recording, place))
            every.finish(conn)
            wait_idle(conn)
            check(conn, "recovered at %s, at the end" % text_of(place), every.INVARIANTS + every.FINISHED)


def sample(recording, chance, n, from_commits):
    """Records by chance, so many of them behind a commit."""
    behind = [i + 1 for i in recording.commits if i + 1 < len(recording.records)]
    chosen = set(chance.sample(behind, min(from_commits, len(behind))))
    rest = [i for i in range(1, len(recording.records)) if i not in chosen]
    chosen.update(chance.sample(rest, min(n - len(chosen), len(rest))))
    return sorted(chosen)


def recover(recording, chance, n):
    """So many crashes, each followed by a recovery to the same place or one record less."""
    for index in sample(recording, chance, n, n // 2):
        place = recording.records[index]
        goes_on(recording, recording.crash_at(place, torn=chance.randrange(24)), place)
        inclusive = chance.random() < 0.5
        # with the record that begins there, it is none less than was there before it
        goes_on(recording, recording.recover_to(place, inclusive), place)


def test_point_in_time(cluster):
    """A restore to a time before an accident: with dgen.enabled off nothing of it
    runs, and what is not to run can be taken away; then all goes on."""
    cluster.configure(Recording.CONF)
    cluster.restart()
    every.setup(cluster)
    recording = Recording(cluster)
    load = every.Load(cluster, 1, 1)
    with cluster.connect() as load.conn:
        conn = load.conn
        conn.execute("SET client_min_messages = error")
        for n in range(3):
            value(conn, "SELECT dgen.call('j/%s', '{\"a\": 1}')", n)
        conn.execute("SELECT dgen.suspend(module => 'queue', reason => 'to keep what is in there')")
        for _ in range(5):
            load.send("queue/1", "cast")
        unwanted = load.send("j/0", "late")
        conn.execute("SELECT dgen.send_after('j/1', '{\"a\": 1}', '300 ms', name => 'later')")
        states = conn.execute("SELECT server, version FROM dgen.server ORDER BY 1").fetchall()
        moment = value(conn, "SELECT clock_timestamp()::text")
        conn.execute("SELECT dgen.delete('j/' || i) FROM generate_series(0, 2) i")
        conn.execute("SELECT dgen.delete('queue/1')")
        # recovery ends at the first commit behind that time
        conn.execute("CREATE TABLE accident ()")
        wait_for(lambda: value(conn, "SELECT clock_timestamp() > %s::timestamptz + interval '500 ms'", moment))
    cluster.stop()
    recording.end()
    with recording.recover({"recovery_target_time": moment, "dgen.enabled": "off"}) as restored:
        with connect_again(restored) as conn:
            wait_for(lambda: not value(conn, "SELECT pg_is_in_recovery()"))
            check(conn, "at that time", every.INVARIANTS)
            # all is overdue, and nothing of it runs
            conn.execute("SELECT pg_sleep(1.5)")
            assert restored.processes("dgen worker") == {}
            assert refused(conn, "SELECT dgen.call('j/0', '{}')") == "OT017"
            assert refused(conn, "SELECT dgen.invoke('j/0', '{}')") == "OT017"
            assert conn.execute("SELECT server, version FROM dgen.server ORDER BY 1").fetchall() == states
            assert value(conn, "SELECT count(*) FROM dgen.message WHERE server = 'queue/1'") == 5
            assert value(conn, "SELECT count(*) FROM dgen.delayed") == 2
            # what is not to happen again
            assert value(conn, "SELECT dgen.cancel(%s)", unwanted)
            conn.execute("UPDATE sent SET gone = true WHERE id = %s", (unwanted,))
            conn.execute("SELECT dgen.suspend(everything => true, reason => 'restored')")
        restored.configure({"dgen.enabled": "on"})
        restored.reload()
        with restored.connect() as conn:
            # switched on, and still nothing runs: module by module, when its operator says so
            wait_for(lambda: value(conn, "SHOW dgen.enabled") == "on")
            assert refused(conn, "SELECT dgen.call('j/0', '{}', '100 ms')") == "OT001"
            assert value(conn, "SELECT count(*) FROM effect WHERE kind IN ('info', 'timer')") == 0
            conn.execute("SELECT dgen.resume(everything => true)")
            conn.execute("SELECT dgen.resume(module => 'queue')")
            every.finish(conn)
            wait_idle(conn)
            check(conn, "in the end", every.INVARIANTS + every.FINISHED)
            assert value(conn, "SELECT count(*) FROM effect WHERE server = 'queue/1'") == 5
            assert value(conn, "SELECT count(*) FROM effect WHERE server = 'j/1' AND kind = 'timer'") == 1
            assert value(conn, "SELECT dgen.call('j/0', '{\"t\": \"on\"}')") == "on"


def refused(conn, query):
    try:
        conn.execute(query)
    except psycopg.Error as e:
        return e.sqlstate
    return None


def test_some_records(request):
    seed = seed_of(request)
    chance = random.Random(seed)
    with Cluster("recorded", conf=Recording.CONF) as cluster:
        recording = record(cluster, seed, rounds=1)
        walk(recording, sample(recording, chance, 30, 20))
        recover(recording, chance, 2)


@pytest.mark.long
def test_many_records(request):
    """All commits, other records up to the number of rounds, and at one of 25 a recovery."""
    seed = seed_of(request)
    chance = random.Random(seed)
    rounds = rounds_of(1000)
    with Cluster("recorded", conf=Recording.CONF) as cluster:
        recording = record(cluster, seed, rounds=2)
        walk(recording, sample(recording, chance, rounds, rounds // 2))
        recover(recording, chance, rounds // 25)
