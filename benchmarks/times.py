"""Day into night against the truth: `python -m benchmarks.times runs/times` draws landscapes, whose
true edits are known, scores a model on every direction and writes a grid of each."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

from rwm_fast.models import RegionEditor, read_config
from rwm_fast.training.pairs import landscape_pairs
from rwm_fast.training.report import evaluate, save_pairs_grid, save_report
from rwm_fast.training.step import Autoencoder

TIMES = ("day", "night")
PAIRS = 256  # a direction; no training picture has their seeds
SHOWN = {
    "reconstruction": ("reconstruction_l1",),
    "swap, to the truth: nothing, Reinhard, model": ("swap_nothing", "swap_reinhard", "swap"),
    "  closer than nothing: Reinhard, model": ("swap_closer_reinhard", "swap_closer"),
    "edit inside, closer: Reinhard, model": ("inside_closer_reinhard", "inside_closer"),
    "edit inside, way to the style's colours": ("inside_style",),
    "edit inside, edges, cosine": ("inside_structure",),
    "outside, kept detail": ("outside_detail",),
}


def main(run: str, count: int = PAIRS) -> None:
    editor, size = RegionEditor.load(run), read_config(run).model.image_size
    networks: Autoencoder = {"encoder": editor.encoder, "generator": editor.generator}
    report = {}
    for way in itertools.product(TIMES, TIMES):
        pairs = landscape_pairs("report", count, size, way)
        name = " -> ".join(way)
        report[name] = evaluate(networks, pairs, False, None)["scores"]
        save_pairs_grid(networks, pairs, Path(run) / f"truth-{'-'.join(way)}.png", way)
        print(f"{name}, {count} pairs")
        for text, keys in SHOWN.items():
            print(f"  {text:46}" + "".join(f"{report[name][key]:8.3f}" for key in keys))
    save_report(Path(run) / "truth.json", report)


if __name__ == "__main__":
    main(sys.argv[1])
