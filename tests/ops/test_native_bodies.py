"""The bodies of modulated_conv2d in C++, each on every case it can serve; the cache of weights."""

import pytest
import torch
from bodies import by_winograd

from rwm_fast import modulated_conv2d, use_backend
from rwm_fast.ops import _extension
from rwm_fast.ops._memory import LAST, NOTHING
from rwm_fast.ops.modulated_conv2d import cpu
from rwm_fast.ops.modulated_conv2d.cpu import direct, operands, winograd
from rwm_fast.ops.modulated_conv2d.geometry import Geometry, Plan, Settings
from rwm_fast.ops.modulated_conv2d.layer import Needs, layer_of
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
    prepare = cpu.prepare

    def recorded(layer):
        prepare(layer)
        seen.append(layer.body.records.by.__name__.rsplit(".", 1)[-1])

    monkeypatch.setattr(cpu, "prepare", recorded)
    with use_backend("native"), by_winograd(True):
        yield seen


@pytest.fixture(params=["baseline", "avx2", "avx512"])
def isa(request):
    """Each instruction set that this CPU has."""
    module = _extension.cpu()
    best = module.isa()
    try:
        module.set_isa(request.param)
    except ValueError as error:
        pytest.skip(str(error))
    yield request.param
    module.set_isa(best)


def _served(body, case):
    """Whether that body can serve a case."""
    inputs = case.inputs(torch.float32, "contiguous", torch.device("cpu"))
    kernel, up, down = inputs["weight"].shape[2:], inputs.get("up", 1), inputs.get("down", 1)
    if body == "winograd":
        return tuple(kernel) == (3, 3) and up <= 2 and down == 1
    return up == 1 and (tuple(kernel) != (1, 1) or down > 1)


CASES = [(b, c) for b in ("winograd", "direct") for c in cases(OP) if _served(b, c)]
SMOOTH = [(body, case) for body, case in CASES if case.smooth]
name = lambda value: value if isinstance(value, str) else value.name


@pytest.mark.parametrize("body, case", CASES, ids=name)
def test_equals_reference(body, case, isa, bodies, monkeypatch):
    """Output and gradients by the error rule, for each instruction set."""
    monkeypatch.setattr(winograd, "enabled", body == "winograd")
    inputs = case.inputs(torch.float32, "contiguous", torch.device("cpu"))
    with compare.plain(), torch.no_grad():
        dy = torch.ones_like(compare.call(OP, inputs)).cumsum(-1) % 3 - 1
    ours = compare.first_order(OP, inputs, dy)
    with compare.plain():
        plain = compare.first_order(OP, inputs, dy)
        truth = compare.first_order(OP, compare.in_float64(inputs), dy.double())
    for i, versions in enumerate(zip(ours, plain, truth, strict=True)):
        compare.check(f"{case.name}, result {i}", *versions, case, torch.float32)
    assert body in bodies or not inputs["x"].numel(), "nothing is computed of an empty batch"


@pytest.mark.parametrize("body, case", SMOOTH, ids=name)
def test_gradcheck(body, case, bodies, monkeypatch):
    """In float64: the kernels are templates, the algorithm is the same. In random directions, for
    the time: above, every entry is compared."""
    monkeypatch.setattr(winograd, "enabled", body == "winograd")
    inputs = case.inputs(torch.float64, "contiguous", torch.device("cpu"))
    values = [inputs[name] for name in case.gradients]

    def function(*values):
        named = dict(zip(case.gradients, values, strict=True))
        return compare.call(OP, {**inputs, **named})

    assert torch.autograd.gradcheck(function, values, fast_mode=True)


@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.parametrize("case", [c for c in cases(OP) if len(c.gradients) > 1], ids=name)
def test_a_gradient_alone_is_that_beside_the_others(case, enabled, bodies, monkeypatch):
    """What nobody asks for is not computed, and what is left does not change."""
    monkeypatch.setattr(winograd, "enabled", enabled)
    inputs = case.inputs(torch.float64, "contiguous", torch.device("cpu"))

    def gradients(*names):
        kept = {n: v.detach() if isinstance(v, torch.Tensor) else v for n, v in inputs.items()}
        leaves = [kept[n].requires_grad_() for n in names]
        y = compare.call(OP, kept)
        return torch.autograd.grad(y.square().sum(), leaves)

    for gradient, alone in zip(gradients(*case.gradients), case.gradients, strict=True):
        torch.testing.assert_close(gradients(alone)[0], gradient, rtol=1e-10, atol=1e-12)


def _layer():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 8, 8, 8, generator=generator)
    weight = torch.nn.Parameter(torch.randn(8, 8, 3, 3, generator=generator))
    return x, weight, torch.ones(2, 8)


def test_weights_are_transformed_once(bodies, monkeypatch):
    x, weight, styles = _layer()
    made = []
    block = winograd.block
    monkeypatch.setattr(winograd, "block", lambda *a: made.append(0) or block(*a))
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
    kept = operands._Kept.total
    modulated_conv2d(x, weight, styles, padding=1)
    assert operands._Kept.total > kept
    del weight
    assert operands._Kept.total == kept
    monkeypatch.setattr(operands, "CACHE_BYTES", kept)
    x, weight, styles = _layer()
    modulated_conv2d(x, weight, styles, padding=1)
    assert operands._Kept.total == kept


def test_can_be_switched_off(bodies, monkeypatch):
    x, weight, styles = _layer()
    monkeypatch.setattr(winograd, "enabled", False)
    modulated_conv2d(x, weight, styles, padding=1)
    assert bodies == ["direct"]


@pytest.mark.parametrize("up, down", [(1, 1), (2, 1), (1, 2)])
def test_weights_in_channels_last(up, down, bodies):
    """Read as they are, every second too: the same numbers, and the gradient in their format."""
    x, weight, styles = _layer()
    settings = {"padding": 1, "up": up, "down": down, "resample_filter": torch.ones(4) / 4}
    settings = settings if up * down > 1 else {"padding": 1}
    results = []
    last = torch.channels_last
    for order, step in ((torch.contiguous_format, 1), (last, 1), (last, 2)):
        every = weight.detach().repeat_interleave(step, 0).contiguous(memory_format=order)
        w = every[::step].requires_grad_()
        y = modulated_conv2d(x, w, styles, **settings)
        (dw,) = torch.autograd.grad(y.square().sum(), w)
        assert dw.is_contiguous(memory_format=order)
        results.append((y, dw))
    assert bodies and set(bodies) == {"winograd" if down == 1 else "direct"}
    for one, *others in zip(*results, strict=True):
        for other in others:
            torch.testing.assert_close(one, other)


SIZES = [  # images [N, I, h, w], O, kernel, stride, padding
    ((2, 40, 9, 7), 33, 3, 2, 0),  # several chunks of the depth, several panels and what is left
    ((3, 16, 11, 12), 16, 3, 1, 1),
    ((7, 33, 4, 4), 17, 3, 2, 0),  # rows of several images side by side
    ((1, 5, 60, 3), 3, 5, 3, 4),  # patches that lie outside
    ((2, 3, 30, 31), 8, 7, 2, 3),
    ((1, 240, 5, 5), 20, 3, 2, 1),  # more than 2048 numbers a patch
    ((2, 260, 7, 6), 256, 1, 1, 0),
]


def _by_definition(x, w, a, geometry):
    """A layer without an epilogue."""
    settings = Settings(1, 1, (w.shape[2],) * 4, False, True, "linear", 0.2, 1.0, None, 0.0)
    layer = layer_of(x, w, a[:, None], *[None] * 6, settings)
    layer.geometry = geometry
    shape = operands.Shape(x.shape, w.shape, geometry, True, False, True, x.dtype)
    kernels, ends = shape.kernels(), zip(w.shape[1::-1], geometry.chain, strict=False)
    images = [shape.images(channels, size) for channels, size in ends]
    records = operands.Records(direct, x.dtype, direct.plan(shape), kernels, *images)
    layer.body = operands.Body(records, operands.Weights(w, LAST, x.dtype, kernels), shape)
    return layer


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_definition_at_many_sizes(size, isa):
    """Output and both gradients against float64, into poisoned memory."""
    shape, outputs, kernel, stride, padding = size
    generator = torch.Generator().manual_seed(0)
    draw = lambda *s: torch.randn(*s, generator=generator).to(memory_format=torch.channels_last)
    x, w = draw(*shape), draw(outputs, shape[1], kernel, kernel)
    a = torch.rand(shape[:2], generator=generator)
    arguments = [stride] * 2, [padding] * 2, [1, 1], False, [0, 0], 1
    scaled = x.double() * a[:, :, None, None].double()
    y = torch.ops.aten.convolution(scaled, w.double(), None, *arguments)
    dy = draw(*y.shape)
    dx, dw, _ = torch.ops.aten.convolution_backward(
        dy.double(), scaled, w.double(), None, *arguments, [True, True, False]
    )
    plan = Plan(None, stride, False, (padding, padding), ())
    layer = _by_definition(x, w, a, Geometry(1, stride, (0,) * 4, plan, (x.shape[2:], y.shape[2:])))
    g = direct.gradients(layer, dy, None, Needs(True, True, *[False] * 6))
    found = direct.forward(layer, NOTHING), g.x, g.weight
    sums = w[0].numel(), w[:, 0].numel(), dy[:, 0].numel()
    for ours, truth, terms in zip(found, (y, dx * a[:, :, None, None], dw), sums, strict=True):
        assert ours.is_contiguous(memory_format=torch.channels_last)
        # a sum of n terms in order: n roundings at worst, √n of them in the mean
        allowed = 4 * terms**0.5 * torch.finfo(torch.float32).eps * truth.abs().max()
        assert (ours - truth).abs().max() <= allowed


def test_blocks_are_used_again():
    """Large buffers stay in the process; a tensor on one keeps it."""
    module, size = _extension.cpu(), 3 << 20
    values = torch.frombuffer(module.Block(size), dtype=torch.float32).fill_(1)
    address = values.data_ptr()
    other = torch.frombuffer(module.Block(size), dtype=torch.float32).fill_(2)
    assert other.data_ptr() != address and values.eq(1).all()
    del values
    assert torch.frombuffer(module.Block(size), dtype=torch.float32).data_ptr() == address
