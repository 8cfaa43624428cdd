"""From the bytes of an image file, of any kind, to upright 8-bit sRGB, and back."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, TypeVar

import numpy as np
from PIL import Image

from rwm_fast.data.colour import Pixels, pixels, upright_size
from rwm_fast.data.formats import LIMITS, BadImageError, Limits, opened
from rwm_fast.data.mask_file import AmbiguousMaskError, Mask, mask_of
from rwm_fast.data.saving import Extras, bits_of, extras_of, write_picture
from rwm_fast.disk import open_file
from rwm_fast.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

# Torch is imported where tensors are made: a process that only decodes comes up without it.
T = TypeVar("T")


def picture_size(file: BinaryIO, limits: Limits = LIMITS) -> tuple[int, int]:
    """(width, height) of the upright picture, from the header alone. BadImageError if damaged."""
    with opened(file, limits) as image:
        return upright_size(image)


def decode(
    file: BinaryIO,
    short_side: float = math.inf,
    background: int = 255,
    limits: Limits = LIMITS,
    checksums: bool = False,
) -> Image.Image:
    """The picture as upright sRGB.

    Grey, palette, CMYK and 1-bit pictures are converted, deep ones are scaled to 8 bits, colour
    profiles are applied, transparent ones are laid on the grey value `background`, of several
    frames the first is taken. A JPEG much larger than `short_side` pixels is decoded at a half, a
    quarter or an eighth of its size, never below twice `short_side`. BadImageError if damaged, or
    larger than `limits` admit; `checksums` looks harder for damage.
    """
    with opened(file, limits, checksums=checksums) as image:
        scale = 2 * short_side / max(1, min(image.size))
        if image.format == "JPEG" and scale < 1:
            width, height = image.size
            image.draft(None, (math.ceil(width * scale), math.ceil(height * scale)))
        return pixels(image).on(background)


@dataclass(frozen=True)
class Picture:
    """A picture file, read to be edited."""

    pixels: Pixels
    extras: Extras

    def shown(self) -> Image.Image:
        """RGB, sRGB, clear parts on white."""
        return self.pixels.on(255)

    def tensor(self) -> Tensor:
        """float32 [1, 3, H, W] in [-1, 1], sRGB, clear parts on white."""
        import torch

        values = torch.from_numpy(np.array(self.shown())).permute(2, 0, 1)[None]
        return values.contiguous().float().div_(127.5).sub_(1)


def load_picture(path: str | Path, limits: Limits = LIMITS) -> Picture:
    """A picture file with all that `save_image` can keep. UserError as `load_image`."""
    return _read(path, limits, _picture)


def picture_in(file: BinaryIO, limits: Limits = LIMITS) -> Picture:
    """The same of an open file. BadImageError if it is damaged or larger than `limits` admit."""
    with opened(file, limits) as image:
        return _picture(image)


def _picture(image: Image.Image) -> Picture:
    bits, meaning = bits_of(image), pixels(image, deep=True)
    return Picture(meaning, extras_of(image, meaning.own.size, bits))


def load_image(path: str | Path, limits: Limits = LIMITS) -> Tensor:
    """A picture file at its own size: float32 [1, 3, H, W] in [-1, 1].

    UserError when it does not exist, cannot be read or is larger than `limits` admit.
    """
    return load_picture(path, limits).tensor()


def load_mask(
    path: str | Path, size: tuple[int, int] | None = None, label: str = "", limits: Limits = LIMITS
) -> Tensor:
    """A mask file: float32 [1, 1, H, W] in [0, 1], 1 = the region to repaint.

    White on black, also as 0 and 1; one colour on black or white; strokes on a clear layer, or a
    photo with erased parts. `label` picks one level, palette index or colour (rrggbb) of several.
    `size` = (H, W) of the picture: a mask of another size and the same aspect is resized. A mask
    that selects nothing raises a warning. UserError when it does not exist, cannot be read, has
    another aspect, or several meanings.
    """
    import torch

    mask = read_mask(path, size, label, limits)
    if mask.empty:
        warnings.warn(f"mask {path} {mask.remark()}", stacklevel=2)
    return torch.from_numpy(mask.plane)[None, None]


def read_mask(
    path: str | Path, size: tuple[int, int] | None = None, label: str = "", limits: Limits = LIMITS
) -> Mask:
    """The same with its share and what there is to say about it."""

    def read(image: Image.Image) -> Mask | str:
        width, height = upright_size(image)
        if size is not None and not _same_aspect((height, width), size):
            return (
                f"must have the size of the picture, {size[1]} x {size[0]}, or its aspect, got "
                f"{width} x {height}"
            )
        try:
            mask = mask_of(image, label)
        except AmbiguousMaskError as error:
            return str(error)
        return mask if size in (None, (height, width)) else _resized(mask, size)

    mask = _read(path, limits, read)
    if isinstance(mask, str):
        raise UserError(f"mask {path} {mask}")
    return mask


def _same_aspect(size: tuple[int, int], wanted: tuple[int, int]) -> bool:
    """Whether one size is the other scaled and rounded to whole pixels."""
    # w = sW + e and h = sH + f with |e|, |f| <= 1/2, so |hW - wH| <= (W + H) / 2
    apart = 2 * abs(size[0] * wanted[1] - size[1] * wanted[0])
    return apart <= max(sum(size), sum(wanted))


def _resized(mask: Mask, size: tuple[int, int]) -> Mask:
    import torch
    import torch.nn.functional as F

    plane = torch.from_numpy(mask.plane)[None, None]
    fitted = F.interpolate(plane, size, mode="bilinear", antialias=True, align_corners=False)
    note = f"was resized from {plane.shape[3]} x {plane.shape[2]}"
    return Mask(fitted[0, 0].numpy(), f"{mask.note}; it {note}" if mask.note else note)


def _read(path: str | Path, limits: Limits, read: Callable[[Image.Image], T]) -> T:
    try:
        with open_file(path) as file, opened(file, limits) as image:
            return read(image)
    except BadImageError as error:
        raise UserError(f"{path} cannot be read as a picture: {error}") from None
    except OSError as error:
        raise UserError(f"{path} cannot be opened: {error.strerror or error}") from None


def save_image(image: Tensor, path: str | Path, like: Picture | None = None) -> str:
    """Write one picture, [3, H, W] or [1, 3, H, W] in [-1, 1]; the extension says the format.

    `like`: the picture that it was made from, of the same size. Where the format holds them, its
    transparency, colour profile, EXIF and resolution are kept, and its own pixels where they have
    not changed; without it the values are sRGB and the file says nothing more. JPEG is of quality
    95 without subsampling, AVIF of 95; the others lose nothing. The file is whole or not there.
    Returns a note on what the format could not keep, or "". UserError when it cannot be written.
    """
    import torch

    values = image.detach().reshape(image.shape[-3:]).clamp(-1, 1).float().add(1).mul(127.5)
    shown = values.round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()  # [H, W, 3]
    if like is None:
        return write_picture(shown, path)
    return write_picture(shown, path, like.pixels, like.extras)
