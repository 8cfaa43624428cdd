import math

import pytest
import torch

from rwm_fast.metrics import scores
from rwm_fast.metrics.reinhard import transfer_colors


def constant(value: float) -> torch.Tensor:
    return torch.full((2, 3, 4, 4), value)


def test_psnr_of_a_known_error():
    assert scores.psnr(constant(0.2), constant(0.0)) == pytest.approx(20.0)


def test_region_l1_counts_the_region_alone():
    image, mask = constant(0.0), torch.zeros(2, 1, 4, 4)
    image[0, :, 0, 0] = 0.5
    image[1, :, 3, 3] = 8.0  # outside
    mask[0, 0, 0, :2] = 1
    assert scores.region_l1(image, constant(0.0), mask) == pytest.approx(0.25)
    assert math.isnan(scores.region_l1(image, image, torch.zeros_like(mask)))


def test_far_outside_keeps_its_distance():
    mask = torch.zeros(1, 1, 1, 12)
    mask[..., 2] = 1
    far = scores.far_outside(mask, distance=3)
    assert far[0, 0, 0].tolist() == [0.0] * 6 + [1.0] * 6


def test_closer():
    assert scores.closer(0.1, 0.4) == pytest.approx(0.75)
    assert math.isnan(scores.closer(0.1, 0.0))


def test_kept_detail_cancels_what_cannot_be_painted():
    content, residue = torch.rand(2, 3, 4, 4) - 0.5, 0.1 * torch.rand(2, 3, 4, 4)
    kept = scores.keep_detail(content, content - residue + 0.2, content - residue)
    torch.testing.assert_close(kept, content + 0.2)


def test_reinhard_gives_the_style_pictures_statistics():
    random = torch.Generator().manual_seed(0)
    content = 0.3 * torch.rand(2, 3, 16, 16, generator=random)
    style = 0.2 * torch.randn(2, 3, 8, 8, generator=random) - 0.1
    result = transfer_colors(content, style.clamp(-0.9, 0.9))
    torch.testing.assert_close(result.mean((2, 3)), style.mean((2, 3)), atol=2e-2, rtol=0)
    torch.testing.assert_close(result.std((2, 3)), style.std((2, 3)), atol=2e-2, rtol=0)


def test_colour_distance_is_that_of_distributions_inside_the_mask():
    random = torch.Generator().manual_seed(1)
    a = torch.rand(2, 3, 16, 16, generator=random) * 2 - 1
    mask = torch.zeros(2, 1, 16, 16)
    mask[..., :8] = 1
    moved = a.roll(3, 2)  # the same colours elsewhere
    assert scores.colour_distance(a, moved, torch.ones_like(mask)) == 0
    # brighter by d: d along each axis, sqrt(3) d along brightness, 0 along differences
    brighter = scores.colour_distance(a, a + 0.3, torch.ones_like(mask))
    assert brighter == pytest.approx(0.3 * (3 + 3**0.5) / 6, abs=1e-6)
    outside = a + 5 * (1 - mask)  # nobody looks there
    assert scores.colour_distance(outside, a, mask) == scores.colour_distance(a, a, mask) < 0.2
    assert math.isnan(scores.colour_distance(a, a, torch.zeros_like(mask)))
    one = torch.cat((torch.zeros_like(mask[:1]), mask[1:]))
    assert scores.colour_distance(a, a, one) == scores.colour_distance(a[1:], a[1:], mask[1:])


def test_structure_is_kept_by_what_keeps_edges_inside():
    random = torch.Generator().manual_seed(1)
    a, b = torch.rand(2, 2, 3, 16, 16, generator=random).double()
    mask = torch.zeros(2, 1, 16, 16)
    mask[..., :8] = 1
    assert scores.structure_cosine(a, 0.3 * a + 0.2, mask) == pytest.approx(1)
    assert scores.structure_cosine(a, -a, mask) == pytest.approx(-1)
    assert abs(scores.structure_cosine(a, b, mask)) < 0.2
    assert scores.structure_cosine(a, torch.where(mask > 0, a, b), mask) == pytest.approx(1)
    assert math.isnan(scores.structure_cosine(a, torch.zeros_like(a), mask))
