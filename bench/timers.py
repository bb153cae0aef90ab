"""Timers: how late they are, many at once, and what an idle timeout costs."""

import time

from harness import SECONDS, percentile, scaled

MODULES = """
CREATE SCHEMA IF NOT EXISTS alarm;
CREATE TABLE IF NOT EXISTS alarm.late (ms double precision);
CREATE OR REPLACE FUNCTION alarm.handle_info(message jsonb, INOUT state jsonb) LANGUAGE sql AS $$
  INSERT INTO alarm.late SELECT extract(epoch FROM clock_timestamp() - (message #>> '{}')::timestamptz) * 1000;
  SELECT state $$;
CREATE OR REPLACE FUNCTION alarm.handle_cast(message jsonb, INOUT state jsonb) LANGUAGE sql AS $$
  SELECT to_jsonb(coalesce((state ->> 'n')::int, 0) + 1) $$;
CREATE SCHEMA IF NOT EXISTS bulk;
CREATE OR REPLACE FUNCTION bulk.handle_info(message jsonb, INOUT state jsonb) LANGUAGE sql AS $$
  SELECT state $$;
CREATE SCHEMA IF NOT EXISTS plainly;
CREATE OR REPLACE FUNCTION plainly.init(args jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT '0'::jsonb $$;
CREATE OR REPLACE FUNCTION plainly.handle_cast(message jsonb, INOUT state jsonb, OUT timeout interval) LANGUAGE plpgsql AS $$
BEGIN state := to_jsonb(state::int + 1); timeout := NULL; END $$;
CREATE SCHEMA IF NOT EXISTS idly;
CREATE OR REPLACE FUNCTION idly.init(args jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT '0'::jsonb $$;
CREATE OR REPLACE FUNCTION idly.handle_cast(message jsonb, INOUT state jsonb, OUT timeout interval) LANGUAGE plpgsql AS $$
BEGIN state := to_jsonb(state::int + 1); timeout := '1 hour'; END $$;
SELECT dgen.create_module(m, max_mailbox => 10000000) FROM unnest('{alarm,bulk,plainly,idly}'::text[]) m;
"""


def make_modules(b):
    b.super.execute(MODULES)


def pending(b, number):
    """So many timers that are due in an hour or later."""
    for first in range(1, number + 1, 50_000):
        b.value("SELECT count(dgen.send_after('bulk/' || i %% 100000, '1', make_interval(secs => 3600 + i * 0.01)))"
              " FROM generate_series(%s, %s) i", first, min(first + 49_999, number))
    b.vacuum()


def lateness(b, number, seconds):
    """The p99 of how many ms a timer's handler is late, of timers that come due one by one."""
    b.super.execute("DELETE FROM alarm.late")
    b.value("SELECT count(dgen.send_at('alarm/' || i %% 100, to_jsonb(at::text), at)) FROM generate_series(1, %s) i,"
          " LATERAL (SELECT clock_timestamp() + make_interval(secs => 2 + i * %s::float8 / %s) AS at) t",
          number, float(seconds), number)
    end = time.monotonic() + 60
    while b.value("SELECT count(*) FROM alarm.late") < number and time.monotonic() < end:
        time.sleep(0.2)
    b.check("timers handled", b.value("SELECT count(*) FROM alarm.late"), number)
    return b.value("SELECT percentile_cont(0.99) WITHIN GROUP (ORDER BY ms) FROM alarm.late")


def timers_late(b):
    """how late timers are with 1,000,000 others pending"""
    make_modules(b)
    number = scaled(1_000_000)
    pending(b, number)
    b.figure("p99 lateness, %d pending" % number, "ms",
             [lateness(b, 1000, SECONDS) for _ in range(3)], goal=("max", 50), judge="ours")
    b.value("SELECT dgen.drop_module('bulk', true)")


def timers_burst(b):
    """100,000 timers due within one second, while calls go on"""
    make_modules(b)
    number = scaled(100_000, 1000)
    calls = ("\\set id random(1, 1000)\nSELECT dgen.call('counter/' || :id::text, '\"increment\"');\n")

    def p99(burst):
        if burst:
            b.value("SELECT count(dgen.send_after('bulk/' || i % 1000, '1', make_interval(secs => 2 + i * 1.0 / {0})))"
                  " FROM generate_series(1, {0}) i".format(number))
        load = b.pgbench(calls, clients=4, seconds=max(SECONDS, 5), latencies=True)
        b.expect("counter", load.count)
        b.wait_idle()
        return percentile(load.latencies, 99)

    b.versus("p99 of calls by 4 clients, with %d timers coming due" % number, "ms",
             lambda: p99(True), lambda: p99(False), baseline_is="no timers")


def timeout_again(b):
    """casts that set an idle timeout again"""
    make_modules(b)
    number = scaled(50_000, 1000)

    def drained(module):
        b.value("SELECT dgen.suspend(module => %s)", module)
        b.value("SELECT count(dgen.cast('%s/' || i %% 100, '1')) FROM generate_series(1, %d) i" % (module, number))
        start = time.perf_counter()
        b.value("SELECT dgen.resume(module => %s)", module)
        b.wait_idle()
        return time.perf_counter() - start

    drained("plainly"), drained("idly")
    b.vacuum()
    b.versus("%d casts to 100 servers, each sets the timeout" % number, "s",
             lambda: drained("idly"), lambda: drained("plainly"),
             baseline_is="casts that set none", goal=("max", 1.3))
    b.value("SELECT dgen.drop_module('idly', true)")


ROWS = [timers_late, timers_burst, timeout_again]
