"""Loads the native modules: `rwm_fast._C` (C++, CPU) and `rwm_fast._cuda` (CUDA).

Neither is imported before the first operator asks. A module that was not built is a reason, not an
error; `native.supports` passes the reason on. Both modules are raw: they check next to nothing, and
only the `native.py` files call them.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import os
from dataclasses import dataclass
from types import ModuleType

import torch

from rwm_fast._build import build_info

# The codes of csrc/common/dtype.h.
DTYPE_CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.float64: 3}


@dataclass(frozen=True)
class Extension:
    """A native module, or None with the reason; broken: it was built and does not load."""

    module: ModuleType | None
    reason: str | None = None
    broken: bool = False


def cpu() -> ModuleType | None:
    """The C++ module, or None (`why_not_cpu`)."""
    return load_cpu().module


def cuda() -> ModuleType | None:
    """The CUDA module, or None (`why_not_cuda`)."""
    return load_cuda().module


def why_not_cpu() -> str | None:
    """None if the C++ module can be used, else one sentence why not."""
    return load_cpu().reason


def why_not_cuda() -> str | None:
    """None if the CUDA module can be used, else one sentence why not."""
    return load_cuda().reason


@functools.cache
def load_cpu() -> Extension:
    """Import `_C`, hand it torch's thread pool, and apply RWM_FAST_CPU_ISA (ValueError if bad)."""
    extension = _load("_C", "cpu")
    if extension.module is not None:
        run, count = (torch_function(n) for n in ("torch_parallel_for", "torch_get_num_threads"))
        extension.module.set_thread_pool(run, count)
        isa = os.environ.get("RWM_FAST_CPU_ISA")
        if isa:
            try:
                extension.module.set_isa(isa)
            except ValueError as error:  # an unknown name, or more than this CPU has
                raise ValueError(str(error).replace("set_isa", "RWM_FAST_CPU_ISA")) from None
    return extension


@functools.cache
def load_cuda() -> Extension:
    """Import `_cuda` and ask the driver for devices."""
    extension = _load("_cuda", "cuda")
    if extension.module is not None:
        problem = extension.module.device_problem()
        if problem:
            return Extension(None, f"_cuda is built, but {problem}")
    return extension


def _load(name: str, part: str) -> Extension:
    module = f"rwm_fast.{name}"
    # Found but not importable (a missing library, another Python's file) is not "not built".
    if importlib.util.find_spec(module) is None:
        status = build_info()[part]
        return Extension(None, f"{name} is {status}", broken=status.startswith("built"))
    try:
        return Extension(importlib.import_module(module))
    except ImportError as error:
        return Extension(None, f"{name} does not load: {error}", broken=True)


def torch_function(name: str) -> int:
    """Address of a C function of torch, or 0 where it has none (loops then run serially).

    The lookup walks the dependencies of torch's Python module, wherever libtorch lies.
    """
    function = getattr(ctypes.CDLL(torch._C.__file__), name, None)
    return ctypes.cast(function, ctypes.c_void_p).value if function else 0
