"""The registered operators behind modulated_conv2d and their derivatives; knows no backend.

The first derivative is a registered operator, served by the same backend. Its own derivative is
that of `second.py` where the backend has the passes for it; where the layer is linear but for the
activation's slopes it is made of the same two operators (`_linear_derivative`); else it is torch's
derivative of the eager backend's passes, to any order.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rwm_fast.ops import _check, _dispatch, _memory
from rwm_fast.ops._absent import beside
from rwm_fast.ops._registry import (
    is_plain,
    needed,
    nothing_else,
    pulled_back,
    register,
    without_autocast,
)
from rwm_fast.ops._torch_private import saved_hooks
from rwm_fast.ops.bias_act.autograd import bias_act_backward
from rwm_fast.ops.bias_act.reference import along_channels
from rwm_fast.ops.modulated_conv2d import eager, layer, reference, second
from rwm_fast.ops.modulated_conv2d.geometry import Settings, geometry
from rwm_fast.ops.modulated_conv2d.layer import OP, Needs
from rwm_fast.ops.upfirdn2d.geometry import filter_size

INPUT_NAMES = Needs._fields
INPUTS = len(INPUT_NAMES)
# Its tensors travel as one tuple, which type checkers do not follow.
layer_of: Any = layer.layer_of
COSTLY = (1, 2)  # gradients worth leaving out where x's alone is asked for: weight and styles

_TENSORS = (
    "Tensor x, Tensor weight, Tensor styles, Tensor? regions_in, Tensor? regions_out,"
    " Tensor? noise, Tensor? noise_strength, Tensor? bias, Tensor? filter"
)
_SETTINGS = (
    "int up, int down, SymInt[] padding, bool demodulate, bool flip_weight, str activation,"
    " float slope, float gain, float? clamp, float eps"
)

# ---- rwm_fast::modulated_conv2d


def _prepare(*arguments):
    prepared = layer_of(*arguments[: INPUTS + 1], Settings(*arguments[INPUTS + 1 :]))
    prepared.result_order = _memory.memory_format(arguments[0])
    return prepared


def _forward(prepared):
    return layer.forward(_dispatch.choose(OP, prepared), prepared)


def _forward_fake(x, weight, *arguments):
    filter, settings = arguments[INPUTS - 2], Settings(*arguments[INPUTS - 1 :])
    shape = (weight.shape[2:], filter_size(filter), tuple(x.shape[2:]))
    size = geometry(*settings[:3], *shape).chain[-1]
    return _memory.empty(x, (x.shape[0], weight.shape[0], *size))


def _save_forward(ctx, inputs, output) -> None:
    ctx.settings = inputs[INPUTS + 1 :]
    settings = Settings(*ctx.settings)
    straight = settings.activation == "linear" and settings.clamp is None
    # what no pass backward reads is not saved: it may be changed in place, as after a convolution
    y = None if straight and not settings.demodulate else output
    ctx.save_for_backward(y, *inputs[: INPUTS + 1])


def _forward_derivative(ctx, dy: Tensor):
    """The gradients, straight from the layer that the forward pass prepared where that will do."""
    needs = needed(ctx, INPUTS, costly=COSTLY)
    y, *tensors = ctx.saved_tensors
    y = dy if y is None else y  # any image of that shape
    prepared = getattr(ctx, "call", None)
    ctx.call = None  # not kept longer than the saved tensors are
    if nothing_else(dy):
        if prepared is None:
            x, *rest = tensors
            prepared = layer_of(x, *rest, settings=Settings(*ctx.settings))
        grads = _gradients(prepared, dy, y, tensors, Needs(*needs))
    else:
        grads = modulated_conv2d_backward(dy, y, *tensors, *ctx.settings, needs)
        grads = beside(grads, tensors[INPUTS - 3 : INPUTS])  # noise, its strength, bias
    grads = [g if need else None for g, need in zip(grads, needs, strict=True)]
    return *grads, None, *[None] * len(ctx.settings)


modulated_conv2d = register(
    f"modulated_conv2d({_TENSORS}, {_SETTINGS}) -> Tensor",
    _forward,
    _forward_fake,
    backward=_forward_derivative,
    setup_context=_save_forward,
    truth=reference.modulated_conv2d,
    prepare=_prepare,
)

# ---- rwm_fast::modulated_conv2d_backward


def _split(arguments):
    """dy, y and the nine tensors; the settings; the needs."""
    return arguments[: INPUTS + 3], Settings(*arguments[INPUTS + 3 : -1]), arguments[-1]


def _backward(*arguments):
    (dy, y, *tensors), settings, needs = _split(arguments)
    prepared, needs = layer_of(*tensors, settings), _asked(tensors, needs)
    grads = _gradients(prepared, dy, y, tensors, needs)
    return tuple(
        tensors[0].new_empty(0, dtype=None if t is None else t.dtype) if g is None else g
        for g, t in zip(grads, tensors, strict=False)
    )


def _gradients(prepared, dy, y, tensors, needs: Needs) -> list[Tensor | None]:
    """Those that are needed, each in its argument's dtype, shape and memory format."""
    backend = _dispatch.choose(OP, prepared)
    if (needs.regions_in or needs.regions_out) and not backend.GRADIENTS_OF_REGIONS:
        backend = eager  # regions are not learned: no kernels for their gradients
    empty = not tensors[0].numel()
    grads: list[Tensor | None] = (
        [None] * INPUTS if empty else layer.backward(backend, prepared, dy, y, needs)
    )
    for i, need in enumerate(needs):
        grads[i] = _like(grads[i], tensors[i]) if need else None
    return grads


def _asked(tensors, needs) -> Needs:
    """Raise unless every gradient that is asked for is of an argument that is there."""
    there = [t is not None for t in tensors[:INPUTS]]
    there[6] = there[6] and there[5]  # the noise's strength
    fits = len(needs) == INPUTS and not any(n and not t for n, t in zip(needs, there, strict=True))
    _check.require(fits, OP, "gradients are of arguments that are there", str(needs))
    return Needs(*needs)


def _like(g: Tensor | None, t: Tensor) -> Tensor:
    """A gradient in its argument's dtype, shape and memory format; zeros where none arrived."""
    if g is None:
        return torch.zeros_like(t)
    if g.dtype != t.dtype or g.shape != t.shape:
        g = g.to(t.dtype).reshape(t.shape)
    if g.ndim != 4:
        return g.contiguous()
    return g.contiguous(memory_format=_memory.memory_format(t))


def _backward_fake(*arguments):
    tensors, _, needs = _split(arguments)
    x = tensors[2]
    return tuple(
        _memory.empty(t, t.shape)
        if need
        else x.new_empty(0, dtype=x.dtype if t is None else t.dtype)
        for t, need in zip(tensors[2 : INPUTS + 2], needs, strict=True)
    )


def _backward_truth(*arguments):
    (dy, _, *tensors, filter), settings, needs = _split(arguments)
    truth = lambda *inputs: reference.modulated_conv2d(*inputs, filter, *settings)
    return pulled_back(truth, tensors, needs, dy)


def _save_backward(ctx, inputs, output) -> None:
    tensors, ctx.settings, ctx.needs = _split(inputs)
    ctx.save_for_backward(*tensors)
    ctx.dx = None
    if ctx.needs[0] and ctx.needs[2] and _keeps(output[0]):
        dx = output[0].detach()  # without the graph, which would hold itself
        ctx.dx = dx, dx._version


def _keeps(dx: Tensor) -> bool:
    """Whether dx may spare `second.py` a convolution, and keeping it is no more than saving it."""
    here = dx.device.type == "cpu" and dx.dtype in second.DTYPES  # where a backend reads it
    return here and is_plain((dx,)) and saved_hooks(False) is None


def _backward_derivative(ctx, *cotangents: Tensor | None):
    """Torch's derivative of the passes; with a graph of its own if a further order is asked."""
    further = torch.is_grad_enabled()
    wanted = needed(ctx, INPUTS + 2)
    cotangents = tuple(u if u is not None and u.numel() else None for u in cotangents)
    own = None if further else _second_derivative(ctx, wanted, cotangents)
    if own is not None:
        return *own, None, *[None] * len(Settings._fields), None
    if _is_linear(ctx, wanted, cotangents):
        answer = _linear_derivative(ctx, wanted, cotangents)
        return *answer, None, *[None] * len(Settings._fields), None
    wanted[1] = False  # y tells slopes, constant almost everywhere: torch would answer zeros
    # what nobody differentiates is not computed
    needs = [n and u is not None for n, u in zip(ctx.needs, cotangents, strict=True)]
    with torch.enable_grad(), without_autocast(ctx.saved_tensors[0].device):
        # new names for the tensors: the derivative must stop here and not run on into y's history
        inputs: list[Any]
        *inputs, filter = [None if t is None else t.view_as(t) for t in ctx.saved_tensors]
        dy, y, *tensors = inputs
        order = _memory.memory_format(tensors[0])
        x, *rest = tensors
        plain = layer_of(x, *rest, filter, settings=ctx.settings, order=order)
        outputs = layer.backward(eager, plain, dy, y, Needs(*needs), recover=False)
        pairs = [
            (o, u)
            for o, u in zip(outputs, cotangents, strict=True)
            if o is not None and u is not None and o.requires_grad
        ]
        sources = [t for t, want in zip(inputs, wanted, strict=True) if want]
        grads: Any = [None] * len(sources)
        if pairs and sources:
            outs, us = zip(*pairs, strict=True)
            grads = torch.autograd.grad(outs, sources, us, create_graph=further, allow_unused=True)
    grads = iter(grads)
    answer = [next(grads) if want else None for want in wanted]
    return *answer, None, *[None] * len(Settings._fields), None


def _second_derivative(ctx, wanted, cotangents) -> list[Tensor | None] | None:
    """By the backend's own passes; None where it has none for this call."""
    p, _, t, *others = cotangents
    dy, y, *tensors, filter = ctx.saved_tensors
    x, weight, styles, regions_in, regions_out, *_ = tensors
    served = regions_in is None and regions_out is None and x.dtype in second.DTYPES and x.numel()
    others = (cotangents[1], *others)
    plain = not torch.compiler.is_compiling() and is_plain((dy, p, t))
    if not served or not plain or any(u is not None for u in others):
        return None
    if p is None and t is None:
        return None
    prepared = layer_of(*tensors, filter, settings=ctx.settings)
    backend = _dispatch.choose(OP, prepared)
    if not hasattr(backend, "unwind_twice"):
        return None
    dx, version = ctx.dx or (None, 0)  # kept: a second pass must round as the first did
    dx = dx if dx is not None and dx._version == version else None
    want = second.Wanted(wanted[0], *wanted[2:5])
    with without_autocast(x.device):
        grads = second.derivative(backend, prepared, second.First(dy, y, dx, p, t), want)
    found = zip(grads, (dy, x, weight, styles), strict=True)
    d_dy, *rest = (None if g is None else _like(g, like) for g, like in found)
    return [d_dy, None, *rest, *[None] * (INPUTS - 3)]


def _is_linear(ctx, wanted, cotangents) -> bool:
    """Whether only x, weight and bias count, and y is linear in each but for the slopes.

    So it is for R1 of a discriminator, whose layers have constant styles.
    """
    *_, styles, regions_in, regions_out, _, _, _, _ = ctx.saved_tensors
    no_regions = regions_in is None and regions_out is None
    return (
        no_regions
        and not ctx.settings.demodulate
        and not wanted[2 + INPUT_NAMES.index("styles")]
        and not any(
            u is not None and name not in ("x", "weight", "bias")
            for name, u in zip(INPUT_NAMES, cotangents, strict=True)
        )
    )


def _linear_derivative(ctx, wanted, cotangents) -> list[Tensor | None]:
    """With dv = m⊙dy, m the activation's slope times gain: dx = Aᵀ(W)·dv, dW = B(x, dv) and
    dbias = Σ dv, each linear in each of its arguments. So with cotangents p, Q, r of the three

        d_dy = m⊙(A(W)·p + A(Q)·x + r),   d_W = B(p, dv),   d_x = Aᵀ(Q)·dv,

    where A(W)·x is the layer without bias and activation. m is constant almost everywhere.
    """
    dy, y, x, weight, styles, *_, filter = ctx.saved_tensors
    p, q, r = (cotangents[INPUT_NAMES.index(name)] for name in ("x", "weight", "bias"))
    slopes = ctx.settings[Settings._fields.index("activation") : -1]
    linear = ctx.settings._replace(activation="linear", gain=1.0, clamp=None)
    rest = (styles, *[None] * 5, filter)

    def gradient(name: str, x: Tensor, weight: Tensor) -> Tensor:
        needs = [n == name for n in INPUT_NAMES]
        grads = modulated_conv2d_backward(dy, y, x, weight, *rest, *ctx.settings, needs)
        return grads[INPUT_NAMES.index(name)]

    answer: list[Tensor | None] = [None] * (INPUTS + 2)
    if wanted[0]:
        parts: list[Any] = [
            None if p is None else modulated_conv2d(p, weight, *rest, *linear),
            None if q is None else modulated_conv2d(x, q, *rest, *linear),
            None if r is None else along_channels(r, 4).to(dy.dtype).expand_as(dy),
        ]
        parts = [part for part in parts if part is not None]
        if parts:
            answer[0], _ = bias_act_backward(sum(parts[1:], parts[0]), y, *slopes, [True, False])
    if wanted[2] and q is not None:
        answer[2] = gradient("x", x, q)
    if wanted[3] and p is not None:
        answer[3] = gradient("weight", p, weight)
    return answer


modulated_conv2d_backward = register(
    f"modulated_conv2d_backward(Tensor dy, Tensor y, {_TENSORS}, {_SETTINGS}, bool[] needs) -> "
    "(Tensor dx, Tensor dweight, Tensor dstyles, Tensor dregions_in, Tensor dregions_out,"
    " Tensor dnoise, Tensor dnoise_strength, Tensor dbias)",
    _backward,
    _backward_fake,
    backward=_backward_derivative,
    setup_context=_save_backward,
    truth=_backward_truth,
)
