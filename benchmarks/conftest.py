"""Options, the session's results, and the table at the end; on CPUs. GPUs: benchmarks.gpu."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import machine, report
from benchmarks.measure import Plan
from benchmarks.timing import CPU, WALL


def pytest_addoption(parser):
    group = parser.getgroup("rwm_fast")
    group.addoption("--full", action="store_true", help="every row and column")
    group.addoption("--threads", type=int, default=1, help="1 = process CPU time, more = wall time")
    group.addoption("--results", metavar="PATH", help="write the results as JSON")


class Results:
    """Rows of one session, and the machine they were measured on."""

    def __init__(self, config):
        self.plan = Plan(full=config.getoption("--full"), threads=config.getoption("--threads"))
        self.evict = machine.Evict()
        self.rows: list[dict] = []

    def as_dict(self) -> dict:
        clock = CPU if self.plan.threads == 1 else WALL
        ceilings = machine.ceilings(self.evict, self.plan.threads, clock)
        return {"version": 1, **machine.facts(), "ceilings": ceilings, "rows": self.rows}


_RESULTS = pytest.StashKey[Results]()


@pytest.fixture(scope="session")
def results(request) -> Results:
    stash = request.config.stash
    stash[_RESULTS] = Results(request.config)
    return stash[_RESULTS]


def pytest_terminal_summary(terminalreporter, config):
    results = config.stash.get(_RESULTS, None)
    if results is None or not results.rows:
        return
    found = report.checked(results.as_dict())
    path = config.getoption("--results")
    if path:
        Path(path).write_text(json.dumps(found, indent=1) + "\n")
    terminalreporter.section("rwm_fast against other ways to compute the same")
    terminalreporter.write_line(report.markdown(found))
