"""nvcc compiles every CUDA source for every target without a warning and without a spill."""

import re

import nvcc
import pytest
import simulator
from test_machine import HERE

pytestmark = pytest.mark.cuda_gates

# Kernels that with whole vectors do nothing but 16-byte stores.
WIDE = "upfirdn2d::|masked_l1::(backward|mask_backward)|bias_act::forward|crop_patches::forward"
WIDE += "|^split_store"


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


def test_no_warnings_no_spills(compiler):
    sources = [s for s in simulator.SOURCES if s.suffix == ".cu"]
    kernels, failed = nvcc.compile_all(compiler, sources)
    print("\n".join(["registers of a thread", *nvcc.table(kernels)]))
    check(kernels, failed)
    names = {k.name for k in kernels}
    targets = {k.target for k in kernels}
    found = [sorted(k.name for k in kernels if k.target == target) for target in targets]
    assert all(one == found[0] for one in found), "not every target has every kernel"
    for source in sources:
        assert any(name.startswith(f"{source.parent.name}::") for name in names)


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
