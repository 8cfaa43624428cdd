"""Pictures of 16 bits a channel, in colour: Pillow reads the upper 8 of them and writes none."""

from __future__ import annotations

import io
import re
import struct
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Deep = NDArray[np.uint16]  # [H, W, 3], or with transparency [H, W, 4]

_RAW = re.compile(r"(RGBA?;16)([BLN])")
_ORDER = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_COLOUR = {3: 2, 4: 6}  # PNG's number for RGB and RGBA
_SUB = 1  # filter of rows: the difference to the pixel before
_BAND = 1 << 20  # samples that are packed at a time


def lower_bytes(image: Image.Image) -> Image.Image | None:
    """The lower 8 bits of an open PNG or TIFF picture of RGB or RGBA with 16 bits a channel, not
    turned; None for any other. `image` must not be loaded yet.

    Pillow's unpackers take the first or the second byte of two, by the order of bytes that a tile
    is said to have: said the other way, they give the lower one.
    """
    tiles = [_swapped(tile) for tile in getattr(image, "tile", ())]
    if image.format not in ("PNG", "TIFF") or not tiles or None in tiles:
        return None
    file: Any = image.fp  # type: ignore[attr-defined]
    place = file.tell()
    file.seek(0)
    twin = Image.open(file, formats=(image.format,))
    twin.tile = tiles
    twin.load()
    file.seek(place)
    return twin


def _swapped(tile: Any) -> Any:
    """A tile with the other order of bytes; None where it holds no such pixels."""
    arguments = tile.args if isinstance(tile.args, tuple) else (tile.args,)
    found = _RAW.fullmatch(str(arguments[0])) if arguments else None
    if found is None:
        return None
    other = found[1] + _ORDER[found[2]]
    return tile._replace(args=(other, *arguments[1:]) if isinstance(tile.args, tuple) else other)


def joined(upper: Image.Image, lower: Image.Image) -> Deep:
    """Both bytes of every sample."""
    deep: Deep = np.asarray(upper).astype(np.uint16)
    deep <<= 8
    deep |= np.asarray(lower)
    return deep


def floats(deep: Deep) -> NDArray[np.float32]:
    """float32 [H, W, 3] in [0, 1], laid on white."""
    values = np.divide(deep[..., :3], 65535, dtype=np.float32)
    if deep.shape[2] == 4:
        cover = _cover(deep)
        values *= cover
        values += 1 - cover
    return values


def as_before(values: NDArray[np.float32], like: Deep) -> Deep:
    """Edited `floats` as the picture would hold them, its own numbers where nothing has changed."""
    rounded = _rounded(values)
    if like.shape[2] == 3:
        return rounded
    same = (rounded == _rounded(floats(like))).all(-1, keepdims=True)
    cover = _cover(like)
    lifted = (values - (1 - cover)) / np.maximum(cover, 1 / 65535)
    own = np.where(same, like[..., :3], _rounded(lifted.clip(0, 1)))
    return np.concatenate([own, like[..., 3:]], -1)


def _cover(deep: Deep) -> NDArray[np.float32]:
    return np.divide(deep[..., 3:], 65535, dtype=np.float32)


def _rounded(values: NDArray[np.float32]) -> Deep:
    scaled = values * np.float32(65535)
    rounded: Deep = np.rint(scaled, out=scaled).astype(np.uint16)
    return rounded


def write_png(deep: Deep, path: Path, options: dict[str, Any]) -> None:
    """A PNG file of 16 bits a channel; `options` are those of Pillow for a PNG."""
    frame = io.BytesIO()  # what Pillow says around pixels: profile, EXIF, texts
    Image.new("RGB", (1, 1)).save(frame, "PNG", **options)
    height, width, channels = deep.shape
    with open(path, "wb") as file:
        file.write(_SIGNATURE)
        for kind, data in _chunks(frame.getvalue()):
            if kind == b"IHDR":
                data = struct.pack(">IIBBBBB", width, height, 16, _COLOUR[channels], 0, 0, 0)
            for part in _packed(deep, options["compress_level"]) if kind == b"IDAT" else (data,):
                file.write(struct.pack(">I", len(part)) + kind + part)
                file.write(struct.pack(">I", zlib.crc32(part, zlib.crc32(kind))))


def _chunks(png: bytes) -> Iterator[tuple[bytes, bytes]]:
    place = len(_SIGNATURE)
    while place < len(png):
        (length,) = struct.unpack_from(">I", png, place)
        yield png[place + 4 : place + 8], png[place + 8 : place + 8 + length]
        place += 12 + length


def _packed(deep: Deep, level: int) -> Iterator[bytes]:
    height, width, channels = deep.shape
    packer, before = zlib.compressobj(level), 2 * channels  # bytes of a pixel
    step = max(1, _BAND // (width * channels))
    for top in range(0, height, step):
        band = deep[top : top + step].astype(">u2").view(np.uint8).reshape(-1, width * before)
        rows = np.empty((len(band), 1 + width * before), np.uint8)
        rows[:, 0], rows[:, 1 : 1 + before] = _SUB, band[:, :before]
        np.subtract(band[:, before:], band[:, :-before], out=rows[:, 1 + before :])
        if part := packer.compress(rows.tobytes()):
            yield part
    yield packer.flush()
