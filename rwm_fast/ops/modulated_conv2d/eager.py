"""modulated_conv2d in plain torch, for any device and dtype; symbols as in layer.py.

Differentiated by torch, its passes backward are the second derivative of every backend: so they are
made of operations that torch can differentiate, but for `_read_back`, which is not asked for then.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rwm_fast.ops._memory import NOTHING, Epilogue
from rwm_fast.ops.bias_act.reference import activate_backward, along_channels, over_channels
from rwm_fast.ops.modulated_conv2d import demodulation as _demodulation
from rwm_fast.ops.modulated_conv2d.demodulation import (
    blend,
    blend_backward_regions,
    blend_backward_vectors,
    with_demodulation,
)
from rwm_fast.ops.modulated_conv2d.layer import Gradients, Layer, Needs, Sums
from rwm_fast.ops.modulated_conv2d.torch_convolution import resampled, resampled_backward

# Half precision would feel the rounding of y, and float64 is for exactness.
RECOVERS: tuple[torch.dtype, ...] = (torch.float32,)
GRADIENTS_OF_REGIONS = True


def supports(layer: Layer) -> str | None:
    """Everything the operator takes."""
    return None


def serves_plain(dtype: torch.dtype) -> bool:
    """Torch's convolution is what runs here anyway."""
    return False


def prepare(layer: Layer) -> None:
    """It is as it should be."""


def demodulation(layer: Layer) -> Tensor:
    """d [N, K, O]."""
    return _demodulation.demodulation(layer.weight, layer.styles, layer.eps)


def demodulation_backward(
    layer: Layer, dd: Tensor, d: Tensor, needs: Needs
) -> tuple[Tensor, Tensor]:
    """ds and scale."""
    return _demodulation.demodulation_backward(dd, d, layer.weight, layer.styles)


def _scaled(layer: Layer, keep: bool = False) -> Tensor:
    """z = a·x; kept between the passes of one direction, and no longer."""
    z = layer.body
    if z is None:
        z = (blend(layer.styles, layer.regions_in) * layer.x).to(layer.x.dtype)
    layer.body = z if keep else None
    return z


def convolve(layer: Layer, epilogue: Epilogue) -> Tensor:
    """The convolution of a·x, and its epilogue in few passes over memory.

    Linear and leaky ReLU have act(v)·gain = act(v·gain), so the gain goes into the small factors.
    """
    x, settings = layer.x, layer.settings
    w = layer.weight.to(x.dtype)
    passes, flip = layer.geometry.passes, settings.flip_weight
    u = resampled(_scaled(layer, keep=epilogue is NOTHING), w, layer.filter, passes, flip)
    if epilogue is NOTHING:
        return u
    kind, slope, gain, clamp = epilogue.activation
    u = u.to(layer.wide)
    scale = epilogue.scale
    y = u.mul_(gain if scale is None else blend(gain * scale, epilogue.regions))
    if epilogue.noise is not None:
        y.add_((gain if epilogue.strength is None else gain * epilogue.strength) * epilogue.noise)
    if epilogue.bias is not None:
        y.add_(along_channels(gain * epilogue.bias, 4))
    y = F.leaky_relu_(y, slope) if kind == "lrelu" else y
    return y if clamp is None else y.clamp_(-clamp, clamp)


def unwind(
    layer: Layer, dy: Tensor, y: Tensor, u: Tensor | None, epilogue: Epilogue, want: Sums
) -> Sums:
    """dv = act'(v)·gain·dy, read from y; its sums, and b·dv."""
    dv = activate_backward(dy.to(layer.wide), y, *epilogue.activation)  # [N, O, H, W]
    scale: Any = epilogue.scale
    b: Any = None if scale is None else blend(scale, epilogue.regions)
    dscale = dregions = None
    if want.scale:
        db = _read_back(dy, y, dv, b, epilogue) if u is None else dv * u  # [N, O, H, W]
        dscale = blend_backward_vectors(db, epilogue.regions)
        dregions = blend_backward_regions(db, scale) if want.regions else None
    return Sums(
        (dv if b is None else b * dv) if want.du else None,
        dscale,
        over_channels(dv) if want.bias else None,
        dv.sum(1, keepdim=True) if want.pixels or want.strength else None,
        regions=dregions,
    )


def _read_back(dy: Tensor, y: Tensor, dv: Tensor, b: Tensor, epilogue: Epilogue) -> Tensor:
    """dv·u = (dy·y − dv·(strength·noise + bias))/b; 0 where no region claims the pixel (b = 0).

    Linear and leaky ReLU have act'(v)·v = act(v): so dv·v = dy·y wherever y is not clamped.
    Changes nothing but its own result, in place; not meant to be differentiated.
    """
    db = dy * y
    if epilogue.activation.clamp is not None:
        db.masked_fill_(y.abs() >= epilogue.activation.clamp, 0)
    if epilogue.noise is not None:
        strength = 1 if epilogue.strength is None else epilogue.strength
        db.addcmul_(dv, strength * epilogue.noise, value=-1)
    if epilogue.bias is not None:
        db.addcmul_(dv, along_channels(epilogue.bias, 4), value=-1)
    return db.div_(b.masked_fill(b == 0, 1))


def gradients(layer: Layer, du: Tensor, scale: Tensor | None, needs: Needs) -> Gradients:
    """Through the convolution: dx = a·dz, da = x·dz, and dW."""
    x, styles, regions = layer.x, layer.styles, layer.regions_in
    z, w, flip = _scaled(layer), layer.weight.to(x.dtype), layer.settings.flip_weight
    need_z = needs.x or needs.styles or needs.regions_in
    read = z if needs.weight else z.detach()  # of what is not read, no derivative
    dz: Any
    dw: Any
    dz, dw = resampled_backward(
        du.to(x.dtype), read, w, layer.filter, layer.geometry, flip, (need_z, needs.weight)
    )
    need_a = needs.styles or needs.regions_in
    da: Any = x * dz.to(layer.wide) if need_a else None  # [N, I, h, w]
    return Gradients(
        blend(styles, regions) * dz if needs.x else None,
        with_demodulation(dw, layer.weight, scale) if needs.weight else None,
        blend_backward_vectors(da, regions) if needs.styles else None,
        blend_backward_regions(da, styles) if needs.regions_in else None,
    )
