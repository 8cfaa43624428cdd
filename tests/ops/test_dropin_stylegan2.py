"""Swapping one function in a StyleGAN2-type synthesis layer changes no number.

The layer and its operators are written here the way the field writes them: weights made for every
image, one grouped convolution for the batch, resampling by zeros, padding and a filter.
"""

from functools import partial

import pytest
import torch
import torch.nn.functional as F

from rwm_fast import bias_act, conv2d_resample, modulated_conv2d, upfirdn2d

DTYPE = torch.float64
LOW_PASS = torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=DTYPE) / 8
FILTERS = {
    "four_taps": LOW_PASS,
    "outer": LOW_PASS.outer(LOW_PASS),
    "three_taps": torch.tensor([1.0, 2.0, 1.0], dtype=DTYPE) / 4,
    "uneven": torch.tensor([[0.5, -0.25, 1.0], [0.125, 0.375, -0.75]], dtype=DTYPE),
    "none": None,
}


def field_upfirdn2d(x, f, up=1, down=1, padding=(0, 0, 0, 0), flip_filter=False, gain=1):
    n, c, h, w = x.shape
    z = torch.zeros(n, c, h, up, w, up, dtype=x.dtype)
    z[:, :, :, 0, :, 0] = x
    z = z.reshape(n, c, h * up, w * up)
    z = F.pad(z, [max(p, 0) for p in padding])
    left, right, top, bottom = (max(-p, 0) for p in padding)
    z = z[:, :, top : z.shape[2] - bottom, left : z.shape[3] - right]
    f = torch.ones(1, 1, dtype=x.dtype) if f is None else f
    f = (f.outer(f) if f.ndim == 1 else f) * gain
    f = f if flip_filter else f.flip([0, 1])
    z = F.conv2d(z, f[None, None].repeat(c, 1, 1, 1), groups=c)
    return z[:, :, ::down, ::down]


def field_conv2d_resample(x, w, f, up, down, padding, groups, flip_weight):
    """The field's general path: everything at the fine resolution."""
    fh, fw = (1, 1) if f is None else (f.shape[0], f.shape[-1])
    px0, px1, py0, py1 = padding if isinstance(padding, tuple) else [padding] * 4
    if up > 1:
        px0, px1 = px0 + (fw + up - 1) // 2, px1 + (fw - up) // 2
        py0, py1 = py0 + (fh + up - 1) // 2, py1 + (fh - up) // 2
    if down > 1:
        px0, px1 = px0 + (fw - down + 1) // 2, px1 + (fw - down) // 2
        py0, py1 = py0 + (fh - down + 1) // 2, py1 + (fh - down) // 2
    before = f if up > 1 else None
    x = field_upfirdn2d(x, before, up=up, padding=(px0, px1, py0, py1), gain=up**2)
    x = F.conv2d(x, w if flip_weight else w.flip([2, 3]), groups=groups)
    return field_upfirdn2d(x, f, down=down) if down > 1 else x


def field_modulated_conv2d(
    x,
    weight,
    styles,
    noise=None,
    up=1,
    down=1,
    padding=0,
    resample_filter=None,
    demodulate=True,
    flip_weight=True,
    fused_modconv=True,
):
    n, (o, i, kh, kw) = x.shape[0], weight.shape
    w = weight[None] * styles.reshape(n, 1, i, 1, 1)  # [N, O, I, kh, kw]
    d = (w.square().sum([2, 3, 4]) + 1e-8).rsqrt()  # [N, O]
    settings = {"up": up, "down": down, "padding": padding, "flip_weight": flip_weight}
    if not fused_modconv:
        x = x * styles.reshape(n, i, 1, 1)
        x = field_conv2d_resample(x, weight, resample_filter, groups=1, **settings)
        x = x * d.reshape(n, o, 1, 1) if demodulate else x
    else:
        w = w * d.reshape(n, o, 1, 1, 1) if demodulate else w
        x = x.reshape(1, n * i, *x.shape[2:])
        w = w.reshape(n * o, i, kh, kw)
        x = field_conv2d_resample(x, w, resample_filter, groups=n, **settings)
        x = x.reshape(n, o, *x.shape[2:])
    return x if noise is None else x + noise


class SynthesisLayer(torch.nn.Module):
    """Affine style, modulated convolution, noise, bias, leaky ReLU."""

    def __init__(self, op, in_channels, out_channels, kernel_size, size, up, down, f, **more):
        super().__init__()
        generator = torch.Generator().manual_seed(0)

        def normal(*shape):
            return torch.randn(shape, generator=generator, dtype=DTYPE)

        self.op, self.up, self.down, self.more = op, up, down, more
        self.padding = kernel_size // 2
        self.register_buffer("resample_filter", f)
        self.affine = torch.nn.Linear(7, in_channels, dtype=DTYPE)
        torch.nn.init.normal_(self.affine.weight, generator=generator)
        torch.nn.init.ones_(self.affine.bias)
        self.weight = torch.nn.Parameter(
            normal(out_channels, in_channels, kernel_size, kernel_size)
        )
        self.register_buffer("noise_const", normal(*size))
        self.noise_strength = torch.nn.Parameter(torch.tensor(0.3, dtype=DTYPE))
        self.bias = torch.nn.Parameter(normal(out_channels))

    def forward(self, x, w, noise_mode):
        size = (x.shape[0], 1, *self.noise_const.shape)
        generator = torch.Generator().manual_seed(1)
        noise = {
            "none": None,
            "const": self.noise_const * self.noise_strength,
            "random": torch.randn(size, generator=generator, dtype=DTYPE) * self.noise_strength,
        }[noise_mode]
        x = self.op(
            x=x,
            weight=self.weight,
            styles=self.affine(w),
            noise=noise,
            up=self.up,
            down=self.down,
            padding=self.padding,
            resample_filter=self.resample_filter,
            **self.more,
        )
        x = F.leaky_relu(x + self.bias.reshape(1, -1, 1, 1), 0.2) * 2**0.5
        return x.clamp(-256, 256)


def _layers(kernel_size, up, down, f, **more):
    size = (6 * up // down, 8 * up // down)
    field, ours = (
        SynthesisLayer(op, 5, 4, kernel_size, size, up, down, f, **more)
        for op in (field_modulated_conv2d, modulated_conv2d)
    )
    ours.load_state_dict(field.state_dict())
    return field, ours


def _results(layer, noise_mode):
    """Output, gradients, and the gradients of a penalty on the gradient (R1, path length)."""
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(3, 5, 6, 8, generator=generator, dtype=DTYPE, requires_grad=True)
    w = torch.randn(3, 7, generator=generator, dtype=DTYPE, requires_grad=True)
    y = layer(x, w, noise_mode)
    sources = [x, w, *(p for n, p in layer.named_parameters() if n != "noise_strength")]
    if noise_mode != "none":
        sources.append(layer.noise_strength)
    cotangent = torch.randn(y.shape, generator=generator, dtype=DTYPE)
    grads = torch.autograd.grad(y, sources, cotangent, create_graph=True)
    penalty = grads[0].square().sum() + grads[1].square().sum()
    seconds = torch.autograd.grad(
        penalty, [x, w, layer.weight], allow_unused=True, materialize_grads=True
    )
    return [y, *grads, *seconds]


def _assert_same(field, ours, noise_mode):
    results = zip(_results(field, noise_mode), _results(ours, noise_mode), strict=True)
    for expected, found in results:
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("flip_weight", [True, False])
@pytest.mark.parametrize("kernel_size", [1, 3])
@pytest.mark.parametrize(
    ("up", "down", "f"),
    [(1, 1, "none"), *((u, d, f) for u, d in ((2, 1), (1, 2)) for f in FILTERS)],
)
def test_layer(kernel_size, up, down, f, flip_weight):
    layers = _layers(kernel_size, up, down, FILTERS[f], flip_weight=flip_weight)
    _assert_same(*layers, "random")


@pytest.mark.parametrize("noise_mode", ["none", "const", "random"])
@pytest.mark.parametrize("demodulate", [True, False])
@pytest.mark.parametrize("fused_modconv", [True, False])
def test_layer_modes(noise_mode, demodulate, fused_modconv):
    layers = _layers(3, 2, 1, LOW_PASS, demodulate=demodulate, fused_modconv=fused_modconv)
    _assert_same(*layers, noise_mode)


def test_up_and_down():
    _assert_same(*_layers(3, 2, 2, LOW_PASS), "random")


def test_positional_arguments():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 4, 5, generator=generator, dtype=DTYPE)
    weight = torch.randn(2, 3, 3, 3, generator=generator, dtype=DTYPE)
    styles = torch.randn(2, 3, generator=generator, dtype=DTYPE)
    noise = torch.randn(8, 10, generator=generator, dtype=DTYPE)
    arguments = (x, weight, styles, noise, 2, 1, 1, LOW_PASS, False, False, False)
    torch.testing.assert_close(modulated_conv2d(*arguments), field_modulated_conv2d(*arguments))


@pytest.mark.parametrize("noise_mode", ["none", "const"])
def test_fused_epilogue(noise_mode):
    """Noise strength, bias, activation and clamp given to the operator: the same layer."""
    field, ours = _layers(3, 2, 1, LOW_PASS)

    def forward(x, w, noise_mode):
        return modulated_conv2d(
            x,
            ours.weight,
            ours.affine(w),
            noise=ours.noise_const if noise_mode == "const" else None,
            up=2,
            padding=1,
            resample_filter=LOW_PASS,
            noise_strength=ours.noise_strength,
            bias=ours.bias,
            activation="lrelu",
            gain=2**0.5,
            clamp=256,
        )

    ours.forward = forward
    _assert_same(field, ours, noise_mode)


@pytest.mark.parametrize("f", FILTERS)
@pytest.mark.parametrize("flip_filter", [True, False])
@pytest.mark.parametrize(("up", "down"), [(1, 1), (2, 1), (1, 2), (3, 2)])
@pytest.mark.parametrize("padding", [(0, 0, 0, 0), (2, 1, 3, 0), (-1, 2, 1, -1), (6, 5, 4, 7)])
def test_upfirdn2d(f, flip_filter, up, down, padding):
    x = torch.randn(2, 3, 6, 5, dtype=DTYPE, generator=torch.Generator().manual_seed(0))
    settings = {"up": up, "down": down, "flip_filter": flip_filter, "gain": 1.5}
    expected = field_upfirdn2d(x, FILTERS[f], padding=padding, **settings)
    found = upfirdn2d(x, FILTERS[f], padding=padding, **settings)
    torch.testing.assert_close(found, expected)


def _to_second_order(function, x, w):
    """Result, gradients, and gradients of a penalty on those."""
    x, w = (t.detach().requires_grad_() for t in (x, w))
    y = function(x, w)
    cotangent = torch.randn(y.shape, generator=torch.Generator().manual_seed(2), dtype=DTYPE)
    cotangent.requires_grad_()
    grads = torch.autograd.grad(y, (x, w), cotangent, create_graph=True)
    penalty = sum(g.square().sum() for g in grads)
    return [y, *grads, *torch.autograd.grad(penalty, (x, w, cotangent))]


def _swapped(function, *rest):
    """The function with x and w, which come last here, in front."""
    return function(*rest[-2:], *rest[:-2])


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("kernel_size", [1, 3])
@pytest.mark.parametrize("padding", [1, (2, 1, 3, -1)])
@pytest.mark.parametrize(
    ("up", "down", "f"),
    [
        (1, 1, "outer"), (2, 1, "four_taps"), (1, 2, "uneven"), (2, 2, "outer"), (3, 1, "uneven"),
        (2, 1, "none"), (1, 2, "none"), (1, 3, "three_taps"),
    ],
)  # fmt: skip
def test_conv2d_resample(up, down, f, padding, kernel_size, groups):
    """By position and by name, weight and filter turned over or not."""
    generator, f = torch.Generator().manual_seed(0), FILTERS[f]
    x = torch.randn(2, 4, 6, 7, generator=generator, dtype=DTYPE)
    w = torch.randn(6, 4 // groups, kernel_size, kernel_size, generator=generator, dtype=DTYPE)
    turned = None if f is None else f.flip(list(range(f.ndim)))
    names = ("x", "w", "f", "up", "down", "padding", "groups", "flip_weight", "flip_filter")
    for flip in (True, False):
        taps, rest = turned if flip else f, (up, down, padding, groups, flip)
        positional = partial(_swapped, conv2d_resample, f, *rest, flip)
        named = lambda x, w, rest=rest: conv2d_resample(
            **dict(zip(names, (x, w, f, *rest, rest[-1]), strict=True))
        )
        expected = _to_second_order(partial(_swapped, field_conv2d_resample, taps, *rest), x, w)
        for call in (positional, named):
            for found, wanted in zip(_to_second_order(call, x, w), expected, strict=True):
                torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-10)


def test_conv2d_resample_defaults():
    x, w = torch.randn(2, 4, 6, 7, dtype=DTYPE), torch.randn(3, 4, 3, 3, dtype=DTYPE)
    torch.testing.assert_close(conv2d_resample(x, w), F.conv2d(x, w))


def test_bias_act():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 4, 5, dtype=DTYPE, generator=generator)
    b = torch.randn(3, dtype=DTYPE, generator=generator)
    expected = (F.leaky_relu(x + b.reshape(1, 3, 1, 1), 0.2) * 2**0.5).clamp(-1, 1)
    torch.testing.assert_close(bias_act(x, b, activation="lrelu", clamp=1.0), expected)
