"""Code consistency: the codes of a swap are the codes it was painted from."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class CodeConsistency(NamedTuple):
    """L_CC and its two terms, all scalars; the terms are unweighted."""

    total: Tensor
    content: Tensor
    style: Tensor


def code_consistency(
    content: Tensor,
    style: Tensor,
    content_target: Tensor,
    style_target: Tensor,
    *,
    style_lambda: float,
) -> CodeConsistency:
    r"""L_CC = L1(C_g, C_A) + λ·L1(S_g, S_B), (C_g, S_g) = E(I_g), I_g = G(C_A, S_B).

    Content codes [N, C, h, w], style codes [N, D]. The targets C_A and S_B are detached: codes
    cannot become alike by the references moving. That the encoder is a fixed ruler (its own
    parameters get no gradient, the swap does) is for the caller to arrange.
    Source: You et al., ACM MM 2021, code consistency loss; λ is not given there.
    """
    content_term = (content - content_target.detach()).abs().mean()
    style_term = (style - style_target.detach()).abs().mean()
    return CodeConsistency(content_term + style_lambda * style_term, content_term, style_term)
