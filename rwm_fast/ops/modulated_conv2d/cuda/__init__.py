"""modulated_conv2d on CUDA: torch's convolution (cuDNN) between fused passes of our own.

Forward: a ⊙ x in one pass, together with the filter before a halving; the convolution; the filter
after a doubling, demodulation, noise, bias, activation, gain and clamp in one pass. Backward the
same way round, all sums in the passes. A 1×1 layer to a few channels is one kernel (`to_rgb`).
Everything inside is channels_last. Symbols as in layer.py; kernels in csrc/upfirdn2d (filter and
epilogue) and csrc/modulated_conv2d.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rwm_fast.ops import _extension
from rwm_fast.ops._memory import (
    DTYPE_CODES,
    LAST,
    NOTHING,
    Epilogue,
    addresses,
    epilogue_record,
    place,
)
from rwm_fast.ops.modulated_conv2d.cuda import to_rgb
from rwm_fast.ops.modulated_conv2d.cuda.sums import backward_pass
from rwm_fast.ops.modulated_conv2d.demodulation import with_demodulation
from rwm_fast.ops.modulated_conv2d.eager import demodulation as demodulation
from rwm_fast.ops.modulated_conv2d.eager import demodulation_backward as demodulation_backward
from rwm_fast.ops.modulated_conv2d.geometry import Fir, Size
from rwm_fast.ops.modulated_conv2d.layer import Gradients, Layer, Needs, Sums
from rwm_fast.ops.modulated_conv2d.torch_convolution import adjoint, oriented
from rwm_fast.ops.upfirdn2d import cuda as upfirdn2d
from rwm_fast.ops.upfirdn2d.geometry import filter_size

RECOVERS = (torch.float32,)
GRADIENTS_OF_REGIONS = True


def supports(layer: Layer) -> str | None:
    """Everything the operator takes, where the CUDA module was built and there is a GPU."""
    return _extension.why_not_cuda()


def serves_plain(dtype: torch.dtype) -> bool:
    """A layer without a style stays with cuDNN and `bias_act`."""
    return False


def prepare(layer: Layer) -> None:
    """It is as it should be."""


def _empty(like: Tensor, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=LAST)


def _scaled(x: Tensor, epilogue: Epilogue) -> Tensor:
    """The epilogue alone."""
    (n, c, h, w), y, module = x.shape, _empty(x, *x.shape), _extension.cuda()
    images = module.Images(n, h * w, c, DTYPE_CODES[x.dtype])
    after = epilogue_record(module, epilogue)
    module.upfirdn2d_epilogue(images, *addresses(x, y), after, *place(x))
    return y


def _fir(
    x: Tensor, filter: Tensor | None, f: Fir, flip: bool = False, epilogue: Epilogue = NOTHING
) -> Tensor:
    """One pass of upfirdn2d with its epilogue; after an unusual filter that is a second pass."""
    filter = filter if f.filtered else None
    up, down = (f.up,) * 2, (f.down,) * 2
    n, c, h, w = x.shape
    y = _empty(x, n, c, *f.result((h, w), filter_size(filter)))
    taps = upfirdn2d.correlation(x, filter, flip, f.gain)
    fused = upfirdn2d.serves(taps, up, down)
    upfirdn2d.run(x, y, LAST, taps, up, down, f.padding, epilogue if fused else NOTHING)
    return y if fused or epilogue is NOTHING else _scaled(y, epilogue)


def _fir_adjoint(dy: Tensor, filter: Tensor | None, f: Fir, size: Size) -> Tensor:
    """The transpose of `_fir` on images of the given height and width."""
    back = adjoint(f, size, dy.shape[2:], filter_size(filter if f.filtered else None))
    return _fir(dy, filter, back, flip=True)


def _input(layer: Layer, keep: bool = False) -> Tensor:
    """What is convolved; kept between the passes of one direction, and no longer."""
    z = _made_input(layer) if layer.body is None else layer.body
    layer.body = z if keep else None
    return z


def _made_input(layer: Layer) -> Tensor:
    """The filter before a halving on a ⊙ x. With one style a goes after the filter, in one pass."""
    scale = Epilogue(scale=layer.styles, regions=layer.regions_in)
    before = layer.geometry.passes.before
    if before is None:
        return _scaled(layer.x, scale)
    if layer.regions_in is None:
        return _fir(layer.x, layer.filter, before, epilogue=scale)
    return _fir(_scaled(layer.x, scale), layer.filter, before)


def _weight(layer: Layer) -> Tensor:
    w = layer.weight.to(layer.x.dtype)
    w = oriented(w, layer.geometry.passes, layer.settings.flip_weight)
    return w.contiguous(memory_format=LAST)


def convolve(layer: Layer, epilogue: Epilogue) -> Tensor:
    """The convolution, the filters after it and the epilogue, in the last of them if there are."""
    if to_rgb.serves(layer):
        return to_rgb.forward(layer)
    p = layer.geometry.passes
    z = _input(layer, keep=epilogue is NOTHING)
    u = torch.ops.aten.convolution(z, _weight(layer), None, *p.convolution)
    u = u.contiguous(memory_format=LAST)
    for i, f in enumerate(p.after, start=1):
        last = i == len(p.after)
        u = _fir(u, layer.filter, f, epilogue=epilogue if last else NOTHING)
    return u if p.after or epilogue is NOTHING else _scaled(u, epilogue)


def in_one(layer: Layer, dy: Tensor, y: Tensor, needs: Needs) -> list[Tensor | None] | None:
    """All gradients by one kernel, where there is one for the layer."""
    if to_rgb.serves(layer) and to_rgb.serves_backward(layer, needs):
        return to_rgb.backward(layer, dy, y, needs)
    return None


def unwind(
    layer: Layer, dy: Tensor, y: Tensor, u: Tensor | None, epilogue: Epilogue, want: Sums
) -> Sums:
    """dv = act'(y)·dy and dv·u, their sums, and b·dv."""
    return backward_pass(dy, epilogue, y, u, u is None and want.scale, want)


def gradients(layer: Layer, du: Tensor, scale: Tensor | None, needs: Needs) -> Gradients:
    """The adjoint of the filters and the convolution, then that of a ⊙ x."""
    g, p = layer.geometry, layer.geometry.passes
    need_z = needs.x or needs.styles or needs.regions_in
    for i, f in reversed(tuple(enumerate(p.after, start=-len(p.after)))):
        du = _fir_adjoint(du, layer.filter, f, g.chain[i - 1])
    z = _input(layer)
    dz, dw, _ = torch.ops.aten.convolution_backward(
        du, z, _weight(layer), None, *p.convolution, [need_z, needs.weight, False]
    )
    if needs.weight:
        dw = oriented(dw, p, layer.settings.flip_weight)
        dw = with_demodulation(dw, layer.weight, scale)
    before = Sums()
    if need_z:
        dz = dz.contiguous(memory_format=LAST)
        if p.before is not None:
            dz = _fir_adjoint(dz, layer.filter, p.before, g.chain[0])
        want = Sums(du=needs.x, scale=needs.styles, regions=needs.regions_in)
        a = Epilogue(scale=layer.styles, regions=layer.regions_in)
        before = backward_pass(dz, a, None, layer.x, False, want)
    weight = dw if needs.weight else None
    return Gradients(before.du, weight, before.scale, before.regions)
