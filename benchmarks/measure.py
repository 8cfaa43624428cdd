"""Measures one row: every column checked, then all timed turn by turn.

The columns of a row run in turn, a round is one call of each, and the order changes from round to
round. A ratio is taken inside each round and then summarised, so that whatever slows the machine
for a while slows both sides of it.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import NamedTuple, Protocol

import torch

from benchmarks.device import Call, Cpu
from benchmarks.rows.row import OURS, Built, Row, Step, Wrong, gate
from benchmarks.store import Progress

Seconds = dict[str, float]  # by phase: "forward" (where there is a backward pass), "total", …


class Spread(NamedTuple):
    """Median, 20th and 80th percentile."""

    median: float
    p20: float
    p80: float


def spread(values: Sequence[float]) -> Spread:
    """Percentiles by linear interpolation between the sorted values."""
    values = [*values] * (2 if len(values) == 1 else 1)  # Python before 3.13 wants two
    fifths = statistics.quantiles(values, n=5, method="inclusive")
    return Spread(statistics.median(values), fifths[0], fifths[-1])


def ratios(baseline: Sequence[float], ours: Sequence[float]) -> Spread:
    """baseline/ours round by round: above 1 where ours is faster."""
    return spread([b / o for b, o in zip(baseline, ours, strict=True)])


def order(columns: Sequence[str], round_: int) -> list[str]:
    """The order of one round: rotated, and backwards every second time.

    So every column takes every place, and does not always run after the same neighbour.
    """
    shift = round_ % len(columns)
    turned = [*columns[shift:], *columns[:shift]]
    return turned[::-1] if round_ % 2 else turned


class Column(Protocol):
    """Something to time. `measure` does one call and returns its times."""

    def measure(self) -> Seconds: ...


@dataclass
class Timed:
    """A column in this process, with cold caches: its steps' weighted times are added.

    Where the device has graphs, a phase is a replay of one (or, of what cannot be captured, the
    eager call), and "eager phase" is the eager call on the wall clock.
    """

    device: Cpu
    steps: Sequence[Step]
    graphs: dict[str, Call] = field(default_factory=dict)  # by phase, of the only step

    def measure(self) -> Seconds:
        found: Seconds = {}
        for step in self.steps:
            for phase, call in step.calls.items():
                step.before()
                told = {phase: self.device.time(self.graphs.get(phase, call))}
                if self.device.graphs:
                    step.before()
                    told[f"eager {phase}"] = self.device.wall(call)
                for name, seconds in told.items():
                    found[name] = found.get(name, 0.0) + step.weight * seconds / step.count
        if "total" not in found:  # the parts of a whole, each timed alone
            for prefix in ("", "eager ") if self.device.graphs else ("",):
                parts = (s for n, s in found.items() if n.startswith("eager ") == bool(prefix))
                found[f"{prefix}total"] = sum(list(parts))
        return found


@dataclass
class Rounds:
    """Interleaved measurements of named columns."""

    columns: Mapping[str, Column]
    seconds: dict[str, dict[str, list[float]]] = field(default_factory=dict)  # column, phase

    def __post_init__(self):
        self._queue: list[str] = []

    def run(self, count: int, over: Callable[[], bool] = lambda: False) -> int:
        """`count` rounds of every column, or fewer once the time is over; how many."""
        for done in range(count):
            if done and over():
                return done
            self._queue += order(list(self.columns), done)
            self.finish()
        return count

    def plan(self, count: int) -> None:
        """Queue `count` rounds; `until` and `finish` take them from the queue."""
        names = list(self.columns)
        self._queue += [name for r in range(count) for name in order(names, r)]

    def until(self, name: str) -> None:
        """Run what comes before the next turn of this column."""
        while self._queue and self._queue[0] != name:
            self.turn()

    def turn(self) -> None:
        """Run the column whose turn it is."""
        name = self._queue.pop(0)
        for phase, seconds in self.columns[name].measure().items():
            self.seconds.setdefault(name, {}).setdefault(phase, []).append(seconds)

    def finish(self) -> None:
        while self._queue:
            self.turn()


@dataclass(frozen=True)
class Plan:
    """How much to measure."""

    seconds: float = 6.0  # of measuring a row; few rounds of slow rows may take longer
    least_rounds: int = 7
    most_rounds: int = 21
    full: bool = False
    deadline: float = float("inf")  # on the clock on the wall: then one round is enough


class Broken(RuntimeError):
    """The device answers no more in this process; another process must go on."""


def sentence(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0] if text else ''}"[:400]


def still_alive(device: Cpu) -> None:
    problem = device.problem()
    if problem:
        raise Broken(problem)


def prepare(
    row: Row,
    column: str,
    device: Cpu,
    plain: Mapping[str, float] | None = None,
    known: Mapping | None = None,
    beat: Call = lambda: None,
) -> tuple[Timed, dict]:
    """The column ready to be timed, and facts about it; raises `Wrong`.

    `known` are facts of an earlier process, which has checked the column. `beat` is called between
    slow calls.
    """
    built = row.build(column, device.cache)
    facts = built.facts
    beat()
    if built.answers is not None and known is not None:
        facts |= {name: known[name] for name in ("errors", "error") if name in known}
    elif built.answers is not None:
        with device.settings(search=False):
            truth = row.truth(built.truth)
        beat()
        facts["errors"] = gate(row, column, built.answers(), truth, plain or {})
        facts["error"] = max(facts["errors"].values())
        beat()
    if built.once is not None:
        facts["peak_bytes"] = device.peak(built.once)
    timed = Timed(device, built.steps)
    if device.graphs and built.replayed is not None:
        _capture(row, column, timed, built, facts, plain or {}, check=known is None)
    elif device.graphs:  # shapes of the full batch: compile, choose algorithms
        for call in (call for step in built.steps for call in step.calls.values()):
            for _ in range(2):
                beat()
                call()
                device.sync()
    return timed, facts


def _capture(
    row: Row, column: str, timed: Timed, built: Built, facts: dict, plain: Mapping, check: bool
) -> None:
    """Graphs of the calls; what the total computes in a replay is checked as well."""
    (step,) = timed.steps
    for phase, call in step.calls.items():
        try:
            timed.graphs[phase], left = timed.device.capture(call)
        except Exception as error:
            facts["graph_error"] = sentence(error)
            timed.graphs.clear()
            still_alive(timed.device)
            return
        answers = built.replayed(left) if phase == "total" else {}
        if answers and check:
            gate(row, column, answers, row.truth(built.truth), plain, " in a replayed graph")


def build(
    row: Row, names: Sequence[str], device: Cpu, progress: Progress, strict: bool
) -> tuple[dict[str, Column], dict[str, dict]]:
    """Every column that can be timed, and facts about all of them, kept as soon as they exist.

    One that computes something else has `wrong`, one that raises has `failed`; strict: it raises.
    """
    ready: dict[str, Column] = {}
    facts: dict[str, dict] = {}
    plain: dict[str, float] = {}
    # the rewritten column first: its errors are the yardstick of the others
    for name in sorted(names, key=lambda n: n != "rewritten"):
        if name in progress.crashed:
            facts[name] = {"failed": f"it took the process with it: {progress.crashed[name]}"}
            continue
        known = progress.known(name)
        beat = lambda name=name: progress.mark(name)
        beat()
        try:
            ready[name], facts[name] = prepare(row, name, device, plain, known, beat)
        except Exception as error:
            if strict or isinstance(error, Broken):
                raise
            facts[name] = {"wrong" if isinstance(error, Wrong) else "failed": sentence(error)}
            still_alive(device)
        if name == "rewritten":
            plain = facts[name].get("errors", {})
        progress.keep(name, facts[name])
        device.release()
    return {name: ready[name] for name in names if name in ready}, facts


Runner = Callable[[Rounds, int], int]


def count_rounds(row: Row, rounds: Rounds, plan: Plan) -> int:
    """As many rounds as fit into the plan, from one round that warms everything up."""
    if row.least_rounds == 1:  # minutes a call: warmed up while it was checked
        return 1
    start = time.perf_counter()
    rounds.run(1)
    cost = max(time.perf_counter() - start, 1e-9)
    rounds.seconds.clear()
    least = min(plan.least_rounds, row.least_rounds)
    return max(least, min(plan.most_rounds, int(plan.seconds / cost)))


def measure(
    row: Row,
    plan: Plan,
    device: Cpu,
    progress: Progress | None = None,
    *,
    extra: Mapping[str, Column] | None = None,
    names: Sequence[str] | None = None,
    runner: Runner | None = None,
    strict: bool = False,
) -> dict:
    """The result of a row; `extra` columns are measured elsewhere."""
    progress = progress or Progress()
    missing = row.missing(plan.full)
    names = [name for name in names or row.columns if name not in missing]
    with device.quiet(), device.settings(tf32=row.dtype == "tf32"):
        columns, facts = build(row, names, device, progress, strict)
        work = {phase: asdict(work) for phase, work in row.work().items()}
        columns |= extra or {}
        progress.mark()
        before, count, rounds = device.state(), 0, Rounds(columns)
        if columns:
            count = count_rounds(row, rounds, plan)
            over = lambda: time.time() > plan.deadline
            count = runner(rounds, count) if runner else rounds.run(count, over)
        after = device.state()
    summary(rounds, facts)
    columns.clear()
    row.release()
    if "compiled" in names:
        torch.compiler.reset()
    device.release()
    result = {"dtype": row.dtype, "clock": device.clock, "threads": device.threads}
    result |= {"ceiling": row.ceiling, "note": row.note, "work": work, "rounds": count}
    return result | {"before": before, "after": after, "columns": facts, "missing": missing}


def summary(rounds: Rounds, facts: dict[str, dict]) -> None:
    """Spreads of every column's times and of its ratio to ours go to the facts."""
    mine = rounds.seconds.get(OURS, {})
    for name, phases in rounds.seconds.items():
        told = facts.setdefault(name, {})
        told["seconds"] = {p: spread(values)._asdict() for p, values in phases.items()}
        if name != OURS:
            both = {p: ratios(values, mine[p]) for p, values in phases.items() if p in mine}
            told["over_ours"] = {p: r._asdict() for p, r in both.items()}


def rate_of(ceiling, plan: Plan, device: Cpu) -> dict:
    """Medians of each call of a ceiling, and what the rates are computed from."""
    found = {"bytes": ceiling.bytes, "flops": ceiling.flops, "seconds": {}}
    found["threads"] = device.threads
    with device.quiet(), device.settings(tf32=ceiling.name == "tf32"):
        for name, call in ceiling.make().items():
            for _ in range(3):
                call()
            times = [device.time(call) for _ in range(min(9, plan.most_rounds))]
            found["seconds"][name] = spread(times)._asdict()
    device.release()
    return found | {"state": device.state()}
