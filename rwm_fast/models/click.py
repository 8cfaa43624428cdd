"""The region of a picture around a place that was clicked."""

from __future__ import annotations

import functools
import json
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rwm_fast.models.codes import Codes
from rwm_fast.models.compositing import working_size
from rwm_fast.models.growing import Features, Numbers, Stage, grown, pieces
from rwm_fast.models.network import require, unit
from rwm_fast.models.painter import Painter
from rwm_fast.models.pictures import AnyPicture, Picture, bands, picture_of
from rwm_fast.models.pretrained import FOLDER
from rwm_fast.models.upsampling import enlarged

SIDE = 256  # px, short side at which regions are looked for
# Chosen on landscapes of the "tune" split and the demo's weights.
_CODE = 0.15  # weight of the content code, of unit length, beside colours from 0 to 1
FITTED = FOLDER / "click.json"  # a line a unit: its weight, its bias, weights of the `numbers`
_FIELDS = ("inner", "next", "weakest", "step", "means", "length")  # of a `Stage`


@torch.no_grad()
def region_at(
    source: Painter | Codes,
    image: AnyPicture,
    x: float,
    y: float,
    tolerance: float | None = None,
) -> Any:
    """The region of one picture around (x, y), in pixels from its upper left corner, as a mask.

    source: a `RegionEditor`, or the `Codes` that it made of the picture. The picture, reduced to a
    short side of `SIDE`, falls into basins of its gradient in colour and content code; these are
    merged from the most alike to the least (distance along their border, and of their means). Of
    the growing regions around the click that one is taken of which a small network, fitted on
    landscapes whose regions are known, thinks most: s = v · tanh(W n + b), n the `numbers` of the
    region (how large it is and will be, what differs inside, how it stands out, how its border
    runs). With a `tolerance` from 0, the basin, to 1, the picture, it is the last one whose inner
    differences are within tolerance² of the greatest. The mask is enlarged along the picture's
    edges (`rwm_fast.models.upsampling`).

    Result: of a PIL image a PIL image of mode L, of an array float32 [H, W], of a tensor
    float32 [1, 1, H, W] or [1, H, W], in [0, 1]. ValueError for a place outside the picture,
    several pictures, or codes of another picture.

    The mergers' costs and the choice are ours; that a border is judged by what differs inside is of
    Felzenszwalb and Huttenlocher, Efficient graph-based image segmentation, 2004.
    """
    picture = picture_of(image, "region_at: image")
    height, width = picture.size
    require(len(picture.values) == 1, "region_at", "expected one picture", picture.values)
    rule = f"the place must be inside the picture, {width} x {height}"
    require(0 <= x < width and 0 <= y < height, "region_at", rule, f"{x:g}, {y:g}")
    if tolerance is not None:
        require(0 <= tolerance <= 1, "region_at", "tolerance must be in [0, 1]", tolerance)
    if isinstance(source, Codes):
        require(source.size == picture.size, "region_at", "codes of another picture", source.size)
        codes = source
    else:
        codes = source.codes_of(picture, source.encoder.config.image_size, 0, False)
    size = working_size(picture.size, SIDE)
    seen = picture.reduced(size, torch.float32, codes.content.device)
    labels, borders = pieces(features(seen, codes))
    growing = grown(labels, borders, (y / height, x / width))
    chosen = _likeliest(growing) if tolerance is None else _within(growing, tolerance)
    inside = np.zeros(labels.max() + 1, bool)
    for stage in growing[: chosen + 1]:
        inside[stage.joined] = True
    mask = torch.from_numpy(inside[labels]).to(seen)[None, None]  # [1, 1, h, w]
    return _like(picture, seen, mask)


def features(seen: Tensor, codes: Codes) -> Features:
    """Luminance, two colour differences and the content code of every pixel."""
    r, g, b = ((seen[0] + 1) / 2).unbind(0)
    light = 0.299 * r + 0.587 * g + 0.114 * b
    colours = torch.stack([light, 0.9 * (r - light), 0.9 * (b - light)])
    code = unit(codes.content.float(), 1)
    code = F.interpolate(code, seen.shape[2:], mode="bilinear", align_corners=False)[0]
    return torch.cat([colours, _CODE * code]).permute(1, 2, 0).contiguous().cpu().numpy()


def numbers(growing: list[Stage]) -> Numbers:
    """[K, 9]: what the choice knows of K stages, as logarithms: the region's share of the picture,
    that of the rest, what the next merger adds to the region, and the fields of `_FIELDS`."""
    area = np.array([stage.area for stage in growing])
    added = np.diff(area, append=1.0) / area
    fields = np.array([[getattr(stage, name) for name in _FIELDS] for stage in growing])
    shares = np.stack([area + 0.001, 1.02 - area, added + 0.001], 1)
    known: Numbers = np.log(np.concatenate([shares, fields + 0.02], 1))
    return known


@functools.cache
def fitted() -> tuple[Numbers, Numbers, Numbers]:
    """Weights [9, U] and bias [U] of the units, and the weights [U] of their sum."""
    table = np.array(json.loads(FITTED.read_text(encoding="utf-8")))
    return table[:, 2:].T, table[:, 1], table[:, 0]


def _likeliest(growing: list[Stage]) -> int:
    """Of all but the whole picture, which is no region, if there is another."""
    weights, bias, of_units = fitted()
    scores = np.tanh(numbers(growing) @ weights + bias) @ of_units
    return int(np.argmax(scores[: max(len(growing) - 1, 1)]))


def _within(growing: list[Stage], tolerance: float) -> int:
    most = tolerance**2 * growing[-1].inner
    return max(k for k, stage in enumerate(growing) if stage.inner <= most or k == 0)


def _like(picture: Picture, seen: Tensor, mask: Tensor) -> Any:
    """A mask [1, 1, h, w] at the picture's size, of its kind."""
    height, width = picture.size
    if mask.shape[2:] == picture.size:
        whole = mask
    else:
        painted = (2 * mask - 1).expand_as(seen)
        growth = enlarged(seen, None, painted, picture.size, adds=False)
        parts = []
        for top, bottom in bands(picture.size):
            own = picture.rows(top, bottom, seen.dtype, seen.device)
            parts.append(growth.rows(own, None, top)[:, :1].add_(1).div_(2))
        whole = torch.cat(parts, 2)
    if picture.kind == "tensor":
        return whole if picture.batched else whole[0]
    if picture.kind == "array":
        return whole[0, 0].cpu().numpy()
    from PIL import Image

    return Image.fromarray((whole[0, 0] * 255).round().to(torch.uint8).cpu().numpy())
