"""The examples do what their comments say: `-->` and `--!` as in the documentation."""

import glob
import mailbox
import os
import subprocess
import sys

import pytest

from build import TOP, clean_environment
from test_docs import run_script

SCRIPTS = sorted(glob.glob(os.path.join(TOP, "examples", "*", "*.sql")))
# told elsewhere, by a test of its own
OTHERS = ("ledger.sql", "order.sql", "story.sql")


@pytest.mark.parametrize("path", [p for p in SCRIPTS if os.path.basename(p) not in OTHERS],
                         ids=os.path.basename)
def test_script(cluster, path):
    assert run_script(cluster, path) > 3


def test_order(cluster, tmp_path):
    """A state machine, and the program outside that sends its mail."""
    here = os.path.join(TOP, "examples", "order")
    run_script(cluster, os.path.join(here, "order.sql"))
    info = cluster.conninfo()
    env = dict(clean_environment(), PGHOST=info["host"], PGPORT=str(info["port"]),
               PGUSER=info["user"], PGDATABASE=info["dbname"])
    mailer = subprocess.Popen([sys.executable, "-B", os.path.join(here, "mailer.py"), str(tmp_path / "mail")],
                              env=env)
    try:
        assert run_script(cluster, os.path.join(here, "story.sql")) > 10
    finally:
        mailer.kill()
        mailer.wait()
    assert sorted((mail["To"], mail["Subject"]) for mail in mailbox.Maildir(tmp_path / "mail")) == [
        ("ada@example.org", "Order 1 is paid"), ("ada@example.org", "Order 1 is shipped"),
        ("bob@example.org", "Order 2 is cancelled")]
