"""The rows: operators, layers, networks."""

from __future__ import annotations

from benchmarks.rows.row import Row


def all_rows() -> list[Row]:
    # not at the top: single operators can be measured where what the networks need is missing
    from benchmarks.rows import layers, networks, operators

    return [*operators.rows(), *layers.rows(), *networks.rows()]


def row(name: str) -> Row:
    """A fresh row by name."""
    return next(row for row in all_rows() if row.name == name)
