"""What other projects' operators compute, in plain torch, and how ours are compared with it.

Written from the meaning of their arguments: everything at the fine resolution, one step a line.
"""

import torch
import torch.nn.functional as F

F64 = torch.float64


def upfirdn2d(x, f, up=(1, 1), down=(1, 1), padding=(0, 0, 0, 0), flip_filter=False, gain=1.0):
    """Factors (x, y), padding (x before, x after, y before, y after)."""
    n, c, h, w = x.shape
    z = x.new_zeros(n, c, h, up[1], w, up[0])
    z[:, :, :, 0, :, 0] = x
    z = F.pad(z.reshape(n, c, h * up[1], w * up[0]), list(padding))  # a negative number crops
    f = torch.ones(1, 1) if f is None else f.outer(f) if f.ndim == 1 else f
    f = (f if flip_filter else f.flip([0, 1])).to(x.dtype) * gain
    z = F.conv2d(z, f.repeat(c, 1, 1, 1), groups=c)
    return z[:, :, :: down[1], :: down[0]]


def conv2d_resample(x, w, f, up, down, padding, groups=1, flip_weight=True, flip_filter=False):
    fh, fw = (1, 1) if f is None else (f.shape[0], f.shape[-1])
    left, right, top, bottom = padding
    if up > 1:
        left, right = left + (fw + up - 1) // 2, right + (fw - up) // 2
        top, bottom = top + (fh + up - 1) // 2, bottom + (fh - up) // 2
    if down > 1:
        left, right = left + (fw - down + 1) // 2, right + (fw - down) // 2
        top, bottom = top + (fh - down + 1) // 2, bottom + (fh - down) // 2
    more = {"padding": (left, right, top, bottom), "gain": up**2, "flip_filter": flip_filter}
    x = upfirdn2d(x, f if up > 1 else None, up=(up, up), **more)
    x = F.conv2d(x, w if flip_weight else w.flip([2, 3]), groups=groups)
    return upfirdn2d(x, f, down=(down, down), flip_filter=flip_filter) if down > 1 else x


def modulated_conv2d(
    x, weight, styles, noise=None, up=1, down=1, padding=0, resample_filter=None,
    demodulate=True, flip_weight=True, fused_modconv=True,
):  # fmt: skip
    """One image at a time, with weights of its own; both forms of fused_modconv are this."""
    images = []
    for image, style in zip(x, styles, strict=True):
        w = weight * style[:, None, None]
        w = w * (w.square().sum((1, 2, 3), keepdim=True) + 1e-8).rsqrt() if demodulate else w
        about = (resample_filter, up, down, (padding,) * 4, 1, flip_weight)
        images.append(conv2d_resample(image[None], w, *about))
    y = torch.cat(images)
    return y if noise is None else y + noise


def along(b, dim, x):
    """A bias in the shape that adds it along one dimension."""
    shape = [1] * x.ndim
    shape[dim] = -1
    return b.reshape(shape)


def leaky(x, bias, slope=0.2, scale=2**0.5):
    x = x if bias is None else x + along(bias, 1, x)
    return torch.where(x > 0, x, x * slope) * scale


def normal(*shape, seed=0, dtype=F64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def derivatives(function, tensors):
    """The result, its gradients, and the gradients of a penalty on those."""
    sources = [t.detach().clone().requires_grad_() for t in tensors]
    y = function(*sources)
    cotangent = normal(*y.shape, seed=9).requires_grad_()
    first = torch.autograd.grad(
        y, sources, cotangent, create_graph=True, allow_unused=True, materialize_grads=True
    )
    penalty = sum((g * normal(*g.shape, seed=8)).sum() + g.square().sum() for g in first)
    second = torch.autograd.grad(
        penalty, [*sources, cotangent], allow_unused=True, materialize_grads=True
    )
    return [y, *first, *second]


def assert_same(ours, theirs, *tensors):
    """Values, first and second order in float64: sums of at most a few hundred products."""
    for found, expected in zip(
        derivatives(ours, tensors), derivatives(theirs, tensors), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)
