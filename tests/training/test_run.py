"""Whole runs: what they leave behind, how they stop, and that they go on where they stopped."""

import itertools
import json
import logging
import os
import signal
from dataclasses import replace
from functools import partial

import pytest
import torch
from PIL import Image
from states import same

from rwm_fast.config import Config
from rwm_fast.errors import UserError
from rwm_fast.models import RegionEditor
from rwm_fast.training.clock import Clock
from rwm_fast.training.guard import DivergedError, NotFiniteError
from rwm_fast.training.loop import step_generator
from rwm_fast.training.run import train
from rwm_fast.training.step import total
from rwm_fast.training.trainer import Trainer


@pytest.fixture(autouse=True)
def few_pairs(monkeypatch):
    for name, count in (("REPORT_PAIRS", 6), ("SAMPLE_PAIRS", 4)):
        monkeypatch.setattr(f"rwm_fast.training.run.{name}", count)


@pytest.fixture
def at_image(monkeypatch):
    """Runs something when a step begins at a given number of images."""

    def arrange(wanted: int, action):
        step = Trainer.step

        def wrapped(self, image, nimg, *rest):
            terms = step(self, image, nimg, *rest)
            return action(terms) or terms if nimg == wanted else terms

        monkeypatch.setattr(Trainer, "step", wrapped)

    return arrange


def press_ctrl_c(terms):
    os.kill(os.getpid(), signal.SIGINT)


def final_state(folder) -> dict:
    return torch.load(sorted((folder / "checkpoints").iterdir())[-1], weights_only=True)


def test_a_run_leaves_everything_it_promises(tiny, tmp_path):
    config, out = tiny(), tmp_path / "run"
    report = train(config, out)
    assert Config.from_json((out / "config.json").read_text()) == config
    assert json.loads((out / "report.json").read_text())["scores"].keys() == report["scores"].keys()
    assert json.loads((out / "pictures.json").read_text())["pictures"] == 12
    samples = sorted(path.name for path in (out / "samples").iterdir())
    assert samples == ["000000020.png", "000000040.png"]
    with Image.open(out / "samples" / samples[0]) as grid:
        assert grid.height == 10 * 128  # ten rows
    with Image.open(out / "curves.png") as curves:
        assert curves.width > 100
    log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [r["nimg"] for r in log if "loss/patch" in r] == list(range(4, 41, 4))
    assert [r["nimg"] for r in log if "score/swap_closer" in r] == [20, 40]
    assert sorted(p.name for p in (out / "checkpoints").iterdir()) == [
        "best.pt",
        "state-000000020.pt",
        "state-000000040.pt",
    ]
    editor = RegionEditor.from_checkpoint(out)
    assert editor.reconstruct(torch.zeros(1, 3, 16, 16)).shape == (1, 3, 16, 16)
    assert "23.9 and more" in report["not_judged"] and report["kimg"] == 0.04


@pytest.mark.parametrize("step_order", ["shared", "alternate"])
def test_an_interrupted_run_goes_on_bit_for_bit(tiny, tmp_path, at_image, monkeypatch, step_order):
    config = tiny(
        dict(content_jitter=1.0),
        step_order=step_order,
        reconstruction_fraction=0.2,
        decay_fraction=0.3,
    )
    train(config, tmp_path / "straight")
    with monkeypatch.context():
        at_image(16, press_ctrl_c)
        assert train(config, tmp_path / "halved") is None
    monkeypatch.undo()
    monkeypatch.setattr("rwm_fast.training.run.REPORT_PAIRS", 6)
    assert final_state(tmp_path / "halved")["nimg"] == 20
    assert train(config, tmp_path / "halved") is not None
    straight, halved = (final_state(tmp_path / name) for name in ("straight", "halved"))
    for name in straight.keys() - {"clock"}:
        assert same(straight[name], halved[name]), name


def test_a_finished_run_is_not_trained_again(tiny, tmp_path, monkeypatch):
    config = tiny(kimg=0.008)
    train(config, tmp_path)
    monkeypatch.setattr(Trainer, "step", None)
    assert train(config, tmp_path)["kimg"] == 0.008


def test_a_run_can_be_made_longer_but_not_different(tiny, tmp_path):
    config = tiny(kimg=0.008)
    train(config, tmp_path)
    longer = replace(config, train=replace(config.train, kimg=0.012))
    assert train(longer, tmp_path)["kimg"] == 0.012
    other = replace(config, loss=replace(config.loss, patch=0.25))
    with pytest.raises(UserError, match="loss.patch 0.5 there, 0.25 here"):
        train(other, tmp_path)


def test_a_torn_newest_checkpoint_costs_its_steps_only(tiny, tmp_path, caplog):
    config = tiny(kimg=0.016, checkpoint_kimg=0.008)
    train(config, tmp_path)
    newest = sorted((tmp_path / "checkpoints").iterdir())[-1]
    newest.write_bytes(newest.read_bytes()[:1000])
    with caplog.at_level(logging.WARNING, "rwm_fast"):
        assert train(config, tmp_path)["kimg"] == 0.016
    assert "going back" in caplog.text
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [r["nimg"] for r in log if "loss/patch" in r] == [4, 8, 12, 16]


@pytest.fixture
def from_image(monkeypatch):
    """Changes the terms of every step that begins at a number of images, or later."""

    def arrange(first: int, change, last: int = 10**9):
        step = Trainer.step

        def wrapped(self, image, nimg, *rest):
            terms = step(self, image, nimg, *rest)
            return change(terms) if first <= nimg <= last else terms

        monkeypatch.setattr(Trainer, "step", wrapped)

    return arrange


def broken(terms):
    return terms | {"patch": torch.tensor(float("nan"))}


def records(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_steps_that_are_not_finite_are_counted_and_too_many_end_the_run(tiny, tmp_path, from_image):
    from_image(24, broken, last=28)
    train(tiny(), tmp_path)
    last = [r for r in records(tmp_path) if "loss/reconstruction" in r][-1]
    assert last["skipped_steps"] == 2
    assert [r["nimg"] for r in records(tmp_path) if r.get("not_finite/patch")] == [28, 32]
    from_image(48, broken)
    with pytest.raises(NotFiniteError, match=r"\d steps in a row were not finite \(patch\); saved"):
        train(tiny(kimg=1.0), tmp_path)


def test_a_gradient_that_is_not_finite_changes_nothing(tiny, tmp_path, monkeypatch):
    """The weights that a run is left with are those of before."""
    config = tiny(kimg=1.0, checkpoint_kimg=0.02, keep_checkpoints=0)
    calls = []

    def breaks(terms):
        calls.append(0)
        return total(terms) * (float("nan") if len(calls) > 11 else 1)

    monkeypatch.setattr("rwm_fast.training.trainer.total", breaks)
    with pytest.raises(NotFiniteError, match="steps in a row"):
        train(config, tmp_path)
    newest = final_state(tmp_path)
    assert newest["nimg"] > 40  # and it was saved
    before = torch.load(tmp_path / "checkpoints" / "state-000000020.pt", weights_only=True)
    assert all(same(newest[n], before[n]) for n in ("encoder", "generator", "discriminator"))


def test_divergence_is_seen_before_it_is_saved_and_its_advice_can_be_followed(tiny, tmp_path):
    config = tiny(kimg=0.2, checkpoint_kimg=0.004)
    train(replace(config, train=replace(config.train, kimg=0.02)), tmp_path)
    wild = replace(config, train=replace(config.train, learning_rate=1e3))
    with pytest.raises(DivergedError, match="times its usual .*last good state is .*--precision"):
        train(wild, tmp_path)
    assert all(abs(w).max() < 1e5 for w in final_state(tmp_path)["encoder"].values())
    tame = replace(config, train=replace(config.train, learning_rate=1e-5, kimg=0.024))
    assert train(tame, tmp_path)["kimg"] == 0.024
    changes = [r["changed"] for r in records(tmp_path) if "changed" in r]
    assert changes[-1]["train.learning_rate"] == [1e3, 1e-5]


def test_broken_parameters_are_never_saved(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(Trainer, "broken_parameter", lambda self: "generator.x")
    with pytest.raises(NotFiniteError, match="generator.x is not finite; nothing was saved yet"):
        train(tiny(), tmp_path)
    assert not (tmp_path / "checkpoints").exists()


def test_a_time_budget_ends_a_run(tiny, tmp_path, monkeypatch):
    """By a clock that goes on with every look at it: how busy the machine is says nothing."""
    look = itertools.count(0.0, 0.0625).__next__
    monkeypatch.setattr("rwm_fast.training.run.Clock", partial(Clock, now=look))
    report = train(tiny(seconds=8.0, kimg=1e6, sample_seconds=2.0), tmp_path)
    assert 8.0 <= report["seconds"] < 10.0
    assert len(list((tmp_path / "samples").iterdir())) >= 4


def test_photos_are_trained_on_and_scored_without_truth(tiny, tmp_path):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for k in range(3):
        Image.new("RGB", (30, 20 + k), (80 * k, 100, 50)).save(pictures / f"{k}.png")
    config = tiny(kimg=0.008)
    config = replace(config, data=replace(config.data, sources=(str(pictures),), workers=0))
    report = train(config, tmp_path / "run")
    assert "passed" not in report and "swap_closer" not in report["scores"]
    assert report["scores"]["reconstruction_l1"] > 0
    assert report["pairs"] == 6  # three photos, each with the two others


def test_random_numbers_of_a_step_depend_on_seed_and_images_alone():
    draw = lambda *key: torch.rand(4, generator=step_generator(*key))
    assert torch.equal(draw(1, 8), draw(1, 8))
    assert not torch.equal(draw(1, 8), draw(1, 16))
    assert not torch.equal(draw(1, 8), draw(2, 8))
