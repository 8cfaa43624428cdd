"""The truth for masked_l1, in plain torch."""

from __future__ import annotations

from torch import Tensor

from rwm_fast.ops._check import accumulator


def masked_l1(hybrid: Tensor, inside: Tensor, outside: Tensor, mask: Tensor) -> Tensor:
    """L = mean(|m|·|h − g| + |1 − m|·|h − a|); differentiable by torch to any order."""
    h, g, a, m = (t.to(accumulator(hybrid.dtype)) for t in (hybrid, inside, outside, mask))
    return (m.abs() * (h - g).abs() + (1 - m).abs() * (h - a).abs()).mean()
