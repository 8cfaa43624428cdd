"""The second derivative of modulated_conv2d that the C++ backend serves itself: path length, R1."""

import itertools

import pytest
import torch
from bodies import by_winograd

from rwm_fast import modulated_conv2d, use_backend
from rwm_fast.ops import _extension
from rwm_fast.ops.modulated_conv2d import eager, second
from rwm_fast.testing import compare
from rwm_fast.testing.cases import cases

OP = "modulated_conv2d"
pytestmark = pytest.mark.skipif(
    _extension.cpu() is None, reason=f"no C++ module: {_extension.why_not_cpu()}"
)
CASES = [c for c in cases(OP) if {"x", "styles", "weight"} <= set(c.gradients)]
one_style = lambda inputs: inputs.get("regions") is None and inputs["x"].numel() > 0


def penalty(inputs, names, change=None, again=False):
    """Gradients of Σ⟨first, fixed⟩ of some first gradients, to dy and all arguments."""
    output = compare.call(OP, inputs)
    draw = lambda t, seed: torch.randn(
        t.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    ).to(t)
    dy = draw(output, 0).requires_grad_()
    first = torch.autograd.grad(output, [inputs[n] for n in names], dy, create_graph=True)
    total = sum((g * draw(g, i)).sum() for i, g in enumerate(first, start=1))
    if change is not None:
        change(*first)
    at = [dy, *(inputs[n] for n in ("x", "weight", "styles"))]
    if again:
        torch.autograd.grad(total, at, retain_graph=True, materialize_grads=True)
    return torch.autograd.grad(total, at, materialize_grads=True)


@pytest.fixture
def alone(monkeypatch):
    """How often it served; the derivative of the eager passes, which also would do, may not."""
    served, derivative = [], second.derivative

    def counted(*arguments):
        served.append(arguments)
        return derivative(*arguments)

    def never(*arguments):
        raise AssertionError("the general formula ran")

    monkeypatch.setattr(second, "derivative", counted)
    monkeypatch.setattr(eager, "gradients", never)
    with use_backend("native"):
        yield served


NAMES = [("x", "styles"), ("x",), ("styles",)]
ROWS = [(case, names) for case in CASES for names in NAMES if one_style(case.inputs(torch.float64))]


@pytest.mark.parametrize(
    ("index", "case", "names"),
    [pytest.param(i, c, n, id=f"{c.name}-{'-'.join(n)}") for i, (c, n) in enumerate(ROWS)],
)
def test_equals_the_reference(index, case, names, alone):
    """By the error rule: by Winograd's algorithm and by definition, each case by one in float32."""
    for dtype in (torch.float32, torch.float64):
        inputs = case.inputs(dtype)
        with by_winograd((index % 2 == 0) == (dtype == torch.float32)):
            ours = penalty(inputs, names)
        with compare.plain():
            plain, truth = penalty(inputs, names), penalty(compare.in_float64(inputs), names)
        for i, versions in enumerate(zip(ours, plain, truth, strict=True)):
            compare.check(f"{case.name}, result {i}", *versions, case, dtype)
    assert len(alone) == 2


def layer(**more):
    draw = torch.Generator().manual_seed(0)
    normal = lambda *shape: torch.randn(shape, generator=draw, dtype=torch.float64)
    inputs = {"x": normal(2, 3, 5, 4), "weight": normal(4, 3, 3, 3), "styles": normal(2, 3)}
    inputs = {name: t.requires_grad_() for name, t in inputs.items()}
    more = {"padding": 1, "bias": normal(4), "activation": "lrelu", "clamp": 3.0} | more
    return inputs | more | {"noise": normal(2, 1, 5, 4)}


def spoil(dx, ds):
    dx.detach().zero_()


@pytest.mark.parametrize(
    "way",
    [{"zero": True}, {"change": spoil}, {"again": True}, {}],
    ids=["zero", "changed", "again", "read"],
)
def test_dz_is_computed_where_it_cannot_be_read_from_dx(way, alone):
    """A style of 0; a gradient that was changed in place; a graph that is used twice."""
    inputs, way = layer(), dict(way)
    if way.pop("zero", False):
        with torch.no_grad():
            inputs["styles"][0, 1] = 0
    with compare.plain():
        expected = penalty(inputs, ("x", "styles"))
    for a, b in zip(penalty(inputs, ("x", "styles"), **way), expected, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("demodulate", [True, False])
def test_only_what_is_asked_for(demodulate, alone):
    """Every subset of gradients is the one of all."""
    inputs = layer(demodulate=demodulate)
    sources = [inputs[name] for name in ("x", "weight", "styles")]

    def found(asked):
        y = modulated_conv2d(**inputs)
        first = torch.autograd.grad(y.square().sum(), (sources[0], sources[2]), create_graph=True)
        total = sum(g.square().sum() for g in first)
        return torch.autograd.grad(total, asked, materialize_grads=True)

    whole = found(sources)
    for some in itertools.product([True, False], repeat=3):
        if any(some):
            chosen = lambda ts, some=some: [t for t, s in zip(ts, some, strict=True) if s]
            for a, b in zip(found(chosen(sources)), chosen(whole), strict=True):
                torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
