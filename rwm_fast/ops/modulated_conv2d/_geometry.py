"""The resampled convolution: which passes it is made of, their padding, and its adjoint.

u = (conv_W ∘ up_f)(z) or (down_f ∘ conv_W)(z) is one linear time-invariant system on the image
extended by zeros, so filter and convolution may be applied in the cheapest order:

- up, 3×3: transposed convolution with a stride, then the filter;
- up, 1×1: convolution, then upsampling by zeros and the filter;
- down, 3×3: the filter, then a convolution with a stride;
- down, 1×1: the filter with a stride, then the convolution.

Source: the conventions of StyleGAN2 (Karras et al., CVPR 2020, arXiv 1912.04958).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from rwm_fast.ops.modulated_conv2d._convolution import convolution, convolution_backward
from rwm_fast.ops.upfirdn2d.autograd import adjoint_padding
from rwm_fast.ops.upfirdn2d.reference import filter_size, output_size, upfirdn2d


class Settings(NamedTuple):
    """The arguments of the operator that are not tensors."""

    up: int
    down: int
    padding: Sequence[int]  # of the upsampled image: x before, x after, y before, y after
    demodulate: bool
    flip_weight: bool
    activation: str
    slope: float
    gain: float
    clamp: float | None
    eps: float


class Fir(NamedTuple):
    """One call of upfirdn2d; without `filtered` it only pads, crops or resamples."""

    up: int
    down: int
    padding: Sequence[int]
    filtered: bool = True
    gain: float = 1.0


class Plan(NamedTuple):
    """The passes of a resampled convolution, in order: before, convolution, after."""

    before: Fir | None
    stride: int
    transposed: bool
    padding: tuple[int, int]  # of the convolution: y, x
    after: tuple[Fir, ...]


def plan(settings: Settings, weight: Tensor, filter: Tensor | None) -> Plan:
    """The passes for one layer."""
    up, down = settings.up, settings.down
    (kh, kw), (fh, fw) = weight.shape[2:], filter_size(filter)
    px0, px1, py0, py1 = settings.padding
    if up > 1:
        px0, px1 = px0 + (fw + up - 1) // 2, px1 + (fw - up) // 2
        py0, py1 = py0 + (fh + up - 1) // 2, py1 + (fh - up) // 2
    if down > 1:
        px0, px1 = px0 + (fw - down + 1) // 2, px1 + (fw - down) // 2
        py0, py1 = py0 + (fh - down + 1) // 2, py1 + (fh - down) // 2
    padding = (px0, px1, py0, py1)
    pointwise = kh == 1 and kw == 1
    if up > 1 and down == 1 and pointwise:
        return Plan(None, 1, False, (0, 0), (Fir(up, 1, padding, gain=up**2),))
    if up > 1:
        # a transposed convolution answers as if padded by a kernel less one on every side
        rest = (px0 - (kw - 1), px1 - (kw - up), py0 - (kh - 1), py1 - (kh - up))
        after = (Fir(1, 1, rest, gain=up**2), Fir(1, down, (0, 0, 0, 0)))
        return Plan(None, up, True, (0, 0), after[: 1 if down == 1 else 2])
    if down > 1 and pointwise:
        return Plan(Fir(1, down, padding), 1, False, (0, 0), ())
    if down > 1:
        return Plan(Fir(1, 1, padding), down, False, (0, 0), ())
    if px0 == px1 >= 0 and py0 == py1 >= 0:
        return Plan(None, 1, False, (py0, px0), ())
    return Plan(Fir(1, 1, padding, filtered=False), 1, False, (0, 0), ())


def convolved_size(p: Plan, weight: Tensor, height: int, width: int) -> tuple[int, int]:
    """Height and width after the convolution itself, from those before it."""
    kh, kw = weight.shape[2:]
    if p.transposed:
        return (height - 1) * p.stride + kh, (width - 1) * p.stride + kw
    (ph, pw), s = p.padding, p.stride
    return (height + 2 * ph - kh) // s + 1, (width + 2 * pw - kw) // s + 1


def sizes(
    p: Plan, weight: Tensor, filter: Tensor | None, height: int, width: int
) -> list[tuple[int, int]]:
    """Height and width before the first pass and after each: one more than there are passes."""
    chain = [(height, width)]
    if p.before is not None:
        chain.append(_fir_size(p.before, filter, chain[-1]))
    chain.append(convolved_size(p, weight, *chain[-1]))
    for fir in p.after:
        chain.append(_fir_size(fir, filter, chain[-1]))
    return chain


def convolve(
    z: Tensor,  # [N, I, h, w]
    weight: Tensor,  # [O, I, kh, kw], z's dtype
    filter: Tensor | None,
    p: Plan,
    flip_weight: bool,
) -> Tensor:
    """u [N, O, H, W]; differentiable by torch to any order."""
    z = z if p.before is None else _fir(z, filter, p.before)
    u = convolution(z, _oriented(weight, p, flip_weight), _convolution_arguments(p))
    for fir in p.after:
        u = _fir(u, filter, fir)
    return u


def convolve_backward(
    du: Tensor,  # [N, O, H, W]
    z: Tensor,  # [N, I, h, w]
    weight: Tensor,  # [O, I, kh, kw], z's dtype
    filter: Tensor | None,
    p: Plan,
    flip_weight: bool,
    needs: tuple[bool, bool],
) -> tuple[Tensor | None, Tensor | None]:
    """The adjoint: dz and dW (None where not needed); differentiable by torch to any order."""
    chain = sizes(p, weight, filter, *z.shape[2:])
    for i, fir in reversed(tuple(enumerate(p.after, start=-len(p.after)))):
        du = _fir_adjoint(du, filter, fir, chain[i - 1])
    z_in = z if p.before is None else _fir(z, filter, p.before)
    w, arguments = _oriented(weight, p, flip_weight), _convolution_arguments(p)
    dz, dweight = convolution_backward(du, z_in, w, arguments, needs)
    if needs[0] and p.before is not None:
        dz = _fir_adjoint(dz, filter, p.before, chain[0])
    # turning the weight is its own adjoint
    return dz if needs[0] else None, _oriented(dweight, p, flip_weight) if needs[1] else None


def _oriented(weight: Tensor, p: Plan, flip_weight: bool) -> Tensor:
    """The weight as torch's convolution wants it: a transposed one scatters, so turns it over."""
    weight = weight.flip((2, 3)) if flip_weight == p.transposed else weight
    return weight.transpose(0, 1) if p.transposed else weight


def _convolution_arguments(p: Plan) -> tuple:
    """stride, padding, dilation, transposed, output padding, groups."""
    return [p.stride] * 2, list(p.padding), [1, 1], p.transposed, [0, 0], 1


def _fir(x: Tensor, filter: Tensor | None, fir: Fir) -> Tensor:
    up, down = (fir.up,) * 2, (fir.down,) * 2
    return upfirdn2d(x, filter if fir.filtered else None, up, down, fir.padding, False, fir.gain)


def _fir_size(fir: Fir, filter: Tensor | None, size: tuple[int, int]) -> tuple[int, int]:
    up, down = (fir.up,) * 2, (fir.down,) * 2
    return output_size(*size, filter if fir.filtered else None, up, down, fir.padding)


def _fir_adjoint(dy: Tensor, filter: Tensor | None, fir: Fir, size: tuple[int, int]) -> Tensor:
    """The transpose of `_fir` on images of the given height and width."""
    filter = filter if fir.filtered else None
    up, down = (fir.up,) * 2, (fir.down,) * 2
    padding = adjoint_padding(size, dy.shape[2:], filter, up, down, fir.padding)
    return upfirdn2d(dy, filter, down, up, padding, True, fir.gain)
