"""What every `triton_kernels.py` needs on the host: whether Triton can serve a call; the launch.

Helpers that run inside kernels are in `_triton_jit.py`. A kernel runs on the current stream of its
tensors' device and nobody waits for it; after a first
call, which compiles it, it can be captured in a CUDA graph. Where the package is missing,
`_dispatch` says so: no `triton_kernels.py` can be imported then.
"""

from __future__ import annotations

import contextlib
import functools
from typing import Any

import torch

from rwm_fast.ops import _dispatch
from rwm_fast.ops._backend import Call

# Kernels run in Python on CPU tensors; Triton decides so when a kernel is defined.
INTERPRETED = _dispatch.INTERPRETED
LEAST_CAPABILITY = (8, 0)  # bfloat16 and asynchronous copies
DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def supports(call: Call) -> str | None:
    """What all Triton backends demand: None, or one sentence why not.

    CUDA tensors, from compute capability 8.0 on; or CPU tensors, if the interpreter is on and
    Triton was asked for by name: it is for tests, and far too slow to be chosen.
    """
    if call.dtype == torch.float64:
        return "the triton kernels compute in float32, not in float64"
    return _cuda_problem(call.device) if call.device.type == "cuda" else _cpu_problem()


def _cpu_problem() -> str | None:
    if not INTERPRETED:
        return "triton runs on CPU tensors only in its interpreter (TRITON_INTERPRET=1)"
    if _dispatch.requested() != "triton":
        return "triton's interpreter runs only when triton is asked for by name"
    return None


@functools.cache
def _cuda_problem(device: torch.device) -> str | None:
    if torch.version.hip:
        return "the triton kernels are made for NVIDIA GPUs"
    found = torch.cuda.get_device_capability(device)
    if found >= LEAST_CAPABILITY:
        return None
    wanted = ".".join(map(str, LEAST_CAPABILITY))
    return f"triton kernels need compute capability {wanted}, the GPU has {found[0]}.{found[1]}"


@functools.cache
def capability(device: torch.device) -> tuple[int, int]:
    """Compute capability of a GPU; the interpreter takes what a Hopper GPU takes."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else (9, 0)


def cdiv(a: int, b: int) -> int:
    """⌈a / b⌉."""
    return -(-a // b)


def pow2(n: int, most: int) -> int:
    """The least power of two of at least n, but no more than `most` (a power of two)."""
    return min(most, 1 << max(n - 1, 0).bit_length())


def launch(
    kernel,
    programs: int | tuple[int, ...],
    device: torch.device,
    *args: Any,
    warps: int = 4,
    stages: int = 1,
    **constants: Any,
) -> None:
    """Run a kernel on a grid: arguments by position, compile-time constants by name.

    Raises
    ------
    ValueError
        if the grid is empty: the caller decides what an empty tensor's result is.
    """
    grid = programs if isinstance(programs, tuple) else (programs,)
    if min(grid) < 1:
        raise ValueError(f"a kernel needs at least one program, got a grid of {grid}")
    with _current(device):
        kernel[grid](*args, num_warps=warps, num_stages=stages, **constants)


def _current(device: torch.device) -> contextlib.AbstractContextManager:
    """Triton launches on torch's current device, which need not be the tensors'."""
    if device.type != "cuda" or device.index == torch.cuda.current_device():
        return contextlib.nullcontext()
    return torch.cuda.device(device)
