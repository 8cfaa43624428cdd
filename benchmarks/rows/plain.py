"""Rows of layers without a style: a discriminator's halving, from its filter to its activation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from benchmarks.rows.layers import LOW_PASS
from benchmarks.rows.operators import (
    Inputs,
    OperatorRow,
    away_from_0,
    bare_convolution,
    feature_map,
    size_of,
    used,
)
from benchmarks.rows.row import OURS, Row, Work
from benchmarks.timing import Step
from rwm_fast.ops.modulated_conv2d import plain


@dataclass
class PlainRow(OperatorRow):
    """`conv2d_bias_act`, which encoders and discriminators are made of."""

    def function(self, column: str) -> Callable:
        return getattr(plain, self.op) if column in (OURS, "fallback") else super().function(column)

    def served(self, inputs: Inputs) -> str:
        """It has no backends of its own: those of the modulated layer that serves it."""
        x, weight, down = inputs["x"], inputs["weight"], inputs["down"]
        modulated = {"x": x, "weight": weight, "styles": x.new_ones(x.shape[:2])}
        settings = {"padding": 1, "down": down, "resample_filter": inputs["resample_filter"]}
        return used("modulated_conv2d", {**modulated, **settings})

    def bare(self) -> Step:
        """The convolution alone, of an image that was filtered before: a pixel wider than twice
        the result."""
        inputs = self.inputs()
        n, i, h, w = inputs["x"].shape
        filtered = torch.randn(n, i, h + 1, w + 1, dtype=inputs["x"].dtype)
        return bare_convolution(filtered, inputs["weight"], down=inputs["down"])


def _forward(a: Mapping) -> Work:
    """x and the weight are read, y is written; two operations a product."""
    x, weight, down = a["x"], a["weight"], a["down"]
    pixels = x.shape[0] * x.shape[2] * x.shape[3] // down**2
    written = pixels * weight.shape[0] * x.element_size()
    return Work(size_of(x, weight) + written, 2 * pixels * weight.numel())


def _backward(a: Mapping) -> Work:
    """The same again, dx and dW written, and the convolution twice."""
    forward = _forward(a)
    return Work(forward.bytes + size_of(a["x"], a["weight"]), 2 * forward.flops)


def halving_row(
    n: int, in_channels: int, out_channels: int, side: int, dtype: str, full: bool = False
) -> PlainRow:
    def make(generator: torch.Generator) -> Inputs:
        return {
            "x": feature_map(generator, (n, in_channels, side, side)),
            "weight": feature_map(generator, (out_channels, in_channels, 3, 3)),
            "bias": away_from_0(out_channels),
            "weight_gain": (9 * in_channels) ** -0.5,
            "borders": (2, 2),
            "down": 2,
            "resample_filter": LOW_PASS,
            "activation": "lrelu",
            "gain": 2**0.5,
        }

    taps, pixels = 9 * 16, n * side**2 // 4
    return PlainRow(
        "conv2d_bias_act",
        f"down x2 {in_channels} -> {out_channels} ch @ {side}",
        make,
        gradients=("x", "weight", "bias"),
        terms={
            "result": in_channels * taps,
            "x": out_channels * taps,
            "weight": pixels * 16,
            "bias": pixels,
        },
        forward=_forward,
        backward=_backward,
        dtype=dtype,
        kept=("weight", "bias", "resample_filter"),
        ceiling="bare convolution",
        full=full,
        needs_matrix_units=dtype == "bfloat16",
        group="layers",
    )


def rows() -> list[Row]:
    found: list[Row] = []
    for dtype in ("float32", "bfloat16"):
        found += [
            halving_row(4, 64, 128, 32, dtype),
            halving_row(4, 128, 256, 32, dtype),
            halving_row(2, 128, 256, 128, dtype, full=True),
        ]
    return found
