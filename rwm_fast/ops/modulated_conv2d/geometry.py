"""The resampled convolution in numbers: which passes it is made of, their padding, all sizes.

u = (conv_W ∘ up_f)(z) or (down_f ∘ conv_W)(z) is one linear time-invariant system on the image
extended by zeros, so filter and convolution may be applied in the cheapest order:

- up, 3×3: transposed convolution with a stride, then the filter;
- up, 1×1: convolution, then upsampling by zeros and the filter;
- down, 3×3: the filter, then a convolution with a stride;
- down, 1×1: the filter with a stride, then the convolution.

Source: the conventions of StyleGAN2 (Karras et al., CVPR 2020, arXiv 1912.04958).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from rwm_fast.ops._memory import Activation
from rwm_fast.ops.upfirdn2d.geometry import output_size

Size = tuple[int, int]  # along y, along x


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

    @property
    def act(self) -> Activation:
        """The last part of the epilogue."""
        return Activation(*self[5:9])


class Fir(NamedTuple):
    """One call of upfirdn2d; without `filtered` it only pads, crops or resamples."""

    up: int
    down: int
    padding: Sequence[int]
    filtered: bool = True
    gain: float = 1.0

    def result(self, size: Size, taps: Size) -> Size:
        """Height and width after it, from those before it; taps of the filter along y and x."""
        taps = taps if self.filtered else (1, 1)
        return output_size(*size, taps, (self.up,) * 2, (self.down,) * 2, self.padding)


class Plan(NamedTuple):
    """The passes of a resampled convolution, in order: before, convolution, after."""

    before: Fir | None
    stride: int
    transposed: bool
    padding: Size  # of the convolution
    after: tuple[Fir, ...]

    @property
    def convolution(self) -> tuple:
        """As torch takes it: stride, padding, dilation, transposed, output padding, groups."""
        return [self.stride] * 2, list(self.padding), [1, 1], self.transposed, [0, 0], 1


@dataclass(frozen=True, eq=False)
class Geometry:
    """A layer in numbers: its passes, and the sizes before the first pass and after each.

    Told apart by identity, so that `prepared` ones are quick keys of caches.
    """

    up: int
    down: int
    padding: tuple[int, ...]
    passes: Plan
    chain: tuple[Size, ...]


def plan(up: int, down: int, padding: Sequence[int], kernel: Size, taps: Size) -> Plan:
    """The passes for one layer."""
    (kh, kw), (fh, fw) = kernel, taps
    px0, px1, py0, py1 = padding
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


def geometry(
    up: int, down: int, padding: Sequence[int], kernel: Size, taps: Size, size: Size
) -> Geometry:
    """Passes and sizes of a layer: taps of its kernel, of its filter, height and width of x."""
    passes = plan(up, down, padding, kernel, taps)
    chain = [size]
    if passes.before is not None:
        chain.append(passes.before.result(chain[-1], taps))
    chain.append(_convolved(passes, kernel, chain[-1]))
    for fir in passes.after:
        chain.append(fir.result(chain[-1], taps))
    return Geometry(up, down, tuple(padding), passes, tuple(chain))


# For plain calls, not for what torch.compile traces. Layers of a model have few geometries.
prepared = functools.lru_cache(1024)(geometry)


def _convolved(p: Plan, kernel: Size, size: Size) -> Size:
    """Height and width after the convolution itself, from those before it."""
    (kh, kw), (h, w), s = kernel, size, p.stride
    if p.transposed:
        return (h - 1) * s + kh, (w - 1) * s + kw
    ph, pw = p.padding
    return (h + 2 * ph - kh) // s + 1, (w + 2 * pw - kw) // s + 1
