"""ModulatedConv2d, ToRGB and the code modulation against per-sample weights and the formulas."""

import math

import pytest
import torch
import torch.nn.functional as F

from rwm_fast.nn.blocks import SpatialCodeModulation
from rwm_fast.nn.layers import ModulatedConv2d, ToRGB

F64 = torch.float64
ROUNDING = 1e-12  # float64: up to 200 products of numbers of order 1, a root and a division


def close(a, b):
    torch.testing.assert_close(a, b, rtol=ROUNDING, atol=ROUNDING)


def filled(module):
    """The module in float64 with random parameters, biases and noise strengths too."""
    torch.manual_seed(1)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)
    return module.double()


def affine(layer, style):
    return style @ layer.affine.weight.T / math.sqrt(style.shape[-1]) + layer.affine.bias


def per_sample(layer, x, style, noise):
    """The layer as published: every picture has its own weights."""
    styles, out = affine(layer, style), []
    for i in range(x.shape[0]):
        w, s = layer.weight, styles[i].view(1, -1, 1, 1)
        fan_in = w[0].numel()
        if layer.demodulation == "style":
            w = w * s / math.sqrt(fan_in)
            w = w / (w.square().sum((1, 2, 3), keepdim=True) + 1e-8).sqrt()
        elif layer.demodulation == "weight":
            w = w / (w.square().sum((1, 2, 3), keepdim=True) + 1e-8).sqrt()
            w = w * s / (s.square().mean() + 1e-8).sqrt()
        else:
            w = w * s / math.sqrt(fan_in)
        if layer.up == 2:
            y = F.conv_transpose2d(x[i : i + 1], w.transpose(0, 1).flip(2, 3), stride=2)
            taps = layer.resample_filter
            t, channels = len(taps), w.shape[0]
            total = t - 2  # 2H + 1 in, 2H out
            border = [(total + 1) // 2, total // 2] * 2
            blur = torch.outer(taps, taps).expand(channels, 1, t, t) * 4
            y = F.conv2d(F.pad(y, border), blur, groups=channels)
        else:
            y = F.conv2d(x[i : i + 1], w, padding=w.shape[2] // 2)
        out.append(y)
    y = torch.cat(out)
    if noise is not None:
        y = y + noise * layer.noise_strength
    y = y + layer.bias.view(1, -1, 1, 1)
    return (F.leaky_relu(y, 0.2) if layer.activation == "lrelu" else y) * layer.gain


@pytest.mark.parametrize("demodulation", ["style", "weight", "none"])
@pytest.mark.parametrize("kernel, up, taps", [(1, 1, None), (3, 1, None), (3, 2, (1, 3, 3, 1))])
@pytest.mark.parametrize("noisy", [True, False])
def test_equals_per_sample_weights(demodulation, kernel, up, taps, noisy):
    options = dict(up=up, resample_filter=taps, demodulation=demodulation, noise=noisy)
    layer = filled(ModulatedConv2d(6, 5, kernel, 4, **options))
    x, style = torch.randn(3, 6, 7, 8, dtype=F64), torch.randn(3, 4, dtype=F64)
    noise = torch.randn(3, 1, 7 * up, 8 * up, dtype=F64) if noisy else None
    y = layer(x, style, noise=noise)
    assert y.shape == (3, 5, 7 * up, 8 * up)
    expected = per_sample(layer, x, style, noise)
    close(y, expected)
    u = torch.randn_like(y)
    parameters = list(layer.parameters())
    for ours, theirs in zip(
        torch.autograd.grad(y, parameters, u),
        torch.autograd.grad(expected, parameters, u),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("taps", [(1, 1), (1, 2, 1), (1, 3, 3, 1)])
def test_doubling_is_exact_twice_with_any_filter(taps):
    layer = filled(ModulatedConv2d(2, 3, 3, 4, up=2, resample_filter=taps))
    assert layer(torch.randn(1, 2, 5, 3, dtype=F64), torch.randn(1, 4, dtype=F64)).shape == (
        1,
        3,
        10,
        6,
    )


def test_one_style_only_scales_inputs_and_the_demodulation_takes_the_scale_out_again():
    """With style demodulation a style times 7 changes nothing; to-RGB takes it linearly."""
    layer, rgb = filled(ModulatedConv2d(6, 5, 3, 4)), filled(ToRGB(6, 3, 1, 4))
    x, style = torch.randn(2, 6, 5, 5, dtype=F64), torch.randn(2, 4, dtype=F64)
    for module in (layer, rgb):
        module.affine.bias.data.zero_()
    torch.testing.assert_close(layer(x, 7 * style), layer(x, style), rtol=1e-7, atol=1e-7)  # eps
    bias = rgb.bias.view(1, -1, 1, 1)
    close(rgb(x, 7 * style) - bias, 7 * (rgb(x, style) - bias))


def test_untrained_layer_keeps_unit_variance():
    """Style affine starts at 1: unit-variance input gives unit variance before the activation."""
    torch.manual_seed(0)
    for demodulation in ("style", "weight", "none"):
        layer = ModulatedConv2d(
            64, 64, 3, 8, demodulation=demodulation, activation="linear", gain=1.0
        )
        assert torch.equal(layer.affine.bias, torch.ones(64))
        y = layer(torch.randn(2, 64, 32, 32), torch.zeros(2, 8))
        assert y.std().item() == pytest.approx(1, rel=0.05)


def stripes(k, h, w):
    """[1, K, H, W]: K vertical stripes, one-hot."""
    column = torch.arange(w) * k // w
    return F.one_hot(column, k).T[None, :, None].expand(1, k, h, w).to(F64)


@pytest.mark.parametrize("demodulation", ["style", "weight", "none"])
@pytest.mark.parametrize("up, reach", [(1, 1), (2, 3)])
@pytest.mark.parametrize("k", [1, 2, 3])
def test_regions_equal_the_blend_of_separate_layers_away_from_borders(demodulation, up, reach, k):
    options = dict(up=up, resample_filter=(1, 3, 3, 1), demodulation=demodulation, noise=True)
    layer = filled(ModulatedConv2d(6, 5, 3, 4, **options))
    h, w = 6, 24
    x, style = torch.randn(2, 6, h, w, dtype=F64), torch.randn(2, k, 4, dtype=F64)
    noise = torch.randn(2, 1, h * up, w * up, dtype=F64)
    regions = stripes(k, h * up, w * up)
    hybrid = layer(x, style, regions.expand(2, -1, -1, -1), noise)
    blend = sum(regions[:, i : i + 1] * layer(x, style[:, i], None, noise) for i in range(k))
    column = torch.arange(w * up)
    borders = [w * up * i // k for i in range(1, k)]
    far = torch.ones(w * up, dtype=torch.bool)
    for border in borders:
        far &= (column < border - reach) | (column >= border + reach)
    assert far.sum() >= 3 * k
    close(hybrid[..., far], blend[..., far])
    assert k == 1 or (hybrid - blend)[..., ~far].abs().max() > 1e-3


@pytest.mark.parametrize("up", [1, 2])
def test_one_region_everywhere_is_the_one_style_layer(up):
    layer = filled(ModulatedConv2d(6, 5, 3, 4, up=up, resample_filter=(1, 3, 3, 1)))
    x, style = torch.randn(2, 6, 8, 8, dtype=F64), torch.randn(2, 3, 4, dtype=F64)
    for i in range(3):
        regions = torch.zeros(2, 3, 8 * up, 8 * up, dtype=F64)
        regions[:, i] = 1
        close(layer(x, style, regions), layer(x, style[:, i]))


def test_code_modulation_by_hand():
    layer = SpatialCodeModulation(1, 1).double()
    assert not layer.scale.bias.any() and not layer.shift.bias.any()
    layer.scale.weight.data.fill_(2)
    layer.shift.weight.data.fill_(10)
    x = torch.tensor([[[[1.0, 3.0]]]], dtype=F64)
    assert layer(x, torch.tensor([[1.5]], dtype=F64)).tolist() == [[[[18.0, 24.0]]]]  # 3x + 15
    styles = torch.tensor([[[0.0], [1.0]]], dtype=F64)  # K = 2: 0x + 0 and 2x + 10
    regions = torch.tensor([[[[0.0, 0.75]], [[1.0, 0.25]]]], dtype=F64)
    assert layer(x, styles, regions).tolist() == [[[[12.0, 4.0]]]]  # 2·1+10, 0.5·3 + 2.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_result_has_the_inputs_dtype_and_gradients_are_float32(dtype):
    layer = ModulatedConv2d(4, 4, 3, 8, up=2, resample_filter=(1, 3, 3, 1), noise=True)
    x = torch.randn(2, 4, 6, 6, dtype=dtype).contiguous(memory_format=torch.channels_last)
    y = layer(x, torch.randn(2, 8), noise=torch.randn(2, 1, 12, 12))
    assert y.dtype == dtype and y.is_contiguous(memory_format=torch.channels_last)
    y.float().square().sum().backward()
    for parameter in layer.parameters():
        assert parameter.grad.dtype == torch.float32 and parameter.grad.abs().max() > 0
