"""modulated_conv2d in Triton: fused convolutions on the tensor cores, and the passes around them.

Forward: the style scales the weight's tile (several styles: the pixels' tile) in registers on its
way into the product; demodulation, noise, bias, activation, gain and clamp are in the epilogue of
the convolution, or of the filter after a doubling. Backward: one pass makes du and its sums, one
convolution dx with the styles' sums, one product dW. Symbols as in formula.py. Everything inside is
channels_last.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from rwm_fast.ops import _cuda, _layout, _triton
from rwm_fast.ops.modulated_conv2d import triton_launch as launch
from rwm_fast.ops.modulated_conv2d._demod import demodulation_backward
from rwm_fast.ops.modulated_conv2d._geometry import Settings
from rwm_fast.ops.modulated_conv2d.triton_launch import LAST, NOTHING, Epilogue
from rwm_fast.ops.modulated_conv2d.triton_layer import Layer, checked
from rwm_fast.ops.upfirdn2d.reference import filter_size

OP = "modulated_conv2d"
MOST_STYLES = 8  # the loop over them is unrolled
MOST_TAPS = 8  # a side, of the filter: so is the loop over its taps


def supports(tensors: Sequence[Tensor | None], **facts: object) -> str | None:
    """1×1 and 3×3 kernels, up 2 or down 2, half precision and float32."""
    x, weight, styles = tensors[:3]
    filter, settings = tensors[8], facts["settings"]
    fh, fw = filter_size(filter)
    kernel = tuple(weight.shape[2:])
    rules = {
        f"the triton kernels are 1×1 and 3×3, this one is {kernel[0]}×{kernel[1]}": (
            kernel not in ((1, 1), (3, 3))
        ),
        "the triton kernels resample by 2, either up or down": (
            (settings.up, settings.down) not in ((1, 1), (2, 1), (1, 2))
        ),
        f"the triton kernels take filters of up to {MOST_TAPS}×{MOST_TAPS} taps": (
            max(fh, fw) > MOST_TAPS
        ),
        f"the triton kernels take up to {MOST_STYLES} styles": styles.shape[1] > MOST_STYLES,
        "an image has 2³¹ numbers or more": _largest_image(x, weight, settings) >= 2**31,
    }
    # The filter may be of any dtype: its taps are converted.
    broken = (rule for rule, holds in rules.items() if holds)
    return _triton.supports(tensors[:8]) or next(broken, None)


def _largest_image(x: Tensor, weight: Tensor, settings: Settings) -> int:
    """An upper bound: of the input or the result, with the border that a filter adds."""
    h, w = ((s + sum(map(abs, settings.padding)) + MOST_TAPS) * settings.up for s in x.shape[2:])
    return max(weight.shape[:2]) * h * w


def forward(x: Tensor, *arguments: object) -> Tensor:
    """y = act(b·conv(W, a·x) + strength·noise + bias)·gain, clamped, in x's memory format."""
    layer = checked(x, *arguments)
    if not x.shape[0]:
        return _layout.empty(x, (0, layer.weight.shape[0], *layer.chain[-1]))
    y = _convolved(layer, _source(layer), layer.epilogue())
    return y.contiguous(memory_format=_layout.memory_format(x))


class Source(NamedTuple):
    """What the convolution reads: an image, and a in vectors; without styles it is scaled."""

    x: Tensor
    styles: Tensor | None
    regions: Tensor | None


def _source(layer: Layer) -> Source:
    """x, after the filter before a halving: that commutes with one style, but not with several."""
    if layer.before is None:
        return Source(layer.x, layer.styles, layer.regions_in)
    if layer.regions_in is None:
        return Source(layer.fir(layer.x, layer.before), layer.styles, None)
    scaled = Epilogue(scale=layer.styles, regions=layer.regions_in)
    nothing = layer.styles.new_ones(1, 1)
    z = launch.resample(layer.x, nothing, 1, 1, (0, 0), layer.x.shape[2:], scaled)
    return Source(layer.fir(z, layer.before), None, None)


def _convolved(layer: Layer, source: Source, epilogue: Epilogue) -> Tensor:
    """The convolution, the filter after it and the epilogue, in the last of them."""
    after = layer.passes.after
    u = launch.convolution(
        source.x,
        layer.packed(),
        layer.geometry,
        source.styles,
        source.regions,
        NOTHING if after else epilogue,
    )
    return layer.fir(u, after[0], epilogue) if after else u


def backward(dy: Tensor, y: Tensor, x: Tensor, *arguments: object) -> tuple[Tensor, ...]:
    """The gradients of `formula.backward`, in the arguments' memory formats, empty for None."""
    *arguments, needs = arguments
    layer = checked(x, *arguments)
    inputs = (x, *arguments[:7])
    if not x.shape[0]:
        grads = [
            torch.zeros_like(t) if need else None for t, need in zip(inputs, needs, strict=True)
        ]
    else:
        shape = (x.shape[0], layer.weight.shape[0], *layer.chain[-1])
        dy = _cuda.dense(OP, "dy", dy, x.device, shape, (x.dtype,), LAST)
        y = _cuda.dense(OP, "y", y, x.device, shape, (x.dtype,), LAST)
        grads = _backward(layer, dy, y, needs)
    return tuple(
        x.new_empty(0, dtype=x.dtype if t is None else t.dtype)
        if not need
        else g.to(t.dtype).contiguous(memory_format=_layout.memory_format(t))
        for g, t, need in zip(grads, inputs, needs, strict=True)
    )


def _backward(
    layer: Layer, dy: Tensor, y: Tensor, needs: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    need_x, need_w, need_s, need_r_in, need_r_out, need_noise, need_strength, need_bias = needs
    need_d = layer.settings.demodulate and (need_w or need_s or need_r_out)
    need_z = need_x or need_s or need_r_in
    # see formula._recovers for when u is read back from y
    recover = need_d and layer.x.dtype == torch.float32 and not need_r_out
    source = _source(layer) if need_w or need_z or (need_d and not recover) else None
    u = _convolved(layer, source, NOTHING) if need_d and not recover else None
    epilogue = layer.epilogue()
    wanted = {
        "out": need_z or need_w,
        "styles": need_d,
        "bias": need_bias,
        "pixels": need_noise or need_strength,
        "regions": need_d and need_r_out,
    }
    after = launch.scale_backward(dy, epilogue, y, u, recover, [n for n, w in wanted.items() if w])
    dnoise = dstrength = None
    if need_noise or need_strength:
        dnoise, dstrength = _noise_backward(layer, after["pixels"])
    dw = ds = 0
    if need_d:
        ds, dw = demodulation_backward(after["styles"], epilogue.scale, layer.weight, layer.styles)
    du = after["out"]
    if layer.passes.after and du is not None:
        du = layer.fir_adjoint(du, layer.passes.after[0], layer.geometry.size)
    before = _input_backward(layer, source, du, need_x, need_s, need_r_in) if need_z else {}
    if need_w:
        parts = launch.weight_gradient(
            source.x, du, layer.geometry, source.styles, source.regions
        )  # [taps, I, O]
        dw = dw + layer.unpacked(parts)
    return (
        before.get("x"),
        dw,
        ds + before["styles"] if need_s else None,
        before.get("regions"),
        after.get("regions"),
        dnoise,
        dstrength,
        after.get("bias"),
    )


def _noise_backward(layer: Layer, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """dnoise = strength·Σ_o dv, summed over the images that share it; dstrength = Σ noise·dv."""
    if layer.noise.shape[0] != pixels.shape[0]:
        shape = (1, *pixels.shape[1:])
        pixels = launch.sum_rows(pixels.reshape(1, pixels.shape[0], -1)).view(shape)
    dstrength = (pixels * layer.noise).sum()
    return pixels if layer.strength is None else layer.strength * pixels, dstrength


def _input_backward(
    layer: Layer, source: Source, du: Tensor, need_x: bool, need_s: bool, need_r_in: bool
) -> dict[str, Tensor]:
    """ "x" dx; "styles" Σ_p r_k·x·dz; "regions" Σ_i s_k·x·dz."""
    want = {"x": need_x, "styles": need_s, "regions": need_r_in}
    want = [name for name, wanted in want.items() if wanted]
    weight, size = layer.packed_adjoint(), layer.chain[0]
    if source.styles is None:
        dz = launch.input_gradient(du, weight, layer.adjoint)["x"]
        dz = layer.fir_adjoint(dz, layer.before, size)
        scale = Epilogue(scale=layer.styles, regions=layer.regions_in)
        renamed = ["out" if name == "x" else name for name in want]
        found = launch.scale_backward(dz, scale, u=layer.x, want=renamed)
        return {**found, "x": found["out"]}
    found = launch.input_gradient(
        du, weight, layer.adjoint, source.x, source.styles, source.regions, want
    )
    if need_x and layer.before is not None:
        found["x"] = layer.fir_adjoint(found["x"], layer.before, size)
    return found
