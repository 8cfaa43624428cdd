"""Distances between pictures, whole or within a region. Images are [N, 3, H, W] in [-1, 1]."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

NEAR = 8  # px: "far" leaves out a border of this width, where blending of styles is legitimate


def l1(a: Tensor, b: Tensor) -> float:
    """Mean absolute difference."""
    return (a - b).abs().mean().item()


def psnr(a: Tensor, b: Tensor) -> float:
    """Peak signal-to-noise ratio in dB, mean over images; the range of values is 2."""
    error = (a - b).square().mean(dim=(1, 2, 3)).clamp(min=1e-10)  # [N]
    return (10 * torch.log10(4 / error)).mean().item()


def region_l1(a: Tensor, b: Tensor, mask: Tensor) -> float:
    """Mean absolute difference over the pixels of all images where mask [N, 1, H, W] is 1.

    NaN when the mask is empty.
    """
    area = mask.sum().item() * a.shape[1]
    return ((a - b).abs() * mask).sum().item() / area if area else math.nan


def far_outside(mask: Tensor, distance: int = NEAR) -> Tensor:
    """1 where no pixel of the mask lies within `distance` px (in a square), [N, 1, H, W]."""
    return 1 - F.max_pool2d(mask, 2 * distance + 1, stride=1, padding=distance)


def closer(error: float, nothing: float) -> float:
    """Share of the way to the truth that an edit goes: 1 = there, 0 = doing nothing is as good."""
    return 1 - error / nothing if nothing else math.nan


def style_cosine(a: Tensor, b: Tensor) -> float:
    """Mean cosine between rows of two sets of style codes [N, D]."""
    return F.cosine_similarity(a.float(), b.float(), dim=1).mean().item()


def keep_detail(content: Tensor, edited: Tensor, reconstructed: Tensor) -> Tensor:
    """Detail transfer (ours): content + edited - reconstructed, clamped to [-1, 1].

    What the generator cannot paint cancels, and is carried over from the content reference.
    """
    return (content + edited - reconstructed).clamp(-1, 1)
