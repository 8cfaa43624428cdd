"""mmcv's operators of StyleGAN: its own names for NVIDIA's (2.0 on), and the port's (before).
mmgeneration's, which are NVIDIA's.

A padding of two numbers is [x, y] in mmcv 2 and (before, after) in mmcv 1. Which one a call means
is read from the installed file. `use_custom_op` is accepted and changes nothing.
"""

from __future__ import annotations

from rwm_fast.dropin import gradfix, nvidia
from rwm_fast.dropin._offer import ROOT, Offer
from rwm_fast.dropin.rosinality import NATIVE, UPFIRDN2D, BiasedLeakyReLU, fused_leaky_relu

SQRT2 = 2**0.5


def upfirdn2d(
    input, filter, up=1, down=1, padding=0, flip_filter=False, gain=1, use_custom_op=True
):
    """As `rwm_fast.dropin.nvidia.upfirdn2d`."""
    return nvidia.upfirdn2d(input, filter, up, down, padding, flip_filter, gain)


def filter2d(input, filter, padding=0, flip_filter=False, gain=1, use_custom_op=True):
    """As `rwm_fast.dropin.nvidia.filter2d`."""
    return nvidia.filter2d(input, filter, padding, flip_filter, gain)


def upsample2d(input, filter, up=2, padding=0, flip_filter=False, gain=1, use_custom_op=True):
    """As `rwm_fast.dropin.nvidia.upsample2d`."""
    return nvidia.upsample2d(input, filter, up, padding, flip_filter, gain)


def downsample2d(input, filter, down=2, padding=0, flip_filter=False, gain=1, use_custom_op=True):
    """As `rwm_fast.dropin.nvidia.downsample2d`."""
    return nvidia.downsample2d(input, filter, down, padding, flip_filter, gain)


def bias_act(
    input, bias=None, dim=1, act="linear", alpha=None, gain=None, clamp=None, use_custom_op=True
):
    """As `rwm_fast.dropin.nvidia.bias_act`."""
    return nvidia.bias_act(input, bias, dim, act, alpha, gain, clamp)


def filtered_lrelu(
    input, filter_up=None, filter_down=None, bias=None, up=1, down=1, padding=0, gain=SQRT2,
    slope=0.2, clamp=None, flip_filter=False, use_custom_op=True,
):  # fmt: skip
    """As `rwm_fast.dropin.nvidia.filtered_lrelu`."""
    more = (up, down, padding, gain, slope, clamp, flip_filter)
    return nvidia.filtered_lrelu(input, filter_up, filter_down, bias, *more)


def fused_bias_leakyrelu(input, bias, negative_slope=0.2, scale=SQRT2):
    """leaky_relu(input + bias)·scale, bias along dimension 1 or None."""
    return fused_leaky_relu(input, bias, negative_slope, scale)


def bias_leakyrelu_ref(x, bias, negative_slope=0.2, scale=SQRT2):
    """The same under the name of its slow form."""
    return fused_leaky_relu(x, bias, negative_slope, scale)


class FusedBiasLeakyReLU(BiasedLeakyReLU):
    """The layer of fused_bias_leakyrelu; `bias` is a parameter [num_channels], zeros at first."""

    def __init__(self, num_channels, negative_slope=0.2, scale=SQRT2):
        super().__init__(num_channels, negative_slope, scale)


_TAIL = "padding=0, flip_filter=False, gain=1, use_custom_op=True"
_SLOPE = f"bias, negative_slope=0.2, scale={ROOT}"
_PARTS = frozenset({"EasyDict"})
_SIZES = {"_parse_padding": nvidia._parse_padding, "_get_filter_size": nvidia._get_filter_size}
OFFERS = [
    Offer(
        "mmcv",
        "mmcv.ops.upfirdn2d",
        {
            "upfirdn2d": ((f"input, filter, up=1, down=1, {_TAIL}", upfirdn2d), UPFIRDN2D),
            "upfirdn2d_native": (NATIVE,),
            "filter2d": ((f"input, filter, {_TAIL}", filter2d),),
            "upsample2d": ((f"input, filter, up=2, {_TAIL}", upsample2d),),
            "downsample2d": ((f"input, filter, down=2, {_TAIL}", downsample2d),),
        },
        {"_parse_scaling": nvidia._parse_scaling, **_SIZES},
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
    Offer(
        "mmcv",
        "mmcv.ops.bias_act",
        {
            "bias_act": (
                (
                    "input, bias=None, dim=1, act='linear', alpha=None, gain=None, clamp=None,"
                    " use_custom_op=True",
                    bias_act,
                ),
            ),
        },
        {"activation_funcs": nvidia.activation_funcs},
        _PARTS,
    ),
    Offer(
        "mmcv",
        "mmcv.ops.filtered_lrelu",
        {
            "filtered_lrelu": (
                (
                    "input, filter_up=None, filter_down=None, bias=None, up=1, down=1, padding=0,"
                    f" gain={ROOT}, slope=0.2, clamp=None, flip_filter=False, use_custom_op=True",
                    filtered_lrelu,
                ),
            ),
        },
        _SIZES,
    ),
    Offer("mmcv", "mmcv.ops.conv2d_gradfix", gradfix.NAMES, gradfix.SWITCHES),
    Offer("mmgeneration", "mmgen.ops.conv2d_gradfix", gradfix.NAMES, gradfix.SWITCHES),
]
for offer in nvidia.OFFERS:  # mmgeneration has some of NVIDIA's files beside mmcv's
    module = offer.module.replace("torch_utils.ops", "mmgen.ops.stylegan3.ops")
    OFFERS.append(offer._replace(family="mmgeneration", module=module, inside=_PARTS))
