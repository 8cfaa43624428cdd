"""A change made on a small picture, brought to a large one along the large one's own edges."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

RADIUS = 2  # small pixels from the centre of a window to its border
RIDGE = 1e-3  # least variance of a guide, on a scale from −1 to 1, that is taken for an edge


@dataclass(frozen=True, eq=False)
class Enlarged:
    r"""A painted picture at full size: y(p) = A(p)·g(p) + b(p), a local linear function of a guide
    g that is known at both sizes: the colours of the picture, and the planes of the masks.

    At small size, in each window of (2·RADIUS + 1)² pixels, the A, b that minimise
    Σ |A g + b − y|² + RIDGE·|A|²; A averaged over the windows that a pixel is in; b = y − A g, so
    that nothing of y is lost there. At full size A and b are interpolated bilinearly and meet the
    full guide.

    y is the painting itself, or with `adds` its change of the picture, which is added again.

    Source: He and Sun, Fast guided filter, arXiv 1505.00996; several guides and this b are ours.
    """

    coefficients: Tensor  # [N, 3, G + 1, h, w], the last of them b
    size: tuple[int, int]  # (H, W), full
    adds: bool

    def rows(self, picture: Tensor, planes: Tensor | None, top: int) -> Tensor:
        """Rows [N, 3, rows, W] at full size, in [−1, 1], of the same rows of picture and planes."""
        guide = _joined(picture, planes)
        n, outputs, terms, _, w = self.coefficients.shape
        rows, width = guide.shape[2], self.size[1]
        lines = self._between(top, rows).reshape(1, -1, w)
        mixed = F.interpolate(lines, width, mode="linear").view(n, outputs, terms, rows, width)
        y = mixed[:, :, -1]
        for g in range(terms - 1):
            y = torch.addcmul(y, mixed[:, :, g], guide[:, None, g])
        return (y.add_(picture) if self.adds else y).clamp_(-1, 1)

    def _between(self, top: int, rows: int) -> Tensor:
        """Coefficients at full rows, but small columns: [N, 3, G + 1, rows, w]."""
        c = self.coefficients
        h = c.shape[3]
        at = (torch.arange(top, top + rows, device=c.device) + 0.5) * (h / self.size[0]) - 0.5
        at = at.clamp(0, h - 1)
        low = at.long()
        share = (at - low).to(c.dtype)[:, None]  # [rows, 1]
        return torch.lerp(c[..., low, :], c[..., (low + 1).clamp_max(h - 1), :], share)


def enlarged(
    seen: Tensor, planes: Tensor | None, painted: Tensor, size: tuple[int, int], adds: bool
) -> Enlarged:
    """What brings `painted` [N, 3, h, w] to a size (H, W), from the picture [N, 3, h, w] and the
    planes [N or 1, K, h, w] that the networks saw."""
    # in float64: variances are differences of large numbers
    guide, y = _joined(seen, planes).double(), (painted - seen if adds else painted).double()
    count = guide.shape[1]
    mean_guide, mean_y = _window(guide), _window(y)
    products = lambda a, b: torch.einsum("nahw,nbhw->nabhw", a, b)
    means = lambda a, b: _window(products(a, b).flatten(1, 2)).unflatten(1, (count, -1))
    variance = means(guide, guide) - products(mean_guide, mean_guide)
    variance = variance + RIDGE * torch.eye(count).to(guide)[..., None, None]
    shared = means(guide, y) - products(mean_guide, mean_y)
    first = (0, 3, 4, 1, 2)  # pixels, then matrices
    slope = torch.linalg.solve(variance.permute(first), shared.permute(first))
    slope = _window(slope.permute(0, 4, 3, 1, 2).flatten(1, 2)).unflatten(1, (3, count))
    rest = y - torch.einsum("ncghw,nghw->nchw", slope, guide)
    return Enlarged(torch.cat([slope, rest[:, :, None]], 2).to(painted.dtype), size, adds)


def _joined(picture: Tensor, planes: Tensor | None) -> Tensor:
    """[N, 3 + K, H, W]"""
    if planes is None:
        return picture
    return torch.cat([picture, planes.expand(len(picture), -1, -1, -1)], 1)


def _window(x: Tensor) -> Tensor:
    """Means over windows, cut at the border of the picture."""
    side = 2 * RADIUS + 1
    return F.avg_pool2d(x, side, stride=1, padding=RADIUS, count_include_pad=False)
