"""The public conv2d_resample, NVIDIA's by another home, against the formula in plain torch."""

import formulas
import pytest
import torch
import torch.nn.functional as F
from formulas import F64, normal

from rwm_fast import conv2d_resample

FILTERS = {
    "none": None,
    "four_taps": torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=F64) / 8,
    "three_taps": torch.tensor([1.0, 2.0, 1.0], dtype=F64) / 4,
    "outer": torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=F64).outer(torch.ones(4, dtype=F64)) / 32,
    "uneven": torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=F64),
}
NAMES = ("x", "w", "f", "up", "down", "padding", "groups", "flip_weight", "flip_filter")


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("kernel_size", [1, 3])
@pytest.mark.parametrize("padding", [1, (2, 1, 3, -1)])
@pytest.mark.parametrize(
    ("up", "down", "f"),
    [
        (1, 1, "outer"), (2, 1, "four_taps"), (1, 2, "uneven"), (2, 2, "outer"), (3, 1, "uneven"),
        (2, 1, "none"), (1, 2, "none"), (1, 3, "three_taps"),
    ],
)  # fmt: skip
def test_first_and_second_order(up, down, f, padding, kernel_size, groups):
    """By position and by name, weight and filter turned over or not."""
    x, w = normal(2, 4, 6, 7), normal(6, 4 // groups, kernel_size, kernel_size, seed=1)
    four = padding if isinstance(padding, tuple) else (padding,) * 4
    for flip in (True, False):
        rest = (FILTERS[f], up, down, padding, groups, flip, flip)
        theirs = (FILTERS[f], up, down, four, groups, flip, flip)
        formula = lambda x, w, theirs=theirs: formulas.conv2d_resample(x, w, *theirs)
        for call in (
            lambda x, w, rest=rest: conv2d_resample(x, w, *rest),
            lambda x, w, rest=rest: conv2d_resample(**dict(zip(NAMES, (x, w, *rest), strict=True))),
        ):
            formulas.assert_same(call, formula, x, w)


def test_defaults():
    x, w = normal(2, 4, 6, 7), normal(3, 4, 3, 3, seed=1)
    torch.testing.assert_close(conv2d_resample(x, w), F.conv2d(x, w))
