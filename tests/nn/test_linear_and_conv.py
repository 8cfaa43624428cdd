"""EqualLinear and EqualConv2d against plain torch, by hand where it is short."""

import math

import pytest
import torch
import torch.nn.functional as F

from rwm_fast.nn.layers import EqualConv2d, EqualLinear, mirror

F64 = torch.float64
ROUNDING = 1e-13  # float64: sums of up to 200 products of numbers of order 1


def close(a, b):
    torch.testing.assert_close(a, b, rtol=ROUNDING, atol=ROUNDING)


def filled(module):
    """The module in float64 with random parameters, biases too."""
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)
    return module.double()


def test_linear_by_hand():
    layer = EqualLinear(4, 1, bias_init=0.5).double()
    layer.weight.data = torch.tensor([[1.0, 2.0, 3.0, 4.0]], dtype=F64)
    x = torch.tensor([[1.0, 1.0, 1.0, 1.0], [0.0, -1.0, 0.0, 0.0]], dtype=F64)
    assert layer(x).tolist() == [[10 / 2 + 0.5], [-2 / 2 + 0.5]]  # the gain is 1/sqrt(4)
    layer.activation = "lrelu"
    close(layer(x), math.sqrt(2) * torch.tensor([[5.5], [-0.1]], dtype=F64))


@pytest.mark.parametrize("activation", ["linear", "lrelu"])
def test_linear_takes_leading_dimensions(activation):
    layer = filled(EqualLinear(3, 5, activation=activation))
    x = torch.randn(2, 4, 3, dtype=F64)
    assert layer(x).shape == (2, 4, 5)
    close(layer(x)[1, 2], layer(x[1, 2][None])[0])
    assert layer(x[:0]).shape == (0, 4, 5)


def test_weights_start_standard_normal_and_biases_at_their_value():
    torch.manual_seed(0)
    layer = EqualLinear(400, 250, bias_init=1.0)
    assert layer.weight.std().item() == pytest.approx(1, abs=0.02)
    assert torch.equal(layer.bias, torch.ones(250))
    conv = EqualConv2d(40, 50, 3)
    assert conv.weight.std().item() == pytest.approx(1, abs=0.04)
    assert not conv.bias.any()


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("activation", ["linear", "lrelu"])
def test_zero_padded_convolution(kernel, activation):
    conv = filled(EqualConv2d(5, 4, kernel, activation=activation))
    x = torch.randn(2, 5, 6, 7, dtype=F64)
    expected = F.conv2d(x, conv.weight / math.sqrt(5 * kernel**2), conv.bias, padding=kernel // 2)
    if activation == "lrelu":
        expected = F.leaky_relu(expected, 0.2) * math.sqrt(2)
    close(conv(x), expected)


def test_reflected_and_unpadded_convolution():
    x = torch.randn(2, 5, 6, 7, dtype=F64)
    conv = filled(EqualConv2d(5, 4, 3, padding="reflect"))
    weight = conv.weight / math.sqrt(45)
    close(conv(x), F.conv2d(F.pad(x, [1, 1, 1, 1], mode="reflect"), weight, conv.bias))
    conv.padding, conv.borders = "none", (0, 0)
    close(conv(x), F.conv2d(x, weight, conv.bias))
    strided = filled(EqualConv2d(5, 4, 3, down=2, padding="none"))
    close(strided(x), F.conv2d(x, strided.weight / math.sqrt(45), strided.bias, stride=2))


@pytest.mark.parametrize("taps", [(1, 1), (1, 2, 1), (1, 3, 3, 1)])
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("padding", ["zeros", "reflect"])
@pytest.mark.parametrize("size", [(8, 10), (7, 9), (4, 5)])
def test_halving_is_one_convolution_with_the_filtered_kernel(taps, kernel, padding, size):
    """Blur then strided convolution = one strided convolution with (filter * kernel)."""
    conv = filled(
        EqualConv2d(3, 4, kernel, down=2, resample_filter=taps, padding=padding, bias=False)
    )
    x = torch.randn(2, 3, *size, dtype=F64)
    blur = torch.outer(torch.tensor(taps, dtype=F64), torch.tensor(taps, dtype=F64))
    blur = (blur / blur.sum())[None, None]
    weight = conv.weight / math.sqrt(3 * kernel**2)
    t = len(taps) - 1
    composite = F.conv2d(weight.flatten(0, 1)[:, None], blur, padding=t)[:, 0]
    composite = composite.unflatten(0, (4, 3))  # [O, I, K, K]
    total = len(taps) - 2 + kernel - 1
    before, after = (total + 1) // 2, total // 2
    mode = "constant" if padding == "zeros" else "reflect"
    padded = F.pad(x, [before, after, before, after], mode=mode) if total else x
    y = conv(x)
    assert y.shape == (2, 4, size[0] // 2, size[1] // 2)
    close(y, F.conv2d(padded, composite, stride=2))


def test_a_constant_stays_constant_under_halving():
    """The filter has gain 1, also at a mirrored border."""
    conv = EqualConv2d(1, 1, 3, down=2, resample_filter=(1, 2, 1), padding="reflect").double()
    conv.weight.data = torch.full((1, 1, 3, 3), 1 / 3, dtype=F64)  # the gain is 1/3
    close(conv(torch.ones(1, 1, 8, 8, dtype=F64)), torch.ones(1, 1, 4, 4, dtype=F64))


def test_mirror_repeats_the_border_where_the_picture_is_too_small():
    x = torch.arange(6.0).view(1, 1, 2, 3)
    assert mirror(x, [0, 2, 0, 1])[0, 0].tolist() == [
        [0, 1, 2, 1, 0],
        [3, 4, 5, 4, 3],
        [0, 1, 2, 1, 0],
    ]
    assert mirror(x, [0, 0, 0, 2])[0, 0, :, 0].tolist() == [0, 3, 3, 3]


@pytest.mark.parametrize("down", [1, 2])
def test_parameters_stay_float32_and_the_result_has_the_inputs_dtype(down):
    conv = EqualConv2d(
        4, 4, 3, down=down, resample_filter=(1, 1) if down > 1 else None, activation="lrelu"
    )
    y = conv(torch.randn(2, 4, 8, 8, dtype=torch.bfloat16))
    assert y.dtype == torch.bfloat16 and y.shape[2] == 8 // down
    y.float().sum().backward()
    assert conv.weight.grad.dtype == conv.bias.grad.dtype == torch.float32


@pytest.mark.parametrize("padding", ["zeros", "reflect"])
@pytest.mark.parametrize("down", [1, 2])
def test_memory_format_is_kept(padding, down):
    taps = (1, 2, 1) if down > 1 else None
    conv = EqualConv2d(4, 6, 3, down=down, resample_filter=taps, padding=padding)
    conv.activation = "lrelu"
    x = torch.randn(2, 4, 8, 8)
    last = conv(x.contiguous(memory_format=torch.channels_last))
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert conv(x).is_contiguous()
    torch.testing.assert_close(last, conv(x), rtol=1e-5, atol=1e-5)
