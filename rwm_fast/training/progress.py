"""What a run says while it runs: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from typing import TextIO

from tqdm import tqdm

from rwm_fast.training.clock import Clock

PLAIN_SECONDS = 5.0  # least time between plain lines, so that a fast run does not flood a log file


class Progress:
    """A bar with time left, images/s and losses, or lines that say the same."""

    def __init__(self, stream: TextIO | None = None):
        self.stream = stream or sys.stderr
        self.bar: tqdm | None = None
        self._text, self._said = "", -PLAIN_SECONDS

    def __enter__(self) -> Progress:
        if self.stream.isatty():
            self.bar = tqdm(
                total=1000,
                file=self.stream,
                dynamic_ncols=True,
                bar_format="{percentage:3.0f}% {bar} {desc}",
            )
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None

    def preparing(self, done: int, total: int) -> None:
        """While pictures are drawn or checked."""
        now = time.monotonic()
        if now - self._said >= PLAIN_SECONDS or done == total:
            self._said = now
            self.say(f"pictures: {done} of {total}")

    def show(self, nimg: int, clock: Clock, rate: float) -> None:
        """After every step; costs nothing without a terminal."""
        if self.bar is not None:
            self.bar.n = int(1000 * clock.progress(nimg))
            self.bar.set_description_str(f"{status(nimg, clock, rate)} {self._text}", refresh=False)
            self.bar.update(0)

    def losses(self, losses: dict[str, float], nimg: int, clock: Clock, rate: float) -> None:
        """At every log line."""
        self._text = " ".join(f"{name} {value:.3f}" for name, value in losses.items())
        now = time.monotonic()
        if self.bar is None and rate and now - self._said >= PLAIN_SECONDS:
            self._said = now
            self.say(f"{status(nimg, clock, rate)} {self._text}")

    def scores(self, scores: dict[str, float], nimg: int) -> None:
        """At every picture."""
        shown = " ".join(f"{name} {value:.3f}" for name, value in scores.items())
        self.say(f"{nimg / 1000:.1f} kimg scores: {shown}")

    def say(self, text: str) -> None:
        if self.bar is not None:
            self.bar.write(text, file=self.stream)
        else:
            print(text, file=self.stream, flush=True)


def status(nimg: int, clock: Clock, rate: float) -> str:
    left = int(clock.remaining(nimg, rate))
    hours, minutes, seconds = left // 3600, left // 60 % 60, left % 60
    time_left = f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
    return f"{nimg / 1000:.1f} kimg, {time_left} left, {rate:.0f} images/s"
