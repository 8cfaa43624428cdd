"""The two claims as numbers: the swap goes to the style, the edit stays in its region.

On pairs with a known answer (landscapes) errors are distances to the true picture, always beside
those of doing nothing and of Reinhard colour transfer. On photos there is no such answer; what is
left is how far pictures move, what changes outside the region, and what the encoder sees again.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rwm_fast.metrics import scores
from rwm_fast.metrics.reinhard import transfer_colors


class Encoder(Protocol):
    """What is asked of an encoder: a picture's content code [N, C, h, w] and style code [N, D]."""

    def __call__(self, image: Tensor, /) -> tuple[Tensor, Tensor]: ...
    def style(self, image: Tensor, /) -> Tensor: ...


@dataclass(frozen=True)
class Pairs:
    """Held-out pictures: row k asks to repaint content[k] in the style of style[k]."""

    content: Tensor  # [N, 3, H, W] in [-1, 1]
    style: Tensor  # [N, 3, H, W]
    mask: Tensor  # [N, 1, H, W], 1 = the region of the edit
    truth: Tensor | None = None  # [N, 3, H, W], content[k] truly in the style of style[k]

    def __len__(self) -> int:
        return len(self.content)

    def first(self, count: int) -> Pairs:
        truth = None if self.truth is None else self.truth[:count]
        return Pairs(self.content[:count], self.style[:count], self.mask[:count], truth)


@dataclass(frozen=True)
class Painted:
    """What a model makes of Pairs, on the CPU, in float32, clamped to [-1, 1]."""

    reconstructed: Tensor  # [N, 3, H, W]
    swapped: Tensor  # [N, 3, H, W]
    edited: Tensor  # [N, 3, H, W]
    content_codes: Tensor  # [N, C, h, w] of the content references
    content_styles: Tensor  # [N, D] of the content references
    styles: Tensor  # [N, D] of the style references
    swapped_content_codes: Tensor  # [N, C, h, w] of the swaps
    swapped_styles: Tensor  # [N, D] of the swaps


@torch.no_grad()
def paint(encoder: Encoder, generator: nn.Module, pairs: Pairs, batch: int = 32) -> Painted:
    """Reconstruction, swap and region edit of every pair, without noise maps."""
    device = next(generator.parameters()).device
    rows = []
    for start in range(0, len(pairs), batch):
        content, style, mask = (
            t[start : start + batch].to(device) for t in (pairs.content, pairs.style, pairs.mask)
        )
        code, own_style = encoder(content)  # [n, C, h, w], [n, D]
        style_code = encoder.style(style)  # [n, D]
        both = torch.stack((own_style, style_code), dim=1)  # [n, 2, D]
        regions = torch.cat((1 - mask, mask), dim=1)  # [n, 2, H, W]
        images = [
            generator(code, own_style, noise="none"),
            generator(code, style_code, noise="none"),
            generator(code, both, regions, noise="none"),
        ]
        images = [image.float().clamp(-1, 1) for image in images]
        codes = (code, own_style, style_code, *encoder(images[1]))
        rows.append([t.float().cpu() for t in (*images, *codes)])
    return Painted(*(torch.cat(column) for column in zip(*rows, strict=True)))


def score(pairs: Pairs, painted: Painted) -> dict[str, float]:
    """Every number of the report, by name. Distances are mean absolute values on [-1, 1]."""
    p, content, swapped = painted, pairs.content, painted.swapped
    retention = F.cosine_similarity(p.swapped_content_codes, p.content_codes)  # [N, h, w]
    result = {
        "reconstruction_l1": scores.l1(p.reconstructed, content),
        "reconstruction_psnr": scores.psnr(p.reconstructed, content),
        "swap_from_content": scores.l1(swapped, content),  # how far the swap moves
        # 1 = the style code says nothing, so everything sits in the content code
        "style_cosine_apart": scores.style_cosine(p.content_styles, p.styles),
        "style_cosine_match": scores.style_cosine(p.swapped_styles, p.styles),
        "content_retention": retention.mean().item(),
    }
    details = {
        "": (swapped, p.edited),
        "_detail": (
            scores.keep_detail(content, swapped, p.reconstructed),
            scores.keep_detail(content, p.edited, p.reconstructed),
        ),
    }
    outside, far = 1 - pairs.mask, scores.far_outside(pairs.mask)
    for suffix, (_, edited) in details.items():
        result["outside" + suffix] = scores.region_l1(edited, content, outside)
        result["outside_far" + suffix] = scores.region_l1(edited, content, far)
    # Against its own reconstruction an edit shows what leaks; against the picture, also what the
    # networks cannot paint.
    result["outside_leak"] = scores.region_l1(p.edited, p.reconstructed, outside)
    result["outside_leak_far"] = scores.region_l1(p.edited, p.reconstructed, far)
    # Inside the mask, by pixels alone: colours against the style, edges against the content.
    nothing = scores.colour_distance(content, pairs.style, pairs.mask)
    colours = scores.colour_distance(p.edited, pairs.style, pairs.mask)
    result["inside_style"] = scores.closer(colours, nothing)
    result["inside_structure"] = scores.structure_cosine(p.edited, content, pairs.mask)
    if pairs.truth is not None:
        result |= _against_truth(pairs, pairs.truth, details)
    return result


def _against_truth(
    pairs: Pairs, truth: Tensor, details: dict[str, tuple[Tensor, Tensor]]
) -> dict[str, float]:
    """Distance to the true picture: whole for swaps, inside the mask for edits."""
    mask = pairs.mask
    colors = transfer_colors(pairs.content, pairs.style)
    nothing = scores.l1(pairs.content, truth)
    inside_nothing = scores.region_l1(pairs.content, truth, mask)
    rows = {"reinhard": (colors, colors)}
    rows |= {"model" + suffix: images for suffix, images in details.items()}
    result = {"swap_nothing": nothing, "inside_nothing": inside_nothing}
    for row, (swapped, edited) in rows.items():
        swap, inside = scores.l1(swapped, truth), scores.region_l1(edited, truth, mask)
        suffix = row.removeprefix("model") if row != "reinhard" else "_reinhard"
        result |= {
            "swap" + suffix: swap,
            "inside" + suffix: inside,
            "swap_closer" + suffix: scores.closer(swap, nothing),
            "inside_closer" + suffix: scores.closer(inside, inside_nothing),
        }
    moved = scores.l1(details[""][0], pairs.content)
    return result | {"swap_moved": moved / nothing if nothing else math.nan}


@dataclass(frozen=True)
class Gate:
    """One line of the pass mark."""

    text: str
    passed: bool


def gate(result: dict[str, float], quick: bool) -> Iterator[Gate]:
    """The pass mark on landscapes. A quick run is asked one thing: half of the way to the truth."""

    def line(name: str, rule: str, holds: Callable[[float], bool]) -> Gate:
        return Gate(f"{name} {result[name]:.3f} ({rule})", holds(result[name]))

    if quick:
        yield line("swap_closer", "at least 0.50", lambda v: v >= 0.50)
        return
    yield line("reconstruction_l1", "at most 0.070", lambda v: v <= 0.07)
    for name in ("swap", "inside"):
        baseline = result[f"{name}_closer_reinhard"]
        above = f"above Reinhard's {baseline:.3f}"
        yield line(f"{name}_closer", "at least 0.65", lambda v: v >= 0.65)
        yield line(f"{name}_closer", above, partial(operator.lt, baseline))
    yield line("outside_detail", "at most 0.030", lambda v: v <= 0.03)
