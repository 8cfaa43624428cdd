"""Blocks: the residual pair of encoder and discriminators, the styled pair of the generator."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rwm_fast.nn.layers import SQRT_HALF, EqualConv2d, EqualLinear, ModulatedConv2d


class ResidualBlock(nn.Module):
    r"""(act(conv₂(act(conv₁ x))) + skip x)/√2, with conv₂ and the skip halving the size.

    conv₁ keeps the width; the skip is a 1×1 convolution without bias or activation, zero-padded
    whatever the main path does. `down=1` keeps the size.
    x [N, I, H, W] → [N, O, ⌊H/down⌋, ⌊W/down⌋]. Source: StyleGAN2's residual discriminator.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        resample_filter: Sequence[float],
        *,
        down: int = 2,
        padding: str = "zeros",
    ) -> None:
        super().__init__()
        conv = partial(EqualConv2d, kernel_size=3, activation="lrelu", padding=padding)
        taps = resample_filter if down > 1 else None
        self.conv1 = conv(in_channels, in_channels)
        # gain 1 = the activation's √2 times the sum's 1/√2
        self.conv2 = conv(
            in_channels, out_channels, activation_gain=1.0, down=down, resample_filter=taps
        )
        self.skip = EqualConv2d(
            in_channels, out_channels, 1, bias=False, down=down, resample_filter=taps
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.add(self.conv2(self.conv1(x)), self.skip(x), alpha=SQRT_HALF)


def halvings(widths: Sequence[int], taps: Sequence[float], padding: str = "zeros") -> nn.Sequential:
    """Residual blocks from each width to the next, halving the size."""
    return nn.Sequential(*(ResidualBlock(i, o, taps, padding=padding) for i, o in pairwise(widths)))


class StyleBlock(nn.Module):
    r"""(styled₂(styled₁ x) + skip x)/√2; with `up=2`, styled₁ and the skip double the size.

    The skip is the identity where the width stays, else a 1×1 convolution: linear without bias, or
    with bias and activation if `skip_activation`; it is doubled bilinearly.
    x [N, I, H, W] → [N, O, H·up, W·up]. `regions` and `noise` (one map per styled layer) are at the
    output resolution of their layer; `regions_in` at that of x.
    Source: the Swapping Autoencoder's generator (base code).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        style_dim: int,
        *,
        up: int = 1,
        resample_filter: Sequence[float] | None = None,
        demodulation: str = "style",
        noise: bool = False,
        skip_activation: bool = False,
    ) -> None:
        super().__init__()
        self.up = up
        styled = partial(
            ModulatedConv2d,
            kernel_size=3,
            style_dim=style_dim,
            demodulation=demodulation,
            noise=noise,
        )
        self.conv1 = styled(in_channels, out_channels, up=up, resample_filter=resample_filter)
        # gain 1 = the activation's √2 times the sum's 1/√2
        self.conv2 = styled(out_channels, out_channels, gain=1.0)
        self.skip = None
        if in_channels != out_channels:
            kind = "lrelu" if skip_activation else "linear"
            self.skip = EqualConv2d(
                in_channels, out_channels, 1, bias=skip_activation, activation=kind
            )

    def forward(
        self,
        x: Tensor,
        style: Tensor,
        regions: Tensor | None = None,
        noise: Sequence[Tensor | None] = (None, None),
    ) -> Tensor:
        skip = x if self.skip is None else self.skip(x)
        if self.up > 1:
            skip = F.interpolate(skip, scale_factor=2.0, mode="bilinear", align_corners=False)
        y = self.conv1(x, style, regions, noise[0])
        return torch.add(self.conv2(y, style, regions, noise[1]), skip, alpha=SQRT_HALF)


class SpatialCodeModulation(nn.Module):
    r"""y = x ⊙ (A₁·style + b₁) + (A₂·style + b₂), the first thing the generator does to the code.

    x [N, C, H, W]; style [N, D], or [N, K, D] with `regions` [N, K, H, W]: then scale and shift
    are the region-weighted sums of the styles' own. Biases start at 0. Source: base code.
    """

    def __init__(self, channels: int, style_dim: int) -> None:
        super().__init__()
        self.scale = EqualLinear(style_dim, channels)
        self.shift = EqualLinear(style_dim, channels)

    def forward(self, x: Tensor, style: Tensor, regions: Tensor | None = None) -> Tensor:
        scale, shift = self.scale(style).to(x.dtype), self.shift(style).to(x.dtype)
        if regions is None:
            return torch.addcmul(shift[:, :, None, None], x, scale[:, :, None, None])
        blend = lambda s: torch.einsum("nkc,nkhw->nchw", s, regions.to(x.dtype))
        return torch.addcmul(blend(shift), x, blend(scale))
