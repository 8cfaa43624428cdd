"""`train` as people type it: what it writes, and one sentence for every bad input."""

import json

import pytest
import torch
from commands import TINY, run

from rwm_fast.config import PRESETS


def test_training_writes_every_file(trained):
    for name in (
        "config.json",
        "log.jsonl",
        "curves.png",
        "report.json",
        "pictures.json",
        "weights.safetensors",
        "samples/000000040.png",
        "checkpoints/state-000000040.pt",
    ):
        assert (trained / name).stat().st_size > 0, name
    config = json.loads((trained / "config.json").read_text())
    assert config["preset"] == "demo" and config["model"]["image_size"] == 16
    assert config["train"]["seconds"] == 0  # a number of images takes the place of the time budget


@pytest.mark.parametrize("preset", PRESETS)
def test_a_dry_run_tells_settings_parameters_and_memory(capsys, preset):
    assert run("train", "--preset", preset, "--dry-run", "--loss.patch", "0.25") == 0
    text = capsys.readouterr().out
    settings, _ = json.JSONDecoder().raw_decode(text)
    assert settings["preset"] == preset and settings["loss"]["patch"] == 0.25
    assert "M parameters" in text and "GiB at batch" in text
    if preset == "paper-256":
        for network, millions in (
            ("encoder", 30.6),
            ("generator", 25.1),
            ("discriminator", 28.9),
            ("patches", 24.5),
        ):
            (line,) = (s for s in text.splitlines() if s.startswith(network + " "))
            assert float(line.split()[1]) == pytest.approx(millions, rel=0.01)


def test_quick_is_the_two_minute_form(capsys):
    assert run("train", "--quick", "--dry-run") == 0
    settings, _ = json.JSONDecoder().raw_decode(capsys.readouterr().out)
    assert settings["train"]["seconds"] == PRESETS["demo"].train.quick_seconds


def test_short_names_and_every_setting_can_be_given(capsys):
    assert (
        run(
            "train",
            "--dry-run",
            "--seed",
            "7",
            "--batch=4",
            "--seconds",
            "9",
            "--data",
            "a",
            "b.zip",
            "--mask.area",
            "0.1",
            "0.2",
        )
        == 0
    )
    settings, _ = json.JSONDecoder().raw_decode(capsys.readouterr().out)
    train = settings["train"]
    assert (train["seed"], train["batch"], train["seconds"]) == (7, 4, 9.0)
    assert settings["data"]["sources"] == ["a", "b.zip"]
    assert settings["mask"]["area"] == [0.1, 0.2]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--preset", "nope"], "unknown preset 'nope'; presets: paper-256"),
        (["--preset", "paper-256", "--quick"], "has no quick form"),
        (["--batch", "3"], "train.batch must be even (styles swap in pairs), got 3"),
        (["--precision", "fp8"], "invalid choice 'fp8'"),
        (["--loss.edge", "abc"], "could not convert string to float: 'abc'"),
        (["--loss.egde", "1"], "Unrecognized options: --loss.egde"),
        (["--device", "tpu"], "expected auto, cpu, cuda or cuda:N, got 'tpu'"),
        (["--device", "cuda:99"], "CUDA devices, got 'cuda:99'"),
    ],
)
def test_bad_settings(refused, tmp_path, arguments, sentence):
    assert sentence in refused("train", *arguments, "--out", tmp_path / "run")


def test_bad_data(refused, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.zip").write_text("not a zip")
    for name, sentence in (
        ("empty", "holds no pictures"),
        ("absent", "does not exist"),
        ("text.zip", "which is none of them"),
    ):
        assert sentence in refused(
            "train", *TINY, "--data", tmp_path / name, "--out", tmp_path / "run"
        )


def test_a_run_folder_that_cannot_be_used(refused, tmp_path, trained):
    (tmp_path / "file").write_text("")
    assert "expected a folder, got the file" in refused("train", *TINY, "--out", tmp_path / "file")
    sentence = refused("train", *TINY, "--kimg", "0.04", "--seed", "5", "--out", trained)
    assert "train.seed 0 there, 5 here" in sentence


def test_loss_of_finiteness_ends_with_status_1(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(
        "rwm_fast.training.trainer.Trainer.step", lambda *_: {"patch": torch.tensor(float("inf"))}
    )
    assert run("train", *TINY, "--kimg", "0.04", "--out", tmp_path / "run") == 1
    assert "10 steps in a row were not finite (patch)" in capsys.readouterr().err
