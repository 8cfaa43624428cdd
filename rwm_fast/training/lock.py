"""One process at a time in a run folder."""

from __future__ import annotations

from pathlib import Path
from typing import TextIO

from rwm_fast.disk import lock, this_process
from rwm_fast.errors import UserError


class Lock:
    """Held from `take` to `release` or the end of the process, however it ends."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._file: TextIO | None = None

    def take(self) -> None:
        """UserError that names the process which has the folder. A lock that is held, but whose
        file is gone with its folder, is taken anew."""
        path = self.folder / ".lock"
        if self._file is not None and path.exists():
            return
        self.release()
        file = open(path, "a+", encoding="utf-8", errors="replace")  # noqa: SIM115
        if not lock(file):
            file.seek(0)
            owner = file.read(200).strip() or "another process"
            file.close()
            raise UserError(
                f"--out: {self.folder} is in use by {owner}; wait for its end, or give "
                "another folder"
            )
        file.truncate(0)
        file.write(f"{this_process()}\n")
        file.flush()
        self._file = file

    def release(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
