"""A run on disk: its settings, log, pictures, states, weights and report."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rwm_fast.config import Config
from rwm_fast.disk import remove_partials, write_whole
from rwm_fast.errors import UserError
from rwm_fast.training.checkpoint import Checkpoints
from rwm_fast.training.events import EventLog
from rwm_fast.training.lock import Lock
from rwm_fast.training.stats import JsonLines

# A run goes on under other values of these; every other setting decides what the run is. Where the
# pictures lie is none of it: `identity` compares the pictures themselves.
FREE = {
    "train": {
        "kimg",
        "seconds",
        "accumulate",
        "checkpoint_activations",
        "device",
        "threads",
        "log_kimg",
        "sample_kimg",
        "sample_seconds",
        "checkpoint_kimg",
        "keep_checkpoints",
        "tensorboard",
        "quick_seconds",
        "quick_reconstruction_fraction",
        # what to change in a run that went wrong
        "precision",
        "learning_rate",
        "discriminator_learning_rate",
        "second_part_gain",
        "decay_fraction",
        "decay_floor",
        "divergence",
        "skipped_in_a_row",
    },
    "data": {"sources", "workers", "cache_mb"},
}


class RunFolder:
    """Paths of one run. Making it creates nothing; `begin` does."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.config = self.path / "config.json"
        self.samples = self.path / "samples"
        self.curves = self.path / "curves.png"
        self.report = self.path / "report.json"
        self.weights = self.path / "weights.safetensors"
        self.best = self.path / "best.safetensors"  # of the best score so far
        self.pictures = self.path / "pictures.json"  # what was found, and what cannot be read
        self.log = JsonLines(self.path / "log.jsonl")
        self.lock = Lock(self.path)

    def checkpoints(self, keep: int) -> Checkpoints:
        return Checkpoints(self.path / "checkpoints", keep)

    def check(self, config: Config) -> dict[str, Any]:
        """What changes in the settings of the run that the folder holds, [before, now] by name;
        empty for a folder without one. UserError if it is another process's, or another run's.

        The settings of a run without its config.json are those in its newest state."""
        if config.train.tensorboard:
            self.log = EventLog(self.log.path, self.path / "tensorboard")
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"--out: expected a folder, got the file {self.path}")
        if self.path.exists():
            self._take()
        before = self._settings()
        if before is None:
            return {}
        differing = config_differences(before, config)
        if differing:
            raise UserError(
                f"--out: {self.path} holds a run with other settings "
                f"({'; '.join(differing)}); give the same ones, or another folder"
            )
        return {name: [a, b] for name, a, b in _pairs(before, config) if a != b}

    def begin(self, config: Config) -> None:
        """Create the folder and write the settings."""
        try:
            self.samples.mkdir(parents=True, exist_ok=True)
            self._take()
            for folder in (self.path, self.samples, self.path / "checkpoints"):
                remove_partials(folder)
            write_whole(self.config, lambda p: p.write_text(config.to_json() + "\n"))
        except OSError as error:
            raise UserError(
                f"--out: expected a folder that can be written, got {self.path} ({error.strerror})"
            ) from None

    def restore(self, config: Config) -> bool:
        """Make the folder anew if it was taken away while the run goes on; whether it was."""
        if self.config.exists() and self.samples.is_dir():
            return False
        self.begin(config)
        return True

    def has_states(self) -> bool:
        checkpoints = self.checkpoints(0)
        return bool(checkpoints.paths()) or checkpoints.best.exists()

    def _take(self) -> None:
        try:
            self.lock.take()
        except OSError as error:
            raise UserError(
                f"--out: expected a folder that can be written, got {self.path} ({error.strerror})"
            ) from None

    def _settings(self) -> Config | None:
        """Of the run that is here; None if there is none, or none that says."""
        if not self.has_states():
            return None
        try:
            if self.config.exists():
                return Config.from_json(self.config.read_text())
            text = (self.checkpoints(0).newest() or {}).get("config")
            return Config.from_json(text) if isinstance(text, str) else None
        except (ValueError, OSError, RecursionError, OverflowError) as error:
            raise UserError(f"{self.config}: expected the settings of a run ({error})") from None


def _pairs(before: Config, now: Config) -> Iterator[tuple[str, Any, Any]]:
    for section in ("model", "loss", "data", "mask", "train"):
        old, new = getattr(before, section), getattr(now, section)
        for field in dataclasses.fields(old):
            yield f"{section}.{field.name}", getattr(old, field.name), getattr(new, field.name)


def config_differences(before: Config, now: Config) -> list[str]:
    """ "section.field A there, B here" for every setting that decides what a run is."""
    free = {f"{section}.{name}" for section, names in FREE.items() for name in names}
    if bool(before.data.sources) != bool(now.data.sources):  # landscapes are no photos
        free.discard("data.sources")
    named = [("preset", before.preset, now.preset), *_pairs(before, now)]
    return [f"{name} {a} there, {b} here" for name, a, b in named if a != b and name not in free]
