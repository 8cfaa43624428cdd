"""The generator: paints a content code with one style, or with several through regions."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rwm_fast.config import ModelConfig
from rwm_fast.models.network import Network, fold, require, unit
from rwm_fast.nn.blocks import SpatialCodeModulation, StyleBlock
from rwm_fast.nn.layers import SQRT_HALF, EqualConv2d, ToRGB

Noise = str | Sequence[Tensor]


class Generator(Network):
    r"""I = G(C, S), and the hybrid I = G(C; S₁ … S_K, regions).

    content [N, C, h, w]; style [N, D], or [N, K, D] with `regions` [N, K, H, W], non-negative and
    adding up to 1 over K (H = h·`config.code_stride`) → image [N, 3, H, W], float32, about [−1, 1].

    Regions act at every styled layer, area-averaged to its resolution; a mask M with 1 = style B is
    the two regions (1 − M, M). A region that covers everything gives exactly the one-style image.

    `noise` is "random" (fresh maps, from `generator` if given), "none", or a list of maps as
    `make_noise` draws it: the same list in two calls shares the noise between them.

    Source: the Swapping Autoencoder's generator (base code); hybrid: You et al., ACM MM 2021.
    """

    def __init__(self, config: ModelConfig, dtype: torch.dtype | None = None) -> None:
        super().__init__(config, dtype)
        channels, style_dim = config.content_channels, config.style_dim
        plain = partial(
            StyleBlock,
            style_dim=style_dim,
            demodulation=config.demodulation,
            noise=config.noise,
        )
        doubling = partial(
            plain,
            up=2,
            resample_filter=config.generator_filter,
            skip_activation=config.skip_activation,
        )
        if config.code_modulation:
            self.code_modulation = SpatialCodeModulation(channels, style_dim)
        widths = [channels * config.content_fold**2, *config.head_channels]
        self.head = nn.ModuleList(plain(i, o) for i, o in pairwise(widths))
        widths = [widths[-1], *config.up_channels]
        self.up = nn.ModuleList(doubling(i, o) for i, o in pairwise(widths))
        self.joins_after = int(math.log2(config.content_fold))  # doublings, 0 = no join
        if self.joins_after:
            self.join = EqualConv2d(channels, config.up_channels[self.joins_after - 1], 3)
        widths = [widths[-1], *config.tail_channels]
        self.tail = nn.ModuleList(plain(i, o) for i, o in pairwise(widths))
        self.to_rgb = ToRGB(widths[-1], 3 * config.fold**2, config.rgb_kernel, style_dim)

    def forward(
        self,
        content: Tensor,
        style: Tensor,
        regions: Tensor | None = None,
        noise: Noise = "random",
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Image [N, 3, H, W]; see the class for the arguments."""
        self._check(content, style, regions)
        maps = self._noise_pairs(content, noise, generator)
        levels = RegionLevels(regions, self.parameter_dtype)
        content, style = self._scale(content, style)
        code = self.enter(content)
        if self.config.code_modulation:
            code = self.enter(self.code_modulation(code, style, levels.like(code)))
        x = fold(code, self.config.content_fold)
        for block in self.head:
            x = block(x, style, levels.like(x), next(maps))
        for i, block in enumerate(self.up, start=1):
            x = block(x, style, levels.like(x, up=2), next(maps))
            if i == self.joins_after:
                x = torch.add(x, self.join(code)) * SQRT_HALF
        for block in self.tail:
            x = block(x, style, levels.like(x), next(maps))
        return self.leave(F.pixel_shuffle(self.to_rgb(x, style, levels.like(x)), self.config.fold))

    def noise_shapes(self, content: Tensor) -> list[tuple[int, int, int, int]]:
        """Shapes [N, 1, H, W] of the noise maps for a content code, in the order of the layers."""
        if not self.config.noise:
            return []
        n, _, h, w = content.shape
        h, w = h // self.config.content_fold, w // self.config.content_fold
        shapes = [(n, 1, h, w)] * (2 * len(self.head))
        for i in range(1, len(self.up) + 1):
            shapes += [(n, 1, h * 2**i, w * 2**i)] * 2
        return shapes + [shapes[-1]] * (2 * len(self.tail))

    def make_noise(self, content: Tensor, generator: torch.Generator | None = None) -> list[Tensor]:
        """Noise maps ~ N(0, 1) for a content code; an empty list for a model without noise.

        Drawn on the device of `generator`, if given, so that a CPU generator gives every device
        the same maps.
        """
        drawn_on = content.device if generator is None else generator.device
        draw = partial(
            torch.randn, generator=generator, device=drawn_on, dtype=self.parameter_dtype
        )
        return [draw(shape).to(content.device) for shape in self.noise_shapes(content)]

    def _noise_pairs(
        self, content: Tensor, noise: Noise, generator: torch.Generator | None
    ) -> Iterator[tuple[Tensor | None, Tensor | None]]:
        """An iterator over one pair of maps (or Nones) per block."""
        shapes = self.noise_shapes(content)
        if isinstance(noise, str):
            require(noise in ("random", "none"), "Generator", "noise must be random or none", noise)
            noise = self.make_noise(content, generator) if noise == "random" else []
        else:
            got = [tuple(m.shape) for m in noise]
            require(
                got == shapes, "Generator", lambda: f"noise maps must be of shapes {shapes}", got
            )
        blocks = len(self.head) + len(self.up) + len(self.tail)
        maps: Sequence[Tensor | None] = noise or [None] * (2 * blocks)
        return iter(list(zip(maps[::2], maps[1::2], strict=True)))

    def _scale(self, content: Tensor, style: Tensor) -> tuple[Tensor, Tensor]:
        """Codes as the first layers take them: unit length again, unit rms if asked."""
        config, dtype = self.config, self.parameter_dtype
        content, style = content.to(dtype), style.to(dtype)
        if config.normalize_codes:  # mixed styles are not of unit length
            content, style = unit(content, 1), unit(style, -1)
        if config.unit_rms_codes:
            content = content * math.sqrt(config.content_channels)
            style = style * math.sqrt(config.style_dim)
        return content, style

    def _check(self, content: Tensor, style: Tensor, regions: Tensor | None) -> None:
        config, name = self.config, "Generator"
        channels, multiple = config.content_channels, config.content_fold
        fits = content.ndim == 4 and content.shape[1] == channels
        fits = fits and content.shape[2] % multiple == 0 and content.shape[3] % multiple == 0
        rule = f"content must be [N, {channels}, h, w] with h and w multiples of {multiple}"
        require(fits, name, rule, content)
        n, _, h, w = content.shape
        if regions is None:
            text = lambda: f"style must be [{n}, {config.style_dim}] without regions"
            require(tuple(style.shape) == (n, config.style_dim), name, text, style)
            return
        fits = style.ndim == 3 and (style.shape[0], style.shape[2]) == (n, config.style_dim)
        text = lambda: f"style must be [{n}, K, {config.style_dim}] with regions"
        require(fits, name, text, style)
        size = (n, style.shape[1], h * config.code_stride, w * config.code_stride)
        text = lambda: f"regions must be {list(size)}"
        require(tuple(regions.shape) == size, name, text, regions)


class RegionLevels:
    """Regions [N, K, H, W] area-averaged to the resolutions that layers ask for, each made once."""

    def __init__(self, regions: Tensor | None, dtype: torch.dtype) -> None:
        self.regions = None if regions is None else regions.to(dtype)
        self.made: list[Tensor] = []

    def like(self, x: Tensor, up: int = 1) -> Tensor | None:
        """The regions at `up` times the resolution of x, or None if there are none."""
        if self.regions is None:
            return None
        height = x.shape[2] * up
        for made in self.made:  # a traced height cannot be a key
            if made.shape[2] == height:
                return made
        factor = self.regions.shape[2] // height
        made = F.avg_pool2d(self.regions, factor) if factor > 1 else self.regions
        self.made.append(made)
        return made
