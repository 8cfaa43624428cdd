"""Fixtures of the operator tests, and the count of what really ran."""

import pytest
from grid import report

from rwm_fast import use_backend
from rwm_fast.testing.memory import poisoned


@pytest.fixture(autouse=True)
def poison():
    """Every fresh buffer is full of NaN: an output that nobody wrote cannot pass by luck."""
    with poisoned():
        yield


@pytest.fixture(autouse=True)
def auto_backend():
    """No request left over from another test."""
    with use_backend("auto"):
        yield


def pytest_terminal_summary(terminalreporter):
    lines = report()
    if lines:
        terminalreporter.section("operators × backends × devices")
        for line in lines:
            terminalreporter.write_line(line)
