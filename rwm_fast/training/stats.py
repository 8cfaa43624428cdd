"""Means of what a run reports, summed on the device, written as JSON lines."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rwm_fast.disk import write_whole

Record = dict[str, Any]  # one line of a log: images seen, seconds, losses or scores by name


class Stats:
    """Running sums by name. Adding waits for nothing; `collect` waits once and starts anew."""

    def __init__(self) -> None:
        # by the names that come together: [3, names], sums, how many were finite, how many came
        self._sums: dict[tuple[str, ...], Tensor] = {}

    def add(self, values: dict[str, Tensor]) -> None:
        """Scalars by name; each name has its own count, so a term that is rarely due has its mean
        over the steps on which it was. Values that are not finite are counted apart."""
        if not values:
            return
        row = torch.stack([value.detach().float() for value in values.values()])
        finite = row.isfinite()
        sums = torch.stack((row.where(finite, 0.0), finite.float(), torch.ones_like(row)))
        names = tuple(values)
        self._sums[names] = self._sums[names] + sums if names in self._sums else sums

    def collect(self) -> tuple[dict[str, float], dict[str, int]]:
        """Means of the finite values since the last call, and how often a name was not finite."""
        totals: dict[str, list[float]] = {}
        for names, sums in self._sums.items():
            for name, *row in zip(names, *sums.tolist(), strict=True):
                before = totals.get(name, [0.0, 0.0, 0.0])
                totals[name] = [a + b for a, b in zip(before, row, strict=True)]
        self._sums = {}
        means = {name: total / n for name, (total, n, _) in totals.items() if n}
        broken = {name: int(came - n) for name, (_, n, came) in totals.items() if came > n}
        return means, broken


class JsonLines:
    """A file of one JSON object a line. Lines that are none are passed over when reading."""

    def __init__(self, path: Path):
        self.path = path

    def append(self, record: Record) -> None:
        rounded = {k: float(f"{v:.6g}") if isinstance(v, float) else v for k, v in record.items()}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(rounded) + "\n")

    def read(self) -> list[Record]:
        """The records that say at how many images they were written."""
        return [record for line in self._lines() if (record := _record(line))]

    def _lines(self) -> list[bytes]:
        return self.path.read_bytes().split(b"\n") if self.path.is_file() else []

    def keep_until(self, nimg: int) -> None:
        """Drop records past `nimg`, which a resumed run writes again, and a last line that was cut
        short. Every other line stays as it is, also one that is no record."""
        lines = self._lines()[:-1]  # after the last newline there is nothing, or a torn line
        kept = [line for line in lines if not (r := _record(line)) or r["nimg"] <= nimg]
        content = b"".join(line + b"\n" for line in kept)
        if self.path.exists() and content != self.path.read_bytes():
            write_whole(self.path, lambda p: p.write_bytes(content))

    def start(self) -> None:
        """No records: those of a run that left no state are not this one's."""
        self.path.unlink(missing_ok=True)


def _record(line: bytes) -> Record | None:
    try:
        record: Record = dict(json.loads(line))
        nimg = record["nimg"]
        if isinstance(nimg, (int, float)) and not isinstance(nimg, bool) and math.isfinite(nimg):
            return record
    except (ValueError, TypeError, KeyError, RecursionError, OverflowError):  # odd in many ways
        pass
    return None
