"""Pictures in tar shards, as WebDataset has them: uncompressed tar files with a picture a member.

A member is read at its offset, without what lies before it, so pictures come in any order, as from
a folder, and a process reads the bytes of its own pictures only. `python -m rwm_fast.prepare
--shards` writes such a set with an index (offsets, lengths, sizes of pictures); of shards without
one, the headers are read once.
"""

from __future__ import annotations

import collections
import itertools
import json
import re
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from rwm_fast.data.formats import EXTENSIONS, HEAD, BadImageError, Limits, passed_over
from rwm_fast.data.listing import Listing, hidden, listing_of, member_file, reason_of
from rwm_fast.disk import open_file
from rwm_fast.errors import UserError, printable

INDEX = "shards.jsonl"  # in the folder of a set: a line on the format, then one for every shard
KIND = {"format": "rwm_fast shards", "version": 1}
BLOCK = 512  # bytes; headers and data of a tar begin at multiples
_MOST = 1_000_000  # shards that a pattern may stand for
_COMPRESSED = {
    b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd",
}  # fmt: skip


class Member(NamedTuple):
    """A file of a tar."""

    name: str
    offset: int  # of its data
    length: int  # bytes
    width: int = 0  # px, 0 = not known
    height: int = 0
    reason: str | None = None  # why it is no picture


class Shards:
    """The pictures of tar files, or of one folder inside them.

    Members keep their names; where two shards use the same one, all get their shard's before it.
    `missing` are shards that the index names and that are not there.
    """

    def __init__(self, path: Path, files: Sequence[Path], inside: str, limits: Limits):
        self.path, self.files, self.inside, self.limits = path, list(files), inside, limits
        self.label = PurePosixPath(inside).name or path.name.removesuffix(".tar")
        self.missing: list[Path] = []
        self._rows: dict[str, int] = {}
        self._table = np.empty((0, 5), np.int64)  # of shard, offset, length, width, height

    def __str__(self) -> str:
        return f"{self.path}/{self.inside}" if self.inside else str(self.path)

    def listing(self) -> Listing:
        """Names of the members, relative to the folder inside."""
        troubles: dict[str, str | None] = {}
        found = self._indexed() if (self.path / INDEX).is_file() else self._scanned(troubles)
        members = list(self._below(found))
        shards_of: dict[str, int] = {}
        ambiguous = any(shards_of.setdefault(m.name, k) != k for k, m in members)
        reasons, rows = dict[str, str | None](), list[tuple[int, ...]]()
        again: collections.Counter[str] = collections.Counter()
        for shard, member in members:
            name = f"{self.files[shard].name}/{member.name}" if ambiguous else member.name
            if name in reasons:
                again[name] += 1
                reasons[f"{name} ({again[name]})"] = "a later member of the tar has the same name"
            reasons[name] = member.reason
            self._rows[name] = len(rows)
            rows.append((shard, *member[1:5]))
        self._table = np.array(rows, np.int64).reshape(-1, 5)
        return listing_of(dict(sorted(reasons.items())) | troubles)

    def _below(self, found: Iterator[tuple[int, Member]]) -> Iterator[tuple[int, Member]]:
        start = f"{self.inside}/" if self.inside else ""
        for shard, member in found:
            if member.name.startswith(start):
                yield shard, member._replace(name=member.name.removeprefix(start))

    def _indexed(self) -> Iterator[tuple[int, Member]]:
        """What the index says. UserError if it is damaged, or a shard is not of its length."""
        self.files, self.missing = [], []
        for number, shard in enumerate(read_index(self.path)):
            file = self.path / shard["file"]
            self.files.append(file)
            if not file.exists():
                self.missing.append(file)
            elif file.stat().st_size != shard["bytes"]:
                raise UserError(
                    f"{printable(file)}: expected {shard['bytes']} bytes as {INDEX} says, got "
                    f"{file.stat().st_size}"
                )
            columns = (shard[key] for key in ("names", "offsets", "lengths", "widths", "heights"))
            for values in zip(*columns, strict=True):
                yield number, Member(*values)

    def _scanned(self, troubles: dict[str, str | None]) -> Iterator[tuple[int, Member]]:
        """What the headers say; a shard that is damaged goes to `troubles`."""
        for number, file in enumerate(self.files):
            try:
                with open_file(file) as handle:
                    for member in _members(handle):
                        yield number, member
            except FileNotFoundError:
                raise UserError(f"{printable(file)} does not exist") from None
            except (OSError, tarfile.TarError, ValueError) as error:
                troubles[file.name] = reason_of(error)

    def open(self, name: str) -> BinaryIO:
        """The member's bytes. BadImageError when they are not there or larger than admitted."""
        if name not in self._rows:
            raise BadImageError("the shards do not hold it")
        shard, offset, length = self._table[self._rows[name], :3].tolist()

        def read() -> bytes:
            with open_file(self.files[shard]) as file:
                file.seek(offset)
                data = file.read(length)
            if len(data) < length:
                raise BadImageError(_SHORT)
            return data

        return member_file(length, self.limits, read)

    def length(self, name: str) -> int:
        """Bytes of a member."""
        return int(self._table[self._rows[name], 2])

    def size(self, name: str) -> tuple[int, int] | None:
        """(width, height) of a picture, if the index says."""
        width, height = self._table[self._rows[name], 3:].tolist()
        return (width, height) if width and height else None

    def shard_of(self, name: str) -> int:
        """The number of its shard, in the order of their names."""
        return int(self._table[self._rows[name], 0])

    def file_of(self, name: str) -> Path:
        """The file on disk that decides what a picture is."""
        return self.files[self.shard_of(name)]


_SHORT = "the shard ends before it does"


def _members(file: BinaryIO) -> Iterator[Member]:
    """The files of an uncompressed tar. tarfile.TarError or ValueError at damage."""
    head = file.read(BLOCK)
    for magic, kind in _COMPRESSED.items():
        if head.startswith(magic):
            raise ValueError(f"compressed with {kind}: expected a plain tar, read at offsets")
    end = file.seek(0, 2)
    file.seek(0)
    with tarfile.open(fileobj=file, mode="r:", errors="surrogateescape") as archive:
        while (member := archive.next()) is not None:
            archive.members.clear()  # type: ignore[attr-defined]  # or all of them stay in memory
            if member.isdir():
                continue
            name = member.name.removeprefix("./")
            reason = hidden(name)
            if not member.isreg() or member.issparse():
                reason = reason or ("a link" if member.islnk() or member.issym() else "not a file")
            elif member.offset_data + member.size > end:
                reason = reason or _SHORT
            elif not reason and PurePosixPath(name).suffix.lower() not in EXTENSIONS:
                file.seek(member.offset_data)
                reason = passed_over(name, file.read(min(HEAD, member.size)))
            yield Member(name, member.offset_data, member.size, reason=reason)
        file.seek(archive.offset)
        if any(file.read(BLOCK)):  # where tarfile stops without a word
            raise ValueError(f"damaged: no header of a member at byte {archive.offset}")


def read_index(folder: Path) -> Iterator[dict[str, Any]]:
    """A line of the index for every shard; UserError if it is none."""
    path = folder / INDEX
    with open_file(path) as file:
        for number, text in enumerate(file):
            try:
                line = json.loads(text)
                if number == 0 and line == KIND:
                    continue
                good = number > 0 and _is_shard(line)
            except (ValueError, RecursionError, TypeError, KeyError, OverflowError):
                good = False
            if not good:
                raise UserError(
                    f"{printable(path)}, line {number + 1}: expected what prepare --shards writes"
                )
            yield line


def _is_shard(line: dict[str, Any]) -> bool:
    """Whether all is of its kind, and every member within the shard."""
    names, numbers = (
        line["names"],
        np.array([line[key] for key in ("offsets", "lengths", "widths", "heights")]),
    )  # [4, N]
    return (
        re.fullmatch(r"[\w.-]+\.tar", line["file"]) is not None
        and isinstance(line["bytes"], int)
        and all(isinstance(name, str) for name in names)
        and numbers.shape == (4, len(names))
        and numbers.dtype == np.int64
        and bool((numbers >= 0).all() and (numbers[0] <= line["bytes"] - numbers[1]).all())
    )


def shards_at(path: Path, limits: Limits) -> Shards | None:
    """The shards that a path names: a folder of them, one, or a pattern; or a folder inside.

    A folder is one of shards if it has the index, or tar files, no picture and no folder."""
    pattern = re.fullmatch(r"(.*\{.*?\.tar)(?:/(.*))?", path.as_posix())
    if pattern and not path.exists():
        return Shards(Path(pattern[1]), [*map(Path, expand(pattern[1]))], pattern[2] or "", limits)
    for place in (path, *path.parents):
        inside = path.relative_to(place).as_posix().removeprefix(".")
        if place.is_dir():
            files = _tars(place)
            return None if files is None else Shards(place, files, inside, limits)
        if place.is_file():
            is_tar = place.suffix.lower() == ".tar"
            return Shards(place, [place], inside, limits) if is_tar else None
    return None


def _tars(folder: Path) -> list[Path] | None:
    """Its shards, if it is a folder of such."""
    if (folder / INDEX).is_file():
        return []  # the index names them
    found = []
    for path in folder.iterdir():
        suffix = path.suffix.lower()
        if not path.name.startswith("."):
            if suffix in EXTENSIONS or path.is_dir():
                return None
            found += [path] * (suffix == ".tar")
    return sorted(found) or None


def expand(pattern: str) -> list[str]:
    """`a-{08..11}.tar` and `{a,b}.tar` written out, as shells and WebDataset do. UserError for
    more than a million."""
    found = list(itertools.islice(_expanded(pattern), _MOST + 1))
    if len(found) > _MOST:
        raise UserError(f"{printable(pattern)} stands for more than {_MOST} shards")
    return found


def _expanded(pattern: str) -> Iterator[str]:
    found = re.search(r"\{(\d{1,9})\.\.(\d{1,9})\}|\{([^{}]*,[^{}]*)\}", pattern)
    if found is None:
        yield pattern
        return
    if found[3] is not None:
        choices = iter(found[3].split(","))
    else:
        first, last = int(found[1]), int(found[2])
        padded = any(text[0] == "0" and len(text) > 1 for text in (found[1], found[2]))
        width = max(len(found[1]), len(found[2])) if padded else 0
        step = 1 if last >= first else -1
        choices = (f"{k:0{width}}" for k in range(first, last + step, step))
    for choice in choices:
        yield from _expanded(pattern[: found.start()] + choice + pattern[found.end() :])
