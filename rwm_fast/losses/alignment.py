"""Losses between pictures: reconstruction, edges, and content alignment of the hybrid."""

from __future__ import annotations

from torch import Tensor

from rwm_fast.ops.masked_l1 import masked_l1


def reconstruction(reconstructed: Tensor, image: Tensor) -> Tensor:
    r"""L_rec = mean \|I_rec − I_A\|, I_rec = G(C_A, S_A).

    Images [N, 3, H, W]; gradient to both. Source: You et al., ACM MM 2021, L_rec; Swapping
    Autoencoder, equation 1.
    """
    return (reconstructed - image).abs().mean()


def edge(reconstructed: Tensor, image: Tensor) -> Tensor:
    r"""mean \|∂ₓ(I_rec − I_A)\| + mean \|∂ᵧ(I_rec − I_A)\|, ∂ = difference of neighbouring pixels.

    Images [N, 3, H, W], H and W at least 2; gradient to both. Outlines are learned earlier than
    under plain L1. Ours, not the paper's.
    """
    d = reconstructed - image
    horizontal = (d[..., 1:] - d[..., :-1]).abs().mean()
    return horizontal + (d[..., 1:, :] - d[..., :-1, :]).abs().mean()


def content_alignment(
    hybrid: Tensor, swapped: Tensor, image: Tensor, mask: Tensor, *, detach_swapped: bool = True
) -> Tensor:
    r"""L_CA = L1(I_h ⊙ M, I_g ⊙ M) + L1(I_h ⊙ (1 − M), I_A ⊙ (1 − M)).

    Inside the mask the hybrid I_h should be the swap I_g, outside it the picture I_A.

    Images [N, 3, H, W]; mask [N, 1, H, W] in [0, 1], 1 = repainted. Gradient to `hybrid` and, with
    `detach_swapped=False`, to `swapped` (the paper does not say which; a fixed I_g teaches).
    Source: You et al., ACM MM 2021, content alignment loss.
    """
    return masked_l1(hybrid, swapped.detach() if detach_swapped else swapped, image, mask)
