"""Rows of single operators: forward and backward, all gradients that training asks for."""

from __future__ import annotations

import functools
import importlib
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import published, rewritten
from benchmarks.machine import triad
from benchmarks.rows.row import DTYPES, OURS, Answers, Built, Row, Work, compiled, stopwatch
from benchmarks.timing import Step
from rwm_fast import explain, use_backend

STANDARD = ("published", "rewritten", "compiled", OURS, "ceiling")
Inputs = dict[str, object]
Maker = Callable[[torch.Generator], Inputs]  # float64 tensors and plain values
LAST = torch.channels_last


@dataclass
class OperatorRow(Row):
    """`make` draws the arguments; `terms` is the most products summed into an element, by answer.

    The images of `layout` None are contiguous in every column, else channels_last in all columns
    but the published one.
    """

    op: str
    name: str
    make: Maker
    gradients: tuple[str, ...]
    terms: Mapping[str, int]
    forward: Callable[[Mapping], Work]
    backward: Callable[[Mapping], Work]
    dtype: str = "float32"
    layout: torch.memory_format | None = LAST
    columns: tuple[str, ...] = STANDARD
    ceiling: str = "triad over the same bytes"
    kept: tuple[str, ...] = ()  # arguments that stay float32
    stored: int = 6  # values stored in the row's dtype between argument and answer
    full: bool = False
    needs_matrix_units: bool = False
    note: str = ""
    group: str = "operators"

    def __post_init__(self):
        self.name = f"{self.name} {self.dtype}"
        if self.full and OURS in self.columns:
            self.columns = (*self.columns, "fallback")

    @functools.cached_property
    def work(self) -> dict[str, Work]:
        inputs = self.inputs()
        forward = self.forward(inputs)
        return {"forward": forward, "total": forward + self.backward(inputs)}

    def inputs(self, dtype: torch.dtype | None = None, column: str = OURS) -> Inputs:
        """The same values at every call, in the layout of the column."""
        dtype = dtype or DTYPES[self.dtype]
        seed = zlib.crc32(self.name.removesuffix(self.dtype).encode())
        arguments = self.make(torch.Generator().manual_seed(seed))
        for name, value in arguments.items():
            if not isinstance(value, Tensor):
                continue
            wide = name in self.kept and dtype != torch.float64
            value = value.to(torch.float32 if wide else dtype)
            if value.ndim == 4 and self.layout is not None and column != "published":
                value = value.contiguous(memory_format=self.layout)
            arguments[name] = value.requires_grad_(name in self.gradients)
        return arguments

    def function(self, column: str) -> Callable:
        if column == "published":
            return getattr(published, self.op)
        if column == "rewritten":
            return getattr(rewritten, self.op)
        if column == "compiled":
            return compiled(getattr(rewritten, self.op))
        return getattr(importlib.import_module(f"rwm_fast.ops.{self.op}"), self.op)

    def build(self, column: str) -> Built:
        if column == "ceiling":
            return Built([self.bare()], None)
        inputs, facts = self.inputs(column=column), {}
        function = self.function(column)
        shape = self.result_shape(inputs)
        cotangent = self.cotangent(shape, DTYPES[self.dtype], column)
        wanted = [inputs[name] for name in self.gradients]
        weight = inputs.get("weight")

        def before() -> None:
            # What is prepared from the weights counts: in training they change every time. Other
            # values, not only another version: ours looks at the values.
            if weight is not None:
                with torch.no_grad():
                    weight.neg_()

        def backward(result: Tensor) -> tuple[Tensor, ...]:
            return torch.autograd.grad(result, wanted, cotangent.to(result.dtype))

        run = lambda: function(**inputs)
        if column == "fallback":
            run, backward = in_fallback(run), in_fallback(backward)
        if column == "compiled":
            with stopwatch(facts):
                backward(run())
        if column in (OURS, "fallback"):
            facts["backend"] = "reference" if column == "fallback" else self.served(inputs)
        answers = lambda: self.named(result := run(), backward(result))
        return Built([Step(run, backward, before)], answers, self.truth_of(column), facts)

    def served(self, inputs: Inputs) -> str:
        """The backend that our column runs on."""
        return used(self.op, inputs)

    def named(self, result: Tensor, gradients: tuple[Tensor, ...]) -> Answers:
        return {"result": result, **dict(zip(self.gradients, gradients, strict=True))}

    def result_shape(self, inputs: Inputs) -> torch.Size:
        with torch.no_grad():
            return self.function(OURS)(**inputs).shape

    def cotangent(self, shape: torch.Size, dtype: torch.dtype, column: str) -> Tensor:
        """Standard normal; in float64 exactly the values that the row's dtype has."""
        generator = torch.Generator().manual_seed(0)
        values = torch.randn(shape, generator=generator).to(DTYPES[self.dtype]).to(dtype)
        last = self.layout is not None and column != "published" and values.ndim == 4
        return values.contiguous(memory_format=LAST) if last else values

    def truth_of(self, column: str) -> str:
        return self.op

    def truth(self, key: str) -> Answers:
        """The rewritten column in float64, on the numbers that the row's dtype has."""
        inputs = self.wide_inputs(key)
        result = self.truth_function(key)(**inputs)
        cotangent = self.cotangent(result.shape, torch.float64, "rewritten")
        wanted = [inputs[name] for name in self.gradients]
        return self.named(result, torch.autograd.grad(result, wanted, cotangent))

    def truth_function(self, key: str) -> Callable:
        return getattr(rewritten, self.op)

    def wide_inputs(self, key: str) -> Inputs:
        narrow = self.inputs(column=key if key in self.columns else "rewritten")
        widen = lambda v: v.detach().double().requires_grad_(v.requires_grad)
        return {k: widen(v) if isinstance(v, Tensor) else v for k, v in narrow.items()}

    def bounds(self, key: str, plain: float) -> dict[str, float]:
        """A unit for every value stored on the way, and a random walk of roundings in each sum.

        Sums are kept in float32 or better. Four steps of that walk: the largest of many elements.
        """
        unit = torch.finfo(DTYPES[self.dtype]).eps
        walk = 4 * torch.finfo(torch.float32).eps
        names = ("result", *self.gradients)
        return {n: (1 + self.stored) * unit + walk * self.terms[n] ** 0.5 for n in names}

    def bare(self) -> Step:
        forward, total = self.work["forward"], self.work["total"]
        there, back = triad(forward.bytes), triad(total.bytes - forward.bytes)
        return Step(there.forward, lambda _: back.forward())


def used(op: str, inputs: Inputs) -> str:
    answer = explain(op, **inputs)
    return next(name for name, reason in answer.items() if reason == "used")


def in_fallback(function: Callable) -> Callable:
    def run(*arguments: object) -> object:
        with use_backend("reference"):
            return function(*arguments)

    return run


def size_of(*tensors: Tensor) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


# ---- masked_l1


def _masked_l1(generator: torch.Generator, n: int = 16, side: int = 256) -> Inputs:
    """Differences stay away from 0, where the derivative jumps; the mask is a box an image."""
    normal = lambda: feature_map(generator, (n, 3, side, side))
    hybrid = normal().clamp(-2, 2)
    away = lambda t: hybrid + t + 0.25 * t.sign()
    mask = torch.zeros(n, 1, side, side, dtype=torch.float64)
    for i in range(n):
        place = torch.rand(2, generator=generator, device=generator.device)
        top, left = (place * side / 2).int().tolist()
        mask[i, :, top : top + side // 2, left : left + side // 2] = 1
    return {"hybrid": hybrid, "inside": away(normal()), "outside": away(normal()), "mask": mask}


def _masked_l1_forward(a: Mapping) -> Work:
    moved = size_of(a["hybrid"], a["inside"], a["outside"], a["mask"])
    return Work(moved, 7 * a["hybrid"].numel())


def _masked_l1_backward(a: Mapping) -> Work:
    """The gradient is written, the mask read again; whatever else is kept is not counted."""
    return Work(size_of(a["hybrid"], a["mask"]), 6 * a["hybrid"].numel())


def masked_l1_row(dtype: str, n: int = 16, side: int = 256) -> OperatorRow:
    return OperatorRow(
        "masked_l1",
        f"masked_l1 {n}x3x{side}x{side}",
        lambda generator: _masked_l1(generator, n, side),
        gradients=("hybrid",),
        terms={"result": n * 3 * side**2, "hybrid": 1},
        forward=_masked_l1_forward,
        backward=_masked_l1_backward,
        dtype=dtype,
        layout=None,
        note="gradient to the hybrid image alone, as in training; buffers below glibc's mmap"
        " threshold: 4.8 ms, and 4.7 ms with freed memory kept (EPYC Zen 3)",
    )


# ---- crop_patches


def _crops(generator: torch.Generator, n: int, side: int, size: int) -> Inputs:
    """Boxes of 1/8 to 1/4 of the side, half of them mirrored."""
    image = feature_map(generator, (n, 3, side, side))
    wide = {"dtype": torch.float64, "device": generator.device}
    draws = torch.rand(n, 8, 5, generator=generator, **wide)
    half = (1 + draws[..., :2]) / 8
    centre = (2 * draws[..., 2:4] - 1) * (1 - half)
    half[..., 0] *= torch.where(draws[..., 4] < 0.5, -1.0, 1.0)
    return {"image": image, "boxes": torch.cat((centre, half), -1), "size": size}


def _crops_forward(a: Mapping) -> Work:
    """Every patch is written; of the images at least a patch's share (1/8 a side) is read."""
    image, count = a["image"], a["boxes"].shape[0] * a["boxes"].shape[1]
    written = count * image.shape[1] * a["size"] ** 2
    read = count * image[0].numel() // 64
    return Work((written + read) * image.element_size(), 6 * written)


def _crops_backward(a: Mapping) -> Work:
    image, count = a["image"], a["boxes"].shape[0] * a["boxes"].shape[1]
    read = count * image.shape[1] * a["size"] ** 2
    return Work((read + image.numel()) * image.element_size(), 8 * read)


def crops_row(dtype: str = "float32", n: int = 16, side: int = 256, size: int = 64) -> OperatorRow:
    # a sampling position is rounded by about W units of a pixel: as much as W² terms lose
    return OperatorRow(
        "crop_patches",
        f"crop_patches {n} images x 8 -> {size} px",
        lambda generator: _crops(generator, n, side, size),
        gradients=("image",),
        terms={"result": side**2, "image": side**2},
        forward=_crops_forward,
        backward=_crops_backward,
        dtype=dtype,
        layout=None,
        kept=("boxes",),
    )


# ---- bias_act and upfirdn2d


def feature_map(generator: torch.Generator, shape: tuple[int, ...]) -> Tensor:
    """Standard normal, where the generator is."""
    where = generator.device
    return torch.randn(shape, generator=generator, dtype=torch.float64, device=where)


def away_from_0(channels: int) -> Tensor:
    """Biases that keep a standard normal away from the kink, where rounding turns a derivative."""
    return torch.tensor([6.0, -6.0], dtype=torch.float64).repeat(channels)[:channels]


def bias_act_row(
    shape: tuple[int, int, int, int], dtype: str, full: bool = False, note: str = ""
) -> OperatorRow:
    n, c, h, w = shape

    def make(generator: torch.Generator) -> Inputs:
        return {"x": feature_map(generator, shape).clamp(-5, 5), "bias": away_from_0(c)}

    return OperatorRow(
        "bias_act",
        f"bias_act {n}x{c}x{h}x{w}",
        make,
        gradients=("x", "bias"),
        terms={"result": 1, "x": 1, "bias": n * h * w},
        forward=lambda a: Work(2 * size_of(a["x"]), 4 * a["x"].numel()),
        backward=lambda a: Work(3 * size_of(a["x"]), 4 * a["x"].numel()),
        dtype=dtype,
        full=full,
        note=note,
    )


def fir_row(
    kind: str, shape: tuple[int, int, int, int], dtype: str, full: bool = False
) -> OperatorRow:
    settings = {
        "blur": {"padding": [2, 1, 2, 1]},
        "up": {"up": 2, "padding": [2, 1, 2, 1], "gain": 4.0},
        "down": {"down": 2, "padding": [1, 1, 1, 1]},
    }[kind]
    area = {"blur": 1, "up": 4, "down": 0.25}[kind]
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=torch.float64) / 8

    def work(a: Mapping) -> Work:
        """Two passes of four taps, two operations each; no zero is multiplied."""
        written = int(a["x"].numel() * area)
        moved = (a["x"].numel() + written) * a["x"].element_size()
        return Work(moved, 2 * 8 * max(a["x"].numel(), written) // (2 if area != 1 else 1))

    return OperatorRow(
        "upfirdn2d",
        f"FIR {kind} {'x'.join(map(str, shape))}",
        lambda g: {"x": feature_map(g, shape), "filter": taps, **settings},
        gradients=("x",),
        terms={"result": 16, "x": 16},
        forward=work,
        backward=work,
        dtype=dtype,
        full=full,
    )


# Measured with --memory-kept, which adds the column to any row.
FRESH_PAGES = (
    "two thirds of the time is the system's zeroing of fresh pages, in tensors of 128 MiB: 228 ms,"
    " and 72 ms with freed memory kept (EPYC Zen 3)"
)


def rows() -> list[Row]:
    small, large = (4, 64, 64, 64), (4, 128, 256, 256)
    wide = "bfloat16"
    return [
        masked_l1_row("float32"),
        masked_l1_row(wide),
        crops_row(),
        bias_act_row(small, "float32"),
        bias_act_row(small, wide, full=True),
        bias_act_row(large, "float32", full=True, note=FRESH_PAGES),
        *(fir_row(kind, small, "float32") for kind in ("blur", "up", "down")),
        fir_row("blur", small, wide, full=True),
        fir_row("blur", large, "float32", full=True),
    ]


def bare_convolution(
    x: Tensor, weight: Tensor, *, up: bool = False, down: int = 1, padding: int = 0
) -> Step:
    """torch's convolution and its two gradients in channels_last, nothing around them."""
    x, weight = (t.detach().contiguous(memory_format=LAST) for t in (x, weight))
    if up:
        weight = weight.transpose(0, 1)
    stride, padding = (2, 0) if up else (down, padding)
    apply = F.conv_transpose2d if up else F.conv2d
    arguments = ([stride] * 2, [padding] * 2, [1, 1], up, [0, 0], 1, [True, True, False])
    dy = torch.randn_like(apply(x, weight, stride=stride, padding=padding))
    return Step(
        lambda: apply(x, weight, stride=stride, padding=padding),
        lambda _: torch.ops.aten.convolution_backward(dy, x, weight, None, *arguments),
    )
