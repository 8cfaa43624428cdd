"""Colours that a file names without a profile: by code points, by gamma and corners; and depth."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms, features

from rwm_fast.data.decode import decode, load_picture, picture_size, save_image
from rwm_fast.data.formats import BadImageError
from rwm_fast.data.profiles import matrix_profile

VALUES = np.array([[[200, 120, 60], [90, 90, 90], [20, 140, 70], [0, 0, 0]]] * 4, np.uint8)
P3 = b"\x0c\x0d\0\x01"  # Display P3 with sRGB's curve
FROM_P3 = np.array([[1.2249, -0.2249, 0], [-0.0420, 1.0420, 0], [-0.0197, -0.0786, 1.0983]])
SRGB_CORNERS = [31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000]
P3_CORNERS = [31270, 32900, 68000, 32000, 26500, 69000, 15000, 6000]


def png(*chunks: tuple[bytes, bytes], values: np.ndarray = VALUES, **options) -> io.BytesIO:
    """A PNG with more chunks behind its header."""
    file = io.BytesIO()
    Image.fromarray(values).save(file, "PNG", **options)
    more = b""
    for kind, data in chunks:
        more += struct.pack(">I", len(data)) + kind + data
        more += struct.pack(">I", zlib.crc32(kind + data))
    return io.BytesIO(file.getvalue()[:33] + more + file.getvalue()[33:])


def gamma(value: float) -> tuple[bytes, bytes]:
    return b"gAMA", struct.pack(">I", round(value * 100_000))


def corners(values: list[int]) -> tuple[bytes, bytes]:
    return b"cHRM", struct.pack(">8I", *values)


def wide() -> bytes:
    xyz = (0.51512, 0.24120, -0.00105), (0.29198, 0.69225, 0.04189), (0.15710, 0.06657, 0.78407)
    return matrix_profile("wide", xyz, 2.2)


def linear(values: np.ndarray) -> np.ndarray:
    v = values / 255
    return np.where(v <= 0.04045, v / 12.92, ((v + 0.055) / 1.055) ** 2.4)


def shown(light: np.ndarray) -> np.ndarray:
    v = light.clip(0, 1)
    return 255 * np.where(v <= 0.0031308, 12.92 * v, 1.055 * v ** (1 / 2.4) - 0.055)


def expect(file: io.BytesIO, wanted: np.ndarray, within: float = 1.5) -> None:
    assert np.abs(np.asarray(decode(file)).astype(float) - wanted).max() <= within


def test_code_points_are_applied():
    expect(png((b"cICP", P3)), shown(linear(VALUES) @ FROM_P3.T))
    expect(png((b"cICP", b"\x01\x08\0\x01")), shown(VALUES / 255))  # linear light
    for same in (b"\x01\x0d\0\x01", b"\x01\x01\0\x01", b"\x02\x02\0\x01", b"\xff\xff\xff\xff"):
        expect(png((b"cICP", same)), VALUES, 0)


def test_hdr_is_refused_or_read_by_what_else_the_file_says():
    for transfer, name in ((16, "HDR (PQ)"), (18, "HDR (HLG)")):
        points = (b"cICP", bytes([9, transfer, 0, 1]))
        with pytest.raises(BadImageError, match=f"its colours are {name[:3]}.*export it as sRGB"):
            decode(png(points))
        expect(png(points, icc_profile=wide()), np.asarray(decode(png(icc_profile=wide()))), 0)
    with pytest.raises(BadImageError, match="of the range of video"):
        decode(png((b"cICP", b"\x01\x0d\0\0")))


def test_what_names_the_colours_best_wins():
    plain = np.asarray(decode(png(icc_profile=wide())))
    assert np.abs(plain.astype(int) - VALUES).max() > 10
    expect(png((b"cICP", b"\x01\x0d\0\x01"), icc_profile=wide()), VALUES, 0)
    expect(png(gamma(1), icc_profile=wide()), plain, 0)
    expect(png((b"sRGB", b"\0"), gamma(1)), VALUES, 0)


@pytest.mark.parametrize("mode", ["RGB", "L", "P"])
def test_gamma_and_corners(mode):
    values = VALUES if mode == "RGB" else np.repeat(VALUES[..., 1:2], 3, 2)
    for chunks, wanted in (
        ([gamma(1.0)], shown(values / 255)),
        ([gamma(1 / 1.8)], shown((values / 255) ** 1.8)),
        ([gamma(1 / 2.2)], values),
        ([gamma(0.47), corners(SRGB_CORNERS)], values),
        ([gamma(1 / 2.2), corners(P3_CORNERS)], shown(linear(values) @ FROM_P3.T)),
        ([gamma(0)], values),
        ([gamma(1.0), corners([0] * 8)], values),  # damage says nothing
    ):
        image = Image.fromarray(values)
        image = image.quantize(4) if mode == "P" else image.convert(mode)
        if mode == "P":
            assert np.array_equal(np.asarray(image.convert("RGB")), values)
        file = io.BytesIO()
        image.save(file, "PNG")
        data = png(*chunks).getvalue()
        more = data[33 : data.index(b"IDAT") - 4]
        expect(io.BytesIO(file.getvalue()[:33] + more + file.getvalue()[33:]), wanted, 3)


def test_deep_grey_has_its_gamma_too():
    deep = np.tile(np.linspace(0, 65535, 48).astype(np.uint16), (8, 1))
    wanted = shown(np.repeat(deep[..., None], 3, 2) / 65535)
    expect(png(gamma(1.0), values=deep), wanted, 7)  # of 8 bits of linear light, near black
    expect(png(values=deep), deep[..., None] / 257, 1)


def test_a_grey_picture_in_a_colour_space():
    file = io.BytesIO()
    grey = Image.fromarray(np.tile(np.arange(0, 255, 5, dtype=np.uint8), (8, 1)))
    grey.save(file, "PNG", icc_profile=wide())
    source = ImageCms.ImageCmsProfile(io.BytesIO(wide()))
    wanted = ImageCms.profileToProfile(grey.convert("RGB"), source, ImageCms.createProfile("sRGB"))
    expect(file, np.asarray(wanted), 0)


@pytest.mark.skipif(not features.check("avif"), reason="Pillow without AVIF")
def test_code_points_of_avif():
    file = io.BytesIO()
    Image.new("RGB", (32, 32), (200, 120, 60)).save(file, "AVIF", quality=100)
    data = file.getvalue()
    place = data.index(b"colrnclx") + 8
    patched = lambda p, t: io.BytesIO(data[:place] + struct.pack(">HH", p, t) + data[place + 4 :])
    own = np.asarray(decode(io.BytesIO(data))).astype(float)
    expect(patched(1, 13), own, 0)
    expect(patched(12, 13), shown(linear(own) @ FROM_P3.T))
    with pytest.raises(BadImageError, match="HDR"):
        decode(patched(9, 16))


@pytest.mark.parametrize("turn", [0, 9, 255])
def test_an_orientation_that_is_none_turns_nothing(turn):
    exif = Image.Exif()
    exif[0x0112] = turn
    file = png(values=np.zeros((8, 12, 3), np.uint8), exif=exif.tobytes())
    assert picture_size(file) == (12, 8)
    file.seek(0)
    assert decode(file).size == (12, 8)


def test_lost_depth_is_said(tmp_path):
    deep = np.zeros((8, 8), np.uint16)
    Image.fromarray(deep).save(tmp_path / "16.png")
    colour = bytearray(png(values=np.zeros((8, 8, 3), np.uint8)).getvalue())
    rows = zlib.compress(b"".join(b"\0" + b"\x12\x34" * 24 for _ in range(8)))
    head = struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0)
    chunk = lambda kind, data: (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    )
    colour[8:] = chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    (tmp_path / "48.png").write_bytes(colour)
    Image.fromarray(deep).save(tmp_path / "16.tif")
    Image.fromarray(deep.astype(np.float32)).save(tmp_path / "f.tif")
    Image.fromarray(VALUES).save(tmp_path / "8.tif")
    for name, bits in (("16.png", 16), ("48.png", 16), ("16.tif", 16), ("f.tif", 32), ("8.tif", 8)):
        picture = load_picture(tmp_path / name)
        note = save_image(picture.tensor(), tmp_path / "out.png", like=picture)
        assert note == (f"{bits} bits a channel became 8" if bits > 8 else ""), name
