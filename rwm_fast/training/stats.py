"""Means of what a run reports, summed on the device, written as JSON lines."""

import json
import math
from pathlib import Path

import torch
from torch import Tensor

Record = dict[str, float]  # one line of a log: images seen, seconds, losses or scores by name


class NotFiniteError(ArithmeticError):
    """A term of the loss became NaN or infinite; the message names it."""


class Stats:
    """Running sums by name. Adding waits for nothing; `collect` waits once and starts anew."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def add(self, values: dict[str, Tensor]) -> None:
        """Scalars by name; each name has its own count, so a term that is rarely due has its mean
        over the steps on which it was."""
        for name, value in values.items():
            value = value.detach().float()
            self._sums[name] = self._sums[name] + value if name in self._sums else value
            self._counts[name] = self._counts.get(name, 0) + 1

    def collect(self) -> dict[str, float]:
        """Means since the last call. A sum that is not finite raises NotFiniteError."""
        if not self._sums:
            return {}
        names, sums = list(self._sums), torch.stack(list(self._sums.values())).tolist()
        means = {n: s / self._counts[n] for n, s in zip(names, sums, strict=True)}
        self._sums, self._counts = {}, {}
        bad = [f"{name} = {mean}" for name, mean in means.items() if not math.isfinite(mean)]
        if bad:
            raise NotFiniteError(f"loss terms that are not finite: {', '.join(bad)}")
        return means


class JsonLines:
    """A file of one JSON object a line; a line cut short by a crash is dropped when reading."""

    def __init__(self, path: Path):
        self.path = path

    def append(self, record: Record) -> None:
        rounded = {k: float(f"{v:.6g}") if isinstance(v, float) else v for k, v in record.items()}
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(rounded) + "\n")

    def read(self) -> list[Record]:
        if not self.path.exists():
            return []
        records = []
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                records.append(json.loads(line))
            except json.JSONDecodeError:
                continue
        return records

    def keep_until(self, nimg: int) -> None:
        """Drop records past `nimg`: a resumed run writes them again."""
        records = [r for r in self.read() if r.get("nimg", 0) <= nimg]
        self.path.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
