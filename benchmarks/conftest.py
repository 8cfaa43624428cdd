"""Options, the session's results, and the table at the end; on CPUs. GPUs: benchmarks.gpu."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import pytest

from benchmarks import ceilings, compare, device, machine, measure, report
from benchmarks.rows import row as rows_
from benchmarks.store import Store

KEPT = "memory kept"


def thread_counts(text: str) -> list[int]:
    return [int(count) for count in text.split(",")]


def pytest_configure(config):
    config.option.showcapture = "no"  # torch.compile writes thousands of lines beside a failure


def pytest_generate_tests(metafunc):
    if "threads" in metafunc.fixturenames:
        metafunc.parametrize("threads", metafunc.config.getoption("--threads"))


def pytest_addoption(parser):
    group = parser.getgroup("rwm_fast")
    group.addoption("--full", action="store_true", help="every row and column")
    text = "with --full: whole networks without torch.compile, which takes minutes for each"
    group.addoption("--no-compile", action="store_true", help=text)
    text = "1 = process CPU time, more = wall time; 1,2 = every row with either"
    group.addoption("--threads", type=thread_counts, default=[1], help=text)
    group.addoption("--compare", metavar="REV", help="also our column of another git revision")
    group.addoption("--memory-kept", action="store_true", help="also ours with freed memory kept")
    group.addoption("--results", metavar="PATH", type=Path, help="write the results as JSON")
    text = "every row of every dtype once, small, on any CPU: a check, its times mean nothing"
    group.addoption("--once", action="store_true", help=text)


class Results:
    """Rows of one session, and the machine they were measured on."""

    def __init__(self, config):
        option = config.getoption
        self.full, self.once = option("--full"), option("--once")
        self.no_compile = option("--no-compile")
        self.store = Store()
        self.store.path = option("--results")
        self.devices = {n: device.Cpu(n) for n in option("--threads")}
        compared = {rev: compare.commit_of(rev) for rev in [option("--compare")] if rev}
        say = config.pluginmanager.get_plugin("terminalreporter").write_line
        trees = {rev: (compare.tree_of(commit, say), {}) for rev, commit in compared.items()}
        if option("--memory-kept"):
            trees[KEPT] = machine.package_folder(), machine.KEEP_MEMORY
        self.remotes = {name: compare.Remote(*how) for name, how in trees.items()}
        self.begin(compared)

    def begin(self, compared: dict[str, str]) -> None:
        facts, versions = machine.cpu(), machine.software()
        now = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
        run = {"started": now, "commit": machine.commit(machine.package_folder())}
        run |= {"device": facts, "software": versions, "compared": compared}
        self.store.begin({**versions, "name": facts["name"]}, run)

    def plan(self) -> measure.Plan:
        brief = {"seconds": 0.0, "least_rounds": 1, "most_rounds": 1} if self.once else {}
        return measure.Plan(full=self.full and not self.no_compile, **brief)

    def put(self, row, threads: int, result: dict) -> None:
        self.store.put(row.group, report.named(row.name, threads), result)

    def measure_ceilings(self) -> None:
        for threads, place in self.devices.items():
            for each in ceilings.ceilings(place, tiny=self.once):
                found = measure.rate_of(each, self.plan(), place)
                self.store.put("ceilings", report.named(each.name, threads), found)

    def close(self) -> None:
        for remote in self.remotes.values():
            remote.close()


_RESULTS = pytest.StashKey[Results]()


@pytest.fixture(scope="session")
def results(request):
    config = request.config
    with contextlib.ExitStack() as stack:
        if config.getoption("--once"):
            stack.enter_context(device.matrix_units())
            rows_.COMPILE = False  # it takes seconds a row
        try:
            config.stash[_RESULTS] = Results(config)
        except compare.CannotCompare as error:
            pytest.exit(str(error), returncode=pytest.ExitCode.USAGE_ERROR)
        yield config.stash[_RESULTS]
        config.stash[_RESULTS].close()


def pytest_terminal_summary(terminalreporter, config):
    results = config.stash.get(_RESULTS, None)
    if results is None or not results.store.data["parts"]:
        return
    results.measure_ceilings()
    found = report.checked(results.store.data)
    terminalreporter.section("rwm_fast against other ways to compute the same")
    terminalreporter.write_line(report.markdown(found))
