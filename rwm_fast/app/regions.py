"""Which part of a picture takes which style: masks from files, or regions around clicks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from PIL import Image
from torch import Tensor

from rwm_fast.data.decode import read_mask
from rwm_fast.data.formats import LIMITS, Limits
from rwm_fast.errors import UserError
from rwm_fast.models import RegionEditor
from rwm_fast.models.click import region_at


@dataclass(frozen=True)
class Regions:
    """Options that say where styles act."""

    # white = repaint; repeatable, the k-th goes with the k-th style
    mask: tyro.conf.UseAppendAction[tuple[Path, ...]] = ()
    # which level, palette index or colour (rrggbb) of a mask with several; one serves all masks
    mask_label: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    # X,Y in pixels from the top left: the region around it, found in the picture; repeatable, all
    # of one style's clicks are one region, of several styles the k-th goes with the k-th
    click: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    # 0 to 1, how unlike the clicked place a region may be; none = the fitted choice
    tolerance: float | None = None
    # white = the part of a style picture that its style is taken from; one for each style
    style_mask: tyro.conf.UseAppendAction[tuple[Path, ...]] = ()

    def __post_init__(self) -> None:
        if self.mask_label and (not self.mask or len(self.mask_label) not in (1, len(self.mask))):
            raise ValueError(
                f"--mask-label: expected one, or one for each of {len(self.mask)} masks, got "
                f"{len(self.mask_label)}"
            )
        if self.mask and self.click:
            raise ValueError("--click: expected masks or clicks, got both")
        if self.tolerance is not None and not (self.click and 0 <= self.tolerance <= 1):
            got = f"{self.tolerance:g}" + ("" if self.click else " and no --click")
            raise ValueError(f"--tolerance: expected 0 to 1, for a click, got {got}")
        self.places()

    def places(self) -> list[tuple[float, float]]:
        """The clicks' x and y. ValueError for what is not X,Y."""
        places = []
        for text in self.click:
            try:
                x, y = map(float, text.split(","))
            except ValueError:
                raise ValueError(
                    f"--click: expected X,Y in pixels from the top left, got {text!r}"
                ) from None
            places.append((x, y))
        return places

    def check(self, styles: int, mixed: bool = False) -> None:
        """UserError unless every style has its region, or one style, or two that are `mixed`, have
        one region or the whole picture."""
        if self.style_mask and len(self.style_mask) != styles:
            raise UserError(
                f"--style-mask: expected one for each of {styles} styles, got "
                f"{len(self.style_mask)}"
            )
        regions = len(self.mask or self.click)
        if regions == styles or self.shared(styles) and (styles == 1 or mixed):
            return
        raise UserError(
            f"expected one --style without a region, or as many regions as styles, got {styles} "
            f"styles and {regions} {'clicks' if self.click else 'masks'}"
        )

    def shared(self, styles: int) -> bool:
        """Whether all styles act in one region, or in the whole picture."""
        return len(self.mask) <= 1 and (styles == 1 or len(self.click) <= 1) and styles <= 2


@dataclass(frozen=True)
class Region:
    """Where a style acts, or is taken from."""

    plane: Tensor  # float32 [1, 1, H, W] in [0, 1]
    remark: str = ""  # what there is to say about it


def read_masks(
    paths: Sequence[Path], sizes: Sequence[tuple[int, int]], labels: Sequence[str], limits: Limits
) -> list[Region]:
    """Mask files for pictures of sizes (H, W). UserError where one cannot be read, has another
    aspect, several meanings, or selects nothing."""
    found = []
    for path, size, label in zip(paths, sizes, labels, strict=True):
        mask = read_mask(path, size, label, limits)
        if mask.empty:
            raise UserError(f"mask {path} {mask.remark()}")
        remark = f"mask {path} {mask.remark()}" if mask.remark() else ""
        found.append(Region(torch.from_numpy(mask.plane)[None, None], remark))
    return found


def read_regions(regions: Regions, size: tuple[int, int], limits: Limits = LIMITS) -> list[Region]:
    """The masks for a picture of `size` = (H, W). UserError as `read_masks`, or where a click is
    outside."""
    for x, y in regions.places():
        if not (0 <= x < size[1] and 0 <= y < size[0]):
            raise UserError(f"click {x:g},{y:g} must be inside the picture, {size[1]} x {size[0]}")
    labels = regions.mask_label or ("",)
    labels = labels if len(labels) > 1 else labels * len(regions.mask)
    return read_masks(regions.mask, [size] * len(regions.mask), labels, limits)


def clicked_regions(
    regions: Regions, styles: int, editor: RegionEditor, image: Image.Image
) -> list[Region]:
    """The regions around the clicks on a picture: of one style's clicks one region together."""
    found = [region_at(editor, image, x, y, regions.tolerance) for x, y in regions.places()]
    planes = [torch.from_numpy(np.array(mask)).float()[None, None] / 255 for mask in found]
    if styles == 1 and planes:
        planes = [torch.stack(planes).amax(0)]
    return [Region(plane) for plane in planes]


def share(regions: Sequence[Region]) -> float:
    """The part of the picture that regions repaint together; all of it without any."""
    if not regions:
        return 1.0
    kept = torch.stack([1 - region.plane for region in regions]).prod(0)
    return 1 - float(kept.mean())
