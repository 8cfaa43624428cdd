"""Rows of single operators and layers on a GPU: columns, inputs and truth, from `benchmarks.rows`.

The shapes and their order are those for which goals were set before any GPU was at hand: widths and
sizes of a 256-pixel generator at batch 16, then other batches, then other dtypes.
"""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from benchmarks.gpu.bare import stream, the_convolution
from benchmarks.gpu.device import search
from benchmarks.rows.layers import LayerRow, layer_row
from benchmarks.rows.operators import (
    LAST,
    Inputs,
    OperatorRow,
    bias_act_row,
    crops_row,
    fir_row,
    masked_l1_row,
)
from benchmarks.rows.row import Answers
from rwm_fast import use_backend

TYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
TYPES |= {"tf32": torch.float32, "float32": torch.float32}
# Relative length of the error, of every result and gradient, that a dtype's kernels should keep to.
BARS = {"float32": 2e-6, "tf32": 6e-4, "float16": 1.5e-3, "bfloat16": 6e-3}
OURS = {"ours": "auto", "ours-native": "native", "ours-triton": "triton"}
# Built in this order: the error of the first is the yardstick of the others.
COLUMNS = ("rewritten", "published", *OURS, "ceiling")
OTHERS_FACTOR = 5
MOST_SETS = 32  # of inputs, so that no call finds its own in the cache


class GpuRow:
    """One line of the table, on a device."""

    def __init__(self, row: OperatorRow, place: torch.device, *, compiled: bool = False):
        self.row, self.place, self.name, self.dtype = row, place, row.name, row.dtype
        extra = [c for c in row.columns if c in ("per style", "one style")]
        self.columns = (*COLUMNS, *extra, *(["compiled"] if compiled else []))
        self._made: dict[tuple, list[Inputs]] = {}
        self._truths: dict[str, Answers] = {}

    @property
    def tf32(self) -> bool:
        return self.dtype == "tf32"

    def work(self) -> dict[str, dict[str, int]]:
        """The least bytes and operations of a call, by phase."""
        inputs = self.inputs("ours", 1)[0]
        forward = self.row.forward(inputs)
        total = forward + self.row.backward(inputs)
        return {"forward": forward._asdict(), "total": total._asdict()}

    def sets(self, cache: int) -> int:
        """Copies of the inputs that together are three times as large as the cache."""
        moved = max(1, self.work()["total"]["bytes"])
        return max(1, min(MOST_SETS, -(-3 * cache // moved)))

    def inputs(self, column: str, count: int) -> list[Inputs]:
        """`count` sets of arguments in the column's layout, shared by columns of one layout."""
        planes = self.row.layout is None or column == "published"
        made = self._made.setdefault((planes, column == "one style"), [])
        while len(made) < count:
            made.append(self._make(len(made), planes, column == "one style"))
        return made[:count]

    def _make(self, index: int, planes: bool, one_style: bool) -> Inputs:
        """The same values in every layout; other values in every set."""
        seed = zlib.crc32(self.name.removesuffix(self.dtype).encode()) + index
        arguments = self.row.make(torch.Generator(self.place).manual_seed(seed))
        if one_style:
            arguments.pop("regions")
            arguments["styles"] = arguments["styles"][:, 0].contiguous()
        for name, value in arguments.items():
            if isinstance(value, Tensor):
                dtype = torch.float32 if name in self.row.kept else TYPES[self.dtype]
                value = value.to(self.place, dtype)
                if value.ndim == 4 and not planes:
                    value = value.contiguous(memory_format=LAST)
                arguments[name] = value.requires_grad_(name in self.row.gradients)
        return arguments

    def leaves(self, inputs: Inputs) -> list[Tensor]:
        return [inputs[name] for name in self.row.gradients]

    def cotangent(self, like: Tensor, inputs: Inputs, index: int) -> Tensor:
        """Normal, as the result in dtype and layout; a part is the noise itself.

        Without that part the gradient of the noise's strength would be a sum that cancels, and its
        error would say nothing.
        """
        generator = torch.Generator(self.place).manual_seed(index)
        values = torch.randn(like.shape, generator=generator, device=self.place)
        if not values.ndim:
            values = torch.ones_like(values)
        if inputs.get("noise") is not None:
            values += 0.1 * inputs["noise"].to(values.dtype)
        values = values.to(TYPES[self.dtype]).to(like.dtype)
        planes = like.ndim != 4 or like.is_contiguous()
        return values if planes else values.contiguous(memory_format=LAST)

    def function(self, column: str) -> Callable:
        if column in OURS:
            return self.row.function("ours")
        if column == "compiled":
            return compiled(self.row.function("rewritten"))
        return self.row.function(column)

    def block(self, column: str) -> contextlib.AbstractContextManager:
        """Both passes of a column run in it: it asks for a backend."""
        return use_backend(OURS[column]) if column in OURS else contextlib.nullcontext()

    def truth(self, column: str) -> Answers:
        """Results and gradients in float64, on the numbers that the row's dtype has."""
        key = self.row.truth_of(column)
        if key not in self._truths:
            source = "one style" if key == "one style" else "rewritten"
            inputs = self.inputs(source, 1)[0]
            wide = {k: _widened(v) if isinstance(v, Tensor) else v for k, v in inputs.items()}
            with search(False):
                result = self.row.truth_function(key)(**wide)
                dy = self.cotangent(result.detach().to(TYPES[self.dtype]), inputs, 0).double()
                gradients = torch.autograd.grad(result, self.leaves(wide), dy)
            self._truths[key] = self.row.named(result.detach(), gradients)
        return self._truths[key]

    def errors(self, column: str, answers: Answers) -> dict[str, float]:
        """Length of the error over that of the truth, of every answer."""
        truth = self.truth(column)
        return {name: error(answers[name], exact) for name, exact in truth.items()}

    def allowed(self, column: str, plain: dict[str, float]) -> dict[str, float]:
        """Above this a column is wrong and is not timed.

        For ours: the dtype's bar; twice the error of the rewritten column; and what roundings in
        float32 leave of a sum of so many terms. Others round more often, which is not wrong.
        """
        factor = 1 if column in OURS else OTHERS_FACTOR
        walk = 4 * torch.finfo(torch.float32).eps
        names = ("result", *self.row.gradients)
        terms = self.row.terms
        floors = {n: max(BARS[self.dtype], walk * terms[n] ** 0.5) for n in names}
        return {n: factor * max(floors[n], 2 * plain.get(n, 0.0)) for n in names}

    def ceiling(self, inputs: Inputs) -> tuple[Callable, Callable]:
        """Forward pass, and both passes, of the bare convolution or of a copy of as many bytes."""
        if isinstance(self.row, LayerRow):
            up, down = inputs.get("up", 1), inputs.get("down", 1)
            return the_convolution(inputs["x"], inputs["weight"], up=up, down=down)
        work = self.work()
        return tuple(stream(work[p]["bytes"], self.place) for p in ("forward", "total"))

    def release(self) -> None:
        self._made.clear()
        self._truths.clear()


def _widened(value: Tensor) -> Tensor:
    return value.detach().double().requires_grad_(value.requires_grad)


def error(got: Tensor, exact: Tensor) -> float:
    """‖got − exact‖ / ‖exact‖; infinite where the shape or a number is none."""
    if got.shape != exact.shape:
        return float("inf")
    length = exact.norm().clamp_min(torch.finfo(torch.float64).tiny)
    return ((got.detach().double() - exact).norm() / length).nan_to_num(float("inf")).item()


def compiled(function: Callable) -> Callable:
    """torch.compile in its default mode, compiling in this process and from nothing."""
    import torch._dynamo.config as dynamo
    import torch._inductor.config as inductor

    dynamo.recompile_limit = 64
    inductor.force_disable_caches = True
    inductor.compile_threads = 1
    return torch.compile(function, dynamic=False)


# name, channels in and out, side of the input, kind, largest batch, whether torch.compile is timed
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


def layers(place: torch.device) -> Iterator[GpuRow]:
    """bfloat16 at batch 16, regions, other batches; then float16 and TF32 at batch 16."""
    yield from _layers(place, "bfloat16", 16, compiled=True)
    for k in (2, 4):
        for name, c, side in REGIONS:
            row = layer_row(f"regions K={k} {name} B=16", (16, c, side), c, "bfloat16", styles=k)
            yield GpuRow(row, place)
    for batch in (1, 4, 32):
        yield from _layers(place, "bfloat16", batch)
    for dtype in ("float16", "tf32"):
        yield from _layers(place, dtype, 16)


def _layers(place: torch.device, dtype: str, batch: int, compiled: bool = False):
    for name, i, o, side, kind, most, headline in SHAPES:
        n = min(batch, most)
        if batch != 16 and (n < batch or n == min(16, most)):
            continue  # too large, or measured with those of batch 16
        row = layer_row(f"layer {name} B={n}", (n, i, side), o, dtype, **kind)
        yield GpuRow(row, place, compiled=compiled and headline)


def operators(place: torch.device) -> Iterator[GpuRow]:
    """The operators that are bound by memory, in the order in which they were written."""
    half, wide = "bfloat16", (16, 128, 256, 256)
    yield GpuRow(masked_l1_row(half), place, compiled=True)
    yield GpuRow(masked_l1_row("float32"), place)
    yield GpuRow(masked_l1_row("float32", side=1024), place)
    yield GpuRow(crops_row(half, size=128), place, compiled=True)
    yield GpuRow(crops_row("float32", size=128), place)
    for dtype in (half, "float16"):
        yield GpuRow(bias_act_row(wide, dtype), place, compiled=dtype == half)
        yield GpuRow(bias_act_row((16, 512, 64, 64), dtype), place)
        yield GpuRow(fir_row("blur", wide, dtype), place, compiled=dtype == half)
        yield GpuRow(fir_row("up", (16, 128, 128, 128), dtype), place)
        yield GpuRow(fir_row("down", wide, dtype), place)


def tiny(place: torch.device) -> dict[str, list[GpuRow]]:
    """Seconds on a CPU: rows that walk every path of the pipeline."""
    small = layer_row("layer 8 -> 8 @ 8 B=2", (2, 8, 8), 8)
    regions = layer_row("regions K=2 8 -> 8 @ 8 B=2", (2, 8, 8), 8, styles=2)
    loss, activation = masked_l1_row("float32", n=2, side=16), bias_act_row((2, 8, 8, 8), "float32")
    return {
        "operators": [GpuRow(row, place) for row in (loss, activation)],
        "layers": [GpuRow(row, place) for row in (small, regions)],
    }
