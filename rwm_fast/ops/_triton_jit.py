"""Helpers that run inside Triton kernels.

Triton's interpreter is wrong about bfloat16: products and sums work on the raw bits. So kernels
convert to float32 before they compute, and `dot_` and `scale_` do it for them where they run in the
interpreter; compiled, they keep the dtype that the tensor cores take.
"""

from __future__ import annotations

import triton
import triton.language as tl

from rwm_fast.ops import _triton

INTERPRETED = tl.constexpr(_triton.INTERPRETED)


@triton.jit
def dot_(a, b, acc, PRECISION: tl.constexpr):
    """acc + a·b with a float32 accumulator."""
    if INTERPRETED:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), acc, input_precision="ieee")
    else:
        return tl.dot(a, b, acc, input_precision=PRECISION)


@triton.jit
def scale_(a, s):
    """a·s in a's dtype."""
    if INTERPRETED:
        return (a.to(tl.float32) * s.to(tl.float32)).to(a.dtype)
    else:
        return a * s.to(a.dtype)


@triton.jit
def sign_(v):
    """−1, 0 or 1; 0 for NaN."""
    return (v > 0).to(tl.float32) - (v < 0).to(tl.float32)
