"""Every field of ModelConfig reaches the networks it is about, and no other."""

import dataclasses
import zlib

import pytest
import torch
from tiny_networks import DEMO, PAPER, picture

from rwm_fast.models import Encoder, Generator, ImageDiscriminator, PatchDiscriminator

F64 = torch.float64


def made(kind, config):
    """The network in float64; each parameter drawn from its name, so that fields do not mix."""
    net = kind(config).double()
    for name, parameter in net.named_parameters():
        source = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        parameter.data = torch.randn(parameter.shape, generator=source, dtype=F64)
    return net.requires_grad_(False)


def results(config):
    """What each network makes of fixed inputs."""
    draw = lambda *shape: torch.randn(*shape, generator=torch.Generator().manual_seed(7), dtype=F64)
    paint = made(Generator, config)
    side = 32 // config.code_stride
    content, style = draw(2, config.content_channels, side, side), draw(2, config.style_dim)
    pair = made(PatchDiscriminator, config)
    patches = draw(2, 3, 3, config.patch_size, config.patch_size)
    return {
        "encoder": torch.cat([code.flatten() for code in made(Encoder, config)(picture())]),
        "generator": paint(content, style, generator=torch.Generator().manual_seed(1)),
        "image": made(ImageDiscriminator, config)(picture(2, config.image_size, config.image_size)),
        "patch": pair(pair.features(patches), pair.features(patches.flip(1) * 0.5)),
    }


CHANGES = [
    (dict(input_kernel=3), {"encoder", "image"}),
    (dict(encoder_channels=(6, 8, 12)), {"encoder"}),
    (dict(encoder_filter=(1, 1)), {"encoder"}),
    (dict(encoder_padding="zeros"), {"encoder"}),
    (dict(content_channels=5), {"encoder", "generator"}),
    (dict(content_kernel=3), {"encoder"}),
    (dict(style_dim=13), {"encoder", "generator"}),
    (dict(style_channels=(14, 14)), {"encoder"}),
    (dict(style_blocks="residual"), {"encoder"}),
    (dict(normalize_codes=False), {"encoder", "generator"}),
    (dict(content_fold=2, up_channels=(12, 8, 8)), {"generator"}),
    (dict(code_modulation=False), {"generator"}),
    (dict(unit_rms_codes=True), {"generator"}),
    (dict(head_channels=(8, 8, 12)), {"generator"}),
    (dict(up_channels=(12, 10)), {"generator"}),
    (dict(tail_channels=(8,)), {"generator"}),
    (dict(rgb_kernel=3), {"generator"}),
    (dict(generator_filter=(1, 1)), {"generator"}),
    (dict(skip_activation=False), {"generator"}),
    (dict(noise=False), {"generator"}),
    (dict(demodulation="weight"), {"generator"}),
    (dict(discriminator_channels=(6, 8, 10)), {"image"}),
    (dict(discriminator_hidden=13), {"image"}),
    (dict(discriminator_filter=(1, 1)), {"image", "patch"}),
    (dict(patch_size=32), {"patch"}),
    (dict(patch_channels=(6, 8)), {"patch"}),
    (dict(patch_wide_channels=0), {"patch"}),
    (dict(patch_feature_channels=8), {"patch"}),
    (dict(patch_hidden=(12,)), {"patch"}),
    (dict(patch_aggregate=False), {"patch"}),
    (dict(image_size=64), {"image"}),
    (
        dict(fold=2, encoder_channels=(8, 10), up_channels=(8,), discriminator_channels=(6, 8, 10)),
        {"encoder", "generator", "image"},
    ),
]


def differing(before, after):
    """Names of the networks whose result is another one."""
    same = lambda a, b: a.shape == b.shape and torch.allclose(a, b, rtol=1e-9, atol=1e-9)
    return {name for name in before if not same(before[name], after[name])}


@pytest.mark.parametrize("change, networks", CHANGES, ids=lambda value: "-".join(value))
def test_a_field_changes_the_networks_it_is_about(change, networks):
    assert differing(results(PAPER), results(dataclasses.replace(PAPER, **change))) == networks


def test_every_field_is_tried():
    tried = {name for change, _ in CHANGES for name in change}
    assert tried == {f.name for f in dataclasses.fields(PAPER)}


def test_paper_blocks_are_made_as_published():
    """Taps, borders and activations that no shape shows."""
    encode, paint = Encoder(PAPER), Generator(PAPER)
    taps = lambda layer: layer.resample_filter.tolist()
    for block in encode.trunk:
        assert taps(block.conv2) == taps(block.skip) == [0.25, 0.5, 0.25]
        assert (block.conv1.padding, block.conv2.padding) == ("reflect", "reflect")
    for layer in encode.style_head:
        assert layer.resample_filter is None and layer.padding == "none" and layer.down == 2
    assert encode.style_linear.activation == "linear"
    for block in paint.up:
        assert taps(block.conv1) == [0.125, 0.375, 0.375, 0.125]
    assert [block.skip is None or block.skip.activation for block in paint.head] == [
        "linear",
        "linear",
    ]
    assert paint.up[0].skip is None and paint.up[1].skip.activation == "lrelu"
    assert paint.to_rgb.demodulation == "none" and paint.to_rgb.activation == "linear"


def test_demo_blocks_are_made_as_described():
    paint = Generator(DEMO)
    assert paint.joins_after == 1 and paint.join.weight.shape == (8, 3, 3, 3)
    assert paint.up[0].skip.activation == "linear" and paint.up[0].skip.bias is None
    assert [block.conv1.resample_filter.tolist() for block in paint.up] == [[0.5, 0.5]]
    assert paint.to_rgb.weight.shape == (12, 8, 3, 3)
