"""Rows of whole layers: modulated with noise, bias and activation, and plain ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks import ceilings, rewritten
from benchmarks.rows.operators import STANDARD, OperatorRow
from benchmarks.rows.row import Row
from rwm_fast.testing.cases import Inputs, new
from rwm_fast.testing.cases.modulated_conv2d import LOW_PASS, LRELU

KEPT = ("styles", "noise", "noise_strength", "bias", "weight", "regions", "resample_filter")


@dataclass
class LayerRow(OperatorRow):
    """A generator's layer; with regions the published column runs a style at a time."""

    group: str = "layers"
    slow_in_half = True

    def truth_of(self, column: str) -> str:
        """Near a border of regions, a convolution a style and then selecting is another function"""
        if "per style" in self.columns and column in ("published", "per style"):
            return "per style"
        return column if column == "one style" else self.op

    def function(self, column: str) -> Callable:
        if column == "per style":
            return rewritten.a_style_at_a_time(self.ours())
        return super().function(column)

    def truth_function(self, key: str) -> Callable:
        one = super().truth_function(key)
        return rewritten.a_style_at_a_time(one) if key == "per style" else one

    def bare(self, inputs: Inputs) -> tuple[Callable, Callable]:
        settings = {k: inputs[k] for k in ("up", "down", "padding") if k in inputs}
        x, weight = inputs["x"], inputs["w" if "w" in inputs else "weight"]
        if isinstance(settings.get("padding"), list):  # the same at every side, in these rows
            settings["padding"] = settings["padding"][0]
        if settings.get("down", 1) > 1:  # of an image that was filtered before: a pixel wider
            x = x.detach().new_ones(*x.shape[:2], x.shape[2] + 1, x.shape[3] + 1).normal_()
            settings["padding"] = 0
        forward, backward = ceilings.convolution(x, weight, **settings)
        return forward, lambda: (forward(), backward(True, True))


def _regions(k: int, side: int) -> Callable[[torch.Generator, int], Tensor]:
    """[N, K, side, side]: vertical stripes of equal width, blurred at their borders."""
    place = (torch.arange(side, dtype=torch.float64) + 0.5) / side * k - 0.5
    distance = (place[None] - torch.arange(k, dtype=torch.float64)[:, None]).abs()  # [K, side]
    planes = (-8 * distance).softmax(0)[None, :, None]
    return lambda generator, n: planes.expand(n, k, side, side).contiguous()


def layer_row(
    title: str,
    shape: tuple[int, int, int],  # N, channels in, side
    out_channels: int,
    dtype: str = "float32",
    *,
    kernel: int = 3,
    styles: int = 1,
    full: bool = False,
    **resampled: int,  # up or down
) -> LayerRow:
    (n, i, side), up = shape, resampled.get("up", 1)
    size = side * up // resampled.get("down", 1)
    settings: dict = {"noise": "each", "noise_strength": 0.1, "bias": True, "kernel": kernel}
    settings |= _filtered(resampled) | LRELU
    if styles > 1:
        settings |= {"styles": styles, "regions": _regions(styles, size)}
    gradients = ("x", "weight", "styles", "noise_strength", "bias")
    sizes = ((n, i, side, side), out_channels)
    layer = new("modulated_conv2d", "row", *sizes, gradients=gradients, kept=KEPT, **settings)
    taps = kernel**2 * (16 if resampled else 1)
    terms = {"result": i * taps, "x": out_channels * taps, "weight": n * size**2}
    # these sum a whole map, or all the products that one channel meets
    terms |= {"bias": n * size**2, "noise_strength": n * out_channels * size**2}
    terms["styles"] = size**2 * out_channels * taps
    columns = (*STANDARD, *(("per style", "one style") if styles > 1 else ()))
    bare = "bare transposed convolution" if up > 1 else "bare convolution"
    return LayerRow(layer, title, terms, dtype, columns=columns, ceiling=bare, full=full)


def plain_row(
    title: str,
    shape: tuple[int, int, int],
    out_channels: int,
    dtype: str = "float32",
    *,
    full: bool = False,
    **resampled: int,  # down
) -> LayerRow:
    """An encoder's or discriminator's layer, 3x3."""
    n, i, side = shape
    settings = {"padding": [1] * 4, "weight_gain": (9 * i) ** -0.5, **_filtered(resampled), **LRELU}
    sizes = ((n, i, side, side), out_channels)
    layer = new("conv2d_bias_act", "row", *sizes, kept=KEPT, **settings)
    taps, pixels = 9 * (16 if resampled else 1), n * side**2 // resampled.get("down", 1) ** 2
    terms = {"result": i * taps, "x": out_channels * taps, "weight": 16 * pixels, "bias": pixels}
    return LayerRow(layer, title, terms, dtype, ceiling="bare convolution", full=full)


def resample_row(
    title: str,
    shape: tuple[int, int, int],
    out_channels: int,
    dtype: str = "float32",
    *,
    full: bool = False,
    **resampled: int,  # up or down
) -> LayerRow:
    """The convolution alone, in NVIDIA's keywords, 3x3."""
    n, i, side = shape
    settings = {"padding": 1, "f": LOW_PASS, **resampled}
    sizes = ((n, i, side, side), out_channels)
    layer = new("conv2d_resample", "row", *sizes, kept=("w", "f"), **settings)
    taps = 9 * 16
    pixels = n * (side * resampled.get("up", 1) // resampled.get("down", 1)) ** 2
    terms = {"result": i * taps, "x": out_channels * taps, "w": 16 * pixels}
    bare = "bare transposed convolution" if "up" in resampled else "bare convolution"
    return LayerRow(layer, title, terms, dtype, ceiling=bare, full=full)


def _filtered(resampled: dict[str, int]) -> dict:
    return {**resampled, "resample_filter": LOW_PASS} if resampled else {}


def rows(tiny: bool = False) -> Iterator[Row]:
    """For a CPU; tiny: fewer channels and pixels under the same names."""

    def row(make, title, n, i, o, side, dtype, full=False, **more):
        if tiny:
            n, i, o, side = 1, max(16, i // 8), max(16, o // 8), max(8, side // 8)
        return make(title, (n, i, side), o, dtype, full=full, **more)

    for d in ("float32", "bfloat16"):
        for n, c, side in ((4, 256, 16), (4, 128, 32), (4, 64, 64), (4, 512, 16)):
            yield row(layer_row, f"layer 3x3 {c} ch @ {side}", n, c, c, side, d)
        for c, side in ((256, 128), (128, 256)):
            yield row(layer_row, f"layer 3x3 {c} ch @ {side}", 2, c, c, side, d, True)
        for n, i, o, side, full in UPS:
            yield row(layer_row, f"up x2 {i} -> {o} ch @ {side}", n, i, o, side, d, full, up=2)
        for k in (2, 4):
            title = f"regions K={k} 64 ch @ 64"
            yield row(layer_row, title, 4, 64, 64, 64, d, styles=k)
            title = f"regions K={k} 128 ch @ 256"
            yield row(layer_row, title, 2, 128, 128, 256, d, True, styles=k)
    for d in ("float32", "bfloat16"):
        yield row(plain_row, "conv2d_bias_act 3x3 128 ch @ 32", 4, 128, 128, 32, d)
        for n, i, o, side, full in DOWNS:
            title = f"down x2 {i} -> {o} ch @ {side}"
            yield row(plain_row, title, n, i, o, side, d, full, down=2)
    for way in ("up", "down"):
        title = f"conv2d_resample {way} x2 128 ch @ 32"
        yield row(resample_row, title, 4, 128, 128, 32, "float32", **{way: 2})


# images, channels in and out, side, only with --full
UPS = (
    (4, 256, 128, 16, False),
    (4, 128, 64, 32, False),
    (4, 512, 512, 16, True),
    (1, 256, 128, 128, True),
)
DOWNS = ((4, 64, 128, 32, False), (4, 128, 256, 32, False), (2, 128, 256, 128, True))

# name, channels in and out, side of the input, kind, largest batch, whether torch.compile is timed.
# The widths and sizes of a 256-pixel generator, for which goals were set before any GPU was at hand
SHAPES = (
    ("512 -> 512 @ 16", 512, 512, 16, {}, 32, False),
    ("512 -> 512 @ 32", 512, 512, 32, {}, 32, False),
    ("512 -> 512 @ 64", 512, 512, 64, {}, 32, True),
    ("256 -> 256 @ 128", 256, 256, 128, {}, 32, False),
    ("128 -> 128 @ 256", 128, 128, 256, {}, 32, True),
    ("up 512 -> 256 @ 64", 512, 256, 64, {"up": 2}, 32, False),
    ("up 256 -> 128 @ 128", 256, 128, 128, {"up": 2}, 32, True),
    ("down 128 -> 256 @ 256", 128, 256, 256, {"down": 2}, 32, True),
    ("64 -> 64 @ 256", 64, 64, 256, {}, 32, True),
    ("64 -> 64 @ 512", 64, 64, 512, {}, 8, False),
    ("32 -> 32 @ 1024", 32, 32, 1024, {}, 4, False),
)
REGIONS = (("128 -> 128 @ 256", 128, 256), ("512 -> 512 @ 64", 512, 64))


def headline() -> Iterator[Row]:
    """For a GPU: bfloat16 at batch 16, and regions."""
    yield from _batch("bfloat16", 16)
    for k in (2, 4):
        for name, c, side in REGIONS:
            title = f"regions K={k} {name} B=16"
            yield layer_row(title, (16, c, side), c, "bfloat16", styles=k)
    yield plain_row("plain 128 -> 128 @ 256 B=16", (16, 128, 256), 128, "bfloat16")
    yield plain_row("plain down 128 -> 256 @ 256 B=16", (16, 128, 256), 256, "bfloat16", down=2)


def others() -> Iterator[Row]:
    """For a GPU: other batches; then float16 and TF32 at batch 16."""
    for batch in (1, 4, 32):
        yield from _batch("bfloat16", batch)
    for dtype in ("float16", "tf32"):
        yield from _batch(dtype, 16)


def _batch(dtype: str, batch: int) -> Iterator[Row]:
    for name, i, o, side, kind, most, _ in SHAPES:
        n = min(batch, most)
        if batch != 16 and (n < batch or n == min(16, most)):
            continue  # too large, or measured with those of batch 16
        yield layer_row(f"layer {name} B={n}", (n, i, side), o, dtype, **kind)


def against_compile() -> Iterator[Row]:
    """For a GPU: some of the headline rows, against torch.compile: minutes of compiling."""
    for name, i, o, side, kind, most, chosen in SHAPES:
        if chosen:
            yield layer_row(f"layer {name} B={min(16, most)}", (16, i, side), o, "bfloat16", **kind)
