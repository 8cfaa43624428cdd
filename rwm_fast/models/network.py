"""What the four networks share: the dtype they compute in, and the memory format inside."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rwm_fast.config import ModelConfig
from rwm_fast.ops._memory import channels_last

M = TypeVar("M", bound=nn.Module)


class Network(nn.Module):
    """A module made from a `ModelConfig`.

    Parameters are float32 (float64 after ``.double()``) and stay so; `dtype` is what the layers
    compute in, None for that of the parameters. Inputs are cast on entry and made channels_last;
    results leave in the dtype of the parameters.
    """

    def __init__(self, config: ModelConfig, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.config = config
        self.compute_dtype = dtype

    def to_compute(self, dtype: torch.dtype | None) -> Network:
        """Sets the dtype that the layers compute in, and returns the network."""
        self.compute_dtype = dtype
        return self

    @property
    def parameter_dtype(self) -> torch.dtype:
        """Dtype of the parameters, and of what the network returns."""
        return next(self.parameters()).dtype

    def enter(self, x: Tensor) -> Tensor:
        """`x` [N, C, H, W] in the compute dtype, channels_last."""
        dtype = self.compute_dtype or self.parameter_dtype
        return channels_last(x.to(dtype))

    def leave(self, y: Tensor) -> Tensor:
        """`y` in the dtype of the parameters."""
        return y.to(self.parameter_dtype)


def placed(module: M, device: torch.device | str) -> M:
    """The module on a device, its weights channels_last."""
    to: Any = module.to  # torch's stubs know no memory_format here
    to(device, memory_format=torch.channels_last)
    return module


def require(condition: bool, where: str, rule: str | Callable[[], str], got: object) -> None:
    """Raises ValueError naming the network, the rule and what came.

    A rule that names sizes is a function: as text it would fix them for torch.compile.
    """
    if not condition:
        rule = rule if isinstance(rule, str) else rule()
        got = list(got.shape) if isinstance(got, Tensor) else got
        raise ValueError(f"{where}: {rule}, got {got}")


def fold(x: Tensor, factor: int) -> Tensor:
    """[N, C, H, W] → [N, C·factor², H/factor, W/factor], channels_last."""
    if factor == 1:
        return x
    return channels_last(F.pixel_unshuffle(x, factor))


def unit(x: Tensor, dim: int) -> Tensor:
    """`x` divided by its length along `dim`."""
    return F.normalize(x, dim=dim)
