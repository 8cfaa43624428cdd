"""How well one click finds a region: `python -m benchmarks.click photos` draws landscapes, whose
regions are known, clicks on sky and water and prints the overlap (IoU) of what is found."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rwm_fast.data import landscapes
from rwm_fast.models import RegionEditor
from rwm_fast.models.click import region_at

FIRST, PICTURES = 60_000_000, 60  # seeds that no setting was chosen on
SIZE = 256
LEAST = 0.01  # of the picture: smaller regions are not clicked
INSIDE = 3  # px from the border, where a click may fall


@dataclass(frozen=True)
class Click:
    region: str
    where: str
    truth: Tensor  # bool [H, W]
    x: int
    y: int


def depth_of(region: Tensor) -> Tensor:
    """How many pixels each is from the outside, [H, W]; the picture's border is outside."""
    left, depth = region[None, None].clone(), torch.zeros_like(region)
    while left.any():
        depth += left[0, 0]
        left = 1 - F.max_pool2d(F.pad(1 - left, [1, 1, 1, 1], value=1.0), 3, 1)
    return depth


def clicks(seed: int) -> tuple[Tensor, Iterator[Click]]:
    """A landscape [1, 3, H, W]; on each of its regions a click in the middle and two anywhere."""
    image, shares = landscapes.render(
        landscapes.content([seed]), landscapes.style([seed + 5000]), SIZE
    )
    return image, _clicks(shares[0].argmax(0), np.random.default_rng(seed))


def _clicks(largest: Tensor, random: np.random.Generator) -> Iterator[Click]:
    for number, name in enumerate(landscapes.REGIONS):
        truth = largest == number
        if truth.float().mean() < LEAST:
            continue
        depth = depth_of(truth.float())
        y, x = (depth == depth.max()).nonzero()[0].tolist()
        yield Click(name, "the middle", truth, x, y)
        inside = (depth >= min(INSIDE, depth.max())).nonzero()
        for _ in range(2):
            y, x = inside[random.integers(len(inside))].tolist()
            yield Click(name, "anywhere", truth, x, y)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("weights", help="a name, or what edit takes as --checkpoint")
    parser.add_argument("--first", type=int, default=FIRST, help="seed of the first landscape")
    parser.add_argument("--pictures", type=int, default=PICTURES)
    given = parser.parse_args()
    editor = RegionEditor.load(given.weights)
    found: dict[tuple[str, str], list[float]] = {}
    for seed in range(given.first, given.first + given.pictures):
        image, places = clicks(seed)
        for click in places:
            mask = region_at(editor, image, click.x, click.y)[0, 0] > 0.5
            both, either = (mask & click.truth).sum(), (mask | click.truth).sum()
            found.setdefault((click.region, click.where), []).append(float(both / either))
    for (name, where), values in found.items():
        least, low = np.min(values), np.percentile(values, 5)
        good = np.mean(np.array(values) >= 0.8)
        print(
            f"{name}, a click {where}: IoU {np.mean(values):.3f}, median {np.median(values):.3f}, "
            f"5th percentile {low:.3f}, least {least:.3f}, {good:.0%} at least 0.8, "
            f"{len(values)} clicks"
        )


if __name__ == "__main__":
    main()
