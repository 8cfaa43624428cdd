"""Held-out pairs of pictures: landscapes with the true answer to every swap, or photos without."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from rwm_fast.config import Config, MaskConfig
from rwm_fast.data import landscapes
from rwm_fast.data.loader import TrainingSet
from rwm_fast.data.masks import sample_masks
from rwm_fast.data.photos import Photo, PhotoSet
from rwm_fast.metrics.evaluate import Pairs

# First seeds of content and style. Settings are chosen on "tune"; "report" is looked at only to
# report. Training pictures have seeds below 10 million.
SPLITS = {"tune": (10_000_000, 20_000_000), "report": (30_000_000, 40_000_000)}


def held_out_pairs(
    config: Config, split: str, count: int, pictures: TrainingSet | None = None
) -> Pairs:
    """Pairs of the kind of picture that `config.data` names; `pictures` saves opening them again.

    Photos know no split: those held out of training serve both.
    """
    if not config.data.sources:
        return landscape_pairs(split, count, config.model.image_size)
    if isinstance(pictures, PhotoSet):
        return photo_pairs(pictures, count, config.mask)
    photos = PhotoSet(config.data, config.model.image_size, config.train.seed)
    return photo_pairs(photos, count, config.mask)


def landscape_pairs(split: str, count: int, size: int, times: tuple[str, str] = ("", "")) -> Pairs:
    """`count` pairs: a scene in its own style, another scene in another style, the true swap.

    Masks are the scenes' own regions (sky, mountain, water, ground), by turns. `times` fixes the
    time of day of content and style pictures (names of `landscapes.TIMES`).
    """
    content_seed, style_seed = SPLITS[split]
    chunks = [
        _render(content_seed, style_seed, range(start, min(start + 64, count)), size, times)
        for start in range(0, count, 64)
    ]
    content, style, regions, truth = (torch.cat(part) for part in zip(*chunks, strict=True))
    rows = torch.arange(count)
    mask = regions[rows, rows % regions.shape[1], None]  # [N, 1, H, W]
    return Pairs(content, style, mask, truth)


def _render(
    content_seed: int, style_seed: int, rows: range, size: int, times: tuple[str, str]
) -> list[Tensor]:
    (scene, own_style), (other_scene, other_style) = (
        (landscapes.content(seeds), landscapes.style(seeds, time=time))
        for first, time in zip((content_seed, style_seed), times, strict=True)
        for seeds in [[first + k for k in rows]]
    )
    content, regions = landscapes.render(scene, own_style, size)
    style, _ = landscapes.render(other_scene, other_style, size)
    truth, _ = landscapes.render(scene, other_style, size)
    return [content, style, regions, truth]


def photo_pairs(pictures: PhotoSet, count: int, config: MaskConfig) -> Pairs:
    """At most `count` pairs of held-out photos (of training photos in a set too small to hold some
    out), with random masks; every photo comes as content before one comes twice. Of several
    domains photos come by turns, so that the few pairs of a grid show each, in the style of the
    next."""
    photos = pictures.held_out or pictures.training
    domains = [[p for p in photos if p.domain == k] for k in range(len(pictures.domains))]
    by_turns = [p for row in itertools.zip_longest(*domains) for p in row if p is not None]
    return _paired(_images(pictures, by_turns[:count]), None, count, config)


def photo_directions(
    pictures: PhotoSet, count: int, config: MaskConfig
) -> dict[tuple[int, int], Pairs]:
    """The same for every pair of domains, content of one and style of the other, and for each with
    itself; at most `count` pairs each. A domain of which no photo is there has no part in it, one
    of a single photo none with itself."""
    images = {}
    for domain in range(len(pictures.domains)):
        own = [p for p in pictures.held_out or pictures.training if p.domain == domain][:count]
        if own:
            images[domain] = _images(pictures, own)
    return {
        (a, b): _paired(images[a], None if a == b else images[b], count, config)
        for a in images
        for b in images
        if a != b or len(images[a]) > 1
    }


def _paired(contents: Tensor, styles: Tensor | None, count: int, config: MaskConfig) -> Pairs:
    """Each picture with another one of the same set, or with one of another set."""
    n = len(contents)
    if styles is None:
        rows = torch.arange(min(count, max(1, n * (n - 1))))
        style = contents[(rows + 1 + rows // n) % n]  # never the same one, unless n = 1
    else:
        rows = torch.arange(min(count, n * len(styles)))
        # every combination comes once: rounds of n, each begun one style further than the last
        lap = rows // math.lcm(n, len(styles))
        style = styles[(rows + lap) % len(styles)]
    generator = torch.Generator().manual_seed(0)
    size = (contents.shape[2], contents.shape[3])
    mask = sample_masks(len(rows), size, config, generator=generator)
    return Pairs(contents[rows % n], style, mask)


def _images(pictures: PhotoSet, photos: Sequence[Photo]) -> Tensor:  # [N, 3, S, S] in [-1, 1]
    return torch.stack([_image(pictures.centre(photo)) for photo in photos])


def _image(values: np.ndarray) -> Tensor:  # uint8 [H, W, 3] -> float32 [3, H, W] in [-1, 1]
    return torch.from_numpy(np.array(values)).permute(2, 0, 1).float().div(127.5).sub(1)
