"""The CUDA kernels on the CPU: every case of every operator against the float64 reference.

The whole path is real but for the machine: the operator, its derivative formulas, the Python side
of the CUDA backend and the kernels' source. Every test draws its own order of blocks, warps, lanes.
"""

import importlib.util
import zlib

import pytest
import torch

from rwm_fast.ops._memory import is_channels_last
from rwm_fast.testing import compare
from rwm_fast.testing.cases import cases, in_layout, ops

pytestmark = pytest.mark.cuda_sim

OPS = [op for op in ops() if importlib.util.find_spec(f"rwm_fast.ops.{op}.cuda")]
SETTINGS = {
    "fp32": (torch.float32, "contiguous"),
    "fp32_last": (torch.float32, "channels_last"),
    "fp64_sliced": (torch.float64, "sliced"),
    "bf16": (torch.bfloat16, "contiguous"),
    "bf16_last": (torch.bfloat16, "channels_last"),
    "fp16_last": (torch.float16, "channels_last"),
    "fp16_expanded": (torch.float16, "expanded"),
}
ALL = [pytest.param(op, case, id=f"{op}-{case.name}") for op in OPS for case in cases(op)]
# grid_sample got its second derivative in torch 2.13; before, only our own formulas have one.
SECOND_ORDER_TRUTH = {"crop_patches": (2, 13)}


def _like(x, seed, layout="contiguous"):
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    return in_layout(numbers.to(x), layout)


def _compare(kernels, op, case, inputs, run, layout="contiguous"):
    kernels.set_seed(zlib.crc32(case.name.encode()))
    dtype = next(iter(inputs.values())).dtype
    with compare.plain(), torch.no_grad():
        dy = _like(compare.call(op, inputs), 0, layout)
    ours = run(op, inputs, dy)
    launches = kernels.take_counts()["launches"]
    with compare.plain():
        plain = run(op, inputs, dy)
        truth = run(op, compare.in_float64(inputs), dy.double())
    for i, versions in enumerate(zip(ours, plain, truth, strict=True)):
        compare.check(f"{op} {case.name}, result {i}", *versions, case, dtype)
    empty = any(isinstance(v, torch.Tensor) and not v.numel() for v in inputs.values())
    assert launches or empty, "no kernel ran"
    return ours


def _second_order(op, inputs, dy):
    seconds = [_like(x, i + 1) for i, x in enumerate(compare.leaves(inputs))]
    return compare.second_order(op, inputs, dy, seconds)


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize(("op", "case"), ALL)
def test_equals_reference(kernels, op, case, setting):
    dtype, layout = SETTINGS[setting]
    inputs = case.inputs(dtype, layout)
    output, *_ = _compare(kernels, op, case, inputs, compare.first_order, layout)
    first = next(iter(inputs.values()))
    if output.ndim > 3 and output.numel() and is_channels_last(first):
        assert output.flatten(0, -4).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("op", "case"), ALL)
def test_second_order_equals_reference(kernels, op, case):
    if torch.__version__ < SECOND_ORDER_TRUTH.get(op, (2,)):
        pytest.skip("this torch cannot differentiate the reference twice")
    _compare(kernels, op, case, case.inputs(torch.float32), _second_order)


@pytest.mark.parametrize(("op", "case"), ALL)
def test_order_of_threads_changes_nothing(kernels, op, case):
    """Bit for bit: no sum depends on which block, warp or lane comes first."""
    inputs = case.inputs(torch.float32, "channels_last")
    with compare.plain(), torch.no_grad():
        dy = _like(compare.call(op, inputs), 0)
    first, *others = [_seeded(kernels, seed, op, inputs, dy) for seed in (0, 1, 2)]
    for other in others:
        for a, b in zip(first, other, strict=True):
            assert torch.equal(a.nan_to_num(7), b.nan_to_num(7))


def _seeded(kernels, seed, op, inputs, dy):
    kernels.set_seed(seed)
    return compare.first_order(op, inputs, dy)


@pytest.mark.parametrize(("op", "case"), [p for p in ALL if "vectors" in p.values[1].name])
def test_misaligned(kernels, op, case):
    """Every tensor one element off a 16-byte boundary: no access wider than its address allows."""
    inputs = case.inputs(torch.bfloat16)
    for name, value in inputs.items():
        if isinstance(value, torch.Tensor):
            shifted = value.new_empty(value.numel() + 1)[1:].view(value.shape)
            shifted.copy_(value.detach())
            inputs[name] = shifted.requires_grad_(value.requires_grad)
    _compare(kernels, op, case, inputs, compare.first_order)


@pytest.mark.parametrize("rows", [2, 4, 8, 16])
@pytest.mark.parametrize("name", ["vectors", "vectors_up2", "vectors_down2", "cropped", "odd_up2"])
def test_upfirdn2d_strips(kernels, monkeypatch, name, rows):
    """Strips of any number of rows, which large images choose."""
    from rwm_fast.ops.upfirdn2d import cuda

    monkeypatch.setattr(cuda, "_rows", lambda x, y, order: rows)
    case = next(case for case in cases("upfirdn2d") if case.name == name)
    inputs = case.inputs(torch.float32, "channels_last")
    _compare(kernels, "upfirdn2d", case, inputs, compare.first_order)
