"""A pytest plugin: keeps the outcome of every test at once, and leaves out those that are known.

`-p benchmarks.gpu.tally --tally FILE --known FILE --share i/n`. A GPU that answers no more fails
every later test of its process: the process ends then, and another goes on after that test.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import zlib
from pathlib import Path

import pytest

BROKEN = 75
# one at a time: these take much of the GPU's memory
LARGE = ("test_beyond", "test_sizes_people_use")
NEEDS = {"test_opcheck": "expecttest"}  # packages that torch itself wants for a check


def pytest_addoption(parser):
    group = parser.getgroup("rwm_fast")
    group.addoption("--tally", type=Path, required=True, help="where outcomes are appended")
    group.addoption("--known", type=Path, required=True, help="outcomes of earlier runs")
    group.addoption("--share", default="0/1", help="which part of the tests")


def read(path: Path) -> dict[str, str]:
    """Outcomes by test. A test that began and has no outcome took its process with it."""
    found: dict[str, str] = {}
    lines = path.read_text().splitlines() if path.exists() else []
    for line in lines:
        try:
            name, outcome = json.loads(line)
        except ValueError:  # the process died while it wrote
            continue
        found[name] = outcome
    return {n: "failed: the process died in it" if o == "began" else o for n, o in found.items()}


def share_of(nodeid: str, count: int) -> int:
    """Which of `count` processes runs a test."""
    if any(f"::{name}" in nodeid for name in LARGE):
        return 0
    return zlib.crc32(nodeid.encode()) % count


def pytest_collection_modifyitems(config, items):
    known = json.loads(config.getoption("--known").read_text())
    known |= read(config.getoption("--tally"))
    index, count = map(int, config.getoption("--share").split("/"))
    wanted, rest = [], []
    for item in items:
        mine = share_of(item.nodeid, count) == index
        (wanted if mine and item.nodeid not in known else rest).append(item)
    config.hook.pytest_deselected(items=rest)
    items[:] = wanted


def pytest_runtest_setup(item):
    for test, package in NEEDS.items():
        if item.originalname == test and importlib.util.find_spec(package) is None:
            pytest.skip(f"the package {package} is not installed")


class Tally:
    """Appends a line when a test begins and one when it has an outcome."""

    def __init__(self, path: Path):
        self.sink = path.open("a")
        self.outcome = ""

    def tell(self, name: str, outcome: str) -> None:
        self.sink.write(json.dumps([name, outcome]) + "\n")
        self.sink.flush()

    def pytest_runtest_logstart(self, nodeid):
        self.outcome = "passed"
        self.tell(nodeid, "began")

    def pytest_runtest_logreport(self, report):
        if report.failed and not self.outcome.startswith("failed"):
            crash = getattr(report.longrepr, "reprcrash", None)
            self.outcome = f"failed: {crash.message if crash else report.longreprtext}"[:600]
        elif report.skipped and self.outcome == "passed":
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else ""
            self.outcome = f"skipped: {reason.removeprefix('Skipped: ')}"[:200]

    def pytest_runtest_logfinish(self, nodeid):
        self.tell(nodeid, self.outcome)
        if self.outcome.startswith("failed") and not _alive():
            os._exit(BROKEN)


def _alive() -> bool:
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return True
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return False
    return True


def pytest_configure(config):
    config.pluginmanager.register(Tally(config.getoption("--tally")))
