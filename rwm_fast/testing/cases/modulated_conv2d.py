"""Inputs of modulated_conv2d."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rwm_fast.testing.cases.case import (
    Case,
    Inputs,
    Work,
    count_taps,
    normal,
    on_meta,
    refused,
    split,
)

OP = "modulated_conv2d"
PARAMETERS = ("weight", "styles", "noise_strength", "bias")
LOW_PASS = torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=torch.float64) / 8
THREE_TAPS = torch.tensor([1.0, 2.0, 1.0], dtype=torch.float64) / 4
UNEVEN = torch.tensor([[0.5, -0.25, 1.0], [0.125, 0.375, -0.75]], dtype=torch.float64)

# What comes before the activation is about standard normal: these biases keep it away from the
# kinks at 0 and at the clamp, where rounding would change the derivative, and reach all four parts.
BIASES = (6.0, -6.0, 24.0, -96.0)
CLAMP = 14.0  # between the parts: 6 + 4.5 < 14 < 24 − 4.5, and 0.2 · (96 − 4.5) > 14


def _regions(k: int, h: int, w: int, kind: str = "soft") -> Callable[..., Tensor]:
    """[N, K, h, w]; soft: all above 0; hard: one-hot; bool: the same as truth values."""

    def make(generator: torch.Generator, n: int) -> Tensor:
        soft = normal(generator, n, k, h, w).softmax(1)
        if kind == "soft":
            return soft
        hard = F.one_hot(soft.argmax(1), k).movedim(-1, 1)
        return hard.bool() if kind == "bool" else hard.double()

    return make


def _everywhere(k: int, which: int) -> Callable[..., Tensor]:
    """One region has every pixel, the others have none."""

    def make(generator: torch.Generator, n: int) -> Tensor:
        regions = torch.zeros(n, k, 3, 3, dtype=torch.float64)
        regions[:, which] = 1
        return regions

    return make


def _output_size(x: Tensor, settings: Mapping[str, Any]) -> tuple[int, int]:
    """For paddings of kernel // 2, which is what cases with noise use."""
    up, down = settings.get("up", 1), settings.get("down", 1)
    return x.shape[2] * up // down, x.shape[3] * up // down


def _case(
    name: str,
    shape: tuple[int, int, int, int],
    out_channels: int,
    kernel: int = 3,
    *,
    styles: int | None = None,
    regions: Callable[..., Tensor] | None = None,
    noise: str | None = None,
    noise_strength: float | None = None,
    bias: bool = False,
    scales: tuple[float, float, float] = (1, 1, 1),
    **more: Any,
) -> Case:
    """noise: "each", "shared" or "plane"; all tensors get gradients unless `gradients` is given.

    scales: factors of x, weight and styles, whose products have size 1 with (1, 1, 1).
    """
    settings, fields = split(more)
    settings.setdefault("padding", kernel // 2)
    n, i, h, w = shape

    def make(generator: torch.Generator) -> Inputs:
        x = normal(generator, *shape)
        weight = normal(generator, out_channels, i, kernel, kernel) / (i * kernel**2) ** 0.5
        s = 1 + 0.3 * normal(generator, *((n, i) if styles is None else (n, styles, i)))
        tensors = (t * scale for t, scale in zip((x, weight, s), scales, strict=True))
        arguments = {**dict(zip(("x", "weight", "styles"), tensors, strict=True)), **settings}
        if noise is not None:
            size = _output_size(x, settings)
            planes = {"each": (n, 1, *size), "shared": (1, 1, *size), "plane": size}[noise]
            arguments["noise"] = normal(generator, *planes)
        if noise_strength is not None:
            arguments["noise_strength"] = torch.full((1,), noise_strength, dtype=torch.float64)
        if regions is not None:
            arguments["regions"] = regions(generator, n)
        if bias:
            parts = BIASES if "clamp" in settings else BIASES[:2]
            values = torch.tensor(parts, dtype=torch.float64)
            arguments["bias"] = values.repeat(out_channels)[:out_channels]
        return arguments

    gradients = ["x", "weight", "styles"]
    gradients += ["noise"] * (noise is not None) + ["noise_strength"] * (noise_strength is not None)
    gradients += ["regions"] * (regions is not None) + ["bias"] * bias
    # the styles' gradient sums most: every pixel, output channel and tap of kernel and filter
    taps = kernel**2 * count_taps(settings.get("resample_filter"))
    terms = max(1, h * w * settings.get("up", 1) ** 2 * max(out_channels, n) * taps)
    # stored: a·x, the convolution, the filter; back: b·dt, the adjoints of the two.
    # any_threads: torch's convolution sums in its own order
    made = {"gradients": tuple(gradients), "terms": terms, "stored": 6, "any_threads": False}
    return Case(OP, name, make, forward=forward, backward=backward, **made | fields)


def forward(inputs: Mapping[str, Any]) -> Work:
    """x and the weight are read once, y is written once; two operations a product."""
    x, weight = inputs["x"], inputs["weight"]
    h, w = _output_size(x, inputs)
    written = x.shape[0] * weight.shape[0] * h * w
    # each weight meets every pixel of the smaller of the two images
    products = x.shape[0] * min(x.shape[2] * x.shape[3], h * w) * weight.numel()
    moved = (x.numel() + written) * x.element_size() + weight.numel() * weight.element_size()
    return Work(bytes=moved, flops=2 * products)


def backward(inputs: Mapping[str, Any]) -> Work:
    """dy, y and x are read, dx and dW written, of the sizes of the forward pass; the convolution
    twice."""
    once = forward(inputs)
    return Work(bytes=2 * once.bytes, flops=2 * once.flops)


def _styled(name: str, shape: tuple[int, int, int, int], out_channels: int, **more: Any) -> Case:
    """A layer of a generator: noise, bias, leaky ReLU."""
    layer = {"noise": "each", "noise_strength": 0.1, "bias": True, **LRELU}
    return _case(name, shape, out_channels, **layer | more)


LRELU: dict[str, Any] = {"activation": "lrelu", "gain": 2**0.5}
RANGE = (256.0, 12.0, 10_000.0)  # weights of N(0, 1)
UP: dict[str, Any] = {"up": 2, "resample_filter": LOW_PASS, "flip_weight": False}
DOWN: dict[str, Any] = {"down": 2, "resample_filter": LOW_PASS}

CASES = (
    _case("bare", (2, 3, 4, 3), 2, smooth=True),
    _styled("styled", (2, 3, 3, 4), 2, smooth=True),
    _case("to_rgb", (2, 2, 2, 3), 3, 1, bias=True, demodulate=False, smooth=True),
    _case("no_demodulation", (1, 2, 4, 3), 2, demodulate=False, flip_weight=False, smooth=True),
    _case("up2", (1, 3, 3, 2), 2, **UP, smooth=True),
    _case("down2", (1, 3, 5, 4), 2, **DOWN, smooth=True),
    _styled("up2_styled", (2, 3, 3, 4), 4, noise="plane", **UP, clamp=CLAMP, gain=1.0),
    _styled("down2_styled", (2, 3, 8, 6), 4, noise="shared", **DOWN),
    _case("up2_pointwise", (2, 3, 3, 2), 2, 1, **UP, smooth=True),
    _case("down2_pointwise", (2, 3, 3, 4), 2, 1, **DOWN, smooth=True),
    _case("up2_three_taps", (2, 3, 5, 4), 2, up=2, resample_filter=THREE_TAPS),
    _case("down2_three_taps", (2, 3, 7, 6), 2, down=2, resample_filter=THREE_TAPS),
    _case("up2_no_filter", (2, 3, 4, 5), 2, up=2),
    _case("down2_no_filter", (2, 3, 6, 5), 2, down=2),
    _case("up3_down2", (1, 3, 3, 2), 2, up=3, down=2, resample_filter=UNEVEN, smooth=True),
    _case("uneven_filter", (2, 6, 5, 4), 3, up=2, resample_filter=UNEVEN, flip_weight=True),
    _case("padding", (1, 3, 3, 4), 2, padding=[2, 0, 1, 3], smooth=True),
    _case("cropped", (2, 3, 7, 6), 2, padding=[-1, 0], flip_weight=False),
    _case("up2_cropped", (2, 3, 5, 6), 2, padding=[-2, 1, 3, -1], up=2, resample_filter=LOW_PASS),
    _case("even_kernel", (2, 3, 5, 6), 4, 2, padding=[1, 0], flip_weight=False),
    _case("kernel_5", (2, 3, 6, 7), 4, 5, up=2, resample_filter=LOW_PASS),
    _styled("clamp", (1, 3, 3, 2), 4, clamp=CLAMP, gain=1.0, smooth=True),
    _case("linear_clamp", (2, 3, 4, 5), 4, bias=True, clamp=CLAMP),
    _styled("slope_0", (2, 3, 4, 3), 2, negative_slope=0.0, smooth=True),
    _case("mask", (2, 3, 4, 3), 2, styles=2, regions=_regions(2, 4, 3), smooth=True),
    _styled("mask_up2", (1, 3, 2, 3), 2, styles=2, regions=_regions(2, 8, 8), **UP, smooth=True),
    _case("mask_down2", (1, 3, 4, 3), 2, styles=2, regions=_regions(2, 3, 2), **DOWN, smooth=True),
    _styled("mask_fixed", (2, 3, 4, 6), 4, styles=2, regions=_regions(2, 16, 16, "hard"),
            gradients=("x", "weight", "styles", "noise", "noise_strength", "bias")),
    _case("mask_bool", (2, 3, 6, 6), 4, styles=2, regions=_regions(2, 6, 6, "bool"),
          gradients=("x", "weight", "styles")),
    _case("mask_all_one", (2, 3, 4, 6), 4, styles=2, regions=_everywhere(2, 1)),
    _case("mask_all_zero", (2, 3, 4, 6), 4, styles=2, regions=_everywhere(2, 0), **UP),
    _case("one_region", (2, 3, 4, 6), 4, styles=1, regions=_regions(1, 5, 5)),
    _case("mask_to_rgb", (2, 3, 5, 4), 3, 1, styles=2, regions=_regions(2, 9, 7), bias=True,
          demodulate=False),
    _styled("three_regions", (2, 3, 5, 4), 8, styles=3, regions=_regions(3, 11, 7), clamp=CLAMP),
    _styled("eight_regions", (2, 5, 6, 5), 4, styles=8, regions=_regions(8, 12, 10, "hard"), **UP),
    _styled("float32_parameters", (2, 3, 5, 6), 4, kept=PARAMETERS),
    _styled("float32_regions", (2, 3, 4, 6), 4, styles=2, regions=_regions(2, 8, 8),
            kept=(*PARAMETERS, "noise", "regions"), **UP),
    _case("noise_alone", (2, 3, 4, 5), 2, noise="shared"),
    # one channel alone and demodulated has no gradient but rounding errors
    _case("pixel", (1, 1, 1, 1), 1, demodulate=False, smooth=True),
    _case("pixel_demodulated", (1, 3, 1, 1), 2, **UP, smooth=True),
    # Products of x, weight and styles are beyond float16; x at the field's clamp of 256.
    _case("range", (2, 16, 5, 6), 8, scales=RANGE, bias=True, kept=PARAMETERS),
    _case("range_up2", (1, 16, 5, 4), 8, scales=RANGE, styles=2, regions=_regions(2, 8, 8), **UP),
    _styled("empty", (0, 3, 4, 6), 4, styles=2, regions=_regions(2, 4, 4), **UP),
    _styled("odd", (3, 17, 7, 9), 19, noise="plane"),
    _styled("odd_up2", (2, 19, 5, 7), 17, **UP),
    _styled("odd_down2", (2, 19, 9, 7), 17, **DOWN),
    # Whole vectors of channels in every dtype; more channels than 32 threads have vectors.
    _styled("vectors", (2, 16, 5, 6), 24),
    _styled("vectors_up2", (1, 16, 5, 4), 24, styles=2, regions=_regions(2, 8, 8), **UP),
    _styled("vectors_down2", (2, 16, 6, 8), 24, **DOWN),
    _case("vectors_to_rgb", (2, 24, 9, 8), 3, 1, styles=2, regions=_regions(2, 9, 8), bias=True,
          demodulate=False, gradients=("x", "weight", "styles", "bias")),
    _styled("wide", (1, 264, 3, 4), 264, kernel=1, styles=2, regions=_regions(2, 3, 4)),
    _styled("layer_16", (4, 512, 16, 16), 512, bench=True),
    _styled("layer_64", (4, 64, 64, 64), 64, bench=True),
    _styled("layer_128", (2, 256, 128, 128), 256, bench=True),
    _styled("layer_256", (2, 128, 256, 256), 128, bench=True),
    _styled("up2_32", (4, 512, 16, 16), 512, **UP, bench=True),
    _styled("up2_256", (1, 256, 128, 128), 128, **UP, bench=True),
    _styled("mask_layer_64", (4, 64, 64, 64), 64, styles=2, regions=_regions(2, 256, 256, "hard"),
            gradients=("x", "weight", "styles", "noise", "noise_strength", "bias"), bench=True),
    _case("to_rgb_256", (2, 128, 256, 256), 3, 1, bias=True, demodulate=False, bench=True),
)  # fmt: skip

refusal = refused(OP, "styled")
REFUSALS = (
    refusal("x_int", "x must be float16, bfloat16", x=Tensor.long),
    refusal("x_3d", r"x must be \[N, I, H, W\], got \[3, 3, 4\]", x=lambda v: v[0]),
    refusal("x_no_pixel", "x must have at least one pixel, got", x=lambda v: v[:, :, :0]),
    refusal("x_none", "x must be a tensor, got None", TypeError, x=None),
    refusal(
        "weight_shape",
        r"weight must be \[O, 3, kh, kw\] for x \[2, 3, 3, 4\], got \[2, 1, 3, 3\]",
        weight=lambda v: v[:, :1],
    ),
    refusal("weight_dtype", "weight must have x's dtype", weight=Tensor.half),
    refusal(
        "styles_shape",
        r"styles must be \[2, 3\] for x \[2, 3, 3, 4\] .*, got \[1, 3\]",
        styles=lambda v: v[:1],
    ),
    refusal(
        "styles_without_regions",
        r"styles must be \[2, 3\] .*\[N, K, I\] goes with regions",
        styles=torch.zeros(2, 2, 3),
    ),
    refusal("styles_device", "styles must be on x's", styles=on_meta),
    refusal(
        "regions_count",
        r"regions must be \[2, 2, H, W\] for 2 styles, got \[2, 1, 4, 3\]",
        case="mask",
        regions=lambda v: v[:, :1],
    ),
    refusal("styles_flat", r"styles must be \[2, K, 3\]", case="mask", styles=Tensor.flatten),
    refusal("weight_sparse", "weight must be strided, got", weight=Tensor.to_sparse),
    refusal("regions_dtype", "regions must have x's dtype", case="mask", regions=Tensor.long),
    refusal(
        "regions_sparse",
        "regions must be strided",
        case="mask",
        regions=lambda v: v.bool().to_sparse(),
    ),
    refusal(
        "styles_beside_regions",
        r"styles must be \[2, K, 3\] beside regions",
        case="mask",
        styles=torch.zeros(2, 2, 5),
    ),
    refusal(
        "noise_shape",
        r"noise must be \[2, 1, 3, 4\], \[1, 1, 3, 4\] or \[3, 4\], got \[2, 1, 6, 8\]",
        noise=torch.zeros(2, 1, 6, 8),
    ),
    refusal("noise_list", "noise must be a tensor", TypeError, noise=[0.0]),
    refusal(
        "noise_strength",
        "noise_strength must be a number or a tensor of one element",
        noise_strength=torch.zeros(4),
    ),
    refusal("bias", r"bias must be \[2\]", bias=torch.zeros(3)),
    refusal("up", "up must be a whole number of at least 1, got 0", up=0),
    refusal("down", "down must be a whole number of at least 1", down=0.5),
    refusal("padding", "padding must be 1, 2 or 4 whole numbers", padding=[1, 2, 3]),
    refusal("nothing_left", "padding must leave at least one pixel, got -1", padding=-1),
    refusal(
        "filter_gradient",
        "resample_filter must not require a gradient",
        resample_filter=torch.ones(3, requires_grad=True),
        up=2,
    ),
    refusal("filter", "must be a tensor, got 1.0", TypeError, resample_filter=1.0),
    refusal("activation", "activation must be one of linear", activation="relu"),
    refusal("eps", "eps must be at least 0, got -1.0", eps=-1.0),
    refusal("clamp", "clamp must be None or above 0", clamp=0.0),
)
