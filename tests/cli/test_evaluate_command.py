"""`evaluate` as people type it."""

import json
from dataclasses import replace
from itertools import product

import torch
from commands import run

from rwm_fast.config import DataConfig, MaskConfig
from rwm_fast.data.photos import PhotoSet
from rwm_fast.models import Encoder, Generator, load_weights, read_config, save_weights
from rwm_fast.training.pairs import photo_directions, photo_pairs


def test_scores_are_printed_and_written(trained, tmp_path, capsys):
    assert run("evaluate", "--checkpoint", trained, "--pairs", 4, "--out", tmp_path) == 0
    text = capsys.readouterr().out
    assert "closer than doing nothing" in text
    assert "not judged: 0.0 thousand pictures seen, the pass mark is for 23.9 and more" in text
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores["pairs"] == 4 and "passed" not in scores
    assert (tmp_path / "scores.png").stat().st_size > 0
    assert (
        run("evaluate", "--checkpoint", trained, "--pairs", 4, "--out", tmp_path, "--strict") == 1
    )
    assert "FAIL  swap_closer" in capsys.readouterr().out
    assert json.loads((tmp_path / "scores.json").read_text())["passed"] is False


def test_photos_are_scored_too(trained, picture, tmp_path, capsys):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for k in range(2):
        picture(f"pictures/{k}.png", color=(90 * k, 50, 50))
    assert run("evaluate", "--checkpoint", trained, "--data", pictures, "--out", tmp_path) == 0
    assert "reconstruction L1" in capsys.readouterr().out


def test_every_direction_between_folders_is_scored(model, picture, tmp_path, capsys):
    """Content of the one, style of the other; the pictures of a folder have one colour."""
    for folder, red, count in (("day", 200, 3), ("night", 20, 2)):
        (tmp_path / folder).mkdir()
        for k in range(count):
            picture(f"{folder}/{k}.png", color=(red, 90 * k, 50))
    data = ("--data", tmp_path / "day", tmp_path / "night")
    assert run("evaluate", "--checkpoint", model, *data, "--out", tmp_path) == 0
    lines = capsys.readouterr().out.splitlines()
    counts = {"day -> day": 6, "day -> night": 6, "night -> day": 6, "night -> night": 2}
    scores = json.loads((tmp_path / "scores.json").read_text())["directions"]
    for name, pairs in counts.items():
        assert scores[name]["pairs"] == pairs
        assert any(line.split()[:4] == [*name.split(), str(pairs)] for line in lines)
    grids = {path.name for path in tmp_path.glob("scores-*.png")}
    assert grids == {f"scores-{a}-{b}.png" for a in (1, 2) for b in (1, 2)}
    pictures = PhotoSet(DataConfig(sources=tuple(map(str, data[1:])), resize=16), 16)
    for (a, b), pairs in photo_directions(pictures, 99, MaskConfig()).items():
        of = [
            set(((t[:, 0, 0, 0] + 1) * 127.5).round().tolist())
            for t in (pairs.content, pairs.style)
        ]
        assert of == [{(200.0, 20.0)[a]}, {(200.0, 20.0)[b]}]
        both = torch.cat([pairs.content, pairs.style], 1).flatten(1)
        assert len(torch.unique(both, dim=0)) == len(both)  # every combination once


def test_folders_of_one_name_are_told_apart(model, picture, tmp_path, capsys):
    for folder in ("a/same", "b/same"):
        (tmp_path / folder).mkdir(parents=True)
        for k in range(2):
            picture(f"{folder}/{k}.png", color=(90 * k, 50, 50))
    data = ("--data", tmp_path / "a/same", tmp_path / "b/same")
    assert run("evaluate", "--checkpoint", model, *data, "--out", tmp_path) == 0
    ways = json.loads((tmp_path / "scores.json").read_text())["directions"]
    named = {
        f"same ({a}) -> same ({b})": f"scores-{a}-{b}.png" for a, b in product((1, 2), repeat=2)
    }
    assert {name: way["grid"] for name, way in ways.items()} == named
    text = capsys.readouterr().out
    assert all(f"  {grid}\n" in text for grid in named.values())


def test_a_direction_that_cannot_be_scored_is_named(model, picture, tmp_path, capsys):
    """One picture has no other of its folder; a folder none of whose pictures is held out of
    training has no direction at all."""
    (tmp_path / "one").mkdir()
    (tmp_path / "many").mkdir()
    picture("one/0.png")
    for k in range(19):
        picture(f"many/{k}.png", color=(9 * k, 50, 50))
    data = (str(tmp_path / "one"), str(tmp_path / "many"))
    assert run("evaluate", "--checkpoint", model, "--data", *data, "--out", tmp_path) == 0
    ways = json.loads((tmp_path / "scores.json").read_text())["directions"]
    assert set(ways) == {"one -> many", "many -> one", "many -> many"}
    assert "not scored: one -> one, for one picture of it is readable\n" in capsys.readouterr().out
    config = read_config(model)
    trained_on = replace(config, data=replace(config.data, sources=data))
    encoder, generator = Encoder(config.model), Generator(config.model)
    held_out = PhotoSet(trained_on.data, 16).held_out
    assert len(held_out) == 2 and all(photo.domain == 1 for photo in held_out)
    save_weights(tmp_path / "weights.safetensors", encoder, generator, trained_on)
    assert run("evaluate", "--checkpoint", tmp_path) == 0
    ways = json.loads((tmp_path / "scores.json").read_text())["directions"]
    assert set(ways) == {"many -> many"}
    assert "not scored: one with anything, for no picture of it is held out" in (
        capsys.readouterr().out
    )


def test_few_pairs_of_several_folders_are_of_all(picture, tmp_path):
    """The grids of a run show content of each, in the style of the next."""
    for folder, red, count in (("day", 200, 5), ("night", 20, 5)):
        (tmp_path / folder).mkdir()
        for k in range(count):
            picture(f"{folder}/{k}.png", color=(red, 50 * k, 50))
    sources = (str(tmp_path / "day"), str(tmp_path / "night"))
    pairs = photo_pairs(PhotoSet(DataConfig(sources=sources, resize=16), 16), 4, MaskConfig())
    reds = [((t[:, 0, 0, 0] + 1) * 127.5).round().tolist() for t in (pairs.content, pairs.style)]
    assert reds == [[200, 20, 200, 20], [20, 200, 20, 200]]


def test_given_pictures_are_all_scored_and_counted(trained, picture, tmp_path, capsys):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for k in range(30):
        picture(f"pictures/{k}.png", color=(8 * k, 50, 50))
    (pictures / "x.dng").write_bytes(b"II*\0")
    arguments = ("--checkpoint", trained, "--data", pictures, "--out", tmp_path)
    assert run("evaluate", *arguments) == 0
    said = capsys.readouterr().out
    assert "scored: 30 of 30 pictures, in 256 pairs" in said and "passed over 1 (1 .dng)" in said
    assert json.loads((tmp_path / "scores.json").read_text())["pairs"] == 256
    assert run("evaluate", *arguments, "--pairs", 8) == 0
    assert "scored: 8 of 30 pictures, in 8 pairs" in capsys.readouterr().out


def test_a_weights_file_does_not_choose_the_folders_that_are_opened(
    refused, trained, picture, tmp_path
):
    encoder, generator = (kind(read_config(trained).model) for kind in (Encoder, Generator))
    config = read_config(trained)
    named = replace(config, data=replace(config.data, sources=(str(tmp_path),)))
    load_weights(trained, encoder, generator)
    save_weights(tmp_path / "w.safetensors", encoder, generator, named)
    assert "expected the pictures to score" in refused(
        "evaluate", "--checkpoint", tmp_path / "w.safetensors"
    )


def test_bad_evaluations(refused, picture, tmp_path, trained):
    assert "no weights at" in refused("evaluate", "--checkpoint", tmp_path / "absent")
    assert "at least 2, got 0" in refused("evaluate", "--checkpoint", trained, "--pairs", 0)
    assert "does not exist" in refused(
        "evaluate", "--checkpoint", trained, "--data", tmp_path / "absent"
    )
    (tmp_path / "one").mkdir()
    picture("one/0.png")
    assert "at least 2 pictures to score, got" in refused(
        "evaluate", "--checkpoint", trained, "--data", tmp_path / "one"
    )
