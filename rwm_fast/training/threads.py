"""How many CPU threads a run uses, chosen by timing its own steps.

Threads of one operator wait for each other. Where one of their cores is taken by somebody else all
wait for it, and then fewer threads are faster: beside two busy processes on two cores the demo's
two threads make less than half of what one makes. Who else runs is not asked; the steps tell.
"""

from __future__ import annotations

import contextlib
import statistics
from collections import deque
from collections.abc import Callable, Hashable, Iterator

import torch

from rwm_fast.training.loop import Loop

SECONDS, STEPS = 0.5, 4  # a measurement lasts at least so long, and so many steps,
ENOUGH = 2.0  # or so many seconds, for long steps
BETTER = 0.93  # another number is taken if its time for the same steps is below this share
HOPELESS = 1.5  # … and given up after one step above this one
SLOWER, FASTER = 1.25, 0.8  # changes of the speed, after which numbers are tried anew
PAUSE, LONGEST = 10.0, 160.0  # seconds between tries when nothing changes, doubled each time
SHARE = 0.03  # of all time that slower numbers may cost


class Chooser:
    """The number of threads for the next step (`threads`), from seconds of the steps before.

    Starts with `most`, then tries half and twice as many and goes on where that is faster. It tries
    anew when the same kind of step takes longer or shorter than it did, and now and then in any
    case, for one thread may not feel that a neighbour's core became free; what a try costs is
    waited for before the next, so that tries are at most SHARE of the time. Steps differ in their
    terms, so times are compared within a kind. It has no clock: time is the sum of what it is told.
    """

    def __init__(self, most: int, told: Callable[[int, int, float], object] = lambda *a: None):
        self.most = self.threads = self.chosen = most
        self._told = told  # called with (before, after, times as fast) when another is chosen
        self._now = self._next = 0.0  # seconds told; when to try again
        self._pause = PAUSE
        self._to_try: list[int] = []
        self._warm = True  # the next step is the first one of its number
        self._loss = 0.0  # seconds of this round that slower numbers cost
        self._learn()

    def add(self, seconds: float, kind: Hashable = None) -> None:
        """A step of that kind, of `threads` threads, took so long."""
        self._now += seconds
        usual = self._usual(kind)
        if self.threads != self.chosen:
            self._tried(seconds, usual)
        elif self._warm:  # the first step after a change
            self._warm = False
        else:
            self._kept(seconds, usual, kind)

    def _learn(self) -> None:
        """Forget how long steps took: the next ones say so."""
        self._times: dict[Hashable, deque[float]] = {}
        self._known = 0.0  # seconds of steps learnt from
        self._steps = 0
        self._warm = True
        self._measure()

    def _measure(self) -> None:
        self._took = self._expected = self._spent = 0.0
        self._count = 0

    def _usual(self, kind: Hashable) -> float | None:
        times = self._times.get(kind)
        return statistics.fmean(times) if times else None

    def _kept(self, seconds: float, usual: float | None, kind: Hashable) -> None:
        due = self._to_try or (self.most > 1 and self._now >= self._next)
        if usual is None or not _enough(self._known, self._steps):
            self._times.setdefault(kind, deque(maxlen=32)).append(seconds)
            self._known, self._steps = self._known + seconds, self._steps + 1
            if due and self._known >= ENOUGH:
                self._begin()
            return
        ratio = self._ratio(seconds, usual)
        if due:
            self._begin()
        elif ratio is not None:
            changed = ratio > SLOWER or ratio < FASTER
            self._measure()
            if changed and self.most > 1:
                self._learn()
                self._next, self._pause = min(self._next, self._now), PAUSE
            elif not changed:
                self._times.setdefault(kind, deque(maxlen=32)).append(seconds)

    def _ratio(self, seconds: float, usual: float) -> float | None:
        """Time over usual time of the same steps, once enough were measured."""
        self._took, self._expected = self._took + seconds, self._expected + usual
        self._count += 1
        enough = _enough(self._took, self._count)
        return self._took / self._expected if enough else None

    def _begin(self) -> None:
        """Try the next number, or the first ones of a round."""
        if not self._to_try:
            near = (max(self.chosen // 2, 1), min(self.chosen * 2, self.most))
            self._to_try = [n for n in dict.fromkeys(near) if n != self.chosen]
            self._loss = 0.0
        self.threads = self._to_try.pop(0)
        self._warm = True
        self._measure()

    def _tried(self, seconds: float, usual: float | None) -> None:
        self._spent += seconds - (usual or seconds)
        warm, self._warm = self._warm, False
        if usual is None or (warm and seconds < 2 * HOPELESS * usual):
            return
        ratio = self._ratio(seconds, usual)
        if seconds > 2 * HOPELESS * usual or self._took > HOPELESS * self._expected:
            ratio = self._took / self._expected
        if ratio is None:
            return
        self._loss += max(self._spent, 0.0)
        before, after = self.chosen, self.threads
        if ratio < BETTER:  # and on in the same direction
            further = after // 2 if after < before else min(after * 2, self.most)
            self._to_try = [further] if further not in (0, after) else []
            self.chosen, self._pause = after, PAUSE
            self._told(before, after, 1 / ratio)
            self._learn()
        self.threads = self.chosen
        self._warm = True
        self._measure()
        if not self._to_try:
            self._next = self._now + max(self._pause, self._loss / SHARE)
            self._pause = min(2 * self._pause, LONGEST)


def _enough(seconds: float, steps: int) -> bool:
    return seconds >= ENOUGH or (seconds >= SECONDS and steps >= STEPS)


@contextlib.contextmanager
def chosen_threads(loop: Loop) -> Iterator[None]:
    """Within the block the loop's steps choose the number of torch's threads, starting with the
    present one, which is back afterwards. Other choices are said and logged."""
    most = torch.get_num_threads()

    def told(before: int, after: int, gain: float) -> None:
        loop.progress.say(
            f"CPU threads: {after} instead of {before}, {gain:.1f} times as fast beside what else "
            f"runs here"
        )
        loop.log.append({"nimg": loop.nimg, "seconds": loop.clock.seconds, "threads": after})

    chooser = Chooser(most, told)

    def took(seconds: float, kind: Hashable) -> None:
        before = chooser.threads
        chooser.add(seconds, kind)
        if chooser.threads != before:
            torch.set_num_threads(chooser.threads)

    loop.took = took
    try:
        yield
    finally:
        torch.set_num_threads(most)
