"""Inputs of conv2d_resample."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rwm_fast.testing.cases.case import Case, Inputs, count_taps, normal, on_meta, refused, split
from rwm_fast.testing.cases.modulated_conv2d import LOW_PASS, UNEVEN, backward, forward

OP = "conv2d_resample"


def _case(
    name: str,
    shape: tuple[int, int, int, int],
    out_channels: int,
    kernel: int = 3,
    **more: Any,
) -> Case:
    settings, fields = split(more)
    settings.setdefault("padding", kernel // 2)
    n, i, h, w = shape
    per_group = i // settings.get("groups", 1)

    def make(generator: torch.Generator) -> Inputs:
        weight = normal(generator, out_channels, per_group, kernel, kernel)
        weight /= (per_group * kernel**2) ** 0.5
        return {"x": normal(generator, *shape), "w": weight, **settings}

    taps = kernel**2 * count_taps(settings.get("f"))
    made: dict[str, Any] = {"gradients": ("x", "w")}
    made["terms"] = max(1, h * w * settings.get("up", 1) ** 2 * max(out_channels, i, n) * taps)
    # stored: the weight, two filters, the convolution; back: the adjoints of the three.
    # any_threads: torch's convolution sums in its own order
    made |= {"stored": 7, "any_threads": False}
    made["forward"] = lambda inputs: forward({**inputs, "weight": inputs["w"]})
    made["backward"] = lambda inputs: backward({**inputs, "weight": inputs["w"]})
    return Case(OP, name, make, **made | fields)


UP: dict[str, Any] = {"up": 2, "f": LOW_PASS, "flip_weight": False}
DOWN: dict[str, Any] = {"down": 2, "f": LOW_PASS}
CASES = (
    _case("plain", (2, 3, 4, 5), 2, smooth=True),
    _case("doubling", (1, 3, 4, 3), 2, **UP, smooth=True),
    _case("halving", (1, 3, 6, 4), 2, **DOWN, smooth=True),
    _case("third", (2, 3, 4, 5), 4, up=3, f=UNEVEN, flip_filter=True),
    _case("doubling_pointwise", (2, 3, 5, 4), 4, 1, **UP),
    _case("halving_no_filter", (2, 3, 7, 6), 4, down=2),
    _case("groups", (2, 6, 4, 5), 4, groups=2),
    _case("groups_doubling", (2, 6, 4, 5), 4, groups=2, **UP),
    _case("float32_weight", (2, 3, 5, 6), 4, kept=("w",), **UP),
    _case("vectors_doubling", (1, 16, 9, 8), 24, **UP),
)

refusal = refused(OP, "doubling")
grouped = refused(OP, "groups")
REFUSALS = (
    refusal("x_int", "x must be float16, bfloat16", x=Tensor.long),
    refusal("x_3d", r"x must be \[N, I, H, W\]", x=lambda v: v[0]),
    refusal("x_none", "x must be a tensor, got None", TypeError, x=None),
    refusal(
        "w_shape",
        r"w must be \[O, 3, kh, kw\] on cpu for x \[1, 3, 4, 3\], got \[2, 1, 3, 3\]",
        w=lambda v: v[:, :1],
    ),
    refusal("w_int", "w must be float16", w=Tensor.long),
    refusal("w_device", "w must be .* on cpu", w=on_meta),
    refusal("up", "up must be a whole number of at least 1, got 0", up=0),
    refusal("down", "down must be a whole number of at least 1", down=0.5),
    refusal("groups", "groups must divide the 3 channels of x, got 2", groups=2),
    refusal("groups_0", "groups must be a whole number of at least 1, got 0", groups=0),
    grouped("outputs", "O a multiple of 2, got", w=lambda v: v[:3]),
    refusal("padding", "padding must be 1, 2 or 4 whole numbers", padding=[1, 2, 3]),
    refusal("nothing_left", "padding must leave at least one pixel, got -9", padding=-9),
    refusal("filter", "f must be a tensor, got 1.0", TypeError, f=1.0),
    refusal(
        "filter_gradient",
        "f must not require a gradient",
        f=torch.ones(3, requires_grad=True),
    ),
)
