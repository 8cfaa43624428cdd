"""Which backend serves the calls that come in through another project's names."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from rwm_fast.ops import _dispatch


class Call(NamedTuple):
    """A kind of call: who was called, and what ran."""

    function: str  # "nvidia.bias_act"
    operator: str  # of rwm_fast, or "torch"
    device: str
    dtype: str
    backend: str  # "native", "triton", "eager"; "torch" where no operator of ours serves it


calls: Counter[Call] = Counter()
_known: dict[tuple, Call] = {}  # what was asked for and for what -> what serves it


def run(function: str, operator: Callable[..., Tensor], x: Tensor, *args: object, **kwargs: object):
    """operator(x, …), counted under the backend that serves it."""
    # a count is a side effect, which torch.compile would trace
    if not torch.compiler.is_compiling():
        name = operator.__name__
        key = (function, name, x.device, x.dtype, _dispatch.requested())
        if key not in _known:
            answer = _dispatch.explain(name, x, *args, **kwargs)
            served = [backend for backend, said in answer.items() if said == "used"]
            _known[key] = _kind(function, name, x, served[0] if served else "refused")
        calls[_known[key]] += 1
    return operator(x, *args, **kwargs)


@contextlib.contextmanager
def uncounted() -> Iterator[None]:
    """What is called inside is not counted."""
    before = calls.copy()
    try:
        yield
    finally:
        calls.clear()
        calls.update(before)


def plain(function: str, x: Tensor) -> None:
    """Counts a call that plain torch serves."""
    if not torch.compiler.is_compiling():
        calls[_kind(function, "torch", x, "torch")] += 1


def _kind(function: str, operator: str, x: Tensor, backend: str) -> Call:
    return Call(function, operator, x.device.type, str(x.dtype).removeprefix("torch."), backend)
