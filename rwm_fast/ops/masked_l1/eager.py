"""masked_l1 in plain torch, for any device and dtype."""

from __future__ import annotations

from rwm_fast.ops._backend import Call
from rwm_fast.ops.masked_l1.call import Backward, Forward, MaskBackward, decode, encode
from rwm_fast.ops.masked_l1.reference import masked_l1


def supports(call: Call) -> str | None:
    """Everything the operator takes."""
    return None


def forward(call: Forward) -> None:
    """The truth, and the signs if asked for."""
    h, g, a = call.hybrid, call.inside, call.outside
    call.loss.copy_(masked_l1(h, g, a, call.mask))
    if call.signs is not None:
        call.signs.copy_(encode((h - g).sign(), (h - a).sign()))


def backward(call: Backward) -> None:
    """The images' gradients that are wanted."""
    wide = call.dloss.dtype
    m, (s_inside, s_outside) = call.mask.to(wide), decode(call.signs, wide)
    scale = call.dloss / call.signs.numel()
    p, q = scale * m.abs() * s_inside, scale * (1 - m).abs() * s_outside
    for wanted, gradient in zip(call.grads, (p + q, -p, -q), strict=True):
        if wanted is not None:
            wanted.copy_(gradient)


def mask_backward(call: MaskBackward) -> None:
    """The mask's gradient."""
    tensors = (call.hybrid, call.inside, call.outside, call.mask)
    h, g, a, m = (t.to(call.dloss.dtype) for t in tensors)
    dm = (call.dloss / h.numel()) * (m.sign() * (h - g).abs() - (1 - m).sign() * (h - a).abs())
    call.dmask.copy_(dm.sum(1, keepdim=True) if m.shape[1] != h.shape[1] else dm)
