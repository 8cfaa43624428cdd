"""The Winograd body of modulated_conv2d on every case, small ones too; the cache of its weights."""

import pytest
import torch

from rwm_fast import modulated_conv2d, use_backend
from rwm_fast.ops import _extension
from rwm_fast.ops.modulated_conv2d import native_cpu, winograd
from rwm_fast.testing import compare
from rwm_fast.testing.cases import cases

OP = "modulated_conv2d"
pytestmark = pytest.mark.skipif(
    _extension.cpu() is None, reason=f"no C++ module: {_extension.why_not_cpu()}"
)


@pytest.fixture
def bodies(monkeypatch):
    """Winograd wherever it can be; the bodies of the layers that ran."""
    seen = []
    layer = native_cpu.layer_of

    def recorded(*arguments):
        made = layer(*arguments)
        seen.append(made.body)
        return made

    monkeypatch.setattr(native_cpu, "layer_of", recorded)
    monkeypatch.setattr(winograd, "pays", lambda *arguments: True)
    with use_backend("native"):
        yield seen


def _3x3(case):
    inputs = case.inputs(torch.float32, "contiguous", torch.device("cpu"))
    weight, up, down = inputs["weight"], inputs.get("up", 1), inputs.get("down", 1)
    return tuple(weight.shape[2:]) == (3, 3) and max(up, down) <= 2 and up * down <= 2


CASES = [case for case in cases(OP) if _3x3(case)]
by_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
@by_case
def test_equals_reference(case, isa, bodies):
    """Output and gradients by the error rule, for each instruction set."""
    module = _extension.cpu()
    best = module.isa()
    try:
        module.set_isa(isa)
    except ValueError as error:
        pytest.skip(str(error))
    try:
        inputs = case.inputs(torch.float32, "contiguous", torch.device("cpu"))
        with compare.plain(), torch.no_grad():
            dy = torch.ones_like(compare.call(OP, inputs)).cumsum(-1) % 3 - 1
        ours = compare.first_order(OP, inputs, dy)
    finally:
        module.set_isa(best)
    with compare.plain():
        plain = compare.first_order(OP, inputs, dy)
        truth = compare.first_order(OP, compare.in_float64(inputs), dy.double())
    for i, versions in enumerate(zip(ours, plain, truth, strict=True)):
        compare.check(f"{case.name}, result {i}", *versions, case, torch.float32)
    assert not inputs["x"].numel() or "winograd" in bodies


@pytest.mark.parametrize("case", [c for c in CASES if c.smooth], ids=lambda case: case.name)
def test_gradcheck(case, bodies):
    """In float64: the kernels are templates, the algorithm is the same."""
    inputs = case.inputs(torch.float64, "contiguous", torch.device("cpu"))
    values = [inputs[name] for name in case.gradients]

    def function(*values):
        named = dict(zip(case.gradients, values, strict=True))
        return compare.call(OP, {**inputs, **named})

    assert torch.autograd.gradcheck(function, values)


def _layer():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 8, 8, 8, generator=generator)
    weight = torch.nn.Parameter(torch.randn(8, 8, 3, 3, generator=generator))
    return x, weight, torch.ones(2, 8)


def test_weights_are_transformed_once(bodies, monkeypatch):
    x, weight, styles = _layer()
    made = []
    make = winograd.Weights._transform
    monkeypatch.setattr(winograd.Weights, "_transform", lambda *a: made.append(0) or make(*a))
    for _ in range(3):
        modulated_conv2d(x, weight, styles, padding=1)
    assert len(made) == 1
    with torch.no_grad():
        weight.mul_(2)
    modulated_conv2d(x, weight, styles, padding=1)
    assert len(made) == 2


@pytest.mark.parametrize("at", [(0, 0, 0, 0), (3, 5, 1, 2), (7, 7, 2, 2)])
def test_changed_weights_are_noticed(at, bodies):
    """Also through .data, which no version counter sees, and a single one."""
    x, weight, styles = _layer()
    before = modulated_conv2d(x, weight, styles, padding=1, demodulate=False)
    weight.data[at] += 1
    after = modulated_conv2d(x, weight, styles, padding=1, demodulate=False)
    assert not torch.equal(before, after)
    weight.data[at] -= 1
    torch.testing.assert_close(
        modulated_conv2d(x, weight, styles, padding=1, demodulate=False), before
    )


def test_cache_is_bounded_and_dies_with_the_weights(bodies, monkeypatch):
    x, weight, styles = _layer()
    kept = winograd._Kept.total
    modulated_conv2d(x, weight, styles, padding=1)
    assert winograd._Kept.total > kept
    del weight
    assert winograd._Kept.total == kept
    monkeypatch.setattr(winograd, "CACHE_BYTES", kept)
    x, weight, styles = _layer()
    modulated_conv2d(x, weight, styles, padding=1)
    assert winograd._Kept.total == kept


def test_can_be_switched_off(bodies, monkeypatch):
    x, weight, styles = _layer()
    monkeypatch.setattr(winograd, "enabled", False)
    modulated_conv2d(x, weight, styles, padding=1)
    assert bodies == ["convolution"]


@pytest.mark.parametrize("up, down", [(1, 1), (2, 1), (1, 2)])
def test_weights_in_channels_last(up, down, bodies):
    """Read as they are: the same numbers, and the gradient in their format."""
    x, weight, styles = _layer()
    settings = {"padding": 1, "up": up, "down": down, "resample_filter": torch.ones(4) / 4}
    settings = settings if up * down > 1 else {"padding": 1}
    results = []
    for order in (torch.contiguous_format, torch.channels_last):
        w = weight.detach().contiguous(memory_format=order).requires_grad_()
        y = modulated_conv2d(x, w, styles, **settings)
        (dw,) = torch.autograd.grad(y.square().sum(), w)
        assert dw.is_contiguous(memory_format=order)
        results.append((y, dw))
    assert bodies and set(bodies) == {"winograd"}
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


def test_blocks_are_used_again():
    """Large buffers stay in the process; a tensor on one keeps it."""
    module, size = _extension.cpu(), 3 << 20
    values = torch.frombuffer(module.Block(size), dtype=torch.float32).fill_(1)
    address = values.data_ptr()
    other = torch.frombuffer(module.Block(size), dtype=torch.float32).fill_(2)
    assert other.data_ptr() != address and values.eq(1).all()
    del values
    assert torch.frombuffer(module.Block(size), dtype=torch.float32).data_ptr() == address
