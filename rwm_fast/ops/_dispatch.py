"""Which implementation runs: the one place where a backend is chosen, and a device asked for.

A backend has a name for users and, for each kind of device, a module in the operator's folder:
`WAYS`, in order of preference. Auto takes the first that supports the call; an explicit request
(`use_backend`, or the environment variable ``RWM_FAST_BACKEND``) is honoured or refused with the
reason, never swapped.

The choice is made inside the registered operator, when it runs: so a compiled graph follows it too,
and a ``with use_backend(...)`` block must cover the backward pass as well as the forward pass.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import logging
import os
import threading
from collections.abc import Callable, Sequence
from contextvars import ContextVar, Token
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rwm_fast.ops import _torch_private
from rwm_fast.ops._backend import Backend, Call

# As Triton itself reads its variable.
INTERPRETED = os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "yes", "on", "y")


class Way(NamedTuple):
    """A backend's name, a kind of device ("any": all), and the module that serves it there."""

    name: str
    device: str
    module: str | Backend  # a file of the operator's folder, or what was registered


WAYS = (
    Way("native", "cpu", "cpu"),
    Way("native", "cuda", "cuda"),
    Way("triton", "cuda", "triton_kernels"),
    *([Way("triton", "cpu", "triton_kernels")] if INTERPRETED else []),
    Way("eager", "any", "eager"),
)
OPS = ("modulated_conv2d", "masked_l1", "crop_patches", "bias_act", "upfirdn2d")
# Operators made of others: they may be asked about, by the backends of what they are made of.
MADE_OF = {"conv2d_bias_act": "modulated_conv2d", "conv2d_resample": "modulated_conv2d"}

log = logging.getLogger("rwm_fast")
_registered: dict[str, tuple[Way, ...]] = {}
_announced: set[tuple[str, str]] = set()
_explaining: ContextVar[bool] = ContextVar("rwm_fast_explaining", default=False)


class BackendError(RuntimeError):
    """The backend that was asked for cannot serve this call; the message says why."""


class _Explained(Exception):
    """Carries the answer of `explain` out of the operator, before anything is computed."""


# ---- the table


def register(op: str, name: str, device: str, module: Backend) -> Callable[[], None]:
    """Let a module of your own serve an operator, before all others on its kind of device.

    `module` has what `rwm_fast.ops._backend` says. Returns a function that takes it back.
    """
    if op not in OPS:
        raise ValueError(f"register: op must be one of {', '.join(OPS)}, got {op!r}")
    way = Way(name, device, module)
    _registered[op] = (way, *_registered.get(op, ()))
    _ways_on.cache_clear()

    def take_back() -> None:
        _registered[op] = tuple(w for w in _registered[op] if w is not way)
        _ways_on.cache_clear()

    return take_back


def ways(op: str) -> tuple[Way, ...]:
    """An operator's rows of the table, in order of preference."""
    op = MADE_OF.get(op, op)
    package = f"rwm_fast.ops.{op}"
    there = [w for w in WAYS if importlib.util.find_spec(f"{package}.{w.module}") is not None]
    return (*_registered.get(op, ()), *there)


def backends(op: str) -> tuple[str, ...]:
    """The names of an operator's backends, in order of preference."""
    return tuple(dict.fromkeys(way.name for way in ways(op)))


def names() -> tuple[str, ...]:
    """All names that a request may have."""
    added = [way.name for op in OPS for way in _registered.get(op, ())]
    return tuple(dict.fromkeys((*(way.name for way in WAYS), *added)))


@functools.cache
def _ways_on(op: str, device: torch.device) -> dict[str, Backend | str]:
    """Backends on a device: module, or the sentence why it cannot be imported."""
    op = MADE_OF.get(op, op)
    found: dict[str, Backend | str] = {}
    for way in ways(op):
        if way.device in (device.type, "any") and way.name not in found:
            is_file = isinstance(way.module, str)
            found[way.name] = _module(op, way) if is_file else way.module
    return found


def _module(op: str, way: Way) -> ModuleType | str:
    try:
        return importlib.import_module(f"rwm_fast.ops.{op}.{way.module}")
    except ImportError as error:
        if (error.name or "").startswith("rwm_fast"):
            raise
        if isinstance(error, ModuleNotFoundError):
            return f"the package {error.name} is not installed"
        return f"{error.name or way.name} does not load: {error}"


def _refusal(op: str, name: str, call: Call) -> str | None:
    """None if the backend serves the call, else one sentence why not."""
    backend = _ways_on(op, call.device).get(name)
    if backend is not None:
        return backend if isinstance(backend, str) else backend.supports(call)
    on = [way.device for way in ways(op) if way.name == name]
    if not on:
        return f"{op} has no {name} backend"
    return f"{name} runs on {' and '.join(on)}, not on {call.device.type} tensors"


# ---- requests

_requested: ContextVar[str | None] = ContextVar("rwm_fast_backend", default=None)
# Autograd runs backward passes of GPUs in threads of its own, which see no context variable of the
# thread that called it; torch's own thread-local state is handed to them.
_HANDED = "rwm_fast_backend"


def _valid(name: str | None, source: str) -> str | None:
    if name in (None, "auto", ""):
        return None
    if name not in names():
        raise ValueError(
            f"{source}: backend must be one of {', '.join(names())} or auto, got {name!r}"
        )
    return name


class use_backend:
    """Ask for one backend, as a setter or for a block.

    ``use_backend("eager")`` holds until changed, in this thread and in all that ask for nothing
    themselves; ``with use_backend("native"): …`` holds inside the block, in its own thread (and
    where autograd runs its backward passes) alone. ``"auto"`` (or None) lets each call take the
    first backend that supports it. RWM_FAST_BACKEND, read once, counts where neither has spoken. A
    request that a call cannot honour raises `BackendError` with the reason.

    Raises
    ------
    ValueError
        if the name is not ``native``, ``triton``, ``eager`` or ``auto``.
    """

    everywhere: str | None = None  # what was set last, for threads that ask for nothing

    def __init__(self, name: str | None) -> None:
        self._entered = True  # nothing to tell if the name is refused
        name = _valid(name, "use_backend") or "auto"
        self._token: Token = _requested.set(name)
        _torch_private.stash(_HANDED, (threading.get_ident(), name))
        self._name, self._entered = name, False

    def __enter__(self) -> use_backend:
        self._entered = True
        return self

    def __del__(self) -> None:
        if not self._entered:  # no block: a setter
            type(self).everywhere = self._name

    def __exit__(self, *_: object) -> None:
        _requested.reset(self._token)
        _torch_private.stash(_HANDED, (threading.get_ident(), _requested.get()))


def _handed() -> str | None:
    """What was asked for in the thread that called autograd, in a thread that autograd made."""
    handed: Any = _torch_private.stashed(_HANDED)
    if handed is None:
        return None
    thread, name = handed
    return None if thread == threading.get_ident() else name


@functools.cache
def _of_environment() -> str | None:
    """Read once, when first asked: a look at the environment takes as long as a small kernel."""
    return _valid(os.environ.get("RWM_FAST_BACKEND"), "RWM_FAST_BACKEND")


def requested() -> str | None:
    """The backend asked for by `use_backend` or by RWM_FAST_BACKEND, or None for auto."""
    name = _requested.get()
    if name is None and _torch_private.is_stashed(_HANDED):
        name = _handed()
    if name is None:
        name = use_backend.everywhere or _of_environment()
    return None if name == "auto" else name


# torch.compile cannot trace it. It asks inside transforms only, and keeps the answer.
_torch_private.constant_when_traced(requested)

# ---- the choice


def choose(op: str, call: Call) -> Any:
    """The backend that serves this call; called by registered operators only."""
    if _explaining.get():
        raise _Explained(_explanation(op, call))
    name = requested()
    there = _ways_on(op, call.device)
    if name is not None:
        refusal = _refusal(op, name, call)
        if refusal:
            raise BackendError(f"{op}: backend {name!r} was asked for, but {refusal}")
        return there[name]
    passed_over: tuple[str, str] | None = None
    for name, backend in there.items():
        refusal = backend if isinstance(backend, str) else backend.supports(call)
        if refusal is None:
            if passed_over is not None:
                _announce(op, name, *passed_over)
            return backend
        passed_over = passed_over or (name, refusal)
    raise BackendError(f"{op}: no backend serves this call: {passed_over}")


def _announce(op: str, name: str, other: str, reason: str) -> None:
    """Say once that a preferred backend was passed over, and why."""
    if (other, reason) not in _announced:
        _announced.add((other, reason))
        log.warning("%s runs on the %s backend; %s: %s", op, name, other, reason)


def in_transform(op: str, tensors: Sequence[Tensor | None]) -> bool:
    """Whether torch.func (grad, vmap, …) or forward-mode AD follows these tensors: then the
    reference runs directly.

    Registered operators with a Python formula cannot be traced by them; the reference is plain
    torch and can. An explicit request for another backend than `eager` is refused: by torch.compile
    when it traces the transform.
    """
    if not _torch_private.in_transform():
        return False
    compiling = torch.compiler.is_compiling()
    if _torch_private.in_func():
        reason = "torch.func transforms run on the eager backend only"
    elif compiling or _torch_private.has_tangent(tensors):
        reason = "forward-mode AD runs on the eager backend only"
    else:
        return False
    if not compiling:
        by_torch(op, reason)
    name = requested()
    if name not in (None, "eager"):
        raise BackendError(f"{op}: backend {name!r} was asked for, but {reason}")
    return True


def by_torch(op: str, reason: str) -> None:
    """Tells `explain` that plain torch serves this call."""
    if _explaining.get():
        raise _Explained({n: "used" if n == "eager" else reason for n in backends(op)})


def _explanation(op: str, call: Call) -> dict[str, str]:
    wanted, answer, used = requested(), {}, False
    for name in backends(op):
        refusal = _refusal(op, name, call)
        if wanted not in (None, name):
            answer[name] = refusal or f"supported, but {wanted!r} was asked for"
        elif refusal is None and not used:
            answer[name], used = "used", True
        else:
            answer[name] = refusal or "supported, but a preferred backend is used"
    return answer


def explain(op: str | Callable, *args: object, **kwargs: object) -> dict[str, str]:
    """Which backend would serve a call, and why the others would not; computes no result.

    Parameters
    ----------
    op
        a public operator (``rwm_fast.masked_l1``) or its name.
    args, kwargs
        the arguments of the call.

    Returns
    -------
    dict
        backend name → ``"used"`` or one sentence.
    """
    name = op if isinstance(op, str) else getattr(op, "__name__", "")
    known = (*OPS, *MADE_OF)
    if name not in known:
        raise ValueError(f"explain: op must be one of {', '.join(known)}, got {op!r}")
    function = getattr(importlib.import_module(f"rwm_fast.ops.{name}"), name)
    token = _explaining.set(True)
    try:
        function(*args, **kwargs)
    except _Explained as answer:
        return answer.args[0]
    finally:
        _explaining.reset(token)
    raise AssertionError(f"{name} computed its result without choosing a backend")
