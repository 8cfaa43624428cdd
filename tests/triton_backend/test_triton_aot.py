"""Every Triton kernel of the memory-bound operators through the compiler, for every target.

The operators' Python side is called on CPU tensors, and what it would launch is compiled.
modulated_conv2d has a file of its own.
"""

import importlib
from pathlib import Path

import gate
import pytest
import torch

from rwm_fast.testing.cases import case, in_layout

pytestmark = pytest.mark.triton_aot

TABLE = Path(__file__).with_name("kernels.json")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# bf16 has the widest vectors. The others differ in loads, stores and conversions: a target each.
SETTINGS = [*(("bf16", arch) for arch in gate.TARGETS), ("fp32", 90), ("fp16", 80)]
LAYOUTS = ("contiguous", "channels_last")


def _backend(op):
    return importlib.import_module(f"rwm_fast.ops.{op}.triton_kernels")


def _images(dtype, layout, *shape):
    return in_layout(torch.zeros(shape, dtype=dtype), layout)


def masked_l1(dtype, layout):
    """RGB pictures, and a mask of their own shape."""
    backend, dloss = _backend("masked_l1"), torch.ones(())
    h = _images(dtype, layout, 16, 3, 256, 256)
    signs = h.to(torch.uint8)
    mask = _images(torch.float32, layout, 16, 1, 256, 256)
    yield "forward", lambda: backend.forward(h, h, h, mask, True)
    yield "loss_only", lambda: backend.forward(h, h, h, mask.to(dtype), False)
    yield "forward_full_mask", lambda: backend.forward(h, h, h, h, True)
    yield "backward", lambda: backend.backward(dloss, signs, mask, dtype, (True, False, False))
    yield "backward_all", lambda: backend.backward(dloss, signs, mask, dtype, (True, True, True))
    yield "mask_backward", lambda: backend.mask_backward(dloss, h, h, h, mask)


def crop_patches(dtype, layout):
    """The published proportions, and many channels."""
    backend, boxes = _backend("crop_patches"), torch.zeros(2, 8, 4)
    for channels in (3, 64):
        image = _images(dtype, layout, 2, channels, 256, 256)
        patches = _images(dtype, layout, 2, 8, channels, 64, 64)
        yield f"forward_{channels}", lambda x=image: backend.forward(x, boxes, 64)
        yield f"adjoint_{channels}", lambda x=patches: backend.adjoint(x, boxes, 256, 256)


def bias_act(dtype, layout):
    """A layer of 128 channels, and one of 3."""
    backend = _backend("bias_act")
    x = _images(dtype, layout, 4, 128, 128, 128)
    rgb = _images(dtype, layout, 4, 3, 64, 64)
    plain, clamped = ("lrelu", 0.2, 1.4, None), ("lrelu", 0.2, 1.4, 256.0)
    yield "forward", lambda: backend.forward(x, torch.zeros(128), *plain)
    yield "forward_clamp", lambda: backend.forward(x, torch.zeros(128), *clamped)
    yield "forward_rgb", lambda: backend.forward(rgb, torch.zeros(3), *clamped)
    yield "forward_no_bias", lambda: backend.forward(x, None, *plain)
    yield "backward", lambda: backend.backward(x, x, *plain, (True, True))
    yield "backward_clamp", lambda: backend.backward(x, x, *clamped, (True, True))
    yield "backward_rgb", lambda: backend.backward(rgb, rgb, *clamped, (True, True))
    yield "backward_x", lambda: backend.backward(x, x, *plain, (True, False))
    linear = ("linear", 0.2, 1.0, None)
    yield "backward_linear", lambda: backend.backward(x, None, *linear, (False, True))


def upfirdn2d(dtype, layout):
    """The resamplings of a network, and filters that are not unrolled or not separable."""
    backend, taps = _backend("upfirdn2d"), torch.ones(4) / 4
    settings = {
        "blur": (taps, (1, 1), (1, 1), (2, 1, 2, 1)),
        "up2": (taps, (2, 2), (1, 1), (2, 1, 2, 1)),
        "down2": (taps, (1, 1), (2, 2), (1, 1, 1, 1)),
        "wide": (torch.ones(12), (1, 1), (1, 1), (6, 5, 6, 5)),
        "two_dimensional": (torch.ones(3, 5), (2, 1), (1, 2), (4, 4, 3, 3)),
        "no_filter": (None, (2, 2), (1, 1), (1, 0, 1, 0)),
    }
    x = _images(dtype, layout, 4, 64, 64, 64)
    for name, (filter, up, down, pad) in settings.items():
        call = (x, filter, up, down, pad, False, 1.5)
        yield name, lambda call=call: backend.forward(*call)
    rgb = (_images(dtype, layout, 4, 3, 64, 64), *settings["up2"], True, 4.0)
    yield "rgb_up2", lambda: backend.forward(*rgb)


OPS = {f.__name__: f for f in (masked_l1, crop_patches, bias_act, upfirdn2d)}


@pytest.mark.parametrize(("dtype", "arch"), SETTINGS)
@pytest.mark.parametrize("op", OPS)
def test_kernels_pass_the_gate(op, dtype, arch):
    """No spills, registers for twelve warps on a multiprocessor, and code as it was last stored."""
    launches = [
        (f"{op}.{name}.{launch.kernel.__name__} {dtype} {layout} sm_{arch}", launch)
        for layout in LAYOUTS
        for name, call in OPS[op](DTYPES[dtype], layout)
        for launch in gate.record(call)
    ]
    rows = {}
    compiled = gate.facts_of_all([launch for _, launch in launches], arch)
    for (label, _), facts in zip(launches, compiled, strict=True):
        gate.check(facts, most_registers=168)
        rows[label] = facts.row()
    drift = gate.check_table(TABLE, rows)
    if drift is None:
        pytest.skip("the table is of another version of triton")
    assert not drift, "\n".join(drift)


@pytest.mark.parametrize("op", OPS)
def test_sizes_of_one_compile(op):
    """Triton makes arguments of 1 constants, which the interpreter does not."""
    backend = _backend(op)
    one = case(op, "pixel").inputs(torch.float32, gradients=False)
    x = next(iter(one.values()))
    needs = {
        "masked_l1": [
            lambda: backend.forward(x, x, x, one["mask"], True),
            lambda: backend.backward(x[0, 0, 0, 0], x.byte(), x, x.dtype, (True, True, True)),
            lambda: backend.mask_backward(x[0, 0, 0, 0], x, x, x, one["mask"]),
        ],
        "crop_patches": [
            lambda: backend.forward(x, one["boxes"][:, :1], 1),
            lambda: backend.adjoint(x[None], one["boxes"][:, :1], 1, 1),
        ],
        "bias_act": [
            lambda: backend.forward(x, x[0, :, 0, 0], "lrelu", 0.2, 1.0, 1.0),
            lambda: backend.backward(x, x, "lrelu", 0.2, 1.0, 1.0, (True, True)),
        ],
        "upfirdn2d": [
            lambda: backend.forward(x, None, (1, 1), (1, 1), (0, 0, 0, 0), False, 1.0),
            lambda: backend.forward(x, one["filter"], (2, 2), (1, 1), (2, 1, 2, 1), False, 1.0),
        ],
    }
    launches = [launch for call in needs[op] for launch in gate.record(call)]
    for facts in gate.facts_of_all(launches, 80):
        gate.check(facts)
