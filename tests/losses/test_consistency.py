"""Code consistency, by hand, and where its gradient goes."""

import pytest
import torch

from rwm_fast.losses import code_consistency

F64 = torch.float64


def test_values_by_hand():
    content = torch.tensor([[[[1.0, 0.0]], [[0.0, 1.0]]]], dtype=F64)  # [1, 2, 1, 2]
    target = torch.tensor([[[[0.0, 0.0]], [[0.0, -1.0]]]], dtype=F64)
    style, style_target = torch.tensor([[3.0, 0.0]]), torch.tensor([[1.0, 0.5]])
    loss = code_consistency(content, style, target, style_target, style_lambda=16.0)
    assert loss.content.item() == (1 + 0 + 0 + 2) / 4
    assert loss.style.item() == (2 + 0.5) / 2
    assert loss.total.item() == 0.75 + 16 * 1.25


def test_targets_get_no_gradient():
    torch.manual_seed(0)
    codes = [torch.randn(2, 3, 4, 4, requires_grad=True), torch.randn(2, 5, requires_grad=True)]
    targets = [torch.randn_like(c).requires_grad_() for c in codes]
    code_consistency(*codes, *targets, style_lambda=2.0).total.backward()
    assert targets[0].grad is None and targets[1].grad is None
    assert torch.equal(codes[0].grad, (codes[0] - targets[0]).sign().detach() / 96)
    assert torch.equal(codes[1].grad, (codes[1] - targets[1]).sign().detach() * 2 / 10)


def test_frozen_encoder_lets_the_gradient_through_to_the_picture_only():
    """The default of the method: E measures, G learns."""
    encoder, generator = torch.nn.Linear(4, 3), torch.nn.Linear(2, 4)
    codes = torch.randn(5, 2)
    encoder.requires_grad_(False)
    content = encoder(generator(codes))
    loss = code_consistency(
        content, content.sum(1, keepdim=True), torch.zeros(5, 3), torch.zeros(5, 1), style_lambda=1
    )
    loss.total.backward()
    assert encoder.weight.grad is None and encoder.bias.grad is None
    assert generator.weight.grad.abs().min() > 0


def test_unit_codes_balance_at_the_default_lambda():
    """Mean |difference| of independent unit codes is about 1.13/sqrt(d): 0.40 and 0.025."""
    torch.manual_seed(0)
    unit = lambda *shape: torch.nn.functional.normalize(torch.randn(*shape), dim=1)
    loss = code_consistency(
        unit(64, 8, 16, 16), unit(64, 2048), unit(64, 8, 16, 16), unit(64, 2048), style_lambda=16.0
    )
    assert loss.content.item() == pytest.approx(0.40, rel=0.03)
    assert 16 * loss.style.item() == pytest.approx(loss.content.item(), rel=0.03)
