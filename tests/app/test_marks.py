"""Marks from a page: what they cover, and what is none."""

import json

import numpy as np
import pytest
from PIL import Image, ImageDraw

from rwm_fast.app.marks import (
    MAX_CLICKS,
    MAX_LENGTH,
    MAX_MARKS,
    MAX_POINTS,
    Mark,
    as_json,
    check_clicks,
    drawn,
    read_marks,
)
from rwm_fast.errors import UserError

SIZE = (60, 40)  # width, height


def left_third(x: float, y: float) -> Image.Image:
    plane = Image.new("L", SIZE)
    ImageDraw.Draw(plane).rectangle((0, 0, 19, 39), fill=255)
    return plane


def planes_of(*marks: Mark, regions: int = 2) -> np.ndarray:
    return np.stack([np.asarray(p) for p in drawn(marks, regions, SIZE, left_third)]) / 255


def stroke(*points, region: int = 0, size: float = 10.0, kind: str = "paint") -> Mark:
    return Mark(kind, region, size, tuple(points))


def test_a_stroke_is_as_wide_as_the_brush_and_round_at_its_ends():
    plane = planes_of(stroke((20, 20), (40, 20)))[0]
    y, x = np.mgrid[:40, :60]
    distance = np.hypot(x - np.clip(x, 20, 40), y - 20)
    assert (plane[distance < 4] == 1).all()
    assert (plane[distance > 6.5] == 0).all()


def test_a_dot_is_a_disc():
    plane = planes_of(stroke((30, 20), size=12))[0]
    assert plane[20, 30] == 1 and abs(plane.sum() - np.pi * 36) < 20


def test_a_corner_of_a_thick_line_has_no_gap():
    plane = planes_of(stroke((15, 10), (40, 10), (40, 30), size=11))[0]
    y, x = np.mgrid[:40, :60]
    assert (plane[np.hypot(x - 40, y - 10) < 4] == 1).all()


def test_what_was_marked_last_counts():
    planes = planes_of(Mark("click", 0, 0, ((1, 1),)), stroke((10, 0), (10, 39), region=1))
    assert planes[1, 20, 10] == 1 and planes[0, 20, 10] == 0
    assert planes[0, 20, 1] == 1
    assert (planes.sum(0) <= 1).all()
    back = planes_of(stroke((10, 0), (10, 39), region=1), Mark("click", 0, 0, ((1, 1),)))
    assert back[0, 20, 10] == 1 and back[1, 20, 10] == 0


def test_an_eraser_takes_from_all_regions():
    planes = planes_of(
        Mark("all", 0), stroke((30, 20), region=1), stroke((30, 20), size=20, kind="erase")
    )
    assert (planes[:, 20, 30] == 0).all() and planes[0, 0, 0] == 1


def test_strokes_are_drawn_at_any_size():
    mark = stroke((20, 20), (40, 20), size=8)
    large = np.asarray(drawn([mark], 1, (240, 160), left_third, scale=4.0)[0])
    y, x = np.mgrid[:160, :240]
    distance = np.hypot(x - np.clip(x, 80, 160), y - 80)
    assert (large[distance < 15] == 255).all() and (large[distance > 17.5] == 0).all()


def test_marks_come_back_from_what_is_kept_of_them():
    marks = [stroke((1.5, 2), (3, 4), region=1), Mark("all", 0), Mark("click", 1, 0, ((5, 6),))]
    assert read_marks(json.dumps(as_json(marks)), 2) == marks
    assert read_marks("", 1) == []


@pytest.mark.parametrize(
    "given",
    [
        "{",
        "7",
        "[7]",
        '[{"kind": "fill", "region": 0}]',
        '[{"kind": "click", "region": 0}]',
        '[{"kind": "click", "region": 0, "points": [[1, 2], [3, 4]]}]',
        '[{"kind": "paint", "region": 0, "size": 0, "points": [[1, 2]]}]',
        '[{"kind": "paint", "region": 0, "size": 5, "points": [[1, NaN]]}]',
        '[{"kind": "paint", "region": 0, "size": 1e9, "points": [[1, 2]]}]',
        '[{"kind": "paint", "region": 0.5, "size": 5, "points": [[1, 2]]}]',
        '[{"kind": "all", "region": true}]',
        '[{"kind": ["paint"], "region": 0}]',
        "[" * 5000,
    ],
)
def test_what_is_no_list_of_marks_is_refused(given):
    with pytest.raises(UserError, match="expected a list of strokes and clicks"):
        read_marks(given, 2)


def test_counts_are_limited():
    click = {"kind": "click", "region": 0, "points": [[1, 2]]}
    whole = {"kind": "all", "region": 0}
    with pytest.raises(UserError, match=f"at most {MAX_MARKS}, got {MAX_MARKS + 1}"):
        read_marks(json.dumps([whole] * (MAX_MARKS + 1)), 1)
    with pytest.raises(UserError, match=f"at most {MAX_CLICKS}, got {MAX_CLICKS + 1}"):
        read_marks(json.dumps([click] * (MAX_CLICKS + 1)), 1)
    with pytest.raises(UserError, match="expected a list of strokes and clicks"):
        read_marks("[" + " " * MAX_LENGTH + "]", 1)
    long = {"kind": "paint", "region": 0, "size": 3, "points": [[1, 2]] * (MAX_POINTS + 1)}
    with pytest.raises(UserError, match=f"at most {MAX_POINTS}"):
        read_marks(json.dumps([long]), 1)
    with pytest.raises(UserError, match="region: expected 1 to 2, got 3"):
        read_marks(json.dumps([click | {"region": 2}]), 2)


def test_a_click_outside_is_refused():
    check_clicks([Mark("click", 0, 0, ((59.9, 39.9),)), stroke((-5, 99))], SIZE)
    for place in ((60, 5), (5, 40), (-1, 5)):
        with pytest.raises(UserError, match=r"click .* must be inside the picture, 60 x 40"):
            check_clicks([Mark("click", 0, 0, (place,))], SIZE)
