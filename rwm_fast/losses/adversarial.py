r"""The non-saturating logistic loss, for images and for patches alike.

A discriminator minimises `real_loss` + `fake_loss`; the generator minimises `generator_loss`. With
L_adv of You et al., ACM MM 2021: −log D(I) is softplus(−logit), −log(1 − D(I)) is softplus(logit).
Logits may have any shape ([N] for images, [N, P] for patches); the mean is over all of them.
Source: Goodfellow et al., NeurIPS 2014, section 3; Swapping Autoencoder, equations 2 to 4.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def real_loss(logits: Tensor) -> Tensor:
    """mean softplus(−logits): real pictures should score high."""
    return F.softplus(-logits).mean()


def fake_loss(logits: Tensor) -> Tensor:
    """mean softplus(logits): painted pictures should score low."""
    return F.softplus(logits).mean()


def generator_loss(logits: Tensor) -> Tensor:
    """mean softplus(−logits) on painted pictures: they should pass for real."""
    return F.softplus(-logits).mean()
