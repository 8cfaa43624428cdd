"""The rows: operators, layers, networks; on a CPU, and by part on a GPU."""

from __future__ import annotations

import importlib
from collections.abc import Iterator

import torch

from benchmarks.rows.row import OURS, Row

GROUPS = ("operators", "layers", "second", "networks")


def all_rows(tiny: bool = False) -> Iterator[Row]:
    """Group by group: an rwm_fast that lacks what one group imports still has the others."""
    for group in GROUPS:
        yield from importlib.import_module(f"benchmarks.rows.{group}").rows(tiny)


def by_name(name: str) -> Row:
    """A fresh row by name."""
    return next(row for row in all_rows() if row.name == name)


GPU_COLUMNS = ("rewritten", "published", OURS, "ours-native", "ours-triton", "ceiling")
GPU_PARTS = {
    "headline": ("layers", "headline"),
    "networks": ("networks", "gpu_rows"),
    "operators": ("operators", "gpu_rows"),
    "layers": ("layers", "others"),
    "compiled": ("layers", "against_compile"),
}


def gpu_rows(part: str, place: torch.device, tiny: bool = False) -> Iterator[Row]:
    """The rows of a part, on a device."""
    group, name = GPU_PARTS[part]
    module = importlib.import_module(f"benchmarks.rows.{group}")
    for row in _tiny(part, module) if tiny else getattr(module, name)():
        row.place = place
        if group != "networks":
            extra = tuple(c for c in row.columns if c in ("per style", "one style"))
            row.columns = (*GPU_COLUMNS, *extra)
        if part == "compiled":
            row.columns = ("rewritten", "compiled", OURS)
        yield row


def _tiny(part: str, module) -> list[Row]:
    """Seconds on a CPU: rows that walk every path of the pipeline."""
    if part == "operators":
        return [
            module.masked_l1_row("float32", n=2, side=16),
            module.bias_act_row((2, 8, 8, 8), "float32"),
        ]
    if part == "networks":
        return list(module.gpu_rows(tiny=True))
    name = "8 -> 8 @ 8 B=2"
    regions = module.layer_row(f"regions K=2 {name}", (2, 8, 8), 8, styles=2)
    return [module.layer_row(f"layer {name}", (2, 8, 8), 8), regions]
