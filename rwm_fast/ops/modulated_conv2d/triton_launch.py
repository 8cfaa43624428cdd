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
from rwm_fast.ops._cuda import address
from rwm_fast.ops._triton import cdiv, pow2
from rwm_fast.ops.modulated_conv2d import triton_configs as configs
from rwm_fast.ops.modulated_conv2d import triton_convolution as kernels
from rwm_fast.ops.modulated_conv2d import triton_passes as passes

LAST = torch.channels_last


class Geometry(NamedTuple):
    """How a convolution's result pixels meet its input's: see `multiply_` in triton_tiles.py."""

    kernel: tuple[int, int]
    up: int  # 2: transposed, with this stride
    down: int  # 2: strided
    padding: tuple[int, int]  # y, x before; a negative one crops
    size: tuple[int, int]  # of the result

    def constants(self) -> dict[str, int]:
        """As the kernels take them."""
        return {"KH": self.kernel[0], "KW": self.kernel[1], "UP": self.up, "DOWN": self.down}


class Epilogue(NamedTuple):
    """act(scale ⊙ v + strength·noise + bias)·gain, clamped; all tensors float32."""

    scale: Tensor | None = None  # [N, K, C]
    regions: Tensor | None = None  # [N, K, H, W]
    noise: Tensor | None = None  # [N or 1, 1, H, W]
    strength: Tensor | None = None  # []
    bias: Tensor | None = None  # [C]
    clamp: float | None = None
    slope: float = 1.0
    gain: float = 1.0

    def arguments(self) -> tuple:
        """As the kernels take them."""
        shared = self.noise is None or self.noise.shape[0] == 1
        step = 0 if shared else self.noise[0].numel()
        return (*self[:6], float(self.slope), float(self.gain), step)

    @property
    def styles(self) -> int:
        """K."""
        return 1 if self.scale is None else self.scale.shape[1]

    @property
    def active(self) -> bool:
        """Whether anything happens after the bias, but for the clamp."""
        return self.slope != 1 or self.gain != 1


NOTHING = Epilogue()


def empty(like: Tensor, channels: int, size: Sequence[int]) -> Tensor:
    """An image of the same number, dtype and device, channels_last."""
    shape = (like.shape[0], channels, *size)
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=LAST)


def _describable(t: Tensor, channels: int) -> bool:
    """Whether TMA can read it: rows of whole 16 bytes from a 16-byte boundary on."""
    return channels * t.element_size() % 16 == 0 and address(t) % 16 == 0


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
    box = configs.box(tiles.pixels, *size)
    if tma:
        x = _image(x, box, tiles.inputs)
        strides, block = [taps * inputs, inputs, 1], [tiles.outputs, 1, tiles.inputs]
        w = TensorDescriptor(w, [outputs, taps, inputs], strides, block)
    constants = {
        **geometry.constants(),
        "TMA": tma,
        "PRECISION": configs.precision(w.base.dtype if tma else w.dtype),
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
        *(*images, styles, regions, y, *epilogue.arguments(), *_sizes(x, outputs, geometry)),
        STYLES=epilogue.styles if styles is None else styles.shape[1],
        ACTIVE=epilogue.active,
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
    want: Sequence[str] = ("x",),
) -> dict[str, Tensor]:
    """With dz = conv(w, g): "x" a ⊙ dz, "styles" Σ_p r_k·x·dz, "regions" Σ_c s_k·x·dz."""
    n, outputs = g.shape[0], w.shape[0]
    images, tiles, constants = _product(g, w, geometry, False, regions is not None)
    k = 1 if styles is None else styles.shape[1]
    phases, runs, pixels = geometry.up**2, cdiv(outputs, constants["BO"]), geometry.size

    def buffer(name: str, *shape: int) -> Tensor | None:
        return styles.new_empty(shape) if name in want else None

    dx = empty(g, outputs, pixels) if "x" in want else None
    style_sums = buffer("styles", n, phases * tiles, k * outputs)
    region_sums = buffer("regions", 1, runs, n * k * pixels[0] * pixels[1])
    _triton.launch(
        kernels.input_gradient,
        n * tiles * runs * phases,
        g.device,
        *(*images, x, styles, regions, dx, style_sums, region_sums, n),
        *_sizes(g, outputs, geometry),
        STYLES=k,
        **constants,
    )
    found = {"x": dx}
    if style_sums is not None:
        found["styles"] = sum_rows(style_sums).view(n, k, outputs)
    if region_sums is not None:
        found["regions"] = sum_rows(region_sums).view(n, k, *pixels)
    return found


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
        *(x, taps, y, *epilogue.arguments(), h, w, *size, c, *padding),
        **{"FH": taps.shape[0], "FW": taps.shape[1], "UP": up, "DOWN": down},
        **{"STYLES": epilogue.styles, "ACTIVE": epilogue.active, "BP": bp, "BC": bc},
        warps=warps,
    )
    return y


def scale_backward(
    g: Tensor,
    epilogue: Epilogue,
    y: Tensor | None = None,
    u: Tensor | None = None,
    recover: bool = False,
    want: Sequence[str] = (),
) -> dict[str, Tensor]:
    """With dv = act'(y)·gain·g and q = dv·u (read from y: `recover`): "out" b ⊙ dv, like g;
    "styles" Σ_p r_k·q; "bias" Σ_np dv; "pixels" Σ_c dv; "regions" Σ_c scale_k·q.
    """
    n, c, h, w = g.shape
    k = epilogue.styles
    bp, bc, warps = configs.SCALE_BACKWARD
    bc = min(bc, pow2(c, bc))
    tiles, runs = cdiv(h * w, bp), cdiv(c, bc)

    def buffer(name: str, *shape: int) -> Tensor | None:
        return g.new_empty(shape, dtype=torch.float32) if name in want else None

    out = empty(g, c, (h, w)) if "out" in want else None
    sums = {
        "styles": buffer("styles", n, tiles, k * c),
        "bias": buffer("bias", 1, n * tiles, c),
        "pixels": buffer("pixels", 1, runs, n * h * w),
        "regions": buffer("regions", 1, runs, n * k * h * w),
    }
    *tensors, slope, gain, step = epilogue.arguments()
    _triton.launch(
        passes.scale_backward,
        n * tiles * runs,
        g.device,
        *(g, y, u, *tensors, out, *sums.values(), slope, gain, step, n, h * w, c),
        **{"STYLES": k, "ACTIVE": epilogue.slope != 1, "RECOVER": recover, "BP": bp, "BC": bc},
        warps=warps,
    )
    shapes = {"styles": (n, k, c), "bias": (c,), "pixels": (n, 1, h, w), "regions": (n, k, h, w)}
    found = {name: sum_rows(t).view(shapes[name]) for name, t in sums.items() if t is not None}
    return {"out": out, **found}


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
