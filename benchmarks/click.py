"""How well one click finds a region: `python -m benchmarks.click photos` draws landscapes, whose
regions are known, clicks on sky and water and prints the overlap (IoU) of what is found."""

from __future__ import annotations

import sys

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rwm_fast.data import landscapes
from rwm_fast.models import RegionEditor
from rwm_fast.models.click import region_at

FIRST, SIZE, PICTURES = 30_000_000, 256, 60  # seeds that no setting was chosen on
LEAST = 0.01  # of the picture: smaller regions are not clicked
INSIDE = 3  # px from the border, where a click may fall


def depth_of(region: Tensor) -> Tensor:
    """How many pixels each is from the outside, [H, W]; the picture's border is outside."""
    left, depth = region[None, None].clone(), torch.zeros_like(region)
    while left.any():
        depth += left[0, 0]
        left = 1 - F.max_pool2d(F.pad(1 - left, [1, 1, 1, 1], value=1.0), 3, 1)
    return depth


def main() -> None:
    editor, random = RegionEditor.load(sys.argv[1]), np.random.default_rng(0)
    found: dict[tuple[str, str], list[float]] = {}
    for seed in range(FIRST, FIRST + PICTURES):
        scene = landscapes.content([seed]), landscapes.style([seed + 5000])
        image, regions = landscapes.render(*scene, SIZE)
        for name in ("sky", "water"):
            truth = regions[0, landscapes.REGIONS.index(name)]
            if truth.mean() < LEAST:
                continue
            depth = depth_of(truth)
            inside = (depth >= min(INSIDE, depth.max())).nonzero()
            places = {
                "the middle": (depth == depth.max()).nonzero()[0],
                "anywhere": inside[random.integers(len(inside))],
            }
            for where, (y, x) in places.items():
                mask = region_at(editor, image, int(x), int(y))[0, 0] > 0.5
                both, either = (mask & (truth > 0)).sum(), (mask | (truth > 0)).sum()
                found.setdefault((name, where), []).append(float(both / either))
    for (name, where), values in found.items():
        least, low = np.min(values), np.percentile(values, 5)
        good = np.mean(np.array(values) >= 0.8)
        print(
            f"{name}, a click {where}: IoU {np.mean(values):.3f}, median {np.median(values):.3f}, "
            f"5th percentile {low:.3f}, least {least:.3f}, {good:.0%} at least 0.8, "
            f"{len(values)} pictures"
        )


if __name__ == "__main__":
    main()
