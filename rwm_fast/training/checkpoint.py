"""Checkpoints: everything a run needs to go on, by name, in files that are whole or absent."""

from __future__ import annotations

import logging
import math
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from rwm_fast.disk import remove_partials, write_whole
from rwm_fast.errors import UserError
from rwm_fast.training.fits import State, Stateful, misfits

log = logging.getLogger("rwm_fast")
_NAME = re.compile(r"state-(\d{9,})\.pt")


class Damaged(Exception):
    """A file that does not hold what was written; the message says how that shows."""


class Checkpoints:
    """A folder of state files, the newest last, and `best.pt` beside them.

    Files hold tensors and plain values only. They are zip archives, so every part has its CRC; a
    file is good if it can be read and all of them hold.
    """

    def __init__(self, folder: Path, keep: int = 2):
        self.folder, self.keep = folder, keep
        self.best = folder / "best.pt"
        self.loaded: Path | None = None  # where `load_latest` found its state
        self._passed_over: set[Path] = set()  # whole, but of no use to this run
        self._good: dict[Path, tuple[int, int]] = {}  # files checked, as they were then

    def paths(self) -> list[Path]:
        """State files, oldest first."""
        if not self.folder.is_dir():
            return []
        found = ((_NAME.fullmatch(p.name), p) for p in self.folder.iterdir())
        return [p for _, p in sorted((int(name[1]), p) for name, p in found if name)]

    def path(self, nimg: int) -> Path:
        return self.folder / f"state-{nimg:09d}.pt"

    def save(self, nimg: int, objects: Mapping[str, Stateful], **more: Any) -> Path:
        """Write the state of named objects, and `more` plain values by name.

        The file gets its name only when it is whole and on the disk. Older ones are removed after
        that, so that `keep` good ones remain, this one included (0 keeps all): damaged files and
        those that did not fit count for nothing.
        """
        path = self.write(self.path(nimg), nimg, objects, **more)
        self._passed_over.discard(path)
        if self.keep and self.is_good(path):
            older = reversed([p for p in self.paths() if number(p) <= nimg])
            good = [p for p in older if p not in self._passed_over and self.is_good(p)]
            if len(good) >= self.keep:
                oldest = number(good[self.keep - 1])
                kept = {p for p in good if number(p) >= oldest}
                for old in (p for p in self.paths() if number(p) <= nimg and p not in kept):
                    old.unlink()
        return path

    def write(self, path: Path, nimg: int, objects: Mapping[str, Stateful], **more: Any) -> Path:
        self.folder.mkdir(parents=True, exist_ok=True)
        state = {"nimg": nimg, **{name: o.state_dict() for name, o in objects.items()}, **more}

        def save(temporary: Path) -> None:
            with open(temporary, "wb") as file:  # by Python, whose errors name what went wrong
                torch.save(state, file)

        write_whole(path, save)
        return path

    def load_latest(self, objects: Mapping[str, Stateful]) -> int | None:
        """Restore from the newest good file that fits, then from the best one; returns its images
        seen, None if there is no file.

        A file that is passed over is named with the reason, and changes nothing. UserError when
        there are files and none can be used.
        """
        misfit = ""
        for path in (*reversed(self.paths()), *[self.best] * self.best.exists()):
            try:
                state = read_state(path)
                reason = misfits(objects, state)
                misfit = misfit or (reason and f"{path}: {reason}")
            except Damaged as error:
                reason = f"it cannot be read: {error}"
            if not reason:
                for name, target in objects.items():
                    target.load_state_dict(state[name])
                self.loaded = path
                return int(state["nimg"])
            self._passed_over.add(path)
            log.warning("%s is passed over (%s); going back to the one before", path, reason)
        if misfit:
            raise UserError(misfit)
        if self._passed_over:
            raise UserError(
                f"{self.folder}: expected a checkpoint that can be read, but all "
                f"{len(self._passed_over)} are damaged; remove the folder to start again"
            )
        return None

    def newest(self) -> State | None:
        """The content of the newest good file, None if there is none."""
        for path in (*reversed(self.paths()), *[self.best] * self.best.exists()):
            try:
                return read_state(path)
            except Damaged:
                continue
        return None

    def best_score(self) -> tuple[str, float] | None:
        """Name and value of the score that `best.pt` was kept for; None without a good one."""
        try:
            name, value = read_state(self.best)["score"] if self.best.exists() else ("", math.nan)
            return (str(name), float(value)) if math.isfinite(value) else None
        except (Damaged, KeyError, TypeError, ValueError):
            return None

    def is_good(self, path: Path) -> bool:
        """Whether a file is whole; one that has not changed since is not read again."""
        status = path.stat()
        seen = (status.st_size, status.st_mtime_ns)
        if self._good.get(path) != seen:
            try:
                check(path)
            except Damaged:
                return False
            self._good[path] = seen
        return True

    def clean(self) -> None:
        """Remove what a kill left half-written. Only for who holds the run's lock."""
        remove_partials(self.folder)


def number(path: Path) -> int:
    """Images seen, by the name of a state file."""
    name = _NAME.fullmatch(path.name)
    assert name is not None
    return int(name[1])


def check(path: Path) -> None:
    """Damaged unless every part of a file has the CRC that was written with it."""
    try:
        with zipfile.ZipFile(path) as archive:
            bad = archive.testzip()
            packed = any(m.compress_type != zipfile.ZIP_STORED for m in archive.infolist())
    except Exception as error:  # a torn file fails in many ways, all of them mean the same
        raise Damaged(_first_line(error)) from None
    if bad is not None:
        raise Damaged(f"its part {bad} has another checksum than was written")
    if packed:  # torch does not pack; a small file could unpack to any size
        raise Damaged("it holds packed parts")


def read_state(path: Path) -> State:
    """The content of a state file whose checksums hold; Damaged for any other. Runs no code of the
    file."""
    check(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise Damaged(_first_line(error)) from None
    return state if isinstance(state, dict) else {}


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
