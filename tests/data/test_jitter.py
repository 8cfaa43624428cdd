import pytest
import torch

from rwm_fast.data.jitter import color_jitter


def pictures(n: int = 400, **options) -> torch.Tensor:
    return torch.rand(n, 3, 4, 5, generator=torch.Generator().manual_seed(9)) * 2 - 1


def seeded(number: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def test_colours_are_mixed_by_one_matrix_per_picture():
    images = pictures(1) * 0.1  # far from the clamp
    mixed = color_jitter(images, 0.2, 0.0, seeded())
    x = torch.cat([images.flatten(2)[0], torch.ones(1, 20)]).T  # [pixels, 4]
    y = mixed.flatten(2)[0].T  # [pixels, 3]
    solution = torch.linalg.lstsq(x, y).solution
    torch.testing.assert_close(x @ solution, y, atol=1e-6, rtol=0)
    assert (solution[:3] - torch.eye(3)).abs().max() > 0.01


def test_share_that_keeps_its_colours():
    images = pictures()
    kept = (color_jitter(images, 1.0, 0.2, seeded()) == images).flatten(1).all(1).float().mean()
    assert 0.12 < kept < 0.28
    assert torch.equal(color_jitter(images, 1.0, 1.0, seeded()), images)
    assert color_jitter(images, 0.0) is images


def test_range_dtype_layout_and_randomness():
    images = pictures().to(memory_format=torch.channels_last)
    before = torch.get_rng_state()
    mixed = color_jitter(images, 1.0, 0.0, seeded(1))
    assert mixed.min() >= -1 and mixed.max() <= 1
    assert mixed.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(mixed, color_jitter(images, 1.0, 0.0, seeded(1)))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(images, pictures())  # the argument is left alone
    half = color_jitter(images.bfloat16(), 1.0, 0.0, seeded(1))
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), mixed, atol=0.05, rtol=0)
    assert color_jitter(images[:0], 1.0).shape == (0, 3, 4, 5)


def test_tone_bends_brightness_by_one_power_per_picture():
    images = pictures(200) * 0.8
    bent = color_jitter(images, 1e-9, 0.0, seeded(), tone=1.0)  # colours as good as unmixed
    before, after = ((t.flatten(1) + 1) / 2 for t in (images, bent))  # [N, pixels]
    powers = after[:, :1].log() / before[:, :1].log()  # [N, 1]
    torch.testing.assert_close(after, before**powers, atol=1e-4, rtol=0)
    octaves = powers.log2()
    assert abs(octaves.mean()) < 0.2 and 0.85 < octaves.std() < 1.15
    night = images * 0.06 - 0.9
    lit = color_jitter(night, 1e-9, 0.0, seeded(), tone=1.5)
    assert lit.mean((1, 2, 3)).max() > 0 and lit.flatten(1).std(1).max() > night.std()


def test_tone_leaves_the_other_draws_and_the_kept_ones_alone():
    images = pictures()
    plain, bent = (color_jitter(images, 0.2, 0.5, seeded(), tone=tone) for tone in (0.0, 1e-9))
    torch.testing.assert_close(plain, bent, atol=1e-6, rtol=0)
    kept = (plain == images).flatten(1).all(1)
    bent = color_jitter(images, 0.2, 0.5, seeded(), tone=1.0)
    assert torch.equal((bent == images).flatten(1).all(1), kept)
    rows = [3, 0, 250]
    part = color_jitter(images[rows], 0.2, 0.5, seeded(), among=(400, rows), tone=1.0)
    torch.testing.assert_close(part, bent[rows])


def test_refuses_what_is_no_rgb_batch():
    with pytest.raises(ValueError, match=r"images must be \[N, 3, H, W\], got \[2, 1, 4, 4\]"):
        color_jitter(torch.zeros(2, 1, 4, 4), 1.0)
