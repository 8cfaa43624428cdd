"""The loop: time, logs, pictures, checkpoints. It knows nothing of the method."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from rwm_fast.config import Config
from rwm_fast.data.worker import WorkerError
from rwm_fast.errors import UserError, memory_ran_out
from rwm_fast.training.checkpoint import Checkpoints
from rwm_fast.training.clock import Clock
from rwm_fast.training.ending import StopSignal
from rwm_fast.training.fits import Stateful
from rwm_fast.training.guard import BrokenRunError, DivergedError, Guard, NotFiniteError
from rwm_fast.training.processes import ALONE, Processes
from rwm_fast.training.progress import Progress
from rwm_fast.training.stats import JsonLines, Stats

LOG_SECONDS = 10.0  # a slow machine logs at least this often, so that nobody waits in the dark
ADVICE = (
    "lower the learning rates (--train.learning-rate, --train.discriminator-learning-rate), or try "
    "--precision fp32: the run goes on with them in the same folder"
)


class Task(Protocol):
    """What is trained."""

    skipped: Tensor  # 1 if the last step left something out because it was not finite

    def step(
        self, image: Tensor, nimg: int, progress: float, random: torch.Generator
    ) -> dict[str, Tensor]: ...
    def undo(self, nimg: int) -> int | None: ...
    def facts(self) -> dict[str, float]: ...
    def broken_parameter(self) -> str | None: ...
    def state(self) -> dict[str, Stateful]: ...


class Snapshots(Protocol):
    """What is looked at now and then: pictures, scores, exported weights."""

    def sample(self, nimg: int) -> dict[str, float]: ...
    def judge(self, scores: dict[str, float]) -> tuple[str, float]: ...
    def export(self, nimg: int, best: bool = False) -> None: ...


class Loop:
    """Runs a task until the clock says done, the user stops it, or something breaks. `ready` is
    called before anything is written: the run folder may have been taken away.

    Of several processes the first one has the clock, writes and judges; what one process cannot do,
    or is asked to stop, ends the step of none, and then the loop of all."""

    def __init__(
        self,
        task: Task,
        snapshots: Snapshots,
        config: Config,
        clock: Clock,
        checkpoints: Checkpoints,
        log: JsonLines,
        progress: Progress,
        ready: Callable[[], None] = lambda: None,
        job: Processes = ALONE,
    ):
        self.job = job
        self.lower = lambda: "--dry-run tells what a step needs"  # what to do if memory runs out
        self.took: Callable[[float, tuple[str, ...]], None] = lambda seconds, terms: None
        self.task, self.snapshots, self.config, self.clock = task, snapshots, config.train, clock
        self.checkpoints, self.log, self.progress, self.ready = checkpoints, log, progress, ready
        self.settings = config.to_json(indent=None)
        self.progressed = 0.0  # share of the run before the present step, as all processes have it
        self.stats = Stats()
        self.guard = Guard(self.config.divergence, self.config.skipped_in_a_row)
        self.nimg = 0  # images seen: the clock of everything
        self.saved: Path | None = None
        self.saved_at = -1  # images seen then
        self.pictured = -1  # images seen at the last grid
        self.best: tuple[str, float] | None = None  # name and value; more is better

    def resume(self) -> bool:
        """Go on from the newest good checkpoint; False if there is none. For the first process."""
        nimg = self.checkpoints.load_latest({**self.task.state(), "clock": self.clock})
        if nimg is None:
            self.log.start()
            return False
        self.nimg = self.saved_at = nimg
        self.saved, self.best = self.checkpoints.loaded, self.checkpoints.best_score()
        self.log.keep_until(nimg)
        return True

    def start_as_first(self) -> None:
        """Be where the first process is."""
        self.nimg = self.job.as_first(self._state(), self.nimg)
        if not self.job.first:
            self.saved_at = self.nimg or -1

    def run(self, batches: Iterator[dict[str, Tensor]]) -> bool:
        """Train; True when the run is done, False when it was stopped. Both ways it is saved.

        After an error too, if that was not training itself gone wrong: the last finished step, or,
        where that cannot be written, nothing, and the last good state stays. UserError for what the
        user can mend (also a disk), BrokenRunError for numbers that nothing can go on from; any
        other error comes out as it is.
        """
        if self.clock.done(self.nimg) and self.saved_at >= 0:
            return True
        with StopSignal(patient=self.job.count > 1) as stop, self.progress:
            try:
                self._train(batches, stop)
                if self.job.first:
                    self.save()
            except Exception as error:
                raise self._told(self.job.fail() or error) from error
        return self.progressed >= 1

    def _train(self, batches: Iterator[dict[str, Tensor]], stop: StopSignal) -> None:
        config, working, loading, since = self.config, 0.0, 0.0, self.nimg
        ticked, owed = self.clock.seconds, False
        sampled = -config.sample_seconds / 4  # the first grid comes early: people wait for it
        while True:
            begun = time.monotonic()
            image = self._next(batches, stop)
            self.clock.start()
            if self._ends(image is None or stop.asked or self.progress.gone) or image is None:
                return
            loading += time.monotonic() - begun
            before = self.nimg
            self.step(image)
            if not self.job.first:
                continue
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
            owed = owed or crosses(config.checkpoint_kimg)
            if owed and not self.guard.beyond:  # not while losses are out of bounds
                self.save()
                owed = False

    def _next(self, batches: Iterator[dict[str, Tensor]], stop: StopSignal) -> Tensor | None:
        """The next pictures; None when a stop met the processes that read them too."""
        try:
            return next(batches)["image"]
        except WorkerError:
            if stop.asked:
                return None
            raise

    def _ends(self, here: bool) -> bool:
        """Whether all processes end before the next step: at the end, or as one wants to."""
        progress = self.clock.progress(self.nimg)
        self.progressed, ends = self.job.agree(progress, here or progress >= 1)
        return ends

    def step(self, image: Tensor) -> None:
        random = step_generator(self.config.seed, self.nimg)
        begun = time.monotonic()
        with self.job.step():
            terms = self.task.step(image, self.nimg, self.progressed, random)
        self.took(time.monotonic() - begun, tuple(terms))
        self.nimg += len(image) * self.job.count
        if self.job.first:
            self.stats.add(terms)
            self.guard.add(terms, self.task.skipped)
            if self.guard.due:
                self.guard.look()

    def tick(self, rate: float = 0.0, loading: float = 0.0) -> None:
        """Means since the last tick, to the log and the status line; `loading` = share of the time
        that the step waited for pictures."""
        self.guard.look()
        losses, broken = self.stats.collect()
        if not losses and not broken:
            return
        record = {"nimg": self.nimg, "seconds": self.clock.seconds}
        speed = {"images_per_second": rate, "loading_share": loading} if rate else {}
        skipped = {"skipped_steps": self.guard.skipped} if self.guard.skipped else {}
        self.ready()
        self.log.append(
            record
            | speed
            | self.task.facts()
            | {f"loss/{name}": value for name, value in losses.items()}
            | skipped
            | {f"not_finite/{name}": count for name, count in broken.items()}
        )
        self.progress.losses(losses, self.nimg, self.clock, rate)

    def sample(self) -> None:
        self.ready()
        self.pictured = self.nimg
        scores = self.snapshots.sample(self.nimg)
        self.log.append(
            {"nimg": self.nimg, "seconds": self.clock.seconds}
            | {f"score/{name}": value for name, value in scores.items()}
        )
        self.progress.scores(scores, self.nimg)
        self._keep_best(*self.snapshots.judge(scores))

    def _keep_best(self, name: str, value: float) -> None:
        known = self.best is not None and self.best[0] == name
        better = math.isfinite(value) and not (known and value <= self.best[1])  # type: ignore[index]
        if better and not self.guard.beyond and not self.task.broken_parameter():
            self.checkpoints.write(
                self.checkpoints.best, self.nimg, self._state(), config=self.settings,
                score=(name, value),
            )  # fmt: skip
            self.snapshots.export(self.nimg, best=True)
            self.best = (name, value)

    def save(self) -> None:
        """A checkpoint and the exported weights, unless a loss is out of bounds or a parameter not
        finite."""
        self.tick()
        if self.guard.beyond:
            raise DivergedError(self.guard.verdict())
        broken = self.task.broken_parameter()
        if broken:
            raise NotFiniteError(f"the parameter {broken} is not finite")
        self.write()

    def write(self) -> None:
        self.ready()
        self.saved = self.checkpoints.save(self.nimg, self._state(), config=self.settings)
        self.saved_at = self.nimg
        self.snapshots.export(self.nimg)

    def _state(self) -> dict[str, Stateful]:
        return {**self.task.state(), "clock": self.clock}

    def _told(self, error: Exception) -> Exception:
        """Save what can be saved, and put into words what happened."""
        stopped = f"training stopped after {self.nimg / 1000:.3f} kimg: "
        if isinstance(error, BrokenRunError):
            skipped = isinstance(error, NotFiniteError)  # and so the weights are as before
            kept = self._rescue() if skipped else self._kept()
            return type(error)(f"{stopped}{error}; {kept}; {ADVICE}")
        if not self.job.first:
            return error
        kept = self._rescue()
        if isinstance(error, UserError):
            return UserError(f"{stopped}{error}; {kept}")
        if isinstance(error, OSError):
            return UserError(f"{stopped}{_what(error)}; {kept}")
        if memory := memory_ran_out(error):
            return UserError(f"{stopped}{memory} ({self.lower()}); {kept}")
        self.progress.say(f"{stopped}{type(error).__name__}; {kept}")
        return error

    def _rescue(self) -> str:
        """Save the last finished step after an error; says what is kept, and where."""
        nimg = self.task.undo(self.nimg)
        if nimg is None or self.task.broken_parameter() or self.guard.beyond:
            return self._kept()
        self.nimg = nimg
        try:
            if nimg != self.saved_at:
                self.write()
        except Exception as error:
            return f"what came last could not be saved ({_what(error)}); {self._kept()}"
        return f"saved as {self.saved}; the same command goes on"

    def _kept(self) -> str:
        return f"the last good state is {self.saved}" if self.saved else "nothing was saved yet"


def _what(error: Exception) -> str:
    """What an error is about, without its place in the source."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error) or type(error).__name__


def step_generator(seed: int, nimg: int) -> torch.Generator:
    """Random numbers of one step, a function of (seed, images seen) alone: a resumed run draws
    what the uninterrupted one would have drawn. On the CPU, so that every device gets the same."""
    digest = hashlib.blake2b(f"{seed}:{nimg}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
