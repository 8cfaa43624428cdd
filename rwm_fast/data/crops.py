"""From a picture of any size to a square training crop.

As in the Swapping Autoencoder, a picture is scaled until its short side has `resize` pixels and a
square is cut out at random. Here both are one resampling of a window of the picture, so a panorama
is never blown up whole.
"""

import math

import numpy as np
from PIL import Image

from rwm_fast.config import DataConfig

_GAP = 3.0  # Pillow: shrink by whole factors first, down to this many times the size asked for


def working_size(size: tuple[int, int], config: DataConfig) -> tuple[int, int]:
    """(width, height) that holds all a crop can show; never more than the picture has."""
    largest = math.ceil(config.resize * config.zoom[1])
    if config.resize_mode == "square":
        return min(size[0], largest), min(size[1], largest)
    scale = min(1.0, largest / min(size))
    width, height = (max(1, round(side * scale)) for side in size)
    return width, height


def working_copy(image: Image.Image, config: DataConfig) -> Image.Image:
    """The picture at its working size."""
    size = working_size(image.size, config)
    if size == image.size:
        return image
    return image.resize(size, Image.Resampling.BICUBIC, reducing_gap=_GAP)


def crop(
    image: Image.Image,
    size: int,
    config: DataConfig,
    across: float,
    down: float,
    zoom: float = 0.0,
    flip: float = 0.0,
) -> np.ndarray:
    """A square crop, uint8 [size, size, 3], bicubic with antialiasing.

    Four numbers in [0, 1] choose it: where the window lies across and down (0.5 = centred), how
    much the picture is enlarged within `config.zoom`, and whether it is mirrored (from 0.5 on, if
    `config.flip`). Without enlargement the window lies on whole pixels.
    """
    scaled = config.resize * (config.zoom[0] + zoom * (config.zoom[1] - config.zoom[0]))  # px
    sides = image.size if config.resize_mode == "square" else (min(image.size),) * 2
    width, height = (side * size / scaled for side in sides)
    left, top = across * (image.width - width), down * (image.height - height)
    if (width, height) == (size, size):
        left, top = round(left), round(top)
        window = image.crop((left, top, left + size, top + size))
    else:
        box = (left, top, min(left + width, image.width), min(top + height, image.height))
        window = image.resize((size, size), Image.Resampling.BICUBIC, box, reducing_gap=_GAP)
    values = np.array(window)
    return values[:, ::-1] if config.flip and flip >= 0.5 else values
