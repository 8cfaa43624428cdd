"""The second derivative of a layer with one style an image, composed of a backend's passes.

With dv = m ⊙ dy, m the activation's slope times gain, and Q[o, i] = Σ_uv W², the first one is

    dx = a·dz, dz = convᵀ(W, b·dv);   ds = Σ_p x·dz + 2 s·(dq Q), dq = −½ d³ dd, dd = Σ_p dv·u.

Of cotangents p of dx and t of ds all else follows from f = conv(W, e), e = a·p + t·x, and from the
cotangent of dd, h = −½ d³ g with g = 2 (s·t) Qᵀ:

| gradient of | is |
|---|---|
| dy | m ⊙ (b·f + h·u) |
| x | t·dz + a·dz', dz' = convᵀ(W, h·dv) |
| W | B(e, b·dv) + B(a·x, h·dv) + 2 W·(dq'ᵀ s² + 2 dqᵀ (s·t)), B the weight gradient |
| s | Σ_p p·dz + Σ_p x·dz' + 2 s·(dq' Q) + 2 t·(dq Q), dq' = −½ d³ (Σ_p dv·f − 3/2 d² dd g) |

Without demodulation b = 1, and h, dq and dq' are absent; without t, h is.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from rwm_fast.ops import _memory
from rwm_fast.ops._memory import NOTHING, Epilogue
from rwm_fast.ops.modulated_conv2d.layer import OP, Layer, Needs, Passes, Sums

DTYPES = (torch.float32, torch.float64)
SMALLEST = 1e-10  # a style from which dz is read back as dx/a: what underflows then is nothing


class Passes2(Passes, Protocol):
    """A backend that serves second derivatives of its own."""

    def squares(self, layer: Layer) -> Tensor:
        """Q [O, I]."""

    def beside(self, layer: Layer, x: Tensor, styles: Tensor) -> Layer:
        """Another batch and its styles through the weights of a prepared layer."""

    def combine(self, layer: Layer, p: Tensor | None, t: Tensor, both: bool) -> Tensor:
        """e = a·p + t·x [N, I, h, w], with a·x behind it [2N, I, h, w] if `both`."""

    def unwind_twice(
        self, layer: Layer, images: tuple, h: Tensor | None, epilogue: Epilogue, need: bool
    ) -> tuple[Tensor | None, Tensor, Tensor]:
        """Of images dy, y, f and u, or None for u to be read from y: m ⊙ (b·f + h·u) if there is a
        need for it; b·dv [N, O, H, W], with h·dv behind it if there is an h; and [N, 2, O] with
        Σ_p dv·f and Σ_p dv·u."""

    def unscale(
        self, layer: Layer, dx: Tensor, p: Tensor | None, ratio: Tensor, to: Tensor | None
    ) -> Tensor:
        """Adds ratio·dx to an image, if there is one; returns Σ_p p·dx [N, I]."""


class Wanted(NamedTuple):
    """Gradients of dy, x, W and s; or, as truth values, which are wanted."""

    dy: Any = None
    x: Any = None
    weight: Any = None
    styles: Any = None


class First(NamedTuple):
    """The first derivative: what it was given, its dx if that is still as it was, and cotangents of
    dx and ds."""

    dy: Tensor
    y: Tensor
    dx: Tensor | None
    p: Tensor | None
    t: Tensor | None


_NO = Needs(*[False] * len(Needs._fields))


def derivative(backend: Passes2, layer: Layer, first: First, want: Wanted) -> Wanted:
    """The gradients that are wanted; None where nothing arrives."""
    backend.prepare(layer)
    dy, y, dx, p, t = _dense(layer, first)
    n, s = layer.x.shape[0], layer.styles
    demod = _Demodulation(backend, layer, t) if layer.settings.demodulate else None
    h = None if demod is None else demod.h
    operand: Any = p
    styles: Any = s  # what is convolved is operand times styles
    if t is not None:
        operand, styles = backend.combine(layer, p, t, want.weight and h is not None), None
    inner = backend.beside(layer, operand[:n], torch.ones_like(s) if styles is None else s)
    epilogue = layer.epilogue(None if demod is None else demod.d)
    sums: Any = None
    d_dy = None
    if want.dy or demod is not None:
        f = backend.convolve(inner, NOTHING)
        read_back = h is None or layer.dtype in backend.RECOVERS
        u = None if read_back else backend.convolve(layer, NOTHING)
        d_dy, du, sums = backend.unwind_twice(layer, (dy, y, f, u), h, epilogue, want.dy)
    else:
        du = backend.unwind(layer, dy, y, None, epilogue, Sums(du=True)).du
    ds = scale = None
    if demod is not None:
        ds, scale = demod.backward(sums)
    dw = None
    if want.weight:
        outer = inner
        if h is not None:
            outer = backend.beside(layer, operand, s.new_ones(2 * n, 1, s.shape[2]))
        dw = backend.gradients(outer, du, scale, _NO._replace(weight=True)).weight
    d_x, more = _through_inputs(backend, layer, _Inputs(dx, p, t, du, h is not None), want)
    ds = more if ds is None else ds if more is None else ds + more
    return Wanted(d_dy, d_x, dw, ds if want.styles else None)


def _dense(layer: Layer, first: First) -> tuple[Any, ...]:
    """The images in the layer's order and dtype, t [N, 1, I]."""
    dtype, about = layer.x.dtype, {"order": layer.order}
    shapes = (layer.result, layer.result, layer.x.shape, layer.x.shape)
    images = [
        None
        if image is None
        else _memory.dense(OP, name, image.to(dtype), layer.device, shape, (dtype,), **about)
        for name, image, shape in zip(("dy", "y", "dx", "p"), first, shapes, strict=False)
    ]
    t = None if first.t is None else first.t.to(layer.wide).contiguous()
    return *images, t


class _Demodulation:
    """d, h, and what of the result goes through d; matrices of channels only."""

    def __init__(self, backend: Passes2, layer: Layer, t: Tensor | None) -> None:
        self.q, self.s, self.d = backend.squares(layer), layer.styles, backend.demodulation(layer)
        self.h: Any = None
        self.g: Any = None
        self.st: Any = None
        self.t: Any = t
        if t is not None:
            self.st = self.s * t
            self.g = 2 * self.st @ self.q.t()  # [N, 1, O]
            self.h = -0.5 * self.d.pow(3) * self.g

    def backward(self, sums: Tensor) -> tuple[Tensor, Tensor]:
        """ds, and scale [O, I]: the weight's part is 2 W·scale."""
        cubed = -0.5 * self.d.pow(3)
        with_f, with_u = sums[:, :1], sums[:, 1:]
        if self.g is None:
            dq = cubed * with_f
            return 2 * self.s * (dq @ self.q), dq[:, 0].t() @ self.s[:, 0].square()
        later, dq = cubed * (with_f - 1.5 * self.d.square() * with_u * self.g), cubed * with_u
        ds = 2 * (self.s * (later @ self.q) + self.t * (dq @ self.q))
        scale = later[:, 0].t() @ self.s[:, 0].square() + 2 * dq[:, 0].t() @ self.st[:, 0]
        return ds, scale


class _Inputs(NamedTuple):
    dx: Tensor | None
    p: Tensor | None
    t: Tensor | None
    du: Tensor  # b·dv, and h·dv behind it
    twice: bool


def _through_inputs(
    backend: Passes2, layer: Layer, i: _Inputs, want: Wanted
) -> tuple[Tensor | None, Tensor | None]:
    """t·dz + a·dz', and Σ_p p·dz + Σ_p x·dz'."""
    n, s = layer.x.shape[0], layer.styles
    d_x: Any = None
    ds: Any = None
    if i.twice and (want.x or want.styles):
        needs = _NO._replace(x=want.x, styles=want.styles)
        d_x, _, ds, _ = backend.gradients(layer, i.du[n:], None, needs)
    needs = _NO._replace(x=want.x and i.t is not None, styles=want.styles and i.p is not None)
    if not (needs.x or needs.styles):
        return d_x, ds
    if i.dx is not None and s.abs().amin().item() >= SMALLEST:
        ratio = (torch.zeros_like(s) if i.t is None else i.t) / s
        if needs.x and d_x is None:
            d_x = torch.zeros_like(layer.x)
        more = backend.unscale(layer, i.dx, i.p if needs.styles else None, ratio, d_x)[:, None] / s
        return d_x, more if ds is None else ds + more
    x = layer.x if i.p is None else i.p
    other = backend.beside(layer, x, s if i.t is None else i.t)
    add, _, rest, _ = backend.gradients(other, i.du[:n], None, needs)
    return _sum(d_x, add), _sum(ds, rest)


def _sum(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return b if a is None else a if b is None else a.add_(b)
