"""Rows of the whole method on a GPU: encode and paint, R1, training step.

Columns are checked on two pictures, where float64 is affordable, and timed on a full batch. Random
numbers are drawn on the GPU. Steps of training are timed eagerly: they draw masks on the CPU.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from benchmarks.gpu.device import Cpu, Cuda, search
from benchmarks.gpu.measure import Call, Plan, column_facts, measured
from benchmarks.gpu.rows import OURS, TYPES
from benchmarks.gpu.store import Store
from benchmarks.rows.networks import NetworkRow, R1Row, TrainingRow, inside
from benchmarks.rows.row import Answers, Wrong, errors
from benchmarks.timing import Step
from rwm_fast import use_backend
from rwm_fast.training.trainer import build_networks

COLUMNS = ("rewritten", "published", *OURS)
CHECKED = 2  # pictures
FAR = 5  # times the rewritten column's error
FLOORS = {"float32": 0.02, "bfloat16": 0.1}  # where that error is small by luck


class InferenceRow(NetworkRow):
    """Two codes of every picture, and the picture painted from them; no noise, no gradients."""

    def calls(self, column: str, dtype: torch.dtype) -> tuple[list[Step], Callable[[], Answers]]:
        nets = build_networks(self.config)
        order = torch.contiguous_format if column == "published" else torch.channels_last
        for network in (nets.encoder, nets.generator):
            network.to(self.place, memory_format=order).eval().requires_grad_(False)
            network.to_compute(dtype if dtype in (torch.bfloat16, torch.float16) else None)
            if dtype == torch.float64:
                network.double()
        image = self.image(nets.encoder.parameter_dtype)

        @torch.no_grad()
        def paint() -> Tensor:
            return nets.generator(*nets.encoder(image), noise="none")

        run = inside(column, paint)
        return [Step(run)], lambda: {"painted": run()}


@dataclass
class NetworksRow:
    """One line: the same row with few pictures to be checked and with many to be timed."""

    row: NetworkRow
    capture: bool

    @property
    def name(self) -> str:
        return self.row.name

    def few(self, place: torch.device) -> NetworkRow:
        return replace(self.row, batch=min(CHECKED, self.row.batch), place=place)

    def many(self, place: torch.device) -> NetworkRow:
        return replace(self.row, place=place)


def rows(tiny: bool = False) -> Iterator[NetworksRow]:
    if tiny:
        yield NetworksRow(InferenceRow("demo", 1, columns=COLUMNS, title="encode, paint"), True)
        return
    kind = dict(dtype="bfloat16", columns=COLUMNS)
    for batch in (1, 16):
        row = InferenceRow("paper-256", batch, title="encode, paint", **kind)
        yield NetworksRow(row, True)
    yield NetworksRow(R1Row("paper-256", 16, title="R1 step", **kind), False)
    yield NetworksRow(TrainingRow("paper-256", 16, title="training step", **kind), False)


def _steps(row: NetworkRow, column: str) -> tuple[Callable[[], Answers], list[Step]]:
    """What the column computes, and one unit of the row, on the column's backend."""
    steps, answers = row.calls(column, TYPES[row.dtype])

    def on(function: Callable) -> Callable:
        def run() -> object:
            with use_backend(OURS.get(column, "auto")):
                return function()

        return run

    steps = [replace(step, forward=on(step.forward)) for step in steps]
    return on(answers), steps


def check(row: NetworkRow, found: dict[str, float], plain: dict[str, float]) -> None:
    """Refuses a column that computes something else than the rewritten one.

    Whole steps are not a test of kernels, those have their own: losses of absolute values turn
    roundings into jumps of gradients, so no bound follows from the dtype. The rewritten column only
    has to be finite; the others may be a few times as far from float64 as it is.
    """
    for name, error in found.items():
        bound = max(FAR * plain[name], FLOORS[row.dtype]) if plain else sys.float_info.max
        if not error <= bound:
            raise Wrong(f"{name} is off the float64 truth by {error:.2g}, allowed {bound:.2g}")


def prepare(
    row: NetworksRow,
    column: str,
    device: Cuda | Cpu,
    truth: dict,
    plain: dict[str, float],
    beat: Callable[[], None],
) -> tuple[Weighted, dict]:
    """The column ready to be timed, and its errors; `beat` is called between slow calls."""
    few = row.few(device.place)
    answers, _ = _steps(few, column)
    found = errors(few, answers(), truth)
    check(few, found, plain)
    del answers, _
    device.release(thorough=True)
    _, steps = _steps(row.many(device.place), column)
    for _ in range(2):  # shapes of the full batch: compile, choose algorithms
        for step in steps:
            beat()
            step.forward()
            device.sync()
    beat()
    facts = {"errors": found, "error": max(found.values())}
    facts["peak_bytes"] = device.peak(steps[0].forward)
    timed = Weighted(device, steps)
    if row.capture:
        timed.graph, timed.kept = device.capture(steps[0].forward)
    return timed, facts


@dataclass
class Weighted:
    """Iterations of several kinds, each timed alone; their weighted times are added."""

    device: Cuda | Cpu
    steps: list[Step]
    graph: Call | None = None
    kept: object = None

    def measure(self) -> dict[str, float]:
        found = {"forward": self.device.time(self.graph)} if self.graph else {}
        for phase, clock in (("gpu", self.device.time), ("eager forward", self.device.wall)):
            found[phase] = sum(step.weight * clock(step.forward) for step in self.steps)
        return found


def measure(row: NetworksRow, store: Store, device: Cuda | Cpu, plan: Plan) -> dict:
    """The result of a row."""
    truth: dict[str, Tensor] = {}
    plain: dict[str, float] = {}
    ready: dict[str, Weighted] = {}

    def build(column: str) -> tuple[Weighted, dict]:
        if not truth:
            store.mark("networks", row.name)  # no column is to blame for it
            with search(False):
                found = row.few(device.place).truth("")
            truth.update((name, value.detach()) for name, value in found.items())
            del found
            device.release(thorough=True)
        beat = lambda: store.mark("networks", row.name, column)
        beat()
        timed, facts = prepare(row, column, device, truth, plain, beat)
        if column == "rewritten":
            plain.update(facts["errors"])
        return timed, facts

    plan = replace(plan, seconds=4 * plan.seconds, least_rounds=min(3, plan.least_rounds))
    with search(True):
        facts = column_facts(COLUMNS, build, ready, "networks", row.name, store, device)
        found = measured(ready, facts, "networks", row.name, store, device, plan)
    return found | {"dtype": row.row.dtype, "work": {}, "clock": device.clock}
