"""Weights of one row or column, whose strides torch takes for channels_last without their being so:
its own convolution fails backward."""

import pytest
import torch

from rwm_fast import conv2d_bias_act, modulated_conv2d, use_backend

CALLS = {
    "conv2d_bias_act": lambda x, w: conv2d_bias_act(x, w),
    "modulated_conv2d": lambda x, w: modulated_conv2d(x, w, torch.ones(x.shape[:2]), eps=0.1),
}


@pytest.mark.parametrize("backend", ["eager", "auto"])
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("shape", [(1, 17, 1, 3), (1, 17, 3, 1), (4, 1, 1, 3), (2, 3, 1, 1)])
def test_turned_weights(shape, call, backend):
    back = tuple(reversed(range(4)))
    w = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    x = torch.randn(1, shape[1], 9, 8).contiguous(memory_format=torch.channels_last)
    gradients = []
    for weight in (w.permute(back).contiguous().permute(back), w):
        inputs = [t.detach().requires_grad_() for t in (x, weight)]
        with use_backend(backend):
            gradients.append(torch.autograd.grad(CALLS[call](*inputs).square().sum(), inputs))
    for found, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected)
