"""Our column of another revision: a small tree beside git's files, and a process that runs it."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import rwm_fast

ROOT = Path(__file__).parent.parent.parent
sys.path.append(str(ROOT))  # last: the installed rwm_fast is tested
compare = importlib.import_module("benchmarks.compare")
device = importlib.import_module("benchmarks.device")
measure = importlib.import_module("benchmarks.measure")
rows = importlib.import_module("benchmarks.rows")

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
    found, lacking = compare.build_all({"old": remote(checkout)}, ROW, 1)
    assert not found and "'rwm_fast" in lacking["old"]


def test_a_process_that_ends_is_said(tmp_path, remote):
    (tmp_path / "rwm_fast").mkdir()
    (tmp_path / "rwm_fast/__init__.py").write_text("raise SystemExit(7)")
    assert remote(tmp_path).build(ROW, 1) == "its process ended with status 7"


def test_a_column_of_another_process_takes_its_turns(remote):
    there = remote(PACKAGE.parent)
    extra, lacking = compare.build_all({"REV": there}, ROW, 1)
    assert extra == {"REV": there} and not lacking
    plan, place = measure.Plan(seconds=0.0), device.Cpu(1)
    result = measure.measure(rows.by_name(ROW), plan, place, extra=extra, names=["ours"])
    assert set(result["columns"]) == {"ours", "REV"}
    theirs = result["columns"]["REV"]
    assert 0.05 < theirs["over_ours"]["total"]["median"] < 20
    assert theirs["seconds"].keys() == {"forward", "total"}


def test_tables_name_the_revision_and_the_threads():
    report = importlib.import_module("benchmarks.report")
    spread = {"median": 2.0, "p20": 1.0, "p80": 3.0}
    row = {
        "dtype": "float32", "threads": 1, "work": {"total": {"bytes": 8, "flops": 8}}, "run": 0,
        "columns": {
            "ours": {"seconds": {"total": spread}},
            "v1": {"seconds": {"total": spread}, "over_ours": {"total": spread}},
        },
    }  # fmt: skip
    second = {"run": 0, "flops": 0, "seconds": {"a": dict.fromkeys(report.SPREAD, 1.0)}}
    ceilings = {"triad": {**second, "bytes": 8}, "triad, 2 threads": {**second, "bytes": 4}}
    run = {"device": {}, "software": {}, "commit": "", "compared": {"v1": "f" * 40}}
    parts = {"ceilings": ceilings, "operators": {"a row": row}}
    parts["operators"]["a row, 2 threads"] = {**row, "threads": 2}
    found = {
        "version": 1, "identity": {}, "runs": [run], "crashed": {},
        "parts": {part: {"rows": rows} for part, rows in parts.items()},
    }  # fmt: skip
    lines = report.markdown(report.checked(found)).splitlines()
    head = next(line for line in lines if line.startswith("| row | ours | v1 | rate "))
    one, two = (line for line in lines if line.startswith("| a row"))
    assert one.count("|") == two.count("|") == head.count("|")
    assert one.startswith("| a row | 2 s | 2.00× (1.00–3.00) |") and "| 50% |" in one
    assert two.startswith("| a row, 2 threads |") and "| 100% |" in two
