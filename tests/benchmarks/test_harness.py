"""What the benchmark tables rest on: ratios, orders, the check of a results file, the gate."""

import copy
import importlib
import json
import sys
from pathlib import Path

import pytest
import torch

from rwm_fast import modulated_conv2d

ROOT = Path(__file__).parent.parent.parent
sys.path.append(str(ROOT))  # last: the installed rwm_fast is tested
published = importlib.import_module("benchmarks.published")
rewritten = importlib.import_module("benchmarks.rewritten")
report = importlib.import_module("benchmarks.report")
timing = importlib.import_module("benchmarks.timing")
rows = importlib.import_module("benchmarks.rows")
row_module = importlib.import_module("benchmarks.rows.row")

RESULTS = sorted((ROOT / "benchmarks/results").glob("*.json"))


def test_ratios_are_taken_inside_a_round():
    assert timing.ratios([2.0, 20.0, 6.0], [1.0, 10.0, 2.0]).median == 2.0
    found = timing.spread([5.0, 1.0, 3.0, 2.0, 4.0])
    assert found == (3.0, pytest.approx(1.8), pytest.approx(4.2))


def test_every_column_takes_every_place():
    orders = [timing.order("abc", k) for k in range(6)]
    assert all(sorted(o) == ["a", "b", "c"] for o in orders)
    assert {(o.index(c), c) for o in orders for c in "abc"} == {
        (k, c) for k in range(3) for c in "abc"
    }


@pytest.mark.parametrize("path", RESULTS, ids=lambda p: p.stem)
def test_committed_results_are_whole(path):
    assert report.checked(json.loads(path.read_text()))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda r: r.pop("machine"),
        lambda r: r["rows"].append(r["rows"][0]),
        lambda r: r["rows"][0]["columns"].pop("ours"),
        lambda r: r["rows"][0]["ratios"].popitem(),
        lambda r: r["rows"][0]["columns"]["ours"]["seconds"]["total"].update(median=-1.0),
    ],
)
def test_a_broken_file_is_refused(spoil):
    results = copy.deepcopy(json.loads(RESULTS[0].read_text()))
    spoil(results)
    with pytest.raises(report.BadResults):
        report.checked(results)


SMALL = [row for row in rows.all_rows() if row.group != "networks" and "512" not in row.name][:6]


@pytest.mark.parametrize("row", SMALL, ids=lambda r: r.name)
def test_a_wrong_column_is_not_timed(row):
    truth = {"result": torch.ones(3, dtype=torch.float64)}
    row.terms = {"result": 1}
    row.gradients = ()
    right, wrong = {"result": torch.ones(3)}, {"result": torch.tensor([1.0, 1.0, 1.1])}
    assert row_module.gate(row, "ours", right, truth, "", 0.0) == 0
    with pytest.raises(row_module.Wrong):
        row_module.gate(row, "ours", wrong, truth, "", 0.0)


def test_both_emulations_are_the_modulated_convolution():
    g = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64)
    x, w, s, taps = draw(2, 4, 8, 8), draw(6, 4, 3, 3), draw(2, 4), draw(4).abs()
    for settings in ({}, {"up": 2, "resample_filter": taps / taps.sum()}):
        ours = modulated_conv2d(x, w, s, padding=1, **settings)
        for theirs in (published, rewritten):
            torch.testing.assert_close(
                theirs.modulated_conv2d(x, w, s, padding=1, **settings), ours
            )
