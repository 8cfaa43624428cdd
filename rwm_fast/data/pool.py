"""Landscapes for training, drawn once and kept."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

from rwm_fast.data import landscapes
from rwm_fast.data.order import picture_at
from rwm_fast.data.photos import Sample, Unreadable

TRAINING_SEEDS = 10_000_000  # scenes for training have seeds below, held-out scenes above
_CHUNK = 64  # scenes drawn at a time: their maps fit in the cache of a core


class LandscapePool:
    """`count` landscapes, each with a content and a style of its own, as a training set.

    Another `seed` draws other landscapes. `progress` is called with (done, total). Drawing takes as
    many threads as torch uses; 6000 pictures of 64 px take some seconds on one core and 74 MB.
    """

    domains = ["landscapes"]
    workers = 0
    in_memory = True

    def __init__(
        self,
        count: int,
        size: int,
        seed: int = 0,
        progress: Callable[[int, int], None] | None = None,
    ):
        self.image_size, self.seed = size, seed
        first = seed * count % max(1, TRAINING_SEEDS - count)
        self.images = np.empty((count, size, size, 3), np.uint8)  # [count, S, S, 3]
        chunks = [range(k, min(k + _CHUNK, count)) for k in range(0, count, _CHUNK)]
        with _drawing_threads() as pool:
            for chunk in pool.map(lambda rows: self._draw(first, rows), chunks):
                if progress is not None:
                    progress(chunk.stop, count)

    def _draw(self, first: int, rows: range) -> range:
        seeds = range(first + rows.start, first + rows.stop)
        scenes, looks = landscapes.content(seeds), landscapes.style(seeds)
        images, _ = landscapes.render(scenes, looks, self.image_size)
        images.add_(1).mul_(127.5).round_()
        self.images[rows.start : rows.stop] = images.permute(0, 2, 3, 1).numpy()
        return rows

    def __len__(self) -> int:
        return len(self.images)

    def sample(self, position: int) -> Sample:
        """The picture at a position of the stream: uint8 [S, S, 3], domain 0, no troubles.

        Pictures are not mirrored: the clouds of all of them have one layout.
        """
        return self.images[picture_at(self.seed, position, len(self))], 0, []

    def report_unreadable(self, more: Sequence[Unreadable]) -> None:
        """Nothing is read, so there is nothing to report."""

    def describe(self) -> str:
        """One line on what there is."""
        return f"{len(self)} landscapes of {self.image_size} px"

    def report(self) -> dict[str, Any]:
        """The same for the run folder."""
        return {"sources": [], "domains": self.domains, "pictures": len(self)}


@contextlib.contextmanager
def _drawing_threads() -> Iterator[ThreadPoolExecutor]:
    """As many threads as torch uses, each running its own operators alone.

    A landscape is hundreds of small operators; split over threads one by one, they would spend
    their time waiting for each other.
    """
    threads = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield pool
    finally:
        torch.set_num_threads(threads)
