"""Masks as people have them: black and white, labels of a segmentation, colours, drawn strokes."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rwm_fast.data.colour import depth, upright
from rwm_fast.data.formats import LOSSLESS

Plane = NDArray[np.float32]  # [H, W] in [0, 1], 1 = repaint

_LOSSY = {"JPEG", "MPO", "WEBP", "AVIF", "HEIF", "JXL"}
_SNAP = 16 / 255  # what a lossy format makes of 0 and of 1
_LIST = 6  # levels or colours that a message names
_FLAT = 0.5  # share of a level's pixels with like neighbours, from which it is an area, no edge
_FAINT = 0.25  # areas fainter than this are labels: nobody paints so
_PHOTO = 0.9  # share of greys from which it may be a photo, taken for a mask by mistake


class AmbiguousMaskError(Exception):
    """What is to be repainted cannot be told; the message says why and what to do."""


@dataclass(frozen=True)
class Mask:
    plane: Plane
    note: str = ""  # how it was read, where that is not plain

    @property
    def share(self) -> float:
        """The part of the picture that it repaints."""
        return float(self.plane.mean()) if self.plane.size else 0.0

    @property
    def empty(self) -> bool:
        """Whether it selects nothing."""
        return float(self.plane.max(initial=0)) < 1.5 / 255

    def remark(self) -> str:
        """A sentence about a mask that cannot be meant, or is read in a way to be known; or ""."""
        if self.empty:
            return "selects nothing, so nothing is repainted"
        if self.plane.min(initial=1) > 0.99:
            return "selects everything"
        grey = float(((self.plane > 0.02) & (self.plane < 0.98)).mean())
        if grey > _PHOTO and not self.note:
            return f"is neither black nor white on {grey:.0%} of its pixels"
        return self.note


def mask_of(image: Image.Image, label: str = "") -> Mask:
    """What an open picture selects.

    Grey: white is the region, soft between, at any depth; of two levels the higher one, so 0 and 1
    will do. A palette or colours: what is not the black or white background, if that is one colour.
    Clear parts: of strokes drawn on a clear layer the strokes; of a photo with erased parts the
    erased parts; of black and white on a clear layer the white. `label` picks one level, palette
    index or colour (rrggbb). AmbiguousMaskError for anything else.
    """
    lossy = image.format in _LOSSY and LOSSLESS not in image.info
    tags = dict(getattr(image, "tag_v2", {}))
    image = upright(image)
    deep = image.mode.startswith("I") or image.mode == "F"
    indices = np.asarray(image) if image.mode == "P" else None
    alpha = None
    if not deep and (image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or _tells_clear(image)):
        image = image.convert("RGBA")
        alpha = np.asarray(image.getchannel("A")).astype(np.float32) / 255
        if alpha.min(initial=1) == 1:
            alpha = None
    if deep:
        values, white = depth(image, tags)
        white = 255.0 if image.mode != "F" and values.max(initial=0) <= 255 else white
        return _labelled(values, label) if label else _grey(values, white, lossy)
    if image.mode in ("1", "L") and not label:
        return _grey(np.asarray(image.convert("L")), 255.0, lossy)
    colours = np.asarray(image.convert("RGB")).astype(np.int16)  # [H, W, 3]
    if label:
        return _labelled(colours if _is_colour(label) else _levels(indices, colours), label)
    if alpha is not None:
        return _clear(colours, alpha, lossy)
    if _is_grey(colours, lossy):
        return _grey(colours[..., 1], 255.0, lossy)
    return _coloured(colours, lossy)


def _tells_clear(image: Image.Image) -> bool:
    return "transparency" in image.info


def _levels(indices: np.ndarray | None, colours: np.ndarray) -> np.ndarray:
    return colours[..., 1] if indices is None else indices


def _is_colour(label: str) -> bool:
    return re.fullmatch(r"#?[0-9a-fA-F]{6}", label) is not None


def _labelled(values: np.ndarray, label: str) -> Mask:
    """The pixels of one level or colour."""
    if values.ndim == 3:
        number = int(label.lstrip("#"), 16)
        wanted = np.array([number >> 16, number >> 8 & 255, number & 255])
        return Mask((np.abs(values - wanted).max(-1) <= _SNAP * 255).astype(np.float32))
    try:
        return Mask((values == float(label)).astype(np.float32))
    except ValueError:
        raise AmbiguousMaskError(
            f"has no label {label!r}: expected a level, a palette index or a colour as rrggbb"
        ) from None


def _grey(values: np.ndarray, white: float, lossy: bool) -> Mask:
    levels = np.unique(values)
    if len(levels) == 0:
        return Mask(np.zeros(values.shape, np.float32))
    low, top = float(levels[0]), float(levels[-1])
    if len(levels) == 1:
        return Mask(np.full(values.shape, 1.0 if top == 1 else top / white, np.float32))
    if len(levels) == 2 and not (lossy and top - low < white / 4):
        usual = low == 0 and top in (1, 255, white)
        note = "" if usual else f"has the levels {low:g} and {top:g}; {top:g} is repainted"
        return Mask((values == top).astype(np.float32), note)
    if lossy:
        return Mask(_snapped(values / white))
    areas = _areas(values, levels[1:])
    if len(areas) > 1 and (top < 0.98 * white or areas[0] < _FAINT * white):
        raise AmbiguousMaskError(
            f"holds several labels ({_listed([f'{level:g}' for level in areas])}): say which to "
            f"repaint with --mask-label, or give a black and white picture"
        )
    if top < _FAINT / 2 * white:  # a label whose edge was smoothed
        note = f"reaches level {top:g} only; that is taken as fully repainted"
        return Mask((values / top).astype(np.float32), note)
    plane = np.divide(values, white, dtype=np.float32)
    return Mask(plane.clip(0, 1, out=plane))


def _areas(values: np.ndarray, levels: np.ndarray) -> list[float]:
    """The levels above the lowest that fill areas, where areas are all there is but for edges."""
    if len(levels) > 255:
        return []
    flat = np.zeros(values.shape, bool)
    flat[:-1, :-1] = (values[:-1, :-1] == values[1:, :-1]) & (values[:-1, :-1] == values[:-1, 1:])
    at = np.searchsorted(levels, values).clip(max=len(levels) - 1)
    known = levels[at] == values
    counts = np.bincount(at[known], minlength=len(levels))
    filled = np.bincount(at[known & flat], minlength=len(levels)) >= _FLAT * counts
    covered = counts[filled].sum() / max(1, counts.sum())
    return [float(level) for level in levels[filled]] if covered > 0.8 else []  # else shades


def _snapped(plane: np.ndarray) -> Plane:
    """What a lossy format made of black is black, of white is white."""
    plane = np.where(plane < _SNAP, 0, np.where(plane > 1 - _SNAP, 1, plane))
    return plane.astype(np.float32)


def _is_grey(colours: np.ndarray, lossy: bool) -> bool:
    r, g, b = colours[..., 0], colours[..., 1], colours[..., 2]  # numpy reduces a short axis slowly
    spread = np.maximum(np.maximum(r, g), b) - np.minimum(np.minimum(r, g), b)
    return bool((spread > (32 if lossy else 4)).mean() <= 0.001) if spread.size else True


def _coloured(colours: np.ndarray, lossy: bool) -> Mask:
    """One colour on black or on white."""
    flat = colours.reshape(-1, 3)
    black = float((flat.max(-1) <= 24).mean())
    white = float((flat.min(-1) >= 231).mean())
    ground = 0 if black >= white else 255
    if max(black, white) < 0.005 or min(black, white) > 0.005:
        raise _several(flat)
    vivid = flat[(flat.max(-1) - flat.min(-1)) > 40]
    if len(vivid) == 0:
        raise _several(flat)
    way = _commonest(vivid)[0].astype(np.float32) - ground  # from the ground to the colour
    offset = (flat - ground).astype(np.float32)
    along = offset @ way / float(way @ way)
    aside = np.linalg.norm(offset - along[:, None] * way, axis=1)
    if (aside > (64 if lossy else 24)).mean() > (0.02 if lossy else 0.005):
        raise _several(flat)
    plane = along.clip(0, 1).reshape(colours.shape[:2])
    return Mask(_snapped(plane) if lossy else plane.astype(np.float32))


def _clear(colours: np.ndarray, alpha: np.ndarray, lossy: bool) -> Mask:
    shown = colours[alpha > 0.5]
    if len(shown) == 0:
        return Mask(alpha)
    middle = np.median(shown, axis=0)
    if (np.abs(shown - middle).max(-1) > 24).mean() < 0.005:  # strokes of one colour
        if middle.max() < 64:
            raise AmbiguousMaskError("is black and clear: paint what is to be repainted in white")
        return Mask(alpha)
    grey = shown.max(-1) - shown.min(-1) <= (32 if lossy else 4)
    ends = (shown.max(-1) <= 24) | (shown.min(-1) >= 231)
    if (grey & ends).mean() > 0.95:
        return Mask((alpha * colours[..., 1] / 255).astype(np.float32))
    if len(_commonest(shown, most=64)) < 64:
        raise _several(shown)
    return Mask(1 - alpha, "is a picture with clear parts; those are repainted")


def _commonest(colours: np.ndarray, most: int = _LIST) -> list[np.ndarray]:
    """The colours that are there most, alike ones as one."""
    keys = (colours >> 4) @ np.array([256, 16, 1])
    found, counts = np.unique(keys, return_counts=True)
    first = found[counts.argsort()[::-1][:most]]
    return [np.median(colours[keys == key], axis=0).astype(np.int16) for key in first]


def _several(colours: np.ndarray) -> AmbiguousMaskError:
    names = ["".join(f"{c:02x}" for c in colour) for colour in _commonest(colours)]
    return AmbiguousMaskError(
        f"holds several colours ({_listed(names)}): say which to repaint with --mask-label, or "
        f"give a black and white picture"
    )


def _listed(names: list[str]) -> str:
    return ", ".join(names[:_LIST]) + (", ..." if len(names) > _LIST else "")
