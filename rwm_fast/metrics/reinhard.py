"""Reinhard colour transfer: the baseline that a learned swap has to beat."""

import torch
from torch import Tensor


def transfer_colors(content: Tensor, style: Tensor) -> Tensor:
    """`content` with the mean and standard deviation of each colour channel of `style`.

    y = (x - mean(x)) / (std(x) + 1e-3) * std(s) + mean(s), per image and channel, clamped to
    [-1, 1]. It works in RGB: on the landscapes that scores better than the decorrelated colour
    space of the source.

    content, style: images [N, 3, H, W] in [-1, 1]. Returns [N, 3, H, W].

    Source: Reinhard et al., "Color transfer between images", IEEE CG&A 2001.
    """
    std, mean = torch.std_mean(content, dim=(2, 3), keepdim=True)  # [N, 3, 1, 1] each
    style_std, style_mean = torch.std_mean(style, dim=(2, 3), keepdim=True)
    return ((content - mean) / (std + 1e-3) * style_std + style_mean).clamp(-1, 1)
