"""A run on disk: its settings, log, pictures, states, weights and report."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from rwm_fast.config import Config
from rwm_fast.disk import write_whole
from rwm_fast.errors import UserError
from rwm_fast.training.checkpoint import Checkpoints
from rwm_fast.training.stats import JsonLines

# A run goes on under other values of these; every other setting decides what the run is.
FREE = {
    "train": {
        "kimg",
        "seconds",
        "device",
        "threads",
        "log_kimg",
        "sample_kimg",
        "sample_seconds",
        "checkpoint_kimg",
        "keep_checkpoints",
        "quick_seconds",
        "quick_reconstruction_fraction",
    },
    "data": {"workers", "cache_mb"},
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
        self.pictures = self.path / "pictures.json"  # what was found, and what cannot be read
        self.log = JsonLines(self.path / "log.jsonl")

    def checkpoints(self, keep: int) -> Checkpoints:
        return Checkpoints(self.path / "checkpoints", keep)

    def check(self, config: Config) -> None:
        """UserError unless the folder is free for a run with these settings: absent, without saved
        states, or of a run with the same settings."""
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"--out: expected a folder, got the file {self.path}")
        if self.config.exists() and self.checkpoints(0).paths():
            self._compare(config)

    def begin(self, config: Config) -> None:
        """Create the folder and write the settings."""
        try:
            self.samples.mkdir(parents=True, exist_ok=True)
            write_whole(self.config, lambda p: p.write_text(config.to_json() + "\n"))
        except OSError as error:
            raise UserError(
                f"--out: expected a folder that can be written, got {self.path} ({error.strerror})"
            ) from None

    def _compare(self, config: Config) -> None:
        try:
            before = Config.from_json(self.config.read_text())
        except (ValueError, OSError) as error:
            raise UserError(f"{self.config}: expected the settings of a run ({error})") from None
        differences = config_differences(before, config)
        if differences:
            raise UserError(
                f"--out: {self.path} holds a run with other settings "
                f"({'; '.join(differences)}); give the same ones, or another folder"
            )


def config_differences(before: Config, now: Config) -> list[str]:
    """ "section.field A there, B here" for every setting that decides what a run is."""
    result = (
        [] if before.preset == now.preset else [f"preset {before.preset} there, {now.preset} here"]
    )
    for section in ("model", "loss", "data", "mask", "train"):
        old, new = getattr(before, section), getattr(now, section)
        for field in dataclasses.fields(old):
            a, b = getattr(old, field.name), getattr(new, field.name)
            if a != b and field.name not in FREE.get(section, ()):
                result.append(f"{section}.{field.name} {a} there, {b} here")
    return result
