"""Batches of training pictures, prepared ahead of the step that uses them."""

from __future__ import annotations

import collections
import itertools
import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from rwm_fast.config import Config
from rwm_fast.data.photos import PhotoSet, Sample, Unreadable
from rwm_fast.data.pool import LandscapePool
from rwm_fast.data.worker import Worker, WorkerError

log = logging.getLogger("rwm_fast")
AHEAD = 3  # batches prepared ahead, per worker
STUCK_SECONDS = 45.0  # without a single picture: seconds of decoding are the worst that was seen
CLOSING_SECONDS = 2.0  # that the end waits for a picture that is being read
Collated = tuple[Tensor, Tensor, list[Unreadable]]
Reads = Callable[[list[int], Callable[[], object]], list[Sample]]


class TrainingSet(Protocol):
    """What batches are made of: `PhotoSet` and `LandscapePool`."""

    image_size: int
    domains: list[str]

    @property
    def workers(self) -> int: ...  # asked for; 0 = one thread of this process
    @property
    def in_memory(self) -> bool: ...
    def __len__(self) -> int: ...
    def sample(self, position: int) -> Sample: ...
    def report_unreadable(self, more: Sequence[Unreadable]) -> None: ...
    def describe(self) -> str: ...
    def report(self) -> dict[str, Any]: ...


def open_training_set(
    config: Config, progress: Callable[[int, int], None] | None = None
) -> TrainingSet:
    """The pictures that `config.data` names, or landscapes when it names none.

    `progress` is called with (done, total) while pictures are checked or drawn. UserError for
    sources that cannot be used.
    """
    data, size, seed = config.data, config.model.image_size, config.train.seed
    if data.sources:
        return PhotoSet(data, size, seed, progress, config.train.batch)
    return LandscapePool(data.pool, size, seed, progress)


def make_loader(
    pictures: TrainingSet,
    batch_size: int,
    *,
    start: int = 0,
    rows: Sequence[int] | None = None,
    device: torch.device | str = "cpu",
    tell: Callable[[list[Unreadable]], object] | None = None,
) -> Loader:
    """Endless batches from image number `start` of the stream on.

    A batch is a pure function of (seed of the set, start + images since): resuming with `start` =
    images seen continues the very stream. With `rows` only these of every batch are prepared, for a
    process that has so many of it. Pictures in memory are prepared by `pictures.workers`
    threads, others by so many processes; one thread does it when that is 0. What cannot be read
    goes to `tell`, for a process that is not the only one; without it the loader reports it itself.
    """
    if batch_size < 1:
        raise ValueError(f"make_loader: batch_size must be positive, got {batch_size}")
    own = range(batch_size) if rows is None else rows
    plan = ([n + row for row in own] for n in itertools.count(start, batch_size))
    return Loader(pictures, plan, torch.device(device), tell)


class Loader:
    """Iterator over dict(image float32 [N, 3, S, S] in [-1, 1], domain int64 [N]) on the device.

    Images are laid out channels_last. UserError when too many files turn out to be unreadable, when
    a process that reads them dies, or when no picture arrives for `STUCK_SECONDS`. What cannot be
    read any more is said as soon as it is found.
    """

    def __init__(
        self,
        pictures: TrainingSet,
        plan: Iterator[list[int]],
        device: torch.device,
        tell: Callable[[list[Unreadable]], object] | None = None,
    ):
        self.pictures, self.device, self._tell = pictures, device, tell or self.report
        self._pinned = device.type == "cuda"  # a copy from other memory waits for the device
        # What a device is sent are bytes; here threads of the step would wait for each other
        # over so little, where readers have their cores: 3 % of the demo's steps.
        self._batches = _Ahead(pictures, plan, finished=device.type == "cpu")
        self._said: set[Unreadable] = set()

    def __iter__(self) -> Loader:
        return self

    def __next__(self) -> dict[str, Tensor]:
        image, domain, troubles = next(self._batches)
        self._tell(troubles)
        image, domain = (t.pin_memory() if self._pinned else t for t in (image, domain))
        image = image.to(self.device, non_blocking=True).permute(0, 3, 1, 2)  # [N, 3, S, S]
        if not image.is_floating_point():
            image = image.float().div_(127.5).sub_(1)
        return {
            "image": image,
            "domain": domain.to(self.device, non_blocking=True),
        }

    def report(self, troubles: Sequence[Unreadable], aloud: bool = True) -> None:
        """Say and count what cannot be read any more; UserError when that is too much."""
        for trouble in sorted(set(troubles) - self._said) if aloud else ():
            log.warning("%s cannot be read any more: %s", trouble.name, trouble.reason)
        self._said.update(troubles)
        self.pictures.report_unreadable(troubles)

    def close(self) -> None:
        """Stop preparing batches and end the processes; the loader is empty from now on."""
        self._batches.close()


def collate(samples: Sequence[Sample], finished: bool = False) -> Collated:
    """uint8 [N, S, S, 3], or finished float32 in [-1, 1], int64 [N], and what could not be read."""
    crops, domains, troubles = zip(*samples, strict=True)
    image = np.stack(crops)
    if finished:
        image = np.divide(image, np.float32(127.5), dtype=np.float32)
        image -= 1
    return torch.from_numpy(image), torch.tensor(domains), sum(troubles, [])


class _Ahead:
    """Batches in order, made by threads while the step runs; each thread reads by itself or has a
    process read. The threads are daemons: one that hangs keeps no program from its end."""

    def __init__(self, pictures: TrainingSet, plan: Iterator[list[int]], finished: bool):
        by_processes = pictures.workers > 0 and not pictures.in_memory
        # more would wait for each other
        count = min(pictures.workers, _cores()) if by_processes else max(1, pictures.workers)
        self._workers: list[Worker] = []
        self._plan, self._finished, self._open = plan, finished, True
        self._jobs: queue.SimpleQueue[tuple[list[int], Future[Collated]] | None] = (
            queue.SimpleQueue()
        )
        self._ahead: collections.deque[Future[Collated]] = collections.deque()
        self._alive = time.monotonic()  # when a picture was last finished
        try:
            self._workers += (Worker(pictures) for _ in range(count * by_processes))
            self._threads = [
                threading.Thread(target=self._run, args=(reads,), daemon=True)
                for reads in self._readers(pictures, count)
            ]
        except BaseException:
            self.close()
            raise
        for thread in self._threads:
            thread.start()

    def __next__(self) -> Collated:
        if not self._open:
            raise StopIteration
        while len(self._ahead) <= AHEAD * len(self._threads):
            self._ahead.append(Future())
            self._jobs.put((next(self._plan), self._ahead[-1]))
        asked = time.monotonic()
        while True:
            for batch in self._ahead:  # a dead worker is no reason to use up what the others read
                if batch.done() and batch.exception():
                    batch.result()
            wait([self._ahead[0]], timeout=1)
            if self._ahead[0].done():
                return self._ahead.popleft().result()
            if time.monotonic() - max(asked, self._alive) > STUCK_SECONDS:
                raise WorkerError(
                    f"no picture has arrived for {STUCK_SECONDS:.0f} s: the disk or a process that "
                    f"reads pictures hangs"
                )

    def close(self) -> None:
        self._open = False
        for worker in self._workers:
            worker.kill()
        threads = [thread for thread in getattr(self, "_threads", ()) if thread.is_alive()]
        for _ in threads:
            self._jobs.put(None)
        # Python's end would tear a thread out of torch's code, and abort; but who hangs is left.
        end = time.monotonic() + CLOSING_SECONDS
        for thread in threads:
            thread.join(max(0.0, end - time.monotonic()))

    def _run(self, reads: Reads) -> None:
        while (job := self._jobs.get()) is not None and self._open:
            positions, batch = job
            try:
                batch.set_result(collate(reads(positions, self._sign), self._finished))
            except BaseException as error:
                batch.set_exception(error)

    def _sign(self) -> None:
        self._alive = time.monotonic()

    def _readers(self, pictures: TrainingSet, count: int) -> list[Reads]:
        """What each thread reads by."""

        def reads(positions: list[int], alive: Callable[[], object]) -> list[Sample]:
            return [(pictures.sample(position), alive())[0] for position in positions]

        return [worker.samples for worker in self._workers] or [reads] * count


def _cores() -> int:
    """Processors that this process may use."""
    has_affinity = hasattr(os, "sched_getaffinity")  # Linux
    return len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
