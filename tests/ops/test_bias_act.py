"""What is particular to bias_act: its rules at the kinks, what it saves, higher orders."""

import pytest
import torch

from rwm_fast import bias_act, conv2d_bias_act, modulated_conv2d


def test_hand_worked_values():
    x = torch.tensor([[-2.0, 1.0], [0.5, 3.0]])
    y = bias_act(x, torch.tensor([1.0, -1.0]), activation="lrelu", gain=2.0, clamp=3.0)
    torch.testing.assert_close(y, torch.tensor([[-0.4, 0.0], [3.0, 3.0]]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_slope_at_the_kinks(dtype):
    """The slope at 0 is the negative side's; at and beyond the clamp it is 0."""
    # no clamp below is a number of float16 or bfloat16: it is rounded with the result
    for clamp in (0.1, 0.3, 0.7):
        x = torch.tensor([[0.0, -0.0, 9.0, -9.0, clamp, 0.5 * clamp, -0.5 * clamp]], dtype=dtype)
        x.requires_grad_()
        y = bias_act(x, activation="lrelu", gain=1.0, clamp=clamp)
        y.sum().backward()
        expected = torch.tensor([[0.2, 0.2, 0, 0, 0, 1, 0.2]], dtype=dtype)
        assert torch.equal(x.grad, expected)
        assert y.abs().max() == torch.tensor(clamp, dtype=dtype)


def test_the_field_s_defaults():
    """A bias and nothing else; an activation comes with its own gain, in all that have one."""
    x, bias = torch.randn(2, 3, 4, 5), torch.randn(3)
    shifted = x + bias.view(3, 1, 1)
    assert torch.equal(bias_act(x, bias), shifted)
    assert torch.equal(bias_act(x, bias, clamp=0.5), shifted.clamp(-0.5, 0.5))
    expected = torch.nn.functional.leaky_relu(shifted, 0.2) * 2**0.5
    torch.testing.assert_close(bias_act(x, bias, activation="lrelu"), expected)
    one = torch.eye(3).view(3, 3, 1, 1)
    for layer in (
        lambda **more: conv2d_bias_act(x, one, bias, **more),
        lambda **more: modulated_conv2d(
            x, one, torch.ones(2, 3), bias=bias, demodulate=False, **more
        ),
    ):
        torch.testing.assert_close(layer(), shifted)
        torch.testing.assert_close(layer(activation="lrelu"), expected)


def test_slope_zero_is_relu():
    x = torch.tensor([[-1.0, 2.0, 0.0]], requires_grad=True)
    y = bias_act(x, activation="lrelu", negative_slope=0.0, gain=3.0)
    y.sum().backward()
    assert torch.equal(y, torch.tensor([[0.0, 6.0, 0.0]]))
    assert torch.equal(x.grad, torch.tensor([[0.0, 3.0, 0.0]]))


def test_not_a_number_stays():
    y = bias_act(torch.tensor([[float("nan"), float("inf"), -float("inf")]]), clamp=2.0)
    assert y[0, 0].isnan() and torch.equal(y[0, 1:], torch.tensor([2.0, -2.0]))


def test_half_precision_is_rounded_once():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 8, 16, generator=generator).bfloat16()
    bias = torch.randn(8, generator=generator)
    expected = bias_act(x.double(), bias.double(), activation="lrelu").bfloat16()
    different = bias_act(x, bias, activation="lrelu") != expected
    # float32 inside: another rounding needs a value within 2⁻¹⁶ of the middle of two
    assert different.float().mean() < 0.01


def test_bias_gradient_is_summed_in_float32():
    """4096 times 1 in bfloat16 alone would stop at 256."""
    x = torch.zeros(1, 2, 64, 64, dtype=torch.bfloat16)
    for dtype in (torch.bfloat16, torch.float32):
        bias = torch.ones(2, dtype=dtype, requires_grad=True)
        bias_act(x, bias).sum().backward()
        assert bias.grad.dtype == dtype and torch.equal(bias.grad, bias.new_full((2,), 4096))


@pytest.mark.parametrize(
    ("settings", "saved"),
    [({}, 0), ({"clamp": 1.0}, 1), ({"activation": "lrelu"}, 1)],
)
def test_saves_only_what_the_derivative_reads(settings, saved):
    x = torch.ones(2, 3, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(kept.append, lambda t: t):
        bias_act(x, **settings)
    assert len(kept) == saved


@pytest.mark.parametrize("clamp", [None, 0.9])
def test_third_order(clamp):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(3, generator=generator, dtype=torch.float64, requires_grad=True)

    def second(x, bias):
        y = bias_act(x, bias, activation="lrelu", clamp=clamp)
        first = torch.autograd.grad(y.pow(3).sum(), (x, bias), create_graph=True)
        total = sum(g.square().sum() for g in first)
        return torch.autograd.grad(total, (x, bias), create_graph=True)

    assert torch.autograd.gradcheck(second, (x, bias))
