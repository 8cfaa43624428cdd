"""Starts workers, and starts another where one dies: a crash costs one column, not the run."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.machine import ROOT
from benchmarks.store import Store

MOST_DEATHS = 8  # of workers in one part of one run
STALL = 150  # seconds without a word after which a worker hangs: a compilation takes up to 60
GRACE = 10  # seconds past its time in which a worker may finish what it is at


def environment(**more: str) -> dict[str, str]:
    """For processes that must import what this one imports."""
    path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
    return {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", **more}


# A group of its own, so that it can be ended with all it started, and where possible no session of
# its own: then it also ends with the terminal or job that this process belongs to.
APART = {"process_group": 0} if sys.version_info >= (3, 11) else {"start_new_session": True}


def stop(process: subprocess.Popen) -> None:
    """End a process and what it started; it leads a group."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def run(
    command: Sequence[str], log: Path, deadline: float, **more: str
) -> tuple[int | None, str, float]:
    """(exit status or None when the time was over, the end of the output, seconds)."""
    start = time.time()
    with log.open("ab+") as sink:
        sink.write(f"\n$ {' '.join(map(str, command))}\n".encode())
        sink.flush()
        begin = sink.tell()
        process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=sink, stderr=subprocess.STDOUT,
            env=environment(**more), **APART,
        )  # fmt: skip
        try:
            status = process.wait(max(0.1, deadline - time.time()))
        except subprocess.TimeoutExpired:
            status = None
        finally:
            stop(process)
    with log.open("rb") as source:
        source.seek(begin)
        output = source.read().decode(errors="replace")
    return status, output[-200_000:], round(time.time() - start, 1)


@dataclass
class Crew:
    """Workers that share the rows of some parts, each with a file of its own."""

    store: Store
    log: Path
    arguments: list[str] = field(default_factory=list)  # for every worker
    stall: float = STALL
    grace: float = GRACE

    def work(self, parts: Sequence[str], deadline: float, size: int = 1) -> None:
        """Work the parts off until they are finished or the time is over."""
        if size == 1:
            return self._keep_working(self.store, parts, deadline, "0/1")
        paths = [self.store.path.with_name(f"share-{i}.json") for i in range(size)]
        for path in paths:  # what is finished is in the main file: start from a copy
            path.write_text(self.store.path.read_text())
        with ThreadPoolExecutor(size) as pool:
            jobs = [
                pool.submit(self._keep_working, Store(path), parts, deadline, f"{i}/{size}")
                for i, path in enumerate(paths)
            ]
        for path in paths:
            self.store.take(path)
        for job in jobs:
            job.result()

    def _keep_working(
        self, store: Store, parts: Sequence[str], deadline: float, share: str
    ) -> None:
        for _ in range(MOST_DEATHS):
            reason = self._one(store.path, parts, deadline, share)
            store.data = Store(store.path).data
            if reason is None or (reason == "time" and store.data["running"] is None):
                return
            if reason == "time":  # not its fault: the next run does this row
                store.data["running"] = None
                store.save()
                return
            print(f"{store.blame(reason)}: {reason}", flush=True)

    def _one(self, path: Path, parts: Sequence[str], deadline: float, share: str) -> str | None:
        """None if a worker ended well, "time", or what became of it."""
        command = [sys.executable, "-m", "benchmarks.worker", "--store", str(path)]
        command += ["--parts", ",".join(parts), "--deadline", str(deadline), "--share", share]
        command += ["--parent", str(os.getpid())]
        with self.log.open("ab") as sink:
            process = subprocess.Popen(
                [*command, *self.arguments], cwd=ROOT, stdin=subprocess.DEVNULL, stdout=sink,
                stderr=subprocess.STDOUT, env=environment(), **APART,
            )  # fmt: skip
            try:
                return self._watch(process, path, deadline)
            finally:
                stop(process)

    def _watch(self, process: subprocess.Popen, path: Path, deadline: float) -> str | None:
        started = time.time()
        while process.poll() is None:
            time.sleep(0.05)
            if time.time() > deadline + self.grace:
                return "time"
            told = max(started, path.stat().st_mtime if path.exists() else 0)
            if time.time() - told > self.stall:
                return f"it hung: no word for {self.stall:.0f} s"
        if process.returncode == 0:
            return None
        if process.returncode < 0:
            return f"it died of {signal.Signals(-process.returncode).name}"
        return f"it ended with status {process.returncode}"
