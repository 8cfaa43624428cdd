"""What parameters get that are only added, from a penalty on gradients: nothing, or zeros.

A bias, a noise and its strength move a layer's result to another slope at most, so that derivatives
of its gradients do not depend on them. Torch's layers push zeros through the whole network then;
ours hand them to these parameters alone, and only when asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class absent_gradients:
    """Whether parameters that a penalty on gradients does not depend on get no gradient, or zeros.

    Those are the biases, noises and noise strengths of our operators, in R1, path length and what
    else differentiates gradients. ``"none"``, the default, leaves their ``.grad`` as it was: None
    after `zero_grad`, so that Adam passes over them. ``"zeros"`` is what plain torch gives behind a
    leaky ReLU, for code that joins every ``p.grad``, and costs next to nothing.

    ``absent_gradients("zeros")`` holds until changed; ``with absent_gradients("zeros"): …`` inside
    the block, which must cover the forward and all backward passes. It counts in all threads.

    Raises
    ------
    ValueError
        if it is neither ``"none"`` nor ``"zeros"``.
    """

    zeros = False

    def __init__(self, kind: str) -> None:
        if kind not in ("none", "zeros"):
            raise ValueError(f"absent_gradients: kind must be 'none' or 'zeros', got {kind!r}")
        self._before = absent_gradients.zeros
        absent_gradients.zeros = kind == "zeros"

    def __enter__(self) -> absent_gradients:
        return self

    def __exit__(self, *_: object) -> None:
        absent_gradients.zeros = self._before


class _Beside(torch.autograd.Function):
    """The first tensors; differentiated, they give zeros to the others."""

    @staticmethod
    def forward(ctx: Any, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.others = [(t.shape, t.dtype, t.device) for t in tensors[count:]]
        return tuple(t.view_as(t) for t in tensors[:count])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        zeros = (torch.zeros(s, dtype=d, device=place) for s, d, place in ctx.others)
        return None, *grads, *zeros


def beside(grads: Sequence[Tensor | None], added: Sequence[Tensor | None]) -> list[Any]:
    """The gradients as they are; if asked, zeros go to what was only added when they are
    differentiated."""
    found: list[Any] = list(grads)
    if not absent_gradients.zeros or not torch.is_grad_enabled():
        return found
    places = [i for i, g in enumerate(found) if g is not None and g.numel()]
    others = [t for t in added if t is not None and t.requires_grad]
    if places and others:
        tied = _Beside.apply(len(places), *(found[i] for i in places), *others)
        for i, g in zip(places, tied, strict=True):
            found[i] = g
    return found
