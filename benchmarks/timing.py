"""Rounds, clocks and ratios: how columns of one row are timed against each other.

The columns of a row run in turn, a round is one call of each, and the order changes from round to
round. A ratio is taken inside each round and then summarised, so that whatever slows the machine
for a while slows both sides of it.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import torch

Seconds = dict[str, float]  # by phase: "forward" (where there is a backward pass) and "total"

# Time of one process, all threads: what other work on the machine disturbs least. With several
# threads it would count their waiting as work, so then the clock on the wall is read.
CPU, WALL = "process CPU", "wall"
CLOCKS: dict[str, Callable[[], float]] = {CPU: time.process_time, WALL: time.perf_counter}


class Spread(NamedTuple):
    """Median, 20th and 80th percentile."""

    median: float
    p20: float
    p80: float


def spread(values: Sequence[float]) -> Spread:
    """Percentiles by linear interpolation between the sorted values."""
    ordered = sorted(values)

    def at(share: float) -> float:
        place = share * (len(ordered) - 1)
        low = int(place)
        high = min(low + 1, len(ordered) - 1)
        return ordered[low] + (place - low) * (ordered[high] - ordered[low])

    return Spread(statistics.median(ordered), at(0.2), at(0.8))


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
class Step:
    """One call that is timed."""

    forward: Callable[[], object]
    backward: Callable[[object], object] | None = None
    before: Callable[[], object] = lambda: None  # untimed, before every call
    weight: float = 1.0  # factor on its times, where calls of several kinds make up one unit


@dataclass
class Local:
    """Steps in this process, each with cold caches; their weighted times are added."""

    steps: Sequence[Step]
    clock: str = CPU
    evict: Callable[[], object] = lambda: None

    def measure(self) -> Seconds:
        sums: Seconds = {}
        for step in self.steps:
            for phase, seconds in self._measure(step).items():
                sums[phase] = sums.get(phase, 0.0) + step.weight * seconds
        return sums

    def _measure(self, step: Step) -> Seconds:
        clock = CLOCKS[self.clock]
        step.before()
        self.evict()
        start = clock()
        result = step.forward()
        middle = clock()
        if step.backward is None:
            return {"total": middle - start}
        gradients = step.backward(result)
        end = clock()
        del result, gradients
        return {"forward": middle - start, "total": end - start}


@dataclass
class Rounds:
    """Interleaved measurements of named columns."""

    columns: Mapping[str, Column]
    seconds: dict[str, dict[str, list[float]]] = field(default_factory=dict)  # column, phase

    def __post_init__(self):
        self._queue: list[str] = []

    def run(self, count: int) -> None:
        """`count` rounds of every column."""
        self.plan(count)
        self.finish()

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


class quiet:
    """Inside the block the garbage collector sleeps and torch has this many threads."""

    def __init__(self, threads: int):
        self.threads = threads

    def __enter__(self) -> None:
        self.before = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        gc.collect()
        gc.disable()

    def __exit__(self, *_: object) -> None:
        gc.enable()
        torch.set_num_threads(self.before)


def summary(rounds: Rounds, ours: str) -> tuple[dict, dict]:
    """Spreads of every column's times, and of its ratio to ours, by column and phase."""
    times = {
        name: {phase: spread(values)._asdict() for phase, values in phases.items()}
        for name, phases in rounds.seconds.items()
    }
    mine = rounds.seconds[ours]
    against = {
        name: {p: ratios(values, mine[p])._asdict() for p, values in phases.items() if p in mine}
        for name, phases in rounds.seconds.items()
        if name != ours
    }
    return times, against
