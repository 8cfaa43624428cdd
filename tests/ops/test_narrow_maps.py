"""bfloat16 maps narrower than the filter: torch's convolution on AMX reads past them."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from rwm_fast import conv2d_bias_act, modulated_conv2d, upfirdn2d, use_backend
from rwm_fast.ops.modulated_conv2d.torch_convolution import convolution, is_misread
from rwm_fast.testing import compare

BF16 = torch.bfloat16
SHAPES = [(kernel, width, down) for kernel in (3, 5) for width in (1, 2, 3, 5) for down in (1, 2)]


class Convolutions(TorchDispatchMode):
    """Notes which of torch's convolutions run in bfloat16 where it may read past the map."""

    def __init__(self):
        super().__init__()
        self.misread = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.convolution.default:
            self.misread += is_misread(args[0], args[1], args[3:])
        if function is torch.ops.aten.convolution_backward.default:
            self.misread += is_misread(args[1], args[2], args[4:])
        return function(*args, **(kwargs or {}))


def _calls(kernel, width, down):
    source = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(shape, generator=source)
    pad = kernel // 2 + down - 1
    x = draw(2, 8, 40, width).to(BF16).requires_grad_()
    w, styles = draw(8, 8, kernel, kernel).requires_grad_(), draw(2, 8)
    yield lambda x, w, s: modulated_conv2d(x, w, s, down=down, padding=pad), (x, w, styles)
    yield lambda x, w, s: conv2d_bias_act(x, w, padding=pad, down=down), (x, w, styles)


@pytest.mark.parametrize("backend", ["auto", "eager"])
@pytest.mark.parametrize(("kernel", "width", "down"), SHAPES)
def test_narrow_maps(kernel, width, down, backend):
    """Near float64, the same at every call, and never by what reads past the map."""
    for function, inputs in _calls(kernel, width, down):
        results = []
        for _ in range(2):
            with use_backend(backend), Convolutions() as seen:
                y = function(*inputs)
                results.append((y, *torch.autograd.grad(y.float().square().sum(), inputs[:2])))
            assert seen.misread == 0
        doubled = [t.detach().double().requires_grad_(t.requires_grad) for t in inputs]
        y = function(*doubled)
        truth = y, *torch.autograd.grad(y.square().sum(), doubled[:2])
        for first, again, true in zip(*results, truth, strict=True):
            assert torch.equal(first, again)
            # bfloat16 keeps 8 bits: of x, weight, result and gradient
            assert (first - true).abs().max() <= 16 * 2**-8 * true.abs().max()


def test_ours_is_right_where_torch_reads_past_the_map():
    """On CPUs with AMX a few of these are NaN, or other at every call."""
    source = torch.Generator().manual_seed(0)
    for kernel, width, down in SHAPES:
        x = torch.randn(2, 16, 400, width, generator=source).to(BF16)
        w = torch.randn(16, 16, kernel, kernel, generator=source).to(BF16)
        about = [down] * 2, [kernel // 2] * 2, [1, 1], False, [0, 0], 1
        truth = torch.ops.aten.convolution(x.double(), w.double(), None, *about)
        torchs = torch.ops.aten.convolution(x, w, None, *about)
        allowed = 2**-7 * truth.abs().max()
        if not (torchs - truth).abs().max() <= allowed:
            assert is_misread(x, w, about)
        assert (convolution(x, w, about) - truth).abs().max() <= allowed


@pytest.mark.parametrize(("up", "down"), [(1, 1), (2, 1), (1, 2)])
def test_filters_on_narrow_maps(up, down):
    """What upfirdn2d is in plain torch, cropped to a narrow map too."""
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
    for width, padding in ((1, 3), (3, 2), (5, 2), (9, [-2, -2, 2, 2])):
        x = torch.randn(2, 3, 20, width, generator=torch.Generator().manual_seed(0)).to(BF16)
        x.requires_grad_()
        with compare.plain(), Convolutions() as seen:
            y = upfirdn2d(x, taps, up=up, down=down, padding=padding)
            (dx,) = torch.autograd.grad(y.float().sum(), x)
        assert seen.misread == 0
        wide = x.detach().double().requires_grad_()
        true = upfirdn2d(wide, taps, up=up, down=down, padding=padding)
        for found, wanted in ((y, true), (dx, torch.autograd.grad(true.sum(), wide)[0])):
            assert (found - wanted).abs().max() <= 4 * 2**-8 * wanted.abs().max()
