"""modulated_conv2d on the CPU, past the public function: nothing wrong gets to a kernel.

As in test_raw_layer.py: a crash, or a result of the wrong shape, is how these tests fail.
"""

import pytest
import torch
from bodies import by_winograd
from hypothesis import given
from hypothesis import strategies as st
from spoiling import any_dtype, attempt, examples, spoil

from rwm_fast import use_backend
from rwm_fast.ops import _extension
from rwm_fast.ops.modulated_conv2d import autograd
from rwm_fast.ops.modulated_conv2d.geometry import Settings, geometry
from rwm_fast.ops.upfirdn2d.geometry import filter_size

pytestmark = pytest.mark.skipif(
    _extension.cpu() is None, reason=f"no C++ module: {_extension.why_not_cpu()}"
)


@pytest.fixture(autouse=True)
def native():
    with use_backend("native"):
        yield


NAMES = ("weight", "styles", "regions_in", "regions_out", "noise", "strength", "bias", "filter")
WRONG = ("dtype", "complex", "meta", "sparse", "fewer", "more", "flat", "transposed", "sliced")
WRONG += ("expanded", "negative", "fake", "zero", "none", "list", "number", "empty", "integers")
wrong = st.dictionaries(  # at most two arguments: with more, the first refusal hides the others
    st.sampled_from(("x", "dy", "y", *NAMES)), st.sampled_from(WRONG), max_size=2
)


@st.composite
def layers(draw) -> tuple[dict[str, torch.Tensor], Settings]:
    """The tensors of a right call, and its settings."""
    small = st.integers(1, 5)
    n, i, o, h, w, k = (draw(small) for _ in range(6))
    side, styles = draw(st.sampled_from([1, 3, 3, 2])), draw(st.sampled_from([1, 1, 2, 3]))
    up, down = draw(st.sampled_from([(1, 1), (1, 1), (2, 1), (1, 2), (3, 1)]))
    borders = draw(st.sampled_from([(0, 0, 0, 0), (1, 1, 1, 1), (2, 1, 0, 2), (1, 1, -1, 3)]))
    clamp = draw(st.sampled_from([None, 1.0]))
    demodulate, flip = draw(st.booleans()), draw(st.booleans())
    settings = Settings(up, down, borders, demodulate, flip, "lrelu", 0.2, 1.5, clamp, 1e-8)
    tensors = {"x": torch.randn(n, i, h + side, w + side), "weight": torch.randn(o, i, side, side)}
    tensors["filter"] = torch.rand(draw(st.sampled_from([1, 2, 4, 6]))) if up * down > 1 else None
    # too small a layer is refused as a whole
    size = tuple(max(s, 1) for s in output_shape(tensors, settings)[2:])
    soft = lambda *space: torch.rand(n, styles, *space)
    tensors |= {
        "styles": torch.randn(n, styles, i),
        "regions_in": soft(h + side, w + side) if styles > 1 else None,
        "regions_out": soft(*size) if styles > 1 else None,
        "noise": torch.randn(draw(st.sampled_from([1, n])), 1, *size) if k > 2 else None,
        "strength": torch.rand(()) if k > 3 else None,
        "bias": torch.randn(o) if k > 1 else None,
        "y": torch.randn(n, o, *size),
        "dy": torch.randn(n, o, *size),
    }
    return tensors, settings


@st.composite
def needs(draw) -> list[bool]:
    return [draw(st.booleans()) for _ in range(8)]


def output_shape(tensors, settings) -> tuple[int, ...]:
    x, weight, filter = (tensors[name] for name in ("x", "weight", "filter"))
    about = (tuple(weight.shape[2:]), filter_size(filter), tuple(x.shape[2:]))
    return (x.shape[0], weight.shape[0], *geometry(*settings[:3], *about).chain[-1])


def spoiled(tensors, fates, dtype):
    """The tensors of a call, some made wrong."""
    for name, fate in fates.items():
        if tensors[name] is not None:
            tensors[name] = spoil(tensors[name], fate, dtype)


@pytest.mark.filterwarnings("ignore::UserWarning")
@examples
@given(layers(), wrong, any_dtype, st.booleans())
def test_forward(layer, fates, dtype, always):
    """`always`: Winograd's algorithm also where it does not pay."""
    tensors, settings = layer
    spoiled(tensors, fates, dtype)
    arguments = [tensors[name] for name in ("x", *NAMES)]
    with by_winograd(always):
        result = attempt(autograd._forward, *arguments, *settings)
    if result is not None:
        assert result.shape == output_shape(tensors, settings)


@pytest.mark.filterwarnings("ignore::UserWarning")
@examples
@given(layers(), wrong, any_dtype, st.booleans(), needs())
def test_backward(layer, fates, dtype, always, wanted):
    tensors, settings = layer
    wanted = [n and tensors[k] is not None for n, k in zip(wanted, ("x", *NAMES), strict=False)]
    wanted[3] = wanted[4] = False  # regions are the eager backend's
    spoiled(tensors, fates, dtype)
    arguments = [tensors[name] for name in ("dy", "y", "x", *NAMES)]
    with by_winograd(always):
        result = attempt(autograd._backward, *arguments, *settings, wanted)
    if result is not None:
        inputs = [tensors[name] for name in ("x", *NAMES[:7])]
        for gradient, given_, wants in zip(result, inputs, wanted, strict=True):
            assert not wants or gradient.shape == given_.shape
