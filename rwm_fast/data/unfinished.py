"""A zip file that is written over a long time, and goes on where it was interrupted."""

from __future__ import annotations

import contextlib
import json
import os
import re
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any

from rwm_fast.disk import lock, this_process, write_whole
from rwm_fast.errors import UserError

_DATE = (1980, 1, 1, 0, 0, 0)  # a fixed date: the same pictures make the same zip
_MODE = 0o600 << 16  # what the zip module gives a member
Line = dict[str, Any]


class UnfinishedZip:
    """The zip FILE.unfinished, and beside it a journal with a line for every file that was dealt
    with. A new one for the same `key` takes up what both agree on; `lines` are those lines.

    `finish` gives the zip its name; it is the same, to the byte, as one written in one go. As a
    context it closes both files, and what is written stays for the next time. UserError while
    another process writes the same zip; OSError.
    """

    def __init__(self, path: Path, key: str):
        self.path = path
        self.unfinished = path.with_name(path.name + ".unfinished")
        self.journal = path.with_name(path.name + ".unfinished.jsonl")
        self._log = self._own_journal()
        mode = "r+b" if self.unfinished.exists() else "w+b"
        self._file: IO[bytes] = open(self.unfinished, mode)
        self.lines: list[Line] = []
        members = self._taken_up(key)
        self._file.truncate()
        self._zip = zipfile.ZipFile(self._file, "w", zipfile.ZIP_STORED)  # compressed already
        for member in members:
            self._zip.filelist.append(member)
            self._zip.NameToInfo[member.filename] = member
        self._log.truncate(0)
        for line in [{"key": key, "by": this_process()}, *self.lines]:
            self._write(line)

    def _own_journal(self) -> IO[str]:
        """The journal, open and locked."""
        while True:
            log = open(self.journal, "a+", encoding="utf-8", errors="replace")
            if not lock(log):
                log.seek(0)
                owner = re.search(r'"by": "([^"]*)"', log.read(1000))
                log.close()
                raise UserError(
                    f"{self.path} is being written by {owner[1] if owner else 'another process'}; "
                    "wait for its end, or give another --out"
                )
            with contextlib.suppress(OSError):
                if os.path.samestat(os.fstat(log.fileno()), self.journal.stat()):
                    return log
            log.close()  # the other process finished, and removed it

    def __enter__(self) -> UnfinishedZip:
        return self

    def __exit__(self, *_: object) -> None:
        for file in (self._zip, self._file, self._log):
            with contextlib.suppress(OSError):  # a full disk has been told of already
                file.close()

    def _taken_up(self, key: str) -> list[zipfile.ZipInfo]:
        """The members that journal and zip agree on; leaves the zip behind the last of them."""
        members = []
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError, AttributeError):
            # an absent journal, and lines that are cut off or damaged, end it
            for k, text in enumerate(self.journal.read_bytes().splitlines()):
                line = json.loads(text)
                if k == 0:
                    if line["key"] != key:
                        break
                    continue
                if "member" in line:
                    members.append(self._member(line))
                self.lines.append(line)
        return members

    def _member(self, line: Line) -> zipfile.ZipInfo:
        """The member that a line tells of, the zip behind it; ValueError if its data are not
        there."""
        member, start = zipfile.ZipInfo(line["member"], _DATE), self._file.tell()
        member.header_offset, member.external_attr = start, _MODE
        member.CRC, member.file_size = line["crc"], line["size"]
        member.compress_size = member.file_size
        header = member.FileHeader()
        if self._file.read(len(header)) == header:
            data = self._file.read(member.file_size)
            if zlib.crc32(data) == member.CRC:
                return member
        self._file.seek(start)
        raise ValueError("data of another file")

    def add(self, line: Line, member: str = "", data: bytes = b"") -> None:
        """A file is dealt with: `line` says how, and its data go into the zip if there is a name
        for them."""
        if member:
            info = zipfile.ZipInfo(member, _DATE)
            self._zip.writestr(info, data)
            self._file.flush()
            line = line | {"member": member, "crc": info.CRC, "size": info.file_size}
        self._write(line)

    def _write(self, line: Line) -> None:
        self._log.write(json.dumps(line) + "\n")
        self._log.flush()

    def finish(self, more: dict[str, str]) -> None:
        """Adds members of text, and puts the zip in its place."""
        for name, text in more.items():
            self._zip.writestr(zipfile.ZipInfo(name, _DATE), text)
        self._zip.close()
        self._file.close()
        write_whole(self.path, lambda temporary: os.replace(self.unfinished, temporary))
        self.remove()

    def remove(self) -> None:
        for path in (self.unfinished, self.journal):
            path.unlink(missing_ok=True)
