"""The encoder: shapes, unit codes, any size, both heads alone."""

import dataclasses

import pytest
import torch
from tiny_networks import DEMO, KINDS, PAPER, encoder, picture

from rwm_fast.models import Encoder

F64 = torch.float64


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(32, 32), (48, 80), (16, 16), (16, 64)])
def test_shapes(kind, size):
    config = KINDS[kind]
    content, style = encoder(config)(picture(2, *size))
    stride = config.code_stride
    assert content.shape == (2, config.content_channels, size[0] // stride, size[1] // stride)
    assert style.shape == (2, config.style_dim)
    assert content.dtype == style.dtype == F64
    assert content.isfinite().all() and style.isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_codes_are_of_unit_length_unless_raw(kind):
    content, style = encoder(KINDS[kind])(picture())
    unit = KINDS[kind].normalize_codes
    for length in (content.norm(dim=1), style.norm(dim=1)):
        assert (length - 1).abs().max().item() < 1e-12 if unit else (length - 1).abs().min() > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_each_code_alone(kind):
    net, image = encoder(KINDS[kind]), picture()
    content, style = net(image)
    assert torch.equal(net.content(image), content)
    assert torch.equal(net.style(image), style)


def test_raw_codes_are_the_unit_codes_before_division():
    raw, unit = encoder(dataclasses.replace(PAPER, normalize_codes=False)), encoder(PAPER)
    content, style = raw(picture())
    expected = unit(picture())
    torch.testing.assert_close(content / content.norm(dim=1, keepdim=True), expected[0])
    torch.testing.assert_close(style / style.norm(dim=1, keepdim=True), expected[1])


def test_pictures_do_not_influence_each_other():
    net, image = encoder(PAPER), picture(3)
    content, style = net(image)
    for i in range(3):
        alone = net(image[i : i + 1])
        torch.testing.assert_close(alone[0], content[i : i + 1], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(alone[1], style[i : i + 1], rtol=1e-12, atol=1e-12)


def test_style_is_nearly_blind_to_place_and_content_follows_it():
    """A picture moved by whole code pixels on a flat ground moves its content code with it."""
    image = torch.zeros(1, 3, 64, 64, dtype=F64)
    image[:, :, 24:40, 20:36] = picture(1, 16, 16)
    moved = image.roll(8, 3)
    net = encoder(PAPER)
    content, shifted = net.content(image), net.content(moved)
    inner = slice(4, 12)  # code pixels that no border reaches
    torch.testing.assert_close(
        shifted[:, :, inner, 6:12], content[:, :, inner, 4:10], rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("config, stride", [(PAPER, 4), (DEMO, 4)])
def test_sizes_off_the_stride_are_refused(config, stride):
    message = rf"Encoder: image must be \[N, 3, H, W\] with H and W multiples of {stride}, got"
    for shape in [(1, 3, 32, 30), (1, 3, 30, 32), (1, 4, 32, 32), (3, 32, 32)]:
        with pytest.raises(ValueError, match=message):
            encoder(config)(torch.zeros(shape, dtype=F64))


@pytest.mark.parametrize("size", [(1, 1), (2, 5), (3, 9)])
def test_too_small_for_the_style_head_is_continued_by_its_border(size):
    """Two unpadded halvings need 7 pixels of code."""
    net = encoder(dataclasses.replace(PAPER, style_channels=(14, 12)))
    features = torch.randn(2, 10, *size, dtype=F64)
    h, w = (max(7 - side, 0) for side in size)
    continued = torch.nn.functional.pad(features, [0, w, 0, h], mode="replicate")
    assert torch.equal(net.style_of(features), net.style_of(continued))
    assert net.style(picture(1, 4 * size[0], 4 * size[1])).isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_compute_dtype(kind):
    """bfloat16 inside, float32 outside; every rounding is 2^-9 of its number at most."""
    torch.manual_seed(0)
    net = Encoder(KINDS[kind])
    image = picture().float()
    exact = net(image)
    codes = net.to_compute(torch.bfloat16)(image)
    assert all(code.dtype == torch.float32 for code in codes)
    assert all(p.dtype == torch.float32 for p in net.parameters())
    assert not torch.equal(codes[0], exact[0])
    layers = sum(p.ndim == 4 for p in net.parameters())
    for code, truth in zip(codes, exact, strict=True):
        # four roundings a layer (input, weight, filter, result), added up without luck
        error = (code - truth).square().mean().sqrt() / truth.square().mean().sqrt()
        assert error.item() < 4 * layers * 2**-9


def test_gradients_reach_every_parameter():
    net = encoder(PAPER).requires_grad_(True)
    content, style = net(picture())
    (content.square().flatten(1) @ torch.randn(256, 1, dtype=F64)).sum().backward()
    unreached = {name for name, p in net.named_parameters() if p.grad is None}
    assert unreached and all(name.startswith("style_") for name in unreached)
    (net.style(picture()) @ torch.randn(12, 1, dtype=F64)).sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad.abs().max() > 0, name
    assert style.requires_grad


@pytest.mark.parametrize("kind", KINDS)
def test_style_of_a_mask_of_ones_is_that_of_the_whole(kind):
    net = encoder(KINDS[kind])
    for size in ((32, 32), (48, 80), (4, 4)):
        image = picture(2, *size)
        for n in (1, 2):
            assert torch.equal(net.style(image, torch.ones(n, 1, *size)), net.style(image))


@pytest.mark.parametrize("kind", KINDS)
def test_style_of_a_part_is_the_weighted_mean_of_the_heads_features(kind):
    net, image = encoder(KINDS[kind]), picture(2, 64, 64)
    mask = torch.zeros(2, 1, 64, 64, dtype=F64)
    mask[0, :, :, :20], mask[1, :, 30:, 24:] = 1, 0.5
    head = net.style_head(net.features(image))
    windows = torch.nn.functional.avg_pool2d(mask, net.config.code_stride)
    side = 3 if net.config.style_blocks == "valid" else 2
    for _ in net.config.style_channels:
        windows = windows.unfold(2, side, 2).unfold(3, side, 2).mean((4, 5))
    code = net.style_linear((windows * head).sum((2, 3)) / windows.sum((2, 3)))
    if net.config.normalize_codes:
        code = code / code.norm(dim=1, keepdim=True)
    torch.testing.assert_close(net.style(image, mask), code, rtol=1e-12, atol=1e-12)
    assert (net.style(image, mask) - net.style(image)).abs().max() > 1e-3


def test_style_is_blind_to_what_lies_far_beyond_the_mask():
    net, image = encoder(PAPER), picture(1, 64, 64)
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., :20] = 1
    other = image.clone()
    other[..., 44:] = picture(1, 64, 20, seed=5)
    torch.testing.assert_close(net.style(other, mask), net.style(image, mask), rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.zeros(2, 1, 32, 32), "style mask must select some of every style picture"),
        (torch.eye(2)[:, :1, None, None].expand(2, 1, 32, 32), "must select some of every"),
        (torch.ones(3, 1, 32, 32), r"style mask must be \[2, 1, 32, 32\], got \[3, 1, 32, 32\]"),
        (torch.ones(2, 1, 32, 28), r"style mask must be \[2, 1, 32, 32\]"),
    ],
)
def test_style_masks_that_do_not_fit_are_refused(mask, message):
    with pytest.raises(ValueError, match=message):
        encoder(PAPER).style(picture(), mask)
