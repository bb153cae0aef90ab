"""Tells what a run with INSTRUMENT=coverage has run of src: lines by file, and
the errors that were never raised.

Ends with 0 if 90 lines of 100 ran, and if each error of an ereport() was
raised but those of test/unreached, where each has its reason."""

import collections
import glob
import os
import re
import subprocess
import sys

from build import TOP, clean_environment

LEAST = 90.0
SRC = os.path.join(TOP, "src")
UNREACHED = os.path.join(TOP, "test", "unreached")


def run_lcov(*arguments):
    result = subprocess.run(["lcov", "--quiet", "--rc", "geninfo_auto_base=1", *arguments], text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=clean_environment())
    if result.returncode != 0:
        raise SystemExit(result.stdout)


def capture(tree, target):
    """Collects what the servers left beside the objects; the tree's sources are links."""
    sources = os.path.join(tree, "src")
    everything, info = os.path.join(target, "all.info"), os.path.join(target, "dgen.info")
    run_lcov("--capture", "--directory", sources, "--output-file", everything)
    run_lcov("--extract", everything, sources + "/*", "--output-file", info)
    os.unlink(everything)
    return info


def lines_of(info):
    """{file: {line: how often}}"""
    found = collections.defaultdict(dict)
    with open(info) as f:
        for text in f:
            if text.startswith("SF:"):
                name = os.path.basename(text[3:].strip())
            elif text.startswith("DA:"):
                line, count = text[3:].split(",")[:2]
                found[name][int(line)] = int(count)
    return found


def errors_of(path):
    """(line, message) of each ereport() that raises an error; elog() tells what
    cannot happen."""
    with open(path) as f:
        text = f.read()
    for report in re.finditer(r"\bereport\(\s*(ERROR|FATAL|elevel)\b", text):
        message = re.compile(r'errmsg(?:_plural|_internal)?\(\s*"((?:[^"\\]|\\.)*)"').search(text, report.end())
        end = text.find(";\n", report.end())
        if message and message.start() < end:
            yield text.count("\n", 0, report.start()) + 1, message.group(1)


def excused():
    """{(file, message)} of test/unreached."""
    found = set()
    if os.path.exists(UNREACHED):
        with open(UNREACHED) as f:
            for text in f:
                match = re.match(r"(\S+\.c): (.*)", text)
                if match:
                    found.add(match.groups())
    return found


def main():
    trees = glob.glob(os.path.join(TOP, "build", "pg*-coverage"))
    target = os.path.join(TOP, "build", "coverage")
    os.makedirs(target, exist_ok=True)
    lines = lines_of(capture(max(trees, key=os.path.getmtime), target))

    ran = total = 0
    for name in sorted(lines):
        counts = lines[name].values()
        hit = sum(1 for c in counts if c)
        ran, total = ran + hit, total + len(counts)
        print("%-24s %5d of %5d lines  %5.1f %%" % (name, hit, len(counts), 100.0 * hit / len(counts)))

    known, missed, errors = excused(), [], 0
    for name in sorted(lines):
        for line, message in errors_of(os.path.join(SRC, name)):
            errors += 1
            if not lines[name].get(line) and (name, message) not in known:
                missed.append((name, line, message))
    for name, line, message in missed:
        print('never raised: %s:%d "%s"' % (name, line, message))

    share = 100.0 * ran / total
    print("%d of %d lines of src ran: %.1f %%; %d of %d errors raised, %d excused"
          % (ran, total, share, errors - len(missed) - len(known), errors, len(known)))
    return 0 if share >= LEAST and not missed else 1


if __name__ == "__main__":
    sys.exit(main())
