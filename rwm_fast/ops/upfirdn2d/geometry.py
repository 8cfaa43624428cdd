"""Sizes and paddings of upfirdn2d: numbers only."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def filter_size(filter: Tensor | None) -> tuple[int, int]:
    """Taps along y and along x; None is one tap."""
    return (1, 1) if filter is None else (filter.shape[0], filter.shape[-1])


def output_size(
    height: int,
    width: int,
    taps: Sequence[int],  # along y, along x
    up: Sequence[int],  # along x, along y
    down: Sequence[int],
    padding: Sequence[int],  # x before, x after, y before, y after
) -> tuple[int, int]:
    """Height and width of the result."""
    px0, px1, py0, py1 = padding
    return (
        (height * up[1] + py0 + py1 - taps[0]) // down[1] + 1,
        (width * up[0] + px0 + px1 - taps[1]) // down[0] + 1,
    )


def adjoint_padding(
    size: Sequence[int],  # H, W of the input
    out_size: Sequence[int],
    taps: Sequence[int],
    up: Sequence[int],
    down: Sequence[int],
    padding: Sequence[int],
) -> list[int]:
    """The padding of the adjoint: p₀' = f − 1 − p₀, p₁' = in·up − out·down + p₀ − up + 1."""
    (h, w), (oh, ow), (fh, fw) = size, out_size, taps
    px0, _, py0, _ = padding
    return [
        fw - px0 - 1,
        w * up[0] - ow * down[0] + px0 - up[0] + 1,
        fh - py0 - 1,
        h * up[1] - oh * down[1] + py0 - up[1] + 1,
    ]
