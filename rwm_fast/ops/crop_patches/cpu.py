"""crop_patches in C++ on the CPU (csrc/crop_patches/cpu.cpp)."""

from __future__ import annotations

from rwm_fast.ops import _extension
from rwm_fast.ops._backend import Call
from rwm_fast.ops._memory import addresses
from rwm_fast.ops.crop_patches.call import Adjoint, Crop, crops_record


def supports(call: Call) -> str | None:
    """Everything the operator takes, where the module can be used."""
    return _extension.why_not_cpu()


def forward(call: Crop) -> None:
    """The patches, each sample drawn from up to four pixels."""
    image, boxes, patches, order, _, dtype = call
    module = _extension.cpu()
    crops = crops_record(module, image.shape, patches.shape, order, dtype, boxes.dtype)
    module.crop_patches_forward(crops, *addresses(image, boxes, patches))


def adjoint(call: Adjoint) -> None:
    """The image's gradient, every pixel gathered from the samples that saw it."""
    dpatches, boxes, dimage, order, _, dtype = call
    module = _extension.cpu()
    crops = crops_record(module, dimage.shape, dpatches.shape, order, dtype, boxes.dtype)
    module.crop_patches_adjoint(crops, *addresses(dpatches, boxes, dimage))
