"""Rows of the modulated convolution: whole layers with noise, bias and activation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks import rewritten
from benchmarks.rows.operators import (
    STANDARD,
    Inputs,
    OperatorRow,
    away_from_0,
    bare_convolution,
    feature_map,
    size_of,
)
from benchmarks.rows.row import OURS, Row, Work
from benchmarks.timing import Step

LOW_PASS = torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=torch.float64) / 8


@dataclass
class LayerRow(OperatorRow):
    """A generator's layer: batch, channels, size; the published column runs a style at a time."""

    styles: int = 1  # K; above 1 there are regions, quadrants of the picture with soft borders

    def inputs(self, dtype: torch.dtype | None = None, column: str = OURS) -> Inputs:
        arguments = super().inputs(dtype, column)
        if column == "one style":
            arguments.pop("regions")
            styles = arguments["styles"][:, 0].detach()
            arguments["styles"] = styles.requires_grad_()
        return arguments

    def function(self, column: str) -> Callable:
        if column == "per style":
            return rewritten.a_style_at_a_time(super().function(OURS))
        return super().function(column)

    def truth_of(self, column: str) -> str:
        """Near a border of regions, a convolution a style and then selecting is another function"""
        if self.styles > 1 and column in ("published", "per style"):
            return "per style"
        return column if column == "one style" else self.op

    def truth_function(self, key: str) -> Callable:
        one = rewritten.modulated_conv2d
        return rewritten.a_style_at_a_time(one) if key == "per style" else one

    def bare(self) -> Step:
        inputs = self.inputs()
        up = inputs.get("up", 1) > 1
        return bare_convolution(inputs["x"], inputs["weight"], up=up, padding=inputs["padding"])


def _regions(k: int, n: int, side: int) -> Tensor:
    """[N, K, side, side]: vertical stripes of equal width, blurred at their borders."""
    place = (torch.arange(side, dtype=torch.float64) + 0.5) / side * k - 0.5
    distance = (place[None] - torch.arange(k, dtype=torch.float64)[:, None]).abs()  # [K, side]
    return (-8 * distance).softmax(0)[None, :, None].expand(n, k, side, side).contiguous()


def _written(a: Mapping) -> int:
    """Elements of the result."""
    x, up, down = a["x"], a.get("up", 1), a.get("down", 1)
    return x.shape[0] * a["weight"].shape[0] * x.shape[2] * x.shape[3] * up**2 // down**2


def _forward(a: Mapping) -> Work:
    """x and the weight are read, y is written; two operations a product."""
    x, weight, written = a["x"], a["weight"], _written(a)
    pixels = min(x.shape[0] * x.shape[2] * x.shape[3], written // weight.shape[0])
    return Work(size_of(x, weight) + written * x.element_size(), 2 * pixels * weight.numel())


def _backward(a: Mapping) -> Work:
    """dy, y, x and the weight are read, dx and dW written; the convolution twice."""
    x, weight = a["x"], a["weight"]
    moved = 2 * size_of(x, weight) + 2 * _written(a) * x.element_size()
    return Work(moved, 2 * _forward(a).flops)


def layer_row(
    name: str,
    shape: tuple[int, int, int],  # N, channels in, side
    out_channels: int,
    dtype: str = "float32",
    *,
    up: int = 1,
    down: int = 1,
    kernel: int = 3,
    styles: int = 1,
    full: bool = False,
) -> LayerRow:
    n, i, side = shape
    size = side * up // down

    def make(generator: torch.Generator) -> Inputs:
        weight = feature_map(generator, (out_channels, i, kernel, kernel)) / (i * kernel**2) ** 0.5
        vectors = (n, i) if styles == 1 else (n, styles, i)
        return {
            "x": feature_map(generator, (n, i, side, side)),
            "weight": weight,
            "styles": 1 + 0.3 * feature_map(generator, vectors),
            "noise": feature_map(generator, (n, 1, size, size)),
            "noise_strength": torch.full((), 0.1, dtype=torch.float64),
            "bias": away_from_0(out_channels),
            "padding": kernel // 2,
            "activation": "lrelu",
            "gain": 2**0.5,
            **({"up": up, "resample_filter": LOW_PASS} if up > 1 else {}),
            **({"down": down, "resample_filter": LOW_PASS} if down > 1 else {}),
            **({"regions": _regions(styles, n, size)} if styles > 1 else {}),
        }

    taps = kernel**2 * (16 if up > 1 or down > 1 else 1)
    terms = {"result": i * taps, "x": out_channels * taps, "weight": n * size**2}
    # these sum a whole map, or all the products that one channel meets
    terms |= {"bias": n * size**2, "noise_strength": n * out_channels * size**2}
    terms["styles"] = size**2 * out_channels * taps
    extra = ("per style", "one style") if styles > 1 else ()
    return LayerRow(
        "modulated_conv2d",
        name,
        make,
        gradients=("x", "weight", "styles", "noise_strength", "bias"),
        terms=terms,
        forward=_forward,
        backward=_backward,
        dtype=dtype,
        columns=(*STANDARD, *extra),
        kept=("styles", "noise", "noise_strength", "bias", "weight", "regions", "resample_filter"),
        ceiling="bare transposed convolution" if up > 1 else "bare convolution",
        full=full,
        needs_matrix_units=dtype == "bfloat16",
        group="layers",
        styles=styles,
    )


def rows() -> list[Row]:
    found = []
    for dtype in ("float32", "bfloat16"):
        layer = lambda n, c, side, full=False, dtype=dtype: layer_row(
            f"layer 3x3 {c} ch @ {side}", (n, c, side), c, dtype, full=full
        )
        up = lambda n, i, o, side, full=False, dtype=dtype: layer_row(
            f"up x2 {i} -> {o} ch @ {side}", (n, i, side), o, dtype, up=2, full=full
        )
        found += [layer(4, 256, 16), layer(4, 128, 32), layer(4, 64, 64), layer(4, 512, 16)]
        found += [layer(2, 256, 128, True), layer(2, 128, 256, True)]
        found += [up(4, 256, 128, 16), up(4, 128, 64, 32)]
        found += [up(4, 512, 512, 16, True), up(1, 256, 128, 128, True)]
        for k in (2, 4):
            name = f"regions K={k} 64 ch @ 64"
            found.append(layer_row(name, (4, 64, 64), 64, dtype, styles=k))
            name = f"regions K={k} 128 ch @ 256"
            found.append(layer_row(name, (2, 128, 256), 128, dtype, styles=k, full=True))
    return found
