"""Private names of torch that the operators use, what each is for, and what happens without it."""

from __future__ import annotations

import ctypes
import functools
import sys

import torch


@functools.cache
def _steals() -> bool:
    """Whether `_stash_obj_in_tls` takes over a reference that it was not given (torch < 2.13).

    What it holds is then freed under it: other objects were read in its place, and processes died.
    """
    probe = object()
    before = sys.getrefcount(probe)
    torch._C._stash_obj_in_tls("rwm_fast_probe", probe)
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
    torch._C._stash_obj_in_tls(key, value)


def stashed(key: str) -> object | None:
    """What `stash` keeps in this thread, or in the one that called autograd; None if nothing."""
    return torch._C._get_obj_in_tls(key) if torch._C._is_key_in_tls(key) else None
