"""Fits again what chooses among the regions around a click:

    python -m benchmarks.click_fit photos --out rwm_fast/weights/click.json

draws landscapes, whose regions are known, clicks on each region and takes the numbers and the
overlap (IoU) with the truth of every growing region around each click. Fitted is the mean over
clicks of the overlap expected under a softmax over a click's regions, with a reward for 0.8 and
more; noise on the numbers keeps the fit loose, for those of photos differ. All seeds are fixed."""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.click import Click, clicks
from rwm_fast.models import RegionEditor
from rwm_fast.models.click import features, numbers
from rwm_fast.models.growing import Borders, Labels, grown, pieces
from rwm_fast.models.pictures import picture_of

FIRST, PICTURES = 50_000_000, 600
UNITS, STEPS, RATE, DECAY = 8, 300, 0.03, 0.1
NOISE = 0.2  # spreads, on the numbers. With less, or 1000 steps, better here and worse on photos
# What a click weighs: sky and water are clicked most, and have one true region; the others keep it
# from learning large regions alone. There are two clicks anywhere for each in the middle.
WEIGHTS = {"sky": 1.0, "mountain": 0.3, "water": 1.0, "ground": 0.3}
LEAST = 0.3  # overlap that is worth nothing
REWARD, ENOUGH, STEEP = 0.3, 0.8, 20.0


@dataclass(frozen=True)
class Sample:
    """One click: the K regions around it."""

    numbers: Tensor  # [K, D]
    overlap: Tensor  # [K]
    weight: float


def sample(labels: Labels, borders: Borders, click: Click) -> Sample:
    height, width = labels.shape
    growing = grown(labels, borders, ((click.y + 0.5) / height, (click.x + 0.5) / width))
    known = torch.from_numpy(numbers(growing)[:-1])
    growing = growing[:-1]  # the last is the whole picture, which is no region
    hits = np.bincount(labels.ravel(), click.truth.numpy().ravel(), len(borders.size))
    both = np.cumsum([hits[stage.joined].sum() for stage in growing])
    area = np.cumsum([borders.size[stage.joined].sum() for stage in growing])
    overlap = both / (area + hits.sum() - both)
    weight = WEIGHTS[click.region] * (1.0 if click.where == "the middle" else 0.5)
    return Sample(known, torch.from_numpy(overlap), weight)


def fit(samples: list[Sample]) -> list[list[float]]:
    """Rows of one unit each: its weight, its bias, its weights of the numbers."""
    x = torch.cat([s.numbers for s in samples]).float()
    overlap = torch.cat([s.overlap for s in samples]).float()
    click = torch.cat([torch.full((len(s.overlap),), i) for i, s in enumerate(samples)])
    weight = torch.tensor([s.weight for s in samples])
    weight /= weight.sum()
    worth = (overlap - LEAST).clamp_min(0) + REWARD * torch.sigmoid((overlap - ENOUGH) * STEEP)
    mean, spread = x.mean(0), x.std(0)
    torch.manual_seed(0)
    units, total = nn.Linear(x.shape[1], UNITS), nn.Linear(UNITS, 1, bias=False)
    parameters = [*units.parameters(), *total.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=RATE, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    x, zeros = (x - mean) / spread, torch.zeros(len(samples))
    for _ in range(STEPS):
        seen = x + NOISE * torch.randn(x.shape)
        score = total(torch.tanh(units(seen)))[:, 0]
        most = (zeros - torch.inf).scatter_reduce(0, click, score.detach(), "amax")
        share = (score - most[click]).exp()
        expected = zeros.index_add(0, click, share * worth) / zeros.index_add(0, click, share)
        loss = -(weight * expected).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        weights = units.weight / spread  # of the numbers as they are
        rows = torch.cat([total.weight.T, (units.bias - weights @ mean)[:, None], weights], 1)
    return [[round(value, 3) for value in row] for row in rows.tolist()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("weights", help="a name, or what edit takes as --checkpoint")
    parser.add_argument("--first", type=int, default=FIRST, help="seed of the first landscape")
    parser.add_argument("--pictures", type=int, default=PICTURES)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    torch.set_num_threads(1)  # sums in one order
    editor, samples = RegionEditor.load(given.weights), []
    side = editor.encoder.config.image_size
    for seed in range(given.first, given.first + given.pictures):
        image, places = clicks(seed)
        with torch.no_grad():
            codes = editor.codes_of(picture_of(image, "image"), side, 0, False)
        labels, borders = pieces(features(image, codes))
        samples += [sample(labels, borders, click) for click in places]
    rows = fit(samples)
    given.out.write_text("[" + ",\n ".join(json.dumps(row) for row in rows) + "]\n")
    print(f"{len(samples)} clicks, {len(rows)} units: {given.out}")


if __name__ == "__main__":
    main()
