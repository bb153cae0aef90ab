"""How cost grows: with servers, mailboxes, states, workers and clients.

Each sweep measures short points and gives each to point(series, x, y).
bench/run plots runs them all, keeps the points in bench/growth.csv and has
plot.py draw them into doc/plots.
"""

import csv
import fnmatch
import os
import sys
import time

from harness import CLIENT, HERE, SCALE, Bench, load_average, machine
from build import TOP, Build, BuildError
from calls import BY_HAND, INCREMENT, calls_by_pgbench, updates_by_pgbench
from mailbox import drain_of_one

POINT = int(os.environ.get("BENCH_SECONDS") or 2)       # seconds of a pgbench run
COLUMNS = ["plot", "series", "x", "y"]


def scaled(numbers):
    """The same points, or with BENCH_SCALE below 1 those that are not too many."""
    return [n for n in numbers if n <= max(numbers) * SCALE] or numbers[:1]


def random_call(servers):
    return ("\\set id random(1, %d)\n"
            "SELECT dgen.call('counter/' || :id::text, '\"increment\"');\n" % servers)


def random_update(rows):
    return ("\\set id random(1, %d)\n"
            "UPDATE by_hand SET state = (counter.handle_call('\"increment\"', state)).state "
            "WHERE id = :id RETURNING state;\n" % rows)


def rate(b, measure, script, clients):
    """Per second, with caches and workers warm."""
    measure(b, script, clients=clients, transactions=20 * clients)
    return measure(b, script, clients=clients, seconds=POINT).tps


def servers(b, point):
    """calls by 16 clients, by the number of servers"""
    there = 0
    for n in scaled([1, 10, 100, 1000, 10_000, 100_000]):
        b.fill(n, n)
        b.super.execute("INSERT INTO by_hand SELECT i, '0' FROM generate_series(%s::int, %s::int) i "
                        "ON CONFLICT DO NOTHING", (there + 1, n))
        there = n
        b.wait_idle()
        point("calls to all of them", n, rate(b, calls_by_pgbench, random_call(n), 16))
        point("calls to one of them", n, rate(b, calls_by_pgbench, INCREMENT, 16))
        point("UPDATE of as many rows", n, rate(b, updates_by_pgbench, random_update(n), 16))


def mailbox(b, point):
    """the cost of a message, by the number that waits before it"""
    cast = "SELECT dgen.cast('counter/1', '\"increment\"');\n"
    for n in scaled([100, 1000, 10_000, 100_000]):
        b.ask("SELECT dgen.suspend('counter/1')")
        b.fill(1, n)
        load = b.pgbench(cast, transactions=200)
        b.expect("counter", load.count)
        load = b.pgbench(cast, seconds=POINT)
        b.expect("counter", load.count)
        point("cast, 1 client", n, 1000 * load.latency)
        b.ask("SELECT dgen.resume('counter/1')")
        b.wait_idle()
        b.vacuum()
        point("handled", n, 1e6 * drain_of_one(b, n) / n)
        b.vacuum()


SIZED = """
CREATE SCHEMA sized;
CREATE FUNCTION sized.init(args jsonb) RETURNS jsonb LANGUAGE sql AS $$
  SELECT jsonb_object_agg('k' || i, jsonb_build_object('n', 0, 'note', md5(i::text)))
  FROM generate_series(1, args::int) i $$;
CREATE FUNCTION sized.handle_call(request jsonb, INOUT state jsonb, OUT reply jsonb)
  LANGUAGE plpgsql AS $$
BEGIN
  state := jsonb_set(state, ARRAY['k1', 'n'], request);
  reply := request;
END $$;
SELECT dgen.create_module('sized');
CREATE TABLE sized_by_hand (id integer PRIMARY KEY, state jsonb NOT NULL);
"""


def state(b, point):
    """one element of a state changed by each call, by the state's size"""
    b.cluster.psql(SIZED, user=CLIENT)
    for n in scaled([1, 10, 100, 1000, 10_000, 20_000]):
        b.ask("SELECT dgen.start('sized/' || %s::int, to_jsonb(%s::int))", n, n)
        b.client.execute("INSERT INTO sized_by_hand SELECT %s, sized.init(to_jsonb(%s::int))", (n, n))
        size = b.ask("SELECT pg_column_size(state || '{}') FROM sized_by_hand WHERE id = %s", n)
        number = "\\set number random(1, 1000000)\n"
        calls = number + "SELECT dgen.call('sized/%d', to_jsonb(:number::int));\n" % n
        updates = number + ("UPDATE sized_by_hand SET state = jsonb_set(state, ARRAY['k1', 'n'], "
                            "to_jsonb(:number::int)) WHERE id = %d RETURNING id;\n" % n)
        for series, script in (("call", calls), ("UPDATE with jsonb_set", updates)):
            b.pgbench(script, transactions=20)
            point(series, size, b.pgbench(script, seconds=POINT).latency)


def workers(b, point):
    """by the number of workers: a quick handler, and one that works for a while"""
    half = ("\\set id random(1, 1000)\n"
            "SELECT dgen.call('half/' || :id::text, '\"change\"');\n")
    for n in (1, 2, 4):
        b.close()
        b.cluster.configure({"dgen.max_workers": n})
        b.cluster.restart()
        b.connect()
        b.fill(1000, 1000)
        b.wait_idle()
        point("counter", n, rate(b, calls_by_pgbench, random_call(1000), 64))
        for seconds in (1, POINT):
            load = b.pgbench(half, clients=64, seconds=seconds)
            b.expect("half", load.count)
        b.check_sums()
        point("20,000 turns of a loop", n, load.tps)


def clients(b, point):
    """calls by the number of clients"""
    b.fill(1000, 1000)
    b.wait_idle()
    for n in (1, 2, 4, 8, 16, 32, 64):
        point("calls to one server", n, rate(b, calls_by_pgbench, INCREMENT, n))
        point("UPDATE of one row", n, rate(b, updates_by_pgbench, BY_HAND, n))
        point("calls to 1,000 servers", n, rate(b, calls_by_pgbench, random_call(1000), n))
        point("UPDATE of 1,000 rows", n, rate(b, updates_by_pgbench, random_update(1000), n))


SWEEPS = [servers, mailbox, state, workers, clients]


def run_sweep(build, sweep):
    """Its points, [(series, x, y)]."""
    points = []

    def point(series, x, y):
        points.append((series, x, y))
        print("%-10s %-28s %10d %12.1f" % (sweep.__name__, series, x, y), flush=True)

    with Bench(build, "growth-" + sweep.__name__) as b:
        sweep(b, point)
    return points


def main():
    patterns = sys.argv[1:]
    sweeps = [s for s in SWEEPS
              if not patterns or any(fnmatch.fnmatch(s.__name__, p) for p in patterns)]
    if not sweeps:
        raise SystemExit("no such sweep; there are " + ", ".join(s.__name__ for s in SWEEPS))
    # what is kept is whole
    whole = not patterns and SCALE == 1
    results = os.path.join(HERE, "results")
    os.makedirs(results, exist_ok=True)
    path = os.path.join(HERE if whole else results, "growth.csv")
    drawings = os.path.join(TOP, "doc", "plots") if whole else os.path.join(results, "plots")
    try:
        build = Build.current()
    except BuildError as e:
        print(e, file=sys.stderr)
        return 1
    about = [(what, value) for what, value in machine(build) if what != "runs"]
    about.append(("points", "%d s each, scale %g" % (POINT, SCALE)))
    begin = time.monotonic()
    rows = [(sweep.__name__, series, x, "%.4g" % y)
            for sweep in sweeps for series, x, y in run_sweep(build, sweep)]
    about.append(("load after", load_average()))
    with open(path, "w", newline="") as f:
        for what, value in about:
            f.write("# %s: %s\n" % (what, value))
        writer = csv.writer(f, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(rows)

    import plot
    plot.draw(path, drawings)
    print("kept in %s and %s; %d s" % (os.path.relpath(path, TOP), os.path.relpath(drawings, TOP),
                                       time.monotonic() - begin))
    return 0


if __name__ == "__main__":
    sys.exit(main())
