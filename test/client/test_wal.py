"""A crash at every record of the WAL: whatever the server had written when it went
down, all that is promised holds, and what was under way goes on to its end."""

import random

import pytest

import every
from cluster import Cluster
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
