"""What a run says while it runs: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import shutil
import sys
import textwrap
import time
from collections.abc import Sequence
from typing import Any, TextIO

from tqdm import tqdm

from rwm_fast.training.clock import Clock

PLAIN_SECONDS = 5.0  # least time between plain lines, so that a fast run does not flood a log file
WIDTH = 80  # of plain lines
# Names of terms in lines that have to be short, and the order of their columns: first what people
# watch, for a narrow line has only the first ones. log.jsonl has all, under their own names.
LABELS = {
    "reconstruction": "rec",
    "gan_swapped": "swap",
    "patch": "patch",
    "d_real": "d.real",
    "d_swapped": "d.swap",
    "content_alignment": "align",
    "edge": "edge",
    "consistency_content": "c.cont",
    "consistency_style": "c.style",
    "gan_reconstructed": "grec",
    "gan_hybrid": "hybrid",
    "d_reconstructed": "d.rec",
    "d_hybrid": "d.hyb",
    "d_patch_real": "p.real",
    "d_patch_swapped": "p.swap",
    "r1": "r1",
    "r1_patch": "r1.p",
}


class Stream:
    """A text stream whose reader may go away: then `gone` is true, and what is written is lost."""

    def __init__(self, stream: TextIO | None):
        self.stream, self.gone = stream, False

    def write(self, text: str) -> None:
        self._try("write", text)

    def flush(self) -> None:
        self._try("flush")

    def _try(self, name: str, *arguments: str) -> None:
        if self.stream is not None and not self.gone:
            try:
                getattr(self.stream, name)(*arguments)
            except (OSError, ValueError):  # a closed pipe, terminal or file
                self.gone = True

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


class Progress:
    """A bar with time left, images/s and losses, or lines that say the same.

    terms: names of the losses that there can be; their columns keep their places.
    """

    def __init__(self, stream: TextIO | None = None, terms: Sequence[str] = ()):
        self.stream = Stream(stream or sys.stderr)
        self.terms = list(terms)
        self.bar: tqdm | None = None
        self._values: dict[str, float] = {}
        self._said = -PLAIN_SECONDS

    def __enter__(self) -> Progress:
        if self.stream.stream is not None and self.stream.isatty():
            self.bar = tqdm(
                total=1000,
                file=self.stream,
                dynamic_ncols=True,
                bar_format="{percentage:3.0f}% {desc}",
            )
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None

    @property
    def gone(self) -> bool:
        """Whether nobody reads any more: the pipe, or the terminal, is closed."""
        return self.stream.gone

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
            text = self.line(status(nimg, clock, rate), self.width() - len("100% "))
            self.bar.set_description_str(text, refresh=False)
            self.bar.update(0)

    def losses(self, losses: dict[str, float], nimg: int, clock: Clock, rate: float) -> None:
        """At every log line."""
        self._values = dict(losses)
        now = time.monotonic()
        if self.bar is None and rate and now - self._said >= PLAIN_SECONDS:
            self._said = now
            self.say(self.line(status(nimg, clock, rate), WIDTH))

    def line(self, start: str, width: int) -> str:
        """`start` and as many columns as fit."""
        names = self.terms or list(self._values)
        for name in sorted(names, key=lambda n: (list(LABELS) + [n]).index(n)):
            value = self._values.get(name)
            shown = "-" if value is None else f"{value:.3g}"
            cell = f"  {LABELS.get(name, name)} {shown:>6}"
            if len(start) + len(cell) > width:
                break
            start += cell
        return start

    def scores(self, scores: dict[str, float], nimg: int) -> None:
        """At every picture: as many as two lines hold."""
        shown = ", ".join(f"{name} {value:.3f}".replace("_", " ") for name, value in scores.items())
        text = f"{nimg / 1000:.1f} kimg scores: {shown}"
        self.say(
            textwrap.fill(
                text, self.width(), subsequent_indent="    ", max_lines=2, placeholder=" …"
            )
        )

    def width(self) -> int:
        """Columns of the terminal; of plain lines, where there is none."""
        return shutil.get_terminal_size((WIDTH, 24)).columns if self.bar is not None else WIDTH

    def say(self, text: str) -> None:
        if self.bar is not None:
            with contextlib.suppress(OSError, ValueError):
                self.bar.write(text, file=self.stream)
        else:
            self.stream.write(text + "\n")
            self.stream.flush()


def status(nimg: int, clock: Clock, rate: float) -> str:
    left = int(clock.remaining(nimg, rate))
    hours, minutes, seconds = left // 3600, left // 60 % 60, left % 60
    time_left = f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
    return f"{nimg / 1000:6.1f} kimg {time_left:>7} left {rate:4.0f} img/s"
