"""Which implementation runs: the one place where a backend is chosen.

An operator is a package ``rwm_fast.ops.<op>`` with a tuple ``BACKENDS``: names of modules in order
of preference, ``reference`` last. A backend module has ``supports(tensors, **facts)``, which
returns None or one sentence why not, and the raw functions of its operator. Auto takes the first
that supports the call; an explicit request (`use_backend`, or the environment variable
``RWM_FAST_BACKEND``) is honoured or refused with the reason, never swapped.

The choice is made inside the registered operator, when it runs: so a compiled graph follows it too,
and a ``with use_backend(...)`` block must cover the backward pass as well as the forward pass.
"""

from __future__ import annotations

import functools
import importlib
import logging
import os
import threading
from collections.abc import Callable, Sequence
from contextvars import ContextVar, Token
from types import ModuleType

import torch
from torch import Tensor

from rwm_fast.ops import _torch_private

OPS = ("modulated_conv2d", "masked_l1", "crop_patches", "bias_act", "upfirdn2d")
NAMES = ("native", "triton", "reference")
_MODULES = {"native": "native", "triton": "triton_kernels", "reference": "reference"}
# As Triton itself reads its variable.
INTERPRETED = os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "yes", "on", "y")
_DEVICES = {"native": ("cpu", "cuda"), "triton": ("cuda", "cpu") if INTERPRETED else ("cuda",)}

log = logging.getLogger("rwm_fast")
_announced: set[tuple[str, str]] = set()
_explaining: ContextVar[bool] = ContextVar("rwm_fast_explaining", default=False)


class BackendError(RuntimeError):
    """The backend that was asked for cannot serve this call; the message says why."""


class _Explained(Exception):
    """Carries the answer of `explain` out of the operator, before anything is computed."""


def _valid(name: str | None, source: str) -> str | None:
    if name in (None, "auto", ""):
        return None
    if name not in NAMES:
        raise ValueError(
            f"{source}: backend must be one of {', '.join(NAMES)} or auto, got {name!r}"
        )
    return name


_requested: ContextVar[str | None] = ContextVar("rwm_fast_backend", default=None)
# Autograd runs backward passes of GPUs in threads of its own, which see no context variable of the
# thread that called it; torch's own thread-local state is handed to them.
_HANDED = "rwm_fast_backend"


def _hand_on(name: str | None) -> None:
    _torch_private.stash(_HANDED, (threading.get_ident(), name))


def _handed() -> str | None:
    """What was asked for in the thread that called autograd, in a thread that autograd made."""
    handed = _torch_private.stashed(_HANDED)
    if handed is None:
        return None
    thread, name = handed
    return None if thread == threading.get_ident() else name


class use_backend:
    """Ask for one backend, as a setter or for a block.

    ``use_backend("reference")`` holds until changed; ``with use_backend("native"): …`` holds inside
    the block. ``"auto"`` (or None) lets each call take the first backend that supports it. A
    request that a call cannot honour raises `BackendError` with the reason.

    Raises
    ------
    ValueError
        if the name is not ``native``, ``triton``, ``reference`` or ``auto``.
    """

    def __init__(self, name: str | None) -> None:
        name = _valid(name, "use_backend") or "auto"
        self._token: Token = _requested.set(name)
        _hand_on(name)

    def __enter__(self) -> use_backend:
        return self

    def __exit__(self, *_: object) -> None:
        _requested.reset(self._token)
        _hand_on(_requested.get())


def requested() -> str | None:
    """The backend asked for by `use_backend` or by RWM_FAST_BACKEND, or None for auto."""
    name = _requested.get() or _handed()
    if name is None:
        return _valid(os.environ.get("RWM_FAST_BACKEND"), "RWM_FAST_BACKEND")
    return None if name == "auto" else name


def backends(op: str) -> tuple[str, ...]:
    """The names of an operator's backends, in order of preference."""
    return _operator(op).BACKENDS


def _in_order(op: str, tensors: Sequence[Tensor | None], facts: dict) -> tuple[str, ...]:
    """The same for one call: an operator's package may have a `prefer` that reorders them."""
    prefer = getattr(_operator(op), "prefer", None)
    return backends(op) if prefer is None else prefer(backends(op), tensors, **facts)


@functools.cache
def _operator(op: str) -> ModuleType:
    return importlib.import_module(f"rwm_fast.ops.{op}")


@functools.cache
def _module(op: str, name: str) -> ModuleType | str:
    """A backend's module, or the sentence why it cannot be imported (a missing package)."""
    try:
        return importlib.import_module(f"rwm_fast.ops.{op}.{_MODULES[name]}")
    except ImportError as error:
        if (error.name or "").startswith("rwm_fast"):
            raise
        if isinstance(error, ModuleNotFoundError):
            return f"the package {error.name} is not installed"
        return f"{error.name or name} does not load: {error}"


def _device(tensors: Sequence[Tensor | None]) -> str:
    return next(t.device.type for t in tensors if t is not None)


def _on_device(name: str, tensors: Sequence[Tensor | None]) -> bool:
    return name not in _DEVICES or _device(tensors) in _DEVICES[name]


def _refusal(op: str, name: str, tensors: Sequence[Tensor | None], facts: dict) -> str | None:
    if name not in backends(op):
        return f"{op} has no {name} backend"
    if not _on_device(name, tensors):
        return f"{name} runs on {' and '.join(_DEVICES[name])}, not on {_device(tensors)} tensors"
    module = _module(op, name)
    return module if isinstance(module, str) else module.supports(tensors, **facts)


def choose(op: str, tensors: Sequence[Tensor | None], **facts: object) -> ModuleType:
    """The backend module that serves this call; called by registered operators only."""
    if _explaining.get():
        raise _Explained(_explanation(op, tensors, facts))
    name = requested()
    if name is not None:
        refusal = _refusal(op, name, tensors, facts)
        if refusal:
            raise BackendError(f"{op}: backend {name!r} was asked for, but {refusal}")
        return _module(op, name)
    refusals = []
    for name in _in_order(op, tensors, facts):
        refusal = _refusal(op, name, tensors, facts)
        if refusal is None:
            if refusals:
                announce(op, name, *refusals[0])
            return _module(op, name)
        if _on_device(name, tensors):
            refusals.append((name, refusal))
    raise BackendError(f"{op}: no backend serves this call: {refusals}")


def announce(op: str, name: str, other: str, reason: str) -> None:
    """Say once that a preferred backend was passed over, and why."""
    if (other, reason) not in _announced:
        _announced.add((other, reason))
        log.warning("%s runs on the %s backend; %s: %s", op, name, other, reason)


def in_transform(op: str) -> bool:
    """Whether a torch.func transform (grad, vmap, …) is tracing: then the reference runs directly.

    Registered operators with a Python formula cannot be traced by torch.func; the reference is
    plain torch and can. An explicit request for another backend is refused.
    """
    if torch.compiler.is_compiling() or torch._C._functorch.peek_interpreter_stack() is None:
        return False
    reason = "torch.func transforms run on the reference backend only"
    if _explaining.get():
        raise _Explained({n: "used" if n == "reference" else reason for n in backends(op)})
    name = requested()
    if name not in (None, "reference"):
        raise BackendError(f"{op}: backend {name!r} was asked for, but {reason}")
    return True


def _explanation(op: str, tensors: Sequence[Tensor | None], facts: dict) -> dict[str, str]:
    wanted, answer, used = requested(), {}, False
    for name in _in_order(op, tensors, facts):
        refusal = _refusal(op, name, tensors, facts)
        if wanted not in (None, name):
            answer[name] = refusal or f"supported, but {wanted!r} was asked for"
        elif refusal is None and not used:
            answer[name], used = "used", True
        else:
            answer[name] = refusal or "supported, but a preferred backend is used"
    return answer


def explain(op: str | Callable, *args: object, **kwargs: object) -> dict[str, str]:
    """Which backend would serve a call, and why the others would not; computes nothing.

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
    if name not in OPS:
        raise ValueError(f"explain: op must be one of {', '.join(OPS)}, got {op!r}")
    function = getattr(importlib.import_module(f"rwm_fast.ops.{name}"), name)
    token = _explaining.set(True)
    try:
        function(*args, **kwargs)
    except _Explained as answer:
        return answer.args[0]
    finally:
        _explaining.reset(token)
    raise AssertionError(f"{name} computed its result without choosing a backend")
