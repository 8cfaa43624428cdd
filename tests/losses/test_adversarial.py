"""The non-saturating logistic loss, by hand."""

import math

import pytest
import torch

from rwm_fast.losses import fake_loss, generator_loss, real_loss

softplus = lambda t: math.log1p(math.exp(t))


@pytest.mark.parametrize("shape", [(2,), (1, 2), (2, 1)])  # images, patches
def test_values_by_hand(shape):
    logits = torch.tensor([0.0, 2.0], dtype=torch.float64).view(shape)
    assert real_loss(logits).item() == pytest.approx((math.log(2) + softplus(-2)) / 2, abs=1e-15)
    assert fake_loss(logits).item() == pytest.approx((math.log(2) + softplus(2)) / 2, abs=1e-15)
    assert generator_loss(logits).item() == pytest.approx(
        (math.log(2) + softplus(-2)) / 2, abs=1e-15
    )


def test_generator_gradient_does_not_saturate_where_the_discriminator_is_sure():
    """d softplus(-t)/dt = -1/(1 + exp(t)): about -1 at t = -20, where log(1 - D) would give 0."""
    logits = torch.tensor([-20.0], dtype=torch.float64, requires_grad=True)
    generator_loss(logits).backward()
    assert logits.grad.item() == pytest.approx(-1 / (1 + math.exp(-20)), abs=1e-15)


def test_sides_pull_apart():
    logits = torch.zeros(4, requires_grad=True)
    real = torch.autograd.grad(real_loss(logits), logits)[0]
    fake = torch.autograd.grad(fake_loss(logits), logits)[0]
    assert torch.equal(real, torch.full((4,), -0.125))
    assert torch.equal(fake, torch.full((4,), 0.125))


def test_large_logits_stay_finite():
    logits = torch.tensor([-1e4, 1e4])
    assert real_loss(logits).item() == 5e3
    assert fake_loss(logits).item() == 5e3
