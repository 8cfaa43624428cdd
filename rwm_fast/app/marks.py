"""Marks on a picture, as a page sends them, and the regions that they make."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image, ImageChops, ImageDraw

from rwm_fast.errors import UserError

KINDS = ("paint", "erase", "click", "all")
MAX_MARKS = 500  # of a picture,
MAX_CLICKS = 50  # clicks among them,
MAX_POINTS = 50_000  # points of all,
MAX_LENGTH = 3_000_000  # and characters that say so
Point = tuple[float, float]
Size = tuple[int, int]  # (width, height)
Grow = Callable[[float, float], Image.Image]  # the region around a place, mode L


@dataclass(frozen=True)
class Mark:
    """One stroke, one click, or all of the picture. Lengths are pixels of the picture."""

    kind: str
    region: int = 0
    size: float = 0.0  # of a brush
    points: tuple[Point, ...] = ()  # from the upper left corner; of a click one


def read_marks(text: str, regions: int) -> list[Mark]:
    """Marks from JSON, a list of objects with the fields of `Mark`. UserError where it is none, or
    holds more than `regions` or the limits above."""
    try:
        if len(text) > MAX_LENGTH:
            raise ValueError
        found = [_mark(one) for one in json.loads(text or "[]")]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise UserError(
            "marks: expected a list of strokes and clicks, got something else"
        ) from None
    clicks = sum(mark.kind == "click" for mark in found)
    points = sum(len(mark.points) for mark in found)
    for name, count, most in (
        ("marks", len(found), MAX_MARKS),
        ("clicks", clicks, MAX_CLICKS),
        ("points", points, MAX_POINTS),
    ):
        if count > most:
            raise UserError(f"{name} on a picture: expected at most {most}, got {count}")
    for mark in found:
        if not 0 <= mark.region < regions:
            raise UserError(f"region: expected 1 to {regions}, got {mark.region + 1}")
    return found


def _mark(given: dict[str, Any]) -> Mark:
    kind, region = given["kind"], given["region"]
    size = float(given.get("size", 0))
    points = tuple((float(x), float(y)) for x, y in given.get("points", ()))
    numbers = [size, *(value for point in points for value in point)]
    fits = kind in KINDS and type(region) is int and all(abs(n) < 1e6 for n in numbers)
    wanted = {"click": len(points) == 1, "all": not points}.get(kind, size > 0 and bool(points))
    if not (fits and wanted):
        raise ValueError
    return Mark(kind, region, size, points)


def as_json(marks: Sequence[Mark]) -> list[dict[str, Any]]:
    """What `read_marks` reads, without what is as always."""
    return [
        {"kind": mark.kind, "region": mark.region}
        | ({"size": mark.size} if mark.size else {})
        | ({"points": [list(point) for point in mark.points]} if mark.points else {})
        for mark in marks
    ]


def check_clicks(marks: Sequence[Mark], size: Size) -> None:
    """UserError for a click outside of the picture."""
    for mark in marks:
        for x, y in mark.points if mark.kind == "click" else ():
            if not (0 <= x < size[0] and 0 <= y < size[1]):
                raise UserError(
                    f"click {x:g},{y:g} must be inside the picture, {size[0]} x {size[1]}"
                )


def drawn(
    marks: Sequence[Mark], regions: int, size: Size, grow: Grow, scale: float = 1.0
) -> list[Image.Image]:
    """A mask of mode L for every region, `size` large; `scale` pixels of it are one of the picture.

    What was marked last counts: a pixel is of the region that it was marked for, and an eraser
    takes it from all.
    """
    planes = [Image.new("L", size) for _ in range(regions)]
    for mark in marks:
        if mark.kind == "click":
            touched = grow(*mark.points[0])
        elif mark.kind == "all":
            touched = Image.new("L", size, 255)
        else:
            touched = _stroke(mark, size, scale)
        others = ImageChops.invert(touched)
        for region, plane in enumerate(planes):
            if region == mark.region and mark.kind != "erase":
                planes[region] = ImageChops.lighter(plane, touched)
            elif plane.getbbox() is not None:
                planes[region] = ImageChops.darker(plane, others)
    return planes


def _stroke(mark: Mark, size: Size, scale: float) -> Image.Image:
    """A round brush along a line."""
    plane = Image.new("L", size)
    draw = ImageDraw.Draw(plane)
    width = max(1.0, mark.size * scale)
    points = [(x * scale, y * scale) for x, y in mark.points]
    if len(points) > 1:
        draw.line(points, fill=255, width=math.ceil(width), joint="curve")
    for x, y in (points[0], points[-1]):
        half = width / 2
        draw.ellipse((x - half, y - half, x + half, y + half), fill=255)
    return plane
