"""R1, by hand and against finite differences."""

import pytest
import torch

from rwm_fast.losses import r1_penalty

F64 = torch.float64


def test_linear_discriminator_by_hand():
    """D(x) = w.x: the gradient is w at every picture, so the penalty is |w|^2 = 25."""
    w = torch.tensor([3.0, 4.0], dtype=F64)
    x = torch.randn(7, 2, dtype=F64, requires_grad=True)
    assert r1_penalty(x @ w, x).item() == 25.0


def test_quadratic_discriminator_by_hand():
    """D(x) = |x|^2/2: the gradient is x, so the penalty is the mean of |x|^2, its gradient 2x/N."""
    x = torch.tensor([[1.0, 2.0], [3.0, 0.0]], dtype=F64, requires_grad=True)
    penalty = r1_penalty(x.square().sum(1) / 2, x)
    assert penalty.item() == (5 + 9) / 2
    (upwards,) = torch.autograd.grad(penalty, x)
    assert torch.equal(upwards, x.detach())


def test_patches_of_one_picture_count_together_and_inputs_add_up():
    """[N, P, ...]: the norm is over all P patches of a picture; two inputs are summed."""
    a = torch.randn(3, 4, 2, dtype=F64, requires_grad=True)
    b = torch.randn(3, 4, 2, dtype=F64, requires_grad=True)
    logits = 2 * a.sum(2) - b.sum(2)  # [N, P]
    assert r1_penalty(logits, a, b).item() == 8 * 4 + 8 * 1


def test_gradient_to_the_weights_is_right():
    """d penalty/dw of a small nonlinear discriminator against central differences."""
    torch.manual_seed(0)
    w = torch.randn(6, dtype=F64, requires_grad=True)
    x = torch.randn(4, 6, dtype=F64, requires_grad=True)
    penalty = lambda w: r1_penalty(torch.tanh(x @ w), x)
    assert torch.autograd.gradcheck(penalty, (w,))


def test_without_graph_it_is_a_number():
    w = torch.randn(2, dtype=F64, requires_grad=True)
    x = torch.randn(3, 2, dtype=F64, requires_grad=True)
    assert r1_penalty(torch.tanh(x @ w), x, create_graph=True).requires_grad
    assert not r1_penalty(torch.tanh(x @ w), x, create_graph=False).requires_grad


def test_no_input_is_refused():
    with pytest.raises(ValueError, match="r1_penalty: give at least one input"):
        r1_penalty(torch.zeros(2, requires_grad=True))
