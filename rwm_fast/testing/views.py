"""One tensor in many orders of memory: same shape and dtype, and, but for the expanded ones, same
values. Around and between them lies what must not be read."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from rwm_fast.testing.cases import in_layout


def poisoned(x: Tensor, *shape: int) -> Tensor:
    """A buffer of what must not be read: NaN, or 1 where there is none."""
    return x.new_full(shape, math.nan if x.is_floating_point() or x.is_complex() else 1)


def _every_second(x: Tensor) -> Tensor:
    """Every second sample."""
    if not x.ndim:
        return x
    wide = poisoned(x, 2 * x.shape[0], *x.shape[1:])
    wide[::2] = x
    return wide[::2]


def _inside(x: Tensor) -> Tensor:
    """Inside a larger tensor, from its second element on along every dimension."""
    wide = poisoned(x, *(n + 2 for n in x.shape))
    if x.ndim == 4:
        wide = wide.contiguous(memory_format=torch.channels_last)
    view = wide[tuple(slice(1, n + 1) for n in x.shape)]
    return view.copy_(x)


def _first_channels(x: Tensor, order: torch.memory_format) -> Tensor:
    """The first channels of twice as many."""
    if x.ndim != 4:
        return x
    wide = torch.cat((x, poisoned(x, *x.shape)), 1).contiguous(memory_format=order)
    return wide[:, : x.shape[1]]


def _odd_address(x: Tensor) -> Tensor:
    """Dense, but not where memory begins."""
    buffer = poisoned(x, x.numel() + 3)
    return buffer[3:].view(x.shape).copy_(x)


def _turned(x: Tensor) -> Tensor:
    """The last dimension outermost."""
    back = tuple(reversed(range(x.ndim)))
    return x.permute(back).contiguous().permute(back)


def _transposed(x: Tensor) -> Tensor:
    """Columns in the place of rows."""
    return x.transpose(-1, -2).contiguous().transpose(-1, -2) if x.ndim > 1 else x


def _one_for_all(x: Tensor) -> Tensor:
    """The first channel's values for all channels, stored once."""
    return x[:, :1].expand(x.shape) if x.ndim > 1 and x.shape[1] else x


def _negated(x: Tensor) -> Tensor:
    """A view that torch negates when it is read."""
    if x.dtype not in (torch.float32, torch.float64):
        return x
    return torch.complex(torch.zeros_like(x), -x).conj().imag


VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x.contiguous(),
    "channels_last": lambda x: in_layout(x, "channels_last"),
    "every second sample": _every_second,
    "inside a larger one": _inside,
    "one sample for all": lambda x: in_layout(x, "expanded"),
    "one channel for all": _one_for_all,
    "first channels": lambda x: _first_channels(x, torch.contiguous_format),
    "first channels, channels_last": lambda x: _first_channels(x, torch.channels_last),
    "turned": _turned,
    "transposed": _transposed,
    "every second column": lambda x: in_layout(x, "sliced"),
    "at an odd address": _odd_address,
    "negated": _negated,
}
