"""modulated_conv2d in half precision where activations, weights and styles are large, or tiny.

In float16 their plain products overflow. Results and gradients of both orders must be finite and
within rounding of float64, whatever the size of the styles, and with an ε that counts.
"""

import pytest
import torch
from grid import ROWS, on_backend

from rwm_fast import modulated_conv2d
from rwm_fast.testing import compare
from rwm_fast.testing.cases import modulated_conv2d as made
from rwm_fast.testing.cases import new

OP = "modulated_conv2d"
SHAPE, OUTPUTS = (2, 64, 6, 5), 8
LAYERS = {
    "same": {"bias": True, "noise": "each"},
    "pointwise": {"kernel": 1},
    "up2": made.UP,
    "down2": made.DOWN,
    "regions": {"styles": 2, "regions": made._regions(2, 9, 8)},
}
# styles, weights, ε beside Σ(W·s)²: as drawn, of 3, times 10,000; ε as large as the sum it is
# added to, and all styles below what float16 holds
SIZES = {
    "3": (3.0, 1.0, 1e-8),
    "30000": (30_000.0, 1.0, 1e-8),
    "large_weights": (3.0, 1e4, 1e-8),
    "tiny": (1e-3, 1.0, 5e-4),
    "below_float16": (1e-9, 1.0, 0.0),
}
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}
by_row = pytest.mark.parametrize("row", [row for row in ROWS if row.op == OP], ids=str)
by_layer = pytest.mark.parametrize("layer", LAYERS)
by_layer_and_size = pytest.mark.parametrize(
    ("layer", "size"),
    [(x, y) for x in LAYERS for y in SIZES if x == "same" or y in ("3", "30000")],
)
by_dtype = pytest.mark.parametrize("dtype", DTYPES)


def _case(layer, size):
    """x of N(0, 256²) cut at 256; the weights are N(0, 1) times their size."""
    styles, weights, eps = SIZES[size]
    fields = LAYERS[layer]
    fan_in = SHAPE[1] * fields.get("kernel", 3) ** 2
    scales = (256.0, weights * fan_in**0.5, styles)
    more = {"scales": scales, "kept": made.PARAMETERS, "eps": eps}
    return new(OP, f"{layer}_{size}", SHAPE, OUTPUTS, **fields, **more)


def _inputs(case, dtype, device):
    inputs = case.inputs(dtype, "contiguous", device)
    inputs["x"] = inputs["x"].detach().clamp(-256, 256).requires_grad_()
    return inputs


def _like(x, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x)


def _results(op, inputs, dy):
    """Output, gradients, and gradients of those, each weighed by numbers of its argument's size."""
    seconds = [
        _like(x, i + 1) * x.detach().double().square().mean().sqrt().to(x.dtype)
        for i, x in enumerate(compare.leaves(inputs))
    ]
    first = compare.first_order(op, inputs, dy)
    return [*first, *compare.second_order(op, inputs, dy, seconds)]


def _check(case, dtype, found, truth):
    """The error rule without a plain version: rounding at the largest number of a result."""
    for i, (ours, exact) in enumerate(zip(found, truth, strict=True)):
        assert ours.isfinite().all(), f"{case.name}, result {i}"
        compare.check(f"{case.name}, result {i}", ours, exact.to(ours.dtype), exact, case, dtype)


@by_layer_and_size
@by_dtype
@by_row
def test_both_orders_are_finite_and_near_float64(row, dtype, layer, size):
    case, dtype = _case(layer, size), DTYPES[dtype]
    inputs = _inputs(case, dtype, row.device)
    with on_backend(row, inputs):
        dy = _like(compare.call(OP, inputs).detach(), 0) / 32
        found = _results(OP, inputs, dy)
    with compare.plain():
        truth = _results(OP, compare.in_float64(inputs), dy.double())
    _check(case, dtype, found, truth)


@by_layer
def test_the_plain_reference_too(layer):
    """What torch.func follows."""
    case = _case(layer, "30000")
    inputs = _inputs(case, torch.float16, "cpu")
    with compare.plain():
        dy = _like(compare.call(OP, inputs).detach(), 0) / 32
        found = _results(OP, inputs, dy)
        truth = _results(OP, compare.in_float64(inputs), dy.double())
    _check(case, torch.float16, found, truth)


def _layer(styles=30_000.0):
    """x float16, weight and styles float32."""
    inputs = _inputs(_case("same", "3"), torch.float16, "cpu")
    return inputs["x"].detach(), inputs["weight"].detach(), inputs["styles"].detach() / 3 * styles


def test_torch_func_follows():
    x, weight, styles = _layer()
    loss = lambda w, s: modulated_conv2d(x, w, s, padding=1).float().square().mean()
    found = torch.func.grad(loss, (0, 1))(weight, styles)
    leaves = [t.clone().requires_grad_() for t in (weight, styles)]
    expected = torch.autograd.grad(loss(*leaves), leaves)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-2, atol=2e-3 * float(b.abs().max()))
    each = lambda s: modulated_conv2d(x, weight, s, padding=1)
    batched = torch.func.vmap(each)(torch.stack([styles, styles / 1e8]))
    assert batched.isfinite().all()
    torch.testing.assert_close(batched[0], batched[1], rtol=2e-3, atol=1.0)


@pytest.mark.parametrize("cleared", ["weight", "styles"])
def test_nothing_to_normalise(cleared):
    """A channel without weights, an image without style: the result is 0 and its gradients too."""
    x, weight, styles = _layer()
    weight, styles = (t.clone() for t in (weight, styles))
    (weight if cleared == "weight" else styles)[0] = 0
    leaves = [t.requires_grad_() for t in (x, weight, styles)]
    y = modulated_conv2d(*leaves, padding=1)
    assert not (y[:, 0] if cleared == "weight" else y[0]).any()
    assert all(g.isfinite().all() for g in torch.autograd.grad(y.float().mean(), leaves))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("place", [0, 1, 2], ids=["x", "weight", "styles"])
def test_what_is_not_finite_shows(place, value):
    tensors = [t.clone() for t in _layer()]
    tensors[place].view(-1)[0] = value
    y = modulated_conv2d(*tensors, padding=1)
    assert not y[0, 0].isfinite().all()
    assert y[1, 1].isfinite().all()


@pytest.mark.parametrize("other", [torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_autocast_keeps_the_range_of_other_arguments(other):
    """Styles beyond float16 beside a float16 image."""
    x, weight, styles = _layer(1e6)
    weight, styles = weight.to(other).requires_grad_(), styles.to(other).requires_grad_()
    assert styles.abs().max() > torch.finfo(torch.float16).max
    with torch.autocast("cpu", torch.float16):
        y = modulated_conv2d(x, weight, styles, padding=1)
        grads = torch.autograd.grad(y.float().mean(), (weight, styles))
    assert y.dtype == torch.float16 and [g.dtype for g in grads] == [other] * 2
    exact = modulated_conv2d(x.double(), weight.double(), styles.double(), padding=1)
    # operands and result are rounded to 2^-11
    assert (y - exact).abs().max() <= 4 * 2**-11 * exact.abs().max()
    assert all(g.isfinite().all() for g in grads)
