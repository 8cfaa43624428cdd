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
        return self.heads(self.features(image))

    def content(self, image: Tensor) -> Tensor:
        """The content code [N, C, h, w] alone."""
        return self._content(self.features(image))

    def style(self, image: Tensor, mask: Tensor | None = None) -> Tensor:
        r"""The style code [N, D] alone; with a mask [N or 1, 1, H, W] in [0, 1], of a part.

        Features f(p) of the style head are averaged with weights m(p): Σ m f / Σ m. m(p) is the
        share of the mask in the window that the head's strides give p. A mask of ones gives the
        code without a mask, bit for bit. Near the mask's border features have seen what lies
        beyond it: convolutions reach further than their windows. ValueError for a mask that
        selects nothing of some picture. (Ours.)
        """
        return self.style_of(self.features(image), mask)

    def heads(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Content and style code of what `features` returned."""
        return self._content(features), self.style_of(features)

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

    def style_of(self, features: Tensor, mask: Tensor | None = None) -> Tensor:
        """`style` of what `features` returned."""
        head = self.style_head(self._continued(features))
        head = head.to(self.parameter_dtype)  # [N, O, h', w']
        if mask is not None:
            head = head * self._weights(features, mask)
        code = self.style_linear(head.mean((2, 3)))
        return unit(code, 1) if self.config.normalize_codes else code

    def _continued(self, x: Tensor) -> Tensor:
        """A picture too small for the halvings, continued by its border pixels."""
        right = max(self.least_code - x.shape[3], 0)
        below = max(self.least_code - x.shape[2], 0)
        return F.pad(x, [0, right, 0, below], mode="replicate") if right or below else x

    def _weights(self, features: Tensor, mask: Tensor) -> Tensor:
        """The mask [N or 1, 1, H, W] at the style head's resolution, of mean 1."""
        stride = self.config.code_stride
        n, _, h, w = features.shape
        sizes = [(count, 1, h * stride, w * stride) for count in (1, n)]
        rule = f"style mask must be {list(sizes[1])}"
        require(tuple(mask.shape) in sizes, "Encoder", rule, mask)
        weights = F.avg_pool2d(mask.to(features.device, self.parameter_dtype), stride)
        weights = self._continued(weights)
        side = 3 if self.config.style_blocks == "valid" else 2
        for _ in self.config.style_channels:
            weights = F.avg_pool2d(weights, side, stride=2)
        mean = weights.mean((2, 3), keepdim=True)
        rule = "style mask must select some of every style picture"
        require(bool((mean > 0).all()), "Encoder", rule, "one that selects nothing")
        return weights / mean
