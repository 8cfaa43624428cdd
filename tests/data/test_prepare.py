import json
import os
import re
import sys
import zipfile

import numpy as np
import pytest
from PIL import Image

from rwm_fast.config import DataConfig
from rwm_fast.data import packing
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


def near_pair(folder):
    """A textured picture, the same smaller and compressed, and another one."""
    folder.mkdir()
    noise = np.random.default_rng(0).integers(0, 255, (12, 16, 3), dtype=np.uint8)
    first = Image.fromarray(noise).resize((160, 120), Image.Resampling.BICUBIC)
    first.save(folder / "1.png")
    first.resize((120, 90)).save(folder / "2.jpg", quality=60)
    first.point(lambda value: value * 0.9 + 20).save(folder / "3.png")
    first.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(folder / "4.png")
    Image.fromarray(noise[::-1]).resize((160, 120)).save(folder / "5.png")
    return folder


def test_pictures_that_look_the_same_are_listed_and_dropped_on_demand(tmp_path, capsys):
    folder, out = near_pair(tmp_path / "p"), tmp_path / "set.zip"
    main([str(folder), "--out", str(out), "--smallest", "1"])
    assert len(members(out)) == 5
    assert "2 look like another and were kept (--drop-duplicates" in capsys.readouterr().out
    with zipfile.ZipFile(out) as archive:
        near = json.loads(archive.read("report.json"))["near"]
    assert near == {f"{folder}/2.jpg": f"{folder}/1.png", f"{folder}/3.png": f"{folder}/1.png"}
    main([str(folder), "--out", str(out), "--smallest", "1", "--drop-duplicates"])
    assert sorted(members(out)) == ["p/1.png", "p/4.png", "p/5.png"]
    assert "2 look like another and were left out" in capsys.readouterr().out


def test_a_wrong_checksum_is_damage(good_folder, capsys):
    data = bytearray((good_folder / "picture 0.png").read_bytes())
    data[data.index(b"IDAT") + 20] ^= 1
    (good_folder / "picture 0.png").write_bytes(data)
    assert main([str(good_folder), "--smallest", "1"]) == 0
    shown = capsys.readouterr().out
    assert "39 pictures" in shown and "picture 0.png: damaged: wrong checksum" in shown


class Stop(BaseException):
    """In the place of a kill."""


@pytest.mark.parametrize("torn", ["", "journal", "zip", "other"])
def test_an_interrupted_command_goes_on_to_the_same_zip(good_folder, tmp_path, monkeypatch, torn):
    (good_folder / "again.png").write_bytes((good_folder / "picture 0.png").read_bytes())
    (good_folder / "bad.png").write_bytes(b"x")
    whole, out = tmp_path / "whole.zip", tmp_path / "set.zip"
    arguments = [str(good_folder), "--smallest", "1", "--size", "24", "--out"]
    main([*arguments, str(whole)])
    real, calls = packing.UnfinishedZip.add, []

    def add(self, *rest):
        if len(calls) == 20:
            raise Stop
        calls.append(rest)
        real(self, *rest)

    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(packing.UnfinishedZip, "add", add)
        main([*arguments, str(out)])
    journal, unfinished = (tmp_path / f"set.zip.unfinished{end}" for end in (".jsonl", ""))
    assert not out.exists() and len(journal.read_text().splitlines()) == 21
    if torn == "journal":
        journal.write_text(journal.read_text()[:-30])
    elif torn == "zip":
        data = bytearray(unfinished.read_bytes())
        data[len(data) // 2] ^= 255
        unfinished.write_bytes(data)
    elif torn == "other":
        journal.write_text('{"key": "of other files"}\n' + journal.read_text())
    decoded = []
    with monkeypatch.context() as patch:
        prepare = packing._prepare
        patch.setattr(packing, "_prepare", lambda *a: decoded.append(a) or prepare(*a))
        main([*arguments, str(out)])
    assert out.read_bytes() == whole.read_bytes()
    assert sorted(tmp_path.glob("set.zip*")) == [out]
    left = {"": 22, "journal": 23, "other": 42}
    assert len(decoded) == left.get(torn, len(decoded)) and 22 <= len(decoded) <= 42


def test_a_full_disk_keeps_what_is_done(good_folder, tmp_path, monkeypatch, capsys):
    def full(self, *_):
        raise OSError(28, "No space left on device")

    out = tmp_path / "set.zip"
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(packing.UnfinishedZip, "add", full)
        main([str(good_folder), "--smallest", "1", "--out", str(out)])
    assert "set.zip cannot be written: No space left on device" in capsys.readouterr().err
    assert main([str(good_folder), "--smallest", "1", "--out", str(out)]) == 0


@pytest.mark.skipif(sys.platform == "win32", reason="locks of POSIX")
def test_one_process_at_a_time_writes_a_zip(good_folder, tmp_path, capsys):
    out = tmp_path / "set.zip"
    arguments = [str(good_folder), "--smallest", "1", "--out", str(out)]
    with packing.UnfinishedZip(out, "of another call"):
        with pytest.raises(SystemExit):
            main(arguments)
        assert f"is being written by process {os.getpid()} on" in capsys.readouterr().err
    assert main(arguments) == 0 and list(tmp_path.glob("set.zip*")) == [out]


def test_ctrl_c_says_that_the_same_command_goes_on(good_folder, tmp_path, monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(packing.UnfinishedZip, "add", interrupted)
    assert main([str(good_folder), "--smallest", "1", "--out", str(tmp_path / "a.zip")]) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "stopped; the same command goes on"


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["nowhere", "--out", "x.zip"], "nowhere does not exist"),
        (["--out", "x.zip"], "expected at least one folder or zip file"),
        (["photos", "--out", "/dev/full"], "/dev/full cannot be written: it is a device, not a"),
        (["photos", "--max-megapixels", "0"], "expected more than 0"),
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
