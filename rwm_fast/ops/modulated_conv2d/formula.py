"""The first derivative of modulated_conv2d, in plain differentiable torch.

It is the reference backend's `backward`; differentiated by torch it is the second derivative of
every backend. Symbols as in README.md: a, b the scales before and after the convolution, z = a·x,
u = conv(W, z), v = b·u + strength·noise + bias, y = clamp(act(v)·gain).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rwm_fast.ops._check import accumulator
from rwm_fast.ops.bias_act.reference import activate_backward, along_channels, over_channels
from rwm_fast.ops.modulated_conv2d._demod import (
    blend,
    blend_backward_regions,
    blend_backward_vectors,
    demodulation,
    demodulation_backward,
)
from rwm_fast.ops.modulated_conv2d._geometry import Settings, convolve, convolve_backward, plan


def backward(
    dy: Tensor,  # [N, O, H, W]
    y: Tensor,  # [N, O, H, W]
    x: Tensor,  # [N, I, h, w]
    weight: Tensor,  # [O, I, kh, kw]
    styles: Tensor,  # [N, K, I]
    regions_in: Tensor | None,  # [N, K, h, w]
    regions_out: Tensor | None,  # [N, K, H, W]
    noise: Tensor | None,  # [N or 1, 1, H, W]
    noise_strength: Tensor | None,  # []
    bias: Tensor | None,  # [O]
    filter: Tensor | None,
    settings: Settings,
    needs: Sequence[bool],
    recover: bool = False,
) -> tuple[Tensor | None, ...]:
    """Gradients of x, weight, styles, regions_in, regions_out, noise, noise_strength and bias.

    None where not needed; each in its argument's dtype. `recover`: see `_recovers`.
    """
    need_x, need_w, need_s, need_r_in, need_r_out, need_noise, need_strength, need_bias = needs
    passes = plan(settings, weight, filter)
    s, w = styles.to(accumulator(x.dtype)), weight.to(x.dtype)
    a = blend(s, regions_in)  # [N, I, h, w]
    z = (a * x).to(x.dtype)
    _, _, _, _, _, activation, slope, gain, clamp, _ = settings
    dv = activate_backward(dy.to(s.dtype), y, activation, slope, gain, clamp)  # [N, O, H, W]

    dbias = over_channels(dv) if need_bias else None
    dnoise = dstrength = None
    if need_noise or need_strength:
        dnoise, dstrength = _noise_backward(dv, noise, noise_strength)

    du, ds, dw, dr_out = dv, 0, 0, None
    if settings.demodulate:
        d = demodulation(weight, s, settings.eps)  # [N, K, O]
        b = blend(d, regions_out)  # [N, O, H, W]
        if need_w or need_s or need_r_out:
            if recover and _recovers(x, need_r_out):
                db = _recover_db(dy, y, dv, b, noise, noise_strength, bias, settings)
            else:
                u = convolve(z, w, filter, passes, settings.flip_weight)
                db = dv * u  # [N, O, H, W]
            dd = blend_backward_vectors(db, regions_out)  # [N, K, O]
            dr_out = blend_backward_regions(db, d) if need_r_out else None
            ds, dw = demodulation_backward(dd, d, weight, s)
        du = b * dv

    dx = dr_in = None
    need_z = need_x or need_s or need_r_in
    if need_z or need_w:
        flip = settings.flip_weight
        read = z if need_w else z.detach()  # of what is not read, no derivative
        dz, dw_conv = convolve_backward(
            du.to(x.dtype), read, w, filter, passes, flip, (need_z, need_w)
        )
        dw = dw + dw_conv if need_w else None
        dx = a * dz if need_x else None
        da = x * dz.to(s.dtype) if need_s or need_r_in else None  # [N, I, h, w]
        ds = ds + blend_backward_vectors(da, regions_in) if need_s else None
        dr_in = blend_backward_regions(da, s) if need_r_in else None

    grads = (dx, dw, ds, dr_in, dr_out, dnoise, dstrength, dbias)
    inputs = (x, weight, styles, regions_in, regions_out, noise, noise_strength, bias)
    return tuple(
        None if not need else torch.zeros_like(t) if g is None else g.to(t.dtype)
        for g, t, need in zip(grads, inputs, needs, strict=True)
    )


def _noise_backward(
    dv: Tensor, noise: Tensor, noise_strength: Tensor | None
) -> tuple[Tensor, Tensor]:
    """dnoise = strength·Σ_o dv, summed over the images that share it; dstrength = Σ noise·dv."""
    t = dv.sum(1, keepdim=True)  # [N, 1, H, W]
    t = t if noise.shape[0] == t.shape[0] else t.sum(0, keepdim=True)
    dstrength = (t * noise).sum()
    return t if noise_strength is None else noise_strength * t, dstrength


def _recovers(x: Tensor, need_r_out: bool) -> bool:
    """Whether dv·u is read back from y, which spares one more convolution.

    Only in float32: the error is that of rounding v, so it is small against u unless noise and bias
    are many times larger. In half precision it would be felt; float64 is for exactness; and where b
    is asked for its regions it may be small. The second derivative computes u too: through y it
    would meet the bias and the noise, and leave rounding errors where the exact answer is 0.
    """
    return x.dtype == torch.float32 and not need_r_out


def _recover_db(
    dy: Tensor,
    y: Tensor,
    dv: Tensor,
    b: Tensor,
    noise: Tensor | None,
    noise_strength: Tensor | None,
    bias: Tensor | None,
    settings: Settings,
) -> Tensor:
    """dv·u = (dy·y − dv·(strength·noise + bias))/b; 0 where no region claims the pixel (b = 0).

    Linear and leaky ReLU have act'(v)·v = act(v): so dv·v = dy·y wherever y is not clamped.
    Changes nothing but its own result, in place; not meant to be differentiated.
    """
    db = dy * y
    if settings.clamp is not None:
        db.masked_fill_(y.abs() >= settings.clamp, 0)
    if noise is not None:
        strength = 1 if noise_strength is None else noise_strength
        db.addcmul_(dv, strength * noise.to(dv.dtype), value=-1)
    if bias is not None:
        db.addcmul_(dv, along_channels(bias, 4).to(dv.dtype), value=-1)
    return db.div_(b.masked_fill(b == 0, 1))
