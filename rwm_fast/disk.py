"""Files that are whole or absent, whatever interrupts their writing."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

PARTIAL = ".partial"  # ends the name of a file that is being written


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write(temporary path)`, flush it to the disk, then give it its name at once."""
    temporary = path.with_name(path.name + PARTIAL)
    try:
        temporary.touch()
        mode = temporary.stat().st_mode
        write(temporary)
        temporary.chmod(mode)  # a writer may make a private file of its own
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


def remove_partials(folder: Path) -> None:
    """Remove what writers that were killed have left in a folder that nobody writes to now."""
    for path in folder.glob("*" + PARTIAL) if folder.is_dir() else ():
        if path.is_file():
            path.unlink()
