"""The names, constants and rules by which the Swapping Autoencoder's published code and ours hold
the same networks."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor

from rwm_fast.config import ModelConfig

PREFIXES = {"encoder": "E.", "generator": "G.", "discriminator": "D.", "patch": "Dpatch."}
# rule -> how theirs becomes ours, how ours becomes theirs
RULES = {
    "copy": (lambda t: t, lambda t: t),
    "first": (lambda t: t[0], lambda t: t[None]),  # [1, O, I, k, k]
    "turned": (lambda t: t[0].flip(2, 3), lambda t: t.flip(2, 3)[None]),
    "number": (lambda t: t.reshape(()), lambda t: t.reshape(1)),
    "flat": (lambda t: t.flatten(), lambda t: t.reshape(1, -1, 1, 1)),
}
Names = Iterator[tuple[str, str, str]]  # theirs, ours, rule


def names(part: str, model: ModelConfig) -> Names:
    """Every tensor of one network: its name there, its name here, and the rule between them."""
    prefix = PREFIXES[part]
    for theirs, ours, rule in _NAMES[part](model):
        yield prefix + theirs, ours, rule


def _activated(theirs: str, ours: str) -> Names:
    yield f"{theirs}.Conv.weight", f"{ours}.weight", "copy"
    yield f"{theirs}.Act.bias", f"{ours}.bias", "copy"


def _linear(theirs: str, ours: str) -> Names:
    yield f"{theirs}.weight", f"{ours}.weight", "copy"
    yield f"{theirs}.bias", f"{ours}.bias", "copy"


def _residual(theirs: str, ours: str) -> Names:
    for conv in ("conv1", "conv2"):
        yield from _activated(f"{theirs}.{conv}", f"{ours}.{conv}")
    yield f"{theirs}.skip.Conv.weight", f"{ours}.skip.weight", "copy"


def _encoder(model: ModelConfig) -> Names:
    yield from _activated("FromRGB", "from_image")
    halvings = len(model.encoder_channels) - 1
    for i in range(halvings):
        yield from _residual(f"DownToSpatialCode.ResBlockDownBy{2**i}", f"trunk.{i}")
    yield from _activated("ToSpatialCode.0", "content_head.0")
    yield from _linear("ToSpatialCode.1.Conv", "content_head.1")
    for i in range(len(model.style_channels)):
        by = 2 ** (halvings + i)
        yield from _activated(f"DownToGlobalCode.ConvLayerDownBy{by}", f"style_head.{i}")
    yield from _linear("ToGlobalCode.0", "style_linear")


def _style_block(theirs: str, ours: str, first: str, widens: bool) -> Names:
    for conv, rule in (("conv1", first), ("conv2", "first")):
        yield f"{theirs}.{conv}.conv.weight", f"{ours}.{conv}.weight", rule
        yield from _linear(f"{theirs}.{conv}.conv.modulation", f"{ours}.{conv}.affine")
        yield f"{theirs}.{conv}.noise.weight", f"{ours}.{conv}.noise_strength", "number"
        yield f"{theirs}.{conv}.activate.bias", f"{ours}.{conv}.bias", "copy"
    if widens:
        yield f"{theirs}.skip.Conv.weight", f"{ours}.skip.weight", "copy"


def _generator(model: ModelConfig) -> Names:
    yield from _linear("SpatialCodeModulation.scale", "code_modulation.scale")
    yield from _linear("SpatialCodeModulation.bias", "code_modulation.shift")
    widths = (model.content_channels, *model.head_channels)
    for i, (inputs, outputs) in enumerate(pairwise(widths)):
        yield from _style_block(f"HeadResnetBlock{i}", f"head.{i}", "first", inputs != outputs)
    for j, (inputs, outputs) in enumerate(pairwise((widths[-1], *model.up_channels))):
        theirs = f"UpsamplingResBlock{2 ** (4 + j)}"
        yield from _style_block(theirs, f"up.{j}", "turned", inputs != outputs)
        if inputs != outputs:
            yield f"{theirs}.skip.Act.bias", f"up.{j}.skip.bias", "copy"
    yield "ToRGB.conv.weight", "to_rgb.weight", "first"
    yield from _linear("ToRGB.conv.modulation", "to_rgb.affine")
    yield "ToRGB.bias", "to_rgb.bias", "flat"


def halving_names(count: int, numbered: int) -> list[str]:
    """Blocks from the largest on: by size, and by number from 2^numbered pixels down."""
    logs = range(count + 2, 2, -1)
    return [str(numbered + 1 - i) if i <= numbered else f"{2**i}x{2**i}" for i in logs]


def _discriminator(model: ModelConfig) -> Names:
    yield from _activated("stylegan2_D.convs.0", "from_image")
    for k, name in enumerate(halving_names(len(model.discriminator_channels) - 1, 8)):
        yield from _residual(f"stylegan2_D.convs.{name}", f"trunk.{k}")
    yield from _activated("stylegan2_D.final_conv", "last")
    yield from _linear("stylegan2_D.final_linear.0", "hidden")
    yield from _linear("stylegan2_D.final_linear.1", "logit")


def _patch(model: ModelConfig) -> Names:
    count = len(model.patch_channels) - 1
    yield from _activated("convs.0", "from_image")
    for k, name in enumerate(halving_names(count, 6)):
        yield from _residual(f"convs.{name}", f"trunk.{k}")
    yield from _residual("convs.5", f"trunk.{count}")
    yield from _activated("convs.6", "last")
    for i in range(3):
        yield from _linear(f"pairlinear.{i}", f"hidden.{i}")
    yield from _linear("pairlinear.3", "logit")


_NAMES = {
    "encoder": _encoder,
    "generator": _generator,
    "discriminator": _discriminator,
    "patch": _patch,
}


# ---- blurs


def kernels(part: str, model: ModelConfig) -> Iterator[tuple[str, Tensor]]:
    """Every constant of one network: its name there and its value."""
    prefix, halved = PREFIXES[part], []
    if part == "encoder":
        count = len(model.encoder_channels) - 1
        halved = [f"DownToSpatialCode.ResBlockDownBy{2**i}" for i in range(count)]
        for i in range(len(model.style_channels)):
            name = f"DownToGlobalCode.ConvLayerDownBy{2 ** (count + i)}.Blur.kernel"
            yield prefix + name, torch.ones(1, 1)
    elif part == "generator":
        kernel = _kernel(model.generator_filter) * 4
        for j in range(len(model.up_channels)):
            yield f"{prefix}UpsamplingResBlock{2 ** (4 + j)}.conv1.conv.blur.kernel", kernel
        yield f"{prefix}ToRGB.upsample.kernel", kernel
    elif part == "discriminator":
        blocks = halving_names(len(model.discriminator_channels) - 1, 8)
        halved = [f"stylegan2_D.convs.{name}" for name in blocks]
    else:
        halved = [f"convs.{name}" for name in halving_names(len(model.patch_channels) - 1, 6)]
    taps = model.encoder_filter if part == "encoder" else model.discriminator_filter
    for block in halved:
        for layer in ("conv2", "skip"):
            yield f"{prefix}{block}.{layer}.Blur.kernel", _kernel(taps)


def _kernel(taps: tuple[float, ...]) -> Tensor:
    row = torch.tensor(taps, dtype=torch.float32)
    return row.outer(row) / row.sum() ** 2


def taps_of(kernel: Tensor) -> tuple[float, ...]:
    """Taps whose outer product it is, the smallest 1."""
    row = kernel.sum(0)
    return tuple(round(float(tap), 4) for tap in row / row.abs().min())
