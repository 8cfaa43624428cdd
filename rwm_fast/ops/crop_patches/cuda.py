"""crop_patches in CUDA (csrc/crop_patches/cuda.cu)."""

from __future__ import annotations

from rwm_fast.ops import _extension
from rwm_fast.ops._backend import Call
from rwm_fast.ops._check import accumulator
from rwm_fast.ops._memory import DTYPE_CODES, LAST, addresses, place
from rwm_fast.ops.crop_patches.call import Adjoint, Crop


def supports(call: Call) -> str | None:
    """Everything the operator takes, where the CUDA module was built and there is a GPU."""
    return _extension.why_not_cuda()


def forward(call: Crop) -> None:
    """The patches, each sample drawn from up to four pixels."""
    image, boxes, patches, order, _, dtype = call
    n, p, c, size, _ = patches.shape
    boxes = boxes.to(accumulator(dtype))
    _extension.cuda().crop_patches_forward(
        *addresses(image, boxes, patches),
        *(n * p, p, c, *image.shape[2:], size),
        order is LAST,
        DTYPE_CODES[dtype],
        *place(image),
    )


def adjoint(call: Adjoint) -> None:
    """The image's gradient, every pixel gathered from the samples that saw it."""
    dpatches, boxes, dimage, order, _, dtype = call
    n, c, height, width = dimage.shape
    boxes = boxes.to(accumulator(dtype))
    _extension.cuda().crop_patches_adjoint(
        *addresses(dpatches, boxes, dimage),
        *(n, boxes.shape[1], c, height, width, dpatches.shape[-1]),
        order is LAST,
        DTYPE_CODES[dtype],
        *place(dpatches),
    )
