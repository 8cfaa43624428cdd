"""The Triton kernels without a GPU: in the interpreter, and through the compiler.

Triton decides when a kernel is defined whether it is interpreted, its own library functions
included. So the two suites never share a process:

    TRITON_INTERPRET=1 pytest -m triton_interpret
    pytest -m triton_aot
"""

import functools
import importlib.util

import pytest
import torch

from rwm_fast import use_backend
from rwm_fast.ops import _dispatch, _triton

# Its modules import triton when they are collected.
collect_ignore_glob = [] if importlib.util.find_spec("triton") else ["test_*.py"]


def _exchange_names_once():
    """Triton's interpreter exchanges the names in triton.language at every call of every function,
    which takes longer than the functions: here only kernels use them, so once is enough."""
    from triton.runtime import interpreter

    exchange = functools.cache(interpreter._patch_lang)

    def once(function):
        exchange(function)
        return interpreter._LangPatchScope()  # nothing to give back

    interpreter._patch_lang = once


if _dispatch.INTERPRETED and not collect_ignore_glob:
    _exchange_names_once()


def pytest_collection_modifyitems(items):
    """Triton 3.6's interpreter turns arrays of one element into numbers, which numpy 2.4 ends."""
    quiet = pytest.mark.filterwarnings("ignore:Conversion of an array with ndim:DeprecationWarning")
    for item in items:
        if item.get_closest_marker("triton_interpret"):
            item.add_marker(quiet)


@pytest.fixture(autouse=True)
def right_process(request):
    """A suite in the wrong process would prove nothing, so it fails."""
    marks = {mark.name for mark in request.node.iter_markers()}
    if "triton_interpret" in marks and not _dispatch.INTERPRETED:
        pytest.fail("needs TRITON_INTERPRET=1")
    if "triton_aot" in marks and _dispatch.INTERPRETED:
        pytest.fail("needs a process without TRITON_INTERPRET")


@pytest.fixture(autouse=True)
def poison():
    """Every fresh buffer is full of NaN: an output that nobody wrote cannot pass by luck."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(before)


@pytest.fixture
def interpreter():
    """Inside, Triton serves CPU tensors."""
    with use_backend("triton"):
        yield


@pytest.fixture
def guarded(interpreter, monkeypatch):
    """Triton serves CPU tensors, every one of them with margins around it."""
    import guards  # imports triton

    launch = guards.Guarded()
    monkeypatch.setattr(_triton, "launch", launch)
    return launch
