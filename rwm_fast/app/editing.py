"""One edit from pictures to a picture: what the command and the page share."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from rwm_fast.errors import UserError
from rwm_fast.models import RegionEditor
from rwm_fast.models.compositing import composite


def edit_picture(
    editor: RegionEditor,
    content: Tensor,
    styles: Sequence[Tensor],
    masks: Sequence[Tensor] = (),
    *,
    keep_detail: bool = False,
    feather: float | None = None,
    work_size: int = 0,
) -> Tensor:
    """`content` in the style of others: whole without masks, else style k inside mask k.

    content: [1, 3, H, W] in [-1, 1]; styles: K such pictures of any size; masks: none, or K of
    [1, 1, H, W] in [0, 1]; where masks overlap, the later one wins. feather: paste the edit over
    the untouched picture with a border of that many pixels, None = show the whole painting.
    work_size: short side in pixels at which the networks work, 0 = that of each picture; with
    keep_detail only the change is enlarged again.

    Returns [1, 3, H, W] in [-1, 1]. UserError when the numbers of styles and masks do not fit.
    """
    if masks and len(masks) != len(styles) or not masks and len(styles) != 1:
        raise UserError(
            f"expected one style without a mask, or as many masks as styles, got "
            f"{len(styles)} styles and {len(masks)} masks"
        )
    if feather is not None and not masks:
        raise UserError("feather: expected a mask to feather, got none")
    planes = exclusive(masks)  # [1, K, H, W] or None
    small = resized(content, work_size)
    small_planes = None if planes is None else resized(planes, work_size).clamp(0, 1)
    edited = editor.repaint(
        small,
        [resized(style, work_size) for style in styles],
        small_planes,
        keep_detail=keep_detail,
    )
    if small.shape != content.shape:
        base, change = (content, edited - small) if keep_detail else (0.0, edited)
        size = content.shape[2:]
        enlarged = F.interpolate(change, size=size, mode="bicubic", align_corners=False)
        edited = (base + enlarged).clamp(-1, 1)
    if feather is None:
        return edited
    return composite(content, edited, planes.sum(1, keepdim=True).clamp(0, 1), feather)


def exclusive(masks: Sequence[Tensor]) -> Tensor | None:
    """Masks [1, 1, H, W] as planes [1, K, H, W] that add up to at most 1: later ones win."""
    if not masks:
        return None
    left, planes = torch.ones_like(masks[0]), []
    for mask in reversed(masks):
        planes.append(mask * left)
        left = left * (1 - mask)
    return torch.cat(planes[::-1], dim=1)


def resized(image: Tensor, short_side: int) -> Tensor:
    """`image` with its short side reduced to `short_side` pixels; never enlarged, 0 = as it is."""
    height, width = image.shape[2:]
    scale = short_side / min(height, width)
    if not 0 < scale < 1:
        return image
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    return F.interpolate(image, size=size, mode="bilinear", antialias=True, align_corners=False)
