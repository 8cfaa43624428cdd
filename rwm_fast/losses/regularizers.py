"""R1: the penalty on a discriminator's gradient at real data."""

from __future__ import annotations

import torch
from torch import Tensor


def r1_penalty(logits: Tensor, *inputs: Tensor, create_graph: bool = True) -> Tensor:
    r"""Σ over inputs of meanₙ ‖∂(Σ logits)/∂xₙ‖², a scalar, without γ/2.

    `inputs` [N, …] are the real images or patches that the logits were computed from, with
    requires_grad set; the norm is over everything but the first dimension, so patches [N, P, C, s,
    s] count together per image. With `create_graph` the penalty can be differentiated: that asks
    second derivatives of the discriminator. Used lazily: every k-th step, times k.

    The image discriminator takes γ/2 of it, the patch discriminator γ/4 (base code).
    Source: Mescheder et al., ICML 2018, equation 9; lazily: StyleGAN2, appendix B.
    """
    if not inputs:
        raise ValueError("r1_penalty: give at least one input")
    gradients = torch.autograd.grad(logits.sum(), inputs, create_graph=create_graph)
    norms = [g.flatten(1).square().sum(1) for g in gradients]  # [N] each
    return torch.stack(norms).mean(1).sum()
