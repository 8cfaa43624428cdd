"""The Triton kernels in Triton's interpreter: every case against the float64 reference.

The whole path is real but for the machine: the operator, its derivative formulas, the Python side
of the backend and the kernels' source. modulated_conv2d has a file of its own.
"""

import importlib

import pytest
import torch
import triton
import triton.language as tl

from rwm_fast import explain, use_backend
from rwm_fast.ops import _dispatch, _triton
from rwm_fast.ops._dispatch import BackendError
from rwm_fast.ops._memory import is_channels_last
from rwm_fast.testing import compare
from rwm_fast.testing.cases import cases, in_layout

pytestmark = pytest.mark.triton_interpret

OPS = ("masked_l1", "crop_patches", "bias_act", "upfirdn2d")
SETTINGS = {
    "fp32": (torch.float32, "contiguous"),
    "fp32_last": (torch.float32, "channels_last"),
    "fp16_sliced": (torch.float16, "sliced"),
    "fp16_last": (torch.float16, "channels_last"),
}
# A case takes two of them, in turn: both dtypes, and channels innermost or not.
PAIRS = (("fp32", "fp16_last"), ("fp32_last", "fp16_sliced"))
# The interpreter takes seconds for these: in one of two settings in turn, which have both dtypes
# and both layouts, and in fewer and larger tiles.
HEAVY = {
    "crop_patches": (
        "official",
        "enlarged",
        "blocks",
        "many_patches",
        "many_channels",
        "reduced",
        "vectors",
    ),
    "upfirdn2d": ("odd", "odd_up2", "odd_down2", "twelve_taps"),
}
FEW = ("fp32", "fp16_last")
LARGER = {"crop_patches": ("_PIXELS", 1024), "upfirdn2d": ("_TILE", {True: 8192, False: 4096})}
ALL = [pytest.param(op, case, id=f"{op}-{case.name}") for op in OPS for case in cases(op)]
# The interpreter cuts off where it stores bfloat16: up to a unit, where rounding loses half of one.
BFLOAT16 = {
    "masked_l1": ("soft", "odd"),
    "crop_patches": ("border", "flipped"),
    "bias_act": ("clamp", "odd"),
    "upfirdn2d": ("up2", "odd_down2"),
}
# grid_sample got its second derivative in torch 2.13; before, only our own formulas have one.
SECOND_ORDER_TRUTH = {"crop_patches": (2, 13)}


def _backend(op):
    return importlib.import_module(f"rwm_fast.ops.{op}.triton_kernels")


def _like(x, seed, layout="contiguous"):
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    return in_layout(numbers.to(x), layout)


def _three_versions(guarded, op, inputs, run, layout):
    """Ours, plain and the truth, as `compare` calls them."""
    with compare.plain(), torch.no_grad():
        dy = _like(compare.call(op, inputs), 0, layout)
    ours = run(op, inputs, dy)
    launches = guarded.launches
    with compare.plain():
        plain = run(op, inputs, dy)
        truth = run(op, compare.in_float64(inputs), dy.double())
    empty = any(isinstance(v, torch.Tensor) and not v.numel() for v in inputs.values())
    assert launches or empty, "no kernel ran"
    return zip(ours, plain, truth, strict=True)


def _compare(guarded, op, case, inputs, run, layout="contiguous"):
    versions = list(_three_versions(guarded, op, inputs, run, layout))
    dtype = next(iter(inputs.values())).dtype
    for i, three in enumerate(versions):
        compare.check(f"{op} {case.name}, result {i}", *three, case, dtype)
    return versions[0][0]


def _second_order(op, inputs, dy):
    seconds = [_like(x, i + 1) for i, x in enumerate(compare.leaves(inputs))]
    return compare.second_order(op, inputs, dy, seconds)


def _settings(op, index, name):
    heavy = HEAVY.get(op, ())
    return (FEW[heavy.index(name) % len(FEW)],) if name in heavy else PAIRS[index % len(PAIRS)]


GRID = [
    pytest.param(op, case, setting, id=f"{op}-{case.name}-{setting}")
    for op in OPS
    for index, case in enumerate(cases(op))
    for setting in _settings(op, index, case.name)
]


@pytest.mark.parametrize(("op", "case", "setting"), GRID)
def test_equals_reference(guarded, monkeypatch, op, case, setting):
    if case.name in HEAVY.get(op, ()):
        monkeypatch.setattr(_backend(op), *LARGER[op])
    dtype, layout = SETTINGS[setting]
    inputs = case.inputs(dtype, layout)
    output = _compare(guarded, op, case, inputs, compare.first_order, layout)
    first = next(iter(inputs.values()))
    if output.ndim > 3 and output.numel() and is_channels_last(first):
        assert output.flatten(0, -4).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("op", "case"), [p for p in ALL if p.values[1].smooth])
def test_second_order_equals_reference(guarded, op, case):
    if torch.__version__ < SECOND_ORDER_TRUTH.get(op, (2,)):
        pytest.skip("this torch cannot differentiate the reference twice")
    _compare(guarded, op, case, case.inputs(torch.float32), _second_order)


@pytest.mark.parametrize(
    ("op", "case"), [p for p in ALL if p.values[1].name in BFLOAT16[p.values[0]]]
)
def test_bfloat16_within_two_units(guarded, op, case):
    inputs = case.inputs(torch.bfloat16, "channels_last")
    for ours, plain, truth in _three_versions(
        guarded, op, inputs, compare.first_order, "channels_last"
    ):
        assert ours.dtype == plain.dtype
        units = 2 * torch.finfo(torch.bfloat16).eps * truth.abs().max().item()
        error, bound = compare.distance(ours, truth), compare.distance(plain, truth)
        assert error <= bound + units


# Sizes that only large tensors reach: several pieces of every sum, tiles that end inside an image.
SPLITS = [
    ("masked_l1", "odd", {"_MAX_PROGRAMS": 3, "_BLOCK": 64}),
    ("masked_l1", "odd", {"_BLOCK": 16}),
    ("bias_act", "odd", {"_LEAST": 1, "_SUM_ROWS": 2, "_SUM_CHANNELS": 4}),
    ("bias_act", "odd", {"_LEAST": 1, "_TILE": 128}),
    ("bias_act", "matrix_odd", {"_LEAST": 1, "_TILE": 128, "_PROGRAMS": 3}),
    ("crop_patches", "flipped", {"_SAMPLES": 8, "_PIXELS": 8}),
    ("upfirdn2d", "vectors_up2", {"_TILE": {True: 256, False: 256}, "_CHANNELS": 8}),
    ("upfirdn2d", "factors", {"_TILE": {True: 32, False: 16}}),
    ("upfirdn2d", "blur", {"_UNROLLED": 0}),
]


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize(("op", "name", "sizes"), SPLITS)
def test_small_tiles(guarded, monkeypatch, op, name, sizes, layout):
    module = _backend(op)
    for constant, value in sizes.items():
        assert hasattr(module, constant)
        monkeypatch.setattr(module, constant, value)
    case = next(case for case in cases(op) if case.name == name)
    _compare(guarded, op, case, case.inputs(torch.float32, layout), compare.first_order, layout)


@pytest.mark.parametrize("op", OPS)
def test_float64_is_refused(interpreter, op):
    inputs = cases(op)[0].inputs(torch.float64)
    with pytest.raises(BackendError, match="compute in float32, not in float64"):
        compare.call(op, inputs)


@pytest.mark.parametrize("op", OPS)
def test_the_interpreter_is_never_chosen_by_itself(op):
    inputs = cases(op)[0].inputs(torch.float32)
    assert "only when triton is asked for by name" in explain(op, **inputs)["triton"]
    with use_backend("triton"):
        assert explain(op, **inputs)["triton"] == "used"


def test_triton_and_this_package_agree_about_the_interpreter():
    assert triton.knobs.runtime.interpret is _dispatch.INTERPRETED is _triton.INTERPRETED is True


@triton.jit
def _shift(x, y, size, READ: tl.constexpr, WRITE: tl.constexpr):
    at = tl.arange(0, 16)
    tl.store(y + at + WRITE, tl.load(x + at + READ, mask=at < size), mask=at < size)


def test_reads_and_writes_past_a_tensor_are_caught(guarded):
    x, y = torch.arange(16.0), torch.empty(16)
    _triton.launch(_shift, 1, x.device, x, y, 16, READ=0, WRITE=0)
    assert torch.equal(x, y)
    _triton.launch(_shift, 1, x.device, x, y, 16, READ=1, WRITE=0)
    assert y[-1].isnan() and torch.equal(y[:-1], x[1:])
    for write in (1, -1):
        with pytest.raises(AssertionError, match="_shift writes 1 elements outside a tensor"):
            _triton.launch(_shift, 1, x.device, x, y, 16, READ=0, WRITE=write)
    n = x.new_full((4,), 3, dtype=torch.uint8)[::2]
    _triton.launch(_shift, 1, x.device, n, n.new_empty(2), 2, READ=0, WRITE=0)


def test_what_nobody_wrote_is_nan(guarded):
    x, y = torch.arange(16.0), torch.empty(16)
    _triton.launch(_shift, 1, x.device, x, y, 15, READ=0, WRITE=0)
    assert y[-1].isnan() and torch.equal(y[:-1], x[:-1])
