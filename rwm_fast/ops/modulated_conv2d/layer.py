"""One layer: its tensors, prepared once, and its two directions, composed once.

Symbols: a, b the scales before and after the convolution, z = a·x, u = conv(W, z),
v = b·u + strength·noise + bias, y = clamp(act(v)·gain). The three passes of a backend do the work;
what they hand on is all that is here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from rwm_fast.ops import _check, _memory
from rwm_fast.ops._check import accumulator
from rwm_fast.ops._memory import LAST, NOTHING, Activation, Epilogue
from rwm_fast.ops.modulated_conv2d.demodulation import Bounds, bounds
from rwm_fast.ops.modulated_conv2d.geometry import Geometry, Settings, geometry, prepared

OP = "modulated_conv2d"


@dataclass(slots=True)
class Layer:
    """The tensors of one call, checked and dense: x in `order`, the small ones `wide`."""

    x: Tensor  # [N, I, h, w]
    weight: Tensor  # [O, I, kh, kw], as it came, or bounded
    styles: Tensor  # [N, K, I], likewise
    regions_in: Tensor | None  # [N, K, h, w]
    regions_out: Tensor | None  # [N, K, H, W]; None without demodulation
    noise: Tensor | None  # [N or 1, 1, H, W]
    strength: Tensor | None  # []
    bias: Tensor | None  # [O]
    filter: Tensor | None
    settings: Settings
    geometry: Geometry
    constant: bool  # all images have the same style: a layer of a discriminator
    device: torch.device
    dtype: torch.dtype  # of x as it came
    wide: torch.dtype  # of everything that is not an image
    order: torch.memory_format = LAST  # of all images inside
    result_order: torch.memory_format = LAST  # of y
    body: Any = None  # what a backend's `prepare` made of it
    by: Any = None  # which backend's
    bounds: Bounds | None = None  # what weight and styles were multiplied by, in float16

    @property
    def result(self) -> tuple[int, int, int, int]:
        """The shape of y."""
        return (self.x.shape[0], self.weight.shape[0], *self.geometry.chain[-1])

    @property
    def eps(self) -> float | Tensor:
        """ε as demodulation takes it."""
        eps = self.settings.eps
        return eps if self.bounds is None else self.bounds.eps(eps)

    def bound(self) -> Layer:
        """With weight and styles so small that no product of theirs with x leaves float16."""
        self.bounds = bounds(self.weight, self.styles)
        self.weight = self.weight * self.bounds.weight
        self.styles = self.styles * self.bounds.styles
        return self

    def holds_only(self, x: Tensor) -> bool:
        """Whether keeping the layer keeps no other image alive than x."""
        return self.x is x

    def epilogue(self, d: Tensor | None) -> Epilogue:
        """What follows the convolution and its filters."""
        act = Activation(*self.settings[5:9])
        return Epilogue(d, self.regions_out, self.noise, self.strength, self.bias, act)


class Needs(NamedTuple):
    """Which gradients are asked for."""

    x: bool
    weight: bool
    styles: bool
    regions_in: bool
    regions_out: bool
    noise: bool
    noise_strength: bool
    bias: bool


class Sums(NamedTuple):
    """What one pass back through the epilogue gives, or, as truth values, which are wanted."""

    du: Any = None  # [N, O, H, W], b·dv
    scale: Any = None  # [N, K, O], Σ_p r_k·dv·u
    bias: Any = None  # [O], Σ_np dv
    pixels: Any = None  # [N, 1, H, W], Σ_o dv
    strength: Any = None  # [], Σ noise·dv; pixels may come in its place
    regions: Any = None  # [N, K, H, W], Σ_o d_k·dv·u


class Gradients(NamedTuple):
    """Through the convolution; None where not needed."""

    x: Tensor | None = None
    weight: Tensor | None = None
    styles: Tensor | None = None
    regions_in: Tensor | None = None


class Passes(Protocol):
    """A backend of modulated_conv2d."""

    RECOVERS: tuple[torch.dtype, ...]
    """For which dtypes dv·u may be read back from y, which spares one more convolution. The error
    is that of rounding v: small against u unless noise and bias are many times larger."""
    GRADIENTS_OF_REGIONS: bool

    def supports(self, layer: Layer) -> str | None:
        """As of every backend."""

    def serves_plain(self, dtype: torch.dtype) -> bool:
        """Whether a layer without a style is faster here than as torch's convolution and
        `bias_act`."""

    def prepare(self, layer: Layer) -> None:
        """Give the layer its `body`, and x the dtype in which it computes."""

    def demodulation(self, layer: Layer) -> Tensor:
        """d [N, K, O] (`demodulation.demodulation`)."""

    def demodulation_backward(
        self, layer: Layer, dd: Tensor, d: Tensor, needs: Needs
    ) -> tuple[Tensor | None, Tensor | None]:
        """ds [N, K, I], and scale [O, I]: the weight's part is 2 W·scale."""

    def convolve(self, layer: Layer, epilogue: Epilogue) -> Tensor:
        """epilogue(conv(W, a·x)) with all filters."""

    def unwind(
        self, layer: Layer, dy: Tensor, y: Tensor, u: Tensor | None, epilogue: Epilogue, want: Sums
    ) -> Sums:
        """Back through the epilogue; without u, dv·u is read from y."""

    def gradients(self, layer: Layer, du: Tensor, scale: Tensor | None, needs: Needs) -> Gradients:
        """Back through filters, convolution and a, with 2 W·scale in the weight's."""


def layer_of(
    x: Tensor,
    weight: Tensor,
    styles: Tensor,
    regions_in: Tensor | None,
    regions_out: Tensor | None,
    noise: Tensor | None,
    strength: Tensor | None,
    bias: Tensor | None,
    filter: Tensor | None,
    settings: Settings,
    order: torch.memory_format = LAST,
) -> Layer:
    """Check everything a kernel relies on, and bring it into the form that kernels read."""
    _check.floating(OP, "x", x)
    if not isinstance(weight, Tensor) or not isinstance(styles, Tensor):
        _check.tensor(OP, "weight", weight)
        _check.tensor(OP, "styles", styles)
    if filter is not None:
        filter = _dense_filter(filter, x.device)
    device, dtype, shape, kernels = x.device, x.dtype, x.shape, weight.shape
    if len(shape) != 4 or len(kernels) != 4 or styles.ndim != 3 or kernels[1] != shape[1]:
        _refuse_shapes(x, weight, styles)
    if weight.device != device or not weight.is_floating_point() or not weight.numel():
        _check.require(False, OP, f"weight must be floating, on {device}, not empty", weight)
    up, down, padding = settings[:3]
    size = (shape[2], shape[3])
    taps = (1, 1) if filter is None else (filter.shape[0], filter.shape[-1])
    passes = prepared if type(size[0]) is type(size[1]) is int else geometry  # not traced sizes
    numbers = passes(up, down, tuple(padding), (kernels[2], kernels[3]), taps, size)
    height, width = numbers.chain[-1]
    if height <= 0 or width <= 0 or not size[0] or not size[1]:
        _check.require(bool(size[0] and size[1]), OP, "x must have at least one pixel", x)
        _check.require(False, OP, "padding must leave at least one pixel", x)
    n, k, wide = shape[0], styles.shape[1], accumulator(dtype)
    if k != 1 and (regions_in is None or (settings.demodulate and regions_out is None)):
        _check.require(False, OP, "several styles need regions", styles)
    maps = 1
    if noise is not None:
        if not isinstance(noise, Tensor):
            _check.tensor(OP, "noise", noise)
        maps = n if noise.shape[:1] == (n,) else 1
    about = (device, wide)
    layer = Layer(
        _memory.dense(OP, "x", x, device, shape, (dtype,), order),
        weight,
        _small("styles", styles, (n, k, shape[1]), about),
        None if regions_in is None else _small("regions_in", regions_in, (n, k, *size), about),
        None
        if regions_out is None or not settings.demodulate
        else _small("regions_out", regions_out, (n, k, height, width), about),
        None if noise is None else _small("noise", noise, (maps, 1, height, width), about),
        None
        if strength is None or noise is None
        else _small("noise_strength", strength, (), about),
        None if bias is None else _small("bias", bias, (kernels[0],), about),
        filter,
        settings,
        numbers,
        k == 1 and styles.stride(0) == 0,
        device,
        dtype,
        wide,
        order,
    )
    return layer.bound() if dtype == torch.float16 and settings.demodulate else layer


def _small(
    name: str, t: Tensor, shape: tuple[int, ...], about: tuple[torch.device, torch.dtype]
) -> Tensor:
    """Not an image: dense, of the wide dtype."""
    device, wide = about
    if isinstance(t, Tensor) and t.dtype == wide:
        right = t.shape == shape and t.device == device and t.is_contiguous() and not t.is_neg()
        if right and t.layout is torch.strided:
            return t
    else:
        _check.floating(OP, name, t)
        t = t.to(wide)
    return _memory.dense(OP, name, t, device, shape, (wide,))


def without_style(
    x: Tensor, weight: Tensor, filter: Tensor | None, settings: Settings, geometry: Geometry
) -> Layer:
    """What a backend's `supports` reads of a layer; nothing is prepared."""
    nothing: Any = None
    about = (filter, settings, geometry, True, x.device, x.dtype, accumulator(x.dtype))
    return Layer(x, weight, nothing, None, None, None, None, None, *about)


def _dense_filter(filter: Tensor, device: torch.device) -> Tensor:
    _check.floating(OP, "resample_filter", filter)
    if filter.ndim not in (1, 2):
        _check.require(False, OP, "resample_filter must be [F] or [FH, FW]", filter)
    return _memory.dense(OP, "resample_filter", filter, device, filter.shape, _check.FLOATS)


def _refuse_shapes(x: Tensor, weight: Tensor, styles: Tensor) -> None:
    _check.require(x.ndim == 4, OP, "x must be [N, I, h, w]", x)
    fits = weight.ndim == 4 and weight.shape[1] == x.shape[1]
    _check.require(fits, OP, f"weight must be [O, {x.shape[1]}, kh, kw]", weight)
    _check.require(False, OP, "styles must be [N, K, I]", styles)


def forward(backend: Passes, layer: Layer) -> Tensor:
    """y in `result_order`, in x's dtype as it came."""
    order = layer.result_order
    if not layer.x.numel():
        shape = layer.result
        return torch.empty(shape, dtype=layer.dtype, device=layer.device, memory_format=order)
    backend.prepare(layer)
    layer.by = backend
    d = backend.demodulation(layer) if layer.settings.demodulate else None
    y = backend.convolve(layer, layer.epilogue(d))
    return y.to(layer.dtype).contiguous(memory_format=order)


def backward(
    backend: Passes, layer: Layer, dy: Tensor, y: Tensor, needs: Needs, recover: bool = True
) -> list[Tensor | None]:
    """The gradients, in the order of `Needs`; None where not needed.

    Without `recover` they are differentiable wherever the backend's passes are. (Through y the
    second derivative would meet the bias and the noise, and leave rounding errors where the exact
    answer is 0.)
    """
    if layer.by is not backend:  # else the forward pass has prepared it
        layer.body = None
        backend.prepare(layer)
        layer.by = backend
    dtype, shape = layer.x.dtype, layer.result
    _check.floating(OP, "dy", dy)
    _check.floating(OP, "y", y)
    dy, y = (
        _memory.dense(OP, name, t.to(dtype), layer.device, shape, (dtype,), layer.order)
        for name, t in (("dy", dy), ("y", y))
    )
    in_one = getattr(backend, "in_one", None)  # all passes as one kernel, where there is one
    grads = None if in_one is None else in_one(layer, dy, y, needs)
    if grads is not None:
        return grads
    need_d = layer.settings.demodulate and (needs.weight or needs.styles or needs.regions_out)
    recover = recover and layer.dtype in backend.RECOVERS and not needs.regions_out
    d: Any = backend.demodulation(layer) if layer.settings.demodulate else None
    u = backend.convolve(layer, NOTHING) if need_d and not recover else None
    need_conv = needs.x or needs.weight or needs.styles or needs.regions_in
    regions = need_d and needs.regions_out
    want = Sums(need_conv, need_d, needs.bias, needs.noise, needs.noise_strength, regions)
    sums = backend.unwind(layer, dy, y, u, layer.epilogue(d), want)
    ds, scale = None, None
    if need_d:
        ds, scale = backend.demodulation_backward(layer, sums.scale, d, needs)
    g = backend.gradients(layer, sums.du, scale, needs) if need_conv else Gradients()
    dweight, dstyles = g.weight, g.styles if ds is None or g.styles is None else ds + g.styles
    if layer.bounds is not None:
        dweight = None if dweight is None else dweight * layer.bounds.weight
        dstyles = None if dstyles is None else dstyles * layer.bounds.styles
    dnoise, dstrength = _noise_gradients(layer, sums, needs)
    dbias = sums.bias if needs.bias else None
    return [g.x, dweight, dstyles, g.regions_in, sums.regions, dnoise, dstrength, dbias]


def _noise_gradients(layer: Layer, sums: Sums, needs: Needs) -> tuple[Tensor | None, Tensor | None]:
    """dnoise = strength·Σ_o dv, summed over the images that share it; dstrength = Σ noise·dv."""
    noise: Any = layer.noise
    dnoise, dstrength, pixels = None, sums.strength, sums.pixels
    if pixels is not None and noise.shape[0] != pixels.shape[0]:
        pixels = pixels.sum(0, keepdim=True)
    if needs.noise:
        dnoise = pixels if layer.strength is None else layer.strength * pixels
    if needs.noise_strength and dstrength is None:
        dstrength = (pixels * noise).sum()
    return dnoise, dstrength
