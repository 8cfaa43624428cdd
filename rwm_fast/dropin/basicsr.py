"""The two files of basicsr: the port's earlier form, a folder for each file."""

from __future__ import annotations

from rwm_fast.dropin._offer import Offer
from rwm_fast.dropin.rosinality import FUSED, NATIVE, UPFIRDN2D

OFFERS = [
    Offer("basicsr", "ops.fused_act.fused_act", FUSED),
    Offer(
        "basicsr",
        "ops.upfirdn2d.upfirdn2d",
        {"upfirdn2d": (UPFIRDN2D,), "upfirdn2d_native": (NATIVE,)},
    ),
]
