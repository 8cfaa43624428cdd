"""Checkpoints: everything a run needs to go on, by name, in files that are whole or absent."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch

from rwm_fast.errors import UserError

log = logging.getLogger("rwm_fast")
_NAME = re.compile(r"state-(\d{9})\.pt")


class Stateful(Protocol):
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Checkpoints:
    """A folder of state files, the newest last. Files hold tensors and plain values only."""

    def __init__(self, folder: Path, keep: int = 2):
        self.folder, self.keep = folder, keep

    def paths(self) -> list[Path]:
        """Whole files, oldest first."""
        if not self.folder.is_dir():
            return []
        return sorted(p for p in self.folder.iterdir() if _NAME.fullmatch(p.name))

    def save(self, nimg: int, objects: dict[str, Stateful]) -> Path:
        """Write the state of named objects.

        The file gets its name only when it is whole and on the disk; older ones are removed after
        that, so that `keep` remain (0 keeps all).
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"state-{nimg:09d}.pt"
        write_whole(
            path,
            lambda temporary: torch.save(
                {"nimg": nimg, **{name: o.state_dict() for name, o in objects.items()}}, temporary
            ),
        )
        for old in self.paths()[: -self.keep or None] if self.keep else []:
            old.unlink()
        return path

    def load_latest(self, objects: dict[str, Stateful]) -> int | None:
        """Restore from the newest file that can be read; returns its images seen, None if there is
        no file. A torn file is passed over, and that is said; UserError when all are torn."""
        for path in reversed(self.paths()):
            try:
                state = torch.load(path, map_location="cpu", weights_only=True)
            except Exception as error:  # a torn file fails in many ways, all of them mean the same
                log.warning(
                    "%s cannot be read (%s); going back to the one before",
                    path,
                    str(error).splitlines()[0] if str(error) else type(error).__name__,
                )
                continue
            missing = ", ".join(sorted(objects.keys() - state.keys()))
            if missing:
                raise UserError(f"{path}: expected the state of {missing}, got another version's")
            for name, target in objects.items():
                target.load_state_dict(state[name])
            return int(state["nimg"])
        if self.paths():
            raise UserError(
                f"{self.folder}: expected a checkpoint that can be read, but all "
                f"{len(self.paths())} are damaged; remove the folder to start again"
            )
        return None


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write(temporary path)`, flush it to the disk, then give it its name at once."""
    temporary = path.with_name(path.name + ".partial")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode
        write(temporary)
        temporary.chmod(mode)  # safetensors makes its own file, readable by its owner alone
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)  # the rename itself reaches the disk with its folder
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
