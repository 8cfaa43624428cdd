"""Small matrix work in plain torch: demodulation, and blending vectors by regions."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Bounds(NamedTuple):
    """Powers of two α, β that keep conv(α·W, β·a·x) in float16: |α·W| ≤ 1/√(I·kh·kw), |β·s| ≤ 1.

    Demodulation divides by what they multiply, once its ε is (α·β)²·ε. So the layer does not depend
    on them, exactly, and they take no gradient. β is one for all styles of an image, which meet at
    the borders of regions.
    """

    weight: Tensor  # α [O, 1, 1, 1]
    styles: Tensor  # β [N, 1, 1]

    def eps(self, eps: float) -> Tensor:
        """(α·β)²·ε [N, O]."""
        return eps * (self.styles[:, 0] * self.weight[:, 0, 0, 0]).square()


def bounds(weight: Tensor, styles: Tensor) -> Bounds:
    """For one layer: weight [O, I, kh, kw], styles [N, K, I]."""
    root = math.ceil(math.log2(weight[0].numel()) / 2)
    return Bounds(
        _power(weight, (1, 2, 3), root).to(styles.dtype), _power(styles, (1, 2)).to(styles.dtype)
    )


def _power(t: Tensor, dims: tuple[int, ...], more: int = 0) -> Tensor:
    """2^−e with |t| < 2^(e − more), in a range that keeps (α·β)² finite; for t = 0 at its end."""
    largest = t.detach().abs().amax(dims, keepdim=True).float()  # a norm takes five times as long
    exponent = torch.frexp(largest.clamp(2.0**-30, 2.0**30)).exponent
    return torch.exp2(-(exponent + more).float())


def demodulation(weight: Tensor, styles: Tensor, eps: float | Tensor) -> Tensor:
    """d_k[o] = rsqrt(Σ_i s_k[i]²·Q[o, i] + ε), Q[o, i] = Σ_uv W[o, i, u, v]², in styles' dtype.

    weight [O, I, kh, kw], styles [N, K, I], ε a number or [N, O]; returns [N, K, O].
    """
    q = weight.to(styles.dtype).square().sum((2, 3)).t()  # [I, O]
    # one product a style: a layer with one style and one with several round alike
    return torch.stack([(s.square() @ q + eps).rsqrt() for s in styles.unbind(1)], 1)


def demodulation_backward(
    dd: Tensor,  # [N, K, O]
    d: Tensor,  # [N, K, O]
    weight: Tensor,  # [O, I, kh, kw]
    styles: Tensor,  # [N, K, I]
) -> tuple[Tensor, Tensor]:
    """ds_k = 2 s_k·(dq_k Q), and scale = Σ_nk dq_k s_k² with dW = 2 W·scale; dq = −½ d³ dd."""
    dq = -0.5 * d.pow(3) * dd
    ds = 2 * styles * (dq @ weight.to(styles.dtype).square().sum((2, 3)))
    return ds, dq.flatten(0, 1).t() @ styles.square().flatten(0, 1)  # [O, I]


def with_demodulation(dw: Tensor, weight: Tensor, scale: Tensor | None) -> Tensor:
    """dW + 2 W·scale, in scale's dtype."""
    return dw if scale is None else 2 * weight.to(scale.dtype) * scale[:, :, None, None] + dw


def blend(vectors: Tensor, regions: Tensor | None) -> Tensor:
    """Σ_k r_k(p)·v_k: vectors [N, K, C], regions [N, K, H, W] → [N, C, H, W].

    Without regions (K = 1): [N, C, 1, 1].
    """
    if regions is None:
        return vectors[:, 0, :, None, None]
    r = regions.to(vectors.dtype).flatten(2).transpose(1, 2)  # [N, HW, K]
    return torch.bmm(r, vectors).transpose(1, 2).unflatten(2, regions.shape[2:])


def blend_backward_vectors(dmap: Tensor, regions: Tensor | None) -> Tensor:
    """dv_k = Σ_p r_k(p)·dmap(p): [N, C, H, W] → [N, K, C]."""
    if regions is None:
        return dmap.sum((2, 3))[:, None]
    r = regions.to(dmap.dtype).flatten(2)  # [N, K, HW]
    return torch.bmm(r, dmap.flatten(2).transpose(1, 2))


def blend_backward_regions(dmap: Tensor, vectors: Tensor) -> Tensor:
    """dr_k(p) = Σ_c v_k[c]·dmap(p): [N, C, H, W] → [N, K, H, W]."""
    return torch.bmm(vectors, dmap.flatten(2)).unflatten(2, dmap.shape[2:])
