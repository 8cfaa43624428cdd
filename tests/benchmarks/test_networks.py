"""Rows of whole networks: every column computes its own truth, and a wrong one is found."""

import importlib
import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parent.parent.parent))  # last: the installed rwm_fast is tested
columns = importlib.import_module("benchmarks.rows.columns")
networks = importlib.import_module("benchmarks.rows.networks")
published = importlib.import_module("benchmarks.published")
rewritten = importlib.import_module("benchmarks.rewritten")
row_module = importlib.import_module("benchmarks.rows.row")


def test_a_style_at_a_time_is_another_function_than_blended_styles_only_at_borders():
    g = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64)
    regions = torch.zeros(1, 2, 8, 12, dtype=torch.float64)
    regions[:, 0, :, :5], regions[:, 1, :, 5:] = 1, 1
    settings = {"noise_strength": draw(()), "bias": draw(6), "activation": "lrelu", "gain": 1.5}
    arguments = (draw(1, 4, 8, 12), draw(6, 4, 3, 3), draw(1, 2, 4), draw(1, 1, 8, 12))
    call = lambda f: f(*arguments, padding=1, regions=regions, **settings)
    theirs = call(published.modulated_conv2d)
    per_style = call(rewritten.a_style_at_a_time(rewritten.modulated_conv2d))
    blended = call(rewritten.modulated_conv2d)
    torch.testing.assert_close(theirs, per_style, rtol=1e-12, atol=1e-12)
    away = [0, 1, 2, 3, 6, 7, 8, 9, 10, 11]  # columns whose windows lie in one region
    torch.testing.assert_close(blended[..., away], per_style[..., away], rtol=1e-12, atol=1e-12)
    assert ((blended - per_style)[..., 4:6].abs() > 1e-2).any()


@pytest.mark.parametrize(
    "row",
    [
        networks.EditRow("demo", 1, title="edit"),
        networks.R1Row("demo", 2, columns=("published", "rewritten", "ours"), title="R1 step"),
    ],
    ids=lambda row: row.title,
)
def test_columns_pass_the_gate_and_wrong_ones_do_not(row, monkeypatch):
    for column in ("published", "rewritten", "ours"):
        built = row.build(column)
        truth, plain = row.truth(built.truth), {"any": 1e-6}
        row_module.gate(row, column, built.answers(), truth, plain)
    activate = published.bias_act
    crooked = lambda *a, **k: 1.0001 * activate(*a, **k)
    monkeypatch.setattr(published, "bias_act", crooked)
    with pytest.raises(row_module.Wrong, match="published in float64"):
        row.check_formula("published")


def test_operations_are_those_of_convolutions_and_products():
    image, weight = torch.randn(2, 3, 8, 8), torch.randn(5, 3, 3, 3)
    call = lambda: torch.nn.functional.conv2d(image, weight)
    assert columns.operations(call) == 2 * (2 * 6 * 6) * 5 * 27


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")  # its own, while it compiles
def test_the_compiled_column_compiles_all_but_r1(monkeypatch):
    """`set_stance` holds from the moment it is made, which once left everything eager."""
    monkeypatch.setattr(columns, "compiled", lambda function: function)  # it sets global options
    graphs = []
    backend = lambda graph, inputs: graphs.append(graph) or graph.forward
    double = torch.compile(lambda x: 2 * x, backend=backend)
    trainer = columns.make_trainer(networks.preset("demo"), "compiled", torch.float32)
    double(torch.ones(1))
    assert len(graphs) == 1
    trainer.method.nets.discriminator.forward = lambda image: double(image).sum((1, 2, 3))
    image, weights = torch.zeros(2, 3, 64, 64), trainer.schedule.all().r1
    trainer.method.r1_terms(image, networks.random_source(), weights)
    assert len(graphs) == 1
    double(torch.ones(2))
    assert len(graphs) == 2


def test_a_common_iteration_has_no_r1():
    row = networks.TrainingRow("demo", 2, title="training step", common=True)
    steps, answers = row.calls("ours", torch.float32, 2)
    assert [step.weight for step in steps] == [1.0]
    found = answers()
    assert "d_real" in found and "reconstruction" in found and "r1" not in found
