"""Tiles: what is painted in tiles is what is painted at once."""

import pytest
import torch
from tiny_networks import KINDS, encoder, generator, picture

from rwm_fast.models import RegionEditor
from rwm_fast.models.tiling import encoder_reach, generator_reach, tiled_features, tiles

ROUNDING = 1e-11  # float64: about ten layers, each adding up to 200 products of order 1


def close(a, b):
    torch.testing.assert_close(a, b, rtol=ROUNDING, atol=ROUNDING)


@pytest.mark.parametrize("kind", KINDS)
def test_features_are_those_of_the_whole_picture(kind):
    net, image = encoder(KINDS[kind]), picture(2, 72, 96)
    whole = net.features(image)
    for side in (8, 20, 96):
        close(tiled_features(net, image, side), whole)


@pytest.mark.parametrize("kind", KINDS)
def test_an_edit_in_tiles_is_the_edit(kind):
    """Of a picture that is no multiple of the stride, with regions and, in two of these, noise."""
    config = KINDS[kind]
    net = generator(config)
    net.to_rgb.weight.mul_(0.02)
    edit = RegionEditor(encoder(config), net)
    image, style = picture(2, 70, 90), picture(1, 33, 50, seed=1)
    mask = (picture(2, 70, 90, seed=2)[:, :1] > 0).double()
    options = dict(feather=3, keep_detail=True, style_masks=[torch.eye(50)[:33].bool()])
    whole = edit.edit(image, style, mask, work_size=0, **options)
    for tile in (8, 24):
        close(edit.edit(image, style, mask, tile=tile, **options), whole)
    codes = edit.encode(image, tile=24)
    close(edit.edit(codes, style, mask, tile=24, **options), whole)


@pytest.mark.parametrize("kind", KINDS)
def test_reach_is_as_far_as_the_networks_see(kind):
    """A change in one pixel: nothing happens beyond the reach, and something within half of it, or
    tiles would be larger than they need to be."""
    config = KINDS[kind]
    image, net = picture(1, 96, 192), encoder(config)
    changed = image.clone()
    changed[..., 96] += 1
    columns = (net.features(changed) - net.features(image)).abs().amax((0, 1, 2)) > 1e-12
    moved = [96 - x for x in columns.nonzero().flatten().mul(config.code_stride).tolist()]
    assert max(map(abs, moved)) <= encoder_reach(config) + config.code_stride
    painter, content = generator(config), net.content(image)
    style = net.style(image)
    at = content.shape[3] // 2
    shifted = content.clone()
    shifted[..., at] = -shifted[..., at]
    before, after = (painter(c, style, noise="none") for c in (content, shifted))
    columns = ((after - before).abs().amax((0, 1, 2)) > 1e-12).nonzero().flatten()
    first, last = columns.min().item(), columns.max().item()
    origin, reach = at * config.code_stride, generator_reach(config)
    assert reach / 2 < origin - first <= reach
    assert reach / 2 < last - (origin + config.code_stride - 1) <= reach


def test_tiles_cover_a_picture_once():
    seen = torch.zeros(1, 1, 48, 80)
    for tile in tiles((48, 80), 13, 7, 8):
        top, bottom, left, right = tile.kept
        assert (top % 8, left % 8, tile.crop[0] % 8, tile.crop[2] % 8) == (0, 0, 0, 0)
        seen[:, :, top:bottom, left:right] += 1
        assert tile.crop[0] == max(0, top - 8) and tile.crop[3] == min(80, right + 8)
    assert torch.equal(seen, torch.ones_like(seen))
