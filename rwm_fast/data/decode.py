"""From the bytes of an image file, of any kind, to upright 8-bit RGB."""

from __future__ import annotations

import contextlib
import math
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from rwm_fast.errors import UserError

_ORIENTATION = 0x0112  # EXIF tag
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# What Pillow's readers raise on damaged files, beside its own errors, which are OSErrors.
_DAMAGE = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    KeyError,
    IndexError,
    TypeError,
    RuntimeError,
    OverflowError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


class BadImageError(Exception):
    """A file that is no readable image; the message is the reason."""


def picture_size(file: BinaryIO) -> tuple[int, int]:
    """(width, height) of the upright picture, from the header alone. BadImageError if damaged."""
    with _damage_told(file):
        image = Image.open(file)
        turned = _orientation(image) >= 5
        return image.size[::-1] if turned else image.size


def decode(file: BinaryIO, short_side: float = math.inf, background: int = 255) -> Image.Image:
    """The picture as upright RGB.

    Grey, palette, CMYK and 1-bit pictures are converted, 16-bit ones are scaled to 8 bits,
    transparent ones are laid on the grey value `background`, of several frames the first is taken.
    A JPEG much larger than `short_side` pixels is decoded at a half, a quarter or an eighth of its
    size, never below twice `short_side`. BadImageError if damaged.
    """
    with _damage_told(file):
        opened = Image.open(file)
        scale = 2 * short_side / max(1, min(opened.size))
        if opened.format == "JPEG" and scale < 1:
            width, height = opened.size
            opened.draft(None, (math.ceil(width * scale), math.ceil(height * scale)))
        turn = _UPRIGHT.get(_orientation(opened))
        image = _rgb(opened, background)
        return image.transpose(turn) if turn is not None else image


@contextlib.contextmanager
def _damage_told(file: BinaryIO) -> Iterator[None]:
    """Whatever a reader raises on a damaged file becomes a BadImageError with its reason."""
    try:
        yield
    except _DAMAGE as error:
        file.seek(0)
        if not file.read(1):
            reason = "the file is empty"
        elif isinstance(error, UnidentifiedImageError):
            reason = "no image format is recognised"
        else:
            reason = " ".join(str(error).split()) or type(error).__name__
        raise BadImageError(reason) from None


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except _DAMAGE:  # a damaged tag says nothing about the picture
        return 1


def _rgb(image: Image.Image, background: int) -> Image.Image:
    image.load()
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_eight_bits(np.asarray(image))).convert("RGB")
    if image.mode in ("RGBA", "RGBa", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        below = Image.new("RGBA", image.size, (background,) * 3 + (255,))
        return Image.alpha_composite(below, image).convert("RGB")
    return image.convert("RGB")


def _eight_bits(values: np.ndarray) -> np.ndarray:
    """Grey values as uint8. Integers are 16-bit; floats reach to 1, or to 255 if some exceed 1."""
    if not np.isfinite(values).all():
        raise ValueError("some values are not finite")
    white = 65535
    if np.issubdtype(values.dtype, np.floating):
        white = 1 if values.max(initial=0) <= 1 else 255
    return (values * (255 / white)).clip(0, 255).round().astype(np.uint8)


def load_image(path: str | Path) -> Tensor:
    """A picture file at its own size: float32 [1, 3, H, W] in [-1, 1].

    UserError when it does not exist or cannot be read.
    """
    image = _load(path)
    values = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]  # uint8 [1, 3, H, W]
    return values.contiguous().float().div_(127.5).sub_(1)


def load_mask(path: str | Path, size: tuple[int, int] | None = None) -> Tensor:
    """A mask file: float32 [1, 1, H, W] in [0, 1], white = the region to repaint, clear = not.

    `size` = (H, W) that it must have. UserError when it does not exist, cannot be read or has
    another size.
    """
    image = _load(path, background=0).convert("L")
    if size is not None and image.size != (size[1], size[0]):
        raise UserError(
            f"mask {path} must have the size of the picture, {size[1]} x {size[0]}, "
            f"got {image.size[0]} x {image.size[1]}"
        )
    return torch.from_numpy(np.array(image))[None, None].float().div_(255)


def _load(path: str | Path, background: int = 255) -> Image.Image:
    try:
        with open(path, "rb") as file:
            return decode(file, background=background)
    except BadImageError as error:
        raise UserError(f"{path} cannot be read as a picture: {error}") from None
    except OSError as error:
        raise UserError(f"{path} cannot be opened: {error.strerror or error}") from None


def save_image(image: Tensor, path: str | Path) -> None:
    """Write one picture, [3, H, W] or [1, 3, H, W] in [-1, 1]; the extension says the format."""
    values = image.detach().reshape(image.shape[-3:]).clamp(-1, 1).float().add(1).mul(127.5)
    pixels = values.round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()  # [H, W, 3]
    try:
        Image.fromarray(pixels).save(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be written: {error}") from None
