"""What a penalty on gradients gives to parameters that are only added: nothing, or zeros."""

import pytest
import torch
import torch.nn.functional as F

from rwm_fast import absent_gradients, bias_act, conv2d_bias_act, modulated_conv2d, use_backend
from rwm_fast.ops import _extension, _registry

BACKENDS = ("native", "eager") if _extension.cpu() else ("eager",)
ADDED = {"noise", "strength", "bias", "last_bias", "dense_bias"}
SHAPES = {
    "style": (2, 4), "weight": (3, 4, 3, 3), "noise": (1, 1, 5, 6), "strength": (), "bias": (3,),
    "last": (2, 3, 3, 3), "last_bias": (2,), "dense": (7, 60), "dense_bias": (7,),
}  # fmt: skip


def _normal(*shape, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def _ours(x, p):
    """A styled layer, a plain one, a dense one."""
    y = modulated_conv2d(
        x, p["weight"], p["style"], p["noise"], padding=1, noise_strength=p["strength"],
        bias=p["bias"], activation="lrelu",
    )  # fmt: skip
    y = conv2d_bias_act(y, p["last"], p["last_bias"], padding=1, activation="lrelu")
    return bias_act(y.flatten(1) @ p["dense"].t(), p["dense_bias"], activation="lrelu")


def _torch(x, p):
    """The same by torch's own functions."""
    act = lambda v: F.leaky_relu(v, 0.2) * 2**0.5
    norm = (p["weight"][None] * p["style"][:, None, :, None, None]).square().sum((2, 3, 4)) + 1e-8
    u = F.conv2d(x * p["style"][:, :, None, None], p["weight"], padding=1)
    v = u * norm.rsqrt()[:, :, None, None] + p["noise"] * p["strength"]
    y = act(v + p["bias"].view(1, -1, 1, 1))
    y = act(F.conv2d(y, p["last"], p["last_bias"], padding=1))
    return act(F.linear(y.flatten(1), p["dense"], p["dense_bias"]))


def _gradients(network):
    """Of R1 and path length in one."""
    p = {n: _normal(*shape, seed=i).requires_grad_() for i, (n, shape) in enumerate(SHAPES.items())}
    x = _normal(2, 4, 5, 6, seed=20).requires_grad_()
    total = (network(x, p) * _normal(2, 7, seed=21)).sum()
    grads = torch.autograd.grad(total, (x, p["style"]), create_graph=True)
    sum(g.square().mean() for g in grads).backward()
    return {name: t.grad for name, t in p.items()}


@pytest.fixture(params=BACKENDS)
def backend(request):
    with use_backend(request.param):
        yield


@pytest.fixture(params=["straight", "registered"])
def way(request, monkeypatch):
    if request.param == "registered":
        monkeypatch.setattr(_registry, "is_plain", lambda tensors: False)


@pytest.mark.usefixtures("backend", "way")
def test_zeros_where_plain_torch_gives_zeros():
    with absent_gradients("zeros"):
        found = _gradients(_ours)
    expected = _gradients(_torch)
    assert torch.cat([g.flatten() for g in found.values()]).numel()
    for name, g in found.items():
        torch.testing.assert_close(g, expected[name])
        assert bool(g.any()) == (name not in ADDED)


@pytest.mark.usefixtures("backend")
def test_nothing_by_default():
    assert {name for name, g in _gradients(_ours).items() if g is None} == ADDED


@pytest.mark.usefixtures("backend")
def test_a_linear_convolution_s_bias():
    x, w = _normal(1, 2, 4, 4, seed=1).requires_grad_(), _normal(3, 2, 3, 3, seed=2)
    bias = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    with absent_gradients("zeros"):
        y = conv2d_bias_act(x, w.requires_grad_(), bias)
        (dx,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        dx.square().sum().backward()
    assert torch.equal(bias.grad, torch.zeros(3, dtype=torch.float64)) and w.grad.any()


def test_first_order_and_third():
    """Zeros are added, whatever else arrives."""
    bias = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    x = _normal(2, 3, 5, seed=1).requires_grad_()
    with absent_gradients("zeros"):
        y = bias_act(x, bias, activation="lrelu").pow(3).sum()
        assert torch.autograd.grad(y, bias, retain_graph=True)[0].any()
        dx, db = torch.autograd.grad(y, (x, bias), create_graph=True)
        second = torch.autograd.grad(dx.pow(2).sum() + db.sum(), (x, bias), create_graph=True)
        third = torch.autograd.grad(second[0].sum(), (x, bias))
    y = (F.leaky_relu(x + bias.view(3, 1), 0.2) * 2**0.5).pow(3).sum()
    dx, db = torch.autograd.grad(y, (x, bias), create_graph=True)
    expected = torch.autograd.grad(dx.pow(2).sum() + db.sum(), (x, bias), create_graph=True)
    torch.testing.assert_close(second, expected)
    torch.testing.assert_close(third, torch.autograd.grad(expected[0].sum(), (x, bias)))


def test_setter_and_block():
    assert not absent_gradients.zeros
    with absent_gradients("zeros"):
        assert absent_gradients.zeros
        with absent_gradients("none"):
            assert not absent_gradients.zeros
        assert absent_gradients.zeros
    absent_gradients("zeros")
    assert absent_gradients.zeros
    absent_gradients("none")
    assert not absent_gradients.zeros
    with pytest.raises(ValueError, match="kind must be 'none' or 'zeros', got 'zero'"):
        absent_gradients("zero")
