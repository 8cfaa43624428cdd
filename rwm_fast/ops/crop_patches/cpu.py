"""crop_patches in C++ on the CPU (csrc/crop_patches/cpu.cpp)."""

from __future__ import annotations

from rwm_fast.ops import _extension
from rwm_fast.ops._backend import Call
from rwm_fast.ops._memory import DTYPE_CODES, LAST, addresses
from rwm_fast.ops.crop_patches.call import Adjoint, Crop


def supports(call: Call) -> str | None:
    """Everything the operator takes, where the module can be used."""
    return _extension.why_not_cpu()


def forward(call: Crop) -> None:
    """The patches."""
    image, boxes, patches, order, _, dtype = call
    n, p, c, size, _ = patches.shape
    _extension.cpu().crop_patches_forward(
        *addresses(image, boxes, patches),
        *(n, p, c, *image.shape[2:], size),
        order is LAST,
        DTYPE_CODES[dtype],
        DTYPE_CODES[boxes.dtype],
    )


def adjoint(call: Adjoint) -> None:
    """The image's gradient, every pixel gathered from the samples that saw it."""
    dpatches, boxes, dimage, order, _, dtype = call
    n, c, height, width = dimage.shape
    _extension.cpu().crop_patches_adjoint(
        *addresses(dpatches, boxes, dimage),
        *(n, boxes.shape[1], c, height, width, dpatches.shape[-1]),
        order is LAST,
        DTYPE_CODES[dtype],
        DTYPE_CODES[boxes.dtype],
    )
