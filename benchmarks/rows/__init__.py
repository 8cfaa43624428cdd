"""The rows: operators, layers, networks."""

from __future__ import annotations

from benchmarks.rows import layers, networks, operators
from benchmarks.rows.row import Row


def all_rows() -> list[Row]:
    return [*operators.rows(), *layers.rows(), *networks.rows()]


def row(name: str) -> Row:
    """A fresh row by name."""
    return next(row for row in all_rows() if row.name == name)
