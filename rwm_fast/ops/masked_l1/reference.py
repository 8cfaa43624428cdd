"""The truth for masked_l1, in plain torch, and the raw functions of the reference backend."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rwm_fast.ops._check import accumulator


def supports(tensors: Sequence[Tensor | None], **facts: object) -> str | None:
    """Any device, any dtype, any layout."""
    return None


def masked_l1(hybrid: Tensor, inside: Tensor, outside: Tensor, mask: Tensor) -> Tensor:
    """L = mean(|m|·|h − g| + |1 − m|·|h − a|); differentiable by torch to any order."""
    h, g, a, m = (t.to(accumulator(hybrid.dtype)) for t in (hybrid, inside, outside, mask))
    return (m.abs() * (h - g).abs() + (1 - m).abs() * (h - a).abs()).mean()


def forward(
    hybrid: Tensor, inside: Tensor, outside: Tensor, mask: Tensor, save: bool
) -> tuple[Tensor, Tensor]:
    """The loss and, if asked, the signs of h − g and h − a, a byte an element (`encode`)."""
    loss = masked_l1(hybrid, inside, outside, mask)
    if not save:
        return loss, hybrid.new_empty(0, dtype=torch.uint8)
    return loss, encode((hybrid - inside).sign(), (hybrid - outside).sign())


def encode(sign_inside: Tensor, sign_outside: Tensor) -> Tensor:
    """One byte an element: bits 0–1 hold sign(h − g) + 1, bits 2–3 hold sign(h − a) + 1."""
    return (sign_inside + 1).to(torch.uint8) | ((sign_outside + 1).to(torch.uint8) << 2)


def decode(signs: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The two signs, −1, 0 or 1, in the dtype asked for."""
    return (signs & 3).to(dtype) - 1, (signs >> 2).to(dtype) - 1


def backward(
    dloss: Tensor, signs: Tensor, mask: Tensor, dtype: torch.dtype, needs: Sequence[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """dh = c(|m|s₁ + |1−m|s₂), dg = −c|m|s₁, da = −c|1−m|s₂, c = dL/|I|; empty if not needed."""
    m = mask.to(dloss.dtype)
    s_inside, s_outside = decode(signs, dloss.dtype)
    scale = dloss / signs.numel()
    p, q = scale * m.abs() * s_inside, scale * (1 - m).abs() * s_outside
    return tuple(
        g.to(dtype) if need else dloss.new_empty(0, dtype=dtype)
        for g, need in zip((p + q, -p, -q), needs, strict=True)
    )


def mask_backward(
    dloss: Tensor, hybrid: Tensor, inside: Tensor, outside: Tensor, mask: Tensor
) -> Tensor:
    """dm = c(sign(m)|h − g| − sign(1 − m)|h − a|), summed over channels that share the mask."""
    h, g, a, m = (t.to(dloss.dtype) for t in (hybrid, inside, outside, mask))
    dm = (dloss / hybrid.numel()) * (m.sign() * (h - g).abs() - (1 - m).sign() * (h - a).abs())
    return (dm.sum(1, keepdim=True) if mask.shape[1] != hybrid.shape[1] else dm).to(mask.dtype)
