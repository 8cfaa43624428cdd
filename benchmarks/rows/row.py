"""What a row is: named work, several ways to do it, and the truth they are checked against.

The ways are columns: `published`, eager PyTorch as the field writes it; `rewritten`, the best eager
PyTorch we know; `compiled`, torch.compile of that; `ours`, on the backend that rwm_fast takes by
itself, and on others by name; `ceiling`, the bare convolution with its two gradients or a stream
over the same bytes; of regions `per style`, our layer once a style, and `one style`.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from benchmarks.device import Call, has_amx_bf16
from rwm_fast import use_backend
from rwm_fast.testing.cases import Work

CPU = torch.device("cpu")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
DTYPES |= {"float16": torch.float16, "tf32": torch.float32}
OURS = "ours"
BACKENDS = {
    OURS: "auto",
    "ours-native": "native",
    "ours-triton": "triton",
    "fallback": "eager",
}


class Wrong(AssertionError):
    """A column computes something else; it is not timed."""


Answers = dict[str, Tensor]  # results and gradients by name


@dataclass
class Step:
    """Calls that are timed together, by phase; without "total" their sum is it."""

    calls: dict[str, Call]
    weight: float = 1.0  # factor on its times, where calls of several kinds make up one unit
    count: int = 1  # how often a call does the work
    before: Call = lambda: None  # untimed, before every call


@dataclass
class Built:
    """A column ready to run: its steps, and what it computes."""

    steps: list[Step]
    answers: Callable[[], Answers] | None  # None: a ceiling, nothing to check
    truth: str = ""  # columns of the same truth share one float64 computation
    once: Call | None = None  # a call whose peak memory is told
    # of the result that a graph of the "total" call leaves; None: no graphs of this column
    replayed: Callable[[Any], Answers] | None = None
    facts: dict = field(default_factory=dict)  # for the results: backend, compile seconds


class Row:
    """One line of the table. Subclasses build columns."""

    name: str  # unique
    group: str
    dtype: str
    columns: Sequence[str]
    full: bool = False  # only with --full
    ceiling: str = ""  # what the ceiling column is
    note: str = ""
    least_rounds: int = 7
    place: torch.device = CPU

    def work(self) -> Mapping[str, Work]:
        """The least a call must do, by phase."""
        raise NotImplementedError

    def skip(self) -> str | None:
        """Why the row cannot be measured here."""
        half = self.dtype == "bfloat16" and self.place.type == "cpu"
        if half and self.slow_in_half and not has_amx_bf16():
            return "this CPU has no AMX-bf16, and without it bfloat16 gains nothing"
        return None

    slow_in_half = False  # without matrix units

    def missing(self, full: bool) -> dict[str, str]:
        """Columns of a standard row that this one does not have, with the reason."""
        return {}

    def build(self, column: str, cache: int = 0) -> Built:
        """A column; of calls that are smaller than a device's cache several with data of their
        own."""
        raise NotImplementedError

    def truth(self, key: str) -> Answers:
        """The answers in float64."""
        raise NotImplementedError

    def bounds(self, column: str, plain: Mapping[str, float]) -> Mapping[str, float]:
        """The largest error allowed for each answer; `plain` are those of the rewritten column."""
        raise NotImplementedError

    def release(self) -> None:
        """Forget inputs and truths."""


def error(got: Tensor, exact: Tensor) -> float:
    """‖got − exact‖ / ‖exact‖; infinite where the shape differs or a number is none."""
    if got.shape != exact.shape:
        return float("inf")
    exact = exact.detach().double()
    length = exact.norm().clamp_min(torch.finfo(torch.float64).tiny)
    far = ((got.detach().double() - exact).norm() / length).item()
    return float("inf") if math.isnan(far) else far


def errors(row: Row, answers: Answers, truth: Answers) -> dict[str, float]:
    """The error of each answer."""
    if answers.keys() != truth.keys():
        raise Wrong(f"{row.name}: answers {sorted(answers)}, not {sorted(truth)}")
    return {name: error(answers[name], exact) for name, exact in truth.items()}


def gate(
    row: Row, column: str, answers: Answers, truth: Answers, plain: Mapping, where: str = ""
) -> dict[str, float]:
    """The errors of a column; raises `Wrong` if one is above its bound."""
    found, bounds = errors(row, answers, truth), row.bounds(column, plain)
    for name, far in found.items():
        if not far <= bounds[name]:
            raise Wrong(
                f"{row.name}: {column} is wrong: {name} is off the float64 truth by {far:.2g} of"
                f" its length{where}, allowed {bounds[name]:.2g}"
            )
    return found


def on_backend(column: str) -> contextlib.AbstractContextManager:
    """Both passes of a column of ours run in it: it asks for a backend."""
    return use_backend(BACKENDS[column]) if column in BACKENDS else contextlib.nullcontext()


COMPILE = True  # False where rows are run to see that they can be


def compiled(function: Callable) -> Callable:
    """torch.compile as a user would call it, without help from an earlier run's cache."""
    if not COMPILE:
        return function
    import torch._dynamo.config as dynamo
    import torch._inductor.config as inductor

    dynamo.recompile_limit = 64  # networks meet more kinds of calls than the 8 of the default
    inductor.force_disable_caches = True  # or the compile time would be that of a lookup
    inductor.compile_threads = 1  # or a pool of processes would live beside the measurement
    return torch.compile(function, dynamic=False)


@contextlib.contextmanager
def stopwatch(facts: dict):
    start = time.perf_counter()
    yield
    facts["compile_seconds"] = time.perf_counter() - start
