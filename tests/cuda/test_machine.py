"""The fibre machine that stands for a GPU: right kernels come out right, each mistake is caught."""

import ctypes
import functools
import subprocess
import sys
from pathlib import Path

import pytest
import simulator

pytestmark = pytest.mark.cuda_sim

HERE = Path(__file__).parent
THREADS = 128
SEEDS = range(1, 9)


@functools.cache
def faulty():
    sources = [HERE / "faulty.cu", HERE / "library.cpp"]
    return simulator.load(simulator.build("faulty", sources, sanitized=simulator.SANITIZED))


@pytest.fixture(autouse=True)
def needs_a_compiler():
    if simulator.compiler() is None:
        pytest.skip("no g++ (CXX) to compile the CUDA sources with")


def run(name, blocks=1, seed=0):
    out = (ctypes.c_float * (blocks * THREADS))(*[-1.0] * (blocks * THREADS))
    faulty().set_seed(seed)
    getattr(faulty(), name)(ctypes.addressof(out), blocks)
    return list(out)


def alone(code, environment=None):
    """Run Python code in a process of its own, with this folder's modules."""
    code = f"import sys; sys.path.insert(0, {str(HERE)!r}); {code}"
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


REVERSED = [float(THREADS - 1 - t) for t in range(THREADS)] * 2


@pytest.mark.parametrize("seed", [0, *SEEDS])
def test_right_kernels(seed):
    assert run("reverse", 2, seed) == REVERSED
    assert run("turns", 2, seed) == [3.0] * 2 * THREADS


@pytest.mark.parametrize("seed", [0, *SEEDS])
def test_missing_barrier_reads_poison(seed):
    assert any(value != value for value in run("reverse_no_barrier", 2, seed))


def test_missing_barrier_between_turns():
    """No poison there: only the order of the warps tells."""
    wrong = [seed for seed in SEEDS if run("turns_no_barrier", 2, seed) != [3.0] * 2 * THREADS]
    assert len(wrong) >= len(SEEDS) - 1


def test_blocks_come_in_any_order():
    assert {run("last_block", 4, seed)[0] for seed in range(1, 30)} == {0.0, 1.0, 2.0, 3.0}


ABORTS = {
    "early_return": "divergent __syncthreads, some threads have returned",
    "two_barriers": "divergent __syncthreads",
    "half_warp": "a warp function without all 32 lanes",
    "past_shared": "write past the shared memory",
}


@pytest.mark.parametrize("name", ABORTS)
def test_abort(name):
    """In a process of its own: the machine stops it, and says why."""
    if simulator.SANITIZED:
        pytest.skip("the machine's own checks are tested without the sanitizers")
    faulty()
    done = alone(f"import test_machine; test_machine.run({name!r})")
    assert done.returncode < 0
    assert ABORTS[name] in done.stderr
