"""Batches of training pictures, prepared ahead of the step that uses them."""

from __future__ import annotations

import collections
import itertools
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from rwm_fast.config import Config
from rwm_fast.data.photos import PhotoSet, Sample, Unreadable
from rwm_fast.data.pool import LandscapePool

AHEAD = 3  # batches prepared ahead, per worker
Collated = tuple[Tensor, Tensor, list[Unreadable]]


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
        return PhotoSet(data, size, seed, progress)
    return LandscapePool(data.pool, size, seed, progress)


def make_loader(
    pictures: TrainingSet,
    batch_size: int,
    *,
    start: int = 0,
    device: torch.device | str = "cpu",
) -> Loader:
    """Endless batches from image number `start` of the stream on.

    A batch is a pure function of (seed of the set, start + images since): resuming with `start` =
    images seen continues the very stream. Pictures in memory are prepared by `pictures.workers`
    threads, others by so many processes; one thread does it when that is 0.
    """
    if batch_size < 1:
        raise ValueError(f"make_loader: batch_size must be positive, got {batch_size}")
    plan = (list(range(n, n + batch_size)) for n in itertools.count(start, batch_size))
    return Loader(pictures, plan, torch.device(device))


class Loader:
    """Iterator over dict(image float32 [N, 3, S, S] in [-1, 1], domain int64 [N]) on the device.

    Images are laid out channels_last. UserError when too many files turn out to be unreadable.
    """

    def __init__(self, pictures: TrainingSet, plan: Iterator[list[int]], device: torch.device):
        self.pictures, self.device = pictures, device
        prepare = _by_threads if pictures.in_memory or pictures.workers == 0 else _by_processes
        self._batches = prepare(pictures, plan, device)

    def __iter__(self) -> Loader:
        return self

    def __next__(self) -> dict[str, Tensor]:
        image, domain, troubles = next(self._batches)
        self.pictures.report_unreadable(troubles)
        image = image.to(self.device, non_blocking=True).permute(0, 3, 1, 2)  # [N, 3, S, S]
        return {
            "image": image.float().div_(127.5).sub_(1),
            "domain": domain.to(self.device, non_blocking=True),
        }

    def close(self) -> None:
        """Stop preparing batches; the loader is empty from now on."""
        self._batches = iter(())  # the workers end with the iterator that owns them


class _Samples(Dataset[Sample]):
    """A training set seen by the workers: position -> sample."""

    def __init__(self, pictures: TrainingSet):
        self.pictures = pictures

    def __getitem__(self, position: int) -> Sample:
        return self.pictures.sample(position)


def _collate(samples: Sequence[Sample]) -> Collated:
    """uint8 [N, S, S, 3], int64 [N], and what could not be read."""
    crops, domains, troubles = zip(*samples, strict=True)
    return torch.from_numpy(np.stack(crops)), torch.tensor(domains), sum(troubles, [])


def _by_processes(
    pictures: TrainingSet, plan: Iterator[list[int]], device: torch.device
) -> Iterator[Collated]:
    # Workers come from a clean server process, not from a copy of this one: copying a process whose
    # OpenMP threads have run, or that uses CUDA, hangs or breaks.
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(method)
    if method == "forkserver":
        context.set_forkserver_preload(["rwm_fast.data.loader"])
    loader = DataLoader(
        _Samples(pictures),
        batch_sampler=plan,
        num_workers=min(pictures.workers, _cores()),  # more would wait for each other
        collate_fn=_collate,
        pin_memory=device.type == "cuda",
        multiprocessing_context=context,
        prefetch_factor=AHEAD,
        persistent_workers=True,
        worker_init_fn=_one_thread,
        generator=torch.Generator(),
    )  # its own, so that the global one is left alone
    return iter(loader)


def _cores() -> int:
    """Processors that this process may use."""
    has_affinity = hasattr(os, "sched_getaffinity")  # Linux
    return len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1


def _one_thread(_: int) -> None:
    torch.set_num_threads(1)


def _by_threads(
    pictures: TrainingSet, plan: Iterator[list[int]], device: torch.device
) -> Iterator[Collated]:
    threads = max(1, pictures.workers)
    prepare = lambda positions: _collate([pictures.sample(position) for position in positions])
    with ThreadPoolExecutor(threads, "rwm_fast-loader") as pool:
        queue: collections.deque[Future[Collated]] = collections.deque()
        for positions in plan:
            queue.append(pool.submit(prepare, positions))
            if len(queue) > AHEAD * threads:
                yield queue.popleft().result()
