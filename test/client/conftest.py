"""What the client tests share: fixtures, a time limit for each test, and the
servers' logs in the report of a failed one."""

import faulthandler
import os
import signal
import sys

import pytest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))

from cluster import Cluster  # noqa: E402

TIME_LIMIT = 120


def pytest_configure(config):
    config.addinivalue_line("markers", "long: takes minutes; run by make check-long only")
    config.addinivalue_line("markers", "clients: wants other languages; run by make check-clients only")
    config.addinivalue_line("markers", "seconds(n): time limit of the test, default %d" % TIME_LIMIT)


@pytest.fixture
def cluster():
    """A running cluster with dgen preloaded, without the extension.  In the
    end it must stop, and its log must not tell of a crash."""
    with Cluster() as c:
        yield c


@pytest.fixture(scope="module")
def shared_cluster():
    """The same, one for all tests of a file, with CREATE EXTENSION dgen done."""
    with Cluster() as c:
        c.psql("CREATE EXTENSION dgen")
        yield c


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_protocol(item):
    marker = item.get_closest_marker("seconds")
    limit = marker.args[0] if marker else 7200 if item.get_closest_marker("long") else TIME_LIMIT

    def too_late(signum, frame):
        raise TimeoutError("%s took more than %d s" % (item.name, limit))

    before = signal.signal(signal.SIGALRM, too_late)
    signal.alarm(int(limit))
    # a test that is stuck where python cannot raise
    faulthandler.dump_traceback_later(limit + 30, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    outcome = yield
    report = outcome.get_result()
    if report.failed:
        for c in Cluster.instances:
            report.sections.append(("log of %s" % c.name, c.log_tail()))
