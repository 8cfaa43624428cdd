"""crop_patches in C++ on the CPU (csrc/crop_patches/cpu.cpp) and, through `native_cuda`, in CUDA.

The C++ kernels check nothing, so every function here checks everything, every time.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rwm_fast.ops import _check, _cpu, _layout
from rwm_fast.ops._cpu import address
from rwm_fast.ops._extension import DTYPE_CODES
from rwm_fast.ops.crop_patches import native_cuda
from rwm_fast.ops.crop_patches.reference import empty_image, empty_patches

OP = "crop_patches"


def supports(tensors: Sequence[Tensor | None], **facts: object) -> str | None:
    """Any dtype and layout, where the module for the tensors' device can be used."""
    return native_cuda.supports(tensors) if tensors[0].is_cuda else _cpu.why_not()


def _boxes(boxes: Tensor, n: int) -> Tensor:
    _check.tensor(OP, "boxes", boxes)
    _check.require(boxes.ndim == 3, OP, "boxes must be [N, P, 4]", boxes)
    shape, dtypes = (n, boxes.shape[1], 4), (torch.float32, torch.float64)
    return _cpu.dense(OP, "boxes", boxes, shape, dtypes)


def _positive(name: str, value: int) -> int:
    whole = isinstance(value, int) and not isinstance(value, bool)
    _check.require(whole and value > 0, OP, f"{name} must be an int of at least 1", value)
    return value


def forward(image: Tensor, boxes: Tensor, size: int) -> Tensor:
    """The patches; the image is read in place if it is dense in either memory format."""
    _check.floating(OP, "image", image)
    if image.is_cuda:
        return native_cuda.forward(image, boxes, size)
    fits = image.ndim == 4 and image.shape[2] > 0 and image.shape[3] > 0
    _check.require(fits, OP, "image must be [N, C, H, W] with at least one pixel", image)
    _positive("size", size)
    boxes = _boxes(boxes, image.shape[0])
    patches = empty_patches(image, boxes, size)
    order = _layout.memory_format(image)
    image = _cpu.dense(OP, "image", image, image.shape, (image.dtype,), order)
    if patches.numel():
        _cpu.module().crop_patches_forward(
            *map(address, (image, boxes, patches)),
            *boxes.shape[:2],
            *image.shape[1:],
            size,
            order is torch.channels_last,
            DTYPE_CODES[image.dtype],
            DTYPE_CODES[boxes.dtype],
        )
    return patches


def adjoint(dpatches: Tensor, boxes: Tensor, height: int, width: int) -> Tensor:
    """The image's gradient, every pixel gathered from the samples that saw it."""
    _check.floating(OP, "dpatches", dpatches)
    if dpatches.is_cuda:
        return native_cuda.adjoint(dpatches, boxes, height, width)
    square = dpatches.ndim == 5 and dpatches.shape[3] == dpatches.shape[4] > 0
    _check.require(square, OP, "dpatches must be [N, P, C, S, S]", dpatches)
    _positive("height", height)
    _positive("width", width)
    boxes = _boxes(boxes, dpatches.shape[0])
    rule = f"boxes must be {[*dpatches.shape[:2], 4]}"
    _check.require(boxes.shape[1] == dpatches.shape[1], OP, rule, boxes)
    dimage = empty_image(dpatches, height, width)
    if not dpatches.numel():
        return dimage.zero_()
    order = _layout.memory_format(dimage)
    flat = dpatches.flatten(0, 1)  # [N·P, C, S, S]
    flat = _cpu.dense(OP, "dpatches", flat, flat.shape, (flat.dtype,), order)
    _cpu.module().crop_patches_adjoint(
        *map(address, (flat, boxes, dimage)),
        *dpatches.shape[:3],
        height,
        width,
        dpatches.shape[-1],
        order is torch.channels_last,
        DTYPE_CODES[dpatches.dtype],
        DTYPE_CODES[boxes.dtype],
    )
    return dimage
