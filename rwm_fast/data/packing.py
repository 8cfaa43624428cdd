"""Photos checked, made small and packed into one zip file."""

from __future__ import annotations

import base64
import collections
import hashlib
import io
import itertools
import json
import os
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Literal

import numpy as np
from PIL import Image

from rwm_fast.data.colour import pixels
from rwm_fast.data.files import Folder, kinds_of
from rwm_fast.data.formats import LIMITS, BadImageError, Limits, opened
from rwm_fast.data.near import Looks, look_of
from rwm_fast.data.photos import Photo, find_photos
from rwm_fast.data.unfinished import UnfinishedZip
from rwm_fast.disk import writable
from rwm_fast.errors import UserError

_FORMATS = {
    "png": ("PNG", {}),  # Pillow's name and options
    "jpg": ("JPEG", {"quality": 95, "subsampling": 0}),
}  # full colour: no visible loss
_STRIP = 1 << 24  # pixels hashed at a time
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # Windows
Progress = Callable[[int, int], None]  # (done, total)


@dataclass(frozen=True)
class Packing:
    """How pictures are packed."""

    size: int = 512  # px, short side after shrinking (smaller pictures stay as they are); 0 = keep
    crop: Literal["none", "square"] = "none"  # square = the central square only
    smallest: int = 64  # px, pictures with a shorter side are left out
    format: Literal["png", "jpg"] = "png"  # png loses nothing; jpg (quality 95) is much smaller
    drop_duplicates: bool = False  # leave out pictures that look like one packed before

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
    near: dict[str, str] = field(default_factory=dict)  # file: the file it looks like
    too_small: dict[str, str] = field(default_factory=dict)  # file: its size
    passed_over: dict[str, str] = field(default_factory=dict)  # file: why it is no picture
    near_dropped: bool = False

    def lines(self) -> Iterator[str]:
        """The report in words, at most five files of a kind by name."""
        packed = ", ".join(f"{count} {name}" for name, count in self.packed.items())
        yield f"{sum(self.packed.values())} pictures ({packed})"
        out = "and were left out"
        near = out if self.near_dropped else "and were kept (--drop-duplicates leaves them out)"
        kinds = kinds_of(list(self.passed_over))
        for what, files in (
            (f"could not be read {out}", self.unreadable),
            (f"are copies {out}", self.copies),
            (f"look like another {near}", self.near),
            (f"are too small {out}", self.too_small),
            (f"were passed over ({kinds})", self.passed_over),
        ):
            if files:
                yield f"{len(files)} {what}:"
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
    pixels: str = ""  # hash of the decoded picture
    look: str = ""  # float32 of `look_of`, base64
    small: str = ""  # its size, if that is too small
    error: str = ""

    def line(self) -> dict[str, str]:
        return {name: value for name, value in vars(self).items() if name != "data" and value}


class _Sorting:
    """Files in their order, each packed under a name of its own or written down."""

    def __init__(self, labels: Sequence[str], packing: Packing, passed_over: dict[str, str]):
        self.report = Report(dict.fromkeys(labels, 0), passed_over=passed_over)
        self.report.near_dropped = packing.drop_duplicates
        self._labels, self._packing = labels, packing
        self._seen: dict[str, str] = {}  # hash of the pixels: the file they came from
        self._looks, self._names = Looks(), set[str]()

    def place(self, photo: Photo, result: _Prepared) -> str:
        """The member's name, or "" for what is left out."""
        file, label, report = str(photo), self._labels[photo.domain], self.report
        if result.error:
            report.unreadable[file] = result.error
        elif result.small:
            report.too_small[file] = result.small
        elif result.pixels in self._seen:
            report.copies[file] = self._seen[result.pixels]
        else:
            self._seen[result.pixels] = file
            look = np.frombuffer(base64.b64decode(result.look), np.float32)
            like = self._looks.find(look)
            if like is not None:
                report.near[file] = like
                if self._packing.drop_duplicates:
                    return ""
            self._looks.add(file, look)
            report.packed[label] += 1
            return _free_name(label, photo.name, self._packing.format, self._names)
        return ""


def pack(
    sources: Sequence[str],
    out: Path | None,
    packing: Packing,
    progress: Progress | None = None,
    limits: Limits = LIMITS,
) -> Report:
    """Pack the pictures of folders and zip files into the zip file `out`, a folder per source.

    Files that cannot be read or are none of pictures, copies of a picture already packed and
    pictures that are too small are left out and listed in the report, which goes into the zip as
    well; pictures that look like another are listed, and left out if `packing` says so. The file is
    complete or not there: it is written beside its place and moved, and an interrupted call goes on
    where it was if files and settings are the same. `out` None checks without writing. UserError
    when sources or `out` cannot be used, or no picture is left.
    """
    photos, labels, others = find_photos(sources, limits)
    sorting = _Sorting(_distinct([_safe(label) for label in labels]), packing, others)
    if out is None:
        _pack(photos, sorting, packing, limits, None, progress)
        return sorting.report
    writable(out)
    try:
        with UnfinishedZip(out, _key(photos, packing, limits)) as archive:
            _pack(photos, sorting, packing, limits, archive, progress)
            archive.finish({"report.json": sorting.report.to_json()})
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error.strerror or error}") from None
    return sorting.report


def _pack(
    photos: Sequence[Photo],
    sorting: _Sorting,
    packing: Packing,
    limits: Limits,
    archive: UnfinishedZip | None,
    progress: Progress | None,
) -> None:
    done = 0
    for line in archive.lines if archive else ():
        known = {name: line[name] for name in ("pixels", "look", "small", "error") if name in line}
        sorting.place(photos[done], _Prepared(**known))
        done += 1
    for result in _ahead(lambda photo: _prepare(photo, packing, limits), photos[done:]):
        name = sorting.place(photos[done], result)
        if archive is not None:
            archive.add(result.line(), name, result.data)
        done += 1
        if progress is not None:
            progress(done, len(photos))
    if not any(sorting.report.packed.values()):
        if archive is not None:
            archive.remove()
        raise UserError(
            f"none of the {len(photos)} pictures can be used; {sorting.report.first_reason()}"
        )


def _ahead(
    work: Callable[[Photo], _Prepared], photos: Sequence[Photo], most: int = 2
) -> Iterator[_Prepared]:
    """work's results in order, by threads that are at most a few pictures ahead."""
    threads = os.cpu_count() or 1
    pool = ThreadPoolExecutor(threads)
    try:
        queue = collections.deque[Any]()
        for photo in photos:
            queue.append(pool.submit(work, photo))
            if len(queue) > most * threads:
                yield queue.popleft().result()
        while queue:
            yield queue.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _prepare(photo: Photo, packing: Packing, limits: Limits) -> _Prepared:
    """The picture as it goes into the zip."""

    def read(file: BinaryIO) -> _Prepared:
        with opened(file, limits, checksums=True) as header:
            image = pixels(header).on(255)
            if min(image.size) < packing.smallest:
                return _Prepared(small=f"{image.width} x {image.height}")
            look = base64.b64encode(look_of(image).tobytes()).decode()
            return _Prepared(_encoded(image, packing), _hash_of(image), look)

    try:
        return photo.read(read)
    except BadImageError as error:
        return _Prepared(error=str(error))


def _hash_of(image: Image.Image) -> str:
    """Of all pixels and the size, without a copy of a large picture."""
    result = hashlib.blake2b(repr(image.size).encode())
    rows = max(1, _STRIP // max(1, image.width))
    for top in range(0, image.height, rows):
        strip = (0, top, image.width, min(image.height, top + rows))
        result.update(image.crop(strip).tobytes())
    return result.hexdigest()


def _encoded(image: Image.Image, packing: Packing) -> bytes:
    """Cropped and shrunk in one go, and compressed."""
    width, height = image.size
    left, top = 0, 0
    if packing.crop == "square":
        side = min(image.size)
        left, top, width, height = (width - side) // 2, (height - side) // 2, side, side
    scale = min(1.0, packing.size / min(width, height)) if packing.size else 1.0
    size = (round(width * scale), round(height * scale))
    if size != image.size:
        box = (left, top, left + width, top + height)
        image = image.resize(size, Image.Resampling.BICUBIC, box, reducing_gap=3.0)
    image.info = {}  # the pixels are upright sRGB by now; Pillow would write what they were
    file = io.BytesIO()
    name, options = _FORMATS[packing.format]
    image.save(file, name, **options)
    return file.getvalue()


def _key(photos: Sequence[Photo], packing: Packing, limits: Limits) -> str:
    """What decides the zip: settings, and the files with their sizes and dates."""
    result = hashlib.blake2b(json.dumps([asdict(packing), asdict(limits)]).encode())
    dates: dict[Path, str] = {}
    for photo in photos:
        place = photo.place
        path = place.path / photo.name if isinstance(place, Folder) else place.path
        if path not in dates:
            try:
                about = path.stat()
                dates[path] = f"{about.st_size} {about.st_mtime_ns}"
            except OSError:
                dates[path] = ""
        result.update(f"{photo} {photo.domain} {dates[path]}\n".encode())
    return result.hexdigest()


def _free_name(label: str, name: str, extension: str, taken: set[str]) -> str:
    """A member name that is not taken; a.png and a.jpg of one folder would both become a.png, and
    A.png and a.png are one file on some systems."""
    stem = "/".join([label, *map(_safe, PurePosixPath(name).with_suffix("").parts)])
    candidate, number = f"{stem}.{extension}", 2
    folded = lambda text: unicodedata.normalize("NFC", text).casefold()
    while folded(candidate) in taken:
        candidate, number = f"{stem}-{number}.{extension}", number + 1
    taken.add(folded(candidate))
    return candidate


def _safe(part: str) -> str:
    """A name that any system can unpack: bytes that are not UTF-8 as %E9, no separators or drives,
    no reserved names, not too long."""
    part = re.sub("[\udc80-\udcff]", lambda byte: f"%{ord(byte[0]) - 0xDC00:02X}", part)
    part = part.encode("utf-8", "replace")[:120].decode("utf-8", "ignore")
    part = re.sub(r'[<>:"|?*/\\\x00-\x1f\x7f]', "_", part).rstrip(". ") or "_"
    return f"_{part}" if _RESERVED.fullmatch(part) else part


def _distinct(labels: Sequence[str]) -> list[str]:
    """The labels, with a number behind the second and later ones of a name."""
    result: list[str] = []
    for label in labels:
        candidates = itertools.chain([label], (f"{label}-{k}" for k in itertools.count(2)))
        result.append(next(name for name in candidates if name not in result))
    return result
