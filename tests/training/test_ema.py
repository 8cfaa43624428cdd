import pytest
import torch
from torch import nn

from rwm_fast.training.ema import Ema


def linear(value: float) -> nn.Linear:
    return fill(nn.Linear(2, 1), value)


@torch.no_grad()
def fill(module: nn.Module, value: float) -> nn.Module:
    for parameter in module.parameters():
        parameter.fill_(value)
    return module


def test_half_of_the_past_is_gone_after_a_half_life():
    source = linear(0.0)
    ema = Ema({"m": source}, half_life_kimg=1.0, rampup=1e9)
    fill(source, 1.0)
    for nimg in range(10, 1001, 10):
        ema.update(batch=10, nimg=nimg)
    assert ema.modules["m"].weight[0, 0].item() == pytest.approx(0.5, abs=1e-4)


def test_early_averages_forget_faster():
    source = linear(0.0)
    ema = Ema({"m": source}, half_life_kimg=1000.0, rampup=0.5)
    fill(source, 1.0)
    ema.update(batch=10, nimg=20)  # half-life 10 images
    assert ema.modules["m"].weight[0, 0].item() == pytest.approx(0.5)


def test_averages_are_apart_from_their_source_and_need_no_gradient():
    source = linear(1.0)
    ema = Ema({"m": source}, 1.0, 1.0)
    fill(source, 5.0)
    assert ema.modules["m"].weight[0, 0] == 1.0
    assert not any(p.requires_grad for p in ema.modules["m"].parameters())


def test_state_comes_back():
    ema, other = (Ema({"m": linear(v)}, 1.0, 1.0) for v in (3.0, 0.0))
    other.load_state_dict(ema.state_dict())
    assert other.modules["m"].weight[0, 0] == 3.0
