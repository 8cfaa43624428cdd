"""Calls at the edges of the contracts, through all operators and backends, against float64: images
of one pixel in every order of memory, of none, without channels, with numbers that are not finite,
on the meta device; settings of other integer types."""

import contextlib
import enum

import numpy as np
import pytest
import torch
from grid import ROWS, on_backend
from torch._subclasses import FakeTensor

from rwm_fast.testing import compare
from rwm_fast.testing.cases import Case
from rwm_fast.testing.views import VIEWS

BY_ROW = pytest.mark.parametrize("row", ROWS, ids=str)
LOW_PASS = torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=torch.float64) / 8
UNEVEN = LOW_PASS.outer(torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64))
CLAMPING = ("bias_act", "conv2d_bias_act", "modulated_conv2d")
LINEAR = {"activation": "linear", "gain": 1.5}  # no kink that rounding could move a value over


def normal(*shape, like=None):
    seed = sum(shape)
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return drawn if like is None else drawn.to(like)


def calls(op, x):
    """Arguments around an image of any size that the operator takes."""
    n, c, h, w = x.shape

    def like(*shape):
        return normal(*shape, like=x).requires_grad_()

    if op == "bias_act":
        yield {"x": x, "bias": like(c), **LINEAR}
    elif op == "upfirdn2d":
        for taps in (LOW_PASS.to(x), UNEVEN.to(x)):
            yield {"x": x, "filter": taps, "padding": 3}
            yield {"x": x, "filter": taps, "up": 2, "padding": [3, 2]}
            yield {"x": x, "filter": taps, "down": 2, "padding": [4, 3, 3, 4]}
            yield {"x": x, "filter": taps, "padding": [-2, 7, 3, 3]}  # crops more than there is
    elif op == "masked_l1":
        images = {"hybrid": x, "inside": like(n, c, h, w), "outside": like(n, c, h, w)}
        yield {**images, "mask": like(n, 1, h, w)}
        yield {**images, "mask": like(n, c, h, w)}
    elif op == "crop_patches" and h and w:
        boxes = torch.tensor([[0.0, 0, 1, 1], [0.2, 0.1, 0.5, -0.4]], device=x.device)
        yield {"image": x, "boxes": boxes.expand(n, 2, 4), "size": 3}
    elif op in ("modulated_conv2d", "conv2d_bias_act") and h and w and c:
        given = {"x": x, "weight": like(4, c, 3, 3), "bias": like(4), "padding": 2, **LINEAR}
        for padding in (2, [-2, 5, 2, 2]):
            given["padding"] = padding
            # demodulated, the style of one channel, or of a map that is cropped away, changes
            # nothing: all of its gradient is rounding
            modulated = {"styles": like(n, c), "demodulate": c > 1 and padding == 2}
            yield {**given, **modulated} if op == "modulated_conv2d" else dict(given)


def compared(row, inputs):
    """Output and gradients by the one error rule; sums here have at most 1000 terms."""
    case = Case(row.op, "corner", lambda generator: {}, (), terms=1000, stored=3)
    first = next(iter(inputs.values()))
    with on_backend(row, inputs):
        output = compare.call(row.op, inputs)
        dy = normal(*output.shape, like=output)
        ours = compare.first_order(row.op, inputs, dy)
    with compare.plain():
        plain = compare.first_order(row.op, inputs, dy)
        truth = compare.first_order(row.op, compare.in_float64(inputs), dy.double())
    for i, versions in enumerate(zip(ours, plain, truth, strict=True)):
        settings = {k: v for k, v in inputs.items() if not isinstance(v, torch.Tensor)}
        label = f"{row}: {list(first.shape)}, strides {first.stride()}, {settings}, result {i}"
        compare.check(label, *versions, case, first.dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@BY_ROW
def test_images_of_one_pixel_in_every_order(row, dtype):
    for shape in ((2, 3, 1, 1), (3, 1, 1, 1), (2, 2, 5, 1)):
        for view in VIEWS.values():
            x = view(normal(*shape).to(row.device, dtype))
            for inputs in calls(row.op, x.detach().requires_grad_()):
                compared(row, inputs)


@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (2, 3, 0, 4), (2, 3, 4, 0), (2, 3, 0, 0)], ids=str)
@BY_ROW
def test_images_without_pixels(row, shape):
    for view in list(VIEWS.values())[:3]:
        x = view(normal(*shape).to(row.device, torch.float32))
        for inputs in calls(row.op, x.detach().requires_grad_()):
            compared(row, inputs)


@BY_ROW
def test_no_channels(row):
    for dtype in (torch.float32, torch.bfloat16):
        x = normal(2, 0, 4, 5).to(row.device, dtype).requires_grad_()
        for inputs in calls(row.op, x):
            compared(row, inputs)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("row", [row for row in ROWS if "conv2d" not in row.op], ids=str)
def test_numbers_that_are_not_finite(row, layout, value):
    """They reach the results that the formula says, and no others. (Winograd's algorithm spreads
    them over a tile: the convolutions are left out.)"""
    x = normal(2, 3, 9, 10)
    x[1, 2, 4, 3] = value
    x = x.to(row.device, torch.float32).contiguous(memory_format=layout).requires_grad_()
    for inputs in calls(row.op, x):
        compared(row, inputs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("row", [row for row in ROWS if row.op in CLAMPING], ids=str)
def test_what_is_clamped_has_no_gradient(row, dtype):
    """By a number, too, that the dtype does not hold."""
    for inputs in calls(row.op, normal(2, 3, 4, 5).to(row.device, dtype).requires_grad_()):
        inputs |= {"bias": torch.full_like(inputs["bias"], 100), "clamp": 0.7}
        inputs["bias"].requires_grad_()
        with on_backend(row, inputs):
            y = compare.call(row.op, inputs)
            grads = torch.autograd.grad(y, compare.leaves(inputs), torch.ones_like(y))
        assert not any(g.any() for g in grads)


BY_OP = pytest.mark.parametrize("op", sorted({row.op for row in ROWS}))


@pytest.mark.parametrize("kind", ["meta", "fake"])
@BY_OP
def test_tensors_without_memory_have_the_shapes_of_real_ones(op, kind):
    """Of the result and of every gradient; without a byte of memory."""
    for inputs in calls(op, normal(2, 3, 5, 6).float().requires_grad_()):
        with torch._subclasses.FakeTensorMode() as mode:
            pass
        to = mode.from_tensor if kind == "fake" else lambda t: t.detach().to("meta")
        there = {k: _without_memory(v, to) for k, v in inputs.items()}
        dy = normal(*compare.call(op, inputs).shape).float()
        real = compare.first_order(op, inputs, dy)
        with mode if kind == "fake" else contextlib.nullcontext():
            found = compare.first_order(op, there, to(dy))
        for ours, wanted in zip(found, real, strict=True):
            assert ours.is_meta if kind == "meta" else isinstance(ours, FakeTensor)
            assert (ours.shape, ours.dtype) == (wanted.shape, wanted.dtype)
            assert ours.stride() == wanted.stride()


def _without_memory(value, to):
    if not isinstance(value, torch.Tensor):
        return value
    return to(value).requires_grad_(value.requires_grad)


# ---- settings


WHOLE = [
    *(("upfirdn2d", name) for name in ("up", "down", "padding")),
    *(("modulated_conv2d", name) for name in ("up", "down", "padding")),
    *(("conv2d_bias_act", name) for name in ("down", "padding")),
    ("crop_patches", "size"),
]
BY_WHOLE = pytest.mark.parametrize(("op", "name"), WHOLE)
ACTIVATION = ("negative_slope", "gain", "clamp")
NUMBERS = [
    *(("bias_act", name) for name in ACTIVATION),
    *(("modulated_conv2d", name) for name in (*ACTIVATION, "eps", "noise_strength")),
    *(("conv2d_bias_act", name) for name in (*ACTIVATION, "weight_gain")),
    ("upfirdn2d", "gain"),
]
FLAGS = [("upfirdn2d", "flip_filter"), ("modulated_conv2d", "demodulate"),
         ("modulated_conv2d", "flip_weight")]  # fmt: skip


def one_call(op):
    """Arguments in float32 without gradients; those of modulated_conv2d with noise."""
    inputs = next(iter(calls(op, normal(1, 2, 5, 6).float())))
    inputs = {k: v.detach() if isinstance(v, torch.Tensor) else v for k, v in inputs.items()}
    return {**inputs, "noise": normal(7, 8).float()} if op == "modulated_conv2d" else inputs


def same(op, inputs, name, value, plain):
    """The result is that of the plain number."""
    if name in ("up", "down", "padding"):
        inputs = {**inputs, "noise": None} if "noise" in inputs else inputs
    found, wanted = (compare.call(op, {**inputs, name: v}) for v in (value, plain))
    assert torch.equal(found, wanted)


class Two(enum.IntEnum):
    """A whole number of a type of its own."""

    TWO = 2


@BY_WHOLE
def test_settings_of_any_integer_type(op, name):
    inputs = one_call(op)
    for value in (Two.TWO, *(kind(2) for kind in (np.int64, np.int32, np.int16, np.uint8))):
        same(op, inputs, name, value, 2)
        if name == "padding" or (op, name[-2:]) in (("upfirdn2d", "up"), ("upfirdn2d", "wn")):
            same(op, inputs, name, [value, 2], 2)
            same(op, inputs, name, np.array([2, 2], np.int32), 2)


@BY_WHOLE
def test_settings_that_a_compiled_function_is_given(op, name):
    """Whole numbers that torch.compile follows as symbols."""
    inputs = {**one_call(op), "noise": None} if op == "modulated_conv2d" else one_call(op)
    function = compare.function(op)
    torch.compiler.reset()
    call = lambda number: function(**{**inputs, name: number})
    compiled = torch.compile(call, fullgraph=True, dynamic=True, backend="eager")
    for number in (2, 3):
        torch.testing.assert_close(compiled(number), call(number))


NO_NUMBERS = [True, "3", None, torch.tensor(3), torch.tensor([2, 2]), [torch.tensor(2)] * 2, 2j]


@BY_WHOLE
def test_what_is_no_whole_number_is_refused(op, name):
    for value in (*NO_NUMBERS, 3.0, np.float64(3), np.bool_(True), [True, True], [2.0, 2.0]):
        with pytest.raises(ValueError, match=f"^{op}: {name} must be .*number.*, got "):
            compare.call(op, {**one_call(op), name: value})


@pytest.mark.parametrize(("op", "name"), NUMBERS)
def test_settings_of_any_real_type(op, name):
    inputs = one_call(op)
    for value in (2, np.int64(2), np.uint8(2), np.float32(2), np.float64(2)):
        same(op, inputs, name, value, 2.0)
    may = {"clamp": (None,), "gain": (None,), "noise_strength": (None, torch.tensor(3))}.get(
        name, ()
    )
    for value in NO_NUMBERS:
        if any(value is other or type(value) is type(other) is torch.Tensor for other in may):
            continue
        with pytest.raises(ValueError, match=f"^{op}: {name} must be .*, got "):
            compare.call(op, {**inputs, name: value})


@pytest.mark.parametrize(("op", "name"), FLAGS)
def test_flags(op, name):
    inputs = one_call(op)
    for value in (True, False):
        for kind in (int, np.int64, np.bool_):
            same(op, inputs, name, kind(value), value)
    for value in (None, "yes", 2, 0.5, torch.tensor(True), [True], np.array([True])):
        with pytest.raises(ValueError, match=f"^{op}: {name} must be True or False, got "):
            compare.call(op, {**inputs, name: value})


def test_what_leaves_nothing_is_refused_inside_transforms_too():
    x = normal(1, 2, 2, 5)
    function = lambda x: compare.call("conv2d_bias_act", {"x": x, "weight": normal(2, 2, 3, 3)})
    for call in (function, torch.func.grad(lambda x: function(x).sum())):
        with pytest.raises(ValueError, match="^conv2d_bias_act: the padded image must be at least"):
            call(x)
