"""The rows of the operator tests, from the table of backends, and what became of them."""

import contextlib
from collections import Counter
from dataclasses import dataclass

import pytest
import torch

from rwm_fast import explain, use_backend
from rwm_fast.ops import _dispatch
from rwm_fast.testing.cases import LAYOUTS, cases, ops

DTYPES = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp64": torch.float64,
}


@dataclass(frozen=True)
class Row:
    """One operator on one backend and one kind of device."""

    op: str
    backend: str
    device: str

    def __str__(self) -> str:
        return f"{self.op}-{self.backend}-{self.device}"


def _all_rows() -> list[Row]:
    return [
        Row(op, way.name, device)
        for op in ops()
        for way in _dispatch.ways(op)
        for device in (("cpu", "cuda") if way.device == "any" else (way.device,))
    ]


def _absent(row: Row) -> bool:
    return row.device == "cuda" and not torch.cuda.is_available()


ROWS = [row for row in _all_rows() if not _absent(row)]


def cpu_backends(op: str) -> list[str]:
    """The backends that have CPU rows here."""
    return [row.backend for row in ROWS if (row.op, row.device) == (op, "cpu")]


_ran: Counter = Counter()
_refused: dict[Row, Counter] = {}


def rows_cases(keep=lambda case: True, backend=None):
    """Parameters (row, case) of the test cases that `keep` accepts, of all backends or one."""
    return [
        pytest.param(row, case, id=f"{row}-{case.name}")
        for row in ROWS
        for case in cases(row.op)
        if keep(case) and backend in (None, row.backend)
    ]


def grid():
    """Parameters (row, dtype, layout, case): on a GPU every combination; on the CPU every pair of
    row and case has every layout in float32, and every other dtype in a layout whose turn it is."""
    return [
        pytest.param(row, dtype, layout, case, id=f"{row}-{name}-{layout}-{case.name}")
        for row in ROWS
        for turn, (name, dtype) in enumerate(DTYPES.items())
        for index, layout in enumerate(LAYOUTS)
        for number, case in enumerate(cases(row.op))
        if row.device == "cuda" or not turn or (number + turn - index) % len(LAYOUTS) == 0
    ]


@contextlib.contextmanager
def on_backend(row: Row, inputs: dict):
    """Run the block on the row's backend, or skip with the backend's reason; both are counted."""
    with use_backend(row.backend):
        answer = explain(row.op, **inputs)[row.backend]
        if answer != "used":
            _refused.setdefault(row, Counter())[answer] += 1
            pytest.skip(f"{row}: {answer}")
        _ran[row] += 1
        yield


def report() -> list[str]:
    """One line for each row: how many tests ran, how many were refused and why."""
    if not _ran and not _refused:
        return []
    lines = []
    for row in ROWS:
        line = f"{row!s:40} {_ran[row]:5} ran"
        for reason, count in _refused.get(row, {}).items():
            line += f"; {count} skipped: {reason}"
        lines.append(line)
    absent = sorted({f"{row.backend}-{row.device}" for row in _all_rows() if _absent(row)})
    return lines + ([f"not here: {', '.join(absent)}: torch sees no CUDA device"] if absent else [])
