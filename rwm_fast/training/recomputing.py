"""Less memory for more time: activations of a block are made again when its gradient needs them."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint

from rwm_fast.nn.blocks import ResidualBlock, StyleBlock


def recompute_blocks(networks: Iterable[nn.Module]) -> None:
    """From now on the residual and styled blocks of these networks keep their inputs only.

    Results and gradients of every order are the same, from the same operations: `torch.utils.
    checkpoint`, not reentrant. Nothing in a block is random; noise maps are among its inputs.
    """
    for network in networks:
        for module in network.modules():
            if isinstance(module, (ResidualBlock, StyleBlock)):
                again = partial(
                    checkpoint, module.forward, use_reentrant=False, preserve_rng_state=False
                )
                module.forward = again  # type: ignore[method-assign]
