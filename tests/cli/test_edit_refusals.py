"""`edit` and what it cannot use: one sentence, exit status 2, and nothing written."""

import pickle
import subprocess
import sys

import pytest
import torch
from PIL import Image

CONTENT = (20, 14)


class Command:
    """What a pickle may hold: something to run."""

    def __reduce__(self):
        return print, ("run",)


@pytest.fixture
def here(model, picture, tmp_path, monkeypatch):
    """A folder with pictures, masks and what only looks like them."""
    monkeypatch.chdir(tmp_path)
    for name, size in (("a.png", CONTENT), ("b.png", (30, 30)), ("small.png", (5, 5))):
        picture(name, size)
    picture("whole.png", CONTENT, "L", 255)
    picture("none.png", CONTENT, "L", (0,))
    colours = Image.new("RGB", CONTENT, (255, 0, 0))
    colours.paste((0, 255, 0), (0, 0, 9, 14))
    colours.save(tmp_path / "colours.png")
    strokes = Image.new("RGBA", CONTENT, (0, 0, 0, 0))
    strokes.paste((0, 0, 0, 255), (0, 0, 9, 14))
    strokes.save(tmp_path / "black.png")
    (tmp_path / "text.jpg").write_text("not a picture")
    (tmp_path / "cut.png").write_bytes((tmp_path / "b.png").read_bytes()[:40])
    (tmp_path / "code.pt").write_bytes(pickle.dumps(Command()))
    torch.save({"E.FromRGB.Conv.weight": Command()}, tmp_path / "code.zip")
    (tmp_path / "empty").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"--content": "absent.png"}, "absent.png cannot be opened: No such file"),
        ({"--style": "absent.png"}, "absent.png cannot be opened: No such file"),
        ({"--content": "text.jpg"}, "text.jpg cannot be read as a picture: no image format is"),
        ({"--style": "cut.png"}, "cut.png cannot be read as a picture"),
        ({"--content": "empty", "--out": "made"}, "empty holds no pictures"),
        ({"--mask": "small.png"}, "the picture, 20 x 14, or its aspect, got 5 x 5"),
        ({"--mask": "colours.png"}, "say which to repaint with --mask-label"),
        ({"--mask": "black.png"}, "paint what is to be repainted in white"),
        ({"--mask": "none.png"}, "none.png selects nothing"),
        ({"--mask": "text.jpg"}, "text.jpg cannot be read as a picture"),
        ({"--mask": "absent.png"}, "absent.png cannot be opened"),
        ({"--mask": "whole.png --mask whole.png"}, "got 1 styles and 2 masks"),
        ({"--style": "b.png --style a.png"}, "got 2 styles and 0 masks"),
        ({"--style": "b.png --style a.png", "--mask": "whole.png"}, "got 2 styles and 1 masks"),
        ({"--mask-label": "1"}, "--mask-label: expected one, or one for each of 0 masks"),
        ({"--click": "20,3"}, "click 20,3 must be inside the picture, 20 x 14"),
        ({"--click": "3"}, "--click: expected X,Y in pixels from the top left, got '3'"),
        ({"--click": "nan,3"}, "click nan,3 must be inside"),
        ({"--click": "3,3", "--mask": "whole.png"}, "--click: expected masks or clicks, got both"),
        (
            {"--click": "3,3", "--tolerance": "2"},
            "expected 0 to 1, for a click, got 2",
        ),
        ({"--tolerance": "0.5"}, "got 0.5 and no --click"),
        ({"--checkpoint": "absent"}, "no weights at"),
        ({"--checkpoint": "text.jpg"}, "not a readable safetensors file"),
        ({"--checkpoint": "code.pt"}, "code.pt: not a readable safetensors file"),
        ({"--checkpoint": "code.zip"}, "code.zip: not a readable checkpoint of tensors"),
        ({"--max-megapixels": "0.0001"}, "more than 0.0001 (--max-megapixels raises the limit)"),
        ({"--out": "absent/out.png"}, "folder that exists"),
        ({"--out": "out.nope"}, "expected a name that ends in one of .avif .bmp"),
        ({"--out": "/dev/full"}, "cannot be written"),
        ({"--feather": "3"}, "feather needs a mask"),
        ({"--feather": "-1", "--mask": "whole.png"}, "feather must be at least 0 pixels, got -1"),
        ({"--work-size": "-1"}, "work_size must be at least 0 pixels, got -1"),
        ({"--precision": "fp8"}, "expected one of auto, fp32, bf16, fp16, got 'fp8'"),
    ],
)
def test_bad_input_ends_with_one_sentence(refused, model, here, changes, sentence):
    options = {"--checkpoint": model, "--content": "a.png", "--style": "b.png"}
    options |= {"--out": "out.png"} | changes
    before = sorted(here.rglob("*"))
    said = refused("edit", *(word for k, v in options.items() for word in (k, *str(v).split(" "))))
    assert sentence in said
    assert sorted(here.rglob("*")) == before


def test_refusals_of_a_process_have_no_traceback(tmp_path):
    arguments = f"--checkpoint {tmp_path} --content a --style b --out c.png".split()
    done = subprocess.run(
        [sys.executable, "-m", "rwm_fast.edit", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == "error: a cannot be opened: No such file or directory\n"
