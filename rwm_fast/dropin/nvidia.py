"""`torch_utils.ops` of StyleGAN2-ADA, StyleGAN3, EG3D and what grew from them.

Arguments, order, defaults and padding are the family's; `impl` is accepted and changes nothing.
Every function gives its gradients to second order. Source of the semantics: the signatures and the
documented behaviour of the StyleGAN2-ADA and StyleGAN3 releases (Karras et al., 2020 and 2021).
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from rwm_fast.dropin import _calls, gradfix
from rwm_fast.dropin._offer import ROOT, Alternatives, Offer
from rwm_fast.ops.bias_act import bias_act as _bias_act
from rwm_fast.ops.conv2d_resample import conv2d_resample as _conv2d_resample
from rwm_fast.ops.upfirdn2d import upfirdn2d as _upfirdn2d

SQRT2 = math.sqrt(2)
_CPU = torch.device("cpu")


# ---- upfirdn2d


def upfirdn2d(x, f, up=1, down=1, padding=0, flip_filter=False, gain=1, impl="cuda"):
    """Upsample by zeros, pad or crop, filter, downsample; as `rwm_fast.upfirdn2d`.

    up, down: one number or (x, y). padding: one number, [x, y], or [x before, x after, y before,
    y after]. f: None, [F] or [FH, FW].
    """
    _known_impl("upfirdn2d", impl)
    return _calls.run(
        "nvidia.upfirdn2d", _upfirdn2d, x, f, up=_parse_scaling(up), down=_parse_scaling(down),
        padding=_parse_padding(padding), flip_filter=bool(flip_filter), gain=float(gain),
    )  # fmt: skip


def filter2d(x, f, padding=0, flip_filter=False, gain=1, impl="cuda"):
    """Filtered at its own size; `padding` is added to that of a centred filter."""
    (fw, fh), p = _get_filter_size(f), _parse_padding(padding)
    p = _added(p, (fw // 2, (fw - 1) // 2, fh // 2, (fh - 1) // 2))
    return upfirdn2d(x, f, padding=p, flip_filter=flip_filter, gain=gain, impl=impl)


def upsample2d(x, f, up=2, padding=0, flip_filter=False, gain=1, impl="cuda"):
    """Enlarged by zeros and filtered, brightness kept."""
    (fw, fh), (ux, uy) = _get_filter_size(f), _parse_scaling(up)
    p = _added(_parse_padding(padding), (*_up_borders(fw, ux), *_up_borders(fh, uy)))
    settings = {"up": (ux, uy), "padding": p, "flip_filter": flip_filter, "impl": impl}
    return upfirdn2d(x, f, gain=gain * ux * uy, **settings)


def downsample2d(x, f, down=2, padding=0, flip_filter=False, gain=1, impl="cuda"):
    """Filtered and reduced."""
    (fw, fh), (dx, dy) = _get_filter_size(f), _parse_scaling(down)
    p = _added(_parse_padding(padding), (*_down_borders(fw, dx), *_down_borders(fh, dy)))
    settings = {"down": (dx, dy), "padding": p, "flip_filter": flip_filter, "impl": impl}
    return upfirdn2d(x, f, gain=gain, **settings)


def setup_filter(f, device=_CPU, normalize=True, flip_filter=False, gain=1, separable=None):
    """A float32 filter from taps: [F] from 8 taps on or if `separable`, else the outer product."""
    f = torch.as_tensor(1 if f is None else f, dtype=torch.float32)
    if f.ndim > 2 or not f.numel():
        raise ValueError(f"setup_filter: f must be a number, [F] or [FH, FW], got {list(f.shape)}")
    f = f.reshape(-1) if f.ndim == 0 else f
    if separable is None:
        separable = f.ndim == 1 and f.numel() >= 8
    if separable and f.ndim == 2:
        raise ValueError("setup_filter: a filter [FH, FW] cannot be made separable")
    f = f if separable or f.ndim == 2 else f.outer(f)
    f = f / f.sum() if normalize else f
    f = f.flip(list(range(f.ndim))) if flip_filter else f
    return (f * gain ** (f.ndim / 2)).to(device)


def _parse_scaling(scaling) -> tuple[int, int]:
    x, y = scaling if isinstance(scaling, Sequence) else (scaling, scaling)
    return operator.index(x), operator.index(y)


def _parse_padding(padding) -> tuple[int, int, int, int]:
    """x before, x after, y before, y after."""
    values = list(padding) if isinstance(padding, Sequence) else [padding, padding]
    values = [v if isinstance(v, torch.SymInt) else operator.index(v) for v in values]
    values = [values[0], values[0], values[1], values[1]] if len(values) == 2 else values
    if len(values) != 4:
        raise ValueError(f"padding must be 1, 2 or 4 whole numbers, got {padding}")
    return tuple(values)


def _get_filter_size(f: Tensor | None) -> tuple[int, int]:
    """Width and height of a filter."""
    return (1, 1) if f is None else (f.shape[-1], f.shape[0])


def _added(a: Sequence[int], b: Sequence[int]) -> tuple[int, int, int, int]:
    left, right, top, bottom = (i + j for i, j in zip(a, b, strict=True))
    return left, right, top, bottom


def _up_borders(taps: int, up: int) -> tuple[int, int]:
    """What keeps an enlarged image centred under a filter: before, after."""
    return (taps + up - 1) // 2, (taps - up) // 2


def _down_borders(taps: int, down: int) -> tuple[int, int]:
    """What keeps a reduced image centred under a filter: before, after."""
    return (taps - down + 1) // 2, (taps - down) // 2


def _known_impl(function: str, impl: str) -> None:
    if impl not in ("cuda", "ref"):
        raise ValueError(f"{function}: impl must be 'cuda' or 'ref', got {impl!r}")


# ---- bias_act


class Activation(NamedTuple):
    """A row of the table of activations."""

    func: Callable[..., Tensor]  # of x, and of alpha by keyword
    def_alpha: float
    def_gain: float


activation_funcs = {
    "linear": Activation(lambda x, **_: x, 0, 1),
    "relu": Activation(lambda x, **_: F.relu(x), 0, SQRT2),
    "lrelu": Activation(lambda x, alpha, **_: F.leaky_relu(x, alpha), 0.2, SQRT2),
    "tanh": Activation(lambda x, **_: torch.tanh(x), 0, 1),
    "sigmoid": Activation(lambda x, **_: torch.sigmoid(x), 0, 1),
    "elu": Activation(lambda x, **_: F.elu(x), 0, 1),
    "selu": Activation(lambda x, **_: F.selu(x), 0, 1),
    "softplus": Activation(lambda x, **_: F.softplus(x), 0, 1),
    "swish": Activation(lambda x, **_: torch.sigmoid(x) * x, 0, SQRT2),
}


def bias_act(x, b=None, dim=1, act="linear", alpha=None, gain=None, clamp=None, impl="cuda"):
    """clamp(act(x + b along dim)·gain, ±clamp); alpha and gain None are the activation's own.

    `linear`, `relu` and `lrelu` are `rwm_fast.bias_act`; the rest of the table, and a gain, alpha
    or clamp that it refuses, are plain torch, in float32 for half precision and rounded once.
    """
    _known_impl("bias_act", impl)
    if act not in activation_funcs:
        raise ValueError(f"bias_act: act must be one of {', '.join(activation_funcs)}, got {act!r}")
    kind = activation_funcs[act]
    alpha = float(kind.def_alpha if alpha is None else alpha)
    gain = float(kind.def_gain if gain is None else gain)
    if clamp is not None and clamp < 0:
        raise ValueError(f"bias_act: clamp must be None or at least 0, got {clamp}")
    if b is not None and (b.ndim != 1 or not 0 <= dim < x.ndim or len(b) != x.shape[dim]):
        got = f"b {list(b.shape)} and dim {dim} for x {list(x.shape)}"
        raise ValueError(f"bias_act: b must be one number for every place along dim, got {got}")
    name, slope = "lrelu" if act == "relu" else act, alpha if act == "lrelu" else 0.0
    ours = act in ("linear", "relu", "lrelu") and gain > 0 and slope >= 0 and x.ndim > 0
    if not (ours and (clamp is None or clamp > 0)):
        return _plain_bias_act(x, b, dim, kind, alpha, gain, clamp)
    rows = x[None] if x.ndim == 1 else x if b is None else x.movedim(dim, 1)
    half = x.dtype in (torch.float16, torch.bfloat16)
    if b is not None and b.dtype != x.dtype and not (half and b.dtype == torch.float32):
        b = b.to(x.dtype)
    settings = {"activation": name, "negative_slope": slope, "gain": gain, "clamp": clamp}
    y = _calls.run("nvidia.bias_act", _bias_act, rows, b, **settings)
    return y[0] if x.ndim == 1 else y if b is None else y.movedim(1, dim)


def _plain_bias_act(x, b, dim, kind: Activation, alpha, gain, clamp) -> Tensor:
    _calls.plain("nvidia.bias_act", x)
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    if b is not None:
        wide = wide + b.to(wide.dtype).reshape([-1 if i == dim else 1 for i in range(x.ndim)])
    y = kind.func(wide, alpha=alpha) * gain
    return (y if clamp is None else y.clamp(-clamp, clamp)).to(x.dtype)


# ---- filtered_lrelu


def filtered_lrelu(
    x, fu=None, fd=None, b=None, up=1, down=1, padding=0, gain=SQRT2, slope=0.2, clamp=None,
    flip_filter=False, impl="cuda",
):  # fmt: skip
    """Bias, enlarge by `fu`, leaky ReLU with gain and clamp, reduce by `fd`: three operators."""
    _known_impl("filtered_lrelu", impl)
    x = x if b is None else bias_act(x, b)
    x = upfirdn2d(x, fu, up=up, padding=padding, flip_filter=flip_filter, gain=up**2)
    x = bias_act(x, act="lrelu", alpha=slope, gain=gain, clamp=clamp)
    return upfirdn2d(x, fd, down=down, flip_filter=flip_filter)


# ---- conv2d_resample


def conv2d_resample(
    x, w, f=None, up=1, down=1, padding=0, groups=1, flip_weight=True, flip_filter=False
):
    """As `rwm_fast.conv2d_resample`."""
    settings = {"up": up, "down": down, "padding": _parse_padding(padding), "groups": groups}
    flips = {"flip_weight": bool(flip_weight), "flip_filter": bool(flip_filter)}
    if groups > 1:
        _calls.plain("nvidia.conv2d_resample", x)
        return _conv2d_resample(x, w, f, **settings, **flips)
    return _calls.run("nvidia.conv2d_resample", _conv2d_resample, x, w, f, **settings, **flips)


# ---- fma, grid_sample


def fma(a, b, c):
    """a·b + c, broadcast."""
    _calls.plain("nvidia.fma", a)
    return torch.addcmul(c, a, b)


def grid_sample(input, grid):
    """torch's grid_sample, bilinear, zeros outside, align_corners=False, to every order.

    torch gives its first derivative only. With a grid that takes a gradient it is composed of
    gathers, which torch differentiates; else the derivative is linear and its own adjoint is this.
    """
    _calls.plain("nvidia.grid_sample", input)
    if grid.requires_grad:
        return gradfix.gathered(input, grid)
    return gradfix.GridSample.apply(input, grid)


# ---- what replaces which file

_TAIL = "padding=0, flip_filter=False, gain=1, impl='cuda'"
NAMES: dict[str, Alternatives] = {
    "upfirdn2d": ((f"x, f, up=1, down=1, {_TAIL}", upfirdn2d),),
    "filter2d": ((f"x, f, {_TAIL}", filter2d),),
    "upsample2d": ((f"x, f, up=2, {_TAIL}", upsample2d),),
    "downsample2d": ((f"x, f, down=2, {_TAIL}", downsample2d),),
    "setup_filter": (
        (
            "f, device=torch.device('cpu'), normalize=True, flip_filter=False, gain=1,"
            " separable=None",
            setup_filter,
        ),
    ),
    "bias_act": (
        (
            "x, b=None, dim=1, act='linear', alpha=None, gain=None, clamp=None, impl='cuda'",
            bias_act,
        ),
    ),
    "filtered_lrelu": (
        (
            f"x, fu=None, fd=None, b=None, up=1, down=1, padding=0, gain={ROOT}, slope=0.2,"
            " clamp=None, flip_filter=False, impl='cuda'",
            filtered_lrelu,
        ),
    ),
    "conv2d_resample": (
        (
            "x, w, f=None, up=1, down=1, padding=0, groups=1, flip_weight=True, flip_filter=False",
            conv2d_resample,
        ),
    ),
    "fma": (("a, b, c", fma),),
    "grid_sample": (("input, grid", grid_sample),),
}
_SIZES = {"_parse_padding": _parse_padding, "_get_filter_size": _get_filter_size}
_BUILT = {"_init": lambda: True}  # some programs build the kernels before they use them
_FILES: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "upfirdn2d": (
        ("upfirdn2d", "filter2d", "upsample2d", "downsample2d", "setup_filter"),
        {"_parse_scaling": _parse_scaling, **_SIZES, **_BUILT},
    ),
    "bias_act": (("bias_act",), {"activation_funcs": activation_funcs, **_BUILT}),
    "filtered_lrelu": (("filtered_lrelu",), {**_SIZES, **_BUILT}),
    "conv2d_resample": (("conv2d_resample",), _SIZES),
    "fma": (("fma",), {}),
    "grid_sample_gradfix": (("grid_sample",), {"enabled": False}),
}
OFFERS = [
    Offer("NVIDIA", f"torch_utils.ops.{file}", {name: NAMES[name] for name in names}, more)
    for file, (names, more) in _FILES.items()
]
OFFERS.append(Offer("NVIDIA", "torch_utils.ops.conv2d_gradfix", gradfix.NAMES, gradfix.SWITCHES))
