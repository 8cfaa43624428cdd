"""Small matrix work in plain torch: demodulation, and blending vectors by regions."""

from __future__ import annotations

import torch
from torch import Tensor


def demodulation(weight: Tensor, styles: Tensor, eps: float) -> Tensor:
    """d_k[o] = rsqrt(Σ_i s_k[i]²·Q[o, i] + ε), Q[o, i] = Σ_uv W[o, i, u, v]², in styles' dtype.

    weight [O, I, kh, kw], styles [N, K, I]; returns [N, K, O].
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
