"""Memory formats: what an operator keeps, said once for fakes and backends."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def is_channels_last(x: Tensor) -> bool:
    """Whether a [N, C, H, W] tensor is dense in channels_last order only."""
    return not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)


def memory_format(x: Tensor) -> torch.memory_format:
    """channels_last where the channels are adjacent (a slice of such a tensor too), else default.

    Where both orders describe the tensor (one channel, one pixel) it is the default.
    """
    adjacent = x.ndim == 4 and x.stride(1) == 1 and x.shape[1] > 1 and not x.is_contiguous()
    return torch.channels_last if adjacent else torch.contiguous_format


def empty(like: Tensor, shape: Sequence[int], dtype: torch.dtype | None = None) -> Tensor:
    """An uninitialised tensor on `like`'s device, in its memory format and (unless given) dtype."""
    order = memory_format(like) if len(shape) == 4 else torch.contiguous_format
    dtype = like.dtype if dtype is None else dtype
    return torch.empty(shape, dtype=dtype, device=like.device, memory_format=order)
