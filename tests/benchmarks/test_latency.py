"""The rows of what an edit costs: all columns agree, and kept codes cost the generator alone."""

import importlib
import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parent.parent.parent))  # last: the installed rwm_fast is tested
latency = importlib.import_module("benchmarks.latency")
row_module = importlib.import_module("benchmarks.rows.row")


@pytest.fixture
def row(monkeypatch):
    monkeypatch.setattr(row_module, "COMPILE", False)
    return latency.LatencyRow("photos", side=64)


def test_columns_agree_and_a_wrong_one_is_found(row, monkeypatch):
    for column in ("ours", "eager", "compiled"):
        built = row.build(column)
        truth = row.truth(built.truth)
        assert set(truth) == {"total", latency.KEPT}
        row_module.gate(row, column, built.answers(), truth, {})
    assert not torch.equal(truth["total"], truth[latency.KEPT])
    assert row.work()["total"].flops > row.work()[latency.KEPT].flops > 0
    crooked = {name: value + 1e-3 for name, value in truth.items()}
    with pytest.raises(row_module.Wrong, match="ours is wrong"):
        row_module.gate(row, "ours", crooked, truth, {})


def test_kept_codes_run_the_generator_once_and_no_encoder(row, monkeypatch):
    called = []
    make = row.editor

    def counted(*arguments):
        editor = make(*arguments)
        for name, network in (("encoder", editor.encoder), ("generator", editor.generator)):
            entry = "features" if name == "encoder" else "forward"
            inner = getattr(network, entry)
            record = lambda *a, inner=inner, name=name, **k: called.append(name) or inner(*a, **k)
            monkeypatch.setattr(network, entry, record)
        return editor

    monkeypatch.setattr(row, "editor", counted)
    calls = row.calls("ours", torch.float32, 1)[0][0].calls
    called.clear()
    calls["total"]()
    assert sorted(called) == ["encoder", "encoder", "generator"]
    called.clear()
    calls[latency.KEPT]()
    assert called == ["generator"]


def test_the_exported_networks_serve_an_editor(row):
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name, reason="extra onnx is not installed")
    built = row.build("onnxruntime")
    row_module.gate(row, "onnxruntime", built.answers(), row.truth(built.truth), {})
