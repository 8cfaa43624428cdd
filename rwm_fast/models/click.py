"""A region from one click: the picture is cut into basins, these are merged from the most alike to
the least, and of the regions around the click the one that stands out is taken."""

from __future__ import annotations

import heapq

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]


def features_of(image: Tensor, code: Tensor | None, code_weight: float) -> Floats:
    r, g, b = ((image[0] + 1) / 2).unbind(0)
    luma = 0.299 * r + 0.587 * g + 0.114 * b
    planes = [luma, 0.9 * (r - luma), 0.9 * (b - luma)]
    out = torch.stack(planes)
    if code is not None and code_weight:
        up = F.interpolate(code, image.shape[2:], mode="bilinear", align_corners=False)[0]
        out = torch.cat([out, up * code_weight])
    return out.permute(1, 2, 0).contiguous().float().numpy()


def basins(edge: Floats) -> Ints:
    h, w = edge.shape
    rank = np.empty(h * w, np.int64)
    rank[np.argsort(edge.ravel(), kind="stable")] = np.arange(h * w)
    rank = rank.reshape(h, w)
    padded = np.pad(rank, 1, constant_values=h * w)
    index = np.pad(np.arange(h * w).reshape(h, w), 1)
    best, to = rank.copy(), np.arange(h * w).reshape(h, w).copy()
    for dy in (0, 1, 2):
        for dx in (0, 1, 2):
            there = padded[dy : dy + h, dx : dx + w]
            lower = there < best
            best = np.where(lower, there, best)
            to = np.where(lower, index[dy : dy + h, dx : dx + w], to)
    to = to.ravel()
    while True:
        further = to[to]
        if np.array_equal(further, to):
            break
        to = further
    return np.unique(to, return_inverse=True)[1].reshape(h, w)


class Merger:
    def __init__(self, features: Floats, alpha: float, power: float):
        self.alpha, self.power = alpha, power
        h, w, _ = features.shape
        right = np.linalg.norm(features[:, 1:] - features[:, :-1], axis=-1)
        down = np.linalg.norm(features[1:] - features[:-1], axis=-1)
        edge = np.zeros((h, w), np.float32)
        for part, step in (
            (edge[:, 1:], right),
            (edge[:, :-1], right),
            (edge[1:], down),
            (edge[:-1], down),
        ):
            np.maximum(part, step, out=part)
        self.labels = basins(edge)
        n = self.labels.max() + 1
        flat = self.labels.ravel()
        self.size = np.bincount(flat, minlength=n).astype(float)
        self.mean = np.stack(
            [np.bincount(flat, features[..., k].ravel(), n) for k in range(features.shape[2])], 1
        )
        self.mean /= self.size[:, None]
        a = np.concatenate([self.labels[:, 1:].ravel(), self.labels[1:].ravel()])
        b = np.concatenate([self.labels[:, :-1].ravel(), self.labels[:-1].ravel()])
        strength = np.concatenate([right.ravel(), down.ravel()])
        apart = a != b
        a, b, strength = np.minimum(a, b)[apart], np.maximum(a, b)[apart], strength[apart]
        keys, inverse = np.unique(a * n + b, return_inverse=True)
        length, total = np.bincount(inverse), np.bincount(inverse, strength)
        self.near: list[dict[int, list[float]]] = [{} for _ in range(n)]
        for key, ln, tot in zip(keys.tolist(), length.tolist(), total.tolist()):
            i, j = divmod(key, n)
            self.near[i][j] = self.near[j][i] = [ln, tot]
        self.n, self.pixels = n, h * w

    def cost(self, i: int, j: int) -> float:
        ln, tot = self.near[i][j]
        apart = float(np.linalg.norm(self.mean[i] - self.mean[j]))
        small = min(self.size[i], self.size[j]) / self.pixels
        return (tot / ln + self.alpha * apart) * small**self.power

    def chain(self, start: int) -> list[tuple[float, int]]:
        """Merge everything; (height, label joined...) of the region that holds `start`."""
        n = self.n
        alive = [True] * n
        version = [0] * n
        heap = []
        for i in range(n):
            for j in self.near[i]:
                if i < j:
                    heap.append((self.cost(i, j), i, j, 0, 0))
        heapq.heapify(heap)
        members = [[i] for i in range(n)]
        home, high = start, 0.0
        stages = [(0.0, [start])]
        while heap:
            cost, i, j, vi, vj = heapq.heappop(heap)
            if not (alive[i] and alive[j]) or version[i] != vi or version[j] != vj:
                continue
            high = max(high, cost)
            if self.size[i] < self.size[j]:
                i, j = j, i
            if home in (i, j):
                stages.append((high, members[j] if home == i else members[i]))
                home = i
            alive[j] = False
            version[i] += 1
            total = self.size[i] + self.size[j]
            self.mean[i] = (self.mean[i] * self.size[i] + self.mean[j] * self.size[j]) / total
            self.size[i] = total
            members[i] = members[i] + members[j]
            del self.near[i][j]
            for k, (ln, tot) in self.near[j].items():
                if k == i:
                    continue
                del self.near[k][j]
                both = self.near[i].get(k, [0, 0.0])
                self.near[i][k] = self.near[k][i] = [both[0] + ln, both[1] + tot]
            for k in self.near[i]:
                a, b = min(i, k), max(i, k)
                heapq.heappush(heap, (self.cost(a, b), a, b, version[a], version[b]))
        return stages
