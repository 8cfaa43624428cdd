"""Where pictures lie: a folder with all below it, a zip file, tar shards; or a folder inside."""

from __future__ import annotations

import collections
import os
import stat
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any, BinaryIO

from rwm_fast.data.formats import EXTENSIONS, HEAD, LIMITS, BadImageError, Limits, passed_over
from rwm_fast.data.listing import Listing, hidden, listing_of, member_file, reason_of
from rwm_fast.data.shards import Shards, shards_at
from rwm_fast.disk import kind_of, open_file
from rwm_fast.errors import UserError
from rwm_fast.errors import printable as printable

_LINK = 0xA000  # of a zip member's Unix mode


class Folder:
    """The image files of a folder and all folders below it."""

    def __init__(self, path: Path):
        self.path, self.label = path, path.resolve().name or str(path)

    def __str__(self) -> str:
        return str(self.path)

    def listing(self) -> Listing:
        """Relative paths of the files. What is not called a picture is looked into."""
        found, seen, closed = [], set(), list[OSError]()
        for here, folders, files in os.walk(self.path, onerror=closed.append, followlinks=True):
            real = os.path.realpath(here)
            if real in seen:  # a link back to a folder above
                folders.clear()
                continue
            seen.add(real)
            folders.sort()  # of two ways to one folder always the same
            found += [self._below(here, name) for name in files]
        reasons = {name: self._reason(name) for name in sorted(found)}
        reasons |= {f"{self._below(error.filename)}/": str(error.strerror) for error in closed}
        return listing_of(reasons)

    def _below(self, *path: str) -> str:
        return Path(*path).relative_to(self.path).as_posix()

    def _reason(self, name: str) -> str | None:
        if why := hidden(name):
            return why
        try:
            mode = os.stat(self.path / name).st_mode
            if not stat.S_ISREG(mode):
                return f"{kind_of(mode)}, not a file"
            if PurePosixPath(name).suffix.lower() in EXTENSIONS:
                return None
            with self.open(name) as file:
                return passed_over(name, file.read(HEAD))
        except OSError as error:
            return str(error.strerror or error)

    def open(self, name: str) -> BinaryIO:
        return open_file(self.path / name)

    def length(self, name: str) -> int:
        """Bytes of a file."""
        return self.file_of(name).stat().st_size

    def file_of(self, name: str) -> Path:
        """The file on disk that decides what a picture is."""
        return self.path / name


class Zip:
    """The image files of a zip file, or of one folder inside it.

    Every process opens the file for itself: a handle inherited by a worker would share its reading
    position with its parent.
    """

    def __init__(self, path: Path, inside: str = "", limits: Limits = LIMITS):
        self.path, self.inside, self.limits = path, inside.strip("/"), limits
        self.label = PurePosixPath(self.inside).name or path.stem
        self._archive: zipfile.ZipFile | None = None
        self._members: dict[str, zipfile.ZipInfo] = {}
        self._process = 0  # that opened it

    def __str__(self) -> str:
        return f"{self.path}/{self.inside}" if self.inside else str(self.path)

    def listing(self) -> Listing:
        """Names of the files, relative to the folder inside. Of several members of one name the
        last one counts, as for programs that unpack them."""
        members = self._open().infolist()
        last = {self._name(member): k for k, member in enumerate(members)}
        reasons: dict[str, str | None] = {}
        again: collections.Counter[str] = collections.Counter()
        for k, member in enumerate(members):
            name = self._name(member)
            if name is None or name.endswith("/"):
                continue
            if last[name] != k:
                again[name] += 1
                reasons[f"{name} ({again[name]})"] = "a later member of the zip has the same name"
            else:
                reasons[name] = self._reason(name, member)
        return listing_of(dict(sorted(reasons.items())))

    def _name(self, member: zipfile.ZipInfo) -> str | None:
        """The name inside the folder; some programs for Windows write backslashes."""
        name, start = member.filename.replace("\\", "/"), f"{self.inside}/"
        if not self.inside:
            return name
        return name.removeprefix(start) if name.startswith(start) else None

    def _reason(self, name: str, member: zipfile.ZipInfo) -> str | None:
        if why := hidden(name):
            return why
        if member.external_attr >> 16 & 0xF000 == _LINK:
            return "a link"
        if PurePosixPath(name).suffix.lower() in EXTENSIONS:
            return None
        try:
            with self._open().open(member) as file:
                return passed_over(name, file.read(HEAD))
        except Exception as error:  # damage raises anything
            return reason_of(error)

    def open(self, name: str) -> BinaryIO:
        """The member's bytes. BadImageError when it is damaged, locked or larger than admitted."""
        archive, member = self._open(), self._members.get(name)
        if member is None:
            raise BadImageError("the zip no longer holds it")

        def read() -> bytes:
            with archive.open(member) as file:
                return b"".join(_chunks(file, member))

        return member_file(member.file_size, self.limits, read)

    def length(self, name: str) -> int:
        """Bytes of a file, unpacked."""
        self._open()
        return self._members[name].file_size

    def file_of(self, name: str) -> Path:
        """The file on disk that decides what a picture is."""
        return self.path

    def _open(self) -> zipfile.ZipFile:
        if self._archive is None or self._process != os.getpid():
            archive = zipfile.ZipFile(self.path)
            named = {self._name(member): member for member in archive.infolist()}
            self._members = {name: member for name, member in named.items() if name is not None}
            self._archive, self._process = archive, os.getpid()
        return self._archive

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_archive": None, "_members": {}}


def _chunks(file: IO[bytes], member: zipfile.ZipInfo) -> Iterator[bytes]:
    """A member, in pieces so small that data which unpack to more than they say cost nothing: for
    bz2 and LZMA the module unpacks all that it has read."""
    bounded = member.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
    size = max(1, member.file_size) if bounded else 4096
    while chunk := file.read(size):
        yield chunk


Place = Folder | Zip | Shards


def kinds_of(names: list[str]) -> str:
    """Names counted by extension, as in "20 .heic, 2 without extension"."""
    suffixes = (PurePosixPath(name).suffix.lower() or "without extension" for name in names)
    counts = collections.Counter(suffixes).most_common()
    shown = [f"{count} {suffix}" for suffix, count in counts[:6]]
    rest = sum(count for _, count in counts[6:])
    return ", ".join([*shown, *([f"{rest} others"] if rest else [])])


def find_pictures(source: str | Path, limits: Limits = LIMITS) -> tuple[Place, Listing]:
    """The place that `source` names and the files in it.

    `source` is a folder, a zip file, tar shards (a folder of them, one, or a pattern as in
    `train-{000..127}.tar`), or one of these followed by a folder inside it, as in `set.zip/beach`.
    Files are pictures by their name or by their content; all others are listed with the reason.
    UserError when there is no such place, it cannot be read or holds no picture.
    """
    place = _place(Path(source).expanduser(), limits)
    try:
        listing = place.listing()
    except UserError:
        raise
    except Exception as error:  # a damaged zip's directory raises anything
        raise UserError(f"{printable(source)} cannot be read: {reason_of(error)}") from None
    if not listing.pictures:
        others = listing.passed_over
        name, reason = next(iter(others.items()), ("", ""))
        what = f"; passed over {kinds_of(list(others))}, for example {name}: {reason}"
        raise UserError(
            f"{printable(source)} holds no pictures"
            + printable(what if others else f"; looked for {' '.join(sorted(EXTENSIONS))}")
        )
    return place, listing


def _place(path: Path, limits: Limits) -> Place:
    shards = shards_at(path, limits)
    if shards is not None:
        return shards
    if path.is_dir():
        return Folder(path)
    for archive in (path, *path.parents):
        if archive.is_file():
            if not zipfile.is_zipfile(archive):
                raise UserError(
                    f"expected a folder of pictures, a zip file or tar shards, got "
                    f"{printable(archive)}, which is none of them"
                )
            return Zip(archive, path.relative_to(archive).as_posix().removeprefix("."), limits)
    raise UserError(
        f"{printable(path)} does not exist; expected a folder of pictures, a zip file or tar shards"
    )
