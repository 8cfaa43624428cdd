"""The short form of .ci/process_counts.py: a run of one process goes on in two."""

import importlib
from pathlib import Path

CI = Path(__file__).parents[2] / ".ci"


def test_a_run_of_one_process_goes_on_in_two(tmp_path, monkeypatch):
    """With the same pictures, to weights that differ by float32 rounding."""
    monkeypatch.syspath_prepend(str(CI))
    counts = importlib.import_module("process_counts")
    row = counts.gone_on(tmp_path, 1, 2)
    assert row.same_pictures and row.close, row
    assert row.apart < 1e-4  # of weights up to 1, after three steps
