"""Colours that a file names without holding their profile, and the profiles that this package makes
of them."""

from __future__ import annotations

import functools
import re
import struct
from collections.abc import Sequence
from typing import BinaryIO

import numpy as np
from PIL import Image

SRGB = b""  # in the place of a profile: said to be sRGB
CODE_POINTS = "code points"  # in `image.info`: primaries, transfer, full range, as in ITU-T H.273
_EXPOSURE, _INTEROPERABILITY, _COLOUR_SPACE = 0x8769, 0xA005, 0xA001  # EXIF tags
_ADOBE_RGB, _UNCALIBRATED = 2, 65535  # what cameras write there for Adobe RGB
_D50, _D65 = (0.9642, 1.0, 0.8249), (0.3127, 0.3290)
_BT709 = (0.640, 0.330, 0.300, 0.600, 0.150, 0.060)  # x, y of red, green and blue; sRGB's too
_CORNERS = {
    1: _BT709,
    5: (0.640, 0.330, 0.290, 0.600, 0.150, 0.060),  # BT.601, 625 lines
    6: (0.630, 0.340, 0.310, 0.595, 0.155, 0.070),  # and 525
    7: (0.630, 0.340, 0.310, 0.595, 0.155, 0.070),
    9: (0.708, 0.292, 0.170, 0.797, 0.131, 0.046),  # BT.2020
    12: (0.680, 0.320, 0.265, 0.690, 0.150, 0.060),  # Display P3
}
# sRGB's curve; cameras' (BT.709 and its kin) are shown by it
_GAMMAS = {13: None, 1: None, 6: None, 14: None, 15: None, 4: 2.2, 5: 2.8, 8: 1.0}
_HDR = {16: "PQ", 18: "HLG"}
_SRGB_CURVE = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
_HEAD = 1 << 16  # bytes of a file in which its colours are named


def code_points(file: BinaryIO, kind: str | None) -> tuple[int, int, int] | None:
    """Primaries, transfer and full range of a PNG's cICP or of the nclx box of AVIF and HEIC, None
    where there are none; the file is at its start again."""
    if kind not in ("PNG", "AVIF", "HEIF"):
        return None
    head = file.read(_HEAD)
    file.seek(0)
    if kind == "PNG":
        found = re.search(rb"\0\0\0\x04cICP(.)(.)\0(.)", head.split(b"IDAT")[0], re.DOTALL)
        return (found[1][0], found[2][0], found[3][0]) if found else None
    found = re.search(rb"colrnclx\0(.)\0(.)", head, re.DOTALL)
    return (found[1][0], found[2][0], 1) if found else None  # the range is of Y, Cb and Cr


def profile_of(image: Image.Image) -> bytes | None:
    """The profile that the values of an open picture are in, `SRGB` if the file says so, None if it
    says nothing.

    In the order of the PNG specification (third edition, 4.3), the first that is understood: code
    points, the profile it holds, an sRGB chunk, gamma and corners. ValueError for HDR with nothing
    else to go by: how bright it is to be is not in its values.
    """
    info = image.info
    held, points = info.get("icc_profile") or None, info.get(CODE_POINTS)
    if points is not None and (image.format == "PNG" or held is None):
        primaries, transfer, full = points
        known = primaries in _CORNERS and transfer in _GAMMAS and full
        if known:
            return named_profile(_CORNERS[primaries], _D65, _GAMMAS[transfer])
        if held is None and (transfer in _HDR or not full):
            what = f"HDR ({_HDR[transfer]})" if transfer in _HDR else "of the range of video"
            raise ValueError(f"its colours are {what}, not read here: export it as sRGB")
    if held is not None:
        return bytes(held)
    if image.format != "PNG":
        return None
    if "srgb" in info:
        return SRGB
    return _of_gamma(info.get("gamma"), info.get("chromaticity"))


def _of_gamma(gamma: float | None, corners: Sequence[float] | None) -> bytes | None:
    """The profile of PNG's gAMA and cHRM; None where they say nothing that could be."""
    if gamma is None or not 0.1 <= gamma <= 2:
        return None
    # within libpng's threshold of 1 / 2.2, which stands for sRGB's curve
    power = None if abs(gamma * 2.2 - 1) < 0.05 else 1 / gamma
    x, y, *rest = corners or (*_D65, *_BT709)
    try:
        return named_profile(rest, (x, y), power)
    except (ValueError, ZeroDivisionError, np.linalg.LinAlgError):
        return None


def named_profile(corners: Sequence[float], white: Sequence[float], gamma: float | None) -> bytes:
    """A profile by x, y of red, green and blue, x, y of white, and gamma; None = sRGB's curve."""
    near = np.allclose((*corners, *white), (*_BT709, *_D65), atol=0.002)
    if near and gamma is None:
        return SRGB
    xyz = lambda x, y: (x / y, 1.0, (1 - x - y) / y)
    columns = np.array([xyz(*corners[k : k + 2]) for k in (0, 2, 4)]).T  # [XYZ, RGB]
    matrix = columns * np.linalg.solve(columns, xyz(*white))
    bradford = np.array(
        [[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]]
    )
    scale = (bradford @ _D50) / (bradford @ xyz(*white))
    adapted = np.linalg.solve(bradford, scale[:, None] * (bradford @ matrix))
    if not (np.isfinite(adapted).all() and np.abs(adapted).max() < 4):
        raise ValueError("no colours")
    return matrix_profile("as named in the file", adapted.T.tolist(), gamma)


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


def matrix_profile(name: str, primaries: Sequence[Sequence[float]], gamma: float | None) -> bytes:
    """An ICC profile (version 2) of an RGB space: XYZ of red, green and blue under D50, and one
    gamma for the three; None = sRGB's curve."""
    if gamma is None:
        curve = b"para\0\0\0\0" + struct.pack(">HH", 3, 0) + _fixed(_SRGB_CURVE)
    else:
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
