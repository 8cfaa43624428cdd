"""Options, the session's results, and the table at the end; on CPUs. GPUs: benchmarks.gpu."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import compare, machine, report
from benchmarks.measure import Plan
from benchmarks.timing import CPU, WALL

KEPT = "memory kept"


def thread_counts(text: str) -> list[int]:
    return [int(count) for count in text.split(",")]


def pytest_generate_tests(metafunc):
    if "threads" in metafunc.fixturenames:
        metafunc.parametrize("threads", metafunc.config.getoption("--threads"))


def pytest_addoption(parser):
    group = parser.getgroup("rwm_fast")
    group.addoption("--full", action="store_true", help="every row and column")
    text = "1 = process CPU time, more = wall time; 1,2 = every row with either"
    group.addoption("--threads", type=thread_counts, default=[1], help=text)
    group.addoption("--compare", metavar="REV", help="also our column of another git revision")
    group.addoption("--memory-kept", action="store_true", help="also ours with freed memory kept")
    group.addoption("--results", metavar="PATH", help="write the results as JSON")


class Results:
    """Rows of one session, and the machine they were measured on."""

    def __init__(self, config):
        self.full, self.threads = config.getoption("--full"), config.getoption("--threads")
        self.evict = machine.Evict()
        self.rows: list[dict] = []
        self.compared: dict[str, str] = {}  # name of the column, commit
        self.remotes = dict(self._remotes(config))

    def _remotes(self, config):
        """Columns of other processes by name."""
        revision = config.getoption("--compare")
        if revision:
            self.compared[revision] = compare.commit_of(revision)
            say = config.pluginmanager.get_plugin("terminalreporter").write_line
            yield revision, compare.Remote(compare.tree_of(self.compared[revision], say), {})
        if config.getoption("--memory-kept"):
            yield KEPT, compare.Remote(machine.package_folder(), machine.KEEP_MEMORY)

    def plan(self, threads: int) -> Plan:
        return Plan(full=self.full, threads=threads)

    def as_dict(self) -> dict:
        measured = lambda n: machine.ceilings(self.evict, n, CPU if n == 1 else WALL)
        first, *others = self.threads
        return {
            "version": 1,
            **machine.facts(),
            "ceilings": measured(first),
            "ceilings_by_threads": {str(n): measured(n) for n in others},
            "compared": self.compared,
            "rows": self.rows,
        }


_RESULTS = pytest.StashKey[Results]()


@pytest.fixture(scope="session")
def results(request):
    config = request.config
    try:
        config.stash[_RESULTS] = Results(config)
    except compare.CannotCompare as error:
        pytest.exit(str(error), returncode=pytest.ExitCode.USAGE_ERROR)
    yield config.stash[_RESULTS]
    for remote in config.stash[_RESULTS].remotes.values():
        remote.close()


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
