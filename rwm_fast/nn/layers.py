"""Layers: equalised learning rate, low-pass halving, modulated convolution, to-RGB.

Parameters stay in the dtype of the module (float32, or float64 after ``.double()``); a layer
computes in the dtype of its input and casts its weights to it. torch.autocast reaches the
linear layers alone, and the mixtures that come of it are served.
Memory format is preserved; channels_last is the fast one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rwm_fast.ops.bias_act import bias_act
from rwm_fast.ops.conv2d_bias_act import conv2d_bias_act
from rwm_fast.ops.modulated_conv2d import modulated_conv2d

SQRT2 = math.sqrt(2)
SQRT_HALF = math.sqrt(0.5)


class EqualLinear(nn.Module):
    r"""Linear layer at equalised learning rate: y = act(x Wᵀ/√I + b).

    W ~ N(0, 1) and the factor 1/√I is applied when the layer runs, so that Adam moves every layer
    at the same relative rate.

    Shapes: x [..., I] → [..., O]. `activation` is "linear" or "lrelu" (slope 0.2, gain √2).
    Source: StyleGAN2, appendix B, after Karras et al., ICLR 2018, section 4.1.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        bias_init: float = 0.0,
        activation: str = "linear",
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.activation, self.bias_init = activation, bias_init
        self.gain = 1 / math.sqrt(in_features)
        self.weight = nn.Parameter(_normal(out_features, in_features))  # [O, I]
        self.bias = nn.Parameter(torch.full((out_features,), bias_init))  # [O]

    def forward(self, x: Tensor) -> Tensor:  # [..., I] -> [..., O]
        weight = (self.weight * self.gain).to(x.dtype)
        if self.activation == "linear":
            return F.linear(x, weight, self.bias.to(x.dtype))
        y = F.linear(x, weight)
        rows = y.reshape(-1, self.out_features)  # [*, O]: bias_act's channels are dimension 1
        return bias_act(rows, self.bias, activation=self.activation).view(y.shape)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, activation={self.activation}"


class EqualConv2d(nn.Module):
    r"""Convolution at equalised learning rate: y = act(W/√(I·k²) ∗ x + b), halved if asked.

    `down=2` filters with `resample_filter`, then takes every second pixel: the filter and the
    convolution together see ⌊H/2⌋ × ⌊W/2⌋ windows, centred. `padding` is "zeros", "reflect" or
    "none"; with "none", `down=2` is a plain strided convolution without filter. Sizes too small
    to be mirrored are continued by their border pixels instead.

    Shapes: x [N, I, H, W] → [N, O, H/down, W/down]. `activation` as in `EqualLinear`; `bias=False`
    goes with "linear" only. Source: StyleGAN2, appendix B.
    """

    resample_filter: Tensor | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        down: int = 1,
        resample_filter: Sequence[float] | None = None,
        padding: str = "zeros",
        bias: bool = True,
        activation: str = "linear",
        activation_gain: float = SQRT2,
    ) -> None:
        super().__init__()
        self.in_channels, self.out_channels = in_channels, out_channels
        self.kernel_size = kernel_size
        self.down, self.padding = down, padding
        self.activation, self.activation_gain = activation, activation_gain
        self.gain = 1 / math.sqrt(in_channels * kernel_size**2)
        self.weight = nn.Parameter(_normal(out_channels, in_channels, kernel_size, kernel_size))
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None  # [O]
        taps = None if resample_filter is None else low_pass(resample_filter)
        self.register_buffer("resample_filter", taps, persistent=False)
        total = 0 if padding == "none" else kernel_size - 1
        self.borders = ((total + 1) // 2, total // 2)  # left = top, right = bottom

    def forward(self, x: Tensor) -> Tensor:  # [N, I, H, W] -> [N, O, H', W']
        padding = [*self.borders, *self.borders]
        if self.padding == "reflect":
            x, padding = self._mirrored(x, padding)
        return conv2d_bias_act(
            x,
            self.weight,
            self.bias,
            padding=padding,
            down=self.down,
            resample_filter=self.resample_filter,
            weight_gain=self.gain,
            activation=self.activation,
            gain=1.0 if self.activation == "linear" else self.activation_gain,
        )

    def _mirrored(self, x: Tensor, padding: list[int]) -> tuple[Tensor, list[int]]:
        """x with the borders that kernel and filter reach, and the padding that is left to do."""
        taps = 0 if self.resample_filter is None else len(self.resample_filter)
        filters = [(taps - self.down + 1) // 2, (taps - self.down) // 2] * 2 if taps else [0] * 4
        around = [p + f for p, f in zip(padding, filters, strict=True)]
        return mirror(x, around) if any(around) else x, [-f for f in filters]

    def extra_repr(self) -> str:
        text = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}"
        text += f", down={self.down}" if self.down > 1 else ""
        return f"{text}, padding={self.padding}, activation={self.activation}"


class ModulatedConv2d(nn.Module):
    r"""Styled layer: affine of the style, modulated convolution, noise, bias, activation.

    s = A·style/√D + 1 scales the input channels; see `rwm_fast.modulated_conv2d`. `demodulation`:
    "style" divides by the norm of the scaled weights (StyleGAN2); "weight" divides the style by its
    rms and each output channel's weights by their norm, without the style (the base code's form);
    "none" does neither and keeps the equalised learning rate (to-RGB).

    Arguments of forward: x [N, I, H, W]; style [N, D], or [N, K, D] with `regions`
    [N, K, H·up, W·up], non-negative and adding up to 1 over K; noise [N, 1, H·up, W·up] or None.
    Returns [N, O, H·up, W·up] in x's dtype. `gain` multiplies after the activation.
    """

    resample_filter: Tensor | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        style_dim: int,
        *,
        up: int = 1,
        resample_filter: Sequence[float] | None = None,
        demodulation: str = "style",
        noise: bool = False,
        activation: str = "lrelu",
        gain: float = SQRT2,
    ) -> None:
        super().__init__()
        self.in_channels, self.out_channels = in_channels, out_channels
        self.kernel_size = kernel_size
        self.up, self.demodulation, self.activation, self.gain = up, demodulation, activation, gain
        self.fan_in = in_channels * kernel_size**2
        self.weight = nn.Parameter(_normal(out_channels, in_channels, kernel_size, kernel_size))
        self.bias = nn.Parameter(torch.zeros(out_channels))  # [O]
        self.noise_strength = nn.Parameter(torch.zeros(())) if noise else None
        self.affine = EqualLinear(style_dim, in_channels, bias_init=1.0)
        taps = low_pass(resample_filter) if up > 1 and resample_filter else None
        self.register_buffer("resample_filter", taps, persistent=False)

    def forward(
        self, x: Tensor, style: Tensor, regions: Tensor | None = None, noise: Tensor | None = None
    ) -> Tensor:
        styles: Tensor = self.affine(style)  # [N, (K,) I]
        weight: Tensor = self.weight  # [O, I, k, k]
        if self.demodulation == "weight":
            styles = styles * (styles.square().mean(-1, keepdim=True) + 1e-8).rsqrt()
            weight = weight * (weight.square().sum((1, 2, 3), keepdim=True) + 1e-8).rsqrt()
        elif self.demodulation == "none":
            # the equalised gain, on the small tensor instead of the weights
            styles = styles * (1 / math.sqrt(self.fan_in))
        return modulated_conv2d(
            x,
            weight,
            styles,
            noise,
            up=self.up,
            padding=self.kernel_size // 2,
            resample_filter=self.resample_filter,
            demodulate=self.demodulation == "style",
            regions=regions,
            noise_strength=None if noise is None else self.noise_strength,
            bias=self.bias,
            activation=self.activation,
            gain=self.gain,
            # demodulation cancels the equalised gain 1/√fan_in, so the weights go in without it;
            # ε then has to be fan_in times as large to stand where it is published
            eps=1e-8 * self.fan_in,
        )

    def extra_repr(self) -> str:
        text = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}"
        text += f", up={self.up}" if self.up > 1 else ""
        return f"{text}, demodulation={self.demodulation}, activation={self.activation}"


class ToRGB(ModulatedConv2d):
    """The last styled layer: no demodulation, no noise, no activation, bias only."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, style_dim: int
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            style_dim,
            demodulation="none",
            activation="linear",
            gain=1.0,
        )


def low_pass(taps: Sequence[float]) -> Tensor:
    """Filter taps [T] as a float32 tensor with sum 1."""
    return torch.tensor([tap / sum(taps) for tap in taps], dtype=torch.float32)


def mirror(x: Tensor, borders: Sequence[int]) -> Tensor:
    """Pads [N, C, H, W] by reflection; by repeating the border pixel where it is too small."""
    fits = max(borders[:2]) < x.shape[3] and max(borders[2:]) < x.shape[2]
    return F.pad(x, list(borders), mode="reflect" if fits else "replicate")


def _normal(*shape: int) -> Tensor:
    """~ N(0, 1). `torch.randn` gives the same numbers, but on the meta device, where the files of
    weights are looked at, it imports sympy: 0.7 s."""
    return torch.empty(shape).normal_()
