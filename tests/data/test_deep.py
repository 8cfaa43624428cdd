"""Pictures of 16 bits a channel: every bit is read, and written again."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from rwm_fast.data.decode import load_picture
from rwm_fast.data.deep import floats
from rwm_fast.data.formats import check_png
from rwm_fast.data.saving import Extras, keeps_depth, write_picture

DRAW = np.random.default_rng(0)
RGB, RGBA = (DRAW.integers(0, 65536, (9, 14, c), np.uint16) for c in (3, 4))
RGBA[4:6, :, 3] = [[0], [50]]  # colours under full and near transparency are kept too
CHANNELS = {3: 2, 4: 6}  # PNG's numbers for them


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(values, *more):
    """A PNG file as the specification has it, its rows not filtered."""
    h, w, c = values.shape
    head = struct.pack(">IIBBBBB", w, h, 16, CHANNELS[c], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    pixels = chunk(b"IDAT", zlib.compress(rows))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + b"".join(more) + pixels + chunk(b"IEND", b"")
    )


def tiff(values, order, turn=1, packed=False):
    """A TIFF file of one strip."""
    h, w, c = values.shape
    data = values.astype(f"{order}u2").tobytes()
    data = zlib.compress(data) if packed else data
    data += bytes(len(data) % 2)  # what follows is at even places
    tags = [
        (256, w),
        (257, h),
        (259, 8 if packed else 1),
        (262, 2),
        (274, turn),
        (277, c),
        (278, h),
    ]
    tags += [(273, 8), (279, len(data))] + ([(338, 2)] if c == 4 else [])
    bits_at, count = 8 + len(data), len(tags) + 1
    entries = [(tag, 4, 1, value) for tag, value in tags] + [(258, 3, c, bits_at)]
    mark = b"II*\0" if order == "<" else b"MM\0*"
    file = mark + struct.pack(f"{order}I", bits_at + 2 * c) + data
    file += struct.pack(f"{order}{c}H", *[16] * c) + struct.pack(f"{order}H", count)
    return file + b"".join(struct.pack(f"{order}HHII", *e) for e in sorted(entries)) + bytes(4)


def read(path, data):
    path.write_bytes(data)
    return load_picture(path).pixels


@pytest.mark.parametrize("values", [RGB, RGBA], ids=["RGB", "RGBA"])
@pytest.mark.parametrize("kind", ["png", "<", ">", "< packed", "> packed"])
def test_every_bit_is_read(values, kind, tmp_path):
    data = png(values) if kind == "png" else tiff(values, kind[0], packed="packed" in kind)
    found = read(tmp_path / "a", data)
    np.testing.assert_array_equal(found.deep, values)
    np.testing.assert_array_equal(np.asarray(found.own), values[..., :3] >> 8)


def test_grey(tmp_path):
    Image.fromarray(RGB[..., 0]).save(tmp_path / "grey.png")
    deep = load_picture(tmp_path / "grey.png").pixels.deep
    np.testing.assert_array_equal(deep, np.repeat(RGB[..., :1], 3, 2))


def test_turned_pictures(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter to the right
    turned = np.rot90(RGB, -1)
    words = exif.tobytes().removeprefix(b"Exif\0\0")
    for name, data in (("a.png", png(RGB, chunk(b"eXIf", words))), ("a.tif", tiff(RGB, "<", 6))):
        found = read(tmp_path / name, data)
        np.testing.assert_array_equal(found.deep, turned, name)
        assert found.own.size == (9, 14)


def test_not_where_numbers_are_not_srgb(tmp_path):
    gamma = chunk(b"gAMA", struct.pack(">I", 100000))  # linear
    assert read(tmp_path / "a.png", png(RGB, gamma)).deep is None
    Image.fromarray((RGB >> 8).astype(np.uint8)).save(tmp_path / "8.png")
    assert load_picture(tmp_path / "8.png").pixels.deep is None


@pytest.mark.parametrize("values", [RGB, RGBA], ids=["RGB", "RGBA"])
def test_what_is_not_changed_is_written_as_it_was(values, tmp_path):
    (tmp_path / "a.png").write_bytes(png(values))
    picture, out = load_picture(tmp_path / "a.png"), tmp_path / "out.png"
    assert keeps_depth(out, picture.pixels) and not keeps_depth("a.jpg", picture.pixels)
    edited = values.copy()
    edited[:4, :, :3] = 65535 - edited[:4, :, :3]
    extras = Extras(dpi=(300, 300), texts=(("key", "text"),), bits=16)
    assert write_picture(floats(edited), out, picture.pixels, extras) == ""
    with open(out, "rb") as file:
        check_png(file)
    again = load_picture(out)
    np.testing.assert_array_equal(again.pixels.deep[4:], values[4:])
    assert again.extras.bits == 16 and again.extras.dpi == pytest.approx((300, 300), abs=0.01)
    with Image.open(out) as file:
        assert file.text == {"key": "text"}
    opaque = values[:4, :, 3:].min(-1, initial=65535) > 6553  # elsewhere white hides the colour
    off = again.pixels.deep[:4].astype(int) - edited[:4]
    assert np.abs(off[opaque]).max() <= 1
