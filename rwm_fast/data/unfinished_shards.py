"""Tar shards that are written over a long time, and go on where they were interrupted."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tarfile
import zlib
from functools import partial
from pathlib import Path
from typing import IO

from rwm_fast.data.shards import BLOCK, INDEX, KIND
from rwm_fast.data.unfinished import Line, Unfinished
from rwm_fast.disk import write_whole
from rwm_fast.errors import UserError

_SECONDS = 315532800  # 1980, for every member: the same pictures make the same shards
_CHUNK = 1 << 20  # bytes read at a time


class UnfinishedShards(Unfinished):
    """A folder of tar files, each of at most `most_bytes` and `most_members` (but at least one
    member), with the index that `Shards` reads and SHA256SUMS. Lines of members say `packed`, the
    picture's [width, height]."""

    def __init__(self, path: Path, key: str, most_bytes: float, most_members: int):
        self.most_bytes, self.most_members = most_bytes, most_members
        super().__init__(path, key)

    def _open(self) -> None:
        self.unfinished.mkdir(exist_ok=True)
        self._shards: list[list[Line]] = []  # the members of each
        self._sums: list[str] = []  # SHA-256 of those that are whole
        self._file: IO[bytes] | None = None  # the last one
        self._end = 0  # of its last member

    def _shard(self, number: int) -> Path:
        return self.unfinished / f"pictures-{number:06}.tar"

    def _take_up(self, line: Line) -> None:
        header = _tar_header(line["member"], line["size"])
        if line["shard"] not in (max(0, len(self._shards) - 1), len(self._shards)):
            raise ValueError("lines are missing")
        with open(self._shard(line["shard"]), "rb") as file:
            file.seek(line["offset"] - len(header))
            same = file.read(len(header)) == header
            if not same or zlib.crc32(file.read(line["size"])) != line["crc"]:
                raise ValueError("data of another file")
        self._append(line)

    def _append(self, line: Line) -> None:
        if line["shard"] == len(self._shards):
            self._shards.append([])
        self._shards[-1].append(line)
        self._end = _up(line["offset"] + line["size"], BLOCK)

    def _go_on(self) -> None:
        kept = {self._shard(number) for number in range(len(self._shards))}
        for path in set(self.unfinished.iterdir()) - kept:
            path.unlink()
        for number, members in enumerate(self._shards):
            if self._file is not None:
                self._end_shard()
            self._file = open(self._shard(number), "r+b")
            self._end = _up(members[-1]["offset"] + members[-1]["size"], BLOCK)
            self._file.truncate(self._end)
            self._file.seek(self._end)

    def _store(self, line: Line, data: bytes) -> Line:
        header = _tar_header(line["member"], len(data))
        padded = data + bytes(_up(len(data), BLOCK) - len(data))
        whole = self._end + len(header) + len(padded) + 2 * BLOCK
        if self._file is not None and (
            whole > self.most_bytes or len(self._shards[-1]) >= self.most_members
        ):
            self._end_shard()
        if self._file is None:
            self._file, self._end = open(self._shard(len(self._shards)), "w+b"), 0
            self._shards.append([])
        self._file.write(header + padded)
        self._file.flush()
        line = line | {
            "shard": len(self._shards) - 1,
            "offset": self._end + len(header),
            "size": len(data),
            "crc": zlib.crc32(data),
        }
        self._append(line)
        return line

    def _end_shard(self) -> None:
        """Its end mark, as tar has it, and its sum."""
        assert self._file is not None
        self._file.truncate(_up(self._end + 2 * BLOCK, tarfile.RECORDSIZE))
        os.fsync(self._file.fileno())
        self._file.seek(0)
        sum_ = hashlib.sha256()
        while chunk := self._file.read(_CHUNK):
            sum_.update(chunk)
        self._sums.append(sum_.hexdigest())
        self._close()

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
        self._file = None

    def finish(self, more: dict[str, str]) -> None:
        self._end_shard()
        names = [self._shard(number).name for number in range(len(self._shards))]
        lines = map(self._index_line, names, self._shards, self._sums)
        index = "".join(json.dumps(line) + "\n" for line in (KIND, *lines))
        sums = "".join(f"{a}  {b}\n" for a, b in zip(self._sums, names, strict=True))
        for name, text in (more | {"SHA256SUMS": sums, INDEX: index}).items():
            write_whole(self.unfinished / name, partial(Path.write_text, data=text))
        os.replace(self.unfinished, self.path)
        self.journal.unlink(missing_ok=True)

    def _index_line(self, name: str, members: list[Line], sum_: str) -> Line:
        column = lambda key: [member[key] for member in members]
        widths, heights = zip(*column("packed"), strict=True)
        return {
            "file": name,
            "pictures": len(members),
            "bytes": (self.unfinished / name).stat().st_size,
            "sha256": sum_,
            "names": column("member"),
            "offsets": column("offset"),
            "lengths": column("size"),
            "widths": widths,
            "heights": heights,
        }

    def remove(self) -> None:
        shutil.rmtree(self.unfinished)
        self.journal.unlink(missing_ok=True)


def _tar_header(member: str, size: int) -> bytes:
    info = tarfile.TarInfo(member)
    info.size, info.mtime, info.mode = size, _SECONDS, 0o644
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8")


def _up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def free_folder(path: Path) -> None:
    """UserError unless a folder can be made there."""
    if path.suffix.lower() in (".zip", ".tar"):
        raise UserError(f"--out: expected the name of a folder with --shards, got {path}")
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise UserError(f"--out: expected a path where nothing is with --shards, got {path}")
    if not path.absolute().parent.is_dir():
        raise UserError(f"{path} cannot be written: expected a path in a folder that exists")
