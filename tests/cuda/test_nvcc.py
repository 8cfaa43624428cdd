"""nvcc compiles every CUDA source for every target without a warning and without a spill.

A source that passed for all targets, with the same nvcc and the same headers, is in the record
beside this file: it is compiled for FEW of them. To compile and record all anew:

    RWM_FAST_TEST_WRITE_GATES=1 pytest -m cuda_gates -k test_no_warnings_no_spills
"""

import json
import os
import re
from pathlib import Path

import nvcc
import pytest
import simulator
from test_machine import HERE

pytestmark = pytest.mark.cuda_gates

# Kernels that with whole vectors do nothing but 16-byte stores.
WIDE = "upfirdn2d::|masked_l1::(backward|mask_backward)|bias_act::forward|crop_patches::forward"
WIDE += "|^split_store"

SOURCES = [s for s in simulator.SOURCES if s.suffix == ".cu"]
RECORD = Path(__file__).with_name("nvcc.json")
WRITE = os.environ.get("RWM_FAST_TEST_WRITE_GATES") == "1"
FEW = "80 90a"  # what is built by default, and the one with wgmma


def recorded():
    return json.loads(RECORD.read_text()) if RECORD.exists() else {}


@pytest.fixture(scope="module")
def compiler():
    found = nvcc.find()
    if found is None:
        pytest.skip("no nvcc (RWM_FAST_NVCC, CUDACXX, CUDA_HOME, PATH)")
    return found


def check(kernels, failed):
    """The gate."""
    assert not failed, "\n".join(failed)
    bad = [k for k in kernels if k.spills or k.stack]
    assert not bad, "kernels that use local memory:\n" + "\n".join(map(str, bad))
    bad = [k for k in kernels if re.search(WIDE, k.name) and k.width > 1 and {*k.stores} != {16}]
    assert not bad, "kernels that do not store 16 bytes at once:\n" + "\n".join(map(str, bad))


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.parent.name)
def test_no_warnings_no_spills(compiler, source):
    op, key = source.parent.name, nvcc.key(compiler, source)
    same = recorded().get(op) == key and not WRITE
    kernels, failed = nvcc.compile_all(compiler, [source], FEW if same else None)
    print("\n".join(["registers of a thread", *nvcc.table(kernels)]))
    check(kernels, failed)
    targets = {k.target for k in kernels}
    found = [sorted(k.name for k in kernels if k.target == target) for target in targets]
    assert all(one == found[0] for one in found), "not every target has every kernel"
    assert any(k.name.startswith(f"{op}::") for k in kernels)
    if WRITE:
        RECORD.write_text(json.dumps({**recorded(), op: key}, indent=1, sort_keys=True) + "\n")


def test_a_change_of_what_is_compiled_has_another_key(compiler, monkeypatch):
    source, read, keys = SOURCES[0], Path.read_text, {nvcc.key(compiler, SOURCES[0])}
    for name in (source.name, "cuda.cuh"):  # itself, and a header of a header
        monkeypatch.setattr(Path, "read_text", lambda p, n=name: read(p) + "\n" * (p.name == n))
        keys.add(nvcc.key(compiler, source))
    monkeypatch.undo()
    monkeypatch.setattr(nvcc, "STRICT", [])
    keys.add(nvcc.key(compiler, source))
    assert len(keys) == 4


def test_spills_are_caught(compiler, tmp_path):
    source = tmp_path / "spilled.cu"
    source.write_text(f'#define RWM_SPILLED\n#include "{HERE / "faulty.cu"}"\n')
    kernels, failed = nvcc.compile_all(compiler, [source], "80")
    assert any("spilled_kernel" in k.name and k.spills for k in kernels)
    with pytest.raises(AssertionError, match="local memory"):
        check(kernels, failed)


def test_split_stores_are_caught(compiler, tmp_path):
    source = tmp_path / "split.cu"
    source.write_text(f'#define RWM_SPLIT\n#include "{HERE / "faulty.cu"}"\n')
    kernels, failed = nvcc.compile_all(compiler, [source], "80")
    with pytest.raises(AssertionError, match="16 bytes at once"):
        check(kernels, failed)


def test_warnings_are_caught(compiler, tmp_path):
    source = tmp_path / "unused.cu"
    source.write_text("__global__ void kernel(int* x) { int unused; *x = 1; }\n")
    kernels, failed = nvcc.compile_all(compiler, [source], "80")
    with pytest.raises(AssertionError, match="unused"):
        check(kernels, failed)


def test_right_kernels_pass_the_gate(compiler):
    kernels, failed = nvcc.compile_all(compiler, [HERE / "faulty.cu"], "80 90a")
    check(kernels, failed)
    assert {k.target for k in kernels} == {"80", "90a"}
