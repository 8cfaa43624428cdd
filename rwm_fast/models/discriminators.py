"""The image discriminator and the patch discriminator (patch co-occurrence)."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from rwm_fast.config import ModelConfig
from rwm_fast.models.network import Network, fold, require
from rwm_fast.nn.blocks import ResidualBlock, halvings
from rwm_fast.nn.layers import EqualConv2d, EqualLinear


class ImageDiscriminator(Network):
    """D(I): is this a real picture? image [N, 3, S, S], S = `config.image_size` → logits [N].

    Residual halvings down to 4 px or so, one convolution, two linear layers; no minibatch
    statistics. Source: the Swapping Autoencoder's image discriminator (base code).
    """

    def __init__(self, config: ModelConfig, dtype: torch.dtype | None = None) -> None:
        super().__init__(config, dtype)
        widths, taps = config.discriminator_channels, config.discriminator_filter
        kernel, top, hidden = config.input_kernel, widths[-1], config.discriminator_hidden
        self.from_image = EqualConv2d(3 * config.fold**2, widths[0], kernel, activation="lrelu")
        self.trunk = halvings(widths, taps)
        self.last = EqualConv2d(top, top, 3, activation="lrelu")
        side = config.image_size // config.fold >> (len(widths) - 1)
        self.hidden = EqualLinear(top * side * side, hidden, activation="lrelu")
        self.logit = EqualLinear(hidden, 1)

    def forward(self, image: Tensor) -> Tensor:
        """Logits [N]; larger = more real."""
        size = self.config.image_size
        fits = image.ndim == 4 and tuple(image.shape[1:]) == (3, size, size)
        require(fits, "ImageDiscriminator", f"image must be [N, 3, {size}, {size}]", image)
        x = self.from_image(fold(self.enter(image), self.config.fold))
        x = self.last(self.trunk(x)).flatten(1)  # [N, top·side²]
        return self.leave(self.logit(self.hidden(x))).squeeze(1)


class PatchDiscriminator(Network):
    """P(reference, target): do these patches come from one texture?

    `features` maps patches [N, P, 3, s, s], s = `config.patch_size`, to [N, P, F]; the call judges
    target features [N, P, F] against reference features [N, R, F] of the same images: logits
    [N, P]. With `patch_aggregate` the reference is the mean over R; else R = P and patch p is
    judged against reference p. Source: the Swapping Autoencoder's patch discriminator (base code).
    """

    def __init__(self, config: ModelConfig, dtype: torch.dtype | None = None) -> None:
        super().__init__(config, dtype)
        widths, taps = config.patch_channels, config.discriminator_filter
        top = widths[-1]
        self.from_image = EqualConv2d(3, widths[0], 3, activation="lrelu")
        self.trunk = halvings(widths, taps)
        if config.patch_wide_channels:
            self.trunk.append(ResidualBlock(top, config.patch_wide_channels, taps, down=1))
            top = config.patch_wide_channels
        channels = config.patch_feature_channels
        self.last = EqualConv2d(top, channels, 3, padding="none", activation="lrelu")
        side = (config.patch_size >> (len(widths) - 1)) - 2
        self.feature_size = channels * side * side  # F
        sizes = [2 * self.feature_size, *config.patch_hidden]
        layers = (EqualLinear(i, o, activation="lrelu") for i, o in pairwise(sizes))
        self.hidden = nn.Sequential(*layers)
        self.logit = EqualLinear(sizes[-1], 1)

    def features(self, patches: Tensor) -> Tensor:  # [N, P, 3, s, s] -> [N, P, F]
        """Features of every patch, in the compute dtype."""
        size = self.config.patch_size
        fits = patches.ndim == 5 and tuple(patches.shape[2:]) == (3, size, size)
        require(fits, "PatchDiscriminator", f"patches must be [N, P, 3, {size}, {size}]", patches)
        images = self.enter(patches.flatten(0, 1))  # [N·P, 3, s, s]
        x: Tensor = self.last(self.trunk(self.from_image(images)))  # [N·P, channels, side, side]
        return x.reshape(*patches.shape[:2], self.feature_size)

    def forward(self, reference: Tensor, target: Tensor) -> Tensor:
        """Logits [N, P] for reference features [N, R, F] and target features [N, P, F]."""
        fits = reference.ndim == target.ndim == 3 and reference.shape[0] == target.shape[0]
        fits = fits and reference.shape[2] == target.shape[2] == self.feature_size
        fits = fits and (self.config.patch_aggregate or reference.shape == target.shape)
        rule = f"reference and target must be [N, P, {self.feature_size}] of the same images"
        require(fits, "PatchDiscriminator", rule, [list(reference.shape), list(target.shape)])
        if self.config.patch_aggregate:
            reference = reference.mean(1, keepdim=True).expand_as(target)
        pair = torch.cat([reference, target], 2)  # [N, P, 2F]
        return self.leave(self.logit(self.hidden(pair))).squeeze(2)
