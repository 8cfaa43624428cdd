"""modulated_conv2d's Triton kernels in the interpreter, against the float64 reference.

Every tensor of every launch has margins of NaN, every fresh buffer is full of NaN.
"""

import itertools

import pytest
import torch

from rwm_fast import explain, modulated_conv2d
from rwm_fast.ops import _triton
from rwm_fast.ops._dispatch import BackendError
from rwm_fast.ops._memory import is_channels_last
from rwm_fast.ops.modulated_conv2d import triton_kernels
from rwm_fast.ops.modulated_conv2d.geometry import Settings, geometry
from rwm_fast.ops.modulated_conv2d.layer import without_style
from rwm_fast.ops.modulated_conv2d.triton_kernels import configs, launch
from rwm_fast.testing import compare
from rwm_fast.testing.cases import case, cases, in_layout

pytestmark = pytest.mark.triton_interpret

OP = "modulated_conv2d"
REFUSED = {
    "up3_down2": "resample by 2, either up or down",
    "even_kernel": "1×1 and 3×3, this one is 2×2",
    "kernel_5": "1×1 and 3×3, this one is 5×5",
}
SERVED = [c for c in cases(OP) if c.name not in REFUSED]
LAYOUTS = ("contiguous", "channels_last", "sliced")
# Every part of the backend once more in half precision.
HALF = (
    "styled", "to_rgb", "up2_styled", "down2_styled", "up2_pointwise", "down2_pointwise",
    "mask_down2", "three_regions", "float32_regions", "vectors", "range", "range_up2",
)  # fmt: skip
LOW_PASS = torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=torch.float64) / 8
UP = {"up": 2, "resample_filter": LOW_PASS, "flip_weight": False}
DOWN = {"down": 2, "resample_filter": LOW_PASS}
by_name = pytest.mark.parametrize("name", HALF)


def _like(x, seed=0, layout="contiguous"):
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    return in_layout(numbers.to(x), layout)


def _versions(guarded, inputs, run, layout="contiguous"):
    """Ours, plain and the truth, result by result."""
    with compare.plain(), torch.no_grad():
        dy = _like(compare.call(OP, inputs), 0, layout)
    before = guarded.launches
    ours = run(OP, inputs, dy)
    assert guarded.launches > before or not dy.numel(), "no kernel ran"
    with compare.plain():
        plain = run(OP, inputs, dy)
        truth = run(OP, compare.in_float64(inputs), dy.double())
    return list(zip(ours, plain, truth, strict=True))


def _compare(guarded, case, inputs, run=compare.first_order, layout="contiguous"):
    versions = _versions(guarded, inputs, run, layout)
    for i, three in enumerate(versions):
        compare.check(f"{case.name}, result {i}", *three, case, inputs["x"].dtype)
    return [ours for ours, _, _ in versions]


@pytest.mark.parametrize(
    ("case", "layout"),
    list(zip(SERVED, itertools.cycle(LAYOUTS), strict=False)),
    ids=lambda value: getattr(value, "name", value),
)
def test_equals_reference(guarded, case, layout):
    inputs = case.inputs(torch.float32, layout)
    y, *_ = _compare(guarded, case, inputs, layout=layout)
    if is_channels_last(inputs["x"]) and y.numel():
        assert y.is_contiguous(memory_format=torch.channels_last)


@by_name
def test_equals_reference_in_half_precision(guarded, name):
    inputs = case(OP, name).inputs(torch.float16, "channels_last")
    _compare(guarded, case(OP, name), inputs, layout="channels_last")


@pytest.mark.parametrize("name", ["styled", "mask_up2"])
def test_bfloat16_within_two_units(guarded, name):
    """The interpreter cuts off where it stores bfloat16: a unit, where rounding loses half."""
    inputs = case(OP, name).inputs(torch.bfloat16, "channels_last")
    for ours, plain, truth in _versions(guarded, inputs, compare.first_order, "channels_last"):
        assert ours.dtype == plain.dtype
        units = 2 * torch.finfo(torch.bfloat16).eps * truth.abs().max().item()
        assert compare.distance(ours, truth) <= compare.distance(plain, truth) + units


def _second_order(op, inputs, dy):
    seconds = [_like(x, i + 1) for i, x in enumerate(compare.leaves(inputs))]
    return compare.second_order(op, inputs, dy, seconds)


@pytest.mark.parametrize("name", ["styled", "up2", "down2", "mask", "mask_up2"])
def test_second_order_equals_reference(guarded, name):
    _compare(guarded, case(OP, name), case(OP, name).inputs(torch.float32), _second_order)


# ---- several tiles, odd sizes, both ways to load


@pytest.fixture
def small_tiles(monkeypatch):
    """Tiles that a test image has several of, in every direction, and sums in three parts."""
    forward, backward = configs.Tiles(128, 16, 32, 4, 1), configs.Tiles(64, 16, 32, 4, 1)
    monkeypatch.setattr(configs, "convolution", lambda *arguments: forward)
    monkeypatch.setattr(configs, "weight_gradient", lambda *arguments: backward)
    monkeypatch.setattr(configs, "splits", lambda capability, programs, steps: min(3, steps))
    monkeypatch.setattr(configs, "RESAMPLE", (128, 16, 4))
    monkeypatch.setattr(configs, "SCALE_BACKWARD", (64, 16, 4))
    monkeypatch.setattr(configs, "SUM_ROWS", (4, 128, 4))


@pytest.fixture
def loads(guarded, monkeypatch):
    """Which kernels read through descriptors and which through pointers."""
    ways, run = {}, _triton.launch

    def note(kernel, *arguments, **options):
        if "TMA" in options:
            ways.setdefault(kernel.__name__, set()).add(options["TMA"])
        run(kernel, *arguments, **options)

    monkeypatch.setattr(_triton, "launch", note)
    return ways


def _layer(channels, outputs, size, k=1, dtype=torch.float32, n=3):
    """Arguments of a layer whose bias keeps the activation away from its kink."""
    generator = torch.Generator().manual_seed(7)

    def draw(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    inputs = {
        "x": draw(n, channels, *size),
        "weight": draw(outputs, channels, 3, 3) / (3 * channels**0.5),
        "styles": 1 + 0.3 * draw(n, k, channels),
        "bias": torch.tensor([6.0, -6.0]).repeat(outputs)[:outputs].to(dtype),
    }
    inputs = {name: t.requires_grad_() for name, t in inputs.items()}
    if k > 1:
        inputs["regions"] = draw(n, k, *size).softmax(1).requires_grad_()
    return {**inputs, "padding": 1, "activation": "lrelu", "gain": 2**0.5}


@pytest.mark.parametrize(
    ("capability", "dtype", "n", "k", "more"),
    [
        ((9, 0), torch.float16, 3, 1, {}),
        ((8, 0), torch.float32, 3, 1, {}),
        ((9, 0), torch.float32, 1, 2, {}),
        ((8, 0), torch.float16, 1, 3, {}),
        ((9, 0), torch.float32, 2, 1, UP),
        ((9, 0), torch.float32, 2, 1, DOWN),
    ],
    ids=["tma", "pointers", "tma_2_regions", "pointers_3_regions", "tma_up2", "tma_down2"],
)
def test_tails_of_tiles(small_tiles, loads, guarded, monkeypatch, capability, dtype, n, k, more):
    """Pixels, channels and sums that no tile divides; up to three images."""
    monkeypatch.setattr(_triton, "capability", lambda device: capability)
    size = (9, 13) if not more else (7, 9)
    inputs = {**_layer(24, 24, size, k, dtype, n), **more}
    _compare(guarded, case(OP, "odd"), inputs)
    tma = capability[0] >= 9
    # A strided convolution cannot be read through one descriptor; its adjoint can, and the other
    # way round.
    expected = {"convolution": {tma}, "input_gradient": {tma}, "weight_gradient": {tma}}
    if more is UP:
        expected |= {"input_gradient": {False}, "weight_gradient": {False}}
    if more is DOWN:
        expected |= {"convolution": {False}, "weight_gradient": {False}}
    assert loads == expected


@pytest.mark.parametrize(
    ("capability", "change", "tma"),
    [
        ((9, 0), None, True),
        ((10, 0), None, True),
        ((8, 6), None, False),
        ((12, 0), None, False),
        ((9, 0), "channels", False),
        ((9, 0), "alignment", False),
    ],
    ids=["hopper", "blackwell", "ampere", "consumer_blackwell", "seven_channels", "misaligned"],
)
def test_pointers_where_a_descriptor_will_not_do(
    loads, guarded, monkeypatch, capability, change, tma
):
    monkeypatch.setattr(_triton, "capability", lambda device: capability)
    inputs = _layer(7 if change == "channels" else 8, 8, (4, 3), dtype=torch.float16, n=1)
    x = inputs["x"].detach()
    if change == "alignment":
        buffer = x.new_empty(x.numel() + 1)
        off = buffer[1:].as_strided(
            x.shape, x.contiguous(memory_format=torch.channels_last).stride(), 1
        )
        inputs["x"] = off.copy_(x).requires_grad_()
        assert off.data_ptr() % 16 and is_channels_last(off)
    _compare(guarded, case(OP, "odd"), inputs)
    assert loads["convolution"] == loads["weight_gradient"] == {tma}


def test_splits_add_up(guarded, monkeypatch):
    """The sum over pixels in one part and in five is the same but for rounding, and repeatable."""
    x = torch.randn(2, 8, 9, 13).contiguous(memory_format=torch.channels_last)
    g = torch.randn(2, 8, 9, 13).contiguous(memory_format=torch.channels_last)
    geometry = launch.Geometry((3, 3), 1, 1, (1, 1), (9, 13))
    tiles = configs.Tiles(16, 16, 16, 4, 1)
    monkeypatch.setattr(configs, "weight_gradient", lambda *arguments: tiles)
    found = []
    for splits in (1, 5, 5):
        monkeypatch.setattr(configs, "splits", lambda *arguments, splits=splits: splits)
        found.append(launch.weight_gradient(x, g, geometry))
    truth = torch.nn.grad.conv2d_weight(x.double(), (8, 8, 3, 3), g.double(), padding=1)
    truth = truth.flatten(2).permute(2, 1, 0)
    # 234 products, each rounded and added: √234 units of float32, twice for safety.
    allowed = 2 * 234**0.5 * torch.finfo(torch.float32).eps * truth.abs().max()
    assert all((part - truth).abs().max() <= allowed for part in found)
    assert torch.equal(found[1], found[2]) and not torch.equal(found[0], found[1])


# ---- who is served


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_say_why(interpreter, name):
    inputs = case(OP, name).inputs(torch.float32)
    with pytest.raises(BackendError, match=f"the triton kernels .*{REFUSED[name]}"):
        compare.call(OP, inputs)
    assert REFUSED[name] in explain(OP, **inputs)["triton"]


def test_more_styles_or_taps_than_unrolled_are_refused(interpreter):
    inputs = case(OP, "eight_regions").inputs(torch.float32)
    assert explain(OP, **inputs)["triton"] == "used"
    n, k, i = inputs["styles"].shape
    nine = {"styles": torch.ones(n, k + 1, i), "regions": torch.ones(n, k + 1, 2, 2)}
    assert explain(OP, **{**inputs, **nine})["triton"].endswith("take up to 8 styles")
    long = {"resample_filter": torch.ones(9)}
    assert explain(OP, **{**inputs, **long})["triton"].endswith("filters of up to 8×8 taps")


def test_float64_is_refused_but_for_the_filter(interpreter):
    inputs = case(OP, "up2").inputs(torch.float64)
    with pytest.raises(BackendError, match="compute in float32, not in float64"):
        compare.call(OP, inputs)
    inputs = {**case(OP, "up2").inputs(torch.float32), "resample_filter": LOW_PASS}
    assert explain(modulated_conv2d, **inputs)["triton"] == "used"


def test_huge_images_are_refused(interpreter):
    """Offsets within an image are of 32 bits; a fake tensor has the size without the memory."""
    with torch._subclasses.FakeTensorMode():
        x, weight = torch.empty(1, 512, 2048, 2048), torch.empty(512, 512, 3, 3)
    settings = Settings(1, 1, [1] * 4, True, True, "linear", 0.2, 1.0, None, 1e-8)

    def supports(x):
        numbers = geometry(*settings[:3], (3, 3), (1, 1), tuple(x.shape[2:]))
        return triton_kernels.supports(without_style(x, weight, None, settings, numbers))

    assert "2³¹" in supports(x)
    assert supports(x[:, :, :1024]) is None
