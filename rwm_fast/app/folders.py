"""Many pictures at once: every picture of a folder or zip, in the styles that are given or in every
style of another folder. What is there already with the same settings is not made again."""

from __future__ import annotations

import hashlib
import json
import os
import re
import zipfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from rwm_fast.data.files import Folder, Place, find_pictures, printable
from rwm_fast.data.formats import BadImageError, Limits
from rwm_fast.errors import UserError

LOG = "edits.jsonl"  # in the folder of results: what was made there, of what, how
_LONGEST = 120  # characters of a part of a name; file systems take 255 bytes


@dataclass(frozen=True)
class File:
    """A picture in a folder or zip."""

    place: Place
    name: str

    def __str__(self) -> str:
        return printable(f"{self.place}/{self.name}")

    def read(self) -> bytes:
        """BadImageError where it cannot be read."""
        try:
            with self.place.open(self.name) as file:
                return file.read()
        except BadImageError:
            raise
        except Exception as error:  # gone, no file any more; a damaged zip raises anything
            raise BadImageError(getattr(error, "strerror", None) or str(error)) from None


@dataclass(frozen=True)
class Task:
    """One picture to make."""

    content: File
    style: File | None  # None: all pictures take the same styles
    target: str  # path within the folder of results


@dataclass
class Outcome:
    """What became of the tasks."""

    made: int = 0
    kept: int = 0  # were there, with the same settings
    skipped: dict[str, str] = field(default_factory=dict)  # file: reason


class SkipError(Exception):
    """A picture that cannot be made, while others can: the file to blame, and the reason."""

    def __init__(self, file: object, reason: object) -> None:
        super().__init__(str(reason))
        self.file = str(file)


def is_many(path: Path) -> bool:
    """Whether a path stands for pictures and is no picture: a folder, a zip, a folder in a zip."""
    archives = (p for p in (path, *path.parents) if p.is_file())
    return path.is_dir() or any(map(zipfile.is_zipfile, archives))


def files_of(path: Path, limits: Limits) -> tuple[list[File], dict[str, str]]:
    """The pictures that a path stands for, which may be one itself, and why the other files there
    are none. UserError where there is none."""
    if not is_many(path) and path.is_file():
        return [File(Folder(path.parent), path.name)], {}
    place, (names, others) = find_pictures(path, limits)
    passed = {printable(f"{place}/{name}"): why for name, why in others.items()}
    return [File(place, name) for name in names], passed


def tasks_of(contents: Sequence[File], styles: Sequence[File], extension: str) -> list[Task]:
    """Every content in every style, without styles every content once. Each has a name of its own,
    also where case does not count: folder/CONTENT.png or folder/CONTENT--STYLE.png, with the
    pictures' extensions where two differ in nothing else."""
    names, looks = stems([f.name for f in contents]), stems([f.name for f in styles])
    pairs: list[tuple[File, File | None, str]] = []
    for content, name in zip(contents, names, strict=True):
        pairs += [
            (content, style, f"{name}--{look.replace('/', '-')}")
            for style, look in zip(styles, looks, strict=True)
        ] or [(content, None, name)]
    taken: Counter[str] = Counter()
    tasks = []
    for content, style, name in pairs:
        taken[name.casefold()] += 1
        again = taken[name.casefold()]
        tasks.append(Task(content, style, f"{name} ({again})" * (again > 1) or name))
    return [Task(t.content, t.style, f"{t.target}.{extension}") for t in tasks]


def stems(names: Sequence[str]) -> list[str]:
    """Names without extension, but with it where two would be one; nothing leads out of a folder,
    whatever a zip's members are called."""
    safe = [_safe(name) for name in names]
    short = [str(PurePosixPath(name).with_suffix("")) for name in safe]
    count = Counter(name.casefold() for name in short)
    return [
        whole if count[name.casefold()] > 1 else name
        for whole, name in zip(safe, short, strict=True)
    ]


def _safe(name: str) -> str:
    parts = [re.sub(r'[\x00-\x1f\x7f<>:"|?*\\]', "_", part) for part in PurePosixPath(name).parts]
    parts = [part for part in parts if part.strip("./")] or ["picture"]
    *folders, last = (_shortened(part) for part in parts)
    return "/".join([*folders, last])


def _shortened(part: str) -> str:
    if len(part) <= _LONGEST:
        return part
    mark = hashlib.blake2b(printable(part).encode(), digest_size=4).hexdigest()
    return f"{part[: _LONGEST - 20]}-{mark}{PurePosixPath(part).suffix[:8]}"


class Log:
    """What a folder of results holds by this command: file → key of how it was made."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / LOG
        self.keys: dict[str, str] = {}
        for line in self.path.read_text().splitlines() if self.path.is_file() else ():
            try:
                entry = json.loads(line)
                self.keys[str(entry["file"])] = str(entry["key"])
            except (ValueError, KeyError, TypeError):  # cut off by a kill, or about a skipped file
                continue

    def has(self, target: str, key: str) -> bool:
        return self.keys.get(target) == key and (self.folder / target).is_file()

    def add(self, **entry: str) -> None:
        with open(self.path, "a+b") as file:
            if file.tell() and os.pread(file.fileno(), 1, file.tell() - 1) != b"\n":
                file.write(b"\n")  # after a line that a kill has cut off
            file.write(json.dumps(entry).encode() + b"\n")


def make_all(
    tasks: Sequence[Task],
    out: Path,
    key_of: Callable[[Task, bytes], str],
    make: Callable[[Task, bytes], Callable[[Path], object]],
    show: Callable[[], object],
) -> Outcome:
    """make(task, bytes of the content)(path) for every task whose file is not there with its key.

    `key_of` says all that the result depends on. What it or `make` refuses is left out and listed,
    here and in the log; what the writing refuses ends it all, as UserError. A file that the log
    does not know is never replaced.
    """
    outcome = Outcome()
    try:
        out.mkdir(parents=True, exist_ok=True)
        log = Log(out)
        for task in tasks:
            _make_one(task, log, key_of, make, outcome)
            show()
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"--out: expected a folder to write to, got {out} ({reason})") from None
    return outcome


def _make_one(
    task: Task,
    log: Log,
    key_of: Callable[[Task, bytes], str],
    make: Callable[[Task, bytes], Callable[[Path], object]],
    outcome: Outcome,
) -> None:
    path = log.folder / task.target
    try:
        content = task.content.read()
        key = key_of(task, content)
        if log.has(task.target, key):
            outcome.kept += 1
            return
        if os.path.lexists(path) and task.target not in log.keys:
            raise SkipError(task.content, f"{task.target} is there, and not of this command")
        write = make(task, content)
    except (SkipError, BadImageError, UserError) as error:
        file = error.file if isinstance(error, SkipError) else str(task.content)
        if file not in outcome.skipped:
            log.add(skipped=file, reason=str(error))
        outcome.skipped[file] = str(error)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path)
    styles = {} if task.style is None else {"style": task.style.name}
    log.add(file=task.target, key=key, content=task.content.name, **styles)
    outcome.made += 1
