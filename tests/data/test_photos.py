import os
import pickle
import shutil
import zipfile
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from rwm_fast.config import DataConfig
from rwm_fast.data.crops import crop, working_copy
from rwm_fast.data.files import find_pictures
from rwm_fast.data.photos import PhotoSet
from rwm_fast.errors import UserError

CONFIG = DataConfig(resize=16, workers=0)


def pack(folder, path, inside=""):
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, inside + file.relative_to(folder).as_posix())
    return path


def open_set(*sources, size=16, **options) -> PhotoSet:
    return PhotoSet(replace(CONFIG, sources=tuple(map(str, sources)), **options), size)


def spoil(folder, count):
    for name in find_pictures(folder)[1].pictures[:count]:
        (folder / name).write_bytes((folder / name).read_bytes()[:40])


# ------------------------------------------------------------------------------------ finding


def test_folders_are_searched_recursively_and_only_for_pictures(good_folder):
    _, (names, passed_over) = find_pictures(good_folder)
    assert passed_over == {
        ".hidden.png": "hidden",
        "__MACOSX/picture 0.png": "of macOS, beside the files themselves",
        "notes.txt": "not a picture",
    }
    assert len(names) == 40 and names == sorted(names)
    assert "sub folder/deeper/picture 2.png" in names


def test_links_back_to_a_folder_above_end(good_folder):
    (good_folder / "sub folder" / "back").symlink_to(good_folder, target_is_directory=True)
    assert len(find_pictures(good_folder)[1].pictures) == 40


def test_zip_equals_folder_and_a_folder_inside_is_a_source(good_folder, tmp_path):
    pack(good_folder, tmp_path / "all.zip")
    pack(good_folder, tmp_path / "inside.zip", "one/two/")
    folder = find_pictures(good_folder)[1]
    place, listing = find_pictures(tmp_path / "all.zip")
    assert listing == folder and place.label == "all"
    place, listing = find_pictures(tmp_path / "inside.zip" / "one" / "two")
    assert listing == folder and place.label == "two"
    names = listing.pictures
    with place.open(names[0]) as packed, open(good_folder / names[0], "rb") as plain:
        assert packed.read() == plain.read()


def test_a_zip_is_opened_anew_in_every_process(good_folder, tmp_path):
    place, (names, _) = find_pictures(pack(good_folder, tmp_path / "a.zip"))
    archive = place._archive
    assert pickle.loads(pickle.dumps(place))._archive is None
    with place.open(names[0]):
        assert place._archive is archive
    place._process = -1  # as after a fork
    with place.open(names[0]):
        assert place._archive is not archive


@pytest.mark.parametrize(
    "source, sentence",
    [
        (
            "nowhere",
            "nowhere does not exist; expected a folder of pictures, a zip",
        ),
        ("empty", "empty holds no pictures; looked for .avif .bmp"),
        (
            "notes.txt",
            "expected a folder of pictures, a zip file or tar shards, got .*notes.txt, which",
        ),
        ("torn.zip", "which is none of them"),
        ("a.zip/nothing", "a.zip/nothing holds no pictures"),
    ],
)
def test_sources_that_cannot_be_used(tmp_path, good_folder, source, sentence):
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("x")
    packed = pack(good_folder, tmp_path / "a.zip")
    (tmp_path / "torn.zip").write_bytes(packed.read_bytes()[:-60])
    with pytest.raises(UserError, match=sentence):
        open_set(tmp_path / source)


# ------------------------------------------------------------------------------------ bad files


@pytest.mark.parametrize("cache_mb", [0.0, 100.0])
def test_unreadable_files_are_left_out_counted_and_listed(good_folder, cache_mb):
    spoil(good_folder, 2)
    pictures = open_set(good_folder, cache_mb=cache_mb)
    seen = np.stack([pictures.sample(k)[0] for k in range(200)])
    troubles = [bad for k in range(80) for bad in pictures.sample(k)[2]]
    pictures.report_unreadable(troubles)
    assert seen.shape == (200, 16, 16, 3) and seen.dtype == np.uint8
    assert len(pictures.unreadable) == 2
    report = pictures.report()
    assert [bad["name"] for bad in report["unreadable"]] == [
        f"{good_folder}/picture 0.png",
        f"{good_folder}/picture 12.png",
    ]
    assert all(bad["reason"] for bad in report["unreadable"])
    assert "2 unreadable" in pictures.describe()


@pytest.mark.parametrize("packed", [False, True])
def test_too_many_unreadable_files_stop(good_folder, tmp_path, packed):
    spoil(good_folder, 3)
    source = pack(good_folder, tmp_path / "a.zip") if packed else good_folder
    with pytest.raises(
        UserError,
        match=r"3 of 40 pictures in .* cannot be read \(at most 5% may "
        r"be\), for example .*picture 0.png: ",
    ):
        open_set(source)
    assert len(open_set(source, max_bad_fraction=0.08).unreadable) == 3


def test_files_that_become_unreadable_are_replaced_and_stop_a_run_when_too_many(good_folder):
    pictures = open_set(good_folder, cache_mb=0.0)
    before = [pictures.sample(k)[0] for k in range(60)]
    lost = pictures.training[:5]
    for photo in lost:
        os.remove(good_folder / photo.name)
    after = [pictures.sample(k) for k in range(60)]
    changed = sum(not np.array_equal(x, y[0]) for x, y in zip(before, after, strict=True))
    assert 0 < changed < 30
    troubles = [bad for _, _, more in after for bad in more]
    assert {bad.name for bad in troubles} == {str(photo) for photo in lost}
    pictures.report_unreadable(troubles[:1])
    with pytest.raises(UserError, match="5 of 40 pictures .* cannot be read"):
        pictures.report_unreadable(troubles)


def test_every_odd_picture_becomes_a_crop(odd_files):
    with pytest.raises(UserError, match="4 of 18 pictures"):
        open_set(odd_files)
    for cache_mb in (0.0, 100.0):
        pictures = open_set(odd_files, max_bad_fraction=0.4, cache_mb=cache_mb)
        crops = [pictures.sample(k)[0] for k in range(36)]
        assert all(c.shape == (16, 16, 3) and c.dtype == np.uint8 for c in crops)
    assert pictures.smaller == 2  # the panorama and the pixel


def test_encrypted_and_damaged_members_are_unreadable(good_folder, tmp_path):
    path = pack(good_folder, tmp_path / "a.zip")
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        members = [m for m in archive.infolist() if m.filename.endswith("picture 3.png")]
        start = members[0].header_offset + 30 + len(members[0].filename)
    data[start + 10 : start + 30] = bytes(20)  # the checksum no longer fits
    path.write_bytes(bytes(data))
    pictures = open_set(path)
    assert [(bad.name, bad.reason[:10]) for bad in pictures.unreadable] == [
        (f"{path}/picture 3.png", "Bad CRC-32")
    ]


# ------------------------------------------------------------------------------------ crops


def ramp(width, height) -> Image.Image:
    """Red counts columns, green counts rows."""
    values = np.zeros((height, width, 3), np.uint8)
    values[..., 0], values[..., 1] = np.arange(width), np.arange(height)[:, None]
    return Image.fromarray(values)


def test_crops_at_the_pictures_own_scale_are_exact():
    image, config = ramp(40, 16), replace(CONFIG, flip=False)
    for across, first in ((0.0, 0), (1.0, 24), (0.5, 12)):
        values = crop(image, 16, config, across, 0.5)
        assert values[0, :, 0].tolist() == list(range(first, first + 16))
        assert values[:, 0, 1].tolist() == list(range(16))
    mirrored = crop(image, 16, replace(config, flip=True), 0.0, 0.5, flip=0.7)
    assert mirrored[0, :, 0].tolist() == list(range(15, -1, -1))
    assert np.array_equal(
        crop(image, 16, config, 0.0, 0.5, flip=0.7), crop(image, 16, config, 0, 0.5)
    )


def test_short_side_is_resized_then_cropped():
    image = ramp(200, 64)
    values = crop(image, 16, replace(CONFIG, resize=32), 0.0, 0.0).astype(int)
    assert abs(values[0, :, 0] - (np.arange(16) * 2 + 0.5)).max() <= 1  # scaled by 1/2, 16 of 32 px
    assert abs(values[:, 0, 1] - (np.arange(16) * 2 + 0.5)).max() <= 1


def test_square_mode_squeezes_the_whole_picture():
    values = crop(ramp(200, 64), 16, replace(CONFIG, resize_mode="square"), 0.3, 0.8).astype(int)
    assert abs(values[8, :, 0] - ((np.arange(16) + 0.5) * 12.5 - 0.5)).max() <= 2
    assert abs(values[:, 8, 1] - ((np.arange(16) + 0.5) * 4 - 0.5)).max() <= 2


def test_zoom_narrows_the_window():
    config = replace(CONFIG, zoom=(1.0, 2.0))
    spans = [np.ptp(crop(ramp(64, 64), 16, config, 0.5, 0.5, zoom)[8, :, 0]) for zoom in (0.0, 1.0)]
    assert abs(int(spans[0]) - 60) <= 2 and abs(int(spans[1]) - 30) <= 2


def test_small_pictures_are_enlarged_and_panoramas_stay_small_in_memory():
    panorama = Image.fromarray(np.full((1, 4000, 3), 77, np.uint8))
    assert working_copy(panorama, CONFIG).size == (4000, 1)
    assert (crop(panorama, 16, CONFIG, 0.3, 0.6) == 77).all()
    assert working_copy(ramp(200, 100), CONFIG).size == (32, 16)
    assert working_copy(ramp(200, 100), replace(CONFIG, zoom=(1, 2))).size == (64, 32)
    assert working_copy(ramp(200, 100), replace(CONFIG, resize_mode="square")).size == (16, 16)


def test_kept_and_reread_pictures_are_the_same(good_folder):
    kept, reread = (open_set(good_folder, cache_mb=mb, zoom=(1, 1.5)) for mb in (100.0, 0.0))
    assert kept.in_memory and not reread.in_memory
    assert all(np.array_equal(kept.sample(k)[0], reread.sample(k)[0]) for k in range(30))


# ------------------------------------------------------------------------------------ the set


def test_some_pictures_are_held_out_by_name(good_folder, tmp_path):
    pictures = open_set(good_folder)
    held, trained = set(pictures.held_out), set(pictures.training)
    assert len(held) == 4 and len(trained) == 36 and not held & trained
    assert len(pictures) == 36
    shutil.copytree(good_folder, tmp_path / "moved")
    moved = open_set(tmp_path / "moved")
    assert [photo.name for photo in moved.held_out] == [photo.name for photo in pictures.held_out]
    names = {pictures.photos.index(photo) for photo in held}
    assert pictures.centre(pictures.held_out[0]).shape == (16, 16, 3) and len(names) == 4
    assert open_set(good_folder, held_out=0.0).held_out == []
    assert len(open_set(good_folder, held_out=1.0).training) == 2


def test_small_sets_train_on_everything(good_folder):
    pictures = open_set(good_folder / "sub folder" / "deeper")
    assert len(pictures) == 13 and pictures.held_out == []


def test_sources_are_domains(good_folder, tmp_path):
    packed = pack(good_folder / "sub folder" / "deeper", tmp_path / "deep.zip")
    pictures = open_set(good_folder, packed)
    assert pictures.domains == ["photos", "deep"]
    assert "40 photos, 13 deep" in pictures.describe()
    domains = {pictures.sample(k)[1] for k in range(200)}
    assert domains == {0, 1}


def test_progress_is_told(good_folder):
    calls = []
    config = replace(CONFIG, sources=(str(good_folder),))
    PhotoSet(config, 16, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(k, 40) for k in range(1, 41)] * 2  # checked, then decoded
