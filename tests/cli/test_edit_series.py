"""`edit` of many: strips, grids, animations; folders of pictures in folders of styles."""

import contextlib
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from commands import run
from PIL import Image

from rwm_fast.app.animation import write_animation
from rwm_fast.app.folders import LOG, File, stems, tasks_of
from rwm_fast.data.files import Folder


@pytest.fixture
def base(model, scene, tmp_path):
    """The start of a command, with one content and one style picture."""
    return ("--checkpoint", model, "--content", scene("a.png", 1), "--style", scene("b.png", 2))


def tiles(path, columns, rows=1):
    """A strip's or grid's pictures, without what lies between."""
    with Image.open(path) as image:
        whole = np.asarray(image.convert("RGB")).astype(int)
    height, width = (whole.shape[0] + 4) // rows, (whole.shape[1] + 4) // columns
    return [
        whole[y * height : (y + 1) * height - 4, x * width : (x + 1) * width - 4]
        for y in range(rows)
        for x in range(columns)
    ]


def single(tmp_path, *arguments):
    out = tmp_path / "single.png"
    assert run("edit", *arguments, "--out", out) == 0
    return tiles(out, 1)[0]


def test_a_strip_goes_from_the_own_style_to_the_other(base, tmp_path):
    out = tmp_path / "o.png"
    assert run("edit", *base, "--strip", 3, "--out", out) == 0
    steps = tiles(out, 3)
    assert steps[0].shape == (64, 64, 3)
    for step, strength in zip(steps, (0, 0.5, 1), strict=True):
        assert np.abs(step - single(tmp_path, *base, "--strength", strength)).max() <= 1
    with Image.open(out) as image:
        assert "--strip 3" in json.loads(image.text["rwm_fast"])["command"]


def test_a_strip_of_two_styles_goes_from_one_to_the_other(base, scene, tmp_path):
    two, out = (*base, "--style", scene("c.png", 3)), tmp_path / "o.png"
    assert run("edit", *two, "--strip", 2, "--out", out) == 0
    first, second = tiles(out, 2)
    assert np.abs(first - single(tmp_path, *base)).max() <= 1
    assert np.abs(second - single(tmp_path, *base[:4], "--style", tmp_path / "c.png")).max() <= 1


def test_a_grid_has_the_own_style_and_both_others_at_its_corners(base, scene, tmp_path):
    two, out = (*base, "--style", scene("c.png", 3)), tmp_path / "o.png"
    assert run("edit", *two, "--grid", 2, "--out", out) == 0
    own, first, second, both = tiles(out, 2, 2)
    assert np.abs(own - single(tmp_path, *base, "--strength", 0)).max() <= 1
    assert np.abs(first - single(tmp_path, *base)).max() <= 1
    assert np.abs(second - single(tmp_path, *base[:4], "--style", tmp_path / "c.png")).max() <= 1
    assert all(np.abs(both - one).max() > 1 for one in (own, first, second))


def test_regions_of_their_own_change_together(base, scene, picture, tmp_path):
    left, right = Image.new("L", (64, 64)), Image.new("L", (64, 64))
    left.paste(255, (0, 0, 32, 64))
    right.paste(255, (32, 0, 64, 64))
    left.save(tmp_path / "l.png")
    right.save(tmp_path / "r.png")
    two = (*base, "--style", scene("c.png", 3), "--mask", tmp_path / "l.png")
    two += ("--mask", tmp_path / "r.png")
    assert run("edit", *two, "--strip", 2, "--out", tmp_path / "o.png") == 0
    first, last = tiles(tmp_path / "o.png", 2)
    assert np.abs(first - single(tmp_path, *base, "--strength", 0)).max() <= 1
    assert np.abs(last - single(tmp_path, *two)).max() <= 1


def test_a_gif_goes_there_and_back(base, tmp_path):
    out = tmp_path / "o.gif"
    assert run("edit", *base, "--frames", 3, "--out", out) == 0
    with Image.open(out) as image:
        assert image.size == (64, 64) and image.n_frames == 4 and image.info["loop"] == 0
        frames = []
        for k in range(4):
            image.seek(k)
            frames.append(np.asarray(image.convert("RGB")).astype(int))
    assert np.array_equal(frames[1], frames[3]) and not np.array_equal(frames[0], frames[2])
    plain = single(tmp_path, *base)
    assert np.abs(frames[2] - plain).mean() < 8  # 256 colours


def test_what_stands_still_in_a_gif_does_not_flicker(tmp_path):
    """Colours of many kinds, of which a corner changes: the others are the same in every frame."""
    draw, out = np.random.default_rng(0), tmp_path / "o.gif"
    still = draw.integers(0, 256, (48, 64, 3), dtype=np.uint8)
    moving = [still.copy() for _ in range(5)]
    for frame in moving[1:]:
        frame[:16, :16] = draw.integers(0, 256, (16, 16, 3))
    write_animation(moving, out)
    with Image.open(out) as image:
        frames = []
        for k in range(image.n_frames):
            image.seek(k)
            frames.append(np.asarray(image.convert("RGB")))
    assert len(frames) == 5
    for frame in frames[1:]:
        assert np.array_equal(frame[16:], frames[0][16:])
        assert np.array_equal(frame[:, 16:], frames[0][:, 16:])
        assert not np.array_equal(frame[:16, :16], frames[0][:16, :16])
    one = tmp_path / "one.gif"
    write_animation(moving[:1], one)
    assert out.stat().st_size < 2 * one.stat().st_size  # what stands still is stored once


def test_a_large_picture_is_reduced_for_a_gif(model, scene, picture, tmp_path):
    picture("large.png", (660, 330))
    given = ("--checkpoint", model, "--content", tmp_path / "large.png")
    given += ("--style", scene("b.png", 2), "--frames", 2)
    assert run("edit", *given, "--out", tmp_path / "o.gif") == 0
    with Image.open(tmp_path / "o.gif") as image:
        assert image.size == (640, 320)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # its pipes
def test_an_mp4_needs_a_writer_and_even_sides(base, refused, tmp_path, monkeypatch):
    out = tmp_path / "o.mp4"
    find = importlib.util.find_spec
    with monkeypatch.context() as patch:
        patch.setattr(
            importlib.util, "find_spec", lambda n: find(n) if "imageio" not in n else None
        )
        assert "pip install imageio-ffmpeg" in refused("edit", *base, "--out", out)
    video = pytest.importorskip("imageio_ffmpeg")
    Image.open(tmp_path / "a.png").resize((65, 63)).save(tmp_path / "a.png")
    assert run("edit", *base, "--frames", 3, "--out", out) == 0
    frames, seconds = video.count_frames_and_secs(str(out))
    assert frames == 4 and seconds == pytest.approx(4 / 12, abs=0.01)
    with contextlib.closing(video.read_frames(str(out))) as reader:
        assert next(reader)["size"] == (64, 62)


@pytest.mark.parametrize(
    ("extra", "sentence"),
    [
        ("--strip 1", "--strip: expected 2 to 64, got 1"),
        ("--grid 99", "--grid: expected 2 to 12, got 99"),
        ("--grid 3 --strip 3", "--grid: expected a strip or a grid, got both"),
        ("--grid 3", "--grid: expected two styles in one region, got 1 styles"),
        ("--frames 3", "--frames: expected a name that ends in .gif or .mp4, got o.png"),
        ("--strip 3 --out o.gif", "--strip: expected the name of a picture, got o.gif"),
        ("--strip 3 --style b.png --style b.png", "got 3 styles and 0 masks"),
        ("--style b.png", "got 2 styles and 0 masks"),
        ("--style-mask b.png --style b.png", "--style-mask: expected one for each of 2 styles"),
        ("--extension nope --content .", "expected a name that ends in one of .avif"),
        ("--strip 3 --content .", "expected one picture as --content"),
    ],
)
def test_series_that_cannot_be(refused, base, tmp_path, monkeypatch, extra, sentence):
    monkeypatch.chdir(tmp_path)
    out = () if "--out" in extra else ("--out", "o.png")
    assert sentence in refused("edit", *base, *out, *extra.split())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.png", "b.png"]


# ---- folders


def test_names_do_not_collide_and_lead_nowhere_else():
    assert stems(["a.jpg", "a.PNG", "b.jpg", "sub/a.jpg", "B.png"]) == [
        "a.jpg",
        "a.PNG",
        "b.jpg",
        "sub/a",
        "B.png",
    ]
    assert stems(["../../x.png", "/etc/y.png", "c:z|.png"]) == ["x", "etc/y", "c_z_"]
    assert all(len(name) < 130 for name in stems(["n" * 300 + ".jpg", "n" * 301 + ".jpg"]))
    place = Folder(Path("."))
    files = lambda *names: [File(place, name) for name in names]
    tasks = tasks_of(files("a--b.png", "a.png"), files("c.png", "b--c.png"), "jpg")
    assert len({task.target for task in tasks}) == 4
    assert [task.target for task in tasks_of(files("s/a.png"), files("t/b.png"), "jpg")] == [
        "s/a--t-b.jpg"
    ]


@pytest.fixture
def folders(scene, tmp_path):
    """Two pictures and a damaged one, two styles and a damaged one."""
    for folder, names in (("in", ("a.jpg", "sub/a.png")), ("looks", ("x.png", "y.png"))):
        for k, name in enumerate(names):
            (tmp_path / folder / name).parent.mkdir(parents=True, exist_ok=True)
            scene(f"{folder}/{name}", k)
        (tmp_path / folder / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (tmp_path / "in" / "notes.txt").write_text("no picture")
    return tmp_path


def test_every_picture_in_every_style_and_only_what_is_not_there(model, folders, scene, capsys):
    out = folders / "out"
    arguments = ("--checkpoint", model, "--content", folders / "in", "--style", folders / "looks")
    arguments += ("--out", out)
    assert run("edit", *arguments) == 0
    said = capsys.readouterr()
    assert "4 made, 0 there already, 2 left out; passed over 1 (1 .txt)" in said.out
    assert "left out" in said.err and "bad.png: a damaged PNG file" in said.err
    made = sorted(p.relative_to(out).as_posix() for p in out.rglob("*.png"))
    assert made == ["a--x.png", "a--y.png", "sub/a--x.png", "sub/a--y.png"]
    with Image.open(out / "sub/a--y.png") as image:
        assert image.size == (64, 64)
        command = json.loads(image.text["rwm_fast"])["command"]
        assert "--content a.png --style y.png --out a--y.png" in command
    entries = [json.loads(line) for line in (out / LOG).read_text().splitlines()]
    assert sum("reason" in e for e in entries) == 2 and sum("key" in e for e in entries) == 4

    before = {p: p.stat().st_mtime_ns for p in out.rglob("*.png")}
    (out / "a--y.png").unlink()
    scene("in/sub/a.png", 9)
    with open(out / LOG, "a") as log:
        log.write('{"file": "a--x.png", "ke')  # a run that was killed
    assert run("edit", *arguments) == 0
    assert "3 made, 1 there already" in capsys.readouterr().out
    changed = sorted(p.name for p in out.rglob("*.png") if p.stat().st_mtime_ns != before[p])
    assert changed == ["a--x.png", "a--y.png", "a--y.png"]
    assert run("edit", *arguments, "--strength", 0.5) == 0
    assert "4 made, 0 there already" in capsys.readouterr().out


def test_masks_of_the_pictures_names_and_files_that_are_not_ours(model, folders, picture, capsys):
    out, masks = folders / "out", folders / "masks"
    masks.mkdir()
    picture("masks/a.png", (32, 32), "L", 255)
    out.mkdir()
    (out / "a.jpg").write_text("mine")
    arguments = (
        "--checkpoint",
        model,
        "--content",
        folders / "in",
        "--style",
        folders / "looks/x.png",
    )
    arguments += ("--out", out, "--mask", masks, "--composite", "--extension", "jpg")
    assert run("edit", *arguments) == 2
    said = capsys.readouterr().err
    assert "none of 3 pictures could be edited" in said
    assert (out / "a.jpg").read_text() == "mine"
    (out / "a.jpg").unlink()
    assert run("edit", *arguments) == 0
    said = capsys.readouterr()
    assert (
        "1 made, 0 there already, 2 left out" in said.out
        and "holds no mask of its name" in said.err
    )


def test_one_picture_in_the_styles_of_a_folder(model, folders, scene):
    arguments = (
        "--checkpoint",
        model,
        "--content",
        scene("one.png", 5),
        "--out",
        folders / "out",
    )
    assert run("edit", *arguments, "--style", folders / "looks") == 0
    made = sorted(p.name for p in (folders / "out").iterdir())
    assert made == [LOG, "one--x.png", "one--y.png"]
