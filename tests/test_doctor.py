"""The doctor tells what runs, why the rest does not, and what is broken."""

import os
import re
import subprocess
import sys

import pytest
import torch

from rwm_fast import doctor
from rwm_fast.models import pretrained
from rwm_fast.ops import _dispatch, _extension
from rwm_fast.ops.bias_act import eager

OPS = (*_dispatch.OPS, *_dispatch.MADE_OF)


def run(**environment):
    """The doctor in a process of its own: exit status, stdout, stderr."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    command = [sys.executable, "-m", "rwm_fast.doctor"]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


def test_a_sound_installation_exits_0_and_explains_every_no():
    status, out, err = run()
    assert (status, err) == (0, ""), out + err
    assert out.endswith("Nothing is broken.\n")
    assert f"torch {torch.__version__}" in out
    assert re.search(r"AVX2 (yes|no), AVX-512 (yes|no), AMX-bf16 (yes|no)", out)
    assert re.search(r"GPU( 0)?: .+", out)
    assert re.search(r"_C: (built with|not built: ).+", out)
    assert re.search(r"_cuda: (built with|not built: ).+", out)
    for op in OPS:
        assert len(re.findall(rf"^  {op} +cpu +(?:float32|bfloat16) .*yes\*", out, re.M)) == 2, op
        on_gpu = re.findall(rf"^  {op} +cuda +(\w+) +(\S+) +(\S+) +(\S+)", out, re.M)
        assert on_gpu, op
        if not torch.cuda.is_available():  # every backend's reason, a row an operator
            assert [dtype for dtype, *_ in on_gpu] == ["all"]
            assert all(cell.startswith("no[") for cell in on_gpu[0][1:])
    cited = set(re.findall(r"no\[(\d+)\]", out))
    assert cited == set(re.findall(r"^  \[(\d+)\] \w+", out, re.M))


def test_the_weights_that_came_with_it_are_named_and_checked(tmp_path, monkeypatch):
    problems = []
    told = list(doctor.weights(problems))
    assert [line.split(":")[0] for line in told] == pretrained.names() and not problems
    content = bytearray(pretrained.resolve(pretrained.DEFAULT).read_bytes())
    content[-100] ^= 1
    (tmp_path / "mine.safetensors").write_bytes(content)
    monkeypatch.setattr(pretrained, "FOLDER", tmp_path)
    assert list(doctor.weights(problems)) == []
    assert len(problems) == 1 and "mine.safetensors: damaged" in problems[0]
    (tmp_path / "mine.safetensors").unlink()
    assert list(doctor.weights(problems)) == [] and problems[1] == f"no weights in {tmp_path}"


def test_the_request_for_a_backend_shows_in_the_table():
    status, out, _ = run(RWM_FAST_BACKEND="eager")
    assert status == 0
    assert "backend asked for: eager" in out
    rows = re.findall(r"^  (?:\w+) +cpu +float32 .*$", out, re.M)
    assert len(rows) == len(OPS)
    assert all(row.split()[-1] == "yes*" for row in rows)


def test_an_unknown_backend_is_one_sentence_and_exit_status_2():
    status, _, err = run(RWM_FAST_BACKEND="quick")
    assert status == 2
    assert "RWM_FAST_BACKEND: backend must be one of" in err
    assert "Traceback" not in err


@pytest.fixture
def fresh(monkeypatch):
    """Modules are looked for again, and once more after the test."""
    for found in (_extension.cpu, _extension.why_not_cpu):
        found.cache_clear()
    yield
    for found in (_extension.cpu, _extension.why_not_cpu):
        found.cache_clear()


def test_a_module_that_does_not_load_is_broken(monkeypatch, capsys, fresh):
    broken = _extension.Extension(None, "_C does not load: no libfoo", broken=True)
    monkeypatch.setattr(_extension, "load_cpu", lambda: broken)
    assert doctor.main([]) == 1
    out = capsys.readouterr().out
    assert "BROKEN: _C does not load: no libfoo" in out
    assert "Nothing is broken" not in out


def test_a_module_that_was_not_built_is_a_reason_and_not_broken(monkeypatch, capsys, fresh):
    absent = _extension.Extension(None, "_C is not built: no C++ compiler on PATH")
    monkeypatch.setattr(_extension, "load_cpu", lambda: absent)
    assert doctor.main([]) == 0
    assert re.search(r"\[\d\] .*no C\+\+ compiler on PATH", capsys.readouterr().out)


def test_a_wrong_answer_is_broken(monkeypatch, capsys):
    right, calls = eager.forward, []

    def wrong(call):
        calls.append(call)
        right(call)
        if len(calls) % 2 == 0:  # every second run
            call.y.mul_(1.5)

    monkeypatch.setattr(eager, "forward", wrong)
    assert doctor.main([]) == 1
    out = capsys.readouterr().out
    assert re.search(r"BROKEN: bias_act on \w+: differs from the eager backend", out)


def test_a_missing_package_is_broken_and_a_missing_extra_is_not(monkeypatch):
    def version(name):
        if name in ("triton", "tqdm"):
            raise doctor.metadata.PackageNotFoundError(name)
        return "1.0"

    monkeypatch.setattr(doctor.metadata, "version", version)
    problems = []
    lines = list(doctor.versions(problems))
    assert problems == ["the package tqdm is not installed"]
    assert any(line.startswith("triton not installed (optional") for line in lines)


@pytest.mark.skipif(_extension.cpu() is None, reason=str(_extension.why_not_cpu()))
def test_cpu_features_agree_with_the_native_module():
    _, features = doctor.cpu()
    if features:
        native = _extension.cpu().cpu_features()
        assert features["AVX2"] == native["avx2"]
        assert features["AMX-bf16"] == native["amx_bf16"]
