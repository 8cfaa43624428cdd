"""Rows of operators and layers: forward and backward, all gradients that training asks for.

Inputs, sizes and work are those of `rwm_fast.testing.cases`.
"""

from __future__ import annotations

import importlib
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from benchmarks import ceilings, published, rewritten
from benchmarks.rows.row import (
    BACKENDS,
    CPU,
    DTYPES,
    OURS,
    Answers,
    Built,
    Row,
    Step,
    Work,
    compiled,
    on_backend,
    stopwatch,
)
from rwm_fast import explain
from rwm_fast.testing.cases import Case, Inputs, new
from rwm_fast.testing.cases.modulated_conv2d import LOW_PASS

LAST = torch.channels_last
STANDARD = ("published", "rewritten", "compiled", OURS, "ceiling")
# Relative length of the error, of every result and gradient, that a dtype's kernels should keep to.
BARS = {"float32": 2e-6, "tf32": 6e-4, "float16": 1.5e-3, "bfloat16": 6e-3}
OTHERS_FACTOR = 5
MOST_SETS = 32  # of inputs, so that no call finds its own in the cache


@dataclass
class OperatorRow(Row):
    """A case in a dtype. `terms` is the most products summed into an element, by answer.

    The images of `layout` None are contiguous in every column, else channels_last in all columns
    but the published one.
    """

    case: Case
    title: str
    terms: Mapping[str, int]
    dtype: str = "float32"
    layout: torch.memory_format | None = LAST
    columns: tuple[str, ...] = STANDARD
    ceiling: str = "triad over the same bytes"
    full: bool = False
    note: str = ""
    group: str = "operators"
    place: torch.device = CPU
    _made: dict = field(default_factory=dict)
    _truths: dict = field(default_factory=dict)

    def __post_init__(self):
        self.op, self.name = self.case.op, f"{self.title} {self.dtype}"
        if self.full:
            self.columns = (*self.columns, "fallback")

    def work(self) -> dict[str, Work]:
        inputs = self.inputs(OURS, 1)[0]
        forward = self.case.forward(inputs)
        return {"forward": forward, "total": forward + self.case.backward(inputs)}

    def sets(self, cache: int) -> int:
        """Copies of the inputs that together are three times as large as the cache."""
        moved = max(1, self.work()["total"].bytes)
        return max(1, min(MOST_SETS, -(-3 * cache // moved)))

    # ---- inputs

    def planes(self, column: str) -> bool:
        return self.layout is None or column == "published"

    def inputs(self, column: str, count: int) -> list[Inputs]:
        """`count` sets of arguments in the column's layout, shared by columns of one layout."""
        made = self._made.setdefault((self.planes(column), column == "one style"), [])
        while len(made) < count:
            made.append(self._make(len(made), column))
        return made[:count]

    def _make(self, index: int, column: str) -> Inputs:
        """The same values in every layout; other values in every set."""
        seed = zlib.crc32(self.title.encode()) + index
        arguments = self.case.make(torch.Generator(self.place).manual_seed(seed))
        if column == "one style":
            arguments.pop("regions")
            arguments["styles"] = arguments["styles"][:, 0].contiguous()
        for name, value in arguments.items():
            if isinstance(value, Tensor):
                dtype = torch.float32 if name in self.case.kept else DTYPES[self.dtype]
                value = value.to(self.place, dtype)
                if value.ndim == 4 and not self.planes(column):
                    value = value.contiguous(memory_format=LAST)
                arguments[name] = value.requires_grad_(name in self.case.gradients)
        return arguments

    def leaves(self, inputs: Inputs) -> list[Tensor]:
        return [inputs[name] for name in self.case.gradients]

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
            values += 0.1 * inputs["noise"].detach().to(values.dtype)
        values = values.to(DTYPES[self.dtype]).to(like.dtype)
        planes = like.ndim != 4 or like.is_contiguous()
        return values if planes else values.contiguous(memory_format=LAST)

    # ---- columns

    def function(self, column: str) -> Callable:
        if column == "published":
            return getattr(published, self.op)
        if column == "rewritten":
            return getattr(rewritten, self.op)
        if column == "compiled":
            return compiled(getattr(rewritten, self.op))
        return self.ours()

    def ours(self) -> Callable:
        return getattr(importlib.import_module(f"rwm_fast.ops.{self.op}"), self.op)

    def build(self, column: str, cache: int = 0) -> Built:
        sets, facts = self.inputs(column, self.sets(cache)), {}
        if column == "ceiling":
            pairs = [self.bare(each) for each in sets]
            calls = {p: lambda k=k: [pair[k]() for pair in pairs] for k, p in enumerate(PHASES)}
            return Built([Step(calls, count=len(sets))], None, replayed=lambda _: {})
        function = self.function(column)
        with stopwatch(facts), torch.no_grad(), on_backend(column):
            like = function(**sets[0])
        dys = [self.cotangent(like, each, i) for i, each in enumerate(sets)]

        # Results stay until the last call of the list: no call writes into another's memory.
        def forward() -> list:
            with torch.no_grad(), on_backend(column):
                return [function(**each) for each in sets]

        def both(each: Inputs, dy: Tensor) -> tuple:
            result = function(**each)
            return result.detach(), *torch.autograd.grad(result, self.leaves(each), dy)

        def total() -> list:
            with on_backend(column):
                return [both(each, dy) for each, dy in zip(sets, dys, strict=True)]

        def once() -> tuple:
            with on_backend(column):
                return both(sets[0], dys[0])

        def before() -> None:
            # What is prepared from the weights counts: in training they change every time. Other
            # values, not only another version: ours looks at the values.
            with torch.no_grad():
                for each in sets:
                    if "weight" in each:
                        each["weight"].neg_()

        if column == "compiled":
            with stopwatch(facts):
                once()
        else:
            facts.clear()
        if column in BACKENDS:
            with on_backend(column):
                answers = explain(self.op, **sets[0])
                facts["backend"] = next(n for n, reason in answers.items() if reason == "used")
        named = lambda results: self.named(*results[0])
        steps = [Step({"forward": forward, "total": total}, count=len(sets), before=before)]
        return Built(steps, lambda: self.named(*once()), self.truth_of(column), once, named, facts)

    def bare(self, inputs: Inputs) -> tuple[Callable, Callable]:
        """The ceiling's forward pass, and both passes."""
        return tuple(ceilings.triad(w.bytes, self.place) for w in self.work().values())

    # ---- truth

    def named(self, result: Tensor, *gradients: Tensor) -> Answers:
        return {"result": result, **dict(zip(self.case.gradients, gradients, strict=True))}

    def truth_of(self, column: str) -> str:
        return self.op

    def truth_function(self, key: str) -> Callable:
        return getattr(rewritten, self.op)

    def truth(self, key: str) -> Answers:
        """The rewritten column in float64, on the numbers that the row's dtype has."""
        if key not in self._truths:
            inputs = self.inputs("one style" if key == "one style" else "rewritten", 1)[0]
            widen = lambda v: v.detach().double().requires_grad_(v.requires_grad)
            wide = {k: widen(v) if isinstance(v, Tensor) else v for k, v in inputs.items()}
            result = self.truth_function(key)(**wide)
            dy = self.cotangent(result.detach().to(DTYPES[self.dtype]), inputs, 0).double()
            gradients = torch.autograd.grad(result, self.leaves(wide), dy)
            self._truths[key] = self.named(result.detach(), *gradients)
        return self._truths[key]

    def bounds(self, column: str, plain: Mapping[str, float]) -> dict[str, float]:
        """For ours: the dtype's bar; twice the error of the rewritten column; and what roundings in
        float32 leave of a sum of so many terms. Others round more often, which is not wrong."""
        factor = 1 if column in BACKENDS else OTHERS_FACTOR
        walk = 4 * torch.finfo(torch.float32).eps
        floor = lambda n: max(BARS[self.dtype], walk * self.terms.get(n, 1) ** 0.5)
        names = ("result", *self.case.gradients)
        return {n: factor * max(floor(n), 2 * plain.get(n, 0.0)) for n in names}

    def release(self) -> None:
        self._made.clear()
        self._truths.clear()


PHASES = ("forward", "total")


def masked_l1_row(dtype: str, n: int = 16, side: int = 256, note: str = "") -> OperatorRow:
    """The mask is a box an image; the gradient goes to the hybrid image alone, as in training."""

    def boxes(generator: torch.Generator, shape: tuple[int, ...]) -> Tensor:
        mask = torch.zeros(n, 1, side, side, dtype=torch.float64, device=generator.device)
        for plane in mask:
            place = torch.rand(2, generator=generator, device=generator.device)
            top, left = (place * side / 2).int().tolist()
            plane[:, top : top + side // 2, left : left + side // 2] = 1
        return mask

    case = new("masked_l1", "row", (n, 3, side, side), boxes, gradients=("hybrid",))
    terms, title = {"result": n * 3 * side**2}, f"masked_l1 {n}x3x{side}x{side}"
    return OperatorRow(case, title, terms, dtype, layout=None, note=note)


def crops_row(dtype: str = "float32", n: int = 16, side: int = 256, size: int = 64) -> OperatorRow:
    from rwm_fast.ops.crop_patches import sample_boxes

    boxes = lambda generator, n: sample_boxes(n, 8, generator=generator).double()
    case = new("crop_patches", "row", (n, 3, side, side), boxes, size)
    # a sampling position is rounded by about W units of a pixel: as much as W² terms lose
    terms, title = dict.fromkeys(("result", "image"), side**2), f"crop_patches {n} images x 8"
    return OperatorRow(case, f"{title} -> {size} px", terms, dtype, layout=None)


def bias_act_row(shape: tuple[int, int, int, int], dtype: str, **more: object) -> OperatorRow:
    n, c, h, w = shape
    case = new("bias_act", "row", shape, activation="lrelu")
    return OperatorRow(case, f"bias_act {n}x{c}x{h}x{w}", {"bias": n * h * w}, dtype, **more)


FIR = {
    "blur": {"padding": [2, 1, 2, 1]},
    "up": {"up": 2, "padding": [2, 1, 2, 1], "gain": 4.0},
    "down": {"down": 2, "padding": [1, 1, 1, 1]},
}


def fir_row(kind: str, shape: tuple[int, int, int, int], dtype: str, **more: object) -> OperatorRow:
    case = new("upfirdn2d", "row", shape, LOW_PASS, **FIR[kind])
    title = f"FIR {kind} {'x'.join(map(str, shape))}"
    return OperatorRow(case, title, dict.fromkeys(("result", "x"), 16), dtype, **more)


# Measured with --memory-kept, which adds the column to any row.
FRESH_PAGES = (
    "two thirds of the time is the system's zeroing of fresh pages, in tensors of 128 MiB: 228 ms,"
    " and 72 ms with freed memory kept (EPYC Zen 3)"
)
BELOW = (
    "gradient to the hybrid image alone, as in training; buffers below glibc's mmap threshold:"
    " 4.8 ms, and 4.7 ms with freed memory kept (EPYC Zen 3)"
)


def rows(tiny: bool = False) -> list[Row]:
    """For a CPU."""
    small, large = ((2, 8, 16, 16), (2, 16, 32, 32)) if tiny else ((4, 64, 64, 64), LARGE)
    wide, images = "bfloat16", {"n": 2, "side": 32} if tiny else {}
    return [
        masked_l1_row("float32", note=BELOW, **images),
        masked_l1_row(wide, note=BELOW, **images),
        crops_row(**images, **({"size": 16} if tiny else {})),
        bias_act_row(small, "float32"),
        bias_act_row(small, wide, full=True),
        bias_act_row(large, "float32", full=True, note=FRESH_PAGES),
        *(fir_row(kind, small, "float32") for kind in ("blur", "up", "down")),
        fir_row("blur", small, wide, full=True),
        fir_row("blur", large, "float32", full=True),
    ]


LARGE = (4, 128, 256, 256)


def gpu_rows() -> list[Row]:
    """The operators that are bound by memory, in the order in which they were written."""
    half, wide = "bfloat16", (16, 128, 256, 256)
    found = [masked_l1_row(half), masked_l1_row("float32"), masked_l1_row("float32", side=1024)]
    found += [crops_row(half, size=128), crops_row("float32", size=128)]
    for dtype in (half, "float16"):
        found += [bias_act_row(wide, dtype), bias_act_row((16, 512, 64, 64), dtype)]
        found += [fir_row("blur", wide, dtype), fir_row("up", (16, 128, 128, 128), dtype)]
        found += [fir_row("down", wide, dtype)]
    return found
