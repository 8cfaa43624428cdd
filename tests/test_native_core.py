"""What all C++ kernels stand on: 16-bit conversions, threads, the choice of instructions."""

import os
import subprocess
import sys

import pytest
import torch

from rwm_fast.ops import _extension, _memory, _torch_private

native = _extension.cpu()
pytestmark = pytest.mark.skipif(native is None, reason=str(_extension.why_not_cpu()))

EVERY_HALF = torch.arange(-(2**15), 2**15).to(torch.int16)  # every 16-bit pattern


def hard_floats():
    """Random bit patterns, every float16 and its neighbours, and the ends of the ranges."""
    generator = torch.Generator().manual_seed(0)
    bits = torch.randint(-(2**31), 2**31, (500_000,), generator=generator)
    halves = EVERY_HALF.view(torch.float16).float()
    brains = EVERY_HALF.view(torch.bfloat16).float()
    up, down = torch.tensor(float("inf")), torch.tensor(-float("inf"))
    around = [torch.nextafter(x, to) for x in (halves, brains) for to in (up, down)]
    middle = [(x[:-1] + x[1:]) / 2 for x in (halves, brains)]  # ties
    ends = torch.tensor([65519.0, 65520.0, 65521.0, 2.0**-24, 2.0**-25, 2.0**-25 * 1.0001, 3.4e38])
    return torch.cat(
        [bits.to(torch.int32).view(torch.float32), halves, brains, *around, *middle, ends, -ends]
    )


def python(code, **environment):
    """What another process prints; an error if it hangs."""
    command, env = [sys.executable, "-c", code], {**os.environ, **environment}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("dtype", _memory.DTYPE_CODES, ids=str)
def test_conversions_are_those_of_torch(dtype):
    x = hard_floats()
    converted, back = torch.empty_like(x, dtype=dtype), torch.empty_like(x)
    addresses = (t.data_ptr() for t in (x, converted, back))
    native.convert_probe(*addresses, x.numel(), _memory.DTYPE_CODES[dtype])
    expected = x.to(dtype)
    torch.testing.assert_close(converted, expected, rtol=0, atol=0, equal_nan=True)
    numbers = ~expected.isnan()  # the sign of a NaN is nobody's promise
    assert torch.equal(converted.signbit()[numbers], expected.signbit()[numbers])
    torch.testing.assert_close(back, expected.float(), rtol=0, atol=0, equal_nan=True)


def test_the_thread_pool_is_torch_s():
    assert _torch_private.c_function("torch_parallel_for") != 0
    before = torch.get_num_threads()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            assert native.num_threads() == count
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("serial", [False, True])
def test_every_item_runs_once_and_errors_come_out(serial):
    functions = ("torch_parallel_for", "torch_get_num_threads")
    run, count = map(_torch_private.c_function, functions)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    native.set_thread_pool(*(0, 0) if serial else (run, count))
    try:
        for size, grain in ((0, 1), (1, 1), (1000, 10), (1000, 0), (10, 1000)):
            assert native.parallel_probe(size, grain, -1) == size
        for place in (0, 499, 500, 999):
            with pytest.raises(ValueError, match=f"parallel_probe: asked to fail at {place}"):
                native.parallel_probe(1000, 10, place)
    finally:
        native.set_thread_pool(run, count)
        torch.set_num_threads(before)


def test_a_torch_without_parallel_for_is_no_address():
    assert _torch_private.c_function("torch_parallel_for_of_the_future") == 0


def test_the_instruction_set_can_be_lowered_and_not_raised():
    names = ("baseline", "avx2", "avx512")
    best = names.index(native.detected_isa())
    before = native.isa()
    try:
        for name in names[: best + 1]:
            native.set_isa(name)
            assert native.isa() == name
        for name in names[best + 1 :]:
            with pytest.raises(ValueError, match="this CPU has no AVX"):
                native.set_isa(name)
        with pytest.raises(ValueError, match="expected baseline, avx2 or avx512, got sse9"):
            native.set_isa("sse9")
    finally:
        native.set_isa(before)


@pytest.mark.parametrize(
    ("value", "answer"), [("baseline", "baseline"), ("sse9", "RWM_FAST_CPU_ISA: expected baseline")]
)
def test_the_environment_lowers_the_instruction_set(value, answer):
    code = "from rwm_fast.ops import _extension as e\ntry: print(e.cpu().isa())\n"
    code += "except ValueError as error: print(error)"
    assert python(code, RWM_FAST_CPU_ISA=value).startswith(answer)


def test_a_forked_worker_does_not_hang():
    """What a DataLoader worker does: fork after parallel work, then set one thread."""
    code = (
        "import os, torch\n"
        "from rwm_fast.ops import _extension\n"
        "work = lambda: _extension.cpu().parallel_probe(1 << 20, 1, -1)\n"
        "torch.set_num_threads(2); work()\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    torch.set_num_threads(1)\n"
        "    os._exit(0 if work() == 1 << 20 else 1)\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )
    assert python(code).strip() == "0"
