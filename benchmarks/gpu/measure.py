"""Measures one row: every column checked against float64, captured, then timed turn by turn."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from benchmarks.gpu.device import Cpu, Cuda, search, tf32
from benchmarks.gpu.rows import BARS, GpuRow
from benchmarks.gpu.store import Store
from benchmarks.rows.operators import used
from benchmarks.rows.row import Wrong, stopwatch
from benchmarks.timing import Column, Rounds, Seconds, quiet, ratios, spread

Call = Callable[[], object]


class Broken(RuntimeError):
    """The device answers no more in this process; another process must go on."""


@dataclass(frozen=True)
class Plan:
    """How long a row is measured, after everything in it is warm."""

    seconds: float = 1.5
    least_rounds: int = 7
    most_rounds: int = 31


@dataclass
class Timed:
    """A column: the same calls replayed from a graph and made eagerly, `count` in each."""

    device: Cuda | Cpu
    count: int
    graphs: dict[str, Call] = field(default_factory=dict)
    eager: dict[str, Call] = field(default_factory=dict)

    def measure(self) -> Seconds:
        found = {p: self.device.time(call) for p, call in self.graphs.items()}
        found |= {f"eager {p}": self.device.wall(call) for p, call in self.eager.items()}
        return {phase: seconds / self.count for phase, seconds in found.items()}


def calls(row: GpuRow, column: str, count: int) -> tuple[Call, Call, Call]:
    """Forward pass without gradients, and both passes, over `count` sets of inputs; both on one.

    Results stay until the last call of the list, so that no call writes into another's memory.
    """
    inputs = row.inputs(column, count)
    function = row.function(column)
    with torch.no_grad(), row.block(column):
        like = function(**inputs[0])
    cotangents = [row.cotangent(like, each, i) for i, each in enumerate(inputs)]

    def forward() -> list:
        with torch.no_grad(), row.block(column):
            return [function(**each) for each in inputs]

    def total() -> list:
        with row.block(column):
            return [both(each, dy) for each, dy in zip(inputs, cotangents, strict=True)]

    def both(each: dict, dy: torch.Tensor) -> tuple:
        result = function(**each)
        return result.detach(), *torch.autograd.grad(result, row.leaves(each), dy)

    def once() -> tuple:
        with row.block(column):
            return both(inputs[0], cotangents[0])

    return forward, total, once


def gate(row: GpuRow, column: str, answer: tuple, plain: dict[str, float], where: str) -> dict:
    """The errors of the answers; raises `Wrong` where one is above what is allowed."""
    result, *gradients = answer
    found = row.errors(column, row.row.named(result, tuple(gradients)))
    allowed = row.allowed(column, plain)
    for name, value in found.items():
        if not value <= allowed[name]:
            raise Wrong(
                f"{name} is off the float64 truth by {value:.2g} of its length {where},"
                f" allowed {allowed[name]:.2g}"
            )
    return found


def prepare(row: GpuRow, column: str, device: Cuda | Cpu, plain: dict) -> tuple[Timed, dict]:
    """The column ready to be timed, and facts about it."""
    count, facts, once = row.sets(device.cache), {}, None
    if column == "ceiling":
        pairs = [row.ceiling(each) for each in row.inputs("ours", count)]
        forward = lambda: [first() for first, _ in pairs]
        total = lambda: [second() for _, second in pairs]
    elif column == "compiled":
        with stopwatch(facts):
            forward, total, once = calls(row, column, count)
            once()
            device.sync()
    else:
        forward, total, once = calls(row, column, count)
    if column == "ours":
        facts["backend"] = used(row.row.op, row.inputs(column, 1)[0])
    if once is not None:
        facts["errors"] = gate(row, column, total()[0], plain, "in an eager call")
        facts["error"] = max(facts["errors"].values())
        facts["within_bar"] = facts["error"] <= BARS[row.dtype]
        facts["peak_bytes"] = device.peak(once)
    timed = Timed(device, count, eager={"forward": forward, "total": total})
    _capture(row, column, timed, facts, plain)
    return timed, facts


def _capture(row: GpuRow, column: str, timed: Timed, facts: dict, plain: dict) -> None:
    """Graphs of both calls; what the second computes in a replay is checked as well."""
    for phase, call in timed.eager.items():
        try:
            timed.graphs[phase], answers = timed.device.capture(call)
        except Exception as error:
            facts["graph_error"] = sentence(error)
            timed.graphs.clear()
            _still_alive(timed.device)
            return
        if column != "ceiling" and phase == "total":
            gate(row, column, answers[0], plain, "in a replayed graph")


def sentence(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0] if text else ''}"[:400]


def _still_alive(device: Cuda | Cpu) -> None:
    problem = device.problem()
    if problem:
        raise Broken(problem)


def column_facts(
    names: Sequence[str],
    build: Callable[[str], tuple[Column, dict]],
    ready: dict[str, Column],
    part: str,
    row: str,
    store: Store,
    device: Cuda | Cpu,
) -> dict[str, dict]:
    """Builds every column, into `ready` those that can be timed; facts about all of them.

    One that computes something else has `wrong`, one that raises has `failed`.
    """
    facts: dict[str, dict] = {}
    crashed = store.crashed(part, row)
    for name in names:
        if name in crashed:
            facts[name] = {"failed": f"it took the process with it: {crashed[name]}"}
            continue
        store.mark(part, row, name)
        try:
            ready[name], facts[name] = build(name)
        except Wrong as error:
            facts[name] = {"wrong": str(error)}
        except Broken:
            raise
        except Exception as error:
            facts[name] = {"failed": sentence(error)}
            _still_alive(device)
        device.release()
    return facts


def measured(
    ready: dict[str, Column],
    facts: dict[str, dict],
    part: str,
    row: str,
    store: Store,
    device: Cuda | Cpu,
    plan: Plan,
) -> dict:
    """Rounds of the columns that are ready; their times and ratios go to the facts."""
    store.mark(part, row)
    with quiet(torch.get_num_threads()):
        before = device.state()
        rounds = Rounds(ready)
        count = _run(rounds, plan) if ready else 0
        after = device.state()
    mine = rounds.seconds.get("ours", {})
    for column, phases in rounds.seconds.items():
        facts[column]["seconds"] = {p: spread(v)._asdict() for p, v in phases.items()}
        if column != "ours":
            both = {p: ratios(v, mine[p]) for p, v in phases.items() if p in mine}
            facts[column]["over_ours"] = {p: r._asdict() for p, r in both.items()}
    ready.clear()
    device.release(thorough=True)
    return {"rounds": count, "before": before, "after": after, "columns": facts}


def measure(row: GpuRow, part: str, store: Store, device: Cuda | Cpu, plan: Plan) -> dict:
    """The result of a row."""
    ready: dict[str, Column] = {}
    plain: dict[str, float] = {}

    def build(column: str) -> tuple[Column, dict]:
        timed, facts = prepare(row, column, device, plain)
        if column == "rewritten":
            plain.update(facts["errors"])
        return timed, facts

    with tf32(row.tf32), search(True):
        for column in row.columns:  # first, so that no column is to blame for them
            if column != "ceiling":
                row.truth(column)
        facts = column_facts(row.columns, build, ready, part, row.name, store, device)
        found = measured(ready, facts, part, row.name, store, device, plan)
        work, sets = row.work(), row.sets(device.cache)
    row.release()
    if "compiled" in row.columns:
        torch.compiler.reset()
    device.release(thorough=True)
    return found | {"dtype": row.dtype, "work": work, "sets": sets, "clock": device.clock}


def _run(rounds: Rounds, plan: Plan) -> int:
    """One round to see what it costs, then as many as fit; all columns in turn in each."""
    start = time.perf_counter()
    rounds.run(1)
    cost = max(time.perf_counter() - start, 1e-6)
    rounds.seconds.clear()
    count = max(plan.least_rounds, min(plan.most_rounds, int(plan.seconds / cost)))
    rounds.run(count)
    return count
