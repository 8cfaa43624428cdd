"""Averaged weights: what pictures, scores and exports are made with."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from rwm_fast.ops import _torch_private


class Ema:
    """Exponential moving averages of modules, with a half-life in images.

    After each update an average keeps 0.5 ** (batch / half_life) of itself. Early on the half-life
    is at most `rampup` times the images seen, so that the first random weights are soon forgotten.

    Source: half-life in images and ramp-up as in StyleGAN2-ADA (Karras et al., NeurIPS 2020).
    """

    def __init__(self, modules: Mapping[str, nn.Module], half_life_kimg: float, rampup: float):
        self.modules = {
            name: copy.deepcopy(m).eval().requires_grad_(False) for name, m in modules.items()
        }
        # found once: walking through modules takes longer than averaging a small model
        self.parameters, self.buffers = (
            [
                (ours, theirs)
                for name, average in self.modules.items()
                for ours, theirs in zip(kind(average), kind(modules[name]), strict=True)
            ]
            for kind in (nn.Module.parameters, nn.Module.buffers)
        )
        self.half_life = half_life_kimg * 1000
        self.rampup = rampup

    @torch.no_grad()
    def update(self, batch: int, nimg: int) -> None:
        """Take a step towards the modules; `nimg` = images seen, this batch included."""
        half_life = min(self.half_life, nimg * self.rampup)
        keep = 0.5 ** (batch / max(half_life, 1e-8))
        averages, sources = zip(*self.parameters, strict=True)
        _torch_private.lerp_(averages, sources, 1 - keep)
        for ours, theirs in self.buffers:
            ours.copy_(theirs)

    def state_dict(self) -> dict[str, Any]:
        return {name: module.state_dict() for name, module in self.modules.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, module in self.modules.items():
            module.load_state_dict(state[name])
