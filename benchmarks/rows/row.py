"""What a row is: named work, several ways to do it, and the truth they are checked against."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.timing import Step

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
OURS = "ours"
# (a) to (e) of every row; a row may have more. The order is that of the tables.
COLUMNS = {
    "published": "eager PyTorch as the field writes it",
    "rewritten": "the best eager PyTorch we know",
    "compiled": "torch.compile of the rewritten column",
    OURS: "rwm_fast, the backend it takes by itself",
    "ceiling": "the bare convolution and its two gradients, or a stream over the same bytes",
    "fallback": "rwm_fast on its plain PyTorch backend",
    "per style": "our layer once a style, then select",
    "one style": "our layer with one style",
    "memory kept": "ours in a process that keeps the memory it frees",
    "forward": "our forward pass of the same networks, no gradients",
}


class Work(NamedTuple):
    """The least a call must do: bytes to and from memory, floating-point operations."""

    bytes: int
    flops: int

    def __add__(self, other: Work) -> Work:
        return Work(self.bytes + other.bytes, self.flops + other.flops)


class Wrong(AssertionError):
    """A column computes something else; it is not timed."""


Answers = dict[str, Tensor]  # results and gradients by name


@dataclass
class Built:
    """A column ready to run: its steps, timed together, and what it computes."""

    steps: list[Step]
    answers: Callable[[], Answers] | None  # None: a ceiling, nothing to check
    truth: str = ""  # columns of the same truth share one float64 computation
    facts: dict = field(default_factory=dict)  # for the results: backend, compile seconds


class Row:
    """One line of the table. Subclasses build columns."""

    name: str  # unique
    group: str
    dtype: str
    columns: Sequence[str]
    work: Mapping[str, Work]  # by phase
    full: bool = False  # only with --full
    needs_matrix_units: bool = False
    ceiling: str = ""  # what the ceiling column is
    note: str = ""
    least_rounds: int = 7

    def skip(self) -> str | None:
        """Why the row cannot be measured here."""
        if self.needs_matrix_units and not torch.cpu._is_amx_tile_supported():
            return "this CPU has no AMX-bf16, and without it bfloat16 gains nothing"
        return None

    def missing(self, full: bool) -> dict[str, str]:
        """Columns of a standard row that this one does not have, with the reason."""
        return {}

    def error(self, got: Tensor, exact: Tensor) -> float:
        """The largest error relative to the largest value."""
        largest = exact.abs().max().clamp_min(torch.finfo(torch.float64).tiny)
        return ((got - exact).abs().max() / largest).nan_to_num(float("inf")).item()

    def build(self, column: str) -> Built:
        raise NotImplementedError

    def truth(self, key: str) -> Answers:
        """The answers in float64."""
        raise NotImplementedError

    def bounds(self, key: str, plain: float) -> Mapping[str, float]:
        """The largest error allowed for each answer; `plain` is that of the rewritten column."""
        raise NotImplementedError


def errors(row: Row, answers: Answers, truth: Answers) -> dict[str, float]:
    """The error of each answer."""
    if answers.keys() != truth.keys():
        raise Wrong(f"{row.name}: answers {sorted(answers)}, not {sorted(truth)}")
    found = {}
    for name, exact in truth.items():
        got = answers[name].detach().double()
        if got.shape != exact.shape:
            raise Wrong(f"{row.name}: {name} is {list(got.shape)}, not {list(exact.shape)}")
        found[name] = row.error(got, exact.detach())
    return found


def gate(row: Row, column: str, answers: Answers, truth: Answers, key: str, plain: float) -> float:
    """The largest error of a column; raises `Wrong` if one is above its bound."""
    found, bounds = errors(row, answers, truth), row.bounds(key, plain)
    for name, error in found.items():
        if not error <= bounds[name]:
            raise Wrong(
                f"{row.name}: {column} is wrong: {name} is off the float64 truth by {error:.2g},"
                f" relatively, allowed {bounds[name]:.2g}"
            )
    return max(found.values())


def compiled(function: Callable) -> Callable:
    """torch.compile as a user would call it, without help from an earlier run's cache."""
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
