"""Inputs of conv2d_bias_act."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rwm_fast.testing.cases.case import Case, Inputs, count_taps, normal, on_meta, refused, split
from rwm_fast.testing.cases.modulated_conv2d import (
    BIASES,
    CLAMP,
    DOWN,
    LOW_PASS,
    LRELU,
    THREE_TAPS,
    UNEVEN,
    backward,
    forward,
)

OP = "conv2d_bias_act"


def _case(
    name: str,
    shape: tuple[int, int, int, int],
    out_channels: int,
    kernel: int = 3,
    *,
    bias: bool = True,
    **more: Any,
) -> Case:
    settings, fields = split(more)
    settings.setdefault("padding", kernel // 2)
    settings.setdefault("weight_gain", 0.5)
    n, i, h, w = shape

    def make(generator: torch.Generator) -> Inputs:
        weight = normal(generator, out_channels, i, kernel, kernel)
        weight /= settings["weight_gain"] * (i * kernel**2) ** 0.5
        arguments = {"x": normal(generator, *shape), "weight": weight}
        if bias:  # away from the kinks, as in the cases of modulated_conv2d
            parts = BIASES if "clamp" in settings else BIASES[:2]
            values = torch.tensor(parts, dtype=torch.float64)
            arguments["bias"] = values.repeat(out_channels)[:out_channels]
        return {**arguments, **settings}

    taps = kernel**2 * count_taps(settings.get("resample_filter"))
    made: dict[str, Any] = {"gradients": ("x", "weight", "bias") if bias else ("x", "weight")}
    made["terms"] = max(1, h * w * max(out_channels, i, n) * taps)
    # stored: the scaled weight, the filter, the convolution; back: b·dt, the adjoints of the two.
    # any_threads: torch's convolution sums in its own order
    made |= {"stored": 6, "any_threads": False, "forward": forward, "backward": backward}
    return Case(OP, name, make, **made | fields)


CASES = (
    _case("plain", (2, 3, 4, 5), 2, smooth=True),
    _case("lrelu", (2, 3, 4, 3), 4, **LRELU, smooth=True),
    _case("no_bias", (2, 3, 4, 5), 2, bias=False),
    _case("from_rgb", (2, 3, 5, 4), 8, 1, **LRELU, smooth=True),
    _case("halving", (1, 3, 6, 4), 2, **DOWN, **LRELU, smooth=True),
    _case("halving_odd", (2, 3, 7, 5), 4, **DOWN),
    _case("halving_pointwise", (2, 3, 6, 5), 4, 1, **DOWN, bias=False),
    _case("halving_three_taps", (2, 3, 5, 6), 4, down=2, resample_filter=THREE_TAPS),
    _case("halving_no_filter", (2, 3, 7, 6), 4, down=2, **LRELU),
    _case("pointwise_no_filter", (2, 3, 7, 6), 4, 1, down=2),
    _case("third", (2, 3, 9, 8), 4, down=3, resample_filter=UNEVEN, **LRELU),
    _case("third_no_filter", (2, 3, 9, 8), 4, down=3),
    _case("filter_without_halving", (2, 3, 5, 4), 2, resample_filter=LOW_PASS),
    _case("uneven_padding", (2, 3, 4, 5), 2, padding=[2, 0, 1, 3], **LRELU, smooth=True),
    _case("uneven_padding_wide", (2, 8, 13, 12), 8, padding=[2, 0, 1, 3], **LRELU),
    _case("cropped", (2, 3, 7, 6), 4, padding=[-1, 0, 2, -2]),
    _case("unpadded", (2, 3, 5, 6), 4, padding=0, **LRELU),
    _case("even_kernel", (2, 3, 5, 6), 4, 2, padding=[1, 0]),
    _case("kernel_5", (2, 3, 6, 7), 4, 5, **LRELU),
    _case("clamp", (2, 3, 4, 5), 4, activation="lrelu", gain=1.0, clamp=CLAMP),
    _case("linear_clamp", (2, 3, 4, 5), 4, clamp=CLAMP),
    _case("slope_0", (2, 3, 4, 3), 2, activation="lrelu", negative_slope=0.0),
    _case("negative_weight_gain", (2, 3, 4, 5), 2, weight_gain=-0.5, **LRELU),
    _case("float32_parameters", (2, 3, 5, 6), 4, kept=("weight", "bias"), **LRELU),
    _case("x_only", (2, 3, 4, 5), 2, gradients=("x",), **LRELU),
    _case("pixel", (1, 1, 1, 1), 1, **LRELU),
    _case("empty", (0, 3, 4, 6), 4, **DOWN),
    _case("odd", (3, 17, 7, 9), 19, **LRELU),
    _case("vectors", (2, 16, 13, 12), 24, **LRELU),  # enough tiles for Winograd's algorithm
    _case("vectors_halving", (2, 16, 6, 8), 24, **DOWN, **LRELU),
    _case("layer_64", (4, 128, 64, 64), 128, **LRELU, bench=True),
    _case("halving_128", (4, 128, 128, 128), 256, **DOWN, **LRELU, bench=True),
)

refusal = refused(OP, "lrelu")
REFUSALS = (
    refusal("x_int", "x must be float16, bfloat16", x=Tensor.long),
    refusal("x_3d", r"x must be \[N, I, H, W\], got \[3, 4, 3\]", x=lambda v: v[0]),
    refusal("x_none", "x must be a tensor, got None", TypeError, x=None),
    refusal("x_no_pixel", "x must have at least one pixel, got", x=lambda v: v[:, :, :0]),
    refusal(
        "weight_shape",
        r"weight must be \[O, 3, kh, kw\] on cpu for x \[2, 3, 4, 3\], got \[4, 1, 3, 3\]",
        weight=lambda v: v[:, :1],
    ),
    refusal("weight_empty", r"weight must be \[O, 3", weight=lambda v: v[:0]),
    refusal("weight_int", "weight must be float16", weight=Tensor.long),
    refusal("weight_list", "weight must be a tensor", TypeError, weight=[1.0]),
    refusal("weight_device", "weight must be .* on cpu", weight=on_meta),
    refusal("bias", r"bias must be \[4\], one number", bias=lambda v: v[:3]),
    refusal("bias_int", "bias must be float16, bfloat16", bias=Tensor.long),
    refusal("bias_device", "bias must be .* on cpu", bias=on_meta),
    refusal("down", "down must be a whole number of at least 1, got 0", down=0),
    refusal("down_half", "down must be a whole number of at least 1", down=0.5),
    refusal("padding", "padding must be 1, 2 or 4 whole", padding=[1, 2, 3]),
    refusal("nothing_left", "the padded image must be at least as large as the kernel", padding=-1),
    refusal("filter", "resample_filter must be a tensor", TypeError, resample_filter=1.0),
    refusal(
        "filter_3d",
        r"resample_filter must be \[F\] or \[FH, FW\]",
        resample_filter=torch.ones(1, 2, 2),
        down=2,
    ),
    refusal(
        "filter_gradient",
        "resample_filter must not require a gradient",
        resample_filter=torch.ones(3, requires_grad=True),
        down=2,
    ),
    refusal("weight_gain", "weight_gain must be a finite number", weight_gain=None),
    refusal("weight_sparse", "weight must be strided, got", weight=Tensor.to_sparse),
    refusal("activation", "activation must be one of linear", activation="relu"),
    refusal("slope", "negative_slope must be at least 0", negative_slope=-0.1),
    refusal("gain", "gain must be above 0, got 0.0", gain=0.0),
    refusal("clamp", "clamp must be None or above 0", clamp=0.0),
)
