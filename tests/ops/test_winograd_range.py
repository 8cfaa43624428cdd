"""Where Winograd's algorithm would spread an outlier, the definition convolves."""

import math

import pytest
import torch
import torch.nn.functional as F

from rwm_fast import modulated_conv2d
from rwm_fast.ops import _extension
from rwm_fast.ops.modulated_conv2d.cpu import winograd

pytestmark = pytest.mark.skipif(_extension.cpu() is None, reason="not built")
SIDE, CHANNELS = 24, 16


def _inputs(dtype=torch.float32):
    source = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(shape, generator=source, dtype=dtype)
    return draw(2, CHANNELS, SIDE, SIDE), draw(CHANNELS, CHANNELS, 3, 3), draw(2, CHANNELS)


def _both(x, weight, styles):
    """Ours, and torch's convolution."""
    ours = modulated_conv2d(x, weight, styles, padding=1, demodulate=False)
    return ours, F.conv2d(x * styles[:, :, None, None], weight, padding=1)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 3e38])
def test_what_is_not_finite_reaches_nine_pixels(value):
    x, weight, styles = _inputs()
    x[0, 0, 5, 5] = value
    ours, torchs = _both(x, weight, styles)
    for kind in (torch.isnan, torch.isposinf, torch.isneginf):
        assert torch.equal(kind(ours), kind(torchs))
    assert (~ours.isfinite()).any(1).sum() <= 9


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite(value):
    x, weight, styles = _inputs()
    weight[3, 0, 1, 1] = value
    ours, torchs = _both(x, weight, styles)
    assert torch.equal(ours.isnan(), torchs.isnan()) and torch.equal(ours.isinf(), torchs.isinf())


def _beyond(result, truth, radius=1):
    """Largest error where one value at (5, 5) does not reach, of the size of what is there."""
    far = torch.ones(SIDE, SIDE, dtype=bool)
    far[5 - radius : 6 + radius, 5 - radius : 6 + radius] = False
    return (result - truth).abs()[0][:, far].max() / truth.abs()[0][:, far].mean()


@pytest.mark.parametrize("value", [1e2, 1e4, 1e6, 1e12])
def test_an_outlier_is_not_felt_beyond_its_reach(value):
    """Forward, and as a gradient backward: within 1e-3 of the mean size, as said in winograd.py;
    within the definition's rounding where the range asks for the definition."""
    # four roundings of a sum of n terms, √n in the mean
    exact = 4 * (9 * CHANNELS) ** 0.5 * torch.finfo(torch.float32).eps
    allowed = 1e-3 if value < winograd.MOST_UNEVEN else exact
    x, weight, styles = _inputs()
    dy = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    for spoiled in (x, dy):
        kept, spoiled[0, 0, 5, 5] = spoiled[0, 0, 5, 5].clone(), value
        results = []
        for dtype in (torch.float32, torch.float64):
            leaf, w, s, g = (t.to(dtype, copy=True) for t in (x, weight, styles, dy))
            leaf.requires_grad_()
            y = _both(leaf, w, s)[dtype == torch.float64]
            results.append((y.detach(), torch.autograd.grad(y, leaf, g)[0]))
        (y, dx), (true_y, true_dx) = results
        assert _beyond(y, true_y) <= allowed and _beyond(dx, true_dx) <= allowed
        spoiled[0, 0, 5, 5] = kept


def test_even_numbers_go_by_winograd(monkeypatch):
    """The check does not cost the algorithm; RWM_FAST_EXACT does."""
    inputs, ran = _inputs(), []
    forward = winograd.forward
    monkeypatch.setattr(winograd, "forward", lambda *a: ran.append("winograd") or forward(*a))
    _both(*inputs)
    assert ran == ["winograd"]
    monkeypatch.setattr(winograd, "enabled", False)
    _both(*inputs)
    assert ran == ["winograd"]
