"""Calls at the edges of the contracts, through all operators and backends, against float64: images
of one pixel in every order of memory, of none, without channels, with numbers that are not finite,
on the meta device; settings of other integer types."""

import numpy as np
import pytest
import torch
from grid import ROWS, on_backend

from rwm_fast.testing import compare
from rwm_fast.testing.cases import Case

BY_ROW = pytest.mark.parametrize("row", ROWS, ids=str)
LOW_PASS = torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=torch.float64) / 8
UNEVEN = LOW_PASS.outer(torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64))
LINEAR = {"activation": "linear", "gain": 1.5}  # no kink that rounding could move a value over


def normal(*shape, like=None):
    seed = sum(shape)
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return drawn if like is None else drawn.to(like)


def views(x):
    """One image in many orders of memory; some show others of its values again."""
    n, c, h, w = x.shape
    last = {"memory_format": torch.channels_last}
    yield x
    yield x.contiguous(**last)
    yield torch.cat((x, x), 1).view(2 * n, c, h, w)[::2]
    yield torch.nn.functional.pad(x, (0, 2, 0, 1)).contiguous(**last)[:, :, :h, :w]
    yield x[:1].expand(n, c, h, w)
    yield x[:, :1].expand(n, c, h, w)
    yield torch.cat((x, x), 1)[:, :c]
    yield torch.cat((x, x), 1).contiguous(**last)[:, :c]
    yield x.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)


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
    elif op == "masked_l1":
        images = {"hybrid": x, "inside": like(n, c, h, w), "outside": like(n, c, h, w)}
        yield {**images, "mask": like(n, 1, h, w)}
        yield {**images, "mask": like(n, c, h, w)}
    elif op == "crop_patches" and h and w:
        boxes = torch.tensor([[0.0, 0, 1, 1], [0.2, 0.1, 0.5, -0.4]], device=x.device)
        yield {"image": x, "boxes": boxes.expand(n, 2, 4), "size": 3}
    elif op in ("modulated_conv2d", "conv2d_bias_act") and h and w and c:
        given = {"x": x, "weight": like(4, c, 3, 3), "bias": like(4), "padding": 2, **LINEAR}
        # demodulated, the style of one channel changes nothing: all of its gradient is rounding
        modulated = {"styles": like(n, c), "noise": None, "demodulate": c > 1}
        yield {**given, **modulated} if op == "modulated_conv2d" else given


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
        for x in views(normal(*shape).to(row.device, dtype)):
            for inputs in calls(row.op, x.detach().requires_grad_()):
                compared(row, inputs)


@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (2, 3, 0, 4), (2, 3, 4, 0), (2, 3, 0, 0)], ids=str)
@BY_ROW
def test_images_without_pixels(row, shape):
    for x in list(views(normal(*shape).to(row.device, torch.float32)))[:3]:
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


@pytest.mark.parametrize("op", sorted({row.op for row in ROWS}))
def test_meta_tensors_have_the_shapes_of_real_ones(op):
    for inputs in calls(op, normal(2, 3, 5, 6).float()):
        real = compare.call(op, inputs)
        there = {k: v.to("meta") if isinstance(v, torch.Tensor) else v for k, v in inputs.items()}
        meta = compare.call(op, there)
        assert meta.is_meta and meta.shape == real.shape and meta.dtype == real.dtype


@pytest.mark.parametrize("kind", [np.int64, np.int32, np.uint8])
def test_a_size_of_any_integer_type(kind):
    (inputs,) = calls("crop_patches", normal(1, 2, 5, 6).float())
    expected = compare.call("crop_patches", inputs)
    assert torch.equal(compare.call("crop_patches", {**inputs, "size": kind(3)}), expected)


@pytest.mark.parametrize("size", [True, 3.0, "3", None, torch.tensor(3), np.float64(3)], ids=repr)
def test_what_is_no_size_is_refused(size):
    (inputs,) = calls("crop_patches", normal(1, 2, 5, 6).float())
    with pytest.raises(ValueError, match="crop_patches: size must be an int of at least 1, got "):
        compare.call("crop_patches", {**inputs, "size": size})
