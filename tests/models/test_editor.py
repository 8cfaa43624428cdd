"""RegionEditor: what each edit is made of, any size, refusals."""

import pytest
import torch
from tiny_networks import DEMO, PAPER, encoder, generator, picture

from rwm_fast.models import RegionEditor
from rwm_fast.models.compositing import resized

F64 = torch.float64
ROUNDING = 1e-11  # float64: about ten layers, each adding up to 200 products of order 1


def editor(config=PAPER, **options):
    """An editor whose pictures stay within [-1, 1], so that clamping hides nothing."""
    net = generator(config)
    net.to_rgb.weight.mul_(0.02)
    net.to_rgb.bias.zero_()
    return RegionEditor(encoder(config), net, **options)


def close(a, b):
    torch.testing.assert_close(a, b, rtol=ROUNDING, atol=ROUNDING)


A, B, C = (picture(2, seed=seed) for seed in range(3))


def test_reconstruct_is_the_generator_on_the_codes():
    edit = editor(noise_seed=None)
    image = edit.reconstruct(A)
    assert image.abs().max() < 1
    close(image, edit.generator(*edit.encoder(A), noise="none"))


def test_swap_is_the_content_of_one_in_the_style_of_the_other():
    edit = editor(noise_seed=None)
    expected = edit.generator(edit.encoder.content(A), edit.encoder.style(B), noise="none")
    close(edit.swap(A, B), expected)


def test_mask_of_zeros_reconstructs_and_of_ones_swaps():
    edit = editor()
    mask = torch.zeros(2, 1, 32, 32, dtype=F64)
    close(edit.repaint(A, B, mask), edit.reconstruct(A))
    close(edit.repaint(A, B, 1 - mask), edit.swap(A, B))
    assert (edit.swap(A, B) - edit.reconstruct(A)).abs().max() > 1e-3


def test_several_regions_with_several_styles():
    edit = editor(noise_seed=None)
    planes = torch.zeros(2, 2, 32, 32, dtype=F64)
    planes[:, 0, :, :8] = 1
    planes[:, 1, :, 24:] = 1
    style = edit.encoder.style
    regions = torch.cat([1 - planes.sum(1, keepdim=True), planes], 1)
    styles = torch.stack([style(A), style(B), style(C)], 1)
    expected = edit.generator(edit.encoder.content(A), styles, regions, "none")
    close(edit.repaint(A, [B, C], planes), expected)
    close(edit.repaint(A, [C, B], planes.flip(1)), expected)


@pytest.mark.parametrize("config", [PAPER, DEMO])
@pytest.mark.parametrize("size", [(31, 50), (5, 33), (1, 1)])
def test_any_size(config, size):
    """Pictures are mirrored up to the stride and cropped back; styles may have their own size."""
    edit = editor(config)
    image, other = picture(2, *size), picture(1, 45, 20)
    mask = torch.ones(1, 1, *size, dtype=F64)
    for result in (edit.reconstruct(image), edit.swap(image, other)):
        assert result.shape == image.shape and result.isfinite().all()
    close(edit.repaint(image, other, mask), edit.swap(image, other))
    assert edit.interpolate(image, other, image, [0.5]).shape == (1, *image.shape)


def test_padding_mirrors():
    edit = editor(noise_seed=None)
    image = picture(1, 30, 31)
    padded = torch.nn.functional.pad(image, [0, 1, 0, 2], mode="reflect")
    close(edit.reconstruct(image), edit.reconstruct(padded)[:, :, :30, :31])


def test_keep_detail_adds_what_the_networks_cannot_paint():
    edit = editor()
    mask = (picture(2)[:, :1] > 0).to(F64)
    plain, kept = edit.repaint(A, B, mask), edit.repaint(A, B, mask, keep_detail=True)
    close(kept, (A + plain - edit.reconstruct(A)).clamp(-1, 1))
    close(edit.repaint(A, B, torch.zeros_like(mask), keep_detail=True), A)
    close(
        edit.swap(A, B, keep_detail=True), (A + edit.swap(A, B) - edit.reconstruct(A)).clamp(-1, 1)
    )


def test_results_are_clamped():
    edit = editor()
    edit.generator.to_rgb.bias.fill_(3)
    assert torch.equal(edit.reconstruct(A), torch.ones_like(A))


def test_interpolation_runs_from_one_style_to_the_other():
    edit = editor()
    frames = edit.interpolate(A, B, C, [0.0, 0.25, 1.0])
    assert frames.shape == (3, 2, 3, 32, 32)
    close(frames[0], edit.swap(A, B))
    close(frames[2], edit.swap(A, C))
    apart = lambda a, b: (a - b).abs().mean()
    assert 0 < apart(frames[1], frames[0]) < apart(frames[2], frames[0])
    close(edit.interpolate(A, B, C, torch.tensor([0.25])), frames[1:2])


def test_interpolation_inside_a_mask():
    edit = editor()
    mask = torch.zeros(2, 1, 32, 32, dtype=F64)
    mask[..., 16:] = 1
    frames = edit.interpolate(A, B, C, [0.0, 1.0], mask)
    close(frames[0], edit.repaint(A, B, mask))
    close(frames[1], edit.repaint(A, C, mask))


def test_noise_is_the_same_in_every_call_or_absent():
    seeded, other, silent = editor(), editor(noise_seed=1), editor(noise_seed=None)
    assert torch.equal(seeded.swap(A, B), seeded.swap(A, B))
    images = [edit.swap(A, B) for edit in (seeded, other, silent)]
    for i in range(3):
        assert (images[i] - images[i - 1]).abs().max() > 1e-4


def test_no_gradients_are_recorded():
    edit = editor().requires_grad_(True)
    mask = torch.ones(2, 1, 32, 32, dtype=F64)
    results = [edit.reconstruct(A), edit.swap(A, B), edit.repaint(A, B, mask), *edit.encode(A)]
    assert not any(result.requires_grad for result in results)


@pytest.mark.parametrize("shape", [(2, 1, 32, 31), (3, 1, 32, 32), (1, 32, 32), (32, 32)])
def test_mask_of_another_size_is_refused(shape):
    for masks in (torch.zeros(shape), [torch.zeros(shape)]):
        with pytest.raises(ValueError, match=r"edit: mask must be \[2, 1, 32, 32\], got \["):
            editor().edit(A, B, masks)


def test_overlapping_or_negative_planes_are_refused():
    planes = torch.full((2, 2, 32, 32), 0.6)
    with pytest.raises(ValueError, match="its planes must add up to at most 1, got"):
        editor().repaint(A, [B, C], planes)
    with pytest.raises(ValueError, match=r"mask must be in \[0, 1\]"):
        editor().repaint(A, B, torch.full((2, 1, 32, 32), -0.5))


def test_planes_stored_as_8_bit_pictures_may_overlap_by_a_step():
    planes = torch.full((2, 2, 32, 32), 128 / 255, dtype=F64)
    close(editor().repaint(A, [B, C], planes), editor().repaint(A, [B, C], planes * 255 / 256))


@pytest.mark.parametrize(
    ("styles", "masks", "options", "message"),
    [
        (
            [B, C],
            (),
            {},
            "one style without a mask, or as many masks as styles, got 2 styles and 0",
        ),
        ([B, C], [A[:, :1]], {}, "got 2 styles and 1 masks"),
        (B, A[:, :2], {}, "got 1 styles and 2 masks"),
        (B, (), dict(work_size=-1), "edit: work_size must be at least 0 pixels, got -1"),
        (B, (), dict(feather=3.0), "edit: feather needs a mask, got None"),
        (B, A[:, :1], dict(feather=-0.5), "edit: feather must be at least 0 pixels, got -0.5"),
        (B, [A[:, :1] + 3], {}, r"mask must be in \[0, 1\]"),
    ],
)
def test_what_does_not_fit_is_refused(styles, masks, options, message):
    with pytest.raises(ValueError, match=message):
        editor().edit(A, styles, masks, **options)


def boxes():
    """Two masks [2, 1, 32, 32] that overlap."""
    first, second = torch.zeros(2, 2, 1, 32, 32, dtype=F64)
    first[..., :20], second[..., 12:] = 1, 1
    return first, second


def test_where_masks_overlap_the_later_one_wins():
    edit, (first, second) = editor(), boxes()
    planes = torch.cat([first * (1 - second), second], 1)
    close(edit.edit(A, [B, C], [first, second]), edit.repaint(A, [B, C], planes))
    half = 0.5 * torch.ones_like(first)
    close(
        edit.edit(A, [B, C], [half, half]),
        edit.repaint(A, [B, C], torch.cat([0.5 * half, half], 1)),
    )


def test_a_feathered_edit_leaves_the_picture_untouched_beyond_its_border():
    edit, (mask, _) = editor(), boxes()
    pasted, whole = edit.edit(A, B, [mask], feather=4), edit.edit(A, B, [mask])
    assert torch.equal(pasted[..., 24:], A[..., 24:])
    close(pasted[..., :20], whole[..., :20])
    assert (whole[..., 24:] - A[..., 24:]).abs().max() > 1e-3


@pytest.mark.parametrize("keep_detail", [False, True])
def test_networks_can_work_on_a_smaller_picture(keep_detail):
    edit, (mask, _) = editor(), boxes()
    result = edit.edit(A, B, [mask], work_size=16, keep_detail=keep_detail)
    small, style, plane = (resized(x, 16) for x in (A, B, mask))
    edited = edit.repaint(small, style, plane, keep_detail=keep_detail)
    change = edited - small if keep_detail else edited
    enlarged = torch.nn.functional.interpolate(change, (32, 32), mode="bicubic")
    close(result, ((A if keep_detail else 0) + enlarged).clamp(-1, 1))
    close(edit.edit(A, B, [mask], work_size=64), edit.edit(A, B, [mask]))  # never enlarged
