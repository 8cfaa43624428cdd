"""Private names of torch: that they do what we use them for, on whatever torch is installed."""

import gc
import sys

import pytest
import torch

from rwm_fast.ops import _torch_private


def test_what_is_stashed_lives_as_long_as_it_is_stashed():
    value = ("a request", object())
    held = sys.getrefcount(value)
    _torch_private.stash("rwm_fast_test", value)
    assert sys.getrefcount(value) == held + 1
    _torch_private.stash("rwm_fast_test", None)
    assert sys.getrefcount(value) == held


def test_a_torch_that_steals_references_is_given_one(monkeypatch):
    """As torch 2.11 does: the object was freed, and another was read in its place."""
    kept = {}

    def steal(key, value):
        kept[key] = id(value)  # holds no reference, as a raw pointer does

    monkeypatch.setattr(torch._C, "_stash_obj_in_tls", steal)
    _torch_private._steals.cache_clear()
    try:
        assert _torch_private._steals()
        value = object()
        held = sys.getrefcount(value)
        _torch_private.stash("rwm_fast_test", value)
        assert sys.getrefcount(value) == held + 1
    finally:
        monkeypatch.undo()
        _torch_private._steals.cache_clear()


@pytest.mark.parametrize("rounds", (1, 1000))
def test_a_stashed_tuple_is_read_back(rounds):
    for i in range(rounds):
        _torch_private.stash("rwm_fast_test", (i, "native"))
        others = [(j, object()) for j in range(50)]  # take the memory of anything freed
        assert _torch_private.stashed("rwm_fast_test") == (i, "native")
        del others
    gc.collect()
    assert _torch_private.stashed("rwm_fast_nothing") is None
