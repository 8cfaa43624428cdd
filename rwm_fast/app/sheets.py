"""Pictures of one size side by side."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.uint8]  # [H, W, 3], sRGB
GAP = 4  # px, white


def sheet(pictures: Sequence[Values], columns: int) -> Values:
    """The pictures in rows of so many, uint8 [H, W, 3]; a last row that is not full ends white."""
    height, width = pictures[0].shape[:2]
    rows = -(-len(pictures) // columns)
    size = (rows * (height + GAP) - GAP, columns * (width + GAP) - GAP, 3)
    whole = np.full(size, 255, np.uint8)
    for k, picture in enumerate(pictures):
        top, left = k // columns * (height + GAP), k % columns * (width + GAP)
        whole[top : top + height, left : left + width] = picture
    return whole
