"""`python -m benchmarks.gpu` without a GPU: a CPU stands in for one, and small rows for large."""

import copy
import importlib
import itertools
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent.parent
sys.path.append(str(ROOT))  # last: the installed rwm_fast is tested
main = importlib.import_module("benchmarks.gpu.__main__")
checks = importlib.import_module("benchmarks.gpu.checks")
device = importlib.import_module("benchmarks.gpu.device")
measure = importlib.import_module("benchmarks.gpu.measure")
networks = importlib.import_module("benchmarks.gpu.networks")
outside = importlib.import_module("benchmarks.gpu.outside")
report = importlib.import_module("benchmarks.gpu.report")
rows = importlib.import_module("benchmarks.gpu.rows")
store = importlib.import_module("benchmarks.gpu.store")
supervise = importlib.import_module("benchmarks.gpu.supervise")
tally = importlib.import_module("benchmarks.gpu.tally")
worker = importlib.import_module("benchmarks.gpu.worker")

QUICK = measure.Plan(0.001, 2, 2)
CPU = torch.device("cpu")


def new_store(folder):
    found = store.Store(folder / "results.json")
    found.begin({"name": "a CPU"}, {"device": {}, "software": {}, "commit": "", "started": ""})
    return found


def new_worker(folder, **more):
    more = {"deadline": time.time() + 100, "tiny": True, "plan": QUICK, **more}
    return worker.Worker(new_store(folder), device.Cpu(), **more)


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
        assert list(found)[:6] == [*rows.COLUMNS]
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
        assert all(line.count("|") == len(report.OTHERS) + 7 for line in lines)
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
        lambda data: data["parts"]["ceilings"]["rows"]["copy"].update(run=7),
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
    data["parts"]["ceilings"]["rows"]["copy"].update(bytes=100, seconds={"copy": spread})
    row = {"dtype": "float32", "work": {"total": {"bytes": 50, "flops": 10**9}}}
    row["columns"] = {"ours": {"seconds": {"total": spread}}}
    assert report.share(data, row, "total") == "50%"  # 50 bytes at 100 a second, in one second
    product = data["parts"]["ceilings"]["rows"]["bfloat16"]
    product.update(flops=10**9, seconds={"product": dict.fromkeys(report.SPREAD, 0.8)})
    assert report.share(data, row | {"dtype": "bfloat16"}, "total") == "80%"
    assert report.share({**data, "parts": {}}, row, "total") == "–"


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
    row = rows.tiny(CPU)["operators"][1]

    class Forgetful(device.Cpu):
        """Its graphs do not compute the last gradient."""

        def capture(self, call):
            replay, kept = super().capture(call)
            if isinstance(kept[0], tuple):
                kept[0][-1].zero_()
            return replay, kept

    assert row.allowed("published", {})["x"] > row.allowed("ours", {})["x"] >= 2e-6
    with pytest.raises(measure.Wrong, match="bias is off .* in a replayed graph"):
        measure.prepare(row, "ours", Forgetful(), {})
    timed, facts = measure.prepare(row, "ours", device.Cpu(), {})
    assert facts["within_bar"] and set(timed.graphs) == {"forward", "total"}


def test_small_calls_rotate_among_sets_of_inputs():
    """Sets differ, all of them are called, and together they outgrow the cache."""
    row = rows.tiny(CPU)["operators"][1]
    place = device.Cpu()
    place.cache = row.work()["total"]["bytes"]
    timed, facts = measure.prepare(row, "ours", place, {})
    assert timed.count == 3 and facts["backend"] in ("native", "reference")
    answers = timed.eager["total"]()
    assert len(answers) == 3 and not torch.equal(answers[0][0], answers[1][0])
    place.cache *= 1000
    assert row.sets(place.cache) == rows.MOST_SETS


def test_a_clock_that_is_handed_in_is_read():
    """Ten seconds a call, whatever the machine does; two sets of inputs share them."""
    ticks = itertools.count(0, 10)
    timed = measure.Timed(device.Cpu(now=lambda: next(ticks)), 2, graphs={"total": list})
    assert timed.measure() == {"total": 5.0}


# ---- time, death, going on


def test_the_time_is_kept_and_the_next_run_goes_on(tmp_path):
    """Each row takes a minute on this clock: two fit, and the next worker does the others."""
    minutes = itertools.count()
    first = new_worker(tmp_path, deadline=150, now=lambda: 60 * next(minutes))
    assert not first.run(["ceilings"])
    done = first.store.rows("ceilings")
    assert list(done) == ["copy", "bfloat16", "float16"]
    assert report.pending(first.store.data) == [
        "ceilings: tf32",
        "ceilings: conv 3x3 8 -> 8 @ 8 B=2",
    ]
    before = copy.deepcopy(done)
    second = new_worker(tmp_path)
    assert second.run(["ceilings"])
    found = second.store.rows("ceilings")
    assert len(found) == 5 and {name: found[name] for name in before} == before
    assert {row["run"] for row in found.values()} == {0, 1}


def test_what_the_networks_need_may_be_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "benchmarks.gpu.networks", None)
    monkeypatch.delattr("benchmarks.gpu.networks")
    work = new_worker(tmp_path)
    assert work.run(["networks"])
    row = work.store.rows("networks")["networks"]
    assert "networks" in row["skipped"] and report.problems(work.store.data) == []
    assert f"| networks | {row['skipped']} |" in report.markdown(report.checked(work.store.data))


def test_a_row_needs_the_time_it_usually_takes(tmp_path):
    work = new_worker(tmp_path, deadline=10, now=lambda: 9)
    work.tiny = False
    work.tasks = lambda part: iter([worker.Task("long", dict, 5)])
    assert not work.run(["ceilings"]) and not work.store.has("ceilings", "long")


DIES = """
import os, signal, sys
from pathlib import Path
from benchmarks.gpu.store import Store
store = Store(Path(sys.argv[sys.argv.index("--store") + 1]))
store.plan("layers", ["one", "two"])
for row in ("one", "two"):
    for column in ("good", "bad"):
        if store.has("layers", row) or column in store.crashed("layers", row):
            continue
        store.mark("layers", row, column)
        if (row, column) == ("one", "bad"):
            os.kill(os.getpid(), signal.SIGKILL)
    store.has("layers", row) or store.put("layers", row, {"columns": {}})
"""


def test_a_killed_worker_costs_one_column(tmp_path, monkeypatch):
    """The next worker leaves out what the first died in, and repeats nothing that was finished."""
    script = tmp_path / "dies.py"
    script.write_text(DIES)
    found = new_store(tmp_path)
    crew = supervise.Crew(found, tmp_path / "log.txt")
    real = subprocess.Popen

    def start(command, **more):
        return real([sys.executable, str(script), *command[3:]], **more)

    monkeypatch.setattr(subprocess, "Popen", start)
    crew.work(["layers"], time.time() + 60)
    assert set(found.rows("layers")) == {"one", "two"}
    assert found.crashed("layers", "one") == {"bad": "it died of SIGKILL"}
    assert found.crashed("layers", "two") == {}


def test_a_worker_that_hangs_is_ended(tmp_path, monkeypatch):
    found = new_store(tmp_path)
    found.mark("layers", "one", "slow")
    real, started = subprocess.Popen, []

    def start(command, **more):
        hangs = [sys.executable, "-c", "import time; time.sleep(60)" if not started else ""]
        started.append(real(hangs, **more))
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", start)
    supervise.Crew(found, tmp_path / "log.txt", stall=0.3).work(["layers"], time.time() + 60)
    assert found.crashed("layers", "one") == {"slow": "it hung: no word for 0 s"}
    assert [process.poll() is not None for process in started] == [True, True]


def test_several_workers_share_the_rows(tmp_path):
    """Each has a file of its own; one that a killed run left behind is taken over."""
    one, two = new_store(tmp_path), store.Store(tmp_path / "share-0.json")
    two.data = copy.deepcopy(one.data)
    one.put("check", "a", {"cases": 1})
    two.put("check", "b", {"cases": 2})
    one.take(two.path)
    assert set(one.rows("check")) == {"a", "b"} and not two.path.exists()
    share = [worker.Worker(one, device.Cpu(), 0, True, share=(i, 2)) for i in range(2)]
    for work in share:
        work.deadline = time.time() + 100
        work.tasks = lambda part: iter([worker.Task(n, lambda: {"cases": 0}, 0) for n in "abcde"])
    assert share[0].run(["check"])
    assert set(one.rows("check")) == {"a", "b", "c", "e"}
    assert share[1].run(["check"]) and set(one.rows("check")) == set("abcde")


def test_a_file_is_never_half_written(tmp_path, monkeypatch):
    found = new_store(tmp_path)
    before = found.path.read_text()
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        found.put("check", "a", {"cases": 1})
    assert found.path.read_text() == before


def test_another_device_is_refused(tmp_path):
    found = new_store(tmp_path)
    with pytest.raises(store.Mixed, match="name must be 'a CPU' .*, got 'an H200'"):
        found.begin({"name": "an H200"}, {})


# ---- the parts that other programs do


def test_tests_are_known_the_next_time(tmp_path):
    """Outcomes are kept line by line; a test without one took its process with it."""
    file = tmp_path / "test_three.py"
    file.write_text(
        "import os, pytest\n"
        "def test_good(): pass\n"
        "def test_bad(): assert 1 == 2\n"
        "def test_dies(): os._exit(9)\n"
        "def test_skipped(): pytest.skip('not today')\n"
    )
    found = new_store(tmp_path)
    outside.Outside(found, tmp_path).tests(time.time() + 60, (str(file),), "test")
    row = found.rows("tests")["tests"]
    assert (row["passed"], row["failed_tests"], row["complete"]) == (1, 2, True)
    assert row["skipped_tests"] == {"skipped: not today": 1}
    said = {name.split("::")[1]: reason for name, reason in row["failures"].items()}
    assert said == {
        "test_bad": "failed: assert 1 == 2",
        "test_dies": "failed: the process died in it",
    }
    assert report.problems(found.data) == ["tests: tests: 2 failed"]


def test_large_tests_share_a_process():
    large = "tests/gpu/test_cuda_kernels.py::test_beyond_two_to_the_31[bias_act-native]"
    small = [f"tests/ops/test_ops.py::test_equals_reference[{i}]" for i in range(99)]
    assert tally.share_of(large, 6) == 0
    assert {tally.share_of(name, 6) for name in small} == set(range(6))


@pytest.mark.parametrize(
    ("status", "output", "key"),
    [
        (0, "12 calls ran on native\n========= ERROR SUMMARY: 0 errors", "errors"),
        (9, "12 calls ran on native\n========= ERROR SUMMARY: 3 errors", "failed"),
        (0, "12 calls ran\n========= RACECHECK SUMMARY: 2 hazards displayed (2 errors)", "failed"),
        (0, "========= ERROR SUMMARY: 0 errors", "failed"),  # nothing ran: nothing is proved
        (1, "========= Device not supported. Please refer to ...", "skipped"),
        (None, "", "skipped"),
    ],
)
def test_what_the_sanitizer_says(status, output, key):
    assert key in outside.verdict(status, output)


def test_without_the_sanitizer_there_is_a_reason(tmp_path, monkeypatch):
    monkeypatch.setattr(outside, "find_sanitizer", lambda: None)
    found = new_store(tmp_path)
    outside.Outside(found, tmp_path).sanitizer(time.time())
    assert len(found.rows("sanitizer")) == 8 and report.problems(found.data) == []


# ---- the command


def test_the_command_from_end_to_end(tmp_path, capsys):
    """A worker process, the files it leaves, and that a second call repeats nothing."""
    command = ["--device", "cpu", "--out", str(tmp_path), "--parts", "ceilings,operators"]
    assert main.main(command) == 0
    before = json.loads((tmp_path / "results.json").read_text())
    assert {p.name for p in tmp_path.iterdir()} <= {
        "results.json", "results.md", "results.png", "log.txt"
    }  # fmt: skip
    assert "rows done: ceilings 5, operators 2; not yet: 0" in capsys.readouterr().out
    assert main.main([*command, "--minutes", "0.3"]) == 0
    after = json.loads((tmp_path / "results.json").read_text())
    assert after["parts"] == before["parts"] and len(after["runs"]) == 2


def test_checks_are_of_every_case(tmp_path, monkeypatch):
    """The largest error is kept, and a wrong result is a problem."""
    work = new_worker(tmp_path)
    assert work.run(["check"])
    found = work.store.rows("check")
    assert all(row["cases"] > 5 and not row["failed"] for row in found.values())
    assert 0 < found["bias_act native float32 1/2"]["worst"] < 1e-4
    assert report.problems(work.store.data) == []
    work.store.forget(lambda part, row: row.startswith("masked_l1 native float32"))
    compare, right = checks.compare, checks.compare.first_order
    turn = itertools.cycle((1.01, 1, 1))  # ours, the plain version, the truth
    scaled = lambda *a: (lambda by: [x * by for x in right(*a)])(next(turn))
    monkeypatch.setattr(compare, "first_order", scaled)
    assert work.run(["check"])
    assert found["masked_l1 native float32 1/2"]["failed"] > 5
    assert "off the float64 reference" in report.problems(work.store.data)[0]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_there_is_one_line(tmp_path, capsys):
    assert main.main(["--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr()
    assert said.out == "" and not (tmp_path / "out").exists()
    assert said.err.startswith("no CUDA device: ") and said.err.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "rule"),
    [
        (["--parts", "layers,lairs"], "--parts must be of build,.*, got lairs"),
        (["--device", "cpu", "--parts", "build"], "--device cpu has only check,"),
    ],
)
def test_unknown_parts_are_refused(words, rule, capsys):
    with pytest.raises(SystemExit):
        main.main(words)
    assert re.search(rule, capsys.readouterr().err)


def test_networks_are_checked_and_timed(tmp_path):
    work = new_worker(tmp_path)
    assert work.run(["networks"])
    found = columns(work.store.data, "networks")
    assert set(found["ours"]["seconds"]) == {"forward", "gpu", "eager forward"}
    assert found["ours"]["error"] < 1e-5
    assert report.checked(work.store.data)
    assert "| encode, paint demo, batch 1 float32 |" in report.markdown(work.store.data)


def test_a_network_may_be_as_far_off_as_the_plain_one():
    row = networks.InferenceRow("demo", 1, columns=networks.COLUMNS, title="encode, paint")
    networks.check(row, {"painted": 0.4}, {"painted": 0.1})
    networks.check(row, {"painted": 0.4}, {})  # the rewritten column itself
    with pytest.raises(measure.Wrong, match="off the float64 truth by 0.6, allowed 0.5"):
        networks.check(row, {"painted": 0.6}, {"painted": 0.1})
    with pytest.raises(measure.Wrong):
        networks.check(row, {"painted": float("inf")}, {})
