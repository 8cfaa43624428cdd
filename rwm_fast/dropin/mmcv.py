"""The files upfirdn2d and fused_bias_leakyrelu of mmcv's operators.

The newer upfirdn2d is NVIDIA's (a padding of two numbers is [x, y]), the older the port's
(before, after). Which one a call means is read from the installed file.
"""

from __future__ import annotations

from rwm_fast.dropin import nvidia
from rwm_fast.dropin._offer import ROOT, Offer
from rwm_fast.dropin.rosinality import NATIVE, UPFIRDN2D, BiasedLeakyReLU, fused_leaky_relu


def upfirdn2d(input, f, up=1, down=1, padding=0, flip_filter=False, gain=1, impl="cuda"):
    """As `rwm_fast.dropin.nvidia.upfirdn2d`."""
    return nvidia.upfirdn2d(input, f, up, down, padding, flip_filter, gain, impl)


def filter2d(input, f, padding=0, flip_filter=False, gain=1, impl="cuda"):
    """As `rwm_fast.dropin.nvidia.filter2d`."""
    return nvidia.filter2d(input, f, padding, flip_filter, gain, impl)


def upsample2d(input, f, up=2, padding=0, flip_filter=False, gain=1, impl="cuda"):
    """As `rwm_fast.dropin.nvidia.upsample2d`."""
    return nvidia.upsample2d(input, f, up, padding, flip_filter, gain, impl)


def downsample2d(input, f, down=2, padding=0, flip_filter=False, gain=1, impl="cuda"):
    """As `rwm_fast.dropin.nvidia.downsample2d`."""
    return nvidia.downsample2d(input, f, down, padding, flip_filter, gain, impl)


def fused_bias_leakyrelu(input, bias, negative_slope=0.2, scale=2**0.5):
    """leaky_relu(input + bias)·scale, bias along dimension 1 or None."""
    return fused_leaky_relu(input, bias, negative_slope, scale)


def bias_leakyrelu_ref(x, bias, negative_slope=0.2, scale=2**0.5):
    """The same under the name of its slow form."""
    return fused_leaky_relu(x, bias, negative_slope, scale)


class FusedBiasLeakyReLU(BiasedLeakyReLU):
    """The layer of fused_bias_leakyrelu; `bias` is a parameter [num_channels], zeros at first."""

    def __init__(self, num_channels, negative_slope=0.2, scale=2**0.5):
        super().__init__(num_channels, negative_slope, scale)


_TAIL = "padding=0, flip_filter=False, gain=1, impl='cuda'"
_SLOPE = f"bias, negative_slope=0.2, scale={ROOT}"
OFFERS = [
    Offer(
        "mmcv",
        "mmcv.ops.upfirdn2d",
        {
            "upfirdn2d": ((f"input, f, up=1, down=1, {_TAIL}", upfirdn2d), UPFIRDN2D),
            "upfirdn2d_native": (NATIVE,),
            "filter2d": ((f"input, f, {_TAIL}", filter2d),),
            "upsample2d": ((f"input, f, up=2, {_TAIL}", upsample2d),),
            "downsample2d": ((f"input, f, down=2, {_TAIL}", downsample2d),),
            "setup_filter": nvidia.NAMES["setup_filter"],
        },
    ),
    Offer(
        "mmcv",
        "mmcv.ops.fused_bias_leakyrelu",
        {
            "fused_bias_leakyrelu": ((f"input, {_SLOPE}", fused_bias_leakyrelu),),
            "bias_leakyrelu_ref": ((f"x, {_SLOPE}", bias_leakyrelu_ref),),
            "FusedBiasLeakyReLU": (
                (f"num_channels, negative_slope=0.2, scale={ROOT}", FusedBiasLeakyReLU),
            ),
        },
    ),
]
