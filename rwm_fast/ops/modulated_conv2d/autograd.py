"""The registered operators behind modulated_conv2d and their derivatives; knows no backend.

The first derivative is a registered operator, served by the same backend. Its own derivative is
torch's derivative of `formula.backward`, for every backend, to any order.
"""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor

from rwm_fast.ops import _dispatch, _layout
from rwm_fast.ops._registry import register, wanted
from rwm_fast.ops.modulated_conv2d import formula
from rwm_fast.ops.modulated_conv2d._geometry import Settings, plan, sizes

OP = "modulated_conv2d"
INPUTS = 8  # x, weight, styles, regions_in, regions_out, noise, noise_strength, bias

_TENSORS = (
    "Tensor x, Tensor weight, Tensor styles, Tensor? regions_in, Tensor? regions_out,"
    " Tensor? noise, Tensor? noise_strength, Tensor? bias, Tensor? filter"
)
_SETTINGS = (
    "int up, int down, SymInt[] padding, bool demodulate, bool flip_weight, str activation,"
    " float slope, float gain, float? clamp, float eps"
)

# ---- rwm_fast::modulated_conv2d


def _forward(*arguments):
    tensors, settings = arguments[: INPUTS + 1], Settings(*arguments[INPUTS + 1 :])
    return _dispatch.choose(OP, tensors, settings=settings).forward(*tensors, settings)


def _forward_fake(x, weight, *arguments):
    filter, settings = arguments[INPUTS - 2], Settings(*arguments[INPUTS - 1 :])
    size = sizes(plan(settings, weight, filter), weight, filter, *x.shape[2:])[-1]
    return _layout.empty(x, (x.shape[0], weight.shape[0], *size))


def _save_forward(ctx, inputs, output) -> None:
    ctx.settings = inputs[INPUTS + 1 :]
    ctx.save_for_backward(output, *inputs[: INPUTS + 1])


def _forward_derivative(ctx, dy: Tensor):
    needs = wanted(ctx, range(INPUTS))
    grads = modulated_conv2d_backward(dy, *ctx.saved_tensors, *ctx.settings, needs)
    grads = [g if need else None for g, need in zip(grads, needs, strict=True)]
    return *grads, None, *[None] * len(ctx.settings)


modulated_conv2d = register(
    f"modulated_conv2d({_TENSORS}, {_SETTINGS}) -> Tensor",
    _forward,
    _forward_fake,
    backward=_forward_derivative,
    setup_context=_save_forward,
)

# ---- rwm_fast::modulated_conv2d_backward


def _split(arguments):
    """dy, y and the nine tensors; the settings; the needs."""
    return arguments[: INPUTS + 3], Settings(*arguments[INPUTS + 3 : -1]), arguments[-1]


def _backward(*arguments):
    tensors, settings, needs = _split(arguments)
    backend = _dispatch.choose(OP, tensors[2:], settings=settings)
    return backend.backward(*tensors, settings, needs)


def _backward_fake(*arguments):
    tensors, _, needs = _split(arguments)
    x = tensors[2]
    return tuple(
        _layout.empty(t, t.shape)
        if need
        else x.new_empty(0, dtype=x.dtype if t is None else t.dtype)
        for t, need in zip(tensors[2 : INPUTS + 2], needs, strict=True)
    )


def _save_backward(ctx, inputs, output) -> None:
    tensors, ctx.settings, ctx.needs = _split(inputs)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors)


def _backward_derivative(ctx, *cotangents: Tensor | None):
    """Torch's derivative of the formula; with a graph of its own if a further order is asked."""
    further = torch.is_grad_enabled()
    asked = wanted(ctx, range(INPUTS + 2))
    asked[1] = False  # y tells slopes, constant almost everywhere: torch would answer zeros
    # what nobody differentiates is not computed
    needs = [n and u is not None for n, u in zip(ctx.needs, cotangents, strict=True)]
    with torch.enable_grad(), _without_autocast(ctx.saved_tensors[0].device.type):
        # new names for the tensors: the derivative must stop here and not run on into y's history
        *inputs, filter = [None if t is None else t.view_as(t) for t in ctx.saved_tensors]
        outputs = formula.backward(*inputs, filter, ctx.settings, needs)
        pairs = [
            (o, u)
            for o, u in zip(outputs, cotangents, strict=True)
            if o is not None and u is not None and o.requires_grad
        ]
        sources = [t for t, want in zip(inputs, asked, strict=True) if want]
        grads = [None] * len(sources)
        if pairs and sources:
            outs, us = zip(*pairs, strict=True)
            grads = torch.autograd.grad(outs, sources, us, create_graph=further, allow_unused=True)
    grads = iter(grads)
    answer = [next(grads) if want else None for want in asked]
    return *answer, None, *[None] * len(Settings._fields), None


def _without_autocast(device: str) -> contextlib.AbstractContextManager:
    if torch.is_autocast_enabled(device):
        return torch.autocast(device, enabled=False)
    return contextlib.nullcontext()


modulated_conv2d_backward = register(
    f"modulated_conv2d_backward(Tensor dy, Tensor y, {_TENSORS}, {_SETTINGS}, bool[] needs) -> "
    "(Tensor dx, Tensor dweight, Tensor dstyles, Tensor dregions_in, Tensor dregions_out,"
    " Tensor dnoise, Tensor dnoise_strength, Tensor dbias)",
    _backward,
    _backward_fake,
    backward=_backward_derivative,
    setup_context=_save_backward,
)
