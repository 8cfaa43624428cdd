"""What chooses among the regions around a click, fitted again."""

import importlib
import sys
from pathlib import Path

import numpy as np
import torch

sys.path.append(str(Path(__file__).parent.parent.parent))  # last: the installed rwm_fast is tested
drawn = importlib.import_module("benchmarks.click")
fitting = importlib.import_module("benchmarks.click_fit")


def test_the_fit_finds_what_decides_and_is_the_same_again():
    """Of each click's regions the one whose second number is nearest to 0 is true."""
    random = torch.Generator().manual_seed(0)
    x = torch.rand(60, 8, 3, generator=random) * 2 - 1
    true = x[:, :, 1].abs().argmin(1)
    overlap = torch.nn.functional.one_hot(true, 8).double()
    samples = [fitting.Sample(*pair, 1.0) for pair in zip(x.double(), overlap, strict=True)]
    rows = fitting.fit(samples)
    table = np.array(rows)
    scores = np.tanh(x.numpy() @ table[:, 2:].T + table[:, 1]) @ table[:, 0]
    assert (scores.argmax(1) == true.numpy()).mean() > 0.8
    assert fitting.fit(samples) == rows


def test_clicks_fall_into_their_regions_and_are_the_same_again():
    image, places = drawn.clicks(3)
    found = list(places)
    assert image.shape == (1, 3, 256, 256) and found
    assert all(click.truth[click.y, click.x] for click in found)
    again = [(click.x, click.y) for click in drawn.clicks(3)[1]]
    assert again == [(click.x, click.y) for click in found]
