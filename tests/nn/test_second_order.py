"""R1's second half: exact, to any order, and no more convolutions than it needs."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from rwm_fast import modulated_conv2d, use_backend
from rwm_fast.losses import r1_penalty
from rwm_fast.nn.layers import EqualConv2d
from rwm_fast.ops import _extension
from rwm_fast.ops.modulated_conv2d import eager, torch_convolution
from rwm_fast.ops.modulated_conv2d.cpu import winograd

LOW_PASS = torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=torch.float64) / 8
LAYERS = {
    "lrelu": dict(activation="lrelu", gain=1.4),
    "linear": dict(),
    "clamp": dict(activation="lrelu", clamp=1.0),
    "up": dict(up=2, resample_filter=LOW_PASS, flip_weight=False, activation="lrelu"),
    "down": dict(down=2, resample_filter=LOW_PASS, activation="lrelu"),
}
BACKENDS = ("native", "eager") if _extension.cpu() else ("eager",)


def _normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()


def _layer(settings):
    styles = torch.full((1, 3), 0.7, dtype=torch.float64)
    settings = {"padding": 1, "demodulate": False, **settings}
    return lambda x, weight, bias: modulated_conv2d(x, weight, styles, bias=bias, **settings)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", LAYERS)
def test_a_layer_with_constant_styles(kind, backend, monkeypatch):
    """Second and third order, without the derivative of the general formula."""

    def never(*arguments):
        raise AssertionError("the general formula ran")

    if backend != "eager":  # whose first derivative it is
        monkeypatch.setattr(eager, "gradients", never)
    inputs = _normal(1, 3, 3, 4, seed=1), _normal(2, 3, 3, 3, seed=2), _normal(2, seed=3)
    function = _layer(LAYERS[kind])
    with use_backend(backend):
        assert gradcheck(function, inputs)
        assert gradgradcheck(function, inputs)

        def slope(*inputs):
            y = function(*inputs)
            return torch.autograd.grad(y.square().sum(), inputs, create_graph=True)

        assert gradgradcheck(slope, inputs, fast_mode=True)


@pytest.fixture
def calls(monkeypatch):
    """The convolutions that R1 asks for: by whom, and which gradients, or None; in order."""
    noted, forward, gradients = [], winograd.forward, winograd.gradients
    backward = torch_convolution.convolution_backward
    asked = lambda needs: tuple(i for i, need in enumerate(needs) if need)

    def note_forward(*arguments):
        noted.append(("winograd", None))
        return forward(*arguments)

    def note_gradients(layer, du, scale, needs):
        noted.append(("winograd", asked(needs)))
        return gradients(layer, du, scale, needs)

    def note(*arguments):
        noted.append(("torch", asked(arguments[-1])))
        return backward(*arguments)

    monkeypatch.setattr(winograd, "forward", note_forward)
    monkeypatch.setattr(winograd, "gradients", note_gradients)
    monkeypatch.setattr(torch_convolution, "convolution_backward", note)
    return noted


def _r1(layers, x):
    x = x.requires_grad_()
    r1_penalty(layers(x).flatten(1).sum(1), x).backward()
    return [p.grad for p in layers.parameters() if p.grad is not None]


def _two_layers(side):
    torch.manual_seed(0)
    layers = [EqualConv2d(8, 8, 3, activation="lrelu", bias=False) for _ in range(2)]
    return torch.nn.Sequential(*layers), torch.randn(4, 8, side, side)


@pytest.mark.skipif(not _extension.cpu(), reason="no C++ module")
def test_fused_layers_run_no_more_than_they_must(calls):
    """Forward, input gradient, and of that the weight gradient and one convolution, which the last
    layer spares. Not a weight gradient in the first half, nor zeros handed down in the second.
    """
    layers, x = _two_layers(32)
    _r1(layers, x)
    ours = [needs for by, needs in calls if by == "winograd"]
    assert sorted(ours, key=str) == sorted([None] * 3 + [(0,)] * 2 + [(1,)] * 2, key=str)


def test_torch_s_convolutions_run_no_more_than_they_must(calls):
    layers, x = _two_layers(32)
    with use_backend("eager"):
        _r1(layers, x)
    ours = [needs for by, needs in calls if by == "torch"]
    assert sorted(ours) == [(0,)] * 2 + [(1,)] * 2


@pytest.mark.parametrize("side", [8, 32])
def test_penalty_s_gradient_equals_float64(side):
    layers, x = _two_layers(side)
    ours = _r1(layers, x)
    layers.zero_grad()
    truth = _r1(layers.double(), x.detach().double())
    assert len(ours) == len(truth) == 2
    for a, t in zip(ours, truth, strict=True):
        # eight convolutions of 72 terms behind one another, each term rounded twice
        allowed = 2 * (8 * 72) ** 0.5 * torch.finfo(torch.float32).eps * t.abs().max()
        assert (a - t).abs().max() <= allowed
