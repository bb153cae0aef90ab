"""doc/operations.md: its SQL runs, in several sessions.

As in test_docs.py, with two things more: `-- session: name` (or name@database) on a line of its
own says who runs what follows, and `--~ value` is what a statement returns soon.  Sessions
other than dba end with their section."""

import os
import re

import psycopg

from build import TOP
from cluster import wait_for
from test_docs import run, statements, text_of

OPERATIONS = os.path.join(TOP, "doc", "operations.md")


def blocks():
    """[(section, line, session or None, text)], cut where sessions change."""
    found = []
    section, line, inside, session, text, begin = "", 0, False, None, "", 0
    for line, row in enumerate(text_of(OPERATIONS).split("\n"), 1):
        if not inside and row.startswith("#"):
            section = row
        elif row == "```sql":
            inside, session, text, begin = True, None, "", line + 1
        elif inside and (row == "```" or row.startswith("-- session: ")):
            found.append((section, begin, session, text))
            inside = row != "```"
            session, text, begin = row[len("-- session: "):], "", line + 1
        elif inside:
            text += row.replace("--~", "--> ~") + "\n"
    return found


class Sessions:
    def __init__(self, cluster):
        self.cluster = cluster
        self.open = {}

    def get(self, name):
        if name not in self.open:
            self.open[name] = self.cluster.connect(dbname=name.partition("@")[2] or "shop")
        return self.open[name]

    def end(self):
        for conn in self.open.values():
            conn.close()
        self.open = {}


def check(conn, statement, variables):
    """NULL, or what is wrong."""
    def once():
        return run(conn, statement, variables)

    rows = statement.rows
    if rows and rows[0].startswith("~"):
        wanted = [row[1:].strip() for row in rows]
        try:
            wait_for(lambda: once()[1] == wanted, 30)
        except AssertionError:
            return "returned %r, should be %r" % (once()[1], wanted)
        return None
    error, result = once()
    if error != statement.error:
        return "raised %s, should be %s: %s" % (error, statement.error, result)
    if error is None and rows and result != rows:
        return "returned %r, should be %r" % (result, rows)
    return None


def test_incidents(cluster):
    cluster.psql("CREATE DATABASE shop")
    sessions, variables, section, name, done = Sessions(cluster), {}, None, "dba", 0
    for heading, line, session, text in blocks():
        if heading != section:
            sessions.end()
            section, name = heading, "dba"
        name = session or name
        for statement in statements(text, line):
            wrong = check(sessions.get(name), statement, variables)
            assert wrong is None, "line %d (%s): %s\n  %s" % (statement.line, name, statement.text, wrong)
            done += 1
    sessions.end()
    assert done > 60
