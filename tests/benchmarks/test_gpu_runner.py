"""`python -m benchmarks.gpu` without a GPU: what is kept, what goes on, what ends, what is said."""

import copy
import itertools
import json
import os
import re
import subprocess
import sys
import time

import pytest
import torch
from gpu_modules import (
    checks,
    device,
    main,
    new_store,
    new_worker,
    outside,
    report,
    store,
    supervise,
    tally,
    worker,
)


def test_the_time_is_kept_and_the_next_run_goes_on(tmp_path):
    """Each row takes a minute on this clock: two fit, and the next worker does the others."""
    minutes = itertools.count()
    first = new_worker(tmp_path, deadline=150, now=lambda: 60 * next(minutes))
    assert not first.run(["ceilings"])
    done = first.store.rows("ceilings")
    assert list(done) == ["triad", "bfloat16", "float16"]
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
    monkeypatch.setitem(sys.modules, "benchmarks.rows.networks", None)
    work = new_worker(tmp_path)
    assert work.run(["networks"])
    row = work.store.rows("networks")["networks"]
    assert "networks" in row["skipped"] and report.problems(work.store.data) == []
    assert f"| networks | skipped: {row['skipped']} |" in report.markdown(
        report.checked(work.store.data)
    )


def test_a_row_needs_the_time_it_usually_takes(tmp_path):
    work = new_worker(tmp_path, deadline=10, now=lambda: 9)
    work.tiny = False
    work.tasks = lambda part: iter([worker.Task("long", dict, 5)])
    assert not work.run(["ceilings"]) and not work.store.has("ceilings", "long")


DIES = """
import os, signal, sys
from pathlib import Path
from benchmarks.store import Store
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
    share = [worker.Worker(one, device.StandIn(), 0, True, share=(i, 2)) for i in range(2)]
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
        (["--device", "cpu", "--parts", "build"], "--device cpu has only ceilings,"),
    ],
)
def test_unknown_parts_are_refused(words, rule, capsys):
    with pytest.raises(SystemExit):
        main.main(words)
    assert re.search(rule, capsys.readouterr().err)
