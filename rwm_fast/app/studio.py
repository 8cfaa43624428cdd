"""What the page does, without a page: pictures and marks on them go in, an edited picture comes
out."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from rwm_fast.app.edits import Edit, Looks, Painting, paint, save_edit
from rwm_fast.app.marks import Grow, Mark, as_json, check_clicks, drawn, read_marks
from rwm_fast.app.metadata import Texts
from rwm_fast.app.regions import Region, share
from rwm_fast.data.decode import Picture, picture_in
from rwm_fast.data.formats import LIMITS, BadImageError, Limits
from rwm_fast.errors import UserError
from rwm_fast.models import RegionEditor
from rwm_fast.models.click import region_at

PICTURES = Path(__file__).parents[1] / "pictures"  # free ones, of the package
SHOWN = 1000  # px, longest side at which pictures are shown
COLOURS = ("#e4572e", "#2878b8", "#3c9d5b", "#8f5bb5", "#d9a400", "#c2417c", "#4aa8a0", "#7a6a58")
_FEATHER = 0.01  # of the short side: soft border of a region
_HANDED_OVER = 600.0  # seconds after which a result has long been fetched by who asked for it


@dataclass(frozen=True)
class Subject:
    """A picture with what was marked on it."""

    path: Path | None
    marks: str = "[]"  # JSON, `read_marks`


@dataclass(frozen=True)
class Style:
    """What a region is painted in; marks on its picture choose the part that counts."""

    subject: Subject
    strength: float = 1.0


@dataclass(frozen=True)
class Result:
    """An edit that was made."""

    file: Path  # PNG, of full size
    before: Image.Image  # as shown
    after: Image.Image
    regions: Image.Image  # the picture with every region in its colour
    said: str


class Studio:
    """Edits pictures that lie in `homes`, in up to `regions` regions.

    `describe` makes what a PNG file says of an edit. Everything that does not fit is a UserError.
    Threads may share it.
    """

    def __init__(
        self,
        editor: RegionEditor,
        homes: Sequence[Path],
        describe: Callable[[dict[str, Any]], Texts],
        limits: Limits = LIMITS,
        regions: int = 4,
    ) -> None:
        self.editor, self.limits, self.regions = editor, limits, regions
        self._homes = [home.resolve() for home in homes]
        self._describe = describe
        self.shown = functools.lru_cache(maxsize=32)(self._shown)
        self._grown = functools.lru_cache(maxsize=64)(self._grow)

    def read(self, path: Path) -> Picture:
        """A picture file, from the homes alone."""
        home = any(path.resolve().is_relative_to(home) for home in self._homes)
        if not home:
            raise UserError(f"{path.name}: expected a picture that was uploaded, got a path")
        try:
            with path.open("rb") as file:
                return picture_in(file, self.limits)
        except BadImageError as error:
            raise UserError(f"{path.name} cannot be read as a picture: {error}") from None
        except OSError:
            raise UserError(f"{path.name} is no longer kept here: choose it again") from None

    def overlay(self, subject: Subject, colours: Sequence[str] = COLOURS) -> Image.Image:
        """Every region in its colour, RGBA, at the size at which the picture is shown."""
        if subject.path is None:
            raise UserError("choose a picture first")
        marks = read_marks(subject.marks, len(colours))
        size, image = self.shown(subject.path)
        check_clicks(marks, size)
        scale = image.width / size[0]
        grow = functools.partial(self._grown, subject.path)
        return _coloured(drawn(marks, len(colours), image.size, grow, scale), colours)

    def edit(
        self, content: Subject, styles: Sequence[Style], folder: Path, keep_detail: bool = True
    ) -> Result:
        """Style k acts in region k; the outside stays, but for a border of 1 % of the short side.
        The file is written into `folder`, out of which those of earlier edits go."""
        if content.path is None:
            raise UserError("choose a picture to edit first")
        marks = read_marks(content.marks, self.regions)
        picture = self.read(content.path)
        image = picture.shown()
        planes = self._planes(content.path, marks, self.regions, image.size)
        used = [k for k, plane in enumerate(planes) if plane.getbbox() is not None]
        if not used:
            raise UserError("nothing is marked: paint on your picture, or click on it")
        edit = Edit(
            image,
            self._looks([styles[k] for k in used], used),
            [Region(_plane(planes[k])) for k in used],
        )
        edited = paint(
            self.editor,
            edit,
            Painting(feather=_FEATHER * min(image.size)),
            strength=[styles[k].strength for k in used],
            keep_detail=keep_detail,
        )
        account = {
            "content": content.path.name,
            "marks": as_json(marks),
            "keep_detail": keep_detail,
            "styles": {k + 1: _account(styles[k]) for k in used},
        }
        file = _fresh(folder) / f"{content.path.stem}-edited.png"
        assert isinstance(edited, Image.Image)  # only a deep picture's is an array
        note = save_edit(edited, file, picture, self._describe(account))
        size, before = self.shown(content.path)
        regions = before.convert("RGBA")
        mask = _coloured([plane.resize(before.size) for plane in planes], COLOURS)
        mask.putalpha(mask.getchannel("A").point(lambda level: level * 3 // 5))
        regions.alpha_composite(mask)
        said = [f"{image.width} x {image.height}, repaints {share(edit.regions):.1%}", note]
        return Result(
            file,
            before,
            edited.resize(before.size, Image.Resampling.LANCZOS),
            regions.convert("RGB"),
            "; ".join(filter(None, said)),
        )

    def _looks(self, styles: Sequence[Style], numbers: Sequence[int]) -> Looks:
        """Pictures and parts of the styles of regions."""
        images, parts = list[Image.Image](), list[Tensor | None]()
        for style, number in zip(styles, numbers, strict=True):
            path = style.subject.path
            if path is None:
                raise UserError(f"region {number + 1} has no style: choose a picture for it")
            marks = read_marks(style.subject.marks, 1)
            image, part = self.read(path).shown(), None
            if marks:
                part = self._planes(path, marks, 1, image.size)[0]
                if part.getbbox() is None:
                    raise UserError(
                        f"region {number + 1}: the part of its style picture is empty: mark some of"
                        " it, or clear it to take the whole picture"
                    )
            images.append(image)
            parts.append(None if part is None else _plane(part))
        return Looks(images, parts if any(part is not None for part in parts) else ())

    def _planes(
        self, path: Path, marks: Sequence[Mark], regions: int, size: tuple[int, int]
    ) -> list[Image.Image]:
        """Regions at full size; those around clicks are the ones that were shown."""
        check_clicks(marks, size)
        grow: Grow = lambda x, y: self._grown(path, x, y).resize(size, Image.Resampling.BICUBIC)
        return drawn(marks, regions, size, grow)

    def _shown(self, path: Path) -> tuple[tuple[int, int], Image.Image]:
        """The picture's size, and the picture as it is shown."""
        image = self.read(path).shown()
        small = image.copy()
        small.thumbnail((SHOWN, SHOWN), Image.Resampling.LANCZOS)
        return image.size, small

    def _grow(self, path: Path, x: float, y: float) -> Image.Image:
        """The region around a place of the picture, at the size at which it is shown."""
        size, image = self.shown(path)
        place = (x * image.width / size[0], y * image.height / size[1])
        mask: Image.Image = region_at(self.editor, image, *place)
        return mask


def _account(style: Style) -> dict[str, Any]:
    path, marks = style.subject.path, read_marks(style.subject.marks, 1)
    return {"picture": path and path.name, "part": as_json(marks), "strength": style.strength}


def _plane(mask: Image.Image) -> Tensor:
    return torch.from_numpy(np.asarray(mask, np.float32) / 255)[None, None]  # [1, 1, H, W]


def _coloured(planes: Sequence[Image.Image], colours: Sequence[str]) -> Image.Image:
    """Every region in its colour, RGBA, clear outside."""
    whole = Image.new("RGBA", planes[0].size)
    for plane, colour in zip(planes, colours, strict=False):
        layer = Image.new("RGBA", plane.size, colour)
        layer.putalpha(plane)
        whole.alpha_composite(layer)
    return whole


def _fresh(folder: Path) -> Path:
    """A new folder in the folder; what has lain in it for long goes."""
    for old in folder.glob("*/*"):
        if time.time() - old.stat().st_mtime > _HANDED_OVER:
            old.unlink(missing_ok=True)
    new = folder / f"{time.time_ns():x}"
    new.mkdir(parents=True)
    return new
