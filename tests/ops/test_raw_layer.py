"""The last Python before an address leaves for a C++ kernel: nothing wrong gets past it.

A kernel would read or write outside a buffer, so a crash of this process, or a result of the wrong
shape, is how these tests fail. Each example takes the arguments of a right call and spoils some.
"""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch._subclasses import FakeTensorMode

from rwm_fast.ops import _cpu, _extension
from rwm_fast.ops.crop_patches import native as crop
from rwm_fast.ops.masked_l1 import native as l1
from rwm_fast.testing.cases import in_layout

pytestmark = pytest.mark.skipif(
    _extension.cpu() is None, reason=f"no C++ module: {_extension.why_not_cpu()}"
)
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
FATES = (
    *("keep",) * 40,  # most arguments stay right, so that a wrong one meets right ones
    *("dtype", "integers", "complex", "meta", "sparse", "fewer", "more", "flat", "transposed"),
    *("sliced", "expanded", "negative", "fake", "zero", "none", "list", "number", "empty"),
)


def spoil(x: torch.Tensor, fate: str, dtype: torch.dtype) -> object:
    """The argument, kept or changed: some changes are harmless, most are not."""
    with FakeTensorMode() as mode:
        fake = mode.from_tensor(x) if fate == "fake" else None
    changed = {
        "dtype": lambda: x.to(dtype),
        "integers": lambda: x.long(),
        "complex": lambda: x.to(torch.complex64),
        "meta": lambda: x.to("meta"),
        "sparse": lambda: x.to_sparse(),
        "fewer": lambda: x[..., :-1] if x.ndim else x,
        "more": lambda: torch.cat((x, x)) if x.ndim else x,
        "flat": lambda: x.reshape(-1),
        "transposed": lambda: x.transpose(0, -1) if x.ndim else x,
        "sliced": lambda: in_layout(x, "sliced"),
        "expanded": lambda: in_layout(x, "expanded"),
        "negative": lambda: torch.complex(x.float(), x.float()).conj().imag,
        "fake": lambda: fake,
        "zero": lambda: torch._efficientzerotensor(x.shape, dtype=x.dtype),
        "none": lambda: None,
        "list": lambda: x.tolist(),
        "number": lambda: 3,
        "empty": lambda: x[:0] if x.ndim else x,
    }
    return changed[fate]() if fate in changed else x


fates = st.lists(st.sampled_from(FATES), min_size=5, max_size=5)
sizes = st.integers(1, 9)
whole = st.sampled_from([1, 2, 3, 5, 8, 16, 31, 0, -1, True, 2.0, None, "4", 1 << 62])
any_dtype = st.sampled_from([*DTYPES, torch.int32, torch.complex64])
examples = settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def attempt(function, *arguments):
    """The result, or None where the call was refused in the way that callers may rely on."""
    try:
        return function(*arguments)
    except (TypeError, ValueError):
        return None
    except RuntimeError as error:
        # torch itself: more memory than there is, or a tensor that has none.
        assert any(
            word in str(error)
            for word in ("memory", "overflow", "Sparse", "sparse", "storage", "invalid")
        ), error
        return None


@pytest.mark.filterwarnings("ignore::UserWarning")
@examples
@given(fates, any_dtype, st.tuples(sizes, sizes, sizes, sizes), st.booleans(), st.booleans())
def test_masked_l1_forward_and_mask_backward(fate, dtype, shape, shared, save):
    n, c, h, w = shape
    images = [torch.randn(shape) for _ in range(3)]
    mask = torch.rand(n, 1 if shared else c, h, w)
    values = [spoil(x, f, dtype) for x, f in zip((*images, mask), fate, strict=False)]
    result = attempt(l1.forward, *values, save)
    if result is not None:
        assert result[0].shape == () and result[1].numel() == save * values[0].numel()
    dloss = spoil(torch.ones(()), fate[4], dtype)
    result = attempt(l1.mask_backward, dloss, *values)
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
    result = attempt(l1.backward, *values, result_dtype, needs)
    if result is not None:
        assert [g.numel() for g in result] == [need * values[1].numel() for need in needs]


@pytest.mark.filterwarnings("ignore::UserWarning")
@examples
@given(fates, any_dtype, st.tuples(sizes, sizes, sizes, sizes), sizes, whole, st.booleans())
def test_crop_patches_forward(fate, dtype, shape, patches, size, wild):
    boxes = torch.randn(shape[0], patches, 4) * (1e30 if wild else 1)
    values = [spoil(x, f, dtype) for x, f in zip((torch.randn(shape), boxes), fate, strict=False)]
    result = attempt(crop.forward, *values, size)
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
    result = attempt(crop.adjoint, *values, height, width)
    if result is not None:
        assert result.shape == (values[0].shape[0], values[0].shape[2], height, width)


def test_a_right_call_still_works():
    image = torch.randn(2, 3, 5, 6)
    assert crop.forward(image, torch.rand(2, 4, 4), 7).shape == (2, 4, 3, 7, 7)
    assert l1.forward(image, image, image, torch.rand(2, 1, 5, 6), False)[0] == 0


def test_a_negative_view_is_read_as_it_looks():
    """Its memory holds the other sign."""
    real = torch.randn(1, 3, 4, 5)
    negative = torch.complex(real, -real).conj().imag  # looks like `real`
    assert negative.is_neg() and torch.equal(negative, real)
    mask, other = torch.rand(1, 1, 4, 5), torch.randn(1, 3, 4, 5)
    assert torch.equal(
        l1.forward(negative, other, other, mask, False)[0],
        l1.forward(real, other, other, mask, False)[0],
    )


def test_addresses_of_tensors_without_memory_are_refused():
    with pytest.raises(ValueError, match="a kernel needs a tensor with memory"):
        _cpu.address(torch._efficientzerotensor((3,)))
    assert _cpu.address(None) == 0 and _cpu.address(torch.empty(0)) == 0
