"""Fixtures: operators served by the CUDA kernels, run on the CPU (cuda_on_cpu.h)."""

import importlib.util
import sys

import pytest
import simulator
import torch

from rwm_fast.ops import _dispatch, _extension, _memory


def cuda_module(op):
    """The CUDA backend of an operator, as Python; None if it has none."""
    name = f"rwm_fast.ops.{op}.cuda"
    return importlib.import_module(name) if importlib.util.find_spec(name) else None


@pytest.fixture
def kernels(monkeypatch):
    """Every operator on its cuda.py, and that on the simulated CUDA module."""
    if simulator.compiler() is None:
        pytest.skip("no g++ (CXX) to compile the CUDA sources with")
    module, place = simulator.simulated(), _memory.place
    backends = {op: cuda_module(op) for op in _dispatch.OPS}
    monkeypatch.setattr(_dispatch, "choose", lambda op, call: backends[op])
    monkeypatch.setattr(_extension, "cuda", lambda: module)
    for user in [m for m in sys.modules.values() if getattr(m, "place", None) is place]:
        monkeypatch.setattr(user, "place", lambda x: (0, 0))
    module.set_seed(0)
    module.take_counts()
    return module


@pytest.fixture(autouse=True)
def poison():
    """Every fresh buffer is full of NaN: an output that nobody wrote cannot pass by luck."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(before)
