"""The examples do what their comments say: `-->` and `--!` as in the documentation."""

import glob
import os

import pytest

from build import TOP
from test_docs import run_script

SCRIPTS = sorted(glob.glob(os.path.join(TOP, "examples", "*", "*.sql")))
# told elsewhere, by a test of its own
OTHERS = ("ledger.sql",)


@pytest.mark.parametrize("path", [p for p in SCRIPTS if os.path.basename(p) not in OTHERS],
                         ids=os.path.basename)
def test_script(cluster, path):
    assert run_script(cluster, path) > 3
