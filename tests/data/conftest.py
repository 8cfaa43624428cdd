import io
import os

import numpy as np
import pytest
from PIL import Image


def photo(seed: int, width: int = 60, height: int = 48) -> Image.Image:
    """A smooth picture: corners of random colours."""
    corners = np.random.default_rng(seed).integers(0, 255, (2, 2, 3), dtype=np.uint8)
    return Image.fromarray(corners).resize((width, height), Image.Resampling.BILINEAR)


@pytest.fixture
def make_photo():
    return photo


@pytest.fixture
def good_folder(tmp_path):
    """40 readable pictures, some in sub-folders, beside files that are not pictures."""
    folder = tmp_path / "photos"
    (folder / "sub folder" / "deeper").mkdir(parents=True)
    for k in range(40):
        below = ("", "sub folder", "sub folder/deeper")[k % 3]
        photo(k).save(folder / below / f"picture {k}.png")
    (folder / "notes.txt").write_text("not a picture")
    (folder / ".hidden.png").write_bytes(b"not a picture")
    (folder / "__MACOSX").mkdir()
    (folder / "__MACOSX" / "picture 0.png").write_bytes(b"not a picture")
    return folder


@pytest.fixture
def odd_files(tmp_path):
    """Every kind of file that readers stumble over; the unreadable ones are called bad-*."""
    folder = tmp_path / "odd"
    folder.mkdir()
    plain = photo(1)
    plain.convert("L").save(folder / "grey.png")
    plain.convert("LA").save(folder / "grey and alpha.png")
    plain.convert("1").save(folder / "one-bit.tif")
    plain.convert("CMYK").save(folder / "cmyk.jpg")
    clear = plain.convert("RGBA")
    alpha = Image.new("L", plain.size)
    alpha.paste(255, (0, plain.height // 2, *plain.size))  # clear above, opaque below
    clear.putalpha(alpha)
    clear.save(folder / "alpha.png")
    clear.save(folder / "alpha.webp", lossless=True)
    plain.quantize(16).save(folder / "palette.gif")
    plain.quantize(16).save(folder / "palette with transparency.png", transparency=3)
    grey16 = np.asarray(plain.convert("L")).astype(np.uint16) * 257
    Image.fromarray(grey16).save(folder / "16-bit.png")
    Image.fromarray(grey16.astype(np.float32) / 65535).save(folder / "float.tif")
    photo(2, 4000, 1).save(folder / "panorama 4000x1.png")
    photo(3, 1, 1).save(folder / "one pixel.png")
    photo(4, 1200, 900).save(folder / "large.jpg", quality=95)
    exif = Image.Exif()
    exif[0x0112] = 6
    plain.save(folder / "turned.jpg", exif=exif, quality=95)
    data = io.BytesIO()
    photo(5, 300, 200).save(data, "JPEG")
    (folder / "bad-truncated.jpg").write_bytes(data.getvalue()[: len(data.getvalue()) // 2])
    (folder / "bad-empty.png").write_bytes(b"")
    (folder / "bad-text.jpg").write_text("this is not a picture")
    (folder / "bad-noise.png").write_bytes(b"\x89PNG\r\n\x1a\n" + os.urandom(64))
    return folder
