"""The function modulated_conv2d of NVIDIA's networks, in the form of StyleGAN2 and of StyleGAN3."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rwm_fast.dropin import _calls
from rwm_fast.ops.modulated_conv2d import modulated_conv2d as _modulated


def modulated_conv2d(
    x, weight, styles, noise=None, up=1, down=1, padding=0, resample_filter=None,
    demodulate=True, flip_weight=True, fused_modconv=True,
):  # fmt: skip
    """StyleGAN2's: `rwm_fast.modulated_conv2d` but for the dtypes, which may differ."""
    return _calls.run(
        "networks.modulated_conv2d", _modulated, x, _beside(weight, x), _beside(styles, x),
        noise=None if noise is None else _beside(noise, x), up=up, down=down, padding=padding,
        resample_filter=resample_filter, demodulate=demodulate, flip_weight=flip_weight,
    )  # fmt: skip


def modulated_conv2d_3(x, w, s, demodulate=True, padding=0, input_gain=None):
    """StyleGAN3's: weight normalised an output channel and styles as a whole before they meet,
    padding [y, x], and a gain on the input (a number, [I] or [N, I]) that demodulation ignores."""
    if demodulate:
        w = w * w.square().mean((1, 2, 3), keepdim=True).rsqrt()
        s = s * s.square().mean().rsqrt()
    if input_gain is not None:
        x = x * input_gain.expand(x.shape[:2])[:, :, None, None].to(x.dtype)
    padding = list(padding)[::-1] if isinstance(padding, Sequence) else padding
    settings = {"padding": padding, "demodulate": demodulate}
    name = "networks.modulated_conv2d_3"
    return _calls.run(name, _modulated, x, _beside(w, x), _beside(s, x), **settings)


def _beside(t: Tensor, x: Tensor) -> Tensor:
    """In a dtype that the operator takes: x's, or float32 beside half precision."""
    half = x.dtype in (torch.float16, torch.bfloat16)
    return t if t.dtype == x.dtype or (half and t.dtype == torch.float32) else t.to(x.dtype)


FORMS = {
    "x, weight, styles, noise=None, up=1, down=1, padding=0, resample_filter=None,"
    " demodulate=True, flip_weight=True, fused_modconv=True": modulated_conv2d,
    "x, w, s, demodulate=True, padding=0, input_gain=None": modulated_conv2d_3,
}
