"""The build's decisions that need no compiler: CUDA targets, switches, programs, sources."""

import importlib.util
import re
from pathlib import Path

import pytest

pytest.importorskip("setuptools", reason="setup.py needs it")

ROOT = Path(__file__).parent.parent
SPEC = importlib.util.spec_from_file_location("rwm_fast_setup", ROOT / "setup.py")
build = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(build)

KNOWN = {"75", "80", "86", "89", "90", "100", "120"}  # of nvcc 13.0


@pytest.mark.parametrize(
    ("spec", "names"),
    [
        ("8.0", "sm_80 ptx80"),
        ("80 90a", "sm_80 sm_90a ptx80"),
        ("sm_90a", "sm_90a ptx80"),
        ("8.0;8.6,9.0a 12.0", "sm_80 sm_86 sm_90a sm_120 ptx80"),
        ("7.5", "sm_75 ptx75"),  # the lowest target below 80
        ("8.6+PTX", "sm_86 ptx80 ptx86"),
        ("9.0a+PTX", "sm_90a ptx80 ptx90a"),
        ("10.0 10.0", "sm_100 ptx80"),
        (build.DEFAULT_ARCHS, "sm_80 ptx80"),
        (build.ALL_ARCHS, "sm_80 sm_86 sm_89 sm_90a sm_100 sm_120 ptx80"),
    ],
)
def test_cuda_targets(spec, names):
    flags, got, notes = build.parse_archs(spec, KNOWN)
    assert " ".join(got) == names
    assert notes == []
    assert len(flags) == len(got)
    for flag, name in zip(flags, got, strict=True):
        number = name.removeprefix("sm_").removeprefix("ptx")
        code = f"sm_{number}" if name.startswith("sm") else f"compute_{number}"
        assert flag == f"-gencode=arch=compute_{number},code={code}"


def test_cuda_targets_that_nvcc_does_not_know_are_dropped_and_named():
    _, names, notes = build.parse_archs("7.0 8.0", KNOWN)
    assert names == ["sm_80", "ptx80"]
    assert notes == ["7.0 dropped, this nvcc does not know it"]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("7.0", "nothing left of '7.0'"),
        ("fast", "cannot read 'fast'"),
    ],
)
def test_cuda_targets_refused(spec, message):
    with pytest.raises(build.CompileError, match=message):
        build.parse_archs(spec, KNOWN)


@pytest.mark.parametrize(
    ("shown", "spec"),
    [("9.0\n9.0\n", "9.0a"), ("8.6\n12.0\n", "12.0 8.6"), ("", ""), ("N/A\n", "")],
)
def test_visible_gpus(monkeypatch, shown, spec):
    monkeypatch.setattr(build, "output", lambda *command: shown)
    assert build.visible_gpus() == spec


def test_the_environment_says_which_targets(monkeypatch):
    monkeypatch.setattr(build, "visible_gpus", lambda: "9.0a")
    answers = {"--list-gpu-code": "sm_80\nsm_90\n", "--version": "release 13.0, V13.0.88"}
    monkeypatch.setattr(build, "output", lambda *command: answers[command[-1]])
    monkeypatch.delenv("RWM_FAST_CUDA_ARCHS", raising=False)
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)
    assert build.cuda_targets(["nvcc"])[1] == "nvcc 13.0 for sm_90a ptx80"
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "7.0;9.0a+PTX")
    assert build.cuda_targets(["nvcc"])[1] == (
        "nvcc 13.0 for sm_90a ptx80 ptx90a; 7.0 dropped, this nvcc does not know it"
    )
    monkeypatch.setenv("RWM_FAST_CUDA_ARCHS", "8.0")
    assert build.cuda_targets(["nvcc"])[1] == "nvcc 13.0 for sm_80 ptx80"


def refuse():
    raise build.Skipped("a reason")


def test_switches(monkeypatch, capsys):
    def obeying(value, make):
        monkeypatch.setenv("RWM_FAST_EXT", value)
        return build.obeying("RWM_FAST_EXT", make)

    for value in ("", "auto", "1"):
        assert obeying(value, lambda: ("a.so", "g++ 12")) == ("a.so", "built with g++ 12")
    for value in ("", "auto"):
        assert obeying(value, refuse) == (None, "not built: a reason")
    assert obeying("0", lambda: 1 / 0) == (None, "not built: RWM_FAST_EXT=0")
    with pytest.raises(build.CompileError, match="^RWM_FAST_EXT=1: a reason$"):
        obeying("1", refuse)
    with pytest.raises(build.CompileError, match="RWM_FAST_EXT must be auto, 1 or 0, got 'yes'"):
        obeying("yes", refuse)


def without_programs(monkeypatch):
    for name in ("CXX", "RWM_FAST_NVCC", "CUDACXX", "CUDA_HOME", "CUDA_PATH", "RWM_FAST_EXT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(build.shutil, "which", lambda name: None)


def test_no_compiler_and_no_nvcc_are_reasons(monkeypatch):
    without_programs(monkeypatch)
    with pytest.raises(build.Skipped, match=r"no C\+\+ compiler on PATH"):
        build.make_cpu()
    with pytest.raises(build.Skipped, match="no nvcc in RWM_FAST_NVCC"):
        build.make_cuda()


def test_no_cuda_module_without_the_c_module(monkeypatch):
    monkeypatch.setenv("RWM_FAST_EXT", "0")
    for value in ("auto", "0"):
        monkeypatch.setenv("RWM_FAST_CUDA", value)
        words = build.obeying("RWM_FAST_CUDA", lambda: 1 / 0)[1]
        assert words == f"not built: RWM_FAST_{'CUDA' if value == '0' else 'EXT'}=0"
    monkeypatch.setenv("RWM_FAST_CUDA", "1")
    with pytest.raises(build.CompileError, match="^RWM_FAST_CUDA=1: RWM_FAST_EXT=0$"):
        build.obeying("RWM_FAST_CUDA", lambda: 1 / 0)


def test_a_program_is_the_first_that_is_named_and_must_exist(monkeypatch):
    monkeypatch.setattr(build.shutil, "which", lambda name: {"g++": "/bin/g++"}.get(name))
    assert build.program(["ONE", "TWO"], ["c++", "g++"]) == ["/bin/g++"]
    assert build.program(["ONE", "TWO"], ["c++"]) is None
    monkeypatch.setenv("TWO", "g++ -m64")
    assert build.program(["ONE", "TWO"], ["c++", "g++"]) == ["g++", "-m64"]
    monkeypatch.setenv("ONE", "/nowhere/compiler")
    with pytest.raises(build.CompileError, match="ONE=/nowhere/compiler: there is no such program"):
        build.program(["ONE", "TWO"], ["g++"])


def requirements(text):
    """name -> the rest, of lines such as "torch>=2.10,<2.15"."""
    return dict(re.findall(r"^\W*([\w-]+)((?:==|>=)[\d.,<]+)", text, re.MULTILINE))


def test_dependencies_admit_what_was_tested_and_the_constraints_pin_it():
    text = (ROOT / "pyproject.toml").read_text()
    declared = requirements(text.partition("\ndependencies = [")[2].partition("\n]")[0])
    assert declared.pop("torch") == ">=2.10,<2.15"
    assert declared
    tested = requirements((ROOT / "constraints.txt").read_text())
    oldest = requirements((ROOT / ".ci/oldest.txt").read_text())
    assert tested["torch"] == "==2.13.0"
    assert oldest["torch"] == "==2.10.0"
    for name, floor in declared.items():
        assert tested[name].startswith("=="), name
        assert oldest[name].removesuffix(".0") == floor.replace(">=", "==").removesuffix(".0"), name
