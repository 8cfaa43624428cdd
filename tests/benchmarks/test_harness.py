"""What the benchmark tables rest on: ratios, orders, the check of a results file, the gate."""

import dataclasses
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
device = importlib.import_module("benchmarks.device")
measure = importlib.import_module("benchmarks.measure")
report = importlib.import_module("benchmarks.report")
shared_machine = importlib.import_module("benchmarks.shared_machine")
rows = importlib.import_module("benchmarks.rows")
row_module = importlib.import_module("benchmarks.rows.row")

RESULTS = sorted((ROOT / "benchmarks/results").glob("*.json"))


def test_ratios_are_taken_inside_a_round():
    assert measure.ratios([2.0, 20.0, 6.0], [1.0, 10.0, 2.0]).median == 2.0
    found = measure.spread([5.0, 1.0, 3.0, 2.0, 4.0])
    assert found == (3.0, pytest.approx(1.8), pytest.approx(4.2))


def test_every_column_takes_every_place():
    orders = [measure.order("abc", k) for k in range(6)]
    assert all(sorted(o) == ["a", "b", "c"] for o in orders)
    assert {(o.index(c), c) for o in orders for c in "abc"} == {
        (k, c) for k in range(3) for c in "abc"
    }


@pytest.mark.parametrize("path", RESULTS, ids=lambda p: p.stem)
def test_committed_results_are_whole(path):
    found = report.checked(json.loads(path.read_text()))
    text = report.markdown(found)
    assert "GFLOP/s" in text and not report.problems(found)


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks/results/threads").glob("*.json")))
def test_committed_threads_are_their_table(path):
    found = json.loads(path.read_text())
    text = shared_machine.table(found["rows"], found["cores"])
    assert text == path.with_suffix(".md").read_text()


SMALL = [row for row in rows.all_rows() if row.group != "networks" and "512" not in row.name][:6]


@pytest.mark.parametrize("row", SMALL, ids=lambda r: r.name)
def test_a_wrong_column_is_not_timed(row):
    row.case = dataclasses.replace(row.case, gradients=())
    truth = {"result": torch.ones(3, dtype=torch.float64)}
    right, wrong = {"result": torch.ones(3)}, {"result": torch.tensor([1.0, 1.0, 1.1])}
    assert row_module.gate(row, "ours", right, truth, {}) == {"result": 0}
    with pytest.raises(row_module.Wrong):
        row_module.gate(row, "ours", wrong, truth, {})


def test_a_cpu_without_matrix_units_can_say_that_it_has_them():
    """So that its bfloat16 rows are run somewhere, on the way that they take with them."""
    row = next(row for row in rows.all_rows(tiny=True) if row.name.startswith("down x2"))
    row = dataclasses.replace(row, dtype="bfloat16", _made={}, _truths={})
    with device.matrix_units():
        assert row.skip() is None
        names = ("published", "rewritten", "ours", "ceiling")
        plan = measure.Plan(seconds=0, least_rounds=1, most_rounds=1)
        result = measure.measure(row, plan, device.Cpu(1), names=names, strict=True)
    assert result["columns"].keys() == set(names)
    assert bool(row.skip()) != device.has_amx_bf16()


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
