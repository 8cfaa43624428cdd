"""Day and night against the truth: every direction is of the times that it names."""

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch

from rwm_fast.config import PRESETS
from rwm_fast.data import landscapes
from rwm_fast.models import Encoder, Generator, save_weights
from rwm_fast.training.pairs import SPLITS, landscape_pairs

sys.path.append(str(Path(__file__).parent.parent.parent))  # last: the installed rwm_fast is tested
times = importlib.import_module("benchmarks.times")


def test_pairs_are_of_the_times_asked_for():
    pairs = landscape_pairs("report", 3, 16, ("night", "day"))
    scene, look = (first + 2 for first in SPLITS["report"])
    night, day = (landscapes.style([k], time=t) for k, t in ((scene, "night"), (look, "day")))
    content, _ = landscapes.render(landscapes.content([scene]), night, 16)
    truth, _ = landscapes.render(landscapes.content([scene]), day, 16)
    torch.testing.assert_close(pairs.content[2:], content)
    torch.testing.assert_close(pairs.truth[2:], truth)
    with pytest.raises(ValueError, match="time must be one of"):
        landscape_pairs("report", 1, 16, ("noon", ""))


def test_every_direction_is_scored(tmp_path, capsys):
    config = PRESETS["demo"]
    networks = Encoder(config.model), Generator(config.model)
    save_weights(tmp_path / "weights.safetensors", *networks, config)
    times.main(str(tmp_path), 4)
    ways = {f"{a} -> {b}" for a in times.TIMES for b in times.TIMES}
    report = json.loads((tmp_path / "truth.json").read_text())
    assert set(report) == ways
    assert report["day -> night"]["swap_nothing"] > 2 * report["day -> day"]["swap_nothing"]
    assert {p.name for p in tmp_path.glob("*.png")} == {
        f"truth-{a}-{b}.png" for a in times.TIMES for b in times.TIMES
    }
    assert all(f"{way}, 4 pairs\n" in capsys.readouterr().out for way in [min(ways)])
