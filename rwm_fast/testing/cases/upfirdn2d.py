"""Inputs of upfirdn2d."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from rwm_fast.testing.cases.case import (
    Case,
    Inputs,
    Work,
    count_taps,
    normal,
    on_meta,
    refused,
    split,
)

OP = "upfirdn2d"
Shape = tuple[int, int, int, int]


def _taps(*values: float) -> Tensor:
    taps = torch.tensor(values, dtype=torch.float64)
    return taps / taps.sum()


LOW_PASS = _taps(1, 3, 3, 1)


def _work(inputs: Mapping[str, Any]) -> Work:
    """The input is read once, the output written once; two operations a tap that meets no zero."""
    x, filter = inputs["x"], inputs["filter"]
    up, down = inputs.get("up", 1), inputs.get("down", 1)
    up, down = (f if isinstance(f, int) else (f[0] * f[1]) ** 0.5 for f in (up, down))
    written = round(x.numel() * (up / down) ** 2)
    taps = 1 if filter is None else 2 * len(filter) / up if filter.ndim == 1 else filter.numel()
    return Work(bytes=(x.numel() + written) * x.element_size(), flops=round(2 * taps * written))


def _case(name: str, shape: Shape, filter: Tensor | None, **more: Any) -> Case:
    settings, fields = split(more)

    def make(generator: torch.Generator) -> Inputs:
        return {"x": normal(generator, *shape), "filter": filter, **settings}

    terms = count_taps(filter)
    return Case(OP, name, make, ("x",), terms=terms, forward=_work, backward=_work, **fields)


UNEVEN = torch.tensor([[0.5, -0.25, 1.0], [0.125, 0.75, -0.5]], dtype=torch.float64)  # no symmetry

CASES = (
    _case("blur", (2, 3, 5, 7), LOW_PASS, padding=[2, 1, 2, 1], smooth=True),
    _case("up2", (2, 3, 5, 4), LOW_PASS, up=2, padding=[2, 1, 2, 1], gain=4.0, smooth=True),
    _case("down2", (2, 3, 7, 6), LOW_PASS, down=2, padding=1, smooth=True),
    _case("down2_three_taps", (2, 2, 6, 8), _taps(1, 2, 1), down=2, padding=[1, 0], smooth=True),
    _case("two_dimensional", (1, 2, 5, 6), UNEVEN, padding=[1, 2, 0, 3], smooth=True),
    _case("flipped", (1, 2, 5, 6), UNEVEN, padding=1, flip_filter=True, gain=0.7, smooth=True),
    _case(
        "factors", (1, 2, 5, 4), UNEVEN, up=[2, 3], down=[3, 2], padding=[2, 1, 1, 3], smooth=True
    ),
    _case("cropped", (1, 2, 7, 8), LOW_PASS, up=2, padding=[-1, 2, -2, -1], smooth=True),
    _case("cropped_plain", (2, 3, 8, 9), UNEVEN, padding=[-2, 0, 1, -1], down=2),
    _case("wide_padding", (1, 2, 3, 4), UNEVEN, up=2, padding=[5, 6, 4, 7]),  # zeros all round
    _case("no_filter", (2, 3, 4, 5), None, up=2, padding=[1, 0], gain=2.0, smooth=True),
    _case("filter_float32", (2, 3, 6, 6), LOW_PASS, padding=2, kept=("filter",)),
    _case("one_tap", (2, 3, 5, 5), _taps(1), down=3),
    _case("twelve_taps", (1, 3, 9, 10), _taps(*range(1, 13)), up=2, padding=6),
    _case("pixel", (1, 1, 1, 1), LOW_PASS, up=2, padding=[2, 1], smooth=True),
    _case("empty", (0, 3, 6, 6), LOW_PASS, up=2, padding=2),
    _case("odd", (3, 17, 13, 19), LOW_PASS, padding=[2, 1], gain=1.5),
    _case("odd_up2", (2, 19, 7, 11), LOW_PASS, up=2, padding=[2, 1], gain=4.0),
    _case("odd_down2", (2, 19, 13, 11), LOW_PASS, down=2, padding=1),
    # Whole vectors in every dtype, in channels_last.
    _case("vectors", (2, 16, 9, 10), LOW_PASS, padding=[2, 1, 1, 2]),
    _case("vectors_up2", (2, 16, 9, 5), LOW_PASS, up=2, padding=[2, 1, 1, 2], gain=4.0),
    _case("vectors_down2", (2, 16, 9, 10), _taps(1, 2, 1), down=2, padding=[1, 2, 0, 1]),
    _case("vectors_two_taps", (1, 16, 7, 6), _taps(1, 2), up=2, padding=[1, 0]),
    _case("up2_256", (4, 128, 128, 128), LOW_PASS, up=2, padding=[2, 1], gain=4.0, bench=True),
    _case("down2_256", (4, 128, 256, 256), LOW_PASS, down=2, padding=1, bench=True),
    _case("blur_64", (4, 64, 64, 64), LOW_PASS, padding=[2, 1], bench=True),
    _case("up2_64", (4, 64, 32, 32), LOW_PASS, up=2, padding=[2, 1], gain=4.0, bench=True),
    _case("down2_64", (4, 64, 64, 64), LOW_PASS, down=2, padding=1, bench=True),
)

refusal = refused(OP, "blur")
REFUSALS = (
    refusal("x_int", "x must be float16, bfloat16", x=Tensor.long),
    refusal("x_3d", r"x must be \[N, C, H, W\], got \[3, 5, 7\]", x=lambda v: v[0]),
    refusal("x_list", "x must be a tensor, got list", TypeError, x=[1.0]),
    refusal("filter_int", "filter must be float16", filter=torch.ones(3).int()),
    refusal("filter_3d", r"filter must be \[F\] or \[FH, FW\]", filter=torch.ones(1, 2, 2)),
    refusal("filter_empty", "at least one tap", filter=torch.ones(0)),
    refusal(
        "filter_gradient",
        "filter must not require a gradient: the operator gives none for it",
        filter=torch.ones(3, requires_grad=True),
    ),
    refusal("filter_device", "filter must be on cpu", filter=on_meta),
    refusal("up_0", "up must be one or two numbers of at least 1, got ", up=0),
    refusal("up_half", "up must be one or two numbers of at least 1", up=1.5),
    refusal("down_3", "down must be one or two numbers", down=[1, 1, 1]),
    refusal("padding_3", "padding must be 1, 2 or 4 whole numb", padding=[1, 2, 3]),
    refusal("padding_half", "padding must be 1, 2 or 4 whole numbers", padding=0.5),
    refusal(
        "nothing_left",
        r"the padded image must be at least as large as the filter, got \[2, 3, 5, 7\]",
        padding=-2,
    ),
)
