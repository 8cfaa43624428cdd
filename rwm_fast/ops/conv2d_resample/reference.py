"""The truth for conv2d_resample: `upfirdn2d` and torch's convolution in the cheapest order."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from rwm_fast.ops.modulated_conv2d.geometry import Fir, plan
from rwm_fast.ops.modulated_conv2d.torch_convolution import convolution
from rwm_fast.ops.upfirdn2d import upfirdn2d
from rwm_fast.ops.upfirdn2d.geometry import filter_size


def conv2d_resample(
    x: Tensor,  # [N, I, H, W]
    w: Tensor,  # [O, I / groups, kh, kw]
    f: Tensor | None,
    up: int,
    down: int,
    padding: Sequence[int],  # x before, x after, y before, y after
    groups: int,
    flip_weight: bool,
) -> Tensor:
    """y [N, O, H', W']; differentiable by torch to any order."""
    _, _, kh, kw = w.shape
    passes = plan(up, down, padding, (kh, kw), filter_size(f))
    if passes.before is not None:
        x = _fir(x, f, passes.before)
    w = w.to(x.dtype)
    w = w.flip((2, 3)) if flip_weight == passes.transposed else w
    if passes.transposed:  # takes [I, O / groups, kh, kw]
        w = w.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)
    y = convolution(x, w, (*passes.convolution[:-1], groups))
    for after in passes.after:
        y = _fir(y, f, after)
    return y


def _fir(x: Tensor, f: Tensor | None, p: Fir) -> Tensor:
    f = f if p.filtered else None
    return upfirdn2d(x, f, up=p.up, down=p.down, padding=p.padding, gain=p.gain)
