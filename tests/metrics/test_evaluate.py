"""Scores of answers that are known: the truth, doing nothing, and real networks at the limits."""

from dataclasses import replace

import pytest
import torch

from rwm_fast.config import PRESETS
from rwm_fast.metrics.evaluate import Painted, Pairs, gate, paint, score
from rwm_fast.models import Encoder, Generator


@pytest.fixture
def pairs() -> Pairs:
    random = torch.Generator().manual_seed(0)
    content, style, truth = (torch.rand(4, 3, 64, 64, generator=random) * 2 - 1 for _ in range(3))
    mask = torch.zeros(4, 1, 64, 64)
    mask[:, :, :20] = 1
    return Pairs(content, style, mask, truth)


def painted(pairs: Pairs, swapped, edited) -> Painted:
    codes, styles = torch.ones(4, 2, 8, 8), torch.eye(4)
    return Painted(pairs.content, swapped, edited, codes, styles, styles.roll(1, 0), codes, styles)


def test_the_truth_passes(pairs):
    edited = pairs.content.lerp(pairs.truth, pairs.mask)
    result = score(pairs, painted(pairs, pairs.truth, edited))
    for name in ("swap_closer", "inside_closer", "content_retention"):
        assert result[name] == pytest.approx(1.0, abs=1e-5)
    for name in ("outside", "outside_far_detail", "outside_leak", "reconstruction_l1"):
        assert result[name] == 0
    assert result["swap_moved"] == pytest.approx(1.0)
    assert result["style_cosine_apart"] == 0
    assert all(line.passed for line in gate(result, quick=False))


def test_doing_nothing_fails(pairs):
    result = score(pairs, painted(pairs, pairs.content, pairs.content))
    assert result["swap_closer"] == result["inside_closer"] == result["swap_moved"] == 0
    lines = list(gate(result, quick=False))
    assert [line.passed for line in lines] == [True, False, False, False, False, True]
    assert lines[1].text == "swap_closer 0.000 (at least 0.65)"


def test_a_quick_run_is_asked_for_half_the_way(pairs):
    halfway = pairs.content.lerp(pairs.truth, 0.51)
    (line,) = gate(score(pairs, painted(pairs, halfway, halfway)), quick=True)
    assert line.passed and "0.510" in line.text


def test_without_truth_what_needs_it_is_left_out(pairs):
    blind = replace(pairs, truth=None)
    result = score(blind, painted(blind, pairs.style, pairs.content))
    assert "swap_closer" not in result and "outside_far" in result
    assert result["swap_from_content"] > 0


def test_an_edit_everywhere_is_the_swap_and_nowhere_the_reconstruction(pairs):
    """In float64: what is left in float32 is rounding, up to 1.2e-5."""
    torch.manual_seed(0)
    model = PRESETS["demo"].model
    networks = Encoder(model).double(), Generator(model).double()
    fields = {name: value.double() for name, value in vars(pairs).items()}
    pairs = Pairs(**fields)
    everywhere = paint(*networks, replace(pairs, mask=torch.ones_like(pairs.mask)), batch=3)
    torch.testing.assert_close(everywhere.edited, everywhere.swapped, rtol=0, atol=1e-12)
    nowhere = paint(*networks, replace(pairs, mask=torch.zeros_like(pairs.mask)), batch=3)
    torch.testing.assert_close(nowhere.edited, nowhere.reconstructed, rtol=0, atol=1e-12)
