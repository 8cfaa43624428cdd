"""Launches of modulated_conv2d's Triton kernels: descriptors, grids, buffers for partial sums.

Images are [N, C, H, W] in channels_last; kernels see [N, H, W, C]. Nothing waits for the GPU and no
kernel uses atomics: sums are partial sums added up by `sum_rows`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from rwm_fast.ops import _triton
from rwm_fast.ops._memory import LAST, NOTHING, Epilogue, addresses
from rwm_fast.ops._triton import cdiv, pow2
from rwm_fast.ops.modulated_conv2d.layer import Sums
from rwm_fast.ops.modulated_conv2d.triton_kernels import configs, passes
from rwm_fast.ops.modulated_conv2d.triton_kernels import convolution as kernels


class Geometry(NamedTuple):
    """How a convolution's result pixels meet its input's: see `multiply_` in tiles.py."""

    kernel: tuple[int, int]
    up: int  # 2: transposed, with this stride
    down: int  # 2: strided
    padding: tuple[int, int]  # y, x before; a negative one crops
    size: tuple[int, int]  # of the result

    def constants(self) -> dict[str, int]:
        """As the kernels take them."""
        return {"KH": self.kernel[0], "KW": self.kernel[1], "UP": self.up, "DOWN": self.down}


ONLY_DX = Sums(du=True)


def _arguments(e: Epilogue) -> tuple:
    """An epilogue as the kernels take it."""
    slope, gain, _ = e.activation.numbers()
    return (*e[:5], e.activation.clamp, float(slope), float(gain), e.noise_step)


def _active(e: Epilogue) -> bool:
    """Whether anything happens after the bias, but for the clamp."""
    return e.activation.numbers()[:2] != (1, 1)


def empty(like: Tensor, channels: int, size: Sequence[int]) -> Tensor:
    """An image of the same number, dtype and device, channels_last."""
    shape = (like.shape[0], channels, *size)
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=LAST)


def _describable(t: Tensor, channels: int) -> bool:
    """Whether TMA can read it: rows of whole 16 bytes from a 16-byte boundary on."""
    return channels * t.element_size() % 16 == 0 and addresses(t)[0] % 16 == 0


def _image(x: Tensor, box: tuple[int, int], channels: int) -> TensorDescriptor:
    n, c, h, w = x.shape
    strides = [h * w * c, w * c, c, 1]
    return TensorDescriptor(x, [n, h, w, c], strides, [1, *box, channels])


def _described(x: Tensor, capability: tuple[int, int], *more: Tensor) -> bool:
    """Whether a kernel reads these images through descriptors: the GPU can, and the rules hold."""
    if configs.generation(capability) not in configs.DESCRIPTORS:
        return False
    return all(_describable(t, t.shape[1]) for t in (x, *more))


def _product(
    x: Tensor, w: Tensor, geometry: Geometry, scaled: bool, blended: bool
) -> tuple[tuple, int, dict]:
    """x and w [O, taps, I] as the kernel takes them; tiles of a phase; the constants of a tile.

    `scaled`: in the loop, by one style; `blended`: anywhere, by several.
    """
    (n, inputs), (outputs, taps, _) = x.shape[:2], w.shape
    size = [cdiv(s, geometry.up) for s in geometry.size]  # of one phase
    capability = _triton.capability(x.device)
    tma = geometry.down == 1 and _described(x, capability) and _describable(w, inputs)
    light = not blended and (tma or not scaled)
    pixels = n * size[0] * size[1]
    tiles = configs.convolution(capability, x.dtype, pixels, inputs, outputs, light)
    box, precision = configs.box(tiles.pixels, *size), configs.precision(w.dtype)
    if tma:
        x = _image(x, box, tiles.inputs)
        strides, block = [taps * inputs, inputs, 1], [tiles.outputs, 1, tiles.inputs]
        w = TensorDescriptor(w, [outputs, taps, inputs], strides, block)
    constants = {
        **geometry.constants(),
        "TMA": tma,
        "PRECISION": precision,
        **{"BH": box[0], "BW": box[1], "BO": tiles.outputs, "BI": tiles.inputs},
        **{"warps": tiles.warps, "stages": tiles.stages},
    }
    return (x, w), cdiv(size[0], box[0]) * cdiv(size[1], box[1]), constants


def _sizes(x: Tensor, outputs: int, geometry: Geometry) -> tuple[int, ...]:
    return (*x.shape[2:], *geometry.size, x.shape[1], outputs, *geometry.padding)


def convolution(
    x: Tensor,
    w: Tensor,  # [O, taps, I]
    geometry: Geometry,
    styles: Tensor | None = None,  # [N, K, I]
    regions: Tensor | None = None,  # [N, K, h, w]
    epilogue: Epilogue = NOTHING,
) -> Tensor:
    """epilogue(conv(w, a ⊙ x)); without styles a = 1."""
    outputs = w.shape[0]
    y = empty(x, outputs, geometry.size)
    blended = regions is not None or epilogue.regions is not None
    images, tiles, constants = _product(x, w, geometry, styles is not None, blended)
    programs = x.shape[0] * tiles * cdiv(outputs, constants["BO"]) * geometry.up**2
    _triton.launch(
        kernels.convolution,
        programs,
        x.device,
        *(*images, styles, regions, y, *_arguments(epilogue), *_sizes(x, outputs, geometry)),
        STYLES=epilogue.styles if styles is None else styles.shape[1],
        ACTIVE=_active(epilogue),
        **constants,
    )
    return y


def input_gradient(
    g: Tensor,
    w: Tensor,  # [channels of the result, taps, channels of g]
    geometry: Geometry,
    x: Tensor | None = None,
    styles: Tensor | None = None,  # [N, K, C]
    regions: Tensor | None = None,  # [N, K, H, W]
    want: Sums = ONLY_DX,
) -> Sums:
    """With dz = conv(w, g): du = a ⊙ dz, scale = Σ_p r_k·x·dz, regions = Σ_c s_k·x·dz."""
    n, outputs = g.shape[0], w.shape[0]
    images, tiles, constants = _product(g, w, geometry, False, regions is not None)
    k = 1 if styles is None else styles.shape[1]
    phases, runs, pixels = geometry.up**2, cdiv(outputs, constants["BO"]), geometry.size

    def buffer(wanted: bool, *shape: int) -> Tensor | None:
        return g.new_empty(shape, dtype=torch.float32) if wanted else None

    dx = empty(g, outputs, pixels) if want.du else None
    style_sums = buffer(want.scale, n, phases * tiles, k * outputs)
    region_sums = buffer(want.regions, 1, runs, n * k * pixels[0] * pixels[1])
    _triton.launch(
        kernels.input_gradient,
        n * tiles * runs * phases,
        g.device,
        *(*images, x, styles, regions, dx, style_sums, region_sums, n),
        *_sizes(g, outputs, geometry),
        STYLES=k,
        **constants,
    )
    return Sums(
        du=dx,
        scale=None if style_sums is None else sum_rows(style_sums).view(n, k, outputs),
        regions=None if region_sums is None else sum_rows(region_sums).view(n, k, *pixels),
    )


def weight_gradient(
    x: Tensor,
    g: Tensor,
    geometry: Geometry,  # of the convolution from x to g
    styles: Tensor | None = None,  # [N, K, I]
    regions: Tensor | None = None,  # [N, K, h, w]
) -> Tensor:
    """Σ_np (a ⊙ x)[p + tap, i]·g[p, o]: [taps, I, O], float32."""
    (n, inputs), outputs = x.shape[:2], g.shape[1]
    capability = _triton.capability(x.device)
    tiles = configs.weight_gradient(capability, x.dtype, inputs, outputs)
    loop = g.shape[2:] if geometry.up == 1 else x.shape[2:]
    box = configs.box(tiles.pixels, *loop)
    steps = n * cdiv(loop[0], box[0]) * cdiv(loop[1], box[1])
    taps = geometry.kernel[0] * geometry.kernel[1]
    programs = taps * cdiv(inputs, tiles.inputs) * cdiv(outputs, tiles.outputs)
    splits = configs.splits(capability, programs, steps)
    parts = x.new_empty((1, splits, taps * inputs * outputs), dtype=torch.float32)
    tma = geometry.up == geometry.down == 1 and _described(x, capability, g)
    images = (x, g)
    if tma:
        images = _image(x, box, tiles.inputs), _image(g, box, tiles.outputs)
    _triton.launch(
        kernels.weight_gradient,
        (programs, splits),
        x.device,
        *(*images, styles, regions, parts, n, *x.shape[2:], *g.shape[2:], inputs, outputs),
        *geometry.padding,
        **geometry.constants(),
        STYLES=1 if styles is None else styles.shape[1],
        TMA=tma,
        PRECISION=configs.precision(x.dtype),
        **{"BH": box[0], "BW": box[1], "BI": tiles.inputs, "BO": tiles.outputs},
        **{"warps": tiles.warps, "stages": tiles.stages},
    )
    return sum_rows(parts).view(taps, inputs, outputs)


def resample(
    x: Tensor,
    taps: Tensor,  # [FH, FW], a correlation, float32
    up: int,
    down: int,
    padding: tuple[int, int],  # y, x before
    size: Sequence[int],
    epilogue: Epilogue = NOTHING,
) -> Tensor:
    """Zeros between the pixels, the taps, every down-th pixel; then the epilogue."""
    n, c, h, w = x.shape
    y = empty(x, c, size)
    bp, bc, warps = configs.RESAMPLE
    bc = min(bc, pow2(c, bc))
    _triton.launch(
        passes.resample,
        n * cdiv(size[0] * size[1], bp) * cdiv(c, bc),
        x.device,
        *(x, taps, y, *_arguments(epilogue), h, w, *size, c, *padding),
        **{"FH": taps.shape[0], "FW": taps.shape[1], "UP": up, "DOWN": down},
        **{"STYLES": epilogue.styles, "ACTIVE": _active(epilogue), "BP": bp, "BC": bc},
        warps=warps,
    )
    return y


def scale_backward(
    g: Tensor, epilogue: Epilogue, y: Tensor | None, u: Tensor | None, recover: bool, want: Sums
) -> Sums:
    """dv = act'(y)·gain·g and q = dv·u (`recover`: read from y), their sums, and b ⊙ dv."""
    n, c, h, w = g.shape
    k = epilogue.styles
    bp, bc, warps = configs.SCALE_BACKWARD
    bc = min(bc, pow2(c, bc))
    tiles, runs = cdiv(h * w, bp), cdiv(c, bc)

    def buffer(wanted: bool, *shape: int) -> Tensor | None:
        return g.new_empty(shape, dtype=torch.float32) if wanted else None

    out = empty(g, c, (h, w)) if want.du else None
    parts = (
        buffer(want.scale, n, tiles, k * c),
        buffer(want.bias, 1, n * tiles, c),
        buffer(want.pixels or want.strength, 1, runs, n * h * w),
        buffer(want.regions, 1, runs, n * k * h * w),
    )
    *tensors, slope, gain, step = _arguments(epilogue)
    _triton.launch(
        passes.scale_backward,
        n * tiles * runs,
        g.device,
        *(g, y, u, *tensors, out, *parts, slope, gain, step, n, h * w, c),
        **{"STYLES": k, "ACTIVE": slope != 1, "RECOVER": recover, "BP": bp, "BC": bc},
        warps=warps,
    )
    shapes = ((n, k, c), (c,), (n, 1, h, w), (n, k, h, w))
    scale, bias, pixels, regions = (
        None if part is None else sum_rows(part).view(shape)
        for part, shape in zip(parts, shapes, strict=True)
    )
    return Sums(out, scale, bias, pixels, None, regions)


def sum_rows(parts: Tensor) -> Tensor:
    """Σ over the rows of [groups, rows, columns], in an order that depends on the sizes only."""
    groups, rows, columns = parts.shape
    if rows == 1:
        return parts[:, 0]
    out = parts.new_empty(groups, columns)
    br, bc, warps = configs.SUM_ROWS
    br = min(br, pow2(rows, br))
    programs = groups * cdiv(columns, bc)
    constants = {"BR": br, "BC": bc, "warps": warps}
    _triton.launch(passes.sum_rows, programs, parts.device, parts, out, rows, columns, **constants)
    return out
