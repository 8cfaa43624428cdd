"""Where pictures lie: a folder, searched recursively, or a zip file, or a folder inside a zip."""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from rwm_fast.errors import UserError

EXTENSIONS = frozenset(
    (
        ".jpg .jpeg .jpe .jfif .png .webp .bmp .gif .tif .tiff .ppm .pgm .pbm .pnm .tga .jp2 .avif"
    ).split()
)


class Folder:
    """The image files of a folder and all folders below it."""

    def __init__(self, path: Path):
        self.path, self.label = path, path.resolve().name or str(path)

    def __str__(self) -> str:
        return str(self.path)

    def names(self) -> list[str]:
        """Relative paths of the image files, sorted."""
        found, seen = [], set()
        for here, folders, files in os.walk(self.path, followlinks=True):
            real = os.path.realpath(here)
            if real in seen:  # a link back to a folder above
                folders.clear()
                continue
            seen.add(real)
            found += [Path(here, name).relative_to(self.path).as_posix() for name in files]
        return sorted(name for name in found if _is_picture(name))

    def open(self, name: str) -> BinaryIO:
        return open(self.path / name, "rb")


class Zip:
    """The image files of a zip file, or of one folder inside it.

    Every process opens the file for itself: a handle inherited by a worker would share its reading
    position with its parent.
    """

    def __init__(self, path: Path, inside: str = ""):
        self.path, self.inside = path, inside.strip("/")
        self.label = PurePosixPath(self.inside).name or path.stem
        self._archive: zipfile.ZipFile | None = None
        self._process = 0  # that opened it

    def __str__(self) -> str:
        return f"{self.path}/{self.inside}" if self.inside else str(self.path)

    def names(self) -> list[str]:
        """Names of the image files relative to the folder inside, sorted."""
        start = f"{self.inside}/" if self.inside else ""
        members = [m.filename for m in self._open().infolist() if not m.is_dir()]
        inside = [m.removeprefix(start) for m in members if m.startswith(start)]
        return sorted(name for name in inside if _is_picture(name))

    def open(self, name: str) -> BinaryIO:
        return io.BytesIO(self._open().read(f"{self.inside}/{name}" if self.inside else name))

    def _open(self) -> zipfile.ZipFile:
        if self._archive is None or self._process != os.getpid():
            self._archive, self._process = zipfile.ZipFile(self.path), os.getpid()
        return self._archive

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_archive": None}


def _is_picture(name: str) -> bool:
    parts = PurePosixPath(name).parts
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in parts)
    return not hidden and PurePosixPath(name).suffix.lower() in EXTENSIONS


def find_pictures(source: str | Path) -> tuple[Folder | Zip, list[str]]:
    """The place that `source` names and the image files in it.

    `source` is a folder, a zip file, or a zip file followed by a folder inside it, as in
    `set.zip/beach`. Files count as images by their extension; hidden ones are left out. UserError
    when there is no such place, it cannot be read or holds no image file.
    """
    place = _place(Path(source).expanduser())
    try:
        names = place.names()
    except (OSError, zipfile.BadZipFile) as error:
        raise UserError(f"{source} cannot be read: {error}") from None
    if not names:
        raise UserError(f"{source} holds no pictures; looked for {' '.join(sorted(EXTENSIONS))}")
    return place, names


def _place(path: Path) -> Folder | Zip:
    if path.is_dir():
        return Folder(path)
    for archive in (path, *path.parents):
        if archive.is_file():
            if not zipfile.is_zipfile(archive):
                raise UserError(
                    f"expected a folder of pictures or a zip file, got {archive}, which is neither"
                )
            return Zip(archive, path.relative_to(archive).as_posix().removeprefix("."))
    raise UserError(f"{path} does not exist; expected a folder of pictures or a zip file")
