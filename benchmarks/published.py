"""Column (a): how people write these operators today, in eager PyTorch, operation by operation.

Written from the formulas, with the habits of widely used StyleGAN2-type and Swapping Autoencoder
code: a weight tensor an image and a grouped convolution, a blur with the channels folded into the
batch, images expanded once a patch, masks multiplied into images. Each function takes the arguments
of ours; tests/benchmarks shows that they compute the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def masked_l1(hybrid: Tensor, inside: Tensor, outside: Tensor, mask: Tensor) -> Tensor:
    return F.l1_loss(hybrid * mask, inside * mask) + F.l1_loss(
        hybrid * (1 - mask), outside * (1 - mask)
    )


def crop_patches(image: Tensor, boxes: Tensor, size: int) -> Tensor:
    n, p = boxes.shape[:2]
    dtype = image.dtype
    wide = torch.promote_types(dtype, boxes.dtype)  # half precision could not place a pixel
    image, boxes = image.to(wide), boxes.to(wide)
    images = image[:, None].expand(-1, p, -1, -1, -1).flatten(0, 1)  # [N·P, C, H, W], P copies
    cx, cy, half_w, half_h = boxes.flatten(0, 1).unbind(1)
    zero = torch.zeros_like(cx)
    theta = torch.stack((half_w, zero, cx, zero, half_h, cy), dim=1).view(-1, 2, 3)
    grid = F.affine_grid(theta, [n * p, image.shape[1], size, size], align_corners=False)
    return F.grid_sample(images, grid, align_corners=False).unflatten(0, (n, p)).to(dtype)


def own_gain(activation: str, gain: float | None) -> float:
    """The activation's own where none is given."""
    own = math.sqrt(2) if activation == "lrelu" else 1.0
    return own if gain is None else gain


def bias_act(
    x: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str = "linear",
    negative_slope: float = 0.2,
    gain: float | None = None,
    clamp: float | None = None,
) -> Tensor:
    y = x if bias is None else x + bias.to(x.dtype).view(1, -1, *[1] * (x.ndim - 2))
    y = F.leaky_relu(y, negative_slope) if activation == "lrelu" else y
    y = y * own_gain(activation, gain)
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
    n, c, h, w = x.shape
    padding, taps = four_sides(padding), taps_of(filter, flip_filter).to(x.dtype) * gain
    y = x.reshape(n * c, 1, h, 1, w, 1)
    y = F.pad(y, [0, up - 1, 0, 0, 0, up - 1]).reshape(n * c, 1, h * up, w * up)
    y = F.conv2d(F.pad(y, padding), taps[None, None])  # one channel, N·C images
    y = y[:, :, ::down, ::down]
    return y.reshape(n, c, *y.shape[2:])


def four_sides(padding: int | list[int]) -> list[int]:
    """One number, two, or four: left, right, top, bottom."""
    padding = [padding] * 2 if isinstance(padding, int) else padding
    return list(padding) if len(padding) == 4 else [padding[0]] * 2 + [padding[1]] * 2


def taps_of(filter: Tensor, flipped: bool) -> Tensor:
    """Taps of both dimensions, as a convolution reads them."""
    taps = filter if filter.ndim == 2 else filter[:, None] * filter
    return taps if flipped else taps.flip((0, 1))


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
    **activation: object,
) -> Tensor:
    weight, styles = weight.to(x.dtype), styles.to(x.dtype)
    weight = weight if flip_weight else weight.flip((2, 3))
    one_style = lambda s: _grouped(
        x, weight, s, up, down, padding, resample_filter, demodulate, eps
    )
    if regions is None:
        y = one_style(styles)
    else:  # one convolution a style, then select
        planes = regions.to(x.dtype).unbind(1)
        results = map(one_style, styles.unbind(1))
        y = sum(
            F.adaptive_avg_pool2d(plane[:, None], result.shape[2:]) * result
            for plane, result in zip(planes, results, strict=True)
        )
    if noise is not None:
        noise = noise.to(x.dtype)
        y = y + (noise if noise_strength is None else noise * noise_strength.to(x.dtype))
    return bias_act(y, bias, **activation)


def _grouped(x, weight, style, up, down, padding, filter, demodulate, eps):  # style [N, I]
    n, i, h, w = x.shape
    o, _, k, _ = weight.shape
    weights = weight[None] * style[:, None, :, None, None]  # [N, O, I, k, k]
    if demodulate:
        weights = weights * torch.rsqrt(weights.square().sum((2, 3, 4), keepdim=True) + eps)
    groups = x.reshape(1, n * i, h, w)
    if up > 1:  # a transposed convolution, then the blur
        weights = weights.transpose(1, 2).flip((3, 4)).reshape(n * i, o, k, k)
        y = F.conv_transpose2d(groups, weights, stride=up, groups=n)
        y = y.view(n, o, *y.shape[2:])
        return upfirdn2d(y, filter, padding=up_borders(len(filter), k, up, padding), gain=up**2)
    if down > 1:  # the blur, then a convolution with a stride
        groups = upfirdn2d(x, filter, padding=down_borders(len(filter), down, padding))
        groups, padding = groups.reshape(1, n * i, *groups.shape[2:]), 0
    y = F.conv2d(groups, weights.reshape(n * o, i, k, k), stride=down, padding=padding, groups=n)
    return y.view(n, o, *y.shape[2:])


def up_borders(taps: int, kernel: int, up: int, padding: int) -> list[int]:
    """Of the blur behind a transposed convolution, which answers as if padded by kernel − 1."""
    before = padding + (taps + up - 1) // 2 - (kernel - 1)
    after = padding + (taps - up) // 2 - (kernel - up)
    return [before, after, before, after]


def down_borders(taps: int, down: int, padding: int) -> list[int]:
    """Of the blur before a convolution with a stride."""
    before, after = padding + (taps - down + 1) // 2, padding + (taps - down) // 2
    return [before, after, before, after]


def resample_layer(upfirdn2d: Callable) -> Callable:
    """NVIDIA's conv2d_resample in its quick orders: a transposed convolution and a blur, or a blur
    and a convolution with a stride."""

    def conv2d_resample(
        x: Tensor,
        w: Tensor,
        f: Tensor | None = None,
        up: int = 1,
        down: int = 1,
        padding: int = 0,
        flip_weight: bool = True,
    ) -> Tensor:
        if up > 1:
            w = w.flip((2, 3)) if flip_weight else w
            y = F.conv_transpose2d(x, w.transpose(0, 1), stride=up)
            borders = up_borders(len(f), w.shape[-1], up, padding)
            return upfirdn2d(y, f, padding=borders, gain=up**2)
        w = w if flip_weight else w.flip((2, 3))
        if down > 1:
            x = upfirdn2d(x, f, padding=down_borders(len(f), down, padding))
            padding = 0
        return F.conv2d(x, w, stride=down, padding=padding)

    return conv2d_resample


def plain_layer(upfirdn2d: Callable, bias_act: Callable, early: bool) -> Callable:
    """An encoder's or discriminator's layer: blur, convolution with a stride, bias and activation,
    each a call of its own; `early` takes the stride in the blur before a 1x1 convolution."""

    def conv2d_bias_act(
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        *,
        padding: Sequence[int],
        down: int = 1,
        resample_filter: Tensor | None = None,
        weight_gain: float = 1.0,
        activation: str = "linear",
        gain: float | None = None,
    ) -> Tensor:
        left, _, top, _ = padding
        if resample_filter is not None:
            first = down if early and weight.shape[-1] == 1 else 1
            reach = down_borders(len(resample_filter), down, 0)
            borders = [p + r for p, r in zip(padding, reach, strict=True)]
            x = upfirdn2d(x, resample_filter, down=first, padding=borders)
            left, top, down = 0, 0, down // first
        y = F.conv2d(x, (weight * weight_gain).to(x.dtype), stride=down, padding=(top, left))
        return bias_act(y, bias, activation=activation, gain=gain)

    return conv2d_bias_act


conv2d_resample = resample_layer(upfirdn2d)
conv2d_bias_act = plain_layer(upfirdn2d, bias_act, early=False)
