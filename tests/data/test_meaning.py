"""A file means more than its pixels: which way is up, colours, depth, transparency, EXIF; in every
format that holds them, on the way in and on the way out."""

import io
import zipfile

import numpy as np
import PIL
import pytest
import torch
from PIL import Image, ImageCms, features

from rwm_fast.data.decode import decode, load_picture, picture_size, save_image
from rwm_fast.data.packing import Packing, pack
from rwm_fast.data.profiles import adobe_rgb, matrix_profile

WIDTH, HEIGHT = 48, 32
ORIENTED = {  # format: options
    "JPEG": {"quality": 95},
    "PNG": {},
    "WEBP": {"lossless": True},
    "TIFF": {},
    "AVIF": {"quality": 95},
}
if not features.check("avif"):
    del ORIENTED["AVIF"]


def halves() -> np.ndarray:
    """Red above left, green above right, blue below."""
    values = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    values[: HEIGHT // 2, : WIDTH // 2] = (220, 30, 20)
    values[: HEIGHT // 2, WIDTH // 2 :] = (20, 200, 40)
    values[HEIGHT // 2 :] = (20, 40, 210)
    return values


def written(image: Image.Image, kind: str, **options) -> io.BytesIO:
    file = io.BytesIO()
    image.save(file, kind, **options)
    file.seek(0)
    return file


def wide_profile() -> bytes:
    """A colour space with the corners of Display P3 and a gamma of 2.2."""
    corners = (0.51512, 0.24120, -0.00105), (0.29198, 0.69225, 0.04189), (0.15710, 0.06657, 0.78407)
    return matrix_profile("wide", corners, 2.2)


def in_srgb(image: Image.Image, profile: bytes) -> np.ndarray:
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    return np.asarray(ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB")))


@pytest.mark.parametrize("kind", ORIENTED)
@pytest.mark.parametrize("where", ["exif", "xmp"])
def test_every_orientation_in_every_format_is_applied_once(kind, where):
    transposes = [None, *(Image.Transpose(k) for k in (0, 3, 1, 5, 4, 6, 2))]
    if where == "xmp" and kind not in ("JPEG", "WEBP"):
        pytest.skip("Pillow writes XMP elsewhere")
    plain = Image.fromarray(halves())
    for turn, transpose in enumerate(transposes, 1):
        exif = Image.Exif()
        exif[0x0112] = turn
        xmp = f'<x:xmpmeta tiff:Orientation="{turn}"/>'.encode()
        options = {"exif": exif} if where == "exif" else {"xmp": xmp}
        file = written(plain, kind, **options, **ORIENTED[kind])
        wanted = plain if transpose is None else plain.transpose(transpose)
        assert picture_size(file) == wanted.size, turn
        file.seek(0)
        got = decode(file)
        assert got.size == wanted.size
        difference = np.asarray(got).astype(int) - np.asarray(wanted)
        assert np.abs(difference).mean() < 6, (turn, np.abs(difference).mean())  # a lossy format's


@pytest.mark.parametrize("kind", ORIENTED)
def test_profiles_are_applied_in_and_kept_out(kind, tmp_path):
    plain, profile = Image.fromarray(halves()), wide_profile()
    path = tmp_path / f"in.{kind.lower()}"
    plain.save(path, kind, icc_profile=profile, **ORIENTED[kind])
    with Image.open(path) as before:  # a lossy format has changed it
        wanted = in_srgb(before.convert("RGB"), profile).astype(int)
    picture = load_picture(path)
    got = ((picture.tensor()[0].permute(1, 2, 0) + 1) * 127.5).round().numpy()
    assert np.array_equal(got, wanted)
    edited = picture.tensor()
    edited[..., :8] = -edited[..., :8]  # a changed stripe
    save_image(edited, tmp_path / "out.png", like=picture)
    with Image.open(tmp_path / "out.png") as out, Image.open(path) as before:
        assert out.info["icc_profile"] == profile
        own = np.asarray(before.convert("RGB"))
        assert np.array_equal(np.asarray(out)[:, 8:], own[:, 8:])  # untouched to the bit
        stripe = in_srgb(out.convert("RGB"), profile)[:, :8].astype(int)
    shown = ((edited[0].permute(1, 2, 0) + 1) * 127.5).round().numpy()[:, :8]
    assert np.abs(stripe - shown).mean() < 6  # corners outside of this space are clipped


def test_packed_pictures_are_plain_srgb(tmp_path):
    (tmp_path / "p").mkdir()
    exif = Image.Exif()
    exif[0x0112] = 1
    for name, shift in (("a.png", 0), ("b.tif", 9)):
        image = Image.fromarray(np.roll(halves(), shift, 0))
        image.save(tmp_path / "p" / name, icc_profile=wide_profile(), exif=exif)
    pack([str(tmp_path / "p")], tmp_path / "p.zip", Packing(smallest=1, size=0))
    with zipfile.ZipFile(tmp_path / "p.zip") as archive:
        for name, before in (("p/a.png", "a.png"), ("p/b.png", "b.tif")):
            packed, source = Image.open(archive.open(name)), Image.open(tmp_path / "p" / before)
            assert not {"icc_profile", "exif"} & packed.info.keys()
            assert np.array_equal(np.asarray(packed), in_srgb(source, wide_profile()))


def test_srgb_under_any_name_changes_nothing_and_damage_is_none():
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for profile in (srgb, b"not a profile", wide_profile()[:200]):
        file = written(Image.fromarray(halves()), "PNG", icc_profile=profile)
        assert np.array_equal(np.asarray(decode(file)), halves())


@pytest.mark.parametrize("space, index", [(2, None), (65535, "R03"), (65535, None), (1, "R98")])
def test_adobe_rgb_named_in_exif_alone_is_applied(space, index, tmp_path):
    exif = Image.Exif()
    exif[0x8769] = {0xA001: space} | ({0xA005: {1: index}} if index else {})
    path = tmp_path / "a.png"
    Image.fromarray(halves()).save(path, exif=exif.tobytes())
    adobe = space == 2 or index == "R03"
    plain = Image.fromarray(halves())
    with open(path, "rb") as file:
        wanted = in_srgb(plain, adobe_rgb()) if adobe else halves()
        assert np.array_equal(np.asarray(decode(file)), wanted)
    assert load_picture(path).pixels.profile == (adobe_rgb() if adobe else None)


def test_adobe_rgb_by_its_formula():
    """Its green has no counterpart in sRGB; the others by the formulas of both spaces."""
    values = np.array([[[0, 255, 0], [128, 128, 128], [128, 160, 128]]], np.uint8)
    got = in_srgb(Image.fromarray(values), adobe_rgb())[0].astype(int)
    assert tuple(got[0]) == (0, 255, 0) and np.abs(got[1] - 129).max() <= 1
    linear = (values[0, 2] / 255) ** (563 / 256)
    red = 1.39836 * linear[0] - 0.39836 * linear[1]  # the matrix of both spaces under D65
    assert got[2, 0] == pytest.approx(255 * (1.055 * red ** (1 / 2.4) - 0.055), abs=3)
    assert got[2, 1] == pytest.approx(255 * (1.055 * linear[1] ** (1 / 2.4) - 0.055), abs=1.5)


RAMP = np.tile(np.linspace(0, 255, WIDTH).round().astype(np.uint8), (HEIGHT, 1))
DEEP = {  # what is written: format, array, options
    "16-bit png": ("PNG", RAMP.astype(np.uint16) * 257, {}),
    "16-bit tiff": ("TIFF", RAMP.astype(np.uint16) * 257, {}),
    "16-bit pgm": ("PPM", RAMP.astype(np.uint16) * 257, {}),
    "float to 1": ("TIFF", RAMP.astype(np.float32) / 255, {}),
    "float to 255": ("TIFF", RAMP.astype(np.float32), {}),
    "float to 65535": ("TIFF", RAMP.astype(np.float32) * 257, {}),
    "32-bit": ("TIFF", RAMP.astype(np.int32) * 257, {}),
    "white is zero": ("TIFF", 65535 - RAMP.astype(np.uint16) * 257, {"tiffinfo": {262: 0}}),
}


@pytest.mark.parametrize("name", DEEP)
def test_depth_and_range(name):
    kind, values, options = DEEP[name]
    got = np.asarray(decode(written(Image.fromarray(values), kind, **options)))
    assert np.abs(got[..., 1].astype(int) - RAMP).max() <= 1


YCBCR = pytest.param(
    "YCbCr",
    marks=pytest.mark.skipif(
        int(PIL.__version__.split(".")[0]) < 13,
        reason="before 13 Pillow takes a bare YCbCr TIFF for RGBX and finds too few bytes",
    ),
)


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", YCBCR, "LAB", "I;16", "F"]
)
def test_every_mode_is_read(mode):
    plain = Image.fromarray(np.repeat(RAMP[..., None], 3, 2))
    if mode == "I;16":
        image = Image.fromarray(RAMP.astype(np.uint16) * 257)
    elif mode == "LAB":
        profiles = [ImageCms.createProfile(space) for space in ("sRGB", "LAB")]
        image = ImageCms.profileToProfile(plain, *profiles, outputMode="LAB")
    else:
        image = plain.convert("L" if mode == "F" else "RGB").convert(mode, palette=1)
    got = np.asarray(decode(written(image, "TIFF"))).astype(int)
    assert got.shape == (HEIGHT, WIDTH, 3)
    if mode != "1":
        assert np.abs(got - RAMP[..., None]).max() <= 3


def clear_picture() -> Image.Image:
    image = Image.fromarray(halves()).convert("RGBA")
    alpha = np.full((HEIGHT, WIDTH), 255, np.uint8)
    alpha[:, :10], alpha[:, 10:20] = 0, 100
    image.putalpha(Image.fromarray(alpha))
    return image


@pytest.mark.parametrize("suffix", [".png", ".webp", ".tif", ".tga", ".jp2", ".jpg", ".bmp"])
def test_transparency_comes_out_as_it_went_in(suffix, tmp_path):
    before = clear_picture()
    before.save(tmp_path / "in.png")
    picture = load_picture(tmp_path / "in.png")
    seen = picture.tensor()
    assert torch.all(seen[..., :10] == 1)  # the networks see clear parts as white
    note = save_image(seen, tmp_path / f"out{suffix}", like=picture)
    with Image.open(tmp_path / f"out{suffix}") as after:
        if suffix in (".jpg", ".bmp"):
            assert note.startswith("cannot hold transparency") and after.mode == "RGB"
        else:
            assert note == "" and np.array_equal(np.asarray(after), np.asarray(before))


def test_changed_colours_of_half_clear_parts_look_as_they_were_painted(tmp_path):
    clear_picture().save(tmp_path / "in.png")
    picture = load_picture(tmp_path / "in.png")
    edited = picture.tensor()
    edited[:, 0, :, 10:20] += 0.1
    save_image(edited, tmp_path / "out.png", like=picture)
    again = load_picture(tmp_path / "out.png")
    assert (again.tensor() - edited).abs().max() <= 2 / 127.5
    assert np.array_equal(np.asarray(again.pixels.alpha), np.asarray(picture.pixels.alpha))


@pytest.mark.parametrize("source", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
def test_exif_and_resolution_are_kept_and_the_orientation_is_spent(source, suffix, tmp_path):
    exif = Image.Exif()
    exif[0x010F], exif[0x0112] = "Maker", 6
    exif.get_ifd(0x8769)[0x829A] = 0.005  # exposure time
    path = tmp_path / f"in.{source.lower()}"
    Image.fromarray(halves()).save(path, source, exif=exif.tobytes(), dpi=(300, 300))
    picture = load_picture(path)
    assert tuple(picture.tensor().shape[2:]) == (WIDTH, HEIGHT)
    save_image(picture.tensor(), tmp_path / f"out{suffix}", like=picture)
    with Image.open(tmp_path / f"out{suffix}") as out:
        kept = out.getexif()
        assert kept.get(0x010F) == "Maker" and kept.get(0x0112, 1) == 1
        assert out.size == (HEIGHT, WIDTH)
        assert float(kept.get_ifd(0x8769)[0x829A]) == pytest.approx(0.005)
        if source != "WEBP" and suffix != ".webp":  # which has no resolution of its own
            assert out.info["dpi"] == pytest.approx((300, 300), abs=0.1)


@pytest.mark.parametrize("source", ["JPEG", "TIFF"])
def test_all_that_a_file_says_is_kept_together(source, tmp_path):
    iptc, xmp = b"\x1c\x02\x78\0\x07caption", b"<x:xmpmeta/>"
    exif = Image.Exif()
    exif[0x010F] = "Maker"
    plain, path = Image.fromarray(halves()), tmp_path / "in"
    if source == "TIFF":
        exif[33723], exif[700] = iptc, xmp
        plain.save(path, source, exif=exif)
    else:
        part = b"Photoshop 3.0\0008BIM\x04\x04\0\0\0\0\0\x0c" + iptc
        part = b"\xff\xed" + (len(part) + 2).to_bytes(2, "big") + part
        plain.save(path, source, comment=b"a comment", extra=part, xmp=xmp, exif=exif)
    picture = load_picture(path)
    for suffix in (".jpg", ".tif"):
        assert save_image(picture.tensor(), tmp_path / f"out{suffix}", like=picture) == ""
        again = load_picture(tmp_path / f"out{suffix}").extras
        assert (again.iptc, again.xmp) == (iptc, xmp) and b"Maker" in again.exif
        assert again.comment == (b"a comment" if source == "JPEG" and suffix == ".jpg" else b"")


def test_what_is_too_long_for_a_jpeg_is_said(tmp_path):
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x927C] = b"m" * 70_000  # a camera's own notes
    Image.fromarray(halves()).save(tmp_path / "in.png", exif=exif.tobytes())
    picture = load_picture(tmp_path / "in.png")
    note = save_image(picture.tensor(), tmp_path / "out.jpg", like=picture)
    assert note == "EXIF too long for a JPEG" and load_picture(tmp_path / "out.jpg")


@pytest.mark.parametrize("suffix", [".png", ".webp", ".tif", ".bmp", ".ppm", ".tga", ".jp2"])
def test_lossless_formats_lose_nothing_and_jpeg_little(suffix, tmp_path):
    lines = halves()
    lines[::8], lines[:, ::8] = (255, 0, 0), (20, 30, 220)
    image = torch.from_numpy(lines).permute(2, 0, 1)[None] / 127.5 - 1
    for name, most in ((f"a{suffix}", 0), ("a.jpg", 3)):
        save_image(image, tmp_path / name)
        with Image.open(tmp_path / name) as out:
            got = np.asarray(out.convert("RGB")).astype(int)
        assert np.abs(got - lines).mean() <= most
