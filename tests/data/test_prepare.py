import json
import re
import zipfile

import numpy as np
import pytest
from PIL import Image

from rwm_fast.config import DataConfig
from rwm_fast.data.photos import PhotoSet
from rwm_fast.prepare import main


def members(path) -> dict[str, Image.Image]:
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        return {
            name: Image.open(archive.open(name))
            for name in archive.namelist()
            if name != "report.json"
        }


def test_packs_what_can_be_read_and_reports_the_rest(odd_files, tmp_path, capsys):
    out = tmp_path / "set.zip"
    assert main([str(odd_files), "--out", str(out), "--size", "32", "--smallest", "16"]) == 0
    images = members(out)
    assert len(images) == 8
    assert all(i.mode == "RGB" and min(i.size) == 32 for i in images.values())
    assert images["odd/large.png"].size == (43, 32)
    assert images["odd/turned.png"].size == (32, 40)  # upright
    with zipfile.ZipFile(out) as archive:
        report = json.loads(archive.read("report.json"))
    assert report["packed"] == {"odd": 8}
    assert sorted(name.split("/")[-1] for name in report["unreadable"]) == [
        "bad-empty.png",
        "bad-noise.png",
        "bad-text.jpg",
        "bad-truncated.jpg",
    ]
    assert len(report["copies"]) == 4  # the grey pictures are one, and so are the clear ones
    assert set(report["too_small"].values()) == {"4000 x 1", "1 x 1"}
    shown = capsys.readouterr().out
    assert "8 pictures (8 odd)" in shown and "4 could not be read" in shown
    assert PhotoSet(DataConfig(sources=(str(out),), resize=32), 32).unreadable == []


def test_copies_are_packed_once(good_folder, tmp_path, capsys):
    (good_folder / "again.png").write_bytes((good_folder / "picture 0.png").read_bytes())
    out = tmp_path / "set.zip"
    main([str(good_folder), "--out", str(out), "--smallest", "1"])
    assert len(members(out)) == 40
    assert "1 are copies" in capsys.readouterr().out


def test_square_crops_jpeg_and_several_sources(good_folder, tmp_path):
    out = tmp_path / "set.zip"
    main(
        [
            str(good_folder),
            str(good_folder / "sub folder"),
            "--out",
            str(out),
            "--size",
            "24",
            "--crop",
            "square",
            "--format",
            "jpg",
            "--smallest",
            "1",
            "--report",
            str(tmp_path / "report.json"),
        ]
    )
    images = members(out)
    assert all(i.size == (24, 24) and i.format == "JPEG" for i in images.values())
    assert {name.split("/")[0] for name in images} == {"photos"}  # the second source holds copies
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["packed"] == {"photos": 40, "sub folder": 0}


def test_names_never_collide(make_photo, tmp_path):
    for k, name in enumerate(("a.png", "a.bmp", "a.ppm")):
        make_photo(k).save(tmp_path / name)
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "same").mkdir()
    make_photo(8).save(tmp_path / "x" / "same" / "a.png")
    (tmp_path / "same").mkdir()
    make_photo(9).save(tmp_path / "same" / "a.png")
    out = tmp_path / "set.zip"
    main(
        [str(tmp_path / "same"), str(tmp_path / "x" / "same"), "--out", str(out), "--smallest", "1"]
    )
    assert sorted(members(out)) == ["same-2/a.png", "same/a.png"]
    main([str(tmp_path), "--out", str(out), "--smallest", "1"])
    assert len(members(out)) == 5


def test_the_same_pictures_make_the_same_zip(good_folder, tmp_path):
    for name in ("a.zip", "b.zip"):
        main([str(good_folder), "--out", str(tmp_path / name), "--smallest", "1"])
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()


def test_pixels_are_kept_when_nothing_is_shrunk(good_folder, tmp_path):
    out = tmp_path / "set.zip"
    main([str(good_folder), "--out", str(out), "--size", "0", "--smallest", "1"])
    packed = members(out)["photos/picture 0.png"]
    assert np.array_equal(np.asarray(packed), np.asarray(Image.open(good_folder / "picture 0.png")))


def test_without_out_nothing_is_written(good_folder, tmp_path, capsys):
    before = sorted(tmp_path.rglob("*"))
    assert main([str(good_folder), "--smallest", "1"]) == 0
    assert sorted(tmp_path.rglob("*")) == before
    assert "checked only" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["nowhere", "--out", "x.zip"], "nowhere does not exist"),
        (["--out", "x.zip"], "expected at least one folder or zip file"),
        (["photos", "--out", "no/x.zip"], "no/x.zip cannot be written: .* folder that exists"),
        (
            ["photos", "--smallest", "900"],
            "none of the 40 pictures can be used; photos/.*: 60 x 48",
        ),
        (["photos", "--size", "-1"], "expected at least 0 pixels"),
        (["photos", "--size", "x"], "Error parsing --size"),
        (["photos", "--format", "tga"], "invalid choice 'tga'.*png.*jpg"),
        (["photos", "--unknown", "1"], "--unknown"),
        (["photos", "--smallest", "1", "--report", "no/r.json"], "no/r.json cannot be written"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_status_2(
    good_folder, monkeypatch, capsys, arguments, sentence
):
    monkeypatch.chdir(good_folder.parent)
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    last = error.strip().splitlines()[-1]
    assert last.startswith("error: ") and "Traceback" not in error
    assert re.search(sentence, last)
    assert not list(good_folder.parent.glob("x.zip*"))
