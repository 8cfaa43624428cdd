"""One process at a time in a run folder."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import TextIO

from rwm_fast.errors import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


class Lock:
    """Held from `take` to `release` or the end of the process, however it ends."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._file: TextIO | None = None

    def take(self) -> None:
        """UserError that names the process which has the folder. A lock that is held, but whose
        file is gone with its folder, is taken anew. Nothing on disks that know no locks."""
        path = self.folder / ".lock"
        if fcntl is None or (self._file is not None and path.exists()):
            return
        self.release()
        file = open(path, "a+", encoding="utf-8")  # noqa: SIM115
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            owner = file.read(200).strip() or "another process"
            file.close()
            raise UserError(
                f"--out: {self.folder} is in use by {owner}; wait for its end, or give "
                "another folder"
            ) from None
        except OSError:  # a network disk without locks
            file.close()
            return
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        self._file = file

    def release(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
