"""Distances between pictures, whole or within a region. Images are [N, 3, H, W] in [-1, 1]."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

# red, green, blue, brightness, and the two differences: directions of colour space, made unit
_DIRECTIONS = ((1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 1), (1, -1, 0), (1, 1, -2))
_LEVELS = 64  # quantiles that two distributions are compared at
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


def colour_distance(a: Tensor, b: Tensor, mask: Tensor) -> float:
    """How far the colours of a where mask [N, 1, H, W] is at least 1/2 are from those of all of b:
    the sliced Wasserstein distance, mean over images and six directions of colour space. Images
    whose mask is empty are left out; NaN when all are.
    """
    directions = F.normalize(torch.tensor(_DIRECTIONS, dtype=a.dtype), dim=1)  # [6, 3]
    levels = (torch.arange(_LEVELS, dtype=a.dtype) + 0.5) / _LEVELS

    def quantiles(pixels: Tensor) -> Tensor:  # [3, P] -> [6, levels]
        values = (directions @ pixels).sort(dim=1).values
        return values[:, (levels * values.shape[1]).long()]

    inside = mask[:, 0] >= 0.5  # [N, H, W]
    apart = [
        (quantiles(x[:, region]) - quantiles(y.flatten(1))).abs().mean()
        for x, y, region in zip(a, b, inside, strict=True)
        if region.any()
    ]
    return torch.stack(apart).mean().item() if apart else math.nan


def structure_cosine(a: Tensor, b: Tensor, mask: Tensor) -> float:
    """Cosine between the gradients of brightness of a and b, differences of neighbours that both
    lie in the mask, over all images: 1 = the same edges, however strong. NaN without any."""
    inside = (mask >= 0.5).to(a.dtype)

    def gradients(image: Tensor) -> Tensor:
        grey = image.mean(1, keepdim=True)
        pair = lambda k, n: inside.narrow(k, 0, n) * inside.narrow(k, 1, n)
        both = (grey.diff(dim=k) * pair(k, inside.shape[k] - 1) for k in (2, 3))
        return torch.cat([part.flatten() for part in both])

    x, y = gradients(a), gradients(b)
    size = (x.norm() * y.norm()).item()
    return (x @ y).item() / size if size else math.nan


def keep_detail(content: Tensor, edited: Tensor, reconstructed: Tensor) -> Tensor:
    """Detail transfer (ours): content + edited - reconstructed, clamped to [-1, 1].

    What the generator cannot paint cancels, and is carried over from the content reference.
    """
    return (content + edited - reconstructed).clamp(-1, 1)
