"""What holds of dgen's tables in every snapshot: invariants.sql, run.

    assert violations(conn) == []

Reads only, and so also works on a standby.  Where extension amcheck is, the
indexes are checked against their tables, too."""

import os
import re

HERE = os.path.dirname(os.path.abspath(__file__))

# that each row has an entry in each index, and each entry its place
INDEXES = """
    SELECT count(bt_index_check(i.indexrelid, true))
    FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_am a ON a.oid = c.relam
    JOIN pg_class t ON t.oid = i.indrelid
    WHERE t.relnamespace = 'dgen'::regnamespace AND a.amname = 'btree' AND i.indisvalid"""


def load(path):
    """[(name, query)] of a file of that form."""
    with open(path) as f:
        parts = re.split(r"^-- name: (.*)$", f.read(), flags=re.M)
    return [(name.strip(), query.strip().rstrip(";"))
            for name, query in zip(parts[1::2], parts[2::2])]


INVARIANTS = load(os.path.join(HERE, "invariants.sql"))


def broken(conn, invariants):
    """[(name, row)] of those (name, query) that do not hold."""
    return [(name, row) for name, query in invariants for row in conn.execute(query).fetchall()]


def check_indexes(conn):
    """Raises if there is one that does not agree with its table."""
    if conn.execute("SELECT to_regprocedure('bt_index_check(regclass, boolean)')").fetchone()[0]:
        conn.execute(INDEXES)


def violations(conn, more=()):
    """What is broken, as text; more: further (name, query).  The indexes, too."""
    with conn.transaction():
        # one snapshot for all
        conn.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        found = broken(conn, [*INVARIANTS, *more])
    check_indexes(conn)
    return ["%s: %s" % f for f in found]
