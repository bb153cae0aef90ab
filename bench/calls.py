"""Calls: throughput, latency, and neighbours."""

import time

from harness import SECONDS, percentile

INCREMENT = "SELECT dgen.call('counter/1', '\"increment\"');\n"
BY_HAND = ("UPDATE by_hand SET state = (counter.handle_call('\"increment\"', state)).state "
           "WHERE id = 1 RETURNING state;\n")


def calls_by_pgbench(b, script, **how):
    load = b.pgbench(script, **how)
    b.expect("counter", load.count)
    b.check_sums()
    return load


def updates_by_pgbench(b, script, **how):
    load = b.pgbench(script, **how)
    b.by_hand += load.count
    b.check_sums()
    return load


def hot(b, clients, **bounds):
    calls_by_pgbench(b, INCREMENT, clients=clients, transactions=20 * clients)
    updates_by_pgbench(b, BY_HAND, clients=clients, transactions=20 * clients)
    b.versus("calls to one server, %d clients" % clients, "1/s",
             lambda: calls_by_pgbench(b, INCREMENT, clients=clients).tps,
             lambda: updates_by_pgbench(b, BY_HAND, clients=clients).tps,
             baseline_is="UPDATE of one row through the same handler", **bounds)


def calls_hot_64(b):
    """calls to one hot server, 64 clients"""
    hot(b, 64, goal=("min", 12), floor=("min", 10))


def calls_hot_8(b):
    """calls to one hot server, 8 clients"""
    hot(b, 8, goal=("min", 3.5), floor=("min", 3))


def call_latency_1(b):
    """one client, one server: latency"""
    calls_by_pgbench(b, INCREMENT, transactions=200)
    updates_by_pgbench(b, BY_HAND, transactions=200)
    b.versus("latency of a call, 1 client", "ms",
             lambda: calls_by_pgbench(b, INCREMENT).latency,
             lambda: updates_by_pgbench(b, BY_HAND).latency,
             baseline_is="UPDATE of one row through the same handler",
             goal=("max", 1.5), floor=("max", 1.8))


def calls_spread_64(b):
    """calls spread over 10,000 servers, 64 clients"""
    calls = ("\\set id random(1, 10000)\n"
             "SELECT dgen.call('counter/' || :id::text, '\"increment\"');\n")
    updates = ("\\set id random(1, 10000)\n"
               "UPDATE by_hand SET state = (counter.handle_call('\"increment\"', state)).state "
               "WHERE id = :id RETURNING state;\n")
    b.fill(10000, 10000)
    b.wait_idle()
    calls_by_pgbench(b, calls, clients=64, transactions=64 * 20)
    updates_by_pgbench(b, updates, clients=64, transactions=64 * 20)
    b.versus("calls to 10,000 servers, 64 clients", "1/s",
             lambda: calls_by_pgbench(b, calls, clients=64).tps,
             lambda: updates_by_pgbench(b, updates, clients=64).tps,
             baseline_is="UPDATE of a random row of 10,000 through the same handler",
             goal=("min", 1.0))


def slow_module(b):
    """a counter's calls while another module's handlers take 1 s each"""
    counters = ("\\set id random(1, 100)\n"
                "SELECT dgen.call('counter/' || :id::text, '\"increment\"');\n")
    slow = "SELECT dgen.call('slow/' || :client_id::text, '1', timeout => '1 min');\n"
    b.fill(100, 100)
    b.wait_idle()

    def alone():
        load = calls_by_pgbench(b, counters, clients=8, latencies=True)
        return percentile(load.latencies, 99)

    def beside():
        others = b.start_pgbench(slow, clients=8, seconds=SECONDS + 3)
        try:
            time.sleep(2)                   # until all workers have work
            load = b.pgbench(counters, clients=8, latencies=True)
        finally:
            done = others.finish()
        b.expect("counter", load.count)
        b.expect("slow", done.count)
        b.check_sums()
        return percentile(load.latencies, 99)

    alone()
    b.versus("p99 of calls, 8 clients, beside a slow module", "ms", beside, alone,
             baseline_is="the same calls alone", goal=("max", 2))


ROWS = [calls_hot_64, calls_hot_8, call_latency_1, calls_spread_64, slow_module]
