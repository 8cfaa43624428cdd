"""modulated_conv2d in Triton: fused convolutions on the tensor cores, and the passes around them.

Forward: the style scales the weight's tile (several styles: the pixels' tile) in registers on its
way into the product; demodulation, noise, bias, activation, gain and clamp are in the epilogue of
the convolution, or of the filter after a doubling. Backward: one pass makes du and its sums, one
convolution dx with the styles' sums, one product dW. Symbols as in layer.py. Everything inside is
channels_last.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from rwm_fast.ops import _triton
from rwm_fast.ops._memory import NOTHING, Epilogue
from rwm_fast.ops.modulated_conv2d.demodulation import with_demodulation
from rwm_fast.ops.modulated_conv2d.eager import demodulation as demodulation
from rwm_fast.ops.modulated_conv2d.eager import demodulation_backward as demodulation_backward
from rwm_fast.ops.modulated_conv2d.layer import Gradients, Layer, Needs, Sums
from rwm_fast.ops.modulated_conv2d.triton_kernels import launch
from rwm_fast.ops.modulated_conv2d.triton_kernels.operands import Operands
from rwm_fast.ops.upfirdn2d.geometry import filter_size

RECOVERS = (torch.float32,)
GRADIENTS_OF_REGIONS = True
MOST_STYLES = 8  # the loop over them is unrolled
MOST_TAPS = 8  # a side, of the filter: so is the loop over its taps


def supports(layer: Layer) -> str | None:
    """1×1 and 3×3 kernels, up 2 or down 2, half precision and float32."""
    settings = layer.settings
    kernel = tuple(layer.weight.shape[2:])
    styles = 1 if layer.styles is None else layer.styles.shape[1]
    rules = {
        f"the triton kernels are 1×1 and 3×3, this one is {kernel[0]}×{kernel[1]}": (
            kernel not in ((1, 1), (3, 3))
        ),
        "the triton kernels resample by 2, either up or down": (
            (settings.up, settings.down) not in ((1, 1), (2, 1), (1, 2))
        ),
        f"the triton kernels take filters of up to {MOST_TAPS}×{MOST_TAPS} taps": (
            max(filter_size(layer.filter)) > MOST_TAPS
        ),
        f"the triton kernels take up to {MOST_STYLES} styles": styles > MOST_STYLES,
        "an image has 2³¹ numbers or more": _largest_image(layer) >= 2**31,
    }
    broken = (rule for rule, holds in rules.items() if holds)
    return _triton.supports(layer) or next(broken, None)


def _largest_image(layer: Layer) -> int:
    """An upper bound: of the input or the result, with the border that a filter adds."""
    border = sum(map(abs, layer.settings.padding)) + MOST_TAPS
    h, w = ((s + border) * layer.settings.up for s in layer.x.shape[2:])
    return max(layer.weight.shape[:2]) * h * w


def serves_plain(dtype: torch.dtype) -> bool:
    """A layer without a style stays with cuDNN and `bias_act`."""
    return False


class Source(NamedTuple):
    """What the convolution reads: an image, and a in vectors; without styles it is scaled."""

    x: Tensor
    styles: Tensor | None
    regions: Tensor | None


def prepare(layer: Layer) -> None:
    """The weight and the geometry as the kernels take them."""
    layer.body = Operands(layer)


def _source(layer: Layer, keep: bool = False) -> Source:
    """What is convolved; kept between the passes of one direction, and no longer."""
    source = layer.body.source or _made_source(layer)
    layer.body.source = source if keep else None
    return source


def _made_source(layer: Layer) -> Source:
    """x, after the filter before a halving: that commutes with one style, but not with several."""
    operands = layer.body
    if operands.before is None:
        return Source(layer.x, layer.styles, layer.regions_in)
    if layer.regions_in is None:
        return Source(operands.fir(layer.x, operands.before), layer.styles, None)
    scaled = Epilogue(scale=layer.styles, regions=layer.regions_in)
    nothing = layer.styles.new_ones(1, 1)
    z = launch.resample(layer.x, nothing, 1, 1, (0, 0), layer.x.shape[2:], scaled)
    return Source(operands.fir(z, operands.before), None, None)


def convolve(layer: Layer, epilogue: Epilogue) -> Tensor:
    """The convolution, the filter after it and the epilogue, in the last of them."""
    operands, after = layer.body, layer.geometry.passes.after
    source = _source(layer, keep=epilogue is NOTHING)
    u = launch.convolution(
        source.x,
        operands.packed(),
        operands.geometry,
        source.styles,
        source.regions,
        NOTHING if after else epilogue,
    )
    return operands.fir(u, after[0], epilogue) if after else u


def unwind(
    layer: Layer, dy: Tensor, y: Tensor, u: Tensor | None, epilogue: Epilogue, want: Sums
) -> Sums:
    """dv = act'(y)·dy and dv·u, their sums, and b·dv."""
    return launch.scale_backward(dy, epilogue, y, u, u is None and bool(want.scale), want)


def gradients(layer: Layer, du: Tensor, scale: Tensor | None, needs: Needs) -> Gradients:
    """One convolution for dx with the sums of styles and regions, one product for dW."""
    operands, source, dw = layer.body, _source(layer), None
    if layer.geometry.passes.after:
        after = layer.geometry.passes.after[0]
        du = operands.fir_adjoint(du, after, operands.geometry.size)
    need_z = needs.x or needs.styles or needs.regions_in
    before = _input_gradients(layer, source, du, needs) if need_z else Gradients()
    if needs.weight:
        geometry = operands.geometry
        parts = launch.weight_gradient(source.x, du, geometry, source.styles, source.regions)
        dw = operands.unpacked(parts)  # from [taps, I, O]
        dw = with_demodulation(dw, layer.weight, scale)
    return before._replace(weight=dw)


def _input_gradients(layer: Layer, source: Source, du: Tensor, needs: Needs) -> Gradients:
    """dx; ds = Σ_p r_k·x·dz; dr = Σ_i s_k·x·dz."""
    operands, size = layer.body, layer.geometry.chain[0]
    want = Sums(du=needs.x, scale=needs.styles, regions=needs.regions_in)
    weight = operands.packed_adjoint()
    if source.styles is None:
        dz = launch.input_gradient(du, weight, operands.adjoint, want=launch.ONLY_DX).du
        dz = operands.fir_adjoint(dz, operands.before, size)
        scale = Epilogue(scale=layer.styles, regions=layer.regions_in)
        found = launch.scale_backward(dz, scale, None, layer.x, False, want)
        return Gradients(found.du, None, found.scale, found.regions)
    found = launch.input_gradient(
        du, weight, operands.adjoint, source.x, source.styles, source.regions, want
    )
    dx = found.du
    if dx is not None and operands.before is not None:
        dx = operands.fir_adjoint(dx, operands.before, size)
    return Gradients(dx, None, found.scale, found.regions)
