"""The weights that come with the package: whole, small, found by name, and as strict as any."""

import hashlib
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rwm_fast import RegionEditor, convert, edit, evaluate
from rwm_fast.data import landscapes
from rwm_fast.models import (
    Encoder,
    Generator,
    WeightsError,
    load_weights,
    pretrained,
    read_config,
    save_weights,
)
from rwm_fast.models.weights import locate, read_kimg, read_tensors
from rwm_fast.training.init import start_from
from rwm_fast.training.trainer import Trainer

NAMES = pretrained.names()
LIMIT = 12_000_000  # bytes of all of them together


def card(name: str) -> str:
    return (pretrained.FOLDER / f"{name}.md").read_text(encoding="utf-8")


def test_the_default_is_there():
    assert NAMES[0] == pretrained.DEFAULT


def test_together_they_are_small():
    assert sum(file.stat().st_size for file in pretrained.FOLDER.iterdir()) <= LIMIT


@pytest.mark.parametrize("name", NAMES)
def test_the_card_names_the_file(name):
    content = pretrained.resolve(name).read_bytes()
    assert f"SHA-256 {hashlib.sha256(content).hexdigest()}" in card(name)
    for heading in ("Data", "Training", "Scores", "Licence", "Limits"):
        assert f"\n## {heading}\n" in card(name), heading


@pytest.mark.parametrize("name", NAMES)
def test_it_says_what_it_is_and_not_where_it_was_made(name):
    config = read_config(name)
    assert not [source for source in config.data.sources if "/" in source]
    assert f"{config.model.image_size} px" in card(name)
    assert read_kimg(name) > 0 and f"{read_kimg(name):.0f} thousand" in card(name)


@pytest.mark.parametrize("name", NAMES)
def test_it_edits(name):
    editor = RegionEditor.load(name)
    scenes, looks = landscapes.content([1, 2]), landscapes.style([3, 4])
    photo, style = landscapes.render(scenes, looks, 64)[0][..., :48, :].split(1)
    mask = torch.zeros(1, 1, 48, 64)
    mask[..., :24, :] = 1
    edited = editor.edit(photo, style, mask, keep_detail=True)
    assert edited.shape == photo.shape and edited.isfinite().all()
    change = (edited - photo).abs().mean((0, 1, 3))  # [H]
    assert change[:16].mean() > 5 * change[32:].mean()


def test_a_damaged_one_is_refused(tmp_path):
    copy = tmp_path / "copy.safetensors"
    shutil.copy(pretrained.resolve(NAMES[0]), copy)
    read_tensors(copy)
    content = bytearray(copy.read_bytes())
    content[-1000] ^= 1
    copy.write_bytes(content)
    with pytest.raises(WeightsError, match="damaged"):
        read_tensors(copy)


def test_a_name_is_a_name_and_a_path_is_a_path(tmp_path, monkeypatch):
    """A folder of pictures called photos is common, so it must not hide the weights."""
    monkeypatch.chdir(tmp_path)
    name = NAMES[0]
    (tmp_path / name).mkdir()
    assert locate(name) == pretrained.FOLDER / f"{name}.safetensors"
    for path in (f"./{name}", Path(name)):
        with pytest.raises(WeightsError, match=f"no weights at {name}/"):
            locate(path)


def test_an_unknown_name_is_told_the_names():
    known = re.escape(", ".join(NAMES))
    with pytest.raises(WeightsError, match=f"no weights at phots: .* names: {known}$"):
        RegionEditor.load("phots")


# ---- commands


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    """A working folder with two pictures in a folder that is called as the weights are."""
    monkeypatch.chdir(tmp_path)
    Path(NAMES[0]).mkdir()
    for name, color in (("a", (40, 90, 160)), ("b", (200, 120, 40))):
        Image.new("RGB", (80, 64), color).save(f"{NAMES[0]}/{name}.png")
    return NAMES[0]


def test_edit_needs_no_weights(pictures, capsys):
    arguments = ["--content", f"{pictures}/a.png", "--style", f"{pictures}/b.png"]
    assert edit.main([*arguments, "--out", "named.png", "--checkpoint", pictures]) == 0
    assert edit.main([*arguments, "--out", "out.png"]) == 0
    named, out = (np.asarray(Image.open(name)) for name in ("named.png", "out.png"))
    assert np.array_equal(named, out)
    with pytest.raises(SystemExit) as stopped:
        edit.main([*arguments, "--out", "o.png", "--checkpoint", f"./{pictures}"])
    assert stopped.value.code == 2
    assert f"no weights at {pictures}/weights.safetensors" in capsys.readouterr().err


def test_evaluate_writes_beside_no_package(pictures):
    assert evaluate.main(["--data", pictures, "--pairs", "2"]) == 0
    assert (Path("runs") / pictures / "scores.json").is_file()


def test_half_the_bytes_and_no_place_of_pictures(tmp_path):
    path, config = tmp_path / "run.safetensors", read_config(NAMES[0])
    config = replace(config, data=replace(config.data, sources=("/home/me/holiday",)))
    encoder, generator = Encoder(config.model), Generator(config.model)
    load_weights(NAMES[0], encoder, generator)
    save_weights(path, encoder, generator, config, kimg=7)
    half = tmp_path / "half.safetensors"
    assert convert.main([str(path), "--save", "float16", "--out", str(half)]) == 0
    assert half.stat().st_size < 0.55 * path.stat().st_size
    assert read_config(half).data.sources == ("holiday",) and read_kimg(half) == 7
    wanted = {name: tensor.half() for name, tensor in read_tensors(path).items()}
    torch.testing.assert_close(read_tensors(half), wanted, rtol=0, atol=0)


def test_a_run_starts_from_a_name():
    trainer = Trainer(read_config(NAMES[0]), torch.device("cpu"), torch.float32)
    assert "14 of 14 of the encoder, 32 of 32 of the generator" in start_from(trainer, NAMES[0])
    first = read_tensors(NAMES[0])["encoder.style_linear.weight"].float()
    assert torch.equal(trainer.nets.encoder.style_linear.weight, first)
