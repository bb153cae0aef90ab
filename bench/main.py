"""Runs the rows, prints the table and keeps it; see bench/run."""

import csv
import fnmatch
import math
import os
import signal
import statistics
import sys
import time
import traceback

from harness import HERE, Bench, load_average, machine
from build import Build, BuildError

import calls
import follow
import mailbox
import scale
import snapshots
import state
import timers

ROWS = calls.ROWS + follow.ROWS + mailbox.ROWS + snapshots.ROWS + state.ROWS + timers.ROWS + scale.ROWS

COLUMNS = ["row", "what", "unit", "dgen", "baseline", "ratio", "ratio_min", "ratio_max", "goal",
           "floor", "judged", "reached", "baseline_is", "dgen_runs", "baseline_runs"]


def chosen(patterns):
    rows = [row for row in ROWS
            if not patterns or any(fnmatch.fnmatch(row.__name__, p) for p in patterns)]
    for p in patterns:
        if not any(fnmatch.fnmatch(row.__name__, p) for row in ROWS):
            raise SystemExit("no such row: %s; bench/run --list shows them" % p)
    return rows


def number(x):
    """Three digits that count."""
    if x is None or math.isnan(x):
        return ""
    if x == int(x) and abs(x) < 1e6 or abs(x) >= 1000:
        return "%d" % round(x)
    return "%.3g" % x


def median(values):
    return statistics.median(values) if values else None


def bound(pair):
    return "%s %g" % ("at least" if pair[0] == "min" else "at most", pair[1]) if pair else ""


def record(name, figure):
    return {
        "row": name, "what": figure.what, "unit": figure.unit,
        "dgen": number(median(figure.ours)), "baseline": number(median(figure.baseline)),
        "ratio": number(median(figure.ratios)),
        "ratio_min": number(min(figure.ratios, default=None)),
        "ratio_max": number(max(figure.ratios, default=None)),
        "goal": bound(figure.goal), "floor": bound(figure.floor),
        "judged": (figure.judge if figure.goal else "").replace("ours", "dgen"),
        "reached": figure.verdict(), "baseline_is": figure.baseline_is,
        "dgen_runs": " ".join(map(number, figure.ours)),
        "baseline_runs": " ".join(map(number, figure.baseline)),
    }


LINE = "%-22s %-56s %10s %10s %7s %13s  %-14s %s"


def print_record(r):
    spread = "%s-%s" % (r["ratio_min"], r["ratio_max"]) if r["ratio"] else ""
    print(LINE % (r["row"], r["what"] + (", " + r["unit"] if r["unit"] else ""), r["dgen"],
                  r["baseline"], r["ratio"], spread, r["goal"], r["reached"]), flush=True)


def write_csv(path, about, records):
    with open(path, "w", newline="") as f:
        for what, value in about:
            f.write("# %s: %s\n" % (what, value))
        writer = csv.DictWriter(f, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(records)


def run_row(build, row):
    """Its records, and what went wrong."""
    with Bench(build, row.__name__) as b:
        row(b)
    return [record(row.__name__, figure) for figure in b.figures]


def main():
    patterns = sys.argv[1:]
    if "--list" in patterns:
        for row in ROWS:
            print("%-24s %s" % (row.__name__, row.__doc__))
        return 0
    rows = chosen(patterns)

    def stop(signum, frame):
        raise SystemExit(128 + signum)
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGHUP, stop)

    try:
        build = Build.current()
    except BuildError as e:
        print(e, file=sys.stderr)
        return 1
    about = machine(build)
    for what, value in about:
        print("%-12s %s" % (what, value))
    print()
    print(LINE % ("row", "what", "dgen", "baseline", "ratio", "of runs", "goal", "reached"))

    records, failed, begin = [], [], time.monotonic()
    for row in rows:
        try:
            for r in run_row(build, row):
                records.append(r)
                print_record(r)
        except Exception as e:
            failed.append(row.__name__)
            print("%-22s FAILED: %s: %s" % (row.__name__, type(e).__name__, e), flush=True)
            if not isinstance(e, AssertionError):
                traceback.print_exc()
    about.append(("load after", load_average()))
    about.append(("failed", ", ".join(failed) or "none"))

    results = os.path.join(HERE, "results")
    os.makedirs(results, exist_ok=True)
    paths = [os.path.join(results, time.strftime("%Y%m%d-%H%M%S.csv"))]
    if os.environ.get("KEEP_RESULTS"):
        if failed or patterns:
            print("\nbench/results.csv is only written by a whole run without failures")
        else:
            paths.append(os.path.join(HERE, "results.csv"))
    for path in paths:
        write_csv(path, about, records)
    print("\nload after   %s" % load_average())
    print("kept in %s" % " and ".join(os.path.relpath(p, os.path.dirname(HERE)) for p in paths))
    missed = [r for r in records if r["reached"] not in ("", "yes")]
    print("%d rows in %d s, %d goals missed, %d rows failed"
          % (len(rows), time.monotonic() - begin, len(missed), len(failed)))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
