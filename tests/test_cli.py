"""The commands as people type them: what they write, and one sentence for every bad input."""

import importlib
import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from PIL import Image

from rwm_fast.config import PRESETS
from rwm_fast.data.decode import load_image
from rwm_fast.models import Encoder, Generator, load_weights, read_config, save_weights

TINY = """
--model.image-size 16 --model.encoder-channels 8 --model.style-channels 8 --model.style-dim 8
--model.head-channels 8 --model.up-channels 8 --model.tail-channels 8
--model.discriminator-channels 8 8 --model.discriminator-hidden 8 --model.patch-size 8
--model.patch-channels 8 8 --model.patch-feature-channels 8 --model.patch-hidden 8
--data.resize 16 --data.pool 12 --batch 4 --train.threads 1 --device cpu --precision fp32
""".split()


def run(command: str, *arguments) -> int:
    """The exit status of a command run in this process."""
    module = importlib.import_module(f"rwm_fast.{command}")
    try:
        return module.main([str(a) for a in arguments])
    except SystemExit as stop:
        return stop.code


@pytest.fixture
def refused(capsys):
    """Asserts that a command ends with status 2 and one sentence; returns the sentence."""

    def check(command: str, *arguments) -> str:
        assert run(command, *arguments) == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1 and lines[0].startswith("error: "), lines
        return lines[0]

    return check


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of ten steps, by the command."""
    out = tmp_path_factory.mktemp("runs") / "tiny"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rwm_fast.training.run.REPORT_PAIRS", 6)
        patch.setattr("rwm_fast.training.run.SAMPLE_PAIRS", 4)
        assert run("train", *TINY, "--kimg", "0.04", "--out", out) == 0
    return out


@pytest.fixture
def picture(tmp_path):
    """Writes a picture and returns its path."""

    def write(name: str, size=(20, 14), mode="RGB", color=None):
        Image.new(mode, size, color or (40, 90, 160)).save(tmp_path / name)
        return tmp_path / name

    return write


# ---- train


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
        ("text.zip", "which is neither"),
    ):
        assert sentence in refused(
            "train", *TINY, "--data", tmp_path / name, "--out", tmp_path / "run"
        )


def test_a_run_folder_that_cannot_be_used(refused, tmp_path, trained):
    (tmp_path / "file").write_text("")
    assert "expected a folder, got the file" in refused("train", *TINY, "--out", tmp_path / "file")
    sentence = refused("train", *TINY, "--kimg", "0.04", "--seed", "5", "--out", trained)
    assert "train.seed 0 there, 5 here" in sentence


# ---- edit


def edit(trained, *arguments):
    return "--checkpoint", trained, *arguments


def test_edits_keep_the_size_of_the_picture(trained, picture, tmp_path):
    content, style = picture("a b.jpg", (37, 21)), picture("b.png", (90, 64), color=(200, 10, 9))
    mask = picture("m.png", (37, 21), "L", 255)
    out = tmp_path / "out.png"
    for extra in (
        (),
        ("--mask", mask),
        ("--mask", mask, "--keep-detail"),
        ("--mask", mask, "--feather", "4"),
        ("--work-size", "16", "--keep-detail"),
    ):
        assert (
            run(
                "edit", *edit(trained, "--content", content, "--style", style, "--out", out, *extra)
            )
            == 0
        )
        with Image.open(out) as edited:
            assert edited.size == (37, 21), extra
        out.unlink()


def test_feathering_leaves_the_outside_untouched(trained, picture, tmp_path):
    content, style = picture("a.png", (64, 32)), picture("b.png", (32, 32), color=(250, 0, 0))
    mask = Image.new("L", (64, 32), 0)
    mask.paste(255, (0, 0, 20, 32))
    mask.save(tmp_path / "m.png")
    out = tmp_path / "out.png"
    arguments = edit(
        trained, "--content", content, "--style", style, "--mask", tmp_path / "m.png", "--out", out
    )
    assert run("edit", *arguments, "--feather", "6") == 0
    change = (load_image(out) - load_image(content)).abs()
    assert change[..., 26:].max() == 0 and change[..., :20].max() > 0
    assert run("edit", *arguments) == 0
    assert (load_image(out) - load_image(content)).abs()[..., 26:].max() > 0


def test_several_regions_with_several_styles(trained, picture, tmp_path):
    content, out = picture("a.png", (32, 16)), tmp_path / "out.png"
    pairs = []
    for k, color in enumerate(((250, 0, 0), (0, 0, 250))):
        mask = Image.new("L", (32, 16), 0)
        mask.paste(255, (8 * k, 0, 8 * k + 10, 16))  # they overlap
        mask.save(tmp_path / f"m{k}.png")
        pairs += ["--style", picture(f"s{k}.png", color=color), "--mask", tmp_path / f"m{k}.png"]
    assert run("edit", *edit(trained, "--content", content, *pairs, "--out", out)) == 0
    assert load_image(out).shape == (1, 3, 16, 32)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"--content": "absent.png"}, "absent.png"),
        ({"--style": "absent.png"}, "absent.png"),
        ({"--content": "text.png"}, "cannot be read as a picture"),
        ({"--mask": "small.png"}, "must have the size of the picture, 20 x 14, got 5 x 5"),
        ({"--checkpoint": "absent"}, "no weights at"),
        ({"--checkpoint": "text.png"}, "not a readable safetensors file"),
        ({"--out": "absent/out.png"}, "folder that exists"),
        ({"--out": "out.nope"}, "expected a name that ends in one of .avif .bmp"),
        ({"--out": "/dev/full"}, "cannot be written"),
        ({"--max-megapixels": "0.0001"}, "more than 0.0001 (--max-megapixels raises the limit)"),
        ({"--mask-label": "1"}, "--mask-label: expected one, or one for each of 0 masks"),
        ({"--feather": "3"}, "edit: feather needs a mask, got None"),
        (
            {"--feather": "-1", "--mask": "whole.png"},
            "edit: feather must be at least 0 pixels, got -1.0",
        ),
        ({"--work-size": "-1"}, "edit: work_size must be at least 0 pixels, got -1"),
        ({"--precision": "fp8"}, "expected one of auto, fp32, bf16, fp16, got 'fp8'"),
    ],
)
def test_bad_edits(refused, trained, picture, tmp_path, monkeypatch, changes, sentence):
    monkeypatch.chdir(tmp_path)
    for name, size in (
        ("a.png", (20, 14)),
        ("b.png", (30, 30)),
        ("small.png", (5, 5)),
    ):
        picture(name, size)
    picture("whole.png", (20, 14), "L", 255)
    (tmp_path / "text.png").write_text("not a picture")
    arguments = {
        "--checkpoint": trained,
        "--content": "a.png",
        "--style": "b.png",
        "--out": "out.png",
    } | changes
    assert sentence in refused("edit", *(word for pair in arguments.items() for word in pair))


def test_as_many_masks_as_styles(refused, trained, picture, tmp_path):
    a, b, mask = picture("a.png"), picture("b.png"), picture("m.png", mode="L", color=255)
    sentence = refused(
        "edit",
        *edit(
            trained,
            "--content",
            a,
            "--style",
            b,
            "--style",
            a,
            "--mask",
            mask,
            "--out",
            tmp_path / "o.png",
        ),
    )
    assert "got 2 styles and 1 masks" in sentence
    assert "2 styles and 0 masks" in refused(
        "edit",
        *edit(trained, "--content", a, "--style", b, "--style", a, "--out", tmp_path / "o.png"),
    )


def test_edit_says_what_it_repaints_and_what_a_mask_does_not(trained, picture, tmp_path, capsys):
    content, style, out = picture("a.png"), picture("b.png"), tmp_path / "o.png"
    mask = Image.new("L", (20, 14))
    mask.paste(1, (0, 0, 10, 14))
    mask.save(tmp_path / "half.png")
    picture("none.png", mode="L", color=(0,))
    base = edit(trained, "--content", content, "--style", style, "--out", out)
    for extra, share, remark in (
        ((), "100.0%", ""),
        (("--mask", tmp_path / "half.png"), "50.0%", ""),
        (("--mask", tmp_path / "half.png", "--mask-label", "0"), "50.0%", ""),
        (("--mask", tmp_path / "none.png"), "0.0%", "none.png selects nothing, so nothing is"),
    ):
        assert run("edit", *base, *extra) == 0
        said = capsys.readouterr()
        assert said.out == f"{out}: 20 x 14, repaints {share}\n" and remark in said.err
    assert (
        run("edit", *edit(trained, "--content", content, "--style", style, "--out", content)) == 0
    )
    assert "in place of the picture that was edited" in capsys.readouterr().out


def test_an_edited_photo_keeps_what_its_file_says(trained, picture, tmp_path):
    exif = Image.Exif()
    exif[0x010F], exif[0x0112] = "Maker", 6
    photo = Image.new("RGB", (40, 24), (90, 120, 60))
    photo.save(tmp_path / "a.jpg", exif=exif, dpi=(300, 300), quality=95, subsampling=0)
    mask = Image.new("L", (24, 40))
    mask.paste(255, (0, 0, 24, 8))
    mask.save(tmp_path / "m.png")
    arguments = ("--content", tmp_path / "a.jpg", "--style", picture("b.png"), "--feather", 2)
    out = tmp_path / "o.jpg"
    assert run("edit", *edit(trained, *arguments, "--mask", tmp_path / "m.png", "--out", out)) == 0
    with Image.open(out) as edited:
        assert edited.size == (24, 40) and edited.info["dpi"] == (300, 300)
        assert edited.getexif()[0x010F] == "Maker" and 0x0112 not in edited.getexif()
    before, after = load_image(tmp_path / "a.jpg"), load_image(out)
    assert (before - after)[..., 16:, :].abs().max() < 0.03  # quality 95 without subsampling
    assert (before - after)[..., :6, :].abs().max() > 0.03


# ---- evaluate


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


def test_bad_evaluations(refused, tmp_path, trained):
    assert "no weights at" in refused("evaluate", "--checkpoint", tmp_path / "absent")
    assert "at least 2, got 0" in refused("evaluate", "--checkpoint", trained, "--pairs", 0)
    assert "does not exist" in refused(
        "evaluate", "--checkpoint", trained, "--data", tmp_path / "absent"
    )


# ---- as processes


def test_refusals_of_a_process_have_no_traceback(tmp_path):
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "rwm_fast.edit",
            "--checkpoint",
            str(tmp_path),
            "--content",
            "a",
            "--style",
            "b",
            "--out",
            "c.png",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == "error: a cannot be opened: No such file or directory\n"


def test_loss_of_finiteness_ends_with_status_1(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(
        "rwm_fast.training.trainer.Trainer.step", lambda *_: {"patch": torch.tensor(float("inf"))}
    )
    assert run("train", *TINY, "--kimg", "0.04", "--out", tmp_path / "run") == 1
    assert "10 steps in a row were not finite (patch)" in capsys.readouterr().err
