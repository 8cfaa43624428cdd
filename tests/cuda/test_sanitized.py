"""The CUDA kernels on the CPU once more, under AddressSanitizer and UndefinedBehaviorSanitizer.

torch allocates through malloc, which the sanitizer replaces: a read or write past a tensor is seen.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import simulator

pytestmark = pytest.mark.cuda_gates

HERE = Path(__file__).parent


def runtime(name):
    """Where the compiler keeps a library of its own; None if it has none."""
    answer = subprocess.run(
        [simulator.compiler(), f"-print-file-name={name}"], capture_output=True, text=True
    ).stdout.strip()
    return answer if os.path.isabs(answer) and os.path.exists(answer) else None


@pytest.fixture
def environment():
    if simulator.compiler() is None:
        pytest.skip("no g++ (CXX) to compile the CUDA sources with")
    libraries = [runtime(name) for name in ("libasan.so", "libubsan.so", "libstdc++.so")]
    if None in libraries:
        pytest.skip("the compiler has no sanitizers")
    return {
        **os.environ,
        "RWM_FAST_TEST_SANITIZED": "1",
        "LD_PRELOAD": " ".join(libraries),
        # Python keeps what it needs until the end; fibres have stacks of their own.
        "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "PYTHONMALLOC": "malloc",
        "OMP_NUM_THREADS": "1",
    }


def test_nothing_found(environment):
    """Every case in float32, channels innermost; those of whole vectors in bfloat16 too."""
    select = "test_equals_reference and (fp32_last or (bf16 and vectors))"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    command += ["-m", "cuda_sim", "-k", select]
    done = subprocess.run(
        [*command, str(HERE / "test_operators.py")], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]


@pytest.mark.parametrize(
    ("name", "message"),
    [("past_global", "heap-buffer-overflow"), ("past_shared", "heap-buffer-overflow")],
)
def test_mistake_is_found(environment, name, message):
    import test_machine

    done = test_machine.alone(f"import test_machine; test_machine.run({name!r})", environment)
    assert done.returncode != 0
    assert message in done.stderr
