"""Inputs of bias_act."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from rwm_fast.testing.cases.case import Case, Inputs, Work, normal, on_meta, refused, split, uniform

OP = "bias_act"


def _make(
    shape: tuple[int, ...], bias: bool, settings: Mapping[str, Any]
) -> Callable[[torch.Generator], Inputs]:
    """x + bias stays away from the kinks at 0 and at the clamp: by 0.1 or more.

    Finite differences need that, and so does half precision, where a value that rounding moves over
    a kink has another derivative.
    """
    clamp = settings.get("clamp") or 8.0  # without a clamp, the bound only limits the numbers
    leaky, slope = settings.get("activation") == "lrelu", settings.get("negative_slope", 0.2)
    bound = clamp / settings.get("gain", 2**0.5 if leaky else 1.0)
    if not leaky or slope == 0:
        slope = 1.0  # a flat side meets no clamp: any bound does

    def make(generator: torch.Generator) -> Inputs:
        inside = uniform(generator, *shape, low=0.1, high=bound - 0.1)
        beyond = uniform(generator, *shape, low=bound + 0.1, high=bound + 1)
        far = uniform(generator, *shape) > 0.7
        size = torch.where(far, beyond, inside) if "clamp" in settings else inside
        t = torch.where(uniform(generator, *shape) > 0.5, size, -size / slope)
        b = normal(generator, shape[1])
        x = t - b.view(-1, *[1] * (len(shape) - 2)) if bias else t
        return {"x": x, "bias": b if bias else None, **settings}

    return make


def _forward(inputs: Mapping[str, Any]) -> Work:
    x = inputs["x"]
    return Work(bytes=2 * x.numel() * x.element_size(), flops=4 * x.numel())


def _backward(inputs: Mapping[str, Any]) -> Work:
    """dy and y are read, dx is written; the bias gradient is an addition more."""
    x = inputs["x"]
    return Work(bytes=3 * x.numel() * x.element_size(), flops=4 * x.numel())


def _case(name: str, shape: tuple[int, ...], *, bias: bool = True, **more: Any) -> Case:
    settings, fields = split(more)
    terms = max(1, torch.Size(shape).numel() // max(1, shape[1]))
    fields.setdefault("gradients", ("x", "bias") if bias else ("x",))
    make = _make(shape, bias, settings)
    return Case(OP, name, make, terms=terms, forward=_forward, backward=_backward, **fields)


_leaky = functools.partial(_case, activation="lrelu")
CASES = (
    _leaky("lrelu", (2, 3, 4, 5), smooth=True),
    _case("defaults", (2, 3, 4, 5), smooth=True),
    _leaky("clamp", (2, 3, 4, 5), clamp=1.5, smooth=True),
    _leaky("slope_0", (2, 3, 4, 5), negative_slope=0.0, gain=1.3, smooth=True),
    _leaky("slope_0_clamp", (2, 3, 4, 5), negative_slope=0.0, clamp=0.7, smooth=True),
    _leaky("slope_above_1", (2, 3, 4), negative_slope=1.5, gain=0.5),
    _case("linear", (2, 3, 4, 5), gain=0.7, smooth=True),
    _case("linear_clamp", (2, 3, 4, 5), gain=1.0, clamp=0.6, smooth=True),
    _leaky("no_bias", (2, 3, 4, 5), bias=False, smooth=True),
    _case("linear_no_bias", (2, 3, 4), bias=False, gain=1.0),
    _leaky("bias_only", (2, 3, 4, 5), gradients=("bias",), smooth=True),
    _leaky("x_only", (2, 3, 4, 5), gradients=("x",)),
    _leaky("bias_float32", (2, 3, 6, 7), kept=("bias",), clamp=2.0),
    _leaky("matrix", (5, 7), smooth=True),
    _leaky("five_dimensional", (2, 3, 2, 3, 4), clamp=1.0),
    _leaky("pixel", (1, 1, 1, 1), smooth=True),
    _leaky("empty", (0, 3, 4, 4)),
    _leaky("odd", (3, 19, 13, 17), clamp=3.0),
    _leaky("long", (2, 3, 67, 71)),  # several chunks a channel, the last one short
    _leaky("matrix_odd", (33, 45), clamp=1.0),
    _leaky("vectors", (1, 16, 72, 64), clamp=3.0),  # whole vectors in every dtype and layout
    _leaky("layer_64", (4, 64, 64, 64), bench=True),
    _leaky("layer_256", (4, 128, 256, 256), bench=True),
    _leaky("layer_256_clamp", (4, 128, 256, 256), clamp=256.0, bench=True),
)

refusal = refused(OP, "lrelu")
NAN = float("nan")
REFUSALS = (
    refusal("x_int", "x must be float16, bfloat16", x=Tensor.long),
    refusal("x_1d", r"x must be \[N, C, ...\], got \[5\]", x=lambda v: v[0, 0, 0]),
    refusal("x_none", "x must be a tensor, got None", TypeError, x=None),
    refusal(
        "bias_shape",
        r"bias must be \[3\], one number a channel, got \[2\] float32 on cpu",
        bias=lambda v: v[:2],
    ),
    refusal("bias_dtype", "bias must have x's dtype", bias=Tensor.double),
    refusal("bias_device", "bias must be on x's device", bias=on_meta),
    refusal("bias_list", "bias must be a tensor, got list", TypeError, bias=[0.0]),
    refusal("activation", "activation must be one of linear, lrelu, got 'no'", activation="no"),
    refusal("slope", "negative_slope must be at least 0", negative_slope=-0.1),
    refusal("slope_nan", "negative_slope must be at least 0", negative_slope=NAN),
    refusal("gain", "gain must be above 0, got 0.0", gain=0.0),
    refusal("gain_nan", "gain must be above 0", gain=NAN),
    refusal("clamp", "clamp must be None or above 0, got -1.0", clamp=-1.0),
    refusal("clamp_nan", "clamp must be None or above 0", clamp=NAN),
)
