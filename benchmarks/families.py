"""StyleGAN2 as three families of published code compute it on a CPU, operation by operation.

In plain torch, written from the formulas: NVIDIA's (StyleGAN2-ADA, StyleGAN3's code of StyleGAN2)
as it trains, scales around one convolution; the port that most encoders and editors carry, and the
Swapping Autoencoder's layers, whose demodulation knows no style, weights for every image and a
grouped convolution. `Ours` computes the same by the fused operators. `DROPIN` has what
`rwm_fast.dropin` leaves of a family after `patch`: NCHW, and in NVIDIA's generator an operator for
each step.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

import rwm_fast
from benchmarks.published import down_borders, up_borders, upfirdn2d

SQRT2 = math.sqrt(2)
TAPS = torch.tensor([1.0, 3.0, 3.0, 1.0]).outer(torch.tensor([1.0, 3.0, 3.0, 1.0])) / 64
EPS = 1e-8
LAST = torch.channels_last


class Family:
    """The layers of a generator and of a discriminator; a weight comes without its factor."""

    order = torch.contiguous_format

    def styled(self, x, weight, style, noise, strength, bias, up=1) -> Tensor:
        """act(modulated convolution + strength·noise + bias)·√2."""
        raise NotImplementedError

    def to_rgb(self, x, weight, style, bias) -> Tensor:
        """Modulated, not demodulated, 1×1."""
        raise NotImplementedError

    def double(self, image: Tensor) -> Tensor:
        raise NotImplementedError

    def conv(self, x, weight, bias, down=1, gain=1.0) -> Tensor:
        """A discriminator's layer; without a bias nothing follows the convolution."""
        raise NotImplementedError


def factor(weight: Tensor) -> float:
    """Of the equalised learning rate."""
    return 1 / math.sqrt(weight[0].numel())


class Nvidia(Family):
    def upfirdn2d(self, x: Tensor, up=1, down=1, padding=(0, 0, 0, 0), gain=1.0) -> Tensor:
        n, c, h, w = x.shape
        x = F.pad(x.reshape(n, c, h, 1, w, 1), [0, up - 1, 0, 0, 0, up - 1])
        x = F.pad(x.reshape(n, c, h * up, w * up), list(padding))
        taps = (TAPS * gain).to(x.dtype).flip([0, 1])[None, None].repeat(c, 1, 1, 1)
        return F.conv2d(x, taps, groups=c)[:, :, ::down, ::down]

    def bias_act(self, x: Tensor, bias: Tensor | None, act: bool, gain: float = 1.0) -> Tensor:
        x = x if bias is None else x + bias.reshape(1, -1, 1, 1)
        x = F.leaky_relu(x, 0.2) if act else x
        return x if gain == 1 else x * gain

    def modulated(self, x, weight, style, noise, up=1, demodulate=True) -> Tensor:
        n, _, k, _ = (x.shape[0], *weight.shape[1:])
        x = x * style.reshape(n, -1, 1, 1)
        if up > 1:
            x = F.conv_transpose2d(x, weight.transpose(0, 1), stride=up)
            x = self.upfirdn2d(x, padding=up_borders(4, k, up, k // 2), gain=up**2)
        else:
            x = F.conv2d(x, weight, padding=k // 2)
        if not demodulate:
            return x
        weights = weight[None] * style.reshape(n, 1, -1, 1, 1)
        scale = (weights.square().sum((2, 3, 4)) + EPS).rsqrt()
        return torch.addcmul(noise, x, scale.reshape(n, -1, 1, 1))

    def styled(self, x, weight, style, noise, strength, bias, up=1) -> Tensor:
        y = self.modulated(x, weight, style, noise * strength, up)
        return self.bias_act(y, bias, True, SQRT2)

    def to_rgb(self, x, weight, style, bias) -> Tensor:
        y = self.modulated(x, weight, style * factor(weight), None, demodulate=False)
        return self.bias_act(y, bias, False)

    def double(self, image: Tensor) -> Tensor:
        return self.upfirdn2d(image, up=2, padding=(2, 1, 2, 1), gain=4)

    def conv2d_resample(self, x: Tensor, weight: Tensor, down: int) -> Tensor:
        k = weight.shape[-1]
        if down == 1:
            return F.conv2d(x, weight, padding=k // 2)
        borders = down_borders(4, down, k // 2)
        first = down if k == 1 else 1
        return F.conv2d(self.upfirdn2d(x, 1, first, borders), weight, stride=down // first)

    def conv(self, x, weight, bias, down=1, gain=1.0) -> Tensor:
        y = self.conv2d_resample(x, weight * factor(weight), down)
        act = bias is not None
        return self.bias_act(y, bias, act, gain * SQRT2 if act else gain)


class NvidiaDropin(Nvidia):
    def upfirdn2d(self, x: Tensor, up=1, down=1, padding=(0, 0, 0, 0), gain=1.0) -> Tensor:
        more = {"up": up, "down": down, "padding": list(padding), "gain": float(gain)}
        return rwm_fast.upfirdn2d(x, TAPS, **more)

    def bias_act(self, x: Tensor, bias: Tensor | None, act: bool, gain: float = 1.0) -> Tensor:
        kind = "lrelu" if act else "linear"
        return rwm_fast.bias_act(x, bias, activation=kind, gain=gain)

    def modulated(self, x, weight, style, noise, up=1, demodulate=True) -> Tensor:
        settings = {"up": up, "flip_weight": up == 1, "demodulate": demodulate, "eps": EPS}
        settings |= {"padding": weight.shape[-1] // 2, "resample_filter": TAPS}
        return rwm_fast.modulated_conv2d(x, weight, style, noise, **settings)

    def conv(self, x, weight, bias, down=1, gain=1.0) -> Tensor:
        return Ours().conv(x, weight, bias, down, gain)


class Port(Family):
    free = False  # demodulation without the style

    def leaky(self, x: Tensor, bias: Tensor) -> Tensor:
        return F.leaky_relu(x + bias.view(1, -1, 1, 1), 0.2) * SQRT2

    def modulated(self, x, weight, style, up=1, demodulate=True) -> Tensor:
        n, i, h, w = x.shape
        o, _, k, _ = weight.shape
        if self.free:
            style = style.view(n, i, 1, 1)
            if demodulate:
                style = style * torch.rsqrt(style.pow(2).mean(1, keepdim=True) + EPS)
            x = x * style
            weights = (factor(weight) * weight[None]).repeat(n, 1, 1, 1, 1)
        else:
            weights = factor(weight) * weight[None] * style.view(n, 1, i, 1, 1)
        if demodulate:
            demod = torch.rsqrt(weights.pow(2).sum((2, 3, 4)) + EPS)
            weights = weights * demod.view(n, o, 1, 1, 1)
        x = x.reshape(1, n * i, h, w)
        if up == 1:
            y = F.conv2d(x, weights.view(n * o, i, k, k), padding=k // 2, groups=n)
            return y.view(n, o, h, w)
        weights = weights.transpose(1, 2).reshape(n * i, o, k, k)
        y = F.conv_transpose2d(x, weights, stride=2, groups=n)
        y = y.view(n, o, *y.shape[2:])
        return upfirdn2d(y, TAPS, padding=up_borders(4, k, up, k // 2), gain=up**2)

    def styled(self, x, weight, style, noise, strength, bias, up=1) -> Tensor:
        y = self.modulated(x, weight, style, up)
        return self.leaky(y + strength * noise, bias)

    def to_rgb(self, x, weight, style, bias) -> Tensor:
        y = self.modulated(x, weight, style, demodulate=False)
        return y + bias.view(1, -1, 1, 1)

    def double(self, image: Tensor) -> Tensor:
        return upfirdn2d(image, TAPS, up=2, padding=[2, 1, 2, 1], gain=4)

    def conv(self, x, weight, bias, down=1, gain=1.0) -> Tensor:
        k = weight.shape[-1]
        padding = k // 2 if down == 1 else 0
        if down > 1:
            x = upfirdn2d(x, TAPS, padding=down_borders(4, down, k // 2))
        y = F.conv2d(x, weight * factor(weight), stride=down, padding=padding)
        y = y if bias is None else self.leaky(y, bias)
        return y if gain == 1 else y * gain


class Swapping(Port):
    free = True


class Ours(Family):
    order = LAST

    def __init__(self, free: bool = False, order: torch.memory_format = LAST) -> None:
        self.free, self.order = free, order

    def styled(self, x, weight, style, noise, strength, bias, up=1) -> Tensor:
        if self.free:
            style = style * torch.rsqrt(style.square().mean(1, keepdim=True) + EPS)
            norm = torch.rsqrt(weight.square().sum((1, 2, 3), keepdim=True) + EPS)
            weight = weight * norm
        settings = {"up": up, "padding": 1, "flip_weight": up == 1, "demodulate": not self.free}
        settings |= {"resample_filter": TAPS, "activation": "lrelu", "gain": SQRT2, "eps": EPS}
        more = {"noise_strength": strength, "bias": bias}
        return rwm_fast.modulated_conv2d(x, weight, style, noise, **more, **settings)

    def to_rgb(self, x, weight, style, bias) -> Tensor:
        style = style * factor(weight)
        return rwm_fast.modulated_conv2d(x, weight, style, demodulate=False, bias=bias)

    def double(self, image: Tensor) -> Tensor:
        return rwm_fast.upfirdn2d(image, TAPS, up=2, padding=[2, 1, 2, 1], gain=4.0)

    def conv(self, x, weight, bias, down=1, gain=1.0) -> Tensor:
        settings = {"padding": weight.shape[-1] // 2, "down": down}
        settings |= {"resample_filter": TAPS if down > 1 else None, "weight_gain": factor(weight)}
        if bias is not None:
            settings |= {"bias": bias, "activation": "lrelu", "gain": SQRT2 * gain}
        else:
            settings["weight_gain"] *= gain
        return rwm_fast.conv2d_bias_act(x, weight, **settings)


PUBLISHED = {"NVIDIA": Nvidia(), "port": Port(), "Swapping": Swapping()}
DROPIN = {
    "NVIDIA, dropin": NvidiaDropin(),
    "port, dropin": Ours(order=torch.contiguous_format),
    "Swapping, dropin": Ours(free=True, order=torch.contiguous_format),
}
FAMILIES = {**PUBLISHED, **DROPIN, "ours": Ours()}

# ---- networks


def widths(side: int, base: int, most: int) -> dict[int, int]:
    """Channels by size, from 4 pixels to `side`."""
    return {4 << i: min(base // (4 << i), most) for i in range(int(math.log2(side)) - 1)}


class Source:
    """Draws parameters and inputs in float32, so that float64 has the same numbers."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype, self.random = dtype, torch.Generator().manual_seed(0)
        self.parameters: list[Tensor] = []

    def draw(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.random).to(self.dtype)

    def parameter(self, *shape: int, order=torch.contiguous_format) -> Tensor:
        values = self.draw(*shape)
        values = values.contiguous(memory_format=order) if len(shape) == 4 else values
        self.parameters.append(torch.nn.Parameter(values))
        return self.parameters[-1]


class Generator:
    """StyleGAN2's with skips to RGB, from styles [N, layers, D] on."""

    def __init__(self, family: Family, channels: dict[int, int], source: Source, features: int):
        self.family, self.channels = family, channels
        make = lambda *shape: source.parameter(*shape, order=family.order)
        self.first = make(1, channels[4], 4, 4)
        self.layers = []
        before = channels[4]
        for side, c in channels.items():
            kinds = [(before, c, 3, 2), (c, c, 3, 1)][side == 4 :] + [(c, 3, 1, 0)]
            for i, o, k, up in kinds:
                affine = make(i, features), make(i)
                self.layers.append((up, side, make(o, i, k, k), affine, make(1), make(o)))
            before = c

    def noise(self, n: int, source: Source) -> list[Tensor]:
        return [source.draw(n, 1, side, side) for _, side, *_ in self.layers]

    def __call__(self, styles: Tensor, noise: list[Tensor]) -> Tensor:
        f, image = self.family, None
        x = self.first.repeat(styles.shape[0], 1, 1, 1).contiguous(memory_format=f.order)
        for layer, w, each in zip(self.layers, styles.unbind(1), noise, strict=True):
            up, _, weight, (matrix, shift), strength, bias = layer
            style = F.linear(w, matrix * matrix.shape[1] ** -0.5, shift + 1)
            if up:
                x = f.styled(x, weight, style, each, strength, bias, up)
                continue
            y = f.to_rgb(x, weight, style, bias)
            image = y if image is None else f.double(image) + y
        return image


class Discriminator:
    """StyleGAN2's, of residual blocks."""

    def __init__(self, family: Family, channels: dict[int, int], source: Source):
        self.family = family
        make = lambda *shape: source.parameter(*shape, order=family.order)
        sides = list(channels)[::-1]
        c = channels[sides[0]]
        self.start, self.blocks = (make(c, 3, 1, 1), make(c)), []
        for side in sides[1:]:
            o = channels[side]
            parts = (make(c, c, 3, 3), make(c)), (make(o, c, 3, 3), make(o))
            self.blocks.append((*parts, (make(o, c, 1, 1), None)))
            c = o
        self.last, self.hidden = (make(c, c + 1, 3, 3), make(c)), (make(c, 16 * c), make(c))
        self.logit = make(1, c), make(1)

    def __call__(self, x: Tensor) -> Tensor:
        f = self.family
        x = f.conv(x.contiguous(memory_format=f.order), *self.start)
        for one, two, skip in self.blocks:
            rest = f.conv(x, *skip, down=2, gain=SQRT2 / 2)
            x = f.conv(f.conv(x, *one), *two, down=2, gain=SQRT2 / 2) + rest
        deviation = (x - x.mean(0)).square().mean(0).add(EPS).sqrt().mean()
        x = torch.cat([x, deviation.expand(x.shape[0], 1, *x.shape[2:])], 1)
        x = f.conv(x, *self.last).flatten(1)
        weight, bias = self.hidden
        x = F.leaky_relu(F.linear(x, weight * factor(weight), bias), 0.2) * SQRT2
        weight, bias = self.logit
        return F.linear(x, weight * factor(weight), bias)
