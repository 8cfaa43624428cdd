"""A result that nothing backward reads may be changed in place, as that of torch's convolution;
another is refused by autograd, never answered wrongly."""

import pytest
import torch

from rwm_fast import bias_act, conv2d_bias_act, conv2d_resample, modulated_conv2d, upfirdn2d

X, W = torch.randn(2, 3, 5, 4, dtype=torch.float64), torch.randn(4, 3, 3, 3, dtype=torch.float64)
TAPS = torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=torch.float64) / 8
STYLES = torch.randn(2, 3, dtype=torch.float64)
LINEAR = {
    "conv2d_bias_act": lambda x: conv2d_bias_act(x, W, torch.ones(4).double(), padding=1, gain=0.5),
    "halved": lambda x: conv2d_bias_act(x, W, padding=1, down=2, resample_filter=TAPS),
    "conv2d_resample": lambda x: conv2d_resample(x, W, TAPS, up=2, padding=1),
    "to_rgb": lambda x: modulated_conv2d(x, W, STYLES, demodulate=False, padding=1),
    "upfirdn2d": lambda x: upfirdn2d(x, TAPS, up=2, padding=1),
    "bias_act": lambda x: bias_act(x, torch.ones(3).double(), gain=0.5),
}
BENT = {
    "conv2d_bias_act": lambda x: conv2d_bias_act(x, W, padding=1, activation="lrelu"),
    "modulated_conv2d": lambda x: modulated_conv2d(x, W, STYLES, padding=1, activation="lrelu"),
    "bias_act": lambda x: bias_act(x, activation="lrelu"),
    "clamped": lambda x: bias_act(x, clamp=1.0),
}


def _penalty(x, function, change):
    y = function(x)
    y = y.mul_(2) if change else y * 2
    (g,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    return torch.autograd.grad(g.square().sum(), x)[0]


@pytest.mark.parametrize("name", LINEAR)
def test_changed_in_place(name):
    x = X.clone().requires_grad_()
    found, expected = (_penalty(x, LINEAR[name], change) for change in (True, False))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", BENT)
def test_refused(name):
    x = X.clone().requires_grad_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        BENT[name](x).mul_(2).sum().backward()
