"""The StyleGAN2 port, basicsr and mmcv against plain torch; signatures as their tables say."""

import inspect

import formulas
import pytest
import torch
from formulas import assert_same, leaky, normal

from rwm_fast.dropin import _finder, mmcv, nvidia, rosinality

KERNEL = torch.tensor([[0.5, -0.25, 1.0], [0.125, 0.375, -0.75]])
X = normal(2, 3, 6, 5)


@pytest.mark.parametrize(
    ("up", "down", "pad", "pairs"),
    [
        (1, 1, (2, 1), ((1, 1), (1, 1), (2, 1, 2, 1))),
        (2, 1, (3, -1), ((2, 2), (1, 1), (3, -1, 3, -1))),
        (1, 2, [1, 2], ((1, 1), (2, 2), (1, 2, 1, 2))),
        ((2, 1), [1, 2], (1, 2, 3, 0), ((2, 1), (1, 2), (1, 2, 3, 0))),
    ],
)
def test_port_upfirdn2d(up, down, pad, pairs):
    """Two numbers are before and after, on both axes."""
    theirs = lambda x: formulas.upfirdn2d(x, KERNEL, *pairs)
    assert_same(lambda x: rosinality.upfirdn2d(x, KERNEL, up, down, pad), theirs, X)
    named = rosinality.upfirdn2d(input=X, kernel=KERNEL, up=up, down=down, pad=pad)
    assert torch.equal(named, rosinality.upfirdn2d(X, KERNEL, up, down, pad))
    (ux, uy), (dx, dy), around = pairs
    each = rosinality.upfirdn2d_native(X, KERNEL, ux, uy, dx, dy, *around)
    assert torch.equal(each, named)


def test_port_upfirdn2d_defaults():
    theirs = lambda x: formulas.upfirdn2d(x, KERNEL)
    assert_same(lambda x: rosinality.upfirdn2d(x, KERNEL), theirs, X)


FUSED = [rosinality.fused_leaky_relu, mmcv.fused_bias_leakyrelu, mmcv.bias_leakyrelu_ref]


@pytest.mark.parametrize("fused", FUSED)
@pytest.mark.parametrize("shape", [(4, 3), (2, 3, 5), (2, 3, 4, 5)])
def test_fused_leaky_relu(fused, shape):
    x, b = normal(*shape), normal(3, seed=1)
    assert_same(fused, leaky, x, b)
    assert_same(lambda x, b: fused(x, b, 0.1, 1.3), lambda x, b: leaky(x, b, 0.1, 1.3), x, b)
    named = fused(x, bias=b, scale=1.3, negative_slope=0.1)
    assert torch.equal(named, fused(x, b, 0.1, 1.3))
    assert_same(lambda x: fused(x, None), lambda x: leaky(x, None), x)


def test_a_bias_in_the_shape_of_the_image():
    b = normal(1, 3, 1, 1, seed=1)
    theirs = lambda x, b: leaky(x, b.flatten())
    assert_same(rosinality.fused_leaky_relu, theirs, X, b)


@pytest.mark.parametrize(
    ("layer", "slope", "scale"),
    [
        (rosinality.FusedLeakyReLU(3), 0.2, 2**0.5),
        (rosinality.FusedLeakyReLU(3, True, 0.3, 1.5), 0.3, 1.5),
        (rosinality.BiasedLeakyReLU(3, 0.3, 1.5), 0.3, 1.5),
        (rosinality.BiasedLeakyReLU(channel=3, scale=1.5), 0.2, 1.5),
        (mmcv.FusedBiasLeakyReLU(3, 0.3, 1.5), 0.3, 1.5),
        (mmcv.FusedBiasLeakyReLU(num_channels=3), 0.2, 2**0.5),
    ],
)
def test_layers(layer, slope, scale):
    assert list(layer.state_dict()) == ["bias"] and torch.equal(layer.bias, torch.zeros(3))
    torch.nn.init.normal_(layer.double().bias)
    torch.testing.assert_close(layer(X), leaky(X, layer.bias, slope, scale))


def test_a_layer_without_a_bias():
    layer = rosinality.FusedLeakyReLU(3, bias=False)
    assert layer.bias is None and not layer.state_dict()
    torch.testing.assert_close(layer(X), leaky(X, None))


def test_mmcv_2_is_nvidias_under_other_names():
    """Two numbers are x and y, and the last argument is a switch that changes nothing."""
    settings = {"padding": [2, 1], "flip_filter": True, "gain": 3}
    found = mmcv.upfirdn2d(input=X, filter=KERNEL, up=2, down=(1, 2), **settings)
    expected = formulas.upfirdn2d(X, KERNEL, (2, 2), (1, 2), (2, 2, 1, 1), True, 3)
    torch.testing.assert_close(found, expected)
    assert torch.equal(found, mmcv.upfirdn2d(X, KERNEL, 2, (1, 2), [2, 1], True, 3, False))
    for name, factor in (("filter2d", ()), ("upsample2d", (3,)), ("downsample2d", (3,))):
        ours, theirs = getattr(mmcv, name), getattr(nvidia, name)
        rest = (*factor, [2, 1], True, 3)
        assert torch.equal(ours(X, KERNEL, *rest, False), theirs(X, KERNEL, *rest))
        assert torch.equal(ours(input=X, filter=KERNEL), theirs(X, KERNEL))
    b = normal(6, seed=1)
    act = (b, 2, "tanh", 0.3, 1.7, 0.8)
    assert torch.equal(mmcv.bias_act(X, *act, False), nvidia.bias_act(X, *act))
    assert torch.equal(mmcv.bias_act(input=X, bias=b[:3]), nvidia.bias_act(X, b[:3]))
    bend = (KERNEL, KERNEL.flip(0), b[:3], 2, 2, [3, 4], 1.2, 0.1, 0.9, True)
    assert torch.equal(mmcv.filtered_lrelu(X, *bend, False), nvidia.filtered_lrelu(X, *bend))
    assert torch.equal(mmcv.filtered_lrelu(input=X), nvidia.filtered_lrelu(X))


NAMED = {
    (offer.family, name, text): value
    for offer in _finder.OFFERS
    for name, alternatives in offer.names.items()
    for text, value in alternatives
}


@pytest.mark.parametrize("key", NAMED, ids=lambda key: f"{key[0]}-{key[1]}-{len(key[2])}")
def test_signatures_are_those_of_the_tables(key):
    """Names, order and defaults; an argument of ours may have a default where theirs has none."""
    scope: dict = {"torch": torch}
    exec(f"def theirs({key[2]}): ...", scope)
    theirs = inspect.signature(scope["theirs"]).parameters.values()
    ours = list(inspect.signature(NAMED[key]).parameters.values())
    assert [p.name for p in theirs] == [p.name for p in ours][: len(theirs)]
    for a, b in zip(theirs, ours, strict=False):
        assert a.default is a.empty or a.default == b.default, a.name
    assert all(p.default is not p.empty for p in ours[len(theirs) :])
