"""A file means more than its pixels: which way is up, colours, depth, transparency, EXIF; in every
format that holds them, on the way in and on the way out."""

import io
import struct

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms, features

from rwm_fast.data.decode import decode, load_picture, picture_size, save_image

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
    number = lambda v: struct.pack(">i", round(v * 65536))
    place = lambda v: b"XYZ \0\0\0\0" + b"".join(map(number, v))
    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, int(2.2 * 256)) + b"\0\0"
    tags = [
        (b"rXYZ", place((0.51512, 0.24120, -0.00105))),
        (b"gXYZ", place((0.29198, 0.69225, 0.04189))),
        (b"bXYZ", place((0.15710, 0.06657, 0.78407))),
        (b"wtpt", place((0.9642, 1.0, 0.8249))),
        *((name, curve) for name in (b"rTRC", b"gTRC", b"bTRC")),
        (b"desc", b"desc\0\0\0\0" + struct.pack(">I", 2) + b"W\0" + b"\0" * 79),
        (b"cprt", b"text\0\0\0\0none\0\0\0\0"),
    ]
    start, table, data = 132 + 12 * len(tags), b"", b""
    for name, content in tags:
        content += b"\0" * (-len(content) % 4)
        table += name + struct.pack(">II", start + len(data), len(content))
        data += content
    head = struct.pack(">I4sI4s4s4s", start + len(data), b"none", 0x2400000, *_KINDS)
    head += b"\0" * 12 + b"acsp" + b"\0" * 28 + place((0.9642, 1.0, 0.8249))[8:] + b"\0" * 48
    return head[:128] + struct.pack(">I", len(tags)) + table + data


_KINDS = (b"mntr", b"RGB ", b"XYZ ")


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


def test_srgb_under_any_name_changes_nothing_and_damage_is_none():
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for profile in (srgb, b"not a profile", wide_profile()[:200]):
        file = written(Image.fromarray(halves()), "PNG", icc_profile=profile)
        assert np.array_equal(np.asarray(decode(file)), halves())


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


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "I;16", "F"]
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
