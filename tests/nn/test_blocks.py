"""Blocks: their sums, their skips, and second derivatives through them."""

import math

import pytest
import torch
import torch.nn.functional as F

from rwm_fast.nn.blocks import ResidualBlock, StyleBlock

F64 = torch.float64
ROUNDING = 1e-13  # float64: sums of up to 200 products of numbers of order 1


def filled(module):
    torch.manual_seed(1)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)
    return module.double()


@pytest.mark.parametrize("down", [1, 2])
@pytest.mark.parametrize("padding", ["zeros", "reflect"])
def test_residual_block_is_the_scaled_sum_of_both_paths(down, padding):
    block = filled(ResidualBlock(3, 5, (1, 2, 1), down=down, padding=padding))
    x = torch.randn(2, 3, 8, 6, dtype=F64)
    block.conv2.activation_gain = math.sqrt(2)
    expected = (block.conv2(block.conv1(x)) + block.skip(x)) / math.sqrt(2)
    block.conv2.activation_gain = 1.0
    assert expected.shape == (2, 5, 8 // down, 6 // down)
    torch.testing.assert_close(block(x), expected, rtol=ROUNDING, atol=ROUNDING)
    assert block.skip.bias is None and block.skip.padding == "zeros"
    assert block.conv1.weight.shape == (3, 3, 3, 3)  # the first convolution keeps the width


@pytest.mark.parametrize("up", [1, 2])
@pytest.mark.parametrize("widths", [(4, 4), (4, 6)])
@pytest.mark.parametrize("skip_activation", [True, False])
def test_style_block_is_the_scaled_sum_of_both_paths(up, widths, skip_activation):
    block = filled(
        StyleBlock(
            *widths,
            8,
            up=up,
            resample_filter=(1, 3, 3, 1),
            noise=True,
            skip_activation=skip_activation,
        )
    )
    x, style = torch.randn(2, 4, 5, 6, dtype=F64), torch.randn(2, 8, dtype=F64)
    noise = [torch.randn(2, 1, 5 * up, 6 * up, dtype=F64) for _ in range(2)]
    skip = x
    if widths[0] != widths[1]:
        skip = F.conv2d(x, block.skip.weight / math.sqrt(4), block.skip.bias)
        skip = F.leaky_relu(skip, 0.2) * math.sqrt(2) if skip_activation else skip
        assert (block.skip.bias is not None) == skip_activation
    else:
        assert block.skip is None
    if up == 2:
        skip = F.interpolate(skip, scale_factor=2, mode="bilinear", align_corners=False)
    y = block.conv1(x, style, None, noise[0])
    block.conv2.gain = math.sqrt(2)
    expected = (block.conv2(y, style, None, noise[1]) + skip) / math.sqrt(2)
    block.conv2.gain = 1.0
    got = block(x, style, None, noise)
    torch.testing.assert_close(got, expected, rtol=ROUNDING, atol=ROUNDING)


def test_blocks_start_with_unit_variance():
    """Equalised learning rate, activation gain and the 1/√2 keep the scale of what goes in."""
    torch.manual_seed(0)
    x = torch.randn(4, 64, 32, 32)
    assert ResidualBlock(64, 64, (1, 3, 3, 1), down=1)(x).square().mean().sqrt().item() == (
        pytest.approx(1, abs=0.1)
    )
    style = torch.zeros(4, 8)
    assert StyleBlock(64, 32, 8)(x, style).square().mean().sqrt().item() == (
        pytest.approx(1, abs=0.1)
    )


@pytest.mark.parametrize("padding", ["zeros", "reflect"])
def test_second_derivatives_of_the_residual_block(padding):
    block = filled(ResidualBlock(2, 2, (1, 3, 3, 1), padding=padding))
    x = torch.randn(1, 2, 6, 6, dtype=F64, requires_grad=True)
    assert torch.autograd.gradcheck(block, (x,))
    assert torch.autograd.gradgradcheck(block, (x,))
