"""What the page does, without a page."""

import json
import os

import numpy as np
import pytest
from PIL import Image

from rwm_fast.app import metadata, studio
from rwm_fast.app.marks import Mark, as_json
from rwm_fast.app.studio import Studio, Style, Subject
from rwm_fast.data.formats import Limits
from rwm_fast.errors import UserError


def told(account):
    return (("Software", "test"), (metadata.KEY, json.dumps(account)))


@pytest.fixture
def here(editor, folder):
    return Studio(editor, [folder], told, Limits(max_megapixels=1), regions=3)


def text(*marks: Mark) -> str:
    return json.dumps(as_json(marks))


def pixels(file) -> np.ndarray:
    with Image.open(file) as image:
        return np.asarray(image.convert("RGB"), int)


def stroke(region: int = 0, x: float = 70) -> Mark:
    return Mark("paint", region, 12.0, ((x, 20.0), (x, 44.0)))


def styles(folder, *given) -> list[Style]:
    """b.png for the first region, or what is given; none for the others."""
    found = list(given) or [Style(Subject(folder / "b.png"))]
    return found + [Style(Subject(None))] * (3 - len(found))


def test_an_edit_changes_the_region_alone(here, folder, tmp_path):
    content = Subject(folder / "a.png", text(stroke()))
    made = here.edit(content, styles(folder), tmp_path)
    before, after = map(pixels, (folder / "a.png", made.file))
    assert after.shape == before.shape
    differs = (before != after).any(-1)
    y, x = np.mgrid[:64, :96]
    distance = np.hypot(x - 70, y - np.clip(y, 20, 44))
    assert differs[distance < 4].mean() > 0.9
    assert not differs[distance > 10].any()
    assert made.said.startswith("96 x 64, repaints ")
    assert made.before.size == made.after.size == made.regions.size == (96, 64)
    assert np.asarray(made.regions)[32, 70, 0] > 100 > np.asarray(made.before)[32, 70, 0]


def test_the_file_says_what_was_done(here, folder, tmp_path):
    content = Subject(folder / "a.png", text(stroke(1)))
    style = Style(Subject(folder / "b.png", text(Mark("all"))), 0.5)
    made = here.edit(content, styles(folder, Style(Subject(None)), style), tmp_path, False)
    assert made.file.name == "a-edited.png"
    with Image.open(made.file) as image:
        account = json.loads(image.text[metadata.KEY])
    assert account["content"] == "a.png" and account["keep_detail"] is False
    assert account["marks"] == as_json([stroke(1)])
    part = as_json([Mark("all")])
    assert account["styles"] == {"2": {"picture": "b.png", "part": part, "strength": 0.5}}


def test_regions_have_styles_and_strengths_of_their_own(here, folder, tmp_path):
    content = Subject(folder / "a.png", text(stroke(0, 20), stroke(2, 70)))
    none = Style(Subject(folder / "b.png"), 0.0)
    full = Style(Subject(folder / "b.png"), 1.0)
    after = []
    for pair in ((none, full), (full, none), (full, full)):
        given = styles(folder, pair[0], Style(Subject(None)), pair[1])
        after.append(pixels(here.edit(content, given, tmp_path).file))
    moved = [np.abs(one - after[2]).mean(axis=(0, 2)) for one in after]  # by column
    left, right = slice(14, 26), slice(64, 76)
    assert moved[0][left].mean() > 3 * moved[0][right].mean()
    assert moved[1][right].mean() > 3 * moved[1][left].mean()


def test_a_part_of_the_style_picture_gives_another_style(here, folder, tmp_path):
    content = Subject(folder / "b.png", text(Mark("all")))
    whole, light, dark = (
        here.edit(content, styles(folder, Style(Subject(folder / "a.png", marks))), tmp_path).file
        for marks in ("[]", text(stroke(0, 20)), text(stroke(0, 75)))
    )
    values = [pixels(file) for file in (whole, light, dark)]
    assert (values[0] != values[1]).any() and (values[1] != values[2]).any()


def test_keeping_detail_matters(here, folder, tmp_path):
    content = Subject(folder / "b.png", text(Mark("all")))
    kept, left = (
        pixels(here.edit(content, styles(folder), tmp_path, detail).file)
        for detail in (True, False)
    )
    assert (kept != left).any()


def test_a_click_selects_what_is_edited(here, folder, tmp_path):
    content = Subject(folder / "a.png", text(Mark("click", 0, 0.0, ((20.0, 30.0),))))
    shown = np.asarray(here.overlay(content))[..., 3] / 255
    assert shown[:, 4:44].mean() > 0.95 and shown[:, 52:92].mean() < 0.05
    made = here.edit(content, styles(folder), tmp_path)
    differs = (pixels(made.file) != np.asarray(made.before)).any(-1)
    assert differs[:, 4:44].mean() > 0.9 and not differs[:, 52:].any()


def test_a_large_picture_is_shown_small_and_edited_whole(here, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(studio, "SHOWN", 48)
    content = Subject(folder / "a.png", text(stroke()))
    assert here.overlay(content).size == (48, 32)
    made = here.edit(content, styles(folder), tmp_path)
    assert made.after.size == (48, 32) and pixels(made.file).shape == (64, 96, 3)


def test_old_results_go(here, folder, tmp_path):
    content = Subject(folder / "a.png", text(stroke()))
    first = here.edit(content, styles(folder), tmp_path).file
    second = here.edit(content, styles(folder), tmp_path).file
    assert first.exists() and second.exists()
    os.utime(first, (0, 0))
    here.edit(content, styles(folder), tmp_path)
    assert second.exists() and not first.exists()


def test_what_does_not_fit_is_one_sentence(here, folder, tmp_path):
    mine = folder / "a.png"
    painted, style = Subject(mine, text(stroke())), styles(folder)

    def refusal(content: Subject, given: list[Style] = style) -> str:
        with pytest.raises(UserError) as found:
            here.edit(content, given, tmp_path / "none")
        assert not (tmp_path / "none").exists()
        return str(found.value)

    eraser = Mark("erase", 0, 200.0, ((50.0, 30.0),))
    outside = Mark("click", 0, 0.0, ((96.0, 3.0),))
    part = Style(Subject(folder / "b.png", text(Mark("erase", 0, 5.0, ((1.0, 1.0),)))))
    assert "choose a picture to edit" in refusal(Subject(None))
    assert "nothing is marked" in refusal(Subject(mine))
    assert "nothing is marked" in refusal(Subject(mine, text(stroke(), eraser)))
    assert "click 96,3 must be inside" in refusal(Subject(mine, text(outside)))
    assert "region 2 has no style" in refusal(Subject(mine, text(stroke(1))))
    assert "region: expected 1 to 3, got 4" in refusal(Subject(mine, text(stroke(3))))
    assert "part of its style picture is empty" in refusal(painted, [part, *style[1:]])
    assert "strength must be finite" in refusal(
        painted, [Style(Subject(folder / "b.png"), float("nan")), *style[1:]]
    )
    wrong = refusal(Subject(folder / "text.jpg", text(stroke())))
    assert wrong == "text.jpg cannot be read as a picture: no image format is recognised"
    assert "no longer kept" in refusal(Subject(folder / "gone.png", text(stroke())))


def test_files_of_the_host_are_not_read(here, folder, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.png")
    (folder / "link.png").unlink(missing_ok=True)
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    for path in (tmp_path / "secret.png", folder / "../secret.png", folder / "link.png"):
        with pytest.raises(UserError, match="expected a picture that was uploaded"):
            here.shown(path)


def test_a_picture_above_the_limit_is_refused(editor, folder):
    small = Studio(editor, [folder], told, Limits(max_megapixels=0.001))
    with pytest.raises(UserError, match="0 megapixels, more than 0.001"):
        small.shown(folder / "a.png")
