"""Where networks compute, and in which precision."""

import pytest
import torch

from rwm_fast.device import prepare, resolve_precision, search_algorithms
from rwm_fast.errors import UserError

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize("amx", [False, True])
def test_auto_is_float32_on_every_cpu_and_bfloat16_only_if_asked(monkeypatch, amx):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert resolve_precision("auto", CPU) == torch.float32
    assert resolve_precision("bf16", CPU) == torch.bfloat16
    assert resolve_precision("fp16", CPU) == torch.float16


@pytest.mark.parametrize(("capability", "dtype"), [((7, 5), "float32"), ((8, 0), "bfloat16")])
def test_auto_is_bfloat16_on_cuda_since_ampere(monkeypatch, capability, dtype):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert resolve_precision("auto", CUDA) == getattr(torch, dtype)
    assert resolve_precision("fp32", CUDA) == torch.float32


def test_names_that_say_nothing_are_refused():
    with pytest.raises(UserError, match="--precision: expected one of auto, .*fp16, got 'fp8'"):
        prepare("cpu", "fp8")
    with pytest.raises(UserError, match="--device: expected auto, cpu, cuda or cuda:N, got 'tpu'"):
        prepare("tpu", "auto")


def test_training_lets_cudnn_search_on_cuda_alone(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    search_algorithms(CPU)
    assert not torch.backends.cudnn.benchmark
    search_algorithms(CUDA)
    assert torch.backends.cudnn.benchmark
