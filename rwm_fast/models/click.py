"""The region of a picture around a place that was clicked."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from rwm_fast.models.codes import Codes
from rwm_fast.models.compositing import working_size
from rwm_fast.models.network import require, unit
from rwm_fast.models.painter import Painter
from rwm_fast.models.pictures import AnyPicture, Picture, bands, picture_of
from rwm_fast.models.upsampling import enlarged

SIDE = 256  # px, short side at which regions are looked for
# Chosen on landscapes of the "tune" split and the demo's weights.
_CODE = 0.15  # weight of the content code, of unit length, beside colours from 0 to 1
_MEANS = 0.5  # weight of the distance of two regions' means beside that along their border
_SMALL = 0.3  # power of the smaller one's share of the picture: specks are merged early
_INNER = 0.05  # least difference inside a region that counts
_AREA = 0.1  # power of the area: of two that stand out alike the larger
_REGIONS = 600  # merged one by one; more are merged half at a time first
_MOST = 0.75  # of the picture: what is larger is its ground, and no region

Features = NDArray[np.float32]  # [H, W, F]
Labels = NDArray[np.int64]  # [H, W]
Numbers = NDArray[Any]  # counts or sums, integer or floating-point


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
    the growing regions around the click that one is taken whose border stands out most against
    the differences inside it; with a `tolerance` from 0, the basin, to 1, the picture, the last one
    whose inner differences are within tolerance² of the greatest. The mask is enlarged along the
    picture's edges (`rwm_fast.models.upsampling`).

    Result: of a PIL image a PIL image of mode L, of an array float32 [H, W], of a tensor
    float32 [1, 1, H, W] or [1, H, W], in [0, 1]. ValueError for a place outside the picture,
    several pictures, or codes of another picture.

    The mergers' costs are ours; that a border is judged by what differs inside is of Felzenszwalb
    and Huttenlocher, Efficient graph-based image segmentation, 2004.
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
    labels, growing = _growth(_features(seen, codes), (y / height, x / width))
    chosen = _standing_out(growing) if tolerance is None else _within(growing, tolerance)
    inside = np.zeros(labels.max() + 1, bool)
    for stage in growing[: chosen + 1]:
        inside[stage.joined] = True
    mask = torch.from_numpy(inside[labels]).to(seen)[None, None]  # [1, 1, h, w]
    return _like(picture, seen, mask)


def _features(seen: Tensor, codes: Codes) -> Features:
    """Luminance, two colour differences and the content code of every pixel."""
    r, g, b = ((seen[0] + 1) / 2).unbind(0)
    light = 0.299 * r + 0.587 * g + 0.114 * b
    colours = torch.stack([light, 0.9 * (r - light), 0.9 * (b - light)])
    code = unit(codes.content.float(), 1)
    code = F.interpolate(code, seen.shape[2:], mode="bilinear", align_corners=False)[0]
    return torch.cat([colours, _CODE * code]).permute(1, 2, 0).contiguous().cpu().numpy()


@dataclass
class _Stage:
    """One of the growing regions around the click."""

    joined: list[int]  # basins that came
    inner: float  # the greatest cost of a merger inside
    weakest: float = 0.0  # the least distance to a neighbour,
    mean: float = 0.0  # and that along the whole border
    area: float = 1.0  # share of the picture


def _standing_out(growing: list[_Stage]) -> int:
    scores = [
        math.sqrt(s.weakest * s.mean) / (s.inner + _INNER) * s.area**_AREA * (s.area <= _MOST)
        for s in growing
    ]
    return int(np.argmax(scores))


def _within(growing: list[_Stage], tolerance: float) -> int:
    most = tolerance**2 * growing[-1].inner
    return max(k for k, stage in enumerate(growing) if stage.inner <= most or k == 0)


def _growth(features: Features, place: tuple[float, float]) -> tuple[Labels, list[_Stage]]:
    """Every pixel's basin, and the regions around a place (y, x in [0, 1)) while all is merged."""
    steps = [np.linalg.norm(np.diff(features, axis=axis), axis=-1) for axis in (0, 1)]
    labels, borders = _fewer(_basins(steps), features, steps)
    height, width = labels.shape
    home = int(labels[int(place[0] * height), int(place[1] * width)])
    graph = _Graph(borders)
    growing = [graph.stage(home, [home], 0.0)]
    for cost, stays, goes in graph.mergers():
        joined = graph.merge(stays, goes)
        if home in (stays, goes):
            new = joined[goes if home == stays else stays]
            home = stays
            growing.append(graph.stage(home, new, max(cost, growing[-1].inner)))
    return labels, growing


def _basins(steps: list[NDArray[np.float32]]) -> Labels:
    """The basin of every pixel: where one comes by always stepping to the neighbour with the
    smallest gradient."""
    down, right = steps
    height, width = right.shape[0], down.shape[1]
    edge = np.zeros((height, width), np.float32)
    for side, step in (
        (edge[1:], down),
        (edge[:-1], down),
        (edge[:, 1:], right),
        (edge[:, :-1], right),
    ):
        np.maximum(side, step, out=side)
    count = height * width
    rank = np.empty(count, np.int64)
    rank[np.argsort(edge, axis=None, kind="stable")] = np.arange(count)
    numbers = np.arange(count).reshape(height, width)
    best, target = rank.reshape(height, width), numbers
    ranks, indices = np.pad(best, 1, constant_values=count), np.pad(numbers, 1)
    for dy in range(3):
        for dx in range(3):
            there = ranks[dy : dy + height, dx : dx + width]
            target = np.where(there < best, indices[dy : dy + height, dx : dx + width], target)
            best = np.minimum(best, there)
    return _numbered(target.ravel()).reshape(height, width)


@dataclass(frozen=True)
class _Borders:
    """R regions and E pairs of them that touch."""

    size: Numbers  # [R], pixels
    sums: Numbers  # [R, F], of the features
    pairs: Labels  # [2, E], the smaller number first
    length: Numbers  # [E], of the border,
    total: Numbers  # [E], and the sum of steps along it

    def costs(self) -> Numbers:
        """[E], as `_Graph.cost`"""
        means, (i, j) = self.sums / self.size[:, None], self.pairs
        distance = self.total / self.length + _MEANS * np.linalg.norm(means[i] - means[j], axis=1)
        smaller = np.minimum(self.size[i], self.size[j]) / self.size.sum()
        cost: Numbers = distance * smaller**_SMALL
        return cost

    def joined(self, number: Labels) -> _Borders:
        """The same where region r is part of region number[r]."""
        count = int(number.max()) + 1
        size = np.bincount(number, self.size, count)
        sums = np.stack([np.bincount(number, column, count) for column in self.sums.T], 1)
        return _touching(size, sums, number[self.pairs], self.length, self.total)


def _touching(
    size: Numbers,
    sums: Numbers,
    pairs: Labels,
    length: Numbers,
    total: Numbers,
) -> _Borders:
    """Borders of which several may be between the same two regions, or inside one."""
    low, high = pairs.min(0), pairs.max(0)
    apart = low != high
    keys, where = np.unique((low * len(size) + high)[apart], return_inverse=True)
    length, total = (np.bincount(where, values[apart]) for values in (length, total))
    return _Borders(size, sums, np.stack(np.divmod(keys, len(size))), length, total)


def _fewer(
    labels: Labels, features: Features, steps: list[NDArray[np.float32]]
) -> tuple[Labels, _Borders]:
    """Regions, at most `_REGIONS`, and their borders: half of all join the neighbour that is most
    alike, those that do so at the least cost, until few are left."""
    flat = labels.ravel()
    size = np.bincount(flat).astype(float)
    sums = np.stack([np.bincount(flat, p.ravel()) for p in np.moveaxis(features, 2, 0)], 1)
    ends = [np.concatenate([labels[1:].ravel(), labels[:, 1:].ravel()])]
    ends.append(np.concatenate([labels[:-1].ravel(), labels[:, :-1].ravel()]))
    step = np.concatenate([s.ravel() for s in steps]).astype(float)
    borders = _touching(size, sums, np.stack(ends), np.ones_like(step), step)
    while len(borders.size) > _REGIONS:
        number = _numbered(_nearest(borders))
        borders, labels = borders.joined(number), number[labels]
    return labels, borders


def _nearest(borders: _Borders) -> Labels:
    """[R]: the neighbour of least cost for the half that has the least, itself for the others."""
    count, edges = len(borders.size), np.arange(borders.pairs.shape[1])
    cost = np.tile(borders.costs(), 2)
    own, other = np.concatenate([borders.pairs, borders.pairs[::-1]], 1)
    order = np.lexsort((np.tile(edges, 2), cost, own))  # equal costs by the number of the border,
    first = order[np.unique(own[order], return_index=True)[1]]  # so that no circle closes
    target = np.arange(count)
    first = first[cost[first] <= np.median(cost[first])]
    target[own[first]] = other[first]
    mutual = (target[target] == np.arange(count)) & (np.arange(count) < target)
    target[mutual] = np.flatnonzero(mutual)
    return target


def _numbered(target: Labels) -> Labels:
    """Every region's end of the way from target to target, numbered from 0."""
    while not np.array_equal(further := target[target], target):
        target = further
    number: Labels = np.unique(target, return_inverse=True)[1]
    return number


class _Graph:
    """Regions that are merged two at a time."""

    def __init__(self, borders: _Borders) -> None:
        count = len(borders.size)
        self.pixels = float(borders.size.sum())
        self.size: list[float] = borders.size.tolist()
        self.mean: list[list[float]] = (borders.sums / borders.size[:, None]).tolist()
        # neighbour: length of the border, sum of steps along it
        self.near: list[dict[int, tuple[float, float]]] = [{} for _ in range(count)]
        columns = (*borders.pairs, borders.length, borders.total)
        for i, j, length, total in zip(*(c.tolist() for c in columns), strict=True):
            self.near[i][j] = self.near[j][i] = (length, total)
        self.members = [[i] for i in range(count)]
        self._changes = [0] * count  # of each region; -1 = merged into another

    def distance(self, i: int, j: int) -> float:
        length, total = self.near[i][j]
        return total / length + _MEANS * math.dist(self.mean[i], self.mean[j])

    def cost(self, i: int, j: int) -> float:
        smaller = min(self.size[i], self.size[j]) / self.pixels
        return self.distance(i, j) * math.pow(smaller, _SMALL)

    def mergers(self) -> Iterator[tuple[float, int, int]]:
        """(cost, larger, smaller) of the next merger, until one region is left; whoever takes it
        calls `merge`."""
        queue = [
            (self.cost(i, j), i, j, 0, 0) for i, near in enumerate(self.near) for j in near if i < j
        ]
        heapq.heapify(queue)
        changes = self._changes
        while queue:
            cost, i, j, was_i, was_j = heapq.heappop(queue)
            if changes[i] != was_i or changes[j] != was_j:
                continue
            i, j = (i, j) if self.size[i] >= self.size[j] else (j, i)
            yield cost, i, j
            for k in self.near[i]:
                heapq.heappush(queue, (self.cost(i, k), i, k, changes[i], changes[k]))

    def merge(self, stays: int, goes: int) -> dict[int, list[int]]:
        """Merges two regions; returns the members that each had."""
        had = {stays: self.members[stays], goes: self.members[goes]}
        a, b = self.size[stays], self.size[goes]
        pairs = zip(self.mean[stays], self.mean[goes], strict=True)
        self.mean[stays] = [(a * p + b * q) / (a + b) for p, q in pairs]
        self.size[stays] = a + b
        self.members[stays] = had[stays] + had[goes]
        del self.near[stays][goes], self.near[goes][stays]
        for k, (length, total) in self.near[goes].items():
            del self.near[k][goes]
            more, sum_ = self.near[stays].get(k, (0.0, 0.0))
            self.near[stays][k] = self.near[k][stays] = (length + more, total + sum_)
        self._changes[stays] += 1
        self._changes[goes] = -1
        return had

    def stage(self, home: int, joined: list[int], inner: float) -> _Stage:
        stage = _Stage(joined, inner, area=self.size[home] / self.pixels)
        around = [(self.distance(home, k), border[0]) for k, border in self.near[home].items()]
        if around:
            stage.weakest = min(distance for distance, _ in around)
            length = sum(length for _, length in around)
            stage.mean = sum(distance * part for distance, part in around) / length
        return stage


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
