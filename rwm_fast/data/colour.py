"""What the numbers of a picture file mean: which way is up, how deep they are, in which colours,
and how clear. The answer is always upright 8-bit sRGB."""

from __future__ import annotations

import functools
import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from rwm_fast.data.deep import Deep, joined, lower_bytes
from rwm_fast.data.profiles import named_in_exif, profile_of

try:
    from PIL import ImageCms
except ImportError:  # Pillow without littlecms: profiles are kept, but not applied
    ImageCms = None  # type: ignore[assignment]

ORIENTATION = 0x0112  # EXIF tag
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_WIDTH, _LENGTH, _BITS, _PHOTOMETRIC = 256, 257, 258, 262  # TIFF tags
_SPACES = {"RGB": "RGB", "L": "GRAY", "CMYK": "CMYK", "LAB": "Lab"}  # by mode, as profiles say it
_SAME = 2  # of 255: a profile that moves no colour by more is sRGB, whatever it is called


@dataclass(frozen=True)
class Pixels:
    """An upright picture in its own colours, as RGB, and what they take to be sRGB."""

    own: Image.Image  # RGB, not laid on anything
    alpha: Image.Image | None  # L
    profile: bytes | None  # of `own`; None = sRGB
    srgb: Image.Image  # RGB, not laid on anything
    deep: Deep | None = None  # 16 bits a channel, where asked for, and `own` is sRGB

    def on(self, background: int) -> Image.Image:
        """sRGB, laid on the grey value `background`."""
        if self.alpha is None:
            return self.srgb
        below = Image.new("RGB", self.srgb.size, (background,) * 3)
        return Image.composite(self.srgb, below, self.alpha)


def upright_size(image: Image.Image) -> tuple[int, int]:
    """(width, height) of the picture once it is upright."""
    tags = getattr(image, "tag_v2", {})  # whether a TIFF's `size` is turned depends on Pillow
    width, height = tags.get(_WIDTH, image.width), tags.get(_LENGTH, image.height)
    return (height, width) if _orientation(image) in (5, 6, 7, 8) else (width, height)


def upright(image: Image.Image) -> Image.Image:
    """The picture loaded and turned, once: Pillow's TIFF reader turns by itself while loading."""
    image.load()
    if image.format == "TIFF":
        return image
    turn = _UPRIGHT.get(_orientation(image))
    return image if turn is None else image.transpose(turn)


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # a damaged tag says nothing about the picture
        return 1


def pixels(image: Image.Image, deep: bool = False) -> Pixels:
    """The colours of an open picture; `deep` asks for all of 16 bits."""
    lower = lower_bytes(image) if deep else None
    profile = profile_of(image)
    tags = dict(getattr(image, "tag_v2", {}))
    image = upright(image)
    profile = named_in_exif(image) if profile is None else profile
    clear = image.info.get("transparency")
    whole = _whole(image, lower, tags) if deep and clear is None else None
    if image.mode.startswith("I") or image.mode == "F":
        values, white = depth(image, tags)
        image = Image.fromarray((values * (255 / white)).clip(0, 255).round().astype(np.uint8))
        if isinstance(clear, int):
            shown = np.where(values == clear, 0, 255).astype(np.uint8)
            image = Image.merge("LA", (image, Image.fromarray(shown)))
    elif image.mode in ("RGBa", "La"):
        image = image.convert(image.mode[:-1] + "A")
    elif clear is not None or image.mode == "PA":
        image = image.convert("RGBA")
    alpha = None
    if image.mode in ("RGBA", "LA"):
        alpha = image.getchannel("A")
        image = image.convert("RGB" if image.mode == "RGBA" else "L")
    elif image.mode not in _SPACES:
        image = image.convert("L" if image.mode == "1" else "RGB")
    space = _space(profile) if profile else None
    if space == "RGB" and image.mode == "L":  # greys of a colour space
        image = image.convert("RGB")
    profile = profile if space == _SPACES[image.mode] else None
    transform = to_srgb(profile, image.mode) if profile else None
    own = srgb = image if image.mode == "RGB" else image.convert("RGB")
    if transform is not None:
        srgb, whole = ImageCms.applyTransform(image, transform) or srgb, None
    if image.mode != "RGB":  # its profile is for grey or for ink, and what is saved is RGB
        own, profile = srgb, srgb_profile() if profile else None
    return Pixels(own, alpha, profile, srgb, whole)


def _whole(image: Image.Image, lower: Image.Image | None, tags: dict[int, Any]) -> Deep | None:
    """All of a loaded picture of 16 bits; None for any other."""
    if lower is not None and image.mode == lower.mode:
        return joined(image, upright(lower))
    if not image.mode.startswith("I"):
        return None
    values, white = depth(image, tags)
    if white != 65535 or values.dtype.kind == "f":
        return None
    return np.repeat(values.astype(np.uint16)[..., None], 3, -1)


def depth(image: Image.Image, tags: dict[int, Any]) -> tuple[np.ndarray, float]:
    """Grey values of a deep picture, and the value that is white.

    Integers are white at the most that their bits hold (a TIFF file may say 12 of 16), numbers of
    32 bits and floats at the least of 1 (floats only), 255, 65535 and their maximum that they do
    not exceed.
    """
    values = np.asarray(image)
    if not np.isfinite(values).all():
        raise ValueError("some values are not finite")
    bits = int((tags.get(_BITS) or (16,))[0])
    top = float(values.max(initial=0))
    whites = [255.0, 65535.0, max(top, 1.0)]
    if image.mode == "F":
        white = next(w for w in (1.0, *whites) if top <= w)
    elif bits > 16:
        white = next(w for w in whites if top <= w)
    else:
        white = float(2**bits - 1)
        # Pillow inverts these itself for 8 bits and fewer
        if tags.get(_PHOTOMETRIC) == 0:
            values = white - values.astype(np.float64)
    return values, white


@functools.lru_cache(maxsize=16)
def to_srgb(profile: bytes, mode: str) -> Any:
    """Pillow's transform from a profile for this mode to sRGB; None where that changes nothing."""
    return _transform(profile, mode, back=False)


@functools.lru_cache(maxsize=16)
def from_srgb(profile: bytes) -> Any:
    """The way back, for RGB."""
    return _transform(profile, "RGB", back=True)


@functools.lru_cache(maxsize=16)
def _space(profile: bytes) -> str | None:
    """The colours that a profile is about; None for a damaged one, which is as good as none."""
    if ImageCms is None:
        return None
    try:
        own = ImageCms.ImageCmsProfile(io.BytesIO(profile)).profile
        return str(own.xcolor_space.strip())
    except Exception:  # whatever the library says of damage
        return None


def _transform(profile: bytes, mode: str, back: bool) -> Any:
    try:
        own = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        ends = (own, ImageCms.createProfile("sRGB"))
        modes = (mode, "RGB")
        forth = ImageCms.buildTransform(*ends, *modes)
        if mode == "RGB" and _is_identity(forth):
            return None
        return ImageCms.buildTransform(*ends[::-1], *modes[::-1]) if back else forth
    except (OSError, ImageCms.PyCMSError):
        return None


def _is_identity(transform: Any) -> bool:
    steps = np.linspace(0, 255, 9).round().astype(np.uint8)
    grid = np.stack(np.meshgrid(steps, steps, steps), -1).reshape(27, 27, 3)
    moved = np.asarray(ImageCms.applyTransform(Image.fromarray(grid), transform))
    return bool(np.abs(moved.astype(int) - grid).max() <= _SAME)


@functools.cache
def srgb_profile() -> bytes | None:
    """The bytes of an sRGB profile, to say so in a file."""
    if ImageCms is None:
        return None
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
