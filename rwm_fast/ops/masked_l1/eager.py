"""masked_l1 in plain torch, for any device and dtype."""

from __future__ import annotations

from torch import Tensor

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
    gradients = image_gradients(call.dloss, call.signs, call.mask)
    for wanted, gradient in zip(call.grads, gradients, strict=True):
        if wanted is not None:
            wanted.copy_(gradient)


def mask_backward(call: MaskBackward) -> None:
    """The mask's gradient."""
    tensors = (call.hybrid, call.inside, call.outside, call.mask)
    call.dmask.copy_(mask_gradient(call.dloss, *tensors))


# ---- the same as results, for what torch.func and forward-mode AD follow


def image_gradients(dloss: Tensor, signs: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of h, g and a, in the loss's dtype."""
    wide = dloss.dtype
    m, (s_inside, s_outside) = mask.to(wide), decode(signs, wide)
    scale = dloss / signs.numel()
    p, q = scale * m.abs() * s_inside, scale * (1 - m).abs() * s_outside
    return p + q, -p, -q


def mask_gradient(dloss: Tensor, *tensors: Tensor) -> Tensor:
    """Of the mask, the last of the four tensors, in the loss's dtype."""
    h, g, a, m = (t.to(dloss.dtype) for t in tensors)
    dm = (dloss / h.numel()) * (m.sign() * (h - g).abs() - (1 - m).sign() * (h - a).abs())
    return dm.sum(1, keepdim=True) if m.shape[1] != h.shape[1] else dm
