"""The loop: time, logs, pictures, checkpoints. It knows nothing of the method."""

from __future__ import annotations

import hashlib
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from rwm_fast.config import TrainConfig
from rwm_fast.training.checkpoint import Checkpoints
from rwm_fast.training.clock import Clock
from rwm_fast.training.fits import Stateful
from rwm_fast.training.progress import Progress
from rwm_fast.training.stats import JsonLines, NotFiniteError, Stats

LOG_SECONDS = 10.0  # a slow machine logs at least this often, so that nobody waits in the dark


class Task(Protocol):
    """What is trained."""

    def step(
        self, image: Tensor, nimg: int, progress: float, random: torch.Generator
    ) -> dict[str, Tensor]: ...
    def facts(self) -> dict[str, float]: ...
    def broken_parameter(self) -> str | None: ...
    def state(self) -> dict[str, Stateful]: ...


class Snapshots(Protocol):
    """What is looked at now and then: pictures, scores, exported weights."""

    def sample(self, nimg: int) -> dict[str, float]: ...
    def export(self) -> None: ...


class Loop:
    """Runs a task until the clock says done or the user stops it."""

    def __init__(
        self,
        task: Task,
        snapshots: Snapshots,
        config: TrainConfig,
        clock: Clock,
        checkpoints: Checkpoints,
        log: JsonLines,
        progress: Progress,
    ):
        self.task, self.snapshots, self.config, self.clock = task, snapshots, config, clock
        self.checkpoints, self.log, self.progress = checkpoints, log, progress
        self.stats = Stats()
        self.nimg = 0  # images seen: the clock of everything
        self.saved: Path | None = None
        self.pictured = -1  # images seen at the last grid

    def resume(self) -> bool:
        """Go on from the newest whole checkpoint; False if there is none."""
        nimg = self.checkpoints.load_latest({**self.task.state(), "clock": self.clock})
        if nimg is None:
            return False
        self.nimg, self.saved = nimg, self.checkpoints.paths()[-1]
        self.log.keep_until(nimg)
        return True

    def run(self, batches: Iterator[dict[str, Tensor]]) -> bool:
        """Train; True when the run is done, False when it was stopped. Both ways it is saved."""
        if self.clock.done(self.nimg) and self.saved:
            return True
        config, working, loading, since = self.config, 0.0, 0.0, self.nimg
        ticked = self.clock.seconds
        sampled = -config.sample_seconds / 4  # the first grid comes early: people wait for it
        with StopSignal() as stop, self.progress:
            while not (self.clock.done(self.nimg) or stop.asked):
                begun = time.monotonic()
                image = next(batches)["image"]
                loading += time.monotonic() - begun
                random = step_generator(config.seed, self.nimg)
                before, progress = self.nimg, self.clock.progress(self.nimg)
                self.stats.add(self.task.step(image, self.nimg, progress, random))
                self.nimg += len(image)
                working += time.monotonic() - begun
                rate = (self.nimg - since) / max(working, 1e-9)
                self.progress.show(self.nimg, self.clock, rate)
                crosses = lambda kimg, a=before: self.nimg // (kimg * 1000) > a // (kimg * 1000)
                if crosses(config.log_kimg) or self.clock.seconds - ticked > LOG_SECONDS:
                    self.tick(rate, loading / max(working, 1e-9))
                    working, loading, since = 0.0, 0.0, self.nimg
                    ticked = self.clock.seconds
                waited = self.clock.seconds - sampled
                if crosses(config.sample_kimg) or 0 < config.sample_seconds <= waited:
                    self.sample()
                    sampled = self.clock.seconds
                if crosses(config.checkpoint_kimg):
                    self.save()
            done = self.clock.done(self.nimg)
            self.save()
        return done

    def tick(self, rate: float = 0.0, loading: float = 0.0) -> None:
        """Means since the last tick, to the log and the status line; `loading` = share of the time
        that the step waited for pictures."""
        try:
            losses = self.stats.collect()
        except NotFiniteError as error:
            raise self.failure(str(error)) from None
        if not losses:
            return
        record = {"nimg": self.nimg, "seconds": self.clock.seconds}
        speed = {"images_per_second": rate, "loading_share": loading} if rate else {}
        self.log.append(
            record
            | speed
            | self.task.facts()
            | {f"loss/{name}": value for name, value in losses.items()}
        )
        self.progress.losses(losses, self.nimg, self.clock, rate)

    def sample(self) -> None:
        self.pictured = self.nimg
        scores = self.snapshots.sample(self.nimg)
        self.log.append(
            {"nimg": self.nimg, "seconds": self.clock.seconds}
            | {f"score/{name}": value for name, value in scores.items()}
        )
        self.progress.scores(scores, self.nimg)

    def save(self) -> None:
        """A checkpoint and the exported weights, unless a loss or a parameter is not finite."""
        self.tick()
        broken = self.task.broken_parameter()
        if broken:
            raise self.failure(f"the parameter {broken} is not finite")
        state = {**self.task.state(), "clock": self.clock}
        self.saved = self.checkpoints.save(self.nimg, state)
        self.snapshots.export()

    def failure(self, what: str) -> NotFiniteError:
        kept = f"the last good state is {self.saved}" if self.saved else "nothing was saved yet"
        return NotFiniteError(
            f"training stopped after {self.nimg / 1000:.3f} kimg: {what}; {kept}; lower the "
            f"learning rates, or try --precision fp32"
        )


def step_generator(seed: int, nimg: int) -> torch.Generator:
    """Random numbers of one step, a function of (seed, images seen) alone: a resumed run draws
    what the uninterrupted one would have drawn. On the CPU, so that every device gets the same."""
    digest = hashlib.blake2b(f"{seed}:{nimg}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


class StopSignal:
    """Within the block Ctrl-C (or a polite kill) asks for a stop after the current step; a second
    one stops at once."""

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[int, Any] = {}  # handlers, in the forms that the signal module has

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._ask)
        return self

    def _ask(self, number: int, frame: object) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
