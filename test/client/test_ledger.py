"""What make demo tells, told to a cluster of the tests."""

import os
import sys

import pytest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)),
                                "..", "..", "examples", "ledger"))

from ledger import Story  # noqa: E402


@pytest.mark.seconds(240)
def test_ledger(cluster):
    Story(cluster, transfers=60).run()
