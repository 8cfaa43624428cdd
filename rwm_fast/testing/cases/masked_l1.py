"""Inputs of masked_l1."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from rwm_fast.testing.cases.case import Case, Inputs, Work, normal, on_meta, refused, uniform

OP = "masked_l1"
IMAGES = ("hybrid", "inside", "outside")
Shape = tuple[int, int, int, int]
Mask = Callable[[torch.Generator, Shape], Tensor]


def _make(shape: Shape, mask: Mask, ties: bool = False) -> Callable[[torch.Generator], Inputs]:
    """Images whose differences stay 0.1 away from the kink at 0; with ties, every third is 0."""

    def make(generator: torch.Generator) -> Inputs:
        images = {"hybrid": normal(generator, *shape)}
        for name in ("inside", "outside"):
            step = uniform(generator, *shape, low=-1)
            step = step + 0.1 * step.sign()
            if ties:
                step.view(-1)[::3] = 0
            images[name] = images["hybrid"] + step
        return {**images, "mask": mask(generator, shape)}

    return make


def _soft(generator: torch.Generator, shape: Shape) -> Tensor:
    n, _, h, w = shape
    return uniform(generator, n, 1, h, w, low=0.1, high=0.9)


def _soft_channels(generator: torch.Generator, shape: Shape) -> Tensor:
    return uniform(generator, *shape, low=0.1, high=0.9)


def _beyond(generator: torch.Generator, shape: Shape) -> Tensor:
    n, _, h, w = shape
    size = uniform(generator, n, 1, h, w, low=1.1, high=2)
    return size * _binary(generator, shape).sub(0.5).sign()


def _binary(generator: torch.Generator, shape: Shape) -> Tensor:
    return _soft(generator, shape).round()


def _bool(generator: torch.Generator, shape: Shape) -> Tensor:
    return _soft(generator, shape) > 0.5


def _constant(value: float) -> Mask:
    return lambda generator, shape: torch.full_like(_soft(generator, shape), value)


def _elements(inputs: Mapping[str, Any]) -> tuple[int, int, int]:
    """Elements of an image, bytes of one, bytes of the mask."""
    image, mask = inputs["hybrid"], inputs["mask"]
    size = image.element_size()
    return image.numel(), image.numel() * size, mask.numel() * mask.element_size()


def _forward(inputs: Mapping[str, Any]) -> Work:
    count, image, mask = _elements(inputs)
    return Work(bytes=3 * image + mask, flops=7 * count)


def _backward(inputs: Mapping[str, Any]) -> Work:
    """Beside the forward pass: every gradient is written once; the signs are not counted."""
    count, image, mask = _elements(inputs)
    written = sum(image for name in IMAGES if inputs[name].requires_grad)
    return Work(bytes=written + mask * (2 if inputs["mask"].requires_grad else 1), flops=6 * count)


def _case(name: str, shape: Shape, mask: Mask, **more: Any) -> Case:
    ties = bool(more.pop("ties", False))
    more.setdefault("gradients", (*IMAGES, "mask"))
    terms = max(1, shape[0] * shape[1] * shape[2] * shape[3])
    make = _make(shape, mask, ties)
    return Case(OP, name, make, terms=terms, forward=_forward, backward=_backward, **more)


CASES = (
    _case("soft", (2, 3, 2, 5), _soft, smooth=True),
    _case("channel_masks", (1, 2, 3, 5), _soft_channels, smooth=True),
    _case("beyond", (2, 2, 2, 3), _beyond, smooth=True),  # mask values below 0 and above 1
    _case("binary", (2, 3, 9, 11), _binary),
    _case("bool", (2, 3, 9, 11), _bool, gradients=IMAGES),
    _case("mask_float32", (2, 3, 5, 7), _soft, kept=("mask",)),
    _case("all_zero", (1, 3, 8, 8), _constant(0)),
    _case("all_one", (1, 3, 8, 8), _constant(1)),
    _case("ties", (2, 3, 6, 7), _soft, ties=True),
    _case("hybrid_only", (2, 3, 6, 6), _soft, gradients=("hybrid",), smooth=True),
    _case("empty", (0, 3, 4, 4), _soft),
    _case("pixel", (1, 1, 1, 1), _soft, smooth=True),
    _case("odd", (3, 5, 13, 17), _soft),  # more channels than a vector has pairs, tails everywhere
    _case("chunks", (2, 3, 67, 71), _soft),  # several chunks of the sum a plane, the last one short
    _case("vectors", (2, 3, 64, 72), _soft),  # whole vectors in every dtype
    _case("images_256", (16, 3, 256, 256), _binary, gradients=("hybrid",), bench=True),
    _case("images_256_all", (16, 3, 256, 256), _soft, bench=True),
)

refusal = refused(OP, "soft")
REFUSALS = (
    refusal(
        "mask_shape",
        r"mask must be \[N, 1, H, W\] or \[N, C, H, W\] for images \[2, 3, 2, 5\], got \[2, 2, 5\]",
        mask=lambda v: v[:, 0],
    ),
    refusal("mask_list", "mask must be a tensor, got list", TypeError, mask=[1.0]),
    refusal("mask_dtype", "mask must have hybrid's dtype", mask=Tensor.long),
    refusal("mask_float64", "mask must have hybrid's dtype", mask=Tensor.double),
    refusal("mask_device", "mask must be on hybrid's device", mask=on_meta),
    refusal(
        "inside_shape",
        r"inside must have hybrid's shape, .*\[2, 3, 2, 5\] float32 on cpu.*, got \[2, 3, 2, 4\]",
        inside=lambda v: v[..., 1:],
    ),
    refusal(
        "outside_dtype", "outside must have hybrid's shape, dtype and device", outside=Tensor.half
    ),
    refusal("hybrid_int", "hybrid must be float16", hybrid=Tensor.long),
    refusal("hybrid_3d", r"hybrid must be \[N, C, H, W\]", hybrid=lambda v: v[0]),
)
