"""Kinds of picture and mask: what they mean, that the same kind comes out, refusals."""

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_networks import PAPER, encoder, generator, picture

from rwm_fast.models import RegionEditor
from rwm_fast.models.compositing import averaging, feathered, working_size
from rwm_fast.models.pictures import bands, picture_of, planes_of, reduced

F32 = torch.float32
CPU = torch.device("cpu")
LEVELS = torch.randint(0, 256, (2, 30, 41, 3), dtype=torch.uint8)
PLAIN = LEVELS.permute(0, 3, 1, 2).float() / 127.5 - 1  # what all of the following show


def kinds():
    """The first picture as everything it can come as, and the largest rounding of each."""
    pixels = LEVELS.numpy()
    yield "PIL", Image.fromarray(pixels[0]), 1 / 255
    yield "uint8 array", pixels[0], 1 / 255
    yield "uint8 arrays", pixels[:1], 1 / 255
    yield "mirrored view", np.ascontiguousarray(pixels[0, :, ::-1])[:, ::-1], 1 / 255
    yield "float array", pixels[0].astype(np.float32) / 255, 1e-6
    yield "half array", (pixels[0] / 255).astype(np.float16), 2e-3
    yield "tensor", PLAIN[0], 1e-6
    yield "tensors", PLAIN[:1], 1e-6
    yield "half tensor", PLAIN[:1].half(), 2e-3
    yield "uint8 tensor", LEVELS[0].permute(2, 0, 1), 1 / 255


@pytest.fixture(scope="module")
def editor():
    net = generator(PAPER)
    net.to_rgb.weight.mul_(0.3)
    return RegionEditor(encoder(PAPER).float(), net.float())


def as_tensor(result):
    """A result of any kind as the tensor [1, 3, H, W] that it shows."""
    return picture_of(result, "test").reduced((30, 41), F32, CPU)


@pytest.mark.parametrize(("kind", "given", "rounding"), list(kinds()), ids=[k for k, *_ in kinds()])
def test_what_comes_goes_out_as_the_same_kind(kind, given, rounding, editor):
    style = picture(1, 20, 20).float()
    result = editor.edit(given, style, np.eye(41, dtype=bool)[:30], work_size=0)
    assert type(result) is type(given)
    if kind == "PIL":
        assert (result.mode, result.size) == ("RGB", (41, 30))
    else:
        assert result.shape == given.shape and result.dtype == given.dtype
    expected = editor.edit(PLAIN[:1], style, torch.eye(41)[:30], work_size=0)
    assert (as_tensor(result) - expected).abs().max() <= 2 * rounding
    moved = editor.swap(picture(1, 20, 20).float(), given, work_size=0)
    assert (moved - editor.swap(picture(1, 20, 20).float(), PLAIN[:1], work_size=0)).abs().max() < (
        10 * rounding if rounding > 1e-3 and "half" in kind else 1e-5
    )


@pytest.mark.parametrize(("kind", "given", "rounding"), list(kinds()), ids=[k for k, *_ in kinds()])
def test_outside_a_feathered_mask_every_number_stays(kind, given, rounding, editor):
    mask = np.zeros((30, 41), np.uint8)
    mask[:, 30:] = 255
    for work_size in (0, 16):
        result = editor.edit(given, PLAIN[1:], mask, feather=2, work_size=work_size)
        own, new = (np.asarray(x if kind == "PIL" else x).reshape(-1) for x in (given, result))
        kept = np.asarray(picture_of(given, "test").values[..., :28])
        assert np.array_equal(kept, np.asarray(picture_of(result, "test").values[..., :28]))
        assert (own != new).any()


def test_a_batch_of_arrays(editor):
    result = editor.swap(LEVELS.numpy(), PLAIN[:1], work_size=0)
    expected = editor.swap(PLAIN, PLAIN[:1], work_size=0)
    assert result.shape == (2, 30, 41, 3)
    assert np.array_equal(result, ((expected + 1) * 127.5).round().byte().permute(0, 2, 3, 1))


def masks():
    disc = (torch.arange(41) - 20).square() + (torch.arange(30)[:, None] - 15).square() < 90
    yield "bool", disc
    yield "array", disc.numpy()
    yield "uint8", disc.numpy().astype(np.uint8) * 255
    yield "0 and 1", disc.byte()
    yield "floats", disc.double()[None]
    yield "batch", disc.half().expand(1, 1, -1, -1)
    yield "L", Image.fromarray(disc.numpy().astype(np.uint8) * 255)
    yield "1", Image.fromarray(disc.numpy())


@pytest.mark.parametrize(("kind", "mask"), list(masks()), ids=[k for k, _ in masks()])
def test_kinds_of_mask(kind, mask):
    planes = planes_of(mask, 2, (30, 41), "mask", CPU, F32)
    expected = next(masks())[1].float()
    assert torch.equal(planes.rows(0, 30), expected[None, None])
    assert torch.equal(planes.rows(7, 9), expected[None, None, 7:9])
    several = planes_of([mask, mask, 1 - expected], 2, (30, 41), "mask", CPU, F32)
    stacked = torch.stack([0 * expected, expected, 1 - expected])
    assert torch.equal(several.rows(0, 30), stacked[None])


def test_grey_levels_of_a_mask_are_shares():
    planes = planes_of(np.array([[0, 51, 255]], np.uint8), 1, (1, 3), "mask", CPU, F32)
    assert torch.equal(planes.rows(0, 1).flatten(), torch.tensor([0, 51 / 255, 1]))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (Image.new("RGBA", (8, 8)), "x: y as a PIL image must be RGB or L, got RGBA"),
        (np.zeros((8, 8), np.uint8), r"an array \[H, W, 3\] or \[N, H, W, 3\], got \[8, 8\]"),
        (np.zeros((8, 8, 4)), r"got \[8, 8, 4\]"),
        (
            torch.zeros(8, 8, 3),
            r"as a tensor must be \[3, H, W\] or \[N, 3, H, W\], got \[8, 8, 3\]",
        ),
        (torch.zeros(3, 8, 8).long(), "x: y must be uint8 or floating-point, got torch.int64"),
        (np.full((8, 8, 3), 200.0), r"an array of floats must be in \[0, 1\], got 200 to 200"),
        (np.full((8, 8, 3), np.nan), r"an array of floats must be in \[0, 1\], got nan to nan"),
        (np.zeros((0, 8, 3)), "x: y must have pixels"),
        ("photo.jpg", "must be a PIL image, a tensor, or an array .* got str"),
    ],
)
def test_what_is_no_picture_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        picture_of(given, "x: y")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (Image.new("RGB", (8, 8)), "x: y as a PIL image must be L or 1, got RGB"),
        (np.zeros((8, 8), np.int64), "x: y must be bool, uint8 or floating-point, got torch.int64"),
        (np.zeros((8, 7), bool), r"x: y must be \[2, 1, 8, 8\], got \[1, 1, 8, 7\]"),
        (np.zeros((2, 8, 8), bool), r"x: y must be \[H, W\], \[1, H, W\] or \[N, K, H, W\]"),
        (np.full((8, 8), 2.0), r"x: y must be in \[0, 1\] .* got 0 to 2"),
        (torch.full((8, 8), torch.nan), r"x: y must be in \[0, 1\]"),
        (torch.full((1, 2, 8, 8), 200).byte(), "planes must add up to at most 1, got 0 to 1.56"),
    ],
)
def test_what_is_no_mask_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        planes_of(given, 2, (8, 8), "x: y", CPU, F32)


@pytest.mark.parametrize("to", [(13, 20), (30, 7), (1, 1), (30, 41)])
def test_a_picture_reduced_in_bands_is_that_of_torch(to, monkeypatch):
    monkeypatch.setattr("rwm_fast.models.pictures._BAND", 41 * 4)
    image = picture(2, 30, 41)
    expected = torch.nn.functional.interpolate(image, to, mode="bilinear", antialias=True)
    small = reduced(lambda top, bottom: image[:, :, top:bottom], (30, 41), to)
    torch.testing.assert_close(small, expected, rtol=0, atol=1e-14)
    assert torch.equal(averaging(9, 9), torch.eye(9, dtype=torch.float64))


def test_sizes_to_work_at():
    assert working_size((300, 500), 128) == (128, 213)
    assert working_size((300, 500), 0) == working_size((300, 500), 300) == (300, 500)
    assert working_size((1, 5000), 1) == (1, 5000)


def test_bands_are_the_rows_of_a_picture():
    found = list(bands((1000, 6000)))
    assert [top for top, _ in found] == [0, *(bottom for _, bottom in found[:-1])]
    assert found[-1][1] == 1000 and len(found) > 10
    assert list(bands((3, 10**7))) == [(0, 1), (1, 2), (2, 3)]


@pytest.mark.parametrize("pixels", [0, 1, 4, 7])
def test_bands_make_no_seams_in_a_soft_border(pixels, editor, monkeypatch):
    mask = (picture(1, 30, 41)[:, :1] > 0.9).float()
    options = dict(feather=pixels, work_size=16)
    whole = editor.edit(PLAIN[:1], PLAIN[1:], mask, **options)
    monkeypatch.setattr("rwm_fast.models.pictures._BAND", 41 * 3)
    banded = editor.edit(PLAIN[:1], PLAIN[1:], mask, **options)
    torch.testing.assert_close(banded, whole, rtol=0, atol=2e-6)


@pytest.mark.parametrize("pixels", [1, 3, 4, 9, 40])
def test_the_soft_border_is_a_mean_over_the_grown_mask(pixels):
    mask = torch.zeros(2, 1, 19, 24)
    mask[0, :, 4:6, 7] = mask[1, :, -1] = 1
    radius = -(-pixels // 2)
    side = 2 * radius + 1
    grown = torch.nn.functional.max_pool2d(mask, side, stride=1, padding=radius)
    soft = torch.nn.functional.avg_pool2d(grown, side, 1, radius, count_include_pad=False)
    border = feathered(mask, pixels)
    torch.testing.assert_close(border, soft)
    assert torch.equal(border[mask == 1], torch.ones(int(mask.sum())))
    assert torch.equal(border == 0, soft == 0)
