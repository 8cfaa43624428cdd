"""The rows: operators, layers, networks."""

from __future__ import annotations

import importlib
from collections.abc import Iterator

from benchmarks.rows.row import Row

GROUPS = ("operators", "layers", "plain", "networks")


def all_rows() -> list[Row]:
    return list(_rows())


def _rows() -> Iterator[Row]:
    """Group by group: an rwm_fast that lacks what one group imports still has the others."""
    for group in GROUPS:
        yield from importlib.import_module(f"benchmarks.rows.{group}").rows()


def row(name: str) -> Row:
    """A fresh row by name."""
    return next(row for row in _rows() if row.name == name)
