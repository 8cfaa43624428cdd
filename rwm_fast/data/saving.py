"""Pictures written so that nothing is lost that came in: colours, transparency, EXIF, dpi."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, PngImagePlugin

from rwm_fast.data.colour import Pixels, from_srgb
from rwm_fast.disk import writable, write_file
from rwm_fast.errors import UserError


class _Format(NamedTuple):
    name: str  # in Pillow
    options: dict[str, Any]
    alpha: bool  # whether it holds transparency,
    tags: bool  # and profile, EXIF and XMP


_JPEG = _Format("JPEG", {"quality": 95, "subsampling": 0}, False, True)
_TIFF = _Format("TIFF", {}, True, True)
_PPM = _Format("PPM", {}, False, False)
WRITTEN = {
    ".png": _Format("PNG", {}, True, True),
    **dict.fromkeys((".jpg", ".jpeg", ".jpe", ".jfif"), _JPEG),
    ".webp": _Format("WEBP", {"lossless": True, "exact": True}, True, True),
    ".tif": _TIFF,
    ".tiff": _TIFF,
    ".avif": _Format("AVIF", {"quality": 95, "subsampling": "4:4:4"}, True, True),
    ".jp2": _Format("JPEG2000", {}, True, False),  # lossless by default
    ".bmp": _Format("BMP", {}, False, False),
    ".tga": _Format("TGA", {}, True, False),
    ".ppm": _PPM,
    ".pnm": _PPM,
}

# EXIF that describes the photo, not how its file was laid out: titles, camera, dates, resolution,
# rating. The parts that hold the rest (exposure, place) have tags of their own.
_DESCRIBING = {270, 271, 272, 282, 283, 296, 305, 306, 315, 316, 33432, 0x4746, 0x4749}
_DESCRIBING |= set(range(40091, 40096))
_EXPOSURE, _PLACE, _INTEROPERABILITY = 0x8769, 0x8825, 0xA005
_PIXELS_ACROSS, _PIXELS_DOWN = 0xA002, 0xA003
_XMP_TAG = 700  # of TIFF


@dataclass(frozen=True)
class Extras:
    """What a file says beside its pixels, as it can be written again."""

    exif: bytes = b""
    xmp: bytes = b""
    dpi: tuple[float, float] | None = None
    texts: tuple[tuple[str, str], ...] = ()  # key and text, written to PNG alone


def extras_of(image: Image.Image, size: tuple[int, int]) -> Extras:
    """The same of a loaded picture that is upright now, `size` = (width, height).

    The orientation is left out, and so is what is damaged."""
    try:
        exif = _exif(image, size)
    except Exception:  # readers of tags raise anything on damaged ones
        exif = b""
    xmp = image.info.get("xmp") or image.info.get("XML:com.adobe.xmp") or b""
    xmp = xmp.encode("utf-8", "replace") if isinstance(xmp, str) else bytes(xmp)
    xmp = re.sub(rb'tiff:Orientation="\d"|<tiff:Orientation>\d</tiff:Orientation>', b"", xmp)
    return Extras(exif, xmp, _dpi(image.info.get("dpi")))


def _exif(image: Image.Image, size: tuple[int, int]) -> bytes:
    before, kept = image.getexif(), Image.Exif()
    for tag, value in before.items():
        if tag in _DESCRIBING:
            kept[tag] = value
    exposure = dict(before.get_ifd(_EXPOSURE))
    place = dict(before.get_ifd(_PLACE))
    exposure.pop(_INTEROPERABILITY, None)  # an offset into the old file
    if exposure:
        exposure.update(
            {
                tag: number
                for tag, number in zip((_PIXELS_ACROSS, _PIXELS_DOWN), size, strict=True)
                if tag in exposure
            }
        )
        kept[_EXPOSURE] = exposure
    if place:
        kept[_PLACE] = place
    return kept.tobytes() if len(kept) else b""


def _dpi(value: Any) -> tuple[float, float] | None:
    try:
        across, down = (float(v) for v in value)
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    fine = all(math.isfinite(v) and 0 < v < 1e6 for v in (across, down))
    return (across, down) if fine else None


def check_target(path: str | Path) -> None:
    """UserError, before any work, where a picture cannot be written to `path`."""
    path = Path(path)
    if path.suffix.lower() not in WRITTEN:
        raise UserError(
            f"{path} cannot be written: expected a name that ends in one of "
            f"{' '.join(sorted(WRITTEN))}"
        )
    writable(path)


def write_picture(
    values: np.ndarray, path: str | Path, like: Pixels | None = None, extras: Extras | None = None
) -> str:
    """Write sRGB values, uint8 [H, W, 3]; the extension says the format, which is lossless where it
    can be, JPEG at quality 95 without subsampling.

    `like`: the picture that was edited, of the same size. Its profile and transparency are kept as
    far as the format holds them, and where `values` are what it shows, its own pixels. Returns a
    note on what could not be kept, or "". UserError when it cannot be written.
    """
    check_target(path)
    kind, extras = WRITTEN[Path(path).suffix.lower()], extras or Extras()
    options, note, alpha = dict(kind.options), "", None
    if like is not None:
        if kind.alpha:
            alpha = like.alpha
        elif like.alpha is not None:
            note = "cannot hold transparency, so the picture lies on white"
        values = _as_before(values, like, alpha, kind.tags)
        if kind.tags and like.profile:
            options["icc_profile"] = like.profile
    image = Image.fromarray(np.ascontiguousarray(values))
    if alpha is not None:
        image.putalpha(alpha)
    if extras.dpi:
        options["dpi"] = extras.dpi
    if kind.tags:
        options |= {"exif": extras.exif} if extras.exif else {}
        options |= _texts(kind.name, extras)
    write_file(path, lambda temporary: image.save(temporary, kind.name, **options))
    return note


def _texts(kind: str, extras: Extras) -> dict[str, Any]:
    """XMP as each format takes it; of a PNG file also the texts, as UTF-8."""
    xmp = extras.xmp
    if kind == "PNG":
        info = PngImagePlugin.PngInfo()
        if xmp:
            info.add_itxt("XML:com.adobe.xmp", xmp.decode("utf-8", "replace"))
        for key, text in extras.texts:
            info.add_itxt(key, text)
        return {"pnginfo": info}
    if not xmp:
        return {}
    return {"tiffinfo": {_XMP_TAG: xmp}} if kind == "TIFF" else {"xmp": xmp}


def _as_before(
    values: np.ndarray, like: Pixels, alpha: Image.Image | None, profiled: bool
) -> np.ndarray:
    """The values as the edited picture would hold them, its own where nothing has changed."""
    clear = like.alpha is not None and alpha is None  # shown on white from now on
    own = like.own if profiled else like.srgb
    unchanged = (values == np.asarray(like.on(255))).all(-1, keepdims=True)
    if alpha is not None:
        cover = np.asarray(alpha)[..., None].astype(np.float32) / 255
        shown = (values - (1 - cover) * 255) / np.maximum(cover, 1 / 255)
        values = shown.clip(0, 255).round().astype(np.uint8)
    transform = from_srgb(like.profile) if profiled and like.profile else None
    if transform is not None:
        from PIL import ImageCms  # there is no transform without it

        changed = ImageCms.applyTransform(Image.fromarray(np.ascontiguousarray(values)), transform)
        values = np.asarray(changed)
    if clear:
        unchanged = unchanged & (np.asarray(like.alpha)[..., None] == 255)
    return np.where(unchanged, np.asarray(own), values)
