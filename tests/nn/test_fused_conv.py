"""Plain convolutions through the modulated layer's kernels, where that is faster."""

from unittest import mock

import pytest
import torch
import torch.nn.functional as F

from rwm_fast import use_backend
from rwm_fast.nn.layers import EqualConv2d
from rwm_fast.ops import _extension
from rwm_fast.ops import conv2d_bias_act as plain

EPS = torch.finfo(torch.float32).eps
pytestmark = pytest.mark.skipif(
    _extension.cpu() is None, reason=f"no C++ module: {_extension.why_not_cpu()}"
)
LAYERS = {
    "lrelu": dict(activation="lrelu"),
    "linear": dict(),
    "no bias": dict(bias=False),
    "gain": dict(activation="lrelu", activation_gain=1.0),
}


def first_and_second(layer, x):
    """y, dx, the weights' gradients, and the gradients of |dx|²."""
    x = x.clone().requires_grad_()
    parameters = list(layer.parameters())
    y = layer(x)
    dx, *dp = torch.autograd.grad(y.square().sum(), (x, *parameters), create_graph=True)
    second = torch.autograd.grad(dx.square().sum(), layer.weight)
    return [y.detach(), dx.detach(), *(d.detach() for d in dp), *second]


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("size", [(32, 32), (31, 37)], ids=str)
def test_equals_the_definition(kind, size, monkeypatch):
    torch.manual_seed(0)
    layer, x = EqualConv2d(16, 24, 3, **LAYERS[kind]), torch.randn(8, 16, *size)
    if layer.bias is not None:
        torch.nn.init.normal_(layer.bias)
    took = []
    faster = plain._modulated_is_faster
    with monkeypatch.context() as patch:
        patch.setattr(plain, "_modulated_is_faster", lambda *a: took.append(faster(*a)) or took[-1])
        ours = first_and_second(layer, x)
    assert took == [True]
    monkeypatch.setattr(plain, "_modulated_is_faster", lambda *arguments: False)
    torch_s = first_and_second(layer, x)
    truth = first_and_second(layer.double(), x.double())
    for a, b, t in zip(ours, torch_s, truth, strict=True):
        largest = t.abs().max()
        # Winograd's transforms cost a few more roundings than the definition: 16 eps, or as close
        # as torch's own convolution comes
        allowed = max(16 * EPS * largest, 2 * (b - t).abs().max())
        assert (a - t).abs().max() <= allowed


def test_which_layers_are_fused():
    x, taps = torch.randn(8, 16, 16, 16), (1, 3, 3, 1)
    halving = EqualConv2d(16, 16, 3, down=2, resample_filter=taps)
    layers = [
        *(EqualConv2d(16, 16, k) for k in (1, 3, 5)),
        EqualConv2d(16, 16, 3, padding="none"),
        EqualConv2d(16, 16, 3, down=2, padding="none"),
        EqualConv2d(16, 16, 1, down=2, resample_filter=taps),
        halving,
    ]
    assert all(fused(layer, x) for layer in layers)
    assert not fused(halving, x.half())
    with use_backend("eager"):
        assert not any(fused(layer, x) for layer in layers)


def fused(layer, x):
    """Whether the layer runs as a modulated one."""
    with mock.patch.object(
        plain, "_modulated_is_faster", wraps=plain._modulated_is_faster
    ) as asked:
        with mock.patch.object(plain, "modulated_conv2d", return_value=None) as called:
            with mock.patch.object(plain.reference, "conv2d_bias_act", return_value=x):
                layer(x)
    assert asked.call_count == 1
    return called.called


@pytest.mark.parametrize("down", [1, 2])
@pytest.mark.parametrize("taps", [None, (1, 2, 1), (1, 3, 3, 1), (1, 4, 6, 4, 1)], ids=str)
@pytest.mark.parametrize("kernel, padding", [(1, "zeros"), (3, "zeros"), (3, "reflect")])
@pytest.mark.parametrize("size", [(8, 9), (7, 6)], ids=str)
def test_borders_are_those_of_the_definition(down, taps, kernel, padding, size, monkeypatch):
    """Also where no filter, or one of an odd length, moves the image by half a pixel."""
    if down == 1 and taps is not None:
        pytest.skip("a filter goes with a halving")
    layer = EqualConv2d(8, 8, kernel, down=down, resample_filter=taps, padding=padding)
    x = torch.randn(2, 8, *size)
    ours = layer(x)
    monkeypatch.setattr(plain, "_modulated_is_faster", lambda *arguments: False)
    torch.testing.assert_close(ours, layer(x), rtol=1e-4, atol=1e-5)


def test_reflected_borders_are_kept():
    layer, x = EqualConv2d(16, 16, 3, padding="reflect"), torch.randn(2, 16, 16, 16)
    expected = F.conv2d(F.pad(x, [1] * 4, mode="reflect"), layer.weight * layer.gain, layer.bias)
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)
