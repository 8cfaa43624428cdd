"""Networks on pictures of any size in the memory of a tile: crops that overlap as far as the
networks see, so that what is kept of each is what the whole picture gives."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from rwm_fast.config import ModelConfig
from rwm_fast.models.encoder import Encoder
from rwm_fast.models.generator import Generator

_FAST = torch.channels_last


class Tile(NamedTuple):
    """Pixels [top, bottom) × [left, right) to keep, and the crop around them to work on."""

    kept: tuple[int, int, int, int]  # top, bottom, left, right
    crop: tuple[int, int, int, int]

    def of(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """The crop of x [N, C, h, w], a map at any resolution of a picture of size (H, W)."""
        top, bottom, left, right = _scaled(self.crop, x, size)
        return x[:, :, top:bottom, left:right]

    def keep(self, result: Tensor, crop: Tensor, size: tuple[int, int]) -> None:
        """Writes what is kept of a worked crop into `result` [N, C, h, w]."""
        top, bottom, left, right = _scaled(self.kept, result, size)
        above, _, before, _ = _scaled(self.crop, result, size)
        inside = crop[:, :, top - above : bottom - above, left - before : right - before]
        result[:, :, top:bottom, left:right] = inside


def tiles(size: tuple[int, int], side: int, reach: int, stride: int) -> Iterator[Tile]:
    """Tiles of `side` pixels that cover a picture of size (H, W), itself multiples of the stride;
    side and reach are rounded up to such."""
    side, reach = (-(-length // stride) * stride for length in (side, reach))
    rows, columns = (
        [
            ((at, min(at + side, length)), (max(0, at - reach), min(at + side + reach, length)))
            for at in range(0, length, side)
        ]
        for length in size
    )
    for kept_rows, crop_rows in rows:
        for kept_columns, crop_columns in columns:
            yield Tile((*kept_rows, *kept_columns), (*crop_rows, *crop_columns))


def tiled_features(encoder: Encoder, image: Tensor, side: int) -> Tensor:
    """`encoder.features(image)`, made tile by tile."""
    config = encoder.config
    size = (image.shape[2], image.shape[3])
    h, w = (length // config.code_stride for length in size)
    result: Tensor | None = None
    for tile in tiles(size, side, encoder_reach(config), config.stride):
        features = encoder.features(tile.of(image, size))
        if result is None:
            shape = (*features.shape[:2], h, w)
            result = torch.empty(
                shape, dtype=features.dtype, device=features.device, memory_format=_FAST
            )
        tile.keep(result, features, size)
    assert result is not None  # a picture has pixels
    return result


def tiled_painting(
    generator: Generator,
    content: Tensor,
    style: Tensor,
    regions: Tensor | None,
    noise: Sequence[Tensor] | str,
    side: int,
) -> Tensor:
    """`generator(content, style, regions, noise)`, painted tile by tile; noise is maps or "none".

    The codes, maps and the picture are held whole, layers of a tile alone.
    """
    config = generator.config
    n, _, h, w = content.shape
    size = (h * config.code_stride, w * config.code_stride)
    result = content.new_empty(n, 3, *size, dtype=generator.parameter_dtype)
    for tile in tiles(size, side, generator_reach(config), config.stride):
        maps = noise if isinstance(noise, str) else [tile.of(m, size) for m in noise]
        within = None if regions is None else tile.of(regions, size)
        painted = generator(tile.of(content, size), style, within, maps)
        tile.keep(result, painted, size)
    return result


def encoder_reach(config: ModelConfig) -> int:
    """Pixels beyond its own that a pixel of the features may see, at most."""
    reach = config.fold * (config.input_kernel // 2)
    for i in range(len(config.encoder_channels) - 1):
        # 3×3, then the filter with 3×3
        reach += (config.fold << i) * (1 + len(config.encoder_filter) // 2 + 2)
    return reach


def generator_reach(config: ModelConfig) -> int:
    """Pixels beyond its own that a pixel of the picture may see of code, regions and noise."""
    scale = config.stride  # image pixels per pixel of the layer
    reach = 2 * len(config.head_channels) * scale
    for _ in config.up_channels:
        # 3×3 or bilinear on what is doubled; the filter and 3×3 on the result
        reach += scale + scale // 2 * (len(config.generator_filter) // 2 + 2)
        scale //= 2
    reach += config.code_stride if config.content_fold > 1 else 0  # the join
    reach += 2 * len(config.tail_channels) * scale
    return reach + scale * (config.rgb_kernel // 2)


def _scaled(
    box: tuple[int, int, int, int], x: Tensor, size: tuple[int, int]
) -> tuple[int, int, int, int]:
    """Bounds in pixels of a picture as bounds in those of a map x of it."""
    top, bottom, left, right = box
    h, w = x.shape[2:]
    return top * h // size[0], bottom * h // size[0], left * w // size[1], right * w // size[1]
