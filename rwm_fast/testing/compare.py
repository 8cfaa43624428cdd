"""The one error rule, and the three versions of a result that it compares.

* truth: the reference in float64, on the numbers the tested call gets, differentiated by torch;
* plain: the reference in the tested dtype, differentiated by torch;
* ours: the operator with its own formulas, on some backend.

A result passes if |ours − truth| ≤ 2·|plain − truth| + floor, where a distance is the largest over
the tensor. The floor is what any correct program may lose even where `plain` is lucky:

* units in the last place at the largest value: one for the result and one for each value stored on
  the way to it, since a rounding is half a unit and both sides of the comparison have it; units of
  the coarser of the result's dtype and the dtype of the call;
* two units of the accumulation dtype for each √terms: rounding errors of a sum of M terms grow like
  √M.
"""

from __future__ import annotations

import contextlib
import importlib
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from rwm_fast.ops import _dispatch, _registry
from rwm_fast.ops._check import accumulator
from rwm_fast.testing.cases import Case, Inputs


def function(op: str) -> Callable[..., Tensor]:
    """The public function of an operator."""
    return getattr(importlib.import_module(f"rwm_fast.ops.{op}"), op)


def call(op: str, inputs: Mapping[str, Any]) -> Tensor:
    """The public function on a case's inputs."""
    return function(op)(**inputs)


@contextlib.contextmanager
def plain() -> Iterator[None]:
    """Inside, public functions run their reference as plain torch code, unregistered."""
    with (
        mock.patch.object(_registry, "is_plain", lambda tensors: False),
        mock.patch.object(_dispatch, "in_transform", lambda op, tensors: True),
    ):
        yield


def leaves(inputs: Mapping[str, Any]) -> list[Tensor]:
    """The arguments that require a gradient, in order."""
    return [v for v in inputs.values() if isinstance(v, Tensor) and v.requires_grad]


def in_float64(inputs: Mapping[str, Any]) -> Inputs:
    """Fresh contiguous arguments of the same values in float64; the same ones need a gradient."""

    def widen(value: object) -> object:
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        return value.detach().double().contiguous().requires_grad_(value.requires_grad)

    return {name: widen(value) for name, value in inputs.items()}


def first_order(op: str, inputs: Mapping[str, Any], cotangent: Tensor) -> list[Tensor]:
    """The output and the gradient of every leaf."""
    output = call(op, inputs)
    return [output, *torch.autograd.grad(output, leaves(inputs), cotangent)]


def second_order(
    op: str, inputs: Mapping[str, Any], cotangent: Tensor, seconds: list[Tensor]
) -> list[Tensor]:
    """Gradients of Σ⟨gradient, second⟩ to the cotangent and every leaf; 0 where independent."""
    cotangent = cotangent.detach().requires_grad_()
    grads = torch.autograd.grad(call(op, inputs), leaves(inputs), cotangent, create_graph=True)
    parts = [(g * s).sum() for g, s in zip(grads, seconds, strict=True)]
    total = sum(parts[1:], parts[0])
    at = [cotangent, *leaves(inputs)]
    return list(torch.autograd.grad(total, at, allow_unused=True, materialize_grads=True))


def distance(a: Tensor, b: Tensor) -> float:
    """The largest |a − b| in float64; infinite where only one is finite or only one is NaN."""
    a, b = a.detach().double(), b.detach().double()
    if not a.numel():
        return 0.0
    same = (a == b) | (a.isnan() & b.isnan())
    return torch.where(same, 0, (a - b).abs()).nan_to_num(math.inf, math.inf).max().item()


def check(
    label: str, ours: Tensor, plain: Tensor, truth: Tensor, case: Case, dtype: torch.dtype
) -> None:
    """Raise AssertionError unless the result obeys the error rule (see the module's docstring).

    dtype is that of the call: a result kept in float32 beside it inherits its roundings.
    """
    assert ours.shape == truth.shape, f"{label}: shape {list(ours.shape)}, not {list(truth.shape)}"
    assert ours.dtype == plain.dtype, f"{label}: dtype {ours.dtype}, not {plain.dtype}"
    unit = max(torch.finfo(ours.dtype).eps, torch.finfo(dtype).eps)
    sums = torch.finfo(accumulator(ours.dtype)).eps * math.sqrt(case.terms)
    finite = truth.detach().double().nan_to_num(0, 0, 0)
    largest = finite.abs().max().item() if truth.numel() else 0.0
    floor = ((1 + case.stored) * unit + 2 * sums) * largest
    error, bound = distance(ours, truth), distance(plain, truth)
    assert error <= 2 * bound + floor, (
        f"{label}: off the float64 reference by {error:.3g}; the plain version by {bound:.3g},"
        f" allowed 2 times that + {floor:.3g} (largest value {largest:.3g},"
        f" {case.terms} terms)"
    )
