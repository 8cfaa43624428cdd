"""The process that measures; `python -m benchmarks.gpu` starts it, and another if it dies.

It works off the rows of its parts in order, writes each to the store when it is finished, and ends
when the time is over. It asks for no row that the store has.
"""

from __future__ import annotations

import argparse
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.gpu import bare, checks, rows
from benchmarks.gpu.device import Cpu, Cuda, device, search, tf32
from benchmarks.gpu.measure import Broken, Plan, measure, sentence
from benchmarks.gpu.store import Store
from benchmarks.timing import spread

BROKEN = 75  # exit status: the device answers no more in this process


@dataclass
class Task:
    """A row still to be done, and about how many seconds it takes on a GPU."""

    name: str
    run: Callable[[], dict]
    seconds: float


@dataclass
class Worker:
    """Where results go, what is measured on, until when, and which rows."""

    store: Store
    device: Cuda | Cpu
    deadline: float
    tiny: bool = False
    only: str = ""
    share: tuple[int, int] = (0, 1)  # every so-manieth row, from this one on
    now: Callable[[], float] = time.time
    plan: Plan = Plan()
    compiled: bool = True

    def tasks(self, part: str) -> Iterator[Task]:
        makers = {
            "check": self._checks,
            "ceilings": self._ceilings,
            "operators": partial(self._rows, part),
            "layers": partial(self._rows, part),
            "networks": self._networks,
        }
        yield from makers[part]()

    def _checks(self) -> Iterator[Task]:
        for name, *what in checks.checks(self.tiny):
            beat = lambda case, name=name: self.store.mark("check", name, case)
            yield Task(name, partial(self._check, name, what, beat), 15)

    def _check(self, name: str, what: list[str], beat: Callable[[str], None]) -> dict:
        skip = self.store.crashed("check", name)
        found = checks.check(*what, self.device, beat, skip)
        return found | {"crashed": skip}

    def _ceilings(self) -> Iterator[Task]:
        for ceiling in bare.ceilings(self.device.place, self.tiny):
            yield Task(ceiling.name, partial(self._ceiling, ceiling), 2)

    def _ceiling(self, ceiling: bare.Ceiling) -> dict:
        """Medians of each call, and the rates they come to."""
        found = {"bytes": ceiling.bytes, "flops": ceiling.flops, "seconds": {}}
        with tf32(ceiling.tf32), search(True):
            for name, call in ceiling.make().items():
                for _ in range(3):
                    call()
                times = [self.device.time(call) for _ in range(self.plan.most_rounds)]
                found["seconds"][name] = spread(times)._asdict()
        self.device.release()
        return found | {"state": self.device.state()}

    def _rows(self, part: str) -> Iterator[Task]:
        place = self.device.place
        made = rows.tiny(place)[part] if self.tiny else getattr(rows, part)(place)
        for row in made:
            if not self.compiled:
                row.columns = tuple(c for c in row.columns if c != "compiled")
            run = partial(measure, row, part, self.store, self.device, self.plan)
            yield Task(row.name, run, 35 if "compiled" in row.columns else 12)

    def _networks(self) -> Iterator[Task]:
        # not at the top: the networks need packages that single operators do not
        from benchmarks.gpu import networks

        for row in networks.rows(self.tiny):
            run = partial(networks.measure, row, self.store, self.device, self.plan)
            yield Task(row.name, run, 40)

    def run(self, parts: list[str]) -> bool:
        """Whether everything in the parts is finished; False when the time was over first."""
        for part in parts:
            try:
                planned = list(self.tasks(part))
            except ImportError as error:
                self.store.plan(part, [part])
                self.store.put(part, part, {"skipped": sentence(error)})
                continue
            first, step = self.share
            mine = [task for task in planned[first::step] if self.only in task.name]
            self.store.plan(part, [task.name for task in planned])
            for task in mine:
                if self.store.has(part, task.name):
                    continue
                if self.deadline - self.now() < (0 if self.tiny else task.seconds):
                    return False
                self._one(part, task)
        return True

    def _one(self, part: str, task: Task) -> None:
        self.store.mark(part, task.name)
        start = time.perf_counter()
        try:
            found = task.run()
        except Broken:
            raise
        except Exception as error:
            found = {"failed": sentence(error)}
            problem = self.device.problem()
            if problem:
                raise Broken(problem) from error
        self.store.put(part, task.name, {**found, "took": round(time.perf_counter() - start, 2)})


def end_with(parent: int) -> None:
    """End when the process that started this one is gone: nobody would read what is measured."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(BROKEN)

    threading.Thread(target=watch, daemon=True).start()


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m benchmarks.gpu.worker", description=__doc__)
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--deadline", type=float, required=True, help="seconds since 1970")
    parser.add_argument("--parts", required=True)
    parser.add_argument("--only", default="")
    parser.add_argument("--share", default="0/1")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--parent", type=int, default=0, help="end when this process does")
    a = parser.parse_args(argv)
    if a.parent:
        end_with(a.parent)
    share = tuple(int(word) for word in a.share.split("/"))
    plan = Plan(0.01, 2, 2) if a.tiny else Plan()
    work = Worker(Store(a.store), device(a.device), a.deadline, a.tiny, a.only, share)
    work.plan, work.compiled = plan, not a.no_compile
    try:
        work.run(a.parts.split(","))
    except Broken as error:
        running = work.store.data["running"]
        if running is not None:
            running["reason"] = str(error)
            work.store.save()
        os._exit(BROKEN)  # what is left of CUDA in this process could hang in an ordinary exit
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
