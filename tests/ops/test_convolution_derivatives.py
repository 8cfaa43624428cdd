"""The convolution inside layers, against finite differences and torch's own derivatives."""

import itertools

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from rwm_fast.ops.modulated_conv2d.torch_convolution import convolution, convolution_backward

KINDS = {  # stride, padding, dilation, transposed, output padding, groups
    "plain": ([1, 1], [1, 0], [1, 1], False, [0, 0], 1),
    "halving": ([2, 2], [0, 0], [1, 1], False, [0, 0], 1),  # 6 pixels: one is in no window
    "doubling": ([2, 2], [0, 0], [1, 1], True, [0, 0], 1),
}


def operands(kind):
    draw = torch.Generator().manual_seed(0)
    normal = lambda *shape: torch.randn(*shape, generator=draw, dtype=torch.float64)
    x, w = normal(2, 3, 6, 5), normal(*((3, 2) if kind == "doubling" else (2, 3)), 3, 3)
    dy = normal(*torch.ops.aten.convolution(x, w, None, *KINDS[kind]).shape)
    return [t.requires_grad_() for t in (dy, x, w)]


@pytest.mark.parametrize("kind", KINDS)
def test_against_finite_differences(kind):
    dy, x, w = operands(kind)
    arguments = KINDS[kind]
    forward = lambda x, w: convolution(x, w, arguments)
    assert gradcheck(forward, (x, w)) and gradgradcheck(forward, (x, w), dy)
    backward = lambda *t: convolution_backward(*t, arguments, (True, True))
    assert gradcheck(backward, (dy, x, w)) and gradgradcheck(backward, (dy, x, w))


@pytest.mark.parametrize("needs", [(True, False), (False, True)])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_needed_is_absent_everywhere(kind, needs):
    dy, x, w = operands(kind)
    grads = convolution_backward(dy, x, w, KINDS[kind], needs)
    assert [g is not None for g in grads] == list(needs)
    (given,) = (g for g in grads if g is not None)
    d_dy, d_x, d_w = torch.autograd.grad(given.square().sum(), (dy, x, w), allow_unused=True)
    assert d_dy is not None and (d_x is None, d_w is None) == needs


def test_every_subset_of_inputs_has_the_gradients_of_all():
    for kind in KINDS:
        full = operands(kind)
        call = lambda dy, x, w, kind=kind: (dy * convolution(x, w, KINDS[kind])).square().sum()
        exact = torch.autograd.grad(call(*full), full)
        for some in itertools.product([True, False], repeat=3):
            tensors = [t.detach().requires_grad_(s) for t, s in zip(full, some, strict=True)]
            asked = [t for t in tensors if t.requires_grad]
            if asked:
                found = torch.autograd.grad(call(*tensors), asked)
                wanted = [g for g, s in zip(exact, some, strict=True) if s]
                assert all(map(torch.equal, found, wanted))
