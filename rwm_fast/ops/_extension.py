"""Loads the native modules: `rwm_fast._C` (C++, CPU) and `rwm_fast._cuda` (CUDA).

Neither is imported before the first operator asks. A module that was not built is a reason, not an
error; the backends' `supports` pass the reason on. Both modules are raw: they check next to
nothing, and only the operators' `cpu` and `cuda` modules call them.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from rwm_fast._build import build_info
from rwm_fast.ops import _torch_private


@dataclass(frozen=True)
class Extension:
    """A native module, or None with the reason; broken: it was built and does not load."""

    module: ModuleType | None
    reason: str | None = None
    broken: bool = False


@functools.cache
def cpu() -> Any:
    """The C++ module, or None (`why_not_cpu`)."""
    return load_cpu().module


@functools.cache
def cuda() -> Any:
    """The CUDA module, or None (`why_not_cuda`)."""
    return load_cuda().module


@functools.cache
def why_not_cpu() -> str | None:
    """None if the C++ module can be used, else one sentence why not."""
    return load_cpu().reason


@functools.cache
def why_not_cuda() -> str | None:
    """None if the CUDA module can be used, else one sentence why not."""
    return load_cuda().reason


@functools.cache
def load_cpu() -> Extension:
    """Import `_C`, hand it torch's thread pool, and apply RWM_FAST_CPU_ISA (ValueError if bad)."""
    extension = _load("_C", "cpu")
    if extension.module is not None:
        run, count = (
            _torch_private.c_function(n) for n in ("torch_parallel_for", "torch_get_num_threads")
        )
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
