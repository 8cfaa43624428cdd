"""Every Triton kernel of the memory-bound operators through the compiler, for every target.

The operators' Python side is called on CPU tensors, and what it would launch is compiled.
modulated_conv2d has a file of its own.
"""

import importlib
from pathlib import Path

import gate
import pytest
import tables
import torch

from rwm_fast.ops.bias_act.call import Activation
from rwm_fast.testing.cases import case, in_layout

pytestmark = pytest.mark.triton_aot

TABLE = Path(__file__).with_name("kernels.json")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# bf16 has the widest vectors. The others differ in loads, stores and conversions: a target each.
SETTINGS = [*(("bf16", arch) for arch in gate.TARGETS), ("fp32", 90), ("fp16", 80)]
LAYOUTS = ("contiguous", "channels_last")


def _pass(op, builder, function, *arguments):
    """Builds a call, and hands it to the backend when it is called itself."""
    call = getattr(importlib.import_module(f"rwm_fast.ops.{op}.call"), builder)(*arguments)
    backend = importlib.import_module(f"rwm_fast.ops.{op}.triton_kernels")
    return lambda: getattr(backend, function)(call)


def _masked_l1(function, *arguments):
    return _pass("masked_l1", f"{function}_call", function, *arguments)


def _crop_patches(function, *arguments):
    builder = {"forward": "crop_call", "adjoint": "adjoint_call"}[function]
    return _pass("crop_patches", builder, function, *arguments)


def _bias_act(function, *arguments):
    return _pass("bias_act", f"{function}_call", function, *arguments)


def _upfirdn2d(*arguments):
    return _pass("upfirdn2d", "call_of", "forward", *arguments)


def _images(dtype, layout, *shape):
    return in_layout(torch.zeros(shape, dtype=dtype), layout)


def masked_l1(dtype, layout):
    """RGB pictures, and a mask of their own shape."""
    dloss, run = torch.ones(()), _masked_l1
    h = _images(dtype, layout, 16, 3, 256, 256)
    signs = h.to(torch.uint8)
    mask = _images(torch.float32, layout, 16, 1, 256, 256)
    yield "forward", run("forward", h, h, h, mask, True)
    yield "loss_only", run("forward", h, h, h, mask.to(dtype), False)
    yield "forward_full_mask", run("forward", h, h, h, h, True)
    yield "backward", run("backward", dloss, signs, mask, dtype, (True, False, False))
    yield "backward_all", run("backward", dloss, signs, mask, dtype, (True, True, True))
    yield "mask_backward", run("mask_backward", dloss, h, h, h, mask)


def crop_patches(dtype, layout):
    """The published proportions, and many channels."""
    boxes = torch.zeros(2, 8, 4)
    for channels in (3, 64):
        image = _images(dtype, layout, 2, channels, 256, 256)
        patches = _images(dtype, layout, 2 * 8, channels, 64, 64).unflatten(0, (2, 8))
        yield f"forward_{channels}", _crop_patches("forward", image, boxes, 64)
        yield f"adjoint_{channels}", _crop_patches("adjoint", patches, boxes, 256, 256)


def bias_act(dtype, layout):
    """A layer of 128 channels, and one of 3."""
    run = _bias_act
    x = _images(dtype, layout, 4, 128, 128, 128)
    rgb = _images(dtype, layout, 4, 3, 64, 64)
    plain, clamped = Activation("lrelu", 0.2, 1.4, None), Activation("lrelu", 0.2, 1.4, 256.0)
    yield "forward", run("forward", x, torch.zeros(128), plain)
    yield "forward_clamp", run("forward", x, torch.zeros(128), clamped)
    yield "forward_rgb", run("forward", rgb, torch.zeros(3), clamped)
    yield "forward_no_bias", run("forward", x, None, plain)
    yield "backward", run("backward", x, x, plain, (True, True))
    yield "backward_clamp", run("backward", x, x, clamped, (True, True))
    yield "backward_rgb", run("backward", rgb, rgb, clamped, (True, True))
    yield "backward_x", run("backward", x, x, plain, (True, False))
    linear = Activation("linear", 0.2, 1.0, None)
    yield "backward_linear", run("backward", x, None, linear, (False, True))


def upfirdn2d(dtype, layout):
    """The resamplings of a network, and filters that are not unrolled or not separable."""
    taps = torch.ones(4) / 4
    settings = {
        "blur": (taps, (1, 1), (1, 1), (2, 1, 2, 1)),
        "up2": (taps, (2, 2), (1, 1), (2, 1, 2, 1)),
        "down2": (taps, (1, 1), (2, 2), (1, 1, 1, 1)),
        "wide": (torch.ones(12), (1, 1), (1, 1), (6, 5, 6, 5)),
        "two_dimensional": (torch.ones(3, 5), (2, 1), (1, 2), (4, 4, 3, 3)),
        "no_filter": (None, (2, 2), (1, 1), (1, 0, 1, 0)),
    }
    x = _images(dtype, layout, 4, 64, 64, 64)
    for name, setting in settings.items():
        yield name, _upfirdn2d(x, *setting, False, 1.5)
    rgb = _images(dtype, layout, 4, 3, 64, 64)
    yield "rgb_up2", _upfirdn2d(rgb, *settings["up2"], True, 4.0)


OPS = {f.__name__: f for f in (masked_l1, crop_patches, bias_act, upfirdn2d)}


@pytest.mark.parametrize(("dtype", "arch"), SETTINGS)
@pytest.mark.parametrize("op", OPS)
def test_kernels_pass_the_gate(op, dtype, arch):
    """No spills, registers for twelve warps on a multiprocessor, and code as it was last stored."""
    launches = {
        f"{op}.{name}.{launch.kernel.__name__} {dtype} {layout} sm_{arch}": launch
        for layout in LAYOUTS
        for name, call in OPS[op](DTYPES[dtype], layout)
        for launch in gate.record(call)
    }
    found = gate.facts_of_table(TABLE, launches, arch)
    for facts in found.values():
        gate.check(facts, most_registers=168)
    drift = tables.check(TABLE, {label: facts.row() for label, facts in found.items()})
    if drift is None:
        pytest.skip("the table is of another version of triton")
    assert not drift, "\n".join(drift)


@pytest.mark.parametrize("op", OPS)
def test_sizes_of_one_compile(op):
    """Triton makes arguments of 1 constants, which the interpreter does not."""
    one = case(op, "pixel").inputs(torch.float32, gradients=False)
    x = next(iter(one.values()))
    needs = {
        "masked_l1": lambda: [
            _masked_l1("forward", x, x, x, one["mask"], True),
            _masked_l1("backward", x[0, 0, 0, 0], x.byte(), x, x.dtype, (True, True, True)),
            _masked_l1("mask_backward", x[0, 0, 0, 0], x, x, x, one["mask"]),
        ],
        "crop_patches": lambda: [
            _crop_patches("forward", x, one["boxes"][:, :1], 1),
            _crop_patches("adjoint", x[None], one["boxes"][:, :1], 1, 1),
        ],
        "bias_act": lambda: [
            _bias_act("forward", x, x[0, :, 0, 0], Activation("lrelu", 0.2, 1.0, 1.0)),
            _bias_act("backward", x, x, Activation("lrelu", 0.2, 1.0, 1.0), (True, True)),
        ],
        "upfirdn2d": lambda: [
            _upfirdn2d(x, None, (1, 1), (1, 1), (0, 0, 0, 0), False, 1.0),
            _upfirdn2d(x, one["filter"], (2, 2), (1, 1), (2, 1, 2, 1), False, 1.0),
        ],
    }
    launches = [launch for call in needs[op]() for launch in gate.record(call)]
    for facts in gate.facts_of_all(launches, 80):
        gate.check(facts)
