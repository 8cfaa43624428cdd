"""How many CPU threads a run uses: the cores that are free at its start, then by timing its steps.

Threads of one operator wait for each other. Where one of their cores is taken by somebody else all
wait for it, and then fewer threads are faster: beside two busy processes on two cores the demo's
two threads make less than half of what one makes, and their first steps take ten times as long. So
the cores that others leave free, which the system tells, say where to begin and what is worth a
try; what is taken, the steps tell.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Hashable, Iterator
from pathlib import Path

import torch

from rwm_fast.training.loop import Loop

SECONDS, STEPS = 0.5, 4  # a measurement lasts at least so long, and so many steps,
ENOUGH = 2.0  # or so many seconds, for long steps
BETTER = 0.93  # another number is taken if its time for the same steps is below this share
HOPELESS = 1.5  # … and given up after one step above this one
SLOWER, FASTER = 1.25, 0.8  # changes of the speed, after which numbers are tried anew
PAUSE, LONGEST = 10.0, 160.0  # seconds between tries when nothing changes, doubled each time
SHARE = 0.03  # of all time that slower numbers may cost
REMEMBERED = 16  # steps of a kind that its usual time is the mean of
GLANCE = 0.2  # seconds, before the first step, in which free cores are counted
_TICKS = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100


class FreeCores:
    """How many cores were idle or this process's own since the last call; None where the system
    does not tell (Linux does)."""

    def __init__(self, root: str | Path = "/"):
        self._stat = Path(root) / "proc/stat"
        self._free: float | None = None
        self._before = self._now()

    def __call__(self) -> float | None:
        now = self._now()
        wall, idle, own = (b - a for a, b in zip(self._before, now, strict=True))
        if wall >= GLANCE / 2:  # the system counts in hundredths of a second
            self._before = now
            self._free = (idle + own) / wall if now[1] else None
        return self._free

    def _now(self) -> tuple[float, float, float]:
        """Seconds: the time, idle ones of all allowed cores together, those of this process."""
        try:
            names = {f"cpu{core}" for core in os.sched_getaffinity(0)}
            rows = [line.split() for line in self._stat.read_text().splitlines()]
            idle = sum(int(row[4]) for row in rows if row and row[0] in names) / _TICKS
        except (OSError, AttributeError, ValueError, IndexError):
            idle = 0.0
        return time.monotonic(), idle, time.process_time()


class Chooser:
    """The number of threads for the next step (`threads`), from seconds of the steps before.

    Starts with the cores that are free (`free`; None = not known, then `most`), then tries half and
    twice as many, no more than are free, and goes on where that is faster. It tries anew when the
    same kind of step takes longer or shorter than it did, and now and then in any case; every
    LONGEST seconds also more than are free, for a neighbour may give way. What a try costs is
    waited for before the next, so that tries are at most SHARE of the time. Steps differ in their
    terms, so times are compared within a kind. It has no clock: time is the sum of what it is told.
    """

    def __init__(
        self,
        most: int,
        told: Callable[[int, int, float], object] = lambda *a: None,
        free: float | None = None,
    ):
        self.most, self._told = most, told  # called with (before, after, times as fast)
        self._limit = self._most(free)
        self.threads = self.chosen = self._limit
        self._usual: dict[Hashable, tuple[int, float]] = {}  # steps, their mean time
        self._now = self._next = 0.0  # seconds told; when to try again
        self._beyond = LONGEST  # when to try more than are free
        self._pause, self._loss = PAUSE, 0.0  # seconds of this round that slower numbers cost
        self._to_try: list[int] = []
        self._first = True
        self._settle(self.chosen)

    def add(self, seconds: float, kind: Hashable = None, free: float | None = None) -> None:
        """A step of that kind, of `threads` threads, took so long beside so many free cores."""
        self._now += seconds
        steps, usual = self._usual.get(kind, (0, 0.0))
        first = self._first  # of its number: it says nothing, unless it is awful
        self._first = False
        trying, awful = self.threads != self.chosen, 0 < 2 * HOPELESS * usual < seconds
        if trying and steps:
            self._loss += seconds - usual
        if first and not (trying and awful):
            return
        if not trying:
            steps = min(steps + 1, REMEMBERED)
            self._usual[kind] = (steps, usual + (seconds - usual) / steps)
        if not usual:
            return
        self._took += seconds
        self._expected += usual
        self._count += 1
        ratio = self._took / self._expected
        enough = self._took >= ENOUGH or (self._took >= SECONDS and self._count >= STEPS)
        if trying and (enough or awful or ratio > HOPELESS):
            self._tried(ratio)
        elif enough and not trying:
            self._kept(ratio, free)

    def _most(self, free: float | None) -> int:
        return self.most if free is None else min(max(round(free), 1), self.most)

    def _settle(self, threads: int) -> None:
        """Measure anew, with so many threads."""
        self.threads, self._first = threads, True
        self._measure()

    def _measure(self) -> None:
        self._took = self._expected = 0.0
        self._count = 0

    def _rescale(self, ratio: float) -> None:
        self._usual = {kind: (1, mean * ratio) for kind, (_, mean) in self._usual.items()}

    def _kept(self, ratio: float, free: float | None) -> None:
        if not FASTER < ratio < SLOWER:
            self._rescale(ratio)
            self._next, self._pause = self._now, PAUSE
        self._measure()
        if not self._to_try and self._now >= self._next:
            self._limit = self.most if self._now >= self._beyond else self._most(free)
            near = min(self.chosen // 2 or 1, self._limit), min(self.chosen * 2, self._limit)
            self._to_try = [n for n in dict.fromkeys(near) if n != self.chosen]
            self._loss = 0.0
        if self._to_try:
            self._settle(self._to_try.pop(0))

    def _tried(self, ratio: float) -> None:
        before, after = self.chosen, self.threads
        if ratio < BETTER:  # and on in the same direction
            further = after // 2 if after < before else min(after * 2, self._limit)
            self._to_try = [further] if further not in (0, after) else []
            self.chosen, self._pause = after, PAUSE
            self._told(before, after, 1 / ratio)
            self._rescale(ratio)
        self._settle(self.chosen)
        if not self._to_try:
            wait = max(self._pause, self._loss / SHARE)
            self._next, self._pause = self._now + wait, min(2 * self._pause, LONGEST)
            if self._limit == self.most:
                self._beyond = self._now + max(LONGEST, wait)


@contextlib.contextmanager
def chosen_threads(loop: Loop) -> Iterator[None]:
    """Within the block the loop's steps choose the number of torch's threads, at most the present
    one, which is back afterwards. The choices are said and logged."""
    most, free = torch.get_num_threads(), FreeCores()

    def told(before: int, after: int, gain: float = 0.0) -> None:
        faster = f"{gain:.1f} times as fast beside what else runs here"
        why = faster if gain else "as many as cores are free"
        loop.progress.say(f"CPU threads: {after} instead of {before}, {why}")
        loop.log.append({"nimg": loop.nimg, "seconds": loop.clock.seconds, "threads": after})

    time.sleep(GLANCE)
    chooser = Chooser(most, told, free())
    torch.set_num_threads(chooser.threads)
    if chooser.threads != most:
        told(most, chooser.threads)

    def took(seconds: float, kind: Hashable) -> None:
        before = chooser.threads
        chooser.add(seconds, kind, free())
        if chooser.threads != before:
            torch.set_num_threads(chooser.threads)

    loop.took = took
    try:
        yield
    finally:
        torch.set_num_threads(most)
