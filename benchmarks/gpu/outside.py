"""Parts that other programs do: the build, the tests, compute-sanitizer."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from benchmarks.gpu import tally
from benchmarks.gpu.supervise import run
from benchmarks.machine import ROOT
from benchmarks.store import Store

SHOWN = 40  # failures that are kept in words
TESTS = ("tests/gpu", "tests/ops")
# What a test file needs beyond pytest.
NEEDED = {"tests/ops/test_raw_layer.py": "hypothesis", "tests/ops/test_upfirdn2d.py": "hypothesis"}
TOOLS = ("memcheck", "racecheck", "synccheck", "initcheck")
MOST_DEATHS = 6


@dataclass
class Outside:
    """Where results and the log go."""

    store: Store
    folder: Path
    processes: int = 1

    @property
    def log(self) -> Path:
        return self.folder / "log.txt"

    # ---- build

    def build(self, capability: tuple[int, int], deadline: float) -> None:
        """`_cuda` in place, for this GPU. Always: a fresh machine has none, and ninja knows."""
        target = ".".join(map(str, capability)) + ("a" if capability == (9, 0) else "")
        command = [sys.executable, "setup.py", "build_ext", "--inplace"]
        switches = {"RWM_FAST_CUDA": "1", "RWM_FAST_CUDA_ARCHS": target}
        status, output, seconds = run(command, self.log, deadline, **switches)
        record = ROOT / "rwm_fast" / "_build_info.json"
        built = json.loads(record.read_text()) if status == 0 and record.exists() else {}
        found = {"status": status, "seconds": seconds, "target": target, "built": built}
        if status != 0:
            why = "the time was over" if status is None else f"status {status}"
            found |= {"failed": f"setup.py build_ext: {why}", "output": output[-4000:]}
        self.store.plan("build", ["build"])
        self.store.put("build", "build", found)

    # ---- tests

    def tests(self, deadline: float, wanted: tuple[str, ...] = TESTS, key: str = "cuda") -> None:
        """tests/gpu and the CUDA rows of tests/ops, in several processes; known ones are left out.

        Warnings are no errors here: a newer torch must not hide what the kernels compute.
        """
        known = self.folder / "tests.json"
        if not known.exists():
            known.write_text("{}")
        left_out = {
            path: f"the package {package} is not installed"
            for path, package in NEEDED.items()
            if importlib.util.find_spec(package) is None
        }
        command = [sys.executable, "-m", "pytest", *wanted, "-k", key, "-q", "--tb=line"]
        command += ["-W", "default", "-p", "no:cacheprovider", "-p", "benchmarks.gpu.tally"]
        command += ["--known", str(known.resolve()), *(f"--ignore={path}" for path in left_out)]
        shares = range(self.processes)
        with ThreadPoolExecutor(self.processes) as pool:
            done = list(pool.map(lambda i: self._share(command, i, deadline), shares))
        outcomes = json.loads(known.read_text())
        for i in shares:
            path = self._tally(i)
            outcomes |= tally.read(path)
            path.unlink(missing_ok=True)
        fresh = known.with_suffix(".new")
        fresh.write_text(json.dumps(outcomes, indent=0) + "\n")
        os.replace(fresh, known)
        self.store.plan("tests", ["tests"])
        self.store.put("tests", "tests", summary(outcomes, all(done), left_out))

    def _tally(self, share: int) -> Path:
        return (self.folder / f"tests-{share}.jsonl").resolve()

    def _share(self, command: list[str], share: int, deadline: float) -> bool:
        """Whether one process's tests all have an outcome."""
        log = self.folder / f"tests-{share}.log"
        more = ["--tally", str(self._tally(share)), "--share", f"{share}/{self.processes}"]
        for _ in range(MOST_DEATHS):
            status, output, _ = run([*command, *more], log, deadline, **PYTEST)
            with self.log.open("a") as sink:
                sink.write(output[-20_000:])
            log.unlink(missing_ok=True)
            if status in (0, 1, 5):  # passed, some failed, none left
                return True
            if status is None:  # the test it was at is not to blame
                self._forget_last(share)
                return False
            if status in (2, 3, 4):  # pytest itself could not go on
                return False
        return False

    def _forget_last(self, share: int) -> None:
        path = self._tally(share)
        lines = path.read_text().splitlines() if path.exists() else []
        if lines and lines[-1].endswith('"began"]'):
            path.write_text("\n".join(lines[:-1]) + "\n")

    # ---- compute-sanitizer

    def sanitizer(self, deadline: float, seconds: float = 70) -> None:
        """Every tool on every backend; a tool that is missing or refuses is a reason."""
        program = find_sanitizer()
        names = [(f"{tool} {backend}", tool, backend) for tool in TOOLS for backend in BACKENDS]
        self.store.plan("sanitizer", [name for name, *_ in names])
        for name, tool, backend in names:
            if self.store.has("sanitizer", name):
                continue
            if program is None:
                self.store.put("sanitizer", name, {"skipped": "there is no compute-sanitizer"})
                continue
            if deadline - time.time() < seconds:
                return  # the next run has the time
            command = [program, "--tool", tool, "--error-exitcode", "9", "--print-limit", "20"]
            command += [sys.executable, "-m", "benchmarks.gpu.checks", "--backend", backend]
            end = time.time() + seconds
            # every tensor an allocation of its own, so that a step over its end is seen
            status, output, took = run(command, self.log, end, PYTORCH_NO_CUDA_MEMORY_CACHING="1")
            self.store.put("sanitizer", name, {"took": took, **verdict(status, output)})


BACKENDS = ("native", "triton")
# Plugins of other packages are not loaded: they take seconds and could change what is tested.
PYTEST = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}


def find_sanitizer() -> str | None:
    places = ("compute-sanitizer", "/usr/local/cuda/bin/compute-sanitizer")
    return next(filter(None, map(shutil.which, places)), None)


def verdict(status: int | None, output: str) -> dict:
    """What the sanitizer's output says: clean, its errors, or why it did not run."""
    if "not supported" in output and "Device" in output:
        return {"skipped": "compute-sanitizer does not support this device here"}
    if status is None:
        return {"skipped": "it was not done in its share of the time"}
    found = re.findall(r"ERROR SUMMARY: (\d+) error|RACECHECK SUMMARY: (\d+) hazard", output)
    errors = sum(int(a or b) for a, b in found)
    ran = re.findall(r"(\d+) calls ran", output)
    if status == 0 and not errors and ran:
        return {"errors": 0, "calls": int(ran[-1])}
    lines = [line for line in output.splitlines() if line.startswith("=========")]
    return {"failed": f"{errors} errors, status {status}", "output": "\n".join(lines)[:4000]}


def summary(outcomes: dict[str, str], complete: bool, left_out: dict[str, str]) -> dict:
    """Counts, the failures in words, and why tests were skipped."""
    failures = {name: o for name, o in outcomes.items() if o.startswith("failed")}
    skipped = Counter(o for o in outcomes.values() if o.startswith("skipped"))
    return {
        "passed": sum(o == "passed" for o in outcomes.values()),
        "failed_tests": len(failures),
        "complete": complete,
        "skipped_tests": dict(skipped.most_common(30)),
        "left_out": left_out,
        "failures": dict(list(failures.items())[:SHOWN]),
    }
