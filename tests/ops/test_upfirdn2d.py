"""What is particular to upfirdn2d: the definition, its adjoint, its properties."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rwm_fast.ops.upfirdn2d import upfirdn2d

DTYPE = torch.float64
LOW_PASS = torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=DTYPE) / 8


def _normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=DTYPE)


def _by_definition(row, taps, up, down, before, after):
    """One dimension, sample by sample: zeros, padding, convolution where it fits, every down-th."""
    z = [0.0] * before
    for value in row:
        z += [value] + [0.0] * (up - 1)
    z += [0.0] * after
    z = z[-before:] if before < 0 else z
    z = z[: len(z) + after] if after < 0 else z
    count = len(taps)
    fits = range(0, len(z) - count + 1, down)
    return [sum(taps[count - 1 - q] * z[p + q] for q in range(count)) for p in fits]


@pytest.mark.parametrize(("up", "down"), [(1, 1), (2, 1), (1, 2), (3, 2)])
@pytest.mark.parametrize("padding", [(0, 0), (2, 1), (-1, 2), (3, -2)])
def test_definition(up, down, padding):
    row, taps = _normal(7, seed=1), _normal(3, seed=2)
    expected = _by_definition(row.tolist(), taps.tolist(), up, down, *padding)
    found = upfirdn2d(
        row[None, None, None],
        taps[None],
        up=(up, 1),
        down=(down, 1),
        padding=[*padding, 0, 0],
    )
    torch.testing.assert_close(found[0, 0, 0], torch.tensor(expected, dtype=DTYPE))
    column = upfirdn2d(
        row[None, None, :, None],
        taps[:, None],
        up=(1, up),
        down=(1, down),
        padding=[0, 0, *padding],
    )
    torch.testing.assert_close(column[0, 0, :, 0], found[0, 0, 0])


small = st.integers(1, 3)
pads = st.lists(st.integers(-2, 4), min_size=4, max_size=4)


@settings(deadline=None, max_examples=60, derandomize=True)
@given(small, small, small, small, pads, st.integers(1, 5), st.integers(1, 4), st.booleans())
@example(1, 1, 1, 1, [0, 0, -2, -2], 1, 3, False)  # a filter higher than what is left
def test_gradient_is_the_adjoint(up_x, up_y, down_x, down_y, padding, taps_x, taps_y, flip):
    """⟨A x, y⟩ = ⟨x, Aᵀ y⟩ for every setting that fits, and the gradient of Aᵀ y is A again."""
    x, f = _normal(2, 2, 6, 7).requires_grad_(), _normal(taps_y, taps_x, seed=1)
    options = {"up": (up_x, up_y), "down": (down_x, down_y), "padding": padding}
    if taps_x > 7 * up_x + sum(padding[:2]) or taps_y > 6 * up_y + sum(padding[2:]):
        with pytest.raises(ValueError, match="at least as large as the filter"):
            upfirdn2d(x, f, **options)
        return
    out = upfirdn2d(x, f, **options, flip_filter=flip, gain=0.7)
    y = _normal(*out.shape, seed=2).requires_grad_()
    (back,) = torch.autograd.grad(out, x, y, create_graph=True)
    torch.testing.assert_close((out * y).sum(), (x * back).sum())
    (again,) = torch.autograd.grad(back, y, x.detach())
    torch.testing.assert_close(again, out)


def test_no_filter_is_the_identity():
    x = _normal(2, 3, 4, 5)
    assert torch.equal(upfirdn2d(x, None), x)
    assert torch.equal(upfirdn2d(x, None, down=2), x[:, :, ::2, ::2])


def test_separable_filter_is_its_outer_product():
    x, f = _normal(2, 3, 6, 7), _normal(4, seed=1)
    settings = {"up": 2, "padding": [2, 1], "gain": 4.0}
    assert torch.equal(upfirdn2d(x, f, **settings), upfirdn2d(x, f.outer(f), **settings))


def test_brightness_is_kept():
    """A filter of sum 1 and gain up² leave a constant image constant, away from the border."""
    x = torch.ones(1, 1, 8, 8, dtype=DTYPE)
    larger = upfirdn2d(x, LOW_PASS, up=2, padding=[2, 1, 2, 1], gain=4.0)
    smaller = upfirdn2d(x, LOW_PASS, down=2, padding=1)
    assert larger.shape[2:] == (16, 16) and smaller.shape[2:] == (4, 4)
    assert (larger[:, :, 2:-2, 2:-2] - 1).abs().max() < 1e-15
    assert (smaller[:, :, 1:-1, 1:-1] - 1).abs().max() < 1e-15


def test_channels_do_not_mix():
    x = torch.zeros(1, 5, 6, 6, dtype=DTYPE)
    x[:, 2] = 1
    y = upfirdn2d(x, LOW_PASS, padding=2)
    assert y[:, 2].abs().min() > 0 and y[:, [0, 1, 3, 4]].abs().max() == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_filter_of_any_dtype(dtype):
    x = _normal(1, 2, 5, 5).float()
    expected = upfirdn2d(x, LOW_PASS.float(), padding=2)
    assert torch.equal(upfirdn2d(x, LOW_PASS.to(dtype), padding=2), expected)
