"""Column (b): the best eager PyTorch we know for each operator; column (c) compiles it.

Shared weights with scales before and after one dense convolution, channels_last, a depthwise FIR,
one tall sampling grid an image for crops, additions and gains folded into as few passes as eager
code needs. Plain torch, differentiated by torch: nothing of rwm_fast is used. In float64 these
functions are the truth that every column is checked against.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.published import (
    four_sides,
    own_gain,
    plain_layer,
    resample_layer,
    taps_of,
)


def masked_l1(hybrid: Tensor, inside: Tensor, outside: Tensor, mask: Tensor) -> Tensor:
    """For masks in [0, 1]; lerp takes one dtype."""
    weight = mask.to(hybrid.dtype)
    return torch.lerp((hybrid - outside).abs(), (hybrid - inside).abs(), weight).mean()


def crop_patches(image: Tensor, boxes: Tensor, size: int) -> Tensor:
    dtype = image.dtype
    wide = torch.promote_types(dtype, boxes.dtype)  # half precision could not place a pixel
    image, boxes = image.to(wide), boxes.to(wide)[:, :, None, None]  # [N, P, 1, 1, 4]
    steps = torch.arange(size, dtype=image.dtype, device=image.device)
    u = (2 * steps + 1) / size - 1  # [S]
    x = boxes[..., 0] + boxes[..., 2] * u  # [N, P, 1, S]
    y = boxes[..., 1] + boxes[..., 3] * u[:, None]  # [N, P, S, 1]
    grid = torch.stack(torch.broadcast_tensors(x, y), -1).flatten(1, 2)  # [N, P·S, S, 2]
    tall = F.grid_sample(image, grid, align_corners=False)  # [N, C, P·S, S]
    return tall.unflatten(2, (boxes.shape[1], size)).transpose(1, 2).to(dtype)  # [N, P, C, S, S]


def bias_act(
    x: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str = "linear",
    negative_slope: float = 0.2,
    gain: float | None = None,
    clamp: float | None = None,
) -> Tensor:
    """act(x + b)·g = act(g·x + g·b): the gain rides on the addition, the activation is in place.

    Not behind a linear layer: Inductor makes one addmm of both and loses alpha (torch 2.13; the
    issue pytorch/pytorch#167313 has the like).
    """
    gain = own_gain(activation, gain)
    if bias is None:
        y = x * gain
    elif x.ndim == 2:
        y = (x + bias.to(x.dtype)).mul_(gain)
    else:
        bias = (bias * gain).to(x.dtype).view(1, -1, *[1] * (x.ndim - 2))
        y = torch.add(bias, x, alpha=gain)
    y = F.leaky_relu_(y, negative_slope) if activation == "lrelu" else y
    return y if clamp is None else y.clamp(-clamp, clamp)


def upfirdn2d(
    x: Tensor,
    filter: Tensor,
    *,
    up: int = 1,
    down: int = 1,
    padding: int | list[int] = 0,
    flip_filter: bool = False,
    gain: float = 1.0,
) -> Tensor:
    """One depthwise convolution; for `up` a transposed one, so that no zero is multiplied."""
    c, k = x.shape[1], len(filter)
    padding, taps = four_sides(padding), taps_of(filter, flip_filter).to(x.dtype) * gain
    if up == 1:
        x = F.pad(x, padding) if any(padding) else x
        return F.conv2d(x, taps.expand(c, 1, k, k), stride=down, groups=c)
    y = F.conv_transpose2d(x, taps.flip((0, 1)).expand(c, 1, k, k), stride=up, groups=c)
    rest = [p - q for p, q in zip(padding, (k - 1, k - up, k - 1, k - up), strict=True)]
    y = F.pad(y, rest) if any(rest) else y
    return y[:, :, ::down, ::down] if down > 1 else y


def modulated_conv2d(
    x: Tensor,
    weight: Tensor,
    styles: Tensor,
    noise: Tensor | None = None,
    up: int = 1,
    down: int = 1,
    padding: int = 0,
    resample_filter: Tensor | None = None,
    demodulate: bool = True,
    flip_weight: bool = True,
    *,
    noise_strength: Tensor | None = None,
    bias: Tensor | None = None,
    regions: Tensor | None = None,
    eps: float = 1e-8,
    activation: str = "linear",
    negative_slope: float = 0.2,
    gain: float | None = None,
    clamp: float | None = None,
) -> Tensor:
    """act(d·conv(W, s·x) + …)·g with the gain folded into the small factors."""
    gain = own_gain(activation, gain)
    q = weight.square().sum((2, 3)).t()  # [I, O]
    demod = (styles.square() @ q + eps).rsqrt() if demodulate else None  # [N, (K,) O]
    weight = weight.to(x.dtype)
    scale = _map(styles.to(x.dtype), regions, x.shape[2:])
    y = conv2d_resample(x * scale, weight, resample_filter, up, down, padding, flip_weight)
    shift = None if bias is None else (bias * gain).to(x.dtype).view(1, -1, 1, 1)
    if demod is None:
        y = y * gain if shift is None else torch.add(shift, y, alpha=gain)
    else:
        after = _map((demod * gain).to(x.dtype), regions, y.shape[2:])
        y = y * after if shift is None else torch.addcmul(shift, y, after)
    if noise is not None:
        strength = gain if noise_strength is None else gain * noise_strength
        y = y.add_((noise * strength).to(x.dtype))
    y = F.leaky_relu_(y, negative_slope) if activation == "lrelu" else y
    return y if clamp is None else y.clamp(-clamp, clamp)


def a_style_at_a_time(layer: Callable) -> Callable:
    """A layer with regions as editors without one do it: the blend of K results of `layer`.

    Noise, bias and activation come after the blend.
    """

    def run(
        x: Tensor,
        weight: Tensor,
        styles: Tensor,
        noise: Tensor | None = None,
        *,
        regions: Tensor | None = None,
        noise_strength: Tensor | None = None,
        bias: Tensor | None = None,
        activation: str = "linear",
        gain: float | None = None,
        **settings: object,
    ) -> Tensor:
        after = {"bias": bias, "activation": activation, "gain": gain}
        if regions is None:
            strength = {"noise_strength": noise_strength}
            return layer(x, weight, styles, noise, **strength, **after, **settings)
        parts = [layer(x, weight, s, **settings) for s in styles.unbind(1)]
        size = parts[0].shape[2:]
        planes = [F.adaptive_avg_pool2d(r[:, None], size) for r in regions.unbind(1)]
        y = sum(plane.to(part.dtype) * part for plane, part in zip(planes, parts, strict=True))
        if noise is not None:
            y = y + (noise if noise_strength is None else noise * noise_strength).to(y.dtype)
        return bias_act(y, **after)

    return run


def _map(vectors: Tensor, regions: Tensor | None, size: tuple[int, int]) -> Tensor:
    """Per image [N, C, 1, 1]; with regions the sum Σ_k r_k(p)·v_k, [N, C, H, W]."""
    if regions is None:
        return vectors[:, :, None, None]
    planes = F.adaptive_avg_pool2d(regions.to(vectors.dtype), size)
    if torch.compiler.is_compiling():
        # fused, and right: with the product below Inductor (torch 2.13, CPU) hands on no gradient
        # through the bilinear enlargement that the generator adds to the layer's result
        return (planes[:, :, None] * vectors[..., None, None]).sum(1)
    return torch.einsum("nkhw,nkc->nhwc", planes, vectors).permute(0, 3, 1, 2)  # channels_last


conv2d_resample = resample_layer(upfirdn2d)
conv2d_bias_act = plain_layer(upfirdn2d, bias_act, early=True)
