"""A layer's weight and geometry as the Triton kernels take them."""

from __future__ import annotations

import functools
from typing import Any

from torch import Tensor

from rwm_fast.ops._memory import NOTHING, Epilogue
from rwm_fast.ops.modulated_conv2d.geometry import Fir, Size
from rwm_fast.ops.modulated_conv2d.layer import Layer
from rwm_fast.ops.modulated_conv2d.torch_convolution import adjoint
from rwm_fast.ops.modulated_conv2d.triton_kernels import launch
from rwm_fast.ops.modulated_conv2d.triton_kernels.launch import Geometry
from rwm_fast.ops.upfirdn2d.geometry import filter_size
from rwm_fast.ops.upfirdn2d.reference import taps


class Operands:
    """What one call needs beside its images."""

    def __init__(self, layer: Layer) -> None:
        # not the layer itself: it holds this object, and a circle would keep its images alive
        self.weight, self.filter, self.styles = layer.weight, layer.filter, layer.styles
        self.flip_weight, self.dtype = layer.settings.flip_weight, layer.x.dtype
        self.passes, self.chain = layer.geometry.passes, layer.geometry.chain
        self.source: Any = None  # see `_source`

    @property
    def before(self) -> Fir | None:
        """The filter before the convolution; mere padding and cropping the convolution does."""
        fir = self.passes.before
        return None if fir is None or not fir.filtered else fir

    @functools.cached_property
    def geometry(self) -> Geometry:
        """Of the convolution."""
        p, fir = self.passes, self.passes.before
        shift = (0, 0) if fir is None or fir.filtered else (fir.padding[2], fir.padding[0])
        padding = (p.padding[0] + shift[0], p.padding[1] + shift[1])
        up, down = (p.stride, 1) if p.transposed else (1, p.stride)
        size = self.chain[1 if fir is None else 2]
        _, _, kh, kw = self.weight.shape
        return Geometry((kh, kw), up, down, padding, size)

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
        return self.flip_weight == self.passes.transposed

    def packed(self) -> Tensor:
        """The weight as `convolution` takes it: [O, taps, I] in x's dtype."""
        w = self.weight.to(self.dtype)
        w = w.flip((2, 3)) if self.flipped else w
        return w.permute(0, 2, 3, 1).flatten(1, 2).contiguous()

    def packed_adjoint(self) -> Tensor:
        """The weight as `input_gradient` takes it: [I, taps, O] in x's dtype."""
        w = self.weight.to(self.dtype)
        # Without a stride the adjoint is a correlation again, by the kernel turned over.
        turned = self.geometry.up == self.geometry.down == 1
        w = w.flip((2, 3)) if self.flipped != turned else w
        return w.permute(1, 2, 3, 0).flatten(1, 2).contiguous()

    def unpacked(self, dw: Tensor) -> Tensor:
        """A gradient [taps, I, O] in the weight's shape."""
        dw = dw.permute(2, 1, 0).unflatten(2, self.weight.shape[2:])
        return dw.flip((2, 3)) if self.flipped else dw

    def fir(self, x: Tensor, fir: Fir, epilogue: Epilogue = NOTHING) -> Tensor:
        """One pass of the filter, and what follows it."""
        filter = self._filter()
        kernel = taps(filter, self.styles, False, fir.gain)  # [FH, FW]
        _, _, h, w = x.shape
        size = fir.result((h, w), filter_size(filter))
        padding = (fir.padding[2], fir.padding[0])
        return launch.resample(x, kernel.contiguous(), fir.up, fir.down, padding, size, epilogue)

    def fir_adjoint(self, dy: Tensor, fir: Fir, size: Size) -> Tensor:
        """The transpose of `fir` on images of the given height and width."""
        filter = self._filter()
        kernel = taps(filter, self.styles, True, fir.gain)
        back = adjoint(fir, size, dy.shape[2:], filter_size(filter))
        padding = (back.padding[2], back.padding[0])
        return launch.resample(dy, kernel.contiguous(), back.up, back.down, padding, size)

    def _filter(self) -> Tensor | None:
        filter, styles = self.filter, self.styles
        return None if filter is None else filter.to(styles)
