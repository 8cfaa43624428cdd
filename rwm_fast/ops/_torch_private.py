"""Every private name of torch that the package uses, what for, and what happens without it.

`_C._stash_obj_in_tls`, `_C._get_obj_in_tls`, `_C._is_key_in_tls`
    hand a request for a backend to the threads that autograd makes for a GPU. Without them those
    threads choose for themselves.
`_C._functorch.peek_interpreter_stack`
    tells torch.func transforms, which get plain torch. Without it torch refuses them.
`_C._functorch.is_legacy_batchedtensor`
    tells the many gradients of `torch.autograd.grad(…, is_grads_batched=True)`, which get the
    registered operator, once each. Without it they are refused: a tensor without memory.
`torch.autograd.forward_ad._current_level`
    tells forward-mode AD, likewise. Without it such calls get the registered operator.
`torch.compiler.assume_constant_result`
    is public, but imports the compiler: what it marks a function with is set here. Without it
    transforms inside compiled functions are refused.
`_C._len_torch_dispatch_stack`, `_C._len_torch_function_stack`
    tell modes (fake tensors, counters), which get the registered operator. Without them every call
    gets it: the same result, slower.
`_C._get_tracing_state`
    tells torch.jit.trace, likewise. Without it there is no such tracing.
`_C._is_any_autocast_enabled`
    tells calls that autocast has to be kept out of. Without it every call keeps it out.
`_C._autograd._top_saved_tensors_default_hooks`
    tells whether tensors saved for a backward pass go elsewhere (checkpoints, memory of the CPU).
    Without it a backward pass prepares its layer again.
`_C._will_engine_execute_node`
    leaves out gradients that nobody asked for. Without it all of them are computed.
`_C._cuda_getCurrentRawStream`
    is ten times faster than the public way to a stream's address, which is taken without it.
`_C.__file__`
    leads to the libraries with torch's C functions. Those are public; where one is missing C++
    loops run in one thread.
`_foreach_lerp_`, `_foreach_norm`
    do one thing to all tensors of a network in one call. Without them it is a call a tensor.
"""

from __future__ import annotations

import ctypes
import functools
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def _of_torch(path: str, otherwise: Any) -> Any:
    """A name in torch, or what stands for it in a torch that does not have it."""
    try:
        return functools.reduce(getattr, path.split("."), torch)
    except AttributeError:
        return otherwise


# ---- an object that follows autograd into its threads

_stash = _of_torch("_C._stash_obj_in_tls", lambda key, value: None)
_get = _of_torch("_C._get_obj_in_tls", lambda key: None)
is_stashed = _of_torch("_C._is_key_in_tls", lambda key: False)


@functools.cache
def _steals() -> bool:
    """Whether `_stash_obj_in_tls` takes over a reference that it was not given (torch < 2.13).

    What it holds is then freed under it: other objects were read in its place, and processes died.
    """
    probe = object()
    before = sys.getrefcount(probe)
    _stash("rwm_fast_probe", probe)
    steals = sys.getrefcount(probe) == before
    if steals:
        _give_reference(probe)
    stash("rwm_fast_probe", None, steals)
    return steals


def _give_reference(value: object) -> None:
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(value))


def stash(key: str, value: object, steals: bool | None = None) -> None:
    """Keep an object in the state that torch hands to the threads of its autograd engine.

    A context variable does not reach them: on a GPU backward passes run there.
    """
    if _steals() if steals is None else steals:
        _give_reference(value)
    _stash(key, value)


def stashed(key: str) -> object | None:
    """What `stash` keeps in this thread, or in the one that called autograd; None if nothing."""
    return _get(key) if is_stashed(key) else None


# ---- who else sees a call: plain calls ask these themselves, for a Python call costs as much

interpreter = _of_torch("_C._functorch.peek_interpreter_stack", lambda: None)
is_batched = _of_torch("_C._functorch.is_legacy_batchedtensor", lambda tensor: False)
dispatch_modes = _of_torch("_C._len_torch_dispatch_stack", lambda: 1)
function_modes = _of_torch("_C._len_torch_function_stack", lambda: 1)
tracing_state = _of_torch("_C._get_tracing_state", lambda: None)
forward_ad: Any = torch.autograd.forward_ad
if not hasattr(forward_ad, "_current_level"):
    forward_ad = type("None", (), {"_current_level": -1})


def constant_when_traced(function: Any) -> None:
    """Let torch.compile call the function while it traces, and keep the answer."""
    function._dynamo_marked_constant = True


def in_func() -> bool:
    """Whether a torch.func transform (grad, vmap, …) sees every call."""
    return interpreter() is not None


# What torch.compile traces has an interpreter always; the one around it tells.
constant_when_traced(in_func)


def in_transform() -> bool:
    """Whether a torch.func transform (grad, vmap, …) or forward-mode AD may see every call."""
    return in_func() or forward_ad._current_level >= 0


def has_tangent(tensors: Sequence[Tensor | None]) -> bool:
    """Whether forward-mode AD follows one of the tensors."""
    if forward_ad._current_level < 0:
        return False
    unpack = torch.autograd.forward_ad.unpack_dual
    return any(t is not None and unpack(t).tangent is not None for t in tensors)


def is_watched() -> bool:
    """Whether a mode, torch.jit.trace or a torch.func transform sees every call."""
    return bool(
        dispatch_modes() or function_modes() or tracing_state() is not None or in_transform()
    )


# ---- autograd

# (ignore tracing) -> the hooks that saved tensors are handed to, or None
saved_hooks: Callable[[bool], object] = _of_torch(
    "_C._autograd._top_saved_tensors_default_hooks", lambda ignore_tracing: "unknown"
)
any_autocast: Callable[[], bool] = _of_torch("_C._is_any_autocast_enabled", lambda: True)
_will_execute: Callable[[object], bool] = _of_torch(
    "_C._will_engine_execute_node", lambda node: True
)


def will_run(node: object) -> bool:
    """Whether the running backward pass needs this node of the graph; True if that is unknown."""
    try:
        return _will_execute(node)
    except RuntimeError:  # no backward pass runs, or it was asked for the gradient of this leaf
        return True


# ---- devices

_raw_stream: Callable[[int], int] | None = _of_torch("_C._cuda_getCurrentRawStream", None)


def raw_stream(index: int) -> int:
    """Address of the current CUDA stream of a device."""
    if _raw_stream is None:
        return int(torch.cuda.current_stream(index).cuda_stream)
    return _raw_stream(index)


def c_function(name: str) -> int:
    """Address of a C function of torch (`torch_parallel_for`), or 0 if it has none.

    The lookup walks the dependencies of torch's Python module, wherever libtorch lies.
    """
    function = getattr(ctypes.CDLL(torch._C.__file__), name, None)
    return (ctypes.cast(function, ctypes.c_void_p).value or 0) if function else 0


# ---- many tensors in one call


def lerp_(tensors: Sequence[Tensor], ends: Sequence[Tensor], weight: float) -> None:
    """Move each tensor towards its end, in place: t += weight · (end - t)."""
    together = _of_torch("_foreach_lerp_", None)
    if together is not None:
        together(tensors, ends, weight)
        return
    for tensor, end in zip(tensors, ends, strict=True):
        tensor.lerp_(end, weight)


def norms(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The Euclidean norm of each tensor."""
    together = _of_torch("_foreach_norm", lambda ts: [torch.linalg.vector_norm(t) for t in ts])
    return list(together(tensors))
