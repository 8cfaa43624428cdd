from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rwm_fast.data import landscapes
from rwm_fast.data.hashing import hash_bits, hash_uniform
from rwm_fast.data.pool import LandscapePool
from rwm_fast.data.sheet import STYLES, contact_sheet


def draw(content_seeds, style_seeds, size=24):
    scenes, looks = landscapes.content(content_seeds), landscapes.style(style_seeds)
    return landscapes.render(scenes, looks, size)


def test_hash_is_a_function_of_seed_stream_and_index():
    # fixed values: every picture ever drawn depends on them
    assert hash_bits([0, 1], 1, 2).tolist() == [
        [14789321797543889037, 3072233601706611849],
        [8772688050035056853, 3384670194643495708],
    ]
    whole = hash_bits(range(10), 3, 5)
    assert np.array_equal(hash_bits([7], 3, 2)[0], whole[7, :2])
    assert not np.array_equal(hash_bits([7], 4, 5)[0], whole[7])
    assert hash_bits([2**64 - 1], 2**40, 1).shape == (1, 1)
    u = hash_uniform(range(4000), 1, 4)
    assert u.min() >= 0 and u.max() < 1 and abs(u.mean() - 0.5) < 0.01
    assert abs(np.corrcoef(np.concatenate([u, np.roll(u, 1, 0)], 1).T) - np.eye(8)).max() < 0.08


@pytest.mark.parametrize("size", [1, 7, 24, 64])
def test_a_picture_does_not_depend_on_its_batch(size):
    seeds = [3, 14, 15, 92, 65]
    images, regions = draw(seeds, seeds, size)
    for k in range(len(seeds)):
        image, region = draw(seeds[k : k + 1], seeds[k : k + 1], size)
        assert torch.equal(image[0], images[k]) and torch.equal(region[0], regions[k])
    again, _ = draw(seeds, seeds, size)
    assert torch.equal(again, images)


def test_values_are_finite_and_in_range_whatever_the_scene():
    images, regions = draw(range(300), range(1000, 1300))
    assert images.dtype == torch.float32 and images.isfinite().all()
    assert images.min() >= -1 and images.max() <= 1
    assert images.std(dim=(2, 3)).min() > 0.01  # no blank picture


def test_regions_are_one_hot_and_all_common():
    _, regions = draw(range(300), range(300), 32)
    assert torch.equal(regions.sum(1), torch.ones_like(regions[:, 0]))
    assert ((regions == 0) | (regions == 1)).all()
    shares = regions.mean((2, 3))  # [N, 4]
    assert len(landscapes.REGIONS) == 4
    assert (shares.mean(0) > 0.08).all()
    assert ((shares > 0.01).float().mean(0) > 0.97).all()


def test_counterfactual_keeps_the_geometry_of_the_content():
    a, b = range(60), range(500, 560)
    image, regions = draw(a, a, 32)
    swapped, same = draw(a, b, 32)
    assert torch.equal(regions, same)  # regions are content alone
    assert (image - swapped).abs().mean() > 0.2  # and style changes the picture


def test_style_is_seen_in_every_region_and_content_keeps_it():
    scenes = landscapes.content(range(8))
    day, night = (
        landscapes.style([5] * 8, time=t, season="summer", weather="clear")
        for t in ("day", "night")
    )
    bright, regions = landscapes.render(scenes, day, 48)
    dark, _ = landscapes.render(scenes, night, 48)
    for k in range(4):
        inside = regions[:, k : k + 1]
        assert ((bright - dark) * inside).sum() / inside.sum() / 3 > 0.2


def test_content_and_style_are_independent():
    scenes, looks = landscapes.content(range(4000)), landscapes.style(range(4000))
    flat = lambda p: torch.cat(
        [v.float().flatten(1) if v.ndim > 1 else v.float()[:, None] for v in p.values()], 1
    )
    both = torch.corrcoef(torch.cat([flat(scenes), flat(looks)], 1).T).nan_to_num()
    n = flat(scenes).shape[1]
    assert both[:n, n:].abs().max() < 0.08  # four standard errors, and some for the number of pairs


def test_factors_of_style_are_all_drawn_and_can_be_fixed():
    looks = landscapes.style(range(3000))
    for name, names in (
        ("time", landscapes.TIMES),
        ("season", landscapes.SEASONS),
        ("weather", landscapes.WEATHERS),
    ):
        assert (torch.bincount(looks[name], minlength=len(names)) > 300).all()
        for k, word in enumerate(names):
            assert (landscapes.style(range(5), **{name: word})[name] == k).all()
    with pytest.raises(ValueError, match="time must be one of day, dawn, .* got 'noon'"):
        landscapes.style([0], time="noon")


def test_take_selects_scenes():
    scenes, looks = landscapes.content(range(9)), landscapes.style(range(9))
    index = torch.tensor([4, 0, 8])
    images, _ = landscapes.render(landscapes.take(scenes, index), landscapes.take(looks, index), 16)
    assert torch.equal(images, draw([4, 0, 8], [4, 0, 8], 16)[0])


def test_an_empty_batch_is_drawn():
    images, regions = draw([], [])
    assert images.shape == (0, 3, 24, 24) and regions.shape == (0, 4, 24, 24)


def test_sizes_show_the_same_scene():
    small, small_regions = draw(range(20), range(20), 32)
    large, large_regions = draw(range(20), range(20), 128)
    shrunk = torch.nn.functional.avg_pool2d(large, 4)
    assert (shrunk - small).abs().mean() < 0.03
    shrunk = torch.nn.functional.avg_pool2d(large_regions, 4)
    assert (shrunk - small_regions).abs().mean() < 0.02


def test_drawing_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    draw(range(3), range(3))
    assert torch.equal(torch.get_rng_state(), before)


def test_pool_does_not_depend_on_the_number_of_threads():
    before, pools = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            pools.append(LandscapePool(150, 16, seed=2).images)
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert np.array_equal(*pools)


def test_pool_holds_scenes_of_their_own_seeds():
    calls = []
    pool = LandscapePool(70, 16, seed=1, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(64, 70), (70, 70)]
    assert len(pool) == 70 and pool.images.shape == (70, 16, 16, 3)
    images, _ = draw([70], [70], 16)  # seed 1 starts where seed 0 ends
    expected = images[0].add(1).mul(127.5).round().byte().permute(1, 2, 0).numpy()
    assert np.array_equal(pool.images[0], expected)
    assert len(np.unique(pool.images.reshape(70, -1), axis=0)) == 70
    assert pool.describe() == "70 landscapes of 16 px"


def test_contact_sheet():
    sheet = contact_sheet(rows=2, size=20)
    assert sheet.shape == (3, 2 * 22 - 2, (len(STYLES) + 1) * 22 - 2) and sheet.dtype == torch.uint8
    assert (sheet[:, :, 20:22] == 255).all()  # white gaps


def test_the_sheet_in_the_documentation_is_what_the_code_draws():
    path = Path(__file__).parents[2] / "docs" / "landscapes.png"
    assert path.stat().st_size < 400_000
    drawn = contact_sheet().permute(1, 2, 0).numpy().astype(int)
    assert abs(np.asarray(Image.open(path)) - drawn).mean() < 0.5  # another CPU may round otherwise
