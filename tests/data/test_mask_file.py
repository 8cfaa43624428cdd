"""Masks as people have them all select the same region, and what cannot be told is refused."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFilter

from rwm_fast.data.decode import load_mask, read_mask
from rwm_fast.errors import UserError

SIZE = (40, 60)  # H, W
REGION = np.zeros(SIZE, np.uint8)
REGION[10:30, 15:45] = 1
OTHER = np.zeros(SIZE, np.uint8)
OTHER[32:38, 5:50] = 1
RED, MAROON, VOID = (255, 0, 0), (128, 0, 0), (224, 224, 192)


def grey(inside: int, outside: int = 0, dtype=np.uint8) -> Image.Image:
    return Image.fromarray(np.where(REGION, inside, outside).astype(dtype))


def palette(colours, indices=REGION) -> Image.Image:
    image = Image.fromarray(indices, "L").convert("P")
    image.putdata(indices.ravel().tolist())
    image.putpalette([c for colour in colours for c in colour])
    return image


def coloured(inside, outside=(0, 0, 0)) -> Image.Image:
    return Image.fromarray(np.where(REGION[..., None], inside, outside).astype(np.uint8))


def layer(colour, inside: int, outside: int) -> Image.Image:
    image = coloured(colour, colour).convert("RGBA")
    image.putalpha(grey(inside, outside))
    return image


def photo() -> Image.Image:
    values = np.random.default_rng(0).integers(0, 255, (5, 8, 3), dtype=np.uint8)
    return Image.fromarray(values).resize(SIZE[::-1])


def erased() -> Image.Image:
    image = photo().convert("RGBA")
    image.putalpha(grey(0, 255))
    return image


def premultiplied() -> Image.Image:
    return layer((255, 255, 255), 255, 0).convert("RGBa").convert("RGBA")


MASKS = {  # name: (picture, format)
    "white on black": (grey(255), "PNG"),
    "0 and 1": (grey(1), "PNG"),
    "one label": (grey(7), "PNG"),
    "1 and 2": (grey(2, 1), "PNG"),
    "16 bits": (grey(65535, dtype=np.uint16), "PNG"),
    "16 bits of 0 and 1": (grey(1, dtype=np.uint16), "PNG"),
    "16 bits of 0 and 255": (grey(255, dtype=np.uint16), "PNG"),
    "float": (grey(1, dtype=np.float32), "TIFF"),
    "float to 255": (grey(255, dtype=np.float32), "TIFF"),
    "int32": (grey(255, dtype=np.int32), "TIFF"),
    "1 bit": (grey(255).convert("1"), "PNG"),
    "rgb": (grey(255).convert("RGB"), "PNG"),
    "jpeg": (grey(255).convert("RGB"), "JPEG"),
    "palette of classes": (palette([(0, 0, 0), MAROON]), "PNG"),
    "palette upside down": (palette([(255, 255, 255), (0, 0, 0)], 1 - REGION), "PNG"),
    "palette gif": (palette([(0, 0, 0), (255, 255, 255)]), "GIF"),
    "red on black": (coloured(RED), "PNG"),
    "red on white": (coloured(RED, (255, 255, 255)), "PNG"),
    "red as jpeg": (coloured(RED), "JPEG"),
    "red strokes on a clear layer": (layer(RED, 255, 0), "PNG"),
    "white strokes on a clear layer": (layer((255, 255, 255), 255, 0), "PNG"),
    "clear white paper with alpha of 255": (grey(255).convert("RGBA"), "PNG"),
    "grey and alpha": (grey(255).convert("LA"), "PNG"),
    "premultiplied": (premultiplied(), "PNG"),
    "erased from a photo": (erased(), "PNG"),
    "erased, webp": (erased(), "WEBP"),
    "0 and 1, lossless webp": (grey(1).convert("RGB"), "WEBP"),
}


@pytest.mark.parametrize("name", MASKS)
def test_every_kind_of_mask_selects_the_region(name, tmp_path):
    image, kind = MASKS[name]
    options = {"JPEG": {"quality": 90}, "WEBP": {"lossless": True}}
    image.save(tmp_path / "m", kind, **options.get(kind, {}))
    mask = read_mask(tmp_path / "m", SIZE)
    away = np.abs(mask.plane - REGION)
    if kind == "JPEG":
        assert (away > 0.1).mean() < 0.1  # edges ring, and colours have half the resolution
        assert mask.plane[:5].max() == 0 and mask.plane[14:26, 19:41].min() == 1
    else:
        assert away.max() == 0
    assert mask.share == pytest.approx(REGION.mean(), abs=0.03)
    assert torch.equal(load_mask(tmp_path / "m")[0, 0], torch.from_numpy(mask.plane))


def classes() -> Image.Image:
    return palette([(0, 0, 0), MAROON, (0, 128, 0)], REGION + 2 * OTHER)


AMBIGUOUS = {
    "labels": (Image.fromarray(REGION + 2 * OTHER), "several labels (1, 2)", "1"),
    "a label and 255 for void": (Image.fromarray(15 * REGION + 255 * OTHER), "(15, 255)", "15"),
    "16-bit labels": (
        Image.fromarray((REGION + 2 * OTHER).astype(np.uint16)),
        "several labels (1, 2)",
        "1",
    ),
    "classes of a palette": (classes(), "several colours (000000, 800000, 008000)", "1"),
    "classes by colour": (classes().convert("RGB"), "several colours (000000, 8", "800000"),
    "red without a background": (coloured(RED, (0, 128, 0)), "several colours", "#ff0000"),
    "red on black and white": (
        Image.fromarray(
            np.where(OTHER[..., None], 255, np.asarray(coloured(RED))).astype(np.uint8)
        ),
        "several colours",
        "ff0000",
    ),
    "a photo": (photo(), "several colours", None),
    "black on a clear layer": (layer((0, 0, 0), 255, 0), "is black and clear", None),
}


@pytest.mark.parametrize("name", AMBIGUOUS)
def test_what_cannot_be_told_is_refused_and_a_label_chooses(name, tmp_path):
    image, sentence, label = AMBIGUOUS[name]
    image.save(tmp_path / "m.png")
    with pytest.raises(UserError) as refusal:
        read_mask(tmp_path / "m.png", SIZE)
    assert sentence in str(refusal.value) and str(refusal.value).startswith("mask ")
    if label is not None:
        assert np.array_equal(read_mask(tmp_path / "m.png", SIZE, label).plane, REGION)


def test_a_label_that_is_none_is_refused(tmp_path):
    grey(1).save(tmp_path / "m.png")
    with pytest.raises(UserError, match="has no label 'sky': expected a level"):
        read_mask(tmp_path / "m.png", SIZE, "sky")


def test_soft_masks_stay_soft(tmp_path):
    soft = grey(255).filter(ImageFilter.GaussianBlur(3))
    soft.save(tmp_path / "soft.png")
    half = Image.fromarray(np.where(REGION, 255, 128 * OTHER).astype(np.uint8))
    half.save(tmp_path / "half.png")
    antialiased = Image.new("L", (SIZE[1] * 4, SIZE[0] * 4))
    ImageDraw.Draw(antialiased).ellipse((20, 30, 200, 120), fill=204)
    antialiased.resize(SIZE[::-1], Image.Resampling.BOX).save(tmp_path / "brush.png")
    for name in ("soft", "half", "brush"):
        with Image.open(tmp_path / f"{name}.png") as image:
            wanted = np.asarray(image) / 255
        mask = read_mask(tmp_path / f"{name}.png", SIZE)
        assert np.abs(mask.plane - wanted).max() < 1e-6 and mask.remark() == ""


def test_antialiased_strokes_of_a_colour_are_soft(tmp_path):
    red = np.zeros((*SIZE, 3), np.uint8)
    red[..., 0] = np.asarray(grey(255).filter(ImageFilter.BoxBlur(1)))
    Image.fromarray(red).save(tmp_path / "m.png")
    assert np.abs(read_mask(tmp_path / "m.png").plane - red[..., 0] / 255).max() < 1e-6


def test_nothing_and_everything_are_said(tmp_path):
    for name, level, remark in (
        ("none", 0, "selects nothing, so nothing is repainted"),
        ("all", 255, "selects everything"),
        ("ones", 1, "selects everything"),
    ):
        grey(level, level).save(tmp_path / f"{name}.png")
        assert read_mask(tmp_path / f"{name}.png").remark() == remark
    layer(RED, 0, 0).save(tmp_path / "clear.png")
    assert "nothing" in read_mask(tmp_path / "clear.png").remark()
    with pytest.warns(UserWarning, match="none.png selects nothing"):
        load_mask(tmp_path / "none.png")
    grey(2, 1).save(tmp_path / "odd.png")
    assert read_mask(tmp_path / "odd.png").remark() == "has the levels 1 and 2; 2 is repainted"
    photo().convert("L").save(tmp_path / "photo.png")
    assert "neither black nor white on" in read_mask(tmp_path / "photo.png").remark()


def test_masks_are_turned_like_pictures(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(REGION * 255).save(tmp_path / "m.png", exif=exif)
    turned = np.rot90(REGION, -1)
    assert np.array_equal(read_mask(tmp_path / "m.png", turned.shape).plane, turned)


def test_a_mask_of_the_pictures_aspect_is_resized(tmp_path):
    mask = Image.new("L", (40, 28))
    mask.paste(255, (0, 0, 20, 28))
    mask.save(tmp_path / "m.png")
    fitted = read_mask(tmp_path / "m.png", (14, 20))
    assert fitted.plane.shape == (14, 20) and fitted.remark() == "was resized from 40 x 28"
    assert fitted.plane[:, :9].min() == 1 and fitted.plane[:, 11:].max() == 0
    assert read_mask(tmp_path / "m.png", (1401, 2001)).plane.shape == (1401, 2001)  # by rounding
    for size in ((20, 14), (14, 22), (1401, 2200)):
        with pytest.raises(UserError, match="or its aspect, got 40 x 28"):
            read_mask(tmp_path / "m.png", size)
