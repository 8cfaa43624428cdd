"""What is particular to modulated_conv2d: regions, the forms of its arguments, higher orders."""

import pytest
import torch
import torch.nn.functional as F

from rwm_fast import modulated_conv2d, use_backend
from rwm_fast.ops import _extension
from rwm_fast.ops.modulated_conv2d import eager, layer
from rwm_fast.ops.modulated_conv2d.geometry import Settings, geometry

DTYPE = torch.float64
LOW_PASS = torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=DTYPE) / 8
RESAMPLING = {
    "same": {"padding": 1},
    "up2": {"padding": 1, "up": 2, "resample_filter": LOW_PASS, "flip_weight": False},
    "down2": {"padding": 1, "down": 2, "resample_filter": LOW_PASS},
}
by_resampling = pytest.mark.parametrize("resampling", RESAMPLING)


def _normal(*shape, seed=0, dtype=DTYPE):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=DTYPE).to(dtype)


def _layer(k=1, size=(12, 10), dtype=DTYPE):
    """x, weight, styles [N, K, I]."""
    return (
        _normal(2, 5, *size, seed=1, dtype=dtype),
        _normal(4, 5, 3, 3, seed=2, dtype=dtype),
        1 + 0.5 * _normal(2, k, 5, seed=3, dtype=dtype),
    )


@by_resampling
@pytest.mark.parametrize("k", [1, 2, 5, 8])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_one_region_everywhere_is_the_single_style_layer(resampling, k, layout):
    """Bit for bit in float64, and so is a mask that is 1 everywhere, at any resolution."""
    x, weight, styles = _layer(k)
    x = x.contiguous(memory_format=layout)
    settings = {**RESAMPLING[resampling], "bias": _normal(4), "activation": "lrelu"}
    for which in range(k):
        regions = torch.zeros(2, k, 7, 33, dtype=DTYPE)
        regions[:, which] = 1
        found = modulated_conv2d(x, weight, styles, regions=regions, **settings)
        assert torch.equal(found, modulated_conv2d(x, weight, styles[:, which], **settings))


@by_resampling
@pytest.mark.parametrize("k", [2, 3, 4])
def test_regions_select_away_from_borders(resampling, k):
    """The oracle: run the layer once a style, take each pixel from its region's result."""
    x, weight, styles = _layer(k, size=(40, 36))
    settings = RESAMPLING[resampling]
    # stripes of 9 to 18 columns of the input, in another order for each image
    stripes = torch.arange(36) * k // 36
    labels = torch.stack([stripes, stripes.flip(0)])[:, None].expand(2, 40, 36)  # [N, H, W]
    regions = F.one_hot(labels, k).movedim(-1, 1).to(DTYPE)  # [N, K, H, W]
    found = modulated_conv2d(x, weight, styles, regions=regions, **settings)
    each = torch.stack(
        [modulated_conv2d(x, weight, s, **settings) for s in styles.unbind(1)], 1
    )  # [N, K, O, H, W]
    r_out = F.adaptive_avg_pool2d(regions, found.shape[2:])
    oracle = (each * r_out[:, :, None]).sum(1)
    # a pixel of the result sees at most 4 pixels of the input on every side
    pure = F.max_pool2d(regions, 9, stride=1, padding=4).sum(1, keepdim=True) == 1
    away = F.interpolate(pure.double(), size=found.shape[2:], mode="area") == 1
    assert away.any()
    torch.testing.assert_close(found * away, oracle * away)


def test_blends_are_linear_in_the_scales():
    """A 1×1 layer without demodulation blends exactly: Σ r_k y_k."""
    x, _, styles = _layer(3)
    weight = _normal(4, 5, 1, 1)
    regions = _normal(2, 3, 12, 10, seed=4).softmax(1)
    found = modulated_conv2d(x, weight, styles, regions=regions, demodulate=False)
    each = [modulated_conv2d(x, weight, s, demodulate=False) for s in styles.unbind(1)]
    expected = sum(r[:, None] * y for r, y in zip(regions.unbind(1), each, strict=True))
    torch.testing.assert_close(found, expected)


@by_resampling
def test_regions_of_any_resolution(resampling):
    x, weight, styles = _layer(2)
    settings = RESAMPLING[resampling]
    coarse = _normal(2, 2, 6, 5, seed=4).softmax(1)
    fine = coarse.repeat_interleave(8, 2).repeat_interleave(8, 3)
    found = modulated_conv2d(x, weight, styles, regions=fine, **settings)
    expected = modulated_conv2d(x, weight, styles, regions=coarse, **settings)
    torch.testing.assert_close(found, expected)


def test_bool_regions():
    x, weight, styles = _layer(2)
    mask = _normal(2, 1, 12, 10, seed=4) > 0
    regions = torch.cat([~mask, mask], 1)
    found = modulated_conv2d(x, weight, styles, regions=regions, padding=1)
    assert torch.equal(
        found, modulated_conv2d(x, weight, styles, regions=regions.to(DTYPE), padding=1)
    )


def test_a_pixel_without_region_keeps_gradients_finite():
    """Such regions break the contract (their sum is 0), but not the training."""
    x, weight, styles = (t.float().requires_grad_() for t in _layer(2))
    regions = torch.zeros(2, 2, 12, 10)
    regions[:, 0, :6] = 1
    y = modulated_conv2d(x, weight, styles, regions=regions, padding=1)
    grads = torch.autograd.grad(y.square().sum(), (x, weight, styles))
    assert all(g.isfinite().all() for g in grads)


def test_scale_of_the_style_does_not_matter():
    x, weight, styles = _layer()
    y = modulated_conv2d(x, weight, styles[:, 0], eps=0.0)
    torch.testing.assert_close(modulated_conv2d(x, weight, 7 * styles[:, 0], eps=0.0), y)


def test_forms_of_padding():
    x, weight, styles = _layer()

    def run(padding):
        return modulated_conv2d(x, weight, styles[:, 0], padding=padding)

    assert torch.equal(run(1), run([1, 1, 1, 1])) and torch.equal(run((2, 0)), run([2, 2, 0, 0]))
    padded = F.pad(x, [2, 0, 1, 3])
    expected = modulated_conv2d(padded, weight, styles[:, 0])
    torch.testing.assert_close(run([2, 0, 1, 3]), expected)
    cropped = modulated_conv2d(x[:, :, 1:, :-2], weight, styles[:, 0])
    torch.testing.assert_close(run([0, -2, -1, 0]), cropped)


def test_forms_of_noise():
    x, weight, styles = _layer()
    plane = _normal(12, 10, seed=5)

    def run(noise, strength=None):
        return modulated_conv2d(x, weight, styles[:, 0], noise, padding=1, noise_strength=strength)

    y = run(plane)
    assert torch.equal(y, run(plane[None, None]))
    assert torch.equal(y, run(plane.expand(2, 1, 12, 10)))
    assert torch.equal(y, run(plane, 1.0)) and torch.equal(run(plane, 0.0), run(None))
    tensor = torch.tensor([0.3], dtype=DTYPE)
    assert torch.equal(run(plane, 0.3), run(plane, tensor))
    assert torch.equal(run(plane, tensor), run(plane, tensor[0]))
    torch.testing.assert_close(run(plane, 0.3), run(plane * 0.3))


def test_an_unused_strength_gets_no_gradient():
    """Layers keep a strength even when they are run without noise."""
    x, weight, styles = _layer()
    strength = torch.zeros((), dtype=DTYPE, requires_grad=True)
    weight.requires_grad_()
    y = modulated_conv2d(x, weight, styles[:, 0], None, noise_strength=strength)
    grads = torch.autograd.grad(y.sum(), (weight, strength), allow_unused=True)
    assert grads[0] is not None and grads[1] is None


def test_gradients_keep_dtypes_and_formats():
    x, weight, styles = _layer(2, dtype=torch.float32)
    x = x.bfloat16().contiguous(memory_format=torch.channels_last).requires_grad_()
    weight = weight.contiguous(memory_format=torch.channels_last).requires_grad_()
    regions = torch.rand(2, 2, 12, 10, generator=torch.Generator().manual_seed(0))
    regions = regions.bfloat16().requires_grad_()
    styles.requires_grad_()
    y = modulated_conv2d(x, weight, styles, regions=regions, padding=1)
    assert y.dtype == torch.bfloat16 and y.is_contiguous(memory_format=torch.channels_last)
    y.sum().backward()
    for t in (x, weight, styles, regions):
        assert t.grad.dtype == t.dtype and t.grad.stride() == t.stride()


@pytest.mark.parametrize("k", [1, 2])
def test_only_what_is_asked_for(k):
    """Every subset of gradients equals the same gradients asked for together."""
    x, weight, styles = _layer(k, size=(4, 3), dtype=torch.float32)
    tensors = {
        "x": x,
        "weight": weight,
        "styles": styles,
        "regions": None if k == 1 else _normal(2, k, 4, 3, dtype=torch.float32).softmax(1),
        "noise": _normal(1, 1, 4, 3, seed=6, dtype=torch.float32),
        "noise_strength": torch.tensor(0.2),
        "bias": _normal(4, seed=7, dtype=torch.float32),
    }

    def gradients(names):
        arguments = {n: None if t is None else t.clone() for n, t in tensors.items()}
        sources = [arguments[name].requires_grad_() for name in names]
        y = modulated_conv2d(**arguments, padding=1, activation="lrelu")
        dy = _normal(*y.shape, seed=8, dtype=y.dtype)
        return dict(zip(names, torch.autograd.grad(y, sources, dy), strict=True))

    names = [name for name, t in tensors.items() if t is not None]
    together = gradients(names)
    for name in names:
        torch.testing.assert_close(gradients([name])[name], together[name])


@pytest.mark.parametrize("clamp", [None, 1.7])
@by_resampling
def test_third_order(resampling, clamp):
    x, weight, styles = _layer(2, size=(4, 4))
    regions = _normal(2, 2, 4, 4, seed=4).softmax(1)
    settings = {**RESAMPLING[resampling], "activation": "lrelu", "clamp": clamp}

    def second(x, weight, styles):
        y = modulated_conv2d(x, weight, styles, regions=regions, **settings)
        first = torch.autograd.grad(y.square().sum(), (x, styles), create_graph=True)
        total = sum(g.square().sum() for g in first)
        return torch.autograd.grad(total, (x, weight, styles), create_graph=True)

    inputs = [t.requires_grad_() for t in (x, weight, styles)]
    assert torch.autograd.gradcheck(second, inputs, fast_mode=True)


def test_u_read_back_equals_u_computed():
    """In float32, with noise and bias several times as large as what the convolution gives."""
    x, weight, styles = _layer(dtype=torch.float32)
    noise, bias = 3 * torch.ones(1, 1, 12, 10), torch.tensor([4.0, -4.0, 1.0, -1.0])
    settings = Settings(1, 1, [1] * 4, True, True, "lrelu", 0.2, 1.4, None, 1e-8)
    inputs = (x, weight, styles, None, None, noise, torch.tensor(0.5), bias, None)
    with use_backend("eager"):
        y = torch.ops.rwm_fast.modulated_conv2d(*inputs, *settings)
    dy = _normal(*y.shape, dtype=torch.float32)
    needs = layer.Needs(*[True] * 3, *[False] * 5)
    computed, read = (
        layer.backward(eager, layer.layer_of(*inputs, settings), dy, y, needs, recover=r)
        for r in (False, True)
    )
    # u is of size 1 and v of size up to 9: a ULP of v is at most 16 of u's, summed over 120 pixels
    tolerance = 16 * torch.finfo(torch.float32).eps * 120**0.5
    for a, b in zip(computed[:3], read[:3], strict=True):
        assert (a - b).abs().max() <= tolerance * a.abs().max()


@pytest.mark.parametrize("backend", ["native", "eager"])
def test_the_registered_operator_refuses_what_kernels_would_read_past(backend):
    x, weight, styles = _layer(dtype=torch.float32)
    settings = Settings(1, 1, [1] * 4, True, True, "lrelu", 0.2, 1.4, None, 1e-8)

    def call(x=x, styles=styles, regions=(None, None), noise=None):
        tensors = (x, weight, styles, *regions, noise, None, None, None)
        return torch.ops.rwm_fast.modulated_conv2d(*tensors, *settings)

    two, regions = styles.repeat(1, 2, 1), torch.ones(2, 2, 12, 10)
    if backend == "native" and _extension.cpu() is None:
        pytest.skip(_extension.why_not_cpu())
    with use_backend(backend):
        call(noise=torch.ones(2, 1, 12, 10))
        call(styles=two, regions=(regions, regions))
        with pytest.raises(
            ValueError, match=r"noise must be \[1, 1, 12, 10\], got \[3, 1, 12, 10\]"
        ):
            call(noise=torch.ones(3, 1, 12, 10))
        for missing in ((None, None), (regions, None)):
            with pytest.raises(ValueError, match="several styles need regions"):
                call(styles=two, regions=missing)
        with pytest.raises(ValueError, match="x must have at least one pixel"):
            call(x=x[:, :, :0])


def test_autocast_is_ignored():
    """The operator works in the dtypes it is given, in every order."""
    x, weight, styles = (t.float().requires_grad_() for t in _layer())

    def run():
        y = modulated_conv2d(x, weight, styles, padding=1, up=2, resample_filter=LOW_PASS)
        (dx,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        return y, dx, *torch.autograd.grad(dx.square().sum(), (weight, styles))

    expected = run()
    with torch.autocast("cpu", torch.bfloat16):
        found = run()
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("kernel", [1, 2, 3, 5])
@pytest.mark.parametrize(("up", "down"), [(1, 1), (2, 1), (1, 2), (3, 1), (2, 2), (3, 2)])
@pytest.mark.parametrize("taps", [None, 1, 3, 4])
def test_size_of_the_result(kernel, up, down, taps):
    """The chain of sizes, which the fake implementation uses, is what comes out."""
    filter = None if taps is None else torch.ones(taps, dtype=DTYPE)
    for h, w in ((6, 7), (3, 4)):
        x = torch.zeros(1, 1, h, w, dtype=DTYPE)
        weight, styles = torch.ones(1, 1, kernel, kernel, dtype=DTYPE), torch.ones(1, 1).double()
        padding = [kernel // 2] * 4
        settings = Settings(up, down, padding, True, True, "linear", 0.2, 1.0, None, 0.0)
        about = ((kernel, kernel), (taps or 1,) * 2, (h, w))
        expected = geometry(*settings[:3], *about).chain[-1]
        y = modulated_conv2d(x, weight, styles, None, up, down, padding, filter)
        assert tuple(y.shape[2:]) == expected
        if kernel % 2:
            assert expected == (h * up // down, w * up // down)
