import io

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from rwm_fast.data.decode import (
    BadImageError,
    decode,
    load_image,
    load_mask,
    picture_size,
    save_image,
)
from rwm_fast.errors import UserError


def read(path, **options) -> np.ndarray:
    with open(path, "rb") as file:
        return np.asarray(decode(file, **options)).astype(int)


def test_every_odd_file_is_read_or_refused_with_a_reason(odd_files):
    reasons = {}
    for path in sorted(odd_files.iterdir()):
        with open(path, "rb") as file:
            try:
                image = decode(file)
                assert image.mode == "RGB"
                file.seek(0)
                assert picture_size(file) == image.size
            except BadImageError as error:
                reasons[path.name] = str(error)
    assert sorted(reasons) == [
        "bad-empty.png",
        "bad-noise.png",
        "bad-text.jpg",
        "bad-truncated.jpg",
    ]
    assert reasons["bad-empty.png"] == "the file is empty"
    assert reasons["bad-text.jpg"] == "no image format is recognised"
    assert "truncated" in reasons["bad-truncated.jpg"]


def test_colours_survive_every_mode(odd_files, make_photo):
    plain = np.asarray(make_photo(1)).astype(int)
    palette = np.asarray(make_photo(1).quantize(16).convert("RGB")).astype(int)
    grey = np.asarray(make_photo(1).convert("L")).astype(int)[..., None].repeat(3, 2)
    for name, expected, tolerance in (
        ("grey.png", grey, 0),
        ("grey and alpha.png", grey, 0),
        ("16-bit.png", grey, 0),
        ("float.tif", grey, 0),
        ("palette.gif", palette, 0),
        ("cmyk.jpg", plain, 4),
    ):
        assert abs(read(odd_files / name) - expected).mean() <= tolerance, name
    assert set(np.unique(read(odd_files / "one-bit.tif"))) == {0, 255}
    for name in ("alpha.png", "alpha.webp"):
        shown = read(odd_files / name)
        assert (shown[:24] == 255).all() and np.array_equal(shown[24:], plain[24:])


def test_pictures_are_turned_upright(odd_files, make_photo):
    upright = np.asarray(make_photo(1).transpose(Image.Transpose.ROTATE_270)).astype(int)
    assert abs(read(odd_files / "turned.jpg") - upright).mean() < 3


def test_all_eight_orientations(make_photo, tmp_path):
    plain = make_photo(1)
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        path = tmp_path / f"{orientation}.png"
        plain.save(path, exif=exif)
        with Image.open(path) as image:
            expected = np.asarray(ImageOps.exif_transpose(image))
        assert np.array_equal(read(path), expected)


def test_large_jpegs_are_decoded_small_but_never_too_small(odd_files):
    assert read(odd_files / "large.jpg").shape == (900, 1200, 3)
    assert read(odd_files / "large.jpg", short_side=200).shape == (450, 600, 3)
    assert read(odd_files / "large.jpg", short_side=500).shape == (900, 1200, 3)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow warns of damage it works around
def test_damage_anywhere_is_told_or_survived(odd_files):
    """Flipped bytes may spoil a picture; they never raise anything but BadImageError."""
    random = np.random.default_rng(0)
    for path in sorted(odd_files.glob("*.*")):
        data = path.read_bytes()
        for _ in range(12 if 0 < len(data) < 50_000 else 0):
            broken = np.frombuffer(data, np.uint8).copy()
            places = random.integers(0, len(broken), 4)
            broken[places] = random.integers(0, 256, 4)
            try:
                decode(io.BytesIO(broken[: random.integers(1, len(broken) + 1)].tobytes()))
            except BadImageError as error:
                assert str(error)


def test_load_and_save_round_trip(tmp_path, make_photo):
    make_photo(3).save(tmp_path / "a.png")
    image = load_image(tmp_path / "a.png")
    assert image.shape == (1, 3, 48, 60) and image.dtype == torch.float32
    assert image.min() >= -1 and image.max() <= 1
    save_image(image, tmp_path / "b.png")
    assert torch.equal(load_image(tmp_path / "b.png"), image)
    save_image(image[0] * 9, tmp_path / "c.png")  # beyond the range: clamped
    assert load_image(tmp_path / "c.png").abs().max() == 1


def test_masks_painted_on_white_and_on_nothing_are_the_same(tmp_path):
    strokes = np.zeros((48, 60), np.uint8)
    strokes[10:20, 5:50] = 255
    Image.fromarray(strokes).save(tmp_path / "grey.png")
    layer = np.full((48, 60, 4), 255, np.uint8)  # a white brush on a transparent layer
    layer[..., 3] = strokes
    Image.fromarray(layer).save(tmp_path / "layer.png")
    for name in ("grey.png", "layer.png"):
        mask = load_mask(tmp_path / name, (48, 60))
        assert mask.shape == (1, 1, 48, 60)
        assert torch.equal(mask[0, 0], torch.from_numpy(strokes) / 255.0)


def test_refusals_name_the_file(tmp_path, odd_files):
    with pytest.raises(UserError, match=r"nowhere.png cannot be opened: No such file"):
        load_image(tmp_path / "nowhere.png")
    with pytest.raises(UserError, match="bad-text.jpg cannot be read as a picture: no image"):
        load_image(odd_files / "bad-text.jpg")
    with pytest.raises(UserError, match="picture, 10 x 20, or its aspect, got 60 x 48"):
        load_mask(odd_files / "grey.png", (20, 10))
    with pytest.raises(UserError, match="cannot be written"):
        save_image(torch.zeros(3, 4, 4), tmp_path / "no folder" / "a.png")
    with pytest.raises(UserError, match="cannot be written"):
        save_image(torch.zeros(3, 4, 4), tmp_path / "a.unknown")
