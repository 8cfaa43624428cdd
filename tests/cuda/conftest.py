"""Fixtures: operators served by the CUDA kernels, run on the CPU (cuda_on_cpu.h)."""

import importlib

import pytest
import simulator
import torch

from rwm_fast.ops import _cuda, _dispatch


@pytest.fixture
def kernels(monkeypatch):
    """Every operator on its native_cuda module, and that on the simulated CUDA module."""
    if simulator.compiler() is None:
        pytest.skip("no g++ (CXX) to compile the CUDA sources with")
    module = simulator.simulated()

    def choose(op, tensors, **facts):
        return importlib.import_module(f"rwm_fast.ops.{op}.native_cuda")

    monkeypatch.setattr(_dispatch, "choose", choose)
    monkeypatch.setattr(_cuda, "module", lambda: module)
    monkeypatch.setattr(_cuda, "place", lambda x: (0, 0))
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
