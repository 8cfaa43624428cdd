"""Photos checked, made small and packed into one zip file, or into tar shards."""

from __future__ import annotations

import base64
import collections
import hashlib
import io
import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from PIL import Image

from rwm_fast.data.colour import pixels
from rwm_fast.data.files import kinds_of
from rwm_fast.data.formats import LIMITS, BadImageError, Limits, opened
from rwm_fast.data.names import distinct, free_name, safe
from rwm_fast.data.near import Looks, look_of
from rwm_fast.data.photos import Photo, find_photos
from rwm_fast.data.unfinished import Unfinished, UnfinishedZip
from rwm_fast.data.unfinished_shards import UnfinishedShards, free_folder
from rwm_fast.disk import writable
from rwm_fast.errors import UserError

_FORMATS = {
    "png": ("PNG", {}),  # Pillow's name and options
    "jpg": ("JPEG", {"quality": 95, "subsampling": 0}),
}  # full colour: no visible loss
_STRIP = 1 << 24  # pixels hashed at a time
Progress = Callable[[int, int], None]  # (done, total)


@dataclass(frozen=True)
class Packing:
    """How pictures are packed."""

    size: int = 512  # px, short side after shrinking (smaller pictures stay as they are); 0 = keep
    crop: Literal["none", "square"] = "none"  # square = the central square only
    smallest: int = 64  # px, pictures with a shorter side are left out
    format: Literal["png", "jpg"] = "png"  # png loses nothing; jpg (quality 95) is much smaller
    drop_duplicates: bool = False  # leave out pictures that look like one packed before
    shards: bool = False  # tar shards in a folder, as WebDataset reads them, instead of a zip
    shard_mb: float = 256.0  # MB, the most of a shard
    shard_pictures: int = 10_000  # the most in a shard

    def __post_init__(self) -> None:
        if not (self.shard_mb > 0 and self.shard_pictures > 0):
            raise ValueError(
                f"shard_mb and shard_pictures: expected more than 0, got {self.shard_mb} and "
                f"{self.shard_pictures}"
            )
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
    packed: tuple[int, ...] = ()  # width and height as packed
    pixels: str = ""  # hash of the decoded picture
    look: str = ""  # float32 of `look_of`, base64
    small: str = ""  # its size, if that is too small
    error: str = ""

    def line(self) -> dict[str, Any]:
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
            shards = self._packing.shards
            return free_name(label, photo.name, self._packing.format, self._names, plain=shards)
        return ""


def pack(
    sources: Sequence[str],
    out: Path | None,
    packing: Packing,
    progress: Progress | None = None,
    limits: Limits = LIMITS,
) -> Report:
    """Pack the pictures of folders, zip files and shards into the zip file `out`, or into tar files
    in the folder `out`, a folder per source inside.

    Files that cannot be read or are none of pictures, copies of a picture already packed and
    pictures that are too small are left out and listed in the report, which goes into `out` as
    well; pictures that look like another are listed, and left out if `packing` says so. `out` is
    complete or not there: it is written beside its place and moved, and an interrupted call goes on
    where it was if files and settings are the same. `out` None checks without writing. UserError
    when sources or `out` cannot be used, or no picture is left.
    """
    photos, labels, others = find_photos(sources, limits)
    sorting = _Sorting(distinct([safe(label) for label in labels]), packing, others)
    if out is None:
        _pack(photos, sorting, packing, limits, None, progress)
        return sorting.report
    try:
        with _unfinished(out, packing, _key(photos, packing, limits)) as archive:
            _pack(photos, sorting, packing, limits, archive, progress)
            archive.finish({"report.json": sorting.report.to_json()})
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error.strerror or error}") from None
    return sorting.report


def _unfinished(out: Path, packing: Packing, key: str) -> Unfinished:
    if packing.shards:
        free_folder(out)
        return UnfinishedShards(out, key, packing.shard_mb * 1e6, packing.shard_pictures)
    writable(out)
    return UnfinishedZip(out, key)


def _pack(
    photos: Sequence[Photo],
    sorting: _Sorting,
    packing: Packing,
    limits: Limits,
    archive: Unfinished | None,
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
            small = _shrunk(image, packing)
            data = _encoded(small, packing)
            return _Prepared(data, small.size, _hash_of(image), look)

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


def _shrunk(image: Image.Image, packing: Packing) -> Image.Image:
    """Cropped and shrunk in one go."""
    width, height = image.size
    left, top = 0, 0
    if packing.crop == "square":
        side = min(image.size)
        left, top, width, height = (width - side) // 2, (height - side) // 2, side, side
    scale = min(1.0, packing.size / min(width, height)) if packing.size else 1.0
    size = (round(width * scale), round(height * scale))
    if size != image.size:
        box = (left, top, left + width, top + height)
        return image.resize(size, Image.Resampling.BICUBIC, box, reducing_gap=3.0)
    return image


def _encoded(image: Image.Image, packing: Packing) -> bytes:
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
        path = photo.place.file_of(photo.name)
        if path not in dates:
            try:
                about = path.stat()
                dates[path] = f"{about.st_size} {about.st_mtime_ns}"
            except OSError:
                dates[path] = ""
        result.update(f"{photo} {photo.domain} {dates[path]}\n".encode())
    return result.hexdigest()
