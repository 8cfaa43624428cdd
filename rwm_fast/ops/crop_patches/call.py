"""The two calls of crop_patches: their arguments are checked here and nowhere else."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rwm_fast.ops import _check, _memory

OP = "crop_patches"
_BOX_DTYPES = (torch.float32, torch.float64)


class Crop(NamedTuple):
    """patches[n, p, c, i, j] = image[n, c] sampled at the point (i, j) of box (n, p)."""

    image: Tensor  # [N, C, H, W], dense in `order`
    boxes: Tensor  # [N, P, 4], dense, float32 or float64
    patches: Tensor  # [N, P, C, S, S], every patch dense in `order`, to be written
    order: torch.memory_format
    device: torch.device
    dtype: torch.dtype


class Adjoint(NamedTuple):
    """dimage[n, c, y, x] = Σ_pij (weight of pixel (y, x) at point (i, j) of box p)·dpatches."""

    dpatches: Tensor  # [N, P, C, S, S], every patch dense in `order`
    boxes: Tensor  # [N, P, 4], dense, float32 or float64
    dimage: Tensor  # [N, C, H, W], dense in `order`, to be written
    order: torch.memory_format
    device: torch.device
    dtype: torch.dtype


@functools.lru_cache(256)
def crops_record(
    module: ModuleType,
    image: Sequence[int],
    patches: Sequence[int],
    order: torch.memory_format,
    dtype: torch.dtype,
    boxes_dtype: torch.dtype,
) -> Any:
    """Shapes as the C++ and the CUDA module see them: `Crops` of csrc/crop_patches/records.h."""
    (n, c, *size), p, side = image, patches[1], patches[-1]
    codes = _memory.DTYPE_CODES[dtype], _memory.DTYPE_CODES[boxes_dtype]
    return module.Crops(n, p, c, size, side, order is _memory.LAST, *codes)


def empty_patches(image: Tensor, boxes: Tensor, size: int) -> Tensor:
    """The result, not yet written: [N, P, C, S, S], each patch in the image's memory format."""
    (n, p, _), c = boxes.shape, image.shape[1]
    order = _memory.memory_format(image)
    if order is _memory.PLANES:
        return image.new_empty((n, p, c, size, size))
    shape = (n * p, c, size, size)
    flat = torch.empty(shape, dtype=image.dtype, device=image.device, memory_format=order)
    return flat.view(n, p, c, size, size)


def empty_image(dpatches: Tensor, height: int, width: int) -> Tensor:
    """The adjoint's result, not yet written: [N, C, H, W] in the patches' memory format."""
    n, _, c = dpatches.shape[:3]
    return _memory.empty(dpatches.flatten(0, 1), (n, c, height, width))


def crop_call(image: Tensor, boxes: Tensor, size: int) -> Crop:
    """The crop; raises TypeError or ValueError where an argument does not fit."""
    _check.floating(OP, "image", image)
    shape, device, dtype = image.shape, image.device, image.dtype
    if len(shape) != 4 or shape[2] < 1 or shape[3] < 1 or not _is_positive(size):
        fits = len(shape) == 4 and shape[2] > 0 and shape[3] > 0
        _check.require(fits, OP, "image must be [N, C, H, W] with at least one pixel", image)
        _check.require(False, OP, "size must be a whole number of at least 1", size)
    boxes = _boxes(boxes, shape[0], device)
    patches = empty_patches(image, boxes, size)
    image, order = _memory.in_own_order(OP, "image", image)
    return Crop(image, boxes, patches, order, device, dtype)


def adjoint_call(dpatches: Tensor, boxes: Tensor, height: int, width: int) -> Adjoint:
    """The adjoint; raises TypeError or ValueError where an argument does not fit."""
    _check.floating(OP, "dpatches", dpatches)
    shape, device, dtype = dpatches.shape, dpatches.device, dpatches.dtype
    square = len(shape) == 5 and shape[3] == shape[4] > 0
    if not (square and _is_positive(height) and _is_positive(width)):
        _check.require(square, OP, "dpatches must be [N, P, C, S, S]", dpatches)
        sides = f"{height!r} and {width!r}"
        _check.require(False, OP, "height and width must be ints of at least 1", sides)
    boxes = _boxes(boxes, shape[0], device)
    if boxes.shape[1] != shape[1]:
        _check.require(False, OP, f"boxes must be {[*shape[:2], 4]}", boxes)
    if dpatches.is_contiguous():
        dpatches, order = _memory.in_own_order(OP, "dpatches", dpatches)
    else:  # [N·P, C, S, S] has a memory format
        flat, order = _memory.in_own_order(OP, "dpatches", dpatches.flatten(0, 1))
        dpatches = flat.view(shape)
    size = (shape[0], shape[2], height, width)
    dimage = torch.empty(size, dtype=dtype, device=device, memory_format=order)
    return Adjoint(dpatches, boxes, dimage, order, device, dtype)


def _is_positive(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _boxes(boxes: Tensor, n: int, device: torch.device) -> Tensor:
    _check.tensor(OP, "boxes", boxes)
    if boxes.ndim != 3:
        _check.require(False, OP, "boxes must be [N, P, 4]", boxes)
    shape = (n, boxes.shape[1], 4)
    return _memory.dense(OP, "boxes", boxes, device, shape, _BOX_DTYPES)
