"""Fixtures of the operator tests, and the count of what really ran."""

import pytest
import torch
from grid import report

from rwm_fast import use_backend


@pytest.fixture(autouse=True)
def poison():
    """Every fresh buffer is full of NaN: an output that nobody wrote cannot pass by luck."""
    before = torch.are_deterministic_algorithms_enabled()
    filled = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(before)
    torch.utils.deterministic.fill_uninitialized_memory = filled


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
