"""A case: named inputs of one operator, made in float64 and cast to what is asked for."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Inputs = dict[str, Any]

LAYOUTS = ("contiguous", "channels_last", "sliced", "expanded")


@dataclass(frozen=True)
class Work:
    """The least a call must do: bytes to and from memory, and floating-point operations."""

    bytes: int
    flops: int

    def __add__(self, other: Work) -> Work:
        return Work(self.bytes + other.bytes, self.flops + other.flops)


@dataclass(frozen=True)
class Case:
    """Named inputs of an operator.

    make draws the arguments of the public function by name: floating-point tensors in float64, the
    rest as it is passed. `inputs` casts the tensors: those in `kept` to float32 (or float64), the
    others to the dtype asked for.
    """

    op: str
    name: str
    make: Callable[[torch.Generator], Inputs]
    gradients: tuple[str, ...]  # arguments that receive a gradient
    kept: tuple[str, ...] = ()  # tensors that stay in float32 beside half-precision ones
    terms: int = 1  # most products summed into one element of the output or of a gradient
    # values between input and result that are stored in the tested dtype, in the longest chain
    stored: int = 1
    any_threads: bool = True  # the same bits for every number of threads
    smooth: bool = False  # small, and differentiable around its inputs: fit for finite differences
    bench: bool = False  # a size people use, for benchmarks; too large for the tests
    forward: Callable[[Mapping[str, Any]], Work] | None = None
    backward: Callable[[Mapping[str, Any]], Work] | None = None  # first order, all gradients

    def inputs(
        self,
        dtype: torch.dtype = torch.float64,
        layout: str = "contiguous",
        device: torch.device | str = "cpu",
        *,
        gradients: bool = True,
    ) -> Inputs:
        """The arguments in one dtype and layout, on one device; the same values at every call."""
        generator = torch.Generator().manual_seed(zlib.crc32(f"{self.op}-{self.name}".encode()))
        arguments = self.make(generator)
        for name, value in arguments.items():
            if not isinstance(value, Tensor):
                continue
            if value.is_floating_point():
                wide = torch.promote_types(dtype, torch.float32)
                value = value.to(wide if name in self.kept else dtype)
            value = in_layout(value.to(device), layout)
            needs = gradients and name in self.gradients
            arguments[name] = value.requires_grad_() if needs else value
        return arguments


def in_layout(x: Tensor, layout: str) -> Tensor:
    """The same values with other strides ("expanded": the first sample's values for all samples).

    A layout that does not exist for a number of dimensions leaves the tensor contiguous.
    """
    if layout == "channels_last" and x.ndim == 4:
        return x.contiguous(memory_format=torch.channels_last)
    if layout == "channels_last" and x.ndim == 5:
        flat = x.flatten(0, 1).contiguous(memory_format=torch.channels_last)
        return flat.unflatten(0, x.shape[:2])
    if layout == "sliced" and x.ndim > 0:
        # Every second column of a wider tensor; between them what must not be read.
        poison = float("nan") if x.is_floating_point() else 1
        wide = x.new_full((*x.shape[:-1], 2 * x.shape[-1] + 1), poison)
        view = wide[..., 1::2]
        view.copy_(x)
        return view
    if layout == "expanded" and x.ndim > 2 and x.shape[0] > 0:
        return x[:1].contiguous().expand_as(x)
    return x.contiguous()


def split(more: Mapping[str, Any]) -> tuple[Inputs, dict[str, Any]]:
    """Arguments of an operator, and fields of a Case, which have other names."""
    fields = {k: v for k, v in more.items() if k in Case.__dataclass_fields__}
    return {k: v for k, v in more.items() if k not in fields}, fields


def count_taps(filter: Tensor | None) -> int:
    """Products that the filter costs an element: one of one dimension is used along both axes."""
    return 1 if filter is None else filter.numel() ** (2 if filter.ndim == 1 else 1)


def normal(generator: torch.Generator, *shape: int) -> Tensor:
    """Standard normal numbers in float64, where the generator is."""
    return torch.randn(shape, generator=generator, dtype=torch.float64, device=generator.device)


def uniform(generator: torch.Generator, *shape: int, low: float = 0, high: float = 1) -> Tensor:
    """Uniform numbers in float64, where the generator is."""
    place = generator.device
    drawn = torch.rand(shape, generator=generator, dtype=torch.float64, device=place)
    return low + (high - low) * drawn


@dataclass(frozen=True)
class Refusal:
    """A call that must be refused: the inputs of a case with some arguments replaced."""

    op: str
    name: str
    case: str
    change: Callable[[Inputs], Inputs]  # gets the arguments in float32, returns the replaced ones
    message: str  # a regular expression the sentence must match
    error: type[Exception] = ValueError


def refused(op: str, case: str) -> Callable[..., Refusal]:
    """How an operator's refusals are written: name, sentence, and by name the replaced arguments
    of a case; what is callable makes the replacement from the argument that is there."""

    def refusal(
        name: str,
        message: str,
        error: type[Exception] = ValueError,
        case: str = case,
        **replaced: Any,
    ) -> Refusal:
        make = lambda a: {k: v(a[k]) if callable(v) else v for k, v in replaced.items()}
        return Refusal(op, name, case, make, message, error)

    return refusal


def on_meta(x: Tensor) -> Tensor:
    """The same on another device."""
    return x.to("meta")
