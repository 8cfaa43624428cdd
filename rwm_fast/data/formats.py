"""The picture formats that are meant, told by content, and all else that lies among photos."""

from __future__ import annotations

import contextlib
import functools
import importlib
import re
import threading
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import BinaryIO

from PIL import Image, UnidentifiedImageError

from rwm_fast.data.profiles import CODE_POINTS, code_points

# Names in Pillow. No other reader is ever asked: some of its 43 start programs (EPS, WMF).
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "PPM", "JPEG2000", "AVIF", "TGA")
# Used where they are installed: name in Pillow, module, package.
OPTIONAL = {
    "HEIF": ("pillow_heif", "pillow-heif"),
    "JXL": ("pillow_jxl", "pillow-jxl-plugin"),
}
EXTENSIONS = frozenset(
    (
        ".jpg .jpeg .jpe .jfif .png .webp .bmp .gif .tif .tiff .ppm .pgm .pbm .pnm .tga .jp2 .avif"
    ).split()
)
_RAW = frozenset(
    (
        ".dng .cr2 .cr3 .crw .nef .nrw .arw .srf .sr2 .orf .rw2 .raf .pef .srw .x3f .3fr .erf .kdc "
        ".dcr .mos .mrw .raw .rwl .iiq .gpr"
    ).split()
)
NO_PICTURE = ("not a picture", "hidden", "of macOS, beside the files themselves")  # reasons
HEAD = 64  # bytes of a file that tell what it is
LOSSLESS = "lossless"  # in `image.info` of a WebP that is
_BRANDS = {b"avif": "AVIF", b"avis": "AVIF"} | dict.fromkeys(
    b"heic heix heim heis hevc hevx mif1 msf1".split(), "HEIF"
)
_LARGE = 32e6  # pixels; of larger pictures one is open at a time
_one_large = threading.RLock()
# TIFF tags
_DNG_VERSION, _SUBFILE, _LENGTH = 50706, 254, 257
_OFFSETS, _SAMPLES, _ROWS, _PLANAR = 273, 277, 278, 284


class BadImageError(Exception):
    """A file that is no readable image; the message is the reason."""


@dataclass(frozen=True)
class Limits:
    """What a file may ask for before it is read."""

    max_megapixels: float = 250.0  # of a picture
    max_member_mb: float = 256.0  # MB of a file inside a zip, unpacked

    def __post_init__(self) -> None:
        if not (self.max_megapixels > 0 and self.max_member_mb > 0):
            raise ValueError(
                "max_megapixels and max_member_mb: expected more than 0, got "
                f"{self.max_megapixels} and {self.max_member_mb}"
            )


LIMITS = Limits()


def sniff(head: bytes) -> str | None:
    """The format that a file's first `HEAD` bytes tell: a name of `FORMATS` or `OPTIONAL`,
    "Photoshop", or None. TGA has no signature."""
    for start, name in (
        (rb"\xff\xd8\xff", "JPEG"),
        (rb"\x89PNG\r\n\x1a\n", "PNG"),
        (rb"RIFF....WEBP", "WEBP"),
        (rb"GIF8[79]a", "GIF"),
        (rb"II[*+]\0|MM\0[*+]", "TIFF"),
        (rb"BM.{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0", "BMP"),
        (rb"P[1-6][\s#]", "PPM"),
        (rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51", "JPEG2000"),
        (rb"\xff\x0a|\0\0\0\x0cJXL ", "JXL"),
        (rb"8BPS", "Photoshop"),
    ):
        if re.match(start, head, re.DOTALL):
            return name
    if head[4:8] == b"ftyp":
        brands = [head[k : k + 4] for k in (8, *range(16, HEAD, 4))]
        kinds = [_BRANDS[brand] for brand in brands if brand in _BRANDS]
        return "AVIF" if "AVIF" in kinds else next(iter(kinds), None)
    return None


@functools.cache
def readers() -> tuple[str, ...]:
    """Formats that can be read here: those of Pillow, and the optional ones that are installed."""
    found = []
    for name, (module, _) in OPTIONAL.items():
        with contextlib.suppress(ImportError):
            reader = importlib.import_module(module)
            if hasattr(reader, "register_heif_opener"):
                reader.register_heif_opener()
            found.append(name)
    Image.init()
    return (*(name for name in FORMATS if name in Image.OPEN), *found)


def passed_over(name: str, head: bytes) -> str | None:
    """Why a file of this name and beginning is not taken for a picture; None = it is one.

    What is called a picture is taken for one, unless it tells that no reader here has its format.
    """
    suffix, kind = PurePosixPath(name).suffix.lower(), sniff(head)
    if suffix in _RAW:
        return "a camera's RAW file, not read here: export it as TIFF, PNG or JPEG"
    if kind in readers() or (suffix in EXTENSIONS and kind is None):
        return None
    return no_reader(kind) if kind else NO_PICTURE[0]


def no_reader(kind: str) -> str:
    """Why a format that is recognised cannot be read."""
    if kind in OPTIONAL:
        called = {"HEIF": "HEIC", "JXL": "JPEG XL"}[kind]
        return f"{called}, which needs a reader: pip install {OPTIONAL[kind][1]}"
    if kind == "AVIF":
        return "AVIF, which needs Pillow 11.3 or newer"
    return f"{kind}, which is not read here: export it as TIFF, PNG or JPEG"


@contextlib.contextmanager
def opened(
    file: BinaryIO, limits: Limits = LIMITS, *, checksums: bool = False
) -> Iterator[Image.Image]:
    """The picture in an open file, its header read; in the `with` block it may be loaded.

    Whatever is wrong with it becomes a BadImageError with the reason: readers raise anything on
    damaged files. Large pictures are open one at a time, so threads do not add up. `checksums`:
    a PNG file is read through and its sums compared first, which Pillow leaves out for pixels.
    """
    with _damage_told(file), _own_limit():
        head = file.read(HEAD)
        file.seek(0)
        kind = sniff(head)
        if kind == "PNG" and checksums:
            check_png(file)
        points = code_points(file, kind)
        image = Image.open(file, formats=readers())
        if points is not None:
            image.info[CODE_POINTS] = points
        if kind == "WEBP" and b"VP8L" in head:
            image.info[LOSSLESS] = True
        _check(image, file, limits)
        large = image.width * image.height > _LARGE
        with _one_large if large else contextlib.nullcontext():
            yield image


def _check(image: Image.Image, file: BinaryIO, limits: Limits) -> None:
    """BadImageError for what must not be loaded."""
    width, height = image.size
    if width * height > limits.max_megapixels * 1e6:
        raise BadImageError(
            f"{width} x {height} are {width * height / 1e6:.0f} megapixels, more than "
            f"{limits.max_megapixels:g} (--max-megapixels raises the limit)"
        )
    if image.format in ("JPEG", "MPO"):
        place = file.tell()
        length = file.seek(0, 2)
        file.seek(place)
        # a block of 64 pixels takes a bit at least, and memory is taken by the header's word
        if width * height > 64 * 8 * length:
            raise BadImageError(f"truncated: {length} bytes cannot hold {width} x {height} pixels")
    tags = getattr(image, "tag_v2", {})
    if _OFFSETS in tags:  # Pillow leaves pixels of strips that are not there as they are
        planes = tags.get(_SAMPLES, 1) if tags.get(_PLANAR, 1) == 2 else 1
        wanted = -(-tags[_LENGTH] // tags.get(_ROWS, tags[_LENGTH])) * planes
        if len(tags[_OFFSETS]) < wanted:
            raise BadImageError(f"truncated: {len(tags[_OFFSETS])} of {wanted} strips are there")
    if _DNG_VERSION in tags or tags.get(_SUBFILE, 0) == 1:
        raise BadImageError("a camera's RAW file, of which only the preview can be read")


@contextlib.contextmanager
def _damage_told(file: BinaryIO) -> Iterator[None]:
    try:
        yield
    except BadImageError:
        raise
    except Exception as error:
        file.seek(0)
        head = file.read(HEAD)
        kind = sniff(head)
        if not head:
            reason = "the file is empty"
        elif kind and kind not in readers():
            reason = no_reader(kind)
        elif isinstance(error, UnidentifiedImageError):
            reason = f"a damaged {kind} file" if kind else "no image format is recognised"
        elif isinstance(error, MemoryError):
            reason = "it takes more memory than there is"
        else:
            reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise BadImageError(reason) from None


_pixel_limit: list[int | None] = []  # Pillow's own, while ours is in force
_users = 0
_limit_lock = threading.Lock()


@contextlib.contextmanager
def _own_limit() -> Iterator[None]:
    """Pillow's limit on pixels is one number for the process, and its message names no way out.
    While pictures are open here it is off, for `Limits` stands in its place."""
    global _users
    with _limit_lock:
        if _users == 0:
            _pixel_limit[:] = [Image.MAX_IMAGE_PIXELS]
            Image.MAX_IMAGE_PIXELS = None
        _users += 1
    try:
        yield
    finally:
        with _limit_lock:
            _users -= 1
            if _users == 0:
                Image.MAX_IMAGE_PIXELS = _pixel_limit[0]


def check_png(file: BinaryIO) -> None:
    """Compare every chunk's CRC, and the Adler sum of the pixels. BadImageError where one is wrong;
    the file is at its start again afterwards."""
    file.seek(8)
    pixels = zlib.decompressobj()
    while True:
        start = file.read(8)
        if len(start) < 8:
            raise BadImageError("truncated: the PNG file has no end")
        length, kind = int.from_bytes(start[:4], "big"), start[4:]
        data = file.read(length)
        checksum = file.read(4)
        if len(data) < length or len(checksum) < 4:
            raise BadImageError("truncated: a chunk of the PNG file is cut off")
        if zlib.crc32(data, zlib.crc32(kind)) != int.from_bytes(checksum, "big"):
            raise BadImageError(f"damaged: wrong checksum of a PNG chunk, {kind!r}")
        if kind == b"IDAT" and not pixels.eof:
            try:
                while data:
                    pixels.decompress(data, 1 << 20)
                    data = pixels.unconsumed_tail
            except zlib.error as error:
                raise BadImageError(f"damaged: pixels of the PNG file ({error})") from None
        if kind == b"IEND":
            break
    if not pixels.eof:
        raise BadImageError("truncated: the pixels of the PNG file have no end")
    file.seek(0)
