"""Who takes which pictures of a batch: one rule for processes and for the slices of one process.

Everything that a step computes of a batch is a mean over pictures, or over its first half, so a
share's part of it is its own mean times its part of the rows, and the parts add up to the whole.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Share:
    """Of every `count` pairs of neighbours (2i, 2i + 1) in a batch the one with number `index`.

    So shares are equally large, and their rows of the batch's first half too where a share has an
    even number of pairs; else one has two rows more of it than another.
    """

    index: int = 0
    count: int = 1

    def rows(self, batch: int) -> tuple[int, ...]:
        """Which rows of a batch of so many pictures these are, in order."""
        return _rows(self.index, self.count, batch)

    def first(self, own: int) -> int:
        """How many of a share's `own` rows lie in the batch's first half: they come first."""
        half = own * self.count // 2
        return sum(row < half for row in self.rows(own * self.count))

    def split(self, parts: int) -> list[Share]:
        """The shares of this share."""
        return [Share(self.index + self.count * k, self.count * parts) for k in range(parts)]

    def take(self, drawn: Tensor, batch: int) -> Tensor:
        """The own rows of what was drawn for a batch, or for its first half."""
        if self.count == 1:
            return drawn
        rows = [row for row in self.rows(batch) if row < len(drawn)]
        return drawn[torch.tensor(rows, dtype=torch.long, device=drawn.device)]


WHOLE = Share()


@functools.lru_cache(maxsize=64)
def _rows(index: int, count: int, batch: int) -> tuple[int, ...]:
    if batch % (2 * count):
        raise ValueError(f"Share: {batch} pictures do not divide into pairs for {count}")
    return tuple(2 * pair + k for pair in range(index, batch // 2, count) for k in (0, 1))
