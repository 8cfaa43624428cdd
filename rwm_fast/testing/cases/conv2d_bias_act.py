"""Inputs of conv2d_bias_act."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from rwm_fast.testing.cases.case import Case, Inputs, Refusal, Work, normal
from rwm_fast.testing.cases.modulated_conv2d import BIASES, CLAMP, LOW_PASS, THREE_TAPS, UNEVEN

OP = "conv2d_bias_act"
SETTINGS = (
    "padding", "down", "resample_filter", "weight_gain",
    "activation", "negative_slope", "gain", "clamp",
)  # fmt: skip


def _case(
    name: str,
    shape: tuple[int, int, int, int],
    out_channels: int,
    kernel: int = 3,
    *,
    bias: bool = True,
    **more: Any,
) -> Case:
    settings = {k: more.pop(k) for k in tuple(more) if k in SETTINGS}
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

    more.setdefault("gradients", ("x", "weight", "bias") if bias else ("x", "weight"))
    taps = settings.get("resample_filter")
    taps = 1 if taps is None else taps.numel() ** (2 if taps.ndim == 1 else 1)
    # the scaled weight, the filter, the convolution; back: b·dt, the adjoints of the two
    more.setdefault("stored", 6)
    more.setdefault("any_threads", False)  # torch's convolution sums in its own order
    terms = max(1, h * w * max(out_channels, i, n) * kernel**2 * taps)
    return Case(OP, name, make, terms=terms, forward=_forward, backward=_backward, **more)


def _written(inputs: Mapping[str, Any]) -> tuple[int, int]:
    """Numbers of the result, and products, for paddings of kernel // 2."""
    x, weight = inputs["x"], inputs["weight"]
    pixels = x.shape[0] * x.shape[2] * x.shape[3] // inputs.get("down", 1) ** 2
    return pixels * weight.shape[0], pixels * weight.numel()


def _forward(inputs: Mapping[str, Any]) -> Work:
    """x and the weight are read once, y is written once; two operations a product."""
    x, weight = inputs["x"], inputs["weight"]
    written, products = _written(inputs)
    moved = (x.numel() + written) * x.element_size() + weight.numel() * weight.element_size()
    return Work(bytes=moved, flops=2 * products)


def _backward(inputs: Mapping[str, Any]) -> Work:
    """dy, y and x are read, dx and dW written; the convolution twice."""
    x, weight, forward = inputs["x"], inputs["weight"], _forward(inputs)
    moved = (x.numel() + _written(inputs)[0]) * x.element_size()
    moved += weight.numel() * weight.element_size()
    return Work(bytes=forward.bytes + moved, flops=2 * forward.flops)


LRELU: dict[str, Any] = {"activation": "lrelu", "gain": 2**0.5}
DOWN: dict[str, Any] = {"down": 2, "resample_filter": LOW_PASS}

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
    _case("clamp", (2, 3, 4, 5), 4, activation="lrelu", clamp=CLAMP),
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


def _refusal(
    name: str,
    change: Callable[[Inputs], Inputs],
    message: str,
    error: type[Exception] = ValueError,
    case: str = "lrelu",
) -> Refusal:
    return Refusal(OP, name, case, change, message, error)


REFUSALS = (
    _refusal("x_int", lambda a: {"x": a["x"].long()}, "x must be float16, bfloat16"),
    _refusal("x_3d", lambda a: {"x": a["x"][0]}, r"x must be \[N, I, H, W\], got \[3, 4, 3\]"),
    _refusal("x_none", lambda a: {"x": None}, "x must be a tensor, got None", TypeError),
    _refusal(
        "x_no_pixel", lambda a: {"x": a["x"][:, :, :0]}, "x must have at least one pixel, got"
    ),
    _refusal(
        "weight_shape",
        lambda a: {"weight": a["weight"][:, :1]},
        r"weight must be \[O, 3, kh, kw\] on cpu for x \[2, 3, 4, 3\], got \[4, 1, 3, 3\]",
    ),
    _refusal("weight_empty", lambda a: {"weight": a["weight"][:0]}, r"weight must be \[O, 3"),
    _refusal("weight_int", lambda a: {"weight": a["weight"].long()}, "weight must be float16"),
    _refusal("weight_list", lambda a: {"weight": [1.0]}, "weight must be a tensor", TypeError),
    _refusal(
        "weight_device", lambda a: {"weight": a["weight"].to("meta")}, "weight must be .* on cpu"
    ),
    _refusal("bias", lambda a: {"bias": a["bias"][:3]}, r"bias must be \[4\], one number"),
    _refusal("bias_int", lambda a: {"bias": a["bias"].long()}, "bias must be float16, bfloat16"),
    _refusal("bias_device", lambda a: {"bias": a["bias"].to("meta")}, "bias must be .* on cpu"),
    _refusal("down", lambda a: {"down": 0}, "down must be a whole number of at least 1, got 0"),
    _refusal("down_half", lambda a: {"down": 0.5}, "down must be a whole number of at least 1"),
    _refusal("padding", lambda a: {"padding": [1, 2, 3]}, "padding must be 1, 2 or 4 whole"),
    _refusal(
        "nothing_left",
        lambda a: {"padding": -1},
        "the padded image must be at least as large as the kernel",
    ),
    _refusal(
        "filter", lambda a: {"resample_filter": 1.0}, "resample_filter must be a tensor", TypeError
    ),
    _refusal(
        "filter_3d",
        lambda a: {"resample_filter": torch.ones(1, 2, 2), "down": 2},
        r"resample_filter must be \[F\] or \[FH, FW\]",
    ),
    _refusal(
        "filter_gradient",
        lambda a: {"resample_filter": torch.ones(3, requires_grad=True), "down": 2},
        "resample_filter must not require a gradient",
    ),
    _refusal("weight_gain", lambda a: {"weight_gain": None}, "weight_gain must be a number"),
    _refusal("activation", lambda a: {"activation": "relu"}, "activation must be one of linear"),
    _refusal("slope", lambda a: {"negative_slope": -0.1}, "negative_slope must be at least 0"),
    _refusal("gain", lambda a: {"gain": 0.0}, "gain must be above 0, got 0.0"),
    _refusal("clamp", lambda a: {"clamp": 0.0}, "clamp must be None or above 0"),
)
