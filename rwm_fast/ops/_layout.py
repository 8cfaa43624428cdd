"""Memory formats: what an operator keeps, said once for fakes and backends."""

from __future__ import annotations

import torch
from torch import Tensor


def is_channels_last(x: Tensor) -> bool:
    """Whether a [N, C, H, W] tensor is dense in channels_last order only."""
    return not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)


def memory_format(x: Tensor) -> torch.memory_format:
    """channels_last for a tensor that is dense in that order only, else the default order."""
    return torch.channels_last if is_channels_last(x) else torch.contiguous_format
