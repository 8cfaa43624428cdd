"""The process that measures. It works off the rows of parts, or one row at another's command.

`python -m benchmarks.worker --store FILE --parts layers,operators` writes each row to the store
when it is finished, and ends when the time is over; it asks for no row that the store has.

`worker.py --package FOLDER` measures our column with FOLDER's rwm_fast, native code included: it
reads one JSON command a line, answers one line: `build` a row, `measure` one turn of it.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BROKEN = 75  # exit status: the device answers no more in this process


def import_from(folder: str) -> None:
    """Make `import rwm_fast` mean the folder's, and `import benchmarks` ours."""
    here = str(ROOT / "benchmarks")  # put there by Python, unless told not to
    sys.path[:] = [folder, *(entry for entry in sys.path if entry != here)]
    import rwm_fast

    found = Path(rwm_fast.__file__).resolve()
    if not found.is_relative_to(Path(folder).resolve()):
        raise SystemExit(f"worker: rwm_fast is {found}, not of {folder}")
    # A package keeps its own path: its other modules come from the folder. What that lacks is
    # lacking, though an editable installation would have it.
    sys.path[0] = str(ROOT)
    sys.meta_path[:] = [f for f in sys.meta_path if not f.__module__.startswith("__editable__")]
    # but for the inputs, which are ours for every version
    testing = ROOT / "rwm_fast/testing"
    spec = importlib.util.spec_from_file_location(
        "rwm_fast.testing", testing / "__init__.py", submodule_search_locations=[str(testing)]
    )
    sys.modules[spec.name] = importlib.util.module_from_spec(spec)


# ---- at another's command


class Server:
    """The commands; a reply has `error` where a row cannot be built or is wrong."""

    def build(self, row: str, threads: int) -> dict:
        from benchmarks import measure, rows
        from benchmarks.device import Cpu

        self.device, row = Cpu(threads), rows.by_name(row)
        # not checked: networks of other versions call operators as the truth's are not called
        known = {} if row.group == "networks" else None
        with self.device.quiet():
            self.column, facts = measure.prepare(row, rows.OURS, self.device, known=known)
        return {"facts": facts}

    def measure(self) -> dict:
        with self.device.quiet():
            return {"seconds": self.column.measure()}

    def answer(self, command: dict) -> dict:
        do = {"build": self.build, "measure": self.measure}[command.pop("do")]
        try:
            return do(**command)
        except Exception as error:  # whatever an old version lacks, the reason is the answer
            return {"error": f"{type(error).__name__}: {error}"}


def serve(folder: str) -> None:
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever prints must not write between the replies
    import_from(folder)
    server = Server()
    for line in sys.stdin:
        replies.write(json.dumps(server.answer(json.loads(line))) + "\n")
        replies.flush()


# ---- parts of a run


@dataclass
class Task:
    """A row still to be done, and about how many seconds it takes on a GPU."""

    name: str
    run: Callable[[], dict]
    seconds: float


@dataclass
class Worker:
    """Where results go, what is measured on, until when, and which rows."""

    store: object
    device: object
    deadline: float
    tiny: bool = False
    only: str = ""
    share: tuple[int, int] = (0, 1)  # every so-manieth row, from this one on
    now: Callable[[], float] = time.time

    def _plan(self):
        from benchmarks.measure import Plan

        brief = dict(seconds=0.01, least_rounds=2, most_rounds=2) if self.tiny else {}
        return Plan(**{"seconds": 1.5, "most_rounds": 31, **brief, "deadline": self.deadline})

    def tasks(self, part: str) -> Iterator[Task]:
        from benchmarks import ceilings, measure, rows
        from benchmarks.gpu import checks
        from benchmarks.store import Progress

        plan, device = self._plan(), self.device
        if part == "check":
            for name, *what in checks.checks(self.tiny):
                progress = Progress(self.store, part, name)
                yield Task(name, partial(checks.check, *what, device, progress), 15)
        elif part == "ceilings":
            for ceiling in ceilings.ceilings(device, self.tiny):
                yield Task(ceiling.name, partial(measure.rate_of, ceiling, plan, device), 2)
        else:
            for row in rows.gpu_rows(part, device.place, self.tiny):
                if row.group == "networks":
                    plan = replace(plan, seconds=4 * plan.seconds)
                progress = Progress(self.store, part, row.name)
                run = partial(measure.measure, row, replace(plan, full=True), device, progress)
                yield Task(row.name, run, {"networks": 60, "compiled": 35}.get(part, 12))

    def run(self, parts: list[str]) -> bool:
        """Whether everything in the parts is finished; False when the time was over first."""
        from benchmarks.measure import sentence

        for part in parts:
            try:
                planned = list(self.tasks(part))
            except ImportError as error:  # networks need packages that single operators do not
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
        from benchmarks.measure import Broken, sentence, still_alive

        self.store.mark(part, task.name)
        start = time.perf_counter()
        try:
            found = task.run()
        except Broken:
            raise
        except Exception as error:
            found = {"failed": sentence(error)}
            still_alive(self.device)
        self.store.put(part, task.name, {**found, "took": round(time.perf_counter() - start, 2)})


def end_with(parent: int) -> None:
    """End when the process that started this one is gone: nobody would read what is measured."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(BROKEN)

    threading.Thread(target=watch, daemon=True).start()


def work(a: argparse.Namespace) -> int:
    from benchmarks.device import device
    from benchmarks.measure import Broken
    from benchmarks.store import Store

    if a.parent:
        end_with(a.parent)
    share = tuple(int(word) for word in a.share.split("/"))
    worker = Worker(Store(a.store), device(a.device), a.deadline, a.tiny, a.only, share)
    try:
        worker.run(a.parts.split(","))
    except Broken as error:
        running = worker.store.data["running"]
        if running is not None:
            running["reason"] = str(error)
            worker.store.save()
        os._exit(BROKEN)  # what is left of CUDA in this process could hang in an ordinary exit
    return 0


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--package", help="a folder with an rwm_fast")
    add("--store", type=Path)
    add("--device", choices=("cuda", "cpu"), default="cuda")
    add("--deadline", type=float, default=float("inf"), help="seconds since 1970")
    add("--parts", default="")
    add("--only", default="")
    add("--share", default="0/1")
    add("--tiny", action="store_true")
    add("--parent", type=int, default=0, help="end when this process does")
    a = parser.parse_args(argv)
    if a.package:
        return serve(a.package)
    return work(a)


if __name__ == "__main__":
    raise SystemExit(main())
