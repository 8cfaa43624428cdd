"""The last Python before an address leaves for a C++ kernel: nothing wrong gets past it.

A kernel would read or write outside a buffer, so a crash of this process, or a result of the wrong
shape, is how these tests fail. Each example takes the arguments of a right call and spoils some.
"""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from spoiling import any_dtype, attempt, examples, fates, sizes, spoil, whole

from rwm_fast import bias_act, upfirdn2d, use_backend
from rwm_fast.ops import _extension, _memory
from rwm_fast.ops.bias_act import autograd as act
from rwm_fast.ops.crop_patches import autograd as crop
from rwm_fast.ops.masked_l1 import autograd as l1
from rwm_fast.ops.upfirdn2d import autograd as fir
from rwm_fast.ops.upfirdn2d.geometry import filter_size, output_size

pytestmark = pytest.mark.skipif(
    _extension.cpu() is None, reason=f"no C++ module: {_extension.why_not_cpu()}"
)


@pytest.fixture(autouse=True)
def native():
    with use_backend("native"):
        yield


@pytest.mark.filterwarnings("ignore::UserWarning")
@examples
@given(fates, any_dtype, st.tuples(sizes, sizes, sizes, sizes), st.booleans(), st.booleans())
def test_masked_l1_forward_and_mask_backward(fate, dtype, shape, shared, save):
    n, c, h, w = shape
    images = [torch.randn(shape) for _ in range(3)]
    mask = torch.rand(n, 1 if shared else c, h, w)
    values = [spoil(x, f, dtype) for x, f in zip((*images, mask), fate, strict=False)]
    result = attempt(l1._forward, *values, save)
    if result is not None:
        assert result[0].shape == () and result[1].numel() == save * values[0].numel()
    dloss = spoil(torch.ones(()), fate[4], dtype)
    result = attempt(l1._mask_backward, dloss, *values)
    if result is not None:
        assert result.shape == values[3].shape


@pytest.mark.filterwarnings("ignore::UserWarning")
@examples
@given(fates, any_dtype, st.tuples(sizes, sizes, sizes, sizes), any_dtype, st.booleans())
def test_masked_l1_backward(fate, dtype, shape, result_dtype, shared):
    n, c, h, w = shape
    signs = torch.randint(0, 3, shape, dtype=torch.uint8)
    mask = torch.rand(n, 1 if shared else c, h, w)
    values = [spoil(x, f, dtype) for x, f in zip((torch.ones(()), signs, mask), fate, strict=False)]
    needs = [True, fate[4] == "keep", False] if fate[3] != "none" else [True]
    result = attempt(l1._backward, *values, result_dtype, needs)
    if result is not None:
        assert [g.numel() for g in result] == [need * values[1].numel() for need in needs]


@pytest.mark.filterwarnings("ignore::UserWarning")
@examples
@given(fates, any_dtype, st.tuples(sizes, sizes, sizes, sizes), sizes, whole, st.booleans())
def test_crop_patches_forward(fate, dtype, shape, patches, size, wild):
    boxes = torch.randn(shape[0], patches, 4) * (1e30 if wild else 1)
    values = [spoil(x, f, dtype) for x, f in zip((torch.randn(shape), boxes), fate, strict=False)]
    result = attempt(crop._forward, *values, size)
    if result is not None:
        image, boxes = values
        assert result.shape == (*boxes.shape[:2], image.shape[1], size, size)


@pytest.mark.filterwarnings("ignore::UserWarning")
@examples
@given(fates, any_dtype, st.tuples(sizes, sizes, sizes, sizes), whole, whole, st.booleans())
def test_crop_patches_adjoint(fate, dtype, shape, height, width, wild):
    n, patches, channels, size = shape
    dpatches = torch.randn(n, patches, channels, size, size)
    boxes = torch.randn(n, patches, 4) * (1e30 if wild else 1)
    values = [spoil(x, f, dtype) for x, f in zip((dpatches, boxes), fate, strict=False)]
    result = attempt(crop._adjoint, *values, height, width)
    if result is not None:
        assert result.shape == (values[0].shape[0], values[0].shape[2], height, width)


def test_a_right_call_still_works():
    image = torch.randn(2, 3, 5, 6)
    assert crop._forward(image, torch.rand(2, 4, 4), 7).shape == (2, 4, 3, 7, 7)
    assert l1._forward(image, image, image, torch.rand(2, 1, 5, 6), False)[0] == 0


def test_a_negative_view_is_read_as_it_looks():
    """Its memory holds the other sign."""
    real = torch.randn(1, 3, 4, 5)
    negative = torch.complex(real, -real).conj().imag  # looks like `real`
    assert negative.is_neg() and torch.equal(negative, real)
    mask, other = torch.rand(1, 1, 4, 5), torch.randn(1, 3, 4, 5)
    assert torch.equal(
        l1._forward(negative, other, other, mask, False)[0],
        l1._forward(real, other, other, mask, False)[0],
    )


def test_addresses_of_tensors_without_memory_are_refused():
    with pytest.raises(ValueError, match="a kernel needs a tensor with memory"):
        _memory.addresses(torch.ones(1), torch._efficientzerotensor((3,)))
    assert _memory.addresses(None, torch.empty(0)) == [0, 0]


numbers = st.sampled_from([0.2, 1.0, 3.0, float("inf"), float("nan"), None, "1", 2])


@pytest.mark.filterwarnings("ignore::UserWarning")
@examples
@given(fates, any_dtype, st.lists(sizes, min_size=1, max_size=5), numbers, numbers, st.booleans())
def test_bias_act(fate, dtype, shape, slope, clamp, save):
    x, bias = torch.randn(shape), torch.randn(shape[-1] if len(shape) == 1 else shape[1])
    values = [spoil(v, f, dtype) for v, f in zip((x, bias), fate, strict=False)]
    result = attempt(act._forward, *values, "lrelu", slope, 1.5, clamp)
    if result is not None:
        assert result.shape == values[0].shape
    values = [spoil(v, f, dtype) for v, f in zip((x, x), fate[2:], strict=False)]
    needs = [fate[4] == "keep", save] if fate[4] != "none" else [True]
    result = attempt(act._backward, *values, "lrelu", slope, 1.5, clamp, needs)
    if result is not None:
        assert result[0].numel() == needs[0] * values[0].numel()
        assert result[1].numel() == save * values[0].shape[1]


factors = st.tuples(*[st.sampled_from([1, 1, 1, 2, 3, 0, -1, 1 << 40])] * 2)
borders = st.lists(
    st.sampled_from([0, 1, 1, 2, 3, -1, -2, 1 << 40, -(1 << 62), None]), min_size=3, max_size=4
)


@pytest.mark.filterwarnings("ignore::UserWarning")
@examples
@given(fates, any_dtype, st.tuples(sizes, sizes, sizes, sizes), factors, factors, borders, sizes)
def test_upfirdn2d(fate, dtype, shape, up, down, padding, taps):
    filter = torch.rand(taps) if fate[4] == "keep" else torch.rand(taps, 2)
    x, filter = (
        spoil(v, f, dtype) for v, f in zip((torch.randn(shape), filter), fate, strict=False)
    )
    result = attempt(fir._forward, x, filter, up, down, padding, fate[3] == "keep", 1.0)
    if result is not None:
        size = output_size(*x.shape[2:], filter_size(filter), up, down, padding)
        assert result.shape == (*x.shape[:2], *size)


def test_an_image_without_pixels_takes_a_bias():
    """No plane has a size to divide by."""
    for shape in ((2, 3, 0, 4), (0, 3, 2, 2), (2, 0, 2, 2)):
        bias = torch.zeros(shape[1], requires_grad=True)
        y = bias_act(torch.zeros(shape), bias)
        assert y.shape == shape
        y.sum().backward()
        assert torch.equal(bias.grad, torch.zeros(shape[1]))


def test_a_dense_negative_view_is_read_as_it_looks():
    """One number an image is dense whatever the strides: nothing copies it on the way."""
    real = torch.randn(1, 1, 1, 1)
    negative = torch.complex(real, -real).conj().imag
    assert negative.is_neg() and negative.is_contiguous() and torch.equal(negative, real)
    assert torch.equal(bias_act(negative, torch.zeros(1)), bias_act(real, torch.zeros(1)))
    assert torch.equal(upfirdn2d(negative, torch.ones(1)), real)
