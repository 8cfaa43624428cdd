"""Codes on disk: what comes back, and what is refused."""

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from tiny_networks import PAPER, encoder, generator, picture

from rwm_fast.errors import UserError
from rwm_fast.models import Codes, RegionEditor

PIXELS = torch.randint(0, 256, (40, 52, 3), dtype=torch.uint8).numpy()


@pytest.fixture(scope="module")
def editor():
    return RegionEditor(encoder(PAPER), generator(PAPER))


@pytest.mark.parametrize(
    "given", [Image.fromarray(PIXELS), PIXELS, PIXELS[None] / 255, picture(2, 32, 36)]
)
@pytest.mark.parametrize("work_size", [0, 16])
def test_codes_that_were_saved_edit_as_those_that_were_not(given, work_size, editor, tmp_path):
    codes = editor.encode(given, work_size=work_size)
    codes.save(tmp_path / "codes")
    back = Codes.load(tmp_path / "codes")
    style = editor.encode(picture(1, seed=3), picture=False, work_size=work_size)
    options = dict(keep_detail=True, work_size=work_size)
    for name in ("content", "style", "detail"):
        assert torch.equal(getattr(back, name), getattr(codes, name))
    assert back.work == codes.work and back.size == codes.size
    for content in (codes, back):
        result = editor.edit(content, style, **options)
        expected = editor.edit(given, picture(1, seed=3), **options)
        assert type(result) is type(given)
        assert np.array_equal(np.asarray(result), np.asarray(expected))


def test_codes_without_a_picture_are_small(editor, tmp_path):
    codes = editor.encode(PIXELS, picture=False)
    codes.save(tmp_path / "codes")
    assert (tmp_path / "codes").stat().st_size < PIXELS.nbytes
    back = Codes.load(tmp_path / "codes")
    assert back.picture is back.seen is back.detail is None
    assert np.array_equal(editor.swap(PIXELS, back), editor.swap(PIXELS, PIXELS))


def test_what_is_no_file_of_codes_is_refused(editor, tmp_path):
    path = tmp_path / "codes"
    with pytest.raises(UserError, match="no codes at .*: expected a file that Codes.save wrote"):
        Codes.load(path)
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(UserError, match="not a readable safetensors file"):
        Codes.load(path)
    save_file({"content": torch.zeros(1)}, path)
    with pytest.raises(UserError, match="expected a file of codes"):
        Codes.load(path)
    editor.encode(PIXELS).save(path)
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match="damaged: its content is not what was written"):
        Codes.load(path)
    with pytest.raises(UserError, match="cannot be written"):
        editor.encode(PIXELS).save(tmp_path / "absent" / "codes")
