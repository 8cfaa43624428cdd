"""Inputs of crop_patches."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from rwm_fast.ops.crop_patches import sample_boxes
from rwm_fast.testing.cases.case import Case, Inputs, Work, normal, on_meta, refused

OP = "crop_patches"
Shape = tuple[int, int, int, int]
Boxes = Callable[[torch.Generator, int], Tensor]


def _sampled(num_patches: int, low: float = 1 / 8, high: float = 1 / 4) -> Boxes:
    return lambda generator, n: sample_boxes(
        n, num_patches, (low, high), generator=generator
    ).double()


def _given(*boxes: tuple[float, float, float, float]) -> Boxes:
    return lambda generator, n: torch.tensor(boxes, dtype=torch.float64).repeat(n, 1, 1)


def _forward(inputs: Mapping[str, Any]) -> Work:
    """Every patch is written once; of the image, what the boxes cover is read once."""
    image, boxes, size = inputs["image"], inputs["boxes"], inputs["size"]
    written = boxes.shape[0] * boxes.shape[1] * image.shape[1] * size * size
    area = boxes[..., 2:].detach().abs().clamp(max=1).prod(-1)
    covered = area.sum(1).clamp(max=1).sum().item() * image[0].numel() if image.numel() else 0
    return Work(bytes=int((written + covered) * image.element_size()), flops=6 * written)


def _backward(inputs: Mapping[str, Any]) -> Work:
    """The patches' gradient is read once, the image's written once."""
    image, boxes, size = inputs["image"], inputs["boxes"], inputs["size"]
    read = boxes.shape[0] * boxes.shape[1] * image.shape[1] * size * size
    return Work(bytes=(read + image.numel()) * image.element_size(), flops=8 * read)


def _case(name: str, shape: Shape, boxes: Boxes, size: int, **more: Any) -> Case:
    def make(generator: torch.Generator) -> Inputs:
        image = normal(generator, *shape)
        return {"image": image, "boxes": boxes(generator, shape[0]), "size": size}

    # A sampling position is rounded by about W units in the last place of a pixel, each worth a
    # difference of pixels: as much as a sum of W² terms loses.
    more.setdefault("terms", max(4 * size, shape[2] ** 2, shape[3] ** 2))
    return Case(
        OP, name, make, ("image",), kept=("boxes",), forward=_forward, backward=_backward, **more
    )


FLIPPED = _given((0.1, 0, -0.5, 0.4), (0, 0.2, 0.3, -0.7))
POINTS = _given((0.2, 0.1, 0, 0.5), (0, 0, 0, 0))
NOT_FINITE = _given((math.nan, 0, 0.2, 0.2), (0, math.inf, 0.2, 0.2), (0, 0, 1e30, 0.2))
# Over each border, in a corner, exactly to the edge, and beyond the image on all sides.
BORDER = _given(
    (-1, 0, 0.3, 0.3), (1.1, 0.2, 0.4, -0.2), (0.9, -0.9, -0.3, 0.3), (0.5, 0, 0.5, 1),
    (0, 0, 2, 3),
)  # fmt: skip

CASES = (
    _case("sampled", (2, 2, 6, 7), _sampled(2, 0.3, 0.6), 3, smooth=True),
    _case("identity", (1, 2, 5, 5), _given((0, 0, 1, 1)), 5, smooth=True),
    _case("flipped", (2, 1, 5, 7), FLIPPED, 5, smooth=True),
    _case("border", (1, 1, 6, 7), BORDER, 4, smooth=True),
    _case("outside", (2, 1, 4, 4), _given((3, 0, 0.2, 0.2), (0, -9, 0.5, 0.5)), 4, smooth=True),
    _case("degenerate", (1, 2, 6, 7), POINTS, 5, terms=100, smooth=True),
    _case("not_finite", (1, 3, 8, 8), NOT_FINITE, 4),
    _case("size_1", (2, 2, 5, 4), _sampled(2), 1, smooth=True),
    _case("pixel", (1, 1, 1, 1), _given((0, 0, 1, 1), (0.3, -0.2, 0.5, 0.5)), 3, smooth=True),
    _case("one_row", (1, 2, 1, 13), _sampled(2, 0.3, 0.9), 4, smooth=True),
    _case("official", (2, 3, 32, 33), _sampled(4), 16),  # the published proportions
    _case("enlarged", (1, 3, 24, 24), _sampled(2), 33, terms=400),  # many samples a pixel
    _case("reduced", (1, 3, 70, 65), _given((0, 0, 0.9, -0.95), (0.1, 0, 1, 1)), 9),
    _case("many_channels", (2, 17, 9, 10), _sampled(2, 0.3, 0.6), 10),
    _case("blocks", (3, 3, 45, 37), _sampled(5, 0.3, 0.6), 19),  # tails everywhere
    _case("empty", (0, 3, 8, 8), _sampled(2), 4),
    _case("no_boxes", (2, 3, 8, 8), _sampled(0), 4),
    _case("vectors", (2, 3, 24, 40), _sampled(3), 16),  # whole vectors in every dtype
    _case("many_patches", (1, 1, 12, 12), _sampled(70), 3, terms=600),
    _case("256_to_64", (16, 3, 256, 256), _sampled(8), 64, bench=True),
    _case("256_to_128", (16, 3, 256, 256), _sampled(8), 128, bench=True),
    _case("64_to_16", (8, 3, 64, 64), _sampled(8), 16, bench=True),
)

refusal = refused(OP, "sampled")
REFUSALS = (
    refusal("image_int", "image must be float16, bfloat16", image=Tensor.long),
    refusal("image_3d", r"image must be \[N, C, H, W\]", image=lambda v: v[0]),
    refusal("image_none", "image must be a tensor, got None", TypeError, image=None),
    refusal("no_pixels", "with at least one pixel", image=lambda v: v[..., :0]),
    refusal(
        "boxes_shape",
        r"boxes must be \[N, P, 4\] for image \[2, 2, 6, 7\], got \[2, 2, 3\] float32 on cpu",
        boxes=lambda v: v[..., :3],
    ),
    refusal("boxes_batch", r"boxes must be \[N, P, 4\]", boxes=lambda v: v[:1]),
    refusal("boxes_half", "boxes must be float32 or float64", boxes=Tensor.half),
    refusal("boxes_device", "boxes must be on image's", boxes=on_meta),
    refusal(
        "boxes_gradient",
        "boxes have no gradient: detach them, got boxes that require one",
        boxes=Tensor.requires_grad_,
    ),
    refusal("size_0", "size must be a whole number of at least 1, got 0", size=0),
    refusal("size_pair", "size must be a whole number of at least 1, got tuple", size=(4, 4)),
)
