"""What is particular to conv2d_bias_act: parameters of any dtype, and what a filter does."""

import pytest
import torch
import torch.nn.functional as F

from rwm_fast import conv2d_bias_act, explain, use_backend
from rwm_fast.ops import _extension

BACKENDS = ("native", "eager") if _extension.cpu() else ("eager",)
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
by_backend = pytest.mark.parametrize("backend", BACKENDS)


def _normal(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


@by_backend
@pytest.mark.parametrize("activation", ["linear", "lrelu"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_parameters_of_any_dtype(dtype, activation, backend):
    """Beside x of any dtype: the result in x's, gradients in their own."""
    x = _normal(2, 3, 5, 4, dtype=dtype)
    for parameters in DTYPES:
        weight = _normal(4, 3, 3, 3, seed=1, dtype=parameters).requires_grad_()
        bias = _normal(4, seed=2, dtype=parameters).requires_grad_()
        with use_backend(backend):
            y = conv2d_bias_act(x, weight, bias, padding=1, activation=activation)
            dw, db = torch.autograd.grad(y.sum(), (weight, bias))
        assert y.dtype == dtype and dw.dtype == db.dtype == parameters
        truth = F.conv2d(x.double(), weight.double(), bias.double(), padding=1)
        truth = F.leaky_relu(truth, 0.2) * 2**0.5 if activation == "lrelu" else truth
        # x's rounding of the weights, of 27 products and of the result
        allowed = 4 * torch.finfo(dtype).eps * truth.abs().max()
        assert (y - truth).abs().max() <= allowed


@by_backend
@pytest.mark.parametrize("kernel", [1, 3])
def test_a_filter_is_for_a_reduction(kernel, backend):
    """Without one it does nothing, on every way; with one it comes before it."""
    x, taps = _normal(2, 8, 9, 12), torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=torch.float64) / 8
    weight, settings = _normal(4, 8, kernel, kernel, seed=1), {"padding": kernel // 2}
    with use_backend(backend):
        bare = conv2d_bias_act(x, weight, **settings)
        assert torch.equal(conv2d_bias_act(x, weight, resample_filter=taps, **settings), bare)
        found = conv2d_bias_act(x, weight, down=2, resample_filter=taps, **settings)
    k = taps.outer(taps).expand(8, 1, 4, 4)
    p = settings["padding"]
    smooth = F.conv2d(F.pad(x, [p + 1] * 4), k, groups=8)
    torch.testing.assert_close(found, F.conv2d(smooth, weight, stride=2))


def test_explain_names_the_backends_of_the_modulated_layer():
    x, weight = _normal(1, 3, 4, 4), _normal(2, 3, 3, 3)
    with use_backend("eager"):
        answer = explain(conv2d_bias_act, x, weight)
    assert list(answer) == ["native", "triton", "eager"] and answer["eager"] == "used"
    half = explain("conv2d_bias_act", x.half(), weight)
    assert half["native"] == "CPUs do not compute in float16" or not _extension.cpu()
