"""The pass back through an epilogue in CUDA, and its sums, in an order that sizes alone decide."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rwm_fast.ops import _extension
from rwm_fast.ops._check import accumulator
from rwm_fast.ops._memory import DTYPE_CODES, LAST, Epilogue, addresses, epilogue_record, place
from rwm_fast.ops.modulated_conv2d.layer import Sums

_STYLES = 2  # as many styles' sums one launch keeps in registers


def backward_pass(
    g: Tensor, epilogue: Epilogue, y: Tensor | None, u: Tensor | None, recover: bool, want: Sums
) -> Sums:
    """dv = act'(y)·g, q = dv·u (`recover`: read from y), their product with the scale, and sums."""
    (n, c, h, w), wide, device = g.shape, accumulator(g.dtype), g.device
    styles = epilogue.styles
    width = 1 if g.dtype == torch.float64 else 16 // g.element_size()
    read = addresses(g, y, u, epilogue.scale, epilogue.bias)
    aligned = c % width == 0 and not any(pointer % 16 for pointer in read)
    module = _extension.cuda()
    images = module.Images(n, h * w, c, DTYPE_CODES[g.dtype])
    follows = epilogue_record(module, epilogue)
    runs = -(-c // (32 * (width if aligned else 1)))
    chunks = min(-(-h * w // 64), -(-1024 // n))
    at_once = min(styles, _STYLES) if want.scale else 1

    def buffer(wanted: bool, *shape: int) -> Any:
        return torch.empty(shape, dtype=wide, device=device) if wanted else None

    out = torch.empty_like(g, memory_format=LAST) if want.du else None
    pixels = buffer(want.pixels, runs, n, h, w)
    region_sums = buffer(want.regions, runs, n, styles, h, w)
    strength_sums = buffer(want.strength, runs * n * chunks, 1)
    style_sums: list[Tensor] = []
    bias_sum: Any = None
    for first in range(0, styles if want.scale else 1, at_once):
        summed = want.scale or (first == 0 and want.bias)
        partials = buffer(summed, n, chunks, at_once + 1, c)
        once = (out, partials, pixels, region_sums, strength_sums)
        later = (None, partials, None, None, None)
        written = addresses(*(later if first else once))
        module.modulated_conv2d_backward(
            images,
            *read[:3],
            recover,
            follows,
            module.Sums(*written, chunks, first, at_once, aligned),
            *place(g),
        )
        if summed:
            sums = sum_rows(partials.view(n, chunks, -1)).view(n, at_once + 1, c)
            style_sums.append(sums[:, : min(at_once, styles - first)])
            bias_sum = sums[:, -1] if first == 0 else bias_sum
    return Sums(
        out,
        torch.cat(style_sums, 1) if want.scale else None,
        sum_rows(bias_sum.contiguous()[None])[0] if want.bias else None,
        None if pixels is None else sum_rows(pixels.view(1, runs, -1)).view(n, 1, h, w),
        None if strength_sums is None else sum_rows(strength_sums[None]).view(()),
        None
        if region_sums is None
        else sum_rows(region_sums.view(1, runs, -1)).view(n, styles, h, w),
    )


def sum_rows(partials: Tensor) -> Tensor:
    """Over the rows of [groups, rows, columns], in index order."""
    groups, rows, columns = partials.shape
    if rows == 1:
        return partials[:, 0]
    out = partials.new_empty(groups, columns)
    _extension.cuda().modulated_conv2d_sum(
        *addresses(partials, out), *partials.shape, DTYPE_CODES[partials.dtype], *place(partials)
    )
    return out
