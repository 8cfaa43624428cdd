"""region_at: the region around a click, of every kind of picture."""

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_networks import DEMO, encoder, generator

from rwm_fast.data import landscapes
from rwm_fast.models import RegionEditor, click
from rwm_fast.models.click import region_at
from rwm_fast.models.growing import grown, pieces


@pytest.fixture(scope="module")
def editor():
    return RegionEditor(encoder(DEMO), generator(DEMO)).float()


@pytest.fixture
def image():
    """Two grounds, and a disc on one of them."""
    y, x = np.mgrid[:60, :80]
    pixels = np.where((y < 30)[..., None], (40, 90, 200), (60, 120, 40))
    pixels[(x - 50) ** 2 + (y - 46) ** 2 < 81] = (220, 40, 40)
    noise = np.random.default_rng(0).normal(0, 3, pixels.shape)
    return Image.fromarray((pixels + noise).clip(0, 255).astype(np.uint8))


def test_a_click_finds_the_region_it_is_on(editor, image):
    y, x = np.mgrid[:60, :80]
    disc = (x - 50) ** 2 + (y - 46) ** 2 < 81
    for place, truth in (((5, 5), y < 30), ((50, 46), disc), ((5, 50), (y >= 30) & ~disc)):
        found = np.asarray(region_at(editor, image, *place)) > 127
        assert (found & truth).sum() / (found | truth).sum() > 0.95, place


@pytest.mark.parametrize("seed", [11, 12])
def test_one_click_finds_sky_and_water_of_a_landscape(seed):
    image, shares = landscapes.render(landscapes.content([seed]), landscapes.style([seed]), 256)
    codes = RegionEditor.load("photos").encode(image, picture=False)
    for name in ("sky", "water"):
        truth = shares[0].argmax(0) == landscapes.REGIONS.index(name)
        y, x = truth.nonzero()[truth.sum() // 2].tolist()
        found = region_at(codes, image, x, y)[0, 0] > 0.5
        assert (found & truth).sum() >= 0.8 * (found | truth).sum(), name


def test_where_in_a_region_one_clicks_does_not_matter(editor, image):
    masks = [np.asarray(region_at(editor, image, *p)) for p in ((5, 5), (40, 15), (74, 24))]
    assert all(np.array_equal(mask, masks[0]) for mask in masks)


def test_a_mirrored_picture_has_the_mirrored_region(editor, image):
    mirrored = Image.fromarray(np.asarray(image)[:, ::-1])
    for x, y in ((5, 5), (50, 46), (5, 50)):
        one = np.asarray(region_at(editor, image, x, y)) > 127
        other = np.asarray(region_at(editor, mirrored, 79 - x, y))[:, ::-1] > 127
        # The networks are not symmetric, so that their code moves a border by pixels.
        assert (one & other).sum() / (one | other).sum() > 0.95


def test_what_was_fitted_goes_with_the_numbers_of_a_region():
    flat = np.zeros((4, 6, 3), np.float32)
    flat[:, 3:] = 1
    growing = grown(*pieces(flat), (0.5, 0.1))
    given = click.numbers(growing)
    assert len(growing) >= 2 and growing[-1].area == 1 and np.isfinite(given).all()
    assert np.allclose(growing[-2].area, 0.5) and growing[-2].next > growing[-2].inner
    for part in click.fitted():
        assert np.isfinite(part).all()
    weights, bias, of_units = click.fitted()
    assert weights.shape == (given.shape[1], len(bias)) and len(bias) == len(of_units)


def test_masks_are_of_the_pictures_kind(editor, image):
    mask = np.asarray(region_at(editor, image, 5, 5))
    array = region_at(editor, np.asarray(image), 5, 5)
    tensor = torch.from_numpy(np.array(image)).permute(2, 0, 1) / 127.5 - 1
    assert array.dtype == np.float32 and np.array_equal(array * 255, mask)
    assert region_at(editor, tensor, 5, 5).shape == (1, 60, 80)
    whole = region_at(editor, tensor[None], 5, 5)
    assert whole.shape == (1, 1, 60, 80) and np.array_equal(whole[0, 0].numpy(), array)
    codes = editor.encode(image, picture=False)
    assert np.array_equal(np.asarray(region_at(codes, image, 5, 5)), mask)


def test_tolerance_grows_the_region_from_the_place_to_all(editor, image):
    masks = [np.asarray(region_at(editor, image, 5, 5, t)) > 0 for t in (0, 0.3, 0.6, 1)]
    assert masks[0][5, 5] and masks[0].sum() < 900 and masks[-1].all()
    for smaller, larger in zip(masks, masks[1:], strict=False):
        assert not (smaller & ~larger).any()


def test_a_large_pictures_mask_follows_its_edges(editor, image):
    large = image.resize((800, 600), Image.Resampling.LANCZOS)
    mask = np.asarray(region_at(editor, large, 50, 50))
    assert mask.shape == (600, 800) and mask.min() == 0 and mask.max() == 255
    assert abs((mask[:, 400] > 127).sum() - 300) <= 3


def test_tiny_pictures_have_a_region_too(editor):
    for size in ((1, 1), (9, 5)):
        mask = np.asarray(region_at(editor, Image.new("RGB", size, (9, 9, 9)), 0, 0))
        assert mask.shape == size[::-1] and mask[0, 0] == 255


@pytest.mark.parametrize(
    ("place", "options", "sentence"),
    [
        ((80, 5), {}, r"must be inside the picture, 80 x 60, got 80, 5"),
        ((-1, 5), {}, "must be inside the picture"),
        ((float("nan"), 5), {}, "must be inside the picture"),
        ((5, 5), {"tolerance": 1.5}, r"tolerance must be in \[0, 1\], got 1.5"),
    ],
)
def test_what_is_refused(editor, image, place, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        region_at(editor, image, *place, **options)
    with pytest.raises(ValueError, match="codes of another picture"):
        region_at(editor.encode(image.resize((20, 20)), picture=False), image, 5, 5)
