"""An edit as the command and the page ask for it, and series of edits between styles."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from rwm_fast.app.metadata import Texts
from rwm_fast.app.regions import Region, Regions, clicked_regions, read_masks
from rwm_fast.data.decode import Picture, load_picture
from rwm_fast.data.deep import floats
from rwm_fast.data.files import printable
from rwm_fast.data.formats import Limits
from rwm_fast.data.saving import keeps_depth, write_picture
from rwm_fast.errors import UserError
from rwm_fast.models import RegionEditor


@dataclass(frozen=True)
class Painting:
    """Options that say how an edit is painted."""

    strength: float = 1.0  # 0 = the picture's own style, 1 = the other; beyond 1 it goes further
    keep_detail: bool = False  # carry over what the networks cannot paint (ours, not the paper's)
    composite: bool = False  # paste over the untouched picture, which stays as it is outside
    feather: float | None = None  # px, the same with a border this soft
    # px, short side at which the networks work; 0 = that of the pictures, none = that of training
    work_size: int | None = None
    tile: int = 0  # px, side of the tiles in which the networks work; 0 = whole pictures

    def working(self) -> dict[str, Any]:
        """Keywords of `RegionEditor.encode`."""
        return {"work_size": self.work_size, "tile": self.tile}

    def options(self) -> dict[str, Any]:
        """Keywords of `RegionEditor.edit`, but for the strength."""
        feather = 0.0 if self.composite and self.feather is None else self.feather
        detail = True if self.keep_detail else None
        return {"keep_detail": detail, "feather": feather, **self.working()}


@dataclass(frozen=True)
class Looks:
    """The styles of an edit, and the parts of their pictures that they are taken from."""

    styles: Sequence[Any]  # pictures, or codes [1, D]
    # none, or for each style None or one: [1, 1, H, W] in [0, 1]
    parts: Sequence[Tensor | None] = ()
    remarks: Sequence[str] = ()


@dataclass(frozen=True)
class Edit:
    """All that an edit is made of."""

    image: Image.Image  # RGB
    looks: Looks
    regions: Sequence[Region] = ()  # one for each style, or one that all share
    # float32 [H, W, 3] in [0, 1], the picture at more than 8 bits, where the result is to keep them
    deep: NDArray[np.float32] | None = None

    @property
    def masks(self) -> list[Tensor]:
        return [region.plane for region in self.regions]

    def remarks(self) -> list[str]:
        """What there is to say about the masks."""
        said = [*self.looks.remarks, *(region.remark for region in self.regions)]
        return [printable(remark) for remark in said if remark]


def read_looks(paths: Sequence[Path], regions: Regions, limits: Limits) -> Looks:
    """Style pictures and style masks from files. UserError where one does not serve."""
    pictures = [load_picture(path, limits).shown() for path in paths]
    sizes = [(picture.height, picture.width) for picture in pictures[: len(regions.style_mask)]]
    parts = read_masks(regions.style_mask, sizes, [""] * len(sizes), limits)
    return Looks(pictures, [part.plane for part in parts], [part.remark for part in parts])


def composed(
    image: Image.Image,
    looks: Looks,
    regions: Regions,
    masks: Sequence[Region],
    editor: RegionEditor,
) -> Edit:
    """The edit of a picture, `masks` read for it; regions around clicks are found now."""
    clicked = clicked_regions(regions, len(looks.styles), editor, image)
    return Edit(image, looks, [*masks, *clicked])


def refused(make: Callable[[], Any]) -> Any:
    """make(), with a ValueError about arguments that do not fit each other as UserError."""
    try:
        return make()
    except ValueError as error:
        raise UserError(str(error)) from None


def deepened(edit: Edit, picture: Picture, out: Path) -> Edit:
    """The same with all bits of the picture, where it has 16 and the file `out` will keep them."""
    if not keeps_depth(out, picture.pixels):
        return edit
    assert picture.pixels.deep is not None  # `keeps_depth` has looked
    return replace(edit, deep=floats(picture.pixels.deep))


def paint(
    editor: RegionEditor, edit: Edit, painting: Painting, **own: Any
) -> Image.Image | NDArray[np.float32]:
    """The edited picture, of a deep one an array like `Edit.deep`; `own` are keywords of
    `RegionEditor.edit` that go before the options."""
    styles, parts = list(edit.looks.styles), list(edit.looks.parts)
    options = {"style_masks": parts, "strength": painting.strength, **painting.options(), **own}
    given = edit.image if edit.deep is None else edit.deep
    image: Image.Image = refused(lambda: editor.edit(given, styles, edit.masks, **options))
    return image


def series(
    editor: RegionEditor, edit: Edit, painting: Painting, rows: Sequence[Sequence[float]]
) -> list[Image.Image]:
    """A picture for every row of weights, one for each style; what they leave of 1 is the picture's
    own style. Where every style has a region of its own, its weight is its strength. The picture is
    encoded once."""
    options = painting.options()
    styles: list[Any] = list(edit.looks.styles)
    parts: list[Tensor | None] = list(edit.looks.parts)

    def make() -> list[Image.Image]:
        codes = editor.encode(edit.image, **painting.working())
        if len(edit.masks) > 1:
            options["style_masks"] = parts
            return [editor.edit(codes, styles, edit.masks, strength=w, **options) for w in rows]
        options["style_masks"] = [None, *(parts or [None] * len(styles))]
        mix = [[1 - sum(row), *row] for row in rows]
        return editor.interpolate(codes, [codes.style, *styles], mix, *edit.masks, **options)

    images: list[Image.Image] = refused(make)
    return images


def reduced(edit: Edit, longest: int) -> Edit:
    """The same with a picture of at most `longest` pixels a side."""
    width, height = edit.image.size
    scale = longest / max(width, height)
    if scale >= 1:
        return edit
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    image = edit.image.resize(size, Image.Resampling.LANCZOS)
    regions = [
        replace(r, plane=F.interpolate(r.plane, size[::-1], mode="bilinear", antialias=True))
        for r in edit.regions
    ]
    return replace(edit, image=image, regions=regions, deep=None)


def save_edit(
    image: Image.Image | NDArray[np.float32], path: Path, like: Picture, texts: Texts
) -> str:
    """Writes an edited picture with what the one that was edited says, and in a PNG file `texts`.
    Returns a note on what could not be kept, or ""."""
    extras = replace(like.extras, texts=texts)
    return write_picture(np.asarray(image), path, like.pixels, extras)
