"""Layers by torch's convolution, with our passes around it."""

from __future__ import annotations

from torch import Tensor

from rwm_fast.ops._memory import LAST, Epilogue
from rwm_fast.ops.modulated_conv2d.cpu import passes
from rwm_fast.ops.modulated_conv2d.layer import Gradients, Layer, Needs
from rwm_fast.ops.modulated_conv2d.torch_convolution import (
    convolution,
    convolution_backward,
    oriented,
)


def _weight(layer: Layer) -> Tensor:
    w = layer.body.weights.wide.to(layer.x.dtype)
    w = oriented(w, layer.geometry.passes, layer.settings.flip_weight)
    return w.contiguous(memory_format=LAST)


def forward(layer: Layer, epilogue: Epilogue) -> Tensor:
    """y = epilogue(conv(W, a·x)) with the filters before and after the convolution."""
    p, z = layer.geometry.passes, passes.scaled(layer)
    z = z if p.before is None else passes.fir(z, layer.filter, p.before)
    u = convolution(z, _weight(layer), p.convolution)
    u = u.contiguous(memory_format=LAST)
    for f in p.after:
        u = passes.fir(u, layer.filter, f)
    return passes.finish(layer, u, epilogue)


def gradients(layer: Layer, du: Tensor, scale: Tensor | None, needs: Needs) -> Gradients:
    """The same way back."""
    p, chain = layer.geometry.passes, layer.geometry.chain
    for i, f in reversed(tuple(enumerate(p.after, start=-len(p.after)))):
        du = passes.fir_adjoint(du, layer.filter, f, chain[i - 1])
    z = layer.x  # unread without dW
    if needs.weight:
        z = passes.scaled(layer)
        z = z if p.before is None else passes.fir(z, layer.filter, p.before)
    elif p.before is not None:
        z = z.new_empty((*z.shape[:2], *chain[1])).contiguous(memory_format=LAST)
    need_z = needs.x or needs.styles
    dz, dw = convolution_backward(du, z, _weight(layer), p.convolution, (need_z, needs.weight))
    dx, ds = (None, None) if dz is None else passes.unscaled(layer, dz, needs)
    if dw is not None:
        dw = oriented(dw, p, layer.settings.flip_weight)
        dw = passes.with_demodulation(layer, dw.to(layer.wide), scale)
    return Gradients(dx, dw, ds)
