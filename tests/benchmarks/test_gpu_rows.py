"""The rows of benchmarks.gpu: a CPU stands in for the GPU, and small rows for large."""

import copy
import dataclasses
import itertools
import json

import pytest
import torch
from gpu_modules import (
    CPU,
    device,
    measure,
    networks,
    new_worker,
    operators,
    report,
    row_module,
    rows,
)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A folder with ceilings, operators and layers of the small rows."""
    folder = tmp_path_factory.mktemp("measured")
    work = new_worker(folder)
    assert work.run(["ceilings", "operators", "layers"])
    return json.loads(work.store.path.read_text())


def columns(data, part="operators", row=0):
    return list(data["parts"][part]["rows"].values())[row]["columns"]


# ---- what a run leaves


def test_every_column_is_timed_or_says_why_not(measured):
    for part, row in itertools.product(("operators", "layers"), (0, 1)):
        found = columns(measured, part, row)
        assert list(found)[:6] == [*rows.GPU_COLUMNS]
        for name in ("rewritten", "published", "ours", "ours-native", "ceiling"):
            phases = found[name]["seconds"]
            assert set(phases) == {"forward", "total", "eager forward", "eager total"}, name
    assert {"per style", "one style"} <= set(columns(measured, "layers", 1))


def test_a_column_that_raises_is_recorded(measured):
    """Triton takes no CPU tensors: its column fails, and the row has all others."""
    found = columns(measured)["ours-triton"]
    assert set(found) == {"failed"}
    assert "triton runs on cuda, not on cpu tensors" in found["failed"]


def test_results_are_whole_and_make_a_table(measured):
    assert report.checked(measured) is measured
    text = report.markdown(measured)
    for name in ("masked_l1 2x3x16x16 float32", "regions K=2 8 -> 8 @ 8 B=2 float32"):
        lines = [line for line in text.splitlines() if line.startswith(f"| {name} |")]
        assert len(lines) == 4, "a line for each phase"
        heads = [line for line in text.splitlines() if line.startswith("| row | ours |")]
        assert {line.count("|") for line in lines} <= {line.count("|") for line in heads}
        assert all(" failed |" in line and "×" in line and "%" in line for line in lines[:2])
    assert report.problems(measured) == []


def test_what_of_ours_raises_is_a_problem_and_a_refusal_is_none(measured):
    data = copy.deepcopy(measured)
    columns(data)["ours-triton"]["failed"] = "RuntimeError: PTX"
    columns(data)["ours-native"]["graph_error"] = "RuntimeError: capture"
    columns(data)["published"]["graph_error"] = "RuntimeError: theirs"
    name = "operators: masked_l1 2x3x16x16 float32"
    assert report.problems(data) == [
        f"{name}: ours-native: RuntimeError: capture",
        f"{name}: ours-triton: RuntimeError: PTX",
    ]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: data.pop("identity"),
        lambda data: data.update(runs=[]),
        lambda data: columns(data).pop("ours"),
        lambda data: columns(data)["published"].pop("seconds"),
        lambda data: columns(data)["published"].update(failed="too"),
        lambda data: columns(data)["ours"]["seconds"]["total"].update(median=0.0),
        lambda data: columns(data)["ours"]["seconds"]["total"].pop("p20"),
        lambda data: data["parts"]["ceilings"]["rows"]["triad"].update(run=7),
    ],
)
def test_broken_results_are_refused(measured, spoil):
    data = copy.deepcopy(measured)
    spoil(data)
    with pytest.raises(report.BadResults):
        report.checked(data)


def test_shares_are_of_the_ceilings_of_the_same_device(measured):
    data = copy.deepcopy(measured)
    spread = dict.fromkeys(report.SPREAD, 1.0)
    data["parts"]["ceilings"]["rows"]["triad"].update(bytes=100, seconds={"triad": spread})
    row = {"dtype": "float32", "work": {"total": {"bytes": 50, "flops": 10**9}}}
    row["columns"] = {"ours": {"seconds": {"total": spread}}}
    assert report.roofline(data, row, "total") == "50%"  # 50 bytes at 100 a second, in one second
    product = data["parts"]["ceilings"]["rows"]["bfloat16"]
    product.update(flops=10**9, seconds={"product": dict.fromkeys(report.SPREAD, 0.8)})
    assert report.roofline(data, row | {"dtype": "bfloat16"}, "total") == "80%"
    assert report.roofline({**data, "parts": {}}, row, "total") == "–"


# ---- what must not be timed


def test_a_wrong_column_is_refused(tmp_path, monkeypatch):
    from benchmarks import published

    right = published.bias_act
    monkeypatch.setattr(published, "bias_act", lambda *a, **k: right(*a, **k) * 1.001)
    work = new_worker(tmp_path, only="bias_act")
    assert work.run(["operators"])
    found = columns(work.store.data)
    assert set(found["published"]) == {"wrong"}
    assert "off the float64 truth by 0.001" in found["published"]["wrong"]
    assert "seconds" in found["ours"] and "seconds" in found["rewritten"]
    assert ["published is wrong" in p for p in report.problems(work.store.data)] == [True]


def test_wrong_gradients_and_wrong_graphs_are_refused():
    row = list(rows.gpu_rows("operators", CPU, tiny=True))[1]

    class Forgetful(device.StandIn):
        """Its graphs do not compute the last gradient."""

        def capture(self, call):
            replay, kept = super().capture(call)
            if isinstance(kept[0], tuple):
                kept[0][-1].zero_()
            return replay, kept

    assert row.bounds("published", {})["x"] > row.bounds("ours", {})["x"] >= 2e-6
    with pytest.raises(measure.Wrong, match="bias is off .* in a replayed graph"):
        measure.prepare(row, "ours", Forgetful())
    timed, facts = measure.prepare(row, "ours", device.StandIn())
    assert facts["error"] <= operators.BARS["float32"]
    assert set(timed.graphs) == {"forward", "total"}


def test_small_calls_rotate_among_sets_of_inputs():
    """Sets differ, all of them are called, and together they outgrow the cache."""
    row = list(rows.gpu_rows("operators", CPU, tiny=True))[1]
    place = device.StandIn()
    place.cache = row.work()["total"].bytes
    timed, facts = measure.prepare(row, "ours", place)
    (step,) = timed.steps
    assert step.count == 3 and facts["backend"] in ("native", operators.BACKENDS["fallback"])
    answers = step.calls["total"]()
    assert len(answers) == 3 and not torch.equal(answers[0][0], answers[1][0])
    place.cache *= 1000
    assert row.sets(place.cache) == operators.MOST_SETS


def test_a_clock_that_is_handed_in_is_read():
    """Ten seconds a call, whatever the machine does; two sets of inputs share them."""
    ticks = itertools.count(0, 10)
    place = device.StandIn(now=lambda: next(ticks))
    timed = measure.Timed(place, [measure.Step({"total": list}, count=2)])
    assert timed.measure() == {"total": 5.0, "eager total": 5.0}


# ---- time, death, going on


def test_networks_are_checked_and_timed(tmp_path):
    work = new_worker(tmp_path)
    assert work.run(["networks"])
    training, painting = (columns(work.store.data, "networks", row) for row in (0, 1))
    assert set(training) == {"rewritten", "published", "ours"}
    assert set(painting["ours"]["seconds"]) == {"total", "eager total"}
    assert painting["ours"]["error"] < 1e-5
    assert report.checked(work.store.data)
    assert "| encode, paint demo, batch 1 float32 |" in report.markdown(work.store.data)


def test_half_steps_are_timed_alone_and_add_up():
    row = networks.TrainingRow("demo", 2, common=True, halves=True, checked=2, title="training")
    train = dataclasses.replace(row.config.train, step_order="alternate")
    row.config = dataclasses.replace(row.config, train=train)
    ticks = itertools.count(0, 10)
    place = device.StandIn(now=lambda: next(ticks))
    timed, facts = measure.prepare(row, "ours", place)
    assert facts["error"] < 1
    found = timed.measure()
    assert found["discriminators"] == found["autoencoder"] == 10
    assert found["total"] == found["eager total"] == 20


def test_a_network_may_be_as_far_off_as_the_plain_one():
    row = networks.InferenceRow("demo", 1, checked=1, title="encode, paint")
    exact = row.truth(networks.BLENDED)
    far = lambda by: {name: value * (1 + by) for name, value in exact.items()}
    gate = lambda by, plain: row_module.gate(row, "ours", far(by), exact, plain)
    gate(0.4, {"painted": 0.1})
    gate(0.4, {})  # the rewritten column itself
    with pytest.raises(row_module.Wrong, match="off the float64 truth by 0.6 .*, allowed 0.5"):
        gate(0.6, {"painted": 0.1})
    with pytest.raises(row_module.Wrong):
        gate(float("inf"), {})


def test_a_column_that_was_checked_is_not_checked_again(tmp_path, monkeypatch):
    """A row that was cut short keeps the facts of its columns; the next process times them."""
    prepare, gate, checked = measure.prepare, measure.gate, []

    def cut(row, column, *more):
        if column == "ours":
            raise KeyboardInterrupt
        return prepare(row, column, *more)

    with monkeypatch.context() as patch:
        patch.setattr(measure, "prepare", cut)
        with pytest.raises(KeyboardInterrupt):
            new_worker(tmp_path, only="bias_act").run(["operators"])
    told = lambda row, column, *more: checked.append(column) or gate(row, column, *more)
    monkeypatch.setattr(measure, "gate", told)
    work = new_worker(tmp_path, only="bias_act")
    assert work.run(["operators"])
    assert "ours" in checked and not {"published", "rewritten"} & set(checked)
    found = columns(work.store.data)
    assert all(
        "seconds" in found[name] and "error" in found[name] for name in ("ours", "published")
    )
    assert work.store.data["begun"] == {}


def test_the_time_ends_the_rounds_and_not_the_row(tmp_path):
    row = list(rows.gpu_rows("operators", CPU, tiny=True))[1]
    result = measure.measure(row, measure.Plan(deadline=0), device.StandIn(), names=["ours"])
    assert result["rounds"] == 1 and "seconds" in result["columns"]["ours"]
