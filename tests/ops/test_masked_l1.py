"""What is particular to masked_l1: worked values, its limits, what it keeps."""

import pytest
import torch
import torch.nn.functional as F
from grid import cpu_backends

from rwm_fast import masked_l1, use_backend
from rwm_fast.ops import _extension


@pytest.fixture(params=cpu_backends("masked_l1"))
def backend(request):
    if request.param == "native" and _extension.cpu() is None:
        pytest.skip(_extension.why_not_cpu())
    with use_backend(request.param):
        yield request.param


def test_a_worked_value(backend):
    """(0.25·|1 − 3| + 0.75·|1 − 0| + 1·|2 − 5| + 0·|2 − 9|) / 2"""
    h, g, a = (torch.tensor(v).view(1, 1, 1, 2) for v in ([1.0, 2.0], [3.0, 5.0], [0.0, 9.0]))
    m = torch.tensor([0.25, 1.0]).view(1, 1, 1, 2).requires_grad_()
    h.requires_grad_(), g.requires_grad_(), a.requires_grad_()
    loss = masked_l1(h, g, a, m)
    assert loss.item() == (0.5 + 0.75 + 3.0) / 2
    loss.backward()
    assert h.grad.flatten().tolist() == [(-0.25 + 0.75) / 2, -0.5]
    assert g.grad.flatten().tolist() == [0.125, 0.5]
    assert a.grad.flatten().tolist() == [-0.375, 0.0]
    # The derivative of |1 − m| at m = 1 is 0, as everywhere in torch.
    assert m.grad.flatten().tolist() == [(2 - 1) / 2, 1.5]


def test_all_one_and_all_zero_are_l1_losses(backend):
    h, g, a = torch.randn(3, 2, 3, 9, 10).unbind()
    one = torch.ones(2, 1, 9, 10)
    torch.testing.assert_close(masked_l1(h, g, a, one), F.l1_loss(h, g))
    torch.testing.assert_close(masked_l1(h, g, a, 1 - one), F.l1_loss(h, a))
    assert masked_l1(h, g, a, one.bool()) == masked_l1(h, g, a, one)


def test_exchanging_the_images_and_the_mask_changes_nothing(backend):
    h, g, a = torch.randn(3, 2, 3, 8, 8, dtype=torch.float64).unbind()
    m = torch.rand(2, 1, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(masked_l1(h, g, a, m), masked_l1(h, a, g, 1 - m))


def test_the_mask_of_channels_is_the_mask_repeated(backend):
    h, g, a = torch.randn(3, 2, 3, 8, 8).unbind()
    m = torch.rand(2, 1, 8, 8)
    torch.testing.assert_close(masked_l1(h, g, a, m), masked_l1(h, g, a, m.repeat(1, 3, 1, 1)))


def test_equal_images_have_no_gradient(backend):
    """sign(0) = 0: an image that is right already is left alone."""
    h = torch.randn(1, 3, 6, 6, requires_grad=True)
    masked_l1(h, h.detach(), h.detach(), torch.rand(1, 1, 6, 6)).backward()
    assert not h.grad.any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sums_of_half_precision_images_are_kept_in_float32(backend, dtype):
    """A sum in bfloat16 would stop growing after 256 equal terms."""
    h, g = torch.ones(1, 1, 256, 300, dtype=dtype), torch.zeros(1, 1, 256, 300, dtype=dtype)
    loss = masked_l1(h, g, g, torch.ones(1, 1, 256, 300))
    assert loss.dtype == torch.float32 and loss.item() == 1


def test_an_empty_batch_is_nan_as_torch_says(backend):
    h = torch.zeros(0, 3, 4, 4, requires_grad=True)
    loss = masked_l1(h, h.detach(), h.detach(), torch.zeros(0, 1, 4, 4))
    assert loss.isnan()
    loss.backward()
    assert h.grad.shape == h.shape


def test_not_a_number_is_not_hidden(backend):
    h, m = torch.zeros(1, 1, 40, 50), torch.ones(1, 1, 40, 50)
    h[0, 0, 37, 11] = float("nan")
    assert masked_l1(h, m, m, m).isnan()


def test_only_what_needs_a_gradient_gets_one(backend):
    for needed in range(1, 16):
        values = [torch.randn(1, 2, 3, 4) for _ in range(3)] + [torch.rand(1, 1, 3, 4)]
        for i, value in enumerate(values):
            value.requires_grad_(bool(needed >> i & 1))
        masked_l1(*values).backward()
        assert [v.grad is not None for v in values] == [v.requires_grad for v in values]


def test_the_upstream_gradient_scales(backend):
    h, g, a = torch.randn(3, 1, 3, 8, 8).unbind()
    m = torch.rand(1, 1, 8, 8)
    grads = []
    for scale in (1.0, -2.0):
        x = h.clone().requires_grad_()
        (scale * masked_l1(x, g, a, m)).backward()
        grads.append(x.grad)
    torch.testing.assert_close(grads[1], -2 * grads[0])


def test_signs_are_one_byte_an_element():
    """What the graph keeps between the passes: no image, unless the mask needs a gradient."""
    h = torch.randn(2, 3, 8, 8, requires_grad=True)
    g, a, m = torch.randn_like(h), torch.randn_like(h), torch.rand(2, 1, 8, 8)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        masked_l1(h, g.detach(), a.detach(), m)
    assert sorted((t.dtype, t.numel()) for t in kept if t.numel() > 128) == [
        (torch.uint8, h.numel())
    ]
