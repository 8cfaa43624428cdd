"""Held-out pairs of landscapes, with the true answer to every swap."""

import torch

from rwm_fast.data import landscapes
from rwm_fast.metrics.evaluate import Pairs

# First seeds of content and style. Settings are chosen on "tune"; "report" is looked at only to
# report. Training pictures have seeds below 10 million.
SPLITS = {"tune": (10_000_000, 20_000_000), "report": (30_000_000, 40_000_000)}


def landscape_pairs(split: str, count: int, size: int) -> Pairs:
    """`count` pairs: scene k with its own style, scene k' of another style, and the true swap.

    Masks are the scenes' own regions (sky, mountain, water, ground), by turns.
    """
    content_seed, style_seed = SPLITS[split]
    chunks = [_render(content_seed, style_seed, range(start, min(start + 64, count)), size)
              for start in range(0, count, 64)]
    content, style, regions, truth = (torch.cat(part) for part in zip(*chunks, strict=True))
    rows = torch.arange(count)
    mask = regions[rows, rows % regions.shape[1], None]  # [N, 1, H, W]
    return Pairs(content, style, mask, truth)


def _render(content_seed: int, style_seed: int, rows: range, size: int):
    scene = landscapes.content([content_seed + k for k in rows])
    own_style = landscapes.style([content_seed + k for k in rows])
    other_scene = landscapes.content([style_seed + k for k in rows])
    other_style = landscapes.style([style_seed + k for k in rows])
    content, regions = landscapes.render(scene, own_style, size)
    style, _ = landscapes.render(other_scene, other_style, size)
    truth, _ = landscapes.render(scene, other_style, size)
    return content, style, regions, truth
