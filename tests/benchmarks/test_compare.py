"""Our column of another revision: a small tree beside git's files, and a process that runs it."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import rwm_fast

ROOT = Path(__file__).parent.parent.parent
sys.path.append(str(ROOT))  # last: the installed rwm_fast is tested
compare = importlib.import_module("benchmarks.compare")
measure = importlib.import_module("benchmarks.measure")
rows = importlib.import_module("benchmarks.rows")
timing = importlib.import_module("benchmarks.timing")

PACKAGE = Path(rwm_fast.__file__).parent
ROW = "bias_act 4x64x64x64 float32"


def git(folder, *arguments):
    identity = ("-c", "user.name=a", "-c", "user.email=a@b.c")
    subprocess.run(("git", "-C", str(folder), *identity, *arguments), check=True)


@pytest.fixture
def checkout(tmp_path):
    """A repository whose package is a stub without native code to build."""
    (tmp_path / "rwm_fast").mkdir()
    (tmp_path / "rwm_fast/__init__.py").write_text("")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "one")
    return tmp_path


@pytest.fixture
def remote(request):
    started = []

    def start(folder):
        started.append(compare.Remote(folder, {}))
        return started[-1]

    yield start
    for each in started:
        each.close()


def test_a_revision_is_laid_out_once(checkout):
    commit = compare.commit_of("HEAD", checkout)
    folder = compare.tree_of(commit, print, checkout)
    assert (folder / "rwm_fast/__init__.py").exists() and folder.name == commit
    (folder / "seen").touch()
    assert compare.tree_of(commit, pytest.fail, checkout) == folder and (folder / "seen").exists()
    assert [p.name for p in folder.parent.iterdir()] == [commit]


def test_what_cannot_be_compared_is_said(checkout, tmp_path_factory):
    with pytest.raises(compare.CannotCompare, match="git knows no such commit"):
        compare.commit_of("no-such-branch", checkout)
    with pytest.raises(compare.CannotCompare, match="is no git checkout"):
        compare.commit_of("HEAD", tmp_path_factory.mktemp("plain"))
    (checkout / "setup.py").write_text("raise SystemExit('no compiler today')")
    git(checkout, "add", ".")
    git(checkout, "commit", "-qm", "two")
    said = []
    with pytest.raises(compare.CannotCompare, match="does not build(.|\n)*no compiler today"):
        compare.tree_of(compare.commit_of("HEAD", checkout), said.append, checkout)
    assert "building" in said[0] and not list((checkout / ".git/rwm_fast-benchmarks").iterdir())
    git(checkout, "rm", "-rq", "rwm_fast")
    git(checkout, "commit", "-qm", "three")
    with pytest.raises(compare.CannotCompare, match="has no package rwm_fast"):
        compare.tree_of(compare.commit_of("HEAD", checkout), print, checkout)


def test_a_version_without_the_operator_lacks_the_column(checkout, remote):
    found, lacking = compare.build_all({"old": remote(checkout)}, ROW, False, 1)
    assert not found and "rwm_fast.ops" in lacking["old"]


def test_a_process_that_ends_is_said(tmp_path, remote):
    (tmp_path / "rwm_fast").mkdir()
    (tmp_path / "rwm_fast/__init__.py").write_text("raise SystemExit(7)")
    assert remote(tmp_path).build(ROW, False, 1) == "its process ended with status 7"


def test_a_column_of_another_process_takes_its_turns(remote):
    there = remote(PACKAGE.parent)
    extra, lacking = compare.build_all({"REV": there}, ROW, False, 1)
    assert extra == {"REV": there} and not lacking
    plan, evict = measure.Plan(seconds=0.0), lambda: None
    result = measure.measure(rows.row(ROW), plan, evict, extra=extra, names=["ours"])
    assert set(result["columns"]) == {"ours", "REV"} and set(result["ratios"]) == {"REV"}
    assert 0.05 < result["ratios"]["REV"]["total"]["median"] < 20
    assert result["columns"]["REV"]["seconds"].keys() == {"forward", "total"}


def test_tables_name_the_revision_and_the_threads():
    report = importlib.import_module("benchmarks.report")
    spread = {"median": 2.0, "p20": 1.0, "p80": 3.0}
    row = {
        "name": "a row", "dtype": "float32", "threads": 1, "clock": timing.CPU,
        "work": {"total": {"bytes": 8, "flops": 8}}, "missing": {},
        "columns": {n: {"seconds": {"total": spread}} for n in ("ours", "v1")},
        "ratios": {"v1": {"total": spread}},
    }  # fmt: skip
    found = {
        "version": 1, "allocator": {}, "software": {"torch": torch.__version__},
        "machine": {"cpu": "x", "features": [], "cores": 2}, "compared": {"v1": "f" * 40},
        "ceilings": {"gigabytes_per_second": 1.0, "gigaflops_float32": 1.0},
        "ceilings_by_threads": {"2": {"gigabytes_per_second": 1.0, "gigaflops_float32": 4e-9}},
        "rows": [row, {**row, "threads": 2, "clock": timing.WALL}],
    }  # fmt: skip
    lines = report.markdown(report.checked(found)).splitlines()
    assert "| v1 |" in lines[2] and lines[3].count("|") == lines[2].count("|")
    assert lines[4].startswith("| a row |") and "2.00× (1.00–3.00)" in lines[4]
    assert lines[5].startswith("| a row, 2 threads |") and lines[5].endswith("| 100% |")
