import dataclasses

import pytest
import torch

from rwm_fast.config import MaskConfig
from rwm_fast.data.masks import KINDS, sample_masks


def seeded(number: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def only(kind: str, **settings) -> MaskConfig:
    return MaskConfig(**({name: float(name == kind) for name in KINDS} | settings))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(32, 32), (8, 8), (17, 40)])
def test_masks_are_binary_and_their_area_is_kept(kind, size):
    low, high = 0.05, 0.70
    masks = sample_masks(300, size, only(kind, invert=0.0), generator=seeded())
    assert masks.shape == (300, 1, *size) and masks.dtype == torch.float32
    assert ((masks == 0) | (masks == 1)).all()
    area = masks.mean((1, 2, 3))
    assert low <= area.min() and area.max() <= high
    assert area.min() < 0.12 and area.max() > 0.6  # all of the range is used
    assert abs(area.mean() - (low + high) / 2) < 0.05


def test_narrow_area_range_is_kept():
    masks = sample_masks(
        200, (32, 32), MaskConfig(area=(0.30, 0.32), invert=0.0), generator=seeded()
    )
    area = masks.mean((1, 2, 3))
    assert 0.30 <= area.min() and area.max() <= 0.32


def test_inversion_exchanges_inside_and_outside():
    plain, swapped = (
        sample_masks(50, (24, 24), MaskConfig(invert=p), generator=seeded(3)) for p in (0.0, 1.0)
    )
    assert torch.equal(plain, 1 - swapped)
    half = sample_masks(2000, (8, 8), MaskConfig(invert=0.5), generator=seeded())
    large = (half.mean((1, 2, 3)) > 0.71).float().mean()  # only an inverted mask can be
    assert 0.1 < large < 0.45


def test_kinds_come_by_their_frequency():
    draw = lambda config: sample_masks(64, (16, 16), config, generator=seeded(1))
    alone = {kind: draw(only(kind)) for kind in KINDS}
    mixed = draw(MaskConfig())
    matches = torch.stack([(mixed == alone[kind]).flatten(1).all(1) for kind in KINDS])  # [5, N]
    assert (matches.sum(1) >= 5).all()  # 64 / 5 expected of each
    assert matches.any(0).all()  # a mask is the one its kind alone would have drawn


def test_shapes_differ_in_number():
    corners = lambda masks: (torch.nn.functional.avg_pool2d(masks, 2, 1) == 0.75).sum((1, 2, 3))
    one, many = (
        sample_masks(
            200, (64, 64), only("rectangle", max_shapes=k, area=(0.1, 0.3)), generator=seeded()
        )
        for k in (1, 4)
    )
    assert corners(many).float().mean() > corners(one).float().mean()


def test_positions_do_not_favour_the_grid_of_the_content_code():
    """Edges of rectangles fall on all columns alike, not on multiples of 8."""
    masks = sample_masks(600, (64, 64), only("rectangle", max_shapes=1), generator=seeded())
    edges = masks.diff(dim=3).abs().sum((0, 1, 2))  # [63]
    by_offset = torch.stack([edges[k::8].sum() for k in range(8)])
    assert by_offset.max() < 1.35 * by_offset.min()


def test_the_generator_decides_everything():
    before = torch.get_rng_state()
    first, again, other = (sample_masks(8, (16, 16), generator=seeded(k)) for k in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)


def test_shapes_do_not_depend_on_the_size_of_the_picture():
    small, large = (sample_masks(40, (s, s), generator=seeded(5)) for s in (32, 128))
    assert (torch.nn.functional.avg_pool2d(large, 4) - small).abs().mean() < 0.03


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (2, 2)])
def test_sizes_too_small_for_the_area_give_masks_all_the_same(size):
    masks = sample_masks(30, size, generator=seeded())
    assert ((masks == 0) | (masks == 1)).all()


def test_empty_batch_and_refusals():
    assert sample_masks(0, (16, 16)).shape == (0, 1, 16, 16)
    with pytest.raises(ValueError, match=r"sample_masks: .* must be positive, got 2, \(0, 4\)"):
        sample_masks(2, (0, 4))
    with pytest.raises(ValueError, match="not all 0"):
        dataclasses.replace(only("blob"), blob=0.0)
