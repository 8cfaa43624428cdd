"""What tests do to memory: poison it, put margins around it, look at all of it."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

MARGIN = 64  # elements around a result: whole cache lines, so that it stays aligned


def all_bytes(x: Tensor) -> Tensor:
    """All of the memory that a tensor is part of."""
    storage = x.untyped_storage()
    return torch.empty(0, dtype=torch.uint8, device=x.device).set_(storage)


@contextlib.contextmanager
def poisoned() -> Iterator[None]:
    """Inside, uninitialised memory is NaN."""
    before = torch.are_deterministic_algorithms_enabled()
    fresh: Any = torch.utils.deterministic  # its properties are not declared
    filled = fresh.fill_uninitialized_memory
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    fresh.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn_only)
        fresh.fill_uninitialized_memory = filled


class Margins:
    """Inside, what `torch.empty` and its like return lies inside a larger buffer."""

    def __init__(self) -> None:
        self.made: list[tuple[Tensor, int]] = []

    def _inside(self, empty: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def made(*args: Any, **kwargs: Any) -> Tensor:
            x = empty(*args, **kwargs)
            if x.is_meta or not x.numel() or x.layout is not torch.strided:
                return x
            buffer = self.real(x.numel() + 2 * MARGIN, dtype=x.dtype, device=x.device)
            buffer.fill_(math.nan if x.is_floating_point() else 1)
            self.made.append((buffer, x.numel()))
            place = buffer.untyped_storage(), MARGIN, x.shape, x.stride()
            return x.detach().set_(*place)  # no view: as if it had been made so

        return made

    def __enter__(self) -> Margins:
        self.real = torch.empty
        self.before = torch.empty_like, torch.Tensor.new_empty
        torch.empty = self._inside(self.real)
        torch.empty_like = self._inside(self.before[0])
        torch.Tensor.new_empty = self._inside(self.before[1])  # type: ignore[method-assign]
        return self

    def __exit__(self, *_: object) -> None:
        torch.empty = self.real
        torch.empty_like = self.before[0]
        del torch.Tensor.new_empty  # what it inherits is back

    def written(self) -> bool:
        """Whether something was written around one of them."""
        for buffer, size in self.made:
            around = torch.cat((buffer[:MARGIN], buffer[MARGIN + size :]))
            if not (around.isnan() if around.is_floating_point() else around == 1).all():
                return True
        return False
