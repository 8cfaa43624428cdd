"""A process that measures our column of a row with another rwm_fast: `worker.py FOLDER`.

Reads one JSON command a line from its input, answers one line: `build` a row, `measure` one turn of
it. The rows are of this folder; `rwm_fast` is FOLDER's, native code included.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def import_from(folder: str) -> None:
    """Make `import rwm_fast` mean the folder's, and `import benchmarks` ours."""
    here = str(ROOT / "benchmarks")  # put there by Python, unless told not to
    sys.path[:] = [folder, *(entry for entry in sys.path if entry != here)]
    import rwm_fast

    found = Path(rwm_fast.__file__).resolve()
    if not found.is_relative_to(Path(folder).resolve()):
        raise SystemExit(f"worker: rwm_fast is {found}, not of {folder}")
    sys.path[0] = str(ROOT)  # a package keeps its own path: its other modules come from the folder


class Worker:
    """The commands; a reply has `error` where a row cannot be built or is wrong."""

    def __init__(self):
        self.column, self.threads = None, 1

    def build(self, row: str, full: bool, threads: int) -> dict:
        import torch

        from benchmarks import machine, measure, rows
        from benchmarks.rows.row import OURS

        torch.set_num_threads(threads)
        self.column, self.threads = None, threads
        plan = measure.Plan(full=full, threads=threads)
        columns, facts = measure.build(rows.row(row), plan, machine.Evict(), [OURS])
        self.column = columns[OURS]
        return {"facts": facts[OURS]}

    def measure(self) -> dict:
        from benchmarks.timing import quiet

        with quiet(self.threads):
            return {"seconds": self.column.measure()}

    def answer(self, command: dict) -> dict:
        do = {"build": self.build, "measure": self.measure}[command.pop("do")]
        try:
            return do(**command)
        except Exception as error:  # whatever an old version lacks, the reason is the answer
            return {"error": f"{type(error).__name__}: {error}"}


def main() -> None:
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever prints must not write between the replies
    import_from(sys.argv[1])
    worker = Worker()
    for line in sys.stdin:
        replies.write(json.dumps(worker.answer(json.loads(line))) + "\n")
        replies.flush()


if __name__ == "__main__":
    main()
