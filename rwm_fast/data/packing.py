"""Photos checked, made small and packed into one zip file."""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import os
import zipfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Literal

from PIL import Image

from rwm_fast.data.decode import BadImageError, decode
from rwm_fast.data.photos import Photo, find_photos
from rwm_fast.errors import UserError

_FORMATS = {
    "png": ("PNG", {}),  # Pillow's name and options
    "jpg": ("JPEG", {"quality": 95, "subsampling": 0}),
}  # full colour: no visible loss
_DATE = (1980, 1, 1, 0, 0, 0)  # a fixed date: the same pictures make the same zip


@dataclass(frozen=True)
class Packing:
    """How pictures are packed."""

    size: int = 512  # px, short side after shrinking (smaller pictures stay as they are); 0 = keep
    crop: Literal["none", "square"] = "none"  # square = the central square only
    smallest: int = 64  # px, pictures with a shorter side are left out
    format: Literal["png", "jpg"] = "png"  # png loses nothing; jpg (quality 95) is much smaller

    def __post_init__(self) -> None:
        if self.size < 0 or self.smallest < 0:
            raise ValueError(
                f"size and smallest: expected at least 0 pixels, got {self.size} and "
                f"{self.smallest}"
            )


@dataclass
class Report:
    """What became of every file."""

    packed: dict[str, int] = field(default_factory=dict)  # source: pictures
    unreadable: dict[str, str] = field(default_factory=dict)  # file: reason
    copies: dict[str, str] = field(default_factory=dict)  # file: the file it equals
    too_small: dict[str, str] = field(default_factory=dict)  # file: its size

    def lines(self) -> Iterator[str]:
        """The report in words, at most five files of a kind by name."""
        packed = ", ".join(f"{count} {name}" for name, count in self.packed.items())
        yield f"{sum(self.packed.values())} pictures ({packed})"
        for what, files in (
            ("could not be read", self.unreadable),
            ("are copies", self.copies),
            ("are too small", self.too_small),
        ):
            if files:
                yield f"{len(files)} {what} and were left out:"
                yield from (f"  {name}: {reason}" for name, reason in list(files.items())[:5])
                if len(files) > 5:
                    yield f"  and {len(files) - 5} more (all are in the report)"

    def first_reason(self) -> str:
        """One file that was left out, and why."""
        name, reason = next(iter((self.unreadable | self.too_small).items()))
        return f"{name}: {reason}"

    def to_json(self) -> str:
        return json.dumps(vars(self), indent=2)


@dataclass(frozen=True)
class _Prepared:
    """A picture ready to be packed, or why there is none."""

    data: bytes = b""
    size: tuple[int, int] = (0, 0)  # (width, height)
    pixels: str = ""  # hash of the decoded picture
    error: str = ""


def pack(
    sources: Sequence[str],
    out: Path | None,
    packing: Packing,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Pack the pictures of folders and zip files into the zip file `out`, a folder per source.

    Files that cannot be read, copies of a picture already packed and pictures that are too small
    are left out and listed in the report, which goes into the zip as well. The file is complete or
    not there: it is written beside its place and moved. `out` None checks without writing.
    UserError when sources or `out` cannot be used, or no picture is left.
    """
    photos, labels = find_photos(sources)
    labels = _distinct(labels)
    if out is None:
        return _pack(photos, labels, packing, None, progress)
    unfinished = out.with_name(out.name + ".unfinished")
    try:
        with zipfile.ZipFile(unfinished, "w", zipfile.ZIP_STORED) as archive:  # compressed already
            report = _pack(photos, labels, packing, archive, progress)
            archive.writestr(zipfile.ZipInfo("report.json", _DATE), report.to_json())
        os.replace(unfinished, out)
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error.strerror or error}") from None
    finally:
        unfinished.unlink(missing_ok=True)
    return report


def _pack(
    photos: Sequence[Photo],
    labels: Sequence[str],
    packing: Packing,
    archive: zipfile.ZipFile | None,
    progress: Callable[[int, int], None] | None,
) -> Report:
    report = Report(packed=dict.fromkeys(labels, 0))
    seen: dict[str, str] = {}  # hash of the pixels: the file they came from
    names: set[str] = set()
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        results = pool.map(lambda photo: _prepare(photo, packing), photos)
        for done, (photo, result) in enumerate(zip(photos, results, strict=True), 1):
            file, label = str(photo), labels[photo.domain]
            if result.error:
                report.unreadable[file] = result.error
            elif not result.data:
                report.too_small[file] = f"{result.size[0]} x {result.size[1]}"
            elif result.pixels in seen:
                report.copies[file] = seen[result.pixels]
            else:
                seen[result.pixels] = file
                report.packed[label] += 1
                name = _free_name(label, photo.name, packing.format, names)
                if archive is not None:
                    archive.writestr(zipfile.ZipInfo(name, _DATE), result.data)
            if progress is not None:
                progress(done, len(photos))
    if not seen:
        raise UserError(f"none of the {len(photos)} pictures can be used; {report.first_reason()}")
    return report


def _prepare(photo: Photo, packing: Packing) -> _Prepared:
    """The picture as it goes into the zip."""
    try:
        image = photo.read(decode)
    except BadImageError as error:
        return _Prepared(error=str(error))
    if min(image.size) < packing.smallest:
        return _Prepared(size=image.size)
    pixels = hashlib.blake2b(image.tobytes() + repr(image.size).encode()).hexdigest()
    if packing.crop == "square":
        side, (width, height) = min(image.size), image.size
        left, top = (width - side) // 2, (height - side) // 2
        image = image.crop((left, top, left + side, top + side))
    scale = packing.size / min(image.size) if packing.size else 1.0
    if scale < 1:
        width, height = (round(side * scale) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=3.0)
    file = io.BytesIO()
    name, options = _FORMATS[packing.format]
    image.save(file, name, **options)
    return _Prepared(file.getvalue(), image.size, pixels)


def _free_name(label: str, name: str, extension: str, taken: set[str]) -> str:
    """A member name that is not taken; a.png and a.jpg of one folder would both become a.png."""
    stem = f"{label}/{PurePosixPath(name).with_suffix('')}"
    candidate, number = f"{stem}.{extension}", 2
    while candidate in taken:
        candidate, number = f"{stem}-{number}.{extension}", number + 1
    taken.add(candidate)
    return candidate


def _distinct(labels: Sequence[str]) -> list[str]:
    """The labels, with a number behind the second and later ones of a name."""
    result: list[str] = []
    for label in labels:
        candidates = itertools.chain([label], (f"{label}-{k}" for k in itertools.count(2)))
        result.append(next(name for name in candidates if name not in result))
    return result
