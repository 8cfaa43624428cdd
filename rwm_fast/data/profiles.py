"""Colour profiles that this package makes itself, and the colours that EXIF names without one."""

from __future__ import annotations

import functools
import struct
from collections.abc import Sequence

from PIL import Image

_EXPOSURE, _INTEROPERABILITY, _COLOUR_SPACE = 0x8769, 0xA005, 0xA001  # EXIF tags
_ADOBE_RGB, _UNCALIBRATED = 2, 65535  # what cameras write there for Adobe RGB
_D50 = (0.9642, 1.0, 0.8249)


def named_in_exif(image: Image.Image) -> bytes | None:
    """The profile of a loaded picture that names Adobe RGB in its EXIF and holds no profile, as
    cameras write it (DCF 2.0: interoperability index R03)."""
    try:
        exif = image.getexif()
        space = exif.get_ifd(_EXPOSURE).get(_COLOUR_SPACE)
        if space == _UNCALIBRATED:
            index = exif.get_ifd(_INTEROPERABILITY).get(1)
            space = _ADOBE_RGB if index == "R03" else None
    except Exception:  # readers of tags raise anything on damaged ones
        return None
    return adobe_rgb() if space == _ADOBE_RGB else None


@functools.cache
def adobe_rgb() -> bytes:
    """Adobe RGB (1998): its primaries adapted to D50, gamma 563 / 256."""
    return matrix_profile(
        "Adobe RGB compatible",
        ((0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457)),
        563 / 256,
    )


def matrix_profile(name: str, primaries: Sequence[Sequence[float]], gamma: float) -> bytes:
    """An ICC profile (version 2) of an RGB space: XYZ of red, green and blue under D50, and one
    gamma for the three."""
    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256))
    text = name.encode("ascii") + b"\0"
    described = struct.pack(">I", len(text)) + text + b"\0" * 78
    tags = [
        (b"desc", b"desc\0\0\0\0" + described),
        (b"cprt", b"text\0\0\0\0none\0"),
        (b"wtpt", b"XYZ \0\0\0\0" + _fixed(_D50)),
        *((c + b"XYZ", b"XYZ \0\0\0\0" + _fixed(v)) for c, v in zip(_RGB, primaries, strict=True)),
        *((c + b"TRC", curve) for c in _RGB),
    ]
    place, table, data = 132 + 12 * len(tags), b"", b""
    for tag, content in tags:
        content += b"\0" * (-len(content) % 4)
        table += tag + struct.pack(">II", place + len(data), len(content))
        data += content
    head = struct.pack(">I4sI4s4s4s", place + len(data), b"", 0x2100000, b"mntr", b"RGB ", b"XYZ ")
    head += b"\0" * 12 + b"acsp" + b"\0" * 28 + _fixed(_D50) + b"\0" * 48
    return head + struct.pack(">I", len(tags)) + table + data


_RGB = (b"r", b"g", b"b")


def _fixed(values: Sequence[float]) -> bytes:
    return b"".join(struct.pack(">i", round(v * 65536)) for v in values)
