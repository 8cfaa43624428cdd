"""Layers that other projects write as classes, computed by ours from the attributes they have.

The classes are those of the StyleGAN2 port and its relatives (the Swapping Autoencoder's code,
basicsr, mmagic), and NVIDIA's convolution. A `check_…` says in one sentence why a layer is not what
its name promises, or None; a `run_…` is its forward. `rwm_fast.dropin.patch` puts the two together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rwm_fast.dropin import _calls, nvidia
from rwm_fast.dropin.rosinality import fused_leaky_relu, upfirdn2d
from rwm_fast.ops.conv2d_bias_act import conv2d_bias_act
from rwm_fast.ops.modulated_conv2d import modulated_conv2d

SQRT2 = math.sqrt(2)


class Patched:
    """Marks the classes that `rwm_fast.dropin.patch` makes."""


class Epilogue(dict):
    """What follows a convolution in the same pass, handed to a patched one through its hooks."""


def first(layer: Any, *names: str) -> Any:
    """The first of these attributes that is there and not None."""
    found = (getattr(layer, name, None) for name in names)
    return next((value for value in found if value is not None), None)


# ---- resampling: Blur, Upsample, Downsample and their cousins


def check_resample(layer: Any) -> str | None:
    kernel, pad = first(layer, "kernel"), first(layer, "pad")
    if not isinstance(kernel, Tensor) or kernel.ndim != 2:
        return "it has no two-dimensional kernel"
    if not isinstance(pad, Sequence) or len(pad) not in (2, 4):
        return "its pad is not two or four numbers"
    reflects = getattr(layer, "reflection", False)
    mirrors = isinstance(getattr(layer, "reflection_pad", None), nn.Module)
    return "it pads by reflection in its forward" if reflects and not mirrors else None


def _resample(layer: Any, x: Tensor, up: int = 1, down: int = 1) -> Tensor:
    x = layer.reflection_pad(x) if getattr(layer, "reflection", False) else x
    return upfirdn2d(x, layer.kernel.to(x.device), up, down, layer.pad)


def run_blur(layer: Any, theirs: type, x: Tensor) -> Tensor:
    return _resample(layer, x)


def run_upsample(layer: Any, theirs: type, x: Tensor) -> Tensor:
    return _resample(layer, x, up=layer.factor)


def run_downsample(layer: Any, theirs: type, x: Tensor) -> Tensor:
    return _resample(layer, x, down=layer.factor)


# ---- activation


def check_activation(layer: Any) -> str | None:
    if not hasattr(layer, "negative_slope") or not hasattr(layer, "scale"):
        return "it has no negative_slope and scale"
    bias = getattr(layer, "bias", None)
    return None if bias is None or bias.ndim == 1 else "its bias is not one number a channel"


def run_activation(layer: Any, theirs: type, x: Tensor) -> Tensor:
    return fused_leaky_relu(x, getattr(layer, "bias", None), layer.negative_slope, layer.scale)


# ---- modulated convolution


def _factors(layer: Any) -> tuple[int, int]:
    mode = getattr(layer, "sample_mode", None)
    up = bool(getattr(layer, "upsample", False)) or mode == "upsample"
    down = bool(getattr(layer, "downsample", False)) or mode == "downsample"
    return 1 + up, 1 + down


def check_modulated(layer: Any) -> str | None:
    weight = first(layer, "weight")
    if not isinstance(weight, Tensor) or weight.ndim != 5 or weight.shape[0] != 1:
        return "its weight is not [1, O, I, k, k]"
    if first(layer, "modulation", "style_modulation") is None:
        return "it has no layer modulation"
    if not isinstance(getattr(layer, "demodulate", None), bool):
        return "it does not say whether it demodulates"
    if getattr(layer, "fp16_enabled", False):
        return "it casts to float16 by itself"
    up, down = _factors(layer)
    if up * down == 4:
        return "it enlarges and reduces"
    blur = first(layer, "blur", "smooth")
    return check_resample(blur) if up * down == 2 else None


def _borders(layer: Any) -> tuple[list[int], Tensor | None]:
    """Padding as `modulated_conv2d` takes it, on top of what its filter needs, and the filter."""
    (up, down), k = _factors(layer), layer.weight.shape[-1]
    if up * down == 1:
        return [layer.padding] * 4, None
    blur = first(layer, "blur", "smooth")
    kernel, pad = blur.kernel, list(blur.pad) * (4 // len(blur.pad))
    fh, fw = kernel.shape
    if up == 2:  # the transposed convolution begins k − 1 before the image and ends k − 2 behind it
        own = (*nvidia._up_borders(fw, 2), *nvidia._up_borders(fh, 2))
        return [p - o + k - 1 - i % 2 for i, (p, o) in enumerate(zip(pad, own, strict=True))], (
            kernel / 4  # ours is of sum 1 and multiplies by 4 itself
        )
    own = (*nvidia._down_borders(fw, 2), *nvidia._down_borders(fh, 2))
    return [p - o for p, o in zip(pad, own, strict=True)], kernel


def _operands(layer: Any, x: Tensor, style: Tensor) -> dict[str, Any]:
    """Weight, styles, demodulation and ε. The weight's factor goes to the styles, or, where it
    cancels, to ε alone."""
    weight, scale = layer.weight[0], getattr(layer, "scale", 1.0)
    affine = first(layer, "modulation", "style_modulation")
    styles = affine(style).reshape(x.shape[0], -1) + getattr(layer, "style_bias", 0.0)
    eps, demodulate = layer.eps / scale**2, layer.demodulate
    if demodulate and getattr(layer, "new_demodulation", False):  # without the style
        styles = styles * torch.rsqrt(styles.square().mean(1, keepdim=True) + 1e-8)
        weight = weight * torch.rsqrt(weight.square().sum((1, 2, 3), keepdim=True) + eps)
        demodulate = False
    elif not demodulate:
        styles = styles * scale
    return {"weight": weight, "styles": styles, "demodulate": demodulate, "eps": eps}


def _convolve(layer: Any, x: Tensor, style: Tensor, **epilogue: Any) -> Tensor:
    (up, down), (padding, filter) = _factors(layer), _borders(layer)
    return _calls.run(
        "layers.ModulatedConv2d", modulated_conv2d, x, **_operands(layer, x, style),
        up=up, down=down, padding=padding, flip_weight=up == 1,
        resample_filter=None if filter is None else filter.to(x.device), **epilogue,
    )  # fmt: skip


def run_modulated(layer: Any, theirs: Any, x: Tensor, style: Tensor, *more: Any) -> Tensor:
    if len(more) == 1 and isinstance(more[0], Epilogue):
        return _convolve(layer, x, style, **more[0])
    if style.ndim != 2 or more:  # a map of styles, a gain on the input
        return theirs.forward(layer, x, style, *more)
    return _convolve(layer, x, style)


# ---- modulated convolution, noise and activation in one


def _conv(layer: Any) -> Any:
    return first(layer, "conv", "modulated_conv")


def _noise(layer: Any) -> Any:
    """What holds the strength of the noise."""
    return first(layer, "noise", "noise_injector") or layer


def check_styled(layer: Any) -> str | None:
    if not isinstance(_conv(layer), nn.Module):
        return "it has no modulated convolution"
    if not isinstance(first(layer, "activate"), nn.Module):
        return "it has no layer activate"
    strength = first(_noise(layer), "weight")
    if not isinstance(strength, Tensor) or strength.numel() != 1:
        return "its noise has no strength of one number"
    if getattr(layer, "fp16_enabled", False):
        return "it casts to float16 by itself"
    return check_modulated(_conv(layer)) or check_activation(layer.activate)


def _size(conv: Any, x: Tensor) -> tuple[int, int]:
    """Height and width of the result."""
    (up, down), k = _factors(conv), conv.weight.shape[-1]
    left, right, top, bottom = _borders(conv)[0]
    height, width = x.shape[2] * up + top + bottom, x.shape[3] * up + left + right
    return (height - k) // down + 1, (width - k) // down + 1


def run_styled(
    layer: Any, theirs: Any, x: Tensor, style: Tensor, noise: Tensor | None = None, *more: Any
) -> Tensor:
    conv, holder, act = _conv(layer), _noise(layer), layer.activate
    n, (h, w) = x.shape[0], _size(conv, x)
    apart = conv._forward_hooks or not isinstance(conv, Patched)  # a hook would see another result
    if apart or style.ndim != 2 or more:
        return theirs.forward(layer, x, style, noise, *more)
    if not getattr(layer, "use_noise", True):
        noise = None
    else:
        if getattr(holder, "image_size", x.shape) is None:
            holder.image_size = torch.Size((n, conv.weight.shape[1], h, w))
        fixed = getattr(holder, "fixed_noise", None)
        if fixed is True:  # mmagic's flag: drawn from a seed of its own
            return theirs.forward(layer, x, style, noise)
        if isinstance(fixed, Tensor):
            same = fixed.shape[2:] == (h, w)
            noise = fixed if same else F.interpolate(fixed, (h, w), mode="nearest")
        elif noise is None:
            noise = x.new_empty(n, 1, h, w).normal_()
        if tuple(noise.shape) not in ((n, 1, h, w), (1, 1, h, w)):  # a map a channel
            return theirs.forward(layer, x, style, noise)
    act_settings = {"negative_slope": act.negative_slope, "gain": act.scale}
    strength = None if noise is None else holder.weight
    epilogue = Epilogue(noise=noise, noise_strength=strength, bias=act.bias, activation="lrelu")
    return conv(x, style, Epilogue(epilogue | act_settings))


# ---- convolution with what stands before and behind it in a Sequential


def _parts(layer: Any) -> tuple[Any, Any, Any]:
    """Blur or reflection, convolution, activation; None for what is not there."""
    before, conv, act = None, None, None
    for part in layer:
        if isinstance(first(part, "weight"), Tensor) and part.weight.ndim == 4:
            conv = part
        elif conv is None:
            before = part
        else:
            act = part
    return before, conv, act


def check_conv_layer(layer: Any) -> str | None:
    if not isinstance(layer, nn.Sequential):
        return "it is no Sequential"
    before, conv, act = _parts(layer)
    if conv is None or len(layer) != sum(part is not None for part in (before, conv, act)):
        return "it is not one convolution with one layer before and one behind it"
    if not all(hasattr(conv, name) for name in ("scale", "stride", "padding")):
        return "its convolution has no scale, stride and padding"
    if not isinstance(conv.stride, int) or not isinstance(conv.padding, int):
        return "its stride or padding is not one number"
    if act is not None and not hasattr(act, "negative_slope"):
        return "what stands behind its convolution is no leaky ReLU"
    if conv.bias is not None and act is not None and first(act, "bias") is not None:
        return "it has two biases"
    if before is None or isinstance(before, nn.ReflectionPad2d):
        return None
    if conv.stride != 2 or conv.padding:
        return "it blurs before a convolution that does not halve"
    return check_resample(before)


def run_conv_layer(layer: Any, theirs: type, x: Tensor) -> Tensor:
    before, conv, act = _parts(layer)
    padding, kernel = [conv.padding] * 4, None
    if isinstance(before, nn.ReflectionPad2d):
        x = before(x)
    elif before is not None:
        x = before.reflection_pad(x) if getattr(before, "reflection", False) else x
        kernel, pad = before.kernel.to(x.device), list(before.pad) * (4 // len(before.pad))
        own = (*nvidia._down_borders(kernel.shape[1], 2), *nvidia._down_borders(kernel.shape[0], 2))
        padding = [p - o for p, o in zip(pad, own, strict=True)]
    settings: dict[str, Any] = {}
    if act is not None:
        gain = getattr(act, "scale", SQRT2)
        settings = {"activation": "lrelu", "negative_slope": act.negative_slope, "gain": gain}
    bias = conv.bias if conv.bias is not None else first(act, "bias")
    return _calls.run(
        "layers.ConvLayer", conv2d_bias_act, x, conv.weight, bias, padding=padding,
        down=conv.stride, resample_filter=kernel, weight_gain=conv.scale, **settings,
    )  # fmt: skip


# ---- NVIDIA's convolution with bias and activation


def check_conv2d_layer(layer: Any) -> str | None:
    weight, bias = first(layer, "weight"), first(layer, "bias")
    if not isinstance(weight, Tensor) or weight.ndim != 4:
        return "its weight is not [O, I, k, k]"
    if bias is not None and bias.ndim != 1:
        return "its bias is not one number a channel"
    numbers = ("weight_gain", "act_gain", "padding", "up", "down", "conv_clamp")
    if not all(isinstance(getattr(layer, name, ""), (int, float, type(None))) for name in numbers):
        return f"one of {', '.join(numbers)} is not one number"
    if layer.activation not in ("linear", "lrelu"):
        return f"its activation is {layer.activation}"
    if layer.up != 1:
        return "it enlarges"
    filtered = isinstance(first(layer, "resample_filter"), Tensor)
    return None if layer.down == 1 or filtered else "it reduces without a filter"


def run_conv2d_layer(layer: Any, theirs: Any, x: Tensor, gain: float = 1) -> Tensor:
    if not isinstance(gain, (int, float)) or gain <= 0:
        return theirs.forward(layer, x, gain)
    clamp = None if layer.conv_clamp is None else layer.conv_clamp * gain
    filter = layer.resample_filter if layer.down > 1 else None
    bias = None if layer.bias is None else layer.bias.to(x.dtype)
    return _calls.run(
        "layers.Conv2dLayer", conv2d_bias_act, x, layer.weight, bias, padding=layer.padding,
        down=layer.down, resample_filter=filter, weight_gain=layer.weight_gain,
        activation=layer.activation, gain=layer.act_gain * gain, clamp=clamp,
    )  # fmt: skip
