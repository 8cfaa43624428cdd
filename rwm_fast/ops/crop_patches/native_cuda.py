"""crop_patches in CUDA (csrc/crop_patches/cuda.cu); `native` comes here with CUDA tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rwm_fast.ops import _check, _cuda, _layout
from rwm_fast.ops._check import accumulator
from rwm_fast.ops._cuda import address
from rwm_fast.ops._extension import DTYPE_CODES
from rwm_fast.ops.crop_patches.reference import empty_image, empty_patches

OP = "crop_patches"


def supports(tensors: Sequence[Tensor | None], **facts: object) -> str | None:
    """Any dtype and layout, where the CUDA module was built and there is a GPU."""
    return _cuda.why_not()


def _boxes(boxes: Tensor, like: Tensor, patches: int) -> Tensor:
    """[N, P, 4] in the accumulation dtype."""
    _check.floating(OP, "boxes", boxes)
    boxes = boxes.to(accumulator(like.dtype))
    shape = (like.shape[0], patches, 4)
    return _cuda.dense(OP, "boxes", boxes, like.device, shape, (boxes.dtype,))


def forward(image: Tensor, boxes: Tensor, size: int) -> Tensor:
    """The patches, each sample drawn from up to four pixels."""
    _check.floating(OP, "image", image)
    fits = image.ndim == 4 and image.shape[2] > 0 and image.shape[3] > 0
    _check.require(fits, OP, "image must be [N, C, H, W] with at least one pixel", image)
    _check.require(size > 0, OP, "size must be an int of at least 1", size)
    patches = empty_patches(image, boxes, size)
    boxes = _boxes(boxes, image, patches.shape[1])
    order = _layout.memory_format(image)
    image = _cuda.dense(OP, "image", image, image.device, image.shape, (image.dtype,), order)
    if patches.numel():
        _cuda.module().crop_patches_forward(
            *map(address, (image, boxes, patches)),
            boxes.shape[0] * boxes.shape[1],
            boxes.shape[1],
            *image.shape[1:],
            size,
            order is torch.channels_last,
            DTYPE_CODES[image.dtype],
            *_cuda.place(image),
        )
    return patches


def adjoint(dpatches: Tensor, boxes: Tensor, height: int, width: int) -> Tensor:
    """The image's gradient, every pixel gathered from the samples that saw it."""
    _check.floating(OP, "dpatches", dpatches)
    square = dpatches.ndim == 5 and dpatches.shape[3] == dpatches.shape[4] > 0
    _check.require(square, OP, "dpatches must be [N, P, C, S, S]", dpatches)
    fits = height > 0 and width > 0
    _check.require(fits, OP, "the image must have at least one pixel", str((height, width)))
    dimage = empty_image(dpatches, height, width)
    boxes = _boxes(boxes, dpatches, dpatches.shape[1])
    if not dpatches.numel():
        return dimage.zero_()
    n, count, channels = dpatches.shape[:3]
    order = _layout.memory_format(dimage)
    flat = dpatches.flatten(0, 1)  # [N·P, C, S, S]
    flat = _cuda.dense(OP, "dpatches", flat, flat.device, flat.shape, (flat.dtype,), order)
    _cuda.module().crop_patches_adjoint(
        *map(address, (flat, boxes, dimage)),
        n,
        count,
        channels,
        height,
        width,
        dpatches.shape[-1],
        order is torch.channels_last,
        DTYPE_CODES[flat.dtype],
        *_cuda.place(flat),
    )
    return dimage
