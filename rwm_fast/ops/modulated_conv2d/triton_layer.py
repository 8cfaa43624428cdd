"""One call of modulated_conv2d as the Triton backend sees it: tensors checked, geometry worked out.

Symbols as in formula.py.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from rwm_fast.ops import _check, _cuda, _triton
from rwm_fast.ops.modulated_conv2d import triton_launch as launch
from rwm_fast.ops.modulated_conv2d._demod import demodulation
from rwm_fast.ops.modulated_conv2d._geometry import Fir, Plan, Settings, _fir_size, plan, sizes
from rwm_fast.ops.modulated_conv2d.triton_launch import LAST, NOTHING, Epilogue, Geometry
from rwm_fast.ops.upfirdn2d.autograd import adjoint_padding
from rwm_fast.ops.upfirdn2d.reference import taps

OP = "modulated_conv2d"


class Layer(NamedTuple):
    """The tensors of one call, checked: images channels_last in x's dtype, the rest float32."""

    x: Tensor  # [N, I, h, w]
    weight: Tensor  # [O, I, kh, kw], as it came
    styles: Tensor  # [N, K, I]
    regions_in: Tensor | None  # [N, K, h, w]
    regions_out: Tensor | None  # [N, K, H, W]
    noise: Tensor | None  # [N or 1, 1, H, W]
    strength: Tensor | None  # []
    bias: Tensor | None  # [O]
    filter: Tensor | None
    settings: Settings
    passes: Plan
    chain: list[tuple[int, int]]  # sizes before the first pass and after each

    @property
    def before(self) -> Fir | None:
        """The filter before the convolution; mere padding and cropping the convolution does."""
        fir = self.passes.before
        return None if fir is None or not fir.filtered else fir

    @property
    def geometry(self) -> Geometry:
        """Of the convolution."""
        p, fir = self.passes, self.passes.before
        shift = (0, 0) if fir is None or fir.filtered else (fir.padding[2], fir.padding[0])
        padding = (p.padding[0] + shift[0], p.padding[1] + shift[1])
        up, down = (p.stride, 1) if p.transposed else (1, p.stride)
        size = self.chain[1 if fir is None else 2]
        return Geometry(tuple(self.weight.shape[2:]), up, down, padding, size)

    @property
    def adjoint(self) -> Geometry:
        """Of the convolution that takes gradients back."""
        g, p = self.geometry, self.passes
        size = self.chain[0 if self.before is None else 1]
        if g.up == g.down == 1:
            padding = (g.kernel[0] - 1 - g.padding[0], g.kernel[1] - 1 - g.padding[1])
            return g._replace(padding=padding, size=size)
        assert g.padding == (0, 0), f"a strided convolution is planned without padding: {p}"
        return g._replace(up=g.down, down=g.up, size=size)

    @property
    def flipped(self) -> bool:
        """Whether the kernel is turned over: a transposed convolution scatters."""
        return self.settings.flip_weight == self.passes.transposed

    def packed(self) -> Tensor:
        """The weight as `convolution` takes it: [O, taps, I] in x's dtype."""
        w = self.weight.to(self.x.dtype)
        w = w.flip((2, 3)) if self.flipped else w
        return w.permute(0, 2, 3, 1).flatten(1, 2).contiguous()

    def packed_adjoint(self) -> Tensor:
        """The weight as `input_gradient` takes it: [I, taps, O] in x's dtype."""
        w = self.weight.to(self.x.dtype)
        # Without a stride the adjoint is a correlation again, by the kernel turned over.
        turned = self.geometry.up == self.geometry.down == 1
        w = w.flip((2, 3)) if self.flipped != turned else w
        return w.permute(1, 2, 3, 0).flatten(1, 2).contiguous()

    def unpacked(self, dw: Tensor) -> Tensor:
        """A gradient [taps, I, O] in the weight's shape."""
        dw = dw.permute(2, 1, 0).unflatten(2, self.weight.shape[2:])
        return dw.flip((2, 3)) if self.flipped else dw

    def epilogue(self) -> Epilogue:
        """What follows the convolution and its filters."""
        _, _, _, demodulate, _, activation, slope, gain, clamp, eps = self.settings
        d = demodulation(self.weight, self.styles, eps).contiguous() if demodulate else None
        slope = 1.0 if activation == "linear" else slope
        regions = self.regions_out if demodulate else None
        return Epilogue(d, regions, self.noise, self.strength, self.bias, clamp, slope, gain)

    def fir(self, x: Tensor, fir: Fir, epilogue: Epilogue = NOTHING) -> Tensor:
        """One pass of the filter, and what follows it."""
        kernel = taps(self._filter(), self.styles, False, fir.gain)  # [FH, FW]
        size = _fir_size(fir, self.filter, x.shape[2:])
        padding = (fir.padding[2], fir.padding[0])
        return launch.resample(x, kernel.contiguous(), fir.up, fir.down, padding, size, epilogue)

    def fir_adjoint(self, dy: Tensor, fir: Fir, size: tuple[int, int]) -> Tensor:
        """The transpose of `fir` on images of the given height and width."""
        kernel = taps(self._filter(), self.styles, True, fir.gain)
        up, down = (fir.up,) * 2, (fir.down,) * 2
        p = adjoint_padding(size, dy.shape[2:], self.filter, up, down, fir.padding)
        return launch.resample(dy, kernel.contiguous(), fir.down, fir.up, (p[2], p[0]), size)

    def _filter(self) -> Tensor | None:
        return None if self.filter is None else self.filter.to(self.styles)


def checked(
    x: Tensor,
    weight: Tensor,
    styles: Tensor,
    regions_in: Tensor | None,
    regions_out: Tensor | None,
    noise: Tensor | None,
    strength: Tensor | None,
    bias: Tensor | None,
    filter: Tensor | None,
    settings: Settings,
) -> Layer:
    """The arguments of the raw `forward`; converted where they are not as the kernels want them."""
    _check.floating(OP, "x", x)
    _check.require(x.ndim == 4, OP, "x must be [N, I, h, w]", x)
    _check.floating(OP, "weight", weight)
    fits = weight.ndim == 4 and weight.shape[1] == x.shape[1] and weight.device == x.device
    _check.require(fits, OP, f"weight must be [O, {x.shape[1]}, kh, kw] on {x.device}", weight)
    _check.require(styles.ndim == 3, OP, "styles must be [N, K, I]", styles)
    passes = plan(settings, weight, filter)
    chain = sizes(passes, weight, filter, *x.shape[2:])
    (n, i), k, o, size = x.shape[:2], styles.shape[1], weight.shape[0], chain[-1]

    def dense(name: str, t: Tensor | None, *shape: int) -> Tensor | None:
        wide = torch.float32
        return None if t is None else _cuda.dense(OP, name, t.to(wide), x.device, shape, (wide,))

    maps = 1 if noise is None else noise.shape[0]
    _check.require(maps in (1, n), OP, "noise must be [N or 1, 1, H, W]", noise)
    return Layer(
        _cuda.dense(OP, "x", x, x.device, x.shape, _triton.DTYPES, LAST),
        weight,
        dense("styles", styles, n, k, i),
        dense("regions_in", regions_in, n, k, *x.shape[2:]),
        dense("regions_out", regions_out, n, k, *size),
        dense("noise", noise, maps, 1, *size),
        dense("noise_strength", strength),
        dense("bias", bias, o),
        filter,
        settings,
        passes,
        chain,
    )
