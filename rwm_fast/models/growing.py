"""The growing regions around a place of a picture: basins of its gradient, merged two at a time."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Chosen on landscapes of the "tune" split and the demo's weights.
_MEANS = 0.5  # weight of the distance of two regions' means beside that along their border
_SMALL = 0.3  # power of the smaller one's share of the picture: specks are merged early
_REGIONS = 600  # merged one by one; more are merged half at a time first

Features = NDArray[np.float32]  # [H, W, F]
Labels = NDArray[np.int64]  # [H, W]
Numbers = NDArray[Any]  # counts or sums, integer or floating-point


@dataclass
class Stage:
    """One of the growing regions around a place. Distances are between features."""

    joined: list[int]  # pieces that came
    inner: float  # the greatest cost of a merger inside
    area: float  # share of the picture
    next: float = 0.0  # cost of the merger that ends it; the last region, the picture, has none
    weakest: float = 0.0  # the least distance to a neighbour; of the last 0, as all that follow
    step: float = 0.0  # mean step along the border
    means: float = 0.0  # distance of a neighbour's mean, mean along the border
    length: float = 0.0  # of the border, over that of a square as large


def pieces(features: Features) -> tuple[Labels, Borders]:
    """The region of every pixel before any is merged with others one by one, and their borders."""
    steps = [np.linalg.norm(np.diff(features, axis=axis), axis=-1) for axis in (0, 1)]
    return _fewer(_basins(steps), features, steps)


def grown(labels: Labels, borders: Borders, place: tuple[float, float]) -> list[Stage]:
    """The regions around a place (y, x in [0, 1)) while all is merged."""
    height, width = labels.shape
    home = int(labels[int(place[0] * height), int(place[1] * width)])
    graph = _Graph(borders)
    growing = [graph.stage(home, [home], 0.0)]
    for cost, stays, goes in graph.mergers():
        joined = graph.merge(stays, goes)
        if home in (stays, goes):
            new = joined[goes if home == stays else stays]
            home = stays
            growing[-1].next = cost
            growing.append(graph.stage(home, new, max(cost, growing[-1].inner)))
    return growing


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
class Borders:
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

    def joined(self, number: Labels) -> Borders:
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
) -> Borders:
    """Borders of which several may be between the same two regions, or inside one."""
    low, high = pairs.min(0), pairs.max(0)
    apart = low != high
    keys, where = np.unique((low * len(size) + high)[apart], return_inverse=True)
    length, total = (np.bincount(where, values[apart]) for values in (length, total))
    return Borders(size, sums, np.stack(np.divmod(keys, len(size))), length, total)


def _fewer(
    labels: Labels, features: Features, steps: list[NDArray[np.float32]]
) -> tuple[Labels, Borders]:
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


def _nearest(borders: Borders) -> Labels:
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

    def __init__(self, borders: Borders) -> None:
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

    def stage(self, home: int, joined: list[int], inner: float) -> Stage:
        area, near = self.size[home], self.near[home]
        stage = Stage(joined, inner, area / self.pixels)
        if near:
            length = sum(length for length, _ in near.values())
            apart = [math.dist(self.mean[home], self.mean[k]) * near[k][0] for k in near]
            stage.weakest = min(self.distance(home, k) for k in near)
            stage.step = sum(total for _, total in near.values()) / length
            stage.means = sum(apart) / length
            stage.length = length / (4 * math.sqrt(area))
        return stage
