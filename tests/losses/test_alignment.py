"""Reconstruction, edges and content alignment, by hand, and where their gradients go."""

import pytest
import torch

from rwm_fast.losses import content_alignment, edge, reconstruction

F64 = torch.float64


def image(*rows):
    """[1, 1, H, W] in float64 from rows of numbers, with a gradient."""
    return torch.tensor([[rows]], dtype=F64, requires_grad=True)


def test_reconstruction_by_hand():
    assert reconstruction(image([1, 2], [3, 4]), image([0, 2], [5, 3])).item() == 1.0  # (1+0+2+1)/4


def test_edge_by_hand():
    """d = [[1, 0], [-2, 1]]: |dx| = 1, 3, mean 2; |dy| = 3, 1, mean 2."""
    assert edge(image([1, 2], [3, 4]), image([0, 2], [5, 3])).item() == 4.0


def test_edge_ignores_a_shift_in_brightness():
    a = torch.rand(2, 3, 5, 4, dtype=F64)
    assert edge(a + 0.5, a).item() < 1e-15


def test_content_alignment_by_hand():
    """Mask 1 on the left: |5 - 2| and |1 - 1| there, |2 - 4| and |0 - 3| on the right."""
    hybrid, swapped, own = image([5, 2], [1, 0]), image([2, 9], [1, 9]), image([9, 4], [9, 3])
    mask = image([1, 0], [1, 0])
    assert content_alignment(hybrid, swapped, own, mask).item() == (3 + 2 + 0 + 3) / 4


def test_content_alignment_equals_the_formula():
    torch.manual_seed(0)
    h, g, a = torch.randn(3, 2, 3, 6, 5, dtype=F64)
    m = torch.rand(2, 1, 6, 5, dtype=F64)
    l1 = torch.nn.functional.l1_loss
    expected = l1(h * m, g * m) + l1(h * (1 - m), a * (1 - m))
    torch.testing.assert_close(content_alignment(h, g, a, m), expected, rtol=1e-14, atol=0)


@pytest.mark.parametrize("detach", [True, False])
def test_content_alignment_teaches_the_swap_only_if_asked(detach):
    torch.manual_seed(0)
    h, g, a = (torch.randn(1, 3, 4, 4, dtype=F64, requires_grad=True) for _ in range(3))
    mask = torch.zeros(1, 1, 4, 4, dtype=F64)
    mask[..., :2] = 1
    content_alignment(h, g, a, mask, detach_swapped=detach).backward()
    each = 1 / h.numel()  # |d L / d pixel|
    assert torch.allclose(h.grad.abs(), torch.full_like(h, each), rtol=1e-14)
    if detach:
        assert g.grad is None
    else:
        assert torch.equal(g.grad[..., :2], -h.grad[..., :2])
        assert not g.grad[..., 2:].any()
