"""RegionEditor: what each edit is made of, any size, refusals."""

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from tiny_networks import DEMO, PAPER, encoder, generator, picture

from rwm_fast.models import RegionEditor

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
    close(edit.edit(A, B, mask), edit.reconstruct(A))
    close(edit.edit(A, B, 1 - mask), edit.swap(A, B))
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
    close(edit.edit(A, [B, C], planes), expected)
    close(edit.edit(A, [C, B], planes.flip(1)), expected)


@pytest.mark.parametrize("config", [PAPER, DEMO])
@pytest.mark.parametrize("size", [(31, 50), (5, 33), (1, 1)])
def test_any_size(config, size):
    """Pictures are mirrored up to the stride and cropped back; styles may have their own size."""
    edit = editor(config)
    image, other = picture(2, *size), picture(1, 45, 20)
    mask = torch.ones(1, 1, *size, dtype=F64)
    for result in (edit.reconstruct(image), edit.swap(image, other)):
        assert result.shape == image.shape and result.isfinite().all()
    close(edit.edit(image, other, mask), edit.swap(image, other))
    assert edit.interpolate(image, [other, image], [0.5])[0].shape == image.shape


def test_padding_mirrors():
    edit = editor(noise_seed=None)
    image = picture(1, 30, 31)
    padded = torch.nn.functional.pad(image, [0, 1, 0, 2], mode="reflect")
    close(edit.reconstruct(image), edit.reconstruct(padded)[:, :, :30, :31])


def test_keep_detail_adds_what_the_networks_cannot_paint():
    edit = editor()
    mask = (picture(2)[:, :1] > 0).to(F64)
    plain, kept = edit.edit(A, B, mask), edit.edit(A, B, mask, keep_detail=True)
    close(kept, (A + plain - edit.reconstruct(A)).clamp(-1, 1))
    close(edit.edit(A, B, torch.zeros_like(mask), keep_detail=True), A)
    close(
        edit.swap(A, B, keep_detail=True), (A + edit.swap(A, B) - edit.reconstruct(A)).clamp(-1, 1)
    )


def test_results_are_clamped():
    edit = editor()
    edit.generator.to_rgb.bias.fill_(3)
    assert torch.equal(edit.reconstruct(A), torch.ones_like(A))


def test_interpolation_runs_from_one_style_to_the_other():
    edit = editor()
    frames = edit.interpolate(A, [B, C], [0.0, 0.25, 1.0])
    assert len(frames) == 3 and frames[0].shape == A.shape
    close(frames[0], edit.swap(A, B))
    close(frames[2], edit.swap(A, C))
    apart = lambda a, b: (a - b).abs().mean()
    assert 0 < apart(frames[1], frames[0]) < apart(frames[2], frames[0])
    close(edit.interpolate(A, [B, C], torch.tensor([0.25]))[0], frames[1])
    close(edit.interpolate(A, [B, C], [[0.75, 0.25]])[0], frames[1])


def test_interpolation_of_three_styles_is_a_mix_of_their_codes():
    edit = editor()
    mix = [0.2, 0.3, 0.5]
    styles = [edit.encode(x).style for x in (A, B, C)]
    expected = edit.swap(A, sum(w * s for w, s in zip(mix, styles, strict=True)))
    close(edit.interpolate(A, [A, B, C], [mix])[0], expected)


def test_interpolation_inside_a_mask():
    edit = editor()
    mask = torch.zeros(2, 1, 32, 32, dtype=F64)
    mask[..., 16:] = 1
    frames = edit.interpolate(A, [B, C], [0.0, 1.0], mask)
    close(frames[0], edit.edit(A, B, mask))
    close(frames[1], edit.edit(A, C, mask))


@pytest.mark.parametrize("weights", [[[0.1, 0.2, 0.7]], 0.5, [[[0.5, 0.5]]]])
def test_weights_that_fit_no_styles_are_refused(weights):
    with pytest.raises(ValueError, match=r"weights must be \[T, 2\], or \[T\] for two styles"):
        editor().interpolate(A, [B, C], weights)


def test_noise_is_the_same_in_every_call_or_absent():
    seeded, other, silent = editor(), editor(noise_seed=1), editor(noise_seed=None)
    assert torch.equal(seeded.swap(A, B), seeded.swap(A, B))
    images = [edit.swap(A, B) for edit in (seeded, other, silent)]
    for i in range(3):
        assert (images[i] - images[i - 1]).abs().max() > 1e-4


def test_no_gradients_are_recorded():
    edit = editor().requires_grad_(True)
    mask = torch.ones(2, 1, 32, 32, dtype=F64)
    results = [edit.reconstruct(A), edit.swap(A, B), edit.edit(A, B, mask)]
    codes = edit.encode(A)
    results += [codes.content, codes.style, codes.detail]
    assert not any(result.requires_grad for result in results)


@pytest.mark.parametrize("shape", [(2, 1, 32, 31), (3, 1, 32, 32), (1, 31, 32), (31, 32)])
def test_mask_of_another_size_is_refused(shape):
    for masks in (torch.zeros(shape), [torch.zeros(shape)]):
        with pytest.raises(ValueError, match=r"edit: mask must be \[2, 1, 32, 32\], got \["):
            editor().edit(A, B, masks)


def test_overlapping_or_negative_planes_are_refused():
    planes = torch.full((2, 2, 32, 32), 0.6)
    with pytest.raises(ValueError, match="its planes must add up to at most 1, got"):
        editor().edit(A, [B, C], planes)
    with pytest.raises(ValueError, match=r"mask must be in \[0, 1\]"):
        editor().edit(A, B, torch.full((2, 1, 32, 32), -0.5))


def test_planes_stored_as_8_bit_pictures_may_overlap_by_a_step():
    planes = torch.full((2, 2, 32, 32), 128 / 255, dtype=F64)
    close(editor().edit(A, [B, C], planes), editor().edit(A, [B, C], planes * 255 / 256))


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
    close(edit.edit(A, [B, C], [first, second]), edit.edit(A, [B, C], planes))
    half = 0.5 * torch.ones_like(first)
    close(
        edit.edit(A, [B, C], [half, half]),
        edit.edit(A, [B, C], torch.cat([0.5 * half, half], 1)),
    )


def test_a_feathered_edit_leaves_the_picture_untouched_beyond_its_border():
    edit, (mask, _) = editor(), boxes()
    pasted, whole = edit.edit(A, B, [mask], feather=4), edit.edit(A, B, [mask])
    assert torch.equal(pasted[..., 24:], A[..., 24:])
    close(pasted[..., :20], whole[..., :20])
    assert (whole[..., 24:] - A[..., 24:]).abs().max() > 1e-3


class Counted:
    """How often each of an editor's networks is run."""

    def __init__(self, edit):
        self.runs = {"encoder": 0, "generator": 0}
        edit.encoder.trunk.register_forward_pre_hook(lambda *_: self._count("encoder"))
        edit.generator.to_rgb.register_forward_pre_hook(lambda *_: self._count("generator"))

    def _count(self, name):
        self.runs[name] += 1

    def since(self):
        runs, self.runs = self.runs, {"encoder": 0, "generator": 0}
        return runs


@pytest.mark.parametrize("options", [{}, dict(keep_detail=True, feather=2)])
@pytest.mark.parametrize("work_size", [0, 16])
def test_with_codes_a_new_mask_or_strength_costs_one_run_of_the_generator(options, work_size):
    edit, (first, second) = editor(), boxes()
    counted = Counted(edit)
    content, style = (edit.encode(x, work_size=work_size) for x in (A, B))
    assert counted.since() == {"encoder": 2, "generator": 2}
    for mask, strength in ((first, 1.0), (second, 1.0), (second, 0.5)):
        kept = edit.edit(content, style, mask, strength=strength, **options)
        assert counted.since() == {"encoder": 0, "generator": 1}
        straight = edit.edit(A, B, mask, strength=strength, work_size=work_size, **options)
        counted.since()
        assert torch.equal(kept, straight)
    edit.interpolate(content, [style, content], [0.0, 0.5, 1.0], first, **options)
    assert counted.since() == {"encoder": 0, "generator": 3}


def test_strength_goes_from_the_own_style_to_the_other():
    edit, (mask, _) = editor(), boxes()
    close(edit.edit(A, B, mask, strength=0), edit.reconstruct(A))
    assert torch.equal(edit.edit(A, B, mask, strength=1.0), edit.edit(A, B, mask))
    own, other = edit.encode(A).style, edit.encode(B).style
    close(edit.swap(A, B, strength=0.3), edit.swap(A, own + 0.3 * (other - own)))
    close(edit.swap(A, B, strength=-0.5), edit.swap(A, own - 0.5 * (other - own)))


def test_each_style_has_its_strength():
    edit, masks = editor(), boxes()
    own, first, second = (edit.encode(x).style for x in (A, B, C))
    mixed = [torch.lerp(own, first, 0.25), torch.lerp(own, second, 0.75)]
    close(edit.edit(A, [B, C], masks, strength=[0.25, 0.75]), edit.edit(A, mixed, masks))


def test_style_of_a_part():
    """Of a picture whose halves are two pictures, each half gives nearly its own picture's style;
    a mask of ones gives that of the whole, bit for bit."""
    edit, (mask, _) = editor(), boxes()
    whole = torch.cat([B, C], 3)
    left = torch.zeros(2, 1, 32, 64, dtype=F64)
    left[..., :32] = 1
    apart = lambda a, b: (a - b).abs().mean()
    for part, near, far in ((left, B, C), (1 - left, C, B)):
        taken = edit.edit(A, whole, mask, style_masks=part)
        assert apart(taken, edit.edit(A, near, mask)) < 0.3 * apart(taken, edit.edit(A, far, mask))
    straight = edit.edit(A, [whole, B], boxes())
    ones = torch.ones_like(left)
    assert torch.equal(edit.edit(A, [whole, B], boxes(), style_masks=[ones, None]), straight)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(style_masks=[None, None]), "style_masks must be as many as styles, 1, got 2"),
        (dict(strength=[1.0, 0.5]), "strength must be as many as styles, 1, got 2"),
        (dict(strength=math.nan), "strength must be finite, got nan"),
        (dict(style_masks=torch.zeros(1, 1, 32, 32)), "style mask must select some of every"),
        (dict(style_masks=torch.ones(1, 1, 32, 30)), r"edit: style mask must be \[2, 1, 32, 32\]"),
        (dict(tile=-1), "tile must be at least 0 pixels, got -1"),
    ],
)
def test_what_does_not_fit_a_style_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        editor().edit(A, B, **options)


def test_codes_without_their_picture():
    edit, (mask, _) = editor(), boxes()
    bare = edit.encode(A, picture=False)
    assert bare.picture is bare.seen is bare.detail is None
    assert torch.equal(edit.edit(bare, B, mask), edit.edit(A, B, mask))
    assert torch.equal(edit.swap(B, bare), edit.swap(B, A))
    for codes, options in (
        (bare, dict(keep_detail=True)),
        (bare, dict(feather=2)),
        (edit.encode(A, picture=False, work_size=16), {}),
    ):
        with pytest.raises(ValueError, match="need the picture, got codes made with picture=False"):
            edit.edit(codes, B, mask, **options)
    with pytest.raises(ValueError, match="a style mask needs the style picture, not its code"):
        edit.edit(A, bare, mask, style_masks=mask)
    with pytest.raises(ValueError, match="a style must be of one picture or of 2"):
        edit.edit(A, picture(3), mask)


def test_networks_work_at_the_size_of_training_where_the_picture_is_larger():
    edit = editor()
    image, mask = picture(1, 48, 72), torch.zeros(48, 72)
    mask[:, 30:] = 1
    auto = edit.edit(image, B[:1], mask)
    assert torch.equal(auto, edit.edit(image, B[:1], mask, work_size=32, keep_detail=True))
    assert edit.encode(image).work == (32, 48) and edit.encode(A).work == (32, 32)
    assert edit.encode(image, work_size=0).work == edit.encode(image, tile=8).work == (48, 72)
    close(edit.edit(A, B, work_size=64), edit.edit(A, B))  # never enlarged


def test_threads_share_an_editor():
    edit, masks = editor(), boxes()
    work = [(x, y, m, s) for x, y in ((A, B), (B, C), (C, A)) for m in masks for s in (0.5, 1.0)]
    run = lambda job: edit.edit(job[0], job[1], job[2], strength=job[3], keep_detail=True)
    alone = [run(job) for job in work]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(run, work))
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


def test_main_directions_of_a_set():
    """Styles that lie on a line: it is the first axis, and going along it moves the style."""
    edit = editor()
    way = torch.nn.functional.normalize(torch.arange(12.0, dtype=F64) - 3, dim=0)
    base = edit.encode(A)
    on_line = [
        replace(base, style=torch.ones(1, 12, dtype=F64) + t * way) for t in (-1.0, 0.0, 2.0, 3.0)
    ]
    found = edit.pca(on_line, count=3).style
    assert found.spread[1:].max() < 1e-6 and abs(found.spread[0] - 2.5**0.5) < 1e-6
    close(found.vectors[0], way)
    close(base.moved(found, 0, 2.0).style, base.style + 2 * 2.5**0.5 * way)
    assert (edit.swap(A, base.moved(found, 0, 2.0)) - edit.swap(A, A)).abs().max() > 1e-3
    pixels = edit.pca([A, B]).content
    assert len(pixels.spread) == 4 and (pixels.spread[:-1] >= pixels.spread[1:]).all()
    close(pixels.vectors @ pixels.vectors.T, torch.eye(4, dtype=F64))
    moved = base.moved(pixels, 1, -1.0)
    assert torch.equal(moved.style, base.style)
    close((moved.content - base.content)[1, :, 3, 4], -pixels.spread[1] * pixels.vectors[1])
    with pytest.raises(ValueError, match="expected two pictures or more, got 1"):
        edit.pca([A[:1]])
    with pytest.raises(ValueError, match="index must be from 0 to 2, got 3"):
        base.moved(found, 3, 1.0)
