"""The encoder: an image becomes a content code, which keeps its layout, and a style code."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rwm_fast.config import ModelConfig
from rwm_fast.models.network import Network, fold, require, unit
from rwm_fast.nn.blocks import ResidualBlock, halvings
from rwm_fast.nn.layers import EqualConv2d, EqualLinear


class Encoder(Network):
    r"""E(I) = (C, S).

    image [N, 3, H, W] in [−1, 1], H and W multiples of `config.stride` → content code
    [N, C, h, w] with h = H/`config.code_stride`, of unit length per pixel, and style code [N, D] of
    unit length (both raw with `normalize_codes=False`). Results are float32.

    The trunk halves the image down to the code's resolution. The content head is a hidden and a
    linear convolution; the style head halves further, averages over the image and ends in a linear
    layer. Source: the Swapping Autoencoder's encoder (base code).
    """

    def __init__(self, config: ModelConfig, dtype: torch.dtype | None = None) -> None:
        super().__init__(config, dtype)
        widths, padding = config.encoder_channels, config.encoder_padding
        top, taps = widths[-1], config.encoder_filter
        self.from_image = EqualConv2d(
            3 * config.fold**2, widths[0], config.input_kernel, padding=padding, activation="lrelu"
        )
        self.trunk = halvings(widths, taps, padding)
        self.content_head = nn.Sequential(
            EqualConv2d(top, top, config.content_kernel, padding=padding, activation="lrelu"),
            EqualConv2d(top, config.content_channels, 1),
        )
        if config.style_blocks == "valid":
            halve: Callable[[int, int], nn.Module] = partial(
                EqualConv2d, kernel_size=3, down=2, padding="none", activation="lrelu"
            )
            self.least_code = 2 ** (len(config.style_channels) + 1) - 1
        else:
            halve = partial(ResidualBlock, resample_filter=taps, padding=padding)
            self.least_code = 2 ** len(config.style_channels)
        pairs = pairwise((top, *config.style_channels))
        self.style_head = nn.Sequential(*(halve(i, o) for i, o in pairs))
        self.style_linear = EqualLinear(config.style_channels[-1], config.style_dim)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Content code [N, C, h, w] and style code [N, D] of image [N, 3, H, W]."""
        features = self.features(image)
        return self._content(features), self._style(features)

    def content(self, image: Tensor) -> Tensor:
        """The content code [N, C, h, w] alone."""
        return self._content(self.features(image))

    def style(self, image: Tensor) -> Tensor:
        """The style code [N, D] alone."""
        return self._style(self.features(image))

    def features(self, image: Tensor) -> Tensor:  # [N, 3, H, W] -> [N, widths[-1], h, w]
        """What both heads read."""
        stride = self.config.stride
        fits = image.ndim == 4 and image.shape[1] == 3
        fits = fits and image.shape[2] % stride == 0 and image.shape[3] % stride == 0
        rule = f"image must be [N, 3, H, W] with H and W multiples of {stride}"
        require(fits, "Encoder", rule, image)
        features: Tensor = self.trunk(self.from_image(fold(self.enter(image), self.config.fold)))
        return features

    def _content(self, features: Tensor) -> Tensor:
        code = self.leave(self.content_head(features))
        return unit(code, 1) if self.config.normalize_codes else code

    def _style(self, features: Tensor) -> Tensor:
        # a picture too small for the halvings is continued by its border pixels
        right = max(self.least_code - features.shape[3], 0)
        below = max(self.least_code - features.shape[2], 0)
        if right or below:
            features = F.pad(features, [0, right, 0, below], mode="replicate")
        pooled = self.style_head(features).mean((2, 3), dtype=self.parameter_dtype)  # [N, O]
        code = self.style_linear(pooled)
        return unit(code, 1) if self.config.normalize_codes else code
