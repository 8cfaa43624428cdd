"""A zip file that is written over a long time, and goes on where it was interrupted."""

from __future__ import annotations

import abc
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


class Unfinished(abc.ABC):
    """What is written as NAME.unfinished, and beside it a journal with a line for every file that
    was dealt with. A new one for the same `key` takes up what both agree on; `lines` are those
    lines.

    `finish` gives it its name; it is the same, to the byte, as one written in one go. As a context
    it closes what is open, and what is written stays for the next time. UserError while another
    process writes the same; OSError.
    """

    def __init__(self, path: Path, key: str):
        self.path = path
        self.unfinished = path.with_name(path.name + ".unfinished")
        self.journal = path.with_name(path.name + ".unfinished.jsonl")
        self._log = self._own_journal()
        self.lines: list[Line] = []
        self._open()
        self._take_up_lines(key)
        self._go_on()
        self._log.truncate(0)
        for line in [{"key": key, "by": this_process()}, *self.lines]:
            self._write(line)

    @abc.abstractmethod
    def _open(self) -> None:
        """Make or open what there is."""

    @abc.abstractmethod
    def _take_up(self, line: Line) -> None:
        """The member that a line tells of; ValueError or OSError if its data are not there."""

    @abc.abstractmethod
    def _go_on(self) -> None:
        """Remove what lies behind the last member that was taken up, and be ready for more."""

    @abc.abstractmethod
    def _store(self, line: Line, data: bytes) -> Line:
        """Write a member's data; returns the line with what `_take_up` has to know."""

    @abc.abstractmethod
    def _close(self) -> None:
        """Close what is open."""

    @abc.abstractmethod
    def finish(self, more: dict[str, str]) -> None:
        """Add files of text by name, and put it in its place."""

    @abc.abstractmethod
    def remove(self) -> None:
        """Leave nothing."""

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

    def __enter__(self) -> Unfinished:
        return self

    def __exit__(self, *_: object) -> None:
        for close in (self._close, self._log.close):
            with contextlib.suppress(OSError):  # a full disk has been told of already
                close()

    def _take_up_lines(self, key: str) -> None:
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError, AttributeError):
            # an absent journal, and lines that are cut off or damaged, end it
            for k, text in enumerate(self.journal.read_bytes().splitlines()):
                line = json.loads(text)
                if k == 0:
                    if line["key"] != key:
                        break
                    continue
                if "member" in line:
                    self._take_up(line)
                self.lines.append(line)

    def add(self, line: Line, member: str = "", data: bytes = b"") -> None:
        """A file is dealt with: `line` says how, and its data are written if there is a name for
        them."""
        if member:
            line = self._store(line | {"member": member}, data)
        self._write(line)

    def _write(self, line: Line) -> None:
        self._log.write(json.dumps(line) + "\n")
        self._log.flush()


class UnfinishedZip(Unfinished):
    """A zip file."""

    def _open(self) -> None:
        mode = "r+b" if self.unfinished.exists() else "w+b"
        self._file: IO[bytes] = open(self.unfinished, mode)
        self._members: list[zipfile.ZipInfo] = []

    def _take_up(self, line: Line) -> None:
        member, start = zipfile.ZipInfo(line["member"], _DATE), self._file.tell()
        member.header_offset, member.external_attr = start, _MODE
        member.CRC, member.file_size = line["crc"], line["size"]
        member.compress_size = member.file_size
        header = member.FileHeader()
        if self._file.read(len(header)) == header:
            if zlib.crc32(self._file.read(member.file_size)) == member.CRC:
                self._members.append(member)
                return
        self._file.seek(start)
        raise ValueError("data of another file")

    def _go_on(self) -> None:
        self._file.truncate()
        self._zip = zipfile.ZipFile(self._file, "w", zipfile.ZIP_STORED)  # compressed already
        for member in self._members:
            self._zip.filelist.append(member)
            self._zip.NameToInfo[member.filename] = member

    def _store(self, line: Line, data: bytes) -> Line:
        info = zipfile.ZipInfo(line["member"], _DATE)
        self._zip.writestr(info, data)
        self._file.flush()
        return line | {"crc": info.CRC, "size": info.file_size}

    def _close(self) -> None:
        try:
            self._zip.close()
        finally:
            self._file.close()

    def finish(self, more: dict[str, str]) -> None:
        for name, text in more.items():
            self._zip.writestr(zipfile.ZipInfo(name, _DATE), text)
        self._close()
        write_whole(self.path, lambda temporary: os.replace(self.unfinished, temporary))
        self.remove()

    def remove(self) -> None:
        for path in (self.unfinished, self.journal):
            path.unlink(missing_ok=True)
