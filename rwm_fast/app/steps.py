"""From one style to another in steps: a strip, a grid of two styles, an animation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from rwm_fast.app.animation import ANIMATED, check_animation, write_animation
from rwm_fast.app.metadata import Texts
from rwm_fast.app.sheets import sheet
from rwm_fast.data.saving import Extras, check_target, write_picture
from rwm_fast.errors import UserError

# px, longest side of each picture, by the file's extension or else by the kind of series
LONGEST = {"strip": 640, "grid": 640, ".gif": 640, ".mp4": 1280}
MOST = {"strip": 64, "grid": 12, "frames": 240}  # steps
_FRAMES = 24  # two seconds there, two seconds back
Weights = list[list[float]]  # a row a picture: a number for each style
Paint = Callable[[Weights, int], Sequence[Image.Image]]  # of weights, at a longest side


@dataclass(frozen=True)
class Steps:
    """Options of a series of pictures."""

    # so many steps side by side: from the picture's own style to the other, or from first to second
    strip: int = 0
    grid: int = 0  # so many by so many: more of the first style to the right, of the second below
    frames: int | None = None  # of an animation (--out NAME.gif or .mp4), there and back; none = 24

    def __post_init__(self) -> None:
        for name, most in MOST.items():
            count = getattr(self, name)
            if count and not 2 <= count <= most:
                raise ValueError(f"--{name}: expected 2 to {most}, got {count}")
        if self.strip and self.grid:
            raise ValueError("--grid: expected a strip or a grid, got both")

    def kind(self, out: Path) -> str:
        """What `out` is to hold: "strip", "grid", "frames", or "" for one picture.

        UserError, before any work, where it cannot be written."""
        animated = out.suffix.lower() in ANIMATED
        sheets = "strip" if self.strip else "grid" if self.grid else ""
        if animated and sheets:
            raise UserError(f"--{sheets}: expected the name of a picture, got {out}")
        if self.frames and not animated:
            raise UserError(f"--frames: expected a name that ends in .gif or .mp4, got {out}")
        (check_animation if animated else check_target)(out)
        return "frames" if animated else sheets

    def write(
        self, out: Path, styles: int, shared: bool, strength: float, paint: Paint, texts: Texts
    ) -> str:
        """Paint the series and write it; returns what was written, in words.

        `shared`: whether the styles share one region, and so are mixed, or have one each."""
        kind = self.kind(out)
        count = getattr(self, kind) or _FRAMES
        if kind == "grid":
            if styles != 2 or not shared:
                raise UserError(f"--grid: expected two styles in one region, got {styles} styles")
            rows = _grid(count)
        else:
            rows = _line(count, styles, shared)
        longest = LONGEST[out.suffix.lower() if kind == "frames" else kind]
        images = paint([[strength * w for w in row] for row in rows], longest)
        pictures = [np.asarray(image) for image in images]
        if kind == "frames":
            write_animation([*pictures, *pictures[-2:0:-1]], out)
            return f"{2 * count - 2} frames"
        write_picture(sheet(pictures, count), out, extras=Extras(texts=texts))
        return f"{len(pictures)} pictures"


def _line(count: int, styles: int, shared: bool) -> Weights:
    """From no style to the one, from the first of two to the second, or from none to all."""
    steps = [k / (count - 1) for k in range(count)]
    if styles == 2 and shared:
        return [[1 - t, t] for t in steps]
    return [[t] * styles for t in steps]


def _grid(count: int) -> Weights:
    """More of the first style to the right, of the second below, of both at most 1."""
    steps = [k / (count - 1) for k in range(count)]
    return [[u / max(1, u + v), v / max(1, u + v)] for v in steps for u in steps]
